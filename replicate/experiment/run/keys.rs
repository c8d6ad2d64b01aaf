//! The canonical texts of artefacts: their settings, inputs and code. The SHA-256 of a text is the
//! key of its artefact.
//!
//! The code in a key is a digest of tokens, without comments and layout. Weights depend on the
//! rooms network, train, data and rng, on the code that all methods share and that its folder
//! shares, and on their method's own file. Scores depend on the weights, on their sampling, and on
//! the room measure. So a change to a metric or to a setting of the sampling retrains nothing, and
//! the file of a new method changes no other row's key.

use crate::data::cifar::Split;
use crate::experiment::{Data, Initialization, Recipe, Row, Scale};
use crate::measure::evaluate::TARGETS;
use crate::method::all_rows;
use crate::method::one_step::OneStep;
use crate::settings::{Setting, Settings};
use crate::store::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::{Display, Write};

/// Latents for the comparison of two generators.
pub const MAP_LATENTS: usize = 1000;

/// Every source of the program with the digest of its tokens.
const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));
/// Sources that affect no result although their rooms do.
const NO_RESULT: [&str; 4] = ["network/device.rs", "network/count.rs", "train/watch.rs", "train/tfevents.rs"];

/// Sources that all methods share which are no part of any: the registry, and the estimate of costs.
const NO_PART: [&str; 2] = ["method/mod.rs", "method/cost.rs"];

/// Lines `name = value`; their order is part of the text.
pub struct Text(String);

impl Text {
    fn new(kind: &str, scale: Scale) -> Text {
        let mut text = Text(String::new());
        text.line("kind", kind).line("scale", scale);
        text
    }

    /// Adds a line.
    pub fn line(&mut self, name: &str, value: impl Display) -> &mut Text {
        writeln!(self.0, "{name} = {value}").expect("writing to a string");
        self
    }

    fn settings(&mut self, settings: Vec<Setting>) -> &mut Text {
        settings.iter().for_each(|setting| _ = self.line(setting.field.name, &setting.value));
        self
    }

    /// Writes one line for each room of the code, so that a message can name the one that changed.
    fn code(&mut self, code: &[(&str, String)]) -> &mut Text {
        code.iter().for_each(|(room, digest)| _ = self.line(&format!("code {room}"), digest));
        self.line("code crates", env!("ARITHMETIC_DIGEST"))
    }

    fn finish(&self) -> String {
        self.0.clone()
    }
}

/// True if a line names code.
pub fn names_code(line: &str) -> bool {
    line.starts_with("code ")
}

/// True if a line names code, or an artefact that code made.
pub fn names_code_or_artefact(line: &str) -> bool {
    let name = line.split(" = ").next().unwrap_or(line);
    names_code(line) || name.ends_with("sha256")
}

/// True if two texts differ at most in lines that `left_out` accepts: with [`names_code`], other code made
/// one of them from the same inputs; with [`names_code_or_artefact`], its inputs may be other code's as well.
pub fn same_without(left_out: fn(&str) -> bool, a: &str, b: &str) -> bool {
    let [a, b] = [a, b].map(|text| text.lines().filter(|line| !left_out(line)));
    a.eq(b)
}

/// Returns the names of the lines that differ about code and its artefacts.
pub fn changed_code(old: &str, new: &str) -> Vec<String> {
    let old: BTreeSet<&str> = old.lines().collect();
    let changed = new.lines().filter(|line| names_code_or_artefact(line) && !old.contains(line));
    changed
        .map(|line| line.split(" = ").next().unwrap_or(line).replace("code ", "").replace(" sha256", ""))
        .collect()
}

/// Returns a short name of the code in a text.
pub fn code_of(text: &str) -> String {
    let mut hash = Sha256::new();
    text.lines().filter(|line| names_code(line)).for_each(|line| hash.update(line));
    hex(hash.finalize())[..12].to_string()
}

