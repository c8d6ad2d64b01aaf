//! The safetensors format for float32: a length, a JSON header, the numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::torch::Dtype;
use crate::error::{Error, Result, shown};
use crate::store::hex;

/// A row-major tensor on the host. `data` has as many elements as `shape` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

const METADATA: &str = "__metadata__";
const F32: &str = "F32";

/// The JSON header of a safetensors file.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    text: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, View>,
}

#[derive(Serialize, Deserialize)]
struct View {
    dtype: String,
    shape: Vec<usize>,
    /// Begin and end in bytes, counted from the end of the header.
    data_offsets: [usize; 2],
}

/// Makes the header with its length before it, padded to a multiple of 8 bytes.
fn header(tensors: &BTreeMap<String, Array>, text: &BTreeMap<String, String>) -> Vec<u8> {
    assert!(!tensors.contains_key(METADATA), "no tensor can be named {METADATA}");
    let mut end = 0;
    let view = |(name, array): (&String, &Array)| {
        let count: usize = array.shape.iter().product();
        assert_eq!(
            count,
            array.data.len(),
            "{name}: the shape {:?} against the number of elements",
            array.shape
        );
        let begin = end;
        end += 4 * count;
        (name.clone(), View { dtype: F32.into(), shape: array.shape.clone(), data_offsets: [begin, end] })
    };
    let tensors = tensors.iter().map(view).collect();
    let json = serde_json::to_vec(&Header { text: text.clone(), tensors }).expect("strings and numbers");
    let length = json.len().next_multiple_of(8);
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes.resize(8 + length, b' ');
    bytes
}

/// Serialises to the safetensors format. The bytes are always the same: names are sorted (the
/// `safetensors` crate writes the metadata in the random order of a hash map). Keeps every bit of
/// every number.
///
/// # Panics
/// If an array's shape and number of elements disagree, or if a tensor is named `__metadata__`.
pub fn write_safetensors(tensors: &BTreeMap<String, Array>, text: &BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = header(tensors, text);
    bytes.reserve_exact(tensors.values().map(|array| 4 * array.data.len()).sum());
    for value in tensors.values().flat_map(|array| &array.data) {
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Reads a safetensors file of float32 tensors, and its metadata.
///
/// # Errors
/// `Malformed`, with `path_for_errors`, for anything else. Allocates at most a small multiple of
/// `bytes`, whatever the file claims.
pub fn read_safetensors(
    path_for_errors: &Path,
    bytes: &[u8],
) -> Result<(BTreeMap<String, Array>, BTreeMap<String, String>)> {
    parse_safetensors(bytes).map_err(|found| {
        let (expected, remedy) =
            ("a safetensors file of f32 tensors", "delete it and make or fetch it again");
        Error::malformed(path_for_errors, expected, found, remedy)
    })
}

type Contents = (BTreeMap<String, Array>, BTreeMap<String, String>);

fn parse_safetensors(bytes: &[u8]) -> std::result::Result<Contents, String> {
    let (views, text) = views(bytes)?;
    let mut tensors = BTreeMap::new();
    for Stored { name, dtype, shape, bytes } in views {
        if dtype != F32 {
            return Err(format!("{} of type {}", shown(&name), shown(&dtype)));
        }
        let data = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.insert(name, Array { shape, data });
    }
    Ok((tensors, text))
}

/// A tensor of any type in a file.
pub(super) struct Stored<'a> {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

type Views<'a> = (Vec<Stored<'a>>, BTreeMap<String, String>);

/// Lists the tensors in the order of their bytes, which follow each other to the end, and the
/// metadata. Elements have the size of their type if it is one that is read.
pub(super) fn views(bytes: &[u8]) -> std::result::Result<Views<'_>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("fewer than 8 bytes")?;
    let length = u64::from_le_bytes(*length);
    let (json, data) = usize::try_from(length)
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .ok_or_else(|| format!("a header of {length} bytes in a file of {}", bytes.len()))?;
    let Header { text, tensors: views } = serde_json::from_slice(json)
        .map_err(|error| format!("a header that cannot be read: {}", shown(&error.to_string())))?;

    let mut views: Vec<_> = views.into_iter().collect();
    views.sort_by_key(|(_, view)| view.data_offsets);
    let (mut stored, mut expected_begin) = (Vec::new(), 0);
    for (name, View { dtype, shape, data_offsets: [begin, end] }) in views {
        let as_said = Dtype::of_safetensors(&dtype).is_none_or(|dtype| {
            let size = shape.iter().try_fold(dtype.size(), |size, &n| size.checked_mul(n));
            end.checked_sub(begin) == size
        });
        if begin != expected_begin || !as_said {
            return Err(format!(
                "{} of shape {shape:?} at bytes {begin} to {end}, after {expected_begin}",
                shown(&name)
            ));
        }
        let bytes = data.get(begin..end).ok_or_else(|| {
            let (length, name) = (data.len(), shown(&name));
            format!("{length} bytes of data, of which {name} is to be {begin} to {end}")
        })?;
        stored.push(Stored { name, dtype, shape, bytes });
        expected_begin = end;
    }
    if expected_begin != data.len() {
        return Err(format!("{} bytes of data, of which tensors take {expected_begin}", data.len()));
    }
    Ok((stored, text))
}

/// SHA-256 of the safetensors file with these contents.
pub(crate) fn content_digest(tensors: &BTreeMap<String, Array>, text: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    hash.update(header(tensors, text));
    let mut buffer = Vec::new();
    for chunk in tensors.values().flat_map(|array| array.data.chunks(1 << 14)) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        hash.update(&buffer);
    }
    hex(hash.finalize())
}
