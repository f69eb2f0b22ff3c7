//! Namespaces are deleted, interfaces set down, peers go away.

use std::sync::Arc;
use std::thread;

use ferrule_bench::Pattern;
use ferrule_bench::traffic::Addresses;
use ferrule_dataplane::engine::{Event, WireChange};
use ferrule_dataplane::spec::{EndSpec, Full, KernelSpec, WireSpec};
use ferrule_dataplane::status::{DropReason, EndState};
use ferrule_dataplane::{Applied, Engine, EngineError};
use ferrule_endpoints::memif::Endpoint;
use ferrule_hw_tests::frames::{Server, send};
use ferrule_hw_tests::netns::{TestNetNs, lacks_namespaces};
use ferrule_hw_tests::{TIMEOUT, eventually, unique};

use crate::testbed::{client, engine, server, wire, wire_to_us};

#[test]
fn a_namespace_deleted_under_traffic_costs_its_own_wire_only() {
    if lacks_namespaces("a_namespace_deleted_under_traffic_costs_its_own_wire_only") {
        return;
    }
    let engine = engine();
    let [doomed, bystander] = [TestNetNs::new(), TestNetNs::new()];
    let (_kept, end) = wire_to_us(&engine, &pod_interface(&bystander));
    let _responder = Server::responder(end);
    let memif = server();
    let lost = wire(&pod_interface(&doomed), &memif);
    engine.add(lost.clone()).unwrap();
    let flood = flood(Endpoint::open(&client(&memif), TIMEOUT).unwrap());
    doomed.wait_for_carrier("nsm-1");
    bystander.wait_for_carrier("nsm-1");
    let pings = thread::scope(|scope| {
        let pings = scope.spawn(|| bystander.ping_all("10.0.0.2", 300, 56));
        eventually("traffic flows", || engine.wire(&lost.name).unwrap().directions[1].frames > 1000);
        let name = doomed.delete();
        eventually("the loss is noticed", || failure(&engine, &lost).is_some());
        pings.join().map(|()| name)
    });
    let name = pings.unwrap();
    let reason = failure(&engine, &lost).unwrap();
    assert!(reason.contains("the kernel interface is gone") && reason.contains("namespace"), "{reason}");
    assert!(!engine.wire(&lost.name).unwrap().is_up());

    // The same wire again, in a new namespace of the same name.
    drop(flood);
    engine.remove(&lost.name).unwrap();
    let successor = TestNetNs::called(name);
    engine.add(lost.clone()).unwrap();
    let _responder = Server::responder(Endpoint::open(&client(&memif), TIMEOUT).unwrap());
    successor.wait_for_carrier("nsm-1");
    successor.ping_all("10.0.0.2", 5, 56);
}

#[test]
fn a_namespace_deleted_while_nobody_is_at_the_far_end_is_noticed_too() {
    if lacks_namespaces("a_namespace_deleted_while_nobody_is_at_the_far_end_is_noticed_too") {
        return;
    }
    let engine = engine();
    let pod = TestNetNs::new();
    let wire = wire(&pod_interface(&pod), &server());
    engine.add(wire.clone()).unwrap();
    pod.delete();
    eventually("the loss is noticed", || failure(&engine, &wire).is_some());
}

#[test]
fn an_interface_set_down_and_up_by_its_pod_works_again() {
    if lacks_namespaces("an_interface_set_down_and_up_by_its_pod_works_again") {
        return;
    }
    let engine = engine();
    let pod = TestNetNs::new();
    let memif = server();
    let wire = wire(&pod_interface(&pod), &memif);
    engine.add(wire.clone()).unwrap();
    let mut end = Endpoint::open(&client(&memif), TIMEOUT).unwrap();
    pod.wait_for_carrier("nsm-1");
    pod.ip("link set nsm-1 down");
    // The kernel refuses what comes in; the wire stays.
    for sequence in 0..100 {
        assert!(send(&mut end, pattern().stamp(sequence)));
    }
    let refused = || engine.wire(&wire.name).unwrap().directions[1].drops[DropReason::Refused as usize];
    eventually("all are refused", || refused() == 100);
    assert!(engine.wire(&wire.name).unwrap().is_up());
    let _responder = Server::responder(end);
    pod.ip("link set nsm-1 up");
    pod.wait_for_carrier("nsm-1");
    pod.ping_all("10.0.0.2", 10, 56);
}

#[test]
fn the_carrier_says_whether_somebody_is_at_the_far_end() {
    if lacks_namespaces("the_carrier_says_whether_somebody_is_at_the_far_end") {
        return;
    }
    let engine = engine();
    let pod = TestNetNs::new();
    let memif = server();
    engine.add(wire(&pod_interface(&pod), &memif)).unwrap();
    let has = |flag: &str| pod.flags("nsm-1").iter().any(|found| found == flag);
    for _ in 0..3 {
        assert!(has("NO-CARRIER") && has("UP") && !has("LOWER_UP"));
        let responder = Server::responder(Endpoint::open(&client(&memif), TIMEOUT).unwrap());
        pod.wait_for_carrier("nsm-1");
        assert!(!has("NO-CARRIER"));
        pod.ping_all("10.0.0.2", 2, 56);
        drop(responder);
        eventually("the carrier is gone", || has("NO-CARRIER"));
    }
}

