//! Text of `--explain`: a row's method, its settings with their sources, and the paper's open
//! questions. Values are those of the recipe; sources are in paper/setup.csv and in the tables of
//! settings.

use crate::experiment::{Data, FULL_INITIALIZATION, Initialization, Recipe, Row, Scale, all_rows, plan};
use crate::judge::paper::{Origin, Setting as Line};
use crate::method::TrainingSpec;
use crate::method::one_step::OneStep;
use crate::settings::{Setting, Settings};
use crate::text::{and, capital, thousands, wrap};
use std::fmt::Write;
use std::path::Path;

/// Width of a terminal in columns.
const WIDTH: usize = 100;
/// Widths of the table's columns: name, value here, value at the paper scale.
const COLUMNS: [usize; 3] = [27, 35, 34];

/// Returns the short page: the method, its source file, its start, and the settings of the method
/// and of its budget. `lines` are those of paper/setup.csv.
pub fn short(row: &Row, recipe: &Recipe, lines: &[Line]) -> String {
    let mut page = Page::default();
    head(&mut page, row, recipe);
    let used = recipe.used(row);
    let matters = |setting: &&Setting| {
        let of_method =
            recipe.method_settings(row).iter().any(|other| other.field.name == setting.field.name);
        let shared = setting.owner == OneStep::OWNER;
        let told = !shared || origin(setting, lines) != Origin::Silent;
        of_method && told
            || ["images", "batch"].contains(&setting.field.name)
            || preset(recipe.scale, setting).is_some()
    };
    let matter: Vec<&Setting> = used.iter().filter(matters).collect();
    if !matter.is_empty() {
        page.line(&format!("\n  {:20} {:22} {:22} {}", "", "here", "at the paper scale", "the paper"));
    }
    for setting in &matter {
        let (here, paper) = (shown(setting), preset(Scale::Paper, setting).unwrap_or_default());
        let origin = origin(setting, lines);
        page.line(&format!("  {:20} {here:22} {paper:22} {origin}", setting.field.name));
    }
    let rest = used.len() - matter.len();
    page.line(&format!("\n--explain full shows {rest} more settings and the source of each"));
    page.0
}

/// As [`short`], then the places in the code, every setting with its source, and the paper's open
/// questions. `root` is the repository.
pub fn full(row: &Row, recipe: &Recipe, lines: &[Line], root: &Path) -> String {
    let mut page = Page::default();
    head(&mut page, row, recipe);
    code(&mut page, row, root);
    page.heading("SETTINGS AND THEIR SOURCES (paper/setup.csv)");
    page.row(["", "here", "paper scale, where it differs"].map(str::to_string));
    page.wrapped("Values that no setting changes are quoted from that file.", 2);
    let used = recipe.used(row);
    let mut told: Vec<&str> = Vec::new();
    let owners = owners(row, recipe);
    let here: Vec<&Line> = lines.iter().filter(|line| owners.contains(&line.owner.as_str())).collect();
    for owner in &owners {
        let new = |setting: &&Setting, told: &[&str]| !told.contains(&setting.field.name);
        let mut section = Page::default();
        for line in here.iter().filter(|line| line.owner == *owner) {
            let about: Vec<&Setting> = used.iter().filter(|setting| is_about(line, setting)).collect();
            match (about.is_empty(), line.fields.is_empty()) {
                (true, true) => section.row([line.name.replace('_', " "), line.value.clone(), String::new()]),
                // All settings of this line belong to other rows.
                (true, false) => continue,
                (false, _) => {}
            }
            about.iter().filter(|s| new(s, &told)).for_each(|setting| section.setting(recipe, setting));
            told.extend(about.iter().map(|setting| setting.field.name));
            section.wrapped(&sentence(line), 6);
        }
        let elsewhere = |setting: &&Setting| here.iter().any(|line| is_about(line, setting));
        let own = used.iter().filter(|setting| setting.owner == *owner && !elsewhere(setting));
        for setting in own.filter(|s| new(s, &told)).collect::<Vec<_>>() {
            section.setting(recipe, setting);
            section.wrapped(&reason(setting, lines), 6);
        }
        if !section.0.is_empty() {
            page.heading(&owner.replace('_', " ").to_uppercase());
            page.0 += &section.0;
        }
    }
    page.heading("WHAT THE PAPER LEAVES OPEN for this row");
    for (wanted, words) in [
        (Origin::Ambiguous, "it can be read in more than one way"),
        (Origin::Silent, "it says nothing; we follow a source"),
        (Origin::Ours, "it says nothing; the choice is ours"),
    ] {
        let open: Vec<&str> =
            here.iter().filter(|line| line.origin == wanted).map(|line| line.name.as_str()).collect();
        if !open.is_empty() {
            page.wrapped(&format!("{wanted} ({words}): {}.", open.join(", ")), 2);
        }
    }
    page.0
}

