//! Single-head self-attention over pixels: batched matrix products, and a softmax in one pass over
//! each row.

use super::compile::kernel;
use super::shift::per_image;
use super::{
    Arg, Element, by_type, count, elements, optional, rows, tensor, uninitialised, with_args, with_options,
};
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{self, CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, Gemm, GemmConfig, StridedBatchedConfig};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Layout, Result, Tensor, bail, builder_arg};

/// Computes softmax(q k^T / sqrt(C)) v, (B, T, C). `qkv` (B, T, 3C) has q, k and v interleaved:
/// channel 3c + {0, 1, 2}. `shift` is added to it first.
pub fn attention(qkv: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
    with_args([qkv], |[qkv]| with_options([shift], |[shift]| by_type!(qkv, forward(qkv, shift))))
}

/// Computes the gradient of `qkv` from `da`, that of the output.
pub fn attention_backward(qkv: &Tensor, shift: Option<&Tensor>, da: &Tensor) -> Result<Tensor> {
    with_args([qkv, da], |[qkv, da]| with_options([shift], |[shift]| by_type!(qkv, backward(qkv, shift, da))))
}

/// Sizes: `batch` images of `tokens` by `channels`.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    tokens: usize,
    channels: usize,
}

/// A product z = x y, or one with transposed factors. All are row-major; z is (rows, columns), and
/// `inner` is summed over.
#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    columns: usize,
    inner: usize,
    /// True if x is stored as (inner, rows), and if y is stored as (columns, inner).
    transposed: [bool; 2],
}

impl Geometry {
    fn of(layout: &Layout) -> Result<Geometry> {
        let (batch, tokens, c3) = layout.shape().dims3()?;
        if c3 % 3 != 0 {
            bail!("attention: {c3} channels are not three times anything");
        }
        Ok(Geometry { batch, tokens, channels: c3 / 3 })
    }

    fn scale(self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    /// Values of q, of k, of v or of the output.
    fn values(self) -> usize {
        self.batch * self.tokens * self.channels
    }

    /// Attention weights: (B, queries, keys).
    fn pairs(self) -> usize {
        self.batch * self.tokens * self.tokens
    }

    /// Products q k^T and da v^T, (queries, keys).
    fn scores(self) -> Product {
        let (rows, columns, inner) = (self.tokens, self.tokens, self.channels);
        Product { rows, columns, inner, transposed: [false, true] }
    }

    /// Products p v and dq = ds k: (queries, channels), summed over keys.
    fn to_queries(self) -> Product {
        let (rows, columns, inner) = (self.tokens, self.channels, self.tokens);
        Product { rows, columns, inner, transposed: [false, false] }
    }

    /// Products dv = p^T da and dk = ds^T q: (keys, channels), summed over queries.
    fn to_keys(self) -> Product {
        Product { transposed: [true, false], ..self.to_queries() }
    }
}

impl Product {
    /// Configuration for cuBLAS. It is column-major, so it sees every matrix transposed and
    /// computes z^T = y^T x^T.
    fn config<T: Element>(&self, batch: usize) -> StridedBatchedConfig<T> {
        let Product { rows, columns, inner, transposed: [x, y] } = *self;
        let operation =
            |transposed: bool| -> cublasOperation_t { if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N } };
        StridedBatchedConfig {
            gemm: GemmConfig {
                transa: operation(y),
                transb: operation(x),
                m: columns as i32,
                n: rows as i32,
                k: inner as i32,
                alpha: T::ONE,
                lda: if y { inner } else { columns } as i32,
                ldb: if x { rows } else { inner } as i32,
                beta: T::ZERO,
                ldc: columns as i32,
            },
            batch_size: batch as i32,
            stride_a: (columns * inner) as i64,
            stride_b: (rows * inner) as i64,
            stride_c: (rows * columns) as i64,
        }
    }

