//! Fetched files in the store, named by the SHA-256 of their content.
//!
//! ```text
//! STORE/inputs/<sha256>                  a verified file
//! STORE/inputs/index/<id>                the record of an asset: its file and its source
//! STORE/inputs/partial/<id>              an incomplete download
//! STORE/inputs/partial/<id>.lock         held by the one process that fetches it
//! STORE/inputs/quarantine/               directories that were in the place of a file
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::assets::Asset;
use crate::error::{Error, Result, shown};
pub(super) use crate::store::files::remove;
use crate::store::files::{numbered_dir, read_text_if_present, relocate};
use crate::store::{Content, begin, is_sha256, lock_file, sync_dir, write_atomically};

/// The inputs of one store.
#[derive(Clone, Debug)]
pub struct Inputs {
    dir: PathBuf,
}

/// The record of a fetched asset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub sha256: String,
    pub bytes: u64,
    /// Its address or path, without secrets.
    pub from: String,
    /// True if no hash is published, and that of the first download counts.
    pub first_seen: bool,
}

/// State of an asset in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Good(PathBuf),
    /// The file exists but was altered; `found` describes it.
    Damaged {
        path: PathBuf,
        expected: String,
        found: String,
    },
    Absent,
}

impl Inputs {
    /// Returns the inputs of the store at `root`, without reading or creating anything.
    pub fn of(root: &Path) -> Inputs {
        Inputs { dir: root.join("inputs") }
    }

    /// Returns the directory, which need not exist.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the option of a printed command that selects this store.
    pub fn option(&self) -> String {
        crate::store::option(self.dir.parent().unwrap_or(Path::new("store")))
    }

