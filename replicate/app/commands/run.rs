//! `run`: makes missing results of rows, and prints their tables or scores.

mod prepare;

use super::{
    command, list, recipes, render, report, root, select, settings, studies, tables, unique, write_file,
    write_table,
};
use crate::app::cli::{Explain, Format, Place, Preset, Running};
use crate::app::machine;
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::experiment::run::{Outcome, Runner};
use crate::experiment::studies::Study;
use crate::experiment::{Recipe, Row, Scale, plan};
use crate::judge::golden::{self, Score, TIME};
use crate::measure::metrics::modes::STATES;
use crate::method;
use crate::network::device;
use crate::train::watch::{Mode, Watch, say};
use prepare::Planned;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Largest number of cells that runs without --yes.
const MANY: usize = 200;

/// The rows of one recipe.
struct Work {
    /// Targets as typed; empty for a study's rows.
    targets: Vec<String>,
    rows: Vec<Row>,
    recipe: Recipe,
    seeds: Vec<u64>,
}

impl Work {
    fn cells(&self) -> usize {
        self.rows.len() * self.seeds.len()
    }
}

/// Runs every experiment in `arguments`; returns the first exit code that is not 0.
pub fn run(arguments: &Running, stop: &AtomicBool) -> Result<i32> {
    let Running { place, explain, dry_run, .. } = arguments;
    let (studies, targets) = studies::split(&arguments.targets, place)?;
    let work = work(arguments, &studies, &targets)?;
    if let Some(explain) = explain {
        for Work { rows, recipe, .. } in &work {
            list::explain(rows, recipe, *explain == Explain::Full, &root(place.root.as_deref())?)?;
        }
        return Ok(EXIT_GOOD);
    }
    let cells: usize = work.iter().map(Work::cells).sum();
    if cells > MANY && !dry_run {
        say_hours(arguments, &work, cells)?;
    }
    if *dry_run {
        let planned = work.into_iter().map(|Work { rows, recipe, seeds, .. }| {
            Ok(Planned { runner: runner(arguments, &rows, recipe, stop)?, rows, seeds })
        });
        return prepare::dry_run(&mut planned.collect::<Result<Vec<_>>>()?, arguments);
    }
    let mut code = EXIT_GOOD;
    for work in work {
        let ended = experiment(arguments, work, stop)?;
        code = if code == EXIT_GOOD { ended } else { code };
    }
    if !studies.is_empty() {
        let rows: Vec<Row> = studies.iter().flat_map(|study| study.rows.clone()).collect();
        for base in recipes(place, &arguments.set, arguments.until, &rows)? {
            studies::print(&studies, place, base, stop)?;
        }
    }
    Ok(code)
}

/// Lists the experiments in the order of the command line, those of studies last.
fn work(arguments: &Running, studies: &[Study], targets: &[String]) -> Result<Vec<Work>> {
    let Running { place, seed, until, set, preset, .. } = arguments;
    let seeds = |usual: &[u64]| unique(if seed.is_empty() { usual } else { seed });
    let mut all = Vec::new();
    if !targets.is_empty() || studies.is_empty() {
        let rows = select(targets, place)?;
        // Each row has its own published recipe.
        let together = if preset.is_some() { rows.chunks(1) } else { rows.chunks(rows.len()) };
        for rows in together {
            let set = [published(rows, arguments)?, set.clone()].concat();
            for recipe in recipes(place, &set, *until, rows)? {
                all.push(Work { targets: targets.to_vec(), rows: rows.to_vec(), recipe, seeds: seeds(&[0]) });
            }
        }
    }
    for study in studies {
        for base in recipes(place, set, *until, &study.rows)? {
            for recipe in study.recipes(&base)? {
                let rows = study.rows.clone();
                all.push(Work { targets: Vec::new(), rows, recipe, seeds: seeds(&study.seeds) });
            }
        }
    }
    Ok(all)
}

