//! Inner loops on the CPU: convolution, group norm, attention and their gradients over [`Maps`],
//! from which the tape builds networks; [`Filter`] and pooling for Inception-v3. Results are
//! bit-identical for any number of threads, any batch size and any vector instruction set.

mod attention;
mod conv;
mod maps;
mod memory;
mod norm;
mod pointwise;
mod resample;
mod simd;
pub mod tape;

pub(crate) use attention::{attention, attention_along, attention_backward};
pub(crate) use conv::{Packed, Weight, convolve, image_sums};
pub use maps::{Maps, Window, average_pool, max_pool};
pub(crate) use memory::Aligned;
pub(crate) use norm::{GroupNorm, Statistics};
pub(crate) use pointwise::{
    add, concat, down2, gate, mean, mean_backward, rsqrt, rsqrt_backward, scale, scale_backward, silu,
    silu_backward, split, up2,
};
pub(crate) use resample::resample;
pub use simd::filter::Filter;
pub(crate) use simd::product::{Dense, Epilogue, Panels, product};
pub(crate) use simd::winograd::Scratch;

use candle_core::{CpuStorage, Layout, Result, bail};

/// Returns the values of a contiguous float32 CPU operand.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(all) = storage else { bail!("a float32 tensor is needed") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}

/// Returns the mutable values of a contiguous float32 CPU operand.
pub fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(all) = storage else { bail!("a float32 tensor is needed") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut all[start..end]),
        None => bail!("a contiguous tensor is needed, not {layout:?}"),
    }
}
