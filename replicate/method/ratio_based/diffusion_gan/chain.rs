//! The diffusion of Diffusion-GAN, whose length adapts to the discriminator.

use crate::network::mix;
use candle_core::{Result, Tensor};

/// Standard deviation of the noise of a complete diffusion, in units of the images.
const NOISE: f32 = 0.05;

/// A diffusion in T steps: x_t = signal_t x + noise_t eps, from the image at t = 0 to t = T.
pub struct Chain {
    signal: Vec<f32>,
    noise: Vec<f32>,
}

impl Chain {
    /// Makes a diffusion with beta_i in equal steps from 1e-4 to 0.02, for any number of steps.
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

    /// Number of steps T.
    pub fn steps(&self) -> usize {
        self.signal.len() - 1
    }

    /// Returns the factors of the images' signal after `t` steps, one for each image.
    pub fn signal(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|t| self.signal[*t]).collect()
    }

    /// Returns the standard deviations of the noise after `t` steps, one for each image.
    pub fn noise(&self, t: &[usize]) -> Vec<f32> {
        t.iter().map(|t| self.noise[*t]).collect()
    }

    /// Diffuses images `x` (B, C, H, W) for `t` steps (B).
    pub fn diffuse(&self, x: &Tensor, t: &[usize], eps: &Tensor) -> Result<Tensor> {
        mix(x, &self.signal(t), eps, &self.noise(t))
    }

    /// Returns the times that images choose from: for every number `u` in [0, 1) a time t from 1 to
    /// T with probability proportional to t - 1, and equally many zeros.
    pub fn times(&self, u: &[f64]) -> Vec<usize> {
        let last = self.steps();
        let all = (last * (last - 1) / 2) as f64;
        // The probability of times up to t is t (t - 1) / 2 divided by that of T.
        let drawn = u.iter().map(|u| (1..last).find(|t| (t * (t - 1) / 2) as f64 / all > *u).unwrap_or(last));
        drawn.chain(std::iter::repeat_n(0, u.len())).collect()
    }
}

/// Length of the diffusion, which grows while the discriminator recognises the data too well.
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

    /// Number of steps T at the present p.
    pub fn steps(&self) -> usize {
        libm::rint(Self::FEWEST + (Self::MOST - Self::FEWEST) * self.p) as usize
    }

    /// Updates p after iterations of `batch` images; `sign` is the mean sign of the logits of data
    /// in them.
    pub fn update(&mut self, sign: f64, batch: usize) {
        let step = (batch as u64 * Self::EVERY) as f64 / Self::IMAGES;
        let direction = if sign == Self::TARGET { 0.0 } else { (sign - Self::TARGET).signum() };
        self.p = (self.p + direction * step).clamp(0.0, 1.0);
    }
}
