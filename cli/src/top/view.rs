//! What the screen of `ferrule top` shows, as data and as widgets; it neither reads keys nor waits.

use std::cmp::Ordering;
use std::collections::HashMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState, Wrap};

use super::rates::{Rate, Rates, WireRates};
use crate::text;
use crate::wires::State;
use crate::wires::table::{losses, trouble};

/// The wires in the wanted order, and which of them is looked at closely.
pub(super) struct View {
    /// Where the numbers come from, for the title.
    source: String,
    colour: bool,
    wires: Vec<WireRates>,
    /// CPU and load of each worker.
    loads: Vec<(u32, f64)>,
    sort: Sort,
    /// A name, because orders change between two readings.
    selected: Option<String>,
    /// Bits per second of each wire, the latest first.
    history: HashMap<String, Vec<f64>>,
}

impl View {
    pub(super) fn new(source: String, colour: bool) -> Self {
        Self {
            source,
            colour,
            wires: Vec::new(),
            loads: Vec::new(),
            sort: Sort::Name,
            selected: None,
            history: HashMap::new(),
        }
    }

    /// Takes the next rates.
    pub(super) fn update(&mut self, wires: Vec<WireRates>, loads: Vec<(u32, f64)>) {
        self.loads = loads;
        let mut old = std::mem::take(&mut self.history);
        for wire in &wires {
            let mut history = old.remove(&wire.wire.name).unwrap_or_default();
            history.insert(0, wire.rates.map_or(0.0, |rates| rates.bits()));
            history.truncate(HISTORY_MAX);
            self.history.insert(wire.wire.name.clone(), history);
        }
        self.wires = wires;
        self.arrange();
    }

    /// Sorts by the next column.
    pub(super) fn sort_next(&mut self) {
        self.sort = self.sort.next();
        self.arrange();
    }

    /// Moves the selection down, or up if negative.
    pub(super) fn select(&mut self, by: isize) {
        let last = self.wires.len().saturating_sub(1);
        let to = self.selected_index().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = self.wires.get(to).map(|wire| wire.wire.name.clone());
    }

