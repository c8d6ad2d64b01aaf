//! Generator and critic of Diffusion-GAN: StyleGAN2's networks here, or those of the paper.

use super::chain::Chain;
use super::{DiffGanSettings, DiffusionGan};
use crate::method::{Sampler, Setup};
use crate::network::params::{Arrays, Source};
use crate::network::stylegan2::{Config, Discriminator, Generator};
use crate::network::unet;
use crate::train::batch::Batch;
use crate::train::net::Net;
use candle_core::{Result, Tensor};

/// Images (B, C, H, W) as a critic sees them: x_t after `t` steps, with factor `signal` of the
/// image and standard deviation `noise`, each (B).
pub struct Diffused {
    pub x: Tensor,
    pub t: Vec<f32>,
    pub signal: Vec<f32>,
    pub noise: Vec<f32>,
}

impl Diffused {
    /// Describes images `x` (B, C, H, W) after `t` steps (B) of `chain`.
    pub fn new(x: Tensor, chain: &Chain, t: &[usize]) -> Diffused {
        let (signal, noise) = (chain.signal(t), chain.noise(t));
        Diffused { x, t: t.iter().map(|t| *t as f32).collect(), signal, noise }
    }

    /// Replaces the images.
    pub fn with(&self, x: Tensor) -> Diffused {
        Diffused { x, t: self.t.clone(), signal: self.signal.clone(), noise: self.noise.clone() }
    }
}

/// A pair of generator and critic, and how to call them.
pub trait Architecture {
    type Generator;
    type Critic;

    /// Generates images; the batch draws their latents under names that begin with `step`.
    fn generate(&self, generator: &Self::Generator, b: &Batch, step: &str) -> Result<Tensor>;

    /// Computes logits (B), positive for data.
    fn logits(&self, critic: &Self::Critic, diffused: &Diffused) -> Result<Tensor>;

    /// Computes the derivatives of the logits along `dx`; their gradients for the parameters are
    /// exact.
    fn jvp(&self, critic: &Self::Critic, diffused: &Diffused, dx: &Tensor) -> Result<Tensor>;
}

/// The networks of StyleGAN2.
pub struct StyleGan {
    /// Length of z.
    pub latent: usize,
}

impl Architecture for StyleGan {
    type Generator = Generator;
    type Critic = Discriminator;

    fn generate(&self, generator: &Generator, b: &Batch, step: &str) -> Result<Tensor> {
        let z = b.normal_of(&format!("{step}.z"), (self.latent, 1, 1))?.flatten_from(1)?;
        let noise = generator.noise_sizes().into_iter().enumerate();
        let noise = noise.map(|(i, size)| b.normal_of(&format!("{step}.map{i}"), (1, size, size)));
        generator.forward(&z, &noise.collect::<Result<Vec<_>>>()?)
    }

    fn logits(&self, critic: &Discriminator, diffused: &Diffused) -> Result<Tensor> {
        critic.forward(&diffused.x, &diffused.t)
    }

    fn jvp(&self, critic: &Discriminator, diffused: &Diffused, dx: &Tensor) -> Result<Tensor> {
        critic.jvp(&diffused.x, dx, &diffused.t)
    }
}

/// Chooses the size of the networks from the scale's U-Net: 512 channels for 32 x 32 pixels, 32 for
/// 16 x 16.
pub fn networks(unet: &unet::Config, group: usize) -> Config {
    let levels = (unet.size / 2).ilog2() as usize;
    Config {
        image_channels: unet.image_channels,
        latent: 4 * unet.model_channels,
        channels: vec![unet.model_channels * unet.size / 8; levels],
        group,
    }
}

/// Interval of the generator's regulariser. This configuration switches the regulariser off, but
/// its correction of the learning rate still applies.
const GENERATOR_EVERY: u64 = 4;

/// The groups of the discriminator's standard deviation stride over the images that it is given, so
/// a batch is never divided.
pub const WHOLE: usize = usize::MAX;

impl StyleGan {
    /// Makes the training with the networks that fit the scale.
    pub fn train(setup: &Setup, settings: &DiffGanSettings) -> Result<DiffusionGan<StyleGan>> {
        StyleGan::of(&networks(setup.network, settings.group), setup, settings)
    }

    /// Makes the training with networks of another size than the scale's.
    pub fn of(config: &Config, setup: &Setup, settings: &DiffGanSettings) -> Result<DiffusionGan<StyleGan>> {
        let (none, device) = (Arrays::new(), setup.compute);
        let cell = |part: &str| format!("{} {part}", setup.cell);
        let (generator_lr, adam) = settings.adam(GENERATOR_EVERY);
        let source = Source { given: &none, drawn: &[""], cell: &cell("generator") };
        let generator = Net::new(device, &source, adam, |vb| Generator::new(config, vb))?
            .with_ema(settings.ema_half_life)?;
        let (lr, adam) = settings.adam(settings.penalty_every);
        let source = Source { given: &none, drawn: &[""], cell: &cell("critic") };
        let critic = Net::new(device, &source, adam, |vb| Discriminator::new(config, vb))?;
        let (generator, critic) = (generator.in_groups(WHOLE), critic.in_groups(WHOLE));
        let architecture = StyleGan { latent: config.latent };
        Ok(DiffusionGan::new(architecture, generator, critic, settings, [generator_lr, lr]))
    }
}

/// A trained generator. Its z is the beginning of an image's first latent, its noise that of the
/// second.
struct StyleGanSampler {
    generator: Generator,
    latent: usize,
}

impl Sampler for StyleGanSampler {
    fn nfe(&self) -> usize {
        1
    }

    fn latents(&self) -> usize {
        2
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        let (images, z) = (z.dim(0)?, z.flatten_from(1)?);
        let mut at = z.dim(1)? / 2;
        let noise = self.generator.noise_sizes().into_iter().map(|size| {
            let map = z.narrow(1, at, size * size)?.contiguous()?.reshape((images, 1, size, size));
            at += size * size;
            map
        });
        let noise = noise.collect::<Result<Vec<_>>>()?;
        self.generator.forward(&z.narrow(1, 0, self.latent)?.contiguous()?, &noise)
    }
}

/// Makes the sampler of the generator with these weights.
pub fn sampler(setup: &Setup, weights: &Arrays) -> Result<Box<dyn Sampler>> {
    let config = networks(setup.network, 1);
    let generator = Generator::load(&config, weights, setup.compute)?;
    Ok(Box::new(StyleGanSampler { generator, latent: config.latent }))
}
