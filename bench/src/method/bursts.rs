//! The longest burst of back-to-back frames without a loss (RFC 2544, section 26.4).

use crate::load::{Pace, Stop};
use crate::method::trial::{Measurement, Trial};

/// Doubles the length of a burst until some of it is lost, and halves the distance between the bounds after that.
#[derive(Clone, Debug, Default)]
pub struct Bursts {
    /// The longest burst that arrived whole, shorter than any that did not.
    good: u64,
    bad: Option<u64>,
}

impl Bursts {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next trial.
    pub fn next(&self) -> Option<Trial> {
        let frames = match self.bad {
            None if self.good >= LONGEST => return None,
            None => (self.good * 2).max(FIRST),
            // One in a hundred, or one frame.
            Some(bad) if bad - self.good <= (bad / 100).max(1) => return None,
            Some(bad) => u64::midpoint(self.good, bad),
        };
        Some(Trial { pace: Pace::BackToBack, stop: Stop::Frames(frames), latency: false })
    }

    /// Takes note of what came of it.
    pub fn feed(&mut self, seen: Measurement) {
        let Some(Trial { stop: Stop::Frames(frames), .. }) = self.next() else { return };
        if seen.loss > 0.0 {
            self.bad = Some(frames);
        } else {
            self.good = frames;
        }
    }

    /// The longest burst that arrived whole.
    pub fn longest(&self) -> u64 {
        self.good
    }
}

const FIRST: u64 = 64;
/// At 10 million frames in a second this takes longer than the two seconds that the RFC asks for.
const LONGEST: u64 = 1 << 25;
/// What it usually takes: some doublings, and as many halvings as a hundredth needs.
pub const TRIALS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Method;
    use crate::method::tests::lead;

    fn longest_of(room: u64) -> (f64, usize) {
        let mut method = Method::bursts();
        let trials = lead(&mut method, |trial| {
            let Stop::Frames(frames) = trial.stop else { unreachable!("a burst has a length") };
            let lost = frames.saturating_sub(room);
            Measurement { loss: lost as f64 / frames as f64, ..Measurement::default() }
        });
        (method.figures()[0].value, trials.len())
    }

    #[test]
    fn the_longest_burst_is_found_to_a_hundredth() {
        for room in [64, 65, 1000, 1024, 5000, 123_456, 9_999_999] {
            let (found, trials) = longest_of(room);
            assert!(found <= room as f64 && found >= (room as f64 * 0.99 - 1.0).floor(), "{found} of {room}");
            assert!(trials <= 30);
        }
        assert!(longest_of(0).0 < 1.0);
    }

    #[test]
    fn a_wire_that_never_loses_is_not_tried_for_ever() {
        assert!((longest_of(u64::MAX).0 - LONGEST as f64).abs() < 1.0);
    }
}
