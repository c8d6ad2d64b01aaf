//! Single-head self-attention over pixels: batched matrix products, and a softmax that
//! is one pass over each row.

use super::compile::kernel;
use super::{Arg, Element, by_type, no_cpu, rows, storage, tensor, uninitialised, with_args};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t::{self, CUBLAS_OP_N, CUBLAS_OP_T};
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, Gemm, GemmConfig, StridedBatchedConfig};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, PushKernelArg,
};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail, builder_arg};

/// softmax(q^T k / sqrt(C)) v. `qkv` (B, 3C, T) with q, k and v interleaved, channel
/// 3c + {0, 1, 2}. Gives (B, C, T).
pub fn attention(qkv: &Tensor) -> Result<Tensor> {
    qkv.contiguous()?.apply_op1(Attention)
}

struct Attention;

/// Sizes: `batch` images of `channels` by `tokens`.
#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    channels: usize,
    tokens: usize,
}

/// A matrix of one image: row-major, rows at a distance, images at another.
#[derive(Clone, Copy)]
struct Matrix {
    row: usize,
    image: usize,
}

/// z = x y or one of its transposes, all row-major; z (rows, columns), `inner` summed.
#[derive(Clone, Copy)]
struct Product {
    rows: usize,
    columns: usize,
    inner: usize,
    /// Whether x is stored as (inner, rows), y as (columns, inner).
    transposed: [bool; 2],
    x: Matrix,
    y: Matrix,
    z: Matrix,
}

impl Geometry {
    fn of(layout: &Layout) -> Result<Geometry> {
        let (batch, c3, tokens) = layout.shape().dims3()?;
        if c3 % 3 != 0 {
            bail!("attention: {c3} channels are not three times anything");
        }
        Ok(Geometry { batch, channels: c3 / 3, tokens })
    }

    fn scale(self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    /// q, k or v: every third row of qkv.
    fn part(self) -> Matrix {
        Matrix { row: 3 * self.tokens, image: 3 * self.channels * self.tokens }
    }

    /// (queries, keys)
    fn square(self) -> Matrix {
        Matrix { row: self.tokens, image: self.tokens * self.tokens }
    }

    /// The output: (channels, tokens)
    fn dense(self) -> Matrix {
        Matrix { row: self.tokens, image: self.channels * self.tokens }
    }

    /// q^T k, or with the output's gradient da^T v: (queries, keys).
    fn scores(self, x: Matrix) -> Product {
        let (rows, columns, inner) = (self.tokens, self.tokens, self.channels);
        Product { rows, columns, inner, transposed: [true, false], x, y: self.part(), z: self.square() }
    }

    /// v p^T, dq = k ds^T: (channels, queries) from keys.
    fn to_queries(self, z: Matrix) -> Product {
        let (rows, columns, inner) = (self.channels, self.tokens, self.tokens);
        Product { rows, columns, inner, transposed: [false, true], x: self.part(), y: self.square(), z }
    }

    /// dk = q ds, dv = da p: (channels, keys) from queries.
    fn to_keys(self, x: Matrix) -> Product {
        let (rows, columns, inner) = (self.channels, self.tokens, self.tokens);
        Product { rows, columns, inner, transposed: [false, false], x, y: self.square(), z: self.part() }
    }
}

impl Product {
    /// What cuBLAS is told, for which every matrix is its transpose: z^T = y^T x^T.
    fn config<T: Element>(&self, batch: usize) -> StridedBatchedConfig<T> {
        let operation =
            |transposed: bool| -> cublasOperation_t { if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N } };
        StridedBatchedConfig {
            gemm: GemmConfig {
                transa: operation(self.transposed[1]),
                transb: operation(self.transposed[0]),
                m: self.columns as i32,
                n: self.rows as i32,
                k: self.inner as i32,
                alpha: T::ONE,
                lda: self.y.row as i32,
                ldb: self.x.row as i32,
                beta: T::ZERO,
                ldc: self.z.row as i32,
            },
            batch_size: batch as i32,
            stride_a: self.y.image as i64,
            stride_b: self.x.image as i64,
            stride_c: self.z.image as i64,
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
        // SAFETY: each matrix lies inside its slice, as the sizes of `Geometry` say.
        unsafe { blas.gemm_strided_batched(self.config::<T>(batch), y, x, z) }.w()
    }
}

/// Rows 3c + `which` of qkv.
fn part<'a, T: Element>(g: Geometry, qkv: &'a CudaView<'_, T>, which: usize) -> CudaView<'a, T> {
    qkv.slice(which * g.tokens..)
}

fn part_mut<T: Element>(g: Geometry, qkv: &mut CudaSlice<T>, which: usize) -> CudaViewMut<'_, T> {
    qkv.slice_mut(which * g.tokens..)
}

