//! Statistical tests on the two sides of a comparison.
//!
//! Rows of one seed share the latents of their scored images, and rows that draw under the same
//! names share training images and noise, too. If both sides have the same seeds, the test is
//! therefore a paired t-test; otherwise it is Welch's t-test of the means.

use crate::judge::golden::{Score, TIME, values};
use crate::judge::paper::Operand;
use crate::judge::sample::{Sample, plain, signed};
use crate::judge::stats::{t_cdf, t_quantile};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The verdict on a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum ClaimVerdict {
    Holds,
    DoesNotHold,
    /// `seeds_needed` is the estimated number of seeds on each side for a decision; `None` if it
    /// cannot be estimated.
    Undecided {
        seeds_needed: Option<usize>,
    },
    NotTested,
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    #[serde(flatten)]
    pub verdict: ClaimVerdict,
    pub reason: String,
    /// One-sided p-value of the test behind the verdict, in the observed direction.
    pub p: Option<f64>,
    /// The p-value after Holm's correction over all claims.
    pub holm: Option<f64>,
}

impl Judgement {
    pub(super) fn new(verdict: ClaimVerdict, reason: String, p: Option<f64>) -> Judgement {
        Judgement { verdict, reason, p, holm: None }
    }
}

/// Level of every test, one-sided.
const LEVEL: f64 = 0.05;
/// Power for the estimated number of seeds, if the observed difference is the true one.
const POWER: f64 = 0.8;
/// Largest number of seeds that is estimated.
const MANY: usize = 1000;

/// Selects the scores to compare. Times are comparable only on the same class of device: it takes
/// the first class, by name, with times of both rows.
pub(super) fn comparable(
    left: &Operand,
    right: &Operand,
    scores: &[Score],
    scale: &str,
) -> Result<Vec<Score>, String> {
    let (Operand::Metric { metric, row: left }, Operand::Metric { metric: other, row: right }) =
        (left, right)
    else {
        return Ok(scores.to_vec());
    };
    if metric != TIME || other != TIME {
        return Ok(scores.to_vec());
    }
    let classes = |row: &str| -> BTreeSet<&str> {
        let timed = scores.iter().filter(|s| s.is(row) && s.scale == scale && s.metric == TIME);
        timed.map(|s| s.class.as_str()).collect()
    };
    let (left, right) = (classes(left), classes(right));
    match left.intersection(&right).next() {
        Some(class) => Ok(scores.iter().filter(|s| s.class == *class).cloned().collect()),
        None if left.is_empty() || right.is_empty() => Ok(scores.to_vec()),
        None => Err("the two rows were timed on different classes of device".to_string()),
    }
}

/// One side of a comparison.
pub(super) struct Side {
    /// The numbers, for a reason.
    text: String,
    pub mean: f64,
    spread: Spread,
    /// Values by seed; empty for an exact quantity.
    values: BTreeMap<u64, f64>,
}

#[derive(Clone, Copy)]
enum Spread {
    /// Not random.
    Exact,
    /// One seed of a random quantity.
    Unknown,
    /// Variance of a single seed's value, and the number of seeds.
    Variance { variance: f64, n: usize },
}

impl Side {
    /// Returns a side of a claim; fails with the reason if it cannot be compared.
    pub fn of(operand: &Operand, scores: &[Score], scale: &str) -> Result<Side, String> {
        let exact = |x: f64| Side { text: plain(x), mean: x, spread: Spread::Exact, values: BTreeMap::new() };
        let (metric, row) = match operand {
            Operand::Number(x) => return Ok(exact(*x)),
            Operand::Metric { metric, row } => (metric, row),
        };
        if metric == "is" && scale == "mini" {
            return Err(
                "the stand-in for IS is unreliable at mini: it scores blurred images above real ones"
                    .to_string(),
            );
        }
        let values = values(scores, row, scale, metric);
        let Some(first) = values.values().next().copied() else {
            return Err(format!("{metric} of {row} is not measured at scale {scale}"));
        };
        if let Some(bad) = values.values().find(|x| !x.is_finite()) {
            return Err(format!("{metric} of {row} is {bad} on some seed"));
        }
        let counted = metric == "critic_parameters" || metric == "generator_parameters";
        if counted && values.values().all(|x| *x == first) {
            return Ok(exact(first));
        }
        Ok(Side::random(values))
    }

