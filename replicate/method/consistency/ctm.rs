//! Trains consistency trajectory models (CTM, Kim et al. 2023), a distillation. A jump from t to s
//! should end at the same point as the teacher's solver from t to u followed by a jump from u to s.
//! The training uses iCT's distance instead of LPIPS. CTM's adversary, in features of ImageNet
//! classifiers, is left out (row ctm), or the critic of the ratio-based rows is in its place
//! (ablation ctm-gan).

use super::{JumpSampler, Sampling, categorical, images, jump, pseudo_huber, raw, shared, student};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{diffuse, dsm};
use crate::method::noise::{Levels, karras_level};
use crate::method::one_step::{self, OneStep};
use crate::method::schedule::polynomial;
use crate::method::{Build, Setup, Spec, TrainingSpec};
use crate::network::count::Count;
use crate::network::precondition::Precondition;
use crate::network::unet::{Critic, Denoiser, Masks, SecondTime};
use crate::network::{Variables, mix};
use crate::rng::Draws;
use crate::settings::{MOST_IMAGES, Overrides, Setting, Settings, settings};
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, bail};

settings! {
    /// Settings of CTM.
    pub struct CtmSettings: "ctm", "ctm_" {
        /// Learning rate.
        lr: f64 = [3e-4, 3e-4, 3e-4, 4e-4, 4e-4], 0.0..=1e30, "",
            Silent("CTM's 4e-4 at the paper scale; at mini sCT's");
        /// RAdam's decay of the first moment.
        beta1: f64 = [0.9], 0.0..=0.9999, "", Silent("CTM");
        /// RAdam's decay of the second moment.
        beta2: f64 = [0.999], 0.0..=0.999999, "", Silent("CTM");
        /// Decay in each step of the moving average that makes the outer jumps.
        decay: f64 = [0.5, 0.95, 0.98, 0.999, 0.999], 0.0..=1.0, "",
            Silent("CTM's .999 where a run is not shorter than that average");
        /// Number N of noise levels in the teacher's trajectories.
        levels: usize = [10, 10, 18, 18, 18], 2..=1000, "",
            Silent("CTM's 18; at mini fewer, as half of the time is the teacher's steps");
        /// Probability with which the student drops out of its blocks, alike in both jumps of an image.
        dropout: f64 = [0.0], 0.0..=0.99, "", Silent("Off, as for every row; CTM's is 0.13");
    }
}

settings! {
    /// Settings of CTM's adversary.
    pub struct AdversarySettings: "ctm", "ctm_" {
        /// Images after which the critic is trained and the student deceives it; unless set by hand,
        /// at most half of the training.
        adversary_from: u64 = [19_200_000], 0..=MOST_IMAGES, "images",
            Silent("CTM's code adds its adversary to a run of 50,000 steps of batch 384 without one");
    }
}

impl AdversarySettings {
    /// Returns the settings in a training of `overrides.images`.
    fn of(overrides: &Overrides) -> AdversarySettings {
        let from = AdversarySettings::with(overrides).adversary_from;
        let half = overrides.images / 2;
        AdversarySettings { adversary_from: overrides.at_most("ctm_adversary_from", from, half) }
    }

    fn listed_of(overrides: &Overrides) -> Vec<Setting> {
        AdversarySettings::of(overrides).list()
    }
}

/// Returns the teacher's calls for each image: 2 h, where h is drawn from 1 .. N - 1 with
/// probability proportional to h.
fn teacher_calls(overrides: &Overrides) -> f64 {
    2.0 * (2 * CtmSettings::with(overrides).levels - 1) as f64 / 3.0
}

/// Returns the share of images whose s is not the lowest level, and of those whose s is not u. For
/// the others, the outer jumps and the inner one of the aim stay where they are.
fn moving_share(overrides: &Overrides) -> f64 {
    let n = CtmSettings::with(overrides).levels;
    let stays = |h: usize| (1..=n - h).map(|left| 1.0 / left as f64).sum::<f64>() / (n - h) as f64;
    let all: f64 = (1..n).map(|h| h as f64 * stays(h)).sum();
    1.0 - all / (n * (n - 1) / 2) as f64
}

