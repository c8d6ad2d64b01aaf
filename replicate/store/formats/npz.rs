//! NumPy's files: an `.npy` is an array, an `.npz` a zip of them. Reads uint8 and floats of 16, 32
//! and 64 bits in either byte order and either order of the axes, whole or as a stream of rows;
//! writes float64. (candle's reader accepts only one spelling of the header, no Fortran order and
//! no streams.)

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use super::torch::Dtype;
use super::{Fault, LeftOut, foreign, is_hidden, strided, uncompressed};
use crate::error::shown;
use crate::store::formats::unzip::{self, Entry};

/// A row-major array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// Most bytes of an array that is read into memory.
const MOST: u64 = 1 << 29;
/// NumPy itself warns of headers above 10,000 bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// An array in a file, whose numbers have not been read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Name without `.npy`; empty for the array of an `.npy` file.
    pub name: String,
    /// Type as in the file: `|u1`, `<f4`, `>f8`; empty for a type with fields.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub(crate) fortran_order: bool,
    /// Length of the header in bytes; `bytes` is that of the numbers.
    pub(crate) header: u64,
    bytes: u64,
    /// Its file in the `.npz`.
    entry: Option<Entry>,
    /// Reason why it cannot be read.
    broken: Option<String>,
}

/// Lists the arrays of an `.npz`, or the one of an `.npy`, whatever the file's name. Skips hidden
/// files of a zip and files that are no arrays. Reports an unreadable array only when it is read,
/// so unused arrays may be of any kind.
pub fn list(path: &Path) -> Result<(Vec<Stored>, LeftOut), Fault> {
    let file = File::open(path)?;
    let mut start = Vec::new();
    (&file).take(32).read_to_end(&mut start)?;
    let mut left_out = LeftOut::default();
    if start.starts_with(MAGIC) {
        let stored = header(File::open(path)?, file.metadata()?.len());
        return Ok((vec![stored.map_err(|fault| of("", fault))?], left_out));
    }
    if let Some(what) = foreign(&start).filter(|_| !start.starts_with(b"PK")) {
        return Err(format!("is not an .npz file but {what}").into());
    }
    let mut arrays = Vec::new();
    for entry in unzip::entries(&file).map_err(|fault| fault.with(|| "is not an .npz file: it ".into()))? {
        let Some(name) = entry.name.strip_suffix(".npy").filter(|_| !is_hidden(&entry.name)) else {
            match is_hidden(&entry.name) {
                true => left_out.hidden(&entry.name),
                false => left_out.other(&entry.name),
            }
            continue;
        };
        let name = name.to_string();
        let stored = entry.open(&file).map_err(Fault::from).and_then(|content| header(content, entry.bytes));
        let stored = match stored {
            Err(Fault::Content(what)) => Stored::broken(what),
            stored => stored.map_err(|fault| of(&name, fault))?,
        };
        arrays.push(Stored { name, entry: Some(entry), ..stored });
    }
    Ok((arrays, left_out))
}

impl Stored {
    fn broken(what: String) -> Stored {
        let (name, dtype, shape, entry) = Default::default();
        Stored { name, dtype, shape, fortran_order: false, header: 0, bytes: 0, entry, broken: Some(what) }
    }

    /// Checks whether the array can be read.
    ///
    /// # Errors
    /// The reason why it cannot be read, as far as the header shows it.
    pub fn check(&self) -> Result<(), Fault> {
        self.broken.as_ref().map_or(Ok(()), |what| Err(of(&self.name, what.clone().into())))
    }

