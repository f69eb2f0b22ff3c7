//! The highest rates whose loss stays within goals.
//!
//! With one goal and one phase this is the binary search of RFC 2544; with more it does what MLRsearch does: trials of a
//! phase are as long as each other and serve all goals; a phase begins at the bounds that the shorter trials before it
//! found, and moves them where longer trials disagree.

use std::time::Duration;

use crate::method::trial::{Measurement, Trial};

/// A search. One trial without a pace finds the highest rate worth trying, unless that is given.
#[derive(Clone, Debug)]
pub struct Search {
    goals: Vec<Goal>,
    phases: Vec<Phase>,
    max: Option<f64>,
    /// What was tried, by phase.
    tried: Vec<Vec<Probe>>,
    count: usize,
    /// Trials one after the other in which the generator was too slow.
    slow: usize,
    /// The generator is the limit: `max` is what it makes.
    is_generators: bool,
}

/// How much loss is within it.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// What the rate is called.
    pub name: &'static str,
    /// The highest loss, as a share of 1.
    pub loss: f64,
}

/// A part of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Length of its trials.
    pub time: Duration,
    /// It ends when the bounds are no further apart than this share of the upper one.
    pub width: f64,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    /// What was wanted; where the generator is too slow for it, what it made.
    rate: f64,
    /// What was offered, and no more than was wanted.
    offered: f64,
    loss: f64,
}

/// What is known of the rate wanted: the highest one that was good, below the lowest one that was bad.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    good: Option<f64>,
    bad: Option<f64>,
}

impl Search {
    /// Phases are passed through in their order.
    pub fn new(goals: Vec<Goal>, phases: Vec<Phase>, max: Option<f64>) -> Self {
        let tried = vec![Vec::new(); phases.len()];
        Self { goals, phases, max, tried, count: 0, slow: 0, is_generators: false }
    }

    /// What is looked for.
    pub fn goals(&self) -> &[Goal] {
        &self.goals
    }

    /// The next trial.
    pub fn next(&self) -> Option<Trial> {
        if self.count >= TRIALS_MAX {
            return None;
        }
        let Some(max) = self.max else { return Some(Trial::saturating(self.phases.first()?.time)) };
        let (rate, phase) = self.next_rate(max)?;
        Some(Trial::paced(rate, self.phases[phase].time))
    }

    /// Takes note of what came of it.
    pub fn feed(&mut self, seen: Measurement) {
        let Some(max) = self.max else {
            self.max = Some(seen.arrived * ABOVE);
            return;
        };
        self.count += 1;
        let Some((rate, phase)) = self.next_rate(max) else { return };
        let is_slow = is_slow(rate, seen.offered);
        if is_slow && self.slow < SLOW_MAX {
            // The machine may have done something else for a moment.
            self.slow += 1;
            return;
        }
        self.slow = 0;
        let rate = if is_slow { seen.offered } else { rate };
        if is_slow {
            (self.max, self.is_generators) = (Some(rate), true);
        }
        self.tried[phase].push(Probe { rate, offered: seen.offered.min(rate), loss: seen.loss });
    }

    /// The highest rate that was offered and is known to be within a goal, by the longest trials that there were. None:
    /// there was none.
    pub fn found(&self, goal: usize) -> Option<f64> {
        self.best(goal).map(|probe| probe.offered)
    }

    /// Whether that is what the generator makes, and more might be.
    pub fn is_generators(&self, goal: usize) -> bool {
        self.is_generators && self.best(goal).zip(self.max).is_some_and(|(best, max)| best.rate >= max)
    }

    fn best(&self, goal: usize) -> Option<&Probe> {
        let last = self.tried.iter().rposition(|tried| !tried.is_empty())?;
        self.good(last, self.goals[goal].loss, self.bad(last, self.goals[goal].loss))
    }

    /// About how many trials there will be: the one without a pace, a phase's halvings for each goal, and its bounds.
    pub fn trials(&self) -> usize {
        let mut before = 1.0;
        let mut trials = 1.0;
        for phase in &self.phases {
            trials += self.goals.len() as f64 * (f64::log2(before / phase.width).max(0.0) + 2.0);
            before = phase.width;
        }
        // At most a few dozen.
        #[expect(clippy::cast_sign_loss)]
        let trials = trials as usize;
        trials.min(TRIALS_MAX)
    }

