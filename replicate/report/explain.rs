//! Everything that decides a cell, as text: its equations, where they are in the
//! code, every hyper-parameter with its source, and what the paper leaves open.
//!
//! Line numbers are looked up in the very sources that this program was built
//! from, and values in the recipe that would run, so neither can go stale; what no
//! scale changes is quoted from setup.csv. The recipe is taken apart field by
//! field: a new field does not compile until it is explained here.

use crate::data::glyphs;
use crate::experiment::{
    Cell, ClassifierTraining, Data, Evaluation, Method, Pretraining, Recipe, Scale, Start,
};
use crate::judge::paper::{Origin, Setting};
use crate::measure::evaluate::TARGETS;
use crate::method::distill::{Objective, Settings};
use crate::method::equations::Divergence;
use crate::method::noise::Levels;
use crate::method::sampler::edm::HEUN_STEPS;
use crate::network::unet::Config;
use crate::train::adam::AdamConfig;
use crate::train::augment::Augmentation;
use std::fmt::Write;

/// Columns of a terminal.
const WIDTH: usize = 100;

/// Everything that decides a cell: the equation, where it is in the code, every
/// hyper-parameter with where it comes from. Plain text, at most 100 columns.
/// `settings` are the lines of paper/setup.csv; a setting that they lack is named as such.
pub fn explain(cell: &Cell, recipe: &Recipe, settings: &[Setting]) -> String {
    let mut page = Page::default();
    page.wrapped(&format!("Cell {} at scale {}: {}", cell.row, recipe.scale, summary(cell)), 0);
    if !recipe.changes.is_empty() {
        page.wrapped(&format!("Changed by hand, so not the paper's row: {}.", recipe.changes.join(", ")), 0);
    }
    equations(&mut page, cell, recipe);
    steps(&mut page, cell, recipe);
    let sections = sections(cell, recipe);
    parameters(&mut page, cell, recipe, &sections, settings);
    open_choices(&mut page, &sections, settings);
    if let Method::OneStep(Objective::ClassRatio(_)) = cell.method {
        new_divergence(&mut page);
    }
    page.0
}

fn summary(cell: &Cell) -> String {
    let method = match cell.method {
        Method::Teacher => return format!("the teacher, {} network calls an image.", 2 * HEUN_STEPS - 1),
        Method::OneStep(Objective::Vsd) => "Algorithm 1, variational score distillation".to_string(),
        Method::OneStep(Objective::ClassRatio(divergence)) => match notation(divergence) {
            Some(known) => format!("Algorithm 2 with {}", known.name),
            None => format!("Algorithm 2 with {divergence:?}"),
        },
    };
    format!("{method}, started from {}.", started_from(cell.start))
}

fn started_from(start: Start) -> String {
    match start {
        Start::Random => "random weights".to_string(),
        Start::SingleLevel => "single-level denoising score matching on the target data".to_string(),
        Start::MultiLevel(Data::Target) => {
            "multi-level denoising score matching on the target data".to_string()
        }
        Start::MultiLevel(Data::Sources(n)) => {
            format!("multi-level denoising score matching on {n} source classes")
        }
    }
}

// ---- places in the code ----

/// A source of this program.
struct Source {
    path: &'static str,
    text: &'static str,
}

macro_rules! source {
    ($file:literal) => {
        Source { path: concat!("replicate/", $file), text: include_str!(concat!("../", $file)) }
    };
}

const EQUATIONS: Source = source!("method/equations.rs");
const DISTILL: Source = source!("method/distill.rs");
const TRAIN: Source = source!("train/mod.rs");
const SAMPLER: Source = source!("method/sampler/edm.rs");
const NOISE: Source = source!("method/noise.rs");
const EXPERIMENT: Source = source!("experiment/mod.rs");

impl Source {
    /// `replicate/equations.rs:41  pub fn …`: the first line that begins with `code`.
    fn place(&self, code: &str) -> String {
        match self.text.lines().enumerate().find(|(_, line)| line.trim_start().starts_with(code)) {
            Some((i, line)) => format!("{}:{}  {}", self.path, i + 1, line.trim()),
            None => format!("{}  ({code} is no longer there)", self.path),
        }
    }

    /// The same without the line itself.
    fn line(&self, code: &str) -> String {
        self.place(code).split("  ").next().expect("a split has a first part").to_string()
    }
}

