//! Every setting is written once, and what can be typed is what it says.

use candle_core::{Device, Tensor};
use replicate::data::Images;
use replicate::experiment::{Initialization, Recipe, Row, Scale, all_rows};
use replicate::method::sampler::edm::HeunSettings;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Config, Denoiser};
use replicate::rng::Stream;
use replicate::settings::{FIXED, Overrides, Setting, Settings, Value};
use replicate::train::batch::Batches;
use replicate::train::{published, state};
use std::collections::{BTreeMap, BTreeSet};

/// Every setting by name, the methods' own too.
fn values(recipe: &Recipe) -> BTreeMap<&'static str, String> {
    let own = all_rows().flat_map(|row| recipe.method_settings(&row));
    recipe.shared().into_iter().chain(own).map(|setting| (setting.field.name, setting.value)).collect()
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
    for scale in Scale::ALL {
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
    let presets = Recipe::of(Scale::Paper);
    let before = values(&presets);
    for field in Recipe::fields() {
        // The words of a choice, or numbers.
        let words = (field.expected)();
        let mut candidates = words.split(" or ").chain(["1", "2", "7", "0.5", "33", "1-1", "2-1"]);
        let preset = &before[field.name];
        let changed = candidates.find(|text| (field.canonical)(text).is_some_and(|text| text != *preset));
        let Some(text) = changed else {
            assert_eq!((field.expected)(), "fixed by the scale", "{}", field.name);
            continue;
        };
        let mut recipe = presets.clone();
        recipe.set(&format!("{}={text}", field.name)).unwrap();
        let after = values(&recipe);
        // SiDA's thresholds follow the length of the training, and so does that of CTM's critic.
        let thresholds = |name: &str| name.starts_with("sida_") || name == "ctm_adversary_from";
        let follows = |name: &str| field.name == "images" && thresholds(name);
        let different: Vec<_> =
            after.iter().filter(|(name, value)| before[*name] != **value && !follows(name)).collect();
        assert_eq!(different, [(&field.name, &text.to_string())]);
        assert_eq!(recipe.changes(), [format!("{}={text}", field.name)]);
        // What it is already is no change.
        if (field.canonical)(preset).is_none() {
            continue;
        }
        let mut same = presets.clone();
        same.set(&format!("{}={preset}", field.name)).unwrap();
        assert_eq!(same, presets);
    }
}

#[test]
fn a_method_reads_its_own_settings() {
    let mut recipe = Recipe::of(Scale::Mini);
    assert_eq!(HeunSettings::with(&recipe.overrides).steps, 18);
    recipe.set("HEUN_steps=9").unwrap();
    assert_eq!(HeunSettings::with(&recipe.overrides).steps, 9);
    let edm = all_rows().find(|row| row.id == "edm").unwrap();
    let setup_has = recipe.setup(&Compute::CPU, &edm, &[], "test").own::<HeunSettings>();
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
        ("channel_mult=1-1-1-1-1-1", "16 pixels cannot be halved for every resolution"),
        ("model_channels=13", "13 channels do not divide into equal groups"),
        ("augment_p=0.1", "the networks of scale mini have no input for augmentation labels"),
        ("neighbours=500", "500 images are too few for 500 neighbours"),
        ("splits=1000 ", "splits is a whole number"),
    ] {
        let error = Recipe::of(Scale::Mini).set(change).unwrap_err().to_string();
        assert!(error.contains(&format!("cannot set '{change}': ")) && error.contains(expected), "{error}");
    }
}

/// Settings that one method alone has bear the name of its file, as lines of setup.csv about
/// it do.
#[test]
fn a_methods_own_settings_are_called_as_its_file() {
    let presets = Recipe::of(Scale::Paper);
    let stem = |file: &'static str| {
        let path = file.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        path.rsplit('/').next().unwrap()
    };
    for row in all_rows() {
        for setting in presets.method_settings(&row) {
            let alone = all_rows().all(|other| {
                let has = presets.method_settings(&other).iter().any(|s| s.field.name == setting.field.name);
                !has || other.method.file == row.method.file
            });
            assert!(!alone || setting.owner == stem(row.method.file), "{} of {}", setting.field.name, row.id);
        }
    }
}

/// The smallest network, told about augmentation.
fn smallest() -> Config {
    Config { augment_labels: 9, ..Recipe::of(Scale::Smoke).network }
}

fn drawn(cell: &str) -> Arrays {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell };
    Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&smallest(), vb)).unwrap().0.arrays().unwrap()
}

