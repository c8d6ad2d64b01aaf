//! Convolution with stride 1, same size and a 1x1 or 3x3 kernel, and its gradients.
//!
//! A 3x3 kernel reads a copy of the image with a border of zeros, so that each tap has the same
//! offset at every pixel. With many channels it is computed by Winograd's algorithm. The input
//! gradient is the same convolution with the kernel rotated by 180 degrees. The weight gradient is
//! a sum of outer products over pixels.

use super::maps::Maps;
use super::memory::Buffer;
use super::simd::lanes::{Kernel, LANES, Lanes, run};
use super::simd::product::{Dense, Epilogue, Panels, Shifted, column_sums, outer, product};
use super::simd::winograd;
use rayon::prelude::*;

/// Sizes of a weight (outputs, inputs, side, side), with side = 1 or 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub outputs: usize,
    pub inputs: usize,
    pub side: usize,
}

/// A weight in the layout that the convolution reads.
pub enum Packed {
    Direct(Panels),
    Winograd(Vec<Panels>),
}

impl Weight {
    fn taps(&self) -> usize {
        self.side * self.side
    }

    /// True if Winograd's algorithm is faster: with few channels its transforms cost more than they
    /// save.
    fn winograd(&self) -> bool {
        self.side == 3 && self.inputs.min(self.outputs) >= LANES && self.inputs * self.outputs >= 512
    }

    /// Packs the values (outputs, inputs, side, side) for the convolution itself.
    pub fn packed(&self, w: &[f32]) -> Packed {
        self.pack(w, false)
    }

    /// Packs them for the input gradient: transposed, and each kernel rotated by 180 degrees.
    pub fn transposed(&self, w: &[f32]) -> Packed {
        self.pack(w, true)
    }

    fn pack(&self, w: &[f32], transposed: bool) -> Packed {
        let (taps, inputs, outputs) = (self.taps(), self.inputs, self.outputs);
        let [from, to] = if transposed { [outputs, inputs] } else { [inputs, outputs] };
        if self.winograd() {
            return Packed::Winograd(winograd::panels(from, to, |f, t| {
                let pair = if transposed { f * inputs + t } else { t * inputs + f };
                let kernel = &w[pair * 9..][..9];
                std::array::from_fn(|tap| kernel[if transposed { 8 - tap } else { tap }])
            }));
        }
        let mut panels = Panels::zeros(taps * from, to);
        for (o, kernels) in w.chunks_exact(taps * inputs).enumerate() {
            for (i, kernel) in kernels.chunks_exact(taps).enumerate() {
                for (tap, value) in kernel.iter().enumerate() {
                    if transposed {
                        panels.set((taps - 1 - tap) * from + o, i, *value);
                    } else {
                        panels.set(tap * from + i, o, *value);
                    }
                }
            }
        }
        Packed::Direct(panels)
    }

    /// Length of the sums that [`Weight::add_gradient`] adds to.
    pub fn sums_len(&self) -> usize {
        if self.winograd() {
            winograd::sums_len(self.inputs, self.outputs)
        } else {
            self.taps() * self.inputs * self.outputs
        }
    }

    /// Adds the weight gradient to `sums`. The order of the sums is internal; [`Weight::weight_basis`]
    /// reads it.
    pub fn add_gradient(&self, x: &Maps, dy: &Maps, sums: &mut [f32]) {
        if self.winograd() {
            return winograd::add_gradient(x, dy, sums);
        }
        if self.side == 1 {
            let rows = Dense { values: x.values(), length: x.channels };
            return outer(rows, dy.values(), dy.channels, sums);
        }
        outer(Surroundings::new(x, self.side).rows(), dy.values(), dy.channels, sums);
    }

    /// Converts the sums to the gradient (outputs, inputs, side, side), in the basis of the weight itself.
    pub fn weight_basis(&self, sums: &[f32]) -> Vec<f32> {
        let (taps, inputs, outputs) = (self.taps(), self.inputs, self.outputs);
        let mut w = vec![0f32; taps * inputs * outputs];
        if self.winograd() {
            winograd::taps(sums, [inputs, outputs], &mut w);
            return w;
        }
        for i in 0..inputs {
            for o in 0..outputs {
                for (tap, w) in w[(o * inputs + i) * taps..][..taps].iter_mut().enumerate() {
                    *w = sums[(tap * inputs + i) * outputs + o];
                }
            }
        }
        w
    }

    /// Computes the gradient (outputs, inputs, side, side) from all maps `x` and `dy`, which have as many
    /// images each except for the last. Threads share the work; its order does not depend on them.
    pub fn gradient_over(&self, x: &[&Maps], dy: &[&Maps], scratch: &mut winograd::Scratch) -> Vec<f32> {
        if self.winograd() {
            return winograd::gradient_over(x, dy, scratch);
        }
        if self.side == 3 {
            let mut sums = vec![0f32; self.sums_len()];
            x.iter().zip(dy).for_each(|(x, dy)| self.add_gradient(x, dy, &mut sums));
            return self.weight_basis(&sums);
        }
        /// Outputs that a task takes.
        const OUTPUTS: usize = 64;
        let mut gradient = vec![0f32; self.inputs * self.outputs];
        gradient.par_chunks_mut(OUTPUTS * self.inputs).enumerate().for_each(|(i, sums)| {
            for (x, dy) in x.iter().zip(dy) {
                let starts: Vec<usize> = (0..dy.pixels()).map(|p| p * dy.channels + i * OUTPUTS).collect();
                let rows = Shifted::new(dy.values(), &starts, &[0], sums.len() / self.inputs);
                outer(rows, x.values(), self.inputs, sums);
            }
        });
        gradient
    }
}

