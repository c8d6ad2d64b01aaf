//! Opens sets of images by their content: folders and zips of PNG files, NumPy arrays and CIFAR. It
//! also opens extracted features, and a mean with a covariance.
//! Only a CIFAR data set is held in memory. Its images are shuffled, because its files are sorted by
//! class, and parts of a sorted set (the splits of the Inception Score, the images of KID) would be
//! single classes.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use super::pictures;
use super::sets::{BATCH, FeatureSet, ImageSet, Input, LARGEST, batch_of};
use crate::data::cifar::{self, Refusal, Set, Split};
use crate::data::{Images, planes};
use crate::error::{Error, Result, shown};
use crate::measure::metrics::Features;
use crate::measure::statistics::{Statistics, WIDEST};
use crate::rng::Stream;
use crate::store::formats::npz::{self, Stored};
use crate::store::formats::torch::Dtype;
use crate::store::formats::{Fault, LeftOut, called, foreign, is_hidden, unzip};

/// Opens a folder or a file, and describes the skipped files.
///
/// # Errors
/// `Missing` if the path does not exist, `Malformed` if this module does not support it. An invalid
/// image after the first one may be found only when its batch is read.
pub fn open(path: &Path) -> Result<(Input, LeftOut)> {
    opened(path, true)
}

/// Does the same as [`open`], but takes the images or features of a file that has their mean and
/// covariance, too.
///
/// # Errors
/// As [`open`].
pub fn open_images(path: &Path) -> Result<(Input, LeftOut)> {
    opened(path, false)
}

fn opened(path: &Path, statistics: bool) -> Result<(Input, LeftOut)> {
    if path.is_dir() {
        return match pictures::folder(path)? {
            (Some(set), left_out) => Ok((Input::Images(set), left_out)),
            (None, left_out) => cifar(path, &left_out),
        };
    }
    // A pipe can be read only once, and opening it again would wait for ever.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(unknown(path, "a pipe or a device: save what it gives as a file".into()));
    }
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(32).read_to_end(&mut start).map_err(Error::io("read", path))?,
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
            let what = "neither a file, nor a folder, nor the name of a data set";
            let remedy = format!(
                "it is a path or one of {}; IMAGES may be a row that was run, too, and --ref {PUBLISHED}",
                DATASETS.map(|(name, ..)| name).join(", ")
            );
            return Err(Error::missing(path, what, remedy));
        }
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if start.starts_with(b"\x93NUMPY") {
        return arrays(path, statistics);
    }
    if start.starts_with(b"PK") || foreign(&start).is_none() && ends_as_zip(path)? {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let entries = unzip::entries(file).map_err(|fault| fault.at(path, EXPECTED, REMEDY))?;
        let has_arrays = entries.iter().any(|entry| entry.name.ends_with(".npy") && !is_hidden(&entry.name));
        let is_torch = entries.iter().any(|entry| entry.name.ends_with("data.pkl"));
        return match pictures::zip(path, entries)? {
            (Some(set), left_out) => Ok((Input::Images(set), left_out)),
            (None, _) if has_arrays => arrays(path, statistics),
            (None, _) if is_torch => Err(pickled(path, "a file of torch.save")),
            (None, left_out) => Err(unknown(path, without("a zip without PNG files", &left_out))),
        };
    }
    match foreign(&start) {
        // These may contain a data set.
        None if start.starts_with(b"\x80") => Err(pickled(path, "a pickle or an old file of torch.save")),
        Some("compressed with gzip" | "a parquet file") => cifar(path, &LeftOut::default()),
        _ => match called(&start) {
            Some(what) => Err(unknown(path, what)),
            None => cifar(path, &LeftOut::default()),
        },
    }
}

/// True if a file ends with the end of a zip without a comment: a program may precede the archive, and
/// the last part of a divided one begins anywhere.
fn ends_as_zip(path: &Path) -> Result<bool> {
    const END: &[u8] = b"PK\x05\x06";
    let read = || {
        let (mut file, mut end) = (File::open(path)?, [0; 22]);
        // Shorter files are none.
        let whole = file.seek(SeekFrom::End(-(end.len() as i64))).is_ok();
        Ok(whole && file.read_exact(&mut end).map(|()| end.starts_with(END))?)
    };
    read().map_err(Error::io("read", path))
}

