//! Inception Score (Salimans et al. 2016): high if the classifier is confident about each image and
//! the images spread evenly over its classes.

use rayon::prelude::*;

use super::{Features, mean_and_population_sd};

/// Computes exp of the mean KL(p(y|x) || p(y)) in each of `splits` contiguous parts, not shuffled.
/// Returns (mean, population standard deviation) over the parts. For CIFAR-10 the field uses the
/// 1008 bias-free Inception logits and 10 splits.
///
/// NaN in a logit gives NaN.
///
/// # Panics
/// If `splits` is 0 or greater than the number of rows.
pub fn inception_score(logits: &Features, splits: usize) -> (f64, f64) {
    let mut predictions = Predictions::new(logits.dim, logits.len(), splits);
    predictions.push(logits);
    predictions.score()
}

/// Computes [`inception_score`] of a stream of `n` rows of logits. The bits do not depend on the
/// chunks. Holds `splits` x classes numbers.
#[derive(Clone, Debug)]
pub struct Predictions {
    n: usize,
    seen: usize,
    splits: Vec<Split>,
}

/// Sums over one part.
#[derive(Clone, Debug)]
struct Split {
    rows: usize,
    /// Sum of p(y|x).
    marginal: Vec<f64>,
    /// Sum of the entropies of p(y|x).
    conditional: f64,
}

impl Predictions {
    /// Starts the sums for `n` rows.
    ///
    /// # Panics
    /// If `splits` is 0 or greater than `n`.
    pub fn new(classes: usize, n: usize, splits: usize) -> Predictions {
        assert!((1..=n).contains(&splits), "cannot split {n} images into {splits} parts");
        let split = |i: usize| Split {
            rows: (i + 1) * n / splits - i * n / splits,
            marginal: vec![0.0; classes],
            conditional: 0.0,
        };
        Predictions { n, seen: 0, splits: (0..splits).map(split).collect() }
    }

    /// Adds the next rows.
    ///
    /// # Panics
    /// If the number of classes differs, or if there are more than `n` rows in all.
    pub fn push(&mut self, logits: &Features) {
        assert_eq!(logits.dim, self.splits[0].marginal.len(), "logits of other classes");
        assert!(self.seen + logits.len() <= self.n, "more than {} rows of logits", self.n);
        let count = self.splits.len();
        // Bounds the memory of the predictions.
        for block in logits.rows.chunks(256 * logits.dim) {
            let predictions: Vec<_> = block
                .par_chunks(logits.dim)
                .map(|row| {
                    let prediction = softmax(row);
                    (entropy(&prediction), prediction)
                })
                .collect();
            for (entropy, prediction) in predictions {
                // Inverts i n / splits rounded down, the first row of part i.
                let split = &mut self.splits[((self.seen + 1) * count - 1) / self.n];
                split.conditional += entropy;
                split.marginal.iter_mut().zip(&prediction).for_each(|(sum, p)| *sum += p);
                self.seen += 1;
            }
        }
    }

    /// Returns (mean, population standard deviation) over the parts.
    ///
    /// # Panics
    /// Unless `n` rows were added.
    pub fn score(&self) -> (f64, f64) {
        assert_eq!(self.seen, self.n, "rows of logits");
        let scores: Vec<f64> = self.splits.iter().map(Split::score).collect();
        mean_and_population_sd(&scores)
    }

    /// Returns the score of all rows as one part.
    ///
    /// # Panics
    /// Unless `n` rows were added.
    pub fn undivided(&self) -> f64 {
        assert_eq!(self.seen, self.n, "rows of logits");
        let conditional = self.splits.iter().map(|split| split.conditional).sum();
        let mut all = Split { rows: self.n, conditional, marginal: self.splits[0].marginal.clone() };
        for split in &self.splits[1..] {
            all.marginal.iter_mut().zip(&split.marginal).for_each(|(sum, p)| *sum += p);
        }
        all.score()
    }
}

impl Split {
    /// Computes the score of the part. The mean KL is the entropy of the mean prediction minus the
    /// mean entropy of the predictions.
    fn score(&self) -> f64 {
        let n = self.rows as f64;
        let marginal: Vec<f64> = self.marginal.iter().map(|sum| sum / n).collect();
        libm::exp(entropy(&marginal) - self.conditional / n)
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &l| max.max(l as f64));
    let weights: Vec<f64> = logits.iter().map(|&l| libm::exp(l as f64 - max)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Entropy -sum p log p in nats, with 0 log 0 = 0.
pub(super) fn entropy(distribution: &[f64]) -> f64 {
    distribution.iter().filter(|p| **p != 0.0).map(|&p| -p * libm::log(p)).sum()
}
