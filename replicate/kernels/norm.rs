//! Group normalisation, with SiLU in the same pass where asked, and its gradients.

use super::lanes::{Kernel, LANES, Lanes, run};
use super::maps::Maps;

/// y = f((x - mean) / sqrt(var + eps) * gamma + beta), mean and (biased)
/// variance over each of `groups` channel groups of each image, f = SiLU or
/// the identity.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
}

/// Mean and 1 / standard deviation of each group of each image.
pub type Statistics = Vec<(f32, f32)>;

impl GroupNorm<'_> {
    pub fn forward(&self, x: &Maps) -> (Maps, Statistics) {
        let mut y = x.like();
        let mut statistics = Statistics::with_capacity(x.images * self.groups);
        let each = x.height * x.width * x.channels;
        for (x, y) in x.values().chunks_exact(each).zip(y.values_mut().chunks_exact_mut(each)) {
            statistics.extend(run(Forward { norm: *self, x, y }));
        }
        (y, statistics)
    }

    /// The gradient with respect to x; those of gamma and beta are added to theirs.
    pub fn backward(
        &self,
        x: &Maps,
        statistics: &Statistics,
        dy: &Maps,
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) -> Maps {
        let mut dx = x.like();
        let each = x.height * x.width * x.channels;
        for (i, dx) in dx.values_mut().chunks_exact_mut(each).enumerate() {
            run(Backward {
                norm: *self,
                x: &x.values()[i * each..][..each],
                statistics: &statistics[i * self.groups..][..self.groups],
                dy: &dy.values()[i * each..][..each],
                dx,
                dgamma,
                dbeta,
            });
        }
        dx
    }

    fn channels(&self) -> usize {
        self.gamma.len()
    }

    /// Sums over the channels of each group.
    fn grouped(&self, channels: impl Fn(usize) -> f32) -> Vec<f32> {
        let per = self.channels() / self.groups;
        (0..self.groups).map(|g| (g * per..(g + 1) * per).map(&channels).sum()).collect()
    }

    /// One value of each group, for each of its channels.
    fn spread(&self, group: impl Fn(usize) -> f32) -> Vec<f32> {
        let per = self.channels() / self.groups;
        (0..self.channels()).map(|c| group(c / per)).collect()
    }
}

/// Sixteen channels at `p`, or the `n` that there are.
#[inline(always)]
unsafe fn load<L: Lanes>(p: *const f32, n: usize) -> L {
    // SAFETY: the caller's contract.
    unsafe { if n == LANES { L::load(p) } else { L::load_part(p, n) } }
}

#[inline(always)]
unsafe fn store<L: Lanes>(v: L, p: *mut f32, n: usize) {
    // SAFETY: the caller's contract.
    unsafe { if n == LANES { v.store(p) } else { v.store_part(p, n) } }
}

/// One image.
struct Forward<'a> {
    norm: GroupNorm<'a>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = Statistics;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Statistics {
        let Forward { norm, x, y } = self;
        let channels = norm.channels();
        let pixels = x.len() / channels;
        let n = (x.len() / norm.groups) as f32;
        let mut sums = vec![0f32; channels];
        // SAFETY of each block: `width` channels of each pixel from `at` on.
        for at in (0..channels).step_by(LANES) {
            let width = LANES.min(channels - at);
            unsafe {
                // Four chains hide the latency of an addition.
                let mut acc = [L::splat(0.0); 4];
                for pixel in 0..pixels {
                    acc[pixel % 4] = acc[pixel % 4].add(load(x.as_ptr().add(pixel * channels + at), width));
                }
                let sum = acc[0].add(acc[1]).add(acc[2].add(acc[3]));
                store(sum, sums.as_mut_ptr().add(at), width);
            }
        }
        let means: Vec<f32> = norm.grouped(|c| sums[c]).iter().map(|sum| sum / n).collect();
        let mean = norm.spread(|g| means[g]);
        for at in (0..channels).step_by(LANES) {
            let width = LANES.min(channels - at);
            unsafe {
                let mean: L = load(mean.as_ptr().add(at), width);
                let mut acc = [L::splat(0.0); 4];
                for pixel in 0..pixels {
                    let d = load::<L>(x.as_ptr().add(pixel * channels + at), width).sub(mean);
                    acc[pixel % 4] = acc[pixel % 4].fma(d, d);
                }
                let sum = acc[0].add(acc[1]).add(acc[2].add(acc[3]));
                store(sum, sums.as_mut_ptr().add(at), width);
            }
        }
        let squares = norm.grouped(|c| sums[c]);
        let statistics: Statistics =
            means.iter().zip(squares).map(|(mean, s)| (*mean, 1.0 / (s / n + norm.eps).sqrt())).collect();
        let rstd = norm.spread(|g| statistics[g].1);
        let a: Vec<f32> = rstd.iter().zip(norm.gamma).map(|(r, g)| r * g).collect();
        let b: Vec<f32> = (0..channels).map(|c| norm.beta[c] - mean[c] * a[c]).collect();
        for at in (0..channels).step_by(LANES) {
            let width = LANES.min(channels - at);
            unsafe {
                let (a, b): (L, L) = (load(a.as_ptr().add(at), width), load(b.as_ptr().add(at), width));
                for pixel in 0..pixels {
                    let place = pixel * channels + at;
                    let u = b.fma(a, load(x.as_ptr().add(place), width));
                    let v = if norm.silu { u.mul(u.sigmoid()) } else { u };
                    store(v, y.as_mut_ptr().add(place), width);
                }
            }
        }
        statistics
    }
}

