//! Errors of the program, each with a remedy in its text and an exit code.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Result with this program's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Success.
pub const EXIT_GOOD: i32 = 0;
/// A value is outside its tolerance, or a claim does not hold.
pub const EXIT_OUTSIDE: i32 = 1;
/// The command line asks for something that does not exist.
pub const EXIT_USAGE: i32 = 2;
/// An input is missing, malformed, or has the wrong digest.
pub const EXIT_INPUT: i32 = 3;
/// A run failed: it diverged, ran out of memory, or could not write.
pub const EXIT_RUN: i32 = 4;
/// A requested result has not been run yet; nothing failed.
pub const EXIT_INCOMPLETE: i32 = 5;
/// A signal stopped the run after a durable checkpoint; run the same command again.
pub const EXIT_INTERRUPTED: i32 = 75;

/// An error of the program; its text ends with a remedy if there is one.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{} is missing: {}\n  {}", located(path), explained(what, path), printable(remedy))]
    Missing { path: PathBuf, what: String, remedy: String },
    #[error(
        "{} is invalid: expected {expected}, found {}\n  {}",
        shown_path(path),
        printable(found),
        printable(remedy)
    )]
    Malformed { path: PathBuf, expected: String, found: String, remedy: String },
    #[error(
        "{cell} diverged: {quantity} is not finite after {images} images\n  the last good checkpoint is kept in {}",
        shown_path(checkpoint)
    )]
    Diverged { cell: String, quantity: String, images: u64, checkpoint: PathBuf },
    #[error(
        "{cell} stopped after {images} images; the checkpoint is written, run the same command again to resume"
    )]
    Interrupted { cell: String, images: u64 },
    #[error("{cell} was stopped; nothing that was finished is lost, run the same command again to resume")]
    Stopped { cell: String },
    #[error("cannot {action} {}: {source}{}", located(path), io_remedy(action, source))]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Run(String),
    #[error("tensor operation failed: {0}{remedy}", remedy = device_remedy(&.0.to_string()))]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Makes the error of a file operation on `path`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// Makes the error of an input that is not there.
    pub fn missing(path: impl Into<PathBuf>, what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::Missing { path: path.into(), what: what.into(), remedy: remedy.into() }
    }

    /// Makes the error of an input with another content than expected.
    pub fn malformed(
        path: impl Into<PathBuf>,
        expected: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Error {
        let (expected, found) = (expected.into(), found.into());
        Error::Malformed { path: path.into(), expected, found, remedy: remedy.into() }
    }

    /// Makes the error of a device that cannot be used; `said` is the driver's message.
    pub fn device(name: &str, said: &str) -> Error {
        Error::Run(format!("{name} cannot be used: {said}{}", device_remedy(said)))
    }

    /// Fails if `stop` is set, so that nothing further is done for `cell`.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn if_stopped(stop: &AtomicBool, cell: &str) -> Result<()> {
        match stop.load(Ordering::Relaxed) {
            true => Err(Error::Stopped { cell: cell.into() }),
            false => Ok(()),
        }
    }

    /// True if a device had too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Tensor(error) if out_of_memory(&error.to_string()))
    }

    /// True if a device failed in a way that this process cannot recover from.
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Error::Tensor(error) if device_failed(&error.to_string())) && !self.is_out_of_memory()
    }

    /// Exit code of the program for this error.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Usage(_) => EXIT_USAGE,
            Error::Missing { .. } | Error::Malformed { .. } => EXIT_INPUT,
            Error::Interrupted { .. } | Error::Stopped { .. } => EXIT_INTERRUPTED,
            Error::Diverged { .. } | Error::Io { .. } | Error::Run(_) | Error::Tensor(_) => EXIT_RUN,
        }
    }
}

/// Suggests a remedy for a system error. A user can choose another place for output files, but not
/// for input files.
fn io_remedy(action: &str, source: &std::io::Error) -> &'static str {
    let reads = ["read", "open", "list"].contains(&action);
    match source.kind() {
        ErrorKind::OutOfMemory => {
            "\n  this machine, or the limit set for this process, has too little memory"
        }
        ErrorKind::FileTooLarge => {
            "\n  raise the limit of file sizes (ulimit -f); what was finished before is intact"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "\n  free some space or choose another place (--store, --output); what was finished before is intact"
        }
        _ if source.raw_os_error().is_some_and(|code| [libc::EMFILE, libc::ENFILE].contains(&code)) => {
            "\n  close other programs, or raise the limit of open files (ulimit -n)"
        }
        ErrorKind::PermissionDenied if reads => "\n  check who may read it; nothing is known of its content",
        ErrorKind::PermissionDenied => "\n  check who owns it, or choose another place (--store, --output)",
        ErrorKind::NotFound if action == "write" => {
            "\n  its directory was removed or moved meanwhile: restore it, or run the same command again"
        }
        _ if action == "lock" => {
            "\n  file systems without locks cannot be shared by processes: choose a place on another one (--store), \
             such as a local disk"
        }
        _ if reads && source.raw_os_error().is_some_and(|code| [libc::EIO, libc::ESTALE].contains(&code)) => {
            "\n  the disk or the network failed, not the content: try again, or copy the file elsewhere"
        }
        kind if kind == ErrorKind::ReadOnlyFilesystem || ["create", "write"].contains(&action) => {
            "\n  choose another place (--store, --output)"
        }
        _ => "",
    }
}

/// Explains a path that begins with `~`; `None` for other paths.
pub(crate) fn unexpanded(path: &Path) -> Option<&'static str> {
    path.starts_with("~").then_some(
        "the shell expands ~ only where an argument begins with it (--NAME ~/PATH, not --NAME=~/PATH)",
    )
}

