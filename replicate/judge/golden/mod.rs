//! Golden values: measurements that were reviewed and accepted, and the comparison of new
//! measurements with them. Except for reading the files, its functions map text to verdicts and
//! text.
//!
//! [`compare`] applies these rules, in this order:
//!
//! 1. A seed of the golden line, in the same determinism class, must give the same number up to a
//!    relative difference of 1e-9, which float64 sums in the order of another CPU can cause. A
//!    larger difference is `Outside`, because the numerics changed. Without other seeds, this
//!    decides.
//! 2. Other seeds, or seeds of another class, are compared by the line's rule:
//!    * `one-of` (categories and parameter counts): every value must occur in the line;
//!    * `interval` (three or more golden seeds): the mean of the m fresh seeds must lie in the
//!      two-sided 95 % prediction interval, |mean_fresh - mean| <= t(n-1, 0.975) s sqrt(1/n + 1/m);
//!    * `fixed` (fewer): the mean must lie within `tolerance` of the golden mean.
//!
//! The interval assumes independent and nearly normal seeds. Of unchanged runs, one in twenty falls
//! outside it.

mod accept;
mod check;
mod file;

pub use self::accept::{accept, refuse_in_ci};
pub use self::check::{Comparison, Status, Verdict, check, compare};
pub use self::file::{read_golden, write_golden, write_scores};
use crate::judge::sample::Sample;
use crate::judge::stats::t_quantile;
use std::collections::BTreeMap;

/// Name of the metric for time. It depends on the machine's load, so it has no golden values.
pub const TIME: &str = "seconds_per_iteration";

/// In the class of a result that this program's code did not make, the text before that code.
pub const OTHER_CODE: &str = ", code ";

/// Prefix of the classes that do not repeat to the bit; rule 1 does not apply to them.
pub const STATISTICAL: &str = "statistical";

/// Interim metrics of a training. They are golden only in lines where they were accepted.
pub const ALONG: [&str; 4] = ["start_recall", "start_classes", "halfway_fd", "early_collapse"];

/// Largest relative difference between equal float64 results. The linear algebra of the metrics
/// orders its sums by the CPU; a change of the weights moves a result by much more.
const SAME: f64 = 1e-9;

/// One number that a run measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Id of the cell, from paper/table1.csv (`ours`) or paper/table2.csv (`cell`).
    pub row: String,
    /// Overrides, such as `critic_lr=1e-4+generator_lr=1e-4`; empty for the row itself.
    pub changes: String,
    pub scale: String,
    pub seed: u64,
    pub metric: String,
    pub value: f64,
    /// Determinism class such as `cpu`, within which a seed gives the same bits.
    pub class: String,
    /// Digest of the manifest of the run.
    pub manifest: String,
}

/// Rule for seeds that are not in a golden line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Interval,
    /// Tolerance in the metric's unit.
    Fixed {
        tolerance: f64,
    },
    OneOf,
}

/// One line of golden/table1.csv or golden/table2.csv: every seed's value of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    pub row: String,
    /// As [`Score::changes`].
    pub changes: String,
    pub scale: String,
    pub metric: String,
    pub class: String,
    /// Values by seed; never empty.
    pub values: BTreeMap<u64, f64>,
    pub rule: Rule,
    /// The digest of each seed's manifest.
    pub manifests: BTreeMap<u64, String>,
    /// Date of acceptance, YYYY-MM-DD.
    pub accepted: String,
    pub reason: String,
}

type Key = (String, String, String, String, String);

impl Score {
    fn key(&self) -> Key {
        let Score { row, changes, scale, metric, class, .. } = self.clone();
        (row, changes, scale, metric, class)
    }

    /// Returns the row with its overrides in one word.
    pub fn cell(&self) -> String {
        cell(&self.row, &self.changes)
    }

    /// True if the score belongs to the cell.
    pub fn is(&self, cell: &str) -> bool {
        is(&self.row, &self.changes, cell)
    }
}

/// Joins a row and its overrides in one word: `dijs`, `dijs+critic_steps=2`.
pub fn cell(row: &str, changes: &str) -> String {
    if changes.is_empty() { row.into() } else { format!("{row}+{changes}") }
}

fn is(row: &str, changes: &str, cell: &str) -> bool {
    match cell.strip_prefix(row) {
        Some("") => changes.is_empty(),
        Some(rest) => !changes.is_empty() && rest.strip_prefix('+') == Some(changes),
        None => false,
    }
}

impl Golden {
    fn key(&self) -> Key {
        let Golden { row, changes, scale, metric, class, .. } = self.clone();
        (row, changes, scale, metric, class)
    }

    /// Returns the largest difference between the golden mean and the mean of `m` other seeds; 0
    /// for `one-of`.
    fn allowed(&self, m: usize) -> f64 {
        let gold = Sample::of(self.values.values().copied());
        match self.rule {
            Rule::OneOf => 0.0,
            Rule::Fixed { tolerance } => tolerance,
            Rule::Interval => {
                let (n, m) = (gold.n as f64, m as f64);
                t_quantile(0.975, n - 1.0) * gold.sd.unwrap_or(0.0) * (1.0 / n + 1.0 / m).sqrt()
            }
        }
    }

    /// Returns the smallest accepted value of one more seed, the golden mean, and the largest
    /// accepted value.
    pub fn interval(&self) -> (f64, f64, f64) {
        let mean = Sample::of(self.values.values().copied()).mean;
        let allowed = self.allowed(1);
        (mean - allowed, mean, mean + allowed)
    }
}

/// Converts accepted values to scores.
pub fn accepted(goldens: &[Golden]) -> Vec<Score> {
    let of_line = |golden: &Golden| -> Vec<Score> {
        let score = |(seed, value): (&u64, &f64)| Score {
            row: golden.row.clone(),
            changes: golden.changes.clone(),
            scale: golden.scale.clone(),
            seed: *seed,
            metric: golden.metric.clone(),
            value: *value,
            class: golden.class.clone(),
            manifest: golden.manifests.get(seed).cloned().unwrap_or_default(),
        };
        golden.values.iter().map(score).collect()
    };
    goldens.iter().flat_map(of_line).collect()
}

/// Returns the values by seed of one metric of one cell (`row`, or `row+changes`) over all classes.
/// A seed that was measured in several classes counts once, in the first class by name.
pub fn values(scores: &[Score], row: &str, scale: &str, metric: &str) -> BTreeMap<u64, f64> {
    let mut found: BTreeMap<u64, &Score> = BTreeMap::new();
    for score in scores.iter().filter(|s| s.is(row) && s.scale == scale && s.metric == metric) {
        let first = found.entry(score.seed).or_insert(score);
        if score.class < first.class {
            *first = score;
        }
    }
    found.into_iter().map(|(seed, score)| (seed, score.value)).collect()
}

/// Returns the line to compare with a measurement of class `class`: that of the same class, or else
/// the one with the most seeds.
pub fn find<'a>(
    goldens: &'a [Golden],
    row: &str,
    scale: &str,
    metric: &str,
    class: &str,
) -> Option<&'a Golden> {
    goldens
        .iter()
        .filter(|g| is(&g.row, &g.changes, row) && g.scale == scale && g.metric == metric)
        .max_by_key(|g| (g.class == class, g.values.len(), std::cmp::Reverse(&g.class)))
}

fn same(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= SAME * a.abs().max(b.abs())
}
