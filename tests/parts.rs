//! A step that takes its batch in parts is the step that takes it whole, but for
//! rounding.

use candle_core::{Device, Tensor};
use replicate::app::selftest::fixture::relative_error;
use replicate::experiment::plan;
use replicate::experiment::{FULL_INITIALISATION, Recipe, Scale};
use replicate::method::distill::{CriticBatch, GeneratorBatch, Initial, Objective, OneStep, Settings, strip};
use replicate::method::equations::Divergence;
use replicate::method::noise::Levels;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Config, Denoiser};
use replicate::rng::Stream;
use replicate::train::adam::AdamConfig;
use replicate::train::augment::{Augmentation, Draw};
use std::process::Command;

const BATCH: usize = 7;
/// As `OneStep::at_once` promises.
const TOLERANCE: f64 = 1e-5;

fn config() -> Config {
    Config { augment_labels: 9, ..Recipe::of(Scale::Smoke).network }
}

fn run(objective: Objective, at_once: Option<usize>) -> OneStep {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parts" };
    let (params, _) = Params::build(&Device::Cpu, &source, |vb| Denoiser::new(&config(), vb)).unwrap();
    let weights = params.arrays().unwrap();
    let initial = Initial { weights: Some(&weights), cell: "parts" };
    let settings = Settings {
        sigma_init: 2.5,
        levels: Levels::Fixed(1.0),
        generator_lr: 1e-3,
        critic_lr: 1e-3,
        // The first moments of one step are its gradients.
        adam: AdamConfig { beta1: 0.0, beta2: 0.999, eps: 1e-8, rectified: false },
        ema_half_life: 1000,
    };
    let run = OneStep::new(&Device::Cpu, &config(), objective, initial, settings).unwrap();
    match at_once {
        Some(images) => run.at_once(images),
        None => run,
    }
}

fn normal(name: &str) -> Tensor {
    let values = Stream::new("parts", name).normals(0, BATCH * 768);
    Tensor::from_vec(values, (BATCH, 3, 16, 16), &Device::Cpu).unwrap()
}

fn sigma() -> Vec<f32> {
    (0..BATCH).map(|i| 0.2 + 0.3 * i as f32).collect()
}

fn draws(name: &str) -> Vec<Draw> {
    let mut draws = Stream::new("parts", name).at(0);
    (0..BATCH).map(|_| Augmentation { p: 0.5 }.draw(&mut draws)).collect()
}

/// The losses of a critic and of a generator step, each the first of its run, and the
/// gradients of both.
fn steps(objective: Objective, at_once: Option<usize>) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    let mut first = run(objective, at_once);
    let report = first
        .critic_step(&CriticBatch {
            z: normal("z"),
            real: normal("real"),
            sigma: sigma(),
            noise_real: normal("noise real"),
            noise_fake: normal("noise fake"),
            augment: Some([draws("real"), draws("fake")]),
        })
        .and_then(|losses| losses.read())
        .unwrap();
    let mut second = run(objective, at_once);
    let generator = GeneratorBatch { z: normal("z2"), sigma: sigma(), noise: normal("noise") };
    let loss = second.generator_step(&generator).unwrap().read().unwrap();
    let mut gradients = Vec::new();
    for (run, part) in [(&first, "critic."), (&first, "fake."), (&second, "generator.")] {
        let moments = strip(&run.state().unwrap(), &format!("{part}adam.m."));
        gradients.extend(moments.into_iter().map(|(name, array)| (format!("{part}{name}"), array.data)));
    }
    let mut numbers = vec![report.loss, loss];
    if matches!(objective, Objective::ClassRatio(_)) {
        numbers.extend([report.c_real, report.c_fake]);
    }
    (numbers, gradients)
}

#[test]
fn parts_of_a_batch_give_its_losses_and_gradients() {
    for objective in [Objective::ClassRatio(Divergence::DiJs), Objective::Vsd] {
        let (losses, gradients) = steps(objective, None);
        for at_once in [1, 3, BATCH] {
            let (in_parts, gradients_in_parts) = steps(objective, Some(at_once));
            assert!(relative_error(&in_parts, &losses) < TOLERANCE, "{losses:?} and {in_parts:?}");
            assert_eq!(gradients.len(), gradients_in_parts.len());
            let mut different = 0;
            for ((name, whole), (_, parts)) in gradients.iter().zip(&gradients_in_parts) {
                let error = relative_error(parts, whole);
                assert!(error < TOLERANCE, "{objective}, {at_once} at once, {name}: {error}");
                different += usize::from(parts != whole);
            }
            // One part is the whole batch to the bit; more of them round elsewhere.
            assert_eq!(different == 0, at_once == BATCH, "{at_once} at once: {different} tensors differ");
        }
    }
}

#[test]
fn the_largest_part_that_fits_is_found() {
    let recipe = Recipe::of(Scale::Paper);
    let cell = &FULL_INITIALISATION;
    let whole = plan::memory(&recipe, cell);
    assert_eq!(plan::fitting(&recipe, cell, whole), Some(64));
    assert_eq!(plan::fitting(&recipe, cell, whole - 1), Some(32));
    let half = plan::memory(&Recipe { batch: 32, ..recipe.clone() }, cell);
    assert!(half < whole);
    assert_eq!(plan::fitting(&recipe, cell, half - 1), Some(16));
    assert_eq!(plan::fitting(&recipe, cell, 1_000_000), None);
}

#[test]
fn a_cpu_takes_whole_batches() {
    let arguments = ["run", "dijs", "--scale", "smoke", "--at-once", "4", "--store", "/nonexistent"];
    let output = Command::new(env!("CARGO_BIN_EXE_replicate")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--at-once is for GPUs"), "{error}");
}
