//! `check` and `accept`: compare stored results with golden values, the paper and its claims.

use super::{
    all_goldens, claims, golden_path, lock_to_change, presets, reader, recipes, report, root, select, stored,
    studies, study_goldens, write_file,
};
use crate::app::cli::{Against, Place, Which};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, EXIT_OUTSIDE, Error, Result};
use crate::experiment::run::{Runner, now};
use crate::experiment::studies::Study;
use crate::experiment::{FULL_INITIALIZATION, Recipe, Row, Scale, TABLE2, all_rows};
use crate::judge::claims::{ClaimResult, ClaimVerdict, evaluate_all};
use crate::judge::golden::{
    self, Comparison, Golden, Score, Status, read_golden, refuse_in_ci, write_golden,
};
use crate::judge::paper::{self, Claim, Fid};
use crate::judge::sample::Sample;
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::verdicts::{check_json, check_text};
use crate::train::watch::say;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Runs `replicate check`; the exit code says whether everything holds.
pub fn check(
    targets: &[String],
    place: &Place,
    seeds: &[u64],
    against: Against,
    set: &[String],
    json: bool,
    stop: &AtomicBool,
) -> Result<i32> {
    let (studies, targets) = studies::split(targets, place)?;
    if !studies.is_empty() {
        if !targets.is_empty() || against != Against::Golden || !set.is_empty() {
            return Err(Error::Usage(
                "check studies separately from rows, against golden and without --set".into(),
            ));
        }
        return of_studies(&studies, place, seeds, json, stop);
    }
    let cells = select(&targets, place)?;
    let rows: Vec<&str> = cells.iter().map(|cell| cell.id).collect();
    let root = root(place.root.as_deref())?;
    let Ok([recipe]) = <[Recipe; 1]>::try_from(recipes(place, set, None, &cells)?) else {
        return Err(Error::Usage("--set: check takes one value for each setting".into()));
    };
    let mut runner = reader(place, recipe, stop)?;
    let scale = runner.recipe().scale.name();
    let all: Vec<Row> = all_rows().collect();
    // Reads all rows, because a claim compares a row with others.
    let mut scores = stored(&mut runner, if against == Against::Claims { &all } else { &cells }, seeds)?;
    // With --set, the scores are compared with the values of the rows without it.
    scores.iter_mut().for_each(|score| score.changes.clear());
    match against {
        Against::Golden => {
            let goldens: Vec<Golden> = all_goldens(&root)?
                .into_iter()
                .filter(|golden| golden.scale == scale && rows.contains(&golden.row.as_str()))
                .collect();
            let comparisons = golden::check(&goldens, &scores);
            tell(&comparisons, &[], &[], json);
            if comparisons.is_empty() && !json {
                println!(
                    "nothing to compare: neither golden values nor results of these rows at --scale {scale}"
                );
            }
            let any = |status: Status| comparisons.iter().any(|c| c.verdict.status == status);
            let changes = &runner.recipe().changes();
            if !changes.is_empty() && !json {
                println!(
                    "golden values exist only for the recipe without --set {}; accept refuses these results",
                    changes.join(" --set ")
                );
            } else if any(Status::Outside) && !json {
                println!(
                    "if the change is intended, 'replicate accept ROW --reason WHY' makes the new numbers golden"
                );
            }
            Ok(exit_code(&comparisons))
        }
        Against::Claims => {
            let named = |claim: &&Claim| {
                let row = |cell: &String| cell.split('+').next().unwrap_or_default().to_string();
                cells.len() == all.len()
                    || claim.statement.rows().iter().any(|cell| rows.contains(&row(cell).as_str()))
            };
            let claims: Vec<Claim> = claims(&root.join("paper"))?.into_iter().filter(|c| named(&c)).collect();
            // Some claims are about rows with overrides.
            let mut accepted = golden::accepted(&all_goldens(&root)?);
            accepted.extend(golden::accepted(&study_goldens(&root)?));
            if runner.recipe().changes().is_empty() {
                let studies = studies::all(&mut runner, &root, place)?.scores.into_iter();
                scores.extend(studies.filter(|score| !score.changes.is_empty()));
            }
            let results = evaluate_all(&claims, &scores, &accepted, scale);
            tell(&[], &results, &report::seeds(&scores), json);
            let tested = results.iter().any(|claim| claim.leading().verdict != ClaimVerdict::NotTested);
            if tested && !json && runner.recipe().changes().is_empty() {
                accepted.retain(|score| {
                    score.scale == scale && score.changes.is_empty() && rows.contains(&score.row.as_str())
                });
                say_golden_seeds(&mut runner, &targets, &cells, place, &report::seeds(&accepted))?;
            }
            if !scores.iter().any(|score| rows.contains(&score.row.as_str())) {
                return Ok(EXIT_INCOMPLETE);
            }
            let broken = results.iter().any(|result| result.own.verdict == ClaimVerdict::DoesNotHold);
            Ok(if broken { EXIT_OUTSIDE } else { EXIT_GOOD })
        }
        Against::Paper => against_paper(&root, scale, &cells, &scores, json),
    }
}

