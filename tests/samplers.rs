//! The multi-step samplers of Table 1: against their authors' code (`samplers.npz`), by
//! their order of convergence, and by the mistakes that are easily made in them.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Fixture, edm_value, relative_error, unit};
use proptest::prelude::*;
use replicate::app::selftest::fixture::{filled_denoiser, tiny};
use replicate::method::sampler::amed::{Amed, Encode, Prediction, Predictor, Training, encode};
use replicate::method::sampler::ddim::ddim;
use replicate::method::sampler::dpm_solver::{self, dpm_solver_fast};
use replicate::method::sampler::ipndm::{History, ipndm};
use replicate::method::sampler::{Denoise, in_float64};
use replicate::method::schedule::{log_snr, polynomial, time_uniform};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source, outline};
use replicate::network::unet::Denoiser;
use replicate::store::Array;
use replicate::train::batch::Given;
use replicate::train::net::strip;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Float64 arithmetic without a network.
const EXACT: f64 = 1e-12;
/// An error of 1e-6 in every output of the network becomes at most 1.4e-5.
const NETWORK: f32 = 5e-5;

fn fixture() -> Fixture {
    Fixture::open("samplers.npz")
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn f32s(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference relative to the largest expected size.
fn error(ours: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(ours.len(), expected.len());
    assert!(ours.iter().all(|v| v.is_finite()), "a value is not finite");
    let largest = expected.iter().fold(0f64, |most, v| most.max(v.abs()));
    ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max) / largest
}

/// z of the fixtures' start; `samplers.latents` is N(name) of their README.
fn latents(fixture: &Fixture) -> Tensor {
    let z = fixture.get("latents");
    let made: Vec<f32> = unit("samplers.latents", z.elem_count()).iter().map(|u| u * 3f32.sqrt()).collect();
    assert!(relative_error(&made, &f32s(&z)) < 1e-6);
    z
}

fn tiny_denoiser() -> Denoiser {
    filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap().1
}

// ---- Levels ----

#[test]
fn levels_agree() {
    let fixture = fixture();
    let mut checked = 0;
    for name in fixture.names() {
        let Some((kind, n)) = name.strip_prefix("levels/").and_then(|name| name.rsplit_once('_')) else {
            continue;
        };
        let n = n.parse().unwrap();
        let ours = match kind {
            "poly7" => polynomial(n),
            "logsnr" => log_snr(n),
            "vp_time1" => time_uniform(n, 1.0),
            "vp_time2" => time_uniform(n, 2.0),
            other => panic!("levels of the kind {other}"),
        };
        let expected = fixture.f64(&name);
        assert!(error(&ours, &expected) < EXACT, "{name}: {ours:?} for {expected:?}");
        // Each by itself, too; the reference takes 1 from exp(4e-6) in float64.
        let allowed = if kind.starts_with("vp_time") { 1e-10 } else { EXACT };
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours / expected - 1.0).abs() < allowed, "{name}: {ours} for {expected}");
        }
        checked += 1;
    }
    assert_eq!(checked, 12);
}

/// In float32 the last level would be 0.0020132.
#[test]
fn uniform_time_ends_where_it_should() {
    for rho in [1.0, 2.0] {
        let last = *time_uniform(11, rho).last().unwrap();
        assert!((last / 0.002 - 1.0).abs() < EXACT, "{last}");
    }
}

// ---- Against the outputs of the authors' networks ----

/// Answers the calls of a sampler with the outputs of the fixture, in order, and notes
/// at what levels they were.
struct Replay {
    denoised: Tensor,
    levels: RefCell<Vec<f64>>,
}

impl Replay {
    fn of(fixture: &Fixture, name: &str) -> Replay {
        let denoised = fixture.get(&format!("{name}/call_denoised")).to_dtype(DType::F64).unwrap();
        Replay { denoised, levels: RefCell::default() }
    }

    fn answer(&self, level: f64) -> Result<Tensor> {
        let mut levels = self.levels.borrow_mut();
        levels.push(level);
        self.denoised.get(levels.len() - 1)
    }

    fn calls(&self) -> usize {
        assert_eq!(self.levels.borrow().len(), self.denoised.dim(0).unwrap(), "calls that were not made");
        self.levels.borrow().len()
    }
}

/// From the same outputs of the network the same samples, to float64.
#[test]
fn steps_agree_exactly() {
    let fixture = fixture();
    let z = latents(&fixture);
    type Solver = fn(Denoise, &Tensor) -> Result<Tensor>;
    let solvers: [(&str, Solver); 3] = [
        ("ddim10", |denoise, z| ddim(denoise, z, &polynomial(11))),
        ("ipndm5", |denoise, z| Ok(ipndm(denoise, z, &polynomial(6))?.pop().unwrap())),
        ("dpm_fast10", |denoise, z| dpm_solver_fast(denoise, z, 10)),
    ];
    for (name, solver) in solvers {
        let replay = Replay::of(&fixture, name);
        let samples = solver(&|_, sigma| replay.answer(sigma), &z).unwrap();
        let expected = fixture.f64(&format!("{name}/samples"));
        let off = error(&flat(&samples), &expected);
        println!("{name}: {off:.1e}");
        assert!(off < EXACT, "{name}: {off}");
        assert_eq!(replay.calls() as f64, fixture.f64(&format!("{name}/nfe"))[0]);
    }
}

