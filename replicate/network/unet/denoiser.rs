//! The whole U-Net with its preconditioning.

use super::blocks::Dropped;
use super::conditioning::depending;
use super::{Blocks, Conditioning, Config, Decoder, Dropping, Encoder, Masks, SecondTime, inputs, kept, run};
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::precondition::Precondition;
use crate::network::{self, Builder, Ops, Parameters, Variables, Walk, mix};
use candle_core::{DType, Device, Result, Tensor};

/// D(x; sigma), the preconditioned U-Net. Teacher, one-step generator and fake score are all this
/// network.
pub struct Denoiser {
    pub(crate) parameters: Parameters,
    /// Number of parameters of the encoder, which come first.
    encoder_parameters: usize,
    encoder: Encoder,
    decoder: Decoder,
}

impl Denoiser {
    /// Builds the network on the parameters of `vb`.
    pub fn new(config: &Config, vb: Variables) -> Result<Denoiser> {
        Denoiser::with_second_time(config, SecondTime::None, vb)
    }

    /// Builds the network with a second noise level.
    pub fn with_second_time(config: &Config, second: SecondTime, vb: Variables) -> Result<Denoiser> {
        let b = Builder::new(vb).pp("model");
        let encoder = Encoder::new(config, second, b.clone())?;
        let encoder_parameters = b.parameters().len();
        let decoder = Decoder::new(config, second, encoder.channels.clone(), b.pp("dec"))?;
        Ok(Denoiser { parameters: b.parameters(), encoder_parameters, encoder, decoder })
    }

