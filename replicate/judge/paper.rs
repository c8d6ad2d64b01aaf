//! Reads the numbers and claims that the paper prints: `table1.csv`, `table2.csv`, `claims.csv`.
//!
//! These are not measurements of ours, which are in `golden`.

use crate::error::{Error, Result};
use crate::judge::csv::{Line, read_unique};
pub use crate::settings::Origin;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;

/// One row of Table 1, "Sample quality on CIFAR-10". Column `ours` describes the run of its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Row1 {
    pub id: String,
    pub section: String,
    pub label: String,
    /// Network evaluations per image.
    pub nfe: u32,
    /// `None` if the row is not the paper's.
    pub fid: Option<f64>,
    /// `None` if the paper prints a dash.
    pub is: Option<f64>,
    /// The FID to compare ours with, if the printed one belongs to another network.
    pub target: Option<Target>,
}

/// An FID to compare a row of ours with.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `None` if nobody has published one.
    pub fid: Option<f64>,
    pub source: String,
}

/// The FID column of Table 2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Fid {
    /// The word "collapsed" in place of a number.
    #[serde(rename = "collapsed")]
    Collapsed,
    #[serde(untagged)]
    Value(f64),
}

impl std::fmt::Display for Fid {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Fid::Value(fid) => f.pad(&format!("{fid:.2}")),
            Fid::Collapsed => f.pad("collapsed"),
        }
    }
}

/// One row of Table 2, "FID scores for different initialization methods on various datasets".
#[derive(Clone, Debug, PartialEq)]
pub struct Row2 {
    pub id: String,
    pub initialization: String,
    /// `None` if the paper prints a dash.
    pub dataset: Option<String>,
    pub fid: Fid,
    /// The cell that re-runs this row. Rows can share a cell: the last row is Table 1's DiJS.
    pub cell: String,
}

/// Metrics that a claim can compare.
const CLAIM_METRICS: [&str; 14] = [
    "fd",
    "is",
    "precision",
    "recall",
    "classes",
    "diversity",
    "map_distance_start",
    "map_distance_end",
    "start_recall",
    "start_classes",
    "halfway_fd",
    "seconds_per_iteration",
    "critic_parameters",
    "generator_parameters",
];

/// One side of a claim: `metric(row)` or a plain number.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Metric { metric: String, row: String },
    Number(f64),
}

/// A claim in a form that can be tested.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `left < factor * right`
    Less { left: Operand, right: Operand, factor: f64 },
    /// `left ~ right`: left / right lies in [1 / factor, factor].
    Near { left: Operand, right: Operand, factor: f64 },
    /// `row` is `collapsed` or is not, by the metric `collapse`, or by `early_collapse`: at some
    /// tick in the first half of the training, after its start.
    Category { row: String, metric: &'static str, collapsed: bool },
    /// Printed in the paper but not testable by a run; `note` gives the reason.
    Untestable,
}

impl Statement {
    /// Returns the cells of the claim: rows, each with its overrides.
    pub fn rows(&self) -> Vec<String> {
        self.clone().rows_mut().into_iter().map(|row| row.clone()).collect()
    }

    fn rows_mut(&mut self) -> Vec<&mut String> {
        match self {
            Statement::Less { left, right, .. } | Statement::Near { left, right, .. } => {
                [left, right].into_iter().filter_map(Operand::row_mut).collect()
            }
            Statement::Category { row, .. } => vec![row],
            Statement::Untestable => Vec::new(),
        }
    }
}

impl Operand {
    fn row_mut(&mut self) -> Option<&mut String> {
        match self {
            Operand::Metric { row, .. } => Some(row),
            Operand::Number(_) => None,
        }
    }
}

impl Claim {
    /// Returns the claim about `rows` with these overrides, for another reading of the settings.
    pub fn under(&self, changes: &str, rows: &[&str]) -> Claim {
        let mut claim = self.clone();
        let changed = claim.statement.rows_mut().into_iter().filter(|row| rows.contains(&row.as_str()));
        changed.for_each(|row| *row += &format!("+{changes}"));
        claim
    }
}

/// One line of `claims.csv`.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub id: String,
    /// The claim in words.
    pub claim: String,
    /// Place in the paper (column `where`).
    pub place: String,
    pub statement: Statement,
    pub note: String,
}

/// One line of `setup.csv`: a setting of the paper scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
    /// The paper's words; `None` if it is silent.
    pub paper: Option<String>,
    /// Place in the paper; empty if it is silent.
    pub place: String,
    pub reading: String,
    pub origin: Origin,
    /// Owner: that of settings, the stem of a method's file, or a part of the set-up without
    /// settings.
    pub owner: String,
    /// Settings that the line describes; empty if it describes none.
    pub fields: Vec<String>,
}

