//! The drill: every row, those outside the tables too, by the paper scale's path, from nothing but
//! a local server: fetch, verify, convert, pre-train, train one step with
//! augmentation, 3 x 20 samples, FID and IS, golden values, report. It shows that
//! the path works; its networks are tiny, and its numbers mean nothing.
//!
//! `DRILL_DIR` names a directory to do it in and to keep.

mod common;

use assert_cmd::cargo::cargo_bin_cmd;
use common::drill::{self, CIFAR10_PER_CLASS, CIFAR100_PER_CLASS, Set};
use common::server::Server;
use replicate::experiment::all_rows;
use replicate::measure::statistics::Statistics;
use replicate::store::sha256_hex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the program printed to stdout and stderr, and how it ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

struct Place {
    dir: PathBuf,
}

impl Place {
    fn replicate(&self, mirror: &str, arguments: &str) -> Ended {
        let started = Instant::now();
        let mut command = cargo_bin_cmd!("replicate");
        command.args(arguments.split_whitespace()).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env("REPLICATE_STORE", self.dir.join("store")).env("REPLICATE_MIRROR", mirror);
        command.env_remove("HF_ENDPOINT").env_remove("CI");
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ended =
            Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) };
        println!(
            "== replicate {arguments}\n{}{}== exit {} after {:.1} s\n",
            ended.err,
            ended.out,
            ended.code,
            started.elapsed().as_secs_f64()
        );
        ended
    }

    fn input(&self, sha256: &str) -> PathBuf {
        self.dir.join("store/inputs").join(sha256)
    }
}

fn entries(store: &Path, part: &str) -> Vec<String> {
    let listing = std::fs::read_dir(store).unwrap().map(|file| file.unwrap().file_name());
    listing.map(|name| name.into_string().unwrap()).filter(|name| name.contains(part)).collect()
}

#[test]
fn every_row_from_a_local_server() {
    let kept = std::env::var_os("DRILL_DIR").map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let place = Place { dir: kept.unwrap_or_else(|| temporary.path().to_path_buf()) };
    let report = place.dir.join("report");

    let cifar10 = drill::cifar_archive(Set::Cifar10, CIFAR10_PER_CLASS);
    let inception = drill::inception_pth();
    let (images, network) = (place.input(&sha256_hex(&cifar10)), place.input(&sha256_hex(&inception)));
    let mut files = BTreeMap::from([
        ("drill-edm".to_string(), drill::edm_snapshot(&drill::network())),
        ("drill-sid".to_string(), drill::sid_snapshot(&drill::network())),
        ("drill-inception".to_string(), inception),
        ("drill-cifar10".to_string(), cifar10),
        ("drill-cifar100".to_string(), drill::cifar_archive(Set::Cifar100, CIFAR100_PER_CLASS)),
    ]);
    let server = Server::of_files(files.clone());

    // What EDM publishes, made with the tool that people would use.
    assert_eq!(place.replicate(&server.url, "fetch drill-inception drill-cifar10").code, 0);
    let statistics = place.dir.join("statistics.npz");
    let score = format!(
        "score {} --metrics is --inception {} --save-ref {}",
        images.display(),
        network.display(),
        statistics.display()
    );
    assert_eq!(place.replicate(&server.url, &score).code, 0);
    files.insert("drill-fid-reference".into(), std::fs::read(&statistics).unwrap());
    let server = Server::of_files(files);

    // Refused early, and said before anything is fetched.
    let ended = place.replicate(&server.url, "run edm --scale drill --offline");
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(ended.err.contains("drill-edm"), "{}", ended.err);
    let plan = place.replicate(&server.url, "run all --scale drill --dry-run");
    assert_eq!(plan.code, 0);
    for part in
        ["to fetch: drill-edm", "to fetch: drill-cifar100", "pre-training single-level", "Ready to run."]
    {
        assert!(plan.out.contains(part), "{part} is not in\n{}", plan.out);
    }
    assert!(!plan.out.contains("to fetch: drill-inception"), "{}", plan.out);
    assert!(entries(&place.dir.join("store"), "drill-dijs").is_empty());

    let run = format!("run all --scale drill --seed 0 --watch lines --output {}", report.display());
    let ended = place.replicate(&server.url, &run);
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert!(ended.err.contains("our statistics of the real images"), "{}", ended.err);
    drop(server);

    // Each thing was made once: the rows, four pre-trainings, the reference.
    let store = place.dir.join("store");
    let scored = |name: &&String| name.ends_with("-s0") && !name.contains("drill-map-");
    assert_eq!(entries(&store, "-s0").iter().filter(scored).count(), all_rows().count());
    assert_eq!(entries(&store, "drill-pretrain-").len(), 4);
    assert_eq!(entries(&store, "drill-reference").len(), 1);

    // From here on without the server: everything is answered from the store.
    let nowhere = "http://127.0.0.1:9";
    assert_eq!(place.replicate(nowhere, &run).out, ended.out);
    // The rows that have golden values at this scale.
    let golden = "edm diff-instruct dirm dikl dijs init-none init-single init-10 init-50 init-90";
    let check = place.replicate(nowhere, &format!("check {golden} --scale drill --against golden"));
    assert_eq!(check.code, 0, "{}{}", check.out, check.err);
    // Statistics of other images: refused before anything is sampled.
    let mut wrong = Statistics::read(&statistics).unwrap();
    wrong.mean.iter_mut().for_each(|mean| *mean += 0.01);
    let file = place.dir.join("wrong.npz");
    std::fs::write(&file, wrong.to_npz()).unwrap();
    std::fs::remove_file(store.join("inputs/index/drill-fid-reference")).unwrap();
    let fetch = format!("fetch drill-fid-reference --from {}", file.display());
    assert_eq!(place.replicate(nowhere, &fetch).code, 0);
    let refused = place.replicate(nowhere, "run edm --scale drill --seed 1 --watch none");
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("statistics within 0.01 of ours"), "{}", refused.err);

    let written = place.replicate(nowhere, &format!("report --scale drill --output {}", report.display()));
    assert_eq!(written.code, 0);
    let page = std::fs::read_to_string(report.join("index.html")).unwrap();
    assert!(page.contains("drill"), "the page names its scale");
}
