//! Runs a network on a GPU with cuDNN, cuBLAS and kernels of this crate, and records the operations
//! for its backward pass. For candle the network is one operation on the images: candle would add
//! the gradient of every step to zeros, which costs more memory traffic than most steps.
//!
//! Maps have the channels last, (B, H, W, C), in float32 or bfloat16. Rows of channels, (B, 1, 1,
//! C), are float32.

mod backward;

use self::backward::{ForwardPass, Gradient};
use crate::network::dual::Tangents;
use crate::network::gpu as cuda;
use crate::network::{Bypass, Norm, Ops, Param, Parameters, Plus, Resample, mix, pack, unpack};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, Var, bail,
};
use std::sync::Mutex;

/// A value, and the index of its gradient if it has one.
#[derive(Clone)]
pub struct Node {
    map: Tensor,
    id: Option<usize>,
    /// Still to be added to the map; the next operation that reads it adds it in the same pass.
    shift: Option<Shift>,
}

impl Node {
    fn shift_rows(&self) -> Option<&Tensor> {
        self.shift.as_ref().map(|shift| &shift.rows)
    }

    /// True if a gradient reaches the terms of the shift.
    fn shift_tracked(&self) -> bool {
        self.shift.as_ref().is_some_and(Shift::tracked)
    }
}

/// A term added to every pixel, (C), or (B, C) with one row for each image, and where its gradient
/// goes.
#[derive(Clone)]
struct Shift {
    rows: Tensor,
    biases: Vec<Param>,
    terms: Vec<usize>,
}

impl Shift {
    /// Returns the sum of two shifts.
    fn and(self, other: Option<&Shift>) -> Result<Shift> {
        let Some(other) = other else { return Ok(self) };
        // The one with fewer dimensions is broadcast.
        let rows = match self.rows.rank() {
            1 => other.rows.broadcast_add(&self.rows)?,
            _ => self.rows.broadcast_add(&other.rows)?,
        };
        let Shift { mut biases, mut terms, .. } = self;
        biases.extend(&other.biases);
        terms.extend(&other.terms);
        Ok(Shift { rows, biases, terms })
    }

    fn tracked(&self) -> bool {
        !self.biases.is_empty() || !self.terms.is_empty()
    }
}

/// A recorded operation with the values that its gradient needs: the ids of its operands, and their
/// maps only if they are read again.
enum Step {
    Conv {
        /// The input, if the weight is trained.
        x: Option<Tensor>,
        input: Option<usize>,
        weight: Param,
        /// `scale` times the weight in cuDNN's layout.
        filters: Tensor,
        scale: f32,
    },
    /// y + scale (shift + residual).
    Finish {
        y: Option<usize>,
        shift: Option<Shift>,
        residual: Option<usize>,
        scale: f32,
    },
    /// A linear layer on rows.
    Linear {
        x: Option<Tensor>,
        input: Option<usize>,
        weight: Param,
        bias: Option<Param>,
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
    Gate {
        x: Option<usize>,
        slope: Tensor,
    },
    Scale {
        x: Node,
        rows: Node,
    },
    Rsqrt {
        x: Option<usize>,
        y: Tensor,
    },
    Resample {
        x: Option<usize>,
        /// The vertical and horizontal resampling of the backward pass.
        back: [Resample; 2],
    },
}

/// Runs the operations of a network, and records those that need a gradient.
pub struct Fused<'a> {
    /// Parameters without their history.
    parameters: &'a [Tensor],
    trained: bool,
    /// Each operation with the id of its result.
    steps: Vec<(Step, usize)>,
    nodes: usize,
}

