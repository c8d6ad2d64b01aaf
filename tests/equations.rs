//! The equations as mathematics. Each property takes the functions it is about
//! as an argument, so `wrong_equations_are_rejected` can show that it fails for
//! wrong ones. `diffuse`, `dsm` and `vsd` are float32 on a CPU; the rest is
//! tested in float64.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Shape, Tensor, Var, WithDType};
use proptest::prelude::*;
use replicate::method::equations::{self, Divergence, Divergence::*};
use replicate::rng::Stream;
use std::f64::consts::{LN_2, TAU};

type Made = candle_core::Result<Tensor>;

#[derive(Clone, Copy)]
struct Equations {
    diffuse: fn(&Tensor, &[f32], &Tensor) -> Made,
    dsm: fn(&Tensor, &Tensor, &[f32]) -> Made,
    vsd: fn(&Tensor, &Tensor, &Tensor, &[f32], &[f32]) -> Made,
    class_ratio: fn(&Tensor, &Tensor) -> Made,
    phi: fn(Divergence, &Tensor) -> Made,
    loss: fn(Divergence, &Tensor, &[f32]) -> Made,
    softplus: fn(&Tensor) -> Made,
}

const OURS: Equations = Equations {
    diffuse: equations::diffuse,
    dsm: equations::dsm,
    vsd: equations::vsd,
    class_ratio: equations::class_ratio,
    phi: Divergence::phi,
    loss: equations::generator_loss,
    softplus: equations::softplus,
};

/// The properties below are of every divergence that a row minimises.
#[test]
fn every_divergence_of_a_row_is_tested() {
    let rows = replicate::method::all_rows().map(|row| row.method.name);
    let names: std::collections::BTreeSet<&str> =
        rows.filter(|name| name.starts_with("class-ratio ")).collect();
    assert_eq!(names.len(), Divergence::ALL.len(), "Divergence::ALL lacks one of {names:?}");
}

// Tools.

