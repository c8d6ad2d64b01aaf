//! A GPU that fails in the middle of a run: the run ends with exit code 4, and the same
//! command goes on from the last checkpoint to the same result.

use candle_core::{Device, Tensor};
use candle_nn::Init;
use replicate::data::Images;
use replicate::error::{EXIT_RUN, Error, Result};
use replicate::network::Variables;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Source};
use replicate::store::{Array, Key, Lock, Store};
use replicate::train::adam::AdamConfig;
use replicate::train::augment::Augmentation;
use replicate::train::batch::{Batch, Batches};
use replicate::train::net::{Net, TrainState};
use replicate::train::watch::{Mode, Watch};
use replicate::train::{Budget, Method, Snapshot, train};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Adds the number of every step to its one parameter; fails like a GPU at one of them.
struct Counting {
    net: Net<Tensor>,
    fails_at: Option<u64>,
    code: &'static str,
}

impl Counting {
    fn new(fails_at: Option<u64>, code: &'static str) -> Counting {
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell: "counting" };
        let adam = AdamConfig { beta1: 0.0, beta2: 0.9, eps: 1e-8, rectified: false };
        let build = |vb: Variables| vb.get(1, "sum", Init::Const(1.0));
        Counting { net: Net::new(&Compute::CPU, &source, adam, build).unwrap(), fails_at, code }
    }
}

impl Method for Counting {
    fn columns(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn step(&mut self, batch: &Batch) -> candle_core::Result<Vec<Tensor>> {
        if self.fails_at == Some(batch.step) {
            return Err(candle_core::Error::Cuda(format!("DriverError({})", self.code).into()));
        }
        let params = &self.net.state.params;
        let sum = 2.0 * params.arrays()?["sum"].data[0] + batch.step as f32;
        params.assign(&[("sum".into(), Array { shape: vec![1], data: vec![sum] })].into())?;
        Ok(vec![Tensor::new(sum, &Device::Cpu)?])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("net", &mut self.net.state)]
    }
}

fn lock(root: &Path) -> Lock {
    Store::open(root).unwrap().entry(&Key::of("counting"), "counting").lock(&mut |_| Ok(())).unwrap()
}

fn run(lock: &Lock, fails_at: Option<u64>, code: &'static str) -> Result<f32> {
    let images = Images { channels: 3, size: 1, pixels: vec![0; 3], labels: vec![0] };
    let batches = Batches {
        images: &images,
        device: Device::Cpu,
        size: 8,
        microbatch: usize::MAX,
        augmentation: Augmentation { p: 0.0 },
        cell: "counting".into(),
    };
    let budget = Budget { images: 80, ticks: 5 };
    let (mut method, stop) = (Counting::new(fails_at, code), AtomicBool::new(false));
    let mut nothing = |_: &Arrays| Ok(Snapshot::default());
    let mut watch = Watch::new(Mode::None);
    let trained = train(lock, budget, &batches, &mut method, &mut nothing, &mut watch, &stop)?;
    Ok(trained.weights["sum"].data[0])
}

#[test]
fn the_last_checkpoint_is_good() {
    let whole = tempfile::tempdir().unwrap();
    let expected = run(&lock(whole.path()), None, "").unwrap();
    for (code, told) in [
        ("CUDA_ERROR_OUT_OF_MEMORY", "too little memory"),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", "the last checkpoint is good"),
        ("CUDNN_STATUS_EXECUTION_FAILED", "the last checkpoint is good"),
    ] {
        let store = tempfile::tempdir().unwrap();
        // Steps 4 and 5 are the third tick's: 4 is lost with the failure, 3 and before are kept.
        let error = run(&lock(store.path()), Some(5), code).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_RUN);
        assert!(error.to_string().contains(told), "{error}");
        assert!(matches!(error, Error::Tensor(_)));
        let (checkpoint, notices) = lock(store.path()).load_checkpoint().unwrap();
        assert_eq!((checkpoint.unwrap().images, notices.len()), (32, 0));
        // It would fail before the checkpoint if it began again.
        assert_eq!(run(&lock(store.path()), Some(3), code).unwrap(), expected);
    }
}