impl Fused<'_> {
    fn input(&mut self, map: Tensor, tracked: bool) -> Node {
        let id = tracked.then(|| self.id());
        Node { map, id, shift: None }
    }

    fn id(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    /// Makes a node; records the step if a gradient passes through it.
    fn push(&mut self, map: Tensor, tracked: bool, step: impl FnOnce() -> Step) -> Node {
        let id = tracked.then(|| self.id());
        if let Some(id) = id {
            self.steps.push((step(), id));
        }
        Node { map, id, shift: None }
    }

    /// Computes y + scale (shift + residual). `shift` must include the shift of the residual, and
    /// `y` must have none.
    fn finish(&mut self, y: &Node, shift: Option<Shift>, residual: Option<(&Node, f32)>) -> Result<Node> {
        let (residual, scale) = residual.unzip();
        let scale = scale.unwrap_or(1.0);
        let rows = shift.as_ref().map(|shift| &shift.rows);
        let z = cuda::finish(&y.map, rows, residual.map(|node| &node.map), scale)?;
        let residual = residual.and_then(|node| node.id);
        let tracked = y.id.is_some() || residual.is_some() || shift.as_ref().is_some_and(Shift::tracked);
        Ok(self.push(z, tracked, || Step::Finish { y: y.id, shift, residual, scale }))
    }

    /// Adds the pending shift, for operations that do not do so themselves.
    fn settled(&mut self, x: &Node) -> Result<Node> {
        match &x.shift {
            Some(shift) => self.finish(x, Some(shift.clone()), None),
            None => Ok(x.clone()),
        }
    }

    /// Applies a linear layer to rows (B, 1, 1, C).
    fn linear(&mut self, x: &Node, weight: Param, bias: Option<Param>, plus: Plus<Node>) -> Result<Node> {
        let (w, m) = (&self.parameters[weight.0], &x.map);
        let (images, outputs) = (m.dim(0)?, w.dim(0)?);
        let mut y = m.flatten_from(1)?.matmul(&w.flatten_from(1)?.t()?)?;
        if let Some(bias) = bias {
            y = y.broadcast_add(&self.parameters[bias.0])?;
        }
        y = y.reshape((images, 1, 1, outputs))?;
        if let Some((residual, scale)) = plus.residual {
            y = mix(&y, &[scale], &residual.map, &[scale])?;
        }
        let residual = plus.residual.map(|(node, scale)| (node.id, scale));
        let trained = self.trained;
        let tracked = trained || x.id.is_some() || residual.is_some_and(|(id, _)| id.is_some());
        let x_read = trained.then(|| m.clone());
        Ok(self.push(y, tracked, || Step::Linear { x: x_read, input: x.id, weight, bias, residual }))
    }
}

/// Converts (B, C, H, W) in float32, or rows (B, C), to a map.
fn to_map(x: &Tensor, maps: DType) -> Result<Tensor> {
    match *x.dims() {
        [b, c] => x.reshape((b, 1, 1, c)),
        [..] => x.to_dtype(maps)?.permute((0, 2, 3, 1))?.contiguous(),
    }
}

/// Converts a map to (B, C, H, W) in float32.
fn from_map(map: &Tensor) -> Result<Tensor> {
    map.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous()
}

fn group_norm(norm: &Norm) -> cuda::GroupNorm {
    cuda::GroupNorm { groups: norm.groups, eps: norm.eps, silu: norm.silu }
}

