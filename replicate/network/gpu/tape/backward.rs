//! The backward pass of a network: from the gradient of its output to those of its input and its
//! parameters.

use super::{Shift, Step, add, group_norm, resampled};
use crate::network::Param;
use crate::network::gpu as cuda;
use candle_core::{DType, Result, Tensor};

/// A gradient as a map and a factor, so that linear operations need no pass over the map.
#[derive(Clone)]
pub(super) struct Gradient {
    pub map: Tensor,
    pub scale: f32,
}

impl Gradient {
    fn of(map: Tensor) -> Gradient {
        Gradient { map, scale: 1.0 }
    }

    /// Multiplies the factor out. Only for rows and float32 maps.
    pub fn exact(self) -> Result<Tensor> {
        if self.scale == 1.0 { Ok(self.map) } else { self.map * f64::from(self.scale) }
    }
}

/// State of a backward pass.
struct BackwardPass {
    /// Sum of the gradients of each node so far.
    nodes: Vec<Option<Gradient>>,
    /// Gradients of the parameters reached so far; `None` if they are not trained.
    parameters: Option<Vec<Option<Tensor>>>,
}

impl BackwardPass {
    fn add_to(&mut self, id: Option<usize>, more: Gradient) -> Result<()> {
        let Some(sum) = id.map(|id| &mut self.nodes[id]) else { return Ok(()) };
        *sum = Some(match sum.take() {
            Some(sum) => {
                let scales = [sum.scale, more.scale];
                Gradient::of(cuda::weighted_sum(scales, &sum.map, &more.map)?)
            }
            None => more,
        });
        Ok(())
    }

    fn add_to_parameter(&mut self, param: Param, more: Tensor) -> Result<()> {
        self.parameters.as_mut().map_or(Ok(()), |sums| add(&mut sums[param.0], more))
    }

    /// Adds the gradient of a shift, given for each image as (B, C), to its bias and rows.
    fn add_to_shift(&mut self, shift: &Shift, each: Tensor) -> Result<()> {
        if !shift.biases.is_empty() {
            let sum = cuda::column_sums(&each.unsqueeze(0)?)?.squeeze(0)?;
            for bias in &shift.biases {
                self.add_to_parameter(*bias, sum.clone())?;
            }
        }
        let rows = each.unsqueeze(1)?.unsqueeze(1)?;
        shift.terms.iter().try_for_each(|term| self.add_to(Some(*term), Gradient::of(rows.clone())))
    }

    /// Adds the gradient of a shift, given `d`, `scale` times which is that of the maps it was
    /// added to.
    fn add_to_shift_of(&mut self, shift: Option<&Shift>, d: &Tensor, scale: f32) -> Result<()> {
        match shift.filter(|shift| shift.tracked()) {
            Some(shift) => self.add_to_shift(shift, cuda::pixel_sums(d, scale)?),
            None => Ok(()),
        }
    }
}

/// A finished forward pass.
pub(super) struct ForwardPass {
    pub steps: Vec<(Step, usize)>,
    pub nodes: usize,
    /// Ids of the inputs that have a gradient.
    pub inputs: Vec<usize>,
    pub outputs: Vec<Option<usize>>,
}

