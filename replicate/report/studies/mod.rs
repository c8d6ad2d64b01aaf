//! The page's section "What decides collapse": the measurements of each study, along the training as
//! well, and one sentence of verdict on them.

mod chart;

use crate::judge::differences::{COVERAGE, difference};
use crate::judge::golden::{Comparison, Score, values};
use crate::judge::sample::{Sample, plain};
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::curves::{Curve, figure};
use crate::report::table::{Cell, Column, Content, Row, Table};
use crate::report::tables::{Measured, Metrics, metric_name};
use crate::text::and;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// A study, or results that differ in one setting.
#[derive(Clone, Default)]
pub struct Study {
    pub id: String,
    pub question: String,
    /// Metric that answers the question.
    pub answer: String,
    /// Cells in the study's order.
    pub cells: Vec<Part>,
    /// Command that runs the missing cells.
    pub command: String,
}

/// One row at one value.
#[derive(Clone)]
pub struct Part {
    /// The row, with its other overrides.
    pub row: String,
    /// Setting and value, such as `critic_lr 1e-4`.
    pub value: String,
    /// Name of the cell in scores.
    pub cell: String,
    /// One curve for each trained seed.
    pub curves: Vec<Curve>,
}

impl Study {
    fn rows(&self) -> impl Iterator<Item = &[Part]> {
        self.cells.chunk_by(|a, b| a.row == b.row)
    }

    /// Returns the cells that were measured.
    fn done<'a>(&'a self, scores: &[Score], scale: &str) -> Vec<&'a Part> {
        let measured = |part: &&Part| !values(scores, &part.cell, scale, "fd").is_empty();
        self.cells.iter().filter(measured).collect()
    }
}

/// Makes the table of a study, with one row for each cell.
pub fn table(study: &Study, measured: Measured) -> Table {
    const METRICS: &Metrics = &[("fd", 2), ("recall", 3), ("classes", 2), ("halfway_fd", 2)];
    let name = ["row", "value"].map(|name| Column::new(name, name, Content::Text));
    let row = |part: &Part| {
        let name = [&part.row, &part.value].map(Cell::text);
        let cells = name.into_iter().chain(measured.cells(&part.cell, METRICS)).collect();
        Row { id: part.cell.clone(), cells, ..Row::default() }
    };
    Table {
        name: format!("Study {}", study.id),
        title: study.question.clone(),
        columns: name.into_iter().chain(measured.columns(METRICS)).collect(),
        rows: study.cells.iter().map(row).collect(),
        notes: vec![verdict(study, measured)],
    }
}

/// Returns one sentence with the best and the worst value of each row, their difference, and the
/// values at which runs collapsed.
pub fn verdict(study: &Study, measured: Measured) -> String {
    let (scores, scale) = (measured.scores, measured.scale);
    let sentences: Vec<String> =
        study.rows().filter_map(|parts| of_row(parts, &study.answer, scores, scale)).collect();
    match sentences.is_empty() {
        true => {
            format!("No two values of study {} have been measured in one row at scale {scale}.", study.id)
        }
        false => sentences.join("; ") + ".",
    }
}

fn of_row(parts: &[Part], metric: &str, scores: &[Score], scale: &str) -> Option<String> {
    let of = |part: &Part| {
        let found = values(scores, &part.cell, scale, metric);
        (!found.is_empty()).then(|| Sample::of(found.into_values()))
    };
    let mut all: Vec<(&Part, Sample)> = parts.iter().filter_map(|part| Some((part, of(part)?))).collect();
    all.sort_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
    let [least, .., most] = all.as_slice() else { return None };
    let gap = difference(metric, &most.0.cell, &least.0.cell, scores, scale)?;
    let apart = match gap.half {
        None => format!("{} apart on one seed, which decides nothing", plain(gap.mean)),
        Some(half) => format!(
            "{} apart [{}, {}], {}",
            plain(gap.mean),
            plain(gap.mean - half),
            plain(gap.mean + half),
            match (gap.tells(), gap.paired) {
                (true, true) => format!("more than chance ({:.0} %, paired)", 100.0 * COVERAGE),
                (true, false) => format!("more than chance ({:.0} %, Welch)", 100.0 * COVERAGE),
                (false, _) => "which may be chance".to_string(),
            }
        ),
    };
    let collapsed: Vec<String> = parts
        .iter()
        .filter_map(|part| {
            let states = values(scores, &part.cell, scale, "collapse");
            let n = states.values().filter(|state| **state == COLLAPSED).count();
            (n > 0).then(|| format!("{} ({n} of {})", part.value, states.len()))
        })
        .collect();
    let collapsed = match collapsed.as_slice() {
        [] => "no run meets the criterion of collapse".to_string(),
        all => format!("the criterion of collapse is met with {}", and(all)),
    };
    Some(format!(
        "{}: {} is {} with {} and {} with {}, {apart}; {collapsed}",
        parts[0].row,
        metric_name(metric, scale),
        least.1,
        least.0.value,
        most.1,
        most.0.value
    ))
}

/// All studies of a scale, with what was measured of their cells.
#[derive(Clone, Default)]
pub struct Studies {
    pub all: Vec<Study>,
    pub scores: Vec<Score>,
    pub comparisons: Vec<Comparison>,
    /// As [`Measured::unlearned`], by cell.
    pub unlearned: BTreeSet<(String, u64)>,
}

impl Studies {
    /// Returns the measurements at a scale, for tables.
    pub fn measured<'a>(&'a self, scale: &'a str) -> Measured<'a> {
        Measured { scale, scores: &self.scores, comparisons: &self.comparisons, unlearned: &self.unlearned }
    }

    /// Returns the studies in which a row has measurements of two or more values.
    pub(crate) fn started(&self, scale: &str) -> Vec<&Study> {
        let compares = |study: &&Study| {
            study.done(&self.scores, scale).chunk_by(|a, b| a.row == b.row).any(|parts| parts.len() > 1)
        };
        self.all.iter().filter(compares).collect()
    }
}

/// Makes the section of the page; `None` if no study has anything to compare yet.
pub(crate) fn section(
    studies: &Studies,
    scale: &str,
    mut table_html: impl FnMut(&Table) -> Markup,
) -> Option<Markup> {
    let (measured, started) = (studies.measured(scale), studies.started(scale));
    (!started.is_empty()).then(|| {
        html! {
            @for study in started {
                @let table = table(study, measured);
                h3 id={ "study-" (study.id) } { (study.id) }
                p { (study.question) " " b { (verdict(study, measured)) } " " code { (study.command) } }
                @if let Some(chart) = chart::values(study, measured) { figure.curves { (chart) } }
                details { summary { "In numbers" } (table_html(&Table { notes: Vec::new(), ..table })) }
                @if let Some(along) = along(study, measured.scale) { details { summary { "Along the training" } (along) } }
            }
        }
    })
}

/// Draws the curves of all seeds over the images of the training.
fn along(study: &Study, scale: &str) -> Option<Markup> {
    let curves: Vec<&Curve> = study.cells.iter().flat_map(|part| &part.curves).collect();
    let rows: Vec<&str> = study.cells.iter().map(|part| part.cell.as_str()).collect();
    figure("", &rows, &curves, scale).map(|(figure, _)| figure)
}
