//! The paper's claims, decided on what was measured: one verdict each.
//!
//! * `left < factor * right`: a one-sided t-test at 5 % on the seeds' values, of pairs where
//!   both sides have the same seeds, else Welch's. It holds if the left side is significantly
//!   smaller, does not hold if it is significantly larger, and is undecided in between.
//! * `left ~ right`: the 90 % interval of the ratio (on the logarithm; the delta method where
//!   pairs are missing) inside [1/factor, factor] holds, outside it does not hold.
//!   That is two one-sided tests at 5 %.
//! * `collapsed`, `not-collapsed`: the categories of two seeds or more must agree; `degraded`
//!   is not collapsed. `collapsed-early`: in the first half of the training.
//!
//! Verdicts are of the raw p-values. Beside each stands Holm's, over both one-sided tests of
//! every claim that has one: a claim can be broken as well as hold.
//!
//! One seed has no spread, so nothing random is decided on it. Numbers of
//! parameters and plain numbers are exact and need no seeds.

use crate::judge::compare::{Side, comparable, less, near, undecided};
use crate::judge::golden::{Score, seeds, values};
use crate::judge::paper::{Claim, Operand, Statement};
use crate::judge::stats::holm;
use crate::measure::metrics::modes::{COLLAPSED, STATES};
use serde::Serialize;

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
    /// Of the test that the verdict comes from, one-sided, in the direction that was seen.
    pub p: Option<f64>,
    /// The same after Holm's correction over all claims.
    pub holm: Option<f64>,
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
    let own = family(claims, scores, scale);
    let accepted = golden.then(|| family(claims, accepted, scale));
    let of = |(i, claim): (usize, &Claim)| ClaimResult {
        id: claim.id.clone(),
        claim: claim.claim.clone(),
        place: claim.place.clone(),
        own: own[i].clone(),
        golden: accepted.as_ref().map(|all| all[i].clone()),
    };
    claims.iter().enumerate().map(of).collect()
}

/// Every claim on the scores of one scale, with Holm's correction over all of them.
pub fn family(claims: &[Claim], scores: &[Score], scale: &str) -> Vec<Judgement> {
    let mut all: Vec<Judgement> = claims.iter().map(|claim| evaluate(claim, scores, scale)).collect();
    let mut tested: Vec<&mut Judgement> = all.iter_mut().filter(|judged| judged.p.is_some()).collect();
    let raw: Vec<f64> = tested.iter().filter_map(|judged| judged.p).collect();
    for (judged, holm) in tested.iter_mut().zip(holm(&raw, 2 * raw.len())) {
        judged.holm = Some(holm);
        judged.reason += &format!("; after Holm p = {holm:.2}");
    }
    all
}

/// Decides one claim on the scores of one scale.
pub fn evaluate(claim: &Claim, scores: &[Score], scale: &str) -> Judgement {
    let not_tested = |reason| Decision { verdict: ClaimVerdict::NotTested, reason, p: None };
    let Decision { verdict, reason, p } = decide(claim, scores, scale).unwrap_or_else(not_tested);
    Judgement { verdict, reason, p, holm: None }
}

/// Whether a scale takes a handful of steps, so that nothing has learned.
pub fn handful(scale: &str) -> bool {
    matches!(scale, "smoke" | "drill")
}

pub(super) struct Decision {
    pub verdict: ClaimVerdict,
    pub reason: String,
    pub p: Option<f64>,
}

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
        Statement::Collapsed { row } => category(scores, row, scale, "collapse", true),
        Statement::CollapsedEarly { row } => category(scores, row, scale, "early_collapse", true),
        Statement::NotCollapsed { row } => category(scores, row, scale, "collapse", false),
    }
}

fn category(
    scores: &[Score],
    row: &str,
    scale: &str,
    metric: &str,
    collapsed: bool,
) -> Result<Decision, String> {
    let found = values(scores, row, scale, metric);
    if found.is_empty() {
        return Err(format!("{metric} of {row} is not measured at scale {scale}"));
    }
    let named = |category: f64| found.iter().filter(move |(_, c)| **c == category).map(|(seed, _)| *seed);
    let parts: Vec<String> = STATES
        .into_iter()
        .filter(|(_, category)| named(*category).next().is_some())
        .map(|(name, category)| format!("{name} on {}", seeds(named(category))))
        .collect();
    let when = if metric == "collapse" { "" } else { ", at worst in the first half of the training" };
    let reason = format!("{row} {}{when}", parts.join(", "));
    if found.len() < 2 {
        return Ok(undecided(reason, None, None));
    }
    let count = found.values().filter(|c| **c == COLLAPSED).count();
    let verdict = match count {
        0 if collapsed => ClaimVerdict::DoesNotHold,
        0 => ClaimVerdict::Holds,
        n if n == found.len() && collapsed => ClaimVerdict::Holds,
        n if n == found.len() => ClaimVerdict::DoesNotHold,
        _ => return Ok(undecided(format!("{reason}: the seeds disagree"), None, None)),
    };
    Ok(Decision { verdict, reason, p: None })
}
