//! Finds the pairs of points of two sets that lie within a distance, without computing every
//! distance.
//!
//! One product of float32 rows bounds a distance from below. There are two such bounds: of the
//! projections to [`DIRECTIONS`] directions, with the length of the rest as one more coordinate,
//! and of the whole rows, where the first leaves too many pairs. They hold for any rounding and for
//! any orthonormal directions. Distances of the pairs that are left are computed in float64, so the
//! results are those of all distances.
//!
//! A pair is looked at once, for both of its points.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use faer::linalg::matmul::matmul;
use faer::traits::pulp::{Arch, Simd, WithSimd};
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Features, widen};
use crate::network::cpu::{Dense, Epilogue, Panels, product};
use crate::rng::Stream;

/// Points of one set and of the other in a block of products. The columns are packed once for all
/// rows; with 2048 dimensions they take 2 MiB.
const ROWS: usize = 128;
const COLUMNS: usize = 256;

/// Directions of the first bound: a few of those along which the points differ most.
const DIRECTIONS: usize = 127;
/// Fewer dimensions, or fewer pairs, do not pay for a projection.
const LEAST_DIM: usize = 4 * DIRECTIONS;
const LEAST_PAIRS: usize = 1 << 21;
/// Rows of each set that the directions are chosen by.
const SAMPLED: usize = 1024;
/// Distances that a block of columns may compute with a bound before it takes the next: at the
/// start, and for each block of rows. They take about as long as the next bound.
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

    /// Number of points.
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
        let transposed = rows.transpose() * (rows * &basis);
        basis = transposed.qr().compute_thin_Q();
    }
    (mean, basis)
}

fn projected<'a>(features: &Features, mean: &[f64], basis: &Mat<f64>) -> Bound<'a> {
    let (dim, columns) = (features.dim, DIRECTIONS + 1);
    let mut rows = vec![0f32; features.len() * columns];
    let chunks = features.rows.par_chunks(ROWS * dim).zip(rows.par_chunks_mut(ROWS * columns));
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
    #[inline]
    fn term(&self, i: usize, reach: f64) -> f32 {
        let term = 0.5 * ((1.0 - self.slack()) * self.squares[i] - reach) - f32::MIN_POSITIVE as f64;
        term.min(f32::MAX as f64) as f32
    }

    /// Values of some of the rows.
    fn values(&self, range: Range<usize>) -> &[f32] {
        &self.rows[range.start * self.dim..range.end * self.dim]
    }
}

/// Points that are compared with those of another side, or with each other.
pub struct Side<'a, S> {
    pub points: &'a Points<'a>,
    /// What is known of each point.
    pub states: &'a [Mutex<S>],
    /// Squared distance within which each point is of interest to every point of the other side.
    pub radii: &'a [f64],
}

impl<S> Side<'_, S> {
    fn state(&self, point: usize) -> MutexGuard<'_, S> {
        self.states[point].lock().expect("no thread panics while it holds a state")
    }
}

/// Calls `found` for both points of a pair, one of each side: with the state of the point, the
/// radius of the other and their squared distance. The calls for a point cover all pairs whose
/// squared distance is not above the sum of `reach` of the state at that time and of the radius;
/// other pairs may come, too, and the order depends on the threads. A reach of minus infinity ends
/// the search for a point.
pub fn between<S: Send>(
    a: &Side<S>,
    b: &Side<S>,
    reach: impl Fn(&S) -> f64 + Sync,
    found: impl Fn(&mut S, f64, f64) + Sync,
) {
    search(a, b, |_| 0, reach, found);
}

/// Does what [`between`] does for the pairs of different points of one set, with radii of 0.
pub fn within<S: Send>(
    points: &Points,
    states: &[Mutex<S>],
    reach: impl Fn(&S) -> f64 + Sync,
    found: impl Fn(&mut S, f64, f64) + Sync,
) {
    let side = Side { points, states, radii: &vec![0.0; points.len()] };
    search(&side, &side, |column| column + 1, reach, found);
}

