//! Findings beside the paper's tables: the verdict in two sentences, the runs that have not learned,
//! and the differences between rows.

use crate::judge::claims::{ClaimResult, ClaimVerdict, handful};
use crate::judge::differences::{COVERAGE, Difference, Gap};
use crate::judge::golden::{Comparison, Score, Status};
use crate::judge::sample::signed;
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::curves::{Curve, collapsed};
use crate::report::table::{Cell, Column, Content, Row, Table, Tone};
use crate::report::tables::metric_name;
use crate::report::verdicts::{claim_counts, status_counts};
use crate::text::and;
use std::collections::BTreeSet;

/// Returns the two sentences of the verdict: the counts of the paper's claims, and the comparison of
/// this run with golden. `own` and `golden` are seeds.
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

/// Returns row and seed of the runs that meet the criterion of collapse because they have not
/// learned: they met it before training, and training did not lower their Fréchet distance. At a
/// scale with a handful of steps, these are all runs that meet it.
pub fn unlearned(scores: &[Score], curves: &[Curve], scale: &str) -> BTreeSet<(String, u64)> {
    let stayed = |curve: &Curve| {
        let (Some(start), Some(end)) = (curve.points.first(), curve.points.last()) else { return false };
        collapsed(start) && end.fd >= start.fd
    };
    let run = |s: &Score| curves.iter().any(|c| s.is(&c.row) && c.seed == s.seed && stayed(c));
    let all = scores.iter().filter(|s| s.scale == scale && s.metric == "collapse" && s.value == COLLAPSED);
    all.filter(|s| handful(scale) || run(s)).map(|s| (s.cell(), s.seed)).collect()
}

/// Returns a note on the `runs` that have not learned; `None` if there are none, or if the scale has
/// too few steps to learn.
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

/// Makes the table of the differences between the rows that the claims compare.
pub fn difference_table(differences: &[Difference], labels: &[(String, String)], scale: &str) -> Table {
    let gap = |gap: &Option<Gap>| match gap {
        None => Cell::Nothing,
        Some(gap @ Gap { mean, half, paired }) => {
            let interval = half.map_or(String::new(), |h| {
                let welch = if *paired { "" } else { " (Welch)" };
                format!(" [{}, {}]{welch}", signed(mean - h), signed(mean + h))
            });
            let tone = if half.is_none() || gap.tells() { Tone::Plain } else { Tone::Dim };
            Cell::Text(signed(*mean) + &interval, tone)
        }
    };
    let row = |d: &Difference| Row {
        id: format!("{}-{}-{}", d.metric, d.left, d.right),
        cells: vec![
            Cell::text(metric_name(&d.metric, scale)),
            Cell::text(format!("{} − {}", label(labels, &d.left), label(labels, &d.right))),
            gap(&d.golden),
            gap(&d.own),
        ],
        ..Row::default()
    };
    let columns = vec![
        Column::new("metric", "metric", Content::Text),
        Column::new("rows", "rows", Content::Text),
        Column::new("golden's seeds", "golden", Content::Text),
        Column::new("this run", "own", Content::Text),
    ];
    let title = format!(
        "Mean difference of the pairs of one seed with its {:.0} % interval, where both rows have two seeds or \
         more; Welch's where pairs are missing.",
        100.0 * COVERAGE
    );
    let notes = vec![
        "The intervals are not corrected for the number of pairs. All seeds share one pre-training, so the intervals \
         do not include its variation."
            .to_string(),
    ];
    Table { name: "Differences".into(), title, columns, rows: differences.iter().map(row).collect(), notes }
}

/// Returns the label of a cell, such as `DiJS`, or its name if no table has it.
pub(crate) fn label<'a>(labels: &'a [(String, String)], cell: &'a str) -> &'a str {
    labels.iter().find(|(known, _)| known == cell).map_or(cell, |(_, label)| label)
}
