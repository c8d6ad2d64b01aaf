//! The generator: a mapping from z to w, and convolutions whose input channels w scales.

use super::{Config, EPS, Layer, Maker, NORMAL, Reading, Readings, SPREAD, ZERO, mapping};
use crate::network::count::{Count, outlined};
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::{self, Ops, Param, Plus, Resample, Variables, Walk};
use candle_core::{DType, Result, Tensor, bail};
use std::f32::consts::SQRT_2;

const MAPPING_LAYERS: usize = 2;

/// Inserts a zero before each pixel and after the last, so that an ordinary 3x3 convolution
/// computes a transposed one of stride 2.
const INSERT: Resample = Resample { up: 2, pad: [1, 0], taps: &[1.0], down: 1 };
const SMOOTH: Resample = Resample { up: 1, pad: [1, 1], taps: SPREAD, down: 1 };
/// Doubles the size of images.
const DOUBLE: Resample = Resample { up: 2, pad: [2, 1], taps: SPREAD, down: 1 };

/// The generator of StyleGAN2 with skip outputs.
pub struct Generator {
    readings: Readings,
    latent: usize,
    mapping: Vec<Layer>,
    /// Learned constant input of 4 x 4 pixels.
    start: Param,
    blocks: Vec<Block>,
}

/// Layers of one resolution.
struct Block {
    up: Option<Modulated>,
    conv: Modulated,
    rgb: ToRgb,
}

impl Generator {
    /// Builds the network on the parameters of `vb`.
    pub fn new(config: &Config, vb: Variables) -> Result<Generator> {
        let maker = Maker::new(vb);
        let mapping = mapping(&maker.pp("mapping"), MAPPING_LAYERS, config.latent)?;
        let synthesis = maker.pp("synthesis");
        let (mut start, mut blocks, mut inputs) = (None, Vec::new(), 0);
        for (size, channels) in config.levels() {
            let b = synthesis.pp(format!("b{size}"));
            let conv = |name: &str, inputs: usize, up: bool| {
                Modulated::new(config.latent, [inputs, channels], size, up, b.pp(name))
            };
            let up = match start {
                Some(_) => Some(conv("conv0", inputs, true)?),
                None => {
                    start = Some(b.read(Reading::Pixels(b.stored((channels, 4, 4), "const", NORMAL)?)));
                    None
                }
            };
            let rgb = ToRgb::new(config, channels, b.pp("torgb"))?;
            blocks.push(Block { up, conv: conv("conv1", channels, false)?, rgb });
            inputs = channels;
        }
        let Some(start) = start else { bail!("a generator has channels") };
        Ok(Generator { readings: maker.readings(), latent: config.latent, mapping, start, blocks })
    }

    /// Builds the generator with these weights.
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn load(config: &Config, weights: &Arrays, compute: &Compute) -> Result<Generator> {
        let source = Source { given: weights, drawn: &[], cell: "" };
        let build = |vb: Variables| Generator::new(config, vb);
        Params::build(compute, &source, build)?.0.frozen(build)
    }

    /// Counts the parameters, and the work for one image.
    pub fn count(config: &Config) -> Count {
        let g = outlined(|vb| Generator::new(config, vb));
        let noise = g.noise_sizes().into_iter().map(|size| [1, size, size]);
        let inputs: Vec<_> = [[config.latent, 1, 1], [16, 4, 4]].into_iter().chain(noise).collect();
        let read = g.readings.shapes().expect("shapes are all that a count needs");
        Count::read(&g.readings.stored, &read, &g, &inputs)
    }

    /// Side of each noise map, in pixels.
    pub fn noise_sizes(&self) -> Vec<usize> {
        self.convolutions().map(|conv| conv.size).collect()
    }

    fn convolutions(&self) -> impl Iterator<Item = &Modulated> {
        self.blocks.iter().flat_map(|block| block.up.iter().chain([&block.conv]))
    }

    /// Generates images (B, C, H, W) from `z` (B, latent). `noise` has one map (B, 1, size, size)
    /// for each of [`Generator::noise_sizes`], in their order.
    ///
    /// # Errors
    /// If the sizes of `z` or the number of noise maps do not fit.
    pub fn forward(&self, z: &Tensor, noise: &[Tensor]) -> Result<Tensor> {
        let (images, latent) = z.dims2()?;
        if latent != self.latent || noise.len() != self.convolutions().count() {
            bail!("latents of {latent} values, {} maps of noise", noise.len());
        }
        let pixels = Tensor::eye(16, DType::F32, z.device())?.reshape((1, 16, 4, 4))?;
        let pixels = pixels.broadcast_as((images, 16, 4, 4))?.contiguous()?;
        let inputs: Vec<&Tensor> = [z, &pixels].into_iter().chain(noise).collect();
        Ok(network::forward(&self.readings.parameters()?, &inputs, self)?.remove(0))
    }
}

