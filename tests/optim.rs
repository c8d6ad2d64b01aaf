//! RAdam, an optimiser's state, and the moving average; Adam is held against the
//! reference in `tests/reference.rs`.

mod common;

use candle_core::{Device, Tensor};
use candle_nn::Init;
use common::{Fixture, relative_error, unit};
use replicate::network::Variables;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::store::Array;
use replicate::train::adam::{Adam, AdamConfig, Ema};
use replicate::train::batch::Given;
use replicate::train::net::Net;

/// A network of the parameter `w` alone, which begins as `values`.
fn parameter(values: &[f32]) -> Params {
    let network = |vb: Variables| vb.get(values.len(), "w", Init::Const(0.0));
    let given = Arrays::from([("w".into(), Array { shape: vec![values.len()], data: values.to_vec() })]);
    let source = Source { given: &given, drawn: &[], cell: "" };
    Params::build(&Compute::CPU, &source, network).unwrap().0
}

fn values(params: &Params) -> Vec<f32> {
    params.arrays().unwrap()["w"].data.clone()
}

fn step(adam: &mut Adam, params: &Params, gradient: &[f32], lr: f64) {
    let (_, w) = params.iter().next().unwrap();
    let g = Tensor::from_slice(gradient, gradient.len(), &Device::Cpu).unwrap();
    let gradients = (w.as_tensor() * g).unwrap().sum_all().unwrap().backward().unwrap();
    adam.update(params, &gradients, lr).unwrap();
}

fn normal(name: &str, n: usize) -> Vec<f32> {
    unit(name, n).iter().map(|u| 3f32.sqrt() * u).collect()
}

/// PyTorch's, before and after the second moment counts.
#[test]
fn radam_is_the_references() {
    let fixture = Fixture::open("consistency.npz");
    for (name, beta1, beta2) in [("999", 0.9, 0.999), ("99", 0.9, 0.99), ("9", 0.5, 0.9)] {
        let params = parameter(&normal("radam.start", 8));
        let config = AdamConfig { beta1, beta2, eps: 1e-8, rectified: true };
        let mut adam = Adam::new(config, &params).unwrap();
        let mut found = Vec::new();
        for k in 0..12 {
            let gradient: Vec<f32> =
                normal(&format!("radam.gradient{k}"), 8).iter().map(|g| g + 0.5).collect();
            step(&mut adam, &params, &gradient, 1e-2);
            found.extend(values(&params));
        }
        let error = relative_error(&found, &fixture.f32(&format!("radam/{name}")));
        assert!(error < 3e-7, "betas {beta1}, {beta2}: {error:e}");
    }
}

/// The state is all that the next step depends on, the number of steps exactly.
#[test]
fn a_restored_optimiser_goes_on_to_the_same_bits() {
    let gradient = |k: usize| normal(&format!("gradient{k}"), 5);
    for rectified in [false, true] {
        let config = AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, rectified };
        let params = parameter(&[0.5; 5]);
        let mut adam = Adam::new(config, &params).unwrap();
        (0..4).for_each(|k| step(&mut adam, &params, &gradient(k), 0.1));
        let state = adam.arrays().unwrap();
        let resumed = parameter(&values(&params));
        let mut other = Adam::new(config, &resumed).unwrap();
        other.restore(&state).unwrap();
        for k in 4..8 {
            step(&mut adam, &params, &gradient(k), 0.1);
            step(&mut other, &resumed, &gradient(k), 0.1);
            assert_eq!(values(&params), values(&resumed), "step {k}, rectified {rectified}");
        }
        assert_eq!(adam.arrays().unwrap(), other.arrays().unwrap());
    }
    let params = parameter(&[0.5]);
    let mut adam =
        Adam::new(AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, rectified: true }, &params).unwrap();
    let mut state = adam.arrays().unwrap();
    // 3 * 2^24 + 2^24 - 2, of which neither half and no sum of both is rounded.
    state.get_mut("steps").unwrap().data = vec![3.0, 16_777_214.0];
    adam.restore(&state).unwrap();
    for expected in [[3.0, 16_777_215.0], [4.0, 0.0], [4.0, 1.0]] {
        step(&mut adam, &params, &[1.0], 0.1);
        assert_eq!(adam.arrays().unwrap()["steps"].data, expected);
    }
    state.remove("steps");
    assert!(adam.restore(&state).unwrap_err().to_string().contains("steps"));
}

