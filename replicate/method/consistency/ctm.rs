//! Trains consistency trajectory models (CTM, Kim et al. 2023), a distillation. A jump from t to s
//! should end at the same point as the teacher's solver from t to u followed by a jump from u to s.
//! The training uses iCT's distance instead of LPIPS, and no adversary.

use super::{Jumps, Sampling, drawn, images, jump, jump_dropping, pseudo_huber, raw, shared, student};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{diffuse, dsm};
use crate::method::noise::{Levels, seventh_root};
use crate::method::one_step::OneStep;
use crate::method::schedule::polynomial;
use crate::method::{Setup, Spec, Trained};
use crate::network::count::Count;
use crate::network::mix;
use crate::network::precondition::Precondition;
use crate::network::unet::{Denoiser, SecondTime};
use crate::rng::Draws;
use crate::settings::{Overrides, Setting, Settings, settings};
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Learned, Net};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

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

/// Returns the teacher's calls for each image: 2 h, where h is drawn from 1 .. N - 1 with
/// probability proportional to h.
fn teacher_calls(overrides: &Overrides) -> f64 {
    2.0 * (2 * CtmSettings::with(overrides).levels - 1) as f64 / 3.0
}

/// Fraction of the levels, from the top, at which half of the images are denoised.
const DENOISED: f64 = 0.7;

pub const SPEC: Spec = Spec {
    name: "CTM without LPIPS and adversary",
    cite: "Kim et al. 2023, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: Some(Trained {
        build: |setup| Ok(Box::new(Ctm::new(setup, setup.own())?)),
        networks: &[
            Network::averaged("generator", SIZE),
            Network::frozen("target", SIZE),
            Network::frozen("teacher", Size::Denoiser),
        ],
        calls: &[
            Call {
                step: 0,
                network: "teacher",
                pass: Pass::Counted(&Pass::Forward, teacher_calls),
                times: 1.0,
            },
            Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
            Call { step: 0, network: "target", pass: Pass::Through, times: 1.0 },
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
            Call { step: 0, network: "target", pass: Pass::Forward, times: 1.0 },
            Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
        ],
        from_scratch: None,
        at_most: None,
        group: |_| 1,
    }),
    nfe: |overrides| Sampling::with(overrides).steps,
    settings: &[CtmSettings::listed, shared, levels, Sampling::listed],
    sampler: |setup, weights| Jumps::load(setup, weights),
};

/// Batch 256, 100,000 iterations, a decay of 0.999 in each iteration for the average, and dropout.
pub const PUBLISHED: &[&str] = &["batch=256", "images=25600000", "ema_half_life=177400", "ctm_dropout=0.13"];

/// Lists the settings of the lognormal levels at which half of the images are denoised.
fn levels(overrides: &Overrides) -> Vec<Setting> {
    OneStep::named(overrides, &["p_mean", "p_std"])
}

/// Adds the embedding of the target level in every block.
const SECOND: SecondTime = SecondTime::PerBlock;
const SIZE: Size = Size::Other(|network| Count::with_second_time(network, SECOND));

pub struct Ctm {
    net: Net<Denoiser>,
    /// Average of the student that makes the outer jumps.
    target: Denoiser,
    teacher: Denoiser,
    settings: CtmSettings,
    /// Lognormal levels of half of the images that are denoised.
    levels: Levels,
    /// The teacher's levels, T_0 > T_1 > ... > T_{N-1}.
    ladder: Vec<f32>,
    /// Name of the layer whose gradients balance the two losses.
    last_layer: String,
}

impl Ctm {
    /// Starts the student from its initialisation; the layers of the second time get random
    /// weights.
    ///
    /// # Errors
    /// If the row has no pre-trained weights, because then there is no teacher.
    pub fn new(setup: &Setup, settings: CtmSettings) -> Result<Ctm> {
        let Some(weights) = setup.start.row else {
            bail!("CTM needs a teacher: it cannot start from random weights")
        };
        let build = |vb: VarBuilder| Denoiser::with_second_time(setup.network, SECOND, vb);
        let (net, target) =
            student(setup, SECOND, [settings.beta1, settings.beta2])?.followed(settings.decay, build)?;
        Ok(Ctm {
            net,
            target,
            teacher: Denoiser::load(setup.network, weights, setup.device)?,
            levels: setup.settings.levels(),
            ladder: polynomial(settings.levels).into_iter().map(|level| level as f32).collect(),
            settings,
            last_layer: format!("model.dec.{0}x{0}_aux_conv.weight", setup.network.size),
        })
    }

    fn at(&self, places: &[usize]) -> Vec<f32> {
        places.iter().map(|j| self.ladder[*j]).collect()
    }

