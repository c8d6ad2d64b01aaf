//! `--explain` for every row at every scale: what it prints is what would run, every
//! place is where it says, and paper/setup.csv and the settings agree.

use replicate::experiment::{FULL_INITIALIZATION, Recipe, Row, Scale, all_rows, plan};
use replicate::judge::paper::{self, Setting};
use replicate::measure::evaluate::TARGETS;
use replicate::measure::metrics::modes::{COLLAPSED_CLASSES, COLLAPSED_RECALL};
use replicate::method::one_step::OneStep;
use replicate::report::explain::{full, short};
use replicate::settings::Settings;
use replicate::text::thousands;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn setup() -> Vec<Setting> {
    paper::setup(&root().join("paper")).unwrap()
}

fn row(id: &str) -> Row {
    all_rows().find(|row| row.id == id).unwrap_or_else(|| panic!("no row {id}"))
}

fn explained(id: &str, recipe: &Recipe) -> String {
    full(&row(id), recipe, &setup(), &root())
}

/// Every row at every scale.
fn all() -> impl Iterator<Item = (Row, Recipe, String)> {
    let lines = setup();
    all_rows().flat_map(|row| Scale::ALL.map(|scale| (row, Recipe::of(scale)))).map(move |(row, recipe)| {
        let text = full(&row, &recipe, &lines, &root());
        (row, recipe, text)
    })
}

