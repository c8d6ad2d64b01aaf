//! Keyed, counter-based random numbers. Every number is a pure function of (cell, stream name,
//! step, index), so resuming needs no saved state, and every device gets the same noise (a GPU
//! computes its own from the same integers, within 4e-6).
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011). Transcendental functions come from `libm`
//! instead of the platform, so the bits do not depend on the operating system.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// A named stream of a cell. Streams with different names never share a number.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// Opens a stream. `cell` names the experiment, including its seed; `name` says what the
    /// numbers are for.
    pub fn new(cell: &str, name: &str) -> Stream {
        let mut hash = Sha256::new();
        hash.update((cell.len() as u64).to_le_bytes());
        hash.update(cell.as_bytes());
        hash.update(name.as_bytes());
        let digest = hash.finalize();
        let word = |i: usize| u32::from_le_bytes([digest[i], digest[i + 1], digest[i + 2], digest[i + 3]]);
        Stream { key: [word(0), word(4)] }
    }

    /// Key of the stream, for a generator on another device.
    #[cfg(feature = "cudnn")]
    pub(crate) fn key(&self) -> [u32; 2] {
        self.key
    }

    /// Returns the draws of one step (or of one image), from its first number.
    pub fn at(&self, step: u64) -> Draws {
        Draws { key: self.key, step, block: 0, buffer: [0; 4], left: 0 }
    }

    /// Returns `n` standard normal numbers of one step: the values of `at(step).fill_normal()`,
    /// computed on all threads.
    pub fn normals(&self, step: u64, n: usize) -> Vec<f32> {
        self.normals_from(step, 0, n)
    }

    /// Returns numbers `first` to `first + n` of [`Stream::normals`].
    ///
    /// # Panics
    /// If `first` is not a multiple of 4, the block size of the generator.
    pub fn normals_from(&self, step: u64, first: usize, n: usize) -> Vec<f32> {
        assert!(first.is_multiple_of(4), "the generator makes four numbers at a time");
        let mut out = vec![0f32; n];
        out.par_chunks_mut(4096).enumerate().for_each(|(i, chunk)| {
            let mut draws = self.at(step);
            draws.block = (first / 4 + i * 1024) as u64;
            draws.fill_normal(chunk);
        });
        out
    }
}

/// A position in a stream.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    step: u64,
    block: u64,
    buffer: [u32; 4],
    left: usize,
}

impl Draws {
    /// Returns the next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            let counter =
                [self.block as u32, (self.block >> 32) as u32, self.step as u32, (self.step >> 32) as u32];
            self.buffer = philox4x32(counter, self.key);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.buffer[3 - self.left]
    }

    /// Uniform in [0, 1), with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in {0, …, n-1}, by multiplication (bias below n / 2^32).
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next_u32() as u64 * n as u64) >> 32) as usize
    }

    /// Random permutation of the numbers below `n` (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }

    /// One standard normal number; uses two words.
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.next_u32(), self.next_u32());
        box_muller(a, b).0
    }

    /// Fills `out` with standard normal numbers, two from every two words. An odd length wastes one
    /// number.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let (a, b) = (self.next_u32(), self.next_u32());
            let (x, y) = box_muller(a, b);
            pair[0] = x;
            if let Some(second) = pair.get_mut(1) {
                *second = y;
            }
        }
    }
}

/// Box-Muller transform (1958). The first word is mapped to (0, 1], so the logarithm is finite.
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let u = ((a >> 8) + 1) as f32 * (1.0 / (1 << 24) as f32);
    let angle = (b >> 8) as f32 * (std::f32::consts::TAU / (1 << 24) as f32);
    let radius = (-2.0 * libm::logf(u)).sqrt();
    let (sin, cos) = libm::sincosf(angle);
    (radius * cos, radius * sin)
}

fn philox4x32(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let p0 = 0xD251_1F53_u64 * c[0] as u64;
        let p1 = 0xCD9E_8D57_u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Random123's kat_vectors, philox4x32 with 10 rounds.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn parallel_normals_equal_serial_ones() {
        let stream = Stream::new("cell", "noise");
        let mut serial = vec![0f32; 10_001];
        stream.at(7).fill_normal(&mut serial);
        assert_eq!(serial, stream.normals(7, 10_001));
        assert_eq!(serial[6004..], stream.normals_from(7, 6004, 3997));
    }

    #[test]
    fn normals_have_the_moments_of_a_gaussian() {
        let x = Stream::new("cell", "moments").normals(0, 1_000_000);
        let moment = |p: i32| x.iter().map(|v| (*v as f64).powi(p)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.004);
        assert!((moment(2) - 1.0).abs() < 0.006);
        assert!((moment(4) - 3.0).abs() < 0.04);
    }

    #[test]
    fn names_steps_and_cells_are_independent() {
        let draw = |cell: &str, name: &str, step| Stream::new(cell, name).at(step).next_u32();
        let all =
            [draw("a", "x", 0), draw("b", "x", 0), draw("a", "y", 0), draw("a", "x", 1), draw("ax", "", 0)];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }
}
