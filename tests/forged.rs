//! What a manifest repeats of its experiment agrees with it, or the entry does not count: whoever
//! changes a store can seal it again.

use replicate::store::{Content, Entry, Manifest, Store, sha256_hex};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn replicate(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments).args(["--scale", "smoke", "--store"]).arg(store);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

fn check(store: &Path) -> (Option<i32>, String) {
    let output = replicate(store, &["check", "edm"]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn write(entry: &Entry, manifest: &Manifest) {
    let text = |manifest: &Manifest| serde_json::to_string_pretty(manifest).unwrap() + "\n";
    let mut manifest = Manifest { manifest_sha256: String::new(), ..manifest.clone() };
    manifest.manifest_sha256 = sha256_hex(text(&manifest).as_bytes());
    fs::write(entry.path("manifest.json"), text(&manifest)).unwrap();
}

/// The scores of EDM's teacher: its pre-training is the dearest part.
#[test]
fn manifests_that_were_sealed_again_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let output = replicate(dir.path(), &["run", "edm", "--watch", "none", "--output", "/dev/null"]);
    let all = Store::open(dir.path()).unwrap().finished_entries().unwrap();
    let is_scores = |entry: &Entry| entry.label().starts_with("smoke-edm-s0");
    let found = all.into_iter().find(|(entry, _)| is_scores(entry));
    let Some((entry, manifest)) = found else { panic!("{}", String::from_utf8_lossy(&output.stderr)) };
    assert_eq!(check(dir.path()).0, Some(0));

    let forgeries: [(&str, &dyn Fn(&mut Manifest)); 7] = [
        ("the seed", &|manifest| manifest.seed = 7),
        ("the class", &|manifest| manifest.determinism = "cuda".into()),
        ("a parent", &|manifest| _ = manifest.parents.insert("weights".into(), "no key".into())),
        ("an input", &|manifest| _ = manifest.inputs.insert("features".into(), "no digest".into())),
        ("no input", &|manifest| manifest.inputs.clear()),
        ("no output", &|manifest| manifest.outputs.clear()),
        ("changes", &|manifest| manifest.changes.push("batch=64".into())),
    ];
    for (name, forge) in forgeries {
        let mut forged = manifest.clone();
        forge(&mut forged);
        write(&entry, &forged);
        let (code, text) = check(dir.path());
        assert_eq!(text.matches("its manifest contradicts").count(), 1, "{name}: {text}");
        assert_eq!(code, Some(5), "{name}: {text}");
    }

    // Results with changes are listed by their manifests.
    let mut forged = manifest.clone();
    forged.changes.push("batch=64".into());
    write(&entry, &forged);
    let text = String::from_utf8(replicate(dir.path(), &["list"]).stderr).unwrap();
    assert!(text.contains("its manifest contradicts"), "{text}");

    // Values twice, or in a file that the manifest does not vouch for.
    let scores = fs::read_to_string(entry.path("scores.csv")).unwrap();
    let twice = format!("{scores}fd,1\n");
    let content = Content { bytes: twice.len() as u64, sha256: sha256_hex(twice.as_bytes()) };
    let mut forged = manifest.clone();
    forged.outputs.insert("scores.csv".into(), content);
    write(&entry, &forged);
    fs::write(entry.path("scores.csv"), twice).unwrap();
    let (code, text) = check(dir.path());
    assert!(code == Some(3) && text.contains("scores.csv is invalid") && text.contains("fd,1"), "{text}");
    fs::write(entry.path("scores.csv"), scores).unwrap();
    forged.outputs.remove("scores.csv");
    write(&entry, &forged);
    let (code, text) = check(dir.path());
    assert!(code == Some(3) && text.contains("does not list"), "{text}");

    // Settings are those of the experiment, whatever the manifest says.
    let mut forged = manifest.clone();
    forged.settings.insert("sigma_init".into(), serde_json::json!(77.5));
    forged.images = 123_456_789;
    write(&entry, &forged);
    let output = replicate(dir.path(), &["report", "--format", "json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("\"edm\""),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!text.contains("77.5") && !text.contains("123456789"));
}
