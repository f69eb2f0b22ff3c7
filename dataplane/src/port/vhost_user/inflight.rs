//! How far a ring was used, kept in memory that outlives us ("Inflight I/O tracking", INFLIGHT_SHMFD).
//!
//! The memory has room for a mark on each chain that was taken and not given back, so that a successor can finish what
//! was under way. We set none: chains are completed in the order in which they were made available, so what was under way
//! is exactly what lies between the used and the available index, and a successor takes it again from there. A split
//! ring keeps its used index in the ring itself; a packed ring keeps it nowhere, and the copy here is the only way to
//! find it after a backend was killed.
//!
//! ```text
//!   QueueRegionSplit    features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, ...
//!   QueueRegionPacked   features u64, version u16, desc_num u16, free_head u16, old_free_head u16, used_idx u16,
//!                       old_used_idx u16, used_wrap u8, old_used_wrap u8, ...
//! ```

use ferrule_ffi::region::{Index, Region};

use crate::port::vhost_user::packed::Position;

/// The block of a split ring.
pub(crate) struct SplitInflight {
    last_batch_head: Index,
    used_idx: Index,
}

impl SplitInflight {
    /// Takes hold of a block; none if it is too short to be one.
    pub(crate) fn new(block: &Region, size: u16, used: u16) -> Option<Self> {
        let inflight = Self { last_batch_head: block.index(12)?, used_idx: block.index(14)? };
        let version = block.index(VERSION_AT)?;
        if version.load() == 0 {
            block.index(DESC_NUM_AT)?.store(size);
        }
        inflight.used_idx.store(used);
        version.store(VERSION);
        Some(inflight)
    }

    /// Notes what the guest was just told.
    pub(crate) fn note(&self, head: u16, used: u16) {
        self.last_batch_head.store(head);
        self.used_idx.store(used);
    }
}

/// The block of a packed ring.
pub(crate) struct PackedInflight {
    used_idx: Index,
    old_used_idx: Index,
    /// Both, in one word.
    wraps: Index,
}

impl PackedInflight {
    /// Takes hold of a block, and says where its last user stopped; none if it is too short to be one.
    ///
    /// `is_used` tells whether the descriptor at a position is one that we have used: a user that was killed between the
    /// two marks of a batch has published all of it or nothing.
    pub(crate) fn new(
        block: &Region,
        size: u16,
        start: Position,
        is_used: impl Fn(Position) -> bool,
    ) -> Option<(Self, Position)> {
        let (used_idx, old_used_idx, wraps) = (block.index(16)?, block.index(18)?, block.index(20)?);
        let inflight = Self { used_idx, old_used_idx, wraps };
        let version = block.index(VERSION_AT)?;
        if version.load() != VERSION {
            block.index(DESC_NUM_AT)?.store(size);
            inflight.begin(start);
            inflight.finish(start);
            version.store(VERSION);
            return Some((inflight, start));
        }
        let old = Position { index: inflight.old_used_idx.load(), wrap: inflight.wraps.load() >> 8 & 1 == 1 };
        let new = inflight.used_idx.load();
        if old.index >= size || new >= size {
            // Somebody else's marks: the frontend's word counts.
            return Some((inflight, start));
        }
        // A batch is no longer than the ring, so it has not passed its own beginning.
        let at = if is_used(old) { Position { index: new, wrap: old.wrap ^ (new <= old.index) } } else { old };
        inflight.begin(at);
        inflight.finish(at);
        Some((inflight, at))
    }

    /// Notes where the batch ends that is about to be published.
    pub(crate) fn begin(&self, end: Position) {
        self.used_idx.store(end.index);
        self.wraps.store(self.wraps.load() & 0xff00 | u16::from(end.wrap));
    }

    /// Notes that it was published.
    pub(crate) fn finish(&self, end: Position) {
        self.old_used_idx.store(end.index);
        self.wraps.store(u16::from(end.wrap) << 8 | u16::from(end.wrap));
    }
}

/// Says that the frontend knows itself where the ring was stopped (GET_VRING_BASE): what it says at the next start counts,
/// as the driver may have begun anew.
pub(crate) fn settle(block: &Region) {
    if let Some(version) = block.index(VERSION_AT) {
        version.store(0);
    }
}

const VERSION_AT: u64 = 8;
const DESC_NUM_AT: u64 = 10;
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn block() -> Region {
        Region::create("inflight", 4096, &Arc::default()).unwrap()
    }

    fn at(index: u16, wrap: bool) -> Position {
        Position { index, wrap }
    }

    #[test]
    fn a_split_ring_s_fields_lie_where_the_protocol_says() {
        let block = block();
        let inflight = SplitInflight::new(&block, 256, 7).unwrap();
        inflight.note(3, 9);
        assert_eq!((block.read_u32(8), block.read_u32(12)), (Some(1 | 256 << 16), Some(3 | 9 << 16)));
        assert!(SplitInflight::new(&block.part(0, 14).unwrap(), 256, 0).is_none());
    }

    #[test]
    fn a_packed_ring_s_fields_lie_where_the_protocol_says() {
        let block = block();
        let (inflight, start) = PackedInflight::new(&block, 256, at(5, true), |_| unreachable!()).unwrap();
        assert_eq!(start, at(5, true));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(5 | 5 << 16), Some(0x101)));
        inflight.begin(at(2, false));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(2 | 5 << 16), Some(0x100)));
        inflight.finish(at(2, false));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(2 | 2 << 16), Some(0)));
    }

    #[test]
    fn a_successor_finds_the_place_whenever_its_predecessor_was_killed() {
        let block = block();
        let begin = at(0, true);
        let (inflight, _) = PackedInflight::new(&block, 8, begin, |_| unreachable!()).unwrap();
        inflight.begin(at(5, true));
        inflight.finish(at(5, true));
        let found = |used| PackedInflight::new(&block, 8, begin, |_| used).unwrap().1;
        assert_eq!(found(false), at(5, true), "nothing was under way");
        inflight.begin(at(3, false));
        assert_eq!(found(false), at(5, true), "it was killed before it published");
        inflight.begin(at(3, false));
        assert_eq!(found(true), at(3, false), "it was killed after it published");
        inflight.begin(at(3, true));
        assert_eq!(found(true), at(3, true), "a whole round");
        settle(&block);
        assert_eq!(found(true), begin, "the frontend knew the place");
    }

    #[test]
    fn marks_that_are_no_place_in_the_ring_are_nobody_s() {
        let block = block();
        let (inflight, _) = PackedInflight::new(&block, 8, at(0, true), |_| false).unwrap();
        inflight.finish(at(8, true));
        assert_eq!(PackedInflight::new(&block, 8, at(1, false), |_| true).unwrap().1, at(1, false));
    }
}
