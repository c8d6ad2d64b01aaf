//! The content-addressed store: one directory for everything that was made,
//! named by the SHA-256 of the text that says how it is made.
//!
//! ```text
//! STORE/format                    replicate store 1
//! STORE/<key12>-<label>/          one entry
//!     experiment.txt              the text whose SHA-256 is the key
//!     weights.safetensors …       outputs
//!     manifest.json               written last: an entry with it is finished
//!     checkpoint/{a,b}.safetensors   until it is finished
//!     lock                        held by the one process that writes
//! STORE/<entry>.damaged-<n>/      a damaged entry, moved aside, never deleted
//! ```
//!
//! An entry is read freely and written under its [`Lock`]:
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
//!     // Asked again: another worker may have finished or repaired it meanwhile.
//!     match entry.finished()? {
//!         Finished::Yes(_) => return Ok(()),
//!         Finished::Damaged(reason) => drop(entry.discard(&reason)?),
//!         Finished::No => {}
//!     }
//!     let (checkpoint, _notices) = entry.load_checkpoint()?;
//!     let manifest = make(&entry, checkpoint)?; // writes the outputs
//!     entry.publish(manifest, &outputs)?;
//! }
//! # Ok(())
//! # }
//! ```

mod checkpoint;
pub mod fetch;
mod files;
pub mod formats;
mod manifest;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

pub use self::checkpoint::Checkpoint;
pub use self::files::{Content, lock_file, write_atomically};
use self::files::{children, move_children, numbered_dir, read_if_present, remove_temporaries, sync_dir};
pub use self::formats::safetensors::{Array, read_safetensors, write_safetensors};
pub use self::manifest::{Manifest, Provenance};
use crate::error::{Error, Result};

const STORE_FORMAT: &str = "replicate store 1\n";
const FORMAT: &str = "format";
const EXPERIMENT: &str = "experiment.txt";
const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
const CHECKPOINT: &str = "checkpoint";
const SLOTS: [&str; 2] = ["a.safetensors", "b.safetensors"];

/// SHA-256 of `bytes`, 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// Lower-case hex digits, two for each byte.
pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of an experiment: the SHA-256 of its canonical text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    pub fn of(text: &str) -> Key {
        Key(sha256_hex(text.as_bytes()))
    }

    /// The first 12 hex digits, for directory names and tables.
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
    /// Opens the store at `root`. One that is not there is empty, and made by
    /// whoever first writes into it.
    ///
    /// # Errors
    /// `Malformed` when `root` is a store of another format, or holds files but
    /// no `format` file: it is then some other directory. Nothing in it is touched.
    pub fn open(root: &Path) -> Result<Store> {
        if !root.exists() {
            return Ok(Store { root: root.to_path_buf() });
        }
        // Listed before the format is read: whoever makes a store writes `format` first.
        let stranger = children(root)?.into_iter().find(|name| {
            !name.as_encoded_bytes().starts_with(b".") && name != "lost+found" && name != FORMAT
        });
        match (read_if_present(&root.join(FORMAT))?, stranger) {
            (Some(format), _) if format != STORE_FORMAT.as_bytes() => {
                let text: String = String::from_utf8_lossy(&format).trim().chars().take(60).collect();
                Err(not_a_store(root, format!("the format {text:?}, not {:?}", STORE_FORMAT.trim())))
            }
            (None, Some(name)) => {
                Err(not_a_store(root, format!("{} but no file named {FORMAT}", name.display())))
            }
            _ => Ok(Store { root: root.to_path_buf() }),
        }
    }

    /// The entry of `key`; nothing is created. `label` is there for people
    /// and becomes part of the directory's name, so one key must always come
    /// with one label; characters other than letters, digits, `-` and `_`
    /// become `-`.
    pub fn entry(&self, key: &Key, label: &str) -> Entry {
        let label = slug(label);
        let dir = self.root.join(format!("{}-{label}", key.short()));
        Entry { key: key.clone(), label, dir }
    }
}

