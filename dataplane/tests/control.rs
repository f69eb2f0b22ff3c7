//! What control promises to whoever asks for wires: idempotent changes, events, answers in time, bounded peers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::os::fd::AsFd;
use std::time::Instant;

use common::{DEADLINE, client, client_spec, engine, eventually, memif_wire, receive, send, unique};
use ferrule_dataplane::engine::{Event, Subscription, WireChange};
use ferrule_dataplane::port::vhost_user::message::{VhostUserRequest, VringFile, VringState};
use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, Role, VhostUserSpec, WireSpec};
use ferrule_dataplane::status::EndState;
use ferrule_dataplane::{Applied, Engine, EngineError, Health};
use ferrule_endpoints::memif::Endpoint;
use ferrule_endpoints::vhost_user::{Frontend, FrontendSpec};
use ferrule_ffi::notifier::eventfd;

#[test]
fn a_wire_is_made_what_is_wanted_and_no_peer_notices_what_it_cannot_see() {
    let engine = engine();
    let (name, spec) = memif_wire("apply", Role::Server, Role::Server, Full::Hold);
    assert_eq!(engine.apply(spec.clone()).unwrap(), Applied::Made);
    let (mut a, mut b) = (client(&name, 0), client(&name, 1));
    until_up(&engine, &name);
    send(&mut a, 0, &[1; 60]);
    assert_eq!(receive(&mut b, 0), [1; 60]);
    assert_eq!(engine.apply(spec.clone()).unwrap(), Applied::Unchanged);
    assert!(matches!(engine.add(spec.clone()), Err(EngineError::NameTaken(_))));

    let events = engine.subscribe(100);
    let drops = WireSpec { full: Full::Drop, ..spec.clone() };
    assert_eq!(engine.apply(drops.clone()).unwrap(), Applied::Updated);
    until_up(&engine, &name);
    // Its target has 1024 slots: what comes after them is dropped now, and was held before.
    for number in 0..2000u32 {
        send(&mut a, 0, &number.to_le_bytes().repeat(16));
    }
    eventually("frames are dropped", || engine.wire(&name).unwrap().directions[0].dropped() > 0);
    assert_eq!(receive(&mut b, 0), 0u32.to_le_bytes().repeat(16));
    assert!(!changes(&events).iter().any(|change| matches!(change, WireChange::PeerGone { .. })));
    let status = engine.wire(&name).unwrap();
    assert_eq!((status.generation, &status.spec), (2, &drops));

    // Another id at one end is another wire to its peers, and still the same to whoever counts.
    let before = engine.wire(&name).unwrap().directions;
    let mut other = drops;
    let EndSpec::Memif(memif) = &mut other.ends[0] else { unreachable!("it is a memif wire") };
    memif.id = 7;
    assert_eq!(engine.apply(other).unwrap(), Applied::Remade);
    let status = engine.wire(&name).unwrap();
    assert_eq!(status.generation, 3);
    assert!(status.directions[0].frames >= before[0].frames && before[0].frames > 0);
    let _again = Endpoint::open(&MemifSpec { id: 7, ..client_spec(&name, 0) }, DEADLINE).unwrap();
}

#[test]
fn a_wire_that_cannot_be_made_for_a_while_goes_on_where_it_was() {
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let (name, spec) = memif_wire("history", Role::Server, Role::Server, Full::Hold);
    engine.add(spec.clone()).unwrap();
    let (mut a, mut b) = (client(&name, 0), client(&name, 1));
    until_up(&engine, &name);
    send(&mut a, 0, &[1; 60]);
    assert_eq!(receive(&mut b, 0), [1; 60]);
    eventually("the frame is counted", || engine.wire(&name).unwrap().directions[0].frames == 1);
    let events = engine.subscribe(100);
    // A directory is no place for a socket.
    let mut other = spec;
    let EndSpec::Memif(memif) = &mut other.ends[0] else { unreachable!("it is a memif wire") };
    memif.socket = folder.path().to_str().unwrap().parse().unwrap();
    for _ in 0..2 {
        engine.apply(other.clone()).unwrap_err();
    }
    assert!(engine.wire(&name).is_none());
    let told = changes(&events);
    let is_failure = |change: &&WireChange| matches!(change, WireChange::Failed { end: Some(0), .. });
    assert_eq!(told.iter().filter(is_failure).count(), 2, "{told:?}");
    assert!(!told.contains(&WireChange::Removed), "{told:?}");
    std::fs::remove_dir(folder.path()).unwrap();
    engine.apply(other.clone()).unwrap();
    let status = engine.wire(&name).unwrap();
    assert_eq!((status.generation, status.directions[0].frames), (2, 1));

    // Removed is removed, also while there is none.
    engine.remove(&name).unwrap();
    assert!(changes(&events).contains(&WireChange::Removed));
    engine.apply(other).unwrap();
    let status = engine.wire(&name).unwrap();
    assert_eq!((status.generation, status.directions[0].frames), (1, 0));
}

