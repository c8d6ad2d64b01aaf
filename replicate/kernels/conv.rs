//! Convolution, stride 1, same size, 1x1 or 3x3, and its gradients. A 3x3 kernel
//! reads a copy of the image with a border of zeros, so that every tap is one
//! offset for all pixels. The input gradient is the same convolution with the
//! kernel turned round; the weight gradient is a sum of outer products over pixels.

use super::lanes::{Kernel, LANES, Lanes, run};
use super::maps::Maps;
use super::pool::Buffer;
use super::product::{Ends, Panels, Shifted, outer, product};

/// Sizes of a weight (outputs, inputs, side, side), side = 1 or 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub outputs: usize,
    pub inputs: usize,
    pub side: usize,
}

impl Weight {
    fn taps(&self) -> usize {
        self.side * self.side
    }

    /// For the convolution itself, from the values (outputs, inputs, side, side).
    pub fn panels(&self, w: &[f32]) -> Panels {
        let (taps, inputs) = (self.taps(), self.inputs);
        Panels::new(taps * inputs, self.outputs, |k, o| w[(o * inputs + k % inputs) * taps + k / inputs])
    }

    /// For the input gradient: the transposed kernel, turned by 180 degrees.
    pub fn turned_panels(&self, w: &[f32]) -> Panels {
        let (taps, inputs, outputs) = (self.taps(), self.inputs, self.outputs);
        Panels::new(taps * outputs, inputs, |k, i| {
            w[((k % outputs) * inputs + i) * taps + taps - 1 - k / outputs]
        })
    }

    /// From (tap, input, output), in which gradients are summed, to the weight's
    /// own order.
    pub fn reordered(&self, sums: &[f32]) -> Vec<f32> {
        let (taps, inputs, outputs) = (self.taps(), self.inputs, self.outputs);
        let mut w = vec![0f32; sums.len()];
        for (k, row) in sums.chunks_exact(outputs).enumerate() {
            for (o, v) in row.iter().enumerate() {
                w[(o * inputs + k % inputs) * taps + k / inputs] = *v;
            }
        }
        w
    }
}

/// The pixels of `x` with what a kernel reaches around them.
struct Surroundings<'a> {
    x: &'a Maps,
    bordered: Option<Buffer>,
    starts: Vec<usize>,
    taps: Vec<usize>,
}

impl<'a> Surroundings<'a> {
    fn new(x: &'a Maps, side: usize) -> Surroundings<'a> {
        let [height, width, channels] = x.shape();
        if side == 1 {
            let starts = (0..x.pixels()).map(|p| p * channels).collect();
            return Surroundings { x, bordered: None, starts, taps: vec![0] };
        }
        let (border, row, pitch) = (side / 2, width * channels, (width + side - 1) * channels);
        let image = (height + side - 1) * pitch;
        let mut bordered = Buffer::stale(x.images * image);
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
        let taps = (0..side * side).map(|t| t / side * pitch + t % side * channels).collect();
        Surroundings { x, bordered: Some(bordered), starts, taps }
    }

    fn rows(&self) -> Shifted<'_> {
        let values = self.bordered.as_deref().unwrap_or(self.x.values());
        Shifted::new(values, &self.starts, &self.taps, self.x.channels)
    }
}

/// y = x * w + bias, as `ends` say: `panels` of [`Weight::panels`] for a kernel of
/// `side`; with those of [`Weight::turned_panels`] the gradient with respect to x.
pub fn convolve(x: &Maps, panels: &Panels, side: usize, ends: Ends) -> Maps {
    let mut y = Maps::stale(x.images, [x.height, x.width, panels.columns]);
    product(Surroundings::new(x, side).rows(), panels, ends, y.values_mut(), panels.columns);
    y
}

/// Adds the weight gradient to `sums` (tap, input, output).
pub fn add_weight_gradient(x: &Maps, side: usize, dy: &Maps, sums: &mut [f32]) {
    outer(Surroundings::new(x, side).rows(), dy.values(), dy.channels, sums);
}

/// Adds the sums over the pixels of each image to `sums`: (images, channels), or
/// (channels) where all images have one bias.
pub fn add_bias_gradient(dy: &Maps, sums: &mut [f32]) {
    let (pixels, channels) = (dy.height * dy.width, dy.channels);
    let each = sums.len() / channels > 1;
    for (i, dy) in dy.values().chunks_exact(pixels * channels).enumerate() {
        let at = if each { i * channels } else { 0 };
        run(ColumnSums { values: dy, sums: &mut sums[at..at + channels] });
    }
}

/// sums[c] += sum over rows of values[row][c].
struct ColumnSums<'a> {
    values: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for ColumnSums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let columns = self.sums.len();
        let rows = self.values.len() / columns;
        for at in (0..columns).step_by(LANES) {
            let n = LANES.min(columns - at);
            // SAFETY: `n` values of each row from `at` on.
            unsafe {
                // Four chains hide the latency of an addition.
                let mut acc = [L::splat(0.0); 4];
                for row in 0..rows {
                    let p = self.values.as_ptr().add(row * columns + at);
                    let v = if n == LANES { L::load(p) } else { L::load_part(p, n) };
                    acc[row % 4] = acc[row % 4].add(v);
                }
                let sum = acc[0].add(acc[1]).add(acc[2].add(acc[3]));
                let mut out = [0f32; LANES];
                sum.store(out.as_mut_ptr());
                for (s, v) in self.sums[at..at + n].iter_mut().zip(out) {
                    *s += v;
                }
            }
        }
    }
}