    /// Number of elements; `None` if it overflows.
    fn count(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &side| n.checked_mul(side as u64))
    }

    /// Type of the elements, and whether the first byte is the most significant. `None` for types
    /// that this module does not read.
    pub fn kind(&self) -> Option<(Dtype, bool)> {
        let (order, kind) = match self.dtype.split_at_checked(1) {
            Some((order @ ("<" | ">" | "=" | "|"), kind)) => (order, kind),
            _ => ("=", self.dtype.as_str()),
        };
        let big = order == ">" || order != "<" && cfg!(target_endian = "big");
        let kind = match kind {
            "u1" | "B" | "uint8" | "ubyte" => Dtype::U8,
            "f2" | "e" | "float16" | "half" => Dtype::F16,
            "f4" | "f" | "float32" | "single" => Dtype::F32,
            "f8" | "d" | "float64" | "float" | "double" => Dtype::F64,
            _ => return None,
        };
        Some((kind, big))
    }

    /// Reads the whole array; `path` is the file that it was listed from.
    pub fn read(&self, path: &Path) -> Result<Array, Fault> {
        let count = self.count().filter(|count| *count <= MOST / 8);
        let count = count.ok_or_else(|| of(&self.name, format!("has the shape {:?}", self.shape).into()))?;
        let (mut elements, mut data) = (self.open(path)?, Vec::new());
        while data.len() < count as usize {
            data.extend(elements.floats((count as usize - data.len()).min(1 << 20))?);
        }
        Ok(Array { shape: self.shape.clone(), data })
    }

    /// Streams its elements in row-major order; `path` is the file that it was listed from.
    pub fn open(&self, path: &Path) -> Result<Elements, Fault> {
        self.check()?;
        self.elements(path).map_err(|fault| of(&self.name, fault))
    }

    fn elements(&self, path: &Path) -> Result<Elements, Fault> {
        let Some((kind, big_endian)) = self.kind() else {
            let found = shown(&self.dtype);
            return Err(format!("has the type {found:?}, not uint8, float16, float32 or float64").into());
        };
        let count = self.count().ok_or_else(|| format!("has the shape {:?}", self.shape))?;
        let wanted = count.checked_mul(kind.size() as u64);
        if wanted != Some(self.bytes) {
            let why = match wanted {
                Some(wanted) if wanted < self.bytes => {
                    "more follows, as after several numpy.save to one file"
                }
                _ => "it is cut off",
            };
            return Err(format!("has {} bytes of data for {count} numbers: {why}", self.bytes).into());
        }
        let file = File::open(path)?;
        let mut source: Box<dyn Read> = match &self.entry {
            Some(entry) => Box::new(entry.open(file)?),
            None => Box::new(file),
        };
        std::io::copy(&mut source.by_ref().take(self.header), &mut std::io::sink())?;
        let mut elements = Elements { name: self.name.clone(), kind, big_endian, left: count, source };
        // Both orders are the same if only one axis is longer than 1.
        if self.fortran_order && self.shape.iter().filter(|side| **side > 1).count() > 1 {
            if self.bytes > MOST {
                return Err("is in Fortran order and too large to be turned in memory \
                            (numpy.ascontiguousarray does it)"
                    .into());
            }
            let columns = elements.raw(count as usize)?;
            let rows = row_major(&columns, &self.shape, kind.size());
            (elements.left, elements.source) = (count, Box::new(Cursor::new(rows)));
        }
        Ok(elements)
    }
}

/// Converts elements of `size` bytes from Fortran order (first axis fastest) to C order (last axis
/// fastest).
fn row_major(columns: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let strides = (0..shape.len()).map(|axis| shape[..axis].iter().product());
    strided(columns, shape, &strides.collect::<Vec<_>>(), size)
}

/// A stream of the elements of an array in row-major order.
pub struct Elements {
    name: String,
    kind: Dtype,
    big_endian: bool,
    left: u64,
    source: Box<dyn Read>,
}

impl Elements {
    /// Reads the next `n` elements of a uint8 array.
    pub fn bytes(&mut self, n: usize) -> Result<Vec<u8>, Fault> {
        match self.kind {
            Dtype::U8 => self.raw(n),
            _ => Err(of(&self.name, "is not uint8".into())),
        }
    }

