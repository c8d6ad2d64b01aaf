//! Operations on single values or on 2x2 pixels.

use super::compile::kernel;
use super::{Arg, Element, by_type, count, elements, storage, tensor, uninitialised, with_args};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail, builder_arg};
use std::ops::Range;

/// Computes x sigmoid(x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    with_args([x], |[x]| by_type!(x, activated(x, None)))
}

/// Computes the gradient of [`silu`] with respect to x.
pub fn silu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    with_args([x, dy], |[x, dy]| by_type!(x, activated(x, Some(dy))))
}

/// Computes `weight` times the sum of each 2x2 block of `x` (B, H, W, C).
pub fn down2(x: &Tensor, weight: f32) -> Result<Tensor> {
    with_args([x], |[x]| by_type!(x, resampled(x, true, weight)))
}

/// Repeats `weight` times each pixel of `x` (B, H, W, C) in a 2x2 block.
pub fn up2(x: &Tensor, weight: f32) -> Result<Tensor> {
    with_args([x], |[x]| by_type!(x, resampled(x, false, weight)))
}

/// Copies the channels of `y` (B, H, W, C) that are in `range`.
pub fn channels(y: &Tensor, range: Range<usize>) -> Result<Tensor> {
    with_args([y], |[y]| by_type!(y, of_channels(y, range)))
}

/// Computes a x + b y.
pub fn weighted_sum([a, b]: [f32; 2], x: &Tensor, y: &Tensor) -> Result<Tensor> {
    with_args([x, y], |[x, y]| by_type!(x, added([a, b], x, y)))
}

/// Copies the factors of `batch` images to the device; the flag is 1 if each image has its own.
fn factors(a: &[f32], batch: usize, device: &CudaDevice) -> Result<(CudaSlice<f32>, u32)> {
    if a.len() != 1 && a.len() != batch {
        bail!("{} factors for {batch} images", a.len());
    }
    Ok((device.clone_htod(a)?, u32::from(a.len() > 1)))
}

/// Forward pass of [`crate::network::scale_images`].
pub fn scale_images(a: &[f32], x: (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
    let x = Arg { storage: x.0, layout: x.1 };
    Ok((by_type!(x, of_images(a, x))?, x.layout.shape().clone()))
}

fn of_images<T: Element>(a: &[f32], x: Arg) -> Result<CudaStorage> {
    let (n, batch, device) = (x.len(), x.layout.dims()[0], x.device());
    let (a, many) = factors(a, batch, device)?;
    let mut y = uninitialised::<T>(n, device)?;
    let (function, xs) = (kernel::<T>(device, "scale_images")?, x.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&a).arg(&mut y);
    builder_arg!(call, count(n)?, (n / batch) as u32, many);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(storage(y, device))
}

/// Forward pass of [`crate::network::mix`].
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
    // SAFETY: the arguments match the kernel's parameters; the kernel checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(storage(out, device))
}

fn added<T: Element>([a, b]: [f32; 2], x: Arg, y: Arg) -> Result<Tensor> {
    let (n, device) = (x.len(), x.device());
    if x.layout.shape() != y.layout.shape() {
        bail!("a sum of {:?} and {:?}", x.layout.shape(), y.layout.shape());
    }
    let mut out = uninitialised::<T>(n, device)?;
    let (function, xs, ys) = (kernel::<T>(device, "weighted_sum")?, x.view::<T>()?, y.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&a).arg(&ys).arg(&b).arg(&mut out);
    builder_arg!(call, count(n)?);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks n.
    unsafe { call.launch(elements(n.div_ceil(4))) }.w()?;
    Ok(tensor(out, x.layout.shape().clone(), device))
}

/// Computes x s(x) with s the sigmoid, or with `dy` its gradient.
fn activated<T: Element>(x: Arg, dy: Option<Arg>) -> Result<Tensor> {
    let (n, device) = (x.len(), x.device());
    if dy.is_some_and(|dy| dy.len() != n) {
        bail!("SiLU: {:?} and a gradient {:?}", x.layout, dy.map(|dy| dy.layout));
    }
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
    // SAFETY: the arguments match the parameters of either kernel, which checks n.
    unsafe { call.launch(elements(n)) }.w()?;
    Ok(tensor(out, x.layout.shape().clone(), device))
}

/// Halves or doubles the size. Each is the backward pass of the other with the same weight.
fn resampled<T: Element>(x: Arg, half: bool, weight: f32) -> Result<Tensor> {
    let (b, h, w, c) = x.layout.shape().dims4()?;
    if half && (h % 2 != 0 || w % 2 != 0) {
        bail!("down2: {h} x {w} pixels are not even");
    }
    let device = x.device();
    // The kernels take the smaller of the two widths.
    let (name, shape, width) = match half {
        true => ("down2", (b, h / 2, w / 2, c), w / 2),
        false => ("up2", (b, 2 * h, 2 * w, c), w),
    };
    let shape = Shape::from(shape);
    let n = shape.elem_count();
    let mut y = uninitialised::<T>(n, device)?;
    let (function, xs) = (kernel::<T>(device, name)?, x.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&mut y);
    // The kernels also index x.
    count(x.len())?;
    builder_arg!(call, count(n)?, width as u32, c as u32, weight);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks n.
    unsafe { call.launch(elements(n.div_ceil(4))) }.w()?;
    Ok(tensor(y, shape, device))
}

fn of_channels<T: Element>(y: Arg, range: Range<usize>) -> Result<Tensor> {
    let (b, h, w, all) = y.layout.shape().dims4()?;
    let (n, from) = (range.len(), y.layout.start_offset() + range.start);
    let shape = Shape::from((b, h, w, n));
    let mut out = storage(uninitialised::<T>(shape.elem_count(), y.device())?, y.device());
    y.storage.copy2d(&mut out, b * h * w, n, all, n, from, 0)?;
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}
