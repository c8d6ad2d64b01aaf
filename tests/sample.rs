//! `sample`: the same images in every container, whatever was asked for before, however often
//! it was stopped; and scored as the row was.

mod common;

use assert_cmd::cargo::cargo_bin_cmd;
use common::drill::{self, CIFAR10_PER_CLASS, Set};
use common::server::Server;
use replicate::app::collect::Collecting;
use replicate::app::score::{Input, source};
use replicate::app::selftest::fixture::{self, filled_denoiser};
use replicate::data::Images;
use replicate::experiment::run::SCORES;
use replicate::network::device::Compute;
use replicate::store::{Array, write_safetensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program with the store of `dir`; paths in `arguments` are as seen from there.
fn replicate(dir: &Path, mirror: &str, arguments: &str) -> Ended {
    let mut command = cargo_bin_cmd!("replicate");
    command.args(arguments.split_whitespace()).current_dir(dir);
    command.env("REPLICATE_STORE", "store").env("REPLICATE_MIRROR", mirror).env_remove("HF_ENDPOINT");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ended =
        Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
    println!("== replicate {arguments}\n{}{}== exit {}", ended.err, ended.out, ended.code);
    ended
}

const NOWHERE: &str = "http://127.0.0.1:9";

/// A store with rows of the smoke scale that were run.
fn smoke() -> &'static Path {
    static SMOKE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = SMOKE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let run = "run edm dijs ddim ctm bcm sct --scale smoke --seed 3 --watch none";
        assert_eq!(replicate(dir.path(), NOWHERE, run).code, 0);
        dir
    });
    dir.path()
}

/// Samples into a file of this name; the SHA-256 of the pixels.
fn sampled(dir: &Path, arguments: &str) -> String {
    let ended = replicate(dir, NOWHERE, &format!("sample {arguments} --scale smoke --seed 3 --watch none"));
    assert_eq!(ended.code, 0, "{}", ended.err);
    ended.out.lines().last().unwrap().strip_prefix("SHA-256 of the pixels: ").unwrap().to_string()
}

fn read(path: &Path) -> Images {
    let Input::Images(set) = source::open(path).unwrap().0 else { panic!("{}: no images", path.display()) };
    let mut all = Images { channels: 3, size: set.size, pixels: Vec::new(), labels: Vec::new() };
    set.batches.for_each(|batch| all.pixels.extend(batch.unwrap().pixels));
    all
}

#[test]
fn every_container_has_the_images_of_the_row() {
    let dir = smoke();
    let outs = ["all", "all.zip", "all.npz"];
    let digests = outs.map(|out| sampled(dir, &format!("dijs --seeds 0-249 --out {out}")));
    let [folder, zip, npz] = outs.map(|out| read(&dir.join(out)));
    assert_eq!((folder.len(), folder.size), (250, 16));
    assert!(folder == zip && zip == npz, "the containers differ");
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // A part is the same images.
    sampled(dir, "dijs --seeds 120-219 --out part.npz");
    assert_eq!(read(&dir.join("part.npz")), folder.part(120..220));
    sampled(dir, "dijs --seeds 7 --out one");
    assert_eq!(read(&dir.join("one")), folder.part(7..8));
    // Nothing is left beside them, and each says what it is of.
    for out in outs {
        assert!(!dir.join(format!("{out}.partial")).exists());
    }
    let record = std::fs::read_to_string(dir.join("all/sample.txt")).unwrap();
    for line in ["sigma_init = 2.5", "sampler = class-ratio DiJs", "latents = seed 3", "images = 0 to 249"] {
        assert!(record.contains(line), "{line} is not in\n{record}");
    }
    assert!(dir.join("all/000249.png").is_file());
    let mut archive = zip::ZipArchive::new(std::fs::File::open(dir.join("all.zip")).unwrap()).unwrap();
    assert!(archive.by_name("00000/img00000249.png").is_ok() && archive.by_name("dataset.json").is_ok());
}