fn tensor<T: WithDType>(values: &[T], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn line(values: &[f64]) -> Tensor {
    tensor(values, values.len())
}

fn random(name: &str, seed: u64, shape: &[usize]) -> Tensor {
    tensor(&Stream::new("equations", name).normals(seed, shape.iter().product()), shape)
}

fn flat(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

fn number(t: &Tensor) -> Result<f64> {
    Ok(t.to_dtype(DType::F64)?.to_scalar()?)
}

/// The gradient of the sum of f at x; zeros where f does not depend on x.
fn gradient(f: impl Fn(&Tensor) -> Made, x: &Tensor) -> Result<Vec<f64>> {
    let x = Var::from_tensor(x)?;
    match f(&x)?.sum_all()?.backward()?.get(&x) {
        Some(gradient) => flat(gradient),
        None => Ok(vec![0.0; x.elem_count()]),
    }
}

/// Central differences of the scalar f.
fn differences(f: impl Fn(&Tensor) -> Made, x: &Tensor, step: f64) -> Result<Vec<f64>> {
    let values = flat(x)?;
    let at = |i: usize, step: f64| {
        let mut moved = values.clone();
        moved[i] += step;
        number(&f(&tensor(&moved, x.shape()).to_dtype(x.dtype())?)?)
    };
    (0..values.len()).map(|i| Ok((at(i, step)? - at(i, -step)?) / (2.0 * step))).collect()
}

fn close(what: &str, ours: &[f64], expected: &[f64], tolerance: f64) -> Result<()> {
    ensure!(ours.len() == expected.len(), "{what}: {} values for {}", ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        ensure!((a - b).abs() <= tolerance, "{what}: {a} for {b}, tolerance {tolerance:e}");
    }
    Ok(())
}

fn size(values: &[f64]) -> f64 {
    values.iter().fold(1.0, |m, v| m.max(v.abs()))
}

fn sigmoid(x: f64) -> f64 {
    let e = libm::exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn holds(verdict: Result<()>) -> std::result::Result<(), TestCaseError> {
    verdict.map_err(|e| TestCaseError::fail(e.to_string()))
}

// Losses as functions of the logit.

/// Both zeros; where e^-|x| and its complement round away and where e^x
/// overflows, in float32 and float64; the largest logits asked for.
const EDGES: [f64; 27] = [
    -200.0, -104.0, -103.0, -89.0, -88.0, -40.0, -37.0, -36.0, -18.0, -17.0, -16.0, -1.0, -1e-3, -0.0, 0.0,
    1e-3, 1.0, 16.0, 17.0, 18.0, 36.0, 37.0, 40.0, 88.0, 89.0, 104.0, 200.0,
];

fn finite_at(eq: &Equations, dtype: DType, logits: &[f64]) -> Result<()> {
    let l = line(logits).to_dtype(dtype)?;
    let weight = vec![1f32; logits.len()];
    let check = |what: String, f: &dyn Fn(&Tensor) -> Made| {
        for v in flat(&f(&l)?)?.into_iter().chain(gradient(f, &l)?) {
            ensure!(v.is_finite(), "{what}, {dtype:?}: {v}");
        }
        Ok(())
    };
    for d in Divergence::ALL {
        check(format!("{d:?}"), &|l| (eq.phi)(d, l))?;
        check(format!("{d:?} loss"), &|l| (eq.loss)(d, l, &weight))?;
    }
    check("softplus".into(), &|l| (eq.softplus)(l))?;
    check("class ratio".into(), &|l| (eq.class_ratio)(l, l))
}

/// Absolute tolerances: a softplus below the unit roundoff may be zero.
fn softplus_is_exact(eq: &Equations, dtype: DType, x: &[f64]) -> Result<()> {
    let x = line(x).to_dtype(dtype)?;
    let unit = if dtype == DType::F32 { f32::EPSILON as f64 } else { f64::EPSILON };
    let (values, slopes) = (flat(&(eq.softplus)(&x)?)?, gradient(eq.softplus, &x)?);
    for ((x, value), slope) in flat(&x)?.into_iter().zip(values).zip(slopes) {
        close(&format!("softplus({x})"), &[value], &[softplus(x)], 2.0 * unit * x.abs().max(1.0))?;
        close(&format!("softplus'({x})"), &[slope], &[sigmoid(x)], 2.0 * unit)?;
        ensure!(x != 0.0 || slope == 0.5, "softplus'({x}) = {slope}");
    }
    Ok(())
}

/// phi_DiKL = phi_DiJS + phi_DiRM, and the slopes are -1, -c and -(1 - c).
fn dikl_is_dijs_plus_dirm(eq: &Equations, logits: &[f64]) -> Result<()> {
    let l = line(logits);
    let value = |d| flat(&(eq.phi)(d, &l)?);
    let slope = |d| gradient(|l| (eq.phi)(d, l), &l);
    let add = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
    close("value of DiJS + DiRM", &add(value(DiJs)?, value(DiRm)?), &value(DiKl)?, 1e-12)?;
    let sum = add(slope(DiJs)?, slope(DiRm)?);
    close("slope of DiJS + DiRM", &sum, &slope(DiKl)?, 1e-12)?;
    let expected: Vec<f64> = logits.iter().map(|l| -sigmoid(*l)).collect();
    close("slope of DiJS", &slope(DiJs)?, &expected, 1e-12)?;
    close("slope of DiJS + DiRM", &sum, &vec![-1.0; logits.len()], 1e-12)
}

/// Samples that look more like data cost less, under every divergence. Beyond
/// 30 the slope of DiJS or DiRM is below float64's roundoff and may be zero.
fn data_like_is_better(eq: &Equations, logits: &[f64]) -> Result<()> {
    for d in Divergence::ALL {
        for (l, slope) in logits.iter().zip(gradient(|l| (eq.phi)(d, l), &line(logits))?) {
            ensure!(slope < 0.0 || slope == 0.0 && l.abs() > 30.0, "{d:?} has slope {slope} at {l}");
        }
    }
    Ok(())
}

/// loss is the mean over images of w phi.
fn loss_is_the_weighted_mean(eq: &Equations, logits: &[f64], weight: &[f32]) -> Result<()> {
    for d in Divergence::ALL {
        let phi = flat(&(eq.phi)(d, &line(logits))?)?;
        let mean = phi.iter().zip(weight).map(|(p, w)| p * *w as f64).sum::<f64>() / phi.len() as f64;
        let loss = number(&(eq.loss)(d, &line(logits), weight)?)?;
        close(&format!("{d:?} loss"), &[loss], &[mean], 1e-12 * size(&phi))?;
    }
    Ok(())
}

/// On a finite set where the data have `data[i]` samples at point i and the
/// generator `generator[i]`: at l = log p/q the slope is zero and the loss is
/// 2 ln 2 - 2 JS(p, q); `away` from there it is larger.
fn class_ratio_finds_the_log_ratio(
    eq: &Equations,
    data: &[usize],
    generator: &[usize],
    away: &[f64],
) -> Result<()> {
    let samples = |counts: &[usize]| {
        let ids: Vec<u32> = counts.iter().enumerate().flat_map(|(i, n)| vec![i as u32; *n]).collect();
        tensor(&ids, ids.len())
    };
    let (real, fake) = (samples(data), samples(generator));
    let loss = |l: &Tensor| (eq.class_ratio)(&l.index_select(&real, 0)?, &l.index_select(&fake, 0)?);
    let share = |counts: &[usize]| -> Vec<f64> {
        counts.iter().map(|n| *n as f64 / counts.iter().sum::<usize>() as f64).collect()
    };
    let (p, q) = (share(data), share(generator));
    let best: Vec<f64> = p.iter().zip(&q).map(|(p, q)| libm::log(p / q)).collect();
    close("slope at log p/q", &gradient(loss, &line(&best))?, &vec![0.0; p.len()], 1e-14)?;
    let to_middle = |p: &f64, q: &f64| p * libm::log(2.0 * p / (p + q));
    let js: f64 = p.iter().zip(&q).map(|(p, q)| 0.5 * (to_middle(p, q) + to_middle(q, p))).sum();
    let least = number(&loss(&line(&best))?)?;
    close("loss at log p/q", &[least], &[2.0 * LN_2 - 2.0 * js], 1e-13)?;
    let moved: Vec<f64> = best.iter().zip(away).map(|(l, d)| l + d).collect();
    let more = number(&loss(&line(&moved))?)?;
    ensure!(more > least + 1e-6, "{more} at {moved:?}, {least} at log p/q");
    Ok(())
}

fn slopes_are_those_of_the_values(eq: &Equations, seed: u64, n: usize) -> Result<()> {
    let l = (random("logits", seed, &[n]).to_dtype(DType::F64)? * 4.0)?;
    let other = (random("other", seed, &[n + 1]).to_dtype(DType::F64)? * 4.0)?;
    let weight: Vec<f32> = (1..=n).map(|i| i as f32).collect();
    let check = |what: String, f: &dyn Fn(&Tensor) -> Made| {
        close(&what, &gradient(f, &l)?, &differences(f, &l, 1e-5)?, 1e-8)
    };
    for d in Divergence::ALL {
        check(format!("{d:?}"), &|l| (eq.phi)(d, l)?.sum_all())?;
        check(format!("{d:?} loss"), &|l| (eq.loss)(d, l, &weight))?;
    }
    check("class ratio, data".into(), &|l| (eq.class_ratio)(l, &other))?;
    check("class ratio, generator".into(), &|l| (eq.class_ratio)(&other, l))
}

fn logits() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-200.0..200.0, 1..20)
}

fn small_logits() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-30.0..30.0, 1..20)
}

fn pairs() -> impl Strategy<Value = Vec<(usize, usize, f64)>> {
    let away = prop_oneof![-3.0..-0.1, 0.1..3.0];
    prop::collection::vec((1usize..7, 1usize..7, away), 2..7)
}

