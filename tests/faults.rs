//! A run that is killed, or whose disk fails, at any moment: one clean error or none, and
//! the same command again gives the same bytes.
//!
//! `FAULT_EVERY` is the distance between the calls that are made to fail (31 without it: a
//! few of each kind; 1 for all), `FAULT_KILLS` the number of kills at random moments.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Needs no weights to start from, and has a grid, checkpoints and scores.
const RUN: [&str; 7] = ["run", "init-none", "--scale", "smoke", "--until", "64", "--watch"];

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

fn run(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(RUN).args(["none", "--output"]).arg(store.join("../report")).arg("--store").arg(store);
    command.env("RAYON_NUM_THREADS", "2").current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Every file of a store, but for what differs between equal runs.
fn contents(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                walk(&path, root, all);
            } else if name == "manifest.json" {
                let mut manifest: serde_json::Value =
                    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                let fields = manifest.as_object_mut().unwrap();
                fields.remove("provenance");
                fields.remove("manifest_sha256");
                all.insert(path.strip_prefix(root).unwrap().into(), manifest.to_string().into_bytes());
            } else if name != "timing.csv" && !name.starts_with("events.out") {
                all.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(store, store, &mut all);
    all
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_same(store: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>, how: &str) {
    let output = run(store).output().unwrap();
    assert!(output.status.success(), "{how}: {}", said(&output));
    let found = contents(store);
    let names = |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{how}");
    for (path, bytes) in &found {
        assert!(bytes == &expected[path], "{how}: {} differs", path.display());
    }
}

/// The library that fails calls; `None` where there is no C compiler.
fn shim(dir: &Path) -> Option<PathBuf> {
    let library = dir.join("fail.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/fail.c");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let mut build = Command::new(compiler);
    build.args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(source).arg("-ldl");
    build.status().is_ok_and(|status| status.success()).then_some(library)
}

#[test]
fn every_call_may_fail_or_be_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = shim(dir.path()) else {
        eprintln!("SKIPPED: no C compiler");
        return;
    };
    let count = dir.path().join("count");
    let whole = dir.path().join("whole");
    let output = run(&whole).env("LD_PRELOAD", &library).env("FAULT_COUNT", &count).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let calls: usize = fs::read_to_string(&count).unwrap().trim().parse().unwrap();
    let expected = contents(&whole);
    assert!(calls > 40 && expected.len() > 6, "{calls} calls, {} files", expected.len());

    let every = variable("FAULT_EVERY", 31);
    let hows: &[(&str, &str)] = &[
        ("5", "once"),
        ("28", "ever"),
        ("28", "once"),
        ("5", "ever"),
        ("kill", "once"),
        ("killed", "once"),
        ("short", "once"),
        ("4", "once"),
    ];
    let (mut tried, mut failed, mut killed, mut finished) = (0, 0, 0, 0);
    for (i, (how, on)) in hows.iter().enumerate() {
        // Not the same calls for each.
        for at in (1 + i % every..=calls).step_by(every) {
            let store = dir.path().join("store");
            _ = fs::remove_dir_all(&store);
            let mut command = run(&store);
            command.env("LD_PRELOAD", &library).env("FAULT_AT", at.to_string());
            let output = command.env("FAULT_HOW", how).env("FAULT_ON", on).output().unwrap();
            let (text, what) = (said(&output), format!("{how} {on} at call {at} of {calls}"));
            match output.status.code() {
                Some(0) => finished += 1,
                Some(4) => {
                    failed += 1;
                    assert_eq!(text.matches("error: ").count(), 1, "{what}: {text}");
                }
                None => killed += 1,
                code => panic!("{what}: exit code {code:?}: {text}"),
            }
            assert!(!text.contains("panicked"), "{what}: {text}");
            assert_same(&store, &expected, &what);
            tried += 1;
        }
    }
    println!(
        "{calls} calls; {tried} faults: {finished} finished, {failed} clean errors, {killed} killed; then all the same bytes"
    );
}

#[test]
fn kills_at_any_moment_leave_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let begun = Instant::now();
    assert!(run(&whole).output().unwrap().status.success());
    let (expected, takes) = (contents(&whole), begun.elapsed());
    let (wanted, mut kills, mut runs, mut draws) = (variable("FAULT_KILLS", 4), 0, 0, 88172645463325252u64);
    while kills < wanted {
        let store = dir.path().join("store");
        _ = fs::remove_dir_all(&store);
        // Up to eight kills of one run.
        for _ in 0..8 {
            draws ^= draws << 13;
            draws ^= draws >> 7;
            draws ^= draws << 17;
            let mut child = run(&store).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(draws % (takes.as_micros() as u64).max(1)));
            // The signal is sent whether or not it has ended meanwhile.
            _ = child.kill();
            if child.wait().unwrap().code().is_some() {
                break;
            }
            kills += 1;
        }
        runs += 1;
        assert_same(&store, &expected, &format!("after {kills} kills"));
    }
    println!("{kills} kills of {runs} runs: the same bytes");
}

