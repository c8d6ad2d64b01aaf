//! Diffusion-GAN (Wang et al. 2023): a GAN without pre-training, whose discriminator sees diffused
//! images. The length of the diffusion adapts to the discriminator. Details that the paper leaves
//! open follow its code (Zhendong-Wang/Diffusion-GAN at 2ca5e7a,
//! `--cfg cifar --target 0.6 --ts_dist priority`).

mod architecture;
pub mod chain;
mod unets;

pub use architecture::{Architecture, Diffused, StyleGan, networks};
pub use unets::{UNETS, UNETS_NO_R1, UNets};

use self::chain::{Adaptive, Chain};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{class_ratio, softplus};
use crate::method::one_step::OneStep;
use crate::method::{Build, Spec, TrainingSpec};
use crate::network::scale_images;
use crate::network::stylegan2::{Discriminator, Generator};
use crate::rng::Draws;
use crate::settings::{Choice, LARGEST_BATCH, MOST_IMAGES, Overrides, Setting, Settings, settings};
use crate::train::Method;
use crate::train::adam::AdamConfig;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor, Var};

/// Images of the published training.
const PUBLISHED_IMAGES: u64 = 50_000_000;

/// Diffusion-GAN as published.
pub const SPEC: Spec = spec("diffusion-gan", CALLS, &[DiffGanSettings::listed, mirrored], |setup| {
    Ok(Box::new(StyleGan::train(setup, &setup.own())?))
});

/// Diffusion-GAN without the gradient penalty.
pub const NO_R1: Spec =
    spec("diffusion-gan without R1", CALLS.split_at(4).0, &[without_penalty, mirrored], |setup| {
        Ok(Box::new(StyleGan::train(setup, &DiffGanSettings { gamma: 0.0, ..setup.own() })?))
    });

/// Diffusion-GAN with differences of logits instead of the gradient.
pub const APPROXIMATE: Spec =
    spec("diffusion-gan, approximate R1", APPROXIMATE_CALLS, &[without_form, mirrored], |setup| {
        Ok(Box::new(StyleGan::train(
            setup,
            &DiffGanSettings { penalty: Penalty::Approximate, ..setup.own() },
        )?))
    });

/// Lists the settings without that of the penalty's form.
fn without_form(overrides: &Overrides) -> Vec<Setting> {
    DiffGanSettings::except(overrides, &["gan_penalty"])
}

/// Lists the settings without those of the penalty. Its interval corrects the learning rate of the
/// discriminator also where there is none.
fn without_penalty(overrides: &Overrides) -> Vec<Setting> {
    DiffGanSettings::except(overrides, &["gan_penalty", "gan_gamma"])
}

/// Lists the settings of the penalty alone.
fn of_penalty(overrides: &Overrides) -> Vec<Setting> {
    DiffGanSettings::named(overrides, &["gan_penalty", "gan_gamma", "gan_penalty_every"])
}

/// Lists the setting that decides if training images are mirrored.
fn mirrored(overrides: &Overrides) -> Vec<Setting> {
    OneStep::named(overrides, &["augment_p"])
}

/// Source file of all variants.
const FILE: &str = file!();

const NETWORKS: &[Network] = &[
    Network::averaged("generator", Size::Other(|config| Generator::count(&networks(config, 1)))),
    Network::trained("critic", Size::Other(|config| Discriminator::count(&networks(config, 1)))),
];

const CALLS: &[Call] = &[
    Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
    Call { step: 0, network: "critic", pass: Pass::Through, times: 1.0 },
    Call { step: 1, network: "generator", pass: Pass::Forward, times: 1.0 },
    Call { step: 1, network: "critic", pass: Pass::Trained, times: 2.0 },
    // The penalty: the slope, then images with tangents, which cost two passes.
    Call { step: 2, network: "critic", pass: Pass::Counted(&Pass::Through, penalties), times: 1.0 },
    Call { step: 2, network: "critic", pass: Pass::Counted(&Pass::Trained, penalties), times: 2.0 },
];

