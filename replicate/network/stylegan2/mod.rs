//! StyleGAN2 (Karras et al. 2020) in the form that Diffusion-GAN (Wang et al. 2023) uses on
//! CIFAR-10: a generator with skip outputs, and a discriminator without residual connections that
//! is conditioned on the diffusion time of its images. Tensor names are those of the published
//! checkpoints.
//!
//! Stored parameters have unit variance and are scaled when they are read, so that one learning
//! rate suits all of them.
//!
//! A convolution that doubles the resolution runs on an image with zeros between its pixels. One that
//! halves the resolution runs at every pixel, and every second result is dropped. Special kernels
//! would need a quarter of the operations of either. At 32 x 32 pixels and 512 channels both networks
//! take 13.3 GFLOP for an image, and 50 million images of Diffusion-GAN take 8.3 EFLOP; with its
//! authors' kernels they take 5.0.

mod discriminator;
mod generator;

pub use discriminator::Discriminator;
pub use generator::Generator;

use crate::network::count::{Count, Size};
use crate::network::{self, Builder, Ops, Param, Parameters, Plus, Resample, Variables, Walk};
use candle_core::{Result, Shape, Tensor};
use candle_nn::Init;
use std::cell::RefCell;
use std::f32::consts::SQRT_2;
use std::rc::Rc;

#[derive(Clone, Debug, PartialEq)]
/// Sizes of a generator and its discriminator.
pub struct Config {
    pub image_channels: usize,
    /// Length of z and of w.
    pub latent: usize,
    /// Channels of the maps of 4, 8, 16, … pixels on a side; the last have the images' size.
    pub channels: Vec<usize>,
    /// Images over which the discriminator computes a standard deviation.
    pub group: usize,
}

impl Config {
    /// Side of the images, in pixels.
    pub fn size(&self) -> usize {
        2 << self.channels.len()
    }

    /// Each resolution (side in pixels, from 4 up) with its channels.
    fn levels(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + '_ {
        self.channels.iter().enumerate().map(|(level, channels)| (4 << level, *channels))
    }
}

/// The filter [1, 3, 3, 1] along one axis, with sum 1, or with sum 2 if every second pixel is an
/// inserted zero.
const BLUR: &[f32] = &[0.125, 0.375, 0.375, 0.125];
const SPREAD: &[f32] = &[0.25, 0.75, 0.75, 0.25];
/// Added to variances before a root or a division.
const EPS: f32 = 1e-8;

const NORMAL: Init = Init::Randn { mean: 0.0, stdev: 1.0 };
const ZERO: Init = Init::Const(0.0);

/// A tensor that the operations read, as a function of the stored parameters.
enum Reading {
    Times(Param, f64),
    /// Rotated by 180 degrees: turns a transposed convolution's weight into that of an ordinary
    /// one.
    Turned(Param),
    /// Sums of squares over the kernel: (O, I, k, k) to (O, I).
    Squares(Param),
    /// Reshaped: (C, 4, 4) to (C, 16, 1, 1).
    Pixels(Param),
    /// A scalar repeated for this many channels: (C, 1, 1, 1).
    Column(Param, usize),
    /// A constant (C, C) that replaces each channel by the mean of all.
    Mean(usize),
}

/// The stored parameters of a walk, and the tensors that its operations read.
struct Readings {
    stored: Parameters,
    list: Vec<Reading>,
}

impl Readings {
    fn parameters(&self) -> Result<Parameters> {
        let stored = |param: &Param| &self.stored[param.0];
        let read = |reading: &Reading| match reading {
            Reading::Times(param, gain) => stored(param) * *gain,
            Reading::Turned(param) => stored(param).flip(&[2, 3]),
            Reading::Squares(param) => stored(param).sqr()?.sum((2, 3)),
            Reading::Pixels(param) => stored(param).reshape(((), 16, 1, 1)),
            Reading::Column(param, channels) => {
                stored(param).broadcast_as((*channels, 1, 1, 1))?.contiguous()
            }
            Reading::Mean(n) => Tensor::full(1.0 / *n as f32, (*n, *n), self.stored[0].device()),
        };
        Ok(self.stored.part(self.list.iter().map(read).collect::<Result<_>>()?))
    }

    /// Tensors of the same shapes without computing them, for a count.
    fn shapes(&self) -> Result<Vec<Tensor>> {
        let stored = |param: &Param| &self.stored[param.0];
        let shape = |reading: &Reading| match reading {
            Reading::Times(param, _) | Reading::Turned(param) => Ok(stored(param).clone()),
            Reading::Squares(param) => stored(param).get_on_dim(3, 0)?.get_on_dim(2, 0),
            Reading::Pixels(param) => stored(param).reshape(((), 16, 1, 1)),
            Reading::Column(param, channels) => stored(param).broadcast_as((*channels, 1, 1, 1)),
            Reading::Mean(n) => self.stored[0].flatten_all()?.get(0)?.broadcast_as((*n, *n)),
        };
        self.list.iter().map(shape).collect()
    }
}

/// Collects the parameters of a walk and their readings while the walk is built.
#[derive(Clone)]
struct Maker<'a> {
    builder: Builder<'a>,
    list: Rc<RefCell<Vec<Reading>>>,
}

