//! The smoke golden values hold for the program as it is, and for no other:
//! a perturbed run fails the check.

use std::path::Path;
use std::process::Command;

fn replicate(store: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(arguments)
        .args(["--scale", "smoke", "--store"])
        .arg(store)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn run_and_check(changes: &[&str]) -> (Option<i32>, String) {
    let store = tempfile::tempdir().unwrap();
    let report = store.path().join(".report");
    let with = |first: &[&'static str]| {
        let mut arguments: Vec<String> = first.iter().map(|s| s.to_string()).collect();
        for change in changes {
            arguments.extend(["--set".to_string(), change.to_string()]);
        }
        arguments
    };
    let mut run = with(&["run", "dijs", "--seed", "0", "--watch", "none"]);
    run.extend(["--output".to_string(), report.display().to_string()]);
    let arguments: Vec<&str> = run.iter().map(String::as_str).collect();
    let (code, text) = replicate(store.path(), &arguments);
    assert_eq!(code, Some(0), "{text}");
    let check = with(&["check", "dijs", "--against", "golden"]);
    let arguments: Vec<&str> = check.iter().map(String::as_str).collect();
    replicate(store.path(), &arguments)
}

#[test]
fn the_program_as_it_is_passes() {
    let (code, text) = run_and_check(&[]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn sigma_init_off_by_20_percent_fails() {
    let (code, text) = run_and_check(&["sigma_init=2.0"]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn the_average_switched_off_fails() {
    let (code, text) = run_and_check(&["ema_half_life=0"]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn nothing_run_is_incomplete() {
    let store = tempfile::tempdir().unwrap();
    let (code, text) = replicate(store.path(), &["check", "dijs"]);
    assert_eq!(code, Some(5), "{text}");
}
