//! Group normalisation, optionally fused with SiLU, and its gradients.

use super::maps::Maps;
use super::simd::lanes::{Kernel, LANES, Lanes, run};
use super::simd::product::column_sums;
use std::ops::Range;

/// Group normalisation, y = f((x - mean) / sqrt(var + eps) * gamma + beta). Mean and (biased)
/// variance are over each of `groups` channel groups of each image; f is SiLU or the identity.
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
    /// Normalises `x`; returns the output and the statistics for the backward pass.
    ///
    /// # Panics
    /// If gamma and beta do not have one value for each channel of `x`, or if the groups do not
    /// divide the channels.
    pub fn forward(&self, x: &Maps) -> (Maps, Statistics) {
        self.check(x);
        let mut y = x.like();
        let statistics =
            run(Forward { norm: *self, pixels: x.height * x.width, x: x.values(), y: y.values_mut() });
        (y, statistics)
    }

    /// Computes the output of [`GroupNorm::forward`] again from its statistics.
    ///
    /// # Panics
    /// See [`GroupNorm::forward`]; also if there are not as many statistics.
    pub fn recompute(&self, x: &Maps, statistics: &Statistics) -> Maps {
        self.check(x);
        assert!(statistics.len() == x.images * self.groups);
        let (mut y, pixels) = (x.like(), x.height * x.width);
        run(Recompute { norm: *self, pixels, x: x.values(), statistics, y: y.values_mut() });
        y
    }

    /// Computes y and its derivative along `dx`.
    ///
    /// # Panics
    /// See [`GroupNorm::forward`]; also if `dx` differs in size from `x`.
    pub fn along(&self, x: &Maps, dx: &Maps) -> [Maps; 2] {
        self.check(x);
        assert!(dx.images == x.images && dx.shape() == x.shape(), "a tangent of another size");
        let (mut y, mut dy) = (x.like(), x.like());
        let (norm, pixels) = (*self, x.height * x.width);
        let (x, dx) = (x.values(), dx.values());
        run(Along { norm, pixels, x, dx, y: y.values_mut(), dy: dy.values_mut() });
        [y, dy]
    }

    /// Computes the gradient with respect to x, and adds those of gamma and beta to theirs.
    ///
    /// # Panics
    /// See [`GroupNorm::forward`]; also if the gradient differs in size from `x`.
    pub fn backward(
        &self,
        x: &Maps,
        statistics: &Statistics,
        dy: &Maps,
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) -> Maps {
        self.check(x);
        assert!(dy.images == x.images && dy.shape() == x.shape(), "a gradient of another size");
        assert!(statistics.len() == x.images * self.groups);
        assert!(dgamma.len() == x.channels && dbeta.len() == x.channels);
        let mut dx = x.like();
        run(Backward {
            norm: *self,
            pixels: x.height * x.width,
            x: x.values(),
            statistics,
            dy: dy.values(),
            dx: dx.values_mut(),
            dgamma,
            dbeta,
        });
        dx
    }

    fn check(&self, x: &Maps) {
        assert!(self.gamma.len() == x.channels && self.beta.len() == x.channels, "gamma and beta");
        assert!(self.groups > 0 && x.channels.is_multiple_of(self.groups), "groups of {}", x.channels);
    }

    fn channels(&self) -> usize {
        self.gamma.len()
    }

    /// Channels of each group, in order.
    fn members(&self) -> impl Iterator<Item = Range<usize>> {
        let per = self.channels() / self.groups;
        (0..self.groups).map(move |g| g * per..(g + 1) * per)
    }
}

struct Forward<'a> {
    norm: GroupNorm<'a>,
    pixels: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Out = Statistics;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Statistics {
        let Forward { norm, pixels, x, y } = self;
        let channels = norm.channels();
        let mut statistics = Statistics::with_capacity(x.len() / (pixels * channels) * norm.groups);
        let mut line = Line::new(channels);
        let images = x.chunks_exact(pixels * channels).zip(y.chunks_exact_mut(pixels * channels));
        for (x, y) in images {
            line.measure::<L>(norm, pixels, x, |group| statistics.push(group));
            line.apply::<L>(norm, x, y);
        }
        statistics
    }
}