#[test]
fn calls_of_dpm_solver_are_at_the_authors_levels() {
    let fixture = fixture();
    for calls in [9, 10, 11] {
        let seen = RefCell::new(Vec::new());
        let denoise = |x: &Tensor, sigma: f64| {
            seen.borrow_mut().push(sigma);
            gaussian(0.0, 0.25)(x, sigma)
        };
        dpm_solver_fast(&denoise, &one(), calls).unwrap();
        let expected = fixture.f64(&format!("dpm_fast{calls}/call_sigma"));
        assert_eq!(seen.borrow().len(), calls);
        for (ours, expected) in seen.borrow().iter().zip(expected) {
            assert!((ours / expected - 1.0).abs() < EXACT);
        }
    }
}

#[test]
fn orders_of_dpm_solver_are_the_authors() {
    let fixture = fixture();
    for calls in 4..=12 {
        let orders: Vec<f64> =
            dpm_solver::orders(calls).unwrap().into_iter().map(|order| order as f64).collect();
        assert_eq!(orders, fixture.f64(&format!("dpm_fast_orders/{calls}")), "{calls} calls");
    }
}

// ---- With the tiny network ----

#[test]
fn samples_of_the_tiny_network_agree() {
    let fixture = fixture();
    let (z, model) = (latents(&fixture), tiny_denoiser());
    let calls = Cell::new(0);
    let network = in_float64(&model);
    let denoise = |x: &Tensor, sigma: f64| {
        calls.set(calls.get() + 1);
        network(x, sigma)
    };
    let last = |states: Result<Vec<Tensor>>| states.map(|mut states| states.pop().unwrap());
    let check = |name: &str, samples: Result<Tensor>| {
        let off = error(&flat(&samples.unwrap()), &fixture.f64(&format!("{name}/samples"))) as f32;
        println!("{name}: {off:.1e} in {} calls", calls.get());
        assert!(off < NETWORK, "{name}: {off}");
        assert_eq!(calls.replace(0) as f64, fixture.f64(&format!("{name}/nfe"))[0], "{name}");
    };
    check("ddim10", ddim(&denoise, &z, &polynomial(11)));
    check("ddim10_logsnr", ddim(&denoise, &z, &log_snr(11)));
    check("ipndm5", last(ipndm(&denoise, &z, &polynomial(6))));
    check("ipndm10", last(ipndm(&denoise, &z, &polynomial(11))));
    for steps in [9, 10, 11] {
        check(&format!("dpm_fast{steps}"), dpm_solver_fast(&denoise, &z, steps));
    }
}

// ---- Without a network ----

fn one() -> Tensor {
    Tensor::ones((1, 1, 1, 1), DType::F64, &Device::Cpu).unwrap()
}

/// D of data N(mean, variance).
fn gaussian(mean: f64, variance: f64) -> impl Fn(&Tensor, f64) -> Result<Tensor> {
    move |x, sigma| {
        let total = variance + sigma * sigma;
        x.affine(variance / total, sigma * sigma / total * mean)
    }
}

/// The same with one level an image.
fn gaussian_encode(x: &Tensor, sigma: &Tensor) -> Result<(Tensor, Tensor)> {
    let weight = ((sigma.sqr()? + 0.25)?.recip()? * 0.25)?.reshape(((), 1, 1, 1))?;
    Ok((x.broadcast_mul(&weight)?, x.zeros_like()?))
}

/// The same numbers for every image and interval.
fn constant(r: f64, scale_dir: f64, scale_time: f64) -> impl Fn(&Tensor, f64, f64) -> Result<Prediction> {
    move |feature, _, _| {
        let all = |value: f64| Tensor::full(value, feature.dim(0)?, &Device::Cpu);
        Ok(Prediction { r: all(r)?, scale_dir: all(scale_dir)?, scale_time: all(scale_time)? })
    }
}

fn amed_of_gaussian(calls: usize) -> f64 {
    let predict = constant(0.4, 1.003, 0.97);
    flat(&Amed::new(calls, 1).unwrap().sample(&gaussian_encode, &predict, &one()).unwrap())[0]
}

fn solve(name: &str, steps: usize) -> f64 {
    let denoise = gaussian(0.0, 0.25);
    let x = match name {
        "ddim" => ddim(&denoise, &one(), &polynomial(steps + 1)),
        "ipndm" => ipndm(&denoise, &one(), &polynomial(steps + 1)).map(|mut states| states.pop().unwrap()),
        "dpm_fast" => dpm_solver_fast(&denoise, &one(), steps),
        "amed" => return amed_of_gaussian(steps),
        other => panic!("no solver {other}"),
    };
    flat(&x.unwrap())[0]
}

