//! From a cell to its scores: what is missing is made, once, and stored under
//! the key of its experiment.

mod artifact;
mod data;
mod inputs;
mod keys;
mod mapping;
mod provenance;
mod weights;

pub use self::artifact::Made;
use self::artifact::{Artifact, Outputs};
pub use self::inputs::Input;
pub use self::keys::MAP_LATENTS;
pub use self::provenance::humantime;
use self::provenance::provenance;
use self::weights::read_weights;
pub use self::weights::{CLASSIFIER, shipped};
use crate::data::Images;
use crate::data::grid::{GRID, png_grid};
use crate::error::{Error, Result};
use crate::experiment::{Data, Initialization, Recipe, Row};
use crate::judge::golden::{Score, TIME};
use crate::measure::evaluate::{Evaluator, METRICS, over_trials};
use crate::measure::sample::{ScoreLatents, generate, generate_grid};
use crate::method::{Sampler, Setup};
use crate::network::activations;
use crate::network::device::Named;
use crate::network::params::Arrays;
use crate::store::{Content, Entry, Finished, Lock, Store, write_safetensors};
use crate::train::batch::Batches;
use crate::train::watch::Watch;
use crate::train::{Budget, Snapshot, Trained, train};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Takes results of other code instead of making them again.
    pub keep: bool,
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

/// A finished row of one seed.
#[derive(Clone)]
pub struct Outcome {
    pub row: Row,
    pub seed: u64,
    pub scores: Made,
    /// `None` where the row trains nothing.
    pub weights: Option<Made>,
    /// The code that made it, where it is not this one.
    pub other_code: Option<String>,
}

impl Outcome {
    /// Where the training's files are, and otherwise those of the scores.
    pub fn training(&self) -> &Made {
        self.weights.as_ref().unwrap_or(&self.scores)
    }

    /// Every file of the training and of the scores.
    pub fn outputs(&self) -> BTreeMap<String, Content> {
        let of = |made: &Made, kind: &str| {
            let outputs = made.manifest.outputs.clone().into_iter();
            outputs.map(|(name, content)| (format!("{kind}/{name}"), content)).collect::<Vec<_>>()
        };
        let trained = self.weights.iter().flat_map(|made| of(made, "training"));
        of(&self.scores, "scores").into_iter().chain(trained).collect()
    }

    /// Seconds that all of it took.
    pub fn wall_seconds(&self) -> f64 {
        let seconds = |made: &Made| made.manifest.provenance.wall_seconds;
        seconds(&self.scores) + self.weights.as_ref().map_or(0.0, seconds)
    }
}

