//! Before a run: what it needs, what it costs, and whether it can work at all.

use super::{device, fetch::download};
use crate::cli::Place;
use crate::error::{EXIT_GOOD, EXIT_INPUT, EXIT_RUN, Error, Result};
use crate::experiment::{Cell, Recipe, Start};
use crate::fetch::{Asset, Inputs};
use crate::machine::{free_disk, free_memory};
use crate::plan::{self, Cost};
use crate::run::{Input, Runner, lacking, needed};
use crate::store::Store;
use candle_core::Device;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Seconds after which nobody waits.
const TOO_LONG: f64 = 90.0 * 86_400.0;

/// Fetches what the store lacks, after it is known that the rest can work.
///
/// # Errors
/// `Run` where disk or memory cannot suffice; as `fetch`.
pub fn prepare(
    place: &Place,
    recipe: &Recipe,
    cells: &[Cell],
    offline: bool,
    stop: &AtomicBool,
) -> Result<()> {
    if recipe.scale.procedural() {
        return Ok(());
    }
    let device = device(&place.device)?;
    let needs = Needs::of(recipe, cells);
    if let Some(problem) = needs.problem(&place.store, &device) {
        return Err(Error::Run(problem));
    }
    let (checks, required): (Vec<Missing>, Vec<Missing>) =
        missing(place, recipe, cells)?.into_iter().partition(|(input, _)| *input == Input::Statistics);
    let fetch = |missing: &[Missing]| -> Result<()> {
        if !missing.is_empty() {
            Store::open(&place.store)?;
            let assets: Vec<&Asset> = missing.iter().map(|(_, asset)| *asset).collect();
            download(&Inputs::of(&place.store), &assets, None, offline, stop)?;
        }
        Ok(())
    };
    fetch(&required)?;
    // They confirm what is measured here, and nothing is measured with them.
    match fetch(&checks) {
        Err(error @ Error::Missing { .. }) => {
            eprintln!("{error}\n  our statistics of the real images are not compared with EDM's");
            Ok(())
        }
        ended => ended,
    }
}