    fn random(values: BTreeMap<u64, f64>) -> Side {
        let sample = Sample::of(values.values().copied());
        let spread = match sample.sd {
            None => Spread::Unknown,
            Some(sd) => Spread::Variance { variance: sd * sd, n: sample.n },
        };
        let text = if sample.n == 1 { plain(sample.mean) } else { sample.to_string() };
        Side { text, mean: sample.mean, spread, values }
    }

    /// Multiplies the side by a factor of the claim.
    pub fn times(self, factor: f64) -> Side {
        if factor == 1.0 {
            return self;
        }
        Side {
            text: format!("{} x {}", plain(factor), self.text),
            mean: factor * self.mean,
            spread: self.spread.times(factor * factor),
            values: self.values.into_iter().map(|(seed, x)| (seed, factor * x)).collect(),
        }
    }

    /// Returns the logarithm of a positive side. Without pairs, its spread follows from the delta
    /// method.
    fn ln(&self) -> Side {
        Side {
            text: self.text.clone(),
            mean: self.mean.ln(),
            spread: self.spread.times(self.mean.powi(-2)),
            values: self.values.iter().map(|(seed, x)| (*seed, x.ln())).collect(),
        }
    }
}

impl Spread {
    fn times(self, share: f64) -> Spread {
        match self {
            Spread::Variance { variance, n } => Spread::Variance { variance: share * variance, n },
            other => other,
        }
    }

    fn with(self, n: usize) -> Spread {
        match self {
            Spread::Variance { variance, .. } => Spread::Variance { variance, n },
            other => other,
        }
    }
}

/// The left side minus the right side, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Test {
    pub difference: f64,
    pub error: f64,
    pub dof: f64,
    /// Number of pairs; `None` for Welch's test.
    pub pairs: Option<usize>,
}

impl Test {
    /// Makes the test; `None` if a side has only one seed.
    pub fn of(left: &Side, right: &Side) -> Option<Test> {
        let paired = left.values.len() >= 2 && left.values.keys().eq(right.values.keys());
        if !paired {
            let (error, dof) = welch(left.spread, right.spread)?;
            return Some(Test { difference: left.mean - right.mean, error, dof, pairs: None });
        }
        let pairs = left.values.iter().map(|(seed, x)| x - right.values[seed]);
        let sample = Sample::of(pairs);
        let (n, sd) = (sample.n, sample.sd.unwrap_or(0.0));
        let error = sd / (n as f64).sqrt();
        Some(Test { difference: sample.mean, error, dof: n as f64 - 1.0, pairs: Some(n) })
    }

    /// Returns half the width of the confidence interval with probability `coverage`.
    pub fn half(&self, coverage: f64) -> f64 {
        match self.error {
            0.0 => 0.0,
            error => t_quantile(0.5 + 0.5 * coverage, self.dof) * error,
        }
    }

    /// Returns the one-sided p-value of "the difference is below `bound`".
    fn p_below(&self, bound: f64) -> f64 {
        t_cdf((self.difference - bound) / self.error, self.dof)
    }

    fn kind(&self) -> &'static str {
        if self.pairs.is_some() { "paired" } else { "Welch" }
    }
}

/// Returns the standard error of the difference of two means, and its degrees of freedom after
/// Satterthwaite; `None` if a side has only one seed.
fn welch(left: Spread, right: Spread) -> Option<(f64, f64)> {
    let (mut variance, mut denominator) = (0.0, 0.0);
    for spread in [left, right] {
        match spread {
            Spread::Exact => {}
            Spread::Unknown => return None,
            Spread::Variance { variance: v, n } => {
                let of_mean = v / n as f64;
                variance += of_mean;
                denominator += of_mean * of_mean / (n as f64 - 1.0);
            }
        }
    }
    Some((variance.sqrt(), variance * variance / denominator))
}

