//! The discriminator: convolutions down to 4 x 4 pixels, the standard deviation over images as an
//! extra channel, and a logit that is the product of image features with the embedded time.

use super::{BLUR, Config, EPS, Layer, Maker, Sequence, mapping};
use crate::network::count::{Count, outlined};
use crate::network::{Resample, Variables};
use candle_core::{Result, Tensor, bail};

const MAPPING_LAYERS: usize = 8;

const SMOOTH: Resample = Resample { up: 1, pad: [2, 2], taps: BLUR, down: 1 };
/// Keeps every second pixel, from the second to the last but one. After a padded 3x3 convolution
/// this is stride 2 without padding.
const HALVE: Resample = Resample { up: 1, pad: [-1, -1], taps: &[1.0], down: 2 };

/// The discriminator of StyleGAN2, conditioned on the diffusion time.
pub struct Discriminator {
    /// Layers down to 4 x 4 pixels.
    body: Sequence,
    /// Convolution of these features and of the standard deviation.
    conv: Sequence,
    /// Linear layers on all values of an image.
    top: Sequence,
    /// Embedding of the time.
    mapping: Sequence,
    group: usize,
}

fn sequence(vb: &Variables, make: impl FnOnce(&Maker) -> Result<Vec<Layer>>) -> Result<Sequence> {
    let maker = Maker::new(vb.clone());
    let layers = make(&maker)?;
    Ok(Sequence { readings: maker.readings(), layers })
}

impl Discriminator {
    /// Builds the network on the parameters of `vb`.
    ///
    /// # Errors
    /// If the configuration has no channels, or if a parameter cannot be made.
    pub fn new(config: &Config, vb: Variables) -> Result<Discriminator> {
        let Some((_, lowest)) = config.levels().next() else { bail!("a discriminator has channels") };
        let body = sequence(&vb, |maker| {
            let mut layers = Vec::new();
            let mut inputs = config.image_channels;
            // Each resolution's last convolution has the channels of the next.
            let next = config.levels().rev().skip(1);
            for ((size, channels), (_, outputs)) in config.levels().rev().zip(next) {
                let b = maker.pp(format!("b{size}"));
                if layers.is_empty() {
                    layers
                        .extend([Layer::weighted(b.pp("fromrgb").conv(inputs, channels, 1)?), Layer::Leaky]);
                }
                inputs = channels;
                layers.extend([Layer::weighted(b.pp("conv0").conv(inputs, channels, 3)?), Layer::Leaky]);
                let conv1 = Layer::weighted(b.pp("conv1").conv(channels, outputs, 3)?);
                layers.extend([Layer::Resampled(SMOOTH), conv1, Layer::Resampled(HALVE), Layer::Leaky]);
            }
            Ok(layers)
        })?;
        let b4 = vb.pp("b4");
        let conv = sequence(&b4, |maker| {
            Ok(vec![Layer::weighted(maker.pp("conv").conv(lowest + 1, lowest, 3)?), Layer::Leaky])
        })?;
        let top = sequence(&b4, |maker| {
            let fc = maker.pp("fc").linear(16 * lowest, lowest, 1.0, 0.0, 1.0)?;
            let out = maker.pp("out").linear(lowest, lowest, 1.0, 0.0, 1.0)?;
            Ok(vec![Layer::weighted(fc), Layer::Leaky, Layer::weighted(out)])
        })?;
        let mapping = sequence(&vb.pp("mapping"), |maker| {
            let mut layers = vec![Layer::weighted(maker.pp("embed").linear(1, lowest, 1.0, 0.0, 1.0)?)];
            layers.extend(mapping(maker, MAPPING_LAYERS, lowest)?);
            Ok(layers)
        })?;
        Ok(Discriminator { body, conv, top, mapping, group: config.group })
    }

