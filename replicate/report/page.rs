//! The report as one page that needs nothing else, and as Markdown for the
//! summary of a CI job. Pure: no files, no tensors, no clock; the same [`Page`]
//! gives the same bytes.
//!
//! The markup is HTML and well-formed XML at once. It asks for nothing from
//! outside and runs no script, which its Content-Security-Policy enforces.

use crate::judge::claims::{ClaimResult, ClaimVerdict};
use crate::judge::golden::{Status, seeds};
use crate::judge::paper::{Origin, Setting};
use crate::measure::metrics::modes::{
    COLLAPSED_CLASSES, COLLAPSED_RECALL, DEGRADED_CLASSES, DEGRADED_RECALL,
};
use crate::report::chart::{Line, Panel, Range, Row as Lines, STYLES, escape, swatch};
use crate::report::findings::Finding;
use crate::report::table::{
    Cell, Column, Content, Row, Table, VERDICTS, claim_counts, claim_text, counts, metric_names, scale_note,
    status_text,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Everything that the page shows. What is empty is left out, and named as such.
#[derive(Default)]
pub struct Page {
    pub scale: String,
    /// What the program says of its version.
    pub program: String,
    pub tables: Vec<Table>,
    pub findings: Vec<Finding>,
    pub claims: Vec<ClaimResult>,
    /// Drawn with the table that has the row. A cell that stands in two tables
    /// under two ids is passed once under each.
    pub curves: Vec<Curve>,
    pub figures: Vec<Figure>,
    /// One for each run: samples of the same noise at several moments of the training.
    pub strips: Vec<Figure>,
    /// paper/setup.csv; those that the paper states are only counted.
    pub choices: Vec<Setting>,
    pub runs: Vec<Run>,
    pub missing: Vec<Missing>,
}

/// What one run measured of its generator on the way.
pub struct Curve {
    /// The id of a row of a table.
    pub row: String,
    pub label: String,
    pub seed: u64,
    /// By images; the first is the initialisation, at 0 images.
    pub points: Vec<Point>,
}

pub struct Point {
    /// That the generator was trained on so far.
    pub images: u64,
    /// FID, or FD where the features are not Inception's.
    pub fd: f64,
    pub recall: f64,
    /// Effective number of classes.
    pub classes: f64,
}

/// Pixel art: it is enlarged without smoothing.
pub struct Figure {
    pub id: String,
    pub caption: String,
    pub png: Vec<u8>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// What the manifest of one run says.
pub struct Run {
    pub row: String,
    pub seed: u64,
    /// SHA-256 of the experiment's text.
    pub key: String,
    /// SHA-256 of what the run made.
    pub result_digest: String,
    pub date: String,
    pub commit: String,
    /// Whether the sources differed from the commit.
    pub dirty: bool,
    pub machine: String,
    /// The class within which the same experiment gives the same bytes.
    pub determinism: String,
    pub wall_seconds: f64,
    pub images: u64,
    /// The canonical text.
    pub experiment: String,
    /// Makes the run again.
    pub command: String,
}

/// A result that the report should have.
pub struct Missing {
    pub what: String,
    /// Makes it.
    pub command: String,
}

/// Of CIFAR-10, and of the glyphs that stand in for it.
const TARGET_CLASSES: f64 = 10.0;
const STYLE: &str = include_str!("page.css");
const TITLE: &str = "One-step generators without distillation: a re-run";
const ABOUT: &str = "This page reports a re-run of \u{201c}Towards Training One-Step Diffusion Models Without \
                     Distillation\u{201d} (arXiv 2502.08005) and holds what was measured against the printed \
                     numbers, against golden values (measured before, reviewed and accepted), and against \
                     the paper's claims.";
/// What GitHub accepts as the summary of one step, in bytes.
const SUMMARY_LIMIT: usize = 1024 * 1024;
/// Small pictures are enlarged by a whole number, up to about this width in CSS pixels.
const FIGURE_WIDTH: u32 = 480;
/// In the tables; the whole digest stands with the experiment's text.
const SHORT_DIGEST: usize = 12;

/// The page as a complete HTML document.
pub fn html(page: &Page) -> String {
    let mut ids = Ids::default();
    let mut sections = vec![Section::new("missing", "What is missing", missing(page))];
    for table in &page.tables {
        let name = short_title(table);
        let id = ids.of(&name.to_lowercase());
        let body = table_html(table, &id, &mut ids);
        sections.push(Section::new(&id, name, body));
    }
    sections.extend([
        Section::new("findings", "Findings", findings(page, &mut ids)),
        Section::new("claims", "The paper's claims", claims(page, &mut ids)),
        Section::new("curves", "Training curves", curves(page)),
        Section::new("figures", "Figures", figures(&page.figures, "figure", &mut ids)),
        Section::new("strips", "Samples along the training", figures(&page.strips, "strip", &mut ids)),
        Section::new("choices", "What the paper leaves open", choices(page)),
        Section::new("runs", "Runs", runs(page, &mut ids)),
    ]);
    sections.retain(|section| !section.body.is_empty());

    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\" />\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n\
         <meta name=\"color-scheme\" content=\"light dark\" />\n\
         <title>{TITLE} ({scale})</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{TITLE}</h1>\n<p>{about} Scale {note}</p>\n<p class=\"program\">{program}</p>\n",
        scale = escape(&page.scale),
        about = escape(ABOUT),
        note = escape(&scale_note(&page.scale)),
        program = escape(&page.program),
    );
    let glance = glance(page);
    if !glance.is_empty() {
        out += "<dl class=\"glance\">\n";
        for (name, text) in glance {
            writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&name), escape(&text)).unwrap();
        }
        out += "</dl>\n";
    }
    out += "</header>\n<nav aria-label=\"Contents\">\n<ol>\n";
    for section in &sections {
        writeln!(out, "<li><a href=\"#{}\">{}</a></li>", section.id, section.title).unwrap();
    }
    out += "</ol>\n</nav>\n<main>\n";
    for Section { id, title, body } in &sections {
        write!(out, "<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n").unwrap();
    }
    out += "</main>\n</body>\n</html>\n";
    out
}

