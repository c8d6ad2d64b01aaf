//! The small classifier whose features and logits stand in for Inception-v3's
//! where the images are glyphs. What is measured with it is called FD, not FID.

use crate::data::Images;
use crate::kernels::{conv2d, down2, group_norm, linear};
use crate::metrics::Features;
use crate::params::{Arrays, Params, Source};
use candle_core::{Device, Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// Digits and invented characters.
pub const CLASSES: usize = 110;
/// Length of a feature vector.
pub const FEATURES: usize = 64;
/// (input channels, output channels, halve first)
const LAYERS: [(usize, usize, bool); 5] =
    [(3, 32, false), (32, 48, false), (48, 64, true), (64, 64, false), (64, FEATURES, true)];

struct Layer {
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    halve: bool,
}

pub struct Classifier {
    layers: Vec<Layer>,
    head: Tensor,
    head_bias: Tensor,
}

impl Classifier {
    pub fn new(vb: VarBuilder) -> Result<Classifier> {
        let uniform = |fan_in: usize| {
            let bound = (3.0 / fan_in as f64).sqrt();
            Init::Uniform { lo: -bound, up: bound }
        };
        let mut layers = Vec::new();
        for (i, (inputs, outputs, halve)) in LAYERS.into_iter().enumerate() {
            let vb = vb.pp(format!("layer{i}"));
            layers.push(Layer {
                weight: vb.get_with_hints((outputs, inputs, 3, 3), "weight", uniform(inputs * 9))?,
                bias: vb.get_with_hints(outputs, "bias", Init::Const(0.0))?,
                gamma: vb.get_with_hints(outputs, "gamma", Init::Const(1.0))?,
                beta: vb.get_with_hints(outputs, "beta", Init::Const(0.0))?,
                halve,
            });
        }
        Ok(Classifier {
            layers,
            head: vb.get_with_hints((CLASSES, FEATURES), "head.weight", uniform(FEATURES))?,
            head_bias: vb.get_with_hints(CLASSES, "head.bias", Init::Const(0.0))?,
        })
    }

    /// A network that only evaluates, with the given weights.
    pub fn load(device: &Device, weights: &Arrays) -> Result<Classifier> {
        let source = Source { given: weights, drawn: &[], cell: "" };
        Params::build(device, &source, Classifier::new)?.0.frozen(Classifier::new)
    }

    /// Features (B, 64) and logits (B, 110) of images (B, 3, H, W) in [-1, 1].
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut x = x.clone();
        for layer in &self.layers {
            if layer.halve {
                x = down2(&x)?;
            }
            x = conv2d(&x, &layer.weight, &layer.bias)?;
            x = group_norm(&x, &layer.gamma, &layer.beta, 8, 1e-5, true)?;
        }
        let features = x.flatten_from(2)?.mean(2)?;
        let logits = linear(&features, &self.head, Some(&self.head_bias))?;
        Ok((features, logits))
    }

    /// Features and logits of 8-bit images. The bits of an image's features do
    /// not depend on the images around it.
    pub fn extract(&self, images: &Images, device: &Device) -> Result<(Features, Features)> {
        const BATCH: usize = 250;
        let (mut features, mut logits) =
            (Features::new(FEATURES, Vec::new()), Features::new(CLASSES, Vec::new()));
        let all: Vec<usize> = (0..images.len()).collect();
        for batch in all.chunks(BATCH) {
            let shape = (batch.len(), images.channels, images.size, images.size);
            let (f, l) = self.forward(&Tensor::from_vec(images.to_unit(batch), shape, device)?)?;
            features.rows.extend(f.flatten_all()?.to_vec1::<f32>()?);
            logits.rows.extend(l.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok((features, logits))
    }
}
