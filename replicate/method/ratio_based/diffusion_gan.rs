//! Diffusion-GAN (Wang et al. 2023): a GAN from scratch whose discriminator sees images after
//! some steps of a diffusion, as many as it can bear. What the paper leaves open is as in its
//! code (Zhendong-Wang/Diffusion-GAN at 2ca5e7a, `--cfg cifar --target 0.6 --ts_dist priority`).

use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{class_ratio, softplus};
use crate::method::ratio_based::chain::{Adaptive, Chain};
use crate::method::{Sampler, Setup, Spec, Trained};
use crate::network::params::{Arrays, Source};
use crate::network::stylegan2::{Config, Discriminator, Generator};
use crate::network::{elsewhere, scale_images, unet};
use crate::rng::Draws;
use crate::train::Method;
use crate::train::adam::AdamConfig;
use crate::train::batch::Batch;
use crate::train::net::{Learned, Net};
use candle_core::{Result, Tensor, Var};

pub const SPEC: Spec = Spec {
    name: "diffusion-gan",
    cite: "Wang et al. 2023, arXiv 2206.02262",
    file: file!(),
    fingerprint: None,
    training: Some(Trained {
        build: |setup| Ok(Box::new(DiffusionGan::new(setup, &Settings::PUBLISHED)?)),
        networks: &[
            Network::averaged("generator", Size::Other(|config| Generator::count(&networks(config)))),
            Network::trained("critic", Size::Other(|config| Discriminator::count(&networks(config)))),
        ],
        calls: &[
            Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
            Call { step: 0, network: "critic", pass: Pass::Through, times: 1.0 },
            Call { step: 1, network: "generator", pass: Pass::Forward, times: 1.0 },
            Call { step: 1, network: "critic", pass: Pass::Trained, times: 2.0 },
            // The penalty: the slope, and images and tangents in the place of two passes.
            Call { step: 2, network: "critic", pass: Pass::Through, times: 1.0 / 16.0 },
            Call { step: 2, network: "critic", pass: Pass::Trained, times: 2.0 / 16.0 },
        ],
        from_scratch: Some(50_000_000),
    }),
    nfe: |_| 1,
    settings: &[],
    sampler: |setup, weights| {
        let config = networks(setup.network);
        let generator = Generator::load(&config, weights, setup.device)?;
        Ok(Box::new(Sampled { generator, latent: config.latent }))
    },
};

