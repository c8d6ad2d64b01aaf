//! The store: what is published is whole, what is damaged is said and kept,
//! and no crash, full disk or second worker spoils either.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use replicate::error::{EXIT_INPUT, EXIT_RUN, Error, Result};
use replicate::store::*;

const EXPERIMENT: &str = "objective = dijs\nseed = 0\n";

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn entry_in(root: &Path) -> Entry {
    Store::open(root).unwrap().entry(&Key::of(EXPERIMENT), "dijs-s0")
}

/// A process that another test starts holds copies of all open files until it
/// runs its program, so a lock that was just given back may seem taken for a moment.
fn lock(entry: &Entry) -> Lock {
    entry.lock(&mut |waited| Ok(assert!(waited.as_secs() < 10, "somebody else holds the lock"))).unwrap()
}

fn manifest(wall_seconds: f64) -> Manifest {
    Manifest {
        experiment: EXPERIMENT.into(),
        seed: u64::MAX,
        images: 12_800,
        determinism: "bitwise (cpu)".into(),
        parents: [("teacher".to_string(), Key::of("teacher").to_string())].into(),
        provenance: Provenance { date: "2025-01-02T03:04:05Z".into(), wall_seconds, ..Provenance::default() },
        ..Manifest::default()
    }
}

fn published(root: &Path) -> (Entry, Manifest) {
    let entry = entry_in(root);
    let lock = lock(&entry);
    lock.write("weights.safetensors", &[7; 1000]).unwrap();
    lock.write("metrics.csv", b"images,loss\n64,0.5\n").unwrap();
    let manifest = lock.publish(manifest(1.5), &["weights.safetensors", "metrics.csv"]).unwrap();
    (entry, manifest)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|child| child.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn damage(entry: &Entry) -> String {
    match entry.finished().unwrap() {
        Finished::Damaged(reason) => reason,
        other => panic!("not noticed: {other:?}"),
    }
}

/// In place: replacing the file 20,000 times would take half a minute.
fn flip(path: &Path, byte: usize, bit: u8) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut value = [0];
    file.seek(SeekFrom::Start(byte as u64)).unwrap();
    file.read_exact(&mut value).unwrap();
    file.seek(SeekFrom::Start(byte as u64)).unwrap();
    file.write_all(&[value[0] ^ (1 << bit)]).unwrap();
}

fn array(shape: &[usize], data: &[f32]) -> Array {
    Array { shape: shape.to_vec(), data: data.to_vec() }
}

fn checkpoint(images: u64) -> Checkpoint {
    Checkpoint {
        images,
        tensors: BTreeMap::from([
            ("ema.w".into(), array(&[2, 3], &[images as f32, -0.0, 1e-40, f32::INFINITY, 5.5, 6.0])),
            ("adam.step".into(), array(&[], &[images as f32])),
            ("empty".into(), array(&[0, 4], &[])),
        ]),
        text: BTreeMap::from([
            ("metrics.csv".into(), format!("images,loss\n{images},\"ü\"\n")),
            ("key".into(), "a name that the store uses too".into()),
        ]),
    }
}

// ---- keys and digests

#[test]
fn digests_are_sha256() {
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_hex(b"abc"), abc);
    assert_eq!(Key::of("abc").to_string(), abc);
    assert_eq!(Key::of("abc").short(), "ba7816bf8f01");
}

// ---- publishing

#[test]
fn an_entry_is_finished_once_it_is_published() {
    let root = temp();
    let entry = entry_in(root.path());
    assert_eq!(entry.finished().unwrap(), Finished::No);
    assert_eq!(names(root.path()), [""; 0], "asking creates nothing");
    assert_eq!(entry_in(&root.path().join("absent")).finished().unwrap(), Finished::No);
    assert_eq!(names(root.path()), [""; 0]);

    let held = lock(&entry);
    held.write("weights.safetensors", b"weights").unwrap();
    held.save_checkpoint(&checkpoint(64)).unwrap();
    assert_eq!(entry.finished().unwrap(), Finished::No);
    let written = held.publish(manifest(1.5), &["weights.safetensors"]).unwrap();
    drop(held);

    let key = Key::of(EXPERIMENT);
    assert_eq!(entry.dir(), root.path().join(format!("{}-dijs-s0", key.short())));
    assert_eq!(names(entry.dir()), ["experiment.txt", "lock", "manifest.json", "weights.safetensors"]);
    assert_eq!(entry.read("experiment.txt").unwrap(), EXPERIMENT.as_bytes());
    assert_eq!(entry.read("weights.safetensors").unwrap(), b"weights");

    let Finished::Yes(read) = entry.finished().unwrap() else { panic!("not finished") };
    assert_eq!(read, written);
    assert_eq!((read.key, read.label, read.seed), (key.to_string(), "dijs-s0".into(), u64::MAX));
    let output = Content { bytes: 7, sha256: sha256_hex(b"weights") };
    assert_eq!(read.outputs, BTreeMap::from([("weights.safetensors".into(), output)]));
}

#[test]
fn what_is_published_does_not_change() {
    let root = temp();
    let (entry, _) = published(root.path());
    let held = lock(&entry);
    for refused in [
        held.write("metrics.csv", b"").err(),
        held.save_checkpoint(&checkpoint(1)).err(),
        held.publish(manifest(2.0), &[]).err(),
    ] {
        assert!(refused.unwrap().to_string().contains("is published"));
    }
    assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
}

#[test]
fn a_wrong_publication_is_refused() {
    let root = temp();
    let held = lock(&entry_in(root.path()));
    held.write("metrics.csv", b"x").unwrap();
    let other = Manifest { experiment: "another".into(), ..manifest(1.0) };
    assert!(held.publish(other, &["metrics.csv"]).is_err());
    assert!(held.publish(manifest(f64::NAN), &["metrics.csv"]).is_err());
    let missing = held.publish(manifest(1.0), &["metrics.csv", "scores.csv"]).unwrap_err();
    assert!(matches!(&missing, Error::Missing { path, .. } if path.ends_with("scores.csv")), "{missing}");
    for name in ["", ".", "..", "../x", "a/b", ".tmp-0-x", "/x", "manifest.json", "lock", "checkpoint"] {
        assert!(held.write(name, b"").is_err(), "{name:?}");
        assert!(held.publish(manifest(1.0), &[name]).is_err(), "{name:?}");
    }
    assert_eq!(held.finished().unwrap(), Finished::No);
    held.publish(manifest(1.0), &["metrics.csv"]).unwrap();
}

#[test]
fn labels_cannot_leave_the_store() {
    let root = temp();
    let store = Store::open(root.path()).unwrap();
    for label in ["../../up", "a/b", "", "ü", &"x".repeat(1000)] {
        let entry = store.entry(&Key::of("e"), label);
        assert_eq!(entry.dir().parent(), Some(root.path()));
        drop(lock(&entry));
    }
}

