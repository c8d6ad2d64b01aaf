//! Reads and prints stored results of studies and of other rows with overrides.

pub mod diff;

use super::check::accept_into;
use super::{STUDIES, presets, reader, render, root, study_goldens};
use crate::app::cli::{Format, Place};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::experiment::run::{Runner, curve};
use crate::experiment::studies::{Study, studies};
use crate::experiment::{Recipe, Row, all_rows};
use crate::judge::golden::{self, Comparison, Score};
use crate::report::curves::Curve;
use crate::report::notes::unlearned;
use crate::report::studies::{self as page, Part, Studies};
use crate::text::unknown;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Returns the studies' ids; empty if the file cannot be read.
pub(super) fn ids(given: Option<&Path>) -> Vec<String> {
    let all = root(given).and_then(|root| studies(&root.join("paper")));
    all.map_or(Vec::new(), |all| all.into_iter().map(|study| study.id).collect())
}

/// Splits `targets` into studies and others.
pub(super) fn split(targets: &[String], place: &Place) -> Result<(Vec<Study>, Vec<String>)> {
    let row = |target: &String| {
        all_rows().any(|row| row.id == *target)
            || ["table1", "table2", "all", super::FULL_ROW].contains(&target.as_str())
    };
    if targets.iter().all(row) {
        return Ok((Vec::new(), targets.to_vec()));
    }
    let all = studies(&root(place.root.as_deref())?.join("paper"))?;
    let (named, others): (Vec<String>, Vec<String>) =
        targets.iter().cloned().partition(|target| all.iter().any(|study| study.id == *target));
    Ok((all.into_iter().filter(|study| named.contains(&study.id)).collect(), others))
}

/// Rows and seeds in the store, by their sorted overrides.
pub(super) type Changed = BTreeMap<Vec<String>, BTreeSet<(String, u64)>>;

/// Reads one part of a study from the store.
fn part(
    runner: &mut Runner,
    changed: &Changed,
    row: &Row,
    value: String,
    others: &str,
    scores: &mut Vec<Score>,
) -> Result<Part> {
    let changes = runner.recipe().sorted_changes();
    let cell = golden::cell(row.id, &changes.join("+"));
    let mut curves = Vec::new();
    let seeds = changed.get(&changes).into_iter().flatten().filter(|(id, _)| id == row.id);
    for (_, seed) in seeds {
        let Some(outcome) = runner.stored(row, *seed)? else { continue };
        scores.extend(runner.scores(&outcome)?);
        let points = curve(outcome.training())?;
        if !points.is_empty() {
            curves.push(Curve { row: cell.clone(), label: value.clone(), seed: *seed, points });
        }
    }
    Ok(Part { row: golden::cell(row.id, others), value, cell, curves })
}

/// Compares the studies' scores with their golden values.
fn judged(all: Vec<page::Study>, mut scores: Vec<Score>, runner: &Runner, root: &Path) -> Result<Studies> {
    let scale = runner.recipe().scale.name();
    // A cell can belong to several studies.
    let mut seen = BTreeSet::new();
    scores.retain(|s| seen.insert((s.cell(), s.seed, s.metric.clone(), s.class.clone())));
    let cells: BTreeSet<&str> =
        all.iter().flat_map(|study| &study.cells).map(|part| part.cell.as_str()).collect();
    let mut goldens = study_goldens(root)?;
    goldens.extend(super::all_goldens(root)?);
    goldens.retain(|g| g.scale == scale && cells.contains(golden::cell(&g.row, &g.changes).as_str()));
    let comparisons = golden::check(&goldens, &scores);
    let curves: Vec<Curve> =
        all.iter().flat_map(|study| &study.cells).flat_map(|part| part.curves.clone()).collect();
    let unlearned = unlearned(&scores, &curves, scale);
    Ok(Studies { all, scores, comparisons, unlearned })
}

/// Reads the stored results of `wanted` at the runner's scale, on top of its presets.
pub(super) fn gather(runner: &mut Runner, wanted: &[Study], root: &Path, place: &Place) -> Result<Studies> {
    let presets = runner.recipe().clone();
    let changed = runner.changed()?;
    let (mut all, mut scores) = (Vec::new(), Vec::new());
    for study in wanted {
        let Ok(recipes) = study.recipes(&presets) else { continue };
        let mut cells = Vec::new();
        for row in &study.rows {
            for recipe in &recipes {
                runner.turn_to(recipe.clone());
                cells.push(part(runner, &changed, row, study.values(recipe), "", &mut scores)?);
            }
        }
        all.push(page::Study {
            id: study.id.clone(),
            question: study.question.clone(),
            answer: study.answer.clone(),
            cells,
            command: format!("replicate run {}{}", study.id, super::flags(place)),
        });
    }
    runner.turn_to(presets);
    judged(all, scores, runner, root)
}