#[test]
fn any_sampler_samples_any_weights() {
    let dir = smoke();
    // The teacher's row is DDIM's with Heun's steps.
    let ddim = sampled(dir, "ddim --seeds 0-19 --out ddim.npz");
    assert_eq!(ddim, sampled(dir, "edm --sampler ddim --seeds 0-19 --out edm-ddim.npz"));
    assert_eq!(ddim, sampled(dir, "edm --sampler ddim --steps 10 --seeds 0-19 --out edm-ddim-10.npz"));
    assert_ne!(ddim, sampled(dir, "ddim --steps 4 --seeds 0-19 --out ddim-4.npz"));
    let heun = sampled(dir, "edm --seeds 0-19 --out heun.npz");
    assert_eq!(heun, sampled(dir, "ddim --sampler heun --seeds 0-19 --out ddim-heun.npz"));
    assert_ne!(heun, ddim);
    // The same weights as a file.
    let listing = std::fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let is_teacher = |path: &PathBuf| path.to_string_lossy().contains("pretrain-multi-level-target");
    let file = listing.into_iter().find(is_teacher).unwrap().join("weights.safetensors");
    let file = file.display();
    assert_eq!(heun, sampled(dir, &format!("{file} --seeds 0-19 --out file.npz")));
    assert_eq!(ddim, sampled(dir, &format!("{file} --sampler ddim --seeds 0-19 --out file-ddim.npz")));
}

/// CTM, BCM and sCT with more calls than the one of Table 1.
#[test]
fn consistency_rows_take_more_calls() {
    let dir = smoke();
    for row in ["ctm", "bcm", "sct"] {
        let once = sampled(dir, &format!("{row} --seeds 0-19 --out {row}.npz"));
        assert_eq!(once, sampled(dir, &format!("{row} --steps 1 --seeds 0-19 --out {row}-1.npz")));
        assert_ne!(once, sampled(dir, &format!("{row} --steps 2 --seeds 0-19 --out {row}-2")));
        let record = std::fs::read_to_string(dir.join(format!("{row}-2/sample.txt"))).unwrap();
        assert!(record.contains("network calls an image 2"), "{record}");
    }
}

/// Entries of the store in `dir` whose names have this part.
fn entries(dir: &Path, part: &str) -> Vec<PathBuf> {
    let listing = std::fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path());
    listing.filter(|path| path.file_name().unwrap().to_string_lossy().contains(part)).collect()
}

/// The calls of a sample belong to scores: a row that is scored with more of them is not trained
/// again, and whichever comes first trains the same, with the same scores along its training.
#[test]
fn more_calls_train_nothing() {
    let (dir, other) = (smoke(), tempfile::tempdir().unwrap());
    let run = |dir: &Path, set: &str| {
        let ended = replicate(dir, NOWHERE, &format!("run sct --scale smoke --seed 3 --watch lines{set}"));
        assert_eq!(ended.code, 0, "{}", ended.err);
    };
    let (twice, thrice) = (" --set consistency_steps=2", " --set consistency_steps=3");
    run(dir, twice);
    run(other.path(), thrice);
    run(other.path(), "");
    let [ours, theirs] = [dir, other.path()].map(|dir| {
        let [weights] = &entries(dir, "smoke-sct-s3-weights")[..] else { panic!("trained twice") };
        weights.clone()
    });
    assert_eq!(ours.file_name(), theirs.file_name());
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let manifest =
        |dir: &Path| -> serde_json::Value { serde_json::from_str(&text(dir.join("manifest.json"))).unwrap() };
    let [here, there] = [&ours, &theirs].map(|dir| manifest(dir));
    assert_eq!(here["changes"], there["changes"]);
    assert!(here["settings"].get("sct_lr").is_some() && here["settings"].get("consistency_steps").is_none());
    for name in ["weights.safetensors", "metrics.csv"] {
        assert!(here["outputs"].get(name).is_some(), "{}", here["outputs"]);
        assert_eq!(here["outputs"][name]["sha256"], there["outputs"][name]["sha256"], "{name}");
    }
    // Scores differ.
    let scores = |part: &str| {
        let [entry] = &entries(other.path(), part)[..] else { panic!("{part}: not one entry") };
        text(entry.join(SCORES))
    };
    let with = "smoke-sct-s3-consistency_steps-3";
    assert_eq!(entries(other.path(), "smoke-sct-s3").len(), 3);
    let without =
        entries(other.path(), "smoke-sct-s3").into_iter().find(|p| p.to_string_lossy().ends_with("-s3"));
    assert_ne!(scores(with), text(without.unwrap().join(SCORES)));
}

