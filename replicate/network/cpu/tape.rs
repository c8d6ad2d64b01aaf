//! A network on the CPU: forward over a few images at a time, which keeps what
//! one layer leaves to the next in the cache, and backward over what was taken
//! down on the way. Candle sees one operation, whose arguments are the images and
//! the parameters.
//!
//! Images are taken in groups of a fixed size and gradients are summed in a
//! fixed order, so no bit depends on the number of threads.

use crate::network::cpu::{self, Aligned, Ends, GroupNorm, Maps, Packed, Statistics, Weight};
use crate::network::{Norm, Ops, Param, Plus, Resample};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A value, and where its gradient is summed, if it has one.
#[derive(Clone)]
pub struct Node {
    maps: Arc<Maps>,
    id: Option<usize>,
}

/// One operation, with what its gradient needs.
enum Step {
    Conv { x: Node, weight: Param, bias: Option<Param>, term: Option<Node>, residual: Option<(Node, f32)> },
    Norm { x: Node, norm: Norm, statistics: Statistics },
    Attention { qkv: Node },
    Silu { x: Node },
    Down2 { x: Node },
    Up2 { x: Node },
    Concat { a: Node, b: Node },
    Mean { x: Node },
    Leaky { x: Node, by: Node, gain: f32 },
    Scale { x: Node, rows: Node },
    Rsqrt { x: Node, eps: f32 },
    Resample { x: Node, resample: Resample },
}

/// Runs the operations of a network on some images, and takes down those that a
/// gradient goes through.
pub struct Tape<'a> {
    parameters: &'a [Parameter<'a>],
    /// Those of the batch.
    images: Range<usize>,
    trained: bool,
    /// The operation, and the id of its result.
    steps: Vec<(Step, usize)>,
    nodes: usize,
}

/// A parameter as the operations read it.
struct Parameter<'a> {
    values: &'a [f32],
    /// Of those with two or four dimensions.
    weight: Option<Weight>,
    packed: Option<Packed>,
}

impl Tape<'_> {
    fn input(&mut self, maps: Maps, tracked: bool) -> Node {
        let id = tracked.then(|| self.id());
        Node { maps: Arc::new(maps), id }
    }

    fn id(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    /// Takes the step down if a gradient goes through it.
    fn push(&mut self, maps: Maps, tracked: bool, step: impl FnOnce() -> Step) -> Node {
        let id = tracked.then(|| self.id());
        if let Some(id) = id {
            self.steps.push((step(), id));
        }
        Node { maps: Arc::new(maps), id }
    }

    fn values(&self, param: Param) -> &[f32] {
        self.parameters[param.0].values
    }
}

