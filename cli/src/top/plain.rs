//! Rates for a pipe or a file: one table per interval.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use super::Readings;
use super::rates::{Rate, WireRates};
use crate::CliError;
use crate::admin::Watch;
use crate::text;
use crate::wires::table::{TableStyle, right, state_cell};

/// Prints `count` tables, or until interrupted.
pub(super) async fn run(mut watch: Watch, count: Option<u64>) -> Result<(), CliError> {
    let mut readings = Readings::default();
    // The first reading only gives the second something to be compared with.
    readings.push(watch.next().await?);
    let mut terminated = signal(SignalKind::terminate())?;
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        tokio::select! {
            reading = watch.next() => readings.push(reading?),
            _ = tokio::signal::ctrl_c() => break,
            _ = terminated.recv() => break,
        }
        let separator = if printed > 0 { "\n" } else { "" };
        let mut stdout = std::io::stdout().lock();
        write!(stdout, "{separator}{}", render(&readings.rates(), TableStyle::of_stdout()))?;
        stdout.flush()?;
        printed += 1;
    }
    Ok(())
}

fn render(wires: &[WireRates], look: TableStyle) -> String {
    if wires.is_empty() {
        return "no wires\n".to_owned();
    }
    let mut table =
        look.table(&["WIRE", "STATE"], &["FRAMES/S A>B", "FRAMES/S B>A", "BITS/S A>B", "BITS/S B>A", "DROPS/S"]);
    for WireRates { wire, state, rates } in wires {
        let each = |what: fn(&Rate) -> f64| {
            [0, 1].map(|way| rates.map_or("-".to_owned(), |rates| text::quantity(what(&rates.directions[way]), "")))
        };
        let [frames_ab, frames_ba] = each(|rate| rate.frames);
        let [bits_ab, bits_ba] = each(|rate| rate.bits);
        let drops = rates.map_or("-".to_owned(), |rates| text::quantity(rates.drops(), ""));
        let mut row = vec![text::foreign(&wire.name).into_owned().into(), state_cell(*state)];
        row.extend([frames_ab, frames_ba, bits_ab, bits_ba, drops].map(right));
        table.add_row(row);
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::rates::Rates;
    use crate::wires::{State, fixtures};

    #[test]
    fn a_table_has_a_line_per_wire_and_a_dash_where_nothing_is_known() {
        let fast = Rate { frames: 14_880_952.0, bits: 7.142_857e9, drops: 3.0 };
        let rates = [Some(Rates { directions: [fast, Rate::default()] }), None];
        let wires: Vec<_> = fixtures::wires()
            .into_iter()
            .zip(rates)
            .map(|(wire, rates)| WireRates { state: State::of(&wire), wire, rates })
            .collect();
        let expected = include_str!("../../tests/fixtures/top.txt");
        assert_eq!(render(&wires, TableStyle { width: None, colour: false }), expected);
        assert_eq!(render(&[], TableStyle { width: None, colour: false }), "no wires\n");
    }
}
