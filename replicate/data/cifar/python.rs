//! The authors' python layout: a pickled dictionary with `data`, a NumPy array of n x 3072 bytes, and
//! `labels` (CIFAR-10) or `fine_labels` (CIFAR-100), n numbers in a list, a tuple or an array. The
//! bytes of an image may also be 3 x 1024, 3 x 32 x 32, 1024 x 3 or 32 x 32 x 3. The authors used
//! Python 2; rewritten files may come from Python 3. The pickle is read as data and never executed,
//! see [`crate::store::formats::torch`].

use std::borrow::Cow;

use super::{Fault, Gathered, IMAGE_LEN, Set, listed, shown};
use crate::store::formats::torch::pickle::{Constructor, Node, Pickle, Value};
use crate::store::formats::torch::unpickle;
use crate::store::formats::{called, is_contiguous, strided};

/// Most bytes of a number or a key.
const SHORT: usize = 64;

/// Reads every image of a file.
pub(super) fn read(bytes: &[u8], gathered: &mut Gathered) -> Result<(), Fault> {
    let pickle = unpickle(bytes)
        .map_err(|found| Fault::new("a batch as the authors pickled it", called(bytes).unwrap_or(found)))?;
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

/// Returns the dictionary's value under a key, which Python 3 may have written as bytes.
fn get<'a>(pickle: &Pickle<'a>, key: &str) -> Result<Value<'a>, Fault> {
    let Some(entries) = pickle.entries(pickle.root) else {
        return Err(Fault::new("a dictionary", "something else"));
    };
    let is = |k: Value<'a>| pickle.bytes(k, SHORT).is_some_and(|k| *k == *key.as_bytes());
    // Python keeps the last value of equal keys.
    let found = entries.iter().rev().find(|(k, _)| is(*k));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let keys = entries.iter().filter_map(|(k, _)| pickle.bytes(*k, SHORT));
        let keys: Vec<String> = keys.take(100).map(|key| shown(&String::from_utf8_lossy(&key))).collect();
        Fault::new(format!("a dictionary with {key}"), format!("one with {}", listed(&keys)))
    })
}

/// Reads integers in any form of Python and NumPy.
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
    let array = match pickle.node(id) {
        Node::List(items) | Node::Tuple(items) => return items.iter().map(number).collect(),
        _ => Array::of(pickle, value)?,
    };
    // One axis, or others of length one.
    if array.shape.iter().filter(|side| **side != 1).count() > 1 {
        return None;
    }
    let count = array.shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side))?;
    if array.kind.starts_with('O') {
        return (array.objects.len() == count).then(|| array.objects.iter().map(number).collect())?;
    }
    let size: usize = array.kind.get(1..)?.parse().ok().filter(|size| *size > 0)?;
    let whole = count.checked_mul(size) == Some(array.data.len());
    let numbers = array.data.chunks_exact(size);
    numbers.map(|bytes| integer(&array.kind, array.big_endian, bytes).filter(|_| whole)).collect()
}

/// Reads an integer of the NumPy type `kind`, such as `i8` or `u1`.
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
struct Array<'p, 'a> {
    /// `u1`, `i8` and the like.
    kind: String,
    big_endian: bool,
    shape: Vec<usize>,
    /// Elements from one place of an axis to the next.
    strides: Vec<usize>,
    data: Cow<'p, [u8]>,
    /// The elements of an array of objects, which has no bytes.
    objects: &'p [Value<'a>],
}

/// Axes that an array of NumPy's may have.
const MOST_AXES: usize = 64;

