//! `list`: every row, its golden value, its seeds in the store, and the cost of a run.

use super::{all_goldens, command, flags, quiet, root};
use crate::app::cli::Place;
use crate::error::{EXIT_GOOD, Result};
use crate::experiment::plan;
use crate::experiment::run::{Runner, shipped};
use crate::experiment::studies::studies;
use crate::experiment::{Initialization, Recipe, Row, all_rows};
use crate::judge::golden::{Golden, TIME};
use crate::judge::paper;
use crate::judge::sample::Sample;
use crate::network::device::Compute;
use crate::report::explain;
use crate::report::tables::metric_names;
use crate::store::Store;
use serde::Serialize;
use serde_json::Value as Json;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// One line of the list.
#[derive(Serialize)]
struct Listed {
    id: &'static str,
    scale: &'static str,
    /// A number or "collapsed"; null if the paper prints none.
    paper_fid: Option<paper::Fid>,
    golden_fd: Option<Accepted>,
    seeds_done: Vec<u64>,
    /// Seconds of one seed on this machine.
    estimated_seconds: f64,
    /// True if the rate is that of a finished run of this row, false if it is from a probe.
    measured: bool,
    peak_disk_bytes: u64,
    command: String,
}

/// Golden values of a row.
#[derive(Serialize)]
struct Accepted {
    mean: f64,
    /// Null for one seed.
    sd: Option<f64>,
    /// Values by seed.
    values: BTreeMap<u64, f64>,
}

/// Prints every cell; with `ids` only the ids, without measuring anything.
pub fn list(place: &Place, ids: bool, json: bool, stop: &AtomicBool) -> Result<i32> {
    if ids {
        all_rows().for_each(|cell| println!("{}", cell.id));
        return Ok(EXIT_GOOD);
    }
    let root = root(place.root.as_deref())?;
    let mut runner = quiet(place, stop)?;
    let compute = runner.compute().clone();
    let goldens = all_goldens(&root)?;
    let printed = paper::printed(&root.join("paper"))?;
    let probe = OnceCell::new();
    let mut rows = Vec::new();
    for cell in all_rows() {
        rows.push(listed(&mut runner, place, &cell, &goldens, &printed, &compute, &probe)?);
    }
    let changed = changed(&mut runner, place)?;
    if json {
        let all: Vec<Json> = rows.iter().map(to_json).chain(changed.iter().map(to_json)).collect();
        println!("{}", serde_json::to_string_pretty(&all).expect("strings and numbers"));
        return Ok(EXIT_GOOD);
    }
    let scale = runner.recipe().scale.name();
    let width = rows.iter().map(|row| row.id.len()).max().unwrap_or(0);
    println!(
        "{:width$} {:>10}  {:20} {:10} {:>10}  {:>7}  command",
        "row",
        "paper FID",
        format!("golden {} ({scale})", metric_names(scale).0),
        "seeds done",
        "one seed",
        "disk"
    );
    for row in &rows {
        let done: Vec<String> = row.seeds_done.iter().map(u64::to_string).collect();
        let done = if done.is_empty() { "none".to_string() } else { done.join(",") };
        let accepted = row.golden_fd.as_ref();
        let golden = accepted.map_or("none".into(), |a| Sample::of(a.values.values().copied()).text(2));
        let paper =
            printed.iter().find(|(id, _)| id == row.id).map_or("-".into(), |(_, fid)| fid.to_string());
        let time =
            format!("{}{}", if row.measured { "" } else { "~" }, plan::duration(row.estimated_seconds));
        let disk = plan::bytes(row.peak_disk_bytes);
        println!(
            "{:width$} {paper:>10}  {golden:20} {done:10} {time:>10}  {disk:>7}  {}",
            row.id, row.command
        );
    }
    println!(
        "\nTimes are for this machine, from finished runs or (~) from a one-second probe. Disk is an upper bound."
    );
    let rows = paper::table1(&root.join("paper"))?.len();
    println!("All {rows} rows of Table 1 are run here; none is cited.");
    for (start, cost) in pretrainings(runner.recipe(), &root)? {
        let rate = *probe.get_or_init(|| plan::probe(&compute).unwrap_or(f64::NAN));
        println!(
            "The first run from {start} also pre-trains it: ~{}, {}.",
            plan::duration(plan::seconds(&cost, rate)),
            plan::bytes(cost.peak_disk_bytes)
        );
    }
    if !changed.is_empty() {
        println!("\nRows with overrides in the store:");
    }
    for row in &changed {
        let seeds: Vec<String> = row.seeds_done.iter().map(u64::to_string).collect();
        println!("{:14} {:20} seeds {:10} {}", row.id, row.fd, seeds.join(","), row.changes);
    }
    print_studies(&runner, place, &root, *probe.get_or_init(|| plan::probe(&compute).unwrap_or(f64::NAN)))?;
    let store = Store::open(&place.store)?;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (_, manifest) in store.finished_entries()? {
        if let (Some(kind), Some(scale)) = (manifest.line("kind"), manifest.line("scale")) {
            *kinds.entry(format!("{kind} of {scale}")).or_default() += 1;
        }
    }
    if !kinds.is_empty() {
        let kinds: Vec<String> = kinds.into_iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        println!("\nEntries of the store: {}.", kinds.join(", "));
    }
    for left in store.leftovers()? {
        println!("Other content of the store: {} {}, {}.", left.count, left.what, plan::bytes(left.bytes));
    }
    Ok(EXIT_GOOD)
}

/// A row with overrides in the store.
#[derive(Serialize)]
struct Changed {
    id: &'static str,
    scale: &'static str,
    changes: String,
    fd: String,
    seeds_done: Vec<u64>,
    command: String,
}