/// The penalty is of the logits of images, and of those beside them.
const APPROXIMATE_CALLS: &[Call] = &[CALLS[0], CALLS[1], CALLS[2], CALLS[3], CALLS[5]];

/// Returns the penalties in an iteration.
fn penalties(overrides: &Overrides) -> f64 {
    let DiffGanSettings { gamma, penalty_every, .. } = DiffGanSettings::with(overrides);
    if gamma > 0.0 { 1.0 / penalty_every as f64 } else { 0.0 }
}

/// A kind of settings that a method lists.
type Listed = fn(&Overrides) -> Vec<Setting>;

const fn spec(name: &'static str, calls: &'static [Call], settings: &'static [Listed], build: Build) -> Spec {
    let training = Some(TrainingSpec {
        build,
        networks: NETWORKS,
        calls,
        from_scratch: Some(PUBLISHED_IMAGES),
        at_most: None,
        group: |_| architecture::WHOLE,
    });
    let cite = "Wang et al. 2023, arXiv 2206.02262";
    Spec {
        name,
        cite,
        file: FILE,
        fingerprint: None,
        training,
        nfe: |_| 1,
        settings,
        sampler: architecture::sampler,
    }
}

settings! {
    /// Settings of Diffusion-GAN.
    pub struct DiffGanSettings: "diffusion_gan", "gan_" {
        /// Learning rate of both networks, before the correction for the penalty's extra steps.
        lr: f64 = [0.0025], 0.0..=1e30, "";
        /// Adam's decay of the second moment, before the same correction.
        beta2: f64 = [0.99], 0.0..=0.999999, "";
        /// Weight of the gradient penalty R1; 0 for none.
        gamma: f64 = [0.01], 0.0..=1e6, "", Silent("The authors' configuration for CIFAR-10");
        /// Iterations from one penalty to the next; the penalty is multiplied by this number.
        penalty_every: u64 = [16], 1..=1_000_000, "iterations", Silent("The authors' code");
        /// Form of the penalty: the exact gradient, or differences of logits.
        penalty: Penalty = [Penalty::Exact], .., "";
        /// Half-life of the generator's moving average.
        ema_half_life: u64 = [100, 20_000, 20_000, 500_000, 500_000], 0..=MOST_IMAGES, "images";
        /// Images in each group for which the discriminator computes a standard deviation.
        group: usize = [32, 32, 32, 16, 16], 1..=LARGEST_BATCH, "images",
            Silent("The authors' 32, and 16 on their four GPUs");
    }
}

/// Form of the gradient penalty R1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Penalty {
    Exact,
    /// Differences of logits.
    Approximate,
}

impl Choice for Penalty {
    const ALL: &'static [(&'static str, Penalty)] =
        &[("exact", Penalty::Exact), ("approximate", Penalty::Approximate)];
}

impl DiffGanSettings {
    /// Returns learning rate and Adam of a network whose regulariser takes an extra step after
    /// every `every` steps, corrected so that these `every` + 1 steps count as `every` (StyleGAN2).
    fn adam(&self, every: u64) -> (f64, AdamConfig) {
        let share = every as f64 / (every + 1) as f64;
        let beta2 = libm::pow(self.beta2, share);
        (self.lr * share, AdamConfig { beta1: 0.0, beta2, eps: 1e-8, rectified: false })
    }
}

/// Times that are drawn; equally many zeros are added.
const TIMES: usize = 32;
/// Size of the differences in the approximate penalty.
const BESIDE: f64 = 0.01;

/// Diffusion-GAN in training.
pub struct DiffusionGan<A: Architecture> {
    architecture: A,
    generator: Net<A::Generator>,
    critic: Net<A::Critic>,
    settings: DiffGanSettings,
    /// Learning rates of the generator and of the critic.
    rates: [f64; 2],
    adaptive: Adaptive,
    /// Sum and number of the mean signs of the logits of data since the last change of T.
    signs: [f64; 2],
}

