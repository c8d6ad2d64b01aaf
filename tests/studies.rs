//! Studies on a real store at the smoke scale: run, resumed, listed, reported, compared,
//! accepted; and every study of the paper's folder.

use replicate::experiment::studies::studies;
use replicate::experiment::{Recipe, Scale};
use std::path::Path;
use std::process::{Command, Output};

fn replicate(store: &Path, root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments).args(["--scale", "smoke", "--store"]).arg(store).arg("--root").arg(root);
    command.env_remove("CI").output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A repository with these studies and no golden values of them.
fn repository(dir: &Path, lines: &str) -> std::path::PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = dir.join("repository");
    for folder in ["paper", "golden"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
        for file in std::fs::read_dir(here.join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "csv") {
                std::fs::copy(&path, root.join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    _ = std::fs::remove_file(root.join("golden/studies.csv"));
    std::os::unix::fs::symlink(here.join("golden/weights"), root.join("golden/weights")).unwrap();
    let header = "id,question,rows,changes,scales,seeds,answer\n";
    std::fs::write(root.join("paper/studies.csv"), header.to_string() + lines).unwrap();
    root
}

#[test]
fn a_study_goes_from_its_line_to_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let line = "starts,Whose start matters?,dijs,\"generator_start=random,row critic_start=random,row\",mini,0 1,fd\n";
    let root = repository(dir.path(), line);
    let at = |arguments: &[&str]| replicate(&store, &root, arguments);

    let ran = at(&["run", "starts", "--watch", "none"]);
    assert!(ran.status.success(), "{}", text(&ran));
    let said = text(&ran);
    assert!(said.contains("dijs+critic_start=random+generator_start=random seed 1  fd "), "{said}");
    assert!(said.contains("Study starts. Whose start matters?") && said.contains("apart ["), "{said}");
    // All drawn is what "no initialisation" is.
    assert!(at(&["run", "init-none", "--watch", "none"]).status.success());
    let diff = at(&[
        "diff",
        "dijs+generator_start=random+critic_start=random",
        "init-none",
        "--output",
        dir.path().join("pair.png").to_str().unwrap(),
    ]);
    assert!(diff.status.success(), "{}", text(&diff));
    let fd = text(&diff).lines().find(|line| line.starts_with("fd ")).unwrap().to_string();
    assert!(fd.trim_end().ends_with("0.0000"), "{fd}");
    assert!(text(&diff).contains("generator_start") && dir.path().join("pair.png").is_file());

    // Everything is in the store: the second run makes nothing.
    let entries = || std::fs::read_dir(&store).unwrap().count();
    let before = entries();
    assert!(at(&["run", "starts", "--watch", "none"]).status.success());
    assert_eq!(entries(), before);

    let listed = text(&at(&["list"]));
    assert!(listed.contains("critic_start=random+generator_start=random"), "{listed}");
    assert!(listed.contains("starts             8"), "{listed}");
    let json = text(&at(&["list", "--json"]));
    assert!(json.contains("\"changes\": \"critic_start=random\""), "{json}");

    let by = text(&at(&["report", "--by", "critic_start"]));
    assert!(by.contains("critic_start random") && by.contains("dijs+generator_start=random"), "{by}");
    let csv = text(&at(&["report", "--by", "critic_start", "--format", "csv"]));
    assert!(csv.lines().any(|line| line.starts_with("dijs+critic_start=random,")), "{csv}");
    let none = at(&["report", "--by", "sigma_init"]);
    assert_eq!(none.status.code(), Some(5), "{}", text(&none));
    let unknown = at(&["report", "--by", "critic_stat"]);
    assert!(unknown.status.code() == Some(2) && text(&unknown).contains("did you mean 'critic_start'?"));

    let page = dir.path().join("report");
    let report = at(&["report", "--output", page.to_str().unwrap()]);
    assert!(report.status.success(), "{}", text(&report));
    let html = std::fs::read_to_string(page.join("index.html")).unwrap();
    assert!(html.contains("What decides collapse") && html.contains("id=\"study-starts\""));
    let results = std::fs::read_to_string(page.join("results.csv")).unwrap();
    assert!(results.starts_with("row,changes,scale,seed,metric,value,class,manifest\n"), "{results}");
    assert!(results.contains("\ndijs,critic_start=random,smoke,0,fd,"), "{results}");

    let unaccepted = at(&["check", "starts"]);
    assert_eq!(unaccepted.status.code(), Some(5), "{}", text(&unaccepted));
    let accepted = at(&["accept", "starts", "--reason", "a test"]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    let golden = std::fs::read_to_string(root.join("golden/studies.csv")).unwrap();
    assert!(golden.contains("\ndijs,smoke,critic_start=random,fd,"), "{golden}");
    assert!(!golden.contains("dijs,smoke,,"), "the row itself is golden with its table");
    let checked = text(&at(&["check", "starts"]));
    assert!(checked.contains("same") && !checked.contains("OUTSIDE"), "{checked}");

    // Rows are golden with their table, an ablation with the rows that it is beside.
    assert!(at(&["run", "diff-gan-unet-no-r1", "--watch", "none"]).status.success());
    for (row, file, other) in
        [("diff-gan-unet-no-r1", "table1.csv", "table2.csv"), ("init-none", "table2.csv", "table1.csv")]
    {
        let accepted = at(&["accept", row, "--reason", "a test"]);
        assert!(accepted.status.success(), "{}", text(&accepted));
        let has = |file: &str| {
            let golden = std::fs::read_to_string(root.join("golden").join(file)).unwrap_or_default();
            golden.contains(&format!("{row},smoke,,fd,"))
        };
        assert!(has(file) && !has(other), "{row}");
    }
}

#[test]
fn too_many_cells_say_their_hours_and_wait() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<String> = (1..=201).map(|n| n.to_string()).collect();
    let line = format!("many,Why?,dijs,\"critic_steps={}\",mini,0,fd\n", values.join(","));
    let root = repository(dir.path(), &line);
    let ended = replicate(&dir.path().join("store"), &root, &["run", "many"]);
    assert_eq!(ended.status.code(), Some(2));
    let said = text(&ended);
    assert!(said.contains("201 cells, about ") && said.contains("--yes runs them"), "{said}");
}

#[test]
fn a_study_of_no_setting_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = repository(dir.path(), "bad,Why?,dijs,critic_stepz=1,mini,0,fd\n");
    let ended = replicate(&dir.path().join("store"), &root, &["run", "bad"]);
    assert_eq!(ended.status.code(), Some(3));
    let said = text(&ended);
    assert!(said.contains("studies.csv") && said.contains("did you mean 'critic_steps'?"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error")).count(), 1, "{said}");
}

/// Every study that ships names real rows and settings, and is a product at its scales.
#[test]
fn every_study_can_be_run() {
    let all = studies(&Path::new(env!("CARGO_MANIFEST_DIR")).join("paper")).unwrap();
    for study in &all {
        assert!(study.question.ends_with('?'), "{}", study.id);
        for scale in &study.scales {
            let recipes = study.recipes(&Recipe::of(*scale)).unwrap_or_else(|error| panic!("{error}"));
            assert!(recipes.iter().any(|recipe| !recipe.changes().is_empty()), "{} at {scale}", study.id);
            assert!(recipes.len() * study.rows.len() * study.seeds.len() <= 200, "{}", study.id);
        }
        // Only networks that are told of augmentation can have it.
        let smoke = study.recipes(&Recipe::of(Scale::Smoke));
        assert_eq!(smoke.is_ok(), study.id != "augmentation", "{}", study.id);
    }
    assert_eq!(all.iter().filter(|study| study.is_reading()).count(), 1);
}
