//! Adds a shift to every pixel of maps, and computes the sums of its gradient. A shift is (C), or
//! (B, C) with one row for each image, in float32.

use super::compile::{kernel, plain};
use super::{
    Arg, Element, THREADS, by_type, count, elements, optional, rows, tensor, uninitialised, with_args,
    with_options,
};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Result, Tensor, bail, builder_arg};

/// `LANE` of the kernels.
const LANE: usize = 32;

/// Computes y + scale (shift + residual), with `y` and `residual` (B, H, W, C).
pub fn finish(y: &Tensor, shift: Option<&Tensor>, residual: Option<&Tensor>, scale: f32) -> Result<Tensor> {
    with_args([y], |[y]| with_options([shift, residual], |options| by_type!(y, finished(y, options, scale))))
}

/// Computes `scale` times the sums of `x` (B, H, W, C) over the pixels, (B, C) in float32.
pub fn pixel_sums(x: &Tensor, scale: f32) -> Result<Tensor> {
    with_args([x], |[x]| by_type!(x, over_pixels(x, scale)))
}

/// Sums the columns of each part of `x` (parts, rows, columns) to (parts, columns), all float32.
pub fn column_sums(x: &Tensor) -> Result<Tensor> {
    with_args([x], |[x]| {
        let ((parts, rows, columns), device) = (x.layout.shape().dims3()?, x.device());
        let n = parts * columns;
        let mut sums = uninitialised::<f32>(n, device)?;
        let (function, xs) = (plain(device, "column_sums")?, x.view::<f32>()?);
        let mut call = function.builder();
        call.arg(&xs).arg(&mut sums);
        builder_arg!(call, count(n)?, rows as u32, columns as u32);
        // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
        unsafe { call.launch(elements(n)) }.w()?;
        Ok(tensor(sums, (parts, columns), device))
    })
}

/// Returns 1 if the shift has a row for each of `images`, 0 if all share one or there is none.
///
/// # Errors
/// If its shape is another.
pub(super) fn per_image(shift: Option<Arg>, images: usize, channels: usize) -> Result<u32> {
    match shift.map(|shift| shift.layout.dims()) {
        Some(dims) if dims == [images, channels] => Ok(1),
        Some(dims) if dims != [channels] => bail!("{dims:?} to add to {channels} channels"),
        _ => Ok(0),
    }
}

fn finished<T: Element>(y: Arg, [shift, residual]: [Option<Arg>; 2], scale: f32) -> Result<Tensor> {
    let ((b, h, w, c), device) = (y.layout.shape().dims4()?, y.device());
    if let Some(residual) = residual.filter(|residual| residual.layout.shape() != y.layout.shape()) {
        bail!("{:?} to add to {:?}", residual.layout, y.layout);
    }
    let per_image = per_image(shift, b, c)?;
    let mut z = uninitialised::<T>(y.len(), device)?;
    let (function, ys) = (kernel::<T>(device, "finish")?, y.view::<T>()?);
    let shift = shift.map(|shift| shift.view::<f32>()).transpose()?;
    let residual = residual.map(|residual| residual.view::<T>()).transpose()?;
    let mut call = function.builder();
    call.arg(&ys).arg(&mut z);
    optional(&mut call, &shift);
    optional(&mut call, &residual);
    count(y.len())?;
    builder_arg!(call, (b * h * w) as u32, c as u32, (h * w) as u32, per_image, scale);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
    unsafe { call.launch(elements(y.len().div_ceil(4))) }.w()?;
    Ok(tensor(z, y.layout.shape().clone(), device))
}

fn over_pixels<T: Element>(x: Arg, scale: f32) -> Result<Tensor> {
    let ((b, h, w, c), device) = (x.layout.shape().dims4()?, x.device());
    let mut sums = uninitialised::<f32>(b * c, device)?;
    let (function, xs) = (kernel::<T>(device, "pixel_sums")?, x.view::<T>()?);
    let mut call = function.builder();
    call.arg(&xs).arg(&mut sums);
    builder_arg!(call, c as u32, (h * w) as u32, scale);
    // SAFETY: the arguments match the kernel's parameters; the blocks cover the channels of each
    // image.
    unsafe { call.launch(rows(b * c.div_ceil(LANE), THREADS as usize)) }.w()?;
    Ok(tensor(sums, (b, c), device))
}