/// Reads every study of the scale.
pub(super) fn all(runner: &mut Runner, root: &Path, place: &Place) -> Result<Studies> {
    gather(runner, &studies(&root.join("paper"))?, root, place)
}

/// Prints the tables of `wanted` from stored results.
pub(super) fn print(wanted: &[Study], place: &Place, base: Recipe, stop: &AtomicBool) -> Result<()> {
    let mut runner = reader(place, base, stop)?;
    let root = root(place.root.as_deref())?;
    let studies = gather(&mut runner, wanted, &root, place)?;
    for study in &studies.all {
        let table = page::table(study, studies.measured(runner.recipe().scale.name()));
        println!("\n{}", render(&table, Format::Text));
    }
    Ok(())
}

/// Prints stored results that differ in one setting.
pub fn by(field: &str, place: &Place, format: Format, stop: &AtomicBool) -> Result<i32> {
    let fields = Recipe::fields();
    let Some(field) = fields.iter().find(|known| known.name.eq_ignore_ascii_case(field)) else {
        return Err(Error::Usage(unknown("setting", field, fields.iter().map(|field| field.name))));
    };
    let mut runner = reader(place, presets(place)?, stop)?;
    let (presets, changed) = (runner.recipe().clone(), runner.changed()?);
    let (mut parts, mut scores) = (Vec::new(), Vec::new());
    for (changes, cells) in &changed {
        // Skips results from before a setting got its present name.
        let Ok(recipe) = Recipe::changed(presets.scale, changes) else { continue };
        let others: Vec<&str> = changes
            .iter()
            .map(String::as_str)
            .filter(|change| change.split('=').next() != Some(field.name))
            .collect();
        let value = recipe.value(field.name).unwrap_or_default();
        let rows: BTreeSet<&str> = cells.iter().map(|(row, _)| row.as_str()).collect();
        for row in all_rows().filter(|row| rows.contains(row.id)) {
            if recipe.used(&row).iter().any(|setting| setting.field.name == field.name) {
                runner.turn_to(recipe.clone());
                let shown = format!("{} {value}", field.name);
                parts.push(part(&mut runner, &changed, &row, shown, &others.join("+"), &mut scores)?);
            }
        }
    }
    runner.turn_to(presets);
    let number = |part: &Part| part.value.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
    let order = |a: &Part, b: &Part| {
        a.row.cmp(&b.row).then(match (number(a), number(b)) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => a.value.cmp(&b.value),
        })
    };
    parts.sort_by(order);
    let alone = |part: &Part| parts.iter().filter(|other| other.row == part.row).count() == 1;
    let lonely: BTreeSet<String> =
        parts.iter().filter(|part| alone(part)).map(|part| part.row.clone()).collect();
    let cells: Vec<Part> = parts.into_iter().filter(|part| !lonely.contains(&part.row)).collect();
    if cells.is_empty() {
        println!(
            "no two results of --scale {} in {} differ in {} alone",
            place.scale,
            place.store.display(),
            field.name
        );
        return Ok(EXIT_INCOMPLETE);
    }
    let study = page::Study {
        id: format!("by {}", field.name),
        question: field.says.trim().to_string(),
        answer: "fd".into(),
        cells,
        command: String::new(),
    };
    let studies = judged(vec![study], scores, &runner, &root(place.root.as_deref())?)?;
    let table = page::table(&studies.all[0], studies.measured(runner.recipe().scale.name()));
    print!("{}", render(&table, format));
    Ok(EXIT_GOOD)
}

/// Returns the stored scores of `wanted` with overrides, and their comparisons with golden values.
pub(super) fn comparisons(
    wanted: &[Study],
    place: &Place,
    seeds: &[u64],
    stop: &AtomicBool,
) -> Result<(Vec<Score>, Vec<Comparison>)> {
    let mut runner = reader(place, presets(place)?, stop)?;
    let root = root(place.root.as_deref())?;
    for study in wanted {
        study.recipes(runner.recipe())?;
    }
    let mut gathered = gather(&mut runner, wanted, &root, place)?;
    if !seeds.is_empty() {
        gathered.scores.retain(|score| seeds.contains(&score.seed));
        gathered = judged(gathered.all, gathered.scores, &runner, &root)?;
    }
    Ok((gathered.scores, gathered.comparisons))
}

/// Accepts the cells of `wanted` as golden values; returns the text to print.
pub(super) fn accept(
    wanted: &[Study],
    place: &Place,
    seeds: &[u64],
    reason: &str,
    stop: &AtomicBool,
) -> Result<String> {
    let (mut scores, _) = comparisons(wanted, place, seeds, stop)?;
    // The row without overrides belongs to its table's golden values.
    scores.retain(|score| !score.changes.is_empty());
    if scores.is_empty() {
        return Err(Error::Usage("there is nothing to accept: run these studies first".into()));
    }
    accept_into(&root(place.root.as_deref())?.join(STUDIES), &scores, reason, stop)
}
