//! Composes the operations of a network from candle's own. It is the reference that the kernels are
//! tested against, and the backend of GPUs without cuDNN.

use crate::network::dual::Tangents;
use crate::network::{Norm, Ops, Param, Parameters, Plus, Resample, exact};
use candle_core::{D, Result, Tensor};

/// Implements [`Ops`] with candle operations.
pub struct Composed<'a> {
    parameters: &'a [Tensor],
    /// The same, if convolutions use the kernels of this crate instead.
    of_kernels: Option<&'a Parameters>,
}

impl<'a> Composed<'a> {
    /// Composes everything from candle's operations.
    pub fn new(parameters: &'a [Tensor]) -> Composed<'a> {
        Composed { parameters, of_kernels: None }
    }

    /// Computes convolutions with the kernels of this crate.
    pub(super) fn of_kernels(parameters: &'a Parameters) -> Composed<'a> {
        Composed { parameters, of_kernels: Some(parameters) }
    }

    /// As [`apply`].
    pub(super) fn run(
        mut self,
        inputs: &[&Tensor],
        walk: impl FnOnce(&mut Composed, &[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let map = |x: &&Tensor| match *x.dims() {
            [b, c] => x.reshape((b, c, 1, 1)),
            [..] => Ok((*x).clone()),
        };
        let inputs: Vec<Tensor> = inputs.iter().map(map).collect::<Result<_>>()?;
        let outputs = walk(&mut self, &inputs)?;
        let shaped = |y: Tensor| if y.dims()[2..] == [1, 1] { y.flatten_from(1) } else { Ok(y) };
        outputs.into_iter().map(shaped).collect()
    }

    /// Computes a convolution with candle's operations.
    fn convolve(&self, x: &Tensor, weight: Param, bias: Option<Param>) -> Result<Tensor> {
        let w = &self.parameters[weight.0];
        let (out, inputs) = (w.dim(0)?, w.dim(1)?);
        let side = if w.rank() == 4 { w.dim(2)? } else { 1 };
        let y = if x.dims()[2..] == [1, 1] && side == 1 {
            let y = x.flatten_from(1)?.matmul(&w.reshape((out, inputs))?.t()?)?;
            y.reshape((x.dim(0)?, out, 1, 1))?
        } else {
            x.conv2d(&w.reshape((out, inputs, side, side))?, side / 2, 1, 1, 1)?
        };
        match bias {
            Some(bias) => y.broadcast_add(&self.parameters[bias.0].reshape((1, out, 1, 1))?),
            None => Ok(y),
        }
    }
}

/// Runs `walk` on `inputs`, each (B, C, H, W) or rows (B, C). Maps have the type of the inputs.
///
/// # Errors
/// If `walk` fails.
pub fn apply(
    parameters: &[Tensor],
    inputs: &[&Tensor],
    walk: impl FnOnce(&mut Composed, &[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    Composed::new(parameters).run(inputs, walk)
}

impl Ops for Composed<'_> {
    type Map = Tensor;

    fn conv(&mut self, x: &Tensor, weight: Param, bias: Option<Param>, plus: Plus<Tensor>) -> Result<Tensor> {
        let mut y = match self.of_kernels {
            Some(parameters) => exact::convolve(parameters, x, weight, bias)?,
            None => self.convolve(x, weight, bias)?,
        };
        if let Some(term) = plus.term {
            y = y.broadcast_add(term)?;
        }
        match plus.residual {
            Some((residual, scale)) => (y + residual)? * scale as f64,
            None => Ok(y),
        }
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let x = x.reshape((b, norm.groups, c / norm.groups * h * w))?;
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + norm.eps as f64)?.sqrt()?;
        let y = x.broadcast_div(&deviation)?.reshape((b, c, h, w))?;
        let of = |param: Param| self.parameters[param.0].reshape((1, c, 1, 1));
        let y = y.broadcast_mul(&of(norm.gamma)?)?.broadcast_add(&of(norm.beta)?)?;
        if norm.silu { y.silu() } else { Ok(y) }
    }

    fn attention(&mut self, qkv: &Tensor) -> Result<Tensor> {
        let (b, c3, h, w) = qkv.dims4()?;
        let split = qkv.reshape((b, c3 / 3, 3, h * w))?;
        let part = |i| split.narrow(2, i, 1)?.squeeze(2)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.t()?.matmul(&k)? / (c3 as f64 / 3.0).sqrt())?;
        // Not softmax_last_dim: it has no backward pass and drops the gradient silently.
        let p = candle_nn::ops::softmax(&scores, 2)?;
        v.matmul(&p.t()?)?.reshape((b, c3 / 3, h, w))
    }

    fn silu(&mut self, x: &Tensor) -> Result<Tensor> {
        x.silu()
    }

    fn down2(&mut self, x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        x.reshape((b * c, h / 2, 2, w / 2, 2))?.mean(4)?.mean(2)?.reshape((b, c, h / 2, w / 2))
    }

    // Not upsample_nearest2d: its backward pass overwrites the gradients of other users of the
    // tensor.
    fn up2(&mut self, x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        x.reshape((b * c, h, 1, w, 1))?.broadcast_as((b * c, h, 2, w, 2))?.reshape((b, c, 2 * h, 2 * w))
    }

    fn concat(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Tensor::cat(&[a, b], 1)
    }

    fn mean(&mut self, x: &Tensor) -> Result<Tensor> {
        x.mean_keepdim((2, 3))
    }

    fn gate(&mut self, x: &Tensor, by: &Tensor, [open, closed]: [f32; 2]) -> Result<Tensor> {
        let slope = by.gt(0f32)?.to_dtype(x.dtype())?.affine((open - closed).into(), closed.into());
        x * slope?.detach()
    }

    fn scale(&mut self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        x.broadcast_mul(rows)
    }

    fn rsqrt(&mut self, x: &Tensor, eps: f32) -> Result<Tensor> {
        (x + f64::from(eps))?.sqrt()?.recip()
    }

    fn resample(&mut self, x: &Tensor, resample: &Resample) -> Result<Tensor> {
        resample.along(&resample.along(x, 3)?, 2)
    }
}

impl Tangents for Composed<'_> {
    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a + b
    }

    fn norm_along(&mut self, x: &Tensor, dx: &Tensor, norm: &Norm) -> Result<[Tensor; 2]> {
        let shape @ (b, c, h, w) = x.dims4()?;
        let grouped = |x: &Tensor| {
            let x = x.reshape((b, norm.groups, c / norm.groups * h * w))?;
            x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)
        };
        let (x, dx) = (grouped(x)?, grouped(dx)?);
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + norm.eps as f64)?.sqrt()?;
        let (x, dx) = (x.broadcast_div(&deviation)?, dx.broadcast_div(&deviation)?);
        let shrinks = x.broadcast_mul(&(&x * &dx)?.mean_keepdim(D::Minus1)?)?;
        let of = |param: Param| self.parameters[param.0].reshape((1, c, 1, 1));
        let y = x.reshape(shape)?.broadcast_mul(&of(norm.gamma)?)?.broadcast_add(&of(norm.beta)?)?;
        let dy = (dx - shrinks)?.reshape(shape)?.broadcast_mul(&of(norm.gamma)?)?;
        if norm.silu { Ok([y.silu()?, self.silu_along(&y, &dy)?]) } else { Ok([y, dy]) }
    }

    fn attention_along(&mut self, x: &Tensor, dx: &Tensor) -> Result<[Tensor; 2]> {
        let (b, c3, h, w) = x.dims4()?;
        let parts = |x: &Tensor| -> Result<[Tensor; 3]> {
            let split = x.reshape((b, c3 / 3, 3, h * w))?;
            let part = |i| split.narrow(2, i, 1)?.squeeze(2)?.contiguous();
            Ok([part(0)?, part(1)?, part(2)?])
        };
        let ([q, k, v], [dq, dk, dv]) = (parts(x)?, parts(dx)?);
        let scale = (c3 as f64 / 3.0).sqrt();
        let p = candle_nn::ops::softmax(&(q.t()?.matmul(&k)? / scale)?, 2)?;
        let ds = ((dq.t()?.matmul(&k)? + q.t()?.matmul(&dk)?)? / scale)?;
        let dp = (&p * ds.broadcast_sub(&(&p * &ds)?.sum_keepdim(2)?)?)?;
        let da = (v.matmul(&dp.t()?)? + dv.matmul(&p.t()?)?)?;
        let shape = (b, c3 / 3, h, w);
        Ok([v.matmul(&p.t()?)?.reshape(shape)?, da.reshape(shape)?])
    }

    fn silu_along(&mut self, x: &Tensor, dx: &Tensor) -> Result<Tensor> {
        let s = (x.neg()?.exp()? + 1.0)?.recip()?;
        // The derivative is s (1 + x (1 - s)).
        dx * (&s + (x * (&s - s.sqr()?)?)?)?
    }

    fn rsqrt_along(&mut self, x: &Tensor, dx: &Tensor, eps: f32) -> Result<Tensor> {
        let y = self.rsqrt(x, eps)?;
        dx * ((y.sqr()? * y)? * -0.5)?
    }
}
