//! Improved precision and recall (Kynkäänniemi et al. 2019). The manifold of a set is the union of
//! balls around its points, each with the distance to the k-th nearest neighbour in the set as
//! radius.

use super::Features;
use super::near::{Points, near};

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
    let [generated, reference] = Points::pair(generated, reference);
    (coverage(&generated, &reference, k), coverage(&reference, &generated, k))
}

/// Fraction of `points` on the manifold of `set`.
fn coverage(points: &Points, set: &Points, k: usize) -> f64 {
    let mut nearest = vec![vec![f64::INFINITY; k]; set.len()];
    let no_radii = vec![0.0; set.len()];
    near(
        (set, &mut nearest),
        (set, &no_radii),
        |nearest| nearest[k - 1],
        |nearest, point, other, distance| {
            if point != other && distance < nearest[k - 1] {
                let place = nearest.partition_point(|d| *d <= distance);
                nearest[place..].rotate_right(1);
                nearest[place] = distance;
            }
        },
    );
    let radii: Vec<f64> = nearest.iter().map(|nearest| nearest[k - 1]).collect();
    let mut covered = vec![false; points.len()];
    let reach = |covered: &bool| if *covered { f64::NEG_INFINITY } else { 0.0 };
    near((points, &mut covered), (set, &radii), reach, |covered, _, centre, distance| {
        *covered |= distance <= radii[centre];
    });
    covered.iter().filter(|c| **c).count() as f64 / points.len() as f64
}
