//! For a browser: one page that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::compare::{Compared, MILLION, bits, compare, decimals, frames_of_line};
use super::plot::{Axis, Bar, Colour, Point, Series, bars, lines};
use crate::case::line_rate;
use crate::method::Unit;
use crate::session::{CaseResult, PortCounters, ProgramInfo, ProgramResult, Results, TrialResult};
use crate::spread::Spread;

/// The page.
pub fn page(results: &Results) -> String {
    let machine = &results.machine;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Ferrule bench, " (machine.date) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { "Ferrule bench" }
                p.soft { (machine.date) " \u{b7} " (machine.cpu) " \u{b7} " (results.method) }
                @for note in &results.notes { p.note { "Not in this report: " (note) } }
                h2 { "Results" }
                (summary(results))
                (side_by_side(results))
                (by_size(results))
                (latency(results))
                (loss(results))
                h2 { "Where and how" }
                (environment(results))
                (programs(results))
                (trials(results))
            }
        }
    }
    .into_string()
}

fn summary(results: &Results) -> Markup {
    let columns = Columns {
        ratio: results.cases.iter().any(|case| case.entries.len() > 1),
        line: results.cases.iter().any(|case| case.line.is_some()),
    };
    html! {
        div.wide { table {
            tr {
                th { "Case" } th { "Program" } th { "Figure" } th.n { "Median" } th { "Range" } th.n { "Gbit/s" }
                @if columns.line { th.n { "Of the line" } }
                th.n { "Cycles a frame" }
                @if columns.ratio { th.n { "Ours by it" } th { "Range" } }
            }
            @for case in &results.cases {
                @for (number, compared) in compare(case).iter().enumerate() { (summary_row(case, number, compared, columns)) }
            }
        } }
        p.soft {
            "Medians of the rounds, and the range from the smallest to the largest. Gbit/s are bits of frames without FCS, \
            preamble and gap. Cycles are the program's CPU time at the rate of the TSC, by the frames that arrived. "
            @if columns.line { "Of the line: of all frames of that size that the line of the ports carries, each with FCS and 20 bytes of preamble and gap. " }
            @if columns.ratio { "A ratio is that of a round, in which every program has its turn; the median of those is shown. " }
        }
    }
}

/// Columns that not every report has.
#[derive(Clone, Copy)]
struct Columns {
    /// Ours by others.
    ratio: bool,
    /// Of what a line carries.
    line: bool,
}

fn summary_row(case: &CaseResult, number: usize, compared: &Compared<'_>, columns: Columns) -> Markup {
    let is_rate = compared.unit == Unit::FramesPerSecond;
    let (scale, unit) = if is_rate { (MILLION, "Mpps") } else { (1.0, "frames") };
    let spread = compared.spread.by(scale);
    let decimals = if is_rate { decimals(spread.median) } else { 0 };
    let range =
        |spread: Spread, decimals: usize| format!("{:.decimals$} \u{2013} {:.decimals$}", spread.min, spread.max);
    html! {
        tr.first[number == 0] {
            td.case { @if number == 0 { (case.case.name) } }
            td.program { (compared.entry.program) }
            td { (compared.name) }
            td.n {
                (format!("{:.decimals$} {unit}", spread.median))
                @if compared.is_generators {
                    br; span.bad title="It had nothing to wait for in more than 95 % of the time, or did not make a rate that was tried." { "generator's limit" }
                }
            }
            td.range { (range(spread, decimals)) }
            td.n { @if is_rate { (format!("{:.1}", bits(compared.spread.median, case) / 1e9)) } }
            @if columns.line { td.n { @if let Some(share) = compared.line_share { (format!("{:.1} %", share * 100.0)) } } }
            td.n { @if let Some(cycles) = compared.cycles { (format!("{:.0}", cycles.median)) } }
            @if columns.ratio {
                td.n.ratio {
                    @if let Some(ratio) = compared.ratio {
                        span class=(if ratio.median >= 1.0 { "good" } else { "bad" }) { (format!("{:.2}\u{d7}", ratio.median)) }
                    }
                }
                td.range { @if let Some(ratio) = compared.ratio { (range(ratio, 2)) } }
            }
        }
    }
}

