//! Consistency models: the levels, jumps, distance and samplers that iCT, BCM, CTM and sCT share.
//!
//! x_t = x_0 + t eps, t = sigma, from 0.002 to 80; F is the raw U-Net with EDM's c_in and
//! c_noise. An image is f(80 z), z ~ N(0, I), in one call.

pub mod bcm;
pub mod ctm;
pub mod ict;
pub mod sct;

use crate::method::one_step::OneStep;
use crate::method::schedule::polynomial;
use crate::method::{Sampler, Setup};
use crate::network::params::{Arrays, Source};
use crate::network::precondition::{Precondition, SIGMA_DATA};
use crate::network::unet::{Conditioning, Denoiser, Masks, SecondTime};
use crate::network::{Variables, mix, scale_images};
use crate::settings::{Overrides, Setting, Settings, settings};
use crate::train::adam::AdamConfig;
use crate::train::batch::Batch;
use crate::train::net::Net;
use candle_core::{Error, Result, Tensor};

settings! {
    /// Settings of a training at discrete levels (iCT and BCM). The number of levels doubles in
    /// stages.
    pub struct DiscreteSettings: "discrete consistency training", "discrete_" {
        /// Learning rate of a network with random initial weights.
        lr: f64 = [3e-3, 3e-3, 3e-3, 3e-4, 1e-4], 0.0..=1e30, "",
            Silent("iCT's 1e-4 at the paper scale; a run that is a thousand times shorter takes more");
        /// RAdam's decay of the first moment.
        beta1: f64 = [0.9], 0.0..=0.9999, "", Silent("PyTorch's, as in re-implementations of iCT");
        /// RAdam's decay of the second moment.
        beta2: f64 = [0.999], 0.0..=0.999999, "", Silent("PyTorch's, as in re-implementations of iCT");
        /// Number s0 of gaps between levels at the start of the training.
        first_gaps: u64 = [10], 2..=100_000, "", Silent("iCT");
        /// Number s1 of gaps between levels at the end of the training.
        last_gaps: u64 = [1280], 2..=100_000, "", Silent("iCT");
        /// Mean of ln sigma in the distribution of the gaps.
        p_mean: f64 = [-1.1], -10.0..=10.0, "", Silent("iCT");
        /// Standard deviation of ln sigma in the distribution of the gaps.
        p_std: f64 = [2.0], 0.01..=10.0, "", Silent("iCT");
        /// Probability with which the network drops out of its blocks, alike in every pass of an image.
        dropout: f64 = [0.0], 0.0..=0.99, "", Silent("Off, as for every row; iCT's is 0.3, and BCM's as far as known");
    }
}

impl DiscreteSettings {
    /// Returns N(k) = min(s0 2^(k / K'), s1) + 1 levels in step `k` of `steps`, K' the steps of a
    /// stage.
    pub fn levels(&self, k: u64, steps: u64) -> usize {
        let stages = libm::log2((self.last_gaps / self.first_gaps) as f64) + 1.0;
        let stage = k / ((steps as f64 / stages) as u64).max(1);
        let gaps = u32::try_from(stage).ok().and_then(|stage| 2u64.checked_pow(stage));
        gaps.and_then(|factor| self.first_gaps.checked_mul(factor))
            .map_or(self.last_gaps, |n| n.min(self.last_gaps)) as usize
            + 1
    }

    /// Returns the levels of the batch's step in a training of `images`.
    pub fn of_step(&self, batch: &Batch, images: u64) -> Discretization {
        self.discretization(self.levels(batch.step, images.div_ceil(batch.size as u64)))
    }

    /// Returns the discretisation with `levels` levels.
    pub fn discretization(&self, levels: usize) -> Discretization {
        let sigma: Vec<f64> = polynomial(levels).into_iter().rev().collect();
        let place = |sigma: &f64| libm::erf((libm::log(*sigma) - self.p_mean) / (2f64.sqrt() * self.p_std));
        let mass: Vec<f64> = sigma.windows(2).map(|pair| place(&pair[1]) - place(&pair[0])).collect();
        let all: f64 = mass.iter().sum();
        Discretization { sigma, p: mass.into_iter().map(|m| m / all).collect() }
    }
}

