//! Images in, scores out: features once, every metric from them.

use crate::data::Images;
use crate::error::Result;
use crate::experiment::Evaluation;
use crate::features::Classifier;
use crate::metrics::Features;
use crate::metrics::frechet::{Moments, frechet_distance};
use crate::metrics::kernel::kid;
use crate::metrics::modes::{Collapse, collapse, modes};
use crate::metrics::prd::precision_recall;
use crate::metrics::score::inception_score;
use crate::rng::Stream;
use candle_core::Device;

/// Number of target classes.
pub const TARGETS: usize = 10;
const KID_SUBSETS: usize = 20;
/// Images in a KID subset, fewer where there are not that many.
const KID_SUBSET_SIZE: usize = 500;

/// Where a training stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quick {
    /// Fréchet distance in the features of the feature network.
    pub fd: f64,
    /// k-NN recall.
    pub recall: f64,
    /// Effective number of target classes.
    pub classes: f64,
}

impl Quick {
    pub fn collapse(&self) -> Collapse {
        collapse(self.recall, self.classes, TARGETS)
    }
}

/// The feature network and the real images' statistics.
pub struct Evaluator {
    classifier: Classifier,
    device: Device,
    evaluation: Evaluation,
    reference: Features,
    moments: Moments,
}

impl Evaluator {
    pub fn new(
        classifier: Classifier,
        device: &Device,
        evaluation: Evaluation,
        reference: &Images,
    ) -> Result<Evaluator> {
        let (reference, _) = classifier.extract(reference, device)?;
        let mut moments = Moments::new(reference.dim);
        moments.push(&reference);
        Ok(Evaluator { classifier, device: device.clone(), evaluation, reference, moments })
    }

    /// What is looked at along a run, from fewer images than the scores.
    pub fn quick(&self, images: &Images) -> Result<Quick> {
        let (features, logits) = self.classifier.extract(images, &self.device)?;
        let (_, recall) = self.precision_recall(&features);
        let classes = modes(&target_logits(&logits), &features, TARGETS).effective_classes;
        Ok(Quick { fd: self.distance_of(&features)?, recall, classes })
    }

    /// Against as many reference images as there are images.
    fn precision_recall(&self, features: &Features) -> (f64, f64) {
        let n = features.len().min(self.reference.len());
        let first = |f: &Features| Features::new(f.dim, f.rows[..n * f.dim].to_vec());
        precision_recall(&first(features), &first(&self.reference), self.evaluation.neighbours)
    }

    fn distance_of(&self, features: &Features) -> Result<f64> {
        let mut moments = Moments::new(features.dim);
        moments.push(features);
        frechet_distance(&moments, &self.moments)
    }

    /// Every metric by name, in the order of the scores file.
    pub fn scores(&self, images: &Images) -> Result<Vec<(&'static str, f64)>> {
        let e = &self.evaluation;
        let (features, logits) = self.classifier.extract(images, &self.device)?;
        let (precision, recall) = self.precision_recall(&features);
        let modes = modes(&target_logits(&logits), &features, TARGETS);
        let subset = KID_SUBSET_SIZE.min(features.len().min(self.reference.len()) / 2);
        let (kid, _) = kid(&features, &self.reference, KID_SUBSETS, subset, &Stream::new("kid", "subsets"));
        Ok(vec![
            ("fd", self.distance_of(&features)?),
            ("is", inception_score(&logits, e.splits).0),
            ("kid", kid),
            ("precision", precision),
            ("recall", recall),
            ("classes", modes.effective_classes),
            ("covered", modes.covered as f64),
            ("diversity", modes.diversity),
            ("collapse", collapse_code(collapse(recall, modes.effective_classes, TARGETS))),
        ])
    }
}

/// The logits of the ten target classes: which of them an image is most like,
/// and not whether it might be one of the hundred others.
fn target_logits(logits: &Features) -> Features {
    let rows = (0..logits.len()).flat_map(|i| logits.row(i)[..TARGETS].iter().copied()).collect();
    Features::new(TARGETS, rows)
}

/// The categorical result as a number, for the scores file.
fn collapse_code(collapse: Collapse) -> f64 {
    match collapse {
        Collapse::Healthy => 0.0,
        Collapse::Degraded => 1.0,
        Collapse::Collapsed => 2.0,
    }
}
