//! The backward pass: from the last operation to the first.

use super::{Id, Made, Node, Parameter, Step, Values, group_norm};
use crate::network::cpu::{self, Ends, Maps, Packed};
use crate::network::{Norm, Param};
use std::ops::Range;
use std::sync::Arc;

/// A finished forward pass over some images.
pub(super) struct Taken {
    pub images: Range<usize>,
    pub steps: Vec<(Step, usize)>,
    pub nodes: usize,
    /// Ids of the inputs that have a gradient.
    pub inputs: Vec<usize>,
    pub outputs: Vec<Node>,
}

/// A backward pass over some images, one step at a time.
pub(super) struct Back {
    pub images: Range<usize>,
    /// Steps that are left. They are dropped one by one to free their values early.
    steps: Vec<(Step, usize)>,
    gradients: Vec<Option<Maps>>,
    inputs: Vec<usize>,
}

/// The gradients of the parameters of a step, or what they are computed from.
pub(super) enum Lesson {
    /// Inputs of a convolution and the gradient of its outputs, and the gradient of the bias for each image.
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

impl Taken {
    /// Begins with the gradients of the outputs.
    pub fn back(self, dy: impl Iterator<Item = Maps>) -> Back {
        let Taken { images, steps, nodes, inputs, outputs } = self;
        let mut gradients: Vec<Option<Maps>> = (0..nodes).map(|_| None).collect();
        for (output, dy) in outputs.iter().zip(dy) {
            give(&mut gradients, output.id, dy);
        }
        Back { images, steps, gradients, inputs }
    }
}

impl Back {
    /// Number of steps that are left.
    pub fn left(&self) -> usize {
        self.steps.len()
    }

    /// Returns the weight that the next step reads turned, if it does.
    pub fn turns(&self) -> Option<Param> {
        match self.steps.last() {
            Some((Step::Conv { x, weight, .. }, y)) => {
                (x.id.is_some() && self.gradients[*y].is_some()).then_some(*weight)
            }
            _ => None,
        }
    }

    /// Takes one step back. `turned` is the weight of [`Back::turns`]; without it, the parameters have their
    /// weights turned. Returns what the parameters learn if they are `trained`.
    ///
    /// # Panics
    /// If no step is left.
    pub fn step(
        &mut self,
        parameters: &[Parameter],
        turned: Option<&Packed>,
        trained: bool,
    ) -> Option<Lesson> {
        let (step, y) = self.steps.pop().expect("a step is left");
        let mut dy = self.gradients[y].take()?;
        let mut add_to = |id: Id, more: Maps| give(&mut self.gradients, id, more);
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
                    let Parameter { weight: Some(size), packed, .. } = &parameters[weight.0] else {
                        unreachable!("the forward pass had its sizes")
                    };
                    let turned = turned.or(packed.as_ref()).expect("a turned weight");
                    add_to(x.id, cpu::convolve(&dy, turned, size.side, Ends::default()));
                }
                return trained.then(|| {
                    let x = match x.values {
                        Values::Maps(x) => x,
                        Values::Made(made) => {
                            Arc::new(group_norm(parameters, &made.norm).again(&made.x, &made.statistics))
                        }
                    };
                    Lesson::Conv { x, dy, weight, bias: bias.zip(rows) }
                });
            }
            Step::Norm { x: id, made } => {
                let Made { x, norm, statistics } = &*made;
                let (mut gamma, mut beta) = (vec![0f32; dy.channels], vec![0f32; dy.channels]);
                let layer = group_norm(parameters, norm);
                add_to(id, layer.backward(x, statistics, &dy, &mut gamma, &mut beta));
                return trained.then_some(Lesson::Norm { norm: *norm, gamma, beta });
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

/// Adds to the gradient of a node, if it has one.
fn give(gradients: &mut [Option<Maps>], id: Id, more: Maps) {
    match id.map(|id| &mut gradients[id]) {
        Some(Some(sum)) => cpu::add(sum, &more),
        Some(none) => *none = Some(more),
        None => (),
    }
}
