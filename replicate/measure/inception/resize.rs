//! Images as the FID network takes them: TensorFlow 1's bilinear resize to
//! 299 x 299, then (x - 128) / 128.

use crate::data::Images;
use rayon::prelude::*;
use std::ops::Range;

/// Height and width of what the network takes.
pub const SIDE: usize = 299;

/// Images `range` of `images` as (n, 299, 299, channels) values in `resized`.
///
/// Output pixel i lies at input i * size / 299 (corners, not centres, are
/// aligned), in float32 as TensorFlow 1 computed it; beyond the last pixel the
/// last one is repeated.
///
/// # Panics
/// If there are no such images, or `resized` is not of that size.
pub fn resize(images: &Images, range: Range<usize>, resized: &mut [f32]) {
    let (size, row) = (images.size, SIDE * images.channels);
    let places: Vec<(usize, usize, f32)> = (0..SIDE)
        .map(|i| {
            let at = i as f32 * (size as f64 / SIDE as f64) as f32;
            let low = (at as usize).min(size - 1);
            (low, (low + 1).min(size - 1), at - low as f32)
        })
        .collect();
    assert_eq!(resized.len(), range.len() * SIDE * row, "values of resized images");
    resized.par_chunks_exact_mut(SIDE * row).zip(range).for_each(|(out, i)| {
        let mut wide = vec![0f32; size * row];
        for (c, plane) in images.image(i).chunks_exact(size * size).enumerate() {
            for (from, to) in plane.chunks_exact(size).zip(wide.chunks_exact_mut(row)) {
                for ((left, right, part), to) in places.iter().zip(to.chunks_exact_mut(images.channels)) {
                    let (left, right) = (from[*left] as f32, from[*right] as f32);
                    to[c] = left + (right - left) * part;
                }
            }
        }
        for ((upper, lower, part), out) in places.iter().zip(out.chunks_exact_mut(row)) {
            let (upper, lower) = (&wide[upper * row..][..row], &wide[lower * row..][..row]);
            for ((upper, lower), out) in upper.iter().zip(lower).zip(out) {
                *out = (upper + (lower - upper) * part - 128.0) / 128.0;
            }
        }
    });
}
