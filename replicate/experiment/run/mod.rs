//! Runs rows. Every artefact is made once and stored under a key of everything it depends on.

mod artifact;
mod data;
mod inputs;
mod keys;
mod mapping;
mod outcome;
mod provenance;
mod row;
mod samples;
mod weights;

pub use self::artifact::Made;
pub use self::inputs::Input;
pub use self::keys::MAP_LATENTS;
pub use self::outcome::{CurvePoint, Outcome, curve};
use self::provenance::{class, provenance};
pub use self::provenance::{determinism, now};
pub use self::samples::Samples;
pub use self::weights::{classifier_name, shipped, shipped_digests};
use crate::data::Images;
use crate::error::{Result, shown_path};
use crate::experiment::plan::smallest_microbatch;
use crate::experiment::{Data, Recipe, Row, all_rows};
use crate::measure::evaluate::Evaluator;
use crate::network::device::{Compute, Named};
use crate::network::params::Arrays;
use crate::store::{Finished, Manifest, Store, slug};
use crate::train::watch::{Watch, say};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

/// File of trained weights in an entry.
pub const WEIGHTS: &str = "weights.safetensors";
/// File of scores in an entry.
pub const SCORES: &str = "scores.csv";
/// File of a grid of samples in an entry.
pub const SAMPLES: &str = "samples.png";
const TIMING: &str = "timing.csv";
/// Directory of the repository with the weights that ship with it.
pub const SHIPPED: &str = "golden/weights";
/// The list of their SHA-256.
pub const SHIPPED_DIGESTS: &str = "golden/weights/SHA256SUMS";

/// Paths, and options of the run.
pub struct Settings {
    pub store: PathBuf,
    /// The repository, which contains paper/ and golden/.
    pub root: PathBuf,
    /// CIFAR files for the scales that read them; `None` for fetched files.
    pub data: Option<PathBuf>,
    pub compute: Compute,
    /// Retrains the weights that ship with the repository.
    pub from_scratch: bool,
    /// Largest microbatch on a GPU that cannot hold a whole batch. A CPU takes whole batches,
    /// because its results must be the same to the byte.
    pub microbatch: Option<usize>,
    /// Accepts stored results of other code instead of running again.
    pub keep: bool,
}

/// Finds and makes the artefacts of a recipe in a store.
pub struct Runner<'a> {
    settings: Settings,
    recipe: Recipe,
    /// [`determinism`] class of the results.
    class: &'static str,
    store: Store,
    watch: Watch,
    stop: &'a AtomicBool,
    /// Images in memory, with a digest if they were read.
    images: BTreeMap<Data, (Images, String)>,
    /// Verified files with their SHA-256.
    inputs: RefCell<Vec<(Input, (PathBuf, String))>>,
    evaluator: OnceLock<Evaluator>,
    features: OnceLock<(Arrays, String)>,
    /// Entries that were found damaged.
    damaged: BTreeSet<PathBuf>,
}

impl<'a> Runner<'a> {
    /// Opens the store. `stop` ends a run after a durable checkpoint.
    pub fn new(settings: Settings, recipe: Recipe, watch: Watch, stop: &'a AtomicBool) -> Result<Runner<'a>> {
        let store = Store::open(&settings.store)?;
        Ok(Runner {
            class: determinism(&settings.compute),
            settings,
            recipe,
            store,
            watch,
            stop,
            images: BTreeMap::new(),
            inputs: RefCell::new(Vec::new()),
            evaluator: OnceLock::new(),
            features: OnceLock::new(),
            damaged: BTreeSet::new(),
        })
    }

    /// Returns the present recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Looks for results made on the device `name`, which need not exist here.
    ///
    /// # Errors
    /// `Usage` if `name` is not the name of a device.
    pub fn made_on(mut self, name: &str) -> Result<Runner<'a>> {
        let Named { gpu, bfloat16, .. } = Named::parse(name)?;
        self.class = class(gpu.is_none(), bfloat16);
        Ok(self)
    }

    /// Returns the device with its precision.
    pub fn compute(&self) -> &Compute {
        &self.settings.compute
    }

    /// Returns the recipe with the row's microbatches in place of batches, for estimates of memory.
    pub fn recipe_in_memory(&self, row: &Row) -> Recipe {
        let mut recipe = self.recipe.clone();
        let microbatch = self.settings.microbatch.unwrap_or(usize::MAX);
        recipe.budget.batch = recipe.budget.batch.min(microbatch.max(smallest_microbatch(&recipe, row)));
        recipe.pretraining.batch = recipe.pretraining.batch.min(microbatch);
        recipe
    }