#[test]
fn gaussian_data_agree_with_the_authors_code() {
    let fixture = fixture();
    let mut checked = 0;
    for name in fixture.names() {
        let Some(case) = name.strip_prefix("linear/").filter(|case| *case != "exact") else { continue };
        let digits = case.find(|c: char| c.is_ascii_digit()).unwrap();
        let (solver, steps) = case.split_at(digits);
        if solver == "dpm" {
            continue; // DPM-Solver-2 is no row of Table 1
        }
        let (ours, expected) = (solve(solver, steps.parse().unwrap()), fixture.f64(&name)[0]);
        assert!((ours - expected).abs() < EXACT, "{case}: {ours} for {expected}");
        checked += 1;
    }
    assert_eq!(checked, 14);
}

/// The same in figures, where no file of fixtures is.
#[test]
fn gaussian_data_give_known_numbers() {
    for (solver, steps, expected) in [
        ("ddim", 10, 0.376383972222),
        ("ipndm", 5, 0.507624417325),
        ("ipndm", 10, 0.527231210960),
        ("dpm_fast", 9, 0.613211366985),
        ("dpm_fast", 10, 0.526024822569),
        ("dpm_fast", 11, 0.527172598512),
        ("amed", 5, 0.551601052174),
        ("amed", 6, 0.551529901036),
    ] {
        let ours = solve(solver, steps);
        assert!((ours - expected).abs() < 1e-12, "{solver} {steps}: {ours} for {expected}");
    }
}

#[test]
fn the_plugin_makes_as_many_calls_as_it_says() {
    for calls in 3..=10 {
        let count = Cell::new(0);
        let encode = |x: &Tensor, sigma: &Tensor| {
            count.set(count.get() + 1);
            gaussian_encode(x, sigma)
        };
        let amed = Amed::new(calls, 1).unwrap();
        amed.sample(&encode, &constant(0.5, 1.0, 1.0), &one()).unwrap();
        assert_eq!((amed.nfe(), count.get()), (calls, calls));
    }
}

#[test]
fn too_few_calls_are_an_error() {
    for calls in 0..4 {
        let error = dpm_solver_fast(&gaussian(0.0, 0.25), &one(), calls).unwrap_err().to_string();
        assert!(error.contains("needs 4 calls or more"), "{error}");
    }
    for calls in 0..3 {
        let error = Amed::new(calls, 64).unwrap_err().to_string();
        assert!(error.contains("needs 3 calls or more"), "{error}");
    }
    let error = dpm_solver::step(&gaussian(0.0, 0.25), 4, &one(), 2.0, 1.0).unwrap_err().to_string();
    assert!(error.contains("order 1, 2 and 3"), "{error}");
}

// ---- Order of convergence ----

/// The state at `end` of data N(mean, variance) that was `x` at `start`.
fn solution(mean: f64, variance: f64, x: f64, start: f64, end: f64) -> f64 {
    mean + (x - mean) * ((variance + end * end) / (variance + start * start)).sqrt()
}

/// log2 of the errors' ratio when there are twice as many steps.
fn observed_order(mean: f64, variance: f64, steps: usize, solve: impl Fn(Denoise, usize) -> f64) -> f64 {
    let denoise = gaussian(mean, variance);
    let exact = solution(mean, variance, 80.0, 80.0, 0.002);
    let error = |steps| (solve(&denoise, steps) - exact).abs();
    (error(steps) / error(2 * steps)).log2()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ddim_has_order_1(mean in -1f64..1.0, sd in 0.2f64..1.0, steps in 100usize..200) {
        let order = observed_order(mean, sd * sd, steps, |denoise, steps| {
            flat(&ddim(denoise, &one(), &polynomial(steps + 1)).unwrap())[0]
        });
        prop_assert!((order - 1.0).abs() < 0.1, "{order}");
    }

    /// Each of its steps by itself has its order, on levels uniform in lambda.
    #[test]
    fn steps_of_dpm_solver_have_their_orders(
        mean in -1f64..1.0, sd in 0.2f64..1.0, order in 1usize..=3, steps in 150usize..250,
    ) {
        let observed = observed_order(mean, sd * sd, steps, |denoise, steps| {
            let levels = log_snr(steps + 1);
            let x = levels.windows(2).try_fold((one() * 80.0).unwrap(), |x, pair| {
                dpm_solver::step(denoise, order, &x, pair[0], pair[1])
            });
            flat(&x.unwrap())[0]
        });
        prop_assert!((observed - order as f64).abs() < 0.25, "{observed} for {order}");
    }

    /// Of order 2 as a whole: its first step is Euler's and its coefficients are those of
    /// equal steps. The higher orders show in the next property.
    #[test]
    fn ipndm_has_order_2(mean in -1f64..1.0, sd in 0.2f64..1.0, steps in 150usize..250) {
        let order = observed_order(mean, sd * sd, steps, |denoise, steps| {
            flat(ipndm(denoise, &one(), &polynomial(steps + 1)).unwrap().last().unwrap())[0]
        });
        prop_assert!((order - 2.0).abs() < 0.25, "{order}");
    }

    /// With k slopes, on equal steps, a slope that is a polynomial of degree k - 1 in
    /// sigma is integrated without an error.
    #[test]
    fn directions_are_exact_for_polynomials(
        coefficients in prop::array::uniform4(-1f64..1.0), slopes in 1usize..8, h in 0.1f64..1.0,
    ) {
        let degree = slopes.min(4) - 1;
        let c = &coefficients[..=degree];
        let slope = |s: f64| c.iter().rev().fold(0.0, |sum, c| sum * s + c);
        let integral = |s: f64| c.iter().enumerate().map(|(i, c)| c * s.powi(i as i32 + 1) / (i + 1) as f64).sum::<f64>();
        let mut history = History::default();
        let mut direction = one();
        for i in 0..slopes {
            direction = history.direction(&(one() * slope(i as f64 * h)).unwrap()).unwrap();
        }
        let (from, to) = ((slopes - 1) as f64 * h, slopes as f64 * h);
        let expected = integral(to) - integral(from);
        prop_assert!((flat(&direction)[0] * h - expected).abs() < 1e-9 * expected.abs().max(1.0));
    }

    /// Without corrections the plugin is iPNDM on its given and its middle levels.
    #[test]
    fn the_plugin_without_corrections_is_ipndm(r in 0.1f64..0.9, intervals in 2usize..8) {
        let amed = Amed::new(2 * intervals, 1).unwrap();
        let mut levels = vec![amed.levels[0]];
        for pair in amed.levels.windows(2) {
            levels.extend([pair[1].powf(r) * pair[0].powf(1.0 - r), pair[1]]);
        }
        let plain = ipndm(&gaussian(0.0, 0.25), &one(), &levels).unwrap();
        let ours = amed.sample(&gaussian_encode, &constant(r, 1.0, 1.0), &one()).unwrap();
        prop_assert!((flat(&ours)[0] - flat(plain.last().unwrap())[0]).abs() < 1e-11);
    }

    /// With middle levels that make equal steps in sigma^(1/7). Elsewhere long and short
    /// steps alternate, and it has order 1.
    #[test]
    fn the_plugin_has_order_2(steps in 75usize..125) {
        let order = observed_order(0.0, 0.25, steps, |_, steps| {
            let amed = Amed::new(2 * steps, 1).unwrap();
            let predict = |feature: &Tensor, s: f64, t: f64| {
                let middle = ((s.powf(1.0 / 7.0) + t.powf(1.0 / 7.0)) / 2.0).powi(7);
                constant((middle / s).ln() / (t / s).ln(), 1.0, 1.0)(feature, s, t)
            };
            flat(&amed.sample(&gaussian_encode, &predict, &one()).unwrap())[0]
        });
        prop_assert!((order - 2.0).abs() < 0.25, "{order}");
    }
}

