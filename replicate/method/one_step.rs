//! The one-step generator g(z) = D(sigma_init z; sigma_init), its settings and its training.

use crate::method::noise::{GeneratorLevels, Levels, SID_SHARE, Weight};
use crate::method::{NetworkInit, Sampler, Setup};
use crate::network::params::{Arrays, Source};
use crate::network::unet::{CRITIC_HEAD, Critic, Denoiser};
use crate::settings::{MOST_IMAGES, settings};
use crate::train::adam::AdamConfig;
use crate::train::augment::Augmentation;
use crate::train::batch::Batch;
use crate::train::net::Net;
use candle_core::{Result, Tensor};

settings! {
    /// Settings of a one-step training. A method lists those that it reads.
    pub struct OneStep: "one-step training", "" {
        /// Noise level of the generator's input: g(z) = D(sigma_init z; sigma_init).
        sigma_init: f64 = [2.5], 1e-3..=1e3, "";
        /// Mean of ln sigma in the steps of critic and generator.
        p_mean: f64 = [-1.2], -10.0..=10.0, "";
        /// Standard deviation of ln sigma in the steps of critic and generator.
        p_std: f64 = [1.2], 0.0..=10.0, "";
        /// Noise levels of the generator's step; karras is uniform in sigma^(1/7) over the lower
        /// 0.8 of the way from 0.002 to 80.
        generator_levels: GeneratorLevels = [GeneratorLevels::LogNormal], .., "";
        /// Weight w(t) of the generator's loss.
        weight: Weight = [Weight::SigmaSquared], .., "";
        /// Steps of the critic, or of the fake score, before each step of the generator.
        critic_steps: usize = [1], 1..=1000, "";
        /// Dropout probability in the blocks of the generator, and of the critic or fake score,
        /// each in its own step.
        dropout: f64 = [0.0], 0.0..=0.99, "", Silent("Off; 0.13 with EDM, SiD and Diff-Instruct");
        /// Initialisation of the generator; `row` is that of its row.
        generator_start: NetworkInit = [NetworkInit::Row], .., "", Silent("Table 2 changes the start of both networks at once");
        /// Initialisation of the critic's encoder, or of the fake score; `row` is that of its row.
        critic_start: NetworkInit = [NetworkInit::Row], .., "", Silent("Table 2 changes the start of both networks at once");
        /// Learning rate of the generator.
        generator_lr: f64 = [2e-3, 5e-5, 5e-5, 5e-5, 1e-5], 0.0..=1e30, "";
        /// Learning rate of the critic, or of the fake score.
        critic_lr: f64 = [2e-3, 1e-3, 1e-3, 5e-5, 1e-5], 0.0..=1e30, "";
        /// Adam's decay of the first moment, for all networks.
        beta1: f64 = [0.0], 0.0..=0.9999, "";
        /// Adam's decay of the second moment, for all networks.
        beta2: f64 = [0.99, 0.99, 0.99, 0.999, 0.999], 0.0..=0.999999, "";
        /// Adam's epsilon, added to the root of the second moment.
        eps: f64 = [1e-8], 0.0..=1.0, "";
        /// Half-life of the generator's moving average.
        ema_half_life: u64 = [4_400, 4_400, 22_000, 500_000, 500_000], 0..=MOST_IMAGES, "images";
        /// Probability of each augmentation of the images that the critic sees.
        augment_p: f64 = [0.0, 0.0, 0.0, 0.12, 0.12], 0.0..=1.0, "";
    }
}

impl OneStep {
    /// Noise levels of the critic's step.
    pub fn levels(&self) -> Levels {
        Levels::log_normal(self.p_mean, self.p_std)
    }

    /// Noise levels of the generator's step.
    pub fn generator_levels(&self) -> Levels {
        match self.generator_levels {
            GeneratorLevels::LogNormal => self.levels(),
            GeneratorLevels::Karras => Levels::Karras { share: SID_SHARE },
        }
    }

    /// Adam of all networks.
    pub fn adam(&self) -> AdamConfig {
        AdamConfig { beta1: self.beta1, beta2: self.beta2, eps: self.eps, rectified: false }
    }

    /// Augmentation of the images that the critic sees.
    pub fn augmentation(&self) -> Augmentation {
        Augmentation { p: self.augment_p }
    }
}

