//! Convolution for inference on the CPU, channels last: any kernel, stride and padding, with bias
//! and ReLU.
//!
//! The channels of one input pixel are contiguous, so a register block only needs the positions of
//! its input pixels. There is no copy of the image; kernel, stride and padding change only a table
//! of offsets.
//!
//! Each output value is one chain of fused multiply-adds (bias, then taps row by row, then input
//! channels), so its bits depend neither on the other images nor on the number of threads.

use super::product::{Epilogue, Panels, Rows, product};
use crate::network::cpu::maps::{Maps, Window};
use rayon::prelude::*;
use std::ops::Range;

/// Most output pixels in a task. Their inputs for one part of the chain stay in the L2 cache from
/// one panel of output channels to the next.
const TASK: usize = 96;
/// Entry in a table of offsets for a pixel of the padding.
const OUTSIDE: usize = usize::MAX;

/// Weights of one convolution.
pub struct Filter {
    window: Window,
    inputs: usize,
    outputs: usize,
    /// The weight as a matrix (tap and input, output).
    panels: Panels,
    bias: Vec<f32>,
    relu: bool,
}

impl Filter {
    /// Packs `weight` (outputs, inputs, vertical, horizontal) and `bias` (outputs). If `relu`, the
    /// output is max(0, y).
    ///
    /// # Panics
    /// If the sizes of the weights do not fit.
    pub fn new(window: Window, weight: &[f32], bias: &[f32], relu: bool) -> Filter {
        let taps = window.kernel[0] * window.kernel[1];
        let outputs = bias.len();
        let inputs = weight.len() / (outputs * taps);
        assert!(inputs > 0 && weight.len() == outputs * inputs * taps, "weights of {outputs} outputs");
        let panels = Panels::new(taps * inputs, outputs, |k, output| {
            weight[(output * inputs + k % inputs) * taps + k / inputs]
        });
        Filter { window, inputs, outputs, panels, bias: bias.to_vec(), relu }
    }

    /// Returns height, width and channels of the output for those of the input.
    pub fn output_shape(&self, [height, width, _]: [usize; 3]) -> [usize; 3] {
        let [height, width] = self.window.output(height, width);
        [height, width, self.outputs]
    }

    /// Convolves `x` and writes to the channels of `y` from `channel` on.
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
                let rows = Table::new(x.values(), &zeros, offsets, steps.count());
                let epilogue = Epilogue { bias: Some(&self.bias), relu: self.relu, ..Epilogue::default() };
                product(rows, &self.panels, epilogue, &mut y[channel..], stride);
            },
        );
    }

    /// Offset of the input of each output pixel and step: [pixel][step].
    fn offsets(
        &self,
        steps: &Steps,
        x: &Maps,
        [height, width]: [usize; 2],
        pixels: Range<usize>,
        offsets: &mut Vec<usize>,
    ) {
        offsets.clear();
        offsets.resize(pixels.len() * steps.count(), OUTSIDE);
        for (pixel, offsets) in pixels.zip(offsets.chunks_exact_mut(steps.count())) {
            let (image, oy, ox) = (pixel / (height * width), pixel / width % height, pixel % width);
            let (top, left) = (oy * self.window.stride, ox * self.window.stride);
            for (ky, row) in offsets.chunks_exact_mut(steps.columns).enumerate() {
                // A pixel above or to the left wraps round to a large index, so one comparison is
                // enough.
                let iy = (top + ky).wrapping_sub(self.window.padding[0]);
                if iy >= x.height {
                    continue;
                }
                let row_start = (image * x.height + iy) * x.width;
                for (kx, offset) in row.iter_mut().enumerate() {
                    let ix = (left + kx).wrapping_sub(self.window.padding[1]);
                    if ix < x.width {
                        *offset = (row_start + ix) * self.inputs;
                    }
                }
            }
        }
    }
}

/// A multiple of the rows of every kind of register block.
const BLOCK: usize = 24;

/// Pixels of a task: whole register blocks, and equally many tasks for each thread.
fn pixels_in_a_task(pixels: usize, threads: usize) -> usize {
    let tasks = threads * pixels.div_ceil(threads * TASK);
    pixels.div_ceil(tasks).next_multiple_of(BLOCK)
}

/// A kernel as steps over contiguous values: the channels of one tap, or of a whole row of taps if
/// there is no horizontal padding.
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
}

/// Rows whose steps begin at any offset or lie in the padding.
#[derive(Clone, Copy)]
struct Table<'a> {
    x: &'a [f32],
    /// Values of the padding, as many as a step has.
    zeros: &'a [f32],
    /// Offsets [row][step].
    offsets: &'a [usize],
    steps: usize,
}

impl<'a> Table<'a> {
    fn new(x: &'a [f32], zeros: &'a [f32], offsets: &'a [usize], steps: usize) -> Table<'a> {
        assert!(offsets.len().is_multiple_of(steps));
        assert!(offsets.iter().all(|o| *o == OUTSIDE || *o + zeros.len() <= x.len()), "rows outside of x");
        Table { x, zeros, offsets, steps }
    }
}

impl Rows for Table<'_> {
    fn count(&self) -> usize {
        self.offsets.len() / self.steps
    }
    fn steps(&self) -> usize {
        self.steps
    }
    fn length(&self) -> usize {
        self.zeros.len()
    }
    #[inline(always)]
    unsafe fn at(&self, step: usize, row: usize) -> *const f32 {
        // SAFETY: the caller's contract, and `new` checked the offset.
        unsafe {
            match *self.offsets.get_unchecked(row * self.steps + step) {
                OUTSIDE => self.zeros.as_ptr(),
                offset => self.x.as_ptr().add(offset),
            }
        }
    }
}
