//! What EDM's `dataset_tool.py` writes, as a zip or as a directory: PNG files, and `dataset.json` with
//! `{"labels": [["00000/img00000000.png", 6], ...]}`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Fault, Gathered, listed, png, shown};
use crate::data::folder::walk;
use crate::error::Error;
use crate::store::formats::unzip::{self, Entry};
use crate::store::formats::{self, is_hidden};

pub(super) const LABELS: &str = "dataset.json";
/// Most bytes of the labels; 50,000 labels take 2 MB.
const MOST_LABEL_BYTES: u64 = 1 << 24;

#[derive(Deserialize)]
struct Dataset {
    /// File and class of each image; null in a data set without labels.
    labels: Option<Vec<(String, i64)>>,
}

/// Reads every image of a zip. Its files may lie in a directory, as packers of a directory put them.
pub(super) fn read_zip(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    let (hidden, entries): (Vec<Entry>, _) = unzip::entries(&file)
        .map_err(|fault| match fault {
            formats::Fault::Unreadable(error) => Fault::damage("", &error),
            formats::Fault::Content(what) => {
                Fault::new("a whole zip archive of files stored or deflated", format!("a file that {what}"))
            }
        })?
        .into_iter()
        .partition(|entry| is_hidden(&entry.name));
    hidden.iter().for_each(|entry| gathered.left_out.hidden(&entry.name));
    if let Some((name, how)) = entries.iter().find_map(|entry| Some((&entry.name, entry.unread()?))) {
        let found = format!("{}, which is {how}", shown(name));
        return Err(Fault::new("a zip archive of files stored or deflated", found));
    }
    let around = entries.iter().filter_map(|entry| entry.name.strip_suffix(LABELS));
    let around = around.filter(|dir| dir.is_empty() || dir.ends_with('/')).min_by_key(|dir| dir.len());
    let Some(around) = around else {
        let names: Vec<String> = entries.iter().take(100).map(|entry| shown(&entry.name)).collect();
        return Err(Fault::new(format!("EDM's zip, with {LABELS}"), format!("a zip of {}", listed(&names))));
    };
    let inner = |entry: &Entry| match entry.name.strip_prefix(around) {
        Some(name) => name.to_string(),
        None => format!("../{}", entry.name),
    };
    let files = entries.iter().map(|entry| (inner(entry), entry)).collect();
    read(files, &|entry, most| content(entry.bytes, most, || entry.open(&file)), gathered)
}

/// Lists the files of a directory by their names in the labels.
///
/// # Errors
/// As [`walk`].
pub(super) fn list(dir: &Path, gathered: &mut Gathered) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut files = BTreeMap::new();
    walk(dir, &mut gathered.left_out, &mut |name, kind, _| {
        if kind.is_file() {
            files.insert(name.to_string_lossy().into_owned(), dir.join(name));
        }
        Ok(())
    })?;
    Ok(files)
}

/// Reads every image of a directory with these files.
pub(super) fn read_folder(files: BTreeMap<String, PathBuf>, gathered: &mut Gathered) -> Result<(), Fault> {
    let open = |path: &PathBuf, most| {
        let file = File::open(path).map_err(|error| Fault::damage("", &error))?;
        let bytes = file.metadata().map_err(|error| Fault::damage("", &error))?.len();
        content(bytes, most, || Ok(file))
    };
    read(files, &open, gathered)
}

/// Reads every image among `files`, which are named as in the labels. An image without a label is an
/// error.
fn read<F>(
    files: BTreeMap<String, F>,
    content: &dyn Fn(&F, u64) -> Result<Vec<u8>, Fault>,
    gathered: &mut Gathered,
) -> Result<(), Fault> {
    let Some(text) = files.get(LABELS) else {
        return Err(Fault::new(format!("a file {LABELS}"), "none"));
    };
    let dataset: Dataset = serde_json::from_slice(&content(text, MOST_LABEL_BYTES)?).map_err(|error| {
        // The error's own text may repeat the whole file.
        let found =
            format!("{:?} error in line {}, column {}", error.classify(), error.line(), error.column());
        Fault::new(format!("{LABELS} with a file and a class for each label"), found)
    })?;
    let Some(labels) = dataset.labels else {
        return Err(Fault::new(format!("labels in {LABELS}"), "null"));
    };
    let (mut unlabelled, others): (BTreeMap<String, F>, BTreeMap<String, F>) =
        files.into_iter().partition(|(name, _)| name.to_ascii_lowercase().ends_with(".png"));
    others.keys().filter(|name| *name != LABELS).for_each(|name| gathered.left_out.other(name));
    for (name, label) in &labels {
        let Some(image) = unlabelled.remove(name) else {
            let found = format!("{} in {LABELS}", shown(name));
            return Err(Fault::new("each label to have one image", format!("another number for {found}")));
        };
        let pixels = content(&image, png::MOST_BYTES as u64).and_then(|bytes| png::decode(&bytes));
        pixels
            .and_then(|pixels| gathered.push(*label, &pixels))
            .map_err(|fault| fault.within(shown(name)))?;
    }
    match unlabelled.keys().next() {
        None => Ok(()),
        Some(name) => Err(Fault::new(
            format!("a label in {LABELS} for every image"),
            format!("none for {} of them, such as {}", unlabelled.len(), shown(name)),
        )),
    }
}

/// Reads a file of at most `most` bytes.
fn content<R: Read>(bytes: u64, most: u64, open: impl FnOnce() -> io::Result<R>) -> Result<Vec<u8>, Fault> {
    if bytes > most {
        return Err(Fault::new(format!("at most {most} bytes"), bytes.to_string()));
    }
    let mut content = Vec::with_capacity(bytes as usize);
    match open().and_then(|file| file.take(most + 1).read_to_end(&mut content)) {
        Ok(_) => Ok(content),
        Err(error) => Err(Fault::damage("a whole zip archive", &error)),
    }
}
