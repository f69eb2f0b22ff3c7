//! For programs.
//!
//! Two files: a flat list of figures, one entry for each case and peer, and everything that is known, trial by trial.

use std::io;

use serde::Serialize;

use super::compare::{Compared, MILLION, compare, frames_of_line};
use crate::machine::Machine;
use crate::method::Unit;
use crate::session::{CaseResult, PortCounters, ProgramResult, Results, TrialResult};
use crate::spread::Spread;

/// The list of `{case, ours_mpps, peer, peer_mpps, ratio, ours_cycles}`, and spreads.
pub fn figures(results: &Results) -> io::Result<String> {
    text(&results.cases.iter().flat_map(entries).collect::<Vec<_>>())
}

/// Everything.
pub fn details(results: &Results) -> io::Result<String> {
    let programs = results.programs.iter().map(|program| ProgramJson {
        name: &program.name,
        ends: &program.ends,
        version: &program.version,
        commands: &program.commands,
        agreements: &program.agreements,
        warnings: &program.warnings,
        ports: &program.ports,
    });
    let cases = results.cases.iter().map(|case| CaseJson {
        name: &case.case.name,
        sizes: case.case.mix.sizes(),
        fcs: case.case.fcs,
        line_bps: case.line,
        line_pps: frames_of_line(case),
        programs: case.entries.iter().map(entry).collect(),
    });
    let (machine, method, notes) = (&results.machine, &*results.method, &*results.notes);
    text(&DetailsJson { machine, method, notes, programs: programs.collect(), cases: cases.collect() })
}

fn text(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n")
}

/// One line of the list: ours beside one peer.
#[derive(Serialize)]
struct FigureJson<'a> {
    case: &'a str,
    /// What is compared: `rate`, `throughput`, `NDR`, `PDR`, `burst`.
    figure: &'static str,
    ours: &'a str,
    ours_mpps: Option<f64>,
    ours_frames: Option<f64>,
    ours_spread: Spread,
    /// CPU cycles of the program for each frame: its CPU time by the scheduler, at the rate of the TSC.
    ours_cycles: Option<f64>,
    ours_cycles_spread: Option<Spread>,
    /// The generator waited in less than a twentieth of the time, or did not make a rate that a search tried: it was the
    /// limit.
    ours_limited_by_generator: bool,
    /// On ports: the share of what the line carries.
    ours_line_share: Option<f64>,
    /// At a fixed rate: what was offered, the share of it that was lost, and the share of what was due that the generator
    /// was too late for.
    ours_offered_mpps: Option<f64>,
    ours_loss: Option<f64>,
    ours_skipped: Option<f64>,
    peer: Option<&'a str>,
    peer_mpps: Option<f64>,
    peer_frames: Option<f64>,
    peer_spread: Option<Spread>,
    peer_cycles: Option<f64>,
    peer_offered_mpps: Option<f64>,
    peer_loss: Option<f64>,
    peer_skipped: Option<f64>,
    /// Of the settings of this peer's program that were tried, this one was the fastest in this case.
    peer_best: bool,
    ratio: Option<f64>,
    ratio_spread: Option<Spread>,
}

fn entries(case: &CaseResult) -> Vec<FigureJson<'_>> {
    let compared = compare(case);
    let mut lines = Vec::new();
    let mut ours = None;
    for (at, peer) in compared.iter().enumerate() {
        if peer.entry.program == case.entries[0].program {
            ours = Some(at);
            // Without a peer there is one entry, about ours alone.
            if case.entries.len() > 1 {
                continue;
            }
        }
        let Some(ours) = ours.map(|at| &compared[at]) else { continue };
        let peer = (peer.entry.program != ours.entry.program).then_some(peer);
        lines.push(line(case, ours, peer, &compared));
    }
    lines
}