/// Prints the comparisons and the claims, on the run's seeds `own`.
fn tell(comparisons: &[Comparison], claims: &[ClaimResult], own: &[u64], json: bool) {
    let text = || check_text(comparisons, claims, own, std::io::stdout().is_terminal());
    print!("{}", if json { check_json(comparisons, claims) } else { text() });
}

/// Prints the command for golden's seeds of the cells that the store lacks.
fn say_golden_seeds(
    runner: &mut Runner,
    targets: &[String],
    cells: &[Row],
    place: &Place,
    golden: &[u64],
) -> Result<()> {
    let (mut own, mut wall, mut whole) = (BTreeSet::new(), 0.0, true);
    for cell in cells {
        let before = wall;
        for seed in runner.seeds(cell)? {
            let Some(outcome) = runner.stored(cell, seed)? else { continue };
            own.insert(seed);
            wall += outcome.wall_seconds();
        }
        whole &= wall > before;
    }
    let own: Vec<u64> = own.into_iter().collect();
    let wall = whole.then_some(wall);
    if let Some(next) = report::golden_seeds(&targets.join(" "), place, &own, golden, wall) {
        println!("{}: {}", next.what, next.command);
    }
    Ok(())
}

fn exit_code(comparisons: &[Comparison]) -> i32 {
    let any = |status: Status| comparisons.iter().any(|c| c.verdict.status == status);
    if any(Status::Outside) {
        EXIT_OUTSIDE
    } else if comparisons.is_empty() || any(Status::NotRun) || any(Status::NoGolden) {
        EXIT_INCOMPLETE
    } else {
        EXIT_GOOD
    }
}

fn of_studies(wanted: &[Study], place: &Place, seeds: &[u64], json: bool, stop: &AtomicBool) -> Result<i32> {
    let comparisons = studies::comparisons(wanted, place, seeds, stop)?.1;
    match comparisons.is_empty() && !json {
        true => println!("nothing to compare: neither golden values nor results"),
        false => tell(&comparisons, &[], &[], json),
    }
    Ok(exit_code(&comparisons))
}

/// Largest relative difference between a printed FID and one that agrees with it. It is large,
/// because the paper gives neither the training length nor the spread of its numbers.
const PAPER_TOLERANCE: f64 = 0.25;

/// Returns the measurement, and true if it agrees with the paper: an FID near the printed one, or a
/// collapse on every seed.
fn held(printed: Fid, values: &[f64]) -> (String, bool) {
    match printed {
        Fid::Value(fid) => {
            let sample = Sample::of(values.iter().copied());
            (sample.text(2), (sample.mean - fid).abs() <= PAPER_TOLERANCE * fid)
        }
        Fid::Collapsed => {
            let collapsed = values.iter().filter(|category| **category == COLLAPSED).count();
            (format!("collapsed on {collapsed} of {}", values.len()), collapsed == values.len())
        }
    }
}

