//! The self-test of a CPU holds, and notices what does not.

use replicate::network::device::Compute;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn selftest(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(["selftest", "--device", "cpu", "--json"]).args(arguments).output().unwrap()
}

/// Name, measured, tolerance and verdict of every check.
fn checks(output: &Output) -> Vec<(String, f64, f64, bool)> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["reduced"].as_bool().unwrap() && report["device"].as_str().unwrap().starts_with("CPU"));
    let check = |check: &Value| {
        (
            check["name"].as_str().unwrap().to_string(),
            check["measured"].as_f64().unwrap(),
            check["tolerance"].as_f64().unwrap(),
            check["passed"].as_bool().unwrap(),
        )
    };
    report["checks"].as_array().unwrap().iter().map(check).collect()
}

#[test]
fn every_part_is_checked_and_holds() {
    let output = selftest(&[]);
    let all = checks(&output);
    for part in [
        "3x3 convolution: gradients",
        "group norm and SiLU: gradients",
        "attention: gradients",
        "Adam: weights",
        "moving average",
        "U-Net, tiny: norms of 143 gradients",
        "sampler",
        "Inception-v3: logits",
        "augmentation: p 0.12",
        "dikl (dikl): losses of 5 steps",
        "dijs (dijs): samples after 5 steps",
        "dirm (dirm): losses of 5 steps",
        "diff-instruct (vsd): samples after 5 steps",
        "dijs at smoke: fd",
        "dijs at smoke, once more",
        "resumes where it was stopped",
        "and resumed",
    ] {
        assert!(all.iter().any(|(name, ..)| name.contains(part)), "no check of {part}");
    }
    for (name, measured, tolerance, passed) in &all {
        assert!(*passed && measured <= tolerance, "{name}: {measured} of {tolerance}");
        // Float32 arithmetic in another order is never the same.
        let compared = ["U-Net", "sampler", "Inception", "dikl (", "dijs (", "dirm (", "diff-instruct ("];
        assert!(!compared.iter().any(|part| name.starts_with(part)) || *measured > 0.0, "{name}");
    }
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for rate in report["rates"].as_array().unwrap() {
        assert!(
            rate["seconds"].as_f64().unwrap() > 0.0 && rate["peak_bytes"].as_u64().unwrap() > 0,
            "{rate}"
        );
    }
}

#[test]
fn a_value_that_is_not_golden_fails_and_exits_1() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in ["paper", "golden", "golden/weights"] {
        std::fs::create_dir_all(dir.path().join(part)).unwrap();
        for entry in std::fs::read_dir(root.join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    let table = dir.path().join("golden/table1.csv");
    let honest = std::fs::read_to_string(&table).unwrap();
    let spoilt = honest.replacen("dijs,smoke,,fd,cpu,0:", "dijs,smoke,,fd,cpu,0:1", 1);
    assert_ne!(spoilt, honest);
    std::fs::write(&table, spoilt).unwrap();
    let output = selftest(&["--root", dir.path().to_str().unwrap()]);
    let failed: Vec<String> =
        checks(&output).into_iter().filter(|check| !check.3).map(|(name, ..)| name).collect();
    // The class without AVX2 has an interval, which the wrong value may widen.
    if replicate::experiment::run::determinism(&Compute::CPU) == "cpu" {
        assert_eq!(failed, ["dijs at smoke: fd"]);
        assert_eq!(output.status.code(), Some(1));
    }
}