fn head(page: &mut Page, row: &Row, recipe: &Recipe) {
    let (method, scale) = (&row.method, recipe.scale);
    page.wrapped(&format!("Row {} at scale {scale}: {} ({})", row.id, method.name, method.cite), 0);
    if !recipe.overrides.changes.is_empty() {
        page.wrapped(
            &format!("Overridden, so this is not the paper's row: {}.", recipe.changes().join(", ")),
            2,
        );
    }
    page.entry("written in", method.file);
    if scale == Scale::Tiny {
        page.entry("images", "CIFAR-10, each 2x2 block averaged: 16 pixels");
    }
    if scale.procedural() {
        let (size, each) = (recipe.network.size, thousands(recipe.budget.images_per_class as u64));
        let text =
            format!("drawn digits and characters in place of CIFAR, {size} pixels, {each} of each class");
        page.entry("images", &text);
    }
    page.entry("starts from", &start(row.start, recipe));
    let starts = [("generator", recipe.generator_start(row)), ("critic", recipe.critic_start(row))];
    for (network, other) in starts.into_iter().filter(|(_, other)| *other != row.start) {
        page.entry("", &format!("but the {network} from {}", start(other, recipe)));
    }
    if let Some(before) = recipe.first_stage(row) {
        let text = match recipe.has_checkpoint(row.start) {
            true => format!("the published one of row {}", before.id),
            false => format!("that of row {} with the same seed, which runs first", before.id),
        };
        page.entry("", &format!("but the generator from {text}"));
    }
    if let Some(training) = &method.training {
        let (batch, seen, usual) = (recipe.budget.batch, recipe.images_of(row), recipe.budget.images);
        let iterations = thousands(recipe.iterations(row));
        let in_all = match seen == usual {
            true => String::new(),
            false => {
                format!(": {} images in all, where other rows see {}", thousands(seen), thousands(usual))
            }
        };
        let networks = networks(training, recipe);
        page.entry("trains", &format!("{networks} for {iterations} iterations of {batch} images{in_all}"));
        if let Some(text) = plan::costly(recipe, row) {
            page.entry("costs", &text);
        }
    }
    let calls = match (method.nfe)(&recipe.overrides) {
        1 => "1 network call".to_string(),
        n => format!("{n} network calls"),
    };
    let (trials, samples) = (recipe.evaluation.trials, thousands(recipe.evaluation.samples as u64));
    let times = if trials == 1 { String::new() } else { format!("{trials} times ") };
    page.entry("samples with", &format!("{calls} for each image; scored on {times}{samples} images"));
}

fn networks(training: &TrainingSpec, recipe: &Recipe) -> String {
    let all = training.networks.iter().map(|network| {
        let parameters = thousands(network.size.count(&recipe.network).parameters);
        format!("{} ({}, {parameters} parameters)", network.name, network.role)
    });
    and(&all.collect::<Vec<_>>())
}

fn start(start: Initialization, recipe: &Recipe) -> String {
    let text = match start {
        Initialization::Random => return "random weights".into(),
        Initialization::SingleLevel => "single-level denoising score matching on the target data".into(),
        Initialization::MultiLevel(Data::Target | Data::HeldOut) => {
            "multi-level denoising score matching on the target data".into()
        }
        Initialization::MultiLevel(Data::Sources(n)) => {
            format!("multi-level denoising score matching on {n} source classes")
        }
        Initialization::MultiLevel(Data::Characters(n)) => {
            format!("multi-level denoising score matching on {n} invented characters")
        }
    };
    match recipe.has_checkpoint(start) {
        true => format!("{text}: the published EDM checkpoint"),
        false => format!("{text}, trained here"),
    }
}

/// Returns the owners of the settings that affect the row, in the order of a run.
fn owners(row: &Row, recipe: &Recipe) -> Vec<&'static str> {
    let mut owners = Vec::new();
    let mut add = |owner: &'static str| {
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    };
    add("data");
    if let Initialization::MultiLevel(Data::Sources(_)) = row.start {
        add("source data");
    }
    add("network");
    for start in recipe.initial(row) {
        if recipe.has_checkpoint(start) {
            add("checkpoint");
        } else {
            add("pre-training");
            add(if start == Initialization::SingleLevel { "single-level" } else { "multi-level" });
        }
    }
    recipe.method_settings(row).iter().for_each(|setting| add(setting.owner));
    add(stem(row.method.file));
    if row.start != FULL_INITIALIZATION.start {
        add("initialisation study");
    }
    let features = if recipe.scale.has_own_features() { "classifier" } else { "inception" };
    ["budget", "evaluation", features, "run"].into_iter().for_each(add);
    owners
}

