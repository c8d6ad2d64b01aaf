//! The files that a scale reads, and their places.

use super::Runner;
use crate::data::cifar::{self, Set, Split};
use crate::error::{Error, Result};
use crate::experiment::{Data, Initialization, Row, Scale};
use crate::store::fetch::{Asset, Inputs, find_any, named};
use std::path::PathBuf;

/// A file, by its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// EDM's checkpoint: the teacher, and the multi-level initialisation.
    Checkpoint,
    /// The published generator of the row with this id, from which another row starts.
    Generator(&'static str),
    /// The weights of the feature network.
    Inception,
    Cifar(Set, Split),
    /// EDM's statistics of the real images; ours are compared with them.
    Statistics,
}

impl Input {
    /// Returns the assets that serve, the one to fetch first.
    pub fn assets(self, scale: Scale) -> Vec<&'static Asset> {
        let drill = scale == Scale::Drill;
        let id = match self {
            Input::Checkpoint => "edm",
            Input::Generator(row) => row,
            Input::Inception => "inception",
            Input::Statistics => "fid-reference",
            Input::Cifar(set, split) if !drill => return cifar::assets(set, split),
            Input::Cifar(Set::Cifar10, _) => "cifar10",
            Input::Cifar(Set::Cifar100, _) => "cifar100",
        };
        let id = if drill { format!("drill-{id}") } else { id.to_string() };
        vec![named(&id).expect("an id of the table")]
    }
}

impl Runner<'_> {
    /// Lists the files that `cells` read, except given images, in order of use; empty if the images
    /// are drawn.
    pub fn needed(&self, cells: &[Row]) -> Vec<Input> {
        if self.recipe.scale.procedural() {
            return Vec::new();
        }
        let mut all = Vec::new();
        let starts = || cells.iter().flat_map(|cell| self.recipe.initial(cell));
        if starts().any(|start| self.published(start)) {
            all.push(Input::Checkpoint);
        }
        let published = cells.iter().filter(|cell| self.published(cell.start));
        let generators =
            published.filter_map(|cell| Some(Input::Generator(self.recipe.first_stage(cell)?.id)));
        for generator in generators {
            if !all.contains(&generator) {
                all.push(generator);
            }
        }
        let own_features = self.recipe.scale.has_own_features();
        if !own_features {
            all.push(Input::Inception);
        }
        if self.settings.data.is_none() {
            all.push(Input::Cifar(Set::Cifar10, Split::Train));
            if self.recipe.reference() == Data::HeldOut {
                all.push(Input::Cifar(Set::Cifar10, Split::Test));
            }
            if starts().any(|start| matches!(start, Initialization::MultiLevel(Data::Sources(_)))) {
                all.push(Input::Cifar(Set::Cifar100, Split::Train));
            }
        }
        if !own_features {
            all.push(Input::Statistics);
        }
        all
    }

    /// Returns the verified file of `input` and its SHA-256; `None` if it was not fetched.
    pub(super) fn input(&self, input: Input) -> Result<Option<(PathBuf, String)>> {
        let mut inputs = self.inputs.borrow_mut();
        if let Some((_, found)) = inputs.iter().find(|(known, _)| *known == input) {
            return Ok(Some(found.clone()));
        }
        let assets = input.assets(self.recipe.scale);
        let found = find_any(&Inputs::of(&self.settings.store), &assets)?.map(|path| {
            // The store names files by their SHA-256.
            let sha256 = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (path, sha256)
        });
        inputs.extend(found.clone().map(|found| (input, found)));
        Ok(found)
    }

    /// As `input`, but fails if the file is missing.
    pub(super) fn require(&self, input: Input) -> Result<(PathBuf, String)> {
        let (asset, inputs) = (input.assets(self.recipe.scale)[0], Inputs::of(&self.settings.store));
        self.input(input)?.ok_or_else(|| {
            let what = format!("--scale {} needs {}", self.recipe.scale, asset.what);
            let remedy = format!("get it with `replicate fetch {}{}`", asset.id, inputs.option());
            Error::missing(inputs.place(asset), what, remedy)
        })
    }
}
