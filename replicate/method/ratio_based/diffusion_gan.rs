//! Diffusion-GAN (Wang et al. 2023): a GAN from scratch whose discriminator sees images after
//! some steps of a diffusion, as many as it can bear.

use crate::method::equations::softplus;
use crate::network::stylegan2::Discriminator;
use crate::network::{elsewhere, mix, scale_images};
use candle_core::{Result, Tensor, Var};

/// Noise that all of the diffusion adds, as a share of the images' unit.
const NOISE: f32 = 0.05;

/// The diffusion in T steps: x_t = signal_t x + noise_t eps, from t = 0, the image, to T.
pub struct Chain {
    signal: Vec<f32>,
    noise: Vec<f32>,
}

impl Chain {
    /// beta_i from 1e-4 to 0.02 in equal steps, whatever their number.
    pub fn new(steps: usize) -> Chain {
        let beta = |i: usize| 1e-4 + (0.02 - 1e-4) * i as f64 / (steps.max(2) - 1) as f64;
        let (mut kept, mut signal, mut noise) = (1f32, vec![1.0], vec![0.0]);
        for i in 0..steps {
            kept *= 1.0 - beta(i) as f32;
            signal.push(kept.sqrt());
            noise.push((1.0 - kept).sqrt() * NOISE);
        }
        Chain { signal, noise }
    }

    /// T
    pub fn steps(&self) -> usize {
        self.signal.len() - 1
    }

    /// Factors of an image's signal after `t` steps, one for each.
    pub fn signal(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|t| self.signal[*t]).collect()
    }

    /// Images `x` (B, C, H, W) after `t` steps (B).
    pub fn diffuse(&self, x: &Tensor, t: &[usize], eps: &Tensor) -> Result<Tensor> {
        let noise: Vec<f32> = t.iter().map(|t| self.noise[*t]).collect();
        mix(x, &self.signal(t), eps, &noise)
    }

    /// The times from which each image draws its own: of every number `u` in [0, 1) one between
    /// 1 and T, t as likely as t - 1 is large, and as many zeros.
    pub fn times(&self, u: &[f64]) -> Vec<usize> {
        let last = self.steps();
        let all = (last * (last - 1) / 2) as f64;
        // The share of t and below is t (t - 1) / 2 of all.
        let drawn = u.iter().map(|u| (1..last).find(|t| (t * (t - 1) / 2) as f64 / all > *u).unwrap_or(last));
        drawn.chain(std::iter::repeat_n(0, u.len())).collect()
    }
}

/// How far images are diffused: further while the discriminator knows the data too well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// Between 0 and 1.
    pub p: f64,
}

impl Adaptive {
    /// Mean sign of the logits of data at which nothing changes.
    const TARGET: f64 = 0.6;
    /// Images in which p goes from 0 to 1.
    const IMAGES: f64 = 100_000.0;
    const FEWEST: f64 = 10.0;
    const MOST: f64 = 1000.0;
    /// Iterations from one change to the next.
    pub const EVERY: u64 = 4;

    /// T
    pub fn steps(&self) -> usize {
        libm::rint(Self::FEWEST + (Self::MOST - Self::FEWEST) * self.p) as usize
    }

    /// After iterations of `batch` images in which `sign` was the mean sign of the logits of data.
    pub fn update(&mut self, sign: f64, batch: usize) {
        let step = (batch as u64 * Self::EVERY) as f64 / Self::IMAGES;
        let direction = if sign == Self::TARGET { 0.0 } else { (sign - Self::TARGET).signum() };
        self.p = (self.p + direction * step).clamp(0.0, 1.0);
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
    let logits = frozen.forward(&x, t)?.sum_all()?;
    let Some(slope) = elsewhere::gradients(&logits)?.remove(&x) else {
        candle_core::bail!("the logits do not depend on the images")
    };
    // From the diffused image to the image, and of a step along it back to the diffused one.
    let v = scale_images(&slope.detach(), signal)?;
    let along = discriminator.along(&x.detach(), &scale_images(&v, signal)?, t)?;
    Ok(R1 { size: (v.sqr()?.sum_all()? / images)?, loss: (along.sum_all()? * (2.0 / images))? })
}

/// What is taken for R1 where the derivative is not (Lin et al. 2025): the mean squared
/// difference of the logits of images and of the same images beside.
pub fn approximate_r1(logits: &Tensor, beside: &Tensor) -> Result<Tensor> {
    (logits - beside)?.sqr()?.mean_all()
}
