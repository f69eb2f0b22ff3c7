//! memif against Debian's testpmd when one of both is killed while frames flow, and comes back.
//!
//! ```text
//! our end 0 -- wire 0 -- testpmd port 0 <-> port 1 -- wire 1 -- our end 1
//! our end   -- the bystander, a wire of the same engine -- our end
//! ```
//! The bystander is looked at after each round: it must not have lost, repeated or swapped a frame.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod testbed;

use std::process::Command;
use std::thread;
use std::time::Instant;

use ferrule_dataplane::spec::{EndSpec, MemifSpec, Role, WireSpec};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::{TESTPMD, lacks};
use ferrule_hw_tests::process::Process;
use ferrule_hw_tests::stream::{Route, Stream, both_ways, carry};
use ferrule_hw_tests::testpmd::{Testpmd, TestpmdOptions};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};
use testbed::{Link, Testbed, alone};

#[test]
fn testpmd_as_client_is_killed_while_frames_flow_and_comes_back() {
    testpmd_is_killed("testpmd_as_client_is_killed_while_frames_flow_and_comes_back", Role::Server);
}

#[test]
fn testpmd_as_server_is_killed_while_frames_flow_and_comes_back() {
    testpmd_is_killed("testpmd_as_server_is_killed_while_frames_flow_and_comes_back", Role::Client);
}

fn testpmd_is_killed(test: &str, ours: Role) {
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&Link { ours, ..Link::default() });
    let mut bystander = BystanderWire::new(&testbed);
    let mut ends = testbed.ends();
    for _ in 0..3 {
        let testpmd = Testpmd::start(&testbed.options());
        testbed.wait_for(&testpmd, 1);
        let mut routes = both_ways(1, &SIZES, WINDOW);
        flow(&mut ends, &mut routes, &mut bystander);
        testpmd.kill();
        let seen = bystander.arrived();
        while testbed.status(0).is_up() || testbed.status(1).is_up() || bystander.arrived() < seen + 1000 {
            bystander.step();
        }
        drain(&mut ends, &mut routes);
        bystander.check();
    }
}

#[test]
fn frames_at_rest_reach_testpmd_as_client_when_it_comes() {
    frames_rest("frames_at_rest_reach_testpmd_as_client_when_it_comes", Role::Server);
}

#[test]
fn frames_at_rest_reach_testpmd_as_server_when_it_comes() {
    frames_rest("frames_at_rest_reach_testpmd_as_server_when_it_comes", Role::Client);
}

