//! The diffusion of Diffusion-GAN, and how its length follows the discriminator.

use crate::network::mix;
use candle_core::{Result, Tensor};

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

    /// Standard deviations of the noise after `t` steps.
    pub fn noise(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|t| self.noise[*t]).collect()
    }

    /// Images `x` (B, C, H, W) after `t` steps (B).
    pub fn diffuse(&self, x: &Tensor, t: &[usize], eps: &Tensor) -> Result<Tensor> {
        mix(x, &self.signal(t), eps, &self.noise(t))
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