/// The tables, the findings, the claims that were tested and what is missing, as
/// GitHub's Markdown; without pictures, and never longer than a job summary may be.
pub fn markdown(page: &Page) -> String {
    let mut out = format!("# {TITLE}\n\n{} Scale {}\n", plain(ABOUT), plain(&scale_note(&page.scale)));
    if !page.program.is_empty() {
        write!(out, "\n{}\n", plain(&page.program)).unwrap();
    }
    let glance = glance(page);
    if !glance.is_empty() {
        out.push('\n');
        for (name, text) in glance {
            writeln!(out, "- {}: {}", plain(&name), plain(&text)).unwrap();
        }
    }
    let absent = absent(page);
    if !page.missing.is_empty() || absent.is_some() {
        out += "\n## What is missing\n\n";
        for missing in &page.missing {
            writeln!(out, "- {}: {}", plain(&missing.what), code(&missing.command)).unwrap();
        }
        if let Some(absent) = absent {
            writeln!(out, "- {absent}").unwrap();
        }
    }
    for table in &page.tables {
        write!(out, "\n## {}\n\n{}", plain(short_title(table)), table.to_markdown()).unwrap();
    }
    if !page.findings.is_empty() {
        out += "\n## Findings\n";
        for finding in &page.findings {
            write!(out, "\n### {}\n", plain(&finding.title)).unwrap();
            for paragraph in &finding.paragraphs {
                write!(out, "\n{}\n", plain(paragraph)).unwrap();
            }
        }
    }
    let tested: Vec<&ClaimResult> =
        VERDICTS[..3].iter().flat_map(|verdict| with_verdict(page, verdict)).collect();
    if !tested.is_empty() {
        out += "\n## The paper's claims\n\n| verdict | claim | in the paper's words | where | reason |\n";
        out += "| --- | --- | --- | --- | --- |\n";
        for claim in tested {
            let (verdict, id) = (claim_text(&claim.verdict).0, code(&claim.id).replace('|', "\\|"));
            let [words, place, reason] = [&claim.claim, &claim.place, &claim.reason].map(|text| plain(text));
            writeln!(out, "| {verdict} | {id} | {words} | {place} | {reason} |").unwrap();
        }
    }
    within_limit(out)
}

