//! From a cell to its scores: what is missing is made, once, and stored under
//! the key of its experiment.

mod data;
mod inputs;
mod mapping;
mod provenance;
mod weights;

pub use self::inputs::Input;
pub use self::provenance::humantime;
use self::provenance::provenance;
use self::weights::read_weights;
pub use self::weights::{CLASSIFIER, shipped};
use crate::data::Images;
use crate::data::grid::{GRID, png_grid};
use crate::error::{Error, Result};
use crate::experiment::{Data, Initialization, Recipe, Row};
use crate::judge::golden::{Score, read_scores, write_scores};
use crate::measure::evaluate::{Evaluator, METRICS, over_trials};
use crate::measure::sample::{ScoreLatents, generate, generate_grid};
use crate::method::Setup;
use crate::network::activations;
use crate::network::device::Named;
use crate::network::params::Arrays;
use crate::store::{Entry, Finished, Key, Lock, Manifest, Store, write_safetensors};
use crate::train::batch::Batches;
use crate::train::watch::Watch;
use crate::train::{Budget, Snapshot, Trained, train};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub const WEIGHTS: &str = "weights.safetensors";
pub const SCORES: &str = "scores.csv";
pub const SAMPLES: &str = "samples.png";
const TIMING: &str = "timing.csv";
/// A directory of the repository with weights that ship with it.
pub const SHIPPED: &str = "golden/weights";

/// Where things are and how to run.
pub struct Settings {
    pub store: PathBuf,
    /// The repository: paper/ and golden/ are here.
    pub root: PathBuf,
    /// CIFAR files, for the scales that read them; else those that were fetched.
    pub data: Option<PathBuf>,
    pub device: Device,
    /// Trains what ships with the repository again.
    pub from_scratch: bool,
    /// Images of a batch in memory at a time, where a GPU cannot hold all. A CPU's
    /// results promise their bytes, and take whole batches.
    pub microbatch: Option<usize>,
}

pub struct Runner<'a> {
    settings: Settings,
    recipe: Recipe,
    /// [`determinism`] of what is made, or looked for.
    class: &'static str,
    store: Store,
    watch: Watch,
    stop: &'a AtomicBool,
    /// What was read or drawn, with its digest where it was read.
    images: BTreeMap<Data, (Images, String)>,
    /// The files that were found and verified, with their SHA-256.
    inputs: RefCell<Vec<(Input, (PathBuf, String))>>,
    evaluator: OnceLock<Evaluator>,
    features: OnceLock<(Arrays, String)>,
}

/// A finished cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub entry: Entry,
    pub manifest: Manifest,
}

/// Within which machines the same bytes are promised. `cpu` is x86-64 Linux
/// with AVX2 and FMA, any number of threads: our kernels give the same bits
/// everywhere, but candle's sums, the platform's `exp` and the linear algebra of
/// the metrics choose their order by the machine. What a GPU does is not proven
/// to be repeatable, and is compared by statistics alone.
pub fn determinism(device: &Device) -> &'static str {
    class(device.is_cpu(), activations(device) == DType::BF16)
}

fn class(cpu: bool, bfloat16: bool) -> &'static str {
    #[cfg(target_arch = "x86_64")]
    let usual = cfg!(target_os = "linux")
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let usual = false;
    match (cpu, usual) {
        (true, true) => "cpu",
        (true, false) => unusual_class(),
        (false, _) if bfloat16 => "statistical-cuda-bf16",
        (false, _) => "statistical-cuda",
    }
}

fn unusual_class() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "cpu-aarch64",
        "x86_64" => "cpu-x86_64-other",
        _ => "statistical-cpu",
    }
}

