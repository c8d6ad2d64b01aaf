//! Stage 2: training a one-step generator, Algorithms 1 and 2.

use crate::method::equations::{Divergence, class_ratio, diffuse, dsm, vsd};
use crate::method::noise::Levels;
use crate::method::sampler::edm::one_step;
use crate::network::elsewhere;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{CRITIC_HEAD, Config, Critic, Denoiser};
use crate::train::adam::{Adam, AdamConfig, Ema};
use crate::train::augment::{self, Draw};
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};
use std::ops::Range;

/// How the generator's gradient is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Algorithm 1: the difference of a fake score, trained online, and the
    /// teacher's (Diff-Instruct).
    Vsd,
    /// Algorithm 2: a class-ratio critic and one of three divergences.
    ClassRatio(Divergence),
}

impl std::fmt::Display for Objective {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Objective::Vsd => write!(f, "vsd"),
            Objective::ClassRatio(divergence) => write!(f, "class-ratio {divergence:?}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub sigma_init: f64,
    pub levels: Levels,
    pub generator_lr: f64,
    pub critic_lr: f64,
    pub adam: AdamConfig,
    pub ema_half_life: u64,
}

/// What one critic step consumes: images are (B, C, H, W), levels (B).
pub struct CriticBatch {
    pub z: Tensor,
    pub real: Tensor,
    pub sigma: Vec<f32>,
    pub noise_real: Tensor,
    pub noise_fake: Tensor,
    /// The augmentation of the real and of the generated images, B draws each
    /// (appendix B: "non-leaky", because the critic sees the labels).
    pub augment: Option<[Vec<Draw>; 2]>,
}

/// What one generator step consumes.
pub struct GeneratorBatch {
    pub z: Tensor,
    pub sigma: Vec<f32>,
    pub noise: Tensor,
}

impl CriticBatch {
    fn part(&self, range: Range<usize>) -> Result<CriticBatch> {
        let of = |tensor: &Tensor| tensor.narrow(0, range.start, range.len());
        Ok(CriticBatch {
            z: of(&self.z)?,
            real: of(&self.real)?,
            sigma: self.sigma[range.clone()].to_vec(),
            noise_real: of(&self.noise_real)?,
            noise_fake: of(&self.noise_fake)?,
            augment: self.augment.as_ref().map(|both| both.each_ref().map(|d| d[range.clone()].to_vec())),
        })
    }
}

impl GeneratorBatch {
    fn part(&self, range: Range<usize>) -> Result<GeneratorBatch> {
        let of = |tensor: &Tensor| tensor.narrow(0, range.start, range.len());
        Ok(GeneratorBatch {
            z: of(&self.z)?,
            sigma: self.sigma[range.clone()].to_vec(),
            noise: of(&self.noise)?,
        })
    }
}

/// The parts of a batch of `n` images, and their share of it.
pub fn parts(n: usize, at_once: usize) -> impl Iterator<Item = (Range<usize>, f64)> {
    let at_once = at_once.clamp(1, n.max(1));
    (0..n).step_by(at_once).map(move |first| {
        let range = first..n.min(first + at_once);
        let share = range.len() as f64 / n as f64;
        (range, share)
    })
}

/// What a critic's step tells, not yet read: a GPU would have nothing to do while its
/// numbers are waited for.
#[must_use]
pub struct CriticLosses {
    /// Of each part of the batch its share, the loss, and the logits of a critic.
    parts: Vec<(f32, Tensor, Option<[Tensor; 2]>)>,
}

impl CriticLosses {
    pub fn read(&self) -> Result<CriticReport> {
        let mut report = CriticReport::default();
        for (share, loss, logits) in &self.parts {
            report.loss += share * loss.to_scalar::<f32>()?;
            let [c_real, c_fake] = match logits {
                Some([real, fake]) => [mean_probability(real)?, mean_probability(fake)?],
                None => [f32::NAN; 2],
            };
            report.c_real += share * c_real;
            report.c_fake += share * c_fake;
        }
        Ok(report)
    }
}

/// What a generator's step tells, not yet read.
#[must_use]
pub struct GeneratorLosses {
    /// Of each part of the batch, times its share.
    parts: Vec<Tensor>,
}

impl GeneratorLosses {
    pub fn read(&self) -> Result<f32> {
        self.parts.iter().try_fold(0f32, |total, loss| Ok(total + loss.to_scalar::<f32>()?))
    }
}

/// What a critic's step tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CriticReport {
    pub loss: f32,
    /// Mean of c = sigmoid(l) on real and on generated images; NaN for VSD,
    /// which has no classifier.
    pub c_real: f32,
    pub c_fake: f32,
}

