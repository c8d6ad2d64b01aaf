//! More than one worker on one store, and the scripts that start them on more
//! than one machine. Slurm is a stand-in that keeps its rules: a copy of the
//! script is run, a requeued job runs again, the signal before the time limit goes
//! to what srun started and not to the shell.

use replicate::experiment::TABLE1;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const CELLS: [&str; 2] = ["dijs", "init-none"];
/// What the second stage sees at smoke.
const ALL_IMAGES: &str = "192/192 images";

/// File by file what the manifests of a store vouch for.
type Results = BTreeMap<String, Vec<u8>>;

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn worker(store: &Path, cells: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.arg("run").args(cells).args(["--scale", "smoke", "--watch", "lines", "--store"]);
    command.arg(store).current_dir(checkout()).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    command
}

/// What it said, once it has ended well.
fn said(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

fn results(store: &Path) -> Results {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(store).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.contains("damaged"), "{name}");
        let Ok(text) = std::fs::read_to_string(dir.join("manifest.json")) else { continue };
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        for output in manifest["outputs"].as_object().unwrap().keys() {
            all.insert(format!("{name}/{output}"), std::fs::read(dir.join(output)).unwrap());
        }
    }
    all
}

fn assert_same(found: &Results, expected: &Results) {
    let names = |results: &Results| results.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(found), names(expected));
    for (name, bytes) in expected {
        assert!(bytes == &found[name], "{name} differs");
    }
}

/// One worker alone.
fn alone() -> &'static (tempfile::TempDir, Results) {
    static ALONE: OnceLock<(tempfile::TempDir, Results)> = OnceLock::new();
    ALONE.get_or_init(|| {
        let store = tempfile::tempdir().unwrap();
        said(worker(store.path(), &CELLS).output().unwrap());
        let results = results(store.path());
        for cell in ["dijs-s0", "init-none-s0", "map-init-none-s0"] {
            assert!(results.keys().any(|name| name.contains(&format!("smoke-{cell}/"))), "no {cell}");
        }
        (store, results)
    })
}