fn line<'a>(
    case: &'a CaseResult,
    ours: &Compared<'a>,
    peer: Option<&Compared<'a>>,
    all: &[Compared<'a>],
) -> FigureJson<'a> {
    let rate =
        |compared: &Compared<'_>| (compared.unit == Unit::FramesPerSecond).then_some(compared.spread.median / MILLION);
    let frames = |compared: &Compared<'_>| (compared.unit == Unit::Frames).then_some(compared.spread.median);
    let offered = |compared: &Compared<'_>| compared.paced.map(|paced| paced.offered.median / MILLION);
    let loss = |compared: &Compared<'_>| compared.paced.map(|paced| paced.loss.median);
    let skipped = |compared: &Compared<'_>| compared.paced.map(|paced| paced.skipped.median);
    let scale = if ours.unit == Unit::FramesPerSecond { MILLION } else { 1.0 };
    let family = |compared: &Compared<'_>| compared.entry.program.split(' ').next().unwrap_or_default().to_owned();
    let best = peer.is_some_and(|peer| {
        let rivals = all.iter().filter(|other| other.name == peer.name && family(other) == family(peer));
        rivals
            .filter(|other| other.entry.program != ours.entry.program)
            .all(|other| other.spread.median <= peer.spread.median)
    });
    FigureJson {
        case: &case.case.name,
        figure: ours.name,
        ours: &ours.entry.program,
        ours_mpps: rate(ours),
        ours_frames: frames(ours),
        ours_spread: ours.spread.by(scale),
        ours_cycles: ours.cycles.map(|cycles| cycles.median),
        ours_cycles_spread: ours.cycles,
        ours_limited_by_generator: ours.is_generators,
        ours_line_share: ours.line_share,
        ours_offered_mpps: offered(ours),
        ours_loss: loss(ours),
        ours_skipped: skipped(ours),
        peer: peer.map(|peer| &*peer.entry.program),
        peer_mpps: peer.and_then(rate),
        peer_frames: peer.and_then(frames),
        peer_spread: peer.map(|peer| peer.spread.by(scale)),
        peer_cycles: peer.and_then(|peer| peer.cycles).map(|cycles| cycles.median),
        peer_offered_mpps: peer.and_then(offered),
        peer_loss: peer.and_then(loss),
        peer_skipped: peer.and_then(skipped),
        peer_best: best,
        ratio: peer.and_then(|peer| peer.ratio).map(|ratio| ratio.median),
        ratio_spread: peer.and_then(|peer| peer.ratio),
    }
}

#[derive(Serialize)]
struct DetailsJson<'a> {
    machine: &'a Machine,
    method: &'a str,
    notes: &'a [String],
    programs: Vec<ProgramJson<'a>>,
    cases: Vec<CaseJson<'a>>,
}

#[derive(Serialize)]
struct ProgramJson<'a> {
    name: &'a str,
    ends: &'a str,
    version: &'a str,
    commands: &'a [String],
    agreements: &'a [String],
    warnings: &'a [String],
    ports: &'a [PortCounters],
}

#[derive(Serialize)]
struct CaseJson<'a> {
    name: &'a str,
    /// Without FCS, which has so many bytes more on ports.
    sizes: &'a [usize],
    fcs: usize,
    /// What the ports' line carries, and how many of these frames that is in all directions together.
    line_bps: Option<f64>,
    line_pps: Option<f64>,
    programs: Vec<MeasurementsJson<'a>>,
}

#[derive(Serialize)]
struct MeasurementsJson<'a> {
    program: &'a str,
    rounds: Vec<Vec<TrialJson>>,
    latency: Vec<LatencyJson>,
}

#[derive(Serialize)]
struct TrialJson {
    wanted_pps: Option<f64>,
    offered_pps: f64,
    arrived_pps: f64,
    loss: f64,
    skipped: f64,
    generator_idle: f64,
    cycles: Option<f64>,
    disorder: u64,
    missed: u64,
}

/// Of all rounds at one load, in microseconds.
#[derive(Serialize)]
struct LatencyJson {
    load: String,
    frames: u64,
    /// Of them, those whose NIC has said when they arrived.
    by_nic: u64,
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    p9999: f64,
    max: f64,
}