#[test]
fn an_absent_output_is_missing() {
    let root = temp();
    let error = entry_in(root.path()).read("scores.csv").unwrap_err();
    assert!(matches!(&error, Error::Missing { path, .. } if path.ends_with("scores.csv")));
    assert_eq!(error.exit_code(), EXIT_INPUT);
}

#[test]
fn the_result_digest_depends_on_the_results_only() {
    let (one, two) = (temp(), temp());
    let make = |root: &Path, wall, loss: &[u8]| {
        let held = lock(&entry_in(root));
        held.write("metrics.csv", loss).unwrap();
        held.publish(manifest(wall), &["metrics.csv"]).unwrap()
    };
    let (a, b) = (make(one.path(), 1.0, b"0.5"), make(two.path(), 2.0, b"0.5"));
    assert_ne!(a, b);
    assert_eq!(a.result_digest(), b.result_digest());
    let c = make(temp().path(), 1.0, b"0.6");
    assert_ne!(a.result_digest(), c.result_digest());
}

// ---- damage

#[test]
fn every_kind_of_damage_is_noticed_and_names_the_file() {
    type Harm = (&'static str, &'static str, fn(&Path));
    let harms: [Harm; 11] = [
        ("weights.safetensors", "is missing", |p| fs::remove_file(p).unwrap()),
        ("weights.safetensors", "SHA-256", |p| flip(p, 999, 7)),
        ("weights.safetensors", "has 999 bytes instead of 1000", |p| fs::write(p, [7; 999]).unwrap()),
        ("weights.safetensors", "has 0 bytes", |p| fs::write(p, []).unwrap()),
        ("metrics.csv", "is a directory", |p| {
            fs::remove_file(p).unwrap();
            fs::create_dir(p).unwrap();
        }),
        ("experiment.txt", "is missing", |p| fs::remove_file(p).unwrap()),
        ("experiment.txt", "does not hash to the key", |p| fs::write(p, "objective = dikl\n").unwrap()),
        ("manifest.json", "is not a manifest", |p| fs::write(p, "{\"key\": ").unwrap()),
        ("manifest.json", "is not a manifest", |p| fs::write(p, "").unwrap()),
        ("manifest.json", "is not text", |p| fs::write(p, [0xff, 0xfe]).unwrap()),
        ("manifest.json", "was altered", |p| {
            let text = fs::read_to_string(p).unwrap().replace("\"images\": 12800", "\"images\": 12801");
            fs::write(p, text).unwrap()
        }),
    ];
    for (name, what, harm) in harms {
        let root = temp();
        let (entry, _) = published(root.path());
        harm(&entry.path(name));
        let reason = damage(&entry);
        let path = entry.path(name).display().to_string();
        assert!(reason.starts_with(&path) && reason.contains(what), "{reason}");
    }
}

#[test]
fn every_flipped_bit_is_damage() {
    let root = temp();
    let (entry, _) = published(root.path());
    for name in ["manifest.json", "experiment.txt", "metrics.csv"] {
        let path = entry.path(name);
        for byte in 0..fs::read(&path).unwrap().len() {
            for bit in 0..8 {
                flip(&path, byte, bit);
                assert!(damage(&entry).contains(name), "{name}: byte {byte}, bit {bit}");
                flip(&path, byte, bit);
            }
        }
    }
    assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
}

#[test]
fn another_experiments_manifest_is_damage() {
    let root = temp();
    let store = Store::open(root.path()).unwrap();
    let (entry, _) = published(root.path());
    let other = lock(&store.entry(&Key::of("other"), "other"));
    other.publish(Manifest { experiment: "other".into(), ..manifest(1.0) }, &[]).unwrap();
    fs::copy(other.path("manifest.json"), entry.path("manifest.json")).unwrap();
    assert!(damage(&entry).contains("belongs to the key"));
}

/// Alters the manifest as somebody would who also corrects its SHA-256.
fn forge(entry: &Entry, manifest: &Manifest, from: &str, to: &str) {
    let path = entry.path("manifest.json");
    let text = fs::read_to_string(&path).unwrap().replace(from, to);
    let unsealed = text.replace(&manifest.manifest_sha256, "");
    fs::write(&path, text.replace(&manifest.manifest_sha256, &sha256_hex(unsealed.as_bytes()))).unwrap();
}

#[test]
fn a_manifest_cannot_name_files_elsewhere() {
    let root = temp();
    let (entry, manifest) = published(root.path());
    forge(&entry, &manifest, "metrics.csv", "../format");
    assert!(damage(&entry).contains("lists \"../format\""));
}

#[test]
fn a_manifest_of_another_format_is_not_believed() {
    let root = temp();
    let (entry, manifest) = published(root.path());
    forge(&entry, &manifest, "\"format\": 1", "\"format\": 2");
    assert!(damage(&entry).contains("has the format 2, not 1"));
}

#[test]
fn what_is_damaged_is_moved_aside_and_made_again() {
    let root = temp();
    let aside = |n| root.path().join(format!("{}-dijs-s0.damaged-{n}", Key::of(EXPERIMENT).short()));
    for n in 1..=3 {
        let (entry, _) = published(root.path());
        flip(&entry.path("weights.safetensors"), 0, 0);
        let reason = damage(&entry);

        let held = lock(&entry);
        assert_eq!(held.discard(&reason).unwrap(), aside(n));
        assert_eq!(names(entry.dir()), ["lock"]);
        assert_eq!(entry.finished().unwrap(), Finished::No);
        assert!(others_wait(&entry), "it is still locked");
        drop(held);

        let kept = ["damaged.txt", "experiment.txt", "manifest.json", "metrics.csv", "weights.safetensors"];
        assert_eq!(names(&aside(n)), kept);
        assert_eq!(fs::read_to_string(aside(n).join("damaged.txt")).unwrap(), reason + "\n");
        assert_eq!(fs::read(aside(n).join("weights.safetensors")).unwrap().len(), 1000);
    }
    assert!(matches!(published(root.path()).0.finished().unwrap(), Finished::Yes(_)));
    assert!(aside(1).exists() && aside(2).exists() && aside(3).exists());
}

