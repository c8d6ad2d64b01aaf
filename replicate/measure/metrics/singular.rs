//! Sum of the singular values of a large matrix, in three steps: blocks of reflections bring it to
//! a band, in products of matrices on all threads; small reflections bring the band to two
//! diagonals and chase what they add off its end (Lang 1996, Großer & Lang 1999); the qd algorithm
//! finds the singular values of these (Fernando & Parlett 1994).
//!
//! The error of a singular value is of the size of the rounding of the largest, as with the one
//! step that needs no band, which is bound by the memory. The arithmetic does not depend on the
//! number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder as reflections;
use faer::linalg::qr::no_pivoting::factor as qr;
use faer::traits::pulp::{Arch, Simd, WithSimd};
use faer::{Conj, Mat, MatMut, Par};
use rayon::prelude::*;

/// Diagonals above the main one that the first step leaves.
const BAND: usize = 48;
/// Columns that one task reflects.
const CHUNK: usize = 192;
/// Rows that are kept of a column of the band: 2 BAND above the diagonal, and as many from it on.
const HEIGHT: usize = 4 * BAND;
/// Distance of an element from its right neighbour.
const STRIDE: usize = HEIGHT - 1;
/// Values in a chain of sums.
const LANES: usize = 8;
/// A square of an element beside the diagonal does not change a singular value if it is below this
/// part of the squares of its neighbours.
const NEGLIGIBLE: f64 = f64::EPSILON * f64::EPSILON;
/// Most steps of the qd algorithm for a value. It takes 3 to 4.
const STEPS: usize = 100;

/// Computes the sum of the singular values of a finite matrix; `None` if the last step does not
/// converge.
pub fn sum(matrix: Mat<f64>) -> Option<f64> {
    let mut a = if matrix.nrows() < matrix.ncols() { matrix.transpose().to_owned() } else { matrix };
    let (n, scale) = (a.ncols(), a.norm_max());
    if scale == 0.0 {
        return Some(0.0);
    }
    to_band(&mut a);
    let mut band = Band::new(n);
    for j in 0..n {
        for i in j.saturating_sub(BAND)..=j {
            *band.at(i, j) = a[(i, j)] / scale;
        }
    }
    Arch::new().dispatch(Chase(&mut band));
    let square = |i: usize, j: usize, band: &mut Band| *band.at(i, j) * *band.at(i, j);
    let main = (0..n).map(|i| square(i, i, &mut band)).collect();
    let beside = (1..n).map(|i| square(i - 1, i, &mut band)).collect();
    Some(scale * sum_of_roots(main, beside)?)
}

/// Brings a matrix with no more columns than rows to [`BAND`] diagonals above the main one, and
/// leaves zeros or nothing of use elsewhere.
fn to_band(a: &mut Mat<f64>) {
    let n = a.ncols();
    for k in (0..n).step_by(BAND) {
        let next = n.min(k + BAND);
        let (left, right) = a.as_mut().split_at_col_mut(next);
        reflect(left.get_mut(k.., k..), right.get_mut(k.., ..));
        let (top, bottom) = a.as_mut().split_at_row_mut(next);
        reflect(top.get_mut(k.., next..).transpose_mut(), bottom.get_mut(.., next..).transpose_mut());
    }
}

/// Splits a matrix into parts of at most `most` columns.
pub fn columns(mut matrix: MatMut<f64>, most: usize) -> Vec<MatMut<f64>> {
    let mut parts = Vec::new();
    while matrix.ncols() > 0 {
        let columns = matrix.ncols().min(most);
        let (part, rest) = matrix.split_at_col_mut(columns);
        parts.push(part);
        matrix = rest;
    }
    parts
}

