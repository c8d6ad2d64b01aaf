//! `report` and `figures` on real stores: a whole pair of rows, and nothing.

use replicate::store::{Manifest, Store, sha256_hex};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn replicate(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command
        .args(arguments)
        .args(["--scale", "smoke", "--store"])
        .arg(store)
        .env_remove("CI")
        .env("RAYON_NUM_THREADS", "2");
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
    assert_eq!(html.matches("this scale takes too few steps").count(), 1, "said once of all claims");
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
    for metric in [
        "init-none,,smoke,0,map_distance_start,",
        "init-none,,smoke,0,map_distance_end,",
        "dijs,,smoke,0,fd,",
    ] {
        assert!(results.contains(metric), "no {metric} in {results}");
    }
    assert!(!results.contains("dijs,,smoke,0,map_distance"), "dijs is what the others are compared with");

    conforms_to_its_schema(&std::fs::read_to_string(output.join("results.json")).unwrap());
    assert_eq!(
        succeed(&store, &["report", "--format", "json"]),
        std::fs::read_to_string(output.join("results.json")).unwrap()
    );
    for wrong in [&["report", "table1", "--format", "json"][..], &["report", "--format", "csv"]] {
        assert_eq!(replicate(&store, wrong).status.code(), Some(2));
    }

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

    // An edit of the metrics leaves results that are compared by intervals, the distance of maps too.
    rewrite_experiments(&store, "code measure = ", "code measure = 0");
    let checked = String::from_utf8(replicate(&store, &["check", "init-none"]).stdout).unwrap();
    for metric in ["fd", "map_distance_start", "map_distance_end"] {
        let line = checked.lines().find(|line| line.split_whitespace().any(|word| word == metric));
        assert!(line.is_some_and(|line| line.contains(", code ")), "{metric}: {checked}");
    }
    assert!(!checked.contains("not run"), "{checked}");
}

/// A result of other code is compared by intervals and never becomes golden; a result of another
/// experiment counts for nothing.
#[test]
fn other_code_is_told_from_another_experiment() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    succeed(&store, &["run", "dijs"]);
    let ended = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = replicate(&store, arguments);
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    };
    let check = || ended(&["check", "dijs"]);
    let accept = || ended(&["accept", "dijs", "--reason", "a test"]);
    let (code, said) = check();
    assert!(code == Some(0) && said.contains("same numbers") && !said.contains(", code "), "{said}");

    rewrite_experiments(&store, "code measure = ", "code measure = 0");
    let (code, said) = check();
    assert!(code == Some(0) && said.contains(", code ") && !said.contains("same numbers"), "{said}");
    let (code, said) = accept();
    assert!(code == Some(2) && said.contains("this program's code did not make it"), "{said}");

    rewrite_experiments(&store, "\nsamples = ", "\nsamples = 1");
    let (code, said) = check();
    assert!(code == Some(5) && said.contains("not run") && !said.contains(", code "), "{said}");
    let (code, said) = accept();
    assert!(code == Some(2) && said.contains("there is nothing to accept"), "{said}");
}

/// Replaces `from` in the text of every experiment that has it, and gives the entry its new key.
fn rewrite_experiments(store: &Path, from: &str, to: &str) {
    let entries = Store::open(store).unwrap().finished_entries().unwrap();
    assert!(entries.iter().any(|(_, manifest)| manifest.experiment.contains(from)), "no {from}");
    for (entry, manifest) in entries {
        let experiment = manifest.experiment.replace(from, to);
        if experiment == manifest.experiment {
            continue;
        }
        let key = sha256_hex(experiment.as_bytes());
        let mut other = Manifest { experiment, key, manifest_sha256: String::new(), ..manifest };
        let text = |manifest: &Manifest| serde_json::to_string_pretty(manifest).unwrap() + "\n";
        other.manifest_sha256 = sha256_hex(text(&other).as_bytes());
        std::fs::write(entry.path("manifest.json"), text(&other)).unwrap();
        std::fs::write(entry.path("experiment.txt"), &other.experiment).unwrap();
        std::fs::rename(entry.dir(), store.join(format!("{}-{}", &other.key[..12], entry.label()))).unwrap();
    }
}

/// As much of JSON Schema as paper/results.schema.json uses.
fn conforms(value: &Value, schema: &Value, at: &str) {
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" => {}
            "const" => assert_eq!(value, rule, "{at}"),
            "enum" => assert!(rule.as_array().unwrap().contains(value), "{at}: {value}"),
            "type" => {
                let known = |name: &Value| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "null" => value.is_null(),
                    other => panic!("{other}"),
                };
                let names = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                assert!(names.iter().any(known), "{at} is no {rule}: {value}");
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{at} has no {name}");
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(inner) = value.get(name) {
                        conforms(inner, rule, &format!("{at}.{name}"));
                    }
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, inner) in value.as_object().unwrap() {
                    match (known.is_some_and(|known| known.contains_key(name)), rule) {
                        (true, _) => {}
                        (false, Value::Bool(false)) => panic!("{at} has {name}"),
                        (false, rule) => conforms(inner, rule, &format!("{at}.{name}")),
                    }
                }
            }
            "items" => {
                let items = value.as_array().unwrap().iter().enumerate();
                items.for_each(|(i, inner)| conforms(inner, rule, &format!("{at}[{i}]")));
            }
            other => panic!("the test does not know {other}"),
        }
    }
}

fn conforms_to_its_schema(json: &str) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("paper/results.schema.json");
    let schema = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    let results: Value = serde_json::from_str(json).unwrap();
    conforms(&results, &schema, "results");
    let of_dijs = &results["results"].as_array().unwrap().iter().find(|run| run["row"] == "dijs").unwrap();
    assert!(of_dijs["metrics"]["fd"].as_f64().unwrap() > 0.0, "{of_dijs}");
    let machine = of_dijs["machine"].as_str().unwrap();
    assert!(machine.contains("rustc 1.") && machine.contains(", 2 threads, "), "{machine}");
    assert!(results["claims"].as_array().unwrap().len() > 20);
}

/// What the report says is missing is made, in that very store, by what it prints.
#[test]
fn printed_commands_can_be_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("some store's");
    let missing = |said: &str| -> Vec<String> {
        let commands =
            said.lines().filter_map(|line| Some(line.split_once("; run it with: ")?.1.to_string()));
        commands.collect()
    };
    let nothing = replicate(&store, &["report"]);
    let commands = missing(&String::from_utf8(nothing.stdout).unwrap());
    let programs = Path::new(env!("CARGO_BIN_EXE_replicate")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for row in ["edm", "init-single"] {
        let command = commands.iter().find(|command| command.contains(&format!("run {row} "))).unwrap();
        let output = Command::new("sh").args(["-c", command]).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = dir.path().join("out");
    let left = missing(&succeed(&store, &["report", "--output", output.to_str().unwrap()]));
    assert_eq!(left.len(), commands.len() - 2, "{left:?}");
    assert!(!left.iter().any(|command| command.contains("run edm ") || command.contains("run init-single ")));
}