/// The sources of a program, and the files among them that are methods.
struct Code<'a> {
    sources: &'a [(&'a str, &'a str)],
    methods: Vec<&'a str>,
}

type Digests = Vec<(&'static str, String)>;

impl Code<'_> {
    fn here() -> Code<'static> {
        Code { sources: SOURCES, methods: all_rows().map(|row| inside(row.method.file)).collect() }
    }

    fn digest(&self, which: impl Fn(&str) -> bool) -> String {
        let mut hash = Sha256::new();
        for (path, digest) in self.sources {
            let path = inside(path);
            if which(path) && !NO_RESULT.contains(&path) {
                hash.update(path);
                hash.update(digest);
            }
        }
        hex(hash.finalize())[..16].to_string()
    }

    fn room(&self, name: &'static str) -> (&'static str, String) {
        let part = |path: &str| path.split(['/', '.']).next() == Some(name);
        (name, self.digest(part))
    }

    /// True if the source `path` is part of the method in `file`: that file itself, and the code
    /// that all methods share or those of its folder. The registry, the cost estimate and the files
    /// of other methods are not.
    fn is_part(&self, file: &str, path: &str) -> bool {
        let folder = |path: &str| path.rsplit_once('/').map_or("", |(folder, _)| folder).to_string();
        let own = inside(file);
        let near = folder(path) == "method" || folder(path) == folder(own);
        path == own || near && !self.methods.contains(&path) && !NO_PART.contains(&path)
    }

    fn method(&self, file: &str) -> (&'static str, String) {
        ("method", self.digest(|path| self.is_part(file, path)))
    }

    fn training(&self, file: &str) -> Digests {
        vec![self.room("network"), self.room("train"), self.room("data"), self.room("rng"), self.method(file)]
    }

    fn sampling(&self, file: &str) -> Digests {
        vec![self.room("network"), self.room("data"), self.room("rng"), self.method(file)]
    }

    fn rooms(&self, names: &[&'static str]) -> Digests {
        names.iter().map(|name| self.room(name)).collect()
    }
}

/// Returns a source's path in replicate/.
fn inside(path: &str) -> &str {
    path.strip_prefix("replicate/").unwrap_or(path)
}

/// Returns the images of a target class: the number drawn, or CIFAR-10's.
pub fn per_class(recipe: &Recipe) -> usize {
    match recipe.scale.procedural() {
        true => recipe.budget.images_per_class,
        false => Split::Train.full() / TARGETS,
    }
}

/// Returns the name of a training's images in its text.
pub fn data_text(recipe: &Recipe, data: Data) -> String {
    match recipe.scale.procedural() || matches!(data, Data::Characters(_)) {
        true => format!("glyphs {data}, {} a class, {} pixels", per_class(recipe), recipe.network.size),
        false => format!("CIFAR {data}, {} pixels", recipe.network.size),
    }
}

/// Returns the text of a pre-training; `images` is the digest of its images.
pub fn pretraining(recipe: &Recipe, start: Initialization, images: &str, determinism: &str) -> String {
    Text::new("pre-training", recipe.scale)
        .line("start", start)
        .line("data", data_text(recipe, start.data()))
        .line("data id", images)
        .settings(recipe.network.list())
        .settings(recipe.pretraining.list())
        .line("levels", recipe.pretraining_levels(start))
        .line("ticks", recipe.budget.ticks)
        .line("grids at sigma", recipe.grid_sigma())
        .line("determinism", determinism)
        .code(&Code::here().training("replicate/method/score_matching.rs"))
        .finish()
}

/// Returns the text of the real images' statistics.
pub fn reference(recipe: &Recipe, images: &str, features: &str, determinism: &str) -> String {
    let e = &recipe.evaluation;
    Text::new("reference", recipe.scale)
        .line("data id", images)
        .line("reference", e.reference)
        .line("neighbourhood", e.neighbourhood)
        .line("features sha256", features)
        .line("determinism", determinism)
        .code(&Code::here().rooms(&["data", "rng", "measure"]))
        .finish()
}