    /// Paints everything.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let details = self.details();
        let words_height = height(&details, frame.area().width.saturating_sub(2));
        // Two lines of border, five of graph; a short screen keeps the table.
        let details_height = (words_height + 7).min(frame.area().height / 2);
        let rows =
            [Constraint::Length(1), Constraint::Min(3), Constraint::Length(details_height), Constraint::Length(1)];
        let [title, table, below, keys] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.title(), title);
        let mut state = TableState::new().with_selected(self.selected_index());
        frame.render_stateful_widget(self.table(), table, &mut state);
        self.draw_details(frame, below, details);
        let keys_text = format!(" q quit   s sort (by {})   up/down select", self.sort.word());
        frame.render_widget(Line::from(keys_text).dim(), keys);
    }

    fn arrange(&mut self) {
        let sort = self.sort;
        self.wires.sort_by(|a, b| sort.compare(a, b).then_with(|| text::natural_order(&a.wire.name, &b.wire.name)));
        if self.selected_index().is_none() {
            self.selected = self.wires.first().map(|wire| wire.wire.name.clone());
        }
    }

    fn selected_index(&self) -> Option<usize> {
        let selected = self.selected.as_deref()?;
        self.wires.iter().position(|wire| wire.wire.name == selected)
    }

    fn title(&self) -> Line<'static> {
        let of = |state: State| self.wires.iter().filter(|wire| wire.state == state).count();
        let sum = |what: fn(&Rates) -> f64| self.wires.iter().filter_map(|wire| wire.rates.as_ref()).map(what).sum();
        let rates =
            format!("{}  {}", text::quantity(sum(Rates::frames), "frame/s"), text::quantity(sum(Rates::bits), "b/s"));
        let mut spans = vec![" ferrule top ".bold(), Span::raw(format!(" {}   ", self.source))];
        for state in [State::Up, State::Waiting, State::Failed] {
            let count = of(state);
            let style = if count > 0 { self.state_style(state) } else { Style::new() };
            spans.push(Span::styled(format!("{count} {}  ", state.word()), style));
        }
        spans.push(Span::raw(format!(" {rates} ")));
        spans.extend(self.loads.iter().map(|(cpu, load)| Span::raw(format!("  CPU {cpu} {:.0} %", load * 100.0))));
        Line::from(spans)
    }

    fn table(&self) -> Table<'_> {
        let number = |text: String| Cell::from(Text::from(text).right_aligned());
        let header = ["FRAMES/S A>B", "FRAMES/S B>A", "BITS/S A>B", "BITS/S B>A", "DROPS/S"];
        let header = [Cell::from("WIRE"), Cell::from("STATE")]
            .into_iter()
            .chain(header.map(|name| number(name.to_owned())))
            .collect::<Row<'_>>()
            .style(Style::new().bold());
        let rows = self.wires.iter().map(|WireRates { wire, state, rates }| {
            let show = |number: Option<f64>| number.map_or("-".to_owned(), |number| text::quantity(number, ""));
            let each = |what: fn(&Rate) -> f64| [0, 1].map(|way| show(rates.map(|rates| what(&rates.directions[way]))));
            let drops = rates.map(|rates| rates.drops());
            let losing = self.colour && drops.is_some_and(|drops| drops > 0.0);
            let drops = number(show(drops)).style(if losing { Style::new().fg(Color::Red) } else { Style::new() });
            [Cell::from(text::foreign(&wire.name)), Cell::from(state.word()).style(self.state_style(*state))]
                .into_iter()
                .chain(each(|rate| rate.frames).map(number))
                .chain(each(|rate| rate.bits).map(number))
                .chain([drops])
                .collect::<Row<'_>>()
        });
        let widths =
            [Constraint::Min(12), Constraint::Length(7)].into_iter().chain([12, 12, 10, 10, 8].map(Constraint::Length));
        Table::new(rows, widths).header(header).row_highlight_style(Modifier::REVERSED).block(Block::new())
    }

    fn details(&self) -> Vec<Line<'_>> {
        let Some(wire) = self.selected_index().map(|index| &self.wires[index].wire) else {
            return vec![Line::from("no wires; add one with `ferrule wire add`")];
        };
        let ends = ["A", "B"].iter().zip(&wire.ends).map(|(side, end)| {
            let peer = text::foreign(&end.detail);
            let state = match trouble(wire, end) {
                Some(trouble) => trouble,
                None if end.state == "connected" && !peer.is_empty() => format!("connected with {peer}"),
                None => text::foreign(&end.state).into_owned(),
            };
            format!("end {side}, {}, {state}", text::foreign(&end.description))
        });
        ends.chain(losses(wire)).map(Line::from).collect()
    }

    fn draw_details(&self, frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
        let name = self.selected.as_deref().map(text::foreign).unwrap_or_default();
        let block = Block::bordered().title(format!(" {name} ")).title_bottom(" bits per second, newest left ");
        let inside = block.inner(area);
        frame.render_widget(block, area);
        let rows = [Constraint::Length(height(&lines, inside.width)), Constraint::Fill(1)];
        let [words, graph] = Layout::vertical(rows).areas(inside);
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), words);
        let history = self.selected.as_ref().and_then(|name| self.history.get(name));
        let style = if self.colour { Style::new().fg(Color::Cyan) } else { Style::new() };
        frame.render_widget(
            Sparkline::default().data(history.into_iter().flatten().map(|&bits| whole(bits))).style(style),
            graph,
        );
    }

    fn state_style(&self, state: State) -> Style {
        if !self.colour {
            return Style::new();
        }
        Style::new().fg(match state {
            State::Up => Color::Green,
            State::Waiting => Color::Yellow,
            State::Failed => Color::Red,
        })
    }
}

/// Rows that the lines fill when wrapped. Wrapping at words can need a row more than wrapping at letters.
fn height(lines: &[Line<'_>], width: u16) -> u16 {
    let rows = |line: &Line<'_>| match line.width().div_ceil(usize::from(width).max(1)) {
        0 | 1 => 1,
        rows => rows + 1,
    };
    lines.iter().map(rows).sum::<usize>().min(usize::from(u16::MAX / 2)) as u16
}

