//! The two tables and the verdicts as people and programs read them: terminal
//! text, Markdown, CSV, JSON. No tensors, no files, no arithmetic beyond means.

use crate::judge::claims::{ClaimResult, ClaimVerdict};
use crate::judge::golden::{Comparison, Golden, Sample, Score, Status, check, csv_line, seeds, values};
use crate::judge::paper::{Fid, Kind, Row1, Row2};
use crate::measure::metrics::modes::STATES;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A table of results, ready to be rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub title: String,
    /// Of our numbers.
    pub scale: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    /// Footnotes: what a reader must know before comparing the numbers.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// As people read it.
    pub title: String,
    /// Its name in CSV.
    pub key: &'static str,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Aligned left.
    Text,
    /// Aligned right.
    Number,
    /// `mean ± sd (n=seeds)`, aligned left; three columns in CSV.
    Sample,
    /// As `Sample`, but people see the mean only, aligned right, so that a wide
    /// table stays legible.
    Mean,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub id: String,
    /// The heading that it stands under; empty where the table has none.
    pub section: String,
    /// One per column.
    pub cells: Vec<Cell>,
    /// That were measured.
    pub seeds: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Text(String),
    /// With the decimals that people see.
    Number(f64, usize),
    /// With the decimals that people see.
    Sample(Sample, usize),
    /// The paper prints nothing here, or we measured nothing here.
    Dash,
    /// Nothing of ours can stand here: the row is cited.
    Dots,
    Cited,
    /// With the metrics that are outside.
    Verdict(Status, Vec<String>),
}

/// Table 1 of the paper with our measurements at `scale` beside it. The verdict is
/// the worst over all metrics of the cell, also those that have no column.
pub fn table1(rows: &[Row1], scores: &[Score], goldens: &[Golden], scale: &str) -> Table {
    let (fd, is) = metric_names(scale);
    let column = |title: &str, key, content| Column { title: title.to_string(), key, content };
    let columns = vec![
        column("method", "method", Content::Text),
        column("NFE", "nfe", Content::Number),
        column("paper FID", "paper_fid", Content::Number),
        column("paper IS", "paper_is", Content::Number),
        column(fd, "fd", Content::Sample),
        column(is, "is", Content::Sample),
        column("vs golden", "golden", Content::Text),
    ];
    let rows: Vec<Row> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                Cell::Text(row.label.clone()),
                Cell::Number(row.nfe.into(), 0),
                row.fid.map_or(Cell::Dash, |fid| Cell::Number(fid, 2)),
                row.is.map_or(Cell::Dash, |is| Cell::Number(is, 2)),
            ];
            cells.extend(match row.kind {
                Kind::Cited => vec![Cell::Dots, Cell::Dots, Cell::Cited],
                Kind::Run => vec![
                    measured(scores, &row.id, scale, "fd", 2),
                    measured(scores, &row.id, scale, "is", 2),
                    verdict(scores, goldens, &row.id, scale),
                ],
            });
            let seeds = match row.kind {
                Kind::Cited => Vec::new(),
                Kind::Run { .. } => seeds_of(scores, &row.id, scale),
            };
            Row { id: row.id.clone(), section: row.section.clone(), cells, seeds }
        })
        .collect();
    let ours = rows.iter().filter(|row| !row.cells.contains(&Cell::Cited)).map(|row| row.id.as_str());
    let mut notes = notes(scale, scores, &ours.collect::<Vec<_>>(), &columns);
    notes.push("cited: printed in the paper from another publication; not run by us.".to_string());
    Table {
        title: format!("Table 1. Sample quality on CIFAR-10. Ours at scale {scale}{}.", stand_in(scale)),
        scale: scale.to_string(),
        columns,
        rows,
        notes,
    }
}