const TABLE1: [&str; 9] = ["id", "section", "label", "nfe", "fid", "is", "ours", "target", "target_source"];
const TABLE2: [&str; 5] = ["id", "initialization", "dataset", "fid", "cell"];
const CLAIMS: [&str; 9] = ["id", "claim", "where", "kind", "left", "op", "right", "factor", "note"];
const SETUP: [&str; 8] = ["name", "value", "paper", "where", "reading", "status", "owner", "fields"];
const REMEDY: &str = "it belongs to the repository: restore it from version control";

/// Reads `table1.csv` of `directory`, in the paper's order.
///
/// # Errors
/// `Missing`, or `Malformed` with the line and the expected content.
pub fn table1(directory: &Path) -> Result<Vec<Row1>> {
    rows(&directory.join("table1.csv"), &TABLE1, |line| {
        line.text("ours")?;
        Ok(Row1 {
            id: line.text("id")?.to_string(),
            section: line.text("section")?.to_string(),
            label: line.text("label")?.to_string(),
            nfe: line.number("nfe")?,
            fid: line.optional("fid").map(|_| line.positive("fid")).transpose()?,
            is: line.optional("is").map(|_| line.number("is")).transpose()?,
            target: match line.optional("target") {
                None => None,
                Some(target) => Some(Target {
                    fid: if target == "none" { None } else { Some(line.positive("target")?) },
                    source: line.text("target_source")?.to_string(),
                }),
            },
        })
    })
}

/// Reads `table2.csv` of `directory`, in the paper's order. Errors are as in [`table1`].
pub fn table2(directory: &Path) -> Result<Vec<Row2>> {
    rows(&directory.join("table2.csv"), &TABLE2, |line| {
        Ok(Row2 {
            id: line.text("id")?.to_string(),
            initialization: line.text("initialization")?.to_string(),
            dataset: line.optional("dataset").map(str::to_string),
            fid: match line.field("fid") {
                "collapsed" => Fid::Collapsed,
                _ => Fid::Value(line.positive("fid")?),
            },
            cell: line.text("cell")?.to_string(),
        })
    })
}

/// Returns the printed FID of each of our rows, Table 1 first. Errors are as in [`table1`].
pub fn printed(directory: &Path) -> Result<Vec<(String, Fid)>> {
    let first = table1(directory)?.into_iter().filter_map(|row| Some((row.id, Fid::Value(row.fid?))));
    let mut printed: Vec<(String, Fid)> = first.collect();
    for row in table2(directory)? {
        if printed.iter().all(|(id, _)| *id != row.cell) {
            printed.push((row.cell, row.fid));
        }
    }
    Ok(printed)
}

/// As [`printed`], but with the target FID in place of a number that belongs to another network;
/// without an entry if nobody has published one.
pub fn targets(directory: &Path) -> Result<Vec<(String, Fid)>> {
    let mut targets = printed(directory)?;
    for (id, target) in table1(directory)?.into_iter().filter_map(|row| Some((row.id, row.target?))) {
        targets.retain(|(row, _)| *row != id || target.fid.is_some());
        let known = targets.iter_mut().find(|(row, _)| *row == id);
        if let (Some((_, fid)), Some(target)) = (known, target.fid) {
            *fid = Fid::Value(target);
        }
    }
    Ok(targets)
}

/// Reads `claims.csv` of `directory`, in file order. It also reads the two tables: they must run
/// the rows of the claims, except for `ablations`. A row of Table 2 becomes the cell that re-runs
/// it. Errors are as in [`table1`].
pub fn claims(directory: &Path, ablations: &[&str]) -> Result<Vec<Claim>> {
    let own = table1(directory)?.into_iter().map(|row| (row.id.clone(), row.id));
    let shared = table2(directory)?.into_iter().map(|row| (row.id, row.cell));
    let beside = ablations.iter().map(|id| (id.to_string(), id.to_string()));
    let cells: BTreeMap<String, String> = own.chain(shared).chain(beside).collect();
    rows(&directory.join("claims.csv"), &CLAIMS, |line| {
        Ok(Claim {
            id: line.text("id")?.to_string(),
            claim: line.text("claim")?.to_string(),
            place: line.text("where")?.to_string(),
            statement: statement(line, &cells)?,
            note: line.field("note").to_string(),
        })
    })
}

