//! When a worker last did what it does from time to time, by the TSC.

use std::time::Duration;

use ferrule_ffi::ticks;

/// A clock that is not read in every round.
pub(crate) struct Clock {
    /// When it was last read.
    pub(crate) now: u64,
    /// Whether a round has moved frames since then.
    pub(crate) busy: bool,
    /// When a frame was last moved.
    pub(crate) moved: u64,
    /// Whether that is so recent that the worker does not nap.
    pub(crate) spinning: bool,
    /// When it is time to look after lanes.
    pub(crate) due: u64,
    pub(crate) rested: u64,
    pub(crate) retried: u64,
    pub(crate) looked: u64,
    pub(crate) listened: u64,
    pub(crate) nap: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let now = ticks::now();
        Self {
            now,
            busy: false,
            moved: now,
            spinning: true,
            due: now,
            rested: now,
            retried: now,
            looked: now,
            listened: now,
            nap: NAP_MIN,
        }
    }

    /// What was not done for so long is done now.
    pub(crate) fn is_due(now: u64, last: &mut u64, interval: u64) -> bool {
        let due = now.saturating_sub(*last) >= interval;
        if due {
            *last = now;
        }
        due
    }
}

/// The times of a worker in ticks.
pub(crate) struct Intervals {
    pub(crate) spin: u64,
    pub(crate) quiet: u64,
    pub(crate) retry: u64,
    pub(crate) look: u64,
    pub(crate) listen: u64,
    pub(crate) housekeeping: u64,
    pub(crate) quantum: u64,
}

impl Intervals {
    pub(crate) fn new() -> Self {
        Self {
            spin: ticks::of(SPIN),
            quiet: ticks::of(QUIET),
            retry: ticks::of(RETRY),
            look: ticks::of(LOOK),
            listen: ticks::of(LISTEN),
            housekeeping: ticks::of(HOUSEKEEPING),
            quantum: ticks::of(QUANTUM),
        }
    }
}

/// How long the thread spins without work before it naps.
const SPIN: Duration = Duration::from_micros(20);
pub(crate) const NAP_MIN: Duration = Duration::from_micros(5);
pub(crate) const NAP_MAX: Duration = Duration::from_micros(50);
/// How long a lane stays in the rounds without work.
const QUIET: Duration = Duration::from_millis(1);
/// How often a full target is tried again once its lane has left the rounds, and a sleeping lane is looked at whose
/// peer cannot notify.
pub(crate) const RETRY: Duration = Duration::from_millis(1);
/// How often eventfds are collected while other lanes keep the thread busy.
const LISTEN: Duration = Duration::from_micros(20);
/// How often sleeping lanes are looked at without a notification: DPDK and VPP load the flag without a fence
/// after storing their index, so a notification can be lost.
pub(crate) const LOOK: Duration = Duration::from_millis(200);
/// How often the worker looks after lanes that are not in the rounds, while others have frames.
const HOUSEKEEPING: Duration = Duration::from_micros(5);
/// What a visit takes in which a burst of ordinary frames is copied.
const QUANTUM: Duration = Duration::from_micros(1);
