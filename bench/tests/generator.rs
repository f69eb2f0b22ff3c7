//! The generator on real memif connections: both ends in this process, and a wire that loses frames. Needs no privilege.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use ferrule_bench::generator::{self, RunError, RunResult};
use ferrule_bench::load::{Load, Mix, Pace, Stop, Touch};
use ferrule_dataplane::port::{FRAME_MAX, Put, Source, Target};
use ferrule_dataplane::spec::{MemifSpec, Role};
use ferrule_endpoints::end::{End, EndSpec};
use ferrule_endpoints::memif::Endpoint;

#[test]
fn every_frame_arrives_once_and_in_order_whatever_is_touched() {
    for touch in [Touch::Verified, Touch::Whole, Touch::Stamped] {
        for mix in [Mix::new([64]).unwrap(), Mix::imix(), Mix::new([64, 2048, 9000]).unwrap()] {
            let load = Load {
                touch,
                flows: 7,
                both_ways: true,
                latency: true,
                stop: Stop::Frames(5000),
                warm_up: Duration::from_millis(1),
                ..Load::new(mix.clone(), TIME)
            };
            let run = pair(&format!("whole-{touch:?}-{}", mix.largest()), 2, 256).send(&load);
            for outcome in run.outcomes() {
                assert!(outcome.is_perfect(), "{touch:?} {mix}: {outcome:?}");
                assert_eq!((outcome.sent, outcome.lost(), outcome.latency.as_ref().unwrap().count()), (5000, 0, 5000));
                let average = outcome.received.bytes as f64 / 5000.0;
                assert!((average / mix.average() - 1.0).abs() < 0.01, "{average} {mix}");
            }
            assert!(run.back.is_some() && run.moved >= 10_000 && !run.has_dead_direction);
        }
    }
}

#[test]
fn frames_that_nobody_touches_are_counted() {
    let load = Load { touch: Touch::Untouched, stop: Stop::Frames(5000), ..Load::new(Mix::imix(), TIME) };
    let run = pair("untouched", 1, 256).send(&load);
    assert_eq!((run.there.sent, run.there.received.frames, run.there.lost()), (5000, 5000, 0));
    assert!(run.back.is_none());
}

#[test]
fn what_a_stamped_frame_holds_behind_its_head_is_right_too() {
    // The payload of sequence number 0 stays in the buffers; only the first frame's own is that.
    let mut pair = pair("payload", 1, 32);
    let load = Load { stop: Stop::Frames(100), ..Load::new(Mix::new([1518]).unwrap(), TIME) };
    assert!(pair.send(&load).there.is_perfect());
    let End::Memif(near) = &mut pair.near else { unreachable!() };
    let End::Memif(far) = &mut pair.far else { unreachable!() };
    let sender = &mut near.queues.senders[0];
    sender.refresh().unwrap();
    let pattern = ferrule_bench::Pattern::new(1518, 0, ferrule_bench::traffic::Addresses::default()).unwrap();
    assert!(sender.buffer(0).unwrap().write_words(pattern.head().stamp(0, 0)));
    sender.describe(0, 1518);
    sender.commit(1);
    sender.publish();
    let receiver = &mut far.queues.receivers[0];
    assert!(receiver.refresh().unwrap());
    let mut gather = vec![0; FRAME_MAX];
    let mut frame = [0; 1518];
    assert!(receiver.peek(&mut gather).unwrap().unwrap().bytes.copy_out(&mut frame));
    let mut sink = ferrule_bench::Sink::new(0..1, true);
    assert_eq!((sink.see(&frame), sink.tally().corrupt), (Some(0), 0));
}

#[test]
fn a_pace_is_kept() {
    let load = Load { pace: Pace::PerSecond(20_000.0), ..Load::new(Mix::new([64]).unwrap(), TIME) };
    let run = pair("pace", 1, 256).send(&load);
    let outcome = &run.there;
    // A busy machine may make the generator skip some.
    let due = outcome.offered() + outcome.skipped;
    assert!((3999..=4000).contains(&due), "{due} frames were due in {TIME:?}");
    assert!(outcome.is_perfect(), "{outcome:?}");
    assert!(run.idle > 0.1, "{}", run.idle);
}

#[test]
fn what_finds_no_room_is_lost_unless_the_load_waits_for_room() {
    let load = |pace| Load { pace, stop: Stop::Frames(6400), ..Load::new(Mix::new([64]).unwrap(), TIME) };
    let mut pair = pair("room", 1, 32);
    let run = pair.send(&load(Pace::BackToBack));
    assert_eq!((run.there.offered(), run.there.sent, run.there.lost()), (6400, 3200, 3200), "half of each burst");
    let run = pair.send(&load(Pace::Saturate));
    assert_eq!((run.there.sent, run.there.lost()), (6400, 0));
}

