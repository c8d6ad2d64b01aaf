//! The critic: the encoder half of the U-Net with a head that tells real from generated images.

use super::blocks::{Dropped, Linear, norm};
use super::{Blocks, Config, Encoder, Masks, SecondTime, inputs, run};
use crate::network::{Builder, Norm, Ops, Parameters, Variables, Walk, exact, scale_images};
use candle_core::{Result, Tensor};

/// The critic c(x_t, t): the encoder half with one scalar logit, positive for data (section 2). The
/// paper does not describe the head; ours is group norm, SiLU, mean over pixels, linear.
pub struct Critic {
    pub(crate) parameters: Parameters,
    encoder: Encoder,
    norm: Norm,
    head: Linear,
}

/// Prefix of the parameter names that only the critic has.
pub const CRITIC_HEAD: &str = "critic.";

impl Critic {
    /// Builds the network on the parameters of `vb`.
    pub fn new(config: &Config, vb: Variables) -> Result<Critic> {
        let b = Builder::new(vb);
        let encoder = Encoder::new(config, SecondTime::None, b.pp("model"))?;
        let channels = *encoder.channels.last().expect("an encoder has blocks");
        let top = b.pp("critic");
        let norm = norm(channels, true, top.pp("norm"))?;
        let head = Linear::new(channels, 1, true, top.pp("head"))?;
        Ok(Critic { parameters: b.parameters(), encoder, norm, head })
    }

    /// Computes logits (B) of `x` (B, C, H, W) at noise levels `sigma` (B).
    pub fn forward(&self, x: &Tensor, sigma: &[f32]) -> Result<Tensor> {
        self.forward_train(x, sigma, None, None)
    }

    /// Computes logits as in training; see [`Denoiser::forward_train`](super::Denoiser::forward_train).
    pub fn forward_train(
        &self,
        x: &Tensor,
        sigma: &[f32],
        augment: Option<&[f32]>,
        masks: Option<&Masks>,
    ) -> Result<Tensor> {
        let (_, x, rows) = self.encoder.scaled(x, sigma, augment)?;
        run(&self.parameters, &x, &rows, masks, self)?.remove(0).flatten_all()
    }

    /// Returns channels, height and width of the map that each residual block applies dropout to.
    pub fn dropout_shapes(&self) -> Vec<(usize, usize, usize)> {
        self.encoder.dropped.clone()
    }

    /// Computes logits (B) at `x` (B, C, H, W) and their derivatives along `dx`. The gradients of
    /// both reach the parameters through every operation.
    pub fn jvp(&self, [x, dx]: [&Tensor; 2], sigma: &[f32]) -> Result<[Tensor; 2]> {
        let (c, x, rows) = self.encoder.scaled(x, sigma, None)?;
        let still = rows.iter().map(Tensor::zeros_like).collect::<Result<Vec<_>>>()?;
        let dx = scale_images(dx, &c.input)?;
        let (inputs, tangents) = (inputs(&x, &rows), inputs(&dx, &still));
        let (mut l, mut dl) = exact::jvp(&self.parameters, &inputs, &tangents, self)?;
        Ok([l.remove(0).flatten_all()?, dl.remove(0).flatten_all()?])
    }

    /// Computes logits (B) of real and of generated images (B, C, H, W) at the same noise levels in
    /// one pass. `labels` are the augmentation labels of both, if they were augmented; `masks` are the
    /// dropout masks of both.
    pub fn both(
        &self,
        real: &Tensor,
        fake: &Tensor,
        sigma: &[f32],
        labels: Option<(Vec<f32>, Vec<f32>)>,
        masks: Option<(Masks, Masks)>,
    ) -> Result<[Tensor; 2]> {
        let n = sigma.len();
        let labels = labels.map(|(real, fake)| [real, fake].concat());
        let images = Tensor::cat(&[real, fake], 0)?;
        let masks = masks.map(|(real, fake)| Masks::cat(&real, &fake)).transpose()?;
        let sigma = [sigma, sigma].concat();
        let logits = self.forward_train(&images, &sigma, labels.as_deref(), masks.as_ref())?;
        Ok([logits.narrow(0, 0, n)?, logits.narrow(0, n, n)?])
    }
}

/// Inputs: the scaled images, then their conditioning. Output: a logit.
impl Walk for Critic {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        self.through(ops, inputs, Dropped::new(&[], 1.0))
    }
}

impl Blocks for Critic {
    fn through<O: Ops>(
        &self,
        ops: &mut O,
        inputs: &[O::Map],
        dropped: Dropped<O::Map>,
    ) -> Result<Vec<O::Map>> {
        let last = self.encoder.forward(ops, inputs, dropped)?.0.pop();
        let normed = ops.norm(&last.expect("an encoder has blocks"), &self.norm)?;
        let pooled = ops.mean(&normed)?;
        Ok(vec![self.head.forward(ops, &pooled)?])
    }
}