/// Bars for every case, figure and program.
fn side_by_side(results: &Results) -> Markup {
    let mut rates = Vec::new();
    let mut frames = Vec::new();
    for case in &results.cases {
        let compared = compare(case);
        for name in names(&compared) {
            let of_figure: Vec<_> = compared.iter().filter(|one| one.name == name).collect();
            let is_rate = of_figure[0].unit == Unit::FramesPerSecond;
            let title = if name == "rate" { case.case.name.clone() } else { format!("{}: {name}", case.case.name) };
            let line = frames_of_line(case).filter(|_| is_rate).map(|line| line_bar(line / MILLION));
            let group = (title, of_figure.iter().map(|one| bar(results, one)).chain(line).collect());
            if is_rate { rates.push(group) } else { frames.push(group) }
        }
    }
    html! {
        h2 { "Side by side" }
        @for (unit, groups) in [("Mpps", rates), ("frames", frames)] {
            @if !groups.is_empty() {
                figure {
                    (bars("Programs side by side", unit, &groups))
                    figcaption { "Medians; the thin line goes from the slowest round to the fastest." }
                }
            }
        }
    }
}

fn bar(results: &Results, compared: &Compared<'_>) -> Bar {
    let scale = if compared.unit == Unit::FramesPerSecond { MILLION } else { 1.0 };
    let spread = compared.spread.by(scale);
    let decimals = if scale > 1.0 { decimals(spread.median) } else { 0 };
    let ratio = compared.ratio.map(|ratio| format!(" (ours {:.2}\u{d7})", ratio.median)).unwrap_or_default();
    let share = compared.line_share.map(|share| format!(" ({:.1} %)", share * 100.0)).unwrap_or_default();
    Bar {
        name: compared.entry.program.clone(),
        colour: colour(results, &compared.entry.program),
        value: spread.median,
        spread: (spread.min, spread.max),
        note: format!("{:.decimals$}{ratio}{share}", spread.median),
    }
}

/// What the line carries, beside what was measured.
fn line_bar(value: f64) -> Bar {
    Bar {
        name: "line rate".to_owned(),
        colour: Colour::Reference,
        value,
        spread: (value, value),
        note: format!("{value:.0$}", decimals(value)),
    }
}

/// Throughput against size, for every series of cases that has several sizes.
fn by_size(results: &Results) -> Markup {
    let mut series: Vec<&str> = Vec::new();
    for case in &results.cases {
        let is_first = !series.contains(&&*case.case.series);
        let is_line = results.cases.iter().filter(|other| in_series(other, &case.case.series)).count() >= SIZES_MIN;
        if is_first && is_line {
            series.push(&case.case.series);
        }
    }
    html! {
        @if !series.is_empty() {
            h2 { "Throughput against size" }
            @for name in series { h3 { (name) } (size_plot(results, name)) }
        }
    }
}

fn in_series(case: &CaseResult, series: &str) -> bool {
    case.case.series == series && case.case.mix.sizes().len() == 1
}

