//! Convolution for inference on the CPU, channels innermost: any kernel, stride
//! and padding, bias and ReLU included.
//!
//! A register block is 6 output pixels by 16 output channels. Under one tap of
//! the kernel the channels of an input pixel lie side by side, so the block only
//! needs to know where 6 input pixels are: there is no copy of the image, and
//! kernels, strides and padding differ in a table of offsets alone.
//!
//! Each output value is one fused chain (the bias, then the taps row by row, then
//! the input channels), so its bits depend neither on the images around
//! it nor on the number of threads.

use super::lanes::{Kernel, Lanes, run};
use super::maps::{Maps, Window};
use super::tile::round_up;
use rayon::prelude::*;
use std::ops::Range;

/// Output pixels in one register block.
const PIXELS: usize = 6;
/// Output channels in one register block: two vectors.
const CHANNELS: usize = 16;
/// Links of the chain between two visits to memory. The weights that they need
/// (16 KiB) stay in the L1 cache from one block of pixels to the next.
const DEPTH: usize = 320;
/// Most output pixels in a task: their inputs, [`DEPTH`] channels of each, stay
/// in the L2 cache from one block of output channels to the next.
const TASK: usize = 96;
/// In a table of offsets: a pixel of the padding.
const OUTSIDE: usize = usize::MAX;

/// Weights of one convolution.
pub struct Filter {
    window: Window,
    inputs: usize,
    outputs: usize,
    /// [block of outputs][tap][input][16], filled up with 0.
    packed: Vec<f32>,
    /// Filled up with 0 to a whole number of blocks.
    bias: Vec<f32>,
    relu: bool,
}

impl Filter {
    /// `weight` (outputs, inputs, vertical, horizontal), `bias` (outputs);
    /// `relu`: the output is max(0, y) instead of y.
    ///
    /// # Panics
    /// If the weights are not of these sizes.
    pub fn new(window: Window, weight: &[f32], bias: &[f32], relu: bool) -> Filter {
        let taps = window.kernel[0] * window.kernel[1];
        let outputs = bias.len();
        let inputs = weight.len() / (outputs * taps);
        assert!(inputs > 0 && weight.len() == outputs * inputs * taps, "weights of {outputs} outputs");
        let mut padded = bias.to_vec();
        padded.resize(round_up(outputs, CHANNELS), 0.0);
        let mut packed = vec![0f32; padded.len() * inputs * taps];
        for (block, packed) in packed.chunks_exact_mut(taps * inputs * CHANNELS).enumerate() {
            let here = block * CHANNELS..outputs.min((block + 1) * CHANNELS);
            for (k, sixteen) in packed.chunks_exact_mut(CHANNELS).enumerate() {
                let (tap, input) = (k / inputs, k % inputs);
                for (w, output) in sixteen.iter_mut().zip(here.clone()) {
                    *w = weight[(output * inputs + input) * taps + tap];
                }
            }
        }
        Filter { window, inputs, outputs, packed, bias: padded, relu }
    }

    /// Height, width and channels of the output for those of the input.
    pub fn output_shape(&self, [height, width, _]: [usize; 3]) -> [usize; 3] {
        let [height, width] = self.window.output(height, width);
        [height, width, self.outputs]
    }

