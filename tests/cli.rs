//! The command line as people and scripts meet it: help, exit codes, errors.

use std::path::Path;
use std::process::{Command, Output};

fn replicate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments).env_remove("CI").env_remove("REPLICATE_STORE").env("COLUMNS", "100");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard error, with what differs between machines replaced.
fn failure(arguments: &[&str], dir: &Path, code: i32) -> String {
    let output = replicate(arguments);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "", "an error prints nothing on standard output");
    text(&output.stderr).replace(&dir.display().to_string(), "DIR")
}

fn snapshot(name: &str, content: &str) {
    insta::with_settings!({snapshot_path => "../golden", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!(name, content);
    });
}

#[test]
fn help() {
    snapshot("help", &text(&replicate(&["--help"]).stdout));
    snapshot("help-run", &text(&replicate(&["run", "--help"]).stdout));
    snapshot("help-check", &text(&replicate(&["check", "--help"]).stdout));
    snapshot("help-report", &text(&replicate(&["report", "--help"]).stdout));
    snapshot("help-fetch", &text(&replicate(&["fetch", "--help"]).stdout));
    snapshot("help-selftest", &text(&replicate(&["selftest", "--help"]).stdout));
}

#[test]
fn usage_errors_suggest_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let store = store.to_str().unwrap();
    let mut all = String::new();
    for arguments in [
        &["run", "dijz", "--store", store][..],
        &["run", "dijs", "--scale", "huge", "--store", store],
        &["run", "dijs", "--device", "gpu", "--store", store],
        &["run", "dijs", "--set", "sigma=2", "--store", store],
        &["run", "dijs", "--set", "sigma_init=much", "--store", store],
        &["run", "dijs", "--until", "few", "--store", store],
        &["run", "dijs", "--sed", "1", "--store", store],
        &["run", "dijs", "--seed", "-1", "--store", store],
        &["run", "dijs", "--seed", "0,one", "--store", store],
        &["run", "dijs", "--scale", "smoke", "--data", "cifar", "--store", store],
        &["score", "cifar10", "--data", "cifar", "--store", store],
        &["report", "--format", "csv", "--output", "out", "--store", store],
        &["fetch", "--from", "file", "--store", store],
        &["run"],
        &["train"],
    ] {
        let shown: Vec<&str> = arguments.iter().copied().filter(|a| *a != store && *a != "--store").collect();
        all += &format!("$ replicate {}\n{}\n", shown.join(" "), failure(arguments, dir.path(), 2));
    }
    let rows: Vec<&str> = replicate::experiment::all_rows().map(|cell| cell.id).collect();
    snapshot("errors-usage", &all.replace(&rows.join(", "), "[rows]"));
    assert!(!Path::new(store).exists(), "a usage error makes no store");
}

