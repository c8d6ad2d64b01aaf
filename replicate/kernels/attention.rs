//! Single-head self-attention over pixels, one pass an image: scores, softmax
//! and the weighted sum never leave the cache.

use super::lanes::{Kernel, Lanes, run};
use super::tile::{COLUMNS, Input, Planes, ROWS, SLACK, contract, correlate, pack, round_up};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// softmax(q^T k / sqrt(C)) v. `qkv` (B, 3C, T) with q, k and v interleaved,
/// channel 3c + {0, 1, 2}, as EDM's `qkv` convolution gives them. Gives
/// (B, C, T).
pub fn attention(qkv: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(qkv) {
        return super::cuda::attention(qkv);
    }
    if qkv.device().is_cpu() { qkv.contiguous()?.apply_op1(Attention) } else { reference(qkv) }
}

pub fn reference(qkv: &Tensor) -> Result<Tensor> {
    let (b, c3, t) = qkv.dims3()?;
    let split = qkv.reshape((b, c3 / 3, 3, t))?;
    let part = |i| split.narrow(2, i, 1)?.squeeze(2)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.t()?.matmul(&k)? / (c3 as f64 / 3.0).sqrt())?;
    // Not softmax_last_dim: it has no backward and drops the gradient silently.
    let p = candle_nn::ops::softmax(&scores, 2)?;
    v.matmul(&p.t()?)
}

struct Attention;

/// Sizes of one image: `channels` rows of `tokens`, each in `stride` values.
#[derive(Clone, Copy)]
struct Geometry {
    channels: usize,
    tokens: usize,
    stride: usize,
}

impl Geometry {
    fn new(c3: usize, tokens: usize) -> Geometry {
        Geometry { channels: c3 / 3, tokens, stride: round_up(tokens, COLUMNS) }
    }
    fn scale(&self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }
    /// Rows of `from`, zero-filled to the stride.
    fn pad<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Vec<f32> {
        let mut out = vec![0f32; rows.len() * self.stride + SLACK];
        for (row, to) in rows.zip(out.chunks_exact_mut(self.stride)) {
            to[..self.tokens].copy_from_slice(row);
        }
        out
    }
    fn part(&self, qkv: &[f32], which: usize) -> Vec<f32> {
        self.pad(qkv.chunks_exact(self.tokens).skip(which).step_by(3))
    }
    /// weights (rows, inner) times x (inner, T), rows at the stride.
    fn product(
        &self,
        rows: usize,
        inner: usize,
        weight: impl Fn(usize, usize) -> f32,
        x: &[f32],
    ) -> Vec<f32> {
        let mut out = vec![0f32; rows.div_ceil(ROWS) * ROWS * self.stride + SLACK];
        let packed = pack(rows, inner, weight);
        let input = Input { x, plane: self.stride, channels: inner, taps: &[0] };
        for (weights, out) in packed.chunks_exact(inner * ROWS).zip(out.chunks_exact_mut(ROWS * self.stride))
        {
            correlate(input, weights, self.tokens, out, self.stride);
        }
        out
    }
    /// y (rows, T) times x (columns, T)^T, dense.
    fn outer(&self, y: &[f32], rows: usize, x: &[f32], columns: usize) -> Vec<f32> {
        let at: Vec<usize> = (0..columns).map(|c| c * self.stride).collect();
        let mut out = vec![0f32; rows * columns];
        for (block, sums) in out.chunks_mut(ROWS * columns).enumerate() {
            let y = Planes { values: &y[block * ROWS * self.stride..], image: 0, plane: self.stride };
            let x = Planes { values: x, image: 0, plane: self.stride };
            contract(1, round_up(self.tokens, 8), y, sums.len() / columns, x, &at, sums);
        }
        out
    }
    /// The attention weights p[key][query], columns summing to 1.
    fn weights(&self, q: &[f32], k: &[f32]) -> Vec<f32> {
        let scale = self.scale();
        let mut p = self.product(self.tokens, self.channels, |j, c| k[c * self.stride + j] * scale, q);
        run(SoftmaxColumns { p: &mut p, rows: self.tokens, stride: self.stride });
        p
    }
}

struct SoftmaxColumns<'a> {
    p: &'a mut [f32],
    rows: usize,
    stride: usize,
}

