//! Prepares a run: fetches its files, estimates its costs, and finds obstacles.

use crate::app::cli::{Place, Running};
use crate::app::commands::{fetch::download, unique};
use crate::app::machine::{free_disk, free_memory};
use crate::error::{EXIT_GOOD, EXIT_INPUT, EXIT_RUN, Error, Result};
use crate::experiment::plan::{self, Cost};
use crate::experiment::run::{Input, Runner};
use crate::experiment::{Initialization, Row};
use crate::network::device::Named;
use crate::settings::{Settings, object};
use crate::store::fetch::{Asset, Inputs, Options};
use crate::store::option;
use crate::train::watch::say;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Time in seconds above which a run is called too slow.
const TOO_LONG: f64 = 90.0 * 86_400.0;

/// Checks disk and memory, then fetches the files that the store lacks.
///
/// # Errors
/// `Run` if disk or memory are too small; those of `fetch`.
pub fn prepare(
    runner: &mut Runner,
    place: &Place,
    cells: &[Row],
    seeds: &[u64],
    offline: bool,
    stop: &AtomicBool,
) -> Result<()> {
    if runner.recipe().scale.procedural() {
        return Ok(());
    }
    let missing = missing(runner, place, cells)?;
    let items = items(runner, cells, seeds, &mut Shared::default())?;
    let needs = Needs::of(&items, download_bytes(&missing));
    let device = &runner.compute().device;
    let free = free_memory(device);
    let parts = fitting(runner, cells, free.filter(|_| !device.is_cpu()));
    if let Some(problem) = needs.problem(&place.store, free_disk(&place.store), free, parts) {
        return Err(Error::Run(problem));
    }
    for Missing { input, assets } in &missing {
        match first_of(assets, &place.store, offline, stop) {
            // These statistics are only compared with ours, so a run can do without them.
            Err(error @ (Error::Missing { .. } | Error::Malformed { .. })) if *input == Input::Statistics => {
                say(&format!("{error}\n  our statistics of the real images are not compared with EDM's"));
            }
            ended => ended?,
        }
    }
    Ok(())
}

/// Returns the largest microbatch of all of `cells` that fits into `free` bytes of a GPU.
fn fitting(runner: &Runner, cells: &[Row], free: Option<u64>) -> Option<usize> {
    let free = free?;
    let fitting = |cell: &Row| plan::fitting(runner.recipe(), cell, free);
    cells.iter().map(fitting).try_fold(usize::MAX, |least, batch| Some(least.min(batch?)))
}