fn to_json(line: &impl Serialize) -> Json {
    serde_json::to_value(line).expect("strings and numbers")
}

/// Returns every row of the scale with overrides in the store.
fn changed(runner: &mut Runner, place: &Place) -> Result<Vec<Changed>> {
    let presets = runner.recipe().clone();
    let mut all = Vec::new();
    for (changes, cells) in runner.changed()?.into_iter().filter(|(changes, _)| !changes.is_empty()) {
        // Skips results from before a setting got its present name.
        let Ok(recipe) = Recipe::changed(presets.scale, &changes) else { continue };
        runner.turn_to(recipe);
        for row in all_rows() {
            let (mut fds, mut seeds) = (Vec::new(), Vec::new());
            for (_, seed) in cells.iter().filter(|(id, _)| id == row.id) {
                let Some(outcome) = runner.stored(&row, *seed)? else { continue };
                seeds.push(*seed);
                fds.extend(runner.scores(&outcome)?.iter().filter(|s| s.metric == "fd").map(|s| s.value));
            }
            if !fds.is_empty() {
                let set: String = changes.iter().map(|change| format!(" --set {change}")).collect();
                all.push(Changed {
                    id: row.id,
                    scale: presets.scale.name(),
                    changes: changes.join("+"),
                    fd: Sample::of(fds).text(2),
                    seeds_done: seeds,
                    command: format!("replicate run {}{}{set}", row.id, flags(place)),
                });
            }
        }
    }
    runner.turn_to(presets);
    Ok(all)
}

/// Prints the studies of the scale: number of cells, time at `rate` operations per second,
/// question.
fn print_studies(runner: &Runner, place: &Place, root: &Path, rate: f64) -> Result<()> {
    let presets = runner.recipe();
    println!("\n{:14} {:>5}  {:>10}  question", "study", "cells", "time");
    for study in studies(&root.join("paper"))? {
        let Ok(recipes) = study.recipes(presets) else { continue };
        let cells = || recipes.iter().flat_map(|recipe| study.rows.iter().map(move |row| (recipe, row)));
        let seconds: f64 = cells().map(|(recipe, row)| plan::seconds(&plan::row(recipe, row), rate)).sum();
        let n = study.seeds.len();
        let time = format!("~{}", plan::duration(seconds * n as f64));
        println!("{:14} {:>5}  {time:>10}  {}", study.id, cells().count() * n, study.question);
    }
    println!("`replicate run STUDY{}` runs one; its time includes finished cells.", flags(place));
    Ok(())
}

fn listed(
    runner: &mut Runner,
    place: &Place,
    cell: &Row,
    goldens: &[Golden],
    printed: &[(String, paper::Fid)],
    compute: &Compute,
    probe: &OnceCell<f64>,
) -> Result<Listed> {
    let scale = runner.recipe().scale.name();
    let cost = plan::row(runner.recipe(), cell);
    let (mut done, mut seconds) = (Vec::new(), None);
    for seed in runner.seeds(cell)? {
        if let Some(outcome) = runner.stored(cell, seed)? {
            done.push(seed);
            let scores = runner.scores(&outcome)?;
            let step = scores.iter().find(|score| score.metric == TIME);
            let whole = outcome.wall_seconds();
            // A row that only samples has no time of a step.
            seconds = Some(step.map_or(whole, |step| plan::seconds(&cost, cost.rate(step.value))));
        }
    }
    let estimated_seconds = match (seconds, probe.get()) {
        (Some(seconds), _) => seconds,
        (None, Some(rate)) => plan::seconds(&cost, *rate),
        (None, None) => {
            let rate = plan::probe(compute)?;
            plan::seconds(&cost, *probe.get_or_init(|| rate))
        }
    };
    let golden = goldens.iter().find(|g| g.row == cell.id && g.scale == scale && g.metric == "fd");
    Ok(Listed {
        id: cell.id,
        scale,
        paper_fid: printed.iter().find(|(row, _)| row == cell.id).map(|(_, fid)| *fid),
        golden_fd: golden.map(|g| {
            let Sample { mean, sd, .. } = Sample::of(g.values.values().copied());
            Accepted { mean, sd, values: g.values.clone() }
        }),
        seeds_done: done,
        estimated_seconds,
        measured: seconds.is_some(),
        peak_disk_bytes: cost.peak_disk_bytes,
        command: command(cell.id, 0, place),
    })
}

/// Returns the pre-trainings whose weights neither ship with the repository nor are published.
fn pretrainings(recipe: &Recipe, root: &Path) -> Result<Vec<(Initialization, plan::Cost)>> {
    let mut all: Vec<(Initialization, plan::Cost)> = Vec::new();
    for cell in all_rows() {
        let name = format!("{}-{}", recipe.scale, cell.start);
        let published = recipe.has_checkpoint(cell.start);
        if cell.start != Initialization::Random
            && !published
            && all.iter().all(|(start, _)| *start != cell.start)
            && shipped(root, &name)?.is_none()
        {
            all.push((cell.start, plan::pretraining(recipe, cell.start)));
        }
    }
    Ok(all)
}

/// Prints the method and settings of each of `cells`, in full or in short.
pub fn explain(cells: &[Row], recipe: &Recipe, full: bool, root: &Path) -> Result<i32> {
    let lines = paper::setup(&root.join("paper"))?;
    let text = |cell: &Row| match full {
        true => explain::full(cell, recipe, &lines, root),
        false => explain::short(cell, recipe, &lines),
    };
    let texts: Vec<String> = cells.iter().map(text).collect();
    print!("{}", texts.join("\n"));
    Ok(EXIT_GOOD)
}
