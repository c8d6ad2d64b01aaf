//! Score identity distillation (SiD, Zhou et al. 2024, arXiv 2404.04057). As in Diff-Instruct a
//! fake score is trained online, but the generator's loss is differentiated through both scores.
//! With an adversary (SiDA, Zhou et al. 2024, arXiv 2410.14919), the encoder of the fake score is
//! also the discriminator and has no parameters of its own. Details that the papers leave open
//! follow their code (mingyuanzhou/SiD at 01fbb13 and a5510fd). Rows SiD, SiDA and SiD²A; the
//! generator of SiD²A starts from that of SiD.
//!
//! At the paper scale, an iteration costs 11 (SiD) or 12 (SiDA) forward passes of the U-Net for
//! each image, against 6.6 for DiJS: the generator's step differentiates two whole networks, and
//! the other step one.

use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{class_ratio, diffuse, dsm, softplus};
use crate::method::noise::{Levels, edm_weight};
use crate::method::one_step::{self, Generator, OneStep, denoiser};
use crate::method::{Build, FirstStage, Setup, Spec, TrainingSpec};
use crate::network::unet::Denoiser;
use crate::settings::{LARGEST_BATCH, MOST_IMAGES, Overrides, Setting, Settings, settings};
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor, bail};

settings! {
    /// Settings of SiD.
    pub struct SidSettings: "sid", "sid_" {
        /// Factor alpha of the squared distance between the scores, which the loss subtracts.
        alpha: f64 = [1.0], 0.0..=2.0, "";
        /// Highest noise level of the generator's step, measured in sigma^(1/7) from 0.002.
        t_max: f64 = [0.8], 0.0..=1.0, "of the way to 80";
    }
}

settings! {
    /// Settings of the adversarial SiD, beside those of SiD.
    pub struct SidaSettings: "sid", "sida_" {
        /// Images whose logits and weights are averaged together, so that each weight applies to
        /// its whole group.
        group: usize = [32], 1..=LARGEST_BATCH, "images";
        /// Bound of each element of the fake score's gradient, for losses that are sums over
        /// pixels.
        clip: f64 = [1.0], 0.0..=1e30, "";
        /// Weight of the discriminator's loss, which the fake score minimises as well.
        discriminator: f64 = [1.0], 0.0..=1e6, "";
        /// Weight of the generator's adversarial loss for each pixel.
        adversary: f64 = [0.01], 0.0..=1e6, "";
        /// Images after which the generator starts to change; unless set by hand, at most a
        /// thirtieth of the training.
        generator_from: u64 = [100_000], 0..=MOST_IMAGES, "images";
        /// Images after which the generator has an adversarial loss; unless set by hand, at most a
        /// fifteenth of the training.
        adversary_from: u64 = [200_000], 0..=MOST_IMAGES, "images";
    }
}

impl SidaSettings {
    /// Returns the settings in a training of `overrides.images`.
    fn of(overrides: &Overrides) -> SidaSettings {
        let s = SidaSettings::with(overrides);
        let at_most = |name: &str, preset: u64, part: u64| {
            overrides.at_most(&format!("sida_{name}"), preset, overrides.images / part)
        };
        SidaSettings {
            generator_from: at_most("generator_from", s.generator_from, 30),
            adversary_from: at_most("adversary_from", s.adversary_from, 15),
            ..s
        }
    }

    fn listed_of(overrides: &Overrides) -> Vec<Setting> {
        SidaSettings::of(overrides).list()
    }
}

/// Score identity distillation.
pub const SID: Spec = Spec {
    cite: "Zhou et al. 2024, arXiv 2404.04057",
    settings: &[shared, SidSettings::listed],
    ..spec("sid", |s| Ok(Box::new(Sid::new(s)?)), &[GENERATOR, TEACHER, FAKE], &CALLS, |_| 1)
};

/// SiD with a Diffusion-GAN discriminator in the fake score's encoder.
pub const SIDA: Spec = Spec {
    cite: "Zhou et al. 2024, arXiv 2410.14919",
    settings: &[shared, SidSettings::listed, SidaSettings::listed_of],
    ..spec(
        "sida",
        |s| Ok(Box::new(Sid::adversarial(s)?)),
        &[GENERATOR, TEACHER, FAKE, ENCODER],
        &[CALLS[0], CALLS[1], DATA, CALLS[2], CALLS[3], CALLS[4]],
        |overrides| SidaSettings::with(overrides).group,
    )
};

/// SiD's published generator, which was trained with alpha 1.2.
pub const FIRST_STAGE: FirstStage = FirstStage { row: "sid", published: 403_968_000 };

const fn spec(
    name: &'static str,
    build: Build,
    networks: &'static [Network],
    calls: &'static [Call],
    group: fn(&Overrides) -> usize,
) -> Spec {
    let training = Some(TrainingSpec { build, networks, calls, from_scratch: None, at_most: None, group });
    let sampler = one_step::sampler;
    Spec { name, cite: "", file: file!(), fingerprint: None, training, nfe: |_| 1, settings: &[], sampler }
}