/// The arm of `Divergence::phi`.
fn arm(divergence: Divergence) -> String {
    format!("Divergence::{divergence:?} =>")
}

// ---- equations and algorithm ----

/// The paper's divergences for a reader; one that is new has its code only.
struct Notation {
    divergence: Divergence,
    name: &'static str,
    equation: &'static str,
    phi: &'static str,
    slope: &'static str,
    meaning: &'static str,
}

const NOTATION: [Notation; 3] = [
    Notation {
        divergence: Divergence::DiKl,
        name: "DiKL",
        equation: "Eq 8",
        phi: "phi(l) = logit(1 - c) = -l",
        slope: "-1",
        meaning: "Every sample is pushed up the log-ratio alike.",
    },
    Notation {
        divergence: Divergence::DiJs,
        name: "DiJS",
        equation: "Eq 9",
        phi: "phi(l) = log(1 - c) = -softplus(l)",
        slope: "-c",
        meaning: "The generator makes it less probable that a sample is taken for generated; a sample counts \
                  by how real it looks already.",
    },
    Notation {
        divergence: Divergence::DiRm,
        name: "DiRM",
        equation: "Eq 10",
        phi: "phi(l) = -log(c) = softplus(-l)",
        slope: "-(1 - c)",
        meaning: "The generator makes it more probable that a sample is taken for data; a sample counts by \
                  how fake it still looks.",
    },
];

fn notation(divergence: Divergence) -> Option<&'static Notation> {
    NOTATION.iter().find(|n| n.divergence == divergence)
}

fn equations(page: &mut Page, cell: &Cell, recipe: &Recipe) {
    page.heading("EQUATIONS");
    page.equation("x_t = x_0 + sigma eps, eps ~ N(0, I)", EQUATIONS.place("pub fn diffuse("));
    match cell.method {
        Method::Teacher => {
            page.equation(
                "EDM's solver: dx/dsigma = (x - D(x; sigma)) / sigma, second order (Heun), from sigma 80 to 0",
                SAMPLER.place("pub fn heun("),
            );
            page.equation(
                &format!("its {HEUN_STEPS} levels; the last step is Euler's"),
                SAMPLER.place("pub fn heun_levels("),
            );
        }
        Method::OneStep(objective) => {
            page.equation(
                "generator: g(z) = D(sigma_init z; sigma_init), z ~ N(0, I)",
                SAMPLER.place("pub fn one_step("),
            );
            match objective {
                Objective::Vsd => {
                    page.equation(
                        "Eq 5 (generator): gradient of the mean of w(t) (s_q - s_p) . x_t, the scores held \
                         constant; s = (D(x_t; sigma) - x_t) / sigma^2",
                        EQUATIONS.place("pub fn vsd("),
                    );
                    page.equation(
                        "Eq 4 (fake score s_q): denoising score matching on generated images",
                        EQUATIONS.place("pub fn dsm("),
                    );
                }
                Objective::ClassRatio(divergence) => {
                    match notation(divergence) {
                        Some(n) => {
                            let text = format!("{}: {}; slope in l: {}", n.equation, n.phi, n.slope);
                            page.equation(&text, EQUATIONS.place(&arm(divergence)));
                            page.wrapped(n.meaning, 9);
                        }
                        None => page.equation("phi(l)", EQUATIONS.place(&arm(divergence))),
                    }
                    page.equation(
                        "generator: minimise the mean of w(t) phi(l(x_t, t)), w(t) = sigma^2",
                        EQUATIONS.place("pub fn loss("),
                    );
                    page.equation(
                        "Eq 6, 7 (critic): minimise mean softplus(-l_real) + mean softplus(l_fake); c = sigmoid(l) \
                         is p(data | x_t, t), and at the minimum l = log p_d(x_t) / q_theta(x_t)",
                        EQUATIONS.place("pub fn class_ratio("),
                    );
                }
            }
        }
    }
    if pretrains(cell, recipe) {
        let levels = levels_text(recipe.pretraining_levels(cell.start));
        page.equation(
            &format!(
                "Eq 3 (pre-training): minimise the mean of weight(sigma) |D(x_t; sigma) - x_0|^2, {levels}"
            ),
            EQUATIONS.place("pub fn dsm("),
        );
        page.equation(
            "weight(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2",
            NOISE.place("pub fn edm_weight("),
        );
    }
    page.equation(
        "D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)",
        NOISE.place("pub fn at(sigma: &[f32]) -> Precondition"),
    );
}