impl<'a> Runner<'a> {
    pub fn new(settings: Settings, recipe: Recipe, watch: Watch, stop: &'a AtomicBool) -> Result<Runner<'a>> {
        let store = Store::open(&settings.store)?;
        Ok(Runner {
            class: determinism(&settings.device),
            settings,
            recipe,
            store,
            watch,
            stop,
            images: BTreeMap::new(),
            inputs: RefCell::new(Vec::new()),
            evaluator: OnceLock::new(),
            features: OnceLock::new(),
        })
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Looks for what was made on the device of that name, which need not be here.
    ///
    /// # Errors
    /// `Usage` for a name of no device.
    pub fn made_on(mut self, name: &str) -> Result<Runner<'a>> {
        let Named { gpu, bfloat16, .. } = Named::parse(name)?;
        self.class = class(gpu.is_none(), bfloat16);
        Ok(self)
    }

    pub fn device(&self) -> &Device {
        &self.settings.device
    }

    /// The recipe as far as memory is concerned: with batches of what is taken at once.
    pub fn recipe_in_memory(&self) -> Recipe {
        let mut recipe = self.recipe.clone();
        let microbatch = self.settings.microbatch.unwrap_or(usize::MAX);
        recipe.batch = recipe.batch.min(microbatch);
        recipe.pretraining.batch = recipe.pretraining.batch.min(microbatch);
        recipe
    }

    /// Runs one row of one seed, or answers from the store.
    pub fn row(&mut self, row: &Row, seed: u64) -> Result<Outcome> {
        let identity = self.identify(row, seed, true)?;
        let Identity { entry, text, weights_digest, features_digest, images_digest } =
            identity.expect("what is missing was made");
        let lock = match self.claim(&entry)? {
            Claim::Finished(manifest) => return Ok(Outcome { entry, manifest }),
            Claim::Ours(lock) => lock,
        };
        let made_from = [
            ("features", Some(features_digest)),
            ("images", Some(images_digest)),
            ("weights", weights_digest),
        ];
        let inputs = made_from.into_iter().filter_map(|(name, digest)| Some((name.to_string(), digest?)));
        let inputs = inputs.collect();
        let started = Instant::now();
        let start = self.starting_weights(row)?;
        self.images(Data::Target)?;
        self.prepare_evaluator()?;
        let (mut outputs, mut costs, mut images_seen) = (Vec::new(), Vec::new(), 0);
        let weights = match row.method.training {
            None => start.clone().expect("what is only sampled was pre-trained"),
            Some(_) => {
                let trained = self.train(&lock, row, seed, start.as_ref(), &mut costs)?;
                images_seen = trained.images;
                write_timing(&lock, &trained)?;
                lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
                outputs = trained.outputs;
                outputs.push(WEIGHTS.to_string());
                trained.weights
            }
        };
        let values = self.score(&lock, row, seed, start.as_ref(), &weights)?;
        outputs.push(SAMPLES.to_string());
        write_measured(&lock, row, &self.recipe, seed, self.class, values.into_iter().chain(costs))?;
        outputs.push(SCORES.to_string());
        let manifest = Manifest {
            experiment: text,
            seed,
            images: images_seen,
            determinism: self.class.to_string(),
            inputs,
            provenance: provenance(started.elapsed(), &self.settings.device),
            ..Manifest::default()
        };
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let manifest = lock.publish(manifest, &names)?;
        Ok(Outcome { entry, manifest })
    }

    /// Trains the row's method; adds the sizes of its networks to `costs`.
    fn train(
        &mut self,
        lock: &Lock,
        row: &Row,
        seed: u64,
        start: Option<&Arrays>,
        costs: &mut Vec<(&'static str, f64)>,
    ) -> Result<Trained> {
        let (recipe, device) = (&self.recipe, &self.settings.device);
        let cell = self.streams(seed);
        let setup = recipe.setup(device, row, start, &cell);
        let training = row.method.training.as_ref().expect("the row has a training");
        let mut method = (training.build)(&setup)?;
        let sizes = ["generator_parameters", "critic_parameters"];
        costs.extend(sizes.into_iter().zip(method.nets().iter().map(|(_, net)| net.params.count() as f64)));
        let evaluator = self.evaluator.get().expect("just prepared");
        let batches = Batches {
            images: &self.images[&Data::Target].0,
            device: device.clone(),
            size: recipe.batch,
            microbatch: self.settings.microbatch.unwrap_or(usize::MAX),
            augmentation: recipe.augmentation,
            cell: cell.clone(),
        };
        let latents = ScoreLatents { config: &recipe.network, seed, device };
        let mut snapshot = |weights: &Arrays| {
            let sampler = (row.method.sampler)(&setup, weights)?;
            let images =
                generate(0..recipe.evaluation.quick_samples, |range| sampler.sample(&latents.at(range)?))?;
            let grid = generate_grid(&recipe.network, device, |z| sampler.sample(z))?;
            Ok(Snapshot { scores: Some(evaluator.interim(&images)?), grid: Some(grid) })
        };
        let budget = Budget { images: recipe.images_of(row), ticks: recipe.ticks };
        train(lock, budget, &batches, &mut *method, &mut snapshot, &mut self.watch, self.stop)
    }

    /// Samples the row's weights and scores them, trial by trial.
    fn score(
        &mut self,
        lock: &Lock,
        row: &Row,
        seed: u64,
        start: Option<&Arrays>,
        weights: &Arrays,
    ) -> Result<Vec<(&'static str, f64)>> {
        let cell = self.streams(seed);
        let sampler = (row.method.sampler)(&self.setup(row, start, &cell), weights)?;
        let label = lock.label().to_string();
        let (recipe, device) = (&self.recipe, &self.settings.device);
        let (stop, watch) = (self.stop, &mut self.watch);
        let sample = |z: &Tensor| {
            if stop.load(Ordering::Relaxed) {
                candle_core::bail!("stopped by a signal");
            }
            sampler.sample(z)
        };
        let stopped = |error| match stop.load(Ordering::Relaxed) {
            true => Error::Stopped { cell: label.clone() },
            false => error,
        };
        let grid = generate_grid(&recipe.network, device, sample).map_err(stopped)?;
        lock.write(SAMPLES, &png_grid(&grid, GRID.0, GRID.1))?;
        let e = &recipe.evaluation;
        let evaluator = self.evaluator.get().expect("just prepared");
        let latents = ScoreLatents { config: &recipe.network, seed, device };
        let mut trials = Vec::new();
        for trial in 0..e.trials {
            // A trial that was finished before a stop is not made again.
            let name = format!("trial-{trial}.csv");
            if let Some(scores) = read_trial(&lock.dir().join(&name)) {
                trials.push(scores);
                continue;
            }
            let images = generate(trial * e.samples..(trial + 1) * e.samples, |range| {
                let images = sample(&latents.at(range.clone())?)?;
                watch.sampling(&label, range.end, e.trials * e.samples);
                Ok(images)
            });
            let scores = evaluator.scores(&images.map_err(stopped)?)?;
            if e.trials > 1 {
                lock.write(&name, trial_text(&scores).as_bytes())?;
            }
            trials.push(scores);
        }
        Ok(over_trials(&trials))
    }

    /// The weights that the row starts from, made where they are missing; `None`
    /// where everything is drawn.
    fn starting_weights(&mut self, row: &Row) -> Result<Option<Arrays>> {
        match row.start {
            Initialization::Random => Ok(None),
            start => Ok(self.pretrained(start, true)?.map(|(arrays, _)| arrays)),
        }
    }

    /// Names the random streams: what is drawn is alike in every row of a seed.
    fn streams(&self, seed: u64) -> String {
        format!("{} one-step seed {seed}", self.recipe.scale)
    }

    fn setup<'s>(&'s self, row: &Row, start: Option<&'s Arrays>, cell: &'s str) -> Setup<'s> {
        self.recipe.setup(&self.settings.device, row, start, cell)
    }

