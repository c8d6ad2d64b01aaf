//! Random tensors.

use crate::rng::Stream;
use candle_core::{Device, Result, Shape, Tensor};

/// The first standard normal numbers of one step of a stream, as a tensor. A GPU makes
/// its own from the same integers, at most 4e-6 from the host's, instead of waiting for
/// them.
pub fn normals(stream: &Stream, step: u64, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    #[cfg(feature = "cudnn")]
    if device.is_cuda() {
        return super::cuda::normals(stream.key(), step, shape, device);
    }
    Tensor::from_vec(stream.normals(step, shape.elem_count()), shape, device)
}