/// An entry may be a link to another disk, to which names cannot move.
#[cfg(target_os = "linux")]
#[test]
fn what_lies_on_another_disk_is_moved_aside_too() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let root = temp();
    let Ok(disk) = tempfile::tempdir_in("/dev/shm") else { return };
    if fs::metadata(disk.path()).unwrap().dev() == fs::metadata(root.path()).unwrap().dev() {
        return;
    }
    let (entry, _) = published(root.path());
    let there = disk.path().join("entry");
    fs::create_dir(&there).unwrap();
    for name in names(entry.dir()) {
        fs::copy(entry.path(&name), there.join(&name)).unwrap();
    }
    fs::remove_dir_all(entry.dir()).unwrap();
    symlink(&there, entry.dir()).unwrap();
    fs::create_dir_all(there.join("more/within")).unwrap();
    fs::write(there.join("more/within/file"), "precious").unwrap();
    flip(&entry.path("weights.safetensors"), 0, 0);
    let weights = fs::read(entry.path("weights.safetensors")).unwrap();
    let aside = lock(&entry).discard(&damage(&entry)).unwrap();
    assert_eq!(names(&there), ["lock"]);
    let kept =
        ["damaged.txt", "experiment.txt", "manifest.json", "metrics.csv", "more", "weights.safetensors"];
    assert_eq!(names(&aside), kept);
    assert_eq!(fs::read(aside.join("weights.safetensors")).unwrap(), weights);
    assert_eq!(fs::read_to_string(aside.join("more/within/file")).unwrap(), "precious");
}

// ---- what is no store

/// A disk that is not mounted, or that somebody else owns, is no empty store.
#[cfg(unix)]
#[test]
fn a_store_that_cannot_be_reached_is_not_an_empty_one() {
    use std::os::unix::fs::symlink;
    let root = temp();
    let path = root.path().join("store");
    symlink("not mounted", &path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    for part in ["store (a link to not mounted, which is not there)", "--store"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    fs::create_dir(root.path().join("not mounted")).unwrap();
    assert!(Store::open(&path).unwrap().finished_entries().unwrap().is_empty());
    symlink("circle", root.path().join("circle")).unwrap();
    for name in ["circle".into(), "long".repeat(100)] {
        let error = Store::open(&root.path().join(&name)).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
    }
    assert!(Store::open(&root.path().join("new")).is_ok());
}

#[test]
fn a_store_of_another_format_is_refused_and_left_alone() {
    let root = temp();
    fs::write(root.path().join("format"), "replicate store 0\n").unwrap();
    fs::write(root.path().join("entry"), "precious").unwrap();
    let error = Store::open(root.path()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let path = root.path().display().to_string();
    for part in [&path, "\"replicate store 0\"", "\"replicate store 1\"", "another place with --store"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(names(root.path()), ["entry", "format"]);
    assert_eq!(fs::read_to_string(root.path().join("format")).unwrap(), "replicate store 0\n");
}

#[test]
fn many_may_begin_one_store_at_once() {
    let (root, key) = (temp(), Key::of("an entry"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(lock(&Store::open(root.path()).unwrap().entry(&key, "entry"))));
        }
    });
    assert_eq!(names(root.path()), [format!("{}-entry", key.short()), "format".into()]);
}

#[test]
fn another_directory_is_not_taken_for_a_store() {
    let root = temp();
    fs::write(root.path().join("thesis.tex"), "precious").unwrap();
    let error = Store::open(root.path()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    assert!(error.to_string().contains("thesis.tex") && error.to_string().contains("--store"), "{error}");
    assert_eq!(names(root.path()), ["thesis.tex"]);

    // What a mounted volume or a repository holds anyway.
    let root = temp();
    fs::write(root.path().join(".gitignore"), "*").unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    Store::open(root.path()).unwrap();
}

/// Every entry verifies itself: eighteen bytes more or less are no store lost.
#[test]
fn a_store_that_lost_its_format_is_known_by_its_entries() {
    for format in [None, Some(""), Some("replicate st")] {
        let root = temp();
        let (entry, _) = published(root.path());
        fs::create_dir(root.path().join("inputs")).unwrap();
        let path = root.path().join("format");
        match format {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        assert!(matches!(entry_in(root.path()).finished().unwrap(), Finished::Yes(_)), "{format:?}");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), format, "a reader writes nothing");
        drop(lock(&entry));
        assert_eq!(fs::read_to_string(&path).unwrap(), "replicate store 1\n");
        // With something else in it, it might be anything: then the way back is said.
        fs::remove_file(&path).unwrap();
        fs::write(root.path().join("thesis.tex"), "precious").unwrap();
        let error = Store::open(root.path()).unwrap_err();
        let line = format!("echo replicate store 1 > {}", path.display());
        assert!(error.to_string().contains(&line), "{error}");
    }
}

#[test]
fn what_a_manifest_repeats_agrees_or_it_is_damage() {
    for (from, to, says) in [
        ("objective = dijs", "objective = dikl", "does not hash to the key"),
        ("\"label\": \"dijs-s0\"", "\"label\": \"dijs-s1\"", "has the label"),
        ("\"label\": \"dijs-s0\"", "\"label\": \"dijs-s0\\u001b[31m\"", "steers a terminal"),
        ("\"determinism\": \"", "\"determinism\": \"\\u202e", "steers a terminal"),
        ("\"sha256\": \"", "\"sha256\": \"\\u001b", "without its SHA-256"),
    ] {
        let root = temp();
        let (entry, manifest) = published(root.path());
        forge(&entry, &manifest, from, to);
        let reason = damage(&entry);
        assert!(reason.contains(says) && !reason.contains('\u{1b}'), "{reason}");
    }
}

#[cfg(unix)]
#[test]
fn whatever_is_in_the_place_of_a_file_blocks_nobody() {
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let circle = |path: &Path| std::os::unix::fs::symlink(path, path).unwrap();
    for make in [&pipe as &dyn Fn(&Path), &directory, &circle] {
        for name in ["manifest.json", "experiment.txt", "weights.safetensors"] {
            let root = temp();
            let (entry, _) = published(root.path());
            fs::remove_file(entry.path(name)).unwrap();
            make(&entry.path(name));
            let reason = damage(&entry);
            assert!(
                reason.contains(name) && reason.contains("is not a file") | reason.contains("is a directory"),
                "{reason}"
            );
            // It is moved aside with the rest, and made again.
            let held = lock(&entry);
            held.discard(&reason).unwrap();
            drop(held);
            published(root.path());
        }
        // Of a run that goes on: an output, the experiment, a checkpoint, all checkpoints.
        let root = temp();
        let (entry, _) = two_checkpoints(root.path());
        let newest = slot(&entry, "b");
        fs::remove_file(&newest).unwrap();
        make(&newest);
        make(&entry.path("grid.png"));
        make(&entry.path("experiment.txt"));
        let held = lock(&entry);
        let (resumed, notices) = held.resume().unwrap();
        assert!(resumed.is_some() && notices[0].contains("it is not a file"), "{notices:?}");
        held.write("grid.png", b"grid").unwrap();
        held.save_checkpoint(&checkpoint(9)).unwrap();
        held.save_checkpoint(&checkpoint(10)).unwrap();
        held.publish(manifest(1.0), &["grid.png"]).unwrap();
        assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
        let root = temp();
        let entry = entry_in(root.path());
        drop(lock(&entry));
        make(&entry.checkpoint_dir());
        lock(&entry).save_checkpoint(&checkpoint(1)).unwrap();
        // The lock itself is not waited for.
        fs::remove_file(entry.path("lock")).unwrap();
        make(&entry.path("lock"));
        let error = entry.lock(&mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("lock is invalid") && error.to_string().contains("remove it"));
    }
    // A file that nobody wrote takes no memory.
    let root = temp();
    let (entry, _) = published(root.path());
    let manifest = fs::OpenOptions::new().write(true).open(entry.path("manifest.json")).unwrap();
    manifest.set_len(1 << 40).unwrap();
    assert!(damage(&entry).contains("which are too many"));
    // One that is much too long takes no time, either.
    let root = temp();
    let (entry, _) = published(root.path());
    let weights = fs::OpenOptions::new().write(true).open(entry.path("weights.safetensors")).unwrap();
    weights.set_len(1 << 40).unwrap();
    assert!(damage(&entry).contains("has 1099511627776 bytes instead of 1000"));
}

#[test]
fn a_file_is_no_store() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(file.path()).unwrap_err();
    assert_eq!(error.exit_code(), replicate::error::EXIT_INPUT);
    assert!(error.to_string().contains("found a file") && error.to_string().contains("--store"), "{error}");
}

// ---- what a stopped run left

/// A run that was stopped after two ticks; the first checkpoint knows of one grid.
fn stopped(root: &Path) -> Entry {
    let entry = entry_in(root);
    let held = lock(&entry);
    for (tick, name) in [(1, "grid-1.png"), (2, "grid-2.png")] {
        held.write(name, &[tick; 500]).unwrap();
        held.rewrite("metrics.csv", &vec![b'm'; 10 * tick as usize]).unwrap();
        held.save_checkpoint(&checkpoint(tick as u64)).unwrap();
    }
    entry
}

#[test]
fn a_run_goes_on_only_from_what_is_as_it_was() {
    let whole = stopped(temp().path());
    drop(whole);
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let alter = |path: &Path| flip(path, 13, 4);
    let replace = |path: &Path| fs::write(path, [9; 500]).unwrap();
    for spoil in [&remove as &dyn Fn(&Path), &alter, &replace] {
        for (name, after) in [("grid-2.png", Some(1)), ("grid-1.png", None), ("metrics.csv", Some(2))] {
            let root = temp();
            let entry = stopped(root.path());
            spoil(&entry.path(name));
            let held = lock(&entry);
            let (resumed, notices) = held.resume().unwrap();
            assert_eq!(resumed.map(|checkpoint| checkpoint.images), after, "{name}");
            // A file that is written again from the checkpoint needs nobody to vouch for it.
            assert_eq!(notices.is_empty(), name == "metrics.csv", "{notices:?}");
            assert!(notices.iter().all(|notice| notice.contains(name)), "{notices:?}");
        }
    }
    // Resumed as it is, and published without being written again.
    let root = temp();
    let entry = stopped(root.path());
    let held = lock(&entry);
    assert_eq!(held.resume().unwrap(), (Some(checkpoint(2)), vec![]));
    held.rewrite("metrics.csv", b"all of it").unwrap();
    let manifest = held.publish(manifest(1.0), &["metrics.csv", "grid-1.png", "grid-2.png"]).unwrap();
    assert_eq!(manifest.outputs["grid-1.png"].sha256, sha256_hex(&[1; 500]));
}

#[test]
fn what_changed_after_it_was_written_is_not_published() {
    let root = temp();
    let entry = stopped(root.path());
    let held = lock(&entry);
    held.resume().unwrap();
    held.rewrite("metrics.csv", b"all of it").unwrap();
    let outputs = ["metrics.csv", "grid-1.png"];
    for name in outputs {
        let good = fs::read(entry.path(name)).unwrap();
        flip(&entry.path(name), 3, 3);
        let error = held.publish(manifest(1.0), &outputs).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_INPUT);
        assert!(error.to_string().contains(name) && error.to_string().contains("same command"), "{error}");
        assert_eq!(entry.finished().unwrap(), Finished::No);
        fs::write(entry.path(name), good).unwrap();
    }
    // Nobody vouches for what merely lies there.
    fs::write(entry.path("scores.csv"), "fd,1.0").unwrap();
    let error = held.publish(manifest(1.0), &["scores.csv"]).unwrap_err();
    assert!(error.to_string().contains("did not write it"), "{error}");
    held.publish(manifest(1.0), &outputs).unwrap();
}