fn steps(page: &mut Page, cell: &Cell, recipe: &Recipe) {
    page.heading(match cell.method {
        Method::Teacher => "ALGORITHM (stage 1 only)",
        Method::OneStep(Objective::Vsd) => "ALGORITHM 1",
        Method::OneStep(Objective::ClassRatio(_)) => "ALGORITHM 2",
    });
    let first = match (cell.start, pretrains(cell, recipe)) {
        (Start::Random, _) => "line 1: left out, as nothing is pre-trained".to_string(),
        (_, false) => "line 1: the published EDM checkpoint".to_string(),
        (start, true) => format!("line 1: stage 1, {}", started_from(start)),
    };
    match pretrains(cell, recipe) {
        true => page.equation(&first, TRAIN.place("let loss = dsm(")),
        false => page.wrapped(&first, 2),
    }
    let Method::OneStep(objective) = cell.method else {
        return;
    };
    let second = match (cell.start, objective) {
        (Start::Random, _) => "line 2: generator and critic are drawn from the streams of the seed",
        (_, Objective::Vsd) => "line 2: generator, fake score and teacher start from those weights",
        (_, Objective::ClassRatio(_)) => {
            "line 2: generator and the critic's encoder start from those weights; the critic's head is drawn \
             from the streams of the seed"
        }
    };
    let (fourth, fifth, call) = match objective {
        Objective::Vsd => ("one step of the fake score (Eq 4)", "the estimated gradient (Eq 5)", "vsd("),
        Objective::ClassRatio(_) => (
            "one step of class-ratio estimation (Eq 6, 7)",
            "the estimated gradient of the chosen divergence",
            "divergence.loss(",
        ),
    };
    page.equation(second, DISTILL.place("pub fn new("));
    page.equation("line 3: until the images are used up", TRAIN.place("while done < steps"));
    page.equation(&format!("line 4: {fourth}"), DISTILL.place("pub fn critic_step("));
    page.equation(&format!("line 5: {fifth}"), DISTILL.place(call));
    page.equation("line 6: one step of the generator", DISTILL.place("pub fn generator_step("));
    page.equation("then: the moving average, which is what is scored", DISTILL.place("pub fn average("));
}

/// Whether the cell starts from weights that are trained here.
fn pretrains(cell: &Cell, recipe: &Recipe) -> bool {
    cell.start != Start::Random && !from_checkpoint(cell, recipe)
}

/// At the paper scale the target's multi-level weights are the published ones.
fn from_checkpoint(cell: &Cell, recipe: &Recipe) -> bool {
    recipe.has_checkpoint(cell.start)
}

fn levels_text(levels: Levels) -> String {
    match levels {
        Levels::LogNormal { mean, sd } => format!("ln sigma ~ N({mean}, {sd}^2)"),
        Levels::Fixed(sigma) => format!("sigma = {sigma} only"),
    }
}

// ---- hyper-parameters ----

/// One hyper-parameter of a cell.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    value: Value,
    /// The lines of setup.csv that say where it comes from; the first holds the paper scale's value.
    settings: Vec<&'static str>,
    /// Where it comes from, if setup.csv knows nothing of it.
    note: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// From the recipe.
    Recipe(String),
    /// Fixed in the code, at every scale, to what setup.csv says.
    Fixed,
}

