//! Finds the pairs of points of two sets that lie within a distance, without computing every
//! distance.
//!
//! One product of float32 rows bounds a distance from below. There are two such bounds: of the
//! projections to [`DIRECTIONS`] directions, with the length of the rest as one more coordinate,
//! and of the whole rows, where the first leaves too many pairs. They hold for any rounding and for
//! any orthonormal directions. Distances of the pairs that are left are computed in float64, so the
//! results are those of all distances.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Features, INNER_BLOCK, OUTER_BLOCK, widen};
use crate::rng::Stream;

/// Directions of the first bound: a few of those along which the points differ most.
const DIRECTIONS: usize = 127;
/// Fewer dimensions, or fewer pairs, do not pay for a projection.
const LEAST_DIM: usize = 4 * DIRECTIONS;
const LEAST_PAIRS: usize = 1 << 21;
/// Rows of each set that the directions are chosen by.
const SAMPLED: usize = 1024;
/// Distances that a block of points may compute with a bound before it takes the next: at the
/// start, and for each block of the other set. They take about as long as the next bound.
const CREDIT: [usize; 2] = [8192, 1024];
/// Pairs whose bounds are looked at together.
const TOGETHER: usize = 32;

/// A set of points with what bounds their distances.
pub struct Points<'a> {
    features: &'a Features,
    /// From the cheapest to the tightest.
    bounds: Vec<Bound<'a>>,
}

/// Rows whose distances are not larger than those of the points, up to the rounding.
struct Bound<'a> {
    dim: usize,
    rows: Cow<'a, [f32]>,
    squares: Vec<f64>,
}

impl Points<'_> {
    /// Prepares two sets that will be compared with each other and with themselves.
    pub fn pair<'a>(a: &'a Features, b: &'a Features) -> [Points<'a>; 2] {
        let project = a.dim >= LEAST_DIM && a.len().saturating_mul(b.len()) >= LEAST_PAIRS;
        let directions = project.then(|| directions(a, b));
        [a, b].map(|features| {
            let whole = Bound {
                dim: features.dim,
                rows: Cow::Borrowed(&features.rows),
                squares: features
                    .rows
                    .par_chunks(features.dim)
                    .map(|row| square(row.iter().map(|&v| v as f64)))
                    .collect(),
            };
            let projected = directions.as_ref().map(|(mean, basis)| projected(features, mean, basis));
            Points { features, bounds: projected.into_iter().chain([whole]).collect() }
        })
    }

    pub fn len(&self) -> usize {
        self.features.len()
    }
}

/// Returns a mean of both sets and orthonormal columns (dim x [`DIRECTIONS`]) near the first
/// principal directions of both.
fn directions(a: &Features, b: &Features) -> (Vec<f64>, Mat<f64>) {
    let dim = a.dim;
    let mut rows = Vec::new();
    for set in [a, b] {
        let n = set.len().min(SAMPLED);
        (0..n).for_each(|i| rows.extend(set.row(i * set.len() / n).iter().map(|&v| v as f64)));
    }
    let n = rows.len() / dim;
    let mut mean = vec![0.0; dim];
    rows.chunks(dim).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n as f64));
    rows.chunks_mut(dim).for_each(|row| row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m));
    let rows = MatRef::from_row_major_slice(&rows, n, dim);
    let drawn = Stream::new("precision and recall", "directions").normals(0, dim * DIRECTIONS);
    let mut basis = Mat::from_fn(dim, DIRECTIONS, |i, j| drawn[j * dim + i] as f64);
    // Subspace iteration: each product with the covariance turns the directions to the principal ones.
    for _ in 0..2 {
        let turned = rows.transpose() * (rows * &basis);
        basis = turned.qr().compute_thin_Q();
    }
    (mean, basis)
}

fn projected<'a>(features: &Features, mean: &[f64], basis: &Mat<f64>) -> Bound<'a> {
    let (dim, columns) = (features.dim, DIRECTIONS + 1);
    let mut rows = vec![0f32; features.len() * columns];
    let chunks = features.rows.par_chunks(OUTER_BLOCK * dim).zip(rows.par_chunks_mut(OUTER_BLOCK * columns));
    chunks.for_each(|(from, to)| {
        let mut from = widen(from);
        from.chunks_mut(dim).for_each(|row| row.iter_mut().zip(mean).for_each(|(v, m)| *v -= m));
        let n = from.len() / dim;
        let mut inside = Mat::<f64>::zeros(DIRECTIONS, n);
        let points = MatRef::from_column_major_slice(&from, dim, n);
        matmul(inside.as_mut(), Accum::Replace, basis.transpose(), points, 1.0, Par::Seq);
        for ((inside, from), to) in inside.col_iter().zip(from.chunks(dim)).zip(to.chunks_mut(columns)) {
            let rest = square(from.iter().copied()) - square(inside.iter().copied());
            to.iter_mut().zip(inside.iter()).for_each(|(to, v)| *to = *v as f32);
            to[DIRECTIONS] = rest.max(0.0).sqrt() as f32;
        }
    });
    let squares = rows.par_chunks(columns).map(|row| square(row.iter().map(|&v| v as f64))).collect();
    Bound { dim: columns, rows: Cow::Owned(rows), squares }
}

