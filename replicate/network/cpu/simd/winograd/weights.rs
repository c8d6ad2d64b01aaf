//! Weights to the basis of the tiles, and the sums of their gradients back. The order of loops lets every
//! read and write go on where the last one ended.

use super::COEFFICIENTS;
use crate::network::cpu::simd::lanes::{Kernel, LANES, Lanes, run};
use crate::network::cpu::simd::product::{PANEL, Panels};
use rayon::prelude::*;
use std::ops::Range;

/// Computes G g G^T of each 3x3 kernel `g(input, output)`: one matrix (inputs, outputs) for each
/// coefficient.
pub fn panels(inputs: usize, outputs: usize, g: impl Fn(usize, usize) -> [f32; 9] + Sync) -> Vec<Panels> {
    let mut all: Vec<Panels> = (0..COEFFICIENTS).map(|_| Panels::zeros(inputs, outputs)).collect();
    let mut parts: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(PANEL)).map(|_| Vec::new()).collect();
    for panels in &mut all {
        parts.iter_mut().zip(panels.each_mut()).for_each(|(part, rows)| part.push(rows));
    }
    parts.into_par_iter().enumerate().for_each(|(i, rows)| {
        let columns = i * PANEL..outputs.min((i + 1) * PANEL);
        run(Spread { inputs, columns, g: &g, rows });
    });
    all
}

/// Transforms the kernels of some outputs, `columns`.
struct Spread<'a, G> {
    inputs: usize,
    columns: Range<usize>,
    g: &'a G,
    /// Rows of the panel of each coefficient.
    rows: Vec<&'a mut [f32]>,
}

impl<G: Fn(usize, usize) -> [f32; 9]> Kernel for Spread<'_, G> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Spread { inputs, columns, g, mut rows } = self;
        for first in columns.clone().step_by(LANES) {
            for input in 0..inputs {
                let mut kernels = [[0f32; LANES]; 9];
                for (lane, output) in (first..columns.end.min(first + LANES)).enumerate() {
                    for (taps, value) in kernels.iter_mut().zip(g(input, output)) {
                        taps[lane] = value;
                    }
                }
                let at = input * PANEL + first - columns.start;
                // SAFETY: sixteen values of each tap, and of the row of a panel.
                unsafe {
                    let mut half = [[L::splat(0.0); 3]; 4];
                    for column in 0..3 {
                        let three = [0, 3, 6].map(|row| kernels[row + column].as_ptr());
                        let four = spread([L::load(three[0]), L::load(three[1]), L::load(three[2])]);
                        for (half, v) in half.iter_mut().zip(four) {
                            half[column] = v;
                        }
                    }
                    for (four, three) in rows.chunks_exact_mut(4).zip(half) {
                        for (rows, v) in four.iter_mut().zip(spread(three)) {
                            v.store(rows[at..][..LANES].as_mut_ptr());
                        }
                    }
                }
            }
        }
    }
}

/// Computes G v.
#[inline(always)]
unsafe fn spread<L: Lanes>([a, b, c]: [L; 3]) -> [L; 4] {
    // SAFETY: uses no pointers.
    unsafe {
        let (outer, inner) = (L::splat(0.5).mul(a.add(c)), L::splat(0.5).mul(b));
        [a, outer.add(inner), outer.sub(inner), c]
    }
}

/// Computes G^T [sums] G of the sums (coefficient, input, output): the gradients (output, input, tap).
pub fn taps(sums: &[f32], [inputs, outputs]: [usize; 2], gradient: &mut [f32]) {
    for (i, to) in gradient.chunks_mut(9 * inputs * LANES).enumerate() {
        let row = |coefficient, input| &sums[(coefficient * inputs + input) * outputs + i * LANES..];
        gather_outputs(inputs, row, to);
    }
}

/// Computes the gradients (output, input, tap) of at most sixteen outputs, whose sums for a coefficient
/// and an input `row(coefficient, input)` begins with.
pub fn gather_outputs<'a>(inputs: usize, row: impl Fn(usize, usize) -> &'a [f32], to: &mut [f32]) {
    run(Gather { inputs, row, to });
}

struct Gather<'a, R> {
    inputs: usize,
    row: R,
    to: &'a mut [f32],
}

impl<'b, R: Fn(usize, usize) -> &'b [f32]> Kernel for Gather<'_, R> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Gather { inputs, row, to } = self;
        let outputs = to.len() / (9 * inputs);
        for input in 0..inputs {
            let mut nine = [[0f32; LANES]; 9];
            // SAFETY: `outputs` values of each row, and sixteen of each tap.
            unsafe {
                let mut half = [[L::splat(0.0); 4]; 3];
                for column in 0..4 {
                    let mut four = [L::splat(0.0); 4];
                    for (i, v) in four.iter_mut().enumerate() {
                        *v = L::load_first(row(i * 4 + column, input)[..outputs].as_ptr(), outputs);
                    }
                    for (half, v) in half.iter_mut().zip(gather(four)) {
                        half[column] = v;
                    }
                }
                for (three, half) in nine.chunks_exact_mut(3).zip(half) {
                    for (to, v) in three.iter_mut().zip(gather(half)) {
                        v.store(to.as_mut_ptr());
                    }
                }
            }
            for output in 0..outputs {
                let to = &mut to[(output * inputs + input) * 9..][..9];
                for (to, tap) in to.iter_mut().zip(&nine) {
                    *to = tap[output];
                }
            }
        }
    }
}

/// Computes G^T v.
#[inline(always)]
unsafe fn gather<L: Lanes>([a, b, c, d]: [L; 4]) -> [L; 3] {
    // SAFETY: uses no pointers.
    unsafe {
        let (half, sum) = (L::splat(0.5), b.add(c));
        [a.add(half.mul(sum)), half.mul(b.sub(c)), half.mul(sum).add(d)]
    }
}
