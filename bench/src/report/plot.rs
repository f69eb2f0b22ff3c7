//! Plots as SVG whose colours come from the page's style sheet, so that they follow light, dark and print. Plot libraries
//! write colours into their pictures, which is why this is not one of theirs.

use maud::{Markup, html};

/// One direction of a plot.
pub struct Axis {
    label: String,
    scale: Scale,
    min: f64,
    max: f64,
    ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
}

impl Axis {
    /// From 0 to a round number that is not below `max`.
    pub fn linear(label: impl Into<String>, max: f64) -> Self {
        let step = step(max.max(f64::MIN_POSITIVE) / TICKS);
        let count = (max / step).ceil().max(1.0);
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0);
        #[expect(clippy::cast_sign_loss, reason = "clamped, and at most a few")]
        let (count, decimals) = (count as usize, decimals as usize);
        let ticks = (0..=count).map(|tick| tick as f64 * step).map(|at| (at, format!("{at:.decimals$}"))).collect();
        Self { label: label.into(), scale: Scale::Linear, min: 0.0, max: count as f64 * step, ticks }
    }

    /// From a round number at or below `min`, which is positive, to one at or above `max`.
    pub fn log(label: impl Into<String>, min: f64, max: f64) -> Self {
        let (min, max) = (min.max(1e-9), max.max(min.max(1e-9) * 1.5));
        let mut ticks = Vec::new();
        for power in min.log10().floor() as i32..=max.log10().ceil() as i32 {
            ticks.extend([1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        }
        let first = ticks.iter().rposition(|&tick| tick <= min * 1.0001).unwrap_or(0);
        let last = ticks.iter().position(|&tick| tick >= max * 0.9999).unwrap_or(ticks.len() - 1);
        let ticks: Vec<_> = ticks[first..=last].iter().map(|&tick| (tick, short(tick))).collect();
        let (min, max) = (ticks[0].0, ticks[ticks.len() - 1].0);
        Self { label: label.into(), scale: Scale::Log, min, max, ticks }
    }

    /// With these ticks only, the first and the last of which are its ends.
    pub fn with_ticks(label: impl Into<String>, ticks: Vec<(f64, String)>) -> Self {
        let end = |tick: Option<&(f64, String)>| tick.map_or(0.0, |(at, _)| *at);
        let (min, max) = (end(ticks.first()), end(ticks.last()));
        Self { label: label.into(), scale: Scale::Linear, min, max: max.max(min + f64::EPSILON), ticks }
    }

    /// Where a value is between the two ends: 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value.max(self.min) / self.min).ln() / (self.max / self.min).ln(),
        };
        share.clamp(0.0, 1.0)
    }

    fn holds(&self, value: f64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

/// Points that belong together.
pub struct Series {
    /// What they are.
    pub name: String,
    /// Which colour they have.
    pub colour: Colour,
    /// In the order in which they are joined.
    pub points: Vec<Point>,
}

/// Which colour something has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Of a program, by its number; ours is 0.
    Program(usize),
    /// Of what is there to compare with, thin and dashed.
    Reference,
}

impl Colour {
    fn class(self) -> String {
        match self {
            Self::Program(number) => format!("c{}", number % COLOURS),
            Self::Reference => "reference".to_owned(),
        }
    }
}

/// A value at a place, and its spread, if it has one.
#[derive(Clone, Copy)]
pub struct Point {
    /// Place.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Its extremes.
    pub spread: Option<(f64, f64)>,
}