proptest! {
    #[test]
    fn losses_are_finite(l in logits()) {
        for dtype in [DType::F32, DType::F64] {
            holds(finite_at(&OURS, dtype, &l))?;
            holds(finite_at(&OURS, dtype, &EDGES))?;
        }
    }

    #[test]
    fn softplus_and_its_slope_are_exact(x in logits(), near in small_logits()) {
        for dtype in [DType::F32, DType::F64] {
            for x in [&x[..], &near, &EDGES] {
                holds(softplus_is_exact(&OURS, dtype, x))?;
            }
        }
    }

    #[test]
    fn dikl_splits_into_dijs_and_dirm(l in logits(), near in small_logits()) {
        for l in [&l[..], &near, &EDGES] {
            holds(dikl_is_dijs_plus_dirm(&OURS, l))?;
        }
    }

    #[test]
    fn every_phi_falls_with_the_logit(l in logits(), near in small_logits()) {
        for l in [&l[..], &near, &EDGES] {
            holds(data_like_is_better(&OURS, l))?;
        }
    }

    #[test]
    fn losses_are_weighted_means(lw in prop::collection::vec((-200.0..200.0, 0f32..100.0), 1..20)) {
        let (l, w): (Vec<f64>, Vec<f32>) = lw.into_iter().unzip();
        holds(loss_is_the_weighted_mean(&OURS, &l, &w))?;
    }

    #[test]
    fn the_best_logit_is_the_log_ratio(set in pairs()) {
        let (data, generator, away) = (
            set.iter().map(|s| s.0).collect::<Vec<_>>(), set.iter().map(|s| s.1).collect::<Vec<_>>(),
            set.iter().map(|s| s.2).collect::<Vec<_>>(),
        );
        holds(class_ratio_finds_the_log_ratio(&OURS, &data, &generator, &away))?;
    }

    #[test]
    fn slopes_equal_finite_differences(seed: u64, n in 1usize..6) {
        holds(slopes_are_those_of_the_values(&OURS, seed, n))?;
    }
}

// Divergences between mixtures of Gaussians, by quadrature.

/// Components of a one-dimensional mixture: weight, mean, standard deviation.
#[derive(Clone, Debug)]
struct Mixture(Vec<[f64; 3]>);

impl Mixture {
    /// At noise level sigma.
    fn log_density(&self, x: f64, sigma: f64) -> f64 {
        let total: f64 = self.0.iter().map(|c| c[0]).sum();
        let terms: Vec<f64> = self
            .0
            .iter()
            .map(|[w, m, s]| {
                let v = s * s + sigma * sigma;
                libm::log(w / total) - 0.5 * ((x - m) * (x - m) / v + libm::log(TAU * v))
            })
            .collect();
        let top = terms.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
        top + libm::log(terms.iter().map(|t| libm::exp(t - top)).sum())
    }
}

fn mixtures() -> impl Strategy<Value = Mixture> {
    let component = (0.2..1.0, -3.0..3.0, 0.3..1.5).prop_map(|(w, m, s)| [w, m, s]);
    prop::collection::vec(component, 1..4).prop_map(Mixture)
}

/// Grid points, log p and log q. The trapezoidal rule is exact to roundoff here:
/// the step is a fifteenth of the least standard deviation or less.
fn tabulate(p: &Mixture, q: &Mixture, sigma: f64) -> (f64, Vec<f64>, Vec<f64>) {
    let (step, reach) = (0.02, 3.0 + 9.0 * (1.5f64 * 1.5 + sigma * sigma).sqrt());
    let n = (reach / step) as i64;
    let at = |m: &Mixture| (-n..=n).map(|i| m.log_density(i as f64 * step, sigma)).collect();
    (step, at(p), at(q))
}

struct Distance {
    kl: f64,
    js: f64,
    /// JS with the roles of p and q exchanged.
    sj: f64,
    /// Total variation, not computed by the library.
    tv: f64,
}

/// KL(q|p) = E_q phi_DiKL and 2 ln 2 - 2 JS = E_p phi_DiRM - E_q phi_DiJS, at the
/// best logit log p/q.
fn distance(eq: &Equations, p: &Mixture, q: &Mixture, sigma: f64) -> Result<Distance> {
    let (step, p, q) = tabulate(p, q, sigma);
    let logit: Vec<f64> = p.iter().zip(&q).map(|(p, q)| p - q).collect();
    let mean = |log: &[f64], d: Divergence, l: &Tensor| -> Result<f64> {
        let phi = flat(&(eq.phi)(d, l)?)?;
        Ok(log.iter().zip(phi).map(|(log, phi)| libm::exp(*log) * phi).sum::<f64>() * step)
    };
    let (l, back) = (line(&logit), line(&logit).neg()?);
    Ok(Distance {
        kl: mean(&q, DiKl, &l)?,
        js: LN_2 - 0.5 * (mean(&p, DiRm, &l)? - mean(&q, DiJs, &l)?),
        sj: LN_2 - 0.5 * (mean(&q, DiRm, &back)? - mean(&p, DiJs, &back)?),
        tv: p.iter().zip(&q).map(|(p, q)| (libm::exp(*p) - libm::exp(*q)).abs()).sum::<f64>() * step / 2.0,
    })
}

/// By Pinsker's inequality KL is zero only for equal distributions, and by that
/// of data processing noise never increases a divergence.
fn divergences_behave(eq: &Equations, p: &Mixture, q: &Mixture) -> Result<()> {
    let mut before = Distance { kl: f64::INFINITY, js: LN_2, sj: LN_2, tv: 1.0 };
    for sigma in [0.0, 0.1, 0.3, 1.0, 3.0] {
        let d = distance(eq, p, q, sigma)?;
        ensure!(d.kl >= 2.0 * d.tv * d.tv - 1e-10, "KL {} with TV {}, sigma {sigma}", d.kl, d.tv);
        ensure!(d.js >= 0.5 * d.tv * d.tv - 1e-10, "JS {} with TV {}, sigma {sigma}", d.js, d.tv);
        ensure!(d.js <= LN_2 * d.tv + 1e-10, "JS {} with TV {}, sigma {sigma}", d.js, d.tv);
        ensure!((d.js - d.sj).abs() < 1e-10, "JS {} one way and {} the other, sigma {sigma}", d.js, d.sj);
        ensure!(d.kl <= before.kl + 1e-10, "KL grows to {} at sigma {sigma}", d.kl);
        ensure!(d.js <= before.js + 1e-10, "JS grows to {} at sigma {sigma}", d.js);
        let same = distance(eq, p, p, sigma)?;
        ensure!(same.kl.abs() < 1e-12 && same.js.abs() < 1e-10, "KL(p|p) {}, JS(p, p) {}", same.kl, same.js);
        before = d;
    }
    Ok(())
}