type Missing = (Input, &'static Asset);

fn missing(place: &Place, recipe: &Recipe, cells: &[Cell]) -> Result<Vec<Missing>> {
    let inputs = Inputs::of(&place.store);
    let mut missing = Vec::new();
    for input in needed(recipe, cells, place.data.is_some()) {
        missing.extend(lacking(&inputs, recipe.scale, input)?.map(|asset| (input, asset)));
    }
    Ok(missing)
}

/// The most that one of the cells takes at a time.
struct Needs {
    disk: u64,
    memory: u64,
}

impl Needs {
    fn of(recipe: &Recipe, cells: &[Cell]) -> Needs {
        let trained = |cell: &&Cell| cell.start != Start::Random && !recipe.has_checkpoint(cell.start);
        let pretrained = cells.iter().filter(trained);
        let costs = cells.iter().map(|cell| plan::cell(recipe, cell));
        let first = pretrained.clone().map(|cell| plan::pretraining(recipe, cell.start));
        let memory = cells.iter().map(|cell| plan::memory(recipe, cell));
        Needs {
            disk: costs.chain(first).map(|cost| cost.peak_disk_bytes).max().unwrap_or(0),
            memory: memory.chain(pretrained.map(|_| plan::pretraining_memory(recipe))).max().unwrap_or(0),
        }
    }

    /// Why it cannot work.
    fn problem(&self, store: &Path, device: &Device) -> Option<String> {
        let short = |what: &str, needed: u64, free: Option<u64>, remedy: &str| {
            let free = free.filter(|free| *free < needed)?;
            let (needed, free) = (plan::bytes(needed), plan::bytes(free));
            Some(format!("it needs about {needed} of {what}, and {free} are free\n  {remedy}"))
        };
        let place = format!("disk at {}", store.display());
        short(&place, self.disk, free_disk(store), "free some, or name another place with --store").or_else(
            || {
                let remedy = "use a device with more, or a smaller batch (--set batch=N, another experiment)";
                short("memory", self.memory, free_memory(device), remedy)
            },
        )
    }
}

/// Prints the plan. The exit code says whether it can work as it is.
pub fn dry_run(
    mut runner: Runner,
    place: &Place,
    cells: &[Cell],
    seeds: &[u64],
    offline: bool,
) -> Result<i32> {
    let recipe = runner.recipe().clone();
    let device = device(&place.device)?;
    let rate = plan::probe(&device)?;
    let listed: Vec<String> = seeds.iter().map(u64::to_string).collect();
    println!(
        "Plan at scale {} on {}, seed {}. Nothing is run.\n",
        recipe.scale,
        place.device,
        listed.join(", ")
    );

    let mut total = Cost::default();
    let mut line = |name: &str, what: &str, cost: Cost| {
        total.flop += cost.flop;
        total.disk_bytes += cost.disk_bytes;
        let (flop, time) = (plan::operations(cost.flop), plan::duration(plan::seconds(&cost, rate)));
        println!("  {name:37} {what:44} {flop:>12}  ~{time:>9}  {:>7}", plan::bytes(cost.peak_disk_bytes));
    };
    println!("  {:37} {:44} {:>12}  {:>10}  {:>7}", "what", "", "operations", "time", "disk");
    let mut starts: Vec<Start> = Vec::new();
    for cell in cells {
        if cell.start == Start::Random || starts.contains(&cell.start) {
            continue;
        }
        starts.push(cell.start);
        let name = format!("pre-training {}", cell.start);
        match runner.has_pretrained(cell.start)? {
            true => line(&name, "there", Cost::default()),
            false if recipe.has_checkpoint(cell.start) => {
                line(&name, "published checkpoint", Cost::default())
            }
            false => line(&name, "", plan::pretraining(&recipe, cell.start)),
        }
    }
    if !recipe.scale.procedural() {
        line("features of the real images", "once for all cells", plan::reference(&recipe));
    }
    for seed in seeds {
        for cell in cells {
            let name = format!("{}, seed {seed}", cell.row);
            match runner.stored(cell, *seed)? {
                Some(_) => line(&name, "there", Cost::default()),
                None => {
                    let cost = plan::cell(&recipe, cell);
                    let e = &recipe.evaluation;
                    let samples = format!("{} x {} samples", e.trials, e.samples);
                    let steps = match cost.steps {
                        0 => String::new(),
                        steps => format!("{steps} iterations, "),
                    };
                    line(&name, &format!("{steps}{samples}"), cost);
                }
            }
        }
    }

    let missing = missing(place, &recipe, cells)?;
    println!();
    for (_, asset) in &missing {
        let size = asset.bytes.map_or("unknown size".into(), plan::bytes);
        println!("  to fetch: {:24} {size:>12}  {}", asset.id, asset.what);
    }
    let download: u64 = missing.iter().filter_map(|(_, asset)| asset.bytes).sum();
    let needs = Needs::of(&recipe, cells);
    let told = |free: Option<u64>| free.map_or("an unknown amount".into(), plan::bytes);
    println!("  download  {}", plan::bytes(download));
    println!(
        "  disk      {} stay, {} at most for one of them beside the rest; {} free",
        plan::bytes(total.disk_bytes + download),
        plan::bytes(needs.disk),
        told(free_disk(&place.store))
    );
    println!("  memory    about {}; {} free", plan::bytes(needs.memory), told(free_memory(&device)));
    println!(
        "  time      ~{} for {} at {} a second, from a probe of a second (see `replicate list`)",
        plan::duration(total.flop / rate),
        plan::operations(total.flop),
        plan::operations(rate)
    );
    if let Some(problem) = needs.problem(&place.store, &device) {
        println!("\nThis cannot work: {problem}");
        return Ok(EXIT_RUN);
    }
    let required = missing.iter().filter(|(input, _)| *input != Input::Statistics).count();
    if offline && required > 0 {
        println!("\nThis cannot work offline: {required} files are missing.");
        return Ok(EXIT_INPUT);
    }
    match total.flop / rate > TOO_LONG {
        true => println!("\nNothing is missing, but this device is too slow for it."),
        false => println!("\nNothing speaks against it."),
    }
    Ok(EXIT_GOOD)
}
