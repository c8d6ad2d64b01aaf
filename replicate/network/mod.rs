//! What a network is made of: its parameters in a list, and the operations that
//! its forward pass is written in. The CPU runs them on a [`Tape`](cpu::tape::Tape),
//! GPUs as kernels of their own (`gpu`), and as candle operations
//! ([`Composed`](crate::network::reference)) where those are not built; a plan
//! counts them.

pub mod count;
pub mod cpu;
pub mod device;
pub mod dual;
pub mod exact;
#[cfg(feature = "cudnn")]
pub mod gpu;
mod mix;
mod normals;
pub mod params;
pub mod precondition;
pub mod reference;
mod resample;
pub mod stylegan2;
pub mod unet;

pub use mix::{mix, scale_images};
pub use normals::{normals, normals_from};
pub use resample::Resample;

/// Networks on other devices than the CPU.
#[cfg(feature = "cudnn")]
pub(crate) use gpu::tape as elsewhere;
#[cfg(not(feature = "cudnn"))]
pub(crate) use reference as elsewhere;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A parameter's place in the list of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(pub usize);

/// Collects the parameters of a network while it is built.
#[derive(Clone)]
pub struct Builder<'a> {
    vb: VarBuilder<'a>,
    list: Rc<RefCell<Vec<Tensor>>>,
}

impl<'a> Builder<'a> {
    pub fn new(vb: VarBuilder<'a>) -> Builder<'a> {
        Builder { vb, list: Rc::default() }
    }

    /// For the parameters whose names begin with `name` and a dot.
    pub fn pp(&self, name: impl ToString) -> Builder<'a> {
        Builder { vb: self.vb.pp(name), list: self.list.clone() }
    }

    pub fn get(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Param> {
        let tensor = self.vb.get_with_hints(shape, name, init)?;
        let mut list = self.list.borrow_mut();
        list.push(tensor);
        Ok(Param(list.len() - 1))
    }

    /// Those that were asked for, in that order.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.list.borrow().clone()
    }
}

/// What a convolution adds to its sums.
pub struct Plus<'a, M> {
    /// One row of channels an image, for every pixel.
    pub term: Option<&'a M>,
    /// Maps of the size of the output; the sum is then scaled.
    pub residual: Option<(&'a M, f32)>,
}

impl<'a, M> Plus<'a, M> {
    pub const NOTHING: Plus<'a, M> = Plus { term: None, residual: None };
}

/// The operations. A `Map` is (B, C, H, W), in whatever order, with H = W = 1 for rows of
/// channels.
pub trait Ops {
    type Map: Clone;
    /// Stride 1, same size, the weight (O, C, k, k) with k = 1 or 3, or (O, C);
    /// the bias (O).
    fn conv(
        &mut self,
        x: &Self::Map,
        weight: Param,
        bias: Option<Param>,
        plus: Plus<Self::Map>,
    ) -> Result<Self::Map>;
    /// Group normalisation, then SiLU where asked; gamma and beta (C).
    fn norm(&mut self, x: &Self::Map, norm: &Norm) -> Result<Self::Map>;
    /// Of q, k and v interleaved, (B, 3C, H, W) to (B, C, H, W).
    fn attention(&mut self, qkv: &Self::Map) -> Result<Self::Map>;
    fn silu(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// Mean of each 2x2 block: EDM's [1, 1] resample filter with stride 2.
    fn down2(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// Each pixel four times: EDM's transposed [1, 1] filter.
    fn up2(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// The channels of `a`, then those of `b`.
    fn concat(&mut self, a: &Self::Map, b: &Self::Map) -> Result<Self::Map>;
    /// Over the pixels, to (B, C, 1, 1).
    fn mean(&mut self, x: &Self::Map) -> Result<Self::Map>;
    /// `gain` x where `by` > 0, a fifth of that elsewhere: leaky ReLU where `by` is x itself,
    /// and along a tangent x its derivative. The gradient reaches x alone.
    fn leaky(&mut self, x: &Self::Map, by: &Self::Map, gain: f32) -> Result<Self::Map>;
    /// Every pixel times its image's row of factors (B, C, 1, 1).
    fn scale(&mut self, x: &Self::Map, rows: &Self::Map) -> Result<Self::Map>;
    /// 1 / sqrt(x + eps)
    fn rsqrt(&mut self, x: &Self::Map, eps: f32) -> Result<Self::Map>;
    fn resample(&mut self, x: &Self::Map, resample: &Resample) -> Result<Self::Map>;
}

/// A network, or a part of one, as a walk through the operations.
pub trait Walk: Sync {
    /// From all inputs to all outputs.
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>>;
}

/// The outputs of a network of `parameters`. Inputs and outputs are (B, C, H, W), or (B, C)
/// where H = W = 1, in float32; gradients go through all of them where candle tracks what
/// they come from. A GPU keeps activations in the type `maps`.
///
/// # Errors
/// What the network fails with.
pub fn forward(
    parameters: &[Tensor],
    inputs: &[&Tensor],
    maps: DType,
    network: &impl Walk,
) -> Result<Vec<Tensor>> {
    if inputs[0].device().is_cpu() {
        cpu::tape::apply(parameters, inputs, |ops, inputs| network.walk(ops, inputs))
    } else {
        elsewhere::apply(parameters, inputs, maps, |ops, inputs| network.walk(ops, inputs))
    }
}

/// The outputs of a network, and their derivatives along `tangents` of its inputs, as
/// [`forward`]: about two of its passes. No gradient goes through the derivative of a norm, of
/// attention, of SiLU or of a reciprocal root.
///
/// # Errors
/// What the network fails with.
pub fn along(
    parameters: &[Tensor],
    inputs: &[&Tensor],
    tangents: &[&Tensor],
    maps: DType,
    network: &impl Walk,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    if inputs.len() != tangents.len() {
        bail!("{} tangents of {} inputs", tangents.len(), inputs.len());
    }
    let all = [inputs, tangents].concat();
    let mut outputs = if inputs[0].device().is_cpu() {
        cpu::tape::apply(parameters, &all, |ops, maps| dual::walk(ops, maps, network))
    } else {
        elsewhere::apply(parameters, &all, maps, |ops, maps| dual::walk(ops, maps, network))
    }?;
    let tangents = outputs.split_off(outputs.len() / 2);
    Ok((outputs, tangents))
}

/// Several batches of values as one, (B, all), which candle takes as one argument or result
/// of an operation; a single one as it is.
fn pack(tensors: &[Tensor]) -> Result<Tensor> {
    match tensors {
        [one] => one.contiguous(),
        _ => {
            let flat: Vec<Tensor> = tensors.iter().map(|t| t.flatten_from(1)).collect::<Result<_>>()?;
            Tensor::cat(&flat, 1)
        }
    }
}

/// The batches of [`pack`].
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

/// Leaky ReLU's slope where its argument is not positive.
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

static BFLOAT16: AtomicBool = AtomicBool::new(false);

/// Whether networks keep their activations on a GPU in bfloat16 from now on. Parameters,
/// their gradients and moments, and everything outside a network stay float32.
pub fn use_bfloat16(on: bool) {
    BFLOAT16.store(on, Ordering::Relaxed);
}

/// The type of a network's activations on `device`.
pub fn activations(device: &Device) -> DType {
    // Only the kernels of cuDNN's build take it.
    let possible = cfg!(feature = "cudnn") && device.is_cuda();
    if possible && BFLOAT16.load(Ordering::Relaxed) { DType::BF16 } else { DType::F32 }
}