    /// Counts the parameters, and the work on one image.
    pub fn count(config: &Config) -> Count {
        let d = outlined(|vb| Discriminator::new(config, vb));
        let (channels, lowest) = (config.image_channels, config.channels[0]);
        let parts = [
            d.body.count([channels, config.size(), config.size()]),
            d.conv.count([lowest + 1, 4, 4]),
            d.top.count([16 * lowest, 1, 1]),
            d.mapping.count([1, 1, 1]),
        ];
        let parts = parts.into_iter().map(|part| part.expect("shapes are all that a count needs"));
        parts.reduce(Count::and).expect("there are parts")
    }

    /// Computes logits (B) of `x` (B, C, H, W) diffused for `t` steps (B); positive means data.
    ///
    /// # Errors
    /// If the groups do not divide the batch, or if an operation fails.
    pub fn forward(&self, x: &Tensor, t: &[f32]) -> Result<Tensor> {
        let h = self.body.forward(x)?;
        let deviation = Centred::new(&h, self.group)?.deviation()?;
        let h = self.conv.forward(&Tensor::cat(&[h, deviation], 1)?)?;
        let h = self.top.forward(&h.flatten_from(1)?)?;
        self.logits(&h, t)
    }

    /// Computes the derivatives (B) of the logits at `x` along `dx`. Gradients reach the parameters
    /// and `dx`, but not `x`. The layers are piecewise linear, so their slopes do not depend on x,
    /// and the derivative of the standard deviation is tracked through its features.
    ///
    /// # Errors
    /// See [`Discriminator::forward`].
    pub fn jvp(&self, x: &Tensor, dx: &Tensor, t: &[f32]) -> Result<Tensor> {
        let [h, dh] = self.body.along(x, dx)?;
        let (values, tangents) = (Centred::new(&h, self.group)?, Centred::new(&dh, self.group)?);
        let h = Tensor::cat(&[&h, &values.deviation()?], 1)?;
        let dh = Tensor::cat(&[&dh, &values.deviation_along(&tangents)?], 1)?;
        // Above the standard deviation the network is piecewise linear.
        let [h, dh] = self.conv.along(&h.detach(), &dh)?;
        let [_, dh] = self.top.along(&h.detach().flatten_from(1)?, &dh.flatten_from(1)?)?;
        self.logits(&dh, t)
    }

    fn logits(&self, h: &Tensor, t: &[f32]) -> Result<Tensor> {
        let steps = Tensor::from_slice(t, (t.len(), 1), h.device())?;
        let map = self.mapping.forward(&steps)?;
        (h * map)?.sum(1)? * (1.0 / (h.dim(1)? as f64).sqrt())
    }
}

/// The values of maps (B, C, H, W) minus their mean over groups of m images, as (m, B / m, C H W).
/// A group consists of every (B / m)th image.
struct Centred {
    values: Tensor,
    pixels: [usize; 2],
}

impl Centred {
    fn new(x: &Tensor, group: usize) -> Result<Centred> {
        let (images, channels, height, width) = x.dims4()?;
        let m = group.min(images);
        if !images.is_multiple_of(m) {
            bail!("{images} images are no groups of {m}");
        }
        let x = x.reshape((m, images / m, channels * height * width))?;
        Ok(Centred { values: x.broadcast_sub(&x.mean_keepdim(0)?)?, pixels: [height, width] })
    }

    /// Standard deviation of every value over its group: (1, B / m, C H W).
    fn deviations(&self) -> Result<Tensor> {
        (self.values.sqr()?.mean_keepdim(0)? + f64::from(EPS))?.sqrt()
    }

    /// Mean standard deviation of the group, repeated at every pixel of its images: (B, 1, H, W).
    fn deviation(&self) -> Result<Tensor> {
        self.spread(&self.deviations()?)
    }

    /// Derivative of [`Centred::deviation`].
    fn deviation_along(&self, tangent: &Centred) -> Result<Tensor> {
        let products = (&self.values * &tangent.values)?.mean_keepdim(0)?;
        self.spread(&(products / self.deviations()?)?)
    }

    fn spread(&self, deviations: &Tensor) -> Result<Tensor> {
        let (m, n, _) = self.values.dims3()?;
        let [height, width] = self.pixels;
        let means = deviations.mean_keepdim(2)?.broadcast_as((m, n, height * width))?;
        means.reshape((m * n, 1, height, width))
    }
}
