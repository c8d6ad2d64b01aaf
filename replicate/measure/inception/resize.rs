//! Preprocessing of the FID network: TensorFlow 1's bilinear resize to 299 x 299, then
//! (x - 128) / 128.

use crate::data::Images;
use rayon::prelude::*;
use std::ops::Range;

/// Height and width of the network's input.
pub const SIDE: usize = 299;

/// Writes the images in `range` to `resized` as (n, 299, 299, channels) values.
///
/// Output pixel i samples input position i * size / 299, so corners are aligned, not centres. This
/// is in float32, as in TensorFlow 1. Beyond the last pixel the last one is repeated.
///
/// # Panics
/// If the range exceeds the images, or if `resized` has another size.
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
