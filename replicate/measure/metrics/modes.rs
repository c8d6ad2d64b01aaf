//! Modes that a generator covers, and the criterion of collapse.

use super::Features;
use super::inception_score::entropy;

/// A target class counts as covered if it has at least this fraction of the samples that a uniform
/// generator would give it.
pub const COVERED_SHARE: f64 = 0.10;

/// Classes and diversity of a set of generated images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modes {
    /// exp of the entropy of the histogram of predicted classes, over all columns of the logits: 1
    /// for one class, k for k equally frequent ones.
    pub effective_classes: f64,
    /// Number of target classes with at least [`COVERED_SHARE`] of n / targets samples.
    pub covered: usize,
    /// Mean Euclidean distance between the features of the disjoint pairs (i, i + n/2). It
    /// estimates the distance between two independent samples without bias, in time linear in n. 0
    /// if one image is repeated.
    pub diversity: f64,
}

/// Measures the modes of n samples from their `logits` (n x classes) and `features` (n x any). The
/// classes `0..targets` are those that the generator should make. The predicted class is the
/// argmax, the first one of equals.
///
/// A NaN logit gives NaN effective classes and no covered class; a NaN feature gives a NaN
/// diversity.
///
/// # Panics
/// If there are fewer than two samples, the numbers of logits and features differ, or `targets` is
/// 0 or exceeds the number of classes.
pub fn modes(logits: &Features, features: &Features, targets: usize) -> Modes {
    let (n, classes) = (logits.len(), logits.dim);
    assert!(n >= 2, "modes need at least 2 samples, there are {n}");
    assert_eq!(features.len(), n, "as many rows of features as of logits");
    assert!((1..=classes).contains(&targets), "{targets} target classes of {classes}");

    let mut histogram = vec![0usize; classes];
    for i in 0..n {
        histogram[argmax(logits.row(i))] += 1;
    }
    let known = !logits.rows.iter().any(|l| l.is_nan());
    let shares: Vec<f64> = histogram.iter().map(|&count| count as f64 / n as f64).collect();
    let least = COVERED_SHARE / targets as f64;
    let distances = (0..n / 2).map(|i| distance(features.row(i), features.row(i + n / 2)));
    Modes {
        effective_classes: if known { libm::exp(entropy(&shares)) } else { f64::NAN },
        covered: if known { shares[..targets].iter().filter(|share| **share >= least).count() } else { 0 },
        diversity: distances.sum::<f64>() / (n / 2) as f64,
    }
}

fn argmax(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (a as f64 - b as f64) * (a as f64 - b as f64)).sum::<f64>().sqrt()
}

/// Collapsed if recall is below this and there are fewer effective classes than
/// [`COLLAPSED_CLASSES`] of the target classes.
pub const COLLAPSED_RECALL: f64 = 0.10;
/// See [`COLLAPSED_RECALL`].
pub const COLLAPSED_CLASSES: f64 = 0.50;
/// Degraded if recall is below this or there are fewer effective classes than [`DEGRADED_CLASSES`]
/// of the target classes.
pub const DEGRADED_RECALL: f64 = 0.50;
/// See [`DEGRADED_RECALL`].
pub const DEGRADED_CLASSES: f64 = 0.85;

/// State of a generator in the tables. It is a result, never an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// The generator misses almost all of the data and makes few of the classes.
    Collapsed,
    /// It misses half of the data, or makes some classes too rarely.
    Degraded,
    Healthy,
}

/// Values of the states in the scores.
const HEALTHY: f64 = 0.0;
const DEGRADED: f64 = 1.0;
/// Value of a collapsed state in the scores.
pub const COLLAPSED: f64 = 2.0;
/// Names of the states.
pub const STATES: [(&str, f64); 3] = [("healthy", HEALTHY), ("degraded", DEGRADED), ("collapsed", COLLAPSED)];

impl Collapse {
    /// Returns the value of the state in the scores.
    pub fn code(self) -> f64 {
        match self {
            Collapse::Healthy => HEALTHY,
            Collapse::Degraded => DEGRADED,
            Collapse::Collapsed => COLLAPSED,
        }
    }
}

/// Decides the state of a generator. The criterion is ours: the paper says "collapsed" without one.
/// The thresholds were set with recall at k = 5, 2048 samples on either side, and the effective
/// classes of [`modes`]. `classes` is the number of target classes.
///
/// Both conditions are needed: blur or noise alone can ruin recall but keeps the classes. An
/// untrained network also meets the criterion, so the caller must know whether it was trained long
/// enough.
///
/// # Panics
/// If a value is NaN, which is divergence and not collapse.
pub fn collapse(recall: f64, effective_classes: f64, classes: usize) -> Collapse {
    assert!(!recall.is_nan() && !effective_classes.is_nan(), "NaN is no measure of collapse");
    let share = effective_classes / classes as f64;
    if recall < COLLAPSED_RECALL && share < COLLAPSED_CLASSES {
        Collapse::Collapsed
    } else if recall < DEGRADED_RECALL || share < DEGRADED_CLASSES {
        Collapse::Degraded
    } else {
        Collapse::Healthy
    }
}