/// Estimates the time of a large number of cells. Without --yes it is an error.
fn say_hours(arguments: &Running, work: &[Work], cells: usize) -> Result<()> {
    let rate = plan::probe(&device::open(&arguments.place.device)?)?;
    let seconds = |work: &Work| -> f64 {
        let each: f64 = work.rows.iter().map(|row| plan::seconds(&plan::row(&work.recipe, row), rate)).sum();
        each * work.seeds.len() as f64
    };
    let hours = plan::duration(work.iter().map(seconds).sum());
    let text = format!("{cells} cells, about {hours} on this machine if none is in the store");
    match arguments.yes {
        true => say(&text),
        false => return Err(Error::Usage(format!("{text}: --yes runs them"))),
    }
    Ok(())
}

/// Returns the overrides of `--preset published` for one row.
fn published(rows: &[Row], arguments: &Running) -> Result<Vec<String>> {
    let (Some(Preset::Published), [row]) = (arguments.preset, rows) else { return Ok(Vec::new()) };
    if arguments.place.scale != Scale::Paper.name() {
        return Err(Error::Usage(
            "--preset published needs --scale paper, the only scale of the authors".into(),
        ));
    }
    match method::published(row) {
        Some(changes) => Ok(changes.iter().map(|change| change.to_string()).collect()),
        None => {
            let known: Vec<&str> = method::PUBLISHED.iter().map(|(id, _)| *id).collect();
            Err(Error::Usage(format!(
                "--preset published: {} has none; these rows do: {}",
                row.id,
                known.join(", ")
            )))
        }
    }
}

/// Returns what runs the rows of one recipe, or plans them.
fn runner<'a>(arguments: &Running, rows: &[Row], recipe: Recipe, stop: &'a AtomicBool) -> Result<Runner<'a>> {
    let Running { place, microbatch, .. } = arguments;
    // A plan for another machine needs no device.
    let planned = arguments.dry_run && (arguments.like.is_some() || arguments.rate.is_some());
    let device = if planned { "cpu" } else { &place.device };
    let mut settings = settings(&Place { device: device.into(), ..place.clone() }, arguments.from_scratch)?;
    settings.keep = arguments.keep;
    settings.microbatch = microbatch.map(|images| images as usize);
    if microbatch.is_some() && settings.compute.device.is_cpu() {
        return Err(Error::Usage(
            "--microbatch is for GPUs: a CPU takes whole batches, so that a seed gives the same bytes".into(),
        ));
    }
    let watch = Watch::new(arguments.watch.unwrap_or_else(Mode::fitting));
    let mut runner = Runner::new(settings, recipe, watch, stop)?;
    if planned {
        let default = if arguments.like.is_some() { "cuda:0" } else { "cpu" };
        let named = if place.device == "cpu" { default } else { &place.device };
        runner = runner.made_on(named)?;
    }
    runner.read_given(rows)?;
    Ok(runner)
}

