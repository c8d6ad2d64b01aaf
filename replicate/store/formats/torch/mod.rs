//! Reads checkpoints written by Python without Python: EDM snapshots, torch zips, legacy torch
//! streams and safetensors, into named tensors.
//!
//! ```text
//! bytes -> pickle    the stack machine: an inert graph, allow-listed names only
//!       -> torch     zip, legacy stream, storages; a tensor as a view of a storage
//!       -> names     the graph's tensors, each by its path
//!       -> edm       the averaged network, under the names of unet.rs
//! ```
//!
//! Nothing in a file is ever executed, and the cost of a file is bounded: at most [`MAX_OPCODES`]
//! opcodes in all its pickles together, and at most [`COPIES`] times its own length in tensors and
//! names.

mod allowed;
mod edm;
mod machine;
mod names;
mod opcodes;
pub(crate) mod pickle;
mod stream;
mod tensor;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use self::names::Named;
pub use self::tensor::{Dtype, Tensor};
use super::{foreign, safetensors};
use crate::error::{Error, Result, shown, shown_path};
use crate::store::Array;

/// Most opcodes in all pickles of a file. A snapshot with the tensors of EDM's CIFAR-10 network
/// takes 66,000.
pub const MAX_OPCODES: u32 = 1 << 18;

/// Most bytes of tensors and names for each byte of the file. torch writes a storage once, even if
/// tied weights have two names; a file that needs more is malicious.
pub const COPIES: usize = 4;

/// The container of a file's pickles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A plain pickle of this protocol, such as EDM's snapshots.
    Pickle(u8),
    TorchZip,
    TorchLegacy,
    Safetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Format::Pickle(protocol) => write!(f, "pickle of protocol {protocol}"),
            Format::TorchZip => write!(f, "torch zip"),
            Format::TorchLegacy => write!(f, "legacy torch stream"),
            Format::Safetensors => write!(f, "safetensors"),
        }
    }
}

/// Every tensor of a file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Path of the file, for messages.
    pub path: PathBuf,
    pub format: Format,
    /// Tensors by full name, in the file's order.
    pub tensors: Vec<(String, Tensor)>,
    /// Tensors of kinds that are not read, each with its kind.
    pub unread: Vec<(String, String)>,
}

/// Reads every tensor of a file, whose format is recognised by content.
///
/// # Errors
/// `Missing` if there is no such file; `Malformed` if it is not a complete checkpoint of tensors.
pub fn read(path: &Path) -> Result<Checkpoint> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => {
            let remedy = "name a .pkl, .pth or .safetensors file";
            return Err(Error::malformed(path, "a checkpoint", "something that is not a file", remedy));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::missing(path, "a checkpoint to read", "check the path"));
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    parse(path, &std::fs::read(path).map_err(Error::io("read", path))?)
}

/// Reads a checkpoint from memory like [`read`]; `path` is for messages.
///
/// # Errors
/// See [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    if is_safetensors(bytes) {
        return of_safetensors(path, bytes);
    }
    let other = foreign(bytes).filter(|_| !bytes.starts_with(stream::ZIP_MAGIC));
    let other = match other {
        Some(what) if what.starts_with("compressed") => Some((what, "unpack it")),
        Some(what) => Some((what, "name a file of tensors, or fetch or save it again")),
        None if bytes.is_empty() => Some(("an empty file", "fetch or save it again")),
        None => None,
    };
    if let Some((found, remedy)) = other {
        let expected = "an EDM snapshot (.pkl), a file of PyTorch (.pth) or safetensors";
        return Err(Error::malformed(path, expected, found, remedy));
    }
    match parse_bytes(bytes) {
        Ok((format, Named { tensors, unread })) => {
            Ok(Checkpoint { path: path.to_path_buf(), format, tensors, unread })
        }
        Err(Fault::Broken(found) | Fault::Unread(found)) => Err(Error::malformed(
            path,
            "a whole EDM snapshot (.pkl), torch zip or legacy torch stream (.pth)",
            found,
            "fetch or save it again",
        )),
        Err(Fault::Module) => Err(Error::malformed(
            path,
            "a file of tensors, as torch.save writes state dicts",
            "a compiled module (TorchScript), which is a program",
            "save its state_dict() with torch.save; of Inception's weights, `replicate fetch inception` gets the \
             file that is read (pt_inception-2015-12-05-6726825d.pth)",
        )),
        Err(Fault::Refused(found)) => Err(Error::malformed(
            path,
            "tensors in dictionaries, lists and EDM's modules, and nothing else",
            format!("{found}, which is not allowed"),
            "nothing in it was executed; have whoever made it save the state dict alone",
        )),
    }
}

