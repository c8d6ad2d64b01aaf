//! DDIM (Song, Meng and Ermon 2021, arXiv 2010.02502), deterministic (eta = 0), applied to the
//! teacher.

use super::{Denoise, in_float64, slope, start};
use crate::method::schedule::Schedule;
use crate::method::{Sampler, Spec};
use crate::network::unet::Denoiser;
use crate::settings::{Settings, settings};
use candle_core::{Result, Tensor};

settings! {
    /// Settings of DDIM.
    pub struct DdimSettings: "ddim", "ddim_" {
        /// Steps from level 80 to 0.002, each with one network call; none leads to level 0.
        steps: usize = [10], 1..=1000, "", Stated("Table 1: 10 network calls");
        /// Spacing of the noise levels; polynomial is EDM's, uniform in sigma^(1/7).
        levels: Schedule = [Schedule::Polynomial], .., "",
            Silent("diff-sampler: 15.69 on this network with EDM's levels; 8.23 is another network's");
    }
}

/// Computes the state at the last of `levels` from latents z ~ N(0, I) (B, C, H, W), in float64,
/// with one call for each step. In the variables x / sqrt(alpha) and sigma = sqrt((1 - alpha) /
/// alpha), Eq. 13 is Euler's method for dx / dsigma = d(x, sigma).
pub fn ddim(denoise: Denoise, z: &Tensor, levels: &[f64]) -> Result<Tensor> {
    let mut x = start(z, levels)?;
    for pair in levels.windows(2) {
        let (sigma, next) = (pair[0], pair[1]);
        x = (&x + (slope(denoise, &x, sigma)? * (next - sigma))?)?;
    }
    Ok(x)
}

/// DDIM without noise.
pub const SPEC: Spec = Spec {
    name: "DDIM sampling of the teacher",
    cite: "Song et al. 2021, Eq 13 with eta = 0",
    file: file!(),
    fingerprint: None,
    training: None,
    nfe: |overrides| DdimSettings::with(overrides).steps,
    settings: &[DdimSettings::listed],
    sampler: |setup, weights| {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        Ok(Box::new(Ddim { denoiser, settings: setup.own() }))
    },
};

struct Ddim {
    denoiser: Denoiser,
    settings: DdimSettings,
}

impl Sampler for Ddim {
    fn nfe(&self) -> usize {
        self.settings.steps
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        let DdimSettings { steps, levels } = self.settings;
        ddim(&in_float64(&self.denoiser), z, &levels.levels(steps + 1))
    }
}