/// Table 2 of the paper with our measurements at `scale` beside it. Its last row is
/// a cell of Table 1, so `goldens` holds the lines of both files.
pub fn table2(rows: &[Row2], scores: &[Score], goldens: &[Golden], scale: &str) -> Table {
    let (fd, _) = metric_names(scale);
    let column = |title: &str, key, content| Column { title: title.to_string(), key, content };
    let columns = vec![
        column("initialization", "initialization", Content::Text),
        column("dataset", "dataset", Content::Text),
        column("paper FID", "paper_fid", Content::Number),
        column(fd, "fd", Content::Sample),
        column("recall", "recall", Content::Mean),
        column("precision", "precision", Content::Mean),
        column("classes", "classes", Content::Mean),
        column("diversity", "diversity", Content::Mean),
        column("state", "state", Content::Text),
        column("vs golden", "golden", Content::Text),
    ];
    let cells: Vec<&str> = rows.iter().map(|row| row.cell.as_str()).collect();
    let notes = notes(scale, scores, &cells, &columns);
    let rows = rows.iter().map(|row| Row {
        id: row.id.clone(),
        section: String::new(),
        cells: vec![
            Cell::Text(row.initialization.clone()),
            row.dataset.clone().map_or(Cell::Dash, Cell::Text),
            match row.fid {
                Fid::Value(fid) => Cell::Number(fid, 2),
                Fid::Collapsed => Cell::Text("collapsed".to_string()),
            },
            measured(scores, &row.cell, scale, "fd", 2),
            measured(scores, &row.cell, scale, "recall", 3),
            measured(scores, &row.cell, scale, "precision", 3),
            measured(scores, &row.cell, scale, "classes", 2),
            measured(scores, &row.cell, scale, "diversity", 3),
            state(scores, &row.cell, scale),
            verdict(scores, goldens, &row.cell, scale),
        ],
        seeds: seeds_of(scores, &row.cell, scale),
    });
    let ours = format!("Ours at scale {scale}{}.", stand_in(scale));
    let title = format!("Table 2. Initialization of the one-step generator. {ours}");
    Table { title, scale: scale.to_string(), columns, rows: rows.collect(), notes }
}

fn seeds_of(scores: &[Score], row: &str, scale: &str) -> Vec<u64> {
    values(scores, row, scale, "fd").into_keys().collect()
}

/// What the images are, where the paper's words speak of CIFAR.
pub(crate) fn stand_in(scale: &str) -> &'static str {
    match scale {
        "smoke" | "mini" | "drill" => ", on glyphs in place of CIFAR",
        _ => "",
    }
}

/// Only real Inception features make an FID.
pub(crate) fn metric_names(scale: &str) -> (&'static str, &'static str) {
    match scale {
        "smoke" | "mini" | "drill" => ("FD", "IS stand-in"),
        _ => ("FID", "IS"),
    }
}

fn measured(scores: &[Score], row: &str, scale: &str, metric: &str, digits: usize) -> Cell {
    let found = values(scores, row, scale, metric);
    if found.is_empty() {
        return Cell::Dash;
    }
    Cell::Sample(Sample::of(found.into_values()), digits)
}

/// `healthy`, `degraded` or `collapsed`, with counts where the seeds differ.
fn state(scores: &[Score], row: &str, scale: &str) -> Cell {
    let found = values(scores, row, scale, "collapse");
    let count = |category: f64| found.values().filter(|c| **c == category).count();
    let counts: Vec<(&str, usize)> =
        STATES.into_iter().map(|(name, category)| (name, count(category))).filter(|(_, n)| *n > 0).collect();
    match counts.as_slice() {
        [] => Cell::Dash,
        [(name, _)] => Cell::Text(name.to_string()),
        several => {
            let parts: Vec<String> = several.iter().map(|(name, n)| format!("{n} {name}")).collect();
            Cell::Text(parts.join(", "))
        }
    }
}

/// The worst verdict of the cell's metrics.
fn verdict(scores: &[Score], goldens: &[Golden], row: &str, scale: &str) -> Cell {
    let ours = |r: &str, s: &str| r == row && s == scale;
    let scores: Vec<Score> = scores.iter().filter(|s| ours(&s.row, &s.scale)).cloned().collect();
    let goldens: Vec<Golden> = goldens.iter().filter(|g| ours(&g.row, &g.scale)).cloned().collect();
    let compared = check(&goldens, &scores);
    let worst = compared.iter().map(|c| c.verdict.status).max().unwrap_or(Status::NotRun);
    let outside = compared.into_iter().filter(|c| c.verdict.status == Status::Outside).map(|c| c.metric);
    Cell::Verdict(worst, outside.collect::<BTreeSet<_>>().into_iter().collect())
}

