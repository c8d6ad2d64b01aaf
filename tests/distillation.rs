//! SiD and its relatives: their losses, and their first iterations, against the authors' code
//! (`distillation.npz`).

mod common;

use candle_core::{Device, Result, Tensor, Var};
use common::{Fixture, relative_error, runner, unit};
use replicate::app::selftest::fixture::{filled, filled_denoiser, tiny};
use replicate::app::selftest::steps::CASES;
use replicate::experiment::run::WEIGHTS;
use replicate::experiment::{Recipe, Row, all_rows};
use replicate::method::equations::diffuse;
use replicate::method::noise::karras_level;
use replicate::method::one_step::one_step;
use replicate::method::score_based::sid;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Denoiser, Masks};
use replicate::settings::Scale;
use replicate::store::Array;
use replicate::train::net::strip;
use replicate::train::{published, state};
use std::sync::atomic::AtomicBool;

const B: usize = 4;
/// Of one loss, or of one element of an image's gradient relative to the largest.
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

fn normal(name: &str) -> Tensor {
    image(name, 3f32.sqrt())
}

/// EDM's noise levels.
fn log_normal(name: &str) -> Vec<f32> {
    unit(name, B).into_iter().map(|u| (-1.2 + 1.2 * 3f32.sqrt() * u).exp()).collect()
}

/// SiD's noise levels.
fn karras_levels(name: &str) -> Vec<f32> {
    unit(name, B).into_iter().map(|u| karras_level(0.8 * f64::from(u + 1.0) / 2.0) as f32).collect()
}

/// Every element by itself: the losses of a batch span decades.
fn each_is_close(what: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (i, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let error = f64::from((ours - expected).abs() / expected.abs().max(1e-30));
        assert!(error < LOSS, "{what}, element {i}: {ours} for {expected}");
    }
}

// The fixture's stand-ins for the networks.

fn linear(slope: f64, name: &str) -> impl Fn(&Tensor) -> Result<Tensor> {
    let term = image(name, 0.1);
    move |x| (x * slope)? + &term
}

/// Fifteen times the 2x2 averages of the means over channels, (B, H, W).
fn logits(x: &Tensor) -> Result<Tensor> {
    (x.mean_keepdim(1)?.avg_pool2d(2)? * 15.0)?.squeeze(1)
}

fn check_generator(group: &str, teacher: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) {
    let fixture = fixture();
    let (sigma, noise) = (karras_levels("loss.t"), normal("loss.noise"));
    // Each image's loss as the fixture scales it, and the gradient of their sum.
    let check = |name: &str, scale: f64, loss: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| {
        let name = format!("{group}/{name}");
        let x0 = Var::from_tensor(&image("loss.images", 0.8)).unwrap();
        let losses = (loss(&x0, &diffuse(&x0, &sigma, &noise).unwrap()).unwrap() * scale).unwrap();
        each_is_close(&name, &flat(&losses), &fixture.f32(&name));
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let (ours, expected) =
            (flat(gradients.get(&x0).unwrap()), fixture.f32(&format!("{name}_image_grad")));
        for (image, (ours, expected)) in ours.chunks(768).zip(expected.chunks(768)).enumerate() {
            let error = f64::from(relative_error(ours, expected));
            assert!(error < LOSS, "{name}, gradient of image {image}: {error}");
        }
    };
    let fake = linear(0.4, "loss.fake");
    for alpha in [0.5, 1.0, 1.2] {
        check(&format!("sid_alpha{alpha:.1}"), 1.0 / B as f64, &|x0, xt| {
            sid::sid_loss(x0, &teacher(x0, xt)?, &fake(xt)?, alpha)
        });
    }
    check("gan", 0.01 * 768.0 / B as f64, &|x0, xt| {
        sid::adversarial_loss(&logits(xt)?, &sid::weight(x0, &teacher(x0, xt)?)?, B)
    });
}

#[test]
fn the_generators_losses_of_each_image_agree() {
    let teacher = linear(0.5, "loss.teacher");
    check_generator("loss", |_, xt| teacher(xt));
}

/// A teacher that changes nothing: the weight is at its floor.
#[test]
fn the_weight_has_a_floor() {
    check_generator("loss_floor", |x0, _| Ok(x0.detach()));
}

