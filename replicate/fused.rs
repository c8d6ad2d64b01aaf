//! A network on a GPU: cuDNN's convolutions, cuBLAS and kernels of our own, forward over a
//! batch and backward over what was taken down on the way. Candle sees one operation of
//! the images; what it would do with the gradient of every step, adding it to zeros, costs
//! more memory traffic than most steps.
//!
//! Maps have the channels last, (B, H, W, C), and are float32 or bfloat16. Rows of channels,
//! (B, 1, 1, C), are float32.

use crate::kernels::{cuda, mix};
use crate::network::{Norm, Ops, Param, Plus};
use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor, Var, bail,
};
use std::cell::RefCell;
use std::sync::Mutex;

/// A value, and where its gradient is summed, if it has one.
#[derive(Clone)]
pub struct Node {
    map: Tensor,
    id: Option<usize>,
}

/// One operation, with what its gradient needs: of its operands the ids, and the maps only
/// where they are read again.
enum Step {
    Conv {
        /// Where the weight is trained.
        x: Option<Tensor>,
        input: Option<usize>,
        weight: Param,
        /// The weight as cuDNN takes it, or `None` where rows are multiplied.
        filters: Option<Tensor>,
        bias: Option<Param>,
        term: Option<usize>,
        residual: Option<(Option<usize>, f32)>,
    },
    Norm {
        x: Node,
        norm: Norm,
        kept: Tensor,
    },
    Attention {
        qkv: Node,
    },
    Silu {
        x: Node,
    },
    Down2 {
        x: Option<usize>,
    },
    Up2 {
        x: Option<usize>,
    },
    Concat {
        a: Option<usize>,
        channels: usize,
        b: Option<usize>,
    },
    Mean {
        x: Option<usize>,
        shape: Shape,
        dtype: DType,
    },
}

/// Runs the operations of a network, and takes down those that a gradient goes through.
pub struct Fused<'a> {
    /// Without a history.
    parameters: &'a [Tensor],
    device: &'a Device,
    trained: bool,
    /// The operation, and the id of its result.
    steps: Vec<(Step, usize)>,
    nodes: usize,
}

impl Fused<'_> {
    fn input(&mut self, map: Tensor, tracked: bool) -> Node {
        let id = tracked.then(|| self.id());
        Node { map, id }
    }

    fn id(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    /// Takes the step down if a gradient goes through it.
    fn push(&mut self, map: Tensor, tracked: bool, step: impl FnOnce() -> Step) -> Node {
        let id = tracked.then(|| self.id());
        if let Some(id) = id {
            self.steps.push((step(), id));
        }
        Node { map, id }
    }
}

/// From (B, C, H, W) in float32, or rows (B, C).
fn to_map(x: &Tensor, maps: DType) -> Result<Tensor> {
    match *x.dims() {
        [b, c] => x.reshape((b, 1, 1, c)),
        [..] => x.to_dtype(maps)?.permute((0, 2, 3, 1))?.contiguous(),
    }
}

/// To (B, C, H, W) in float32.
fn from_map(map: &Tensor) -> Result<Tensor> {
    map.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous()
}

fn group_norm(norm: &Norm) -> cuda::GroupNorm {
    cuda::GroupNorm { groups: norm.groups, eps: norm.eps, silu: norm.silu }
}

