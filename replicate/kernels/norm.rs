//! Group normalisation, with SiLU in the same pass where asked.

use super::lanes::{Kernel, Lanes, run};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// y = f((x - mean) / sqrt(var + eps) * gamma + beta), mean and (biased)
/// variance over each of `groups` channel groups of each image, f = SiLU or
/// the identity. `x` (B, C, H, W), `gamma` and `beta` (C).
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    if x.device().is_cpu() {
        let op = GroupNorm { groups, eps, silu };
        return x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op);
    }
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::group_norm(x, gamma, beta, groups, eps, silu);
    }
    reference(x, gamma, beta, groups, eps, silu)
}

pub fn reference(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape((b, groups, c / groups * h * w))?;
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let rstd = (x.sqr()?.mean_keepdim(D::Minus1)? + eps as f64)?.sqrt()?;
    let y = x.broadcast_div(&rstd)?.reshape((b, c, h, w))?;
    let y = y.broadcast_mul(&gamma.reshape((1, c, 1, 1))?)?.broadcast_add(&beta.reshape((1, c, 1, 1))?)?;
    if silu { y.silu() } else { Ok(y) }
}

struct GroupNorm {
    groups: usize,
    eps: f32,
    silu: bool,
}

/// Sum and sum of squared deviations of one group, eight lanes and a tail.
struct Statistics<'a> {
    x: &'a [f32],
    eps: f32,
}

impl Kernel for Statistics<'_> {
    type Out = (f32, f32);

    /// (mean, 1 / standard deviation)
    #[inline(always)]
    fn run<L: Lanes>(self) -> (f32, f32) {
        let (body, tail) = self.x.split_at(self.x.len() / 8 * 8);
        // SAFETY: reads stay inside `body`, whose length is a multiple of 8.
        unsafe {
            let mut sum = L::splat(0.0);
            for eight in body.chunks_exact(8) {
                sum = sum.add(L::load(eight.as_ptr()));
            }
            let n = self.x.len() as f32;
            let mean = (sum.sum() + tail.iter().sum::<f32>()) / n;
            let mut squares = L::splat(0.0);
            for eight in body.chunks_exact(8) {
                let d = L::load(eight.as_ptr()).sub(L::splat(mean));
                squares = squares.fma(d, d);
            }
            let rest: f32 = tail.iter().map(|v| (v - mean) * (v - mean)).sum();
            let variance = (squares.sum() + rest) / n;
            (mean, 1.0 / (variance + self.eps).sqrt())
        }
    }
}

/// y = f(a x + b) over one channel; `y` and `x` have a multiple of 8 values
/// (see `padded`).
struct Forward<'a> {
    x: &'a [f32],
    a: f32,
    b: f32,
    silu: bool,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: chunks of exactly 8 values; the tail goes through a buffer.
        unsafe {
            let (a, b) = (L::splat(self.a), L::splat(self.b));
            let (x, y) = (self.x, self.y);
            let body = x.len() / 8 * 8;
            for (x, y) in x.chunks_exact(8).zip(y.chunks_exact_mut(8)) {
                activate(L::load(x.as_ptr()), a, b, self.silu).store(y.as_mut_ptr());
            }
            if body < x.len() {
                let rest = x.len() - body;
                let mut buffer = [0f32; 8];
                buffer[..rest].copy_from_slice(&x[body..]);
                activate(L::load(buffer.as_ptr()), a, b, self.silu).store(buffer.as_mut_ptr());
                y[body..].copy_from_slice(&buffer[..rest]);
            }
        }
    }
}

// A function and not a closure: closures do not inherit the CPU features of
// what they are in, and every operation in them becomes a call.
#[inline(always)]
unsafe fn activate<L: Lanes>(v: L, a: L, b: L, silu: bool) -> L {
    // SAFETY: no pointers.
    unsafe {
        let u = b.fma(a, v);
        if silu { u.mul(u.sigmoid()) } else { u }
    }
}

/// First backward pass over one channel: du = dy f'(u) into `du`, and the sums
/// of du and of du * xhat.
struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    mean: f32,
    rstd: f32,
    gamma: f32,
    beta: f32,
    silu: bool,
    du: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (f32, f32) {
        // SAFETY: chunks of exactly 8 values; the tail goes through buffers.
        unsafe {
            let mut state = BackwardLanes {
                mean: L::splat(self.mean),
                rstd: L::splat(self.rstd),
                gamma: L::splat(self.gamma),
                beta: L::splat(self.beta),
                silu: self.silu,
                sum: L::splat(0.0),
                sum_xhat: L::splat(0.0),
            };
            let n = self.x.len();
            let body = n / 8 * 8;
            for at in (0..body).step_by(8) {
                state.eight(self.x.as_ptr().add(at), self.dy.as_ptr().add(at), self.du.as_mut_ptr().add(at));
            }
            if body < n {
                let (mut x, mut dy, mut du) = ([0f32; 8], [0f32; 8], [0f32; 8]);
                x[..n - body].copy_from_slice(&self.x[body..]);
                dy[..n - body].copy_from_slice(&self.dy[body..]);
                state.eight(x.as_ptr(), dy.as_ptr(), du.as_mut_ptr());
                self.du[body..].copy_from_slice(&du[..n - body]);
            }
            (state.sum.sum(), state.sum_xhat.sum())
        }
    }
}

