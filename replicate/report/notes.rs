//! The sentences that no table can say: the verdict, and which runs have not learned.

use crate::judge::claims::{ClaimResult, ClaimVerdict, handful};
use crate::judge::golden::{Comparison, Score, Status};
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::curves::{Curve, collapsed};
use crate::report::verdicts::{claim_counts, status_counts};
use crate::text::and;
use std::collections::BTreeSet;

/// What a reader wants to know first, in two sentences: how the paper's claims stand, and how
/// this run compares with golden. `own` and `golden` are seeds.
pub fn verdict(
    claims: &[ClaimResult],
    comparisons: &[Comparison],
    own: &[u64],
    golden: &[u64],
    scale: &str,
) -> Vec<String> {
    let list = |of: &[u64]| match of {
        [one] => format!("seed {one}"),
        several => format!("seeds {}", and(&several.iter().map(u64::to_string).collect::<Vec<_>>())),
    };
    let by = match golden {
        [] => format!("this run's {}", list(own)),
        golden => format!("golden's {}", list(golden)),
    };
    let tested = |claim: &&ClaimResult| claim.leading().verdict != ClaimVerdict::NotTested;
    let first = match claims.iter().filter(tested).count() {
        0 => format!("No claim of the paper is decided at scale {scale}."),
        _ => format!(
            "Of the paper's {} claims, by {by} at scale {scale}: {}.",
            claims.len(),
            claim_counts(claims, ClaimResult::leading)
        ),
    };
    let run: Vec<Comparison> =
        comparisons.iter().filter(|c| c.verdict.status != Status::NotRun).cloned().collect();
    let only = |status: Status| run.iter().all(|c| c.verdict.status == status);
    let compared = match () {
        _ if only(Status::NoGolden) => "has no accepted values to compare with".to_string(),
        _ if only(Status::Same) => format!("gives golden's numbers in all {} comparisons", run.len()),
        _ => format!("compares with golden as follows: {}", status_counts(&run)),
    };
    let alone = match own != golden && !golden.is_empty() && claims.iter().any(|c| tested(&c)) {
        true => format!(
            "; alone{} it tells: {}",
            if own.len() == 1 { ", with n = 1," } else { "" },
            claim_counts(claims, |c| &c.own)
        ),
        false => String::new(),
    };
    vec![first, format!("This run of {} {compared}{alone}.", list(own))]
}

/// Row and seed of the runs that meet the criterion of collapse only because they have not
/// learned: they met it before training, and training brought them no nearer to the data.
/// After a handful of steps these are all that meet it.
pub fn unlearned(scores: &[Score], curves: &[Curve], scale: &str) -> BTreeSet<(String, u64)> {
    let stayed = |curve: &Curve| {
        let (Some(start), Some(end)) = (curve.points.first(), curve.points.last()) else { return false };
        collapsed(start) && end.fd >= start.fd
    };
    let run = |s: &Score| curves.iter().any(|c| s.is(&c.row) && c.seed == s.seed && stayed(c));
    let all = scores.iter().filter(|s| s.scale == scale && s.metric == "collapse" && s.value == COLLAPSED);
    all.filter(|s| handful(scale) || run(s)).map(|s| (s.cell(), s.seed)).collect()
}

/// Said once of all `runs` that have not learned, where some could have.
pub fn not_learned(runs: &BTreeSet<(String, u64)>, scale: &str) -> Option<String> {
    let names: Vec<String> = runs.iter().map(|(row, seed)| format!("{row}-s{seed}")).collect();
    (!names.is_empty() && !handful(scale)).then(|| {
        format!(
            "Not learned: {}. These runs end no nearer to the data than they began. An untrained network meets the \
             criterion of collapse, too: they are no evidence of collapse.",
            and(&names)
        )
    })
}