#[test]
fn what_happens_to_a_wire_is_told_in_its_order() {
    let engine = engine();
    let events = engine.subscribe(100);
    let (name, spec) = memif_wire("events", Role::Server, Role::Server, Full::Hold);
    engine.add(spec).unwrap();
    let ends = (client(&name, 0), client(&name, 1));
    until_up(&engine, &name);
    drop(ends.1);
    eventually("the loss is noticed", || !engine.wire(&name).unwrap().is_up());
    engine.remove(&name).unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&WireChange::Removed) {
        match events.next_event_within(DEADLINE).unwrap() {
            Event::Wire { wire, change } if wire == name => told.push(change),
            other => panic!("{other:?}"),
        }
    }
    let is_peer =
        |change: &WireChange, wanted| matches!(change, WireChange::PeerConnected { end, .. } if *end == wanted);
    assert_eq!(told[0], WireChange::Made);
    assert!(is_peer(&told[1], 0) && is_peer(&told[2], 1), "{told:?}");
    assert_eq!(told[3], WireChange::Up { queues: 1 });
    assert!(matches!(&told[4], WireChange::PeerGone { end: 1, reason } if reason.contains("closed")), "{told:?}");
    assert_eq!(told[5], WireChange::Down);
    drop(engine);
    assert_eq!(std::iter::from_fn(|| events.next_event()).count(), 0, "the stream ends with the engine");
}

#[test]
fn a_client_has_no_more_queue_pairs_than_the_interface_takes() {
    let engine = engine();
    let (name, mut spec) = memif_wire("queues", Role::Server, Role::Server, Full::Hold);
    for end in &mut spec.ends {
        let EndSpec::Memif(memif) = end else { unreachable!("it is a memif wire") };
        memif.queues = 2;
    }
    engine.add(spec).unwrap();
    let wanted = MemifSpec { queues: 8, ..client_spec(&name, 0) };
    let near = Endpoint::open(&wanted, DEADLINE).unwrap();
    let _far = Endpoint::open(&MemifSpec { queues: 8, ..client_spec(&name, 1) }, DEADLINE).unwrap();
    assert_eq!((near.queues.receivers.len(), near.queues.senders.len()), (2, 2));
    eventually("the wire is up", || engine.wire(&name).unwrap().queues == 2);
}

#[test]
fn a_frontend_that_has_rings_quiesced_without_end_waits_and_frames_flow_meanwhile() {
    let engine = engine();
    let name = unique("bucket");
    let socket = |number: u32| format!("@{name}-{number}").parse().unwrap();
    let ends = [
        EndSpec::VhostUser(VhostUserSpec::new(socket(0), Role::Server)),
        EndSpec::Memif(MemifSpec::new(socket(1), Role::Server)),
    ];
    engine.add(WireSpec::new(name.clone(), ends)).unwrap();
    let mut guest = Frontend::open(&FrontendSpec::new(socket(0)), DEADLINE).unwrap();
    let mut memif = Endpoint::open(&MemifSpec::new(socket(1), Role::Client), DEADLINE).unwrap();
    until_up(&engine, &name);
    let begun = Instant::now();
    let call = eventfd().unwrap();
    for number in 0..612u32 {
        // Eventfds are exchanged in rings that stay where they are, and that is no more to be had for nothing.
        if number.is_multiple_of(2) {
            guest.tell(&VhostUserRequest::SetVringEnable(VringState { index: 0, num: 1 }), &[]).unwrap();
        } else {
            guest
                .tell(&VhostUserRequest::SetVringCall(VringFile { index: 0, has_file: true }), &[call.as_fd()])
                .unwrap();
        }
        // The rings are with a worker again, or the next request would have none to quiesce.
        send(&mut memif, 0, &[number as u8; 64]);
        eventually("a frame comes", || take(&mut guest));
    }
    // 512 at once, and then one each 10 ms; the rest of a second is what came back meanwhile.
    assert!(begun.elapsed().as_millis() >= 500, "{:?}", begun.elapsed());
}

fn take(guest: &mut Frontend) -> bool {
    let receiver = &mut guest.queues.receivers[0];
    let found = ferrule_dataplane::port::Source::refresh(receiver).unwrap();
    if found {
        let slots = {
            let mut gather = vec![0; ferrule_dataplane::port::FRAME_MAX];
            ferrule_dataplane::port::Source::peek(receiver, &mut gather).unwrap().unwrap().slots
        };
        ferrule_dataplane::port::Source::advance(receiver, slots);
        ferrule_dataplane::port::Source::release(receiver);
    }
    found
}