// ---- The plugin, and the mistakes that are easily made in it ----

/// What each of these changes still runs and looks plausible.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// c scales the first half, too.
    ScaledFirstHalf,
    /// The slope is divided by the level that the denoiser was told.
    ToldLevelDivides,
    /// The history is emptied before the second half.
    Restart,
    /// The analytical slope does not become history.
    AnalyticalForgotten,
    /// The analytical slope has the variance of the data in it.
    AnalyticalOfData,
    /// The coefficients are those of the steps' true lengths (order 2 at most).
    TrueLengths,
}

/// AMED-Plugin on numbers, for data N(0, 0.25), written another way than the product's.
fn plugin_on_numbers(calls: usize, [r, c, a]: [f64; 3], mistake: Mistake) -> f64 {
    let d = |x: f64, sigma: f64| 0.25 * x / (0.25 + sigma * sigma);
    let levels = polynomial(calls.div_ceil(2) + 1);
    // (slope, level) of the past, the latest first.
    let mut past: Vec<(f64, f64)> = Vec::new();
    let direction = |past: &[(f64, f64)], slope: f64, from: f64, to: f64| {
        if mistake == Mistake::TrueLengths {
            let Some((before, level)) = past.first() else { return slope };
            return slope + (to - from) / 2.0 * (slope - before) / (from - level);
        }
        let p = |i: usize| past[i].0;
        match past.len() {
            0 => slope,
            1 => (3.0 * slope - p(0)) / 2.0,
            2 => (23.0 * slope - 16.0 * p(0) + 5.0 * p(1)) / 12.0,
            _ => (55.0 * slope - 59.0 * p(0) + 37.0 * p(1) - 9.0 * p(2)) / 24.0,
        }
    };
    let mut x = 80.0;
    for (i, pair) in levels.windows(2).enumerate() {
        let (s, t) = (pair[0], pair[1]);
        let analytical = i == 0 && calls % 2 == 1;
        let variance = if mistake == Mistake::AnalyticalOfData { 0.25 } else { 1.0 };
        let slope = if analytical { x / (variance + s * s).sqrt() } else { (x - d(x, s)) / s };
        let m = t.powf(r) * s.powf(1.0 - r);
        let scale = if mistake == Mistake::ScaledFirstHalf { c } else { 1.0 };
        x += scale * (m - s) * direction(&past, slope, s, m);
        if !(analytical && mistake == Mistake::AnalyticalForgotten) {
            past.insert(0, (slope, s));
        }
        if mistake == Mistake::Restart {
            past.clear();
        }
        let divisor = if mistake == Mistake::ToldLevelDivides { a * m } else { m };
        let slope = (x - d(x, a * m)) / divisor;
        x += c * (t - m) * direction(&past, slope, m, t);
        past.insert(0, (slope, m));
    }
    x
}

