//! Programs beside ours, figure by figure.

use crate::case::line_rate;
use crate::method::Unit;
use crate::session::{CaseResult, ProgramResult, Round, TrialResult};
use crate::spread::Spread;

/// One figure of one program in one case, by rounds, beside the same of ours.
pub struct Compared<'a> {
    /// What the figure is called.
    pub name: &'static str,
    pub unit: Unit,
    pub entry: &'a ProgramResult,
    pub spread: Spread,
    /// CPU cycles for each frame.
    pub cycles: Option<Spread>,
    /// The generator was the limit: the figure is a lower bound.
    pub is_generators: bool,
    /// What was offered at a fixed rate, and what became of it; none: not every trial had a pace.
    pub paced: Option<Paced>,
    /// Ours by theirs; none: it is ours, or theirs is 0.
    pub ratio: Option<Spread>,
    /// Of what the ports' line carries; none: there is no line, or it is no rate.
    pub line_share: Option<f64>,
}

/// Trials at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub struct Paced {
    /// Frames offered in a second.
    pub offered: Spread,
    /// Of those, the share that did not arrive.
    pub loss: Spread,
    /// Of the frames that were due, the share that the generator itself was too late for.
    pub skipped: Spread,
}

impl Paced {
    fn of(entry: &ProgramResult) -> Option<Self> {
        let trials = || entry.rounds.iter().flat_map(|round| &round.trials);
        if trials().any(|trial| trial.wanted.is_none()) {
            return None;
        }
        let spread = |of: fn(&TrialResult) -> f64| Spread::of(trials().map(of));
        Some(Self {
            offered: spread(|trial| trial.seen.offered)?,
            loss: spread(|trial| trial.seen.loss)?,
            skipped: spread(|trial| trial.skipped)?,
        })
    }
}

/// Every figure of a case that programs are compared by: for each figure our entry, and then the others.
pub fn compare(case: &CaseResult) -> Vec<Compared<'_>> {
    let Some(ours) = case.entries.first() else { return Vec::new() };
    let Some(round) = ours.rounds.first() else { return Vec::new() };
    let mut compared = Vec::new();
    for (at, figure) in round.figures.iter().enumerate().filter(|(_, figure)| figure.unit != Unit::Share) {
        for (number, entry) in case.entries.iter().enumerate() {
            let Some(spread) = Spread::of(values(entry, at)) else { continue };
            let ratio = (number > 0).then(|| Spread::of_ratios(&values(ours, at), &values(entry, at))).flatten();
            compared.push(Compared {
                name: figure.name,
                unit: figure.unit,
                entry,
                spread,
                cycles: Spread::of(of_trials(entry, |trial| trial.cycles)),
                is_generators: is_generators(entry, at, figure.name),
                paced: if figure.name == SATURATED { Paced::of(entry) } else { None },
                ratio,
                line_share: frames_of_line(case)
                    .filter(|_| figure.unit == Unit::FramesPerSecond)
                    .map(|line| spread.median / line),
            });
        }
    }
    compared
}

/// Whether the generator was the limit: in most rounds it could not make more, or it never waited.
fn is_generators(entry: &ProgramResult, figure: usize, name: &str) -> bool {
    let of_generator = |round: &&Round| round.figures.get(figure).is_some_and(|figure| figure.is_generators);
    let idle = || Spread::of(of_trials(entry, TrialResult::unpaced_idle));
    2 * entry.rounds.iter().filter(of_generator).count() > entry.rounds.len()
        || (name == SATURATED && idle().is_some_and(|idle| idle.median < IDLE_MIN))
}

fn values(entry: &ProgramResult, figure: usize) -> Vec<f64> {
    entry.rounds.iter().filter_map(|round| round.figures.get(figure)).map(|figure| figure.value).collect()
}

/// Something of every trial that was not paced, as it means the most there; of every trial, if all were.
fn of_trials(entry: &ProgramResult, of: impl Fn(&TrialResult) -> Option<f64>) -> Vec<f64> {
    let trials = || entry.rounds.iter().flat_map(|round| &round.trials);
    let free: Vec<_> = trials().filter(|trial| trial.wanted.is_none()).filter_map(&of).collect();
    if free.is_empty() { trials().filter_map(of).collect() } else { free }
}

/// Frames in a second that the ports' line carries, in all directions that the case has.
pub fn frames_of_line(case: &CaseResult) -> Option<f64> {
    case.line.map(|line| line_rate(line, case.case.mix.average()) * case.case.directions())
}

/// Bits of frames in a second, without FCS, preamble and gap.
pub fn bits(frames_per_second: f64, case: &CaseResult) -> f64 {
    frames_per_second * case.case.mix.average() * 8.0
}

/// Digits behind the point of a rate in millions of frames a second: a slow wire is not shown as 0.
pub fn decimals(millions: f64) -> usize {
    match millions {
        ..0.001 => 6,
        ..0.1 => 4,
        _ => 2,
    }
}

pub const MILLION: f64 = 1e6;
/// The figure of trials that may have no pace: only these can be the generator's own limit.
const SATURATED: &str = "rate";
/// A generator that has less to do than this is the limit itself.
const IDLE_MIN: f64 = 0.05;