/// Tables of results that were made on a GPU are printed wherever the store is.
#[test]
fn reading_needs_no_gpu() {
    let dir = tempfile::tempdir().unwrap();
    for device in ["cuda:0", "cuda,bf16"] {
        let table = ["report", "table2", "--scale", "smoke", "--device", device];
        let output = replicate(&[&table, &["--store", dir.path().to_str().unwrap()][..]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn reading_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("mistyped");
    for (command, code) in [
        ("list --scale smoke", 0),
        ("check all --scale smoke", 5),
        ("check all --scale smoke --against claims", 5),
        ("report table1 --scale smoke", 0),
        ("run dijs --scale smoke --dry-run", 0),
        ("run dijs --scale smoke --explain", 0),
        ("fetch", 5),
    ] {
        let arguments: Vec<&str> = command.split(' ').chain(["--store", store.to_str().unwrap()]).collect();
        let output = replicate(&arguments);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output.stderr));
        assert!(!store.exists(), "{command}");
    }
}

#[test]
fn shells_and_manuals_know_every_command() {
    let bash = replicate(&["completions", "bash"]);
    let dir = tempfile::tempdir().unwrap();
    let man = replicate(&["man", dir.path().to_str().unwrap()]);
    assert!(bash.status.success() && man.status.success(), "{}", text(&man.stderr));
    let help = text(&replicate(&["--help"]).stdout);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for command in commands.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   ")) {
        let name = command.split_whitespace().next().unwrap();
        assert!(
            text(&bash.stdout).contains(&format!("replicate__{name}")) || text(&bash.stdout).contains(name)
        );
        assert!(name == "help" || dir.path().join(format!("replicate-{name}.1")).is_file(), "{name}");
    }
    // Rows, studies and scales are completed, too.
    let tried = "
        COMP_WORDS=(replicate run dij) COMP_CWORD=2; _replicate replicate dij run; echo ${COMPREPLY[@]}
        COMP_WORDS=(replicate run crit) COMP_CWORD=2; _replicate replicate crit run; echo ${COMPREPLY[@]}
        COMP_WORDS=(replicate run --scale t) COMP_CWORD=3; _replicate replicate t --scale; echo ${COMPREPLY[@]}";
    let offered = Command::new("bash").args(["-c", &(text(&bash.stdout) + tried)]).output().unwrap();
    assert_eq!(text(&offered.stdout), "dijs\ncritic-steps\ntiny\n", "{}", text(&offered.stderr));
    let page = std::fs::read_to_string(dir.path().join("replicate-run.1")).unwrap();
    assert!(page.contains("\\-\\-like") && page.contains("generator_lr"), "{page}");
}

/// Any build plans for a GPU that is not here.
#[test]
fn a_plan_needs_no_gpu() {
    let plan = |arguments: &str| {
        let store = "--dry-run --scale paper --store nowhere";
        let words: Vec<&str> = arguments.split(' ').chain(store.split(' ')).collect();
        let output = replicate(&[&["run"], &words[..]].concat());
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = plan("table1 --like h200 --time 24:00:00");
    assert_eq!(code, Some(0), "{said}");
    let of_dijs = said.lines().find(|line| line.contains("  dijs, seed 0")).unwrap();
    assert!(of_dijs.contains("GPU-h") && of_dijs.ends_with(" 9"), "hours and requeues a row: {said}");
    for wanted in
        ["of the GPU's 141 GB", "not measured", "CC BY-NC-SA 4.0", "download  712 MB", "at the peak"]
    {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    // Of 28 EFLOP at 100 TFLOP a second.
    let (code, said) = plan("dijs --device cuda:0,bf16 --rate 100T");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("~77.8 GPU-h") && said.contains("as given with --rate"), "{said}");
    for (arguments, wanted) in [
        ("dijs --device cuda:0", "--like h200"),
        ("dijs --rate 0", "500G or 40T"),
        ("dijs --like h200 --time 4h", "04:00:00"),
        ("dijs --like p100", "h200, h100, a100, l40s"),
    ] {
        let (code, said) = plan(arguments);
        assert_eq!(code, Some(2), "{arguments}: {said}");
        assert!(said.contains(wanted), "{arguments}: {said}");
    }
}

#[test]
fn a_plan_says_what_cannot_be_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |mirror: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        command
            .args(["run", "dijs", "--scale", "drill", "--dry-run", "--store"])
            .arg(dir.path().join("none"));
        command.env_remove("REPLICATE_MIRROR").envs(mirror.map(|mirror| ("REPLICATE_MIRROR", mirror)));
        command.output().unwrap()
    };
    let alone = plan(None);
    assert_eq!(alone.status.code(), Some(3), "{}", text(&alone.stderr));
    assert!(text(&alone.stdout).contains("Cannot run: drill-edm is missing and has no download address"));
    assert!(text(&plan(Some("/mirror")).stdout).contains("Ready to run."));
}

