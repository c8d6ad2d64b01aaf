//! Networks: lists of parameters, and the operations that a forward pass is written in ([`Ops`]).
//! The CPU runs them on a [`Tape`](cpu::tape::Tape), GPUs as kernels of this crate (`gpu`), or, if
//! those are not built, as candle operations ([`Composed`](crate::network::reference)).
//! [`Counter`](count::Counter) only counts them.

pub mod count;
pub mod cpu;
pub mod device;
pub mod dual;
pub mod exact;
#[cfg(feature = "cudnn")]
pub mod gpu;
mod mix;
mod normals;
mod parameters;
pub mod params;
pub mod precondition;
pub mod reference;
mod resample;
pub mod stylegan2;
pub mod unet;

pub use mix::{mix, scale_images};
pub use normals::{normals, normals_from};
pub use parameters::{Builder, Bypass, Param, Parameters, Variables};
pub use resample::Resample;

#[cfg(feature = "cudnn")]
use gpu::tape as on_gpu;
#[cfg(not(feature = "cudnn"))]
use reference as on_gpu;

use candle_core::{Result, Shape, Tensor, bail};

/// Terms that a convolution adds to its sums.
pub struct Plus<'a, M> {
    /// One row of channels for each image, added to every pixel.
    pub term: Option<&'a M>,
    /// Maps of the size of the output; the sum is then multiplied by the factor.
    pub residual: Option<(&'a M, f32)>,
}

impl<'a, M> Plus<'a, M> {
    /// Adds nothing.
    pub const NOTHING: Plus<'a, M> = Plus { term: None, residual: None };
}

/// The operations of a network. A `Map` is (B, C, H, W) in a memory layout of the implementation's
/// choice; rows of channels have H = W = 1.
pub trait Ops {
    type Map: Clone;
    /// Convolution with stride 1 and same size. The weight is (O, C, k, k) with k = 1 or 3, or (O,
    /// C); the bias is (O).
    fn conv(
        &mut self,
        x: &Self::Map,
        weight: Param,
        bias: Option<Param>,
        plus: Plus<Self::Map>,
    ) -> Result<Self::Map>;
    /// Group normalisation, followed by SiLU if `norm.silu`; gamma and beta are (C).
    fn norm(&mut self, x: &Self::Map, norm: &Norm) -> Result<Self::Map>;
    /// Single-head self-attention over the pixels: interleaved q, k and v (B, 3C, H, W) to (B, C,
    /// H, W).
    fn attention(&mut self, qkv: &Self::Map) -> Result<Self::Map>;
    /// x sigmoid(x).
    fn silu(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// Mean of each 2x2 block: EDM's [1, 1] resample filter with stride 2.
    fn down2(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// Repeats each pixel in a 2x2 block: EDM's transposed [1, 1] filter.
    fn up2(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// Concatenates the channels of `a` and `b`.
    fn concat(&mut self, a: &Self::Map, b: &Self::Map) -> Result<Self::Map>;
    /// Mean over the pixels: (B, C, 1, 1).
    fn mean(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// `gain` x where `by` > 0, and a fifth of that elsewhere. With `by` = x it is leaky ReLU; with
    /// a tangent for x it is its derivative. Only x gets a gradient.
    fn leaky(&mut self, x: &Self::Map, by: &Self::Map, gain: f32) -> Result<Self::Map> {
        self.gate(x, by, [gain, gain * LEAK])
    }
    /// Multiplies x by `factors[0]` where `by` > 0, and by `factors[1]` elsewhere. Only x gets a gradient.
    fn gate(&mut self, x: &Self::Map, by: &Self::Map, factors: [f32; 2]) -> Result<Self::Map>;
    /// Multiplies every pixel by its image's row of factors, (B, C, 1, 1).
    fn scale(&mut self, x: &Self::Map, rows: &Self::Map) -> Result<Self::Map>;
    /// 1 / sqrt(x + eps).
    fn rsqrt(&mut self, x: &Self::Map, eps: f32) -> Result<Self::Map>;
    /// Resamples both axes of pixels with the same filter.
    fn resample(&mut self, x: &Self::Map, resample: &Resample) -> Result<Self::Map>;
}

/// A network, or a part of one, written in the operations of [`Ops`].
pub trait Walk: Sync {
    /// Computes all outputs from all inputs.
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>>;
}

/// Runs a network with these `parameters`. Inputs and outputs are float32, (B, C, H, W), or (B, C)
/// where H = W = 1. Gradients reach the inputs and parameters that candle tracks. A GPU keeps
/// activations in the type of the `parameters`.
///
/// # Errors
/// If the network fails.
pub fn forward(parameters: &Parameters, inputs: &[&Tensor], network: &impl Walk) -> Result<Vec<Tensor>> {
    if inputs[0].device().is_cpu() {
        cpu::tape::apply(parameters, inputs, |ops, inputs| network.walk(ops, inputs))
    } else {
        on_gpu::apply(parameters, inputs, |ops, inputs| network.walk(ops, inputs))
    }
}

/// Runs a network as [`forward`] does, and computes the derivatives of its outputs along `tangents`
/// of its inputs. Costs about two forward passes. No gradient passes through the derivative of a
/// norm, of attention, of SiLU or of a reciprocal root.
///
/// # Errors
/// If the network fails, or if there is not one tangent for each input.
pub fn along(
    parameters: &Parameters,
    inputs: &[&Tensor],
    tangents: &[&Tensor],
    network: &impl Walk,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    if inputs.len() != tangents.len() {
        bail!("{} tangents of {} inputs", tangents.len(), inputs.len());
    }
    let all = [inputs, tangents].concat();
    let mut outputs = if inputs[0].device().is_cpu() {
        cpu::tape::apply(parameters, &all, |ops, maps| dual::walk(ops, maps, network))
    } else {
        on_gpu::apply(parameters, &all, |ops, maps| dual::walk(ops, maps, network))
    }?;
    let tangents = outputs.split_off(outputs.len() / 2);
    Ok((outputs, tangents))
}

/// Packs several batches into one tensor (B, all), because a candle operation takes few arguments
/// and has one result. A single batch is returned as it is.
fn pack(tensors: &[Tensor]) -> Result<Tensor> {
    match tensors {
        [one] => one.contiguous(),
        _ => {
            let flat: Vec<Tensor> = tensors.iter().map(|t| t.flatten_from(1)).collect::<Result<_>>()?;
            Tensor::cat(&flat, 1)
        }
    }
}

/// Splits a packed tensor into the batches given to [`pack`].
fn unpack(packed: &Tensor, shapes: &[Shape]) -> Result<Vec<Tensor>> {
    if let [_] = shapes {
        return Ok(vec![packed.clone()]);
    }
    let mut start = 0;
    let part = |shape: &Shape| {
        let length = shape.elem_count() / shape.dims()[0];
        start += length;
        packed.narrow(1, start - length, length)?.reshape(shape)
    };
    shapes.iter().map(part).collect()
}

/// Slope of leaky ReLU for negative arguments.
const LEAK: f32 = 0.2;

/// Parameters and settings of a group normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub gamma: Param,
    pub beta: Param,
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
}
