//! What is tried, one trial after the other, and what is concluded.
//!
//! A method is a pure state machine: it says which trial it wants ([`Method::next`]) and is told what was seen
//! ([`Method::feed`]). Rates are frames in a second, all directions together.
//!
//! - [`search`]: the highest rate with no more than a loss (RFC 2544 throughput; NDR and PDR);
//! - [`loss_rate`]: the loss at rates from the highest down (RFC 2544 frame loss rate);
//! - [`bursts`]: the longest burst without a loss (RFC 2544 back-to-back frames).

pub mod bursts;
pub mod loss_rate;
pub mod search;
mod trial;

use std::time::Duration;

use crate::method::bursts::Bursts;
use crate::method::loss_rate::LossRate;
use crate::method::search::{Goal, Phase, Search};
pub use crate::method::trial::{Measurement, Trial};

/// A figure that a method concludes with.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is called.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// The figure.
    pub value: f64,
    /// The generator made no more: it is a lower bound of what the wire takes.
    pub is_generators: bool,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Frames in a second.
    FramesPerSecond,
    /// Frames.
    Frames,
    /// A share of 1.
    Share,
}

/// MethodSettings that methods share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MethodSettings {
    /// Length of a trial.
    pub time: Duration,
    /// The highest rate to try; none: somewhat more than what goes through a saturated wire.
    pub max_rate: Option<f64>,
    /// A search ends when its bounds are no further apart than this share of the upper one.
    pub precision: f64,
    /// The loss that a partial drop rate (PDR) allows.
    pub loss_goal: f64,
}

/// One way to measure.
#[derive(Clone, Debug)]
pub enum Method {
    /// One trial.
    Once {
        /// Which.
        trial: Trial,
        /// What came of it.
        seen: Option<Measurement>,
    },
    /// The highest rates that lose no more than some goals allow.
    Search(Search),
    /// The same, and then how long frames are under way at parts of what was found.
    Latency {
        /// Finds the throughput.
        search: Search,
        /// Trials made of those at a part of it.
        made: usize,
        /// Their length.
        time: Duration,
    },
    /// The loss at rates from the highest down.
    LossRate(LossRate),
    /// The longest burst without a loss.
    Bursts(Bursts),
}

impl Method {
    /// As fast as the wire takes it.
    pub fn saturate(settings: &MethodSettings) -> Self {
        Self::Once { trial: Trial::saturating(settings.time), seen: None }
    }

    /// At one rate, with latency.
    pub fn fixed(rate: f64, settings: &MethodSettings) -> Self {
        Self::Once { trial: Trial { latency: true, ..Trial::paced(rate, settings.time) }, seen: None }
    }

    /// RFC 2544, section 26.1: the highest rate without a loss.
    pub fn throughput(settings: &MethodSettings) -> Self {
        let phases = vec![Phase { time: settings.time, width: settings.precision }];
        Self::Search(Search::new(vec![Goal { name: "throughput", loss: 0.0 }], phases, settings.max_rate))
    }

    /// RFC 2544, section 26.2: latency at the throughput, and at parts of it.
    pub fn latency(settings: &MethodSettings) -> Self {
        match Self::throughput(settings) {
            Self::Search(search) => Self::Latency { search, made: 0, time: settings.time },
            other => other,
        }
    }

    /// RFC 2544, section 26.3.
    pub fn loss_rate(settings: &MethodSettings) -> Self {
        Self::LossRate(LossRate::new(settings.time, settings.max_rate))
    }

    /// RFC 2544, section 26.4.
    pub fn bursts() -> Self {
        Self::Bursts(Bursts::new())
    }

    /// The highest rates without a loss (NDR) and with a small one (PDR): short trials narrow both down, long ones confirm
    /// them, as in MLRsearch.
    pub fn ndr_pdr(settings: &MethodSettings) -> Self {
        let goals = vec![Goal { name: "NDR", loss: 0.0 }, Goal { name: "PDR", loss: settings.loss_goal }];
        let phase = |part, widths| Phase { time: settings.time / part, width: settings.precision * widths };
        Self::Search(Search::new(goals, vec![phase(8, 8.0), phase(3, 3.0), phase(1, 1.0)], settings.max_rate))
    }

    /// The next trial; none: the method has come to its end.
    pub fn next(&self) -> Option<Trial> {
        match self {
            Self::Once { trial, seen } => seen.is_none().then_some(*trial),
            Self::Search(search) => search.next(),
            Self::Latency { search, made, time } => search.next().or_else(|| {
                let rate = search.found(0).filter(|&rate| rate > 0.0)?;
                let share = LATENCY_AT.get(*made)?;
                Some(Trial { latency: true, ..Trial::paced(rate * share, *time) })
            }),
            Self::LossRate(method) => method.next(),
            Self::Bursts(method) => method.next(),
        }
    }

    /// Takes note of what came of the trial that was wanted.
    pub fn feed(&mut self, new: Measurement) {
        match self {
            Self::Once { seen, .. } => *seen = Some(new),
            Self::Search(search) => search.feed(new),
            Self::Latency { search, made, .. } => {
                if search.next().is_some() {
                    search.feed(new);
                } else {
                    *made += 1;
                }
            }
            Self::LossRate(method) => method.feed(new),
            Self::Bursts(method) => method.feed(new),
        }
    }

