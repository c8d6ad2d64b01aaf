//! iCT, BCM, CTM and sCT: schedules, tangents and first iterations against `consistency.npz`
//! (`tests/parity/consistency.md`), and what their formulas promise without one.

mod common;

use candle_core::{Device, Result, Tensor, Var};
use common::{Fixture, aligned, relative_error, unit};
use replicate::app::selftest::fixture::{filled, tiny};
use replicate::app::selftest::steps::CASES;
use replicate::experiment::{Recipe, Scale};
use replicate::method::consistency::ctm;
use replicate::method::consistency::sct::{self, Point};
use replicate::method::consistency::{
    DiscreteSettings, categorical, ict, jump, jumps, over_gaps, pseudo_huber,
};
use replicate::method::equations::diffuse;
use replicate::method::schedule::polynomial;
use replicate::method::{PUBLISHED, all_rows};
use replicate::network::Variables;
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Critic, Denoiser, Masks, SecondTime};
use replicate::settings::Settings;
use replicate::train::batch::Given;
use replicate::train::net::strip;
use replicate::train::{Method, restore, state};

const B: usize = 4;

fn fixture() -> Fixture {
    Fixture::open("consistency.npz")
}

fn paper() -> DiscreteSettings {
    DiscreteSettings::at(Scale::Paper)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn image(name: &str, scale: f32) -> Tensor {
    let values: Vec<f32> = unit(name, B * 768).into_iter().map(|u| u * scale).collect();
    Tensor::from_vec(values, (B, 3, 16, 16), &Device::Cpu).unwrap()
}

/// The tiny network, filled, and its parameters.
fn network(second_time: SecondTime) -> (Params, Denoiser) {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "consistency" };
    let build = |vb: Variables| Denoiser::with_second_time(&tiny(), second_time, vb);
    let (params, net) = Params::build(&Compute::CPU, &source, build).unwrap();
    params.assign(&filled(&params, &unit)).unwrap();
    (params, net)
}

fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let error = relative_error(&flat(found), &flat(expected));
    assert!(error < tolerance, "{what} is off by {error:e}");
}

#[test]
fn numbers_of_levels_are_ict_s() {
    let fixture = fixture();
    let integers = |name: &str| fixture.get(name).to_vec1::<i64>().unwrap();
    let settings = paper();
    let levels = |k: i64, steps| settings.levels(k as u64, steps) as i64;
    for (k, n) in integers("schedule/paper_k").into_iter().zip(integers("schedule/paper_n")) {
        assert_eq!(levels(k, 400_000), n, "step {k}");
    }
    assert_eq!((0..600).map(|k| levels(k, 600)).collect::<Vec<_>>(), integers("schedule/mini_n"));
    // A run that is shorter than its stages, and one that goes on after them.
    assert_eq!([levels(0, 3), levels(1, 3), levels(2, 3)], [11, 21, 41]);
    assert_eq!(levels(1 << 40, 600), 1281);
}

