//! The weight gradient of one layer from all images at once, for layers whose sums of all coefficients
//! do not fit in a cache. Threads share the tiles for the transforms, and then the coefficients and
//! output channels for the sums. Each sum is a chain over the tiles of a block, added to those of the
//! blocks before it, so its bits do not depend on the number of threads.

use super::{COEFFICIENTS, Part, Tiles, transform_gradients, transform_inputs, weights};
use crate::network::cpu::maps::Maps;
use crate::network::cpu::memory::Aligned;
use crate::network::cpu::simd::lanes::{Kernel, LANES, Lanes, run};
use crate::network::cpu::simd::product::{PANEL, Shifted, outer};
use rayon::prelude::*;

/// Tiles of a block: the coefficients of a panel of outputs stay in the L1 cache from one group of inputs to
/// the next.
const BLOCK: usize = 128;
/// Most blocks whose coefficients are kept. One coefficient of 256 inputs then stays in the L2 cache from one
/// panel to the next.
const BLOCKS: usize = 4;

/// Memory that is kept from one layer to the next.
#[derive(Default)]
pub struct Scratch {
    v: Option<Aligned>,
    w: Option<Aligned>,
    sums: Option<Aligned>,
}

/// Returns `len` values of `kept`, which it allocates again if there are fewer.
fn at_least(kept: &mut Option<Aligned>, len: usize) -> &mut [f32] {
    if kept.as_ref().is_none_or(|kept| kept.len() < len) {
        *kept = None;
        *kept = Some(Aligned::zeros(len));
    }
    &mut kept.as_mut().expect("just made")[..len]
}

/// Computes the gradient (outputs, inputs, 3, 3) of a weight from the inputs `x` of its convolution and the
/// gradients `dy` of its outputs, which are in maps of as many images each except for the last.
///
/// # Panics
/// If the sizes do not fit.
pub fn gradient_over(x: &[&Maps], dy: &[&Maps], scratch: &mut Scratch) -> Vec<f32> {
    let sizes = |maps: &[&Maps]| -> Vec<_> { maps.iter().map(|m| (m.images, m.height, m.width)).collect() };
    let alike = |maps: &[&Maps]| maps.iter().all(|m| m.shape() == maps[0].shape());
    assert!(alike(x) && alike(dy) && sizes(x) == sizes(dy), "{:?} and {:?}", sizes(x), sizes(dy));
    let (last, whole) = x.split_last().expect("a layer has images");
    assert!(whole.iter().all(|m| m.images == x[0].images) && last.images <= x[0].images);
    let (inputs, outputs, tiles) = (x[0].channels, dy[0].channels, Tiles::of(x));
    let (groups, panels) = (inputs.div_ceil(LANES), outputs.div_ceil(PANEL));
    let (each_v, each_w) = (COEFFICIENTS * BLOCK * groups * LANES, COEFFICIENTS * BLOCK * panels * PANEL);
    let each_sum = groups * LANES * PANEL;
    let blocks = tiles.count.div_ceil(BLOCK).min(BLOCKS);
    let v = at_least(&mut scratch.v, blocks * each_v);
    let w = at_least(&mut scratch.w, blocks * each_w);
    let sums = at_least(&mut scratch.sums, COEFFICIENTS * panels * each_sum);
    for start in (0..tiles.count).step_by(BLOCK * BLOCKS) {
        let block = |i: usize, maps| {
            let first = start + i * BLOCK;
            Part { maps, tiles, first, n: BLOCK.min(tiles.count - first) }
        };
        let used = (tiles.count - start).div_ceil(BLOCK).min(BLOCKS);
        let (v, w) = (&mut v[..used * each_v], &mut w[..used * each_w]);
        rayon::join(
            || {
                let blocks = v.par_chunks_mut(each_v).enumerate();
                blocks.for_each(|(i, to)| run(Transform { part: block(i, x), gradients: false, to }));
            },
            || {
                let blocks = w.par_chunks_mut(each_w).enumerate();
                blocks.for_each(|(i, to)| run(Transform { part: block(i, dy), gradients: true, to }));
            },
        );
        sums.par_chunks_mut(each_sum).enumerate().for_each(|(which, sums)| {
            if start == 0 {
                sums.fill(0.0);
            }
            let coefficient = which / panels;
            for (i, (v, w)) in v.chunks_exact(each_v).zip(w.chunks_exact(each_w)).enumerate() {
                let n = block(i, x).n;
                let starts: Vec<usize> = (0..n).map(|tile| tile * LANES).collect();
                let groups: Vec<usize> = (0..groups).map(|group| group * n * LANES).collect();
                let v = &v[coefficient * groups.len() * n * LANES..];
                outer(Shifted::new(v, &starts, &groups, LANES), &w[which * n * PANEL..], PANEL, sums);
            }
        });
    }
    let sums = &*sums;
    let mut gradient = vec![0f32; 9 * inputs * outputs];
    gradient.par_chunks_mut(9 * inputs * LANES).enumerate().for_each(|(i, to)| {
        let (panel, skip) = (i * LANES / PANEL, i * LANES % PANEL);
        let row = |coefficient: usize, input: usize| {
            &sums[(coefficient * panels + panel) * each_sum + input * PANEL + skip..]
        };
        weights::gather_outputs(inputs, row, to);
    });
    gradient
}

/// Transforms a part of the inputs, or of the gradients of the outputs.
struct Transform<'a> {
    part: Part<'a>,
    gradients: bool,
    to: &'a mut [f32],
}

impl Kernel for Transform<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Transform { part, gradients, to } = self;
        // SAFETY: there is room for the coefficients of a whole block, whose channels are padded to whole
        // groups.
        unsafe {
            if gradients {
                transform_gradients::<L>(part, &vec![0f32; part.channels()], PANEL, to);
            } else {
                transform_inputs::<L>(part, LANES, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{add_gradient, sums_len, taps};
    use super::*;
    use crate::rng::Stream;

    /// Maps of several images, more tiles than are kept at once: as all images in one, on any threads.
    #[test]
    fn as_the_sums_of_one_map() {
        let (shape, [inputs, outputs]) = ([40, 61], [17, 40]);
        let values = |name: &str, n: usize| Stream::new("layer", name).normals(0, n);
        let maps = |name: &str, images: usize, channels: usize, first: usize| {
            let each = shape[0] * shape[1] * channels;
            let values = values(name, 5 * each)[first * each..][..images * each].to_vec();
            Maps::new(images, [shape[0], shape[1], channels], values)
        };
        let parts =
            |name: &str, channels| [(0, 2), (2, 2), (4, 1)].map(|(at, n)| maps(name, n, channels, at));
        let (x, dy) = (parts("x", inputs), parts("dy", outputs));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut scratch = Scratch::default();
            pool.install(|| gradient_over(&x.each_ref(), &dy.each_ref(), &mut scratch))
        };
        let one = on(1);
        assert!(one == on(2) && one == on(5));
        let mut sums = vec![0f32; sums_len(inputs, outputs)];
        add_gradient(&maps("x", 5, inputs, 0), &maps("dy", 5, outputs, 0), &mut sums);
        let mut expected = vec![0f32; one.len()];
        taps(&sums, [inputs, outputs], &mut expected);
        for (found, expected) in one.iter().zip(&expected) {
            assert!((found - expected).abs() < 2e-3, "{found} for {expected}");
        }
    }
}
