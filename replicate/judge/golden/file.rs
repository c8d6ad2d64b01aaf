//! The files of golden values and of scores.

use super::{Golden, Rule, Score};
use crate::error::{Error, Result};
use crate::judge::csv::{Line, csv_line, read_unique};
use std::collections::BTreeMap;
use std::path::Path;

const SCORES: [&str; 8] = ["row", CHANGES, "scale", "seed", "metric", "value", "class", "manifest"];
const GOLDEN: [&str; 11] = [
    "row",
    "scale",
    CHANGES,
    "metric",
    "class",
    "values",
    "rule",
    "tolerance",
    "manifest",
    "accepted",
    "reason",
];
/// A column that older files lack.
const CHANGES: &str = "changes";

/// Writes a cell's scores.csv. Every float reads back to the same bits.
pub fn write_scores(scores: &[Score]) -> String {
    let rows = scores.iter().map(|s| {
        let (seed, value) = (s.seed.to_string(), format!("{:?}", s.value));
        csv_line(&[&s.row, &s.changes, &s.scale, &seed, &s.metric, &value, &s.class, &s.manifest])
    });
    std::iter::once(csv_line(&SCORES)).chain(rows).map(|row| row + "\n").collect()
}

/// Writes a golden file: one line for each (row, scale, metric, class), sorted by them.
pub fn write_golden(goldens: &[Golden]) -> String {
    let mut sorted: Vec<&Golden> = goldens.iter().collect();
    sorted.sort_by_key(|g| g.key());
    std::iter::once(csv_line(&GOLDEN)).chain(sorted.into_iter().map(line)).map(|row| row + "\n").collect()
}

/// Reads a golden file; a missing file means that nothing was accepted yet.
///
/// # Errors
/// `Malformed` with the line and the expected content.
pub fn read_golden(path: &Path) -> Result<Vec<Golden>> {
    let key = ["row", "scale", CHANGES, "metric", "class"];
    let lines = read_unique(path, &present(path, &GOLDEN), &key, "the golden values", "", |line| {
        let values = by_seed(line, "values")?;
        let golden = Golden {
            row: line.field("row").to_string(),
            changes: line.field_if_any(CHANGES).to_string(),
            scale: line.field("scale").to_string(),
            metric: line.field("metric").to_string(),
            class: line.field("class").to_string(),
            rule: rule(line, values.len())?,
            manifests: by_seed(line, "manifest")?,
            values,
            accepted: line.field("accepted").to_string(),
            reason: line.field("reason").to_string(),
        };
        if let Some((seed, _)) = golden.values.iter().find(|(_, value)| !value.is_finite()) {
            return Err(line.wrong("values", &format!("a finite number for seed {seed}")));
        }
        if !golden.manifests.keys().eq(golden.values.keys()) {
            return Err(line.wrong("manifest", "a digest for every seed of `values`"));
        }
        Ok(golden)
    });
    match lines {
        Err(Error::Missing { .. }) => Ok(Vec::new()),
        // A lock leaves an empty file behind.
        _ if std::fs::metadata(path).is_ok_and(|found| found.len() == 0) => Ok(Vec::new()),
        lines => lines,
    }
}

/// Returns those of `columns` that the file is to have.
fn present<'a>(path: &Path, columns: &[&'a str]) -> Vec<&'a str> {
    let older: Vec<&str> = columns.iter().copied().filter(|column| *column != CHANGES).collect();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut file = csv::Reader::from_reader(text.as_bytes());
    match file.headers().is_ok_and(|header| header.iter().eq(older.iter().copied())) {
        true => older,
        false => columns.to_vec(),
    }
}

/// Reads the rule, which is written out for readers of the file and must fit the number of seeds.
fn rule(line: &Line, n: usize) -> Result<Rule> {
    match (line.field("rule"), line.field("tolerance")) {
        ("one-of", "") => Ok(Rule::OneOf),
        ("interval", "") if n >= 3 => Ok(Rule::Interval),
        ("interval", "") => Err(line.wrong("rule", "`fixed` for fewer than three seeds")),
        ("fixed", _) if n >= 3 => Err(line.wrong("rule", "`interval` for three seeds or more")),
        ("fixed", _) => {
            let tolerance: f64 = line.number("tolerance")?;
            if !(tolerance >= 0.0 && tolerance.is_finite()) {
                return Err(line.wrong("tolerance", "a number that is not negative"));
            }
            Ok(Rule::Fixed { tolerance })
        }
        ("one-of" | "interval", _) => Err(line.wrong("tolerance", "nothing")),
        _ => Err(line.wrong("rule", "`interval`, `fixed` or `one-of`")),
    }
}

fn by_seed<T: std::str::FromStr>(line: &Line, column: &str) -> Result<BTreeMap<u64, T>> {
    let expected = || line.wrong(column, "`seed:value` for every seed, separated by `;`, no seed twice");
    let mut all = BTreeMap::new();
    for pair in line.field(column).split(';') {
        let (seed, value) = pair.split_once(':').ok_or_else(expected)?;
        let value = value.parse().map_err(|_| expected())?;
        if all.insert(seed.parse().map_err(|_| expected())?, value).is_some() {
            return Err(expected());
        }
    }
    Ok(all)
}

pub(super) fn line(golden: &Golden) -> String {
    let values: Vec<String> = golden.values.iter().map(|(seed, value)| format!("{seed}:{value:?}")).collect();
    let manifests: Vec<String> =
        golden.manifests.iter().map(|(seed, digest)| format!("{seed}:{digest}")).collect();
    let (rule, tolerance) = match golden.rule {
        Rule::Interval => ("interval", String::new()),
        Rule::Fixed { tolerance } => ("fixed", format!("{tolerance:?}")),
        Rule::OneOf => ("one-of", String::new()),
    };
    let Golden { row, changes, scale, metric, class, accepted, reason, .. } = golden;
    let (values, manifests) = (values.join(";"), manifests.join(";"));
    csv_line(&[row, scale, changes, metric, class, &values, rule, &tolerance, &manifests, accepted, reason])
}
