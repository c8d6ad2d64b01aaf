//! Opens the device of a run. If a requested GPU cannot be used, that is an error: the CPU never
//! replaces it silently.

use crate::error::{Error, Result};
use candle_core::{DType, Device};

/// Where networks compute, and how precisely: a device, and the type in which they keep their
/// activations there. Parameters, their gradients and moments, and everything outside a network are
/// float32.
#[derive(Clone, Debug)]
pub struct Compute {
    pub device: Device,
    maps: DType,
}

impl Compute {
    /// A CPU, which knows only float32.
    pub const CPU: Compute = Compute { device: Device::Cpu, maps: DType::F32 };

    /// Type of the activations: float32 or bfloat16.
    pub fn maps(&self) -> DType {
        self.maps
    }

    /// True if activations are bfloat16.
    pub fn bfloat16(&self) -> bool {
        self.maps == DType::BF16
    }

    /// The same device with activations in float32.
    pub fn in_float32(&self) -> Compute {
        Compute { device: self.device.clone(), maps: DType::F32 }
    }

    /// The same device with activations in bfloat16; `None` if it does not multiply them.
    pub fn in_bfloat16(&self) -> Option<Compute> {
        let device = self.device.clone();
        multiplies_bfloat16(&device).then_some(Compute { device, maps: DType::BF16 })
    }
}

/// Opens the device of this name: `cpu`, `cuda` (the first GPU) or `cuda:N`. With the suffix
/// `,bf16`, networks on it keep their activations in bfloat16.
///
/// # Errors
/// `Usage` if the name is unknown, the program has no CUDA, or there is no such GPU; `Run` if the
/// driver or the device cannot be used.
pub fn open(name: &str) -> Result<Compute> {
    let Named { place, gpu, bfloat16 } = Named::parse(name)?;
    let Some(index) = gpu else { return Ok(Compute::CPU) };
    if bfloat16 && cfg!(feature = "cuda") && !cfg!(feature = "cudnn") {
        return Err(Error::Usage(format!("{name} needs a build with --features cudnn")));
    }
    let device = cuda(place, index)?;
    #[cfg(feature = "cudnn")]
    if bfloat16 && !multiplies_bfloat16(&device) {
        let (major, minor) =
            compute_capability(&device).map_err(|error| Error::device(place, &error.to_string()))?;
        return Err(Error::Usage(format!(
            "{place} has compute capability {major}.{minor} and does not multiply bfloat16, which needs 8.0\n  \
             --device {place} works in float32"
        )));
    }
    Ok(Compute { device, maps: if bfloat16 { DType::BF16 } else { DType::F32 } })
}

/// A parsed device name; the device need not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The name without the precision.
    pub place: &'a str,
    /// Index of the GPU; `None` for the CPU.
    pub gpu: Option<usize>,
    pub bfloat16: bool,
}

