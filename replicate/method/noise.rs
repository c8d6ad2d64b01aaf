//! Noise levels and their weights (Karras et al. 2022, Table 1), in float32 on the host.

use crate::network::precondition::SIGMA_DATA;
use crate::settings::Choice;
use crate::train::batch::Batch;
use candle_core::Result;

/// Distribution of the noise levels in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// ln sigma ~ N(mean, sd^2), EDM's training distribution. The paper does not give one; its
    /// closest relatives (Diff-Instruct, SiD) use this.
    LogNormal { mean: f32, sd: f32 },
    /// Uniform in sigma^(1/7), from 0.002 up to the fraction `share` of the way to 80 (SiD).
    Karras { share: f64 },
    /// One level only: the paper's "single-level DSM" (section 3).
    Fixed(f32),
}

impl Levels {
    /// ln sigma ~ N(mean, sd^2).
    pub fn log_normal(mean: f64, sd: f64) -> Levels {
        Levels::LogNormal { mean: mean as f32, sd: sd as f32 }
    }

    /// Draws one level for each image of the batch, from the stream `name`.
    pub fn draw(&self, batch: &Batch, name: &str) -> Result<Vec<f32>> {
        match *self {
            Levels::LogNormal { mean, sd } => {
                batch.each(name, |draws| libm::expf(mean + sd * draws.normal()))
            }
            Levels::Karras { share } => {
                batch.each(name, |draws| karras_level(share * f64::from(draws.uniform())) as f32)
            }
            Levels::Fixed(sigma) => Ok(vec![sigma; batch.len()]),
        }
    }
}

impl std::fmt::Display for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Levels::LogNormal { mean, sd } => write!(f, "lognormal({mean}, {sd})"),
            Levels::Karras { share } => write!(f, "rho-7({share})"),
            Levels::Fixed(sigma) => write!(f, "fixed({sigma})"),
        }
    }
}

/// EDM's smallest noise level.
pub const SIGMA_MIN: f64 = 0.002;
/// EDM's largest noise level.
pub const SIGMA_MAX: f64 = 80.0;
const RHO: f64 = 7.0;

/// Returns the level at position `v` of EDM's grid, which is uniform in sigma^(1/7) from 0.002 at 0
/// to 80 at 1 (Eq 5).
pub fn karras_level(v: f64) -> f64 {
    let (max, min) = (libm::pow(SIGMA_MAX, 1.0 / RHO), libm::pow(SIGMA_MIN, 1.0 / RHO));
    libm::pow(max + (1.0 - v) * (min - max), RHO)
}

/// EDM's loss weight, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
pub fn edm_weight(sigma: f32) -> f32 {
    let d2 = SIGMA_DATA * SIGMA_DATA;
    (sigma * sigma + d2) / (sigma * sigma * d2)
}

/// Distribution of the noise levels in the generator's step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GeneratorLevels {
    /// Levels of the critic's step.
    LogNormal,
    /// SiD's: the lower [`SID_SHARE`] of EDM's grid.
    Karras,
}

impl Choice for GeneratorLevels {
    const ALL: &'static [(&'static str, GeneratorLevels)] =
        &[("lognormal", GeneratorLevels::LogNormal), ("karras", GeneratorLevels::Karras)];
}

/// Fraction of EDM's grid that SiD uses: 800 of 1000 levels.
pub const SID_SHARE: f64 = 0.8;

/// Weight of the generator's loss as a function of the noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// The paper's w(t) = sigma^2 (appendix B).
    SigmaSquared,
    One,
}

impl Choice for Weight {
    const ALL: &'static [(&'static str, Weight)] = &[("sigma^2", Weight::SigmaSquared), ("1", Weight::One)];
}

impl Weight {
    /// Returns the weight of each image for levels `sigma` (B).
    pub fn of(self, sigma: &[f32]) -> Vec<f32> {
        match self {
            Weight::SigmaSquared => sigma.iter().map(|s| s * s).collect(),
            Weight::One => vec![1.0; sigma.len()],
        }
    }
}
