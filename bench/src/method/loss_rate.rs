//! The loss at rates from the highest down (RFC 2544, section 26.3).

use std::time::Duration;

use crate::method::search::is_slow;
use crate::method::trial::{Measurement, Trial};

/// Begins at the highest rate and goes down in tenths of it, until two rates one after the other lost nothing.
#[derive(Clone, Debug)]
pub struct LossRate {
    time: Duration,
    max: Option<f64>,
    tried: Vec<Tried>,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    /// What was offered, and no more than was wanted.
    rate: f64,
    loss: f64,
    /// The generator was too slow for what was wanted.
    is_slow: bool,
}

impl LossRate {
    /// Trials of this length. The highest rate, if it is not given, comes of one trial without a pace.
    pub fn new(time: Duration, max: Option<f64>) -> Self {
        Self { time, max, tried: Vec::new() }
    }

    /// The next trial.
    pub fn next(&self) -> Option<Trial> {
        let Some(max) = self.max else { return Some(Trial::saturating(self.time)) };
        let made = self.tried.len();
        let clean = |tried: &Tried| tried.loss == 0.0;
        if made == STEPS || max <= 0.0 || (made >= 2 && self.tried[made - 2..].iter().all(clean)) {
            return None;
        }
        Some(Trial::paced(self.rate(max, made), self.time))
    }

    /// Takes note of what came of it.
    pub fn feed(&mut self, seen: Measurement) {
        match self.max {
            None => self.max = Some(seen.arrived * ABOVE),
            Some(max) => {
                let wanted = self.rate(max, self.tried.len());
                let is_slow = is_slow(wanted, seen.offered);
                self.tried.push(Tried { rate: wanted.min(seen.offered), loss: seen.loss, is_slow });
            }
        }
    }

    /// The highest rate at and below which nothing was lost, and whether it is what the generator makes.
    pub fn clean(&self) -> Option<(f64, bool)> {
        let clean = self.tried.iter().rev().take_while(|tried| tried.loss == 0.0).last();
        clean.map(|tried| (tried.rate, tried.is_slow))
    }

    #[expect(clippy::unused_self, reason = "reads as a part of it")]
    fn rate(&self, max: f64, step: usize) -> f64 {
        max * (STEPS - step) as f64 / STEPS as f64
    }
}

/// Tenths.
const STEPS: usize = 10;
/// The rates, and the one without a pace.
pub const TRIALS: usize = STEPS + 1;
/// How far above the rate of a saturated wire the highest rate is.
const ABOVE: f64 = 1.25;

#[cfg(test)]
mod tests {
    use crate::method::tests::{SETTINGS, generator_of, lead, wire_of};
    use crate::method::{Method, MethodSettings};

    #[test]
    fn rates_go_down_in_tenths_until_two_lose_nothing() {
        let mut method = Method::loss_rate(&MethodSettings { max_rate: Some(10e6), ..SETTINGS });
        let trials = lead(&mut method, wire_of(7.5e6));
        let rates: Vec<_> = trials.iter().map(|(_, seen)| seen.offered / 1e6).collect();
        assert_eq!(rates, [10.0, 9.0, 8.0, 7.0, 6.0]);
        assert!((trials[0].1.loss - 0.25).abs() < 1e-9);
        assert!((method.figures()[0].value - 7e6).abs() < 1.0);
    }

    #[test]
    fn a_rate_that_the_generator_does_not_make_is_not_claimed() {
        let mut method = Method::loss_rate(&MethodSettings { max_rate: Some(100e6), ..SETTINGS });
        lead(&mut method, generator_of(30e6, wire_of(50e6)));
        let figure = &method.figures()[0];
        assert!((figure.value - 30e6).abs() < 1.0 && figure.is_generators, "{figure:?}");
    }

    #[test]
    fn a_wire_that_always_loses_is_tried_down_to_a_tenth() {
        let mut method = Method::loss_rate(&SETTINGS);
        let trials = lead(&mut method, |trial| crate::method::Measurement { loss: 0.1, ..wire_of(1e6)(trial) });
        assert_eq!(trials.len(), super::TRIALS);
        assert!(method.figures()[0].value == 0.0);
    }
}
