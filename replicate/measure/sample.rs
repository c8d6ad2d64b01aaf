//! Generates images from latents: for the grids, and for the scores.

use crate::data::Images;
use crate::data::grid::GRID;
use crate::error::{Error, Result};
use crate::network;
use crate::network::unet::Config;
use crate::rng::Stream;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Generates the images of a grid. They use the same latents in every panel of every row; a sampler
/// takes `each` latents for an image.
pub fn generate_grid(
    config: &Config,
    device: &Device,
    each: usize,
    sample: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Images> {
    let n = GRID.0 * GRID.0;
    let shape = (n, config.image_channels, config.size, config.size);
    let values = |k: usize| Stream::new("grid", &latent(k)).normals(0, shape.0 * shape.1 * shape.2 * shape.3);
    let latents = stacked(each, |k| Tensor::from_vec(values(k), shape, device))?;
    generate(0..n, |range| sample(&latents.narrow(0, range.start, range.len())?))
}

/// Name of the stream of an image's `k`-th latent.
fn latent(k: usize) -> String {
    if k == 0 { "z".into() } else { format!("z{k}") }
}

/// Concatenates `each` tensors (B, C, H, W) along the channels: (B, each C, H, W).
fn stacked(each: usize, of: impl Fn(usize) -> candle_core::Result<Tensor>) -> candle_core::Result<Tensor> {
    Tensor::cat(&(0..each).map(of).collect::<candle_core::Result<Vec<_>>>()?, 1)
}

/// Generates the images of `range` in batches (B, C, H, W) made by `sample`. On a CPU an image does
/// not depend on its batch.
///
/// # Errors
/// `Run` if a value is not finite; as a byte it would look like black.
pub fn generate(
    range: Range<usize>,
    mut sample: impl FnMut(Range<usize>) -> candle_core::Result<Tensor>,
) -> Result<Images> {
    const BATCH: usize = 100;
    let mut all = Images { channels: 0, size: 0, pixels: Vec::new(), labels: Vec::new() };
    for start in range.clone().step_by(BATCH) {
        let x = sample(start..range.end.min(start + BATCH))?;
        let (_, channels, size, _) = x.dims4()?;
        let values = x.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let image = start + at / (channels * size * size);
            return Err(Error::Run(format!("sample {image} is not finite: the network has diverged")));
        }
        (all.channels, all.size) = (channels, size);
        all.pixels.extend(Images::from_unit(channels, size, &values).pixels);
    }
    Ok(all)
}

/// Latents for scoring; they are the same for every row of a seed.
#[derive(Clone, Copy)]
pub struct ScoreLatents<'a> {
    pub config: &'a Config,
    pub seed: u64,
    pub device: &'a Device,
    /// Latents that the sampler takes for one image.
    pub each: usize,
}

impl ScoreLatents<'_> {
    /// Returns the latents of the images in `range`, (B, each C, H, W). They do not depend on
    /// earlier calls.
    pub fn at(&self, range: Range<usize>) -> candle_core::Result<Tensor> {
        let (c, size) = (self.config.image_channels, self.config.size);
        let (cell, shape) = (format!("score seed {}", self.seed), (range.len(), c, size, size));
        stacked(self.each, |k| {
            let stream = Stream::new(&cell, &latent(k));
            network::normals_from(&stream, 0, range.start * c * size * size, shape, self.device)
        })
    }
}
