//! Scores images: extracts features once, and computes every metric from them.

use crate::data::Images;
use crate::error::{Error, Result};
use crate::measure::classifier::Classifier;
use crate::measure::inception::{self, Inception};
use crate::measure::metrics::Features;
use crate::measure::metrics::frechet::{Factor, Moments, distance};
use crate::measure::metrics::inception_score::inception_score;
use crate::measure::metrics::kid::kid;
use crate::measure::metrics::modes::{Collapse, collapse, modes};
use crate::measure::metrics::precision_recall::precision_recall;
use crate::measure::statistics::Statistics;
use crate::rng::Stream;
use crate::settings::settings;
use crate::train::InterimScores;
use candle_core::Device;

/// Number of target classes.
pub const TARGETS: usize = 10;
/// Metrics in the order of the scores file.
pub const METRICS: [&str; 9] =
    ["fd", "is", "kid", "precision", "recall", "classes", "covered", "diversity", "collapse"];
const KID_SUBSETS: usize = 20;
/// Images in a KID subset; fewer if there are not that many.
const KID_SUBSET_SIZE: usize = 500;

settings! {
    /// How samples are scored.
    pub struct Evaluation: "evaluation", "" {
        /// Generated images of one trial of the final score.
        samples: usize = [100, 2_000, 5_000, 10_000, 50_000], 20..=1_000_000, "images";
        /// Number of trials with different images; the scores are their means.
        trials: usize = [1, 1, 1, 1, 3], 1..=100, "";
        /// Generated images for the scores during a training.
        quick_samples: usize = [100, 500, 500, 5_000, 5_000], 20..=1_000_000, "images",
            Ours("the final scores do not depend on them");
        /// Largest number of real images in a comparison: glyphs that are not training images, the
        /// test images of CIFAR-10, or (small, paper) its training images.
        reference: usize = [200, 5_000, 10_000, 50_000, 50_000], 20..=1_000_000, "images";
        /// Number of real images, and of samples, in KID, precision and recall.
        neighbourhood: usize = [200, 5_000, 5_000, 10_000, 10_000], 20..=1_000_000, "images",
            Ours("more take long and say little more");
        /// Number k of neighbours in precision and recall.
        neighbours: usize = [3, 5, 5, 5, 5], 1..=1000, "", Ours("the criterion of collapse was set with 5");
        /// Splits of the Inception Score.
        splits: usize = [2, 10, 10, 10, 10], 1..=1000, "";
    }
}

/// A network that extracts features from images.
pub enum FeatureNetwork {
    /// Our classifier, whose first ten logits are the target classes.
    Classifier(Classifier, Device),
    /// Inception-v3; it represents a target class by the mean feature of its real images.
    Inception(Inception),
}

impl FeatureNetwork {
    fn dim(&self) -> usize {
        match self {
            FeatureNetwork::Classifier(classifier, _) => classifier.layout.features(),
            FeatureNetwork::Inception(_) => inception::FEATURES,
        }
    }

    /// Extracts features and logits of all `images`.
    fn extract(&self, images: &Images) -> Result<(Features, Features)> {
        match self {
            FeatureNetwork::Classifier(classifier, device) => Ok(classifier.extract(images, device)?),
            FeatureNetwork::Inception(inception) => inception.extract(images, 0..images.len()),
        }
    }
}

/// Features of the real images, as the metrics need them.
pub struct Reference {
    /// Statistics of all real images.
    pub statistics: Statistics,
    /// Features of the first images, for KID, precision and recall.
    pub neighbourhood: Features,
    /// Mean features of the target classes; empty if the feature network has logits for them.
    pub class_means: Features,
}