type Section = (&'static str, Vec<Entry>);

fn value(name: &str, value: impl ToString, settings: &[&'static str]) -> Entry {
    let (name, value) = (name.to_string(), Value::Recipe(value.to_string()));
    Entry { name, value, settings: settings.to_vec(), note: "" }
}

fn own(name: &str, here: impl ToString, note: &'static str) -> Entry {
    Entry { note, ..value(name, here, &[]) }
}

fn fixed(setting: &'static str) -> Entry {
    Entry { name: setting.replace('_', " "), value: Value::Fixed, settings: vec![setting], note: "" }
}

/// Every hyper-parameter that the cell uses with this recipe.
fn sections(cell: &Cell, recipe: &Recipe) -> Vec<Section> {
    // `changes` repeats what the other fields hold.
    let Recipe {
        scale,
        network,
        images_per_class,
        pretraining,
        one_step,
        images,
        batch,
        ticks,
        augmentation,
        evaluation,
        classifier,
        changes: _,
    } = recipe;
    let drawn = scale.procedural();
    let mut sections = vec![
        ("DATA", data(cell, drawn, *images_per_class)),
        ("NETWORKS", networks(cell, recipe, network, one_step.sigma_init)),
    ];
    if from_checkpoint(cell, recipe) {
        sections.push(("PRE-TRAINING (stage 1)", vec![fixed("generator_checkpoint")]));
    } else if pretrains(cell, recipe) {
        sections.push(("PRE-TRAINING (stage 1)", stage1(cell, recipe, pretraining)));
    }
    if let Method::OneStep(objective) = cell.method {
        let mut entries = stage2(cell, objective, one_step);
        entries.extend(augmented(*augmentation, "augmentation", Some("augmentation_place")));
        let iterations = thousands(recipe.iterations());
        entries.extend([
            value("batch", batch, &["batch"]),
            value(
                "images",
                format!("{} ({iterations} iterations)", thousands(*images)),
                &["training_images"],
            ),
        ]);
        sections.push(("ONE-STEP TRAINING (stage 2)", entries));
    }
    sections.push(("SCORES", scores(cell, drawn, evaluation, classifier)));
    let note = "how often a training writes a line, a grid and a checkpoint";
    sections.push(("RUN", vec![fixed("precision"), fixed("seeds"), own("ticks", ticks, note)]));
    sections
}

fn data(cell: &Cell, drawn: bool, images_per_class: usize) -> Vec<Entry> {
    let mut entries = match drawn {
        true => vec![
            value("data", format!("{TARGETS} classes of drawn digits"), &["data"]),
            own("images of a class", thousands(images_per_class as u64), "the digits are drawn, not read"),
        ],
        false => vec![fixed("data")],
    };
    entries.extend([fixed("data_range"), fixed("data_flip")]);
    let Start::MultiLevel(Data::Sources(n)) = cell.start else { return entries };
    let subset = match n {
        10 => Some("source_classes_10"),
        50 => Some("source_classes_50"),
        90 => Some("source_classes_90"),
        _ => None,
    };
    if drawn {
        // As many images as the target has, whatever the number of classes.
        let each = thousands((images_per_class * TARGETS / n) as u64);
        let of: Vec<&str> = subset.into_iter().chain(["source_class_counts"]).collect();
        entries.extend([
            value("source data", format!("invented characters, {each} images each"), &["source_data"]),
            value("source classes", format!("the first {n} of {}", glyphs::SOURCE_CLASSES.len()), &of),
        ]);
    } else {
        let settings =
            ["source_data", "source_excluded_classes", "source_class_counts", "source_class_order"];
        entries.extend(settings.into_iter().chain(subset).map(fixed));
    }
    entries
}

fn networks(cell: &Cell, recipe: &Recipe, network: &Config, sigma_init: f64) -> Vec<Entry> {
    let Config {
        size,
        image_channels,
        model_channels,
        channel_mult,
        blocks,
        attention_sizes,
        augment_labels,
    } = network;
    let of = &["generator_network"];
    let mut entries = vec![
        value("image size", size, of),
        value("image channels", image_channels, of),
        value("model channels", model_channels, of),
        value("channel multipliers", list(channel_mult), of),
        value("blocks of a resolution", blocks, of),
        value("attention at size", list(attention_sizes), of),
        value("augmentation labels", augment_labels, of),
        fixed("preconditioning"),
        fixed("parameterisation"),
        fixed("dropout"),
    ];
    if cell.start == Start::Random || pretrains(cell, recipe) {
        entries.push(fixed("random_initialisation"));
    }
    let Method::OneStep(objective) = cell.method else { return entries };
    entries.extend([
        value("sigma_init", sigma_init, &["sigma_init"]),
        value("generator input", format!("{sigma_init} z, z ~ N(0, I)"), &["generator_input"]),
        fixed("generator_output"),
        fixed("generator_augment_label"),
    ]);
    match objective {
        Objective::ClassRatio(_) => {
            entries.extend(["critic_network", "critic_head", "critic_initialisation"].map(fixed));
        }
        Objective::Vsd => entries.extend(["fake_score_network", "fake_score_initialisation"].map(fixed)),
    }
    entries
}

fn stage1(cell: &Cell, recipe: &Recipe, pretraining: &Pretraining) -> Vec<Entry> {
    // The start decides what becomes of `levels`.
    let Pretraining { images, batch, lr, warmup_images, cosine, adam, ema_half_life, levels: _ } =
        pretraining;
    let loss = format!("EDM loss, {}", levels_text(recipe.pretraining_levels(cell.start)));
    let loss_from = if cell.start == Start::SingleLevel { "single_level_loss" } else { "teacher_loss" };
    let optimiser = &["teacher_optimiser", "teacher_recipe"];
    let mut entries = Vec::new();
    if cell.start == Start::MultiLevel(Data::Target) {
        entries.push(value("generator checkpoint", "none: trained here", &["generator_checkpoint"]));
    }
    entries.extend([
        value("teacher loss", loss, &[loss_from]),
        value("teacher images", thousands(*images), &["teacher_length"]),
        value("teacher batch", batch, &["teacher_batch"]),
        value("teacher learning rate", format!("{lr:e}"), optimiser),
        value("teacher warm-up images", thousands(*warmup_images), optimiser),
        value("after the warm-up", if *cosine { "half a cosine to 0" } else { "constant" }, optimiser),
    ]);
    entries.extend(adam_entries("teacher Adam", adam, optimiser, optimiser));
    entries.extend([value(
        "teacher EMA half-life",
        format!("{} images", thousands(*ema_half_life)),
        &["teacher_ema"],
    )]);
    entries.extend(augmented(recipe.augmentation, "teacher_augmentation", None));
    entries
}

/// What the augmentation is, and where it is used if anywhere.
fn augmented(
    augmentation: Augmentation,
    setting: &'static str,
    place: Option<&'static str>,
) -> impl Iterator<Item = Entry> {
    let used = augmentation.p > 0.0;
    let text = if used { format!("EDM's pipeline, p = {}", augmentation.p) } else { "none".into() };
    let own = value(&setting.replace('_', " "), text, &[setting]);
    std::iter::once(own).chain(place.filter(|_| used).map(fixed))
}

fn stage2(cell: &Cell, objective: Objective, settings: &Settings) -> Vec<Entry> {
    // `sigma_init` stands with the networks.
    let Settings { sigma_init: _, levels, generator_lr, critic_lr, adam, ema_half_life } = settings;
    let mut entries = Vec::new();
    let judge = match objective {
        Objective::ClassRatio(_) => {
            entries.extend(
                ["generator_loss", "critic_loss", "critic_loss_weight", "critic_label", "class_prior"]
                    .map(fixed),
            );
            "critic"
        }
        Objective::Vsd => {
            entries.extend(["fake_score_loss", "diff_instruct_settings"].map(fixed));
            "fake score"
        }
    };
    if cell.start != Start::MultiLevel(Data::Target) {
        entries.push(fixed("initialisation_study_loss"));
    }
    entries.extend([
        fixed("weight"),
        value(&format!("{judge} noise level"), levels_text(*levels), &["critic_noise_level"]),
        value("generator noise level", levels_text(*levels), &["generator_noise_level"]),
        fixed("noise_levels"),
        fixed("critic_steps"),
        fixed("regularisers"),
        fixed("optimiser"),
        value("generator learning rate", format!("{generator_lr:e}"), &["learning_rate"]),
        value(&format!("{judge} learning rate"), format!("{critic_lr:e}"), &["learning_rate"]),
    ]);
    entries.extend(adam_entries("Adam", adam, &["adam_betas"], &["adam_eps"]));
    entries.extend([
        value("EMA half-life", format!("{} images", thousands(*ema_half_life)), &["ema"]),
        fixed("ema_ramp"),
    ]);
    entries
}

fn scores(cell: &Cell, drawn: bool, evaluation: &Evaluation, classifier: &ClassifierTraining) -> Vec<Entry> {
    let mut entries = Vec::new();
    if cell.method == Method::Teacher {
        entries.push(fixed("edm_sampler"));
    }
    entries.extend(["evaluated_weights", "image_quantisation"].map(fixed));
    let Evaluation { samples, trials, quick_samples, reference, neighbourhood, neighbours, splits } =
        evaluation;
    let samples = thousands(*samples as u64);
    let real = if drawn { "images drawn apart" } else { "training images" };
    entries.extend([
        value("fid samples", &samples, &["fid_samples"]),
        value("fid trials", trials, &["fid_trials"]),
        value("fid reference", format!("{} {real}", thousands(*reference as u64)), &["fid_reference"]),
        fixed("fid_statistics"),
        value("inception score", format!("{samples} samples, {splits} splits"), &["inception_score"]),
        fixed("collapse"),
        own("neighbours of recall", neighbours, "k of precision and recall; `collapse` was set with 5"),
        own(
            "images of recall",
            thousands(*neighbourhood as u64),
            "of the samples and of the real images, at most, in precision, recall and KID",
        ),
    ]);
    if cell.method != Method::Teacher {
        let note = "for the scores along the run; the final ones do not depend on them";
        entries.push(own("samples along the run", thousands(*quick_samples as u64), note));
    }
    if drawn {
        let ClassifierTraining { size, images, batch, lr, adam } = classifier;
        entries.push(value(
            "fid features",
            format!("a classifier of glyphs, {size} pixels"),
            &["fid_features"],
        ));
        let note = "the classifier that stands in for Inception-v3";
        entries.extend([
            own("classifier images", thousands(*images), note),
            own("classifier batch", batch, note),
            own("classifier learning rate", format!("{lr:e}"), note),
        ]);
        entries.extend(adam_entries("classifier Adam", adam, &[], &[]).map(|entry| Entry { note, ..entry }));
    } else {
        entries.push(fixed("fid_features"));
    }
    entries
}

fn adam_entries(of: &str, adam: &AdamConfig, betas: &[&'static str], epsilon: &[&'static str]) -> [Entry; 2] {
    let AdamConfig { beta1, beta2, eps, rectified } = adam;
    let rectified = if *rectified { ", rectified" } else { "" };
    [
        value(&format!("{of} betas"), format!("({beta1}, {beta2}){rectified}"), betas),
        value(&format!("{of} epsilon"), format!("{eps:e}"), epsilon),
    ]
}

// ---- the table of hyper-parameters ----

/// Widths of the columns: name, value here, value at the paper scale.
const COLUMNS: [usize; 3] = [27, 35, 34];

fn find<'a>(settings: &'a [Setting], name: &str) -> Option<&'a Setting> {
    settings.iter().find(|setting| setting.name == name)
}