impl Store {
    /// Every published entry with its manifest, by name; a manifest that cannot be read
    /// counts for none. Outputs are not read: [`Entry::finished`] verifies them.
    pub fn finished_entries(&self) -> Result<Vec<(Entry, Manifest)>> {
        let mut found = Vec::new();
        if !self.root.exists() {
            return Ok(found);
        }
        for name in children(&self.root)? {
            let dir = self.root.join(name);
            let Ok(Some(bytes)) = read_if_present(&dir.join(MANIFEST)) else { continue };
            let Ok(manifest) = Manifest::parse(&bytes) else { continue };
            let entry = self.entry(&Key(manifest.key.clone()), &manifest.label);
            if manifest.key.len() == 64 && entry.dir == dir {
                found.push((entry, manifest));
            }
        }
        Ok(found)
    }
}

/// Makes a store at `root` where there is none, before anything else is written there.
pub(crate) fn begin(root: &Path) -> Result<()> {
    fs::create_dir_all(root).map_err(Error::io("create", root))?;
    match root.join(FORMAT).exists() {
        true => Ok(()),
        false => write_atomically(root, FORMAT, STORE_FORMAT.as_bytes()),
    }
}

fn not_a_store(root: &Path, found: String) -> Error {
    Error::Malformed {
        path: root.to_path_buf(),
        expected: "a store or an empty directory".into(),
        found,
        remedy: "name another place with --store".into(),
    }
}

/// The state of an entry on disk.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once per entry and taken apart at once")]
pub enum Finished {
    /// Published, and every byte is as it was then.
    Yes(Manifest),
    /// Not begun, or not published yet.
    No,
    /// Published, but something has changed since; the sentence names the file.
    Damaged(String),
}

/// One place in the store. Making or cloning one touches no disk.
#[derive(Clone, Debug)]
pub struct Entry {
    key: Key,
    label: String,
    dir: PathBuf,
}

impl Entry {
    pub fn key(&self) -> &Key {
        &self.key
    }

    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the output `name` is, or will be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the checkpoints are, or will be.
    pub fn checkpoint_dir(&self) -> PathBuf {
        self.dir.join(CHECKPOINT)
    }