/// Returns the share of the iterations in which there is an adversary.
fn adversarial_share(overrides: &Overrides) -> f64 {
    let from = AdversarySettings::of(overrides).adversary_from as f64;
    (1.0 - from / overrides.images as f64).max(0.0)
}

/// Fraction of the levels, from the top, at which half of the images are denoised.
const DENOISED: f64 = 0.7;

const fn counted(step: usize, network: &'static str, pass: &'static Pass, times: Times) -> Call {
    Call { step, network, pass: Pass::Counted(pass, times), times: 1.0 }
}
type Times = fn(&Overrides) -> f64;

/// Those with an adversary come last.
const CALLS: &[Call] = &[
    counted(0, "teacher", &Pass::Forward, teacher_calls),
    Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
    counted(0, "target", &Pass::Through, moving_share),
    counted(0, "generator", &Pass::Forward, moving_share),
    counted(0, "target", &Pass::Forward, moving_share),
    Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
    counted(2, "generator", &Pass::Forward, adversarial_share),
    counted(2, "target", &Pass::Forward, |overrides| adversarial_share(overrides) * moving_share(overrides)),
    // Training images and estimates.
    Call { times: 2.0, ..counted(2, "critic", &Pass::Trained, adversarial_share) },
    counted(3, "generator", &Pass::Trained, adversarial_share),
    counted(3, "target", &Pass::Through, |overrides| adversarial_share(overrides) * moving_share(overrides)),
    counted(3, "critic", &Pass::Through, adversarial_share),
];
const NETWORKS: &[Network] = &[
    Network::averaged("generator", SIZE),
    Network::frozen("target", SIZE),
    Network::frozen("teacher", Size::Denoiser),
    Network::trained("critic", Size::Critic),
];

const fn trained(build: Build, networks: &'static [Network], calls: &'static [Call]) -> Option<TrainingSpec> {
    Some(TrainingSpec { build, networks, calls, from_scratch: None, at_most: None, group: |_| 1 })
}

/// CTM with the consistency and denoising losses only.
pub const SPEC: Spec = Spec {
    name: "CTM without LPIPS and adversary",
    cite: "Kim et al. 2023, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: trained(
        |setup| Ok(Box::new(Ctm::new(setup, setup.own())?)),
        NETWORKS.split_at(3).0,
        CALLS.split_at(6).0,
    ),
    nfe: |overrides| Sampling::with(overrides).steps,
    settings: &[CtmSettings::listed, shared, levels, Sampling::listed],
    sampler: |setup, weights| JumpSampler::load(setup, weights),
};

/// CTM with another adversary than its own.
pub const WITH_CRITIC: Spec = Spec {
    name: "CTM with our critic for adversary, without LPIPS",
    training: trained(
        |setup| Ok(Box::new(Ctm::new(setup, setup.own())?.with_adversary(setup)?)),
        NETWORKS,
        CALLS,
    ),
    settings: &[
        CtmSettings::listed,
        AdversarySettings::listed_of,
        of_critic,
        shared,
        levels,
        Sampling::listed,
    ],
    ..SPEC
};

/// Batch 256, 100,000 iterations, a decay of 0.999 in each iteration for the average, and dropout.
pub const PUBLISHED: &[&str] = &["batch=256", "images=25600000", "ema_half_life=177400", "ctm_dropout=0.13"];

/// Lists the settings of the lognormal levels at which half of the images are denoised.
fn levels(overrides: &Overrides) -> Vec<Setting> {
    OneStep::named(overrides, &["p_mean", "p_std"])
}

/// Lists the settings of the critic of every ratio-based row.
fn of_critic(overrides: &Overrides) -> Vec<Setting> {
    OneStep::named(overrides, &["critic_start", "critic_lr", "beta1", "beta2"])
}

/// Adds the embedding of the target level in every block.
const SECOND: SecondTime = SecondTime::PerBlock;
const SIZE: Size = Size::Other(|network| Count::with_second_time(network, SECOND));