/// A published snapshot, its state dict, and what `inspect --convert` makes of it.
#[test]
fn a_checkpoint_is_the_same_in_every_format() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, parity) = (temporary.path(), common::directory());
    let snapshot = parity.join("edm-tiny.pkl");
    let convert = format!("inspect {} --convert tiny.safetensors", snapshot.display());
    assert_eq!(replicate(dir, NOWHERE, &convert).code, 0);
    let files = [snapshot, parity.join("edm-tiny-state.pth"), dir.join("tiny.safetensors")];
    for sampler in ["ddim --steps 5", "one-step", "dpm-solver-fast", "heun --steps 3"] {
        let digests = files.each_ref().map(|file| {
            let name = format!("{}-{}.zip", file.extension().unwrap().display(), sampler.replace(' ', ""));
            sampled(dir, &format!("{} --sampler {sampler} --seeds 5-14 --out {name}", file.display()))
        });
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{sampler}: {digests:?}");
    }
}

#[test]
fn a_sampling_that_was_stopped_goes_on() {
    let dir = smoke();
    let arguments = "sample edm --scale smoke --seed 3 --seeds 50-1999 --watch lines --out stopped";
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments.split_whitespace()).current_dir(dir).env("REPLICATE_STORE", "store");
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pixels = dir.join("stopped.partial/pixels");
    let begun = Instant::now();
    while std::fs::metadata(&pixels).map_or(0, |file| file.len()) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no image came");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Another process may not take part in it.
    let second = replicate(dir, NOWHERE, arguments);
    assert!(second.code == 2 && second.err.contains("another process is writing stopped"), "{}", second.err);
    let signal = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(!dir.join("stopped").exists());
    // As a crash leaves it: with a part of an image.
    let mut torn = std::fs::read(&pixels).unwrap();
    assert!(!torn.is_empty() && torn.len() < 1950 * 768, "{} bytes", torn.len());
    torn.extend([7; 100]);
    std::fs::write(&pixels, torn).unwrap();

    // Nothing else is mixed with it.
    let others = [
        (format!("{arguments} --sampler ddim"), "begun with 'weights"),
        (
            arguments.replace("50-1999", "50-2000"),
            "begun with 'images = 50 to 1999', this is 'images = 50 to 2000'",
        ),
        (arguments.replace("edm", "dijs"), "begun with"),
    ];
    for (other, said) in others {
        let ended = replicate(dir, NOWHERE, &other);
        assert!(ended.code == 2 && ended.err.contains("begun with"), "{said}: {}", ended.err);
    }
    let ended = replicate(dir, NOWHERE, arguments);
    assert!(
        ended.code == 0 && ended.err.contains("resuming after") && ended.err.contains("of 1950 images"),
        "{}",
        ended.err
    );
    let whole = sampled(dir, "edm --seeds 50-1999 --out whole.npz");
    assert!(ended.out.ends_with(&format!("{whole}\n")), "{}", ended.out);
    assert!(read(&dir.join("stopped")) == read(&dir.join("whole.npz")));
    assert!(!dir.join("stopped.partial").exists());
}

/// A process that ends while it gives the output its final form.
#[test]
fn an_end_at_any_moment_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = |first: usize, n: usize| {
        let pixels = (first * 12..(first + n) * 12).map(|i| (i * 7 % 251) as u8).collect();
        Images { channels: 3, size: 2, pixels, labels: Vec::new() }
    };
    for out in ["folder", "file.zip", "file.npz"] {
        let out = dir.path().join(out);
        let begin = || Collecting::begin(&out, "of a test\n", 2, 10..15).unwrap();
        let mut first = begin();
        first.push(&images(10, 3)).unwrap();
        drop(first);
        let mut second = begin();
        assert_eq!(second.next(), 13);
        second.push(&images(13, 2)).unwrap();
        drop(second);
        let partial = out.with_file_name(format!("{}.partial", out.file_name().unwrap().display()));
        std::fs::create_dir(partial.join("whole")).unwrap();
        std::fs::write(partial.join("whole/000010.png"), "half").unwrap();
        let third = begin();
        assert_eq!(third.next(), 15);
        drop(third);
        // What was changed meanwhile does not count, nor what came after it.
        let pixels = partial.join("pixels");
        let mut spoilt = std::fs::read(&pixels).unwrap();
        spoilt[3 * 12] ^= 1;
        std::fs::write(&pixels, spoilt).unwrap();
        let mut fourth = begin();
        assert_eq!(fourth.next(), 13);
        fourth.push(&images(13, 2)).unwrap();
        fourth.finish().unwrap();
        assert!(read(&out) == images(10, 5) && !partial.exists(), "{}", out.display());
        let error = Collecting::begin(&out, "of a test\n", 2, 10..15).err().unwrap().to_string();
        assert!(error.contains("exists and is not overwritten"), "{error}");
    }
    // An empty folder is as good as none.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut collecting = Collecting::begin(&empty, "", 2, 0..1).unwrap();
    collecting.push(&images(0, 1)).unwrap();
    collecting.finish().unwrap();
    assert_eq!(read(&empty), images(0, 1));
}

