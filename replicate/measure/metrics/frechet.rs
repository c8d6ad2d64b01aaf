//! Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017), with the
//! statistics of EDM's `fid.py`: float64 sums, covariance over N - 1.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, svd};
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Features, singular, widen};
use crate::error::{Error, Result};

/// Rounding of covariances whose sums are of float32, or better, relative to the largest entry. An
/// eigenvalue below minus this times the largest is not a rounding error.
pub const SINGLE: f64 = 1e-6;

/// Pivots above this times the rounding error are certainly not rounding errors.
const FAR_FROM_SINGULAR: f64 = 1e3;

/// Singular values of fewer rows or columns are computed in one step, which is as fast there. The
/// bits of the two ways differ, and the golden values are of small features.
const SMALL: usize = 512;

/// Columns of a factor that one task multiplies.
const TILE: usize = 128;

/// Samples whose outer products are added in one pass over the sums.
const BLOCK: usize = 64;

/// Running sums of a stream of features f: N, sum f, and sum f f'.
///
/// Every entry is summed in the order of the samples, and the product of two float32 numbers is
/// exact in float64. So the bits do not depend on the chunks, the threads or fused instructions.
#[derive(Clone, Debug)]
pub struct Moments {
    dim: usize,
    count: usize,
    sum: Vec<f64>,
    /// dim x dim, row-major; only the upper triangle is valid.
    products: Vec<f64>,
    /// Sample and dimension of the first value that is NaN or infinite.
    non_finite: Option<(usize, usize)>,
}

impl Moments {
    /// Starts the sums of features with `dim` dimensions.
    pub fn new(dim: usize) -> Moments {
        Moments { dim, count: 0, sum: vec![0.0; dim], products: vec![0.0; dim * dim], non_finite: None }
    }

    /// Adds the samples of one chunk.
    ///
    /// # Panics
    /// If `features` has another dimension.
    pub fn push(&mut self, features: &Features) {
        let dim = self.dim;
        assert_eq!(
            features.dim, dim,
            "features of dimension {} for moments of dimension {dim}",
            features.dim
        );
        if self.non_finite.is_none() {
            let position = features.rows.iter().position(|v| !v.is_finite());
            self.non_finite = position.map(|p| (self.count + p / dim, p % dim));
        }
        self.count += features.len();
        for block in features.rows.chunks(BLOCK * dim) {
            let block = widen(block);
            for sample in block.chunks_exact(dim) {
                self.sum.iter_mut().zip(sample).for_each(|(sum, v)| *sum += v);
            }
            self.products
                .par_chunks_mut(dim)
                .enumerate()
                .for_each(|(i, row)| add_products(&mut row[i..], i, &block, dim));
        }
    }

    /// Number of samples, N.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Mean (`dim`); NaN if there are no samples.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count as f64).collect()
    }

    /// Covariance (sum f f' - N mu mu') / (N - 1), `dim` x `dim`, row-major and exactly symmetric
    /// (EDM, our reading). Not finite with fewer than two samples.
    pub fn covariance(&self) -> Vec<f64> {
        let (dim, n, mean) = (self.dim, self.count as f64, self.mean());
        let mut covariance = vec![0.0; dim * dim];
        for i in 0..dim {
            for j in i..dim {
                let value = (self.products[i * dim + j] - n * mean[i] * mean[j]) / (n - 1.0);
                covariance[i * dim + j] = value;
                covariance[j * dim + i] = value;
            }
        }
        covariance
    }

    /// Factors the covariance for [`distance`]; the result can be used for any number of distances.
    ///
    /// # Errors
    /// [`Error::Run`] if there are fewer than two samples or a NaN or infinite feature, or if a
    /// decomposition does not converge.
    pub fn factor(&self) -> Result<Factor> {
        self.check("given")?;
        Factor::new(self.mean(), &self.covariance())
    }

    fn check(&self, which: &str) -> Result<()> {
        if self.count < 2 {
            return Err(Error::Run(format!(
                "the Fréchet distance needs at least 2 samples in each set; the {which} set has {}",
                self.count
            )));
        }
        if let Some((sample, dimension)) = self.non_finite {
            return Err(Error::Run(format!(
                "the Fréchet distance needs finite features; in the {which} set, dimension {dimension} of \
                 sample {sample} is NaN or infinite"
            )));
        }
        Ok(())
    }
}

/// Adds x_i x_j, j = i.., of every sample x of the block to `row`.
fn add_products(row: &mut [f64], i: usize, block: &[f64], dim: usize) {
    // Four samples at a time save three quarters of the traffic on `row`. The additions keep the
    // order of one at a time.
    let mut groups = block.chunks_exact(4 * dim);
    for group in &mut groups {
        let (first, second) = group.split_at(2 * dim);
        let ((a, b), (c, d)) = (first.split_at(dim), second.split_at(dim));
        let samples = a[i..].iter().zip(&b[i..]).zip(c[i..].iter().zip(&d[i..]));
        for (sum, ((xa, xb), (xc, xd))) in row.iter_mut().zip(samples) {
            *sum = *sum + a[i] * xa + b[i] * xb + c[i] * xc + d[i] * xd;
        }
    }
    for sample in groups.remainder().chunks_exact(dim) {
        row.iter_mut().zip(&sample[i..]).for_each(|(sum, x)| *sum += sample[i] * x);
    }
}