struct Ctm {
    net: Net<Denoiser>,
    /// Average of the student that makes the outer jumps.
    target: Denoiser,
    teacher: Denoiser,
    settings: CtmSettings,
    /// Lognormal levels of half of the images that are denoised.
    levels: Levels,
    /// The teacher's levels, T_0 > T_1 > ... > T_{N-1}.
    teacher_levels: Vec<f32>,
    /// Name of the layer whose gradients balance the losses.
    last_layer: String,
    adversary: Option<Adversary>,
}

/// The critic of estimates, with its learning rate.
struct Adversary {
    critic: Net<Critic>,
    lr: f64,
    /// Images after which it is trained.
    from: u64,
}

/// Noisy images x_t of x_0 (B, C, H, W), which the student takes to s, along `h` steps of the
/// teacher from the places `start` of its levels.
struct Path {
    x0: Tensor,
    xt: Tensor,
    start: Vec<usize>,
    t: Vec<f32>,
    u: Vec<f32>,
    s: Vec<f32>,
    masks: Option<Masks>,
}

/// Hinge loss of a critic: mean of max(0, 1 - l) of real images and of max(0, 1 + l) of others, for
/// logits l (B).
pub fn hinge(real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    (1.0 - real)?.relu()?.mean_all()? + (fake + 1.0)?.relu()?.mean_all()?
}

impl Ctm {
    /// Starts the student from its initialisation; the layers of the second time get random
    /// weights.
    ///
    /// # Errors
    /// If the row has no pre-trained weights, because then there is no teacher.
    fn new(setup: &Setup, settings: CtmSettings) -> Result<Ctm> {
        let Some(weights) = setup.initial.row else {
            bail!("CTM needs a teacher: it cannot start from random weights")
        };
        let build = |vb: Variables| Denoiser::with_second_time(setup.network, SECOND, vb);
        let (net, target) =
            student(setup, SECOND, [settings.beta1, settings.beta2])?.with_target(settings.decay, build)?;
        Ok(Ctm {
            net,
            target,
            teacher: Denoiser::load(setup.network, weights, setup.compute)?,
            levels: setup.settings.levels(),
            teacher_levels: polynomial(settings.levels).into_iter().map(|level| level as f32).collect(),
            settings,
            last_layer: format!("model.dec.{0}x{0}_aux_conv.weight", setup.network.size),
            adversary: None,
        })
    }

    /// Adds the critic of a ratio-based row.
    fn with_adversary(self, setup: &Setup) -> Result<Ctm> {
        let overrides = Overrides { images: setup.images, ..setup.overrides.clone() };
        let (critic, lr) = (one_step::critic(setup)?, setup.settings.critic_lr);
        let from = AdversarySettings::of(&overrides).adversary_from;
        Ok(Ctm { adversary: Some(Adversary { critic, lr, from }), ..self })
    }

    fn at(&self, places: &[usize]) -> Vec<f32> {
        places.iter().map(|j| self.teacher_levels[*j]).collect()
    }

    /// Draws the number h of the teacher's steps, the same for all images.
    fn heun_steps(&self, batch: &Batch) -> Result<usize> {
        let p: Vec<f64> = (1..self.teacher_levels.len()).map(|h| h as f64).collect();
        let steps =
            batch.common("heun_steps", 1, 1, |draws| (categorical(&p, draws.uniform()) + 1) as f32)?;
        Ok(steps[0] as usize)
    }

    fn path(&self, b: &Batch, h: usize) -> Result<Path> {
        let n = self.teacher_levels.len();
        let start = below(b, "start", |_| n - h)?;
        let after: Vec<usize> = start.iter().map(|j| j + h).collect();
        let further = below(b, "end", |i| n - after[i])?;
        let end: Vec<usize> = after.iter().zip(further).map(|(j, more)| j + more).collect();
        let [t, u, s] = [&start, &after, &end].map(|places| self.at(places));
        let x0 = images(b)?;
        let xt = diffuse(&x0, &t, &b.normal("noise")?)?;
        let masks = b.dropout("dropout", self.settings.dropout, &self.net.frozen.dropout_shapes())?;
        Ok(Path { x0, xt, start, t, u, s, masks })
    }

