//! The FID network: Inception-v3 with the TensorFlow weights of 2015, from
//! `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity).
//!
//! Preprocessing follows torch-fidelity and NVIDIA, see [`resize`]. Batch normalisation
//! (eps 0.001) is folded into the convolutions, in float64.
//!
//! ```text
//! (n, 3, size, size) bytes -> resize -> 299 x 299
//!   stem -> 73 x 73 x 64 -> 35 x 35 x 192 -> Mixed_5, Mixed_6 -> 17 x 17 x 768
//!   -> Mixed_7 -> 8 x 8 x 2048 -> mean: features (2048) -> fc: logits (1008)
//! ```

mod channels_last;
mod composed;
mod resize;
mod topology;
mod weights;

use self::topology::{Layer, map, stages};
use self::weights::{COUNTER, Folded, Weights};
use crate::data::Images;
use crate::error::{Error, Result};
use crate::measure::metrics::Features;
use crate::network::cpu::{Filter, Maps, Window};
use crate::store::formats::torch::Checkpoint;
use candle_core::{Device, Tensor};
use std::ops::Range;

pub use self::resize::{SIDE, resize};

/// Length of a feature vector.
pub const FEATURES: usize = 2048;
/// Classes of the TensorFlow graph: 1000 of ImageNet and 8 unused ones.
pub const CLASSES: usize = 1008;
/// Channels at the four depths at which features are usually taken.
pub const DEPTHS: [usize; 4] = [64, 192, 768, FEATURES];

/// Images in a chunk; their activations take 100 MB.
const CHUNK: usize = 8;

/// Inception-v3 on one device.
pub struct Inception {
    form: Form,
    head_bias: Vec<f32>,
}

enum Form {
    Kernels(Network<Filter>),
    Composed(Network<composed::Conv>, Device),
}

struct Network<C> {
    stages: [Vec<Layer<C>>; 4],
    head: C,
}

/// Outputs of the network at every depth, for some images.
pub struct Probe {
    /// Input of the network: (n, 299, 299, 3), (x - 128) / 128.
    pub resized: Vec<f32>,
    /// Means over the pixels at each depth, with the channels of [`DEPTHS`].
    pub features: Vec<Features>,
    /// Logits without bias, which the Inception Score uses.
    pub logits_unbiased: Features,
    pub logits: Features,
}

impl Inception {
    /// Loads the network from a checkpoint. Ignores the values of `num_batches_tracked`.
    ///
    /// # Errors
    /// `Malformed`, with the file and every tensor that is missing, extra or mis-shaped, or if a
    /// weight is not float32 or is not finite after the normalisation is folded in.
    pub fn load(device: &Device, checkpoint: Checkpoint) -> Result<Inception> {
        if !device.is_cpu() {
            return Inception::load_composed(device, checkpoint);
        }
        let kernels = |conv: Folded| Ok(Filter::new(conv.window, &conv.weight, &conv.bias, conv.relu));
        let (network, head_bias) = Network::load(checkpoint, kernels)?;
        Ok(Inception { form: Form::Kernels(network), head_bias })
    }

    /// Loads the network composed of candle's operations, for any device. It is the reference for
    /// the kernels.
    ///
    /// # Errors
    /// See [`Inception::load`].
    pub fn load_composed(device: &Device, checkpoint: Checkpoint) -> Result<Inception> {
        let (network, head_bias) = Network::load(checkpoint, |conv: Folded| {
            Ok(composed::Conv {
                weight: Tensor::from_vec(conv.weight, conv.shape, device)?,
                bias: Tensor::from_vec(conv.bias, (1, (), 1, 1), device)?,
                window: conv.window,
                relu: conv.relu,
            })
        })?;
        Ok(Inception { form: Form::Composed(network, device.clone()), head_bias })
    }

