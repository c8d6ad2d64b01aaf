//! Improved precision and recall (Kynkäänniemi et al. 2019). The manifold of a set is the union of
//! balls around its points, each with the distance to the k-th nearest neighbour in the set as
//! radius.

use std::sync::Mutex;

use super::Features;
use super::near::{Points, Side, between, within};

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
    let radii = [&generated, &reference].map(|set| radii(set, k));
    let states =
        [&generated, &reference].map(|set| (0..set.len()).map(|_| Mutex::new(false)).collect::<Vec<_>>());
    let side = |points, i: usize| Side { points, states: &states[i], radii: &radii[i] };
    let reach = |covered: &bool| if *covered { f64::NEG_INFINITY } else { 0.0 };
    between(&side(&generated, 0), &side(&reference, 1), reach, |covered, radius, distance| {
        *covered |= distance <= radius;
    });
    let share = |states: Vec<Mutex<bool>>| {
        let n = states.len() as f64;
        known(states).filter(|covered| *covered).count() as f64 / n
    };
    states.map(share).into()
}

/// Squared distance of each point to its `k`-th nearest neighbour in the set.
fn radii(points: &Points, k: usize) -> Vec<f64> {
    let nearest: Vec<_> = (0..points.len()).map(|_| Mutex::new(vec![f64::INFINITY; k])).collect();
    within(
        points,
        &nearest,
        |nearest| nearest[k - 1],
        |nearest, _, distance| {
            if distance < nearest[k - 1] {
                let place = nearest.partition_point(|d| *d <= distance);
                nearest[place..].rotate_right(1);
                nearest[place] = distance;
            }
        },
    );
    known(nearest).map(|nearest| nearest[k - 1]).collect()
}

/// Takes states out of their locks.
fn known<S>(states: Vec<Mutex<S>>) -> impl Iterator<Item = S> {
    states.into_iter().map(|state| state.into_inner().expect("no thread panics while it holds a state"))
}