impl Ops for Tape<'_> {
    type Map = Node;

    fn rows(&mut self, values: Vec<f32>, channels: usize) -> Result<Node> {
        let images = values.len() / channels;
        Ok(self.input(Maps::new(images, [1, 1, channels], values), false))
    }

    fn constant(&mut self, x: &Tensor) -> Result<Node> {
        let sizes = Sizes::of(x.dims())?;
        if sizes.images < self.images.end {
            bail!("constants of {} images for more", sizes.images);
        }
        let maps = with_values(&x.contiguous()?, |values| Ok(to_maps(sizes, values, self.images.clone())))?;
        Ok(self.input(maps, false))
    }

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
        let mut ends = Ends::default();
        let mut terms = Vec::new();
        if let Some(term) = plus.term {
            terms.extend_from_slice(term.maps.values());
            for row in terms.chunks_exact_mut(size.outputs) {
                for (t, b) in row.iter_mut().zip(bias.map_or(&[][..], |bias| self.values(bias))) {
                    *t += b;
                }
            }
            (ends.bias, ends.group) = (Some(terms.as_slice()), x.maps.height * x.maps.width);
        } else {
            ends.bias = bias.map(|bias| self.parameters[bias.0].values);
        }
        if let Some((residual, scale)) = plus.residual {
            (ends.residual, ends.scale) = (Some(residual.maps.values()), scale);
        }
        let y = cpu::convolve(&x.maps, packed, size.side, ends);
        let others = plus.term.into_iter().chain(plus.residual.map(|(residual, _)| residual));
        let tracked = self.trained || x.id.is_some() || others.into_iter().any(|node| node.id.is_some());
        Ok(self.push(y, tracked, || Step::Conv {
            x: x.clone(),
            weight,
            bias,
            term: plus.term.cloned(),
            residual: plus.residual.map(|(residual, scale)| (residual.clone(), scale)),
        }))
    }

    fn norm(&mut self, x: &Node, norm: &Norm) -> Result<Node> {
        let channels = x.maps.channels;
        let lengths = [norm.gamma, norm.beta].map(|param| self.values(param).len());
        if lengths != [channels; 2] || norm.groups == 0 || !channels.is_multiple_of(norm.groups) {
            bail!("group norm: {channels} channels, {norm:?}, gamma and beta of {lengths:?}");
        }
        let (y, statistics) = group_norm(self.parameters, norm).forward(&x.maps);
        let tracked = self.trained || x.id.is_some();
        Ok(self.push(y, tracked, || Step::Norm { x: x.clone(), norm: *norm, statistics }))
    }

    fn attention(&mut self, qkv: &Node) -> Result<Node> {
        if !qkv.maps.channels.is_multiple_of(3) {
            bail!("attention: {} channels are not three times anything", qkv.maps.channels);
        }
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
        Ok(self.push(y, x.id.is_some(), || Step::Down2 { x: x.clone() }))
    }

    fn up2(&mut self, x: &Node) -> Result<Node> {
        let y = cpu::up2(&x.maps, 1.0);
        Ok(self.push(y, x.id.is_some(), || Step::Up2 { x: x.clone() }))
    }

    fn concat(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let sizes = |node: &Node| [node.maps.images, node.maps.height, node.maps.width];
        if sizes(a) != sizes(b) {
            bail!("concat: images and pixels {:?} and {:?}", sizes(a), sizes(b));
        }
        let y = cpu::concat(&a.maps, &b.maps);
        let tracked = a.id.is_some() || b.id.is_some();
        Ok(self.push(y, tracked, || Step::Concat { a: a.clone(), b: b.clone() }))
    }

    fn mean(&mut self, x: &Node) -> Result<Node> {
        let y = cpu::mean(&x.maps);
        Ok(self.push(y, x.id.is_some(), || Step::Mean { x: x.clone() }))
    }

    fn leaky(&mut self, x: &Node, by: &Node, gain: f32) -> Result<Node> {
        if (x.maps.images, x.maps.shape()) != (by.maps.images, by.maps.shape()) {
            bail!("leaky: maps of {:?} by {:?}", x.maps.shape(), by.maps.shape());
        }
        let y = cpu::leaky(&x.maps, &by.maps, gain);
        Ok(self.push(y, x.id.is_some(), || Step::Leaky { x: x.clone(), by: by.clone(), gain }))
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
        Ok(self.push(y, x.id.is_some(), || Step::Resample { x: x.clone(), resample: *resample }))
    }
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

/// What is left of a forward pass over some images.
struct Taken {
    images: Range<usize>,
    steps: Vec<(Step, usize)>,
    nodes: usize,
    input: Option<usize>,
    output: Node,
}