fn entry(entry: &ProgramResult) -> MeasurementsJson<'_> {
    let trials = |round: &crate::session::Round| round.trials.iter().map(trial).collect();
    let latency = |(load, latency): (String, crate::latency::Latency)| {
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let quantile = |share| micros(latency.quantile(share));
        LatencyJson {
            load,
            frames: latency.count(),
            by_nic: latency.by_nic(),
            min: micros(latency.min()),
            mean: micros(latency.mean()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            p9999: quantile(0.9999),
            max: micros(latency.max()),
        }
    };
    MeasurementsJson {
        program: &entry.program,
        rounds: entry.rounds.iter().map(trials).collect(),
        latency: entry.latencies().into_iter().map(latency).collect(),
    }
}

fn trial(tried: &TrialResult) -> TrialJson {
    TrialJson {
        wanted_pps: tried.wanted,
        offered_pps: tried.seen.offered,
        arrived_pps: tried.seen.arrived,
        loss: tried.seen.loss,
        skipped: tried.skipped,
        generator_idle: tried.idle,
        cycles: tried.cycles,
        disorder: tried.disorder,
        missed: tried.missed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::results;
    use serde_json::Value;

    #[test]
    fn the_figures_are_a_list_with_an_entry_for_each_case_and_peer() {
        let list: Value = serde_json::from_str(&figures(&results(&[64, 1518])).unwrap()).unwrap();
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 2);
        let entry = &list[0];
        assert_eq!((&entry["case"], &entry["peer"]), (&"memif-memif 64 B one way".into(), &"peer <3>".into()));
        for (key, value) in [("ours_mpps", 31.25), ("peer_mpps", 15.625), ("ratio", 2.0), ("ours_cycles", 76.8)] {
            assert!((entry[key].as_f64().unwrap() - value).abs() < 1e-6, "{key}: {}", entry[key]);
        }
        assert_eq!(entry["peer_best"], Value::Bool(true));
    }

    #[test]
    fn at_a_fixed_rate_what_was_offered_lost_and_skipped_is_told() {
        let mut results = results(&[64]);
        for round in results.cases[0].entries.iter_mut().flat_map(|entry| &mut entry.rounds) {
            round.trials.retain(|trial| trial.wanted.is_some());
            round.trials[0].skipped = 0.02;
        }
        let list: Value = serde_json::from_str(&figures(&results).unwrap()).unwrap();
        for (key, value) in
            [("ours_offered_mpps", 15.625), ("peer_offered_mpps", 7.8125), ("ours_loss", 0.01), ("peer_skipped", 0.02)]
        {
            assert!((list[0][key].as_f64().unwrap() - value).abs() < 1e-6, "{key}: {}", list[0][key]);
        }
    }

    #[test]
    fn on_ports_the_line_is_told() {
        let mut results = results(&[60]);
        results.cases[0].line = Some(10e9);
        let list: Value = serde_json::from_str(&figures(&results).unwrap()).unwrap();
        let all: Value = serde_json::from_str(&details(&results).unwrap()).unwrap();
        let line = all["cases"][0]["line_pps"].as_f64().unwrap();
        assert!((line / 14_880_952.0 - 1.0).abs() < 1e-6, "{line}");
        let share = list[0]["ours_line_share"].as_f64().unwrap() * line / 1e6;
        assert!((share - list[0]["ours_mpps"].as_f64().unwrap()).abs() < 1e-9);
    }

    #[test]
    fn without_a_peer_there_is_one_entry_about_ours() {
        let mut results = results(&[64]);
        results.cases[0].entries.truncate(1);
        let list: Value = serde_json::from_str(&figures(&results).unwrap()).unwrap();
        assert_eq!((list.as_array().unwrap().len(), &list[0]["peer"]), (1, &Value::Null));
    }

    #[test]
    fn the_details_hold_machine_programs_and_trials() {
        let all: Value = serde_json::from_str(&details(&results(&[64])).unwrap()).unwrap();
        assert_eq!(all["machine"]["cpu"], "Some <CPU>");
        assert_eq!(all["programs"][1]["commands"][0], "peer <3> --run");
        assert_eq!(all["cases"][0]["programs"][0]["rounds"].as_array().unwrap().len(), 3);
        assert_eq!(all["cases"][0]["programs"][0]["latency"][0]["frames"], 3 * 1999);
    }
}
