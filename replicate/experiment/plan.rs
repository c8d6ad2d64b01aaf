//! Estimates the cost of a run from its recipe, for `list` and `run --dry-run`.
//!
//! Counts the operations of convolutions, linear layers and attention, two for each multiply-add. A
//! backward pass costs one forward pass for the gradient of the inputs and one for that of the
//! parameters. Norms, activations, resampling, the optimiser, random numbers, the drawing of
//! images, and the metrics after the features are not counted.
//!
//! The time is the count divided by a rate, as if every operation were equally fast. At scale mini
//! on two CPU cores with AVX-512, a pre-training step reaches 160 to 167 GFLOP/s (of the counted
//! operations: Winograd's convolutions do fewer). Ten rows (edm, diff-instruct, dirm, dikl, dijs,
//! init-*) took 0.87 (the teacher's samples) to 1.23 times the estimate from that rate. The count
//! ignores memory traffic: on the same cores with six times as many busy processes, backward passes
//! slowed down more than forward passes, and the teacher's samples took 0.4 of their estimate. On a
//! GPU the mini network does not fill the device, and the probe was not compared with any run: take
//! its estimate for larger networks as an upper bound.

use crate::data::Images;
use crate::data::grid::GRID;
use crate::error;
use crate::experiment::Scale;
use crate::experiment::recipe::{Budget, Recipe};
use crate::measure::classifier::{Classifier, Layout};
use crate::method::cost::{Call, Network, Pass, Role, Size};
use crate::method::score_matching::{MICROBATCH, ScoreMatching};
use crate::method::{FULL_INITIALIZATION, Initialization, Row, TrainingSpec};
use crate::network::count::{Count, outlined};
use crate::network::device::Compute;
use crate::network::unet::Config;
pub use crate::text::{bytes, duration};
use crate::train::Method;
use crate::train::batch::Batches;
use std::time::Instant;

/// Cost of one entry of the store, without that of its parents (pre-training, feature network).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations: all steps, all samples, all features.
    pub flop: f64,
    /// Training steps; 0 if nothing is trained.
    pub steps: u64,
    /// Floating-point operations of one step, included in `flop`.
    pub step_flop: f64,
    /// Trained scalars: those of the generator and of the critic or fake score, or those of the
    /// U-Net in a pre-training.
    pub parameters: u64,
    /// Upper bound of the bytes of the files that stay. It excludes TensorBoard's events, which
    /// hold the grids a second time.
    pub disk_bytes: u64,
    /// Largest number of bytes at any moment: two checkpoints, and a third while it is written
    /// before it replaces the older one.
    pub peak_disk_bytes: u64,
}

/// Returns the cost of a row: its training if it has one, its samples and their scores.
pub fn row(recipe: &Recipe, row: &Row) -> Cost {
    let (config, e) = (&recipe.network, &recipe.evaluation);
    let sample = (row.method.nfe)(&recipe.overrides) as f64 * sampled(row).count(config).flop();
    let scored = e.trials * e.samples;
    let features = |images: usize| images as f64 * features_forward(recipe);
    // The real images of the larger scales are measured once for all rows.
    let real = if recipe.scale.procedural() { e.reference } else { 0 };
    let scores = features(real + scored) + (GRID_IMAGES + scored) as f64 * sample;
    let Some(training) = &row.method.training else {
        let disk_bytes = TEXT + grid_bytes(config);
        return Cost { flop: scores, disk_bytes, peak_disk_bytes: disk_bytes, ..Cost::default() };
    };
    let steps = recipe.iterations(row);
    let looks = looks(steps, recipe.ticks_of(row));
    let quick = e.quick_samples;
    let look = (GRID_IMAGES + quick) as f64 * sample + features(quick);
    let of_image: f64 = step(recipe, row, training).iter().map(|(_, flop)| flop).sum();
    let step_flop = recipe.budget.batch as f64 * of_image;
    let learned: Vec<(Role, Count)> = learned(training, config).collect();
    Cost {
        flop: steps as f64 * step_flop + looks as f64 * look + scores,
        steps,
        step_flop,
        parameters: learned.iter().map(|(_, count)| count.parameters).sum(),
        ..disk(config, looks, &learned)
    }
}

