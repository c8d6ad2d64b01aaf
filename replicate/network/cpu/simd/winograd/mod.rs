//! 3x3 convolution by Winograd's F(2x2, 3x3) (Lavin and Gray 2016): a tile of 2x2 outputs takes 16
//! multiplications for each pair of channels instead of 36. In the transformed basis the
//! convolution is 16 matrix products, one for each coefficient of a tile, and so is the weight
//! gradient:
//!
//! y = A^T [(G g G^T) (B^T d B)] A, dg = G^T [(A dy A^T) (B^T d B)] G
//!
//! The products in brackets are elementwise, summed over the input channels or over the tiles. The
//! matrices contain 0, 1, -1 and 1/2, so the rounding errors are as small as those of the direct
//! sum.

mod layer;
mod weights;

pub use layer::{Scratch, gradient_over};
pub use weights::{panels, taps};

use super::lanes::{Kernel, LANES, Lanes, run};
use super::product::{Dense, Epilogue, Outer, Panels, Product};
use crate::network::cpu::maps::Maps;
use crate::network::cpu::memory::Buffer;

/// Coefficients of a tile.
const COEFFICIENTS: usize = 16;

/// Length of the sums that [`add_gradient`] adds to.
pub fn sums_len(inputs: usize, outputs: usize) -> usize {
    COEFFICIENTS * inputs * outputs
}

/// Computes y = x * w + bias, then applies `epilogue` (without ReLU). `panels` come from [`panels`].
pub fn convolve(x: &Maps, panels: &[Panels], epilogue: Epilogue) -> Maps {
    let mut y = Maps::uninit(x.images, [x.height, x.width, panels[0].columns]);
    let same = |p: &Panels| p.inner == x.channels && p.columns == y.channels;
    assert!(panels.len() == COEFFICIENTS && panels.iter().all(same), "panels of {} channels", x.channels);
    assert!(!epilogue.relu, "nothing asks for it");
    assert!(epilogue.residual.is_none_or(|r| r.len() == y.values().len()));
    let groups = if epilogue.group == 0 { 1 } else { x.images };
    assert!(epilogue.bias.is_none_or(|b| b.len() == groups * y.channels));
    run(Convolve { x, panels, epilogue, y: &mut y });
    y
}

/// Adds the weight gradient to `sums` (coefficient, input, output).
pub fn add_gradient(x: &Maps, dy: &Maps, sums: &mut [f32]) {
    assert_eq!(sums.len(), sums_len(x.channels, dy.channels));
    assert!([x.images, x.height, x.width] == [dy.images, dy.height, dy.width]);
    run(Gradient { x, dy, sums });
}

/// The tiles of all images, row by row.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    height: usize,
    width: usize,
    count: usize,
}

impl Tiles {
    fn of(maps: &[&Maps]) -> Tiles {
        let (height, width) = (maps[0].height, maps[0].width);
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let images: usize = maps.iter().map(|maps| maps.images).sum();
        Tiles { rows, columns, height, width, count: images * rows * columns }
    }

    /// Number of tiles to process together, so that their coefficients with `channels` values each
    /// stay in the L2 cache.
    fn at_once(&self, channels: usize) -> usize {
        // A multiple of the register blocks of 8 and of 12 rows.
        (4096 / channels).clamp(48, 192).next_multiple_of(24).min(self.count)
    }

    /// Returns the image, and the first output row and column of the tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (row, column) = (tile / self.columns % self.rows, tile % self.columns);
        (tile / (self.rows * self.columns), 2 * row, 2 * column)
    }

    /// Returns the index of pixel (y, x) among all pixels, or `None` outside the image.
    fn pixel(&self, image: usize, y: usize, x: usize) -> Option<usize> {
        // A pixel above or to the left wraps round to a large index, so one comparison is enough.
        (y < self.height && x < self.width).then(|| (image * self.height + y) * self.width + x)
    }
}

/// Pointers to the 4 rows of 4 pixels that a tile reads: into the image, or at its edges into a
/// copy padded with zeros.
struct Patch {
    rows: [*const f32; 4],
    patch: Buffer,
}

