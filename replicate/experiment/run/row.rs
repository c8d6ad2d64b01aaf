//! Runs one row of one seed: its inputs, training, samples and scores.

use super::artifact::{Artifact, Made, Outputs};
use super::inputs::Input;
use super::outcome::{Outcome, read_trial, trial_text, values_text, write_timing};
use super::weights::read_weights;
use super::{Runner, SAMPLES, SCORES, WEIGHTS, keys, label};
use crate::data::grid::{GRID, png_grid};
use crate::error::{Error, Result};
use crate::experiment::{Data, Initialization, Row};
use crate::measure::evaluate::over_trials;
use crate::measure::sample::{ScoreLatents, generate, generate_grid};
use crate::method::{Sampler, Setup};
use crate::network::params::Arrays;
use crate::store::{Finished, Key, Lock, Manifest, write_safetensors};
use crate::train::batch::Batches;
use crate::train::{Budget, Snapshot, train};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Digests of a row's inputs.
#[derive(Default)]
struct Parents {
    /// `None` if all weights are random.
    start: Option<String>,
    /// Networks that start differently from the row; "none" for a random one.
    others: Vec<(&'static str, String)>,
    images: String,
    /// The real images that scores compare with; `None` if they are drawn.
    reference: Option<String>,
    features: String,
}

impl Runner<'_> {
    /// Runs one row of one seed, or returns the stored result.
    pub fn row(&mut self, row: &Row, seed: u64) -> Result<Outcome> {
        if self.settings.keep
            && let Some(outcome) = self.stored(row, seed)?
        {
            return Ok(outcome);
        }
        let parents = self.make_parents(row, seed)?;
        let weights = match row.method.training {
            None => None,
            Some(_) => {
                let artifact = self.weights_artifact(row, seed, &parents);
                self.explain_remake(&artifact)?;
                let code = keys::code_of(&artifact.text);
                Some(self.make(artifact, |runner, lock| runner.train(lock, row, seed, &code))?)
            }
        };
        let artifact = self.scores_artifact(row, seed, &parents, weights.as_ref());
        self.explain_remake(&artifact)?;
        let scores = self.make(artifact, |runner, lock| runner.score(lock, row, seed, weights.as_ref()))?;
        Ok(Outcome { row: *row, seed, scores, weights, other_code: None })
    }