/// Each element by itself: neither a parameter's norm nor the elements within the bound change.
#[test]
fn a_gradient_is_clipped_by_its_elements() {
    let build = |vb: Variables| vb.get(4, "w", Init::Const(0.0));
    let given = Arrays::from([("w".into(), Array { shape: vec![4], data: vec![1.0; 4] })]);
    let source = Source { given: &given, drawn: &[], cell: "" };
    let config = AdamConfig { beta1: 0.5, beta2: 0.99, eps: 1e-8, rectified: false };
    let slopes = [3.0f32, -0.25, 0.5, -9.0];
    let gradient = |bound: Option<f64>| {
        let net = Net::new(&Compute::CPU, &source, config, build).unwrap();
        let mut net = if let Some(bound) = bound { net.clipped(bound) } else { net };
        let loss = |w: &Tensor| (w * Tensor::new(&slopes, &Device::Cpu)?)?.sum_all();
        net.descend(&Given::default().batch(0, 1), 0.1, |w, _| Ok(vec![loss(w)?])).unwrap();
        let mut state = Arrays::new();
        net.state.save("net", &mut state).unwrap();
        state["net.adam.m.w"].data.iter().map(|m| 2.0 * m).collect::<Vec<f32>>()
    };
    assert_eq!(gradient(None), slopes);
    assert_eq!(gradient(Some(0.5)), [0.5, -0.25, 0.5, -0.5]);
}

/// EDM's `--ema`: beta = 0.5^(batch / half-life), and no longer than 5 % of what was seen.
#[test]
fn the_average_has_its_half_life() {
    for (half_life, images, batch, beta) in [(40, 10_000, 20, 0.5f64.sqrt()), (1_000_000, 400, 20, 0.5)] {
        let params = parameter(&[1.0, 1.0]);
        let mut ema = Ema::new(half_life, &params).unwrap();
        params
            .assign(&Arrays::from([("w".into(), Array { shape: vec![2], data: vec![3.0, -1.0] })]))
            .unwrap();
        for _ in 0..2 {
            ema.update(&params, images, batch).unwrap();
        }
        let left = beta * beta;
        let found = &ema.arrays().unwrap()["w"].data;
        for (found, expected) in found.iter().zip([3.0 - 2.0 * left, -1.0 + 2.0 * left]) {
            assert!((*found as f64 - expected).abs() < 1e-6, "{half_life}: {found}, {expected}");
        }
    }
}

/// A network of averaged weights sees every update, and a restored state.
#[test]
fn a_following_network_follows() {
    let build = |vb: Variables| vb.get(2, "w", Init::Const(0.0));
    let given = Arrays::from([("w".into(), Array { shape: vec![2], data: vec![1.0, 1.0] })]);
    let source = Source { given: &given, drawn: &[], cell: "" };
    let config = AdamConfig { beta1: 0.0, beta2: 0.99, eps: 1e-8, rectified: false };
    for decay in [0.75f32, 0.0] {
        let made =
            || Net::new(&Compute::CPU, &source, config, build).unwrap().with_target(decay.into(), build);
        let (mut net, follower) = made().unwrap();
        let read = |w: &Tensor| w.to_vec1::<f32>().unwrap();
        let one = Given::default();
        let mut expected = vec![1.0f32; 2];
        for step in 0..3 {
            net.descend(&one.batch(step, 1), 0.5, |w, _| Ok(vec![w.sum_all()?])).unwrap();
            let now = read(&net.frozen);
            expected.iter_mut().zip(now).for_each(|(e, now)| *e = decay * *e + (1.0 - decay) * now);
            assert_eq!(read(&follower), expected);
        }
        assert_ne!(read(&follower), [1.0, 1.0]);
        let mut state = Arrays::new();
        net.state.save("net", &mut state).unwrap();
        let (mut other, resumed) = made().unwrap();
        other.state.restore("net", &state).unwrap();
        assert_eq!(read(&resumed), expected);
        state.remove("net.target.w");
        assert!(other.state.restore("net", &state).unwrap_err().to_string().contains('w'));
    }
}
