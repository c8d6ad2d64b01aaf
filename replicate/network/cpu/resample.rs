//! Zero insertion, a separable filter and decimation, one axis after the other.

use super::maps::Maps;
use crate::network::Resample;

/// Both axes of `x`; its gradient is the transposed one of the gradient.
pub fn resample(x: &Maps, [vertical, horizontal]: [&Resample; 2]) -> Maps {
    let [height, width, c] = x.shape();
    let [h, w] = [vertical.output(height), horizontal.output(width)];
    let mut rows = Maps::stale(x.images, [height, w, c]);
    along(horizontal, x.values(), [width, c], rows.values_mut(), w);
    let mut y = Maps::stale(x.images, [h, w, c]);
    along(vertical, rows.values(), [height, w * c], y.values_mut(), h);
    y
}

/// Of `n` stretches of `inner` values `m`, again and again.
fn along(resample: &Resample, x: &[f32], [n, inner]: [usize; 2], y: &mut [f32], m: usize) {
    for (x, y) in x.chunks_exact(n * inner).zip(y.chunks_exact_mut(m * inner)) {
        for (at, y) in y.chunks_exact_mut(inner).enumerate() {
            y.fill(0.0);
            for (place, tap) in resample.covered(at, n) {
                for (y, x) in y.iter_mut().zip(&x[place * inner..][..inner]) {
                    *y += tap * x;
                }
            }
        }
    }
}
