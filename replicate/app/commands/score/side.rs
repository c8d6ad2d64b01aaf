//! The two inputs of a comparison.

use super::super::quiet;
use super::report::{Described, Remarks};
use crate::app::cli::Scoring;
use crate::app::score::source::{self, DATASETS, PUBLISHED};
use crate::app::score::{BATCH, ImageSet, Input, Seen};
use crate::data::cifar;
use crate::error::{Error, Result, shown_path};
use crate::experiment::all_rows;
use crate::measure::inception::FEATURES;
use crate::store::Content;
use crate::store::fetch::{Asset, Given, Inputs, find_any, named};
use crate::store::formats::LeftOut;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Height and width of the images of EDM's statistics.
const PUBLISHED_SIZE: usize = 32;

/// One of the two inputs, IMAGES or the reference. Its content is read on use.
pub(super) struct Side {
    pub(super) described: Described,
    pub(super) input: Input,
    /// Images of a trial, if the input determines them.
    pub(super) trial: Option<usize>,
}

impl Side {
    /// Opens IMAGES: a row of the tables, or any input of [`Side::open`].
    pub(super) fn images(options: &Scoring, remarks: &mut Remarks, stop: &AtomicBool) -> Result<Side> {
        let name = &shown_path(Path::new(&options.images));
        let Some(cell) = all_rows().find(|cell| options.images == cell.id) else {
            if options.place.data.is_some() {
                return Err(Error::Usage(format!(
                    "--data is for a row of the tables, and {name} is none: name the file itself in its place"
                )));
            }
            return Side::opened(&options.images, &options.place.store, remarks, source::open_images);
        };
        other_than_here(name, "the row of the tables", remarks);
        let mut runner = quiet(&options.place, stop)?;
        let (network, e) = (runner.recipe().network.clone(), runner.recipe().evaluation.clone());
        let trial = options.num.map_or(e.samples, |num| num as usize);
        let len = trial * options.trials as usize;
        let samples = runner.samples(&cell, options.seed)?;
        let batches = (0..len).step_by(BATCH).map(move |first| samples.at(first..len.min(first + BATCH)));
        let (kind, batches) = ("samples of a row", Box::new(batches));
        let set = ImageSet { kind, len, size: network.size, full: None, batches };
        let described = Described {
            name: format!("{name}, scale {}, seed {}", options.place.scale, options.seed),
            kind,
            dimensions: FEATURES,
            images: Some(len),
            size: Some(network.size),
            ..Described::default()
        };
        Ok(Side { described, input: Input::Images(set), trial: Some(trial) })
    }

    /// Opens `name`: a data set in the store, EDM's reference in the store, or a path.
    pub(super) fn open(name: &OsStr, store: &Path, remarks: &mut Remarks) -> Result<Side> {
        Side::opened(name, store, remarks, source::open)
    }

    fn opened(
        name: &OsStr,
        store: &Path,
        remarks: &mut Remarks,
        open: fn(&Path) -> Result<(Input, LeftOut)>,
    ) -> Result<Side> {
        let otherwise = "; a path names files of your own";
        let text = shown_path(Path::new(name));
        let (file, (input, left_out)) = match DATASETS.iter().find(|(id, ..)| name == *id) {
            Some((_, set, split)) => {
                other_than_here(&text, "the data set", remarks);
                let file = stored(store, &cifar::assets(*set, *split), otherwise)?;
                let opened = source::dataset(*set, *split, &file)?;
                (file, opened)
            }
            None => {
                let file = match Given::parse(name) {
                    _ if name == PUBLISHED => {
                        other_than_here(&text, "EDM's reference", remarks);
                        stored(store, &[asset(PUBLISHED)], otherwise)?
                    }
                    Given::File(path) => path,
                    Given::Unread(scheme) => {
                        return Err(Error::Usage(format!(
                            "{scheme}://…: only files are scored; download it first"
                        )));
                    }
                    Given::Url(url) => {
                        return Err(Error::Usage(format!("{url}: only files are scored; download it first")));
                    }
                };
                let opened = open(&file)?;
                (file, opened)
            }
        };
        if let Some(note) = left_out.note() {
            remarks.note(format!("{text}: {note}"));
        }
        let name = &text;
        let mut described = Described { name: text.clone(), ..Described::default() };
        match &input {
            Input::Images(set) => {
                (described.kind, described.dimensions) = (set.kind, FEATURES);
                (described.images, described.size) = (Some(set.len), Some(set.size));
                if let Some(full) = set.full.filter(|full| set.len < *full) {
                    remarks.warn(format!("{name} has {} of the data set's {full} images", set.len));
                }
            }
            Input::Features(set) => {
                (described.kind, described.dimensions) = ("features", set.dim);
                (described.images, described.file_sha256) = (Some(set.len), Some(sha256_of(&file)?));
            }
            Input::Statistics(statistics) => {
                (described.kind, described.dimensions) = ("mean and covariance", statistics.mean.len());
                described.file_sha256 = Some(sha256_of(&file)?);
                described.size = (name == PUBLISHED).then_some(PUBLISHED_SIZE);
            }
        }
        Ok(Side { described, input, trial: None })
    }
}

/// Prints a note if `name` is also a file or folder here.
fn other_than_here(name: &str, meant: &str, remarks: &mut Remarks) {
    if Path::new(name).exists() {
        remarks.note(format!("{name} is {meant}; ./{name} names the file or folder here"));
    }
}
/// Fraction of repeated images above which a warning is printed.
const REPEATED: f64 = 0.01;

impl Described {
    /// Records the digest and the repeats of the images that were read.
    pub(super) fn saw(&mut self, seen: &Seen, n: usize, remarks: &mut Remarks) {
        if self.size.is_some() {
            let repeats = seen.repeats();
            if repeats as f64 > REPEATED * n as f64 {
                remarks.warn(format!("{}: {repeats} of {n} images repeat an earlier one", self.name));
            }
            (self.pixels_sha256, self.repeats) = (Some(seen.digest()), Some(repeats));
        }
    }

    pub(super) fn malformed(&self, expected: String, found: String, remedy: &str) -> Error {
        Error::malformed(&self.name, expected, found, remedy)
    }
}

fn sha256_of(file: &Path) -> Result<String> {
    Ok(Content::of(file).map_err(Error::io("read", file))?.sha256)
}

pub(super) fn asset(id: &str) -> &'static Asset {
    named(id).expect("an asset of the table")
}

/// Returns the file of the first of `assets` that the store has; `otherwise` ends the remedy.
pub(super) fn stored(store: &Path, assets: &[&Asset], otherwise: &str) -> Result<PathBuf> {
    if let Some(path) = find_any(&Inputs::of(store), assets)? {
        return Ok(path);
    }
    let (id, option) = (assets[0].id, Inputs::of(store).option());
    let remedy = format!("`replicate fetch {id}{option}` gets it; --store names another store{otherwise}");
    Err(Error::missing(store.join("inputs"), format!("{id} has not been fetched into this store"), remedy))
}
