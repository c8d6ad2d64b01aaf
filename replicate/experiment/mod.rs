//! What is run: the cells of both tables, and every hyper-parameter of every
//! scale, as plain values with a canonical text. The SHA-256 of that text is
//! the name under which the result is stored.

pub mod plan;
pub mod run;

use crate::error::{Error, Result};
use crate::measure::classifier::ClassifierTraining;
use crate::measure::evaluate::Evaluation;
use crate::method::Setup;
use crate::method::noise::Levels;
use crate::method::one_step::Settings;
use crate::method::score_matching::Pretraining;
pub use crate::method::{Data, FULL_INITIALIZATION, Initialization, Row, TABLE1, TABLE2, all_rows};
use crate::network::params::Arrays;
use crate::network::unet::Config;
use crate::train::adam::AdamConfig;
use crate::train::augment::Augmentation;
use candle_core::Device;
use std::fmt::{Display, Formatter};

/// EDM's training distribution of noise levels.
const EDM_LEVELS: Levels = Levels::LogNormal { mean: -1.2, sd: 1.2 };

/// Sizes, data and budgets; never equations or code paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Glyphs, a handful of steps: tests of the machinery.
    Smoke,
    /// Glyphs, minutes on two cores: tests of the claims at small size.
    Mini,
    /// The paper scale's code with small files from a local server: tests that
    /// it would run, and measures nothing.
    Drill,
    /// CIFAR files, a reduced U-Net and a teacher of our own.
    Small,
    /// CIFAR-10 and the published EDM checkpoint.
    Paper,
}

impl Scale {
    pub const ALL: [Scale; 5] = [Scale::Smoke, Scale::Mini, Scale::Drill, Scale::Small, Scale::Paper];

    pub fn name(self) -> &'static str {
        match self {
            Scale::Smoke => "smoke",
            Scale::Mini => "mini",
            Scale::Drill => "drill",
            Scale::Small => "small",
            Scale::Paper => "paper",
        }
    }

    /// Whether the images are drawn rather than read from files.
    pub fn procedural(self) -> bool {
        matches!(self, Scale::Smoke | Scale::Mini)
    }
}

impl Display for Scale {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

const MOST_IMAGES: u64 = 1_000_000_000_000;
const LARGEST_BATCH: u64 = 65_536;

/// What a scale fixes, for all rows alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub scale: Scale,
    pub network: Config,
    /// Procedural training images of each class.
    pub images_per_class: usize,
    pub pretraining: Pretraining,
    pub one_step: Settings,
    /// Images of the one-step training, and of one iteration.
    pub images: u64,
    pub batch: usize,
    /// How often a run writes a line, a grid and a checkpoint.
    pub ticks: u64,
    /// Of pre-training and of the critic's images.
    pub augmentation: Augmentation,
    pub evaluation: Evaluation,
    pub classifier: ClassifierTraining,
    /// What was changed by hand, for the label; empty for the paper's rows.
    pub changes: Vec<String>,
}

const CLASSIFIER: ClassifierTraining = ClassifierTraining {
    size: 16,
    images: 256_000,
    batch: 128,
    lr: 2e-3,
    adam: AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, rectified: false },
};

impl Recipe {
    pub fn of(scale: Scale) -> Recipe {
        match scale {
            Scale::Mini => Recipe::mini(),
            Scale::Smoke => Recipe::smoke(),
            Scale::Drill => Recipe::drill(),
            Scale::Small => Recipe::small(),
            Scale::Paper => Recipe::paper(),
        }
    }

