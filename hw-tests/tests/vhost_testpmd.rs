//! vhost-user against the virtio-user frontend of Debian's testpmd: every layout, several queues, either side
//! listening, either side restarted.
//!
//! ```text
//! our memif end 0 -- wire 0 -- testpmd port 0 <-> port 1 -- wire 1 -- our memif end 1
//! ```

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, SocketAddress, VhostFeatures, VhostUserSpec, WireSpec};
use ferrule_dataplane::status::WireStatus;
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::stream::{Route, Stream, both_ways, carry};
use ferrule_hw_tests::testpmd::{Testpmd, TestpmdOptions};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

#[test]
fn every_size_crosses_split_rings_both_ways() {
    crossing("every_size_crosses_split_rings_both_ways", &Link::default(), &SIZES, 4500);
}

#[test]
fn every_size_crosses_split_rings_without_merged_buffers() {
    let link = Link { device: "mrg_rxbuf=0", ..Link::default() };
    crossing("every_size_crosses_split_rings_without_merged_buffers", &link, &SIZES, 4500);
}

#[test]
fn every_size_crosses_split_rings_that_are_used_in_order() {
    let link = Link { device: "in_order=1", ..Link::default() };
    crossing("every_size_crosses_split_rings_that_are_used_in_order", &link, &SIZES, 4500);
}

#[test]
fn every_size_crosses_split_rings_in_order_without_merged_buffers() {
    let link = Link { device: "in_order=1,mrg_rxbuf=0", ..Link::default() };
    crossing("every_size_crosses_split_rings_in_order_without_merged_buffers", &link, &SIZES, 4500);
}

#[test]
fn every_size_crosses_packed_rings_both_ways() {
    let link = Link { device: "packed_vq=1", ..Link::default() };
    crossing("every_size_crosses_packed_rings_both_ways", &link, &SIZES, 4500);
}

#[test]
fn every_size_crosses_packed_rings_without_merged_buffers() {
    let link = Link { device: "packed_vq=1,mrg_rxbuf=0", ..Link::default() };
    crossing("every_size_crosses_packed_rings_without_merged_buffers", &link, &SIZES, 4500);
}

#[test]
fn every_size_crosses_packed_rings_that_are_used_in_order() {
    let link = Link { device: "packed_vq=1,in_order=1", ..Link::default() };
    crossing("every_size_crosses_packed_rings_that_are_used_in_order", &link, &SIZES, 4500);
}

#[test]
fn every_size_lies_in_small_buffers_that_are_merged() {
    let link = Link { mbuf: 2176, ..Link::default() };
    crossing("every_size_lies_in_small_buffers_that_are_merged", &link, &SIZES, 4500);
    let link = Link { device: "packed_vq=1", mbuf: 2176, ..Link::default() };
    crossing("every_size_lies_in_small_buffers_that_are_merged", &link, &SIZES, 4500);
}

#[test]
fn rings_of_every_size_wrap() {
    for device in ["queue_size=64", "queue_size=1024", "packed_vq=1,queue_size=64", "packed_vq=1,queue_size=1024"] {
        crossing("rings_of_every_size_wrap", &Link { device, window: 24, ..Link::default() }, &[64], 70_000);
    }
}

#[test]
fn four_queues_stay_apart() {
    for device in ["packed_vq=0", "packed_vq=1"] {
        let link = Link { device, queues: 4, ..Link::default() };
        crossing("four_queues_stay_apart", &link, &[64, 1518, 9000], 1500);
    }
}

#[test]
fn testpmd_listens_and_we_connect() {
    for device in ["packed_vq=0", "packed_vq=1"] {
        let link = Link { mode: Role::Client, device, ..Link::default() };
        crossing("testpmd_listens_and_we_connect", &link, &SIZES, 4500);
    }
}