fn size_plot(results: &Results, name: &str) -> Markup {
    let cases: Vec<_> = results.cases.iter().filter(|case| in_series(case, name)).collect();
    let size = |case: &CaseResult| case.case.shown_size();
    let mut series: Vec<Series> = Vec::new();
    for case in &cases {
        for one in compare(case).iter().filter(|one| one.unit == Unit::FramesPerSecond) {
            let named = if one.name == "rate" {
                one.entry.program.clone()
            } else {
                format!("{} {}", one.entry.program, one.name)
            };
            let spread = one.spread.by(MILLION);
            let point = Point { x: size(case), y: spread.median, spread: Some((spread.min, spread.max)) };
            if let Some(series) = series.iter_mut().find(|series| series.name == named) {
                series.points.push(point);
            } else {
                let colour = colour(results, &one.entry.program);
                series.push(Series { name: named, colour, points: vec![point] });
            }
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    let values = || series.iter().flat_map(|series| &series.points).map(|point| point.y);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let sizes = || cases.iter().map(|case| size(case));
    let (smallest, largest) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
    let references = references(&cases, largest, high);
    let (mut low, mut high) = (low, high * 1.1);
    for (reference, name) in references {
        let steps = (0..=24).map(|step| smallest * (largest / smallest).powf(f64::from(step) / 24.0));
        let points: Vec<_> = steps.map(|x| Point { x, y: reference.frames(x) / MILLION, spread: None }).collect();
        low = points.iter().map(|point| point.y).fold(low, f64::min);
        if reference.is_limit {
            high = points.iter().map(|point| point.y).fold(high, f64::max);
        }
        series.push(Series { name, colour: Colour::Reference, points });
    }
    let has_line = cases.iter().any(|case| case.line.is_some());
    let with_fcs = cases.iter().any(|case| case.case.fcs > 0);
    let label = if with_fcs { "bytes of a frame, with FCS" } else { "bytes of a frame, without FCS" };
    let (x, y) = (Axis::log(label, smallest, largest), Axis::log("Mpps", low, high));
    html! {
        figure {
            (lines(&format!("Throughput against size, {name}"), &x, &y, &series))
            figcaption {
                "Both axes are logarithmic. Dashed: "
                @if has_line { "what the line of the ports carries in all directions that frames go in" }
                @else { "what a line of so many bits a second carries in one direction" }
                ", with FCS, preamble and gap."
            }
        }
    }
}

/// What a line carries.
struct LineCurve {
    bits: f64,
    directions: f64,
    /// Bytes of a size as it is shown that are the FCS.
    fcs: f64,
    /// Nothing goes beyond it.
    is_limit: bool,
}

impl LineCurve {
    fn frames(&self, size: f64) -> f64 {
        line_rate(self.bits, size - self.fcs) * self.directions
    }
}

/// The line of the ports; without one, usual lines that are not much faster than what was measured.
fn references(cases: &[&CaseResult], largest: f64, high: f64) -> Vec<(LineCurve, String)> {
    let fcs = cases.first().map_or(0.0, |case| case.case.fcs as f64);
    let curve = |bits, directions, is_limit| LineCurve { bits, directions, fcs, is_limit };
    if let Some((case, line)) = cases.iter().find_map(|case| Some((case, case.line?))) {
        return vec![(curve(line, case.case.directions(), true), format!("line rate, {} Gbit/s", line / 1e9))];
    }
    let usual = LINES.iter().map(|&(bits, name)| (curve(bits, 1.0, false), name.to_owned()));
    usual.filter(|(line, _)| line.frames(largest) / MILLION < high * 2.0).collect()
}

/// Percentiles, for every case that has them.
fn latency(results: &Results) -> Markup {
    let has = |case: &&CaseResult| case.entries.iter().any(|entry| !entry.latencies().is_empty());
    let cases: Vec<_> = results.cases.iter().filter(has).collect();
    html! {
        @if !cases.is_empty() {
            h2 { "Latency" }
            @for case in cases {
                h3 { (case.case.name) }
                @for place in 0..case.entries.iter().map(|entry| entry.latencies().len()).max().unwrap_or_default() {
                    (latency_plot(results, case, place))
                }
                p.soft {
                    "From just before a burst is written into the near ring until the far ring is seen to have it, so it includes \
                    waiting for a burst of up to 64"
                    @if case.case.fcs > 0 { ", and the way through both ports; " (clock(case)) }
                    ". Percentiles that less than ten frames lie beyond are not drawn."
                }
                (latency_table(case))
            }
        }
    }
}

/// By which clock frames on ports arrived.
fn clock(case: &CaseResult) -> String {
    let latencies = || case.entries.iter().flat_map(ProgramResult::latencies);
    let all: u64 = latencies().map(|(_, latency)| latency.count()).sum();
    match latencies().map(|(_, latency)| latency.by_nic()).sum::<u64>() {
        0 => "by the CPU's clock: software's latency".to_owned(),
        some if some == all => {
            "until the NIC stamped the frame as it arrived, by its own clock, which is compared with the CPU's"
                .to_owned()
        }
        some => format!("of {some} of {all} frames until the NIC stamped them, of the others until they were seen"),
    }
}

/// All programs at one of their loads.
fn latency_plot(results: &Results, case: &CaseResult, place: usize) -> Markup {
    let mut series = Vec::new();
    for entry in &case.entries {
        if let Some((load, latency)) = entry.latencies().into_iter().nth(place) {
            // Beyond this share there are less than ten frames.
            let sure = 1.0 - 10.0 / latency.count().max(10) as f64;
            let points = PERCENTILES.iter().filter(|(share, _)| *share <= sure).map(|&(share, _)| Point {
                x: nines(share),
                y: latency.quantile(share).as_secs_f64() * 1e6,
                spread: None,
            });
            let name = format!("{}, {load}", entry.program);
            series.push(Series { name, colour: colour(results, &entry.program), points: points.collect() });
        }
    }
    let values = || series.iter().flat_map(|series: &Series| &series.points);
    let (low, high) = (values().map(|p| p.y).fold(f64::MAX, f64::min), values().map(|p| p.y).fold(0.0, f64::max));
    let last = values().map(|point| point.x).fold(0.0, f64::max);
    let ticks = PERCENTILES.iter().filter(|(share, text)| !text.is_empty() && nines(*share) <= last + 0.01);
    let x = Axis::with_ticks("percentile", ticks.map(|(share, text)| (nines(*share), (*text).to_owned())).collect());
    let y = Axis::log("microseconds", low, high);
    html! {
        figure {
            (lines(&format!("Latency, {}", case.case.name), &x, &y, &series))
        }
    }
}

fn latency_table(case: &CaseResult) -> Markup {
    html! {
        div.wide { table {
            tr { th { "Program" } th { "Load" } @for name in ["min", "p50", "p90", "p99", "p99.9", "p99.99", "max"] { th.n { (name) } } }
            @for entry in &case.entries { @for (load, latency) in entry.latencies() {
                @let times = [latency.min(), latency.quantile(0.5), latency.quantile(0.9), latency.quantile(0.99),
                    latency.quantile(0.999), latency.quantile(0.9999), latency.max()];
                tr.first {
                    td { (entry.program) } td { (load) }
                    @for time in times { td.n { (format!("{:.1} \u{b5}s", time.as_secs_f64() * 1e6)) } }
                }
            } }
        } }
    }
}

/// Loss against the rate offered, for every case that was tried at several rates.
fn loss(results: &Results) -> Markup {
    let has = |case: &&CaseResult| case.entries.iter().any(|entry| paced(entry).len() >= RATES_MIN);
    let cases: Vec<_> = results.cases.iter().filter(has).collect();
    html! {
        @if !cases.is_empty() {
            h2 { "Loss" }
            @for case in cases { h3 { (case.case.name) } (loss_plot(results, case)) }
        }
    }
}

fn loss_plot(results: &Results, case: &CaseResult) -> Markup {
    let mut series = Vec::new();
    for entry in &case.entries {
        let point =
            |trial: &&TrialResult| Point { x: trial.seen.offered / MILLION, y: trial.seen.loss * 100.0, spread: None };
        let mut points: Vec<_> = paced(entry).iter().map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        series.push(Series { name: entry.program.clone(), colour: colour(results, &entry.program), points });
    }
    let values = || series.iter().flat_map(|series: &Series| &series.points);
    let x = Axis::linear("Mpps offered", values().map(|point| point.x).fold(0.0, f64::max));
    let y = Axis::linear("% lost", values().map(|point| point.y).fold(0.0, f64::max).max(1.0));
    html! {
        figure {
            (lines(&format!("Loss, {}", case.case.name), &x, &y, &series))
            figcaption { "Every trial of every round. A frame that finds no room in the near ring when it is due is lost." }
        }
    }
}

fn paced(entry: &ProgramResult) -> Vec<&TrialResult> {
    let trials = entry.rounds.iter().flat_map(|round| &round.trials);
    trials.filter(|trial| trial.wanted.is_some()).collect()
}

fn environment(results: &Results) -> Markup {
    let machine = &results.machine;
    let virtualised = machine.virtualised.as_deref().unwrap_or("no");
    html! {
        dl {
            dt { "CPU" } dd { (machine.cpu) ", " (machine.cpus) " usable; TSC " (format!("{:.0} MHz", machine.tsc_mhz)) }
            dt { "Virtual machine" } dd { (virtualised) }
            dt { "Pinned" } dd {
                @if machine.worker_cpus.is_empty() { "workers' CPUs unknown" }
                @else { "workers on CPU " (format!("{:?}", machine.worker_cpus)) }
                ", generator on CPU " (format!("{:?}", machine.generator_cpus))
                "; governor " (machine.governor) "; isolated CPUs: " (machine.isolated)
            }
            dt { "System" } dd { (machine.system) ", Linux " (machine.kernel) ", " (machine.memory_mib) " MiB" }
            dt { "Command" } dd { code { (machine.command) } }
            @if let Some(revision) = &machine.revision { dt { "Source" } dd { code { (revision) } } }
            dt { "Method" } dd { (results.method) }
        }
    }
}

fn programs(results: &Results) -> Markup {
    html! {
        h2 { "Programs" }
        @for program in &results.programs {
            h3 { (program.name) ", " (program.ends) }
            p.soft { (program.version) @for agreement in &program.agreements { br; (agreement) } }
            @for warning in &program.warnings { p.note { "Warning: " (warning) } }
            @if !program.ports.is_empty() { (port_counters(program)) }
            @if !program.commands.is_empty() { pre { (program.commands.join("\n")) } }
        }
    }
}

/// What our ports counted, in the end.
fn port_counters(program: &ProgramInfo) -> Markup {
    let counter =
        |port: &PortCounters, name: &str| port.counters.get(name).map(ToString::to_string).unwrap_or_default();
    html! {
        div.wide { table {
            tr { th { "Port of the generator" } @for (_, title) in COUNTERS { th.n { (title) } } }
            @for port in &program.ports {
                tr.first { td { (port.device) } @for (name, _) in COUNTERS { td.n { (counter(port, name)) } } }
            }
        } }
        p.soft { "Since they were opened: every trial, and what was sent before it." }
    }
}

fn trials(results: &Results) -> Markup {
    html! {
        h2 { "Every trial" }
        @for case in &results.cases { @for entry in &case.entries {
            details {
                summary { (case.case.name) ", " (entry.program) }
                div.wide { table {
                    tr { th.n { "Round" } th.n { "Wanted" } th.n { "Offered" } th.n { "Arrived, Mpps" } th.n { "Loss" }
                        th.n { "Skipped" } th.n { "Generator idle" } th.n { "Cycles" } th.n { "Out of order" } @if case.case.fcs > 0 { th.n { "Missed" } } }
                    @for (number, round) in entry.rounds.iter().enumerate() { @for trial in &round.trials { tr {
                        td.n { (number + 1) }
                        td.n { @if let Some(wanted) = trial.wanted { (format!("{:.3}", wanted / MILLION)) } @else { "all" } }
                        td.n { (format!("{:.3}", trial.seen.offered / MILLION)) }
                        td.n { (format!("{:.3}", trial.seen.arrived / MILLION)) }
                        td.n { (format!("{:.4} %", trial.seen.loss * 100.0)) }
                        td.n { (format!("{:.2} %", trial.skipped * 100.0)) }
                        td.n { (format!("{:.0} %", trial.idle * 100.0)) }
                        td.n { @if let Some(cycles) = trial.cycles { (format!("{cycles:.0}")) } }
                        td.n { (trial.disorder) }
                        @if case.case.fcs > 0 { td.n { (trial.missed) } }
                    } } }
                } }
                @if case.case.fcs > 0 {
                    p.soft { "Missed: frames that came to the generator's ports and were dropped there, since it did not take them in time. They count as lost." }
                }
            }
        } }
    }
}

/// The colour of a program is the same on the whole page.
fn colour(results: &Results, program: &str) -> Colour {
    let mut known: Vec<&str> = Vec::new();
    for name in results.cases.iter().flat_map(|case| &case.entries).map(|entry| &*entry.program) {
        if !known.contains(&name) {
            known.push(name);
        }
    }
    Colour::Program(known.iter().position(|name| *name == program).unwrap_or_default())
}

fn names(compared: &[Compared<'_>]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for one in compared {
        if !names.contains(&one.name) {
            names.push(one.name);
        }
    }
    names
}

/// How far a share of frames is to the right on an axis of nines.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// Where latency is looked at, and what of it is written below the axis.
const PERCENTILES: [(f64, &str); 15] = [
    (0.0, "0"),
    (0.25, ""),
    (0.5, "50"),
    (0.75, ""),
    (0.9, "90"),
    (0.95, ""),
    (0.98, ""),
    (0.99, "99"),
    (0.995, ""),
    (0.998, ""),
    (0.999, "99.9"),
    (0.9995, ""),
    (0.9999, "99.99"),
    (0.99995, ""),
    (0.99999, "99.999"),
];
/// What ports count, and what it is called.
const COUNTERS: [(&str, &str); 7] = [
    ("tx_frames", "Sent"),
    ("rx_frames", "Received"),
    ("rx_missed", "Missed"),
    ("rx_no_buffer", "No buffer"),
    ("rx_errors", "Errors received"),
    ("tx_errors", "Errors sent"),
    ("rx_bytes", "Bytes received"),
];
const LINES: [(f64, &str); 4] = [(10e9, "10G line"), (25e9, "25G line"), (40e9, "40G line"), (100e9, "100G line")];
/// Fewer sizes make no curve.
const SIZES_MIN: usize = 3;
const RATES_MIN: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use crate::report::tests::results;

    #[test]
    fn the_page_needs_nothing_from_outside_and_escapes_what_programs_say() {
        let text = page(&results(&[64, 512, 1518]));
        for outside in ["http:", "https:", "<script", "@import", "url(", "<link", "<img", "src="] {
            assert!(!text.contains(outside), "{outside}");
        }
        assert!(text.contains("Some &lt;CPU&gt;") && text.contains("peer &lt;3&gt;") && !text.contains("peer <3>"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn every_plot_is_there_when_there_is_something_to_plot() {
        let text = page(&results(&[64, 512, 1518]));
        for title in ["Side by side", "Throughput against size", "Latency", "Loss", "10G line", "Every trial"] {
            assert!(text.contains(title), "{title}");
        }
        assert!(!page(&results(&[64, 1518])).contains("Throughput against size"), "two sizes make no curve");
    }

    #[test]
    fn on_ports_the_line_rate_is_drawn_and_sizes_are_with_fcs() {
        let mut results = results(&[60, 508, 1514]);
        for case in &mut results.cases {
            (case.line, case.case.fcs) = (Some(25e9), 4);
        }
        let text = page(&results);
        for part in [
            "line rate, 25 Gbit/s",
            "Of the line",
            "bytes of a frame, with FCS",
            "89.6 %",
            "Missed",
            "by the CPU's clock: software's latency",
        ] {
            assert!(text.contains(part), "{part}");
        }
        // A curve, and a bar for each case.
        assert_eq!((text.matches("curve reference").count(), text.matches("bar reference").count()), (1, 3));
        assert!(!text.contains("10G line"));
    }

    #[test]
    fn it_is_said_of_how_many_frames_the_nic_told_when_they_arrived() {
        let mut results = results(&[60]);
        results.cases[0].case.fcs = 4;
        results.cases[0].entries.truncate(1);
        let trials = results.cases[0].entries[0].rounds.iter_mut().flat_map(|round| &mut round.trials);
        for latency in trials.filter_map(|trial| trial.latency.as_mut()) {
            latency.note_by_nic(1000);
        }
        let text = page(&results);
        assert!(text.contains("of 3 of 6000 frames until the NIC stamped them"), "{}", clock(&results.cases[0]));
        let all = results.cases[0].entries[0].rounds.iter_mut().flat_map(|round| &mut round.trials);
        for latency in all.filter_map(|trial| trial.latency.as_mut()) {
            *latency = Latency::new();
            latency.note_by_nic(1000);
        }
        assert!(
            clock(&results.cases[0]).starts_with("until the NIC stamped the frame"),
            "{}",
            clock(&results.cases[0])
        );
    }

    #[test]
    fn what_is_missing_is_said_and_what_is_wrong_with_a_program_too() {
        let mut results = results(&[64]);
        results.notes.push("start ovs: not installed".to_owned());
        results.programs[0].warnings.push("on one CPU".to_owned());
        let text = page(&results);
        assert!(text.contains("Not in this report: start ovs: not installed") && text.contains("Warning: on one CPU"));
    }
}
