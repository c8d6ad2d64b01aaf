//! Entries of the store: their files, and the verification of them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checkpoint::{Checkpoint, Saved};
use super::files::{
    Content, lock_file, read_if_present, read_text_if_present, remove, remove_dead, remove_temporaries,
    sync_dir,
};
use super::lock::Lock;
use super::manifest::Manifest;
use super::{CHECKPOINT, EXPERIMENT, Key, LOCK, MANIFEST, RECORD, SLOTS, begin, sha256_hex};
use crate::error::{Error, Result, shown, shown_path};

/// State of an entry on disk.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once per entry and taken apart at once")]
pub enum Finished {
    /// Published, and unchanged since.
    Yes(Manifest),
    /// Not begun, or not published yet.
    No,
    /// Published, but changed since; the sentence names the file.
    Damaged(String),
}

/// One place in the store. Making or cloning it does not touch the disk.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) key: Key,
    pub(super) label: String,
    pub(super) dir: PathBuf,
}

impl Entry {
    /// Returns the key of its experiment.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns its name for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns its directory, which need not exist.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the output `name`, which need not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the directory of the checkpoints, which need not exist.
    pub fn checkpoint_dir(&self) -> PathBuf {
        self.dir.join(CHECKPOINT)
    }

    /// Reads the output `name`.
    ///
    /// # Errors
    /// `Missing` if there is no such file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        read_if_present(&path)?.ok_or_else(|| {
            let what = format!("an output of {}", self.label);
            Error::missing(path, what, "make it again with replicate run")
        })
    }

    /// Verifies the entry: its manifest, its experiment, whose text must hash to the key, and every
    /// byte of every output.
    pub fn finished(&self) -> Result<Finished> {
        match self.verify() {
            Ok(None) => Ok(Finished::No),
            Ok(Some(manifest)) => {
                self.forget_checkpoints();
                Ok(Finished::Yes(manifest))
            }
            Err(Fault::Damage(name, what)) => {
                Ok(Finished::Damaged(format!("{} {what}", shown_path(&self.path(&name)))))
            }
            Err(Fault::Unreadable(error)) => Err(error),
        }
    }

    /// Returns the manifest of a verified entry; `None` if it is not published.
    fn verify(&self) -> std::result::Result<Option<Manifest>, Fault> {
        let damage = |name: &str, what: String| Err(Fault::Damage(name.into(), what));
        let Some(bytes) = self.text(MANIFEST)? else { return Ok(None) };
        let manifest = Manifest::parse(&bytes).map_err(|what| Fault::Damage(MANIFEST.into(), what))?;
        let Manifest { key, label, experiment, .. } = &manifest;
        if *key != self.key.0 {
            return damage(MANIFEST, format!("belongs to the key {}, not to {}", shown(key), self.key));
        }
        if Key::of(experiment) != self.key {
            return damage(MANIFEST, format!("has an experiment that does not hash to the key {}", self.key));
        }
        if *label != self.label {
            return damage(MANIFEST, format!("has the label {}, not {}", shown(label), self.label));
        }
        match self.text(EXPERIMENT)? {
            None => return damage(EXPERIMENT, "is missing".into()),
            Some(text) if sha256_hex(&text) != self.key.0 => {
                return damage(EXPERIMENT, format!("does not hash to the key {}", self.key));
            }
            Some(_) => {}
        }
        for (name, expected) in &manifest.outputs {
            let path = self.path(name);
            let what = match Content::in_place_of(expected, &path) {
                Ok(found) if found == *expected => continue,
                Ok(found) if found.bytes != expected.bytes => {
                    format!("has {} bytes instead of {}", found.bytes, expected.bytes)
                }
                Ok(found) => format!("has the SHA-256 {} instead of {}", found.sha256, expected.sha256),
                Err(error) if error.kind() == ErrorKind::NotFound => "is missing".into(),
                Err(error) if error.kind() == ErrorKind::IsADirectory => no_file(&path),
                Err(error) => return Err(Error::io("read", &path)(error).into()),
            };
            return damage(name, what);
        }
        Ok(Some(manifest))
    }

    /// Reads a text file of the entry, if it exists.
    fn text(&self, name: &str) -> std::result::Result<Option<Vec<u8>>, Fault> {
        let path = self.path(name);
        read_text_if_present(&path).map_err(|error| match is_no_file(&error) {
            true => Fault::Damage(name.into(), no_file(&path)),
            false => error.into(),
        })
    }

    /// Removes the checkpoints that a process left which was killed after publishing. Does nothing if
    /// another process holds the lock.
    fn forget_checkpoints(&self) {
        if self.checkpoint_dir().symlink_metadata().is_ok()
            && let Ok(lock) = fs::OpenOptions::new().append(true).open(self.path(LOCK))
            && lock.try_lock().is_ok()
            && self.path(MANIFEST).exists()
        {
            _ = self.remove_checkpoints();
        }
    }

    /// Returns the newest valid checkpoint, and one sentence for each file that was skipped because
    /// it is truncated, altered, or of another experiment.
    pub fn load_checkpoint(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let (saved, notices) = self.saved()?;
        Ok((saved.into_iter().next().map(|saved| saved.checkpoint), notices))
    }

    /// Returns the valid checkpoints, newest first, and one sentence for each skipped file.
    pub(super) fn saved(&self) -> Result<(Vec<Saved>, Vec<String>)> {
        let (mut valid, mut notices) = (Vec::new(), Vec::new());
        for slot in SLOTS {
            let path = self.checkpoint_dir().join(slot);
            let skipped = |what: String| format!("skipped the checkpoint {}: {what}", shown_path(&path));
            match read_if_present(&path) {
                Ok(None) => {}
                Ok(Some(bytes)) => match Saved::parse(&path, &bytes, &self.key) {
                    Ok(saved) => valid.push(saved),
                    Err(what) => notices.push(skipped(what)),
                },
                Err(error) if is_no_file(&error) => notices.push(skipped("it is not a file".into())),
                Err(error) => return Err(error),
            }
        }
        valid.sort_by_key(|saved| std::cmp::Reverse(saved.sequence));
        Ok((valid, notices))
    }

    /// Creates the entry's directory if necessary, and waits for its lock as [`lock_file`] does.
    ///
    /// Removes leftovers of killed processes: temporary files, and the checkpoints of a published
    /// entry.
    pub fn lock(&self, waiting: &mut dyn FnMut(Duration) -> Result<()>) -> Result<Lock> {
        let root = self.dir.parent().expect("an entry lies in a store");
        begin(root)?;
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        sync_dir(root).map_err(Error::io("write", root))?;
        let file = lock_file(&self.path(LOCK), waiting)?;
        remove_temporaries(&self.dir)?;
        // The checkpoint directory may be a link to a shared place, so other files stay.
        for name in SLOTS.into_iter().chain([RECORD]) {
            remove_dead(&self.checkpoint_dir(), Some(name.as_ref()));
        }
        if self.path(MANIFEST).exists() {
            self.remove_checkpoints()?;
        }
        Ok(Lock::new(self.clone(), file))
    }

    pub(super) fn remove_checkpoints(&self) -> Result<()> {
        let dir = self.checkpoint_dir();
        let removed = match fs::symlink_metadata(&dir) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&dir),
            Ok(_) => {
                for name in SLOTS.into_iter().chain([RECORD]) {
                    remove(&dir.join(name))?;
                }
                fs::remove_file(&dir)
            }
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &dir)(error)),
            _ => Ok(()),
        }
    }
}

/// Reason why an entry is not finished.
enum Fault {
    /// A file with what is wrong with it.
    Damage(String, String),
    Unreadable(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Unreadable(error)
    }
}

/// True if a path exists that is not a file.
pub(super) fn is_no_file(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::IsADirectory)
}

/// Describes what is in the place of a file.
fn no_file(path: &Path) -> String {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => format!("has {} bytes, which are too many", metadata.len()),
        Ok(metadata) if metadata.is_dir() => "is a directory".into(),
        _ => "is not a file".into(),
    }
}
