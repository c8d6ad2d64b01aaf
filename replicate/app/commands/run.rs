//! `run`: makes what is missing of the rows that are named, and prints their tables or scores.

use super::{
    list, prepare, recipes, render, report, root, select, settings, tables, unique, write_file, write_table,
};
use crate::app::cli::{Explain, Format, Place, Running};
use crate::app::machine;
use crate::error::{EXIT_GOOD, Error, Result};
use crate::experiment::run::{Outcome, Runner};
use crate::experiment::{Recipe, Row, Scale, plan};
use crate::judge::golden::{Score, TIME};
use crate::measure::metrics::modes::STATES;
use crate::train::watch::{Mode, Watch, say};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Runs each experiment that `arguments` name; the exit code is the first that is not good.
pub fn run(arguments: &Running, stop: &AtomicBool) -> Result<i32> {
    let Running { targets, place, seed, until, set, explain, .. } = arguments;
    let rows = select(targets, place)?;
    let mut code = EXIT_GOOD;
    for recipe in recipes(place, set, *until, &rows)? {
        if let Some(explain) = explain {
            list::explain(&rows, &recipe, *explain == Explain::Full, &root(place.root.as_deref())?)?;
            continue;
        }
        let ended = experiment(arguments, &rows, recipe, &unique(seed), stop)?;
        code = if code == EXIT_GOOD { ended } else { code };
    }
    Ok(code)
}

/// Runs the rows of one recipe.
fn experiment(
    arguments: &Running,
    rows: &[Row],
    recipe: Recipe,
    seeds: &[u64],
    stop: &AtomicBool,
) -> Result<i32> {
    let Running { targets, place, offline, microbatch, output, .. } = arguments;
    let mut settings = settings(place, arguments.from_scratch)?;
    settings.keep = arguments.keep;
    settings.microbatch = microbatch.map(|images| images as usize);
    if microbatch.is_some() && settings.device.is_cpu() {
        return Err(Error::Usage(
            "--microbatch is for GPUs: on a CPU the same seed promises the same bytes, of whole batches"
                .into(),
        ));
    }
    let watch = Watch::new(arguments.watch.unwrap_or_else(Mode::fitting));
    let mut runner = Runner::new(settings, recipe, watch, stop)?;
    runner.read_given(rows)?;
    if arguments.dry_run {
        return prepare::dry_run(&mut runner, place, rows, seeds, *offline);
    }
    let scale = runner.recipe().scale;
    let large = matches!(scale, Scale::Small | Scale::Paper);
    if large && runner.device().is_cpu() && arguments.until.is_none() {
        say(&format!("--scale {scale} needs a GPU; --dry-run estimates how long it takes on this machine"));
    }
    prepare::prepare(&mut runner, place, rows, seeds, *offline, stop)?;
    if writes_tables(targets, &runner) {
        // Tried first: it should not fail after the work.
        std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
        write_file(&output.join(".writable"), b"")?;
        _ = std::fs::remove_file(output.join(".writable"));
    }
    let (mut outcomes, mut failed) = (Vec::new(), None);
    for seed in seeds {
        for row in rows {
            match runner.row(row, *seed) {
                Ok(outcome) => outcomes.push(outcome),
                // One row that diverges says nothing about the others.
                Err(error @ (Error::Diverged { .. } | Error::Run(_) | Error::Tensor(_))) => {
                    say(&format!("error: {} of seed {seed} failed: {error}", row.id));
                    if error.is_out_of_memory() {
                        let smaller = smaller(&runner, row, runner.recipe_in_memory().budget.batch);
                        say(&format!("  --microbatch {smaller} goes on with fewer images at a time"));
                    }
                    // Every later call would fail with the same error.
                    if error.is_device_lost() {
                        return Ok(error.exit_code());
                    }
                    failed.get_or_insert(error.exit_code());
                }
                Err(error) => return Err(error),
            }
        }
        // After the rows: one of them may be what the others are compared with.
        for row in rows {
            runner.mapping(row, *seed)?;
        }
    }
    let ended = finish(&mut runner, place, targets, &outcomes, output)?;
    Ok(failed.unwrap_or(ended))
}

/// The images of a batch to take at once where `tried` were too many: as many as the
/// whole memory has room for by the plan, but fewer than before.
fn smaller(runner: &Runner, row: &Row, tried: usize) -> usize {
    let fits = machine::total_memory(runner.device())
        .and_then(|bytes| plan::fitting(runner.recipe(), row, bytes))
        .unwrap_or(1);
    fits.min(tried.div_ceil(2))
}

/// A changed experiment is no row of a table.
fn writes_tables(targets: &[String], runner: &Runner) -> bool {
    tables(targets).next().is_some() && runner.recipe().overrides.changes.is_empty()
}

/// A count as such, the category by its name.
fn value_text(score: &Score) -> String {
    let state = STATES.iter().find(|(_, category)| score.metric == "collapse" && *category == score.value);
    match state {
        Some((name, _)) => name.to_string(),
        None if score.value.fract() == 0.0 => score.value.to_string(),
        None => format!("{:.6}", score.value),
    }
}

/// Prints the tables that were asked for, and leaves them as files.
fn finish(
    runner: &mut Runner,
    place: &Place,
    targets: &[String],
    outcomes: &[Outcome],
    output: &Path,
) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    if !writes_tables(targets, runner) {
        for outcome in outcomes {
            println!("{}", outcome.scores.entry.dir().display());
            for score in runner.scores(outcome)?.iter().filter(|score| score.metric != TIME) {
                println!("  {:20} {}", score.metric, value_text(score));
            }
        }
        return Ok(EXIT_GOOD);
    }
    for (which, name) in tables(targets) {
        let table = report::build(which, runner, &root)?;
        write_table(output, name, &table)?;
        print!("{}", render(&table, Format::Text));
        println!("\nwritten: {0}/{name}.csv and {0}/{name}.md", output.display());
    }
    Ok(EXIT_GOOD)
}
