//! Pre-trained networks and the feature network: shipped, stored, or trained now.

use super::inputs::Input;
use super::{Claim, Runner, SHIPPED, WEIGHTS, provenance, write_timing};
use crate::data::{Images, glyphs};
use crate::error::{Error, Result};
use crate::experiment::{Data, Initialization, Recipe};
use crate::measure::classifier::{Classifier, ClassifierMethod};
use crate::measure::evaluate::FeatureNetwork;
use crate::measure::inception::Inception;
use crate::measure::sample::generate_grid;
use crate::method::one_step::one_step;
use crate::method::score_matching::{MICROBATCH, ScoreMatching};
use crate::network::params::{Arrays, outline};
use crate::network::unet::Denoiser;
use crate::store::formats::torch;
use crate::store::{Entry, Finished, Key, Lock, Manifest, read_safetensors, sha256_hex, write_safetensors};
use crate::train::augment::Augmentation;
use crate::train::batch::Batches;
use crate::train::{Budget, Method, Snapshot, train};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// The feature network's name among the shipped weights and in the store.
pub const CLASSIFIER: &str = "classifier";

impl Runner<'_> {
    /// The weights that `start` names, with their SHA-256: shipped ones where
    /// they are, else stored ones, else, with `make`, trained now.
    pub fn pretrained(&mut self, start: Initialization, make: bool) -> Result<Option<(Arrays, String)>> {
        let name = format!("{}-{start}", self.recipe.scale);
        let original = self.recipe.pretrains_like(&Recipe::of(self.recipe.scale), start);
        if original
            && !self.settings.from_scratch
            && let Some(shipped) = shipped(&self.settings.root, &name)?
        {
            return Ok(Some(shipped));
        }
        if self.published(start) {
            return match self.input(Input::Checkpoint)? {
                None if !make => Ok(None),
                _ => Ok(Some(self.checkpoint()?)),
            };
        }
        let data = match start {
            Initialization::MultiLevel(data) => data,
            Initialization::SingleLevel | Initialization::Random => Data::Target,
        };
        let Some(digest) = self.digest(data, make)? else { return Ok(None) };
        let class = self.class;
        let text = self.recipe.pretraining_text(start, &digest, class);
        let label = format!("{}-pretrain-{start}", self.recipe.scale);
        let entry = self.store.entry(&Key::of(&text), &label);
        if !make {
            return if_finished(&entry);
        }
        if let Claim::Ours(lock) = self.claim(&entry)? {
            let images = self.take(data)?;
            let cell = format!("{} pre-training {start}", self.recipe.scale);
            let (recipe, device) = (self.recipe.clone(), self.settings.device.clone());
            let (p, levels) = (&recipe.pretraining, recipe.pretraining_levels(start));
            let mut method = ScoreMatching::new(&device, &recipe.network, p, levels, &cell)?;
            let batches = Batches {
                images: &images,
                device: device.clone(),
                size: p.batch,
                microbatch: self.settings.microbatch.unwrap_or(MICROBATCH).min(MICROBATCH),
                augmentation: recipe.augmentation,
                cell,
            };
            // One-step samples: what a generator will start from.
            let mut snapshot = |weights: &Arrays| {
                let denoiser = Denoiser::load(&recipe.network, weights, &device)?;
                let sample = |z: &Tensor| one_step(&denoiser, z, recipe.one_step.sigma_init);
                Ok(Snapshot { scores: None, grid: Some(generate_grid(&recipe.network, &device, sample)?) })
            };
            let budget = Budget { images: p.images, ticks: recipe.ticks };
            let inputs = BTreeMap::from([("images".into(), digest.clone())]);
            self.publish_training(lock, budget, &batches, &mut method, &mut snapshot, text, inputs)?;
            self.images.insert(data, (images, digest));
        }
        Ok(Some(read_weights(&entry)?))
    }

    /// The SHA-256 of the weights that `start` names, as `pretrained`, which reads
    /// no checkpoint for it.
    pub(super) fn pretrained_digest(&mut self, start: Initialization, make: bool) -> Result<Option<String>> {
        if self.published(start) && (!make || self.input(Input::Checkpoint)?.is_some()) {
            return Ok(self.input(Input::Checkpoint)?.map(|(_, sha256)| sha256));
        }
        Ok(self.pretrained(start, make)?.map(|(_, digest)| digest))
    }

    /// Whether what `start` names is there: nothing is trained for it.
    pub fn has_pretrained(&mut self, start: Initialization) -> Result<bool> {
        Ok(self.pretrained_digest(start, false)?.is_some())
    }

    /// Whether `start` is a checkpoint that somebody published.
    pub fn published(&self, start: Initialization) -> bool {
        !self.settings.from_scratch && self.recipe.has_checkpoint(start)
    }

    /// EDM's network, every tensor of it and no other.
    fn checkpoint(&mut self) -> Result<(Arrays, String)> {
        let (path, sha256) = self.require(Input::Checkpoint)?;
        let arrays = torch::read(&path)?.edm_network()?;
        let network = &self.recipe.network;
        let (_, shapes) = outline(|vb| Denoiser::new(network, vb))?;
        torch::require(&path, &arrays, &shapes)?;
        Ok((arrays, sha256))
    }

    /// The SHA-256 of the feature network's weights; without `make`, `None` where
    /// they are missing.
    pub(super) fn features_digest(&mut self, make: bool) -> Result<Option<String>> {
        if self.recipe.scale.procedural() {
            return Ok(self.features(make)?.map(|(_, digest)| digest.clone()));
        }
        match make {
            true => Ok(Some(self.require(Input::Inception)?.1)),
            false => Ok(self.input(Input::Inception)?.map(|(_, sha256)| sha256)),
        }
    }

    pub(super) fn feature_network(&mut self) -> Result<FeatureNetwork> {
        let device = self.settings.device.clone();
        if self.recipe.scale.procedural() {
            return Ok(FeatureNetwork::Glyphs(self.classifier()?, device));
        }
        let (path, _) = self.require(Input::Inception)?;
        Ok(FeatureNetwork::Inception(Inception::load(&device, torch::read(&path)?)?))
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
        let images = classifier_images(settings.size);
        let digest = images.digest();
        let text = self.recipe.classifier_text(&digest, self.class);
        let entry = self.store.entry(&Key::of(&text), CLASSIFIER);
        if !make {
            return if_finished(&entry);
        }
        if let Claim::Ours(lock) = self.claim(&entry)? {
            let device = self.settings.device.clone();
            let mut method = ClassifierMethod::new(&device, &settings)?;
            let batches = Batches {
                images: &images,
                device,
                size: settings.batch,
                microbatch: usize::MAX,
                augmentation: Augmentation { p: 0.0 },
                cell: CLASSIFIER.into(),
            };
            let budget = Budget { images: settings.images, ticks: 10 };
            let inputs = BTreeMap::from([("images".into(), digest)]);
            let mut nothing = |_: &Arrays| Ok(Snapshot::default());
            self.publish_training(lock, budget, &batches, &mut method, &mut nothing, text, inputs)?;
        }
        Ok(Some(read_weights(&entry)?))
    }

    /// Shares of held-out digits and of held-out characters that the feature
    /// network classifies right, among all its classes.
    pub fn classifier_accuracy(&mut self) -> Result<(f64, f64)> {
        const EACH: usize = 100;
        let device = self.settings.device.clone();
        let size = self.recipe.classifier.size;
        let classifier = self.classifier()?;
        let accuracy = |classes| -> Result<f64> {
            let images = glyphs::images(size, classes, EACH, "heldout");
            let (_, logits) = classifier.extract(&images, &device)?;
            let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
            let right = |i: &usize| best(logits.row(*i)) == images.labels[*i] as usize;
            Ok((0..images.len()).filter(right).count() as f64 / images.len() as f64)
        };
        Ok((accuracy(glyphs::TARGET_CLASSES)?, accuracy(glyphs::SOURCE_CLASSES)?))
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
        batches: &Batches,
        method: &mut dyn Method,
        snapshot: &mut dyn FnMut(&Arrays) -> Result<Snapshot>,
        text: String,
        inputs: BTreeMap<String, String>,
    ) -> Result<()> {
        let started = Instant::now();
        let trained = train(&lock, budget, batches, method, snapshot, &mut self.watch, self.stop)?;
        write_timing(&lock, &trained)?;
        lock.write(WEIGHTS, &write_safetensors(&trained.weights, &BTreeMap::new()))?;
        let manifest = Manifest {
            experiment: text,
            images: trained.images,
            determinism: self.class.to_string(),
            inputs,
            provenance: provenance(started.elapsed(), &self.settings.device),
            ..Manifest::default()
        };
        let mut names: Vec<&str> = trained.outputs.iter().map(String::as_str).collect();
        names.push(WEIGHTS);
        lock.publish(manifest, &names)?;
        Ok(())
    }
}

/// Training images of the feature network, none of which a generator is trained
/// on or compared with. As many digits as characters: what is to be told apart
/// is the digits, which vary more within a class.
fn classifier_images(size: usize) -> Images {
    const DIGITS_EACH: usize = 2000;
    let mut images = glyphs::images(size, glyphs::TARGET_CLASSES, DIGITS_EACH, "classifier");
    let characters = DIGITS_EACH * glyphs::TARGET_CLASSES.len() / glyphs::SOURCE_CLASSES.len();
    let others = glyphs::images(size, glyphs::SOURCE_CLASSES, characters, "classifier");
    images.pixels.extend(others.pixels);
    images.labels.extend(others.labels);
    images
}

fn if_finished(entry: &Entry) -> Result<Option<(Arrays, String)>> {
    match entry.finished()? {
        Finished::Yes(_) => Ok(Some(read_weights(entry)?)),
        _ => Ok(None),
    }
}

pub(super) fn read_weights(entry: &Entry) -> Result<(Arrays, String)> {
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
        "get it again with 'git checkout {SHIPPED}', or train it with 'replicate weights {name} --write'"
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
