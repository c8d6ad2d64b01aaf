//! Decides the paper's claims on measured values, with one verdict for each claim.
//!
//! * `left < factor * right`: a one-sided t-test at 5 % on the seeds' values, paired if both sides
//!   have the same seeds, else Welch's. The claim holds if the left side is significantly smaller,
//!   does not hold if it is significantly larger, and is undecided in between.
//! * `left ~ right`: the 90 % confidence interval of the ratio, computed on logarithms (with the
//!   delta method if pairs are missing). The claim holds if the interval lies inside [1/factor,
//!   factor], and does not hold if it lies outside. This is two one-sided tests at 5 %.
//! * `collapsed`, `not-collapsed`: two or more seeds must have the same category; `degraded` is not
//!   collapsed. `collapsed-early`: the same for the first half of the training.
//!
//! Verdicts use the raw p-values. Each is reported with its p-value after Holm's correction over
//! both one-sided tests of every claim that has one, because a claim can fail as well as hold.
//!
//! One seed gives no spread, so it decides no random quantity. Numbers of parameters and plain
//! numbers are exact and need no seeds.

pub use crate::judge::compare::{ClaimVerdict, Judgement};
use crate::judge::compare::{Side, comparable, less, near, undecided};
use crate::judge::golden::{Score, values};
use crate::judge::paper::{Claim, Operand, Statement};
use crate::judge::sample::seeds;
use crate::judge::stats::holm;
use crate::measure::metrics::modes::{COLLAPSED, STATES};
use serde::Serialize;

/// Printed once with results of one seed, so that their reasons need not repeat it.
pub const ONE_SEED: &str = "One seed decides neither an order nor a category: its spread is not known.";

/// The beginning of what [`family`] adds to a reason.
pub const HOLM: &str = "; after Holm p ";

/// Said once where tests decide.
pub const BRACKETS: &str = "Brackets hold the 90 % interval, which decides as a one-sided test at 5 % does.";

/// One claim, decided on the scores of a run and on golden values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimResult {
    pub id: String,
    /// The claim in the paper's words.
    pub claim: String,
    /// Its place in the paper.
    #[serde(rename = "where")]
    pub place: String,
    #[serde(flatten)]
    pub own: Judgement,
    /// The judgement on all accepted seeds; `None` if the scale has no accepted values.
    pub golden: Option<Judgement>,
}

impl ClaimResult {
    /// Returns the judgement on golden values, or on the run's own if golden does not test the
    /// claim.
    pub fn leading(&self) -> &Judgement {
        self.golden.as_ref().filter(|g| g.verdict != ClaimVerdict::NotTested).unwrap_or(&self.own)
    }
}

/// Decides every claim on the scores of one scale, and on the `accepted` values of that scale.
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

/// Decides every claim on the scores of one scale, with Holm's correction over all of them.
pub fn family(claims: &[Claim], scores: &[Score], scale: &str) -> Vec<Judgement> {
    let mut all: Vec<Judgement> = claims.iter().map(|claim| evaluate(claim, scores, scale)).collect();
    let mut tested: Vec<&mut Judgement> = all.iter_mut().filter(|judged| judged.p.is_some()).collect();
    let raw: Vec<f64> = tested.iter().filter_map(|judged| judged.p).collect();
    for (judged, holm) in tested.iter_mut().zip(holm(&raw, 2 * raw.len())) {
        judged.holm = Some(holm);
        judged.reason += &match holm < 0.005 {
            true => format!("{HOLM}< 0.005"),
            false => format!("{HOLM}= {holm:.2}"),
        };
    }
    all
}

/// Decides one claim on the scores of one scale.
pub fn evaluate(claim: &Claim, scores: &[Score], scale: &str) -> Judgement {
    let not_tested = |reason| Judgement::new(ClaimVerdict::NotTested, reason, None);
    decide(claim, scores, scale).unwrap_or_else(not_tested)
}

/// True if a scale takes too few steps for any network to learn.
pub fn handful(scale: &str) -> bool {
    matches!(scale, "smoke" | "drill")
}

/// Decides a claim. The error gives the reason why it is not tested.
fn decide(claim: &Claim, scores: &[Score], scale: &str) -> Result<Judgement, String> {
    if claim.statement == Statement::Untestable {
        return Err(claim.note.clone());
    }
    if handful(scale) {
        return Err("this scale takes too few steps to test the paper's claims".to_string());
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
        Statement::Category { row, metric, collapsed } => category(scores, row, scale, metric, *collapsed),
    }
}

fn category(
    scores: &[Score],
    row: &str,
    scale: &str,
    metric: &str,
    collapsed: bool,
) -> Result<Judgement, String> {
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
    Ok(Judgement::new(verdict, reason, None))
}