#[test]
fn four_queues_of_a_testpmd_that_listens_stay_apart() {
    let link = Link { mode: Role::Client, queues: 4, ..Link::default() };
    crossing("four_queues_of_a_testpmd_that_listens_stay_apart", &link, &[64, 1518], 1500);
}

#[test]
fn what_is_switched_off_is_not_used_and_frames_cross_all_the_same() {
    let features = VhostFeatures { packed: false, in_order: false, mrg_rxbuf: false, ..VhostFeatures::default() };
    let link = Link { features, device: "packed_vq=0,in_order=1,mrg_rxbuf=1", ..Link::default() };
    crossing("what_is_switched_off_is_not_used_and_frames_cross_all_the_same", &link, &SIZES, 2000);
}

#[test]
fn a_testpmd_that_was_killed_while_frames_flowed_comes_back() {
    for (mode, device) in [(Role::Server, "packed_vq=0"), (Role::Client, "packed_vq=1")] {
        let test = "a_testpmd_that_was_killed_while_frames_flowed_comes_back";
        if lacks(test, &[TESTPMD]) {
            return;
        }
        let _alone = alone();
        let testbed = Testbed::new(&Link { mode, device, ..Link::default() });
        for _ in 0..3 {
            let mut ends = testbed.ends();
            if mode == Role::Client {
                // DPDK does not listen where its predecessor's socket file still lies.
                (0..2).for_each(|port| drop(fs::remove_file(testbed.socket(port))));
            }
            let testpmd = Testpmd::start(&testbed.options());
            testbed.wait_until_up();
            let mut routes = both_ways(1, &SIZES[..5], WINDOW);
            carry(&mut ends, &mut routes, 2000);
            for route in &mut routes {
                route.stream.send(&mut ends[route.from], u64::MAX);
            }
            testpmd.kill();
            eventually("the loss is noticed", || (0..2).all(|port| !testbed.status(port).is_up()));
            for route in &mut routes {
                while route.stream.receive(&mut ends[route.to]) > 0 {}
                route.stream.check();
            }
        }
    }
}

#[test]
fn a_testpmd_that_listens_stays_when_our_engine_goes_and_comes_back() {
    let test = "a_testpmd_that_listens_stays_when_our_engine_goes_and_comes_back";
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let link = Link { mode: Role::Client, ..Link::default() };
    let folder = tempfile::tempdir().unwrap();
    let mut testbed = Testbed::within(folder.path(), &link);
    let testpmd = Testpmd::start(&testbed.options());
    for _ in 0..3 {
        testbed.wait_until_up();
        carry(&mut testbed.ends(), &mut both_ways(1, &SIZES[..5], WINDOW), 2000);
        drop(testbed);
        testbed = Testbed::within(folder.path(), &link);
    }
    testbed.wait_until_up();
    testpmd.stop();
}

#[test]
fn frames_come_back_from_a_port_alone_with_their_addresses_swapped() {
    if lacks("frames_come_back_from_a_port_alone_with_their_addresses_swapped", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&Link::default());
    let _testpmd =
        Testpmd::start(&TestpmdOptions { devices: vec![testbed.device(0)], forward: "macswap", ..testbed.options() });
    let mut ends = testbed.ends();
    let mut there_and_back = [Route { stream: Stream::new(0, &SIZES, WINDOW), from: 0, to: 0 }];
    carry(&mut ends, &mut there_and_back, 4500);
}

/// Frames of these sizes cross testpmd on all queues, both ways, none lost or altered.
fn crossing(test: &str, link: &Link, sizes: &[usize], total: u64) {
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(link);
    let _testpmd = Testpmd::start(&testbed.options());
    testbed.wait_until_up();
    let mut ends = testbed.ends();
    carry(&mut ends, &mut both_ways(usize::from(link.queues), sizes, link.window), total);
    for port in 0..2 {
        let dropped = testbed.status(port).directions.map(|traffic| traffic.dropped());
        assert_eq!(dropped, [0, 0], "{test}: wire {port}");
    }
}