impl Reference {
    /// Measures labelled images, whose order must mix the classes. Calls `watch` with the number of
    /// images done.
    ///
    /// # Errors
    /// `Run` if a target class has no image, and any error of `watch`.
    pub fn measure(
        network: &FeatureNetwork,
        images: &Images,
        neighbourhood: usize,
        mut watch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Reference> {
        const AT_ONCE: usize = 250;
        let dim = network.dim();
        let mut moments = Moments::new(dim);
        let mut near = Features::new(dim, Vec::new());
        let (mut sums, mut counts) = (vec![0f64; TARGETS * dim], [0usize; TARGETS]);
        for start in (0..images.len()).step_by(AT_ONCE) {
            let range = start..images.len().min(start + AT_ONCE);
            let (features, _) = network.extract(&images.part(range.clone()))?;
            moments.push(&features);
            let still = neighbourhood.saturating_sub(near.len()).min(features.len());
            near.rows.extend_from_slice(&features.rows[..still * dim]);
            for (i, label) in images.labels[range.clone()].iter().enumerate() {
                let class = *label as usize;
                counts[class] += 1;
                let sum = &mut sums[class * dim..(class + 1) * dim];
                sum.iter_mut().zip(features.row(i)).for_each(|(sum, value)| *sum += *value as f64);
            }
            watch(range.end)?;
        }
        let class_means = match network {
            FeatureNetwork::Classifier(..) => Features::new(dim, Vec::new()),
            FeatureNetwork::Inception(_) => {
                if let Some(class) = counts.iter().position(|count| *count == 0) {
                    return Err(Error::Run(format!("no reference image is of class {class}")));
                }
                let mean = |(i, sum): (usize, f64)| (sum / counts[i / dim] as f64) as f32;
                Features::new(dim, sums.into_iter().enumerate().map(mean).collect())
            }
        };
        let statistics = Statistics::of(&moments);
        Ok(Reference { statistics, neighbourhood: near, class_means })
    }
}

/// Feature network and statistics of the real images.
pub struct Evaluator {
    network: FeatureNetwork,
    evaluation: Evaluation,
    reference: Reference,
    factor: Factor,
}

impl Evaluator {
    /// Factors the covariance of the real images.
    ///
    /// # Errors
    /// See [`Statistics::factor`].
    pub fn new(network: FeatureNetwork, evaluation: Evaluation, reference: Reference) -> Result<Evaluator> {
        let factor = reference.statistics.factor()?;
        Ok(Evaluator { network, evaluation, reference, factor })
    }

    /// Computes the Fréchet distance between our real images and others measured with the same
    /// features.
    pub fn distance_to(&self, theirs: &Statistics) -> Result<f64> {
        distance(&self.factor, &theirs.factor()?)
    }

    /// Computes the scores shown during a run, from fewer images than the final scores.
    pub fn interim(&self, images: &Images) -> Result<InterimScores> {
        let (features, logits) = self.network.extract(images)?;
        let (_, recall) = self.precision_recall(&features);
        let classes = modes(&self.target_logits(&features, &logits), &features, TARGETS).effective_classes;
        let collapsed = collapse(recall, classes, TARGETS) == Collapse::Collapsed;
        Ok(InterimScores { fd: self.distance_of(&features)?, recall, classes, collapsed })
    }

    /// Computes precision and recall of the first images, equally many generated and real.
    fn precision_recall(&self, features: &Features) -> (f64, f64) {
        let reference = &self.reference.neighbourhood;
        let n = features.len().min(reference.len());
        precision_recall(&first(features, n), &first(reference, n), self.evaluation.neighbours)
    }

    fn distance_of(&self, features: &Features) -> Result<f64> {
        let mut moments = Moments::new(features.dim);
        moments.push(features);
        distance(&moments.factor()?, &self.factor)
    }

    /// Computes every metric of one trial, in the order of the scores file.
    pub fn scores(&self, images: &Images) -> Result<Vec<(&'static str, f64)>> {
        let (features, logits) = self.network.extract(images)?;
        let (precision, recall) = self.precision_recall(&features);
        let modes = modes(&self.target_logits(&features, &logits), &features, TARGETS);
        let reference = &self.reference.neighbourhood;
        let near = first(&features, features.len().min(self.evaluation.neighbourhood));
        let subset = KID_SUBSET_SIZE.min(near.len().min(reference.len()) / 2);
        let (kid, _) = kid(&near, reference, KID_SUBSETS, subset, &Stream::new("kid", "subsets"));
        let values = [
            self.distance_of(&features)?,
            inception_score(&logits, self.evaluation.splits).0,
            kid,
            precision,
            recall,
            modes.effective_classes,
            modes.covered as f64,
            modes.diversity,
            collapse(recall, modes.effective_classes, TARGETS).code(),
        ];
        Ok(METRICS.into_iter().zip(values).collect())
    }

