//! Frames of every length through rings of every kind.

use std::collections::VecDeque;
use std::sync::Arc;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{FRAME_MAX, Frame, Put, Target};
use ferrule_dataplane::status::DropReason;
use ferrule_endpoints::virtio::DriverSpec;
use ferrule_ffi::region::Region;
use proptest::prelude::*;

use crate::pair::{Counts, Pair, RX, TX, frame};

/// Every set of the features that change how rings are used.
fn combinations() -> impl Iterator<Item = (Features, bool)> {
    let bits = [
        Features::RING_PACKED,
        Features::IN_ORDER,
        Features::MRG_RXBUF,
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::CSUM.with(Features::GUEST_CSUM),
        Features::VERSION_1,
    ];
    (0..1u32 << (bits.len() + 1)).map(move |set| {
        let chosen = bits.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
        (chosen.fold(Features::default(), |all, (_, &bit)| all | bit), set >> bits.len() == 1)
    })
}

#[test]
fn frames_of_every_size_come_through_every_combination_of_features() {
    for (features, header_apart) in combinations() {
        let spec = DriverSpec { size: 64, buffer: 2048, header_apart };
        let mut pair = Pair::new(spec, features);
        let mut number = 0;
        for size in [1, 14, 60, 64, 65, 1514, 2035, 2036, 2037, 2048, 2049, 4096, 9000, 65_549] {
            for count in [1, 3, 20] {
                let frames: Vec<_> = (0..count).map(|at| frame(number + at, size)).collect();
                number += count;
                let fits = size <= 2048 || features.has(Features::MRG_RXBUF);
                let mut arrived = Vec::new();
                let mut sent = 0;
                while sent < count {
                    let accepted = pair.send(&frames[sent..]);
                    assert!(accepted > 0, "no progress with {features:x?}, {size} bytes");
                    sent += accepted;
                    let turn = pair.turn();
                    assert_eq!(turn.refused, if fits { 0 } else { accepted }, "{features:x?} {size}");
                    arrived.extend(pair.receive());
                    // What waits because the other ring was full.
                    pair.turn();
                    arrived.extend(pair.receive());
                }
                if fits {
                    assert!(arrived == frames, "{features:x?}, header apart {header_apart}, {count} of {size} bytes");
                }
            }
        }
    }
}

#[test]
fn indexes_wrap_as_often_as_they_like() {
    for features in [Features::default(), Features::IN_ORDER, Features::EVENT_IDX] {
        for (packed, size) in [(false, 256), (false, 1), (false, 2), (true, 256), (true, 1), (true, 3), (true, 250)] {
            let features = if packed { features | Features::RING_PACKED } else { features };
            let mut pair = Pair::new(DriverSpec { size, buffer: 192, header_apart: false }, features);
            let frames: Vec<_> = (0..97).map(|number| frame(number, 60 + number)).collect();
            let (mut sent, mut arrived) = (0, 0);
            while arrived < 140_000 {
                let start = sent % frames.len();
                sent += pair.send(&frames[start..]);
                pair.turn();
                for bytes in pair.receive() {
                    assert!(bytes == frames[arrived % frames.len()], "frame {arrived}, {features:x?}, size {size}");
                    arrived += 1;
                }
            }
        }
    }
}

#[test]
fn a_full_ring_holds_frames_back_and_none_is_lost() {
    let in_order = Features::IN_ORDER;
    for features in [Features::default(), in_order, Features::RING_PACKED, Features::RING_PACKED | in_order] {
        let mut pair = Pair::new(DriverSpec { size: 16, buffer: 128, header_apart: false }, features);
        let frames: Vec<_> = (0..40).map(|number| frame(number, 64)).collect();
        assert_eq!(pair.send(&frames), 16);
        let quiet = Counts { frames: 16, refused: 0, interrupts: 0, completions: 0 };
        assert_eq!(pair.turn(), quiet);
        assert_eq!(pair.send(&frames[16..]), 16);
        assert_eq!(pair.turn().frames, 0, "nobody has received yet");
        assert_eq!(pair.send(&frames[32..]), 0);
        assert_eq!(pair.receive(), frames[..16]);
        assert_eq!(pair.turn().frames, 16);
        assert_eq!(pair.send(&frames[32..]), 8);
        assert_eq!(pair.turn().frames, 0);
        assert_eq!(pair.receive(), frames[16..32]);
        assert_eq!(pair.turn().frames, 8);
        assert_eq!(pair.receive(), frames[32..]);
    }
}

#[test]
fn the_used_entry_of_a_batch_names_the_last_chain_that_was_taken_and_not_one_that_found_no_room() {
    let mut pair = Pair::new(DriverSpec { size: 8, buffer: 128, header_apart: false }, Features::IN_ORDER);
    let frames: Vec<_> = (0..10).map(|number| frame(number, 64)).collect();
    assert_eq!((pair.send(&frames[..5]), pair.visit()), (5, 5));
    assert_eq!((pair.send(&frames[5..]), pair.visit()), (5, 3), "eight buffers, nobody has received yet");
    let at = pair.memory.addresses(TX);
    let offset = |user| user - pair.memory.row().user;
    let used = pair.memory.region().read_u32(offset(at.used) + 4 + 8 * 5).unwrap();
    let head_of = |entry: u64| u32::from(pair.memory.region().index(offset(at.avail) + 4 + 2 * entry).unwrap().load());
    assert_eq!((used, head_of(7) == head_of(0)), (head_of(7), false), "the eighth frame's, not the ninth's");
}

