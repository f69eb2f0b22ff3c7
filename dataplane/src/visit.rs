//! What a visit to a link does and counts: small words that the loop, the rings and the worker share.

use arrayvec::ArrayVec;

use crate::port::{Fault, Put};
use crate::status::DropReason;

/// What one visit to a link did; of several, the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visit {
    /// There was nothing.
    Quiet,
    /// Something waits (frames for room, buffers to be reclaimed) and nobody notifies when it can go on.
    Stalled,
    /// Frames were moved or dropped.
    Moved,
}

/// Which end of a link broke its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The one that frames come from.
    Source(Fault),
    /// The one that frames go to.
    Target(Fault),
}

/// What one visit counted.
#[derive(Default)]
pub(crate) struct Tally {
    /// Frames taken from the source, whatever became of them.
    pub(crate) taken: usize,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// What it took beside storing those bytes, as if it were more of them.
    pub(crate) cost: u64,
    /// Whether it ended since the target is full and the wire says `hold`.
    pub(crate) stalled: bool,
    /// Drops are rare: one list entry each, since a visit takes at most a burst of frames (and a
    /// frame's segments are refused for one reason at a time).
    pub(crate) drops: ArrayVec<(DropReason, u64), { DropReason::ALL.len() }>,
}

impl Tally {
    #[inline(always)]
    pub(crate) fn count(&mut self, put: Put, bytes: usize) {
        match put {
            Put::Stored => {
                self.frames += 1;
                self.bytes += bytes as u64;
            }
            Put::Full => {}
            Put::Refused(reason) => self.drop(reason),
        }
    }

    /// Counts frames that were taken and stored.
    #[inline(always)]
    pub(crate) fn add(&mut self, frames: usize, bytes: u64) {
        self.taken += frames;
        self.frames += frames as u64;
        self.bytes += bytes;
    }

    /// What the visit has cost, in bytes copied.
    #[inline(always)]
    pub(crate) fn spent(&self) -> u64 {
        self.bytes + self.cost
    }

    #[cold]
    pub(crate) fn drop(&mut self, reason: DropReason) {
        match self.drops.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.drops.push((reason, 1)),
        }
    }
}
