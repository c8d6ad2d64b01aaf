//! The metrics as a tool: compares sets of images or features with a reference.
//!
//! A set is read once, batch by batch. The memory does not grow with its length: it holds the sums
//! of FID (D x D), those of the Inception Score (ten parts), the features of at most [`KEPT`]
//! images for KID, precision and recall, and the digests of at most [`COMPARED`] images, to find
//! repeats.
//!
//! | metric | as in |
//! | --- | --- |
//! | FID | EDM's `fid.py`: float64 sums, covariance over N - 1 |
//! | IS | logits without bias, ten contiguous parts, not shuffled |
//! | KID | torch-fidelity: mean over [`KID_SUBSETS`] random subsets of [`KID_SUBSET_SIZE`] |
//! | precision, recall | torch-fidelity: k = [`NEIGHBOURS`], as many reference images as images |

mod pictures;
mod sets;
pub mod source;

use std::collections::HashSet;

use crate::store::hex;
use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::sets::{BATCH, ImageSet, Input, Rows};
use crate::data::Images;
use crate::error::{Error, Result};
use crate::measure::inception::Inception;
use crate::measure::metrics::Features;
use crate::measure::metrics::frechet::{Factor, Moments, distance};
use crate::measure::metrics::inception_score::Predictions;
use crate::measure::metrics::kid::kid;
use crate::measure::metrics::precision_recall::precision_recall;
use crate::rng::Stream;

/// Largest number of a set's images for KID, precision and recall, evenly spread over the set.
pub const KEPT: usize = 10_000;
/// Largest number of a set's images that are compared with each other.
pub const COMPARED: usize = 1 << 20;
/// Parts of the Inception Score.
pub const IS_SPLITS: usize = 10;
/// Number of KID's subsets, if a set has more images than one.
pub const KID_SUBSETS: usize = 100;
/// Images in a KID subset. If a set has no more images, its only subset is the set.
pub const KID_SUBSET_SIZE: usize = 1000;
/// k of precision and recall.
pub const NEIGHBOURS: usize = 3;

/// A metric, or a pair that is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Fréchet Inception Distance
    Fid,
    /// Inception Score; needs no reference
    Is,
    /// Kernel Inception Distance; needs the reference's images or features
    Kid,
    /// Precision and recall; need the reference's images or features
    Pr,
}

impl Metric {
    /// Returns the printed name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Fid => "FID",
            Metric::Is => "IS",
            Metric::Kid => "KID",
            Metric::Pr => "precision and recall",
        }
    }

    /// Returns the least number of images for the metric.
    pub fn least(self) -> usize {
        match self {
            Metric::Fid | Metric::Kid => 2,
            Metric::Is => IS_SPLITS,
            Metric::Pr => NEIGHBOURS + 1,
        }
    }
}

/// Statistics to gather from a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Statistics for FID.
    pub moments: bool,
    /// Predictions for the Inception Score.
    pub predictions: bool,
    /// Largest number of images whose features are kept for KID, precision and recall.
    pub kept: usize,
}

/// Statistics of a set of `len` images.
#[derive(Clone, Debug)]
pub struct Gathered {
    pub len: usize,
    pub moments: Option<Moments>,
    pub predictions: Option<Predictions>,
    pub kept: Option<Features>,
}

/// A stream of rows, handed out in portions of any size.
pub struct RowStream<'a> {
    rows: Box<dyn Iterator<Item = Result<Rows>> + 'a>,
    /// The last batch, and the index of its first row that was not handed out.
    batch: Option<(Rows, usize)>,
}

impl<'a> RowStream<'a> {
    /// Makes the stream of all rows of some batches.
    pub fn new(rows: impl Iterator<Item = Result<Rows>> + 'a) -> RowStream<'a> {
        RowStream { rows: Box::new(rows), batch: None }
    }

    /// Returns the network's features and logits batch by batch, and passes the images to `seen`.
    pub fn extract(
        network: &'a Inception,
        batches: impl Iterator<Item = Result<Images>> + 'a,
        seen: &'a mut Seen,
    ) -> RowStream<'a> {
        RowStream::new(batches.map(move |images| {
            let images = images?;
            seen.push(&images);
            let (features, logits) = network.extract(&images, 0..images.len())?;
            Ok((features, Some(logits)))
        }))
    }

    /// Returns the next rows: at least one and at most `most`; `None` at the end.
    fn next(&mut self, most: usize) -> Option<Result<Rows>> {
        let ((features, logits), from) = match self.batch.take() {
            Some(batch) => batch,
            None => match self.rows.find(|rows| !matches!(rows, Ok((features, _)) if features.is_empty()))? {
                Ok(rows) => (rows, 0),
                Err(error) => return Some(Err(error)),
            },
        };
        let to = features.len().min(from + most);
        let part = |f: &Features| Features::new(f.dim, f.rows[from * f.dim..to * f.dim].to_vec());
        let rows = (part(&features), logits.as_ref().map(part));
        if to < features.len() {
            self.batch = Some(((features, logits), to));
        }
        Some(Ok(rows))
    }