impl Ops for Fused<'_> {
    type Map = Node;

    fn rows(&mut self, values: Vec<f32>, channels: usize) -> Result<Node> {
        let images = values.len() / channels;
        let rows = Tensor::from_vec(values, (images, 1, 1, channels), self.device)?;
        Ok(self.input(rows, false))
    }

    fn conv(&mut self, x: &Node, weight: Param, bias: Option<Param>, plus: Plus<Node>) -> Result<Node> {
        let (w, m) = (&self.parameters[weight.0], &x.map);
        let (images, outputs) = (m.dim(0)?, w.dim(0)?);
        let bias_of = bias.map(|bias| &self.parameters[bias.0]);
        let term = plus.term.map(|term| term.map.reshape((images, outputs))).transpose()?;
        let rows = m.dims()[1..3] == [1, 1] && w.dims()[2..].iter().all(|side| *side == 1);
        let filters = if rows { None } else { Some(cuda::filters(w, m)?) };
        let y = match &filters {
            None => {
                let mut y = m.flatten_from(1)?.matmul(&w.flatten_from(1)?.t()?)?;
                for more in bias_of.into_iter().chain(&term) {
                    y = y.broadcast_add(more)?;
                }
                let y = y.reshape((images, 1, 1, outputs))?;
                match plus.residual {
                    Some((residual, scale)) => mix(&y, &[scale], &residual.map, &[scale])?,
                    None => y,
                }
            }
            Some(filters) => {
                let both = match (&term, bias_of) {
                    (Some(term), Some(bias)) => Some(term.broadcast_add(bias)?),
                    _ => None,
                };
                let bias = both.as_ref().or(term.as_ref()).or(bias_of);
                let residual = plus.residual.map(|(residual, scale)| (&residual.map, scale));
                cuda::conv2d(m, filters, cuda::Ends { bias, residual })?
            }
        };
        let others = plus.term.into_iter().chain(plus.residual.map(|(residual, _)| residual));
        let trained = self.trained;
        let tracked = trained || x.id.is_some() || others.into_iter().any(|node| node.id.is_some());
        Ok(self.push(y, tracked, || Step::Conv {
            x: trained.then(|| m.clone()),
            input: x.id,
            weight,
            filters,
            bias,
            term: plus.term.and_then(|term| term.id),
            residual: plus.residual.map(|(residual, scale)| (residual.id, scale)),
        }))
    }

    fn norm(&mut self, x: &Node, norm: &Norm) -> Result<Node> {
        let (gamma, beta) = (&self.parameters[norm.gamma.0], &self.parameters[norm.beta.0]);
        let (y, kept) = group_norm(norm).forward(&x.map, gamma, beta)?;
        let tracked = self.trained || x.id.is_some();
        Ok(self.push(y, tracked, || Step::Norm { x: x.clone(), norm: *norm, kept }))
    }

    fn attention(&mut self, qkv: &Node) -> Result<Node> {
        let (b, h, w, c3) = qkv.map.dims4()?;
        let a = cuda::attention(&qkv.map.reshape((b, h * w, c3))?)?.reshape((b, h, w, c3 / 3))?;
        Ok(self.push(a, qkv.id.is_some(), || Step::Attention { qkv: qkv.clone() }))
    }

    fn silu(&mut self, x: &Node) -> Result<Node> {
        let y = cuda::silu(&x.map)?;
        Ok(self.push(y, x.id.is_some(), || Step::Silu { x: x.clone() }))
    }

    fn down2(&mut self, x: &Node) -> Result<Node> {
        let y = cuda::down2(&x.map, 0.25)?;
        Ok(self.push(y, x.id.is_some(), || Step::Down2 { x: x.id }))
    }

    fn up2(&mut self, x: &Node) -> Result<Node> {
        let y = cuda::up2(&x.map, 1.0)?;
        Ok(self.push(y, x.id.is_some(), || Step::Up2 { x: x.id }))
    }

    fn concat(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let (y, channels) = (Tensor::cat(&[&a.map, &b.map], 3)?, a.map.dim(3)?);
        let tracked = a.id.is_some() || b.id.is_some();
        Ok(self.push(y, tracked, || Step::Concat { a: a.id, channels, b: b.id }))
    }

    fn mean(&mut self, x: &Node) -> Result<Node> {
        let y = x.map.to_dtype(DType::F32)?.mean_keepdim((1, 2))?;
        let (shape, dtype) = (x.map.shape().clone(), x.map.dtype());
        Ok(self.push(y, x.id.is_some(), || Step::Mean { x: x.id, shape, dtype }))
    }

    fn tensor(&self, x: &Node) -> Result<Tensor> {
        from_map(&x.map)
    }
}

/// Gradients of the parameters, where the pass reaches them.
struct Sums(Vec<Option<Tensor>>);

impl Sums {
    fn add(&mut self, param: Param, more: Tensor) -> Result<()> {
        add(&mut self.0[param.0], more)
    }
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + more)?,
        None => more,
    });
    Ok(())
}

