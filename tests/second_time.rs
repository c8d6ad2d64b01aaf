//! Networks with a second time, BCM's and CTM's: the first step of either method against the
//! reference, and that they start from a network with one time as they should.

mod common;

use candle_core::{Device, Result, Tensor};
use common::{Fixture, aligned, relative_error, unit};
use replicate::app::selftest::fixture::{filled, tiny};
use replicate::method::equations::dsm;
use replicate::network::Variables;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source, outline};
use replicate::network::unet::{Conditioning, Config, Denoiser, SecondTime};
use replicate::network::{mix, scale_images};

const LOWEST: f32 = 0.002;
const TOLERANCE: f32 = 1e-4;

/// The tiny network with a second time, and a builder of it.
fn network(second: SecondTime) -> impl Fn(Variables) -> Result<Denoiser> {
    // The published network of CTM has no augmentation layer.
    let augment_labels = if second == SecondTime::PerBlock { 0 } else { 9 };
    let config = Config { augment_labels, ..tiny() };
    move |vb| Denoiser::with_second_time(&config, second, vb)
}

/// Filled by the formula, with gradients and without.
fn filled_twice(second: SecondTime) -> (Params, Denoiser, Denoiser) {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "second" };
    let (params, model) = Params::build(&Compute::CPU, &source, network(second)).unwrap();
    params.assign(&filled(&params, &unit)).unwrap();
    let frozen = params.frozen(network(second)).unwrap();
    (params, model, frozen)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn images(name: &str, scale: f32) -> Tensor {
    let values: Vec<f32> = unit(name, 4 * 768).into_iter().map(|u| u * scale).collect();
    Tensor::from_vec(values, (4, 3, 16, 16), &Device::Cpu).unwrap()
}

fn noise(name: &str) -> Tensor {
    images(name, 3f32.sqrt())
}

fn ones() -> [f32; 4] {
    [1.0; 4]
}

/// J(x, t, u), BCM's and CTM's jump.
fn jump(model: &Denoiser, x: &Tensor, t: &[f32], u: &[f32]) -> Tensor {
    let both = || t.iter().zip(u);
    let skip: Vec<f32> = both().map(|(t, u)| (t * u + 0.25) / (t * t + 0.25)).collect();
    let out: Vec<f32> = both().map(|(t, u)| 0.5 * (t - u) / (t * t + 0.25).sqrt()).collect();
    let input: Vec<f32> = t.iter().map(|t| 1.0 / (t * t + 0.25).sqrt()).collect();
    let label = |t: &[f32]| -> Vec<f32> { t.iter().map(|t| t.ln() / 4.0).collect() };
    let conditioning = Conditioning { noise: &label(t), second: Some(&label(u)), augment: None, masks: None };
    let f = model.raw(&scale_images(x, &input).unwrap(), &conditioning).unwrap();
    mix(x, &skip, &f, &out).unwrap()
}

/// The pseudo-Huber distance of each image.
fn distance(a: &Tensor, b: &Tensor) -> Tensor {
    let c = 0.00054 * 768f64.sqrt();
    let squares = (a - b).unwrap().sqr().unwrap().flatten_from(1).unwrap().sum(1).unwrap();
    ((squares + c * c).unwrap().sqrt().unwrap() - c).unwrap()
}

/// N levels from 0.002 to 80, equally spaced in the 7th root; `places` of them.
fn levels(n: f64, places: impl Iterator<Item = f64>) -> Vec<f32> {
    let (low, high) = (0.002f64.powf(1.0 / 7.0), 80f64.powf(1.0 / 7.0));
    places.map(|i| (low + i / (n - 1.0) * (high - low)).powi(7) as f32).collect()
}

fn check_norms(fixture: &Fixture, method: &str, params: &Params, loss: &Tensor) {
    let gradients = loss.backward().unwrap();
    for (name, var) in params.iter() {
        let expected = fixture.f32(&format!("{method}/grad_norm/{name}"));
        let norm = match gradients.get(var) {
            Some(g) => flat(g).iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt() as f32,
            None => 0.0,
        };
        let error = (norm - expected[0]).abs() / expected[0].max(1e-30);
        assert!(norm == expected[0] || error < TOLERANCE, "{name}: {norm} for {expected:?}");
    }
}