/// What the numbers of a scale are, and what they compare with; one sentence.
pub(crate) fn scale_note(scale: &str) -> String {
    match scale {
        "smoke" => "smoke: embedded glyphs and a handful of training steps, to see that everything runs; \
                the numbers say nothing about the methods."
            .to_string(),
        "mini" => "mini: embedded glyphs, a small U-Net, minutes on a CPU; \
               the paper's columns are CIFAR-10 at full size and do not compare."
            .to_string(),
        "drill" => {
            "drill: glyphs as small CIFAR archives, and networks filled by a formula, to see that the \
                paper scale's path works; the numbers say nothing about the methods."
                .to_string()
        }
        "small" => "small: CIFAR images, a reduced U-Net and its own teacher; \
                the paper's numbers belong to a larger network and do not compare."
            .to_string(),
        "paper" => {
            "paper: CIFAR-10, EDM's network; FID of 50,000 samples against the training images, the mean of \
             three trials (`fd_min` in the scores is the least, which EDM prints)."
                .to_string()
        }
        other => format!("{other}: a scale of its own; the paper's numbers do not compare."),
    }
}

fn notes(scale: &str, scores: &[Score], rows: &[&str], columns: &[Column]) -> Vec<String> {
    let glyphs = matches!(scale, "smoke" | "mini");
    let has = |key: &str| columns.iter().any(|column| column.key == key);
    let explained = [
        (
            glyphs && has("dataset"),
            "dataset: ours is ten digits in place of full CIFAR-10, and invented characters in place of the \
             classes in CIFAR-100.",
        ),
        (
            glyphs,
            "FD: Fréchet distance between features of a small classifier of glyphs; it is not FID, \
             and the two do not compare.",
        ),
        (
            glyphs && has("is"),
            "IS stand-in: the same classifier in place of Inception; unreliable, blurred images score above \
             real ones.",
        ),
        (
            has("recall"),
            "precision: share of the generated images that lie near a real one, no farther from it than its k-th \
             neighbour among the real; recall: share of the real ones that lie so near a generated one.",
        ),
        (has("classes"), "classes: effective number of classes, exp of the entropy of the class histogram."),
        (has("diversity"), "diversity: mean distance between the features of two generated images."),
    ];
    let explained = explained.into_iter().filter(|(shown, _)| *shown).map(|(_, note)| note.to_string());
    let mut notes: Vec<String> = [scale_note(scale)].into_iter().chain(explained).collect();
    let mut classes: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for score in scores.iter().filter(|s| s.scale == scale && rows.contains(&s.row.as_str())) {
        classes.entry(&score.class).or_default().insert(score.seed);
    }
    notes.extend(
        classes
            .iter()
            .map(|(class, of)| format!("Determinism class {class}: {}.", seeds(of.iter().copied()))),
    );
    if !classes.is_empty() {
        notes.push(
            "Determinism class: where the same seed gives the same bits; one called statistical promises none."
                .to_string(),
        );
    }
    notes.push("Ours: mean ± standard deviation (n = number of seeds).".to_string());
    notes
}

impl Cell {
    /// As people read it.
    pub(crate) fn text(&self, content: Content) -> String {
        match self {
            Cell::Sample(sample, digits) if content == Content::Mean => format!("{:.digits$}", sample.mean),
            Cell::Text(text) => text.clone(),
            Cell::Number(x, digits) => format!("{x:.digits$}"),
            Cell::Sample(sample, digits) => sample.text(*digits),
            Cell::Dash => "-".to_string(),
            Cell::Dots => "···".to_string(),
            Cell::Cited => "cited".to_string(),
            Cell::Verdict(status, outside) if outside.is_empty() => status_text(*status).to_string(),
            Cell::Verdict(status, outside) => format!("{}: {}", status_text(*status), outside.join(" ")),
        }
    }

