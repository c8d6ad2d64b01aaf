//! Forward mode whose derivatives have exact gradients: composed of candle's own operations, except
//! for the convolutions, which use the kernels of this crate.

use crate::network::dual;
use crate::network::reference::Composed;
use crate::network::{Ops, Param, Parameters, Plus, Walk, forward};
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
    let mut outputs =
        Composed::of_kernels(parameters).run(&all, |ops, maps| dual::walk(ops, maps, network))?;
    let tangents = outputs.split_off(outputs.len() / 2);
    Ok((outputs, tangents))
}

/// Computes a convolution or a linear layer with the kernels of this crate.
pub(super) fn convolve(
    parameters: &Parameters,
    x: &Tensor,
    weight: Param,
    bias: Option<Param>,
) -> Result<Tensor> {
    let params = [Some(weight), bias].into_iter().flatten().map(|p| parameters[p.0].clone());
    let params = parameters.part(params.collect()).in_float32();
    let (b, _, h, w) = x.dims4()?;
    let flat = (h, w) == (1, 1);
    let x = if flat { x.flatten_from(1)? } else { x.contiguous()? };
    let y = forward(&params, &[&x], &One { biased: bias.is_some() })?.remove(0);
    if flat { y.reshape((b, (), 1, 1)) } else { Ok(y) }
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