    /// Reads and verifies the file of `asset`.
    pub fn state(&self, asset: &Asset) -> Result<State> {
        let Some(expected) = self.expected(asset)? else { return Ok(State::Absent) };
        let path = self.dir.join(&expected);
        match Content::of(&path) {
            Ok(content) if content.sha256 == expected => Ok(State::Good(path)),
            Ok(content) => {
                Ok(State::Damaged { path, expected, found: format!("the SHA-256 {}", content.sha256) })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::Absent),
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                Ok(State::Damaged { path, expected, found: "what is not a file".into() })
            }
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Returns the record of the last fetch of `asset`.
    pub fn record(&self, asset: &Asset) -> Result<Option<Record>> {
        let path = self.record_path(asset);
        let record = match read_text_if_present(&path) {
            Ok(None) => return Ok(None),
            Ok(Some(text)) => {
                serde_json::from_slice::<Record>(&text).map_err(|error| shown(&error.to_string()))
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::IsADirectory => {
                Err(source.to_string())
            }
            Err(error) => return Err(error),
        };
        // The SHA-256 becomes a file name.
        let checked = record.and_then(|record| match is_sha256(&record.sha256) {
            true => Ok(record),
            false => Err(format!("the SHA-256 {}", shown(&record.sha256))),
        });
        checked.map(Some).map_err(|found| {
            let remedy = "remove it; the next fetch makes a new record";
            Error::malformed(path, format!("the record of {}", asset.id), found, remedy)
        })
    }

    /// Returns the SHA-256 that `asset` must have: the published one, or that of the first download.
    pub(super) fn expected(&self, asset: &Asset) -> Result<Option<String>> {
        match asset.sha256() {
            Some(sha256) => Ok(Some(sha256.to_string())),
            None => Ok(self.record(asset)?.map(|record| record.sha256)),
        }
    }

    /// Returns the size of the file of `asset`, without reading it.
    pub fn size_there(&self, asset: &Asset) -> Result<Option<u64>> {
        let Some(expected) = self.expected(asset)? else { return Ok(None) };
        Ok(fs::metadata(self.dir.join(expected))
            .ok()
            .filter(|found| found.is_file())
            .map(|found| found.len()))
    }

    pub(super) fn record_path(&self, asset: &Asset) -> PathBuf {
        self.dir.join("index").join(asset.id)
    }

    /// Returns the path of `asset`, which need not exist.
    pub fn place(&self, asset: &Asset) -> PathBuf {
        self.dir.join(asset.sha256().unwrap_or(asset.id))
    }

    pub(super) fn partial_bytes(&self, asset: &Asset) -> u64 {
        fs::metadata(self.dir.join("partial").join(asset.id)).map_or(0, |found| found.len())
    }

    /// Waits for the lock of `asset`, as [`lock_file`] does.
    pub(super) fn lock(
        &self,
        asset: &Asset,
        waiting: &mut dyn FnMut(Duration) -> Result<()>,
    ) -> Result<Place> {
        begin(self.dir.parent().expect("inputs lie in a store"))?;
        for name in ["partial", "index"] {
            let dir = self.dir.join(name);
            fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        let path = self.dir.join("partial").join(format!("{}.lock", asset.id));
        let place = Place { inputs: self.clone(), asset: *asset, _lock: lock_file(&path, waiting)? };
        // A killed process may have left a copy.
        remove(&place.copy())?;
        Ok(place)
    }
}

/// Exclusive right to fetch one asset, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    inputs: Inputs,
    asset: Asset,
    _lock: File,
}

impl Place {
    /// Returns the path of the incomplete download.
    pub fn partial(&self) -> PathBuf {
        self.beside("")
    }

    /// Returns the path of a copy, which must not overwrite an incomplete download.
    pub fn copy(&self) -> PathBuf {
        self.beside(".copy")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.inputs.dir.join("partial").join(format!("{}{suffix}", self.asset.id))
    }

    /// Size of the incomplete download.
    pub fn partial_bytes(&self) -> u64 {
        self.inputs.partial_bytes(&self.asset)
    }

    /// Removes the incomplete download.
    pub fn clear_partial(&self) -> Result<()> {
        remove(&self.partial())
    }

    /// Copies at most `most` bytes of `from` to [`Place::copy`]. The inner error refuses the source.
    pub fn copy_of(&self, from: &mut dyn Read, most: u64) -> Result<std::result::Result<PathBuf, String>> {
        let path = self.copy();
        let mut copy = File::create(&path).map_err(Error::io("write", &path))?;
        let (mut buffer, mut have) = (vec![0; 1 << 20], 0);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(Ok(path)),
                Ok(read) => {
                    have += read as u64;
                    if have > most {
                        remove(&path)?;
                        return Ok(Err(format!("has more than {most} bytes")));
                    }
                    copy.write_all(&buffer[..read]).map_err(Error::io("write", &path))?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(format!("cannot be read: {error}"))),
            }
        }
    }

    /// Moves a verified `file` to its final name and records its source.
    pub fn publish(&self, file: &Path, content: &Content, from: &str) -> Result<PathBuf> {
        let dir = &self.inputs.dir;
        let path = dir.join(&content.sha256);
        // Flushes the file before it gets its name, so that a file with that name is complete.
        File::open(file).and_then(|file| file.sync_all()).map_err(Error::io("write", file))?;
        if path.is_dir() {
            let quarantine = dir.join("quarantine");
            fs::create_dir_all(&quarantine).map_err(Error::io("create", &quarantine))?;
            let aside = numbered_dir(&quarantine, "aside")?.join(&content.sha256);
            relocate(&path, &aside).map_err(Error::io("move aside", &path))?;
        }
        relocate(file, &path).and_then(|()| sync_dir(dir)).map_err(Error::io("write", &path))?;
        let record = Record {
            sha256: content.sha256.clone(),
            bytes: content.bytes,
            from: from.to_string(),
            first_seen: self.asset.sha256().is_none(),
        };
        let text = serde_json::to_string_pretty(&record).expect("strings and numbers") + "\n";
        write_atomically(&dir.join("index"), self.asset.id, text.as_bytes())?;
        self.clear_partial()?;
        remove(&self.copy())?;
        Ok(path)
    }
}
