//! StyleGAN2 and Diffusion-GAN beside the authors' code, on formula-filled weights.

mod common;

use candle_core::{Device, Tensor, Var};
use common::{Fixture, relative_error, runner, unit};
use replicate::app::selftest::fixture::{filled as filled_u_net, tiny};
use replicate::experiment::{ABLATIONS, FULL_INITIALIZATION, Recipe, Scale};
use replicate::method::equations::softplus;
use replicate::method::ratio_based::diffusion_gan::chain::{Adaptive, Chain};
use replicate::method::ratio_based::diffusion_gan::{
    Architecture, DiffGanSettings, Diffused, StyleGan, UNets, approximate_r1, networks, r1,
};
use replicate::network::Variables;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::stylegan2::{Config, Discriminator, Generator};
use replicate::network::unet::Critic;
use replicate::settings::Settings;
use replicate::store::Array;
use replicate::train::batch::Given;
use replicate::train::{Method, restore, state};
use std::sync::atomic::AtomicBool;

const BATCH: usize = 4;
const SIZE: usize = 16;
const TOLERANCE: f32 = 1e-4;

fn config() -> Config {
    Config { image_channels: 3, latent: 16, channels: vec![16, 16, 8], group: 4 }
}

/// The fixture's values of a parameter, `of` which network it is.
fn value(of: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let rate = if name.starts_with("mapping.fc") { 100.0 } else { 1.0 };
    let u = unit(&format!("{of}.{name}"), shape.iter().product());
    u.into_iter()
        .map(|u| match shape.len() {
            2.. => 3f32.sqrt() * u * rate,
            _ if name.ends_with("affine.bias") => 1.0 + 0.1 * u,
            _ => 0.1 * u * rate,
        })
        .collect()
}

fn filled<M>(of: &str, network: impl FnOnce(Variables) -> candle_core::Result<M>) -> (Params, M) {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parity" };
    let (params, model) = Params::build(&Compute::CPU, &source, network).unwrap();
    let fill = |(name, var): (&String, &Var)| {
        let shape = var.dims().to_vec();
        (name.clone(), Array { data: value(of, name, &shape), shape })
    };
    params.assign(&params.iter().map(fill).collect()).unwrap();
    (params, model)
}

fn generator() -> (Params, Generator) {
    filled("generator", |vb| Generator::new(&config(), vb))
}

fn discriminator() -> (Params, Discriminator) {
    filled("discriminator", |vb| Discriminator::new(&config(), vb))
}