#[test]
fn an_output_is_read_back_only_as_it_was_recorded() {
    let root = temp();
    let entry = entry_in(root.path());
    let held = lock(&entry);
    held.write("trial-0.csv", b"fd,1").unwrap();
    assert_eq!(held.finished_output("trial-0.csv").unwrap(), None, "not recorded yet");
    held.record_outputs().unwrap();
    drop(held);
    let again = || lock(&entry).finished_output("trial-0.csv").unwrap();
    assert_eq!(again().as_deref(), Some(&b"fd,1"[..]));
    flip(&entry.path("trial-0.csv"), 3, 1);
    assert_eq!(again(), None);
    flip(&entry.path("trial-0.csv"), 3, 1);
    assert!(again().is_some());
    let record = entry.checkpoint_dir().join("outputs.safetensors");
    flip(&record, 40, 0);
    assert_eq!(again(), None);
    flip(&record, 40, 0);
    // Of another experiment, or of an entry that has been published.
    let other = Store::open(root.path()).unwrap().entry(&Key::of("other"), "other");
    fs::create_dir_all(other.checkpoint_dir()).unwrap();
    fs::copy(&record, other.checkpoint_dir().join("outputs.safetensors")).unwrap();
    fs::copy(entry.path("trial-0.csv"), other.path("trial-0.csv")).unwrap();
    assert_eq!(lock(&other).finished_output("trial-0.csv").unwrap(), None);
    lock(&entry).publish(manifest(1.0), &[]).unwrap();
    fs::remove_file(entry.path("manifest.json")).unwrap();
    assert_eq!(again(), None);
}

// ---- what killed writers left