/// The value of the entry of this name in another recipe.
fn value_in(entries: &[Entry], name: &str) -> Option<String> {
    entries.iter().find(|entry| entry.name == name).and_then(|entry| match &entry.value {
        Value::Recipe(value) => Some(value.clone()),
        Value::Fixed => None,
    })
}

fn parameters(page: &mut Page, cell: &Cell, recipe: &Recipe, sections: &[Section], settings: &[Setting]) {
    let entries = |recipe: &Recipe| -> Vec<Entry> {
        let mut all: Vec<Entry> = self::sections(cell, recipe).into_iter().flat_map(|(_, all)| all).collect();
        if from_checkpoint(cell, recipe) {
            // What made the checkpoint.
            all.extend(stage1(cell, recipe, &recipe.pretraining).into_iter().skip(1));
        }
        all
    };
    let (paper, usual) = (entries(&Recipe::of(Scale::Paper)), entries(&Recipe::of(recipe.scale)));
    page.heading("HYPER-PARAMETERS, and where they come from (paper/setup.csv)");
    page.wrapped("Values are those of this run; what no scale changes is quoted from the file.", 0);
    page.row(["", "here", "paper scale, where it differs"].map(str::to_string));
    for (title, entries) in sections {
        page.0.push('\n');
        page.wrapped(title, 0);
        for group in entries.chunk_by(|a, b| a.settings == b.settings && a.note == b.note) {
            let mut changes = Vec::new();
            for entry in group {
                let file =
                    entry.settings.first().and_then(|name| find(settings, name)).map(|s| s.value.clone());
                let (here, at_paper) = match &entry.value {
                    Value::Fixed => (file.unwrap_or_else(|| "?".to_string()), None),
                    Value::Recipe(here) => (here.clone(), value_in(&paper, &entry.name).or(file)),
                };
                let by_hand = value_in(&usual, &entry.name).filter(|usual| *usual != here);
                match by_hand {
                    Some(usual) => changes.push(format!("Changed by hand from {usual}.")),
                    None if at_paper.as_ref().is_some_and(|p| *p != here) => {
                        changes.push("Changed for this scale.".to_string());
                    }
                    None => {}
                }
                let differing = at_paper.filter(|value| *value != here);
                page.row([entry.name.clone(), here, differing.unwrap_or_default()]);
            }
            changes.dedup();
            page.sources(&group[0], &changes, settings);
        }
    }
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Stated => "stated",
        Origin::Ambiguous => "ambiguous",
        Origin::Silent => "silent",
        Origin::Ours => "ours",
    }
}