impl Taken {
    /// From the gradient of the output to that of the input; those of the
    /// parameters are added to `sums`, of weights in an order of their own
    /// ([`Weight::gradient`]).
    fn backward(self, parameters: &[Parameter], dy: Maps, mut sums: Option<&mut Sums>) -> Option<Maps> {
        let mut gradients: Vec<Option<Maps>> = (0..self.nodes).map(|_| None).collect();
        if let Some(id) = self.output.id {
            gradients[id] = Some(dy);
        }
        drop(self.output);
        // Each step is dropped when it is done with, and its values with it.
        for (step, id) in self.steps.into_iter().rev() {
            let Some(mut dy) = gradients[id].take() else { continue };
            let mut add = |node: &Node, more: Maps| {
                let Some(id) = node.id else { return };
                match &mut gradients[id] {
                    Some(sum) => cpu::add(sum, &more),
                    none => *none = Some(more),
                }
            };
            match step {
                Step::Conv { x, weight, bias, term, residual } => {
                    let Parameter { weight: Some(size), packed: Some(turned), .. } = &parameters[weight.0]
                    else {
                        unreachable!("the forward pass had it packed")
                    };
                    if let Some((residual, scale)) = &residual {
                        dy.values_mut().iter_mut().for_each(|d| *d *= scale);
                        if residual.id.is_some() {
                            add(residual, dy.copy());
                        }
                    }
                    if let Some(term) = term.filter(|term| term.id.is_some()) {
                        let mut rows = Maps::stale(dy.images, [1, 1, dy.channels]);
                        rows.values_mut().fill(0.0);
                        cpu::add_bias_gradient(&dy, rows.values_mut());
                        add(&term, rows);
                    }
                    if let Some(sums) = &mut sums {
                        size.add_gradient(&x.maps, &dy, sums.of(weight));
                        if let Some(bias) = bias {
                            cpu::add_bias_gradient(&dy, sums.of(bias));
                        }
                    }
                    if x.id.is_some() {
                        let ends = Ends::default();
                        add(&x, cpu::convolve(&dy, turned, size.side, ends));
                    }
                }
                Step::Norm { x, norm, statistics } => {
                    let (mut gamma, mut beta) = (vec![0f32; dy.channels], vec![0f32; dy.channels]);
                    let dx = group_norm(parameters, &norm).backward(
                        &x.maps,
                        &statistics,
                        &dy,
                        &mut gamma,
                        &mut beta,
                    );
                    if let Some(sums) = &mut sums {
                        for (param, more) in [(norm.gamma, gamma), (norm.beta, beta)] {
                            sums.of(param).iter_mut().zip(more).for_each(|(sum, m)| *sum += m);
                        }
                    }
                    add(&x, dx);
                }
                Step::Attention { qkv } => add(&qkv, cpu::attention_backward(&qkv.maps, &dy)),
                Step::Silu { x } => add(&x, cpu::silu_backward(&x.maps, &dy)),
                Step::Down2 { x } => add(&x, cpu::up2(&dy, 0.25)),
                Step::Up2 { x } => add(&x, cpu::down2(&dy, 1.0)),
                Step::Concat { a, b } => {
                    let (da, db) = cpu::split(&dy, a.maps.channels);
                    add(&a, da);
                    add(&b, db);
                }
                Step::Mean { x } => {
                    add(&x, cpu::mean_backward(&dy, [x.maps.height, x.maps.width]));
                }
                Step::Leaky { x, by, gain } => add(&x, cpu::leaky(&dy, &by.maps, gain)),
                Step::Scale { x, rows } => {
                    if rows.id.is_some() {
                        add(&rows, cpu::scale_backward(&x.maps, &dy));
                    }
                    add(&x, cpu::scale(&dy, &rows.maps));
                }
                Step::Rsqrt { x, eps } => add(&x, cpu::rsqrt_backward(&x.maps, eps, &dy)),
                Step::Resample { x, resample } => {
                    let back = [x.maps.height, x.maps.width].map(|n| resample.transposed(n));
                    add(&x, cpu::resample(&dy, back.each_ref()));
                }
            }
        }
        self.input.and_then(|id| gradients[id].take())
    }
}

/// Sums of the gradients of all parameters, one behind the other.
struct Sums<'a> {
    values: Aligned,
    places: &'a [Range<usize>],
}

impl Sums<'_> {
    fn of(&mut self, param: Param) -> &mut [f32] {
        &mut self.values[self.places[param.0].clone()]
    }
}

/// Where the sums of each parameter are, and the length of all.
fn places(parameters: &[Parameter]) -> (Vec<Range<usize>>, usize) {
    let mut end = 0;
    let places = parameters.iter().map(|p| {
        let start = end;
        end += p.weight.map_or(p.values.len(), |weight| weight.sums_len());
        start..end
    });
    (places.collect(), end)
}

/// Images of a group: what one thread takes through the whole network.
const GROUP: usize = 4;
/// As many sums of gradients are made side by side, and added in order.
const SUMS: usize = 8;
/// From as many parameters on, groups are single images, and there are two sums.
const LARGE: usize = 2_000_000;

fn group_and_sums(parameters: &[Tensor]) -> (usize, usize) {
    let all: usize = parameters.iter().map(Tensor::elem_count).sum();
    if all < LARGE { (GROUP, SUMS) } else { (1, 2) }
}