#[test]
fn what_the_system_does_not_have_is_no_failure_or_one_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = shim(dir.path()) else {
        eprintln!("SKIPPED: no C compiler");
        return;
    };
    let whole = dir.path().join("whole");
    assert!(run(&whole).output().unwrap().status.success());
    let expected = contents(&whole);
    let with = |name: &str, value: &str, store: &str| {
        let store = dir.path().join(store);
        _ = fs::remove_dir_all(&store);
        let output = run(&store).env("LD_PRELOAD", &library).env(name, value).output().unwrap();
        (store, output)
    };
    // Folders that cannot be flushed: EINVAL, ENOSYS, EOPNOTSUPP; a note, and once.
    for code in ["22", "38", "95"] {
        let (store, output) = with("FAULT_DIRECTORY", code, "folders");
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).matches("cannot be flushed").count(), 1, "{}", said(&output));
        assert!(contents(&store) == expected);
    }
    // A disk that fails is another matter.
    let (_, output) = with("FAULT_DIRECTORY", "5", "folders");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    // No locks: ENOLCK, ENOSYS.
    for code in ["37", "38"] {
        let (_, output) = with("FAULT_LOCK", code, "locks");
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(said(&output).contains("file systems without locks"), "{}", said(&output));
    }
    // More threads than anybody has.
    let mut list = Command::new(env!("CARGO_BIN_EXE_replicate"));
    let list = list.args(["list", "--ids"]).env("RAYON_NUM_THREADS", "99999999").output().unwrap();
    assert!(list.status.success(), "{}", said(&list));
    // Fewer threads than wanted, and none at all.
    for threads in ["0", "1"] {
        let (store, output) = with("FAULT_THREADS", threads, "threads");
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("of 2 threads"), "{}", said(&output));
        assert!(contents(&store) == expected, "{threads} threads");
    }
}

#[test]
fn memory_that_is_refused_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for kilobytes in [50_000, 80_000, 110_000] {
        let store = dir.path().join("store");
        let arguments =
            run(&store).get_args().map(|a| format!("'{}'", a.to_string_lossy())).collect::<Vec<_>>();
        let program = env!("CARGO_BIN_EXE_replicate");
        let line = format!("ulimit -v {kilobytes}; exec '{program}' {}", arguments.join(" "));
        let output = Command::new("sh").args(["-c", &line]).env("RAYON_NUM_THREADS", "1").output().unwrap();
        let text = said(&output);
        match output.status.code() {
            Some(4) => {
                assert!(text.contains("bytes of memory") || text.contains("too little memory"), "{text}");
                refused += 1;
            }
            // Too little for the system to start it.
            Some(127) => {}
            code => assert_eq!(code, Some(0), "{kilobytes} kB: {text}"),
        }
    }
    assert!(refused > 0, "no limit was low enough");
}

/// The command line alone needs more than a limit of 64 kB.
#[test]
fn a_low_limit_of_the_stack_is_no_failure_or_one_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    assert!(run(&whole).output().unwrap().status.success());
    let expected = contents(&whole);
    let limited = |store: &Path| {
        let arguments =
            run(store).get_args().map(|a| format!("'{}'", a.to_string_lossy())).collect::<Vec<_>>();
        let line =
            format!("ulimit -s 64; exec '{}' {}", env!("CARGO_BIN_EXE_replicate"), arguments.join(" "));
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env("RAYON_NUM_THREADS", "2");
        command
    };
    let store = dir.path().join("limited");
    let output = limited(&store).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(contents(&store) == expected);

    let Some(library) = shim(dir.path()) else {
        eprintln!("SKIPPED: no C compiler");
        return;
    };
    let store = dir.path().join("refused");
    let output = limited(&store).env("LD_PRELOAD", &library).env("FAULT_THREADS", "0").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let text = said(&output);
    assert!(text.starts_with("error: the system refuses a thread") && text.contains("ulimit -s"), "{text}");
    assert!(!store.exists());
}

/// What writes nothing that could be half done is ended by the system, as other programs are.
#[test]
fn a_signal_ends_what_has_no_checkpoint() {
    use std::os::unix::process::ExitStatusExt;
    for (arguments, signal, number) in
        [(&["bench"][..], "TERM", 15), (&["selftest", "--device", "cpu"], "HUP", 1)]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.current_dir(env!("CARGO_MANIFEST_DIR")).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(number), "{arguments:?}: {status}");
    }
}

/// Sends `signals` one after the other once a run is under way.
fn signalled(dir: &Path, prefix: &str, signals: &[&str]) -> (ExitStatus, String) {
    let store = dir.join("store");
    _ = fs::remove_dir_all(&store);
    let mut arguments: Vec<String> =
        run(&store).get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    // Long enough to be met.
    (arguments[3], arguments[5]) = ("mini".into(), "100k".into());
    let line = format!("{prefix} exec '{}' {}", env!("CARGO_BIN_EXE_replicate"), arguments.join(" "));
    let mut child =
        Command::new("sh").args(["-c", &line]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let under_way = || {
        let entries = fs::read_dir(&store).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.path().join("metrics.csv").exists())
    };
    while !under_way() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    for signal in signals {
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    (child.wait().unwrap(), text)
}

#[test]
fn every_signal_that_stops_a_run_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for signals in [&["TERM"][..], &["INT"], &["HUP", "HUP"], &["USR1", "TERM"], &["USR2"], &["XCPU"]] {
        let (status, text) = signalled(dir.path(), "", signals);
        assert_eq!(status.code(), Some(75), "{signals:?}: {text}");
        assert!(text.contains("the checkpoint is written"), "{signals:?}: {text}");
    }
    // Ignored when it began, as nohup has it: the signal that follows stops it.
    let (status, text) = signalled(dir.path(), "trap '' HUP;", &["HUP", "HUP", "TERM"]);
    assert_eq!(status.code(), Some(75), "{text}");
}