    fn colour(&self) -> &'static str {
        match self {
            Cell::Cited | Cell::Dots => DIM,
            Cell::Verdict(status, _) => status_colour(*status),
            _ => "",
        }
    }

    /// Ours with full precision, the paper's as it prints them; nothing in place of a number.
    fn csv(&self, content: Content) -> Vec<String> {
        match (content, self) {
            (Content::Sample | Content::Mean, Cell::Sample(sample, _)) => {
                let sd = sample.sd.map_or(String::new(), |sd| format!("{sd:?}"));
                vec![format!("{:?}", sample.mean), sd, sample.n.to_string()]
            }
            (Content::Sample | Content::Mean, _) => vec![String::new(), String::new(), String::new()],
            (_, Cell::Dash | Cell::Dots) => vec![String::new()],
            (_, cell) => vec![cell.text(content)],
        }
    }
}

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";

pub(crate) fn status_text(status: Status) -> &'static str {
    match status {
        Status::Same => "same",
        Status::Within => "within",
        Status::NotRun => "not run",
        Status::NoGolden => "no golden",
        Status::Outside => "OUTSIDE",
    }
}

fn status_colour(status: Status) -> &'static str {
    match status {
        Status::Same | Status::Within => GREEN,
        Status::NotRun | Status::NoGolden => YELLOW,
        Status::Outside => RED,
    }
}

fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour && !code.is_empty() { format!("{code}{text}\x1b[0m") } else { text.to_string() }
}

impl Content {
    fn right(self) -> bool {
        matches!(self, Content::Number | Content::Mean)
    }
}