fn gaussian_kl(eq: &Equations, [m, a]: [f64; 2], [theta, b]: [f64; 2], sigma: f64) -> Result<()> {
    let kl = distance(eq, &Mixture(vec![[1.0, m, a]]), &Mixture(vec![[1.0, theta, b]]), sigma)?.kl;
    close("KL of Gaussians", &[kl], &[kl_of_gaussians([m, a], [theta, b], sigma)], 1e-9)
}

/// KL(N(theta, b^2 + sigma^2) | N(m, a^2 + sigma^2))
fn kl_of_gaussians([m, a]: [f64; 2], [theta, b]: [f64; 2], sigma: f64) -> f64 {
    let (vp, vq) = (a * a + sigma * sigma, b * b + sigma * sigma);
    0.5 * ((vq + (theta - m) * (theta - m)) / vp - 1.0 - libm::log(vq / vp))
}

/// With the best critic held fixed, the generator N(theta, 1) descends KL under
/// DiKL, 2 JS under DiJS, and so KL - 2 JS under DiRM.
fn gradients_are_those_of_the_divergences(eq: &Equations, p: &Mixture, theta: f64, sigma: f64) -> Result<()> {
    let sd = (1.0 + sigma * sigma).sqrt();
    let u: Vec<f64> = (-350..=350).map(|i| i as f64 * 0.02).collect();
    // `loss` divides by the number of points.
    let weight: Vec<f32> =
        u.iter().map(|u| (libm::exp(-0.5 * u * u) / TAU.sqrt() * 0.02 * 701.0) as f32).collect();
    let total: f64 = p.0.iter().map(|c| c[0]).sum();
    let logit = |x: &Tensor| -> Made {
        let mut density = x.zeros_like()?;
        for [w, m, s] in &p.0 {
            let v = s * s + sigma * sigma;
            density = (density + ((x - *m)?.sqr()? * (-0.5 / v))?.exp()? * (w / total / (TAU * v).sqrt()))?;
        }
        (density.log()? + (((x - theta)?.sqr()? * (0.5 / (sd * sd)))? + 0.5 * libm::log(TAU * sd * sd))?)?
            .contiguous()
    };
    let samples = (line(&u) * sd)?;
    let slope = |d: Divergence| {
        gradient(|theta| (eq.loss)(d, &logit(&samples.broadcast_add(theta)?)?, &weight), &line(&[theta]))
    };

    let value = |theta: f64| {
        let (step, p, q) = tabulate(p, &Mixture(vec![[1.0, theta, 1.0]]), sigma);
        let (mut kl, mut js) = (0.0, 0.0);
        for (p, q) in p.iter().zip(q) {
            kl += step * libm::exp(q) * (q - p);
            let terms = libm::exp(*p) * (LN_2 - softplus(q - p)) + libm::exp(q) * (LN_2 - softplus(p - q));
            js += 0.5 * step * terms;
        }
        [kl, 2.0 * js, kl - 2.0 * js]
    };
    let (up, down) = (value(theta + 1e-3), value(theta - 1e-3));
    for (i, d) in [DiKl, DiJs, DiRm].into_iter().enumerate() {
        close(&format!("gradient of {d:?}"), &slope(d)?, &[(up[i] - down[i]) / 2e-3], 3e-6)?;
    }
    Ok(())
}

fn wide_mixtures() -> impl Strategy<Value = Mixture> {
    let component = (0.2..1.0, -2.0..2.0, 0.5..1.5).prop_map(|(w, m, s)| [w, m, s]);
    prop::collection::vec(component, 1..4).prop_map(Mixture)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn divergences_are_divergences(p in mixtures(), q in mixtures()) {
        holds(divergences_behave(&OURS, &p, &q))?;
    }

    #[test]
    fn dikl_is_kl_between_gaussians(
        m in -2.0..2.0, a in 0.3..1.5, theta in -2.0..2.0, b in 0.3..1.5, sigma in 0.0..3.0,
    ) {
        holds(gaussian_kl(&OURS, [m, a], [theta, b], sigma))?;
    }

    #[test]
    fn a_fixed_critic_gives_the_divergences_gradient(p in wide_mixtures(), theta in -2.0..2.0, sigma in 0.3..3.0) {
        holds(gradients_are_those_of_the_divergences(&OURS, &p, theta, sigma))?;
    }
}

// Scores, denoisers and the gradient of the generator.

/// (B, 1) from one value per image.
fn column(values: impl Iterator<Item = f32>) -> Tensor {
    let values: Vec<f32> = values.collect();
    tensor(&values, (values.len(), 1))
}

/// Data N(m, 1), generator theta + z, w = sigma^2: whatever the draw, the
/// gradient of VSD with exact scores, and of DiKL with the exact log-ratio, is
/// the mean over images of sigma^2 (theta - m) / (1 + sigma^2).
fn gaussians_have_the_analytic_gradient(
    eq: &Equations,
    seed: u64,
    m: &[f32],
    theta: &[f32],
    sigma: &[f32],
) -> Result<()> {
    let shape = [sigma.len(), m.len()];
    let (z, eps) = (random("z", seed, &shape), random("eps", seed, &shape));
    let square: Vec<f32> = sigma.iter().map(|s| s * s).collect();
    let (level, variance) = (column(square.iter().copied()), column(square.iter().map(|s| 1.0 + s)));
    let (m, at) = (tensor(m, m.len()), tensor(theta, theta.len()));
    let xt = |theta: &Tensor| (eq.diffuse)(&z.broadcast_add(theta)?, sigma, &eps);

    let denoised = |xt: &Tensor, mean: &Tensor| -> Made {
        let score = xt.broadcast_sub(mean)?.neg()?.broadcast_div(&variance)?;
        xt + score.broadcast_mul(&level)?
    };
    let by_score = gradient(
        |theta| {
            let xt = xt(theta)?;
            (eq.vsd)(&xt, &denoised(&xt, &at)?, &denoised(&xt, &m)?, sigma, &square)
        },
        &at,
    )?;
    let by_ratio = gradient(
        |theta| {
            let xt = xt(theta)?;
            let l = (xt.broadcast_sub(&at)?.sqr()? - xt.broadcast_sub(&m)?.sqr()?)?;
            (eq.loss)(DiKl, &(l.broadcast_div(&variance)? * 0.5)?.sum(1)?, &square)
        },
        &at,
    )?;

    let factor = square.iter().map(|s| *s as f64 / (1.0 + *s as f64)).sum::<f64>() / sigma.len() as f64;
    let analytic: Vec<f64> = flat(&at)?.iter().zip(flat(&m)?).map(|(t, m)| factor * (t - m)).collect();
    close("gradient of VSD", &by_score, &analytic, 5e-5)?;
    close("gradient of DiKL", &by_ratio, &analytic, 5e-5)
}

