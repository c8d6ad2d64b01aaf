//! `explain` for every cell at every scale: what it prints is what would run, and
//! every place is where it says.

use replicate::experiment::{Cell, Recipe, Scale, cells};
use replicate::judge::paper::{self, Setting};
use replicate::measure::evaluate::TARGETS;
use replicate::measure::metrics::modes::{COLLAPSED_CLASSES, COLLAPSED_RECALL};
use replicate::report::explain::explain;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn setup() -> Vec<Setting> {
    paper::setup(&root().join("paper")).unwrap()
}

fn cell(row: &str) -> Cell {
    cells().find(|cell| cell.row == row).unwrap_or_else(|| panic!("no cell {row}"))
}

fn explained(row: &str, recipe: &Recipe) -> String {
    explain(&cell(row), recipe, &setup())
}

/// Every cell at every scale.
fn all() -> impl Iterator<Item = (Cell, Recipe, String)> {
    let settings = setup();
    cells().flat_map(|cell| Scale::ALL.map(|scale| (cell, Recipe::of(scale)))).map(move |(cell, recipe)| {
        let text = explain(&cell, &recipe, &settings);
        (cell, recipe, text)
    })
}

/// (path, line number, what follows on the line) of every place in a text.
fn places(text: &str) -> Vec<(&str, usize, &str)> {
    let starts = text.match_indices("replicate/").map(|(at, _)| &text[at..]);
    let place = |rest| -> Option<(&str, usize, &str)> {
        let rest: &str = rest;
        let (path, after) = rest.split_once(".rs:")?;
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let line = after[digits..].lines().next().unwrap_or("");
        Some((&rest[..path.len() + 3], after[..digits].parse().ok()?, line))
    };
    starts.filter_map(place).collect()
}

/// A snapshot of every line number would have to be accepted after every edit.
fn without_lines(text: &str) -> String {
    let mut parts = text.split(".rs:");
    let mut out = parts.next().unwrap().to_string();
    for part in parts {
        out += ".rs:LINE";
        out += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out
}

#[test]
fn a_whole_page_reads_well() {
    insta::with_settings!({
        snapshot_path => "../golden",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!("explain-dijs", without_lines(&explained("dijs", &Recipe::of(Scale::Mini)))) });
}

#[test]
fn every_page_fits_a_terminal_and_knows_every_setting() {
    for (cell, recipe, text) in all() {
        let name = format!("{} at {}", cell.row, recipe.scale);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{name}: {line}");
            assert_eq!(line, line.trim_end(), "{name}");
        }
        assert!(!text.contains("is not in setup.csv"), "{name}: {text}");
        assert!(!text.contains("is no longer there"), "{name}: {text}");
        assert!(text.starts_with(&format!("Cell {} at scale {}: ", cell.row, recipe.scale)), "{text}");
    }
}

#[test]
fn every_place_is_where_it_says() {
    for (cell, recipe, text) in all() {
        let found = places(&text);
        assert!(found.len() >= 4, "{} at {}: {found:?}", cell.row, recipe.scale);
        for (path, number, rest) in found {
            let file = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            let line = file.lines().nth(number - 1).unwrap_or_else(|| panic!("{path} has no line {number}"));
            // In a sentence the place stands alone; elsewhere the line follows it, as far as it fits.
            match rest.strip_prefix("  ") {
                Some(code) => {
                    assert!(
                        !code.trim().is_empty() && line.trim().starts_with(code.trim()),
                        "{path}:{number}"
                    )
                }
                None => assert!(
                    ["pub enum Divergence", "pub fn phi(", "pub const TABLE1"]
                        .iter()
                        .any(|c| line.contains(c)),
                    "{path}:{number} {line}"
                ),
            }
        }
    }
}

#[test]
fn each_row_has_its_own_equation() {
    let recipe = Recipe::of(Scale::Mini);
    for (row, equations, code) in [
        ("edm", &["Eq 3", "Heun"][..], "pub fn heun("),
        ("diff-instruct", &["Eq 3", "Eq 4", "Eq 5"], "pub fn vsd("),
        ("dikl", &["Eq 3", "Eq 6, 7", "Eq 8", "-l"], "Divergence::DiKl =>"),
        ("dijs", &["Eq 3", "Eq 6, 7", "Eq 9", "-softplus(l)"], "Divergence::DiJs =>"),
        ("dirm", &["Eq 3", "Eq 6, 7", "Eq 10", "softplus(-l)"], "Divergence::DiRm =>"),
        ("init-none", &["Eq 6, 7", "Eq 9"], "Divergence::DiJs =>"),
    ] {
        let text = explained(row, &recipe);
        // The equations stand above the table.
        let above = text.split("HYPER-PARAMETERS").next().unwrap();
        for equation in equations.iter().chain([&code]) {
            assert!(above.contains(equation), "{row} lacks {equation}: {above}");
        }
        let other = ["Eq 5", "Eq 8", "Eq 9", "Eq 10"].iter().filter(|e| !equations.contains(e));
        other.for_each(|e| assert!(!above.contains(*e), "{row} has {e}: {above}"));
    }
    assert!(!explained("init-none", &recipe).contains("Eq 3"), "nothing is pre-trained");
}

