//! NumPy's `.npz`: a zip of `.npy` arrays. Read here: float64 and float32,
//! little-endian, in C order, which is how reference statistics are stored.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// No array that is read here has more elements.
const MOST: usize = 1 << 26;

/// Every array of the file by its name. The error says what is wrong with it.
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>, String> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| format!("is not an .npz file: {error}"))?;
    let mut arrays = BTreeMap::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(|error| format!("has an unreadable part: {error}"))?;
        let name = entry.name().map_err(|error| format!("has an unreadable name: {error}"))?;
        let name = name.trim_end_matches(".npy").to_string();
        let mut bytes = Vec::new();
        let limit = 8 * MOST as u64 + 4096;
        let read = entry.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(|error| format!("has an unreadable part {name}: {error}"))?;
        arrays.insert(name.clone(), npy(&bytes).map_err(|what| format!("holds {name}, which {what}"))?);
    }
    Ok(arrays)
}

/// The format of `numpy.save`: magic, version, a Python dictionary, numbers.
fn npy(bytes: &[u8]) -> Result<Array, String> {
    let short = "is cut off";
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("is not an array")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
            (u16::from_le_bytes(*length) as usize, rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => return Err(format!("has the version {other} of the format")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or(short)?;
    let header = String::from_utf8_lossy(header);
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    if !after("fortran_order").is_some_and(|text| text.starts_with("False")) {
        return Err("is not in C order".into());
    }
    let dtype = after("descr").and_then(|text| text.split('\'').nth(1)).unwrap_or_default();
    let tuple =
        after("shape").and_then(|text| text.strip_prefix('(')?.split(')').next()).ok_or("has no shape")?;
    let shape: Option<Vec<usize>> =
        tuple.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect();
    let shape = shape.ok_or_else(|| format!("has the shape ({tuple})"))?;
    let count = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side)).filter(|n| *n <= MOST);
    let count = count.ok_or_else(|| format!("has the shape ({tuple})"))?;
    let size = match dtype {
        "<f8" => 8,
        "<f4" => 4,
        other => return Err(format!("has the type {other:?}, not float64 or float32")),
    };
    if data.len() != size * count {
        return Err(format!("has {} bytes of data for {count} numbers", data.len()));
    }
    let data = match size {
        8 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
    };
    Ok(Array { shape, data })
}
