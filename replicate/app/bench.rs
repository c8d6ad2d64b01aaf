//! Times the heavy parts of a run, one at a time, for comparison with other programs
//! (`tests/peers/bench.py` times PyTorch). Weights and inputs are random. Making them is not timed,
//! except when the case is to sample from latents.

use crate::app::score::{KID_SUBSET_SIZE, KID_SUBSETS, NEIGHBOURS};
use crate::data::{Images, glyphs};
use crate::error::Result;
use crate::experiment::{Recipe, Scale};
use crate::measure::inception::Inception;
use crate::measure::metrics::Features;
use crate::measure::metrics::frechet::{Moments, frechet_distance};
use crate::measure::metrics::kid::kid;
use crate::measure::metrics::precision_recall::precision_recall;
use crate::measure::sample::generate;
use crate::method::FULL_INITIALIZATION;
use crate::method::one_step::one_step;
use crate::method::sampler::edm;
use crate::method::score_matching::{MICROBATCH, ScoreMatching};
use crate::network::device::{Compute, peak_bytes};
use crate::network::normals;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{Conditioning, Config, Denoiser};
use crate::rng::Stream;
use crate::settings::Settings;
use crate::store::formats::torch::{Checkpoint, Dtype, Format, Tensor as Stored};
use crate::train::Method;
use crate::train::batch::Batches;
use candle_core::{Device, Tensor};
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// The timed parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// Critic step, generator step and average of DiJS at mini scale, batch 64
    OneStep,
    /// A step of denoising score matching at mini scale, batch 64
    Dsm,
    /// DDPM++ (55.7 M parameters) on 4 images of 32 x 32
    Forward,
    /// As `forward`, and the derivative along a direction of images and noise levels
    Along,
    /// As `forward`, and the gradient of a mean square for every parameter
    Backward,
    /// Inception-v3's features of 64 images of 32 x 32
    Inception,
    /// The Fréchet distance of two covariances of 2048 x 2048
    Frechet,
    /// KID of --rows of 2048 features: 100 subsets of 1000
    Kid,
    /// Precision and recall of --rows of 2048 features, whose variances fall as 1, 1/2, 1/3, ...
    PrecisionRecall,
    /// The same of features with equal variances, the worst case
    PrecisionRecallFlat,
    /// One iteration of DiJS at paper scale: DDPM++, batch 64; for a GPU
    PaperStep,
    /// The teacher's solver at paper scale, 35 calls for 100 images; for a GPU
    Heun,
    /// 50,000 one-step samples at paper scale, their Inception features and FID; for a GPU
    Fid,
}

/// Number of images in the cases whose speed is given in images per second.
pub const IMAGES: [(Case, u64); 5] =
    [(Case::OneStep, 64), (Case::Dsm, 64), (Case::PaperStep, 64), (Case::Heun, 100), (Case::Fid, 50_000)];

/// Rows of either set of features that are usual for KID, precision and recall.
pub const ROWS: usize = 50_000;

/// Returns the cases that `device` finishes in reasonable time.
pub fn usual(device: &Device) -> Vec<Case> {
    use clap::ValueEnum;
    let minutes = [Case::Kid, Case::PrecisionRecall, Case::PrecisionRecallFlat];
    let heavy = [Case::PaperStep, Case::Heun, Case::Fid];
    let all = Case::value_variants().iter().copied();
    all.filter(|case| !minutes.contains(case) && (!device.is_cpu() || !heavy.contains(case))).collect()
}

/// Time and memory of a case.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds of each repetition, after a warm-up.
    pub seconds: Vec<f64>,
    /// Peak memory in bytes so far: of tensors on a GPU, else of the process; 0 if it is unknown.
    pub peak_bytes: u64,
    pub threads: usize,
}

/// Runs `case` once as a warm-up, then `repeats` times. KID, precision and recall take `rows` rows of
/// either set.
///
/// # Errors
/// Those of the networks.
pub fn run(case: Case, repeats: usize, rows: usize, compute: &Compute) -> Result<Measured> {
    let device = &compute.device;
    let seconds = match case {
        Case::OneStep => iterations(Scale::Mini, repeats, compute)?,
        Case::Dsm => dsm(repeats, compute)?,
        Case::Forward | Case::Along | Case::Backward => denoiser(case, repeats, compute)?,
        Case::Inception => inception(repeats, device)?,
        Case::Frechet => frechet(repeats)?,
        Case::Kid | Case::PrecisionRecall | Case::PrecisionRecallFlat => pairwise(case, repeats, rows)?,
        Case::PaperStep => iterations(Scale::Paper, repeats, compute)?,
        Case::Heun => solver(repeats, compute)?,
        Case::Fid => fid(repeats, compute)?,
    };
    let peak_bytes = if device.is_cpu() { process_peak_bytes() } else { peak_bytes(device).unwrap_or(0) };
    Ok(Measured { seconds, peak_bytes, threads: rayon::current_num_threads() })
}

