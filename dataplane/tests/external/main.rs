//! Port kinds that are not in the crate: what the loop and its workers do for them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod capture;
#[path = "../common/mod.rs"]
mod common;
mod engine;
mod nic;
mod port;
mod split;
mod worker;

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread;

use common::eventually;
use ferrule_dataplane::lane::deal;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::settings::WorkerHook;
use ferrule_dataplane::spec::Full;
use ferrule_dataplane::status::DropReason;
use ferrule_dataplane::{Engine, Settings};
use nic::Nic;
use worker::{Bench, memif};

#[test]
fn frames_cross_to_and_from_a_kind_of_another_crate_in_bursts() {
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(4096, true, true);
    let (mut peer, end) = memif(1024);
    let mut bench = Bench::start();
    let counters = bench.serve([end, LaneEnd::external([(rx as _, tx as _)])], Full::Hold);
    let frames: Vec<_> = (0..1000u16).map(|number| number.to_be_bytes().repeat(32)).collect();
    nic.received.lock().unwrap().extend(frames.iter().cloned());
    for frame in &frames {
        peer.send(frame);
    }
    for frame in &frames {
        assert_eq!(&peer.receive(), frame);
    }
    eventually("all frames have left", || nic.sent.lock().unwrap().len() == frames.len());
    assert_eq!(*nic.sent.lock().unwrap(), frames);
    assert_eq!(nic.calls.single.load(Relaxed), 0, "plain frames go in runs");
    assert!(nic.calls.runs.load(Relaxed) > 0);
    bench.stop();
    assert_eq!(counters.each_ref().map(|link| link.read().frames), [1000, 1000]);
}

#[test]
fn a_source_that_must_be_polled_is_not_put_to_sleep() {
    let [polled, other] = [Arc::new(Nic::default()), Arc::new(Nic::default())];
    let mut bench = Bench::start();
    let (_peers, ends): (Vec<_>, Vec<_>) = [memif(64), memif(64)].into_iter().unzip();
    for ((nic, must_poll), end) in [(&polled, true), (&other, false)].into_iter().zip(ends) {
        let (rx, tx) = nic.queue(64, must_poll, true);
        bench.serve([end, LaneEnd::external([(rx as _, tx as _)])], Full::Hold);
    }
    eventually("the other one sleeps", || other.calls.notify_enabled.load(Relaxed) > 0);
    let before = polled.calls.refresh.load(Relaxed);
    eventually("it is polled on", || polled.calls.refresh.load(Relaxed) > before + 1000);
    assert_eq!(polled.calls.notify_enabled.load(Relaxed), 0);
    bench.stop();
}

#[test]
fn a_target_reclaims_sent_buffers_also_when_there_is_nothing_to_send() {
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(4, false, true);
    let (mut peer, end) = memif(64);
    let mut bench = Bench::start();
    bench.serve([end, LaneEnd::external([(rx as _, tx as _)])], Full::Hold);
    for round in 1..=3 {
        for _ in 0..4 {
            peer.send(&[7; 60]);
        }
        eventually("they are sent", || nic.sent.lock().unwrap().len() == 4 * round);
        // The lane leaves the rounds meanwhile, and has nothing to send.
        thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(nic.calls.in_flight.load(Relaxed), 4);
        nic.complete();
        eventually("they are reclaimed", || nic.calls.in_flight.load(Relaxed) == 0);
    }
    eventually("and then the lane may sleep", || nic.calls.notify_enabled.load(Relaxed) > 0);
    bench.stop();
}

#[test]
fn a_target_that_cannot_hold_back_drops_what_finds_it_full() {
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(10, false, false);
    let (mut peer, end) = memif(64);
    let mut bench = Bench::start();
    let counters = bench.serve([end, LaneEnd::external([(rx as _, tx as _)])], Full::Hold);
    for number in 0..100 {
        peer.send(&[number; 60]);
    }
    eventually("all are accounted for", || {
        let traffic = counters[0].read();
        (traffic.frames, traffic.drops[DropReason::Full as usize]) == (10, 90)
    });
    assert_eq!(counters[0].read().stalls, 0);
    bench.stop();
}

#[test]
fn a_frame_that_nobody_takes_does_not_keep_its_lane_awake() {
    let nic = Arc::new(Nic::default());
    nic.received.lock().unwrap().push_back(vec![7; 60]);
    // The other end has no receive ring, and then it has one.
    let (_peer, end) = memif(64);
    for (other, has_work) in [(LaneEnd::default(), false), (end, true)] {
        let (rx, tx) = nic.queue(4, false, true);
        let ends = [LaneEnd::external([(rx as _, tx as _)]), other];
        let mut lane = deal(ends, Full::Hold, &Arc::default()).remove(0);
        lane.enable_notify(true);
        assert_eq!((lane.has_work(), nic.calls.notify_enabled.load(Relaxed)), (has_work, usize::from(has_work)));
    }
}

#[test]
fn a_hook_runs_on_each_worker_before_its_lanes() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let seen = Arc::clone(&seen);
        WorkerHook::new(move |worker| {
            seen.lock().unwrap().push((worker, thread::current().name().map(str::to_owned)));
            Ok(())
        })
    };
    let engine = Engine::start(&Settings { worker_start: Some(hook), ..Settings::new(vec![0]) }).unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, Some("worker-0".to_owned()))]);
    drop(engine);
    let hook = WorkerHook::new(|_| Err(io::Error::other("register the thread with DPDK: no slot is left")));
    let error = Engine::start(&Settings { worker_start: Some(hook), ..Settings::new(vec![0]) }).err().unwrap();
    assert!(error.to_string().contains("no slot is left"), "{error}");
}