/// Returns the network that makes the row's samples.
fn sampled(row: &Row) -> Size {
    let trained = row.method.training.iter().flat_map(|training| training.networks);
    let averaged = trained.filter(|network| network.role == Role::Averaged).map(|network| network.size);
    averaged.into_iter().next().unwrap_or(Size::Denoiser)
}

/// Returns the operations of one iteration for each image, by network.
fn step(recipe: &Recipe, row: &Row, training: &TrainingSpec) -> Vec<(&'static str, f64)> {
    let repeated = recipe.method_settings(row).iter().any(|setting| setting.field.name == "critic_steps");
    let times = |call: &Call| match call.step {
        0 if repeated => call.times * recipe.one_step.critic_steps as f64,
        _ => call.times,
    };
    let overrides = recipe.overrides_of(row);
    let forwards = |network: &Network| -> f64 {
        let calls = training.calls.iter().filter(|call| call.network == network.name);
        calls.map(|call| times(call) * call.pass.forwards(&overrides)).sum()
    };
    let networks = training.networks.iter();
    networks.map(|n| (n.name, forwards(n) * n.size.count(&recipe.network).flop())).collect()
}

/// Times the operations of DiJS above which [`costly`] explains a row's cost.
const COSTLY: f64 = 3.0;

/// Explains the cost of a row that takes more than three times the operations of DiJS, pre-trainings
/// not counted; `None` for the other rows.
pub fn costly(recipe: &Recipe, cell: &Row) -> Option<String> {
    let training = cell.method.training.as_ref()?;
    let (ours, dijs) = (row(recipe, cell), row(recipe, &FULL_INITIALIZATION));
    let times = ours.flop / dijs.flop;
    if times <= COSTLY {
        return None;
    }
    let parts = step(recipe, cell, training);
    let all: f64 = parts.iter().map(|(_, flop)| flop).sum();
    let (most, flop) = parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let iterations = match ours.steps == dijs.steps {
        true => "as many iterations".to_string(),
        false => format!("{:.1} times the iterations", ours.steps as f64 / dijs.steps as f64),
    };
    let mostly = match network(training, most).role {
        Role::Averaged => String::new(),
        _ => format!(", {:.0} % of them in the {most}", 100.0 * flop / all),
    };
    let (id, each) = (FULL_INITIALIZATION.id, ours.step_flop / dijs.step_flop);
    Some(format!(
        "{times:.1} times the operations of {id}: {iterations}, each with {each:.1} times the operations{mostly}"
    ))
}

fn network<'a>(training: &'a TrainingSpec, name: &str) -> &'a Network {
    let named = training.networks.iter().find(|network| network.name == name);
    named.unwrap_or_else(|| panic!("a call of {name}, which is not a network of the method"))
}

fn learned(training: &TrainingSpec, config: &Config) -> impl Iterator<Item = (Role, Count)> {
    let learned = training.networks.iter().filter(|network| network.role.learns());
    learned.map(|network| (network.role, network.size.count(config)))
}

/// Estimates the peak memory of one training step of the row, in bytes: weights, gradients, Adam's
/// moments and averages, and the outputs of every operation in the largest step of an iteration.
/// For a row that only samples, it is a batch of samples. On a CPU, with the mini network and a
/// batch of 512, processes took 1.19 (DiJS) and 1.25 (Diff-Instruct) times the count, so half of
/// the count is added.
pub fn memory(recipe: &Recipe, row: &Row) -> u64 {
    let config = &recipe.network;
    let Some(training) = &row.method.training else {
        let denoiser = Count::denoiser(config);
        return bytes_of(denoiser.parameters + SAMPLED_AT_ONCE * denoiser.activations);
    };
    let kept =
        training.networks.iter().map(|n| n.role.copies() * n.size.count(config).parameters).sum::<u64>();
    let mut steps = std::collections::BTreeMap::new();
    for call in training.calls.iter().filter(|call| call.pass.is_kept()) {
        let activations = network(training, call.network).size.count(config).activations as f64;
        *steps.entry(call.step).or_insert(0.0) += recipe.budget.batch as f64 * call.times * activations;
    }
    bytes_of(kept + steps.into_values().fold(0.0, f64::max) as u64)
}

/// Returns the smallest microbatch of the row, a group of images that belong together.
pub fn smallest_microbatch(recipe: &Recipe, row: &Row) -> usize {
    let group = row.method.training.as_ref().map_or(1, |training| (training.group)(&recipe.overrides));
    group.min(recipe.budget.batch)
}