#[test]
fn checkpoints_of_a_published_entry_go_with_the_next_look() {
    let root = temp();
    let (entry, _) = published(root.path());
    let leave = || {
        fs::create_dir(entry.checkpoint_dir()).unwrap();
        fs::write(slot(&entry, "a"), [0; 1000]).unwrap();
    };
    leave();
    assert_eq!(
        Store::open(root.path()).unwrap().leftovers().unwrap(),
        [Leftover { what: "checkpoints of unfinished runs", count: 1, bytes: 1000 }]
    );
    assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
    assert!(!entry.checkpoint_dir().exists());
    assert_eq!(Store::open(root.path()).unwrap().leftovers().unwrap(), []);
    // Not while somebody is at it.
    leave();
    let held = fs::File::options().append(true).open(entry.path("lock")).unwrap();
    held.lock().unwrap();
    assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
    assert!(entry.checkpoint_dir().exists());
    drop(held);
    // A link to another disk: its own files go, others stay.
    #[cfg(unix)]
    {
        fs::remove_dir_all(entry.checkpoint_dir()).unwrap();
        let scratch = temp();
        for name in ["a.safetensors", "b.safetensors", ".tmp-0-somebody-else", "notes.txt"] {
            fs::write(scratch.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(scratch.path(), entry.checkpoint_dir()).unwrap();
        assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
        assert_eq!(names(scratch.path()), [".tmp-0-somebody-else", "notes.txt"]);
        assert!(entry.checkpoint_dir().symlink_metadata().is_err());
    }
}

#[test]
fn temporary_files_of_the_dead_go_and_those_of_the_living_stay() {
    let root = temp();
    let path = |name: &str| root.path().join(name);
    for name in [".tmp-0-page.html", ".tmp-1-page.html", ".tmp-0-other.html", ".tmp-x-page.html"] {
        fs::write(path(name), "half").unwrap();
    }
    let living = fs::File::create(path(".tmp-2-page.html")).unwrap();
    living.lock().unwrap();
    write_atomically(root.path(), "page.html", b"whole").unwrap();
    assert_eq!(
        names(root.path()),
        [".tmp-0-other.html", ".tmp-2-page.html", ".tmp-x-page.html", "page.html"]
    );
    // Writers of one file at once: it is one of theirs, and nothing is left.
    drop(living);
    std::thread::scope(|scope| {
        for writer in 0..8u8 {
            let root = root.path();
            scope.spawn(move || {
                for _ in 0..50 {
                    write_atomically(root, "page.html", &[writer; 3000]).unwrap();
                }
            });
        }
    });
    let page = fs::read(path("page.html")).unwrap();
    assert!(page.len() == 3000 && page.iter().all(|byte| *byte == page[0]));
    write_atomically(root.path(), "page.html", b"whole").unwrap();
    assert_eq!(names(root.path()), [".tmp-0-other.html", ".tmp-x-page.html", "page.html"]);
}

#[test]
fn a_file_that_is_changed_by_many_loses_no_change() {
    let root = temp();
    let path = root.path().join("table.csv");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let _lock = lock_to_change(&path, &mut |_| Ok(())).unwrap();
                    let lines = fs::read_to_string(&path).unwrap();
                    write_atomically(root.path(), "table.csv", (lines + "line\n").as_bytes()).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 120);
    assert_eq!(names(root.path()), ["table.csv"]);
}

// ---- checkpoints

fn load(entry: &Entry) -> (Option<Checkpoint>, Vec<String>) {
    entry.load_checkpoint().unwrap()
}

fn slot(entry: &Entry, name: &str) -> PathBuf {
    entry.checkpoint_dir().join(format!("{name}.safetensors"))
}

#[test]
fn the_newest_checkpoint_is_loaded_and_the_older_one_kept() {
    let root = temp();
    let entry = entry_in(root.path());
    assert_eq!(load(&entry), (None, vec![]));
    for n in 0..5 {
        // Every other one by a process that has just been started.
        let held = lock(&entry);
        for images in [100 + 2 * n, 101 + 2 * n] {
            let before = load(&entry).0;
            held.save_checkpoint(&checkpoint(images)).unwrap();
            assert_eq!(load(&entry), (Some(checkpoint(images)), vec![]));
            let newest = if images % 2 == 0 { "a" } else { "b" };
            fs::rename(slot(&entry, newest), root.path().join("hidden")).unwrap();
            assert_eq!(load(&entry).0, before, "the previous one is still there");
            fs::rename(root.path().join("hidden"), slot(&entry, newest)).unwrap();
        }
    }
    assert_eq!(names(&entry.checkpoint_dir()), ["a.safetensors", "b.safetensors"]);
}

#[test]
fn the_newest_is_the_last_saved_not_the_one_with_most_images() {
    let root = temp();
    let held = lock(&entry_in(root.path()));
    for images in [900, 5, 3] {
        held.save_checkpoint(&checkpoint(images)).unwrap();
        assert_eq!(load(&held).0.unwrap().images, images);
    }
}

/// Saves checkpoints of 1 (in a) and 2 images (in b), and an `other` one of 3
/// images in b of another experiment.
fn two_checkpoints(root: &Path) -> (Entry, PathBuf) {
    let entry = entry_in(root);
    let held = lock(&entry);
    held.save_checkpoint(&checkpoint(1)).unwrap();
    held.save_checkpoint(&checkpoint(2)).unwrap();
    let other = lock(&Store::open(root).unwrap().entry(&Key::of("other"), "other"));
    other.save_checkpoint(&checkpoint(3)).unwrap();
    other.save_checkpoint(&checkpoint(3)).unwrap();
    (entry, slot(&other, "b"))
}

#[test]
fn a_spoilt_newest_checkpoint_gives_way_to_the_older_one() {
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let root = temp();
    let (entry, other) = two_checkpoints(root.path());
    let newest = slot(&entry, "b");
    let good = fs::read(&newest).unwrap();
    let foreign = fs::read(other).unwrap();
    let (tensors, mut text) = read_safetensors(&newest, &good).unwrap();
    text.insert("format".into(), "replicate checkpoint 2".into());
    text.remove("sha256").unwrap();
    text.insert("sha256".into(), sha256_hex(&write_safetensors(&tensors, &text)));
    let later = write_safetensors(&tensors, &text);
    let harms: [Harm; 8] = [
        ("its format is \"replicate checkpoint 2\"", &|p| fs::write(p, &later).unwrap()),
        ("a file of", &|p| fs::write(p, &good[..good.len() / 2]).unwrap()),
        ("bytes of data", &|p| fs::write(p, &good[..good.len() - 1]).unwrap()),
        ("fewer than 8 bytes", &|p| fs::write(p, []).unwrap()),
        ("SHA-256", &|p| flip(p, good.len() - 1, 0)),
        ("bytes of data", &|p| fs::write(p, [&good[..], &[0; 4]].concat()).unwrap()),
        ("belongs to the key", &|p| fs::write(p, &foreign).unwrap()),
        ("SHA-256", &|p| fs::write(p, write_safetensors(&checkpoint(9).tensors, &BTreeMap::new())).unwrap()),
    ];
    for (what, harm) in harms {
        fs::write(&newest, &good).unwrap();
        assert_eq!(load(&entry).0, Some(checkpoint(2)));
        harm(&newest);
        let (found, notices) = load(&entry);
        assert_eq!(found, Some(checkpoint(1)), "{what}");
        let [notice] = &notices[..] else { panic!("{notices:?}") };
        assert!(notice.contains(what) && notice.contains("b.safetensors"), "{what}: {notice}");
        assert!(!notice.contains('\n'), "{notice}");

        // The next one is saved over the spoilt one.
        let older = fs::read(slot(&entry, "a")).unwrap();
        lock(&entry).save_checkpoint(&checkpoint(7)).unwrap();
        assert_eq!(load(&entry), (Some(checkpoint(7)), vec![]));
        assert_eq!(fs::read(slot(&entry, "a")).unwrap(), older);
    }
    fs::write(slot(&entry, "a"), "x").unwrap();
    fs::write(slot(&entry, "b"), "y").unwrap();
    let (found, notices) = load(&entry);
    assert_eq!((found, notices.len()), (None, 2));
}

#[test]
fn no_flipped_bit_and_no_truncation_gets_into_a_checkpoint() {
    let root = temp();
    let (entry, _) = two_checkpoints(root.path());
    let newest = slot(&entry, "b");
    let good = fs::read(&newest).unwrap();
    for byte in 0..good.len() {
        for bit in 0..8 {
            flip(&newest, byte, bit);
            assert_eq!(load(&entry).0, Some(checkpoint(1)), "byte {byte}, bit {bit}");
            flip(&newest, byte, bit);
        }
    }
    assert_eq!(load(&entry).0, Some(checkpoint(2)));
    let file = fs::File::options().write(true).open(&newest).unwrap();
    for length in (0..good.len()).rev() {
        file.set_len(length as u64).unwrap();
        assert_eq!(load(&entry).0, Some(checkpoint(1)), "cut to {length}");
    }
}

#[test]
fn a_discarded_run_leaves_no_trace_in_the_next() {
    let root = temp();
    let (entry, _) = two_checkpoints(root.path());
    let first = fs::read(slot(&entry, "a")).unwrap();
    let held = lock(&entry);
    held.save_checkpoint(&checkpoint(3)).unwrap();
    let aside = held.discard("unwanted").unwrap();
    assert_eq!(names(&aside), ["checkpoint", "damaged.txt"]);
    assert_eq!(load(&entry), (None, vec![]));
    held.save_checkpoint(&checkpoint(1)).unwrap();
    assert_eq!(names(&entry.checkpoint_dir()), ["a.safetensors"]);
    assert_eq!(fs::read(slot(&entry, "a")).unwrap(), first);
}

#[test]
fn equal_runs_save_equal_bytes() {
    let bytes = || {
        let root = temp();
        let (entry, _) = two_checkpoints(root.path());
        (fs::read(slot(&entry, "a")).unwrap(), fs::read(slot(&entry, "b")).unwrap())
    };
    assert_eq!(bytes(), bytes());
}

// ---- safetensors

#[test]
fn safetensors_bytes_are_fixed() {
    let tensors = BTreeMap::from([
        ("z".to_string(), array(&[1], &[1.0])),
        ("a".to_string(), array(&[2], &[2.0, f32::from_bits(0xffa5_5a01)])),
    ]);
    let text: BTreeMap<String, String> =
        (0..20).map(|n| (format!("name {n:02}"), format!("value \"{n}\""))).collect();
    let bytes = write_safetensors(&tensors, &text);
    assert_eq!(bytes, write_safetensors(&tensors, &text));
    // The same file made by a Python program. A hash map's order would differ from process to process.
    assert_eq!(sha256_hex(&bytes), "726dfe68873644a0bd6a7e95ee862c6187543a924f47550e92c50e61c492d967");

    let small = write_safetensors(&tensors, &BTreeMap::new());
    let header = r#"{"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#.to_owned()
        + r#""z":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    let padded = header.len().next_multiple_of(8);
    assert_eq!(&small[..8], (padded as u64).to_le_bytes());
    assert_eq!(std::str::from_utf8(&small[8..8 + padded]).unwrap().trim_end(), header);
    assert_eq!(small[8 + padded..], [0, 0, 0, 64, 1, 0x5a, 0xa5, 0xff, 0, 0, 128, 63]);
}

#[test]
fn other_programs_read_what_we_write_and_we_read_what_they_write() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
    let Checkpoint { tensors, text, .. } = checkpoint(3);
    let bytes = write_safetensors(&tensors, &text);
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), 3);
    assert_eq!(theirs.tensor("ema.w").unwrap().shape(), [2, 3]);
    assert_eq!(theirs.tensor("ema.w").unwrap().data()[..4], 3f32.to_le_bytes());
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().clone().unwrap(), text.clone().into_iter().collect());

    let raw: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, a)| (name, a.data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = tensors
        .iter()
        .map(|(name, a)| (name, TensorView::new(Dtype::F32, a.shape.clone(), &raw[name]).unwrap()));
    let bytes = serialize(views, Some(text.clone().into_iter().collect())).unwrap();
    assert_eq!(read_safetensors(Path::new("x"), &bytes).unwrap(), (tensors, text));

    let half = TensorView::new(Dtype::F16, vec![2], &[0; 4]).unwrap();
    let bytes = serialize([("half", half)], None).unwrap();
    let error = read_safetensors(Path::new("half.safetensors"), &bytes).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }));
    for part in ["half.safetensors", "half of type F16"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn what_a_file_claims_is_not_believed() {
    let file = |length: u64, json: &str, data: usize| {
        [&length.to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
    };
    let tensor = |shape: &str, begin: &str, end: &str| {
        format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let malformed = |bytes: &[u8]| {
        let error = read_safetensors(Path::new("bad"), bytes).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    };
    let header = |json: &str, data: usize| file(json.len() as u64, json, data);
    assert!(read_safetensors(Path::new("good"), &header(&tensor("[2]", "0", "8"), 8)).is_ok());

    malformed(b"");
    malformed(&file(u64::MAX, "{}", 0));
    malformed(&file(1 << 40, "{}", 0));
    malformed(&file(3, "{}", 0));
    malformed(&header("", 0));
    malformed(&header("[]", 0));
    malformed(&header(&"[".repeat(100_000), 0));
    malformed(&header("{}", 4));
    let max = u64::MAX.to_string();
    let big = (u64::MAX - 3).to_string();
    let cases = [
        ("[2]", "0", "8", 4),
        ("[2]", "0", "8", 12),
        ("[2]", "4", "12", 12),
        ("[2]", "8", "0", 8),
        ("[3]", "0", "8", 8),
        ("[-1]", "0", "8", 8),
        ("[1099511627776]", "0", "4398046511104", 8),
        ("[4611686018427387903]", "0", &big, 8),
        ("[4611686018427387904]", "0", "0", 0),
        (&format!("[{max},{max}]"), "0", &max, 8),
        (&format!("[{max}]"), "0", "8", 8),
        ("[2]", "0", "1e400", 8),
    ];
    for (shape, begin, end, data) in cases {
        malformed(&header(&tensor(shape, begin, end), data));
    }
    let two = |a: &str, b: &str| {
        let view = |offsets| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{offsets}]}}"#);
        header(&format!(r#"{{"v":{},"w":{}}}"#, view(a), view(b)), 8)
    };
    assert!(read_safetensors(Path::new("good"), &two("4,8", "0,4")).is_ok());
    malformed(&two("0,4", "0,4"));
    malformed(&two("0,4", "2,6"));
    malformed(&two("0,4", "18446744073709551612,18446744073709551615"));
}

#[test]
#[should_panic(expected = "shape")]
fn an_array_of_the_wrong_length_is_not_written() {
    write_safetensors(&BTreeMap::from([("w".into(), array(&[3], &[1.0]))]), &BTreeMap::new());
}

fn any_array() -> impl Strategy<Value = Array> {
    prop::collection::vec(0usize..4, 0..4).prop_flat_map(|shape| {
        let count = shape.iter().product::<usize>();
        prop::collection::vec(any::<u32>(), count).prop_map(move |bits| Array {
            shape: shape.clone(),
            data: bits.into_iter().map(f32::from_bits).collect(),
        })
    })
}

fn any_text() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(any::<String>(), any::<String>(), 0..5)
}

fn any_tensors() -> impl Strategy<Value = BTreeMap<String, Array>> {
    prop::collection::btree_map(any::<String>(), any_array(), 0..5)
}

/// Equal shapes and equal bits, NaN included.
fn bits(tensors: &BTreeMap<String, Array>) -> Vec<(&String, &Vec<usize>, Vec<u32>)> {
    tensors.iter().map(|(name, a)| (name, &a.shape, a.data.iter().map(|x| x.to_bits()).collect())).collect()
}

proptest! {
    #[test]
    fn safetensors_keep_every_bit(tensors in any_tensors(), text in any_text()) {
        let bytes = write_safetensors(&tensors, &text);
        let (read, read_text) = read_safetensors(Path::new("x"), &bytes).unwrap();
        prop_assert_eq!(bits(&read), bits(&tensors));
        prop_assert_eq!(&read_text, &text);
        prop_assert_eq!(write_safetensors(&read, &read_text), bytes);
    }

    #[test]
    fn checkpoints_keep_every_bit(images in any::<u64>(), tensors in any_tensors(), text in any_text()) {
        let root = temp();
        let held = lock(&entry_in(root.path()));
        let saved = Checkpoint { images, tensors, text };
        held.save_checkpoint(&saved).unwrap();
        let (loaded, notices) = load(&held);
        let loaded = loaded.unwrap();
        prop_assert!(notices.is_empty());
        prop_assert_eq!((loaded.images, &loaded.text), (saved.images, &saved.text));
        prop_assert_eq!(bits(&loaded.tensors), bits(&saved.tensors));
    }

    #[test]
    fn spoilt_safetensors_never_panic(tensors in any_tensors(), at in any::<prop::sample::Index>(),
                                      with in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut bytes = write_safetensors(&tensors, &BTreeMap::new());
        let at = at.index(bytes.len());
        let end = (at + with.len()).min(bytes.len());
        bytes.splice(at..end, with);
        match read_safetensors(Path::new("x"), &bytes) {
            Ok((read, text)) => prop_assert!(write_safetensors(&read, &text).len() <= 2 * bytes.len() + 64),
            Err(error) => prop_assert!(matches!(error, Error::Malformed { .. }), "{}", error),
        }
    }
}

// ---- locks and crashes

/// Whether somebody holds the lock.
fn others_wait(entry: &Entry) -> bool {
    match entry.lock(&mut |_| Err(Error::Run("enough".into()))) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.to_string(), "enough");
            true
        }
    }
}

