//! Runs a network on candle tensors, forward and backward.

use super::backward::ForwardPass;
use super::gradients::{group_by_group, layer_by_layer};
use super::{Node, Parameter, Tape};
use crate::network::cpu::{self, Maps, Packed, Weight};
use crate::network::{Parameters, pack, unpack};
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor, Var, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Images in a group: one thread takes a group through the whole network.
const GROUP: usize = 4;
/// Number of parameters of a large network, at least. Its groups are single images, which go back
/// [`layer_by_layer`], and its gradients do not pass through candle, which would add each to zeros three times.
const LARGE: usize = 2_000_000;

fn large(parameters: &[Tensor]) -> bool {
    parameters.iter().map(Tensor::elem_count).sum::<usize>() >= LARGE
}

/// Runs `walk` on `inputs`, each (B, C, H, W) or rows (B, C), all float32 on the CPU. Outputs are
/// (B, C, H, W), or (B, C) where H = W = 1. Gradients reach the inputs and the `parameters` that
/// candle tracks, the latter by way of [`Bypass::gradients`](crate::network::Bypass::gradients) if the
/// network is large (2,000,000 parameters); the gradient of a parameter that `walk` does not use is zero.
///
/// # Errors
/// If `walk` fails, a value is not float32 on the CPU, there are no images, or the inputs differ in
/// their number of images.
pub fn apply(
    parameters: &Parameters,
    inputs: &[&Tensor],
    walk: impl Fn(&mut Tape, &[Node]) -> Result<Vec<Node>> + Sync,
) -> Result<Vec<Tensor>> {
    if inputs.iter().copied().chain(parameters.iter()).any(|tensor| tensor.dtype() != DType::F32) {
        bail!("networks on the CPU are float32");
    }
    let trained = parameters.iter().any(Tensor::track_op);
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.contiguous()).collect::<Result<_>>()?;
    let sizes: Vec<Sizes> = inputs.iter().map(|x| Sizes::of(x.dims())).collect::<Result<_>>()?;
    let images = sizes[0].images;
    if inputs.iter().any(|x| x.elem_count() == 0 || x.dims()[0] != images) {
        bail!("a network takes images, not {:?}", inputs.iter().map(Tensor::dims).collect::<Vec<_>>());
    }
    let large = large(parameters);
    let group = if large { 1 } else { GROUP };
    let starts: Vec<usize> = (0..images).step_by(group).collect();
    let passes: Vec<ForwardPass> = with_parameters(parameters, Some(Weight::packed), |loaded| {
        with_values(&inputs, |values| {
            let forward = |first: usize| {
                let range = first..images.min(first + group);
                let mut tape =
                    Tape { parameters: loaded, trained, recompute: large, steps: Vec::new(), nodes: 0 };
                let input = |((sizes, values), x): ((&Sizes, &&[f32]), &Tensor)| {
                    tape.input(to_maps(*sizes, values, range.clone()), x.track_op())
                };
                let nodes: Vec<Node> = sizes.iter().zip(values).zip(&inputs).map(input).collect();
                let outputs = walk(&mut tape, &nodes)?;
                let inputs = nodes.iter().filter_map(|node| node.id).collect();
                Ok(ForwardPass { images: range, steps: tape.steps, nodes: tape.nodes, inputs, outputs })
            };
            starts.into_par_iter().map(forward).collect()
        })
    })?;
    let output = |which: usize| {
        let shape = match passes[0].outputs[which].maps.shape() {
            [1, 1, c] => vec![images, c],
            [h, w, c] => vec![images, c, h, w],
        };
        let mut y = vec![0f32; shape.iter().product()];
        let mut rest = y.as_mut_slice();
        for part in &passes {
            let maps = &part.outputs[which].maps;
            let (here, after) = rest.split_at_mut(maps.values().len());
            from_maps(maps, here);
            rest = after;
        }
        Tensor::from_vec(y, shape, &Device::Cpu)
    };
    let outputs: Vec<Tensor> = (0..passes[0].outputs.len()).map(output).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = inputs.into_iter().filter(Tensor::track_op).collect();
    if !trained && tracked.is_empty() {
        return Ok(outputs);
    }
    // A candle operation has at most three arguments and one result, so everything that has a
    // gradient is packed into two arguments.
    let nothing = || Tensor::zeros(1, DType::F32, &Device::Cpu);
    let x = if tracked.is_empty() { nothing()? } else { pack(&tracked)? };
    let flat = match (trained, large) {
        (false, _) => nothing()?,
        // Candle asks for a gradient only if an argument has one, so this variable stands for all
        // parameters.
        (true, true) => Var::zeros(1, DType::F32, &Device::Cpu)?.as_tensor().clone(),
        (true, false) => {
            let flat: Vec<Tensor> = parameters.iter().map(Tensor::flatten_all).collect::<Result<_>>()?;
            Tensor::cat(&flat, 0)?
        }
    };
    let shapes = |tensors: &[Tensor]| tensors.iter().map(|x| x.shape().clone()).collect::<Vec<_>>();
    let op = NetworkOp {
        parameters: parameters.clone(),
        large,
        y: pack(&outputs)?,
        inputs: shapes(&tracked),
        outputs: shapes(&outputs),
        passes: Mutex::new(passes),
    };
    let shapes = op.outputs.clone();
    unpack(&x.apply_op2(&flat, op)?, &shapes)
}

