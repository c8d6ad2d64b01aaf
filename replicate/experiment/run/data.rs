//! The images of a scale, and the statistics of the real ones.

use super::artifact::{Artifact, Outputs};
use super::inputs::Input;
use super::{Runner, keys};
use crate::data::cifar::{self, Set, Split};
use crate::data::{Images, glyphs};
use crate::error::{Error, Result, shown_path};
use crate::experiment::{Data, Row, Scale};
use crate::judge::paper;
use crate::measure::evaluate::{Evaluator, FeatureNetwork, Reference};
use crate::measure::metrics::Features;
use crate::measure::statistics::Statistics;
use crate::network::params::Arrays;
use crate::rng::Stream;
use crate::store::{Array, Entry, Lock, read_safetensors, sha256_hex, write_safetensors};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Mean and covariance of the real images' features, in EDM's form.
const STATISTICS: &str = "statistics.npz";
/// Features of a subset of the real images, and the mean of each class.
const NEIGHBOURHOOD: &str = "neighbourhood.safetensors";
/// Largest FID between our statistics of the real images and EDM's. A larger one means another
/// network, another resize or other images.
const STATISTICS_AGREE: f64 = 1e-2;

impl Runner<'_> {
    /// True if the images are drawn rather than read from files.
    fn drawn(&self, data: Data) -> bool {
        self.recipe.scale.procedural() || matches!(data, Data::Characters(_))
    }

    /// Returns the digest of the images; fails if they are missing files.
    pub(super) fn images_digest(&mut self, data: Data) -> Result<String> {
        if self.drawn(data) {
            // The text identifies the images without making them: the drawing's version is in the
            // name of every stream.
            let text = format!("{} {}", glyphs::VERSION, keys::data_text(&self.recipe, data));
            return Ok(sha256_hex(text.as_bytes()));
        }
        self.images(data)?;
        Ok(self.images[&data].1.clone())
    }

    /// As [`Runner::images_digest`], but `None` if they are missing files.
    pub(super) fn find_images_digest(&mut self, data: Data) -> Result<Option<String>> {
        match self.drawn(data) || self.source(data)?.is_some() {
            true => Ok(Some(self.images_digest(data)?)),
            false => Ok(None),
        }
    }

    /// Reads the images given with `--data` for `cells`, to report errors in them before anything
    /// is fetched.
    pub fn read_given(&mut self, cells: &[Row]) -> Result<()> {
        if self.recipe.scale.procedural() || self.settings.data.is_none() {
            return Ok(());
        }
        self.images(Data::Target)?;
        self.images(self.recipe.reference())?;
        for cell in cells {
            for start in self.recipe.initial(cell) {
                self.images(start.data())?;
            }
        }
        Ok(())
    }

    /// Returns a training image of each of the first `n` target classes; `None` if the
    /// images are missing files.
    pub fn examples(&mut self, n: usize) -> Result<Option<Images>> {
        if self.find_images_digest(Data::Target)?.is_none() {
            return Ok(None);
        }
        self.images(Data::Target)?;
        Ok(Some(self.images[&Data::Target].0.of_each_class(n)))
    }

    /// Takes the images of `data` out of the cache; the caller returns them.
    pub(super) fn take(&mut self, data: Data) -> Result<Images> {
        self.images(data)?;
        Ok(self.images.remove(&data).expect("just made").0)
    }

    /// Reads or draws the images of `data`, once.
    pub(super) fn images(&mut self, data: Data) -> Result<()> {
        if !self.images.contains_key(&data) {
            let images = self.load(data)?;
            let digest = if self.recipe.scale.procedural() { String::new() } else { images.digest() };
            self.images.insert(data, (images, digest));
        }
        Ok(())
    }

    pub(super) fn load(&mut self, data: Data) -> Result<Images> {
        let (size, per_class) = (self.recipe.network.size, keys::per_class(&self.recipe));
        if self.drawn(data) {
            return Ok(match data {
                Data::Target => glyphs::images(size, glyphs::TARGET_CLASSES, per_class, "train"),
                Data::HeldOut => {
                    let per_class = self.recipe.evaluation.reference / crate::measure::evaluate::TARGETS;
                    glyphs::images(size, glyphs::TARGET_CLASSES, per_class, "reference")
                }
                Data::Sources(n) | Data::Characters(n) => {
                    let first = glyphs::SOURCE_CLASSES.start;
                    // The target's number of images, divided by the number of classes.
                    let each = per_class * crate::measure::evaluate::TARGETS / n;
                    glyphs::images(size, first..first + n, each, "train")
                }
            });
        }
        let (set, split) = part(data);
        let path = match self.source(data)? {
            Some(path) => path,
            None => self.require(Input::Cifar(set, split))?.0,
        };
        let (all, left_out) = cifar::read(set, split, &path)?;
        if let Some(note) = left_out.note() {
            self.watch.note(&format!("{}: {note}", shown_path(&path)));
        }
        if all.len() < split.full() && self.recipe.scale != Scale::Drill {
            self.watch.note(&format!(
                "{set}: {} of {} {split} images in {}",
                all.len(),
                split.full(),
                shown_path(&path)
            ));
        }
        let images = match data {
            Data::Target | Data::HeldOut | Data::Characters(_) => all,
            Data::Sources(n) => {
                cifar::of_classes(all, &paper::source_classes(&self.settings.root.join("paper"), n)?, &path)?
            }
        };
        Ok(if images.size == 2 * size { images.halved() } else { images })
    }

    /// Returns the path of the images of `data`; `None` if no path was given and nothing was
    /// fetched.
    fn source(&self, data: Data) -> Result<Option<PathBuf>> {
        match &self.settings.data {
            Some(path) => Ok(Some(path.clone())),
            None => {
                let (set, split) = part(data);
                Ok(self.input(Input::Cifar(set, split))?.map(|(path, _)| path))
            }
        }
    }

    /// Prepares the evaluator of the scale; measures the real images if their statistics are
    /// missing.
    pub(super) fn prepare_evaluator(&mut self) -> Result<()> {
        if self.evaluator.get().is_some() {
            return Ok(());
        }
        let evaluation = self.recipe.evaluation.clone();
        let network = self.feature_network()?;
        let reference = match self.recipe.scale.procedural() {
            true => {
                let images = self.load(Data::HeldOut)?;
                Reference::measure(&network, &images, evaluation.neighbourhood, |_| Ok(()))?
            }
            false => self.reference(&network)?,
        };
        let evaluator = Evaluator::new(network, evaluation, reference)?;
        if !self.recipe.scale.has_own_features() {
            self.compare_statistics(&evaluator)?;
        }
        _ = self.evaluator.set(evaluator);
        Ok(())
    }

    /// Returns the statistics of the real images from the store, or measures them.
    fn reference(&mut self, network: &FeatureNetwork) -> Result<Reference> {
        let images = self.images_digest(self.recipe.reference())?;
        let features = self.features_digest()?;
        let artifact = Artifact {
            text: keys::reference(&self.recipe, &images, &features, self.class),
            label: self.label("reference"),
            changes: self.recipe.sorted_changes(),
            inputs: BTreeMap::from([("images".into(), images), ("features".into(), features)]),
            ..Artifact::default()
        };
        let made = self.make(artifact, |runner, lock| {
            let reference = runner.measure(network, lock)?;
            lock.write(STATISTICS, &reference.statistics.to_npz())?;
            let rows = |f: Features| Array { shape: vec![f.len(), f.dim], data: f.rows };
            let arrays = Arrays::from([
                ("features".to_string(), rows(reference.neighbourhood)),
                ("class_means".to_string(), rows(reference.class_means)),
            ]);
            lock.write(NEIGHBOURHOOD, &write_safetensors(&arrays, &BTreeMap::new()))?;
            Ok(Outputs { names: vec![STATISTICS.into(), NEIGHBOURHOOD.into()], images: 0 })
        })?;
        read_reference(&made.entry)
    }

    fn measure(&mut self, network: &FeatureNetwork, lock: &Lock) -> Result<Reference> {
        let evaluation = &self.recipe.evaluation;
        let images = &self.images[&self.recipe.reference()].0;
        let n = images.len().min(evaluation.reference);
        // Shuffles, because the images are sorted by class.
        let mixed = Stream::new("reference", "order").at(0).permutation(images.len());
        let chosen = images.chosen(&mixed[..n]);
        let (watch, stop) = (&mut self.watch, self.stop);
        Reference::measure(network, &chosen, evaluation.neighbourhood, |done| {
            watch.images("measuring", lock.label(), done, n);
            Error::if_stopped(stop, lock.label())
        })
    }

    /// Compares EDM's published statistics, if they were fetched, with ours of the full set.
    fn compare_statistics(&mut self, ours: &Evaluator) -> Result<()> {
        let Some((path, _)) = self.input(Input::Statistics)? else { return Ok(()) };
        let images = &self.images[&Data::Target].0;
        if images.len() < Split::Train.full() && self.recipe.scale != Scale::Drill {
            return Ok(());
        }
        let apart = ours.distance_to(&Statistics::read(&path)?)?;
        let told =
            format!("FID between our statistics of the real images and EDM's published ones: {apart:.2e}");
        if apart > STATISTICS_AGREE {
            let expected = format!("statistics within {STATISTICS_AGREE} of ours");
            let remedy = "one of them is wrong: the images, the Inception weights, or this file; compare with \
                          `replicate score cifar10 --ref FILE`";
            return Err(Error::malformed(path, expected, told, remedy));
        }
        self.watch.note(&told);
        Ok(())
    }
}

/// Returns the CIFAR set and split of the images.
fn part(data: Data) -> (Set, Split) {
    match data {
        Data::Target | Data::Characters(_) => (Set::Cifar10, Split::Train),
        Data::HeldOut => (Set::Cifar10, Split::Test),
        Data::Sources(_) => (Set::Cifar100, Split::Train),
    }
}

fn read_reference(entry: &Entry) -> Result<Reference> {
    let statistics = Statistics::read(&entry.path(STATISTICS))?;
    let path = entry.path(NEIGHBOURHOOD);
    let (mut arrays, _) = read_safetensors(&path, &entry.read(NEIGHBOURHOOD)?)?;
    let mut features = |name: &str| match arrays.remove(name) {
        Some(array) => Ok(Features::new(statistics.mean.len(), array.data)),
        None => {
            let remedy = "remove that directory; the next run makes it again";
            Err(Error::malformed(&path, format!("an array {name}"), "none", remedy))
        }
    };
    let (neighbourhood, class_means) = (features("features")?, features("class_means")?);
    Ok(Reference { statistics, neighbourhood, class_means })
}
