//! Checkpoints as safetensors files that verify themselves.

use std::collections::BTreeMap;
use std::path::Path;

use super::Key;
use super::formats::safetensors::{Array, content_digest, read_safetensors, write_safetensors};
use crate::error::Error;

const CHECKPOINT_FORMAT: &str = "replicate checkpoint 1";

/// Everything a run needs to go on where it stood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// How many images the run has seen.
    pub images: u64,
    pub tensors: BTreeMap<String, Array>,
    pub text: BTreeMap<String, String>,
}

/// Names in a checkpoint file's metadata; the caller's text is prefixed, so
/// that it cannot collide with the others.
mod field {
    pub const FORMAT: &str = "format";
    pub const KEY: &str = "key";
    pub const SEQUENCE: &str = "sequence";
    pub const IMAGES: &str = "images";
    pub const SHA256: &str = "sha256";
    pub const TEXT: &str = "text.";
}

impl Checkpoint {
    pub(super) fn to_bytes(&self, key: &Key, sequence: u64) -> Vec<u8> {
        let mut text: BTreeMap<String, String> =
            self.text.iter().map(|(name, value)| (format!("{}{name}", field::TEXT), value.clone())).collect();
        text.insert(field::FORMAT.into(), CHECKPOINT_FORMAT.into());
        text.insert(field::KEY.into(), key.to_string());
        text.insert(field::SEQUENCE.into(), sequence.to_string());
        text.insert(field::IMAGES.into(), self.images.to_string());
        text.insert(field::SHA256.into(), content_digest(&self.tensors, &text));
        write_safetensors(&self.tensors, &text)
    }

    /// The sequence number and the checkpoint; the error says what is wrong.
    pub(super) fn parse(
        path: &Path,
        bytes: &[u8],
        key: &Key,
    ) -> std::result::Result<(u64, Checkpoint), String> {
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
            return Err(format!("its format is {format:?}, not {CHECKPOINT_FORMAT:?}"));
        }
        let owner = take(field::KEY)?;
        if owner != key.0 {
            return Err(format!("it belongs to the key {owner}, not to {key}"));
        }
        let mut count =
            |name: &str| take(name)?.parse::<u64>().map_err(|error| format!("its {name}: {error}"));
        let (sequence, images) = (count(field::SEQUENCE)?, count(field::IMAGES)?);
        let text = text
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(field::TEXT)?.to_string(), value)))
            .collect();
        Ok((sequence, Checkpoint { images, tensors, text }))
    }
}