/// Inputs: z; a constant map of 4 x 4 pixels, with a channel for each pixel that is 1 there and 0
/// elsewhere; the noise maps.
impl Walk for Generator {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        let Generator { mapping, start, blocks, .. } = self;
        let w = mapping.iter().try_fold(inputs[0].clone(), |w, layer| layer.forward(ops, &w))?;
        let mut x = ops.conv(&inputs[1], *start, None, Plus::NOTHING)?;
        let mut noise = inputs[2..].iter();
        let mut image = None;
        for Block { up, conv, rgb } in blocks {
            for conv in up.iter().chain([conv]) {
                let noise = noise.next().expect("as many as convolutions");
                x = conv.forward(ops, &x, &w, noise)?;
            }
            image = Some(rgb.forward(ops, &x, &w, image.as_ref())?);
        }
        Ok(vec![image.expect("a generator has blocks")])
    }
}

/// A modulated 3x3 convolution: w scales the input channels, and the outputs are scaled to unit
/// variance for inputs of unit variance. Then noise, bias and leaky ReLU.
struct Modulated {
    affine: [Param; 2],
    weight: Param,
    squares: Param,
    strength: Param,
    bias: Param,
    up: bool,
    /// Side of the output, in pixels.
    size: usize,
}

impl Modulated {
    fn new(
        latent: usize,
        [inputs, outputs]: [usize; 2],
        size: usize,
        up: bool,
        m: Maker,
    ) -> Result<Modulated> {
        let weight = m.stored((outputs, inputs, 3, 3), "weight", NORMAL)?;
        let strength = m.stored((), "noise_strength", ZERO)?;
        Ok(Modulated {
            affine: m.pp("affine").linear(latent, inputs, 1.0, 1.0, 1.0)?,
            weight: m.read(if up { Reading::Turned(weight) } else { Reading::Times(weight, 1.0) }),
            squares: m.read(Reading::Squares(weight)),
            strength: m.read(Reading::Column(strength, outputs)),
            bias: m.times(outputs, "bias", ZERO, 1.0)?,
            up,
            size,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, w: &O::Map, noise: &O::Map) -> Result<O::Map> {
        let [weight, bias] = self.affine;
        let style = ops.conv(w, weight, Some(bias), Plus::NOTHING)?;
        let mut y = ops.scale(x, &style)?;
        if self.up {
            y = ops.resample(&y, &INSERT)?;
        }
        y = ops.conv(&y, self.weight, None, Plus::NOTHING)?;
        if self.up {
            y = ops.resample(&y, &SMOOTH)?;
        }
        let squares = ops.scale(&style, &style)?;
        let variance = ops.conv(&squares, self.squares, None, Plus::NOTHING)?;
        let factors = ops.rsqrt(&variance, EPS)?;
        y = ops.scale(&y, &factors)?;
        let plus = Plus { term: None, residual: Some((&y, 1.0)) };
        y = ops.conv(noise, self.strength, Some(self.bias), plus)?;
        ops.leaky(&y, &y, SQRT_2)
    }
}

/// Converts the features of one resolution to an image, and adds it to the upsampled previous one.
struct ToRgb {
    affine: [Param; 2],
    weight: Param,
    bias: Param,
}

impl ToRgb {
    fn new(config: &Config, channels: usize, m: Maker) -> Result<ToRgb> {
        let gain = 1.0 / (channels as f64).sqrt();
        Ok(ToRgb {
            affine: m.pp("affine").linear(config.latent, channels, 1.0, 1.0, gain)?,
            weight: m.times((config.image_channels, channels, 1, 1), "weight", NORMAL, 1.0)?,
            bias: m.times(config.image_channels, "bias", ZERO, 1.0)?,
        })
    }

    fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, w: &O::Map, image: Option<&O::Map>) -> Result<O::Map> {
        let [weight, bias] = self.affine;
        let style = ops.conv(w, weight, Some(bias), Plus::NOTHING)?;
        let x = ops.scale(x, &style)?;
        let image = image.map(|image| ops.resample(image, &DOUBLE)).transpose()?;
        let plus = Plus { term: None, residual: image.as_ref().map(|image| (image, 1.0)) };
        ops.conv(&x, self.weight, Some(self.bias), plus)
    }
}
