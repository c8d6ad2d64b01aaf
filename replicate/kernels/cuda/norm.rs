//! Group normalisation, with SiLU in the same pass where asked.

use super::compile::{kernel, plain};
use super::{Arg, Element, THREADS, by_type, elements, no_cpu, rows, storage, tensor, uninitialised, with_args};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor, bail, builder_arg};

/// As [`crate::network::Ops::norm`]: `x` (B, H, W, C); `gamma` and `beta` (C) are float32.
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, GroupNorm { groups, eps, silu })
}

struct GroupNorm {
    groups: usize,
    eps: f32,
    silu: bool,
}

/// Channels that a block takes where the groups allow it: with two bytes each, what it
/// reads of a pixel is two of the memory's sectors.
const WIDTH: usize = 32;

impl GroupNorm {
    /// Groups that one block does, and blocks for `images` of `channels`.
    fn blocks(&self, images: usize, channels: usize) -> (u32, usize) {
        let at_once = (WIDTH * self.groups / channels).clamp(1, self.groups);
        (at_once as u32, images * self.groups.div_ceil(at_once))
    }
}

fn forward<T: Element>(op: &GroupNorm, [x, gamma, beta]: [Arg; 3]) -> Result<CudaStorage> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    if c % op.groups != 0 || c / op.groups > THREADS as usize || gamma.len() != c || beta.len() != c {
        bail!("group norm: {c} channels, {} groups, {} and {}", op.groups, gamma.len(), beta.len());
    }
    let (device, (at_once, blocks)) = (x.device(), op.blocks(b, c));
    let mut y = uninitialised::<T>(x.len(), device)?;
    let function = kernel::<T>(device, "group_norm")?;
    let (xs, gammas, betas) = (x.view::<T>()?, gamma.view::<f32>()?, beta.view::<f32>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&gammas).arg(&betas).arg(&mut y);
    builder_arg!(call, c as u32, op.groups as u32, (h * w) as u32, at_once, op.eps, u32::from(op.silu));
    // SAFETY: the kernel's parameters in their order; blocks for the groups of each image.
    unsafe { call.launch(rows(blocks, THREADS as usize)) }.w()?;
    Ok(storage(y, device))
}

/// (dx, dgamma, dbeta)
fn backward<T: Element>(op: &GroupNorm, [x, gamma, beta, dy]: [Arg; 4]) -> Result<[Tensor; 3]> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    let (device, (at_once, blocks)) = (x.device(), op.blocks(b, c));
    let mut dx = uninitialised::<T>(x.len(), device)?;
    let mut sums = uninitialised::<f32>(2 * b * c, device)?;
    let function = kernel::<T>(device, "group_norm_backward")?;
    let (xs, gammas, betas) = (x.view::<T>()?, gamma.view::<f32>()?, beta.view::<f32>()?);
    let dys = dy.view::<T>()?;
    let mut call = function.builder();
    call.arg(&xs).arg(&gammas).arg(&betas).arg(&dys).arg(&mut dx).arg(&mut sums);
    builder_arg!(call, b as u32, c as u32, op.groups as u32, (h * w) as u32);
    builder_arg!(call, at_once, op.eps, u32::from(op.silu));
    // SAFETY: the kernel's parameters in their order; blocks for the groups of each image.
    unsafe { call.launch(rows(blocks, THREADS as usize)) }.w()?;

    let function = plain(device, "column_sums")?;
    let total = |part: usize| -> Result<Tensor> {
        let mut out = uninitialised::<f32>(c, device)?;
        let from = sums.slice(part * b * c..(part + 1) * b * c);
        let mut call = function.builder();
        call.arg(&from).arg(&mut out);
        builder_arg!(call, b as u32, c as u32);
        // SAFETY: the kernel's parameters in their order; b rows of c sums.
        unsafe { call.launch(elements(c)) }.w()?;
        Ok(tensor(out, c, device))
    };
    let (dbeta, dgamma) = (total(0)?, total(1)?);
    Ok([tensor(dx, x.layout.shape().clone(), device), dgamma, dbeta])
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        no_cpu(self.name())
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        gamma: &CudaStorage,
        lg: &Layout,
        beta: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let args = [(x, lx), (gamma, lg), (beta, lb)].map(|(storage, layout)| Arg { storage, layout });
        Ok((by_type!(args[0], forward(self, args))?, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_args([x, gamma, beta, dy], |args| {
            let [dx, dgamma, dbeta] = by_type!(x, backward(self, args))?;
            Ok((Some(dx), gamma.track_op().then_some(dgamma), beta.track_op().then_some(dbeta)))
        })
    }
}
