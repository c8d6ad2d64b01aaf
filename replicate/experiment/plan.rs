//! What a run costs, counted from its recipe before anything is run: for
//! `list`, and for whoever has to rent a machine.
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
use crate::error;
use crate::experiment::{Cell, Method, Recipe, Scale, Start};
use crate::measure::classifier::{Classifier, FEATURES};
use crate::method::distill::Objective;
use crate::method::sampler::edm::HEUN_STEPS;
use crate::network::params::outline;
use crate::network::unet::{Config, Critic, Denoiser, Told};
use crate::network::{Norm, Ops, Param, Plus, Resample};
pub use crate::text::{bytes, duration};
use crate::train::{AT_ONCE, GRID, Teaching, Training};
use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;
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

/// One-step training, or 35-call sampling of the teacher, then the samples and
/// their scores.
pub fn cell(recipe: &Recipe, cell: &Cell) -> Cost {
    let generator = denoiser(&recipe.network);
    let e = &recipe.evaluation;
    let scored = e.trials * e.samples;
    let features = |images: usize| images as f64 * features_forward(recipe);
    // The real images of the larger scales are measured once for all cells.
    let real = if recipe.scale.procedural() { e.reference } else { 0 };
    let scores = features(real + scored);
    let samples = (GRID_IMAGES + scored) as f64 * generator.flop();
    let Method::OneStep(objective) = cell.method else {
        let disk_bytes = TEXT + grid_bytes(&recipe.network);
        return Cost {
            flop: (2 * HEUN_STEPS - 1) as f64 * samples + scores,
            disk_bytes,
            peak_disk_bytes: disk_bytes,
            ..Cost::default()
        };
    };
    let (judge, per_image) = match objective {
        // Critic step: fakes; forward and backward on data and on fakes.
        // Generator step: forward and backward, through the critic's inputs.
        Objective::ClassRatio(_) => {
            let critic = critic(&recipe.network);
            let critic_step = generator.flop() + 2.0 * TRAINED * critic.flop();
            (critic, critic_step + TRAINED * generator.flop() + THROUGH * critic.flop())
        }
        // Fake score's step: fakes; forward and backward. Generator step:
        // forward and backward, with both scores held constant.
        Objective::Vsd => {
            let fake_step = generator.flop() + TRAINED * generator.flop();
            (generator, fake_step + TRAINED * generator.flop() + 2.0 * generator.flop())
        }
    };
    let steps = recipe.iterations();
    let looks = looks(steps, recipe.ticks);
    let quick = e.quick_samples;
    let look = (GRID_IMAGES + quick) as f64 * generator.flop() + features(quick);
    let step_flop = recipe.batch as f64 * per_image;
    Cost {
        flop: steps as f64 * step_flop + looks as f64 * look + samples + scores,
        steps,
        step_flop,
        parameters: generator.parameters + judge.parameters,
        ..disk(&recipe.network, looks, generator, &[generator, judge])
    }
}

/// Bytes of memory that one step of the cell's training takes at its peak, an
/// estimate: weights, gradients, Adam's moments and the average, and the outputs of
/// every operation of the larger of the two steps. For a cell that only samples, a
/// batch of samples. On a CPU, with the mini network and a batch of 512, processes
/// took 1.19 (DiJS) and 1.25 (Diff-Instruct) times what is counted: half as much is
/// added.
pub fn memory(recipe: &Recipe, cell: &Cell) -> u64 {
    let generator = denoiser(&recipe.network);
    let Method::OneStep(objective) = cell.method else {
        return bytes_of(generator.parameters + SAMPLED_AT_ONCE * generator.activations);
    };
    let batch = recipe.batch as u64;
    let (judge, critic_step, held) = match objective {
        Objective::ClassRatio(_) => {
            let critic = critic(&recipe.network);
            (critic, 2 * batch * critic.activations, batch * critic.activations)
        }
        // The teacher's and the fake score's outputs are held constant.
        Objective::Vsd => (generator, batch * generator.activations, 0),
    };
    let teacher = if objective == Objective::Vsd { generator.parameters } else { 0 };
    let kept = 5 * generator.parameters + 4 * judge.parameters + teacher;
    bytes_of(kept + critic_step.max(batch * generator.activations + held))
}