    /// The finished result of one cell of one seed; nothing is run.
    pub fn stored(&mut self, row: &Row, seed: u64) -> Result<Option<Outcome>> {
        let Some(Identity { entry, .. }) = self.identify(row, seed, false)? else { return Ok(None) };
        match entry.finished()? {
            Finished::Yes(manifest) => Ok(Some(Outcome { entry, manifest })),
            Finished::No => Ok(None),
            Finished::Damaged(reason) => {
                self.watch.note(&format!("{reason}: it does not count, the next run makes it again"));
                Ok(None)
            }
        }
    }

    /// Images of a finished cell, by their numbers: the first ones are those that it
    /// was scored on.
    ///
    /// # Errors
    /// `Missing` where the cell has not been run.
    pub fn samples(
        &mut self,
        row: &Row,
        seed: u64,
    ) -> Result<impl FnMut(Range<usize>) -> Result<Images> + 'static> {
        let Some(outcome) = self.stored(row, seed)? else {
            return Err(Error::Missing {
                path: self.settings.store.clone(),
                what: format!("{} of seed {seed} is not in this store", row.id),
                remedy: format!(
                    "replicate run {} --scale {} --seed {seed}; results of a GPU are found with its --device",
                    row.id, self.recipe.scale
                ),
            });
        };
        let (start, cell) = (self.starting_weights(row)?, self.streams(seed));
        let weights = match (&row.method.training, &start) {
            (None, Some(start)) => start.clone(),
            _ => read_weights(&outcome.entry)?.0,
        };
        let sampler = (row.method.sampler)(&self.setup(row, start.as_ref(), &cell), &weights)?;
        let (config, device) = (self.recipe.network.clone(), self.settings.device.clone());
        Ok(move |range| {
            let latents = ScoreLatents { config: &config, seed, device: &device };
            generate(range, |part| sampler.sample(&latents.at(part)?))
        })
    }

    /// Every seed of `row` that has a directory in the store, in order; which
    /// of them are of this very experiment `stored` tells by their keys.
    pub fn seeds(&self, row: &Row) -> Result<Vec<u64>> {
        let label = format!("{}-{}-s", self.recipe.scale, row.id);
        let store = &self.settings.store;
        let listing = match std::fs::read_dir(store) {
            // One that is not there is empty.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(Error::io("read", store))?,
        };
        let mut seeds: Vec<u64> = listing
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .filter_map(|name| {
                let rest = name.get(13..)?.strip_prefix(&label)?.to_string();
                rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            })
            .collect();
        seeds.sort_unstable();
        seeds.dedup();
        Ok(seeds)
    }

    /// What a cell measured, times included.
    pub fn scores(&self, outcome: &Outcome) -> Result<Vec<Score>> {
        if !outcome.manifest.outputs.contains_key(SCORES) {
            return Ok(Vec::new());
        }
        let mut scores = read_scores(&outcome.entry.path(SCORES))?;
        if let (Some(seconds), Some(first)) = (seconds_per_step(&outcome.entry), scores.first().cloned()) {
            scores.push(Score { metric: crate::judge::golden::TIME.into(), value: seconds, ..first });
        }
        Ok(scores)
    }

    /// The name of a cell's result. With `make`, the weights that it starts
    /// from are trained where they are missing; without, it is `None` then.
    fn identify(&mut self, row: &Row, seed: u64, make: bool) -> Result<Option<Identity>> {
        let weights_digest = match row.start {
            Initialization::Random => None,
            start => match self.pretrained_digest(start, make)? {
                Some(digest) => Some(digest),
                None => return Ok(None),
            },
        };
        let Some(features_digest) = self.features_digest(make)? else { return Ok(None) };
        let Some(images_digest) = self.digest(Data::Target, make)? else { return Ok(None) };
        let class = self.class;
        let weights = weights_digest.as_deref().unwrap_or("none");
        let text = self.recipe.cell_text(row, seed, &images_digest, weights, &features_digest, class);
        let label = self.label(&format!("{}-s{seed}", row.id));
        let entry = self.store.entry(&Key::of(&text), &label);
        Ok(Some(Identity { entry, text, weights_digest, features_digest, images_digest }))
    }

    fn label(&self, name: &str) -> String {
        let changes: String = self.recipe.changes.iter().map(|c| format!("+{c}")).collect();
        format!("{}-{name}{changes}", self.recipe.scale)
    }

    fn claim(&mut self, entry: &Entry) -> Result<Claim> {
        assert_eq!(self.class, determinism(&self.settings.device), "a reader makes nothing");
        if let Finished::Yes(manifest) = entry.finished()? {
            return Ok(Claim::Finished(manifest));
        }
        let (watch, stop) = (&mut self.watch, self.stop);
        let lock = entry.lock(&mut |waited| {
            if waited.is_zero() {
                watch.note(&format!("{}: another process is at it, waiting", entry.label()));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped { cell: entry.label().into() });
            }
            Ok(())
        })?;
        match entry.finished()? {
            Finished::Yes(manifest) => return Ok(Claim::Finished(manifest)),
            Finished::No => {}
            Finished::Damaged(reason) => {
                let aside = lock.discard(&reason)?;
                self.watch.note(&format!("{reason}: moved to {} and made again", aside.display()));
            }
        }
        Ok(Claim::Ours(lock))
    }
}

