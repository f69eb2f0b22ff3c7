//! Frames that go from device to device as they are.

use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::Eal;
use ferrule_dpdk::queue::{MoveEnd, MovedFrames};
use ferrule_ffi::span::Span;

use crate::link::{Link, dpdk, frame};

#[test]
fn a_burst_is_moved_in_its_order_and_counted() {
    let (eal, _turn) = dpdk();
    let [mut from, mut to] = rings(eal, [None; 2]);
    let frames: Vec<_> = (0..64).map(|number| frame(60 + 20 * usize::from(number), number)).collect();
    store(&mut from, &frames);
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 64, bytes, end: MoveEnd::Empty });
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 0, bytes: 0, end: MoveEnd::Empty });
    for frame in frames {
        assert_eq!(to.receive(), (frame, 1));
    }
}

#[test]
fn what_the_other_device_cannot_send_stays_and_what_was_before_it_goes() {
    let (eal, _turn) = dpdk();
    let [mut from, mut to] = rings(eal, [Some(9000), None]);
    store(&mut from, &[frame(64, 1), frame(2000, 2), frame(70, 3)]);
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 1, bytes: 64, end: MoveEnd::Unmovable });
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 0, bytes: 0, end: MoveEnd::Unmovable });
    let (rx, _) = &mut from.queues[0];
    assert_eq!(rx.pieces().concat(), frame(2000, 2));
    rx.take(1);
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 1, bytes: 70, end: MoveEnd::Empty });
    assert_eq!([to.receive(), to.receive()], [(frame(64, 1), 1), (frame(70, 3), 1)]);
}

#[test]
fn what_finds_no_room_waits_and_is_moved_when_there_is() {
    let (eal, _turn) = dpdk();
    let [mut from, mut to] = rings(eal, [None; 2]);
    let filler = frame(64, 7);
    let (all, few) = ([&*filler; 64], [&*filler; 40]);
    // A ring has room for 1023.
    for run in [&all[..]; 15].into_iter().chain([&few[..]]) {
        let run: Vec<_> = run.iter().map(|&frame| Span::from(frame)).collect();
        let (_, tx) = &mut to.queues[0];
        assert!(tx.store_run(&run) == run.len() && tx.flush());
    }
    let frames: Vec<_> = (0..64).map(|number| frame(100 + usize::from(number), number)).collect();
    store(&mut from, &frames);
    let bytes = frames[..23].iter().map(|frame| frame.len() as u64).sum();
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 23, bytes, end: MoveEnd::Full });
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 0, bytes: 0, end: MoveEnd::Full });
    for _ in 0..1000 {
        assert_eq!(to.receive(), (filler.clone(), 1));
    }
    let bytes = frames[23..].iter().map(|frame| frame.len() as u64).sum();
    assert_eq!(moved(&mut from, &mut to), MovedFrames { count: 41, bytes, end: MoveEnd::Empty });
    for frame in frames {
        assert_eq!(to.receive(), (frame, 1));
    }
}

fn rings(eal: &'static Eal, mtus: [Option<u16>; 2]) -> [Link; 2] {
    let mut number = 0;
    mtus.map(|mtu| {
        number += 1;
        Link::open(eal, &format!("net_ring{number}"), PortConfig { mtu, ..<_>::default() })
    })
}

/// A device of this kind receives what it sends.
fn store(link: &mut Link, frames: &[Vec<u8>]) {
    let run: Vec<_> = frames.iter().map(|frame| Span::from(&**frame)).collect();
    let (_, tx) = &mut link.queues[0];
    assert!(tx.store_run(&run) == frames.len() && tx.flush());
}

fn moved(from: &mut Link, to: &mut Link) -> MovedFrames {
    to.queues[0].1.move_from(&mut from.queues[0].0)
}
