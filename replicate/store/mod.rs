//! The content-addressed store: a directory of entries, each named by the SHA-256 of the text that
//! describes its experiment.
//!
//! ```text
//! STORE/format                    replicate store 1
//! STORE/<key12>-<label>/          one entry
//!     experiment.txt              the text whose SHA-256 is the key
//!     weights.safetensors …       outputs
//!     manifest.json               written last: an entry with a manifest is finished
//!     checkpoint/{a,b,outputs}.safetensors   until it is finished
//!     lock                        held by the one process that writes
//! STORE/<entry>.damaged-<n>/      a damaged entry, moved aside and never deleted
//! ```
//!
//! Reading an entry needs no lock; writing needs its [`Lock`]:
//!
//! ```no_run
//! # use replicate::store::*;
//! # fn make(_: &Lock, _: Option<Checkpoint>) -> replicate::error::Result<Manifest> { todo!() }
//! # fn main() -> replicate::error::Result<()> {
//! # let (experiment, outputs) = ("", ["weights.safetensors"]);
//! let store = Store::open("store".as_ref())?;
//! let entry = store.entry(&Key::of(experiment), "dijs-s0");
//! if !matches!(entry.finished()?, Finished::Yes(_)) {
//!     let entry = entry.lock(&mut |_waited| Ok(()))?;
//!     // Another process may have finished or repaired it while this one waited.
//!     match entry.finished()? {
//!         Finished::Yes(_) => return Ok(()),
//!         Finished::Damaged(reason) => drop(entry.discard(&reason)?),
//!         Finished::No => {}
//!     }
//!     let (checkpoint, _notices) = entry.resume()?;
//!     let manifest = make(&entry, checkpoint)?; // writes the outputs
//!     entry.publish(manifest, &outputs)?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod archive;
mod checkpoint;
mod entry;
pub mod fetch;
mod files;
pub mod formats;
mod lock;
mod manifest;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use self::checkpoint::Checkpoint;
pub use self::entry::{Entry, Finished};
pub(crate) use self::files::sync_dir;
pub use self::files::{Content, check_new, dir_of, lock_file, lock_to_change, write_atomically};
use self::files::{children, read_text_if_present, remove_dead};
pub use self::formats::safetensors::{Array, read_safetensors, write_safetensors};
pub use self::lock::Lock;
pub use self::manifest::{Manifest, Provenance};
use crate::error::{Error, Result, shown, shown_path};
use crate::text::quoted_path;

const STORE_FORMAT: &str = "replicate store 1\n";
const FORMAT: &str = "format";
/// Directory of fetched files, see [`fetch`].
const INPUTS: &str = "inputs";
const EXPERIMENT: &str = "experiment.txt";
const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
const CHECKPOINT: &str = "checkpoint";
const SLOTS: [&str; 2] = ["a.safetensors", "b.safetensors"];
/// Record of the outputs that were finished since the last checkpoint; it has no tensors.
const RECORD: &str = "outputs.safetensors";

/// Returns the SHA-256 of `bytes` as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// Formats bytes as lower-case hex digits.
pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// True if a text has the form of [`sha256_hex`], so that it may become part of a path.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Key of an experiment: the SHA-256 of its canonical text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Returns the key of a canonical text.
    pub fn of(text: &str) -> Key {
        Key(sha256_hex(text.as_bytes()))
    }

    /// Returns the first 12 hex digits, for directory names and tables.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An open store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`. A store that does not exist is empty; the first write creates it.
    /// A store without its `format` file, or with a truncated one, is recognised by its entries; the
    /// next write restores the file.
    ///
    /// # Errors
    /// `Malformed` if `root` is a store of another format, or another directory, which stays
    /// untouched; `Missing` or `Io` if a store may be there that cannot be reached; those of [`check_new`].
    pub fn open(root: &Path) -> Result<Store> {
        let store = Store { root: root.to_path_buf() };
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(not_a_store(root, "a file".into(), false)),
            Err(error) if error.kind() == ErrorKind::NotFound && root.is_symlink() => {
                let remedy = "mount or restore the place that it leads to, or name another with --store";
                return Err(Error::missing(root, "the store", remedy));
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return check_new(root).map(|()| store);
            }
            Err(error) => return Err(Error::io("open", root)(error)),
        }
        // Lists it before it reads the format, because a new store gets `format` first.
        let mut names = children(root)?;
        names.retain(|name| {
            !name.as_encoded_bytes().starts_with(b".") && name != "lost+found" && name != FORMAT
        });
        let format = read_text_if_present(&root.join(FORMAT))?;
        let is_lost = STORE_FORMAT.as_bytes().starts_with(format.as_deref().unwrap_or_default());
        let is_ours = |name: &OsStr| name == INPUTS || is_entry(name);
        let stranger = names.iter().find(|name| !is_ours(name));
        match (format, stranger) {
            (Some(format), _) if format == STORE_FORMAT.as_bytes() => Ok(store),
            (Some(format), _) if !is_lost => {
                let found = shown(String::from_utf8_lossy(&format).trim());
                Err(not_a_store(root, format!("the format {found:?}, not {:?}", STORE_FORMAT.trim()), false))
            }
            (_, Some(name)) => {
                let found = format!("{} but no file named {FORMAT}", shown(&name.to_string_lossy()));
                Err(not_a_store(root, found, names.iter().any(|name| is_ours(name))))
            }
            _ => Ok(store),
        }
    }

    /// Returns the space that damaged and unfinished entries and downloads take, by kind.
    pub fn leftovers(&self) -> Result<Vec<Leftover>> {
        let names = if self.root.exists() { children(&self.root)? } else { Vec::new() };
        let (mut damaged, mut checkpoints, mut partial, mut quarantined) = Default::default();
        for name in names {
            let dir = self.root.join(&name);
            if is_entry(&name) && name.to_string_lossy().contains(".damaged-") {
                add(&mut damaged, &dir);
            } else if is_entry(&name) {
                add(&mut checkpoints, &dir.join(CHECKPOINT));
            } else if name == INPUTS {
                add(&mut partial, &dir.join("partial"));
                add(&mut quarantined, &dir.join("quarantine"));
            }
        }
        let all = [
            ("damaged entries, moved aside", damaged),
            ("checkpoints of unfinished runs", checkpoints),
            ("unfinished downloads", partial),
            ("inputs that were moved aside", quarantined),
        ];
        let of = |(what, (count, bytes)): (&'static str, (usize, u64))| Leftover { what, count, bytes };
        Ok(all.into_iter().map(of).filter(|left| left.bytes > 0).collect())
    }

    /// Returns the entry of `key`, without creating it. `label` is for people and becomes part of the
    /// directory's name, so a key must always have the same label. Characters other than letters,
    /// digits, `-` and `_` become `-`.
    pub fn entry(&self, key: &Key, label: &str) -> Entry {
        let label = slug(label);
        let dir = self.root.join(format!("{}-{label}", key.short()));
        Entry { key: key.clone(), label, dir }
    }

    /// Returns every published entry with its manifest, sorted by name. It omits entries with an
    /// unreadable manifest, and does not read outputs: [`Entry::finished`] verifies them.
    pub fn finished_entries(&self) -> Result<Vec<(Entry, Manifest)>> {
        let mut found = Vec::new();
        if !self.root.exists() {
            return Ok(found);
        }
        for name in children(&self.root)? {
            let dir = self.root.join(name);
            let Ok(Some(bytes)) = read_text_if_present(&dir.join(MANIFEST)) else { continue };
            let Ok(manifest) = Manifest::parse(&bytes) else { continue };
            // The key becomes part of a path.
            if !is_sha256(&manifest.key) {
                continue;
            }
            let entry = self.entry(&Key(manifest.key.clone()), &manifest.label);
            if entry.dir == dir {
                found.push((entry, manifest));
            }
        }
        Ok(found)
    }
}