#[test]
#[cfg(target_os = "linux")]
fn what_cannot_be_written_is_one_error_with_exit_4() {
    let dir = tempfile::tempdir().unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    let output = command.args(["list", "--ids"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let error = text(&output.stderr);
    assert!(error.starts_with("error: cannot write to stdout: No space left"), "{error}");
    assert_eq!(error.matches("error").count(), 2, "with that of the system: {error}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    let output = command.args(["run", "dijz"]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "also where nobody hears it");

    let report = dir.path().to_str().unwrap();
    for place in [["--store", "/proc/x", "--output", report], ["--store", report, "--output", "/proc/x"]] {
        let arguments = [&["run", "table2", "--scale", "smoke", "--watch", "none"][..], &place].concat();
        let error = failure(&arguments, dir.path(), 4);
        assert!(error.contains("/proc/x") && error.contains("another place (--store, --output)"), "{error}");
    }
}

/// Golden's seeds would tell more than a seed of one's own; how to run them is said, and how long
/// that takes.
#[test]
fn the_command_for_goldens_seeds_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let place = ["--store", dir.path().to_str().unwrap()];
    let said = |arguments: &[&str]| {
        let output = replicate(&[arguments, &place].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    said(&["run", "ddim", "--seed", "3", "--watch", "none"]);
    let claims = said(&["check", "ddim", "--against", "claims"]);
    let last = claims.lines().last().unwrap();
    let command =
        |rows: &str| format!(": replicate run {rows} --scale mini --store {} --seed 0,1,2", place[1]);
    assert!(last.starts_with("Golden's seeds on this machine, about "), "{claims}");
    assert!(last.ends_with(&command("ddim")), "{claims}");
    // The time of a row that was not run is not known.
    let claims = said(&["check", "ddim", "edm", "--against", "claims"]);
    assert!(claims.ends_with(&format!("machine{}\n", command("ddim edm"))), "{claims}");
    let output = dir.path().join("report");
    said(&["report", "--output", output.to_str().unwrap()]);
    let page = std::fs::read_to_string(output.join("index.html")).unwrap();
    let next = page.split("class=\"next\"").nth(1).unwrap();
    let command = command("table1 table2").replacen(": ", "<code>", 1) + "</code>";
    assert!(next.contains(&command), "{}", &next[..400]);
}

/// A claim about two rows is decided whichever of them is named.
#[test]
fn claims_see_all_that_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let place = ["--set", "images=64", "--store", dir.path().to_str().unwrap()];
    let run = replicate(&[&["run", "dijs", "dikl", "--watch", "none"][..], &place].concat());
    assert!(run.status.success(), "{}", text(&run.stderr));
    let check = |row: &str| {
        let output = replicate(&[&["check", row, "--against", "claims"][..], &place].concat());
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = check("dikl");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("undecided   undecided   dijs-below-dikl "), "{said}");
    let claims = |said: &str| {
        let verdicts = ["undecided ", "not tested ", "holds ", "does not hold "];
        let lines = said.lines().filter(|line| verdicts.iter().any(|verdict| line.starts_with(verdict)));
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    assert!(claims(&said).iter().all(|line| line.contains("dikl")), "{said}");
    // A row that does not use what is changed has no such experiment.
    let (code, said) = check("edm");
    assert_eq!((code, claims(&said).len()), (Some(2), 0), "{said}");
}

#[test]
fn what_inspect_converts_it_inspects() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first.safetensors", "second.safetensors"].map(|name| directory.path().join(name));
    let snapshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/edm-tiny.pkl");
    let inspect = |file: &Path, out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        let output = command.arg("inspect").arg(file).arg("--convert").arg(out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = |text: &str| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().skip(2).map(str::to_string).collect();
        lines.retain(|line| !line.starts_with("written"));
        lines.sort();
        lines
    };
    let (original, again) = (inspect(&snapshot, &first), inspect(&first, &second));
    assert!(again.contains("first.safetensors: safetensors, "), "{again}");
    assert_eq!(lines(&original), lines(&again));
    let tensors =
        |path: &Path| replicate::store::read_safetensors(path, &std::fs::read(path).unwrap()).unwrap().0;
    assert_eq!(tensors(&first), tensors(&second));
}

#[test]
#[cfg(not(feature = "cuda"))]
fn cuda_is_never_replaced_by_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["run", "dijs", "--device", "cuda:0"][..],
        &["bench", "dsm", "--device", "cuda"],
        &["selftest", "--device", "cuda:3"],
    ] {
        let error = failure(arguments, dir.path(), 2);
        assert!(error.contains("FEATURES=cudnn") && error.contains("--features cudnn"), "{error}");
        assert!(error.contains(arguments.last().unwrap()), "{error}");
    }
}

/// With the driver's library, or one for linking only in its place.
#[test]
#[cfg(feature = "cuda")]
fn a_gpu_that_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["bench", "dsm"][..], &["selftest"], &["run", "dijs", "--scale", "smoke"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        command.args(arguments).args(["--device", "cuda:0"]).current_dir(dir.path());
        let output = command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{error}");
        assert!(error.contains("cuda:0 cannot be used: CUDA_ERROR_NO_DEVICE"), "{error}");
        assert!(error.contains("nvidia-smi") && output.stdout.is_empty(), "{error}");
    }
}

