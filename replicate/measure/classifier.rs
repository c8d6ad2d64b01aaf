//! Small classifiers whose features and logits replace those of Inception-v3: one of glyphs, and
//! one of CIFAR-10 at 16x16. Distances in their features are called FD, not FID.

use crate::data::Images;
use crate::measure::metrics::Features;
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::{self, Builder, Norm, Ops, Param, Parameters, Plus, Variables, Walk};
use crate::settings::{FIXED, LARGEST_BATCH, MOST_IMAGES, Scale, settings};
use crate::train::Method;
use crate::train::adam::{AdamConfig, cosine, warmed_up};
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Init;

/// Layers of a classifier.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Input channels, output channels and whether to halve the size first, for each convolution.
    layers: &'static [(usize, usize, bool)],
    pub classes: usize,
}

impl Layout {
    /// Classes: digits and invented characters.
    pub const GLYPHS: Layout = Layout {
        layers: &[(3, 32, false), (32, 48, false), (48, 64, true), (64, 64, false), (64, 64, true)],
        classes: 110,
    };
    /// The ten classes of CIFAR-10.
    pub const CIFAR10: Layout = Layout {
        layers: &[
            (3, 48, false),
            (48, 64, false),
            (64, 96, true),
            (96, 96, false),
            (96, 128, true),
            (128, 128, false),
        ],
        classes: 10,
    };

    /// Layers of the classifier of a scale that uses one.
    pub fn of(scale: Scale) -> Layout {
        if scale.procedural() { Layout::GLYPHS } else { Layout::CIFAR10 }
    }

    /// Length of a feature vector.
    pub fn features(&self) -> usize {
        self.layers.last().expect("there are layers").1
    }
}

struct Layer {
    weight: Param,
    bias: Param,
    norm: Norm,
    halve: bool,
}

/// A convolutional classifier with group norm, whose features are means over the last map.
pub struct Classifier {
    pub layout: Layout,
    pub(crate) parameters: Parameters,
    layers: Vec<Layer>,
    /// Weight and bias of the last layer.
    head: (Param, Param),
}

impl Classifier {
    /// Builds the network on the parameters of `vb`.
    pub fn new(layout: Layout, vb: Variables) -> Result<Classifier> {
        let uniform = |fan_in: usize| {
            let bound = (3.0 / fan_in as f64).sqrt();
            Init::Uniform { lo: -bound, up: bound }
        };
        let b = Builder::new(vb);
        let mut layers = Vec::new();
        for (i, (inputs, outputs, halve)) in layout.layers.iter().copied().enumerate() {
            let b = b.pp(format!("layer{i}"));
            layers.push(Layer {
                weight: b.get((outputs, inputs, 3, 3), "weight", uniform(inputs * 9))?,
                bias: b.get(outputs, "bias", Init::Const(0.0))?,
                norm: Norm {
                    gamma: b.get(outputs, "gamma", Init::Const(1.0))?,
                    beta: b.get(outputs, "beta", Init::Const(0.0))?,
                    groups: 8,
                    eps: 1e-5,
                    silu: true,
                },
                halve,
            });
        }
        let h = b.pp("head");
        let (classes, features) = (layout.classes, layout.features());
        let weight = h.get((classes, features), "weight", uniform(features))?;
        let head = (weight, h.get(classes, "bias", Init::Const(0.0))?);
        // Metrics are always computed in float32.
        Ok(Classifier { layout, parameters: b.parameters().in_float32(), layers, head })
    }

