//! Dropout: how much of the maps it takes, and that it is a pure function of the batch.

use candle_core::{Device, Tensor};
use replicate::data::Images;
use replicate::experiment::{Recipe, Scale};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Conditioning, Critic, Denoiser, Masks};
use replicate::train::augment::Augmentation;
use replicate::train::batch::Batches;

const P: f64 = 0.13;
const BATCH: usize = 16;

fn images() -> Images {
    Images { channels: 3, size: 16, pixels: vec![0; 3 * 256], labels: vec![0] }
}

fn batches(images: &Images, microbatch: usize) -> Batches<'_> {
    Batches {
        images,
        device: Device::Cpu,
        size: BATCH,
        microbatch,
        augmentation: Augmentation { p: 0.0 },
        cell: "dropout".into(),
    }
}

fn denoiser() -> Denoiser {
    let (none, config) = (Arrays::new(), Recipe::of(Scale::Mini).network);
    let source = Source { given: &none, drawn: &[""], cell: "dropout" };
    Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap().1
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_share_of_every_blocks_maps_is_dropped() {
    let (images, network) = (images(), denoiser());
    let whole = batches(&images, BATCH);
    let shapes = network.dropout_shapes();
    assert_eq!(shapes.len(), 10, "three residual blocks of the encoder and seven of the decoder");
    let masks = whole.at(3).dropout("critic.dropout", P, &shapes).unwrap().unwrap();
    for (mask, (c, h, w)) in masks.keep.iter().zip(&shapes) {
        assert_eq!(mask.dims(), [BATCH, *c, *h, *w]);
        let values = values(mask);
        let dropped = values.iter().filter(|x| **x <= 0.0).count() as f64 / values.len() as f64;
        // Four standard deviations.
        assert!((dropped - P).abs() < 4.0 * (P * (1.0 - P) / values.len() as f64).sqrt(), "{dropped}");
    }
    let again = whole.at(3).dropout("critic.dropout", P, &shapes).unwrap().unwrap();
    let other = whole.at(4).dropout("critic.dropout", P, &shapes).unwrap().unwrap();
    assert_eq!(values(&again.keep[0]), values(&masks.keep[0]));
    assert_ne!(values(&other.keep[0]), values(&masks.keep[0]));
    // A part of the batch sees its rows.
    let parts = batches(&images, 4);
    let second = &parts.at(3).microbatches(1)[1];
    let part = second.dropout("critic.dropout", P, &shapes).unwrap().unwrap();
    assert_eq!(values(&part.keep[2]), values(&masks.keep[2].narrow(0, 4, 4).unwrap()));
    assert!(whole.at(3).dropout("critic.dropout", 0.0, &shapes).unwrap().is_none());
}

#[test]
fn nothing_dropped_is_the_network_itself() {
    let (images, network) = (images(), denoiser());
    let batch = batches(&images, BATCH);
    let x = batch.at(0).normal("x").unwrap();
    let sigma = vec![1.0; BATCH];
    let forward = values(&network.forward(&x, &sigma).unwrap());
    assert_eq!(values(&network.forward_train(&x, &sigma, None, None).unwrap()), forward);
    let shapes = network.dropout_shapes();
    let ones = |(c, h, w): &(usize, usize, usize)| {
        Tensor::ones((BATCH, *c, *h, *w), candle_core::DType::F32, &Device::Cpu).unwrap()
    };
    let all = Masks { keep: shapes.iter().map(ones).collect(), p: 0.0 };
    assert_eq!(values(&network.forward_train(&x, &sigma, None, Some(&all)).unwrap()), forward);
    let some = batch.at(0).dropout("d", P, &shapes).unwrap();
    assert_ne!(values(&network.forward_train(&x, &sigma, None, some.as_ref()).unwrap()), forward);
}

#[test]
fn the_critic_drops_out_of_its_encoder() {
    let (none, config) = (Arrays::new(), Recipe::of(Scale::Mini).network);
    let source = Source { given: &none, drawn: &[""], cell: "dropout" };
    let critic = Params::build(&Compute::CPU, &source, |vb| Critic::new(&config, vb)).unwrap().1;
    assert_eq!(critic.dropout_shapes(), denoiser().dropout_shapes()[..critic.dropout_shapes().len()]);
    let images = images();
    let all = batches(&images, BATCH);
    let batch = all.at(0);
    let x = batch.normal("x").unwrap();
    let sigma = vec![1.0; BATCH];
    let masks = |name: &str| batch.dropout(name, P, &critic.dropout_shapes()).unwrap().unwrap();
    let [plain, _] = critic.both(&x, &x, &sigma, None, None).unwrap();
    let [real, fake] = critic.both(&x, &x, &sigma, None, Some((masks("real"), masks("fake")))).unwrap();
    assert!(values(&real) != values(&plain) && values(&real) != values(&fake), "masks of their own");
}

/// Masks that keep everything, and some.
fn masks(network: &Denoiser) -> [Masks; 2] {
    let images = images();
    let batch = batches(&images, BATCH);
    let some = batch.at(0).dropout("d", P, &network.dropout_shapes()).unwrap().unwrap();
    let keep = some.keep.iter().map(|mask| mask.ones_like().unwrap()).collect();
    [Masks { keep, p: 0.0 }, some]
}

/// A network whose blocks add something: at first they add next to nothing.
fn filled() -> Denoiser {
    let (none, config) = (Arrays::new(), Recipe::of(Scale::Mini).network);
    let source = Source { given: &none, drawn: &[""], cell: "dropout" };
    let (params, _) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap();
    let mut weights = params.arrays().unwrap();
    for (name, array) in
        weights.iter_mut().filter(|(name, _)| name.contains("conv1.weight") || name.contains("aux_conv"))
    {
        let scale = if name.contains("bias") { 1.0 } else { 1e5 };
        array.data.iter_mut().for_each(|v| *v *= scale);
    }
    params.assign(&weights).unwrap();
    params.frozen(|vb| Denoiser::new(&config, vb)).unwrap()
}

/// The derivative of a network that drops, beside differences, and features in either pass.
#[test]
fn a_derivative_and_features_drop_as_the_network_does() {
    let network = filled();
    let [all, some] = masks(&network);
    let images = images();
    let b = batches(&images, BATCH);
    let (x, dx) = (b.at(0).normal("x").unwrap(), b.at(0).normal("dx").unwrap());
    let (noise, dnoise) = ([0.3f32; BATCH], [0.25f32; BATCH]);
    let conditioning = |masks| Conditioning { noise: &noise, masks, ..Conditioning::default() };
    let along = |masks| network.raw_jvp([&x, &dx], &conditioning(masks), &dnoise).unwrap();
    let ([f, df], [g, dg]) = (along(None), along(Some(&all)));
    assert_eq!((values(&f), values(&df)), (values(&g), values(&dg)), "nothing is dropped");
    let [f, df] = along(Some(&some));
    assert_eq!(values(&f), values(&network.raw(&x, &conditioning(Some(&some))).unwrap()));
    let h = 1e-2;
    let beside = |sign: f64| {
        let noise: Vec<f32> = noise.iter().map(|n| n + (sign * h * 0.25) as f32).collect();
        let conditioning = Conditioning { noise: &noise, masks: Some(&some), ..Conditioning::default() };
        network.raw(&(&x + (&dx * (sign * h)).unwrap()).unwrap(), &conditioning).unwrap()
    };
    let differences = ((beside(1.0) - beside(-1.0)).unwrap() / (2.0 * h)).unwrap();
    let (found, expected) = (values(&df), values(&differences));
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let error = found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;
    println!("derivative with dropout, beside differences: {error:.1e}");
    assert!(error < 1e-2, "{error}");

    let sigma = [1.0; BATCH];
    let (denoised, features) = network.with_features(&x, &sigma, None, Some(&some)).unwrap();
    assert_eq!(values(&denoised), values(&network.forward_train(&x, &sigma, None, Some(&some)).unwrap()));
    let keep = some.keep[..network.encoder_dropout_shapes().len()].to_vec();
    let encoder = Masks { keep, p: some.p };
    let alone = |masks: Option<&Masks>| values(&network.features(&x, &sigma, None, masks).unwrap());
    assert_eq!(values(&features), alone(Some(&encoder)));
    assert_ne!(values(&features), alone(None));
}

/// The mean over masks: blocks that add next to nothing add it in proportion.
#[test]
fn the_expectation_is_that_of_nothing_dropped() {
    let (images, network) = (images(), denoiser());
    let batches = batches(&images, BATCH);
    let x = batches.at(0).normal("x").unwrap().narrow(0, 0, 1).unwrap().repeat((BATCH, 1, 1, 1)).unwrap();
    let features = |masks: Option<&Masks>| network.features(&x, &[1.0; BATCH], None, masks).unwrap();
    let plain = values(&features(None));
    let (rounds, pixels) = (40, plain.len() / BATCH);
    let (mut mean, mut square) = (vec![0f64; pixels], 0f64);
    for round in 0..rounds {
        let masks = batches.at(round).dropout("d", 0.5, network.encoder_dropout_shapes()).unwrap();
        for (i, (found, plain)) in values(&features(masks.as_ref())).iter().zip(&plain).enumerate() {
            let difference = f64::from(found - plain);
            mean[i % pixels] += difference / (rounds as f64 * BATCH as f64);
            square += difference * difference / (rounds as f64 * BATCH as f64);
        }
    }
    let bias = (mean.iter().map(|m| m * m).sum::<f64>() / square).sqrt();
    println!("mean change by dropout over its root mean square: {bias:.3}");
    // 1 over the root of 640 masks is 0.04; of a factor that is missing it would be near 1.
    assert!(square > 0.0 && bias < 0.12, "{bias}");
}
