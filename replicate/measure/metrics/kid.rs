//! Kernel Inception Distance (Bińkowski et al. 2018): an unbiased MMD^2 with the polynomial kernel
//! k(x, y) = (<x, y>/d + 1)^3.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Features, mean_and_population_sd, widen};
use crate::rng::{Draws, Stream};

/// Computes the unbiased estimate of MMD^2: the kernel means over distinct pairs within each set,
/// minus twice the mean over all pairs between them. May be negative. NaN in a feature gives NaN.
/// Uses one thread and 8 bytes of memory for each pair.
///
/// # Panics
/// If the dimensions differ or either set has fewer than two rows.
pub fn mmd2_poly3(a: &Features, b: &Features) -> f64 {
    a.assert_same_dim(b);
    assert!(a.len() >= 2 && b.len() >= 2, "an unbiased MMD needs at least 2 rows in each set");
    let (m, n) = (a.len() as f64, b.len() as f64);
    let [wide_a, wide_b] = [a, b].map(|set| widen(&set.rows));
    let rows_a = MatRef::from_row_major_slice(&wide_a, a.len(), a.dim);
    let rows_b = MatRef::from_row_major_slice(&wide_b, b.len(), b.dim);
    let within = |rows: MatRef<f64>, n: f64| sum_within(rows) / (n * (n - 1.0));
    within(rows_a, m) + within(rows_b, n) - 2.0 * (sum_between(rows_a, rows_b) / (m * n))
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
        .into_par_iter()
        .map(|i| {
            let mut draws = stream.at(i as u64);
            let a = draw_subset(generated, subset_size, &mut draws);
            let b = draw_subset(reference, subset_size, &mut draws);
            mmd2_poly3(&a, &b)
        })
        .collect();
    mean_and_population_sd(&values)
}

/// Sums the kernel of all pairs of different rows.
fn sum_within(rows: MatRef<f64>) -> f64 {
    let (n, dim) = rows.shape();
    let mut products = Mat::zeros(n, n);
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(
        products.as_mut(),
        lower,
        Accum::Replace,
        rows,
        full,
        rows.transpose(),
        full,
        1.0,
        Par::Seq,
    );
    let mut sums = Sums::new(n, n);
    for i in 0..n {
        // The pairs of row i with the rows before it were added with those.
        let column = &mut products.col_as_slice_mut(i)[i..];
        column.iter_mut().for_each(|value| *value = kernel(*value, dim));
        sums.add_row(i, i, column);
        sums.add_column(i, i + 1, &column[1..]);
    }
    let diagonal: f64 = rows.row_iter().map(|row| kernel(row.iter().map(|v| v * v).sum(), dim)).sum();
    sums.total() - diagonal
}

/// Sums the kernel of all pairs of a row of `a` and a row of `b`.
fn sum_between(a: MatRef<f64>, b: MatRef<f64>) -> f64 {
    let (n, dim) = a.shape();
    let mut products = Mat::zeros(n, b.nrows());
    matmul(products.as_mut(), Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
    let mut sums = Sums::new(n, b.nrows());
    for j in 0..b.nrows() {
        let column = products.col_as_slice_mut(j);
        column.iter_mut().for_each(|value| *value = kernel(*value, dim));
        sums.add_column(j, 0, column);
    }
    sums.total()
}

/// Rows and columns of a block of [`Sums`].
const OUTER_BLOCK: usize = 128;
const INNER_BLOCK: usize = 512;

/// Sum of the values of a matrix, which have to come in order within each row. Each row has a sum for
/// every [`INNER_BLOCK`] columns. These are added for each [`OUTER_BLOCK`] rows, then all.
struct Sums {
    rows: usize,
    /// [block of columns][row]
    parts: Vec<f64>,
}

impl Sums {
    fn new(rows: usize, columns: usize) -> Sums {
        Sums { rows, parts: vec![0.0; rows * columns.div_ceil(INNER_BLOCK)] }
    }

    /// Adds the values of row `i` in the columns from `first` on.
    fn add_row(&mut self, i: usize, first: usize, values: &[f64]) {
        for (j, value) in (first..).zip(values) {
            self.parts[j / INNER_BLOCK * self.rows + i] += value;
        }
    }

    /// Adds the values of column `j` in the rows from `first` on.
    fn add_column(&mut self, j: usize, first: usize, values: &[f64]) {
        let parts = &mut self.parts[j / INNER_BLOCK * self.rows + first..];
        parts.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    fn total(&self) -> f64 {
        let block = |first: usize| -> f64 {
            let parts = self.parts.chunks(self.rows);
            parts.flat_map(|part| &part[first..self.rows.min(first + OUTER_BLOCK)]).sum()
        };
        (0..self.rows).step_by(OUTER_BLOCK).map(block).sum()
    }
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
