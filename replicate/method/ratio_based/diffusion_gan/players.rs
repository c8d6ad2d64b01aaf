//! Who plays: StyleGAN2's networks, and those of the paper.

use super::chain::Chain;
use super::{DiffGan, DiffusionGan};
use crate::method::{Sampler, Setup};
use crate::network::params::{Arrays, Source};
use crate::network::stylegan2::{Config, Discriminator, Generator};
use crate::network::unet;
use crate::train::batch::Batch;
use crate::train::net::Net;
use candle_core::{Result, Tensor};

/// Images (B, C, H, W) as a critic sees them: x_t, after `t` steps that took `signal` of the
/// image and brought `noise`, each (B).
pub struct Seen {
    pub x: Tensor,
    pub t: Vec<f32>,
    pub signal: Vec<f32>,
    pub noise: Vec<f32>,
}

impl Seen {
    pub fn new(x: Tensor, chain: &Chain, t: &[usize]) -> Seen {
        let (signal, noise) = (chain.signal(t), chain.noise(t));
        Seen { x, t: t.iter().map(|t| *t as f32).collect(), signal, noise }
    }

    /// The same of other images.
    pub fn with(&self, x: Tensor) -> Seen {
        Seen { x, t: self.t.clone(), signal: self.signal.clone(), noise: self.noise.clone() }
    }
}

/// A generator and a critic, and how each is asked.
pub trait Players {
    type Generator;
    type Critic;

    /// Images of what the batch draws under names that begin with `step`.
    fn generate(&self, generator: &Self::Generator, b: &Batch, step: &str) -> Result<Tensor>;

    /// Logits (B), positive for data.
    fn logits(&self, critic: &Self::Critic, seen: &Seen) -> Result<Tensor>;

    /// Their derivatives along `dx`, whose gradients with respect to the parameters are exact.
    fn along(&self, critic: &Self::Critic, seen: &Seen, dx: &Tensor) -> Result<Tensor>;
}

/// StyleGAN2's.
pub struct StyleGan {
    /// Length of z.
    pub latent: usize,
}

impl Players for StyleGan {
    type Generator = Generator;
    type Critic = Discriminator;

    fn generate(&self, generator: &Generator, b: &Batch, step: &str) -> Result<Tensor> {
        let z = b.normal_of(&format!("{step}.z"), (self.latent, 1, 1))?.flatten_from(1)?;
        let noise = generator.noise_sizes().into_iter().enumerate();
        let noise = noise.map(|(i, size)| b.normal_of(&format!("{step}.map{i}"), (1, size, size)));
        generator.forward(&z, &noise.collect::<Result<Vec<_>>>()?)
    }

    fn logits(&self, critic: &Discriminator, seen: &Seen) -> Result<Tensor> {
        critic.forward(&seen.x, &seen.t)
    }

    fn along(&self, critic: &Discriminator, seen: &Seen, dx: &Tensor) -> Result<Tensor> {
        critic.along(&seen.x, dx, &seen.t)
    }
}

/// As large as the scale's U-Net suggests: 512 channels at 32 x 32 pixels, 32 at 16 x 16.
pub fn networks(unet: &unet::Config, group: usize) -> Config {
    let levels = (unet.size / 2).ilog2() as usize;
    Config {
        image_channels: unet.image_channels,
        latent: 4 * unet.model_channels,
        channels: vec![unet.model_channels * unet.size / 8; levels],
        group,
    }
}

/// As if the generator had a regulariser, which this configuration switches off.
const GENERATOR_EVERY: u64 = 4;

impl StyleGan {
    pub fn train(setup: &Setup, settings: &DiffGan) -> Result<DiffusionGan<StyleGan>> {
        StyleGan::of(&networks(setup.network, settings.group), setup, settings)
    }

    /// With networks of another size than the scale's.
    pub fn of(config: &Config, setup: &Setup, settings: &DiffGan) -> Result<DiffusionGan<StyleGan>> {
        let (none, device) = (Arrays::new(), setup.device);
        let cell = |part: &str| format!("{} {part}", setup.cell);
        let (generator_lr, adam) = settings.adam(GENERATOR_EVERY);
        let source = Source { given: &none, drawn: &[""], cell: &cell("generator") };
        let generator = Net::new(device, &source, adam, |vb| Generator::new(config, vb))?
            .averaged(settings.ema_half_life)?;
        let (lr, adam) = settings.adam(settings.penalty_every);
        let source = Source { given: &none, drawn: &[""], cell: &cell("critic") };
        let critic = Net::new(device, &source, adam, |vb| Discriminator::new(config, vb))?;
        let (generator, critic) = (generator.in_groups(config.group), critic.in_groups(config.group));
        let players = StyleGan { latent: config.latent };
        Ok(DiffusionGan::new(players, generator, critic, settings, [generator_lr, lr]))
    }
}

/// A trained generator: z begins the first of an image's latents, its noise the second.
struct Sampled {
    generator: Generator,
    latent: usize,
}

impl Sampler for Sampled {
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

/// The generator with these weights.
pub fn sampler(setup: &Setup, weights: &Arrays) -> Result<Box<dyn Sampler>> {
    let config = networks(setup.network, 1);
    let generator = Generator::load(&config, weights, setup.device)?;
    Ok(Box::new(Sampled { generator, latent: config.latent }))
}
