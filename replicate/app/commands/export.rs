//! `export` and `verify`: a store with its report in one file, for an archive or a reviewer.

use super::report;
use super::root;
use crate::app::cli::{Place, VERSION};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, EXIT_OUTSIDE, Error, Result};
use crate::store::archive::{self, About, METADATA, Writer, metadata};
use crate::store::{Finished, Store};
use crate::text::counted;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Files of the repository in the archive: those that judge the results, and the licence.
const JUDGES: [&str; 12] = [
    "LICENSE",
    "CITATION.cff",
    "paper/ERRATA.md",
    "paper/table1.csv",
    "paper/table2.csv",
    "paper/claims.csv",
    "paper/setup.csv",
    "paper/studies.csv",
    "paper/results.schema.json",
    "golden/table1.csv",
    "golden/table2.csv",
    "golden/studies.csv",
];

/// Content of a file of the archive, or its path.
enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// Writes the archive `out`: every finished result of the store, the report of the scale, the
/// golden and printed values that judge it, RO-Crate metadata and `SHA256SUMS`.
pub fn export(out: &Path, place: &Place, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let store = Store::open(&place.store)?;
    let (mut files, mut entries) = (Vec::new(), Vec::new());
    for (entry, manifest) in store.finished_entries()? {
        if let Finished::Damaged(reason) = entry.finished()? {
            println!("left out: {reason}");
            continue;
        }
        let name = entry.dir().file_name().unwrap_or_default().to_string_lossy();
        let dir = format!("store/{name}/");
        let vouched = manifest.outputs.keys().map(String::as_str);
        for file in vouched.chain(["experiment.txt", "manifest.json", "timing.csv"]) {
            if entry.path(file).is_file() {
                files.push((format!("{dir}{file}"), Source::File(entry.path(file))));
            }
        }
        entries.push((dir, manifest));
    }
    let Some(report) = report::files(place, &root, "../", stop)? else { return Ok(EXIT_INCOMPLETE) };
    files.push(("store/format".into(), Source::File(place.store.join("format"))));
    files.extend(report.into_iter().map(|(name, bytes)| (format!("report/{name}"), Source::Bytes(bytes))));
    let judges = JUDGES.iter().filter(|name| root.join(name).is_file());
    files.extend(judges.map(|name| (name.to_string(), Source::File(root.join(name)))));
    let mut sizes = Vec::new();
    for (name, source) in &files {
        let bytes = match source {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File(path) => path.metadata().map_err(Error::io("read", path))?.len(),
        };
        sizes.push((name.clone(), bytes));
    }
    let about = About {
        name: format!("Results of replicate at scale {}", place.scale),
        description: format!(
            "{} of a re-run of arXiv 2502.08005, with report, manifests and the values that judge them",
            counted(entries.len(), "stored result")
        ),
        version: VERSION.to_string(),
        address: report::REPOSITORY,
    };
    let mut archive = Writer::create(out)?;
    archive.add(METADATA, metadata(&about, &entries, &sizes).as_bytes())?;
    for (name, source) in &files {
        match source {
            Source::Bytes(bytes) => archive.add(name, bytes)?,
            Source::File(path) => archive.add_file(name, path)?,
        }
    }
    archive.finish()?;
    // As `verify` counts them: with the metadata, without the list of digests.
    println!("{}: {}, {}", out.display(), counted(entries.len(), "result"), counted(files.len() + 1, "file"));
    println!("check it anywhere with: replicate verify {}", crate::text::quoted_path(out));
    Ok(EXIT_GOOD)
}

/// Checks every byte of an archive; exit code 1 if one has changed.
pub fn verify(path: &Path) -> Result<i32> {
    if !path.is_file() {
        return Err(Error::missing(path, "an archive that `replicate export` wrote", "name the file"));
    }
    let verified = archive::verify(path)?;
    for problem in &verified.problems {
        println!("damaged: {problem}");
    }
    let (files, results) = (counted(verified.files, "file"), counted(verified.results, "result"));
    match verified.problems.is_empty() {
        true => println!("good: {files} as they were written, {results} with their manifests"),
        false => println!(
            "{} in {}: get the archive again",
            counted(verified.problems.len(), "problem"),
            path.display()
        ),
    }
    Ok(if verified.problems.is_empty() { EXIT_GOOD } else { EXIT_OUTSIDE })
}