#[test]
fn data_errors_name_the_file_and_exit_3() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::create_dir(path("truncated")).unwrap();
    std::fs::write(path("truncated").join("data_batch_1.bin"), vec![0; 5000]).unwrap();
    let store = path("store");
    let mut all = String::new();
    for data in ["absent", "empty", "truncated"] {
        let data = path(data);
        let arguments = [
            "run",
            "dijs",
            "--scale",
            "small",
            "--data",
            data.to_str().unwrap(),
            "--store",
            store.to_str().unwrap(),
        ];
        all += &format!("{}\n", failure(&arguments, dir.path(), 3));
    }
    snapshot("errors-data", &all);
}

#[test]
fn a_scale_that_reads_files_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let arguments = ["run", "dijs", "--scale", "small", "--offline", "--store", store.to_str().unwrap()];
    let error = failure(&arguments, dir.path(), 3);
    assert!(error.contains("replicate fetch inception"), "{error}");
}

/// A checkout with other shipped weights.
fn checkout_with(dir: &Path, damage: impl Fn(&Path)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in ["paper", "golden", "golden/weights"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
        for entry in std::fs::read_dir(root.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    damage(&dir.join("golden/weights/classifier.safetensors"));
}

#[test]
fn damaged_and_missing_shipped_weights_are_named_and_exit_3() {
    for (damage, expected) in [("flip", "SHA-256"), ("remove", "is missing")] {
        let dir = tempfile::tempdir().unwrap();
        checkout_with(dir.path(), |file| match damage {
            "flip" => {
                let mut bytes = std::fs::read(file).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                std::fs::write(file, bytes).unwrap();
            }
            _ => std::fs::remove_file(file).unwrap(),
        });
        let store = dir.path().join("store");
        let (root, store) = (dir.path().to_str().unwrap(), store.to_str().unwrap());
        let error = failure(
            &["run", "dijs", "--scale", "smoke", "--watch", "none", "--root", root, "--store", store],
            dir.path(),
            3,
        );
        assert!(error.contains("classifier.safetensors") && error.contains(expected), "{error}");
        assert!(
            error.contains("git checkout") && error.contains("replicate weights classifier --write"),
            "{error}"
        );
    }
}

/// What the store of a smoke run looks like from outside, and what happens to
/// it when it is harmed.
#[test]
fn the_store_answers_survives_damage_and_tells() {
    let dir = tempfile::tempdir().unwrap();
    let (store, report) = (dir.path().join("store"), dir.path().join("report"));
    let arguments = [
        "run",
        "dijs",
        "--scale",
        "smoke",
        "--watch",
        "lines",
        "--store",
        store.to_str().unwrap(),
        "--output",
        report.to_str().unwrap(),
    ];
    let first = replicate(&arguments);
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(text(&first.stderr).contains("images/s"), "no progress: {}", text(&first.stderr));

    let begun = std::time::Instant::now();
    let second = replicate(&arguments);
    assert!(begun.elapsed().as_secs_f64() < 2.0, "the second call took {:?}", begun.elapsed());
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(text(&second.stderr), "");

    let entry = || {
        let mut dirs: Vec<_> = std::fs::read_dir(&store).unwrap().map(|e| e.unwrap().path()).collect();
        dirs.retain(|d| d.to_string_lossy().ends_with("-smoke-dijs-s0"));
        dirs.pop().unwrap()
    };
    let scores = entry().join("scores.csv");
    let honest = std::fs::read_to_string(&scores).unwrap();
    std::fs::write(&scores, honest.replacen("\nfd,", "\nfd,0", 1)).unwrap();
    let third = replicate(&arguments);
    assert!(third.status.success());
    assert!(text(&third.stderr).contains("scores.csv"), "{}", text(&third.stderr));
    assert_eq!(third.stdout, first.stdout, "the damaged result is made again");
    assert!(
        std::fs::read_dir(&store).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("damaged"))
    );

    std::fs::write(store.join("format"), "replicate store 0\n").unwrap();
    let fourth = replicate(&arguments);
    assert_eq!(fourth.status.code(), Some(3));
    assert!(text(&fourth.stderr).contains("another place with --store"), "{}", text(&fourth.stderr));
}

#[test]
fn accept_refuses_in_ci() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(["accept", "dijs", "--scale", "smoke", "--reason", "because", "--store"])
        .arg(&store)
        .env("CI", "true")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("CI"), "{}", text(&output.stderr));
}

