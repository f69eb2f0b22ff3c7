//! Prefixes are translated as the kernel does it (`SNPT` and `DNPT` of ip6tables), which has RFC 6296 from somebody else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{Ipv6Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ferrule_ffi::netns::NetNs;
use ferrule_ffi::tap::{HEADER_LEN, Tap};
use ferrule_functions::nptv6::prefix::PrefixPair;
use ferrule_functions::packet::checksum;

#[test]
fn a_prefix_is_translated_as_the_kernel_does_it() {
    let netns = match NetNs::private() {
        Ok(netns) => netns,
        Err(error) => return println!("skipped: a_prefix_is_translated: lacks a namespace of its own ({error})"),
    };
    netns.run(compare).unwrap();
}

fn compare() {
    let tap = Tap::create("tap").unwrap();
    for arguments in [
        "link set lo up",
        "link set tap up",
        "addr add 2001:db8:5::1/64 dev tap nodad",
        "neigh add 2001:db8:5::80 dev tap lladdr 02:00:00:00:00:80",
    ] {
        must("ip", arguments);
    }
    let mac = mac_of("tap");
    for (inside, outside, hosts) in [
        (
            "fd01:203:405::/48",
            "2001:db8:1::/48",
            &["1::1234", "0::1", "d54e::1", "2ab0::7", "fffe:ffff:ffff:ffff:1"][..],
        ),
        ("fd01:203::/32", "2001:db8:1::/48", &["1::1"]),
        ("fd01:203:405:a000::/56", "2001:db8:1:ff00::/56", &["a012::1", "a0ff:ffff::1", "a001:ffff:ffff:ffff:7"]),
        ("fd01:203:405:7::/64", "2001:db8:1:8::/64", &["7::1", "7:1:2:3:4", "7:0:ffff::"]),
    ] {
        let pair = PrefixPair::new(inside.parse().unwrap(), outside.parse().unwrap()).unwrap();
        // The kernel wants both of one length to find the packets that are meant.
        let [inside, outside] = [pair.inside, pair.outside].map(|prefix| prefix.to_string());
        for table in [
            format!("-A POSTROUTING -s {inside} -o tap -j SNPT --src-pfx {inside} --dst-pfx {outside}"),
            format!("-A PREROUTING -d {outside} -i tap -j DNPT --src-pfx {outside} --dst-pfx {inside}"),
        ] {
            if let Err(problem) = run("ip6tables", &format!("-t mangle {table}")) {
                return println!("skipped: a_prefix_is_translated: lacks SNPT of ip6tables ({problem})");
            }
        }
        for host in hosts {
            let third = if inside.starts_with("fd01:203::") { "0" } else { "405" };
            let host: Ipv6Addr = format!("fd01:203:{third}:{host}").parse().unwrap();
            must("ip", &format!("addr add {host}/128 dev lo nodad"));
            let socket = UdpSocket::bind((host, 0)).unwrap();
            let sent = datagram(&tap, &socket);
            let translated = Ipv6Addr::from(<[u8; 16]>::try_from(&sent[22..38]).unwrap());
            assert_eq!(pair.outward(host), Some(translated), "{host} of {inside}");
            // The kernel's way back, of an answer with a checksum that is right for the address outside.
            tap.write(&[0; HEADER_LEN], &[answer(&sent, mac).as_slice().into()]).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut bytes = [0; 16];
            let length = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{host} of {inside}: {error}"));
            assert_eq!((&bytes[..length], pair.inward(translated)), (&b"question"[..], Some(host)));
        }
        must("ip6tables", "-t mangle -F");
    }
}

/// A question to the server, as it leaves. It is asked again and again: an interface that was just told up may lose it. The kernel says things
/// of its own too.
fn datagram(tap: &Tap, socket: &UdpSocket) -> Vec<u8> {
    let (deadline, mut buffer) = (Instant::now() + DEADLINE, [0; 2048]);
    let port = socket.local_addr().unwrap().port().to_be_bytes();
    loop {
        socket.send_to(b"question", (SERVER, 53)).unwrap();
        while let Ok(length) = tap.read(&mut buffer) {
            let frame = &buffer[HEADER_LEN..length];
            if frame.get(38..54) == Some(&SERVER.octets()) && frame.get(54..56) == Some(&port) {
                return frame.to_vec();
            }
        }
        assert!(Instant::now() < deadline, "no datagram came");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The same datagram, back: its ends are swapped, and its checksum made anew, which may have been left to the device.
fn answer(sent: &[u8], mac: [u8; 6]) -> Vec<u8> {
    let mut frame = [
        &mac[..],
        &[2, 0, 0, 0, 0, 0x80],
        &sent[12..22],
        &sent[38..54],
        &sent[22..38],
        &sent[56..58],
        &sent[54..56],
        &sent[58..60],
        &[0, 0],
        &sent[62..],
    ]
    .concat();
    let word = |at: usize| u128::from_be_bytes(*frame[at..].first_chunk().unwrap());
    let pseudo = checksum::pseudo_v6(word(22), word(38), 17, (frame.len() - 54) as u32);
    let sum = checksum::full(&frame[54..], pseudo);
    frame[60..62].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn mac_of(interface: &str) -> [u8; 6] {
    let shown = run("ip", &format!("-br link show {interface}")).unwrap();
    let text = shown.split_whitespace().nth(2).unwrap();
    let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn must(program: &str, arguments: &str) {
    run(program, arguments).unwrap_or_else(|problem| panic!("{program} {arguments}: {problem}"));
}

fn run(program: &str, arguments: &str) -> Result<String, String> {
    let output = Command::new(program).args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x80);
const DEADLINE: Duration = Duration::from_secs(30);
