//! Reading, moving and atomically writing files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result, shown_path};

const TEMPORARY: &str = ".tmp-";
/// Bytes of a manifest, an experiment or a record; theirs are some thousand.
const LARGEST_TEXT: u64 = 1 << 24;
const POLL: Duration = Duration::from_millis(200);

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub bytes: u64,
    pub sha256: String,
}

impl Content {
    /// What a file has in the place of `expected`. One of another size is not read, and has no digest.
    ///
    /// # Errors
    /// As those of [`Content::of`].
    pub fn in_place_of(expected: &Content, path: &Path) -> io::Result<Content> {
        match open(path)?.metadata()?.len() {
            bytes if bytes == expected.bytes => Content::of(path),
            bytes => Ok(Content { bytes, sha256: String::new() }),
        }
    }

    /// # Errors
    /// `IsADirectory` for whatever else is no file.
    pub fn of(path: &Path) -> io::Result<Content> {
        let mut file = open(path)?;
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

/// Opens a file to read it, and nothing else: a pipe would have its reader wait.
fn open(path: &Path) -> io::Result<File> {
    let file = waits_for_nobody(OpenOptions::new().read(true)).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::new(ErrorKind::IsADirectory, "it is a link to itself"),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::IsADirectory, "it is not a file")),
    }
}

fn waits_for_nobody(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK);
    options
}

/// Whether something is in the place of a file and is none.
pub(super) fn holds_no_file(path: &Path) -> bool {
    match path.metadata() {
        Ok(metadata) => !metadata.is_file(),
        Err(error) => error.raw_os_error() == Some(libc::ELOOP),
    }
}

/// Some network file systems interrupt calls that others finish.
fn repeated<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            ended => return ended,
        }
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    repeated(|| fs::rename(from, to))
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match repeated(|| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Creates the file `path` if need be and waits for its lock. While another
/// process holds it, `waiting` is called with the time waited so far, first with
/// zero and then five times a second; an error from it ends the wait. The lock
/// lasts until the file is closed, which the operating system does when the holder
/// ends, however it ends.
///
/// # Errors
/// `Malformed` where something else is in its place; `Io` where files cannot be locked.
pub fn lock_file(path: &Path, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<File> {
    if holds_no_file(path) {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            expected: "a file, which is locked".into(),
            found: "a directory, a pipe or a link to itself".into(),
            remedy: "remove it, or move it elsewhere".into(),
        });
    }
    let mut options = OpenOptions::new();
    let file = waits_for_nobody(options.create(true).append(true)).open(path);
    let file = file.map_err(Error::io("write", path))?;
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    // Polled, because a blocking lock could not be left on a signal.
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(waited)?,
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => continue,
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        std::thread::sleep(POLL);
        waited = begun.elapsed();
    }
}

/// [`lock_file`] of a file that is read, changed and written anew by
/// [`write_atomically`], under the same name.
pub fn lock_to_change(path: &Path, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<File> {
    loop {
        let file = lock_file(path, waiting)?;
        // Whoever held it may have put another file in its place.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if place(&a) == place(&b))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// # Errors
/// `Io` of the kind `IsADirectory` for whatever is no file.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    read_at_most(path, u64::MAX)
}

/// [`read_if_present`] of a file of text that this program wrote.
///
/// # Errors
/// `Io` of the kind `IsADirectory` for a file that is too large to be one, too.
pub(super) fn read_text_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    read_at_most(path, LARGEST_TEXT)
}

fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open(path)?;
        let length = file.metadata()?.len();
        if length > most {
            return Err(io::Error::new(ErrorKind::IsADirectory, format!("it has {length} bytes")));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length as usize).map_err(|_| ErrorKind::OutOfMemory)?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
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
        rename(&path, &to.join(name)).map_err(Error::io("move aside", &path))?;
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
/// `bytes` or what it held before. Removes what killed writers of the same file left.
pub fn write_atomically(dir: &Path, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<()> {
    let name = name.as_ref();
    let path = dir.join(name);
    remove_dead(dir, Some(name));
    let (mut file, temporary) = create_temporary(dir, name).map_err(Error::io("write", &path))?;
    file.write_all(bytes)
        .and_then(|()| repeated(|| file.sync_all()))
        .and_then(|()| rename(&temporary, &path))
        .and_then(|()| sync_dir(dir))
        .map_err(|error| {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
            Error::io("write", &path)(error)
        })
}

/// A file beside the one to write, locked as long as its writer lives.
fn create_temporary(dir: &Path, name: &OsStr) -> io::Result<(File, PathBuf)> {
    let mut n = 0;
    loop {
        let mut temporary = OsString::from(format!("{TEMPORARY}{n}-"));
        temporary.push(name);
        let path = dir.join(temporary);
        match File::create_new(&path) {
            Ok(file) => {
                // Where there are no locks, nobody takes it for dead either.
                let locked = file.lock().is_ok();
                if !locked || is_at(&file, &path) {
                    return Ok((file, path));
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes temporary files whose writers have ended, as far as that can be known and
/// done; of one file, or of all in a directory.
pub(super) fn remove_dead(dir: &Path, name: Option<&OsStr>) {
    for found in children(dir).unwrap_or_default() {
        if is_temporary(&found, name) {
            let path = dir.join(&found);
            let unlocked = open(&path).is_ok_and(|file| {
                // Removed under the lock: whoever made it looks whether it is still there.
                file.try_lock().is_ok() && fs::remove_file(&path).is_ok()
            });
            _ = unlocked;
        }
    }
}

/// Whether a name is that of a temporary file, of `of` if it is given.
fn is_temporary(name: &OsStr, of: Option<&OsStr>) -> bool {
    let bytes = name.as_encoded_bytes();
    let rest = bytes.strip_prefix(TEMPORARY.as_bytes()).unwrap_or_default();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let of_file = rest[digits..].strip_prefix(b"-");
    digits > 0 && of_file.is_some_and(|file| of.is_none_or(|of| of.as_encoded_bytes() == file))
}

/// Removes temporary files of a directory that nobody else may write into.
pub(super) fn remove_temporaries(dir: &Path) -> Result<()> {
    for name in children(dir)?.iter().filter(|name| is_temporary(name, None)) {
        remove(&dir.join(name))?;
    }
    Ok(())
}

/// Makes renames and new names in `dir` survive a power cut, on file systems that can:
/// on others a note says once that they may not.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    static NOTED: Once = Once::new();
    if !cfg!(unix) {
        return Ok(());
    }
    match repeated(|| File::open(dir)?.sync_all()) {
        Err(error) if cannot_sync(&error) => {
            NOTED.call_once(|| {
                let place = shown_path(dir);
                _ = writeln!(
                    io::stderr(),
                    "note: {place} cannot be flushed ({error}): a power cut may undo it"
                );
            });
            Ok(())
        }
        ended => ended,
    }
}

fn cannot_sync(error: &io::Error) -> bool {
    let codes = [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP, libc::EBADF, libc::EISDIR];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