/// The largest part of the batch, halved again and again, with which the cell's step
/// fits into `bytes` of memory by [`memory`]; `None` if not even one image does.
pub fn fitting(recipe: &Recipe, cell: &Cell, bytes: u64) -> Option<usize> {
    let halves = std::iter::successors(Some(recipe.batch), |batch| (*batch > 1).then(|| batch.div_ceil(2)));
    let in_parts = |batch: usize| Recipe { batch, ..recipe.clone() };
    halves.into_iter().find(|batch| memory(&in_parts(*batch), cell) <= bytes)
}

/// Of float32 values, and half as much again.
fn bytes_of(values: u64) -> u64 {
    4 * values * 3 / 2
}

/// [`memory`] of a step of pre-training.
pub fn pretraining_memory(recipe: &Recipe) -> u64 {
    let network = denoiser(&recipe.network);
    let at_once = recipe.pretraining.batch.min(AT_ONCE) as u64;
    bytes_of(5 * network.parameters + at_once * network.activations)
}

/// Denoising score matching; nothing for `Start::Random`.
pub fn pretraining(recipe: &Recipe, start: Start) -> Cost {
    if start == Start::Random {
        return Cost::default();
    }
    let network = denoiser(&recipe.network);
    let p = &recipe.pretraining;
    let steps = p.images.div_ceil(p.batch as u64);
    let looks = looks(steps, recipe.ticks);
    let step_flop = p.batch as f64 * TRAINED * network.flop();
    let look = GRID_IMAGES as f64 * network.flop();
    Cost {
        flop: steps as f64 * step_flop + looks as f64 * look,
        steps,
        step_flop,
        parameters: network.parameters,
        ..disk(&recipe.network, looks, network, &[network])
    }
}

/// Forward and backward of a network that is trained, in forward passes.
const TRAINED: f64 = 3.0;
/// Forward, and backward to the inputs only.
const THROUGH: f64 = 2.0;
const GRID_IMAGES: usize = GRID.0 * GRID.0;
/// The batch of `train::generate`.
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
fn disk(config: &Config, looks: u64, averaged: Count, trained: &[Count]) -> Cost {
    let tensors = |c: &Count, copies: u64| copies * (4 * c.parameters + TENSOR_TEXT * c.tensors);
    let weights = tensors(&averaged, 1);
    let text = TEXT + looks * LOOK_TEXT;
    // The grids of the looks and that of the finished network.
    let files = text + (looks + 1) * grid_bytes(config);
    let checkpoint = weights + trained.iter().map(|c| tensors(c, 3)).sum::<u64>() + text;
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
    denoiser(config).flop()
}

/// Operations of the feature network's forward pass on one image.
pub fn classifier_forward(size: usize) -> f64 {
    let network = outlined(Classifier::new);
    let body = Count::of(&network.parameters, |ops| network.features(ops, &[3, size, size]));
    let head = Count::of(&network.head.parameters, |ops| network.logits(ops, &[FEATURES, 1, 1]));
    body.flop() + head.flop()
}

/// Operations of Inception-v3 on one image of 299 pixels, our count.
const INCEPTION_FLOP: f64 = 11.4e9;

fn features_forward(recipe: &Recipe) -> f64 {
    match recipe.scale.procedural() {
        true => classifier_forward(recipe.network.size),
        false => INCEPTION_FLOP,
    }
}

/// The features of the real images, which are measured once for all cells; nothing
/// where they are drawn.
pub fn reference(recipe: &Recipe) -> Cost {
    if recipe.scale.procedural() {
        return Cost::default();
    }
    let (e, dim) = (&recipe.evaluation, crate::measure::inception::FEATURES);
    let disk_bytes =
        TEXT + (8 * dim * (dim + 1) + 4 * dim * (e.neighbourhood + crate::measure::evaluate::TARGETS)) as u64;
    Cost {
        flop: e.reference as f64 * INCEPTION_FLOP,
        disk_bytes,
        peak_disk_bytes: disk_bytes,
        ..Cost::default()
    }
}

/// What a network has, and does with one image.
#[derive(Clone, Copy, Default)]
struct Count {
    multiply_adds: u64,
    /// Values that a pass backwards needs: the output of every operation.
    activations: u64,
    parameters: u64,
    tensors: u64,
}

impl Count {
    /// Of a network with these parameters, through which `walk` goes.
    fn of(parameters: &[Tensor], walk: impl FnOnce(&mut Counter) -> Result<Size>) -> Count {
        let scalars = parameters.iter().map(Tensor::elem_count).sum::<usize>() as u64;
        let count = Count { parameters: scalars, tensors: parameters.len() as u64, ..Count::default() };
        let mut counter = Counter { parameters, count };
        walk(&mut counter).expect("shapes are all that a count needs");
        counter.count
    }