#[test]
fn a_page_shows_every_field_that_its_cell_uses() {
    type Change = (&'static str, fn(&mut Recipe));
    const NETWORK: [Change; 7] = [
        ("size", |r| r.network.size += 1),
        ("image_channels", |r| r.network.image_channels += 1),
        ("model_channels", |r| r.network.model_channels += 1),
        ("channel_mult", |r| r.network.channel_mult.push(7)),
        ("blocks", |r| r.network.blocks += 1),
        ("attention_sizes", |r| r.network.attention_sizes.push(7)),
        ("augment_labels", |r| r.network.augment_labels += 1),
    ];
    const STAGE1: [Change; 10] = [
        ("pretraining.images", |r| r.pretraining.images += 1),
        ("pretraining.batch", |r| r.pretraining.batch += 1),
        ("pretraining.lr", |r| r.pretraining.lr *= 3.0),
        ("warmup_images", |r| r.pretraining.warmup_images += 1),
        ("cosine", |r| r.pretraining.cosine ^= true),
        ("pretraining.beta1", |r| r.pretraining.adam.beta1 += 0.01),
        ("pretraining.beta2", |r| r.pretraining.adam.beta2 += 0.001),
        ("pretraining.eps", |r| r.pretraining.adam.eps *= 3.0),
        ("pretraining.rectified", |r| r.pretraining.adam.rectified ^= true),
        ("pretraining.ema_half_life", |r| r.pretraining.ema_half_life += 1),
    ];
    const STAGE2: [Change; 12] = [
        ("sigma_init", |r| r.one_step.sigma_init *= 3.0),
        ("levels", |r| r.one_step.levels = replicate::method::noise::Levels::Fixed(7.25)),
        ("generator_lr", |r| r.one_step.generator_lr *= 3.0),
        ("critic_lr", |r| r.one_step.critic_lr *= 3.0),
        ("beta1", |r| r.one_step.adam.beta1 += 0.01),
        ("beta2", |r| r.one_step.adam.beta2 += 0.001),
        ("eps", |r| r.one_step.adam.eps *= 3.0),
        ("rectified", |r| r.one_step.adam.rectified ^= true),
        ("ema_half_life", |r| r.one_step.ema_half_life += 1),
        ("images", |r| r.images += 1),
        ("batch", |r| r.batch += 1),
        ("quick_samples", |r| r.evaluation.quick_samples += 1),
    ];
    const SCORES: [Change; 15] = [
        ("images_per_class", |r| r.images_per_class += 1000),
        ("ticks", |r| r.ticks += 1),
        ("changes", |r| r.changes.push("a=b".to_string())),
        ("samples", |r| r.evaluation.samples += 1),
        ("reference", |r| r.evaluation.reference += 1),
        ("trials", |r| r.evaluation.trials += 1),
        ("neighbourhood", |r| r.evaluation.neighbourhood += 1),
        ("neighbours", |r| r.evaluation.neighbours += 1),
        ("splits", |r| r.evaluation.splits += 1),
        ("classifier.size", |r| r.classifier.size += 1),
        ("classifier.images", |r| r.classifier.images += 1),
        ("classifier.batch", |r| r.classifier.batch += 1),
        ("classifier.lr", |r| r.classifier.lr *= 3.0),
        ("classifier.beta2", |r| r.classifier.adam.beta2 += 0.001),
        ("classifier.eps", |r| r.classifier.adam.eps *= 3.0),
    ];
    let original = Recipe::of(Scale::Mini);
    for row in ["edm", "diff-instruct", "dijs", "init-none", "init-single", "init-50"] {
        let used = |stage: &str| match stage {
            "1" => row != "init-none",
            "2" => row != "edm",
            _ => true,
        };
        let before = explained(row, &original);
        for (stage, changes) in [("", &NETWORK[..]), ("1", &STAGE1), ("2", &STAGE2), ("", &SCORES)] {
            for (field, change) in changes {
                let mut recipe = original.clone();
                change(&mut recipe);
                assert_ne!(recipe, original, "{field}");
                assert_eq!(explained(row, &recipe) != before, used(stage), "{field} of {row}");
            }
        }
    }
    // The levels of a multi-level pre-training; a single-level one has sigma_init.
    let mut recipe = original.clone();
    recipe.pretraining.levels = replicate::method::noise::Levels::LogNormal { mean: -3.0, sd: 1.5 };
    assert!(explained("init-10", &recipe).contains("EDM loss, ln sigma ~ N(-3, 1.5^2)"));
    assert!(explained("init-single", &recipe).contains("EDM loss, sigma = 2.5 only"));
}

/// The lines of the table that begin with `name`: value here, value at the paper scale.
fn row(text: &str, name: &str) -> Vec<String> {
    let begins = |line: &&str| line.strip_prefix("  ").is_some_and(|line| line.starts_with(name));
    let line = text.lines().find(begins).unwrap_or_else(|| panic!("no {name} in {text}"));
    let cells = line[2 + name.len()..].split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    cells.map(str::to_string).collect()
}

#[test]
fn values_stand_beside_those_of_the_paper_scale() {
    let mini = explained("dijs", &Recipe::of(Scale::Mini));
    assert_eq!(row(&mini, "generator learning rate"), ["5e-5", "1e-5"]);
    assert_eq!(row(&mini, "critic learning rate"), ["1e-3", "1e-5"]);
    assert_eq!(row(&mini, "sigma_init"), ["2.5"]);
    assert_eq!(row(&mini, "teacher batch"), ["64", "512"]);
    assert_eq!(row(&mini, "fid samples"), ["2,000", "50,000"]);
    assert_eq!(row(&mini, "augmentation  ")[0], "none");
    assert!(!mini.contains("augmentation place"), "{mini}");
    assert!(
        mini.contains("Changed for this scale. [ambiguous] learning_rate, Appendix B: \"a learning rate of")
    );
    let paper = explained("dijs", &Recipe::of(Scale::Paper));
    assert_eq!(row(&paper, "generator learning rate"), ["1e-5"]);
    assert_eq!(row(&paper, "generator checkpoint"), ["edm-cifar10-32x32-uncond-vp.pkl"]);
    assert!(row(&paper, "augmentation  ")[0].contains("0.12"), "{paper}");
    assert!(row(&paper, "augmentation place")[0].starts_with("critic step only"), "{paper}");
    assert!(!paper.contains("Changed for this scale") && !paper.contains("teacher learning rate"), "{paper}");
    // Table 2's own teachers are trained at the paper scale too.
    let single = explained("init-single", &Recipe::of(Scale::Paper));
    assert_eq!(row(&single, "teacher learning rate"), ["1e-3"]);
}

#[test]
fn what_was_changed_by_hand_is_said() {
    let mut recipe = Recipe::of(Scale::Mini);
    assert!(!explained("dikl", &recipe).contains("by hand"));
    recipe.set("generator_lr=7e-5").unwrap();
    let text = explained("dikl", &recipe);
    assert!(text.contains("Changed by hand, so not the paper's row: generator_lr=7e-5."), "{text}");
    assert!(text.contains("Changed by hand from 5e-5."), "{text}");
    assert_eq!(row(&text, "generator learning rate"), ["7e-5", "1e-5"]);
}

#[test]
fn every_line_of_setup_csv_is_explained_somewhere() {
    // Counted from the networks, or about the machine: nothing that a run is set to.
    let outcomes = ["generator_parameters", "critic_parameters", "hardware"];
    let pages: Vec<String> = all().map(|(_, _, text)| text).collect();
    for setting in setup().iter().filter(|s| !outcomes.contains(&s.name.as_str())) {
        let source = format!("] {}", setting.name);
        let named = |page: &String| {
            let flat = page.split_whitespace().collect::<Vec<_>>().join(" ");
            flat.match_indices(&source).any(|(at, _)| flat[at + source.len()..].starts_with([',', ':', '.']))
        };
        assert!(pages.iter().any(named), "{}", setting.name);
    }
}

#[test]
fn open_choices_are_those_of_the_cell() {
    let open = |row: &str| {
        let text = explained(row, &Recipe::of(Scale::Mini));
        let (_, after) = text.split_once("WHAT THE PAPER LEAVES OPEN").unwrap();
        after.split("TO ADD A DIVERGENCE").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let dijs = open("dijs");
    assert!(dijs.contains("ambiguous (") && dijs.contains("learning_rate") && dijs.contains("critic_head"));
    // Stated, so not open.
    assert!(!dijs.contains("critic_steps") && !dijs.contains(" batch,"), "{dijs}");
    assert!(!dijs.contains("fake_score") && open("diff-instruct").contains("fake_score_initialisation"));
    assert!(open("edm").contains("edm_sampler") && !open("edm").contains("critic"));
    assert!(open("init-none").contains("initialisation_study_loss"));
}

#[test]
fn the_criterion_in_setup_csv_is_that_of_the_code() {
    let settings = setup();
    let collapse = settings.iter().find(|s| s.name == "collapse").unwrap();
    let classes = COLLAPSED_CLASSES * TARGETS as f64;
    let expected = format!("recall < {COLLAPSED_RECALL:.2} and effective classes < {classes} ");
    assert!(collapse.value.starts_with(&expected), "{} is not {expected}", collapse.value);
}

#[test]
fn a_setting_that_the_file_lacks_is_named() {
    let text = explain(&cell("dijs"), &Recipe::of(Scale::Mini), &[]);
    assert!(text.contains("learning_rate is not in setup.csv."), "{text}");
}