fn open_choices(page: &mut Page, sections: &[Section], settings: &[Setting]) {
    page.heading("WHAT THE PAPER LEAVES OPEN for this cell");
    let names: Vec<&str> =
        sections.iter().flat_map(|(_, entries)| entries).flat_map(|e| e.settings.iter().copied()).collect();
    for (wanted, words) in [
        (Origin::Ambiguous, "it can be read in more than one way"),
        (Origin::Silent, "it says nothing; we follow a source"),
        (Origin::Ours, "it says nothing; the choice is ours"),
    ] {
        let mut open: Vec<&str> = Vec::new();
        for name in &names {
            if find(settings, name).is_some_and(|s| s.origin == wanted) && !open.contains(name) {
                open.push(name);
            }
        }
        if !open.is_empty() {
            page.wrapped(&format!("{} ({words}): {}.", origin(wanted), open.join(", ")), 2);
        }
    }
}

fn new_divergence(page: &mut Page) {
    page.heading("TO ADD A DIVERGENCE");
    let text = format!(
        "Name it in `Divergence` ({}), give its phi as a function of the critic's logit in `phi` ({}), add a \
         line to `TABLE1` ({}) and one to paper/table1.csv. The generator minimises phi, and l > 0 means data: \
         phi must fall as l rises. Its slope in l says which samples count.",
        EQUATIONS.line("pub enum Divergence"),
        EQUATIONS.line("pub fn phi("),
        EXPERIMENT.line("pub const TABLE1")
    );
    page.wrapped(&text, 2);
}

