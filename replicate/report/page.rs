//! Writes the report as one self-contained HTML page. It reads no file and no clock: the same
//! [`Page`] gives the same bytes.
//!
//! The page loads nothing and runs no script, and its Content-Security-Policy enforces that. Links
//! open only on a click.

mod claims;
mod provenance;

use self::claims::claims;
use self::provenance::{choices, runs};
use crate::judge::claims::ClaimResult;
use crate::judge::paper::Setting;
use crate::report::curves::{self, Curve};
pub use crate::report::overview::{Picture, Sampled};
use crate::report::overview::{image, overview};
use crate::report::studies::{self, Studies};
use crate::report::table::{Cell, Column, Content, Row, Table, Tone};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeSet;

/// Content of the page. The page omits empty parts and lists them.
#[derive(Default)]
pub struct Page {
    pub scale: String,
    /// Version of the program.
    pub program: String,
    /// Text and address of each link.
    pub links: Vec<(String, String)>,
    /// Two sentences.
    pub verdict: Vec<String>,
    /// The results that would decide more claims.
    pub next: Option<Missing>,
    /// Eight training images.
    pub real: Option<Picture>,
    /// Every row that has a cell, in the tables' order.
    pub rows: Vec<Sampled>,
    pub claims: Vec<ClaimResult>,
    /// Notes on all claims.
    pub notes: Vec<String>,
    pub differences: Table,
    /// The verdict on each claim at other scales and under other readings.
    pub readings: Table,
    pub studies: Studies,
    pub tables: Vec<Table>,
    /// Curves, which are drawn with the table of their row. A cell with a row in both tables has
    /// curves under both ids.
    pub curves: Vec<Curve>,
    pub figures: Vec<Figure>,
    /// One for each run: samples of the same noise at several moments of the training.
    pub strips: Vec<Figure>,
    /// Lines of paper/setup.csv. The page only counts those that the paper states.
    pub choices: Vec<Setting>,
    /// Names and values of the settings at this scale.
    pub settings: Vec<(&'static str, String)>,
    pub runs: Vec<Run>,
    pub missing: Vec<Missing>,
    /// Results of other scales in the store, with the commands that report them.
    pub others: Vec<Missing>,
}

/// A picture with its caption.
pub struct Figure {
    pub id: String,
    pub caption: String,
    pub picture: Picture,
    /// Labels of a strip's rows, from the top.
    pub marks: Vec<String>,
}

/// Provenance of one run, from its manifest.
pub struct Run {
    pub row: String,
    pub seed: u64,
    /// SHA-256 of the experiment's text.
    pub key: String,
    /// SHA-256 over the run's outputs.
    pub result_digest: String,
    pub date: String,
    pub commit: String,
    /// True if the sources differed from the commit.
    pub dirty: bool,
    pub machine: String,
    /// Licences of third-party files that the run used.
    pub licences: Vec<String>,
    /// Determinism class, within which the same experiment gives the same bytes.
    pub determinism: String,
    pub wall_seconds: f64,
    pub images: u64,
    /// Canonical text of the experiment.
    pub experiment: String,
    /// Command that repeats the run.
    pub command: String,
}

/// A result that the report lacks.
pub struct Missing {
    pub what: String,
    /// Command that makes it.
    pub command: String,
}

const STYLE: &str = include_str!("page.css");
pub(crate) const TITLE: &str = "One-step generators without distillation: a re-run";
/// The name of the link that sentences refer to as ERRATA.md.
pub const ERRATA: &str = "ERRATA";

/// A part of the page: id, heading, content.
type Section = (String, String, Markup);

/// Writes the page as a complete HTML document.
pub fn html(page: &Page) -> String {
    let mut ids = Ids::default();
    let mut sections: Vec<Section> = Vec::new();
    let mut add = |id: &str, title: &str, body: Option<Markup>| {
        sections.extend(body.map(|body| (id.to_string(), title.to_string(), body)));
    };
    add("claims", "The paper's claims", claims(page, &mut ids));
    let mut said = BTreeSet::new();
    for table in &page.tables {
        let id = ids.of(&table.name.to_lowercase());
        add(&id, &table.name, Some(table_html(table, &id, &mut ids, &mut said)));
    }
    let of_study = |table: &Table| table_html(table, "", &mut ids, &mut BTreeSet::new());
    add("studies", "What decides collapse", studies::section(&page.studies, &page.scale, of_study));
    add("curves", "Training curves", all_curves(page, &mut ids));
    add("figures", "The paper's figures", figures(&page.figures, "figure", &mut ids));
    add("strips", "Samples along the training", figures(&page.strips, "strip", &mut ids));
    add("missing", "What is missing", missing(page));
    add("others", "Other scales", commands(&page.others));
    add("choices", "What the paper leaves open", choices(page, &mut ids));
    add("runs", "Runs", runs(page, &mut ids));
    let document = html! {
        (DOCTYPE) "\n"
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (TITLE) " (" (page.scale) ")" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (TITLE) }
                    p.about { @for (text, address) in &page.links { a href=(address) { (text) } " · " } (page.program) }
                    @for sentence in &page.verdict { p.verdict { (sentence) } }
                    @if let Some(Missing { what, command }) = &page.next { p.next { (what) ": " code { (command) } } }
                }
                (overview(&page.scale, page.real.as_ref(), &page.rows))
                nav aria-label="Contents" {
                    ol { @for (id, title, _) in &sections { li { a href={ "#" (id) } { (title) } } } }
                }
                main {
                    @for (id, title, body) in &sections { section id=(id) { h2 { (title) } (body) } "\n" }
                }
            }
        }
    };
    // HTML forbids these characters.
    let unfit = |c: char| c.is_control() && !matches!(c, '\t' | '\n');
    document.into_string().replace(unfit, "\u{fffd}")
}