/// Computes |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), never negative.
///
/// # Errors
/// [`Error::Run`] if either set has fewer than two samples or a NaN or infinite feature, the
/// dimensions differ, or a decomposition does not converge.
pub fn frechet_distance(a: &Moments, b: &Moments) -> Result<f64> {
    a.check("first")?;
    b.check("second")?;
    same_dim(a.dim, b.dim)?;
    let (a, b) = rayon::join(|| a.factor(), || b.factor());
    distance(&a?, &b?)
}

/// Computes [`frechet_distance`] from covariances that are already factored, with the same bits.
///
/// With S = F F' the last trace is the sum of the singular values of F_a' F_b, for any choice of
/// factors. F is Cholesky's factor if the covariance is far from singular; otherwise U L^(1/2) of
/// the symmetric eigen-decomposition, without the eigenvalues that are zero up to rounding. The
/// singular values are the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), but their error is
/// of the size of the rounding instead of its square root. That square root makes a matrix square
/// root unreliable for a singular covariance.
///
/// A covariance from a file of lower precision has negative eigenvalues. Then the trace is the sum
/// of the real parts of the roots of the eigenvalues of S_a S_b, as in EDM's `fid.py`.
///
/// # Errors
/// [`Error::Run`] if the dimensions differ, or if a decomposition does not converge.
pub fn distance(a: &Factor, b: &Factor) -> Result<f64> {
    same_dim(a.dim(), b.dim())?;
    let shift: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b) * (a - b)).sum();
    Ok((shift + a.trace + b.trace - 2.0 * a.overlap(b)?).max(0.0))
}

fn same_dim(a: usize, b: usize) -> Result<()> {
    match a == b {
        true => Ok(()),
        false => Err(Error::Run(format!(
            "the Fréchet distance needs features of one network; the sets have dimensions {a} and {b}"
        ))),
    }
}

/// A Gaussian whose covariance is given by its factor F, dim x rank.
#[derive(Clone, Debug)]
pub struct Factor {
    mean: Vec<f64>,
    trace: f64,
    factor: Mat<f64>,
    /// The first columns f of F of which the covariance has -f f'.
    negative: usize,
    /// True if there are zeros above the diagonal of F.
    triangular: bool,
}

impl Factor {
    /// Factors a covariance whose sums are of float32, or better, as [`Factor::rounded`].
    ///
    /// # Errors
    /// Those of [`Factor::rounded`].
    pub fn new(mean: Vec<f64>, covariance: &[f64]) -> Result<Factor> {
        Factor::rounded(mean, covariance, SINGLE)
    }