/// Id of the asset with EDM's statistics of CIFAR-10.
pub const PUBLISHED: &str = "fid-reference";

/// Data sets with a name.
pub const DATASETS: [(&str, Set, Split); 4] = [
    ("cifar10", Set::Cifar10, Split::Train),
    ("cifar10-test", Set::Cifar10, Split::Test),
    ("cifar100", Set::Cifar100, Split::Train),
    ("cifar100-test", Set::Cifar100, Split::Test),
];

/// Opens a data set in its own file or directory.
///
/// # Errors
/// Those of the set's reader.
pub fn dataset(set: Set, split: Split, path: &Path) -> Result<(Input, LeftOut)> {
    attempt(set, split, path).map_err(Error::from)
}

fn attempt(set: Set, split: Split, path: &Path) -> std::result::Result<(Input, LeftOut), Refusal> {
    let kind = match (set, split) {
        (Set::Cifar10, Split::Train) => "CIFAR-10 training images",
        (Set::Cifar10, Split::Test) => "CIFAR-10 test images",
        (Set::Cifar100, Split::Train) => "CIFAR-100 training images",
        (Set::Cifar100, Split::Test) => "CIFAR-100 test images",
    };
    let (images, left_out) = cifar::attempt(set, split, path)?;
    Ok((Input::Images(ImageSet { full: Some(split.full()), ..shuffled(images, kind) }), left_out))
}

/// Returns the training images of the CIFAR set that `path` contains.
fn cifar(path: &Path, left_out: &LeftOut) -> Result<(Input, LeftOut)> {
    let ten = match attempt(Set::Cifar10, Split::Train, path) {
        // The content of the file is unknown.
        Err(Refusal::Within(error @ Error::Io { .. })) => return Err(error),
        Err(refusal) => refusal,
        Ok(set) => return Ok(set),
    };
    let hundred = match attempt(Set::Cifar100, Split::Train, path) {
        Err(Refusal::Within(error @ Error::Io { .. })) => return Err(error),
        Err(refusal) => refusal,
        Ok(set) => return Ok(set),
    };
    Err(match (ten, hundred) {
        (Refusal::Apart(_), Refusal::Within(error)) | (Refusal::Within(error), Refusal::Apart(_)) => error,
        (Refusal::Apart(Error::Malformed { found, .. }), Refusal::Apart(_)) => {
            unknown(path, format!("nothing of CIFAR but {found}"))
        }
        (Refusal::Apart(_), Refusal::Apart(_)) => {
            unknown(path, without("no PNG and no CIFAR in it", left_out))
        }
        (Refusal::Within(ten), Refusal::Within(hundred)) => match (&ten, &hundred) {
            (Error::Malformed { found: a, .. }, Error::Malformed { found: b, .. }) if a == b => ten,
            (Error::Missing { path: a, .. }, Error::Missing { path: b, .. }) if a == b => ten,
            _ => unknown(
                path,
                format!("neither of the latter\n  as CIFAR-10: {ten}\n  as CIFAR-100: {hundred}"),
            ),
        },
    })
}

/// Adds what was left out, which may be what was meant.
fn without(found: &str, left_out: &LeftOut) -> String {
    left_out.note().map_or(found.into(), |note| format!("{found}; {note}"))
}

const EXPECTED: &str =
    "PNG files in a folder or zip, an .npy or .npz of images, features or statistics, or CIFAR";
const REMEDY: &str =
    "`replicate score --help` says what can be scored; of other archives, unpack them and name the folder";

fn unknown(path: &Path, found: String) -> Error {
    Error::malformed(path, EXPECTED, found, REMEDY)
}

/// Makes the error of a file with Python objects, which may be statistics, features or a batch of CIFAR.
fn pickled(path: &Path, what: &str) -> Error {
    let remedy = "save what it holds by numpy.savez(\"OUT.npz\", mu=…, sigma=…) or (\"OUT.npz\", features=…); of \
                  the files of CIFAR, name their directory";
    Error::malformed(path, EXPECTED, what, remedy)
}

/// Shuffles images in memory, in an order that depends on their number only.
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

