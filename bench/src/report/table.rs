//! For a terminal.

use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};

use super::compare::{Compared, MILLION, Paced, bits, compare, decimals};
use crate::method::Unit;
use crate::session::{CaseResult, Results};
use crate::spread::Spread;

/// One line for each case, figure and program.
pub fn table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "CASE",
        "PROGRAM",
        "FIGURE",
        "MEDIAN",
        "MIN - MAX",
        "Gbit/s",
        "OF LINE",
        "CYCLES",
        "OURS BY IT",
        "MIN - MAX",
    ]);
    for case in &results.cases {
        let mut first = &*case.case.name;
        for compared in compare(case) {
            table.add_row(row(case, &compared, first));
            first = "";
            for line in compared.paced.iter().flat_map(|paced| paced_rows(&compared.entry.program, paced)) {
                table.add_row(line);
            }
        }
        for line in latencies(case) {
            table.add_row(line);
        }
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    // Without a line there is no share of it.
    let has_line = results.cases.iter().any(|case| case.line.is_some());
    if let Some(column) = table.column_mut(LINE_COLUMN).filter(|_| !has_line) {
        column.set_constraint(ColumnConstraint::Hidden);
    }
    table
}

fn row(case: &CaseResult, compared: &Compared<'_>, name: &str) -> [String; 10] {
    let is_rate = compared.unit == Unit::FramesPerSecond;
    let (scale, unit) = if is_rate { (MILLION, "Mpps") } else { (1.0, "frames") };
    let spread = compared.spread.by(scale);
    let decimals = if is_rate { decimals(spread.median) } else { 0 };
    let range = |spread: Spread, decimals: usize| format!("{:.decimals$} - {:.decimals$}", spread.min, spread.max);
    let text = |ratio: Option<Spread>, text: &dyn Fn(Spread) -> String| ratio.map(text).unwrap_or_default();
    [
        name.to_owned(),
        compared.entry.program.clone(),
        format!("{}, {unit}", compared.name),
        format!("{:.decimals$}{}", spread.median, if compared.is_generators { " (generator)" } else { "" }),
        range(spread, decimals),
        if is_rate { format!("{:.1}", bits(compared.spread.median, case) / 1e9) } else { String::new() },
        compared.line_share.map(|share| format!("{:.1}%", share * 100.0)).unwrap_or_default(),
        text(compared.cycles, &|cycles| format!("{:.0}", cycles.median)),
        text(compared.ratio, &|ratio| format!("{:.2}x", ratio.median)),
        text(compared.ratio, &|ratio| range(ratio, 2)),
    ]
}

/// What was offered at a fixed rate, and what became of it.
fn paced_rows(program: &str, paced: &Paced) -> [[String; 10]; 3] {
    let Paced { offered, loss, skipped } = paced;
    let (million, percent) = (MILLION, 0.01);
    [
        ("offered, Mpps", offered, million, decimals(offered.median / million)),
        ("lost, %", loss, percent, 3),
        ("skipped by the generator, %", skipped, percent, 3),
    ]
    .map(|(figure, spread, scale, decimals)| {
        let spread = spread.by(scale);
        let median = format!("{:.decimals$}", spread.median);
        let range = format!("{:.decimals$} - {:.decimals$}", spread.min, spread.max);
        let empty = String::new;
        [empty(), program.to_owned(), figure.to_owned(), median, range, empty(), empty(), empty(), empty(), empty()]
    })
}

/// Of each program the percentiles at its highest paced load, if latency was noted.
fn latencies(case: &CaseResult) -> Vec<[String; 10]> {
    let mut lines = Vec::new();
    for entry in &case.entries {
        let Some((load, latency)) = entry.latencies().pop() else { continue };
        let micros = |share| latency.quantile(share).as_secs_f64() * 1e6;
        let text = format!("{:.1} / {:.1} / {:.1}", micros(0.5), micros(0.99), micros(0.999));
        let by = if latency.by_nic() > 0 { ", stamped by the NIC" } else { "" };
        let figure = format!("us at {load}{by}");
        let empty = String::new;
        let what = "p50 / p99 / p99.9".to_owned();
        lines.push([empty(), entry.program.clone(), figure, text, what, empty(), empty(), empty(), empty(), empty()]);
    }
    lines
}

/// The place of what a figure is of the line.
const LINE_COLUMN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Figure;
    use crate::report::tests::results;

    #[test]
    fn rates_spreads_cycles_ratios_and_latencies_are_shown() {
        let text = table(&results(&[64, 1518])).to_string();
        for part in ["memif-memif 64 B one way", "31.25", "28.12 - 34.38", "16.0", "2.00x", "us at", "77"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("(generator)") && !text.contains("OF LINE"));
    }

    #[test]
    fn on_ports_a_rate_is_shown_as_a_part_of_the_line_too() {
        let mut results = results(&[64]);
        results.cases[0].line = Some(25e9);
        let text = table(&results).to_string();
        // 31.25 of 35.51 million frames of 68 bytes with FCS.
        for part in ["OF LINE", "88.0%", "44.0%"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn at_a_fixed_rate_what_was_offered_lost_and_skipped_is_shown() {
        let mut results = results(&[64]);
        for round in results.cases[0].entries.iter_mut().flat_map(|entry| &mut entry.rounds) {
            round.trials.retain(|trial| trial.wanted.is_some());
            round.trials[0].skipped = 0.02;
        }
        let text = table(&results).to_string();
        for part in ["offered, Mpps", "15.62", "lost, %", "1.000", "skipped by the generator, %", "2.000"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_generator_that_never_waits_is_called_the_limit() {
        let mut results = results(&[64]);
        for trial in results.cases[0].entries.iter_mut().flat_map(|entry| &mut entry.rounds).flat_map(|r| &mut r.trials)
        {
            trial.idle = 0.01;
        }
        assert!(table(&results).to_string().contains("31.25 (generator)"));
    }

    #[test]
    fn a_search_that_the_generator_ended_says_so() {
        let mut results = results(&[64]);
        for round in results.cases[0].entries.iter_mut().flat_map(|entry| &mut entry.rounds) {
            round.figures[0] = Figure { name: "throughput", is_generators: true, ..round.figures[0].clone() };
        }
        assert!(table(&results).to_string().contains("31.25 (generator)"));
    }
}
