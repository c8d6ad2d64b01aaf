//! Whether this program does on a device what it should: agreement with the reference
//! implementations, the same cell again, a stop, golden values; then how fast it is.

mod cells;
pub mod fixture;
mod operations;
pub mod parity;
mod speed;

use crate::device;
use crate::error::Result;
use crate::kernels;
use candle_core::Device;
use serde::Serialize;
use std::path::Path;

pub use self::speed::Rate;

/// One thing that was measured and must not be more than its tolerance.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    /// `null` in JSON where it is not finite.
    pub measured: f64,
    pub tolerance: f64,
    pub passed: bool,
    /// What the number is.
    pub what: String,
}

impl Check {
    fn new(name: String, what: String, measured: f64, tolerance: f64) -> Check {
        Check { name, measured, tolerance, passed: measured <= tolerance, what }
    }

    /// The largest difference, relative to the largest expected size.
    fn error(name: String, measured: f64, tolerance: f64) -> Check {
        Check::new(name, "relative error".into(), measured, tolerance)
    }
}

/// What a self-test found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    /// Whether only what a CPU can do in a minute was done.
    pub reduced: bool,
    pub checks: Vec<Check>,
    pub rates: Vec<Rate>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

fn bfloat16_checks(device: &Device, reduced: bool) -> Result<Vec<Check>> {
    let mut checks = operations::checks(device)?;
    checks.push(operations::rounding(device)?);
    checks.extend(parity::bfloat16_checks(device, reduced)?);
    Ok(checks)
}

fn bfloat16_possible(device: &Device) -> bool {
    cfg!(feature = "cudnn") && device.is_cuda()
}

/// Runs everything on `device`; `tell` hears of each part before it begins. `root` is
/// the repository, `scratch` an empty directory for what is trained.
///
/// # Errors
/// What a part could not be carried out for; a check that fails is none.
pub fn run(
    device: &Device,
    reduced: bool,
    root: &Path,
    scratch: &Path,
    mut tell: impl FnMut(&str),
) -> Result<Report> {
    kernels::use_bfloat16(false);
    tell("agreement with the reference implementations");
    let mut checks = operations::checks(device)?;
    checks.extend(operations::updates(device)?);
    if !device.is_cpu() {
        checks.push(operations::noise(device)?);
    }
    checks.extend(parity::checks(device, reduced)?);
    if bfloat16_possible(device) {
        kernels::use_bfloat16(true);
        let rounded = bfloat16_checks(device, reduced);
        kernels::use_bfloat16(false);
        checks.extend(rounded?);
    }
    tell("one cell: golden values, the same again, stopped and resumed");
    checks.extend(cells::checks(device, reduced, root, scratch)?);
    tell("speed and memory");
    let mut rates = speed::rates(device, reduced)?;
    if bfloat16_possible(device) && !reduced {
        kernels::use_bfloat16(true);
        let rounded = speed::bfloat16_rates(device);
        kernels::use_bfloat16(false);
        rates.extend(rounded?);
    }
    Ok(Report { device: device::describe(device), reduced, checks, rates })
}
