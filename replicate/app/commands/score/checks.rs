//! Decides what can be measured, and warns about it.

use super::report::Remarks;
use super::side::Side;
use crate::app::cli::Scoring;
use crate::app::score::{Gathered, IS_SPLITS, Input, Metric};
use crate::error::{Error, Result};
use crate::store::dir_of;
use clap::ValueEnum;
use std::path::Path;

/// Number of images for an FID in the literature.
const USUAL: usize = 50_000;
/// Least number of images in a part of the Inception Score for a test of their order.
const LARGE_PART: usize = 1000;
/// Fraction of the undivided Inception Score below which the images seem to be sorted by class.
const ORDERED: f64 = 0.8;

/// Returns the number of images in a trial, and the number of trials.
pub(super) fn portions(options: &Scoring, images: &Side, remarks: &mut Remarks) -> Result<(usize, usize)> {
    let Some(len) = images.described.images else {
        let text = format!("{} is a mean and a covariance: give it as --ref", images.described.name);
        return Err(Error::Usage(text));
    };
    let n = match (options.num, images.trial, &options.reference) {
        (Some(num), ..) => usize::try_from(num).unwrap_or(usize::MAX),
        (None, Some(trial), _) => trial,
        (None, None, Some(_)) => len.min(USUAL),
        (None, None, None) => len,
    };
    let trials = options.trials as usize;
    if n.saturating_mul(trials) > len {
        let wanted = if trials > 1 { format!("{trials} x {n} images") } else { format!("{n} images") };
        let remedy = "make more images, or ask for fewer with --num or --trials";
        return Err(images.described.malformed(wanted, len.to_string(), remedy));
    }
    if n * trials < len {
        remarks.note(format!("the first {} of {len} images are scored", n * trials));
    }
    Ok((n, trials))
}

/// Returns the metrics that were asked for, or else all that are possible.
pub(super) fn metrics(
    options: &Scoring,
    images: &Side,
    reference: Option<&Side>,
    n: usize,
    remarks: &mut Remarks,
) -> Result<Vec<Metric>> {
    let asked = match options.metrics.is_empty() {
        true => Metric::value_variants(),
        false => &options.metrics,
    };
    let mut metrics = Vec::new();
    let mut obstacles = Vec::new();
    for &metric in asked {
        match obstacle(metric, images, reference, n) {
            None if metrics.contains(&metric) => {}
            None => metrics.push(metric),
            Some(obstacle) => obstacles.push(format!("{}: {obstacle}", metric.name())),
        }
    }
    // A requested metric that is impossible is an error, and so is a call that would do nothing.
    if !obstacles.is_empty()
        && (!options.metrics.is_empty() || metrics.is_empty() && options.save_ref.is_none())
    {
        return Err(Error::Usage(obstacles.join("\n  ")));
    }
    obstacles.into_iter().for_each(|obstacle| remarks.note(obstacle));
    Ok(metrics)
}

/// Returns the reason why a metric cannot be measured.
fn obstacle(metric: Metric, images: &Side, reference: Option<&Side>, n: usize) -> Option<String> {
    let least = metric.least();
    let few =
        |what: &str, n: usize| (n < least).then(|| format!("needs at least {least} images, {what} has {n}"));
    match (metric, &images.input, reference) {
        (Metric::Is, Input::Features(set), _) if set.classes.is_none() => {
            Some(format!("needs logits beside the features in {}", images.described.name))
        }
        (Metric::Fid | Metric::Kid | Metric::Pr, _, None) => Some("needs a reference (--ref)".into()),
        (Metric::Kid | Metric::Pr, _, Some(Side { input: Input::Statistics(_), described, .. })) => {
            Some(format!("needs the reference's images, {} has their mean and covariance", described.name))
        }
        _ => None,
    }
    .or_else(|| few("a trial", n))
    .or_else(|| match (metric, reference) {
        (Metric::Fid | Metric::Kid | Metric::Pr, Some(side)) => {
            few(&side.described.name, side.described.images?)
        }
        _ => None,
    })
}

/// Refuses two inputs that cannot be compared, and warns of differences from usual comparisons.
pub(super) fn compare(
    metrics: &[Metric],
    images: &Side,
    reference: Option<&Side>,
    n: usize,
    remarks: &mut Remarks,
) -> Result<()> {
    for side in std::iter::once(images).chain(reference) {
        if matches!(side.input, Input::Features(_)) {
            let name = &side.described.name;
            remarks.warn(format!(
                "{name} does not say which network made its features, nor from how the images were resized"
            ));
        }
    }
    if n < USUAL && metrics.iter().any(|metric| matches!(metric, Metric::Fid | Metric::Is)) {
        remarks.warn(format!(
            "{n} images: with fewer than {USUAL}, FID comes out higher and IS lower; compare only at equal numbers"
        ));
    }
    let Some(reference) = reference.filter(|_| metrics.iter().any(|metric| *metric != Metric::Is)) else {
        return Ok(());
    };
    let (ours, theirs) = (&images.described, &reference.described);
    if ours.dimensions != theirs.dimensions {
        let (expected, found) = (format!("features of {} dimensions", ours.dimensions), theirs.dimensions);
        let remedy = "compare features of one network";
        return Err(theirs.malformed(expected, found.to_string(), remedy));
    }
    if let (Some(a), Some(b)) = (ours.size, theirs.size)
        && a != b
    {
        remarks.warn(format!(
            "the images have {a}x{a} pixels, the reference's {b}x{b}: the distance is between the resolutions, too"
        ));
    }
    if metrics.contains(&Metric::Fid) {
        for (what, count) in [("images", Some(n)), ("reference images", theirs.images)] {
            if let Some(count) = count.filter(|count| *count <= ours.dimensions) {
                remarks.warn(format!(
                    "{count} {what} for {} dimensions: their covariance is singular; other programs' FID may differ in the \
                     first digits",
                    ours.dimensions
                ));
            }
        }
    }
    Ok(())
}

/// Warns if the images seem to be sorted by class. Each part of the Inception Score then has few
/// classes, and the score is meaningless.
pub(super) fn in_order(gathered: &Gathered, remarks: &mut Remarks) {
    let Some(predictions) = &gathered.predictions else { return };
    let (divided, undivided) = (predictions.score().0, predictions.undivided());
    if gathered.len / IS_SPLITS >= LARGE_PART && divided < ORDERED * undivided {
        remarks.warn(format!(
            "IS is {divided:.2} in {IS_SPLITS} parts and {undivided:.2} undivided: the images seem to be in the order of their \
             classes, shuffle them"
        ));
    }
}

/// Checks that `--save-ref` is possible before the long computation.
pub(super) fn can_save(path: &Path, reference: Option<&Side>, n: usize, trials: usize) -> Result<()> {
    let images = match reference {
        Some(Side { input: Input::Statistics(_), .. }) => {
            return Err(Error::Usage("--save-ref: the reference is a mean and a covariance already".into()));
        }
        Some(side) => side.described.images.unwrap_or(0),
        None if trials > 1 => {
            return Err(Error::Usage("--save-ref of several trials: leave --trials out".into()));
        }
        None => n,
    };
    if images < 2 {
        return Err(Error::Usage(format!("--save-ref: {images} image has no covariance")));
    }
    std::fs::create_dir_all(dir_of(path)).map_err(Error::io("create", dir_of(path)))
}
