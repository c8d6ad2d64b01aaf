//! The lock of an entry, and all writing into the entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::checkpoint::{Checkpoint, Saved};
use super::entry::{Entry, is_no_file};
use super::files::{
    Content, holds_no_file, move_children, numbered_dir, read_if_present, relocate, remove, sync_dir,
    write_atomically,
};
use super::manifest::Manifest;
use super::{
    CHECKPOINT, EXPERIMENT, Key, LOCK, MANIFEST, RECORD, SLOTS, is_output_name, is_plain, sha256_hex,
};
use crate::error::{Error, Result, shown_path};

/// Exclusive right to write into an entry, until it is dropped. It derefs to the [`Entry`].
#[derive(Debug)]
pub struct Lock {
    entry: Entry,
    next_save: Mutex<Option<Save>>,
    /// Outputs that were written or verified under this lock.
    written: Mutex<BTreeMap<String, Written>>,
    _file: File,
}

#[derive(Clone, Debug)]
struct Written {
    content: Content,
    /// True if it does not change any more; checkpoints record its digest then.
    is_final: bool,
}

/// Slot and number of the next checkpoint.
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
    pub(super) fn new(entry: Entry, file: File) -> Lock {
        Lock { entry, next_save: Mutex::new(None), written: Mutex::default(), _file: file }
    }

    /// Writes the output `name` to the disk. After a crash at any moment the file has either all of
    /// `bytes` or its former content. Later checkpoints record its digest: a run resumes only from a
    /// checkpoint whose outputs are unchanged.
    ///
    /// # Errors
    /// `Io` if the disk is full or fails; nothing has changed then. `Run` if the entry is published,
    /// or if `name` is not a plain file name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_as(name, bytes, true)
    }

    /// As [`Lock::write`], for a file that grows during the run and that a resumed run rebuilds from
    /// its checkpoint.
    ///
    /// # Errors
    /// As [`Lock::write`].
    pub fn rewrite(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_as(name, bytes, false)
    }

    fn write_as(&self, name: &str, bytes: &[u8], is_final: bool) -> Result<()> {
        if !is_plain(name) || [MANIFEST, LOCK, CHECKPOINT].contains(&name) {
            return Err(Error::Run(format!("{name:?} is not a name that an output can have")));
        }
        self.refuse_if_published()?;
        self.make_way(&self.path(name))?;
        write_atomically(&self.dir, name, bytes)?;
        let content = Content { bytes: bytes.len() as u64, sha256: sha256_hex(bytes) };
        self.written().insert(name.into(), Written { content, is_final });
        Ok(())
    }

    /// Moves a path aside that should be a file but is not.
    fn make_way(&self, path: &Path) -> Result<()> {
        if holds_no_file(path) {
            let aside = self.aside()?;
            relocate(path, &aside.join(path.file_name().unwrap_or_default()))
                .map_err(Error::io("move aside", path))?;
        }
        Ok(())
    }

    /// Creates a directory next to the entry for damaged files.
    fn aside(&self) -> Result<PathBuf> {
        let (root, name) = (self.dir.parent(), self.dir.file_name());
        let (Some(root), Some(name)) = (root, name.and_then(OsStr::to_str)) else {
            return Err(Error::Run(format!("{} is not a directory of a store", shown_path(&self.dir))));
        };
        numbered_dir(root, &format!("{name}.damaged"))
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<String, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the digests of the final outputs.
    fn finals(&self) -> BTreeMap<String, Content> {
        let written = self.written();
        let finals = written.iter().filter(|(_, written)| written.is_final);
        finals.map(|(name, written)| (name.clone(), written.content.clone())).collect()
    }

    /// Describes how a finished output changed; `None` if it did not.
    fn altered(&self, name: &str, expected: &Content) -> Result<Option<String>> {
        let path = self.path(name);
        let what = match Content::in_place_of(expected, &path) {
            Ok(found) if found == *expected => return Ok(None),
            Ok(_) => "was altered",
            Err(error) if error.kind() == ErrorKind::NotFound => "is missing",
            Err(error) if error.kind() == ErrorKind::IsADirectory => "is not a file",
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        Ok(Some(format!("{} {what} since the run was stopped", shown_path(&path))))
    }

    /// Returns the newest valid checkpoint whose outputs are unchanged since, and one sentence for
    /// each other checkpoint.
    ///
    /// # Errors
    /// `Io` if a file cannot be read.
    pub fn resume(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let (saved, mut notices) = self.saved()?;
        for Saved { checkpoint, finished, .. } in saved {
            let mut altered = None;
            for (name, content) in &finished {
                altered = altered.or(self.altered(name, content)?);
            }
            match altered {
                None => {
                    let of = |(name, content)| (name, Written { content, is_final: true });
                    self.written().extend(finished.into_iter().map(of));
                    return Ok((Some(checkpoint), notices));
                }
                Some(what) => notices.push(format!(
                    "{what}: the run ignores the checkpoint after {} images and goes further back",
                    checkpoint.images
                )),
            }
        }
        Ok((None, notices))
    }

    /// Records the digests of the outputs so far, for [`Lock::finished_output`] after an
    /// interruption. The record is a checkpoint without tensors.
    ///
    /// # Errors
    /// As [`Lock::save_checkpoint`].
    pub fn record_outputs(&self) -> Result<()> {
        self.refuse_if_published()?;
        let dir = self.make_checkpoint_dir()?;
        self.make_way(&dir.join(RECORD))?;
        write_atomically(&dir, RECORD, &Checkpoint::default().to_bytes(&self.key, 0, &self.finals()))
    }

    /// Returns the output `name` that an interrupted run recorded; `None` if there is none, or if it
    /// changed.
    ///
    /// # Errors
    /// `Io` if it cannot be read.
    pub fn finished_output(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.checkpoint_dir().join(RECORD);
        let record = match read_if_present(&path) {
            Err(error) if !is_no_file(&error) => return Err(error),
            record => record.unwrap_or_default(),
        };
        let record = record.and_then(|bytes| Saved::parse(&path, &bytes, &self.key).ok());
        let Some(content) = record.and_then(|mut record| record.finished.remove(name)) else {
            return Ok(None);
        };
        match read_if_present(&self.path(name)) {
            Ok(Some(bytes)) if sha256_hex(&bytes) == content.sha256 => {
                self.written().insert(name.into(), Written { content, is_final: true });
                Ok(Some(bytes))
            }
            Err(error) if !is_no_file(&error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Finishes the entry: writes `experiment.txt`, records size and SHA-256 of each of `outputs`,
    /// writes the manifest, and removes the checkpoints. Sets the manifest's `format`, `key`,
    /// `label`, `outputs` and `manifest_sha256`, and returns it.
    ///
    /// # Errors
    /// `Missing` for an output that was not written; `Malformed` for one that changed since; `Run`
    /// if the manifest belongs to another experiment, or if the entry is published already.
    pub fn publish(&self, mut manifest: Manifest, outputs: &[&str]) -> Result<Manifest> {
        self.refuse_if_published()?;
        if Key::of(&manifest.experiment) != self.key {
            return Err(Error::Run(format!(
                "the experiment to publish is not that of {}",
                shown_path(&self.dir)
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
            let Some(written) = self.written().get(name).cloned() else {
                let what = format!("{} did not write it before publishing", self.label);
                let remedy = "this is an error in replicate, please report it";
                return Err(Error::missing(self.path(name), what, remedy));
            };
            if let Some(found) = self.altered(name, &written.content)? {
                let expected = format!("the SHA-256 {}, with which it was written", written.content.sha256);
                let remedy = "run the same command again: it resumes before that file was written";
                return Err(Error::malformed(self.path(name), expected, found, remedy));
            }
            manifest.outputs.insert(name.to_string(), written.content);
        }
        let text = manifest.seal();
        write_atomically(&self.dir, MANIFEST, text.as_bytes())?;
        self.remove_checkpoints()?;
        Ok(manifest)
    }

    /// Moves everything in the entry to `<entry>.damaged-<n>`, with `reason` in `damaged.txt`, and
    /// returns that path. The entry is then empty, and still locked.
    pub fn discard(&self, reason: &str) -> Result<PathBuf> {
        let aside = self.aside()?;
        write_atomically(&aside, "damaged.txt", format!("{reason}\n").as_bytes())?;
        // First the manifest: without it the entry counts as unfinished if this process is killed.
        let manifest = self.path(MANIFEST);
        if manifest.exists() {
            relocate(&manifest, &aside.join(MANIFEST)).map_err(Error::io("move aside", &manifest))?;
        }
        move_children(&self.dir, &aside, |name| name == LOCK)?;
        *self.next_save() = None;
        self.written().clear();
        Ok(aside)
    }

    /// Writes a checkpoint over the older of the two, so that the newer one survives any failure. The
    /// bytes depend only on the key, the checkpoint, and the number of checkpoints before it.
    ///
    /// # Errors
    /// `Io` if the disk is full or fails; both older checkpoints remain then.
    ///
    /// # Panics
    /// As [`write_safetensors`](crate::store::write_safetensors).
    pub fn save_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.refuse_if_published()?;
        let mut next = self.next_save();
        let save = match *next {
            Some(save) => save,
            None => self.older_slot()?,
        };
        let dir = self.make_checkpoint_dir()?;
        self.make_way(&dir.join(SLOTS[save.slot]))?;
        let bytes = checkpoint.to_bytes(&self.key, save.sequence, &self.finals());
        write_atomically(&dir, SLOTS[save.slot], &bytes)?;
        *next = Some(Save { slot: 1 - save.slot, sequence: save.sequence.saturating_add(1) });
        Ok(())
    }

    fn make_checkpoint_dir(&self) -> Result<PathBuf> {
        let dir = self.checkpoint_dir();
        if !dir.is_dir() {
            self.make_way(&dir)?;
            remove(&dir)?;
            fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
            sync_dir(&self.dir).map_err(Error::io("write", &self.dir))?;
        }
        Ok(dir)
    }

    /// Returns the slot that does not hold the newest valid checkpoint.
    fn older_slot(&self) -> Result<Save> {
        let newest = self.saved()?.0.into_iter().next();
        Ok(newest.map_or(Save { slot: 0, sequence: 0 }, |newest| Save {
            slot: 1 - newest.slot,
            sequence: newest.sequence.saturating_add(1),
        }))
    }

    fn next_save(&self) -> MutexGuard<'_, Option<Save>> {
        self.next_save.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if the entry is published: what was verified once must not change.
    fn refuse_if_published(&self) -> Result<()> {
        match self.path(MANIFEST).exists() {
            true => Err(Error::Run(format!("{} is published and cannot be changed", shown_path(&self.dir)))),
            false => Ok(()),
        }
    }
}
