//! Standard normal numbers generated on the GPU.

use super::compile::plain;
use super::{count, elements, tensor, uninitialised};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Device, Result, Shape, Tensor, builder_arg};

/// Generates the numbers of one step of the stream with this `key`, from index `first` on. The
/// random integers are those of the host; logarithm, sine and cosine are the GPU's, so the numbers
/// may differ by up to 4e-6.
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
    // SAFETY: the arguments match the kernel's parameters; the kernel checks n.
    unsafe { call.launch(elements(n / 4)) }.w()?;
    let all = tensor(out, n, device);
    all.narrow(0, 0, shape.elem_count())?.reshape(shape)
}
