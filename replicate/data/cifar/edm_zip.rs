//! The zip of EDM's `dataset_tool.py`: PNG files, and `dataset.json` with
//! `{"labels": [["00000/img00000000.png", 6], ...]}`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use serde::Deserialize;

use super::{Fault, Gathered, png, shown};
use crate::store::formats::unzip::{self, Entry};
use crate::store::formats::{self, is_hidden};

const LABELS: &str = "dataset.json";
/// Most bytes of the labels; 50,000 labels take 2 MB.
const MOST_LABEL_BYTES: u64 = 1 << 24;

#[derive(Deserialize)]
struct Dataset {
    /// File and class of each image; null in a data set without labels.
    labels: Option<Vec<(String, i64)>>,
}

/// Reads every image. An image without a label is an error.
pub(super) fn read(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
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
    let Some(text) = entries.iter().find(|entry| entry.name == LABELS) else {
        return Err(Fault::new(format!("a zip with {LABELS}"), "one without it"));
    };
    let text = content(&file, text, MOST_LABEL_BYTES)?;
    let dataset: Dataset = serde_json::from_slice(&text).map_err(|error| {
        // The error's own text may repeat the whole file.
        let found =
            format!("{:?} error in line {}, column {}", error.classify(), error.line(), error.column());
        Fault::new(format!("{LABELS} with a file and a class for each label"), found)
    })?;
    let Some(labels) = dataset.labels else {
        return Err(Fault::new(format!("labels in {LABELS}"), "null"));
    };
    let images = entries.iter().filter(|entry| entry.name.ends_with(".png"));
    let mut unlabelled: BTreeMap<&str, &Entry> = images.map(|entry| (&*entry.name, entry)).collect();
    for (name, label) in &labels {
        let Some(image) = unlabelled.remove(&**name) else {
            let found = format!("{} in {LABELS}", shown(name));
            return Err(Fault::new("each label to have one image", format!("another number for {found}")));
        };
        let pixels = content(&file, image, png::MOST_BYTES as u64).and_then(|bytes| png::decode(&bytes));
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
fn content(archive: &File, entry: &Entry, most: u64) -> Result<Vec<u8>, Fault> {
    if entry.bytes > most {
        return Err(Fault::new(format!("at most {most} bytes"), entry.bytes.to_string()));
    }
    let mut bytes = Vec::with_capacity(entry.bytes as usize);
    let read = entry.open(archive).and_then(|mut content| content.read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Fault::damage("a whole zip archive", &error)),
    }
}
