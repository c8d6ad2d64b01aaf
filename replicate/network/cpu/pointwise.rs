//! Operations on single values, on 2x2 pixels and on the channels of two maps, and their gradients.

use super::maps::Maps;
use super::simd::lanes::{Kernel, LANES, Lanes, run};

/// Computes x sigmoid(x).
pub fn silu(x: &Maps) -> Maps {
    let mut y = x.like();
    run(Silu { x: x.values(), dy: None, y: y.values_mut() });
    y
}

/// Computes the gradient of [`silu`] with respect to x.
pub fn silu_backward(x: &Maps, dy: &Maps) -> Maps {
    let mut dx = x.like();
    run(Silu { x: x.values(), dy: Some(dy.values()), y: dx.values_mut() });
    dx
}

/// Computes y = x s(x) with s the sigmoid, or with `dy` the gradient dy s (1 + x (1 - s)).
struct Silu<'a> {
    x: &'a [f32],
    dy: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for Silu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (i, y) in self.y.chunks_mut(LANES).enumerate() {
            let at = i * LANES..i * LANES + y.len();
            let (mut x, mut dy) = ([0f32; LANES], [1f32; LANES]);
            x[..y.len()].copy_from_slice(&self.x[at.clone()]);
            // SAFETY: sixteen values on the stack.
            unsafe {
                let v = L::load(x.as_ptr());
                let s = v.sigmoid();
                let mut out = v.mul(s);
                if let Some(from) = self.dy {
                    dy[..y.len()].copy_from_slice(&from[at]);
                    let one = L::splat(1.0);
                    out = L::load(dy.as_ptr()).mul(s.mul(one.fma(v, one.sub(s))));
                }
                out.store(x.as_mut_ptr());
            }
            y.copy_from_slice(&x[..y.len()]);
        }
    }
}

/// Computes `weight` times the sum of each 2x2 block; halves both sides. Weight 1/4 is EDM's [1, 1]
/// resample filter with stride 2; weight 1 is the gradient of [`up2`] with weight 1.
///
/// # Panics
/// If a side is odd.
pub fn down2(x: &Maps, weight: f32) -> Maps {
    let [height, width, c] = x.shape();
    assert!(height % 2 == 0 && width % 2 == 0, "{height} x {width} pixels are not even");
    let mut y = Maps::uninit(x.images, [height / 2, width / 2, c]);
    let row = width * c;
    for (y, rows) in y.values_mut().chunks_exact_mut(row / 2).zip(x.values().chunks_exact(2 * row)) {
        let (above, below) = rows.split_at(row);
        let pairs = above.chunks_exact(2 * c).zip(below.chunks_exact(2 * c));
        for (y, (above, below)) in y.chunks_exact_mut(c).zip(pairs) {
            for (i, y) in y.iter_mut().enumerate() {
                *y = weight * ((above[i] + above[i + c]) + (below[i] + below[i + c]));
            }
        }
    }
    y
}

/// Repeats `weight` times each pixel in a 2x2 block; doubles both sides. Weight 1 is EDM's
/// transposed [1, 1] filter; weight 1/4 is the gradient of [`down2`] with weight 1/4.
pub fn up2(x: &Maps, weight: f32) -> Maps {
    let [height, width, c] = x.shape();
    let mut y = Maps::uninit(x.images, [2 * height, 2 * width, c]);
    let row = width * c;
    for (x, rows) in x.values().chunks_exact(row).zip(y.values_mut().chunks_exact_mut(4 * row)) {
        let (above, below) = rows.split_at_mut(2 * row);
        for (x, above) in x.chunks_exact(c).zip(above.chunks_exact_mut(2 * c)) {
            let (left, right) = above.split_at_mut(c);
            for ((x, left), right) in x.iter().zip(left).zip(right) {
                (*left, *right) = (weight * x, weight * x);
            }
        }
        below.copy_from_slice(above);
    }
    y
}

/// Concatenates the channels of `a` and `b`.
///
/// # Panics
/// If the maps differ in images, height or width.
pub fn concat(a: &Maps, b: &Maps) -> Maps {
    assert!([a.images, a.height, a.width] == [b.images, b.height, b.width], "maps of other sizes");
    let mut y = Maps::uninit(a.images, [a.height, a.width, a.channels + b.channels]);
    let channels = y.channels;
    let pairs = a.values().chunks_exact(a.channels).zip(b.values().chunks_exact(b.channels));
    for (y, (x, z)) in y.values_mut().chunks_exact_mut(channels).zip(pairs) {
        y[..x.len()].copy_from_slice(x);
        y[x.len()..].copy_from_slice(z);
    }
    y
}

/// Splits the maps into the first `channels` channels and the others.
pub fn split(y: &Maps, channels: usize) -> (Maps, Maps) {
    let mut a = Maps::uninit(y.images, [y.height, y.width, channels]);
    let mut b = Maps::uninit(y.images, [y.height, y.width, y.channels - channels]);
    let rest = y.channels - channels;
    let pairs = a.values_mut().chunks_exact_mut(channels).zip(b.values_mut().chunks_exact_mut(rest));
    for (y, (x, z)) in y.values().chunks_exact(y.channels).zip(pairs) {
        x.copy_from_slice(&y[..channels]);
        z.copy_from_slice(&y[channels..]);
    }
    (a, b)
}

