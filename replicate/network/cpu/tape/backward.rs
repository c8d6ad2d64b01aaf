//! The backward pass: from the last operation to the first.

use super::{Id, Node, Normalized, Parameter, Step, Values, group_norm};
use crate::network::cpu::{self, Epilogue, Maps, Packed};
use crate::network::{Norm, Param};
use std::ops::Range;
use std::sync::Arc;

/// A finished forward pass over some images.
pub(super) struct ForwardPass {
    pub images: Range<usize>,
    /// Each operation with the id of its result.
    pub steps: Vec<(Step, usize)>,
    /// Number of ids.
    pub nodes: usize,
    /// Ids of the inputs that have a gradient.
    pub inputs: Vec<usize>,
    pub outputs: Vec<Node>,
}

/// A backward pass over some images, one step at a time.
pub(super) struct BackwardPass {
    pub images: Range<usize>,
    /// Remaining steps. Each is dropped once it is taken, so that its values are freed early.
    steps: Vec<(Step, usize)>,
    gradients: Vec<Option<Maps>>,
    inputs: Vec<usize>,
}

/// What one step of some images adds to the gradients of its parameters.
pub(super) enum Contribution {
    /// Input of a convolution and the gradient of its output, from which that of the weight is computed; and
    /// the gradient of the bias, one row for each image.
    Conv {
        x: Arc<Maps>,
        dy: Maps,
        weight: Param,
        bias: Option<(Param, Maps)>,
    },
    Norm {
        norm: Norm,
        gamma: Vec<f32>,
        beta: Vec<f32>,
    },
}

impl Contribution {
    /// Returns the weight of a convolution, its input and the gradient of its output.
    pub fn convolution(&self) -> Option<(Param, &Maps, &Maps)> {
        match self {
            Contribution::Conv { x, dy, weight, .. } => Some((*weight, x.as_ref(), dy)),
            Contribution::Norm { .. } => None,
        }
    }

    /// Calls `add` with each gradient of a bias, gamma or beta.
    pub fn vectors(&self, mut add: impl FnMut(Param, &[f32])) {
        match self {
            Contribution::Conv { dy, bias, .. } => {
                if let Some((bias, rows)) = bias {
                    rows.values().chunks_exact(dy.channels).for_each(|row| add(*bias, row));
                }
            }
            Contribution::Norm { norm, gamma, beta } => {
                add(norm.gamma, gamma);
                add(norm.beta, beta);
            }
        }
    }
}

impl ForwardPass {
    /// Begins the backward pass with the gradients `dy` of the outputs.
    pub fn back(self, dy: impl Iterator<Item = Maps>) -> BackwardPass {
        let ForwardPass { images, steps, nodes, inputs, outputs } = self;
        let mut gradients: Vec<Option<Maps>> = (0..nodes).map(|_| None).collect();
        for (output, dy) in outputs.iter().zip(dy) {
            accumulate(&mut gradients, output.id, dy);
        }
        BackwardPass { images, steps, gradients, inputs }
    }
}

impl BackwardPass {
    /// Number of remaining steps.
    pub fn remaining(&self) -> usize {
        self.steps.len()
    }

    /// Returns the weight that the next step reads transposed, if it does.
    pub fn next_transposed(&self) -> Option<Param> {
        match self.steps.last() {
            Some((Step::Conv { x, weight, .. }, y)) => {
                (x.id.is_some() && self.gradients[*y].is_some()).then_some(*weight)
            }
            _ => None,
        }
    }

    /// Takes one step back. `transposed` is the weight of [`BackwardPass::next_transposed`]; without it, the
    /// parameters have their weights transposed. Returns the contribution to the gradients of the parameters
    /// if they are `trained`.
    ///
    /// # Panics
    /// If no step remains.
    pub fn step(
        &mut self,
        parameters: &[Parameter],
        transposed: Option<&Packed>,
        trained: bool,
    ) -> Option<Contribution> {
        let (step, y) = self.steps.pop().expect("a step remains");
        let mut dy = self.gradients[y].take()?;
        let mut add_to = |id: Id, more: Maps| accumulate(&mut self.gradients, id, more);
        match step {
            Step::Conv { x, weight, bias, term, residual } => {
                if let Some((residual, scale)) = residual {
                    dy.values_mut().iter_mut().for_each(|d| *d *= scale);
                    if residual.is_some() {
                        add_to(residual, dy.copy());
                    }
                }
                let bias = bias.filter(|_| trained);
                let rows = (term.is_some() || bias.is_some()).then(|| cpu::image_sums(&dy));
                if let (Some(_), Some(rows)) = (term, &rows) {
                    add_to(term, rows.copy());
                }
                if x.id.is_some() {
                    let weight = &parameters[weight.0];
                    let transposed = transposed.or(weight.packed.as_ref()).expect("a transposed weight");
                    add_to(x.id, cpu::convolve(&dy, transposed, weight.sizes().side, Epilogue::default()));
                }
                return trained.then(|| {
                    let x = match x.values {
                        Values::Maps(x) => x,
                        Values::Normalized(n) => {
                            Arc::new(group_norm(parameters, &n.norm).recompute(&n.x, &n.statistics))
                        }
                    };
                    Contribution::Conv { x, dy, weight, bias: bias.zip(rows) }
                });
            }
            Step::Norm { x: id, normalized } => {
                let Normalized { x, norm, statistics } = &*normalized;
                let (mut gamma, mut beta) = (vec![0f32; dy.channels], vec![0f32; dy.channels]);
                let layer = group_norm(parameters, norm);
                add_to(id, layer.backward(x, statistics, &dy, &mut gamma, &mut beta));
                return trained.then_some(Contribution::Norm { norm: *norm, gamma, beta });
            }
            Step::Attention { qkv } => add_to(qkv.id, cpu::attention_backward(&qkv.maps, &dy)),
            Step::Silu { x } => add_to(x.id, cpu::silu_backward(&x.maps, &dy)),
            Step::Down2 { x } => add_to(x, cpu::up2(&dy, 0.25)),
            Step::Up2 { x } => add_to(x, cpu::down2(&dy, 1.0)),
            Step::Concat { a, b, channels } => {
                let (da, db) = cpu::split(&dy, channels);
                add_to(a, da);
                add_to(b, db);
            }
            Step::Mean { x, size } => add_to(x, cpu::mean_backward(&dy, size)),
            Step::Add { a, b } => {
                add_to(a, dy.copy());
                add_to(b, dy);
            }
            Step::Gate { x, by, factors } => add_to(x, cpu::gate(&dy, &by.maps, factors)),
            Step::Scale { x, rows } => {
                if rows.id.is_some() {
                    add_to(rows.id, cpu::scale_backward(&x.maps, &dy));
                }
                add_to(x.id, cpu::scale(&dy, &rows.maps));
            }
            Step::Rsqrt { x, eps } => add_to(x.id, cpu::rsqrt_backward(&x.maps, eps, &dy)),
            Step::Resample { x, size, resample } => {
                let back = size.map(|n| resample.transposed(n));
                add_to(x, cpu::resample(&dy, back.each_ref()));
            }
        }
        None
    }

    /// Returns the gradients of the inputs that have one.
    pub fn inputs(mut self) -> Vec<Option<Maps>> {
        self.inputs.into_iter().map(|id| self.gradients[id].take()).collect()
    }
}

/// Adds to the gradient of a value, if it has one.
fn accumulate(gradients: &mut [Option<Maps>], id: Id, more: Maps) {
    match id.map(|id| &mut gradients[id]) {
        Some(Some(sum)) => cpu::add(sum, &more),
        Some(none) => *none = Some(more),
        None => (),
    }
}
