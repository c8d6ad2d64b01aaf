//! What a run costs, counted from its recipe before anything is run: for
//! `list` and `run --dry-run`.
//!
//! Operations are those of the convolutions, linear layers and attention, two
//! for each multiply-add. A pass backwards costs one forward pass for the
//! gradient of the inputs and one for that of the parameters. Norms,
//! activations, resampling, the optimiser, the drawing of noise and of images
//! and the metrics behind the features are not counted.
//!
//! A time is a count over a rate, as if every operation were equally fast. At
//! the mini scale on two CPU cores with AVX-512 a pre-training step makes 160 to 167
//! GFLOP/s (of the operations counted: Winograd's convolutions do fewer); the ten
//! rows of both tables took 0.87 (the teacher's samples) to 1.23 times of what is
//! estimated from that rate. It is memory that the count leaves out: on the same
//! cores among six times as many busy processes, backward passes slowed down more
//! than forward ones, and the teacher's samples took 0.4 of their estimate. On a
//! GPU, where the mini network cannot fill the device, the probe has not been
//! compared with anything: take its estimate for larger networks as an upper bound.

use crate::data::Images;
use crate::data::grid::GRID;
use crate::error;
use crate::experiment::Scale;
use crate::experiment::recipe::{Budget, Recipe};
use crate::measure::classifier::{Classifier, Layout};
use crate::method::cost::{Call, Network, Pass, Role, Size};
use crate::method::score_matching::{MICROBATCH, ScoreMatching};
use crate::method::{Initialization, Row, Trained};
use crate::network::count::{Count, outlined};
use crate::network::unet::Config;
pub use crate::text::{bytes, duration};
use crate::train::Method;
use crate::train::batch::Batches;
use candle_core::Device;
use std::time::Instant;

/// What one entry of the store costs, its parents (pre-training, feature
/// network) excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations: all steps, all samples, all features.
    pub flop: f64,
    /// Steps of the training; 0 where nothing is trained.
    pub steps: u64,
    /// Of `flop`, those of one step.
    pub step_flop: f64,
    /// Scalars that are trained: of the generator and of the critic or fake
    /// score; of the U-Net in a pre-training.
    pub parameters: u64,
    /// Bytes of the files that stay, an upper bound; without TensorBoard's
    /// events, which hold the grids once more.
    pub disk_bytes: u64,
    /// The most bytes there are at any moment: two checkpoints, and a third
    /// that is being written before it replaces the older one.
    pub peak_disk_bytes: u64,
}

/// The training of a row where it has one, then the samples and their scores.
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
    let step_flop = recipe.budget.batch as f64 * step(recipe, row, training);
    let learned: Vec<(Role, Count)> = learned(training, config).collect();
    Cost {
        flop: steps as f64 * step_flop + looks as f64 * look + scores,
        steps,
        step_flop,
        parameters: learned.iter().map(|(_, count)| count.parameters).sum(),
        ..disk(config, looks, &learned)
    }
}

/// The network that makes the row's samples.
fn sampled(row: &Row) -> Size {
    let trained = row.method.training.iter().flat_map(|training| training.networks);
    let averaged = trained.filter(|network| network.role == Role::Averaged).map(|network| network.size);
    averaged.into_iter().next().unwrap_or(Size::Denoiser)
}

/// Operations of one iteration, an image.
fn step(recipe: &Recipe, row: &Row, training: &Trained) -> f64 {
    let flop = |name: &str| network(training, name).size.count(&recipe.network).flop();
    let repeated = recipe.method_settings(row).iter().any(|setting| setting.field.name == "critic_steps");
    let times = |call: &Call| match call.step {
        0 if repeated => call.times * recipe.one_step.critic_steps as f64,
        _ => call.times,
    };
    training
        .calls
        .iter()
        .map(|call| times(call) * call.pass.forwards(&recipe.overrides) * flop(call.network))
        .sum()
}

fn network<'a>(training: &'a Trained, name: &str) -> &'a Network {
    let named = training.networks.iter().find(|network| network.name == name);
    named.unwrap_or_else(|| panic!("a call of {name}, which is none of the method's networks"))
}

fn learned(training: &Trained, config: &Config) -> impl Iterator<Item = (Role, Count)> {
    let learned = training.networks.iter().filter(|network| network.role.learns());
    learned.map(|network| (network.role, network.size.count(config)))
}

/// Bytes of memory that one step of the row's training takes at its peak, an
/// estimate: weights, gradients, Adam's moments and averages, and the outputs of
/// every operation of the largest of an iteration's steps. For a row that only samples,
/// a batch of samples. On a CPU, with the mini network and a batch of 512, processes
/// took 1.19 (DiJS) and 1.25 (Diff-Instruct) times what is counted: half as much is
/// added.
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

/// The largest part of the batch, halved again and again, with which the row's step
/// fits into `bytes` of memory by [`memory`]; `None` if not even one image does.
pub fn fitting(recipe: &Recipe, row: &Row, bytes: u64) -> Option<usize> {
    let halves =
        std::iter::successors(Some(recipe.budget.batch), |batch| (*batch > 1).then(|| batch.div_ceil(2)));
    let in_parts =
        |batch: usize| Recipe { budget: Budget { batch, ..recipe.budget.clone() }, ..recipe.clone() };
    halves.into_iter().find(|batch| memory(&in_parts(*batch), row) <= bytes)
}