    /// Levels of 0.002, to which all jumps lead in the end.
    fn bottom(&self, path: &Path) -> Vec<f32> {
        vec![self.teacher_levels[self.teacher_levels.len() - 1]; path.t.len()]
    }

    /// Jumps from `x` at levels `t` to s, and from there to 0.002 with the average, through which a
    /// gradient passes to its input.
    fn estimate(&self, net: &Denoiser, x: &Tensor, t: &[f32], path: &Path) -> Result<Tensor> {
        let landed = jump(net, x, t, &path.s, path.masks.as_ref())?;
        jump(&self.target, &landed, &path.s, &self.bottom(path), None)
    }

    /// Computes L_CTM of jumps along `h` steps of the teacher.
    fn consistency(&self, net: &Denoiser, b: &Batch, h: usize) -> Result<Tensor> {
        let path = self.path(b, h)?;
        let xu = (0..h).try_fold(path.xt.clone(), |x, step| {
            let at = |step: usize| self.at(&path.start.iter().map(|j| j + step).collect::<Vec<_>>());
            self.heun(&x, &at(step), &at(step + 1))
        })?;
        // Both ends are mapped to 0.002 and compared there.
        let estimate = self.estimate(net, &path.xt, &path.t, &path)?;
        let aim = self.estimate(&self.net.frozen, &xu, &path.u, &path)?;
        pseudo_huber(&estimate, &aim)?.mean_all()
    }

    /// Computes the critic's loss on training images and on estimates, both without noise.
    fn critic_loss(&self, critic: &Critic, b: &Batch, h: usize) -> Result<Tensor> {
        let path = self.path(b, h)?;
        let fake = self.estimate(&self.net.frozen, &path.xt, &path.t, &path)?;
        let [real, fake] = critic.both(&path.x0, &fake, &self.bottom(&path), None, None)?;
        hinge(&real, &fake)
    }

    /// Computes L_GAN: minus the mean logit of the same estimates as those of L_CTM.
    fn gan_loss(&self, critic: &Critic, net: &Denoiser, b: &Batch, h: usize) -> Result<Tensor> {
        let path = self.path(b, h)?;
        let estimate = self.estimate(net, &path.xt, &path.t, &path)?;
        critic.forward(&estimate, &self.bottom(&path))?.mean_all()?.neg()
    }

    /// Takes one step of the teacher's solver from levels `t` to `u`, with its corrector.
    fn heun(&self, x: &Tensor, t: &[f32], u: &[f32]) -> Result<Tensor> {
        let slope = |x: &Tensor, t: &[f32]| {
            let over: Vec<f32> = t.iter().map(|t| 1.0 / t).collect();
            let minus: Vec<f32> = over.iter().map(|o| -o).collect();
            mix(x, &over, &self.teacher.forward(x, t)?, &minus)
        };
        let gap: Vec<f32> = t.iter().zip(u).map(|(t, u)| u - t).collect();
        let half: Vec<f32> = gap.iter().map(|gap| 0.5 * gap).collect();
        let first = slope(x, t)?;
        let second = slope(&mix(x, &[1.0], &first, &gap)?, u)?;
        mix(x, &[1.0], &(first + second)?, &half)
    }

    /// Computes L_DSM: half of the images at lognormal levels, half at levels in the upper part of
    /// EDM's grid.
    fn denoising(&self, net: &Denoiser, b: &Batch) -> Result<Tensor> {
        let lognormal = self.levels.draw(b, "dsm.sigma")?;
        let place = b.each("dsm.place", Draws::uniform)?;
        let pairs = b.places().zip(lognormal.into_iter().zip(place));
        let sigma: Vec<f32> = pairs
            .map(|(i, (sigma, u))| match i < b.size / 2 {
                true => sigma,
                false => karras_level(1.0 - DENOISED * f64::from(u)) as f32,
            })
            .collect();
        let (x0, c) = (images(b)?, Precondition::at(&sigma));
        let xt = diffuse(&x0, &sigma, &b.normal("dsm.noise")?)?;
        let masks = b.dropout("dsm.dropout", self.settings.dropout, &net.dropout_shapes())?;
        let f = raw(net, &xt, &sigma, Some(&sigma), masks.as_ref())?;
        dsm(&mix(&xt, &c.skip, &f, &c.out)?, &x0, &sigma)
    }

