//! EDM's augmentation of images on the GPU, as in [`crate::train::augment`].

use super::compile::plain;
use super::{count, elements, tensor, uninitialised, with_args};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use candle_core::{Result, Tensor, bail, builder_arg};

/// Mirrors and resamples `images` (B, C, size, size) in float32. Each image has a row of numbers:
/// mirror left to right, mirror top to bottom, whether pixels move at all, then the map from a
/// pixel to its source, a 2 x 2 matrix about the centre and a shift in pixels. `taps` are those of
/// the filter.
pub fn resampled(images: &Tensor, taps: &[f32; 12], rows: &[[f32; 9]]) -> Result<Tensor> {
    let (batch, channels, size, width) = images.dims4()?;
    if width != size || rows.len() != batch {
        bail!("augmentation: {:?} and {} draws", images.shape(), rows.len());
    }
    with_args([images], |[images]| {
        let (device, planes) = (images.device(), batch * channels);
        let table = device.clone_htod(&[taps, rows.as_flattened()].concat())?;
        // One pass, which writes `each` values of every plane.
        let pass = |name: &str, from: &[CudaView<f32>], each: usize| -> Result<CudaSlice<f32>> {
            let mut to = uninitialised::<f32>(planes * each, device)?;
            let function = plain(device, name)?;
            let mut call = function.builder();
            call.arg(&table);
            for view in from {
                call.arg(view);
            }
            call.arg(&mut to);
            builder_arg!(call, count(planes * each)?, channels as u32, size as u32);
            // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
            unsafe { call.launch(elements(planes * each)) }.w()?;
            Ok(to)
        };
        let (fine, reach) = (2 * (3 * size - 2), 2 * (size - 1) + taps.len());
        let enlarged = pass("enlarged", &[images.view()?], fine * fine)?;
        let sampled = pass("sampled", &[enlarged.slice(..)], reach * reach)?;
        let reduced = pass("reduced", &[images.view()?, sampled.slice(..)], size * size)?;
        Ok(tensor(reduced, images.layout.shape().clone(), device))
    })
}