impl Ops for Fused<'_> {
    type Map = Node;

    fn conv(&mut self, x: &Node, weight: Param, bias: Option<Param>, plus: Plus<Node>) -> Result<Node> {
        let x = self.settled(x)?;
        let w = &self.parameters[weight.0];
        if let [_, _] = w.dims() {
            return self.linear(&x, weight, bias, plus);
        }
        let (scale, trained) = (plus.residual.map_or(1.0, |(_, scale)| scale), self.trained);
        let filters = cuda::filters(w, &x.map, scale)?;
        let y = cuda::conv2d(&x.map, &filters)?;
        let mut shift = None;
        if let Some(bias) = bias {
            let biases = if trained { vec![bias] } else { vec![] };
            shift = Some(Shift { rows: self.parameters[bias.0].clone(), biases, terms: vec![] });
        }
        if let Some(term) = plus.term {
            let rows = term.map.flatten_from(1)?;
            let term = Shift { rows, biases: vec![], terms: term.id.into_iter().collect() };
            shift = Some(term.and(shift.as_ref())?);
        }
        let y = self.push(y, trained || x.id.is_some(), || Step::Conv {
            x: trained.then(|| x.map.clone()),
            input: x.id,
            weight,
            filters,
            scale,
        });
        let Some((residual, scale)) = plus.residual else { return Ok(Node { shift, ..y }) };
        let shift = match (shift, &residual.shift) {
            (Some(shift), other) => Some(shift.and(other.as_ref())?),
            (None, other) => other.clone(),
        };
        self.finish(&y, shift, Some((residual, scale)))
    }

    fn norm(&mut self, x: &Node, norm: &Norm) -> Result<Node> {
        let affine = [norm.gamma, norm.beta].map(|param| &self.parameters[param.0]);
        let (y, kept) = group_norm(norm).forward(&x.map, x.shift_rows(), affine)?;
        let tracked = self.trained || x.id.is_some() || x.shift_tracked();
        Ok(self.push(y, tracked, || Step::Norm { x: x.clone(), norm: *norm, kept }))
    }

    fn attention(&mut self, qkv: &Node) -> Result<Node> {
        let (b, h, w, c3) = qkv.map.dims4()?;
        let rows = qkv.map.reshape((b, h * w, c3))?;
        let a = cuda::attention(&rows, qkv.shift_rows())?.reshape((b, h, w, c3 / 3))?;
        Ok(self.push(a, qkv.id.is_some() || qkv.shift_tracked(), || Step::Attention { qkv: qkv.clone() }))
    }

    fn silu(&mut self, x: &Node) -> Result<Node> {
        let x = self.settled(x)?;
        Ok(self.push(cuda::silu(&x.map)?, x.id.is_some(), || Step::Silu { x }))
    }

    fn down2(&mut self, x: &Node) -> Result<Node> {
        let Node { map, id, .. } = self.settled(x)?;
        Ok(self.push(cuda::down2(&map, 0.25)?, id.is_some(), || Step::Down2 { x: id }))
    }

    fn up2(&mut self, x: &Node) -> Result<Node> {
        let Node { map, id, .. } = self.settled(x)?;
        Ok(self.push(cuda::up2(&map, 1.0)?, id.is_some(), || Step::Up2 { x: id }))
    }

    fn concat(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let (a, b) = (self.settled(a)?, self.settled(b)?);
        let (y, channels) = (Tensor::cat(&[&a.map, &b.map], 3)?, a.map.dim(3)?);
        let tracked = a.id.is_some() || b.id.is_some();
        Ok(self.push(y, tracked, || Step::Concat { a: a.id, channels, b: b.id }))
    }

    fn mean(&mut self, x: &Node) -> Result<Node> {
        let Node { map, id, .. } = self.settled(x)?;
        let y = map.to_dtype(DType::F32)?.mean_keepdim((1, 2))?;
        let (shape, dtype) = (map.shape().clone(), map.dtype());
        Ok(self.push(y, id.is_some(), || Step::Mean { x: id, shape, dtype }))
    }

    // There are no kernels for these operations yet, so they are composed of candle's.
    fn gate(&mut self, x: &Node, by: &Node, [open, closed]: [f32; 2]) -> Result<Node> {
        let (x, by) = (self.settled(x)?, self.settled(by)?);
        let positive = by.map.gt(0f32)?.to_dtype(x.map.dtype())?;
        let slope = positive.affine((open - closed).into(), closed.into())?;
        Ok(self.push((&x.map * &slope)?, x.id.is_some(), || Step::Gate { x: x.id, slope }))
    }

    fn scale(&mut self, x: &Node, rows: &Node) -> Result<Node> {
        let (x, rows) = (self.settled(x)?, rows.clone());
        let y = x.map.broadcast_mul(&rows.map.to_dtype(x.map.dtype())?)?;
        Ok(self.push(y, x.id.is_some() || rows.id.is_some(), || Step::Scale { x, rows }))
    }

    fn rsqrt(&mut self, x: &Node, eps: f32) -> Result<Node> {
        let x = self.settled(x)?;
        let y = (&x.map + f64::from(eps))?.sqrt()?.recip()?;
        Ok(self.push(y.clone(), x.id.is_some(), || Step::Rsqrt { x: x.id, y }))
    }

    fn resample(&mut self, x: &Node, resample: &Resample) -> Result<Node> {
        let x = self.settled(x)?;
        let (_, h, w, _) = x.map.dims4()?;
        let back = [h, w].map(|n| resample.transposed(n));
        let y = resampled(&x.map, [resample; 2])?;
        Ok(self.push(y, x.id.is_some(), || Step::Resample { x: x.id, back }))
    }
}