    /// The rate to try next, and in which phase; none: every goal is met in every phase.
    fn next_rate(&self, max: f64) -> Option<(f64, usize)> {
        let wanted = |phase| self.goals.iter().find_map(|goal| self.wanted(phase, goal.loss, max));
        (0..self.phases.len()).find_map(|phase| Some((wanted(phase)?, phase)))
    }

    /// The rate that a phase has to try for a goal.
    fn wanted(&self, phase: usize, goal: f64, max: f64) -> Option<f64> {
        let width = self.phases[phase].width;
        let min = max * MIN_SHARE;
        let before = phase.checked_sub(1).map(|before| self.bounds(before, goal));
        match self.bounds(phase, goal) {
            _ if max <= 0.0 => None,
            Bounds { good: None, bad: None } => Some(match before {
                None => max,
                Some(Bounds { good, .. }) => good.unwrap_or(min),
            }),
            Bounds { good: Some(good), .. } if good >= max => None,
            Bounds { good: Some(good), bad: None } => {
                let hint = before.and_then(|before| before.bad).filter(|&bad| bad > good);
                Some(hint.unwrap_or(good * (1.0 + 4.0 * width)).min(max))
            }
            Bounds { good: None, bad: Some(bad) } if bad <= min => None,
            Bounds { good: None, bad: Some(bad) } => {
                // Farther down each time, and in half at last.
                let steps = self.tried[phase].iter().filter(|tried| tried.loss > goal).count();
                let step = (width * f64::from(1u32 << steps.min(20))).min(0.5);
                let from_before = before.and_then(|before| before.good).filter(|&good| good < bad);
                let below = if before.is_some() { bad * (1.0 - step) } else { bad / 2.0 };
                Some(from_before.unwrap_or(below).max(min))
            }
            Bounds { good: Some(good), bad: Some(bad) } if (bad - good) / bad <= width => None,
            Bounds { good: Some(good), bad: Some(bad) } => Some(f64::midpoint(good, bad).min(max)),
        }
    }

    fn bounds(&self, phase: usize, goal: f64) -> Bounds {
        let bad = self.bad(phase, goal);
        Bounds { good: self.good(phase, goal, bad).map(|probe| probe.rate), bad }
    }

    fn bad(&self, phase: usize, goal: f64) -> Option<f64> {
        self.tried[phase].iter().filter(|tried| tried.loss > goal).map(|tried| tried.rate).min_by(f64::total_cmp)
    }

    fn good(&self, phase: usize, goal: f64, bad: Option<f64>) -> Option<&Probe> {
        let good = self.tried[phase].iter().filter(|tried| tried.loss <= goal);
        good.filter(|tried| bad.is_none_or(|bad| tried.rate < bad)).max_by(|a, b| a.rate.total_cmp(&b.rate))
    }
}

/// Whether the generator was too slow for a rate.
pub(super) fn is_slow(wanted: f64, offered: f64) -> bool {
    offered < wanted * OFFERED_MIN
}