#[test]
fn a_second_worker_is_told_that_it_waits_and_then_goes_on() {
    let root = temp();
    let entry = entry_in(root.path());
    let held = lock(&entry);
    assert!(others_wait(&entry), "an error from the callback ends the wait");
    let mut held = Some(held);
    let mut calls = Vec::new();
    let second = entry.lock(&mut |waited| {
        calls.push(waited);
        if calls.len() == 3 {
            held = None;
        }
        Ok(())
    });
    drop(second.unwrap());
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[0], Duration::ZERO);
    assert!(calls[1] < calls[2]);
    assert!(!others_wait(&entry));
}

#[test]
fn leftovers_of_killed_writers_are_removed() {
    let root = temp();
    let (entry, _) = two_checkpoints(root.path());
    fs::write(entry.path(".tmp-0-weights.safetensors"), "half").unwrap();
    fs::write(entry.checkpoint_dir().join(".tmp-3-a.safetensors"), "half").unwrap();
    lock(&entry).write("weights.safetensors", b"whole").unwrap();
    assert_eq!(names(entry.dir()), ["checkpoint", "lock", "weights.safetensors"]);
    assert_eq!(names(&entry.checkpoint_dir()), ["a.safetensors", "b.safetensors"]);

    // Killed between writing the manifest and removing the checkpoints.
    let checkpoint = fs::read(slot(&entry, "a")).unwrap();
    let held = lock(&entry);
    held.write("weights.safetensors", b"whole").unwrap();
    held.publish(manifest(1.0), &["weights.safetensors"]).unwrap();
    drop(held);
    fs::create_dir(entry.checkpoint_dir()).unwrap();
    fs::write(slot(&entry, "a"), checkpoint).unwrap();
    assert!(matches!(entry.finished().unwrap(), Finished::Yes(_)));
    drop(lock(&entry));
    assert!(!entry.checkpoint_dir().exists());
}