/// Computes g(z) = D(sigma_init z; sigma_init), images (B, C, H, W), from latents z of the same
/// shape.
pub fn one_step(denoiser: &Denoiser, z: &Tensor, sigma_init: f64) -> Result<Tensor> {
    denoiser.forward(&(z * sigma_init)?, &vec![sigma_init as f32; z.dim(0)?])
}

/// The generator in training, with its average.
pub struct Generator {
    pub net: Net<Denoiser>,
    sigma_init: f64,
    lr: f64,
    dropout: f64,
}

impl Generator {
    /// Line 2 of both algorithms: the generator starts from the pre-trained weights, from another
    /// row's generator, or from random weights.
    pub fn new(setup: &Setup) -> Result<Generator> {
        let s = setup.settings;
        let net = denoiser(setup, "generator", setup.initial.generator)?.with_ema(s.ema_half_life)?;
        Ok(Generator { net, sigma_init: s.sigma_init, lr: s.generator_lr, dropout: s.dropout })
    }

    /// Keeps every `images` consecutive images of a batch in one microbatch.
    pub fn in_groups(mut self, images: usize) -> Generator {
        self.net = self.net.in_groups(images);
        self
    }

    /// Generates images without gradients.
    pub fn frozen(&self, z: &Tensor) -> Result<Tensor> {
        one_step(&self.net.frozen, z, self.sigma_init)
    }

    /// Lines 5 and 6: takes one step on `loss`, a function of generated images.
    pub fn descend(
        &mut self,
        batch: &Batch,
        loss: impl Fn(&Tensor, &Batch) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let values = self.follow(batch, true, |x0, b| Ok(vec![loss(x0, b)?]))?;
        Ok(values.into_iter().next().expect("a loss"))
    }

    /// Takes one step on the first of several values. If `moves` is false, neither the generator
    /// nor its average changes.
    pub fn follow(
        &mut self,
        batch: &Batch,
        moves: bool,
        values: impl Fn(&Tensor, &Batch) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let (sigma, p) = (self.sigma_init, self.dropout);
        let (gradients, values) = self.net.gradients(batch, |denoiser, b| {
            let (z, masks) =
                (b.normal("generator.z")?, b.dropout("generator.dropout", p, &denoiser.dropout_shapes())?);
            let levels = vec![sigma as f32; b.len()];
            values(&denoiser.forward_train(&(z * sigma)?, &levels, None, masks.as_ref())?, b)
        })?;
        if moves {
            self.net.update(batch, gradients, self.lr)?;
        }
        Ok(values)
    }
}

/// Makes a U-Net for training, with the weights `start` or with random weights from the streams of
/// `part`.
pub fn denoiser(setup: &Setup, part: &str, start: Option<&Arrays>) -> Result<Net<Denoiser>> {
    let (none, cell) = (Arrays::new(), format!("{} {part}", setup.cell));
    let drawn: &[&str] = if start.is_some() { &[] } else { &[""] };
    let source = Source { given: start.unwrap_or(&none), drawn, cell: &cell };
    Net::new(setup.compute, &source, setup.settings.adam(), |vb| Denoiser::new(setup.network, vb))
}

/// Makes the critic for training. Its encoder starts as set, or with random weights; its head is
/// drawn.
pub fn critic(setup: &Setup) -> Result<Net<Critic>> {
    let (none, cell) = (Arrays::new(), format!("{} critic", setup.cell));
    let drawn: &[&str] = if setup.initial.critic.is_some() { &[CRITIC_HEAD] } else { &[""] };
    let source = Source { given: setup.initial.critic.unwrap_or(&none), drawn, cell: &cell };
    Net::new(setup.compute, &source, setup.settings.adam(), |vb| Critic::new(setup.network, vb))
}

/// A trained one-step generator.
struct OneStepSampler {
    denoiser: Denoiser,
    sigma_init: f64,
}

impl Sampler for OneStepSampler {
    fn nfe(&self) -> usize {
        1
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        one_step(&self.denoiser, z, self.sigma_init)
    }
}

/// Makes the sampler of the generator with these weights.
pub fn sampler(setup: &Setup, weights: &Arrays) -> Result<Box<dyn Sampler>> {
    let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
    Ok(Box::new(OneStepSampler { denoiser, sigma_init: setup.settings.sigma_init }))
}