    /// Computes L_CTM of jumps along `h` steps of the teacher.
    fn consistency(&self, net: &Denoiser, b: &Batch, h: usize) -> Result<Tensor> {
        let n = self.ladder.len();
        let start = below(b, "start", |_| n - h)?;
        let after: Vec<usize> = start.iter().map(|j| j + h).collect();
        let further = below(b, "end", |i| n - after[i])?;
        let end: Vec<usize> = after.iter().zip(further).map(|(j, more)| j + more).collect();
        let (t, u, s) = (self.at(&start), self.at(&after), self.at(&end));
        let xt = diffuse(&images(b)?, &t, &b.normal("noise")?)?;
        let xu = (0..h).try_fold(xt.clone(), |x, step| {
            let at = |step: usize| self.at(&start.iter().map(|j| j + step).collect::<Vec<_>>());
            self.heun(&x, &at(step), &at(step + 1))
        })?;
        // Both ends are mapped to 0.002 and compared there. The outer jump has a gradient for its
        // input.
        let bottom = vec![self.ladder[n - 1]; b.len()];
        let masks = b.dropout("dropout", self.settings.dropout, &net.dropped())?;
        let inner = |net: &Denoiser, x: &Tensor, t: &[f32]| jump_dropping(net, x, t, &s, masks.as_ref());
        let estimate = jump(&self.target, &inner(net, &xt, &t)?, &s, &bottom)?;
        let aim = jump(&self.target, &inner(&self.net.frozen, &xu, &u)?, &s, &bottom)?;
        pseudo_huber(&estimate, &aim)?.mean_all()
    }

    /// Takes one step of the teacher's solver from levels `t` to `u`, with its corrector.
    fn heun(&self, x: &Tensor, t: &[f32], u: &[f32]) -> Result<Tensor> {
        let slope = |x: &Tensor, t: &[f32]| {
            let over: Vec<f32> = t.iter().map(|t| 1.0 / t).collect();
            let minus: Vec<f32> = over.iter().map(|o| -o).collect();
            mix(x, &over, &self.teacher.forward(x, t, None)?, &minus)
        };
        let gap: Vec<f32> = t.iter().zip(u).map(|(t, u)| u - t).collect();
        let half: Vec<f32> = gap.iter().map(|gap| 0.5 * gap).collect();
        let first = slope(x, t)?;
        let second = slope(&mix(x, &[1.0], &first, &gap)?, u)?;
        mix(x, &[1.0], &(first + second)?, &half)
    }

    /// Computes L_DSM: half of the images at lognormal levels, half at levels in the upper part of
    /// the ladder.
    fn denoising(&self, net: &Denoiser, b: &Batch) -> Result<Tensor> {
        let lognormal = self.levels.draw(b, "dsm.sigma")?;
        let place = b.each("dsm.place", Draws::uniform)?;
        let pairs = b.places().zip(lognormal.into_iter().zip(place));
        let sigma: Vec<f32> = pairs
            .map(|(i, (sigma, u))| match i < b.size / 2 {
                true => sigma,
                false => seventh_root(1.0 - DENOISED * f64::from(u)) as f32,
            })
            .collect();
        let (x0, c) = (images(b)?, Precondition::at(&sigma));
        let xt = diffuse(&x0, &sigma, &b.normal("dsm.noise")?)?;
        let masks = b.dropout("dsm.dropout", self.settings.dropout, &net.dropped())?;
        let f = raw(net, &xt, &sigma, Some(&sigma), masks.as_ref())?;
        dsm(&mix(&xt, &c.skip, &f, &c.out)?, &x0, &sigma)
    }

    fn norm(&self, gradients: &GradStore) -> Result<Tensor> {
        let Some(layer) = self.net.learned.params.get(&self.last_layer).and_then(|var| gradients.get(var))
        else {
            bail!("{} has no gradient", self.last_layer)
        };
        layer.sqr()?.sum_all()?.sqrt()
    }
}

impl Method for Ctm {
    fn columns(&self) -> &'static [&'static str] {
        &["ctm", "dsm", "dsm_weight"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let p: Vec<f64> = (1..self.ladder.len()).map(|h| h as f64).collect();
        let h =
            batch.common("heun_steps", 1, 1, |draws| (drawn(&p, draws.uniform()) + 1) as f32)?[0] as usize;
        let (ctm, ctm_loss) = self.net.gradients(batch, |net, b| Ok(vec![self.consistency(net, b, h)?]))?;
        let (dsm, dsm_loss) = self.net.gradients(batch, |net, b| Ok(vec![self.denoising(net, b)?]))?;
        let weight = (self.norm(&ctm)? / (self.norm(&dsm)? + 1e-4)?)?.clamp(0.0, 1e4)?;
        let params = &self.net.learned.params;
        let gradients = params.add_gradients(Some(ctm), params.scaled_gradients(dsm, &weight)?)?;
        self.net.update(batch, gradients, self.settings.lr)?;
        Ok([ctm_loss, dsm_loss, vec![weight]].concat())
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut Learned)> {
        vec![("generator", &mut self.net.learned)]
    }
}

/// Draws for each image i a whole number below `n(i)`.
fn below(b: &Batch, name: &str, n: impl Fn(usize) -> usize) -> Result<Vec<usize>> {
    let draws = b.each(name, Draws::uniform)?;
    Ok(draws.into_iter().enumerate().map(|(i, u)| (f64::from(u) * n(i) as f64) as usize).collect())
}
