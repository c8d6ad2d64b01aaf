//! The paper's claims, decided on what was measured: one verdict each.
//!
//! * `left < factor * right`: Welch's one-sided t-test at 5 % on the seeds'
//!   values. It holds if the left side is significantly smaller, does not hold
//!   if it is significantly larger, and is undecided in between. Seeds are not
//!   paired: two rows with the same seed share no more than their random numbers.
//! * `left ~ right`: the 90 % interval of the ratio of the means (delta method on
//!   the logarithm) inside [1/factor, factor] holds, outside it does not hold.
//!   That is two one-sided tests at 5 %.
//! * `collapsed`, `not-collapsed`: the categories of two seeds or more must agree; `degraded`
//!   is not collapsed.
//!
//! One seed has no spread, so nothing random is decided on it. Numbers of
//! parameters and plain numbers are exact and need no seeds.

use crate::judge::golden::{Sample, Score, TIME, plain, seeds, values};
use crate::judge::paper::{Claim, Operand, Statement};
use crate::judge::stats::{t_cdf, t_quantile};
use crate::measure::metrics::modes::{COLLAPSED, STATES};
use serde::Serialize;
use std::collections::BTreeSet;

/// The level of every test, one-sided.
const LEVEL: f64 = 0.05;
/// The probability with which the estimated number of seeds would show the
/// difference that is seen now, if it is the true one.
const POWER: f64 = 0.8;
/// More seeds than this are not estimated.
const MANY: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum ClaimVerdict {
    Holds,
    DoesNotHold,
    /// `seeds_needed`, on each side, would probably decide it; `None` where that
    /// cannot be said.
    Undecided {
        seeds_needed: Option<usize>,
    },
    NotTested,
}

/// A verdict and the numbers that led to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    #[serde(flatten)]
    pub verdict: ClaimVerdict,
    pub reason: String,
}

/// Said once where results of one seed are judged; their reasons give the numbers alone.
pub const ONE_SEED: &str =
    "One seed (n = 1) decides neither an order nor a category: its spread is not known.";

/// One claim, decided on a run's scores and on golden's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimResult {
    pub id: String,
    /// In the paper's words.
    pub claim: String,
    /// Where the paper says it.
    #[serde(rename = "where")]
    pub place: String,
    #[serde(flatten)]
    pub own: Judgement,
    /// The same on all accepted seeds; `None` where nothing of the scale is accepted.
    pub golden: Option<Judgement>,
}

impl ClaimResult {
    /// On golden's seeds, or on the run's own where golden does not test the claim.
    pub fn leading(&self) -> &Judgement {
        self.golden.as_ref().filter(|g| g.verdict != ClaimVerdict::NotTested).unwrap_or(&self.own)
    }
}

/// Decides every claim on the scores of one scale, and beside that on the values that are
/// `accepted` there.
pub fn evaluate_all(claims: &[Claim], scores: &[Score], accepted: &[Score], scale: &str) -> Vec<ClaimResult> {
    let golden = accepted.iter().any(|score| score.scale == scale);
    let both = claims.iter().map(|claim| ClaimResult {
        id: claim.id.clone(),
        claim: claim.claim.clone(),
        place: claim.place.clone(),
        own: evaluate(claim, scores, scale),
        golden: golden.then(|| evaluate(claim, accepted, scale)),
    });
    both.collect()
}

/// Decides one claim on the scores of one scale.
pub fn evaluate(claim: &Claim, scores: &[Score], scale: &str) -> Judgement {
    let (verdict, reason) = decide(claim, scores, scale).unwrap_or_else(|why| (ClaimVerdict::NotTested, why));
    Judgement { verdict, reason }
}

/// Whether a scale takes a handful of steps, so that nothing has learned.
pub fn handful(scale: &str) -> bool {
    matches!(scale, "smoke" | "drill")
}

type Decision = (ClaimVerdict, String);

