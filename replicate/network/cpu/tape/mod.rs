//! Runs a network on the CPU and records the operations for its backward pass. The forward pass
//! takes a few images at a time, so that the output of one layer is still in the cache when the
//! next reads it. For candle the network is one operation, whose arguments are the images and the
//! parameters. The gradients of small and of large networks are computed in different orders
//! (`gradients.rs`).
//!
//! Groups of images have a fixed size and gradients are summed in a fixed order, so the bits do not
//! depend on the number of threads.

mod apply;
mod backward;
mod gradients;

pub use self::apply::apply;

use crate::network::cpu::{self, Epilogue, GroupNorm, Maps, Packed, Statistics, Weight};
use crate::network::dual::Tangents;
use crate::network::{Norm, Ops, Param, Plus, Resample};
use candle_core::{Result, bail};
use std::sync::Arc;

/// A value, and the index of its gradient if it has one.
#[derive(Clone)]
pub struct Node {
    maps: Arc<Maps>,
    id: Id,
    /// Recomputes the value, which then is not kept for the backward pass of a convolution.
    normalized: Option<Arc<Normalized>>,
}

/// A group normalisation and what it was computed from.
struct Normalized {
    x: Arc<Maps>,
    norm: Norm,
    statistics: Statistics,
}

/// The input of a convolution, for its backward pass.
struct SavedInput {
    id: Id,
    values: Values,
}

enum Values {
    Maps(Arc<Maps>),
    Normalized(Arc<Normalized>),
}

/// Index of the gradient of a value, if it has one.
type Id = Option<usize>;

/// A recorded operation with what its gradient needs. A value that is not needed is only an index here, so
/// that its memory is free.
enum Step {
    Conv {
        x: SavedInput,
        weight: Param,
        bias: Option<Param>,
        term: Id,
        residual: Option<(Id, f32)>,
    },
    Norm {
        x: Id,
        normalized: Arc<Normalized>,
    },
    Attention {
        qkv: Node,
    },
    Silu {
        x: Node,
    },
    Down2 {
        x: Id,
    },
    Up2 {
        x: Id,
    },
    /// `channels` are those of `a`.
    Concat {
        a: Id,
        b: Id,
        channels: usize,
    },
    Mean {
        x: Id,
        size: [usize; 2],
    },
    Add {
        a: Id,
        b: Id,
    },
    Gate {
        x: Id,
        by: Node,
        factors: [f32; 2],
    },
    Scale {
        x: Node,
        rows: Node,
    },
    Rsqrt {
        x: Node,
        eps: f32,
    },
    Resample {
        x: Id,
        size: [usize; 2],
        resample: Resample,
    },
}

/// Runs the operations of a network on some images, and records those that need a gradient.
pub struct Tape<'a> {
    parameters: &'a [Parameter<'a>],
    trained: bool,
    /// True if the backward pass recomputes the inputs of convolutions that are outputs of a norm. That halves
    /// the memory of a large network.
    recompute: bool,
    /// Each operation with the id of its result.
    steps: Vec<(Step, usize)>,
    nodes: usize,
}

/// A parameter in the layout that the operations read.
struct Parameter<'a> {
    values: &'a [f32],
    /// Sizes of a weight: set for parameters with two or four dimensions.
    weight: Option<Weight>,
    packed: Option<Packed>,
}

impl Parameter<'_> {
    /// Sizes of the weight of a convolution.
    ///
    /// # Panics
    /// For parameters that no convolution of the forward pass has read.
    fn sizes(&self) -> Weight {
        self.weight.expect("the forward pass had its sizes")
    }
}

impl Tape<'_> {
    fn input(&mut self, maps: Maps, tracked: bool) -> Node {
        let id = tracked.then(|| self.id());
        Node { maps: Arc::new(maps), id, normalized: None }
    }

    fn id(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    /// Makes a node; records the step if a gradient passes through it.
    fn push(&mut self, maps: Maps, tracked: bool, step: impl FnOnce() -> Step) -> Node {
        let id = tracked.then(|| self.id());
        if let Some(id) = id {
            self.steps.push((step(), id));
        }
        Node { maps: Arc::new(maps), id, normalized: None }
    }

    fn values(&self, param: Param) -> &[f32] {
        self.parameters[param.0].values
    }
}

