//! What people have images in, recognised by content: folders and zips of PNG
//! files, NumPy arrays, CIFAR; and what they have instead of images, extracted
//! features and a mean with a covariance.
//!
//! Sets come in batches, so that the memory does not depend on their length. Only
//! a data set is held in memory whole: its images are taken in an order of our
//! own, because its files have them class by class, and parts of it (the splits
//! of the Inception Score, the images of KID) would be single classes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::pictures;
use crate::data::Images;
use crate::data::cifar::{self, Set, Split};
use crate::error::{Error, Result};
use crate::measure::metrics::Features;
use crate::measure::statistics::Statistics;
use crate::rng::Stream;
use crate::store::formats::npz::{self, Stored};
use crate::store::formats::unzip;

/// Images or rows of features in a batch at most.
pub const BATCH: usize = 64;

/// Bytes of pixels in a batch of several images at most.
const BATCH_BYTES: usize = 1 << 26;

/// Height and width of the largest image.
pub(super) const LARGEST: usize = 4096;

/// Images of a size in a batch.
pub(super) fn batch_of(size: usize) -> usize {
    (BATCH_BYTES / (3 * size * size)).clamp(1, BATCH)
}

/// A set of RGB images.
pub struct ImageSet {
    /// What it is in, for a report: "PNG folder".
    pub kind: &'static str,
    pub len: usize,
    /// Height and width in pixels.
    pub size: usize,
    /// How many the data set has of which these are images, where it is known.
    pub full: Option<usize>,
    /// `len` images in all, 3 x `size` x `size`.
    pub batches: Box<dyn Iterator<Item = Result<Images>>>,
}

impl ImageSet {
    /// The first `n` images, or all where there are fewer.
    pub fn first(self, n: usize) -> ImageSet {
        let len = self.len.min(n);
        let mut left = len;
        let batches = self.batches.map_while(move |batch| {
            let mut images = match batch {
                Ok(_) if left == 0 => return None,
                Ok(images) => images,
                Err(error) => return Some(Err(error)),
            };
            let taken = images.len().min(left);
            images.pixels.truncate(taken * 3 * images.size * images.size);
            left -= taken;
            Some(Ok(images))
        });
        ImageSet { len, batches: Box::new(batches), ..self }
    }
}

/// Features, and logits where the file has them.
pub type Rows = (Features, Option<Features>);

/// A set of which somebody else extracted the features.
pub struct FeatureSet {
    pub len: usize,
    pub dim: usize,
    /// Columns of the logits.
    pub classes: Option<usize>,
    /// `len` rows in all.
    pub batches: Box<dyn Iterator<Item = Result<Rows>>>,
}

pub enum Input {
    Images(ImageSet),
    Features(FeatureSet),
    Statistics(Statistics),
}

/// Opens a folder or a file.
///
/// # Errors
/// `Missing` if it is not there, `Malformed` if it is none of what this module
/// names; what is wrong with an image behind the first one may show only when
/// its batch is asked for.
pub fn open(path: &Path) -> Result<Input> {
    if path.is_dir() {
        return match pictures::folder(path)? {
            Some(set) => Ok(Input::Images(set)),
            None => cifar(path),
        };
    }
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(6).read_to_end(&mut start).map_err(Error::io("read", path))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "neither a file, nor a folder, nor the name of a data set".into(),
                remedy: format!(
                    "it is a path or one of {}; IMAGES may be a row that was run, too, and --ref {PUBLISHED}",
                    DATASETS.map(|(name, ..)| name).join(", ")
                ),
            });
        }
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if start.starts_with(b"\x93NUMPY") {
        return arrays(path);
    }
    if start.starts_with(b"PK") {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let entries = unzip::entries(file).map_err(|what| unknown(path, format!("a file that {what}")))?;
        if entries.iter().all(|entry| entry.name.ends_with(".npy")) {
            return arrays(path);
        }
        return match pictures::zip(path, entries)? {
            Some(set) => Ok(Input::Images(set)),
            None => Err(unknown(path, "a zip without PNG files".into())),
        };
    }
    cifar(path)
}

