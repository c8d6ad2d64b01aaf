//! Measures the speed and the memory of the heavy parts.

use crate::app::bench::{self, Case, IMAGES};
use crate::error::Result;
use crate::network::device::Compute;
use clap::ValueEnum;
use serde::Serialize;

/// A timed part.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub name: String,
    /// Median seconds of the repetitions.
    pub seconds: f64,
    /// Images per second, if the part counts images.
    pub images_per_second: Option<f64>,
    /// Peak memory so far: of the device, or of the process for a CPU.
    pub peak_bytes: u64,
}

/// # Errors
/// Those of the networks.
pub fn rates(compute: &Compute, reduced: bool) -> Result<Vec<Rate>> {
    let (cases, repeats): (&[Case], usize) = match reduced {
        true => (&[Case::OneStep, Case::Dsm], 3),
        false => (&[Case::OneStep, Case::Dsm, Case::PaperStep, Case::Heun, Case::Fid], 9),
    };
    measured(cases, repeats, "", compute)
}

/// Times the paper scale's parts while activations are bfloat16.
///
/// # Errors
/// As [`rates`].
pub fn bfloat16_rates(compute: &Compute) -> Result<Vec<Rate>> {
    measured(&[Case::PaperStep, Case::Heun, Case::Fid], 9, ", bf16", compute)
}

fn measured(cases: &[Case], repeats: usize, precision: &str, compute: &Compute) -> Result<Vec<Rate>> {
    cases
        .iter()
        .map(|case| {
            let measured =
                bench::run(*case, if *case == Case::Fid { 1 } else { repeats }, bench::ROWS, compute)?;
            let mut seconds = measured.seconds;
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            let value = case.to_possible_value().expect("no case is hidden");
            Ok(Rate {
                name: format!("{}{precision}", value.get_name()),
                seconds: median,
                images_per_second: IMAGES
                    .iter()
                    .find(|(known, _)| known == case)
                    .map(|(_, images)| *images as f64 / median),
                peak_bytes: measured.peak_bytes,
            })
        })
        .collect()
}