// There are no kernels for these derivatives: they use candle's operations and the kernels of the
// gradients, which have the same slopes.
impl Tangents for Fused<'_> {
    fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let (a, b) = (self.settled(a)?, self.settled(b)?);
        self.finish(&a, None, Some((&b, 1.0)))
    }

    fn norm_along(&mut self, x: &Node, dx: &Node, norm: &Norm) -> Result<[Node; 2]> {
        let [x, dx] = self.untracked("a norm", x, dx)?;
        let affine = [norm.gamma, norm.beta].map(|param| &self.parameters[param.0]);
        let plain = cuda::GroupNorm { silu: false, ..group_norm(norm) };
        let (u, kept) = plain.forward(&x, None, affine)?;
        let (ones, zeros) = (affine[0].ones_like()?, affine[1].zeros_like()?);
        let arriving = cuda::Arriving { dy: (&dx, 1.0), plus: None };
        let (du, _) = plain.backward(&x, None, [&ones, &zeros], &kept, arriving)?;
        let du = du.broadcast_mul(&affine[0].to_dtype(du.dtype())?)?;
        let both = match norm.silu {
            true => [group_norm(norm).forward(&x, None, affine)?.0, cuda::silu_backward(&u, &du)?],
            false => [u, du],
        };
        Ok(both.map(|map| self.input(map, false)))
    }

    fn attention_along(&mut self, x: &Node, dx: &Node) -> Result<[Node; 2]> {
        let [x, dx] = self.untracked("attention", x, dx)?;
        let (b, h, w, c3) = x.dims4()?;
        let c = c3 / 3;
        let parts = |x: &Tensor| -> Result<[Tensor; 3]> {
            let split = x.to_dtype(DType::F32)?.reshape((b, h * w, c, 3))?;
            let part = |i| split.narrow(3, i, 1)?.squeeze(3)?.contiguous();
            Ok([part(0)?, part(1)?, part(2)?])
        };
        let ([q, k, v], [dq, dk, dv]) = (parts(&x)?, parts(&dx)?);
        let (k, dk, scale) = (k.t()?.contiguous()?, dk.t()?.contiguous()?, (c as f64).sqrt());
        let p = candle_nn::ops::softmax(&(q.matmul(&k)? / scale)?, 2)?;
        let ds = ((dq.matmul(&k)? + q.matmul(&dk)?)? / scale)?;
        let dp = (&p * ds.broadcast_sub(&(&p * &ds)?.sum_keepdim(2)?)?)?;
        let da = (dp.matmul(&v)? + p.matmul(&dv)?)?.to_dtype(x.dtype())?;
        let a = cuda::attention(&x.reshape((b, h * w, c3))?, None)?;
        let map = |a: Tensor| a.reshape((b, h, w, c));
        Ok([map(a)?, map(da)?].map(|map| self.input(map, false)))
    }

    fn silu_along(&mut self, x: &Node, dx: &Node) -> Result<Node> {
        let [x, dx] = self.untracked("SiLU", x, dx)?;
        Ok(self.input(cuda::silu_backward(&x, &dx)?, false))
    }

    fn rsqrt_along(&mut self, x: &Node, dx: &Node, eps: f32) -> Result<Node> {
        let [x, dx] = self.untracked("a reciprocal root", x, dx)?;
        let y = (x + f64::from(eps))?.sqrt()?.recip()?;
        Ok(self.input((dx * ((y.sqr()? * y)? * -0.5)?)?, false))
    }
}

impl Fused<'_> {
    /// Returns the maps of `x` and `dx`. Fails if a gradient would have to pass through this
    /// derivative, which has none here.
    fn untracked(&mut self, what: &str, x: &Node, dx: &Node) -> Result<[Tensor; 2]> {
        let tracked = |node: &Node| node.id.is_some() || node.shift_tracked();
        if self.trained || tracked(x) || tracked(dx) {
            bail!("no gradient goes through the derivative of {what}");
        }
        Ok([self.settled(x)?.map, self.settled(dx)?.map])
    }
}

/// Resamples a map (B, H, W, C).
fn resampled(x: &Tensor, [vertical, horizontal]: [&Resample; 2]) -> Result<Tensor> {
    vertical.along(&horizontal.along(x, 2)?, 1)
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + more)?,
        None => more,
    });
    Ok(())
}

