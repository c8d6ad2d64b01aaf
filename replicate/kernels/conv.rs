//! Convolution, stride 1, same size, 1x1 or 3x3, with bias.
//!
//! An image is copied once into planes with a zero border; a row of outputs is
//! then one correlation over flat memory, border columns included and thrown
//! away on the way out. The input gradient is the same correlation with the
//! kernel turned round; the weight gradient contracts over pixels.

use super::tile::{COLUMNS, Input, Planes, ROWS, SLACK, contract, correlate, pack, round_up};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// y = x * w + bias. `x` (B, C, H, W), `w` (O, C, k, k) with k = 1 or 3, `bias`
/// (O), or (B, O) for one bias an image (where a U-Net block adds its noise
/// embedding). Gives (B, O, H, W).
pub fn conv2d(x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op3(&w.contiguous()?, &bias.contiguous()?, Conv2d);
    }
    #[cfg(feature = "cudnn")]
    if super::cuda::takes(x) {
        return super::cuda::conv2d(x, w, bias);
    }
    reference(x, w, bias)
}

pub fn reference(x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (out, k) = (w.dim(0)?, w.dim(2)?);
    x.conv2d(w, k / 2, 1, 1, 1)?.broadcast_add(&bias.reshape(((), out, 1, 1))?)
}

struct Conv2d;

/// Sizes of one convolution; H rows of W pixels become H rows of `pitch`.
#[derive(Clone, Copy)]
struct Geometry {
    height: usize,
    width: usize,
    border: usize,
}

impl Geometry {
    fn new(height: usize, width: usize, kernel: usize) -> Geometry {
        Geometry { height, width, border: kernel / 2 }
    }
    fn pitch(&self) -> usize {
        self.width + 2 * self.border
    }
    fn plane(&self) -> usize {
        (self.height + 2 * self.border) * self.pitch()
    }
    /// Pixels of the flat output, border columns included.
    fn flat(&self) -> usize {
        self.height * self.pitch()
    }
    fn taps(&self) -> Vec<usize> {
        let k = 2 * self.border + 1;
        (0..k * k).map(|t| (t / k) * self.pitch() + t % k).collect()
    }
    fn padded_len(&self, channels: usize) -> usize {
        channels * self.plane() + SLACK + 8
    }
    /// Copies (channels, H, W) into zeroed padded planes.
    fn pad(&self, image: &[f32], padded: &mut [f32]) {
        for (c, rows) in image.chunks_exact(self.height * self.width).enumerate() {
            for (y, row) in rows.chunks_exact(self.width).enumerate() {
                let at = c * self.plane() + (y + self.border) * self.pitch() + self.border;
                padded[at..at + self.width].copy_from_slice(row);
            }
        }
    }
}

/// Correlates one padded image with packed weights into `out` (rows, H, W).
fn correlate_image(
    g: Geometry,
    padded: &[f32],
    channels: usize,
    packed: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let taps = g.taps();
    let stride = round_up(g.flat(), COLUMNS);
    let mut block_out = vec![0f32; ROWS * stride];
    let pixels = g.height * g.width;
    let input = Input { x: padded, plane: g.plane(), channels, taps: &taps };
    for (block, (weights, out)) in
        packed.chunks_exact(channels * taps.len() * ROWS).zip(out.chunks_mut(ROWS * pixels)).enumerate()
    {
        correlate(input, weights, g.flat(), &mut block_out, stride);
        for (r, plane) in out.chunks_exact_mut(pixels).enumerate() {
            let b = bias.map_or(0.0, |b| b[block * ROWS + r]);
            for (y, row) in plane.chunks_exact_mut(g.width).enumerate() {
                let from = &block_out[r * stride + y * g.pitch()..][..g.width];
                for (o, v) in row.iter_mut().zip(from) {
                    *o = v + b;
                }
            }
        }
    }
}

/// Applies `correlate_image` to each image of a batch, on all threads.
fn correlate_batch(
    g: Geometry,
    x: &[f32],
    channels: usize,
    packed: &[f32],
    rows: usize,
    bias: impl Fn(usize) -> Option<Vec<f32>> + Sync,
) -> Vec<f32> {
    let pixels = g.height * g.width;
    let batch = x.len() / (channels * pixels);
    let mut out = vec![0f32; batch * rows * pixels];
    out.par_chunks_mut(rows * pixels).zip(x.par_chunks(channels * pixels)).enumerate().for_each_init(
        || vec![0f32; g.padded_len(channels)],
        |padded, (i, (out, image))| {
            g.pad(image, padded);
            correlate_image(g, padded, channels, packed, bias(i).as_deref(), out);
        },
    );
    out
}

