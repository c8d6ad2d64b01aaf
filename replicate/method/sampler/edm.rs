//! Sampling: EDM's deterministic Heun solver for the teacher, one network call
//! for a one-step generator.

use crate::network::unet::Denoiser;
use candle_core::{DType, Result, Tensor};

/// Heun steps of the teacher (Table 1: 2 * 18 - 1 = 35 network calls).
pub const HEUN_STEPS: usize = 18;

const SIGMA_MIN: f64 = 0.002;
const SIGMA_MAX: f64 = 80.0;
const RHO: f64 = 7.0;

/// The noise levels of EDM's solver, from 80 down to 0.002, then 0.
pub fn heun_levels(steps: usize) -> Vec<f64> {
    let (max, min) = (SIGMA_MAX.powf(1.0 / RHO), SIGMA_MIN.powf(1.0 / RHO));
    let level = |i: usize| (max + i as f64 / (steps - 1) as f64 * (min - max)).powf(RHO);
    (0..steps).map(level).chain([0.0]).collect()
}

/// x_0 from latents z ~ N(0, I) (B, C, H, W): EDM's second-order solver without
/// churn, state in float64 (Karras et al. 2022, Algorithm 1).
pub fn heun(denoiser: &Denoiser, z: &Tensor, steps: usize) -> Result<Tensor> {
    let batch = z.dim(0)?;
    let slope = |x: &Tensor, sigma: f64| -> Result<Tensor> {
        let d = denoiser.forward(&x.to_dtype(DType::F32)?, &vec![sigma as f32; batch], None)?;
        (x - d.to_dtype(DType::F64)?)? / sigma
    };
    let levels = heun_levels(steps);
    let mut x = (z.to_dtype(DType::F64)? * levels[0])?;
    for pair in levels.windows(2) {
        let (sigma, next) = (pair[0], pair[1]);
        let d = slope(&x, sigma)?;
        let euler = (&x + (&d * (next - sigma))?)?;
        x = if next > 0.0 {
            let mean = ((d + slope(&euler, next)?)? * (0.5 * (next - sigma)))?;
            (x + mean)?
        } else {
            euler
        };
    }
    Ok(x)
}

/// g(z) = D(sigma_init z; sigma_init).
pub fn one_step(generator: &Denoiser, z: &Tensor, sigma_init: f64) -> Result<Tensor> {
    generator.forward(&(z * sigma_init)?, &vec![sigma_init as f32; z.dim(0)?], None)
}
