//! EDM's augmentation of training images (Karras et al. 2022, Appendix F.2): mirroring, scaling,
//! rotation, stretching and translation. The wavelet filters are those of StyleGAN2-ADA (Karras et
//! al. 2020, Appendix B). The network sees the applied transformations as nine labels, so that they
//! do not leak into images that it generates without labels.
//!
//! The values are those of EDM's CIFAR-10 training, which uses no other transformations. Two things
//! differ on purpose, neither by more than 1e-4:
//!
//! - EDM pads a batch for the image that moves farthest, so an image depends on the others in its
//!   batch. Here every image is padded as far as reflection allows, which is EDM's padding when
//!   another image needs all of it. In 1600 draws the two differed by at most 7e-5, and only when an
//!   image shrinks.
//! - An image that is only mirrored is not resampled. EDM's filters reproduce it up to rounding.

#[cfg(feature = "cudnn")]
use crate::network;
use crate::rng::Draws;
use candle_core::Tensor;
use rayon::prelude::*;
use std::f32::consts::PI;
use std::fmt;

/// Length of an image's label: mirrored, upside down, log scale, cos - 1 and sin of the rotation,
/// log stretch along two axes, shift right and down.
pub const LABELS: usize = 9;

/// EDM's multiplier of p for mirroring: for any p except 0 it is a fair coin.
const XFLIP: f64 = 1e8;
/// Probability that the axis of a stretch is drawn; otherwise it is horizontal.
const ANISO_ROTATE: f32 = 0.5;
/// Standard deviations of the base-2 logarithms of scale and stretch, and of a translation in image
/// sizes.
const SCALE_STD: f32 = 0.2;
const ANISO_STD: f32 = 0.2;
const TRANSLATE_STD: f32 = 0.125;

/// The pipeline at strength p. Each transformation happens with probability p, except mirroring
/// (1/2) and upside down (p / 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augmentation {
    pub p: f64,
}

impl fmt::Display for Augmentation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "augmentation(p {})", self.p)
    }
}

/// Random numbers of one image, before p decides which of them are used. A gate is uniform in [0,
/// 1) and opens below the probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    pub xflip: bool,
    pub xflip_gate: f32,
    pub yflip: bool,
    pub yflip_gate: f32,
    /// Standard normal.
    pub scale: f32,
    pub scale_gate: f32,
    /// Uniform in [0, 1), for an angle from -pi to pi.
    pub rotate: f32,
    pub rotate_gate: f32,
    /// Standard normal.
    pub aniso: f32,
    /// Uniform in [0, 1), for an angle from -pi to pi.
    pub aniso_angle: f32,
    pub aniso_gate: f32,
    pub aniso_angle_gate: f32,
    /// Standard normal: right, down.
    pub translate: [f32; 2],
    pub translate_gate: f32,
}

impl Numbers {
    /// Draws in the order of the fields, which is EDM's. Always takes the same number of words.
    pub fn draw(draws: &mut Draws) -> Numbers {
        Numbers {
            xflip: draws.below(2) == 1,
            xflip_gate: draws.uniform(),
            yflip: draws.below(2) == 1,
            yflip_gate: draws.uniform(),
            scale: draws.normal(),
            scale_gate: draws.uniform(),
            rotate: draws.uniform(),
            rotate_gate: draws.uniform(),
            aniso: draws.normal(),
            aniso_angle: draws.uniform(),
            aniso_gate: draws.uniform(),
            aniso_angle_gate: draws.uniform(),
            translate: [draws.normal(), draws.normal()],
            translate_gate: draws.uniform(),
        }
    }
}

/// Transformations of one image; all zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Draw {
    /// Mirrors left to right.
    pub xflip: bool,
    /// Mirrors top to bottom.
    pub yflip: bool,
    /// Scales the image by 2^(0.2 scale).
    pub scale: f32,
    /// Radians, counter-clockwise.
    pub rotate: f32,
    /// Stretches the image by 2^(0.2 aniso) along one axis, and shrinks it by the same across.
    pub aniso: f32,
    /// Radians, counter-clockwise from the horizontal to that axis.
    pub aniso_angle: f32,
    /// Eighths of the image's size, right and down.
    pub translate: [f32; 2],
}

