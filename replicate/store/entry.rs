//! One place in the store: what it holds, and whether that is good.

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
    pub(super) key: Key,
    pub(super) label: String,
    pub(super) dir: PathBuf,
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
        let damaged = |name: &str, what: String| {
            Ok(Finished::Damaged(format!("{} {what}", shown_path(&self.path(name)))))
        };
        let bytes = match read_text_if_present(&self.path(MANIFEST)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Finished::No),
            Err(error) if is_no_file(&error) => return damaged(MANIFEST, no_file(&self.path(MANIFEST))),
            Err(error) => return Err(error),
        };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(what) => return damaged(MANIFEST, what),
        };
        if manifest.key != self.key.0 {
            return damaged(
                MANIFEST,
                format!("belongs to the key {}, not to {}", shown(&manifest.key), self.key),
            );
        }
        if Key::of(&manifest.experiment) != self.key {
            return damaged(
                MANIFEST,
                format!("has an experiment that does not hash to the key {}", self.key),
            );
        }
        if manifest.label != self.label {
            return damaged(
                MANIFEST,
                format!("has the label {}, not {}", shown(&manifest.label), self.label),
            );
        }
        match read_text_if_present(&self.path(EXPERIMENT)) {
            Ok(None) => return damaged(EXPERIMENT, "is missing".into()),
            Ok(Some(text)) if sha256_hex(&text) != self.key.0 => {
                return damaged(EXPERIMENT, format!("does not hash to the key {}", self.key));
            }
            Ok(Some(_)) => {}
            Err(error) if is_no_file(&error) => return damaged(EXPERIMENT, no_file(&self.path(EXPERIMENT))),
            Err(error) => return Err(error),
        }
        for (name, expected) in &manifest.outputs {
            match Content::in_place_of(expected, &self.path(name)) {
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
                    return damaged(name, no_file(&self.path(name)));
                }
                Err(error) => return Err(Error::io("read", &self.path(name))(error)),
            }
        }
        self.forget_checkpoints();
        Ok(Finished::Yes(manifest))
    }

    /// Removes what a writer left that was killed after it had published, as far as
    /// that can be done here and nobody else is at it.
    fn forget_checkpoints(&self) {
        if self.checkpoint_dir().symlink_metadata().is_ok()
            && let Ok(lock) = fs::OpenOptions::new().append(true).open(self.path(LOCK))
            && lock.try_lock().is_ok()
            && self.path(MANIFEST).exists()
        {
            _ = self.remove_checkpoints();
        }
    }

    /// The newest valid checkpoint, with one sentence for each file that was
    /// skipped because it is truncated, altered, or not of this experiment.
    pub fn load_checkpoint(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let (saved, notices) = self.saved()?;
        Ok((saved.into_iter().next().map(|saved| saved.checkpoint), notices))
    }

    /// The valid checkpoints, the newest first, and why others are not.
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
        // It may be a link to a place that others use.
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

/// Whether something else is in the place of a file.
pub(super) fn is_no_file(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::IsADirectory)
}

/// What is in the place of a file.
fn no_file(path: &Path) -> String {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => format!("has {} bytes, which are too many", metadata.len()),
        Ok(metadata) if metadata.is_dir() => "is a directory".into(),
        _ => "is not a file".into(),
    }
}