impl<A: Architecture> DiffusionGan<A> {
    fn new(
        architecture: A,
        generator: Net<A::Generator>,
        critic: Net<A::Critic>,
        settings: &DiffGanSettings,
        rates: [f64; 2],
    ) -> DiffusionGan<A> {
        let (settings, adaptive) = (settings.clone(), Adaptive { p: 0.0 });
        DiffusionGan { architecture, generator, critic, settings, rates, adaptive, signs: [0.0; 2] }
    }

    /// Takes the extra step on R1. Returns the weighted penalty and the mean sign of the logits of
    /// data.
    fn penalize(&mut self, batch: &Batch, diffusion: &Diffusion) -> Result<[Tensor; 2]> {
        let DiffGanSettings { gamma, penalty_every, penalty, .. } = self.settings;
        let weight = 0.5 * gamma * penalty_every as f64;
        let (architecture, frozen) = (&self.architecture, &self.critic.frozen);
        let (gradients, values) = self.critic.gradients(batch, |critic, b| {
            let diffused = diffusion.diffuse(b, "penalty", "real", &real(b)?)?;
            let R1 { size, loss, logits } = match penalty {
                Penalty::Exact => r1(architecture, critic, frozen, &diffused)?,
                Penalty::Approximate => {
                    let beside = scale_images(&b.normal("penalty.beside")?, &diffused.signal)?;
                    let beside = diffused.with((&diffused.x + (beside * BESIDE)?)?);
                    let (at, beside) =
                        (architecture.logits(critic, &diffused)?, architecture.logits(critic, &beside)?);
                    approximate_r1(&at, &beside, BESIDE)?
                }
            };
            Ok(vec![(loss * weight)?, (size * weight)?, logits.sign()?.mean_all()?])
        })?;
        self.critic.update(batch, gradients, self.rates[1])?;
        let [_, size, sign] = values.try_into().expect("three values");
        Ok([size, sign])
    }
}

impl<A: Architecture> Method for DiffusionGan<A> {
    fn columns(&self) -> &'static [&'static str] {
        &["critic_loss", "generator_loss", "penalty", "sign_real", "length"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let diffusion = Diffusion::new(batch, self.adaptive.steps())?;
        let (architecture, [generator_lr, lr]) = (&self.architecture, self.rates);

        // Gmain: raises the logits of generated images.
        let frozen = &self.critic.frozen;
        let generator = self.generator.descend(batch, generator_lr, |generator, b| {
            let fake = architecture.generate(generator, b, "generator")?;
            let diffused = diffusion.diffuse(b, "generator", "fake", &fake)?;
            Ok(vec![generator_loss(&architecture.logits(frozen, &diffused)?)?])
        })?;

        // Dmain, with the updated generator.
        let frozen = &self.generator.frozen;
        let critic = self.critic.descend(batch, lr, |critic, b| {
            let fake = architecture.generate(frozen, b, "critic")?;
            let l_fake = architecture.logits(critic, &diffusion.diffuse(b, "critic", "fake", &fake)?)?;
            let l_real = architecture.logits(critic, &diffusion.diffuse(b, "critic", "real", &real(b)?)?)?;
            Ok(vec![class_ratio(&l_real, &l_fake)?, l_real.detach().sign()?.mean_all()?])
        })?;

        // Dreg, on the same real images.
        let [critic, sign] = critic.try_into().expect("two values");
        let (mut penalty, mut signs) = (sign.zeros_like()?, vec![sign.clone()]);
        if self.settings.gamma > 0.0 && batch.step.is_multiple_of(self.settings.penalty_every) {
            let [size, sign] = self.penalize(batch, &diffusion)?;
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

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.generator.state), ("critic", &mut self.critic.state)]
    }

    fn extra_state(&mut self) -> Vec<(&'static str, &mut f64)> {
        let [signs, passes] = &mut self.signs;
        vec![("p", &mut self.adaptive.p), ("signs", signs), ("passes", passes)]
    }
}

