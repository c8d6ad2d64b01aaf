//! The FID network: Inception-v3 with the TensorFlow weights of 2015, from
//! `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity).
//!
//! Preprocessing as torch-fidelity and NVIDIA do it, see [`resize`]. Batch
//! normalisation (eps 0.001) is folded into the convolutions, in float64.
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
/// The classes of the TensorFlow graph: 1000 of ImageNet and 8 that are unused.
pub const CLASSES: usize = 1008;
/// Channels at the four depths where the field takes features.
pub const DEPTHS: [usize; 4] = [64, 192, 768, FEATURES];

/// Images at a time: their activations take 100 MB.
const CHUNK: usize = 8;

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

/// What the network makes of some images at every depth.
pub struct Probe {
    /// What enters: (n, 299, 299, 3), (x - 128) / 128.
    pub resized: Vec<f32>,
    /// Means over the pixels, of [`DEPTHS`] channels.
    pub features: Vec<Features>,
    /// Without bias, as the Inception Score takes them.
    pub logits_unbiased: Features,
    pub logits: Features,
}

impl Inception {
    /// The network with a checkpoint's weights. Its `num_batches_tracked` are
    /// not needed and not looked at.
    ///
    /// # Errors
    /// `Malformed`, naming the file, with every tensor that is missing, extra or
    /// mis-shaped; and for weights that are not f32, or not finite once the
    /// normalisation is folded into them.
    pub fn load(device: &Device, checkpoint: Checkpoint) -> Result<Inception> {
        if !device.is_cpu() {
            return Inception::load_composed(device, checkpoint);
        }
        let kernels = |conv: Folded| Ok(Filter::new(conv.window, &conv.weight, &conv.bias, conv.relu));
        let (network, head_bias) = Network::load(checkpoint, kernels)?;
        Ok(Inception { form: Form::Kernels(network), head_bias })
    }

    /// [`Inception::load`] of candle's operations, on any device: the reference
    /// for the kernels.
    ///
    /// # Errors
    /// As [`Inception::load`].
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

    /// Every entry of the file in its order: name and shape.
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

    /// Features (n x 2048) and logits without bias (n x 1008) of images `range`
    /// of `images`: RGB, any square size. On the CPU the bits of an image's features
    /// depend neither on the images around it nor on the number of threads.
    ///
    /// # Errors
    /// `Run` for images that are not RGB, or a range beyond the last one.
    pub fn extract(&self, images: &Images, range: Range<usize>) -> Result<(Features, Features)> {
        let last = DEPTHS.len() - 1;
        let (mut means, logits) = self.forward(images, range, last..DEPTHS.len())?;
        Ok((Features::new(FEATURES, means.remove(0)), Features::new(CLASSES, logits)))
    }

    /// [`Inception::extract`] with what lies between.
    ///
    /// # Errors
    /// As [`Inception::extract`].
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

    /// The means over the pixels at `depths`, and the logits without bias.
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
            let mut x = Maps::stale(chunk.len(), [SIDE, SIDE, 3]);
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
    /// The network whose convolutions are what `make` makes of them, and the
    /// bias of its logits.
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
    /// `x` (B, 3, 299, 299).
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
    /// `x` (n, 299, 299, 3).
    fn forward(&self, mut x: Maps, depths: Range<usize>) -> (Vec<Vec<f32>>, Vec<f32>) {
        let mut means = Vec::new();
        for (depth, stage) in self.stages.iter().enumerate() {
            let mut y = Maps::stale(x.images, channels_last::shape(stage, x.shape()));
            channels_last::forward(stage, &x, &mut y, 0);
            x = y;
            if depths.contains(&depth) {
                means.push(x.mean());
            }
        }
        let features = Maps::new(x.images, [1, 1, FEATURES], x.mean());
        let mut logits = Maps::stale(x.images, [1, 1, CLASSES]);
        self.head.apply(&features, &mut logits, 0);
        (means, logits.values().to_vec())
    }
}
