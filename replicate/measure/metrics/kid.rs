//! Kernel Inception Distance (Bińkowski et al. 2018): an unbiased MMD^2 with the polynomial kernel
//! k(x, y) = (<x, y>/d + 1)^3.

use rayon::prelude::*;

use super::{Features, INNER_BLOCK, OUTER_BLOCK, inner_products, mean_and_population_sd, squared_norm};
use crate::rng::{Draws, Stream};

/// Computes the unbiased estimate of MMD^2: the kernel means over distinct pairs within each set,
/// minus twice the mean over all pairs between them. May be negative. NaN in a feature gives NaN.
///
/// # Panics
/// If the dimensions differ or either set has fewer than two rows.
pub fn mmd2_poly3(a: &Features, b: &Features) -> f64 {
    a.assert_same_dim(b);
    assert!(a.len() >= 2 && b.len() >= 2, "an unbiased MMD needs at least 2 rows in each set");
    let between = kernel_sum(a, b) / (a.len() as f64 * b.len() as f64);
    mean_within(a) + mean_within(b) - 2.0 * between
}

/// Returns mean and population standard deviation of [`mmd2_poly3`] over `subsets` pairs of random
/// subsets, drawn without replacement. Subset i uses `stream.at(i)`.
///
/// # Panics
/// If `subsets` is 0 or either set is smaller than `subset_size`.
pub fn kid(
    generated: &Features,
    reference: &Features,
    subsets: usize,
    subset_size: usize,
    stream: &Stream,
) -> (f64, f64) {
    assert!(subsets > 0, "KID needs at least one subset");
    let values: Vec<f64> = (0..subsets)
        .map(|i| {
            let mut draws = stream.at(i as u64);
            let a = draw_subset(generated, subset_size, &mut draws);
            let b = draw_subset(reference, subset_size, &mut draws);
            mmd2_poly3(&a, &b)
        })
        .collect();
    mean_and_population_sd(&values)
}

fn mean_within(set: &Features) -> f64 {
    let n = set.len() as f64;
    let diagonal: f64 = (0..set.len()).map(|i| kernel(squared_norm(set.row(i)), set.dim)).sum();
    (kernel_sum(set, set) - diagonal) / (n * (n - 1.0))
}

fn kernel_sum(a: &Features, b: &Features) -> f64 {
    let dim = a.dim;
    let sums: Vec<f64> = a
        .rows
        .par_chunks(OUTER_BLOCK * dim)
        .map(|outer| {
            let mut sum = 0.0;
            for inner in b.rows.chunks(INNER_BLOCK * dim) {
                let products = inner_products(inner, outer, dim);
                for column in products.col_iter() {
                    sum += column.iter().map(|&product| kernel(product, dim)).sum::<f64>();
                }
            }
            sum
        })
        .collect();
    sums.iter().sum()
}

fn kernel(inner_product: f64, dim: usize) -> f64 {
    let root = inner_product / dim as f64 + 1.0;
    root * root * root
}

/// Draws the first `size` elements of a Fisher-Yates shuffle.
fn draw_subset(set: &Features, size: usize, draws: &mut Draws) -> Features {
    let n = set.len();
    assert!(size <= n, "cannot draw {size} of {n} rows without replacement");
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..size {
        order.swap(i, i + draws.below(n - i));
    }
    let rows = order[..size].iter().flat_map(|&i| set.row(i)).copied().collect();
    Features::new(set.dim, rows)
}