/// A learning rate that blows the networks up: exit 4, the step and the
/// quantity named, a checkpoint left.
#[test]
fn divergence_is_said_and_keeps_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let output = replicate(&[
        "run",
        "dikl",
        "edm",
        "--scale",
        "smoke",
        "--watch",
        "none",
        "--set",
        "generator_lr=1e30",
        "--set",
        "critic_lr=1e30",
        "--store",
        store.to_str().unwrap(),
    ]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("diverged") && error.contains("images"), "{error}");
    assert!(error.contains("dikl of seed 0 failed"), "{error}");
    assert_eq!(error.matches("diverged").count(), 1, "{error}");
    // The row after it was made all the same.
    let made = text(&output.stdout);
    assert!(
        made.contains("smoke-edm-s0")
            && made.contains("fd ")
            && made.contains("collapsed\n")
            && !made.contains("smoke-dikl"),
        "{made}"
    );
    // Whatever was saved before is finite.
    let mut checkpoints = 0;
    for entry in std::fs::read_dir(&store).unwrap() {
        let Ok(files) = std::fs::read_dir(entry.unwrap().path().join("checkpoint")) else { continue };
        for file in files {
            let path = file.unwrap().path();
            let (arrays, _) =
                replicate::store::read_safetensors(&path, &std::fs::read(&path).unwrap()).unwrap();
            assert!(arrays.values().all(|a| a.data.iter().all(|v| v.is_finite())), "{}", path.display());
            checkpoints += 1;
        }
    }
    println!("{checkpoints} checkpoints, all finite");
}

/// A study is planned as a whole: each cell with its changes, the pre-training that all share, and one sum.
#[test]
fn a_study_has_one_plan() {
    let output = replicate(&["run", "critic-steps", "--dry-run", "--rate", "1T", "--store", "nowhere"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let lines = |wanted: &str| said.lines().filter(|line| line.contains(wanted)).count();
    assert_eq!(
        (lines("Plan at scale mini"), lines("  time      ~"), lines("dijs, seed")),
        (1, 1, 9),
        "{said}"
    );
    for cell in ["without changes", "critic_steps=2", "critic_steps=5"] {
        assert_eq!(said.lines().filter(|line| line.trim() == cell).count(), 1, "{cell}: {said}");
    }
    // Where nothing ships, all cells share one pre-training, and training and reference images one file.
    let arguments =
        ["run", "critic-steps", "--scale", "tiny", "--dry-run", "--rate", "1T", "--store", "nowhere"];
    let said = text(&replicate(&arguments).stdout);
    let lines = |wanted: &str| said.lines().filter(|line| line.contains(wanted)).count();
    assert_eq!(
        (lines("pre-training "), lines("to fetch: cifar10 "), lines("dijs, seed")),
        (1, 1, 9),
        "{said}"
    );
    assert!(said.contains("download  170 MB"), "{said}");
}
