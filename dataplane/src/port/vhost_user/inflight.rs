//! How far a ring was used, kept in memory that outlives us ("Inflight I/O tracking", INFLIGHT_SHMFD).
//!
//! The memory has room for a mark on each chain that was taken and not given back, so that a successor can finish what
//! was under way. We set none: chains are completed in the order in which they were made available, so what was under way
//! is exactly what lies between the used and the available index, and a successor takes it again from there.
//!
//! A split ring keeps its used index in the ring itself, and publishes a whole batch by one store. A packed ring keeps its
//! position nowhere, and a batch overwrites the descriptors that it gives back, the first of them last. So the block
//! says where a batch begins and ends, in one word, and keeps what the other descriptors were:
//!
//! ```text
//!   (old, new) = (here, end of the batch)      the batch begins
//!   descriptors behind the first: kept in the block, then used in the ring
//!   the first descriptor: used                 the guest sees all of it
//!   (old, new) = (end, end)                    the batch is over
//! ```
//! A successor that finds old and new apart looks at the first descriptor. If the guest could see the batch, the ring goes
//! on behind it; if not, the other descriptors are put back as they were, and the ring goes on where the batch began.
//!
//! ```text
//!   QueueRegionSplit    features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, ...
//!   QueueRegionPacked   features u64, version u16, desc_num u16, free_head u16, old_free_head u16, used_idx u16,
//!                       old_used_idx u16, used_wrap_counter u8, old_used_wrap_counter u8, padding, and for each
//!                       descriptor: inflight u8, padding, next u16, last u16, num u16, counter u64, id u16, flags u16,
//!                       len u32, addr u64
//! ```

use ferrule_ffi::array::Array;
use ferrule_ffi::region::{Index, Region, Word};

use crate::port::vhost_user::packed::position::{AVAIL, Position, USED};

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

    /// Notes which chain is the last of a batch that is about to be published.
    pub(crate) fn begin(&self, last_head: u16) {
        self.last_batch_head.store(last_head);
    }

    /// Notes that it was published, and the used index with which.
    pub(crate) fn finish(&self, used: u16) {
        self.used_idx.store(used);
    }
}

/// The block of a packed ring.
pub(crate) struct PackedInflight {
    /// `used_idx`, `old_used_idx` and both wrap counters.
    positions: Word,
    /// Two for each descriptor: the first word of every second one is its id, flags and length.
    states: Array<[u64; 2]>,
}

impl PackedInflight {
    /// Takes hold of a block, and says where its last user stopped, having put the ring in order there; none if it is too
    /// short to be one.
    pub(crate) fn new(block: &Region, size: u16, start: Position, desc: &Array<[u64; 2]>) -> Option<(Self, Position)> {
        let states = Array::new(block, STATES_AT, 2 * u32::from(size))?;
        let inflight = Self { positions: block.word(POSITIONS_AT)?, states };
        let version = block.index(VERSION_AT)?;
        if version.load() != VERSION {
            block.index(DESC_NUM_AT)?.store(size);
            inflight.finish(start);
            version.store(VERSION);
            return Some((inflight, start));
        }
        let Positions { old, new } = Positions::parse(inflight.positions.load());
        // Somebody else's: the frontend's word counts.
        let at = if old.index >= size || new.index >= size { start } else { inflight.recover(old, new, size, desc) };
        inflight.finish(at);
        Some((inflight, at))
    }

    /// Notes where the batch begins and ends that is about to be published.
    pub(crate) fn begin(&self, old: Position, new: Position) {
        self.positions.store(Positions { old, new }.emit());
    }

    /// Keeps what a descriptor is that is about to be used before the guest can see the batch.
    pub(crate) fn keep(&self, at: Position, second: u64) {
        // Id and flags come first here, the length behind them.
        self.states.write_first(state_of(at), second.rotate_left(32));
    }

    /// Notes that the batch was published.
    pub(crate) fn finish(&self, end: Position) {
        self.positions.store(Positions { old: end, new: end }.emit());
    }

    /// Where a ring goes on whose last batch may not have been finished.
    fn recover(&self, old: Position, new: Position, size: u16, desc: &Array<[u64; 2]>) -> Position {
        let flags = |at: Position| (desc.load_second(at.index.into()) >> 48) as u16 & (AVAIL | USED);
        // The guest may have seen it and offered the place again; it cannot have done so twice.
        if old == new || flags(old) != old.available() {
            return new;
        }
        let mut at = old.after(1, size);
        for _ in 1..size {
            if at == new {
                break;
            }
            if flags(at) == at.used() {
                desc.store_second(at.index.into(), self.states.read_first(state_of(at)).rotate_left(32));
            }
            at = at.after(1, size);
        }
        old
    }
}

/// Which of the pairs of words holds id, flags and length of a descriptor.
fn state_of(at: Position) -> u32 {
    2 * u32::from(at.index) + 1
}

/// Where the last batch began, and where it ends.
struct Positions {
    old: Position,
    new: Position,
}

impl Positions {
    fn parse(word: u64) -> Self {
        let position = |index: u32, wrap: u32| Position { index: (word >> index) as u16, wrap: word >> wrap & 1 == 1 };
        Self { old: position(16, 40), new: position(0, 32) }
    }

    fn emit(&self) -> u64 {
        let Self { old, new } = self;
        u64::from(new.index) | u64::from(old.index) << 16 | u64::from(new.wrap) << 32 | u64::from(old.wrap) << 40
    }
}

/// Says that the frontend knows itself where the ring was stopped (GET_VRING_BASE, SET_STATUS 0): what it says at the next
/// start counts, as the driver may have begun anew.
pub(crate) fn invalidate(block: &Region) {
    if let Some(version) = block.index(VERSION_AT) {
        version.store(0);
    }
}