/// Cut after a whole line, with a word on it, where it would be too long.
fn within_limit(mut text: String) -> String {
    const CUT: &str = "\nCut here: a job summary holds no more. The HTML report has the rest.\n";
    if text.len() > SUMMARY_LIMIT {
        let end = text.as_bytes()[..SUMMARY_LIMIT - CUT.len()].iter().rposition(|b| *b == b'\n');
        text.truncate(end.map_or(0, |i| i + 1));
        text += CUT;
    }
    text
}

struct Section {
    id: String,
    /// Escaped.
    title: String,
    body: String,
}

impl Section {
    fn new(id: &str, title: &str, body: String) -> Section {
        Section { id: id.to_string(), title: escape(title), body }
    }
}

/// Ids that have been given to elements; no two are the same.
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

/// `Table 1` of `Table 1. Sample quality …`.
fn short_title(table: &Table) -> &str {
    table.title.split('.').next().unwrap_or_default()
}

/// One line for each comparison.
fn glance(page: &Page) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for table in &page.tables {
        let statuses = [Status::Same, Status::Within, Status::Outside, Status::NoGolden, Status::NotRun];
        let cells = || table.rows.iter().flat_map(|row| &row.cells);
        let counted = statuses.map(|status| {
            let count = cells().filter(|cell| matches!(cell, Cell::Verdict(s, _) if *s == status)).count();
            (status_text(status), count)
        });
        let text = counts(&counted);
        if !text.is_empty() {
            lines.push((format!("{} against golden", short_title(table)), text));
        }
    }
    if !page.claims.is_empty() {
        lines.push(("The paper's claims".to_string(), claim_counts(&page.claims)));
    }
    if !page.missing.is_empty() {
        let n = page.missing.len();
        lines.push(("Missing".to_string(), format!("{n} {}", if n == 1 { "result" } else { "results" })));
    }
    lines
}

fn missing(page: &Page) -> String {
    let mut out = String::new();
    if !page.missing.is_empty() {
        out += "<p>Each of these can be made by the command beside it.</p>\n<ul class=\"missing\">\n";
        for Missing { what, command } in &page.missing {
            writeln!(out, "<li>{}: <code>{}</code></li>", escape(what), escape(command)).unwrap();
        }
        out += "</ul>\n";
    }
    if let Some(absent) = absent(page) {
        writeln!(out, "<p>{absent}</p>").unwrap();
    }
    out
}

/// A sentence that names the parts which are empty.
fn absent(page: &Page) -> Option<String> {
    let parts = [
        ("tables", page.tables.is_empty()),
        ("findings", page.findings.is_empty()),
        ("claims", page.claims.is_empty()),
        ("training curves", page.curves.iter().all(|curve| curve.points.is_empty())),
        ("figures", page.figures.is_empty()),
        ("samples along the training", page.strips.is_empty()),
        ("settings", page.choices.is_empty()),
        ("runs", page.runs.is_empty()),
    ];
    let absent: Vec<&str> = parts.into_iter().filter(|(_, empty)| *empty).map(|(name, _)| name).collect();
    (!absent.is_empty()).then(|| format!("This report has no {}.", absent.join(", no ")))
}