/// With variances of their own (data N(-1, a^2), generator N(1, b^2)) both are
/// w (s_q - s_p) / B at every image, although the difference now depends on x_t.
fn kl_gradient_is_the_score_difference(
    eq: &Equations,
    seed: u64,
    [a, b]: [f32; 2],
    sigma: &[f32],
    weight: &[f32],
) -> Result<()> {
    let n = sigma.len();
    let xt = (random("xt", seed, &[n, 1]) * 2.0)?;
    let level = column(sigma.iter().map(|s| s * s));
    let (vp, vq) = (column(sigma.iter().map(|s| a * a + s * s)), column(sigma.iter().map(|s| b * b + s * s)));
    let denoised = |xt: &Tensor, mean: f64, v: &Tensor| -> Made { xt - ((xt - mean)?.div(v)? * &level)? };
    let by_score =
        gradient(|xt| (eq.vsd)(xt, &denoised(xt, 1.0, &vq)?, &denoised(xt, -1.0, &vp)?, sigma, weight), &xt)?;
    let by_ratio = gradient(
        |xt| {
            let l = (((xt - 1.0)?.sqr()?.div(&vq)? - (xt + 1.0)?.sqr()?.div(&vp)?)? * 0.5)?;
            (eq.loss)(DiKl, &l.squeeze(1)?, weight)
        },
        &xt,
    )?;
    let expected: Vec<f64> = (0..n)
        .map(|i| {
            let (x, s) = (flat(&xt).unwrap()[i], sigma[i] as f64);
            let score = |mean: f64, sd: f32| -(x - mean) / (sd as f64 * sd as f64 + s * s);
            weight[i] as f64 * (score(1.0, b) - score(-1.0, a)) / n as f64
        })
        .collect();
    // The weight over sigma^2 multiplies the rounding of the denoisers.
    let roundoff = sigma.iter().zip(weight).fold(1f32, |m, (s, w)| m.max(w / (s * s))) as f64 / n as f64;
    close("gradient of VSD", &by_score, &expected, 2e-6 * roundoff * size(&flat(&xt)?))?;
    close("gradient of DiKL", &by_ratio, &expected, 3e-6 * size(&expected))
}

/// dsm and vsd against differences in float32 with long steps: one is a
/// parabola and the other a line, so only rounding separates them.
fn dsm_and_vsd_have_their_own_slopes(eq: &Equations, seed: u64, pixels: usize, sigma: &[f32]) -> Result<()> {
    let shape = [sigma.len(), 2, pixels];
    let (x, y) = (random("x", seed, &shape), random("y", seed, &shape));
    let weight: Vec<f32> = sigma.iter().map(|s| s * s * (1.0 + s)).collect();

    let dsm = |d: &Tensor| (eq.dsm)(d, &y, sigma);
    let roundoff = 2e-6 * number(&dsm(&x)?)?.max(1.0);
    close("slope of dsm", &gradient(dsm, &x)?, &differences(dsm, &x, 0.5)?, roundoff)?;

    let (q, p) = (|x: &Tensor| x.sqr(), |x: &Tensor| x * 0.5);
    let (fixed_q, fixed_p) = (q(&x)?, p(&x)?);
    let fixed = |x: &Tensor| (eq.vsd)(x, &fixed_q, &fixed_p, sigma, &weight);
    let along = gradient(|x| (eq.vsd)(x, &q(x)?, &p(x)?, sigma, &weight), &x)?;
    let expected = differences(fixed, &x, 0.5)?;
    close("slope of vsd", &along, &expected, 2e-6 * (shape[1] * pixels) as f64 * 4.0 * size(&expected))?;
    let critic = gradient(|q| (eq.vsd)(&x, q, &fixed_p, sigma, &weight), &fixed_q)?;
    close("slope of vsd in the critic", &critic, &vec![0.0; critic.len()], 0.0)
}

/// One pixel per image, by hand: EDM's weight (sigma^2 + 0.25) / (0.5 sigma)^2 is
/// 8 at sigma = 0.5 and 4.25 at 2, so errors of 1 and 2 give (8 + 17) / 2.
fn dsm_by_hand(eq: &Equations) -> Result<()> {
    let (x0, denoised) = (tensor(&[0.25f32, -0.5], (2, 1, 1, 1)), tensor(&[1.25f32, 1.5], (2, 1, 1, 1)));
    let loss = number(&(eq.dsm)(&denoised, &x0, &[0.5, 2.0])?)?;
    close("dsm", &[loss], &[12.5], 1e-5)
}

/// Mean over all elements of EDM's weight times the squared error.
fn dsm_is_weighted(eq: &Equations, seed: u64, pixels: usize, sigma: &[f32]) -> Result<()> {
    let shape = [sigma.len(), 3, pixels];
    let (x, y) = (random("x", seed, &shape), random("y", seed, &shape));
    let (a, b) = (flat(&x)?, flat(&y)?);
    let per_image = 3 * pixels;
    let expected = (0..a.len())
        .map(|i| {
            let s = sigma[i / per_image] as f64;
            (s * s + 0.25) / (0.25 * s * s) * (a[i] - b[i]) * (a[i] - b[i])
        })
        .sum::<f64>()
        / a.len() as f64;
    close("dsm", &[number(&(eq.dsm)(&x, &y, sigma)?)? / expected], &[1.0], 3e-6)
}

