//! Noise levels and their weights (Karras et al. 2022, Table 1), host-side float32.

use crate::network::precondition::SIGMA_DATA;
use crate::rng::Draws;

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

/// EDM's loss weight, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
pub fn edm_weight(sigma: f32) -> f32 {
    let d2 = SIGMA_DATA * SIGMA_DATA;
    (sigma * sigma + d2) / (sigma * sigma * d2)
}
