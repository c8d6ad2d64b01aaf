//! The zip that EDM's `dataset_tool.py` writes: PNG files, and `dataset.json`
//! with `{"labels": [["00000/img00000000.png", 6], ...]}`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use serde::Deserialize;
use zip::CompressionMethod;

use super::{Fault, Gathered, png, shown};

const LABELS: &str = "dataset.json";
/// 50,000 labels take 2 MB.
const MOST_LABEL_BYTES: usize = 1 << 24;

#[derive(Deserialize)]
struct Dataset {
    /// File and class; null in a data set without labels.
    labels: Option<Vec<(String, i64)>>,
}

/// Every image that has a label; one without is an error.
pub(super) fn read(file: File, gathered: &mut Gathered) -> Result<(), Fault> {
    let mut zip = Zip::open(file)?;
    let text = zip.entry(LABELS, MOST_LABEL_BYTES)?;
    let dataset: Dataset = serde_json::from_slice(&text).map_err(|error| {
        // Not the error's own text, which may repeat all of the file's.
        let found =
            format!("{:?} error in line {}, column {}", error.classify(), error.line(), error.column());
        Fault::new(format!("{LABELS} with a file and a class for each label"), found)
    })?;
    let Some(labels) = dataset.labels else {
        return Err(Fault::new(format!("labels in {LABELS}"), "null"));
    };
    let mut unlabelled = zip.images();
    for (name, label) in &labels {
        if !unlabelled.remove(name) {
            let found = format!("{} in {LABELS}", shown(name));
            return Err(Fault::new("each label to have one image", format!("another number for {found}")));
        }
        let pixels = zip.entry(name, png::MOST_BYTES).and_then(|bytes| png::decode(&bytes));
        pixels
            .and_then(|pixels| gathered.push(*label, &pixels))
            .map_err(|fault| fault.within(shown(name)))?;
    }
    match unlabelled.first() {
        None => Ok(()),
        Some(name) => Err(Fault::new(
            format!("a label in {LABELS} for every image"),
            format!("none for {} of them, such as {}", unlabelled.len(), shown(name)),
        )),
    }
}

struct Zip {
    archive: zip::ZipArchive<BufReader<File>>,
    /// What the entries may still have in compressed bytes, where none overlap.
    left: u64,
}

impl Zip {
    fn open(file: File) -> Result<Zip, Fault> {
        let left = file.metadata().map_err(|error| damaged(&error))?.len();
        let archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(&error))?;
        match archive.has_duplicate_names() {
            true => Err(damaged(&"two files of one name")),
            false => Ok(Zip { archive, left }),
        }
    }

    fn images(&self) -> BTreeSet<String> {
        let names = self.archive.file_names().flatten();
        names.filter(|name| name.ends_with(".png")).map(String::from).collect()
    }

    /// The content of a file, stored or deflated, of at most `most` bytes. Its
    /// checksum is verified.
    fn entry(&mut self, name: &str, most: usize) -> Result<Vec<u8>, Fault> {
        let Some(index) = self.archive.index_for_name(name) else {
            return Err(Fault::new(format!("a zip with {name}"), "one without it"));
        };
        // Raw: the zip crate is built without a decompressor.
        let entry = self.archive.by_index_raw(index).map_err(|error| damaged(&error))?;
        let (method, size, crc, encrypted) =
            (entry.compression(), entry.size(), entry.crc32(), entry.encrypted());
        self.left = match self.left.checked_sub(entry.compressed_size()) {
            Some(left) => left,
            None => return Err(damaged(&"files that overlap")),
        };
        let mut entry = BufReader::new(entry);
        let bytes = match method {
            _ if encrypted => return Err(damaged(&"encrypted files")),
            CompressionMethod::Stored => super::read_whole(&mut entry, size, most)?,
            CompressionMethod::DEFLATE => super::read_whole(&mut DeflateDecoder::new(entry), size, most)?,
            other => return Err(Fault::new("files stored or deflated", format!("{other}"))),
        };
        let mut sum = Crc::new();
        sum.update(&bytes);
        match sum.sum() == crc {
            true => Ok(bytes),
            false => Err(damaged(&"a checksum that does not match")),
        }
    }
}

fn damaged(what: &dyn std::fmt::Display) -> Fault {
    Fault::new("a whole zip archive", format!("damage ({what})"))
}
