//! Training curves of the page: interim scores of each run's generator.

pub use crate::experiment::run::CurvePoint;
use crate::measure::evaluate::TARGETS;
use crate::measure::metrics::modes::{
    COLLAPSED_CLASSES, COLLAPSED_RECALL, DEGRADED_CLASSES, DEGRADED_RECALL,
};
use crate::report::chart::{Line, Panel, Range, Row as Lines, STYLES, swatch};
use crate::report::table::{Cell, Column, Content, Row, Table};
use crate::report::tables::metric_names;
use crate::text::thousands;
use maud::{Markup, html};

/// Interim scores of one run.
#[derive(Clone)]
pub struct Curve {
    /// The id of a row of a table.
    pub row: String,
    pub label: String,
    pub seed: u64,
    /// Sorted by images; the first is the initialisation, at 0 images.
    pub points: Vec<CurvePoint>,
}

/// True if the point meets both conditions of "collapsed".
pub(crate) fn collapsed(point: &CurvePoint) -> bool {
    point.recall < COLLAPSED_RECALL && point.classes < COLLAPSED_CLASSES * TARGETS as f64
}

fn finite(point: &CurvePoint) -> bool {
    [point.fd, point.recall, point.classes].into_iter().all(f64::is_finite)
}

/// The curves of one row. Neither the list nor a curve is empty.
struct Seeds<'a> {
    row: &'a str,
    curves: Vec<&'a Curve>,
}

/// Draws FD, recall and effective classes over images for the `rows` that have curves, and makes a
/// table of them; `None` if no row has a curve.
pub(crate) fn figure(title: &str, rows: &[&str], curves: &[&Curve], scale: &str) -> Option<(Markup, Table)> {
    let of = |row: &str| curves.iter().filter(|curve| curve.row == row).copied().collect();
    let mut rows: Vec<Seeds> = rows.iter().map(|row| Seeds { row, curves: of(row) }).collect();
    rows.retain(|seeds| !seeds.curves.is_empty());
    if rows.is_empty() {
        return None;
    }
    let fd = metric_names(scale).0;
    let levels = |collapsed: f64, degraded: f64, digits: usize| {
        [("collapsed", collapsed), ("degraded", degraded)]
            .map(|(name, bound)| (bound, format!("{name}: below {bound:.digits$}")))
    };
    let targets = TARGETS as f64;
    let recall = levels(COLLAPSED_RECALL, DEGRADED_RECALL, 2);
    let classes = levels(COLLAPSED_CLASSES * targets, DEGRADED_CLASSES * targets, 1);
    let panels = [
        panel(fd, Range::Fitted, &[], &rows, |point| point.fd),
        panel("Recall", Range::Fixed(0.0, 1.0), &recall, &rows, |point| point.recall),
        panel("Effective classes", Range::Fixed(0.0, targets), &classes, &rows, |point| point.classes),
    ];
    let panels: Vec<Markup> = panels.into_iter().flatten().collect();
    let gaps = rows.iter().flat_map(|seeds| &seeds.curves).flat_map(|c| &c.points).any(|p| !finite(p));
    let caption = format!(
        "One line for each seed, over the images that the generator was trained on; the first point is the \
         initialisation. A row's state in the tables is decided on its final samples, not on these points.{}{}",
        if gaps { " A gap is a value that is not a finite number." } else { "" },
        if rows.len() > STYLES { " Colours repeat: a line's name stands at its end." } else { "" },
    );
    let figure = html! {
        h3 { (title) }
        figure.curves {
            @if panels.is_empty() {
                p { "No point of these curves is a finite number." }
            } @else {
                div.panels { @for panel in &panels { (panel) } }
                ul.legend {
                    @for (style, seeds) in rows.iter().enumerate() {
                        li { (swatch(style)) " " (seeds.curves[0].label) " " code { (seeds.row) } }
                    }
                }
            }
            figcaption { (caption) }
        }
    };
    Some((figure, in_numbers(title, fd, &rows)))
}

fn panel(
    title: &str,
    y: Range,
    levels: &[(f64, String)],
    rows: &[Seeds],
    value: impl Fn(&CurvePoint) -> f64,
) -> Option<Markup> {
    let line = |curve: &&Curve| Line {
        title: format!("{}, seed {}", curve.row, curve.seed),
        points: curve.points.iter().map(|point| (point.images as f64, value(point))).collect(),
    };
    let lines = |seeds: &Seeds| seeds.curves.iter().map(line).collect();
    let rows: Vec<Lines> = rows
        .iter()
        .enumerate()
        .map(|(style, seeds)| Lines { name: seeds.row, style, lines: lines(seeds) })
        .collect();
    Panel { title, y, levels, rows: &rows }.svg()
}

/// Returns the number of images from which on every point of `curve` lies below both bounds.
fn below_since(curve: &Curve) -> Option<u64> {
    curve.points.iter().rev().take_while(|point| collapsed(point)).last().map(|point| point.images)
}

fn since(images: u64) -> String {
    if images == 0 { "from the start".to_string() } else { format!("from {} images", thousands(images)) }
}

/// Makes a table of the curves, for readers who cannot see the charts.
fn in_numbers(title: &str, fd: &str, rows: &[Seeds]) -> Table {
    let number = |title: String, key| Column::new(title, key, Content::Number);
    let columns = vec![
        Column::new("row", "row", Content::Text),
        number("seed".into(), "seed"),
        number(format!("first {fd}"), "first"),
        number(format!("lowest {fd}"), "lowest"),
        number("at images".into(), "at"),
        number(format!("last {fd}"), "last"),
        number("last recall".into(), "recall"),
        number("last classes".into(), "classes"),
        Column::new("below both bounds", "below", Content::Text),
    ];
    let rows = rows.iter().flat_map(|seeds| &seeds.curves).map(|curve| {
        let (first, last) = (&curve.points[0], &curve.points[curve.points.len() - 1]);
        let finite = curve.points.iter().filter(|point| point.fd.is_finite());
        let lowest = finite.min_by(|a, b| a.fd.total_cmp(&b.fd));
        let cells = vec![
            Cell::text(&curve.row),
            Cell::text(curve.seed.to_string()),
            Cell::Number(first.fd, 2),
            lowest.map_or(Cell::Nothing, |point| Cell::Number(point.fd, 2)),
            lowest.map_or(Cell::Nothing, |point| Cell::text(thousands(point.images))),
            Cell::Number(last.fd, 2),
            Cell::Number(last.recall, 3),
            Cell::Number(last.classes, 2),
            Cell::text(below_since(curve).map_or("not at the end".to_string(), since)),
        ];
        Row { cells, ..Row::default() }
    });
    Table {
        name: format!("{title}: the curves in numbers"),
        columns,
        rows: rows.collect(),
        ..Table::default()
    }
}