#[test]
fn the_fake_scores_losses_of_each_image_agree() {
    let (fixture, sigma) = (fixture(), log_normal("loss.sigma"));
    let (x0, noise) = (image("loss.images", 0.8), normal("loss.noise"));
    let diffused = |x0: &Tensor| diffuse(x0, &sigma, &noise).unwrap();
    let xt = diffused(&x0);
    let [l_real, l_fake] = [&diffused(&image("loss.real", 0.8)), &xt].map(|x| logits(x).unwrap());
    let told = sid::discriminator_loss(&l_real, &l_fake, &sigma, B).unwrap();
    each_is_close("discriminator", &flat(&(told / B as f64).unwrap()), &fixture.f32("loss/discriminator"));
    let fake = linear(0.4, "loss.fake")(&xt).unwrap();
    let score = |i: usize| {
        let of = |t: &Tensor| t.narrow(0, i, 1).unwrap();
        let loss = sid::fake_score(&of(&fake), &of(&x0), &sigma[i..=i]).unwrap();
        loss.to_scalar::<f32>().unwrap() / B as f32
    };
    each_is_close("score", &(0..B).map(score).collect::<Vec<_>>(), &fixture.f32("loss/fake_score"));
}

#[test]
fn first_steps_agree() {
    let fixture = fixture();
    let cases = CASES.iter().filter(|case| case.file == "distillation.npz");
    let checks: Vec<_> =
        cases.flat_map(|case| case.checks(&fixture.0, &Compute::CPU, &unit).unwrap()).collect();
    for check in &checks {
        println!("{}: {:.1e} of {:.0e}", check.name, check.measured, check.tolerance);
    }
    assert!(checks.len() > 10 && checks.iter().all(|check| check.passed));
}

/// SiDA's first iteration, each of its four losses by itself: the norms of every parameter's
/// gradient, and the logits.
#[test]
fn each_loss_of_sida_has_its_gradients() {
    let (fixture, config, device) = (fixture(), tiny(), Device::Cpu);
    let (params, _) = filled_denoiser(&config, &Compute::CPU, &unit).unwrap();
    let weights = filled(&params, &unit);
    let load = |weights: &Arrays| {
        let source = Source { given: weights, drawn: &[], cell: "" };
        Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap()
    };
    let ((generator_params, generator), (fake_params, fake)) = (load(&weights), load(&weights));
    let check = |array: &str, loss: &Tensor, params: &Params, tolerance: f64| {
        let gradients = loss.backward().unwrap();
        let mut worst = 0f64;
        for (name, var) in params.iter() {
            let squares = |g: &Tensor| flat(g).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let norm = gradients.get(var).map_or(0.0, |gradient| squares(gradient).sqrt());
            let expected = f64::from(fixture.f32(&format!("sida/{array}/{name}"))[0]);
            worst = worst.max((norm - expected).abs() / expected.max(1e-30));
        }
        println!("{array}: {worst:.1e} of {tolerance:.0e}");
        assert!(worst < tolerance, "{array}: {worst}");
    };

    let (sigma, noise) = (log_normal("step0.critic.sigma"), normal("step0.critic.noise"));
    let x0 = one_step(&generator, &normal("step0.critic.z"), 2.5).unwrap().detach();
    let diffused = |x0: &Tensor| diffuse(x0, &sigma, &noise).unwrap();
    // A gradient is computed once, so each loss has a pass of its own.
    let pass = || fake.with_features(&diffused(&x0), &sigma, None, None).unwrap();
    let score = sid::fake_score(&pass().0, &x0, &sigma).unwrap();
    check("fake_grad_norm_score", &score, &fake_params, 1e-4);
    let (_, l_fake) = pass();
    let l_real = fake.features(&diffused(&image("step0.real", 0.8)), &sigma, None, None).unwrap();
    for (array, logits) in [("logits_fake", &l_fake), ("logits_real", &l_real)] {
        let error = relative_error(&flat(logits), &fixture.f32(&format!("sida/first/{array}")));
        assert!(error < 1e-4, "{array}: {error}");
    }
    let told = sid::discriminator_loss(&l_real, &l_fake, &sigma, B).unwrap().mean_all().unwrap();
    check("fake_grad_norm_discriminator", &told, &fake_params, 1e-4);

    // The generator's losses meet the fake score after its step, as the row takes it.
    let row = row("sida");
    let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
    recipe.set("critic_lr=1e-3").unwrap();
    let start = [(row.start, weights.clone())];
    let setup = recipe.setup(&Compute::CPU, &row, &start, "parity");
    let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
    let case = CASES.iter().find(|case| case.group == "sida").unwrap();
    method.step(&case.given(&fixture.0, 0, &device, &unit).unwrap().batch(0, B)).unwrap();
    let (_, fake) = load(&strip(&state(&mut *method).unwrap(), "fake.weights."));
    let (_, teacher) = load(&weights);
    let sigma = karras_levels("step0.generator.t");
    let losses = || {
        let x0 = one_step(&generator, &normal("step0.generator.z"), 2.5).unwrap();
        let xt = diffuse(&x0, &sigma, &normal("step0.generator.noise")).unwrap();
        let t = teacher.forward(&xt, &sigma).unwrap();
        let (q, logits) = fake.with_features(&xt, &sigma, None, None).unwrap();
        let identity = sid::sid_loss(&x0, &t, &q, 1.0).unwrap().mean_all().unwrap();
        let gan =
            sid::adversarial_loss(&logits, &sid::weight(&x0, &t).unwrap(), B).unwrap().mean_all().unwrap();
        (identity, (gan * (0.01 * 768.0)).unwrap())
    };
    check("grad_norm_sid", &losses().0, &generator_params, 3e-4);
    check("grad_norm_gan", &losses().1, &generator_params, 1e-4);
}

