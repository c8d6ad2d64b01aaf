//! Metrics of features. This module knows no tensors, networks or experiments: the features decide
//! whether [`frechet`] gives an FID (Inception-v3) or an FD (any other network).
//!
//! All arithmetic is float64 in an order that depends neither on the number of threads nor on the
//! batches of the features: on one machine the same features give the same bits. Between machines
//! the last bits may differ, because the linear algebra chooses kernels for the CPU.

pub mod frechet;
pub mod inception_score;
pub mod kid;
pub mod mapping;
pub mod modes;
mod near;
pub mod precision_recall;
mod singular;

/// Row-major n x `dim` array of network features or logits, one row for each image.
#[derive(Clone, Debug)]
pub struct Features {
    pub dim: usize,
    pub rows: Vec<f32>,
}

impl Features {
    /// Takes values row by row.
    ///
    /// # Panics
    /// If `dim` is 0 or `rows` is not a whole number of rows.
    pub fn new(dim: usize, rows: Vec<f32>) -> Features {
        assert!(dim > 0, "features need at least one dimension");
        assert!(rows.len() % dim == 0, "{} values are no whole number of rows of {dim}", rows.len());
        Features { dim, rows }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Values of row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.dim..(i + 1) * self.dim]
    }

    fn assert_same_dim(&self, other: &Features) {
        assert_eq!(self.dim, other.dim, "the two sets of features have different dimensions");
    }

    fn is_finite(&self) -> bool {
        self.rows.iter().all(|v| v.is_finite())
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

fn mean_and_population_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, variance.sqrt())
}