struct BackwardLanes<L> {
    mean: L,
    rstd: L,
    gamma: L,
    beta: L,
    silu: bool,
    sum: L,
    sum_xhat: L,
}

impl<L: Lanes> BackwardLanes<L> {
    /// # Safety
    /// Eight values at each pointer.
    #[inline(always)]
    unsafe fn eight(&mut self, x: *const f32, dy: *const f32, du: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe {
            let xhat = L::load(x).sub(self.mean).mul(self.rstd);
            let mut d = L::load(dy);
            if self.silu {
                let u = self.beta.fma(self.gamma, xhat);
                let s = u.sigmoid();
                let one = L::splat(1.0);
                d = d.mul(s.mul(one.fma(u, one.sub(s))));
            }
            d.store(du);
            self.sum = self.sum.add(d);
            self.sum_xhat = self.sum_xhat.fma(d, xhat);
        }
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        gamma: &CpuStorage,
        lg: &Layout,
        beta: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, c, h, w) = lx.shape().dims4()?;
        if c % self.groups != 0 || lg.dims() != [c] || lb.dims() != [c] {
            bail!("group norm: {c} channels, {} groups, gamma {:?}, beta {:?}", self.groups, lg, lb);
        }
        let (x, gamma, beta) = (values(x, lx)?, values(gamma, lg)?, values(beta, lb)?);
        let (pixels, per_group) = (h * w, c / self.groups);
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(per_group * pixels).zip(x.par_chunks(per_group * pixels)).enumerate().for_each(
            |(i, (y, x))| {
                let first = i % self.groups * per_group;
                let (mean, rstd) = run(Statistics { x, eps: self.eps });
                for (c, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                    let a = rstd * gamma[first + c];
                    run(Forward { x, a, b: beta[first + c] - mean * a, silu: self.silu, y });
                }
            },
        );
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, c, h, w) = x.dims4()?;
        let (pixels, per_group) = (h * w, c / self.groups);
        with_values([x, gamma, beta, dy], |[xs, gammas, betas, dys]| {
            let mut dx = vec![0f32; xs.len()];
            // (sum du, sum du xhat) of every channel of every image.
            let mut sums = vec![(0f32, 0f32); b * c];
            dx.par_chunks_mut(per_group * pixels)
                .zip(sums.par_chunks_mut(per_group))
                .zip(xs.par_chunks(per_group * pixels).zip(dys.par_chunks(per_group * pixels)))
                .enumerate()
                .for_each(|(i, ((dx, sums), (x, dy)))| {
                    let first = i % self.groups * per_group;
                    let (mean, rstd) = run(Statistics { x, eps: self.eps });
                    let (mut m1, mut m2) = (0f32, 0f32);
                    for (c, sums) in sums.iter_mut().enumerate() {
                        let at = c * pixels..(c + 1) * pixels;
                        let (gamma, beta) = (gammas[first + c], betas[first + c]);
                        *sums = run(Backward {
                            x: &x[at.clone()],
                            dy: &dy[at.clone()],
                            mean,
                            rstd,
                            gamma,
                            beta,
                            silu: self.silu,
                            du: &mut dx[at],
                        });
                        m1 += sums.0 * gamma;
                        m2 += sums.1 * gamma;
                    }
                    let n = (per_group * pixels) as f32;
                    // dx = rstd (gamma du - mean(gamma du) - xhat mean(gamma du xhat))
                    for (c, dx) in dx.chunks_exact_mut(pixels).enumerate() {
                        let slope = -rstd * rstd * m2 / n;
                        let offset = -rstd * m1 / n - slope * mean;
                        let scale = rstd * gammas[first + c];
                        for (d, x) in dx.iter_mut().zip(&x[c * pixels..]) {
                            *d = scale * *d + (slope * x + offset);
                        }
                    }
                });
            let reduce = |f: &dyn Fn(&(f32, f32)) -> f32| {
                let mut total = vec![0f32; c];
                for image in sums.chunks_exact(c) {
                    for (t, s) in total.iter_mut().zip(image) {
                        *t += f(s);
                    }
                }
                total
            };
            let dgamma = if gamma.track_op() {
                Some(Tensor::from_vec(reduce(&|s| s.1), c, gamma.device())?)
            } else {
                None
            };
            let dbeta = if beta.track_op() {
                Some(Tensor::from_vec(reduce(&|s| s.0), c, beta.device())?)
            } else {
                None
            };
            Ok((Some(Tensor::from_vec(dx, (b, c, h, w), x.device())?), dgamma, dbeta))
        })
    }
}