/// `walk` over the images of `x`, (B, C, H, W) or (B, C), all float32 on the CPU:
/// it is given the images' places in the batch and their values. Candle's
/// gradients reach `x` and `parameters` where it tracks them; that of a parameter
/// which `walk` does not use is zero. Gives (B, C, H, W), or (B, C) where H = W = 1.
///
/// # Errors
/// What `walk` fails with; values that are not float32 on the CPU; no images.
pub fn apply(
    parameters: &[Tensor],
    x: &Tensor,
    walk: impl Fn(&mut Tape, Range<usize>, &Node) -> Result<Node> + Sync,
) -> Result<Tensor> {
    if x.dtype() != DType::F32 || parameters.iter().any(|p| p.dtype() != DType::F32) {
        bail!("networks on the CPU are float32");
    }
    let (trained, tracked) = (parameters.iter().any(Tensor::track_op), x.track_op());
    let x = x.contiguous()?;
    let sizes = Sizes::of(x.dims())?;
    if x.elem_count() == 0 {
        bail!("a network takes images, not {:?}", x.dims());
    }
    let (group, _) = group_and_sums(parameters);
    let starts: Vec<usize> = (0..sizes.images).step_by(group).collect();
    let taken: Vec<Taken> = with_parameters(parameters, Weight::packed, |loaded| {
        with_values(&x, |values| {
            let forward = |first: usize| {
                let range = first..sizes.images.min(first + group);
                let images = range.clone();
                let mut tape = Tape { parameters: loaded, images, trained, steps: Vec::new(), nodes: 0 };
                let input = tape.input(to_maps(sizes, values, range.clone()), tracked);
                let output = walk(&mut tape, range.clone(), &input)?;
                Ok(Taken { images: range, steps: tape.steps, nodes: tape.nodes, input: input.id, output })
            };
            starts.into_par_iter().map(forward).collect()
        })
    })?;
    let first = &taken[0].output.maps;
    let each = first.values().len() / first.images;
    let shape: Vec<usize> = match first.shape() {
        [1, 1, c] => vec![sizes.images, c],
        [h, w, c] => vec![sizes.images, c, h, w],
    };
    let mut y = vec![0f32; sizes.images * each];
    let mut rest = y.as_mut_slice();
    for part in &taken {
        let (here, after) = rest.split_at_mut(part.output.maps.values().len());
        from_maps(&part.output.maps, here);
        rest = after;
    }
    if !trained && !tracked {
        return Tensor::from_vec(y, shape, x.device());
    }
    // All parameters as one argument of one operation.
    let flat = if trained {
        let flat: Vec<Tensor> = parameters.iter().map(Tensor::flatten_all).collect::<Result<_>>()?;
        Tensor::cat(&flat, 0)?
    } else {
        Tensor::zeros(1, DType::F32, x.device())?
    };
    let done = Done {
        parameters: parameters.iter().map(Tensor::detach).collect(),
        y: Mutex::new(Some(y)),
        shape: shape.into(),
        taken: Mutex::new(taken),
    };
    x.apply_op2(&flat, done)
}

/// Of a batch (B, C, H, W), or (B, C) with H = W = 1.
#[derive(Clone, Copy)]
struct Sizes {
    images: usize,
    channels: usize,
    height: usize,
    width: usize,
}

impl Sizes {
    fn of(dims: &[usize]) -> Result<Sizes> {
        match *dims {
            [images, channels, height, width] => Ok(Sizes { images, channels, height, width }),
            [images, channels] => Ok(Sizes { images, channels, height: 1, width: 1 }),
            _ => bail!("a network takes (B, C, H, W) or (B, C), not {dims:?}"),
        }
    }
}

/// Images `range` of a batch, channels last.
fn to_maps(sizes: Sizes, values: &[f32], range: Range<usize>) -> Maps {
    let Sizes { channels, height, width, .. } = sizes;
    let each = channels * height * width;
    let mut maps = Maps::stale(range.len(), [height, width, channels]);
    let images = values[range.start * each..range.end * each].chunks_exact(each);
    for (to, from) in maps.values_mut().chunks_exact_mut(each).zip(images) {
        for (c, plane) in from.chunks_exact(height * width).enumerate() {
            for (to, from) in to[c..].iter_mut().step_by(channels).zip(plane) {
                *to = *from;
            }
        }
    }
    maps
}

/// Back to (images, C, H, W).
fn from_maps(maps: &Maps, values: &mut [f32]) {
    let [height, width, channels] = maps.shape();
    let each = channels * height * width;
    for (to, from) in values.chunks_exact_mut(each).zip(maps.values().chunks_exact(each)) {
        for (c, plane) in to.chunks_exact_mut(height * width).enumerate() {
            for (to, from) in plane.iter_mut().zip(from[c..].iter().step_by(channels)) {
                *to = *from;
            }
        }
    }
}

