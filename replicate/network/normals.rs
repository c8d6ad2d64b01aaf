//! Random tensors.

use crate::rng::Stream;
use candle_core::{Device, Result, Shape, Tensor};

/// The first standard normal numbers of one step of a stream, as a tensor. A GPU makes
/// its own from the same integers, at most 4e-6 from the host's, instead of waiting for
/// them.
pub fn normals(stream: &Stream, step: u64, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    normals_from(stream, step, 0, shape, device)
}

/// Those from the number `first` on, a multiple of 4.
pub fn normals_from(
    stream: &Stream,
    step: u64,
    first: usize,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    #[cfg(feature = "cudnn")]
    if device.is_cuda() {
        return super::gpu::normals(stream.key(), step, first, shape, device);
    }
    Tensor::from_vec(stream.normals_from(step, first, shape.elem_count()), shape, device)
}