impl Kernel for SoftmaxColumns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        assert!(self.stride.is_multiple_of(8) && self.p.len() >= self.rows * self.stride);
        // SAFETY: just checked.
        unsafe {
            for column in (0..self.stride).step_by(8) {
                let at = self.p.as_mut_ptr().add(column);
                let mut max = L::load(at);
                for r in 1..self.rows {
                    max = max.max(L::load(at.add(r * self.stride)));
                }
                let mut sum = L::splat(0.0);
                for r in 0..self.rows {
                    let e = L::load(at.add(r * self.stride)).sub(max).exp();
                    sum = sum.add(e);
                    e.store(at.add(r * self.stride));
                }
                let inverse = L::splat(1.0).div(sum);
                for r in 0..self.rows {
                    L::load(at.add(r * self.stride)).mul(inverse).store(at.add(r * self.stride));
                }
            }
        }
    }
}

/// dS = p (dP - sum over keys of p dP), in place in `dp`, columns past
/// `tokens` set to zero.
fn softmax_backward(g: Geometry, p: &[f32], dp: &mut [f32]) {
    let mut dots = vec![0f32; g.tokens];
    for (p, dp) in p.chunks_exact(g.stride).zip(dp.chunks_exact(g.stride)).take(g.tokens) {
        for ((dot, p), dp) in dots.iter_mut().zip(p).zip(dp) {
            *dot += p * dp;
        }
    }
    for (p, dp) in p.chunks_exact(g.stride).zip(dp.chunks_exact_mut(g.stride)).take(g.tokens) {
        for ((dp, p), dot) in dp.iter_mut().zip(p).zip(&dots) {
            *dp = p * (*dp - dot);
        }
        dp[g.tokens..].fill(0.0);
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c3, t) = layout.shape().dims3()?;
        if c3 % 3 != 0 {
            bail!("attention: {c3} channels are not three times anything");
        }
        let g = Geometry::new(c3, t);
        let mut out = vec![0f32; b * g.channels * t];
        out.par_chunks_mut(g.channels * t).zip(values(qkv, layout)?.par_chunks(c3 * t)).for_each(
            |(out, qkv)| {
                let (q, k, v) = (g.part(qkv, 0), g.part(qkv, 1), g.part(qkv, 2));
                let p = g.weights(&q, &k);
                let a = g.product(g.channels, t, |c, j| v[c * g.stride + j], &p);
                for (to, from) in out.chunks_exact_mut(t).zip(a.chunks_exact(g.stride)) {
                    to.copy_from_slice(&from[..t]);
                }
            },
        );
        Ok((CpuStorage::F32(out), (b, g.channels, t).into()))
    }

    fn bwd(&self, qkv: &Tensor, _a: &Tensor, da: &Tensor) -> Result<Option<Tensor>> {
        let (b, c3, t) = qkv.dims3()?;
        let g = Geometry::new(c3, t);
        with_values([qkv, da], |[qkvs, das]| {
            let mut out = vec![0f32; b * c3 * t];
            out.par_chunks_mut(c3 * t)
                .zip(qkvs.par_chunks(c3 * t))
                .zip(das.par_chunks(g.channels * t))
                .for_each(|((out, qkv), da)| {
                    let (q, k, v) = (g.part(qkv, 0), g.part(qkv, 1), g.part(qkv, 2));
                    let da = g.pad(da.chunks_exact(t));
                    let mut p = g.weights(&q, &k);
                    // Queries past the end have weights too: they must not count.
                    for row in p.chunks_exact_mut(g.stride).take(t) {
                        row[t..].fill(0.0);
                    }
                    let mut ds = g.product(t, g.channels, |j, c| v[c * g.stride + j], &da);
                    softmax_backward(g, &p, &mut ds);
                    let dv = g.outer(&da, g.channels, &p, t);
                    let dq = g.product(g.channels, t, |c, j| k[c * g.stride + j] * g.scale(), &ds);
                    let dk = g.outer(&q, g.channels, &ds, t);
                    for c in 0..g.channels {
                        let to = &mut out[3 * c * t..3 * (c + 1) * t];
                        to[..t].copy_from_slice(&dq[c * g.stride..][..t]);
                        for (o, d) in to[t..2 * t].iter_mut().zip(&dk[c * t..]) {
                            *o = d * g.scale();
                        }
                        to[2 * t..].copy_from_slice(&dv[c * t..(c + 1) * t]);
                    }
                });
            Ok(Some(Tensor::from_vec(out, (b, c3, t), qkv.device())?))
        })
    }
}