/// What is left of a forward pass.
struct Taken {
    steps: Vec<(Step, usize)>,
    nodes: usize,
    input: Option<usize>,
    output: Option<usize>,
}

impl Taken {
    /// From the gradient of the output to that of the input; those of the parameters are
    /// added to `sums`.
    fn backward(
        self,
        parameters: &[Tensor],
        dy: Tensor,
        mut sums: Option<&mut Sums>,
    ) -> Result<Option<Tensor>> {
        let mut gradients: Vec<Option<Tensor>> = vec![None; self.nodes];
        if let Some(id) = self.output {
            gradients[id] = Some(dy);
        }
        // Each step is dropped when it is done with, and its values with it.
        for (step, id) in self.steps.into_iter().rev() {
            let Some(mut dy) = gradients[id].take() else { continue };
            let mut give = |id: Option<usize>, more: Tensor| match id {
                Some(id) => add(&mut gradients[id], more),
                None => Ok(()),
            };
            match step {
                Step::Conv { x, input, weight, filters, bias, term, residual } => {
                    let w = &parameters[weight.0];
                    if let Some((residual, scale)) = residual {
                        if scale != 1.0 {
                            dy = cuda::scaled(&dy, scale)?;
                        }
                        give(residual, dy.clone())?;
                    }
                    let trained_bias = bias.filter(|_| sums.is_some());
                    if term.is_some() || trained_bias.is_some() {
                        let each = match filters {
                            None => dy.flatten_from(1)?,
                            Some(_) => cuda::pixel_sums(&dy)?,
                        };
                        if let (Some(bias), Some(sums)) = (trained_bias, &mut sums) {
                            sums.add(bias, cuda::column_sums(&each.unsqueeze(0)?)?.squeeze(0)?)?;
                        }
                        let (images, outputs) = each.dims2()?;
                        give(term, each.reshape((images, 1, 1, outputs))?)?;
                    }
                    if let (Some(x), Some(sums)) = (x, &mut sums) {
                        let dw = match filters {
                            None => {
                                dy.flatten_from(1)?.t()?.matmul(&x.flatten_from(1)?)?.reshape(w.shape())?
                            }
                            Some(_) => cuda::filter_gradient(&x, w.shape(), &dy)?,
                        };
                        sums.add(weight, dw)?;
                    }
                    if input.is_some() {
                        let dx = match &filters {
                            None => {
                                let dx = dy.flatten_from(1)?.matmul(&w.flatten_from(1)?)?;
                                dx.unsqueeze(1)?.unsqueeze(1)?
                            }
                            Some(filters) => cuda::data_gradient(filters, &dy)?,
                        };
                        give(input, dx)?;
                    }
                }
                Step::Norm { x, norm, kept } => {
                    let (gamma, beta) = (&parameters[norm.gamma.0], &parameters[norm.beta.0]);
                    let (dx, each) = group_norm(&norm).backward(&x.map, gamma, beta, &kept, &dy)?;
                    if let Some(sums) = &mut sums {
                        let both = cuda::column_sums(&each)?;
                        sums.add(norm.beta, both.get(0)?)?;
                        sums.add(norm.gamma, both.get(1)?)?;
                    }
                    give(x.id, dx)?;
                }
                Step::Attention { qkv } => {
                    let (b, h, w, c3) = qkv.map.dims4()?;
                    let da = dy.reshape((b, h * w, c3 / 3))?;
                    let d = cuda::attention_backward(&qkv.map.reshape((b, h * w, c3))?, &da)?;
                    give(qkv.id, d.reshape((b, h, w, c3))?)?;
                }
                Step::Silu { x } => give(x.id, cuda::silu_backward(&x.map, &dy)?)?,
                Step::Down2 { x } => give(x, cuda::up2(&dy, 0.25)?)?,
                Step::Up2 { x } => give(x, cuda::down2(&dy, 1.0)?)?,
                Step::Concat { a, channels, b } => {
                    for (id, range) in [(a, 0..channels), (b, channels..dy.dim(3)?)] {
                        if id.is_some() {
                            give(id, cuda::channels(&dy, range)?)?;
                        }
                    }
                }
                Step::Mean { x, shape, dtype } => {
                    let (_, h, w, _) = shape.dims4()?;
                    let each = cuda::scaled(&dy, 1.0 / (h * w) as f32)?.to_dtype(dtype)?;
                    give(x, each.broadcast_as(&shape)?.contiguous()?)?;
                }
            }
        }
        Ok(self.input.and_then(|id| gradients[id].take()))
    }
}

