//! The comparison of new measurements with golden lines.

use super::{ALONG, Golden, Key, Rule, SAME, STATISTICAL, Score, TIME, cell, find, same};
use crate::judge::sample::{Sample, decimals, plain, seeds};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Result of a comparison, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The same numbers.
    Same,
    /// Other seeds, within the tolerance.
    Within,
    /// No measurement to compare.
    NotRun,
    /// No golden value to compare with.
    NoGolden,
    /// Changed numerics, or other seeds outside the tolerance.
    Outside,
}

/// A status with its reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub status: Status,
    /// Reason with the numbers behind the status.
    pub reason: String,
}

/// The verdict on one metric of one cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub row: String,
    pub scale: String,
    pub metric: String,
    pub class: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Compares the measurements of one metric of one cell with its golden line.
pub fn compare(golden: Option<&Golden>, fresh: &[Score]) -> Verdict {
    let verdict = |status, reason| Verdict { status, reason };
    if fresh.is_empty() {
        return verdict(Status::NotRun, "not run".to_string());
    }
    let Some(golden) = golden else {
        let sample = Sample::of(fresh.iter().map(|s| s.value));
        return verdict(Status::NoGolden, format!("{sample}: nothing accepted to compare with"));
    };
    if let Some(bad) = fresh.iter().find(|s| !s.value.is_finite()) {
        return verdict(Status::Outside, format!("{} (seed {}) is not a finite number", bad.value, bad.seed));
    }

    let bitwise = !golden.class.starts_with(STATISTICAL);
    let known = |s: &&Score| bitwise && s.class == golden.class && golden.values.contains_key(&s.seed);
    let (again, other): (Vec<&Score>, Vec<&Score>) = fresh.iter().partition(known);
    let changed: Vec<String> = again
        .iter()
        .filter(|s| !same(golden.values[&s.seed], s.value))
        .map(|s| {
            let (was, is) = distinct(golden.values[&s.seed], s.value);
            format!("{was} -> {is} (seed {})", s.seed)
        })
        .collect();
    if !changed.is_empty() {
        return verdict(Status::Outside, format!("other numbers: {}", changed.join(", ")));
    }
    if other.is_empty() {
        return verdict(Status::Same, format!("same numbers ({})", seeds(again.iter().map(|s| s.seed))));
    }

    let (status, mut reason) = judge(golden, &other.iter().map(|s| s.value).collect::<Vec<_>>());
    if !again.is_empty() {
        write!(reason, "; same numbers on {}", seeds(again.iter().map(|s| s.seed))).unwrap();
    }
    if let Some(class) = other.iter().map(|s| &s.class).find(|class| **class != golden.class) {
        write!(reason, "; golden is of class {}, this of {class}", golden.class).unwrap();
    }
    verdict(status, reason)
}

/// Applies rule 2.
fn judge(golden: &Golden, fresh: &[f64]) -> (Status, String) {
    let gold = Sample::of(golden.values.values().copied());
    let sample = Sample::of(fresh.iter().copied());
    let allowed = match golden.rule {
        Rule::OneOf => {
            let stranger = fresh.iter().find(|x| !golden.values.values().any(|g| same(*g, **x)));
            let held = list(golden.values.values());
            return match stranger {
                Some(x) => (Status::Outside, format!("{} differs from golden ({held})", plain(*x))),
                None => (Status::Within, format!("{}, as in golden ({held})", list(fresh))),
            };
        }
        Rule::Fixed { .. } | Rule::Interval => golden.allowed(sample.n),
    };
    let difference = sample.mean - gold.mean;
    // As in rule 1: seeds that all agree give an interval of width zero.
    let within = difference.abs() <= allowed.max(SAME * gold.mean.abs());
    let mut digits = decimals(gold.mean);
    while digits < 12 && format!("{:.digits$}", difference.abs()) == format!("{allowed:.digits$}") {
        digits += 1;
    }
    let spread = gold.sd.map_or(String::new(), |sd| format!(" ± {sd:.digits$}"));
    let reason = format!(
        "{:.digits$} vs golden {:.digits$}{spread} (n={}): {difference:+.digits$}, {} {allowed:.digits$}",
        sample.mean,
        gold.mean,
        gold.n,
        if within { "within" } else { "outside" },
    );
    (if within { Status::Within } else { Status::Outside }, reason)
}

/// Compares every measurement with its golden line. Golden lines without a measurement are
/// `NotRun`. Times are omitted. The result is sorted by row, scale, metric and class.
pub fn check(goldens: &[Golden], fresh: &[Score]) -> Vec<Comparison> {
    let mut groups: BTreeMap<Key, Vec<Score>> = BTreeMap::new();
    let known = |s: &Score| {
        // Lines accepted before these metrics existed do not have them.
        !ALONG.contains(&s.metric.as_str())
            || find(goldens, &s.cell(), &s.scale, &s.metric, &s.class).is_some()
    };
    for score in fresh.iter().filter(|s| s.metric != TIME && known(s)) {
        groups.entry(score.key()).or_default().push(score.clone());
    }
    for golden in goldens {
        let measured = |s: &Score| {
            (&s.row, &s.changes) == (&golden.row, &golden.changes)
                && s.scale == golden.scale
                && s.metric == golden.metric
        };
        if !fresh.iter().any(measured) {
            groups.entry(golden.key()).or_default();
        }
    }
    let compared = groups.into_iter().map(|((row, changes, scale, metric, class), scores)| {
        let row = cell(&row, &changes);
        let verdict = compare(find(goldens, &row, &scale, &metric, &class), &scores);
        Comparison { row, scale, metric, class, verdict }
    });
    compared.collect()
}

/// Formats two different numbers with enough digits to show that they differ.
fn distinct(a: f64, b: f64) -> (String, String) {
    let shown = |digits: usize| (format!("{a:.digits$}"), format!("{b:.digits$}"));
    (decimals(a)..=17).map(shown).find(|(a, b)| a != b).unwrap_or((format!("{a:?}"), format!("{b:?}")))
}

fn list<'a>(values: impl IntoIterator<Item = &'a f64>) -> String {
    values.into_iter().map(|x| plain(*x)).collect::<Vec<_>>().join(", ")
}