#[test]
fn every_mistake_in_the_plugin_would_be_seen() {
    let numbers = [0.4, 1.003, 0.97];
    for calls in [5, 6] {
        let ours = amed_of_gaussian(calls);
        let off = |mistake| (plugin_on_numbers(calls, numbers, mistake) - ours).abs();
        assert!(off(Mistake::None) < EXACT, "{calls} calls: {}", off(Mistake::None));
        for mistake in [
            Mistake::ScaledFirstHalf,
            Mistake::ToldLevelDivides,
            Mistake::Restart,
            Mistake::AnalyticalForgotten,
            Mistake::AnalyticalOfData,
            Mistake::TrueLengths,
        ] {
            let of_the_first_slope = [Mistake::AnalyticalForgotten, Mistake::AnalyticalOfData];
            if calls % 2 == 1 || !of_the_first_slope.contains(&mistake) {
                println!("{calls} calls, {mistake:?}: {:.1e}", off(mistake));
                assert!(off(mistake) > 1e6 * EXACT, "{calls} calls, {mistake:?}: {:e}", off(mistake));
            }
        }
    }
}

/// A final level 0 is a step to D, so that ten calls make nine steps to 0.002.
#[test]
fn a_final_zero_would_cost_a_step() {
    let with_zero = [polynomial(10), vec![0.0]].concat();
    let zero = flat(&ddim(&gaussian(0.0, 0.25), &one(), &with_zero).unwrap())[0];
    assert!((zero - solve("ddim", 10)).abs() > 1e-3, "{zero}");
}

/// Each image has numbers of its own.
#[test]
fn an_image_is_sampled_as_it_is_alone() {
    let r = [0.3, 0.5, 0.6];
    let of = |images: &[usize]| {
        let predict = |feature: &Tensor, _: f64, _: f64| {
            let n = feature.dim(0)?;
            let all = |f: &dyn Fn(f64) -> f64| {
                Tensor::from_vec(images.iter().map(|i| f(r[*i])).collect(), n, &Device::Cpu)
            };
            Ok(Prediction {
                r: all(&|r| r)?,
                scale_dir: all(&|r| 1.0 + r / 50.0)?,
                scale_time: all(&|r| 1.0 - r / 5.0)?,
            })
        };
        let z = one().broadcast_as((images.len(), 1, 1, 1)).unwrap().contiguous().unwrap();
        flat(&Amed::new(5, 1).unwrap().sample(&gaussian_encode, &predict, &z).unwrap())
    };
    let together = of(&[0, 1, 2]);
    for image in 0..3 {
        assert_eq!(of(&[image])[0], together[image]);
    }
    assert!(together[0] != together[1] && together[1] != together[2]);
}

// ---- g_phi ----

const POOLED: usize = 64;

/// The fixtures' predictor: filled as EDM's network is, from the names "amed.NAME".
fn predictor_arrays() -> Arrays {
    let (_, shapes) = outline(|vb| Predictor::new(POOLED, vb)).unwrap();
    let fill = |(name, shape): (String, Vec<usize>)| {
        let name_there = format!("amed.{name}");
        let values = unit(&name_there, shape.iter().product());
        // Its biases end in ".bias": no group norm is in it.
        let data = values.into_iter().map(edm_value(&name_there, &shape)).collect();
        (name, Array { shape, data })
    };
    shapes.into_iter().map(fill).collect()
}

fn predictor() -> Predictor {
    let arrays = predictor_arrays();
    let source = Source { given: &arrays, drawn: &[], cell: "" };
    Params::build(&Compute::CPU, &source, |vb| Predictor::new(POOLED, vb)).unwrap().1
}

/// From the same features and outputs of the network. The reference has the frequencies
/// of its embedding in float32.
#[test]
fn the_plugin_agrees() {
    let fixture = fixture();
    let (z, replay, predictor) = (latents(&fixture), Replay::of(&fixture, "amed5"), predictor());
    let amed = Amed::new(5, POOLED).unwrap();
    let pooled = fixture.get("amed5/pooled");
    let levels = RefCell::new(Vec::new());
    let encode = |x: &Tensor, sigma: &Tensor| {
        levels.borrow_mut().extend(flat(sigma));
        let denoised = replay.answer(f64::NAN)?;
        // Calls 1 and 3 are at the beginnings of the second and the third interval.
        let feature = pooled.get(replay.levels.borrow().len() / 2)?.reshape((x.dim(0)?, 8, 8))?;
        Ok((denoised, feature))
    };
    let interval = Cell::new(0);
    let predict = |feature: &Tensor, s: f64, t: f64| {
        let k = interval.replace(interval.get() + 1);
        assert!(error(&flat(feature), &flat(&pooled.get(k)?)) < EXACT || k == 0);
        assert_eq!([s, t], amed.levels[k..k + 2]);
        let prediction = predictor.forward(feature, s, t)?;
        for (name, ours) in [
            ("r", &prediction.r),
            ("scale_dir", &prediction.scale_dir),
            ("scale_time", &prediction.scale_time),
        ] {
            let expected = flat(&fixture.get(&format!("amed5/{name}")).get(k)?);
            assert!(error(&flat(ours), &expected) < 1e-7, "{name}: {ours} for {expected:?}");
        }
        Ok(prediction)
    };
    let samples = amed.sample(&encode, &predict, &z).unwrap();
    let off = error(&flat(&samples), &fixture.f64("amed5/samples"));
    println!("{off:.1e}");
    assert!(off < 1e-7, "{off}");
    assert!(error(&levels.borrow(), &fixture.f64("amed5/call_sigma")) < 1e-7);
    assert_eq!((replay.calls(), interval.get()), (5, 3));
}