impl Augmentation {
    /// Draws the transformations of one image from the next numbers of its stream.
    pub fn draw(&self, draws: &mut Draws) -> Draw {
        self.gate(&Numbers::draw(draws))
    }

    /// Keeps those transformations of `numbers` whose gates are open at p.
    pub fn gate(&self, numbers: &Numbers) -> Draw {
        let open = |gate: f32, multiplier: f64| (gate as f64) < multiplier * self.p;
        let pass = |gate: f32, value: f32| if open(gate, 1.0) { value } else { 0.0 };
        let angle = |uniform: f32| (2.0 * uniform - 1.0) * PI;
        let n = numbers;
        Draw {
            xflip: n.xflip && open(n.xflip_gate, XFLIP),
            yflip: n.yflip && open(n.yflip_gate, 1.0),
            scale: pass(n.scale_gate, n.scale),
            rotate: pass(n.rotate_gate, angle(n.rotate)),
            aniso: pass(n.aniso_gate, n.aniso),
            aniso_angle: if n.aniso_angle_gate < ANISO_ROTATE { angle(n.aniso_angle) } else { 0.0 },
            translate: n.translate.map(|shift| pass(n.translate_gate, shift)),
        }
    }
}

impl Draw {
    /// Returns the label that the network sees.
    pub fn labels(&self) -> [f32; LABELS] {
        let (sin, cos) = libm::sincosf(self.rotate);
        let (aniso_sin, aniso_cos) = libm::sincosf(self.aniso_angle);
        let [right, down] = self.translate;
        [
            self.xflip.into(),
            self.yflip.into(),
            self.scale,
            cos - 1.0,
            sin,
            self.aniso * aniso_cos,
            self.aniso * aniso_sin,
            right,
            down,
        ]
    }

    /// Returns the numbers for the GPU's kernels.
    #[cfg(feature = "cudnn")]
    fn row(&self, size: usize) -> [f32; 9] {
        let Source { linear: [[a, b], [c, d]], shift: [right, down], .. } = Source::of(self, size);
        [self.xflip.into(), self.yflip.into(), self.resamples().into(), a, b, c, d, right, down]
    }

    /// True if pixels move off their grid.
    fn resamples(&self) -> bool {
        self.scale != 0.0 || self.rotate != 0.0 || self.aniso != 0.0 || self.translate != [0.0; 2]
    }
}

/// Augments one image (channels, size, size), usually in [-1, 1], and returns it with its label.
/// The filters overshoot: results are below 3.7 in magnitude.
///
/// # Panics
/// If the image has another length.
pub fn apply(image: &[f32], channels: usize, size: usize, draw: &Draw) -> (Vec<f32>, [f32; LABELS]) {
    assert_eq!(image.len(), channels * size * size, "an image is {channels} x {size} x {size}");
    let source = Source::of(draw, size);
    let planes = image.chunks(size * size).flat_map(|plane| {
        let mirrored = mirrored(plane, size, draw);
        if draw.resamples() { resampled(&mirrored, size, &source) } else { mirrored }
    });
    (planes.collect(), draw.labels())
}

/// Augments a batch (n, channels, size, size) with one draw for each image, on all threads. An
/// image's result does not depend on the others.
///
/// # Panics
/// If the batch has another length.
fn transformed(images: &[f32], channels: usize, size: usize, draws: &[Draw]) -> Vec<f32> {
    let len = channels * size * size;
    assert_eq!(images.len(), draws.len() * len, "{} images of {channels} x {size} x {size}", draws.len());
    let mut out = vec![0.0; images.len()];
    let each = out.par_chunks_mut(len).zip(images.par_chunks(len)).zip(draws);
    each.for_each(|((out, image), draw)| out.copy_from_slice(&apply(image, channels, size, draw).0));
    out
}

