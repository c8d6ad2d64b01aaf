//! A GPU that fails in the middle of a run: the run ends with exit code 4, and the same
//! command goes on from the last checkpoint to the same result.

use replicate::error::{EXIT_RUN, Error, Result};
use replicate::network::params::Arrays;
use replicate::store::{Array, Key, Lock, Store};
use replicate::train::watch::{Mode, Watch};
use replicate::train::{Budget, Look, Training, train};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Adds the number of every step to its state; fails like a GPU at one of them.
struct Counting {
    sum: f32,
    fails_at: Option<u64>,
    code: &'static str,
}

impl Training for Counting {
    fn columns(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn step(&mut self, k: u64, _images: u64) -> Result<Vec<f64>> {
        if self.fails_at == Some(k) {
            return Err(candle_core::Error::Cuda(format!("DriverError({})", self.code).into()).into());
        }
        self.sum = 2.0 * self.sum + k as f32;
        Ok(vec![self.sum as f64])
    }

    fn look(&self) -> Result<Look> {
        Ok(Look::default())
    }

    fn state(&self) -> Result<Arrays> {
        Ok([("sum".into(), Array { shape: vec![1], data: vec![self.sum] })].into())
    }

    fn restore(&mut self, _steps: u64, state: &Arrays) -> Result<()> {
        self.sum = state["sum"].data[0];
        Ok(())
    }

    fn weights(&self) -> Result<Arrays> {
        self.state()
    }
}

fn lock(root: &Path) -> Lock {
    Store::open(root).unwrap().entry(&Key::of("counting"), "counting").lock(&mut |_| Ok(())).unwrap()
}

fn run(lock: &Lock, fails_at: Option<u64>, code: &'static str) -> Result<f32> {
    let budget = Budget { images: 80, batch: 8, ticks: 5 };
    let mut training = Counting { sum: 1.0, fails_at, code };
    let stop = AtomicBool::new(false);
    let trained = train(lock, budget, &mut training, &mut Watch::new(Mode::None), &stop)?;
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