/// Draws training images, mirrored if the scale augments images.
fn real(b: &Batch) -> Result<Tensor> {
    b.mirror("critic.mirror", &b.images("critic.index")?)
}

/// Diffusion of the images of an iteration.
struct Diffusion {
    chain: Chain,
    times: Vec<usize>,
}

impl Diffusion {
    /// Times are drawn anew at the iterations in which T may change.
    fn new(batch: &Batch, steps: usize) -> Result<Diffusion> {
        let chain = Chain::new(steps);
        let u = batch.common("times", Adaptive::EVERY, TIMES, Draws::uniform)?;
        let times = chain.times(&u.into_iter().map(f64::from).collect::<Vec<_>>());
        Ok(Diffusion { chain, times })
    }

    /// Diffuses `x`, each image for a random time. `of` names them in the streams: "real" or
    /// "fake".
    fn diffuse(&self, b: &Batch, step: &str, of: &str, x: &Tensor) -> Result<Diffused> {
        let u = b.each(&format!("{step}.t_{of}"), Draws::uniform)?;
        let t: Vec<usize> = u.iter().map(|u| self.times[(u * self.times.len() as f32) as usize]).collect();
        let x = self.chain.diffuse(x, &t, &b.normal(&format!("{step}.noise_{of}"))?)?;
        Ok(Diffused::new(x, &self.chain, &t))
    }
}

/// The generator's loss: the mean softplus(-l) of the logits (B) of its images.
pub fn generator_loss(fake: &Tensor) -> Result<Tensor> {
    softplus(&fake.neg()?)?.mean_all()
}

/// The gradient penalty R1 of the logits of data (Mescheder et al. 2018).
pub struct R1 {
    /// The mean over images of |grad l|^2. The gradient is with respect to the image before its
    /// diffusion, and l is the sum of all logits.
    pub size: Tensor,
    /// Loss whose gradient with respect to the parameters is that of `size`. Its value is twice as
    /// large.
    pub loss: Tensor,
    /// Logits without gradients.
    pub logits: Tensor,
}

/// Computes R1 at the images `diffused`. `frozen` is the critic without gradients.
///
/// With v = grad l held constant, |grad l|^2 has twice the gradient of <v, grad l>, which is the
/// derivative of l along v. So no second derivative is needed.
pub fn r1<A: Architecture>(
    architecture: &A,
    critic: &A::Critic,
    frozen: &A::Critic,
    diffused: &Diffused,
) -> Result<R1> {
    let images = diffused.x.dim(0)? as f64;
    let x = Var::from_tensor(&diffused.x.detach())?;
    let logits = architecture.logits(frozen, &diffused.with(x.as_tensor().clone()))?;
    let Some(slope) = logits.sum_all()?.backward()?.remove(&x) else {
        candle_core::bail!("the logits do not depend on the images")
    };
    // Chain rule: from the diffused image to the image, and for the step along v back to the
    // diffused image.
    let v = scale_images(&slope.detach(), &diffused.signal)?;
    let along = architecture.jvp(critic, diffused, &scale_images(&v, &diffused.signal)?)?;
    let (size, loss) = ((v.sqr()?.sum_all()? / images)?, (along.sum_all()? * (2.0 / images))?);
    Ok(R1 { size, loss, logits: logits.detach() })
}

/// Approximates R1 without derivatives (Lin et al. 2025): the mean squared difference between the
/// logits (B) of images and of the same images with noise of size `sigma`, divided by sigma^2.
pub fn approximate_r1(logits: &Tensor, beside: &Tensor, sigma: f64) -> Result<R1> {
    let size = ((logits - beside)?.sqr()?.mean_all()? / (sigma * sigma))?;
    Ok(R1 { loss: size.clone(), size, logits: logits.detach() })
}
