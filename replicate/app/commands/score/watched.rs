//! Shows progress while images are scored, and stops at a signal.

use crate::data::Images;
use crate::error::{Error, Result};
use crate::train::watch::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Least time between two lines in a pipe.
const PACE: Duration = Duration::from_secs(10);

/// Returns `batches`, of `total` images in all, and shows a bar on a terminal or lines in a pipe, both
/// on standard error. Ends with an error when `stop` is set.
pub fn watched<'a>(
    batches: impl Iterator<Item = Result<Images>> + 'a,
    label: &str,
    total: usize,
    stop: &'a AtomicBool,
) -> impl Iterator<Item = Result<Images>> + 'a {
    let label = label.to_string();
    let bar = std::io::stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} images, {per_sec}, {eta} left");
        ProgressBar::new(total as u64).with_style(style.expect("a valid template")).with_prefix(label.clone())
    });
    let (begun, mut said, mut done) = (Instant::now(), Instant::now(), 0);
    batches.map(move |images| {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Run(format!(
                "stopped after {done} images of {label}; a score cannot be resumed"
            )));
        }
        let images = images?;
        // The caller asks for a batch when the one before it is scored.
        match &bar {
            Some(bar) => bar.set_position(done as u64),
            None if said.elapsed() > PACE => {
                let rate = done as f64 / begun.elapsed().as_secs_f64();
                say(&format!("{label}: {done} of {total} images, {rate:.1} a second"));
                said = Instant::now();
            }
            None => {}
        }
        done += images.len();
        Ok(images)
    })
}
