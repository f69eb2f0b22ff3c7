//! A port of another crate as the end of a wire: asked for, changed, lost and removed like any other.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ferrule_dataplane::engine::{Event, Subscription, WireChange};
use ferrule_dataplane::spec::{EndSpec, Full, MemifSpec, Role, WireSpec};
use ferrule_dataplane::status::{EndState, LinkState, WireStatus};
use ferrule_dataplane::{Applied, Engine, EngineError};
use ferrule_endpoints::memif::Endpoint;

use crate::common::{DEADLINE, client, client_spec, engine, eventually, receive, send, unique};
use crate::port::{NicSpec, Slot};

/// A wire between a memif interface and a NIC.
fn wire(name: &str, nic: &NicSpec) -> WireSpec {
    let memif = MemifSpec { role: Role::Server, ..client_spec(name, 0) };
    WireSpec::new(name, [EndSpec::Memif(memif), nic.end()])
}

fn status(engine: &Engine, name: &str) -> WireStatus {
    engine.wire(name).unwrap()
}

fn until_up(engine: &Engine, name: &str) {
    eventually("the wire is up", || status(engine, name).is_up());
}

/// How a NIC is lost.
type Lose = fn(&Slot);

/// Sends a frame each way.
fn exchange(slot: &Slot, peer: &mut Endpoint, number: u8) {
    let already = slot.nic.sent.lock().unwrap().len();
    send(peer, 0, &[number; 60]);
    eventually("the frame leaves by the NIC", || slot.nic.sent.lock().unwrap().len() == already + 1);
    assert_eq!(*slot.nic.sent.lock().unwrap()[already], [number; 60]);
    slot.nic.received.lock().unwrap().push_back(vec![number; 64]);
    assert_eq!(receive(peer, 0), [number; 64]);
}

fn changes(events: &Subscription) -> Vec<WireChange> {
    let change = |event| match event {
        Event::Wire { change, .. } => Some(change),
        Event::Lagged(_) | Event::ThreadDied { .. } => None,
    };
    std::iter::from_fn(|| events.try_next_event()).filter_map(change).collect()
}

#[test]
fn it_is_made_changed_and_removed_like_any_other_end() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("nic"));
    let nic = NicSpec { queues: 2, ..NicSpec::new(&slot, 7) };
    assert_eq!(engine.apply(wire(&name, &nic)).unwrap(), Applied::Made);
    let mut peer = client(&name, 0);
    until_up(&engine, &name);
    exchange(&slot, &mut peer, 1);
    eventually("it is told of its link", || slot.state().told == [true]);
    let seen = status(&engine, &name);
    assert_eq!((seen.spec.ends[1].kind(), seen.spec.ends[1].to_string()), ("nic", "nic 7".to_owned()));
    assert_eq!(seen.ends[1], EndState::Up);
    let device = seen.devices[1].clone().unwrap();
    assert_eq!(
        (&*device.words, device.link, device.mtu, device.numa_node),
        ("slot 7", LinkState::Up, Some(1500), Some(0))
    );

    // What says the same is the same, and what no end sees is changed without it.
    assert_eq!(engine.apply(wire(&name, &nic.clone())).unwrap(), Applied::Unchanged);
    let drops = WireSpec { full: Full::Drop, ..wire(&name, &nic) };
    assert_eq!(engine.apply(drops).unwrap(), Applied::Updated);
    until_up(&engine, &name);
    exchange(&slot, &mut peer, 2);
    assert_eq!((slot.state().made, slot.state().closed), (1, 0));

    // What it does see makes it anew, and counters go on.
    slot.change(|state| state.missed = 3);
    eventually("its counters are read", || missed(&engine, &name) == Some(3));
    assert_eq!(engine.apply(wire(&name, &NicSpec { mtu: 9000, ..nic.clone() })).unwrap(), Applied::Remade);
    assert_eq!((slot.state().made, slot.state().closed), (2, 1));
    let mut peer = client(&name, 0);
    until_up(&engine, &name);
    exchange(&slot, &mut peer, 3);
    slot.change(|state| state.missed = 4);
    eventually("counters of both are added up", || missed(&engine, &name) == Some(7));
    let seen = status(&engine, &name);
    assert_eq!(seen.directions.map(|traffic| traffic.frames), [3, 3]);
    assert_eq!(seen.devices[1].as_ref().unwrap().mtu, Some(9000));

    engine.remove(&name).unwrap();
    let state = slot.state();
    assert_eq!((state.made, state.closed, state.is_open), (2, 2, false));
    assert!(!state.was_closed_too_early);
}