/// (path, line number, what follows on the line) of every place in a text.
fn places(text: &str) -> Vec<(&str, usize, &str)> {
    let place = |at: usize| -> Option<(&str, usize, &str)> {
        let (path, after) = text[at..].split_once(".rs:")?;
        if path.contains(char::is_whitespace) {
            return None;
        }
        let digits = after.find(|c: char| !c.is_ascii_digit())?;
        let line = after[digits..].lines().next()?;
        Some((&text[at..at + path.len() + 3], after[..digits].parse().ok()?, line.trim()))
    };
    text.match_indices("replicate/").filter_map(|(at, _)| place(at)).collect()
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
fn both_forms_read_well() {
    let mini = Recipe::of(Scale::Mini);
    let brief = short(&row("dijs"), &mini, &setup());
    assert!(brief.lines().count() <= 20, "{brief}");
    insta::with_settings!({
        snapshot_path => "../golden",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!("explain-dijs-short", brief);
        insta::assert_snapshot!("explain-dijs", without_lines(&explained("dijs", &mini)));
    });
}

#[test]
fn every_page_fits_a_terminal_and_knows_every_setting() {
    let lines = setup();
    for (row, recipe, text) in all() {
        let name = format!("{} at {}", row.id, recipe.scale);
        for line in text.lines().chain(short(&row, &recipe, &lines).lines()) {
            assert!(line.chars().count() <= 100, "{name}: {line}");
            assert_eq!(line, line.trim_end(), "{name}");
        }
        assert!(!text.contains("is not in setup.csv"), "{name}: {text}");
        assert!(text.starts_with(&format!("Row {} at scale {}: ", row.id, recipe.scale)), "{text}");
    }
}

/// Rows that see more images than others, or cost more than three times what DiJS does.
#[test]
fn a_long_or_costly_training_says_so() {
    for (row, recipe, text) in all() {
        let name = format!("{} at {}", row.id, recipe.scale);
        let head = text.split("\n\n").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let trained = row.method.training.is_some();
        let other = trained && recipe.images_of(&row) != recipe.budget.images;
        assert_eq!(head.contains("images in all"), other, "{name}: {head}");
        let flop = |row: &Row| plan::row(&recipe, row).flop;
        let costly = trained && flop(&row) > 3.0 * flop(&FULL_INITIALIZATION);
        assert_eq!(head.contains(" costs "), costly, "{name}: {head}");
    }
    let words =
        |id: &str| explained(id, &Recipe::of(Scale::Mini)).split_whitespace().collect::<Vec<_>>().join(" ");
    let bcm = words("bcm");
    assert!(
        bcm.contains("4,600 iterations of 64 images: 294,400 images in all, where other rows see 38,400")
    );
    assert!(bcm.contains("times the operations of dijs: 7.7 times the iterations, each with 1."), "{bcm}");
    let ctm = words("ctm");
    assert!(ctm.contains("dijs: as many iterations, each with ") && ctm.contains("% of them in the teacher"));
}

#[test]
fn every_place_is_where_it_says() {
    for (row, _, text) in all() {
        assert!(text.contains(row.method.file), "{text}");
        for (path, number, rest) in places(&text) {
            let file = std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            let line = file.lines().nth(number - 1).unwrap_or_else(|| panic!("{path} has no line {number}"));
            assert!(!rest.is_empty() && line.contains(rest), "{path}:{number} {line}");
        }
    }
    assert_eq!(places(&explained("dijs", &Recipe::of(Scale::Mini))).len(), 3, "Algorithm 2");
}

#[test]
fn each_row_has_its_own_equation() {
    let recipe = Recipe::of(Scale::Mini);
    for (id, equations) in [
        ("edm", &["Karras et al. 2022, Algorithm 1", "Heun"][..]),
        ("diff-instruct", &["Algorithm 1, Eq 5", "Line 4", "Eq 4", "Eq 5"]),
        ("dikl", &["Algorithm 2, Eq 8", "Line 4", "(Eq 6, 7)"]),
        ("dijs", &["Algorithm 2, Eq 9", "Line 4", "(Eq 6, 7)"]),
        ("dirm", &["Algorithm 2, Eq 10", "Line 4", "(Eq 6, 7)"]),
        ("init-none", &["Algorithm 2, Eq 9", "Line 4"]),
    ] {
        let text = explained(id, &recipe);
        // They stand above the settings.
        let above = text.split("\nSETTINGS").next().unwrap();
        for equation in equations {
            assert!(above.contains(equation), "{id} lacks {equation}: {above}");
        }
        let first = text.lines().next().unwrap();
        let other = ["Eq 5)", "Eq 8)", "Eq 9)", "Eq 10)"]
            .iter()
            .filter(|e| !equations[0].ends_with(&e[..e.len() - 1]));
        other.for_each(|e| assert!(!first.contains(*e), "{id} has {e}: {first}"));
    }
    assert!(!explained("init-none", &recipe).contains("\nPRE-TRAINING"), "nothing is pre-trained");
    assert!(explained("init-single", &recipe).contains("\nSINGLE-LEVEL"));
}

#[test]
fn a_page_shows_every_setting_that_its_row_uses() {
    // Numbers that --set does not change, because files are of that size.
    let mut recipes: Vec<(String, Recipe)> = Vec::new();
    let fixed: [(&str, fn(&mut Recipe)); 4] = [
        ("size", |r| r.network.size *= 2),
        ("image_channels", |r| r.network.image_channels += 1),
        ("augment_labels", |r| r.network.augment_labels += 1),
        ("classifier_size", |r| r.classifier.size += 1),
    ];
    let mini = Recipe::of(Scale::Mini);
    for (name, change) in fixed {
        let mut recipe = mini.clone();
        change(&mut recipe);
        recipes.push((name.to_string(), recipe));
    }
    for field in
        Recipe::fields().into_iter().filter(|field| !fixed.iter().any(|(name, _)| *name == field.name))
    {
        let mut recipe = mini.clone();
        // The mini networks are told nothing about augmentation.
        recipe.network.augment_labels = if field.name.ends_with("augment_p") { 9 } else { 0 };
        let words = (field.expected)();
        let mut candidates = words.split(" or ").chain(["33", "7", "1", "0.5", "1-1"]);
        let changed = candidates.any(|text| {
            recipe.set(&format!("{}={text}", field.name)).is_ok() && !recipe.changes().is_empty()
        });
        assert!(changed, "{}", field.name);
        recipe.network.augment_labels = 0;
        recipes.push((field.name.to_string(), recipe));
    }
    for id in ["edm", "diff-instruct", "dijs", "init-none", "init-single", "init-50"] {
        let used = |name: &str| match name {
            "teacher_p_mean" | "teacher_p_std" => !["init-none", "init-single"].contains(&id),
            "images" | "batch" | "quick_samples" => id != "edm",
            "images_per_class" | "ticks" => true,
            _ if name.starts_with("teacher_") => id != "init-none",
            _ if mini.shared().iter().all(|s| s.field.name != name)
                && OneStep::fields().iter().all(|f| f.name != name) =>
            {
                id == "edm" && name == "heun_steps"
            }
            _ if OneStep::fields().iter().any(|field| field.name == name) => id != "edm",
            _ => true,
        };
        let settings =
            |recipe: &Recipe| explained(id, recipe).split_once("\nSETTINGS").unwrap().1.to_string();
        let before = settings(&mini);
        for (name, recipe) in &recipes {
            assert_eq!(settings(recipe) != before, used(name), "{name} of {id}");
        }
    }
}

/// The cells of the table's row `name`: value here, value at the paper scale.
fn cells(text: &str, name: &str) -> Vec<String> {
    let begins = |line: &&str| line.strip_prefix("  ").is_some_and(|line| line.starts_with(name));
    let line = text.lines().find(begins).unwrap_or_else(|| panic!("no {name} in {text}"));
    let cells = line[2 + name.len()..].split("  ").map(str::trim).filter(|cell| !cell.is_empty());
    cells.map(str::to_string).collect()
}

#[test]
fn values_stand_beside_those_of_the_paper_scale() {
    let mini = explained("dijs", &Recipe::of(Scale::Mini));
    assert_eq!(cells(&mini, "generator_lr"), ["5e-5", "1e-5"]);
    assert_eq!(cells(&mini, "critic_lr"), ["0.001", "1e-5"]);
    assert_eq!(cells(&mini, "sigma_init"), ["2.5"]);
    assert_eq!(cells(&mini, "teacher_batch"), ["64 images", "512 images"]);
    assert_eq!(cells(&mini, "samples  "), ["2,000 images", "50,000 images"]);
    assert_eq!(cells(&mini, "augment_p"), ["0", "0.12"]);
    assert!(
        mini.contains("[ambiguous] learning_rate, Appendix B: \"a learning rate of 0.00001\"."),
        "{mini}"
    );
    let paper = explained("dijs", &Recipe::of(Scale::Paper));
    assert_eq!(cells(&paper, "generator_lr"), ["1e-5"]);
    assert_eq!(cells(&paper, "generator checkpoint"), ["edm-cifar10-32x32-uncond-vp.pkl"]);
    assert_eq!(cells(&paper, "augment_p"), ["0.12"]);
    assert!(cells(&paper, "augmentation place")[0].starts_with("critic step only"), "{paper}");
    assert!(!paper.contains("teacher_lr"), "{paper}");
    // Table 2's own teachers are trained at the paper scale too.
    let single = explained("init-single", &Recipe::of(Scale::Paper));
    assert_eq!(cells(&single, "teacher_lr"), ["0.001"]);
}

#[test]
fn what_was_changed_by_hand_is_said() {
    let mut recipe = Recipe::of(Scale::Mini);
    assert!(!explained("dikl", &recipe).contains("verrid"));
    recipe.set("generator_lr=7e-5").unwrap();
    recipe.set("beta2=0.9").unwrap();
    for text in [explained("dikl", &recipe), short(&row("dikl"), &recipe, &setup())] {
        assert!(
            text.contains("Overridden, so this is not the paper's row: generator_lr=7e-5, beta2=0.9."),
            "{text}"
        );
    }
    let text = explained("dikl", &recipe);
    assert_eq!(cells(&text, "generator_lr"), ["7e-5 (override; preset 5e-5)", "1e-5"]);
    // What the paper is silent about is in the short form where it was changed.
    assert_eq!(cells(&short(&row("dikl"), &recipe, &setup()), "beta2"), ["0.9", "0.999", "silent"]);
    assert!(!short(&row("dikl"), &Recipe::of(Scale::Mini), &setup()).contains("beta2"));
}

#[test]
fn every_line_of_setup_csv_is_explained_somewhere() {
    let pages: Vec<String> = all().map(|(_, _, text)| text).collect();
    for line in setup() {
        let source = format!("] {}", line.name);
        let named = |page: &String| {
            let flat = page.split_whitespace().collect::<Vec<_>>().join(" ");
            flat.match_indices(&source).any(|(at, _)| flat[at + source.len()..].starts_with([',', ':', '.']))
        };
        assert!(pages.iter().any(named), "{}", line.name);
    }
}

#[test]
fn open_choices_are_those_of_the_row() {
    let open = |id: &str| {
        let text = explained(id, &Recipe::of(Scale::Mini));
        let (_, after) = text.split_once("WHAT THE PAPER LEAVES OPEN").unwrap();
        after.split_whitespace().collect::<Vec<_>>().join(" ")
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
    let lines = setup();
    let collapse = lines.iter().find(|line| line.name == "collapse").unwrap();
    let classes = COLLAPSED_CLASSES * TARGETS as f64;
    let expected = format!("recall < {COLLAPSED_RECALL:.2} and effective classes < {classes} ");
    assert!(collapse.value.starts_with(&expected), "{} is not {expected}", collapse.value);
}

#[test]
fn a_setting_that_the_file_lacks_is_named() {
    let text = full(&row("dijs"), &Recipe::of(Scale::Mini), &[], &root());
    assert!(text.contains("critic_lr is not in setup.csv."), "{text}");
}

/// The forms in which a file for people may have a value.
fn forms(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_string()];
    if let Ok(number) = text.parse::<f64>() {
        forms.extend([format!("{number:e}"), format!("{} Mimg", number / 1e6)]);
    }
    forms.extend(text.parse::<u64>().ok().map(thousands));
    forms
}

/// Whether `text` has one of the forms of `value` as a word.
fn says(text: &str, value: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '.' || c == '-';
    let word = |form: &String| {
        text.match_indices(form).any(|(at, _)| {
            let after = text[at + form.len()..].trim_start_matches(['.', ',']);
            !text[..at].ends_with(inside)
                && !(after.len() == text.len() - at - form.len() && after.starts_with(inside))
        })
    };
    forms(value).iter().any(word)
}

#[test]
fn setup_csv_and_the_settings_agree() {
    let lines = setup();
    let presets = Recipe::of(Scale::Paper);
    let own = all_rows().flat_map(|row| presets.method_settings(&row));
    let settings: Vec<_> = presets.shared().into_iter().chain(own).collect();
    for setting in &settings {
        let name = setting.field.name;
        let about: Vec<&Setting> =
            lines.iter().filter(|line| line.fields.iter().any(|f| f == name)).collect();
        assert_eq!(
            about.is_empty(),
            setting.field.origin.is_some(),
            "{name}: one source, here or in setup.csv"
        );
        for line in about {
            assert!(
                says(&line.value, &setting.value),
                "{}: {} does not say {name} {}",
                line.name,
                line.value,
                setting.value
            );
        }
        assert!(setting.field.origin.is_none_or(|(_, why)| !why.is_empty()), "{name}: no source");
    }
    for name in lines.iter().flat_map(|line| &line.fields) {
        assert!(settings.iter().any(|setting| setting.field.name == name), "{name} is no setting");
    }
}

/// The paper prints one rate; where we have two, the file says so.
#[test]
fn a_departure_from_one_rate_is_said() {
    let lines = setup();
    let reading = &lines.iter().find(|line| line.name == "learning_rate").unwrap().reading;
    for scale in Scale::ALL.into_iter().chain([Scale::Tiny]) {
        let s = Recipe::of(scale).one_step;
        let named = reading.contains("Scales mini and tiny depart from it")
            && [Scale::Mini, Scale::Tiny].contains(&scale)
            && reading.contains(&format!("generator {:e} and critic {:e}", s.generator_lr, s.critic_lr));
        assert!(s.generator_lr == s.critic_lr || named, "{scale}: {reading}");
    }
}

/// A row without the penalty, or with another form of it, says nothing of the exact one.
#[test]
fn an_overridden_penalty_is_not_explained() {
    let paper = Recipe::of(Scale::Paper);
    for (id, gamma, exact) in
        [("diff-gan", true, true), ("diff-gan-no-r1", false, false), ("diff-gan-near-r1", true, false)]
    {
        let text = explained(id, &paper);
        let settings = text.split("\nSETTINGS").nth(1).unwrap();
        assert_eq!(settings.contains("gan_gamma"), gamma, "{id}");
        assert_eq!(settings.contains("The penalty is exact"), exact, "{id}");
    }
}