/// SiDA's generator moves after more images than its threshold, at once if that is 0.
#[test]
fn sidas_generator_waits_for_its_threshold() {
    let (device, row) = (Device::Cpu, row("sida"));
    let case = CASES.iter().find(|case| case.group == "sida").unwrap();
    let moves = |from: u64, iteration: u64| {
        let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
        for change in [format!("sida_generator_from={from}"), "generator_lr=1e-3".into()] {
            recipe.set(&change).unwrap();
        }
        let (params, _) = filled_denoiser(&recipe.network, &Compute::CPU, &unit).unwrap();
        let start = [(row.start, filled(&params, &unit))];
        let setup = recipe.setup(&Compute::CPU, &row, &start, "parity");
        let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
        let generator = |state: &Arrays| strip(state, "generator.weights.");
        let before = generator(&state(&mut *method).unwrap());
        method.step(&case.given(&fixture().0, 0, &device, &unit).unwrap().batch(iteration, B)).unwrap();
        generator(&state(&mut *method).unwrap()) != before
    };
    // 8 images before the third iteration.
    assert_eq!([moves(8, 1), moves(8, 2), moves(8, 3)], [false, false, true]);
    assert_eq!([moves(0, 0), moves(7, 2)], [true, true]);
}

fn row(id: &str) -> Row {
    all_rows().find(|row| row.id == id).unwrap()
}

/// The generator alone starts from another row's.
#[test]
fn a_generator_can_start_from_another_rows() {
    let mut recipe = Recipe::of(Scale::Smoke);
    recipe.network = tiny();
    let (params, _) = filled_denoiser(&recipe.network, &Compute::CPU, &unit).unwrap();
    let (start, other) = (filled(&params, &unit), params.arrays().unwrap());
    let moved = |arrays: &Arrays| {
        let halved =
            |array: &Array| Array { data: array.data.iter().map(|v| v / 2.0).collect(), ..array.clone() };
        arrays.iter().map(|(name, array)| (name.clone(), halved(array))).collect::<Arrays>()
    };
    let other = moved(&other);
    let row = row("sid2a");
    assert_eq!(row.first_stage_row().unwrap().id, "sid");
    let starts = [(row.start, start.clone())];
    let mut setup = recipe.setup(&Compute::CPU, &row, &starts, "start");
    setup.initial.generator = Some(&other);
    let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
    assert!(published(&mut *method).unwrap() == other, "its average");
    let state = state(&mut *method).unwrap();
    assert!(strip(&state, "generator.weights.") == other && strip(&state, "fake.weights.") == start);
}