/// p = softmax(q^T k / sqrt(C)): (B, queries, keys).
fn weights<T: Element>(g: Geometry, qkv: Arg) -> Result<CudaSlice<T>>
where
    CudaBlas: Gemm<T>,
{
    let (device, all) = (qkv.device(), qkv.view::<T>()?);
    let mut p = uninitialised::<T>(g.batch * g.tokens * g.tokens, device)?;
    let (q, k) = (part(g, &all, 0), part(g, &all, 1));
    g.scores(g.part()).run(&device.cublas_handle(), g.batch, &q, &k, &mut p)?;
    let function = kernel::<T>(device, "softmax")?;
    let mut call = function.builder();
    call.arg(&mut p);
    builder_arg!(call, g.tokens as u32, g.scale());
    // SAFETY: the kernel's parameters in their order; a block for each row.
    unsafe { call.launch(rows(g.batch * g.tokens, g.tokens)) }.w()?;
    Ok(p)
}

fn forward<T: Element>(qkv: Arg) -> Result<(CudaStorage, Shape)>
where
    CudaBlas: Gemm<T>,
{
    let g = Geometry::of(qkv.layout)?;
    let (device, all) = (qkv.device(), qkv.view::<T>()?);
    let p = weights::<T>(g, qkv)?;
    let mut a = uninitialised::<T>(g.batch * g.channels * g.tokens, device)?;
    g.to_queries(g.dense()).run(&device.cublas_handle(), g.batch, &part(g, &all, 2), &p, &mut a)?;
    Ok((storage(a, device), (g.batch, g.channels, g.tokens).into()))
}

fn backward<T: Element>(qkv: Arg, da: Arg) -> Result<Tensor>
where
    CudaBlas: Gemm<T>,
{
    let g = Geometry::of(qkv.layout)?;
    let (device, all, da) = (qkv.device(), qkv.view::<T>()?, da.view::<T>()?);
    let blas = device.cublas_handle();
    let p = weights::<T>(g, qkv)?;
    let mut d = uninitialised::<T>(qkv.len(), device)?;
    g.to_keys(g.dense()).run(&blas, g.batch, &da, &p, &mut part_mut(g, &mut d, 2))?;
    let mut ds = uninitialised::<T>(g.batch * g.tokens * g.tokens, device)?;
    g.scores(g.dense()).run(&blas, g.batch, &da, &part(g, &all, 2), &mut ds)?;
    let function = kernel::<T>(device, "softmax_backward")?;
    let mut call = function.builder();
    call.arg(&p).arg(&mut ds);
    builder_arg!(call, g.tokens as u32, g.scale());
    // SAFETY: the kernel's parameters in their order; a block for each row.
    unsafe { call.launch(rows(g.batch * g.tokens, g.tokens)) }.w()?;
    g.to_queries(g.part()).run(&blas, g.batch, &part(g, &all, 1), &ds, &mut part_mut(g, &mut d, 0))?;
    g.to_keys(g.part()).run(&blas, g.batch, &part(g, &all, 0), &ds, &mut part_mut(g, &mut d, 1))?;
    Ok(tensor(d, qkv.layout.shape().clone(), device))
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu(self.name())
    }

    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let qkv = Arg { storage: qkv, layout };
        by_type!(qkv, forward(qkv))
    }

    fn bwd(&self, qkv: &Tensor, _a: &Tensor, da: &Tensor) -> Result<Option<Tensor>> {
        with_args([qkv, da], |[qkv, da]| Ok(Some(by_type!(qkv, backward(qkv, da))?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// What cuBLAS does with a configuration: column-major, c = op(a) op(b).
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

    /// The four kinds of products, from and into parts of qkv.
    #[test]
    fn products_are_those_of_the_matrices_that_they_name() {
        let g = Geometry { batch: 2, channels: 3, tokens: 4 };
        let (c, t) = (g.channels, g.tokens);
        let draw = |name: &str, n: usize| Stream::new("attention", name).normals(0, n);
        let (qkv, dense) = (draw("qkv", g.batch * 3 * c * t), draw("dense", g.batch * c * t));
        let square = draw("square", g.batch * t * t);
        let of_part = |b: usize, c_at: usize, i: usize| qkv[((b * c + c_at) * 3 + 1) * t + i];
        let of_dense = |b: usize, c_at: usize, i: usize| dense[(b * c + c_at) * t + i];
        let of_square = |b: usize, i: usize, j: usize| square[(b * t + i) * t + j];
        let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-5, "{found} {expected}");

        let mut z = vec![0f32; g.batch * t * t];
        gemm(&g.scores(g.dense()).config(g.batch), &qkv[t..], &dense, &mut z);
        let mut queries = vec![0f32; qkv.len()];
        gemm(&g.to_queries(g.part()).config(g.batch), &square, &qkv[t..], &mut queries[2 * t..]);
        let mut keys = vec![0f32; qkv.len()];
        gemm(&g.to_keys(g.dense()).config(g.batch), &square, &dense, &mut keys[2 * t..]);
        for b in 0..g.batch {
            for i in 0..t {
                for j in 0..t {
                    near(z[(b * t + i) * t + j], (0..c).map(|l| of_dense(b, l, i) * of_part(b, l, j)).sum());
                }
                for l in 0..c {
                    let at = ((b * c + l) * 3 + 2) * t + i;
                    near(queries[at], (0..t).map(|j| of_part(b, l, j) * of_square(b, i, j)).sum());
                    near(keys[at], (0..t).map(|j| of_dense(b, l, j) * of_square(b, j, i)).sum());
                }
            }
        }
    }
}