/// A trainable network, and the same network without gradients.
struct Network<M> {
    params: Params,
    model: M,
    frozen: M,
    adam: Adam,
}

impl<M> Network<M> {
    fn new(
        device: &Device,
        source: &Source,
        adam: AdamConfig,
        build: impl Fn(candle_nn::VarBuilder) -> Result<M>,
    ) -> Result<Network<M>> {
        let (params, model) = Params::build(device, source, &build)?;
        let frozen = params.frozen(&build)?;
        let adam = Adam::new(adam, &params)?;
        Ok(Network { params, model, frozen, adam })
    }

    fn descend(&mut self, gradient: Option<GradStore>, lr: f64) -> Result<()> {
        self.adam.update(&self.params, &gradient.expect("a batch is not empty"), lr)
    }

    fn state(&self, prefix: &str, into: &mut Arrays) -> Result<()> {
        for (name, array) in self.params.arrays()? {
            into.insert(format!("{prefix}.weights.{name}"), array);
        }
        for (name, array) in self.adam.arrays()? {
            into.insert(format!("{prefix}.adam.{name}"), array);
        }
        Ok(())
    }

    fn restore(&mut self, prefix: &str, from: &Arrays) -> Result<()> {
        self.params.assign(&strip(from, &format!("{prefix}.weights.")))?;
        self.adam.restore(&strip(from, &format!("{prefix}.adam.")))
    }
}

/// The arrays whose names start with `prefix`, without it.
pub fn strip(arrays: &Arrays, prefix: &str) -> Arrays {
    arrays.iter().filter_map(|(n, a)| Some((n.strip_prefix(prefix)?.to_string(), a.clone()))).collect()
}

/// What the generator is trained against.
enum Judge {
    Critic { network: Network<Critic>, divergence: Divergence },
    Scores { fake: Network<Denoiser>, teacher: Denoiser },
}

impl Judge {
    fn params(&self) -> &Params {
        match self {
            Judge::Critic { network, .. } => &network.params,
            Judge::Scores { fake, .. } => &fake.params,
        }
    }

    fn descend(&mut self, gradient: Option<GradStore>, lr: f64) -> Result<()> {
        match self {
            Judge::Critic { network, .. } => network.descend(gradient, lr),
            Judge::Scores { fake, .. } => fake.descend(gradient, lr),
        }
    }
}

pub struct OneStep {
    settings: Settings,
    generator: Network<Denoiser>,
    judge: Judge,
    ema: Ema,
    /// Images of a batch in memory at a time.
    at_once: usize,
}

/// Initial values of a one-step run.
pub struct Initial<'a> {
    /// The pre-trained U-Net; `None` draws everything.
    pub weights: Option<&'a Arrays>,
    /// Names the streams of what is drawn: the critic's head, or all.
    pub cell: &'a str,
}