// ---- text ----

#[derive(Default)]
struct Page(String);

impl Page {
    fn heading(&mut self, text: &str) {
        writeln!(self.0, "\n{text}").expect("writing to a string");
    }

    /// A paragraph, indented; further lines a little more.
    fn wrapped(&mut self, text: &str, indent: usize) {
        for (i, line) in wrap(text, WIDTH - indent - 2).into_iter().enumerate() {
            let indent = if i == 0 { indent } else { indent + 2 };
            writeln!(self.0, "{:indent$}{line}", "").expect("writing to a string");
        }
    }

    /// What is computed, and below it where.
    fn equation(&mut self, text: &str, place: String) {
        self.wrapped(text, 2);
        let place: String = place.chars().take(WIDTH - 9).collect();
        writeln!(self.0, "         {}", place.trim_end()).expect("writing to a string");
    }

    /// One row of the table, as many lines as its longest cell.
    fn row(&mut self, cells: [String; 3]) {
        let columns: Vec<Vec<String>> =
            cells.iter().zip(COLUMNS).map(|(text, width)| wrap(text, width)).collect();
        let lines = columns.iter().map(Vec::len).max().unwrap_or(0);
        for i in 0..lines {
            let cell = |c: usize| columns[c].get(i).map_or("", String::as_str);
            let [name, here, _] = COLUMNS;
            let line = format!("  {:name$} {:here$} {}", cell(0), cell(1), cell(2));
            writeln!(self.0, "{}", line.trim_end()).expect("writing to a string");
        }
    }

    /// Where the entries above come from.
    fn sources(&mut self, entry: &Entry, changes: &[String], settings: &[Setting]) {
        let mut texts: Vec<String> = changes.to_vec();
        if entry.settings.is_empty() {
            texts.push(format!("[ours] {}.", entry.note));
        }
        for name in &entry.settings {
            let Some(Setting { paper, place, reading, origin: from, .. }) = find(settings, name) else {
                texts.push(format!("{name} is not in setup.csv."));
                continue;
            };
            let words = match paper {
                Some(words) => format!(", {place}: \"{words}\"."),
                None if reading.is_empty() => ".".to_string(),
                None => ":".to_string(),
            };
            texts.push(format!("[{}] {name}{words} {reading}", origin(*from)));
        }
        self.wrapped(&texts.join(" "), 6);
    }
}

/// Lines of at most `width` characters; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("one line at least");
            let used = line.chars().count() + usize::from(!line.is_empty());
            if used + word.len() <= width {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            match line.is_empty() {
                true => line.extend(word.drain(..width)),
                false => lines.push(String::new()),
            }
        }
    }
    lines
}

fn list(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// `19,200`
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