/// A copy of the pixels with a border of zeros, and the positions of the pixels and their
/// neighbours in it.
struct Surroundings {
    bordered: Buffer,
    starts: Vec<usize>,
    /// Offset of each row of taps. The taps of a row are contiguous, `length` values together.
    rows: Vec<usize>,
    length: usize,
}

impl Surroundings {
    fn new(x: &Maps, side: usize) -> Surroundings {
        let [height, width, channels] = x.shape();
        let (border, row, pitch) = (side / 2, width * channels, (width + side - 1) * channels);
        let image = (height + side - 1) * pitch;
        let mut bordered = Buffer::uninit(x.images * image);
        let edge = border * channels;
        for (from, to) in x.values().chunks_exact(height * row).zip(bordered.chunks_exact_mut(image)) {
            to[..border * pitch].fill(0.0);
            to[image - border * pitch..].fill(0.0);
            for (from, to) in from.chunks_exact(row).zip(to[border * pitch..].chunks_exact_mut(pitch)) {
                to[..edge].fill(0.0);
                to[edge..edge + row].copy_from_slice(from);
                to[edge + row..].fill(0.0);
            }
        }
        let mut starts = Vec::with_capacity(x.pixels());
        for i in 0..x.images {
            for y in 0..height {
                starts.extend((0..width).map(|x| i * image + y * pitch + x * channels));
            }
        }
        let rows = (0..side).map(|row| row * pitch).collect();
        Surroundings { bordered, starts, rows, length: side * channels }
    }

    fn rows(&self) -> Shifted<'_> {
        Shifted::new(&self.bordered, &self.starts, &self.rows, self.length)
    }
}

/// Computes y = x * w + bias, then applies the [`Epilogue`]. `weight` from [`Weight::packed`] gives the
/// forward pass of a kernel with this `side`; from [`Weight::transposed`], the gradient with respect to
/// x.
pub fn convolve(x: &Maps, weight: &Packed, side: usize, epilogue: Epilogue) -> Maps {
    let panels = match weight {
        Packed::Winograd(panels) => return winograd::convolve(x, panels, epilogue),
        Packed::Direct(panels) => panels,
    };
    let mut y = Maps::uninit(x.images, [x.height, x.width, panels.columns]);
    if side == 1 {
        let rows = Dense { values: x.values(), length: x.channels };
        product(rows, panels, epilogue, y.values_mut(), panels.columns);
    } else {
        product(Surroundings::new(x, side).rows(), panels, epilogue, y.values_mut(), panels.columns);
    }
    y
}

/// Sums over the pixels of each image: (images, 1, 1, channels).
pub fn image_sums(dy: &Maps) -> Maps {
    let mut sums = Maps::uninit(dy.images, [1, 1, dy.channels]);
    sums.values_mut().fill(0.0);
    let images = dy.values().chunks_exact(dy.height * dy.width * dy.channels);
    for (sums, values) in sums.values_mut().chunks_exact_mut(dy.channels).zip(images) {
        run(ColumnSums { values, sums });
    }
    sums
}

/// Computes sums[c] += sum over rows of values[row][c].
struct ColumnSums<'a> {
    values: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for ColumnSums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let columns = self.sums.len();
        for at in (0..columns).step_by(LANES) {
            let mut out = [0f32; LANES];
            // SAFETY: `at` is a column.
            unsafe { column_sums::<L>(self.values, columns, at).store(out.as_mut_ptr()) };
            for (s, v) in self.sums[at..].iter_mut().zip(out) {
                *s += v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use std::time::Instant;

    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for (size, inputs, outputs) in
            [(16, 16, 16), (16, 32, 32), (16, 48, 16), (16, 32, 16), (8, 32, 32), (8, 64, 32), (32, 256, 256)]
        {
            let weight = Weight { inputs, outputs, side: 3 };
            let images = if size == 32 { 1 } else { 4 };
            let x = Stream::new("conv", "x").normals(0, images * size * size * inputs);
            let x = Maps::new(images, [size, size, inputs], x);
            let dy = Stream::new("conv", "dy").normals(0, images * size * size * outputs);
            let dy = Maps::new(images, [size, size, outputs], dy);
            let w = Stream::new("conv", "w").normals(0, 9 * inputs * outputs);
            let direct = Packed::Direct(Panels::new(9 * inputs, outputs, |k, o| w[k * outputs + o]));
            let winograd = weight.packed(&w);
            let flop = 2.0 * (x.pixels() * 9 * inputs * outputs) as f64;
            let n = (2e8 / flop) as usize + 1;
            let time = |f: &mut dyn FnMut()| {
                f();
                let best = (0..5).map(|_| {
                    let t = Instant::now();
                    (0..n).for_each(|_| f());
                    n as f64 * flop / t.elapsed().as_secs_f64() / 1e9
                });
                best.fold(0.0, f64::max)
            };
            let epilogue = Epilogue::default();
            let a = time(&mut || drop(convolve(&x, &direct, 3, epilogue)));
            let b = time(&mut || drop(convolve(&x, &winograd, 3, epilogue)));
            let mut sums = vec![0f32; 16 * inputs * outputs];
            let c = time(&mut || outer(Surroundings::new(&x, 3).rows(), dy.values(), outputs, &mut sums));
            let d = time(&mut || winograd::add_gradient(&x, &dy, &mut sums));
            println!(
                "{size}: {inputs} to {outputs}: direct {a:.0} GFLOP/s, Winograd {b:.0}; gradient {c:.0}, {d:.0}"
            );
        }
    }
}
