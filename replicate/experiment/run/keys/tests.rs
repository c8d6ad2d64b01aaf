//! What a change of code, or of a setting, makes of the keys.

use super::*;
use crate::experiment::TABLE1;

/// Returns the code digests in the keys of a row's weights and scores.
fn digests(code: &Code, file: &str) -> (Digests, Digests) {
    let scores = [code.sampling(file), code.rooms(&["measure"])].concat();
    (code.training(file), scores)
}

fn edited(path: &'static str) -> Vec<(&'static str, &'static str)> {
    let known = SOURCES.iter().any(|(name, _)| *name == path);
    let mut sources = SOURCES.to_vec();
    sources.iter_mut().filter(|(name, _)| *name == path).for_each(|(_, digest)| *digest = "edited");
    sources.extend((!known).then_some((path, "new")));
    sources
}

#[test]
fn a_new_method_changes_no_other_key() {
    let (here, new) = (Code::here(), "replicate/method/score_based/throw_away.rs");
    let sources = edited(new);
    let mut there = Code { sources: &sources, ..Code::here() };
    there.methods.push(inside(new));
    for row in all_rows() {
        assert_eq!(digests(&here, row.method.file), digests(&there, row.method.file), "{}", row.id);
    }
    // The line of a new method in the registry changes no key either.
    let sources = edited("replicate/method/mod.rs");
    let there = Code { sources: &sources, ..Code::here() };
    let file = TABLE1[0].method.file;
    assert_eq!(digests(&here, file), digests(&there, file));
}

#[test]
fn an_edit_changes_the_keys_that_depend_on_it() {
    let here = Code::here();
    let ratio = "replicate/method/ratio_based/class_ratio.rs";
    let sct = "replicate/method/consistency/sct.rs";
    for (file, path, trains, measures) in [
        (ratio, "replicate/measure/metrics/kid.rs", false, true),
        (ratio, "replicate/train/adam.rs", true, false),
        (ratio, "replicate/network/unet/mod.rs", true, true),
        (ratio, "replicate/method/noise.rs", true, true),
        (ratio, "replicate/method/schedule.rs", true, true),
        (ratio, ratio, true, true),
        (ratio, "replicate/method/score_based/diff_instruct.rs", false, false),
        (ratio, "replicate/report/table.rs", false, false),
        (ratio, "replicate/store/mod.rs", false, false),
        (ratio, "replicate/train/watch.rs", false, false),
        (sct, "replicate/method/schedule.rs", true, true),
        (sct, "replicate/method/consistency/mod.rs", true, true),
        (sct, "replicate/method/consistency/ctm.rs", false, false),
        (sct, "replicate/method/sampler/mod.rs", false, false),
    ] {
        assert!(SOURCES.iter().any(|(name, _)| *name == path), "{path} has moved");
        let (weights, scores) = digests(&here, file);
        let sources = edited(path);
        let there = digests(&Code { sources: &sources, ..Code::here() }, file);
        assert_eq!((there.0 != weights, there.1 != scores), (trains, measures), "{path} for {file}");
    }
}

/// The sources in method/ that the imports of one of them name.
fn imported(path: &str) -> BTreeSet<String> {
    let file = format!("{}/replicate/{path}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(file).unwrap();
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let parent = module.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut found = BTreeSet::new();
    for (prefix, from) in [("crate::method::", "method"), ("super::", parent), ("self::", module)] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            let named = rest.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c));
            let path: String = named.collect();
            let group =
                rest[path.len()..].strip_prefix('{').map_or("", |group| group.split('}').next().unwrap());
            for member in group.split(',') {
                let name = format!("{from}::{path}{}", member.trim()).replace('/', "::");
                let parts: Vec<&str> = name.split("::").filter(|part| !part.is_empty()).collect();
                let files = (1..=parts.len()).rev().flat_map(|n| {
                    let module = parts[..n].join("/");
                    [format!("{module}.rs"), format!("{module}/mod.rs")]
                });
                let known = |file: &String| SOURCES.iter().any(|(known, _)| inside(known) == file);
                found.extend(files.into_iter().find(known));
            }
        }
    }
    found
}

#[test]
fn what_a_method_imports_is_in_its_key() {
    let code = Code::here();
    let mut imports = 0;
    for row in all_rows() {
        let parts = SOURCES.iter().map(|(path, _)| inside(path));
        for part in parts.filter(|path| code.is_part(row.method.file, path)) {
            for module in imported(part).iter().filter(|module| !NO_PART.contains(&module.as_str())) {
                assert!(code.is_part(row.method.file, module), "{}: {part} takes from {module}", row.id);
                imports += 1;
            }
        }
    }
    assert!(imports > 200, "only {imports} imports were read");
    assert!(imported("method/consistency/sct.rs").contains("method/noise.rs"));
    assert!(imported("method/sampler/amed.rs").contains("method/sampler/ipndm.rs"));
}

#[test]
fn texts_of_other_code_name_the_same_experiment() {
    let recipe = Recipe::of(Scale::Smoke);
    let compared = Compared { weights: "ab", features: "cd", reference: None };
    let text = scores(&recipe, &TABLE1[0], 0, &compared, "cpu");
    let other = text
        .replace("code measure = ", "code measure = 0")
        .replace("weights sha256 = ab", "weights sha256 = ef");
    let same = |other: &str| same_without(names_code_or_artefact, &text, other);
    assert!(same(&other) && text != other && !same_without(names_code, &text, &other));
    assert_eq!(changed_code(&other, &text), ["weights", "measure"]);
    assert!(!same(&scores(&recipe, &TABLE1[0], 1, &compared, "cpu")));
    assert_ne!(code_of(&text), code_of(&other));
}

/// A value of a setting that another one has not, if any can be given.
fn another(setting: &Setting) -> Option<String> {
    let words = (setting.field.expected)();
    let mut all = words.split(" or ").chain(["0.5", "1", "2", "7"]);
    let other = |text: &&str| (setting.field.canonical)(text).is_some_and(|text| text != setting.value);
    all.find(other).map(str::to_string)
}

#[test]
fn every_setting_of_a_row_is_in_its_key() {
    let paper = Recipe::of(Scale::Paper);
    let origin = Origin { images: "ab", start: None, others: &[], streams: "" };
    let of_weights = |recipe: &Recipe, row: &Row| weights(recipe, row, 0, &origin, "cpu");
    let of_scores = |recipe: &Recipe, row: &Row| {
        scores(recipe, row, 0, &Compared { weights: "", features: "", reference: None }, "cpu")
    };
    let mut only_scored = 0;
    for row in all_rows() {
        for setting in paper.method_settings(&row) {
            let (name, mut recipe) = (setting.field.name, paper.clone());
            recipe.set(&format!("{name}={}", another(&setting).expect(name))).unwrap();
            let trains = row.method.training.is_some() && !setting.field.of_scores;
            let text = |recipe| if trains { of_weights(recipe, &row) } else { of_scores(recipe, &row) };
            assert_ne!(text(&recipe), text(&paper), "{}: {name}", row.id);
            // What only scores depend on is in no key of weights, and no training reads it.
            let weightless = recipe.of_weights();
            assert_eq!(weightless == paper, setting.field.of_scores, "{name}");
            if setting.field.of_scores {
                assert_eq!(of_weights(&recipe, &row), of_weights(&paper, &row), "{}: {name}", row.id);
                only_scored += 1;
            }
        }
    }
    assert!(only_scored >= 4, "iCT, CTM, BCM and sCT have steps of their samples");
}
