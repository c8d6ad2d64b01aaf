//! Single-head self-attention over pixels, one image at a time, so that scores, softmax and the
//! weighted sum stay in the cache.

use super::maps::Maps;
use super::memory::Buffer;
use super::simd::lanes::{Kernel, LANES, Lanes, run};
use super::simd::product::{Dense, Epilogue, Panels, outer, product};

/// Sizes of one image: q, k and v are (tokens, channels).
struct Image {
    tokens: usize,
    channels: usize,
}

impl Image {
    fn scale(&self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    fn rows<'a>(&self, x: &'a [f32]) -> Dense<'a> {
        Dense { values: x, length: self.channels }
    }

    fn square_rows<'a>(&self, x: &'a [f32]) -> Dense<'a> {
        Dense { values: x, length: self.tokens }
    }

    /// Separates q, k and v, each (tokens, channels).
    fn parts(&self, qkv: &[f32]) -> [Buffer; 3] {
        let each = self.tokens * self.channels;
        let mut parts = [Buffer::uninit(each), Buffer::uninit(each), Buffer::uninit(each)];
        let [q, k, v] = &mut parts;
        let to = q.iter_mut().zip(k.iter_mut()).zip(v.iter_mut());
        for (((q, k), v), three) in to.zip(qkv.chunks_exact(3)) {
            (*q, *k, *v) = (three[0], three[1], three[2]);
        }
        parts
    }

    /// Computes scale a b^T, (tokens, tokens), of two (tokens, channels) matrices.
    fn scores(&self, a: &[f32], b: &[f32], scale: f32) -> Buffer {
        let panels = Panels::new(self.channels, self.tokens, |c, t| b[t * self.channels + c]);
        let mut out = Buffer::uninit(self.tokens * self.tokens);
        product(self.rows(a), &panels, Epilogue { scale, ..Epilogue::default() }, &mut out, self.tokens);
        out
    }

    /// Computes scale p x, (tokens, channels), with p (tokens, tokens).
    fn weighted(&self, p: &[f32], x: &[f32], scale: f32, out: &mut [f32]) {
        let panels = Panels::new(self.tokens, self.channels, |t, c| x[t * self.channels + c]);
        product(self.square_rows(p), &panels, Epilogue { scale, ..Epilogue::default() }, out, self.channels);
    }

    /// Computes p^T x, (tokens, channels).
    fn transposed(&self, p: &[f32], x: &[f32]) -> Buffer {
        let mut out = Buffer::zeros(self.tokens * self.channels);
        outer(self.square_rows(p), x, self.channels, &mut out);
        out
    }

    /// Computes the attention weights p[query][key]; each row sums to 1.
    fn weights(&self, q: &[f32], k: &[f32]) -> Buffer {
        let mut p = self.scores(q, k, self.scale());
        run(Softmax { p: &mut p, columns: self.tokens });
        p
    }
}

/// Computes softmax(q^T k / sqrt(C)) v. `qkv` has 3C channels with q, k and v interleaved: channel
/// 3c + {0, 1, 2}, the order of EDM's `qkv` convolution. The result has C channels.
pub fn attention(qkv: &Maps) -> Maps {
    let [height, width, c3] = qkv.shape();
    let image = Image { tokens: height * width, channels: c3 / 3 };
    let mut a = Maps::uninit(qkv.images, [height, width, c3 / 3]);
    let each = image.tokens * image.channels;
    for (qkv, a) in qkv.values().chunks_exact(3 * each).zip(a.values_mut().chunks_exact_mut(each)) {
        let [q, k, v] = image.parts(qkv);
        image.weighted(&image.weights(&q, &k), &v, 1.0, a);
    }
    a
}

/// Computes the gradient of [`attention`] with respect to `qkv`.
pub fn attention_backward(qkv: &Maps, da: &Maps) -> Maps {
    let [height, width, c3] = qkv.shape();
    let image = Image { tokens: height * width, channels: c3 / 3 };
    let mut out = qkv.like();
    let each = image.tokens * image.channels;
    let images = qkv.values().chunks_exact(3 * each).zip(da.values().chunks_exact(each));
    for ((qkv, da), out) in images.zip(out.values_mut().chunks_exact_mut(3 * each)) {
        let [q, k, v] = image.parts(qkv);
        let p = image.weights(&q, &k);
        let mut ds = image.scores(da, &v, 1.0);
        run(SoftmaxBackward { p: &p, dp: &mut ds, columns: image.tokens });
        let dv = image.transposed(&p, da);
        let dk = image.transposed(&ds, &q);
        let mut dq = Buffer::uninit(each);
        image.weighted(&ds, &k, image.scale(), &mut dq);
        for (i, three) in out.chunks_exact_mut(3).enumerate() {
            three.copy_from_slice(&[dq[i], dk[i] * image.scale(), dv[i]]);
        }
    }
    out
}