    /// Returns the stored result of one row of one seed: the one made by this code, or else the
    /// newest one of the same experiment made by other code. Runs nothing.
    pub fn stored(&mut self, row: &Row, seed: u64) -> Result<Option<Outcome>> {
        if let Some(parents) = self.find_parents(row, seed)? {
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
        let found = self.newest(&wanted.label, |made| {
            keys::same_without(keys::names_code_or_artefact, &made.experiment, &wanted.text)
                && made.changes == self.recipe.sorted_changes()
                && (made.seed, made.determinism.as_str()) == (seed, self.class)
        })?;
        let Some(scores) = found else { return Ok(None) };
        let (mut weights, wanted) = (None, scores.manifest.inputs.get("weights").cloned());
        if row.method.training.is_some() {
            let label = self.weights_artifact(row, seed, &parents).label;
            for made in self.made(&label)? {
                if made.digest(WEIGHTS) == wanted.as_deref()
                    && matches!(made.entry.finished()?, Finished::Yes(_))
                {
                    weights = Some(made);
                    break;
                }
            }
        }
        let other_code = Some(keys::code_of(&scores.manifest.experiment));
        Ok(Some(Outcome { row: *row, seed, scores, weights, other_code }))
    }

    /// Returns the newest finished entry with this label whose manifest is `wanted`.
    pub(super) fn newest(&self, label: &str, wanted: impl Fn(&Manifest) -> bool) -> Result<Option<Made>> {
        let mut found: Option<Made> = None;
        for made in self.made(label)? {
            let newer = |before: &Made| made.manifest.provenance.date > before.manifest.provenance.date;
            if wanted(&made.manifest)
                && found.as_ref().is_none_or(newer)
                && matches!(made.entry.finished()?, Finished::Yes(_))
            {
                found = Some(made);
            }
        }
        Ok(found)
    }

    /// Returns the finished entries with this label, without those that were found damaged.
    fn made(&self, label: &str) -> Result<Vec<Made>> {
        let all = self.store.finished_entries()?.into_iter();
        let named = all.filter(|(entry, _)| {
            entry.label() == crate::store::slug(label) && !self.damaged.contains(entry.dir())
        });
        Ok(named.map(|(entry, manifest)| Made { entry, manifest }).collect())
    }

    /// Explains why a stored result is made again.
    fn explain_remake(&mut self, artifact: &Artifact) -> Result<()> {
        if self.find(artifact)?.is_some() {
            return Ok(());
        }
        let label = &artifact.label;
        for made in self.made(label)? {
            let old = &made.manifest.experiment;
            if keys::same_without(keys::names_code_or_artefact, old, &artifact.text) {
                let changed = keys::changed_code(old, &artifact.text).join(", ");
                self.watch.note(&format!(
                    "{label}: running again, as this code changed: {changed} (--keep accepts the old result)"
                ));
                break;
            }
        }
        Ok(())
    }

    /// Returns the digests of a row's inputs if all of them exist.
    fn find_parents(&mut self, row: &Row, seed: u64) -> Result<Option<Parents>> {
        let mut digests = Vec::new();
        for start in self.recipe.initial(row) {
            let Some(digest) = self.find_pretrained_digest(start)? else { return Ok(None) };
            digests.push((start, digest));
        }
        let (start, mut others) = self.starts(row, &digests);
        if let Some(before) = self.recipe.first_stage(row) {
            let Some(digest) = self.find_generator_digest(row, &before, seed)? else { return Ok(None) };
            others.push(("generator", digest));
        }
        let Some(features) = self.find_features_digest()? else { return Ok(None) };
        let Some(images) = self.find_images_digest(Data::Target)? else { return Ok(None) };
        let reference = match self.recipe.scale.procedural() {
            true => None,
            false => match self.find_images_digest(self.recipe.reference())? {
                Some(digest) => Some(digest),
                None => return Ok(None),
            },
        };
        Ok(Some(Parents { start, others, images, reference, features }))
    }

    /// As [`Runner::find_parents`], but makes missing inputs.
    fn make_parents(&mut self, row: &Row, seed: u64) -> Result<Parents> {
        let mut digests = Vec::new();
        for start in self.recipe.initial(row) {
            digests.push((start, self.pretrained_digest(start)?));
        }
        let (start, mut others) = self.starts(row, &digests);
        if let Some(before) = self.recipe.first_stage(row) {
            let digest = match self.find_generator_digest(row, &before, seed)? {
                Some(digest) => digest,
                None => self.generator(row, &before, seed)?.1,
            };
            others.push(("generator", digest));
        }
        let reference = match self.recipe.scale.procedural() {
            true => None,
            false => Some(self.images_digest(self.recipe.reference())?),
        };
        let (features, images) = (self.features_digest()?, self.images_digest(Data::Target)?);
        Ok(Parents { start, others, images, reference, features })
    }

    /// Returns the SHA-256 of the generator of `before`, from which that of `row` starts.
    fn find_generator_digest(&mut self, row: &Row, before: &Row, seed: u64) -> Result<Option<String>> {
        if self.published(row.start) {
            return Ok(self.input(Input::Generator(before.id))?.map(|(_, sha256)| sha256));
        }
        let Some(parents) = self.find_parents(before, seed)? else { return Ok(None) };
        let artifact = self.weights_artifact(before, seed, &parents);
        Ok(self.find(&artifact)?.and_then(|made| made.digest(WEIGHTS).map(str::to_string)))
    }

    /// Returns the digest of the row's start, and those of the networks that start differently.
    fn starts(
        &self,
        row: &Row,
        digests: &[(Initialization, String)],
    ) -> (Option<String>, Vec<(&'static str, String)>) {
        let of = |start| digests.iter().find(|(known, _)| *known == start).map(|(_, digest)| digest.clone());
        let (generator, critic) = (self.recipe.generator_start(row), self.recipe.critic_start(row));
        let networks = [("generator", generator), ("critic", critic)];
        let others = networks.into_iter().filter(|(_, start)| *start != row.start);
        let none = || "none".to_string();
        (of(row.start), others.map(|(network, start)| (network, of(start).unwrap_or_else(none))).collect())
    }

    fn weights_artifact(&self, row: &Row, seed: u64, parents: &Parents) -> Artifact {
        let (recipe, streams) = (self.recipe.of_weights(), self.streams(seed));
        let origin = keys::Origin {
            images: &parents.images,
            start: parents.start.as_deref(),
            others: &parents.others,
            streams: &streams,
        };
        let start = parents.start.clone().map(|digest| ("start".to_string(), digest));
        let others = parents.others.iter().map(|(name, digest)| (format!("{name} start"), digest.clone()));
        Artifact {
            text: keys::weights(&recipe, row, seed, &origin, self.class),
            label: label(&recipe, &format!("{}-s{seed}-weights", row.id)),
            settings: recipe.training_settings(row),
            changes: recipe.sorted_changes(),
            seed,
            images: Some(recipe.images_of(row).next_multiple_of(recipe.budget.batch as u64)),
            inputs: [("images".to_string(), parents.images.clone())]
                .into_iter()
                .chain(start)
                .chain(others)
                .collect(),
            ..Artifact::default()
        }
    }

    fn scores_artifact(&self, row: &Row, seed: u64, parents: &Parents, weights: Option<&Made>) -> Artifact {
        let start = parents.start.as_deref().unwrap_or("none");
        let digest = weights.map_or(start, |made| made.digest(WEIGHTS).unwrap_or("none"));
        let inputs = [("features", parents.features.clone()), ("weights", digest.to_string())];
        let reference = parents.reference.clone().map(|digest| ("reference", digest));
        let parent = weights.map(|made| ("weights".to_string(), made.entry.key().to_string()));
        let compared = keys::Compared {
            weights: digest,
            features: &parents.features,
            reference: parents.reference.as_deref(),
        };
        Artifact {
            text: keys::scores(&self.recipe, row, seed, &compared, self.class),
            label: self.label(&format!("{}-s{seed}", row.id)),
            settings: self.recipe.used(row),
            changes: self.recipe.sorted_changes(),
            seed,
            shared: false,
            images: None,
            inputs: inputs
                .into_iter()
                .chain(reference)
                .map(|(name, digest)| (name.to_string(), digest))
                .collect(),
            parents: parent.into_iter().collect(),
            licences: weights.map(|made| made.manifest.licences.clone()).unwrap_or_default(),
        }
    }

    /// Returns the metadata in the file of a row's weights.
    fn metadata(&self, key: &Key, row: &Row, seed: u64, code: &str) -> BTreeMap<String, String> {
        let (seed, scale) = (seed.to_string(), self.recipe.scale.to_string());
        let lines =
            [("row", row.id), ("seed", &seed), ("scale", &scale), ("key", &key.to_string()), ("code", code)];
        lines.map(|(name, value)| (name.to_string(), value.to_string())).into()
    }

    /// Trains the row's method and stores its weights.
    fn train(&mut self, lock: &Lock, row: &Row, seed: u64, code: &str) -> Result<Outputs> {
        let start = self.starting_weights(row)?;
        let generator = match self.recipe.first_stage(row) {
            Some(before) => Some(self.generator(row, &before, seed)?.0),
            None => None,
        };
        self.images(Data::Target)?;
        self.prepare_evaluator()?;
        // Images during the training are sampled by its own recipe as well, because they are stored
        // with its weights.
        let (recipe, device) = (self.recipe.of_weights(), &self.settings.compute.device);
        let cell = self.streams(seed);
        let mut setup = recipe.setup(&self.settings.compute, row, &start, &cell);
        setup.initial.generator = generator.as_ref().or(setup.initial.generator);
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
        let mut snapshot = |weights: &Arrays| {
            let sampler = (row.method.sampler)(&setup, weights)?;
            let latents = ScoreLatents { config: &recipe.network, seed, device, each: sampler.latents() };
            let images =
                generate(0..recipe.evaluation.quick_samples, |range| sampler.sample(&latents.at(range)?))?;
            let grid = generate_grid(&recipe.network, device, latents.each, |z| sampler.sample(z))?;
            Ok(Snapshot { scores: Some(evaluator.interim(&images)?), grid: Some(grid) })
        };
        let budget = Budget { images: recipe.images_of(row), ticks: recipe.ticks_of(row) };
        let trained = train(lock, budget, &batches, &mut *method, &mut snapshot, &mut self.watch, self.stop)?;
        write_timing(lock, &trained)?;
        lock.write(
            WEIGHTS,
            &write_safetensors(&trained.weights, &self.metadata(lock.key(), row, seed, code)),
        )?;
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
        let sampler = self.sampler(row, seed, &start, weights)?;
        let label = lock.label().to_string();
        let (recipe, device) = (&self.recipe, &self.settings.compute.device);
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
        let each = sampler.latents();
        let grid = generate_grid(&recipe.network, device, each, sample).map_err(stopped)?;
        lock.write(SAMPLES, &png_grid(&grid, GRID.0, GRID.1))?;
        let e = &recipe.evaluation;
        let evaluator = self.evaluator.get().expect("just prepared");
        let latents = ScoreLatents { config: &recipe.network, seed, device, each };
        let mut trials = Vec::new();
        for trial in 0..e.trials {
            // A trial that finished before an interruption is reused.
            let name = format!("trial-{trial}.csv");
            let finished = if e.trials > 1 { lock.finished_output(&name)? } else { None };
            if let Some(scores) = finished.and_then(|bytes| read_trial(&bytes)) {
                trials.push(scores);
                continue;
            }
            let images = generate(trial * e.samples..(trial + 1) * e.samples, |range| {
                let images = sample(&latents.at(range.clone())?)?;
                watch.images("sampling", &label, range.end, e.trials * e.samples);
                Ok(images)
            });
            let scores = evaluator.scores(&images.map_err(stopped)?)?;
            if e.trials > 1 {
                lock.write(&name, trial_text(&scores).as_bytes())?;
                lock.record_outputs()?;
            }
            trials.push(scores);
        }
        lock.write(SCORES, values_text(over_trials(&trials).into_iter()).as_bytes())?;
        Ok(Outputs { names: vec![SAMPLES.to_string(), SCORES.to_string()], images: 0 })
    }

    /// Returns the sampler of a row's weights; without them, of the weights it starts from.
    fn sampler(
        &self,
        row: &Row,
        seed: u64,
        start: &[(Initialization, Arrays)],
        weights: Option<&Made>,
    ) -> Result<Box<dyn Sampler>> {
        let cell = self.streams(seed);
        let setup = self.setup(row, start, &cell);
        Ok(match (weights, setup.initial.row) {
            (Some(made), _) => (row.method.sampler)(&setup, &read_weights(&made.entry)?.0)?,
            (None, Some(start)) => (row.method.sampler)(&setup, start)?,
            (None, None) => unreachable!("what is only sampled was pre-trained"),
        })
    }

    /// Returns the weights that the row's networks start from, and makes missing ones; empty if all
    /// weights are random.
    pub(super) fn starting_weights(&mut self, row: &Row) -> Result<Vec<(Initialization, Arrays)>> {
        let starts = self.recipe.initial(row).into_iter();
        starts.map(|start| Ok((start, self.pretrained(start)?.0))).collect()
    }

    /// Returns the key of the random streams, the same for every row of a seed.
    pub(super) fn streams(&self, seed: u64) -> String {
        format!("{} one-step seed {seed}", self.recipe.scale)
    }

    pub(super) fn setup<'s>(
        &'s self,
        row: &Row,
        start: &'s [(Initialization, Arrays)],
        cell: &'s str,
    ) -> Setup<'s> {
        self.recipe.setup(&self.settings.compute, row, start, cell)
    }
}
