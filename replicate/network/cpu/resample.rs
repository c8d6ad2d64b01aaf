//! Zero insertion, a separable filter and decimation, one axis after the other.

use super::maps::Maps;
use super::simd::lanes::{Kernel, Lanes, run};
use crate::network::Resample;

/// Resamples `x` along both axes, (vertical, horizontal). Its gradient is resampled with
/// [`Resample::transposed`].
pub fn resample(x: &Maps, [vertical, horizontal]: [&Resample; 2]) -> Maps {
    let [height, width, c] = x.shape();
    let [h, w] = [vertical.output(height), horizontal.output(width)];
    let mut rows = Maps::uninit(x.images, [height, w, c]);
    run(Along { resample: horizontal, x: x.values(), n: width, inner: c, y: rows.values_mut(), m: w });
    let mut y = Maps::uninit(x.images, [h, w, c]);
    run(Along { resample: vertical, x: rows.values(), n: height, inner: w * c, y: y.values_mut(), m: h });
    y
}

/// Resamples one axis of length `n` to length `m`. Each position holds `inner` contiguous values.
struct Along<'a> {
    resample: &'a Resample,
    x: &'a [f32],
    n: usize,
    inner: usize,
    y: &'a mut [f32],
    m: usize,
}

impl Kernel for Along<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Along { resample, x, n, inner, y, m } = self;
        let covered = |at: usize| resample.covered(at, n).map(move |(place, tap)| (at, place, tap));
        let all: Vec<(usize, usize, f32)> = (0..m).flat_map(covered).collect();
        for (x, y) in x.chunks_exact(n * inner).zip(y.chunks_exact_mut(m * inner)) {
            y.fill(0.0);
            for (at, place, tap) in &all {
                let (x, y) = (&x[place * inner..][..inner], &mut y[at * inner..][..inner]);
                for (y, x) in y.iter_mut().zip(x) {
                    *y += tap * x;
                }
            }
        }
    }
}