fn missed(engine: &Engine, name: &str) -> Option<u64> {
    status(engine, name).devices[1].as_ref()?.counters.get("rx_missed").copied()
}

#[test]
fn one_that_is_lost_is_made_again_when_it_is_back_and_the_peer_at_the_other_end_stays() {
    let ways: [(&str, Lose); 3] = [
        ("pulled out", |slot| slot.tell_loss("pulled out")),
        ("its slot is empty", |_| {}),
        ("the device is gone", |slot| slot.nic.is_gone.store(true, Relaxed)),
    ];
    for (reason, lose) in ways {
        let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("lost"));
        engine.apply(wire(&name, &NicSpec::new(&slot, 1))).unwrap();
        let mut peer = client(&name, 0);
        until_up(&engine, &name);
        exchange(&slot, &mut peer, 1);
        slot.change(|state| state.missed = 5);
        eventually("its counters are read", || missed(&engine, &name) == Some(5));
        let events = engine.subscribe(100);
        slot.change(|state| state.is_empty = true);
        lose(&slot);
        eventually("the loss is noticed", || matches!(status(&engine, &name).ends[1], EndState::Lost { .. }));
        let told =
            |change: &WireChange| matches!(change, WireChange::Failed { end: Some(1), reason: why } if why == reason);
        eventually("the reason is told", || changes(&events).iter().any(told));
        eventually("it is closed", || slot.state().closed == 1);
        let refusal = "probe nic 1: its slot is empty; plug it in, or choose another";
        eventually("it is tried again", || {
            status(&engine, &name).ends[1] == EndState::Lost { reason: refusal.to_owned() }
        });
        assert!(matches!(status(&engine, &name).ends[0], EndState::Connected { .. }));
        assert_eq!(engine.apply(wire(&name, &NicSpec::new(&slot, 1))).unwrap(), Applied::Unchanged);

        slot.change(|state| state.is_empty = false);
        until_up(&engine, &name);
        exchange(&slot, &mut peer, 2);
        let seen = status(&engine, &name);
        assert_eq!((seen.ends[1].clone(), seen.generation), (EndState::Up, 1));
        assert_eq!(seen.directions.map(|traffic| traffic.frames), [2, 2]);
        assert_eq!(missed(&engine, &name), Some(5));
        assert!(!changes(&events).iter().any(|change| matches!(change, WireChange::PeerGone { .. })));
        engine.remove(&name).unwrap();
        let state = slot.state();
        assert_eq!((state.made, state.closed, state.was_closed_too_early), (2, 2, false));
    }
}

#[test]
fn one_that_is_lost_for_a_while_is_not_tried_before() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("pause"));
    engine.apply(wire(&name, &NicSpec::new(&slot, 1))).unwrap();
    let _peer = client(&name, 0);
    until_up(&engine, &name);
    let pause = Duration::from_secs(1);
    let lost = Instant::now();
    slot.state().notice.unwrap().lost_for(pause, &"its PF was reset");
    eventually("it is made again", || slot.state().begun == 2);
    assert!(lost.elapsed() >= pause);
    until_up(&engine, &name);
}