/// Computes the output of [`Forward`] from its statistics.
struct Recompute<'a> {
    norm: GroupNorm<'a>,
    pixels: usize,
    x: &'a [f32],
    statistics: &'a [(f32, f32)],
    y: &'a mut [f32],
}

impl Kernel for Recompute<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Recompute { norm, pixels, x, statistics, y } = self;
        let mut line = Line::new(norm.channels());
        let each = pixels * norm.channels();
        let images = x.chunks_exact(each).zip(y.chunks_exact_mut(each));
        for ((x, y), statistics) in images.zip(statistics.chunks_exact(norm.groups)) {
            for (group, (mean, rstd)) in norm.members().zip(statistics) {
                line.set(norm, group, *mean, *rstd);
            }
            line.apply::<L>(norm, x, y);
        }
    }
}

/// Affine form of an image's normalisation, y = a x + b, with one value for each channel.
struct Line {
    sums: Vec<f32>,
    mean: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Line {
    fn new(channels: usize) -> Line {
        let zeros = || vec![0f32; channels];
        Line { sums: zeros(), mean: zeros(), a: zeros(), b: zeros() }
    }

    /// Measures the image `x` and sets the coefficients. Calls `give` with mean and 1 / standard
    /// deviation of each group.
    #[inline(always)]
    fn measure<L: Lanes>(
        &mut self,
        norm: GroupNorm,
        pixels: usize,
        x: &[f32],
        mut give: impl FnMut((f32, f32)),
    ) {
        let Line { sums, mean, .. } = self;
        let channels = norm.channels();
        let n = (pixels * channels / norm.groups) as f32;
        // SAFETY of each block: `width` channels of each pixel from `at` on.
        for at in (0..channels).step_by(LANES) {
            unsafe {
                let sum: L = column_sums(x, channels, at);
                sum.store_first(sums.as_mut_ptr().add(at), channels - at);
            }
        }
        for group in norm.members() {
            let m = sums[group.clone()].iter().sum::<f32>() / n;
            mean[group].fill(m);
        }
        for at in (0..channels).step_by(LANES) {
            let width = channels - at;
            unsafe {
                let mean: L = L::load_first(mean.as_ptr().add(at), width);
                let mut acc = [L::splat(0.0); 4];
                for pixel in 0..pixels {
                    let d = L::load_first(x.as_ptr().add(pixel * channels + at), width).sub(mean);
                    acc[pixel % 4] = acc[pixel % 4].fma(d, d);
                }
                let sum = acc[0].add(acc[1]).add(acc[2].add(acc[3]));
                sum.store_first(sums.as_mut_ptr().add(at), width);
            }
        }
        for group in norm.members() {
            let variance = self.sums[group.clone()].iter().sum::<f32>() / n;
            let rstd = 1.0 / (variance + norm.eps).sqrt();
            let mean = self.mean[group.start];
            give((mean, rstd));
            self.set(norm, group, mean, rstd);
        }
    }

    /// Sets the coefficients of a group.
    #[inline(always)]
    fn set(&mut self, norm: GroupNorm, group: Range<usize>, mean: f32, rstd: f32) {
        for c in group {
            self.a[c] = rstd * norm.gamma[c];
            self.b[c] = norm.beta[c] - mean * self.a[c];
        }
    }

    /// Computes the output of the image `x`.
    #[inline(always)]
    fn apply<L: Lanes>(&self, norm: GroupNorm, x: &[f32], y: &mut [f32]) {
        let channels = norm.channels();
        for at in (0..channels).step_by(LANES) {
            let width = channels - at;
            // SAFETY: `width` channels of each pixel from `at` on.
            unsafe {
                let (a, b): (L, L) = (
                    L::load_first(self.a.as_ptr().add(at), width),
                    L::load_first(self.b.as_ptr().add(at), width),
                );
                for place in (at..x.len()).step_by(channels) {
                    let u = b.fma(a, L::load_first(x.as_ptr().add(place), width));
                    let v = if norm.silu { u.mul(u.sigmoid()) } else { u };
                    v.store_first(y.as_mut_ptr().add(place), width);
                }
            }
        }
    }
}

struct Along<'a> {
    norm: GroupNorm<'a>,
    pixels: usize,
    x: &'a [f32],
    dx: &'a [f32],
    y: &'a mut [f32],
    dy: &'a mut [f32],
}

