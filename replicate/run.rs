//! From a cell to its scores: what is missing is made, once, and stored under
//! the key of its experiment.

use crate::data::{Images, cifar, glyphs};
use crate::distill::{Initial, OneStep};
use crate::error::{Error, Result};
use crate::evaluate::Evaluator;
use crate::experiment::{Cell, Data, Method, Recipe, Scale, Start};
use crate::features::Classifier;
use crate::golden::{Score, read_scores, write_scores};
use crate::params::Arrays;
use crate::sampler::{HEUN_STEPS, heun, one_step};
use crate::store::{
    Entry, Finished, Key, Lock, Manifest, Provenance, Store, read_safetensors, sha256_hex, write_safetensors,
};
use crate::train::{
    Budget, Classifying, Distilling, GRID, Teaching, Trained, evaluating, generate, grid_latents,
    score_latents, train,
};
use crate::watch::Watch;
use candle_core::Device;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const WEIGHTS: &str = "weights.safetensors";
pub const SCORES: &str = "scores.csv";
pub const SAMPLES: &str = "samples.png";
const TIMING: &str = "timing.csv";
/// The feature network's name among the shipped weights and in the store.
pub const CLASSIFIER: &str = "classifier";
/// A directory of the repository with weights that ship with it.
pub const SHIPPED: &str = "golden/weights";

/// Where things are and how to run.
pub struct Settings {
    pub store: PathBuf,
    /// The repository: paper/ and golden/ are here.
    pub root: PathBuf,
    /// CIFAR files, for the scales that read them.
    pub data: Option<PathBuf>,
    pub device: Device,
    /// Trains what ships with the repository again.
    pub from_scratch: bool,
}

