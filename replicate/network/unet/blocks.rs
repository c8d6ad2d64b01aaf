//! Building blocks of the U-Net: linear layers, convolutions, attention, residual blocks.

use crate::network::{Builder, Norm, Ops, Param, Plus};
use candle_core::Result;
use candle_nn::Init;
use std::cell::RefCell;

/// Factor of residual sums, which keeps their variance.
const SKIP_SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Xavier's uniform initialisation, scaled by `gain`.
fn xavier(fan_in: usize, fan_out: usize, gain: f64) -> Init {
    let bound = gain * (6.0 / (fan_in + fan_out) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Gain of EDM's "zero" initialisation, which is not quite zero.
pub(super) const ZERO: f64 = 1e-5;

/// A linear layer.
pub(super) struct Linear {
    pub weight: Param,
    pub bias: Option<Param>,
}

impl Linear {
    pub fn new(inputs: usize, outputs: usize, bias: bool, b: Builder) -> Result<Linear> {
        Ok(Linear {
            weight: b.get((outputs, inputs), "weight", xavier(inputs, outputs, 1.0))?,
            bias: if bias { Some(b.get(outputs, "bias", Init::Const(0.0))?) } else { None },
        })
    }

    pub fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        ops.conv(x, self.weight, self.bias, Plus::NOTHING)
    }
}

/// Change of the number of pixels before a convolution: none, half or double the height and width.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Resample {
    Keep,
    Down,
    Up,
}

/// A k x k convolution of maps (B, C, H, W).
pub(super) struct Conv {
    weight: Param,
    bias: Param,
    resample: Resample,
}

impl Conv {
    pub fn new(
        inputs: usize,
        outputs: usize,
        k: usize,
        gain: f64,
        resample: Resample,
        b: Builder,
    ) -> Result<Conv> {
        let init = xavier(inputs * k * k, outputs * k * k, gain);
        Ok(Conv {
            weight: b.get((outputs, inputs, k, k), "weight", init)?,
            bias: b.get(outputs, "bias", Init::Const(0.0))?,
            resample,
        })
    }

    pub fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, plus: Plus<O::Map>) -> Result<O::Map> {
        let x = match self.resample {
            Resample::Keep => x,
            Resample::Down => &ops.down2(x)?,
            Resample::Up => &ops.up2(x)?,
        };
        ops.conv(x, self.weight, Some(self.bias), plus)
    }
}

/// Makes EDM's group normalisation, followed by SiLU if `silu`.
pub(super) fn norm(channels: usize, silu: bool, b: Builder) -> Result<Norm> {
    Ok(Norm {
        gamma: b.get(channels, "weight", Init::Const(1.0))?,
        beta: b.get(channels, "bias", Init::Const(0.0))?,
        groups: (channels / 4).clamp(1, 32),
        eps: 1e-6,
        silu,
    })
}

/// EDM's self-attention over pixels, with one head.
struct Attention {
    norm: Norm,
    qkv: Conv,
    proj: Conv,
}

impl Attention {
    pub fn new(channels: usize, b: Builder) -> Result<Attention> {
        Ok(Attention {
            norm: norm(channels, false, b.pp("norm2"))?,
            qkv: Conv::new(channels, 3 * channels, 1, 0.2f64.sqrt(), Resample::Keep, b.pp("qkv"))?,
            proj: Conv::new(channels, channels, 1, ZERO, Resample::Keep, b.pp("proj"))?,
        })
    }

    pub fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map) -> Result<O::Map> {
        let normed = ops.norm(x, &self.norm)?;
        let qkv = self.qkv.forward(ops, &normed, Plus::NOTHING)?;
        let a = ops.attention(&qkv)?;
        self.proj.forward(ops, &a, Plus { term: None, residual: Some((x, SKIP_SCALE)) })
    }
}

/// Embedded conditioning that the blocks read: rows of one width.
pub(super) struct Embedding<M> {
    pub first: M,
    /// Second embedding, if every block reads one.
    pub second: Option<M>,
    pub dropped: Dropped<M>,
}

/// Dropout masks in the order of the blocks: maps that are positive where a value is kept, and the
/// factor of kept values. Without maps, nothing is dropped.
pub(super) struct Dropped<M> {
    keep: RefCell<std::vec::IntoIter<M>>,
    factor: f32,
}

impl<M: Clone> Dropped<M> {
    pub fn new(keep: &[M], factor: f32) -> Dropped<M> {
        Dropped { keep: RefCell::new(keep.to_vec().into_iter()), factor }
    }

    fn next(&self) -> Option<(M, f32)> {
        Some((self.keep.borrow_mut().next()?, self.factor))
    }
}

/// Widths of the embeddings that the blocks read.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    pub width: usize,
    pub second: bool,
}

/// One residual block.
pub(super) struct Block {
    norm0: Norm,
    conv0: Conv,
    affine: Linear,
    /// Layer for the second embedding, if every block reads one.
    affine_s: Option<Linear>,
    norm1: Norm,
    conv1: Conv,
    skip: Option<Conv>,
    attention: Option<Attention>,
}

impl Block {
    pub fn new(
        inputs: usize,
        outputs: usize,
        embedding: Widths,
        resample: Resample,
        attention: bool,
        b: Builder,
    ) -> Result<Block> {
        let project = inputs != outputs || resample != Resample::Keep;
        Ok(Block {
            norm0: norm(inputs, true, b.pp("norm0"))?,
            conv0: Conv::new(inputs, outputs, 3, 1.0, resample, b.pp("conv0"))?,
            affine: Linear::new(embedding.width, outputs, true, b.pp("affine"))?,
            affine_s: match embedding.second {
                true => Some(Linear::new(embedding.width, outputs, true, b.pp("affine_s"))?),
                false => None,
            },
            norm1: norm(outputs, true, b.pp("norm1"))?,
            conv1: Conv::new(outputs, outputs, 3, ZERO, Resample::Keep, b.pp("conv1"))?,
            skip: if project {
                Some(Conv::new(inputs, outputs, 1, 1.0, resample, b.pp("skip"))?)
            } else {
                None
            },
            attention: if attention { Some(Attention::new(outputs, b)?) } else { None },
        })
    }

    pub fn forward<O: Ops>(&self, ops: &mut O, x: &O::Map, emb: &Embedding<O::Map>) -> Result<O::Map> {
        let mut term = self.affine.forward(ops, &emb.first)?;
        if let (Some(affine), Some(second)) = (&self.affine_s, &emb.second) {
            let plus = Plus { term: None, residual: Some((&term, 1.0)) };
            term = ops.conv(second, affine.weight, affine.bias, plus)?;
        }
        let h = ops.norm(x, &self.norm0)?;
        let h = self.conv0.forward(ops, &h, Plus { term: Some(&term), residual: None })?;
        let mut h = ops.norm(&h, &self.norm1)?;
        if let Some((keep, factor)) = emb.dropped.next() {
            h = ops.gate(&h, &keep, [factor, 0.0])?;
        }
        let skip = match &self.skip {
            Some(skip) => &skip.forward(ops, x, Plus::NOTHING)?,
            None => x,
        };
        let y = self.conv1.forward(ops, &h, Plus { term: None, residual: Some((skip, SKIP_SCALE)) })?;
        match &self.attention {
            Some(attention) => attention.forward(ops, &y),
            None => Ok(y),
        }
    }
}