    fn mini() -> Recipe {
        Recipe {
            scale: Scale::Mini,
            network: Config {
                size: 16,
                image_channels: 3,
                model_channels: 16,
                channel_mult: vec![1, 2],
                blocks: 1,
                attention_sizes: vec![8],
                augment_labels: 0,
            },
            images_per_class: 1000,
            pretraining: Pretraining {
                images: 256_000,
                batch: 64,
                lr: 2e-3,
                warmup_images: 6_400,
                cosine: true,
                adam: AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, rectified: false },
                ema_half_life: 22_000,
                levels: EDM_LEVELS,
            },
            one_step: Settings {
                sigma_init: 2.5,
                levels: EDM_LEVELS,
                generator_lr: 5e-5,
                critic_lr: 1e-3,
                adam: AdamConfig { beta1: 0.0, beta2: 0.99, eps: 1e-8, rectified: false },
                ema_half_life: 4_400,
            },
            images: 38_400,
            batch: 64,
            ticks: 10,
            // A digit that is turned or mirrored is another digit or none.
            augmentation: Augmentation { p: 0.0 },
            evaluation: Evaluation {
                samples: 2000,
                trials: 1,
                quick_samples: 500,
                reference: 5000,
                neighbourhood: 5000,
                neighbours: 5,
                splits: 10,
            },
            classifier: CLASSIFIER,
            changes: Vec::new(),
        }
    }

    fn smoke() -> Recipe {
        let mini = Recipe::mini();
        Recipe {
            scale: Scale::Smoke,
            network: Config { model_channels: 8, ..mini.network },
            images_per_class: 20,
            pretraining: Pretraining { images: 320, batch: 16, warmup_images: 64, ..mini.pretraining },
            // Rates at which a dozen steps change something.
            one_step: Settings { generator_lr: 2e-3, critic_lr: 2e-3, ..mini.one_step.clone() },
            images: 192,
            batch: 16,
            ticks: 12,
            evaluation: Evaluation {
                samples: 100,
                quick_samples: 100,
                reference: 200,
                neighbourhood: 200,
                neighbours: 3,
                splits: 2,
                ..mini.evaluation
            },
            ..mini
        }
    }

    fn drill() -> Recipe {
        let paper = Recipe::paper();
        Recipe {
            scale: Scale::Drill,
            network: Config { model_channels: 8, channel_mult: vec![1, 2], blocks: 1, ..paper.network },
            pretraining: Pretraining { images: 64, batch: 16, warmup_images: 16, ..paper.pretraining },
            images: 64,
            batch: 16,
            ticks: 1,
            evaluation: Evaluation {
                samples: 20,
                quick_samples: 10,
                reference: 200,
                neighbourhood: 20,
                neighbours: 3,
                splits: 2,
                ..paper.evaluation
            },
            ..paper
        }
    }

    fn small() -> Recipe {
        let paper = Recipe::paper();
        Recipe {
            scale: Scale::Small,
            network: Config { model_channels: 64, channel_mult: vec![1, 2, 2], blocks: 2, ..paper.network },
            pretraining: Pretraining {
                images: 20_000_000,
                warmup_images: 500_000,
                batch: 256,
                ..paper.pretraining
            },
            one_step: Settings { generator_lr: 5e-5, critic_lr: 5e-5, ..paper.one_step },
            images: 10_000_000,
            evaluation: Evaluation { samples: 10_000, trials: 1, ..paper.evaluation },
            ..paper
        }
    }

    fn paper() -> Recipe {
        Recipe {
            scale: Scale::Paper,
            network: Config::cifar10(),
            images_per_class: 0,
            pretraining: Pretraining {
                images: 200_000_000,
                batch: 512,
                lr: 1e-3,
                warmup_images: 10_000_000,
                cosine: false,
                adam: AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, rectified: false },
                ema_half_life: 500_000,
                levels: EDM_LEVELS,
            },
            one_step: Settings {
                sigma_init: 2.5,
                levels: EDM_LEVELS,
                generator_lr: 1e-5,
                critic_lr: 1e-5,
                adam: AdamConfig { beta1: 0.0, beta2: 0.999, eps: 1e-8, rectified: false },
                ema_half_life: 500_000,
            },
            images: 100_000_000,
            batch: 64,
            ticks: 200,
            augmentation: Augmentation { p: 0.12 },
            evaluation: Evaluation {
                samples: 50_000,
                trials: 3,
                quick_samples: 5_000,
                reference: 50_000,
                neighbourhood: 10_000,
                neighbours: 5,
                splits: 10,
            },
            classifier: CLASSIFIER,
            changes: Vec::new(),
        }
    }

    /// Changes one value by name. The result is another experiment, with the
    /// change in its label: it can never stand in for the paper's row.
    pub fn set(&mut self, change: &str) -> Result<()> {
        const NAMES: [&str; 8] = [
            "sigma_init",
            "generator_lr",
            "critic_lr",
            "ema_half_life",
            "images",
            "batch",
            "teacher_images",
            "teacher_batch",
        ];
        let unknown = || {
            let known = NAMES.join(", ");
            Error::Usage(format!("cannot set '{change}': expected NAME=VALUE with NAME one of {known}"))
        };
        let (name, text) = change.split_once('=').ok_or_else(unknown)?;
        let range = |low: f64, high: f64| match text.parse::<f64>() {
            Ok(value) if value >= low && value <= high => Ok(value),
            _ => Err(Error::Usage(format!(
                "cannot set '{change}': {name} is a number from {low:e} to {high:e}"
            ))),
        };
        let count = |low: u64, high: u64| match text.parse::<u64>() {
            Ok(value) if value >= low && value <= high => Ok(value),
            _ => Err(Error::Usage(format!(
                "cannot set '{change}': {name} is a whole number from {low} to {high}"
            ))),
        };
        let before = self.clone();
        match name {
            "sigma_init" => self.one_step.sigma_init = range(1e-3, 1e3)?,
            "generator_lr" => self.one_step.generator_lr = range(0.0, 1e30)?,
            "critic_lr" => self.one_step.critic_lr = range(0.0, 1e30)?,
            "ema_half_life" => self.one_step.ema_half_life = count(0, MOST_IMAGES)?,
            "images" => self.images = count(1, MOST_IMAGES)?,
            "batch" => self.batch = count(1, LARGEST_BATCH)? as usize,
            "teacher_images" => self.pretraining.images = count(1, MOST_IMAGES)?,
            "teacher_batch" => self.pretraining.batch = count(1, LARGEST_BATCH)? as usize,
            _ => return Err(unknown()),
        }
        if *self != before {
            self.changes.push(change.to_string());
        }
        Ok(())
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
        self.images = self.images.min(images);
        self.pretraining.images = self.pretraining.images.min(images);
        self.pretraining.warmup_images = self.pretraining.warmup_images.min(images / 4);
        // A grid and a checkpoint at every step would be most of a short run.
        self.ticks = self.ticks.min(10);
        if *self != before {
            self.changes.push(format!("until={images}"));
        }
    }

    /// Whether `start` is pre-trained in the same way in both recipes.
    pub fn pretrains_like(&self, other: &Recipe, start: Initialization) -> bool {
        self.network == other.network
            && self.images_per_class == other.images_per_class
            && self.pretraining == other.pretraining
            && self.augmentation == other.augmentation
            && self.pretraining_levels(start) == other.pretraining_levels(start)
    }

    /// Whether `start` is a published checkpoint at this scale. A pre-training that
    /// was changed by name is not what was published.
    pub fn has_checkpoint(&self, start: Initialization) -> bool {
        matches!(self.scale, Scale::Paper | Scale::Drill)
            && start == FULL_INITIALIZATION.start
            && !self.changes.iter().any(|change| change.starts_with("teacher_"))
    }

    /// What the method of `row` is built from; `cell` names the streams of what is drawn.
    pub fn setup<'a>(
        &'a self,
        device: &'a Device,
        row: &Row,
        start: Option<&'a Arrays>,
        cell: &'a str,
    ) -> Setup<'a> {
        let (network, settings, images) = (&self.network, &self.one_step, self.images_of(row));
        Setup { device, network, settings, images, start, cell }
    }

    /// Images of the row's training: what knows no pre-training sees those of the others'
    /// pre-training, too.
    pub fn images_of(&self, row: &Row) -> u64 {
        match row.method.training.as_ref().and_then(|training| training.from_scratch) {
            Some(published) => published.min(self.pretraining.images + self.images),
            None => self.images,
        }
    }

    /// Whole iterations of the row's training.
    pub fn iterations(&self, row: &Row) -> u64 {
        self.images_of(row).div_ceil(self.batch as u64)
    }

    /// Noise levels of the pre-training that `start` names.
    pub fn pretraining_levels(&self, start: Initialization) -> Levels {
        match start {
            Initialization::SingleLevel => Levels::Fixed(self.one_step.sigma_init as f32),
            Initialization::MultiLevel(_) | Initialization::Random => self.pretraining.levels,
        }
    }
}
