//! The provenance of a result: program, machine and date.

use crate::network::device::{Compute, driver};
use crate::store::Provenance;
use crate::text::counted;
use candle_core::{Device, DeviceLocation};
use std::time::{Duration, SystemTime};

pub(super) fn provenance(wall: Duration, device: &Device) -> Provenance {
    let threads = counted(rayon::current_num_threads(), "thread");
    let place = match device.location() {
        DeviceLocation::Cpu => "CPU".to_string(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        other => format!("{other:?}"),
    };
    Provenance {
        date: now(),
        wall_seconds: wall.as_secs_f64(),
        commit: env!("GIT_COMMIT").into(),
        dirty: env!("GIT_DIRTY") == "true",
        package: env!("CARGO_PKG_VERSION").into(),
        candle: env!("CANDLE_VERSION").into(),
        machine: format!("{} {}, {threads}, {place}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu().unwrap_or_default(),
        vector_unit: vector_unit().into(),
        rustc: env!("RUSTC_VERSION").into(),
        gpu: if device.is_cpu() { String::new() } else { driver(device) },
    }
}

/// Returns the processor's name in Linux.
fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Returns the vector instructions that `network::cpu` chooses.
fn vector_unit() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return "AVX-512";
    } else if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return "AVX2";
    }
    "plain Rust"
}

/// Formats the present time in RFC 3339, UTC, to the second (days to civil date: Hinnant's
/// algorithm).
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, s) = ((seconds / 86_400) as i64, seconds % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// Returns the class of machines on which the same bytes are promised. Class `cpu` is x86-64 Linux
/// with AVX2 and FMA and any number of threads. Our kernels give the same bits everywhere, but
/// candle's sums, the platform's `exp` and the linear algebra of the metrics depend on the machine.
/// A GPU is not proven to repeat its results, so they are compared statistically.
pub fn determinism(compute: &Compute) -> &'static str {
    class(compute.device.is_cpu(), compute.bfloat16())
}

pub(super) fn class(cpu: bool, bfloat16: bool) -> &'static str {
    match (cpu, vector_unit()) {
        (true, "AVX-512" | "AVX2") if cfg!(target_os = "linux") => "cpu",
        (true, _) => unusual_class(),
        (false, _) if bfloat16 => "statistical-cuda-bf16",
        (false, _) => "statistical-cuda",
    }
}

fn unusual_class() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "cpu-aarch64",
        "x86_64" => "cpu-x86_64-other",
        _ => "statistical-cpu",
    }
}