impl Kernel for Along<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Along { norm, pixels, x, dx, y, dy } = self;
        let channels = norm.channels();
        let (each, n) = (pixels * channels, (pixels * channels / norm.groups) as f32);
        let mut line = Line::new(channels);
        let mut rstd = Vec::with_capacity(norm.groups);
        // Sums of dx and of dx (x - mean) over the pixels. Then dy = a dx + slope x + offset is the
        // tangent of the output before SiLU.
        let (mut slope, mut offset) = (vec![0f32; channels], vec![0f32; channels]);
        let images = x.chunks_exact(each).zip(dx.chunks_exact(each));
        let outputs = y.chunks_exact_mut(each).zip(dy.chunks_exact_mut(each));
        for ((x, dx), (y, dy)) in images.zip(outputs) {
            rstd.clear();
            line.measure::<L>(norm, pixels, x, |(_, r)| rstd.push(r));
            let Line { mean, a, b, .. } = &line;
            // SAFETY of each block: `width` channels of each pixel from `at` on.
            for at in (0..channels).step_by(LANES) {
                let width = channels - at;
                unsafe {
                    let mean: L = L::load_first(mean.as_ptr().add(at), width);
                    let (mut sums, mut products) = ([L::splat(0.0); 2], [L::splat(0.0); 2]);
                    for pixel in 0..pixels {
                        let place = pixel * channels + at;
                        let d: L = L::load_first(dx.as_ptr().add(place), width);
                        let centred = L::load_first(x.as_ptr().add(place), width).sub(mean);
                        sums[pixel % 2] = sums[pixel % 2].add(d);
                        products[pixel % 2] = products[pixel % 2].fma(d, centred);
                    }
                    sums[0].add(sums[1]).store_first(offset.as_mut_ptr().add(at), width);
                    products[0].add(products[1]).store_first(slope.as_mut_ptr().add(at), width);
                }
            }
            for (group, rstd) in norm.members().zip(&rstd) {
                let along = offset[group.clone()].iter().sum::<f32>() / n;
                let shrinks = slope[group.clone()].iter().sum::<f32>() / n * rstd * rstd;
                for c in group {
                    slope[c] = -a[c] * shrinks;
                    offset[c] = -a[c] * along - slope[c] * mean[c];
                }
            }
            for at in (0..channels).step_by(LANES) {
                let width = channels - at;
                unsafe {
                    let of = |values: &[f32]| -> L { L::load_first(values.as_ptr().add(at), width) };
                    let (a, b, slope, offset, one) = (of(a), of(b), of(&slope), of(&offset), L::splat(1.0));
                    for pixel in 0..pixels {
                        let place = pixel * channels + at;
                        let v: L = L::load_first(x.as_ptr().add(place), width);
                        let dv: L = L::load_first(dx.as_ptr().add(place), width);
                        let (mut u, mut du) = (b.fma(a, v), offset.fma(slope, v).fma(a, dv));
                        if norm.silu {
                            let s = u.sigmoid();
                            du = du.mul(s.mul(one.fma(u, one.sub(s))));
                            u = u.mul(s);
                        }
                        u.store_first(y.as_mut_ptr().add(place), width);
                        du.store_first(dy.as_mut_ptr().add(place), width);
                    }
                }
            }
        }
    }
}

