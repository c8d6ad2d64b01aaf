//! Samples images of a row's weights, or of other weights, by index.

use super::Runner;
use super::weights::read_weights;
use crate::data::Images;
use crate::error::{Error, Result};
use crate::experiment::Row;
use crate::measure::sample::{ScoreLatents, generate};
use crate::method::{Sampler, Setup, Spec};
use crate::network::unet::Config;
use crate::settings::Overrides;
use candle_core::Device;
use std::ops::Range;

/// A source of images by index. Image k does not depend on which others are made, on a CPU to the
/// bit.
pub struct Samples {
    sampler: Box<dyn Sampler>,
    config: Config,
    device: Device,
    seed: u64,
    /// SHA-256 of the weights.
    pub weights: String,
}

impl Samples {
    /// Makes the source for `sampler`, with images of the network `config`, from the latents that
    /// rows of `seed` are scored on.
    pub fn new(
        sampler: Box<dyn Sampler>,
        config: &Config,
        device: &Device,
        seed: u64,
        weights: String,
    ) -> Samples {
        Samples { sampler, config: config.clone(), device: device.clone(), seed, weights }
    }

    /// Makes the images of these indices.
    pub fn at(&self, range: Range<usize>) -> Result<Images> {
        let (config, device, each) = (&self.config, &self.device, self.sampler.latents());
        let latents = ScoreLatents { config, seed: self.seed, device, each };
        generate(range, |part| self.sampler.sample(&latents.at(part)?))
    }

    /// Height and width of an image.
    pub fn size(&self) -> usize {
        self.config.size
    }

    /// Network calls for each image.
    pub fn nfe(&self) -> usize {
        self.sampler.nfe()
    }
}

impl Runner<'_> {
    /// Returns the source of a finished row's images; the first ones are those that it was scored
    /// on.
    ///
    /// # Errors
    /// `Missing` if the row has not been run.
    pub fn samples(&mut self, row: &Row, seed: u64) -> Result<Samples> {
        let overrides = self.recipe.overrides.clone();
        self.samples_by(row, seed, &row.method, &overrides)
    }

    /// As [`Runner::samples`], but with the sampler of `method`.
    ///
    /// # Errors
    /// As [`Runner::samples`]; `Tensor` if the weights do not fit that method's network.
    pub fn samples_by(
        &mut self,
        row: &Row,
        seed: u64,
        method: &Spec,
        overrides: &Overrides,
    ) -> Result<Samples> {
        let Some(outcome) = self.stored(row, seed)? else {
            let (id, scale, store) = (row.id, self.recipe.scale, &self.settings.store);
            let option = crate::store::option(store);
            let command = format!("replicate run {id} --scale {scale}{option} --seed {seed}");
            return Err(Error::missing(
                store,
                format!("{id} of seed {seed} is not in this store"),
                format!("{command}; to find a GPU's results, give its --device"),
            ));
        };
        let start = self.starting_weights(row)?;
        let (weights, sha256) = match (&outcome.weights, start.first()) {
            (Some(made), _) => read_weights(&made.entry)?,
            (None, Some((start, weights))) => (weights.clone(), self.pretrained_digest(*start)?),
            (None, None) => unreachable!("what is only sampled was pre-trained"),
        };
        let cell = self.streams(seed);
        let setup = Setup { overrides, ..self.setup(row, &start, &cell) };
        let sampler = (method.sampler)(&setup, &weights)?;
        Ok(Samples::new(sampler, &self.recipe.network, &self.settings.compute.device, seed, sha256))
    }
}
