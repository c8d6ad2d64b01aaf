//! EDM's deterministic Heun solver, which samples the teacher.

use super::{in_float64, slope, start};
use crate::method::schedule::polynomial;
use crate::method::{Sampler, Spec};
use crate::network::unet::Denoiser;
use crate::settings::{Settings, settings};
use candle_core::{Result, Tensor};

settings! {
    /// Settings of EDM's sampler.
    pub struct HeunSettings: "edm", "heun_" {
        /// Steps of the teacher's solver; the last takes one network call, the others two.
        steps: usize = [18], 2..=1000, "";
    }
}

impl HeunSettings {
    /// Table 1: 2 * 18 - 1 = 35 network calls.
    fn nfe(&self) -> usize {
        2 * self.steps - 1
    }
}

/// Returns the noise levels of EDM's solver, from 80 down to 0.002, then 0.
fn heun_levels(steps: usize) -> Vec<f64> {
    [polynomial(steps), vec![0.0]].concat()
}

/// Computes x_0 from latents z ~ N(0, I) (B, C, H, W) with EDM's second-order solver without churn,
/// in float64 (Karras et al. 2022, Algorithm 1).
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

/// EDM's second-order sampler without churn.
pub const SPEC: Spec = Spec {
    name: "18-step Heun sampling of the teacher",
    cite: "Karras et al. 2022, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: None,
    nfe: |overrides| HeunSettings::with(overrides).nfe(),
    settings: &[HeunSettings::listed],
    sampler: |setup, weights| {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        Ok(Box::new(Heun { denoiser, settings: setup.own() }))
    },
};

struct Heun {
    denoiser: Denoiser,
    settings: HeunSettings,
}

impl Sampler for Heun {
    fn nfe(&self) -> usize {
        self.settings.nfe()
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        heun(&self.denoiser, z, self.settings.steps)
    }
}
