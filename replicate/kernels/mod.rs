//! The operations whose candle CPU versions are slow or wrong (backward of
//! convolution, group norm, softmax, upsampling), as candle custom operations
//! with backwards of their own. On other devices each function composes
//! candle's operations; the same composition is the reference in the tests.
//! [`Filter`] and the pools are for inference alone, on plain values.
//!
//! Every result is the same bits for any number of threads and any batch.

mod attention;
mod conv;
#[cfg(feature = "cudnn")]
pub(crate) mod cuda;
mod filter;
mod lanes;
mod linear;
mod maps;
mod noise;
mod norm;
mod pointwise;
mod tile;

pub use attention::attention;
pub use conv::conv2d;
pub use filter::Filter;
pub use linear::linear;
pub use maps::{Maps, Window, Workspace, average_pool, max_pool};
pub use noise::normals;
pub use norm::group_norm;
pub use pointwise::{down2, mix, scale_images, silu, up2};

/// The plain compositions, for tests and for other devices.
pub mod reference {
    pub use super::attention::reference as attention;
    pub use super::conv::reference as conv2d;
    pub use super::linear::reference as linear;
    pub use super::norm::reference as group_norm;
    pub use super::pointwise::reference::*;
}

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};
use std::sync::atomic::{AtomicBool, Ordering};

static BFLOAT16: AtomicBool = AtomicBool::new(false);

/// Whether networks keep their activations on a GPU in bfloat16 from now on. Parameters,
/// their gradients and moments, and everything outside a network stay float32.
pub fn use_bfloat16(on: bool) {
    BFLOAT16.store(on, Ordering::Relaxed);
}

/// The type of a network's activations on `device`.
pub fn activations(device: &Device) -> DType {
    // Only the kernels of cuDNN's build take it.
    let possible = cfg!(feature = "cudnn") && device.is_cuda();
    if possible && BFLOAT16.load(Ordering::Relaxed) { DType::BF16 } else { DType::F32 }
}

/// The float32 values of a contiguous CPU operand.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(all) = storage else { bail!("a float32 tensor is needed") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

/// Reads the values of CPU tensors inside a backward pass.
fn with_values<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let contiguous: Vec<Tensor> = tensors.iter().map(|t| t.contiguous()).collect::<Result<_>>()?;
    let guards: Vec<_> = contiguous.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(cpu) = &**storage else { bail!("a CPU tensor is needed") };
        *slice = values(cpu, layout)?;
    }
    f(slices)
}
