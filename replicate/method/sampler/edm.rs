//! EDM's deterministic Heun solver, with which the teacher is sampled.

use super::schedule::polynomial;
use super::{in_float64, slope, start};
use crate::method::{Sampler, Spec};
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

pub const SPEC: Spec = Spec {
    name: "18-step Heun sampling of the teacher",
    cite: "Karras et al. 2022, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: None,
    nfe: 2 * HEUN_STEPS - 1,
    sampler: |setup, weights| {
        Ok(Box::new(Heun { denoiser: Denoiser::load(setup.network, weights, setup.device)? }))
    },
};

struct Heun {
    denoiser: Denoiser,
}

impl Sampler for Heun {
    fn nfe(&self) -> usize {
        2 * HEUN_STEPS - 1
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        heun(&self.denoiser, z, HEUN_STEPS)
    }
}