#[test]
fn one_that_is_lost_while_it_is_made_is_made_once_more() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("early"));
    slot.change(|state| state.is_lost_at_once = true);
    engine.apply(wire(&name, &NicSpec::new(&slot, 1))).unwrap();
    let mut peer = client(&name, 0);
    eventually("it is made once more", || slot.state().made == 2);
    until_up(&engine, &name);
    exchange(&slot, &mut peer, 1);
}

#[test]
fn one_that_is_lost_while_the_other_end_hangs_is_closed_at_once_and_made_once_more_with_the_wire() {
    let (engine, name) = (engine(), unique("waits"));
    let slots = [1, 2].map(|_| Arc::new(Slot::default()));
    slots[1].change(|state| state.hangs = true);
    let ends = [NicSpec::new(&slots[0], 1).end(), NicSpec::new(&slots[1], 2).end()];
    let pending = engine.begin_apply(WireSpec::new(&name, ends)).unwrap();
    eventually("one is made, the other hangs", || (slots[0].state().made, slots[1].state().begun) == (1, 1));
    slots[0].tell_loss("asked back");
    eventually("it is closed", || slots[0].state().closed == 1);
    assert!(slots[1].state().hangs && slots[1].state().made == 0);
    slots[1].change(|state| state.hangs = false);
    assert_eq!(pending.wait(DEADLINE).unwrap(), Applied::Made);
    until_up(&engine, &name);
    slots[0].nic.received.lock().unwrap().push_back(vec![9; 60]);
    eventually("a frame crosses", || *slots[1].nic.sent.lock().unwrap() == [[9; 60]]);
    engine.remove(&name).unwrap();
    let made = slots.each_ref().map(|slot| (slot.state().made, slot.state().closed, slot.state().was_closed_too_early));
    assert_eq!(made, [(2, 2, false), (1, 1, false)]);
}

#[test]
fn a_wire_that_is_removed_while_a_lost_device_of_it_is_being_closed_waits_for_that() {
    let (engine, name) = (engine(), unique("leaves"));
    let slots = [1, 2].map(|_| Arc::new(Slot::default()));
    slots[1].change(|state| state.hangs = true);
    let ends = [NicSpec::new(&slots[0], 1).end(), NicSpec::new(&slots[1], 2).end()];
    let pending = engine.begin_apply(WireSpec::new(&name, ends)).unwrap();
    eventually("one is made, the other hangs", || (slots[0].state().asked, slots[1].state().begun) == (1, 1));
    slots[0].change(|state| state.hangs = true);
    slots[0].tell_loss("asked back");
    let removed = engine.begin_remove(&name);
    slots[1].change(|state| state.hangs = false);
    assert!(pending.wait(DEADLINE).is_err());
    eventually("the other one is made", || slots[1].state().made == 1);
    assert!(removed.poll(Duration::ZERO).is_none());
    slots[0].change(|state| state.hangs = false);
    removed.wait(DEADLINE).unwrap();
    assert!(slots.iter().all(|slot| (slot.state().made, slot.state().closed) == (1, 1)));
}

#[test]
fn a_refusal_says_what_where_why_and_the_cure_and_leaves_nothing() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("refused"));
    slot.change(|state| state.is_empty = true);
    let error = engine.apply(wire(&name, &NicSpec::new(&slot, 3))).unwrap_err().to_string();
    let wanted = format!("wire `{name}`: end B: probe nic 3: its slot is empty; plug it in, or choose another");
    assert_eq!(error, wanted);
    assert!(engine.wire(&name).is_none() && !slot.state().is_open);
    // What can be said without trying is said with its field.
    let error = engine.apply(wire(&name, &NicSpec { queues: 0, ..NicSpec::new(&slot, 3) })).unwrap_err().to_string();
    assert!(error.contains("ends[1].nic.queues: 0 queues; 1 to 16 are possible"), "{error}");
    let both = WireSpec::new(&name, [NicSpec::new(&slot, 3).end(), NicSpec::new(&slot, 3).end()]);
    let error = engine.apply(both).unwrap_err().to_string();
    assert!(error.contains("both ends are nic 3"), "{error}");
    assert_eq!(slot.state().begun, 1);
}

