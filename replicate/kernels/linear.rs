//! y = x W^T + b, each output a chain of its own: the bits of a row do not
//! depend on the batch that it is in.

use super::tile::{COLUMNS, Input, Planes, ROWS, SLACK, contract, correlate, pack, round_up};
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x` (B, I), `w` (O, I), optional `bias` (O); gives (B, O).
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return reference(x, w, bias);
    }
    let y = x.contiguous()?.apply_op2(&w.contiguous()?, Linear)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub fn reference(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&w.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct Linear;

/// (rows, columns) to (columns, stride), zero-filled, with room to over-read.
fn transpose(x: &[f32], rows: usize, columns: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0f32; columns * stride + SLACK];
    for r in 0..rows {
        for c in 0..columns {
            out[c * stride + r] = x[r * columns + c];
        }
    }
    out
}

/// (B, I) times packed (O, I)^T.
fn product(x: &[f32], batch: usize, inner: usize, packed: &[f32], outputs: usize) -> Vec<f32> {
    let stride = round_up(batch, COLUMNS);
    let xt = transpose(x, batch, inner, stride);
    let mut block_out = vec![0f32; ROWS * stride];
    let mut y = vec![0f32; batch * outputs];
    for (block, weights) in packed.chunks_exact(inner * ROWS).enumerate() {
        correlate(
            Input { x: &xt, plane: stride, channels: inner, taps: &[0] },
            weights,
            batch,
            &mut block_out,
            stride,
        );
        for r in 0..ROWS.min(outputs - block * ROWS) {
            for b in 0..batch {
                y[b * outputs + block * ROWS + r] = block_out[r * stride + b];
            }
        }
    }
    y
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((b, i), (o, wi)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        if i != wi {
            bail!("linear: input {:?}, weight {:?}", lx.shape(), lw.shape());
        }
        let w = values(w, lw)?;
        let y = product(values(x, lx)?, b, i, &pack(o, i, |row, k| w[row * i + k]), o);
        Ok((CpuStorage::F32(y), (b, o).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((b, i), o) = (x.dims2()?, w.dim(0)?);
        with_values([x, w, dy], |[xs, ws, dys]| {
            let dx = if x.track_op() {
                let dx = product(dys, b, o, &pack(i, o, |row, k| ws[k * i + row]), i);
                Some(Tensor::from_vec(dx, (b, i), x.device())?)
            } else {
                None
            };
            let dw = if w.track_op() {
                let stride = round_up(b, 8);
                let (xt, dyt) = (transpose(xs, b, i, stride), transpose(dys, b, o, stride));
                let columns: Vec<usize> = (0..i).map(|c| c * stride).collect();
                let mut dw = vec![0f32; o * i];
                for (block, sums) in dw.chunks_mut(ROWS * i).enumerate() {
                    let y = Planes { values: &dyt[block * ROWS * stride..], image: 0, plane: stride };
                    let x = Planes { values: &xt, image: 0, plane: stride };
                    contract(1, stride, y, sums.len() / i, x, &columns, sums);
                }
                Some(Tensor::from_vec(dw, (o, i), w.device())?)
            } else {
                None
            };
            Ok((dx, dw))
        })
    }
}