/// One port that sends everything back: of two, the one that is connected first forwards into the void.
fn frames_rest(test: &str, ours: Role) {
    if lacks(test, &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let testbed = Testbed::new(&Link { ours, ..Link::default() });
    let options = TestpmdOptions { devices: vec![testbed.device(0)], ..testbed.options() };
    let mut ends = testbed.ends();
    let mut there_and_back = [Route { stream: Stream::new(0, &SIZES, WINDOW), from: 0, to: 0 }];
    for round in 1..=3 {
        // Nobody is there: these wait in the ring between our end and the wire.
        let total = there_and_back[0].stream.sent() + RESTING;
        eventually("frames rest", || {
            there_and_back[0].stream.send(&mut ends[0], total);
            there_and_back[0].stream.missing() == RESTING
        });
        let testpmd = Testpmd::start(&options);
        carry(&mut ends, &mut there_and_back, round * 2000);
        testpmd.kill();
        eventually("the loss is noticed", || !testbed.status(0).is_up());
    }
}

#[test]
fn testpmd_as_server_stays_when_our_engine_goes_and_comes_back() {
    if lacks("testpmd_as_server_stays_when_our_engine_goes_and_comes_back", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let link = Link { ours: Role::Client, ..Link::default() };
    let mut testbed = Testbed::new(&link);
    let mut testpmd = Testpmd::start(&TestpmdOptions { pausable: true, ..testbed.options() });
    for round in 1..=3 {
        testbed.wait_for(&testpmd, round);
        carry(&mut testbed.ends(), &mut both_ways(1, &SIZES, WINDOW), 5000);
        testpmd.pause();
        let name = testbed.name().to_owned();
        drop(testbed);
        testbed = Testbed::called(name, &link);
        testpmd.resume();
    }
}

#[test]
fn testpmd_as_client_does_not_come_back_to_our_engine_until_it_is_restarted() {
    if lacks("testpmd_as_client_does_not_come_back_to_our_engine_until_it_is_restarted", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    let link = Link::default();
    let testbed = Testbed::new(&link);
    let mut testpmd = Testpmd::start(&TestpmdOptions { pausable: true, ..testbed.options() });
    testbed.wait_for(&testpmd, 1);
    carry(&mut testbed.ends(), &mut both_ways(1, &[64], WINDOW), 1000);
    let name = testbed.name().to_owned();
    testpmd.pause();
    drop(testbed);
    // It hears why, and stays without a peer: DPDK connects only when a port is started.
    testpmd.wait_for("the wire was removed");
    let testbed = Testbed::called(name, &link);
    testpmd.kill();
    let testpmd = Testpmd::start(&testbed.options());
    testbed.wait_for(&testpmd, 1);
    carry(&mut testbed.ends(), &mut both_ways(1, &[64], WINDOW), 1000);
}

#[test]
fn testpmd_as_server_takes_our_client_again_after_we_were_killed() {
    if lacks("testpmd_as_server_takes_our_client_again_after_we_were_killed", &[TESTPMD]) {
        return;
    }
    let _alone = alone();
    // Its devices need names only; the engine that talks to it is another process.
    let testbed = Testbed::new(&Link { ours: Role::Client, ..Link::default() });
    let (options, name) = (testbed.options(), testbed.name().to_owned());
    drop(testbed);
    let mut testpmd = Testpmd::start(&TestpmdOptions { pausable: true, ..options });
    for round in 1..=3 {
        let mut host = Process::start(Command::new(env!("CARGO_BIN_EXE_wire-host")).arg(&name));
        host.wait_for("connected");
        let mut ends = [0, 1].map(|id| Endpoint::open(&peer_end(&name, id), TIMEOUT).unwrap());
        testpmd.wait_for_connections(2 * round);
        let mut routes = both_ways(1, &SIZES, WINDOW);
        carry(&mut ends, &mut routes, 2000);
        testpmd.pause();
        for route in &mut routes {
            route.step(&mut ends, u64::MAX);
        }
        host.kill();
        testpmd.resume();
    }
}

/// Frames flow until 2000 more came on each route, and some are under way.
fn flow(ends: &mut [Endpoint; 2], routes: &mut [Route], bystander: &mut BystanderWire) {
    let goal = routes[0].stream.sent() + 2000;
    let began = Instant::now();
    while routes.iter().any(|route| route.stream.tally().frames < goal) {
        for route in routes.iter_mut() {
            route.step(ends, u64::MAX);
        }
        bystander.step();
        assert!(began.elapsed() < TIMEOUT, "frames do not flow");
    }
    for route in routes {
        route.stream.send(&mut ends[route.from], u64::MAX);
    }
}

/// After a kill: what still comes is good, and no more is missing than was under way.
fn drain(ends: &mut [Endpoint; 2], routes: &mut [Route]) {
    for route in routes {
        while route.stream.receive(&mut ends[route.to]) > 0 {}
        route.stream.check();
        assert!(route.stream.missing() <= WINDOW, "{} missing", route.stream.missing());
    }
}

/// A wire of the same engine, whose frames must not notice anything.
struct BystanderWire {
    ends: [Endpoint; 2],
    routes: Vec<Route>,
}

impl BystanderWire {
    fn new(testbed: &Testbed) -> Self {
        let name = unique("bystander");
        let end = |id, role| MemifSpec { id, ..MemifSpec::new(format!("@{name}").parse().unwrap(), role) };
        let ends = [0, 1].map(|id| EndSpec::Memif(end(id, Role::Server)));
        testbed.engine.add(WireSpec::new(name.clone(), ends)).unwrap();
        let ends = [0, 1].map(|id| Endpoint::open(&end(id, Role::Client), TIMEOUT).unwrap());
        Self { ends, routes: both_ways(1, &[64, 1518], 128) }
    }

    fn step(&mut self) {
        let moved: u64 = self.routes.iter_mut().map(|route| route.step(&mut self.ends, u64::MAX)).sum();
        if moved == 0 {
            thread::yield_now();
        }
    }

    fn arrived(&self) -> u64 {
        self.routes.iter().map(|route| route.stream.tally().frames).min().unwrap_or(0)
    }

    /// Lets everything arrive, and looks at it.
    fn check(&mut self) {
        let total = self.routes[0].stream.sent().max(self.routes[1].stream.sent());
        carry(&mut self.ends, &mut self.routes, total);
    }
}

/// Our end of wire `id` of a `wire-host`.
fn peer_end(name: &str, id: u32) -> MemifSpec {
    MemifSpec { id, ..MemifSpec::new(format!("@{name}-end").parse().unwrap(), Role::Client) }
}

const SIZES: [usize; 3] = [64, 1518, 9000];
/// Frames under way in one direction.
const WINDOW: u64 = 64;
/// Frames that wait for a far end.
const RESTING: u64 = 48;
