//! Counts the operations, activations and parameters of a network from shapes alone.

use crate::network::params::outline;
use crate::network::unet::{Config, Critic, Denoiser, SecondTime};
use crate::network::{Norm, Ops, Param, Plus, Resample, Variables, Walk};
use candle_core::{Result, Tensor};

/// Size of a network, and its work on one image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub multiply_adds: u64,
    /// Values kept for the backward pass: the output of every operation.
    pub activations: u64,
    pub parameters: u64,
    pub tensors: u64,
}

impl Count {
    /// Counts a network with these parameters. `inputs` are the sizes of one image and of the rows
    /// of channels that the network takes with it; the rows are kept for the backward pass.
    pub fn of(parameters: &[Tensor], network: &impl Walk, inputs: &[Size]) -> Count {
        let scalars = parameters.iter().map(Tensor::elem_count).sum::<usize>() as u64;
        let count = Count { parameters: scalars, tensors: parameters.len() as u64, ..Count::default() };
        let mut counter = Counter { parameters, count };
        for row in &inputs[1..] {
            counter.count.activations += row.iter().product::<usize>() as u64;
        }
        network.walk(&mut counter, inputs).expect("shapes are all that a count needs");
        counter.count
    }

    /// Counts a network whose operations read the tensors `read`, which are computed from the
    /// `stored` parameters.
    pub fn read(stored: &[Tensor], read: &[Tensor], network: &impl Walk, inputs: &[Size]) -> Count {
        let parameters = stored.iter().map(Tensor::elem_count).sum::<usize>() as u64;
        Count { parameters, tensors: stored.len() as u64, ..Count::of(read, network, inputs) }
    }

    /// Adds the counts of two networks.
    pub fn and(self, other: Count) -> Count {
        Count {
            multiply_adds: self.multiply_adds + other.multiply_adds,
            activations: self.activations + other.activations,
            parameters: self.parameters + other.parameters,
            tensors: self.tensors + other.tensors,
        }
    }

    /// Floating-point operations of one forward pass: two for each multiply-add.
    pub fn flop(&self) -> f64 {
        2.0 * self.multiply_adds as f64
    }

    /// Counts the U-Net on one image without augmentation.
    pub fn denoiser(config: &Config) -> Count {
        Count::with_second_time(config, SecondTime::None)
    }

    /// Counts the U-Net with a second noise level.
    pub fn with_second_time(config: &Config, second: SecondTime) -> Count {
        let network = outlined(|vb| Denoiser::with_second_time(config, second, vb));
        Count::of(&network.parameters, &network, &inputs(config, second))
    }

    /// Counts the critic: the U-Net's encoder with a head.
    pub fn critic(config: &Config) -> Count {
        let network = outlined(|vb| Critic::new(config, vb));
        Count::of(&network.parameters, &network, &inputs(config, SecondTime::None))
    }
}

/// Channels, height and width in pixels.
pub type Size = [usize; 3];

/// Counts the operations of a network without computing them.
pub struct Counter<'a> {
    parameters: &'a [Tensor],
    count: Count,
}

impl Counter<'_> {
    fn output(&mut self, size: Size) -> Result<Size> {
        self.count.activations += size.iter().product::<usize>() as u64;
        Ok(size)
    }
}

impl Ops for Counter<'_> {
    type Map = Size;

    fn conv(&mut self, &[_, h, w]: &Size, weight: Param, _: Option<Param>, plus: Plus<Size>) -> Result<Size> {
        let weight = &self.parameters[weight.0];
        self.count.multiply_adds += (weight.elem_count() * h * w) as u64;
        let y = [weight.dim(0)?, h, w];
        // candle's composed operations keep both the sum and its addends.
        if plus.residual.is_some() {
            self.output(y)?;
        }
        self.output(y)
    }

    fn norm(&mut self, x: &Size, _: &Norm) -> Result<Size> {
        self.output(*x)
    }

    fn attention(&mut self, &[c3, h, w]: &Size) -> Result<Size> {
        let (channels, pixels) = (c3 / 3, h * w);
        // Multiply-adds of q^T k and of the weighted sum of v.
        self.count.multiply_adds += (2 * channels * pixels * pixels) as u64;
        self.output([channels, h, w])
    }

    fn silu(&mut self, x: &Size) -> Result<Size> {
        self.output(*x)
    }

    fn down2(&mut self, &[c, h, w]: &Size) -> Result<Size> {
        self.output([c, h / 2, w / 2])
    }

    fn up2(&mut self, &[c, h, w]: &Size) -> Result<Size> {
        self.output([c, 2 * h, 2 * w])
    }

    fn concat(&mut self, &[a, h, w]: &Size, &[b, ..]: &Size) -> Result<Size> {
        self.output([a + b, h, w])
    }

    fn mean(&mut self, &[c, ..]: &Size) -> Result<Size> {
        self.output([c, 1, 1])
    }

    fn gate(&mut self, x: &Size, _: &Size, _: [f32; 2]) -> Result<Size> {
        self.output(*x)
    }

    fn scale(&mut self, x: &Size, _: &Size) -> Result<Size> {
        self.output(*x)
    }

    fn rsqrt(&mut self, x: &Size, _: f32) -> Result<Size> {
        self.output(*x)
    }

    fn resample(&mut self, &[c, h, w]: &Size, resample: &Resample) -> Result<Size> {
        self.output([c, resample.output(h), resample.output(w)])
    }
}

/// Builds a network for counting; its parameters have no values of their own.
pub fn outlined<M>(network: impl FnOnce(Variables) -> Result<M>) -> M {
    outline(network).expect("zeros have any shape").0
}

/// Sizes of a U-Net's inputs for one image without augmentation.
fn inputs(config: &Config, second: SecondTime) -> Vec<Size> {
    let times = 1 + usize::from(second != SecondTime::None);
    let image = [config.image_channels, config.size, config.size];
    std::iter::once(image).chain(vec![[config.model_channels, 1, 1]; times]).collect()
}
