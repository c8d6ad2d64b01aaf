//! Operations on one pixel or on 2x2 pixels.

use super::lanes::{Kernel, Lanes, run};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// a_b x_b for each image b of `x` (B, ...); `a` has B values and no gradient.
pub fn scale_images(x: &Tensor, a: &[f32]) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::scale_images(x, a);
    }
    if x.device().is_cpu() {
        x.contiguous()?.apply_op1(Scale(a.to_vec()))
    } else {
        reference::scale_images(x, a)
    }
}

/// a_b x_b + c_b y_b for each image b; `a` and `c` have B values, or one for
/// all, and no gradient.
pub fn mix(x: &Tensor, a: &[f32], y: &Tensor, c: &[f32]) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::mix(x, a, y, c);
    }
    if x.device().is_cpu() {
        x.contiguous()?.apply_op2(&y.contiguous()?, Mix { a: a.to_vec(), c: c.to_vec() })
    } else {
        reference::scale_images(x, a)? + reference::scale_images(y, c)?
    }
}

/// x sigmoid(x)
pub fn silu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::silu(x);
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Silu) } else { x.silu() }
}

/// Mean of each 2x2 block: EDM's [1, 1] resample filter with stride 2.
/// (B, C, H, W) to (B, C, H/2, W/2).
pub fn down2(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::down2(x);
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Down2 { weight: 0.25 }) } else { reference::down2(x) }
}

/// Each pixel four times: EDM's transposed [1, 1] filter.
/// (B, C, H, W) to (B, C, 2H, 2W).
pub fn up2(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::up2(x);
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Up2 { weight: 1.0 }) } else { reference::up2(x) }
}

pub mod reference {
    use super::*;

    pub fn scale_images(x: &Tensor, a: &[f32]) -> Result<Tensor> {
        let mut shape = vec![1; x.rank()];
        shape[0] = a.len();
        x.broadcast_mul(&Tensor::from_slice(a, shape, x.device())?.to_dtype(x.dtype())?)
    }

    pub fn down2(x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        x.reshape((b * c, h / 2, 2, w / 2, 2))?.mean(4)?.mean(2)?.reshape((b, c, h / 2, w / 2))
    }

    // Not upsample_nearest2d: its backward overwrites what other users of the
    // tensor have accumulated.
    pub fn up2(x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        x.reshape((b * c, h, 1, w, 1))?.broadcast_as((b * c, h, 2, w, 2))?.reshape((b, c, 2 * h, 2 * w))
    }
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

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if x.track_op() { Ok(Some(scale_images(dy, &self.0)?)) } else { Ok(None) }
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

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let part = |t: &Tensor, f: &[f32]| {
            if t.track_op() { Ok::<_, candle_core::Error>(Some(scale_images(d, f)?)) } else { Ok(None) }
        };
        Ok((part(x, &self.a)?, part(y, &self.c)?))
    }
}

struct Silu;

/// y = x s(x), or with `dy` its gradient dy s (1 + x (1 - s)).
struct SiluKernel<'a> {
    x: &'a [f32],
    dy: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for SiluKernel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (i, y) in self.y.chunks_mut(8).enumerate() {
            let at = i * 8..i * 8 + y.len();
            let (mut x, mut dy) = ([0f32; 8], [1f32; 8]);
            x[..y.len()].copy_from_slice(&self.x[at.clone()]);
            // SAFETY: eight values on the stack.
            unsafe {
                let v = L::load(x.as_ptr());
                let s = v.sigmoid();
                let mut out = v.mul(s);
                if let Some(from) = self.dy {
                    dy[..y.len()].copy_from_slice(&from[at]);
                    let one = L::splat(1.0);
                    out = L::load(dy.as_ptr()).mul(s.mul(one.fma(v, one.sub(s))));
                }
                out.store(x.as_mut_ptr());
            }
            y.copy_from_slice(&x[..y.len()]);
        }
    }
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(4096).zip(x.par_chunks(4096)).for_each(|(y, x)| run(SiluKernel { x, dy: None, y }));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_values([x, dy], |[xs, dys]| {
            let mut dx = vec![0f32; xs.len()];
            dx.par_chunks_mut(4096)
                .zip(xs.par_chunks(4096).zip(dys.par_chunks(4096)))
                .for_each(|(y, (x, dy))| run(SiluKernel { x, dy: Some(dy), y }));
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// Sum of each 2x2 block times `weight`: 1/4 forward, 1 as the backward of
/// [`Up2`].
struct Down2 {
    weight: f32,
}

/// Each pixel times `weight` in a 2x2 block: 1 forward, 1/4 as the backward of
/// [`Down2`].
struct Up2 {
    weight: f32,
}

impl CustomOp1 for Down2 {
    fn name(&self) -> &'static str {
        "down2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        if h % 2 != 0 || w % 2 != 0 {
            bail!("down2: {h} x {w} pixels are not even");
        }
        let x = values(x, layout)?;
        let mut y = vec![0f32; x.len() / 4];
        y.par_chunks_mut(c * h * w / 4).zip(x.par_chunks(c * h * w)).for_each(|(y, x)| {
            for (y, rows) in y.chunks_exact_mut(w / 2).zip(x.chunks_exact(2 * w)) {
                for (i, v) in y.iter_mut().enumerate() {
                    *v = self.weight
                        * ((rows[2 * i] + rows[2 * i + 1]) + (rows[w + 2 * i] + rows[w + 2 * i + 1]));
                }
            }
        });
        Ok((CpuStorage::F32(y), (b, c, h / 2, w / 2).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&Up2 { weight: self.weight })?))
    }
}

impl CustomOp1 for Up2 {
    fn name(&self) -> &'static str {
        "up2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let x = values(x, layout)?;
        let mut y = vec![0f32; x.len() * 4];
        y.par_chunks_mut(c * h * w * 4).zip(x.par_chunks(c * h * w)).for_each(|(y, x)| {
            for (rows, x) in y.chunks_exact_mut(4 * w).zip(x.chunks_exact(w)) {
                for (i, v) in x.iter().enumerate() {
                    let v = v * self.weight;
                    rows[2 * i] = v;
                    rows[2 * i + 1] = v;
                    rows[2 * w + 2 * i] = v;
                    rows[2 * w + 2 * i + 1] = v;
                }
            }
        });
        Ok((CpuStorage::F32(y), (b, c, 2 * h, 2 * w).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&Down2 { weight: self.weight })?))
    }
}
