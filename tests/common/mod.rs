//! Expected outputs of the reference implementations, and the formula that
//! fills the networks they belong to: `tests/parity/README.md`. `PARITY_DIR` names
//! another directory of fixtures; a `prefix.txt` in it goes in front of every name.

#![allow(dead_code)]

pub mod drill;
pub mod server;

use candle_core::{DType, Tensor};
use faer::Mat;
use replicate::app::selftest::fixture;
use replicate::experiment::Recipe;
use replicate::experiment::run::{Runner, Settings};
use replicate::measure::metrics::Features;
use replicate::measure::metrics::frechet::Moments;
use replicate::network::device::Compute;
use replicate::network::params::Arrays;
use replicate::store::Array;
use replicate::store::formats::{Fault, npz};
use replicate::train::watch::{Mode, Watch};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub use replicate::app::selftest::fixture::{edm_value, inception_value, unit as unit_of};

/// A CPU, the repository's golden values, and this store.
pub fn settings(store: &Path) -> Settings {
    Settings {
        store: store.into(),
        root: env!("CARGO_MANIFEST_DIR").into(),
        data: None,
        compute: Compute::CPU,
        from_scratch: false,
        microbatch: None,
        keep: false,
    }
}

/// Every array of an `.npy` or `.npz`, by name; all must be floats.
pub fn npz_arrays(path: &Path) -> Result<BTreeMap<String, npz::Array>, Fault> {
    npz::list(path)?.0.into_iter().map(|stored| Ok((stored.name.clone(), stored.read(path)?))).collect()
}

/// A runner of `recipe` with these [`settings`].
pub fn runner<'a>(store: &Path, recipe: Recipe, stop: &'a AtomicBool) -> Runner<'a> {
    Runner::new(settings(store), recipe, Watch::new(Mode::None), stop).unwrap()
}

/// The `weights` of a network with one time as those of an aligned network that computes the same
/// function: the second embedding is a copy of the first, and `map_align` ignores it.
pub fn aligned(mut weights: Arrays) -> Arrays {
    let mut width = 0;
    for layer in ["map_layer0", "map_layer1"] {
        for kind in ["weight", "bias"] {
            let array = weights[&format!("model.{layer}.{kind}")].clone();
            width = array.shape[0];
            weights.insert(format!("model.{layer}_u.{kind}"), array);
        }
    }
    let identity = (0..2 * width * width).map(|i| f32::from(i / (2 * width) == i % (2 * width))).collect();
    let array = Array { shape: vec![width, 2 * width], data: identity };
    weights.insert("model.map_align.weight".into(), array);
    weights
}

pub fn directory() -> PathBuf {
    match std::env::var_os("PARITY_DIR") {
        Some(dir) => dir.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity"),
    }
}

/// The arrays of an `.npz` file.
pub struct Fixture(pub fixture::Fixture);

impl Fixture {
    pub fn open(file: &str) -> Fixture {
        let path = directory().join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Fixture(fixture::Fixture::parse(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.0.f32(name).unwrap()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.get(name).to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_string).collect()
    }
}

/// [`unit_of`] the name with the fixtures' prefix.
pub fn unit(name: &str, n: usize) -> Vec<f32> {
    let prefix = std::fs::read_to_string(directory().join("prefix.txt")).unwrap_or_default();
    unit_of(&format!("{prefix}{name}"), n)
}

/// The largest absolute difference, relative to the largest expected size.
pub fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    // The maximum below would pass over a NaN.
    assert!(ours.iter().chain(expected).all(|v| v.is_finite()), "a value is not finite");
    fixture::relative_error(ours, expected) as f32
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