    /// What is known by now. The first figure is the one that programs are compared by.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |name, unit, value| Figure { name, unit, value, is_generators: false };
        let rate = |name, value| figure(name, Unit::FramesPerSecond, value);
        match self {
            Self::Once { seen, .. } => {
                let seen = seen.unwrap_or_default();
                vec![rate("rate", seen.arrived), figure("loss", Unit::Share, seen.loss)]
            }
            Self::Search(search) | Self::Latency { search, .. } => {
                let found = |(at, goal): (usize, &Goal)| Figure {
                    is_generators: search.is_generators(at),
                    ..rate(goal.name, search.found(at).unwrap_or(0.0))
                };
                search.goals().iter().enumerate().map(found).collect()
            }
            Self::LossRate(method) => {
                let (value, is_generators) = method.clean().unwrap_or_default();
                vec![Figure { is_generators, ..rate("no loss up to", value) }]
            }
            Self::Bursts(method) => vec![figure("burst", Unit::Frames, method.longest() as f64)],
        }
    }

    /// About how many trials there will be, from the beginning.
    pub fn trials(&self) -> usize {
        match self {
            Self::Once { .. } => 1,
            Self::Search(search) => search.trials(),
            Self::Latency { search, .. } => search.trials() + LATENCY_AT.len(),
            Self::LossRate(_) => loss_rate::TRIALS,
            Self::Bursts(_) => bursts::TRIALS,
        }
    }
}

/// Parts of the throughput at which latency is looked at.
const LATENCY_AT: [f64; 4] = [0.1, 0.5, 0.9, 1.0];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::load::Pace;

    pub(crate) const SETTINGS: MethodSettings =
        MethodSettings { time: Duration::from_millis(800), max_rate: None, precision: 0.01, loss_goal: 0.005 };

    /// Leads a method to its end on a wire that is a function of the offered rate to the rate that arrives (a burst comes
    /// as a length instead). Returns all trials.
    pub(crate) fn lead(method: &mut Method, mut wire: impl FnMut(&Trial) -> Measurement) -> Vec<(Trial, Measurement)> {
        let mut trials = Vec::new();
        while let Some(trial) = method.next() {
            let seen = wire(&trial);
            method.feed(seen);
            trials.push((trial, seen));
            assert!(trials.len() < 500, "it does not end");
        }
        trials
    }

    /// A wire that takes so many frames in a second.
    pub(crate) fn wire_of(capacity: f64) -> impl Fn(&Trial) -> Measurement {
        move |trial| {
            let offered = match trial.pace {
                Pace::PerSecond(rate) => rate,
                Pace::Saturate | Pace::BackToBack => capacity,
            };
            let arrived = offered.min(capacity);
            Measurement { offered, arrived, loss: 1.0 - arrived / offered }
        }
    }

    /// The same wire behind a generator that makes so many frames in a second.
    pub(crate) fn generator_of(most: f64, wire: impl Fn(&Trial) -> Measurement) -> impl Fn(&Trial) -> Measurement {
        move |trial| match trial.pace {
            Pace::PerSecond(rate) => wire(&Trial { pace: Pace::PerSecond(rate.min(most)), ..*trial }),
            Pace::Saturate | Pace::BackToBack => wire(trial),
        }
    }

    #[test]
    fn a_saturating_trial_is_one_and_its_rate_is_the_figure() {
        let mut method = Method::saturate(&SETTINGS);
        let trials = lead(&mut method, wire_of(3e6));
        assert_eq!(trials.len(), 1);
        assert_eq!(trials[0].0.pace, Pace::Saturate);
        assert!((method.figures()[0].value - 3e6).abs() < 1.0);
    }

    #[test]
    fn a_fixed_rate_notes_latency_and_loss() {
        let mut method = Method::fixed(4e6, &SETTINGS);
        let trials = lead(&mut method, wire_of(3e6));
        assert!(trials.len() == 1 && trials[0].0.latency);
        assert!((method.figures()[1].value - 0.25).abs() < 1e-9);
    }

    #[test]
    fn latency_is_looked_at_below_and_at_the_throughput() {
        let mut method = Method::latency(&SETTINGS);
        let trials = lead(&mut method, wire_of(3e6));
        let throughput = method.figures()[0].value;
        let looks: Vec<_> = trials.iter().filter(|(trial, _)| trial.latency).map(|(trial, _)| trial.pace).collect();
        assert_eq!(looks, LATENCY_AT.map(|share| Pace::PerSecond(share * throughput)));
    }

    #[test]
    fn a_wire_that_takes_nothing_ends_every_method() {
        let methods = [
            Method::saturate(&SETTINGS),
            Method::throughput(&SETTINGS),
            Method::latency(&SETTINGS),
            Method::loss_rate(&SETTINGS),
            Method::bursts(),
            Method::ndr_pdr(&SETTINGS),
            Method::ndr_pdr(&MethodSettings { max_rate: Some(1e6), ..SETTINGS }),
        ];
        for mut method in methods {
            lead(&mut method, |_| Measurement { offered: 1e6, arrived: 0.0, loss: 1.0 });
            assert!(method.figures()[0].value == 0.0, "{method:?}");
        }
    }
}