/// The whole plugin on the tiny network: with the analytical first slope and without it, with more
/// intervals, and with a predictor that leaves the denoiser's level as it is.
#[test]
fn samples_of_the_plugin_agree() {
    let fixture = fixture();
    let teacher = filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap().0;
    let teacher = teacher.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    let (teacher, z, predictor) = (encode(&teacher), latents(&fixture), predictor());
    for (name, calls) in [("amed5", 5), ("amed6", 6), ("amed9", 9), ("amed5_without_time", 5)] {
        let (amed, made, interval) = (Amed::new(calls, POOLED).unwrap(), Cell::new(0), Cell::new(0));
        let counted = |x: &Tensor, sigma: &Tensor| {
            made.set(made.get() + 1);
            teacher(x, sigma)
        };
        let predict = |feature: &Tensor, s: f64, t: f64| {
            let (k, mut told) = (interval.replace(interval.get() + 1), predictor.forward(feature, s, t)?);
            if name == "amed5_without_time" {
                told.scale_time = told.scale_time.ones_like()?;
            }
            let outputs = [("r", &told.r), ("scale_dir", &told.scale_dir), ("scale_time", &told.scale_time)];
            for (output, ours) in outputs.into_iter().take(if name.ends_with("time") { 2 } else { 3 }) {
                let off = error(&flat(ours), &flat(&fixture.get(&format!("{name}/{output}")).get(k)?));
                assert!(off < f64::from(NETWORK), "{name}, interval {k}: {output} is off by {off:.1e}");
            }
            Ok(told)
        };
        let samples = flat(&amed.sample(&counted, &predict, &z).unwrap());
        assert_eq!(made.get() as f64, fixture.f64(&format!("{name}/nfe"))[0], "{name}");
        // The file has none of nine calls.
        if calls < 9 {
            let off = error(&samples, &fixture.f64(&format!("{name}/samples")));
            println!("{name}: {off:.1e}");
            assert!(off < f64::from(NETWORK), "{name}: {off:.1e}");
        }
    }
}

#[test]
fn the_predictor_starts_as_published() {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "predictor" };
    let (params, predictor) = Params::build(&Compute::CPU, &source, |vb| Predictor::new(POOLED, vb)).unwrap();
    assert_eq!(params.count(), 8_971);
    let arrays = params.arrays().unwrap();
    let names: Vec<&str> = arrays.keys().map(String::as_str).collect();
    let layers = ["enc_layer0", "enc_layer1", "fc_r", "fc_scale_dir", "fc_scale_time", "map_layer0"];
    assert_eq!(names, layers.map(|l| [format!("{l}.bias"), format!("{l}.weight")]).concat());
    let spread = |name: &str| {
        let data = &arrays[name].data;
        (data.iter().map(|v| v * v).sum::<f32>() / data.len() as f32).sqrt()
    };
    let largest = |name: &str| arrays[name].data.iter().fold(0f32, |most, v| most.max(v.abs()));
    let bound = (6f32 / 16.0).sqrt();
    assert!((0.8 * bound..bound).contains(&largest("map_layer0.weight")));
    for (layer, inputs) in [("enc_layer0", 64f32), ("enc_layer1", 128.0), ("fc_r", 20.0)] {
        let relative = spread(&format!("{layer}.weight")) * inputs.sqrt();
        assert!((0.7..1.35).contains(&relative), "{layer}: {relative}");
    }
    // Normal, not uniform: a uniform draw ends at sqrt(3) standard deviations.
    assert!(largest("enc_layer0.weight") * 8.0 > 3.0);
    for layer in layers {
        assert_eq!(largest(&format!("{layer}.bias")), 0.0);
    }
    // r in (0, 1), the factors within their bounds.
    let feature = (Tensor::ones((2, POOLED), DType::F64, &Device::Cpu).unwrap() * 1e4).unwrap();
    let Prediction { r, scale_dir, scale_time } = predictor.forward(&feature, 80.0, 9.7).unwrap();
    for (factor, bound) in [(r.affine(2.0, -1.0).unwrap(), 1.0), (scale_dir, 0.01), (scale_time, 0.2)] {
        let middle = if bound < 1.0 { 1.0 } else { 0.0 };
        assert!(flat(&factor).iter().all(|v| (v - middle).abs() <= bound + EXACT), "{factor}");
    }
}

// ---- Training of g_phi ----

/// 64 numbers an image and a denoiser without a network whose encoder sees the image.
fn gaussian_with_feature(x: &Tensor, sigma: &Tensor) -> Result<(Tensor, Tensor)> {
    let (denoised, _) = gaussian_encode(x, sigma)?;
    Ok((denoised, (x / 10.0)?.tanh()?.squeeze(1)?))
}