#[test]
fn bcm_loss_and_gradients() {
    let fixture = Fixture::open("consistency.npz");
    let (params, model, frozen) = filled_twice(SecondTime::Aligned);
    let n = fixture.f64("bcm/levels")[0];
    let of_first = |name: &str| fixture.f64(name)[..4].to_vec();
    let index = of_first("bcm/index");
    let below = levels(n, index.iter().copied());
    let t = levels(n, index.iter().map(|i| i + 1.0));
    let u = levels(n, of_first("bcm/end_index").into_iter());
    let (x0, eps) = (images("bcm.step0.real", 0.8), noise("bcm.step0.noise"));
    let at = |t: &[f32]| mix(&x0, &ones(), &eps, t).unwrap();
    let target = jump(&frozen, &at(&below), &below, &[LOWEST; 4]);
    let over = |d: Tensor, differences: Vec<f32>| {
        let weight: Vec<f32> = differences.iter().map(|d| 1.0 / d).collect();
        (d * Tensor::from_vec(weight, 4, &Device::Cpu).unwrap()).unwrap().mean_all().unwrap()
    };
    let ct = over(
        distance(&jump(&model, &at(&t), &t, &[LOWEST; 4]), &target),
        t.iter().zip(&below).map(|(t, below)| t - below).collect(),
    );
    let inner = jump(&model, &at(&t), &t, &u);
    let soft = over(
        distance(&jump(&frozen, &inner, &u, &[LOWEST; 4]), &target),
        t.iter().zip(&u).map(|(t, u)| (t - u).abs()).collect(),
    );
    for (loss, name) in [(&ct, "bcm/ct_loss"), (&soft, "bcm/soft_loss")] {
        let error = relative_error(&flat(loss), &fixture.f32(name)[..1]);
        assert!(error < TOLERANCE, "{name}: {error:e}");
    }
    check_norms(&fixture, "bcm", &params, &(ct + soft).unwrap());
}

#[test]
fn ctm_losses_and_gradients() {
    let fixture = Fixture::open("consistency.npz");
    let (params, model, frozen) = filled_twice(SecondTime::PerBlock);
    let (_, _, teacher) = filled_twice(SecondTime::None);
    // CTM's places count down from 80.
    let level = |places: &[f64]| levels(18.0, places.iter().map(|j| 17.0 - j));
    let of_first = |name: &str| fixture.f64(name)[..4].to_vec();
    let (steps, place) = (fixture.f64("ctm/heun_steps")[0] as usize, of_first("ctm/place"));
    let (t, s) = (level(&place), level(&of_first("ctm/end_place")));
    let x0 = images("ctm.step0.real", 0.8);
    let xt = mix(&x0, &ones(), &noise("ctm.step0.noise"), &t).unwrap();
    let (mut x, mut from) = (xt.clone(), t.clone());
    for k in 1..=steps {
        let to = level(&place.iter().map(|j| j + k as f64).collect::<Vec<_>>());
        // dx/dt = (x - D)/t, Heun's method.
        let slope = |x: &Tensor, t: &[f32]| {
            let inverse: Vec<f32> = t.iter().map(|t| 1.0 / t).collect();
            let minus: Vec<f32> = inverse.iter().map(|v| -v).collect();
            mix(x, &inverse, &teacher.forward(x, t).unwrap(), &minus).unwrap()
        };
        let difference: Vec<f32> = to.iter().zip(&from).map(|(to, from)| to - from).collect();
        let first = slope(&x, &from);
        let euler = mix(&x, &ones(), &first, &difference).unwrap();
        let mean = mix(&first, &[0.5], &slope(&euler, &to), &[0.5]).unwrap();
        x = mix(&x, &ones(), &mean, &difference).unwrap();
        from = to;
    }
    let estimate = jump(&frozen, &jump(&model, &xt, &t, &s), &s, &[LOWEST; 4]);
    let aim = jump(&frozen, &jump(&frozen, &x, &from, &s), &s, &[LOWEST; 4]);
    let ctm = distance(&estimate, &aim).mean_all().unwrap();

    let normal = unit("ctm.step0.dsm.sigma", 2).into_iter().map(|u| (-1.2 + 1.2 * 3f32.sqrt() * u).exp());
    let far: Vec<f64> =
        unit("ctm.step0.dsm.place", 2).into_iter().map(|u| 17.0 * 0.7 * (u as f64 + 1.0) / 2.0).collect();
    let sigma: Vec<f32> = normal.chain(level(&far)).collect();
    let noisy = mix(&x0, &ones(), &noise("ctm.step0.dsm.noise"), &sigma).unwrap();
    // D of F(x, n, n), which the jump to 0 is, if it were told another end.
    let label: Vec<f32> = sigma.iter().map(|s| s.ln() / 4.0).collect();
    let each = |f: &dyn Fn(f32) -> f32| sigma.iter().map(|s| f(*s)).collect::<Vec<f32>>();
    let input = scale_images(&noisy, &each(&|s| 1.0 / (s * s + 0.25).sqrt())).unwrap();
    let conditioning = Conditioning { noise: &label, second: Some(&label), augment: None, masks: None };
    let f = model.raw(&input, &conditioning).unwrap();
    let out = each(&|s| 0.5 * s / (s * s + 0.25).sqrt());
    let denoised = mix(&noisy, &each(&|s| 0.25 / (s * s + 0.25)), &f, &out).unwrap();
    let matching = dsm(&denoised, &x0, &sigma).unwrap();

    for (loss, name) in [(&ctm, "ctm/ctm"), (&matching, "ctm/dsm")] {
        let error = relative_error(&flat(loss), &fixture.f32(name)[..1]);
        assert!(error < TOLERANCE, "{name}: {error:e}");
    }
    let weight = fixture.f32("ctm/dsm_weight")[0] as f64;
    check_norms(&fixture, "ctm", &params, &(ctm + (matching * weight).unwrap()).unwrap());
}

