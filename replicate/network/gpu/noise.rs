//! Standard normal numbers made where they are needed.

use super::compile::plain;
use super::{count, elements, tensor, uninitialised};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Device, Result, Shape, Tensor, builder_arg};

/// Numbers of one step of the stream with this `key`, from the number `first` on, from the
/// same integers as on the host. Logarithm, sine and cosine are the GPU's: the numbers may be up to
/// 4e-6 from the host's.
pub fn normals(
    key: [u32; 2],
    step: u64,
    first: usize,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    let (device, shape) = (device.as_cuda_device()?, shape.into());
    // The generator makes four numbers at a time.
    let n = shape.elem_count().next_multiple_of(4);
    let mut out = uninitialised::<f32>(n, device)?;
    let function = plain(device, "normals")?;
    let mut call = function.builder();
    call.arg(&mut out);
    builder_arg!(call, count(n)?, (first / 4) as u64, key[0], key[1], step);
    // SAFETY: the kernel's parameters in their order; it checks n.
    unsafe { call.launch(elements(n / 4)) }.w()?;
    let all = tensor(out, n, device);
    all.narrow(0, 0, shape.elem_count())?.reshape(shape)
}