/// Reads `setup.csv` of `directory`, in file order. Errors are as in [`table1`].
pub fn setup(directory: &Path) -> Result<Vec<Setting>> {
    rows(&directory.join("setup.csv"), &SETUP, |line| {
        Ok(Setting {
            name: line.text("name")?.to_string(),
            value: line.text("value")?.to_string(),
            paper: Some(line.text("paper")?).filter(|words| *words != "silent").map(str::to_string),
            place: line.field("where").to_string(),
            reading: line.field("reading").to_string(),
            origin: Origin::parse(line.field("status"))
                .ok_or_else(|| line.wrong("status", "`stated`, `ambiguous`, `silent` or `ours`"))?,
            owner: line.text("owner")?.to_string(),
            fields: line
                .text("fields")?
                .split_whitespace()
                .filter(|field| *field != "-")
                .map(str::to_string)
                .collect(),
        })
    })
}

/// Returns the CIFAR-100 fine labels of the first `n` source classes, in the order of setup.csv of
/// `directory`.
///
/// # Errors
/// As [`setup`]; `Malformed` if the list is missing or does not have `n` different labels.
pub fn source_classes(directory: &Path, n: usize) -> Result<Vec<u32>> {
    let name = format!("source_classes_{n}");
    let list = setup(directory)?.into_iter().find(|setting| setting.name == name);
    let text = list.map(|setting| setting.value).unwrap_or_default();
    let labels: Vec<u32> =
        text.split_whitespace().filter_map(|label| label.parse().ok()).filter(|label| *label < 100).collect();
    let different: BTreeSet<u32> = labels.iter().copied().collect();
    if different.len() != n || text.split_whitespace().count() != n {
        let expected = format!("{name}: {n} different labels below 100");
        let remedy = "get it again with 'git checkout paper/setup.csv'";
        return Err(Error::malformed(directory.join("setup.csv"), expected, format!("{text:?}"), remedy));
    }
    Ok(labels)
}

fn statement(line: &Line, cells: &BTreeMap<String, String>) -> Result<Statement> {
    let cell = |column: &str, row: &str| {
        let unknown = || line.wrong(column, "a run row of table1.csv or table2.csv, or an ablation,");
        // Overrides follow the row: `dijs+critic_steps=5`.
        let (row, changes) = row.split_at(row.find('+').unwrap_or(row.len()));
        cells.get(row).map(|cell| format!("{cell}{changes}")).ok_or_else(unknown)
    };
    let operand = |column: &str| match line.field(column).parse::<Operand>() {
        Ok(Operand::Metric { metric, row }) => Ok(Operand::Metric { metric, row: cell(column, &row)? }),
        Ok(number) => Ok(number),
        Err(expected) => Err(line.wrong(column, &expected)),
    };
    let factor = || match line.number::<f64>("factor")? {
        factor if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err(line.wrong("factor", "a number above 0")),
    };
    let category = |metric: &'static str, collapsed: bool| -> Result<Statement> {
        Ok(Statement::Category { row: cell("left", line.field("left"))?, metric, collapsed })
    };
    match (line.field("kind"), line.field("op")) {
        ("untestable", "") => Ok(Statement::Untestable),
        ("untestable", _) => Err(line.wrong("op", "nothing, as the claim is untestable")),
        ("category", "collapsed") => category("collapse", true),
        ("category", "collapsed-early") => category("early_collapse", true),
        ("category", "not-collapsed") => category("collapse", false),
        ("category", _) => Err(line.wrong("op", "`collapsed`, `collapsed-early` or `not-collapsed`")),
        ("order" | "ratio", "<") => {
            Ok(Statement::Less { left: operand("left")?, right: operand("right")?, factor: factor()? })
        }
        ("order" | "ratio", "~") => match factor()? {
            factor if factor > 1.0 => {
                Ok(Statement::Near { left: operand("left")?, right: operand("right")?, factor })
            }
            _ => Err(line.wrong("factor", "a number above 1")),
        },
        ("order" | "ratio", _) => Err(line.wrong("op", "`<` or `~`")),
        _ => Err(line.wrong("kind", "`order`, `category`, `ratio` or `untestable`")),
    }
}

impl FromStr for Operand {
    /// The error describes the expected text.
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Operand, String> {
        if let Some((metric, row)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
            if !CLAIM_METRICS.contains(&metric) {
                return Err(format!("one of the metrics {}", CLAIM_METRICS.join(", ")));
            }
            return Ok(Operand::Metric { metric: metric.to_string(), row: row.to_string() });
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Operand::Number(number)),
            _ => Err("`metric(row)` or a number".to_string()),
        }
    }
}

/// Reads the rows of one of the paper's files; values of the first column must be unique.
fn rows<T>(path: &Path, header: &[&str], parse: impl Fn(&Line) -> Result<T>) -> Result<Vec<T>> {
    read_unique(path, header, &header[..1], "what the paper prints", REMEDY, parse)
}
