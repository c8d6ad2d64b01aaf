//! Linear combinations of images with one factor for each image, as candle operations.

use super::cpu::values;
#[cfg(feature = "cudnn")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Computes a_b x_b for each image b of `x` (B, ...). `a` has B values and gets no gradient.
pub fn scale_images(x: &Tensor, a: &[f32]) -> Result<Tensor> {
    if takes(x) { x.contiguous()?.apply_op1(Scale(a.to_vec())) } else { scaled(x, a) }
}

/// Computes a_b x_b + c_b y_b for each image b. `a` and `c` have B values, or one for all images,
/// and get no gradient.
pub fn mix(x: &Tensor, a: &[f32], y: &Tensor, c: &[f32]) -> Result<Tensor> {
    if takes(x) {
        x.contiguous()?.apply_op2(&y.contiguous()?, Mix { a: a.to_vec(), c: c.to_vec() })
    } else {
        scaled(x, a)? + scaled(y, c)?
    }
}

/// True if there is a kernel for `x`; otherwise candle's operations are used.
fn takes(x: &Tensor) -> bool {
    #[cfg(feature = "cudnn")]
    if super::gpu::takes(x) {
        return true;
    }
    x.device().is_cpu()
}

fn scaled(x: &Tensor, a: &[f32]) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = a.len();
    x.broadcast_mul(&Tensor::from_slice(a, shape, x.device())?.to_dtype(x.dtype())?)
}

fn factor(a: &[f32], image: usize) -> f32 {
    if a.len() == 1 { a[0] } else { a[image] }
}

struct Scale(Vec<f32>);

impl CustomOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale_images"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let batch = layout.dims()[0];
        if self.0.len() != 1 && self.0.len() != batch {
            bail!("scale_images: {} factors for {batch} images", self.0.len());
        }
        let mut y = values(x, layout)?.to_vec();
        let n = y.len() / batch;
        y.par_chunks_mut(n).enumerate().for_each(|(i, y)| {
            let a = factor(&self.0, i);
            y.iter_mut().for_each(|v| *v *= a);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cudnn")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::gpu::scale_images(&self.0, (x, layout))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        x.track_op().then(|| scale_images(dy, &self.0)).transpose()
    }
}

struct Mix {
    a: Vec<f32>,
    c: Vec<f32>,
}

impl CustomOp2 for Mix {
    fn name(&self) -> &'static str {
        "mix"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let batch = lx.dims()[0];
        let fits = |f: &[f32]| f.len() == 1 || f.len() == batch;
        if lx.shape() != ly.shape() || !fits(&self.a) || !fits(&self.c) {
            bail!(
                "mix: {:?} and {:?}, {} and {} factors",
                lx.shape(),
                ly.shape(),
                self.a.len(),
                self.c.len()
            );
        }
        let (x, y) = (values(x, lx)?, values(y, ly)?);
        let n = x.len() / batch;
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(n).zip(x.par_chunks(n).zip(y.par_chunks(n))).enumerate().for_each(
            |(i, (out, (x, y)))| {
                let (a, c) = (factor(&self.a, i), factor(&self.c, i));
                for ((o, x), y) in out.iter_mut().zip(x).zip(y) {
                    *o = a * x + c * y;
                }
            },
        );
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    #[cfg(feature = "cudnn")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        y: &CudaStorage,
        ly: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::gpu::mix([&self.a, &self.c], (x, lx), (y, ly))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let part = |t: &Tensor, f: &[f32]| t.track_op().then(|| scale_images(d, f)).transpose();
        Ok((part(x, &self.a)?, part(y, &self.c)?))
    }
}
