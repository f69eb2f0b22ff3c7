//! An NPTv6 translator and what it says, packet by packet.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::Ipv6Addr;

use ferrule_daemon::settings::parse as parse_settings;
use ferrule_functions::counter::Counter;
use ferrule_functions::function::Extra;
use ferrule_functions::nptv6::Nptv6;
use ferrule_functions::nptv6::counters::NptReason;
use ferrule_functions::nptv6::settings::{NptInterface, NptSettings, read};
use ferrule_functions::packet::{ICMP_V6, TCP, UDP, checksum};
use ferrule_functions::{Disposition, Function as _, Side};
use proptest::prelude::*;

use Side::{Client, Network};

const TEXT: &str = "
inside: { address: \"fd01:203:405:1::1/64\" }
outside: { address: \"2001:db8:ffff::2/64\" }
prefixes: { inside: \"fd01:203:405::/48\", outside: \"2001:db8:1::/48\" }
gateway: \"2001:db8:ffff::1\"
";
const HOST: &str = "fd01:203:405:1::1234";
const HOST_OUTSIDE: &str = "2001:db8:1:d550::1234";
const SERVER: &str = "2001:db8:5::80";
const GATEWAY: &str = "2001:db8:ffff::1";
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x12];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn settings(text: &str) -> Result<NptSettings, Vec<String>> {
    let read = parse_settings("npt.yaml", text, |field, _| read(field));
    read.map(Option::unwrap).map_err(|errors| errors.lines().collect())
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A message with its checksum, which is the 16-bit word at `sum_at`.
fn packet(protocol: u8, from: &str, to: &str, hop_limit: u8, mut message: Vec<u8>, sum_at: usize) -> Vec<u8> {
    let (from, to) = (address(from), address(to));
    let pseudo = checksum::pseudo_v6(from.into(), to.into(), protocol, message.len() as u32);
    let sum = checksum::full(&message, pseudo);
    message[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let len = (message.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], protocol, hop_limit];
    [&header[..], &from.octets(), &to.octets(), &message].concat()
}

fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    packet(UDP, from, to, 64, [&[0, 7, 0, 53, len[0], len[1], 0, 0][..], payload].concat(), 6)
}

fn echo(from: &str, to: &str) -> Vec<u8> {
    packet(ICMP_V6, from, to, 64, [&[128, 0, 0, 0, 0, 1, 0, 1][..], b"12345678"].concat(), 2)
}

/// About a packet.
fn unreachable(from: &str, to: &str, quoted: &[u8]) -> Vec<u8> {
    packet(ICMP_V6, from, to, 64, [&[1, 4, 0, 0, 0, 0, 0, 0][..], quoted].concat(), 2)
}

fn advertisement(mac: [u8; 6], from: &str, to: &str) -> Vec<u8> {
    let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &address(from).octets(), &[2, 1], &mac].concat();
    packet(ICMP_V6, from, to, 255, message, 2)
}

fn solicitation(mac: [u8; 6], from: &str, wanted: &str) -> Vec<u8> {
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &address(wanted).octets(), &[1, 1], &mac].concat();
    packet(ICMP_V6, from, wanted, 255, message, 2)
}

/// A translator whose neighbours are known.
struct Router {
    settings: NptSettings,
    npt: Nptv6,
    out: Vec<Extra>,
}

impl Router {
    /// Nobody is known to it.
    fn alone() -> Self {
        let settings = settings(TEXT).unwrap();
        Self { npt: Nptv6::new(settings.clone()), settings, out: Vec::new() }
    }

    fn new() -> Self {
        let mut router = Self::alone();
        router.take(Client, HOST_MAC, &solicitation(HOST_MAC, HOST, "fd01:203:405:1::1"));
        router.take(Network, GATEWAY_MAC, &solicitation(GATEWAY_MAC, GATEWAY, "2001:db8:ffff::2"));
        router.out.clear();
        router
    }

    /// What becomes of a packet: it leaves on the other side as this, or does not.
    fn take(&mut self, side: Side, from: [u8; 6], packet: &[u8]) -> Option<Vec<u8>> {
        let to = self.interface(side).mac.0;
        let mut frame = [&to[..], &from, &[0x86, 0xdd], packet].concat();
        let disposition = self.npt.frame(side, &mut frame, 0, &mut self.out);
        (disposition == Disposition::Forward).then(|| {
            let (other, mac) = if side == Client { (Network, GATEWAY_MAC) } else { (Client, HOST_MAC) };
            assert_eq!((&frame[..6], &frame[6..12]), (&mac[..], &self.interface(other).mac.0[..]));
            frame[ETHERNET..].to_vec()
        })
    }

