//! Containers that `torch.save` puts around a pickle: a zip with the storages, or a legacy stream
//! with the storages one after the other. Also tensors, which are views of storages.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use super::pickle::{Constructor, Node, Pickle, Value};
use super::{Budget, Dtype, Fault, Tensor, is_padding, quote};
use crate::store::formats::unzip::{self, Entry};
use crate::store::formats::{is_contiguous, strided};

/// Storages outside a pickle, by key.
pub(super) type Storages<'a> = HashMap<Cow<'a, str>, &'a [u8]>;

/// True if a value is a tensor or a parameter.
pub(super) fn is_tensor(pickle: &Pickle, value: Value) -> bool {
    use Constructor::*;
    call(pickle, value).is_some_and(|(constructor, _)| {
        matches!(constructor, RebuildTensor | RebuildTyped | RebuildParameter | RebuildFromType | OtherTensor)
    })
}

/// Returns constructor and arguments of an object.
pub(super) fn call<'p, 'a>(
    pickle: &'p Pickle<'a>,
    value: Value<'a>,
) -> Option<(Constructor, &'p [Value<'a>])> {
    let Value::Node(id) = value else { return None };
    match pickle.node(id) {
        Node::Object { constructor, arguments, .. } => Some((*constructor, pickle.tuple(*arguments)?)),
        _ => None,
    }
}

/// Reads the tensor described by a call of `_rebuild_tensor_v2` and similar functions. Unwraps
/// parameters and tensors with attributes, and ignores the attributes.
pub(super) fn tensor(
    pickle: &Pickle,
    storages: &Storages,
    value: Value,
    budget: &mut Budget,
) -> Result<Tensor, Fault> {
    let mut inner = call(pickle, value);
    for _ in 0..MAX_LAYERS {
        inner = match inner {
            Some((Constructor::RebuildParameter, [data, ..])) => call(pickle, *data),
            Some((Constructor::RebuildFromType, [Value::Constructor(function), _, arguments, ..])) => {
                pickle.tuple(*arguments).map(|arguments| (*function, arguments))
            }
            _ => break,
        };
    }
    let (typed, [storage, offset, size, stride, ..]) = (match inner {
        Some((Constructor::RebuildTensor, arguments)) => {
            let metadata = arguments.get(6).and_then(|metadata| pickle.get(*metadata, "neg"));
            if let Some(Value::Bool(true)) = metadata {
                return Err(Fault::Unread(
                    "a view with the opposite sign (resolve_neg() makes it plain)".into(),
                ));
            }
            (None, arguments)
        }
        Some((Constructor::RebuildTyped, arguments @ [_, _, _, _, _, _, dtype, ..])) => match dtype {
            Value::Constructor(Constructor::Dtype(dtype)) => (Some(*dtype), arguments),
            _ => return Err(Fault::Unread(OTHER_NUMBERS.into())),
        },
        Some((Constructor::OtherTensor, _)) => {
            return Err(Fault::Unread("a sparse, quantised or nested tensor, or one without numbers".into()));
        }
        _ => (None, &[][..]),
    }) else {
        return Err(Fault::broken("a tensor without storage, offset, size and stride"));
    };
    let view =
        View { offset: number(*offset)?, shape: numbers(pickle, *size)?, strides: numbers(pickle, *stride)? };
    match call(pickle, *storage) {
        Some((Constructor::LoadFromBytes, [payload])) => {
            let payload = pickle.bytes(*payload, budget.bytes);
            let payload = payload.ok_or_else(|| Fault::broken("a storage that is not bytes"))?;
            budget.bytes(payload.len())?;
            let stream = legacy_storage(&payload, budget)?;
            view.gather(stream.0, stream.1, budget)
        }
        _ => {
            let Reference { dtype, size, key, count } = reference(pickle, *storage)?;
            let Some(bytes) = storages.get(key) else {
                return Err(Fault::broken(format!("no storage {}, which a tensor needs", quote(key))));
            };
            if count.checked_mul(size) != Some(bytes.len()) {
                return Err(Fault::broken(format!(
                    "{} bytes in the storage {}, which is to have {count} of {size}",
                    bytes.len(),
                    quote(key)
                )));
            }
            let dtype = typed.or(dtype).ok_or_else(|| Fault::Unread(OTHER_NUMBERS.into()))?;
            view.gather(dtype, bytes, budget)
        }
    }
}

const OTHER_NUMBERS: &str = "a tensor of another type, such as complex or quantised numbers";

/// Most wrappers around a tensor; a parameter around a tensor with attributes has two.
const MAX_LAYERS: usize = 4;