/// This test program again, as another process that does `role` in `root`.
fn child(role: &str, root: &Path, limit_blocks: Option<u32>) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    let limit = limit_blocks.map_or(String::new(), |n| format!("trap '' XFSZ; ulimit -f {n};"));
    command.arg("-c").arg(format!("{limit} exec \"$0\" \"$@\"")).arg(program);
    command.args(["--exact", "child_process", "--ignored", "--nocapture"]);
    command.env("STORE_TEST_ROLE", role).env("STORE_TEST_ROOT", root);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

fn wait_for_line(child: &mut Child, wanted: &str) {
    let stdout = child.stdout.as_mut().unwrap();
    let mut lines = BufReader::new(stdout).lines().map_while(std::result::Result::ok);
    assert!(lines.any(|line| line.contains(wanted)), "the child never said {wanted:?}");
}

const ROUNDS: u32 = 20;
const BLOCK: usize = 1 << 20;

#[test]
#[ignore = "the other process of the tests below, which start it themselves"]
fn child_process() {
    let Ok(role) = std::env::var("STORE_TEST_ROLE") else { return };
    let entry = entry_in(Path::new(&std::env::var_os("STORE_TEST_ROOT").unwrap()));
    let say = |text: &str| {
        println!("\n{text}");
        std::io::stdout().flush().unwrap();
    };
    match role.as_str() {
        "hold" => {
            let _held = lock(&entry);
            say("locked");
            std::thread::sleep(Duration::from_secs(600));
        }
        "count" => {
            for _ in 0..ROUNDS {
                let held = entry.lock(&mut |_| Ok(())).unwrap();
                let count =
                    held.read("count").map_or(0, |bytes| String::from_utf8(bytes).unwrap().parse().unwrap());
                held.write("count", (count + 1u32).to_string().as_bytes()).unwrap();
            }
        }
        "write" => {
            let held = lock(&entry);
            let (start, _) = held.load_checkpoint().unwrap();
            for n in start.map_or(0, |checkpoint| checkpoint.images) + 1.. {
                held.write("weights.safetensors", &vec![n as u8; BLOCK]).unwrap();
                held.save_checkpoint(&big_checkpoint(n)).unwrap();
                say("saved");
            }
        }
        "overflow" => {
            let held = lock(&entry);
            let refused = held.write("weights.safetensors", &vec![1; BLOCK]).unwrap_err();
            let message = refused.to_string();
            let target = held.path("weights.safetensors");
            assert!(matches!(&refused, Error::Io { action: "write", path, .. } if *path == target));
            assert!(message.starts_with("cannot write "), "{message}");
            assert!(held.save_checkpoint(&big_checkpoint(9)).is_err());
            say("refused");
        }
        other => panic!("{other}"),
    }
}