/// Returns the text of our own feature network; `images` is the digest of its images.
pub fn classifier(recipe: &Recipe, images: &str, determinism: &str) -> String {
    // Scales smoke and mini share one classifier.
    let scale = if recipe.scale.procedural() { Scale::Mini } else { recipe.scale };
    Text::new("classifier", scale)
        .line("data id", images)
        .settings(recipe.classifier.list())
        .line("determinism", determinism)
        .code(&Code::here().rooms(&["network", "train", "data", "rng", "measure"]))
        .finish()
}

/// Returns the settings that only the row's method has.
fn own(recipe: &Recipe, row: &Row) -> Vec<Setting> {
    let mut settings = recipe.method_settings(row);
    settings.retain(|setting| setting.owner != OneStep::OWNER);
    settings
}

/// Inputs of a row's weights.
pub struct Origin<'a> {
    /// Digest of the training images.
    pub images: &'a str,
    /// Digest of the initial weights; `None` if all are random.
    pub start: Option<&'a str>,
    /// Names and digests of the networks that start differently from the row.
    pub others: &'a [(&'static str, String)],
    /// Key of the random streams.
    pub streams: &'a str,
}

/// Returns the text of a trained row's weights.
pub fn weights(recipe: &Recipe, row: &Row, seed: u64, origin: &Origin, determinism: &str) -> String {
    let mut text = Text::new("weights", recipe.scale);
    let trained = own(recipe, row).into_iter().filter(|setting| !setting.field.of_scores);
    text.line("row", row.id)
        .line("seed", seed)
        .line("start", row.start)
        .line("data", data_text(recipe, Data::Target))
        .line("data id", origin.images)
        .line("start sha256", origin.start.unwrap_or("none"))
        .line("streams", origin.streams)
        .line("method", row.method.name)
        .settings(recipe.network.list())
        .settings(recipe.one_step.list())
        .settings(trained.collect())
        .settings(recipe.budget.list())
        .line("images of the row", recipe.images_of(row))
        .line("images along the run", recipe.evaluation.quick_samples);
    for (network, digest) in origin.others {
        text.line(&format!("{network} start sha256"), digest);
    }
    if let Some(fingerprint) = row.method.fingerprint {
        text.line("values", fingerprint());
    }
    text.line("determinism", determinism).code(&Code::here().training(row.method.file)).finish()
}

/// Digests of the inputs of a row's scores.
pub struct Compared<'a> {
    pub weights: &'a str,
    pub features: &'a str,
    /// The real images; `None` if they are drawn.
    pub reference: Option<&'a str>,
}

/// Returns the text of a row's scores.
pub fn scores(recipe: &Recipe, row: &Row, seed: u64, compared: &Compared, determinism: &str) -> String {
    let mut text = Text::new("scores", recipe.scale);
    text.line("row", row.id)
        .line("seed", seed)
        .line("weights sha256", compared.weights)
        .line("method", row.method.name)
        .settings(recipe.network.list())
        .settings(own(recipe, row))
        .line("sigma_init", recipe.one_step.sigma_init)
        .settings(recipe.evaluation.list())
        .line("features sha256", compared.features);
    if let Some(reference) = compared.reference {
        text.line("reference sha256", reference);
    }
    text.line("determinism", determinism)
        .code(&Code::here().sampling(row.method.file))
        .code(&Code::here().rooms(&["measure"]))
        .finish()
}

/// Returns the text of the comparison of a finished row with the full initialisation's, as maps.
/// Both are identified by their keys.
pub fn mapping(recipe: &Recipe, row_key: &str, reference_key: &str, determinism: &str) -> String {
    Text::new("map distance", recipe.scale)
        .line("row sha256", row_key)
        .line("reference sha256", reference_key)
        .line("latents", MAP_LATENTS)
        .line("determinism", determinism)
        .code(&Code::here().rooms(&["network", "rng", "measure"]))
        .finish()
}

#[cfg(test)]
mod tests;