impl OneStep {
    /// Line 2 of both algorithms: generator, critic encoder (or fake score) and
    /// teacher start from the same weights. VSD without weights is refused: it
    /// has no teacher.
    pub fn new(
        device: &Device,
        config: &Config,
        objective: Objective,
        initial: Initial,
        settings: Settings,
    ) -> Result<OneStep> {
        let none = Arrays::new();
        let given = initial.weights.unwrap_or(&none);
        let source = |drawn, part: &str| (given, drawn, format!("{} {part}", initial.cell));
        let all: &[&str] = &[""];
        let nothing_or_all = if initial.weights.is_some() { &[] } else { all };
        let head_or_all = if initial.weights.is_some() { &[CRITIC_HEAD] } else { all };
        let network = |drawn, part| {
            let (given, drawn, cell) = source(drawn, part);
            Network::new(device, &Source { given, drawn, cell: &cell }, settings.adam, |vb| {
                Denoiser::new(config, vb)
            })
        };
        let generator = network(nothing_or_all, "generator")?;
        let judge = match objective {
            Objective::ClassRatio(divergence) => {
                let (given, drawn, cell) = source(head_or_all, "critic");
                let source = Source { given, drawn, cell: &cell };
                let network = Network::new(device, &source, settings.adam, |vb| Critic::new(config, vb))?;
                Judge::Critic { network, divergence }
            }
            Objective::Vsd => {
                if initial.weights.is_none() {
                    candle_core::bail!("VSD needs a teacher: it cannot start from random weights");
                }
                let fake = network(&[], "fake score")?;
                let teacher = network(&[], "teacher")?.frozen;
                Judge::Scores { fake, teacher }
            }
        };
        let ema = Ema::new(settings.ema_half_life, &generator.params)?;
        Ok(OneStep { settings, generator, judge, ema, at_once: usize::MAX })
    }

    /// The same run with at most `images` of a batch in memory at a time. Losses and
    /// gradients are sums in another order: in float32 they agree with those of whole
    /// batches within 1e-5 of the largest one.
    pub fn at_once(mut self, images: usize) -> OneStep {
        self.at_once = images;
        self
    }

    /// Line 4: one step of ratio estimation (Eq 6, 7) or of the fake score (Eq 4).
    pub fn critic_step(&mut self, batch: &CriticBatch) -> Result<CriticLosses> {
        let (mut gradient, mut losses) = (None, CriticLosses { parts: Vec::new() });
        for (range, share) in parts(batch.sigma.len(), self.at_once) {
            let (loss, logits) = self.critic_loss(&batch.part(range)?)?;
            let logits = logits.map(|both| both.map(|l| l.detach()));
            losses.parts.push((share as f32, loss.detach(), logits));
            let more = elsewhere::gradients(&shared(loss, share)?)?;
            gradient = Some(self.judge.params().add_gradients(gradient, more)?);
        }
        self.judge.descend(gradient, self.settings.critic_lr)?;
        Ok(losses)
    }

    /// The loss, and a critic's logits of real and of generated images.
    fn critic_loss(&self, batch: &CriticBatch) -> Result<(Tensor, Option<[Tensor; 2]>)> {
        let CriticBatch { z, real, sigma, noise_real, noise_fake, augment } = batch;
        let (real_draws, fake_draws) = augment.as_ref().map(|[r, f]| (r.as_slice(), f.as_slice())).unzip();
        let fake = one_step(&self.generator.frozen, z, self.settings.sigma_init)?;
        let (fake, fake_labels) = augmented(&fake, fake_draws)?;
        let xt_fake = diffuse(&fake, sigma, noise_fake)?;
        match &self.judge {
            Judge::Critic { network, .. } => {
                let (real, real_labels) = augmented(real, real_draws)?;
                let xt_real = diffuse(&real, sigma, noise_real)?;
                let n = sigma.len();
                let both = Tensor::cat(&[&xt_real, &xt_fake], 0)?;
                let labels = real_labels.zip(fake_labels).map(|(real, fake)| [real, fake].concat());
                let sigmas = [sigma.as_slice(), sigma].concat();
                let logits = network.model.forward(&both, &sigmas, labels.as_deref())?;
                let (l_real, l_fake) = (logits.narrow(0, 0, n)?, logits.narrow(0, n, n)?);
                Ok((class_ratio(&l_real, &l_fake)?, Some([l_real, l_fake])))
            }
            Judge::Scores { fake: network, .. } => {
                let denoised = network.model.forward(&xt_fake, sigma, fake_labels.as_deref())?;
                Ok((dsm(&denoised, &fake, sigma)?, None))
            }
        }
    }

