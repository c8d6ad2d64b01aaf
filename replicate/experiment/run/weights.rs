//! Pre-trained networks and the feature network: shipped, from the store, or trained.

use super::artifact::{Artifact, Outputs};
use super::inputs::Input;
use super::outcome::write_timing;
use super::{Runner, SHIPPED, SHIPPED_DIGESTS, WEIGHTS, keys};
use crate::data::{Images, glyphs};
use crate::error::{Error, Result};
use crate::experiment::{Data, FULL_INITIALIZATION, Initialization, Recipe, Row, Scale};
use crate::measure::classifier::{Classifier, ClassifierMethod, ClassifierTraining, Layout};
use crate::measure::evaluate::FeatureNetwork;
use crate::measure::inception::Inception;
use crate::measure::sample::generate_grid;
use crate::method::one_step::one_step;
use crate::method::score_matching::{MICROBATCH, ScoreMatching};
use crate::network::params::{Arrays, outline};
use crate::network::unet::Denoiser;
use crate::settings::Settings;
use crate::store::formats::torch;
use crate::store::{Entry, Lock, read_safetensors, sha256_hex, write_safetensors};
use crate::train::augment::Augmentation;
use crate::train::batch::Batches;
use crate::train::{Budget, Method, Snapshot, train};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the name of our own feature network among the shipped weights and in the store.
pub fn classifier_name(scale: Scale) -> String {
    if scale.procedural() { "classifier".into() } else { format!("{scale}-classifier") }
}

