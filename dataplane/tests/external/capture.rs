//! A traced lane, and lanes that are not.

use std::sync::Arc;

use ferrule_dataplane::capture::Capture;
use ferrule_dataplane::port::any::LaneEnd;
use ferrule_dataplane::spec::Full;

use crate::common::eventually;
use crate::nic::Nic;
use crate::worker::{Bench, memif};

#[test]
fn a_traced_lane_captures_what_it_stores_and_the_others_nothing() {
    let mut bench = Bench::start();
    let [(mut a, near), (mut b, far)] = [memif(256), memif(256)];
    let [(mut other_a, other_near), (mut other_b, other_far)] = [memif(256), memif(256)];
    bench.serve([near, far], Full::Hold);
    bench.serve([other_near, other_far], Full::Hold);
    let capture = Arc::new(Capture::new(64, 100));
    bench.worker.trace(bench.lanes[0], Some(Arc::clone(&capture)));
    // Chains among them.
    let frames: Vec<_> = [60, 1514, 5000, 64].map(|len| vec![len as u8; len]).into();
    for frame in &frames {
        a.send(frame);
        assert_eq!(&b.receive(), frame);
        other_a.send(frame);
        assert_eq!(&other_b.receive(), frame);
    }
    b.send(&[9; 77]);
    assert_eq!(a.receive(), [9; 77]);
    let mut seen = Vec::new();
    eventually("all five are captured", || {
        seen.extend(std::iter::from_fn(|| capture.read(|frame| (frame.end, frame.length, frame.bytes().to_vec()))));
        seen.len() == 5
    });
    let expected = frames.iter().map(|frame| (0, frame.len(), frame[..frame.len().min(100)].to_vec()));
    assert!(seen.into_iter().eq(expected.chain([(1, 77, vec![9; 77])])));
    assert_eq!(capture.dropped(), 0);
    bench.worker.trace(bench.lanes[0], None);
    // A command is done before the lane's next visit, and the last one has not seen this frame.
    eventually("the lane is not traced any more", || Arc::strong_count(&capture) == 1);
    a.send(&[1; 60]);
    assert_eq!(b.receive(), [1; 60]);
    assert!(capture.read(|_| ()).is_none());
    bench.stop();
}

#[test]
fn a_frame_longer_than_any_of_a_peer_s_crosses_a_traced_lane_uncaptured() {
    let nics = [Arc::new(Nic::default()), Arc::new(Nic::default())];
    let ends = nics.each_ref().map(|nic| {
        let (rx, tx) = nic.queue(4096, true, true);
        LaneEnd::external([(rx as _, tx as _)])
    });
    let mut bench = Bench::start();
    bench.serve(ends, Full::Hold);
    let capture = Arc::new(Capture::new(10, 64));
    bench.worker.trace(bench.lanes[0], Some(Arc::clone(&capture)));
    eventually("it is traced", || Arc::strong_count(&capture) == 2);
    nics[0].received.lock().unwrap().extend([70_000, 60].map(|len| vec![3; len]));
    eventually("both have left", || nics[1].sent.lock().unwrap().len() == 2);
    let lengths: Vec<_> = nics[1].sent.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(lengths, [70_000, 60]);
    // A frame has left before that is counted.
    eventually("the short one is captured", || capture.read(|frame| frame.length) == Some(60));
    assert_eq!(capture.dropped(), 1);
    bench.stop();
}

#[test]
fn a_capture_that_nobody_reads_holds_nobody_up() {
    let nic = Arc::new(Nic::default());
    let (rx, tx) = nic.queue(4096, true, true);
    let mut bench = Bench::start();
    let (mut peer, end) = memif(64);
    bench.serve([end, LaneEnd::external([(rx as _, tx as _)])], Full::Hold);
    let capture = Arc::new(Capture::new(10, 64));
    bench.worker.trace(bench.lanes[0], Some(Arc::clone(&capture)));
    eventually("it is traced", || Arc::strong_count(&capture) == 2);
    for number in 0..200u8 {
        peer.send(&[number; 60]);
    }
    eventually("all have left", || nic.sent.lock().unwrap().len() == 200);
    eventually("those without room are counted", || capture.dropped() == 190);
    let first = capture.read(|frame| (frame.bytes().to_vec(), frame.ticks > 0));
    assert_eq!(first, Some((vec![0; 60], true)));
    bench.stop();
}