#[test]
fn an_interface_that_is_gone_is_made_again_and_the_other_end_keeps_its_peer() {
    if lacks_namespaces("an_interface_that_is_gone_is_made_again_and_the_other_end_keeps_its_peer") {
        return;
    }
    let engine = engine();
    let pod = TestNetNs::new();
    let memif = server();
    let spec = wire(&pod_interface(&pod), &memif);
    engine.add(spec.clone()).unwrap();
    let peer = Endpoint::open(&client(&memif), TIMEOUT).unwrap();
    pod.wait_for_carrier("nsm-1");
    pod.ip("link delete nsm-1");
    eventually("the loss is shown", || failure(&engine, &spec).is_some());
    assert_eq!(engine.apply(spec.clone()).unwrap(), Applied::Mended);
    pod.wait_for_carrier("nsm-1");
    eventually("the wire is up", || engine.wire(&spec.name).unwrap().is_up());
    assert!(peer.check_peer().is_ok());
    assert_eq!(engine.apply(spec.clone()).unwrap(), Applied::Unchanged);

    // So it does when something that no peer sees changes as well.
    pod.ip("link delete nsm-1");
    eventually("the loss is shown", || failure(&engine, &spec).is_some());
    let changed = WireSpec { full: Full::Drop, owner: "somebody".to_owned(), ..spec };
    assert_eq!(engine.apply(changed.clone()).unwrap(), Applied::Mended);
    eventually("the wire is up", || engine.wire(&changed.name).unwrap().is_up());
    assert!(peer.check_peer().is_ok());
    let status = engine.wire(&changed.name).unwrap();
    assert_eq!((&status.spec, status.generation), (&changed, 2));
}

/// Wires between a namespace and a memif end each.
fn many(pod: &TestNetNs, count: u32) -> Vec<WireSpec> {
    (0..count).map(|number| wire(&pod.interface(&format!("many-{number}"), &[]), &server())).collect()
}

#[test]
fn a_drain_ends_a_plan_that_is_being_made_and_leaves_nothing_behind() {
    if lacks_namespaces("a_drain_ends_a_plan_that_is_being_made_and_leaves_nothing_behind") {
        return;
    }
    let engine = Arc::new(engine());
    let pod = TestNetNs::new();
    let specs = many(&pod, 100);
    let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
    let events = engine.subscribe(1000);
    let plan = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.apply_all(specs))
    };
    let is_made = |event| matches!(event, Event::Wire { change: WireChange::Made, .. });
    while !is_made(events.next_event_within(TIMEOUT).unwrap()) {}
    engine.drain(TIMEOUT);
    let outcomes = plan.join().unwrap();
    assert!(outcomes.iter().any(Result::is_ok));
    assert!(
        outcomes.iter().any(|outcome| matches!(outcome, Err(EngineError::Draining))),
        "the whole plan was made first"
    );
    assert!(names.iter().all(|name| engine.wire(name).is_none()));
    assert!(!pod.ip("link").contains("many-"), "{}", pod.ip("link"));
}

#[test]
fn others_are_answered_while_interfaces_are_made() {
    if lacks_namespaces("others_are_answered_while_interfaces_are_made") {
        return;
    }
    let engine = Arc::new(engine());
    let pod = TestNetNs::new();
    let specs = many(&pod, 100);
    let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
    let plan = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.apply_all(specs))
    };
    eventually("the plan is being made", || engine.wires().len() == names.len());
    let ends = [server(), server()].map(EndSpec::Memif);
    let beside = WireSpec::new(unique("beside"), ends);
    engine.add(beside.clone()).unwrap();
    let is_made = |name: &String| engine.wire(name).unwrap().ends[0] == EndState::Up;
    assert!(!names.iter().all(is_made), "it was answered only once the whole plan was made");
    // One that nobody wants any more is not waited for either.
    engine.remove(names.last().unwrap()).unwrap();
    assert!(engine.wire(names.last().unwrap()).is_none());
    engine.remove(&beside.name).unwrap();
    drop(plan.join().unwrap());
}

fn pod_interface(pod: &TestNetNs) -> KernelSpec {
    pod.interface("nsm-1", &["10.0.0.1/30"])
}

/// Why the kernel end of a wire failed, if it did.
fn failure(engine: &Engine, wire: &WireSpec) -> Option<String> {
    match &engine.wire(&wire.name).unwrap().ends[0] {
        EndState::Failed { reason } => Some(reason.clone()),
        _ => None,
    }
}

/// Sends as fast as the wire takes it.
fn flood(mut end: Endpoint) -> Server {
    let mut pattern = pattern();
    let mut sequence = 0;
    Server::start(move || {
        sequence += 1;
        send(&mut end, pattern.stamp(sequence))
    })
}

fn pattern() -> Pattern {
    Pattern::new(200, 0, Addresses::default()).unwrap()
}