/// The asset with EDM's statistics of CIFAR-10.
pub const PUBLISHED: &str = "fid-reference";

/// The data sets that have a name.
pub const DATASETS: [(&str, Set, Split); 4] = [
    ("cifar10", Set::Cifar10, Split::Train),
    ("cifar10-test", Set::Cifar10, Split::Test),
    ("cifar100", Set::Cifar100, Split::Train),
    ("cifar100-test", Set::Cifar100, Split::Test),
];

/// A data set in a file or directory of its own.
///
/// # Errors
/// As those of the set's reader.
pub fn dataset(set: Set, split: Split, path: &Path) -> Result<ImageSet> {
    let (images, kind) = match (set, split) {
        (Set::Cifar10, Split::Train) => (cifar::train(set, path)?, "CIFAR-10 training images"),
        (Set::Cifar10, Split::Test) => (cifar::test(set, path)?, "CIFAR-10 test images"),
        (Set::Cifar100, Split::Train) => (cifar::train(set, path)?, "CIFAR-100 training images"),
        (Set::Cifar100, Split::Test) => (cifar::test(set, path)?, "CIFAR-100 test images"),
    };
    Ok(ImageSet { full: Some(split.full()), ..shuffled(images, kind) })
}

/// The training images of the CIFAR set that `path` turns out to hold.
fn cifar(path: &Path) -> Result<Input> {
    match dataset(Set::Cifar10, Split::Train, path) {
        Ok(set) => Ok(Input::Images(set)),
        Err(ten) => match dataset(Set::Cifar100, Split::Train, path) {
            Ok(set) => Ok(Input::Images(set)),
            Err(hundred) => Err(unknown(
                path,
                match (&ten, &hundred) {
                    (Error::Missing { .. }, Error::Missing { .. }) => "no PNG and no CIFAR in it".into(),
                    _ => format!("neither of the latter\n  as CIFAR-10: {ten}\n  as CIFAR-100: {hundred}"),
                },
            )),
        },
    }
}

fn unknown(path: &Path, found: String) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        expected: "PNG files in a folder or zip, an .npy or .npz of images, features or statistics, or CIFAR"
            .into(),
        found,
        remedy: "`replicate score --help` says what can be scored".into(),
    }
}

/// Images in memory, in an order that depends on their number alone.
fn shuffled(images: Images, kind: &'static str) -> ImageSet {
    let (len, size) = (images.len(), images.size);
    let order = Stream::new("score", "order").at(0).permutation(len);
    let batches = (0..len).step_by(BATCH).map(move |first| {
        let chosen = &order[first..len.min(first + BATCH)];
        let pixels = chosen.iter().flat_map(|&i| images.image(i)).copied().collect();
        Ok(Images { channels: images.channels, size, pixels, labels: Vec::new() })
    });
    ImageSet { kind, len, size, full: None, batches: Box::new(batches) }
}

/// An `.npy` or `.npz`.
fn arrays(path: &Path) -> Result<Input> {
    let stored = npz::list(path).map_err(|what| malformed(path, what))?;
    let named = |name: &str| stored.iter().find(|array| array.name == name);
    if named("mu").is_some() && named("sigma").is_some() {
        return Statistics::read(path).map(Input::Statistics);
    }
    if let Some(features) = named("features") {
        return feature_set(path, features, named("logits")).map(Input::Features);
    }
    let bytes: Vec<&Stored> = stored.iter().filter(|array| array.dtype == "|u1").collect();
    match bytes[..] {
        [images] => image_array(path, images).map(Input::Images),
        [] => Err(malformed(
            path,
            format!("holds no uint8 images, no features, no mu with sigma, but {}", names(&stored)),
        )),
        _ => Err(malformed(path, format!("holds several uint8 arrays: {}", names(&stored)))),
    }
}

