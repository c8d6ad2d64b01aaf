//! The benchmark runs what it says: its times are those of real steps.

use assert_cmd::cargo::cargo_bin_cmd;
use serde_json::Value;

#[test]
fn a_case_is_repeated_and_timed() {
    let output = cargo_bin_cmd!("replicate")
        .args(["bench", "dsm", "one-step", "--repeats", "2", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let median = |case: &str| -> f64 {
        let seconds = all[case]["seconds"].as_array().unwrap();
        assert_eq!(seconds.len(), 2, "{case}");
        seconds.iter().map(|s| s.as_f64().unwrap()).fold(f64::INFINITY, f64::min)
    };
    // A step of score matching is three passes of the U-Net, one of DiJS about seven.
    let (dsm, one_step) = (median("dsm"), median("one-step"));
    assert!(0.0 < dsm && dsm < one_step, "{dsm} and {one_step}");
    // Nothing smaller than the weights and Adam's moments of 200,000 parameters.
    assert!(all["dsm"]["peak_bytes"].as_u64().unwrap() > 10_000_000);
}