impl Ops for Tape<'_> {
    type Map = Node;

    fn conv(&mut self, x: &Node, weight: Param, bias: Option<Param>, plus: Plus<Node>) -> Result<Node> {
        let Parameter { weight: Some(size), packed: Some(packed), .. } = &self.parameters[weight.0] else {
            bail!("a weight has two or four dimensions")
        };
        let (m, outputs) = (&x.maps, size.outputs);
        let rows =
            |node: &Node, shape: [usize; 3]| node.maps.images == m.images && node.maps.shape() == shape;
        if size.inputs != m.channels
            || !matches!(size.side, 1 | 3)
            || bias.is_some_and(|bias| self.values(bias).len() != outputs)
            || plus.term.is_some_and(|term| !rows(term, [1, 1, outputs]))
            || plus.residual.is_some_and(|(residual, _)| !rows(residual, [m.height, m.width, outputs]))
        {
            bail!(
                "conv: {size:?} for maps of {:?}, with {:?}",
                m.shape(),
                bias.map(|b| self.values(b).len())
            );
        }
        let mut epilogue = Epilogue::default();
        let mut terms = Vec::new();
        if let Some(term) = plus.term {
            terms.extend_from_slice(term.maps.values());
            for row in terms.chunks_exact_mut(size.outputs) {
                for (t, b) in row.iter_mut().zip(bias.map_or(&[][..], |bias| self.values(bias))) {
                    *t += b;
                }
            }
            (epilogue.bias, epilogue.group) = (Some(terms.as_slice()), x.maps.height * x.maps.width);
        } else {
            epilogue.bias = bias.map(|bias| self.parameters[bias.0].values);
        }
        if let Some((residual, scale)) = plus.residual {
            (epilogue.residual, epilogue.scale) = (Some(residual.maps.values()), scale);
        }
        let y = cpu::convolve(&x.maps, packed, size.side, epilogue);
        let others = plus.term.into_iter().chain(plus.residual.map(|(residual, _)| residual));
        let tracked = self.trained || x.id.is_some() || others.into_iter().any(|node| node.id.is_some());
        Ok(self.push(y, tracked, || Step::Conv {
            x: x.saved(),
            weight,
            bias,
            term: plus.term.and_then(|term| term.id),
            residual: plus.residual.map(|(residual, scale)| (residual.id, scale)),
        }))
    }

    fn norm(&mut self, x: &Node, norm: &Norm) -> Result<Node> {
        self.check_norm(x, norm)?;
        let (y, statistics) = group_norm(self.parameters, norm).forward(&x.maps);
        let tracked = self.trained || x.id.is_some();
        let normalized = Arc::new(Normalized { x: x.maps.clone(), norm: *norm, statistics });
        let mut node = self.push(y, tracked, || Step::Norm { x: x.id, normalized: normalized.clone() });
        node.normalized = self.recompute.then_some(normalized);
        Ok(node)
    }

    fn attention(&mut self, qkv: &Node) -> Result<Node> {
        check_attention(qkv)?;
        let a = cpu::attention(&qkv.maps);
        Ok(self.push(a, qkv.id.is_some(), || Step::Attention { qkv: qkv.clone() }))
    }

    fn silu(&mut self, x: &Node) -> Result<Node> {
        let y = cpu::silu(&x.maps);
        Ok(self.push(y, x.id.is_some(), || Step::Silu { x: x.clone() }))
    }

    fn down2(&mut self, x: &Node) -> Result<Node> {
        if x.maps.height % 2 != 0 || x.maps.width % 2 != 0 {
            bail!("down2: {} x {} pixels are not even", x.maps.height, x.maps.width);
        }
        let y = cpu::down2(&x.maps, 0.25);
        Ok(self.push(y, x.id.is_some(), || Step::Down2 { x: x.id }))
    }

    fn up2(&mut self, x: &Node) -> Result<Node> {
        let y = cpu::up2(&x.maps, 1.0);
        Ok(self.push(y, x.id.is_some(), || Step::Up2 { x: x.id }))
    }

    fn concat(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let sizes = |node: &Node| [node.maps.images, node.maps.height, node.maps.width];
        if sizes(a) != sizes(b) {
            bail!("concat: images and pixels {:?} and {:?}", sizes(a), sizes(b));
        }
        let y = cpu::concat(&a.maps, &b.maps);
        let tracked = a.id.is_some() || b.id.is_some();
        Ok(self.push(y, tracked, || Step::Concat { a: a.id, b: b.id, channels: a.maps.channels }))
    }

    fn mean(&mut self, x: &Node) -> Result<Node> {
        let y = cpu::mean(&x.maps);
        Ok(self.push(y, x.id.is_some(), || Step::Mean { x: x.id, size: x.size() }))
    }

    fn gate(&mut self, x: &Node, by: &Node, factors: [f32; 2]) -> Result<Node> {
        x.like(by)?;
        let y = cpu::gate(&x.maps, &by.maps, factors);
        Ok(self.push(y, x.id.is_some(), || Step::Gate { x: x.id, by: by.clone(), factors }))
    }

    fn scale(&mut self, x: &Node, rows: &Node) -> Result<Node> {
        if rows.maps.images != x.maps.images || rows.maps.shape() != [1, 1, x.maps.channels] {
            bail!("scale: rows of {:?} for maps of {:?}", rows.maps.shape(), x.maps.shape());
        }
        let y = cpu::scale(&x.maps, &rows.maps);
        let tracked = x.id.is_some() || rows.id.is_some();
        Ok(self.push(y, tracked, || Step::Scale { x: x.clone(), rows: rows.clone() }))
    }

    fn rsqrt(&mut self, x: &Node, eps: f32) -> Result<Node> {
        let y = cpu::rsqrt(&x.maps, eps);
        Ok(self.push(y, x.id.is_some(), || Step::Rsqrt { x: x.clone(), eps }))
    }

    fn resample(&mut self, x: &Node, resample: &Resample) -> Result<Node> {
        let [h, w, _] = x.maps.shape();
        if resample.output(h).min(resample.output(w)) == 0 {
            bail!("{resample:?}: nothing is left of {h} x {w} pixels");
        }
        let y = cpu::resample(&x.maps, [resample; 2]);
        Ok(self.push(y, x.id.is_some(), || Step::Resample { x: x.id, size: x.size(), resample: *resample }))
    }
}

