//! DPM-Solver-fast (Lu et al. 2022, arXiv 2206.00927): single-step solvers of orders 3, 2 and 1
//! with noise prediction, on levels uniform in lambda = -ln sigma.
//!
//! The paper uses alpha_t x_0 + sigma_t noise. Here alpha = 1 and eps(x, sigma) = d(x, sigma), so
//! sigma_t (e^h - 1) = s - t for a step from s to t, with h = ln(s / t).

use super::{Denoise, in_float64, slope, start};
use crate::method::schedule::log_snr;
use crate::method::{Sampler, Spec};
use crate::network::unet::Denoiser;
use crate::settings::{Settings, settings};
use candle_core::{Result, Tensor, bail};

/// Least number of calls with a step of order 3; three calls would be steps of orders 2 and 1.
const FEWEST_CALLS: usize = 4;

settings! {
    /// Settings of DPM-Solver-fast.
    pub struct DpmSettings: "dpm_solver", "dpm_solver_" {
        /// Network calls, divided into steps of orders 3, 2 and 1.
        calls: usize = [10], FEWEST_CALLS..=1000, "", Stated("Table 1: 10 network calls");
    }
}

/// Returns the orders of the steps for `calls` network calls: order 3 until one, two or three calls
/// remain, which become steps of order 1, order 2, or orders 2 and 1.
///
/// # Errors
/// If `calls` is too small for a step of order 3.
pub fn orders(calls: usize) -> Result<Vec<usize>> {
    if calls < FEWEST_CALLS {
        bail!("DPM-Solver-fast needs {FEWEST_CALLS} calls or more for a step of order 3, not {calls}");
    }
    let thirds = calls / 3;
    Ok(match calls % 3 {
        0 => [vec![3; thirds - 1], vec![2, 1]].concat(),
        rest => [vec![3; thirds], vec![rest]].concat(),
    })
}

/// Computes the state at 0.002 from latents `z` ~ N(0, I) (B, C, H, W), in float64, with `calls`
/// network calls. All steps have the same length in lambda, whatever their order.
///
/// # Errors
/// Those of [`orders`] and of the network.
pub fn dpm_solver_fast(denoise: Denoise, z: &Tensor, calls: usize) -> Result<Tensor> {
    let orders = orders(calls)?;
    let levels = log_snr(orders.len() + 1);
    let mut x = start(z, &levels)?;
    for (pair, order) in levels.windows(2).zip(orders) {
        x = step(denoise, order, &x, pair[0], pair[1])?;
    }
    Ok(x)
}

/// Steps from the state `x` at level `s` to level `t` with `order` calls: Eq. 3.7 (order 1),
/// Algorithm 1 (order 2, r1 = 1/2) or Algorithm 2 (order 3, r1 = 1/3 and r2 = 2/3).
pub fn step(denoise: Denoise, order: usize, x: &Tensor, s: f64, t: f64) -> Result<Tensor> {
    let h = libm::log(s / t);
    // The state at level q for a constant slope `d`.
    let euler = |d: &Tensor, q: f64| -> Result<Tensor> { x + (d * (q - s))? };
    // The factor q (e^u - 1 - u) / u of a change of the slope.
    let bend = |q: f64, u: f64| q * (libm::expm1(u) / u - 1.0);

    let d0 = slope(denoise, x, s)?;
    match order {
        1 => euler(&d0, t),
        2 => {
            let middle = (s * t).sqrt();
            let d1 = slope(denoise, &euler(&d0, middle)?, middle)?;
            euler(&d1, t)
        }
        3 => {
            let (third, two_thirds) = (s * libm::exp(-h / 3.0), s * libm::exp(-2.0 * h / 3.0));
            let d1 = slope(denoise, &euler(&d0, third)?, third)?;
            let change = ((&d1 - &d0)? * (2.0 * bend(two_thirds, 2.0 * h / 3.0)))?;
            let d2 = slope(denoise, &(euler(&d0, two_thirds)? - change)?, two_thirds)?;
            let change = ((d2 - &d0)? * (1.5 * bend(t, h)))?;
            euler(&d0, t)? - change
        }
        _ => bail!("DPM-Solver has steps of order 1, 2 and 3, not {order}"),
    }
}

/// DPM-Solver-fast.
pub const SPEC: Spec = Spec {
    name: "DPM-Solver-fast sampling of the teacher",
    cite: "Lu et al. 2022, Algorithms 1 and 2",
    file: file!(),
    fingerprint: None,
    training: None,
    nfe: |overrides| DpmSettings::with(overrides).calls,
    settings: &[DpmSettings::listed],
    sampler: |setup, weights| {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        Ok(Box::new(DpmSolver { denoiser, calls: setup.own::<DpmSettings>().calls }))
    },
};

struct DpmSolver {
    denoiser: Denoiser,
    calls: usize,
}

impl Sampler for DpmSolver {
    fn nfe(&self) -> usize {
        self.calls
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        dpm_solver_fast(&in_float64(&self.denoiser), z, self.calls)
    }
}
