//! A step that takes its batch in parts is the step that takes it whole, but for
//! rounding.

use candle_core::{DType, Device, Tensor};
use replicate::app::selftest::fixture::relative_error;
use replicate::experiment::plan;
use replicate::experiment::recipe::Budget;
use replicate::experiment::{FULL_INITIALIZATION, Recipe, Scale};
use replicate::method::one_step::OneStep;
use replicate::method::{Row, TABLE1};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Config, Denoiser};
use replicate::rng::Stream;
use replicate::train::augment::{Augmentation, Draw};
use replicate::train::batch::Given;
use replicate::train::{restore, state};
use std::process::Command;

const BATCH: usize = 7;
/// Of the largest element of a layer's gradients, in float32.
const TOLERANCE: f64 = 1e-5;

fn config() -> Config {
    Config { augment_labels: 9, ..Recipe::of(Scale::Smoke).network }
}

fn normal(name: &str) -> Tensor {
    let values = Stream::new("parts", name).normals(0, BATCH * 768);
    Tensor::from_vec(values, (BATCH, 3, 16, 16), &Device::Cpu).unwrap()
}

fn draws(name: &str) -> Vec<Draw> {
    let mut draws = Stream::new("parts", name).at(0);
    (0..BATCH).map(|_| Augmentation { p: 0.5 }.draw(&mut draws)).collect()
}

/// The values of a row's first iteration, and the gradients of its networks.
fn step(row: &Row, microbatch: Option<usize>) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parts" };
    let (params, _) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config(), vb)).unwrap();
    let weights = params.arrays().unwrap();
    let paper = Recipe::of(Scale::Paper);
    // No step changes what the next one's gradients are of. With beta1 = 0 the first
    // moments of one step are its gradients.
    let one_step = OneStep { generator_lr: 0.0, critic_lr: 0.0, ..paper.one_step.clone() };
    let mut recipe = Recipe { network: config(), one_step, ..paper };
    // Not all of the batch, and more than the smallest part.
    recipe.set("sida_group=3").unwrap();
    // The generator moves at once, and has an adversary.
    recipe.set("sida_generator_from=0").unwrap();
    recipe.set("sida_adversary_from=0").unwrap();
    // Errors are relative to the largest gradient, which the bound would make 1.
    recipe.set("sida_clip=1e30").unwrap();
    for name in ["amed_lr", "discrete_lr", "discrete_beta1", "ctm_lr", "ctm_beta1", "sct_lr", "sct_beta1"] {
        recipe.set(&format!("{name}=0")).unwrap();
    }
    let start = [(row.start, weights)];
    let setup = recipe.setup(&Compute::CPU, row, &start, "parts");
    let mut given = Given { microbatch, ..Given::default() };
    for name in [
        "critic.z",
        "critic.index",
        "critic.noise_real",
        "critic.noise_fake",
        "generator.z",
        "generator.noise",
        "index",
        "noise",
        "dsm.noise",
    ] {
        given.tensors.insert(name.into(), normal(name));
    }
    for name in ["critic.sigma", "generator.sigma"] {
        given.tensors.insert(name.into(), Tensor::ones(BATCH, DType::F32, &Device::Cpu).unwrap());
    }
    for name in ["level", "end", "start", "dsm.place", "dsm.sigma", "sigma"] {
        let values: Vec<f32> = (0..BATCH).map(|i| 0.2 + 0.1 * i as f32).collect();
        given.tensors.insert(name.into(), Tensor::new(values, &Device::Cpu).unwrap());
    }
    given.tensors.insert("heun_steps".into(), Tensor::new(&[2f32], &Device::Cpu).unwrap());
    for name in ["critic.augment_real", "critic.augment_fake"] {
        given.augment.insert(name.into(), draws(name));
    }
    let mut method = (row.method.training.as_ref().unwrap().build)(&setup).unwrap();
    // A fake score that is the teacher still has no difference to follow.
    let mut moved = state(&mut *method).unwrap();
    for (_, array) in moved.iter_mut().filter(|(name, _)| name.contains("fake.weights.")) {
        array.data.iter_mut().for_each(|v| *v *= 1.1);
    }
    restore(&mut *method, &moved).unwrap();
    let values = method.step(&given.batch(0, BATCH)).unwrap();
    let state = state(&mut *method).unwrap();
    let gradients = state.into_iter().filter(|(name, _)| name.contains(".adam.m."));
    let gradients = gradients.map(|(name, array)| (name, array.data)).collect();
    (values.iter().map(|value| value.to_scalar().unwrap()).collect(), gradients)
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0f32, |most, v| most.max(v.abs())).into()
}