fn table_html(table: &Table, id: &str, ids: &mut Ids) -> String {
    let mut out = scroll_box(short_title(table));
    // The heading above has the rest of the title.
    let text = table.title[short_title(table).len()..].trim_start_matches(['.', ' ']);
    writeln!(out, "<table>\n<caption><span>{}</span></caption>\n<thead>\n<tr>", escape(text)).unwrap();
    for column in &table.columns {
        let class = if is_number(column) { " class=\"num\"" } else { "" };
        writeln!(out, "<th scope=\"col\"{class}>{}</th>", escape(&column.title)).unwrap();
    }
    out += "</tr>\n</thead>\n";
    for rows in table.rows.chunk_by(|a, b| a.section == b.section) {
        out += "<tbody>\n";
        if !rows[0].section.is_empty() {
            let (width, section) = (table.columns.len(), escape(&rows[0].section));
            writeln!(out, "<tr><th scope=\"rowgroup\" colspan=\"{width}\">{section}</th></tr>").unwrap();
        }
        for row in rows {
            let anchor = ids.of(&format!("{id}-{}", row.id));
            let class = if row.cells.contains(&Cell::Cited) { " class=\"cited\"" } else { "" };
            write!(out, "<tr id=\"{anchor}\"{class}>").unwrap();
            for (i, (cell, column)) in row.cells.iter().zip(&table.columns).enumerate() {
                out += &if i == 0 { row_heading(row, cell, column) } else { cell_html(cell, column) };
            }
            out += "</tr>\n";
        }
        out += "</tbody>\n";
    }
    out += "</table>\n</div>\n";
    if !table.notes.is_empty() {
        out += "<ul class=\"notes\">\n";
        for note in &table.notes {
            writeln!(out, "<li>{}</li>", escape(note)).unwrap();
        }
        out += "</ul>\n";
    }
    out
}

/// The row's name, and the id that the program knows it by where it runs it.
fn row_heading(row: &Row, cell: &Cell, column: &Column) -> String {
    let name = escape(&cell.text(column.content));
    if row.cells.contains(&Cell::Cited) {
        return format!("<th scope=\"row\">{name}</th>");
    }
    format!("<th scope=\"row\">{name} <code>{}</code></th>", escape(&row.id))
}

fn cell_html(cell: &Cell, column: &Column) -> String {
    let text = match cell {
        Cell::Sample(sample, digits) if column.content == Content::Sample => {
            let spread = sample.sd.map_or(String::new(), |sd| format!(" ± {sd:.digits$}"));
            format!("{:.digits$}{spread} <small>(n={})</small>", sample.mean, sample.n)
        }
        Cell::Dash => "–".to_string(),
        _ => escape(&cell.text(column.content)),
    };
    let class = match cell {
        Cell::Verdict(status, _) => status_class(*status),
        Cell::Cited | Cell::Dots | Cell::Dash if is_number(column) => "dim num",
        Cell::Cited | Cell::Dots | Cell::Dash => "dim",
        _ if is_number(column) => "num",
        _ => "",
    };
    if class.is_empty() { format!("<td>{text}</td>") } else { format!("<td class=\"{class}\">{text}</td>") }
}

fn is_number(column: &Column) -> bool {
    column.content != Content::Text
}

fn status_class(status: Status) -> &'static str {
    match status {
        Status::Same | Status::Within => "good",
        Status::NotRun | Status::NoGolden => "open",
        Status::Outside => "bad",
    }
}

/// Opens a box in which something wide scrolls, also by keyboard.
fn scroll_box(name: &str) -> String {
    format!("<div class=\"scroll\" role=\"region\" aria-label=\"{}\" tabindex=\"0\">\n", escape(name))
}

fn findings(page: &Page, ids: &mut Ids) -> String {
    let mut out = String::new();
    for (i, finding) in page.findings.iter().enumerate() {
        let id = ids.of(&format!("finding-{}", i + 1));
        writeln!(out, "<article id=\"{id}\">\n<h3>{}</h3>", escape(&finding.title)).unwrap();
        for paragraph in &finding.paragraphs {
            writeln!(out, "<p>{}</p>", escape(paragraph)).unwrap();
        }
        out += "</article>\n";
    }
    out
}