fn timed(repeats: usize, device: &Device, mut once: impl FnMut(u64) -> Result<()>) -> Result<Vec<f64>> {
    once(0)?;
    device.synchronize()?;
    (1..=repeats as u64)
        .map(|k| {
            let started = Instant::now();
            once(k)?;
            device.synchronize()?;
            Ok(started.elapsed().as_secs_f64())
        })
        .collect()
}

/// Returns training images: digits, or noise if the scale reads files.
fn images(recipe: &Recipe) -> Images {
    let size = recipe.network.size;
    match recipe.scale.procedural() {
        true => glyphs::images(size, glyphs::TARGET_CLASSES, 100, "train"),
        false => noise(1000, size),
    }
}

fn noise(n: usize, size: usize) -> Images {
    let mut draws = Stream::new("bench", "pixels").at(0);
    let pixels = (0..n * 3 * size * size).map(|_| draws.below(256) as u8).collect();
    Images { channels: 3, size, pixels, labels: Vec::new() }
}

/// Times iterations of DiJS from random weights.
fn iterations(scale: Scale, repeats: usize, compute: &Compute) -> Result<Vec<f64>> {
    let recipe = Recipe::of(scale);
    let setup = recipe.setup(compute, &FULL_INITIALIZATION, &[], "bench");
    let training = FULL_INITIALIZATION.method.training.as_ref().expect("DiJS is trained");
    let mut method = (training.build)(&setup)?;
    steps(&mut *method, &recipe, recipe.budget.batch, repeats, &compute.device)
}

fn dsm(repeats: usize, compute: &Compute) -> Result<Vec<f64>> {
    let recipe = Recipe::of(Scale::Mini);
    let p = &recipe.pretraining;
    let mut method = ScoreMatching::new(compute, &recipe.network, p, p.levels(), "bench")?;
    steps(&mut method, &recipe, p.batch.min(MICROBATCH), repeats, &compute.device)
}

fn steps(
    method: &mut dyn Method,
    recipe: &Recipe,
    size: usize,
    repeats: usize,
    device: &Device,
) -> Result<Vec<f64>> {
    let batches = Batches {
        images: &images(recipe),
        device: device.clone(),
        size,
        microbatch: usize::MAX,
        augmentation: recipe.one_step.augmentation(),
        cell: "bench".into(),
    };
    timed(repeats, device, |k| {
        let values = method.step(&batches.at(k))?;
        values.iter().try_for_each(|value| value.to_scalar::<f32>().map(drop))?;
        Ok(())
    })
}

fn denoiser(case: Case, repeats: usize, compute: &Compute) -> Result<Vec<f64>> {
    let (params, trained) = network(compute)?;
    let frozen = params.frozen(|vb| Denoiser::new(&Config::cifar10(), vb))?;
    let x =
        Tensor::from_vec(Stream::new("bench", "x").normals(0, 4 * 3072), (4, 3, 32, 32), &compute.device)?;
    let sigma = [0.1, 0.5, 2.5, 20.0];
    let conditioning = Conditioning { noise: &sigma, ..Conditioning::default() };
    timed(repeats, &compute.device, |_| {
        match case {
            Case::Backward => params.gradients(&trained.forward(&x, &sigma)?.sqr()?.mean_all()?).map(drop)?,
            Case::Along => frozen.raw_jvp([&x, &x], &conditioning, &[0.25; 4]).map(drop)?,
            _ => frozen.forward(&x, &sigma).map(drop)?,
        }
        Ok(())
    })
}

/// Makes the paper scale's network with random weights.
fn network(compute: &Compute) -> Result<(Params, Denoiser)> {
    let source = Source { given: &Arrays::new(), drawn: &[""], cell: "bench" };
    Ok(Params::build(compute, &source, |vb| Denoiser::new(&Config::cifar10(), vb))?)
}

/// As [`network`], without gradients.
fn generator(compute: &Compute) -> Result<Denoiser> {
    Ok(network(compute)?.0.frozen(|vb| Denoiser::new(&Config::cifar10(), vb))?)
}

fn latents(k: u64, n: usize, device: &Device) -> candle_core::Result<Tensor> {
    normals(&Stream::new("bench", "z"), k, (n, 3, 32, 32), device)
}

