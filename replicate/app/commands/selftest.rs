//! `selftest`: tests the program on a device.

use crate::app::selftest::{self, Report};
use crate::error::{EXIT_GOOD, EXIT_OUTSIDE, Error, Result};
use crate::experiment::plan::bytes;
use crate::network::device;
use crate::train::watch::say;
use std::path::{Path, PathBuf};

/// A temporary directory, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("replicate-selftest-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `replicate selftest` and prints its checks.
pub fn selftest(name: &str, reduced: bool, root: &Path, json: bool) -> Result<i32> {
    let compute = device::open(name)?;
    let scratch = Scratch::new()?;
    // The full test would take days on a CPU.
    let reduced = reduced || compute.device.is_cpu();
    let report = selftest::run(&compute, reduced, root, &scratch.0, |part| say(&format!("{part} ...")));
    match json {
        true => println!("{}", serde_json::to_string_pretty(&report).expect("strings and numbers")),
        false => print(&report),
    }
    Ok(if report.passed() { EXIT_GOOD } else { EXIT_OUTSIDE })
}

fn print(report: &Report) {
    println!("{}{}", report.device, if report.reduced { ", reduced" } else { "" });
    for check in &report.checks {
        println!(
            "{:4} {:48} {:>9} of {:<8} {}",
            if check.passed { "ok" } else { "FAIL" },
            check.name,
            number(check.measured),
            number(check.tolerance),
            check.what
        );
    }
    for rate in &report.rates {
        let images = rate.images_per_second.map_or(String::new(), |n| format!("{n:.1} images/s, "));
        println!(
            "     {:18} {:10.2} ms, {images}peak so far {}",
            rate.name,
            1e3 * rate.seconds,
            bytes(rate.peak_bytes)
        );
    }
    let failed = report.checks.iter().filter(|check| !check.passed).count();
    match failed {
        0 => println!("all {} checks hold", report.checks.len()),
        _ => println!("{failed} of {} checks fail", report.checks.len()),
    }
}

fn number(x: f64) -> String {
    if x == x.trunc() && x.abs() < 1e6 { format!("{x}") } else { format!("{x:.1e}") }
}