fn with_verdict<'a>(page: &'a Page, verdict: &'a str) -> impl Iterator<Item = &'a ClaimResult> {
    page.claims.iter().filter(move |claim| claim_text(&claim.verdict).0 == verdict)
}

fn claims(page: &Page, ids: &mut Ids) -> String {
    let mut out = String::new();
    for verdict in VERDICTS {
        let claims: Vec<&ClaimResult> = with_verdict(page, verdict).collect();
        let Some(first) = claims.first() else { continue };
        let class = match first.verdict {
            ClaimVerdict::Holds => "good",
            ClaimVerdict::DoesNotHold => "bad",
            ClaimVerdict::Undecided { .. } => "open",
            ClaimVerdict::NotTested => "dim",
        };
        let heading = capitalised(verdict);
        writeln!(out, "<h3><span class=\"{class}\">{heading}</span> ({})</h3>", claims.len()).unwrap();
        for alike in claims.chunk_by(|a, b| a.reason == b.reason) {
            let reason = escape(alike[0].reason.trim_end_matches('.'));
            let (shared, own) = match alike.len() {
                1 => (String::new(), format!(": {reason}")),
                n => (format!("<p>These {n}: {reason}.</p>\n"), String::new()),
            };
            write!(out, "{shared}<ul class=\"claims\">\n").unwrap();
            for claim in alike {
                let id = ids.of(&format!("claim-{}", claim.id));
                let [name, words, place] = [&claim.id, &claim.claim, &claim.place].map(|text| escape(text));
                writeln!(out, "<li id=\"{id}\">").unwrap();
                writeln!(out, "<p class=\"words\">\u{201c}{words}\u{201d} <span>{place}</span></p>").unwrap();
                writeln!(out, "<p><code>{name}</code> <b class=\"{class}\">{verdict}</b>{own}</p>\n</li>")
                    .unwrap();
            }
            out += "</ul>\n";
        }
    }
    out
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// The curves of the rows of each table, then those of other rows.
fn curves(page: &Page) -> String {
    let mut out = String::new();
    let drawn: Vec<&Curve> = page.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
    let mut tabled = BTreeSet::new();
    for table in &page.tables {
        let rows: Vec<&str> = table.rows.iter().map(|row| row.id.as_str()).collect();
        tabled.extend(rows.iter().copied());
        out += &curve_figure(short_title(table), &rows, &drawn, &page.scale);
    }
    let others = drawn.iter().map(|curve| curve.row.as_str()).filter(|row| !tabled.contains(row));
    let others: Vec<&str> = others.collect::<BTreeSet<_>>().into_iter().collect();
    out + &curve_figure("Rows of no table", &others, &drawn, &page.scale)
}

/// The curves of one row; never empty, nor is one of them.
struct Seeds<'a> {
    row: &'a str,
    curves: Vec<&'a Curve>,
}

