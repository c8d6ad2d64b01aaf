//! Forward mode whose derivatives have exact gradients: composed of candle's own operations, except
//! for the convolutions, which use the kernels of this crate.

use crate::network::dual::{self, Tangents};
use crate::network::reference::{self, Composed};
use crate::network::{Norm, Ops, Param, Parameters, Plus, Resample, Walk, forward};
use candle_core::{Result, Tensor};

/// Computes the outputs of a network and their derivatives along tangents, as
/// [`network::along`](crate::network::along), but several times slower. Gradients of both reach the
/// parameters through every operation.
///
/// # Errors
/// If the network fails.
pub fn jvp(
    parameters: &Parameters,
    inputs: &[&Tensor],
    tangents: &[&Tensor],
    network: &impl Walk,
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let all = [inputs, tangents].concat();
    let mut outputs = reference::apply(parameters, &all, |composed, maps| {
        dual::walk(&mut Exact { parameters, composed }, maps, network)
    })?;
    let tangents = outputs.split_off(outputs.len() / 2);
    Ok((outputs, tangents))
}

struct Exact<'a, 'b> {
    parameters: &'a Parameters,
    composed: &'a mut Composed<'b>,
}

/// A network of a single convolution or linear layer.
struct One {
    biased: bool,
}

impl Walk for One {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> Result<Vec<O::Map>> {
        Ok(vec![ops.conv(&inputs[0], Param(0), self.biased.then_some(Param(1)), Plus::NOTHING)?])
    }
}

impl Ops for Exact<'_, '_> {
    type Map = Tensor;

    fn conv(&mut self, x: &Tensor, weight: Param, bias: Option<Param>, plus: Plus<Tensor>) -> Result<Tensor> {
        let params = [Some(weight), bias].into_iter().flatten().map(|p| self.parameters[p.0].clone());
        let params = self.parameters.part(params.collect()).in_float32();
        let (b, _, h, w) = x.dims4()?;
        let flat = (h, w) == (1, 1);
        let x = if flat { x.flatten_from(1)? } else { x.contiguous()? };
        let mut y = forward(&params, &[&x], &One { biased: bias.is_some() })?.remove(0);
        if flat {
            y = y.reshape((b, (), 1, 1))?;
        }
        if let Some(term) = plus.term {
            y = y.broadcast_add(term)?;
        }
        match plus.residual {
            Some((residual, scale)) => (y + residual)? * scale as f64,
            None => Ok(y),
        }
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        self.composed.norm(x, norm)
    }

    fn attention(&mut self, qkv: &Tensor) -> Result<Tensor> {
        self.composed.attention(qkv)
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        self.composed.silu(x)
    }

    fn down2(&mut self, x: &Tensor) -> Result<Tensor> {
        self.composed.down2(x)
    }

    fn up2(&mut self, x: &Tensor) -> Result<Tensor> {
        self.composed.up2(x)
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.composed.concat(a, b)
    }

    fn mean(&mut self, x: &Tensor) -> Result<Tensor> {
        self.composed.mean(x)
    }

    fn gate(&mut self, x: &Tensor, by: &Tensor, factors: [f32; 2]) -> Result<Tensor> {
        self.composed.gate(x, by, factors)
    }

    fn scale(&mut self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.composed.scale(x, rows)
    }

    fn rsqrt(&mut self, x: &Tensor, eps: f32) -> Result<Tensor> {
        self.composed.rsqrt(x, eps)
    }

    fn resample(&mut self, x: &Tensor, resample: &Resample) -> Result<Tensor> {
        self.composed.resample(x, resample)
    }
}

impl Tangents for Exact<'_, '_> {
    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a + b
    }

    fn norm_along(&mut self, x: &Tensor, dx: &Tensor, norm: &Norm) -> Result<[Tensor; 2]> {
        self.composed.norm_along(x, dx, norm)
    }

    fn attention_along(&mut self, x: &Tensor, dx: &Tensor) -> Result<[Tensor; 2]> {
        self.composed.attention_along(x, dx)
    }

    fn silu_along(&mut self, x: &Tensor, dx: &Tensor) -> Result<Tensor> {
        self.composed.silu_along(x, dx)
    }

    fn rsqrt_along(&mut self, x: &Tensor, dx: &Tensor, eps: f32) -> Result<Tensor> {
        self.composed.rsqrt_along(x, dx, eps)
    }
}
