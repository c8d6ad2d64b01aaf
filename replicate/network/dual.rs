//! Forward-mode differentiation: computes the values of a network and their derivative along one
//! direction in one walk. [`Dual`] wraps another implementation of [`Ops`]. It applies linear
//! operations once more to the tangent; the others are in [`Tangents`]. Parameters have no tangent.
//! Gradients pass through values and derivatives if the wrapped operations have them.

use crate::network::{Norm, Ops, Param, Plus, Resample, Walk};
use candle_core::Result;

/// Operations that forward mode needs in addition to [`Ops`], each at `x` along `dx`.
pub trait Tangents: Ops {
    /// Adds two maps of the same size.
    fn add(&mut self, a: &Self::Map, b: &Self::Map) -> Result<Self::Map>;
    /// Computes [`Ops::norm`] and its derivative.
    fn norm_along(&mut self, x: &Self::Map, dx: &Self::Map, norm: &Norm) -> Result<[Self::Map; 2]>;
    /// Computes [`Ops::attention`] and its derivative.
    fn attention_along(&mut self, x: &Self::Map, dx: &Self::Map) -> Result<[Self::Map; 2]>;
    /// Computes the derivative of [`Ops::silu`].
    fn silu_along(&mut self, x: &Self::Map, dx: &Self::Map) -> Result<Self::Map>;
    /// Computes the derivative of [`Ops::rsqrt`].
    fn rsqrt_along(&mut self, x: &Self::Map, dx: &Self::Map, eps: f32) -> Result<Self::Map>;
}

/// A map and its tangent.
#[derive(Clone)]
pub struct Pair<M> {
    pub value: M,
    pub tangent: M,
}

/// Operations on pairs, built from those of `O`.
pub struct Dual<'a, O>(pub &'a mut O);

/// Runs a network on pairs. The first half of `maps` are its inputs, the second half their
/// tangents. Returns the outputs, followed by their derivatives.
///
/// # Errors
/// If the network fails.
pub fn walk<O: Tangents>(ops: &mut O, maps: &[O::Map], network: &impl Walk) -> Result<Vec<O::Map>> {
    let (values, tangents) = maps.split_at(maps.len() / 2);
    let pair = |(value, tangent): (&O::Map, &O::Map)| Pair { value: value.clone(), tangent: tangent.clone() };
    let pairs: Vec<_> = values.iter().zip(tangents).map(pair).collect();
    let outputs = network.walk(&mut Dual(ops), &pairs)?;
    let (values, tangents): (Vec<_>, Vec<_>) = outputs.into_iter().map(|p| (p.value, p.tangent)).unzip();
    Ok([values, tangents].concat())
}

impl<O: Tangents> Dual<'_, O> {
    /// Applies a linear operation to the value and to the tangent.
    fn both(
        &mut self,
        x: &Pair<O::Map>,
        linear: impl Fn(&mut O, &O::Map) -> Result<O::Map>,
    ) -> Result<Pair<O::Map>> {
        Ok(Pair { value: linear(self.0, &x.value)?, tangent: linear(self.0, &x.tangent)? })
    }
}

impl<O: Tangents> Ops for Dual<'_, O> {
    type Map = Pair<O::Map>;

    fn conv(
        &mut self,
        x: &Self::Map,
        weight: Param,
        bias: Option<Param>,
        plus: Plus<Self::Map>,
    ) -> Result<Self::Map> {
        let Plus { term, residual } = plus;
        let values = Plus { term: term.map(|t| &t.value), residual: residual.map(|(r, s)| (&r.value, s)) };
        let tangents =
            Plus { term: term.map(|t| &t.tangent), residual: residual.map(|(r, s)| (&r.tangent, s)) };
        Ok(Pair {
            value: self.0.conv(&x.value, weight, bias, values)?,
            tangent: self.0.conv(&x.tangent, weight, None, tangents)?,
        })
    }

    fn norm(&mut self, x: &Self::Map, norm: &Norm) -> Result<Self::Map> {
        let [value, tangent] = self.0.norm_along(&x.value, &x.tangent, norm)?;
        Ok(Pair { value, tangent })
    }

    fn attention(&mut self, qkv: &Self::Map) -> Result<Self::Map> {
        let [value, tangent] = self.0.attention_along(&qkv.value, &qkv.tangent)?;
        Ok(Pair { value, tangent })
    }

    fn silu(&mut self, x: &Self::Map) -> Result<Self::Map> {
        Ok(Pair { value: self.0.silu(&x.value)?, tangent: self.0.silu_along(&x.value, &x.tangent)? })
    }

    fn down2(&mut self, x: &Self::Map) -> Result<Self::Map> {
        self.both(x, |ops, x| ops.down2(x))
    }

    fn up2(&mut self, x: &Self::Map) -> Result<Self::Map> {
        self.both(x, |ops, x| ops.up2(x))
    }

    fn concat(&mut self, a: &Self::Map, b: &Self::Map) -> Result<Self::Map> {
        Ok(Pair {
            value: self.0.concat(&a.value, &b.value)?,
            tangent: self.0.concat(&a.tangent, &b.tangent)?,
        })
    }

    fn mean(&mut self, x: &Self::Map) -> Result<Self::Map> {
        self.both(x, |ops, x| ops.mean(x))
    }

    fn gate(&mut self, x: &Self::Map, by: &Self::Map, factors: [f32; 2]) -> Result<Self::Map> {
        self.both(x, |ops, x| ops.gate(x, &by.value, factors))
    }

    fn scale(&mut self, x: &Self::Map, rows: &Self::Map) -> Result<Self::Map> {
        let Pair { value, tangent } = self.both(x, |ops, x| ops.scale(x, &rows.value))?;
        let more = self.0.scale(&x.value, &rows.tangent)?;
        Ok(Pair { value, tangent: self.0.add(&tangent, &more)? })
    }

    fn rsqrt(&mut self, x: &Self::Map, eps: f32) -> Result<Self::Map> {
        let tangent = self.0.rsqrt_along(&x.value, &x.tangent, eps)?;
        Ok(Pair { value: self.0.rsqrt(&x.value, eps)?, tangent })
    }

    fn resample(&mut self, x: &Self::Map, resample: &Resample) -> Result<Self::Map> {
        self.both(x, |ops, x| ops.resample(x, resample))
    }
}