impl Bound<'_> {
    /// Share of the squares that no rounding exceeds: of the products in float32, of the rows, and
    /// of the comparison.
    fn slack(&self) -> f64 {
        (self.dim + 32) as f64 * f32::EPSILON as f64
    }

    /// Returns the least product of two rows whose points can be within `reach`, as a sum of two
    /// terms. This is the term of row `i`, with its part of the reach.
    fn term(&self, i: usize, reach: f64) -> f32 {
        let term = 0.5 * ((1.0 - self.slack()) * self.squares[i] - reach) - f32::MIN_POSITIVE as f64;
        term.min(f32::MAX as f64) as f32
    }

    /// Computes all products of a block of rows of `set` (rows) and of `self` (columns).
    fn products(&self, from: usize, set: &Bound, other: usize) -> Mat<f32> {
        let block = |bound: &'_ Bound, from: usize, most: usize| {
            let to = bound.squares.len().min(from + most);
            from * bound.dim..to * bound.dim
        };
        let (own, others) =
            (&self.rows[block(self, from, OUTER_BLOCK)], &set.rows[block(set, other, INNER_BLOCK)]);
        let (columns, rows) = (own.len() / self.dim, others.len() / self.dim);
        let mut products = Mat::zeros(rows, columns);
        matmul(
            products.as_mut(),
            Accum::Replace,
            MatRef::from_row_major_slice(others, rows, self.dim),
            MatRef::from_column_major_slice(own, self.dim, columns),
            1.0,
            Par::Seq,
        );
        products
    }
}

/// Calls `found` with the state of a point, the point, a point of `set` and their squared distance,
/// for all pairs whose squared distance is not above the sum of `reach` of the state at that time
/// and of the radius of the point of `set`; other pairs may come, too. A reach of minus infinity
/// ends the search for a point.
pub fn near<S: Send>(
    (points, states): (&Points, &mut [S]),
    (set, radii): (&Points, &[f64]),
    reach: impl Fn(&S) -> f64 + Sync,
    found: impl Fn(&mut S, usize, usize, f64) + Sync,
) {
    states.par_chunks_mut(OUTER_BLOCK).enumerate().for_each(|(block, states)| {
        let first = block * OUTER_BLOCK;
        let (mut level, mut credit) = (0, CREDIT[0]);
        for start in (0..set.len()).step_by(INNER_BLOCK) {
            let terms = |level: usize| -> Vec<f32> {
                let end = set.len().min(start + INNER_BLOCK);
                (start..end).map(|j| set.bounds[level].term(j, radii[j])).collect()
            };
            let products = |level: usize| points.bounds[level].products(first, &set.bounds[level], start);
            let (mut theirs, mut all) = (terms(level), products(level));
            credit += CREDIT[1];
            for (i, state) in states.iter_mut().enumerate() {
                let point = first + i;
                for at in (0..theirs.len()).step_by(TOGETHER) {
                    let limit = reach(state);
                    if limit == f64::NEG_INFINITY {
                        break;
                    }
                    if credit == 0 && level + 1 < points.bounds.len() {
                        level += 1;
                        (theirs, all) = (terms(level), products(level));
                    }
                    let end = theirs.len().min(at + TOGETHER);
                    let products = &all.col_as_slice(i)[at..end];
                    let ours = points.bounds[level].term(point, limit);
                    // Written so that NaN, from beyond the range of float32, stays.
                    let far = |(p, term): (&f32, &f32)| *p < ours + term;
                    if products.iter().zip(&theirs[at..end]).fold(true, |all, pair| all & far(pair)) {
                        continue;
                    }
                    for (j, product) in (at..end).zip(products) {
                        let ours = points.bounds[level].term(point, reach(state));
                        if *product < ours + theirs[j] {
                            continue;
                        }
                        let other = start + j;
                        let distance = squared_distance(points.features.row(point), set.features.row(other));
                        credit = credit.saturating_sub(1);
                        found(state, point, other, distance);
                    }
                }
            }
        }
    });
}

fn square(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

/// Sums in eight chains, which one instruction can take together.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const CHAINS: usize = 8;
    let mut sums = [0.0; CHAINS];
    let term = |a: &f32, b: &f32| (*a as f64 - *b as f64) * (*a as f64 - *b as f64);
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<CHAINS>(), b.as_chunks::<CHAINS>());
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += term(a, b));
    }
    sums.iter_mut().zip(last_a.iter().zip(last_b)).for_each(|(sum, (a, b))| *sum += term(a, b));
    sums.iter().sum()
}
