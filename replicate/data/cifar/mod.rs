//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from any of their containers.
//!
//! | container | recognised by | label of an image |
//! | --- | --- | --- |
//! | the authors' binary files in a directory | `data_batch_1.bin`, `train.bin` … | the last byte before its pixels |
//! | the authors' python files in a directory | `data_batch_1`, `train` … | `labels`, `fine_labels` |
//! | either, in the authors' `.tar.gz`, or unpacked to a `.tar` | gzip, `ustar` | as above |
//! | parquet, as on the Hugging Face hub, in one file or in shards | `PAR1` | column `label`, `fine_label` |
//! | the zip of EDM's `dataset_tool.py`, or the directory it unpacks to | `PK`, `dataset.json` | `dataset.json` |
//!
//! A file is recognised by its content. In a directory, files are found by their official names;
//! archives and parquet files also by the names that `fetch` gives them. A link with such a name
//! counts as its file, even if it leads nowhere.
//!
//! Each container has its own order of images; the hub's parquet files, for example, follow the
//! python archive, which is not sorted. Here the images are in **ascending order of (label,
//! pixels)**, so that [`Images`] and their digest depend only on the images. Labels are the fine
//! labels.
//!
//! Files with fewer images than the authors' are accepted; callers compare with [`Split::full`]. Zips
//! and parquet files do not name the set and the split of their images. They are taken for those that
//! the caller names, if all labels are in range and no class has more images than the authors'. A file
//! that cannot be read is an `Error::Missing` or an `Error::Malformed` with its path.

mod authors;
mod binary;
mod edm;
mod headers;
mod pages;
mod parquet;
mod place;
mod png;
mod python;

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use self::place::Container;
use super::Images;
use crate::error::{self, Error, shown};
use crate::store::fetch::{self, Asset};
use crate::store::formats::{self, LeftOut};

const CHANNELS: usize = 3;
const SIZE: usize = 32;
const IMAGE_LEN: usize = CHANNELS * SIZE * SIZE;

/// A data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    Cifar10,
    Cifar100,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "CIFAR-{}", self.classes())
    }
}

impl Set {
    /// Number of (fine) classes.
    fn classes(self) -> usize {
        match self {
            Set::Cifar10 => 10,
            Set::Cifar100 => 100,
        }
    }

    /// Returns its directory on the hub.
    fn name(self) -> &'static str {
        match self {
            Set::Cifar10 => "cifar10",
            Set::Cifar100 => "cifar100",
        }
    }

    fn remedy(self) -> String {
        let n = self.classes();
        format!(
            "name the authors' archive of {self} (`replicate fetch cifar{n}` gets it), the directory it \
             unpacks to, the hub's parquet file or EDM's zip"
        )
    }
}

/// Selects the images whose label is one of `classes`, in the same order. `path` is their file, for
/// the message.
///
/// # Errors
/// `Malformed` for a class without an image.
pub fn of_classes(images: Images, classes: &[u32], path: &Path) -> error::Result<Images> {
    let present: BTreeSet<u32> = images.labels.iter().copied().collect();
    if let Some(class) = classes.iter().find(|class| !present.contains(class)) {
        return Err(Error::malformed(
            path,
            format!("images of class {class}"),
            format!("none among {} images of {} classes", images.labels.len(), present.len()),
            "name files with all classes, or leave that class out",
        ));
    }
    let mut chosen = Images { pixels: Vec::new(), labels: Vec::new(), ..images };
    for (i, &label) in images.labels.iter().enumerate() {
        if classes.contains(&label) {
            chosen.pixels.extend_from_slice(&images.pixels[i * IMAGE_LEN..][..IMAGE_LEN]);
            chosen.labels.push(label);
        }
    }
    Ok(chosen)
}

/// Returns the assets that hold a split; the one to fetch comes first.
pub fn assets(set: Set, split: Split) -> Vec<&'static Asset> {
    let n = set.classes();
    let ids = [format!("cifar{n}"), format!("cifar{n}-python"), format!("cifar{n}-parquet-{split}")];
    ids.iter().filter_map(|id| fetch::named(id)).collect()
}

/// Reads the images of a split in `path`, a file or a directory; also returns what an archive or a
/// directory has beside them.
///
/// # Errors
/// `Missing` or `Malformed`, with the file.
pub fn read(set: Set, split: Split, path: &Path) -> error::Result<(Images, LeftOut)> {
    attempt(set, split, path).map_err(Refusal::into)
}

/// Reason why a set cannot be read from a path.
#[derive(Debug)]
pub enum Refusal {
    /// Nothing of the set is there.
    Apart(Error),
    /// Files of the set are there, but cannot be used.
    Within(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Within(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Apart(error) | Refusal::Within(error) => error,
        }
    }
}

/// Does the same as [`read`], and tells whether the set is there at all.
///
/// # Errors
/// As [`read`].
pub fn attempt(set: Set, split: Split, path: &Path) -> Result<(Images, LeftOut), Refusal> {
    let (container, paths, left_out) = place::find(set, split, path)?;
    let mut gathered = Gathered { left_out, ..Gathered::new(set, split) };
    for path in &paths {
        let file = || open(set, path);
        match container {
            Container::Files(layout) => {
                layout.read_files(path, &mut gathered)?;
                Ok(())
            }
            Container::Archive { gzip } => authors::read_archive(file()?, gzip, &mut gathered),
            Container::Parquet => parquet::read(file()?, &mut gathered),
            Container::Zip => edm::read_zip(file()?, &mut gathered),
            Container::Folder => edm::read_folder(edm::list(path, &mut gathered)?, &mut gathered),
        }
        .map_err(|fault: Fault| match fault.apart {
            true => Refusal::Apart(fault.at(set, path)),
            false => Refusal::Within(fault.at(set, path)),
        })?;
    }
    let left_out = std::mem::take(&mut gathered.left_out);
    Ok((gathered.in_order().map_err(|fault| fault.at(set, &paths[0]))?, left_out))
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
        })
    }
}

