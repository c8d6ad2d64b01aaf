//! Writes the report without pictures: as Markdown, for the summary of a CI job, and as JSON.

use crate::judge::claims::{ClaimResult, ClaimVerdict};
use crate::judge::golden::{Comparison, Score};
use crate::report::page::{Missing, Page, TITLE, absent};
use crate::report::studies;
use crate::report::table::plain;
use crate::report::tables::{metric_names, scale_note};
use crate::report::verdicts::claims_table;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Most bytes that GitHub accepts as the summary of one step.
const SUMMARY_LIMIT: usize = 1024 * 1024;

/// Writes the verdict, the claims that were tested, the tables and the missing results as GitHub's
/// Markdown. It is cut at the length limit of a job summary.
pub fn markdown(page: &Page) -> String {
    let mut out = format!("# {TITLE}\n\n{}\n", plain(&scale_note(&page.scale)));
    for sentence in page.verdict.iter().chain([&page.program]).filter(|text| !text.is_empty()) {
        write!(out, "\n{}\n", plain(sentence)).unwrap();
    }
    let tested = |claim: &&ClaimResult| claim.leading().verdict != ClaimVerdict::NotTested;
    let tested: Vec<ClaimResult> = page.claims.iter().filter(tested).cloned().collect();
    if !tested.is_empty() {
        write!(
            out,
            "\n## The paper's claims\n\n{}",
            claims_table(&tested, page.notes.clone(), true).to_markdown()
        )
        .unwrap();
    }
    for table in
        page.tables.iter().chain([&page.differences, &page.readings]).filter(|table| !table.name.is_empty())
    {
        write!(out, "\n## {}\n\n{}", plain(&table.name), table.to_markdown()).unwrap();
    }
    for study in page.studies.started(&page.scale) {
        let table = studies::table(study, page.studies.measured(&page.scale));
        write!(out, "\n## {}\n\n{}", plain(&table.name), table.to_markdown()).unwrap();
    }
    let absent = absent(page);
    for (title, all, also) in
        [("What is missing", &page.missing, absent), ("Other scales", &page.others, None)]
    {
        if !all.is_empty() || also.is_some() {
            write!(out, "\n## {title}\n\n").unwrap();
        }
        for Missing { what, command } in all {
            writeln!(out, "- {}: {}", plain(what), code(command)).unwrap();
        }
        if let Some(also) = also {
            writeln!(out, "- {also}").unwrap();
        }
    }
    within_limit(out)
}

/// Writes every result with its provenance, the verdicts of golden, the claims and the missing
/// results, in the form of `paper/results.schema.json`. Numbers have full precision; a number that
/// is not finite is null.
pub fn json(page: &Page, scores: &[Score], comparisons: &[Comparison]) -> String {
    let results = page.runs.iter().map(|run| {
        let of_run = scores.iter().filter(|score| score.row == run.row && score.seed == run.seed);
        let metrics: Map<String, Value> =
            of_run.map(|score| (score.metric.clone(), json!(score.value))).collect();
        json!({
            "row": run.row, "seed": run.seed, "metrics": metrics, "determinism": run.determinism,
            "key": run.key, "result_sha256": run.result_digest, "date": run.date, "commit": run.commit,
            "dirty": run.dirty, "machine": run.machine, "licences": run.licences, "images": run.images,
            "wall_seconds": run.wall_seconds, "command": run.command,
        })
    });
    let missing =
        page.missing.iter().map(|missing| json!({ "what": missing.what, "command": missing.command }));
    let report = json!({
        "format": "replicate results 1", "scale": page.scale, "distance": metric_names(&page.scale).0,
        "program": page.program, "verdict": page.verdict,
        "results": results.collect::<Vec<_>>(), "golden": comparisons, "claims": page.claims,
        "missing": missing.collect::<Vec<_>>(),
    });
    serde_json::to_string_pretty(&report).expect("strings, numbers and lists of them") + "\n"
}

/// Cuts a text that is too long after a whole line, and adds a note.
fn within_limit(mut text: String) -> String {
    const CUT: &str = "\nCut here: a job summary has a length limit. The HTML report has the rest.\n";
    if text.len() > SUMMARY_LIMIT {
        let end = text.as_bytes()[..SUMMARY_LIMIT - CUT.len()].iter().rposition(|b| *b == b'\n');
        text.truncate(end.map_or(0, |i| i + 1));
        text += CUT;
    }
    text
}

/// Makes a code span of Markdown.
fn code(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}