    /// Factors a symmetric covariance, row-major, of a rounding that is relative to its largest
    /// entry. Takes O(dim^3) time.
    ///
    /// # Errors
    /// [`Error::Run`] if an eigenvalue is negative beyond rounding, or if the decomposition does
    /// not converge.
    ///
    /// # Panics
    /// If `covariance` is not dim x dim, or if dim is 0.
    pub fn rounded(mean: Vec<f64>, covariance: &[f64], entries: f64) -> Result<Factor> {
        let dim = mean.len();
        let trace: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        let mean_square: f64 = mean.iter().map(|m| m * m).sum();
        let rounding = dim as f64 * f64::EPSILON * (trace + mean_square);
        if let Some(factor) = cholesky(covariance, dim, FAR_FROM_SINGULAR * rounding) {
            return Ok(Factor { mean, trace, factor, negative: 0, triangular: true });
        }
        let mut values = Diag::zeros(dim);
        let mut vectors = Mat::zeros(dim, dim);
        let scratch = evd::self_adjoint_evd_scratch::<f64>(
            dim,
            evd::ComputeEigenvectors::Yes,
            Par::Seq,
            Default::default(),
        );
        evd::self_adjoint_evd(
            MatRef::from_row_major_slice(covariance, dim, dim),
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .map_err(|e| not_converged("eigen-decomposition of a covariance", e))?;

        // Rounding error of the subtraction in the covariance. An eigenvalue below it is noise
        // around zero, and its root would be far above the noise.
        let largest = values[dim - 1];
        let noise = dim as f64 * f64::EPSILON * (largest + mean_square);
        // The sums of many identical samples carry a larger error than one subtraction.
        if values[0] < -(FAR_FROM_SINGULAR * noise).max(entries * largest) {
            return Err(Error::Run(format!(
                "the Fréchet distance needs covariances; a matrix with the eigenvalue {:e} is none",
                values[0]
            )));
        }
        let first = (0..dim).find(|&i| values[i] > noise).unwrap_or(dim);
        let negative = (0..dim).take_while(|&i| values[i] < -FAR_FROM_SINGULAR * noise).count();
        let kept: Vec<usize> = (0..negative).chain(first..dim).collect();
        let factor =
            Mat::from_fn(dim, kept.len(), |i, j| vectors[(i, kept[j])] * values[kept[j]].abs().sqrt());
        Ok(Factor { mean, trace, factor, negative, triangular: false })
    }

    /// Number of dimensions.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// Computes tr (S_a S_b)^(1/2).
    fn overlap(&self, other: &Factor) -> Result<f64> {
        const WHAT: &str = "singular values of the product of two covariance roots";
        let (rows, columns) = (self.factor.ncols(), other.factor.ncols());
        if rows.min(columns) >= SMALL && self.negative + other.negative == 0 {
            return singular::sum(self.product(other)).ok_or_else(|| not_converged(WHAT, "too many steps"));
        }
        let mut product = Mat::zeros(rows, columns);
        matmul(product.as_mut(), Accum::Replace, self.factor.transpose(), &other.factor, 1.0, Par::Seq);
        if self.negative + other.negative > 0 {
            return signed_overlap(&product, self.negative, other.negative);
        }
        let mut values = Diag::zeros(rows.min(columns));
        let (no, params) = (svd::ComputeSvdVectors::No, Default::default());
        let scratch = svd::svd_scratch::<f64>(rows, columns, no, no, Par::Seq, params);
        svd::svd(
            product.as_ref(),
            values.as_mut(),
            None,
            None,
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            params,
        )
        .map_err(|e| not_converged(WHAT, e))?;
        Ok((0..values.dim()).map(|i| values[i]).sum())
    }

    /// Computes F_a' F_b on all threads, without the zeros of triangles.
    fn product(&self, other: &Factor) -> Mat<f64> {
        let (rows, columns) = (self.factor.ncols(), other.factor.ncols());
        let zeros = |factor: &Factor, column: usize| if factor.triangular { column } else { 0 };
        let mut product = Mat::zeros(rows, columns);
        let tiles = singular::columns(product.as_mut(), TILE);
        tiles.into_par_iter().enumerate().for_each(|(t, mut tile)| {
            let left = t * TILE..t * TILE + tile.ncols();
            for top in (0..rows).step_by(TILE) {
                let down = top..rows.min(top + TILE);
                let from = zeros(self, top).max(zeros(other, left.start));
                matmul(
                    tile.rb_mut().get_mut(down.clone(), ..),
                    Accum::Replace,
                    self.factor.get(from.., down).transpose(),
                    other.factor.get(from.., left.clone()),
                    1.0,
                    Par::Seq,
                );
            }
        });
        product
    }
}

/// Sums the real parts of the roots of the eigenvalues of D_a P D_b P', which are those of S_a S_b
/// for P = F_a' F_b, where D has -1 for the negative columns of F and 1 for the others.
fn signed_overlap(product: &Mat<f64>, negative_rows: usize, negative_columns: usize) -> Result<f64> {
    let (rows, columns) = (product.nrows(), product.ncols());
    let sign = |negative: bool, value: f64| if negative { -value } else { value };
    let signed = Mat::from_fn(rows, columns, |i, j| {
        sign((i < negative_rows) != (j < negative_columns), product[(i, j)])
    });
    let mut matrix = Mat::zeros(rows, rows);
    matmul(matrix.as_mut(), Accum::Replace, &signed, product.transpose(), 1.0, Par::Seq);
    let (mut real, mut imaginary) = (Diag::zeros(rows), Diag::zeros(rows));
    let (no, params) = (evd::ComputeEigenvectors::No, Default::default());
    let scratch = evd::evd_scratch::<f64>(rows, no, no, Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let (re, im) = (real.as_mut(), imaginary.as_mut());
    evd::evd_real(matrix.as_ref(), re, im, None, None, Par::Seq, stack, params)
        .map_err(|e| not_converged("eigenvalues of the product of two covariances", e))?;
    let root = |i: usize| ((real[i].hypot(imaginary[i]) + real[i]) / 2.0).max(0.0).sqrt();
    Ok((0..rows).map(root).sum())
}

/// Returns the lower triangle L with S = L L', or `None` if a pivot is not above `least`. The
/// smallest eigenvalue can be smaller than the smallest pivot, by a factor of up to the dimension.
fn cholesky(covariance: &[f64], dim: usize, least: f64) -> Option<Mat<f64>> {
    let mut l = Mat::from_fn(dim, dim, |i, j| covariance[j * dim + i]);
    let scratch = llt::factor::cholesky_in_place_scratch::<f64>(dim, Par::Seq, Default::default());
    llt::factor::cholesky_in_place(
        l.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    let far = (0..dim).all(|i| l[(i, i)] * l[(i, i)] > least);
    // The factorisation leaves arbitrary values above the diagonal.
    far.then(|| Mat::from_fn(dim, dim, |i, j| if i >= j { l[(i, j)] } else { 0.0 }))
}

fn not_converged(what: &str, error: impl std::fmt::Debug) -> Error {
    Error::Run(format!("the Fréchet distance failed: {what}: {error:?}"))
}
