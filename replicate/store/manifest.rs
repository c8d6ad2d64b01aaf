//! Manifests of published entries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Content, is_output_name, is_sha256, sha256_hex};
use crate::error::{printable, shown};

/// The record of a published entry: outputs, inputs and provenance. Two runs of one experiment in
/// one determinism class differ only in `provenance`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub key: String,
    pub label: String,
    /// The canonical text whose SHA-256 is `key`.
    pub experiment: String,
    /// Settings of the experiment, by name.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// Overrides, each as NAME=VALUE.
    #[serde(default)]
    pub changes: Vec<String>,
    pub seed: u64,
    /// Training images of the run.
    pub images: u64,
    /// Class of machines on which the same bytes are promised.
    pub determinism: String,
    /// Entries that this one was made from: name to key.
    pub parents: BTreeMap<String, String>,
    /// Files that this entry was made from: name to SHA-256.
    pub inputs: BTreeMap<String, String>,
    /// Licences of third-party files that this entry or its parents were made from: name to licence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub licences: BTreeMap<String, String>,
    pub outputs: BTreeMap<String, Content>,
    pub provenance: Provenance,
    /// SHA-256 of the manifest's text with this field empty.
    pub manifest_sha256: String,
}

/// Facts that may differ between two runs with the same results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Time of publication, RFC 3339.
    pub date: String,
    pub wall_seconds: f64,
    /// Git commit of the program.
    pub commit: String,
    /// True if the working tree differed from the commit.
    pub dirty: bool,
    pub package: String,
    pub candle: String,
    /// System, number of threads, and device.
    pub machine: String,
    /// Model of the processor.
    #[serde(default)]
    pub cpu: String,
    /// Widest vector instructions of the CPU kernels.
    #[serde(default)]
    pub vector_unit: String,
    /// Version of the compiler.
    #[serde(default)]
    pub rustc: String,
    /// Name, memory, driver and cuDNN of the GPU; empty on a CPU.
    #[serde(default)]
    pub gpu: String,
}

impl Provenance {
    /// Describes the machine in one line.
    pub fn made_on(&self) -> String {
        let known = [&self.machine, &self.cpu, &self.vector_unit, &self.gpu, &self.rustc];
        known.into_iter().filter(|text| !text.is_empty()).map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl Manifest {
    pub(super) const FORMAT: u32 = 1;

    /// Returns the SHA-256 over the key and the outputs. It is equal for two runs with the same
    /// results.
    pub fn result_digest(&self) -> String {
        let mut text = format!("{}\n", self.key);
        for (name, output) in &self.outputs {
            text += &format!("{name} {} {}\n", output.bytes, output.sha256);
        }
        sha256_hex(text.as_bytes())
    }

    /// Returns the value of the line `name = value` in the text of the experiment.
    pub fn line(&self, name: &str) -> Option<&str> {
        self.experiment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
    }

    fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings, numbers and maps of them") + "\n"
    }

    /// Sets `manifest_sha256` and returns the text of the file.
    pub(super) fn seal(&mut self) -> String {
        self.manifest_sha256.clear();
        self.manifest_sha256 = sha256_hex(self.to_text().as_bytes());
        self.to_text()
    }

    /// Parses and verifies a manifest. The error describes the fault of the file.
    pub(super) fn parse(bytes: &[u8]) -> std::result::Result<Manifest, String> {
        let text = str::from_utf8(bytes).map_err(|error| format!("is not text: {error}"))?;
        let manifest: Manifest = serde_json::from_str(text)
            .map_err(|error| format!("is not a manifest: {}", shown(&error.to_string())))?;
        let unsealed = text.replace(&manifest.manifest_sha256, "");
        if sha256_hex(unsealed.as_bytes()) != manifest.manifest_sha256 {
            return Err("was altered: it does not have the SHA-256 that it records".into());
        }
        if manifest.format != Manifest::FORMAT {
            return Err(format!("has the format {}, not {}", manifest.format, Manifest::FORMAT));
        }
        if let Some(name) = manifest.outputs.keys().find(|name| !is_output_name(name)) {
            return Err(format!("lists {:?}, which is not a name that an output can have", shown(name)));
        }
        if let Some((name, _)) = manifest.outputs.iter().find(|(_, output)| !is_sha256(&output.sha256)) {
            return Err(format!("lists {name} without its SHA-256"));
        }
        // Rejects control characters, because its texts are printed in messages and on the page.
        let value = serde_json::to_value(&manifest).map_err(|error| error.to_string())?;
        match steering_text(&value) {
            Some(text) => Err(format!("holds text that steers a terminal: {}", shown(text))),
            None => Ok(manifest),
        }
    }
}

fn steering_text(value: &Value) -> Option<&str> {
    let steers = |text: &str| printable(text) != text;
    match value {
        Value::String(text) => steers(text).then_some(text),
        Value::Array(values) => values.iter().find_map(steering_text),
        Value::Object(fields) => fields
            .iter()
            .find_map(|(name, value)| steers(name).then_some(name.as_str()).or(steering_text(value))),
        _ => None,
    }
}
