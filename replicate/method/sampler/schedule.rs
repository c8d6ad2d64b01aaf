//! Noise levels of the multi-step samplers: n + 1 of them make n steps from 80 down to
//! 0.002, where all of them stop.

use crate::method::noise::seventh_root;
pub use crate::method::noise::{SIGMA_MAX, SIGMA_MIN};
use crate::settings::Choice;

/// How the levels are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    Polynomial,
    LogSnr,
    UniformTime,
    QuadraticTime,
}

impl Choice for Schedule {
    const ALL: &'static [(&'static str, Schedule)] = &[
        ("polynomial", Schedule::Polynomial),
        ("log-snr", Schedule::LogSnr),
        ("uniform-time", Schedule::UniformTime),
        ("quadratic-time", Schedule::QuadraticTime),
    ];
}

impl Schedule {
    /// `n` levels, 2 or more.
    pub fn levels(self, n: usize) -> Vec<f64> {
        match self {
            Schedule::Polynomial => polynomial(n),
            Schedule::LogSnr => log_snr(n),
            Schedule::UniformTime => time_uniform(n, 1.0),
            Schedule::QuadraticTime => time_uniform(n, 2.0),
        }
    }
}

/// `levels` noise levels, uniform in sigma^(1/7) (Karras et al. 2022, Eq. 5), without the
/// 0 that EDM's own solver appends.
pub fn polynomial(levels: usize) -> Vec<f64> {
    places(levels).map(|u| seventh_root(1.0 - u)).collect()
}

/// `levels` noise levels, uniform in lambda = -ln sigma, half the log signal-to-noise
/// ratio (Lu et al. 2022, arXiv 2206.00927).
pub fn log_snr(levels: usize) -> Vec<f64> {
    let ratio = libm::log(SIGMA_MIN / SIGMA_MAX);
    places(levels).map(|u| SIGMA_MAX * libm::exp(u * ratio)).collect()
}

/// `levels` noise levels, uniform in t^(1/rho), t the time of the variance-preserving
/// process (Song et al. 2021) that is at 80 for t = 1 and at 0.002 for t = 0.001: rho 1
/// is DDPM's spacing, 2 the quadratic one of DDIM.
pub fn time_uniform(levels: usize, rho: f64) -> Vec<f64> {
    const LAST: f64 = 1e-3;
    let log_variance = |sigma: f64| libm::log1p(sigma * sigma);
    let slope = 2.0 * (log_variance(SIGMA_MIN) / LAST - log_variance(SIGMA_MAX)) / (LAST - 1.0);
    let start = log_variance(SIGMA_MAX) - slope / 2.0;
    let time = |u: f64| (1.0 + u * (LAST.powf(1.0 / rho) - 1.0)).powf(rho);
    // exp(...) - 1 of the last level would lose half of its digits.
    let sigma = |t: f64| libm::expm1(slope * t * t / 2.0 + start * t).sqrt();
    places(levels).map(|u| sigma(time(u))).collect()
}

/// From 0 to 1 at equal distances.
fn places(n: usize) -> impl Iterator<Item = f64> {
    (0..n).map(move |i| i as f64 / (n - 1) as f64)
}