fn against_paper(root: &Path, scale: &str, cells: &[Row], scores: &[Score], json: bool) -> Result<i32> {
    let mut outside = false;
    let mut missing = false;
    let mut lines = Vec::new();
    let (printed, ours) = (paper::printed(&root.join("paper"))?, paper::targets(&root.join("paper"))?);
    for cell in cells.iter().filter(|cell| ours.iter().all(|(row, _)| row != cell.id)) {
        missing = true;
        let theirs = printed.iter().any(|(row, _)| row == cell.id);
        say(&format!(
            "{}: {}",
            cell.id,
            if theirs { "the printed number is another network's" } else { "the paper prints no number" }
        ));
    }
    for (row, printed) in ours.into_iter().filter(|(row, _)| cells.iter().any(|cell| cell.id == row)) {
        let metric = if printed == Fid::Collapsed { "collapse" } else { "fd" };
        let values = golden::values(scores, &row, scale, metric);
        if values.is_empty() {
            missing = true;
            lines.push((row, printed, "-".to_string(), "not run".to_string()));
            continue;
        }
        let (found, agrees) = held(printed, &values.into_values().collect::<Vec<_>>());
        let verdict = if scale != Scale::Paper.name() {
            format!("not comparable: --scale {scale} uses other images and other features")
        } else if agrees {
            "agrees".to_string()
        } else {
            outside = true;
            match printed {
                Fid::Value(_) => format!("differs by more than {:.0} %", PAPER_TOLERANCE * 100.0),
                Fid::Collapsed => "differs".to_string(),
            }
        };
        lines.push((row, printed, found, verdict));
    }
    if json {
        let objects: Vec<_> = lines
            .iter()
            .map(|(row, target, ours, verdict)| {
                let paper = printed.iter().find(|(id, _)| id == row).map(|(_, fid)| fid);
                serde_json::json!({
                    "row": row, "paper_fid": paper, "target_fid": target, "ours": ours, "verdict": verdict
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&objects).expect("strings and numbers"));
    } else {
        for (row, paper, ours, verdict) in lines {
            let known = printed.iter().any(|(id, fid)| *id == row && *fid == paper);
            let theirs = format!("{} {paper}", if known { "paper" } else { "target" });
            println!("{row:14} {theirs:15}  ours {ours:20}  {verdict}");
        }
    }
    Ok(if outside {
        EXIT_OUTSIDE
    } else if missing {
        EXIT_INCOMPLETE
    } else {
        EXIT_GOOD
    })
}

/// Runs `replicate accept`: makes stored results golden and prints the diff.
pub fn accept(
    targets: &[String],
    place: &Place,
    seeds: &[u64],
    reason: &str,
    stop: &AtomicBool,
) -> Result<i32> {
    refuse_in_ci(std::env::var("CI").ok().as_deref())?;
    let (wanted, targets) = studies::split(targets, place)?;
    // Prints after all files are written, so that a closed pipe cannot prevent a write.
    let mut said = match wanted.is_empty() {
        true => String::new(),
        false => studies::accept(&wanted, place, seeds, reason, stop)?,
    };
    if targets.is_empty() {
        print!("{said}");
        return Ok(EXIT_GOOD);
    }
    let cells = select(&targets, place)?;
    let root = root(place.root.as_deref())?;
    let mut runner = reader(place, presets(place)?, stop)?;
    let scores = stored(&mut runner, &cells, seeds)?;
    if scores.is_empty() {
        return Err(Error::Usage("there is nothing to accept: run these cells first".into()));
    }
    for which in [Which::Table1, Which::Table2] {
        let initialization =
            |row: &str| row != FULL_INITIALIZATION.id && TABLE2.iter().any(|cell| cell.id == row);
        let ours: Vec<Score> = scores
            .iter()
            .filter(|score| initialization(&score.row) == (which == Which::Table2))
            .cloned()
            .collect();
        if ours.is_empty() {
            continue;
        }
        said += &accept_into(&golden_path(&root, which), &ours, reason, stop)?;
    }
    print!("{said}");
    Ok(EXIT_GOOD)
}

/// Adds scores to the golden values in `path`; returns the text to print.
pub(super) fn accept_into(path: &Path, scores: &[Score], reason: &str, stop: &AtomicBool) -> Result<String> {
    let _lock = lock_to_change(path, stop)?;
    let (goldens, diff) = golden::accept(read_golden(path)?, scores, reason, &now()[..10])?;
    write_file(path, write_golden(&goldens).as_bytes())?;
    Ok(format!("{}\n{diff}\n", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_agrees_within_a_quarter_and_a_collapse_on_every_seed() {
        let fid = |values: &[f64]| held(Fid::Value(2.0), values).1;
        assert!(fid(&[2.5]) && fid(&[1.5]) && fid(&[1.0, 3.0]));
        assert!(!fid(&[2.51]) && !fid(&[1.49]) && !fid(&[2.0, 4.0]));
        assert_eq!(held(Fid::Collapsed, &[2.0, 2.0]), ("collapsed on 2 of 2".to_string(), true));
        assert_eq!(held(Fid::Collapsed, &[2.0, 1.0]), ("collapsed on 1 of 2".to_string(), false));
        assert_eq!(held(Fid::Collapsed, &[0.0]), ("collapsed on 0 of 1".to_string(), false));
    }
}