#[test]
fn sid2a_runs_sid_of_its_seed_first() {
    let (store, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    let mut runner = runner(store.path(), Recipe::of(Scale::Smoke), &stop);
    assert!(runner.stored(&row("sid2a"), 5).unwrap().is_none());
    let weights = runner.row(&row("sid2a"), 5).unwrap().weights.unwrap();
    assert!(runner.stored(&row("sid"), 4).unwrap().is_none());
    let sid = runner.stored(&row("sid"), 5).unwrap().expect("it was run").weights.unwrap();
    let digest = sid.digest(WEIGHTS).unwrap();
    assert_eq!(weights.manifest.inputs["generator start"], digest);
    let text = &weights.manifest.experiment;
    assert!(text.contains(&format!("generator start sha256 = {digest}\n")), "{text}");
    assert!(runner.stored(&row("sid2a"), 5).unwrap().is_some());
}

/// SiD's and SiDA's fake score drops in its own step: their losses, of passes with its masks.
#[test]
fn the_fake_score_drops_in_its_own_step() {
    let (device, p) = (Device::Cpu, 0.4);
    let (params, fake) = filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap();
    let weights = filled(&params, &unit);
    params.assign(&weights).unwrap();
    for id in ["sid", "sida"] {
        let row = row(id);
        let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
        recipe.set(&format!("dropout={p}")).unwrap();
        let start = [(row.start, weights.clone())];
        let setup = recipe.setup(&Compute::CPU, &row, &start, "parity");
        let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
        let case = CASES.iter().find(|case| case.row == id).unwrap();
        let mut given = case.given(&fixture().0, 0, &device, &unit).unwrap();
        for part in ["critic.dropout_fake", "critic.dropout_real", "generator.dropout"] {
            for (i, (c, h, w)) in fake.dropout_shapes().into_iter().enumerate() {
                let name = format!("{part} {i}");
                let values = unit(&name, B * c * h * w).into_iter().map(|u| 3f32.sqrt() * u).collect();
                given.tensors.insert(name, Tensor::from_vec(values, (B, c, h, w), &device).unwrap());
            }
        }
        let found: Vec<f32> =
            method.step(&given.batch(0, B)).unwrap().iter().map(|v| v.to_scalar().unwrap()).collect();

        let b = given.batch(0, B);
        let (sigma, noise) = (log_normal("step0.critic.sigma"), normal("step0.critic.noise"));
        let x0 = one_step(&fake, &normal("step0.critic.z"), 2.5).unwrap();
        let diffused = |x0: &Tensor| diffuse(x0, &sigma, &noise).unwrap();
        let close = |what: &str, found: f32, loss: Tensor, apart: Tensor| {
            let [expected, apart] = [loss, apart].map(|loss| loss.to_scalar::<f32>().unwrap());
            assert!((found / expected - 1.0).abs() < 1e-4, "{id}, {what}: {found} for {expected}");
            assert!((found / apart - 1.0).abs() > 1e-3, "{id}, {what}: as without dropout");
        };
        let of_fake = b.dropout("critic.dropout_fake", p, &fake.dropout_shapes()).unwrap();
        let score = |masks: Option<&Masks>| {
            let (denoised, logits) = fake.with_features(&diffused(&x0), &sigma, None, masks).unwrap();
            (sid::fake_score(&denoised, &x0, &sigma).unwrap(), logits)
        };
        let ((loss, l_fake), (without, plain)) = (score(of_fake.as_ref()), score(None));
        close("fake score", found[0], loss, without);
        if id == "sida" {
            let of_real = b.dropout("critic.dropout_real", p, fake.encoder_dropout_shapes()).unwrap();
            let real = diffused(&image("step0.real", 0.8));
            let told = |fakes: &Tensor, masks: Option<&Masks>| {
                let l_real = fake.features(&real, &sigma, None, masks).unwrap();
                sid::discriminator_loss(&l_real, fakes, &sigma, B).unwrap().mean_all().unwrap()
            };
            close("discriminator", found[1], told(&l_fake, of_real.as_ref()), told(&plain, None));
        }
    }
}