/// Appends what explains the path to a reason.
pub(crate) fn explained(what: &str, path: &Path) -> String {
    printable(what) + &unexpanded(path).map(|why| format!("; {why}")).unwrap_or_default()
}

/// True for control characters, and for characters that change the direction of text.
fn steers(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

fn escaped(text: &str, keep: char) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match steers(c) && c != keep {
            true if c.is_control() => shown.extend(c.escape_debug()),
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// Escapes control characters of a foreign text for use within a line, and cuts it after 200
/// characters.
pub fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let short: String = text.chars().take(MOST).collect();
    escaped(&short, ' ') + if short.len() < text.len() { "…" } else { "" }
}

/// Escapes a path for use within a line.
pub fn shown_path(path: &Path) -> String {
    escaped(&path.to_string_lossy(), ' ')
}

/// As [`shown_path`]; also says where a link leads if nothing is there.
fn located(path: &Path) -> String {
    let target = path.read_link().ok().filter(|_| path.metadata().is_err());
    let lost = |target: PathBuf| format!(" (a link to {}, which is not there)", shown_path(&target));
    shown_path(path) + &target.map_or(String::new(), lost)
}

/// Escapes control characters of a text, but keeps its line breaks.
pub fn printable(text: &str) -> String {
    escaped(text, '\n')
}

fn says(said: &str, codes: &[&str]) -> bool {
    codes.iter().any(|code| said.contains(code))
}

fn out_of_memory(said: &str) -> bool {
    says(
        said,
        &[
            "CUDA_ERROR_OUT_OF_MEMORY",
            "STATUS_ALLOC_FAILED",
            "STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ],
    )
}

fn device_failed(said: &str) -> bool {
    says(said, &["CUDA_ERROR_", "CUBLAS_STATUS_", "CUDNN_STATUS_"]) && !refused(said)
}

/// True if a library rejected the call, while the device still works.
fn refused(said: &str) -> bool {
    says(said, &["STATUS_NOT_SUPPORTED", "STATUS_BAD_PARAM", "STATUS_INVALID_VALUE"])
}

/// Suggests a remedy for a CUDA error by the code in its text; empty for other errors.
fn device_remedy(said: &str) -> &'static str {
    let any = |codes| says(said, codes);
    if out_of_memory(said) {
        "\n  the GPU has too little memory for this; the last checkpoint is good"
    } else if any(&["CUDA_ERROR_NO_DEVICE"]) {
        "\n  there is no CUDA device here: does nvidia-smi list one, and does CUDA_VISIBLE_DEVICES hide it?"
    } else if any(&["CUDA_ERROR_STUB_LIBRARY"]) {
        "\n  the libcuda.so.1 that was found is one for linking only: put the driver's own first in \
         LD_LIBRARY_PATH"
    } else if any(&["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"]) {
        "\n  the driver is older than what this program was built with: install a newer one, or build with a \
         toolkit that it knows"
    } else if any(&["CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_INVALID_IMAGE"]) {
        "\n  this program was built for another GPU: build it again where this one is, or with \
         CUDA_COMPUTE_CAP set to its compute capability (nvidia-smi --query-gpu=compute_cap --format=csv)"
    } else if refused(said) {
        "\n  this version of cuDNN or cuBLAS does not do that on this GPU: 'replicate selftest' says which \
         operations hold, --device without ,bf16 works in float32"
    } else if device_failed(said) {
        "\n  the GPU or its driver failed: the last checkpoint is good, the same command resumes from it"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_system_name_their_own_remedy() {
        for (action, code, remedy) in [
            ("write", libc::EMFILE, "ulimit -n"),
            ("read", libc::ENFILE, "ulimit -n"),
            ("write", libc::EROFS, "choose another place"),
            ("write", libc::EFBIG, "ulimit -f"),
            ("write", libc::ENOSPC, "free some space"),
            ("lock", libc::ENOLCK, "file systems without locks"),
            ("list", libc::EACCES, "who may read it"),
            ("read", libc::ESTALE, "try again"),
        ] {
            let text = Error::io(action, Path::new("x"))(std::io::Error::from_raw_os_error(code)).to_string();
            assert!(text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn every_failure_of_a_device_names_its_remedy() {
        let said = |code: &str| {
            let error = Error::Tensor(candle_core::Error::Cuda(format!("DriverError({code})").into()));
            assert_eq!(error.exit_code(), EXIT_RUN);
            assert_eq!(error.is_device_lost(), !error.is_out_of_memory() && !code.contains("NOT_SUPPORTED"));
            (error.to_string(), error.is_out_of_memory())
        };
        for (code, remedy, memory) in [
            ("CUDA_ERROR_OUT_OF_MEMORY", "too little memory", true),
            ("CUDNN_STATUS_ALLOC_FAILED", "too little memory", true),
            ("CUDA_ERROR_NO_DEVICE", "nvidia-smi", false),
            ("CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH", false),
            ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "newer one", false),
            ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_COMPUTE_CAP", false),
            ("CUDA_ERROR_LAUNCH_FAILED", "the last checkpoint is good", false),
            ("CUBLAS_STATUS_EXECUTION_FAILED", "the last checkpoint is good", false),
            ("CUDNN_STATUS_NOT_SUPPORTED", "selftest", false),
        ] {
            let (text, out_of_memory) = said(code);
            assert!(text.contains(remedy), "{text}");
            assert_eq!(out_of_memory, memory, "{text}");
        }
        let other = Error::Tensor(candle_core::Error::Msg("shape mismatch".into()));
        assert!(!other.to_string().contains('\n') && !other.is_out_of_memory() && !other.is_device_lost());
    }
}
