//! Each operation of a network and its gradients on a device beside candle's own
//! composition of it on the CPU: what a network's disagreement comes from.

use super::Check;
use super::fixture::relative_error;
use super::parity::Tolerance;
use crate::composed;
use crate::elsewhere;
use crate::error::Result;
use crate::kernels;
use crate::network::{Norm, Ops, Param, Plus};
use crate::rng::Stream;
use crate::tape;
use candle_core::{DType, Device, Tensor, Var};

/// Images, channels, pixels on a side: 12 channels are 3 groups of a norm, and 4 of
/// attention.
const SHAPE: [usize; 4] = [3, 12, 6, 6];
const SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

#[derive(Clone, Copy)]
enum Operation {
    Conv3,
    Conv1,
    /// With a term for each image and a residual, as in a block.
    Block,
    Norm,
    NormSilu,
    Attention,
    Silu,
    Down2,
    Up2,
    Concat,
    Mean,
}

const ALL: [(&str, Operation); 11] = [
    ("3x3 convolution", Operation::Conv3),
    ("1x1 convolution", Operation::Conv1),
    ("convolution with term and residual", Operation::Block),
    ("group norm", Operation::Norm),
    ("group norm and SiLU", Operation::NormSilu),
    ("attention", Operation::Attention),
    ("SiLU", Operation::Silu),
    ("halving", Operation::Down2),
    ("doubling", Operation::Up2),
    ("concatenation", Operation::Concat),
    ("mean", Operation::Mean),
];

impl Operation {
    /// Shapes of the parameters.
    fn parameters(self) -> Vec<Vec<usize>> {
        let c = SHAPE[1];
        match self {
            Operation::Conv3 => vec![vec![8, c, 3, 3], vec![8]],
            Operation::Conv1 => vec![vec![8, c, 1, 1], vec![8]],
            Operation::Block => vec![vec![c, c, 3, 3], vec![c], vec![c, 5], vec![c]],
            Operation::Norm | Operation::NormSilu => vec![vec![c], vec![c]],
            _ => vec![],
        }
    }

    fn walk<O: Ops>(self, ops: &mut O, x: &O::Map) -> candle_core::Result<O::Map> {
        let norm = |silu| Norm { gamma: Param(0), beta: Param(1), groups: 3, eps: 1e-6, silu };
        match self {
            Operation::Conv3 | Operation::Conv1 => ops.conv(x, Param(0), Some(Param(1)), Plus::NOTHING),
            Operation::Block => {
                let rows = ops.rows(normals("rows", &[SHAPE[0], 5]), 5)?;
                let term = ops.conv(&rows, Param(2), Some(Param(3)), Plus::NOTHING)?;
                let plus = Plus { term: Some(&term), residual: Some((x, SCALE)) };
                ops.conv(x, Param(0), Some(Param(1)), plus)
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

fn normals(name: &str, shape: &[usize]) -> Vec<f32> {
    Stream::new("self-test", name).normals(0, shape.iter().product())
}

/// The operation's output, and the gradients of its input and parameters, all as
/// float32; `composed` as candle has them.
fn evaluate(operation: Operation, device: &Device, composed: bool) -> Result<Vec<Vec<f32>>> {
    let shapes = std::iter::once(SHAPE.to_vec()).chain(operation.parameters());
    let variable = |(i, shape): (usize, Vec<usize>)| {
        Var::from_tensor(&Tensor::from_vec(normals(&format!("input {i}"), &shape), shape, device)?)
    };
    let inputs: Vec<Var> = shapes.enumerate().map(variable).collect::<candle_core::Result<_>>()?;
    let parameters: Vec<Tensor> = inputs[1..].iter().map(|var| var.as_tensor().clone()).collect();
    let x = inputs[0].as_tensor();
    let y = if composed {
        composed::apply(&parameters, x, |ops, x| operation.walk(ops, x))?
    } else if device.is_cpu() {
        tape::apply_whole(&parameters, x, |ops, x| operation.walk(ops, x))?
    } else {
        elsewhere::apply(&parameters, x, |ops, x| operation.walk(ops, x))?
    };
    let weights = Tensor::from_vec(normals("weights", y.dims()), y.shape(), device)?;
    let gradients = elsewhere::gradients(&(&y * weights)?.sum_all()?)?;
    let mut all = vec![y.flatten_all()?.to_vec1()?];
    for input in &inputs {
        let gradient = gradients.get(input).map(|gradient| gradient.flatten_all()?.to_vec1());
        // A gradient that is missing is no gradient of zero.
        all.push(gradient.transpose()?.unwrap_or_else(|| vec![f32::NAN]));
    }
    Ok(all)
}

/// # Errors
/// What the device fails with; a difference is no error.
pub fn checks(device: &Device) -> Result<Vec<Check>> {
    let tolerance = Tolerance::of_operations(device);
    let precision = if kernels::activations(device) == DType::BF16 { ", bf16" } else { "" };
    let mut checks = Vec::new();
    for (name, operation) in ALL {
        let expected = evaluate(operation, &Device::Cpu, true)?;
        // One operation that fails must not hide what the others give.
        let found = match evaluate(operation, device, false) {
            Ok(found) => found,
            Err(error) => {
                checks.push(Check::error(format!("{name}{precision}: {error}"), f64::INFINITY, 0.0));
                continue;
            }
        };
        let errors: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| relative_error(a, b)).collect();
        let gradients = errors[1..].iter().copied().fold(0.0, f64::max);
        checks.push(Check::error(format!("{name}{precision}"), errors[0], tolerance.outputs));
        checks.push(Check::error(format!("{name}{precision}: gradients"), gradients, tolerance.gradients));
    }
    Ok(checks)
}

/// Noise that a device makes beside the host's.
///
/// # Errors
/// As [`checks`].
pub fn noise(device: &Device) -> Result<Check> {
    const N: usize = 10_001;
    let stream = Stream::new("self-test", "noise");
    let found: Vec<f32> = kernels::normals(&stream, 7, N, device)?.to_vec1()?;
    let differences = found.iter().zip(stream.normals(7, N)).map(|(a, b)| (a - b).abs());
    let whole = found.len() == N && found.iter().all(|v| v.is_finite());
    let difference = if whole { differences.fold(0f32, f32::max) } else { f32::INFINITY };
    Ok(Check::new("noise".into(), "largest difference from the host's".into(), difference as f64, 4e-6))
}