    /// Lines 5 and 6: one step down the estimated gradient (Eq 8, 9, 10, or 5),
    /// with w(t) = sigma^2 (appendix B).
    pub fn generator_step(&mut self, batch: &GeneratorBatch) -> Result<GeneratorLosses> {
        let (mut gradient, mut losses) = (None, GeneratorLosses { parts: Vec::new() });
        for (range, share) in parts(batch.sigma.len(), self.at_once) {
            let loss = shared(self.generator_loss(&batch.part(range)?)?, share)?;
            let more = elsewhere::gradients(&loss)?;
            gradient = Some(self.generator.params.add_gradients(gradient, more)?);
            losses.parts.push(loss.detach());
        }
        self.generator.descend(gradient, self.settings.generator_lr)?;
        Ok(losses)
    }

    fn generator_loss(&self, batch: &GeneratorBatch) -> Result<Tensor> {
        let GeneratorBatch { z, sigma, noise } = batch;
        let weight: Vec<f32> = sigma.iter().map(|s| s * s).collect();
        let x0 = one_step(&self.generator.model, z, self.settings.sigma_init)?;
        let xt = diffuse(&x0, sigma, noise)?;
        match &self.judge {
            Judge::Critic { network, divergence } => {
                divergence.loss(&network.frozen.forward(&xt, sigma, None)?, &weight)
            }
            Judge::Scores { fake, teacher } => {
                let at = xt.detach();
                vsd(
                    &xt,
                    &fake.frozen.forward(&at, sigma, None)?,
                    &teacher.forward(&at, sigma, None)?,
                    sigma,
                    &weight,
                )
            }
        }
    }

    /// Moves the average after a step that brought the images seen to `images`.
    pub fn average(&mut self, images: u64, batch: usize) -> Result<()> {
        self.ema.update(&self.generator.params, images, batch)
    }

    /// g(z) of the weights being trained.
    pub fn sample(&self, z: &Tensor) -> Result<Tensor> {
        one_step(&self.generator.frozen, z, self.settings.sigma_init)
    }

    /// The averaged generator: what is published and scored.
    pub fn averaged(&self) -> Result<Arrays> {
        self.ema.arrays()
    }

    /// (generator, critic or fake score) scalars.
    pub fn parameter_counts(&self) -> (usize, usize) {
        (self.generator.params.count(), self.judge.params().count())
    }

    /// Everything that a resumed run needs.
    pub fn state(&self) -> Result<Arrays> {
        let mut all = Arrays::new();
        self.generator.state("generator", &mut all)?;
        match &self.judge {
            Judge::Critic { network, .. } => network.state("critic", &mut all)?,
            Judge::Scores { fake, .. } => fake.state("fake", &mut all)?,
        }
        for (name, array) in self.ema.arrays()? {
            all.insert(format!("ema.{name}"), array);
        }
        Ok(all)
    }

    /// Takes up a run where [`OneStep::state`] left it.
    pub fn restore(&mut self, state: &Arrays) -> Result<()> {
        self.generator.restore("generator", state)?;
        match &mut self.judge {
            Judge::Critic { network, .. } => network.restore("critic", state)?,
            Judge::Scores { fake, .. } => fake.restore("fake", state)?,
        }
        self.ema.restore(&strip(state, "ema."))
    }
}

/// Images (B, C, H, W) after `draws` and their labels (B, 9); without draws, as
/// they are. No gradient passes.
pub fn augmented(images: &Tensor, draws: Option<&[Draw]>) -> Result<(Tensor, Option<Vec<f32>>)> {
    let Some(draws) = draws else { return Ok((images.clone(), None)) };
    let labels = draws.iter().flat_map(Draw::labels).collect();
    Ok((augment::apply_where_it_is(images, draws)?, Some(labels)))
}

/// The loss of a part, as much of it as the part is of the batch.
pub fn shared(loss: Tensor, share: f64) -> Result<Tensor> {
    if share == 1.0 { Ok(loss) } else { loss * share }
}

fn mean_probability(logits: &Tensor) -> Result<f32> {
    let l = logits.to_vec1::<f32>()?;
    Ok(l.iter().map(|l| 1.0 / (1.0 + libm::expf(-l))).sum::<f32>() / l.len() as f32)
}
