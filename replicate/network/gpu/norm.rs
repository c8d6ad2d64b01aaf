//! Group normalisation, optionally fused with SiLU.

use super::compile::kernel;
use super::shift::per_image;
use super::{Arg, Element, THREADS, by_type, optional, rows, tensor, uninitialised, with_args, with_options};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Result, Tensor, bail, builder_arg};

/// Group normalisation over `groups` channel groups of each image, followed by SiLU if `silu`.
#[derive(Clone, Copy)]
pub struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
}

/// Channels that a block takes if the groups allow it. In bfloat16 their values of a pixel fill two
/// memory sectors.
const WIDTH: usize = 32;

/// The incoming gradient, and a term that is added to the outgoing one.
#[derive(Clone, Copy)]
pub struct Arriving<'a> {
    /// Incoming gradient: the map and its factor.
    pub dy: (&'a Tensor, f32),
    pub plus: Option<(&'a Tensor, f32)>,
}

impl GroupNorm {
    /// Normalises `x` (B, H, W, C) plus `shift`, with `gamma` and `beta` (C) in float32. Also
    /// returns mean and 1 / standard deviation of every group, (B, groups, 2) in float32.
    pub fn forward(
        &self,
        x: &Tensor,
        shift: Option<&Tensor>,
        [gamma, beta]: [&Tensor; 2],
    ) -> Result<(Tensor, Tensor)> {
        with_args([x, gamma, beta], |args| {
            with_options([shift], |[shift]| by_type!(x, forward(self, args, shift)))
        })
    }

    /// Computes the gradient of x, and for each image those of beta, gamma and the shift: (3, B, C)
    /// in float32. The last is undefined if there is no shift. `kept` comes from the forward pass.
    pub fn backward(
        &self,
        x: &Tensor,
        shift: Option<&Tensor>,
        [gamma, beta]: [&Tensor; 2],
        kept: &Tensor,
        arriving: Arriving,
    ) -> Result<(Tensor, Tensor)> {
        let (dy, dy_scale) = arriving.dy;
        let (plus, plus_scale) = arriving.plus.unzip();
        let scales = [dy_scale, plus_scale.unwrap_or(0.0)];
        with_args([x, gamma, beta, dy, kept], |args| {
            with_options([shift, plus], |options| by_type!(x, backward(self, args, options, scales)))
        })
    }

    /// Returns the groups that one block takes, and the blocks for `images` of `channels`.
    fn blocks(&self, images: usize, channels: usize) -> (u32, usize) {
        let at_once = (WIDTH * self.groups / channels).clamp(1, self.groups);
        (at_once as u32, images * self.groups.div_ceil(at_once))
    }
}

fn forward<T: Element>(
    op: &GroupNorm,
    [x, gamma, beta]: [Arg; 3],
    shift: Option<Arg>,
) -> Result<(Tensor, Tensor)> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    if c % op.groups != 0 || c / op.groups > THREADS as usize || gamma.len() != c || beta.len() != c {
        bail!("group norm: {c} channels, {} groups, {} and {}", op.groups, gamma.len(), beta.len());
    }
    let (device, (at_once, blocks), per_image) = (x.device(), op.blocks(b, c), per_image(shift, b, c)?);
    let mut y = uninitialised::<T>(x.len(), device)?;
    let mut kept = uninitialised::<f32>(2 * b * op.groups, device)?;
    let function = kernel::<T>(device, "group_norm")?;
    let (xs, gammas, betas) = (x.view::<T>()?, gamma.view::<f32>()?, beta.view::<f32>()?);
    let shift = shift.map(|shift| shift.view::<f32>()).transpose()?;
    let mut call = function.builder();
    call.arg(&xs);
    optional(&mut call, &shift);
    call.arg(&per_image).arg(&gammas).arg(&betas).arg(&mut y).arg(&mut kept);
    builder_arg!(call, c as u32, op.groups as u32, (h * w) as u32, at_once, op.eps, u32::from(op.silu));
    // SAFETY: the arguments match the kernel's parameters; the blocks cover the groups of each image.
    unsafe { call.launch(rows(blocks, THREADS as usize)) }.w()?;
    Ok((tensor(y, x.layout.shape().clone(), device), tensor(kept, (b, op.groups, 2), device)))
}

fn backward<T: Element>(
    op: &GroupNorm,
    [x, gamma, beta, dy, kept]: [Arg; 5],
    [shift, plus]: [Option<Arg>; 2],
    [dy_scale, plus_scale]: [f32; 2],
) -> Result<(Tensor, Tensor)> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    let mut others = [Some(dy), plus].into_iter().flatten();
    if others.any(|other| other.len() != x.len())
        || gamma.len() != c
        || beta.len() != c
        || kept.len() != 2 * b * op.groups
    {
        bail!("group norm: {:?} and a gradient {:?}", x.layout, dy.layout);
    }
    let (device, (at_once, blocks), per_image) = (x.device(), op.blocks(b, c), per_image(shift, b, c)?);
    let mut dx = uninitialised::<T>(x.len(), device)?;
    let mut sums = uninitialised::<f32>(3 * b * c, device)?;
    let function = kernel::<T>(device, "group_norm_backward")?;
    let (xs, gammas, betas) = (x.view::<T>()?, gamma.view::<f32>()?, beta.view::<f32>()?);
    let (dys, kept) = (dy.view::<T>()?, kept.view::<f32>()?);
    let shift = shift.map(|shift| shift.view::<f32>()).transpose()?;
    let plus = plus.map(|plus| plus.view::<T>()).transpose()?;
    let mut call = function.builder();
    call.arg(&xs);
    optional(&mut call, &shift);
    call.arg(&per_image).arg(&gammas).arg(&betas).arg(&dys).arg(&kept);
    optional(&mut call, &plus);
    call.arg(&mut dx).arg(&mut sums);
    builder_arg!(call, b as u32, c as u32, op.groups as u32, (h * w) as u32, at_once, u32::from(op.silu));
    builder_arg!(call, dy_scale, plus_scale);
    // SAFETY: the arguments match the kernel's parameters; the blocks cover the groups of each image.
    unsafe { call.launch(rows(blocks, THREADS as usize)) }.w()?;
    Ok((tensor(dx, x.layout.shape().clone(), device), tensor(sums, (3, b, c), device)))
}