/// Data at one point: D = x_0 costs nothing and everything else something. Data
/// at 0 and 1: the best constant D is their mean, the posterior mean where the
/// noise hides which one it was.
fn dsm_wants_the_posterior_mean(
    eq: &Equations,
    seed: u64,
    ones: usize,
    zeros: usize,
    sigma: f32,
) -> Result<()> {
    let n = ones + zeros;
    let x0 = random("x0", seed, &[n, 2]);
    let levels = vec![sigma; n];
    let best = number(&(eq.dsm)(&x0, &x0, &levels)?)?;
    ensure!(best == 0.0, "dsm is {best} at D = x_0");
    close("slope at D = x_0", &gradient(|d| (eq.dsm)(d, &x0, &levels), &x0)?, &vec![0.0; 2 * n], 0.0)?;
    let off = number(&(eq.dsm)(&(&x0 + random("off", seed, &[n, 2]))?, &x0, &levels)?)?;
    ensure!(off > 0.0, "dsm is {off} away from x_0");

    let x0 = column((0..n).map(|i| if i < ones { 1.0 } else { 0.0 }));
    let constant = |d: &Tensor| (eq.dsm)(&d.broadcast_as((n, 1))?, &x0, &levels);
    let mean = ones as f32 / n as f32;
    let weight = (sigma * sigma + 0.25) / (0.25 * sigma * sigma);
    close("slope at the mean", &gradient(constant, &tensor(&[mean], 1))?, &[0.0], 1e-6 * weight as f64)
}

fn diffuse_has_the_moments(eq: &Equations, seed: u64, x0: &[f32], sigma: &[f32]) -> Result<()> {
    let (b, n) = (sigma.len(), 20_000);
    let eps = random("diffuse", seed, &[b, n]);
    let xt = (eq.diffuse)(&column(x0.iter().copied()).broadcast_as((b, n))?, sigma, &eps)?;
    for i in 0..b {
        let (x, e, c, s) = (flat(&xt.get(i)?)?, flat(&eps.get(i)?)?, x0[i] as f64, sigma[i] as f64);
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
        // Six standard errors.
        close("mean of x_t", &[mean], &[c], 6.0 * s / (n as f64).sqrt())?;
        close("variance of x_t over sigma^2", &[variance / (s * s)], &[1.0], 6.0 * (2.0 / n as f64).sqrt())?;
        let expected: Vec<f64> = e.iter().map(|e| c + s * e).collect();
        close("x_t", &x, &expected, 1e-6 * (1.0 + s))?;
    }
    Ok(())
}

/// One to five noise levels.
fn levels() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(0.1f32..10.0, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn vsd_and_dikl_have_the_analytic_gradient(
        seed: u64, means in prop::collection::vec((-2f32..2.0, -2f32..2.0), 1..4), sigma in levels(),
    ) {
        let (m, theta): (Vec<f32>, Vec<f32>) = means.into_iter().unzip();
        holds(gaussians_have_the_analytic_gradient(&OURS, seed, &m, &theta, &sigma))?;
    }

    #[test]
    fn vsd_and_dikl_agree_at_every_image(
        seed: u64, a in 0.3f32..2.0, b in 0.3f32..2.0,
        levels in prop::collection::vec((0.1f32..10.0, 0.1f32..10.0), 1..6),
    ) {
        let (sigma, weight): (Vec<f32>, Vec<f32>) = levels.into_iter().unzip();
        holds(kl_gradient_is_the_score_difference(&OURS, seed, [a, b], &sigma, &weight))?;
    }

    #[test]
    fn dsm_and_vsd_equal_finite_differences(
        seed: u64, pixels in 1usize..4, sigma in prop::collection::vec(0.3f32..3.0, 1..4),
    ) {
        holds(dsm_and_vsd_have_their_own_slopes(&OURS, seed, pixels, &sigma))?;
    }

    #[test]
    fn dsm_has_the_weight_of_edm(seed: u64, pixels in 1usize..9, sigma in levels()) {
        holds(dsm_is_weighted(&OURS, seed, pixels, &sigma))?;
    }

    #[test]
    fn dsm_is_least_at_the_posterior_mean(seed: u64, ones in 1usize..6, zeros in 1usize..6, sigma in 0.1f32..10.0) {
        holds(dsm_wants_the_posterior_mean(&OURS, seed, ones, zeros, sigma))?;
    }

    #[test]
    fn diffuse_adds_noise_of_the_given_level(
        seed: u64, images in prop::collection::vec((-2f32..2.0, 0.1f32..10.0), 1..4),
    ) {
        let (x0, sigma): (Vec<f32>, Vec<f32>) = images.into_iter().unzip();
        holds(diffuse_has_the_moments(&OURS, seed, &x0, &sigma))?;
    }
}

#[test]
fn dsm_of_two_pixels_by_hand() {
    dsm_by_hand(&OURS).unwrap();
}

// Monte Carlo.

/// The root-mean-square error over 256 fixed seeds at n = 16, 64, ..., 4096 falls
/// as n^-1/2. With that many seeds each point is known to 4 %, which gives the
/// fitted slope a standard error of 0.01.
fn falls_with_the_square_root(
    what: &str,
    exact: f64,
    estimate: impl Fn(u64, usize) -> Result<f64>,
) -> Result<()> {
    let mut points = vec![];
    for n in [16usize, 64, 256, 1024, 4096] {
        let mut square = 0.0;
        for seed in 0..256 {
            let error = estimate((n as u64) << 32 | seed, n)? - exact;
            square += error * error / 256.0;
        }
        points.push([(n as f64).ln(), square.sqrt().ln()]);
    }
    let mean = |i: usize| points.iter().map(|p| p[i]).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(0), mean(1));
    let slope = points.iter().map(|p| (p[0] - x) * (p[1] - y)).sum::<f64>()
        / points.iter().map(|p| (p[0] - x) * (p[0] - x)).sum::<f64>();
    ensure!((slope + 0.5).abs() < 0.05, "{what}: the error falls as n^{slope:.3}");
    Ok(())
}

