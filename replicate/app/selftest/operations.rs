//! Compares each operation and its gradients on a device with candle's composition of it on the
//! CPU, to locate the cause of a network's disagreement.

use super::fixture::relative_error;
use super::{Check, Tolerance};
use crate::error::Result;
use crate::network;
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::reference;
use crate::network::{Norm, Ops, Param, Parameters, Plus, Variables, Walk};
use crate::rng::Stream;
use crate::train::adam::{Adam, AdamConfig, Ema};
use candle_core::{DType, Device, Tensor, Var};

/// Size of the operations' inputs.
#[derive(Clone, Copy)]
struct Batch {
    /// Images, channels (a multiple of three), rows and columns.
    shape: [usize; 4],
    /// Groups of the group norm.
    groups: usize,
}

/// A small batch; one with more channels than a GPU block takes, in groups that do not divide
/// evenly; one that leaves a GPU's last block partly empty; and one with more pixels than a block
/// has threads.
const BATCHES: [Batch; 4] = [
    Batch { shape: [3, 12, 6, 6], groups: 3 },
    Batch { shape: [2, 96, 4, 10], groups: 32 },
    Batch { shape: [2, 84, 4, 6], groups: 7 },
    Batch { shape: [1, 6, 12, 30], groups: 2 },
];
const SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

#[derive(Clone, Copy)]
enum Operation {
    Conv3,
    Conv1,
    /// Convolution with a term for each image and a residual, as in a residual block.
    Block,
    Norm,
    NormSilu,
    /// Norm and convolution of a convolution's result, which is also the residual.
    Pair,
    Attention,
    /// Attention on a convolution's result.
    Projected,
    Silu,
    Down2,
    Up2,
    Concat,
    Mean,
}

const ALL: [(&str, Operation); 13] = [
    ("3x3 convolution", Operation::Conv3),
    ("1x1 convolution", Operation::Conv1),
    ("convolution with term and residual", Operation::Block),
    ("group norm", Operation::Norm),
    ("group norm and SiLU", Operation::NormSilu),
    ("convolution, norm, convolution", Operation::Pair),
    ("attention", Operation::Attention),
    ("convolution and attention", Operation::Projected),
    ("SiLU", Operation::Silu),
    ("halving", Operation::Down2),
    ("doubling", Operation::Up2),
    ("concatenation", Operation::Concat),
    ("mean", Operation::Mean),
];

impl Operation {
    /// Shapes of the parameters.
    fn parameters(self, batch: Batch) -> Vec<Vec<usize>> {
        let c = batch.shape[1];
        let conv = |outputs: usize, side: usize| vec![vec![outputs, c, side, side], vec![outputs]];
        let (norm, term) = (vec![vec![c], vec![c]], vec![vec![c, 5], vec![c]]);
        match self {
            Operation::Conv3 => conv(c / 2 + 2, 3),
            Operation::Conv1 => conv(c / 2 + 2, 1),
            Operation::Block => [conv(c, 3), term].concat(),
            Operation::Norm | Operation::NormSilu => norm,
            Operation::Pair => [norm, conv(c, 3), conv(c, 1), term].concat(),
            Operation::Projected => conv(3 * c, 1),
            _ => vec![],
        }
    }

    fn output<O: Ops>(self, batch: Batch, ops: &mut O, inputs: &[O::Map]) -> candle_core::Result<O::Map> {
        let (x, rows) = (&inputs[0], &inputs[1]);
        let norm = |silu| Norm { gamma: Param(0), beta: Param(1), groups: batch.groups, eps: 1e-6, silu };
        match self {
            Operation::Conv3 | Operation::Conv1 => ops.conv(x, Param(0), Some(Param(1)), Plus::NOTHING),
            Operation::Block => {
                let term = ops.conv(rows, Param(2), Some(Param(3)), Plus::NOTHING)?;
                let plus = Plus { term: Some(&term), residual: Some((x, SCALE)) };
                ops.conv(x, Param(0), Some(Param(1)), plus)
            }
            Operation::Pair => {
                let term = ops.conv(rows, Param(6), Some(Param(7)), Plus::NOTHING)?;
                let plus = Plus { term: Some(&term), residual: None };
                let y = ops.conv(x, Param(2), Some(Param(3)), plus)?;
                let z = ops.norm(&y, &norm(true))?;
                let z =
                    ops.conv(&z, Param(4), Some(Param(5)), Plus { term: None, residual: Some((&y, SCALE)) })?;
                ops.concat(&z, &y)
            }
            Operation::Projected => {
                let qkv = ops.conv(x, Param(0), Some(Param(1)), Plus::NOTHING)?;
                ops.attention(&qkv)
            }
            Operation::Norm => ops.norm(x, &norm(false)),
            Operation::NormSilu => ops.norm(x, &norm(true)),
            Operation::Attention => ops.attention(x),
            Operation::Silu => ops.silu(x),
            Operation::Down2 => ops.down2(x),
            Operation::Up2 => ops.up2(x),
            Operation::Concat => {
                let y = ops.silu(x)?;
                ops.concat(x, &y)
            }
            Operation::Mean => ops.mean(x),
        }
    }
}