/// StyleGAN2 as large as the scale's U-Net suggests: 512 channels at 32 x 32 pixels, 32 at
/// 16 x 16.
pub fn networks(unet: &unet::Config) -> Config {
    let levels = (unet.size / 2).ilog2() as usize;
    Config {
        image_channels: unet.image_channels,
        latent: 4 * unet.model_channels,
        channels: vec![unet.model_channels * unet.size / 8; levels],
        group: if unet.size < 32 { 32 } else { 16 },
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Of Adam, before it is corrected for the regulariser's steps.
    pub lr: f64,
    pub beta2: f64,
    /// Weight of the penalty; `None` for no penalty.
    pub gamma: Option<f64>,
    /// The penalty is taken in every so many iterations, as many times as large.
    pub every: u64,
    pub penalty: Penalty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Penalty {
    Exact,
    Approximate,
}

impl Settings {
    pub const PUBLISHED: Settings =
        Settings { lr: 0.0025, beta2: 0.99, gamma: Some(0.01), every: 16, penalty: Penalty::Exact };

    /// Adam of a network whose regulariser takes a step of its own after every `every` others:
    /// as if the `every` and one were one step (StyleGAN2).
    fn adam(&self, every: u64) -> (f64, AdamConfig) {
        let share = every as f64 / (every + 1) as f64;
        let beta2 = libm::pow(self.beta2, share);
        (self.lr * share, AdamConfig { beta1: 0.0, beta2, eps: 1e-8, rectified: false })
    }
}

/// As if the generator had a regulariser, which this configuration switches off.
const GENERATOR_EVERY: u64 = 4;
/// Half-life of the generator's average, in images, and no more than this share of the training.
const HALF_LIFE: u64 = 500_000;
const HALF_LIFE_SHARE: f64 = 0.07;
/// Times that are drawn beside as many zeros.
const TIMES: usize = 32;
/// Size of the differences of the approximate penalty.
const BESIDE: f64 = 0.01;

pub struct DiffusionGan {
    generator: Net<Generator>,
    discriminator: Net<Discriminator>,
    settings: Settings,
    latent: usize,
    rates: [f64; 2],
    adaptive: Adaptive,
    /// Sum of the mean signs of the logits of data since T was last changed, and their number.
    signs: [f64; 2],
}

impl DiffusionGan {
    pub fn new(setup: &Setup, settings: &Settings) -> Result<DiffusionGan> {
        DiffusionGan::of(setup, settings, &networks(setup.network))
    }

    pub fn of(setup: &Setup, settings: &Settings, config: &Config) -> Result<DiffusionGan> {
        let (none, device) = (Arrays::new(), setup.device);
        let cell = |part: &str| format!("{} {part}", setup.cell);
        let (generator_lr, adam) = settings.adam(GENERATOR_EVERY);
        let source = Source { given: &none, drawn: &[""], cell: &cell("generator") };
        let half_life = HALF_LIFE.min((HALF_LIFE_SHARE * setup.images as f64) as u64);
        let generator = Net::new(device, &source, adam, |vb| Generator::new(config, vb))?
            .averaged(half_life)?
            .in_groups(config.group);
        let (lr, adam) = settings.adam(settings.every);
        let source = Source { given: &none, drawn: &[""], cell: &cell("critic") };
        let discriminator = Net::new(device, &source, adam, |vb| Discriminator::new(config, vb))?;
        Ok(DiffusionGan {
            generator,
            discriminator: discriminator.in_groups(config.group),
            settings: settings.clone(),
            latent: config.latent,
            rates: [generator_lr, lr],
            adaptive: Adaptive { p: 0.0 },
            signs: [0.0; 2],
        })
    }

    /// R1's step of its own, and the mean sign of the logits of data.
    fn penalize(&mut self, batch: &Batch, diffusion: &Diffusion, gamma: f64) -> Result<[Tensor; 2]> {
        let Settings { every, penalty, .. } = self.settings;
        let weight = 0.5 * gamma * every as f64;
        let frozen = &self.discriminator.frozen;
        let (gradients, values) = self.discriminator.gradients(batch, |discriminator, b| {
            let seen = diffusion.see(b, "penalty", "real", &real(b)?)?;
            let R1 { size, loss, logits } = match penalty {
                Penalty::Exact => r1(discriminator, frozen, &seen.x, &seen.t, &seen.signal)?,
                Penalty::Approximate => {
                    let beside = scale_images(&b.normal("penalty.beside")?, &seen.signal)?;
                    let beside = (&seen.x + (beside * BESIDE)?)?;
                    let [at, beside] = [&seen.x, &beside].map(|x| discriminator.forward(x, &seen.t));
                    approximate_r1(&at?, &beside?, BESIDE)?
                }
            };
            Ok(vec![(loss * weight)?, (size * weight)?, logits.sign()?.mean_all()?])
        })?;
        self.discriminator.update(batch, gradients, self.rates[1])?;
        let [_, size, sign] = values.try_into().expect("three values");
        Ok([size, sign])
    }
}

impl Method for DiffusionGan {
    fn columns(&self) -> &'static [&'static str] {
        &["critic_loss", "generator_loss", "penalty", "sign_real", "length"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let diffusion = Diffusion::new(batch, self.adaptive.steps())?;
        let (latent, [generator_lr, lr]) = (self.latent, self.rates);

        // Gmain: the logits of samples rise.
        let frozen = &self.discriminator.frozen;
        let generator = self.generator.descend(batch, generator_lr, |generator, b| {
            let fake = generate(generator, latent, b, "generator")?;
            let seen = diffusion.see(b, "generator", "fake", &fake)?;
            Ok(vec![generator_loss(&frozen.forward(&seen.x, &seen.t)?)?])
        })?;

        // Dmain, against the generator as it now is.
        let frozen = &self.generator.frozen;
        let critic = self.discriminator.descend(batch, lr, |discriminator, b| {
            let fake = diffusion.see(b, "critic", "fake", &generate(frozen, latent, b, "critic")?)?;
            let l_fake = discriminator.forward(&fake.x, &fake.t)?;
            let real = diffusion.see(b, "critic", "real", &real(b)?)?;
            let l_real = discriminator.forward(&real.x, &real.t)?;
            Ok(vec![class_ratio(&l_real, &l_fake)?, l_real.detach().sign()?.mean_all()?])
        })?;

        // Dreg, on the same real images.
        let [critic, sign] = critic.try_into().expect("two values");
        let (mut penalty, mut signs) = (sign.zeros_like()?, vec![sign.clone()]);
        if let Some(gamma) = self.settings.gamma.filter(|_| batch.step.is_multiple_of(self.settings.every)) {
            let [size, sign] = self.penalize(batch, &diffusion, gamma)?;
            (penalty, signs) = (size, vec![signs.remove(0), sign]);
        }

        for sign in &signs {
            self.signs[0] += f64::from(sign.to_scalar::<f32>()?);
            self.signs[1] += 1.0;
        }
        if (batch.step + 1).is_multiple_of(Adaptive::EVERY) {
            self.adaptive.update(self.signs[0] / self.signs[1], batch.size);
            self.signs = [0.0; 2];
        }
        let length = Tensor::new(diffusion.chain.steps() as f32, sign.device())?;
        let generator = generator.into_iter().next().expect("a loss");
        Ok(vec![critic, generator, penalty, sign, length])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut Learned)> {
        vec![("generator", &mut self.generator.learned), ("critic", &mut self.discriminator.learned)]
    }

    fn memory(&mut self) -> Vec<(&'static str, &mut f64)> {
        let [signs, passes] = &mut self.signs;
        vec![("p", &mut self.adaptive.p), ("signs", signs), ("passes", passes)]
    }
}

/// Training images, mirrored where the scale augments.
fn real(b: &Batch) -> Result<Tensor> {
    b.mirror("critic.mirror", &b.images("critic.index")?)
}

/// Images of fresh latents and noise.
fn generate(generator: &Generator, latent: usize, b: &Batch, step: &str) -> Result<Tensor> {
    let z = b.normal_of(&format!("{step}.z"), (latent, 1, 1))?.flatten_from(1)?;
    let noise = generator.noise_sizes().into_iter().enumerate();
    let noise = noise.map(|(i, size)| b.normal_of(&format!("{step}.map{i}"), (1, size, size)));
    generator.forward(&z, &noise.collect::<Result<Vec<_>>>()?)
}

/// A trained generator. Of an image's latents it takes the first for z and the others for its
/// noise, and begins again where there are not enough: at 32 x 32 pixels for the last 144.
struct Sampled {
    generator: Generator,
    latent: usize,
}

impl Sampler for Sampled {
    fn nfe(&self) -> usize {
        1
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        let images = z.dim(0)?;
        let z = z.flatten_from(1)?;
        let (z, mut at) = (Tensor::cat(&[&z, &z], 1)?, self.latent);
        let noise = self.generator.noise_sizes().into_iter().map(|size| {
            let map = z.narrow(1, at, size * size)?.contiguous()?.reshape((images, 1, size, size));
            at += size * size;
            map
        });
        let noise = noise.collect::<Result<Vec<_>>>()?;
        self.generator.forward(&z.narrow(1, 0, self.latent)?.contiguous()?, &noise)
    }
}

/// How the images of an iteration are diffused.
struct Diffusion {
    chain: Chain,
    times: Vec<usize>,
}

/// Images as the discriminator sees them.
struct Seen {
    x: Tensor,
    t: Vec<f32>,
    signal: Vec<f32>,
}

impl Diffusion {
    /// The times are drawn anew when T may change.
    fn new(batch: &Batch, steps: usize) -> Result<Diffusion> {
        let chain = Chain::new(steps);
        let u = batch.common("times", Adaptive::EVERY, TIMES, Draws::uniform)?;
        let times = chain.times(&u.into_iter().map(f64::from).collect::<Vec<_>>());
        Ok(Diffusion { chain, times })
    }

    /// `x`, which are `of` data or samples, each after a time of its own.
    fn see(&self, b: &Batch, step: &str, of: &str, x: &Tensor) -> Result<Seen> {
        let u = b.each(&format!("{step}.t_{of}"), Draws::uniform)?;
        let t: Vec<usize> = u.iter().map(|u| self.times[(u * self.times.len() as f32) as usize]).collect();
        let x = self.chain.diffuse(x, &t, &b.normal(&format!("{step}.noise_{of}"))?)?;
        Ok(Seen { x, signal: self.chain.signal(&t), t: t.into_iter().map(|t| t as f32).collect() })
    }
}

/// What the generator minimises: mean softplus(-l) of the logits of its images.
pub fn generator_loss(fake: &Tensor) -> Result<Tensor> {
    softplus(&fake.neg()?)?.mean_all()
}

/// The gradient penalty R1 of the logits of data (Mescheder et al. 2018).
pub struct R1 {
    /// The mean over images of |grad l|^2, with respect to the image before its diffusion and l
    /// the sum of all logits.
    pub size: Tensor,
    /// Its gradient with respect to the parameters is that of `size`; its value is twice as
    /// large.
    pub loss: Tensor,
    /// Without gradients.
    pub logits: Tensor,
}

/// R1 of images `x` (B, C, H, W) that were diffused for `t` steps (B), which took `signal` (B)
/// of each; `frozen` is the discriminator without gradients.
///
/// With v = grad l held constant, |grad l|^2 has twice the gradient of <v, grad l>, which is
/// the derivative of l along v: no second derivative is needed.
pub fn r1(
    discriminator: &Discriminator,
    frozen: &Discriminator,
    x: &Tensor,
    t: &[f32],
    signal: &[f32],
) -> Result<R1> {
    let images = x.dim(0)? as f64;
    let x = Var::from_tensor(&x.detach())?;
    let logits = frozen.forward(&x, t)?;
    let Some(slope) = elsewhere::gradients(&logits.sum_all()?)?.remove(&x) else {
        candle_core::bail!("the logits do not depend on the images")
    };
    // From the diffused image to the image, and of a step along it back to the diffused one.
    let v = scale_images(&slope.detach(), signal)?;
    let along = discriminator.along(&x.detach(), &scale_images(&v, signal)?, t)?;
    let (size, loss) = ((v.sqr()?.sum_all()? / images)?, (along.sum_all()? * (2.0 / images))?);
    Ok(R1 { size, loss, logits: logits.detach() })
}

/// What is taken for R1 where the derivative is not (Lin et al. 2025): the mean squared
/// difference of the logits of images and of the same images `sigma` beside, over sigma^2.
pub fn approximate_r1(logits: &Tensor, beside: &Tensor, sigma: f64) -> Result<R1> {
    let size = ((logits - beside)?.sqr()?.mean_all()? / (sigma * sigma))?;
    Ok(R1 { loss: size.clone(), size, logits: logits.detach() })
}
