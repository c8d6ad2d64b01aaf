//! The operations of a network on a GPU: cuDNN's convolutions, cuBLAS, and kernels of
//! our own. Maps have the channels last, (B, H, W, C), and are float32 or, where
//! [`activations`] says so, bfloat16; rows of channels, (B, 1, 1, C), and what comes out
//! of [`Ops::mean`] are float32.

use crate::kernels::{activations, cuda, mix};
use crate::network::{Norm, Ops, Param, Plus};
use candle_core::{DType, Device, Result, Tensor};

pub struct Fused<'a> {
    parameters: &'a [Tensor],
    device: &'a Device,
}

impl<'a> Fused<'a> {
    pub fn new(parameters: &'a [Tensor], device: &'a Device) -> Fused<'a> {
        Fused { parameters, device }
    }

    /// From images (B, C, H, W).
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(activations(self.device))?.permute((0, 2, 3, 1))?.contiguous()
    }

    /// (B, inputs) to (B, outputs).
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, term: Option<Tensor>) -> Result<Tensor> {
        let mut y = x.flatten_from(1)?.matmul(&w.flatten_from(1)?.t()?)?;
        for more in [bias.cloned(), term].into_iter().flatten() {
            y = y.broadcast_add(&more)?;
        }
        Ok(y)
    }
}

impl Ops for Fused<'_> {
    type Map = Tensor;

    fn rows(&mut self, values: Vec<f32>, channels: usize) -> Result<Tensor> {
        let images = values.len() / channels;
        Tensor::from_vec(values, (images, 1, 1, channels), self.device)
    }

    fn conv(&mut self, x: &Tensor, weight: Param, bias: Option<Param>, plus: Plus<Tensor>) -> Result<Tensor> {
        let w = &self.parameters[weight.0];
        let (b, out) = (x.dim(0)?, w.dim(0)?);
        let bias = bias.map(|bias| &self.parameters[bias.0]);
        let term = plus.term.map(|term| term.reshape((b, out))).transpose()?;
        let y = if x.dims()[1..3] == [1, 1] && w.dims()[2..].iter().all(|side| *side == 1) {
            self.linear(x, w, bias, term)?.reshape((b, 1, 1, out))?
        } else {
            let bias = match (bias, term) {
                (Some(bias), Some(term)) => term.broadcast_add(bias)?,
                (Some(bias), None) => bias.clone(),
                (None, Some(term)) => term,
                (None, None) => Tensor::zeros(out, DType::F32, self.device)?,
            };
            cuda::conv2d(x, w, &bias)?
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
        let (b, h, w, c3) = qkv.dims4()?;
        cuda::attention(&qkv.reshape((b, h * w, c3))?)?.reshape((b, h, w, c3 / 3))
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
        Tensor::cat(&[a, b], 3)
    }

    fn mean(&mut self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::F32)?.mean_keepdim((1, 2))
    }

    fn tensor(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous()
    }
}
