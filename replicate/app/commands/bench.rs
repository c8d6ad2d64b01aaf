//! `bench`: times the heavy parts of a run.

use crate::app::bench::{Case, run, usual};
use crate::error::{EXIT_GOOD, Result};
use crate::experiment::plan::bytes;
use crate::network::device::Compute;
use clap::ValueEnum;
use std::collections::BTreeMap;

/// Runs `replicate bench`: times each case in turn and prints medians.
pub fn bench(cases: &[Case], repeats: usize, rows: usize, compute: &Compute, json: bool) -> Result<i32> {
    let cases = if cases.is_empty() { usual(&compute.device) } else { cases.to_vec() };
    let mut all = BTreeMap::new();
    for case in &cases {
        let name = case.to_possible_value().expect("no case is hidden").get_name().to_string();
        let measured = run(*case, repeats, rows, compute)?;
        if !json {
            let mut sorted = measured.seconds.clone();
            sorted.sort_by(f64::total_cmp);
            println!(
                "{name:10} median {:8.1} ms, {:.1} to {:.1}, of {repeats}; {} threads; peak so far {}",
                1e3 * sorted[sorted.len() / 2],
                1e3 * sorted[0],
                1e3 * sorted[sorted.len() - 1],
                measured.threads,
                bytes(measured.peak_bytes)
            );
        }
        all.insert(name, measured);
    }
    if json {
        println!("{}", serde_json::to_string(&all).expect("strings and numbers"));
    }
    Ok(EXIT_GOOD)
}
