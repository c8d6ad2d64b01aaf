//! Sampling: EDM's deterministic Heun solver for the teacher, one network call
//! for a one-step generator.

use super::schedule::polynomial;
use super::{in_float64, slope, start};
use crate::network::unet::Denoiser;
use candle_core::{Result, Tensor};

/// Heun steps of the teacher (Table 1: 2 * 18 - 1 = 35 network calls).
pub const HEUN_STEPS: usize = 18;

/// The noise levels of EDM's solver, from 80 down to 0.002, then 0.
pub fn heun_levels(steps: usize) -> Vec<f64> {
    [polynomial(steps), vec![0.0]].concat()
}

/// x_0 from latents z ~ N(0, I) (B, C, H, W): EDM's second-order solver without
/// churn, state in float64 (Karras et al. 2022, Algorithm 1).
pub fn heun(denoiser: &Denoiser, z: &Tensor, steps: usize) -> Result<Tensor> {
    let denoise = in_float64(denoiser);
    let levels = heun_levels(steps);
    let mut x = start(z, &levels)?;
    for pair in levels.windows(2) {
        let (sigma, next) = (pair[0], pair[1]);
        let d = slope(&denoise, &x, sigma)?;
        let euler = (&x + (&d * (next - sigma))?)?;
        x = if next > 0.0 {
            let mean = ((d + slope(&denoise, &euler, next)?)? * (0.5 * (next - sigma)))?;
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
