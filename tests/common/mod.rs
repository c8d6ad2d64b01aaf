//! Expected outputs of the reference implementations, and the formula that
//! fills the networks they belong to. `PARITY_DIR` names another directory of
//! fixtures; a `prefix.txt` in it goes in front of every name.

#![allow(dead_code)]

pub mod drill;
pub mod server;

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use replicate::metrics::Features;
use replicate::metrics::frechet::Moments;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

pub fn directory() -> PathBuf {
    match std::env::var_os("PARITY_DIR") {
        Some(dir) => dir.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity"),
    }
}

/// The arrays of an `.npz` file (a zip of `.npy`, stored or deflated; candle's
/// own reader takes stored ones only).
pub struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    pub fn open(file: &str) -> Fixture {
        let path = directory().join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Fixture(
            zip_entries(&bytes)
                .map(|(name, npy)| (name.trim_end_matches(".npy").into(), array(&npy)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the fixture has no {name}")).clone()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.get(name).to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.get(name).to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

fn number(bytes: &[u8], at: usize, n: usize) -> usize {
    bytes[at..at + n].iter().rev().fold(0, |v, b| v << 8 | *b as usize)
}

/// Name and content of every file, by the central directory.
fn zip_entries(zip: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let end = zip.windows(4).rposition(|w| w == b"PK\x05\x06").expect("a zip file");
    let mut at = number(zip, end + 16, 4);
    (0..number(zip, end + 10, 2)).map(move |_| {
        let (method, packed) = (number(zip, at + 10, 2), number(zip, at + 20, 4));
        let (name, extra, comment) =
            (number(zip, at + 28, 2), number(zip, at + 30, 2), number(zip, at + 32, 2));
        let local = number(zip, at + 42, 4);
        let title = String::from_utf8(zip[at + 46..at + 46 + name].to_vec()).unwrap();
        at += 46 + name + extra + comment;
        let start = local + 30 + number(zip, local + 26, 2) + number(zip, local + 28, 2);
        let packed = &zip[start..start + packed];
        let mut content = Vec::new();
        match method {
            0 => content.extend_from_slice(packed),
            8 => _ = flate2::read::DeflateDecoder::new(packed).read_to_end(&mut content).unwrap(),
            other => panic!("{title}: compression method {other}"),
        }
        (title, content)
    })
}

fn array(npy: &[u8]) -> Tensor {
    let length = number(npy, 8, 2);
    let header = std::str::from_utf8(&npy[10..10 + length]).unwrap();
    assert!(header.contains("'fortran_order': False"), "{header}");
    let shape = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let shape: Vec<usize> =
        shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
    let dtype = match header.split("'descr': '").nth(1).unwrap().split('\'').next().unwrap() {
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "|u1" => DType::U8,
        "<i8" => DType::I64,
        other => panic!("dtype {other}"),
    };
    Tensor::from_raw_buffer(&npy[10 + length..], dtype, &shape, &Device::Cpu).unwrap()
}

/// [`unit_of`] the name with the fixtures' prefix.
pub fn unit(name: &str, n: usize) -> Vec<f32> {
    let prefix = std::fs::read_to_string(directory().join("prefix.txt")).unwrap_or_default();
    unit_of(&format!("{prefix}{name}"), n)
}

/// n values in [-1, 1) that depend on the name alone.
pub fn unit_of(name: &str, n: usize) -> Vec<f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3);
    }
    (1..=n as u64)
        .map(|i| {
            let mut z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The filling formula for a parameter of EDM's network: its value from u in
/// [-1, 1).
pub fn edm_value(name: &str, shape: &[usize]) -> impl Fn(f32) -> f32 + use<> {
    let bound = (3.0 / fan_in(shape)).sqrt();
    let (matrix, norm) = (shape.len() > 1, name.ends_with(".weight"));
    move |u| match (matrix, norm) {
        (true, _) => u * bound,
        (false, true) => 1.0 + 0.1 * u,
        (false, false) => 0.1 * u,
    }
}

/// The filling formula for a tensor of the FID network.
pub fn inception_value(name: &str, shape: &[usize]) -> impl Fn(f32) -> f32 + use<> {
    let bound = (6.0 / fan_in(shape)).sqrt();
    let (offset, scale) = match shape.len() {
        2.. => (0.0, bound),
        _ if name.ends_with(".running_var") => (1.0, 0.5),
        _ if name.ends_with(".bn.weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    };
    move |u| offset + scale * u
}

/// The product of all dimensions but the first.
fn fan_in(shape: &[usize]) -> f32 {
    shape[1..].iter().product::<usize>() as f32
}

/// The largest absolute difference, relative to the largest expected size.
pub fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    // The maximum below would pass over a NaN.
    assert!(ours.iter().chain(expected).all(|v| v.is_finite()), "a value is not finite");
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / scale.max(1e-30)
}

pub fn moments(features: &Features) -> Moments {
    let mut moments = Moments::new(features.dim);
    moments.push(features);
    moments
}

/// The Fréchet distance without a covariance or a root: for centred samples X
/// and Y, S_a = X'X/(n-1), tr (S_a S_b)^(1/2) is the sum of the singular values
/// of X Y' / ((n-1)(m-1))^(1/2).
pub fn fd_from_samples(a: &Features, b: &Features) -> f64 {
    let centred = |f: &Features| {
        let mean = moments(f).mean();
        let matrix = Mat::from_fn(f.len(), f.dim, |i, j| f.row(i)[j] as f64 - mean[j]);
        (mean, matrix / (f.len() as f64 - 1.0).sqrt())
    };
    let ((m, x), (n, y)) = (centred(a), centred(b));
    let shift: f64 = m.iter().zip(&n).map(|(m, n)| (m - n) * (m - n)).sum();
    let overlap: f64 = (&x * y.transpose()).singular_values().unwrap().iter().sum();
    shift + x.squared_norm_l2() + y.squared_norm_l2() - 2.0 * overlap
}