    /// Returns every seed of `row` with a finished result in the store, in order. `stored` tells
    /// which of them belong to this experiment.
    pub fn seeds(&self, row: &Row) -> Result<Vec<u64>> {
        let label = format!("{}-{}-s", self.recipe.scale, row.id);
        let all = self.store.finished_entries()?.into_iter();
        let named = all.filter(|(entry, _)| entry.label().starts_with(&label));
        let seeds: BTreeSet<u64> = named.map(|(_, manifest)| seed_of(&manifest)).collect();
        Ok(seeds.into_iter().collect())
    }

    /// Returns the overrides of finished scores of this scale in the store, with the names and
    /// seeds of their rows. No override comes first.
    pub fn changed(&mut self) -> Result<BTreeMap<Vec<String>, BTreeSet<(String, u64)>>> {
        let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (scale, row, manifest) in self.scored()? {
            if scale == self.recipe.scale.name() {
                let seed = seed_of(&manifest);
                found.entry(manifest.changes).or_default().insert((row, seed));
            }
        }
        Ok(found)
    }

    /// Returns the rows of other scales with finished scores in the store, without overrides.
    pub fn other_scales(&mut self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (scale, row, manifest) in self.scored()? {
            if scale != self.recipe.scale.name() && manifest.changes.is_empty() {
                found.entry(scale).or_default().insert(row);
            }
        }
        Ok(found)
    }

    /// Returns scale, row and manifest of all finished scores whose label has the changes of the
    /// manifest.
    fn scored(&mut self) -> Result<Vec<(String, String, Manifest)>> {
        let mut scored = Vec::new();
        for (entry, manifest) in self.store.finished_entries()? {
            let line = |name: &str| manifest.line(name).map(str::to_string);
            let (Some(scale), Some(row)) = (line("scale"), line("row")) else { continue };
            if manifest.line("kind") != Some("scores") {
                continue;
            }
            let label = format!("{scale}-{row}-s{}{}", seed_of(&manifest), suffix(&manifest.changes));
            if entry.label() == slug(&label) {
                scored.push((scale, row, manifest));
            } else if self.damaged.insert(entry.dir().into()) {
                say(&format!("{}: its manifest contradicts its label", shown_path(entry.dir())));
            }
        }
        Ok(scored)
    }

    /// Returns the scores of this scale whose key begins with `start`; `None` unless there is
    /// exactly one.
    pub fn by_key(&self, start: &str) -> Result<Option<Outcome>> {
        let all = self.store.finished_entries()?;
        let all: Vec<Made> = all.into_iter().map(|(entry, manifest)| Made { entry, manifest }).collect();
        let named = |made: &Made, key: &str| made.entry.key().to_string().starts_with(key);
        let is_scores = |made: &Made| made.manifest.experiment.starts_with(artifact::SCORES_BEGIN);
        let found: Vec<&Made> = all.iter().filter(|made| named(made, start) && is_scores(made)).collect();
        let [scores] = found[..] else { return Ok(None) };
        let Manifest { experiment, parents, seed, .. } = &scores.manifest;
        let id = scores.manifest.line("row");
        let Some(row) = all_rows().find(|row| id == Some(row.id)) else { return Ok(None) };
        if experiment.lines().all(|line| line != format!("seed = {seed}")) {
            say(&format!("{}: its manifest contradicts its experiment", shown_path(scores.entry.dir())));
            return Ok(None);
        }
        let key = parents.get("weights");
        let weights = all.iter().find(|made| Some(&made.entry.key().to_string()) == key).cloned();
        for made in weights.iter().chain([scores]) {
            if let Finished::Damaged(reason) = made.entry.finished()? {
                say(&format!("{reason}: ignored; the next run makes it again"));
                return Ok(None);
            }
        }
        let other_code = Some(keys::code_of(experiment));
        Ok(Some(Outcome { row, seed: *seed, scores: scores.clone(), weights, other_code }))
    }

    /// Switches to another recipe of the same scale.
    pub fn turn_to(&mut self, recipe: Recipe) {
        self.recipe = recipe;
        self.images.clear();
        (self.evaluator, self.features) = (OnceLock::new(), OnceLock::new());
    }

    fn label(&self, name: &str) -> String {
        label(&self.recipe, name)
    }
}

fn label(recipe: &Recipe, name: &str) -> String {
    format!("{}-{name}{}", recipe.scale, suffix(&recipe.sorted_changes()))
}

/// Returns changes as a label has them.
fn suffix(changes: &[String]) -> String {
    changes.iter().map(|change| format!("+{change}")).collect()
}

/// Returns the seed in the text of an experiment, which the key vouches for.
fn seed_of(manifest: &Manifest) -> u64 {
    manifest.line("seed").and_then(|seed| seed.parse().ok()).unwrap_or(manifest.seed)
}
