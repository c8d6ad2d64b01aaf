//! Random tensors.

use crate::rng::Stream;
use candle_core::{Device, Result, Shape, Tensor};

/// Draws the first standard normal numbers of one step of a stream. A GPU computes them itself from
/// the same random integers, which avoids a transfer; they differ from the host's by at most 4e-6.
pub fn normals(stream: &Stream, step: u64, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    normals_from(stream, step, 0, shape, device)
}

/// Draws the numbers from index `first` on, which must be a multiple of 4.
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