pub struct Runner<'a> {
    settings: Settings,
    recipe: Recipe,
    store: Store,
    watch: Watch,
    stop: &'a AtomicBool,
    target: OnceLock<Images>,
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
    #[cfg(target_arch = "x86_64")]
    let usual = cfg!(target_os = "linux")
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let usual = false;
    match (device.is_cpu(), usual) {
        (true, true) => "cpu",
        (true, false) => unusual_class(),
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
        let mut runner = Runner {
            settings,
            recipe,
            store,
            watch,
            stop,
            target: OnceLock::new(),
            evaluator: OnceLock::new(),
            features: OnceLock::new(),
        };
        for notice in runner.store.notices().to_vec() {
            runner.watch.note(&notice);
        }
        Ok(runner)
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Runs one cell of one seed, or answers from the store.
    pub fn cell(&mut self, cell: &Cell, seed: u64) -> Result<Outcome> {
        let identity = self.identify(cell, seed, true)?;
        let Identity { entry, text, weights, weights_digest, features_digest, images_digest } =
            identity.expect("what is missing was made");
        let lock = match self.claim(&entry)? {
            Claim::Finished(manifest) => return Ok(Outcome { entry, manifest }),
            Claim::Ours(lock) => lock,
        };
        let label = entry.label().to_string();
        let class = determinism(&self.settings.device);
        let parents = BTreeMap::from([("weights".to_string(), weights_digest)]);
        let started = Instant::now();
        let config = self.recipe.network.clone();
        let device = self.settings.device.clone();
        self.prepare(Data::Target)?;
        let needs_scores = self.recipe.evaluation.is_some();
        if needs_scores {
            self.prepare_evaluator()?;
        }
        let target = self.target.get().expect("just prepared");
        let evaluator = self.evaluator.get();
        let mut outputs = Vec::new();
        let mut costs = Vec::new();
        let mut images_seen = 0;

        let samples: Box<dyn Fn(&candle_core::Tensor) -> candle_core::Result<candle_core::Tensor>> =
            match cell.method {
                Method::Teacher => {
                    let teacher =
                        evaluating(&config, weights.as_ref().expect("the teacher is pre-trained"), &device)?;
                    self.watch
                        .note(&format!("{label}: sampling, {} network calls an image", 2 * HEUN_STEPS - 1));
                    Box::new(move |z| heun(&teacher, z, HEUN_STEPS))
                }
                Method::OneStep(objective) => {
                    // The head and random weights are drawn alike in every row of a seed.
                    let draws = format!("{} one-step seed {seed}", self.recipe.scale);
                    let initial = Initial { weights: weights.as_ref(), cell: &draws };
                    let run =
                        OneStep::new(&device, &config, objective, initial, self.recipe.one_step.clone())?;
                    let (generator, critic) = run.parameter_counts();
                    costs.push(("generator_parameters", generator as f64));
                    costs.push(("critic_parameters", critic as f64));
                    let budget = Budget {
                        images: self.recipe.images,
                        batch: self.recipe.batch,
                        ticks: self.recipe.ticks,
                    };
                    let mut training = Distilling::new(&device, &self.recipe, run, target, seed, evaluator)?;
                    let trained = train(&lock, budget, &mut training, &mut self.watch, self.stop)?;
                    images_seen = trained.images;
                    outputs.extend(trained.outputs.clone());
                    write_timing(&lock, &trained)?;
                    lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
                    outputs.push(WEIGHTS.to_string());
                    let generator = evaluating(&config, &trained.weights, &device)?;
                    let sigma_init = self.recipe.one_step.sigma_init;
                    Box::new(move |z| one_step(&generator, z, sigma_init))
                }
            };
        let stop = self.stop;
        let samples = |z: &candle_core::Tensor| match stop.load(Ordering::Relaxed) {
            true => candle_core::bail!("stopped by a signal"),
            false => samples(z),
        };
        let sampled = |latents: &candle_core::Tensor| {
            generate(latents, &samples).map_err(|error| match stop.load(Ordering::Relaxed) {
                true => Error::Stopped { cell: label.clone() },
                false => error,
            })
        };
        let grid = sampled(&grid_latents(&config, &device)?)?;
        lock.write(SAMPLES, &crate::grid::png_grid(&grid, GRID.0, GRID.1))?;
        outputs.push(SAMPLES.to_string());
        if let (Some(evaluator), Some(e)) = (evaluator, &self.recipe.evaluation) {
            let images = sampled(&score_latents(&config, seed, e.samples, &device)?)?;
            let values = evaluator.scores(&images)?.into_iter().chain(costs);
            let scores: Vec<Score> = values
                .map(|(metric, value)| Score {
                    row: cell.row.to_string(),
                    scale: self.recipe.scale.to_string(),
                    seed,
                    metric: metric.to_string(),
                    value,
                    class: class.to_string(),
                    manifest: entry.key().to_string(),
                })
                .collect();
            lock.write(SCORES, write_scores(&scores).as_bytes())?;
            outputs.push(SCORES.to_string());
        }
        let manifest = Manifest {
            experiment: text,
            seed,
            images: images_seen,
            determinism: class.to_string(),
            parents,
            inputs: BTreeMap::from([
                ("features".to_string(), features_digest),
                ("images".to_string(), images_digest),
            ]),
            provenance: provenance(started.elapsed(), &device),
            ..Manifest::default()
        };
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let manifest = lock.publish(manifest, &names)?;
        Ok(Outcome { entry, manifest })
    }

    /// The finished result of one cell of one seed; nothing is run.
    pub fn stored(&mut self, cell: &Cell, seed: u64) -> Result<Option<Outcome>> {
        let Some(Identity { entry, .. }) = self.identify(cell, seed, false)? else { return Ok(None) };
        match entry.finished()? {
            Finished::Yes(manifest) => Ok(Some(Outcome { entry, manifest })),
            Finished::No => Ok(None),
            Finished::Damaged(reason) => {
                self.watch.note(&format!("{reason}: it does not count, the next run makes it again"));
                Ok(None)
            }
        }
    }

    /// Every seed of `cell` that has a directory in the store, in order; which
    /// of them are of this very experiment `stored` tells by their keys.
    pub fn seeds(&self, cell: &Cell) -> Result<Vec<u64>> {
        let label = format!("{}-{}-s", self.recipe.scale, cell.row);
        let listing =
            std::fs::read_dir(&self.settings.store).map_err(Error::io("read", &self.settings.store))?;
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
            scores.push(Score { metric: crate::golden::TIME.into(), value: seconds, ..first });
        }
        Ok(scores)
    }

    /// The name of a cell's result. With `make`, the weights that it starts
    /// from are trained where they are missing; without, it is `None` then.
    fn identify(&mut self, cell: &Cell, seed: u64, make: bool) -> Result<Option<Identity>> {
        let (weights, weights_digest) = match cell.start {
            Start::Random => (None, "none".to_string()),
            start => match self.pretrained(start, make)? {
                Some((arrays, digest)) => (Some(arrays), digest),
                None => return Ok(None),
            },
        };
        let features_digest = match self.recipe.evaluation {
            Some(_) => match self.features(make)? {
                Some((_, digest)) => digest.clone(),
                None => return Ok(None),
            },
            None => String::new(),
        };
        let images_digest = self.digest(Data::Target)?;
        let class = determinism(&self.settings.device);
        let text =
            self.recipe.cell_text(cell, seed, &images_digest, &weights_digest, &features_digest, class);
        let label = self.label(&format!("{}-s{seed}", cell.row));
        let entry = self.store.entry(&Key::of(&text), &label);
        Ok(Some(Identity { entry, text, weights, weights_digest, features_digest, images_digest }))
    }

    /// The weights that `start` names, with their SHA-256: shipped ones where
    /// they are, else stored ones, else, with `make`, trained now.
    pub fn pretrained(&mut self, start: Start, make: bool) -> Result<Option<(Arrays, String)>> {
        let name = format!("{}-{start}", self.recipe.scale);
        let original = self.recipe.pretrains_like(&Recipe::of(self.recipe.scale), start);
        if original
            && !self.settings.from_scratch
            && let Some(shipped) = shipped(&self.settings.root, &name)?
        {
            return Ok(Some(shipped));
        }
        if self.recipe.scale == Scale::Paper {
            return Err(Error::Missing {
                path: self.settings.root.join(SHIPPED).join(format!("{name}.safetensors")),
                what: "the paper scale starts from the published EDM checkpoint".into(),
                remedy: "this version cannot fetch or read it; --scale small trains a teacher of its own"
                    .into(),
            });
        }
        let data = match start {
            Start::MultiLevel(data) => data,
            Start::SingleLevel | Start::Random => Data::Target,
        };
        let digest = self.digest(data)?;
        let class = determinism(&self.settings.device);
        let text = self.recipe.pretraining_text(start, &digest, class);
        let label = format!("{}-pretrain-{start}", self.recipe.scale);
        let entry = self.store.entry(&Key::of(&text), &label);
        if !make {
            return if_finished(&entry);
        }
        if let Claim::Ours(lock) = self.claim(&entry)? {
            let images = self.load(data)?;
            let cell = format!("{} pre-training {start}", self.recipe.scale);
            let levels = self.recipe.pretraining_levels(start);
            let device = self.settings.device.clone();
            let mut teaching = Teaching::new(&device, &self.recipe, levels, &images, &cell)?;
            let p = &self.recipe.pretraining;
            let budget = Budget { images: p.images, batch: p.batch, ticks: self.recipe.ticks };
            self.publish_training(
                lock,
                budget,
                &mut teaching,
                text,
                BTreeMap::from([("images".into(), digest)]),
            )?;
        }
        Ok(Some(read_weights(&entry)?))
    }

    /// The feature network's weights and their SHA-256, as `pretrained`.
    pub fn features(&mut self, make: bool) -> Result<Option<&(Arrays, String)>> {
        if self.features.get().is_none() {
            match self.load_features(make)? {
                Some(loaded) => _ = self.features.set(loaded),
                None => return Ok(None),
            }
        }
        Ok(self.features.get())
    }

    fn load_features(&mut self, make: bool) -> Result<Option<(Arrays, String)>> {
        if !self.settings.from_scratch {
            if let Some(shipped) = shipped(&self.settings.root, CLASSIFIER)? {
                return Ok(Some(shipped));
            }
        }
        let settings = self.recipe.classifier.clone();
        let images = classifier_images(settings.size, "train");
        let digest = images.digest();
        let text = self.recipe.classifier_text(&digest, determinism(&self.settings.device));
        let entry = self.store.entry(&Key::of(&text), CLASSIFIER);
        if !make {
            return if_finished(&entry);
        }
        if let Claim::Ours(lock) = self.claim(&entry)? {
            let device = self.settings.device.clone();
            let mut training = Classifying::new(&device, &settings, &images)?;
            let budget = Budget { images: settings.images, batch: settings.batch, ticks: 10 };
            self.publish_training(
                lock,
                budget,
                &mut training,
                text,
                BTreeMap::from([("images".into(), digest)]),
            )?;
        }
        Ok(Some(read_weights(&entry)?))
    }

    /// Accuracy of the feature network on held-out glyphs.
    pub fn classifier_accuracy(&mut self) -> Result<f64> {
        let device = self.settings.device.clone();
        let classifier = self.classifier()?;
        let images = classifier_images(self.recipe.classifier.size, "heldout");
        let (_, logits) = classifier.extract(&images, &device)?;
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
        let hits = (0..images.len()).filter(|i| best(logits.row(*i)) == images.labels[*i] as usize).count();
        Ok(hits as f64 / images.len() as f64)
    }

    fn classifier(&mut self) -> Result<Classifier> {
        let device = self.settings.device.clone();
        let (weights, _) = self.features(true)?.expect("made where it was missing");
        Ok(Classifier::load(&device, weights)?)
    }

    fn publish_training(
        &mut self,
        lock: Lock,
        budget: Budget,
        training: &mut dyn crate::train::Training,
        text: String,
        inputs: BTreeMap<String, String>,
    ) -> Result<()> {
        let started = Instant::now();
        let trained = train(&lock, budget, training, &mut self.watch, self.stop)?;
        write_timing(&lock, &trained)?;
        lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
        let manifest = Manifest {
            experiment: text,
            images: trained.images,
            determinism: determinism(&self.settings.device).to_string(),
            inputs,
            provenance: provenance(started.elapsed(), &self.settings.device),
            ..Manifest::default()
        };
        let mut names: Vec<&str> = trained.outputs.iter().map(String::as_str).collect();
        names.push(WEIGHTS);
        lock.publish(manifest, &names)?;
        Ok(())
    }

    fn label(&self, name: &str) -> String {
        let changes: String = self.recipe.changes.iter().map(|c| format!("+{c}")).collect();
        format!("{}-{name}{changes}", self.recipe.scale)
    }

    fn claim(&mut self, entry: &Entry) -> Result<Claim> {
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

    fn digest(&mut self, data: Data) -> Result<String> {
        match self.recipe.scale.procedural() {
            // The drawing is code and its version is in every name of a stream:
            // the text says which images, without making them.
            true => Ok(sha256_hex(format!("{} {}", glyphs::VERSION, self.recipe.data_text(data)).as_bytes())),
            false if data == Data::Target => {
                self.prepare(data)?;
                Ok(self.target.get().expect("just prepared").digest())
            }
            false => Ok(self.load(data)?.digest()),
        }
    }

    fn prepare(&mut self, data: Data) -> Result<()> {
        if self.target.get().is_none() {
            let images = self.load(data)?;
            _ = self.target.set(images);
        }
        Ok(())
    }

    fn prepare_evaluator(&mut self) -> Result<()> {
        let Some(evaluation) = self.recipe.evaluation.clone() else { return Ok(()) };
        if self.evaluator.get().is_some() {
            return Ok(());
        }
        let device = self.settings.device.clone();
        let classifier = self.classifier()?;
        let per_class = evaluation.reference / crate::evaluate::TARGETS;
        let reference =
            glyphs::images(self.recipe.network.size, glyphs::TARGET_CLASSES, per_class, "reference");
        _ = self.evaluator.set(Evaluator::new(classifier, &device, evaluation, &reference)?);
        Ok(())
    }

    fn load(&self, data: Data) -> Result<Images> {
        let (size, per_class) = (self.recipe.network.size, self.recipe.images_per_class);
        match (self.recipe.scale.procedural(), data) {
            (true, Data::Target) => Ok(glyphs::images(size, glyphs::TARGET_CLASSES, per_class, "train")),
            (true, Data::Sources(n)) => {
                let first = glyphs::SOURCE_CLASSES.start;
                // As many images as the target has, whatever the number of classes.
                let each = per_class * crate::evaluate::TARGETS / n;
                Ok(glyphs::images(size, first..first + n as u32 as usize, each, "train"))
            }
            (false, Data::Target) => cifar::cifar10_train(self.data_dir()?),
            (false, Data::Sources(_)) => Err(Error::Run(
                "pre-training on CIFAR-100 classes is not here yet: Table 2 runs at --scale mini".into(),
            )),
        }
    }

    fn data_dir(&self) -> Result<&Path> {
        self.settings.data.as_deref().ok_or_else(|| {
            Error::Usage(format!(
                "--scale {} reads CIFAR files: say where they are with --data DIR",
                self.recipe.scale
            ))
        })
    }
}