settings! {
    /// Settings of consistency models' samples.
    pub struct Sampling: "consistency models", "consistency_", scores {
        /// Network calls for each sample: one at level 80, the others at EDM's levels between 80
        /// and 0.002.
        steps: usize = [1], 1..=1000, "", Stated("Table 1: one network call");
    }
}

/// Levels sigma_1 < sigma_2 < ... from 0.002 to 80, and the probability p(i) of each gap between
/// two of them: the mass of a lognormal between the levels.
pub struct Discretization {
    pub sigma: Vec<f64>,
    pub p: Vec<f64>,
}

impl Discretization {
    /// Returns the levels at these indices, counted from 0, as float32.
    pub fn at(&self, places: &[usize]) -> Vec<f32> {
        places.iter().map(|i| self.sigma[*i] as f32).collect()
    }

    /// Returns the levels below and above these gaps.
    pub fn ends(&self, gaps: &[usize]) -> [Vec<f32>; 2] {
        let above: Vec<usize> = gaps.iter().map(|i| i + 1).collect();
        [self.at(gaps), self.at(&above)]
    }
}

/// Returns the index that u in [0, 1) selects from the distribution `p`: the number of running sums
/// of `p` that are at most u times their total.
pub fn categorical(p: &[f64], u: f32) -> usize {
    let mut sum = 0.0;
    let sums: Vec<f64> = p.iter().map(|p| (sum += p, sum).1).collect();
    sums.partition_point(|running| running / sum <= f64::from(u))
}

/// Computes d(a, b) = sqrt(|a - b|^2 + c^2) - c of each image (B), c = 0.00054 sqrt(values of an image).
pub fn pseudo_huber(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let difference = (a - b)?.flatten_from(1)?;
    let c = 0.00054 * (difference.dim(1)? as f64).sqrt();
    (difference.sqr()?.sum(1)? + c * c)?.sqrt()? - c
}

/// Computes the mean over images of `x` (B) divided by |t - u|.
pub fn over_gaps(x: &Tensor, t: &[f32], u: &[f32]) -> Result<Tensor> {
    let weight: Vec<f32> = t.iter().zip(u).map(|(t, u)| 1.0 / (t - u).abs()).collect();
    (x * Tensor::from_vec(weight, x.dims(), x.device())?)?.mean_all()
}

/// Computes J(x, t, u), the jump from level t to level u: one Euler step of EDM's denoiser, whose
/// network has u as a second conditioning, with dropout if there are masks. J(x, t, t) = x: images
/// that stay where they are, with t = u, are not shown to the network.
pub fn jump(net: &Denoiser, x: &Tensor, t: &[f32], u: &[f32], masks: Option<&Masks>) -> Result<Tensor> {
    let moving: Vec<usize> = (0..t.len()).filter(|i| t[*i] != u[*i]).collect();
    if moving.len() == t.len() {
        return moved(net, x, t, u, masks);
    }
    if moving.is_empty() {
        return Ok(x.clone());
    }
    let places = Tensor::from_iter(moving.iter().map(|i| *i as u32), x.device())?;
    let of = |levels: &[f32]| moving.iter().map(|i| levels[*i]).collect::<Vec<_>>();
    let rows = |map: &Tensor| map.index_select(&places, 0);
    let masks = masks.map(|masks| {
        Ok::<_, Error>(Masks { keep: masks.keep.iter().map(rows).collect::<Result<_>>()?, p: masks.p })
    });
    let landed = moved(net, &rows(x)?, &of(t), &of(u), masks.transpose()?.as_ref())?;
    let mut from: Vec<u32> = (0..t.len() as u32).collect();
    moving.iter().zip(t.len() as u32..).for_each(|(i, row)| from[*i] = row);
    Tensor::cat(&[x, &landed], 0)?.index_select(&Tensor::new(from, x.device())?, 0)
}

