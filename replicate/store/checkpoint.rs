//! Checkpoints as safetensors files with their own digest.

use std::collections::BTreeMap;
use std::path::Path;

use super::formats::safetensors::{Array, content_digest, read_safetensors, write_safetensors};
use super::{Content, Key, SLOTS, is_output_name, is_sha256};
use crate::error::{Error, shown};

const CHECKPOINT_FORMAT: &str = "replicate checkpoint 1";

/// State that a run needs to resume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Training images so far.
    pub images: u64,
    pub tensors: BTreeMap<String, Array>,
    pub text: BTreeMap<String, String>,
}

/// Names in the metadata of a checkpoint file. The caller's names get a prefix, so that they cannot
/// collide with the others.
mod field {
    pub const FORMAT: &str = "format";
    pub const KEY: &str = "key";
    pub const SEQUENCE: &str = "sequence";
    pub const IMAGES: &str = "images";
    pub const SHA256: &str = "sha256";
    pub const TEXT: &str = "text.";
    /// Size and SHA-256 of an output that was finished before the checkpoint.
    pub const OUTPUT: &str = "output.";
}

/// A checkpoint read from a file.
pub(super) struct Saved {
    pub checkpoint: Checkpoint,
    pub sequence: u64,
    /// Index of its slot.
    pub slot: usize,
    /// Outputs that were finished before the checkpoint.
    pub finished: BTreeMap<String, Content>,
}

impl Checkpoint {
    pub(super) fn to_bytes(&self, key: &Key, sequence: u64, finished: &BTreeMap<String, Content>) -> Vec<u8> {
        let mut text: BTreeMap<String, String> =
            self.text.iter().map(|(name, value)| (format!("{}{name}", field::TEXT), value.clone())).collect();
        for (name, Content { bytes, sha256 }) in finished {
            text.insert(format!("{}{name}", field::OUTPUT), format!("{bytes} {sha256}"));
        }
        text.insert(field::FORMAT.into(), CHECKPOINT_FORMAT.into());
        text.insert(field::KEY.into(), key.to_string());
        text.insert(field::SEQUENCE.into(), sequence.to_string());
        text.insert(field::IMAGES.into(), self.images.to_string());
        text.insert(field::SHA256.into(), content_digest(&self.tensors, &text));
        write_safetensors(&self.tensors, &text)
    }
}

impl Saved {
    /// Parses a checkpoint file. The error describes the damage.
    pub fn parse(path: &Path, bytes: &[u8], key: &Key) -> std::result::Result<Saved, String> {
        let (tensors, mut text) = read_safetensors(path, bytes).map_err(|error| match error {
            Error::Malformed { found, .. } => found,
            other => other.to_string(),
        })?;
        let digest = text.remove(field::SHA256).unwrap_or_default();
        if digest != content_digest(&tensors, &text) {
            return Err("its contents do not have the SHA-256 that it records".into());
        }
        let mut take = |name: &str| text.remove(name).ok_or_else(|| format!("it has no {name}"));
        let format = take(field::FORMAT)?;
        if format != CHECKPOINT_FORMAT {
            return Err(format!("its format is {:?}, not {CHECKPOINT_FORMAT:?}", shown(&format)));
        }
        let owner = take(field::KEY)?;
        if owner != key.0 {
            return Err(format!("it belongs to the key {}, not to {key}", shown(&owner)));
        }
        let mut count =
            |name: &str| take(name)?.parse::<u64>().map_err(|error| format!("its {name}: {error}"));
        let (sequence, images) = (count(field::SEQUENCE)?, count(field::IMAGES)?);
        let (mut own, mut finished) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in text {
            if let Some(name) = name.strip_prefix(field::TEXT) {
                own.insert(name.to_string(), value);
            } else if let Some(name) = name.strip_prefix(field::OUTPUT) {
                let content = value.split_once(' ').and_then(|(bytes, sha256)| {
                    Some(Content { bytes: bytes.parse().ok()?, sha256: sha256.to_string() })
                });
                let content = content.filter(|content| is_output_name(name) && is_sha256(&content.sha256));
                finished.insert(name.to_string(), content.ok_or("its list of outputs is broken")?);
            }
        }
        let slot = SLOTS.iter().position(|slot| path.ends_with(slot)).unwrap_or(0);
        Ok(Saved { checkpoint: Checkpoint { images, tensors, text: own }, sequence, slot, finished })
    }
}