struct Backward<'a> {
    norm: GroupNorm<'a>,
    pixels: usize,
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
        let Backward { norm, pixels, x, statistics, dy, dx, dgamma, dbeta } = self;
        let channels = norm.channels();
        let n = (pixels * channels / norm.groups) as f32;
        let each = pixels * channels;
        let (mut mean, mut rstd) = (vec![0f32; channels], vec![0f32; channels]);
        // Sums of du and of du xhat over the pixels, where y = f(u), u = gamma xhat + beta.
        let (mut s1, mut s2) = (vec![0f32; channels], vec![0f32; channels]);
        // dx = scale du + slope x + offset
        let mut scale = vec![0f32; channels];
        let (mut slope, mut offset) = (vec![0f32; channels], vec![0f32; channels]);
        let images = x.chunks_exact(each).zip(dy.chunks_exact(each)).zip(dx.chunks_exact_mut(each));
        for (((x, dy), dx), statistics) in images.zip(statistics.chunks_exact(norm.groups)) {
            for (group, (m, r)) in norm.members().zip(statistics) {
                mean[group.clone()].fill(*m);
                rstd[group].fill(*r);
            }
            // SAFETY of each block: `width` channels of each pixel from `at` on.
            for at in (0..channels).step_by(LANES) {
                let width = channels - at;
                unsafe {
                    let m: L = L::load_first(mean.as_ptr().add(at), width);
                    let r: L = L::load_first(rstd.as_ptr().add(at), width);
                    let gamma: L = L::load_first(norm.gamma.as_ptr().add(at), width);
                    let beta: L = L::load_first(norm.beta.as_ptr().add(at), width);
                    let one = L::splat(1.0);
                    let (mut sum, mut sum_xhat) = (L::splat(0.0), L::splat(0.0));
                    for pixel in 0..pixels {
                        let place = pixel * channels + at;
                        let xhat = L::load_first(x.as_ptr().add(place), width).sub(m).mul(r);
                        let mut d: L = L::load_first(dy.as_ptr().add(place), width);
                        if norm.silu {
                            let u = beta.fma(gamma, xhat);
                            let s = u.sigmoid();
                            d = d.mul(s.mul(one.fma(u, one.sub(s))));
                        }
                        d.store_first(dx.as_mut_ptr().add(place), width);
                        sum = sum.add(d);
                        sum_xhat = sum_xhat.fma(d, xhat);
                    }
                    sum.store_first(s1.as_mut_ptr().add(at), width);
                    sum_xhat.store_first(s2.as_mut_ptr().add(at), width);
                }
            }
            // dx = rstd (gamma du - mean(gamma du) - xhat mean(gamma du xhat))
            for (group, (mean, rstd)) in norm.members().zip(statistics) {
                let (mut m1, mut m2) = (0f32, 0f32);
                for c in group.clone() {
                    dbeta[c] += s1[c];
                    dgamma[c] += s2[c];
                    m1 += s1[c] * norm.gamma[c];
                    m2 += s2[c] * norm.gamma[c];
                }
                let along = -rstd * rstd * m2 / n;
                for c in group {
                    scale[c] = rstd * norm.gamma[c];
                    slope[c] = along;
                    offset[c] = -rstd * m1 / n - along * mean;
                }
            }
            for at in (0..channels).step_by(LANES) {
                let width = channels - at;
                unsafe {
                    let slope: L = L::load_first(slope.as_ptr().add(at), width);
                    let offset: L = L::load_first(offset.as_ptr().add(at), width);
                    let scale: L = L::load_first(scale.as_ptr().add(at), width);
                    for pixel in 0..pixels {
                        let place = pixel * channels + at;
                        let rest = offset.fma(slope, L::load_first(x.as_ptr().add(place), width));
                        let d = rest.fma(scale, L::load_first(dx.as_ptr().add(place), width));
                        d.store_first(dx.as_mut_ptr().add(place), width);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::lanes::run_each;
    use super::*;
    use crate::rng::Stream;

    /// The instruction set does not change the bits.
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
                    let pixels = x.len() / norm.channels();
                    let statistics = Forward { norm, pixels, x, y: &mut y }.run::<L>();
                    let mut recomputed = vec![0f32; x.len()];
                    Recompute { norm, pixels, x, statistics: &statistics, y: &mut recomputed }.run::<L>();
                    assert_eq!(recomputed, y);
                    let (mut value, mut tangent) = (vec![0f32; x.len()], vec![0f32; x.len()]);
                    Along { norm, pixels, x, dx: dy, y: &mut value, dy: &mut tangent }.run::<L>();
                    assert_eq!(value, y, "the forward pass's");
                    let (dgamma_, dbeta_) = (&mut dgamma, &mut dbeta);
                    Backward {
                        norm,
                        pixels,
                        x,
                        statistics: &statistics,
                        dy,
                        dx: &mut dx,
                        dgamma: dgamma_,
                        dbeta: dbeta_,
                    }
                    .run::<L>();
                    [y, dx, dgamma, dbeta, tangent].concat().iter().map(|v| v.to_bits()).collect()
                }
            }
            let all = run_each(|| Both(norm, &x, &dy));
            for (lanes, bits) in &all {
                assert!(*bits == all[0].1, "{lanes}: {channels} channels");
            }
        }
    }
}
