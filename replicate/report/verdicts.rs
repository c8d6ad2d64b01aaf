//! Prints the verdicts of golden and on the claims, for `check` and the page.

use crate::judge::claims::{ClaimResult, ClaimVerdict, HOLM, Judgement, ONE_SEED};
use crate::judge::golden::{Comparison, Status};
use crate::judge::paper::Claim;
use crate::judge::sample::seeds;
use crate::report::table::{Cell, Column, Content, Row, Table, Tone};
use serde::Serialize;
use std::fmt::Write;

/// Returns the output of `check`: the counts, and one line for each comparison and each claim. All
/// metrics of a row with the same numbers as golden share a line.
pub fn check_text(comparisons: &[Comparison], claims: &[ClaimResult], own: &[u64], colour: bool) -> String {
    let mut parts = Vec::new();
    if !comparisons.is_empty() {
        let table = golden_table(comparisons);
        parts.push(format!("golden: {}\n{}", status_counts(comparisons), table.to_text(colour)));
    }
    if !claims.is_empty() {
        let mut text = format!("claims: {}", claim_counts(claims, ClaimResult::leading));
        if !own.is_empty() && claims.iter().any(|claim| claim.golden.is_some()) {
            write!(
                text,
                "\nof these on this run's {} alone: {}",
                seeds(own.iter().copied()),
                claim_counts(claims, |c| &c.own)
            )
            .unwrap();
        }
        let notes = if own.len() == 1 { vec![ONE_SEED.to_string()] } else { Vec::new() };
        parts.push(text + "\n" + &claims_table(claims, notes, false).to_text(colour));
    }
    parts.join("\n")
}

fn golden_table(comparisons: &[Comparison]) -> Table {
    let columns = vec![
        Column::new("verdict", "verdict", Content::Text),
        Column::new("row", "row", Content::Text),
        Column::new("metric", "metric", Content::Text),
        Column::new("class", "class", Content::Text),
        Column::new("numbers", "numbers", Content::Text),
    ];
    let alike = |a: &Comparison, b: &Comparison| {
        a.verdict.status == Status::Same
            && a.verdict == b.verdict
            && (&a.row, &a.scale, &a.class) == (&b.row, &b.scale, &b.class)
    };
    let row = |alike: &[Comparison]| {
        let c = &alike[0];
        let metrics: Vec<&str> = alike.iter().map(|c| c.metric.as_str()).collect();
        let (status, tone) = status_text(c.verdict.status);
        let status = Cell::Text(status.to_string(), tone);
        let texts = [&format!("{} {}", c.row, c.scale), &metrics.join(", "), &c.class, &c.verdict.reason];
        Row { cells: [status].into_iter().chain(texts.map(Cell::text)).collect(), ..Row::default() }
    };
    Table { columns, rows: comparisons.chunk_by(alike).map(row).collect(), ..Table::default() }
}

/// Makes a table with one line for each claim. `quoted` adds the paper's words and their place.
pub(crate) fn claims_table(claims: &[ClaimResult], notes: Vec<String>, quoted: bool) -> Table {
    let golden = claims.iter().any(|claim| claim.golden.is_some());
    let cells = |claim: &ClaimResult| {
        [
            (golden, "golden", claim.golden.as_ref().map_or(Cell::Nothing, verdict)),
            (true, "this run", verdict(&claim.own)),
            (true, "claim", Cell::text(&claim.id)),
            (quoted, "in the paper's words", Cell::text(&claim.claim)),
            (quoted, "where", Cell::text(&claim.place)),
            (true, "numbers", Cell::text(numbers(claim))),
        ]
    };
    let shown = |claim: &ClaimResult| cells(claim).into_iter().filter(|(shown, ..)| *shown);
    let columns = claims.first().into_iter().flat_map(shown);
    let columns = columns.map(|(_, title, _)| Column::new(title, title, Content::Text)).collect();
    let row = |claim: &ClaimResult| Row {
        id: claim.id.clone(),
        cells: shown(claim).map(|(_, _, cell)| cell).collect(),
        ..Row::default()
    };
    Table { columns, rows: claims.iter().map(row).collect(), notes, ..Table::default() }
}

fn verdict(judged: &Judgement) -> Cell {
    let (text, tone) = claim_text(&judged.verdict);
    Cell::Text(text.to_string(), tone)
}