fn wait_until(what: &str, mut true_now: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_now() {
        assert!(begun.elapsed() < Duration::from_secs(120), "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `to` is a process, or a process group with a minus before it.
fn signal(name: &str, to: impl ToString) {
    let sent = Command::new("kill").args(["-s", name, "--", &to.to_string()]).status().unwrap();
    assert!(sent.success());
}

// ---- workers on one store

#[test]
fn two_workers_make_each_cell_once() {
    let store = tempfile::tempdir().unwrap();
    let [first, second] = CELLS;
    let workers = [[first, second], [second, first]].map(|cells| worker(store.path(), &cells).spawn());
    let logs = workers.map(|worker| said(worker.unwrap().wait_with_output().unwrap()));
    assert_same(&results(store.path()), &alone().1);
    for cell in CELLS {
        let label = format!("smoke-{cell}-s0-weights ");
        let ends = |log: &String| {
            log.lines().filter(|line| line.starts_with(&label) && line.contains(ALL_IMAGES)).count()
        };
        assert_eq!(logs.iter().map(ends).sum::<usize>(), 1, "{cell}: {logs:?}");
    }
}

#[test]
fn a_worker_takes_over_what_a_killed_one_had_begun() {
    let store = tempfile::tempdir().unwrap();
    let mut killed = worker(store.path(), &CELLS).spawn().unwrap();
    wait_until("a checkpoint of the first cell", || begun(store.path(), "smoke-dijs-s0-weights"));
    // Stopped, it keeps its lock for as long as the other needs to meet it.
    signal("STOP", killed.id());
    let mut heir = worker(store.path(), &CELLS).spawn().unwrap();
    let mut lines = BufReader::new(heir.stderr.take().unwrap()).lines().map(Result::unwrap);
    let waits =
        |line: &String| line.contains("smoke-dijs-s0-weights: waiting, another process holds its lock");
    assert!(lines.any(|line| waits(&line)), "the second worker did not wait");
    signal("KILL", killed.id());
    killed.wait().unwrap();
    let log: Vec<String> = lines.collect();
    assert!(heir.wait().unwrap().success(), "{log:?}");
    assert_same(&results(store.path()), &alone().1);
    let of_cell = |images: &str| {
        log.iter()
            .any(|line| line.starts_with("smoke-dijs-s0-weights ") && line.contains(&format!(" {images}")))
    };
    assert!(of_cell(ALL_IMAGES) && !of_cell("0/192 images"), "it went on, and did not begin again: {log:?}");
}

/// Whether the entry has a checkpoint.
fn begun(store: &Path, label: &str) -> bool {
    let entries = std::fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let mut ours = entries.filter(|dir| dir.to_string_lossy().ends_with(label));
    ours.any(|dir| dir.join("checkpoint/a.safetensors").exists())
}

// ---- Slurm

/// Runs a job at once, unless what it waits for has failed.
const SBATCH: &str = r#"#!/usr/bin/env bash
set -euo pipefail
echo "sbatch $*" >> "$FAKE/log"
id=$(($(cat "$FAKE/id") + 100))
echo "$id" > "$FAKE/id"
array=
while [[ $1 == --* ]]; do
    case $1 in
        --array=*) array=${1#--array=} array=${array%\%*} ;;
        --dependency=afterok:*)
            [ "$(cat "$FAKE/code-${1##*:}")" = 0 ] || { echo "$id;cluster" && exit; }
            ;;
    esac
    shift
done
cp "$1" "$FAKE/spool-$id"
shift
job() {
    local name=$1 pid code again=yes
    shift
    while [ -n "$again" ]; do
        rm -f "$FAKE/requeue-$name"
        bash "$FAKE/spool-$id" "$@" >> "$FAKE/slurm-$name.out" 2>&1 &
        pid=$!
        if [ "$name" = "${SIGNALLED:-}" ] && [ ! -e "$FAKE/signalled" ]; then
            touch "$FAKE/signalled"
            # Who has this lock can take a signal.
            until compgen -G "$STORE/*-smoke-dijs-s0/lock" > /dev/null; do sleep 0.02; done
            kill -s TERM "$(cat "$FAKE/step-$name")"
        fi
        code=0
        wait "$pid" || code=$?
        echo "$code" > "$FAKE/code-$name"
        echo "job $name: exit $code" >> "$FAKE/log"
        [ -e "$FAKE/requeue-$name" ] || again=
    done
}
if [ -n "$array" ]; then
    for task in $(seq "${array%-*}" "${array#*-}"); do
        SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((id + task)) job "${id}_$task" "$@" &
        [ $((task % 2)) = 0 ] || wait
    done
    wait
else
    SLURM_JOB_ID=$id job "$id" "$@"
fi
echo "$id;cluster"
"#;

/// Notes jobs and their numbers, and runs none.
const QUEUE: &str = r#"#!/usr/bin/env bash
echo "sbatch $*" >> "$FAKE/log"
id=$(($(cat "$FAKE/id") + 100))
echo "$id" | tee "$FAKE/id"
"#;

/// A CUDA program: where no driver is, it does not start.
const CUDA: &str = r#"#!/usr/bin/env bash
[ -n "${IN_STEP:-}" ] || exit 127
exec "$PROGRAM" "$@"
"#;

const SRUN: &str = r#"#!/usr/bin/env bash
echo "srun $*" >> "$FAKE/log"
while [[ $1 == --* ]]; do shift; done
export IN_STEP=1
echo $$ > "$FAKE/step-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
exec "$@"
"#;

const SCONTROL: &str = r#"#!/usr/bin/env bash
echo "scontrol $*" >> "$FAKE/log"
[ "$1" = requeue ] && touch "$FAKE/requeue-$2"
"#;

/// Two rows and a run that goes on until it is asked to stop.
const STUB: &str = r#"#!/usr/bin/env bash
echo "replicate $*" >> "$FAKE/log"
case $1 in
    run)
        trap 'exit 75' TERM
        touch "$FAKE/running"
        while :; do sleep 0.02; done
        ;;
esac
"#;

/// A directory with stand-ins, first on the path of what runs there.
struct Cluster {
    dir: tempfile::TempDir,
}

impl Cluster {
    fn with(programs: &[(&str, &str)]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("id"), "0").unwrap();
        for (name, text) in programs {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Cluster { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, replicate: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command.arg("paper/cluster/slurm.sh").args(arguments).current_dir(checkout());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
        for unset in
            ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "DATA"]
                .into_iter()
                .chain([
                    "CELLS",
                    "SEEDS",
                    "SEED",
                    "FETCH",
                    "THROTTLE",
                    "PRELUDE",
                    "CONTAINER",
                    "REPLICATE_STORE",
                ])
        {
            command.env_remove(unset);
        }
        command.env("FAKE", self.dir.path()).env("REPLICATE", replicate);
        command.env("SLURM_CPUS_ON_NODE", "2");
        command.env("STORE", self.path("store")).env("OUTPUT", self.path("report"));
        command.stdin(Stdio::null());
        command
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Everything that was printed, for the message of a test that fails.
    fn outputs(&self) -> String {
        let files = std::fs::read_dir(self.dir.path()).unwrap().map(|file| file.unwrap().path());
        let outputs = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "out"));
        outputs
            .map(|path| format!("{}:\n{}", path.display(), std::fs::read_to_string(&path).unwrap()))
            .collect()
    }
}

/// Slurm with a program that starts in its steps only.
fn slurm() -> Cluster {
    Cluster::with(&[("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("replicate", CUDA)])
}

fn submit(cluster: &Cluster, cells: &str, seeds: &str) -> Command {
    let mut script = cluster.script(&cluster.path("replicate"), &["--partition=gpu", "--time=01:00:00"]);
    script.env("PROGRAM", env!("CARGO_BIN_EXE_replicate")).env("DEVICE", "cpu");
    script.env("CELLS", cells).env("SEEDS", seeds).env("SCALE", "smoke");
    script
}

#[test]
fn a_slurm_array_makes_what_one_worker_makes() {
    let cluster = slurm();
    let mut script = submit(&cluster, &CELLS.join(" "), "0");
    // DiJS comes near its time limit once.
    script.env("SIGNALLED", "200_0");
    let output = script.output().unwrap();
    let (log, outputs) = (cluster.log(), cluster.outputs());
    assert!(output.status.success(), "{}\n{log}\n{outputs}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("array 200: 2 tasks") && said.contains("job 300 reports"), "{said}");

    let submitted: Vec<&str> = log.lines().filter(|line| line.starts_with("sbatch")).collect();
    let job = |name: &str, rest: &str| {
        let log = if name.ends_with("report") { "%j" } else { "%A_%a" };
        format!(
            "sbatch --parsable --export=ALL --job-name={name} --output=logs/%x-{log}.log --partition=gpu \
             --time=01:00:00 {rest}"
        )
    };
    let at = "paper/cluster/slurm.sh";
    assert_eq!(
        submitted,
        [
            job("replicate-start", &format!("--array=0-0 {at} pretrain edm")),
            job(
                "replicate",
                &format!(
                    "--array=0-1 --dependency=afterok:100_0 --kill-on-invalid-dep=yes {at} task dijs init-none"
                )
            ),
            job("replicate-report", &format!("--dependency=afterany:200 {at} report")),
        ]
    );
    let ends = |job: &str| -> Vec<&str> {
        log.lines().filter_map(|line| line.strip_prefix(&format!("job {job}: exit "))).collect()
    };
    assert_eq!(ends("100_0"), ["0"], "{log}\n{outputs}");
    assert_eq!(ends("200_1"), ["0"], "{log}\n{outputs}");
    assert_eq!(ends("200_0"), ["75", "0"], "stopped, queued again, finished: {log}\n{outputs}");
    assert_eq!(
        log.lines().filter(|line| line.starts_with("scontrol")).collect::<Vec<_>>(),
        ["scontrol requeue 200_0"]
    );

    assert_same(&results(&cluster.path("store")), &alone().1);
    assert!(cluster.path("report/index.html").is_file(), "{outputs}");
    let checked = std::fs::read_to_string(cluster.path("slurm-300.out")).unwrap();
    assert!(checked.contains("same     dijs smoke "), "{checked}");
}

#[test]
fn seeds_of_one_pretraining_wait_for_it_in_the_queue() {
    let cluster = slurm();
    let output = submit(&cluster, "init-single init-10", "0,1").output().unwrap();
    let (log, outputs) = (cluster.log(), cluster.outputs());
    assert!(output.status.success(), "{log}\n{outputs}");
    for job in ["100_0", "100_1", "200_0", "200_1", "300_0", "300_1"] {
        assert!(log.contains(&format!("job {job}: exit 0\n")), "{job}: {log}\n{outputs}");
    }
    assert!(log.contains("--dependency=afterok:100_1 --kill-on-invalid-dep=yes"), "{log}");
    assert!(!outputs.contains("waiting, another process"), "{outputs}");
}

#[test]
fn what_starts_from_a_pretraining_that_failed_is_not_run() {
    let cluster = slurm();
    let mut script = submit(&cluster, "init-single", "0");
    let broken = "#!/usr/bin/env bash\ncase $* in *--pretrain*) exit 4 ;; esac\n";
    std::fs::write(cluster.path("replicate"), broken).unwrap();
    assert!(script.output().unwrap().status.success());
    let log = cluster.log();
    assert!(log.contains("job 100_0: exit 4") && !log.contains("job 200_0"), "{log}");
}

#[test]
fn the_report_of_a_failed_row_trains_nothing() {
    let cluster = slurm();
    let (store, _) = alone();
    let before = results(store.path());
    let mut script = submit(&cluster, "dijs edm init-none", "0");
    let mut job = cluster.script(&cluster.path("replicate"), &["report"]);
    job.envs(script.env("STORE", store.path()).get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = job.env("SLURM_JOB_ID", "9").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("missing: edm, seed 0; run it with: replicate run edm --scale smoke --store "),
        "{said}"
    );
    assert!(said.contains("same     dijs smoke ") && cluster.path("report/index.html").is_file(), "{said}");
    assert_same(&results(store.path()), &before);
}

#[test]
fn an_empty_list_submits_nothing() {
    let cluster = slurm();
    for (cells, seeds) in [("", "0"), (" ", "0"), ("dijs", "")] {
        let output = submit(&cluster, cells, seeds).output().unwrap();
        // An empty list of seeds is the default.
        let empty = cells.trim().is_empty();
        assert_eq!(output.status.code(), if empty { Some(2) } else { Some(0) }, "{cells:?} {seeds:?}");
        assert_eq!(cluster.log().contains("sbatch"), !empty, "{}", cluster.log());
    }
}

#[test]
fn arrays_are_the_scripts_and_can_be_throttled() {
    let cluster = Cluster::with(&[("sbatch", QUEUE), ("replicate", CUDA)]);
    let output = cluster.script(&cluster.path("replicate"), &["--array=0-29%4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("THROTTLE=4"));
    let mut script = submit(&cluster, "dijs init-50", "0,1,2");
    assert!(script.env("THROTTLE", "4").output().unwrap().status.success());
    let log = cluster.log();
    for wanted in
        ["--array=0-1%4 ", "--array=0-2%4 --dependency=afterok:100_0", "afterok:100_1", "afterany:200:300 "]
    {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
}

#[test]
fn a_job_takes_a_prelude_and_a_container() {
    let container =
        "#!/usr/bin/env bash\necho \"container $*, $MODULE\" >> \"$FAKE/log\"\nshift 3\nexec \"$@\"\n";
    let program = "#!/usr/bin/env bash\nexit 0\n";
    let cluster = Cluster::with(&[("srun", SRUN), ("apptainer", container), ("replicate", program)]);
    for (name, command, wanted) in [
        ("apptainer", "apptainer exec --nv x.sif", "container exec --nv x.sif replicate run dijs --seed 0"),
        (
            "pyxis",
            "--container-image=x.sqsh",
            "srun --ntasks=1 --cpus-per-task=2 --container-image=x.sqsh replicate run",
        ),
    ] {
        let mut job = cluster.script("replicate".as_ref(), &["task", "dijs"]);
        job.env("PRELUDE", "export MODULE=cuda$UNSET")
            .env("CONTAINER", command)
            .env("SLURM_ARRAY_TASK_ID", "0");
        let output = job.env("SLURM_JOB_ID", "7").output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(cluster.log().contains(wanted), "{name}: {}", cluster.log());
    }
    assert!(cluster.log().contains(", cuda\n"), "{}", cluster.log());
}

#[test]
fn what_is_fetched_is_fetched_before_the_rows() {
    for (program, here) in [(STUB, true), (CUDA, false)] {
        let cluster = Cluster::with(&[("sbatch", QUEUE), ("replicate", program)]);
        for (scale, fetches) in [("mini", false), ("small", true), ("paper", true)] {
            let mut script = cluster.script(&cluster.path("replicate"), &[]);
            script.env("SCALE", scale).env("SEEDS", "3,5,8").env_remove("CELLS");
            let output = script.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let log = cluster.log();
            let fetch = format!("replicate fetch paper --store {}", cluster.path("store").display());
            let line = |wanted: &str| log.lines().position(|line| line.contains(wanted));
            // SiD²A starts where SiD ended, but at the paper scale, where that is published.
            let rows = TABLE1.len() + usize::from(scale == "paper");
            let array = format!("--array=0-{} ", 3 * rows - 1);
            assert!(line(&array).is_some(), "every row of Table 1 and init-none, three seeds: {log}");
            let after =
                if fetches && !here { "afterok:200_0,afterany:300 " } else { "afterok:100_0,afterany:200 " };
            assert_eq!(line(after).is_some(), scale != "paper", "{log}");
            assert!(line("pretrain edm init-single init-10 init-50 init-90").is_some(), "{log}");
            let fetched = line(if here { &fetch } else { "slurm.sh fetch" });
            assert_eq!(fetched.is_some_and(|at| Some(at) < line("pretrain")), fetches, "{scale}: {log}");
            assert_eq!(log.contains("--dependency=afterok:100 --kill"), fetches && !here, "{scale}: {log}");
            std::fs::remove_file(cluster.path("log")).unwrap();
            std::fs::write(cluster.path("id"), "0").unwrap();
        }
    }
}

/// A task of the array whose worker runs until it is told to stop.
fn running_task(cluster: &Cluster) -> Child {
    let mut task = cluster.script(&cluster.path("replicate"), &["task", "dijs", "edm"]);
    task.env("SEEDS", "3,5").env("SLURM_ARRAY_JOB_ID", "40").env("SLURM_ARRAY_TASK_ID", "3");
    task.env("SLURM_JOB_ID", "43");
    let task = task.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the worker", || cluster.path("running").exists());
    let log = cluster.log();
    assert!(log.contains("replicate run edm --seed 5 --scale mini --device cpu"), "{log}");
    task
}

#[test]
fn a_task_near_its_time_limit_is_queued_again() {
    let cluster = Cluster::with(&[("srun", SRUN), ("scontrol", SCONTROL), ("replicate", STUB)]);
    let mut task = running_task(&cluster);
    signal("TERM", std::fs::read_to_string(cluster.path("step-40_3")).unwrap().trim());
    assert_eq!(task.wait().unwrap().code(), Some(75));
    assert!(cluster.log().contains("scontrol requeue 40_3\n"), "{}", cluster.log());
}

#[test]
fn a_cancelled_task_stays_cancelled() {
    let cluster = Cluster::with(&[("srun", SRUN), ("scontrol", SCONTROL), ("replicate", STUB)]);
    let mut task = running_task(&cluster);
    // Slurm then signals every process of the job, not the shell alone.
    signal("TERM", format!("-{}", task.id()));
    assert!(!task.wait().unwrap().success());
    assert!(!cluster.log().contains("requeue"), "{}", cluster.log());
}

#[test]
fn a_missing_program_is_named() {
    let cluster = Cluster::with(&[]);
    let output = cluster.script(&cluster.path("replicate"), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("make build"));
}

// ---- SkyPilot

fn sky() -> String {
    std::fs::read_to_string(checkout().join("paper/cluster/sky.yaml")).unwrap()
}

/// Keys of a block mapping and what stands under each, comments left out. As much
/// of YAML as the task uses.
fn mapping(text: &str) -> BTreeMap<String, String> {
    let mut entries: BTreeMap<String, String> = BTreeMap::new();
    let mut key = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty()) {
        if let Some(under) = line.strip_prefix("  ") {
            *entries.get_mut(&key).expect("a key above") += &format!("{under}\n");
        } else {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
            key = name.to_string();
            let value = value.trim().trim_start_matches('|');
            let new =
                entries.insert(key.clone(), if value.is_empty() { "".into() } else { format!("{value}\n") });
            assert!(new.is_none(), "{key} stands twice");
        }
    }
    entries
}

#[test]
fn the_sky_task_has_the_keys_of_skypilots_schema() {
    let task = mapping(&sky());
    let known = |entries: &BTreeMap<String, String>, keys: &[&str]| {
        for key in entries.keys() {
            assert!(keys.contains(&key.as_str()), "{key} is none of {keys:?}");
        }
    };
    known(&task, &["name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"]);
    let resources = mapping(&task["resources"]);
    known(
        &resources,
        &[
            "infra",
            "accelerators",
            "cpus",
            "memory",
            "instance_type",
            "use_spot",
            "disk_size",
            "disk_tier",
            "image_id",
            "any_of",
            "ordered",
            "job_recovery",
        ],
    );
    assert_eq!(resources["use_spot"].trim(), "true");
    let recovery = mapping(&resources["job_recovery"]);
    known(&recovery, &["strategy", "max_restarts_on_errors", "recover_on_exit_codes"]);
    assert_eq!(recovery["recover_on_exit_codes"].trim(), "[75]");
    for (mount, what) in mapping(&task["file_mounts"]) {
        assert!(mount.starts_with('/'), "{mount}");
        known(&mapping(&what), &["name", "source", "store", "mode", "persistent", "config", "type"]);
    }
    for name in mapping(&task["envs"]).keys() {
        let used = [format!("${name}"), format!("${{{name}}}")];
        assert!(used.iter().any(|text| sky().contains(text)), "{name} is never used");
    }
}

/// What SkyPilot would run, here, where the store has the results already.
#[test]
fn the_sky_task_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = alone();
    let run = mapping(&sky())["run"]
        .replace("target/release/replicate", env!("CARGO_BIN_EXE_replicate"))
        .replace("/replicate/store", store.path().to_str().unwrap())
        .replace("/replicate/report", dir.path().join("report").to_str().unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", &run]).current_dir(checkout()).env_remove("REPLICATE_STORE");
    command.envs([("CELLS", "dijs init-none"), ("SEEDS", "0"), ("SCALE", "smoke"), ("DEVICE", "cpu")]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = said(output);
    assert!(!log.contains(ALL_IMAGES), "it was there: {log}");
    assert!(text.contains("same     dijs smoke "), "{text}");
    assert!(dir.path().join("report/index.html").is_file());
}

// ---- their shell

#[test]
fn shellcheck_finds_nothing() {
    if Command::new("shellcheck").arg("--version").output().is_err() {
        eprintln!("SKIPPED: shellcheck is not installed, the scripts of paper/cluster were not checked");
        return;
    }
    let check = |what: &str, text: &str, severity: &str| {
        let mut child = Command::new("shellcheck")
            .args(["--shell=bash", &format!("--severity={severity}"), "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stdout));
    };
    let slurm = std::fs::read_to_string(checkout().join("paper/cluster/slurm.sh")).unwrap();
    check("slurm.sh", &slurm, "style");
    let task = mapping(&sky());
    // Words of $CELLS and $place are meant to be split.
    check("sky.yaml, setup", &task["setup"], "warning");
    check("sky.yaml, run", &task["run"], "warning");
}