/// Fetches the first of `assets` that is available.
fn first_of(assets: &[&Asset], store: &Path, offline: bool, stop: &AtomicBool) -> Result<()> {
    let mut refused = None;
    for asset in assets {
        match download(&Inputs::of(store), &[*asset], None, offline, stop) {
            Err(error @ (Error::Missing { .. } | Error::Malformed { .. })) => {
                refused = refused.or(Some(error))
            }
            ended => return ended.map(drop),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// A file that the store lacks, and the assets that can replace it.
struct Missing {
    input: Input,
    assets: Vec<&'static Asset>,
}

impl Missing {
    fn has_address(&self) -> bool {
        let mirror = Options::from_env(&|_, _| Ok(())).mirror;
        mirror.is_some() || self.assets.iter().any(|asset| !asset.from.is_empty())
    }
}

fn missing(runner: &Runner, place: &Place, cells: &[Row]) -> Result<Vec<Missing>> {
    let inputs = Inputs::of(&place.store);
    let mut missing = Vec::new();
    for input in runner.needed(cells) {
        let assets = input.assets(runner.recipe().scale);
        let mut there = false;
        for asset in &assets {
            there |= inputs.size_there(asset)?.is_some();
        }
        if !there {
            missing.push(Missing { input, assets });
        }
    }
    Ok(missing)
}

/// Returns the files to fetch. One file may have several inputs.
fn downloads<'a>(missing: impl IntoIterator<Item = &'a Missing>) -> Vec<&'static Asset> {
    let mut assets: Vec<&Asset> = Vec::new();
    for Missing { assets: first, .. } in missing {
        if assets.iter().all(|known| known.id != first[0].id) {
            assets.push(first[0]);
        }
    }
    assets
}

fn download_bytes(missing: &[Missing]) -> u64 {
    downloads(missing).iter().filter_map(|asset| asset.bytes).sum()
}

/// A requested result that is missing, with its cost.
struct Item {
    name: String,
    what: String,
    cost: Cost,
    memory: u64,
}

/// What is made once, whatever number of recipes need it.
#[derive(Default)]
struct Shared {
    /// Pre-trainings, with their settings as JSON.
    starts: Vec<(Initialization, String)>,
    reference: bool,
}

/// Lists the missing results that `cells` need, in the order of a run, without what is in `shared`;
/// adds to `shared`.
fn items(runner: &mut Runner, cells: &[Row], seeds: &[u64], shared: &mut Shared) -> Result<Vec<Item>> {
    let recipe = runner.recipe().clone();
    let pretraining = [recipe.network.list(), recipe.pretraining.list()].concat();
    let pretraining = serde_json::Value::from_iter(object(&pretraining)).to_string();
    let mut items = Vec::new();
    for (cell, start) in
        cells.iter().flat_map(|cell| recipe.initial(cell).into_iter().map(move |s| (cell, s)))
    {
        let (trained, key) = (!runner.published(start), (start, pretraining.clone()));
        if trained && !shared.starts.contains(&key) && !runner.has_pretrained(start)? {
            shared.starts.push(key);
            items.push(Item {
                name: format!("pre-training {start}"),
                what: String::new(),
                cost: plan::pretraining(&recipe, start),
                memory: plan::pretraining_memory(&runner.recipe_in_memory(cell)),
            });
        }
    }
    if !recipe.scale.procedural() && !std::mem::replace(&mut shared.reference, true) {
        items.push(Item {
            name: "features of the real images".into(),
            what: "once for all cells".into(),
            cost: plan::reference(&recipe),
            memory: 0,
        });
    }
    let mut all: Vec<Row> = Vec::new();
    for cell in cells {
        let before = recipe.first_stage(cell).filter(|_| !runner.published(cell.start));
        for row in before.into_iter().chain([*cell]) {
            if !all.contains(&row) {
                all.push(row);
            }
        }
    }
    for seed in seeds {
        for cell in &all {
            let name = format!("{}, seed {seed}", cell.id);
            if runner.stored(cell, *seed)?.is_some() {
                items.push(Item { name, what: "there".into(), cost: Cost::default(), memory: 0 });
                continue;
            }
            let (cost, e) = (plan::row(&recipe, cell), &recipe.evaluation);
            let samples = format!("{} x {} samples", e.trials, e.samples);
            let what = match cost.steps {
                0 => samples,
                steps => format!("{steps} iterations, {samples}"),
            };
            let memory = plan::memory(&runner.recipe_in_memory(cell), cell);
            items.push(Item { name, what, cost, memory });
        }
    }
    Ok(items)
}

/// Disk and memory that the results need.
struct Needs {
    /// Bytes that stay, including downloads.
    stay: u64,
    /// Peak of the bytes on the disk.
    disk: u64,
    memory: u64,
}

impl Needs {
    fn of(items: &[Item], download: u64) -> Needs {
        let costs = || items.iter().map(|item| item.cost);
        let stay = costs().map(|cost| cost.disk_bytes).sum::<u64>() + download;
        let passing = costs().map(|cost| cost.peak_disk_bytes - cost.disk_bytes).max().unwrap_or(0);
        let memory = items.iter().map(|item| item.memory).max().unwrap_or(0);
        Needs { stay, disk: stay + passing, memory }
    }

    /// Returns the obstacle, if any. `parts` is the largest microbatch that fits into memory.
    fn problem(
        &self,
        store: &Path,
        free_disk: Option<u64>,
        free_memory: Option<u64>,
        parts: Option<usize>,
    ) -> Option<String> {
        let short = |what: &str, needed: u64, free: Option<u64>, remedy: &str| {
            let free = free.filter(|free| *free < needed)?;
            let (needed, free) = (plan::bytes(needed), plan::bytes(free));
            Some(format!("it needs about {needed} of {what}, and {free} are free\n  {remedy}"))
        };
        let place = format!("disk at {}", store.display());
        let disk = short(&place, self.disk, free_disk, "free some, or name another place with --store");
        disk.or_else(|| {
            let smaller = "use a device with more memory, or a smaller batch (--set batch=N, a separate experiment)";
            let remedy = parts.map_or(smaller.into(), |n| {
                format!(
                    "--microbatch {n} fits, with the same result up to rounding; or use a device with more memory"
                )
            });
            short("memory", self.memory, free_memory, &remedy)
        })
    }
}

/// The machine that a plan is for.
struct Machine {
    /// Operations per second.
    rate: f64,
    /// Origin of the rate, for display.
    source: String,
    memory: Option<u64>,
    disk: Option<u64>,
    gpu: bool,
}

impl Machine {
    /// Describes the present device, or the GPU in `arguments`.
    fn of(runner: &Runner, arguments: &Running) -> Result<Machine> {
        let Running { place, like, rate, .. } = arguments;
        let Named { gpu, bfloat16, .. } = Named::parse(&place.device)?;
        let (memory, disk) = match like {
            Some(card) => (Some(card.memory()), None),
            // With a rate, the plan is for a GPU that is not here.
            None if gpu.is_some() && runner.compute().device.is_cpu() => (None, None),
            None => (free_memory(&runner.compute().device), free_disk(&place.store)),
        };
        let (rate, source) = match (rate, like) {
            (Some(rate), _) => (*rate, "as given with --rate".to_string()),
            (None, Some(card)) => {
                let (rate, share) = card.rate(bfloat16);
                (rate, format!("{:.0} % of that GPU's peak: an assumption, not measured", 100.0 * share))
            }
            (None, None) => {
                (plan::probe(runner.compute())?, "from a one-second probe (see `replicate list`)".into())
            }
        };
        Ok(Machine { rate, source, memory, disk, gpu: gpu.is_some() || like.is_some() })
    }

    fn time(&self, flop: f64) -> String {
        match self.gpu {
            true => format!("{:.1} GPU-h", flop / self.rate / 3600.0),
            false => plan::duration(flop / self.rate),
        }
    }
}

/// Returns how many jobs of at most `limit` seconds follow the first. Each ends 300 s early with a
/// checkpoint.
fn requeues(seconds: f64, limit: f64) -> u64 {
    (seconds / (limit - 300.0).max(limit / 2.0)).ceil().max(1.0) as u64 - 1
}

/// The rows and seeds of one recipe, and what runs them.
pub struct Planned<'a> {
    pub runner: Runner<'a>,
    pub rows: Vec<Row>,
    pub seeds: Vec<u64>,
}