    fn out(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.take(Client, HOST_MAC, packet)
    }

    fn back(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.take(Network, GATEWAY_MAC, packet)
    }

    /// The last frame that was made: to whom, and its ICMPv6 type and code.
    fn said(&mut self) -> Option<(Side, String, [u8; 2])> {
        let Extra { to, frame } = self.out.pop()?;
        assert!(has_right_checksum(&frame[ETHERNET..]), "{frame:02x?}");
        Some((to, address_at(&frame, ETHERNET + DESTINATION).to_string(), [frame[54], frame[55]]))
    }

    fn interface(&self, side: Side) -> &NptInterface {
        if side == Client { &self.settings.inside } else { &self.settings.outside }
    }

    fn count(&self, reason: NptReason) -> u64 {
        self.npt.counters().of(reason)
    }
}

fn has_right_checksum(packet: &[u8]) -> bool {
    let word = |at: usize| u128::from_be_bytes(*packet[at..].first_chunk().unwrap());
    checksum::is_right(
        &packet[HEADER..],
        checksum::pseudo_v6(word(8), word(24), packet[6], (packet.len() - HEADER) as u32),
    )
}

/// One hop more.
fn later(mut packet: Vec<u8>) -> Vec<u8> {
    packet[HOP_LIMIT] -= 1;
    packet
}

#[test]
fn a_client_is_known_outside_by_its_counterpart_and_gets_the_answer() {
    let mut router = Router::new();
    let udp_out = router.out(&udp(HOST, SERVER, b"question")).unwrap();
    // Its transport, checksum and all, is as the client sent it.
    assert_eq!(udp_out[HEADER..], udp(HOST, SERVER, b"question")[HEADER..]);
    assert_eq!(udp_out, later(udp(HOST_OUTSIDE, SERVER, b"question")));
    assert_eq!(router.back(&udp(SERVER, HOST_OUTSIDE, b"answer")), Some(later(udp(SERVER, HOST, b"answer"))));
    assert_eq!(router.out(&echo(HOST, SERVER)), Some(later(echo(HOST_OUTSIDE, SERVER))));
    // Nobody has to have asked.
    assert_eq!(router.back(&echo(SERVER, HOST_OUTSIDE)), Some(later(echo(SERVER, HOST))));
    assert_eq!(router.npt.counters().translated.each_ref().map(Counter::get), [2, 2]);
    assert_eq!(router.npt.remark().word, "translated");
}

#[test]
fn an_icmp_error_shows_whoever_gets_it_its_own_packet() {
    let mut router = Router::new();
    let seen = udp(HOST_OUTSIDE, SERVER, b"question");
    let told = router.back(&unreachable("2001:db8:5::1", HOST_OUTSIDE, &seen)).unwrap();
    assert_eq!(told, later(unreachable("2001:db8:5::1", HOST, &udp(HOST, SERVER, b"question"))));
    // One of a client, about what came to it.
    let seen = udp(SERVER, HOST, b"nobody asked");
    let told = router.out(&unreachable(HOST, SERVER, &seen)).unwrap();
    assert_eq!(told, later(unreachable(HOST_OUTSIDE, SERVER, &udp(SERVER, HOST_OUTSIDE, b"nobody asked"))));
    // One that quotes too little is translated itself.
    assert!(router.back(&unreachable(SERVER, HOST_OUTSIDE, &seen[..39])).is_some());
}

#[test]
fn two_clients_meet_by_their_addresses_outside() {
    let mut router = Router::new();
    let other_outside = router.settings.prefixes.outward(address("fd01:203:405:1::5")).unwrap().to_string();
    router.take(
        Client,
        [2, 0, 0, 0, 0, 5],
        &solicitation([2, 0, 0, 0, 0, 5], "fd01:203:405:1::5", "fd01:203:405:1::1"),
    );
    router.out.clear();
    assert_eq!(router.out(&udp(HOST, &other_outside, b"hello")), None);
    let Extra { to, frame } = router.out.pop().unwrap();
    assert_eq!((to, &frame[..6]), (Client, &[2, 0, 0, 0, 0, 5][..]));
    assert_eq!(frame[ETHERNET..], later(udp(HOST_OUTSIDE, "fd01:203:405:1::5", b"hello")));
    let error = unreachable("fd01:203:405:1::5", HOST_OUTSIDE, &frame[ETHERNET..]);
    router.take(Client, [2, 0, 0, 0, 0, 5], &error);
    let back = router.out.pop().unwrap().frame[ETHERNET..].to_vec();
    let mut quoted = udp(HOST, &other_outside, b"hello");
    quoted[HOP_LIMIT] -= 1;
    assert_eq!(back, later(unreachable(&other_outside, HOST, &quoted)));
}

