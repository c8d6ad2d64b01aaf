//! How fast the heavy parts are, and what memory they take.

use crate::app::bench::{self, Case, IMAGES};
use crate::error::Result;
use candle_core::Device;
use clap::ValueEnum;
use serde::Serialize;

/// Something that was timed.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub name: String,
    /// Seconds, the median of the repetitions.
    pub seconds: f64,
    /// Images a second, where the part is counted in images.
    pub images_per_second: Option<f64>,
    /// The most memory until then, of the device, or of the process for a CPU.
    pub peak_bytes: u64,
}

/// # Errors
/// What the networks fail with.
pub fn rates(device: &Device, reduced: bool) -> Result<Vec<Rate>> {
    let (cases, repeats): (&[Case], usize) = match reduced {
        true => (&[Case::OneStep, Case::Dsm], 3),
        false => (&[Case::OneStep, Case::Dsm, Case::PaperStep, Case::Heun, Case::Fid], 9),
    };
    measured(cases, repeats, "", device)
}

/// Of the paper scale, while activations are bfloat16.
///
/// # Errors
/// As [`rates`].
pub fn bfloat16_rates(device: &Device) -> Result<Vec<Rate>> {
    measured(&[Case::PaperStep, Case::Heun, Case::Fid], 9, ", bf16", device)
}

fn measured(cases: &[Case], repeats: usize, precision: &str, device: &Device) -> Result<Vec<Rate>> {
    cases
        .iter()
        .map(|case| {
            let measured = bench::run(*case, if *case == Case::Fid { 1 } else { repeats }, device)?;
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
