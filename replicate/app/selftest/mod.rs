//! Self-test of the program on a device: agreement with the reference implementations, one cell
//! repeated, stopped and compared with golden values, then speed.

mod cells;
pub mod fixture;
mod operations;
pub mod parity;
mod speed;
pub mod steps;

use crate::error::{Error, Result};
use crate::network::device::{self, Compute};
use serde::Serialize;
use std::path::Path;

pub use self::speed::Rate;

/// Tolerances of the comparisons.
pub struct Tolerance {
    pub outputs: f64,
    pub gradients: f64,
    /// For a few steps of Adam, at a hundred times the paper's rate or more. Without a first moment
    /// each step follows the signs of the gradients, however small they are.
    pub steps: f64,
}

impl Tolerance {
    /// Float32 rounding alone stays below 1e-4 on a CPU; a GPU sums in another order. With every
    /// activation and its gradient rounded to bfloat16 on a CPU, the errors were at most 1.2e-2,
    /// 3.4e-2 and, for DiJS, 2.4e-1.
    pub fn on(compute: &Compute) -> Tolerance {
        match compute.bfloat16() {
            true => Tolerance { outputs: 3e-2, gradients: 1e-1, steps: 5e-1 },
            _ if compute.device.is_cpu() => Tolerance { outputs: 1e-4, gradients: 1e-4, steps: 1e-3 },
            _ => Tolerance { outputs: 1e-3, gradients: 1e-3, steps: 1e-3 },
        }
    }

    /// For one operation. Rounding a convolution's float32 inputs to TF32 gives an error of 3e-4.
    pub fn of_operations(compute: &Compute) -> Tolerance {
        match compute.bfloat16() {
            true => Tolerance::on(compute),
            false => Tolerance { outputs: 1e-5, gradients: 1e-5, steps: 0.0 },
        }
    }
}

/// A measurement with its tolerance.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    /// `null` in JSON if it is not finite.
    pub measured: f64,
    pub tolerance: f64,
    pub passed: bool,
    /// Description of the number.
    pub what: String,
}

impl Check {
    fn new(name: String, what: String, measured: f64, tolerance: f64) -> Check {
        Check { name, measured, tolerance, passed: measured <= tolerance, what }
    }

    /// Makes a failed check from an error. It shows the first line only, because the others are
    /// advice for runs.
    fn failed(name: String, error: &Error) -> Check {
        let why = error.to_string().lines().next().unwrap_or_default().to_string();
        Check::new(name, why, f64::INFINITY, 0.0)
    }

    /// Makes a check of the largest difference, relative to the largest expected size.
    fn error(name: String, measured: f64, tolerance: f64) -> Check {
        Check::new(name, "relative error".into(), measured, tolerance)
    }
}

/// Result of a self-test.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    /// True if only the part was run that a CPU does in a minute.
    pub reduced: bool,
    pub checks: Vec<Check>,
    pub rates: Vec<Rate>,
}

impl Report {
    /// True if every check holds.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

/// Returns the checks of a part, or one failed check if the part fails, so that the other parts
/// still run.
fn part(name: &str, checks: Result<Vec<Check>>) -> Vec<Check> {
    checks.unwrap_or_else(|error| vec![Check::failed(name.into(), &error)])
}

/// Runs every part on the device of `compute`, in float32, and some in bfloat16 if it multiplies
/// that. Calls `tell` before each. `root` is the repository, `scratch` an empty directory for the
/// training. A part with an error becomes a failed check.
pub fn run(
    compute: &Compute,
    reduced: bool,
    root: &Path,
    scratch: &Path,
    mut tell: impl FnMut(&str),
) -> Report {
    let (compute, half, device) = (&compute.in_float32(), compute.in_bfloat16(), &compute.device);
    tell("agreement with the reference implementations");
    let mut checks = part("operations", operations::checks(compute));
    checks.extend(part("updates", operations::updates(compute)));
    if !device.is_cpu() {
        checks.extend(part("noise", operations::noise(device)));
    }
    checks.extend(parity::checks(compute, reduced));
    if let Some(half) = &half {
        checks.extend(part("operations, bf16", operations::checks(half)));
        checks.extend(part("rounding, bf16", operations::rounding(device)));
        checks.extend(parity::bfloat16_checks(half, reduced));
    }
    tell("one cell: golden values, the same again, stopped and resumed");
    checks.extend(part("one cell", cells::checks(compute, reduced, root, scratch)));
    tell("speed and memory");
    let mut rates = Vec::new();
    let mut timed = |name: &str, found: Result<Vec<Rate>>| match found {
        Ok(found) => rates.extend(found),
        Err(error) => checks.extend(part(name, Err(error))),
    };
    timed("speed", speed::rates(compute, reduced));
    if let Some(half) = half.filter(|_| !reduced) {
        timed("speed, bf16", speed::bfloat16_rates(&half));
    }
    Report { device: device::describe(device), reduced, checks, rates }
}