/// The largest element of the gradients of a layer's weight and bias. A sum is rounded in
/// proportion to its terms: those of a bias before a group norm cancel, and times the layer's
/// inputs they are those of the weight.
fn layer(gradients: &[(String, Vec<f32>)], name: &str) -> f64 {
    let layer = name.rsplit_once('.').unwrap().0;
    let of_layer = gradients.iter().filter(|(name, _)| name.rsplit_once('.').unwrap().0 == layer);
    of_layer.map(|(_, gradient)| largest(gradient)).fold(0.0, f64::max)
}

#[test]
fn parts_of_a_batch_give_its_losses_and_gradients() {
    // Diffusion-GAN takes batches whole (tests/stylegan2.rs).
    for row in TABLE1.iter().filter(|row| row.method.training.is_some() && row.id != "diff-gan") {
        let (losses, gradients) = step(row, None);
        for microbatch in [1, 3, BATCH] {
            let (in_parts, gradients_in_parts) = step(row, Some(microbatch));
            assert!(relative_error(&in_parts, &losses) < TOLERANCE, "{losses:?} and {in_parts:?}");
            assert_eq!(gradients.len(), gradients_in_parts.len());
            let mut different = 0;
            for ((name, whole), (_, parts)) in gradients.iter().zip(&gradients_in_parts) {
                let differences: Vec<f32> = parts.iter().zip(whole).map(|(a, b)| a - b).collect();
                assert!(differences.iter().all(|d| d.is_finite()), "{}, {name}", row.id);
                let error = largest(&differences) / layer(&gradients, name).max(1e-30);
                assert!(error < TOLERANCE, "{}, {microbatch} at a time, {name}: {error}", row.id);
                different += usize::from(parts != whole);
            }
            // One part is the whole batch to the bit; more of them round elsewhere.
            assert_eq!(different == 0, microbatch == BATCH, "{microbatch}: {different} tensors differ");
        }
    }
}

#[test]
fn the_largest_part_that_fits_is_found() {
    let recipe = Recipe::of(Scale::Paper);
    let cell = &FULL_INITIALIZATION;
    let whole = plan::memory(&recipe, cell);
    assert_eq!(plan::fitting(&recipe, cell, whole), Some(64));
    assert_eq!(plan::fitting(&recipe, cell, whole - 1), Some(32));
    let budget = Budget { batch: 32, ..recipe.budget.clone() };
    let half = plan::memory(&Recipe { budget, ..recipe.clone() }, cell);
    assert!(half < whole);
    assert_eq!(plan::fitting(&recipe, cell, half - 1), Some(16));
    assert_eq!(plan::fitting(&recipe, cell, 1_000_000), None);
}

#[test]
fn a_cpu_takes_whole_batches() {
    let arguments = ["run", "dijs", "--scale", "smoke", "--microbatch", "4", "--store", "/nonexistent"];
    let output = Command::new(env!("CARGO_BIN_EXE_replicate")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--microbatch is for GPUs"), "{error}");
}

/// Groups of images that a row takes together are not divided, so nothing smaller is proposed.
#[test]
fn no_part_is_smaller_than_a_group() {
    let recipe = Recipe::of(Scale::Paper);
    for (id, least) in [("dijs", 1), ("sida", 32), ("sid2a", 32), ("diff-gan", 64)] {
        let row = TABLE1.iter().find(|row| row.id == id).unwrap();
        let of = |batch| {
            let budget = Budget { batch, ..recipe.budget.clone() };
            plan::memory(&Recipe { budget, ..recipe.clone() }, row)
        };
        assert_eq!(plan::smallest_microbatch(&recipe, row), least);
        assert_eq!(plan::fitting(&recipe, row, of(least)), Some(least), "{id}");
        assert_eq!(plan::fitting(&recipe, row, of(least) - 1), None, "{id}");
    }
    let mut odd = recipe.clone();
    odd.set("sida_group=24").unwrap();
    let sida = TABLE1.iter().find(|row| row.id == "sida").unwrap();
    let of =
        |batch| plan::memory(&Recipe { budget: Budget { batch, ..odd.budget.clone() }, ..odd.clone() }, sida);
    assert_eq!(plan::fitting(&odd, sida, of(64) - 1), Some(48), "whole groups");
}
