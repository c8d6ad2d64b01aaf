//! Reading, moving and atomically writing files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result};

const TEMPORARY: &str = ".tmp-";
const POLL: Duration = Duration::from_millis(200);

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub bytes: u64,
    pub sha256: String,
}

impl Content {
    pub fn of(path: &Path) -> io::Result<Content> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Content { bytes, sha256: hex(hash.finalize()) }),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Creates the file `path` if need be and waits for its lock. While another
/// process holds it, `waiting` is called with the time waited so far, first with
/// zero and then five times a second; an error from it ends the wait. The lock
/// lasts until the file is closed, which the operating system does when the holder
/// ends, however it ends.
pub fn lock_file(path: &Path, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("open", path))?;
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    // Polled, because a blocking lock could not be left on a signal.
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(waited)?,
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        std::thread::sleep(POLL);
        waited = begun.elapsed();
    }
}

pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Names of what a directory holds, sorted.
pub(super) fn children(dir: &Path) -> Result<Vec<OsString>> {
    let names = || fs::read_dir(dir)?.map(|child| Ok(child?.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = names().map_err(Error::io("list", dir))?;
    names.sort();
    Ok(names)
}

pub(super) fn move_children(from: &Path, to: &Path, stays: impl Fn(&OsStr) -> bool) -> Result<()> {
    for name in children(from)?.iter().filter(|name| !stays(name)) {
        let path = from.join(name);
        fs::rename(&path, to.join(name)).map_err(Error::io("move aside", &path))?;
    }
    sync_dir(to).map_err(Error::io("write", to))?;
    sync_dir(from).map_err(Error::io("write", from))
}

/// Creates `<stem>-<n>` in `parent` with the first n from 1 that is free.
pub(super) fn numbered_dir(parent: &Path, stem: &str) -> Result<PathBuf> {
    let mut n = 1;
    loop {
        let dir = parent.join(format!("{stem}-{n}"));
        match fs::create_dir(&dir) {
            Ok(()) => {
                sync_dir(parent).map_err(Error::io("write", parent))?;
                return Ok(dir);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            Err(error) => return Err(Error::io("create", &dir)(error)),
        }
    }
}

/// Writes `dir/name` so that after a crash at any moment it holds either all of
/// `bytes` or what it held before.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let (mut file, temporary) = create_temporary(dir, name).map_err(Error::io("write", &path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| sync_dir(dir))
        .map_err(|error| {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
            Error::io("write", &path)(error)
        })
}

fn create_temporary(dir: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let mut n = 0;
    loop {
        let path = dir.join(format!("{TEMPORARY}{n}-{name}"));
        match File::create_new(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn remove_temporaries(dir: &Path) -> Result<()> {
    for name in children(dir)? {
        if name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Makes renames and new names in `dir` survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