/// Runs the rows of one recipe.
fn experiment(arguments: &Running, work: Work, stop: &AtomicBool) -> Result<i32> {
    let Running { place, offline, output, .. } = arguments;
    let Work { targets, rows, recipe, seeds } = work;
    let (targets, rows, seeds) = (&targets[..], &rows[..], &seeds[..]);
    let mut runner = runner(arguments, rows, recipe, stop)?;
    let scale = runner.recipe().scale;
    let large = matches!(scale, Scale::Small | Scale::Paper);
    if large && !arguments.stored && runner.compute().device.is_cpu() && arguments.until.is_none() {
        say(&format!("--scale {scale} needs a GPU; --dry-run estimates how long it takes on this machine"));
    }
    if !arguments.stored {
        prepare::prepare(&mut runner, place, rows, seeds, *offline, stop)?;
    }
    if arguments.pretrain {
        return runner.share(rows).map(|()| EXIT_GOOD);
    }
    if writes_tables(targets, &runner) {
        // Tests before the long run that the directory is writable.
        std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
        write_file(&output.join(".writable"), b"")?;
        _ = std::fs::remove_file(output.join(".writable"));
    }
    let (mut outcomes, mut failed) = (Vec::new(), None);
    let fills = writes_tables(targets, &runner) && rows.len() > 1;
    for seed in seeds {
        for row in rows {
            let found = match arguments.stored {
                true => runner.stored(row, *seed),
                false => runner.row(row, *seed).map(Some),
            };
            match found {
                Ok(Some(outcome)) => {
                    outcomes.push(outcome);
                    if fills && !arguments.stored {
                        // The comparison may be possible now; otherwise it follows at the end of
                        // the run.
                        runner.mapping(row, *seed)?;
                        filled(&mut runner, targets, row, &root(place.root.as_deref())?)?;
                    }
                }
                Ok(None) => {
                    println!(
                        "missing: {}, seed {seed}; run it with: {}",
                        row.id,
                        command(row.id, *seed, place)
                    );
                    failed.get_or_insert(EXIT_INCOMPLETE);
                }
                // A failed row does not stop the others.
                Err(error @ (Error::Diverged { .. } | Error::Run(_) | Error::Tensor(_))) => {
                    say(&format!("error: {} of seed {seed} failed: {error}", row.id));
                    if error.is_out_of_memory() {
                        say(&match smaller(&runner, row) {
                            Some(n) => {
                                format!(
                                    "  run it again with --microbatch {n}, which takes fewer images at a time"
                                )
                            }
                            None => "  a smaller batch (--set batch=N) makes another experiment".into(),
                        });
                    }
                    // After a lost device, every later call would fail with the same error.
                    if error.is_device_lost() {
                        return Ok(error.exit_code());
                    }
                    failed.get_or_insert(error.exit_code());
                }
                Err(error) => return Err(error),
            }
        }
        // A comparison can need a row that ran after this one.
        for row in rows {
            if !arguments.stored || runner.has_starts(row)? {
                runner.mapping(row, *seed)?;
            }
        }
    }
    let ended = finish(&mut runner, place, targets, &outcomes, output)?;
    Ok(failed.unwrap_or(ended))
}

/// Returns a smaller microbatch after the present one did not fit: the largest that fits into the
/// whole memory by the estimate, but at most half of it; `None` if the row has no smaller one.
fn smaller(runner: &Runner, row: &Row) -> Option<usize> {
    let (recipe, tried) = (runner.recipe(), runner.recipe_in_memory(row).budget.batch);
    let least = plan::smallest_microbatch(recipe, row);
    let total = machine::gpu_memory(&runner.compute().device).map(|(_, total)| total);
    let fits = total.and_then(|bytes| plan::fitting(recipe, row, bytes));
    (tried > least).then(|| fits.unwrap_or(1).min(tried.div_ceil(2)).max(least))
}

/// Tables show rows without overrides only.
fn writes_tables(targets: &[String], runner: &Runner) -> bool {
    tables(targets).next().is_some() && runner.recipe().overrides.changes.is_empty()
}

/// Prints the row's line of each requested table.
fn filled(runner: &mut Runner, targets: &[String], row: &Row, root: &Path) -> Result<()> {
    for (which, _) in tables(targets) {
        if let Some(line) = report::build(which, runner, root)?.line(row.id) {
            println!("{line}");
        }
    }
    Ok(())
}

/// Formats a score: a whole number as such, a category by its name.
fn value_text(score: &Score) -> String {
    let state = STATES.iter().find(|(_, category)| score.metric == "collapse" && *category == score.value);
    match state {
        Some((name, _)) => name.to_string(),
        None if score.value.fract() == 0.0 => score.value.to_string(),
        None => format!("{:.6}", score.value),
    }
}

/// Prints the scores of a study's cell.
fn one_line(runner: &Runner, outcome: &Outcome) -> Result<()> {
    let scores = runner.scores(outcome)?;
    let shown = ["fd", "recall", "classes", "collapse"].map(|metric| {
        let score = scores.iter().find(|score| score.metric == metric);
        score.map_or(String::new(), |score| format!("  {metric} {}", value_text(score)))
    });
    let changes = runner.recipe().sorted_changes().join("+");
    println!("{} seed {}{}", golden::cell(outcome.row.id, &changes), outcome.seed, shown.concat());
    Ok(())
}

/// Prints the requested tables, and writes them to files.
fn finish(
    runner: &mut Runner,
    place: &Place,
    targets: &[String],
    outcomes: &[Outcome],
    output: &Path,
) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    if targets.is_empty() {
        outcomes.iter().try_for_each(|outcome| one_line(runner, outcome))?;
        return Ok(EXIT_GOOD);
    }
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
