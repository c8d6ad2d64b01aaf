//! Feature maps in channels-last layout, and pooling over them.

use super::memory::Buffer;
use rayon::prelude::*;
use std::ops::Range;

/// Feature maps of `images` images: (images, height, width, channels) in row-major order.
pub struct Maps {
    // Private to the crate: unsafe readers of the values rely on these sizes.
    pub(crate) images: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    values: Buffer,
}

impl Maps {
    /// Takes values (images, height, width, channels) in row-major order.
    ///
    /// # Panics
    /// If there are not images * height * width * channels values.
    pub fn new(images: usize, [height, width, channels]: [usize; 3], values: Vec<f32>) -> Maps {
        assert_eq!(values.len(), images * height * width * channels, "values of {height} x {width} maps");
        Maps { images, height, width, channels, values: values.into() }
    }

    /// Maps with arbitrary values, for callers that write all of them.
    pub fn uninit(images: usize, [height, width, channels]: [usize; 3]) -> Maps {
        let values = Buffer::uninit(images * height * width * channels);
        Maps { images, height, width, channels, values }
    }

    /// Maps of the same sizes with arbitrary values.
    pub fn like(&self) -> Maps {
        Maps::uninit(self.images, self.shape())
    }

    /// Copies the maps.
    pub fn copy(&self) -> Maps {
        let mut copy = self.like();
        copy.values_mut().copy_from_slice(self.values());
        copy
    }

    /// Pixels of all images together.
    pub fn pixels(&self) -> usize {
        self.images * self.height * self.width
    }

    /// Height, width and channels.
    pub fn shape(&self) -> [usize; 3] {
        [self.height, self.width, self.channels]
    }

    /// Values in row-major order, (images, height, width, channels).
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Mean over the pixels: (images, channels).
    pub fn mean(&self) -> Vec<f32> {
        let images = self.values().par_chunks_exact(self.height * self.width * self.channels);
        images.flat_map_iter(|image| self.mean_of(image)).collect()
    }

    /// Mean over the pixels of one image.
    pub(super) fn mean_of(&self, image: &[f32]) -> Vec<f32> {
        let mut sums = vec![0f64; self.channels];
        for pixel in image.chunks_exact(self.channels) {
            for (sum, v) in sums.iter_mut().zip(pixel) {
                *sum += *v as f64;
            }
        }
        let pixels = (self.height * self.width) as f64;
        sums.into_iter().map(|sum| (sum / pixels) as f32).collect()
    }
}

/// Kernel, stride and padding of a convolution or pooling; sizes are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: usize,
    /// Pixels added at each edge.
    pub padding: [usize; 2],
}

impl Window {
    /// Returns the height and width of the output.
    ///
    /// # Panics
    /// If the padded image is smaller than the kernel.
    pub fn output(&self, height: usize, width: usize) -> [usize; 2] {
        let side = |axis: usize, size: usize| {
            let (padded, kernel) = (size + 2 * self.padding[axis], self.kernel[axis]);
            assert!(padded >= kernel && kernel > 0, "a kernel of {kernel} over {padded} pixels");
            (padded - kernel) / self.stride + 1
        };
        [side(0, height), side(1, width)]
    }

    /// Pixels of a row or column of length `size` under the window of output `at`.
    fn covered(&self, axis: usize, at: usize, size: usize) -> Range<usize> {
        let start = at * self.stride;
        let end = (start + self.kernel[axis]).saturating_sub(self.padding[axis]).min(size);
        start.saturating_sub(self.padding[axis]).min(end)..end
    }
}

/// Max pooling. Writes to the channels of `y` from `channel` on; padding is ignored.
///
/// # Panics
/// If the sizes of `y` do not fit, or if a window contains only padding.
pub fn max_pool(x: &Maps, window: Window, y: &mut Maps, channel: usize) {
    pool(x, window, y, channel, |out, pixels| {
        let mut pixels = pixels.peekable();
        out.copy_from_slice(pixels.peek().expect("a window with a pixel"));
        for pixel in pixels {
            for (o, v) in out.iter_mut().zip(pixel) {
                *o = if *v > *o { *v } else { *o };
            }
        }
    });
}

/// Average pooling without the padding. Writes to the channels of `y` from `channel` on.
///
/// # Panics
/// If the sizes of `y` do not fit, or if a window contains only padding.
pub fn average_pool(x: &Maps, window: Window, y: &mut Maps, channel: usize) {
    pool(x, window, y, channel, |out, pixels| {
        let mut count = 0f32;
        out.fill(0.0);
        for pixel in pixels {
            count += 1.0;
            for (o, v) in out.iter_mut().zip(pixel) {
                *o += v;
            }
        }
        assert!(count > 0.0, "a window with a pixel");
        for o in out {
            *o /= count;
        }
    });
}

type Pixels<'a> = &'a mut dyn Iterator<Item = &'a [f32]>;

/// Applies `reduce` to each output pixel and the input pixels under its window.
fn pool(
    x: &Maps,
    window: Window,
    y: &mut Maps,
    channel: usize,
    reduce: impl for<'a> Fn(&mut [f32], Pixels<'a>) + Sync,
) {
    let [height, width] = window.output(x.height, x.width);
    assert!([y.images, y.height, y.width] == [x.images, height, width], "maps of another size");
    let (values, channels, row) = (x.values(), x.channels, y.width * y.channels);
    let y_channels = y.channels;
    y.values_mut().par_chunks_exact_mut(row).enumerate().for_each(|(i, row)| {
        let (image, rows) = (i / height, window.covered(0, i % height, x.height));
        for (ox, out) in row.chunks_exact_mut(y_channels).enumerate() {
            let columns = window.covered(1, ox, x.width);
            let mut pixels = rows.clone().flat_map(|iy| {
                let at = (image * x.height + iy) * x.width + columns.start;
                values[at * channels..][..columns.len() * channels].chunks_exact(channels)
            });
            reduce(&mut out[channel..channel + channels], &mut pixels);
        }
    });
}
