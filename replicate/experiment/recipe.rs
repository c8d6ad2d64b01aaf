//! What a scale fixes, for all rows alike, and what is changed by hand.

use super::{FULL_INITIALIZATION, Initialization, Row, all_rows};
use crate::error::{Error, Result};
use crate::measure::classifier::ClassifierTraining;
use crate::measure::evaluate::Evaluation;
use crate::method::Setup;
use crate::method::noise::Levels;
use crate::method::one_step::OneStep;
use crate::method::score_matching::Pretraining;
use crate::network::params::Arrays;
use crate::network::unet::Config;
use crate::settings::{Field, LARGEST_BATCH, MOST_IMAGES, Overrides, Scale, Setting, Settings, settings};
use crate::text::unknown;
use candle_core::Device;

settings! {
    /// Budget of the one-step training, and the images that are drawn for it.
    pub struct Budget: "budget", "" {
        /// Length of the one-step training.
        images: u64 = [192, 38_400, 128_000, 10_000_000, 100_000_000], 1..=MOST_IMAGES, "images";
        /// Images of one iteration.
        batch: usize = [16, 64, 64, 64, 64], 1..=LARGEST_BATCH, "images";
        /// How often a training writes a line, a grid and a checkpoint.
        ticks: u64 = [12, 10, 10, 200, 200], 1..=1_000_000, "", Ours("enough points for a curve");
        /// Training images of each class, where they are drawn; 0 where they are read.
        images_per_class: usize = [20, 1000, 0, 0, 0], 1..=1_000_000, "images",
            Ours("as many as two minutes of training can use");
    }
}

/// Every setting that all rows share, and what was changed by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub scale: Scale,
    pub network: Config,
    pub pretraining: Pretraining,
    pub one_step: OneStep,
    pub budget: Budget,
    pub evaluation: Evaluation,
    pub classifier: ClassifierTraining,
    /// What was changed by hand, of the methods' own settings too; empty for the paper's rows.
    pub overrides: Overrides,
}

impl Recipe {
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

    /// The fields of every setting: the shared ones, then those of the methods.
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
        let presets = Overrides::none(Scale::Paper);
        for setting in all_rows().flat_map(|row| own(&row, &presets)) {
            if all.iter().all(|known| known.name != setting.field.name) {
                all.push(setting.field);
            }
        }
        all
    }

    /// Changes one setting: `NAME=VALUE`. The result is another experiment, with the
    /// change in its label: it can never stand in for the paper's row.
    ///
    /// # Errors
    /// `Usage` for an unknown name, or a value that is not as expected.
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
        self.apply(field.name, &canonical);
        Ok(())
    }

    fn apply(&mut self, name: &str, text: &str) {
        let listed = |recipe: &Recipe| -> Vec<String> {
            let own = all_rows().flat_map(|row| own(&row, &recipe.overrides));
            recipe.shared().into_iter().chain(own).map(|setting| setting.value).collect()
        };
        let before = listed(self);
        let mut changed = self.clone();
        changed.network.put(name, text);
        changed.pretraining.put(name, text);
        changed.one_step.put(name, text);
        changed.budget.put(name, text);
        changed.evaluation.put(name, text);
        changed.classifier.put(name, text);
        changed.overrides.changes.push((name.into(), text.into()));
        if listed(&changed) != before {
            *self = changed;
        }
    }

    /// Every setting that all rows share.
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

    /// The changes as they are given to `--set` and `--until`: "sigma_init=2".
    pub fn changes(&self) -> Vec<String> {
        self.overrides.changes.iter().map(|(name, text)| format!("{name}={text}")).collect()
    }

    /// Stops both stages early; where the features are Inception's, the scores are
    /// taken of fewer images as well.
    pub fn until(&mut self, images: u64) {
        let before = self.clone();
        if !self.scale.procedural() {
            let e = &mut self.evaluation;
            let few = (images as usize).max(20);
            (e.samples, e.quick_samples) = (e.samples.min(few), e.quick_samples.min(few));
            e.reference = e.reference.min(few.max(500));
            e.neighbourhood = e.neighbourhood.min(few);
        }
        self.budget.images = self.budget.images.min(images);
        self.pretraining.images = self.pretraining.images.min(images);
        self.pretraining.warmup_images = self.pretraining.warmup_images.min(images / 4);
        // A grid and a checkpoint at every step would be most of a short run.
        self.budget.ticks = self.budget.ticks.min(10);
        if *self != before {
            self.overrides.changes.push(("until".into(), images.to_string()));
        }
    }

    /// Noise levels of the pre-training from which `start` comes.
    pub fn pretraining_levels(&self, start: Initialization) -> Levels {
        match start {
            Initialization::SingleLevel => Levels::Fixed(self.one_step.sigma_init as f32),
            Initialization::MultiLevel(_) | Initialization::Random => self.pretraining.levels(),
        }
    }

    /// Whether `start` is pre-trained in the same way in both recipes.
    pub fn pretrains_like(&self, other: &Recipe, start: Initialization) -> bool {
        self.network == other.network
            && self.budget.images_per_class == other.budget.images_per_class
            && self.pretraining == other.pretraining
            && self.pretraining_levels(start) == other.pretraining_levels(start)
    }

    /// Whether `start` is a published checkpoint at this scale. A pre-training or a network
    /// that was changed by name is not what was published.
    pub fn has_checkpoint(&self, start: Initialization) -> bool {
        let trained_by = || Pretraining::fields().iter().chain(Config::fields());
        let published = |name: &str| trained_by().all(|field| field.name != name);
        matches!(self.scale, Scale::Paper | Scale::Drill)
            && start == FULL_INITIALIZATION.start
            && self.overrides.changes.iter().all(|(name, _)| published(name))
    }

    /// What the method of `row` is built from; `cell` names the streams of what is drawn.
    pub fn setup<'a>(
        &'a self,
        device: &'a Device,
        row: &Row,
        start: Option<&'a Arrays>,
        cell: &'a str,
    ) -> Setup<'a> {
        let (network, settings, overrides) = (&self.network, &self.one_step, &self.overrides);
        Setup { device, network, settings, overrides, images: self.images_of(row), start, cell }
    }

    /// Images of the row's training: what knows no pre-training sees those of the others'
    /// pre-training, too.
    pub fn images_of(&self, row: &Row) -> u64 {
        match row.method.training.as_ref().and_then(|training| training.from_scratch) {
            Some(published) => published.min(self.pretraining.images + self.budget.images),
            None => self.budget.images,
        }
    }

    /// Whole iterations of the row's training.
    pub fn iterations(&self, row: &Row) -> u64 {
        self.images_of(row).div_ceil(self.budget.batch as u64)
    }
}

/// The settings of a row's method that no other shares.
pub fn own(row: &Row, overrides: &Overrides) -> Vec<Setting> {
    row.method.settings.iter().flat_map(|listed| listed(overrides)).collect()
}
