//! Wires for people: a table, and below it in full words what is not as it should be.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::{State, dropped};
use crate::admin::proto::{End, ListWiresResponse, Origin, Wire};
use crate::text;

/// How the table may look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableStyle {
    /// Columns of the terminal; none: as wide as the contents.
    pub(crate) width: Option<u16>,
    /// Whether colours are wanted.
    pub(crate) colour: bool,
}

impl TableStyle {
    /// What suits standard output.
    pub(crate) fn of_stdout() -> Self {
        let size = ratatui::crossterm::terminal::size().ok();
        // A serial line is a terminal that does not know its size, and says 0.
        let width = size.filter(|(width, _)| *width > 0 && std::io::stdout().is_terminal()).map(|(width, _)| width);
        Self { width, colour: text::colour_wanted() }
    }

    /// An empty table with columns of words and, right of them, columns of numbers.
    pub(crate) fn table(self, words: &[&str], numbers: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if let Some(width) = self.width {
            table.set_width(width);
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let header = words.iter().map(Cell::new).chain(numbers.iter().map(right));
        table.set_header(header.map(|cell| cell.add_attribute(Attribute::Bold)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }
}

/// The table and what there is to say about it.
pub(super) fn render(list: &ListWiresResponse, look: TableStyle) -> String {
    let wires = &list.wires;
    if wires.is_empty() {
        return "no wires; add one with `ferrule wire add`\n".to_owned() + &file_problems(list);
    }
    let mut table = look.table(&["WIRE", "STATE", "END A", "END B"], &["FRAMES A>B", "FRAMES B>A", "BYTES", "DROPS"]);
    for wire in wires {
        let ends = [0, 1].map(|side| wire.ends.get(side).map_or("".into(), |end| text::foreign(&end.description)));
        let frames = [0, 1].map(|way| text::count(wire.directions.get(way).map_or(0, |traffic| traffic.frames)));
        let bytes: u64 = wire.directions.iter().map(|traffic| traffic.bytes).sum();
        let drops: u64 = wire.directions.iter().map(dropped).sum();
        let mut row = vec![Cell::new(text::foreign(&wire.name)), state_cell(State::of(wire))];
        row.extend(ends.map(Cell::new));
        row.extend(frames.into_iter().chain([text::quantity(bytes as f64, "B"), text::count(drops)]).map(right));
        table.add_row(row);
    }
    let mut out = table.trim_fmt() + "\n";
    let remarks: Vec<_> = wires.iter().flat_map(remarks).collect();
    if !remarks.is_empty() {
        out.push('\n');
    }
    for remark in remarks {
        let _ = writeln!(out, "{remark}");
    }
    out + &file_problems(list)
}

/// That the wires are not those of the file, and why.
fn file_problems(list: &ListWiresResponse) -> String {
    if list.file_problems.is_empty() {
        return String::new();
    }
    let head = "\nthe wires file is refused, and the wires before it stay:\n".to_owned();
    list.file_problems.iter().fold(head, |mut out, problem| {
        let _ = writeln!(out, "  {}", text::foreign(problem));
        out
    })
}

/// A number, set to the right.
pub(crate) fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A state in its colour.
pub(crate) fn state_cell(state: State) -> Cell {
    let colour = match state {
        State::Up => Color::Green,
        State::Waiting => Color::Yellow,
        State::Failed => Color::Red,
    };
    Cell::new(state.word()).fg(colour)
}

/// What a person should know of a wire and a table has no room for.
fn remarks(wire: &Wire) -> Vec<String> {
    let ends = ["A", "B"].iter().zip(&wire.ends);
    let ends = ends.filter_map(|(side, end)| {
        let trouble = trouble(wire, end)?;
        Some(format!("end {side}, {}, {trouble}", text::foreign(&end.description)))
    });
    let name = text::foreign(&wire.name);
    // Whoever looks for what is wrong wants to know whether his change has arrived.
    let generation = match wire.generation {
        0 | 1 => String::new(),
        generation => format!(" (generation {generation})"),
    };
    let copied = Some(text::foreign(&wire.copied_because)).filter(|reason| !reason.is_empty());
    let copied = copied.map(|reason| format!("trusted, but its frames are copied: {reason}"));
    let problem = Some(text::foreign(&wire.problem)).filter(|problem| !problem.is_empty());
    let problem = problem.map(|problem| format!("not served, and tried again: {problem}"));
    ends.chain(problem)
        .chain(copied)
        .chain(losses(wire))
        .map(|remark| format!("{name}{generation}: {remark}"))
        .collect()
}

/// What is wrong with an end, if anything, as the rest of a sentence about it.
pub(crate) fn trouble(wire: &Wire, end: &End) -> Option<String> {
    let detail = text::foreign(&end.detail);
    let (what, cause) = match end.state.as_str() {
        "listening" => ("waits for a peer", "the last one was turned away or left"),
        "connecting" => ("has not reached its peer and tries again", "the last try failed"),
        "starting" => ("waits for the driver of its guest", "the peer"),
        "lost" => ("is lost, and is made again as soon as it is back", "the cause"),
        // The forwarder sees to those that outlive it.
        "failed" if wire.persistent || wire.origin() == Origin::File => {
            ("has failed and is tried again every few seconds", "the cause")
        }
        "failed" if wire.origin() == Origin::Mesh => ("has failed until its client asks again", "the cause"),
        // Added once more, it is mended: the other end keeps its peer.
        "failed" => ("has failed; to have it back, add the same wire again", "the cause"),
        _ => return None,
    };
    Some(if detail.is_empty() { what.to_owned() } else { format!("{what}; {cause}: {detail}") })
}

/// Which frames were dropped, and why: a sentence for each direction and reason.
pub(crate) fn losses(wire: &Wire) -> impl Iterator<Item = String> {
    let directions = ["A to B", "B to A"].into_iter().zip(&wire.directions);
    directions.flat_map(|(way, traffic)| {
        traffic.drops.iter().filter(|drop| drop.frames > 0).map(move |drop| {
            let plural = if drop.frames == 1 { "" } else { "s" };
            format!("{} frame{plural} dropped from {way}: {}", text::count(drop.frames), cause(&drop.reason))
        })
    })
}

fn cause(reason: &str) -> Cow<'_, str> {
    match reason {
        "full" => "no room in the target".into(),
        "too_long" => "too long for the target".into(),
        "too_short" => "too short to be a frame".into(),
        "bad_offload" => "an offload header that contradicts the contents".into(),
        "refused" => "refused by the kernel".into(),
        "disabled" => "sent by a ring that its guest has not enabled".into(),
        other => text::foreign(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wires::fixtures;

    const PLAIN: TableStyle = TableStyle { width: None, colour: false };

    fn list(wires: Vec<Wire>) -> ListWiresResponse {
        ListWiresResponse { wires, ..ListWiresResponse::default() }
    }

    #[test]
    fn the_table_shows_each_wire_and_below_it_what_is_wrong() {
        let expected = include_str!("../../tests/fixtures/wires.txt");
        assert_eq!(render(&list(fixtures::wires()), PLAIN), expected);
    }

    #[test]
    fn what_keeps_a_wire_from_being_served_is_said_with_the_generation_that_it_is_of() {
        let mut wires = fixtures::wires();
        (wires[0].problem, wires[0].directions) = ("no worker has room".to_owned(), Vec::new());
        let text = render(&list(wires), PLAIN);
        let expected = "\na-b (generation 3): not served, and tried again: no worker has room\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("\nb-c: end A"), "{text}");
    }

    #[test]
    fn colours_come_only_when_wanted() {
        let coloured = render(&list(fixtures::wires()), TableStyle { width: None, colour: true });
        assert!(coloured.contains("\x1b["), "{coloured}");
        assert!(!render(&list(fixtures::wires()), PLAIN).contains('\x1b'));
    }

    #[test]
    fn the_table_fits_a_narrow_terminal() {
        let narrow = render(&list(fixtures::wires()), TableStyle { width: Some(100), colour: false });
        let table = narrow.split("\n\n").next().unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{narrow}");
    }

    #[test]
    fn no_wires_are_said_in_words() {
        assert_eq!(render(&list(Vec::new()), PLAIN), "no wires; add one with `ferrule wire add`\n");
    }

    #[test]
    fn a_file_that_is_refused_is_told_also_without_wires() {
        let problems = vec!["w.yaml:1:1: wires: a list is wanted".to_owned()];
        let text = render(&ListWiresResponse { file_problems: problems, ..ListWiresResponse::default() }, PLAIN);
        let told =
            "\n\nthe wires file is refused, and the wires before it stay:\n  w.yaml:1:1: wires: a list is wanted\n";
        assert!(text.ends_with(told), "{text}");
    }

    #[test]
    fn a_name_from_outside_cannot_give_orders_to_the_terminal() {
        let mut wires = fixtures::wires();
        wires[2].ends[1].detail = "gone\x1b[2J".to_owned();
        wires[2].ends[0].description = "memif \x07".to_owned();
        let text = render(&list(wires), PLAIN);
        assert!(!text.contains(['\x1b', '\x07']), "{text}");
    }
}
