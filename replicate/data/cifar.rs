//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in the authors' binary layout: per
//! image its labels, one byte each, then 3 x 32 x 32 bytes.
//!
//! A directory may be the unpacked archive's own or the one that holds it.
//! Files with fewer images than the authors' are read as they are, and the
//! number of images is then printed to stderr. Everything that cannot be read
//! is an `Error::Missing` or `Error::Malformed` that names the file.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Images;
use crate::error::{Error, Result};

const CHANNELS: usize = 3;
const SIZE: usize = 32;
const IMAGE_LEN: usize = CHANNELS * SIZE * SIZE;

struct Layout {
    name: &'static str,
    /// The directory in the authors' archive.
    directory: &'static str,
    archive: &'static str,
    /// Number of classes of each label of a record; the last label is kept.
    labels: &'static [u8],
}

const CIFAR10: Layout = Layout {
    name: "CIFAR-10",
    directory: "cifar-10-batches-bin",
    archive: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    labels: &[10],
};

/// Coarse and fine label.
const CIFAR100: Layout = Layout {
    name: "CIFAR-100",
    directory: "cifar-100-binary",
    archive: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    labels: &[20, 100],
};

/// The 50,000 training images of CIFAR-10, in the order of the five batches.
pub fn cifar10_train(dir: &Path) -> Result<Images> {
    let files = [1, 2, 3, 4, 5].map(|i| format!("data_batch_{i}.bin"));
    CIFAR10.read(dir, &files, 10_000)
}

/// The 10,000 test images of CIFAR-10.
pub fn cifar10_test(dir: &Path) -> Result<Images> {
    CIFAR10.read(dir, &["test_batch.bin".to_string()], 10_000)
}

/// The 50,000 training images of CIFAR-100 with their fine labels, or those of
/// `classes` (fine labels, which are kept as they are) in the file's order. A
/// class without an image is an error.
pub fn cifar100_train(dir: &Path, classes: Option<&[u32]>) -> Result<Images> {
    let all = CIFAR100.read(dir, &["train.bin".to_string()], 50_000)?;
    let Some(classes) = classes else { return Ok(all) };
    let mut chosen = Images { pixels: Vec::new(), labels: Vec::new(), ..all };
    for (image, &label) in all.pixels.chunks_exact(IMAGE_LEN).zip(&all.labels) {
        if classes.contains(&label) {
            chosen.pixels.extend_from_slice(image);
            chosen.labels.push(label);
        }
    }
    let present: BTreeSet<u32> = chosen.labels.iter().copied().collect();
    match classes.iter().find(|class| !present.contains(class)) {
        None => Ok(chosen),
        Some(class) => Err(Error::Malformed {
            path: CIFAR100.locate(dir).join("train.bin"),
            expected: format!("images of fine class {class}"),
            found: format!("none among {} images", all.labels.len()),
            remedy: CIFAR100.remedy(),
        }),
    }
}

impl Layout {
    /// The images of `files`, each of at most `full` images.
    fn read(&self, dir: &Path, files: &[String], full: usize) -> Result<Images> {
        let dir = self.locate(dir);
        let mut images = Images { channels: CHANNELS, size: SIZE, pixels: Vec::new(), labels: Vec::new() };
        for file in files {
            self.read_file(&dir, file, full, &mut images)?;
        }
        if images.len() < full * files.len() {
            let (name, dir, read, all) = (self.name, dir.display(), images.len(), full * files.len());
            eprintln!("{name}: read {read} of {all} images from {} in {dir}", files.join(", "));
        }
        Ok(images)
    }

    /// Adds the images of one file.
    fn read_file(&self, dir: &Path, file: &str, full: usize, images: &mut Images) -> Result<()> {
        let path = dir.join(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(self.missing(dir, file));
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let malformed = |expected: String, found: String| Error::Malformed {
            path: path.clone(),
            expected,
            found,
            remedy: self.remedy(),
        };
        let record_len = self.labels.len() + IMAGE_LEN;
        if bytes.is_empty() || bytes.len() % record_len != 0 || bytes.len() > full * record_len {
            return Err(malformed(
                format!("1 to {full} records of {record_len} bytes"),
                format!(
                    "{} bytes: {} records and {} bytes more",
                    bytes.len(),
                    bytes.len() / record_len,
                    bytes.len() % record_len
                ),
            ));
        }
        for (i, record) in bytes.chunks_exact(record_len).enumerate() {
            let (labels, pixels) = record.split_at(self.labels.len());
            for (label, classes) in labels.iter().zip(self.labels) {
                if label >= classes {
                    return Err(malformed(
                        format!("labels from 0 to {}", classes - 1),
                        format!("label {label} in record {i}"),
                    ));
                }
            }
            images.labels.push(labels[labels.len() - 1] as u32);
            images.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }

    fn locate(&self, dir: &Path) -> PathBuf {
        let inner = dir.join(self.directory);
        if inner.is_dir() { inner } else { dir.to_path_buf() }
    }

    fn missing(&self, dir: &Path, file: &str) -> Error {
        let Ok(entries) = fs::read_dir(dir) else {
            return Error::Missing {
                path: dir.to_path_buf(),
                what: format!("no such directory; {} is expected there", self.name),
                remedy: self.remedy(),
            };
        };
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let found = match names.len() {
            0 => "is empty".to_string(),
            1..=8 => format!("holds {}", names.join(", ")),
            n => format!("holds {} and {} more", names[..8].join(", "), n - 8),
        };
        Error::Missing {
            path: dir.join(file),
            what: format!("{} needs it, the directory {found}", self.name),
            remedy: self.remedy(),
        }
    }

    fn remedy(&self) -> String {
        format!(
            "unpack the binary version of {} ({}) and name the directory that holds {}",
            self.name, self.archive, self.directory
        )
    }
}