impl<'p, 'a> Array<'p, 'a> {
    /// From `_reconstruct(ndarray, (0,), 'b')` with the state (1, shape, dtype, whether
    /// in Fortran's order, bytes or objects), or from `_frombuffer(bytes, dtype, shape, order)`.
    /// In the order `K`, axes follow: the array is that of `shape`, transposed.
    fn of(pickle: &'p Pickle<'a>, value: Value<'a>) -> Option<Array<'p, 'a>> {
        let (stored, dtype, order, axes, data) = match object(pickle, value)? {
            (Constructor::NumpyArray, _, state) => match *pickle.tuple(state)? {
                [_, shape, dtype, Value::Bool(by_column), data] => {
                    (shape, dtype, if by_column { "F" } else { "C" }, Value::None, data)
                }
                _ => return None,
            },
            (Constructor::NumpyFromBuffer, arguments, _) => match *pickle.tuple(arguments)? {
                [data, dtype, shape, order] => (shape, dtype, pickle.text(order)?, Value::None, data),
                [data, dtype, shape, order, axes] => (shape, dtype, pickle.text(order)?, axes, data),
                _ => return None,
            },
            _ => return None,
        };
        let stored = sizes(pickle, stored)?;
        let all = 0..stored.len();
        // The axes from the one that the bytes follow slowest to the fastest.
        let (shape, axes): (Vec<usize>, Vec<usize>) = match order {
            "C" => (stored, all.collect()),
            "F" => (stored, all.rev().collect()),
            "K" => {
                let from = sizes(pickle, axes)?;
                let to = all.map(|axis| from.iter().position(|a| *a == axis)).collect::<Option<Vec<_>>>()?;
                if to.len() != from.len() {
                    return None;
                }
                (from.iter().map(|axis| stored[*axis]).collect(), to)
            }
            _ => return None,
        };
        let (mut strides, mut next) = (vec![0; shape.len()], 1usize);
        for axis in axes.into_iter().rev() {
            strides[axis] = next;
            next = next.checked_mul(shape[axis])?;
        }
        let (kind, big_endian) = dtype_of(pickle, dtype)?;
        let objects = match data {
            Value::Node(id) => match pickle.node(id) {
                Node::List(items) => items.as_slice(),
                _ => &[],
            },
            _ => &[],
        };
        let data = pickle.bytes(data, usize::MAX).unwrap_or_default();
        Some(Array { kind, big_endian, shape, strides, data, objects })
    }
}

/// A tuple of sizes or of axes.
fn sizes<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Option<Vec<usize>> {
    let size = |size: &Value| match size {
        Value::Int(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    pickle.tuple(value).filter(|sizes| sizes.len() <= MOST_AXES)?.iter().map(size).collect()
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

/// The pixels of n images, image by image and channel by channel.
fn images<'p, 'a>(pickle: &'p Pickle<'a>, value: Value<'a>) -> Result<Cow<'p, [u8]>, Fault> {
    let fault = |found: String| Err(Fault::new(format!("data of n x {IMAGE_LEN} bytes (uint8)"), found));
    let Some(Array { kind, mut shape, mut strides, data, .. }) = Array::of(pickle, value) else {
        return fault("no array of NumPy's".into());
    };
    if kind != "u1" && kind != "B" {
        return fault(format!("an array of type {}", shown(&kind)));
    }
    let (rows, channels_last) = match shape[..] {
        [rows, IMAGE_LEN] | [rows, 3, 1024] | [rows, 3, 32, 32] => (rows, false),
        [rows, 1024, 3] | [rows, 32, 32, 3] => (rows, true),
        _ => return fault(shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")),
    };
    if rows.checked_mul(IMAGE_LEN) != Some(data.len()) {
        return fault(format!("{rows} rows in {} bytes", data.len()));
    }
    if channels_last {
        shape[1..].rotate_right(1);
        strides[1..].rotate_right(1);
    }
    match is_contiguous(&shape, &strides) {
        true => Ok(data),
        false => Ok(strided(&data, &shape, &strides, 1).into()),
    }
}

/// Returns constructor, arguments and state of an object.
fn object<'a>(pickle: &Pickle<'a>, value: Value<'a>) -> Option<(Constructor, Value<'a>, Value<'a>)> {
    let Value::Node(id) = value else { return None };
    match pickle.node(id) {
        Node::Object { constructor, arguments, state, .. } => Some((*constructor, *arguments, *state)),
        _ => None,
    }
}