/// Ids of elements, which must be unique.
#[derive(Default)]
struct Ids(BTreeSet<String>);

impl Ids {
    fn of(&mut self, wanted: &str) -> String {
        let fitting = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let wanted: String = wanted.chars().map(fitting).collect();
        let numbered = (2..).map(|n| format!("{wanted}-{n}"));
        let free = std::iter::once(wanted.clone()).chain(numbered).find(|id| !self.0.contains(id));
        let free = free.expect("there is always another number");
        self.0.insert(free.clone());
        free
    }
}

fn missing(page: &Page) -> Option<Markup> {
    let absent = absent(page);
    (!page.missing.is_empty() || absent.is_some()).then(|| {
        html! {
            @if let Some(list) = commands(&page.missing) { (list) }
            @if let Some(absent) = absent { p { (absent) } }
        }
    })
}

/// Lists commands with their results; `None` if there are none.
fn commands(all: &[Missing]) -> Option<Markup> {
    (!all.is_empty()).then(|| {
        html! { ul.missing { @for Missing { what, command } in all { li { (what) ": " code { (command) } } } } }
    })
}

/// Lists the empty parts of the page in one sentence.
pub(crate) fn absent(page: &Page) -> Option<String> {
    let parts = [
        ("claims", page.claims.is_empty()),
        ("tables", page.tables.is_empty()),
        ("training curves", page.curves.iter().all(|curve| curve.points.is_empty())),
        ("figures", page.figures.is_empty()),
        ("samples along the training", page.strips.is_empty()),
        ("settings", page.choices.is_empty()),
        ("runs", page.runs.is_empty()),
        ("training images, which are not on this machine (--data names their place)", page.real.is_none()),
    ];
    let absent: Vec<&str> = parts.into_iter().filter(|(_, empty)| *empty).map(|(name, _)| name).collect();
    (!absent.is_empty()).then(|| format!("This report has no {}.", absent.join(", no ")))
}