    fn run<T: Element>(
        &self,
        blas: &CudaBlas,
        batch: usize,
        x: &impl DevicePtr<T>,
        y: &impl DevicePtr<T>,
        z: &mut impl DevicePtrMut<T>,
    ) -> Result<()>
    where
        CudaBlas: Gemm<T>,
    {
        // SAFETY: each slice holds its matrices, one for each image, with the sizes of `Geometry`.
        unsafe { blas.gemm_strided_batched(self.config::<T>(batch), y, x, z) }.w()
    }
}

/// Separates q, k and v into one buffer, one after the other.
fn parts<T: Element>(g: Geometry, qkv: Arg, shift: Option<Arg>) -> Result<CudaSlice<T>> {
    let (n, per_image) = (3 * g.values(), per_image(shift, g.batch, 3 * g.channels)?);
    count(n)?;
    let mut out = uninitialised::<T>(n, qkv.device())?;
    let (function, all) = (kernel::<T>(qkv.device(), "split3")?, qkv.view::<T>()?);
    let shift = shift.map(|shift| shift.view::<f32>()).transpose()?;
    let mut call = function.builder();
    call.arg(&all);
    optional(&mut call, &shift);
    call.arg(&per_image).arg(&mut out);
    builder_arg!(call, g.values() as u32, g.channels as u32, g.tokens as u32);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
    unsafe { call.launch(elements(g.values())) }.w()?;
    Ok(out)
}

fn part<T: Element>(g: Geometry, parts: &CudaSlice<T>, which: usize) -> CudaView<'_, T> {
    parts.slice(which * g.values()..(which + 1) * g.values())
}

fn part_mut<T: Element>(g: Geometry, parts: &mut CudaSlice<T>, which: usize) -> CudaViewMut<'_, T> {
    parts.slice_mut(which * g.values()..(which + 1) * g.values())
}

/// Computes p = softmax(q k^T / sqrt(C)), (B, queries, keys).
fn weights<T: Element>(g: Geometry, parts: &CudaSlice<T>, device: &CudaDevice) -> Result<CudaSlice<T>>
where
    CudaBlas: Gemm<T>,
{
    let mut p = uninitialised::<T>(g.pairs(), device)?;
    let (q, k) = (part(g, parts, 0), part(g, parts, 1));
    g.scores().run(&device.cublas_handle(), g.batch, &q, &k, &mut p)?;
    let function = kernel::<T>(device, "softmax")?;
    let mut call = function.builder();
    call.arg(&mut p);
    builder_arg!(call, g.tokens as u32, g.scale());
    // SAFETY: the arguments match the kernel's parameters; there is a block for each row.
    unsafe { call.launch(rows(g.batch * g.tokens, g.tokens)) }.w()?;
    Ok(p)
}

fn forward<T: Element>(qkv: Arg, shift: Option<Arg>) -> Result<Tensor>
where
    CudaBlas: Gemm<T>,
{
    let (g, device) = (Geometry::of(qkv.layout)?, qkv.device());
    let parts = parts::<T>(g, qkv, shift)?;
    let p = weights(g, &parts, device)?;
    let mut a = uninitialised::<T>(g.values(), device)?;
    g.to_queries().run(&device.cublas_handle(), g.batch, &p, &part(g, &parts, 2), &mut a)?;
    Ok(tensor(a, (g.batch, g.tokens, g.channels), device))
}