/// Everything that a row makes of a few early iterations and a late one: its state, and samples.
fn made(row: &Row, recipe: &Recipe) -> Vec<Vec<f32>> {
    let device = Device::Cpu;
    let start = [(row.start, drawn("start")), (Initialization::SingleLevel, drawn("other start"))];
    let setup = recipe.setup(&Compute::CPU, row, &start, "read");
    let pixels = (0..8 * 768u32).map(|i| (i * 37 % 256) as u8).collect();
    let images = Images { channels: 3, size: 16, pixels, labels: vec![0; 8] };
    let mut all = Vec::new();
    let weights = match &row.method.training {
        Some(training) => {
            let batches = Batches {
                images: &images,
                device: device.clone(),
                size: 4,
                microbatch: usize::MAX,
                augmentation: recipe.one_step.augmentation(),
                cell: "read".into(),
            };
            let mut method = (training.build)(&setup).unwrap();
            // RAdam reads its epsilon from the sixth update on, and CTM's critic is trained late.
            for step in [0, 1, 2, 3, 4, 10_000_000] {
                method.step(&batches.at(step)).unwrap();
            }
            all.extend(state(&mut *method).unwrap().into_values().map(|array| array.data));
            published(&mut *method).unwrap()
        }
        None => drawn("start"),
    };
    let sampler = (row.method.sampler)(&setup, &weights).unwrap();
    let values = Stream::new("read", "z").normals(0, 2 * 768 * sampler.latents());
    let z = Tensor::from_vec(values, (2, 3 * sampler.latents(), 16, 16), &device).unwrap();
    all.push(
        sampler
            .sample(&z)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_dtype(candle_core::DType::F32)
            .unwrap()
            .to_vec1()
            .unwrap(),
    );
    all
}

/// Whether another value of the setting makes the row's state or samples another.
fn is_read(row: &Row, recipe: &Recipe, before: &[Vec<f32>], setting: &Setting) -> bool {
    let words = (setting.field.expected)();
    let candidates = words.split(" or ").chain(["0.5", "1", "2", "7", "1000000000000", "0"]);
    let others =
        candidates.filter(|text| (setting.field.canonical)(text).is_some_and(|text| text != setting.value));
    others.into_iter().any(|text| {
        let mut changed = recipe.clone();
        changed.set(&format!("{}={text}", setting.field.name)).is_ok() && made(row, &changed) != before
    })
}

/// A setting that a row lists and does not read would be accepted and change nothing.
#[test]
fn every_setting_that_a_row_lists_is_read() {
    let recipe = Recipe { network: smallest(), ..Recipe::of(Scale::Paper) };
    let (mut seen, mut settings) = (BTreeSet::new(), 0);
    for row in all_rows() {
        let listed = recipe.method_settings(&row);
        // Rows that differ in their start or divergence alone are read once.
        if !seen.insert((row.method.file, listed.iter().map(|s| s.field.name).collect::<Vec<_>>())) {
            continue;
        }
        let before = made(&row, &recipe);
        assert!(before.iter().flatten().all(|value| value.is_finite()), "{}", row.id);
        for setting in &listed {
            assert!(
                is_read(&row, &recipe, &before, setting),
                "{} does not read {}",
                row.id,
                setting.field.name
            );
            settings += 1;
        }
    }
    assert!(settings > 100, "{settings}");
}

/// What the thresholds of SiDA's warm-up come to, by the length and by hand.
#[test]
fn a_preset_that_counts_images_is_bound_by_the_training() {
    let sida = all_rows().find(|row| row.id == "sida").unwrap();
    let value = |changes: &[&str]| {
        let mut recipe = Recipe::of(Scale::Mini);
        changes.iter().for_each(|change| recipe.set(change).unwrap());
        let all = recipe.method_settings(&sida);
        let value = |name: &str| all.iter().find(|s| s.field.name == name).unwrap().value.clone();
        [value("sida_generator_from"), value("sida_adversary_from")]
    };
    assert_eq!(value(&[]), ["1280", "2560"]);
    assert_eq!(value(&["images=3000"]), ["100", "200"]);
    assert_eq!(value(&["sida_generator_from=5000"]), ["5000", "2560"]);
    // By hand to what it is at the scale's own length.
    assert_eq!(value(&["images=3000", "sida_generator_from=1280"]), ["1280", "200"]);
    let presets = |scale| Recipe::of(scale).value("sida_generator_from").unwrap();
    assert_eq!([Scale::Smoke, Scale::Small, Scale::Paper].map(presets), ["6", "100000", "100000"]);
}
