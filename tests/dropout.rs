//! Dropout: how much of the maps it takes, and that it is a pure function of the batch.

use candle_core::{Device, Tensor};
use replicate::data::Images;
use replicate::experiment::{Recipe, Scale};
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Critic, Denoiser, Masks};
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
    Params::build(&Device::Cpu, &source, |vb| Denoiser::new(&config, vb)).unwrap().1
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_share_of_every_blocks_maps_is_dropped() {
    let (images, network) = (images(), denoiser());
    let whole = batches(&images, BATCH);
    let shapes = network.dropped();
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
    let second = &parts.at(3).parts(1)[1];
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
    let forward = values(&network.forward(&x, &sigma, None).unwrap());
    assert_eq!(values(&network.dropping(&x, &sigma, None, None).unwrap()), forward);
    let shapes = network.dropped();
    let ones = |(c, h, w): &(usize, usize, usize)| {
        Tensor::ones((BATCH, *c, *h, *w), candle_core::DType::F32, &Device::Cpu).unwrap()
    };
    let all = Masks { keep: shapes.iter().map(ones).collect(), p: 0.0 };
    assert_eq!(values(&network.dropping(&x, &sigma, None, Some(&all)).unwrap()), forward);
    let some = batch.at(0).dropout("d", P, &shapes).unwrap();
    assert_ne!(values(&network.dropping(&x, &sigma, None, some.as_ref()).unwrap()), forward);
}

#[test]
fn the_critic_drops_out_of_its_encoder() {
    let (none, config) = (Arrays::new(), Recipe::of(Scale::Mini).network);
    let source = Source { given: &none, drawn: &[""], cell: "dropout" };
    let critic = Params::build(&Device::Cpu, &source, |vb| Critic::new(&config, vb)).unwrap().1;
    assert_eq!(critic.dropped(), denoiser().dropped()[..critic.dropped().len()]);
    let images = images();
    let all = batches(&images, BATCH);
    let batch = all.at(0);
    let x = batch.normal("x").unwrap();
    let sigma = vec![1.0; BATCH];
    let masks = |name: &str| batch.dropout(name, P, &critic.dropped()).unwrap().unwrap();
    let [plain, _] = critic.both(&x, &x, &sigma, None, None).unwrap();
    let [real, fake] = critic.both(&x, &x, &sigma, None, Some((masks("real"), masks("fake")))).unwrap();
    assert!(values(&real) != values(&plain) && values(&real) != values(&fake), "masks of their own");
}