    fn norm(&self, gradients: &GradStore) -> Result<Tensor> {
        let Some(layer) = self.net.state.params.get(&self.last_layer).and_then(|var| gradients.get(var))
        else {
            bail!("{} has no gradient", self.last_layer)
        };
        layer.sqr()?.sum_all()?.sqrt()
    }

    /// Takes the critic's step, on other images and jumps than those of the student's. Returns its
    /// loss; `None` before there is an adversary.
    fn critic_step(&mut self, batch: &Batch) -> Result<Option<Tensor>> {
        let Some(Adversary { critic, lr, from }) = &self.adversary else { return Ok(None) };
        if batch.images_before() < *from {
            return Ok(None);
        }
        let (batch, lr) = (batch.nth(1), *lr);
        let h = self.heun_steps(&batch)?;
        let (gradients, mut loss) =
            critic.gradients(&batch, |critic, b| Ok(vec![self.critic_loss(critic, b, h)?]))?;
        let adversary = self.adversary.as_mut().expect("just seen");
        adversary.critic.update(&batch, gradients, lr)?;
        Ok(loss.pop())
    }
}

impl Method for Ctm {
    fn columns(&self) -> &'static [&'static str] {
        match self.adversary {
            None => &["ctm", "dsm", "dsm_weight"],
            Some(_) => &["ctm", "dsm", "dsm_weight", "gan", "gan_weight", "critic_loss"],
        }
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let critic_loss = self.critic_step(batch)?;
        let h = self.heun_steps(batch)?;
        let (ctm, mut values) = self.net.gradients(batch, |net, b| Ok(vec![self.consistency(net, b, h)?]))?;
        let (norm, params) = (self.norm(&ctm)?, &self.net.state.params);
        // Weights the gradients of another loss like those of L_CTM.
        let mut add = |sum: GradStore, (more, loss): (GradStore, Vec<Tensor>), [least, most]: [f64; 2]| {
            let weight = (&norm / (self.norm(&more)? + 1e-4)?)?.clamp(least, most)?;
            let sum = params.add_gradients(Some(sum), params.scaled_gradients(more, &weight)?);
            values.extend([loss, vec![weight]].concat());
            sum
        };
        let dsm = self.net.gradients(batch, |net, b| Ok(vec![self.denoising(net, b)?]))?;
        let mut gradients = add(ctm, dsm, [0.0, 1e4])?;
        if let (Some(Adversary { critic, .. }), Some(_)) = (&self.adversary, &critic_loss) {
            let gan_loss = |net: &Denoiser, b: &Batch| self.gan_loss(&critic.frozen, net, b, h);
            let gan = self.net.gradients(batch, |net, b| Ok(vec![gan_loss(net, b)?]))?;
            gradients = add(gradients, gan, [0.01, 10.0])?;
        }
        values.extend(critic_loss);
        // Before there is an adversary, its losses and weight are written as 0.
        values.resize(self.columns().len(), Tensor::zeros((), DType::F32, values[0].device())?);
        self.net.update(batch, gradients, self.settings.lr)?;
        Ok(values)
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        let critic = self.adversary.as_mut().map(|adversary| ("critic", &mut adversary.critic.state));
        [("generator", &mut self.net.state)].into_iter().chain(critic).collect()
    }
}

/// Draws for each image i a whole number below `n(i)`.
fn below(b: &Batch, name: &str, n: impl Fn(usize) -> usize) -> Result<Vec<usize>> {
    let draws = b.each(name, Draws::uniform)?;
    Ok(draws.into_iter().enumerate().map(|(i, u)| (f64::from(u) * n(i) as f64) as usize).collect())
}
