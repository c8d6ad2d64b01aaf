//! From a denoiser to images in several steps.
//!
//! Everywhere x(sigma) = x_0 + sigma noise, D(x; sigma) is EDM's preconditioned denoiser
//! and d(x, sigma) = (x - D(x; sigma)) / sigma the slope of the probability flow
//! dx / dsigma = d. State and levels are float64, as in EDM's own solver.

pub mod amed;
pub mod ddim;
pub mod dpm_solver;
pub mod edm;
pub mod ipndm;
pub mod predictor;
pub mod schedule;

use crate::network::unet::Denoiser;
use candle_core::{DType, Result, Tensor};

/// D(x; sigma) of a batch in float64 at one noise level.
pub type Denoise<'a> = &'a dyn Fn(&Tensor, f64) -> Result<Tensor>;

/// The state at the first of `levels`.
fn start(z: &Tensor, levels: &[f64]) -> Result<Tensor> {
    z.to_dtype(DType::F64)? * levels[0]
}

fn slope(denoise: Denoise, x: &Tensor, sigma: f64) -> Result<Tensor> {
    (x - denoise(x, sigma)?)? / sigma
}

/// A network's D: the network itself is float32.
pub fn in_float64(denoiser: &Denoiser) -> impl Fn(&Tensor, f64) -> Result<Tensor> {
    |x, sigma| {
        let levels = vec![sigma as f32; x.dim(0)?];
        denoiser.forward(&x.to_dtype(DType::F32)?, &levels, None)?.to_dtype(DType::F64)
    }
}
