//! Draws curves as SVG: one panel for each quantity, with all rows of a table.
//!
//! Colours and dashes are classes of page.css, so a panel is legible on a light and on a dark
//! background. A value that is not finite breaks its line.

use maud::{Markup, html};
use std::fmt::Write;

/// Number of styles, each a colour and a dash; further rows repeat them.
pub(crate) const STYLES: usize = 8;

/// One quantity over the images that a generator was trained on.
pub(crate) struct Panel<'a> {
    pub title: &'a str,
    pub y: Range,
    /// Values to draw across the panel, each with its label.
    pub levels: &'a [(f64, String)],
    pub rows: &'a [Row<'a>],
}

/// Range of the vertical axis.
#[derive(Clone, Copy)]
pub(crate) enum Range {
    /// Linear; covers at least this range.
    Fixed(f64, f64),
    /// Covers all values: linear from 0, or logarithmic if the largest is more than
    /// [`DECADES_FROM`] times the smallest.
    Fitted,
}

/// The seeds of one row of a table.
pub(crate) struct Row<'a> {
    /// Label at the right end of its lines.
    pub name: &'a str,
    /// Number of its style, modulo [`STYLES`].
    pub style: usize,
    pub lines: Vec<Line>,
}

pub(crate) struct Line {
    /// Tooltip.
    pub title: String,
    /// (images, value), sorted by images.
    pub points: Vec<(f64, f64)>,
}

/// Ratio of the largest to the smallest value above which a linear axis would hide the small ones.
const DECADES_FROM: f64 = 10.0;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 36.0;
const RIGHT: f64 = 284.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 216.0;
/// Distance of the base lines of two names.
const NAME_PITCH: f64 = 11.0;
/// Upper bound of the width of a level's label.
const LEVEL_WIDTH: f64 = 104.0;
/// Most characters of a name that fit beside the panel.
const NAME_LENGTH: usize = 14;

impl Panel<'_> {
    /// Draws the panel as an `svg` element; `None` if it has no point.
    pub(crate) fn svg(&self) -> Option<Markup> {
        let points = || self.rows.iter().flat_map(|row| &row.lines).flat_map(|line| &line.points);
        let finite = |&&(images, value): &&(f64, f64)| images.is_finite() && value.is_finite();
        let x = Axis::linear(0.0, points().filter(finite).map(|p| p.0).fold(0.0, f64::max));
        let y = self.y.axis(points().filter(finite).map(|p| p.1));
        let place = |&(images, value): &(f64, f64)| {
            Some((LEFT + (RIGHT - LEFT) * x.share(images)?, height(&y, value)?))
        };
        points().find_map(place)?;

        let title = if y.log { format!("{}, logarithmic", self.title) } else { self.title.to_string() };
        let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        let (mut ends, mut all) = (Vec::new(), Vec::new());
        for row in self.rows {
            let placed = |line: &Line| line.points.iter().map(place).collect::<Vec<_>>();
            let lines: Vec<_> = row.lines.iter().map(placed).collect();
            let last: Vec<f64> =
                lines.iter().filter_map(|l| l.iter().flatten().next_back().map(|p| p.1)).collect();
            if !last.is_empty() {
                ends.push((last.iter().sum::<f64>() / last.len() as f64, row));
            }
            all.push(lines);
        }
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let heights = spread(&ends.iter().map(|end| end.0).collect::<Vec<_>>());
        let levels: Vec<(f64, &str)> = self
            .levels
            .iter()
            .filter_map(|(value, text)| Some((height(&y, *value)?, text.as_str())))
            .collect();
        Some(html! {
            svg.chart viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img"
                aria-label={ (title) ", over images, of " (names.join(", ")) } {
                text.name x="0" y="12" { (title) }
                (frame(&x, &y))
                @for (at, _) in &levels { path.level d={ "M" (LEFT) " " (round(*at)) "H" (RIGHT) } {} }
                @for (row, lines) in self.rows.iter().zip(&all) {
                    g class={ "s" (row.style % STYLES) } {
                        @for (line, placed) in row.lines.iter().zip(lines) {
                            @if placed.iter().any(Option::is_some) {
                                g {
                                    title { (line.title) }
                                    path.line d=(path(placed)) {}
                                    path.dots d=(dots(placed)) {}
                                }
                            }
                        }
                    }
                }
                @for (at, text) in &levels {
                    text.meaning x=(round(clear_of(all.iter().flatten(), *at))) y=(round(at + 10.5)) { (text) }
                }
                @for (y, (_, row)) in heights.iter().zip(&ends) {
                    text class={ "end s" (row.style % STYLES) } x=(RIGHT + 5.0) y=(round(y + 3.5)) {
                        (shortened(row.name))
                    }
                }
            }
        })
    }
}

