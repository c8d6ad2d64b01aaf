//! Improved precision and recall (Kynkäänniemi et al. 2019). The manifold of a set is the union of
//! balls around its points, each with the distance to the k-th nearest neighbour in the set as
//! radius.

use rayon::prelude::*;

use super::{Features, INNER_BLOCK, OUTER_BLOCK, inner_products, squared_norm};

/// Returns (precision, recall). Precision is the fraction of generated points on the reference's
/// manifold (quality); recall is the fraction of reference points on the generated manifold
/// (coverage, the detector of collapse). Balls are closed, and a point is not its own neighbour;
/// with k = 3 this is torch-fidelity's definition.
///
/// Both depend on the sizes of the sets: compare only at equal sizes and k. A NaN or infinite
/// feature gives (NaN, NaN).
///
/// # Panics
/// If the dimensions differ, k is 0, or either set has no more than k rows.
pub fn precision_recall(generated: &Features, reference: &Features, k: usize) -> (f64, f64) {
    generated.assert_same_dim(reference);
    let smaller = generated.len().min(reference.len());
    assert!(0 < k && k < smaller, "a set of {smaller} rows has no neighbour number {k}");
    if !generated.is_finite() || !reference.is_finite() {
        return (f64::NAN, f64::NAN);
    }
    (coverage(generated, reference, k), coverage(reference, generated, k))
}

/// Fraction of `points` on the manifold of `set`.
fn coverage(points: &Features, set: &Features, k: usize) -> f64 {
    let nearest = fold_distances(set, set, vec![f64::INFINITY; k], |nearest, point, other, distance| {
        if point != other && distance < nearest[k - 1] {
            let place = nearest.partition_point(|d| *d <= distance);
            nearest[place..].rotate_right(1);
            nearest[place] = distance;
        }
    });
    let covered = fold_distances(points, set, false, |covered, _, centre, distance| {
        *covered |= distance <= nearest[centre][k - 1];
    });
    covered.iter().filter(|c| **c).count() as f64 / points.len() as f64
}

/// Folds `start` for each point over (point, index in `set`, squared distance between them), in the
/// order of `set`.
fn fold_distances<S: Clone + Send + Sync>(
    points: &Features,
    set: &Features,
    start: S,
    fold: impl Fn(&mut S, usize, usize, f64) + Sync,
) -> Vec<S> {
    let dim = set.dim;
    let norms: Vec<f64> = (0..set.len()).map(|i| squared_norm(set.row(i))).collect();
    let mut states = vec![start; points.len()];
    let blocks = points.rows.par_chunks(OUTER_BLOCK * dim).zip(states.par_chunks_mut(OUTER_BLOCK));
    blocks.enumerate().for_each(|(b, (block, states))| {
        for (s, inner) in set.rows.chunks(INNER_BLOCK * dim).enumerate() {
            let products = inner_products(inner, block, dim);
            for (p, (state, products)) in states.iter_mut().zip(products.col_iter()).enumerate() {
                let norm = squared_norm(&block[p * dim..(p + 1) * dim]);
                for (i, product) in products.iter().enumerate() {
                    let other = s * INNER_BLOCK + i;
                    let scale = norm + norms[other];
                    let distance = scale - 2.0 * product;
                    // Equal points must have distance exactly 0: if a generator repeats one image,
                    // its balls have radius 0.
                    let noise = dim as f64 * f64::EPSILON * scale;
                    let distance = if distance <= noise { 0.0 } else { distance };
                    fold(state, b * OUTER_BLOCK + p, other, distance);
                }
            }
        }
    });
    states
}