/// Opens an `.npy` or `.npz`: a mean and a covariance by their names, else features by their name,
/// else the only array with the shape of images, else the only array with the shape of features, apart
/// from `logits` beside it. It ignores other arrays (labels, counts, texts). Without `statistics`, a
/// mean and a covariance come last.
fn arrays(path: &Path, statistics: bool) -> Result<(Input, LeftOut)> {
    let (stored, left_out) = npz::list(path).map_err(|fault| malformed(path, fault))?;
    let named = |name: &str| stored.iter().find(|array| array.name == name);
    for name in ["mu", "sigma", "features", "logits"] {
        named(name).map_or(Ok(()), Stored::check).map_err(|fault| malformed(path, fault))?;
    }
    let is_bytes = |array: &&Stored| matches!(array.kind(), Some((Dtype::U8, _)));
    let has_rows =
        named("features").is_some() || stored.iter().any(|array| is_bytes(&array) && is_images(array));
    let has_both = named("mu").is_some() && named("sigma").is_some();
    let input = if has_both && (statistics || !has_rows) {
        Input::Statistics(Statistics::read(path)?)
    } else if let Some(features) = named("features") {
        Input::Features(feature_set(path, features, named("logits"))?)
    } else {
        let bytes: Vec<&Stored> = stored.iter().filter(is_bytes).collect();
        let images: Vec<&Stored> = bytes.iter().copied().filter(|array| is_images(array)).collect();
        let is_matrix =
            |array: &&Stored| array.kind().is_some() && !is_bytes(array) && matrix(array).is_some();
        let mut matrices: Vec<&Stored> = stored.iter().filter(is_matrix).collect();
        let logits = named("logits").filter(|_| matrices.len() > 1);
        matrices.retain(|array| logits.is_none() || array.name != "logits");
        match (&images[..], &bytes[..], &matrices[..]) {
            ([images], ..) | ([], [images], []) => Input::Images(image_array(path, images)?),
            ([], _, [sigma]) if is_covariance(sigma, &stored) => {
                let what = "holds a square matrix beside its vector, as a covariance and a mean are, but not by \
                            the names sigma and mu (features have the name features):";
                return Err(malformed(path, format!("{what} {}", names(&stored)).into()));
            }
            ([], _, [sigma]) if sigma.name == "sigma" => {
                return Err(malformed(path, format!("holds sigma, but no mu: {}", names(&stored)).into()));
            }
            ([], _, [features]) => Input::Features(feature_set(path, features, logits)?),
            ([], [], []) => {
                let broken = stored.iter().try_for_each(Stored::check);
                broken.map_err(|fault| malformed(path, fault))?;
                let what = "holds no uint8 images, no features, no mu with sigma, but";
                return Err(malformed(path, format!("{what} {}", names(&stored)).into()));
            }
            _ => {
                let several = if bytes.len() > 1 { "uint8 arrays" } else { "arrays that could be features" };
                let fault: Fault = format!("holds several {several}: {}", names(&stored)).into();
                let remedy =
                    "save the one that is meant by itself: numpy.save(\"OUT.npy\", numpy.load(FILE)[NAME])";
                return Err(fault.at(path, "one array of images, or one of features", remedy));
            }
        }
    };
    Ok((input, left_out))
}

/// Returns the number and size of the images, and true if the channels are the last axis.
fn image_shape(stored: &Stored) -> Option<(usize, usize, bool)> {
    let side = 1..=LARGEST;
    match stored.shape[..] {
        [n, h, w, 3] if n > 0 && h == w && side.contains(&h) => Some((n, h, true)),
        [n, 3, h, w] if n > 0 && h == w && side.contains(&h) => Some((n, h, false)),
        _ => None,
    }
}

fn is_images(stored: &Stored) -> bool {
    image_shape(stored).is_some()
}

/// Returns rows and columns; one axis after the first may be longer than one.
fn matrix(stored: &Stored) -> Option<(usize, usize)> {
    let (rows, sides) = stored.shape.split_first()?;
    let columns = sides.iter().copied().max()?;
    let is_flat = sides.iter().filter(|side| **side != 1).count() <= 1;
    (is_flat && *rows > 0 && (1..=WIDEST).contains(&columns)).then_some((*rows, columns))
}