fn tensor(name: &str, scale: f32, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = unit(name, shape.iter().product()).into_iter().map(|u| scale * u).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Of unit variance.
fn normal(name: &str, shape: &[usize]) -> Tensor {
    tensor(name, 3f32.sqrt(), shape)
}

fn images(name: &str) -> Tensor {
    tensor(name, 0.8, &[BATCH, 3, SIZE, SIZE])
}

/// The convolutions of the generator, and the pixels of their maps.
const CONVOLUTIONS: [(&str, usize); 5] =
    [("b4.conv1", 4), ("b8.conv0", 8), ("b8.conv1", 8), ("b16.conv0", 16), ("b16.conv1", 16)];

fn noise(of: &str) -> Vec<Tensor> {
    CONVOLUTIONS.iter().map(|(conv, r)| normal(&format!("{of}.noise.{conv}"), &[BATCH, 1, *r, *r])).collect()
}

/// The checkpoint's own noise, the same for all images.
fn constant_noise() -> Vec<Tensor> {
    let of = |(conv, r): &(&str, usize)| {
        let name = format!("generator.synthesis.{conv}.noise_const");
        normal(&name, &[1, 1, *r, *r]).broadcast_as((BATCH, 1, *r, *r)).unwrap().contiguous().unwrap()
    };
    CONVOLUTIONS.iter().map(of).collect()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(what: &str, ours: &Tensor, expected: &[f32]) {
    let error = relative_error(&flat(ours), expected);
    println!("{what}: {error:.1e}");
    assert!(error < TOLERANCE, "{what}: off by {error}");
}

/// The norm of every parameter's gradient of `loss`.
fn gradient_norms(fixture: &Fixture, at: &str, params: &Params, loss: &Tensor, tolerance: f32) {
    let gradients = loss.backward().unwrap();
    let mut worst = 0f32;
    for (name, var) in params.iter() {
        // What a loss does not reach has a gradient of 0 in the fixture.
        let norm = gradients.get(var).map_or(0.0, |g| {
            flat(g).iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
        });
        let expected = fixture.f32(&format!("{at}/{name}"));
        let error = if expected[0] == 0.0 { norm } else { relative_error(&[norm], &expected) };
        assert!(error < tolerance, "{at}/{name}: {norm} for {expected:?}");
        worst = worst.max(error);
    }
    let prefix = format!("{at}/");
    let names = fixture.names().iter().filter(|name| name.starts_with(&prefix)).count();
    assert_eq!(names, params.iter().count(), "{at}");
    println!("{at}: {worst:.1e}");
}

const TIMES: [f32; BATCH] = [0.0, 3.0, 7.0, 10.0];

fn latents() -> Tensor {
    normal("style.z", &[BATCH, 16])
}

#[test]
fn generator_forward() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let (_, generator) = generator();
    assert_eq!(generator.noise_sizes(), CONVOLUTIONS.map(|(_, pixels)| pixels));
    let no_noise: Vec<Tensor> = noise("style").iter().map(|t| t.zeros_like().unwrap()).collect();
    for (name, noise) in
        [("image", noise("style")), ("image_noise_const", constant_noise()), ("image_noise_none", no_noise)]
    {
        let image = generator.forward(&latents(), &noise).unwrap();
        close(name, &image, &fixture.f32(&format!("style/{name}")));
    }
}

#[test]
fn discriminator_forward_and_backward() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let (params, discriminator) = discriminator();
    let x = Var::from_tensor(&images("style.x")).unwrap();
    let logits = discriminator.forward(&x, &TIMES).unwrap();
    close("logits", &logits, &fixture.f32("style/orig/logits"));
    let loss = softplus(&logits.neg().unwrap()).unwrap().mean_all().unwrap();
    close("loss", &loss, &fixture.f32("style/orig/loss"));
    gradient_norms(&fixture, "style/orig/grad_norm", &params, &loss, TOLERANCE);
}

#[test]
fn generator_backward() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let (params, generator) = generator();
    let (_, discriminator) = discriminator();
    let loss = |image: &Tensor| {
        let logits = discriminator.forward(image, &TIMES).unwrap();
        softplus(&logits.neg().unwrap()).unwrap().mean_all().unwrap()
    };
    let image = generator.forward(&latents(), &noise("style")).unwrap();
    let total = loss(&image);
    close("generator loss", &total, &fixture.f32("style/orig/generator_loss"));
    gradient_norms(&fixture, "style/orig/generator_grad_norm", &params, &total, TOLERANCE);
    let image = Var::from_tensor(&image.detach()).unwrap();
    let gradients = loss(&image).backward().unwrap();
    let expected = fixture.f32("style/orig/generator_image_grad");
    close("image gradient", gradients.get(&image).unwrap(), &expected);
}

const ARCHITECTURE: StyleGan = StyleGan { latent: 16 };

fn diffused(signal: f32) -> Diffused {
    let (signal, noise) = (vec![signal; BATCH], vec![0.0; BATCH]);
    Diffused { x: images("style.x"), t: TIMES.to_vec(), signal, noise }
}

/// The gradient of the directional derivative is R1's.
#[test]
fn r1_is_exact() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let ((params, discriminator), (_, frozen)) = (discriminator(), discriminator());
    let penalty = r1(&ARCHITECTURE, &discriminator, &frozen, &diffused(1.0)).unwrap();
    close("R1", &penalty.size, &fixture.f32("style/orig/r1"));
    close("R1 as a derivative", &(penalty.loss.clone() / 2.0).unwrap(), &fixture.f32("style/orig/r1"));
    gradient_norms(&fixture, "style/orig/r1_grad_norm", &params, &penalty.loss, TOLERANCE);
}

/// A factor of the signal counts once for the image and once for the step along it.
#[test]
fn r1_is_of_the_undiffused_image() {
    let ((params, discriminator), (_, frozen)) = (discriminator(), discriminator());
    let of = |signal: f32| {
        let penalty = r1(&ARCHITECTURE, &discriminator, &frozen, &diffused(signal)).unwrap();
        let weight = params.iter().find(|(name, _)| *name == "b16.conv0.weight").unwrap().1;
        let gradient = flat(penalty.loss.backward().unwrap().get(weight).unwrap());
        (flat(&penalty.size), gradient)
    };
    let ((whole, whole_gradient), (half, half_gradient)) = (of(1.0), of(0.5));
    let quarter = |values: &[f32]| values.iter().map(|v| 0.25 * v).collect::<Vec<_>>();
    assert!(relative_error(&half, &quarter(&whole)) < 1e-6);
    assert!(relative_error(&half_gradient, &quarter(&whole_gradient)) < 1e-5);
}

