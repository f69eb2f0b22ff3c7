//! The dirty log of a migration: exactly the pages that were written.

use std::collections::BTreeSet;
use std::sync::Arc;

use ferrule_dataplane::port::Source;
use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::vhost_user::log::DirtyLog;
use ferrule_dataplane::port::vhost_user::vring::VringLog;
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_ffi::region::Region;

use crate::pair::{Pair, RX, TX, frame};

const PAGE: u64 = 4096;
const SPEC: DriverSpec = DriverSpec { size: 64, buffer: 4096, header_apart: false };

/// A bitmap for all of the pair's memory.
fn bitmap(pair: &Pair) -> (Region, VringLog) {
    let row = pair.memory.row();
    let bytes = (row.guest + row.size).div_ceil(8 * PAGE).next_multiple_of(4);
    let file = Region::create("log", bytes, &Arc::default()).unwrap();
    let log = VringLog { dirty: DirtyLog::new(file.clone()), used: None };
    (file, log)
}

/// The pages marked, and none afterwards.
fn harvest(bitmap: &Region) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for at in (0..bitmap.len() as u64).step_by(4) {
        let word = bitmap.read_u32(at).unwrap();
        pages.extend((0..32).filter(|bit| word >> bit & 1 == 1).map(|bit| at * 8 + bit));
        if word != 0 {
            bitmap.write_u32(at, 0).unwrap();
        }
    }
    pages
}

/// The pages whose bytes differ.
fn changed(pair: &Pair, before: &[u8]) -> BTreeSet<u64> {
    let after = contents(pair);
    let pages = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize)).enumerate();
    let first = pair.memory.row().guest / PAGE;
    pages.filter(|(_, (before, after))| before != after).map(|(number, _)| first + number as u64).collect()
}

fn contents(pair: &Pair) -> Vec<u8> {
    let mut bytes = vec![0; pair.memory.region().len()];
    assert!(pair.memory.region().span_at(0, bytes.len() as u32).unwrap().copy_out(&mut bytes));
    bytes
}

#[test]
fn the_pages_that_were_written_are_marked_and_no_others() {
    for packed in [false, true] {
        for mergeable in [false, true] {
            let mut features = Features::VERSION_1 | Features::LOG_ALL;
            features = if packed { features | Features::RING_PACKED } else { features };
            features = if mergeable { features | Features::MRG_RXBUF } else { features };
            let mut pair = Pair::new(SPEC, features);
            let (bitmap, log) = bitmap(&pair);
            pair.take_over(Some(&log));
            harvest(&bitmap);
            for (number, size) in [60, 1514, 4000, 4096, if mergeable { 20_000 } else { 64 }, 9].into_iter().enumerate()
            {
                pair.send(&[frame(number, size)]);
                let before = contents(&pair);
                assert_eq!(pair.turn().refused, 0);
                assert_eq!(harvest(&bitmap), changed(&pair, &before), "{features:x?}, {size} bytes");
                assert_eq!(pair.receive(), [frame(number, size)]);
                assert!(harvest(&bitmap).is_empty(), "the driver writes, and logs nothing");
            }
        }
    }
}

#[test]
fn what_asks_for_kicks_is_marked_too() {
    for (packed, event_idx) in [(false, false), (false, true), (true, false)] {
        let mut features = Features::VERSION_1 | Features::LOG_ALL;
        features = if packed { features | Features::RING_PACKED } else { features };
        features = if event_idx { features | Features::EVENT_IDX } else { features };
        let mut pair = Pair::new(SPEC, features);
        let (bitmap, log) = bitmap(&pair);
        pair.take_over(Some(&log));
        harvest(&bitmap);
        pair.guest().0.enable_notify(true);
        let page = pair.memory.addresses(TX).used_guest / PAGE;
        assert_eq!(harvest(&bitmap), BTreeSet::from([page]), "{features:x?}");
    }
}

#[test]
fn a_ring_whose_log_flag_is_not_set_marks_its_buffers_only() {
    let mut pair = Pair::new(SPEC, Features::VERSION_1 | Features::LOG_ALL);
    let (bitmap, log) = bitmap(&pair);
    pair.take_over(Some(&log));
    pair.leave_used_rings_unlogged(&log);
    harvest(&bitmap);
    pair.send(&[frame(1, 64)]);
    pair.turn();
    let used = [RX, TX].map(|ring| pair.memory.addresses(ring).used_guest / PAGE);
    let marked = harvest(&bitmap);
    assert_eq!(marked.len(), 1);
    assert!(used.iter().all(|page| !marked.contains(page)));
}