    fn flop(&self) -> f64 {
        2.0 * self.multiply_adds as f64
    }
}

/// Channels, rows and columns of pixels.
type Size = [usize; 3];

/// Counts the operations of a network, of which it carries none out.
struct Counter<'a> {
    parameters: &'a [Tensor],
    count: Count,
}

impl Counter<'_> {
    fn output(&mut self, size: Size) -> Result<Size> {
        self.count.activations += size.iter().product::<usize>() as u64;
        Ok(size)
    }
}

impl Ops for Counter<'_> {
    type Map = Size;

    fn rows(&mut self, _: Vec<f32>, channels: usize) -> Result<Size> {
        self.output([channels, 1, 1])
    }

    fn constant(&mut self, x: &Tensor) -> Result<Size> {
        self.output([1, 2, 3].map(|axis| x.dims().get(axis).copied().unwrap_or(1)))
    }

    fn conv(&mut self, &[_, h, w]: &Size, weight: Param, _: Option<Param>, plus: Plus<Size>) -> Result<Size> {
        let weight = &self.parameters[weight.0];
        self.count.multiply_adds += (weight.elem_count() * h * w) as u64;
        let y = [weight.dim(0)?, h, w];
        // Where operations are composed, the sum is kept beside what was added.
        if plus.residual.is_some() {
            self.output(y)?;
        }
        self.output(y)
    }

    fn norm(&mut self, x: &Size, _: &Norm) -> Result<Size> {
        self.output(*x)
    }

    fn attention(&mut self, &[c3, h, w]: &Size) -> Result<Size> {
        let (channels, pixels) = (c3 / 3, h * w);
        // q^T k, and the weighted sum of v.
        self.count.multiply_adds += (2 * channels * pixels * pixels) as u64;
        self.output([channels, h, w])
    }

    fn silu(&mut self, x: &Size) -> Result<Size> {
        self.output(*x)
    }

    fn down2(&mut self, &[c, h, w]: &Size) -> Result<Size> {
        self.output([c, h / 2, w / 2])
    }

    fn up2(&mut self, &[c, h, w]: &Size) -> Result<Size> {
        self.output([c, 2 * h, 2 * w])
    }

    fn concat(&mut self, &[a, h, w]: &Size, &[b, ..]: &Size) -> Result<Size> {
        self.output([a + b, h, w])
    }

    fn mean(&mut self, &[c, ..]: &Size) -> Result<Size> {
        self.output([c, 1, 1])
    }

    fn leaky(&mut self, x: &Size, _: &Size, _: f32) -> Result<Size> {
        self.output(*x)
    }

    fn scale(&mut self, x: &Size, _: &Size) -> Result<Size> {
        self.output(*x)
    }

    fn rsqrt(&mut self, x: &Size, _: f32) -> Result<Size> {
        self.output(*x)
    }

    fn resample(&mut self, &[c, h, w]: &Size, resample: &Resample) -> Result<Size> {
        self.output([c, resample.output(h), resample.output(w)])
    }
}

/// A network to be counted: its parameters have no values.
fn outlined<M>(network: impl FnOnce(VarBuilder) -> Result<M>) -> M {
    outline(network).expect("zeros have any shape").0
}

/// One image that is not augmented.
const UNTOLD: Told = Told { noise: &[0.0], augment: None };

fn image(config: &Config) -> Size {
    [config.image_channels, config.size, config.size]
}

fn denoiser(config: &Config) -> Count {
    let network = outlined(|vb| Denoiser::new(config, vb));
    Count::of(&network.parameters, |ops| network.walk(ops, &image(config), &UNTOLD))
}

fn critic(config: &Config) -> Count {
    let network = outlined(|vb| Critic::new(config, vb));
    Count::of(&network.parameters, |ops| network.walk(ops, &image(config), &UNTOLD))
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
        let mut training = Teaching::new(device, &recipe, recipe.pretraining.levels, &images, "probe")?;
        let mut step = |k: u64| -> error::Result<f64> {
            let started = Instant::now();
            training.step(k, (k + 1) * batch as u64)?;
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
            return Ok((steps * batch as u64) as f64 * TRAINED * forward(&recipe.network) / seconds);
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
