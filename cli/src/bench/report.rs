//! What was measured, as a table and as data.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The frames per second of one case: for each contender, those of each round.
pub struct Measured {
    /// The work.
    pub case: &'static str,
    /// By contender, then by round. The first contender is ours.
    pub rates: Vec<Vec<f64>>,
}

impl Measured {
    /// Our rate by a contender's, round by round, so that what slows a round down slows both.
    fn ratios(&self, contender: usize) -> Spread {
        let pairs = self.rates[0].iter().zip(&self.rates[contender]);
        Spread::of(pairs.map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// The middle and the extremes of some figures.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    /// Of at least one figure.
    fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let (first, last) = (figures[0], figures[figures.len() - 1]);
        Self { min: first, median: figures[figures.len() / 2], max: last }
    }
}

/// The machine that a figure belongs to.
#[derive(Debug, Serialize)]
pub struct Environment {
    cpu: String,
    mhz: f64,
    kernel: String,
    worker_cpu: usize,
    generator_cpu: usize,
    command: String,
}

impl Environment {
    /// As the kernel tells it.
    pub fn read(worker_cpu: usize, generator_cpu: usize) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim()).to_owned()
        };
        Self {
            cpu: field("model name"),
            mhz: field("cpu MHz").parse().unwrap_or(0.0),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            worker_cpu,
            generator_cpu,
            command: std::env::args().collect::<Vec<_>>().join(" "),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, mhz, kernel, worker_cpu, generator_cpu, .. } = self;
        write!(f, "{cpu}, {mhz:.0} MHz, Linux {kernel}; worker on CPU {worker_cpu}, generator on CPU {generator_cpu}")
    }
}

/// One line for each case and contender.
pub fn table(names: &[String], cases: &[Measured]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["CASE", "PROGRAM", "Mpps", "MIN - MAX", "FERRULE BY IT", "MIN - MAX"]);
    for case in cases {
        for (number, name) in names.iter().enumerate() {
            let rate = Spread::of(case.rates[number].clone());
            let range = |spread: Spread, by: f64| format!("{:.2} - {:.2}", spread.min / by, spread.max / by);
            let ratio = case.ratios(number);
            let (times, spread) =
                if number == 0 { Default::default() } else { (format!("{:.2}x", ratio.median), range(ratio, 1.0)) };
            let first = if number == 0 { case.case } else { "" };
            let rate_text = format!("{:.2}", rate.median / MILLION);
            table.add_row([first, name, &rate_text, &range(rate, MILLION), &times, &spread]);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Writes the figures as data: the environment, and a list of `{case, ours_mpps, peer, peer_mpps, ratio, ours_cycles}`.
pub fn write(file: &Path, environment: &Environment, names: &[String], cases: &[Measured]) -> io::Result<()> {
    let mut figures = Vec::new();
    for case in cases {
        let ours = Spread::of(case.rates[0].clone());
        // Without a peer there is one entry, about ours alone.
        for (number, name) in names.iter().enumerate().skip(usize::from(names.len() > 1)) {
            let peer = (number > 0).then(|| (name, Spread::of(case.rates[number].clone()), case.ratios(number)));
            figures.push(Figure {
                case: case.case,
                ours_mpps: ours.median / MILLION,
                ours_cycles: environment.mhz * MILLION / ours.median,
                peer: peer.map(|(name, ..)| name),
                peer_mpps: peer.map(|(_, rate, _)| rate.median / MILLION),
                ratio: peer.map(|(.., ratio)| ratio.median),
                ratio_spread: peer.map(|(.., ratio)| ratio),
            });
        }
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let report = Report { environment, figures };
    fs::write(file, serde_json::to_string_pretty(&report).map_err(io::Error::other)?)
}

#[derive(Serialize)]
struct Report<'a> {
    environment: &'a Environment,
    figures: Vec<Figure<'a>>,
}

#[derive(Serialize)]
struct Figure<'a> {
    case: &'a str,
    ours_mpps: f64,
    /// Cycles of the worker's CPU for each frame, if the CPU ran at the rate the kernel names.
    ours_cycles: f64,
    peer: Option<&'a String>,
    peer_mpps: Option<f64>,
    ratio: Option<f64>,
    ratio_spread: Option<Spread>,
}

const MILLION: f64 = 1e6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_and_not_of_the_rates() {
        // A machine that was twice as slow in the second round.
        let measured = Measured { case: "x", rates: vec![vec![10e6, 5e6, 12e6], vec![5e6, 2.5e6, 4e6]] };
        let ratios = measured.ratios(1);
        assert!((ratios.median - 2.0).abs() < 1e-9);
        assert!((ratios.max - 3.0).abs() < 1e-9);
        let text = table(&["ferrule".to_owned(), "peer".to_owned()], &[measured]).to_string();
        assert!(text.contains("2.00x") && text.contains("10.00"), "{text}");
    }
}