/// Brings `panel` to a triangle by reflections from the left, and applies them to `rest`.
fn reflect(mut panel: MatMut<f64>, rest: MatMut<f64>) {
    let size = panel.nrows().min(panel.ncols());
    if size == 0 {
        return;
    }
    let (mut basis, mut factor) = (panel.to_owned(), Mat::zeros(size, size));
    let scratch =
        qr::qr_in_place_scratch::<f64>(panel.nrows(), panel.ncols(), size, Par::Seq, Default::default());
    qr::qr_in_place(
        basis.as_mut(),
        factor.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    for j in 0..panel.ncols() {
        for i in 0..panel.nrows() {
            panel[(i, j)] = if i <= j { basis[(i, j)] } else { 0.0 };
        }
    }
    let basis = basis.get(.., ..size);
    columns(rest, CHUNK).into_par_iter().for_each(|chunk| {
        let scratch = reflections::apply_block_householder_transpose_on_the_left_in_place_scratch::<f64>(
            basis.nrows(),
            size,
            chunk.ncols(),
        );
        reflections::apply_block_householder_transpose_on_the_left_in_place_with_conj(
            basis,
            factor.as_ref(),
            Conj::No,
            chunk,
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
    });
}

/// The elements near the diagonal, column by column.
struct Band {
    n: usize,
    values: Vec<f64>,
}

/// Runs [`Band::chase`] with the vector instructions of this CPU.
struct Chase<'a>(&'a mut Band);

impl WithSimd for Chase<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.chase();
    }
}

impl Band {
    fn new(n: usize) -> Band {
        // With zeros beyond the last column, blocks are whole there, too.
        Band { n, values: vec![0.0; (n + 3 * BAND) * HEIGHT] }
    }

    #[inline(always)]
    fn at(&mut self, i: usize, j: usize) -> &mut f64 {
        &mut self.values[j * STRIDE + 2 * BAND + i]
    }

    /// Leaves the main diagonal and the one above it.
    #[inline(always)]
    fn chase(&mut self) {
        for start in 0..self.n.saturating_sub(1) {
            let (mut row, mut first) = (start, start + 1);
            while first < self.n {
                self.reflect_columns(row, first);
                self.reflect_rows(first);
                (row, first) = (first, first + BAND);
            }
        }
    }

    /// Reflects the columns from `first` so that of `row` only the first of them is left. Rows from
    /// there to 2 BAND after it have elements in these columns.
    #[inline(always)]
    fn reflect_columns(&mut self, row: usize, first: usize) {
        let mut v: [f64; BAND] = std::array::from_fn(|j| *self.at(row, first + j));
        let Some((tau, head)) = reflection(&mut v) else { return };
        let from = first * STRIDE + 2 * BAND + row;
        let columns = &mut self.values[from..][..(BAND - 1) * STRIDE + 2 * BAND];
        for rows in (0..2 * BAND).step_by(2 * LANES) {
            let mut sums = [0f64; 2 * LANES];
            for (j, v) in v.iter().enumerate() {
                let column = &columns[rows + j * STRIDE..][..2 * LANES];
                sums.iter_mut().zip(column).for_each(|(sum, x)| *sum = x.mul_add(*v, *sum));
            }
            sums.iter_mut().for_each(|sum| *sum *= -tau);
            for (j, v) in v.iter().enumerate() {
                let column = &mut columns[rows + j * STRIDE..][..2 * LANES];
                column.iter_mut().zip(&sums).for_each(|(x, sum)| *x = sum.mul_add(*v, *x));
            }
        }
        *self.at(row, first) = head;
        (1..BAND).for_each(|j| *self.at(row, first + j) = 0.0);
    }

    /// Reflects the rows from `first` so that of the column `first` only the first of them is left.
    /// Columns from there to 2 BAND after it have elements in these rows.
    #[inline(always)]
    fn reflect_rows(&mut self, first: usize) {
        let from = first * HEIGHT + 2 * BAND;
        let mut v: [f64; BAND] = std::array::from_fn(|i| self.values[from + i]);
        let Some((tau, head)) = reflection(&mut v) else { return };
        self.values[from..from + BAND].fill(0.0);
        self.values[from] = head;
        for j in 1..2 * BAND {
            let column = &mut self.values[from + j * STRIDE..][..BAND];
            let mut sums = [0f64; LANES];
            for (x, v) in column.chunks_exact(LANES).zip(v.chunks_exact(LANES)) {
                for (sum, (x, v)) in sums.iter_mut().zip(x.iter().zip(v)) {
                    *sum = x.mul_add(*v, *sum);
                }
            }
            let [a, b, c, d, e, f, g, h] = sums;
            let sum = -tau * (((a + e) + (c + g)) + ((b + f) + (d + h)));
            column.iter_mut().zip(&v).for_each(|(x, v)| *x = sum.mul_add(*v, *x));
        }
    }
}