/// Augments images (B, C, size, size) with one draw for each, on their own device. Results on a GPU
/// equal those on the CPU up to rounding.
///
/// # Errors
/// If an operation on the device fails.
pub fn apply_where_it_is(images: &Tensor, draws: &[Draw]) -> candle_core::Result<Tensor> {
    let (_, channels, size, _) = images.dims4()?;
    #[cfg(feature = "cudnn")]
    if images.device().is_cuda() {
        let rows: Vec<_> = draws.iter().map(|draw| draw.row(size)).collect();
        return network::gpu::resampled(images, &SYM6, &rows);
    }
    let values = transformed(&images.flatten_all()?.to_vec1()?, channels, size, draws);
    Tensor::from_vec(values, images.shape(), images.device())
}

fn mirrored(plane: &[f32], size: usize, draw: &Draw) -> Vec<f32> {
    let mut plane = plane.to_vec();
    if draw.xflip {
        plane.chunks_mut(size).for_each(<[f32]>::reverse);
    }
    if draw.yflip {
        plane = plane.rchunks(size).flatten().copied().collect();
    }
    plane
}

/// Affine map from a position of the result to its source in the image, in pixels: x maps to
/// `centre + linear (x - shift - centre)`.
struct Source {
    linear: [[f32; 2]; 2],
    shift: [f32; 2],
    centre: f32,
}

impl Source {
    fn of(draw: &Draw, size: usize) -> Source {
        let shrink = libm::exp2f(-SCALE_STD * draw.scale);
        let stretch = libm::exp2f(ANISO_STD * draw.aniso);
        // The inverse of each transformation, the last one first; y points down.
        let (sin, cos) = libm::sincosf(draw.rotate);
        let (aniso_sin, aniso_cos) = libm::sincosf(draw.aniso_angle);
        let turn = [[cos * shrink, -sin * shrink], [sin * shrink, cos * shrink]];
        let onto = [[aniso_cos, aniso_sin], [-aniso_sin, aniso_cos]];
        let back = [[aniso_cos / stretch, -aniso_sin / stretch], [aniso_sin * stretch, aniso_cos * stretch]];
        Source {
            linear: product(product(turn, onto), back),
            shift: draw.translate.map(|shift| shift * TRANSLATE_STD * size as f32),
            centre: (size as f32 - 1.0) / 2.0,
        }
    }

    fn at(&self, x: f32, y: f32) -> [f32; 2] {
        let (x, y) = (x - self.shift[0] - self.centre, y - self.shift[1] - self.centre);
        self.linear.map(|row| self.centre + row[0] * x + row[1] * y)
    }
}

fn product(a: [[f32; 2]; 2], b: [[f32; 2]; 2]) -> [[f32; 2]; 2] {
    a.map(|row| [row[0] * b[0][0] + row[1] * b[1][0], row[0] * b[0][1] + row[1] * b[1][1]])
}

/// The symlet with six vanishing moments (Daubechies 1992, Table 6.3), an orthonormal low-pass
/// filter: upsampling and downsampling with it changes nothing.
const SYM6: [f32; 12] = [
    0.015404109,
    0.003490712,
    -0.117990114,
    -0.048311744,
    0.49105594,
    0.78764117,
    0.33792943,
    -0.07263752,
    -0.021060292,
    0.0447249,
    0.0017677118,
    -0.0078007085,
];
const TAPS: usize = SYM6.len();

/// Resamples one plane: extends it by reflection, doubles its resolution, samples it at `source`,
/// and reduces it again. Values beyond the reflections are 0.
fn resampled(plane: &[f32], size: usize, source: &Source) -> Vec<f32> {
    let margin = size - 1;
    let padded = size + 2 * margin;
    let wide = upsampled(&reflected(plane, size, margin), padded);
    // By columns: the value at (x, y) is in row 2x.
    let fine = upsampled(&transposed(&wide, padded), 2 * padded);
    let side = 2 * padded;
    // The filter on the way down reaches 2.5 pixels before a pixel and 3 beyond.
    let reach = 2 * (size - 1) + TAPS;
    let place = |i: usize| i as f32 / 2.0 - 2.5;
    let mut sampled = Vec::with_capacity(reach * reach);
    for i in 0..reach {
        for j in 0..reach {
            let at = source.at(place(j), place(i)).map(|x| 2.0 * (x + margin as f32));
            sampled.push(bilinear(&fine, side, at));
        }
    }
    let narrow = downsampled(&sampled, reach, size);
    transposed(&downsampled(&transposed(&narrow, reach), size, size), size)
}