#[test]
fn what_cannot_be_sampled_says_what_to_do() {
    let dir = smoke();
    std::fs::create_dir_all(dir.join("there")).unwrap();
    std::fs::write(dir.join("there/file"), "kept").unwrap();
    std::fs::write(dir.join("damaged.pkl"), "no pickle").unwrap();
    let tiny = common::directory().join("edm-tiny.pkl");
    let tiny = tiny.display();
    let root = env!("CARGO_MANIFEST_DIR");
    // A network that is told classes.
    let (params, _) = filled_denoiser(&fixture::tiny(), &Compute::CPU, &common::unit).unwrap();
    let mut conditional = params.arrays().unwrap();
    conditional.insert("model.map_label.weight".into(), Array { shape: vec![64, 10], data: vec![0.0; 640] });
    let conditional = write_safetensors(&conditional, &BTreeMap::new());
    std::fs::write(dir.join("conditional.safetensors"), conditional).unwrap();
    let cases = [
        ("conditional.safetensors --seeds 0-9 --out new".to_string(), 3, "model.map_label.weight"),
        (format!("{tiny} --sampler amed-plugin --seeds 0-9 --out new"), 2, "run the row amed-plugin"),
        // Networks with one noise level, and with two.
        (format!("{tiny} --sampler ctm --seeds 0-9 --out new"), 2, "do not fit the sampler of ctm"),
        ("bcm --sampler ddim --seeds 0-9 --out new".into(), 2, "do not fit the sampler of ddim"),
        ("edm --sampler amed-plugin --steps 2 --seeds 0-9 --out new".into(), 2, "a whole number from 3"),
        ("edm --seeds 9-3 --out new".into(), 2, "expected a range such as 0-49999"),
        ("edm --seeds 0,1,2 --out new".into(), 2, "expected a range such as 0-49999"),
        ("edm --seeds -1-5 --out new".into(), 2, "expected a range such as 0-49999"),
        ("edm --seeds 0-100000000 --out new".into(), 2, "below 100000000"),
        ("edm --seeds 0-9 --out there".into(), 2, "there exists and is not overwritten"),
        ("edm --seeds 0-9 --out there/file".into(), 2, "exists and is not overwritten"),
        ("edm --seeds 0-9 --out new.npy".into(), 2, "a folder, a .zip and an .npz can be written"),
        ("edn --seeds 0-9 --out new".into(), 2, "did you mean 'edm'?"),
        ("edm --sampler dim --seeds 0-9 --out new".into(), 2, "did you mean 'ddim'?"),
        ("edm --sampler dpm-solver-fast --steps 3 --seeds 0-9 --out new".into(), 2, "a whole number from 4"),
        ("edm --sampler ddim --steps 0 --seeds 0-9 --out new".into(), 2, "a whole number from 1 to 1000"),
        ("edm --sampler ddim --steps ten --seeds 0-9 --out new".into(), 2, "a whole number from 1 to 1000"),
        ("dijs --steps 4 --seeds 0-9 --out new".into(), 2, "dijs has a fixed number of steps"),
        ("dikl --seeds 0-9 --out new".into(), 3, "replicate run dikl --scale smoke --seed 3"),
        ("nothing.pkl --seeds 0-9 --out new".into(), 3, "neither a checkpoint nor a row of the tables"),
        ("damaged.pkl --seeds 0-9 --out new".into(), 3, "a whole EDM snapshot"),
        (
            format!("{root}/golden/weights/classifier.safetensors --seeds 0-9 --out new"),
            3,
            "no first convolution",
        ),
        (format!("{tiny} --data somewhere --seeds 0-9 --out new"), 2, "--data is for a row"),
        (format!("{tiny} --steps 1 --seeds 0-9 --out new"), 2, "a whole number from 2 to 1000"),
    ];
    for (arguments, code, said) in cases {
        let ended =
            replicate(dir, NOWHERE, &format!("sample {arguments} --scale smoke --seed 3 --watch none"));
        assert_eq!(ended.code, code, "{arguments}: {}", ended.err);
        assert!(ended.err.contains(said), "{arguments}: {said} is not in\n{}", ended.err);
        assert!(!ended.err.contains("candle_core::"), "{arguments}: a backtrace\n{}", ended.err);
        assert!(!dir.join("new").exists() && !dir.join("new.partial").exists(), "{arguments}");
    }
    assert_eq!(std::fs::read_to_string(dir.join("there/file")).unwrap(), "kept");
}

