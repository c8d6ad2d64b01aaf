//! The two inner loops of all heavy operations: rows times a matrix, and its transpose, the sum of
//! outer products of rows. Both keep a block of sums in registers. Each output value is one chain
//! of fused multiply-adds over its inputs in a fixed order, so its bits do not depend on the other
//! rows, on its place in a block, or on the instruction set.

use super::lanes::{Kernel, LANES, Lanes, run};
use crate::network::cpu::memory::Aligned;
use std::ops::Range;

/// Columns of a panel: two vectors.
pub const PANEL: usize = 2 * LANES;
/// Most links of a chain before its sum is stored. The part of a panel that they need (32 KiB)
/// stays in the L1 cache from one block of rows to the next.
const DEPTH: usize = 256;

/// A matrix (inner, columns), stored as [panel of 32 columns][inner][32] and padded with 0.
pub struct Panels {
    pub(in crate::network::cpu) inner: usize,
    pub(in crate::network::cpu) columns: usize,
    values: Aligned,
}

impl Panels {
    pub fn zeros(inner: usize, columns: usize) -> Panels {
        Panels { inner, columns, values: Aligned::zeros(columns.div_ceil(PANEL) * inner * PANEL) }
    }

    /// Packs the matrix with elements `value(row, column)`.
    pub fn new(inner: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Panels {
        let mut panels = Panels::zeros(inner, columns);
        let each = (inner * PANEL).max(1);
        for (panel, values) in panels.values.chunks_exact_mut(each).enumerate() {
            let first = panel * PANEL;
            for (k, row) in values.chunks_exact_mut(PANEL).enumerate() {
                for (i, v) in row.iter_mut().take(columns - first).enumerate() {
                    *v = value(k, first + i);
                }
            }
        }
        panels
    }

    /// Packs the transpose of contiguous rows (columns, inner).
    pub fn transposed(rows: &[f32], inner: usize) -> Panels {
        /// Values of a row at a time, so that their places in a panel stay in the L1 cache.
        const RUN: usize = 64;
        let mut panels = Panels::zeros(inner, rows.len() / inner);
        for (panel, rows) in rows.chunks(PANEL * inner).enumerate() {
            for from in (0..inner).step_by(RUN) {
                for (i, row) in rows.chunks_exact(inner).enumerate() {
                    let run = from..inner.min(from + RUN);
                    run.for_each(|k| panels.set(k, panel * PANEL + i, row[k]));
                }
            }
        }
        panels
    }

    /// Returns the rows of each panel.
    pub fn each_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut((self.inner * PANEL).max(1))
    }

    /// Sets the element in row `k` of a column.
    #[inline(always)]
    pub fn set(&mut self, k: usize, column: usize, value: f32) {
        self.values[(column / PANEL * self.inner + k) * PANEL + column % PANEL] = value;
    }
}

/// Positions of the values of each row: `steps` runs of `length` contiguous values.
pub trait Rows: Copy {
    fn count(&self) -> usize;
    fn steps(&self) -> usize;
    fn length(&self) -> usize;
    /// Returns a pointer to the values of one step of a row.
    ///
    /// # Safety
    /// `step` and `row` must be below their counts; `length` values can be read from the pointer.
    unsafe fn at(&self, step: usize, row: usize) -> *const f32;
}

/// Contiguous rows, one after the other.
#[derive(Clone, Copy)]
pub struct Dense<'a> {
    pub values: &'a [f32],
    pub length: usize,
}

impl Rows for Dense<'_> {
    fn count(&self) -> usize {
        self.values.len() / self.length
    }
    fn steps(&self) -> usize {
        1
    }
    fn length(&self) -> usize {
        self.length
    }
    #[inline(always)]
    unsafe fn at(&self, _: usize, row: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.values.as_ptr().add(row * self.length) }
    }
}

/// Rows of which row r, step s begins at `x[starts[r] + taps[s]]`.
#[derive(Clone, Copy)]
pub struct Shifted<'a> {
    x: &'a [f32],
    starts: &'a [usize],
    taps: &'a [usize],
    length: usize,
}

