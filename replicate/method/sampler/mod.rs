//! Samplers that make images with a denoiser in several steps.
//!
//! In all of them x(sigma) = x_0 + sigma noise, D(x; sigma) is EDM's preconditioned denoiser, and
//! d(x, sigma) = (x - D(x; sigma)) / sigma is the slope of the probability flow dx / dsigma = d.
//! State and levels are float64, as in EDM's solver.

pub mod amed;
pub mod ddim;
pub mod dpm_solver;
pub mod edm;
pub mod ipndm;
pub mod predictor;

use crate::network::unet::Denoiser;
use candle_core::{DType, Result, Tensor};

/// Computes D(x; sigma) of a batch in float64 at one noise level.
pub type Denoise<'a> = &'a dyn Fn(&Tensor, f64) -> Result<Tensor>;

/// Returns the state at the first of `levels`.
fn start(z: &Tensor, levels: &[f64]) -> Result<Tensor> {
    z.to_dtype(DType::F64)? * levels[0]
}

fn slope(denoise: Denoise, x: &Tensor, sigma: f64) -> Result<Tensor> {
    (x - denoise(x, sigma)?)? / sigma
}

/// Converts D of a float32 network to float64.
pub fn in_float64(denoiser: &Denoiser) -> impl Fn(&Tensor, f64) -> Result<Tensor> {
    |x, sigma| {
        let levels = vec![sigma as f32; x.dim(0)?];
        denoiser.forward(&x.to_dtype(DType::F32)?, &levels)?.to_dtype(DType::F64)
    }
}
