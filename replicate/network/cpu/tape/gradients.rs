//! The gradients of parameters, in one of two orders. Each group of images of a small network goes back
//! through all layers on one thread, and few sums of all gradients stay in the caches. The images of a large
//! network go back together, one layer after the other: the threads share a layer, its weight is transposed
//! only then, and its gradients are complete before those of the next layer begin.

use super::Parameter;
use super::backward::{BackwardPass, Contribution, ForwardPass};
use crate::network::Param;
use crate::network::cpu::{Aligned, Maps, Scratch};
use rayon::prelude::*;

/// Sums of gradients that are computed in parallel and then added in a fixed order.
const SUMS: usize = 8;

/// Takes each group back through all steps, on its own. Begins with the pass that `begin` returns. Returns
/// the finished passes in the order of the groups, and the gradients of the parameters if they are `trained`.
/// The parameters have their weights transposed.
pub(super) fn group_by_group(
    groups: Vec<ForwardPass>,
    begin: impl Fn(ForwardPass) -> BackwardPass + Sync,
    parameters: &[Parameter],
    trained: bool,
) -> (Vec<BackwardPass>, Vec<Vec<f32>>) {
    // One buffer has the sums of all parameters, each in its own range.
    let mut end = 0;
    let ranges = parameters.iter().map(|p| {
        let start = end;
        end += p.weight.map_or(p.values.len(), |weight| weight.sums_len());
        start..end
    });
    let ranges: Vec<_> = ranges.collect();
    let length = if trained { end } else { 0 };
    // Consecutive groups share a sum.
    let per_sum = groups.len().div_ceil(SUMS);
    let share = |groups: Vec<ForwardPass>| {
        let mut sums = Aligned::zeros(length);
        let through = |group: ForwardPass| {
            let mut back = begin(group);
            while back.remaining() > 0 {
                let Some(contribution) = back.step(parameters, None, trained) else { continue };
                if let Some((weight, x, dy)) = contribution.convolution() {
                    parameters[weight.0].sizes().add_gradient(x, dy, &mut sums[ranges[weight.0].clone()]);
                }
                contribution.vectors(|param, more| add(&mut sums[ranges[param.0].clone()], more));
            }
            back
        };
        let passes: Vec<BackwardPass> = groups.into_iter().map(through).collect();
        (passes, sums)
    };
    let parts: Vec<_> = groups.into_par_iter().chunks(per_sum).map(share).collect();
    let (passes, sums): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let passes = passes.into_iter().flatten().collect();
    if !trained {
        return (passes, Vec::new());
    }
    let (first, others) = sums.split_first().expect("there is a group");
    let gradients = parameters.par_iter().zip(ranges).map(|(p, range)| {
        let mut sum = first[range.clone()].to_vec();
        for other in others {
            add(&mut sum, &other[range.clone()]);
        }
        match &p.weight {
            Some(weight) => weight.weight_basis(&sum),
            None => sum,
        }
    });
    (passes, gradients.collect())
}

/// Takes all groups back together, step by step. Returns as [`group_by_group`], but transposes the weights
/// itself.
///
/// # Panics
/// If the groups have not recorded the same steps.
pub(super) fn layer_by_layer(
    groups: Vec<ForwardPass>,
    begin: impl Fn(ForwardPass) -> BackwardPass + Sync,
    parameters: &[Parameter],
    trained: bool,
) -> (Vec<BackwardPass>, Vec<Vec<f32>>) {
    let mut passes: Vec<BackwardPass> = groups.into_par_iter().map(&begin).collect();
    let mut gradients: Vec<Option<Vec<f32>>> = vec![None; parameters.len()];
    let mut add_to = |param: Param, more: Vec<f32>| match &mut gradients[param.0] {
        Some(sum) => add(sum, &more),
        none => *none = Some(more),
    };
    let mut scratch = Scratch::default();
    while passes[0].remaining() > 0 {
        let next = |back: &BackwardPass| (back.remaining(), back.next_transposed());
        assert!(passes.iter().all(|back| next(back) == next(&passes[0])), "other steps");
        let transposed = passes[0].next_transposed().map(|weight| {
            let weight = &parameters[weight.0];
            weight.sizes().transposed(weight.values)
        });
        let step = |back: &mut BackwardPass| back.step(parameters, transposed.as_ref(), trained);
        let contributions: Vec<Contribution> = passes.par_iter_mut().filter_map(step).collect();
        for contribution in &contributions {
            contribution.vectors(|param, more| add_to(param, more.to_vec()));
        }
        let convolutions = || contributions.iter().filter_map(Contribution::convolution);
        if let Some((weight, ..)) = convolutions().next() {
            let (x, dy): (Vec<&Maps>, Vec<&Maps>) = convolutions().map(|(_, x, dy)| (x, dy)).unzip();
            add_to(weight, parameters[weight.0].sizes().gradient_over(&x, &dy, &mut scratch));
        }
        // Their memory goes back to the threads that need it for the next step.
        contributions.into_par_iter().for_each(drop);
    }
    if !trained {
        return (passes, Vec::new());
    }
    let zeros = |p: &Parameter| vec![0f32; p.values.len()];
    let gradients = gradients.into_iter().zip(parameters).map(|(sum, p)| sum.unwrap_or_else(|| zeros(p)));
    (passes, gradients.collect())
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
}