/// Formats a coordinate.
pub(super) fn round(x: f64) -> String {
    format!("{x:.1}")
}

/// Returns the vertical coordinate of `value`.
fn height(y: &Axis, value: f64) -> Option<f64> {
    Some(BOTTOM - (BOTTOM - TOP) * y.share(value)?)
}

/// Draws both axes with their ticks.
fn frame(x: &Axis, y: &Axis) -> Markup {
    html! {
        @for tick in y.ticks() {
            @if let Some(at) = height(y, tick) {
                path.grid d={ "M" (LEFT) " " (round(at)) "H" (RIGHT) } {}
                text class="tick y" x=(LEFT - 5.0) y=(round(at + 3.5)) { (short(tick)) }
            }
        }
        @for tick in x.ticks() {
            @if let Some(at) = x.share(tick).map(|share| LEFT + (RIGHT - LEFT) * share) {
                path.axis d={ "M" (round(at)) " " (BOTTOM) "v4" } {}
                text class="tick x" x=(round(at)) y=(BOTTOM + 15.0) { (short(tick)) }
            }
        }
        text class="tick x" x=((LEFT + RIGHT) / 2.0) y=(HEIGHT - 4.0) { "images" }
        path.axis d={ "M" (LEFT) " " (TOP) "V" (BOTTOM) "H" (RIGHT) } {}
    }
}

impl Range {
    pub(super) fn axis(self, values: impl Iterator<Item = f64>) -> Axis {
        let values: Vec<f64> = values.collect();
        let (low, high) = values.iter().fold((0.0_f64, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
        match self {
            Range::Fixed(from, to) => Axis::linear(low.min(from), high.max(to)),
            Range::Fitted => {
                let smallest = values.iter().copied().filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
                if high / smallest > DECADES_FROM {
                    let (low, high) = ((smallest / 1.2).max(f64::MIN_POSITIVE), (high * 1.2).min(f64::MAX));
                    Axis { low: low.log10(), high: high.log10(), log: true }
                } else {
                    Axis::linear(low, high)
                }
            }
        }
    }
}

/// Draws a piece of a row's line for a legend.
pub(crate) fn swatch(style: usize) -> Markup {
    html! {
        svg.swatch viewBox="0 0 30 10" aria-hidden="true" {
            g class={ "s" (style % STYLES) } { path.line d="M1 5H29" {} }
        }
    }
}

pub(super) struct Axis {
    /// In decades if the axis is logarithmic.
    low: f64,
    high: f64,
    pub log: bool,
}

impl Axis {
    /// Makes a linear axis. It is half a per cent longer, so that no line lies on the edge.
    pub fn linear(low: f64, high: f64) -> Axis {
        let high = if high > low { high } else { low + 1.0 };
        Axis { low, high: high + 0.005 * (high - low), log: false }
    }

    /// Returns the position of `value`, from 0 at the low end to 1 at the high end; `None` if it
    /// lies outside.
    pub fn share(&self, value: f64) -> Option<f64> {
        let value = if self.log { value.log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        (-1e-9..=1.0 + 1e-9).contains(&share).then_some(share)
    }

    /// Returns the values that the axis labels.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return multiples(self.low, self.high, 5.0);
        }
        let powers = |step: f64| {
            let first = (self.low / step).ceil() as i64;
            let last = (self.high / step).floor() as i64;
            (first..=last).map(move |i| i as f64 * step)
        };
        if self.high - self.low >= 2.0 {
            let step = ((self.high - self.low) / 5.0).ceil();
            return powers(step).map(|power| 10f64.powf(power)).collect();
        }
        let inside = |tick: &f64| self.share(*tick).is_some();
        let decades = self.low.floor() as i32..=self.high.floor() as i32;
        decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d))).filter(inside).collect()
    }
}

/// Height of the first line of a plot with one line for each row.
pub(super) const TOP_LINE: f64 = 22.0;
/// Distance of two such lines.
pub(super) const PITCH: f64 = 17.0;

/// Returns the vertical coordinate of the middle of line `i`.
pub(super) fn line_at(i: usize) -> f64 {
    TOP_LINE + PITCH * (i as f64 + 0.5)
}

/// A horizontal axis of a plot with one line for each row.
pub(super) struct Span {
    pub axis: Axis,
    /// Left and right end.
    pub ends: (f64, f64),
}