    /// Reads the next `n` elements of an array of floats.
    pub fn floats(&mut self, n: usize) -> Result<Vec<f64>, Fault> {
        if self.kind == Dtype::U8 {
            return Err(of(&self.name, "is uint8, not float16, float32 or float64".into()));
        }
        let (kind, size) = (self.kind, self.kind.size());
        let mut raw = self.raw(n)?;
        if self.big_endian {
            raw.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Ok(raw.chunks_exact(size).map(|bytes| kind.value(bytes)).collect())
    }

    fn raw(&mut self, n: usize) -> Result<Vec<u8>, Fault> {
        let named = |fault: Fault| of(&self.name, fault);
        let left = self.left.checked_sub(n as u64).ok_or_else(|| named("is cut off".into()))?;
        let wanted = n * self.kind.size();
        // Allocated in steps: a deflated file may announce more than it has.
        let mut raw = Vec::with_capacity(wanted.min(1 << 24));
        let read = self.source.by_ref().take(wanted as u64).read_to_end(&mut raw);
        read.map_err(|error| named(error.into()))?;
        if raw.len() < wanted {
            return Err(named("is cut off".into()));
        }
        self.left = left;
        // A zip's checksum is verified at the end of the entry.
        if left == 0 && self.source.read(&mut [0]).map_err(|error| of(&self.name, error.into()))? != 0 {
            return Err(of(&self.name, "continues after its end".into()));
        }
        Ok(raw)
    }
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads the header of `numpy.save`'s format: magic, version, a Python dictionary. `bytes` is the
/// length of the file.
pub(crate) fn header(mut npy: impl Read, bytes: u64) -> Result<Stored, Fault> {
    let mut exactly = |length: usize| -> Result<Vec<u8>, Fault> {
        let mut part = Vec::new();
        match npy.by_ref().take(length as u64).read_to_end(&mut part)? {
            read if read == length => Ok(part),
            _ => Err("is cut off".into()),
        }
    };
    match exactly(MAGIC.len()) {
        Ok(magic) if magic == MAGIC => {}
        Err(fault @ Fault::Unreadable(_)) => return Err(fault),
        _ => return Err("is not an array".into()),
    }
    let digits = match exactly(2)?[0] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("has the version {other} of the format").into()),
    };
    let length = exactly(digits)?.iter().rev().fold(0usize, |n, byte| n << 8 | *byte as usize);
    if length > LONGEST_HEADER {
        return Err(format!("has a header of {length} bytes").into());
    }
    let text = exactly(length)?;
    let mut stored = dictionary(&String::from_utf8_lossy(&text))?;
    stored.header = (MAGIC.len() + 2 + digits + length) as u64;
    stored.bytes = bytes.checked_sub(stored.header).ok_or("is cut off")?;
    Ok(stored)
}

/// Parses the header's dictionary in any spelling that Python reads: strings with any quotes,
/// prefixes and escapes, whitespace, comments, keys in any order, integers of any base, and the
/// long integers of Python 2.
fn dictionary(text: &str) -> Result<Stored, Fault> {
    let mut words = words(text).peekable();
    let (mut dtype, mut shape, mut order) = (None, None, None);
    if words.next().as_deref() != Some("{") {
        return Err("has a header that is no dictionary".into());
    }
    while let Some(key) = words.next().filter(|word| word != "}") {
        let mut key = key;
        while let Some(part) = words.next_if(|word| word.starts_with('\'')) {
            key += &part[1..];
        }
        if words.next().as_deref() != Some(":") {
            return Err("has a header that is no dictionary".into());
        }
        let (mut value, mut depth) = (Vec::new(), 0usize);
        while let Some(word) = words.next_if(|word| depth > 0 || word != "," && word != "}") {
            match word.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            value.push(word);
        }
        words.next_if(|word| word == ",");
        match key.as_str() {
            // A type with fields is a list; its name stays empty.
            "'descr" => dtype = Some(string(&value)),
            "'shape" => shape = Some(value),
            "'fortran_order" => order = Some(value),
            _ => {}
        }
    }
    let order = order.map(|value| value.concat());
    let fortran_order = match order.as_deref() {
        Some("True" | "1") => true,
        Some("False" | "0") => false,
        _ => return Err("has no fortran_order".into()),
    };
    let shape = shape.ok_or("has no shape")?;
    let sides = match &shape[..] {
        [open, sides @ .., close] if open == "(" && close == ")" => sides,
        _ => return Err("has no shape".into()),
    };
    let sides: Option<Vec<usize>> = sides.iter().filter(|word| *word != ",").map(|word| side(word)).collect();
    Ok(Stored {
        name: String::new(),
        dtype: dtype.unwrap_or_default(),
        shape: sides.ok_or_else(|| format!("has the shape {}", shown(&shape.concat())))?,
        fortran_order,
        header: 0,
        bytes: 0,
        entry: None,
        broken: None,
    })
}

