//! The two inner loops that everything heavy is made of. Both keep a block of
//! sums in registers; each output value is one fused chain
//! over its inputs in a fixed order, so results depend neither on the number
//! of threads nor on the batch.

use super::lanes::{Kernel, Lanes, run};

/// Output rows in one register block.
pub const ROWS: usize = 4;
/// Output columns in one register block of [`correlate`].
pub const COLUMNS: usize = 16;

/// Room that [`correlate`] may read past the last pixel that counts.
pub const SLACK: usize = COLUMNS;

pub fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

/// Weights reordered to [row block][channel][tap][4], rows filled up with 0.
pub fn pack(rows: usize, inner: usize, weight: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = vec![0f32; rows.div_ceil(ROWS) * inner * ROWS];
    for (block, chunk) in packed.chunks_exact_mut(inner * ROWS).enumerate() {
        for (k, four) in chunk.chunks_exact_mut(ROWS).enumerate() {
            for (i, w) in four.iter_mut().enumerate() {
                let row = block * ROWS + i;
                if row < rows {
                    *w = weight(row, k);
                }
            }
        }
    }
    packed
}

/// out[r][p] = sum over channels c and taps t of w[r][c][t] x[c * plane + t + p]
/// for p < pixels: a matrix product where there is one tap, a correlation over
/// padded, flattened rows where there are nine.
///
/// `x` must reach [`SLACK`] values past the last pixel of the last plane;
/// `packed` is one row block of [`pack`]; `out` holds 4 rows of `stride`.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub x: &'a [f32],
    pub plane: usize,
    pub channels: usize,
    pub taps: &'a [usize],
}

pub fn correlate(input: Input, packed: &[f32], pixels: usize, out: &mut [f32], stride: usize) {
    let tiles = pixels.div_ceil(COLUMNS);
    let reach = (input.channels - 1) * input.plane + input.taps.iter().max().unwrap() + tiles * COLUMNS;
    assert!(input.x.len() >= reach, "input of {} values, {reach} needed", input.x.len());
    assert!(packed.len() >= input.channels * input.taps.len() * ROWS);
    assert!(stride >= tiles * COLUMNS && out.len() >= ROWS * stride);
    run(Correlate { input, packed, tiles, out, stride });
}

struct Correlate<'a> {
    input: Input<'a>,
    packed: &'a [f32],
    tiles: usize,
    out: &'a mut [f32],
    stride: usize,
}

impl Kernel for Correlate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Input { x, plane, channels, taps } = self.input;
        // SAFETY: `correlate` checked that every read and write is in bounds.
        unsafe {
            for tile in 0..self.tiles {
                // Eight sums hide the latency of two multiply-adds a cycle, and
                // leave registers for the operands.
                let mut acc = [[L::splat(0.0); 2]; ROWS];
                let mut w = self.packed.as_ptr();
                let mut base = x.as_ptr().add(tile * COLUMNS);
                for _ in 0..channels {
                    for tap in taps {
                        let p = base.add(*tap);
                        let v = [L::load(p), L::load(p.add(8))];
                        for (r, row) in acc.iter_mut().enumerate() {
                            let s = L::splat(*w.add(r));
                            for (a, x) in row.iter_mut().zip(v) {
                                *a = a.fma(s, x);
                            }
                        }
                        w = w.add(ROWS);
                    }
                    base = base.wrapping_add(plane);
                }
                for (r, row) in acc.iter().enumerate() {
                    for (i, a) in row.iter().enumerate() {
                        a.store(self.out.as_mut_ptr().add(r * self.stride + tile * COLUMNS + i * 8));
                    }
                }
            }
        }
    }
}

/// sums[r][j] = sum over images i and p < pixels of
/// y[i * y.image + r * y.plane + p] x[i * x.image + columns[j] + p]: the weight
/// gradient of [`correlate`]. `pixels` is a multiple of 8; whatever must not
/// count is 0 in `y` and finite in `x`. `rows` is at most 4.
#[derive(Clone, Copy)]
pub struct Planes<'a> {
    pub values: &'a [f32],
    pub image: usize,
    pub plane: usize,
}