/// True if a square matrix is accompanied by a vector of its size.
fn is_covariance(matrix: &Stored, stored: &[Stored]) -> bool {
    let is_float = |array: &Stored| array.kind().is_some_and(|(kind, _)| kind != Dtype::U8);
    let square = |d: usize| matrix.shape == [d, d];
    stored.iter().any(|array| is_float(array) && array.shape.len() == 1 && square(array.shape[0]))
}

fn names(stored: &[Stored]) -> String {
    const SHOWN: usize = 8;
    let mut all: Vec<String> = stored
        .iter()
        .take(SHOWN)
        .map(|a| {
            let name = if a.name.is_empty() { "an array".into() } else { shown(&a.name) };
            let dtype = match a.dtype.is_empty() {
                true if a.check().is_err() => "an unknown type".into(),
                true => "several fields".into(),
                false => shown(&a.dtype),
            };
            format!("{name} {:?} of {dtype}", a.shape)
        })
        .collect();
    if stored.len() > SHOWN {
        all.push(format!("{} more", stored.len() - SHOWN));
    }
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

fn malformed(path: &Path, fault: Fault) -> Error {
    fault.at(
        path,
        "an .npy of images or of features; or an .npz of images, of features (and logits), or of mu and sigma",
        "save uint8 images as (N, H, W, 3) or (N, 3, H, W), features and logits as float16 or float32 (N, D) under \
         these names, mu and sigma as float32 or float64 (D) and (D, D)",
    )
}

fn image_array(path: &Path, stored: &Stored) -> Result<ImageSet> {
    let Some((len, size, channels_last)) = image_shape(stored) else {
        let wanted = "no number of square RGB images";
        let found = format!("holds an array of the shape {:?}, {wanted}", stored.shape);
        return Err(malformed(path, found.into()));
    };
    let mut elements = stored.open(path).map_err(|what| malformed(path, what))?;
    let path = path.to_path_buf();
    let (area, most) = (size * size, batch_of(size));
    let batches = (0..len).step_by(most).map(move |first| {
        let n = most.min(len - first);
        let read = elements.bytes(n * 3 * area).map_err(|what| malformed(&path, what))?;
        let pixels = match channels_last {
            false => read,
            true => read.chunks_exact(3 * area).flat_map(planes).collect(),
        };
        Ok(Images { channels: 3, size, pixels, labels: Vec::new() })
    });
    Ok(ImageSet { kind: "array of images", len, size, full: None, batches: Box::new(batches) })
}

fn feature_set(path: &Path, features: &Stored, logits: Option<&Stored>) -> Result<FeatureSet> {
    let matrix = |stored: &Stored| {
        matrix(stored).ok_or_else(|| {
            let name = shown(&stored.name);
            malformed(path, format!("holds {name} of the shape {:?}, not (N, D)", stored.shape).into())
        })
    };
    let open = |stored: &Stored| stored.open(path).map_err(|what| malformed(path, what));
    let (len, dim) = matrix(features)?;
    let classes = match logits {
        None => None,
        Some(logits) => match matrix(logits)? {
            (n, classes) if n == len => Some(classes),
            (n, _) => return Err(malformed(path, format!("holds {len} features and {n} logits").into())),
        },
    };
    let mut features = open(features)?;
    let mut logits = logits.map(open).transpose()?;
    let path = path.to_path_buf();
    let batches = (0..len).step_by(BATCH).map(move |first| {
        let n = BATCH.min(len - first);
        let rows = |elements: &mut npz::Elements, dim: usize| {
            let read = elements.floats(n * dim).map_err(|what| malformed(&path, what))?;
            // Exact, because networks compute in float32 even if the file has wider numbers.
            let rows: Vec<f32> = read.into_iter().map(|value| value as f32).collect();
            match rows.iter().position(|value| !value.is_finite()) {
                None => Ok(Features::new(dim, rows)),
                Some(at) => {
                    let (row, column) = (first + at / dim, at % dim);
                    let found = format!("has NaN or infinity in row {row}, column {column}, as a float32");
                    let remedy = "extract them again; networks in half precision may overflow";
                    Err(Fault::Content(found).at(&path, "features that are numbers", remedy))
                }
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