/// Returns the owner of a method's own settings.
fn stem(file: &'static str) -> &'static str {
    let path = file.trim_end_matches("/mod.rs").trim_end_matches(".rs");
    path.rsplit('/').next().unwrap_or(path)
}

/// Writes the head of the method's file, and the comments that name a line of the algorithm.
fn code(page: &mut Page, row: &Row, root: &Path) {
    let file = row.method.file;
    let Ok(text) = std::fs::read_to_string(root.join(file)) else { return };
    let text = crate::error::printable(&text);
    page.heading("IN THE CODE");
    let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    page.wrapped(&head.join(" "), 2);
    for (number, line) in text.lines().enumerate() {
        let comment = line.trim().trim_start_matches('/').trim();
        if line.trim().starts_with("//") && comment.starts_with("Line") {
            page.wrapped(&format!("{file}:{}  {comment}", number + 1), 2);
        }
    }
}

/// Returns the preset of the setting at a scale; `None` if it is the setting's value.
fn preset(scale: Scale, setting: &Setting) -> Option<String> {
    let recipe = Recipe::of(scale);
    let own = all_rows().flat_map(|row| recipe.method_settings(&row));
    let mut all = recipe.shared().into_iter().chain(own);
    let preset = all.find(|other| other.field.name == setting.field.name)?;
    (preset.value != setting.value).then(|| shown(&preset))
}

fn shown(setting: &Setting) -> String {
    let value = match setting.json.as_u64() {
        Some(n) => thousands(n),
        None => setting.value.clone(),
    };
    format!("{value} {}", setting.field.unit).trim_end().to_string()
}

fn is_about(line: &Line, setting: &Setting) -> bool {
    line.fields.iter().any(|field| field == setting.field.name)
}

/// Returns the origin of a setting: how much the paper states of it.
fn origin(setting: &Setting, lines: &[Line]) -> Origin {
    let own = setting.field.origin.map_or(Origin::Ours, |(origin, _)| origin);
    lines.iter().find(|line| is_about(line, setting)).map_or(own, |line| line.origin)
}

/// Returns the source of a setting that no line of its own section describes.
fn reason(setting: &Setting, lines: &[Line]) -> String {
    match (lines.iter().find(|line| is_about(line, setting)), setting.field.origin) {
        (Some(line), _) => sentence(line),
        (None, Some((origin, why))) => {
            format!("[{origin}] {} {}.", setting.field.says.trim(), capital(why))
        }
        (None, None) => format!("{} is not in setup.csv.", setting.field.name),
    }
}

fn sentence(line: &Line) -> String {
    let words = match &line.paper {
        Some(words) => format!(", {}: \"{words}\".", line.place),
        None if line.reading.is_empty() => ".".to_string(),
        None => ":".to_string(),
    };
    format!("[{}] {}{words} {}", line.origin, line.name, line.reading)
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        writeln!(self.0, "{}", text.trim_end()).expect("writing to a string");
    }

    fn heading(&mut self, text: &str) {
        self.line(&format!("\n{text}"));
    }

    fn entry(&mut self, name: &str, text: &str) {
        for (i, line) in wrap(text, WIDTH - 16).into_iter().enumerate() {
            self.line(&format!("  {:13} {line}", if i == 0 { name } else { "" }));
        }
    }

    /// Writes an indented paragraph; its other lines are indented by two more columns.
    fn wrapped(&mut self, text: &str, indent: usize) {
        for (i, line) in wrap(text, WIDTH - indent - 2).into_iter().enumerate() {
            let indent = if i == 0 { indent } else { indent + 2 };
            self.line(&format!("{:indent$}{line}", ""));
        }
    }

    /// Writes one row of the table, wrapped to the number of lines of its longest cell.
    fn row(&mut self, cells: [String; 3]) {
        let columns: Vec<Vec<String>> =
            cells.iter().zip(COLUMNS).map(|(text, width)| wrap(text, width)).collect();
        for i in 0..columns.iter().map(Vec::len).max().unwrap_or(0) {
            let cell = |c: usize| columns[c].get(i).map_or("", String::as_str);
            let [name, here, _] = COLUMNS;
            self.line(&format!("  {:name$} {:here$} {}", cell(0), cell(1), cell(2)));
        }
    }

    fn setting(&mut self, recipe: &Recipe, setting: &Setting) {
        let by_hand = preset(recipe.scale, setting)
            .map_or(String::new(), |usual| format!(" (override; preset {usual})"));
        let here = format!("{}{by_hand}", shown(setting));
        self.row([setting.field.name.to_string(), here, preset(Scale::Paper, setting).unwrap_or_default()]);
    }
}