/// Returns the largest microbatch, from halving the batch repeatedly, whose step fits into `bytes`
/// by [`memory`]; `None` if not even the smallest fits.
pub fn fitting(recipe: &Recipe, row: &Row, bytes: u64) -> Option<usize> {
    let group = smallest_microbatch(recipe, row);
    let halves = std::iter::successors(Some(recipe.budget.batch), |batch| {
        (*batch > group).then(|| batch.div_ceil(2).next_multiple_of(group))
    });
    let in_parts =
        |batch: usize| Recipe { budget: Budget { batch, ..recipe.budget.clone() }, ..recipe.clone() };
    halves.into_iter().find(|batch| memory(&in_parts(*batch), row) <= bytes)
}

/// Returns the bytes of float32 values, and half as much again.
fn bytes_of(values: u64) -> u64 {
    4 * values * 3 / 2
}

/// As [`memory`], for a step of pre-training.
pub fn pretraining_memory(recipe: &Recipe) -> u64 {
    let network = Count::denoiser(&recipe.network);
    let at_once = recipe.pretraining.batch.min(MICROBATCH) as u64;
    bytes_of(5 * network.parameters + at_once * network.activations)
}

/// Returns the cost of denoising score matching; zero for `Initialization::Random`.
pub fn pretraining(recipe: &Recipe, start: Initialization) -> Cost {
    if start == Initialization::Random {
        return Cost::default();
    }
    let network = Count::denoiser(&recipe.network);
    let p = &recipe.pretraining;
    let steps = p.images.div_ceil(p.batch as u64);
    let looks = looks(steps, recipe.budget.ticks);
    let step_flop = p.batch as f64 * Pass::Trained.forwards(&recipe.overrides) * network.flop();
    let look = GRID_IMAGES as f64 * network.flop();
    Cost {
        flop: steps as f64 * step_flop + looks as f64 * look,
        steps,
        step_flop,
        parameters: network.parameters,
        ..disk(&recipe.network, looks, &[(Role::Averaged, network)])
    }
}

const GRID_IMAGES: usize = GRID.0 * GRID.0;
/// Batch size of `measure::sample::generate`.
const SAMPLED_AT_ONCE: u64 = 100;

/// Returns how often a training writes a grid: once at the start, and at each tick.
fn looks(steps: u64, ticks: u64) -> u64 {
    1 + steps.div_ceil(steps.div_ceil(ticks).max(1))
}

/// Bytes of the experiment's text, the manifest, scores and times: about 4 kB.
const TEXT: u64 = 8192;
/// Bytes of each tick: a line of the metrics, an output in the manifest.
const LOOK_TEXT: u64 = 256;
/// Bytes of a tensor's name, shape and place in the header of a safetensors file.
const TENSOR_TEXT: u64 = 160;

/// Returns the fields of `Cost` about disk. Each trained network is saved with Adam's two moments;
/// an averaged network also with the average that is published.
fn disk(config: &Config, looks: u64, learned: &[(Role, Count)]) -> Cost {
    let tensors = |c: &Count, copies: u64| copies * (4 * c.parameters + TENSOR_TEXT * c.tensors);
    let weights: u64 =
        learned.iter().filter(|(role, _)| *role == Role::Averaged).map(|(_, c)| tensors(c, 1)).sum();
    let text = TEXT + looks * LOOK_TEXT;
    // One grid for each tick, and one of the finished network.
    let files = text + (looks + 1) * grid_bytes(config);
    let checkpoint = weights + learned.iter().map(|(_, c)| tensors(c, 3)).sum::<u64>() + text;
    Cost { disk_bytes: files + weights, peak_disk_bytes: files + 3 * checkpoint, ..Cost::default() }
}

/// Returns an upper bound of a grid's PNG in bytes. Compression removes the repetition of the zoom.
/// The images themselves take 2.0 bytes a value for noise, and 2.13 for the worst pattern tried.
fn grid_bytes(config: &Config) -> u64 {
    let values = GRID_IMAGES * config.image_channels * config.size * config.size;
    (values * 9 / 4 + 4096) as u64
}

