//! Every setting is written once, and what can be typed is what it says.

use replicate::experiment::{Recipe, Scale, all_rows};
use replicate::method::sampler::edm::HeunSettings;
use replicate::settings::{FIXED, Overrides, Settings, Value};
use std::collections::BTreeSet;

/// What each setting lists at a scale, the methods' own too.
fn values(recipe: &Recipe) -> Vec<(&'static str, String)> {
    let own = all_rows().flat_map(|row| replicate::experiment::recipe::own(&row, &recipe.overrides));
    let all = recipe.shared().into_iter().chain(own).map(|setting| (setting.field.name, setting.value));
    // Rows of one method share its settings.
    let mut seen = BTreeSet::new();
    all.filter(|setting| seen.insert(setting.clone())).collect()
}

#[test]
fn names_are_of_one_setting_and_sentences_are_sentences() {
    let mut names = BTreeSet::new();
    for field in Recipe::fields() {
        assert!(names.insert(field.name.to_lowercase()), "{} twice", field.name);
        let says = field.says.trim();
        assert!(says.ends_with('.') && says.starts_with(|c: char| c.is_ascii_uppercase()), "{says}");
    }
    assert!(names.len() > 40, "{names:?}");
}

#[test]
fn presets_are_in_range_and_texts_are_read_back() {
    for scale in Scale::ALL.into_iter().chain([Scale::Tiny]) {
        let recipe = Recipe::of(scale);
        let fields = Recipe::fields();
        for (name, value) in values(&recipe) {
            let field = fields.iter().find(|field| field.name == name).unwrap();
            let unused = value == "0" && name == "images_per_class";
            // The drill takes fewer than anybody else.
            if (field.expected)() != "fixed by the scale" && !unused && scale != Scale::Drill {
                assert_eq!((field.canonical)(&value).as_deref(), Some(&*value), "{name} at {scale}");
            }
        }
    }
}

#[test]
fn one_value_has_one_text() {
    for (given, text) in
        [("0.0010", "0.001"), ("1e-5", "1e-5"), ("0.00001", "1e-5"), ("2.50", "2.5"), ("0", "0")]
    {
        assert_eq!(f64::read(given, &(0.0..=10.0)).unwrap().text(), text);
    }
    assert_eq!(f64::read("nan", &(0.0..=1.0)), None);
    assert_eq!(f64::read("-0.1", &(0.0..=1.0)), None);
    assert_eq!(usize::read("16", &FIXED), None);
    assert_eq!(Vec::<usize>::read("1-2-2", &(1..=4)), Some(vec![1, 2, 2]));
    for wrong in ["", "1-", "1,2", "5", "-1"] {
        assert_eq!(Vec::<usize>::read(wrong, &(1..=4)), None, "{wrong}");
    }
}

/// Whatever can be set is set, and nothing else is.
#[test]
fn a_change_is_of_one_setting() {
    let mini = Recipe::of(Scale::Mini);
    let before = values(&mini);
    for field in Recipe::fields() {
        let candidates = ["1", "2", "7", "0.5", "33", "1-1", "2-1", "constant", "cosine", "log-snr"];
        let preset = &before.iter().find(|(name, _)| *name == field.name).unwrap().1;
        let changed =
            candidates.iter().find(|text| (field.canonical)(text).is_some_and(|text| text != *preset));
        let Some(text) = changed else {
            assert_eq!((field.expected)(), "fixed by the scale", "{}", field.name);
            continue;
        };
        let mut recipe = mini.clone();
        recipe.set(&format!("{}={text}", field.name)).unwrap();
        let after = values(&recipe);
        let different: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
        assert_eq!(different, [&(field.name, text.to_string())]);
        assert_eq!(recipe.changes(), [format!("{}={text}", field.name)]);
        // What it is already is no change.
        let mut same = mini.clone();
        same.set(&format!("{}={preset}", field.name)).unwrap();
        assert_eq!(same, mini);
    }
}

#[test]
fn a_method_reads_its_own_settings() {
    let mut recipe = Recipe::of(Scale::Mini);
    assert_eq!(HeunSettings::with(&recipe.overrides).steps, 18);
    recipe.set("HEUN_steps=9").unwrap();
    assert_eq!(HeunSettings::with(&recipe.overrides).steps, 9);
    let edm = all_rows().find(|row| row.id == "edm").unwrap();
    let setup_has = recipe.setup(&candle_core::Device::Cpu, &edm, None, "test").own::<HeunSettings>();
    assert_eq!(setup_has.steps, 9);
    assert_eq!((edm.method.nfe)(&recipe.overrides), 17);
    assert_eq!((edm.method.nfe)(&Overrides::none(Scale::Mini)), 35);
}

#[test]
fn a_wrong_change_says_what_is_right() {
    for (change, expected) in [
        ("sigma_init", "expected NAME=VALUE"),
        ("sigma_int=2", "unknown setting 'sigma_int': did you mean 'sigma_init'?"),
        ("sigma_init=0", "sigma_init is a number from 0.001 to 1000"),
        ("sigma_init=two", "sigma_init is a number from 0.001 to 1000"),
        ("batch=1.5", "batch is a whole number from 1 to 65536"),
        ("teacher_schedule=linear", "teacher_schedule is constant or cosine"),
        ("size=32", "size is fixed by the scale"),
        ("channel_mult=1,2", "channel_mult is whole numbers from 1 to 16 such as 1-2-2"),
    ] {
        let error = Recipe::of(Scale::Mini).set(change).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot set '{change}': ")) && error.contains(expected), "{error}");
    }
}