/// Reads a plain pickle of any protocol that is not a checkpoint. The error says what is wrong with
/// it.
pub(crate) fn unpickle(bytes: &[u8]) -> std::result::Result<pickle::Pickle<'_>, String> {
    // 50,000 labels of two kinds may be NumPy objects of eight opcodes each.
    let mut budget = Budget { opcodes: 8 * MAX_OPCODES, ..Budget::of(bytes) };
    let read = pickle::Pickle::read_any(bytes, &mut budget);
    read.and_then(|pickle| whole(pickle, bytes)).map_err(|fault| match fault {
        Fault::Refused(found) => format!("{found}, which is not allowed and was not executed"),
        Fault::Broken(found) | Fault::Unread(found) => found,
        Fault::Module => unreachable!("no zip was read"),
    })
}

/// Reads the tensors of a safetensors file, in the order of their bytes.
fn of_safetensors(path: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    let (stored, _) = safetensors::views(bytes).map_err(|found| {
        Error::malformed(path, "a whole safetensors file", found, "fetch or save it again")
    })?;
    let (mut tensors, mut unread) = (Vec::new(), Vec::new());
    for safetensors::Stored { name, dtype, shape, bytes } in stored {
        match Dtype::of_safetensors(&dtype) {
            Some(dtype) => tensors.push((name, Tensor { dtype, shape, data: bytes.to_vec() })),
            None => unread.push((name, format!("a tensor of the type {}", shown(&dtype)))),
        }
    }
    Ok(Checkpoint { path: path.to_path_buf(), format: Format::Safetensors, tensors, unread })
}

/// Recognises safetensors, a length in 8 bytes and then JSON, which a pickle reader could mistake
/// for a pickle.
fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(5..9) == Some(b"\0\0\0{")
}

fn parse_bytes(bytes: &[u8]) -> std::result::Result<(Format, Named), Fault> {
    let mut budget = Budget::of(bytes);
    let (format, pickle, storages) = if bytes.starts_with(stream::ZIP_MAGIC) {
        let (data, storages) = stream::zip(bytes)?;
        (Format::TorchZip, whole(pickle::Pickle::read(data, 0, &mut budget)?, data)?, storages)
    } else {
        let first = pickle::Pickle::read(bytes, 0, &mut budget)?;
        if stream::is_legacy_magic(&first) {
            let (pickle, storages) = stream::legacy(bytes, first.end, &mut budget)?;
            (Format::TorchLegacy, pickle, storages)
        } else {
            (Format::Pickle(first.protocol), whole(first, bytes)?, stream::Storages::new())
        }
    };
    Ok((format, names::named_tensors(&pickle, &storages, &mut budget)?))
}

/// Checks that no more than padding follows the pickle. Python reads no further, so what else
/// follows would be lost without a word.
fn whole<'a>(pickle: pickle::Pickle<'a>, bytes: &[u8]) -> std::result::Result<pickle::Pickle<'a>, Fault> {
    match &bytes[pickle.end..] {
        rest if is_padding(rest) => Ok(pickle),
        rest => Err(Fault::broken(format!("{} bytes behind the pickle", rest.len()))),
    }
}

/// True for line ends, blanks and zeros, as editors and copying tools add them.
fn is_padding(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

impl Checkpoint {
    /// Converts every tensor to float32, by name. float64 is rounded; other types are exact.
    ///
    /// # Errors
    /// `Malformed` if float32 cannot represent an integer, if a tensor has the name that
    /// safetensors reserves, or if there is one of a kind that is not read.
    pub fn arrays(self) -> Result<BTreeMap<String, Array>> {
        let path = self.path;
        if let Some((name, kind)) = self.unread.first() {
            return Err(Error::malformed(
                path,
                "tensors of floating-point numbers or integers",
                format!("{kind}: {}", quote(name)),
                "save the file without that tensor, or convert it where the file is made",
            ));
        }
        let array = |(name, tensor): (String, Tensor)| match tensor.to_array() {
            Ok(_) if name == "__metadata__" => Err(Error::malformed(
                &path,
                "names that safetensors allows",
                quote(&name),
                "rename that tensor where the file is made",
            )),
            Ok(array) => Ok((name, array)),
            Err(large) => Err(Error::malformed(
                &path,
                "integers of at most 24 bits",
                format!("{large} in {} ({})", quote(&name), tensor.dtype),
                "save that tensor as a floating-point one",
            )),
        };
        self.tensors.into_iter().map(array).collect()
    }

    /// Describes the file: format, then names, types, shapes and statistics, one line per tensor.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let bytes: usize = self.tensors.iter().map(|(_, tensor)| tensor.data.len()).sum();
        let values: usize =
            self.tensors.iter().map(|(_, tensor)| tensor.data.len() / tensor.dtype.size()).sum();
        let count = self.tensors.len();
        let path = shown_path(&self.path);
        _ = writeln!(text, "{path}: {}, {count} tensors, {values} values, {bytes} bytes", self.format);
        let names = self.tensors.iter().map(|(name, _)| name);
        let names = names.chain(self.unread.iter().map(|(name, _)| name));
        let name_width = names.map(String::len).max().unwrap_or(0).max(4);
        _ = writeln!(
            text,
            "{:name_width$}  {:4}  {:18} {:>13} {:>13} {:>13}",
            "name", "type", "shape", "min", "max", "mean"
        );
        for (name, tensor) in &self.tensors {
            let shape = format!("{:?}", tensor.shape);
            _ = write!(
                text,
                "{:name_width$}  {:4}  {shape:18}",
                name.escape_debug().to_string(),
                tensor.dtype
            );
            let (mut n, mut sum, mut min, mut max) = (0u64, 0.0, f64::INFINITY, f64::NEG_INFINITY);
            for value in tensor.values() {
                (n, sum, min, max) = (n + 1, sum + value, min.min(value), max.max(value));
            }
            _ = match n {
                0 => writeln!(text, " {:>13} {:>13} {:>13}", "-", "-", "-"),
                _ => writeln!(text, " {min:>13.6e} {max:>13.6e} {:>13.6e}", sum / n as f64),
            };
        }
        for (name, kind) in &self.unread {
            _ = writeln!(text, "{:name_width$}  -     not read: {kind}", name.escape_debug().to_string());
        }
        text
    }
}