impl Runner<'_> {
    /// Returns the weights of `start` with their SHA-256: shipped, else stored, else trained now.
    pub fn pretrained(&mut self, start: Initialization) -> Result<(Arrays, String)> {
        if let Some(shipped) = self.shipped(start)? {
            return Ok(shipped);
        }
        if self.published(start) {
            return self.network(Input::Checkpoint);
        }
        let data = start.data();
        let images = self.images_digest(data)?;
        let artifact = self.pretraining_artifact(start, images);
        let made = self.make(artifact, |runner, lock| runner.pretrain(lock, start))?;
        read_weights(&made.entry)
    }

    /// Returns the SHA-256 of [`pretrained`](Self::pretrained) without reading a checkpoint.
    pub(super) fn pretrained_digest(&mut self, start: Initialization) -> Result<String> {
        match self.find_pretrained_digest(start)? {
            Some(digest) => Ok(digest),
            None => Ok(self.pretrained(start)?.1),
        }
    }

    /// As [`pretrained_digest`](Self::pretrained_digest), but trains nothing: `None` if the weights
    /// are missing.
    pub(super) fn find_pretrained_digest(&mut self, start: Initialization) -> Result<Option<String>> {
        if let Some((_, digest)) = self.shipped(start)? {
            return Ok(Some(digest));
        }
        if self.published(start) {
            return Ok(self.input(Input::Checkpoint)?.map(|(_, sha256)| sha256));
        }
        let Some(images) = self.find_images_digest(start.data())? else { return Ok(None) };
        let artifact = self.pretraining_artifact(start, images);
        Ok(self.find(&artifact)?.and_then(|made| made.digest(WEIGHTS).map(str::to_string)))
    }

    /// Returns the generator of `before`, from which that of `row` starts, with its SHA-256. It is
    /// the published one if the scale uses published networks, else that of the same seed, whose
    /// row is run if it is missing.
    pub(super) fn generator(&mut self, row: &Row, before: &Row, seed: u64) -> Result<(Arrays, String)> {
        if self.published(row.start) {
            return self.network(Input::Generator(before.id));
        }
        let outcome = self.row(before, seed)?;
        let Some(weights) = outcome.weights else {
            let what = format!("the weights of {} are not in the store, only its scores", before.id);
            return Err(Error::Run(format!("{what}\n  run it again without --keep")));
        };
        read_weights(&weights.entry)
    }

    /// True if the weights of `start` exist.
    pub fn has_pretrained(&mut self, start: Initialization) -> Result<bool> {
        Ok(self.find_pretrained_digest(start)?.is_some())
    }

    /// Makes the inputs that several rows share: the pre-trainings of `rows`, the feature network,
    /// and the features of the real images if the scale stores them.
    pub fn share(&mut self, rows: &[Row]) -> Result<()> {
        for start in rows.iter().flat_map(|row| self.recipe.initial(row)).collect::<Vec<_>>() {
            self.pretrained_digest(start)?;
        }
        match self.recipe.scale.procedural() {
            true => self.features().map(drop),
            false => self.prepare_evaluator(),
        }
    }

    /// True if the weights exist that `row` starts from and is compared with as a map.
    pub fn has_starts(&mut self, row: &Row) -> Result<bool> {
        for start in self.recipe.initial(row).into_iter().chain([FULL_INITIALIZATION.start]) {
            if !self.has_pretrained(start)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the weights that ship with the repository, if they belong to this recipe.
    fn shipped(&self, start: Initialization) -> Result<Option<(Arrays, String)>> {
        let original = self.recipe.pretrains_like(&Recipe::of(self.recipe.scale), start);
        match original && !self.settings.from_scratch {
            true => shipped(&self.settings.root, &format!("{}-{start}", self.recipe.scale)),
            false => Ok(None),
        }
    }

    fn pretraining_artifact(&self, start: Initialization, images: String) -> Artifact {
        Artifact {
            text: keys::pretraining(&self.recipe, start, &images, self.class),
            label: format!("{}-pretrain-{start}", self.recipe.scale),
            changes: self.recipe.sorted_changes(),
            settings: [self.recipe.network.list(), self.recipe.pretraining.list()].concat(),
            shared: true,
            inputs: BTreeMap::from([("images".into(), images)]),
            ..Artifact::default()
        }
    }

    fn pretrain(&mut self, lock: &Lock, start: Initialization) -> Result<Outputs> {
        let data = start.data();
        let images = self.take(data)?;
        let cell = format!("{} pre-training {start}", self.recipe.scale);
        let (recipe, compute) = (self.recipe.clone(), self.settings.compute.clone());
        let (p, levels) = (&recipe.pretraining, recipe.pretraining_levels(start));
        let mut method = ScoreMatching::new(&compute, &recipe.network, p, levels, &cell)?;
        let batches = Batches {
            images: &images,
            device: compute.device.clone(),
            size: p.batch,
            microbatch: self.settings.microbatch.unwrap_or(MICROBATCH).min(MICROBATCH),
            augmentation: recipe.pretraining.augmentation(),
            cell,
        };
        // One-step samples, as of a generator with these initial weights.
        let mut snapshot = |weights: &Arrays| {
            let denoiser = Denoiser::load(&recipe.network, weights, &compute)?;
            let sample = |z: &Tensor| one_step(&denoiser, z, recipe.grid_sigma());
            Ok(Snapshot {
                scores: None,
                grid: Some(generate_grid(&recipe.network, &compute.device, 1, sample)?),
            })
        };
        let budget = Budget { images: p.images, ticks: recipe.budget.ticks };
        let outputs = self.train_weights(lock, budget, &batches, &mut method, &mut snapshot)?;
        let digest = if recipe.scale.procedural() { String::new() } else { images.digest() };
        self.images.insert(data, (images, digest));
        Ok(outputs)
    }

    /// True if `start` is a published checkpoint.
    pub fn published(&self, start: Initialization) -> bool {
        !self.settings.from_scratch && self.recipe.has_checkpoint(start)
    }

    /// Reads the network of a file; it must have exactly the tensors of EDM's network.
    fn network(&mut self, file: Input) -> Result<(Arrays, String)> {
        let (path, sha256) = self.require(file)?;
        let arrays = torch::read(&path)?.edm_network()?;
        let network = &self.recipe.network;
        let (_, shapes) = outline(|vb| Denoiser::new(network, vb))?;
        torch::require(&path, &arrays, &shapes)?;
        Ok((arrays, sha256))
    }

    /// Returns the SHA-256 of the feature network's weights; makes or requires them.
    pub(super) fn features_digest(&mut self) -> Result<String> {
        match self.recipe.scale.has_own_features() {
            true => Ok(self.features()?.1.clone()),
            false => Ok(self.require(Input::Inception)?.1),
        }
    }

    /// As [`features_digest`](Self::features_digest), but `None` if they are missing.
    pub(super) fn find_features_digest(&mut self) -> Result<Option<String>> {
        if !self.recipe.scale.has_own_features() {
            return Ok(self.input(Input::Inception)?.map(|(_, sha256)| sha256));
        }
        if let Some((_, digest)) = self.features.get() {
            return Ok(Some(digest.clone()));
        }
        if let Some((_, digest)) = self.shipped_classifier()? {
            return Ok(Some(digest));
        }
        let Some(artifact) = self.classifier_artifact(false)? else { return Ok(None) };
        Ok(self.find(&artifact)?.and_then(|made| made.digest(WEIGHTS).map(str::to_string)))
    }

    pub(super) fn feature_network(&mut self) -> Result<FeatureNetwork> {
        let device = self.settings.compute.device.clone();
        if self.recipe.scale.has_own_features() {
            return Ok(FeatureNetwork::Classifier(self.classifier()?, device));
        }
        let (path, _) = self.require(Input::Inception)?;
        Ok(FeatureNetwork::Inception(Inception::load(&device, torch::read(&path)?)?))
    }

    /// Returns the feature network's weights and their SHA-256: shipped, stored, or trained now.
    pub fn features(&mut self) -> Result<&(Arrays, String)> {
        if self.features.get().is_none() {
            let loaded = match self.shipped_classifier()? {
                Some(shipped) => shipped,
                None => {
                    let artifact = self.classifier_artifact(true)?.expect("its images were read");
                    let made = self.make(artifact, |runner, lock| runner.train_classifier(lock))?;
                    read_weights(&made.entry)?
                }
            };
            _ = self.features.set(loaded);
        }
        Ok(self.features.get().expect("just set"))
    }

    fn shipped_classifier(&self) -> Result<Option<(Arrays, String)>> {
        let original = self.recipe.classifier == ClassifierTraining::at(self.recipe.scale);
        match original && !self.settings.from_scratch {
            true => shipped(&self.settings.root, &classifier_name(self.recipe.scale)),
            false => Ok(None),
        }
    }

    /// Returns the description of our feature network; `None` if its images are missing files and
    /// not `required`.
    fn classifier_artifact(&mut self, required: bool) -> Result<Option<Artifact>> {
        let images = match (self.recipe.scale.procedural(), required) {
            (true, _) => Some(classifier_images(self.recipe.classifier.size).digest()),
            (false, true) => Some(self.images_digest(Data::Target)?),
            (false, false) => self.find_images_digest(Data::Target)?,
        };
        Ok(images.map(|images| Artifact {
            text: keys::classifier(&self.recipe, &images, self.class),
            label: classifier_name(self.recipe.scale),
            changes: self.recipe.sorted_changes(),
            settings: self.recipe.classifier.list(),
            shared: true,
            inputs: BTreeMap::from([("images".into(), images)]),
            ..Artifact::default()
        }))
    }

    fn train_classifier(&mut self, lock: &Lock) -> Result<Outputs> {
        let (settings, compute) = (self.recipe.classifier.clone(), self.settings.compute.clone());
        let scale = self.recipe.scale;
        let images = match scale.procedural() {
            true => classifier_images(settings.size),
            false => self.take(Data::Target)?,
        };
        let mut method = ClassifierMethod::new(&compute, Layout::of(scale), &settings)?;
        let batches = Batches {
            images: &images,
            device: compute.device,
            size: settings.batch,
            microbatch: usize::MAX,
            augmentation: Augmentation { p: if settings.shift > 0 { 1.0 } else { 0.0 } },
            cell: classifier_name(scale),
        };
        let budget = Budget { images: settings.images, ticks: 10 };
        let outputs =
            self.train_weights(lock, budget, &batches, &mut method, &mut |_| Ok(Snapshot::default()))?;
        if !scale.procedural() {
            let digest = images.digest();
            self.images.insert(Data::Target, (images, digest));
        }
        Ok(outputs)
    }

    /// Returns the kinds of held-out images, each with the fraction that the feature network
    /// classifies correctly among all its classes.
    pub fn classifier_accuracy(&mut self) -> Result<Vec<(&'static str, f64)>> {
        const EACH: usize = 100;
        let device = self.settings.compute.device.clone();
        let size = self.recipe.classifier.size;
        let classifier = self.classifier()?;
        let kinds = match self.recipe.scale.procedural() {
            true => vec![
                ("digits", glyphs::images(size, glyphs::TARGET_CLASSES, EACH, "heldout")),
                ("characters", glyphs::images(size, glyphs::SOURCE_CLASSES, EACH, "heldout")),
            ],
            false => vec![("images of CIFAR-10", self.load(Data::HeldOut)?)],
        };
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
        let accuracy = |(kind, images): (&'static str, Images)| {
            let (_, logits) = classifier.extract(&images, &device)?;
            let right = |i: &usize| best(logits.row(*i)) == images.labels[*i] as usize;
            let right = (0..images.len()).filter(right).count();
            Ok((kind, right as f64 / images.len() as f64))
        };
        kinds.into_iter().map(accuracy).collect()
    }

    fn classifier(&mut self) -> Result<Classifier> {
        let (compute, layout) = (self.settings.compute.clone(), Layout::of(self.recipe.scale));
        let (weights, _) = self.features()?;
        Ok(Classifier::load(layout, &compute, weights)?)
    }

    fn train_weights(
        &mut self,
        lock: &Lock,
        budget: Budget,
        batches: &Batches,
        method: &mut dyn Method,
        snapshot: &mut dyn FnMut(&Arrays) -> Result<Snapshot>,
    ) -> Result<Outputs> {
        let trained = train(lock, budget, batches, method, snapshot, &mut self.watch, self.stop)?;
        write_timing(lock, &trained)?;
        lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
        let names = trained.outputs.into_iter().chain([WEIGHTS.to_string()]).collect();
        Ok(Outputs { names, images: trained.images })
    }
}

/// Draws the training images of the feature network. No generator is trained on them or compared
/// with them. Half of them are digits, because the digits have to be distinguished and vary more
/// within a class.
fn classifier_images(size: usize) -> Images {
    const DIGITS_EACH: usize = 2000;
    let mut images = glyphs::images(size, glyphs::TARGET_CLASSES, DIGITS_EACH, "classifier");
    let characters = DIGITS_EACH * glyphs::TARGET_CLASSES.len() / glyphs::SOURCE_CLASSES.len();
    let others = glyphs::images(size, glyphs::SOURCE_CLASSES, characters, "classifier");
    images.pixels.extend(others.pixels);
    images.labels.extend(others.labels);
    images
}

pub(super) fn read_weights(entry: &Entry) -> Result<(Arrays, String)> {
    let bytes = entry.read(WEIGHTS)?;
    let (arrays, _) = read_safetensors(&entry.path(WEIGHTS), &bytes)?;
    Ok((arrays, sha256_hex(&bytes)))
}

/// Returns the shipped weights `name`, checked against the list of digests; `None` if the list does
/// not contain them.
pub fn shipped(root: &Path, name: &str) -> Result<Option<(Arrays, String)>> {
    let file = format!("{name}.safetensors");
    let path = root.join(SHIPPED).join(&file);
    let remedy = format!(
        "get it again with 'git checkout {SHIPPED}', or train it with 'replicate weights {name} --write'"
    );
    let Some(expected) = shipped_digests(root)?.remove(name) else {
        if !path.exists() {
            return Ok(None);
        }
        let expected = format!("a line with the SHA-256 of {file}");
        return Err(Error::malformed(root.join(SHIPPED_DIGESTS), expected, "none", remedy));
    };
    let missing = |_| Error::missing(&path, "weights that ship with the repository", &remedy);
    let bytes = std::fs::read(&path).map_err(missing)?;
    let found = sha256_hex(&bytes);
    if found != expected {
        let (expected, found) = (format!("SHA-256 {expected}"), format!("SHA-256 {found}"));
        return Err(Error::malformed(path, expected, found, remedy));
    }
    Ok(Some((read_safetensors(&path, &bytes)?.0, found)))
}

/// Reads the names of the shipped weights with their SHA-256; none if there is no list.
pub fn shipped_digests(root: &Path) -> Result<BTreeMap<String, String>> {
    let list = root.join(SHIPPED_DIGESTS);
    let text = match std::fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", &list)(error)),
    };
    let sum = |line: &str| {
        let (sum, file) = line.split_once("  ")?;
        Some((file.strip_suffix(".safetensors")?.to_string(), sum.to_string()))
    };
    Ok(text.lines().filter_map(sum).collect())
}
