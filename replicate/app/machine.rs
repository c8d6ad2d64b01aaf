//! Free memory and disk space, and GPUs for plans.

use candle_core::Device;
use clap::ValueEnum;
use std::path::Path;

/// A GPU for a plan; it need not be in this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    H200,
    H100,
    A100,
    L40s,
}

impl Card {
    /// Returns the memory in bytes, and the peak rate in operations per second from NVIDIA's data
    /// sheet: float32 without tensor cores, bfloat16 on tensor cores without sparsity.
    fn sheet(self) -> (u64, f64, f64) {
        let (gigabytes, float32, bfloat16) = match self {
            Card::H200 => (141, 67.0, 989.0),
            Card::H100 => (80, 67.0, 989.0),
            Card::A100 => (80, 19.5, 312.0),
            Card::L40s => (48, 91.6, 362.0),
        };
        (gigabytes * 1_000_000_000, float32 * 1e12, bfloat16 * 1e12)
    }

    /// Returns the memory in bytes.
    pub fn memory(self) -> u64 {
        self.sheet().0
    }

    /// Returns the rate for a plan in operations per second, and its share of the peak. The shares
    /// are not measured: large float32 convolutions reach half at best, and `paper/SPEED.md` aims
    /// at 0.4 of bfloat16.
    pub fn rate(self, bfloat16: bool) -> (f64, f64) {
        let (_, single, half) = self.sheet();
        if bfloat16 { (0.4 * half, 0.4) } else { (0.5 * single, 0.5) }
    }
}

/// Returns the free disk space at `path` in bytes; `None` if it is unknown.
pub fn free_disk(path: &Path) -> Option<u64> {
    let found = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(found).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Returns the free and the total memory of a GPU in bytes; `None` for a CPU or if unknown.
pub fn gpu_memory(device: &Device) -> Option<(u64, u64)> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let known = candle_core::cuda_backend::cudarc::driver::result::mem_get_info();
            known.ok().map(|(free, total)| (free as u64, total as u64))
        }
        _ => None,
    }
}

/// Returns the memory that `device` can still use in bytes: the GPU's, or the host's by Linux's
/// estimate. `None` if it is unknown.
pub fn free_memory(device: &Device) -> Option<u64> {
    if !device.is_cpu() {
        return gpu_memory(device).map(|(free, _)| free);
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}
