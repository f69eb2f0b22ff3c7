//! Counters of a wire: each lane has its own, which only the worker that has the lane writes, and readers add them up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::spec::QUEUES_MAX;
use crate::status::{DropReason, Traffic};
use crate::visit::Tally;

/// The counters of one direction of a wire, over all its lanes and reconnects.
#[derive(Debug, Default)]
pub struct LinkCounters {
    lanes: [OnceLock<Arc<LaneCounters>>; LANES_MAX],
    control: LaneCounters,
}

impl LinkCounters {
    /// Those of lane `number`, which has one writer at a time.
    pub fn lane(&self, number: usize) -> Arc<LaneCounters> {
        Arc::clone(self.lanes[number % LANES_MAX].get_or_init(Arc::default))
    }

    /// Those of frames that control itself sends.
    pub fn control(&self) -> &LaneCounters {
        &self.control
    }

    /// What was counted so far.
    pub fn read(&self) -> Traffic {
        let lanes = self.lanes.iter().filter_map(OnceLock::get).map(|lane| &**lane);
        lanes.chain([&self.control]).fold(Traffic::default(), |mut sum, lane| {
            sum.frames += lane.frames.load(Ordering::Relaxed);
            sum.bytes += lane.bytes.load(Ordering::Relaxed);
            sum.stalls += lane.stalls.load(Ordering::Relaxed);
            for (sum, drops) in sum.drops.iter_mut().zip(&lane.drops) {
                *sum += drops.load(Ordering::Relaxed);
            }
            sum
        })
    }
}

/// What one lane counts in one direction. One thread at a time writes it, so adding needs no locked instruction; a lane
/// passes from one worker to the next through a mailbox, which orders what both have stored.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LaneCounters {
    frames: AtomicU64,
    bytes: AtomicU64,
    stalls: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl LaneCounters {
    /// Adds what a visit counted.
    #[inline]
    pub(crate) fn add(&self, tally: &Tally) {
        if tally.frames > 0 {
            add(&self.frames, tally.frames);
            add(&self.bytes, tally.bytes);
        }
        if tally.stalled {
            add(&self.stalls, 1);
        }
        for &(reason, count) in &tally.drops {
            add(&self.drops[reason as usize], count);
        }
    }

    /// Adds frames that were moved.
    #[inline]
    pub(crate) fn add_moved(&self, frames: u64, bytes: u64) {
        add(&self.frames, frames);
        add(&self.bytes, bytes);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Lanes of one wire: ends with more queues share them.
pub const LANES_MAX: usize = QUEUES_MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_and_control_count_is_added_up() {
        let counters = LinkCounters::default();
        for number in [0, 1, 15] {
            let mut tally = Tally { stalled: number == 1, ..Tally::default() };
            tally.add(2, 120);
            tally.drop(DropReason::TooLong);
            counters.lane(number).add(&tally);
        }
        // A lane that comes back goes on where it was.
        counters.lane(1).add(&Tally { frames: 1, bytes: 60, ..Tally::default() });
        counters.control().add(&Tally { frames: 1, bytes: 42, ..Tally::default() });
        let traffic = counters.read();
        assert_eq!((traffic.frames, traffic.bytes, traffic.stalls), (8, 462, 1));
        assert_eq!((traffic.dropped(), traffic.drops[DropReason::TooLong as usize]), (3, 3));
    }
}
