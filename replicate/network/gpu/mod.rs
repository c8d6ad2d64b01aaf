//! The heavy operations on a GPU, forward and backward: convolutions through cuDNN, matrix products
//! through cuBLAS, the rest as kernels of this crate. They compute the same as the compositions in
//! [`crate::network::reference`]. Maps have the channels last, (B, H, W, C), the layout of tensor
//! cores.
//!
//! In float32 no TF32 is used. With bfloat16 activations, parameters and statistics are float32 and
//! the output of each operation is rounded. The same input should give the same bits: there are no
//! atomics, and cuDNN's deterministic algorithms are used. None of this has run on a real GPU yet;
//! `tests/standin` runs it on a CPU, with replacements for the libraries.

mod attention;
mod compile;
mod conv;
mod noise;
mod norm;
mod pointwise;
mod resample;
mod shift;
pub mod tape;
mod update;

pub use self::attention::{attention, attention_backward};
pub use self::conv::{conv2d, data_gradient, filter_gradient, filters};
pub use self::noise::normals;
pub use self::norm::{Arriving, GroupNorm};
pub use self::pointwise::{channels, down2, mix, scale_images, silu, silu_backward, up2, weighted_sum};
pub use self::resample::resampled;
pub use self::shift::{column_sums, finish, pixel_sums};
pub use self::update::{Moments, adam, average};

use candle_core::cuda_backend::cudarc::cudnn::CudnnDataType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

/// True if the operations of this module take `x`.
pub fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16)
}

/// Type of an activation.
trait Element: CudaDType + CudnnDataType + DeviceRepr + Copy + 'static {
    const DTYPE: DType;
    /// Suffix of the names of its kernels.
    const SUFFIX: &str;
    const ZERO: Self;
    const ONE: Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const SUFFIX: &str = "f32";
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const SUFFIX: &str = "bf16";
    const ZERO: bf16 = bf16::ZERO;
    const ONE: bf16 = bf16::ONE;
}

/// Calls a function that is generic over [`Element`] with the type of `$of`.
macro_rules! by_type {
    ($of:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $of.dtype() {
            candle_core::DType::F32 => $function::<f32>($($argument),*),
            candle_core::DType::BF16 => $function::<half::bf16>($($argument),*),
            other => candle_core::bail!("{} of {other:?}", stringify!($function)),
        }
    };
}
use by_type;

/// A contiguous tensor on a GPU, as the argument of a custom operation.
#[derive(Clone, Copy)]
struct Arg<'a> {
    storage: &'a CudaStorage,
    layout: &'a Layout,
}

impl<'a> Arg<'a> {
    fn device(&self) -> &'a CudaDevice {
        &self.storage.device
    }

    fn dtype(&self) -> DType {
        candle_core::backend::BackendStorage::dtype(self.storage)
    }

    fn len(&self) -> usize {
        self.layout.shape().elem_count()
    }

    fn view<T: CudaDType>(&self) -> Result<CudaView<'a, T>> {
        match self.layout.contiguous_offsets() {
            Some((start, end)) => Ok(self.storage.as_cuda_slice::<T>()?.slice(start..end)),
            None => bail!("a contiguous tensor is needed, not {:?}", self.layout),
        }
    }
}

/// Calls `f` with the memory of those tensors that are `Some`.
fn with_options<const N: usize, R>(
    tensors: [Option<&Tensor>; N],
    f: impl FnOnce([Option<Arg>; N]) -> Result<R>,
) -> Result<R> {
    let contiguous = |tensor: Option<&Tensor>| tensor.map(Tensor::contiguous).transpose();
    let tensors: Vec<_> = tensors.into_iter().map(contiguous).collect::<Result<_>>()?;
    let guards: Vec<_> = tensors.iter().map(|t| t.as_ref().map(Tensor::storage_and_layout)).collect();
    let mut args = [None; N];
    for (arg, guard) in args.iter_mut().zip(&guards) {
        let Some((storage, layout)) = guard else { continue };
        let Storage::Cuda(storage) = &**storage else { bail!("a tensor on a GPU is needed") };
        *arg = Some(Arg { storage, layout });
    }
    f(args)
}

/// Calls `f` with the memory of the tensors.
fn with_args<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([Arg; N]) -> Result<R>) -> Result<R> {
    with_options(tensors.map(Some), |args| f(args.map(|arg| arg.expect("as it was given"))))
}

/// Passes the address of `view`, or null, to a kernel.
fn optional<'a, T>(call: &mut LaunchArgs<'a>, view: &'a Option<CudaView<'a, T>>) {
    match view {
        Some(view) => call.arg(view),
        None => call.arg(&0u64),
    };
}

fn storage<T: CudaDType>(slice: CudaSlice<T>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(slice, device.clone())
}

/// Makes a tensor without a history.
fn tensor<T: CudaDType>(slice: CudaSlice<T>, shape: impl Into<Shape>, device: &CudaDevice) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage(slice, device)), shape, BackpropOp::none(), false)
}

/// Allocates memory that must be written before it is read.
fn uninitialised<T: DeviceRepr>(n: usize, device: &CudaDevice) -> Result<CudaSlice<T>> {
    // SAFETY: every caller passes it to a kernel or library that writes all that is read later.
    unsafe { device.alloc::<T>(n) }
}

const THREADS: u32 = 256;

/// Converts a count to the type of the kernels.
///
/// # Errors
/// If it is 2^31 or more.
fn count(n: usize) -> Result<u32> {
    if n >= 1 << 31 {
        bail!("{n} values are more than a kernel takes at once: a smaller batch, or --microbatch");
    }
    Ok(n as u32)
}

/// Launch configuration for `n` elements; threads take several elements if there are many.
fn elements(n: usize) -> LaunchConfig {
    let blocks = n.div_ceil(THREADS as usize).clamp(1, 65_536) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

/// Launch configuration with a block for each of `rows` rows of `n` values. [`THREADS`] is `MOST`
/// of the kernels.
fn rows(rows: usize, n: usize) -> LaunchConfig {
    let threads = (n as u32).next_power_of_two().clamp(32, THREADS);
    LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}
