//! Compares the networks, the sampler, the augmentation and five training steps with the reference
//! implementations, on formula-filled weights.

use super::fixture::{Fixture, filled_denoiser, flat, inception_value, relative_error, tiny, unit};
use super::steps::{self, CASES};
use super::{Check, Tolerance, part};
use crate::app::bench::filled_inception;
use crate::data::Images;
use crate::error::Result;
use crate::measure::inception::DEPTHS;
use crate::method::FULL_INITIALIZATION;
use crate::method::sampler::edm::{HeunSettings, heun};
use crate::network::device::Compute;
use crate::network::unet::Config;
use crate::settings::{Scale, Settings};
use crate::train::augment::{Augmentation, Draw, Numbers};
use crate::train::batch::Given;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

const TINY: &[u8] = include_bytes!("../../../tests/parity/edm-tiny.npz");
const CIFAR10: &[u8] = include_bytes!("../../../tests/parity/edm-cifar10.npz");
const SAMPLER: &[u8] = include_bytes!("../../../tests/parity/edm-sampler.npz");
const AUGMENT: &[u8] = include_bytes!("../../../tests/parity/edm-augment.npz");
const INCEPTION: &[u8] = include_bytes!("../../../tests/parity/inception.npz");

/// Runs every comparison; `reduced` omits the network with 55.7 M parameters.
pub fn checks(compute: &Compute, reduced: bool) -> Vec<Check> {
    let mut checks = part("U-Net, tiny", unet("U-Net, tiny", TINY, &tiny(), compute));
    if !reduced {
        checks.extend(part("U-Net, DDPM++", unet("U-Net, DDPM++", CIFAR10, &Config::cifar10(), compute)));
    }
    checks.extend(part("sampler", sampler(compute)));
    checks.extend(part("Inception-v3", inception(compute)));
    checks.extend(part("augmentation", augmentation(&compute.device)));
    checks.extend(CASES.iter().flat_map(|case| steps::checks(case, compute)));
    checks
}

/// Compares the U-Net and five steps of DiJS with activations in bfloat16.
pub fn bfloat16_checks(compute: &Compute, reduced: bool) -> Vec<Check> {
    let unet = |name: &str, npz, config: Config| part(name, unet(name, npz, &config, compute));
    let mut checks = unet("U-Net, tiny, bf16", TINY, tiny());
    if !reduced {
        checks.extend(unet("U-Net, DDPM++, bf16", CIFAR10, Config::cifar10()));
    }
    let dijs = CASES.iter().filter(|case| case.row == FULL_INITIALIZATION.id);
    checks.extend(dijs.flat_map(|case| steps::checks(case, compute)));
    checks
}

/// Compares the output, with and without an augmentation label, and the gradient of every
/// parameter.
fn unet(name: &str, npz: &[u8], config: &Config, compute: &Compute) -> Result<Vec<Check>> {
    let fixture = Fixture::parse(npz)?;
    let (params, model) = filled_denoiser(config, compute, &unit)?;
    let x = fixture.get("x")?.to_device(&compute.device)?;
    let labels = fixture.f32("augment_labels")?;
    let sigma = fixture.f32("sigma")?;
    let plain = model.forward(&x, &sigma)?;
    let with_labels = model.forward_train(&x, &sigma, Some(&labels), None)?;
    let output = relative_error(&flat(&plain)?, &fixture.f32("denoised")?)
        .max(relative_error(&flat(&with_labels)?, &fixture.f32("denoised_augmented")?));

    let image: Vec<f32> = unit("input.image", x.elem_count()).into_iter().map(|u| 0.8 * u).collect();
    let image = Tensor::from_vec(image, x.shape(), &compute.device)?;
    let loss = (&with_labels - image)?.sqr()?.mean_all()?;
    let grads = params.gradients(&loss)?;
    let mut worst = 0f64;
    for (parameter, var) in params.iter() {
        let gradient = match grads.get(var) {
            Some(gradient) => flat(gradient)?,
            None => vec![f32::NAN],
        };
        let norm = gradient.iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt() as f32;
        worst = worst.max(relative_error(&[norm], &fixture.f32(&format!("grad_norm/{parameter}"))?));
        if let Ok(whole) = fixture.f32(&format!("grad/{parameter}")) {
            worst = worst.max(relative_error(&gradient, &whole));
        }
    }
    let tolerance = Tolerance::on(compute);
    let gradients = format!("{name}: norms of {} gradients", params.iter().count());
    Ok(vec![
        Check::error(format!("{name}: denoised images"), output, tolerance.outputs),
        Check::error(gradients, worst, tolerance.gradients),
    ])
}