impl Patch {
    fn new(channels: usize) -> Patch {
        Patch { rows: [std::ptr::null(); 4], patch: Buffer::uninit(16 * channels) }
    }

    /// Points to the 4x4 pixels from (y, x) on; negative positions are wrapped round.
    #[inline(always)]
    fn look<L: Lanes>(&mut self, maps: &Maps, tiles: Tiles, image: usize, [y, x]: [usize; 2]) {
        let (values, channels) = (maps.values(), maps.channels);
        let inside = |at: usize, size: usize| at < size && at + 4 <= size;
        if inside(y, tiles.height) && inside(x, tiles.width) {
            for (i, row) in self.rows.iter_mut().enumerate() {
                let pixel = (image * tiles.height + y + i) * tiles.width + x;
                *row = values[pixel * channels..].as_ptr();
            }
            return;
        }
        assert!(self.patch.len() == 16 * channels);
        let patch = self.patch.as_mut_ptr();
        for (i, row) in self.rows.iter_mut().enumerate() {
            let to = patch.wrapping_add(4 * i * channels);
            *row = to;
            for j in 0..4 {
                let from = tiles.pixel(image, y.wrapping_add(i), x.wrapping_add(j));
                let from = from.map(|pixel| values[pixel * channels..][..channels].as_ptr());
                // SAFETY: `channels` values of the pixel, and of its place in the patch.
                unsafe {
                    for c in (0..channels).step_by(LANES) {
                        let v = match from {
                            Some(from) => L::load_first(from.add(c), channels - c),
                            None => L::splat(0.0),
                        };
                        v.store_first(to.add(j * channels + c), channels - c);
                    }
                }
            }
        }
    }
}

/// Some tiles of maps that all have as many images, except for the last, which may have fewer.
#[derive(Clone, Copy)]
struct Part<'a> {
    maps: &'a [&'a Maps],
    tiles: Tiles,
    /// First tile, and their number.
    first: usize,
    n: usize,
}

impl<'a> Part<'a> {
    /// Returns the maps of a tile, its image in them, and its first output row and column.
    #[inline(always)]
    fn place(&self, tile: usize) -> (&'a Maps, usize, usize, usize) {
        let (image, top, left) = self.tiles.place(self.first + tile);
        match self.maps {
            [all] => (all, image, top, left),
            maps => {
                let each = maps[0].images;
                (maps[image / each], image % each, top, left)
            }
        }
    }

    fn channels(&self) -> usize {
        self.maps[0].channels
    }

    /// Values of a coefficient, whose channels are padded to whole groups.
    fn pitch(&self, group: usize) -> usize {
        self.channels().div_ceil(group) * self.n * group
    }
}

/// Computes B^T d B of tiles, with `d` the 4x4 inputs of a tile, to (coefficient, group of `group` channels,
/// tile, channel of the group). A multiple of sixteen, or all channels, make a group.
#[inline(always)]
unsafe fn transform_inputs<L: Lanes>(part: Part, group: usize, to: &mut [f32]) {
    let (channels, pitch) = (part.channels(), part.pitch(group));
    let mut patch = Patch::new(channels);
    for t in 0..part.n {
        let (x, image, top, left) = part.place(t);
        patch.look::<L>(x, part.tiles, image, [top.wrapping_sub(1), left.wrapping_sub(1)]);
        for (i, start) in (0..channels).step_by(group).enumerate() {
            for c in (start..channels.min(start + group)).step_by(LANES) {
                let (at, width) = ((i * part.n + t) * group + c - start, channels - c);
                // SAFETY: `channels` values of each pixel, and in each coefficient of a tile.
                unsafe {
                    let mut half = [[L::splat(0.0); 4]; 4];
                    for (j, half) in half.iter_mut().enumerate() {
                        let mut d = [L::splat(0.0); 4];
                        for (d, row) in d.iter_mut().zip(patch.rows) {
                            *d = L::load_first(row.add(j * channels + c), width);
                        }
                        *half = input_basis(d);
                    }
                    for i in 0..4 {
                        let row = input_basis([half[0][i], half[1][i], half[2][i], half[3][i]]);
                        for (j, v) in row.into_iter().enumerate() {
                            v.store_first(to.as_mut_ptr().add((i * 4 + j) * pitch + at), width);
                        }
                    }
                }
            }
        }
    }
}

