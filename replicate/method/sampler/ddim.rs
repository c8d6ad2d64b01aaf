//! DDIM (Song, Meng and Ermon 2021, arXiv 2010.02502), deterministic (eta = 0), on the
//! teacher.

use super::schedule::polynomial;
use super::{Denoise, in_float64, slope, start};
use crate::method::{Sampler, Spec};
use crate::network::unet::Denoiser;
use candle_core::{Result, Tensor};

/// Steps, each of one call, down to 0.002: no call is spent on a final level 0.
const STEPS: usize = 10;

/// The state at the last of `levels` from latents z ~ N(0, I) (B, C, H, W), in float64:
/// one call a step. In x / sqrt(alpha) and sigma = sqrt((1 - alpha) / alpha), Eq. 13 is
/// Euler's method on dx / dsigma = d(x, sigma).
pub fn ddim(denoise: Denoise, z: &Tensor, levels: &[f64]) -> Result<Tensor> {
    let mut x = start(z, levels)?;
    for pair in levels.windows(2) {
        let (sigma, next) = (pair[0], pair[1]);
        x = (&x + (slope(denoise, &x, sigma)? * (next - sigma))?)?;
    }
    Ok(x)
}

pub const SPEC: Spec = Spec {
    name: "10-step DDIM sampling of the teacher, EDM's levels",
    cite: "Song et al. 2021, Eq 13 with eta = 0",
    file: file!(),
    fingerprint: None,
    training: None,
    nfe: |_| STEPS,
    settings: &[],
    sampler: |setup, weights| {
        Ok(Box::new(Ddim { denoiser: Denoiser::load(setup.network, weights, setup.device)? }))
    },
};

struct Ddim {
    denoiser: Denoiser,
}

impl Sampler for Ddim {
    fn nfe(&self) -> usize {
        STEPS
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        ddim(&in_float64(&self.denoiser), z, &polynomial(STEPS + 1))
    }
}