/// Most names of a kind that an error lists.
const LISTED: usize = 20;

/// Checks for strict loading that `arrays` has exactly the names in `shapes`, with these shapes.
///
/// # Errors
/// `Malformed`, with `path`, and everything that is missing, extra or mis-shaped.
pub fn require(
    path: &Path,
    arrays: &BTreeMap<String, Array>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<()> {
    let missing = shapes.keys().filter(|name| !arrays.contains_key(*name)).cloned();
    let extra = arrays.keys().filter(|name| !shapes.contains_key(*name)).map(|name| shown(name));
    let misshaped = arrays.iter().filter_map(|(name, array)| {
        let shape = shapes.get(name).filter(|shape| **shape != array.shape)?;
        Some(format!("{} {:?} instead of {shape:?}", shown(name), array.shape))
    });
    let parts: Vec<String> = [
        ("missing", missing.collect::<Vec<_>>()),
        ("extra", extra.collect()),
        ("mis-shaped", misshaped.collect()),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(kind, names)| {
        let more = names.len().saturating_sub(LISTED);
        let listed = names[..names.len() - more].join(", ");
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        format!("{} {kind}: {listed}{more}", names.len())
    })
    .collect();
    if parts.is_empty() {
        return Ok(());
    }
    Err(Error::malformed(
        path,
        format!("exactly the {} tensors of the network", shapes.len()),
        parts.join("; "),
        "use the checkpoint of that network (`replicate inspect` lists what a file has)",
    ))
}

/// Reason why a checkpoint cannot be read.
#[derive(Debug)]
enum Fault {
    /// It is not a checkpoint, or it is damaged.
    Broken(String),
    /// It needs something that this reader refuses on purpose.
    Refused(String),
    /// It is a compiled module.
    Module,
    /// A tensor of a kind that is not read.
    Unread(String),
}

impl Fault {
    fn broken(found: impl Into<String>) -> Fault {
        Fault::Broken(found.into())
    }

    fn refused(found: impl Into<String>) -> Fault {
        Fault::Refused(found.into())
    }

    fn map(self, text: impl FnOnce(String) -> String) -> Fault {
        match self {
            Fault::Broken(found) => Fault::Broken(text(found)),
            Fault::Refused(found) => Fault::Refused(text(found)),
            fault => fault,
        }
    }

    fn at_byte(self, position: usize) -> Fault {
        self.map(|found| format!("{found} (opcode at byte {position})"))
    }

    fn within(self, place: &str) -> Fault {
        self.map(|found| format!("{found}, in {place}"))
    }
}

/// Remaining budget for reading a file.
struct Budget {
    opcodes: u32,
    bytes: usize,
}

impl Budget {
    /// Makes the budget of one file.
    fn of(bytes: &[u8]) -> Budget {
        Budget { opcodes: MAX_OPCODES, bytes: bytes.len().saturating_mul(COPIES) }
    }

    fn opcode(&mut self) -> std::result::Result<(), Fault> {
        match self.opcodes.checked_sub(1) {
            Some(left) => self.opcodes = left,
            None => return Err(Fault::refused(format!("more than {MAX_OPCODES} opcodes"))),
        }
        Ok(())
    }

    fn bytes(&mut self, wanted: usize) -> std::result::Result<(), Fault> {
        match self.bytes.checked_sub(wanted) {
            Some(left) => self.bytes = left,
            None => {
                return Err(Fault::refused(format!("tensors of more than {COPIES} times the file's length")));
            }
        }
        Ok(())
    }
}

/// Quotes a text of the file for a message: escaped and cut.
fn quote(text: &str) -> String {
    const SHOWN: usize = 60;
    let shown: String = text.chars().take(SHOWN).collect();
    format!("{shown:?}{}", if shown.len() < text.len() { "…" } else { "" })
}
