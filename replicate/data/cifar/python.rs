//! The authors' python layout: a dictionary, pickled by Python 2, of `data`, a
//! NumPy array of n x 3072 bytes, and `labels` (CIFAR-10) or `fine_labels`
//! (CIFAR-100), a list of n numbers. The pickle is read as data, see
//! [`crate::store::formats::torch`]: nothing in it is executed.

use super::{Fault, Gathered, IMAGE_LEN, Set, listed, shown};
use crate::store::formats::torch::pickle::{Constructor, Node, Pickle, Value};
use crate::store::formats::torch::unpickle;

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
    let array = get(&pickle, "data").map(|value| Array::of(&pickle, value))??;
    if array.rows != labels.len() || labels.is_empty() {
        return Err(Fault::new(
            "as many labels as images",
            format!("{} labels and {} images", labels.len(), array.rows),
        ));
    }
    let mut image = [0; IMAGE_LEN];
    for (i, &label) in labels.iter().enumerate() {
        array.row(i, &mut image);
        gathered.push(label, &image).map_err(|fault| fault.within(format!("image {i}")))?;
    }
    Ok(())
}

/// What the dictionary has under a key, which Python 3 may have written as bytes.
fn get<'a>(pickle: &Pickle<'a>, key: &str) -> Result<Value<'a>, Fault> {
    let Some(entries) = pickle.entries(pickle.root) else {
        return Err(Fault::new("a dictionary", "something else"));
    };
    // Of two equal keys Python keeps the last value.
    let found = entries.iter().rev().find(|(k, _)| text(*k).is_some_and(|k| k == key.as_bytes()));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let keys = entries.iter().filter_map(|(k, _)| text(*k));
        let keys: Vec<String> = keys.take(100).map(|key| shown(&String::from_utf8_lossy(key))).collect();
        Fault::new(format!("a dictionary with {key}"), format!("one with {}", listed(&keys)))
    })
}

/// The bytes of a text of either Python.
fn text<'a>(value: Value<'a>) -> Option<&'a [u8]> {
    match value {
        Value::Str(text) => Some(text.as_bytes()),
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn numbers(pickle: &Pickle, value: Value) -> Option<Vec<i64>> {
    let Value::Node(id) = value else { return None };
    let Node::List(items) = pickle.node(id) else { return None };
    let number = |item: &Value| match item {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    items.iter().map(number).collect()
}

/// A NumPy array of rows x 3072 bytes.
struct Array<'a> {
    rows: usize,
    /// Columns are contiguous (Fortran's order).
    by_column: bool,
    data: &'a [u8],
}

impl<'a> Array<'a> {
    /// From `_reconstruct(ndarray, (0,), 'b')` with the state (1, shape, dtype,
    /// whether in Fortran's order, bytes).
    fn of(pickle: &Pickle<'a>, value: Value<'a>) -> Result<Array<'a>, Fault> {
        let fault = |found: String| Fault::new(format!("data of n x {IMAGE_LEN} bytes (uint8)"), found);
        let state = match object(pickle, value) {
            Some((Constructor::NumpyArray, _, state)) => pickle.tuple(state),
            _ => None,
        };
        let Some(&[_, shape, dtype, Value::Bool(by_column), data]) = state else {
            return Err(fault("no array of NumPy's".into()));
        };
        let dtype = match object(pickle, dtype) {
            Some((Constructor::NumpyDtype, arguments, _)) => {
                pickle.tuple(arguments).and_then(|arguments| text(*arguments.first()?)).unwrap_or_default()
            }
            _ => b"",
        };
        if dtype != b"u1" {
            return Err(fault(format!("an array of type {}", shown(&String::from_utf8_lossy(dtype)))));
        }
        let rows = match pickle.tuple(shape) {
            Some([Value::Int(rows), Value::Int(columns)]) if *columns == IMAGE_LEN as i64 => *rows,
            Some([Value::Int(rows), Value::Int(columns)]) => {
                return Err(fault(format!("{rows} x {columns}")));
            }
            _ => return Err(fault("an array of other than two dimensions".into())),
        };
        let data = text(data).unwrap_or_default();
        match usize::try_from(rows).ok().filter(|rows| rows.checked_mul(IMAGE_LEN) == Some(data.len())) {
            Some(rows) => Ok(Array { rows, by_column, data }),
            None => Err(fault(format!("{rows} rows in {} bytes", data.len()))),
        }
    }

    fn row(&self, i: usize, row: &mut [u8; IMAGE_LEN]) {
        match self.by_column {
            false => row.copy_from_slice(&self.data[i * IMAGE_LEN..][..IMAGE_LEN]),
            true => {
                for (value, column) in row.iter_mut().zip(self.data.chunks_exact(self.rows)) {
                    *value = column[i];
                }
            }
        }
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
