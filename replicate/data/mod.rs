//! Square 8-bit images in memory, with conversions to and from the networks' range [-1, 1].

pub mod cifar;
pub mod folder;
pub mod glyphs;
pub mod grid;

use crate::store::hex;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Returns the values of RGB pixels plane by plane: all of red, then of green, then of blue.
pub fn planes(rgb: &[u8]) -> impl Iterator<Item = u8> {
    (0..3).flat_map(move |channel| rgb.iter().skip(channel).step_by(3).copied())
}

/// `n` images of `channels` x `size` x `size` bytes, channel-major as in EDM's data sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    pub channels: usize,
    /// Height and width in pixels.
    pub size: usize,
    /// n x channels x size x size.
    pub pixels: Vec<u8>,
    /// Class of each image; empty for generated images.
    pub labels: Vec<u32>,
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Returns image `i`, channels x size x size.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, i: usize) -> &[u8] {
        &self.pixels[i * self.image_len()..(i + 1) * self.image_len()]
    }

    /// Copies the images of `range` with their labels.
    pub fn part(&self, range: Range<usize>) -> Images {
        self.chosen(&range.collect::<Vec<_>>())
    }

    /// Copies the images at `indices` with their labels.
    pub fn chosen(&self, indices: &[usize]) -> Images {
        let pixels = indices.iter().flat_map(|&i| self.image(i).iter().copied()).collect();
        let labels = indices.iter().filter_map(|&i| self.labels.get(i).copied()).collect();
        Images { pixels, labels, ..*self }
    }

    /// Copies one image of each of the first `classes` classes, from the middle of its class: where a
    /// class is in the order of its pixels, the first images are the darkest.
    pub fn of_each_class(&self, classes: usize) -> Images {
        let middle = |class| {
            let of_class = || (0..self.labels.len()).filter(move |i| self.labels[*i] == class);
            of_class().nth(of_class().count() / 2)
        };
        self.chosen(&(0..classes as u32).filter_map(middle).collect::<Vec<_>>())
    }

    /// Converts the images at `indices`, which may repeat, to [-1, 1] by x / 127.5 - 1, as EDM's
    /// training loop does. Shape: indices x channels x size x size.
    pub fn to_unit(&self, indices: &[usize]) -> Vec<f32> {
        let mut values = Vec::with_capacity(indices.len() * self.image_len());
        for &i in indices {
            values.extend(self.image(i).iter().map(|&x| x as f32 / 127.5 - 1.0));
        }
        values
    }

    /// Makes images without labels from values in [-1, 1] by x * 127.5 + 128, clipped to 0..=255 and
    /// truncated, as EDM's `generate.py` does. NaN becomes 0.
    ///
    /// # Panics
    /// If `values` is not a whole number of images.
    pub fn from_unit(channels: usize, size: usize, values: &[f32]) -> Images {
        assert!(values.len() % (channels * size * size) == 0, "not a whole number of images");
        // `as u8` clips and truncates.
        let pixels = values.iter().map(|x| (x * 127.5 + 128.0) as u8).collect();
        Images { channels, size, pixels, labels: Vec::new() }
    }

    /// Halves the size: averages each 2x2 block in integers, rounded half up.
    ///
    /// # Panics
    /// If the size is odd.
    pub fn halved(&self) -> Images {
        assert!(self.size.is_multiple_of(2), "{} pixels cannot be halved", self.size);
        let row = |line: &[u8]| -> Vec<u16> {
            line.chunks_exact(2).map(|pair| pair[0] as u16 + pair[1] as u16).collect()
        };
        let block = |(above, below): (u16, u16)| ((above + below + 2) / 4) as u8;
        let lines = self.pixels.chunks_exact(2 * self.size);
        let pixels = lines
            .flat_map(|two| {
                let (above, below) = two.split_at(self.size);
                row(above).into_iter().zip(row(below)).map(block).collect::<Vec<_>>()
            })
            .collect();
        Images { size: self.size / 2, pixels, labels: self.labels.clone(), ..*self }
    }

    /// Returns the SHA-256, in hexadecimal, of the shape (n, channels, size and the number of labels
    /// as 64-bit integers), the pixels, and the labels (32-bit), all little-endian.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for count in [self.len(), self.channels, self.size, self.labels.len()] {
            hash.update((count as u64).to_le_bytes());
        }
        hash.update(&self.pixels);
        for label in &self.labels {
            hash.update(label.to_le_bytes());
        }
        hex(hash.finalize())
    }

    fn image_len(&self) -> usize {
        self.channels * self.size * self.size
    }
}