/// Computes B^T v.
#[inline(always)]
unsafe fn input_basis<L: Lanes>(v: [L; 4]) -> [L; 4] {
    // SAFETY: uses no pointers.
    unsafe { [v[0].sub(v[2]), v[1].add(v[2]), v[2].sub(v[1]), v[1].sub(v[3])] }
}

struct Convolve<'a> {
    x: &'a Maps,
    panels: &'a [Panels],
    epilogue: Epilogue<'a>,
    y: &'a mut Maps,
}

impl Kernel for Convolve<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Convolve { x, panels, epilogue, y } = self;
        let (maps, inputs, outputs) = ([x], x.channels, y.channels);
        let tiles = Tiles::of(&maps);
        let most = tiles.at_once(inputs + outputs);
        let mut v = Buffer::uninit(COEFFICIENTS * most * inputs);
        let mut m = Buffer::uninit(COEFFICIENTS * most * outputs);
        for first in (0..tiles.count).step_by(most) {
            let n = most.min(tiles.count - first);
            // SAFETY: the buffers hold the coefficients of `n` tiles, `y` the outputs of all.
            unsafe {
                transform_inputs::<L>(Part { maps: &maps, tiles, first, n }, inputs, &mut v);
                let (v, m) = (&v[..COEFFICIENTS * n * inputs], &mut m[..COEFFICIENTS * n * outputs]);
                let matrices = v.chunks_exact(n * inputs).zip(m.chunks_exact_mut(n * outputs));
                for ((v, m), panels) in matrices.zip(panels) {
                    let rows = Dense { values: v, length: inputs };
                    let epilogue = Epilogue::default();
                    Product { rows, panels, epilogue, out: m, stride: outputs }.run::<L>();
                }
                transform_outputs::<L>(m, tiles, first, n, epilogue, y);
            }
        }
    }
}

/// Computes A^T m A, with the bias, the residual and the scale.
#[inline(always)]
unsafe fn transform_outputs<L: Lanes>(
    m: &[f32],
    tiles: Tiles,
    first: usize,
    n: usize,
    epilogue: Epilogue,
    y: &mut Maps,
) {
    let channels = y.channels;
    for t in 0..n {
        let (image, top, left) = tiles.place(first + t);
        let bias =
            epilogue.bias.map(|bias| bias[if epilogue.group == 0 { 0 } else { image * channels }..].as_ptr());
        for c in (0..channels).step_by(LANES) {
            let width = channels - c;
            // SAFETY: `channels` values in each coefficient of a tile, of the bias, and of each
            // pixel.
            unsafe {
                let mut half = [[L::splat(0.0); 4]; 2];
                for j in 0..4 {
                    let mut column = [L::splat(0.0); 4];
                    for (i, v) in column.iter_mut().enumerate() {
                        *v = L::load_first(m.as_ptr().add(((i * 4 + j) * n + t) * channels + c), width);
                    }
                    for (half, v) in half.iter_mut().zip(output_basis(column)) {
                        half[j] = v;
                    }
                }
                let bias = match bias {
                    Some(bias) => L::load_first(bias.add(c), width),
                    None => L::splat(0.0),
                };
                for (i, row) in half.into_iter().enumerate() {
                    for (j, v) in output_basis(row).into_iter().enumerate() {
                        let Some(pixel) = tiles.pixel(image, top + i, left + j) else { continue };
                        let at = pixel * channels + c;
                        let mut v = v.add(bias);
                        if let Some(residual) = epilogue.residual {
                            v = v.add(L::load_first(residual.as_ptr().add(at), width));
                        }
                        if epilogue.scale != 1.0 {
                            v = v.mul(L::splat(epilogue.scale));
                        }
                        v.store_first(y.values_mut().as_mut_ptr().add(at), width);
                    }
                }
            }
        }
    }
}