    /// Gathers the statistics of the next `len` rows.
    ///
    /// # Errors
    /// Those of the stream; [`Error::Run`] if there are fewer rows, if a value is NaN or infinite,
    /// or if predictions need logits that do not exist.
    pub fn gather(&mut self, len: usize, wanted: Wanted) -> Result<Gathered> {
        let mut gathered = Gathered { len, moments: None, predictions: None, kept: None };
        let mut done = 0;
        while done < len {
            let Some(rows) = self.next(len - done) else {
                return Err(Error::Run(format!("{len} images were announced, {done} came")));
            };
            let (features, logits) = rows?;
            finite(&features, "feature", done)?;
            if wanted.moments {
                gathered.moments.get_or_insert_with(|| Moments::new(features.dim)).push(&features);
            }
            if wanted.predictions {
                let logits = logits.ok_or_else(|| Error::Run("the Inception Score needs logits".into()))?;
                finite(&logits, "logit", done)?;
                let new = || Predictions::new(logits.dim, len, IS_SPLITS);
                gathered.predictions.get_or_insert_with(new).push(&logits);
            }
            if wanted.kept > 0 {
                let kept = gathered.kept.get_or_insert_with(|| Features::new(features.dim, Vec::new()));
                // Evenly spread, because a set can be sorted by class.
                let is_kept = |i: &usize| (i + 1) * wanted.kept / len > i * wanted.kept / len;
                for i in (done..done + features.len()).filter(is_kept) {
                    kept.rows.extend_from_slice(features.row(i - done));
                }
            }
            done += features.len();
        }
        Ok(gathered)
    }
}

fn finite(rows: &Features, what: &str, first: usize) -> Result<()> {
    match rows.rows.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::Run(format!(
            "{what} {} of image {} is NaN or infinite: the weights of the network are damaged",
            at % rows.dim,
            first + at / rows.dim
        ))),
    }
}

/// Digests of the images so far, to count repeats.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pixels: Sha256,
    known: HashSet<[u8; 16]>,
    images: usize,
    repeats: usize,
}

impl Seen {
    /// Adds the next images of the set.
    pub fn push(&mut self, images: &Images) {
        self.pixels.update(&images.pixels);
        for i in 0..images.len().min(COMPARED - self.images.min(COMPARED)) {
            let digest = Sha256::digest(images.image(i));
            let half = digest.first_chunk().expect("32 bytes");
            self.repeats += !self.known.insert(*half) as usize;
        }
        self.images += images.len();
    }

    /// Number of images that equal an earlier one in every pixel.
    pub fn repeats(&self) -> usize {
        self.repeats
    }

    /// Returns the SHA-256 of all pixels in the order of scoring, n x 3 x H x W, in hexadecimal.
    pub fn digest(&self) -> String {
        hex(self.pixels.clone().finalize())
    }
}

/// The reference of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub factor: Option<Factor>,
    /// Rows kept from the reference, as many as from the images.
    pub kept: Option<Features>,
}

/// Mean and population standard deviation over the parts of IS or the subsets of KID.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    /// `None` for a single subset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sd: Option<f64>,
}

/// Measured metrics of one set; the others are absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    pub images: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<f64>,
}

/// Computes the metrics that were gathered for and that the reference allows.
///
/// # Errors
/// Those of the Fréchet distance.
///
/// # Panics
/// If there are fewer images than [`Metric::least`], or if the reference keeps another number of
/// images than the set.
pub fn scores(images: &Gathered, reference: &Reference, metrics: &[Metric]) -> Result<Scores> {
    let mut scores =
        Scores { images: images.len, fid: None, is: None, kid: None, precision: None, recall: None };
    for metric in metrics {
        match (metric, &images.moments, &images.predictions, &images.kept, &reference.kept) {
            (Metric::Fid, Some(moments), ..) => {
                if let Some(factor) = &reference.factor {
                    let fid = distance(&moments.factor()?, factor)?;
                    if !fid.is_finite() {
                        return Err(Error::Run(
                            "the Fréchet distance is beyond every number: are these features and statistics?"
                                .into(),
                        ));
                    }
                    scores.fid = Some(fid);
                }
            }
            (Metric::Is, _, Some(predictions), ..) => {
                let (mean, sd) = predictions.score();
                scores.is = Some(Spread { mean, sd: Some(sd) });
            }
            (Metric::Kid, _, _, Some(kept), Some(reference)) => {
                let (subsets, size) = kid_subsets(kept.len());
                let (mean, sd) = kid(kept, reference, subsets, size, &Stream::new("kid", "subsets"));
                scores.kid = Some(Spread { mean, sd: (subsets > 1).then_some(sd) });
            }
            (Metric::Pr, _, _, Some(kept), Some(reference)) => {
                let (precision, recall) = precision_recall(kept, reference, NEIGHBOURS);
                (scores.precision, scores.recall) = (Some(precision), Some(recall));
            }
            _ => {}
        }
    }
    Ok(scores)
}

/// Returns the number and size of the KID subsets of a set.
pub fn kid_subsets(images: usize) -> (usize, usize) {
    // Without replacement, all subsets as large as the set are equal.
    if images <= KID_SUBSET_SIZE { (1, images) } else { (KID_SUBSETS, KID_SUBSET_SIZE) }
}