/// Bytes of a block before its descriptors, and of each of those.
pub(crate) const SPLIT_LEN: (u64, u64) = (16, 16);
/// The same of a packed ring.
pub(crate) const PACKED_LEN: (u64, u64) = (STATES_AT, 32);
const VERSION_AT: u64 = 8;
const DESC_NUM_AT: u64 = 10;
const POSITIONS_AT: u64 = 16;
const STATES_AT: u64 = 32;
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SIZE: u16 = 8;

    fn region() -> Region {
        Region::create("inflight", 4096, &Arc::default()).unwrap()
    }

    fn at(index: u16, wrap: bool) -> Position {
        Position { index, wrap }
    }

    /// A ring whose descriptors were all made available in the first round: descriptor i has length 100 + i and id i.
    fn ring() -> Array<[u64; 2]> {
        let desc = Array::new(&region(), 0, SIZE.into()).unwrap();
        for index in 0..SIZE {
            desc.write(index.into(), [0, second(100 + u32::from(index), index, at(index, true).available())]);
        }
        desc
    }

    fn second(len: u32, id: u16, flags: u16) -> u64 {
        u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
    }

    #[test]
    fn a_split_ring_s_fields_lie_where_the_protocol_says() {
        let block = region();
        let inflight = SplitInflight::new(&block, 256, 7).unwrap();
        inflight.begin(3);
        inflight.finish(9);
        assert_eq!((block.read_u32(8), block.read_u32(12)), (Some(1 | 256 << 16), Some(3 | 9 << 16)));
        assert!(SplitInflight::new(&block.part(0, 14).unwrap(), 256, 0).is_none());
    }

    #[test]
    fn a_packed_ring_s_fields_lie_where_the_protocol_says() {
        let (block, desc) = (region(), ring());
        let (inflight, start) = PackedInflight::new(&block, SIZE, at(5, true), &desc).unwrap();
        assert_eq!(start, at(5, true));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(5 | 5 << 16), Some(0x101)));
        inflight.begin(at(5, true), at(2, false));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(2 | 5 << 16), Some(0x100)));
        inflight.keep(at(6, true), second(0x0102_0304, 0x0506, 0x0708));
        let state = 32 + 6 * 32;
        assert_eq!((block.read_u32(state + 16), block.read_u32(state + 20)), (Some(0x0708_0506), Some(0x0102_0304)));
        inflight.finish(at(2, false));
        assert_eq!((block.read_u32(16), block.read_u32(20)), (Some(2 | 2 << 16), Some(0)));
        let short = block.part(0, PACKED_LEN.0 + u64::from(SIZE) * PACKED_LEN.1 - 1).unwrap();
        assert!(PackedInflight::new(&short, SIZE, start, &desc).is_none());
    }

    #[test]
    fn a_successor_finds_the_place_whenever_its_predecessor_was_killed() {
        let (block, desc) = (region(), ring());
        let begin = at(0, true);
        let (inflight, _) = PackedInflight::new(&block, SIZE, begin, &desc).unwrap();
        let found = || PackedInflight::new(&block, SIZE, begin, &desc).unwrap().1;
        assert_eq!(found(), begin, "nothing was under way");
        inflight.begin(begin, at(5, true));
        assert_eq!(found(), begin, "it was killed before it published");
        inflight.begin(begin, at(5, true));
        desc.store_second(0, second(0, 0, begin.used()));
        assert_eq!(found(), at(5, true), "it was killed after it published");
        inflight.begin(begin, at(5, true));
        desc.store_second(0, second(100, 0, at(0, false).available()));
        assert_eq!(found(), at(5, true), "the guest had offered the place again meanwhile");
        inflight.begin(at(5, true), at(5, false));
        assert_eq!(found(), at(5, true), "a whole round that was not published");
        inflight.begin(at(5, true), at(5, false));
        desc.store_second(5, second(0, 5, at(5, true).used()));
        assert_eq!(found(), at(5, false), "a whole round");
        invalidate(&block);
        assert_eq!(found(), begin, "the frontend knew the place");
    }

    #[test]
    fn descriptors_that_were_overwritten_for_nothing_are_put_back() {
        let (block, desc) = (region(), ring());
        let begin = at(6, true);
        // The places behind the end of the ring were offered in the next round.
        for index in 0..2 {
            desc.write(index.into(), [0, second(100, index, at(index, false).available())]);
        }
        let (inflight, _) = PackedInflight::new(&block, SIZE, begin, &desc).unwrap();
        let before: Vec<_> = (0..SIZE).map(|index| desc.read(index.into())).collect();
        inflight.begin(begin, at(2, false));
        for place in [at(7, true), at(0, false), at(1, false)] {
            inflight.keep(place, desc.load_second(place.index.into()));
            desc.store_second(place.index.into(), second(0, 9, place.used()));
        }
        assert_eq!(PackedInflight::new(&block, SIZE, begin, &desc).unwrap().1, begin);
        assert_eq!((0..SIZE).map(|index| desc.read(index.into())).collect::<Vec<_>>(), before);
    }

    #[test]
    fn marks_that_are_no_place_in_the_ring_are_nobody_s() {
        let (block, desc) = (region(), ring());
        let (inflight, _) = PackedInflight::new(&block, SIZE, at(0, true), &desc).unwrap();
        inflight.finish(at(8, true));
        assert_eq!(PackedInflight::new(&block, SIZE, at(1, false), &desc).unwrap().1, at(1, false));
    }
}