#[test]
fn a_wire_that_loses_and_repeats_frames_is_found_out() {
    let (near, mut behind_near) = connected("lossy-near", 1, 256);
    let (far, mut behind_far) = connected("lossy-far", 1, 256);
    let (mut near, mut far) = (End::Memif(near), End::Memif(far));
    let stop = AtomicBool::new(false);
    let run = thread::scope(|scope| {
        scope.spawn(|| lossy_wire(&mut behind_near, &mut behind_far, &stop));
        let load = Load { stop: Stop::Frames(10_000), ..Load::new(Mix::new([64]).unwrap(), TIME) };
        let run = generator::run(&load, &mut near, &mut far, &AtomicBool::new(false));
        stop.store(true, Relaxed);
        run.unwrap()
    });
    let outcome = &run.there;
    assert_eq!((outcome.sent, outcome.lost()), (10_000, 1000), "{outcome:?}");
    assert_eq!((outcome.received.frames, outcome.received.duplicated), (9010, 10));
    assert!(!outcome.is_perfect());
}

#[test]
fn a_wire_that_carries_nothing_back_is_found_out() {
    let (near, mut behind_near) = connected("one-way-near", 1, 256);
    let (far, mut behind_far) = connected("one-way-far", 1, 256);
    let (mut near, mut far) = (End::Memif(near), End::Memif(far));
    let stop = AtomicBool::new(false);
    let run = thread::scope(|scope| {
        scope.spawn(|| lossy_wire(&mut behind_near, &mut behind_far, &stop));
        let load = Load { both_ways: true, ..Load::new(Mix::new([64]).unwrap(), Duration::from_millis(50)) };
        let run = generator::run(&load, &mut near, &mut far, &AtomicBool::new(false));
        stop.store(true, Relaxed);
        run.unwrap()
    });
    assert!(run.moved > 0 && run.has_dead_direction, "{run:?}");
}

#[test]
fn a_run_ends_when_it_is_cancelled_and_when_its_peer_goes() {
    let mut pair = pair("cancel", 1, 256);
    let load = Load::new(Mix::new([64]).unwrap(), Duration::from_mins(10));
    let error = generator::run(&load, &mut pair.near, &mut pair.far, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, RunError::Cancelled));
    let (near, behind) = connected("gone", 1, 256);
    pair.near = End::Memif(near);
    drop(behind);
    let error = generator::run(&load, &mut pair.near, &mut pair.far, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, RunError::Gone(_)), "{error}");
}

/// Takes frames from one end to the other; of ten numbers it loses the last, and each thousandth frame goes twice.
fn lossy_wire(from: &mut Endpoint, to: &mut Endpoint, stop: &AtomicBool) {
    let (source, target) = (&mut from.queues.receivers[0], &mut to.queues.senders[0]);
    let mut gather = vec![0; FRAME_MAX];
    let mut number = 0;
    while !stop.load(Relaxed) {
        let waiting = source.refresh().unwrap();
        target.refresh().unwrap();
        while waiting && target.room() > 1 {
            let Some(frame) = source.peek(&mut gather).unwrap() else { break };
            let times = if number % 1000 == 0 { 2 } else { usize::from(number % 10 != 9) };
            for _ in 0..times {
                assert_eq!(target.put(&frame).unwrap(), Put::Stored);
            }
            number += 1;
            source.advance(1);
        }
        // Both poll.
        target.publish();
        source.release();
    }
}

struct Pair {
    near: End,
    far: End,
}

impl Pair {
    fn send(&mut self, load: &Load) -> RunResult {
        generator::run(load, &mut self.near, &mut self.far, &AtomicBool::new(false)).unwrap()
    }
}

fn pair(name: &str, queues: u16, ring: u32) -> Pair {
    let (near, far) = connected(name, queues, ring);
    Pair { near: End::Memif(near), far: End::Memif(far) }
}

/// A client and the server that it is connected to.
fn connected(name: &str, queues: u16, ring: u32) -> (Endpoint, Endpoint) {
    let socket = format!("@ferrule-generator-{}-{name}", std::process::id());
    let spec = |role| MemifSpec { queues, ring, ..MemifSpec::new(socket.parse().unwrap(), role) };
    let open = |role| match End::open(&EndSpec::Memif(spec(role)), Duration::from_secs(10)).unwrap() {
        End::Memif(endpoint) => endpoint,
        End::Vhost(_) => unreachable!("a memif end was asked for"),
    };
    thread::scope(|scope| {
        let server = scope.spawn(|| open(Role::Server));
        (open(Role::Client), server.join().unwrap())
    })
}

const TIME: Duration = Duration::from_millis(200);
