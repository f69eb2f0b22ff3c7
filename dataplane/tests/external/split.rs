//! One source that feeds wires on several workers by a key, and their way back with a prefix.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::port::demux::{AddError, Demux, HEAD};
use ferrule_dataplane::port::frame_queue::{QueueSource, QueueTarget, frame_queue};
use ferrule_dataplane::port::{Source, Target};
use ferrule_dataplane::spec::Full;

use crate::common::eventually;
use crate::nic::Nic;
use crate::worker::{Bench, Peer, memif};

/// The tunnel's header: four bytes that are the wire's number.
fn key(head: &[u8; HEAD], length: usize) -> Option<(u64, usize)> {
    let (number, _) = head.split_first_chunk()?;
    (length > 4).then_some((u32::from_be_bytes(*number).into(), 4))
}

fn tunnelled(key: u32, payload: &[u8]) -> Vec<u8> {
    [&key.to_be_bytes(), payload].concat()
}

/// The end of a wire that is one of many behind a tunnel.
fn tunnel_end(source: QueueSource, target: QueueTarget) -> LaneEnd {
    LaneEnd::external([(Box::new(source) as Box<dyn Source + Send>, Box::new(target) as Box<dyn Target + Send>)])
}

#[test]
fn a_source_is_split_over_wires_on_several_workers_and_one_that_is_stuck_holds_nobody_up() {
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(4096, true, true);
    let (mut uplink, mut workers) = (Bench::start(), [Bench::start(), Bench::start()]);
    let (demux, handle) = Demux::new(key, 16);
    // Everything that goes out by the tunnel.
    let (out, out_source) = frame_queue(256, 2048).unwrap();
    let (nic_end, wires_end) = ((rx as _, tx as _), (Box::new(out_source) as _, Box::new(demux) as _));
    uplink.serve([LaneEnd::external([nic_end]), LaneEnd::external([wires_end])], Full::Hold);
    let mut peers: Vec<Peer> = Vec::new();
    let mut queues = Vec::new();
    for number in 0..3u32 {
        let (into, from) = frame_queue(QUEUE, 2048).unwrap();
        queues.push(into.with_prefix(&[]));
        handle.add(number.into(), into).map_err(|_| "no room").unwrap();
        let (peer, end) = memif(32);
        let back = out.with_prefix(&number.to_be_bytes());
        workers[number as usize % 2].serve([tunnel_end(from, back), end], Full::Hold);
        peers.push(peer);
    }
    // Nobody reads what comes for wire 2: its ring and its queue fill up.
    let frames = |wire: u32| (0..500u16).map(move |number| (wire, number.to_be_bytes().repeat(30)));
    for ((frame, other), stuck) in frames(0).zip(frames(1)).zip(frames(2)) {
        // As many at a time as a queue takes, so that none of the first two is dropped.
        let mut received = nic.received.lock().unwrap();
        received.extend([&frame, &other, &stuck].map(|(wire, payload)| tunnelled(*wire, payload)));
        drop(received);
        assert_eq!(peers[0].receive(), frame.1);
        assert_eq!(peers[1].receive(), other.1);
    }
    assert!(queues[2].full() > 0 && queues[0].full() == 0 && queues[1].full() == 0);
    // What was kept for it comes, in order and without a gap.
    for (_, payload) in frames(2).take(QUEUE) {
        assert_eq!(peers[2].receive(), payload);
    }
    nic.received.lock().unwrap().push_back(tunnelled(77, &[1; 60]));
    eventually("a frame for nobody is counted", || handle.unmatched() == 1);
    // The way back.
    for number in 0..100u8 {
        for peer in &mut peers {
            peer.send(&[number; 60]);
        }
    }
    eventually("all have left", || nic.sent.lock().unwrap().len() == 300);
    let sent = nic.sent.lock().unwrap();
    for wire in 0..3u32 {
        let of_wire = sent.iter().filter(|frame| frame[..4] == wire.to_be_bytes());
        assert!(of_wire.eq(&(0..100).map(|number| tunnelled(wire, &[number; 60])).collect::<Vec<_>>()), "wire {wire}");
    }
    drop(sent);
    assert!(handle.remove(0));
    eventually("a wire that was taken off gets nothing", || {
        nic.received.lock().unwrap().push_back(tunnelled(0, &[1; 60]));
        while peers[0].poll().is_some() {}
        handle.unmatched() > 1
    });
    assert!(nic.calls.refresh.load(Relaxed) > 0);
    uplink.stop();
    for worker in workers {
        worker.stop();
    }
}

#[test]
fn keys_come_and_go_while_nothing_comes_by_the_tunnel() {
    const KEYS: usize = 100;
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(4096, false, true);
    let mut uplink = Bench::start();
    let (demux, handle) = Demux::new(key, KEYS);
    let (_out, out_source) = frame_queue(256, 2048).unwrap();
    let (nic_end, wires_end) = ((rx as _, tx as _), (Box::new(out_source) as _, Box::new(demux) as _));
    uplink.serve([LaneEnd::external([nic_end]), LaneEnd::external([wires_end])], Full::Hold);
    let add = |key| {
        let mut target = Some(frame_queue(1, 64).unwrap().0);
        eventually("the worker takes what was asked for before", || match handle.add(key, target.take().unwrap()) {
            Err(AddError::Busy { target: back }) => {
                target = Some(back);
                false
            }
            added => {
                added.unwrap();
                true
            }
        });
    };
    (0..KEYS as u64).for_each(add);
    let more = handle.add(KEYS as u64, frame_queue(1, 64).unwrap().0);
    assert!(matches!(more, Err(AddError::TooManyKeys { keys_max: KEYS, .. })), "{more:?}");
    eventually("the worker takes what was asked for before", || handle.remove(7));
    add(KEYS as u64);
    handle.reap();
    uplink.stop();
}

#[test]
fn a_frame_is_refused_that_no_buffer_takes_with_its_prefix() {
    let (mut target, mut source) = frame_queue(4, 64).unwrap();
    let mut with_prefix = target.with_prefix(b"1234");
    let put = |target: &mut QueueTarget, length| {
        let frame = vec![5; length];
        let stored = target.put_run(&[frame[..].into()]) == 1;
        target.publish();
        stored
    };
    assert!(put(&mut target, 64));
    assert!(!put(&mut with_prefix, 64));
    assert!(put(&mut with_prefix, 60));
    assert!(source.refresh().unwrap());
    let lengths = std::iter::from_fn(|| {
        let length = source.peek(&mut []).unwrap()?.bytes.len();
        source.advance(1);
        Some(length)
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [64, 64]);
}

/// Buffers of a wire's queue.
const QUEUE: usize = 64;
