//! The settings of a scale, shared by all rows, and their overrides.

use super::{Data, FULL_INITIALIZATION, Initialization, Row, all_rows};
use crate::error::{Error, Result};
use crate::measure::classifier::ClassifierTraining;
use crate::measure::evaluate::Evaluation;
use crate::method::noise::Levels;
use crate::method::one_step::OneStep;
use crate::method::score_matching::Pretraining;
use crate::method::{InitialWeights, NetworkInit, Setup};
use crate::network::device::Compute;
use crate::network::params::Arrays;
use crate::network::unet::Config;
use crate::settings::{Field, LARGEST_BATCH, MOST_IMAGES, Overrides, Scale, Setting, Settings, settings};
use crate::text::{or, unknown};

settings! {
    /// Budget of the one-step training, and the number of drawn images.
    pub struct Budget: "budget", "" {
        /// Length of the one-step training.
        images: u64 = [192, 38_400, 128_000, 10_000_000, 100_000_000], 1..=MOST_IMAGES, "images";
        /// Images of one iteration.
        batch: usize = [16, 64, 64, 64, 64], 1..=LARGEST_BATCH, "images";
        /// Number of times a training writes a line, a grid and a checkpoint.
        ticks: u64 = [12, 10, 10, 200, 200], 1..=1_000_000, "", Ours("enough points for a curve");
        /// Training images of each class if they are drawn; 0 if they are read from files.
        images_per_class: usize = [20, 1000, 0, 0, 0], 1..=1_000_000, "images",
            Ours("as many as two minutes of training can use");
    }
}

/// Every setting that all rows share, and the overrides.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub scale: Scale,
    pub network: Config,
    pub pretraining: Pretraining,
    pub one_step: OneStep,
    pub budget: Budget,
    pub evaluation: Evaluation,
    pub classifier: ClassifierTraining,
    /// Overrides, including those of the methods' own settings; empty for the paper's rows.
    pub overrides: Overrides,
}

impl Recipe {
    /// Returns the presets of a scale.
    pub fn of(scale: Scale) -> Recipe {
        let recipe = Recipe {
            scale,
            network: Config::at(scale),
            pretraining: Pretraining::at(scale),
            one_step: OneStep::at(scale),
            budget: Budget::at(scale),
            evaluation: Evaluation::at(scale),
            classifier: ClassifierTraining::at(scale),
            overrides: Overrides::none(scale),
        };
        if scale == Scale::Drill { recipe.drill() } else { recipe }
    }

    fn drill(self) -> Recipe {
        Recipe {
            network: Config { model_channels: 8, channel_mult: vec![1, 2], blocks: 1, ..self.network },
            pretraining: Pretraining { images: 64, batch: 16, warmup_images: 16, ..self.pretraining },
            budget: Budget { images: 64, batch: 16, ticks: 1, ..self.budget },
            evaluation: Evaluation {
                samples: 20,
                quick_samples: 10,
                reference: 200,
                neighbourhood: 20,
                neighbours: 3,
                splits: 2,
                ..self.evaluation
            },
            ..self
        }
    }