/// Lines through points.
pub fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> Markup {
    let (left, right, top, bottom) = (64.0, WIDTH - NAMES, 14.0, HEIGHT - 46.0);
    let at = |point: (f64, f64)| (left + x.place(point.0) * (right - left), bottom - y.place(point.1) * (bottom - top));
    let labels = spaced_labels(series.iter().map(|series| series.points.last().map(|end| at((end.x, end.y)).1)));
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
            title { (title) }
            @for (value, text) in &y.ticks {
                @let place = at((x.min, *value)).1;
                line.grid x1=(px(left)) x2=(px(right)) y1=(px(place)) y2=(px(place)) {}
                text x=(px(left - 8.0)) y=(px(place + 4.0)) text-anchor="end" { (text) }
            }
            @for (value, text) in &x.ticks {
                @let place = at((*value, y.min)).0;
                line.grid x1=(px(place)) x2=(px(place)) y1=(px(top)) y2=(px(bottom)) {}
                text x=(px(place)) y=(px(bottom + 18.0)) text-anchor="middle" { (text) }
            }
            text.axis x=(px(f64::midpoint(left, right))) y=(px(HEIGHT - 6.0)) text-anchor="middle" { (x.label) }
            text.axis x="14" y=(px(f64::midpoint(top, bottom))) text-anchor="middle"
                transform=(format!("rotate(-90 14 {})", px(f64::midpoint(top, bottom)))) { (y.label) }
            @for (series, label) in series.iter().zip(labels) {
                @let class = series.colour.class();
                @let visible: Vec<_> = series.points.iter().filter(|point| x.holds(point.x) && y.holds(point.y)).collect();
                polyline class={ "curve " (class) } points=(visible.iter().map(|point| {
                    let (x, y) = at((point.x, point.y));
                    format!("{},{}", px(x), px(y))
                }).collect::<Vec<_>>().join(" ")) {}
                @if series.colour != Colour::Reference {
                    @for point in &visible {
                        @let (place, height) = at((point.x, point.y));
                        @if let Some((low, high)) = point.spread {
                            line class={ "whisker " (class) } x1=(px(place)) x2=(px(place))
                                y1=(px(at((point.x, low)).1)) y2=(px(at((point.x, high)).1)) {}
                        }
                        circle class={ "dot " (class) } cx=(px(place)) cy=(px(height)) r="3" {
                            title { (series.name) ": " (short(point.y)) " at " (short(point.x)) }
                        }
                    }
                }
                @if let Some(height) = label {
                    text class={ "name " (class) } x=(px(right + 8.0)) y=(px(height + 4.0)) { (series.name) }
                }
            }
        }
    }
}

/// A bar.
pub struct Bar {
    /// What it is of.
    pub name: String,
    /// Which colour it has.
    pub colour: Colour,
    /// Its length, and the extremes.
    pub value: f64,
    /// Its extremes.
    pub spread: (f64, f64),
    /// What is written behind it.
    pub note: String,
}

/// Bars that lie, in groups with a name each.
pub fn bars(title: &str, unit: &str, groups: &[(String, Vec<Bar>)]) -> Markup {
    let all = || groups.iter().flat_map(|(_, bars)| bars);
    let axis = Axis::linear(unit, all().map(|bar| bar.spread.1.max(bar.value)).fold(0.0, f64::max));
    let (left, right) = (150.0, WIDTH - 120.0);
    let wide = |value: f64| left + axis.place(value) * (right - left);
    let group_height = |bars: &[Bar]| bars.len() as f64 * BAR + GROUP_GAP;
    let bottom = groups.iter().map(|(_, bars)| group_height(bars)).sum::<f64>() + 6.0;
    let mut top = 6.0;
    let mut placed = Vec::new();
    for (name, bars) in groups {
        placed.push((top, name, bars));
        top += group_height(bars);
    }
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", px(bottom + 40.0))) role="img" aria-label=(title) {
            title { (title) }
            @for (value, text) in &axis.ticks {
                line.grid x1=(px(wide(*value))) x2=(px(wide(*value))) y1="0" y2=(px(bottom)) {}
                text x=(px(wide(*value))) y=(px(bottom + 16.0)) text-anchor="middle" { (text) }
            }
            text.axis x=(px(f64::midpoint(left, right))) y=(px(bottom + 34.0)) text-anchor="middle" { (unit) }
            @for (top, name, bars) in placed {
                text.group x="0" y=(px(top + 15.0)) { (name) }
                @for (number, bar) in bars.iter().enumerate() {
                    @let y = top + GROUP_NAME + number as f64 * BAR;
                    @let middle = y + (BAR - 3.0) / 2.0;
                    @let class = bar.colour.class();
                    text x=(px(left - 8.0)) y=(px(middle + 4.0)) text-anchor="end" { (bar.name) }
                    rect class={ "bar " (class) } x=(px(left)) y=(px(y)) height=(px(BAR - 3.0)) rx="2"
                        width=(px((wide(bar.value) - left).max(0.5))) {
                        title { (bar.name) ": " (short(bar.value)) " " (unit) }
                    }
                    line.range x1=(px(wide(bar.spread.0))) x2=(px(wide(bar.spread.1))) y1=(px(middle)) y2=(px(middle)) {}
                    @for end in [bar.spread.0, bar.spread.1] {
                        line.range x1=(px(wide(end))) x2=(px(wide(end))) y1=(px(middle - 3.0)) y2=(px(middle + 3.0)) {}
                    }
                    text x=(px(wide(bar.spread.1.max(bar.value)) + 8.0)) y=(px(middle + 4.0)) { (bar.note) }
                }
            }
        }
    }
}