#[test]
fn approximate_r1_is_a_difference() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let (params, discriminator) = discriminator();
    let of = |sigma: f64| {
        let noise = normal("style.approximate_r1", &[BATCH, 3, SIZE, SIZE]);
        let beside = (images("style.x") + (noise * sigma).unwrap()).unwrap();
        let logits = |x: &Tensor| discriminator.forward(x, &TIMES).unwrap();
        let penalty = approximate_r1(&logits(&images("style.x")), &logits(&beside), sigma).unwrap();
        // The fixture has the differences themselves.
        (penalty.loss * (sigma * sigma)).unwrap()
    };
    // A difference of two rounded logits.
    for (sigma, tolerance) in [(0.1, 4e-4), (0.01, 4e-4)] {
        let error = relative_error(&flat(&of(sigma)), &fixture.f32(&format!("style/orig/ar1_sigma{sigma}")));
        assert!(error < tolerance, "sigma {sigma}: off by {error}");
    }
    gradient_norms(&fixture, "style/orig/ar1_sigma0.1_grad_norm", &params, &of(0.1), 4e-4);
}

#[test]
fn diffusion() {
    let fixture = Fixture::open("diffusion-gan.npz");
    for steps in [10, 1000] {
        let get = |name: &str| fixture.f32(&format!("diffusion/T{steps}/{name}"));
        let chain = Chain::new(steps);
        assert_eq!(chain.steps(), steps);
        let all: Vec<usize> = (0..=steps).collect();
        assert!(relative_error(&chain.signal(&all), &get("signal")) < 1e-6);
        let t: Vec<usize> = get("t").iter().map(|t| *t as usize).collect();
        let shape = [t.len(), 3, SIZE, SIZE];
        let (x, eps) = (tensor("diffusion.x", 0.8, &shape), normal("diffusion.noise", &shape));
        close("x_t", &chain.diffuse(&x, &t, &eps).unwrap(), &get("x_t"));
        let u: Vec<f64> = unit(&format!("diffusion.T{steps}.t_epl"), 32)
            .into_iter()
            .map(|u| (f64::from(u) + 1.0) / 2.0)
            .collect();
        let times: Vec<f32> = chain.times(&u).into_iter().map(|t| t as f32).collect();
        assert_eq!(times, get("t_list"));
    }
}

#[test]
fn adaptive_length() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let mut adaptive = Adaptive { p: 0.0 };
    let expected = fixture.f64("diffusion/walk/p").into_iter().zip(fixture.f32("diffusion/walk/T"));
    for (sign, (p, steps)) in fixture.f64("diffusion/walk/signs").into_iter().zip(expected) {
        adaptive.update(sign, 64);
        assert!((adaptive.p - p).abs() < 1e-12);
        assert_eq!(adaptive.steps(), steps as usize);
    }
    let mut adaptive = Adaptive { p: 0.0 };
    for steps in fixture.f32("diffusion/rise/T") {
        adaptive.update(1.0, 64);
        assert_eq!(adaptive.steps(), steps as usize);
    }
}

/// What one iteration of the fixture is given.
fn given(k: usize) -> Given {
    let mut given = Given::default();
    let mut give = |name: String, tensor: Tensor| given.tensors.insert(name, tensor);
    let uniform = |name: &str, n: usize| {
        let values: Vec<f32> = unit(name, n).into_iter().map(|u| (u + 1.0) / 2.0).collect();
        Tensor::from_vec(values, n, &Device::Cpu).unwrap()
    };
    give("times".into(), uniform("diffusion.T10.t_epl", 32));
    give("critic.index".into(), images(&format!("style_step{k}.real")));
    for (ours, theirs) in [("generator", "Gmain"), ("critic", "Dmain"), ("penalty", "Dreg")] {
        let at = format!("style_step{k}.{theirs}");
        give(format!("{ours}.z"), normal(&format!("{at}.z"), &[BATCH, 16]));
        for (i, map) in noise(&at).into_iter().enumerate() {
            give(format!("{ours}.map{i}"), map);
        }
        for of in ["real", "fake"] {
            let eps = normal(&format!("{at}.diffusion_{of}"), &[BATCH, 3, SIZE, SIZE]);
            give(format!("{ours}.noise_{of}"), eps);
            give(format!("{ours}.t_{of}"), uniform(&format!("{at}.t_{of}"), BATCH));
        }
    }
    given
}

