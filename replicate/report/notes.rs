//! The sentences that no table can say: the verdict, which runs have not learned, and which
//! rows have seen other images than the rest.

use crate::experiment::{Recipe, Scale, all_rows};
use crate::judge::claims::{ClaimResult, ClaimVerdict, handful};
use crate::judge::golden::{Comparison, Score, Status};
use crate::judge::paper::{Kind, Row1};
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::curves::{Curve, collapsed};
use crate::report::verdicts::{claim_counts, status_counts};
use crate::text::{and, thousands};
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

/// What the trained rows have seen where it is not what the others have.
pub(crate) fn budgets(rows: &[Row1], scale: &str) -> Vec<String> {
    let Some(scale) = Scale::ALL.into_iter().find(|known| known.name() == scale) else {
        return Vec::new();
    };
    let recipe = Recipe::of(scale);
    let shared = recipe.budget.images;
    let trained = rows.iter().filter(|row| row.kind == Kind::Run).filter_map(|row| {
        let known = all_rows().find(|known| known.id == row.id)?;
        known.method.training.map(|training| (row, known, training))
    });
    let mut notes = Vec::new();
    for (row, known, training) in trained {
        let seen = thousands(recipe.images_of(&known));
        if training.from_scratch.is_some() {
            notes.push(format!(
                "{}: without pre-training; it sees {seen} images, the others {} after a pre-training of {}.",
                row.label,
                thousands(shared),
                thousands(recipe.pretraining.images)
            ));
        }
        if training.at_most.is_some_and(|most| most < shared) {
            notes
                .push(format!("{}: its training ends after {seen} images, as the published one.", row.label));
        }
        if let Some(first) = known.generator {
            let label =
                rows.iter().find(|row| row.id == first.row).map_or(first.row, |row| row.label.as_str());
            let (whose, images) = match recipe.has_checkpoint(known.start) {
                true => (format!("the published generator of {label}"), first.published),
                false => (format!("the generator of {label} of the same seed"), shared),
            };
            notes.push(format!(
                "{}: it goes on from {whose}, which had seen {} images; its own are {seen}.",
                row.label,
                thousands(images)
            ));
        }
    }
    notes
}