#[test]
fn a_used_element_of_a_packed_ring_says_whether_its_buffer_was_written() {
    const WRITE: u32 = 2;
    for features in [Features::RING_PACKED, Features::RING_PACKED | Features::IN_ORDER] {
        let mut pair = Pair::new(DriverSpec { size: 8, buffer: 128, header_apart: false }, features);
        let frames: Vec<_> = (0..3).map(|number| frame(number, 64)).collect();
        assert_eq!((pair.send(&frames), pair.turn().frames), (3, 3));
        let flags = |ring, slot: u64| {
            let at = pair.memory.addresses(ring).desc - pair.memory.row().user + 16 * slot;
            pair.memory.region().read_u32(at + 12).unwrap() >> 16
        };
        assert_eq!([0, 1, 2].map(|slot| flags(RX, slot) & WRITE), [WRITE; 3]);
        assert_eq!([0, 1, 2].map(|slot| flags(TX, slot) & WRITE), [0; 3]);
        assert_eq!(pair.receive(), frames);
    }
}

#[test]
fn a_successor_goes_on_where_the_last_one_stopped() {
    for features in [Features::default(), Features::RING_PACKED, Features::RING_PACKED | Features::IN_ORDER] {
        let mut pair = Pair::new(DriverSpec { size: 8, buffer: 128, header_apart: false }, features);
        for round in 0..30 {
            let frames: Vec<_> = (0..=round % 7).map(|number| frame(round + number, 64)).collect();
            pair.send(&frames);
            pair.take_over(None);
            pair.turn();
            pair.take_over(None);
            assert_eq!(pair.receive(), frames, "{features:x?}, round {round}");
        }
    }
}

#[test]
fn a_successor_of_a_killed_backend_finds_its_place() {
    for features in [Features::default(), Features::RING_PACKED, Features::RING_PACKED | Features::IN_ORDER] {
        let mut pair = Pair::new(DriverSpec { size: 8, buffer: 128, header_apart: false }, features);
        let blocks = [0, 1].map(|_| Region::create("inflight", 4096, &Arc::default()).unwrap());
        pair.take_over_from_killed(&blocks);
        for round in 0..30 {
            let frames: Vec<_> = (0..=round % 7).map(|number| frame(round + number, 64)).collect();
            pair.send(&frames);
            pair.take_over_from_killed(&blocks);
            pair.turn();
            pair.take_over_from_killed(&blocks);
            assert_eq!(pair.receive(), frames, "{features:x?}, round {round}");
        }
    }
}

#[test]
fn a_frame_longer_than_all_buffers_together_is_refused() {
    for features in [Features::MRG_RXBUF, Features::MRG_RXBUF | Features::RING_PACKED] {
        let mut pair = Pair::new(DriverSpec { size: 16, buffer: 128, header_apart: false }, features);
        let mut put = |len: usize| {
            let (_, rx) = pair.guest();
            rx.refresh().unwrap();
            rx.put(&Frame { bytes: frame(1, len)[..].into(), offload: None, slots: 0 }).unwrap()
        };
        assert_eq!(put(FRAME_MAX), Put::Refused(DropReason::TooLong));
        assert_eq!(put(0), Put::Refused(DropReason::TooShort));
        assert_eq!(put(700), Put::Stored);
        assert_eq!(put(700), Put::Stored);
        assert_eq!(put(700), Put::Full);
        pair.guest().1.publish();
        assert_eq!(pair.receive(), [frame(1, 700), frame(1, 700)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any order of sending, moving and receiving keeps every frame and its place.
    #[test]
    fn any_schedule_keeps_the_order(
        set in 0u64..128,
        size_log2 in 1u32..8,
        steps in prop::collection::vec((0u8..4, 1usize..700), 1..200),
    ) {
        let bits = [
            Features::RING_PACKED, Features::IN_ORDER, Features::MRG_RXBUF, Features::INDIRECT_DESC, Features::EVENT_IDX,
            Features::CSUM, Features::VERSION_1,
        ];
        let features = bits.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
        let features = features.fold(Features::default(), |all, (_, &bit)| all | bit);
        let mut pair = Pair::new(DriverSpec { size: 1 << size_log2, buffer: 256, header_apart: false }, features);
        let longest = if features.has(Features::MRG_RXBUF) && size_log2 > 2 { 700 } else { 256 };
        let mut under_way = VecDeque::new();
        for (number, (step, value)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => {
                    let frames = [frame(number, value.min(longest))];
                    if pair.send(&frames) == 1 {
                        under_way.extend(frames);
                    }
                }
                2 => {
                    pair.turn();
                }
                _ => {
                    for bytes in pair.receive() {
                        prop_assert_eq!(Some(bytes), under_way.pop_front());
                    }
                }
            }
        }
        for _ in 0..300 {
            pair.turn();
            for bytes in pair.receive() {
                prop_assert_eq!(Some(bytes), under_way.pop_front());
            }
        }
        prop_assert!(under_way.is_empty(), "{} frames are stuck", under_way.len());
    }
}
