//! One thing that is made once and named by what made it.

use super::{Runner, provenance};
use crate::error::{Error, Result};
use crate::store::{Entry, Finished, Key, Lock, Manifest};
use std::collections::BTreeMap;
use std::time::Instant;

/// What is to be made: its canonical text, and what the manifest records of its origin.
#[derive(Default)]
pub struct Artifact {
    pub text: String,
    pub label: String,
    pub seed: u64,
    /// Name to SHA-256: the files it is made from.
    pub inputs: BTreeMap<String, String>,
    /// Name to key: the entries it is made from.
    pub parents: BTreeMap<String, String>,
}

/// A finished artefact.
#[derive(Clone, Debug)]
pub struct Made {
    pub entry: Entry,
    pub manifest: Manifest,
}

impl Made {
    /// The SHA-256 of the output of that name.
    pub fn digest(&self, name: &str) -> Option<&str> {
        self.manifest.outputs.get(name).map(|content| content.sha256.as_str())
    }
}

/// What a maker leaves in the entry.
pub struct Outputs {
    pub names: Vec<String>,
    /// Images that a training has seen.
    pub images: u64,
}

impl Runner<'_> {
    /// The artefact, where it is finished; nothing is made.
    pub(super) fn find(&mut self, artifact: &Artifact) -> Result<Option<Made>> {
        let entry = self.store.entry(&Key::of(&artifact.text), &artifact.label);
        match entry.finished()? {
            Finished::Yes(manifest) => Ok(Some(Made { entry, manifest })),
            Finished::No => Ok(None),
            Finished::Damaged(reason) => {
                self.watch.note(&format!("{reason}: it does not count; the next run makes it again"));
                Ok(None)
            }
        }
    }

    /// The artefact: the finished one, or what `maker` makes under the entry's lock.
    pub(super) fn make(
        &mut self,
        artifact: Artifact,
        maker: impl FnOnce(&mut Self, &Lock) -> Result<Outputs>,
    ) -> Result<Made> {
        let entry = self.store.entry(&Key::of(&artifact.text), &artifact.label);
        if let Finished::Yes(manifest) = entry.finished()? {
            return Ok(Made { entry, manifest });
        }
        let (watch, stop) = (&mut self.watch, self.stop);
        let lock = entry.lock(&mut |waited| {
            if waited.is_zero() {
                watch.note(&format!("{}: waiting, another process holds its lock", entry.label()));
            }
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Stopped { cell: entry.label().into() });
            }
            Ok(())
        })?;
        // Another process may have finished it meanwhile.
        match entry.finished()? {
            Finished::Yes(manifest) => return Ok(Made { entry, manifest }),
            Finished::No => {}
            Finished::Damaged(reason) => {
                let aside = lock.discard(&reason)?;
                self.watch.note(&format!("{reason}: moved to {} and made again", aside.display()));
            }
        }
        let started = Instant::now();
        let outputs = maker(self, &lock)?;
        let Artifact { text, seed, inputs, parents, .. } = artifact;
        let manifest = Manifest {
            experiment: text,
            seed,
            images: outputs.images,
            determinism: self.class.to_string(),
            inputs,
            parents,
            provenance: provenance(started.elapsed(), &self.settings.device),
            ..Manifest::default()
        };
        let names: Vec<&str> = outputs.names.iter().map(String::as_str).collect();
        let manifest = lock.publish(manifest, &names)?;
        Ok(Made { entry, manifest })
    }
}