/// One image.
struct Backward<'a> {
    norm: GroupNorm<'a>,
    x: &'a [f32],
    statistics: &'a [(f32, f32)],
    dy: &'a [f32],
    dx: &'a mut [f32],
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Backward { norm, x, statistics, dy, dx, dgamma, dbeta } = self;
        let channels = norm.channels();
        let pixels = x.len() / channels;
        let n = (x.len() / norm.groups) as f32;
        let (mean, rstd) = (norm.spread(|g| statistics[g].0), norm.spread(|g| statistics[g].1));
        // Sums of du and of du xhat over the pixels, where y = f(u), u = gamma xhat + beta.
        let (mut s1, mut s2) = (vec![0f32; channels], vec![0f32; channels]);
        // SAFETY of each block: `width` channels of each pixel from `at` on.
        for at in (0..channels).step_by(LANES) {
            let width = LANES.min(channels - at);
            unsafe {
                let (m, r): (L, L) = (load(mean.as_ptr().add(at), width), load(rstd.as_ptr().add(at), width));
                let gamma: L = load(norm.gamma.as_ptr().add(at), width);
                let beta: L = load(norm.beta.as_ptr().add(at), width);
                let one = L::splat(1.0);
                let (mut sum, mut sum_xhat) = (L::splat(0.0), L::splat(0.0));
                for pixel in 0..pixels {
                    let place = pixel * channels + at;
                    let xhat = load::<L>(x.as_ptr().add(place), width).sub(m).mul(r);
                    let mut d: L = load(dy.as_ptr().add(place), width);
                    if norm.silu {
                        let u = beta.fma(gamma, xhat);
                        let s = u.sigmoid();
                        d = d.mul(s.mul(one.fma(u, one.sub(s))));
                    }
                    store(d, dx.as_mut_ptr().add(place), width);
                    sum = sum.add(d);
                    sum_xhat = sum_xhat.fma(d, xhat);
                }
                store(sum, s1.as_mut_ptr().add(at), width);
                store(sum_xhat, s2.as_mut_ptr().add(at), width);
            }
        }
        for c in 0..channels {
            dbeta[c] += s1[c];
            dgamma[c] += s2[c];
        }
        // dx = rstd (gamma du - mean(gamma du) - xhat mean(gamma du xhat))
        let m1 = norm.grouped(|c| s1[c] * norm.gamma[c]);
        let m2 = norm.grouped(|c| s2[c] * norm.gamma[c]);
        let slope = norm.spread(|g| -statistics[g].1 * statistics[g].1 * m2[g] / n);
        let offset = norm.spread(|g| {
            let (mean, rstd) = statistics[g];
            rstd * rstd * m2[g] / n * mean - rstd * m1[g] / n
        });
        let scale: Vec<f32> = rstd.iter().zip(norm.gamma).map(|(r, g)| r * g).collect();
        for at in (0..channels).step_by(LANES) {
            let width = LANES.min(channels - at);
            unsafe {
                let slope: L = load(slope.as_ptr().add(at), width);
                let offset: L = load(offset.as_ptr().add(at), width);
                let scale: L = load(scale.as_ptr().add(at), width);
                for pixel in 0..pixels {
                    let place = pixel * channels + at;
                    let rest = offset.fma(slope, load(x.as_ptr().add(place), width));
                    let d = rest.fma(scale, load(dx.as_ptr().add(place), width));
                    store(d, dx.as_mut_ptr().add(place), width);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::run_each;
    use super::*;
    use crate::rng::Stream;

    /// The bits do not depend on the instruction set.
    #[test]
    fn all_lanes_give_the_same_bits() {
        for (channels, groups, pixels) in [(8, 2, 9), (48, 12, 16), (20, 5, 7)] {
            let values = |name: &str, n| Stream::new("norm", name).normals(0, n);
            let (gamma, beta) = (values("gamma", channels), values("beta", channels));
            let (x, dy) = (values("x", channels * pixels), values("dy", channels * pixels));
            let norm = GroupNorm { gamma: &gamma, beta: &beta, groups, eps: 1e-6, silu: true };
            struct Both<'a>(GroupNorm<'a>, &'a [f32], &'a [f32]);
            impl Kernel for Both<'_> {
                type Out = Vec<u32>;

                #[inline(always)]
                fn run<L: Lanes>(self) -> Vec<u32> {
                    let Both(norm, x, dy) = self;
                    let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
                    let (mut dgamma, mut dbeta) = (vec![0f32; norm.channels()], vec![0f32; norm.channels()]);
                    let statistics = Forward { norm, x, y: &mut y }.run::<L>();
                    let (dgamma_, dbeta_) = (&mut dgamma, &mut dbeta);
                    Backward {
                        norm,
                        x,
                        statistics: &statistics,
                        dy,
                        dx: &mut dx,
                        dgamma: dgamma_,
                        dbeta: dbeta_,
                    }
                    .run::<L>();
                    [y, dx, dgamma, dbeta].concat().iter().map(|v| v.to_bits()).collect()
                }
            }
            let all = run_each(|| Both(norm, &x, &dy));
            for (lanes, bits) in &all {
                assert!(*bits == all[0].1, "{lanes}: {channels} channels");
            }
        }
    }
}