/// Lists the settings shared with every one-step training, except the weight of the loss and the
/// levels of the generator's step, which SiD has of its own.
fn shared(overrides: &Overrides) -> Vec<Setting> {
    OneStep::except(overrides, &["weight", "generator_levels"])
}

const GENERATOR: Network = Network::averaged("generator", Size::Denoiser);
const TEACHER: Network = Network::frozen("teacher", Size::Denoiser);
const FAKE: Network = Network::trained("fake", Size::Denoiser);
const ENCODER: Network = Network::part("encoder", Size::Critic);

const CALLS: [Call; 5] = [
    Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
    Call { step: 0, network: "fake", pass: Pass::Trained, times: 1.0 },
    Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
    Call { step: 1, network: "fake", pass: Pass::Through, times: 1.0 },
    Call { step: 1, network: "teacher", pass: Pass::Through, times: 1.0 },
];
/// The discriminator on training images.
const DATA: Call = Call { step: 0, network: "encoder", pass: Pass::Trained, times: 1.0 };

/// The authors' factor of the generator's loss. Adam is invariant to it except for epsilon.
const SCALE: f64 = 100.0;
/// Lower bound of an image's mean distance from the teacher's estimate.
const LEAST: f64 = 1e-5;
/// Bound of the logits; beyond it the generator gets no gradient.
const LARGEST_LOGIT: f64 = 10.0;

/// Computes EDM's denoising loss: sums over pixels, averaged over images.
pub fn fake_score(denoised: &Tensor, x0: &Tensor, sigma: &[f32]) -> Result<Tensor> {
    dsm(denoised, x0, sigma)? * pixels(x0)
}

/// Returns the inverse of each image's mean distance from the teacher's estimate (B), without a
/// gradient.
pub fn weight(x0: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let distance = (x0.detach() - teacher.detach())?.abs()?;
    distance.flatten_from(1)?.mean(1)?.maximum(LEAST)?.recip()
}

/// Computes each image's loss (B): 100 w sum (t - q) ((t - x_0) - alpha (t - q)), with the
/// estimates t of the teacher and q of the fake score, and [`weight`] w. The loss can be negative;
/// it oscillates about 0.
pub fn sid_loss(x0: &Tensor, teacher: &Tensor, fake: &Tensor, alpha: f64) -> Result<Tensor> {
    let difference = (teacher - fake)?;
    let error = ((teacher - x0)? - (&difference * alpha)?)?;
    ((difference * error)?.flatten_from(1)?.sum(1)? * weight(x0, teacher)?)? * SCALE
}

/// Computes each image's part (B) of the discriminator's cross-entropy from logits (B, H, W),
/// positive for data. The cross-entropy is averaged over a group before the weights of its images
/// are applied.
pub fn discriminator_loss(real: &Tensor, fake: &Tensor, sigma: &[f32], group: usize) -> Result<Tensor> {
    let weight: Vec<f32> = sigma.iter().map(|sigma| edm_weight(*sigma)).collect();
    let weight = Tensor::from_vec(weight, sigma.len(), real.device())?;
    in_groups(&weight, group, |first, n| {
        class_ratio(&real.narrow(0, first, n)?, &fake.narrow(0, first, n)?)? * 0.5
    })
}

/// Computes each image's part (B) of the generator's adversarial loss for each pixel: the mean over
/// its group of softplus(-l), for the logits l (B, H, W), times [`weight`] w.
pub fn adversarial_loss(logits: &Tensor, weight: &Tensor, group: usize) -> Result<Tensor> {
    let logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)?;
    in_groups(weight, group, |first, n| softplus(&logits.narrow(0, first, n)?.neg()?)?.mean_all())
}

