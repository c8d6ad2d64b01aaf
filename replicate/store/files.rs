//! Reading, moving and atomically writing files.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result, shown_path, unexpanded};

const TEMPORARY: &str = ".tmp-";
/// Most bytes of a manifest, an experiment or a record, which have some thousand.
const LARGEST_TEXT: u64 = 1 << 24;
const POLL: Duration = Duration::from_millis(200);

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub bytes: u64,
    pub sha256: String,
}

impl Content {
    /// Returns the content of a file that should have `expected`. A file of another size is not read
    /// and gets no digest.
    ///
    /// # Errors
    /// As [`Content::of`].
    pub fn in_place_of(expected: &Content, path: &Path) -> io::Result<Content> {
        match open(path)?.metadata()?.len() {
            bytes if bytes == expected.bytes => Content::of(path),
            bytes => Ok(Content { bytes, sha256: String::new() }),
        }
    }

    /// Reads and hashes a file.
    ///
    /// # Errors
    /// `IsADirectory` for a directory, a pipe or a device.
    pub fn of(path: &Path) -> io::Result<Content> {
        Content::copy(open(path)?, &mut io::sink())
    }

    /// Copies all bytes of `from`, and hashes them.
    ///
    /// # Errors
    /// Those of `from` and of `to`.
    pub fn copy(mut from: impl Read, to: &mut dyn Write) -> io::Result<Content> {
        let mut hash = Sha256::new();
        let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(Content { bytes, sha256: hex(hash.finalize()) }),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    to.write_all(&buffer[..read])?;
                    bytes += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Opens a regular file for reading. A pipe is refused, because its reader would wait.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::new(ErrorKind::IsADirectory, "it is a link to itself"),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::IsADirectory, "it is not a file")),
    }
}

/// True if a path exists that is not a file.
pub(super) fn holds_no_file(path: &Path) -> bool {
    match path.metadata() {
        Ok(metadata) => !metadata.is_file(),
        Err(error) => error.raw_os_error() == Some(libc::ELOOP),
    }
}

/// Repeats a call that a network file system interrupted.
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

