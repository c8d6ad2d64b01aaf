//! A finished row of one seed, and its files of values.

use super::artifact::Made;
use super::{Runner, SCORES, TIMING};
use crate::error::{Error, Result};
use crate::experiment::{Row, Scale};
use crate::judge::golden::{ALONG, OTHER_CODE, Score, TIME};
use crate::measure::evaluate::{METRICS, TARGETS};
use crate::measure::metrics::modes::collapse;
use crate::store::{Content, Entry, Key, Lock};
use crate::train::{METRICS_FILE, Trained};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// A finished row of one seed.
#[derive(Clone)]
pub struct Outcome {
    pub row: Row,
    pub seed: u64,
    pub scores: Made,
    /// `None` if the row trains nothing.
    pub weights: Option<Made>,
    /// The code that made it, if it is not the present code.
    pub other_code: Option<String>,
}

impl Outcome {
    /// Returns the artefact with the training's files, or the scores if nothing was trained.
    pub fn training(&self) -> &Made {
        self.weights.as_ref().unwrap_or(&self.scores)
    }

    /// Returns every file of the training and of the scores.
    pub fn outputs(&self) -> BTreeMap<String, Content> {
        let of = |made: &Made, kind: &str| {
            let outputs = made.manifest.outputs.clone().into_iter();
            outputs.map(|(name, content)| (format!("{kind}/{name}"), content)).collect::<Vec<_>>()
        };
        let trained = self.weights.iter().flat_map(|made| of(made, "training"));
        of(&self.scores, "scores").into_iter().chain(trained).collect()
    }

    /// Returns the wall time of training and scoring, in seconds.
    pub fn wall_seconds(&self) -> f64 {
        let seconds = |made: &Made| made.manifest.provenance.wall_seconds;
        seconds(&self.scores) + self.weights.as_ref().map_or(0.0, seconds)
    }
}

impl Runner<'_> {
    /// Returns a row's measurements, including the sizes of its networks and its time per
    /// iteration. Scores of other code get a determinism class of their own.
    pub fn scores(&self, outcome: &Outcome) -> Result<Vec<Score>> {
        let mut values = read_values(&outcome.scores)?;
        if let Some(weights) = &outcome.weights {
            values.extend(read_values(weights)?);
            values.extend(seconds_per_step(&weights.entry).map(|seconds| (TIME.to_string(), seconds)));
            values.extend(summary(&curve(weights)?));
        }
        Ok(self.named(outcome, outcome.scores.entry.key(), values))
    }

    /// Returns `values` as scores of a row, from the manifest of the entry `manifest`.
    pub(super) fn named(&self, outcome: &Outcome, manifest: &Key, values: Vec<(String, f64)>) -> Vec<Score> {
        let mut class = outcome.scores.manifest.determinism.clone();
        // The class names the images: different copies of the data set give different numbers.
        if self.recipe.scale == Scale::Tiny
            && let Some(images) = outcome.scores.manifest.inputs.get("reference")
        {
            class += &format!(", images {}", &images[..8]);
        }
        if let Some(code) = &outcome.other_code {
            class += &format!("{OTHER_CODE}{code}");
        }
        let score = |(metric, value)| Score {
            row: outcome.row.id.to_string(),
            changes: self.recipe.sorted_changes().join("+"),
            scale: self.recipe.scale.to_string(),
            seed: outcome.seed,
            metric,
            value,
            class: class.clone(),
            manifest: manifest.to_string(),
        };
        values.into_iter().map(score).collect()
    }
}

/// Returns the seconds of one iteration, from the file of times.
fn seconds_per_step(entry: &Entry) -> Option<f64> {
    let text = entry.read(TIMING).ok()?;
    let (steps, seconds): (f64, f64) = csv::Reader::from_reader(&text[..]).deserialize().next()?.ok()?;
    (steps > 0.0).then_some(seconds / steps)
}