/// FD, recall and effective classes over images of the `rows` that have curves.
fn curve_figure(title: &str, rows: &[&str], curves: &[&Curve], scale: &str) -> String {
    let of = |row: &str| curves.iter().filter(|curve| curve.row == row).copied().collect();
    let mut rows: Vec<Seeds> = rows.iter().map(|row| Seeds { row, curves: of(row) }).collect();
    rows.retain(|seeds| !seeds.curves.is_empty());
    if rows.is_empty() {
        return String::new();
    }
    let fd = metric_names(scale).0;
    let levels = |collapsed: f64, degraded: f64, digits: usize| {
        [
            (collapsed, format!("collapsed: below {collapsed:.digits$}")),
            (degraded, format!("degraded: below {degraded:.digits$}")),
        ]
    };
    let recall = levels(COLLAPSED_RECALL, DEGRADED_RECALL, 2);
    let classes = levels(COLLAPSED_CLASSES * TARGET_CLASSES, DEGRADED_CLASSES * TARGET_CLASSES, 1);
    let panels = [
        panel(fd, Range::Fitted, &[], &rows, |point| point.fd),
        panel("Recall", Range::Fixed(0.0, 1.0), &recall, &rows, |point| point.recall),
        panel("Effective classes", Range::Fixed(0.0, TARGET_CLASSES), &classes, &rows, |point| point.classes),
    ];
    let panels: String = panels.into_iter().flatten().collect();

    let mut out = format!("<h3>{}</h3>\n<figure class=\"curves\">\n", escape(title));
    if panels.is_empty() {
        out += "<p>No point of these curves is a finite number.</p>\n";
    } else {
        write!(out, "<div class=\"panels\">\n{panels}</div>\n<ul class=\"legend\">\n").unwrap();
        for (style, seeds) in rows.iter().enumerate() {
            let (swatch, label, row) = (swatch(style), escape(&seeds.curves[0].label), escape(seeds.row));
            writeln!(out, "<li>{swatch} {label} <code>{row}</code></li>").unwrap();
        }
        out += "</ul>\n";
    }
    let caption = format!(
        "{fd}, recall and effective number of classes over the images that the generator was trained on; \
         one line for each seed, the first point is the initialisation. {} A row's state in the tables is \
         decided on its final samples, not on these points.{}{}",
        below_to_the_end(&rows),
        if curves_have_gaps(&rows) { " A gap is a value that is not a finite number." } else { "" },
        if rows.len() > STYLES { " Colours repeat: a line's name stands at its end." } else { "" },
    );
    writeln!(out, "<figcaption>{}</figcaption>", escape(&caption)).unwrap();
    out += "</figure>\n";
    out + &curve_numbers(&format!("{title}: the curves in numbers"), fd, &rows)
}

