//! The gradients of parameters, in one of two orders. Groups of a small network go back through all layers
//! on one thread each, and few sums of all gradients stay in the caches. The images of a large network
//! go back together, one layer after the other: its gradients are summed while nothing else is in the way,
//! its weight is turned only then, and the threads share each layer.

use super::Parameter;
use super::backward::{Back, Lesson, Taken};
use crate::network::Param;
use crate::network::cpu::{Aligned, Maps, Scratch};
use rayon::prelude::*;
use std::ops::Range;

/// Sums of gradients that are computed in parallel and then added in a fixed order.
const SUMS: usize = 8;

/// Goes back through all steps, each group on its own, from where `begin` leaves it. Returns the passes in
/// their order, and the gradients of the parameters if they are `trained`. The parameters have their weights
/// turned.
pub(super) fn one_by_one(
    groups: Vec<Taken>,
    begin: impl Fn(Taken) -> Back + Sync,
    parameters: &[Parameter],
    trained: bool,
) -> (Vec<Back>, Vec<Vec<f32>>) {
    let (places, length) = places(parameters);
    let per_sum = groups.len().div_ceil(SUMS);
    // Consecutive groups share a sum.
    let share = |groups: Vec<Taken>| {
        let mut sums = trained.then(|| Sums { values: Aligned::zeros(length), places: &places });
        let through = |group: Taken| {
            let mut back = begin(group);
            while back.left() > 0 {
                let lesson = back.step(parameters, None, trained);
                if let (Some(sums), Some(lesson)) = (&mut sums, lesson) {
                    sums.add(lesson, parameters);
                }
            }
            back
        };
        let passes: Vec<Back> = groups.into_iter().map(through).collect();
        (passes, sums.map(|sums| sums.values))
    };
    let parts: Vec<_> = groups.into_par_iter().chunks(per_sum).map(share).collect();
    let (passes, sums): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let sums: Vec<Aligned> = sums.into_iter().flatten().collect();
    let gradient = |(p, place): (&Parameter, &Range<usize>)| {
        let (first, others) = sums.split_first().expect("there is a group");
        let mut sum = first[place.clone()].to_vec();
        for other in others {
            add(&mut sum, &other[place.clone()]);
        }
        match &p.weight {
            Some(weight) => weight.gradient(&sum),
            None => sum,
        }
    };
    let gradients = match trained {
        true => parameters.par_iter().zip(&places).map(gradient).collect(),
        false => Vec::new(),
    };
    (passes.into_iter().flatten().collect(), gradients)
}

/// Sums of the gradients of all parameters in one buffer.
struct Sums<'a> {
    values: Aligned,
    places: &'a [Range<usize>],
}

impl Sums<'_> {
    fn of(&mut self, param: Param) -> &mut [f32] {
        &mut self.values[self.places[param.0].clone()]
    }

    /// Adds gradients; those of weights in the internal order of their sums.
    fn add(&mut self, lesson: Lesson, parameters: &[Parameter]) {
        match lesson {
            Lesson::Conv { x, dy, weight, bias } => {
                let size = parameters[weight.0].weight.expect("the forward pass had its sizes");
                size.add_gradient(&x, &dy, self.of(weight));
                if let Some((bias, rows)) = bias {
                    rows.values().chunks_exact(dy.channels).for_each(|row| add(self.of(bias), row));
                }
            }
            Lesson::Norm { norm, gamma, beta } => {
                add(self.of(norm.gamma), &gamma);
                add(self.of(norm.beta), &beta);
            }
        }
    }
}

/// Returns the range of each parameter in the sums, and their total length.
fn places(parameters: &[Parameter]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0;
    let places = parameters.iter().map(|p| {
        let start = end;
        end += p.weight.map_or(p.values.len(), |weight| weight.sums_len());
        start..end
    });
    (places.collect(), end)
}

/// Goes back with all groups together, step by step. Returns as [`one_by_one`]; the weights are turned here.
///
/// # Panics
/// If the groups have not taken the same steps.
pub(super) fn together(
    groups: Vec<Taken>,
    begin: impl Fn(Taken) -> Back + Sync,
    parameters: &[Parameter],
    trained: bool,
) -> (Vec<Back>, Vec<Vec<f32>>) {
    let mut passes: Vec<Back> = groups.into_par_iter().map(&begin).collect();
    let mut gradients: Vec<Option<Vec<f32>>> = parameters.iter().map(|_| None).collect();
    let mut scratch = Scratch::default();
    while passes[0].left() > 0 {
        let (left, turns) = (passes[0].left(), passes[0].turns());
        assert!(passes.iter().all(|back| (back.left(), back.turns()) == (left, turns)), "other steps");
        let turned = turns.map(|weight| {
            let Parameter { weight, values, .. } = &parameters[weight.0];
            weight.expect("the forward pass had its sizes").turned(values)
        });
        let step = |back: &mut Back| back.step(parameters, turned.as_ref(), trained);
        let lessons: Vec<Lesson> = passes.par_iter_mut().filter_map(step).collect();
        for (param, more) in learn(&lessons, parameters, &mut scratch) {
            match &mut gradients[param.0] {
                Some(sum) => add(sum, &more),
                none => *none = Some(more),
            }
        }
        // Their memory goes back to the threads that need it for the next step.
        lessons.into_par_iter().for_each(drop);
    }
    let or_zeros = |(gradient, p): (Option<Vec<f32>>, &Parameter)| {
        gradient.unwrap_or_else(|| vec![0f32; p.values.len()])
    };
    let gradients = match trained {
        true => gradients.into_iter().zip(parameters).map(or_zeros).collect(),
        false => Vec::new(),
    };
    (passes, gradients)
}

/// Computes the gradients of the parameters of one step, in the order of the groups.
fn learn(lessons: &[Lesson], parameters: &[Parameter], scratch: &mut Scratch) -> Vec<(Param, Vec<f32>)> {
    let (mut maps, mut sums): (Vec<(&Maps, &Maps)>, Vec<(Param, Vec<f32>)>) = (Vec::new(), Vec::new());
    let mut add_to = |param: Param, more: &[f32]| match sums.iter_mut().find(|(p, _)| *p == param) {
        Some((_, sum)) => add(sum, more),
        None => sums.push((param, more.to_vec())),
    };
    let mut convolved = None;
    for lesson in lessons {
        match lesson {
            Lesson::Conv { x, dy, weight, bias } => {
                maps.push((x.as_ref(), dy));
                convolved = Some(*weight);
                if let Some((bias, rows)) = bias {
                    rows.values().chunks_exact(dy.channels).for_each(|row| add_to(*bias, row));
                }
            }
            Lesson::Norm { norm, gamma, beta } => {
                add_to(norm.gamma, gamma);
                add_to(norm.beta, beta);
            }
        }
    }
    if let Some(weight) = convolved {
        let (x, dy): (Vec<&Maps>, Vec<&Maps>) = maps.into_iter().unzip();
        let size = parameters[weight.0].weight.expect("the forward pass had its sizes");
        sums.push((weight, size.gradient_over(&x, &dy, scratch)));
    }
    sums
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
}
