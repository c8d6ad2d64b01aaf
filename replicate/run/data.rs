//! The images of a scale, and what is measured against them.

use super::Runner;
use crate::data::{Images, cifar, glyphs};
use crate::error::{Error, Result};
use crate::evaluate::Evaluator;
use crate::experiment::Data;
use crate::store::sha256_hex;
use std::path::Path;

impl Runner<'_> {
    pub(super) fn digest(&mut self, data: Data) -> Result<String> {
        match self.recipe.scale.procedural() {
            // The drawing is code and its version is in every name of a stream:
            // the text says which images, without making them.
            true => Ok(sha256_hex(format!("{} {}", glyphs::VERSION, self.recipe.data_text(data)).as_bytes())),
            false if data == Data::Target => {
                self.prepare(data)?;
                Ok(self.target.get().expect("just prepared").digest())
            }
            false => Ok(self.load(data)?.digest()),
        }
    }

    pub(super) fn prepare(&mut self, data: Data) -> Result<()> {
        if self.target.get().is_none() {
            let images = self.load(data)?;
            _ = self.target.set(images);
        }
        Ok(())
    }

    pub(super) fn prepare_evaluator(&mut self) -> Result<()> {
        let Some(evaluation) = self.recipe.evaluation.clone() else { return Ok(()) };
        if self.evaluator.get().is_some() {
            return Ok(());
        }
        let device = self.settings.device.clone();
        let classifier = self.classifier()?;
        let per_class = evaluation.reference / crate::evaluate::TARGETS;
        let reference =
            glyphs::images(self.recipe.network.size, glyphs::TARGET_CLASSES, per_class, "reference");
        _ = self.evaluator.set(Evaluator::new(classifier, &device, evaluation, &reference)?);
        Ok(())
    }

    pub(super) fn load(&self, data: Data) -> Result<Images> {
        let (size, per_class) = (self.recipe.network.size, self.recipe.images_per_class);
        match (self.recipe.scale.procedural(), data) {
            (true, Data::Target) => Ok(glyphs::images(size, glyphs::TARGET_CLASSES, per_class, "train")),
            (true, Data::Sources(n)) => {
                let first = glyphs::SOURCE_CLASSES.start;
                // As many images as the target has, whatever the number of classes.
                let each = per_class * crate::evaluate::TARGETS / n;
                Ok(glyphs::images(size, first..first + n as u32 as usize, each, "train"))
            }
            (false, Data::Target) => cifar::cifar10_train(self.data_dir()?),
            (false, Data::Sources(_)) => Err(Error::Run(
                "pre-training on CIFAR-100 classes is not here yet: Table 2 runs at --scale mini".into(),
            )),
        }
    }

    fn data_dir(&self) -> Result<&Path> {
        self.settings.data.as_deref().ok_or_else(|| {
            Error::Usage(format!(
                "--scale {} reads CIFAR files: say where they are with --data DIR",
                self.recipe.scale
            ))
        })
    }
}