fn training(calls: usize, given: &Arrays) -> Training {
    let source = Source { given, drawn: &[], cell: "" };
    Training::new(&Compute::CPU, &source, Amed::new(calls, POOLED).unwrap(), 5e-3).unwrap()
}

/// What a batch of these latents gives.
fn drawn(z: &Tensor) -> Given {
    Given { tensors: BTreeMap::from([("generator.z".to_string(), z.clone())]), ..Given::default() }
}

fn training_latents() -> Given {
    drawn(&Tensor::from_vec(unit("samplers.training", 3 * POOLED), (3, 1, 8, 8), &Device::Cpu).unwrap())
}

fn step(training: &mut Training, encode: Encode, given: &Given) -> Vec<f64> {
    training.step(encode, &given.batch(0, 3)).unwrap().iter().map(|loss| flat(loss)[0]).collect()
}

fn parameters(training: &Training) -> Arrays {
    training.predictor.state.params.arrays().unwrap()
}

/// Adam's first moments.
fn moments(training: &Training) -> Arrays {
    let mut all = Arrays::new();
    training.predictor.state.save("predictor", &mut all).unwrap();
    strip(&all, "predictor.adam.m.")
}

/// The derivative of the loss by parameters: a difference quotient of the losses of two
/// other predictors.
#[test]
fn the_gradient_of_the_predictor_is_a_derivative() {
    let arrays = predictor_arrays();
    let given = training_latents();
    // Without the analytical first slope, so that the feature counts.
    let loss = |arrays: &Arrays| {
        let (mut training, batch) = (training(4, arrays), given.batch(0, 3));
        let mut trajectories = training.start(&gaussian_with_feature, &batch).unwrap();
        let loss = training.update(&gaussian_with_feature, &batch, &mut trajectories).unwrap();
        (flat(&loss)[0], moments(&training))
    };
    let (_, moments) = loss(&arrays);
    for (name, array) in &arrays {
        // The parameter whose derivative is the largest. The first moment of one update
        // is a tenth of it.
        let gradient = &moments[name].data;
        let i = (0..gradient.len()).max_by(|i, j| gradient[*i].abs().total_cmp(&gradient[*j].abs())).unwrap();
        let moved = |by: f32| {
            let mut arrays = arrays.clone();
            arrays.get_mut(name).unwrap().data[i] += by;
            (loss(&arrays).0, arrays[name].data[i] as f64)
        };
        let ((above, x1), (below, x0)) = (moved(1e-2), moved(-1e-2));
        let (quotient, ours) = ((above - below) / (x1 - x0), 10.0 * gradient[i] as f64);
        println!("{name}[{i}] of {}: {ours:.6e} for {quotient:.6e}", array.data.len());
        assert!((ours / quotient - 1.0).abs() < 2e-3, "{name}[{i}]: {ours} for {quotient}");
    }
}

