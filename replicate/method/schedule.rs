//! Noise levels of the multi-step samplers and of consistency models: n + 1 levels make n steps from
//! 80 down to 0.002, the last level of all of them.

use crate::method::noise::{SIGMA_MAX, SIGMA_MIN, karras_level};
use crate::settings::Choice;

/// Spacing of the levels.
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
    /// Returns `n` levels, 2 or more.
    pub fn levels(self, n: usize) -> Vec<f64> {
        match self {
            Schedule::Polynomial => polynomial(n),
            Schedule::LogSnr => log_snr(n),
            Schedule::UniformTime => time_uniform(n, 1.0),
            Schedule::QuadraticTime => time_uniform(n, 2.0),
        }
    }
}

/// Returns noise levels uniform in sigma^(1/7) (Karras et al. 2022, Eq. 5), without the 0 that
/// EDM's solver appends.
pub fn polynomial(levels: usize) -> Vec<f64> {
    places(levels).map(|u| karras_level(1.0 - u)).collect()
}

/// Returns noise levels uniform in lambda = -ln sigma, half the log signal-to-noise ratio (Lu et
/// al. 2022, arXiv 2206.00927).
pub fn log_snr(levels: usize) -> Vec<f64> {
    let ratio = libm::log(SIGMA_MIN / SIGMA_MAX);
    places(levels).map(|u| SIGMA_MAX * libm::exp(u * ratio)).collect()
}

/// Returns noise levels uniform in t^(1/rho), where t is the time of a variance-preserving process
/// (Song et al. 2021) with sigma = 80 at t = 1 and sigma = 0.002 at t = 0.001. DDPM has rho = 1;
/// DDIM's quadratic spacing has rho = 2.
pub fn time_uniform(levels: usize, rho: f64) -> Vec<f64> {
    const LAST: f64 = 1e-3;
    let log_variance = |sigma: f64| libm::log1p(sigma * sigma);
    let slope = 2.0 * (log_variance(SIGMA_MIN) / LAST - log_variance(SIGMA_MAX)) / (LAST - 1.0);
    let start = log_variance(SIGMA_MAX) - slope / 2.0;
    let time = |u: f64| (1.0 + u * (LAST.powf(1.0 / rho) - 1.0)).powf(rho);
    // expm1, because exp(...) - 1 loses half of the digits at the last level.
    let sigma = |t: f64| libm::expm1(slope * t * t / 2.0 + start * t).sqrt();
    places(levels).map(|u| sigma(time(u))).collect()
}

/// Returns `n` numbers from 0 to 1 at equal distances.
fn places(n: usize) -> impl Iterator<Item = f64> {
    (0..n).map(move |i| i as f64 / (n - 1) as f64)
}
