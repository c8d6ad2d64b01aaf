//! The paper's equations on one page.
//!
//! x_t = x_0 + sigma eps. c = sigmoid(l) is the probability that x_t comes from the data, so the
//! logit l is the log-ratio log p_d(x_t) / q_theta(x_t). Every function is differentiable.

use crate::method::noise::edm_weight;
use crate::network;
use candle_core::{Result, Tensor};

/// Computes x_t = x_0 + sigma eps with one sigma for each image (section 1.1, k_t with
/// alpha_t = 1). Images are (B, C, H, W), `sigma` is (B).
pub fn diffuse(x0: &Tensor, sigma: &[f32], eps: &Tensor) -> Result<Tensor> {
    network::mix(x0, &[1.0], eps, sigma)
}

/// Eq 3 and 4, denoising score matching. With s(x_t) = (D(x_t) - x_t) / sigma^2 the integrand is
/// |D - x_0|^2 / (2 sigma^4); EDM's weight replaces the factor in front. Returns the mean over
/// all elements.
pub fn dsm(denoised: &Tensor, x0: &Tensor, sigma: &[f32]) -> Result<Tensor> {
    let weight: Vec<f32> = sigma.iter().map(|s| edm_weight(*s).sqrt()).collect();
    let minus: Vec<f32> = weight.iter().map(|w| -w).collect();
    network::mix(denoised, &weight, x0, &minus)?.sqr()?.mean_all()
}

/// Eq 5, variational score distillation. Returns the mean over images of w (s_q - s_p) . x_t, with
/// the score difference held constant; its gradient is that of Eq 5. Scores are
/// s = (D - x_t) / sigma^2.
pub fn vsd(
    xt: &Tensor,
    denoised_q: &Tensor,
    denoised_p: &Tensor,
    sigma: &[f32],
    weight: &[f32],
) -> Result<Tensor> {
    let w: Vec<f32> = sigma.iter().zip(weight).map(|(s, w)| w / (s * s)).collect();
    let minus: Vec<f32> = w.iter().map(|w| -w).collect();
    let direction = network::mix(denoised_q, &w, denoised_p, &minus)?.detach();
    (direction * xt)?.sum_all()? / xt.dim(0)? as f64
}

/// Eq 6 and 7, class-ratio estimation: logistic regression with y = 1 for the data and y = 0 for
/// the generator, on logits (B) each. Its minimum is l = log p_d / q_theta.
pub fn class_ratio(real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    softplus(&real.neg()?)?.mean_all()? + softplus(fake)?.mean_all()?
}

/// A divergence that the generator minimises, as a function phi of the critic's logit.
/// phi_DiKL = phi_DiJS + phi_DiRM pointwise, so the gradient weights of DiJS and DiRM, c and
/// 1 - c, sum to DiKL's 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Divergence {
    DiKl,
    DiJs,
    DiRm,
}

impl Divergence {
    /// The divergences, in the order of Eq 8, 9 and 10.
    pub const ALL: [Divergence; 3] = [Divergence::DiKl, Divergence::DiJs, Divergence::DiRm];

    /// Computes phi of each logit (B).
    pub fn phi(self, l: &Tensor) -> Result<Tensor> {
        match self {
            Divergence::DiKl => l.neg(),             // Eq 8: logit(1 - c)
            Divergence::DiJs => softplus(l)?.neg(),  // Eq 9: log(1 - c)
            Divergence::DiRm => softplus(&l.neg()?), // Eq 10: -log c
        }
    }
}

/// Returns the generator's loss (Eq 8, 9, 10): the mean over images of w phi(l), with logits and
/// weights (B).
pub fn generator_loss(divergence: Divergence, l: &Tensor, weight: &[f32]) -> Result<Tensor> {
    let w = Tensor::from_slice(weight, weight.len(), l.device())?.to_dtype(l.dtype())?;
    (divergence.phi(l)? * w)?.mean_all()
}

/// Computes log(1 + e^x). It is finite for every finite x and has the gradient sigmoid(x)
/// everywhere; candle's own cross-entropy is NaN from logits of about 17.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}