/// Searches the pairs of each column with the rows from `first(column)` on.
fn search<S: Send>(
    rows: &Side<S>,
    columns: &Side<S>,
    first: impl Fn(usize) -> usize + Sync,
    reach: impl Fn(&S) -> f64 + Sync,
    found: impl Fn(&mut S, f64, f64) + Sync,
) {
    let (count, levels) = (rows.points.len(), rows.points.bounds.len());
    let blocks = (0..columns.points.len().div_ceil(COLUMNS)).into_par_iter().with_max_len(1);
    blocks.for_each(|block| {
        let from = block * COLUMNS;
        let to = columns.points.len().min(from + COLUMNS);
        let (mut block, mut credit) = (Block::new(rows, columns, &reach, from..to), CREDIT[0]);
        for start in (first(from)..count).step_by(ROWS) {
            let range = start..count.min(start + ROWS);
            block.multiply(range.clone());
            credit += CREDIT[1];
            for row in range.clone() {
                let mut ours = block.terms(rows, row);
                for at in (0..to - from).step_by(TOGETHER) {
                    if credit == 0 && block.level + 1 < levels {
                        block.tighten();
                        block.multiply(range.clone());
                        ours = block.terms(rows, row);
                    }
                    let together = at..(to - from).min(at + TOGETHER);
                    if block.far(row - start, together.clone(), ours) {
                        continue;
                    }
                    for i in together {
                        let column = from + i;
                        if row < first(column) || block.far(row - start, i..i + 1, ours) {
                            continue;
                        }
                        let pair = [rows.points.features.row(row), columns.points.features.row(column)];
                        let distance = Arch::new().dispatch(SquaredDistance(pair));
                        credit = credit.saturating_sub(1);
                        found(&mut rows.state(row), columns.radii[column], distance);
                        found(&mut columns.state(column), rows.radii[row], distance);
                        ours = block.terms(rows, row);
                        block.update(i);
                    }
                }
            }
        }
    });
}

fn packed(points: &Points, level: usize, range: Range<usize>) -> Panels {
    let bound = &points.bounds[level];
    Panels::transposed(bound.values(range), bound.dim)
}

/// A block of columns and its products with a block of rows, by one of the bounds.
struct Block<'a, S, F> {
    rows: &'a Side<'a, S>,
    columns: &'a Side<'a, S>,
    reach: &'a F,
    range: Range<usize>,
    level: usize,
    panels: Panels,
    products: Vec<f32>,
    /// Terms of the columns: with their radii, and with their own reach.
    theirs: [Vec<f32>; 2],
}

impl<'a, S, F: Fn(&S) -> f64> Block<'a, S, F> {
    fn new(rows: &'a Side<S>, columns: &'a Side<S>, reach: &'a F, range: Range<usize>) -> Self {
        let panels = packed(columns.points, 0, range.clone());
        let (products, theirs) = (vec![0.0; ROWS * COLUMNS], [(); 2].map(|_| vec![0.0; range.len()]));
        Block { rows, columns, reach, range, level: 0, panels, products, theirs }
    }

    /// Takes the next bound.
    fn tighten(&mut self) {
        self.level += 1;
        self.panels = packed(self.columns.points, self.level, self.range.clone());
    }

    /// Multiplies with these rows.
    fn multiply(&mut self, rows: Range<usize>) {
        let bound = &self.rows.points.bounds[self.level];
        let rows = Dense { values: bound.values(rows), length: bound.dim };
        product(rows, &self.panels, Epilogue::default(), &mut self.products, COLUMNS);
        (0..self.range.len()).for_each(|i| self.update(i));
    }

    /// Returns the terms of a point of `side`, see [`Bound::term`]: with its own reach, and with its
    /// radius, which is the other's.
    fn terms(&self, side: &Side<S>, point: usize) -> [f32; 2] {
        let bound = &side.points.bounds[self.level];
        [(self.reach)(&side.state(point)), side.radii[point]].map(|reach| bound.term(point, reach))
    }

    /// Computes the terms of one of the columns.
    fn update(&mut self, column: usize) {
        let [own, radius] = self.terms(self.columns, self.range.start + column);
        (self.theirs[0][column], self.theirs[1][column]) = (radius, own);
    }

    /// True if the row is too far from all of these columns to matter to either.
    fn far(&self, row: usize, columns: Range<usize>, ours: [f32; 2]) -> bool {
        let products = &self.products[row * COLUMNS..][columns.clone()];
        let theirs = self.theirs[0][columns.clone()].iter().zip(&self.theirs[1][columns]);
        // Written so that NaN, from beyond the range of float32, stays.
        let far = |(p, (a, b)): (&f32, (&f32, &f32))| (*p < ours[0] + a) & (*p < ours[1] + b);
        products.iter().zip(theirs).fold(true, |all, pair| all & far(pair))
    }
}

fn square(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

/// Sums in eight chains, which one instruction can take together.
struct SquaredDistance<'a>([&'a [f32]; 2]);

impl WithSimd for SquaredDistance<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        const CHAINS: usize = 8;
        let mut sums = [0.0; CHAINS];
        let term = |a: &f32, b: &f32| (*a as f64 - *b as f64) * (*a as f64 - *b as f64);
        let [(a, last_a), (b, last_b)] = self.0.map(|row| row.as_chunks::<CHAINS>());
        for (a, b) in a.iter().zip(b) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += term(a, b));
        }
        sums.iter_mut().zip(last_a.iter().zip(last_b)).for_each(|(sum, (a, b))| *sum += term(a, b));
        sums.iter().sum()
    }
}