/// A tensor's view of its storage, in elements.
struct View {
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Copies the elements in row-major order. A view may show an element more than once (an
    /// expanded tensor), within the budget of the file.
    fn gather(&self, dtype: Dtype, storage: &[u8], budget: &mut Budget) -> Result<Tensor, Fault> {
        let size = dtype.size();
        let available = storage.len() / size;
        let count = self.count().filter(|count| self.fits(*count, available));
        let Some(count) = count else {
            return Err(Fault::broken(format!(
                "a tensor of shape {:?}, strides {:?} and offset {} in a storage of {available} elements",
                self.shape, self.strides, self.offset
            )));
        };
        budget.bytes(count.saturating_mul(size))?;
        let data = match is_contiguous(&self.shape, &self.strides) {
            true => storage[self.offset * size..][..count * size].to_vec(),
            false => strided(&storage[self.offset * size..], &self.shape, &self.strides, size),
        };
        Ok(Tensor { dtype, shape: self.shape.clone(), data })
    }

    fn count(&self) -> Option<usize> {
        if self.strides.len() != self.shape.len() {
            return None;
        }
        self.shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n))
    }

    /// True if the last element lies within the storage.
    fn fits(&self, count: usize, available: usize) -> bool {
        if count == 0 {
            return self.offset <= available;
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (n, stride)| at.checked_add((n - 1).checked_mul(*stride)?));
        last.is_some_and(|last| last < available)
    }
}

/// Most dimensions. torch's own limit is 64; no network here has more than 4.
const MAX_DIMENSIONS: usize = 16;

fn number(value: Value) -> Result<usize, Fault> {
    let Value::Int(n) = value else {
        return Err(Fault::broken("no number for a size, stride or offset"));
    };
    usize::try_from(n).map_err(|_| Fault::broken(format!("{n} for a size, stride or offset")))
}

fn numbers(pickle: &Pickle, value: Value) -> Result<Vec<usize>, Fault> {
    match pickle.tuple(value) {
        Some(items) if items.len() <= MAX_DIMENSIONS => items.iter().map(|item| number(*item)).collect(),
        Some(items) => Err(Fault::broken(format!("a tensor of {} dimensions", items.len()))),
        None => Err(Fault::broken("a shape that is not a tuple")),
    }
}

/// A storage as a persistent id describes it: ('storage', type, key, location, number of elements),
/// and None for the view in older streams.
struct Reference<'a> {
    /// `None` for elements that are not read.
    dtype: Option<Dtype>,
    /// Bytes of an element.
    size: usize,
    key: &'a str,
    count: usize,
}

fn reference<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Result<Reference<'a>, Fault> {
    let id = match value {
        Value::Node(id) => match pickle.node(id) {
            Node::Outside(id) => pickle.tuple(*id),
            _ => None,
        },
        _ => None,
    };
    let unknown = || Fault::broken("a storage in a form that torch.save does not write");
    let Some(
        [Value::Str("storage"), Value::Constructor(kind), Value::Str(key), _, count]
        | [Value::Str("storage"), Value::Constructor(kind), Value::Str(key), _, count, Value::None],
    ) = id
    else {
        return Err(unknown());
    };
    let (dtype, size) = match kind {
        Constructor::Storage(dtype) => (Some(*dtype), dtype.size()),
        Constructor::OtherStorage(size) => (None, *size as usize),
        _ => return Err(unknown()),
    };
    Ok(Reference { dtype, size, key, count: number(*count)? })
}

/// The first pickle of a legacy stream: 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: i64 = 1001;

/// True if a pickle is the first one of a legacy stream.
pub(super) fn is_legacy_magic(pickle: &Pickle) -> bool {
    matches!(pickle.root, Value::Long(bytes) if bytes == MAGIC)
}