    /// Returns logits (n, 10) that tell which of the ten target classes an image resembles most.
    fn target_logits(&self, features: &Features, logits: &Features) -> Features {
        match self.network {
            FeatureNetwork::Classifier(..) => {
                let rows = (0..logits.len()).flat_map(|i| logits.row(i)[..TARGETS].iter().copied());
                Features::new(TARGETS, rows.collect())
            }
            FeatureNetwork::Inception(_) => nearness(features, &self.reference.class_means),
        }
    }
}

/// Returns minus the squared distance of each row of `features` to each of `means`. As logits,
/// their argmax is the nearest mean.
fn nearness(features: &Features, means: &Features) -> Features {
    let near = |row: &[f32], mean: &[f32]| -> f32 {
        -row.iter().zip(mean).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>() as f32
    };
    let rows = (0..features.len())
        .flat_map(|i| (0..means.len()).map(move |class| near(features.row(i), means.row(class))));
    Features::new(means.len(), rows.collect())
}

/// Combines the scores of several trials: means, and the smallest `fd`, as EDM reports it.
/// `collapse` is computed from the mean recall and mean classes.
pub fn over_trials(trials: &[Vec<(&'static str, f64)>]) -> Vec<(&'static str, f64)> {
    let values = |at: usize| trials.iter().map(move |scores| scores[at].1);
    let mean = |at: usize| values(at).sum::<f64>() / trials.len() as f64;
    let names = || trials[0].iter().map(|(name, _)| *name).enumerate();
    let of = |wanted: &str| names().find(|(_, name)| *name == wanted).map_or(f64::NAN, |(at, _)| mean(at));
    let mut scores: Vec<_> = names()
        .map(|(at, name)| match name {
            "collapse" => (name, collapse(of("recall"), of("classes"), TARGETS).code()),
            _ => (name, mean(at)),
        })
        .collect();
    if trials.len() > 1 {
        scores.insert(1, ("fd_min", values(0).fold(f64::INFINITY, f64::min)));
    }
    scores
}

fn first(features: &Features, n: usize) -> Features {
    Features::new(features.dim, features.rows[..n * features.dim].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(fd: f64, recall: f64, classes: f64) -> Vec<(&'static str, f64)> {
        METRICS.into_iter().zip([fd, 2.0, 0.5, 0.9, recall, classes, 10.0, 3.0, 0.0]).collect()
    }

    #[test]
    fn the_nearest_mean_has_the_largest_logit() {
        let means = Features::new(2, vec![0.0, 0.0, 3.0, 4.0, -1.0, 1.0]);
        let found = nearness(&Features::new(2, vec![3.0, 3.0, 0.0, 0.0]), &means);
        assert_eq!((found.dim, found.rows), (3, vec![-18.0, -1.0, -20.0, 0.0, -25.0, -2.0]));
    }

    #[test]
    fn trials_give_means_and_the_least_distance() {
        let one = trial(4.0, 0.6, 9.0);
        assert_eq!(over_trials(std::slice::from_ref(&one)), one);
        let three = over_trials(&[trial(4.0, 0.02, 4.0), trial(1.0, 0.06, 4.4), trial(7.0, 0.07, 4.2)]);
        let value = |name: &str| three.iter().find(|(known, _)| *known == name).unwrap().1;
        assert_eq!((value("fd"), value("fd_min")), (4.0, 1.0));
        assert!((value("recall") - 0.05).abs() < 1e-12 && (value("classes") - 4.2).abs() < 1e-12);
        // From the means; each trial alone was "healthy" here.
        assert_eq!(value("collapse"), 2.0);
    }
}