/// Of float32 values, and half as much again.
fn bytes_of(values: u64) -> u64 {
    4 * values * 3 / 2
}

/// [`memory`] of a step of pre-training.
pub fn pretraining_memory(recipe: &Recipe) -> u64 {
    let network = Count::denoiser(&recipe.network);
    let at_once = recipe.pretraining.batch.min(MICROBATCH) as u64;
    bytes_of(5 * network.parameters + at_once * network.activations)
}

/// Denoising score matching; nothing for `Initialization::Random`.
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
/// The batch of `measure::sample::generate`.
const SAMPLED_AT_ONCE: u64 = 100;

/// How often a training writes a grid: at the beginning, and at each tick.
fn looks(steps: u64, ticks: u64) -> u64 {
    1 + steps.div_ceil(steps.div_ceil(ticks).max(1))
}

/// The experiment's text, the manifest, scores and times: 4 kB or so.
const TEXT: u64 = 8192;
/// Of each look: a line of the metrics, an output in the manifest.
const LOOK_TEXT: u64 = 256;
/// A tensor's name, shape and place in the header of a safetensors file.
const TENSOR_TEXT: u64 = 160;

/// The fields of `Cost` about disk. Each trained network is saved with Adam's
/// two moments; `averaged` also has the average that is published.
fn disk(config: &Config, looks: u64, learned: &[(Role, Count)]) -> Cost {
    let tensors = |c: &Count, copies: u64| copies * (4 * c.parameters + TENSOR_TEXT * c.tensors);
    let weights: u64 =
        learned.iter().filter(|(role, _)| *role == Role::Averaged).map(|(_, c)| tensors(c, 1)).sum();
    let text = TEXT + looks * LOOK_TEXT;
    // The grids of the looks and that of the finished network.
    let files = text + (looks + 1) * grid_bytes(config);
    let checkpoint = weights + learned.iter().map(|(_, c)| tensors(c, 3)).sum::<u64>() + text;
    Cost { disk_bytes: files + weights, peak_disk_bytes: files + 3 * checkpoint, ..Cost::default() }
}

/// An upper bound of a grid's PNG. What the zoom repeats is compressed away; of
/// the images themselves, noise takes 2.0 bytes a value and the worst pattern
/// that was tried 2.13.
fn grid_bytes(config: &Config) -> u64 {
    let values = GRID_IMAGES * config.image_channels * config.size * config.size;
    (values * 9 / 4 + 4096) as u64
}

/// Operations of the U-Net's forward pass on one image, without an
/// augmentation label.
pub fn forward(config: &Config) -> f64 {
    Count::denoiser(config).flop()
}

/// Operations of the feature network's forward pass on one image.
pub fn classifier_forward(layout: Layout, size: usize) -> f64 {
    let network = outlined(|vb| Classifier::new(layout, vb));
    Count::of(&network.parameters, &network, &[[3, size, size]]).flop()
}

/// Operations of Inception-v3 on one image of 299 pixels, our count.
const INCEPTION_FLOP: f64 = 11.4e9;

fn features_forward(recipe: &Recipe) -> f64 {
    match recipe.scale.has_own_features() {
        true => classifier_forward(Layout::of(recipe.scale), recipe.network.size),
        false => INCEPTION_FLOP,
    }
}

/// The features of the real images, which are measured once for all cells; nothing
/// where they are drawn.
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

/// Estimated seconds of `cost` at so many operations a second: of [`probe`], or
/// of a finished run ([`Cost::rate`]).
pub fn seconds(cost: &Cost, flops_per_second: f64) -> f64 {
    cost.flop / flops_per_second
}

impl Cost {
    /// Operations a second of a finished run of this cost that took
    /// `seconds_per_step`: for the same row, a better guide than any probe.
    pub fn rate(&self, seconds_per_step: f64) -> f64 {
        self.step_flop / seconds_per_step
    }
}

/// Operations a second on `device` of the mini network's denoising score
/// matching steps, measured in about a second. The batch grows until a step
/// takes a tenth of a second, so that what precedes and follows the arithmetic
/// counts for little.
///
/// # Errors
/// What a training step can fail with.
pub fn probe(device: &Device) -> error::Result<f64> {
    const LONG_STEP: f64 = 0.1;
    const LARGEST_BATCH: usize = 1024;
    let mut recipe = Recipe::of(Scale::Mini);
    let (channels, size) = (recipe.network.image_channels, recipe.network.size);
    let images = Images { channels, size, pixels: vec![0; channels * size * size], labels: vec![0] };
    let mut batch = 16;
    loop {
        recipe.pretraining.batch = batch;
        let settings = &recipe.pretraining;
        let mut training = ScoreMatching::new(device, &recipe.network, settings, settings.levels(), "probe")?;
        let batches = Batches {
            images: &images,
            device: device.clone(),
            size: batch,
            microbatch: MICROBATCH,
            augmentation: recipe.pretraining.augmentation(),
            cell: "probe".into(),
        };
        let mut step = |k: u64| -> error::Result<f64> {
            let started = Instant::now();
            training.step(&batches.at(k))?;
            device.synchronize()?;
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

/// A number of operations with two digits or three: "17.9 TFLOP".
pub fn operations(flop: f64) -> String {
    let units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"];
    let (mut value, mut unit) = (flop, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if value < 9.95 { format!("{value:.1} {}", units[unit]) } else { format!("{value:.0} {}", units[unit]) }
}