/// `Err` says why the claim is not tested.
fn decide(claim: &Claim, scores: &[Score], scale: &str) -> Result<Decision, String> {
    if claim.statement == Statement::Untestable {
        return Err(claim.note.clone());
    }
    if handful(scale) {
        return Err("a handful of steps says nothing about the paper".to_string());
    }
    let sides = |left: &Operand, right: &Operand| {
        let scores = comparable(left, right, scores, scale)?;
        Ok::<_, String>((Side::of(left, &scores, scale)?, Side::of(right, &scores, scale)?))
    };
    match &claim.statement {
        Statement::Untestable => unreachable!("answered above"),
        Statement::Less { left, right, factor } => {
            let (left, right) = sides(left, right)?;
            Ok(less(&left, &right.times(*factor)))
        }
        Statement::Near { left, right, factor } => {
            let (left, right) = sides(left, right)?;
            Ok(near(&left, &right, *factor))
        }
        Statement::Collapsed { row } => category(scores, row, scale, true),
        Statement::NotCollapsed { row } => category(scores, row, scale, false),
    }
}

/// Times compare only where both rows ran on the same class of device: of all
/// scores, those of the first class (by name) that has timed both.
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
        let timed = scores.iter().filter(|s| s.row == row && s.scale == scale && s.metric == TIME);
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
    /// The numbers, for the reason.
    text: String,
    pub mean: f64,
    pub spread: Spread,
}

#[derive(Clone, Copy)]
pub(super) enum Spread {
    /// Not random.
    Exact,
    /// One seed: random, and nothing is known about how much.
    Unknown,
    /// Of one seed, with the number of seeds.
    Variance { variance: f64, n: usize },
}

impl Side {
    pub fn of(operand: &Operand, scores: &[Score], scale: &str) -> Result<Side, String> {
        let (metric, row) = match operand {
            Operand::Number(x) => return Ok(Side { text: plain(*x), mean: *x, spread: Spread::Exact }),
            Operand::Metric { metric, row } => (metric, row),
        };
        if metric == "is" && scale == "mini" {
            return Err(
                "the stand-in for IS is unreliable at mini: it scores blurred images above real ones"
                    .to_string(),
            );
        }
        let found: Vec<f64> = values(scores, row, scale, metric).into_values().collect();
        if found.is_empty() {
            return Err(format!("{metric} of {row} is not measured at scale {scale}"));
        }
        if let Some(bad) = found.iter().find(|x| !x.is_finite()) {
            return Err(format!("{metric} of {row} is {bad} on some seed"));
        }
        let sample = Sample::of(found.iter().copied());
        let counted = metric == "critic_parameters" || metric == "generator_parameters";
        if counted && found.iter().all(|x| *x == found[0]) {
            return Ok(Side { text: plain(found[0]), mean: found[0], spread: Spread::Exact });
        }
        let spread = match sample.sd {
            None => Spread::Unknown,
            Some(sd) => Spread::Variance { variance: sd * sd, n: sample.n },
        };
        let text = if sample.n == 1 { plain(sample.mean) } else { sample.to_string() };
        Ok(Side { text, mean: sample.mean, spread })
    }