/// Returns the operations of the U-Net's forward pass on one image, without an augmentation label.
pub fn forward(config: &Config) -> f64 {
    Count::denoiser(config).flop()
}

/// Returns the operations of the feature network's forward pass on one image.
pub fn classifier_forward(layout: Layout, size: usize) -> f64 {
    let network = outlined(|vb| Classifier::new(layout, vb));
    Count::of(&network.parameters, &network, &[[3, size, size]]).flop()
}

/// Operations of Inception-v3 on one image of 299 x 299 pixels, by our count.
const INCEPTION_FLOP: f64 = 11.4e9;

fn features_forward(recipe: &Recipe) -> f64 {
    match recipe.scale.has_own_features() {
        true => classifier_forward(Layout::of(recipe.scale), recipe.network.size),
        false => INCEPTION_FLOP,
    }
}

/// Returns the cost of the real images' features, which are measured once for all cells; zero if
/// the images are drawn.
pub fn reference(recipe: &Recipe) -> Cost {
    if recipe.scale.procedural() {
        return Cost::default();
    }
    let dim = match recipe.scale.has_own_features() {
        true => Layout::of(recipe.scale).features(),
        false => crate::measure::inception::FEATURES,
    };
    let e = &recipe.evaluation;
    let disk_bytes =
        TEXT + (8 * dim * (dim + 1) + 4 * dim * (e.neighbourhood + crate::measure::evaluate::TARGETS)) as u64;
    Cost {
        flop: e.reference as f64 * features_forward(recipe),
        disk_bytes,
        peak_disk_bytes: disk_bytes,
        ..Cost::default()
    }
}

/// Estimates the seconds of `cost` at a rate from [`probe`] or from a finished run
/// ([`Cost::rate`]).
pub fn seconds(cost: &Cost, flops_per_second: f64) -> f64 {
    cost.flop / flops_per_second
}

impl Cost {
    /// Returns the operations per second of a finished run of this cost, from its
    /// `seconds_per_step`. For the same row it is more accurate than a probe.
    pub fn rate(&self, seconds_per_step: f64) -> f64 {
        self.step_flop / seconds_per_step
    }
}

/// Measures the operations per second of `compute`, for the mini network's denoising score matching
/// steps. It takes about a second. The batch grows until a step takes a tenth of a second, so that
/// the overhead of a step counts for little.
///
/// # Errors
/// Those of a training step.
pub fn probe(compute: &Compute) -> error::Result<f64> {
    const LONG_STEP: f64 = 0.1;
    const LARGEST_BATCH: usize = 1024;
    let mut recipe = Recipe::of(Scale::Mini);
    let (channels, size) = (recipe.network.image_channels, recipe.network.size);
    let images = Images { channels, size, pixels: vec![0; channels * size * size], labels: vec![0] };
    let mut batch = 16;
    loop {
        recipe.pretraining.batch = batch;
        let settings = &recipe.pretraining;
        let mut training =
            ScoreMatching::new(compute, &recipe.network, settings, settings.levels(), "probe")?;
        let batches = Batches {
            images: &images,
            device: compute.device.clone(),
            size: batch,
            microbatch: MICROBATCH,
            augmentation: recipe.pretraining.augmentation(),
            cell: "probe".into(),
        };
        let mut step = |k: u64| -> error::Result<f64> {
            let started = Instant::now();
            training.step(&batches.at(k))?;
            compute.device.synchronize()?;
            Ok(started.elapsed().as_secs_f64())
        };
        // The first step also waits for memory and, on a GPU, for kernels to load.
        step(0)?;
        let mut seconds = step(1)?;
        if seconds >= LONG_STEP || batch >= LARGEST_BATCH {
            let mut steps = 1;
            while seconds < 3.0 * LONG_STEP {
                seconds += step(1 + steps)?;
                steps += 1;
            }
            return Ok((steps * batch as u64) as f64
                * Pass::Trained.forwards(&recipe.overrides)
                * forward(&recipe.network)
                / seconds);
        }
        batch *= 4;
    }
}

/// Formats a number of operations with two or three digits: "17.9 TFLOP".
pub fn operations(flop: f64) -> String {
    let units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"];
    let (mut value, mut unit) = (flop, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if value < 9.95 { format!("{value:.1} {}", units[unit]) } else { format!("{value:.0} {}", units[unit]) }
}