fn sampler(compute: &Compute) -> Result<Vec<Check>> {
    let fixture = Fixture::parse(SAMPLER)?;
    let (_, model) = filled_denoiser(&tiny(), compute, &unit)?;
    let images = heun(
        &model,
        &fixture.get("latents")?.to_device(&compute.device)?,
        HeunSettings::at(Scale::Paper).steps,
    )?;
    let error = relative_error(&flat(&images)?, &fixture.f32("images")?);
    Ok(vec![Check::error("sampler: images after 35 calls".into(), error, Tolerance::on(compute).outputs)])
}

fn inception(compute: &Compute) -> Result<Vec<Check>> {
    let fixture = Fixture::parse(INCEPTION)?;
    let network = filled_inception(&compute.device, |name, shape| {
        unit(name, shape.iter().product()).into_iter().map(inception_value(name, shape)).collect()
    })?;
    let pixels = fixture.get("images_uint8")?.flatten_all()?.to_vec1()?;
    let images = Images { channels: 3, size: 32, pixels, labels: Vec::new() };
    let probe = network.probe(&images, 0..images.len())?;
    let mut features = 0f64;
    for (depth, found) in DEPTHS.iter().zip(&probe.features) {
        features = features.max(relative_error(&found.rows, &fixture.f32(&format!("features/{depth}"))?));
    }
    let unbiased = relative_error(&probe.logits_unbiased.rows, &fixture.f32("features/logits_unbiased")?);
    let logits = relative_error(&probe.logits.rows, &fixture.f32("features/logits")?);
    let tolerance = Tolerance::on(compute).outputs;
    Ok(vec![
        Check::error("Inception-v3: features at four depths".into(), features, tolerance),
        Check::error("Inception-v3: logits".into(), unbiased.max(logits), tolerance),
    ])
}

/// Augments images with recorded draws, as in a training step.
fn augmentation(device: &Device) -> Result<Vec<Check>> {
    let fixture = Fixture::parse(AUGMENT)?;
    let images = fixture.get("images")?.to_device(device)?;
    let mut checks = Vec::new();
    for (set, p) in [("p1.00", 1.0), ("p0.12", 0.12)] {
        let numbers = recorded(&fixture, set, images.dim(0)?)?;
        let draws: Vec<Draw> = numbers.iter().map(|numbers| Augmentation { p }.gate(numbers)).collect();
        let augment = BTreeMap::from([("draws".to_string(), draws)]);
        let given = Given { augment, ..Given::default() };
        let (found, labels) = given.batch(0, numbers.len()).augment("draws", &images)?;
        let labels = labels.expect("where there are draws there are labels");
        let error = relative_error(&flat(&found)?, &fixture.f32(&format!("{set}/output"))?)
            .max(relative_error(&labels, &fixture.f32(&format!("{set}/labels"))?));
        checks.push(Check::error(format!("augmentation: p {p}"), error, 1e-4));
    }
    Ok(checks)
}

/// Returns the recorded random numbers of each of `n` images.
///
/// # Errors
/// If the fixture lacks them.
pub fn recorded(fixture: &Fixture, set: &str, n: usize) -> Result<Vec<Numbers>> {
    let of = |name: &str| fixture.f32(&format!("{set}/draw.{name}"));
    let (xflip, xflip_gate) = (of("xflip.bit")?, of("xflip.gate")?);
    let (yflip, yflip_gate) = (of("yflip.bit")?, of("yflip.gate")?);
    let (scale, scale_gate) = (of("scale.normal")?, of("scale.gate")?);
    let (rotate, rotate_gate) = (of("rotate.uniform")?, of("rotate.gate")?);
    let (aniso, aniso_gate) = (of("aniso.normal")?, of("aniso.gate")?);
    let (aniso_angle, aniso_angle_gate) = (of("aniso.angle")?, of("aniso.angle_gate")?);
    let (translate, translate_gate) = (of("translate.normal")?, of("translate.gate")?);
    let image = |i: usize| Numbers {
        xflip: xflip[i] == 1.0,
        xflip_gate: xflip_gate[i],
        yflip: yflip[i] == 1.0,
        yflip_gate: yflip_gate[i],
        scale: scale[i],
        scale_gate: scale_gate[i],
        rotate: rotate[i],
        rotate_gate: rotate_gate[i],
        aniso: aniso[i],
        aniso_angle: aniso_angle[i],
        aniso_gate: aniso_gate[i],
        aniso_angle_gate: aniso_angle_gate[i],
        translate: [translate[i], translate[n + i]],
        translate_gate: translate_gate[i],
    };
    Ok((0..n).map(image).collect())
}