/// Decides `left < right`.
pub(super) fn less(left: &Side, right: &Side) -> Judgement {
    let numbers = format!("{} vs {}", left.text, right.text);
    let Some(test) = Test::of(left, right) else {
        return undecided(numbers, seeds_needed(right.mean - left.mean, left, right), None);
    };
    if test.error == 0.0 {
        let verdict = if test.difference < 0.0 { ClaimVerdict::Holds } else { ClaimVerdict::DoesNotHold };
        return Judgement::new(verdict, format!("{numbers}, no spread"), None);
    }
    // A 90 % interval, so that it excludes 0 exactly if a one-sided test at 5 % decides.
    let (d, half) = (test.difference, test.half(1.0 - 2.0 * LEVEL));
    let interval = format!("[{}, {}]", signed(d - half), signed(d + half));
    let numbers = format!("{numbers}, difference {} {interval} ({})", signed(d), test.kind());
    let smaller = test.p_below(0.0);
    let p = smaller.min(1.0 - smaller);
    if smaller < LEVEL {
        let reason = format!("{numbers}: significantly smaller, {}", p_text(p));
        return Judgement::new(ClaimVerdict::Holds, reason, Some(p));
    }
    if 1.0 - smaller < LEVEL {
        let reason = format!("{numbers}: significantly larger, {}", p_text(p));
        return Judgement::new(ClaimVerdict::DoesNotHold, reason, Some(p));
    }
    undecided(
        format!("{numbers}: {}, neither side is significantly smaller", p_text(smaller)),
        seeds_needed(d, left, right),
        Some(p),
    )
}

/// Decides whether `left / right` lies within [1 / factor, factor].
pub(super) fn near(left: &Side, right: &Side, factor: f64) -> Judgement {
    let ratio = left.mean / right.mean;
    let numbers = format!("{} vs {}, ratio {ratio:.3}", left.text, right.text);
    let positive = |side: &Side| side.values.values().chain([&side.mean]).all(|x| *x > 0.0);
    if !(positive(left) && positive(right) && ratio.is_finite()) {
        return undecided(format!("{numbers}: a factor needs two positive numbers"), None, None);
    }
    let (l, r, bound) = (left.ln(), right.ln(), factor.ln());
    let Some(test) = Test::of(&l, &r) else {
        return undecided(numbers, seeds_needed(bound - ratio.ln().abs(), &l, &r), None);
    };
    let (log, margin) = (test.difference, test.half(1.0 - 2.0 * LEVEL));
    let numbers = match margin {
        0.0 => numbers,
        _ => {
            format!("{numbers} [{:.3}, {:.3}] ({})", (log - margin).exp(), (log + margin).exp(), test.kind())
        }
    };
    // The side nearer to its bound decides both tests.
    let inside = Test { difference: log.abs(), ..test }.p_below(bound);
    let p = (test.error > 0.0).then_some(inside.min(1.0 - inside));
    let p_text = p.map_or(String::new(), |p| format!(", {}", p_text(p)));
    let within = format!("[{:.3}, {factor:.3}]", 1.0 / factor);
    if log.abs() + margin <= bound {
        Judgement::new(ClaimVerdict::Holds, format!("{numbers}, inside {within}{p_text}"), p)
    } else if log.abs() - margin > bound {
        Judgement::new(ClaimVerdict::DoesNotHold, format!("{numbers}, outside {within}{p_text}"), p)
    } else {
        let needed = seeds_needed(bound - log.abs(), &l, &r);
        undecided(format!("{numbers}, across the bounds of {within}{p_text}"), needed, p)
    }
}

/// Returns the smallest number of seeds for each random side at which the observed difference would
/// be significant with probability [`POWER`]. A side with one seed is assumed to have the spread of
/// the other.
fn seeds_needed(difference: f64, left: &Side, right: &Side) -> Option<usize> {
    let now = Test::of(left, right);
    let (l, r) = match (left.spread, right.spread) {
        (Spread::Unknown, other @ Spread::Variance { .. }) => (other, other),
        (other @ Spread::Variance { .. }, Spread::Unknown) => (other, other),
        sides => sides,
    };
    let error = |n: usize| match now {
        Some(Test { error, pairs: Some(pairs), .. }) => {
            Some((error * (pairs as f64 / n as f64).sqrt(), n as f64 - 1.0))
        }
        _ => welch(l.with(n), r.with(n)),
    };
    let enough = |n| {
        error(n).is_some_and(|(error, dof)| {
            difference.abs() >= (t_quantile(1.0 - LEVEL, dof) + t_quantile(POWER, dof)) * error
        })
    };
    if !enough(MANY) {
        return None;
    }
    let (mut low, mut high) = (2, MANY);
    while low < high {
        let middle = (low + high) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}

pub(super) fn undecided(reason: String, seeds_needed: Option<usize>, p: Option<f64>) -> Judgement {
    let reason = match seeds_needed {
        Some(n) => format!("{reason}; about {n} seeds on each side would decide"),
        None => reason,
    };
    Judgement::new(ClaimVerdict::Undecided { seeds_needed }, reason, p)
}

fn p_text(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_string() } else { format!("p = {p:.4}") }
}