/// Multiplies each image's weight (B) by the value of its group of consecutive images.
fn in_groups(
    weight: &Tensor,
    group: usize,
    value: impl Fn(usize, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let images = weight.dim(0)?;
    let shares = (0..images).step_by(group).map(|first| {
        let n = group.min(images - first);
        weight.narrow(0, first, n)?.broadcast_mul(&value(first, n)?)
    });
    Tensor::cat(&shares.collect::<Result<Vec<_>>>()?, 0)
}

/// Returns the number of values of an image.
fn pixels(x0: &Tensor) -> f64 {
    (x0.elem_count() / x0.dims()[0]) as f64
}

struct Sid {
    generator: Generator,
    fake: Net<Denoiser>,
    teacher: Denoiser,
    levels: Levels,
    fake_lr: f64,
    fake_steps: usize,
    /// Of the fake score, in its own steps.
    dropout: f64,
    settings: SidSettings,
    adversary: Option<SidaSettings>,
}

impl Sid {
    /// All three networks start from the teacher's weights.
    ///
    /// # Errors
    /// If the row has no weights, because then there is no teacher.
    fn new(setup: &Setup) -> Result<Sid> {
        let Some(weights) = setup.initial.row else {
            bail!("SiD needs a teacher: it cannot start from random weights")
        };
        let s = setup.settings;
        Ok(Sid {
            generator: Generator::new(setup)?,
            fake: denoiser(setup, "fake score", setup.initial.critic)?,
            teacher: Denoiser::load(setup.network, weights, setup.compute)?,
            levels: s.levels(),
            fake_lr: s.critic_lr,
            fake_steps: s.critic_steps,
            dropout: s.dropout,
            settings: setup.own(),
            adversary: None,
        })
    }

    /// # Errors
    /// As [`Sid::new`].
    fn adversarial(setup: &Setup) -> Result<Sid> {
        let s = SidaSettings::of(&Overrides { images: setup.images, ..setup.overrides.clone() });
        let sid = Sid::new(setup)?;
        Ok(Sid {
            generator: sid.generator.in_groups(s.group),
            fake: sid.fake.in_groups(s.group).clipped(s.clip),
            adversary: Some(s),
            ..sid
        })
    }
}

impl Method for Sid {
    fn columns(&self) -> &'static [&'static str] {
        match self.adversary {
            None => &["fake_score_loss", "generator_loss"],
            Some(_) => &["fake_score_loss", "discriminator_loss", "generator_sid_loss", "generator_gan_loss"],
        }
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (levels, teacher, generator) = (self.levels, &self.teacher, &self.generator);
        let (settings, adversary, p) = (&self.settings, self.adversary.as_ref(), self.dropout);

        // Trains the fake score to denoise generated images, and its encoder to recognise them.
        let mut values = self.fake.descend_times(self.fake_steps, batch, self.fake_lr, |fake, b| {
            let (sigma, noise) = (levels.draw(b, "critic.sigma")?, b.normal("critic.noise_fake")?);
            let (x0, labels) =
                b.augment("critic.augment_fake", &generator.frozen(&b.normal("critic.z")?)?)?;
            let xt = diffuse(&x0, &sigma, &noise)?;
            let masks = b.dropout("critic.dropout_fake", p, &fake.dropout_shapes())?;
            let Some(s) = adversary else {
                let denoised = fake.forward_train(&xt, &sigma, labels.as_deref(), masks.as_ref())?;
                return Ok(vec![fake_score(&denoised, &x0, &sigma)?]);
            };
            let (denoised, l_fake) = fake.with_features(&xt, &sigma, labels.as_deref(), masks.as_ref())?;
            let (real, labels) = b.augment("critic.augment_real", &b.images("critic.index")?)?;
            let masks = b.dropout("critic.dropout_real", p, fake.encoder_dropout_shapes())?;
            let real = diffuse(&real, &sigma, &noise)?;
            let l_real = fake.features(&real, &sigma, labels.as_deref(), masks.as_ref())?;
            let score = fake_score(&denoised, &x0, &sigma)?;
            let discriminator = discriminator_loss(&l_real, &l_fake, &sigma, s.group)?.mean_all()?;
            Ok(vec![(&score + (&discriminator * s.discriminator)?)?, score, discriminator])
        })?;

        // The gradient reaches x_0 directly, and through x_t and both networks.
        let fake = &self.fake.frozen;
        let generator_levels = Levels::Karras { share: settings.t_max };
        let passed = |from: fn(&SidaSettings) -> u64| {
            adversary.is_none_or(|s| from(s) == 0 || batch.images_before() > from(s))
        };
        let (moves, adversarial) = (passed(|s| s.generator_from), passed(|s| s.adversary_from));
        let generator = self.generator.follow(batch, moves, |x0, b| {
            let sigma = generator_levels.draw(b, "generator.sigma")?;
            let xt = diffuse(x0, &sigma, &b.normal("generator.noise")?)?;
            let t = teacher.forward(&xt, &sigma)?;
            let Some(s) = adversary else {
                let q = fake.forward(&xt, &sigma)?;
                return Ok(vec![sid_loss(x0, &t, &q, settings.alpha)?.mean_all()?]);
            };
            let (q, logits) = fake.with_features(&xt, &sigma, None, None)?;
            let sid = sid_loss(x0, &t, &q, settings.alpha)?.mean_all()?;
            let gan = (adversarial_loss(&logits, &weight(x0, &t)?, s.group)?.mean_all()?
                * (s.adversary * pixels(x0)))?;
            let loss = if adversarial { ((&sid + &gan)? * 0.5)? } else { sid.clone() };
            Ok(vec![loss, sid, gan])
        })?;

        // With an adversary, the first value is the total loss.
        let watched = usize::from(adversary.is_some());
        values.drain(..watched);
        values.extend(generator.into_iter().skip(watched));
        Ok(values)
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.generator.net.state), ("fake", &mut self.fake.state)]
    }
}