/// Adds `margin` pixels on every side of the plane, mirrored about the outermost pixels.
fn reflected(plane: &[f32], size: usize, margin: usize) -> Vec<f32> {
    let inside = |i: usize| match i {
        i if i < margin => margin - i,
        i if i < margin + size => i - margin,
        i => 2 * (size - 1) + margin - i,
    };
    let padded = size + 2 * margin;
    let row = |i: usize| (0..padded).map(move |j| plane[inside(i) * size + inside(j)]);
    (0..padded).flat_map(row).collect()
}

/// Doubles the number of rows, each of `columns` values: rows 2i and 2i + 1 are at i and i + 1/2 of
/// the old rows.
fn upsampled(plane: &[f32], columns: usize) -> Vec<f32> {
    let rows = plane.len() / columns;
    let mut out = vec![0.0; 2 * plane.len()];
    for (m, out) in out.chunks_mut(columns).enumerate() {
        for k in 0..TAPS / 2 {
            // Only every second row of the zero-stuffed plane is not zero.
            let (tap, row) = (TAPS - 1 - 2 * k - m % 2, (m / 2 + m % 2 + k).checked_sub(TAPS / 4));
            if let Some(row) = row.filter(|row| *row < rows) {
                add(out, SYM6[tap], &plane[row * columns..][..columns]);
            }
        }
    }
    out
}

/// Returns `rows` rows of `columns` values, the i-th from the rows 2i to 2i + 11 of the plane.
fn downsampled(plane: &[f32], columns: usize, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    for (i, out) in out.chunks_mut(columns).enumerate() {
        for (tap, from) in SYM6.iter().zip(plane[2 * i * columns..].chunks(columns)) {
            add(out, *tap, from);
        }
    }
    out
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn transposed(plane: &[f32], columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; plane.len()];
    for (j, out) in out.chunks_mut(plane.len() / columns).enumerate() {
        out.iter_mut().zip(plane[j..].iter().step_by(columns)).for_each(|(to, from)| *to = *from);
    }
    out
}

/// Interpolates at (x, y) in a plane stored by columns, `side` of each; 0 outside.
fn bilinear(fine: &[f32], side: usize, [x, y]: [f32; 2]) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let (i, j) = (left as i32, top as i32);
    let value = |i: i32, j: i32| match (usize::try_from(i), usize::try_from(j)) {
        (Ok(i), Ok(j)) if i < side && j < side => fine[i * side + j],
        _ => 0.0,
    };
    let column = |i: i32| {
        let (above, below) = (value(i, j), value(i, j.saturating_add(1)));
        above + (y - top) * (below - above)
    };
    let (before, after) = (column(i), column(i.saturating_add(1)));
    before + (x - left) * (after - before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn the_filter_is_orthonormal_and_has_six_vanishing_moments() {
        let taps = SYM6.map(f64::from);
        for lag in (0..TAPS).step_by(2) {
            let product: f64 = taps.iter().zip(&taps[lag..]).map(|(a, b)| a * b).sum();
            assert!((product - f64::from(lag == 0)).abs() < 1e-7, "lag {lag}: {product}");
        }
        for moment in 0..6 {
            let term = |(i, tap): (usize, &f64)| tap * (i as f64 - 5.5).powi(moment) * (-1f64).powi(i as i32);
            let sum: f64 = taps.iter().enumerate().map(term).sum();
            assert!(sum.abs() < 1e-6 * 5.5f64.powi(moment), "moment {moment}: {sum}");
        }
    }

    #[test]
    fn resampling_in_place_gives_the_image_back() {
        // Sizes from 7 on: a smaller image has too few reflections for the filters' reach.
        for size in [7, 8, 16, 32] {
            let plane = Stream::new("augment test", "plane").normals(size as u64, size * size);
            let again = resampled(&plane, size, &Source::of(&Draw::default(), size));
            for (a, b) in plane.iter().zip(&again) {
                assert!((a - b).abs() < 4e-6, "size {size}: {a} became {b}");
            }
        }
    }
}