struct Identity {
    entry: Entry,
    text: String,
    weights: Option<Arrays>,
    weights_digest: String,
    features_digest: String,
    images_digest: String,
}

enum Claim {
    Finished(Manifest),
    Ours(Lock),
}

/// Training images of the feature network: all classes, digits no more often
/// than characters.
fn classifier_images(size: usize, split: &str) -> Images {
    const EACH: usize = 200;
    glyphs::images(size, 0..crate::features::CLASSES, EACH, split)
}

fn if_finished(entry: &Entry) -> Result<Option<(Arrays, String)>> {
    match entry.finished()? {
        Finished::Yes(_) => Ok(Some(read_weights(entry)?)),
        _ => Ok(None),
    }
}

/// Seconds of one iteration, from the file of times.
fn seconds_per_step(entry: &Entry) -> Option<f64> {
    let text = std::fs::read_to_string(entry.path(TIMING)).ok()?;
    let (steps, seconds) = text.lines().nth(1)?.split_once(',')?;
    let (steps, seconds): (f64, f64) = (steps.parse().ok()?, seconds.parse().ok()?);
    (steps > 0.0).then_some(seconds / steps)
}

fn read_weights(entry: &Entry) -> Result<(Arrays, String)> {
    let bytes = entry.read(WEIGHTS)?;
    let (arrays, _) = read_safetensors(&entry.path(WEIGHTS), &bytes)?;
    Ok((arrays, sha256_hex(&bytes)))
}

