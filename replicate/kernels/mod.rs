//! The inner loops of the CPU: convolution, group norm, attention and their
//! gradients over [`Maps`], which the tape strings together to networks, and
//! [`Filter`] and pooling for Inception-v3. Every result is the same bits for any
//! number of threads, any batch, and any of the CPU's vectors.
//!
//! A GPU's are in `cuda`. [`mix`], [`scale_images`] and [`normals`] are for both.

mod attention;
mod conv;
#[cfg(feature = "cudnn")]
pub(crate) mod cuda;
mod filter;
mod lanes;
mod maps;
mod mix;
mod noise;
mod norm;
mod pointwise;
mod pool;
mod product;
mod winograd;

pub(crate) use attention::{attention, attention_backward};
pub(crate) use conv::{Packed, Weight, add_bias_gradient, convolve};
pub use filter::Filter;
pub use maps::{Maps, Window, average_pool, max_pool};
pub use mix::{mix, scale_images};
pub use noise::{normals, normals_from};
pub(crate) use norm::{GroupNorm, Statistics};
pub(crate) use pointwise::{add, concat, down2, mean, mean_backward, silu, silu_backward, split, up2};
pub(crate) use pool::Aligned;
pub(crate) use product::Ends;

use candle_core::{CpuStorage, DType, Device, Layout, Result, bail};
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
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(all) = storage else { bail!("a float32 tensor is needed") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

/// The same of an operand that is changed.
pub fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(all) = storage else { bail!("a float32 tensor is needed") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut all[start..end]),
        None => bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}