/// Moves a file or a directory. Copies it where [`rename`] cannot move it, for example because an entry
/// is a link to another disk.
pub(super) fn relocate(from: &Path, to: &Path) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        ended => return ended,
    }
    if fs::symlink_metadata(from)?.is_dir() {
        fs::create_dir(to)?;
        for child in fs::read_dir(from)? {
            let name = child?.file_name();
            relocate(&from.join(&name), &to.join(&name))?;
        }
        sync_dir(to)?;
        return fs::remove_dir(from);
    }
    let mut source = open(from)?;
    let (Some(dir), Some(name)) = (to.parent(), to.file_name()) else {
        unreachable!("a name in a directory")
    };
    let (mut file, temporary) = create_temporary(dir, name)?;
    io::copy(&mut source, &mut file)
        .and_then(|_| repeated(|| file.sync_all()))
        .and_then(|()| rename(&temporary, to))
        .inspect_err(|_| _ = fs::remove_file(&temporary))?;
    fs::remove_file(from)
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match repeated(|| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Creates the file `path` if necessary, and waits for its lock. While another process holds it,
/// calls `waiting` with the time waited so far, first with zero and then five times a second; an
/// error from it ends the wait. The lock lasts until the file is closed, or the process ends for any
/// reason.
///
/// # Errors
/// `Malformed` if `path` is not a file; `Io` if the file system has no locks.
pub fn lock_file(path: &Path, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<File> {
    if holds_no_file(path) {
        let found = "a directory, a pipe or a link to itself";
        return Err(Error::malformed(
            path,
            "a file, which is locked",
            found,
            "remove it, or move it elsewhere",
        ));
    }
    let file = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(Error::io("write", path))?;
    let begun = Instant::now();
    let mut waited = Duration::ZERO;
    // Polls, because a signal could not end a blocking lock.
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

/// As [`lock_file`], for a file that [`write_atomically`] replaces.
pub fn lock_to_change(path: &Path, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<File> {
    loop {
        let file = lock_file(path, waiting)?;
        // The last holder may have replaced the file.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if place(&a) == place(&b))
}

/// Reads a file; `None` if it does not exist.
///
/// # Errors
/// `Io` of the kind `IsADirectory` for a directory, a pipe or a device.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    read_at_most(path, u64::MAX)
}

/// As [`read_if_present`], for a text file of this program.
///
/// # Errors
/// As [`read_if_present`]; also `IsADirectory` for a file that is too large.
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

/// Returns the directory of a file; `.` for a name alone.
pub fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."))
}

/// Lists a directory, sorted by name.
pub(super) fn children(dir: &Path) -> Result<Vec<OsString>> {
    let names = || fs::read_dir(dir)?.map(|child| Ok(child?.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = names().map_err(Error::io("list", dir))?;
    names.sort();
    Ok(names)
}

pub(super) fn move_children(from: &Path, to: &Path, stays: impl Fn(&OsStr) -> bool) -> Result<()> {
    for name in children(from)?.iter().filter(|name| !stays(name)) {
        let path = from.join(name);
        relocate(&path, &to.join(name)).map_err(Error::io("move aside", &path))?;
    }
    sync_dir(to).map_err(Error::io("write", to))?;
    sync_dir(from).map_err(Error::io("write", from))
}

/// Creates the directory `<stem>-<n>` in `parent`, with the first free n from 1.
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

/// Refuses a new file or directory whose path begins like an address, or with a `~` that the shell
/// left as it is, unless something of that first name is here.
///
/// # Errors
/// `Usage` with the reason.
pub fn check_new(path: &Path) -> Result<()> {
    let Some(first) = path.components().next().map(|first| first.as_os_str().to_string_lossy()) else {
        return Ok(());
    };
    let is_address = first.ends_with(':') && path.to_string_lossy().contains("//");
    let why = unexpanded(path).or(is_address.then_some("it names a place here, and no address"));
    match why.filter(|_| !Path::new(&*first).exists()) {
        Some(why) => {
            let path = shown_path(path);
            Err(Error::Usage(format!("{path} is not made: {why}; ./{path} is taken as it stands")))
        }
        None => Ok(()),
    }
}

/// Writes `dir/name`. After a crash at any moment the file has either all of `bytes` or its former
/// content. Removes temporary files that killed writers of the same file left.
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
            // An error of the clean-up would hide the cause.
            let _ = fs::remove_file(&temporary);
            Error::io("write", &path)(error)
        })
}

/// Creates a temporary file next to the one to write. It is locked as long as its writer lives.
fn create_temporary(dir: &Path, name: &OsStr) -> io::Result<(File, PathBuf)> {
    let mut n = 0;
    loop {
        let mut temporary = OsString::from(format!("{TEMPORARY}{n}-"));
        temporary.push(name);
        let path = dir.join(temporary);
        match File::create_new(&path) {
            Ok(file) => {
                // On a file system without locks, no other process removes it as dead either.
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

/// Removes temporary files whose writers have ended, of one file or of all in a directory. Ignores
/// errors.
pub(super) fn remove_dead(dir: &Path, name: Option<&OsStr>) {
    for found in children(dir).unwrap_or_default() {
        if is_temporary(&found, name) {
            let path = dir.join(&found);
            // Removes it under the lock, so that its writer notices. The path may have become that of
            // another file: the writer of the opened one renames it, and the next takes its name.
            _ = open(&path).is_ok_and(|file| {
                file.try_lock().is_ok() && is_at(&file, &path) && fs::remove_file(&path).is_ok()
            });
        }
    }
}

/// True if a name is that of a temporary file; with `of`, of that file only.
fn is_temporary(name: &OsStr, of: Option<&OsStr>) -> bool {
    let bytes = name.as_encoded_bytes();
    let rest = bytes.strip_prefix(TEMPORARY.as_bytes()).unwrap_or_default();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let of_file = rest[digits..].strip_prefix(b"-");
    digits > 0 && of_file.is_some_and(|file| of.is_none_or(|of| of.as_encoded_bytes() == file))
}

/// Removes all temporary files of a directory; the caller holds its lock.
pub(super) fn remove_temporaries(dir: &Path) -> Result<()> {
    for name in children(dir)?.iter().filter(|name| is_temporary(name, None)) {
        remove(&dir.join(name))?;
    }
    Ok(())
}

/// Makes renames and new names in `dir` survive a power cut. Prints a note, once, if the file system
/// cannot do that.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    static NOTED: Once = Once::new();
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