    /// Returns the fields of every setting: the shared ones, then those of the methods.
    pub fn fields() -> Vec<&'static Field> {
        let shared = [
            Config::fields(),
            Pretraining::fields(),
            OneStep::fields(),
            Budget::fields(),
            Evaluation::fields(),
            ClassifierTraining::fields(),
        ];
        let mut all: Vec<&Field> = shared.into_iter().flatten().collect();
        let presets = Recipe::of(Scale::Paper);
        for setting in all_rows().flat_map(|row| presets.method_settings(&row)) {
            if all.iter().all(|known| known.name != setting.field.name) {
                all.push(setting.field);
            }
        }
        all
    }

    /// Overrides one setting: `NAME=VALUE`. The result is a separate experiment with the override
    /// in its label, so it cannot replace the paper's row.
    ///
    /// # Errors
    /// `Usage` for an unknown name or an invalid value.
    pub fn set(&mut self, change: &str) -> Result<()> {
        let wrong = |why: String| Error::Usage(format!("cannot set '{change}': {why}"));
        let fields = Recipe::fields();
        let Some((name, text)) = change.split_once('=') else {
            return Err(wrong("expected NAME=VALUE; `replicate run --help` lists the names".into()));
        };
        let Some(field) = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)) else {
            return Err(wrong(unknown("setting", name, fields.iter().map(|field| field.name))));
        };
        let Some(canonical) = (field.canonical)(text) else {
            return Err(wrong(format!("{} is {}", field.name, (field.expected)())));
        };
        let mut changed = self.clone();
        changed.apply(field.name, &canonical);
        changed.consistent().map_err(wrong)?;
        *self = changed;
        Ok(())
    }

    /// Checks that the settings are compatible; the error names those that are not.
    fn consistent(&self) -> std::result::Result<(), String> {
        let (n, e) = (&self.network, &self.evaluation);
        if self.pretraining.augment_p.max(self.one_step.augment_p) > 0.0 && n.augment_labels == 0 {
            return Err(format!(
                "the networks of scale {} have no input for augmentation labels",
                self.scale
            ));
        }
        if !n.size.is_multiple_of(1 << (n.channel_mult.len() - 1)) {
            return Err(format!("{} pixels cannot be halved for every resolution", n.size));
        }
        let channels = || n.channel_mult.iter().map(|times| times * n.model_channels);
        let mut norms = channels().chain(channels().flat_map(|a| channels().map(move |b| a + b)));
        if let Some(odd) = norms.find(|channels| !channels.is_multiple_of((channels / 4).clamp(1, 32))) {
            return Err(format!("{odd} channels do not divide into equal groups"));
        }
        let near = e.samples.min(e.quick_samples).min(e.reference).min(e.neighbourhood);
        if e.neighbours >= near {
            return Err(format!("{near} images are too few for {} neighbours", e.neighbours));
        }
        if e.splits > e.samples {
            return Err(format!("{} samples cannot be split into {}", e.samples, e.splits));
        }
        Ok(())
    }

    /// Checks that at least one of `rows` uses each overridden setting.
    ///
    /// # Errors
    /// `Usage` if no row uses one.
    pub fn changes_used_by(&self, rows: &[Row]) -> Result<()> {
        let used: Vec<&str> =
            rows.iter().flat_map(|row| self.used(row)).map(|setting| setting.field.name).collect();
        let mut changed = self.overrides.changes.iter().map(|(name, _)| name.as_str());
        let Some(name) = changed.find(|name| *name != "until" && !used.contains(name)) else { return Ok(()) };
        let rows: Vec<&str> = rows.iter().map(|row| row.id).collect();
        Err(Error::Usage(format!("{} at scale {} does not use {name}", or(&rows), self.scale)))
    }

    fn apply(&mut self, name: &str, text: &str) {
        let mut changed = self.clone();
        changed.network.put(name, text);
        changed.pretraining.put(name, text);
        changed.one_step.put(name, text);
        changed.budget.put(name, text);
        changed.evaluation.put(name, text);
        changed.classifier.put(name, text);
        let changes = &mut changed.overrides.changes;
        changes.retain(|(known, _)| known != name);
        // A preset may be bound by the length of the training, which was changed, too.
        let presets = [Recipe::of(self.scale).value(name), changed.value(name)];
        if presets.iter().any(|preset| preset.as_deref() != Some(text)) {
            changed.overrides.changes.push((name.into(), text.into()));
        }
        *self = changed;
    }

    /// Returns the text of a setting by name, including methods' own settings.
    pub fn value(&self, name: &str) -> Option<String> {
        let own = all_rows().flat_map(|row| self.method_settings(&row));
        let mut all = self.shared().into_iter().chain(own);
        all.find(|setting| setting.field.name == name).map(|setting| setting.value)
    }

    /// Returns every setting that all rows share.
    pub fn shared(&self) -> Vec<Setting> {
        [
            self.network.list(),
            self.pretraining.list(),
            self.one_step.list(),
            self.budget.list(),
            self.evaluation.list(),
            self.classifier.list(),
        ]
        .concat()
    }

    /// Returns what was changed by hand, with the length of the row's training.
    pub fn overrides_of(&self, row: &Row) -> Overrides {
        Overrides { images: self.images_of(row), ..self.overrides.clone() }
    }

    /// Returns the settings of the row's method: the shared ones and its own.
    pub fn method_settings(&self, row: &Row) -> Vec<Setting> {
        let shared = self.shared();
        let overrides = self.overrides_of(row);
        let own = row.method.settings.iter().flat_map(|listed| listed(&overrides));
        own.map(|setting| {
            let same = shared.iter().find(|shared| shared.field.name == setting.field.name);
            same.cloned().unwrap_or(setting)
        })
        .collect()
    }

    /// Returns every setting that affects the row's measurements.
    pub fn used(&self, row: &Row) -> Vec<Setting> {
        let training = row.method.training.as_ref();
        let trained: Vec<Initialization> =
            self.initial(row).into_iter().filter(|start| !self.has_checkpoint(*start)).collect();
        let pretrained = !trained.is_empty();
        // A method without pre-training gets the images of the others' pre-training as well.
        let from_scratch = training.is_some_and(|training| training.from_scratch.is_some());
        let uses = |setting: &Setting| match setting.field.name {
            "teacher_images" => pretrained || from_scratch,
            "images" | "batch" | "quick_samples" => training.is_some(),
            "ticks" => training.is_some() || pretrained,
            "images_per_class" => self.scale.procedural() && (training.is_some() || pretrained),
            "teacher_p_mean" | "teacher_p_std" => {
                trained.iter().any(|start| *start != Initialization::SingleLevel)
            }
            _ if setting.owner == Pretraining::OWNER => pretrained,
            _ if setting.owner == ClassifierTraining::OWNER => self.scale.has_own_features(),
            _ => setting.owner != OneStep::OWNER,
        };
        let shared = self.shared().into_iter().filter(uses);
        shared.chain(self.method_settings(row)).collect()
    }

    /// As [`Recipe::used`], for the row's weights only.
    pub fn training_settings(&self, row: &Row) -> Vec<Setting> {
        let mut used = self.used(row);
        let measuring = [Evaluation::OWNER, ClassifierTraining::OWNER];
        used.retain(|setting| !setting.field.of_scores && !measuring.contains(&setting.owner));
        used
    }

    /// Returns the recipe of weights, without the overrides that only scores depend on.
    pub fn of_weights(&self) -> Recipe {
        let fields = Recipe::fields();
        let of_scores = |name: &str| fields.iter().any(|field| field.name == name && field.of_scores);
        let mut recipe = self.clone();
        recipe.overrides.changes.retain(|(name, _)| !of_scores(name));
        recipe
    }

    /// Returns the overrides in the form of `--set` and `--until`: "sigma_init=2".
    pub fn changes(&self) -> Vec<String> {
        self.overrides.changes.iter().map(|(name, text)| format!("{name}={text}")).collect()
    }

    /// As [`Recipe::changes`], sorted, so that the same overrides give the same name in any order.
    pub fn sorted_changes(&self) -> Vec<String> {
        let mut changes = self.changes();
        changes.sort();
        changes
    }

    /// Makes the recipe of a scale with overrides in the form of [`Recipe::changes`].
    ///
    /// # Errors
    /// As [`Recipe::set`].
    pub fn changed(scale: Scale, changes: &[String]) -> Result<Recipe> {
        let mut recipe = Recipe::of(scale);
        for change in changes {
            match change.strip_prefix("until=").and_then(|images| images.parse().ok()) {
                Some(images) => recipe.until(images),
                None => recipe.set(change)?,
            }
        }
        Ok(recipe)
    }

    /// Stops both stages early. If the features are Inception's, it also scores fewer images.
    pub fn until(&mut self, images: u64) {
        let before = self.clone();
        if !self.scale.has_own_features() {
            let e = &mut self.evaluation;
            let few = (images as usize).max(20);
            (e.samples, e.quick_samples) = (e.samples.min(few), e.quick_samples.min(few));
            e.reference = e.reference.min(few.max(500));
            e.neighbourhood = e.neighbourhood.min(few);
        }
        self.budget.images = self.budget.images.min(images);
        self.pretraining.images = self.pretraining.images.min(images);
        self.pretraining.warmup_images = self.pretraining.warmup_images.min(images / 4);
        // In a short run, a grid and a checkpoint at every step would take most of the time.
        self.budget.ticks = self.budget.ticks.min(10);
        if *self != before {
            self.overrides.changes.push(("until".into(), images.to_string()));
        }
    }

    /// Returns the initialisation of the row's generator.
    pub fn generator_start(&self, row: &Row) -> Initialization {
        self.resolved(self.one_step.generator_start, row)
    }

    /// Returns the row whose generator this row's starts from; `None` if it has none or
    /// `generator_start` is overridden.
    pub fn first_stage(&self, row: &Row) -> Option<Row> {
        row.first_stage_row().filter(|_| self.one_step.generator_start == NetworkInit::Row)
    }

    /// Returns the initialisation of the row's critic or fake score.
    pub fn critic_start(&self, row: &Row) -> Initialization {
        self.resolved(self.one_step.critic_start, row)
    }

    fn resolved(&self, start: NetworkInit, row: &Row) -> Initialization {
        match start {
            NetworkInit::Row => row.start,
            // On a scale with drawn images, the source classes are these characters.
            NetworkInit::From(Initialization::MultiLevel(Data::Characters(n))) if self.scale.procedural() => {
                Initialization::MultiLevel(Data::Sources(n))
            }
            NetworkInit::From(start) => start,
        }
    }

    /// Returns the pre-trainings that the row needs, each once; that of the row itself, if any,
    /// comes first.
    pub fn initial(&self, row: &Row) -> Vec<Initialization> {
        let mut all: Vec<Initialization> = Vec::new();
        for start in [row.start, self.generator_start(row), self.critic_start(row)] {
            if start != Initialization::Random && !all.contains(&start) {
                all.push(start);
            }
        }
        all
    }

    /// Returns the noise level of a pre-training's grids: the level at which a generator starts.
    pub fn grid_sigma(&self) -> f64 {
        // The preset: overriding sigma_init must not change the teacher.
        OneStep::at(self.scale).sigma_init
    }

    /// Returns the noise levels of the pre-training behind `start`.
    pub fn pretraining_levels(&self, start: Initialization) -> Levels {
        match start {
            Initialization::SingleLevel => Levels::Fixed(self.one_step.sigma_init as f32),
            Initialization::MultiLevel(_) | Initialization::Random => self.pretraining.levels(),
        }
    }

    /// True if both recipes pre-train `start` in the same way.
    pub fn pretrains_like(&self, other: &Recipe, start: Initialization) -> bool {
        self.network == other.network
            && self.budget.images_per_class == other.budget.images_per_class
            && self.pretraining == other.pretraining
            && self.pretraining_levels(start) == other.pretraining_levels(start)
    }

    /// True if `start` is a published checkpoint at this scale. It is not if a setting of the
    /// pre-training or of the network is overridden.
    pub fn has_checkpoint(&self, start: Initialization) -> bool {
        let trained_by = || Pretraining::fields().iter().chain(Config::fields());
        let published = |name: &str| trained_by().all(|field| field.name != name);
        matches!(self.scale, Scale::Paper | Scale::Drill)
            && start == FULL_INITIALIZATION.start
            && self.overrides.changes.iter().all(|(name, _)| published(name))
    }

    /// Returns the inputs from which the row's method is built. `weights` are those of
    /// [`Recipe::initial`]; `cell` is the key of the random streams.
    pub fn setup<'a>(
        &'a self,
        compute: &'a Compute,
        row: &Row,
        weights: &'a [(Initialization, Arrays)],
        cell: &'a str,
    ) -> Setup<'a> {
        let of = |start| weights.iter().find(|(known, _)| *known == start).map(|(_, weights)| weights);
        let initial = InitialWeights {
            row: of(row.start),
            generator: of(self.generator_start(row)),
            critic: of(self.critic_start(row)),
        };
        let (network, settings, overrides) = (&self.network, &self.one_step, &self.overrides);
        Setup { compute, network, settings, overrides, images: self.images_of(row), initial, cell }
    }

    /// Returns the number of images in the row's training. If its method is designed for random
    /// weights and the row has them, they include the images of the others' pre-training.
    pub fn images_of(&self, row: &Row) -> u64 {
        let training = row.method.training.as_ref();
        let from_scratch = training.and_then(|training| training.from_scratch);
        let images = match from_scratch.filter(|_| row.start == Initialization::Random) {
            Some(published) => published.min(self.pretraining.images + self.budget.images),
            None => self.budget.images,
        };
        training.and_then(|training| training.at_most).map_or(images, |most| images.min(most))
    }

    /// Returns the real images that scores compare with.
    pub fn reference(&self) -> Data {
        if self.scale.has_own_features() { Data::HeldOut } else { Data::Target }
    }

    /// Returns the number of ticks in the row's training. A shorter training has fewer, but enough
    /// for a curve.
    pub fn ticks_of(&self, row: &Row) -> u64 {
        let ticks = self.budget.ticks;
        let share = (ticks * self.images_of(row)).div_ceil(self.budget.images);
        share.clamp(ticks.min(10), ticks)
    }

    /// Returns the number of whole iterations in the row's training.
    pub fn iterations(&self, row: &Row) -> u64 {
        self.images_of(row).div_ceil(self.budget.batch as u64)
    }
}