/// Computes A^T v.
#[inline(always)]
unsafe fn output_basis<L: Lanes>(v: [L; 4]) -> [L; 2] {
    // SAFETY: uses no pointers.
    unsafe { [v[0].add(v[1]).add(v[2]), v[1].sub(v[2]).sub(v[3])] }
}

struct Gradient<'a> {
    x: &'a Maps,
    dy: &'a Maps,
    sums: &'a mut [f32],
}

impl Kernel for Gradient<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Gradient { x, dy, sums } = self;
        let ([x, dy], inputs, outputs) = ([[x], [dy]], x.channels, dy.channels);
        let tiles = Tiles::of(&x);
        let most = tiles.at_once(inputs + outputs);
        let zeros = vec![0f32; outputs];
        let mut v = Buffer::uninit(COEFFICIENTS * most * inputs);
        let mut w = Buffer::uninit(COEFFICIENTS * most * outputs);
        for first in (0..tiles.count).step_by(most) {
            let n = most.min(tiles.count - first);
            // SAFETY: the buffers hold the coefficients of `n` tiles.
            unsafe {
                transform_inputs::<L>(Part { maps: &x, tiles, first, n }, inputs, &mut v);
                transform_gradients::<L>(Part { maps: &dy, tiles, first, n }, &zeros, outputs, &mut w);
            }
            let (v, w) = (&v[..COEFFICIENTS * n * inputs], &w[..COEFFICIENTS * n * outputs]);
            let matrices = v.chunks_exact(n * inputs).zip(w.chunks_exact(n * outputs));
            for ((v, w), sums) in matrices.zip(sums.chunks_exact_mut(inputs * outputs)) {
                let x = Dense { values: v, length: inputs };
                Outer { x, y: w, columns: outputs, sums }.run::<L>();
            }
        }
    }
}

/// Computes A dy A^T of tiles, to the order of [`transform_inputs`]. `zeros` are as many as channels.
#[inline(always)]
unsafe fn transform_gradients<L: Lanes>(part: Part, zeros: &[f32], group: usize, to: &mut [f32]) {
    let (channels, pitch, tiles) = (part.channels(), part.pitch(group), part.tiles);
    for t in 0..part.n {
        let (dy, image, top, left) = part.place(t);
        let mut p = [[zeros.as_ptr(); 2]; 2];
        for (i, row) in p.iter_mut().enumerate() {
            for (j, p) in row.iter_mut().enumerate() {
                if let Some(pixel) = tiles.pixel(image, top + i, left + j) {
                    *p = dy.values()[pixel * channels..].as_ptr();
                }
            }
        }
        for (i, start) in (0..channels).step_by(group).enumerate() {
            for c in (start..channels.min(start + group)).step_by(LANES) {
                let (at, width) = ((i * part.n + t) * group + c - start, channels - c);
                // SAFETY: `channels` values at each pointer, and in each coefficient of a tile.
                unsafe {
                    let mut half = [[L::splat(0.0); 2]; 4];
                    for j in 0..2 {
                        let column = gradient_basis([
                            L::load_first(p[0][j].add(c), width),
                            L::load_first(p[1][j].add(c), width),
                        ]);
                        for (half, v) in half.iter_mut().zip(column) {
                            half[j] = v;
                        }
                    }
                    for (i, row) in half.into_iter().enumerate() {
                        for (j, v) in gradient_basis(row).into_iter().enumerate() {
                            v.store_first(to.as_mut_ptr().add((i * 4 + j) * pitch + at), width);
                        }
                    }
                }
            }
        }
    }
}