    /// Reads the output `name`.
    ///
    /// # Errors
    /// `Missing` when there is no such file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        read_if_present(&path)?.ok_or_else(|| Error::Missing {
            path,
            what: format!("an output of {}", self.label),
            remedy: "make it again with replicate run".into(),
        })
    }

    /// Whether the entry is published and undamaged: the manifest is read, the
    /// experiment's text must hash to the key, and every output must have its
    /// recorded size and SHA-256. Reads every byte of every output.
    pub fn finished(&self) -> Result<Finished> {
        let damaged =
            |name: &str, what: String| Ok(Finished::Damaged(format!("{} {what}", self.path(name).display())));
        let Some(bytes) = read_if_present(&self.path(MANIFEST))? else {
            return Ok(Finished::No);
        };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(what) => return damaged(MANIFEST, what),
        };
        if manifest.key != self.key.0 {
            return damaged(MANIFEST, format!("belongs to the key {}, not to {}", manifest.key, self.key));
        }
        match read_if_present(&self.path(EXPERIMENT))? {
            None => return damaged(EXPERIMENT, "is missing".into()),
            Some(text) if sha256_hex(&text) != self.key.0 => {
                return damaged(EXPERIMENT, format!("does not hash to the key {}", self.key));
            }
            Some(_) => {}
        }
        for (name, expected) in &manifest.outputs {
            match Content::of(&self.path(name)) {
                Ok(found) if found == *expected => {}
                Ok(found) if found.bytes != expected.bytes => {
                    return damaged(name, format!("has {} bytes instead of {}", found.bytes, expected.bytes));
                }
                Ok(found) => {
                    let what = format!("has the SHA-256 {} instead of {}", found.sha256, expected.sha256);
                    return damaged(name, what);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return damaged(name, "is missing".into());
                }
                Err(error) if error.kind() == ErrorKind::IsADirectory => {
                    return damaged(name, "is a directory".into());
                }
                Err(error) => return Err(Error::io("read", &self.path(name))(error)),
            }
        }
        Ok(Finished::Yes(manifest))
    }

    /// The newest valid checkpoint, with one sentence for each file that was
    /// skipped because it is truncated, altered, or not of this experiment.
    pub fn load_checkpoint(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let mut notices = Vec::new();
        let mut newest: Option<(u64, Checkpoint)> = None;
        for slot in SLOTS {
            let path = self.checkpoint_dir().join(slot);
            let Some(bytes) = read_if_present(&path)? else { continue };
            match Checkpoint::parse(&path, &bytes, &self.key) {
                Ok(found) if newest.as_ref().is_none_or(|(sequence, _)| found.0 > *sequence) => {
                    newest = Some(found)
                }
                Ok(_) => {}
                Err(what) => notices.push(format!("skipped the checkpoint {}: {what}", path.display())),
            }
        }
        Ok((newest.map(|(_, checkpoint)| checkpoint), notices))
    }

    /// Creates the entry's directory if need be and waits for the right to
    /// write into it, as [`lock_file`] does.
    ///
    /// Removes what killed processes left: temporary files, and the
    /// checkpoints of an entry that is published.
    pub fn lock(&self, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<Lock> {
        let root = self.dir.parent().expect("an entry lies in a store");
        begin(root)?;
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        sync_dir(root).map_err(Error::io("write", root))?;
        let file = lock_file(&self.path(LOCK), waiting)?;
        remove_temporaries(&self.dir)?;
        if self.checkpoint_dir().exists() {
            remove_temporaries(&self.checkpoint_dir())?;
        }
        if self.path(MANIFEST).exists() {
            self.remove_checkpoints()?;
        }
        Ok(Lock { entry: self.clone(), next_save: Mutex::new(None), _file: file })
    }

    fn remove_checkpoints(&self) -> Result<()> {
        let dir = self.checkpoint_dir();
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &dir)(error)),
            _ => Ok(()),
        }
    }
}

/// The right to write into one entry, held until it is dropped. Everything an
/// [`Entry`] can do, a lock on it can do too.
#[derive(Debug)]
pub struct Lock {
    entry: Entry,
    next_save: Mutex<Option<Save>>,
    _file: File,
}

/// Where the next checkpoint goes, and its number.
#[derive(Clone, Copy, Debug)]
struct Save {
    slot: usize,
    sequence: u64,
}

