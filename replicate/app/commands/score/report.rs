//! Output of `score`: numbers, with everything needed to compare them.

use crate::app::score::{IS_SPLITS, Metric, NEIGHBOURS, Scores, Spread, kid_subsets};
use crate::experiment::{Recipe, Scale};
use crate::train::watch::say;
use serde::Serialize;
use std::fmt::Write;

/// The JSON output. Fields that were not measured or do not apply are absent.
#[derive(Serialize)]
pub struct Report {
    pub program: &'static str,
    pub images: Described,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Described>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    pub protocol: Protocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<Fid>,
    pub trials: Vec<Trial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
    #[serde(flatten)]
    pub remarks: Remarks,
}

/// Description of one of the two inputs.
#[derive(Default, Serialize)]
pub struct Described {
    /// Name as typed.
    pub name: String,
    pub kind: &'static str,
    /// Number of images, including those that are not scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Height and width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Dimensions of the features.
    pub dimensions: usize,
    /// SHA-256 of the scored pixels in order, n x 3 x H x W.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels_sha256: Option<String>,
    /// Number of images that equal an earlier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<usize>,
    /// SHA-256 of the file with features or statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_sha256: Option<String>,
}

/// The feature network, and whether it is the published one.
#[derive(Serialize)]
pub struct Network {
    /// Name with the beginning of the SHA-256.
    pub name: String,
    /// Its path, as printed: one that is not Unicode has no place in JSON.
    pub file: String,
    pub sha256: String,
    pub published: bool,
}

/// Settings of the metrics that were measured.
#[derive(Serialize)]
pub struct Protocol {
    #[serde(skip_serializing_if = "Option::is_none")]
    is_splits: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid_subsets: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid_subset_size: Option<usize>,
    /// k of precision and recall.
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbours: Option<usize>,
    /// Images of each input for KID, precision and recall.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<usize>,
}

impl Protocol {
    /// Returns the settings of `metrics`, with `kept` images for KID, precision and recall.
    pub fn of(metrics: &[Metric], kept: usize) -> Protocol {
        let has = |metric: Metric| metrics.contains(&metric);
        let (subsets, size) = kid_subsets(kept);
        Protocol {
            is_splits: has(Metric::Is).then_some(IS_SPLITS),
            kid_subsets: has(Metric::Kid).then_some(subsets),
            kid_subset_size: has(Metric::Kid).then_some(size),
            neighbours: has(Metric::Pr).then_some(NEIGHBOURS),
            kept: (kept > 0).then_some(kept),
        }
    }
}

/// Scores of one trial.
#[derive(Serialize)]
pub struct Trial {
    /// Number of its first image, from 0.
    pub first: usize,
    #[serde(flatten)]
    pub scores: Scores,
}

/// FID over the trials.
#[derive(Serialize)]
pub struct Fid {
    pub mean: f64,
    pub min: f64,
}

impl Fid {
    /// Returns mean and minimum; `None` without trials.
    pub fn of(fids: &[f64]) -> Option<Fid> {
        let min = fids.iter().copied().reduce(f64::min)?;
        Some(Fid { mean: fids.iter().sum::<f64>() / fids.len() as f64, min })
    }
}

/// The written file of statistics.
#[derive(Serialize)]
pub struct Saved {
    pub file: String,
    pub sha256: String,
}