/// Prints one plan for all of `planned`. The exit code tells if the run can work.
pub fn dry_run(planned: &mut [Planned], arguments: &Running) -> Result<i32> {
    let Running { place, like, time: limit, offline, .. } = arguments;
    let machine = Machine::of(&planned[0].runner, arguments)?;
    let seeds: Vec<u64> = planned.iter().flat_map(|one| one.seeds.clone()).collect();
    let listed: Vec<String> = unique(&seeds).iter().map(u64::to_string).collect();
    let on = match like {
        Some(card) => format!("a GPU like {card:?}").to_lowercase().replace("gpu", "GPU"),
        None => place.device.clone(),
    };
    let scale = planned[0].runner.recipe().scale;
    println!("Plan at scale {scale} on {on}, seed {}. Nothing is run.\n", listed.join(", "));

    let header = limit.map_or("", |_| "  requeued");
    println!("  {:37} {:38} {:>10}  {:>12}  {:>7}{header}", "what", "", "operations", "time", "disk");
    let (several, mut shared, mut items) = (planned.len() > 1, Shared::default(), Vec::new());
    for Planned { runner, rows, seeds } in planned.iter_mut() {
        let changes = runner.recipe().changes();
        if several {
            let with = if changes.is_empty() { "without changes".into() } else { changes.join(" ") };
            println!("  {with}");
        }
        for item in self::items(runner, rows, seeds, &mut shared)? {
            let Item { name, what, cost, .. } = &item;
            let (flop, time) = (plan::operations(cost.flop), format!("~{}", machine.time(cost.flop)));
            let disk = plan::bytes(cost.peak_disk_bytes);
            let again = limit.map_or(String::new(), |limit| {
                format!("  {:>8}", requeues(plan::seconds(cost, machine.rate), limit))
            });
            println!("  {name:37} {what:38} {flop:>10}  {time:>12}  {disk:>7}{again}");
            items.push(item);
        }
    }
    let flop: f64 = items.iter().map(|item| item.cost.flop).sum();
    let mut missing: Vec<Missing> = Vec::new();
    for Planned { runner, rows, .. } in planned.iter() {
        for one in self::missing(runner, place, rows)? {
            if !missing.iter().any(|known| known.input == one.input) {
                missing.push(one);
            }
        }
    }
    println!();
    for asset in downloads(&missing) {
        let size = asset.bytes.map_or("unknown size".into(), plan::bytes);
        println!("  to fetch: {:24} {size:>12}  {}; {}", asset.id, asset.what, asset.licence);
    }
    let download = download_bytes(&missing);
    let needs = Needs::of(&items, download);
    let told = |free: Option<u64>, what: &str| {
        free.map_or(String::new(), |n| format!("; {} {what}", plan::bytes(n)))
    };
    println!("  download  {}", plan::bytes(download));
    println!(
        "  disk      {} stay, {} at the peak{}",
        plan::bytes(needs.stay),
        plan::bytes(needs.disk),
        told(machine.disk, "free")
    );
    let memory = match (like, machine.memory) {
        (Some(_), Some(all)) => format!(" of the GPU's {}", plan::bytes(all)),
        (_, free) => told(free, "free"),
    };
    println!("  memory    about {}{memory}", plan::bytes(needs.memory));
    println!(
        "  time      ~{} for {} at {} a second, {}",
        machine.time(flop),
        plan::operations(flop),
        plan::operations(machine.rate),
        machine.source
    );
    let parts = planned.iter().map(|Planned { runner, rows, .. }| {
        let of_gpu = like.is_some() || !runner.compute().device.is_cpu();
        fitting(runner, rows, machine.memory.filter(|_| of_gpu))
    });
    let parts = parts.min().flatten();
    if let Some(problem) = needs.problem(&place.store, machine.disk, machine.memory, parts) {
        println!("\nCannot run: {problem}");
        return Ok(EXIT_RUN);
    }
    let required = downloads(missing.iter().filter(|missing| missing.input != Input::Statistics)).len();
    if *offline && required > 0 {
        println!("\nCannot run offline: {required} files are missing.");
        return Ok(EXIT_INPUT);
    }
    let lost = missing.iter().find(|missing| missing.input != Input::Statistics && !missing.has_address());
    if let Some(Missing { assets, .. }) = lost {
        let id = assets[0].id;
        println!(
            "\nCannot run: {id} is missing and has no download address\n  set REPLICATE_MIRROR, or give it with \
             `replicate fetch {id}{} --from FILE`",
            option(&place.store)
        );
        return Ok(EXIT_INPUT);
    }
    match flop / machine.rate > TOO_LONG && like.is_none() {
        true => println!("\nThis device is too slow: the run would take more than 90 days."),
        false => println!("\nReady to run{}.", if like.is_some() { " on such a GPU" } else { "" }),
    }
    Ok(EXIT_GOOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_queued_again_until_its_work_is_done() {
        let hours = |n: f64| n * 3600.0;
        assert_eq!(requeues(0.0, hours(4.0)), 0);
        assert_eq!(requeues(hours(3.9), hours(4.0)), 0);
        assert_eq!(requeues(hours(3.95), hours(4.0)), 1, "the last five minutes are for the checkpoint");
        assert_eq!(requeues(hours(100.0), hours(24.0)), 4);
    }

    #[test]
    fn what_cannot_work_is_said_with_its_remedy() {
        let needs = Needs { stay: 4_000_000_000, disk: 5_000_000_000, memory: 17_000_000_000 };
        let store = Path::new("store");
        let problem = |disk, memory| needs.problem(store, disk, memory, None);
        assert_eq!(problem(Some(5_000_000_000), Some(80_000_000_000)), None);
        assert_eq!(problem(None, None), None, "what cannot be told is no obstacle");
        let disk = problem(Some(4_000_000_000), Some(1)).unwrap();
        assert!(disk.contains("5.0 GB of disk at store") && disk.contains("--store"), "{disk}");
        let memory = problem(Some(6_000_000_000), Some(16_000_000_000)).unwrap();
        assert!(memory.contains("17 GB of memory, and 16 GB are free"), "{memory}");
        assert!(memory.contains("--set batch=N"), "{memory}");
        let parts = needs.problem(store, None, Some(16_000_000_000), Some(32)).unwrap();
        assert!(parts.contains("--microbatch 32 fits"), "{parts}");
    }
}
