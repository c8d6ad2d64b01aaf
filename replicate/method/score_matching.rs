//! Stage 1, line 1 of both algorithms: pre-training by denoising score matching.

use crate::method::equations::{diffuse, dsm};
use crate::method::noise::Levels;
use crate::network::device::Compute;
use crate::network::params::{Arrays, Source};
use crate::network::unet::{Config, Denoiser};
use crate::settings::{LARGEST_BATCH, MOST_IMAGES, settings};
use crate::train::Method;
use crate::train::adam::LrSchedule::{self, Constant, Cosine};
use crate::train::adam::{AdamConfig, cosine, warmed_up};
use crate::train::augment::Augmentation;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor};

settings! {
    /// Settings of pre-training.
    pub struct Pretraining: "pre-training", "teacher_" {
        /// Length of the pre-training.
        images: u64 = [320, 256_000, 1_000_000, 20_000_000, 200_000_000], 1..=MOST_IMAGES, "images";
        /// Images of one iteration.
        batch: usize = [16, 64, 64, 256, 512], 1..=LARGEST_BATCH, "images";
        /// Learning rate after the warm-up.
        lr: f64 = [2e-3, 2e-3, 2e-3, 1e-3, 1e-3], 0.0..=1e30, "";
        /// Length of the linear warm-up of the learning rate.
        warmup_images: u64 = [64, 6_400, 6_400, 500_000, 10_000_000], 0..=MOST_IMAGES, "images";
        /// Schedule of the learning rate after the warm-up.
        schedule: LrSchedule = [Cosine, Cosine, Cosine, Constant, Constant], .., "";
        /// Adam's decay of the first moment.
        beta1: f64 = [0.9], 0.0..=0.9999, "";
        /// Adam's decay of the second moment.
        beta2: f64 = [0.99, 0.99, 0.99, 0.999, 0.999], 0.0..=0.999999, "";
        /// Adam's epsilon, added to the root of the second moment.
        eps: f64 = [1e-8], 0.0..=1.0, "";
        /// Half-life of the moving average, whose weights are the teacher's.
        ema_half_life: u64 = [22_000, 22_000, 22_000, 500_000, 500_000], 0..=MOST_IMAGES, "images";
        /// Mean of ln sigma.
        p_mean: f64 = [-1.2], -10.0..=10.0, "";
        /// Standard deviation of ln sigma.
        p_std: f64 = [1.2], 0.0..=10.0, "";
        /// Probability of each augmentation.
        augment_p: f64 = [0.0, 0.0, 0.0, 0.12, 0.12], 0.0..=1.0, "";
    }
}

impl Pretraining {
    /// Noise levels of a multi-level pre-training.
    pub fn levels(&self) -> Levels {
        Levels::log_normal(self.p_mean, self.p_std)
    }

    /// Adam of the pre-training.
    pub fn adam(&self) -> AdamConfig {
        AdamConfig { beta1: self.beta1, beta2: self.beta2, eps: self.eps, rectified: false }
    }

    /// Augmentation of the training images.
    pub fn augmentation(&self) -> Augmentation {
        Augmentation { p: self.augment_p }
    }
}

/// Denoising score matching (Eq 3) at `levels`.
pub struct ScoreMatching {
    settings: Pretraining,
    levels: Levels,
    net: Net<Denoiser>,
}

/// Largest microbatch; EDM trains batches of 512 on eight devices.
pub const MICROBATCH: usize = 64;

impl ScoreMatching {
    /// Makes the training with random weights; `cell` is the key of the random streams.
    pub fn new(
        compute: &Compute,
        network: &Config,
        settings: &Pretraining,
        levels: Levels,
        cell: &str,
    ) -> Result<ScoreMatching> {
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell };
        let net = Net::new(compute, &source, settings.adam(), |vb| Denoiser::new(network, vb))?
            .with_ema(settings.ema_half_life)?;
        Ok(ScoreMatching { settings: settings.clone(), levels, net })
    }
}

impl Method for ScoreMatching {
    fn columns(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (s, levels) = (&self.settings, self.levels);
        let decay = match s.schedule {
            Constant => 1.0,
            Cosine => cosine(s.warmup_images, s.images, batch),
        };
        let lr = warmed_up(s.lr, s.warmup_images, batch) * decay;
        self.net.descend(batch, lr, |denoiser, b| {
            let (x0, labels) = b.augment("augment", &b.images("index")?)?;
            let sigma = levels.draw(b, "sigma")?;
            let xt = diffuse(&x0, &sigma, &b.normal("noise")?)?;
            Ok(vec![dsm(&denoiser.forward_train(&xt, &sigma, labels.as_deref(), None)?, &x0, &sigma)?])
        })
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("denoiser", &mut self.net.state)]
    }
}
