//! Inception Score (Salimans et al. 2016): how confident the classifier is about
//! each image, and how evenly the images spread over its classes.

use rayon::prelude::*;

use super::{Features, mean_and_population_sd};

/// exp of the mean KL(p(y|x) || p(y)) in each of `splits` contiguous parts, not
/// shuffled: (mean, population standard deviation) over the parts. For CIFAR-10
/// the field uses the 1008 bias-free Inception logits and 10 splits.
///
/// NaN in a logit gives NaN.
///
/// # Panics
/// If `splits` is 0 or greater than the number of rows.
pub fn inception_score(logits: &Features, splits: usize) -> (f64, f64) {
    let n = logits.len();
    assert!((1..=n).contains(&splits), "cannot split {n} images into {splits} parts");
    let scores: Vec<f64> =
        (0..splits).into_par_iter().map(|i| score(logits, i * n / splits..(i + 1) * n / splits)).collect();
    mean_and_population_sd(&scores)
}

/// The mean KL is the entropy of the mean prediction less the mean entropy of
/// the predictions.
fn score(logits: &Features, rows: std::ops::Range<usize>) -> f64 {
    let n = rows.len() as f64;
    let mut marginal = vec![0.0; logits.dim];
    let mut conditional = 0.0;
    for i in rows {
        let prediction = softmax(logits.row(i));
        conditional += entropy(&prediction);
        marginal.iter_mut().zip(&prediction).for_each(|(sum, p)| *sum += p);
    }
    marginal.iter_mut().for_each(|sum| *sum /= n);
    libm::exp(entropy(&marginal) - conditional / n)
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &l| max.max(l as f64));
    let weights: Vec<f64> = logits.iter().map(|&l| libm::exp(l as f64 - max)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// -sum p log p in nats, with 0 log 0 = 0.
pub(super) fn entropy(distribution: &[f64]) -> f64 {
    distribution.iter().filter(|p| **p != 0.0).map(|&p| -p * libm::log(p)).sum()
}