    /// Convolves `x` into the channels of `y` from `channel` on.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn apply(&self, x: &Maps, y: &mut Maps, channel: usize) {
        let [height, width] = self.window.output(x.height, x.width);
        assert_eq!(x.channels, self.inputs, "input channels");
        assert!([y.images, y.height, y.width] == [x.images, height, width], "maps of another size");
        assert!(channel + self.outputs <= y.channels, "output channels");
        let steps = Steps::new(self.window, self.inputs);
        let zeros = vec![0f32; steps.length];
        let (pixels, stride) = (x.images * height * width, y.channels);
        let task = pixels_in_a_task(pixels, rayon::current_num_threads());
        y.values_mut().par_chunks_mut(task * stride).enumerate().for_each_init(
            Vec::new,
            |offsets, (i, y)| {
                let pixels = i * task..i * task + y.len() / stride;
                self.offsets(&steps, x, [height, width], pixels.clone(), offsets);
                run(Task {
                    filter: self,
                    steps: &steps,
                    x: x.values(),
                    zeros: &zeros,
                    offsets,
                    y,
                    stride,
                    channel,
                });
            },
        );
    }

    /// Where each step finds the input of each output pixel:
    /// [block of pixels][step][6], the last block filled up with its last pixel.
    fn offsets(
        &self,
        steps: &Steps,
        x: &Maps,
        [height, width]: [usize; 2],
        pixels: Range<usize>,
        offsets: &mut Vec<[usize; PIXELS]>,
    ) {
        let blocks = pixels.len().div_ceil(PIXELS);
        offsets.clear();
        offsets.resize(blocks * steps.count(), [OUTSIDE; PIXELS]);
        for (block, offsets) in offsets.chunks_exact_mut(steps.count()).enumerate() {
            for lane in 0..PIXELS {
                let pixel = (pixels.start + block * PIXELS + lane).min(pixels.end - 1);
                let (image, oy, ox) = (pixel / (height * width), pixel / width % height, pixel % width);
                let (top, left) = (oy * self.window.stride, ox * self.window.stride);
                for (ky, row) in offsets.chunks_exact_mut(steps.columns).enumerate() {
                    // Wrapped round, a pixel above or to the left is too far, too.
                    let iy = (top + ky).wrapping_sub(self.window.padding[0]);
                    if iy >= x.height {
                        continue;
                    }
                    let row_start = (image * x.height + iy) * x.width;
                    for (kx, six) in row.iter_mut().enumerate() {
                        let ix = (left + kx).wrapping_sub(self.window.padding[1]);
                        if ix < x.width {
                            six[lane] = (row_start + ix) * self.inputs;
                        }
                    }
                }
            }
        }
    }
}

/// Whole register blocks, and as many tasks for each thread.
fn pixels_in_a_task(pixels: usize, threads: usize) -> usize {
    let tasks = threads * pixels.div_ceil(threads * TASK);
    round_up(pixels.div_ceil(tasks), PIXELS)
}

/// A kernel as steps, each over values that lie side by side: the channels of one
/// tap, or of a whole row of taps where no pixel can be outside.
struct Steps {
    rows: usize,
    columns: usize,
    length: usize,
}

impl Steps {
    fn new(window: Window, inputs: usize) -> Steps {
        let [rows, columns] = window.kernel;
        if window.padding[1] == 0 {
            Steps { rows, columns: 1, length: columns * inputs }
        } else {
            Steps { rows, columns, length: inputs }
        }
    }

    fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// The chain in parts of about [`DEPTH`]: steps, and of each step the values
    /// from and to where.
    fn parts(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let even = |n: usize, most: usize| n.div_ceil(n.div_ceil(most));
        let (steps, values) = (even(self.count(), (DEPTH / self.length).max(1)), even(self.length, DEPTH));
        let mut parts = Vec::new();
        for step in (0..self.count()).step_by(steps) {
            for value in (0..self.length).step_by(values) {
                parts.push((step..self.count().min(step + steps), value..self.length.min(value + values)));
            }
        }
        parts
    }
}

/// Some output pixels, all output channels.
struct Task<'a> {
    filter: &'a Filter,
    steps: &'a Steps,
    x: &'a [f32],
    /// What the padding holds, as long as a step.
    zeros: &'a [f32],
    offsets: &'a [[usize; PIXELS]],
    /// (pixels, stride)
    y: &'a mut [f32],
    stride: usize,
    channel: usize,
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Task { filter, steps, x, zeros, offsets, y, stride, channel } = self;
        let (length, count) = (steps.length, steps.count());
        let pixels = y.len() / stride;
        assert!(offsets.len() == pixels.div_ceil(PIXELS) * count && zeros.len() == length);
        assert!(offsets.as_flattened().iter().all(|o| *o == OUTSIDE || *o + length <= x.len()));
        assert!(channel + filter.outputs <= stride);
        let chain = count * length;
        let parts = steps.parts();
        for (p, (part, values)) in parts.iter().enumerate() {
            for (block, bias) in filter.bias.chunks_exact(CHANNELS).enumerate() {
                let weights = &filter.packed[block * chain * CHANNELS..][..chain * CHANNELS];
                let weights = &weights[(part.start * length + values.start) * CHANNELS..]
                    [..part.len() * values.len() * CHANNELS];
                let channels = CHANNELS.min(filter.outputs - block * CHANNELS);
                for (tile, offsets) in offsets.chunks_exact(count).enumerate() {
                    let here = PIXELS.min(pixels - tile * PIXELS);
                    let out = &mut y[tile * PIXELS * stride + channel + block * CHANNELS..];
                    let chain = Chain {
                        x,
                        zeros,
                        offsets: &offsets[part.clone()],
                        values: values.clone(),
                        weights,
                        bias: (p == 0).then_some(bias),
                        relu: filter.relu && p + 1 == parts.len(),
                    };
                    // SAFETY of both calls: the offsets and weights were checked above.
                    if here == PIXELS && channels == CHANNELS {
                        unsafe { chain.extend::<L>(out, stride) };
                    } else {
                        let mut block = [0f32; PIXELS * CHANNELS];
                        for (to, from) in block.chunks_exact_mut(CHANNELS).zip(out.chunks(stride)).take(here)
                        {
                            to[..channels].copy_from_slice(&from[..channels]);
                        }
                        unsafe { chain.extend::<L>(&mut block, CHANNELS) };
                        for (from, to) in block.chunks_exact(CHANNELS).zip(out.chunks_mut(stride)).take(here)
                        {
                            to[..channels].copy_from_slice(&from[..channels]);
                        }
                    }
                }
            }
        }
    }
}