impl Table {
    /// For a terminal; columns as wide as their content.
    pub fn to_text(&self, colour: bool) -> String {
        let width = |i: usize| {
            let cells = self.rows.iter().map(|row| row.cells[i].text(self.columns[i].content));
            cells.chain([self.columns[i].title.clone()]).map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let indent = if self.rows.iter().any(|row| !row.section.is_empty()) { "  " } else { "" };
        let line = |cells: Vec<(String, &str)>| {
            let padded = cells.iter().enumerate().map(|(i, (text, code))| {
                let space = " ".repeat(widths[i] - text.chars().count());
                let text = paint(text, code, colour);
                if self.columns[i].content.right() { space + &text } else { text + &space }
            });
            format!("{indent}{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        let mut out = format!("{}\n\n", self.title);
        out += &line(self.columns.iter().map(|c| (c.title.clone(), "")).collect());
        out += &line(widths.iter().map(|w| ("-".repeat(*w), "")).collect());
        let mut section = "";
        for row in &self.rows {
            if row.section != section {
                section = &row.section;
                writeln!(out, "{section}").unwrap();
            }
            let cells = row.cells.iter().enumerate().map(|(i, cell)| match cell {
                Cell::Dots => ("·".repeat(widths[i]), cell.colour()),
                _ => (cell.text(self.columns[i].content), cell.colour()),
            });
            out += &line(cells.collect());
        }
        out.push('\n');
        for note in &self.notes {
            writeln!(out, "{note}").unwrap();
        }
        out
    }

    /// GitHub's Markdown.
    pub fn to_markdown(&self) -> String {
        let escape = |text: &str| text.replace('|', "\\|");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut out = format!("**{}**\n\n", self.title);
        out += &line(self.columns.iter().map(|c| escape(&c.title)).collect());
        let rule = |c: &Column| if c.content.right() { "---:" } else { "---" }.to_string();
        out += &line(self.columns.iter().map(rule).collect());
        let mut section = "";
        for row in &self.rows {
            if row.section != section {
                section = &row.section;
                let mut heading = vec![String::new(); self.columns.len()];
                heading[0] = format!("**{}**", escape(section));
                out += &line(heading);
            }
            let cells = row.cells.iter().zip(&self.columns);
            out += &line(cells.map(|(cell, column)| escape(&cell.text(column.content))).collect());
        }
        out.push('\n');
        for note in &self.notes {
            writeln!(out, "- {note}").unwrap();
        }
        out
    }

    /// For programs: ours with full precision, a sample as mean, `_sd` and `_n`,
    /// empty where there is no number; scale and seeds last; the notes are left out.
    pub fn to_csv(&self) -> String {
        let mut header = vec!["id".to_string(), "section".to_string()];
        for column in &self.columns {
            header.push(column.key.to_string());
            if matches!(column.content, Content::Sample | Content::Mean) {
                header.extend([format!("{}_sd", column.key), format!("{}_n", column.key)]);
            }
        }
        header.extend(["scale".to_string(), "seeds".to_string()]);
        let rows = self.rows.iter().map(|row| {
            let cells =
                row.cells.iter().zip(&self.columns).flat_map(|(cell, column)| cell.csv(column.content));
            let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
            let end = [self.scale.clone(), seeds.join(" ")];
            [row.id.clone(), row.section.clone()].into_iter().chain(cells).chain(end).collect()
        });
        let line =
            |fields: Vec<String>| csv_line(&fields.iter().map(String::as_str).collect::<Vec<_>>()) + "\n";
        std::iter::once(header).chain(rows).map(line).collect()
    }
}

/// What `check` prints: one line per comparison and per claim, and the counts.
pub fn check_text(comparisons: &[Comparison], claims: &[ClaimResult], colour: bool) -> String {
    let mut out = String::new();
    let statuses = [Status::Same, Status::Within, Status::Outside, Status::NoGolden, Status::NotRun];
    if !comparisons.is_empty() {
        let counted = statuses.map(|status| {
            (status_text(status), comparisons.iter().filter(|c| c.verdict.status == status).count())
        });
        writeln!(out, "golden: {}", counts(&counted)).unwrap();
        let name = |c: &Comparison| format!("{} {} {} [{}]", c.row, c.scale, c.metric, c.class);
        let width = comparisons.iter().map(|c| name(c).chars().count()).max().unwrap_or(0);
        for c in comparisons {
            let status = format!("{:9}", status_text(c.verdict.status));
            let status = paint(&status, status_colour(c.verdict.status), colour);
            writeln!(out, "  {status}  {:width$}  {}", name(c), c.verdict.reason).unwrap();
        }
    }
    if !claims.is_empty() {
        if !out.is_empty() {
            out.push('\n');
        }
        writeln!(out, "claims: {}", claim_counts(claims)).unwrap();
        let width = claims.iter().map(|c| c.id.chars().count()).max().unwrap_or(0);
        for claim in claims {
            let (text, code) = claim_text(&claim.verdict);
            let verdict = paint(&format!("{text:13}"), code, colour);
            writeln!(out, "  {verdict}  {:width$}  {}", claim.id, claim.reason).unwrap();
        }
    }
    out
}

/// The same as [`check_text`] for programs.
pub fn check_json(comparisons: &[Comparison], claims: &[ClaimResult]) -> String {
    #[derive(Serialize)]
    struct Check<'a> {
        golden: &'a [Comparison],
        claims: &'a [ClaimResult],
    }
    let check = Check { golden: comparisons, claims };
    serde_json::to_string_pretty(&check).expect("strings and numbers only") + "\n"
}

pub(crate) fn claim_text(verdict: &ClaimVerdict) -> (&'static str, &'static str) {
    match verdict {
        ClaimVerdict::Holds => ("holds", GREEN),
        ClaimVerdict::DoesNotHold => ("does not hold", RED),
        ClaimVerdict::Undecided { .. } => ("undecided", YELLOW),
        ClaimVerdict::NotTested => ("not tested", DIM),
    }
}

/// As `claim_text` says them, those first on which something was measured.
pub(crate) const VERDICTS: [&str; 4] = ["holds", "does not hold", "undecided", "not tested"];

/// `6 hold, 1 does not hold, 24 not tested`
pub(crate) fn claim_counts(claims: &[ClaimResult]) -> String {
    let counted = VERDICTS.map(|text| {
        let n = claims.iter().filter(|claim| claim_text(&claim.verdict).0 == text).count();
        let text = match text {
            "holds" if n != 1 => "hold",
            "does not hold" if n != 1 => "do not hold",
            text => text,
        };
        (text, n)
    });
    counts(&counted)
}

pub(crate) fn counts(counted: &[(&str, usize)]) -> String {
    let parts: Vec<String> =
        counted.iter().filter(|(_, n)| *n > 0).map(|(text, n)| format!("{n} {text}")).collect();
    parts.join(", ")
}