/// Returns the option of a printed command that selects the store at `root`; empty for the default.
pub fn option(root: &Path) -> String {
    match root == Path::new("store") {
        true => String::new(),
        false => format!(" --store {}", quoted_path(root)),
    }
}

/// Space in a store that no finished entry takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub what: &'static str,
    pub count: usize,
    pub bytes: u64,
}

/// Counts a directory if it has files, and adds the bytes of all files below it.
fn add((count, bytes): &mut (usize, u64), dir: &Path) {
    fn bytes_of(dir: &Path) -> u64 {
        let Ok(listing) = fs::read_dir(dir) else { return 0 };
        let of = |file: fs::DirEntry| match file.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_of(&file.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
        listing.flatten().map(of).sum()
    }
    let held = bytes_of(dir);
    (*count, *bytes) = (*count + (held > 0) as usize, *bytes + held);
}

/// True if a name is that of an entry's directory, also of one moved aside.
fn is_entry(name: &OsStr) -> bool {
    let (key, label) = name.to_str().and_then(|name| name.split_at_checked(12)).unwrap_or_default();
    key.bytes().all(|byte| byte.is_ascii_hexdigit()) && label.len() > 1 && label.starts_with('-')
}

/// Creates the store at `root` if it does not exist. Must precede any other write.
///
/// # Errors
/// Those of [`check_new`].
pub(crate) fn begin(root: &Path) -> Result<()> {
    check_new(root)?;
    fs::create_dir_all(root).map_err(Error::io("create", root))?;
    match read_text_if_present(&root.join(FORMAT))? {
        Some(format) if format == STORE_FORMAT.as_bytes() => {
            remove_dead(root, Some(FORMAT.as_ref()));
            Ok(())
        }
        _ => {
            note_if_open_to_all(root);
            write_atomically(root, FORMAT, STORE_FORMAT.as_bytes())
        }
    }
}

/// Prints a note if other users may change a new store, because of the umask.
fn note_if_open_to_all(root: &Path) {
    if fs::metadata(root).is_ok_and(|found| found.mode() & 0o2 != 0) {
        let path = shown_path(root);
        _ = writeln!(
            std::io::stderr(),
            "note: everybody may write into {path} (umask): chmod o-w changes that"
        );
    }
}

fn not_a_store(root: &Path, found: String, has_entries: bool) -> Error {
    let (name, path) = (STORE_FORMAT.trim(), shown_path(&root.join(FORMAT)));
    let remedy = match has_entries {
        true => format!("name another place with --store; if it is a store: echo {name} > {path}"),
        false => "name another place with --store".into(),
    };
    Error::malformed(root, "a store or an empty directory", found, remedy)
}

/// Converts a label to the form in a directory's name.
pub fn slug(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let slug: String = text.chars().map(plain).take(100).collect();
    match slug.trim_matches('-') {
        "" => "unnamed".into(),
        slug => slug.into(),
    }
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

fn is_output_name(name: &str) -> bool {
    is_plain(name) && ![MANIFEST, LOCK, CHECKPOINT, EXPERIMENT].contains(&name)
}