    /// Builds the network with these weights, without gradients. It has a second time if the
    /// weights do.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn load(config: &Config, weights: &Arrays, compute: &Compute) -> Result<Denoiser> {
        let source = Source { given: weights, drawn: &[], cell: "" };
        let build = |vb: Variables| Denoiser::with_second_time(config, SecondTime::of(weights), vb);
        Params::build(compute, &source, build)?.0.frozen(build)
    }

    /// Denoises `x` (B, C, H, W) at noise levels `sigma` (B).
    ///
    /// # Errors
    /// If the network has a second time, which only [`Denoiser::raw`] takes.
    pub fn forward(&self, x: &Tensor, sigma: &[f32]) -> Result<Tensor> {
        self.forward_train(x, sigma, None, None)
    }

    /// Denoises as in training: with augmentation labels (B, labels) if the images were augmented,
    /// and dropout if there are masks. Errors are as in [`Denoiser::forward`].
    pub fn forward_train(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&[f32]>,
        masks: Option<&Masks>,
    ) -> Result<Tensor> {
        let (c, input, rows) = self.encoder.scaled(x, sigma, augment)?;
        mix(x, &c.skip, &run(&self.parameters, &input, &rows, masks, self)?[0], &c.out)
    }

    /// Returns channels, height and width of the map that each residual block applies dropout to.
    pub fn dropout_shapes(&self) -> Vec<(usize, usize, usize)> {
        [self.encoder.dropped.as_slice(), &self.decoder.dropped].concat()
    }

    /// Returns the maps of [`Denoiser::dropout_shapes`] in the encoder, which come first.
    pub fn encoder_dropout_shapes(&self) -> &[(usize, usize, usize)] {
        &self.encoder.dropped
    }

    /// Embeds the noise levels c_noise (B) as rows (B, model channels), before any layer.
    pub fn embedded(&self, noise: &[f32], device: &Device) -> Result<Tensor> {
        let positions = &self.encoder.positions;
        Tensor::from_vec(positions.rows(noise), (noise.len(), positions.channels()), device)
    }

    /// Computes F(x; c_noise), the U-Net itself, on inputs that are already scaled.
    pub fn raw(&self, x: &Tensor, conditioning: &Conditioning) -> Result<Tensor> {
        Ok(run(&self.parameters, x, &self.encoder.conditioning(conditioning, x)?, conditioning.masks, self)?
            .remove(0))
    }

    /// Returns the mean over the channels of the encoder's last map, (B, H, W) of its size: SiDA's
    /// logits and AMED's features. The decoder's parameters get no gradient. `masks` are those of
    /// [`Denoiser::encoder_dropout_shapes`].
    pub fn features(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&[f32]>,
        masks: Option<&Masks>,
    ) -> Result<Tensor> {
        let (_, x, rows) = self.encoder.scaled(x, sigma, augment)?;
        let encoder = self.parameters.part(self.parameters[..self.encoder_parameters].to_vec());
        run(&encoder, &x, &rows, masks, &Encoded(self))?.remove(0).mean(1)
    }

    /// Computes [`Denoiser::forward_train`] and [`Denoiser::features`] in one pass.
    pub fn with_features(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&[f32]>,
        masks: Option<&Masks>,
    ) -> Result<(Tensor, Tensor)> {
        let (c, input, rows) = self.encoder.scaled(x, sigma, augment)?;
        let outputs = run(&self.parameters, &input, &rows, masks, &Both(self))?;
        Ok((mix(x, &c.skip, &outputs[0], &c.out)?, outputs[1].mean(1)?))
    }

    /// Computes [`Denoiser::with_features`], with a gradient for the noise levels `sigma` (B)
    /// through everything that depends on them. The values are bit-identical.
    pub fn tracked(&self, x: &Tensor, sigma: &Tensor) -> Result<(Tensor, Tensor)> {
        let sigma = sigma.to_dtype(DType::F32)?;
        let levels = sigma.to_vec1::<f32>()?;
        let (c, slopes) = (Precondition::at(&levels), Precondition::slopes(&levels));
        let mut rows =
            self.encoder.conditioning(&Conditioning { noise: &c.noise, ..Conditioning::default() }, x)?;
        let positions = &self.encoder.positions;
        let along = positions.slopes(&c.noise, &slopes.noise);
        rows[0] = depending(positions.rows(&c.noise), along, &sigma)?;
        let times = |x: &Tensor, factors: Vec<f32>, slopes: Vec<f32>| {
            x.broadcast_mul(&depending(factors, slopes, &sigma)?.reshape(((), 1, 1, 1))?)
        };
        let input = times(x, c.input, slopes.input)?;
        let outputs = run(&self.parameters, &input, &rows, None, &Both(self))?;
        let denoised = times(x, c.skip, slopes.skip)? + times(&outputs[0], c.out, slopes.out)?;
        Ok((denoised?, outputs[1].mean(1)?))
    }

    /// Computes F(x; c_noise) as [`Denoiser::raw`], and its derivative along `dx` and the tangent
    /// `dnoise` (B) of c_noise.
    pub fn raw_jvp(
        &self,
        [x, dx]: [&Tensor; 2],
        conditioning: &Conditioning,
        dnoise: &[f32],
    ) -> Result<[Tensor; 2]> {
        let values = self.encoder.conditioning(conditioning, x)?;
        let mut tangents = values.iter().map(Tensor::zeros_like).collect::<Result<Vec<_>>>()?;
        let slopes = self.encoder.positions.slopes(conditioning.noise, dnoise);
        tangents[0] = Tensor::from_vec(slopes, values[0].shape(), x.device())?;
        // A mask gates the tangent as it gates the value; a tangent of its own is not read.
        let [values, tangents] =
            [values, tangents].map(|rows| [rows.as_slice(), kept(conditioning.masks)].concat());
        let (inputs, tangents) = (inputs(x, &values), inputs(dx, &tangents));
        let network = Dropping::new(self, conditioning.masks);
        let (mut f, mut df) = network::along(&self.parameters, &inputs, &tangents, &network)?;
        Ok([f.remove(0), df.remove(0)])
    }
}

/// Inputs: the scaled images, then their conditioning. Output: F.
impl Walk for Denoiser {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        self.through(ops, inputs, Dropped::new(&[], 1.0))
    }
}

impl Blocks for Denoiser {
    fn through<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<Vec<O::Map>> {
        let (skips, emb) = self.encoder.forward(ops, inputs, dropped)?;
        Ok(vec![self.decoder.forward(ops, skips, &emb)?])
    }
}

/// The encoder alone: its output is the last map.
struct Encoded<'a>(&'a Denoiser);

impl Blocks for Encoded<'_> {
    fn through<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<Vec<O::Map>> {
        let last = self.0.encoder.forward(ops, inputs, dropped)?.0.pop();
        Ok(vec![last.expect("an encoder has blocks")])
    }
}

/// Outputs: F, and the encoder's last map.
struct Both<'a>(&'a Denoiser);

impl Blocks for Both<'_> {
    fn through<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<Vec<O::Map>> {
        let (skips, emb) = self.0.encoder.forward(ops, inputs, dropped)?;
        let last = skips.last().expect("an encoder has blocks").clone();
        Ok(vec![self.0.decoder.forward(ops, skips, &emb)?, last])
    }
}
