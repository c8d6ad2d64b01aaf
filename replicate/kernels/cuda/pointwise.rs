//! Operations on one value or on 2x2 pixels.

use super::compile::kernel;
use super::{Arg, Element, by_type, count, elements, no_cpu, storage, tensor, uninitialised, with_args};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail, builder_arg};

/// x sigmoid(x)
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Silu)
}

/// The mean of each 2x2 block of `x` (B, H, W, C).
pub fn down2(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Resample { half: true, weight: 0.25 })
}

/// Each pixel of `x` (B, H, W, C) four times.
pub fn up2(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Resample { half: false, weight: 1.0 })
}

/// The factors of `batch` images on the device, and whether there is one for each.
fn factors(a: &[f32], batch: usize, device: &CudaDevice) -> Result<(CudaSlice<f32>, u32)> {
    if a.len() != 1 && a.len() != batch {
        bail!("{} factors for {batch} images", a.len());
    }
    Ok((device.clone_htod(a)?, u32::from(a.len() > 1)))
}

/// The forward pass of [`crate::kernels::scale_images`].
pub fn scale_images(a: &[f32], x: (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let x = Arg { storage: x.0, layout: x.1 };
    Ok((by_type!(x, scaled(a, x))?, x.layout.shape().clone()))
}

fn scaled<T: Element>(a: &[f32], x: Arg) -> Result<CudaStorage> {
    let (n, batch, device) = (x.len(), x.layout.dims()[0], x.device());
    let (a, many) = factors(a, batch, device)?;
    let mut y = uninitialised::<T>(n, device)?;
    let (function, xs) = (kernel::<T>(device, "scale_images")?, x.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&a).arg(&mut y);
    builder_arg!(call, count(n)?, (n / batch) as u32, many);
    // SAFETY: the kernel's parameters in their order; it checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(storage(y, device))
}

/// The forward pass of [`crate::kernels::mix`].
pub fn mix(
    factors: [&[f32]; 2],
    x: (&CudaStorage, &Layout),
    y: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Shape)> {
    let (x, y) = (Arg { storage: x.0, layout: x.1 }, Arg { storage: y.0, layout: y.1 });
    Ok((by_type!(x, mixed(factors, x, y))?, x.layout.shape().clone()))
}

fn mixed<T: Element>([a, c]: [&[f32]; 2], x: Arg, y: Arg) -> Result<CudaStorage> {
    if x.layout.shape() != y.layout.shape() {
        bail!("mix: {:?} and {:?}", x.layout.shape(), y.layout.shape());
    }
    let (n, batch, device) = (x.len(), x.layout.dims()[0], x.device());
    let ((a, many_a), (c, many_c)) = (factors(a, batch, device)?, factors(c, batch, device)?);
    let mut out = uninitialised::<T>(n, device)?;
    let (function, xs, ys) = (kernel::<T>(device, "mix")?, x.view::<T>()?, y.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&a).arg(&many_a).arg(&ys).arg(&c).arg(&many_c).arg(&mut out);
    builder_arg!(call, count(n)?, (n / batch) as u32);
    // SAFETY: the kernel's parameters in their order; it checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(storage(out, device))
}

struct Silu;

/// x s(x), or with `dy` its gradient.
fn activated<T: Element>(x: Arg, dy: Option<Arg>) -> Result<CudaSlice<T>> {
    let (n, device) = (x.len(), x.device());
    let mut out = uninitialised::<T>(n, device)?;
    let (xs, dys) = (x.view::<T>()?, dy.map(|dy| dy.view::<T>()).transpose()?);
    let function = kernel::<T>(device, if dy.is_some() { "silu_backward" } else { "silu" })?;
    let mut call = function.builder();
    call.arg(&xs);
    if let Some(dys) = &dys {
        call.arg(dys);
    }
    call.arg(&mut out);
    builder_arg!(call, count(n)?);
    // SAFETY: the parameters of either kernel in their order; it checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(out)
}

fn silu_forward<T: Element>(x: Arg) -> Result<CudaStorage> {
    Ok(storage(activated::<T>(x, None)?, x.device()))
}

fn silu_backward<T: Element>(x: Arg, dy: Arg) -> Result<Tensor> {
    Ok(tensor(activated::<T>(x, Some(dy))?, x.layout.shape().clone(), x.device()))
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Arg { storage: x, layout };
        Ok((by_type!(x, silu_forward(x))?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_args([x, dy], |[x, dy]| Ok(Some(by_type!(x, silu_backward(x, dy))?)))
    }
}

/// To half the size, `weight` times the sum of each 2x2 block, or to twice the size,
/// `weight` times each pixel: each is the other's backward with the same weight.
struct Resample {
    half: bool,
    weight: f32,
}

fn resampled<T: Element>(op: &Resample, x: Arg) -> Result<(CudaStorage, Shape)> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    if op.half && (h % 2 != 0 || w % 2 != 0) {
        bail!("down2: {h} x {w} pixels are not even");
    }
    let device = x.device();
    // The kernels take the smaller of the two widths.
    let (name, shape, width) = match op.half {
        true => ("down2", (b, h / 2, w / 2, c), w / 2),
        false => ("up2", (b, 2 * h, 2 * w, c), w),
    };
    let shape = Shape::from(shape);
    let n = shape.elem_count();
    let mut y = uninitialised::<T>(n, device)?;
    let (function, xs) = (kernel::<T>(device, name)?, x.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&mut y);
    builder_arg!(call, count(n)?, width as u32, c as u32, op.weight);
    // SAFETY: the kernel's parameters in their order; it checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok((storage(y, device), shape))
}

impl CustomOp1 for Resample {
    fn name(&self) -> &'static str {
        if self.half { "down2" } else { "up2" }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu(self.name())
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = Arg { storage: x, layout };
        by_type!(x, resampled(self, x))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let back = Resample { half: !self.half, weight: self.weight };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