struct Identity {
    entry: Entry,
    text: String,
    /// `None` where everything is drawn.
    weights_digest: Option<String>,
    features_digest: String,
    images_digest: String,
}

enum Claim {
    Finished(Manifest),
    Ours(Lock),
}

/// Seconds of one iteration, from the file of times.
fn seconds_per_step(entry: &Entry) -> Option<f64> {
    let text = std::fs::read_to_string(entry.path(TIMING)).ok()?;
    let (steps, seconds) = text.lines().nth(1)?.split_once(',')?;
    let (steps, seconds): (f64, f64) = (steps.parse().ok()?, seconds.parse().ok()?);
    (steps > 0.0).then_some(seconds / steps)
}

/// The scores of a trial with every bit.
fn trial_text(scores: &[(&'static str, f64)]) -> String {
    scores.iter().map(|(name, value)| format!("{name},{}\n", value.to_bits())).collect()
}

/// `None` for anything but a whole trial.
fn read_trial(path: &Path) -> Option<Vec<(&'static str, f64)>> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = |line: &str, name: &'static str| {
        let bits = line.strip_prefix(name)?.strip_prefix(',')?.parse().ok()?;
        Some((name, f64::from_bits(bits)))
    };
    let scores: Vec<_> = text.lines().zip(METRICS).filter_map(|(line, name)| value(line, name)).collect();
    (scores.len() == METRICS.len()).then_some(scores)
}

/// Leaves what was measured of a cell as the entry's scores.
fn write_measured(
    lock: &Lock,
    row: &Row,
    recipe: &Recipe,
    seed: u64,
    class: &str,
    values: impl Iterator<Item = (&'static str, f64)>,
) -> Result<()> {
    let score = |(metric, value): (&str, f64)| Score {
        row: row.id.to_string(),
        scale: recipe.scale.to_string(),
        seed,
        metric: metric.to_string(),
        value,
        class: class.to_string(),
        manifest: lock.key().to_string(),
    };
    let scores: Vec<Score> = values.map(score).collect();
    lock.write(SCORES, write_scores(&scores).as_bytes())
}

/// Times go into a file of their own: they differ between identical runs.
fn write_timing(lock: &Lock, trained: &Trained) -> Result<()> {
    let text = format!("steps,seconds_in_steps\n{},{:.3}\n", trained.steps, trained.step_seconds);
    lock.write(TIMING, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_back_to_the_bit_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trial-0.csv");
        assert_eq!(read_trial(&path), None);
        let scores: Vec<_> =
            METRICS.into_iter().enumerate().map(|(i, name)| (name, 0.1 / (i + 1) as f64)).collect();
        let text = trial_text(&scores);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read_trial(&path), Some(scores));
        let short: String = text.lines().take(METRICS.len() - 1).map(|line| format!("{line}\n")).collect();
        for spoilt in [short, text.replace("recall,", "recoil,"), text.replace("kid,", "kid,x")] {
            std::fs::write(&path, spoilt).unwrap();
            assert_eq!(read_trial(&path), None);
        }
    }
}
