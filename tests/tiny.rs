//! The scale tiny on small files of the authors' layout: what is read, what is compared
//! with, and what is said where files are missing.

mod common;

use assert_cmd::cargo::cargo_bin_cmd;
use common::settings;
use replicate::experiment::run::{Runner, Settings};
use replicate::experiment::{Recipe, Scale, all_rows};
use replicate::rng::Stream;
use replicate::store::{Key, Manifest, Store};
use replicate::train::watch::{Mode, Watch};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
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
    without_scale(dir, &[arguments, &["--scale", "tiny"]].concat())
}

fn without_scale(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = cargo_bin_cmd!("replicate");
    command.current_dir(dir).args(arguments).args(["--root", env!("CARGO_MANIFEST_DIR")]);
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

    assert_eq!(run(&["run", "dijs", "edm", "init-single"]).0, 0);
    names_its_images(&dir.path().join("store"), &data);
    leads_the_report(dir.path());

    // Other held-out images give other scores of the same weights.
    write_cifar(&data, 20, 10, "first");
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    write_cifar(&other, 20, 10, "second");
    fs::copy(other.join("test_batch.bin"), data.join("test_batch.bin")).unwrap();
    let before = manifests(dir.path());
    let (code, _, err) = run(&["run", "dijs"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(manifests(dir.path()), before + 2, "a reference and the scores, and no weights");
}

/// The class of scores, and of the distances of maps, names the images.
fn names_its_images(store: &Path, data: &Path) {
    let mut recipe = Recipe::of(Scale::Tiny);
    SHORT.iter().filter(|argument| argument.contains('=')).for_each(|change| recipe.set(change).unwrap());
    recipe.until(64);
    let (settings, stop) = (Settings { data: Some(data.into()), ..settings(store) }, AtomicBool::new(false));
    let mut runner = Runner::new(settings, recipe, Watch::new(Mode::None), &stop).unwrap();
    let row = all_rows().find(|row| row.id == "init-single").unwrap();
    let outcome = runner.stored(&row, 0).unwrap().unwrap();
    let scores = runner.scores(&outcome).unwrap();
    let distances = runner.stored_mapping(&row, 0).unwrap().unwrap();
    assert_eq!(distances.len(), 2);
    for score in scores.iter().chain(&distances) {
        assert!(score.class.contains("cpu, images "), "{} {}", score.metric, score.class);
    }
}

/// Publishes what [`SHORT`] made as results of the scale's own settings, which take an evening.
fn publish_as_presets(store: &Path) {
    let (presets, store) = (Recipe::of(Scale::Tiny), Store::open(store).unwrap());
    for (entry, manifest) in store.finished_entries().unwrap() {
        let label = entry.label().split("-classifier_images").next().unwrap();
        let of = |id: &str| label == format!("tiny-{id}-s0") || label == format!("tiny-{id}-s0-weights");
        let Some(row) = all_rows().find(|row| of(row.id)) else { continue };
        let used = all_rows().chain([row]).flat_map(|row| presets.used(&row));
        let values: BTreeMap<&str, String> =
            used.map(|setting| (setting.field.name, setting.value)).collect();
        let line = |line: &str| match line.split_once(" = ") {
            Some((name, _)) if values.contains_key(name) => format!("{name} = {}\n", values[name]),
            _ => format!("{line}\n"),
        };
        let experiment: String = manifest.experiment.lines().map(line).collect();
        let lock = store.entry(&Key::of(&experiment), label).lock(&mut |_| Ok(())).unwrap();
        let names: Vec<&str> = manifest.outputs.keys().map(String::as_str).collect();
        for name in &names {
            lock.write(name, &entry.read(name).unwrap()).unwrap();
        }
        let own = Manifest { experiment, changes: Vec::new(), ..manifest.clone() };
        lock.publish(own, &names).unwrap();
    }
}

fn leads_the_report(dir: &Path) {
    let report = |arguments: &[&str]| {
        without_scale(dir, &[&["report", "--store", "store", "--output", "page"], arguments].concat())
    };
    // Changed rows alone lead nothing.
    let (code, out, _) = report(&[]);
    assert!(code == 5 && out.contains("no result of --scale mini"), "{out}");
    publish_as_presets(&dir.join("store"));
    let smoke = ["run", "edm", "--scale", "smoke", "--store", "store", "--watch", "none"];
    assert_eq!(without_scale(dir, &smoke).0, 0);
    let (code, out, err) = report(&["--data", "cifar"]);
    assert_eq!(code, 0, "{out}{err}");
    let smoke = "replicate report --scale smoke";
    assert!(
        out.contains("at scale tiny")
            && out.contains("1 row of smoke; report it with: ")
            && out.contains(smoke)
    );
    let read = |name: &str| fs::read_to_string(dir.join("page").join(name)).unwrap();
    let page = read("index.html");
    assert!(page.contains("<b>Training images</b>") && page.contains(smoke));
    for name in ["index.html", "report.md", "table1.md", "table2.md"] {
        let text = read(name);
        assert!(text.contains("FD-tiny") && !text.contains("| FD |") && !text.contains(">FD<"), "{name}");
    }
    assert!(
        page.contains("compares with nothing but FD-tiny")
            && read("results.json").contains("\"distance\": \"FD-tiny\"")
    );
    // Figure 1 is of these images.
    let captions = read("figures/captions.md");
    for figure in ["figure1a", "figure1b", "figure1c"] {
        let line = captions.lines().find(|line| line.contains(&format!("`{figure}.png`"))).unwrap();
        assert!(line.contains("Scale tiny, seed 0"), "{line}");
        assert!(dir.join(format!("page/figures/{figure}.png")).is_file());
    }
    let (_, table, _) = without_scale(dir, &["report", "table1", "--store", "store"]);
    assert!(table.contains("Ours at scale tiny. Rows measured: 2 of 16."), "{table}");
    // Without the images the page has none of them, and nothing is fetched.
    let (code, out, err) = report(&[]);
    assert_eq!(code, 0, "{out}{err}");
    let page = read("index.html");
    assert!(!page.contains("<b>Training images</b>") && page.contains("--data names their place"));
    let (code, out, _) = report(&["--scale", "smoke"]);
    assert!(code == 0 && out.contains("at scale smoke") && out.contains("3 rows of tiny"), "{out}");
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
