//! The smoke golden values hold for the program as it is, and for no other.
//! A golden seed must come out the same. (A dozen steps are too
//! noisy for the interval between seeds to tell these changes apart; the mini
//! scale is there for that.)

mod common;

use common::runner;
use replicate::experiment::{Recipe, Scale, TABLE1};
use replicate::judge::golden::{Status, check, read_golden};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// The FD verdict on a golden seed of DiJS with a changed recipe.
fn verdict(change: impl Fn(&mut Recipe)) -> (Status, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let store = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::of(Scale::Smoke);
    change(&mut recipe);
    let stop = AtomicBool::new(false);
    let mut runner = runner(store.path(), recipe, &stop);
    let dijs = TABLE1.iter().find(|cell| cell.id == "dijs").unwrap();
    let outcome = runner.row(dijs, 0).unwrap();
    let mut scores = runner.scores(&outcome).unwrap();
    scores.retain(|score| score.metric == "fd");
    let goldens: Vec<_> = read_golden(&root.join("golden/table1.csv"))
        .unwrap()
        .into_iter()
        .filter(|g| g.row == "dijs" && g.scale == "smoke" && g.metric == "fd")
        .collect();
    let comparison = check(&goldens, &scores).pop().expect("a golden FD of DiJS at smoke");
    (comparison.verdict.status, comparison.verdict.reason)
}

#[test]
fn the_program_as_it_is_passes() {
    let (status, reason) = verdict(|_| ());
    assert_eq!(status, Status::Same, "{reason}");
}

/// Adam's step has the sign of the gradient, so a negative rate is a wrong sign
/// in front of phi.
#[test]
fn a_wrong_sign_of_phi_fails() {
    let (status, reason) = verdict(|recipe| recipe.one_step.generator_lr *= -1.0);
    assert_eq!(status, Status::Outside, "{reason}");
}

#[test]
fn sigma_init_off_by_20_percent_fails() {
    let (status, reason) = verdict(|recipe| recipe.one_step.sigma_init *= 0.8);
    assert_eq!(status, Status::Outside, "{reason}");
}

#[test]
fn the_average_switched_off_fails() {
    let (status, reason) = verdict(|recipe| recipe.one_step.ema_half_life = 0);
    assert_eq!(status, Status::Outside, "{reason}");
}

fn replicate(store: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(arguments)
        .args(["--scale", "smoke", "--store"])
        .arg(store)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// A golden seed with a change too small to see still is another number.
#[test]
fn exit_codes_of_the_check() {
    let store = tempfile::tempdir().unwrap();
    assert_eq!(replicate(store.path(), &["check", "dijs"]).0, Some(5), "nothing has been run");
    for (set, code) in [(&[][..], 0), (&["--set", "sigma_init=2.5001"], 1)] {
        let (run, text) = replicate(store.path(), &[&["run", "dijs", "--watch", "none"], set].concat());
        assert_eq!(run, Some(0), "{text}");
        let (checked, text) = replicate(store.path(), &[&["check", "dijs"], set].concat());
        assert_eq!(checked, Some(code), "{text}");
        assert_eq!(text.contains("the recipe without --set sigma_init=2.5001"), code == 1, "{text}");
        assert!(!text.contains("--reason"), "nothing that accept could take: {text}");
    }
    let (code, text) = replicate(store.path(), &["check", "dijs", "--device", "cuda:0"]);
    assert!(
        code == Some(5) && text.contains("golden: 11 not run"),
        "a CPU's results are none of a GPU: {text}"
    );
    let (code, text) = replicate(store.path(), &["check", "dijs", "--against", "paper"]);
    assert_eq!(code, Some(0), "at smoke nothing is held against the paper: {text}");
    assert!(text.starts_with("dijs           paper 2.39       ours ") && text.contains("not comparable"));
    for (row, printed) in [("init-50", "6.20"), ("init-none", "collapsed")] {
        let (code, text) = replicate(store.path(), &["check", row, "--against", "paper"]);
        assert_eq!(code, Some(5), "{text}");
        assert!(text.contains(&format!("paper {printed:9}  ours -")) && text.contains("not run"), "{text}");
    }
}