/// Makes a table with one line for each claim: its verdict at each scale and under each reading.
pub fn readings_table(claims: &[Claim], readings: &[(String, Vec<Judgement>)]) -> Table {
    let titles = readings.iter().map(|(title, _)| Column::new(title, "", Content::Text));
    let row = |(i, claim): (usize, &Claim)| {
        let verdicts = readings.iter().map(|(_, judged)| verdict(&judged[i]));
        let cells = [Cell::text(&claim.id)].into_iter().chain(verdicts).collect();
        Row { id: claim.id.clone(), cells, ..Row::default() }
    };
    let tested = |(i, _): &(usize, &Claim)| {
        readings.iter().any(|(_, judged)| judged[*i].verdict != ClaimVerdict::NotTested)
    };
    Table {
        name: "Readings".into(),
        columns: [Column::new("claim", "claim", Content::Text)].into_iter().chain(titles).collect(),
        rows: claims.iter().enumerate().filter(tested).map(row).collect(),
        ..Table::default()
    }
}

/// Returns the numbers behind a claim's verdicts: golden's, and the run's own if they differ. Holm's
/// correction alone is no difference: it depends on how many other claims a run tests.
pub(crate) fn numbers(claim: &ClaimResult) -> String {
    let leading = claim.leading();
    match claim.own.verdict == ClaimVerdict::NotTested || measured(&claim.own) == measured(leading) {
        true => leading.reason.clone(),
        false => format!("{}; this run: {}", leading.reason, claim.own.reason),
    }
}

fn measured(judged: &Judgement) -> &str {
    judged.reason.split(HOLM).next().unwrap_or_default()
}

/// Returns the output of `check` as JSON.
pub fn check_json(comparisons: &[Comparison], claims: &[ClaimResult]) -> String {
    #[derive(Serialize)]
    struct Check<'a> {
        golden: &'a [Comparison],
        claims: &'a [ClaimResult],
    }
    let check = Check { golden: comparisons, claims };
    serde_json::to_string_pretty(&check).expect("strings and numbers only") + "\n"
}

pub(crate) fn status_text(status: Status) -> (&'static str, Tone) {
    match status {
        Status::Same => ("same", Tone::Good),
        Status::Within => ("within", Tone::Good),
        Status::NotRun => ("not run", Tone::Open),
        Status::NoGolden => ("no golden", Tone::Open),
        Status::Outside => ("OUTSIDE", Tone::Bad),
    }
}

/// Counts the comparisons by status: `12 same, 1 OUTSIDE`.
pub(crate) fn status_counts(comparisons: &[Comparison]) -> String {
    let statuses = [Status::Same, Status::Within, Status::Outside, Status::NoGolden, Status::NotRun];
    counts(statuses.map(|status| {
        (status_text(status).0, comparisons.iter().filter(|c| c.verdict.status == status).count())
    }))
}

pub(crate) fn claim_text(verdict: &ClaimVerdict) -> (&'static str, Tone) {
    match verdict {
        ClaimVerdict::Holds => ("holds", Tone::Good),
        ClaimVerdict::DoesNotHold => ("does not hold", Tone::Bad),
        ClaimVerdict::Undecided { .. } => ("undecided", Tone::Open),
        ClaimVerdict::NotTested => ("not tested", Tone::Dim),
    }
}

/// The verdicts of `claim_text`; `not tested` comes last.
pub(crate) const VERDICTS: [&str; 4] = ["holds", "does not hold", "undecided", "not tested"];

/// Counts the claims by verdict: `6 hold, 1 does not hold, 24 not tested`.
pub(crate) fn claim_counts(claims: &[ClaimResult], of: impl Fn(&ClaimResult) -> &Judgement) -> String {
    counts(VERDICTS.map(|text| {
        let n = claims.iter().filter(|claim| claim_text(&of(claim).verdict).0 == text).count();
        let text = match text {
            "holds" if n != 1 => "hold",
            "does not hold" if n != 1 => "do not hold",
            text => text,
        };
        (text, n)
    }))
}

fn counts<const N: usize>(counted: [(&str, usize); N]) -> String {
    let there = counted.into_iter().filter(|(_, n)| *n > 0);
    there.map(|(text, n)| format!("{n} {text}")).collect::<Vec<_>>().join(", ")
}