#[test]
fn solicitations_are_answered_for_the_outside_prefix_outside_and_for_nobody_else() {
    let mut router = Router::new();
    for (side, wanted, is_answered) in [
        (Network, "2001:db8:ffff::2", true),
        (Network, HOST_OUTSIDE, true),
        (Network, "2001:db8:1::77", true),
        (Network, "2001:db8:2::77", false),
        (Network, "2001:db8:ffff::3", false),
        (Network, HOST, false),
        (Client, "fd01:203:405:1::1", true),
        (Client, "fd01:203:405:1::5", false),
        (Client, HOST_OUTSIDE, false),
        (Client, "2001:db8:ffff::2", false),
    ] {
        let from = if side == Client { HOST } else { GATEWAY };
        assert_eq!(router.take(side, HOST_MAC, &solicitation(HOST_MAC, from, wanted)), None);
        let said = is_answered.then(|| (side, from.to_owned(), [136, 0]));
        assert_eq!(router.said(), said, "{wanted}");
    }
    // Its own addresses answer pings, the outside one inside too.
    for (side, from, wanted) in
        [(Client, HOST, "fd01:203:405:1::1"), (Client, HOST, "2001:db8:ffff::2"), (Network, SERVER, "2001:db8:ffff::2")]
    {
        assert_eq!(router.take(side, HOST_MAC, &echo(from, wanted)), None);
        assert_eq!(router.said(), Some((side, from.to_owned(), [129, 0])), "{wanted}");
    }
}

#[test]
fn a_neighbour_is_asked_for_and_its_frames_wait() {
    let mut router = Router::alone();
    assert_eq!(router.out(&udp(HOST, SERVER, b"1")), None);
    assert_eq!(router.npt.remark().word, "held");
    // The gateway is asked for once.
    assert_eq!(router.said(), Some((Network, "ff02::1:ff00:1".to_owned(), [135, 0])));
    assert_eq!(router.out(&udp(HOST, SERVER, b"2")), None);
    assert_eq!(router.said(), None);
    // Who was not asked for says what it likes.
    assert_eq!(router.back(&advertisement(HOST_MAC, "2001:db8:ffff::9", "2001:db8:ffff::2")), None);
    assert_eq!(router.back(&advertisement(GATEWAY_MAC, GATEWAY, "2001:db8:ffff::2")), None);
    let frames: Vec<_> =
        router.out.drain(..).map(|extra| (extra.to, extra.frame[..6].to_vec(), extra.frame[62])).collect();
    assert_eq!(frames, [(Network, GATEWAY_MAC.to_vec(), b'1'), (Network, GATEWAY_MAC.to_vec(), b'2')]);
    assert!(router.out(&udp(HOST, SERVER, b"3")).is_some());
    // A server on the network outside is a neighbour itself.
    assert_eq!(router.out(&udp(HOST, "2001:db8:ffff::80", b"4")), None);
    assert_eq!(router.said(), Some((Network, "ff02::1:ff00:80".to_owned(), [135, 0])));
    router.npt.tick(3000);
    assert_eq!(router.count(NptReason::NoNeighbour), 1);
}

