//! NumPy's files: an `.npy` is an array, an `.npz` a zip of them. Read here are
//! uint8, float32 and float64, little-endian and in C order, whole or as a
//! stream; written are float64.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::store::formats::unzip::{self, Entry};

/// Row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// No array that is read whole has more elements.
const MOST: usize = 1 << 26;
/// NumPy itself warns of headers above 10,000 bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// An array in a file, none of whose numbers has been read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Without its `.npy`; empty for the one array of an `.npy` file.
    pub name: String,
    /// As NumPy writes it: `|u1`, `<f4`, `<f8`.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub(crate) c_order: bool,
    /// Bytes before the numbers, and of the numbers.
    pub(crate) header: u64,
    bytes: u64,
    /// Where an `.npz` has it.
    entry: Option<Entry>,
}

/// The arrays of an `.npz`, or the one of an `.npy`, whatever the name says. The
/// error says what is wrong with the file.
pub fn list(path: &Path) -> Result<Vec<Stored>, String> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut magic = Vec::new();
    (&file).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(|error| unreadable(&error))?;
    if magic == MAGIC {
        let bytes = file.metadata().map_err(|error| unreadable(&error))?.len();
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        return Ok(vec![header(file, bytes).map_err(|what| of("", what))?]);
    }
    let entries = unzip::entries(&file).map_err(|what| format!("is not an .npz file: it {what}"))?;
    let stored = |entry: Entry| {
        let named = |what: String| of(&entry.name, what);
        let content = entry.open(&file).map_err(|error| named(unreadable(&error)))?;
        let stored = header(content, entry.bytes).map_err(named)?;
        Ok(Stored { name: entry.name.trim_end_matches(".npy").into(), entry: Some(entry), ..stored })
    };
    entries.into_iter().map(stored).collect()
}

/// Every array of the file by its name; all must be float32 or float64. The
/// error says what is wrong with the file.
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>, String> {
    let whole = |stored: Stored| {
        let array = stored.read(path)?;
        Ok((stored.name, array))
    };
    list(path)?.into_iter().map(whole).collect()
}

impl Stored {
    /// The number of elements; `None` if there are more than a machine can count.
    fn count(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &side| n.checked_mul(side as u64))
    }

    /// All of it, from the file that it was listed from. The error says what is
    /// wrong with the file.
    pub fn read(&self, path: &Path) -> Result<Array, String> {
        let count = self.count().filter(|count| *count <= MOST as u64);
        let count = count.ok_or_else(|| of(&self.name, format!("has the shape {:?}", self.shape)))?;
        let data = self.open(path)?.floats(count as usize)?;
        Ok(Array { shape: self.shape.clone(), data })
    }

    /// Its elements as a stream, from the file that it was listed from. The error
    /// says what is wrong with the file.
    pub fn open(&self, path: &Path) -> Result<Elements, String> {
        let named = |what: String| of(&self.name, what);
        if !self.c_order {
            return Err(named(
                "is in Fortran order, not in C order (numpy.ascontiguousarray makes it so)".into(),
            ));
        }
        let kind = match self.dtype.as_str() {
            "|u1" => Kind::U8,
            "<f4" => Kind::F32,
            "<f8" => Kind::F64,
            other => return Err(named(format!("has the type {other:?}, not uint8, float32 or float64"))),
        };
        let count = self.count().ok_or_else(|| named(format!("has the shape {:?}", self.shape)))?;
        if count.checked_mul(kind.size() as u64) != Some(self.bytes) {
            return Err(named(format!("has {} bytes of data for {count} numbers", self.bytes)));
        }
        let opened = || -> std::io::Result<Box<dyn Read>> {
            let file = File::open(path)?;
            let mut source: Box<dyn Read> = match &self.entry {
                Some(entry) => Box::new(entry.open(file)?),
                None => Box::new(file),
            };
            std::io::copy(&mut source.by_ref().take(self.header), &mut std::io::sink())?;
            Ok(source)
        };
        let source = opened().map_err(|error| named(unreadable(&error)))?;
        Ok(Elements { name: self.name.clone(), kind, left: count, source })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    F32,
    F64,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }
}

/// The elements of an array in row-major order.
pub struct Elements {
    name: String,
    kind: Kind,
    left: u64,
    source: Box<dyn Read>,
}

impl Elements {
    /// The next `n` elements of a uint8 array.
    pub fn bytes(&mut self, n: usize) -> Result<Vec<u8>, String> {
        match self.kind {
            Kind::U8 => self.raw(n),
            _ => Err(of(&self.name, "is not uint8".into())),
        }
    }