impl Span {
    /// Returns the horizontal coordinate of `value`; `None` if it lies outside.
    pub fn place(&self, value: f64) -> Option<f64> {
        Some(self.ends.0 + (self.ends.1 - self.ends.0) * self.axis.share(value)?)
    }

    /// Returns the points of `values` on the line at `y`, for [`dots`].
    pub fn row(&self, values: &[f64], y: f64) -> Vec<Option<(f64, f64)>> {
        values.iter().map(|value| Some((self.place(*value)?, y))).collect()
    }

    /// Draws the line at `y`.
    pub fn grid(&self, y: f64) -> Markup {
        html! { path.grid d={ "M" (self.ends.0) " " (round(y)) "H" (self.ends.1) } {} }
    }

    /// Draws the axis at `bottom` with its ticks.
    pub fn ticks(&self, bottom: f64) -> Markup {
        html! {
            path.axis d={ "M" (self.ends.0) " " (round(bottom)) "H" (self.ends.1) } {}
            @for tick in self.axis.ticks() {
                @if let Some(x) = self.place(tick) {
                    path.axis d={ "M" (round(x)) " " (round(bottom)) "v4" } {}
                    text class="tick x" x=(round(x)) y=(round(bottom + 15.0)) { (short(tick)) }
                }
            }
        }
    }
}

/// Returns the multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most about
/// `count`.
fn multiples(low: f64, high: f64, count: f64) -> Vec<f64> {
    let raw = (high - low) / count;
    let power = 10f64.powf(raw.log10().floor());
    if !(power.is_finite() && power > 0.0) {
        return Vec::new();
    }
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Formats a tick: `0.2`, `5`, `20k`, `1.5M`.
fn short(x: f64) -> String {
    let (x, unit) = match x.abs() {
        a if a >= 1e9 => return format!("{x:e}"),
        a if a >= 1e6 => (x / 1e6, "M"),
        a if a >= 1e3 => (x / 1e3, "k"),
        a if a > 0.0 && a < 1e-3 => return format!("{x:.0e}"),
        _ => (x, ""),
    };
    let text = format!("{x:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Returns the path of a line, with a new start after every gap.
fn path(points: &[Option<(f64, f64)>]) -> String {
    let mut out = String::new();
    let mut pen = 'M';
    for point in points {
        match point {
            Some((x, y)) => {
                write!(out, "{pen}{x:.1} {y:.1}").unwrap();
                pen = 'L';
            }
            None => pen = 'M',
        }
    }
    out
}

/// Returns the path of dots: lines of no length, which get round caps.
pub(super) fn dots(points: &[Option<(f64, f64)>]) -> String {
    points.iter().flatten().map(|(x, y)| format!("M{x:.1} {y:.1}h0")).collect()
}

/// Returns the right end of a level's label below the height `at`, at the place where the fewest
/// lines cross it; the rightmost of such places.
fn clear_of<'a>(lines: impl Iterator<Item = &'a Vec<Option<(f64, f64)>>> + Clone, at: f64) -> f64 {
    let crossings = |right: f64| {
        let inside = |(x, y): (f64, f64)| {
            (right - LEVEL_WIDTH..=right).contains(&x) && (at..=at + NAME_PITCH + 1.0).contains(&y)
        };
        let pieces = lines.clone().flat_map(|line| line.windows(2));
        let piece = |piece: &[Option<(f64, f64)>]| {
            let [Some(a), Some(b)] = piece else { return 0 };
            let between = |i: i32| (a.0 + (b.0 - a.0) * i as f64 / 8.0, a.1 + (b.1 - a.1) * i as f64 / 8.0);
            (0..=8).filter(|i| inside(between(*i))).count()
        };
        pieces.map(piece).sum::<usize>()
    };
    let places = (0..).map(|i| RIGHT - 2.0 - 10.0 * i as f64).take_while(|right| right - LEVEL_WIDTH > LEFT);
    places.min_by_key(|right| crossings(*right)).expect("a panel is wider than a text")
}

/// Moves sorted heights apart, as little as possible, so that names at them do not overlap.
fn spread(at: &[f64]) -> Vec<f64> {
    let mut placed = at.to_vec();
    for i in 1..placed.len() {
        placed[i] = placed[i].max(placed[i - 1] + NAME_PITCH);
    }
    let mut limit = BOTTOM;
    for y in placed.iter_mut().rev() {
        *y = y.min(limit);
        limit = *y - NAME_PITCH;
    }
    placed
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_LENGTH {
        return name.to_string();
    }
    name.chars().take(NAME_LENGTH - 1).chain(['…']).collect()
}