/// Reads a contiguous CPU tensor.
fn with_values<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a CPU tensor is needed") };
    f(cpu::values(storage, layout)?)
}

/// Reads parameters, the weights as `pack` makes them.
fn with_parameters<R>(
    parameters: &[Tensor],
    pack: fn(&Weight, &[f32]) -> Packed,
    f: impl FnOnce(&[Parameter]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = parameters.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for ((storage, layout), parameter) in guards.iter().zip(parameters) {
        let Storage::Cpu(cpu) = &**storage else { bail!("a CPU tensor is needed") };
        let weight = match *parameter.dims() {
            [outputs, inputs] => Some(Weight { outputs, inputs, side: 1 }),
            [outputs, inputs, side, other] if side == other => Some(Weight { outputs, inputs, side }),
            _ => None,
        };
        slices.push((cpu::values(cpu, layout)?, weight));
    }
    let load = |(values, weight): &(&'_ [f32], Option<Weight>)| (weight.map(|w| pack(&w, values)), *weight);
    let made: Vec<_> = slices.par_iter().map(load).collect();
    let loaded: Vec<Parameter> = slices
        .iter()
        .zip(made)
        .map(|((values, _), (packed, weight))| Parameter { values, weight, packed })
        .collect();
    f(&loaded)
}

/// A forward pass that was made, as candle's operation of the images and of all
/// parameters in one row.
struct Done {
    parameters: Vec<Tensor>,
    y: Mutex<Option<Vec<f32>>>,
    shape: Shape,
    taken: Mutex<Vec<Taken>>,
}

impl CustomOp2 for Done {
    fn name(&self) -> &'static str {
        "network"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.y.lock().expect("nobody panicked").take() {
            Some(y) => Ok((CpuStorage::F32(y), self.shape.clone())),
            None => bail!("the forward pass was used before"),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let taken = std::mem::take(&mut *self.taken.lock().expect("nobody panicked"));
        if taken.is_empty() {
            bail!("a network's gradient is computed once");
        }
        let dy = dy.contiguous()?;
        let (sizes, out) = (Sizes::of(x.dims())?, Sizes::of(dy.dims())?);
        let (trained, tracked) = (flat.track_op(), x.track_op());
        let (_, most) = group_and_sums(&self.parameters);
        // Consecutive groups share a sum.
        let per_sum = taken.len().div_ceil(most);
        let (dx, dflat) = with_parameters(&self.parameters, Weight::turned, |loaded| {
            with_values(&dy, |dy| {
                let (places, length) = places(loaded);
                let share = |groups: Vec<Taken>| {
                    let mut sums = trained.then(|| Sums { values: Aligned::zeros(length), places: &places });
                    let dx: Vec<(usize, Maps)> = groups
                        .into_iter()
                        .filter_map(|taken| {
                            let (first, dy) = (taken.images.start, to_maps(out, dy, taken.images.clone()));
                            Some((first, taken.backward(loaded, dy, sums.as_mut())?))
                        })
                        .collect();
                    (dx, sums.map(|sums| sums.values))
                };
                let parts: Vec<_> = taken.into_par_iter().chunks(per_sum).map(share).collect();
                let mut dx = if tracked { vec![0f32; x.elem_count()] } else { Vec::new() };
                let each = sizes.channels * sizes.height * sizes.width;
                let mut sums: Vec<Aligned> = Vec::new();
                for (images, part) in parts {
                    for (first, maps) in images {
                        from_maps(&maps, &mut dx[first * each..][..maps.values().len()]);
                    }
                    sums.extend(part);
                }
                let gradient = |(p, place): (&Parameter, &Range<usize>)| {
                    let (first, others) = sums.split_first().expect("there is a group");
                    let mut sum = first[place.clone()].to_vec();
                    for other in others {
                        sum.iter_mut().zip(&other[place.clone()]).for_each(|(s, m)| *s += m);
                    }
                    match &p.weight {
                        Some(weight) => weight.gradient(&sum),
                        None => sum,
                    }
                };
                let gradients = || loaded.par_iter().zip(&places).map(gradient).collect::<Vec<_>>().concat();
                Ok((dx, trained.then(gradients)))
            })
        })?;
        let dx = if tracked { Some(Tensor::from_vec(dx, x.shape(), x.device())?) } else { None };
        let dflat = dflat.map(|d| Tensor::from_vec(d, flat.shape(), flat.device())).transpose()?;
        Ok((dx, dflat))
    }
}
