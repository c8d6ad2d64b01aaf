//! The whole U-Net with its preconditioning.

use super::{Conditioning, Config, Decoder, Encoder, SecondTime};
use crate::network::params::{Arrays, Params, Source};
use crate::network::precondition::Precondition;
use crate::network::{Builder, Ops, Walk, mix, scale_images};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

/// D(x; sigma), the preconditioned U-Net: teacher, one-step generator and fake
/// score are all this network.
pub struct Denoiser {
    pub(crate) parameters: Vec<Tensor>,
    encoder: Encoder,
    decoder: Decoder,
}

impl Denoiser {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Denoiser> {
        Denoiser::with_second_time(config, SecondTime::None, vb)
    }

    pub fn with_second_time(config: &Config, second: SecondTime, vb: VarBuilder) -> Result<Denoiser> {
        let b = Builder::new(vb).pp("model");
        let encoder = Encoder::new(config, second, b.clone())?;
        let decoder = Decoder::new(config, second, encoder.channels.clone(), b.pp("dec"))?;
        Ok(Denoiser { parameters: b.parameters(), encoder, decoder })
    }

    /// The network with these weights, without gradients; with a second time where they have
    /// one.
    pub fn load(config: &Config, weights: &Arrays, device: &Device) -> Result<Denoiser> {
        let source = Source { given: weights, drawn: &[], cell: "" };
        let build = |vb: VarBuilder| Denoiser::with_second_time(config, SecondTime::of(weights), vb);
        Params::build(device, &source, build)?.0.frozen(build)
    }

    /// `x` (B, C, H, W) at noise levels `sigma` (B); the denoised images.
    /// `augment` (B, labels) only where the images were augmented.
    ///
    /// # Errors
    /// For a network with a second time: only [`Denoiser::raw`] is told one.
    pub fn forward(&self, x: &Tensor, sigma: &[f32], augment: Option<&[f32]>) -> Result<Tensor> {
        let c = Precondition::at(sigma);
        let told = Conditioning { noise: &c.noise, second: None, augment };
        mix(x, &c.skip, &self.raw(&scale_images(x, &c.input)?, &told)?, &c.out)
    }

    /// F(x; c_noise), the U-Net itself, of inputs that are scaled already.
    pub fn raw(&self, x: &Tensor, told: &Conditioning) -> Result<Tensor> {
        Ok(self.encoder.run(&self.parameters, x, told, self)?.remove(0))
    }
}

/// From the scaled images and what they are told to F.
impl Walk for Denoiser {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let emb = self.encoder.embed(ops, &inputs[1..])?;
        let skips = self.encoder.forward(ops, &inputs[0], &emb)?;
        Ok(vec![self.decoder.forward(ops, skips, &emb)?])
    }
}
