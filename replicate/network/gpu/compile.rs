//! Compiles the kernels, once in a process, for the GPU at hand.

use super::Element;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaStream, LaunchArgs};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileError, compile_ptx};
use candle_core::{Error, Result};
use std::sync::{Arc, OnceLock};

const SOURCE: &str = concat!(
    include_str!("cuda/common.cu"),
    "#define Value float\n#define KERNEL(name) name##_f32\n",
    include_str!("cuda/maps.cu"),
    "#undef Value\n#undef KERNEL\n#define Value bf16\n#define KERNEL(name) name##_bf16\n",
    include_str!("cuda/maps.cu"),
    include_str!("cuda/others.cu"),
);

fn ptx() -> Result<&'static str> {
    static PTX: OnceLock<std::result::Result<String, CompileError>> = OnceLock::new();
    let compiled = PTX.get_or_init(|| compile_ptx(SOURCE).map(|ptx| ptx.to_src()));
    compiled.as_ref().map(String::as_str).map_err(|error| Error::Cuda(Box::new(error.clone())))
}

/// A kernel and the stream that it runs on.
pub(super) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    pub(super) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// Returns the kernel of this name.
pub(super) fn plain(device: &CudaDevice, name: &str) -> Result<Kernel> {
    let function = device.get_or_load_custom_func(name, "replicate", ptx()?)?;
    Ok(Kernel { function: function.into_cuda_function(), stream: device.cuda_stream() })
}

/// Returns the kernel of this name for elements of type `T`.
pub(super) fn kernel<T: Element>(device: &CudaDevice, name: &str) -> Result<Kernel> {
    plain(device, &format!("{name}_{}", T::SUFFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the library of the compiler, but neither a driver nor a GPU.
    #[test]
    fn the_kernels_compile_and_have_the_names_that_are_asked_for() {
        let ptx = ptx().unwrap();
        let both = [
            "group_norm",
            "group_norm_backward",
            "softmax",
            "softmax_backward",
            "finish",
            "pixel_sums",
            "channels_last",
            "channels_first",
            "split3",
            "join3",
            "down2",
            "up2",
            "scale_images",
            "mix",
            "weighted_sum",
            "silu",
            "silu_backward",
        ];
        let typed = both.iter().flat_map(|name| [format!("{name}_f32"), format!("{name}_bf16")]);
        let names = typed.chain(
            ["column_sums", "adam", "average", "normals", "enlarged", "sampled", "reduced"].map(String::from),
        );
        for name in names {
            assert!(ptx.contains(&format!(".entry {name}(")), "no kernel {name}");
        }
        // Atomic sums have no fixed order.
        assert!(!ptx.contains("atom.") && !ptx.contains("red.global"));
    }
}