/// A part of the chains of one register block.
struct Chain<'a> {
    x: &'a [f32],
    zeros: &'a [f32],
    offsets: &'a [[usize; PIXELS]],
    values: Range<usize>,
    weights: &'a [f32],
    /// Where the chains begin; without it they go on from what is in `out`.
    bias: Option<&'a [f32]>,
    relu: bool,
}

impl Chain<'_> {
    /// `out` has 6 rows of 16, `stride` values apart.
    ///
    /// # Safety
    /// Each offset is `OUTSIDE`, or `x` reaches to the last of `values` from
    /// there; `zeros` is that long, too; there are 16 weights for each value of
    /// each offset.
    #[inline(always)]
    unsafe fn extend<L: Lanes>(&self, out: &mut [f32], stride: usize) {
        assert!(out.len() >= (PIXELS - 1) * stride + CHANNELS);
        let out = out.as_mut_ptr();
        // SAFETY: the caller's contract, and the assertion.
        unsafe {
            let mut acc = [[L::splat(0.0); 2]; PIXELS];
            for (i, acc) in acc.iter_mut().enumerate() {
                let from = self.bias.map_or(out.add(i * stride).cast_const(), |bias| bias.as_ptr());
                *acc = [L::load(from), L::load(from.add(8))];
            }
            let mut w = self.weights.as_ptr();
            for six in self.offsets {
                let mut p = [self.zeros.as_ptr(); PIXELS];
                for (p, offset) in p.iter_mut().zip(six) {
                    if *offset != OUTSIDE {
                        *p = self.x.as_ptr().add(*offset);
                    }
                }
                for v in self.values.clone() {
                    let (w0, w1) = (L::load(w), L::load(w.add(8)));
                    for (acc, p) in acc.iter_mut().zip(p) {
                        let s = L::splat(*p.add(v));
                        *acc = [acc[0].fma(s, w0), acc[1].fma(s, w1)];
                    }
                    w = w.add(CHANNELS);
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (half, v) in acc.iter().enumerate() {
                    // max gives its second operand where one is NaN: a NaN stays.
                    let v = if self.relu { L::splat(0.0).max(*v) } else { *v };
                    v.store(out.add(i * stride + half * 8));
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

    /// The bits do not depend on the instruction set.
    #[test]
    fn all_lanes_give_the_same_bits() {
        let window = Window { kernel: [3, 5], stride: 2, padding: [1, 2] };
        let (inputs, outputs) = (37, 19);
        let weight = Stream::new("filter", "w").normals(0, outputs * inputs * 15);
        let filter = Filter::new(window, &weight, &Stream::new("filter", "b").normals(0, outputs), true);
        let x = Maps::new(2, [9, 8, inputs], Stream::new("filter", "x").normals(0, 2 * 9 * 8 * inputs));
        let output = window.output(9, 8);
        let (steps, zeros) = (Steps::new(window, inputs), vec![0f32; inputs]);
        let pixels = 2 * output[0] * output[1];
        let mut offsets = Vec::new();
        filter.offsets(&steps, &x, output, 0..pixels, &mut offsets);
        let bits = [false, true].map(|portable| {
            let mut y = vec![0f32; pixels * outputs];
            let task = Task {
                filter: &filter,
                steps: &steps,
                x: x.values(),
                zeros: &zeros,
                offsets: &offsets,
                y: &mut y,
                stride: outputs,
                channel: 0,
            };
            if portable {
                run_portable(task)
            } else {
                run(task)
            }
            y.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(bits[0], bits[1]);
    }
}