impl ForwardPass {
    /// Computes the gradients of the inputs from those of the outputs, and the gradients of the
    /// parameters if they are `trained`.
    pub fn backward(
        self,
        parameters: &[Tensor],
        dy: Vec<Tensor>,
        trained: bool,
    ) -> Result<(Vec<Option<Gradient>>, Vec<Option<Tensor>>)> {
        let sums = trained.then(|| vec![None; parameters.len()]);
        let mut back = BackwardPass { nodes: vec![None; self.nodes], parameters: sums };
        for (output, dy) in self.outputs.into_iter().zip(dy) {
            back.add_to(output, Gradient::of(dy))?;
        }
        // Steps are dropped one by one to free their values early.
        for (step, id) in self.steps.into_iter().rev() {
            let Some(dy) = back.nodes[id].take() else { continue };
            let passed = |map: Tensor| Gradient { map, scale: dy.scale };
            match step {
                Step::Conv { x, input, weight, filters, scale } => {
                    if let Some(x) = x {
                        let shape = parameters[weight.0].shape();
                        let dw = cuda::filter_gradient(&x, shape, &dy.map, scale * dy.scale)?;
                        back.add_to_parameter(weight, dw)?;
                    }
                    if input.is_some() {
                        back.add_to(input, passed(cuda::data_gradient(&filters, &dy.map)?))?;
                    }
                }
                Step::Finish { y, shift, residual, scale } => {
                    let scaled = Gradient { map: dy.map.clone(), scale: scale * dy.scale };
                    back.add_to_shift_of(shift.as_ref(), &scaled.map, scaled.scale)?;
                    back.add_to(residual, scaled)?;
                    back.add_to(y, dy)?;
                }
                Step::Linear { x, input, weight, bias, residual } => {
                    let mut dy = dy.exact()?;
                    if let Some((residual, scale)) = residual {
                        dy = Gradient { map: dy, scale }.exact()?;
                        back.add_to(residual, Gradient::of(dy.clone()))?;
                    }
                    let (w, rows) = (&parameters[weight.0], dy.flatten_from(1)?);
                    if let Some(x) = x {
                        let dw = rows.t()?.matmul(&x.flatten_from(1)?)?.reshape(w.shape())?;
                        back.add_to_parameter(weight, dw)?;
                        if let Some(bias) = bias {
                            let sum = cuda::column_sums(&rows.unsqueeze(0)?)?;
                            back.add_to_parameter(bias, sum.squeeze(0)?)?;
                        }
                    }
                    if input.is_some() {
                        let dx = rows.matmul(&w.flatten_from(1)?)?.unsqueeze(1)?.unsqueeze(1)?;
                        back.add_to(input, Gradient::of(dx))?;
                    }
                }
                Step::Norm { x, norm, kept } => {
                    let affine = [norm.gamma, norm.beta].map(|param| &parameters[param.0]);
                    // The kernel adds the gradient that x already has, which saves a pass.
                    let plus = x.id.and_then(|id| back.nodes[id].take());
                    let arriving = cuda::Arriving {
                        dy: (&dy.map, dy.scale),
                        plus: plus.as_ref().map(|plus| (&plus.map, plus.scale)),
                    };
                    let (dx, each) =
                        group_norm(&norm).backward(&x.map, x.shift_rows(), affine, &kept, arriving)?;
                    if trained {
                        let both = cuda::column_sums(&each.narrow(0, 0, 2)?)?;
                        back.add_to_parameter(norm.beta, both.get(0)?)?;
                        back.add_to_parameter(norm.gamma, both.get(1)?)?;
                    }
                    if let Some(shift) = &x.shift {
                        back.add_to_shift(shift, each.get(2)?)?;
                    }
                    back.add_to(x.id, Gradient::of(dx))?;
                }
                Step::Attention { qkv } => {
                    let (b, h, w, c3) = qkv.map.dims4()?;
                    let da = dy.map.reshape((b, h * w, c3 / 3))?;
                    let rows = qkv.map.reshape((b, h * w, c3))?;
                    let d = cuda::attention_backward(&rows, qkv.shift_rows(), &da)?;
                    let d = passed(d.reshape((b, h, w, c3))?);
                    back.add_to_shift_of(qkv.shift.as_ref(), &d.map, d.scale)?;
                    back.add_to(qkv.id, d)?;
                }
                Step::Silu { x } => back.add_to(x.id, passed(cuda::silu_backward(&x.map, &dy.map)?))?,
                Step::Down2 { x } => back.add_to(x, passed(cuda::up2(&dy.map, 0.25)?))?,
                Step::Up2 { x } => back.add_to(x, passed(cuda::down2(&dy.map, 1.0)?))?,
                Step::Concat { a, channels, b } => {
                    for (id, range) in [(a, 0..channels), (b, channels..dy.map.dim(3)?)] {
                        if id.is_some() {
                            back.add_to(id, passed(cuda::channels(&dy.map, range)?))?;
                        }
                    }
                }
                Step::Mean { x, shape, dtype } => {
                    let (_, h, w, _) = shape.dims4()?;
                    let map = dy.map.to_dtype(dtype)?.broadcast_as(&shape)?.contiguous()?;
                    back.add_to(x, Gradient { map, scale: dy.scale / (h * w) as f32 })?;
                }
                Step::Gate { x, slope } => back.add_to(x, passed((&dy.map * slope)?))?,
                Step::Scale { x, rows } => {
                    if rows.id.is_some() {
                        let products = (&x.map * &dy.map)?.to_dtype(DType::F32)?;
                        back.add_to(rows.id, passed(products.sum_keepdim((1, 2))?))?;
                    }
                    if x.id.is_some() {
                        let factors = rows.map.to_dtype(dy.map.dtype())?;
                        back.add_to(x.id, passed(dy.map.broadcast_mul(&factors)?))?;
                    }
                }
                Step::Rsqrt { x, y } => {
                    let slope = ((y.sqr()? * y)? * -0.5)?;
                    back.add_to(x, passed((&dy.map * slope)?))?;
                }
                Step::Resample { x, back: [vertical, horizontal] } => {
                    back.add_to(x, passed(resampled(&dy.map, [&vertical, &horizontal])?))?;
                }
            }
        }
        let dx = self.inputs.into_iter().map(|id| back.nodes[id].take()).collect();
        Ok((dx, back.parameters.unwrap_or_default()))
    }
}