#[test]
fn what_goes_no_further_is_told_why() {
    let mut router = Router::new();
    let mut last_hop = udp(HOST, SERVER, b"");
    last_hop[HOP_LIMIT] = 1;
    let of_client = |code| Some((Client, HOST.to_owned(), code));
    for (side, packet, reason, said) in [
        (Client, last_hop, NptReason::Expired, of_client([3, 0])),
        (
            Client,
            udp("fd01:203:405:ffff::1", SERVER, b""),
            NptReason::NoCounterpart,
            Some((Client, "fd01:203:405:ffff::1".to_owned(), [4, 0])),
        ),
        (
            Client,
            udp("2001:db8:7::1", SERVER, b""),
            NptReason::WrongSource,
            Some((Client, "2001:db8:7::1".to_owned(), [1, 5])),
        ),
        (Client, udp(HOST, "fd01:203:405:2::1", b""), NptReason::NoRoute, of_client([1, 0])),
        (Client, udp("fe80::1", SERVER, b""), NptReason::NotOurs, None),
        (Client, udp(HOST, "ff0e::1", b""), NptReason::NotOurs, None),
        (Network, udp(SERVER, "2001:db8:2::1", b""), NptReason::NotOurs, None),
        (Network, udp(HOST, HOST_OUTSIDE, b""), NptReason::WrongSource, None),
        (
            Network,
            udp(SERVER, "2001:db8:1:ffff::1", b""),
            NptReason::NoCounterpart,
            Some((Network, SERVER.to_owned(), [4, 0])),
        ),
        // No host has that subnet there.
        (Network, udp(SERVER, "2001:db8:1:1::1", b""), NptReason::NoRoute, Some((Network, SERVER.to_owned(), [1, 0]))),
        (Client, unreachable(HOST, "fd01:203:405:2::1", &udp(SERVER, HOST, b"")), NptReason::NoRoute, None),
    ] {
        let before = router.count(reason);
        assert_eq!(router.take(side, HOST_MAC, &packet), None, "{reason:?}");
        assert_eq!((router.count(reason), router.said()), (before + 1, said), "{reason:?}");
    }
    // No flood of errors.
    router.out.clear();
    for _ in 0..1000 {
        router.out(&udp(HOST, "fd01:203:405:2::1", b""));
    }
    assert!(router.out.len() <= 100);
}

#[test]
fn what_is_wrong_is_named_with_its_cure() {
    for (old, new, place, problem) in [
        ("1::1/64", "1::1", "inside.address", "with its prefix"),
        ("fd01:203:405:1::1/64", "fd02::1/64", "inside.address", "not within fd01:203:405::/48"),
        ("2001:db8:ffff::2/64", "2001:db8:1:9::2/64", "outside.address", "overlaps 2001:db8:1::/48"),
        ("inside: \"fd01:203:405::/48\"", "inside: \"fd01:203:405::/65\"", "prefixes.inside", "longer than 64 bits"),
        ("2001:db8:1::/48", "2001:db8:1::1/48", "prefixes.outside", "write 2001:db8:1::/48"),
        ("2001:db8:1::/48", "fd01:203:405::/48", "prefixes", "use a passthrough"),
        ("2001:db8:1::/48", "10.0.0.0/8", "prefixes.outside", "a prefix as in"),
        ("gateway: \"2001:db8:ffff::1\"", "gateway: \"2001:db8:fffe::1\"", "gateway", "not on the outside network"),
        ("gateway", "gatway", "gatway", "did you mean `gateway`?"),
    ] {
        assert!(TEXT.contains(old), "{old}");
        let lines = settings(&TEXT.replacen(old, new, 1)).unwrap_err();
        assert!(lines.iter().any(|line| line.contains(place) && line.contains(problem)), "{new}: {lines:#?}");
    }
}

proptest! {
    #[test]
    fn no_checksum_changes_and_the_way_back_is_the_way_there(
        hosts in prop::array::uniform4(prop_oneof![any::<u16>(), Just(0), Just(0xffff)]),
        kind in 0..3u8,
        payload in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let [a, b, c, d] = hosts;
        let host = format!("fd01:203:405:1:{a:x}:{b:x}:{c:x}:{d:x}");
        prop_assume!(address(&host) != address("fd01:203:405:1::1"));
        let sent = match kind {
            0 => udp(&host, SERVER, &payload),
            1 => packet(TCP, &host, SERVER, 64, [&[0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0][..], &payload].concat(), 16),
            _ => packet(ICMP_V6, &host, SERVER, 64, [&[128, 0, 0, 0][..], &[0; 4], &payload].concat(), 2),
        };
        let mut router = Router::new();
        let there = router.out(&sent).unwrap();
        prop_assert_eq!(&there[HEADER..], &sent[HEADER..]);
        prop_assert!(has_right_checksum(&there));
        // The server sends it back as it is, but for the ends.
        let mut back = there.clone();
        back[8..24].copy_from_slice(&there[24..40]);
        back[24..40].copy_from_slice(&there[8..24]);
        router.back(&back);
        // Whoever it is for is asked for.
        let asked = router.out.pop().unwrap();
        let wanted = address_at(&asked.frame, ETHERNET + HEADER + 8);
        prop_assert_eq!(wanted, address(&host));
    }
}

fn address_at(frame: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from(*frame[at..].first_chunk::<16>().unwrap())
}

const ETHERNET: usize = 14;
/// In an IPv6 header, and how long that is.
const HOP_LIMIT: usize = 7;
const DESTINATION: usize = 24;
const HEADER: usize = 40;