fn panel(
    title: &str,
    y: Range,
    levels: &[(f64, String)],
    rows: &[Seeds],
    value: impl Fn(&Point) -> f64,
) -> Option<String> {
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

/// A sentence: which lines end below both thresholds of "collapsed", and since when.
fn below_to_the_end(rows: &[Seeds]) -> String {
    let mut parts = Vec::new();
    for Seeds { row, curves } in rows {
        let mut from: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for curve in curves {
            if let Some(images) = below_since(curve) {
                from.entry(images).or_default().push(curve.seed);
            }
        }
        let from: Vec<String> =
            from.into_iter().map(|(images, of)| format!("{} {}", seeds(of), since(images))).collect();
        if !from.is_empty() {
            parts.push(format!("{row} ({})", from.join("; ")));
        }
    }
    match parts.as_slice() {
        [] => "No line ends below both thresholds of \u{201c}collapsed\u{201d}.".to_string(),
        parts => {
            format!("Below both thresholds of \u{201c}collapsed\u{201d} to the end: {}.", parts.join(", "))
        }
    }
}

/// The images from which on every point of `curve` lies below both thresholds.
fn below_since(curve: &Curve) -> Option<u64> {
    let classes = COLLAPSED_CLASSES * TARGET_CLASSES;
    let below = |point: &&Point| point.recall < COLLAPSED_RECALL && point.classes < classes;
    curve.points.iter().rev().take_while(below).last().map(|point| point.images)
}

fn since(images: u64) -> String {
    if images == 0 { "from the start".to_string() } else { format!("from {} images", thousands(images)) }
}

fn curves_have_gaps(rows: &[Seeds]) -> bool {
    let mut points = rows.iter().flat_map(|seeds| &seeds.curves).flat_map(|curve| &curve.points);
    points.any(|p| !(p.fd.is_finite() && p.recall.is_finite() && p.classes.is_finite()))
}

/// What the lines show, for those who do not see them.
fn curve_numbers(title: &str, fd: &str, rows: &[Seeds]) -> String {
    let mut out = format!("<details>\n<summary>{}</summary>\n{}", escape(title), scroll_box(title));
    out += "<table>\n<thead>\n<tr><th scope=\"col\">row</th>";
    let first = format!("first {fd}");
    let lowest = format!("lowest {fd}");
    let last = format!("last {fd}");
    for title in ["seed", &first, &lowest, "at images", &last, "last recall", "last classes"] {
        write!(out, "<th scope=\"col\" class=\"num\">{title}</th>").unwrap();
    }
    out += "<th scope=\"col\">below both thresholds</th></tr>\n</thead>\n<tbody>\n";
    for curve in rows.iter().flat_map(|seeds| &seeds.curves) {
        let (first, last) = (&curve.points[0], &curve.points[curve.points.len() - 1]);
        let finite = curve.points.iter().filter(|point| point.fd.is_finite());
        let lowest = finite.min_by(|a, b| a.fd.total_cmp(&b.fd));
        write!(out, "<tr><th scope=\"row\">{}</th>", escape(&curve.row)).unwrap();
        let numbers = [
            curve.seed.to_string(),
            decimals(first.fd, 2),
            lowest.map_or("–".to_string(), |point| decimals(point.fd, 2)),
            lowest.map_or("–".to_string(), |point| thousands(point.images)),
            decimals(last.fd, 2),
            decimals(last.recall, 3),
            decimals(last.classes, 2),
        ];
        for number in numbers {
            write!(out, "<td class=\"num\">{number}</td>").unwrap();
        }
        let below = below_since(curve).map_or("not at the end".to_string(), since);
        writeln!(out, "<td>{below}</td></tr>").unwrap();
    }
    out += "</tbody>\n</table>\n</div>\n</details>\n";
    out
}

fn figures(figures: &[Figure], kind: &str, ids: &mut Ids) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let mut out = "<div class=\"figures\">\n".to_string();
    for figure in figures {
        let (id, caption) = (ids.of(&format!("{kind}-{}", figure.id)), escape(&figure.caption));
        let zoom = (FIGURE_WIDTH / figure.width.max(1)).clamp(1, 4);
        let (width, height) = (figure.width * zoom, figure.height * zoom);
        writeln!(out, "<figure id=\"{id}\" style=\"width:max({width}px,17rem)\">").unwrap();
        let png = STANDARD.encode(&figure.png);
        writeln!(
            out,
            "<img src=\"data:image/png;base64,{png}\" alt=\"{caption}\" width=\"{width}\" height=\"{height}\" />"
        )
        .unwrap();
        writeln!(out, "<figcaption>{caption}</figcaption>\n</figure>").unwrap();
    }
    out + "</div>\n"
}

fn choices(page: &Page) -> String {
    if page.choices.is_empty() {
        return String::new();
    }
    let of = |origin| page.choices.iter().filter(move |setting| setting.origin == origin);
    let mut out = format!(
        "<p>The settings of the paper scale that its text leaves open, and how we read them; {} more are \
         stated there and taken as stated. What a run was made with stands in its experiment, below.</p>\n",
        of(Origin::Stated).count()
    );
    for (origin, title) in [
        (Origin::Ambiguous, "Ambiguous: the text can be read in more than one way"),
        (Origin::Silent, "Silent: the text says nothing, and we follow the source that is named"),
        (Origin::Ours, "Ours: the text says nothing, and the choice is ours"),
    ] {
        let settings: Vec<&Setting> = of(origin).collect();
        if settings.is_empty() {
            continue;
        }
        let quoted = settings.iter().any(|setting| setting.paper.is_some());
        write!(
            out,
            "<details>\n<summary>{title} ({})</summary>\n{}<table class=\"prose\">\n\
             <thead>\n<tr><th scope=\"col\">setting</th><th scope=\"col\">value</th>",
            settings.len(),
            scroll_box(title)
        )
        .unwrap();
        if quoted {
            out += "<th scope=\"col\">the paper's words</th>";
        }
        out += "<th scope=\"col\">reading</th></tr>\n</thead>\n<tbody>\n";
        for setting in settings {
            let (name, value, reading) =
                (escape(&setting.name), escape(&setting.value), escape(&setting.reading));
            write!(out, "<tr><th scope=\"row\"><code>{name}</code></th><td>{value}</td>").unwrap();
            if quoted {
                let words = setting.paper.as_ref().map_or("–".to_string(), |words| {
                    format!("\u{201c}{}\u{201d} <small>{}</small>", escape(words), escape(&setting.place))
                });
                write!(out, "<td>{words}</td>").unwrap();
            }
            writeln!(out, "<td>{reading}</td></tr>").unwrap();
        }
        out += "</tbody>\n</table>\n</div>\n</details>\n";
    }
    out
}