/// The shipped weights called `name`, checked against the list of their
/// digests; `None` where the list does not have them.
pub fn shipped(root: &Path, name: &str) -> Result<Option<(Arrays, String)>> {
    let list = root.join(SHIPPED).join("SHA256SUMS");
    let file = format!("{name}.safetensors");
    let path = root.join(SHIPPED).join(&file);
    let remedy = format!(
        "get it again with 'git checkout {SHIPPED}', or train it with 'replicate run --from-scratch'"
    );
    let text = match std::fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", &list)(error)),
    };
    let Some(expected) = text.lines().find_map(|line| line.strip_suffix(&format!("  {file}"))) else {
        if !path.exists() {
            return Ok(None);
        }
        let (expected, found) = (format!("a line with the SHA-256 of {file}"), "none".into());
        return Err(Error::Malformed { path: list, expected, found, remedy });
    };
    let bytes = std::fs::read(&path).map_err(|_| Error::Missing {
        path: path.clone(),
        what: "weights that ship with the repository".into(),
        remedy: remedy.clone(),
    })?;
    let found = sha256_hex(&bytes);
    if found != expected {
        let (expected, found) = (format!("SHA-256 {expected}"), format!("SHA-256 {found}"));
        return Err(Error::Malformed { path, expected, found, remedy });
    }
    Ok(Some((read_safetensors(&path, &bytes)?.0, found)))
}

/// Times go into a file of their own: they differ between identical runs.
fn write_timing(lock: &Lock, trained: &Trained) -> Result<()> {
    let text = format!("steps,seconds_in_steps\n{},{:.3}\n", trained.steps, trained.step_seconds);
    lock.write(TIMING, text.as_bytes())
}

fn provenance(wall: Duration, device: &Device) -> Provenance {
    let threads = rayon::current_num_threads();
    Provenance {
        date: humantime(std::time::SystemTime::now()),
        wall_seconds: wall.as_secs_f64(),
        commit: env!("GIT_COMMIT").into(),
        dirty: env!("GIT_DIRTY") == "true",
        package: env!("CARGO_PKG_VERSION").into(),
        candle: env!("CANDLE_VERSION").into(),
        machine: format!(
            "{} {}, {threads} threads, {:?}",
            std::env::consts::OS,
            std::env::consts::ARCH,
            device.location()
        ),
    }
}

/// RFC 3339 in UTC, to the second (days to civil date: Hinnant's algorithm).
pub fn humantime(time: std::time::SystemTime) -> String {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, s) = ((seconds / 86_400) as i64, seconds % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}
