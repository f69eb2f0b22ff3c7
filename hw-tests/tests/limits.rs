//! More than a worker, or this process, has room for. Needs root, and some 40,000 descriptors.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use ferrule_dataplane::spec::{EndSpec, MemifSpec, QUEUES_MAX, Role, WireSpec};
use ferrule_dataplane::status::EndState;
use ferrule_dataplane::worker::LANES_MAX;
use ferrule_dataplane::{Engine, Settings};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::need::skip;
use ferrule_hw_tests::{TIMEOUT, eventually, unique};
use nix::sys::resource::{Resource, setrlimit};

const DESCRIPTORS: u64 = 100_000;

/// A wire with as many queues as there can be, and its peers.
fn wide_wire(engine: &Engine) -> (String, [Endpoint; 2]) {
    let name = unique("wide");
    let socket = |number: usize| format!("@{name}-{number}").parse().unwrap();
    let server = |number| MemifSpec { queues: QUEUES_MAX, ..MemifSpec::new(socket(number), Role::Server) };
    engine.add(WireSpec::new(name.clone(), [0, 1].map(|number| EndSpec::Memif(server(number))))).unwrap();
    let client = |number| MemifSpec { role: Role::Client, ring: 32, buffer: 128, ..server(number) };
    let peers = [0, 1].map(|number| Endpoint::open(&client(number), TIMEOUT).unwrap());
    (name, peers)
}

#[test]
fn a_wire_that_no_worker_has_room_for_is_removed_at_once_and_served_when_room_comes() {
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_err() {
        let test = "a_wire_that_no_worker_has_room_for_is_removed_at_once_and_served_when_room_comes";
        return skip(test, "40,000 open files: `ulimit -Hn` is lower, and raising it needs CAP_SYS_RESOURCE");
    }
    let engine = Engine::start(&Settings::new(vec![0])).unwrap();
    let is_up = |name: &str| engine.wire(name).unwrap().is_up();
    let wires: Vec<_> = (0..LANES_MAX / usize::from(QUEUES_MAX)).map(|_| wide_wire(&engine)).collect();
    eventually("the worker is full", || engine.workers()[0].queues == LANES_MAX);

    let (surplus, peers) = wide_wire(&engine);
    eventually("the problem is shown", || engine.wire(&surplus).unwrap().problem.is_some());
    let status = engine.wire(&surplus).unwrap();
    assert!(status.ends.iter().all(|end| matches!(end, EndState::Connected { .. })), "{:?}", status.ends);
    engine.remove(&surplus).unwrap();
    assert!(engine.wire(&surplus).is_none());
    drop(peers);

    let (waiting, _peers) = wide_wire(&engine);
    eventually("the problem is shown", || engine.wire(&waiting).unwrap().problem.is_some());
    engine.remove(&wires[0].0).unwrap();
    eventually("it is served when there is room", || {
        let status = engine.wire(&waiting).unwrap();
        status.queues == usize::from(QUEUES_MAX) && status.problem.is_none()
    });
    assert!(wires[1..].iter().all(|(name, _)| is_up(name)));
}