fn big_checkpoint(images: u64) -> Checkpoint {
    let data = vec![images as f32; BLOCK / 4];
    let tensors = BTreeMap::from([("w".into(), Array { shape: vec![data.len()], data })]);
    Checkpoint { images, tensors, text: BTreeMap::new() }
}

#[test]
fn a_killed_holder_lets_go() {
    let root = temp();
    let entry = entry_in(root.path());
    let mut holder = child("hold", root.path(), None);
    wait_for_line(&mut holder, "locked");
    assert!(others_wait(&entry));
    holder.kill().unwrap();
    holder.wait().unwrap();
    drop(lock(&entry));
}

#[test]
fn many_workers_take_turns() {
    let root = temp();
    let workers: Vec<_> = (0..3).map(|_| child("count", root.path(), None)).collect();
    for mut worker in workers {
        // Drained, so that the child never blocks on a full pipe.
        worker.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        assert!(worker.wait().unwrap().success());
    }
    let count = entry_in(root.path()).read("count").unwrap();
    assert_eq!(String::from_utf8(count).unwrap(), (3 * ROUNDS).to_string());
}

#[test]
fn a_killed_writer_leaves_whole_files() {
    let root = temp();
    let entry = entry_in(root.path());
    let mut reached = 0;
    for round in 0..12 {
        let mut writer = child("write", root.path(), None);
        wait_for_line(&mut writer, "saved");
        // Killed at another moment of its loop each time.
        let until = Instant::now() + Duration::from_micros(1700 * round);
        while Instant::now() < until {}
        writer.kill().unwrap();
        writer.wait().unwrap();

        let held = lock(&entry);
        assert_eq!(names(held.dir()), ["checkpoint", "lock", "weights.safetensors"]);
        assert_eq!(names(&held.checkpoint_dir()).iter().filter(|name| name.starts_with('.')).count(), 0);
        let weights = held.read("weights.safetensors").unwrap();
        assert_eq!(weights.len(), BLOCK);
        assert!(weights.iter().all(|byte| *byte == weights[0]));
        let (found, notices) = load(&held);
        let found = found.unwrap();
        assert!(notices.is_empty(), "{notices:?}");
        assert!(found.images > reached, "{} after {reached}", found.images);
        assert_eq!(found, big_checkpoint(found.images));
        reached = found.images;
    }
}

// ---- full disks

/// Something published and two checkpoints of an unpublished entry, to see
/// that they survive.
fn furnish(root: &Path) -> Entry {
    let other = lock(&Store::open(root).unwrap().entry(&Key::of("other"), "other"));
    other.write("metrics.csv", b"0.5").unwrap();
    other.publish(Manifest { experiment: "other".into(), ..manifest(1.0) }, &["metrics.csv"]).unwrap();
    let entry = entry_in(root);
    let held = lock(&entry);
    held.write("weights.safetensors", b"before").unwrap();
    held.save_checkpoint(&checkpoint(1)).unwrap();
    held.save_checkpoint(&checkpoint(2)).unwrap();
    entry
}

fn assert_furnished(root: &Path) {
    let entry = entry_in(root);
    assert_eq!(entry.read("weights.safetensors").unwrap(), b"before");
    assert_eq!(load(&entry), (Some(checkpoint(2)), vec![]));
    assert_eq!(names(entry.dir()), ["checkpoint", "lock", "weights.safetensors"]);
    assert_eq!(names(&entry.checkpoint_dir()), ["a.safetensors", "b.safetensors"]);
    let other = Store::open(root).unwrap().entry(&Key::of("other"), "other");
    assert!(matches!(other.finished().unwrap(), Finished::Yes(_)));
}

#[test]
#[cfg(unix)]
fn a_write_that_breaks_off_changes_nothing() {
    let root = temp();
    furnish(root.path());
    let mut writer = child("overflow", root.path(), Some(64));
    wait_for_line(&mut writer, "refused");
    assert!(writer.wait().unwrap().success());
    assert_furnished(root.path());
}

/// A mounted file system that is unmounted when it goes out of scope.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = temp();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(dir.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_with_a_remedy_and_changes_nothing() -> Result<()> {
    let Some(disk) = SmallDisk::mount() else {
        // Past the test harness, which hides what a passing test prints.
        writeln!(std::io::stderr(), "SKIPPED the full disk: not permitted to mount a tmpfs").unwrap();
        return Ok(());
    };
    let root = disk.0.path();
    let held = lock(&furnish(root));
    held.resume()?;
    let refused = held.write("weights.safetensors", &vec![1; BLOCK]).unwrap_err();
    assert!(
        matches!(&refused, Error::Io { action: "write", path, .. } if *path == held.path("weights.safetensors"))
    );
    assert!(refused.to_string().contains("free some space"), "{refused}");
    assert_eq!(refused.exit_code(), EXIT_RUN);
    assert!(held.save_checkpoint(&big_checkpoint(3)).is_err());
    assert_furnished(root);

    // With nothing left at all it cannot publish either, and once there is room it can.
    let filler = root.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    assert!(held.publish(manifest(1.0), &["weights.safetensors"]).is_err());
    assert_furnished(root);
    drop(file);
    fs::remove_file(&filler).unwrap();
    held.publish(manifest(1.0), &["weights.safetensors"])?;
    assert!(matches!(held.finished()?, Finished::Yes(_)));
    Ok(())
}