fn backward<T: Element>(qkv: Arg, shift: Option<Arg>, da: Arg) -> Result<Tensor>
where
    CudaBlas: Gemm<T>,
{
    let g = Geometry::of(qkv.layout)?;
    if da.len() != g.values() {
        bail!("attention: {g:?} and a gradient {:?}", da.layout);
    }
    let (device, da) = (qkv.device(), da.view::<T>()?);
    let (blas, parts) = (device.cublas_handle(), parts::<T>(g, qkv, shift)?);
    let p = weights(g, &parts, device)?;
    let mut d = uninitialised::<T>(3 * g.values(), device)?;
    g.to_keys().run(&blas, g.batch, &p, &da, &mut part_mut(g, &mut d, 2))?;
    let mut ds = uninitialised::<T>(g.pairs(), device)?;
    g.scores().run(&blas, g.batch, &da, &part(g, &parts, 2), &mut ds)?;
    let function = kernel::<T>(device, "softmax_backward")?;
    let mut call = function.builder();
    call.arg(&p).arg(&mut ds);
    builder_arg!(call, g.tokens as u32, g.scale());
    // SAFETY: the arguments match the kernel's parameters; there is a block for each row.
    unsafe { call.launch(rows(g.batch * g.tokens, g.tokens)) }.w()?;
    g.to_queries().run(&blas, g.batch, &ds, &part(g, &parts, 1), &mut part_mut(g, &mut d, 0))?;
    g.to_keys().run(&blas, g.batch, &ds, &part(g, &parts, 0), &mut part_mut(g, &mut d, 1))?;

    let mut dqkv = uninitialised::<T>(3 * g.values(), device)?;
    let function = kernel::<T>(device, "join3")?;
    let mut call = function.builder();
    call.arg(&d).arg(&mut dqkv);
    builder_arg!(call, g.values() as u32);
    // SAFETY: the arguments match the kernel's parameters; the kernel checks the count.
    unsafe { call.launch(elements(g.values())) }.w()?;
    Ok(tensor(dqkv, qkv.layout.shape().clone(), device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Computes c = op(a) op(b) in column-major order, as cuBLAS does for a configuration.
    fn gemm(config: &StridedBatchedConfig<f32>, a: &[f32], b: &[f32], c: &mut [f32]) {
        let GemmConfig { transa, transb, m, n, k, lda, ldb, ldc, .. } = config.gemm;
        let at = |matrix: &[f32], operation, ld: i32, row: i32, column: i32| {
            let (row, column) = if operation == CUBLAS_OP_T { (column, row) } else { (row, column) };
            matrix[(row + column * ld) as usize]
        };
        for image in 0..config.batch_size as usize {
            let a = &a[image * config.stride_a as usize..];
            let b = &b[image * config.stride_b as usize..];
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let terms = (0..k).map(|l| at(a, transa, lda, i, l) * at(b, transb, ldb, l, j));
                c[image * config.stride_c as usize + (i + j * ldc) as usize] = terms.sum();
            }
        }
    }

    /// The three kinds of products.
    #[test]
    fn products_are_those_of_the_matrices_that_they_name() {
        let g = Geometry { batch: 2, tokens: 4, channels: 3 };
        let (t, c) = (g.tokens, g.channels);
        let draw = |name: &str, n: usize| Stream::new("attention", name).normals(0, n);
        let (a, b, square) = (draw("a", g.values()), draw("b", g.values()), draw("square", g.pairs()));
        let of = |dense: &[f32], image: usize, i: usize, l: usize| dense[(image * t + i) * c + l];
        let of_square = |image: usize, i: usize, j: usize| square[(image * t + i) * t + j];
        let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-5, "{found} {expected}");

        // cuBLAS takes the operands of x y in the order y, x.
        let mut scores = vec![0f32; g.pairs()];
        gemm(&g.scores().config(g.batch), &b, &a, &mut scores);
        let mut queries = vec![0f32; g.values()];
        gemm(&g.to_queries().config(g.batch), &a, &square, &mut queries);
        let mut keys = vec![0f32; g.values()];
        gemm(&g.to_keys().config(g.batch), &a, &square, &mut keys);
        for image in 0..g.batch {
            for i in 0..t {
                for j in 0..t {
                    let expected = (0..c).map(|l| of(&a, image, i, l) * of(&b, image, j, l)).sum();
                    near(scores[(image * t + i) * t + j], expected);
                }
                for l in 0..c {
                    let at = (image * t + i) * c + l;
                    near(queries[at], (0..t).map(|j| of_square(image, i, j) * of(&a, image, j, l)).sum());
                    near(keys[at], (0..t).map(|j| of_square(image, j, i) * of(&a, image, j, l)).sum());
                }
            }
        }
    }
}