pub fn contract(
    images: usize,
    pixels: usize,
    y: Planes,
    rows: usize,
    x: Planes,
    columns: &[usize],
    sums: &mut [f32],
) {
    assert!((1..=ROWS).contains(&rows) && pixels.is_multiple_of(8) && images > 0);
    assert!(y.values.len() >= (images - 1) * y.image + (rows - 1) * y.plane + pixels);
    assert!(x.values.len() >= (images - 1) * x.image + columns.iter().max().unwrap() + pixels);
    assert!(sums.len() >= rows * columns.len());
    run(Contract { images, pixels, y, rows, x, columns, sums });
}

/// Columns in one register block of [`contract`].
const VECTORS: usize = 3;

struct Contract<'a> {
    images: usize,
    pixels: usize,
    y: Planes<'a>,
    rows: usize,
    x: Planes<'a>,
    columns: &'a [usize],
    sums: &'a mut [f32],
}

impl Kernel for Contract<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // A missing row or column repeats the first one and is not written.
        let row = |r: usize| if r < self.rows { r * self.y.plane } else { 0 };
        // SAFETY: `contract` checked that every read is in bounds.
        unsafe {
            for (group, columns) in self.columns.chunks(VECTORS).enumerate() {
                let column = |j: usize| columns[if j < columns.len() { j } else { 0 }];
                let mut acc = [[L::splat(0.0); VECTORS]; ROWS];
                for image in 0..self.images {
                    let ys: [*const f32; ROWS] =
                        std::array::from_fn(|r| self.y.values.as_ptr().add(image * self.y.image + row(r)));
                    let xs: [*const f32; VECTORS] =
                        std::array::from_fn(|j| self.x.values.as_ptr().add(image * self.x.image + column(j)));
                    let mut p = 0;
                    while p < self.pixels {
                        let v = [L::load(xs[0].add(p)), L::load(xs[1].add(p)), L::load(xs[2].add(p))];
                        for (y, row) in ys.iter().zip(acc.iter_mut()) {
                            let s = L::load(y.add(p));
                            for (a, x) in row.iter_mut().zip(v) {
                                *a = a.fma(s, x);
                            }
                        }
                        p += 8;
                    }
                }
                for (r, row) in acc.iter().enumerate().take(self.rows) {
                    for (j, a) in row.iter().enumerate().take(columns.len()) {
                        self.sums[r * self.columns.len() + group * VECTORS + j] = a.sum();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::run_portable;
    use super::*;
    use crate::rng::Stream;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// The bits do not depend on the instruction set.
    #[test]
    fn all_lanes_give_the_same_bits() {
        let x = Stream::new("tile", "x").normals(0, 4000);
        let w = Stream::new("tile", "w").normals(0, 5 * 9 * ROWS);
        let taps: Vec<usize> = (0..9).map(|t| t / 3 * 18 + t % 3).collect();
        let input = Input { x: &x, plane: 324, channels: 5, taps: &taps };
        let outputs = [false, true].map(|portable| {
            let mut out = vec![0f32; ROWS * 288];
            let kernel = Correlate { input, packed: &w, tiles: 18, out: &mut out, stride: 288 };
            if portable {
                run_portable(kernel)
            } else {
                run(kernel)
            }
            bits(&out)
        });
        assert_eq!(outputs[0], outputs[1]);

        let columns = [0, 1, 2, 18, 400];
        let outputs = [false, true].map(|portable| {
            let mut sums = vec![0f32; 3 * columns.len()];
            let planes = Planes { values: &x, image: 700, plane: 288 };
            let kernel = Contract {
                images: 2,
                pixels: 288,
                y: planes,
                rows: 3,
                x: planes,
                columns: &columns,
                sums: &mut sums,
            };
            if portable {
                run_portable(kernel)
            } else {
                run(kernel)
            }
            bits(&sums)
        });
        assert_eq!(outputs[0], outputs[1]);
    }
}
