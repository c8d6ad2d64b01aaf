//! The files that a scale reads: which they are, and where they are found.

use super::Runner;
use crate::data::cifar::Set;
use crate::error::{Error, Result};
use crate::experiment::{Cell, Data, Scale, Start};
use crate::fetch::{Asset, Inputs, find, named};
use std::path::PathBuf;

/// A file by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// EDM's checkpoint: the teacher, and the multi-level initialisation.
    Checkpoint,
    /// The weights of the feature network.
    Inception,
    Cifar(Set),
    /// EDM's statistics of the real images; ours are compared with them.
    Statistics,
}

impl Input {
    /// The assets that will do, the one to fetch first.
    pub fn assets(self, scale: Scale) -> Vec<&'static Asset> {
        let ids: &[&str] = match (scale == Scale::Drill, self) {
            (true, Input::Checkpoint) => &["drill-edm"],
            (true, Input::Inception) => &["drill-inception"],
            (true, Input::Cifar(Set::Cifar10)) => &["drill-cifar10"],
            (true, Input::Cifar(Set::Cifar100)) => &["drill-cifar100"],
            (true, Input::Statistics) => &["drill-fid-reference"],
            (false, Input::Checkpoint) => &["edm"],
            (false, Input::Inception) => &["inception"],
            (false, Input::Cifar(Set::Cifar10)) => &["cifar10", "cifar10-python", "cifar10-parquet-train"],
            (false, Input::Cifar(Set::Cifar100)) => {
                &["cifar100", "cifar100-python", "cifar100-parquet-train"]
            }
            (false, Input::Statistics) => &["fid-reference"],
        };
        ids.iter().map(|id| named(id).expect("an id of the table")).collect()
    }
}

impl Runner<'_> {
    /// What `cells` read beside the images that were given, in the order of use;
    /// nothing where the images are drawn.
    pub fn needed(&self, cells: &[Cell]) -> Vec<Input> {
        if self.recipe.scale.procedural() {
            return Vec::new();
        }
        let mut all = Vec::new();
        if cells.iter().any(|cell| self.published(cell.start)) {
            all.push(Input::Checkpoint);
        }
        all.push(Input::Inception);
        if self.settings.data.is_none() {
            all.push(Input::Cifar(Set::Cifar10));
            if cells.iter().any(|cell| matches!(cell.start, Start::MultiLevel(Data::Sources(_)))) {
                all.push(Input::Cifar(Set::Cifar100));
            }
        }
        all.push(Input::Statistics);
        all
    }

    /// The verified file of `input` and its SHA-256; `None` where it was never fetched.
    pub(super) fn input(&self, input: Input) -> Result<Option<(PathBuf, String)>> {
        let mut inputs = self.inputs.borrow_mut();
        if let Some((_, found)) = inputs.iter().find(|(known, _)| *known == input) {
            return Ok(Some(found.clone()));
        }
        let store = Inputs::of(&self.settings.store);
        for asset in input.assets(self.recipe.scale) {
            if let Some(path) = find(&store, asset)? {
                let sha256 = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                inputs.push((input, (path.clone(), sha256.clone())));
                return Ok(Some((path, sha256)));
            }
        }
        Ok(None)
    }

    /// As `input`, where it has to be there.
    pub(super) fn require(&self, input: Input) -> Result<(PathBuf, String)> {
        let asset = input.assets(self.recipe.scale)[0];
        self.input(input)?.ok_or_else(|| Error::Missing {
            path: Inputs::of(&self.settings.store).place(asset),
            what: format!("--scale {} needs {}", self.recipe.scale, asset.what),
            remedy: format!("get it with `replicate fetch {}`", asset.id),
        })
    }
}