/// Warnings and notes, which are also printed on standard error at once.
#[derive(Default, Serialize)]
pub struct Remarks {
    /// Reasons why a number differs from those of other programs.
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Remarks {
    /// Prints and keeps a warning, once.
    pub fn warn(&mut self, text: String) {
        // One file may be both inputs.
        if self.warnings.contains(&text) {
            return;
        }
        say(&format!("warning: {text}"));
        self.warnings.push(text);
    }

    /// Prints and keeps a note.
    pub fn note(&mut self, text: String) {
        say(&format!("note: {text}"));
        self.notes.push(text);
    }
}

impl Described {
    fn text(&self) -> String {
        let mut text = format!("{}: {}", self.name, self.kind);
        if let Some(images) = self.images {
            _ = write!(text, ", {images}");
        }
        if let Some(size) = self.size {
            _ = write!(text, " of {size}x{size}");
        }
        if let Some(sha256) = &self.pixels_sha256 {
            _ = write!(text, ", SHA-256 of the pixels {sha256}");
        }
        if let Some(sha256) = &self.file_sha256 {
            _ = write!(text, ", SHA-256 {sha256}");
        }
        text
    }
}

impl Report {
    pub fn text(&self) -> String {
        let mut text = format!("images     {}\n", self.images.text());
        if let Some(reference) = &self.reference {
            _ = writeln!(text, "reference  {}", reference.text());
        }
        if let Some(network) = &self.network {
            let known = if network.published { "the published weights" } else { "not the published weights" };
            _ = writeln!(text, "network    {}: {known}, SHA-256 {}", network.file, network.sha256);
        }
        if let Some(saved) = &self.saved {
            _ = writeln!(text, "written    {}: SHA-256 {}", saved.file, saved.sha256);
        }
        let rows = self.rows();
        if !rows.is_empty() {
            _ = writeln!(text, "\n{:18} {:>22} {:>7}  {:20} reference", "metric", "value", "N", "network");
        }
        let network = match &self.network {
            Some(network) => network.name.clone(),
            None => format!("features of {}", self.images.dimensions),
        };
        for Row { metric, trial, value, n, compared } in rows {
            let reference = self.reference.as_ref().filter(|_| compared).map_or("-", |side| &side.name);
            let metric = format!("{metric}{trial}");
            _ = writeln!(text, "{metric:18} {value:>22} {n:>7}  {network:20} {reference}");
        }
        if let Some(k) = self.protocol.neighbours {
            let tables = Recipe::of(Scale::Mini).evaluation.neighbours;
            _ = writeln!(
                text,
                "\nprecision, recall: of k = {k} as in torch-fidelity; the tables of mini, tiny, small and paper have k = {tables}"
            );
        }
        text
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let several = self.trials.len() > 1;
        // Only the published network's features make an FID.
        let fid_or_fd =
            if self.network.as_ref().is_some_and(|network| network.published) { "FID" } else { "FD" };
        for (t, Trial { scores, .. }) in self.trials.iter().enumerate() {
            let trial = if several { format!(", trial {}", t + 1) } else { String::new() };
            let mut row = |metric, value: Option<String>, n, compared| {
                rows.extend(value.map(|value| Row { metric, trial: trial.clone(), value, n, compared }));
            };
            let kept = self.protocol.kept.unwrap_or(0);
            let spread = |spread: Spread, digits: usize| match spread.sd {
                Some(sd) => format!("{:.digits$} ± {sd:.digits$}", spread.mean),
                None => format!("{:.digits$}", spread.mean),
            };
            row(fid_or_fd, scores.fid.map(|fid| format!("{fid:.4}")), scores.images, true);
            row("IS", scores.is.map(|is| spread(is, 4)), scores.images, false);
            row("KID", scores.kid.map(|kid| spread(kid, 6)), kept, true);
            row("precision", scores.precision.map(|precision| format!("{precision:.4}")), kept, true);
            row("recall", scores.recall.map(|recall| format!("{recall:.4}")), kept, true);
        }
        if let (Some(fid), true) = (&self.fid, several) {
            let n = self.trials[0].scores.images;
            for (trial, value) in [(", mean", fid.mean), (", least", fid.min)] {
                let value = format!("{value:.4}");
                rows.push(Row { metric: fid_or_fd, trial: trial.into(), value, n, compared: true });
            }
        }
        rows
    }
}

/// A line of the table.
struct Row {
    metric: &'static str,
    trial: String,
    value: String,
    n: usize,
    /// True if the metric compares with the reference.
    compared: bool,
}