impl<'a> Maker<'a> {
    fn new(vb: Variables<'a>) -> Maker<'a> {
        Maker { builder: Builder::new(vb), list: Rc::default() }
    }

    fn pp(&self, name: impl ToString) -> Maker<'a> {
        Maker { builder: self.builder.pp(name), list: self.list.clone() }
    }

    fn read(&self, reading: Reading) -> Param {
        let mut list = self.list.borrow_mut();
        list.push(reading);
        Param(list.len() - 1)
    }

    fn stored(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        self.builder.get(shape, name, init)
    }

    fn times(&self, shape: impl Into<Shape>, name: &str, init: Init, gain: f64) -> Result<Param> {
        Ok(self.read(Reading::Times(self.stored(shape, name, init)?, gain)))
    }

    /// Makes weight and bias of a linear layer, scaled by `gain`. Their effective learning rate is
    /// `rate` times that of other layers.
    fn linear(&self, inputs: usize, outputs: usize, rate: f64, bias: f64, gain: f64) -> Result<[Param; 2]> {
        let init = Init::Randn { mean: 0.0, stdev: 1.0 / rate };
        let weight = self.times((outputs, inputs), "weight", init, gain * rate / (inputs as f64).sqrt())?;
        Ok([weight, self.times(outputs, "bias", Init::Const(bias), gain * rate)?])
    }

    /// Makes weight and bias of a convolution with a kernel of `k` x `k`.
    fn conv(&self, inputs: usize, outputs: usize, k: usize) -> Result<[Param; 2]> {
        let gain = 1.0 / ((inputs * k * k) as f64).sqrt();
        let weight = self.times((outputs, inputs, k, k), "weight", NORMAL, gain)?;
        Ok([weight, self.times(outputs, "bias", ZERO, 1.0)?])
    }

    fn readings(self) -> Readings {
        Readings { stored: self.builder.parameters(), list: self.list.take() }
    }
}

enum Layer {
    /// A convolution or linear layer.
    Weighted {
        weight: Param,
        bias: Param,
    },
    Leaky,
    Resampled(Resample),
    /// Normalises the mean square over the channels to 1.
    Normalised {
        mean: Param,
    },
}

impl Layer {
    fn weighted([weight, bias]: [Param; 2]) -> Layer {
        Layer::Weighted { weight, bias }
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        match self {
            Layer::Weighted { weight, bias } => ops.conv(x, *weight, Some(*bias), Plus::NOTHING),
            Layer::Leaky => ops.leaky(x, x, SQRT_2),
            Layer::Resampled(resample) => ops.resample(x, resample),
            Layer::Normalised { mean } => {
                let squares = ops.scale(x, x)?;
                let mean = ops.conv(&squares, *mean, None, Plus::NOTHING)?;
                let size = ops.rsqrt(&mean, EPS)?;
                ops.scale(x, &size)
            }
        }
    }

    /// Computes the derivative at `x` along `dx`.
    fn along<O: Ops>(&self, ops: &mut O, x: &O::Map, dx: &O::Map) -> Result<O::Map> {
        match self {
            Layer::Weighted { weight, .. } => ops.conv(dx, *weight, None, Plus::NOTHING),
            Layer::Leaky => ops.leaky(dx, x, SQRT_2),
            Layer::Resampled(resample) => ops.resample(dx, resample),
            Layer::Normalised { .. } => candle_core::bail!("no derivative goes through a normalisation"),
        }
    }
}

/// Makes the layers of a mapping network of width `features`: a normalisation, then linear layers
/// with a hundredth of the learning rate, each with leaky ReLU.
fn mapping(maker: &Maker, layers: usize, features: usize) -> Result<Vec<Layer>> {
    let mut all = vec![Layer::Normalised { mean: maker.read(Reading::Mean(features)) }];
    for i in 0..layers {
        let linear = maker.pp(format!("fc{i}")).linear(features, features, 0.01, 0.0, 1.0)?;
        all.extend([Layer::weighted(linear), Layer::Leaky]);
    }
    Ok(all)
}

/// Layers that run one after the other.
struct Sequence {
    readings: Readings,
    layers: Vec<Layer>,
}

impl Sequence {
    fn count(&self, size: Size) -> Result<Count> {
        Ok(Count::read(&self.readings.stored, &self.readings.shapes()?, self, &[size]))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(network::forward(&self.readings.parameters()?, &[x], self)?.remove(0))
    }

    /// Computes the output for `x` and its derivative along `dx`. `x` gets no gradient.
    fn along(&self, x: &Tensor, dx: &Tensor) -> Result<[Tensor; 2]> {
        let mut both = network::forward(&self.readings.parameters()?, &[&x.detach(), dx], &Along(self))?;
        let dx = both.remove(1);
        Ok([both.remove(0), dx])
    }
}

impl Walk for Sequence {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let x = self.layers.iter().try_fold(inputs[0].clone(), |x, layer| layer.forward(ops, &x))?;
        Ok(vec![x])
    }
}

/// The walk over a value and its tangent.
struct Along<'a>(&'a Sequence);

impl Walk for Along<'_> {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let (mut x, mut dx) = (inputs[0].clone(), inputs[1].clone());
        for layer in &self.0.layers {
            dx = layer.along(ops, &x, &dx)?;
            x = layer.forward(ops, &x)?;
        }
        Ok(vec![x, dx])
    }
}
