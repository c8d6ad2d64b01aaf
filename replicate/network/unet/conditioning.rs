//! Conditioning of a network, in addition to the images.

use candle_core::{Device, Result, Tensor, bail};

/// Conditioning of each image: one value, or one row of labels.
#[derive(Clone, Copy, Default)]
pub struct Conditioning<'a> {
    /// c_noise.
    pub noise: &'a [f32],
    /// c_noise of the second time, for a network that has one ([`super::SecondTime`]).
    pub second: Option<&'a [f32]>,
    /// Augmentation labels, only if the images were augmented.
    pub augment: Option<&'a [f32]>,
    /// Dropout masks, in training.
    pub masks: Option<&'a Masks>,
}

/// Dropout masks of one pass.
pub struct Masks {
    /// A mask (B, C, H, W) for each residual block, positive where a value is kept.
    pub keep: Vec<Tensor>,
    /// Probability that a value is dropped.
    pub p: f64,
}

impl Masks {
    /// Concatenates the masks of the images of `a` and of `b`.
    pub fn cat(a: &Masks, b: &Masks) -> Result<Masks> {
        let keep = a.keep.iter().zip(&b.keep).map(|(a, b)| Tensor::cat(&[a, b], 0));
        Ok(Masks { keep: keep.collect::<Result<_>>()?, p: a.p })
    }
}

/// Frequencies f of the positional embedding of c_noise, rows [sin n f | cos n f]. EDM
/// computes the cosines first and then swaps the halves.
pub(super) struct Positions(Vec<f32>);

impl Positions {
    /// Makes the frequencies for rows of `channels` values.
    pub fn new(channels: usize) -> Positions {
        let half = channels / 2;
        Positions((0..half).map(|i| libm::powf(1e-4, i as f32 / (half - 1) as f32)).collect())
    }

    /// Values of a row.
    pub fn channels(&self) -> usize {
        2 * self.0.len()
    }

    /// Computes the embedding (B, channels) of c_noise (B), row by row.
    pub fn rows(&self, noise: &[f32]) -> Vec<f32> {
        let mut rows = Vec::with_capacity(noise.len() * self.channels());
        for n in noise {
            rows.extend(self.0.iter().map(|f| libm::sinf(n * f)));
            rows.extend(self.0.iter().map(|f| libm::cosf(n * f)));
        }
        rows
    }

    /// Computes the derivatives of the rows along `tangent`, which has one value for each image.
    pub fn slopes(&self, noise: &[f32], tangent: &[f32]) -> Vec<f32> {
        let mut rows = Vec::with_capacity(noise.len() * self.channels());
        for (n, dn) in noise.iter().zip(tangent) {
            rows.extend(self.0.iter().map(|f| dn * f * libm::cosf(n * f)));
            rows.extend(self.0.iter().map(|f| -dn * f * libm::sinf(n * f)));
        }
        rows
    }
}

/// Makes rows with the given `values` whose gradient reaches `of` (B) through `slopes`, their
/// derivatives. Only first derivatives are right.
pub(super) fn depending(values: Vec<f32>, slopes: Vec<f32>, of: &Tensor) -> Result<Tensor> {
    let images = of.dim(0)?;
    let rows = |values: Vec<f32>| Tensor::from_vec(values, (images, ()), of.device());
    let nothing = (of - of.detach())?.unsqueeze(1)?;
    rows(values)? + rows(slopes)?.broadcast_mul(&nothing)?
}

/// Makes rows (B, C) of `values`.
///
/// # Errors
/// If there are not `channels` values for each of `images` images.
pub(super) fn rows(values: Vec<f32>, images: usize, channels: usize, device: &Device) -> Result<Tensor> {
    if values.len() != images * channels {
        bail!("{} values to tell {images} images, {channels} each", values.len());
    }
    Tensor::from_vec(values, (images, channels), device)
}
