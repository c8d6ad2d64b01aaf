//! Differences between the rows that the paper's claims compare.

use crate::judge::compare::{Side, Test, comparable};
use crate::judge::golden::Score;
use crate::judge::paper::{Claim, Operand, Statement};

/// Coverage of the two-sided confidence intervals.
pub const COVERAGE: f64 = 0.95;

/// The difference of two rows in one metric: the mean of `left` minus that of `right`.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub metric: String,
    pub left: String,
    pub right: String,
    /// `None` if a side is not measured.
    pub own: Option<Gap>,
    /// The difference on all accepted seeds.
    pub golden: Option<Gap>,
}

/// A difference of means, in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    pub mean: f64,
    /// Half the width of the interval; `None` if a side has one seed.
    pub half: Option<f64>,
    /// True for a paired test, false for Welch's.
    pub paired: bool,
}

impl Gap {
    /// True if the interval excludes 0.
    pub fn tells(&self) -> bool {
        self.half.is_some_and(|half| self.mean.abs() > half)
    }
}

/// Lists every pair of rows that a claim compares in one metric, once, in the order of the claims.
/// It omits pairs without a measurement from the run or in golden.
pub fn differences(claims: &[Claim], scores: &[Score], accepted: &[Score], scale: &str) -> Vec<Difference> {
    let mut all: Vec<Difference> = Vec::new();
    for claim in claims {
        let (Statement::Less { left, right, .. } | Statement::Near { left, right, .. }) = &claim.statement
        else {
            continue;
        };
        let (Operand::Metric { metric, row }, Operand::Metric { metric: other, row: beside }) = (left, right)
        else {
            continue;
        };
        let known = |d: &Difference| (&d.metric, &d.left, &d.right) == (metric, row, beside);
        if metric != other || all.iter().any(known) {
            continue;
        }
        let [own, golden] = [scores, accepted].map(|scores| gap(left, right, scores, scale));
        if own.is_some() || golden.is_some() {
            let (metric, left, right) = (metric.clone(), row.clone(), beside.clone());
            all.push(Difference { metric, left, right, own, golden });
        }
    }
    all
}

fn gap(left: &Operand, right: &Operand, scores: &[Score], scale: &str) -> Option<Gap> {
    let scores = comparable(left, right, scores, scale).ok()?;
    let left = Side::of(left, &scores, scale).ok()?;
    let right = Side::of(right, &scores, scale).ok()?;
    let test = Test::of(&left, &right);
    Some(Gap {
        mean: left.mean - right.mean,
        half: test.map(|test| test.half(COVERAGE)),
        paired: test.is_some_and(|test| test.pairs.is_some()),
    })
}

/// Returns the difference of one metric between two cells, on the seeds that `scores` has for both.
pub fn difference(metric: &str, left: &str, right: &str, scores: &[Score], scale: &str) -> Option<Gap> {
    let operand = |row: &str| Operand::Metric { metric: metric.into(), row: row.into() };
    gap(&operand(left), &operand(right), scores, scale)
}