    /// The next `n` elements of a float32 or float64 array.
    pub fn floats(&mut self, n: usize) -> Result<Vec<f64>, String> {
        match self.kind {
            Kind::U8 => Err(of(&self.name, "is uint8, not float32 or float64".into())),
            Kind::F32 => {
                Ok(self.raw(n)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect())
            }
            Kind::F64 => Ok(self.raw(n)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
        }
    }

    fn raw(&mut self, n: usize) -> Result<Vec<u8>, String> {
        let named = |what: String| of(&self.name, what);
        let left = self.left.checked_sub(n as u64).ok_or_else(|| named("is cut off".into()))?;
        let wanted = n * self.kind.size();
        // Not all at once: a deflated file may promise more than it has.
        let mut raw = Vec::with_capacity(wanted.min(1 << 24));
        self.source
            .by_ref()
            .take(wanted as u64)
            .read_to_end(&mut raw)
            .map_err(|error| named(unreadable(&error)))?;
        if raw.len() < wanted {
            return Err(named("is cut off".into()));
        }
        self.left = left;
        if left == 0 {
            // The end of a zip's entry is where its checksum is compared.
            let end = self.source.read(&mut [0]).map_err(|error| named(unreadable(&error)))?;
            if end != 0 {
                return Err(named("goes on behind its end".into()));
            }
        }
        Ok(raw)
    }
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// The format of `numpy.save` up to the numbers: magic, version, a Python
/// dictionary. `bytes` is the length of the whole.
pub(crate) fn header(mut npy: impl Read, bytes: u64) -> Result<Stored, String> {
    let mut exactly = |length: usize| {
        let mut part = Vec::new();
        match npy.by_ref().take(length as u64).read_to_end(&mut part) {
            Ok(read) if read == length => Ok(part),
            Ok(_) => Err("is cut off".to_string()),
            Err(error) => Err(unreadable(&error)),
        }
    };
    if exactly(MAGIC.len()).ok().as_deref() != Some(MAGIC) {
        return Err("is not an array".into());
    }
    let version = exactly(2)?;
    let digits = match version[0] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("has the version {other} of the format")),
    };
    let length = exactly(digits)?.iter().rev().fold(0usize, |n, byte| n << 8 | *byte as usize);
    if length > LONGEST_HEADER {
        return Err(format!("has a header of {length} bytes"));
    }
    let text = exactly(length)?;
    let text = String::from_utf8_lossy(&text);
    let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let order = after("fortran_order").unwrap_or_default();
    if !order.starts_with("False") && !order.starts_with("True") {
        return Err("has no fortran_order".into());
    }
    // A structured type is a list here, and stays without a name.
    let dtype =
        after("descr").and_then(|text| text.strip_prefix('\'')?.split('\'').next()).unwrap_or_default();
    let tuple =
        after("shape").and_then(|text| text.strip_prefix('(')?.split(')').next()).ok_or("has no shape")?;
    let shape: Option<Vec<usize>> =
        tuple.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect();
    let header = (MAGIC.len() + 2 + digits + length) as u64;
    Ok(Stored {
        name: String::new(),
        dtype: dtype.into(),
        shape: shape.ok_or_else(|| format!("has the shape ({tuple})"))?,
        c_order: order.starts_with("False"),
        header,
        bytes: bytes.checked_sub(header).ok_or("is cut off")?,
        entry: None,
    })
}

/// What is wrong with an array, as something wrong with the file.
fn of(name: &str, what: String) -> String {
    match name {
        "" => format!("holds an array that {what}"),
        name => format!("holds {name}, which {what}"),
    }
}

fn unreadable(error: &std::io::Error) -> String {
    format!("is unreadable: {error}")
}

/// An `.npz` of float64 arrays, as `numpy.savez` writes it. The same arrays give
/// the same bytes.
pub fn write(arrays: &[(&str, &Array)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default());
    for (name, array) in arrays {
        let sides: Vec<String> = array.shape.iter().map(usize::to_string).collect();
        let comma = if sides.len() == 1 { "," } else { "" };
        let dictionary =
            format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}{comma}), }}", sides.join(", "));
        // The numbers begin at a multiple of 64 bytes.
        let length = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((length as u16).to_le_bytes());
        bytes.extend(format!("{dictionary:width$}\n", width = length - 1).bytes());
        bytes.extend(array.data.iter().flat_map(|x| x.to_le_bytes()));
        zip.start_file(format!("{name}.npy"), stored).expect("a new name");
        zip.write_all(&bytes).expect("writing to memory");
    }
    zip.finish().expect("writing to memory").into_inner()
}