impl Deref for Lock {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Lock {
    /// Writes the file `name` so that after a crash at any moment it holds
    /// either all of `bytes` or what it held before. When this returns, the
    /// bytes are on the disk.
    ///
    /// # Errors
    /// `Io` when the disk is full or the like: nothing has changed then. `Run`
    /// when the entry is published, or `name` is not a plain file name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if !is_plain(name) || [MANIFEST, LOCK, CHECKPOINT].contains(&name) {
            return Err(Error::Run(format!("{name:?} is not a name that an output can have")));
        }
        self.refuse_if_published()?;
        write_atomically(&self.dir, name, bytes)
    }

    /// Finishes the entry: writes `experiment.txt`, records size and SHA-256 of
    /// each of `outputs`, writes the manifest and then removes the checkpoints.
    /// Fills in the manifest's `format`, `key`, `label`, `outputs` and
    /// `manifest_sha256`, and returns it as it was written.
    ///
    /// # Errors
    /// `Missing` for an output that was not written; `Run` when the manifest's
    /// experiment is not this entry's, or the entry is published already.
    pub fn publish(&self, mut manifest: Manifest, outputs: &[&str]) -> Result<Manifest> {
        self.refuse_if_published()?;
        if Key::of(&manifest.experiment) != self.key {
            return Err(Error::Run(format!(
                "the experiment to publish is not that of {}",
                self.dir.display()
            )));
        }
        if !manifest.provenance.wall_seconds.is_finite() {
            return Err(Error::Run("the wall time to publish is not a finite number".into()));
        }
        self.write(EXPERIMENT, manifest.experiment.as_bytes())?;
        manifest.format = Manifest::FORMAT;
        manifest.key = self.key.0.clone();
        manifest.label = self.label.clone();
        manifest.outputs.clear();
        for &name in outputs {
            if !is_output_name(name) {
                return Err(Error::Run(format!("{name:?} is not a name that an output can have")));
            }
            let path = self.path(name);
            let synced = File::open(&path).and_then(|file| file.sync_all());
            let output = synced.and_then(|()| Content::of(&path)).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::Missing {
                    path,
                    what: format!("{} was to publish it, but did not write it", self.label),
                    remedy: "this is an error in replicate, please report it".into(),
                },
                _ => Error::io("read", &path)(error),
            })?;
            manifest.outputs.insert(name.to_string(), output);
        }
        let text = manifest.seal();
        write_atomically(&self.dir, MANIFEST, text.as_bytes())?;
        self.remove_checkpoints()?;
        Ok(manifest)
    }

    /// Moves everything in the entry to `<entry>.damaged-<n>`, with `reason`
    /// in `damaged.txt`, and returns that path. The entry is then as if it had
    /// never been begun, and still locked.
    pub fn discard(&self, reason: &str) -> Result<PathBuf> {
        let (root, name) = (self.dir.parent(), self.dir.file_name());
        let (Some(root), Some(name)) = (root, name.and_then(OsStr::to_str)) else {
            return Err(Error::Run(format!("{} is not a directory of a store", self.dir.display())));
        };
        let aside = numbered_dir(root, &format!("{name}.damaged"))?;
        write_atomically(&aside, "damaged.txt", format!("{reason}\n").as_bytes())?;
        // First: without it what remains counts as unfinished, should we be killed.
        let manifest = self.path(MANIFEST);
        if manifest.exists() {
            fs::rename(&manifest, aside.join(MANIFEST)).map_err(Error::io("move aside", &manifest))?;
        }
        move_children(&self.dir, &aside, |name| name == LOCK)?;
        *self.next_save() = None;
        Ok(aside)
    }

    /// Writes a checkpoint over the older of the two, so that the newer one
    /// remains whatever happens. Bytes depend on nothing but the key, the
    /// checkpoint and how many were saved before it.
    ///
    /// # Errors
    /// `Io` when the disk is full or the like: both old ones remain then.
    ///
    /// # Panics
    /// As [`write_safetensors`].
    pub fn save_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.refuse_if_published()?;
        let mut next = self.next_save();
        let save = match *next {
            Some(save) => save,
            None => self.older_slot()?,
        };
        let dir = self.checkpoint_dir();
        if !dir.exists() {
            fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
            sync_dir(&self.dir).map_err(Error::io("write", &self.dir))?;
        }
        let bytes = checkpoint.to_bytes(&self.key, save.sequence);
        write_atomically(&dir, SLOTS[save.slot], &bytes)?;
        *next = Some(Save { slot: 1 - save.slot, sequence: save.sequence + 1 });
        Ok(())
    }

    /// The slot that is not the newest valid checkpoint's.
    fn older_slot(&self) -> Result<Save> {
        let mut next = Save { slot: 0, sequence: 0 };
        for (slot, name) in SLOTS.iter().enumerate() {
            let path = self.checkpoint_dir().join(name);
            let Some(bytes) = read_if_present(&path)? else { continue };
            if let Ok((sequence, _)) = Checkpoint::parse(&path, &bytes, &self.key)
                && sequence >= next.sequence
            {
                next = Save { slot: 1 - slot, sequence: sequence + 1 };
            }
        }
        Ok(next)
    }

    fn next_save(&self) -> MutexGuard<'_, Option<Save>> {
        self.next_save.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `finished` has once called good does not change afterwards.
    fn refuse_if_published(&self) -> Result<()> {
        match self.path(MANIFEST).exists() {
            true => Err(Error::Run(format!("{} is published and cannot be changed", self.dir.display()))),
            false => Ok(()),
        }
    }
}

/// `text` as part of a file name.
/// A label as it stands in the name of a directory.
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