/// Computes [`attention`] and its derivative along `dqkv`.
pub fn attention_along(qkv: &Maps, dqkv: &Maps) -> [Maps; 2] {
    let [height, width, c3] = qkv.shape();
    let image = Image { tokens: height * width, channels: c3 / 3 };
    let (columns, scale) = (image.tokens, image.scale());
    let maps = || Maps::uninit(qkv.images, [height, width, c3 / 3]);
    let (mut a, mut da) = (maps(), maps());
    let each = image.tokens * image.channels;
    let images = qkv.values().chunks_exact(3 * each).zip(dqkv.values().chunks_exact(3 * each));
    let outputs = a.values_mut().chunks_exact_mut(each).zip(da.values_mut().chunks_exact_mut(each));
    for ((qkv, dqkv), (a, da)) in images.zip(outputs) {
        let ([q, k, v], [dq, dk, dv]) = (image.parts(qkv), image.parts(dqkv));
        let p = image.weights(&q, &k);
        image.weighted(&p, &v, 1.0, a);
        let mut dp = image.scores(&dq, &k, scale);
        let more = image.scores(&q, &dk, scale);
        dp.iter_mut().zip(more.iter()).for_each(|(s, m)| *s += m);
        run(SoftmaxBackward { p: &p, dp: &mut dp, columns });
        image.weighted(&dp, &v, 1.0, da);
        let mut more = Buffer::uninit(each);
        image.weighted(&p, &dv, 1.0, &mut more);
        da.iter_mut().zip(more.iter()).for_each(|(a, m)| *a += m);
    }
    [a, da]
}

/// Softmax over each row of `columns` scores, in place.
struct Softmax<'a> {
    p: &'a mut [f32],
    columns: usize,
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for row in self.p.chunks_exact_mut(self.columns) {
            let (body, tail) = row.split_at_mut(self.columns / LANES * LANES);
            // SAFETY: sixteen values of the row, or a copy of the rest.
            unsafe {
                let mut most = L::splat(f32::NEG_INFINITY);
                for v in body.chunks_exact(LANES) {
                    most = L::load(v.as_ptr()).max(most);
                }
                let mut all = [f32::NEG_INFINITY; LANES];
                most.store(all.as_mut_ptr());
                let greatest = |max, v: &f32| if *v > max { *v } else { max };
                let max = L::splat(all.iter().chain(&*tail).fold(f32::NEG_INFINITY, greatest));
                let mut sum = L::splat(0.0);
                for v in body.chunks_exact_mut(LANES) {
                    let e = L::load(v.as_ptr()).sub(max).exp();
                    sum = sum.add(e);
                    e.store(v.as_mut_ptr());
                }
                let mut rest = [f32::NEG_INFINITY; LANES];
                rest[..tail.len()].copy_from_slice(tail);
                let e = L::load(rest.as_ptr()).sub(max).exp();
                e.store(rest.as_mut_ptr());
                tail.copy_from_slice(&rest[..tail.len()]);
                let inverse = 1.0 / (sum.sum() + tail.iter().sum::<f32>());
                for v in body.chunks_exact_mut(LANES) {
                    L::load(v.as_ptr()).mul(L::splat(inverse)).store(v.as_mut_ptr());
                }
                tail.iter_mut().for_each(|v| *v *= inverse);
            }
        }
    }
}

/// Computes dS = p (dP - sum over keys of p dP), in place in `dp`.
struct SoftmaxBackward<'a> {
    p: &'a [f32],
    dp: &'a mut [f32],
    columns: usize,
}

impl Kernel for SoftmaxBackward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let columns = self.columns;
        for (p, dp) in self.p.chunks_exact(columns).zip(self.dp.chunks_exact_mut(columns)) {
            let body = columns / LANES * LANES;
            // SAFETY: sixteen values of either row.
            unsafe {
                let mut dot = L::splat(0.0);
                for at in (0..body).step_by(LANES) {
                    dot = dot.fma(L::load(p.as_ptr().add(at)), L::load(dp.as_ptr().add(at)));
                }
                let mut dot = dot.sum();
                for at in body..columns {
                    dot += p[at] * dp[at];
                }
                for at in (0..body).step_by(LANES) {
                    let d = L::load(dp.as_ptr().add(at)).sub(L::splat(dot));
                    L::load(p.as_ptr().add(at)).mul(d).store(dp.as_mut_ptr().add(at));
                }
                for at in body..columns {
                    dp[at] = p[at] * (dp[at] - dot);
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

    struct Both<'a>(&'a [f32], &'a [f32], usize);

    impl Kernel for Both<'_> {
        type Out = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Out {
            let Both(scores, dp, columns) = self;
            let (mut p, mut dp) = (scores.to_vec(), dp.to_vec());
            Softmax { p: &mut p, columns }.run::<L>();
            SoftmaxBackward { p: &p, dp: &mut dp, columns }.run::<L>();
            (p, dp)
        }
    }

    /// Rows of any length sum to 1, and every instruction set gives the same bits.
    #[test]
    fn softmax_with_all_lanes() {
        for columns in [1, 7, 16, 49, 64] {
            let values = |name: &str| Stream::new("softmax", name).normals(0, 3 * columns);
            let (scores, dp) = (values("scores"), values("dp"));
            let all = run_each(|| Both(&scores, &dp, columns));
            for (lanes, found) in &all {
                let bits = |(p, ds): &(Vec<f32>, Vec<f32>)| -> Vec<u32> {
                    p.iter().chain(ds).map(|v| v.to_bits()).collect()
                };
                assert!(bits(found) == bits(&all[0].1), "{lanes}: {columns} columns");
            }
            let (p, ds) = &all[0].1;
            for (row, (p, ds)) in p.chunks_exact(columns).zip(ds.chunks_exact(columns)).enumerate() {
                let scores = &scores[row * columns..][..columns];
                let total: f64 = scores.iter().map(|s| (*s as f64).exp()).sum();
                for (p, s) in p.iter().zip(scores) {
                    assert!((*p as f64 - (*s as f64).exp() / total).abs() < 1e-6);
                }
                assert!(ds.iter().sum::<f32>().abs() < 1e-5, "gradients of weights that sum to 1");
            }
        }
    }
}
