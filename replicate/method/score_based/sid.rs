//! Score identity distillation (Zhou et al. 2024, arXiv 2404.04057): a fake score that is
//! trained online, as in Diff-Instruct, but the generator's loss is differentiated through
//! both scores. Row SiD.

use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{diffuse, dsm};
use crate::method::noise::Levels;
use crate::method::one_step::{self, Generator, denoiser};
use crate::method::{Setup, Spec, Trained};
use crate::network::unet::Denoiser;
use crate::settings::{Settings, settings};
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Learned, Net};
use candle_core::{Result, Tensor, bail};

pub const SID: Spec = Spec {
    name: "sid",
    cite: "Zhou et al. 2024, arXiv 2404.04057",
    file: file!(),
    fingerprint: None,
    training: Some(Trained {
        build: |setup| Ok(Box::new(Sid::new(setup)?)),
        networks: &[
            Network::averaged("generator", Size::Denoiser),
            Network::trained("fake", Size::Denoiser),
            Network::frozen("teacher", Size::Denoiser),
        ],
        calls: &[
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
            Call { step: 0, network: "fake", pass: Pass::Trained, times: 1.0 },
            Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
            Call { step: 1, network: "fake", pass: Pass::Through, times: 1.0 },
            Call { step: 1, network: "teacher", pass: Pass::Through, times: 1.0 },
        ],
        from_scratch: None,
    }),
    nfe: |_| 1,
    settings: &[SidSettings::listed],
    sampler: one_step::sampler,
};

settings! {
    pub struct SidSettings: "sid", "sid_" {
        /// Share of the estimated squared distance of the scores that the loss takes off again.
        alpha: f64 = [1.0], 0.0..=2.0, "", Stated("Table 1; the authors' default is 1.2");
        /// Highest noise level of the generator's step, from 0.002 up in the seventh root.
        t_max: f64 = [0.8], 0.0..=1.0, "of the way to 80", Silent("SiD's code: 800 of 1000");
    }
}

/// The authors' factor of the generator's loss. Adam takes it out again, but for its
/// epsilon.
const SCALE: f64 = 100.0;
/// Least mean distance of an image from what the teacher makes of it.
const LEAST: f64 = 1e-5;

/// EDM's denoising loss as a mean over images of sums over pixels.
pub fn fake_score(denoised: &Tensor, x0: &Tensor, sigma: &[f32]) -> Result<Tensor> {
    dsm(denoised, x0, sigma)? * pixels(x0) as f64
}

/// The weight of each image's losses (B), without a gradient: one over its mean distance from
/// the teacher's estimate.
pub fn weight(x0: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let distance = (x0.detach() - teacher.detach())?.abs()?;
    distance.flatten_from(1)?.mean(1)?.maximum(LEAST)?.recip()
}

/// Each image's loss (B): 100 w sum (t - q) ((t - x_0) - alpha (t - q)) for the estimates t of
/// the teacher and q of the fake score. It has no sign: about its minimum it oscillates
/// around 0.
pub fn identity(x0: &Tensor, teacher: &Tensor, fake: &Tensor, alpha: f64) -> Result<Tensor> {
    let apart = (teacher - fake)?;
    let along = ((teacher - x0)? - (&apart * alpha)?)?;
    ((apart * along)?.flatten_from(1)?.sum(1)? * weight(x0, teacher)?)? * SCALE
}

fn pixels(x0: &Tensor) -> usize {
    x0.elem_count() / x0.dims()[0]
}

pub struct Sid {
    generator: Generator,
    fake: Net<Denoiser>,
    teacher: Denoiser,
    levels: Levels,
    fake_lr: f64,
    settings: SidSettings,
}

impl Sid {
    /// All three networks start from the teacher's weights.
    ///
    /// # Errors
    /// Without weights: there is no teacher then.
    pub fn new(setup: &Setup) -> Result<Sid> {
        let Some(weights) = setup.start.row else {
            bail!("SiD needs a teacher: it cannot start from random weights")
        };
        let s = setup.settings;
        Ok(Sid {
            generator: Generator::new(setup)?,
            fake: denoiser(setup, "fake score", setup.start.critic)?,
            teacher: Denoiser::load(setup.network, weights, setup.device)?,
            levels: s.levels(),
            fake_lr: s.critic_lr,
            settings: setup.own(),
        })
    }
}

impl Method for Sid {
    fn columns(&self) -> &'static [&'static str] {
        &["fake_score_loss", "generator_loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (levels, teacher, generator) = (self.levels, &self.teacher, &self.generator);

        // The fake score learns to denoise generated images.
        let mut values = self.fake.descend(batch, self.fake_lr, |fake, b| {
            let sigma = levels.draw(b, "critic.sigma")?;
            let (x0, labels) =
                b.augment("critic.augment_fake", &generator.frozen(&b.normal("critic.z")?)?)?;
            let xt = diffuse(&x0, &sigma, &b.normal("critic.noise_fake")?)?;
            Ok(vec![fake_score(&fake.forward(&xt, &sigma, labels.as_deref())?, &x0, &sigma)?])
        })?;

        // The gradient reaches x_0 directly, and through x_t and both networks.
        let (fake, s) = (&self.fake.frozen, &self.settings);
        let generator_levels = Levels::SeventhRoot { share: s.t_max };
        values.push(self.generator.descend(batch, |x0, b| {
            let sigma = generator_levels.draw(b, "generator.sigma")?;
            let xt = diffuse(x0, &sigma, &b.normal("generator.noise")?)?;
            let (t, q) = (teacher.forward(&xt, &sigma, None)?, fake.forward(&xt, &sigma, None)?);
            identity(x0, &t, &q, s.alpha)?.mean_all()
        })?);
        Ok(values)
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut Learned)> {
        vec![("generator", &mut self.generator.net.learned), ("fake", &mut self.fake.learned)]
    }
}