/// How far above the rate of a saturated wire a search begins.
const ABOVE: f64 = 1.05;
/// Of the highest rate, the share that nothing below is tried of.
const MIN_SHARE: f64 = 1.0 / 1024.0;
/// Of the rate that is wanted, the share that a generator offers which is fast enough.
const OFFERED_MIN: f64 = 0.98;
/// How often a trial is made again in which the generator was too slow.
const SLOW_MAX: usize = 2;
/// A wire that answers at random must not be searched for ever.
const TRIALS_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use crate::load::Pace;

    use super::*;
    use crate::method::tests::{SETTINGS, generator_of, lead, wire_of};
    use crate::method::{Method, MethodSettings};

    fn near(value: f64, expected: f64, precision: f64) -> bool {
        value <= expected && value >= expected * (1.0 - precision)
    }

    #[test]
    fn the_throughput_of_any_wire_is_found_to_the_precision_wanted() {
        for capacity in [1e3, 123_456.0, 3e6, 59e6] {
            for precision in [0.05, 0.01, 0.001] {
                let mut method = Method::throughput(&MethodSettings { precision, ..SETTINGS });
                let trials = lead(&mut method, wire_of(capacity));
                let found = method.figures()[0].value;
                assert!(near(found, capacity, precision), "{found} of {capacity}");
                assert!(trials.len() <= 14, "{} trials", trials.len());
            }
        }
    }

    #[test]
    fn the_first_trial_has_no_pace_unless_the_highest_rate_is_given() {
        let mut method = Method::throughput(&SETTINGS);
        assert_eq!(lead(&mut method, wire_of(1e6))[0].0.pace, Pace::Saturate);
        let mut method = Method::throughput(&MethodSettings { max_rate: Some(5e5), ..SETTINGS });
        let trials = lead(&mut method, wire_of(1e6));
        assert_eq!(trials.len(), 1, "a wire that takes the highest rate is searched no further");
        assert!((method.figures()[0].value - 5e5).abs() < 1.0);
    }

    #[test]
    fn a_rate_that_the_generator_does_not_make_is_not_found() {
        let settings = MethodSettings { max_rate: Some(100e6), ..SETTINGS };
        for mut method in [Method::throughput(&settings), Method::ndr_pdr(&settings), Method::latency(&settings)] {
            let trials = lead(&mut method, generator_of(30e6, wire_of(50e6)));
            for figure in method.figures() {
                assert!(near(figure.value, 30e6, 0.03) && figure.is_generators, "{figure:?}");
            }
            assert!(trials.len() < 20, "{} trials", trials.len());
        }
        // A wire that takes less than the generator makes is the limit.
        let mut method = Method::throughput(&settings);
        lead(&mut method, generator_of(30e6, wire_of(20e6)));
        let found = &method.figures()[0];
        assert!(near(found.value, 20e6, 0.01) && !found.is_generators, "{found:?}");
        // One moment in which the machine did something else changes nothing.
        let mut number = 0;
        let mut method = Method::throughput(&SETTINGS);
        lead(&mut method, |trial| {
            number += 1;
            generator_of(if number == 4 { 1e6 } else { 1e9 }, wire_of(20e6))(trial)
        });
        let found = &method.figures()[0];
        assert!(near(found.value, 20e6, 0.01) && !found.is_generators, "{found:?}");
    }

    #[test]
    fn ndr_and_pdr_are_found_by_short_trials_and_confirmed_by_long_ones() {
        let mut method = Method::ndr_pdr(&SETTINGS);
        // Loses a little from 2 M on, and what it cannot carry above 4 M.
        let trials = lead(&mut method, |trial| {
            let seen = wire_of(4e6)(trial);
            let little = if seen.offered > 2e6 { 0.001 } else { 0.0 };
            Measurement { loss: seen.loss.max(little), ..seen }
        });
        let figures = method.figures();
        assert_eq!((figures[0].name, figures[1].name), ("NDR", "PDR"));
        assert!(near(figures[0].value, 2e6, 0.01), "{figures:?}");
        assert!(near(figures[1].value, 4e6 / 0.995, 0.01), "{figures:?}");
        let long = trials.iter().filter(|(trial, _)| trial.stop == crate::load::Stop::After(SETTINGS.time));
        assert!(long.count() * 2 < trials.len(), "most trials are short ones");
        let expected = Method::ndr_pdr(&SETTINGS).trials();
        assert!(expected.abs_diff(trials.len()) < 12, "{expected} trials were expected, {} made", trials.len());
    }

    #[test]
    fn long_trials_that_disagree_with_short_ones_move_the_bounds() {
        for long_capacity in [1e6, 2.9e6, 3.1e6] {
            let mut method = Method::ndr_pdr(&SETTINGS);
            lead(&mut method, |trial| {
                let long = trial.stop == crate::load::Stop::After(SETTINGS.time);
                wire_of(if long { long_capacity } else { 3e6 })(trial)
            });
            let found = method.figures()[0].value;
            // The highest rate worth trying comes of a short trial.
            assert!(near(found, long_capacity, 0.01), "{found} of {long_capacity}");
        }
    }

    #[test]
    fn a_wire_that_answers_at_random_is_not_searched_for_ever() {
        let mut state = 1u64;
        let mut method = Method::ndr_pdr(&SETTINGS);
        let trials = lead(&mut method, |trial| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Measurement { loss: if state >> 63 == 0 { 0.5 } else { 0.0 }, ..wire_of(1e6)(trial) }
        });
        assert!(trials.len() <= TRIALS_MAX + 1);
    }
}