/// Runs `walk` on `inputs`, each (B, C, H, W) or rows (B, C), in float32 on a GPU. Activations are
/// of the type of `parameters`; outputs are float32, (B, C, H, W), or (B, C) where H = W = 1. If candle
/// tracks them, inputs get their gradients through candle, and `parameters` through their [`Bypass`].
///
/// # Errors
/// If `walk` fails.
pub fn apply(
    parameters: &Parameters,
    inputs: &[&Tensor],
    walk: impl FnOnce(&mut Fused, &[Node]) -> Result<Vec<Node>>,
) -> Result<Vec<Tensor>> {
    let trained = parameters.iter().any(Tensor::track_op);
    let detached: Vec<Tensor> = parameters.iter().map(Tensor::detach).collect();
    let mut ops = Fused { parameters: &detached, trained, steps: Vec::new(), nodes: 0 };
    let node = |x: &&Tensor| Ok(ops.input(to_map(&x.detach(), parameters.maps())?, x.track_op()));
    let nodes: Vec<Node> = inputs.iter().map(node).collect::<Result<_>>()?;
    let outputs = walk(&mut ops, &nodes)?;
    let outputs: Vec<Node> = outputs.iter().map(|y| ops.settled(y)).collect::<Result<_>>()?;
    let shaped = |output: &Node| match from_map(&output.map)? {
        y if y.dims()[2..] == [1, 1] => y.flatten_from(1),
        y => Ok(y),
    };
    let y: Vec<Tensor> = outputs.iter().map(shaped).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = inputs.iter().filter(|x| x.track_op()).map(|x| (*x).clone()).collect();
    if !trained && tracked.is_empty() {
        return Ok(y);
    }
    let pass = ForwardPass {
        steps: ops.steps,
        nodes: ops.nodes,
        inputs: nodes.iter().filter_map(|node| node.id).collect(),
        outputs: outputs.iter().map(|output| output.id).collect(),
    };
    // Candle asks for a gradient only if an argument has one, so this variable stands for all
    // parameters.
    let all = Var::zeros(1, DType::F32, inputs[0].device())?;
    let x = if tracked.is_empty() { all.as_tensor().detach() } else { pack(&tracked)? };
    let shapes = |tensors: &[Tensor]| tensors.iter().map(|x| x.shape().clone()).collect::<Vec<_>>();
    let op = NetworkOp {
        parameters: if trained { parameters.to_vec() } else { Vec::new() },
        detached,
        inputs: shapes(&tracked),
        outputs: shapes(&y),
        dtypes: outputs.iter().map(|output| output.map.dtype()).collect(),
        bypass: parameters.bypass().clone(),
        y: pack(&y)?,
        pass: Mutex::new(Some(pass)),
    };
    let shapes = op.outputs.clone();
    unpack(&x.apply_op2(&all, op)?, &shapes)
}

/// A finished forward pass as a candle operation of the tracked inputs.
struct NetworkOp {
    /// The parameters that candle tracks, if any.
    parameters: Vec<Tensor>,
    detached: Vec<Tensor>,
    /// All outputs, packed.
    y: Tensor,
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
    /// Types of the gradients at which the pass begins.
    dtypes: Vec<DType>,
    bypass: Bypass,
    pass: Mutex<Option<ForwardPass>>,
}

impl CustomOp2 for NetworkOp {
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
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(pass) = self.pass.lock().expect("nobody panicked").take() else {
            bail!("a network's gradient is computed once")
        };
        let dy = unpack(dy, &self.outputs)?;
        let dy = dy.iter().zip(&self.dtypes).map(|(dy, dtype)| to_map(dy, *dtype)).collect::<Result<_>>()?;
        let (dx, sums) = pass.backward(&self.detached, dy, !self.parameters.is_empty())?;
        let reached = self.parameters.iter().cloned().zip(sums);
        self.bypass.leave(reached.filter_map(|(p, sum)| Some((p, sum?))));
        if dx.iter().all(Option::is_none) {
            return Ok((None, None));
        }
        let each = |(dx, shape): (Option<Gradient>, &Shape)| match dx {
            Some(Gradient { map, scale }) => {
                let map = if shape.rank() == 2 { map.flatten_from(1)? } else { from_map(&map)? };
                Gradient { map, scale }.exact()
            }
            None => Tensor::zeros(shape, DType::F32, self.y.device()),
        };
        let dx: Vec<Tensor> = dx.into_iter().zip(&self.inputs).map(each).collect::<Result<_>>()?;
        Ok((Some(pack(&dx)?), None))
    }
}