/// Heights for labels beside the ends of curves: as near to those as their own height allows.
fn spaced_labels(ends: impl Iterator<Item = Option<f64>>) -> Vec<Option<f64>> {
    let ends: Vec<_> = ends.collect();
    let mut order: Vec<_> = (0..ends.len()).filter(|&at| ends[at].is_some()).collect();
    order.sort_by(|&a, &b| ends[a].unwrap_or_default().total_cmp(&ends[b].unwrap_or_default()));
    let mut labels = ends.clone();
    let mut next = f64::MIN;
    for &at in &order {
        let place = ends[at].unwrap_or_default().max(next);
        labels[at] = Some(place);
        next = place + LABEL;
    }
    // What was pushed off the bottom comes back up.
    let mut limit = HEIGHT - 46.0;
    for &at in order.iter().rev() {
        let place = labels[at].unwrap_or_default().min(limit);
        labels[at] = Some(place);
        limit = place - LABEL;
    }
    labels
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= least * 0.9999).unwrap_or(least)
}

/// A number in at most three digits or so.
fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        ..0.01 => format!("{number:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        ..10.0 => format!("{number:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        ..1000.0 => format!("{number:.1}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        ..1e6 => format!("{:.4}", number / 1e3).trim_end_matches('0').trim_end_matches('.').to_owned() + "k",
        _ => format!("{:.4}", number / 1e6).trim_end_matches('0').trim_end_matches('.').to_owned() + "M",
    }
}

/// A place in the picture, to a tenth.
fn px(place: f64) -> String {
    format!("{place:.1}")
}

/// Colours that the style sheet has.
pub const COLOURS: usize = 6;
const WIDTH: f64 = 880.0;
/// Room for the names of curves.
const NAMES: f64 = 190.0;
const HEIGHT: f64 = 380.0;
const TICKS: f64 = 6.0;
const BAR: f64 = 19.0;
const GROUP_NAME: f64 = 22.0;
const GROUP_GAP: f64 = 34.0;
/// Height of a line of text.
const LABEL: f64 = 14.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| &**text).collect()
    }

    #[test]
    fn axes_have_few_round_ticks_and_hold_their_values() {
        assert_eq!(texts(&Axis::linear("", 33.0)), ["0", "10", "20", "30", "40"]);
        assert_eq!(texts(&Axis::linear("", 0.9)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(&Axis::log("", 0.3, 30.0)), ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]);
        for axis in [Axis::linear("", 0.0), Axis::log("", 0.0, 0.0), Axis::with_ticks("", Vec::new())] {
            assert!(axis.max > axis.min && axis.place(f64::MAX).is_finite() && axis.place(0.0).is_finite());
        }
    }

    #[test]
    fn places_are_shares_of_the_axis() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(Axis::linear("", 40.0).place(10.0), 0.25));
        let log = Axis::log("", 1.0, 100.0);
        assert!(near(log.place(10.0), 0.5) && near(log.place(0.0), 0.0) && near(log.place(1e9), 1.0));
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let labels = spaced_labels([Some(100.0), Some(101.0), None, Some(HEIGHT)].into_iter());
        assert_eq!(labels, [Some(100.0), Some(100.0 + LABEL), None, Some(HEIGHT - 46.0)]);
        let crowded = spaced_labels((0..5).map(|_| Some(HEIGHT)));
        assert!(crowded.windows(2).all(|pair| (pair[1].unwrap() - pair[0].unwrap() - LABEL).abs() < 1e-9));
    }

    #[test]
    fn a_plot_has_a_curve_for_each_series_and_escapes_names() {
        let series = |colour| Series {
            name: "a <b>".to_owned(),
            colour,
            points: vec![Point { x: 1.0, y: 2.0, spread: Some((1.0, 3.0)) }, Point { x: 2.0, y: 50.0, spread: None }],
        };
        let (x, y) = (Axis::linear("x", 2.0), Axis::linear("y", 4.0));
        let svg = lines("t", &x, &y, &[series(Colour::Program(0)), series(Colour::Reference)]).into_string();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 1, "a point outside is not drawn, and a reference has none");
        assert!(svg.contains("a &lt;b&gt;") && !svg.contains("NaN"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.0012, 0.5, 12.34, 1518.0, 9000.0, 14_880_952.0].map(short),
            ["0", "0.0012", "0.5", "12.3", "1.518k", "9k", "14.881M"]
        );
    }
}