/// By the paper scale's path: what `sample` wrote has the row's FID.
#[test]
fn what_was_written_is_scored_as_the_row_was() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let cifar10 = drill::cifar_archive(Set::Cifar10, CIFAR10_PER_CLASS);
    std::fs::write(dir.join("cifar10.tar.gz"), &cifar10).unwrap();
    std::fs::write(dir.join("inception.pth"), drill::inception_pth()).unwrap();
    let score = |arguments: &str| {
        let all = format!("score {arguments} --inception inception.pth --json");
        let ended = replicate(dir, NOWHERE, &all);
        assert_eq!(ended.code, 0, "{}", ended.err);
        serde_json::from_str::<serde_json::Value>(&ended.out).unwrap()
    };
    score("cifar10.tar.gz --metrics is --save-ref statistics.npz");
    let mirror = Server::of_files(BTreeMap::from([
        ("drill-edm".to_string(), drill::edm_snapshot(&drill::network())),
        ("drill-inception".to_string(), drill::inception_pth()),
        ("drill-cifar10".to_string(), cifar10),
        ("drill-fid-reference".to_string(), std::fs::read(dir.join("statistics.npz")).unwrap()),
    ]));
    let ran = replicate(dir, &mirror.url, "run ddim --scale drill --watch none");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let listing = std::fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let is_row = |path: &PathBuf| path.to_string_lossy().contains("drill-ddim-s0");
    let scores = std::fs::read_to_string(listing.into_iter().find(is_row).unwrap().join(SCORES)).unwrap();
    let stored = |name: &str| -> f64 {
        let line = scores.lines().find(|line| line.split(',').any(|part| part == name));
        line.unwrap_or_else(|| panic!("no {name} in\n{scores}")).rsplit(',').next().unwrap().parse().unwrap()
    };
    let sampled =
        replicate(dir, NOWHERE, "sample ddim --scale drill --seeds 0-59 --watch none --out images.zip");
    assert_eq!(sampled.code, 0, "{}", sampled.err);
    let report = score("images.zip --ref statistics.npz --num 20 --trials 3 --metrics fid,is");
    let fids: Vec<f64> =
        report["trials"].as_array().unwrap().iter().map(|t| t["fid"].as_f64().unwrap()).collect();
    let least = fids.iter().fold(f64::INFINITY, |least, fid| least.min(*fid));
    let mean = fids.iter().sum::<f64>() / 3.0;
    println!("{scores}\n{least} {mean}");
    assert!((least / stored("fd_min") - 1.0).abs() < 1e-9, "{least}");
    assert!((mean / stored("fd") - 1.0).abs() < 1e-9, "{mean}");
    // As `score` scores the row itself.
    let row = replicate(
        dir,
        NOWHERE,
        "score ddim --scale drill --ref statistics.npz --trials 3 --metrics fid --inception inception.pth --json",
    );
    assert_eq!(row.code, 0, "{}", row.err);
    let row: serde_json::Value = serde_json::from_str(&row.out).unwrap();
    assert_eq!(row["images"]["pixels_sha256"], report["images"]["pixels_sha256"]);
    assert!(sampled.out.contains(report["images"]["pixels_sha256"].as_str().unwrap()), "{}", sampled.out);
}
