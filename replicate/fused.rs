//! The operations of a network on a GPU: cuDNN's convolutions, cuBLAS, and kernels of
//! our own. Maps are float32 or, where [`activations`] says so, bfloat16; rows of
//! channels and what comes out of [`Ops::mean`] are float32.

use crate::composed::Composed;
use crate::kernels::{activations, cuda, mix};
use crate::network::{Norm, Ops, Param, Plus};
use candle_core::{DType, Device, Result, Tensor};

pub struct Fused<'a> {
    parameters: &'a [Tensor],
    device: &'a Device,
    /// For what candle does well.
    composed: Composed<'a>,
}

impl<'a> Fused<'a> {
    pub fn new(parameters: &'a [Tensor], device: &'a Device) -> Fused<'a> {
        Fused { parameters, device, composed: Composed::new(parameters, device) }
    }
}

impl Ops for Fused<'_> {
    type Map = Tensor;

    fn rows(&mut self, values: Vec<f32>, channels: usize) -> Result<Tensor> {
        self.composed.rows(values, channels)
    }

    fn conv(&mut self, x: &Tensor, weight: Param, bias: Option<Param>, plus: Plus<Tensor>) -> Result<Tensor> {
        let w = &self.parameters[weight.0];
        let y = if x.dims()[2..] == [1, 1] && w.dims()[2..].iter().all(|side| *side == 1) {
            self.composed.conv(x, weight, bias, Plus { term: plus.term, residual: None })?
        } else {
            let (b, out) = (x.dim(0)?, w.dim(0)?);
            let bias = bias.map(|bias| &self.parameters[bias.0]);
            let bias = match (bias, plus.term) {
                (Some(bias), Some(term)) => term.reshape((b, out))?.broadcast_add(bias)?,
                (Some(bias), None) => bias.clone(),
                (None, Some(term)) => term.reshape((b, out))?,
                (None, None) => Tensor::zeros(out, DType::F32, self.device)?,
            };
            cuda::conv2d(&x.to_dtype(activations(self.device))?, w, &bias)?
        };
        match plus.residual {
            Some((residual, scale)) => mix(&y, &[scale], residual, &[scale]),
            None => Ok(y),
        }
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let (gamma, beta) = (&self.parameters[norm.gamma.0], &self.parameters[norm.beta.0]);
        cuda::group_norm(x, gamma, beta, norm.groups, norm.eps, norm.silu)
    }

    fn attention(&mut self, qkv: &Tensor) -> Result<Tensor> {
        let (b, c3, h, w) = qkv.dims4()?;
        cuda::attention(&qkv.reshape((b, c3, h * w))?)?.reshape((b, c3 / 3, h, w))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        cuda::silu(x)
    }

    fn down2(&mut self, x: &Tensor) -> Result<Tensor> {
        cuda::down2(x)
    }

    fn up2(&mut self, x: &Tensor) -> Result<Tensor> {
        cuda::up2(x)
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.composed.concat(a, b)
    }

    fn mean(&mut self, x: &Tensor) -> Result<Tensor> {
        self.composed.mean(&x.to_dtype(DType::F32)?)
    }

    fn tensor(&self, x: &Tensor) -> Result<Tensor> {
        self.composed.tensor(x)
    }
}
