//! A store in one file, and that no byte of it changes unnoticed.

use replicate::store::archive::{METADATA, SUMS, Writer, verify};
use replicate::store::formats::unzip::entries;
use replicate::store::read_safetensors;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};

fn replicate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments).env_remove("REPLICATE_STORE").output().unwrap()
}

fn contents(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = File::open(archive).unwrap();
    let read = |entry: replicate::store::formats::unzip::Entry| {
        let mut bytes = Vec::new();
        entry.open(&file).unwrap().read_to_end(&mut bytes).unwrap();
        (entry.name, bytes)
    };
    entries(&file).unwrap().into_iter().map(read).collect()
}

#[test]
fn a_store_travels_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (store, out) = (path("store"), path("out.zip"));
    let place = ["--scale", "smoke", "--store", &store];
    let nothing = replicate(&[&["export", &out][..], &place].concat());
    assert_eq!(nothing.status.code(), Some(5), "an empty store");
    assert!(!Path::new(&out).exists());
    let run = replicate(&[&["run", "edm", "dijs", "--output", &path("r")][..], &place].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let export = replicate(&[&["export", &out][..], &place].concat());
    assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));

    let good = replicate(&["verify", &out]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stdout));
    let files = contents(Path::new(&out));
    for name in ["LICENSE", "golden/table1.csv", "report/index.html", "report/results.json", "store/format"] {
        assert!(files.contains_key(name), "{name}");
    }
    assert!(!files.keys().any(|name| name.contains("/inputs/") || name.ends_with("/lock")));
    assert_eq!(String::from_utf8_lossy(&files[SUMS]).lines().count(), files.len() - 1);
    let page = String::from_utf8_lossy(&files["report/index.html"]).into_owned();
    assert!(page.contains("\"../paper/ERRATA.md\"") || page.contains("/blob/HEAD/paper/ERRATA.md"));

    // RO-Crate: whatever is named is described, and every file belongs to the whole.
    let crate_: Value = serde_json::from_slice(&files[METADATA]).unwrap();
    let graph = crate_["@graph"].as_array().unwrap();
    let by_id: BTreeMap<&str, &Value> = graph.iter().map(|e| (e["@id"].as_str().unwrap(), e)).collect();
    assert_eq!(by_id.len(), graph.len(), "an id for each");
    assert_eq!(by_id[METADATA]["about"]["@id"], "./");
    assert_eq!(by_id[by_id["./"]["conformsTo"]["@id"].as_str().unwrap()]["name"], "Process Run Crate");
    for property in ["name", "description", "datePublished", "license"] {
        assert!(!by_id["./"][property].is_null(), "{property}");
    }
    let (mut parts, mut left) = (BTreeSet::new(), vec!["./"]);
    while let Some(id) = left.pop() {
        for part in by_id[id]["hasPart"].as_array().into_iter().flatten() {
            let part = part["@id"].as_str().unwrap();
            assert!(by_id.contains_key(part), "{part} is not described");
            parts.insert(part);
            left.push(part);
        }
    }
    for name in files.keys().filter(|name| ![METADATA, SUMS].contains(&name.as_str())) {
        assert!(parts.contains(name.as_str()), "{name} is no part");
        assert_eq!(by_id[name.as_str()]["contentSize"], files[name].len().to_string(), "{name}");
    }
    let made = |e: &&&Value| e["@type"] == "CreateAction" && e["name"] == "Make smoke-dijs-s0";
    let action = by_id.values().find(made).unwrap();
    assert!(by_id[action["result"]["@id"].as_str().unwrap()]["identifier"].is_string());
    assert!(action["object"]["@id"].is_string(), "made from its weights, and one has no list: {action}");
    assert!(action["endTime"].as_str().unwrap().ends_with("+00:00"), "{action}");

    // The weights say whose they are.
    let weights = files.keys().find(|name| name.contains("smoke-dijs-s0-weights/weights.")).unwrap();
    let (_, text) = read_safetensors(Path::new(weights), &files[weights]).unwrap();
    let key = by_id[weights.trim_end_matches("weights.safetensors")]["identifier"].as_str().unwrap();
    for (name, value) in [("row", "dijs"), ("seed", "0"), ("scale", "smoke"), ("key", key)] {
        assert_eq!(text[name], value, "{name}");
    }
    assert_eq!(text["code"].len(), 12);

    // Somewhere else, the store is one, with the same results.
    let elsewhere = dir.path().join("elsewhere");
    for (name, bytes) in &files {
        let file = elsewhere.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let there = elsewhere.join("store");
    let report = ["report", "--format", "json", "--scale", "smoke", "--store", there.to_str().unwrap()];
    let moved: Value = serde_json::from_slice(&replicate(&report).stdout).unwrap();
    let packed: Value = serde_json::from_slice(&files["report/results.json"]).unwrap();
    assert_eq!(moved["results"][0]["metrics"], packed["results"][0]["metrics"]);

    let bytes = std::fs::read(&out).unwrap();
    let altered = path("altered.zip");
    for at in (0..bytes.len()).step_by(bytes.len() / 30).chain([bytes.len() - 1]) {
        let mut other = bytes.clone();
        other[at] ^= 1;
        std::fs::write(&altered, other).unwrap();
        assert!(!verify(Path::new(&altered)).unwrap().problems.is_empty(), "byte {at}");
    }
    let damaged = replicate(&["verify", &altered]);
    assert_eq!(damaged.status.code(), Some(1), "{}", String::from_utf8_lossy(&damaged.stdout));
    for length in [0, 1, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&altered, &bytes[..length]).unwrap();
        assert_eq!(replicate(&["verify", &altered]).status.code(), Some(1), "cut to {length} bytes");
    }
    assert_eq!(replicate(&["verify", &path("none.zip")]).status.code(), Some(3));
}

#[test]
fn a_file_that_the_list_does_not_vouch_for_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zip");
    let write = |files: &[(&str, &str)]| {
        let mut writer = Writer::create(&path).unwrap();
        for (name, text) in files {
            writer.add(name, text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        verify(&path).unwrap()
    };
    let good = write(&[("a", "content"), ("b", "")]);
    assert!(good.problems.is_empty() && good.files == 2, "{good:?}");
    let sealed = write(&[("store/x/manifest.json", "{}")]);
    assert!(sealed.problems[0].contains("store/x/manifest.json is not a manifest"), "{sealed:?}");
    assert!(!dir.path().join("a.zip.partial").exists());
}

/// Two at once would write into each other's file.
#[test]
fn an_archive_has_one_writer_and_replaces_no_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zip");
    std::fs::write(dir.path().join("x.zip.partial"), "left by a killed process").unwrap();
    for _ in 0..2 {
        let mut first = Writer::create(&path).unwrap();
        let error = Writer::create(&path).err().unwrap().to_string();
        assert!(error.contains("another process is writing") && error.contains("x.zip"), "{error}");
        first.add("a.txt", b"a").unwrap();
        first.finish().unwrap();
        assert_eq!(verify(&path).unwrap().problems, [""; 0]);
        assert!(!dir.path().join("x.zip.partial").exists());
    }
    for other in [Path::new("/dev/null"), dir.path()] {
        assert!(Writer::create(other).err().unwrap().to_string().contains("name a file for the archive"));
    }
}