/// Data N(0, 1), generator 1 + z / 2, sigma = 1.
fn estimates_converge(eq: &Equations) -> Result<()> {
    let (vp, vq) = (2.0, 1.25);
    let noised = |name: &str, seed: u64, n: usize, x0: &dyn Fn(Tensor) -> Made| -> Made {
        (eq.diffuse)(&x0(random(name, seed, &[n]))?, &[1.0], &random("eps", seed, &[n]))
    };
    let fake = |seed, n, theta: &Tensor| noised("fake", seed, n, &|z| (z * 0.5)?.broadcast_add(theta));
    let real = |seed, n| noised("real", seed, n, &Ok);
    let one = tensor(&[1f32], 1);
    let logit = |x: &Tensor| -> Made {
        (((x - 1.0)?.sqr()? * (0.5 / vq))? - (x.sqr()? * (0.5 / vp))?)? + 0.5 * libm::log(vq / vp)
    };

    let kl = kl_of_gaussians([0.0, 1.0], [1.0, 0.5], 1.0);
    falls_with_the_square_root("KL", kl, |seed, n| {
        number(&(eq.loss)(DiKl, &logit(&fake(seed, n, &one)?)?, &vec![1.0; n])?)
    })?;
    let (step, p, q) = tabulate(&Mixture(vec![[1.0, 0.0, 1.0]]), &Mixture(vec![[1.0, 1.0, 0.5]]), 1.0);
    let cost = |p: f64, q: f64| libm::exp(p) * softplus(q - p) + libm::exp(q) * softplus(p - q);
    let least = p.iter().zip(q).map(|(p, q)| cost(*p, q)).sum::<f64>() * step;
    falls_with_the_square_root("class ratio", least, |seed, n| {
        number(&(eq.class_ratio)(&logit(&real(seed, n)?)?, &logit(&fake(seed, n, &one)?)?)?)
    })?;
    // d KL / d theta = (theta - m) / v_p
    falls_with_the_square_root("gradient of VSD", 1.0 / vp, |seed, n| {
        let slope = gradient(
            |theta| {
                let xt = fake(seed, n, theta)?;
                let (q, p) = ((&xt - ((&xt - 1.0)? / vq)?)?, (&xt - (&xt / vp)?)?);
                (eq.vsd)(&xt, &q, &p, &[1.0].repeat(n), &[1.0].repeat(n))
            },
            &one,
        )?;
        Ok(slope[0])
    })
}

#[test]
fn estimates_converge_with_the_square_root_of_n() {
    estimates_converge(&OURS).unwrap();
}

// Wrong equations.

const PROPERTIES: [(&str, fn(&Equations) -> Result<()>); 17] = [
    ("finite", |eq| finite_at(eq, DType::F32, &EDGES)),
    ("softplus", |eq| softplus_is_exact(eq, DType::F64, &EDGES)),
    ("split", |eq| dikl_is_dijs_plus_dirm(eq, &[-3.0, 0.0, 2.0])),
    ("sign", |eq| data_like_is_better(eq, &[-3.0, 0.0, 2.0])),
    ("mean", |eq| loss_is_the_weighted_mean(eq, &[-3.0, 0.0, 2.0], &[1.0, 2.0, 3.0])),
    ("optimum", |eq| class_ratio_finds_the_log_ratio(eq, &[1, 2, 3], &[4, 2, 1], &[0.1, -0.2, 0.1])),
    ("slope", |eq| slopes_are_those_of_the_values(eq, 1, 3)),
    ("divergence", |eq| {
        divergences_behave(eq, &Mixture(vec![[1.0, -1.0, 0.5]]), &Mixture(vec![[1.0, 1.0, 1.0]]))
    }),
    ("kl", |eq| gaussian_kl(eq, [0.0, 1.0], [1.0, 0.5], 1.0)),
    ("descent", |eq| gradients_are_those_of_the_divergences(eq, &Mixture(vec![[1.0, -1.0, 0.5]]), 1.0, 0.5)),
    ("analytic", |eq| gaussians_have_the_analytic_gradient(eq, 1, &[0.0, 1.0], &[1.0, -1.0], &[0.5, 3.0])),
    ("score", |eq| kl_gradient_is_the_score_difference(eq, 1, [0.5, 1.5], &[0.5, 3.0], &[1.0, 3.0])),
    ("tangent", |eq| dsm_and_vsd_have_their_own_slopes(eq, 1, 2, &[0.5, 3.0])),
    ("dsm", |eq| dsm_by_hand(eq).and(dsm_is_weighted(eq, 1, 2, &[0.5, 3.0]))),
    ("posterior", |eq| dsm_wants_the_posterior_mean(eq, 1, 2, 3, 0.5)),
    ("moments", |eq| diffuse_has_the_moments(eq, 1, &[0.0, 1.0], &[0.5, 3.0])),
    ("rate", estimates_converge),
];

/// `eq` with another phi, and the loss that follows from it.
macro_rules! with_phi {
    ($phi:expr) => {{
        const PHI: fn(Divergence, &Tensor) -> Made = $phi;
        Equations {
            phi: PHI,
            loss: |d, l, w| (PHI(d, l)? * tensor(w, w.len()).to_dtype(l.dtype())?)?.mean_all(),
            ..OURS
        }
    }};
}

fn flip(l: Made) -> Made {
    l?.neg()
}

fn scores(q: &Tensor, p: &Tensor, sigma: &[f32], weight: &[f32]) -> Made {
    let factor: Vec<f32> = sigma.iter().zip(weight).map(|(s, w)| w / (s * s)).collect();
    let mut shape = vec![1; q.rank()];
    shape[0] = factor.len();
    (q - p)?.broadcast_mul(&tensor(&factor, shape))
}