/// The graph takes whole numbers only; rates are never negative.
#[expect(clippy::cast_sign_loss, reason = "a float becomes the nearest number that there is, 0 at least")]
fn whole(rate: f64) -> u64 {
    rate as u64
}

/// The order of the wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Name,
    Frames,
    Bits,
    Drops,
    /// What needs a look first.
    State,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Frames,
            Self::Frames => Self::Bits,
            Self::Bits => Self::Drops,
            Self::Drops => Self::State,
            Self::State => Self::Name,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Frames => "frames",
            Self::Bits => "bits",
            Self::Drops => "drops",
            Self::State => "state",
        }
    }

    /// The largest first; names as they come.
    fn compare(self, a: &WireRates, b: &WireRates) -> Ordering {
        let largest = |what: fn(&Rates) -> f64| {
            let [a, b] = [a, b].map(|wire| wire.rates.as_ref().map_or(-1.0, what));
            b.total_cmp(&a)
        };
        match self {
            Self::Name => Ordering::Equal,
            Self::Frames => largest(Rates::frames),
            Self::Bits => largest(Rates::bits),
            Self::Drops => largest(Rates::drops),
            Self::State => a.state.cmp(&b.state),
        }
    }
}

/// Columns of the widest graph.
const HISTORY_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::wires::fixtures;

    fn rates(frames: f64) -> Rates {
        let rate = Rate { frames, bits: frames * 512.0, drops: 0.0 };
        Rates { directions: [rate, Rate::default()] }
    }

    fn view() -> View {
        let mut view = View::new("/run/ferrule/admin.sock".to_owned(), false);
        let rates = [Some(rates(10.0)), None, Some(rates(14_880_952.0))];
        let wires = fixtures::wires().into_iter().zip(rates);
        view.update(
            wires.map(|(wire, rates)| WireRates { state: State::of(&wire), wire, rates }).collect(),
            vec![(3, 0.421)],
        );
        view
    }

    fn painted(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn names(view: &View) -> Vec<&str> {
        view.wires.iter().map(|wire| wire.wire.name.as_str()).collect()
    }

    #[test]
    fn the_screen_shows_wires_totals_and_the_selected_wire_in_words() {
        let screen = painted(&view(), 120, 24);
        for part in [
            "1 up",
            "1 waiting",
            "1 failed",
            "14.9 Mframe/s",
            "CPU 3 42 %",
            "7.62 G",
            "12 frames dropped from A to B",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part} is missing:\n{screen}");
        }
    }

    #[test]
    fn sorting_goes_round_and_the_selection_stays_with_its_wire() {
        let mut view = view();
        view.select(1);
        assert_eq!((names(&view), view.selected.as_deref()), (vec!["a-b", "b-c", "c-d"], Some("b-c")));
        view.sort_next();
        assert_eq!((names(&view), view.selected.as_deref()), (vec!["c-d", "a-b", "b-c"], Some("b-c")));
        (0..3).for_each(|_| view.sort_next());
        assert_eq!(names(&view), ["c-d", "b-c", "a-b"], "by state");
        view.sort_next();
        assert_eq!(names(&view), ["a-b", "b-c", "c-d"]);
    }

    #[test]
    fn the_selection_stops_at_the_ends_and_leaves_a_wire_that_is_gone() {
        let mut view = view();
        view.select(-1);
        assert_eq!(view.selected.as_deref(), Some("a-b"));
        view.select(9);
        assert_eq!(view.selected.as_deref(), Some("c-d"));
        let left = view.wires[..1].to_vec();
        view.update(left, Vec::new());
        assert_eq!((view.selected.as_deref(), view.history.len()), (Some("a-b"), 1));
        view.update(Vec::new(), Vec::new());
        view.select(1);
        assert_eq!(view.selected, None);
        assert!(painted(&view, 80, 24).contains("no wires"));
    }

    #[test]
    fn no_size_of_the_terminal_is_too_small() {
        for (width, height) in [(1, 1), (10, 3), (80, 5), (20, 50), (300, 80)] {
            painted(&view(), width, height);
        }
    }
}
