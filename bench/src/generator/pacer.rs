//! How many frames are due, and what became of them.

use ferrule_dataplane::port::BURST;
use ferrule_ffi::ticks;

use crate::load::{Pace, Stop};

/// The pace of one direction. Time comes from outside, in ticks.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    pace: Pace,
    per_tick: f64,
    /// Frames sent at once without a pace.
    burst: u32,
    started: u64,
    /// Frames that may be offered in all.
    limit: u64,
    pub(super) sent: u64,
    pub(super) refused: u64,
    pub(super) skipped: u64,
}

impl Pacer {
    /// Until it is [started](Self::start), its time begins at 0.
    pub(super) fn new(pace: Pace, stop: Stop, burst: u32) -> Self {
        let per_tick = match pace {
            Pace::PerSecond(rate) => rate / ticks::per_second(),
            Pace::Saturate | Pace::BackToBack => 0.0,
        };
        let limit = match stop {
            Stop::After(_) => u64::MAX,
            Stop::Frames(frames) => frames,
        };
        Self { pace, per_tick, burst, started: 0, limit, sent: 0, refused: 0, skipped: 0 }
    }

    /// Its time begins now.
    pub(super) fn start(&mut self, now: u64) {
        self.started = now;
    }

    /// Whether anything is to come.
    pub(super) fn is_open(&self) -> bool {
        self.sent + self.refused < self.limit
    }

    /// Frames that are due now, at most a burst.
    #[inline]
    pub(super) fn due(&mut self, now: u64) -> u32 {
        let left = self.limit - (self.sent + self.refused);
        let due = match self.pace {
            Pace::Saturate => return left.min(self.burst.into()) as u32,
            Pace::BackToBack => left,
            Pace::PerSecond(_) => {
                let mut owed = self.owed(now);
                if owed > LATE_MAX {
                    // All at once they would find no room, and be held against the wire.
                    self.skipped += owed - LATE_MAX;
                    owed = LATE_MAX;
                }
                owed.min(left)
            }
        };
        due.min(BURST as u64) as u32
    }

    /// Nothing is sent any more: what was due until `end` and was not offered is skipped.
    pub(super) fn close(&mut self, end: u64) {
        self.skipped += self.owed(end);
    }

    /// Frames due until `now`, if there is a pace, and not accounted for.
    #[inline]
    #[expect(clippy::cast_sign_loss, reason = "both factors are positive")]
    fn owed(&self, now: u64) -> u64 {
        let until_now = ((now - self.started) as f64 * self.per_tick) as u64;
        until_now.saturating_sub(self.sent + self.refused + self.skipped)
    }

    /// Of `due` frames, `sent` found room.
    #[inline]
    pub(super) fn account(&mut self, due: u32, sent: u32) {
        self.sent += u64::from(sent);
        if self.pace != Pace::Saturate {
            self.refused += u64::from(due - sent);
        }
    }
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new(Pace::Saturate, Stop::Frames(0), 0)
    }
}

/// Frames that the generator may be behind and still send: a quarter of a ring of the usual size.
const LATE_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FOR_EVER: Stop = Stop::After(Duration::MAX);

    /// A pacer of a million frames in a second, and a clock in microseconds.
    fn paced() -> (Pacer, impl Fn(u64) -> u64) {
        let clock = |micros| 1000 + ticks::of(Duration::from_micros(micros)) + 1;
        let mut pacer = Pacer::new(Pace::PerSecond(1e6), FOR_EVER, 256);
        pacer.start(1000);
        (pacer, clock)
    }

    #[test]
    fn frames_are_due_as_time_goes_by_and_a_burst_at_a_time() {
        let (mut pacer, clock) = paced();
        assert_eq!(pacer.due(1000), 0);
        assert_eq!(pacer.due(clock(10)), 10);
        pacer.account(10, 10);
        assert_eq!((pacer.due(clock(10)), pacer.due(clock(12))), (0, 2));
        assert_eq!(pacer.due(clock(200)), 64);
        pacer.account(64, 64);
        assert_eq!(pacer.due(clock(200)), 64);
        assert_eq!((pacer.sent, pacer.refused, pacer.skipped), (74, 0, 0));
    }

    #[test]
    fn what_finds_no_room_when_it_is_due_is_refused_and_not_due_again() {
        let (mut pacer, clock) = paced();
        assert_eq!(pacer.due(clock(10)), 10);
        pacer.account(10, 3);
        assert_eq!((pacer.sent, pacer.refused, pacer.due(clock(10))), (3, 7, 0));
    }

    #[test]
    fn a_generator_that_is_far_behind_skips_what_it_missed() {
        let (mut pacer, clock) = paced();
        assert_eq!((pacer.due(clock(10_000)), pacer.skipped), (64, 10_000 - LATE_MAX));
        let mut rest = 0;
        while pacer.due(clock(10_000)) > 0 {
            let due = pacer.due(clock(10_000));
            pacer.account(due, due);
            rest += u64::from(due);
        }
        assert_eq!(rest, LATE_MAX);
        pacer.close(clock(10_100));
        assert_eq!(pacer.skipped, 10_100 - LATE_MAX);
    }

    #[test]
    fn a_saturating_load_refuses_nothing_and_a_back_to_back_one_all_that_finds_no_room() {
        let mut pacer = Pacer::new(Pace::Saturate, Stop::Frames(100), 80);
        pacer.account(64, 10);
        assert_eq!((pacer.due(5), pacer.refused), (80, 0));
        let mut pacer = Pacer::new(Pace::BackToBack, Stop::Frames(100), 256);
        pacer.account(64, 10);
        assert_eq!((pacer.due(5), pacer.refused, pacer.is_open()), (36, 54, true));
        pacer.account(36, 36);
        assert_eq!((pacer.due(5), pacer.is_open()), (0, false));
    }
}
