//! SiD and its relatives: their losses, and their first iterations, against the authors' code
//! (`distillation.npz`).

mod common;

use candle_core::{Device, Result, Tensor, Var};
use common::{Fixture, unit};
use replicate::app::selftest::steps::CASES;
use replicate::method::equations::diffuse;
use replicate::method::noise::seventh_root;
use replicate::method::score_based::sid;

const B: usize = 4;
/// Of one loss or one element of a gradient, relative to the array's largest.
const LOSS: f64 = 1e-5;

fn fixture() -> Fixture {
    Fixture::open("distillation.npz")
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn image(name: &str, scale: f32) -> Tensor {
    let values: Vec<f32> = unit(name, B * 768).into_iter().map(|u| u * scale).collect();
    Tensor::from_vec(values, (B, 3, 16, 16), &Device::Cpu).unwrap()
}

/// Every element by itself: the losses of a batch span decades.
fn each_is_close(what: &str, ours: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (i, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let error = f64::from((ours - expected).abs() / expected.abs().max(1e-30));
        assert!(error < tolerance, "{what}, element {i}: {ours} for {expected}");
    }
}

/// The fixture's stand-ins for the networks: linear in x.
fn linear(slope: f64, name: &str) -> impl Fn(&Tensor) -> Result<Tensor> {
    let term = image(name, 0.1);
    move |x| (x * slope)? + &term
}

/// Each image's loss as the fixture scales it, and the gradient of their sum by the images.
fn with_gradient(loss: impl Fn(&Tensor) -> Result<Tensor>, scale: f64) -> (Vec<f32>, Vec<f32>) {
    let x0 = Var::from_tensor(&image("loss.images", 0.8)).unwrap();
    let losses = (loss(&x0).unwrap() * scale).unwrap();
    let gradients = losses.sum_all().unwrap().backward().unwrap();
    (flat(&losses), flat(gradients.get(&x0).unwrap()))
}

fn check_identity(group: &str, teacher: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) {
    let fixture = fixture();
    let sigma: Vec<f32> =
        unit("loss.t", B).into_iter().map(|u| seventh_root(0.8 * f64::from(u + 1.0) / 2.0) as f32).collect();
    let (noise, fake) = (image("loss.noise", 3f32.sqrt()), linear(0.4, "loss.fake"));
    for alpha in [0.5, 1.0, 1.2] {
        let (losses, gradient) = with_gradient(
            |x0| {
                let xt = diffuse(x0, &sigma, &noise)?;
                sid::identity(x0, &teacher(x0, &xt)?, &fake(&xt)?, alpha)
            },
            1.0 / B as f64,
        );
        let name = format!("{group}/sid_alpha{alpha:.1}");
        each_is_close(&name, &losses, &fixture.f32(&name), LOSS);
        let expected = fixture.f32(&format!("{name}_image_grad"));
        for (image, (ours, expected)) in gradient.chunks(768).zip(expected.chunks(768)).enumerate() {
            let error = common::relative_error(ours, expected);
            assert!(f64::from(error) < LOSS, "{name}, gradient of image {image}: {error}");
        }
    }
}

#[test]
fn the_identity_loss_of_each_image_agrees() {
    let teacher = linear(0.5, "loss.teacher");
    check_identity("loss", |_, xt| teacher(xt));
}

/// A teacher that changes nothing: the weight is at its floor.
#[test]
fn the_weight_has_a_floor() {
    check_identity("loss_floor", |x0, _| Ok(x0.detach()));
}

#[test]
fn the_fake_scores_loss_agrees() {
    let root3 = 3f32.sqrt();
    let sigma: Vec<f32> = unit("loss.sigma", B).into_iter().map(|u| (-1.2 + 1.2 * root3 * u).exp()).collect();
    let (x0, noise) = (image("loss.images", 0.8), image("loss.noise", root3));
    let fake = linear(0.4, "loss.fake")(&diffuse(&x0, &sigma, &noise).unwrap()).unwrap();
    let each = |i: usize| {
        let of = |t: &Tensor| t.narrow(0, i, 1).unwrap();
        let loss = sid::fake_score(&of(&fake), &of(&x0), &sigma[i..=i]).unwrap();
        loss.to_scalar::<f32>().unwrap() / B as f32
    };
    each_is_close(
        "fake score",
        &(0..B).map(each).collect::<Vec<_>>(),
        &fixture().f32("loss/fake_score"),
        LOSS,
    );
}

#[test]
fn first_steps_agree() {
    let fixture = fixture();
    let cases: Vec<_> = CASES.iter().filter(|case| case.file == "distillation.npz").collect();
    assert!(!cases.is_empty());
    let checks = cases.into_iter().flat_map(|case| case.checks(&fixture.0, &Device::Cpu, &unit).unwrap());
    let checks: Vec<_> = checks.collect();
    for check in &checks {
        println!("{}: {:.1e} of {:.0e}", check.name, check.measured, check.tolerance);
    }
    assert!(checks.iter().all(|check| check.passed));
}