/// Computes A v.
#[inline(always)]
unsafe fn gradient_basis<L: Lanes>(v: [L; 2]) -> [L; 4] {
    // SAFETY: uses no pointers.
    unsafe { [v[0], v[0].add(v[1]), v[0].sub(v[1]), L::splat(0.0).sub(v[1])] }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::run_each;
    use super::*;
    use crate::rng::Stream;

    fn random(name: &str, images: usize, shape: [usize; 3]) -> Maps {
        Maps::new(
            images,
            shape,
            Stream::new("winograd", name).normals(0, images * shape.iter().product::<usize>()),
        )
    }

    struct Both<'a> {
        x: &'a Maps,
        dy: &'a Maps,
        panels: &'a [Panels],
        bias: &'a [f32],
    }

    impl Kernel for Both<'_> {
        type Out = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Out {
            let Both { x, dy, panels, bias } = self;
            let mut y = dy.like();
            let epilogue =
                Epilogue { bias: Some(bias), group: 1, residual: Some(dy.values()), scale: 0.5, relu: false };
            Convolve { x, panels, epilogue, y: &mut y }.run::<L>();
            let mut sums = vec![0f32; sums_len(x.channels, dy.channels)];
            Gradient { x, dy, sums: &mut sums }.run::<L>();
            (y.values().to_vec(), sums)
        }
    }

    /// Compares with the direct sums in float64, at every pixel and for every weight; every
    /// instruction set gives the same bits.
    #[test]
    fn as_the_direct_sums_with_all_lanes() {
        for (images, [height, width], inputs, outputs) in
            [(3, [6, 8], 32, 16), (2, [5, 7], 17, 40), (1, [1, 1], 16, 33), (2, [16, 16], 48, 16)]
        {
            let x = random("x", images, [height, width, inputs]);
            let dy = random("dy", images, [height, width, outputs]);
            let w = Stream::new("winograd", "w").normals(0, 9 * inputs * outputs);
            let weight = |i: usize, o: usize, tap: usize| w[(i * outputs + o) * 9 + tap];
            let bias = Stream::new("winograd", "bias").normals(0, images * outputs);
            let panels = panels(inputs, outputs, |i, o| std::array::from_fn(|tap| weight(i, o, tap)));
            let all = run_each(|| Both { x: &x, dy: &dy, panels: &panels, bias: &bias });
            for (lanes, found) in &all {
                let bits = |(y, sums): &(Vec<f32>, Vec<f32>)| -> Vec<u32> {
                    y.iter().chain(sums).map(|v| v.to_bits()).collect()
                };
                assert!(bits(found) == bits(&all[0].1), "{lanes}: {inputs} to {outputs}");
            }
            let (y, sums) = &all[0].1;
            let at = |image: usize, y: isize, x_: isize| {
                let inside = 0 <= y && y < height as isize && 0 <= x_ && x_ < width as isize;
                inside.then(|| (image * height + y as usize) * width + x_ as usize)
            };
            let mut gradient = vec![0f64; 9 * inputs * outputs];
            for image in 0..images {
                for (row, column) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
                    let here = (image * height + row) * width + column;
                    for o in 0..outputs {
                        let d = dy.values()[here * outputs + o] as f64;
                        let mut sum = bias[image * outputs + o] as f64 + d;
                        for tap in 0..9 {
                            let (r, c) = (row + tap / 3, column + tap % 3);
                            let Some(pixel) = at(image, r as isize - 1, c as isize - 1) else { continue };
                            for i in 0..inputs {
                                let v = x.values()[pixel * inputs + i] as f64;
                                sum += v * weight(i, o, tap) as f64;
                                gradient[(i * outputs + o) * 9 + tap] += v * d;
                            }
                        }
                        let found = y[here * outputs + o] as f64;
                        assert!((found - 0.5 * sum).abs() < 1e-4, "{found} for {}", 0.5 * sum);
                    }
                }
            }
            let mut found = vec![0f32; 9 * inputs * outputs];
            taps(sums, [inputs, outputs], &mut found);
            let together = gradient_over(&[&x], &[&dy], &mut Scratch::default());
            for (i, o, tap) in (0..inputs).flat_map(|i| (0..9 * outputs).map(move |k| (i, k / 9, k % 9))) {
                let (expected, at) = (gradient[(i * outputs + o) * 9 + tap], (o * inputs + i) * 9 + tap);
                for found in [found[at], together[at]] {
                    assert!((found as f64 - expected).abs() < 2e-4, "{found} for {expected}");
                }
            }
        }
    }
}