thread_local! {
    /// Parameters and their gradients, between a backward pass and [`gradients`].
    static DELIVERED: RefCell<Vec<(Tensor, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// The gradients of `loss`: candle's, and those of the parameters of networks, which go
/// past it.
pub fn gradients(loss: &Tensor) -> Result<GradStore> {
    DELIVERED.with_borrow_mut(Vec::clear);
    let mut gradients = loss.backward()?;
    for (parameter, more) in DELIVERED.take() {
        let mut sum = gradients.remove(&parameter);
        add(&mut sum, more)?;
        gradients.insert(&parameter, sum.expect("it was just added to"));
    }
    Ok(gradients)
}

/// `walk` over the images `x` (B, C, H, W), or rows (B, C), in float32 on a GPU; what the
/// operations leave to each other is of the type `maps`. Gradients
/// reach `x` through candle, `parameters` through [`gradients`], where candle tracks them.
/// Gives (B, C, H, W), or (B, C) where H = W = 1, in float32.
///
/// # Errors
/// What `walk` fails with.
pub fn apply(
    parameters: &[Tensor],
    x: &Tensor,
    maps: DType,
    walk: impl FnOnce(&mut Fused, &Node) -> Result<Node>,
) -> Result<Tensor> {
    let (trained, tracked) = (parameters.iter().any(Tensor::track_op), x.track_op());
    let detached: Vec<Tensor> = parameters.iter().map(Tensor::detach).collect();
    let mut ops = Fused { parameters: &detached, device: x.device(), trained, steps: Vec::new(), nodes: 0 };
    let input = ops.input(to_map(&x.detach(), maps)?, tracked);
    let output = walk(&mut ops, &input)?;
    let y = match ops.tensor(&output)? {
        y if y.dims()[2..] == [1, 1] => y.flatten_from(1)?,
        y => y,
    };
    if !trained && !tracked {
        return Ok(y);
    }
    let taken = Taken { steps: ops.steps, nodes: ops.nodes, input: input.id, output: output.id };
    let parameters = if trained { parameters.to_vec() } else { Vec::new() };
    let dtype = output.map.dtype();
    let done = Done { parameters, detached, y, dtype, taken: Mutex::new(Some(taken)) };
    // Candle asks for gradients where an argument has one: this one stands for all parameters.
    let all = Var::zeros(1, DType::F32, x.device())?;
    x.contiguous()?.apply_op2(&all, done)
}

/// A forward pass that was made, as candle's operation of the images.
struct Done {
    /// Those that candle tracks, if any.
    parameters: Vec<Tensor>,
    detached: Vec<Tensor>,
    y: Tensor,
    /// Of the gradient that the pass begins with.
    dtype: DType,
    taken: Mutex<Option<Taken>>,
}

impl CustomOp2 for Done {
    fn name(&self) -> &'static str {
        "network"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a network of CUDA on a CPU")
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor on a GPU is needed") };
        Ok((storage.try_clone(layout)?, self.y.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(taken) = self.taken.lock().expect("nobody panicked").take() else {
            bail!("a network's gradient is computed once")
        };
        let dy = to_map(dy, self.dtype)?;
        let mut sums = (!self.parameters.is_empty()).then(|| Sums(vec![None; self.detached.len()]));
        let dx = taken.backward(&self.detached, dy, sums.as_mut())?;
        if let Some(Sums(sums)) = sums {
            let reached = self.parameters.iter().cloned().zip(sums);
            DELIVERED.with_borrow_mut(|all| all.extend(reached.filter_map(|(p, sum)| Some((p, sum?)))));
        }
        let dx = match (dx, x.rank()) {
            (Some(dx), 2) => Some(dx.flatten_from(1)?),
            (Some(dx), _) => Some(from_map(&dx)?),
            (None, _) => None,
        };
        Ok((dx, None))
    }
}
