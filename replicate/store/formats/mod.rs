//! File formats that the program reads and writes, and what they share: faults of files, files that
//! are skipped, and recognition of formats that it does not read.

pub mod npz;
pub mod safetensors;
pub mod torch;
pub mod unzip;

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::path::Path;
use zip::write::SimpleFileOptions;

use crate::error::{Error, shown};

/// Reason why a file cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// The system cannot read it; its content may be good.
    Unreadable(io::Error),
    /// Its content is wrong. The text completes a sentence that begins with "it".
    Content(String),
}

impl Fault {
    /// Converts the error of any reader. If a system error is nested in it, the file is not at
    /// fault.
    pub fn of(error: &(dyn StdError + 'static), what: impl FnOnce() -> String) -> Fault {
        match system_error(error) {
            Some(error) => Fault::Unreadable(error),
            None => Fault::Content(what()),
        }
    }

    /// Prepends `before` to the description of a content fault.
    pub fn with(self, before: impl FnOnce() -> String) -> Fault {
        match self {
            Fault::Content(what) => Fault::Content(format!("{}{what}", before())),
            fault => fault,
        }
    }

    /// Converts the fault to the error of the file at `path`.
    pub fn at(self, path: &Path, expected: &str, remedy: &str) -> Error {
        match self {
            Fault::Unreadable(error) => Error::io("read", path)(error),
            Fault::Content(what) => Error::malformed(path, expected, format!("a file that {what}"), remedy),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Fault::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Fault::Content(what) => f.write_str(what),
        }
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Fault {
        Fault::Content(what)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Fault {
        Fault::Content(what.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        let what = if error.kind() == ErrorKind::Unsupported { "is" } else { "is damaged:" };
        Fault::of(&error, || format!("{what} {error}"))
    }
}

/// Finds the system error that caused an error. Decoders report damage as `io::Error` too, but
/// without a system code.
fn system_error(error: &(dyn StdError + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match (error.raw_os_error(), error.kind()) {
                // A position beyond what a file can have comes from a wrong number in the file.
                (Some(libc::EINVAL | libc::EOVERFLOW), _) => return None,
                (Some(code), _) => return Some(io::Error::from_raw_os_error(code)),
                (None, kind @ ErrorKind::OutOfMemory) => return Some(kind.into()),
                // `source` skips the error that is boxed inside.
                _ => next = error.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            }
        }
    }
    None
}

/// The options of a zip's files that are stored as they are, without a time: the same files give the
/// same bytes.
pub fn uncompressed() -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
}

/// True if elements with these strides lie in row-major order.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(n, stride)| {
        let as_expected = *n == 1 || *stride == expected;
        expected *= n;
        as_expected
    }) || shape.contains(&0)
}

/// Copies elements of `size` bytes in row-major order. `strides` are in elements, one for each axis.
///
/// # Panics
/// If an element lies outside of `elements`.
pub(crate) fn strided(elements: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let mut copied = Vec::with_capacity(count * size);
    let (mut index, mut at) = (vec![0; shape.len()], 0);
    for _ in 0..count {
        copied.extend_from_slice(&elements[at * size..][..size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    copied
}

/// Hidden names of systems and tools, in addition to all that begin with a dot.
const UNSEEN: [&str; 15] = [
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "@__thumb",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "lost+found",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
];

/// True if a file, given by its path within a set, is hidden or lies in a hidden folder.
pub fn is_hidden(path: impl AsRef<Path>) -> bool {
    let mut parts = path.as_ref().as_os_str().as_encoded_bytes().split(|byte| b"/\\".contains(byte));
    parts.any(|part| {
        let dots = part.iter().all(|byte| *byte == b'.');
        part.starts_with(b".") && !dots
            || UNSEEN.iter().any(|name| part.eq_ignore_ascii_case(name.as_bytes()))
    })
}

/// Files of a folder or archive that do not belong to the set read from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    hidden: usize,
    others: usize,
    beside: usize,
    examples: Vec<String>,
}

impl LeftOut {
    /// Counts a hidden file.
    pub fn hidden(&mut self, path: impl AsRef<Path>) {
        self.hidden += 1;
        self.example(path.as_ref());
    }

    /// Counts a file of a kind that belongs to no set.
    pub fn other(&mut self, path: impl AsRef<Path>) {
        self.others += 1;
        self.example(path.as_ref());
    }

    /// Counts a file of the set's kind beside the shards that are the set.
    pub fn beside(&mut self, path: impl AsRef<Path>) {
        self.beside += 1;
        self.example(path.as_ref());
    }

    fn example(&mut self, path: &Path) {
        if self.examples.len() < 3 {
            self.examples.push(shown(&path.to_string_lossy()));
        }
    }

    /// Describes the skipped files; `None` if there are none.
    pub fn note(&self) -> Option<String> {
        let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}"));
        let counts =
            [(self.hidden, "hidden"), (self.others, "of other kinds"), (self.beside, "beside the shards")];
        let all: usize = counts.iter().map(|(n, _)| n).sum();
        let counts: Vec<String> = counts.into_iter().filter_map(|(n, what)| count(n, what)).collect();
        let more = if all > self.examples.len() { ", …" } else { "" };
        (!counts.is_empty()).then(|| {
            format!("files and folders left out: {} ({}{more})", counts.join(", "), self.examples.join(", "))
        })
    }
}

/// First bytes of formats that users may supply by mistake, with descriptions.
const FOREIGN: [(&[u8], &str); 23] = [
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"PK\x03\x04", "a zip"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PAR1", "a parquet file"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WebP image"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"GGUF", "a GGUF file"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream, as Dataset.save_to_disk writes it (to_parquet writes parquet)"),
    (b"PARE", "an encrypted parquet file"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file (`git lfs pull` gets it)"),
];

/// First words of texts, in lower case and without blanks, with descriptions.
const TEXTS: [(&str, &str); 6] = [
    ("<!doctypehtml", "a web page"),
    ("<head", "a web page"),
    ("<html", "a web page"),
    ("<?xml", "an XML text, as servers answer an error"),
    ("{\"", "a JSON text"),
    ("[\"", "a JSON text"),
];

/// Says in a message what a file is that no reader expects.
pub(crate) fn called(start: &[u8]) -> Option<String> {
    match foreign(start) {
        None if start.is_empty() => Some("an empty file".into()),
        what => what.map(|what| format!("a file that is {what}")),
    }
}

/// Recognises a text by its first bytes.
pub(crate) fn foreign_text(start: &[u8]) -> Option<&'static str> {
    let text: Vec<u8> = start.iter().filter(|byte| !byte.is_ascii_whitespace()).take(16).copied().collect();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text).to_ascii_lowercase();
    TEXTS.iter().find(|(word, _)| text.starts_with(word.as_bytes())).map(|(_, what)| *what)
}

/// Recognises a format that no reader expects by its first bytes.
pub(crate) fn foreign(start: &[u8]) -> Option<&'static str> {
    let binary = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what);
    // Bytes of these formats do not begin with their names.
    let within = match (start.get(..2), start.get(4..8), start.get(6..10)) {
        (_, Some(b"ftyp"), _) => Some("an image or film of the MP4 family (HEIC, AVIF)"),
        (_, Some(b"jP  "), _) => Some("a JPEG 2000 image"),
        (Some(b"BM"), _, Some([0, 0, 0, 0])) => Some("a BMP image"),
        _ => None,
    };
    binary.or(within).or_else(|| foreign_text(start))
}
