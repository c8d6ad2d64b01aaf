//! What `torch.save` wrote before it wrote zips: a stream of pickles with the
//! storages behind them.

use super::pickle::{Global, Object, int, named, pickle, text};

pub const FLOAT: Global = ("torch", "FloatStorage");
pub const LONG: Global = ("torch", "LongStorage");

/// The elements that tensors are views of.
pub struct Storage {
    pub kind: Global,
    pub count: usize,
    /// Little-endian.
    pub bytes: Vec<u8>,
}

impl Storage {
    pub fn of_floats(values: impl Iterator<Item = f32>) -> Storage {
        let mut bytes = Vec::with_capacity(4 * values.size_hint().0);
        values.for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        Storage { kind: FLOAT, count: bytes.len() / 4, bytes }
    }

    /// How a pickle names storage `index` of a stream.
    pub fn reference(&self, index: usize) -> Object {
        let id = [text("storage"), Object::Global(self.kind), text(&key(index)), text("cpu")];
        let id = id.into_iter().chain([int(self.count), Object::None]);
        Object::Outside(Box::new(Object::Tuple(id.collect())))
    }
}

/// torch takes the storage's address for a key.
fn key(index: usize) -> String {
    (94_000_000_000_000 + 64 * index as u64).to_string()
}

/// The stream of an object that refers to these storages by their indices.
pub fn legacy_stream(object: &Object, storages: &[Storage]) -> Vec<u8> {
    const PROTOCOL: usize = 1001;
    // 0x1950a86a20f9469cfc6c, which is longer than an `Object::Int`.
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let sizes = [("short", 2), ("int", 4), ("long", 4)].map(|(name, size)| (name, Object::Int(size)));
    let system = Object::Dict(named([
        ("protocol_version", int(PROTOCOL)),
        ("little_endian", Object::Bool(true)),
        ("type_sizes", Object::Dict(named(sizes))),
    ]));
    let keys = Object::List((0..storages.len()).map(|index| text(&key(index))).collect());
    let mut stream = magic.to_vec();
    for part in [&int(PROTOCOL), &system, object, &keys] {
        stream.extend(pickle(part, 2));
    }
    stream.reserve(storages.iter().map(|storage| 8 + storage.bytes.len()).sum());
    for storage in storages {
        stream.extend((storage.count as u64).to_le_bytes());
        stream.extend(&storage.bytes);
    }
    stream
}

/// A view of a whole storage; `strides` in elements.
pub fn tensor(storage: Object, shape: &[usize], strides: &[usize]) -> Object {
    let tuple = |numbers: &[usize]| Object::Tuple(numbers.iter().map(|n| int(*n)).collect());
    let arguments =
        [storage, int(0), tuple(shape), tuple(strides), Object::Bool(false), ordered(vec![])].into();
    Object::Call(("torch._utils", "_rebuild_tensor_v2"), arguments)
}

/// Strides of a tensor in row-major order.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|first| shape[first..].iter().product()).collect()
}

pub fn ordered(entries: Vec<(String, Object)>) -> Object {
    let empty = Object::Call(("collections", "OrderedDict"), vec![]);
    Object::Filled(Box::new(empty), entries)
}
