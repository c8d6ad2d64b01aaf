//! Adam and the moving average, each as one kernel over all parameters.

use super::compile::plain;
use super::{Arg, THREADS, with_args};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Result, Tensor, bail};

/// State of Adam for one parameter, all float32 and of one shape.
pub struct Moments<'a> {
    pub weights: &'a Tensor,
    pub first: &'a Tensor,
    pub second: &'a Tensor,
    pub gradient: &'a Tensor,
}

/// Takes one step of Adam in place. `size` is lr / (1 - beta1^t); `correction` is 1 / sqrt(1 -
/// beta2^t).
///
/// Weights and moments change in every tensor that shares their memory, as with a `Var`.
pub fn adam<'a>(
    all: impl Iterator<Item = Moments<'a>>,
    betas: [f64; 2],
    eps: f64,
    size: f64,
    correction: f64,
) -> Result<()> {
    let mut table = Table::default();
    for Moments { weights, first, second, gradient } in all {
        table.add([weights, first, second, gradient])?;
    }
    let [beta1, beta2] = betas;
    table.launch(
        "adam",
        &[
            beta1 as f32,
            (1.0 - beta1) as f32,
            beta2 as f32,
            (1.0 - beta2) as f32,
            eps as f32,
            size as f32,
            correction as f32,
        ],
    )
}

/// Computes average = beta average + (1 - beta) weights in place, for each pair (average, weights).
pub fn average<'a>(all: impl Iterator<Item = (&'a Tensor, &'a Tensor)>, beta: f64) -> Result<()> {
    let mut table = Table::default();
    for (average, weights) in all {
        table.add([average, weights])?;
    }
    table.launch("average", &[beta as f32, (1.0 - beta) as f32])
}

/// For each parameter the addresses of its tensors, and their length.
#[derive(Default)]
struct Table {
    rows: Vec<u64>,
    parameters: u32,
    longest: usize,
    device: Option<CudaDevice>,
    /// The last tensors of all rows (gradients, or weights to average), kept alive because they may
    /// be temporary copies.
    alive: Vec<Tensor>,
}

impl Table {
    fn add<const N: usize>(&mut self, tensors: [&Tensor; N]) -> Result<()> {
        // Only the last tensor may be a copy: a kernel must write to the memory of the others
        // themselves.
        let (last, own) = tensors.split_last().expect("at least one");
        if !own.iter().all(|tensor| tensor.is_contiguous()) {
            bail!("a parameter or its moment is not contiguous");
        }
        let last = last.contiguous()?;
        let n = last.elem_count();
        for tensor in own.iter().copied().chain([&last]) {
            if tensor.elem_count() != n {
                bail!("{:?} and {:?} of one parameter", tensor.shape(), last.shape());
            }
            let (address, device) = with_args([tensor], |[arg]| Ok((address(arg)?, arg.device().clone())))?;
            self.rows.push(address);
            self.device.get_or_insert(device);
        }
        self.rows.push(n as u64);
        self.parameters += 1;
        self.longest = self.longest.max(n);
        self.alive.push(last);
        Ok(())
    }

    fn launch(self, name: &str, numbers: &[f32]) -> Result<()> {
        let Some(device) = self.device else { return Ok(()) };
        let function = plain(&device, name)?;
        let table = device.clone_htod(&self.rows)?;
        let mut call = function.builder();
        call.arg(&table);
        for number in numbers {
            call.arg(number);
        }
        let blocks = self.longest.div_ceil(4 * THREADS as usize).clamp(1, 256) as u32;
        let config = LaunchConfig {
            grid_dim: (blocks, self.parameters, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments match the kernel's parameters. The addresses belong to tensors that
        // the caller holds or that `alive` keeps. All work of a device is on one stream, so no
        // reader sees half of an update.
        unsafe { call.launch(config) }.w()?;
        Ok(())
    }
}

fn address(arg: Arg) -> Result<u64> {
    let (view, stream) = (arg.view::<f32>()?, arg.device().cuda_stream());
    let (address, _recorded) = view.device_ptr(&stream);
    Ok(address)
}