fn side(word: &str) -> Option<usize> {
    let word = word.trim_end_matches(['L', 'l']).replace('_', "").to_ascii_lowercase();
    let bases = [("0x", 16), ("0o", 8), ("0b", 2)];
    let based = bases.iter().find_map(|(prefix, base)| Some((word.strip_prefix(prefix)?, *base)));
    let (digits, base) = based.unwrap_or((word.as_str(), 10));
    usize::from_str_radix(digits, base).ok()
}

/// Joins the parts of a string literal; empty if the value is not a string.
fn string(value: &[String]) -> String {
    value.iter().map(|part| part.strip_prefix('\'')).collect::<Option<String>>().unwrap_or_default()
}

/// Splits a Python literal into punctuation, names and numbers; a string begins with `'`.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        while let Some(comment) = rest.strip_prefix('#') {
            rest = comment.split_once('\n').map_or("", |(_, behind)| behind).trim_start();
        }
        let first = rest.chars().next()?;
        if let Some((text, behind)) = quoted(rest) {
            rest = behind;
            return Some(format!("'{text}"));
        }
        let word = match "{}[]():,".contains(first) {
            true => &rest[..1],
            // An unterminated quote.
            false if "'\"".contains(first) => rest,
            false => rest.split(|c: char| c.is_whitespace() || "{}[]():,'\"#".contains(c)).next()?,
        };
        rest = &rest[word.len()..];
        Some(word.to_string())
    })
}

/// Reads the string literal at the beginning of `code`; also returns what follows it.
fn quoted(code: &str) -> Option<(String, &str)> {
    let body = code.trim_start_matches(['u', 'U', 'b', 'B', 'r', 'R']);
    let raw = code[..code.len() - body.len()].contains(['r', 'R']);
    let quote = body.get(..1).filter(|quote| ["'", "\""].contains(quote))?;
    let end = if body.starts_with(&quote.repeat(3)) { quote.repeat(3) } else { quote.to_string() };
    let (mut rest, mut text) = (&body[end.len()..], String::new());
    while !rest.starts_with(&end) {
        let first = rest.chars().next()?;
        rest = &rest[first.len_utf8()..];
        if raw || first != '\\' {
            text.push(first);
            continue;
        }
        let escape = rest.chars().next()?;
        rest = &rest[escape.len_utf8()..];
        let digits = [('x', 2), ('u', 4), ('U', 8)].iter().find(|(kind, _)| *kind == escape);
        match (escape, digits) {
            (_, Some((_, digits))) => {
                text.push(char::from_u32(u32::from_str_radix(rest.get(..*digits)?, 16).ok()?)?);
                rest = &rest[*digits..];
            }
            ('n', _) => text.push('\n'),
            ('t', _) => text.push('\t'),
            ('\n', _) => {}
            (other, _) => text.push(other),
        }
    }
    Some((text, &rest[end.len()..]))
}

/// Converts the fault of an array to one of the file.
fn of(name: &str, fault: Fault) -> Fault {
    fault.with(|| match name {
        "" => "holds an array that ".into(),
        name => format!("holds {}, which ", shown(name)),
    })
}

/// Writes an `.npz` of float64 arrays like `numpy.savez`. The same arrays give the same bytes.
pub fn write(arrays: &[(&str, &Array)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let mut bytes = begin("<f8", &array.shape);
        bytes.extend(array.data.iter().flat_map(|x| x.to_le_bytes()));
        zip.start_file(format!("{name}.npy"), uncompressed()).expect("a new name");
        zip.write_all(&bytes).expect("writing to memory");
    }
    zip.finish().expect("writing to memory").into_inner()
}

/// Makes the header of an array in C order, padded so that the numbers begin at a multiple of 64
/// bytes.
pub fn begin(dtype: &str, shape: &[usize]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if sides.len() == 1 { "," } else { "" };
    let dictionary =
        format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}{comma}), }}", sides.join(", "));
    let length = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{dictionary:width$}\n", width = length - 1).bytes());
    bytes
}