/// Mean over the pixels: (images, 1, 1, channels).
pub fn mean(x: &Maps) -> Maps {
    let mut y = Maps::uninit(x.images, [1, 1, x.channels]);
    let pixels = x.height * x.width;
    let images = x.values().chunks_exact(pixels * x.channels);
    for (means, image) in y.values_mut().chunks_exact_mut(x.channels).zip(images) {
        means.copy_from_slice(&x.mean_of(image));
    }
    y
}

/// Computes the gradient of [`mean`] for maps of height x width.
pub fn mean_backward(dy: &Maps, [height, width]: [usize; 2]) -> Maps {
    let mut dx = Maps::uninit(dy.images, [height, width, dy.channels]);
    let (pixels, share) = (height * width, 1.0 / (height * width) as f32);
    let images = dx.values_mut().chunks_exact_mut(pixels * dy.channels);
    for (dx, dy) in images.zip(dy.values().chunks_exact(dy.channels)) {
        for dx in dx.chunks_exact_mut(dy.len()) {
            for (dx, dy) in dx.iter_mut().zip(dy) {
                *dx = dy * share;
            }
        }
    }
    dx
}

/// Computes a += b.
///
/// # Panics
/// If the maps differ in size.
pub fn add(a: &mut Maps, b: &Maps) {
    assert!(a.images == b.images && a.shape() == b.shape(), "maps of other sizes");
    for (a, b) in a.values_mut().iter_mut().zip(b.values()) {
        *a += b;
    }
}

/// Multiplies x by the first factor where `by` > 0, and by the second elsewhere. Applied to a gradient, it is
/// also its own backward pass.
///
/// # Panics
/// If the maps differ in size.
pub fn gate(x: &Maps, by: &Maps, factors: [f32; 2]) -> Maps {
    assert!(x.images == by.images && x.shape() == by.shape(), "maps of other sizes");
    let mut y = x.like();
    run(Gate { x: x.values(), by: by.values(), factors, y: y.values_mut() });
    y
}

struct Gate<'a> {
    x: &'a [f32],
    by: &'a [f32],
    factors: [f32; 2],
    y: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let [open, closed] = self.factors;
        for ((y, x), by) in self.y.iter_mut().zip(self.x).zip(self.by) {
            *y = x * if *by > 0.0 { open } else { closed };
        }
    }
}

/// Multiplies every pixel by the row of its image, `rows` (images, 1, 1, channels).
///
/// # Panics
/// If there is not one row of as many channels for each image.
pub fn scale(x: &Maps, rows: &Maps) -> Maps {
    assert!(x.images == rows.images && rows.shape() == [1, 1, x.channels], "one row an image");
    let mut y = x.like();
    let each = x.height * x.width * x.channels;
    let images = y.values_mut().chunks_exact_mut(each).zip(x.values().chunks_exact(each));
    for ((y, x), row) in images.zip(rows.values().chunks_exact(x.channels)) {
        run(Scale { x, row, y });
    }
    y
}

/// Computes y = row x at every pixel.
struct Scale<'a> {
    x: &'a [f32],
    row: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let c = self.row.len();
        for (y, x) in self.y.chunks_exact_mut(c).zip(self.x.chunks_exact(c)) {
            for ((y, x), factor) in y.iter_mut().zip(x).zip(self.row) {
                *y = x * factor;
            }
        }
    }
}

/// Computes the gradient of [`scale`] with respect to its rows.
pub fn scale_backward(x: &Maps, dy: &Maps) -> Maps {
    let mut rows = Maps::uninit(x.images, [1, 1, x.channels]);
    rows.values_mut().fill(0.0);
    let each = x.height * x.width * x.channels;
    let images = x.values().chunks_exact(each).zip(dy.values().chunks_exact(each));
    for ((x, dy), row) in images.zip(rows.values_mut().chunks_exact_mut(x.channels)) {
        run(Products { x, dy, row });
    }
    rows
}

/// Computes row += x dy, summed over all pixels.
struct Products<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    row: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let c = self.row.len();
        for (x, dy) in self.x.chunks_exact(c).zip(self.dy.chunks_exact(c)) {
            for ((sum, x), dy) in self.row.iter_mut().zip(x).zip(dy) {
                *sum += x * dy;
            }
        }
    }
}

/// Computes 1 / sqrt(x + eps).
pub fn rsqrt(x: &Maps, eps: f32) -> Maps {
    let mut y = x.like();
    for (y, x) in y.values_mut().iter_mut().zip(x.values()) {
        *y = 1.0 / (x + eps).sqrt();
    }
    y
}

/// Computes the gradient of [`rsqrt`] with respect to x.
pub fn rsqrt_backward(x: &Maps, eps: f32, dy: &Maps) -> Maps {
    let mut dx = rsqrt(x, eps);
    for (y, dy) in dx.values_mut().iter_mut().zip(dy.values()) {
        *y *= -0.5 * *y * *y * dy;
    }
    dx
}