/// Images whose weight gradients are summed in one register chain. A constant,
/// so that the order of the sum never depends on the number of threads.
const CHUNK: usize = 4;

/// dL/dw (O, C, k, k) from dL/dy and x.
fn weight_gradient(g: Geometry, x: &[f32], channels: usize, dy: &[f32], rows: usize) -> Vec<f32> {
    let pixels = g.height * g.width;
    let taps = g.taps();
    let columns_per_row = channels * taps.len();
    let columns: Vec<usize> =
        (0..channels).flat_map(|c| taps.iter().map(move |t| c * g.plane() + t)).collect();
    let flat = round_up(g.flat(), 8);
    let partial: Vec<Vec<f32>> = x
        .par_chunks(CHUNK * channels * pixels)
        .zip(dy.par_chunks(CHUNK * rows * pixels))
        .map(|(x, dy)| {
            let images = x.len() / (channels * pixels);
            let x_image = g.padded_len(channels);
            let mut xs = vec![0f32; images * x_image];
            for (image, padded) in x.chunks_exact(channels * pixels).zip(xs.chunks_exact_mut(x_image)) {
                g.pad(image, padded);
            }
            let mut ys = vec![0f32; images * rows * flat];
            for (from, to) in dy.chunks_exact(pixels).zip(ys.chunks_exact_mut(flat)) {
                for (row, to) in from.chunks_exact(g.width).zip(to.chunks_mut(g.pitch())) {
                    to[..g.width].copy_from_slice(row);
                }
            }
            let mut sums = vec![0f32; rows * columns_per_row];
            for (block, sums) in sums.chunks_mut(ROWS * columns_per_row).enumerate() {
                let y = Planes { values: &ys[block * ROWS * flat..], image: rows * flat, plane: flat };
                let x = Planes { values: &xs, image: x_image, plane: g.plane() };
                contract(images, flat, y, sums.len() / columns_per_row, x, &columns, sums);
            }
            sums
        })
        .collect();
    sum_in_order(partial)
}

fn sum_in_order(partial: Vec<Vec<f32>>) -> Vec<f32> {
    let mut partial = partial.into_iter();
    let mut total = partial.next().unwrap_or_default();
    for part in partial {
        for (t, p) in total.iter_mut().zip(part) {
            *t += p;
        }
    }
    total
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, wd) = lx.shape().dims4()?;
        let (o, ci, k, k2) = lw.shape().dims4()?;
        if ci != c || k != k2 || !(k == 1 || k == 3) || (lb.dims() != [o] && lb.dims() != [b, o]) {
            bail!("conv2d: input {:?}, weight {:?}, bias {:?}", lx.shape(), lw.shape(), lb.shape());
        }
        let (x, w, bias) = (values(x, lx)?, values(w, lw)?, values(bias, lb)?);
        let inner = c * k * k;
        let packed = pack(o, inner, |row, i| w[row * inner + i]);
        let per_image = lb.dims().len() == 2;
        let bias_of = |i: usize| Some(bias[if per_image { i * o } else { 0 }..][..o].to_vec());
        let out = correlate_batch(Geometry::new(h, wd, k), x, c, &packed, o, bias_of);
        Ok((CpuStorage::F32(out), (b, o, h, wd).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, c, h, wd) = x.dims4()?;
        let (o, _, k, _) = w.dims4()?;
        let g = Geometry::new(h, wd, k);
        with_values([x, w, dy], |[xs, ws, dys]| {
            let dx = if x.track_op() {
                let taps = k * k;
                // The transposed kernel, turned by 180 degrees.
                let packed =
                    pack(c, o * taps, |row, i| ws[((i / taps) * c + row) * taps + (taps - 1 - i % taps)]);
                let dx = correlate_batch(g, dys, o, &packed, c, |_| None);
                Some(Tensor::from_vec(dx, (b, c, h, wd), x.device())?)
            } else {
                None
            };
            let dw = if w.track_op() {
                let dw = weight_gradient(g, xs, c, dys, o);
                Some(Tensor::from_vec(dw, (o, c, k, k), w.device())?)
            } else {
                None
            };
            let db = if bias.track_op() {
                let sums: Vec<f32> = dys.par_chunks(h * wd).map(sum).collect();
                let per_image = Tensor::from_vec(sums, (b, o), bias.device())?;
                Some(if bias.rank() == 2 { per_image } else { per_image.sum(0)? })
            } else {
                None
            };
            Ok((dx, dw, db))
        })
    }
}

/// Eight interleaved partial sums, added in order.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for eight in values.chunks(8) {
        for (l, v) in lanes.iter_mut().zip(eight) {
            *l += v;
        }
    }
    lanes.iter().sum()
}
