//! Free memory and disk space.

use candle_core::Device;
use std::path::Path;

/// Bytes that may still be written where `path` is; `None` where it cannot be told.
pub fn free_disk(path: &Path) -> Option<u64> {
    let found = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(found).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Bytes of memory of a GPU, given and free; `None` for a CPU or where it cannot be told.
pub fn total_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => candle_core::cuda_backend::cudarc::driver::result::mem_get_info()
            .ok()
            .map(|(_, total)| total as u64),
        _ => None,
    }
}

/// Bytes of memory that `device` has to give: of the host, as Linux estimates it, or
/// of the GPU. `None` where it cannot be told.
pub fn free_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(1024 * kibibytes)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => candle_core::cuda_backend::cudarc::driver::result::mem_get_info()
            .ok()
            .map(|(free, _)| free as u64),
        _ => None,
    }
}