impl<'a> Shifted<'a> {
    /// Checks that all rows lie within `x`.
    ///
    /// # Panics
    /// If a row would end beyond `x`.
    pub fn new(x: &'a [f32], starts: &'a [usize], taps: &'a [usize], length: usize) -> Shifted<'a> {
        let last = |all: &[usize]| all.iter().max().copied().unwrap_or(0);
        assert!(last(starts) + last(taps) + length <= x.len() || starts.is_empty(), "rows outside of x");
        Shifted { x, starts, taps, length }
    }
}

impl Rows for Shifted<'_> {
    fn count(&self) -> usize {
        self.starts.len()
    }
    fn steps(&self) -> usize {
        self.taps.len()
    }
    fn length(&self) -> usize {
        self.length
    }
    #[inline(always)]
    unsafe fn at(&self, step: usize, row: usize) -> *const f32 {
        // SAFETY: the caller's contract, and `new` checked the sum.
        unsafe { self.x.as_ptr().add(*self.starts.get_unchecked(row) + *self.taps.get_unchecked(step)) }
    }
}

/// Initial values of a product, and the operations on its result.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Initial values of the chains: `columns` values, or as many for each group of `group` rows.
    pub bias: Option<&'a [f32]>,
    pub group: usize,
    /// Added to the finished chains; has the stride of the output.
    pub residual: Option<&'a [f32]>,
    /// Factor applied after the residual.
    pub scale: f32,
    /// If true, applies max(0, y) at the end.
    pub relu: bool,
}

impl Default for Epilogue<'_> {
    /// No bias, residual, scale or ReLU.
    fn default() -> Self {
        Epilogue { bias: None, group: 0, residual: None, scale: 1.0, relu: false }
    }
}

impl Epilogue<'_> {
    /// True if the finished chains still have to be changed to give the output.
    fn changes(&self) -> bool {
        self.residual.is_some() || self.scale != 1.0 || self.relu
    }
}

/// Computes out[r * stride + c] = f(sum over k of row r's k-th value times panels[k][c]), with f as
/// `epilogue` describes.
///
/// # Panics
/// If the sizes do not fit.
pub fn product<R: Rows>(rows: R, panels: &Panels, epilogue: Epilogue, out: &mut [f32], stride: usize) {
    let (count, columns) = (rows.count(), panels.columns);
    if count == 0 {
        return;
    }
    assert_eq!(rows.steps() * rows.length(), panels.inner, "rows of another length than the panels");
    let reach = (count - 1) * stride + columns;
    assert!(stride >= columns && out.len() >= reach, "{} values for {count} rows", out.len());
    assert!(epilogue.residual.is_none_or(|r| r.len() >= reach), "a residual of another size");
    let groups = if epilogue.group == 0 { 1 } else { count.div_ceil(epilogue.group) };
    assert!(epilogue.bias.is_none_or(|b| b.len() == groups * columns), "a bias of another length");
    run(Product { rows, panels, epilogue, out, stride });
}

/// Arguments of [`product`] whose sizes have been checked.
pub struct Product<'a, R> {
    pub rows: R,
    pub panels: &'a Panels,
    pub epilogue: Epilogue<'a>,
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// One panel, and a part of the chains.
struct Part<'a> {
    steps: Range<usize>,
    values: Range<usize>,
    weights: &'a [f32],
    /// First column, and the number of columns.
    column: usize,
    columns: usize,
    first: bool,
    last: bool,
}

/// Splits the chain into parts of about [`DEPTH`]: a range of steps, and a range of values in each.
fn parts(steps: usize, length: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let even = |n: usize, most: usize| n.div_ceil(n.div_ceil(most));
    let (few, values) = (even(steps, (DEPTH / length).max(1)), even(length, DEPTH));
    let of_steps = move |step| {
        let of_values = move |value| (step..steps.min(step + few), value..length.min(value + values));
        (0..length).step_by(values).map(of_values)
    };
    (0..steps).step_by(few).flat_map(of_steps)
}