/// Writes a table as HTML, without the notes that are in `said` already.
fn table_html(table: &Table, id: &str, ids: &mut Ids, said: &mut BTreeSet<String>) -> Markup {
    let columns: Vec<&Column> = table.visible().into_iter().map(|i| &table.columns[i]).collect();
    let notes: Vec<&String> = table.notes.iter().filter(|note| said.insert(note.to_string())).collect();
    html! {
        (scroll_box(&table.name, html! {
            table {
                @if !table.title.is_empty() { caption { span { (table.title) } } }
                thead {
                    tr {
                        @for column in &columns {
                            th scope="col" class=[class(column, Tone::Plain)] { (column.title) }
                        }
                    }
                }
                @for rows in table.sections() {
                    tbody {
                        @if !rows[0].section.is_empty() {
                            tr { th scope="rowgroup" colspan=(columns.len()) { (rows[0].section) } }
                        }
                        @for row in rows {
                            @let anchor = (!row.id.is_empty()).then(|| ids.of(&format!("{id}-{}", row.id)));
                            (row_html(table, row, &columns, anchor))
                        }
                    }
                }
            }
        }))
        @if !notes.is_empty() { ul.notes { @for note in notes { li { (note) } } } }
    }
}

fn row_html(table: &Table, row: &Row, columns: &[&Column], id: Option<String>) -> Markup {
    let cells = table.visible().into_iter().map(|i| &row.cells[i]);
    let texts = table.texts(row);
    html! {
        tr id=[id] {
            @for (i, ((cell, text), column)) in cells.zip(&texts).zip(columns).enumerate() {
                @if i == 0 {
                    th scope="row" class=[class(column, cell.tone(column.content))] { (text) @if row.runs { " " code { (row.id) } } }
                } @else {
                    td class=[class(column, cell.tone(column.content))] { (if *cell == Cell::Nothing { "–" } else { text }) }
                }
            }
        }
    }
}

fn class(column: &Column, tone: Tone) -> Option<String> {
    let number = if column.content != Content::Text { "num" } else { "" };
    let paper = if column.content == Content::Paper { "paper" } else { "" };
    let class =
        [number, paper, tone.class()].into_iter().filter(|c| !c.is_empty()).collect::<Vec<_>>().join(" ");
    (!class.is_empty()).then_some(class)
}

/// Makes a box that scrolls wide content, also by keyboard.
fn scroll_box(name: &str, content: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(name) tabindex="0" { (content) } }
}

/// Draws the curves of each table's rows, then those of other rows.
fn all_curves(page: &Page, ids: &mut Ids) -> Option<Markup> {
    let drawn: Vec<&Curve> = page.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
    let mut groups: Vec<(&str, Vec<&str>)> = page
        .tables
        .iter()
        .map(|table| (table.name.as_str(), table.rows.iter().map(|row| row.id.as_str()).collect()))
        .collect();
    let tabled: BTreeSet<&str> = groups.iter().flat_map(|(_, rows)| rows).copied().collect();
    let others = drawn.iter().map(|curve| curve.row.as_str()).filter(|row| !tabled.contains(row));
    groups.push(("Rows of no table", others.collect::<BTreeSet<_>>().into_iter().collect()));
    let made = groups.iter().filter_map(|(title, rows)| curves::figure(title, rows, &drawn, &page.scale));
    let figures: Vec<(Markup, Table)> = made.collect();
    (!figures.is_empty()).then(|| {
        html! {
            @for (figure, table) in &figures {
                (figure)
                details { summary { (table.name) } (table_html(table, "", ids, &mut BTreeSet::new())) }
            }
        }
    })
}

fn figures(figures: &[Figure], kind: &str, ids: &mut Ids) -> Option<Markup> {
    (!figures.is_empty()).then(|| {
        html! {
            div class={ "figures " (kind) "s" } {
                @for figure in figures {
                    figure id=(ids.of(&format!("{kind}-{}", figure.id))) {
                        div.strip {
                            @if !figure.marks.is_empty() { ol.marks { @for mark in &figure.marks { li { (mark) } } } }
                            (image(&figure.picture, &figure.caption))
                        }
                        figcaption { (figure.caption) }
                    }
                }
            }
        }
    })
}