#[test]
fn wrong_equations_are_rejected() {
    let mutants: Vec<(&str, Equations, &[&str])> = vec![
        (
            "DiKL flipped",
            with_phi!(|d, l| if d == DiKl { flip(d.phi(l)) } else { d.phi(l) }),
            &["split", "sign", "divergence", "kl", "descent", "analytic", "score", "rate"],
        ),
        (
            "DiJS flipped",
            with_phi!(|d, l| if d == DiJs { flip(d.phi(l)) } else { d.phi(l) }),
            &["split", "sign", "divergence", "descent"],
        ),
        (
            "DiRM flipped",
            with_phi!(|d, l| if d == DiRm { flip(d.phi(l)) } else { d.phi(l) }),
            &["split", "sign", "divergence", "descent"],
        ),
        ("c for 1 - c", with_phi!(|d, l| flip(d.phi(&l.neg()?))), &["split", "descent", "divergence"]),
        (
            "DiJS and DiRM exchanged",
            with_phi!(|d, l| match d {
                DiJs => DiRm,
                DiRm => DiJs,
                other => other,
            }
            .phi(l)),
            &["split", "divergence", "descent"],
        ),
        (
            "DiJS with a frozen softplus",
            with_phi!(|d, l| d.phi(&if d == DiJs { l.detach() } else { l.clone() })),
            &["split", "sign", "slope", "descent"],
        ),
        (
            "loss without weight",
            Equations { loss: |d, l, _| d.phi(l)?.mean_all(), ..OURS },
            &["mean", "descent", "analytic", "score"],
        ),
        (
            "loss summed",
            Equations { loss: |d, l, w| equations::generator_loss(d, l, w)? * w.len() as f64, ..OURS },
            &["mean", "descent", "analytic", "score"],
        ),
        (
            "labels exchanged",
            Equations { class_ratio: |r, f| equations::class_ratio(f, r), ..OURS },
            &["optimum"],
        ),
        (
            "classes pooled",
            Equations {
                class_ratio: |r, f| {
                    let x = Tensor::cat(&[&r.neg()?, f], 0)?;
                    equations::softplus(&x)?.mean_all()? * 2.0
                },
                ..OURS
            },
            &["optimum"],
        ),
        (
            "generator's half forgotten",
            Equations { class_ratio: |r, _| equations::softplus(&r.neg()?)?.mean_all(), ..OURS },
            &["optimum"],
        ),
        (
            "generator's half not trained",
            Equations { class_ratio: |r, f| equations::class_ratio(r, &f.detach()), ..OURS },
            &["optimum", "slope"],
        ),
        ("softplus overflows", Equations { softplus: |x| (x.exp()? + 1.0)?.log(), ..OURS }, &["finite"]),
        (
            "log sigmoid",
            Equations { softplus: |x| ((x.exp()? + 1.0)?.recip()?.log()?).neg(), ..OURS },
            &["finite"],
        ),
        (
            "no slope at zero",
            Equations {
                softplus: |x| {
                    let size = x.sqr()?.sqrt()?;
                    ((x + &size)? * 0.5)? + (size.neg()?.exp()? + 1.0)?.log()?
                },
                ..OURS
            },
            &["finite", "softplus"],
        ),
        ("softplus is relu", Equations { softplus: |x| x.relu(), ..OURS }, &["softplus"]),
        (
            "vsd attached",
            Equations {
                vsd: |x, q, p, s, w| (scores(q, p, s, w)? * x)?.sum_all()? / x.dim(0)? as f64,
                ..OURS
            },
            &["score", "tangent"],
        ),
        (
            "vsd uphill",
            Equations { vsd: |x, q, p, s, w| equations::vsd(x, p, q, s, w), ..OURS },
            &["analytic", "score", "rate"],
        ),
        (
            "vsd summed",
            Equations { vsd: |x, q, p, s, w| equations::vsd(x, q, p, s, w)? * x.dim(0)? as f64, ..OURS },
            &["analytic", "score"],
        ),
        (
            "vsd of denoisers",
            Equations {
                vsd: |x, q, p, s, w| equations::vsd(x, q, p, &s.iter().map(|_| 1.0).collect::<Vec<_>>(), w),
                ..OURS
            },
            &["analytic", "score"],
        ),
        (
            "vsd of another image",
            Equations {
                vsd: |x, q, p, s, w| equations::vsd(x, q, p, &s.iter().rev().copied().collect::<Vec<_>>(), w),
                ..OURS
            },
            &["analytic", "score"],
        ),
        (
            "dsm weight squared",
            Equations {
                dsm: |d, x, s| {
                    let weight: Vec<f32> = s.iter().map(|s| (s * s + 0.25) / (0.25 * s * s)).collect();
                    replicate::network::scale_images(&(d - x)?, &weight)?.sqr()?.mean_all()
                },
                ..OURS
            },
            &["dsm"],
        ),
        ("dsm unweighted", Equations { dsm: |d, x, _| (d - x)?.sqr()?.mean_all(), ..OURS }, &["dsm"]),
        (
            "dsm absolute",
            Equations { dsm: |d, x, _| (d - x)?.abs()?.mean_all(), ..OURS },
            &["dsm", "posterior"],
        ),
        (
            "dsm of the sum",
            Equations { dsm: |d, x, s| equations::dsm(d, &x.neg()?, s), ..OURS },
            &["dsm", "posterior"],
        ),
        (
            "diffuse with variance",
            Equations {
                diffuse: |x, s, e| equations::diffuse(x, &s.iter().map(|s| s * s).collect::<Vec<_>>(), e),
                ..OURS
            },
            &["moments"],
        ),
        (
            "diffuse keeps the variance",
            Equations {
                diffuse: |x, s, e| {
                    let keep: Vec<f32> = s.iter().map(|s| 1.0 / (1.0 + s * s).sqrt()).collect();
                    replicate::network::scale_images(&equations::diffuse(x, s, e)?, &keep)
                },
                ..OURS
            },
            &["moments", "analytic"],
        ),
    ];
    let mut wrong: Vec<String> = vec![];
    for (name, property) in PROPERTIES {
        if let Err(e) = property(&OURS) {
            wrong.push(format!("{name} rejects the library: {e}"));
        }
        if !mutants.iter().any(|m| m.2.contains(&name)) {
            wrong.push(format!("nothing fails {name}"));
        }
    }
    for (mutant, eq, by) in &mutants {
        for name in *by {
            let (_, property) = PROPERTIES.iter().find(|p| p.0 == *name).expect("a property");
            match property(eq) {
                Ok(()) => wrong.push(format!("{name} accepts {mutant}")),
                Err(e) if e.is::<candle_core::Error>() => wrong.push(format!("{mutant} does not run: {e}")),
                Err(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