impl Tangents for Tape<'_> {
    fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        a.like(b)?;
        let mut y = a.maps.copy();
        cpu::add(&mut y, &b.maps);
        Ok(self.push(y, a.id.is_some() || b.id.is_some(), || Step::Add { a: a.id, b: b.id }))
    }

    fn norm_along(&mut self, x: &Node, dx: &Node, norm: &Norm) -> Result<[Node; 2]> {
        self.untracked("a norm", x, dx)?;
        self.check_norm(x, norm)?;
        let both = group_norm(self.parameters, norm).along(&x.maps, &dx.maps);
        Ok(both.map(|maps| self.input(maps, false)))
    }

    fn attention_along(&mut self, x: &Node, dx: &Node) -> Result<[Node; 2]> {
        self.untracked("attention", x, dx)?;
        check_attention(x)?;
        Ok(cpu::attention_along(&x.maps, &dx.maps).map(|maps| self.input(maps, false)))
    }

    fn silu_along(&mut self, x: &Node, dx: &Node) -> Result<Node> {
        self.untracked("SiLU", x, dx)?;
        Ok(self.input(cpu::silu_backward(&x.maps, &dx.maps), false))
    }

    fn rsqrt_along(&mut self, x: &Node, dx: &Node, eps: f32) -> Result<Node> {
        self.untracked("a reciprocal root", x, dx)?;
        Ok(self.input(cpu::rsqrt_backward(&x.maps, eps, &dx.maps), false))
    }
}

impl Node {
    /// Height and width.
    fn size(&self) -> [usize; 2] {
        [self.maps.height, self.maps.width]
    }

    fn saved(&self) -> SavedInput {
        let values = match &self.normalized {
            Some(normalized) => Values::Normalized(normalized.clone()),
            None => Values::Maps(self.maps.clone()),
        };
        SavedInput { id: self.id, values }
    }

    fn like(&self, other: &Node) -> Result<()> {
        match self.maps.images == other.maps.images && self.maps.shape() == other.maps.shape() {
            true => Ok(()),
            false => bail!("maps of {:?} and of {:?}", self.maps.shape(), other.maps.shape()),
        }
    }
}

impl Tape<'_> {
    /// Fails if a gradient would have to pass through this derivative, which has none here.
    fn untracked(&self, what: &str, x: &Node, dx: &Node) -> Result<()> {
        if self.trained || x.id.is_some() || dx.id.is_some() {
            bail!("no gradient goes through the derivative of {what}");
        }
        x.like(dx)
    }

    fn check_norm(&self, x: &Node, norm: &Norm) -> Result<()> {
        let channels = x.maps.channels;
        let lengths = [norm.gamma, norm.beta].map(|param| self.values(param).len());
        if lengths != [channels; 2] || norm.groups == 0 || !channels.is_multiple_of(norm.groups) {
            bail!("group norm: {channels} channels, {norm:?}, gamma and beta of {lengths:?}");
        }
        Ok(())
    }
}

fn check_attention(qkv: &Node) -> Result<()> {
    if !qkv.maps.channels.is_multiple_of(3) {
        bail!("attention: {} channels are not three times anything", qkv.maps.channels);
    }
    Ok(())
}

fn group_norm<'a>(parameters: &'a [Parameter], norm: &Norm) -> GroupNorm<'a> {
    GroupNorm {
        gamma: parameters[norm.gamma.0].values,
        beta: parameters[norm.beta.0].values,
        groups: norm.groups,
        eps: norm.eps,
        silu: norm.silu,
    }
}