#[test]
fn five_iterations() {
    let fixture = Fixture::open("diffusion-gan.npz");
    let recipe = Recipe::of(Scale::Mini);
    let setup = recipe.setup(&Compute::CPU, &FULL_INITIALIZATION, &[], "parity");
    let settings = DiffGanSettings { gamma: 1.0, penalty_every: 2, ..DiffGanSettings::at(Scale::Mini) };
    let mut method = StyleGan::of(&config(), &setup, &settings).unwrap();
    let mut start = state(&mut method).unwrap();
    for (ours, theirs) in [("generator", "generator"), ("critic", "discriminator")] {
        let prefix = format!("{ours}.weights.");
        for (name, array) in &mut start {
            if let Some(name) = name.strip_prefix(&prefix) {
                array.data = value(theirs, name, &array.shape);
            }
        }
    }
    restore(&mut method, &start).unwrap();

    let (mut generator, mut critic, mut penalty) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..5 {
        let values = method.step(&given(k).batch(k as u64, BATCH)).unwrap();
        let values: Vec<f32> = values.iter().map(|v| v.to_scalar().unwrap()).collect();
        critic.push(values[0]);
        generator.push(values[1]);
        // gamma / 2 times the interval is 1 here.
        if k % 2 == 0 {
            penalty.push(values[2]);
        } else {
            assert_eq!(values[2], 0.0);
        }
        assert_eq!(values[4], 10.0);
    }
    for (what, ours, tolerance) in [
        ("generator_loss", generator, 1e-3),
        ("discriminator_loss", critic, 1e-3),
        ("r1_penalty", penalty, 1e-3),
    ] {
        let error = relative_error(&ours, &fixture.f32(&format!("style_steps/{what}")));
        println!("{what}: {error:.1e}");
        assert!(error < tolerance, "{what}: off by {error}");
    }

    let after = state(&mut method).unwrap();
    let weights = |part: &str| -> Arrays {
        let prefix = format!("{part}.weights.");
        let named = after.iter().filter_map(|(name, array)| Some((name.strip_prefix(&prefix)?, array)));
        named.map(|(name, array)| (name.to_string(), array.clone())).collect()
    };
    let generator = Generator::load(&config(), &weights("generator"), &Compute::CPU).unwrap();
    let samples = generator.forward(&normal("final.style.z", &[BATCH, 16]), &constant_noise()).unwrap();
    close("samples", &samples, &fixture.f32("style_steps/samples_after"));
    let (params, discriminator) = discriminator();
    params.assign(&weights("critic")).unwrap();
    let logits = discriminator.forward(&images("style.x"), &TIMES).unwrap();
    close("logits", &logits, &fixture.f32("style_steps/logits_after"));
}

/// As large as the authors' networks at 32 x 32 pixels.
#[test]
fn sizes() {
    let of = |scale| networks(&Recipe::of(scale).network, DiffGanSettings::at(scale).group);
    let config = of(Scale::Paper);
    assert_eq!(Generator::count(&config).parameters, 19_947_539);
    assert_eq!(Discriminator::count(&config).parameters, 23_085_056);
    assert_eq!(config.size(), 32);
    let config = of(Scale::Mini);
    assert_eq!(Generator::count(&config).parameters, 72_014);
    assert_eq!(Discriminator::count(&config).parameters, 72_640);
    println!("{:?} {:?}", Generator::count(&config), Discriminator::count(&config));
}

/// The groups stride over a batch, so that no microbatch divides it: bit for bit the same step.
#[test]
fn a_batch_is_taken_whole() {
    let config = Config { group: 2, ..config() };
    let first = |microbatch| {
        let recipe = Recipe::of(Scale::Mini);
        let setup = recipe.setup(&Compute::CPU, &FULL_INITIALIZATION, &[], "parity");
        let mut method = StyleGan::of(&config, &setup, &DiffGanSettings::at(Scale::Mini)).unwrap();
        method.step(&Given { microbatch, ..given(0) }.batch(0, BATCH)).unwrap();
        state(&mut method).unwrap()
    };
    assert!(first(Some(1)) == first(None));
}

