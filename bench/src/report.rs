//! What was measured, for a terminal, for programs and for a browser.

mod compare;
mod data;
mod html;
mod plot;
mod table;

use std::fs;
use std::path::Path;

use crate::error::BenchError;
use crate::plan::Plan;
use crate::session::Results;

/// Prints the table and writes the files.
pub fn publish(plan: &Plan, results: &Results) -> Result<(), BenchError> {
    println!("{}", table::table(results));
    if let Some(folder) = plan.report.parent() {
        fs::create_dir_all(folder)?;
    }
    let write = |extension: &str, text: String| {
        let file = plan.report.with_extension(extension);
        fs::write(&file, text)?;
        Ok::<_, std::io::Error>(file)
    };
    let figures = write("json", data::figures(results)?)?;
    let details = write("details.json", data::details(results)?)?;
    let page = write("html", html::page(results))?;
    let shown = [figures, details, page].map(|file| Path::display(&file).to_string());
    eprintln!("written: {}", shown.join(", "));
    if results.notes.is_empty() { Ok(()) } else { Err(BenchError::Incomplete(results.notes.join("\n"))) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::compare::{bits, compare};
    use crate::case::{Case, EndKind, TrafficDirection};
    use crate::latency::Latency;
    use crate::load::Mix;
    use crate::machine::Machine;
    use crate::method::{Figure, Measurement, Unit};
    use crate::session::{CaseResult, ProgramInfo, ProgramResult, Results, Round, TrialResult};

    /// Results of two programs in one case for each size: ours at twice the rate of theirs.
    pub(crate) fn results(sizes: &[usize]) -> Results {
        let trial = |rate: f64, wanted| {
            let mut latency = Latency::new();
            (1..2000).for_each(|ticks| latency.note(ticks * 100));
            TrialResult {
                wanted,
                seen: Measurement { offered: rate, arrived: rate * 0.99, loss: 0.01 },
                skipped: 0.0,
                idle: 0.3,
                cycles: Some(2.4e9 / rate),
                disorder: 0,
                missed: 0,
                latency: Some(latency),
            }
        };
        let round = |rate: f64| Round {
            figures: vec![
                Figure { name: "rate", unit: Unit::FramesPerSecond, value: rate, is_generators: false },
                Figure { name: "loss", unit: Unit::Share, value: 0.01, is_generators: false },
            ],
            trials: vec![trial(rate, None), trial(rate / 2.0, Some(rate / 2.0))],
        };
        let entry = |program: &str, rate: f64| ProgramResult {
            program: program.to_owned(),
            rounds: [0.9, 1.0, 1.1].map(|drift| round(rate * drift)).into(),
        };
        let case = |&size: &usize| CaseResult {
            case: Case::new([EndKind::Memif; 2], false, Mix::new([size]).unwrap(), TrafficDirection::Forward),
            line: None,
            entries: vec![entry("ferrule", 2e9 / size as f64), entry("peer <3>", 1e9 / size as f64)],
        };
        Results {
            machine: Machine {
                cpu: "Some <CPU>".to_owned(),
                cpus: 2,
                tsc_mhz: 2400.0,
                virtualised: Some("QEMU".to_owned()),
                governor: "performance".to_owned(),
                isolated: "none".to_owned(),
                memory_mib: 1024,
                kernel: "6.1".to_owned(),
                system: "Debian".to_owned(),
                worker_cpus: vec![0],
                generator_cpus: vec![1],
                command: "ferrule bench".to_owned(),
                revision: Some("abc".to_owned()),
                date: "2026-01-01T00:00:00Z".to_owned(),
            },
            method: "as fast as the wire takes it".to_owned(),
            programs: ["ferrule", "peer <3>"]
                .map(|name| ProgramInfo {
                    name: name.to_owned(),
                    ends: "memif-memif".to_owned(),
                    version: "1".to_owned(),
                    commands: vec![format!("{name} --run")],
                    agreements: vec!["memif".to_owned()],
                    warnings: Vec::new(),
                    ports: Vec::new(),
                })
                .into(),
            cases: sizes.iter().map(case).collect(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn each_program_is_compared_with_ours_round_by_round() {
        let results = results(&[64]);
        let compared = compare(&results.cases[0]);
        assert_eq!(compared.len(), 2, "a share is no figure to compare by");
        assert!(compared[0].ratio.is_none());
        let ratio = compared[1].ratio.unwrap();
        assert!((ratio.min - 2.0).abs() < 1e-9 && (ratio.max - 2.0).abs() < 1e-9);
        assert!((compared[0].spread.median - 2e9 / 64.0).abs() < 1.0);
        assert!((bits(1e6, &results.cases[0]) - 512e6).abs() < 1.0);
    }
}
