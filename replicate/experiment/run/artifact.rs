//! An artefact of the store: made once, and named by a key of everything it depends on.

use super::{Runner, provenance};
use crate::error::{Error, Result, shown_path};
use crate::settings::{Setting, object};
use crate::store::fetch::licence_of;
use crate::store::{Entry, Finished, Key, Lock, Manifest};
use crate::train::watch::say;
use std::collections::BTreeMap;
use std::time::Instant;

/// Description of an artefact: its canonical text, and the origin that its manifest records.
#[derive(Default)]
pub struct Artifact {
    pub text: String,
    pub label: String,
    pub settings: Vec<Setting>,
    /// Overrides, sorted.
    pub changes: Vec<String>,
    pub seed: u64,
    /// True for what rows share under any changes; its manifest has those of its first maker.
    pub shared: bool,
    /// Images of its training, if it has one.
    pub images: Option<u64>,
    /// Files it is made from: name to SHA-256.
    pub inputs: BTreeMap<String, String>,
    /// Entries it is made from: name to key.
    pub parents: BTreeMap<String, String>,
    /// Licences of the parents' own inputs: name to licence.
    pub licences: BTreeMap<String, String>,
}

/// First line of the text of scores, which train nothing.
pub(super) const SCORES_BEGIN: &str = "kind = scores\n";

/// A finished artefact.
#[derive(Clone, Debug)]
pub struct Made {
    pub entry: Entry,
    pub manifest: Manifest,
}

impl Made {
    /// Returns the SHA-256 of the output `name`.
    pub fn digest(&self, name: &str) -> Option<&str> {
        self.manifest.outputs.get(name).map(|content| content.sha256.as_str())
    }
}

/// Outputs of a maker in its entry.
pub struct Outputs {
    pub names: Vec<String>,
    /// Images of the training.
    pub images: u64,
}

impl Runner<'_> {
    /// Returns the artefact if it is finished; makes nothing.
    pub(super) fn find(&mut self, artifact: &Artifact) -> Result<Option<Made>> {
        let entry = self.store.entry(&Key::of(&artifact.text), &artifact.label);
        match self.finished(artifact, &entry)? {
            Finished::Yes(manifest) => Ok(Some(Made { entry, manifest })),
            Finished::No => Ok(None),
            Finished::Damaged(reason) => {
                if self.damaged.insert(entry.dir().into()) {
                    say(&format!("{reason}: ignored; the next run makes it again"));
                }
                Ok(None)
            }
        }
    }

    /// Returns the state of an entry. It is damaged if its manifest contradicts the description or
    /// lists no output. The manifest's own copy of the settings is not believed.
    fn finished(&self, artifact: &Artifact, entry: &Entry) -> Result<Finished> {
        let mut finished = entry.finished()?;
        let Finished::Yes(manifest) = &mut finished else { return Ok(finished) };
        let Artifact { seed, images, inputs, parents, .. } = artifact;
        let told = (&manifest.seed, &manifest.inputs, &manifest.parents, manifest.determinism.as_str());
        let agrees = told == (seed, inputs, parents, self.class)
            && (artifact.shared || manifest.changes == artifact.changes)
            && !manifest.outputs.is_empty();
        match agrees && images.is_none_or(|images| images == manifest.images) {
            true => {
                manifest.settings = object(&artifact.settings);
                if artifact.text.starts_with(SCORES_BEGIN) {
                    manifest.images = 0;
                }
                Ok(finished)
            }
            false => {
                let place = shown_path(entry.dir());
                Ok(Finished::Damaged(format!("{place}: its manifest contradicts the experiment")))
            }
        }
    }

    /// Returns the finished artefact, or makes it with `maker` under the entry's lock.
    pub(super) fn make(
        &mut self,
        artifact: Artifact,
        maker: impl FnOnce(&mut Self, &Lock) -> Result<Outputs>,
    ) -> Result<Made> {
        let entry = self.store.entry(&Key::of(&artifact.text), &artifact.label);
        if let Finished::Yes(manifest) = self.finished(&artifact, &entry)? {
            return Ok(Made { entry, manifest });
        }
        let (watch, stop) = (&mut self.watch, self.stop);
        let lock = entry.lock(&mut |waited| {
            if waited.is_zero() {
                watch.note(&format!("{}: waiting, another process holds its lock", entry.label()));
            }
            Error::if_stopped(stop, entry.label())
        })?;
        // Another process may have finished it while this one waited.
        match self.finished(&artifact, &entry)? {
            Finished::Yes(manifest) => return Ok(Made { entry, manifest }),
            Finished::No => {}
            Finished::Damaged(reason) => {
                let aside = lock.discard(&reason)?;
                say(&format!("{reason}: moved to {}, running again", shown_path(&aside)));
            }
        }
        let started = Instant::now();
        let outputs = maker(self, &lock)?;
        let Artifact { text, settings, changes, seed, inputs, parents, mut licences, .. } = artifact;
        let licensed =
            inputs.iter().filter_map(|(name, sha256)| Some((name.clone(), licence_of(sha256)?.into())));
        licences.extend(licensed);
        let manifest = Manifest {
            experiment: text,
            settings: object(&settings),
            changes,
            seed,
            images: outputs.images,
            determinism: self.class.to_string(),
            inputs,
            parents,
            licences,
            provenance: provenance(started.elapsed(), &self.settings.compute.device),
            ..Manifest::default()
        };
        let names: Vec<&str> = outputs.names.iter().map(String::as_str).collect();
        let manifest = lock.publish(manifest, &names)?;
        self.damaged.remove(entry.dir());
        Ok(Made { entry, manifest })
    }
}