/// Writes the scores of a trial to the last bit.
pub(super) fn trial_text(scores: &[(&'static str, f64)]) -> String {
    scores.iter().map(|(name, value)| format!("{name},{}\n", value.to_bits())).collect()
}

/// Reads a trial; `None` unless it is complete.
pub(super) fn read_trial(text: &[u8]) -> Option<Vec<(&'static str, f64)>> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |line: &str, name: &'static str| {
        let bits = line.strip_prefix(name)?.strip_prefix(',')?.parse().ok()?;
        Some((name, f64::from_bits(bits)))
    };
    let scores: Vec<_> = text.lines().zip(METRICS).filter_map(|(line, name)| value(line, name)).collect();
    (scores.len() == METRICS.len()).then_some(scores)
}

/// Writes values by name, in the form of scores.csv.
pub(super) fn values_text(values: impl Iterator<Item = (&'static str, f64)>) -> String {
    let lines = values.map(|(name, value)| format!("{name},{value}\n"));
    std::iter::once("metric,value\n".to_string()).chain(lines).collect()
}

pub(super) fn read_values(made: &Made) -> Result<Vec<(String, f64)>> {
    let wrong = |found: &str| {
        let remedy = "remove that directory; the next run makes it again";
        Error::malformed(made.entry.path(SCORES), "lines NAME,VALUE", found, remedy)
    };
    if made.digest(SCORES).is_none() {
        return Err(wrong("a file that its manifest does not list"));
    }
    let bytes = made.entry.read(SCORES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("bytes that are not text"))?;
    let mut names = BTreeSet::new();
    let mut value = |line: &str| {
        let (name, value) = line.split_once(',')?;
        // A name is printed in tables.
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (plain && names.insert(name.to_string())).then_some((name.to_string(), value.parse().ok()?))
    };
    text.lines().skip(1).map(|line| value(line).ok_or_else(|| wrong(line))).collect()
}

/// Writes the times into their own file, because they differ between identical runs.
pub(super) fn write_timing(lock: &Lock, trained: &Trained) -> Result<()> {
    let text = format!("steps,seconds_in_steps\n{},{:.3}\n", trained.steps, trained.step_seconds);
    lock.rewrite(TIMING, text.as_bytes())
}

/// One line of metrics.csv that has scores.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct CurvePoint {
    /// Training images of the generator so far.
    pub images: u64,
    pub fd: f64,
    pub recall: f64,
    /// Effective number of target classes.
    pub classes: f64,
}

/// Returns the curve of a training, the initialisation first; empty if nothing was scored.
pub fn curve(training: &Made) -> Result<Vec<CurvePoint>> {
    if !training.manifest.outputs.contains_key(METRICS_FILE) {
        return Ok(Vec::new());
    }
    Ok(read_curve(&training.entry.read(METRICS_FILE)?))
}

/// Reads the lines that have scores.
fn read_curve(metrics: &[u8]) -> Vec<CurvePoint> {
    csv::Reader::from_reader(metrics).deserialize().flatten().collect()
}

/// Returns the values of [`ALONG`]: recall and classes of the initialisation, the Fréchet distance
/// after half of the training, and the worst category up to then, without the initialisation's.
/// Empty if a value is missing.
fn summary(curve: &[CurvePoint]) -> Vec<(String, f64)> {
    let (Some(first), Some(last)) = (curve.first().filter(|m| m.images == 0), curve.last()) else {
        return Vec::new();
    };
    let early: Vec<&CurvePoint> = curve[1..].iter().filter(|m| 2 * m.images <= last.images).collect();
    let finite = early.iter().all(|m| !m.recall.is_nan() && !m.classes.is_nan());
    let (Some(halfway), true) = (early.last(), finite) else { return Vec::new() };
    let worst = early.iter().map(|m| collapse(m.recall, m.classes, TARGETS).code()).fold(0.0, f64::max);
    let values = [first.recall, first.classes, halfway.fd, worst];
    ALONG.iter().map(|name| name.to_string()).zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_back_to_the_bit_or_not_at_all() {
        let scores: Vec<_> =
            METRICS.into_iter().enumerate().map(|(i, name)| (name, 0.1 / (i + 1) as f64)).collect();
        let text = trial_text(&scores);
        assert_eq!(read_trial(text.as_bytes()), Some(scores));
        let short: String = text.lines().take(METRICS.len() - 1).map(|line| format!("{line}\n")).collect();
        for spoilt in [short, text.replace("recall,", "recoil,"), text.replace("kid,", "kid,x")] {
            assert_eq!(read_trial(spoilt.as_bytes()), None);
        }
    }

    #[test]
    fn a_run_is_summed_up_by_its_start_and_its_first_half() {
        let csv = "images,loss,fd,recall,classes\n0,,90,0.02,3\n10,1,80,0.05,4\n20,1,30,.6,9\n30,1,5,.9,9.9\n\
                   40,1,4,.95,10\n";
        let curve = read_curve(csv.as_bytes());
        assert_eq!(curve.len(), 5);
        let named = |name: &str| summary(&curve).into_iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!([named("start_recall"), named("start_classes"), named("halfway_fd")], [0.02, 3.0, 30.0]);
        assert_eq!(named("early_collapse"), 2.0, "after 10 images");
        let healthy: Vec<CurvePoint> = curve.iter().filter(|m| m.images != 10).copied().collect();
        assert_eq!(summary(&healthy)[3].1, 0.0, "that the initialisation meets the criterion does not count");
        assert!(summary(&curve[1..]).is_empty() && summary(&[]).is_empty());
    }
}
