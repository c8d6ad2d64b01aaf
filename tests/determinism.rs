//! The same cell gives the same bytes: twice, on one thread or two, and killed
//! at random moments and resumed.

use replicate::rng::Stream;
use replicate::store::Store;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn replicate(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command
        .args(arguments)
        .args(["--scale", "smoke", "--watch", "none", "--store"])
        .arg(store)
        .arg("--output")
        .arg(store.join(".report"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file of every entry that a manifest vouches for, and the digests.
fn results(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(store).unwrap() {
        let dir: PathBuf = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(dir.join("manifest.json")) else { continue };
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        for output in manifest["outputs"].as_object().unwrap().keys() {
            all.insert(format!("{name}/{output}"), std::fs::read(dir.join(output)).unwrap());
        }
    }
    all
}

fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(bytes == &b[name], "{name} differs");
    }
}

/// A network, images and scores of a row, and its teacher, made once.
fn expected(row: &str) -> &'static BTreeMap<String, Vec<u8>> {
    static DIJS: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    static OTHER: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    if row == "dijs" { &DIJS } else { &OTHER }.get_or_init(|| uninterrupted(row))
}

fn uninterrupted(row: &str) -> BTreeMap<String, Vec<u8>> {
    let results = on_threads(2, row);
    for file in ["/weights.safetensors", "/scores.csv", "/samples.png", "/metrics.csv"] {
        assert!(results.keys().any(|name| name.ends_with(file)), "no {file}");
    }
    results
}

/// The results of a run on so many threads, as its manifests say.
fn on_threads(threads: usize, row: &str) -> BTreeMap<String, Vec<u8>> {
    let store = tempfile::tempdir().unwrap();
    let mut command = replicate(store.path(), &["run", row]);
    command.env("RAYON_NUM_THREADS", threads.to_string());
    succeed(command);
    for (entry, manifest) in Store::open(store.path()).unwrap().finished_entries().unwrap() {
        let machine = &manifest.provenance.machine;
        let word = if threads == 1 { "thread" } else { "threads" };
        assert!(machine.contains(&format!(", {threads} {word},")), "{}: {machine}", entry.label());
    }
    results(store.path())
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    for row in ["dijs", "diff-instruct"] {
        assert_same(expected(row), &on_threads(1, row));
    }
}

#[test]
fn another_seed_gives_other_bytes() {
    let store = tempfile::tempdir().unwrap();
    succeed(replicate(store.path(), &["run", "dijs", "--seed", "0,1"]));
    let all = results(store.path());
    let weights = |seed: &str| {
        let name = all.keys().find(|n| n.contains(&format!("-dijs-s{seed}-weights/weights"))).unwrap();
        all[name].clone()
    };
    assert_ne!(weights("0"), weights("1"));
}

#[test]
fn killed_at_random_points_and_resumed_ends_in_the_same_bytes() {
    const KILLS: usize = 20;
    let expected = expected("dijs");
    let mut draws = Stream::new("kill test", "moments").at(0);
    let mut kills = 0;
    let mut rounds = 0;
    while kills < KILLS {
        let store = tempfile::tempdir().unwrap();
        rounds += 1;
        // Each process gets further than a few ticks only if it lives long
        // enough; the range covers starting, training, scoring, publishing.
        for _ in 0..400 {
            let mut child = replicate(store.path(), &["run", "dijs"]).spawn().unwrap();
            let delay = Duration::from_millis(20 + draws.below(900) as u64);
            if finished_within(&mut child, delay) {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        assert_same(expected, &results(store.path()));
    }
    println!("{kills} kills in {rounds} runs");
}

fn finished_within(child: &mut Child, delay: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < delay {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the run failed with {status}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Whether the entry of DiJS's weights has a line of metrics.
fn has_begun(store: &Path) -> bool {
    let mut entries = std::fs::read_dir(store).into_iter().flatten().flatten();
    entries.any(|entry| {
        let metrics = entry.path().join("metrics.csv");
        let text = std::fs::read_to_string(metrics).unwrap_or_default();
        entry.file_name().to_string_lossy().ends_with("-dijs-s0-weights") && text.lines().count() > 1
    })
}

#[test]
fn a_signal_writes_a_checkpoint_and_exits_75() {
    let expected = expected("dijs");
    for signal in ["TERM", "INT"] {
        let store = tempfile::tempdir().unwrap();
        let mut stopped = 0;
        for round in 0..200 {
            // Not before the training has begun, and each round a little later; what goes on
            // with a training needs a moment before it minds a signal.
            let moment = if has_begun(store.path()) { 150 } else { 0 };
            let mut child = replicate(store.path(), &["run", "dijs"]).spawn().unwrap();
            while !has_begun(store.path()) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(moment + 2 * round));
            Command::new("kill")
                .args(["-s", signal, &child.id().to_string()])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let output = child.wait_with_output().unwrap();
            match output.status.code() {
                Some(0) => break,
                Some(75) => {
                    stopped += 1;
                    let text = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(text.contains("run the same command again"), "{text}");
                    // A training leaves a checkpoint; while it is scored, its weights are there.
                    let kept = std::fs::read_dir(store.path()).unwrap().filter(|entry| {
                        let dir = entry.as_ref().unwrap().path();
                        let checkpoints = std::fs::read_dir(dir.join("checkpoint"));
                        checkpoints.is_ok_and(|files| files.count() > 0)
                            || dir.to_string_lossy().ends_with("-dijs-s0-weights")
                                && dir.join("manifest.json").exists()
                    });
                    assert!(kept.count() > 0, "no checkpoint after exit 75");
                }
                other => panic!("exit {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
            }
        }
        assert!(stopped > 0, "the signal never met a running training");
        assert_same(expected, &results(store.path()));
    }
}