#[test]
fn a_link_that_is_down_is_told_to_the_device_at_the_other_end() {
    let (engine, name) = (engine(), unique("link"));
    let slots = [1, 2].map(|_| Arc::new(Slot::default()));
    let ends = [NicSpec::new(&slots[0], 1).end(), NicSpec::new(&slots[1], 2).end()];
    engine.apply(WireSpec::new(&name, ends)).unwrap();
    until_up(&engine, &name);
    slots[0].nic.received.lock().unwrap().push_back(vec![9; 60]);
    eventually("a frame crosses", || *slots[1].nic.sent.lock().unwrap() == [[9; 60]]);
    for down in [true, false] {
        slots[0].change(|state| state.link_is_down = down);
        eventually("the other end is told", || slots[1].state().told.last() == Some(&!down));
    }
    assert_eq!(slots[0].state().told, [true]);
}

#[test]
fn one_that_hangs_while_it_is_made_holds_up_nobody_and_is_closed_when_it_comes_too_late() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("hung"));
    slot.change(|state| state.hangs = true);
    let pending = engine.begin_apply(wire(&name, &NicSpec::new(&slot, 1))).unwrap();
    eventually("it is being made", || slot.state().begun == 1);
    let (other, other_name) = (Arc::new(Slot::default()), unique("other"));
    engine.apply(wire(&other_name, &NicSpec::new(&other, 2))).unwrap();
    engine.remove(&other_name).unwrap();
    // Each of the two ends, although it still hangs.
    engine.drain(Duration::from_millis(200));
    assert!(matches!(pending.wait(DEADLINE), Err(EngineError::Draining)));
    drop(engine);
    assert!(slot.state().hangs && slot.state().made == 0);
    slot.change(|state| state.hangs = false);
    eventually("it is closed", || slot.state().closed == 1);
    assert!(!slot.state().was_closed_too_early);
}

#[test]
fn one_that_hangs_while_it_is_asked_or_closed_costs_its_own_wire_only() {
    let (engine, slot, name) = (engine(), Arc::new(Slot::default()), unique("stuck"));
    let nic = NicSpec::new(&slot, 1);
    engine.apply(wire(&name, &nic)).unwrap();
    let mut peer = client(&name, 0);
    until_up(&engine, &name);
    slot.change(|state| state.hangs = true);
    let (other, other_name) = (Arc::new(Slot::default()), unique("other"));
    engine.apply(wire(&other_name, &NicSpec::new(&other, 2))).unwrap();
    other.change(|state| state.missed = 1);
    eventually("others are asked", || missed(&engine, &other_name) == Some(1));
    // Frames do not mind.
    exchange(&slot, &mut peer, 1);

    let removed = engine.begin_remove(&name);
    eventually("it is being removed", || status(&engine, &name).ends[1] == EndState::Removing);
    // It has to be closed before it can be made again.
    let again = engine.begin_apply(wire(&name, &nic)).unwrap();
    engine.remove(&other_name).unwrap();
    assert!(removed.poll(Duration::ZERO).is_none());
    slot.change(|state| state.hangs = false);
    removed.wait(DEADLINE).unwrap();
    assert_eq!(again.wait(DEADLINE).unwrap(), Applied::Made);
    assert_eq!((slot.state().made, slot.state().closed), (2, 1));

    slot.change(|state| state.hangs = true);
    engine.drain(Duration::from_millis(200));
    drop(engine);
    assert!(slot.state().hangs && slot.state().is_open);
    slot.change(|state| state.hangs = false);
    eventually("it is closed", || slot.state().closed == 2);
    assert!(!slot.state().was_closed_too_early);
}