fn runs(page: &Page, ids: &mut Ids) -> String {
    if page.runs.is_empty() {
        return String::new();
    }
    let mut out = scroll_box("Runs");
    write!(
        out,
        "<table class=\"runs\">\n<caption><span>What was run, and how to run it again</span></caption>\n\
         <thead>\n<tr>"
    )
    .unwrap();
    for (title, class) in [
        ("run", ""),
        ("date", ""),
        ("images", " class=\"num\""),
        ("wall time", " class=\"num\""),
        ("commit", ""),
        ("determinism", ""),
        ("key", ""),
        ("result", ""),
        ("machine", ""),
    ] {
        write!(out, "<th scope=\"col\"{class}>{title}</th>").unwrap();
    }
    out += "</tr>\n</thead>\n";
    for run in &page.runs {
        let id = ids.of(&format!("run-{}-s{}", run.row, run.seed));
        let [row, machine, class, date] =
            [&run.row, &run.machine, &run.determinism, &run.date].map(|text| escape(text));
        let [key, result, commit] =
            [&run.key, &run.result_digest, &run.commit].map(|digest| escape(&start(digest)));
        let dirty = if run.dirty { "+" } else { "" };
        let (images, wall) = (thousands(run.images), duration(run.wall_seconds));
        writeln!(
            out,
            "<tbody id=\"{id}\">\n<tr><th scope=\"row\">{row}, seed {}</th><td>{date}</td>\
             <td class=\"num\">{images}</td><td class=\"num\">{wall}</td><td><code>{commit}</code>{dirty}</td>\
             <td>{class}</td><td><code>{key}</code></td><td><code>{result}</code></td><td>{machine}</td></tr>",
            run.seed
        )
        .unwrap();
        let [command, key, result, commit, experiment] =
            [&run.command, &run.key, &run.result_digest, &run.commit, &run.experiment]
                .map(|text| escape(text));
        write!(
            out,
            "<tr><td colspan=\"4\"><code>{command}</code></td>\n<td colspan=\"5\"><details>\n\
             <summary>Experiment and digests</summary>\n<dl>\n<dt>key</dt><dd><code>{key}</code></dd>\n\
             <dt>result</dt><dd><code>{result}</code></dd>\n<dt>commit</dt><dd><code>{commit}</code>{dirty}</dd>\n\
             </dl>\n<pre>{experiment}</pre>\n</details></td></tr>\n</tbody>\n"
        )
        .unwrap();
    }
    out += "</table>\n</div>\n<ul class=\"notes\">\n\
            <li>commit: with + where the sources differed from it.</li>\n\
            <li>determinism: the class within which the same experiment gives the same bytes.</li>\n\
            <li>key: SHA-256 of the experiment's text; result: of what the run made; their first digits.</li>\n\
            </ul>\n";
    out
}

fn start(digest: &str) -> String {
    digest.chars().take(SHORT_DIGEST).collect()
}

fn decimals(x: f64, digits: usize) -> String {
    if x.is_finite() { format!("{x:.digits$}") } else { x.to_string() }
}

/// `19,200`
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).expect("digits")).collect();
    groups.join(",")
}

/// `2 min 14 s`
fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".to_string();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// Text in Markdown that means itself, on one line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '&' | '$' | '#' => {
                out.extend(['\\', c])
            }
            '\n' | '\r' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

/// A code span.
fn code(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}
