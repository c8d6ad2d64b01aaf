//! Noise levels, their weights, and EDM's preconditioning (Karras et al. 2022,
//! Table 1), all host-side float32.

use crate::rng::Draws;

/// Standard deviation of the data that EDM's preconditioning assumes.
pub const SIGMA_DATA: f32 = 0.5;

/// Where noise levels come from while a network trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// ln sigma ~ N(mean, sd^2): EDM's training distribution; the paper is
    /// silent, and its closest relatives (Diff-Instruct, SiD) use it.
    LogNormal { mean: f32, sd: f32 },
    /// One level only: the paper's "single-level DSM" (section 3).
    Fixed(f32),
}

impl Levels {
    pub fn draw(&self, draws: &mut Draws, n: usize) -> Vec<f32> {
        match *self {
            Levels::LogNormal { mean, sd } => {
                (0..n).map(|_| libm::expf(mean + sd * draws.normal())).collect()
            }
            Levels::Fixed(sigma) => vec![sigma; n],
        }
    }
}

impl std::fmt::Display for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Levels::LogNormal { mean, sd } => write!(f, "lognormal({mean}, {sd})"),
            Levels::Fixed(sigma) => write!(f, "fixed({sigma})"),
        }
    }
}

/// Coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), one per
/// image.
pub struct Precondition {
    pub skip: Vec<f32>,
    pub out: Vec<f32>,
    pub input: Vec<f32>,
    pub noise: Vec<f32>,
}

impl Precondition {
    pub fn at(sigma: &[f32]) -> Precondition {
        let d2 = SIGMA_DATA * SIGMA_DATA;
        let each = |f: &dyn Fn(f32) -> f32| sigma.iter().map(|s| f(*s)).collect();
        Precondition {
            skip: each(&|s| d2 / (s * s + d2)),
            out: each(&|s| s * SIGMA_DATA / (s * s + d2).sqrt()),
            input: each(&|s| 1.0 / (s * s + d2).sqrt()),
            noise: each(&|s| libm::logf(s) / 4.0),
        }
    }
}

/// EDM's loss weight, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
pub fn edm_weight(sigma: f32) -> f32 {
    let d2 = SIGMA_DATA * SIGMA_DATA;
    (sigma * sigma + d2) / (sigma * sigma * d2)
}
