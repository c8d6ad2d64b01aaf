//! The authors' python layout: a dictionary, pickled by Python 2 or, where somebody
//! has written it again, by 3, of `data`, a NumPy array of n x 3072 bytes, and `labels`
//! (CIFAR-10) or `fine_labels` (CIFAR-100), n numbers in a list, a tuple or an array.
//! The pickle is read as data, see [`crate::store::formats::torch`]: nothing in it is
//! executed.

use std::borrow::Cow;

use super::{Fault, Gathered, IMAGE_LEN, Set, listed, shown};
use crate::store::formats::npz::row_major;
use crate::store::formats::torch::pickle::{Constructor, Node, Pickle, Value};
use crate::store::formats::torch::unpickle;

/// Bytes of a number, and more than those of a key.
const SHORT: usize = 64;

/// Every image of a file.
pub(super) fn read(bytes: &[u8], gathered: &mut Gathered) -> Result<(), Fault> {
    let pickle = unpickle(bytes).map_err(|found| Fault::new("a batch as the authors pickled it", found))?;
    let labels_key = match gathered.set {
        Set::Cifar10 => "labels",
        Set::Cifar100 => "fine_labels",
    };
    let labels = numbers(&pickle, get(&pickle, labels_key)?).ok_or_else(|| {
        Fault::new(format!("a list of whole numbers under {labels_key}"), "something else there")
    })?;
    let images = get(&pickle, "data").map(|value| images(&pickle, value))??;
    let count = images.len() / IMAGE_LEN;
    if count != labels.len() || labels.is_empty() {
        let found = format!("{} labels and {count} images", labels.len());
        return Err(Fault::new("as many labels as images", found));
    }
    for (i, (label, image)) in labels.iter().zip(images.as_chunks().0).enumerate() {
        gathered.push(*label, image).map_err(|fault| fault.within(format!("image {i}")))?;
    }
    Ok(())
}

/// What the dictionary has under a key, which Python 3 may have written as bytes.
fn get<'a>(pickle: &Pickle<'a>, key: &str) -> Result<Value<'a>, Fault> {
    let Some(entries) = pickle.entries(pickle.root) else {
        return Err(Fault::new("a dictionary", "something else"));
    };
    let is = |k: Value<'a>| pickle.bytes(k, SHORT).is_some_and(|k| *k == *key.as_bytes());
    // Of two equal keys Python keeps the last value.
    let found = entries.iter().rev().find(|(k, _)| is(*k));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let keys = entries.iter().filter_map(|(k, _)| pickle.bytes(*k, SHORT));
        let keys: Vec<String> = keys.take(100).map(|key| shown(&String::from_utf8_lossy(&key))).collect();
        Fault::new(format!("a dictionary with {key}"), format!("one with {}", listed(&keys)))
    })
}

/// Whole numbers in any of the forms of Python and NumPy.
fn numbers<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Option<Vec<i64>> {
    let Value::Node(id) = value else { return None };
    let number = |item: &Value<'a>| match *item {
        Value::Int(number) => Some(number),
        item => match object(pickle, item)? {
            (Constructor::NumpyScalar, arguments, _) => match *pickle.tuple(arguments)? {
                [dtype, bytes] => {
                    let (kind, big_endian) = dtype_of(pickle, dtype)?;
                    integer(&kind, big_endian, &pickle.bytes(bytes, SHORT)?)
                }
                _ => None,
            },
            _ => None,
        },
    };
    match pickle.node(id) {
        Node::List(items) | Node::Tuple(items) => items.iter().map(number).collect(),
        _ => {
            let array = Array::of(pickle, value)?;
            let size: usize = array.kind.get(1..)?.parse().ok().filter(|size| *size > 0)?;
            // One axis, or others of length one.
            let along = array.shape.iter().filter(|side| **side != 1).count() <= 1;
            let bytes = array.shape.iter().try_fold(size, |bytes, side| bytes.checked_mul(*side))?;
            let whole = along && bytes == array.data.len();
            let numbers = array.data.chunks_exact(size);
            numbers.map(|bytes| integer(&array.kind, array.big_endian, bytes).filter(|_| whole)).collect()
        }
    }
}