/// What the paper's critic sees of Diffusion-GAN's images, and R1 through it.
#[test]
fn r1_of_the_papers_critic_is_a_slope_of_clean_images() {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "u-nets" };
    let build = |vb: Variables| Critic::new(&tiny(), vb);
    let (params, critic) = Params::build(&Compute::CPU, &source, build).unwrap();
    params.assign(&filled_u_net(&params, &unit)).unwrap();
    let frozen = params.frozen(build).unwrap();
    let (architecture, chain, t) = (UNets { sigma_init: 2.5 }, Chain::new(1000), [0, 1, 400, 1000]);
    let (x0, eps) = (images("u-nets.x"), normal("u-nets.noise", &[BATCH, 3, SIZE, SIZE]));
    let diffused = |x0: &Tensor| Diffused::new(chain.diffuse(x0, &t, &eps).unwrap(), &chain, &t);

    // The images as they are beside noise of a level, 0.002 where there is none.
    let (signal, noise) = (chain.signal(&t), chain.noise(&t));
    assert_eq!((signal[0], noise[0]), (1.0, 0.0));
    let sigma: Vec<f32> = noise.iter().zip(&signal).map(|(n, s)| (n / s).max(0.002)).collect();
    assert!(sigma[0] == 0.002 && sigma[3] > 1.0, "{sigma:?}");
    let clean = replicate::network::mix(
        &x0,
        &[1.0],
        &eps,
        &noise.iter().zip(&signal).map(|(n, s)| n / s).collect::<Vec<_>>(),
    )
    .unwrap();
    let logits = critic.forward(&clean, &sigma).unwrap();
    close("logits", &architecture.logits(&critic, &diffused(&x0)).unwrap(), &flat(&logits));

    // |grad|^2 by the images before diffusion, through candle's own chain rule.
    let x = Var::from_tensor(&x0).unwrap();
    let sum = architecture.logits(&critic, &diffused(&x)).unwrap().sum_all().unwrap();
    let slope = sum.backward().unwrap().remove(&x).unwrap();
    let expected = (slope.sqr().unwrap().sum_all().unwrap() / BATCH as f64).unwrap();
    let penalty = || r1(&architecture, &critic, &frozen, &diffused(&x0)).unwrap();
    close("R1", &penalty().size.flatten_all().unwrap(), &[expected.to_scalar().unwrap()]);

    // The loss has the gradient of the size: by differences along all parameters at once.
    let gradients = penalty().loss.backward().unwrap();
    let (weights, mut slope, mut steps) = (params.arrays().unwrap(), 0f64, Vec::new());
    for (name, var) in params.iter() {
        let step = (tensor(&format!("u-nets.{name}"), 1.0, var.dims()) * 1e-3).unwrap();
        if let Some(gradient) = gradients.get(var) {
            let product = (gradient * &step).unwrap().sum_all().unwrap();
            slope += f64::from(product.to_scalar::<f32>().unwrap());
            steps.push((var.clone(), step));
        }
    }
    let at = |sign: f64| {
        params.assign(&weights).unwrap();
        for (var, step) in &steps {
            var.set(&(var.as_tensor() + (step * sign).unwrap()).unwrap()).unwrap();
        }
        let frozen = params.frozen(build).unwrap();
        f64::from(
            r1(&architecture, &critic, &frozen, &diffused(&x0)).unwrap().size.to_scalar::<f32>().unwrap(),
        )
    };
    let found = (at(1.0) - at(-1.0)) / 2.0;
    println!("R1 along the parameters: {slope:.6e}, by differences {found:.6e}");
    assert!((found - slope).abs() < 2e-2 * slope.abs(), "{slope} and {found}");
}

#[test]
fn every_ablation_runs_at_smoke() {
    let (store, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    let mut runner = runner(store.path(), Recipe::of(Scale::Smoke), &stop);
    for row in ABLATIONS {
        runner.row(row, 5).unwrap();
        assert!(runner.stored(row, 5).unwrap().is_some_and(|made| made.weights.is_some()), "{}", row.id);
    }
}