fn names(stored: &[Stored]) -> String {
    const SHOWN: usize = 8;
    let mut all: Vec<String> =
        stored.iter().take(SHOWN).map(|a| format!("{} {:?} of {}", a.name, a.shape, a.dtype)).collect();
    if stored.len() > SHOWN {
        all.push(format!("{} more", stored.len() - SHOWN));
    }
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

fn malformed(path: &Path, found: String) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        expected: "an .npy of images; or an .npz of images, of features (and logits), or of mu and sigma".into(),
        found: format!("a file that {found}"),
        remedy: "save uint8 images as (N, H, W, 3) or (N, 3, H, W), features and logits as float32 (N, D), mu and \
                 sigma as float64 (D) and (D, D)"
            .into(),
    }
}

fn image_array(path: &Path, stored: &Stored) -> Result<ImageSet> {
    let side = 1..=LARGEST;
    let (len, size, channels_last) = match stored.shape[..] {
        [n, h, w, 3] if n > 0 && h == w && side.contains(&h) => (n, h, true),
        [n, 3, h, w] if n > 0 && h == w && side.contains(&h) => (n, h, false),
        _ => {
            let wanted = "no number of square RGB images";
            return Err(malformed(path, format!("holds an array of the shape {:?}, {wanted}", stored.shape)));
        }
    };
    let mut elements = stored.open(path).map_err(|what| malformed(path, what))?;
    let path = path.to_path_buf();
    let (area, most) = (size * size, batch_of(size));
    let batches = (0..len).step_by(most).map(move |first| {
        let n = most.min(len - first);
        let read = elements.bytes(n * 3 * area).map_err(|what| malformed(&path, what))?;
        let pixels = match channels_last {
            false => read,
            true => {
                let channel =
                    |rgb: &[u8], c: usize| rgb.iter().skip(c).step_by(3).copied().collect::<Vec<u8>>();
                read.chunks_exact(3 * area).flat_map(|rgb| (0..3).flat_map(|c| channel(rgb, c))).collect()
            }
        };
        Ok(Images { channels: 3, size, pixels, labels: Vec::new() })
    });
    Ok(ImageSet { kind: "array of images", len, size, full: None, batches: Box::new(batches) })
}

/// Columns of the widest features.
const WIDEST: usize = 8192;

fn feature_set(path: &Path, features: &Stored, logits: Option<&Stored>) -> Result<FeatureSet> {
    let matrix = |stored: &Stored| match stored.shape[..] {
        [n, dim] if n > 0 && (1..=WIDEST).contains(&dim) => Ok((n, dim)),
        _ => {
            Err(malformed(path, format!("holds {} of the shape {:?}, not (N, D)", stored.name, stored.shape)))
        }
    };
    let open = |stored: &Stored| stored.open(path).map_err(|what| malformed(path, what));
    let (len, dim) = matrix(features)?;
    let classes = match logits {
        None => None,
        Some(logits) => match matrix(logits)? {
            (n, classes) if n == len => Some(classes),
            (n, _) => return Err(malformed(path, format!("holds {len} features and {n} logits"))),
        },
    };
    let mut features = open(features)?;
    let mut logits = logits.map(open).transpose()?;
    let path = path.to_path_buf();
    let batches = (0..len).step_by(BATCH).map(move |first| {
        let n = BATCH.min(len - first);
        let rows = |elements: &mut npz::Elements, dim: usize| {
            let read = elements.floats(n * dim).map_err(|what| malformed(&path, what))?;
            // Networks compute float32; a wider file holds the same numbers.
            let rows: Vec<f32> = read.into_iter().map(|value| value as f32).collect();
            match rows.iter().position(|value| !value.is_finite()) {
                None => Ok(Features::new(dim, rows)),
                Some(at) => Err(malformed(
                    &path,
                    format!("has NaN or infinity in row {}, column {}", first + at / dim, at % dim),
                )),
            }
        };
        let features = rows(&mut features, dim)?;
        let logits = match (&mut logits, classes) {
            (Some(logits), Some(classes)) => Some(rows(logits, classes)?),
            _ => None,
        };
        Ok((features, logits))
    });
    Ok(FeatureSet { len, dim, classes, batches: Box::new(batches) })
}