/// An integer of NumPy's type `kind`: `i8`, `u1` and the like.
fn integer(kind: &str, big_endian: bool, bytes: &[u8]) -> Option<i64> {
    let (signed, size) = (kind.starts_with('i'), kind.get(1..)?.parse::<usize>().ok()?);
    if !(signed || kind.starts_with('u')) || bytes.len() != size || !(1..=8).contains(&size) {
        return None;
    }
    let push = |number: u64, byte: &u8| number << 8 | *byte as u64;
    let number = match big_endian {
        true => bytes.iter().fold(0, push),
        false => bytes.iter().rev().fold(0, push),
    };
    let unused = 64 - 8 * size;
    if signed { Some((number << unused) as i64 >> unused) } else { i64::try_from(number).ok() }
}

/// An array of NumPy's.
struct Array<'p> {
    /// `u1`, `i8` and the like.
    kind: String,
    big_endian: bool,
    shape: Vec<usize>,
    /// Columns are contiguous (Fortran's order).
    by_column: bool,
    data: Cow<'p, [u8]>,
}

impl<'p> Array<'p> {
    /// From `_reconstruct(ndarray, (0,), 'b')` with the state (1, shape, dtype, whether
    /// in Fortran's order, bytes), or from `_frombuffer(bytes, dtype, shape, order)`.
    fn of<'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Option<Array<'p>> {
        let (shape, dtype, by_column, data) = match object(pickle, value)? {
            (Constructor::NumpyArray, _, state) => match *pickle.tuple(state)? {
                [_, shape, dtype, Value::Bool(by_column), data] => (shape, dtype, by_column, data),
                _ => return None,
            },
            (Constructor::NumpyFromBuffer, arguments, _) => match *pickle.tuple(arguments)? {
                [data, dtype, shape, order] => (shape, dtype, pickle.text(order)? == "F", data),
                _ => return None,
            },
            _ => return None,
        };
        let side = |side: &Value| match side {
            Value::Int(side) => usize::try_from(*side).ok(),
            _ => None,
        };
        let shape = pickle.tuple(shape)?.iter().map(side).collect::<Option<Vec<usize>>>()?;
        let (kind, big_endian) = dtype_of(pickle, dtype)?;
        let data = pickle.bytes(data, usize::MAX).unwrap_or_default();
        Some(Array { kind, big_endian, shape, by_column, data })
    }
}

/// Kind and size of a type of NumPy's, `dtype('u1', False, True)` with the state
/// (3, '<', …), and whether the first byte is the most significant.
fn dtype_of<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Option<(String, bool)> {
    let (Constructor::NumpyDtype, arguments, state) = object(pickle, value)? else { return None };
    let kind = pickle.bytes(*pickle.tuple(arguments)?.first()?, SHORT)?;
    let order = pickle.tuple(state).and_then(|state| pickle.bytes(*state.get(1)?, SHORT));
    let kind = String::from_utf8_lossy(&kind);
    let big_endian = order.is_some_and(|order| *order == *b">") || kind.starts_with('>');
    Some((kind.trim_start_matches(['<', '>', '=', '|']).to_string(), big_endian))
}

/// The pixels of n images, image by image.
fn images<'p, 'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Result<Cow<'p, [u8]>, Fault> {
    let fault = |found: String| Err(Fault::new(format!("data of n x {IMAGE_LEN} bytes (uint8)"), found));
    let Some(Array { kind, shape, by_column, data, .. }) = Array::of(pickle, value) else {
        return fault("no array of NumPy's".into());
    };
    if kind != "u1" && kind != "B" {
        return fault(format!("an array of type {}", shown(&kind)));
    }
    let rows = match shape[..] {
        [rows, IMAGE_LEN] | [rows, 3, 32, 32] => rows,
        [rows, columns] => return fault(format!("{rows} x {columns}")),
        _ => return fault("an array of other than two dimensions".into()),
    };
    match rows.checked_mul(IMAGE_LEN) == Some(data.len()) {
        false => fault(format!("{rows} rows in {} bytes", data.len())),
        true if by_column => Ok(row_major(&data, &shape, 1).into()),
        true => Ok(data),
    }
}

/// Constructor, arguments and state of an object.
fn object<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Option<(Constructor, Value<'a>, Value<'a>)> {
    let Value::Node(id) = value else { return None };
    match pickle.node(id) {
        Node::Object { constructor, arguments, state, .. } => Some((*constructor, *arguments, *state)),
        _ => None,
    }
}