/// Reads a legacy stream after its magic number, from byte `at`: protocol version, system, object,
/// keys of the storages, then each storage's number of elements and little-endian bytes.
pub(super) fn legacy<'a>(
    bytes: &'a [u8],
    at: usize,
    budget: &mut Budget,
) -> Result<(Pickle<'a>, Storages<'a>), Fault> {
    let version = Pickle::read(bytes, at, budget)?;
    if !matches!(version.root, Value::Int(LEGACY_PROTOCOL)) {
        return Err(Fault::broken(format!(
            "a legacy torch stream of a version other than {LEGACY_PROTOCOL}"
        )));
    }
    let system = Pickle::read(bytes, version.end, budget)?;
    if !matches!(system.get(system.root, "little_endian"), Some(Value::Bool(true))) {
        return Err(Fault::broken("a legacy torch stream that is not little-endian"));
    }
    let object = Pickle::read(bytes, system.end, budget)?;
    let mut references = HashMap::new();
    for id in 0..object.nodes().len() {
        if let Node::Outside(_) = object.nodes()[id] {
            let Reference { dtype, size, key, count } = reference(&object, Value::Node(id as u32))?;
            let known = references.insert(key, (dtype, size, count));
            if known.is_some_and(|known| known != (dtype, size, count)) {
                return Err(Fault::broken(format!("two descriptions of the storage {}", quote(key))));
            }
        }
    }

    let keys = Pickle::read(bytes, object.end, budget)?;
    let Value::Node(list) = keys.root else { return Err(Fault::broken("no list of storages")) };
    let Node::List(list) = keys.node(list) else { return Err(Fault::broken("no list of storages")) };
    let mut rest = &bytes[keys.end..];
    let mut storages = Storages::new();
    for key in list {
        let Value::Str(key) = *key else {
            return Err(Fault::broken("a storage's key that is not text"));
        };
        let Some((_, size, count)) = references.remove(key) else {
            return Err(Fault::broken(format!("the storage {}, which no tensor has", quote(key))));
        };
        let (stored, data) = rest.split_first_chunk().ok_or_else(|| truncated(key))?;
        if u64::from_le_bytes(*stored) != count as u64 {
            return Err(Fault::broken(format!(
                "{} elements in the storage {}, which is to have {count}",
                u64::from_le_bytes(*stored),
                quote(key)
            )));
        }
        let split = count.checked_mul(size).and_then(|length| data.split_at_checked(length));
        let (storage, behind) = split.ok_or_else(|| truncated(key))?;
        storages.insert(Cow::Borrowed(key), storage);
        rest = behind;
    }
    if !is_padding(rest) {
        return Err(Fault::broken(format!("{} bytes behind the last storage", rest.len())));
    }
    Ok((object, storages))
}

fn truncated(key: &str) -> Fault {
    Fault::broken(format!("the end of the file within the storage {}", quote(key)))
}

/// Reads a legacy stream whose object is a storage.
fn legacy_storage<'a>(bytes: &'a [u8], budget: &mut Budget) -> Result<(Dtype, &'a [u8]), Fault> {
    let magic = Pickle::read(bytes, 0, budget)?;
    if !is_legacy_magic(&magic) {
        return Err(Fault::broken("a storage that is not a legacy torch stream"));
    }
    let (object, storages) = legacy(bytes, magic.end, budget)?;
    let Reference { dtype, key, .. } = reference(&object, object.root)?;
    match (storages.get(key), dtype) {
        (Some(storage), Some(dtype)) => Ok((dtype, storage)),
        (Some(_), None) => Err(Fault::Unread(OTHER_NUMBERS.into())),
        (None, _) => Err(Fault::broken(format!("no storage {} in its own stream", quote(key)))),
    }
}

pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Returns `data.pkl` and the storages of a torch zip. torch stores them without compression, so
/// they are borrowed from the file. Checksums are verified.
pub(super) fn zip<'a>(bytes: &'a [u8]) -> Result<(&'a [u8], Storages<'a>), Fault> {
    let entries = unzip::entries(Cursor::new(bytes));
    let entries = entries.map_err(|fault| Fault::broken(format!("a file that {fault}")))?;
    let names = || entries.iter().map(|entry| entry.name.as_str());
    // With or without a directory around them.
    let is_code = |name: String| name.ends_with("/constants.pkl") || name.contains("/code/__torch__");
    if names().any(|name| is_code(format!("/{name}"))) {
        return Err(Fault::Module);
    }
    let Some(prefix) = names().filter_map(|name| name.strip_suffix("data.pkl")).min() else {
        return Err(Fault::broken("a zip archive without data.pkl, which torch.save writes"));
    };
    let stored = |entry: &Entry| match entry.stored(bytes) {
        _ if entry.unread().is_some() => {
            let how = entry.unread().unwrap_or_default();
            Err(Fault::broken(format!("{} {how}, which torch.save does not do", quote(&entry.name))))
        }
        Ok(Some(content)) => Ok((entry.name.clone(), content)),
        Ok(None) => {
            Err(Fault::broken(format!("{} compressed, which torch.save does not do", quote(&entry.name))))
        }
        Err(error) => {
            Err(Fault::broken(format!("a damaged zip archive ({error}), at {}", quote(&entry.name))))
        }
    };
    let contents: BTreeMap<String, &[u8]> = entries.iter().map(stored).collect::<Result<_, _>>()?;
    if contents.get(&format!("{prefix}byteorder")).is_some_and(|order| *order != b"little") {
        return Err(Fault::broken("a torch zip that is not little-endian"));
    }
    let key = |name: &str| name.strip_prefix(prefix)?.strip_prefix("data/").map(|key| Cow::Owned(key.into()));
    let storages = contents.iter().filter_map(|(name, data)| Some((key(name)?, *data))).collect();
    Ok((contents[&format!("{prefix}data.pkl")], storages))
}