/// An operation on images, with a row of channels for each.
struct Tried(Operation, Batch);

impl Walk for Tried {
    fn walk<O: Ops>(&self, ops: &mut O, inputs: &[O::Map]) -> candle_core::Result<Vec<O::Map>> {
        Ok(vec![self.0.output(self.1, ops, inputs)?])
    }
}

fn normals(name: &str, shape: &[usize]) -> Vec<f32> {
    Stream::new("self-test", name).normals(0, shape.iter().product())
}

/// Returns the operation's output, and the gradients of its input and parameters, all in float32.
/// With `composed` it uses candle's own composition.
fn evaluate(operation: Operation, batch: Batch, compute: &Compute, composed: bool) -> Result<Vec<Vec<f32>>> {
    let device = &compute.device;
    let shapes = std::iter::once(batch.shape.to_vec()).chain(operation.parameters(batch));
    let variable = |(i, shape): (usize, Vec<usize>)| {
        // Weights with a scale that keeps outputs as large as inputs.
        let inputs: usize = if i == 0 { 1 } else { shape[1..].iter().product() };
        let size = 1.0 / (inputs as f32).sqrt();
        let values = normals(&format!("input {i}"), &shape).into_iter().map(|v| size * v).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, device)?)
    };
    let inputs: Vec<Var> = shapes.enumerate().map(variable).collect::<candle_core::Result<_>>()?;
    let parameters = inputs[1..].iter().map(|var| var.as_tensor().clone()).collect();
    let parameters = Parameters::new(parameters, compute.maps());
    let x = inputs[0].as_tensor();
    let rows = Tensor::from_vec(normals("rows", &[batch.shape[0], 5]), (batch.shape[0], 5), device)?;
    let (given, tried) = ([x, &rows], Tried(operation, batch));
    let mut y = match composed {
        true => reference::apply(&parameters, &given, |ops, inputs| tried.walk(ops, inputs))?,
        false => network::forward(&parameters, &given, &tried)?,
    };
    let y = y.remove(0);
    let weights = Tensor::from_vec(normals("weights", y.dims()), y.shape(), device)?;
    let gradients = parameters.bypass().gradients(&(&y * weights)?.sum_all()?)?;
    let mut all = vec![y.flatten_all()?.to_vec1()?];
    for input in &inputs {
        let gradient = gradients.get(input).map(|gradient| gradient.flatten_all()?.to_vec1());
        // A missing gradient is an error, not a gradient of zero.
        all.push(gradient.transpose()?.unwrap_or_else(|| vec![f32::NAN]));
    }
    Ok(all)
}

/// # Errors
/// Those of the device. A difference is not an error.
pub fn checks(compute: &Compute) -> Result<Vec<Check>> {
    let tolerance = Tolerance::of_operations(compute);
    let precision = if compute.bfloat16() { ", bf16" } else { "" };
    let mut checks = Vec::new();
    for (name, operation) in ALL {
        let (mut output, mut gradients) = (0f64, 0f64);
        let compared = BATCHES.iter().try_for_each(|batch| -> Result<()> {
            let expected = evaluate(operation, *batch, &Compute::CPU, true)?;
            let found = evaluate(operation, *batch, compute, false)?;
            let mut errors = found.iter().zip(&expected).map(|(a, b)| relative_error(a, b));
            output = output.max(errors.next().expect("an output"));
            gradients = errors.fold(gradients, f64::max);
            Ok(())
        });
        // The checks continue after an operation that fails.
        match compared {
            Ok(()) => checks.extend([
                Check::error(format!("{name}{precision}"), output, tolerance.outputs),
                Check::error(format!("{name}{precision}: gradients"), gradients, tolerance.gradients),
            ]),
            Err(error) => {
                checks.push(Check::failed(format!("{name}{precision}"), &error));
            }
        }
    }
    Ok(checks)
}