#[test]
fn parameters_of_the_published_sizes() {
    let scalars = |config: Config, second| {
        let (_, shapes) = outline(|vb| Denoiser::with_second_time(&config, second, vb)).unwrap();
        shapes.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>()
    };
    let without_labels = |config| Config { augment_labels: 0, ..config };
    assert_eq!(scalars(tiny(), SecondTime::Aligned), 189_491 + 13_440);
    assert_eq!(scalars(without_labels(tiny()), SecondTime::PerBlock), 189_491 - 144 + 21_888);
    assert_eq!(scalars(Config::cifar10(), SecondTime::Aligned), 55_733_891 + 852_992);
    assert_eq!(scalars(without_labels(Config::cifar10()), SecondTime::PerBlock), 60_395_267);
}

/// BCM from the weights of a network with one time begins as that network, whatever the
/// second time is; CTM's new layers are drawn, and nothing else is.
#[test]
fn from_a_network_with_one_time() {
    let given = filled_twice(SecondTime::None).0.arrays().unwrap();
    let build = |second_time: SecondTime, given: &Arrays, drawn: &[&str]| {
        let source = Source { given, drawn, cell: "second" };
        Params::build(&Compute::CPU, &source, |vb| Denoiser::with_second_time(&tiny(), second_time, vb))
    };
    let output = |model: &Denoiser, second: Option<&[f32]>| {
        let conditioning =
            Conditioning { noise: &[-1.0, -0.5, 0.2, 1.0], second, augment: None, masks: None };
        flat(&model.raw(&images("second.x", 1.0), &conditioning).unwrap())
    };
    let (_, one) = build(SecondTime::None, &given, &[]).unwrap();
    let (_, two) = build(SecondTime::Aligned, &aligned(given.clone()), &[]).unwrap();
    let second = [0.3, -0.2, 0.9, -1.5];
    assert!(relative_error(&output(&two, Some(&second)), &output(&one, None)) < 1e-6);

    let named = SecondTime::PerBlock.layers();
    let (params, model) = build(SecondTime::PerBlock, &given, named).unwrap();
    let all = params.arrays().unwrap();
    let new: Vec<&String> = all.keys().filter(|name| !given.contains_key(*name)).collect();
    assert!(new.iter().all(|name| named.iter().any(|layer| name.contains(layer))), "{new:?}");
    assert!(given.iter().all(|(name, array)| &all[name] == array));
    assert!(
        new.iter()
            .filter(|name| name.ends_with("weight"))
            .all(|name| all[*name].data.iter().any(|v| *v != 0.0))
    );
    assert_ne!(output(&model, Some(&second)), output(&model, Some(&second.map(|n| n + 0.1))));

    for (second_time, weights) in [
        (SecondTime::None, &given),
        (SecondTime::PerBlock, &all),
        (SecondTime::Aligned, &aligned(given.clone())),
    ] {
        let loaded = Denoiser::load(&tiny(), weights, &Compute::CPU).unwrap();
        let second = (second_time != SecondTime::None).then_some(&second[..]);
        assert_eq!(output(&loaded, second), output(&build(second_time, weights, &[]).unwrap().1, second));
    }

    let missing = build(SecondTime::PerBlock, &given, &["affine_s."]).err().unwrap().to_string();
    assert!(missing.contains("map_layer0_s"), "{missing}");
    let conditioning = Conditioning { noise: &[0.0; 4], second: None, augment: None, masks: None };
    assert!(model.raw(&images("second.x", 1.0), &conditioning).is_err(), "the second time is not given");
    assert!(model.forward(&images("second.x", 1.0), &[1.0; 4]).is_err());
    let conditioning = Conditioning { second: Some(&second), ..conditioning };
    assert!(one.raw(&images("second.x", 1.0), &conditioning).is_err(), "there is none");
}
