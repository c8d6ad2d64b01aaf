//! The scale tiny on small files of the authors' layout: what is read, what is compared
//! with, and what is said where files are missing.

use assert_cmd::cargo::cargo_bin_cmd;
use replicate::rng::Stream;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Five training files and the test file, with so many images of each class in all.
fn write_cifar(dir: &Path, train: usize, test: usize, stream: &str) {
    let mut draws = Stream::new("tests/tiny", stream).at(0);
    let mut records = |each: usize| -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..10 * each {
            let class = (i % 10) as u8;
            bytes.push(class);
            // A class is a shade, so that the classifier and the metrics have something to see.
            bytes.extend((0..3072).map(|_| class * 20 + draws.below(40) as u8));
        }
        bytes
    };
    for batch in 1..=5 {
        fs::write(dir.join(format!("data_batch_{batch}.bin")), records(train / 5)).unwrap();
    }
    fs::write(dir.join("test_batch.bin"), records(test)).unwrap();
}

fn replicate(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = cargo_bin_cmd!("replicate");
    let root = env!("CARGO_MANIFEST_DIR");
    command.current_dir(dir).args(arguments).args(["--scale", "tiny", "--root", root]);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A classifier of its own too: not the one that ships.
const SHORT: [&str; 12] = [
    "--until",
    "64",
    "--set",
    "samples=40",
    "--set",
    "quick_samples=20",
    "--set",
    "neighbourhood=40",
    "--set",
    "ticks=1",
    "--set",
    "classifier_images=1280",
];

#[test]
fn rows_run_on_averaged_images_and_are_compared_with_those_held_out() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("cifar");
    fs::create_dir(&data).unwrap();
    write_cifar(&data, 20, 10, "first");
    let run = |arguments: &[&str]| {
        let all = [arguments, &SHORT, &["--data", "cifar", "--store", "store", "--watch", "lines"]].concat();
        replicate(dir.path(), &all)
    };
    let (code, out, err) = run(&["run", "dijs"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("  fd  ") && !out.contains("fid"), "{out}");
    assert!(err.contains("CIFAR-10: 200 of 50000 train images in cifar"), "{err}");
    assert!(err.contains("CIFAR-10: 100 of 10000 test images in cifar"), "{err}");
    // Nothing is made twice.
    let manifests = |dir: &Path| {
        let entries = fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.join("manifest.json").exists()).count()
    };
    let before = manifests(dir.path());
    let (code, again, _) = run(&["run", "dijs"]);
    assert_eq!((code, again, manifests(dir.path())), (0, out, before));

    // Other held-out images give other scores of the same weights.
    write_cifar(&data, 20, 10, "first");
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    write_cifar(&other, 20, 10, "second");
    fs::copy(other.join("test_batch.bin"), data.join("test_batch.bin")).unwrap();
    let (code, _, err) = run(&["run", "dijs"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(manifests(dir.path()), before + 2, "a reference and the scores, and no weights");
}

#[test]
fn missing_files_are_named_with_what_gets_them() {
    let dir = TempDir::new().unwrap();
    let (code, _, err) = replicate(dir.path(), &["run", "dijs", "--store", "store", "--offline"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("replicate fetch cifar10"), "{err}");
    let data = dir.path().join("cifar");
    fs::create_dir(&data).unwrap();
    write_cifar(&data, 20, 10, "first");
    fs::remove_file(data.join("test_batch.bin")).unwrap();
    let (code, _, err) = replicate(dir.path(), &["run", "dijs", "--store", "store", "--data", "cifar"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("test_batch"), "{err}");
}