/// Six updates on the tiny network, against the authors' code: what the predictor says, the
/// gradients of its outputs and parameters, where the student comes, the parameters.
#[test]
fn six_updates_of_the_predictor_agree() {
    let fixture = fixture();
    let (params, _) = filled_denoiser(&tiny(), &Compute::CPU, &unit).unwrap();
    let teacher = params.frozen(|vb| Denoiser::new(&tiny(), vb)).unwrap();
    let teacher = encode(&teacher);
    let mut training = training(5, &predictor_arrays());
    let amed = Amed::new(5, POOLED).unwrap();
    let at = |name: &str, u: usize| flat(&fixture.get(&format!("amed_train/{name}")).get(u).unwrap());
    let close = |name: &str, u: usize, ours: &[f64], bound: f64| {
        let error = error(ours, &at(name, u));
        println!("update {u}, {name}: {error:.1e}");
        assert!(error < bound, "update {u}, {name}: {error:.1e}");
    };
    for i in 0..2 {
        let values = unit(&format!("amed.train{i}.latents"), 4 * 768).into_iter().map(|u| u * 3f32.sqrt());
        let z = Tensor::from_vec(values.collect::<Vec<_>>(), (4, 3, 16, 16), &Device::Cpu).unwrap();
        let denoise = |x: &Tensor, sigma: f64| Ok(teacher(x, &Tensor::full(sigma, 4, &Device::Cpu)?)?.0);
        let targets = ipndm(&denoise, &z, &polynomial(10)).unwrap();
        let given = drawn(&z);
        let batch = given.batch(0, 4);
        let (mut history, mut trajectories) = (History::default(), training.start(&teacher, &batch).unwrap());
        for k in 0..3 {
            let u = 3 * i + k;
            // The same interval with the predictor's outputs as variables.
            let told = RefCell::new(Vec::new());
            let predict = |feature: &Tensor, s: f64, t: f64| {
                let p = training.predictor.model.forward(feature, s, t)?;
                let vars = [p.r, p.scale_dir, p.scale_time].map(|v| Var::from_tensor(&v.detach()).unwrap());
                let [r, scale_dir, scale_time] = vars.each_ref().map(|var| var.as_tensor().clone());
                told.borrow_mut().extend(vars);
                Ok(Prediction { r, scale_dir, scale_time })
            };
            let x = trajectories[0].x.clone();
            let end = amed.interval(&teacher, &predict, &mut history, &x, k).unwrap();
            let loss = (&end - &targets[3 * k + 3]).unwrap().sqr().unwrap().sum_all().unwrap();
            let gradients = (loss / 4.0).unwrap().backward().unwrap();
            for (name, var) in ["r", "scale_dir", "scale_time"].into_iter().zip(told.borrow().iter()) {
                close(name, u, &flat(var), 1e-4);
                close(&format!("gradient_{name}"), u, &flat(gradients.get(var).unwrap()), 1e-3);
            }
            // The update itself.
            let before = moments(&training);
            let loss = training.update(&teacher, &batch, &mut trajectories).unwrap();
            let expected = fixture.f64("amed_train/loss")[u];
            let off = (flat(&loss)[0] / expected - 1.0).abs();
            println!("update {u}, loss: {off:.1e}");
            assert!(off < 1e-4, "update {u}: the loss is {loss} for {expected}");
            close("student", u, &flat(&trajectories[0].x), 1e-4);
            let after = moments(&training);
            for (name, array) in parameters(&training) {
                let expected = at(&format!("parameters/{name}"), u);
                let off = array.data.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
                let off = off.fold(0.0, f64::max);
                assert!(off < 1e-4, "update {u}, parameter {name}: {off:.1e}");
                let moments = after[&name].data.iter().zip(&before[&name].data);
                let gradient: Vec<f64> =
                    moments.map(|(now, then)| 10.0 * (f64::from(*now) - 0.9 * f64::from(*then))).collect();
                let largest = before[&name].data.iter().fold(0f32, |most, m| most.max(m.abs()));
                match (name.as_str(), k) {
                    // No call, no feature.
                    ("enc_layer0.weight", 0) => {
                        assert!(gradient.iter().all(|g| g.abs() <= 1e-5 * f64::from(largest)), "update {u}")
                    }
                    ("enc_layer0.weight", _) => assert!(gradient.iter().any(|g| *g != 0.0), "update {u}"),
                    _ => close(&format!("gradient/{name}"), u, &gradient, 1e-3),
                }
            }
        }
    }
}

/// Three updates an iteration, each from where the student was before its update.
#[test]
fn training_brings_the_student_nearer_to_its_teacher() {
    let mut training = training(5, &predictor_arrays());
    let given = training_latents();
    let losses: Vec<Vec<f64>> =
        (0..60).map(|_| step(&mut training, &gaussian_with_feature, &given)).collect();
    assert_eq!(losses[0].len(), 3);
    let (first, last): (f64, f64) = (losses[0].iter().sum(), losses[59].iter().sum());
    println!("{first} to {last}");
    assert!(last < 0.5 * first, "{first} to {last}");
}

/// Its first call is the analytical one, but its teacher's is not.
#[test]
fn an_iteration_makes_as_many_calls_as_published() {
    let count = Cell::new(0);
    let encode = |x: &Tensor, sigma: &Tensor| {
        count.set(count.get() + 1);
        gaussian_with_feature(x, sigma)
    };
    step(&mut training(5, &predictor_arrays()), &encode, &training_latents());
    assert_eq!(count.get(), 9 + 5);
}

/// Without a feature the first layer has no gradient at first; Adam moves it later.
#[test]
fn the_first_layer_waits_for_a_feature() {
    let arrays = predictor_arrays();
    let (mut training, given) = (training(5, &arrays), training_latents());
    let batch = given.batch(0, 3);
    let mut trajectories = training.start(&gaussian_with_feature, &batch).unwrap();
    let mut weights = || {
        training.update(&gaussian_with_feature, &batch, &mut trajectories).unwrap();
        parameters(&training)["enc_layer0.weight"].data.clone()
    };
    let first = weights();
    assert_eq!(first, arrays["enc_layer0.weight"].data);
    assert_ne!(weights(), first);
}

/// The training stops at a loss that is not finite, before its predictor is spoilt.
#[test]
fn a_predictor_that_meets_a_nan_is_as_before() {
    let (arrays, given) = (predictor_arrays(), training_latents());
    let broken = |x: &Tensor, sigma: &Tensor| {
        let (denoised, feature) = gaussian_with_feature(x, sigma)?;
        // Nothing of the first two intervals is.
        let late = flat(sigma)[0] < 0.46;
        Ok((if late { (denoised * f64::NAN)? } else { denoised }, feature))
    };
    let losses = step(&mut training(5, &arrays), &broken, &given);
    assert!(losses[0].is_finite() && losses[1].is_finite() && losses[2].is_nan(), "{losses:?}");
    // A finite loss with a derivative that is not: sqrt at 0.
    let steep = |x: &Tensor, sigma: &Tensor| {
        let (denoised, feature) = gaussian_with_feature(x, sigma)?;
        Ok(((denoised + (x - x)?.sqrt()?)?, feature))
    };
    let mut training = training(4, &arrays);
    assert!(step(&mut training, &steep, &given)[0].is_nan());
    assert_eq!(parameters(&training), arrays);
}
