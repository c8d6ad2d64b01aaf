//! Metadata of an archive, as RO-Crate 1.1 (<https://w3id.org/ro/crate/1.1>) of the profile Process Run
//! Crate, whose actions say which program made what of what.

use crate::store::Manifest;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Name of the metadata file.
pub const METADATA: &str = "ro-crate-metadata.json";
const PROFILE: &str = "https://w3id.org/ro/wfrun/process/0.5";

/// Description of the whole archive.
pub struct About {
    pub name: String,
    pub description: String,
    /// Version of the program that wrote the archive.
    pub version: String,
    /// Address of the program's sources; empty if they have none.
    pub address: &'static str,
}

fn reference(id: &str) -> Value {
    json!({ "@id": id })
}

/// Refers to several entities. RO-Crate writes one without a list.
fn references<'a>(ids: impl Iterator<Item = &'a str>) -> Value {
    let mut all: Vec<Value> = ids.map(reference).collect();
    if all.len() == 1 { all.remove(0) } else { all.into() }
}

/// Returns address and name of a licence; `None` if the publisher states none.
fn licence(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "MIT" => Some(("https://spdx.org/licenses/MIT", "MIT License")),
        "Apache-2.0" => Some(("https://spdx.org/licenses/Apache-2.0", "Apache License 2.0")),
        "CC BY-NC-SA 4.0" => Some((
            "https://creativecommons.org/licenses/by-nc-sa/4.0/",
            "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
        )),
        _ => None,
    }
}

fn format(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("json") => "application/json",
        Some("csv") => "text/csv",
        Some("png") => "image/png",
        Some("html") => "text/html",
        Some("md") => "text/markdown",
        Some("npz") => "application/zip",
        Some("safetensors") => "application/octet-stream",
        _ => "text/plain",
    }
}

/// Writes the metadata: every file with its size, and every result of the store with the key of its
/// experiment and the action that made it (inputs, time and commit). `entries` are the directories of
/// results with their manifests; `files` are names and sizes.
pub fn metadata(about: &About, entries: &[(String, Manifest)], files: &[(String, u64)]) -> String {
    let mut licences = BTreeMap::from([("MIT", licence("MIT").expect("it has an address"))]);
    let by_key: BTreeMap<&str, &str> =
        entries.iter().map(|(dir, m)| (m.key.as_str(), dir.as_str())).collect();
    let (mut graph, mut actions, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for (dir, manifest) in entries {
        let held = files.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with(dir.as_str()));
        let mut entry = json!({
            "@id": dir, "@type": "Dataset", "name": manifest.label, "identifier": manifest.key, "hasPart": references(held),
            "description": format!("{} of seed {}, determinism class {}", manifest.label, manifest.seed, manifest.determinism),
        });
        // One licence for each entry: the last one with an address.
        for name in manifest.licences.values() {
            if let Some(known) = licence(name) {
                licences.insert(name.as_str(), known);
                entry["license"] = reference(known.0);
            }
        }
        let id = format!("#make-{}", dir.trim_end_matches('/').replace('/', "-"));
        let parents = manifest.parents.values().filter_map(|key| by_key.get(key.as_str()).copied());
        let p = &manifest.provenance;
        actions.push(reference(&id));
        parts.push(reference(dir));
        graph.push(entry);
        graph.push(json!({
            "@id": id, "@type": "CreateAction", "name": format!("Make {}", manifest.label),
            "instrument": reference("#replicate"), "object": references(parents),
            // The profile's validator wants an offset in figures.
            "result": reference(dir), "endTime": p.date.replace('Z', "+00:00"),
            "description": format!("replicate {} at commit {}, {}", p.package, p.commit, p.machine),
        }));
    }
    for (name, bytes) in files {
        graph.push(json!({
            "@id": name, "@type": "File", "name": name, "encodingFormat": format(name), "contentSize": bytes.to_string(),
        }));
        if !entries.iter().any(|(dir, _)| name.starts_with(dir.as_str())) {
            parts.push(reference(name));
        }
    }
    for (address, name) in licences.values() {
        graph.push(json!({ "@id": address, "@type": "CreativeWork", "name": name }));
    }
    let mut program = json!({
        "@id": "#replicate", "@type": "SoftwareApplication", "name": "replicate", "version": about.version,
    });
    if !about.address.is_empty() {
        program["url"] = about.address.into();
    }
    let newest = entries.iter().map(|(_, manifest)| manifest.provenance.date.as_str()).max();
    let whole = [
        json!({
            "@id": METADATA, "@type": "CreativeWork", "about": reference("./"),
            "conformsTo": reference("https://w3id.org/ro/crate/1.1"),
        }),
        json!({
            "@id": "./", "@type": "Dataset", "name": about.name, "description": about.description,
            "conformsTo": reference(PROFILE),
            "datePublished": newest.unwrap_or_default(), "license": reference("https://spdx.org/licenses/MIT"),
            "hasPart": parts, "mentions": actions,
        }),
        json!({ "@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5" }),
        program,
    ];
    let graph: Vec<Value> = whole.into_iter().chain(graph).collect();
    let crate_ = json!({ "@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph });
    serde_json::to_string_pretty(&crate_).expect("strings and lists of them") + "\n"
}