/// Sizes of a batch (B, C, H, W), or of rows (B, C) with H = W = 1.
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

    /// Values of one image.
    fn each(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Converts the images in `range` of a batch to channels last.
fn to_maps(sizes: Sizes, values: &[f32], range: Range<usize>) -> Maps {
    let (Sizes { channels, height, width, .. }, each) = (sizes, sizes.each());
    let mut maps = Maps::uninit(range.len(), [height, width, channels]);
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

/// Converts maps back to (images, C, H, W).
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

/// Calls `f` with the values of contiguous CPU tensors.
fn with_values<R>(tensors: &[Tensor], f: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut all = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        let Storage::Cpu(storage) = &**storage else { bail!("a CPU tensor is needed") };
        all.push(cpu::values(storage, layout)?);
    }
    f(&all)
}

/// Calls `f` with the parameters, whose weights are packed by `pack` if it is given.
fn with_parameters<R>(
    parameters: &[Tensor],
    pack: Option<fn(&Weight, &[f32]) -> Packed>,
    f: impl FnOnce(&[Parameter]) -> Result<R>,
) -> Result<R> {
    let weight = |parameter: &Tensor| match *parameter.dims() {
        [outputs, inputs] => Some(Weight { outputs, inputs, side: 1 }),
        [outputs, inputs, side, other] if side == other => Some(Weight { outputs, inputs, side }),
        _ => None,
    };
    let weights: Vec<Option<Weight>> = parameters.iter().map(weight).collect();
    with_values(parameters, |all| {
        let load = |(values, weight): (&&'_ [f32], &Option<Weight>)| Some(pack?(weight.as_ref()?, values));
        let packed: Vec<_> = all.par_iter().zip(&weights).map(load).collect();
        let each = all.iter().zip(weights).zip(packed);
        let loaded: Vec<Parameter> =
            each.map(|((values, weight), packed)| Parameter { values, weight, packed }).collect();
        f(&loaded)
    })
}

/// A finished forward pass as a candle operation of two arguments: the tracked inputs, and all
/// parameters in one row, or one value that stands for those of a large network.
struct NetworkOp {
    parameters: Parameters,
    large: bool,
    /// All outputs, packed.
    y: Tensor,
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
    passes: Mutex<Vec<ForwardPass>>,
}

impl CustomOp2 for NetworkOp {
    fn name(&self) -> &'static str {
        "network"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = with_values(std::slice::from_ref(&self.y), |y| Ok(y[0].to_vec()))?;
        Ok((CpuStorage::F32(y), self.y.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let passes = std::mem::take(&mut *self.passes.lock().expect("nobody panicked"));
        if passes.is_empty() {
            bail!("a network's gradient is computed once");
        }
        let dy = unpack(dy, &self.outputs)?.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let sizes = |shapes: &[Shape]| shapes.iter().map(|s| Sizes::of(s.dims())).collect::<Result<Vec<_>>>();
        let (inputs, outputs) = (sizes(&self.inputs)?, sizes(&self.outputs)?);
        let (trained, tracked) = (flat.track_op(), x.track_op());
        let transpose: Option<fn(&Weight, &[f32]) -> Packed> =
            if self.large { None } else { Some(Weight::transposed) };
        let mut dx: Vec<Vec<f32>> = self.inputs.iter().map(|shape| vec![0f32; shape.elem_count()]).collect();
        let gradients: Vec<Vec<f32>> = with_parameters(&self.parameters, transpose, |loaded| {
            with_values(&dy, |dy| {
                let begin = |pass: ForwardPass| {
                    let images = pass.images.clone();
                    pass.back(outputs.iter().zip(dy).map(|(size, dy)| to_maps(*size, dy, images.clone())))
                };
                let (passes, gradients) = match self.large {
                    true => layer_by_layer(passes, begin, loaded, trained),
                    false => group_by_group(passes, begin, loaded, trained),
                };
                for back in passes {
                    let first = back.images.start;
                    for ((dx, size), maps) in dx.iter_mut().zip(&inputs).zip(back.inputs()) {
                        let Some(maps) = maps else { continue };
                        from_maps(&maps, &mut dx[first * size.each()..][..maps.values().len()]);
                    }
                }
                Ok(gradients)
            })
        })?;
        let shaped = |(values, shape): (_, &Shape)| Tensor::from_vec(values, shape, &Device::Cpu);
        let dx: Vec<Tensor> = dx.into_iter().zip(&self.inputs).map(shaped).collect::<Result<_>>()?;
        let dx = tracked.then(|| pack(&dx)).transpose()?;
        if !trained {
            return Ok((dx, None));
        }
        if !self.large {
            return Ok((dx, Some(Tensor::from_vec(gradients.concat(), flat.shape(), &Device::Cpu)?)));
        }
        for (parameter, gradient) in self.parameters.iter().zip(gradients) {
            if parameter.track_op() {
                let gradient = Tensor::from_vec(gradient, parameter.shape(), &Device::Cpu)?;
                self.parameters.bypass().leave([(parameter.clone(), gradient)]);
            }
        }
        Ok((dx, None))
    }
}