/// Digests of what a row is made from.
#[derive(Default)]
struct Parents {
    /// `None` where everything is drawn.
    start: Option<String>,
    images: String,
    features: String,
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
        recipe.budget.batch = recipe.budget.batch.min(microbatch);
        recipe.pretraining.batch = recipe.pretraining.batch.min(microbatch);
        recipe
    }

    /// Runs one row of one seed, or answers from the store.
    pub fn row(&mut self, row: &Row, seed: u64) -> Result<Outcome> {
        if self.settings.keep
            && let Some(outcome) = self.stored(row, seed)?
        {
            return Ok(outcome);
        }
        let parents = self.make_parents(row)?;
        let weights = match row.method.training {
            None => None,
            Some(_) => {
                let artifact = self.weights_artifact(row, seed, &parents);
                self.explain_remake(&artifact)?;
                Some(self.make(artifact, |runner, lock| runner.train(lock, row, seed))?)
            }
        };
        let artifact = self.scores_artifact(row, seed, &parents, weights.as_ref());
        self.explain_remake(&artifact)?;
        let scores = self.make(artifact, |runner, lock| runner.score(lock, row, seed, weights.as_ref()))?;
        Ok(Outcome { row: *row, seed, scores, weights, other_code: None })
    }

    /// The result of one row of one seed that this code made, or else the newest one that
    /// other code made in the same experiment; nothing is run.
    pub fn stored(&mut self, row: &Row, seed: u64) -> Result<Option<Outcome>> {
        if let Some(parents) = self.find_parents(row)? {
            let weights = match row.method.training {
                None => None,
                Some(_) => {
                    let artifact = self.weights_artifact(row, seed, &parents);
                    self.find(&artifact)?
                }
            };
            if weights.is_some() || row.method.training.is_none() {
                let artifact = self.scores_artifact(row, seed, &parents, weights.as_ref());
                if let Some(scores) = self.find(&artifact)? {
                    return Ok(Some(Outcome { row: *row, seed, scores, weights, other_code: None }));
                }
            }
        }
        self.of_other_code(row, seed)
    }

    fn of_other_code(&mut self, row: &Row, seed: u64) -> Result<Option<Outcome>> {
        let parents = Parents::default();
        let wanted = self.scores_artifact(row, seed, &parents, None);
        let mut found: Option<Made> = None;
        for made in self.made(&wanted.label)? {
            let newer = |before: &Made| made.manifest.provenance.date > before.manifest.provenance.date;
            if keys::same_experiment(&made.manifest.experiment, &wanted.text)
                && found.as_ref().is_none_or(newer)
                && matches!(made.entry.finished()?, Finished::Yes(_))
            {
                found = Some(made);
            }
        }
        let Some(scores) = found else { return Ok(None) };
        let (mut weights, wanted) = (None, scores.manifest.inputs.get("weights").cloned());
        if row.method.training.is_some() {
            let label = self.weights_artifact(row, seed, &parents).label;
            let theirs = self.made(&label)?;
            weights = theirs.into_iter().find(|made| made.digest(WEIGHTS) == wanted.as_deref());
        }
        let other_code = Some(keys::code_of(&scores.manifest.experiment));
        Ok(Some(Outcome { row: *row, seed, scores, weights, other_code }))
    }

    /// Finished entries of that label.
    fn made(&self, label: &str) -> Result<Vec<Made>> {
        let all = self.store.finished_entries()?.into_iter();
        let named = all.filter(|(entry, _)| entry.label() == crate::store::slug(label));
        Ok(named.map(|(entry, manifest)| Made { entry, manifest }).collect())
    }

    /// Says why what is there already is made once more.
    fn explain_remake(&mut self, artifact: &Artifact) -> Result<()> {
        if self.find(artifact)?.is_some() {
            return Ok(());
        }
        let label = &artifact.label;
        for made in self.made(label)? {
            let old = &made.manifest.experiment;
            if keys::same_experiment(old, &artifact.text) {
                let changed = keys::changed_code(old, &artifact.text).join(", ");
                self.watch.note(&format!(
                    "{label}: made again, because this changed: {changed} (--keep takes the stored result)"
                ));
                break;
            }
        }
        Ok(())
    }

    /// Digests of what a row is made from, where all of it is here.
    fn find_parents(&mut self, row: &Row) -> Result<Option<Parents>> {
        let start = match row.start {
            Initialization::Random => None,
            start => match self.find_pretrained_digest(start)? {
                Some(digest) => Some(digest),
                None => return Ok(None),
            },
        };
        let Some(features) = self.find_features_digest()? else { return Ok(None) };
        let Some(images) = self.find_images_digest(Data::Target)? else { return Ok(None) };
        Ok(Some(Parents { start, images, features }))
    }

    /// The same; what is missing is made.
    fn make_parents(&mut self, row: &Row) -> Result<Parents> {
        let start = match row.start {
            Initialization::Random => None,
            start => Some(self.pretrained_digest(start)?),
        };
        Ok(Parents { start, features: self.features_digest()?, images: self.images_digest(Data::Target)? })
    }

    fn weights_artifact(&self, row: &Row, seed: u64, parents: &Parents) -> Artifact {
        let streams = self.streams(seed);
        let origin =
            keys::Origin { images: &parents.images, start: parents.start.as_deref(), streams: &streams };
        let start = parents.start.clone().map(|digest| ("start".to_string(), digest));
        Artifact {
            text: keys::weights(&self.recipe, row, seed, &origin, self.class),
            label: self.label(&format!("{}-s{seed}-weights", row.id)),
            seed,
            inputs: [("images".to_string(), parents.images.clone())].into_iter().chain(start).collect(),
            parents: BTreeMap::new(),
        }
    }

    fn scores_artifact(&self, row: &Row, seed: u64, parents: &Parents, weights: Option<&Made>) -> Artifact {
        let start = parents.start.as_deref().unwrap_or("none");
        let digest = weights.map_or(start, |made| made.digest(WEIGHTS).unwrap_or("none"));
        let inputs = [("features", parents.features.clone()), ("weights", digest.to_string())];
        let parent = weights.map(|made| ("weights".to_string(), made.entry.key().to_string()));
        Artifact {
            text: keys::scores(&self.recipe, row, seed, digest, &parents.features, self.class),
            label: self.label(&format!("{}-s{seed}", row.id)),
            seed,
            inputs: inputs.into_iter().map(|(name, digest)| (name.to_string(), digest)).collect(),
            parents: parent.into_iter().collect(),
        }
    }

    /// Trains the row's method and leaves its weights.
    fn train(&mut self, lock: &Lock, row: &Row, seed: u64) -> Result<Outputs> {
        let start = self.starting_weights(row)?;
        let start = start.as_ref();
        self.images(Data::Target)?;
        self.prepare_evaluator()?;
        let (recipe, device) = (&self.recipe, &self.settings.device);
        let cell = self.streams(seed);
        let setup = recipe.setup(device, row, start, &cell);
        let training = row.method.training.as_ref().expect("the row has a training");
        let mut method = (training.build)(&setup)?;
        let sizes: Vec<f64> = method.nets().iter().map(|(_, net)| net.params.count() as f64).collect();
        let evaluator = self.evaluator.get().expect("just prepared");
        let batches = Batches {
            images: &self.images[&Data::Target].0,
            device: device.clone(),
            size: recipe.budget.batch,
            microbatch: self.settings.microbatch.unwrap_or(usize::MAX),
            augmentation: recipe.one_step.augmentation(),
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
        let budget = Budget { images: recipe.images_of(row), ticks: recipe.budget.ticks };
        let trained = train(lock, budget, &batches, &mut *method, &mut snapshot, &mut self.watch, self.stop)?;
        write_timing(lock, &trained)?;
        lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
        let sizes = ["generator_parameters", "critic_parameters"].into_iter().zip(sizes);
        lock.write(SCORES, values_text(sizes).as_bytes())?;
        let mut names = trained.outputs;
        names.extend([WEIGHTS.to_string(), SCORES.to_string()]);
        Ok(Outputs { names, images: trained.images })
    }

    /// Samples the row's weights and scores them, trial by trial.
    fn score(&mut self, lock: &Lock, row: &Row, seed: u64, weights: Option<&Made>) -> Result<Outputs> {
        let start = self.starting_weights(row)?;
        self.images(Data::Target)?;
        self.prepare_evaluator()?;
        let sampler = self.sampler(row, seed, start.as_ref(), weights)?;
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
        lock.write(SCORES, values_text(over_trials(&trials).into_iter()).as_bytes())?;
        Ok(Outputs { names: vec![SAMPLES.to_string(), SCORES.to_string()], images: 0 })
    }

    /// The sampler of a row's weights; without them, of those that it starts from.
    fn sampler(
        &self,
        row: &Row,
        seed: u64,
        start: Option<&Arrays>,
        weights: Option<&Made>,
    ) -> Result<Box<dyn Sampler>> {
        let cell = self.streams(seed);
        let setup = self.setup(row, start, &cell);
        Ok(match (weights, start) {
            (Some(made), _) => (row.method.sampler)(&setup, &read_weights(&made.entry)?.0)?,
            (None, Some(start)) => (row.method.sampler)(&setup, start)?,
            (None, None) => unreachable!("what is only sampled was pre-trained"),
        })
    }

    /// The weights that the row starts from, made where they are missing; `None`
    /// where everything is drawn.
    fn starting_weights(&mut self, row: &Row) -> Result<Option<Arrays>> {
        match row.start {
            Initialization::Random => Ok(None),
            start => Ok(Some(self.pretrained(start)?.0)),
        }
    }

    /// Names the random streams: what is drawn is alike in every row of a seed.
    fn streams(&self, seed: u64) -> String {
        format!("{} one-step seed {seed}", self.recipe.scale)
    }

    fn setup<'s>(&'s self, row: &Row, start: Option<&'s Arrays>, cell: &'s str) -> Setup<'s> {
        self.recipe.setup(&self.settings.device, row, start, cell)
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
        let start = self.starting_weights(row)?;
        let sampler = self.sampler(row, seed, start.as_ref(), outcome.weights.as_ref())?;
        let (config, device) = (self.recipe.network.clone(), self.settings.device.clone());
        Ok(move |range| {
            let latents = ScoreLatents { config: &config, seed, device: &device };
            generate(range, |part| sampler.sample(&latents.at(part)?))
        })
    }

    /// Every seed of `row` with a finished result in the store, in order; which of them are
    /// of this very experiment `stored` tells.
    pub fn seeds(&self, row: &Row) -> Result<Vec<u64>> {
        let label = format!("{}-{}-s", self.recipe.scale, row.id);
        let all = self.store.finished_entries()?.into_iter();
        let named = all.filter(|(entry, _)| entry.label().starts_with(&label));
        let seeds: BTreeSet<u64> = named.map(|(_, manifest)| manifest.seed).collect();
        Ok(seeds.into_iter().collect())
    }

    /// What was measured of a row, the sizes of its networks and its time an iteration
    /// included. Scores of other code are of a determinism class of their own.
    pub fn scores(&self, outcome: &Outcome) -> Result<Vec<Score>> {
        let mut values = read_values(&outcome.scores)?;
        if let Some(weights) = &outcome.weights {
            values.extend(read_values(weights)?);
            values.extend(seconds_per_step(&weights.entry).map(|seconds| (TIME.to_string(), seconds)));
        }
        let class = match &outcome.other_code {
            None => outcome.scores.manifest.determinism.clone(),
            Some(code) => format!("{}, code {code}", outcome.scores.manifest.determinism),
        };
        let score = |(metric, value)| Score {
            row: outcome.row.id.to_string(),
            scale: self.recipe.scale.to_string(),
            seed: outcome.seed,
            metric,
            value,
            class: class.clone(),
            manifest: outcome.scores.entry.key().to_string(),
        };
        Ok(values.into_iter().map(score).collect())
    }

    fn label(&self, name: &str) -> String {
        let changes: String = self.recipe.changes().iter().map(|c| format!("+{c}")).collect();
        format!("{}-{name}{changes}", self.recipe.scale)
    }
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

/// Values by name, as scores.csv has them.
fn values_text(values: impl Iterator<Item = (&'static str, f64)>) -> String {
    let lines = values.map(|(name, value)| format!("{name},{value}\n"));
    std::iter::once("metric,value\n".to_string()).chain(lines).collect()
}

fn read_values(made: &Made) -> Result<Vec<(String, f64)>> {
    let bytes = made.entry.read(SCORES)?;
    let wrong = |found: &str| Error::Malformed {
        path: made.entry.path(SCORES),
        expected: "lines NAME,VALUE".into(),
        found: found.to_string(),
        remedy: "remove that directory: it is made again".into(),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("bytes that are no text"))?;
    let value = |line: &str| {
        let (name, value) = line.split_once(',')?;
        Some((name.to_string(), value.parse().ok()?))
    };
    text.lines().skip(1).map(|line| value(line).ok_or_else(|| wrong(line))).collect()
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