#[test]
fn many_wires_are_made_at_once_and_a_drain_ends_whoever_still_waits() {
    let engine = engine();
    let specs: Vec<_> = (0..50).map(|_| memif_wire("many", Role::Server, Role::Client, Full::Hold).1).collect();
    let made = engine.apply_all(specs.clone());
    assert!(made.iter().all(|made| matches!(made, Ok(Applied::Made))), "{made:?}");
    assert_eq!(engine.wires().len(), 50);
    engine.drain(DEADLINE);
    assert!(engine.wires().is_empty());
    assert!(matches!(engine.add(specs[0].clone()), Err(EngineError::Draining)));
    assert_eq!(engine.health(), Health::Good);
}

#[test]
fn a_socket_path_that_leads_elsewhere_is_listened_on_again() {
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    let spec = |number: u32| {
        let socket = inner.join(format!("{number}.sock")).to_str().unwrap().parse().unwrap();
        MemifSpec::new(socket, Role::Server)
    };
    let name = unique("path");
    engine.add(WireSpec::new(name.clone(), [0, 1].map(|number| EndSpec::Memif(spec(number))))).unwrap();
    std::fs::remove_dir_all(&inner).unwrap();
    let open = |number| Endpoint::open(&MemifSpec { role: Role::Client, ..spec(number) }, DEADLINE).unwrap();
    let _peers = [open(0), open(1)];
    until_up(&engine, &name);
}

#[test]
fn wires_that_share_a_socket_file_agree_on_who_may_connect() {
    let engine = engine();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.sock");
    let wire = |id: u32, mode: Option<&str>| {
        let mut shared = MemifSpec::new(path.to_str().unwrap().parse().unwrap(), Role::Server);
        (shared.id, shared.access.mode) = (id, mode.map(|mode| mode.parse().unwrap()));
        let name = unique("access");
        let other = MemifSpec::new(format!("@{name}").parse().unwrap(), Role::Server);
        WireSpec::new(name, [EndSpec::Memif(shared), EndSpec::Memif(other)])
    };
    let first = wire(0, None);
    engine.add(first.clone()).unwrap();
    let refused = wire(1, Some("0700"));
    let error = engine.add(refused.clone()).unwrap_err().to_string();
    for part in [&*first.name, &*refused.name, "the usual owner, group and mode", "mode 0700"] {
        assert!(error.contains(part), "{error}");
    }
    // The mode that the first one has by default.
    engine.add(wire(1, Some("0770"))).unwrap();
    assert_eq!(engine.wires().len(), 2);
}

#[test]
fn a_direction_that_stands_still_is_told_of() {
    let engine = engine();
    let (name, spec) = memif_wire("stalled", Role::Server, Role::Server, Full::Hold);
    engine.add(spec).unwrap();
    let (mut a, _b) = (client(&name, 0), client(&name, 1));
    until_up(&engine, &name);
    let events = engine.subscribe(100);
    // Its target has 1024 slots, and nobody reads.
    for number in 0..1500u32 {
        send(&mut a, 0, &number.to_le_bytes().repeat(16));
    }
    eventually("the stall is told of", || changes(&events).contains(&WireChange::Stalled { from: 0 }));
    assert!(engine.wire(&name).unwrap().directions[0].stalls > 0);
}

#[test]
fn a_refused_client_shows_the_servers_reason() {
    let engine = engine();
    let (name, spec) = memif_wire("reason", Role::Client, Role::Server, Full::Hold);
    let server = MemifSpec { secret: Some("right".parse().unwrap()), ..common::server_spec(&name, 0) };
    let serving = std::thread::spawn(move || Endpoint::open(&server, DEADLINE));
    engine.add(spec).unwrap();
    let shows =
        |end: &EndState| matches!(end, EndState::Connecting { last_error: Some(error) } if error.contains("secret"));
    eventually("the reason is shown", || shows(&engine.wire(&name).unwrap().ends[0]));
    assert!(matches!(engine.wire(&name).unwrap().ends[1], EndState::Listening { last_error: None }));
    assert!(serving.join().unwrap().is_err());
}

fn until_up(engine: &Engine, name: &str) {
    eventually("the wire is up", || engine.wire(name).unwrap().is_up());
}

/// What was told so far.
fn changes(events: &Subscription) -> Vec<WireChange> {
    let change = |event| match event {
        Event::Wire { change, .. } => Some(change),
        Event::Lagged(_) | Event::ThreadDied { .. } => None,
    };
    std::iter::from_fn(|| events.try_next_event()).filter_map(change).collect()
}