/// Compares five steps of Adam and of the moving average with the same in float64.
///
/// # Errors
/// As [`checks`].
pub fn updates(compute: &Compute) -> Result<Vec<Check>> {
    const SIZES: [(&str, usize); 3] = [("a", 5), ("b", 3000), ("c", 3)];
    const CONFIG: AdamConfig = AdamConfig { beta1: 0.5, beta2: 0.999, eps: 1e-8, rectified: false };
    const LR: f64 = 0.1;
    const HALF_LIFE: u64 = 40;
    const BATCH: usize = 8;
    let network = |vb: Variables| {
        let init = candle_nn::Init::Uniform { lo: -1.0, up: 1.0 };
        SIZES.iter().try_for_each(|(name, n)| vb.get(*n, name, init).map(drop))
    };
    let source = Source { given: &Arrays::new(), drawn: &[""], cell: "self-test" };
    let (params, ()) = Params::build(compute, &source, network)?;
    let flat = |arrays: Arrays| arrays.into_values().flat_map(|array| array.data).collect::<Vec<f32>>();
    let mut weights: Vec<f64> = flat(params.arrays()?).iter().map(|w| f64::from(*w)).collect();
    let (mut first, mut second) = (vec![0f64; weights.len()], vec![0f64; weights.len()]);
    let mut averages = weights.clone();
    let (mut adam, mut ema) = (Adam::new(CONFIG, &params)?, Ema::new(HALF_LIFE, &params)?);
    for step in 1..=5 {
        let slopes = Stream::new("self-test", "slopes").normals(step, weights.len());
        let (mut loss, mut at) = (Tensor::zeros((), DType::F32, &compute.device)?, 0);
        for (_, var) in params.iter() {
            let n = var.elem_count();
            let slope = Tensor::from_slice(&slopes[at..at + n], var.shape(), &compute.device)?;
            (loss, at) = ((loss + (var.as_tensor() * slope)?.sum_all()?)?, at + n);
        }
        adam.update(&params, &params.gradients(&loss)?, LR)?;
        let images = 1000 * step;
        ema.update(&params, images, BATCH)?;

        let correction = |beta: f64| 1.0 - beta.powi(step as i32);
        let kept = (-(BATCH as f64) / HALF_LIFE as f64).exp2();
        for (i, slope) in slopes.iter().map(|slope| f64::from(*slope)).enumerate() {
            first[i] += (1.0 - CONFIG.beta1) * (slope - first[i]);
            second[i] += (1.0 - CONFIG.beta2) * (slope * slope - second[i]);
            let size = (second[i] / correction(CONFIG.beta2)).sqrt() + CONFIG.eps;
            weights[i] -= LR * first[i] / correction(CONFIG.beta1) / size;
            averages[i] += (1.0 - kept) * (weights[i] - averages[i]);
        }
    }
    let error = |found: Arrays, expected: Vec<f64>| {
        let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
        relative_error(&flat(found), &expected)
    };
    Ok(vec![
        Check::error("Adam: weights after five steps".into(), error(params.arrays()?, weights), 1e-5),
        Check::error("moving average after five steps".into(), error(ema.arrays()?, averages), 1e-5),
    ])
}

/// Checks that bfloat16 values are rounded to nearest, ties to even.
///
/// # Errors
/// As [`checks`].
pub fn rounding(device: &Device) -> Result<Vec<Check>> {
    // The product of an 8-bit and a 9-bit significand is often half-way between two bfloat16
    // values.
    const FACTOR: f32 = 1.0 + 1.0 / 256.0;
    let mut values = normals("rounding", &[4096]);
    values.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0]);
    let n = values.len();
    let x = Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(DType::BF16)?;
    let read = |x: &Tensor| x.to_dtype(DType::F32)?.to_vec1::<f32>();
    let expected = read(&(x.to_dtype(DType::F32)? * f64::from(FACTOR))?.to_dtype(DType::BF16)?)?;
    let found = read(&network::scale_images(&x.to_device(device)?, &[FACTOR])?)?;
    let other = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let others = found.iter().zip(&expected).filter(other).count();
    let what = format!("of {n} values rounded otherwise");
    Ok(vec![Check::new("rounding, bf16".into(), what, others as f64, 0.0)])
}

/// Compares the device's noise with the host's.
///
/// # Errors
/// As [`checks`].
pub fn noise(device: &Device) -> Result<Vec<Check>> {
    const N: usize = 1_000_001;
    let stream = Stream::new("self-test", "noise");
    // Counters beyond 32 bits, in steps of four.
    const FIRST: usize = (1 << 34) + 4;
    let found: Vec<f32> = network::normals_from(&stream, 7, FIRST, N, device)?.to_vec1()?;
    let differences = found.iter().zip(stream.normals_from(7, FIRST, N)).map(|(a, b)| (a - b).abs());
    let whole = found.len() == N && found.iter().all(|v| v.is_finite());
    let difference = if whole { differences.fold(0f32, f32::max) } else { f32::INFINITY };
    Ok(vec![Check::new("noise".into(), "largest difference from the host's".into(), difference as f64, 4e-6)])
}