impl<R: Rows> Kernel for Product<'_, R> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let inner = self.panels.inner;
        let (all, length) = (self.rows.steps(), self.rows.length());
        for (steps, values) in parts(all, length) {
            let from = steps.start * length + values.start;
            let depth = steps.len() * values.len();
            for (panel, weights) in self.panels.values.chunks_exact(inner * PANEL).enumerate() {
                let column = panel * PANEL;
                let part = Part {
                    steps: steps.clone(),
                    values: values.clone(),
                    weights: &weights[from * PANEL..][..depth * PANEL],
                    column,
                    columns: PANEL.min(self.panels.columns - column),
                    first: from == 0,
                    last: steps.end == all && values.end == length,
                };
                // SAFETY: `product` checked all sizes.
                unsafe {
                    if L::WIDE && part.columns > LANES {
                        self.panel::<L, 8, 2>(&part, 0);
                    } else if L::WIDE {
                        self.panel::<L, 12, 1>(&part, 0);
                    } else {
                        self.panel::<L, 6, 1>(&part, 0);
                        if part.columns > LANES {
                            self.panel::<L, 6, 1>(&part, LANES);
                        }
                    }
                }
            }
        }
    }
}

impl<R: Rows> Product<'_, R> {
    /// Computes all rows for `V` vectors of a panel, from column `skip` on.
    #[inline(always)]
    unsafe fn panel<L: Lanes, const P: usize, const V: usize>(&mut self, part: &Part, skip: usize) {
        let count = self.rows.count();
        let mut row = 0;
        // SAFETY: the rows of each block are below the count.
        unsafe {
            while row + P <= count {
                self.block::<L, P, V>(part, skip, row);
                row += P;
            }
            while row + 4 <= count {
                self.block::<L, 4, V>(part, skip, row);
                row += 4;
            }
            while row < count {
                self.block::<L, 1, V>(part, skip, row);
                row += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const P: usize, const V: usize>(
        &mut self,
        part: &Part,
        skip: usize,
        row: usize,
    ) {
        let Product { rows, epilogue, stride, .. } = *self;
        let column = part.column + skip;
        let width = part.columns - skip;
        // SAFETY: `product` checked the sizes; vectors past `width` are not touched.
        unsafe {
            let mut acc = [[L::splat(0.0); V]; P];
            if !part.first || epilogue.bias.is_some() {
                acc = self.begun(part, column, width, row);
            }
            let mut w = part.weights.as_ptr().add(skip);
            for step in part.steps.clone() {
                let mut p = [std::ptr::null(); P];
                for (i, p) in p.iter_mut().enumerate() {
                    *p = rows.at(step, row + i);
                }
                for k in part.values.clone() {
                    let mut ws = [L::splat(0.0); V];
                    for (v, w_v) in ws.iter_mut().enumerate() {
                        *w_v = L::load(w.add(v * LANES));
                    }
                    for (acc, p) in acc.iter_mut().zip(p) {
                        let s = L::splat(*p.add(k));
                        for (a, w) in acc.iter_mut().zip(ws) {
                            *a = a.fma(s, w);
                        }
                    }
                    // After the last step this points past the end, where nothing is read.
                    w = w.wrapping_add(PANEL);
                }
            }
            if part.last && epilogue.changes() {
                acc = self.ended(acc, column, width, row);
            }
            let mut out = self.out.as_mut_ptr().add(row * stride + column);
            if width >= V * LANES {
                for acc in acc {
                    for (v, a) in acc.into_iter().enumerate() {
                        a.store(out.add(v * LANES));
                    }
                    out = out.wrapping_add(stride);
                }
            } else {
                self.store_part(acc, row * stride + column, width);
            }
        }
    }

    // The rare cases are separate functions: they take the sums by reference, which would keep the
    // sums out of registers if they were inlined here.

    /// Returns the sums of an earlier part, or the bias.
    #[inline(always)]
    unsafe fn begun<L: Lanes, const P: usize, const V: usize>(
        &self,
        part: &Part,
        column: usize,
        width: usize,
        row: usize,
    ) -> [[L; V]; P] {
        // SAFETY: `product` checked the sizes.
        unsafe {
            let mut acc = [[L::splat(0.0); V]; P];
            for (i, acc) in acc.iter_mut().enumerate() {
                let from = match self.epilogue.bias {
                    Some(bias) if part.first => {
                        let group =
                            if self.epilogue.group == 0 { 0 } else { (row + i) / self.epilogue.group };
                        bias.as_ptr().add(group * self.panels.columns + column)
                    }
                    _ => self.out.as_ptr().add((row + i) * self.stride + column),
                };
                load(acc, from, width);
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn ended<L: Lanes, const P: usize, const V: usize>(
        &self,
        mut all: [[L; V]; P],
        column: usize,
        width: usize,
        row: usize,
    ) -> [[L; V]; P] {
        // SAFETY: `product` checked the sizes.
        unsafe {
            for (i, acc) in all.iter_mut().enumerate() {
                let mut more = [L::splat(0.0); V];
                if let Some(residual) = self.epilogue.residual {
                    load(&mut more, residual.as_ptr().add((row + i) * self.stride + column), width);
                }
                for (a, m) in acc.iter_mut().zip(more) {
                    *a = a.add(m).mul(L::splat(self.epilogue.scale));
                    // max returns its second operand if one is NaN, so a NaN stays.
                    if self.epilogue.relu {
                        *a = L::splat(0.0).max(*a);
                    }
                }
            }
            all
        }
    }

    #[inline(always)]
    unsafe fn store_part<L: Lanes, const P: usize, const V: usize>(
        &mut self,
        all: [[L; V]; P],
        at: usize,
        width: usize,
    ) {
        for (i, acc) in all.iter().enumerate() {
            // SAFETY: `product` checked the sizes.
            unsafe { store(acc, self.out.as_mut_ptr().add(at + i * self.stride), width) };
        }
    }
}

/// Loads the first `width` values at `p`, or as many as the vectors hold.
#[inline(always)]
unsafe fn load<L: Lanes, const V: usize>(vectors: &mut [L; V], p: *const f32, width: usize) {
    for (v, vector) in vectors.iter_mut().enumerate() {
        let at = v * LANES;
        if width > at {
            // SAFETY: `width` values can be read, and no more are.
            *vector = unsafe { L::load_first(p.add(at), width - at) };
        }
    }
}

#[inline(always)]
unsafe fn store<L: Lanes, const V: usize>(vectors: &[L; V], p: *mut f32, width: usize) {
    for (v, vector) in vectors.iter().enumerate() {
        let at = v * LANES;
        if width > at {
            // SAFETY: `width` values can be written, and no more are.
            unsafe { vector.store_first(p.add(at), width - at) };
        }
    }
}

/// Sums sixteen columns of a matrix over its rows, from column `at` on.
///
/// # Safety
/// `at` must be below `columns`.
#[inline(always)]
pub unsafe fn column_sums<L: Lanes>(matrix: &[f32], columns: usize, at: usize) -> L {
    let (rows, width) = (matrix.len() / columns, columns - at);
    // SAFETY: reads `width` values of each row from `at` on.
    unsafe {
        // Four chains hide the latency of an addition.
        let mut acc = [L::splat(0.0); 4];
        for row in 0..rows {
            let v = L::load_first(matrix.as_ptr().add(row * columns + at), width);
            acc[row % 4] = acc[row % 4].add(v);
        }
        acc[0].add(acc[1]).add(acc[2].add(acc[3]))
    }
}

/// Computes sums[(s * length + k) * columns + c] += sum over rows r of value k in step s of row r
/// of x, times y[r * columns + c]. This is the gradient of [`product`] with respect to its panels.
///
/// # Panics
/// If the sizes do not fit.
pub fn outer<R: Rows>(x: R, y: &[f32], columns: usize, sums: &mut [f32]) {
    assert!(y.len() >= x.count() * columns, "{} values for {} rows", y.len(), x.count());
    assert!(sums.len() >= x.steps() * x.length() * columns);
    run(Outer { x, y, columns, sums });
}

/// Arguments of [`outer`] whose sizes have been checked.
pub struct Outer<'a, R> {
    pub x: R,
    pub y: &'a [f32],
    pub columns: usize,
    pub sums: &'a mut [f32],
}

impl<R: Rows> Kernel for Outer<'_, R> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        for column in (0..self.columns).step_by(PANEL) {
            let width = PANEL.min(self.columns - column);
            for step in 0..self.x.steps() {
                // SAFETY: `outer` checked the sizes.
                unsafe {
                    if L::WIDE && width > LANES {
                        self.step::<L, 8, 2>(step, column, width);
                    } else if L::WIDE {
                        self.step::<L, 16, 1>(step, column, width);
                    } else {
                        self.step::<L, 6, 1>(step, column, width.min(LANES));
                        if width > LANES {
                            self.step::<L, 6, 1>(step, column + LANES, width - LANES);
                        }
                    }
                }
            }
        }
    }
}

impl<R: Rows> Outer<'_, R> {
    #[inline(always)]
    unsafe fn step<L: Lanes, const K: usize, const V: usize>(
        &mut self,
        step: usize,
        column: usize,
        width: usize,
    ) {
        let length = self.x.length();
        let mut k = 0;
        // SAFETY: the values of each block are below the length.
        unsafe {
            while k + K <= length {
                self.block::<L, K, V>(step, k, column, width);
                k += K;
            }
            while k + 4 <= length {
                self.block::<L, 4, V>(step, k, column, width);
                k += 4;
            }
            while k < length {
                self.block::<L, 1, V>(step, k, column, width);
                k += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const K: usize, const V: usize>(
        &mut self,
        step: usize,
        k: usize,
        column: usize,
        width: usize,
    ) {
        // SAFETY: `outer` checked the sizes.
        unsafe {
            let mut acc = [[L::splat(0.0); V]; K];
            let mut y = self.y.as_ptr().wrapping_add(column);
            for row in 0..self.x.count() {
                let x = self.x.at(step, row).add(k);
                let mut ys = [L::splat(0.0); V];
                load(&mut ys, y, width);
                for (i, acc) in acc.iter_mut().enumerate() {
                    let s = L::splat(*x.add(i));
                    for (a, y) in acc.iter_mut().zip(ys) {
                        *a = a.fma(s, y);
                    }
                }
                y = y.wrapping_add(self.columns);
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let at = (step * self.x.length() + k + i) * self.columns + column;
                let to = self.sums.as_mut_ptr().add(at);
                let mut before = [L::splat(0.0); V];
                load(&mut before, to, width);
                for (a, b) in acc.iter_mut().zip(before) {
                    *a = a.add(b);
                }
                store(acc, to, width);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::run_each;
    use super::*;
    use crate::rng::Stream;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    struct Both<'a> {
        x: Shifted<'a>,
        panels: &'a Panels,
        bias: &'a [f32],
        y: &'a [f32],
    }

    impl Kernel for Both<'_> {
        type Out = [Vec<u32>; 2];

        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Out {
            let columns = self.panels.columns;
            let mut out = vec![0f32; self.x.count() * columns];
            let epilogue =
                Epilogue { bias: Some(self.bias), group: 7, residual: Some(self.y), scale: 0.7, relu: true };
            Product { rows: self.x, panels: self.panels, epilogue, out: &mut out, stride: columns }
                .run::<L>();
            let mut sums = vec![1f32; self.panels.inner * columns];
            Outer { x: self.x, y: self.y, columns, sums: &mut sums }.run::<L>();
            [bits(&out), bits(&sums)]
        }
    }

    /// The instruction set does not change the bits, and the values are right.
    #[test]
    fn all_lanes_give_the_same_bits() {
        for (count, length, columns) in [(1, 1, 1), (37, 19, 41), (50, 300, 16), (14, 32, 96), (29, 9, 64)] {
            let values = |name: &str, n| Stream::new("product", name).normals(0, n);
            let taps = [0, 5, 11];
            let starts: Vec<usize> = (0..count).map(|r| r * 3).collect();
            let x = values("x", 3 * count + 11 + length);
            let w = values("w", 3 * length * columns);
            let (bias, y) = (values("bias", count.div_ceil(7) * columns), values("y", count * columns));
            let panels = Panels::new(3 * length, columns, |k, c| w[k * columns + c]);
            let by_columns: Vec<f32> = (0..columns)
                .flat_map(|c| (0..3 * length).map(move |k| (k, c)))
                .map(|(k, c)| w[k * columns + c])
                .collect();
            assert!(*panels.values == *Panels::transposed(&by_columns, 3 * length).values);
            let x = Shifted::new(&x, &starts, &taps, length);
            let all = run_each(|| Both { x, panels: &panels, bias: &bias, y: &y });
            for (lanes, found) in &all {
                assert!(*found == all[0].1, "{lanes}: {count} x {length} x {columns}");
            }
            let value = |r: usize, k: usize| x.x[starts[r] + taps[k / length] + k % length] as f64;
            for (r, c) in [(0, 0), (count / 2, columns / 3), (count - 1, columns - 1)] {
                let sum: f64 = (0..3 * length).map(|k| value(r, k) * w[k * columns + c] as f64).sum();
                let sum = sum + (bias[r / 7 * columns + c] + y[r * columns + c]) as f64;
                let found = f32::from_bits(all[0].1[0][r * columns + c]) as f64;
                assert!(
                    (found - (0.7 * sum).max(0.0)).abs() < 1e-4 * (1.0 + length as f64).sqrt(),
                    "{found}"
                );
            }
            for (k, c) in [(0, 0), (length, columns / 2), (3 * length - 1, columns - 1)] {
                let sum: f64 = (0..count).map(|r| value(r, k) * y[r * columns + c] as f64).sum();
                let found = f32::from_bits(all[0].1[1][k * columns + c]) as f64;
                assert!((found - 1.0 - sum).abs() < 1e-4, "{found} and {sum}");
            }
        }
    }

    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for (rows, length, taps, columns) in
            [(1024, 256, 9, 256), (1024, 256, 1, 256), (1024, 16, 9, 16), (1024, 48, 9, 32), (256, 32, 9, 32)]
        {
            let x = vec![1f32; rows * length + 8 * length];
            let starts: Vec<usize> = (0..rows).map(|r| r * length).collect();
            let at: Vec<usize> = (0..taps).map(|t| t * length * 8 / 9).collect();
            let panels = Panels::new(taps * length, columns, |k, c| (k + c) as f32);
            let mut out = vec![0f32; rows * columns];
            let x = Shifted::new(&x, &starts, &at, length);
            let epilogue = Epilogue::default();
            let flop = 2.0 * (rows * length * taps * columns) as f64;
            let n = (4e9 / flop) as usize + 1;
            let time = |f: &mut dyn FnMut()| {
                f();
                let t = std::time::Instant::now();
                (0..n).for_each(|_| f());
                n as f64 * flop / t.elapsed().as_secs_f64() / 1e9
            };
            let a = time(&mut || product(x, &panels, epilogue, &mut out, columns));
            let y = vec![1f32; rows * columns];
            let mut sums = vec![0f32; taps * length * columns];
            let b = time(&mut || outer(x, &y, columns, &mut sums));
            println!("{rows} x {taps} * {length} x {columns}: product {a:.0} GFLOP/s, outer {b:.0}");
        }
    }
}
