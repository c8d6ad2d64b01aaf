//! `report` and `figures` on real stores: a whole pair of rows, and nothing.

use std::path::Path;
use std::process::{Command, Output};

fn replicate(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.args(arguments).args(["--scale", "smoke", "--store"]).arg(store).env_remove("CI");
    command.output().unwrap()
}

fn succeed(store: &Path, arguments: &[&str]) -> String {
    let output = replicate(store, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn size(png: &Path) -> (u32, u32) {
    let file = std::io::BufReader::new(std::fs::File::open(png).unwrap());
    png::Decoder::new(file).read_info().unwrap().info().size()
}

#[test]
fn a_report_of_nothing_says_what_to_run_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, output) = (dir.path().join("store"), dir.path().join("out"));
    for command in ["report", "figures"] {
        let ended = replicate(&store, &[command, "--output", output.to_str().unwrap()]);
        assert_eq!(ended.status.code(), Some(5), "{}", String::from_utf8_lossy(&ended.stderr));
        let said = String::from_utf8(ended.stdout).unwrap();
        for row in ["edm", "diff-instruct", "dijs", "init-none", "init-90"] {
            let run = format!("replicate run {row} --scale smoke --store {} --seed 0", store.display());
            assert!(said.contains(&run), "{command} does not say how to run {row}");
        }
        assert!(said.contains("nothing is written") && said.contains(store.to_str().unwrap()), "{said}");
        assert!(!output.exists() && !store.exists());
    }
}

#[test]
fn a_report_shows_what_ran_and_names_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (store, output) = (dir.path().join("store"), dir.path().join("out"));
    let run = replicate(&store, &["run", "init-none", "dijs", "--watch", "lines"]);
    assert!(run.status.success());
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(told.contains("init-none-s0-weights: after") && told.contains("are collapsed"), "{told}");
    let said = succeed(&store, &["report", "--output", output.to_str().unwrap()]);
    assert!(said.contains("row edm") && !said.contains("row dijs"), "{said}");
    for name in ["index.html", "report.md"] {
        let text = std::fs::read_to_string(output.join(name)).unwrap();
        let edm = format!("replicate run edm --scale smoke --store {} --seed 0", store.display());
        assert!(text.contains(&edm), "{name}");
    }
    let table = std::fs::read_to_string(output.join("table2.csv")).unwrap();
    assert!(
        table.lines().nth(1).unwrap().ends_with(",smoke,0") && table.contains(",not run,6.20,smoke,"),
        "{table}"
    );

    let html = std::fs::read_to_string(output.join("index.html")).unwrap();
    // Real images and two rows; figures 1a, 1c, 2, 4, 5 and two strips; single-level
    // initialisation is not run.
    assert_eq!(html.matches("data:image/png;base64,").count(), 3 + 7);
    assert!(html.contains(&format!("replicate run dijs --scale smoke --store {} --seed 0", store.display())));
    assert_eq!(html.matches("a handful of steps says nothing").count(), 1, "said once of all claims");
    let figures = output.join("figures");
    let side = 10 * (16 * 4 + 1) + 1;
    for name in ["figure2", "figure4", "figure5"] {
        assert_eq!(size(&figures.join(format!("{name}.png"))), (side, side), "{name}");
    }
    // 13 moments of 20 latents.
    assert_eq!(size(&figures.join("strip-init-none.png")), (20 * 33 + 1, 13 * 33 + 1));
    assert!(!figures.join("figure3.png").exists());
    let captions = std::fs::read_to_string(figures.join("captions.md")).unwrap();
    // A handful of steps is no collapse, though the criterion is met.
    assert!(captions.contains("covers least, No initialization (recall"), "{captions}");
    assert!(
        captions.contains("which has not learned") && !captions.contains("Collapsed samples"),
        "{captions}"
    );

    let results = std::fs::read_to_string(output.join("results.csv")).unwrap();
    for metric in
        ["init-none,smoke,0,map_distance_start,", "init-none,smoke,0,map_distance_end,", "dijs,smoke,0,fd,"]
    {
        assert!(results.contains(metric), "no {metric} in {results}");
    }
    assert!(!results.contains("dijs,smoke,0,map_distance"), "dijs is what the others are compared with");

    let alone = dir.path().join("figures");
    succeed(&store, &["figures", "--output", alone.to_str().unwrap()]);
    for entry in std::fs::read_dir(&alone).unwrap() {
        let name = entry.unwrap().file_name();
        let (a, b) = (std::fs::read(alone.join(&name)).unwrap(), std::fs::read(figures.join(&name)).unwrap());
        assert!(a == b, "{}", name.display());
    }

    // What an earlier report listed and this one has not goes, and nothing else.
    for name in ["figure3.png", "strip-dirm.png", "figure.png", "notes.txt"] {
        std::fs::write(alone.join(name), "").unwrap();
    }
    std::fs::write(alone.join("captions.md"), "- `figure3.png`: an earlier one\n").unwrap();
    succeed(&store, &["figures", "--output", alone.to_str().unwrap()]);
    assert!(!alone.join("figure3.png").exists() && alone.join("strip-dirm.png").exists());
    assert!(alone.join("figure2.png").exists() && alone.join("strip-dijs.png").exists());
    assert!(alone.join("figure.png").exists() && alone.join("notes.txt").exists());
    let another = dir.path().join("another");
    std::fs::create_dir(&another).unwrap();
    std::fs::write(another.join("figure3.png"), "of somebody else").unwrap();
    succeed(&store, &["figures", "--output", another.to_str().unwrap()]);
    assert!(another.join("figure3.png").exists(), "no report was there before");
}
