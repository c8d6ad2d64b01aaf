//! Expected outputs of the reference implementations, and the formula that
//! fills the networks they belong to. `PARITY_DIR` names another directory of
//! fixtures; a `prefix.txt` in it goes in front of every name.

#![allow(dead_code)]

use candle_core::npy::NpzTensors;
use candle_core::{DType, Tensor};
use std::path::PathBuf;

pub fn directory() -> PathBuf {
    match std::env::var_os("PARITY_DIR") {
        Some(dir) => dir.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity"),
    }
}

pub struct Fixture(NpzTensors);

impl Fixture {
    pub fn open(file: &str) -> Fixture {
        let path = directory().join(file);
        Fixture(NpzTensors::new(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap().unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.get(name).to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.get(name).to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.names().into_iter().cloned().collect();
        names.sort();
        names
    }
}

/// n values in [-1, 1) that depend on the name alone.
pub fn unit(name: &str, n: usize) -> Vec<f32> {
    let prefix = std::fs::read_to_string(directory().join("prefix.txt")).unwrap_or_default();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in prefix.bytes().chain(name.bytes()) {
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

/// The largest absolute difference, relative to the largest expected size.
pub fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / scale.max(1e-30)
}