/// How testpmd and our wires are joined.
#[derive(Clone, Debug)]
struct Link {
    /// Our side of the socket; testpmd plays the other.
    mode: Role,
    /// What its devices are told beside the socket.
    device: &'static str,
    features: VhostFeatures,
    queues: u16,
    /// Bytes of its buffers, headroom included.
    mbuf: u32,
    /// Frames under way in one direction of a queue.
    window: u64,
}

impl Default for Link {
    fn default() -> Self {
        let features = VhostFeatures::default();
        Self { mode: Role::Server, device: "packed_vq=0", features, queues: 1, mbuf: 9728, window: WINDOW }
    }
}

/// An engine with a wire for each of testpmd's two ports.
struct Testbed {
    engine: Engine,
    name: String,
    link: Link,
    folder: PathBuf,
    /// Removed with the testbed, if it is its own.
    _owner: Option<tempfile::TempDir>,
}

impl Testbed {
    fn new(link: &Link) -> Self {
        let owner = tempfile::tempdir().unwrap();
        let testbed = Self::within(owner.path(), link);
        Self { _owner: Some(owner), ..testbed }
    }

    /// The same with the sockets of another, to take its place.
    fn within(folder: &Path, link: &Link) -> Self {
        let engine = Engine::start(&Settings::new(vec![0])).unwrap();
        let testbed =
            Self { engine, name: unique("vhost"), link: link.clone(), folder: folder.to_owned(), _owner: None };
        for port in 0..2 {
            let vhost = VhostUserSpec {
                queues: link.queues,
                features: link.features,
                ..VhostUserSpec::new(SocketAddress::Path(testbed.socket(port)), link.mode)
            };
            let ours = MemifSpec { role: Role::Server, ..testbed.end(port) };
            let ends = [EndSpec::Memif(ours), EndSpec::VhostUser(vhost)];
            testbed.engine.add(WireSpec::new(testbed.wire(port), ends)).unwrap();
        }
        testbed
    }

    fn options(&self) -> TestpmdOptions {
        let devices = (0..2).map(|port| self.device(port)).collect();
        TestpmdOptions { devices, queues: self.link.queues, mbuf: self.link.mbuf, ..TestpmdOptions::default() }
    }

    /// testpmd's side of wire `port`.
    fn device(&self, port: u32) -> String {
        let server = if self.link.mode == Role::Client { ",server=1" } else { "" };
        let Link { device, queues, .. } = &self.link;
        format!("net_virtio_user{port},path={},queues={queues},{device}{server}", self.socket(port).display())
    }

    fn ends(&self) -> [Endpoint; 2] {
        [0, 1].map(|port| Endpoint::open(&self.end(port), TIMEOUT).unwrap())
    }

    fn status(&self, port: u32) -> WireStatus {
        self.engine.wire(&self.wire(port)).unwrap()
    }

    /// Waits until testpmd has made itself known at both wires.
    fn wait_until_up(&self) {
        eventually("testpmd is at both wires", || (0..2).all(|port| self.status(port).ends[1].word() == "connected"));
    }

    fn end(&self, port: u32) -> MemifSpec {
        let socket = format!("@{}", self.name).parse().unwrap();
        MemifSpec { id: port, queues: self.link.queues, buffer: 9216, ..MemifSpec::new(socket, Role::Client) }
    }

    fn socket(&self, port: u32) -> PathBuf {
        self.folder.join(format!("{port}.sock"))
    }

    fn wire(&self, port: u32) -> String {
        format!("{}-{port}", self.name)
    }
}

/// One testpmd at a time: it polls, and a machine may have two CPUs.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 64 to 9000 bytes, and 60: a minimal frame without its FCS.
const SIZES: [usize; 9] = [60, 64, 65, 128, 1514, 1518, 2048, 4000, 9000];
/// Frames under way in one direction of a queue: half of virtio-user's usual ring.
const WINDOW: u64 = 128;