    /// Builds the network with these weights, without gradients.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn load(layout: Layout, compute: &Compute, weights: &Arrays) -> Result<Classifier> {
        let new = |vb: Variables| Classifier::new(layout, vb);
        let source = Source { given: weights, drawn: &[], cell: "" };
        Params::build(compute, &source, new)?.0.frozen(new)
    }

    /// Computes features (B, F) and logits (B, classes) of images (B, 3, H, W) in [-1, 1].
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut outputs = network::forward(&self.parameters, &[x], self)?;
        let logits = outputs.remove(1);
        Ok((outputs.remove(0), logits))
    }

    /// Extracts features and logits of 8-bit images. On a CPU, the bits of an image's features do
    /// not depend on the other images.
    pub fn extract(&self, images: &Images, device: &Device) -> Result<(Features, Features)> {
        const BATCH: usize = 250;
        let (mut features, mut logits) = (
            Features::new(self.layout.features(), Vec::new()),
            Features::new(self.layout.classes, Vec::new()),
        );
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

/// Input: images. Outputs: features and logits.
impl Walk for Classifier {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let mut x = inputs[0].clone();
        for layer in &self.layers {
            if layer.halve {
                x = ops.down2(&x)?;
            }
            x = ops.conv(&x, layer.weight, Some(layer.bias), Plus::NOTHING)?;
            x = ops.norm(&x, &layer.norm)?;
        }
        let features = ops.mean(&x)?;
        let logits = ops.conv(&features, self.head.0, Some(self.head.1), Plus::NOTHING)?;
        Ok(vec![features, logits])
    }
}

settings! {
    /// The small classifier whose features stand in for Inception-v3's.
    pub struct ClassifierTraining: "classifier", "classifier_" {
        /// Pixels on a side.
        size: usize = [16], FIXED, "pixels", Ours("the size of the drawn images");
        /// Length of the classifier's training.
        images: u64 = [256_000, 256_000, 1_200_000, 256_000, 256_000], 1..=MOST_IMAGES, "images",
            Ours("held-out images are then told apart as well as the sizes allow");
        /// Images of one iteration.
        batch: usize = [128], 1..=LARGEST_BATCH, "images", Ours("the usual size");
        /// Largest shift of a training image in each direction; if it is not 0, half of the images
        /// are also mirrored.
        shift: usize = [0, 0, 2, 0, 0], 0..=8, "pixels", Ours("as usual for CIFAR-10; glyphs are not symmetric");
        /// Learning rate after a warm-up over a twentieth of the training; it then follows a cosine
        /// to 0.
        lr: f64 = [2e-3], 0.0..=1.0, "", Ours("as the pre-training at scale mini");
        /// Adam's decay of the first moment.
        beta1: f64 = [0.9], 0.0..=0.9999, "", Ours("Adam's default");
        /// Adam's decay of the second moment.
        beta2: f64 = [0.99], 0.0..=0.999999, "", Ours("as the pre-training at scale mini");
        /// Adam's epsilon, added to the root of the second moment.
        eps: f64 = [1e-8], 0.0..=1.0, "", Ours("Adam's default");
    }
}

impl ClassifierTraining {
    /// Adam of the training.
    pub fn adam(&self) -> AdamConfig {
        AdamConfig { beta1: self.beta1, beta2: self.beta2, eps: self.eps, rectified: false }
    }
}

/// Training of the classifier with cross-entropy.
pub struct ClassifierMethod {
    settings: ClassifierTraining,
    net: Net<Classifier>,
}

impl ClassifierMethod {
    /// Makes the training with random weights.
    pub fn new(compute: &Compute, layout: Layout, settings: &ClassifierTraining) -> Result<ClassifierMethod> {
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell: "classifier" };
        let net = Net::new(compute, &source, settings.adam(), |vb| Classifier::new(layout, vb))?;
        Ok(ClassifierMethod { settings: settings.clone(), net })
    }
}

impl Method for ClassifierMethod {
    fn columns(&self) -> &'static [&'static str] {
        &["cross_entropy", "accuracy"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let ClassifierTraining { lr, images, shift, .. } = self.settings;
        let lr = warmed_up(lr, images / 20, batch) * cosine(images / 20, images, batch);
        self.net.descend(batch, lr, |classifier, b| {
            let (labels, n) = (b.labels("index")?, b.len());
            let x = b.images("index")?;
            let x = if shift == 0 { x } else { b.shifted("shift", &b.mirror("mirror", &x)?, shift)? };
            let (_, logits) = classifier.forward(&x)?;
            let max = logits.max_keepdim(1)?.detach();
            let shifted = logits.broadcast_sub(&max)?;
            let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
            let targets = Tensor::from_vec(labels, (n, 1), logits.device())?;
            let loss = log_p.gather(&targets, 1)?.mean_all()?.neg()?;
            let hits = logits.argmax_keepdim(1)?.eq(&targets)?;
            Ok(vec![loss, hits.to_dtype(DType::F32)?.mean_all()?])
        })
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("classifier", &mut self.net.state)]
    }
}