#[test]
fn levels_and_their_probabilities_are_ict_s() {
    let fixture = fixture();
    for n in [11, 21, 321, 1281] {
        let discretization = paper().discretization(n);
        for (found, name) in [(&discretization.sigma, "sigma"), (&discretization.p, "p")] {
            for (found, expected) in found.iter().zip(fixture.f64(&format!("schedule/{name}_{n}"))) {
                assert!((found / expected - 1.0).abs() < 1e-11, "{name} of {n}: {found} for {expected}");
            }
        }
        assert_eq!((discretization.sigma.len(), discretization.p.len()), (n, n - 1));
        assert!((discretization.p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
    let p = [0.25, 0.0, 0.5, 0.25, 0.0];
    for (u, place) in [(0.0, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.75, 3), (0.999_999_9, 3)] {
        assert_eq!(categorical(&p, u), place, "{u}");
        assert_eq!(categorical(&p.map(|p| 3.0 * p), u), place, "only shares count: {u}");
    }
}

#[test]
fn the_distance_is_one_number_an_image() {
    let (a, b) = (image("a", 1.0), image("b", 1.0));
    let found = flat(&pseudo_huber(&a, &b).unwrap());
    let (a, b) = (flat(&a), flat(&b));
    let c = 0.00054 * 768f64.sqrt();
    for (i, found) in found.into_iter().enumerate() {
        let pairs = a[i * 768..(i + 1) * 768].iter().zip(&b[i * 768..]);
        let squares: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!((f64::from(found) / ((squares + c * c).sqrt() - c) - 1.0).abs() < 1e-5);
    }
    // It is differentiable where both images are one.
    let x = Var::from_tensor(&image("a", 1.0)).unwrap();
    let distance = pseudo_huber(&x, &image("a", 1.0)).unwrap();
    assert_eq!(flat(&distance), [0.0; B]);
    let gradient = distance.sum_all().unwrap().backward().unwrap();
    assert!(flat(gradient.get(&x).unwrap()).iter().all(|g| *g == 0.0));
}

#[test]
fn the_lowest_level_is_left_as_it_is() {
    let (x, net) = (image("x", 1.0), network(SecondTime::None).1);
    assert_eq!(flat(&ict::consistent(&net, &x, &[0.002; B], None).unwrap()), flat(&x));
}

#[test]
fn a_jump_to_where_it_is_goes_nowhere() {
    let (x, t) = (image("x", 3.0), [0.002, 0.7, 2.5, 80.0]);
    for second in [SecondTime::Aligned, SecondTime::PerBlock] {
        let net = network(second).1;
        assert_eq!(flat(&jump(&net, &x, &t, &t, None).unwrap()), flat(&x));
    }
}

/// With the second time ignored J is an Euler step of EDM's denoiser, up or down.
#[test]
fn a_jump_is_an_euler_step_of_the_denoiser() {
    let (plain, one) = network(SecondTime::None);
    let (params, two) = network(SecondTime::Aligned);
    params.assign(&aligned(plain.arrays().unwrap())).unwrap();
    let (x, t, u) = (image("x", 3.0), [0.02f32, 0.7, 2.5, 80.0], [0.002f32, 3.0, 0.9, 0.002]);
    let denoised = one.forward(&x, &t).unwrap();
    let expected: Vec<f32> = (0..B)
        .flat_map(|i| {
            let (left, part) = (f64::from(u[i] / t[i]), |all: &Tensor| flat(&all.get(i).unwrap()));
            let euler = move |(x, d): (f32, f32)| (left * f64::from(x) + (1.0 - left) * f64::from(d)) as f32;
            part(&x).into_iter().zip(part(&denoised)).map(euler)
        })
        .collect();
    let error = relative_error(&flat(&jump(&two, &x, &t, &u, None).unwrap()), &expected);
    assert!(error < 1e-6, "{error:e}");
}

/// Images that move give the values and gradients that they give alone, to the bit; the others are
/// passed on, and so are their gradients.
#[test]
fn only_images_that_move_are_shown_to_the_network() {
    let (params, net) = network(SecondTime::PerBlock);
    let frozen = params.frozen(|vb| Denoiser::with_second_time(&tiny(), SecondTime::PerBlock, vb)).unwrap();
    let (x, t) = (image("x", 3.0), [2.5f32, 0.7, 0.002, 80.0]);
    let u = [0.5, 0.7, 0.002, 0.002];
    let keep = net.dropout_shapes().into_iter().enumerate().map(|(i, (c, h, w))| {
        let values = unit(&format!("mask{i}"), B * c * h * w);
        Tensor::from_vec(values, (B, c, h, w), &Device::Cpu).unwrap()
    });
    let masks = Masks { keep: keep.collect(), p: 0.5 };
    let aim = image("aim", 0.8);
    let landed = |part: std::ops::Range<usize>, masks: Option<&Masks>| {
        let rows = |all: &Tensor| all.narrow(0, part.start, part.len()).unwrap();
        let masks = masks.map(|m| Masks { keep: m.keep.iter().map(rows).collect(), p: m.p });
        let x = Var::from_tensor(&rows(&x)).unwrap();
        let y = jump(&frozen, &x, &t[part.clone()], &u[part.clone()], masks.as_ref()).unwrap();
        let loss = (&y * rows(&aim)).unwrap().sum_all().unwrap();
        (flat(&y), flat(loss.backward().unwrap().get(&x).unwrap()))
    };
    for masks in [None, Some(&masks)] {
        let (all, gradients) = landed(0..B, masks);
        let alone: Vec<_> = (0..B).map(|i| landed(i..i + 1, masks)).collect();
        assert_eq!(all, alone.iter().flat_map(|(y, _)| y.clone()).collect::<Vec<_>>());
        assert_eq!(gradients, alone.iter().flat_map(|(_, g)| g.clone()).collect::<Vec<_>>());
        assert_eq!(all[768..3 * 768], flat(&x)[768..3 * 768]);
        assert_eq!(gradients[768..3 * 768], flat(&aim)[768..3 * 768]);
    }
}

/// One jump from 80 to 0.002, or several along EDM's levels.
#[test]
fn samples_are_jumps_from_the_top() {
    let (z, net) = (image("z", 3f32.sqrt()), network(SecondTime::PerBlock).1);
    for steps in [1, 2, 5] {
        let levels = polynomial(steps + 1);
        assert!((levels[0] - 80.0).abs() < 1e-12 && (levels[steps] - 0.002).abs() < 1e-12);
        let mut x = (&z * 80.0).unwrap();
        for pair in levels.windows(2) {
            x = jump(&net, &x, &[pair[0] as f32; B], &[pair[1] as f32; B], None).unwrap();
        }
        assert_eq!(flat(&jumps(&net, &z, steps).unwrap()), flat(&x));
    }
}

/// Two calls of a row's sampler, each of which has noise of its own where it maps to images.
#[test]
fn two_calls_are_the_formula_s() {
    let level = polynomial(3)[1];
    let (z, again) = (image("z", 3f32.sqrt()), image("again", 3f32.sqrt()));
    let noise = |bottom: f64| (&again * (level * level - bottom * bottom).sqrt()).unwrap();
    let at = |level: f64| [level as f32; B];
    for (id, second) in [
        ("ict", SecondTime::None),
        ("sct", SecondTime::None),
        ("bcm", SecondTime::Aligned),
        ("ctm", SecondTime::PerBlock),
    ] {
        let row = all_rows().find(|row| row.id == id).unwrap();
        let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
        recipe.set("consistency_steps=2").unwrap();
        assert_eq!((row.method.nfe)(&recipe.overrides), 2);
        let (params, net) = network(second);
        let setup = recipe.setup(&Compute::CPU, &row, &[], "");
        let sampler = (row.method.sampler)(&setup, &params.arrays().unwrap()).unwrap();
        let top = (&z * 80.0).unwrap();
        let (latents, expected) = match id {
            "ict" => {
                let x = (ict::consistent(&net, &top, &at(80.0), None).unwrap() + noise(0.002)).unwrap();
                (Tensor::cat(&[&z, &again], 1).unwrap(), ict::consistent(&net, &x, &at(level), None).unwrap())
            }
            "sct" => {
                let x = (net.forward(&top, &at(80.0)).unwrap() + noise(0.0)).unwrap();
                (Tensor::cat(&[&z, &again], 1).unwrap(), net.forward(&x, &at(level)).unwrap())
            }
            _ => (z.clone(), jumps(&net, &z, 2).unwrap()),
        };
        assert_eq!(sampler.latents() * 3, latents.dim(1).unwrap(), "{id}");
        close(id, &sampler.sample(&latents).unwrap(), &expected, 1e-6);
    }
}

#[test]
fn published_recipes_are_of_settings_that_the_rows_use() {
    for (id, changes) in PUBLISHED {
        let row = all_rows().find(|row| row.id == *id).unwrap();
        let mut recipe = Recipe::of(Scale::Paper);
        for change in *changes {
            recipe.set(change).unwrap();
        }
        recipe.changes_used_by(&[row]).unwrap();
        assert_eq!(recipe.changes(), *changes, "{id}: each is another value than the scale's");
        let expected = if *id == "ctm" { 100_000 } else { 400_000 };
        assert_eq!(recipe.iterations(&row), expected, "{id}");
        assert!(changes.iter().any(|change| change.contains("_dropout=0.")), "{id}: all four drop");
    }
}

/// A gradient passes through the input of a network whose weights are held constant.
#[test]
fn the_outer_jump_is_differentiated_by_its_input_alone() {
    let (params, net) = network(SecondTime::Aligned);
    let frozen = params.frozen(|vb| Denoiser::with_second_time(&tiny(), SecondTime::Aligned, vb)).unwrap();
    let (x, t, u, bottom) = (image("x", 3.0), [2.5; B], [0.5; B], [0.002; B]);
    let loss = |outer: &Denoiser, inner: &Denoiser| -> Result<_> {
        let landed = jump(outer, &jump(inner, &x, &t, &u, None)?, &u, &bottom, None)?;
        pseudo_huber(&landed, &image("aim", 0.8))?.mean_all()
    };
    let gradients = |outer, inner| {
        let all = loss(outer, inner).unwrap().backward().unwrap();
        let of = |var: &Var| all.get(var).map_or(0.0, |g| flat(g).iter().map(|g| g * g).sum::<f32>());
        params.iter().map(|(_, var)| of(var)).collect::<Vec<f32>>()
    };
    let (inner, outer) = (gradients(&frozen, &net), gradients(&net, &frozen));
    assert!(inner.iter().sum::<f32>() > 0.0 && outer.iter().sum::<f32>() > 0.0 && inner != outer);
    assert!(gradients(&frozen, &frozen).iter().all(|g| *g == 0.0));
}

/// TrigFlow's D = cos t x_t - sin t sigma_d F_trig(x_t / sigma_d) is EDM's D(x_sigma; sigma).
#[test]
fn trigflow_s_denoiser_is_edm_s() {
    let (x0, eps, net) = (image("x", 0.8), image("eps", 3f32.sqrt()), network(SecondTime::None).1);
    let sigma = [0.02f32, 0.5, 2.5, 80.0];
    let point = Point::at(&x0, &(&eps * 0.5).unwrap(), &sigma).unwrap();
    let f = net.raw(&point.input, &point.conditioning(None)).unwrap();
    let by = |of: fn(f32) -> f32| {
        Tensor::new(&sigma.map(|sigma| of((2.0 * sigma).atan())), &Device::Cpu)
            .unwrap()
            .reshape((B, 1, 1, 1))
            .unwrap()
    };
    // x_t = input / 2, F_trig = -F, sigma_d = 1 / 2.
    let trig = |x: &Tensor, of| (x * 0.5).unwrap().broadcast_mul(&by(of)).unwrap();
    let found = (trig(&point.input, f32::cos) + trig(&f, f32::sin)).unwrap();
    let noisy = replicate::method::equations::diffuse(&x0, &sigma, &eps).unwrap();
    close("the denoiser", &found, &net.forward(&noisy, &sigma).unwrap(), 1e-5);
}

/// g with and without the network's derivative, before and after it is normalised.
#[test]
fn tangents_are_the_reference_s() {
    let fixture = fixture();
    let net = network(SecondTime::None).0.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    let sigma = fixture.f32("tangent/sigma");
    let point = Point::at(&fixture.get("tangent/x0"), &fixture.get("tangent/z"), &sigma).unwrap();
    let [f, df] = point.derivative(&net, None).unwrap();
    for r in ["0.0", "0.5", "1.0"] {
        let g = point.tangent(&f, &df, r.parse().unwrap()).unwrap();
        for (name, found) in [("g", &g), ("normalised", &sct::normalised(&g).unwrap())] {
            // In float32 the reference itself is off by as much.
            let expected = fixture.f64(&format!("tangent64/{name}_r{r}"));
            let error = relative_error(&flat(found), &expected.iter().map(|v| *v as f32).collect::<Vec<_>>());
            println!("{name} at r = {r}: {error:.1e}");
            assert!(error < 2e-5, "{name} at r = {r} is off by {error:e}");
        }
    }
}

/// Without the network's derivative it is diffusion matching, -cos^2 t (sigma_d F_trig - v).
#[test]
fn the_first_tangents_match_the_diffusion() {
    let (x0, z, sigma) = (image("x", 0.8), image("z", 0.8), [0.02f32, 0.5, 2.5, 80.0]);
    let point = Point::at(&x0, &z, &sigma).unwrap();
    let f = image("f", 1.0);
    let found = point.tangent(&f, &image("df", 1.0), 0.0).unwrap();
    let each = |t: &Tensor| flat(t).into_iter().map(f64::from).collect::<Vec<_>>();
    let (x0, z, f) = (each(&x0), each(&z), each(&f));
    let expected: Vec<f32> = (0..B * 768)
        .map(|i| {
            let (sin, cos) = f64::from(2.0 * sigma[i / 768]).atan().sin_cos();
            (-cos * cos * (-0.5 * f[i] - (cos * z[i] - sin * x0[i]))) as f32
        })
        .collect();
    let error = relative_error(&flat(&found), &expected);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn first_steps_agree() {
    let fixture = fixture();
    let cases: Vec<_> = CASES.iter().filter(|case| case.file == "consistency.npz").collect();
    assert_eq!(cases.len(), 4);
    for case in cases {
        for check in case.checks(&fixture.0, &Compute::CPU, &unit).unwrap() {
            println!("{}: {:.1e}", check.name, check.measured);
            assert!(check.passed, "{}: {} of {}", check.name, check.measured, check.tolerance);
        }
    }
}

const P: f64 = 0.4;

/// The first iteration of a row on the tiny network, filled, with the dropout of `setting`: its
/// values; its network, and what it was given.
fn dropping_step(id: &str, second: SecondTime, setting: &str, p: f64) -> (Vec<f32>, Denoiser, Given) {
    let row = all_rows().find(|row| row.id == id).unwrap();
    let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
    recipe.set(&format!("{setting}={p}")).unwrap();
    let (params, net) = network(second);
    let start = [(row.start, network(SecondTime::None).0.arrays().unwrap())];
    let setup = recipe.setup(&Compute::CPU, &row, &start, "parity");
    let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
    let mut first = state(&mut *method).unwrap();
    for (name, array) in params.arrays().unwrap() {
        first.insert(format!("generator.weights.{name}"), array);
    }
    restore(&mut *method, &first).unwrap();
    let case = CASES.iter().find(|case| case.row == id).unwrap();
    let mut given = case.given(&fixture().0, 0, &Device::Cpu, &unit).unwrap();
    for (i, (c, h, w)) in net.dropout_shapes().into_iter().enumerate() {
        let values: Vec<f32> =
            unit(&format!("mask{i}"), B * c * h * w).into_iter().map(|u| 3f32.sqrt() * u).collect();
        let mask = Tensor::from_vec(values, (B, c, h, w), &Device::Cpu).unwrap();
        given.tensors.insert(format!("dsm.dropout {i}"), mask.clone());
        given.tensors.insert(format!("dropout {i}"), mask);
    }
    let values = method.step(&given.batch(0, B)).unwrap();
    (values.iter().map(|value| value.to_scalar().unwrap()).collect(), net, given)
}

fn same(found: f32, expected: &Tensor) {
    let expected = expected.to_scalar::<f32>().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-4, "{found} for {expected}");
}

/// iCT and BCM: the losses of passes that all drop the same, and no other.
#[test]
fn target_and_student_drop_the_same() {
    let settings = paper();
    let draws = |given: &Given, net: &Denoiser| {
        let b = given.batch(0, B);
        let masks = b.dropout("dropout", P, &net.dropout_shapes()).unwrap().unwrap();
        let discretization = settings.discretization(settings.levels(0, 10));
        let level = b.each("level", |_| 0.0).unwrap();
        (b.images("index").unwrap(), b.normal("noise").unwrap(), discretization, level, masks)
    };
    let (found, net, given) = dropping_step("ict", SecondTime::None, "discrete_dropout", P);
    let (x0, eps, discretization, level, masks) = draws(&given, &net);
    let gaps: Vec<usize> = level.iter().map(|u| categorical(&discretization.p, *u)).collect();
    let [below, t] = discretization.ends(&gaps);
    let noisy = |t: &[f32]| diffuse(&x0, t, &eps).unwrap();
    let loss = |target: Option<&Masks>| {
        let target = ict::consistent(&net, &noisy(&below), &below, target).unwrap();
        let found = ict::consistent(&net, &noisy(&t), &t, Some(&masks)).unwrap();
        over_gaps(&pseudo_huber(&found, &target).unwrap(), &t, &below).unwrap()
    };
    same(found[0], &loss(Some(&masks)));
    assert_ne!(found[0], loss(None).to_scalar::<f32>().unwrap());

    let (found, net, given) = dropping_step("bcm", SecondTime::Aligned, "discrete_dropout", P);
    let (x0, eps, discretization, level, masks) = draws(&given, &net);
    let mut below_top = discretization.p.clone();
    *below_top.last_mut().unwrap() = 0.0;
    let gaps: Vec<usize> = level.iter().map(|u| categorical(&below_top, *u)).collect();
    let [below, t] = discretization.ends(&gaps);
    let to_bottom = |t: &[f32]| {
        let x = diffuse(&x0, t, &eps).unwrap();
        jump(&net, &x, t, &[0.002; B], Some(&masks)).unwrap()
    };
    let ct = over_gaps(&pseudo_huber(&to_bottom(&t), &to_bottom(&below)).unwrap(), &t, &below).unwrap();
    same(found[1], &ct);
    assert!(found[2] > 0.0);
}

/// CTM drops in the student's jumps, and in what it denoises.
#[test]
fn ctm_drops_in_its_student() {
    let step = |p| dropping_step("ctm", SecondTime::PerBlock, "ctm_dropout", p).0;
    let (plain, found) = (step(0.0), step(P));
    for i in [0, 1] {
        assert!(found[i].is_finite() && (found[i] / plain[i] - 1.0).abs() > 1e-3, "{found:?} {plain:?}");
    }
}

/// Where both passes of sCT drop the same, only the tangent is between them: the loss is its mean
/// square, normalised. The weighting begins at 0.
#[test]
fn sct_drops_the_same_along_its_path() {
    let (found, _, given) = dropping_step("sct", SecondTime::None, "sct_dropout", P);
    let net = network(SecondTime::None).0.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    let b = given.batch(0, B);
    let masks = b.dropout("dropout", P, &net.dropout_shapes()).unwrap();
    let (z, sigma) = ((b.normal("noise").unwrap() * 0.5).unwrap(), b.each("sigma", |_| 0.0).unwrap());
    let point = Point::at(&b.images("index").unwrap(), &z, &sigma).unwrap();
    let loss = |masks: Option<&Masks>| {
        let [f, df] = point.derivative(&net, masks).unwrap();
        sct::normalised(&point.tangent(&f, &df, 0.0).unwrap()).unwrap().sqr().unwrap().mean_all().unwrap()
    };
    same(found[0], &loss(masks.as_ref()));
    assert_ne!(found[0], loss(None).to_scalar::<f32>().unwrap());
}

/// CTM, or CTM with our critic, on the tiny network; all networks are filled.
fn opposed(id: &str, changes: &[&str]) -> Box<dyn Method> {
    let row = all_rows().find(|row| row.id == id).unwrap();
    let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
    changes.iter().for_each(|change| recipe.set(change).unwrap());
    let start = [(row.start, network(SecondTime::None).0.arrays().unwrap())];
    let setup = recipe.setup(&Compute::CPU, &row, &start, "parity");
    let mut method = (row.method.training.unwrap().build)(&setup).unwrap();
    let mut first = state(&mut *method).unwrap();
    for (name, array) in network(SecondTime::PerBlock).0.arrays().unwrap() {
        first.insert(format!("generator.weights.{name}"), array.clone());
        first.insert(format!("generator.target.{name}"), array);
    }
    let drawn = strip(&first, "critic.weights.");
    if !drawn.is_empty() {
        let source = Source { given: &drawn, drawn: &[], cell: "" };
        let params = Params::build(&Compute::CPU, &source, |vb| Critic::new(&tiny(), vb)).unwrap().0;
        let filled = filled(&params, &unit).into_iter();
        first.extend(filled.map(|(name, array)| (format!("critic.weights.{name}"), array)));
    }
    restore(&mut *method, &first).unwrap();
    method
}

fn values(method: &mut dyn Method, iteration: u64, given: &Given) -> Vec<f32> {
    let values = method.step(&given.batch(iteration, B)).unwrap();
    values.iter().map(|value| value.to_scalar().unwrap()).collect()
}

/// Values and state of the first iteration, with the draws of CTM's case.
fn opposed_step(id: &str, from: u64) -> (Vec<f32>, Arrays) {
    // The critic stays as it is, so that the student's gradient is through the one that starts.
    let mut method = opposed(id, &[&format!("ctm_adversary_from={from}"), "critic_lr=0"]);
    let values = values(&mut *method, 0, &opposed_draws(0, 1));
    (values, state(&mut *method).unwrap())
}

/// The student's draws are those of a step of CTM's case, the critic's those of another.
fn opposed_draws(student: usize, critic: usize) -> Given {
    let case = CASES.iter().find(|case| case.row == "ctm").unwrap();
    let of = |k| case.given(&fixture().0, k, &Device::Cpu, &unit).unwrap();
    let mut given = of(student);
    for (name, tensor) in of(critic).tensors {
        given.tensors.insert(format!("{name} 1"), tensor);
    }
    given
}

/// The reference steps student and critic in turn, ours both in every iteration. With a critic that
/// stays as it is, our second iteration has the critic's loss of the reference's second step and the
/// student's of its third.
#[test]
fn ctm_gan_has_the_losses_of_the_reference() {
    let fixture = fixture();
    let mut method =
        opposed("ctm-gan", &["ctm_adversary_from=0", "critic_lr=0", "ctm_lr=1e-3", "ctm_decay=0.9"]);
    let columns = method.columns();
    let close = |found: &[f32], names: &[&str], at: usize| {
        for name in names {
            let ours = found[columns.iter().position(|column| column == name).unwrap()];
            let expected = fixture.f32(&format!("ctm_gan/{}", name.trim_end_matches("_loss")))[at];
            assert!((ours / expected - 1.0).abs() < 1e-4, "{name}: {ours} for {expected}");
        }
    };
    close(
        &values(&mut *method, 0, &opposed_draws(0, 1)),
        &["ctm", "dsm", "dsm_weight", "gan", "gan_weight"],
        0,
    );
    // With beta1 0.9 the first moments are a tenth of the gradients.
    for (name, moment) in strip(&state(&mut *method).unwrap(), "generator.adam.m.") {
        let norm = 10.0 * moment.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        // The reference has no layer for augmentation.
        let expected = if name.contains("map_augment") {
            0.0
        } else {
            f64::from(fixture.f32(&format!("ctm_gan/grad_norm/{name}"))[0])
        };
        assert!((norm - expected).abs() <= 1e-4 * expected, "{name}: {norm} for {expected}");
    }
    let second = values(&mut *method, 1, &opposed_draws(2, 1));
    close(&second, &["critic_loss"], 0);
    close(&second, &["ctm", "dsm", "dsm_weight"], 1);
}

#[test]
fn ctm_gan_is_ctm_before_there_is_an_adversary() {
    let ((ctm, state), (gan, opposed)) = (opposed_step("ctm", 1), opposed_step("ctm-gan", 1));
    assert_eq!([&ctm[..], &[0.0; 3]].concat(), gan);
    assert!(state.iter().all(|(name, array)| opposed[name] == *array));
    let rest = opposed.keys().filter(|name| !state.contains_key(*name));
    assert!(rest.clone().count() > 0 && rest.into_iter().all(|name| name.starts_with("critic.")));
}

/// Of the losses, what each adds to the student's gradient, and with which weight.
#[test]
fn ctm_gan_balances_our_critic_on_the_last_layer() {
    let ((_, ctm), (values, gan)) = (opposed_step("ctm", 0), opposed_step("ctm-gan", 0));
    let (params, student) = network(SecondTime::PerBlock);
    let average = params.frozen(|vb| Denoiser::with_second_time(&tiny(), SecondTime::PerBlock, vb)).unwrap();
    let none = strip(&gan, "critic.weights.");
    let source = Source { given: &none, drawn: &[], cell: "" };
    let (critic_params, critic) =
        Params::build(&Compute::CPU, &source, |vb| Critic::new(&tiny(), vb)).unwrap();
    let (given, ladder) = (opposed_draws(0, 1), polynomial(18));
    let (bottom, at) = ([0.002f32; B], |j: &usize| ladder[*j] as f32);
    // Images, and what the student makes of them at the draws of the first iteration.
    let estimate = |suffix: &str| {
        let of = |name: &str| given.tensors[&format!("{name}{suffix}")].clone();
        let draws = |name: &str| of(name).to_vec1::<f32>().unwrap();
        let below = |u: f32, n: usize| (f64::from(u) * n as f64) as usize;
        let h = draws("heun_steps")[0] as usize;
        let start: Vec<usize> = draws("start").into_iter().map(|u| below(u, 18 - h)).collect();
        let pairs = draws("end").into_iter().zip(&start);
        let end: Vec<usize> = pairs.map(|(u, j)| j + h + below(u, 18 - j - h)).collect();
        let [t, s] = [&start, &end].map(|places| places.iter().map(at).collect::<Vec<f32>>());
        let x0 = of("index");
        let xt = diffuse(&x0, &t, &of("noise")).unwrap();
        let landed = jump(&student, &xt, &t, &s, None).unwrap();
        (x0, jump(&average, &landed, &s, &bottom, None).unwrap())
    };
    let loss = critic.forward(&estimate("").1, &bottom).unwrap().mean_all().unwrap().neg().unwrap();
    same(values[3], &loss);
    let gradients = loss.backward().unwrap();
    let of_gan = |name: &str| flat(gradients.get(params.get(name).unwrap()).unwrap());
    let (x0, fake) = estimate(" 1");
    let logits = |x: &Tensor| critic.forward(x, &bottom).unwrap();
    let (real, fake) = (logits(&x0), logits(&fake));
    let hinge: f32 = flat(&real).iter().map(|l| (1.0 - l).max(0.0)).sum::<f32>() / B as f32
        + flat(&fake).iter().map(|l| (1.0 + l).max(0.0)).sum::<f32>() / B as f32;
    assert!((values[5] / hinge - 1.0).abs() < 1e-4, "{} for {hinge}", values[5]);
    let clipped = |l: f32| flat(&ctm::hinge(&Tensor::new(&[l], &Device::Cpu).unwrap(), &real).unwrap())[0];
    assert_eq!(clipped(1.5), clipped(1.0), "what the critic is sure of has no gradient");
    assert!(critic_params.count() > 0);

    // With beta1 0.9 the first moments are a tenth of the gradients.
    let moment = |state: &Arrays, name: &str| state[&format!("generator.adam.m.{name}")].data.clone();
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let weight = f64::from(values[4]);
    assert!((0.01..10.0).contains(&weight), "{weight} is at a bound");
    let mut compared = 0;
    for (name, _) in params.iter() {
        let added: Vec<f32> =
            moment(&gan, name).iter().zip(moment(&ctm, name)).map(|(gan, ctm)| 10.0 * (gan - ctm)).collect();
        let expected: Vec<f32> = of_gan(name).into_iter().map(|g| (weight * f64::from(g)) as f32).collect();
        // The difference of two sums keeps their rounding errors.
        let error = norm(&added.iter().zip(&expected).map(|(a, b)| a - b).collect::<Vec<_>>());
        let scale = norm(&expected) + norm(&moment(&gan, name)) * 10.0;
        assert!(error <= 1e-4 * scale, "{name}: {error} of {scale}");
        compared += usize::from(norm(&expected) > 1e-3 * scale);
    }
    assert!(compared > 20, "the adversary's gradient counts in {compared} parameters only");
    // The weight equalises the norms in the last layer, without those of the denoising loss.
    let last = "model.dec.16x16_aux_conv.weight";
    println!("adversary's weight {weight}, norm of its gradient there {:.3e}", norm(&of_gan(last)));
}

#[test]
fn one_gap_is_refused() {
    for name in ["discrete_first_gaps", "discrete_last_gaps"] {
        let error = Recipe::of(Scale::Mini).set(&format!("{name}=1")).unwrap_err().to_string();
        assert!(error.contains("from 2 to"), "{error}");
    }
    // Two gaps are enough for BCM, whose highest is never drawn.
    let discretization = DiscreteSettings { first_gaps: 2, last_gaps: 2, ..paper() }.discretization(3);
    assert_eq!(discretization.p.len(), 2);
}
