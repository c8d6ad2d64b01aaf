//! Everything that can go wrong, each with the remedy in its text and an exit
//! code of its own.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

/// All good.
pub const EXIT_GOOD: i32 = 0;
/// A value outside its tolerance, or a claim that does not hold.
pub const EXIT_OUTSIDE: i32 = 1;
/// The command line asks for something that does not exist.
pub const EXIT_USAGE: i32 = 2;
/// An input is missing, malformed, or has the wrong digest.
pub const EXIT_INPUT: i32 = 3;
/// A run failed: it diverged, ran out of memory, or could not write.
pub const EXIT_RUN: i32 = 4;
/// Something asked for has not been run yet; nothing failed.
pub const EXIT_INCOMPLETE: i32 = 5;
/// Stopped by a signal after a durable checkpoint: run the same command again.
pub const EXIT_INTERRUPTED: i32 = 75;

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{} is missing: {what}\n  {remedy}", path.display())]
    Missing { path: PathBuf, what: String, remedy: String },
    #[error("{} is not what it should be: expected {expected}, found {found}\n  {remedy}", path.display())]
    Malformed { path: PathBuf, expected: String, found: String, remedy: String },
    #[error("{cell} diverged: {quantity} is not finite after {images} images\n  the last good checkpoint is kept in {}", checkpoint.display())]
    Diverged { cell: String, quantity: String, images: u64, checkpoint: PathBuf },
    #[error(
        "{cell} stopped after {images} images; the checkpoint is written, run the same command again to go on"
    )]
    Interrupted { cell: String, images: u64 },
    #[error("{cell} was stopped; nothing that was finished is lost, run the same command again to go on")]
    Stopped { cell: String },
    #[error("cannot {action} {}: {source}{}", path.display(), io_remedy(source))]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Run(String),
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Usage(_) => EXIT_USAGE,
            Error::Missing { .. } | Error::Malformed { .. } => EXIT_INPUT,
            Error::Interrupted { .. } | Error::Stopped { .. } => EXIT_INTERRUPTED,
            Error::Diverged { .. } | Error::Io { .. } | Error::Run(_) | Error::Tensor(_) => EXIT_RUN,
        }
    }
}

fn io_remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "\n  free some space or choose another place (--store, --output); what was finished before is intact"
        }
        std::io::ErrorKind::PermissionDenied => {
            "\n  check who owns it, or choose another place (--store, --output)"
        }
        _ => "",
    }
}
