//! What a kernel leaves unfinished is finished by a device: checksums, and TCP that is cut into segments. Another kernel gets it, and checks.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::thread;

use ferrule_dataplane::Engine;
use ferrule_dataplane::spec::{EndSpec, KernelSpec, WireSpec};
use ferrule_ethdev::EthdevSpec;
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};

use crate::common::{engine, eventually, unique};
use crate::site::{device_counter, end, status, turn, until_up};

#[test]
fn a_tap_finishes_checksums_and_cuts_what_its_mtu_allows() {
    let test = "a_tap_finishes_checksums_and_cuts_what_its_mtu_allows";
    let Some(_turn) = turn(test) else { return };
    if lacks_namespaces(test) {
        return;
    }
    // What net_tap of 22.11 refuses to cut is cut in software: IPv6, and segments that are longer than the MTU with their Ethernet header.
    for (mtu, version, is_cut_by_device) in [(1400, 4, true), (1500, 4, false), (1400, 6, false)] {
        let site = Site::new(mtu);
        let (near, far) = addresses(version);
        let before = site.counts();
        let streams = site.near.connect(&site.far, far);
        exchange(streams, 4 << 20);
        let after = site.counts();
        let [frames, bytes, cut] = [0, 1, 2].map(|count| after[count] - before[count]);
        let is_long = bytes / frames > 2 * u64::from(mtu);
        assert_eq!(is_long, is_cut_by_device, "{frames} frames of {bytes} bytes became {cut}, MTU {mtu}, IPv{version}");
        assert_eq!(cut > 2 * frames, is_cut_by_device, "{frames} frames became {cut}, MTU {mtu}, IPv{version}");
        println!("MTU {mtu}, IPv{version}: {frames} frames of {} bytes left the wire as {cut}", bytes / frames);
        datagrams(&site, near, far);
        assert_eq!(device_counter(&site.engine, &site.wire, "tx_refused"), Some(0));
    }
}

/// A wire between an interface of the kernel in one namespace, and a tap in the other.
struct Site {
    // In this order: nothing of a namespace is in use when it is deleted.
    engine: Engine,
    wire: String,
    near: TestNetNs,
    far: TestNetNs,
}

impl Site {
    fn new(mtu: u32) -> Self {
        let (near, far, wire) = (TestNetNs::new(), TestNetNs::new(), unique("offload"));
        let engine = far.run(engine);
        let interface = near.interface("near0", &["10.9.0.1/24", "fd09::1/64"]);
        let interface = KernelSpec { mtu: Some(mtu), ..interface };
        let tap = EthdevSpec::new("net_tap0,iface=tap7");
        engine.apply(WireSpec::new(&wire, [EndSpec::Kernel(interface), end(&tap)])).unwrap();
        until_up(&engine, &wire);
        far.ip("addr add 10.9.0.2/24 dev tap7");
        far.ip("addr add fd09::2/64 dev tap7 nodad");
        far.wait_for_carrier("tap7");
        let is_tentative = || near.ip("-6 addr show dev near0").contains("tentative");
        eventually("the address of the near end can be used", || !is_tentative());
        Self { engine, wire, near, far }
    }

    /// Frames and bytes of the wire towards the tap, and frames that the tap has sent.
    fn counts(&self) -> [u64; 3] {
        let traffic = status(&self.engine, &self.wire).directions[0];
        // Devices are asked now and then.
        let sent = || device_counter(&self.engine, &self.wire, "tx_frames").unwrap();
        eventually("the tap has counted them", || sent() >= traffic.frames);
        [traffic.frames, traffic.bytes, sent()]
    }
}

/// Those of both ends of a site.
fn addresses(version: u8) -> (IpAddr, IpAddr) {
    let text = if version == 4 { ["10.9.0.1", "10.9.0.2"] } else { ["fd09::1", "fd09::2"] };
    let [near, far] = text.map(|text| text.parse().unwrap());
    (near, far)
}

/// Sends so many bytes both ways at the same time, and compares.
fn exchange([near, far]: [TcpStream; 2], len: usize) {
    let bytes = |seed: usize| (0..len).map(|at| (at.wrapping_mul(31) / 7 + seed) as u8).collect::<Vec<_>>();
    thread::scope(|scope| {
        for (stream, seed) in [(&near, 1), (&far, 2)] {
            scope.spawn(move || {
                let mut stream = stream;
                stream.write_all(&bytes(seed)).unwrap();
            });
        }
        for (stream, seed) in [(&near, 2), (&far, 1)] {
            scope.spawn(move || {
                let (mut stream, mut received) = (stream, vec![0; len]);
                stream.read_exact(&mut received).unwrap();
                assert!(received == bytes(seed));
            });
        }
    });
}

/// Sends datagrams one after the other, and compares: their checksums are the device's.
fn datagrams(site: &Site, near: IpAddr, far: IpAddr) {
    let ((near, _), (far, to)) = (site.near.udp(near), site.far.udp(far));
    for len in [1, 2, 63, 64, 1000, 1300_usize] {
        let sent: Vec<_> = (0..len).map(|at| (at * 7 + len) as u8).collect();
        near.send_to(&sent, to).unwrap();
        assert_eq!(receive(&far), sent);
    }
}

/// The next datagram. The tap has a signal sent for each frame.
fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    loop {
        match socket.recv(&mut bytes) {
            Ok(len) => return bytes[..len].to_vec(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
        }
    }
}