impl Split {
    /// Returns the number of images of the whole split.
    pub fn full(self) -> usize {
        match self {
            Split::Train => 50_000,
            Split::Test => 10_000,
        }
    }
}

/// Images read so far, in the container's order.
struct Gathered {
    set: Set,
    split: Split,
    images: Images,
    left_out: LeftOut,
}

impl Gathered {
    fn new(set: Set, split: Split) -> Gathered {
        let images = Images { channels: CHANNELS, size: SIZE, pixels: Vec::new(), labels: Vec::new() };
        Gathered { set, split, images, left_out: LeftOut::default() }
    }

    /// Adds one image, channel-major.
    fn push(&mut self, label: i64, pixels: &[u8; IMAGE_LEN]) -> Result<(), Fault> {
        let classes = self.set.classes() as u32;
        let Some(label) = u32::try_from(label).ok().filter(|label| *label < classes) else {
            return Err(Fault::new(format!("labels from 0 to {}", classes - 1), format!("label {label}")));
        };
        let full = self.split.full();
        if self.images.labels.len() == full {
            return Err(Fault::new(format!("at most {full} images"), "more"));
        }
        self.images.labels.push(label);
        self.images.pixels.extend_from_slice(pixels);
        Ok(())
    }

    fn in_order(self) -> Result<Images, Fault> {
        let Images { pixels, labels, .. } = &self.images;
        if labels.is_empty() {
            return Err(Fault::new("images", "none"));
        }
        let most = self.split.full() / self.set.classes();
        let mut per_class = vec![0; self.set.classes()];
        for &label in labels {
            per_class[label as usize] += 1;
        }
        if let Some(class) = per_class.iter().position(|count| *count > most) {
            return Err(Fault::new(
                format!("at most {most} images of each class of {}", self.set),
                format!("{} of class {class}", per_class[class]),
            ));
        }
        let (images, []) = pixels.as_chunks::<IMAGE_LEN>() else { unreachable!("whole images only") };
        let mut order: Vec<usize> = (0..labels.len()).collect();
        // Unstable is enough: equal keys belong to equal images.
        order.sort_unstable_by_key(|&i| (labels[i], &images[i]));
        let mut pixels = Vec::with_capacity(pixels.len());
        for &i in &order {
            pixels.extend_from_slice(&images[i]);
        }
        Ok(Images { pixels, labels: order.iter().map(|&i| labels[i]).collect(), ..self.images })
    }
}

/// Reason why a container cannot be read.
#[derive(Debug)]
struct Fault {
    expected: String,
    found: String,
    /// Error of the system, if it could not read the file; the content may be good.
    unreadable: Option<io::Error>,
    /// True if the file is whole and has nothing of the set.
    apart: bool,
}

impl Fault {
    fn new(expected: impl Into<String>, found: impl Into<String>) -> Fault {
        Fault { expected: expected.into(), found: found.into(), unreadable: None, apart: false }
    }

    fn apart(self) -> Fault {
        Fault { apart: true, ..self }
    }

    /// Converts a decoder's error; `whole` describes an undamaged file.
    fn damage(whole: &str, error: &(dyn StdError + 'static)) -> Fault {
        match formats::Fault::of(error, || format!("damage ({})", shown(&error.to_string()))) {
            formats::Fault::Content(found) => Fault::new(whole, found),
            formats::Fault::Unreadable(error) => Fault { unreadable: Some(error), ..Fault::new(whole, "") },
        }
    }

    fn within(self, place: impl fmt::Display) -> Fault {
        Fault { found: format!("{}, in {place}", self.found), ..self }
    }

    fn at(self, set: Set, path: &Path) -> Error {
        let Fault { expected, found, unreadable, .. } = self;
        match unreadable {
            Some(error) => Error::io("read", path)(error),
            None => Error::malformed(path, expected, found, set.remedy()),
        }
    }
}

fn open(set: Set, path: &Path) -> error::Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::missing(path, format!("{set} needs it"), set.remedy()),
        _ => Error::io("read", path)(error),
    })
}

/// Reads all bytes of `reader`. Fails unless there are as many as `claimed`, and at most `most`.
fn read_whole(reader: &mut dyn Read, claimed: u64, most: usize) -> Result<Vec<u8>, Fault> {
    if claimed > most as u64 {
        return Err(Fault::new(format!("at most {most} bytes"), format!("{claimed}")));
    }
    let mut bytes = Vec::with_capacity(claimed as usize);
    let read = reader.take(claimed + 1).read_to_end(&mut bytes);
    let whole = || format!("{claimed} bytes");
    read.map_err(|error| {
        let fault = Fault::damage(&whole(), &error);
        Fault { found: format!("{} and then: {error}", bytes.len()), ..fault }
    })?;
    match bytes.len() as u64 == claimed {
        true => Ok(bytes),
        false => Err(Fault::new(whole(), format!("{}", bytes.len()))),
    }
}

/// Lists some names for a message, and counts the others.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0 => "nothing".into(),
        1..=SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}