    /// Lists every entry of the file in order: name and shape.
    pub fn entries() -> Vec<(String, Vec<usize>)> {
        let mut entries = Vec::new();
        for layer in stages().into_iter().flatten() {
            let listed = layer.map(&mut |conv| {
                let [vertical, horizontal] = conv.window.kernel;
                let shape = vec![conv.outputs, conv.inputs, vertical, horizontal];
                entries.push((format!("{}.conv.weight", conv.name), shape));
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    entries.push((format!("{}.bn.{part}", conv.name), vec![conv.outputs]));
                }
                entries.push((format!("{}.bn.{COUNTER}", conv.name), vec![]));
                Ok(())
            });
            listed.expect("listing cannot fail");
        }
        entries.push(("fc.weight".into(), vec![CLASSES, FEATURES]));
        entries.push(("fc.bias".into(), vec![CLASSES]));
        entries
    }

    /// Extracts features (n x 2048) and logits without bias (n x 1008) of the images in `range`:
    /// RGB, any square size. On the CPU the bits of an image's features depend neither on the other
    /// images nor on the number of threads.
    ///
    /// # Errors
    /// `Run` if the images are not RGB, or if the range exceeds them.
    pub fn extract(&self, images: &Images, range: Range<usize>) -> Result<(Features, Features)> {
        let last = DEPTHS.len() - 1;
        let (mut means, logits) = self.forward(images, range, last..DEPTHS.len())?;
        Ok((Features::new(FEATURES, means.remove(0)), Features::new(CLASSES, logits)))
    }

    /// Computes [`Inception::extract`] together with the intermediate values.
    ///
    /// # Errors
    /// See [`Inception::extract`].
    pub fn probe(&self, images: &Images, range: Range<usize>) -> Result<Probe> {
        let (means, unbiased) = self.forward(images, range.clone(), 0..DEPTHS.len())?;
        let mut logits = unbiased.clone();
        for row in logits.chunks_exact_mut(CLASSES) {
            for (logit, bias) in row.iter_mut().zip(&self.head_bias) {
                *logit += bias;
            }
        }
        let mut resized = vec![0f32; range.len() * SIDE * SIDE * 3];
        resize(images, range, &mut resized);
        Ok(Probe {
            resized,
            features: DEPTHS.into_iter().zip(means).map(|(dim, rows)| Features::new(dim, rows)).collect(),
            logits_unbiased: Features::new(CLASSES, unbiased),
            logits: Features::new(CLASSES, logits),
        })
    }

    /// Computes the means over the pixels at `depths`, and the logits without bias.
    fn forward(
        &self,
        images: &Images,
        range: Range<usize>,
        depths: Range<usize>,
    ) -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
        if images.channels != 3 || images.size == 0 {
            let (channels, size) = (images.channels, images.size);
            return Err(Error::Run(format!(
                "Inception-v3 takes RGB images, not {channels} channels of {size} x {size} pixels"
            )));
        }
        if range.start > range.end || range.end > images.len() {
            return Err(Error::Run(format!("there are {} images, not all of {range:?}", images.len())));
        }
        let (mut all_means, mut all_logits) = (vec![Vec::new(); depths.len()], Vec::new());
        for start in range.clone().step_by(CHUNK) {
            let chunk = start..range.end.min(start + CHUNK);
            let mut x = Maps::uninit(chunk.len(), [SIDE, SIDE, 3]);
            resize(images, chunk, x.values_mut());
            let (means, logits) = match &self.form {
                Form::Kernels(network) => network.forward(x, depths.clone()),
                Form::Composed(network, device) => {
                    let input = composed::input(&x, device)?;
                    network.forward(&input, depths.clone())?
                }
            };
            for (all, means) in all_means.iter_mut().zip(means) {
                all.extend(means);
            }
            all_logits.extend(logits);
        }
        Ok((all_means, all_logits))
    }
}

impl<C> Network<C> {
    /// Builds the network with convolutions converted by `make`; also returns the bias of its
    /// logits.
    fn load(checkpoint: Checkpoint, make: impl Fn(Folded) -> Result<C>) -> Result<(Network<C>, Vec<f32>)> {
        let mut weights = Weights::new(checkpoint)?;
        let mut stage = |layers| map(layers, &mut |conv| make(weights.folded(&conv)?));
        let [first, second, third, fourth] = stages();
        let stages = [stage(first)?, stage(second)?, stage(third)?, stage(fourth)?];
        let head = Folded {
            window: Window { kernel: [1, 1], stride: 1, padding: [0, 0] },
            shape: vec![CLASSES, FEATURES, 1, 1],
            weight: weights.finite("fc.weight")?,
            bias: vec![0.0; CLASSES],
            relu: false,
        };
        let head_bias = weights.finite("fc.bias")?;
        Ok((Network { stages, head: make(head)? }, head_bias))
    }
}

impl Network<composed::Conv> {
    /// Runs on `x` (B, 3, 299, 299).
    fn forward(&self, x: &Tensor, depths: Range<usize>) -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
        let (mut x, mut means) = (x.clone(), Vec::new());
        for (depth, stage) in self.stages.iter().enumerate() {
            x = composed::forward(stage, &x)?;
            if depths.contains(&depth) {
                means.push(composed::values(&composed::mean(&x)?)?);
            }
        }
        Ok((means, composed::values(&self.head.apply(&composed::mean(&x)?)?)?))
    }
}

impl Network<Filter> {
    /// Runs on `x` (n, 299, 299, 3).
    fn forward(&self, mut x: Maps, depths: Range<usize>) -> (Vec<Vec<f32>>, Vec<f32>) {
        let mut means = Vec::new();
        for (depth, stage) in self.stages.iter().enumerate() {
            let mut y = Maps::uninit(x.images, channels_last::shape(stage, x.shape()));
            channels_last::forward(stage, &x, &mut y, 0);
            x = y;
            if depths.contains(&depth) {
                means.push(x.mean());
            }
        }
        let features = Maps::new(x.images, [1, 1, FEATURES], x.mean());
        let mut logits = Maps::uninit(x.images, [1, 1, CLASSES]);
        self.head.apply(&features, &mut logits, 0);
        (means, logits.values().to_vec())
    }
}