/// Replaces x by the vector v, with v_0 = 1, of the reflection 1 - tau v v' that leaves only the
/// first element of x. Returns tau and that element, or `None` if there is no other.
#[inline(always)]
fn reflection(x: &mut [f64; BAND]) -> Option<(f64, f64)> {
    let tail: f64 = x[1..].iter().map(|x| x * x).sum();
    if tail == 0.0 {
        return None;
    }
    let head = -(x[0] * x[0] + tail).sqrt().copysign(x[0]);
    let (tau, scale) = ((head - x[0]) / head, 1.0 / (x[0] - head));
    x[0] = 1.0;
    x[1..].iter_mut().for_each(|x| *x *= scale);
    Some((tau, head))
}

/// Sums the singular values of a matrix of which `main` holds the squares of the diagonal, and
/// `beside` those of the elements above it.
fn sum_of_roots(main: Vec<f64>, beside: Vec<f64>) -> Option<f64> {
    let mut sum = 0.0;
    let most = STEPS * main.len();
    let mut parts = vec![(main, beside, 0.0)];
    for _ in 0..most {
        let Some((mut q, mut e, shifted)) = parts.pop() else { return Some(sum) };
        let n = q.len();
        if let Some(k) = (0..n - 1).find(|&k| e[k] <= NEGLIGIBLE * (shifted + q[k].min(q[k + 1]))) {
            parts.push((q.split_off(k + 1), e.split_off(k + 1), shifted));
            e.pop();
            parts.push((q, e, shifted));
        } else if n == 1 {
            sum += (shifted + q[0]).sqrt();
        } else {
            // Converges at the end, and best to the smallest value there.
            if q[0] < q[n - 1] {
                q.reverse();
                e.reverse();
            }
            let (q, e, shift) = transformed(&q, &e);
            parts.push((q, e, shifted + shift));
        }
    }
    None
}

/// Applies one step of the differential qd algorithm with a shift not above the smallest
/// eigenvalue, and returns the shift.
fn transformed(q: &[f64], e: &[f64]) -> (Vec<f64>, Vec<f64>, f64) {
    let n = q.len();
    // The smaller eigenvalue of the last 2 x 2 block is not below that of the matrix.
    let before = if n > 2 { e[n - 3] } else { 0.0 };
    let (a, b, off) = (q[n - 2] + before, q[n - 1] + e[n - 2], q[n - 2] * e[n - 2]);
    let half = 0.5 * (a - b).abs();
    let mut shift = (a.min(b) - off / (half + (half * half + off).sqrt())).max(0.0);
    let (mut new_q, mut new_e) = (vec![0.0; n], vec![0.0; n - 1]);
    for attempt in 1.. {
        let (mut d, mut least) = (q[0] - shift, f64::INFINITY);
        for i in 0..n - 1 {
            least = least.min(d);
            new_q[i] = d + e[i];
            let ratio = q[i + 1] / new_q[i];
            new_e[i] = e[i] * ratio;
            d = d * ratio - shift;
        }
        new_q[n - 1] = d;
        if least.min(d) >= 0.0 || shift == 0.0 {
            break;
        }
        // If only the last value is negative, the shift is too large by less than it.
        let less = if least > 0.0 { shift + d } else { shift / 4.0 };
        shift = if attempt < 4 { less.max(0.0) } else { 0.0 };
    }
    (new_q, new_e, shift)
}