fn moved(net: &Denoiser, x: &Tensor, t: &[f32], u: &[f32], masks: Option<&Masks>) -> Result<Tensor> {
    let d2 = SIGMA_DATA * SIGMA_DATA;
    let of = |f: fn(f32, f32, f32) -> f32| t.iter().zip(u).map(|(t, u)| f(*t, *u, d2)).collect::<Vec<_>>();
    let skip = of(|t, u, d2| (t * u + d2) / (t * t + d2));
    let out = of(|t, u, d2| d2.sqrt() * (t - u) / (t * t + d2).sqrt());
    mix(x, &skip, &raw(net, x, t, Some(u), masks)?, &out)
}

/// Computes F(c_in x; ln t / 4), also conditioned on ln u / 4 if the network has a second time.
fn raw(net: &Denoiser, x: &Tensor, t: &[f32], u: Option<&[f32]>, masks: Option<&Masks>) -> Result<Tensor> {
    let c = Precondition::at(t);
    let second = u.map(|u| Precondition::at(u).noise);
    let conditioning = Conditioning { noise: &c.noise, second: second.as_deref(), augment: None, masks };
    net.raw(&scale_images(x, &c.input)?, &conditioning)
}

/// Reads training images; half of them are mirrored at scales that augment.
fn images(b: &Batch) -> Result<Tensor> {
    b.mirror("mirror", &b.images("index")?)
}

/// Lists the settings that consistency models share with every one-step training.
fn shared(overrides: &Overrides) -> Vec<Setting> {
    OneStep::named(overrides, &["eps", "ema_half_life", "augment_p"])
}

fn radam(setup: &Setup, [beta1, beta2]: [f64; 2]) -> AdamConfig {
    AdamConfig { beta1, beta2, eps: setup.settings.eps, rectified: true }
}

/// Makes the network for training, with the average that is published. Layers without given weights
/// get random ones.
fn student(setup: &Setup, second: SecondTime, betas: [f64; 2]) -> Result<Net<Denoiser>> {
    let (none, cell) = (Arrays::new(), format!("{} generator", setup.cell));
    let drawn = if setup.initial.generator.is_some() { second.layers() } else { &[""] };
    let source = Source { given: setup.initial.generator.unwrap_or(&none), drawn, cell: &cell };
    let build = |vb: Variables| Denoiser::with_second_time(setup.network, second, vb);
    Net::new(setup.compute, &source, radam(setup, betas), build)?.with_ema(setup.settings.ema_half_life)
}

/// Samples by a function that maps every level to an image: x = f(80 z, 80). More steps add noise
/// of a lower level and apply f again.
struct ConsistencySampler {
    denoiser: Denoiser,
    function: fn(&Denoiser, &Tensor, &[f32]) -> Result<Tensor>,
    /// Level at which the function is the identity.
    bottom: f64,
    steps: usize,
}

impl Sampler for ConsistencySampler {
    fn nfe(&self) -> usize {
        self.steps
    }

    fn latents(&self) -> usize {
        self.steps
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        let (n, levels) = (z.dim(0)?, polynomial(self.steps + 1));
        let mut image = None;
        for (z, level) in z.chunk(self.steps, 1)?.iter().zip(levels) {
            let x = match image {
                None => (z * level)?,
                Some(x) => (x + (z * (level * level - self.bottom * self.bottom).sqrt())?)?,
            };
            image = Some((self.function)(&self.denoiser, &x, &vec![level as f32; n])?);
        }
        Ok(image.expect("a step"))
    }
}

/// Samples by jumps J.
struct JumpSampler {
    denoiser: Denoiser,
    steps: usize,
}

impl JumpSampler {
    fn load(setup: &Setup, weights: &Arrays) -> Result<Box<dyn Sampler>> {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        Ok(Box::new(JumpSampler { denoiser, steps: setup.own::<Sampling>().steps }))
    }
}

impl Sampler for JumpSampler {
    fn nfe(&self) -> usize {
        self.steps
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        jumps(&self.denoiser, z, self.steps)
    }
}

/// Makes images of z by `steps` jumps along EDM's levels from 80 to 0.002.
pub fn jumps(net: &Denoiser, z: &Tensor, steps: usize) -> Result<Tensor> {
    let (levels, n) = (polynomial(steps + 1), z.dim(0)?);
    let at = |level: f64| vec![level as f32; n];
    levels.windows(2).try_fold((z * levels[0])?, |x, pair| jump(net, &x, &at(pair[0]), &at(pair[1]), None))
}