    fn times(self, factor: f64) -> Side {
        if factor == 1.0 {
            return self;
        }
        Side {
            text: format!("{} x {}", plain(factor), self.text),
            mean: factor * self.mean,
            spread: self.spread.times(factor * factor),
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
}

fn less(left: &Side, right: &Side) -> Decision {
    let numbers = format!("{} vs {}", left.text, right.text);
    let difference = right.mean - left.mean;
    let Some(test) = Welch::of(left.spread, right.spread) else {
        return undecided(numbers, seeds_needed(difference, left.spread, right.spread));
    };
    if test.error == 0.0 {
        let verdict = if difference > 0.0 { ClaimVerdict::Holds } else { ClaimVerdict::DoesNotHold };
        return (verdict, format!("{numbers}, no spread"));
    }
    let p_smaller = t_cdf(-difference / test.error, test.dof);
    if p_smaller < LEVEL {
        return (ClaimVerdict::Holds, format!("{numbers}: significantly smaller, {}", p_text(p_smaller)));
    }
    if 1.0 - p_smaller < LEVEL {
        let reason = format!("{numbers}: significantly larger, {}", p_text(1.0 - p_smaller));
        return (ClaimVerdict::DoesNotHold, reason);
    }
    undecided(
        format!("{numbers}: {}, neither side is significantly smaller", p_text(p_smaller)),
        seeds_needed(difference, left.spread, right.spread),
    )
}

fn near(left: &Side, right: &Side, factor: f64) -> Decision {
    let ratio = left.mean / right.mean;
    let numbers = format!("{} vs {}, ratio {ratio:.3}", left.text, right.text);
    if !(ratio > 0.0 && ratio.is_finite()) {
        return undecided(format!("{numbers}: a factor needs two positive numbers"), None);
    }
    // Delta method: the variance of ln x is that of x over the square of its mean.
    let (l, r) = (left.spread.times(left.mean.powi(-2)), right.spread.times(right.mean.powi(-2)));
    let (log, bound) = (ratio.ln().abs(), factor.ln());
    let Some(test) = Welch::of(l, r) else {
        return undecided(numbers, seeds_needed(bound - log, l, r));
    };
    let margin = if test.error == 0.0 { 0.0 } else { t_quantile(1.0 - LEVEL, test.dof) * test.error };
    let numbers = match margin {
        0.0 => numbers,
        _ => format!("{numbers} [{:.3}, {:.3}]", ratio * (-margin).exp(), ratio * margin.exp()),
    };
    let within = format!("[{:.3}, {factor:.3}]", 1.0 / factor);
    if log + margin <= bound {
        (ClaimVerdict::Holds, format!("{numbers}, inside {within}"))
    } else if log - margin > bound {
        (ClaimVerdict::DoesNotHold, format!("{numbers}, outside {within}"))
    } else {
        undecided(format!("{numbers}, across the bounds of {within}"), seeds_needed(bound - log, l, r))
    }
}

fn category(scores: &[Score], row: &str, scale: &str, collapsed: bool) -> Result<Decision, String> {
    let found = values(scores, row, scale, "collapse");
    if found.is_empty() {
        return Err(format!("collapse of {row} is not measured at scale {scale}"));
    }
    let named = |category: f64| found.iter().filter(move |(_, c)| **c == category).map(|(seed, _)| *seed);
    let parts: Vec<String> = STATES
        .into_iter()
        .filter(|(_, category)| named(*category).next().is_some())
        .map(|(name, category)| format!("{name} on {}", seeds(named(category))))
        .collect();
    let reason = format!("{row} {}", parts.join(", "));
    if found.len() < 2 {
        return Ok(undecided(reason, None));
    }
    let count = found.values().filter(|c| **c == COLLAPSED).count();
    Ok(match count {
        0 if collapsed => (ClaimVerdict::DoesNotHold, reason),
        0 => (ClaimVerdict::Holds, reason),
        n if n == found.len() && collapsed => (ClaimVerdict::Holds, reason),
        n if n == found.len() => (ClaimVerdict::DoesNotHold, reason),
        _ => undecided(format!("{reason}: the seeds disagree"), None),
    })
}

/// The standard error of the difference of two means, and its degrees of freedom.
pub(super) struct Welch {
    pub error: f64,
    pub dof: f64,
}

impl Welch {
    /// `None` where a side has but one seed. Degrees of freedom after Satterthwaite.
    pub fn of(left: Spread, right: Spread) -> Option<Welch> {
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
        Some(Welch { error: variance.sqrt(), dof: variance * variance / denominator })
    }
}

/// The smallest number of seeds, the same for every random side, at which the
/// difference seen now would be significant with probability [`POWER`]. A side
/// of one seed is taken to spread like the other.
fn seeds_needed(difference: f64, left: Spread, right: Spread) -> Option<usize> {
    let (left, right) = match (left, right) {
        (Spread::Unknown, other @ Spread::Variance { .. }) => (other, other),
        (other @ Spread::Variance { .. }, Spread::Unknown) => (other, other),
        sides => sides,
    };
    let with = |spread, n| match spread {
        Spread::Variance { variance, .. } => Spread::Variance { variance, n },
        other => other,
    };
    let enough = |n| {
        Welch::of(with(left, n), with(right, n)).is_some_and(|test| {
            let needed = t_quantile(1.0 - LEVEL, test.dof) + t_quantile(POWER, test.dof);
            difference.abs() >= needed * test.error
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

fn undecided(reason: String, seeds_needed: Option<usize>) -> Decision {
    let reason = match seeds_needed {
        Some(n) => format!("{reason}; about {n} seeds on each side would decide"),
        None => reason,
    };
    (ClaimVerdict::Undecided { seeds_needed }, reason)
}

fn p_text(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_string() } else { format!("p = {p:.4}") }
}