fn solver(repeats: usize, compute: &Compute) -> Result<Vec<f64>> {
    let (denoiser, device) = (generator(compute)?, &compute.device);
    timed(repeats, device, |k| {
        edm::heun(&denoiser, &latents(k, 100, device)?, edm::HeunSettings::at(Scale::Paper).steps)?;
        Ok(())
    })
}

fn fid(repeats: usize, compute: &Compute) -> Result<Vec<f64>> {
    const N: usize = 50_000;
    /// Number of images in the warm-up, and of the reference.
    const FEW: usize = 2000;
    let device = &compute.device;
    let (generator, network) = (generator(compute)?, drawn_inception(device)?);
    let sigma_init = Recipe::of(Scale::Paper).one_step.sigma_init;
    let measured = |k: u64, n: usize| -> Result<Moments> {
        let sample = |range: Range<usize>| {
            let part = k * N as u64 + range.start as u64;
            one_step(&generator, &latents(part, range.len(), device)?, sigma_init)
        };
        let (features, _) = network.extract(&generate(0..n, sample)?, 0..n)?;
        let mut moments = Moments::new(features.dim);
        moments.push(&features);
        Ok(moments)
    };
    let reference = measured(u64::from(u32::MAX), FEW)?;
    timed(repeats, device, |k| {
        frechet_distance(&measured(k, if k == 0 { FEW } else { N })?, &reference).map(drop)
    })
}

fn drawn_inception(device: &Device) -> Result<Inception> {
    filled_inception(device, |name, shape| {
        let bound = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let mut draws = Stream::new("bench", name).at(0);
        let value = |_| match shape.len() {
            1 if name.ends_with(".weight") || name.ends_with(".running_var") => 1.0,
            1 => 0.0,
            _ => bound * (2.0 * draws.uniform() - 1.0),
        };
        (0..shape.iter().product()).map(value).collect()
    })
}

/// Makes Inception-v3 with these values of the entry of each name and shape.
pub(super) fn filled_inception(
    device: &Device,
    values: impl Fn(&str, &[usize]) -> Vec<f32>,
) -> Result<Inception> {
    let tensors = Inception::entries().into_iter().filter(|(_, shape)| !shape.is_empty());
    let tensors = tensors.map(|(name, shape)| {
        let data = values(&name, &shape).into_iter().flat_map(f32::to_le_bytes).collect();
        (name, Stored { dtype: Dtype::F32, shape, data })
    });
    let path = PathBuf::from("weights that were computed");
    let (format, tensors) = (Format::TorchLegacy, tensors.collect());
    Inception::load(device, Checkpoint { path, format, tensors, unread: Vec::new() })
}

fn inception(repeats: usize, device: &Device) -> Result<Vec<f64>> {
    let (network, images) = (drawn_inception(device)?, noise(64, 32));
    timed(repeats, device, |_| network.extract(&images, 0..64).map(drop))
}

fn frechet(repeats: usize) -> Result<Vec<f64>> {
    const N: usize = 3000;
    const D: usize = 2048;
    let moments = |name: &str| {
        let mut moments = Moments::new(D);
        moments.push(&Features::new(D, Stream::new("bench", name).normals(0, N * D)));
        moments
    };
    let (a, b) = (moments("a"), moments("b"));
    timed(repeats, &Device::Cpu, |_| frechet_distance(&a, &b).map(drop))
}

fn pairwise(case: Case, repeats: usize, n: usize) -> Result<Vec<f64>> {
    const D: usize = 2048;
    let features = |name: &str| {
        let mut rows = Stream::new("bench", name).normals(0, n * D);
        if case != Case::PrecisionRecallFlat {
            rows.chunks_mut(D).for_each(|row| (1..).zip(row).for_each(|(k, v)| *v /= (k as f32).sqrt()));
        }
        Features::new(D, rows)
    };
    let sets = [features("a"), features("b")];
    // One subset warms up.
    let few = sets.each_ref().map(|set| Features::new(D, set.rows[..KID_SUBSET_SIZE * D].to_vec()));
    timed(repeats, &Device::Cpu, |k| {
        let ([a, b], subsets) = if k == 0 { (&few, 1) } else { (&sets, KID_SUBSETS) };
        match case {
            Case::Kid => drop(kid(a, b, subsets, KID_SUBSET_SIZE, &Stream::new("bench", "subsets"))),
            _ => drop(precision_recall(a, b, NEIGHBOURS)),
        }
        Ok(())
    })
}

fn process_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kibibytes| 1024 * kibibytes)
}