impl<'a> Named<'a> {
    /// Parses a device name.
    ///
    /// # Errors
    /// `Usage` if [`open`] does not take the name.
    pub fn parse(name: &'a str) -> Result<Named<'a>> {
        let bad =
            || Error::Usage(format!("unknown device '{name}': it is cpu, cuda or cuda:N, or cuda:N,bf16"));
        let (place, bfloat16) = match name.split_once(',') {
            None => (name, false),
            Some((place, "bf16")) if place != "cpu" => (place, true),
            Some(_) => return Err(bad()),
        };
        let gpu = match place.split_once(':') {
            None if place == "cpu" => None,
            None if place == "cuda" => Some(0),
            Some(("cuda", n)) => Some(n.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        };
        Ok(Named { place, gpu, bfloat16 })
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _: usize) -> Result<Device> {
    Err(Error::Usage(format!(
        "this program was built without CUDA and cannot use {name}\n  \
         make FEATURES=cudnn ..., or 'cargo build --release --features cudnn' (needs the CUDA toolkit and \
         cuDNN), makes one that can\n  run --dry-run --like h200 plans for one here"
    )))
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let failed = |error: &dyn std::fmt::Display| Error::device(name, &error.to_string());
    // The error's own text comes from the driver, which cannot always supply one.
    let refused = |error: result::DriverError| Error::device(name, &format!("{:?}", error.0));
    result::init().map_err(refused)?;
    let mut newest = 0;
    // SAFETY: the driver writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut newest) }.result().map_err(refused)?;
    if (newest as u32) < sys::CUDA_VERSION {
        return Err(Error::Run(format!(
            "{name} cannot be used: the driver is for CUDA {}, this program was built with CUDA {}\n  \
             install a newer driver, or build with a toolkit that the driver knows",
            version(newest as u32),
            version(sys::CUDA_VERSION)
        )));
    }
    let count = result::device::get_count().map_err(refused)? as usize;
    if index >= count {
        let last = count.saturating_sub(1);
        return Err(match count {
            0 => failed(&"CUDA_ERROR_NO_DEVICE"),
            _ => Error::Usage(format!("there is no {name}: this machine has cuda:0 to cuda:{last}")),
        });
    }
    let device = Device::new_cuda_with_stream(index).map_err(|error| failed(&error))?;
    avoid_waits(&device);
    // Leaked on purpose: cudarc panics if a failed device refuses to free cuBLAS or cuRAND, and the
    // exit code would be lost.
    std::mem::forget(device.clone());
    Ok(device)
}

/// True if `device` multiplies bfloat16. cuDNN and cuBLAS do from compute capability 8.0 on.
fn multiplies_bfloat16(device: &Device) -> bool {
    #[cfg(feature = "cudnn")]
    if device.is_cuda() {
        return compute_capability(device).is_ok_and(|(major, _)| major >= 8);
    }
    _ = device;
    false
}

#[cfg(feature = "cudnn")]
fn compute_capability(device: &Device) -> candle_core::Result<(i32, i32)> {
    use candle_core::cuda_backend::WrapErr;
    device.as_cuda_device()?.cuda_stream().context().compute_capability().w()
}

#[cfg(feature = "cuda")]
fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Keeps freed memory in the driver's pool. By default every synchronisation returns it, and the
/// next step waits for it again. Also turns off the events that candle records for every tensor:
/// all work is on one stream, so nothing needs them.
#[cfg(feature = "cuda")]
fn avoid_waits(device: &Device) {
    use candle_core::cuda_backend::cudarc::driver::sys;

    if let Device::Cuda(cuda) = device {
        // SAFETY: a program uses one stream of a device, the one that candle made.
        unsafe { cuda.disable_event_tracking() };
    }
    let Ok(pool) = pool(device) else { return };
    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is an unsigned 64-bit number. If there is no pool to set, the program
    // is only slower.
    _ = unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()) };
}

/// Returns the memory pool of candle's tensors.
#[cfg(feature = "cuda")]
fn pool(
    device: &Device,
) -> candle_core::Result<candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::sys;

    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let mut pool = std::ptr::null_mut();
    // SAFETY: the driver writes one handle.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.ordinal() as i32) }.result().w()?;
    Ok(pool)
}

/// Peak memory of tensors on `device` so far, in bytes; `None` for a CPU.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            use candle_core::cuda_backend::cudarc::driver::sys;

            let mut bytes = 0u64;
            let most = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            // SAFETY: the attribute is an unsigned 64-bit number.
            let read =
                unsafe { sys::cuMemPoolGetAttribute(pool(device).ok()?, most, (&raw mut bytes).cast()) };
            read.result().ok().map(|()| bytes)
        }
        _ => None,
    }
}

/// Describes the device: model and memory of a GPU, or the threads of the CPU.
pub fn describe(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            use candle_core::cuda_backend::cudarc::driver::result;

            let stream = cuda.cuda_stream();
            let context = stream.context();
            let name = context.name().unwrap_or_else(|error| error.to_string());
            let total = result::mem_get_info().map_or(0, |(_, total)| total);
            format!("{name}, {:.1} GB", total as f64 / 1e9)
        }
        _ => format!("CPU, {} threads", rayon::current_num_threads()),
    }
}

#[cfg(feature = "cudnn")]
fn cudnn() -> String {
    let number = candle_core::cuda_backend::cudarc::cudnn::result::get_version();
    format!(", cuDNN {}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(all(feature = "cuda", not(feature = "cudnn")))]
fn cudnn() -> &'static str {
    ""
}

/// [`describe`] with the versions that its results depend on: of CUDA in the driver, and of cuDNN.
pub fn driver(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let mut newest = 0;
        // SAFETY: the driver writes one integer.
        _ = unsafe { candle_core::cuda_backend::cudarc::driver::sys::cuDriverGetVersion(&mut newest) };
        return format!("{}, driver for CUDA {}{}", describe(device), version(newest as u32), cudnn());
    }
    describe(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EXIT_USAGE;

    #[test]
    fn names_of_no_device_are_usage_errors() {
        assert!(open("cpu").unwrap().device.is_cpu());
        for name in
            ["gpu", "", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cpu,bf16", "cuda:0,f16", "cuda,bf16,bf16"]
        {
            let error = open(name).unwrap_err();
            assert_eq!(error.exit_code(), EXIT_USAGE, "{name}: {error}");
            assert!(error.to_string().contains(&format!("unknown device '{name}'")), "{error}");
        }
    }

    #[test]
    fn a_cpu_says_what_it_is() {
        assert!(describe(&Device::Cpu).starts_with("CPU, "));
        assert_eq!(driver(&Device::Cpu), describe(&Device::Cpu));
        assert_eq!(peak_bytes(&Device::Cpu), None);
    }
}
