//! The metrics against the reference implementations, against closed forms, and
//! against the mistakes that are on record for other implementations: wrong
//! normalisation (N), wrong orientation, roots of singular matrices, results
//! that depend on batches, order or threads.

mod common;

use common::{Fixture, fd_from_samples, moments};
use proptest::prelude::*;
use rayon::prelude::*;
use replicate::measure::metrics::Features;
use replicate::measure::metrics::frechet::{Moments, frechet_distance};
use replicate::measure::metrics::inception_score::inception_score;
use replicate::measure::metrics::kid::{kid, mmd2_poly3};
use replicate::measure::metrics::modes::{Collapse, collapse, modes};
use replicate::measure::metrics::precision_recall::precision_recall;
use replicate::rng::Stream;

fn fd(a: &Features, b: &Features) -> f64 {
    frechet_distance(&moments(a), &moments(b)).unwrap()
}

fn head(features: &Features, n: usize) -> Features {
    Features::new(features.dim, features.rows[..n * features.dim].to_vec())
}

fn normal(name: &str, n: usize, dim: usize) -> Features {
    Features::new(dim, Stream::new("tests/metrics", name).normals(0, n * dim))
}

#[track_caller]
fn assert_close(found: f64, expected: f64, tolerance: f64) {
    // Written so that NaN fails.
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} within {tolerance}");
}

fn trace(features: &Features) -> f64 {
    moments(features).covariance().iter().step_by(features.dim + 1).sum()
}

/// The size of the terms that cancel in a Fréchet distance, hence the scale of
/// its rounding.
fn traces(a: &Features, b: &Features) -> f64 {
    trace(a) + trace(b)
}

// --- Parity with SciPy and torch-fidelity ------------------------------------

fn parity(case: &str) {
    let fixture = Fixture::open("metrics.npz");
    let features = |name: &str| {
        let name = format!("{case}/{name}");
        Features::new(fixture.get(&name).dims()[1], fixture.f32(&name))
    };
    let scalars = |name: &str| fixture.f64(&format!("{case}/{name}"));
    let (generated, reference) = (features("generated"), features("reference"));

    let (found, expected) = (fd(&generated, &reference), scalars("fid_sqrtm")[0]);
    let (trace_a, trace_b) = (trace(&generated), trace(&reference));
    let tolerance = if generated.len().min(reference.len()) > generated.dim {
        // A distance that is zero has no relative error: there the scale is that
        // of the traces, which cancel.
        (1e-8 * expected).max(1e-12 * (trace_a + trace_b))
    } else {
        // Here it is the reference that is off. It takes roots of eigenvalues that
        // should be zero and are rounding errors of S_a S_b, one for every missing
        // dimension. In 60 digits the value for the repository's features is
        // 51.62346832775796850, SciPy's 51.62346763812143.
        assert_close(found, fd_from_samples(&generated, &reference), 1e-12 * expected);
        2.0 * generated.dim as f64 * (f64::EPSILON * trace_a * trace_b).sqrt()
    };
    assert_close(found, expected, tolerance);
    assert_close(found, scalars("fid_eig")[0], tolerance);

    // The reference computes the kernel and the averages below in float32.
    let mmd2 = mmd2_poly3(&head(&generated, 40), &head(&reference, 40));
    assert_close(mmd2, scalars("mmd2_poly3_first40")[0], 1e-6);
    let (precision, recall) = precision_recall(&generated, &reference, 3);
    assert_close(precision, scalars("precision_k3")[0], 1e-6);
    assert_close(recall, scalars("recall_k3")[0], 1e-6);

    let logits = Features::new(generated.dim, generated.rows.iter().map(|v| 4.0 * v).collect());
    let (mean, sd) = inception_score(&logits, 10);
    let expected = scalars("is_10splits_unshuffled_of_4x_generated");
    assert_close(mean, expected[0], 1e-10 * expected[0]);
    assert_close(sd, expected[1], 1e-10 * expected[0]);
}

#[test]
fn well_conditioned_features_score_as_in_the_reference_implementations() {
    parity("well");
}

#[test]
fn fewer_samples_than_dimensions_score_as_in_the_reference_implementations() {
    parity("singular");
}

#[test]
fn identical_sets_score_as_in_the_reference_implementations() {
    parity("identical");
}

// --- Moments -----------------------------------------------------------------

#[test]
fn moments_of_three_samples_by_hand() {
    let m = moments(&Features::new(2, vec![0.0, 0.0, 3.0, 0.0, 0.0, 6.0]));
    assert_eq!(m.count(), 3);
    assert_eq!(m.mean(), [1.0, 2.0]);
    // Deviations (-1, -2), (2, -2), (-1, 4), over N - 1 = 2.
    assert_eq!(m.covariance(), [3.0, -3.0, -3.0, 12.0]);
}

#[test]
fn chunks_do_not_change_a_bit() {
    let features = normal("chunks", 301, 24);
    let whole = moments(&features);
    for size in [1, 3, 64, 200] {
        let mut chunked = Moments::new(24);
        for chunk in features.rows.chunks(size * 24) {
            chunked.push(&Features::new(24, chunk.to_vec()));
        }
        assert_eq!(chunked.count(), 301);
        assert_eq!(chunked.mean(), whole.mean());
        assert_eq!(chunked.covariance(), whole.covariance(), "chunks of {size}");
    }
}

#[test]
fn the_order_of_samples_only_rounds() {
    let features = normal("order", 301, 24);
    let reversed: Vec<f32> = features.rows.chunks(24).rev().flatten().copied().collect();
    let (a, b) = (moments(&features).covariance(), moments(&Features::new(24, reversed)).covariance());
    a.iter().zip(&b).for_each(|(a, b)| assert_close(*a, *b, 1e-14));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (generated, reference) = (normal("threads a", 700, 40), normal("threads b", 600, 40));
    let all = || {
        let (precision, recall) = precision_recall(&generated, &reference, 3);
        let (kid, kid_sd) = kid(&generated, &reference, 3, 200, &Stream::new("cell", "kid"));
        let (is, is_sd) = inception_score(&generated, 10);
        let mut values =
            vec![fd(&generated, &reference), mmd2_poly3(&generated, &reference), precision, recall];
        values.extend([kid, kid_sd, is, is_sd]);
        values.extend(moments(&generated).covariance());
        values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all);
    assert_eq!(on(1), on(2));
}

// --- Fréchet distance --------------------------------------------------------

/// 2 dim samples mean_j ± spread_j along each axis: exact mean, and a diagonal
/// covariance of 2 spread_j^2 / (2 dim - 1).
fn cross(mean: &[i32], spread: &[i32]) -> Features {
    let dim = mean.len();
    let mut rows = Vec::new();
    for j in 0..dim {
        for sign in [1, -1] {
            rows.extend((0..dim).map(|i| (mean[i] + if i == j { sign * spread[i] } else { 0 }) as f32));
        }
    }
    Features::new(dim, rows)
}

/// Rotates the planes (0, 1), (1, 2), … by the angle of the triangle 3-4-5 and
/// scales by 5 each time, which is exact on integers: distances grow by
/// the square of the factor that is returned.
fn rotate(features: &Features) -> (Features, f64) {
    let mut rotated = features.clone();
    for row in rotated.rows.chunks_exact_mut(features.dim) {
        for j in 1..features.dim {
            let (x, y) = (row[j - 1], row[j]);
            row.iter_mut().for_each(|v| *v *= 5.0);
            (row[j - 1], row[j]) = (3.0 * x - 4.0 * y, 4.0 * x + 3.0 * y);
            assert!(row.iter().all(|v| v.abs() < 16_777_216.0), "no longer exact in float32");
        }
    }
    (rotated, 5f64.powi(features.dim as i32 - 1))
}

fn integer_features(dim: usize) -> impl Strategy<Value = Features> {
    prop::collection::vec(-20i32..=20, 2 * dim..=24 * dim).prop_map(move |values| {
        let whole = values.len() / dim * dim;
        Features::new(dim, values[..whole].iter().map(|&v| v as f32).collect())
    })
}

fn integer_pair() -> impl Strategy<Value = (Features, Features)> {
    (1usize..=6).prop_flat_map(|dim| (integer_features(dim), integer_features(dim)))
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn distance_to_itself_is_zero((a, _) in integer_pair()) {
        let distance = fd(&a, &a);
        prop_assert!((0.0..=1e-12 * (1.0 + traces(&a, &a))).contains(&distance), "{distance}");
    }

    #[test]
    fn distance_is_symmetric_and_not_negative((a, b) in integer_pair()) {
        let (ab, ba) = (fd(&a, &b), fd(&b, &a));
        prop_assert!(ab >= 0.0 && ba >= 0.0);
        prop_assert!((ab - ba).abs() <= 1e-11 * (1.0 + ab + traces(&a, &b)), "{ab} {ba}");
    }

    #[test]
    fn rotating_both_sets_keeps_the_distance((a, b) in integer_pair()) {
        let ((ra, factor), (rb, _)) = (rotate(&a), rotate(&b));
        let (plain, rotated) = (fd(&a, &b), fd(&ra, &rb) / (factor * factor));
        prop_assert!((plain - rotated).abs() <= 1e-10 * (1.0 + plain + traces(&a, &b)), "{plain} {rotated}");
    }

    /// Spreads of zero are drawn often, so that most covariances are singular,
    /// and the sets then span different subspaces.
    #[test]
    fn distance_of_diagonal_gaussians_is_the_closed_form(
        axes in prop::collection::vec((-9i32..=9, -9i32..=9, 0i32..=3, 0i32..=3), 1..=6)
    ) {
        let column = |f: fn(&(i32, i32, i32, i32)) -> i32| axes.iter().map(f).collect::<Vec<_>>();
        let (a, b) = (cross(&column(|t| t.0), &column(|t| t.2)), cross(&column(|t| t.1), &column(|t| t.3)));
        let variance = 2.0 / (2.0 * axes.len() as f64 - 1.0);
        let expected: f64 = axes
            .iter()
            .map(|&(m, n, s, t)| (m - n).pow(2) as f64 + variance * (s - t).pow(2) as f64)
            .sum();
        prop_assert!((fd(&a, &b) - expected).abs() <= 1e-11 * (1.0 + expected), "{} {expected}", fd(&a, &b));
        let ((ra, factor), (rb, _)) = (rotate(&a), rotate(&b));
        let rotated = fd(&ra, &rb) / (factor * factor);
        prop_assert!((rotated - expected).abs() <= 1e-10 * (1.0 + expected), "{rotated} {expected}");
    }

    /// tr (A B)^(1/2) = (tr A B + 2 (det A det B)^(1/2))^(1/2) for 2x2 matrices,
    /// which need not commute.
    #[test]
    fn distance_in_two_dimensions_is_the_closed_form(a in integer_features(2), b in integer_features(2)) {
        let two_pass = |f: &Features| {
            let n = f.len() as f64;
            let mean = [0, 1].map(|j| f.rows.iter().skip(j).step_by(2).map(|&v| v as f64).sum::<f64>() / n);
            let entry = |i: usize, j: usize| {
                let terms = f.rows.chunks(2).map(|r| (r[i] as f64 - mean[i]) * (r[j] as f64 - mean[j]));
                terms.sum::<f64>() / (n - 1.0)
            };
            (mean, [entry(0, 0), entry(0, 1), entry(1, 1)])
        };
        let ((m, [a00, a01, a11]), (n, [b00, b01, b11])) = (two_pass(&a), two_pass(&b));
        let shift = (m[0] - n[0]).powi(2) + (m[1] - n[1]).powi(2);
        let product = a00 * b00 + 2.0 * a01 * b01 + a11 * b11;
        let determinants = (a00 * a11 - a01 * a01).max(0.0) * (b00 * b11 - b01 * b01).max(0.0);
        let root = (product + 2.0 * determinants.sqrt()).max(0.0).sqrt();
        let (found, expected) = (fd(&a, &b), shift + a00 + a11 + b00 + b11 - 2.0 * root);
        // The determinants lose half of the digits where they are nearly zero.
        prop_assert!((found - expected).abs() <= 1e-5 * (1.0 + shift + traces(&a, &b)), "{found} {expected}");
    }
}

/// Features whose standard deviations fall as 1/k^fall.
fn falling(name: &str, n: usize, dim: usize, fall: f32) -> Features {
    let mut features = normal(name, n, dim);
    let scaled = |row: &mut [f32]| (1..).zip(row).for_each(|(k, v)| *v *= (k as f32).powf(-fall));
    features.rows.chunks_mut(dim).for_each(scaled);
    features
}

#[test]
fn large_features_have_the_distance_of_their_samples_on_any_threads() {
    for (n, m, fall) in [(700, 900, 0.0), (700, 600, 0.0), (540, 601, 0.5), (900, 700, 1.0)] {
        let (a, b) = (falling("large a", n, 640, fall), falling("large b", m, 640, fall));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| fd(&a, &b))
        };
        let (found, expected) = (on(1), fd_from_samples(&a, &b));
        assert_close(found, expected, 1e-12 * traces(&a, &b));
        assert_eq!(found.to_bits(), on(3).to_bits());
    }
}

#[test]
fn a_generator_that_repeats_one_image_has_a_distance() {
    let reference = normal("reference", 200, 48);
    let image = normal("image", 1, 48);
    let constant = Features::new(48, image.rows.repeat(100));
    let mean = moments(&reference).mean();
    let shift: f64 = mean.iter().zip(&image.rows).map(|(m, v)| (m - *v as f64).powi(2)).sum();
    let expected = shift + traces(&reference, &reference) / 2.0;
    assert_close(fd(&constant, &reference), expected, 1e-12 * expected);
    assert_close(fd(&constant, &constant), 0.0, 1e-12);
}

#[test]
fn what_has_no_distance_says_so() {
    let good = normal("good", 10, 3);
    let text = |a: &Moments, b: &Moments| frechet_distance(a, b).unwrap_err().to_string();

    let single = moments(&head(&good, 1));
    assert!(text(&single, &moments(&good)).contains("at least 2 samples in each set; the first set has 1"));
    assert!(text(&moments(&good), &Moments::new(3)).contains("the second set has 0"));

    for bad in [f32::NAN, f32::INFINITY] {
        let mut broken = moments(&good);
        broken.push(&Features::new(3, vec![0.0, 0.0, 0.0, 0.0, bad, 0.0]));
        broken.push(&good);
        let text = text(&moments(&good), &broken);
        assert!(text.contains("second set, dimension 1 of sample 11 is NaN or infinite"), "{text}");
    }

    let text = text(&moments(&good), &moments(&normal("wide", 10, 4)));
    assert!(text.contains("dimensions 3 and 4"), "{text}");
}

// --- Inception Score ---------------------------------------------------------

/// One row per entry of `classes`: that class with certainty.
fn certain(classes: &[usize], n: usize) -> Features {
    let rows = classes.iter().flat_map(|&c| (0..n).map(move |i| if i == c { 1e4 } else { -1e4 })).collect();
    Features::new(n, rows)
}

#[test]
fn inception_score_by_hand() {
    let (mean, sd) = inception_score(&Features::new(5, vec![3.0; 40 * 5]), 4);
    assert_close(mean, 1.0, 1e-12);
    assert_close(sd, 0.0, 1e-12);

    let (mean, sd) = inception_score(&certain(&[0, 1, 2, 0, 1, 2], 3), 2);
    assert_close(mean, 3.0, 1e-12);
    assert_close(sd, 0.0, 1e-12);

    // Contiguous parts: {0, 0} scores 1 and {0, 1} scores 2; the deviation is the
    // population's.
    let (mean, sd) = inception_score(&certain(&[0, 0, 0, 1], 2), 2);
    assert_close(mean, 1.5, 1e-12);
    assert_close(sd, 0.5, 1e-12);

    // An entropy of ln 2 in the marginal, of 3/4 ln 4/3 + 1/4 ln 4 in each image.
    let (mean, _) = inception_score(&Features::new(2, vec![3f32.ln(), 0.0, 0.0, 3f32.ln()]), 1);
    let conditional = 0.75 * (4f64 / 3.0).ln() + 0.25 * 4f64.ln();
    assert_close(mean, 2.0 * (-conditional).exp(), 1e-7);
}

#[test]
fn a_logit_that_is_nan_is_not_scored() {
    let mut logits = normal("logits", 20, 4);
    logits.rows[5] = f32::NAN;
    assert!(inception_score(&logits, 2).0.is_nan());
}

// --- KID ---------------------------------------------------------------------

#[test]
fn mmd_by_hand() {
    // k(x, y) = (xy + 1)^3: 1 within each set, (1 + 1 + 1 + 27)/4 between them.
    let (a, b) = (Features::new(1, vec![0.0, 1.0]), Features::new(1, vec![0.0, 2.0]));
    assert_close(mmd2_poly3(&a, &b), 1.0 + 1.0 - 2.0 * 7.5, 1e-14);
    // Sets of different sizes: within {1, 1, 3}, k(1, 1) = 8 and k(1, 3) = 64
    // twice; between, k(0, .) = 1 three times and k(1, .) = 8, 8, 64.
    let c = Features::new(1, vec![1.0, 1.0, 3.0]);
    let expected = 1.0 + (8.0 + 64.0 + 64.0) / 3.0 - 2.0 * (3.0 + 8.0 + 8.0 + 64.0) / 6.0;
    assert_close(mmd2_poly3(&a, &c), expected, 1e-12);
}

#[test]
fn kid_subsets_are_drawn_without_replacement() {
    let (a, b) = (normal("kid a", 150, 8), normal("kid b", 150, 8));
    let (mean, sd) = kid(&a, &b, 5, 150, &Stream::new("cell", "kid"));
    assert_close(mean, mmd2_poly3(&a, &b), 1e-13);
    assert_close(sd, 0.0, 1e-13);
}

#[test]
fn kid_subsets_are_drawn_uniformly() {
    // Against zeros, the MMD^2 of the pair (x, y) is (xy + 1)^3 - 1: 342 for
    // (3, 2), 63 for (3, 1), 26 for (2, 1); the mean of 5000 draws is good to 2.
    let (a, b) = (Features::new(1, vec![3.0, 2.0, 1.0]), Features::new(1, vec![0.0; 2]));
    let (mean, _) = kid(&a, &b, 5000, 2, &Stream::new("cell", "kid"));
    assert_close(mean, (342.0 + 63.0 + 26.0) / 3.0, 8.0);
}

#[test]
fn kid_is_keyed_and_sees_a_shift() {
    let (a, b) = (normal("kid a", 600, 8), normal("kid b", 500, 8));
    let shifted = Features::new(8, b.rows.iter().map(|v| v + 0.5).collect());
    let stream = Stream::new("cell", "kid");
    let (same, sd) = kid(&a, &b, 20, 100, &stream);
    assert_eq!(kid(&a, &b, 20, 100, &stream), (same, sd));
    assert_ne!(kid(&a, &b, 20, 100, &Stream::new("another", "kid")), (same, sd));
    assert!(sd > 0.0, "the subsets are all the same");
    assert!(same.abs() < 4.0 * sd, "{same} {sd}");
    let (moved, sd) = kid(&a, &shifted, 20, 100, &stream);
    assert!(moved > 4.0 * sd, "{moved} {sd}");
}

// --- Precision and recall ----------------------------------------------------

#[test]
fn precision_and_recall_by_hand() {
    // Radii 1, 1, 1, 8 and 4, 4, 0, 0; closed balls: -1 and 3 are on the edge.
    let reference = Features::new(1, vec![0.0, 1.0, 2.0, 10.0]);
    let generated = Features::new(1, vec![-1.0, 3.0, 100.0, 100.0]);
    assert_eq!(precision_recall(&generated, &reference, 1), (0.5, 0.75));
    // Radii 2, 1, 2, 9 and 101, 97, 97, 97 with the second neighbour.
    assert_eq!(precision_recall(&generated, &reference, 2), (0.5, 1.0));
}

#[test]
fn a_generator_that_repeats_one_reference_image_covers_exactly_that_one() {
    // The last reference image is alone in its block, for which the linear algebra
    // takes another way, with another rounding.
    for draw in 0..10 {
        let reference = normal(&format!("prd {draw}"), 129, 193);
        for image in [0, 128] {
            let generated = Features::new(193, reference.row(image).repeat(128));
            let found = precision_recall(&generated, &reference, 3);
            assert_eq!(found, (1.0, 1.0 / 129.0), "draw {draw}, image {image}");
        }
    }
}

/// Precision by all distances.
fn covered(generated: &Features, reference: &Features, k: usize) -> f64 {
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64) * (*a as f64 - *b as f64)).sum()
    };
    let row = |i| reference.row(i);
    let indices = || (0..reference.len()).into_par_iter();
    let radii: Vec<f64> = indices()
        .map(|i| {
            let mut all: Vec<f64> = (0..reference.len()).map(|j| distance(row(i), row(j))).collect();
            *all.select_nth_unstable_by(k, f64::total_cmp).1
        })
        .collect();
    let inside = |i: &usize| (0..radii.len()).any(|j| distance(generated.row(*i), row(j)) <= radii[j]);
    (0..generated.len()).into_par_iter().filter(inside).count() as f64 / generated.len() as f64
}

/// Bounds of distances leave out no pair: neither in few dimensions nor in many, neither where the
/// first bound tells points apart nor where it does not.
#[test]
fn precision_and_recall_are_those_of_all_distances() {
    let cases = [(700, 800, 24, 0.0), (1500, 1600, 520, 1.0), (1600, 1500, 520, 0.0)];
    for (n, m, dim, fall) in cases {
        let (mut a, mut b) = (falling("all a", n, dim, fall), falling("all b", m, dim, fall));
        // Repeats, and points far from the others and from the origin.
        (0..20).for_each(|i| b.rows.copy_within(i * dim..(i + 1) * dim, (i + 20) * dim));
        a.rows[..20 * dim].copy_from_slice(&b.rows[..20 * dim]);
        a.rows[30 * dim..60 * dim].iter_mut().chain(&mut b.rows[45 * dim..70 * dim]).for_each(|v| *v += 30.0);
        let expected = (covered(&a, &b, 3), covered(&b, &a, 3));
        assert_eq!(precision_recall(&a, &b, 3), expected, "{n} and {m} of {dim}, {fall}");
        // Integers have many equal distances.
        for set in [&mut a, &mut b] {
            set.rows.iter_mut().for_each(|v| *v = (4.0 * *v).round());
        }
        let expected = (covered(&a, &b, 5), covered(&b, &a, 5));
        assert_eq!(precision_recall(&a, &b, 5), expected, "integers, {n} and {m} of {dim}, {fall}");
    }
}

#[test]
fn features_that_are_not_finite_have_no_precision_or_recall() {
    let reference = normal("prd", 20, 2);
    let mut generated = reference.clone();
    generated.rows[7] = f32::INFINITY;
    let (precision, recall) = precision_recall(&generated, &reference, 3);
    assert!(precision.is_nan() && recall.is_nan());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn precision_and_recall_are_shares_and_swap_with_the_sets((a, b) in integer_pair(), k in 1usize..=4) {
        prop_assume!(a.len() > k && b.len() > k);
        let (precision, recall) = precision_recall(&a, &b, k);
        prop_assert!((0.0..=1.0).contains(&precision) && (0.0..=1.0).contains(&recall));
        prop_assert_eq!(precision_recall(&b, &a, k), (recall, precision));
        prop_assert_eq!(precision_recall(&a, &a, k), (1.0, 1.0));
    }
}

// --- Mixtures: modes, recall, collapse ---------------------------------------

const CLASSES: usize = 10;
const DIM: usize = 16;

/// n samples of Gaussians around the class centres 6 e_c in DIM dimensions,
/// taken in turn from `kept`; `spread` is their standard deviation.
fn mixture(name: &str, n: usize, kept: &[usize], spread: f32) -> Features {
    let mut samples = normal(name, n, DIM);
    for (i, row) in samples.rows.chunks_exact_mut(DIM).enumerate() {
        row.iter_mut().for_each(|v| *v *= spread);
        row[kept[i % kept.len()]] += 6.0;
    }
    samples
}

/// The logits of the ideal classifier, with as many classes again that are no
/// target (their centres are at -6 e_c).
fn classify(samples: &Features) -> Features {
    let logits = samples.rows.chunks_exact(DIM).flat_map(|row| {
        let sides = [6.0, -6.0].map(|side| row[..CLASSES].iter().map(move |v| v * side));
        sides.into_iter().flatten().collect::<Vec<_>>()
    });
    Features::new(2 * CLASSES, logits.collect())
}

const ALL: [usize; CLASSES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// The verdict on samples, with the criterion's k = 5 and equal numbers.
fn verdict(generated: &Features) -> Collapse {
    let reference = mixture("reference", generated.len(), &ALL, 1.0);
    let (_, recall) = precision_recall(generated, &reference, 5);
    collapse(recall, modes(&classify(generated), generated, CLASSES).effective_classes, CLASSES)
}

#[test]
fn recall_falls_with_every_mode_that_is_dropped_and_precision_does_not() {
    let reference = mixture("reference", 600, &ALL, 1.0);
    let mut previous = f64::INFINITY;
    for kept in [10, 7, 4, 1] {
        let (precision, recall) =
            precision_recall(&mixture("generated", 600, &ALL[..kept], 1.0), &reference, 5);
        let share = kept as f64 / 10.0;
        assert!(precision > 0.75, "{kept} modes: precision {precision}");
        assert!(
            recall < previous && recall <= share && recall > 0.75 * share,
            "{kept} modes: recall {recall}"
        );
        previous = recall;
    }
}

#[test]
fn noise_costs_precision() {
    let reference = mixture("reference", 600, &ALL, 1.0);
    let (precision, recall) = precision_recall(&mixture("generated", 600, &ALL, 1.6), &reference, 5);
    assert!(precision < 0.25 && recall > 0.75, "precision {precision}, recall {recall}");
}

#[test]
fn modes_by_hand() {
    // Two samples of class 0, one each of 1 and 4; the targets are 0, 1, 2.
    let logits = certain(&[0, 4, 0, 1], 5);
    let features = Features::new(2, vec![0.0, 0.0, 1.0, 1.0, 3.0, 4.0, 1.0, 2.0]);
    let found = modes(&logits, &features, 3);
    assert_close(found.effective_classes, 8f64.sqrt(), 1e-12);
    assert_eq!(found.covered, 2);
    // Pairs (0, 2) and (1, 3).
    assert_close(found.diversity, (5.0 + 1.0) / 2.0, 1e-12);
}

#[test]
fn a_mode_counts_from_a_tenth_of_its_share() {
    for (samples, covered) in [(9, 1), (10, 2)] {
        let classes: Vec<usize> = (0..1000).map(|i| if i < samples { 1 } else { 0 }).collect();
        let logits = certain(&classes, 12);
        assert_eq!(modes(&logits, &normal("features", 1000, 2), 10).covered, covered);
    }
}

#[test]
fn diversity_is_that_of_independent_pairs() {
    // The distance of two independent normal vectors in 3 dimensions has the
    // mean 4 / sqrt(pi), and the standard deviation .95 (here / sqrt(2000)).
    let features = normal("diversity", 4000, 3);
    let found = modes(&classify(&mixture("generated", 4000, &ALL, 1.0)), &features, CLASSES);
    assert_close(found.diversity, 4.0 / std::f64::consts::PI.sqrt(), 0.1);
    let repeated = Features::new(3, features.row(0).repeat(4000));
    assert_eq!(modes(&certain(&[0; 4000], 10), &repeated, 10).diversity, 0.0);
}

#[test]
fn a_logit_that_is_nan_is_no_class() {
    let mut logits = certain(&[0, 1, 2, 3], 4);
    logits.rows[0] = f32::NAN;
    let found = modes(&logits, &normal("features", 4, 2), 4);
    assert!(found.effective_classes.is_nan());
    assert_eq!(found.covered, 0);
}

#[test]
fn collapse_thresholds_scale_with_the_number_of_classes() {
    for classes in [10usize, 100] {
        let verdict = |recall, share: f64| collapse(recall, share * classes as f64, classes);
        assert_eq!(verdict(0.099, 0.499), Collapse::Collapsed);
        assert_eq!(verdict(0.101, 0.499), Collapse::Degraded);
        assert_eq!(verdict(0.099, 0.501), Collapse::Degraded);
        assert_eq!(verdict(0.499, 0.99), Collapse::Degraded);
        assert_eq!(verdict(0.99, 0.849), Collapse::Degraded);
        assert_eq!(verdict(0.501, 0.851), Collapse::Healthy);
    }
}

#[test]
fn dropping_modes_crosses_the_criterion_and_noise_does_not() {
    let n = 1000;
    assert_eq!(verdict(&mixture("generated", n, &ALL, 1.0)), Collapse::Healthy);
    assert_eq!(verdict(&mixture("generated", n, &[3, 7], 1.0)), Collapse::Degraded);
    assert_eq!(verdict(&mixture("generated", n, &[3], 0.5)), Collapse::Collapsed);
    let one = mixture("generated", 1, &[3], 1.0);
    assert_eq!(verdict(&Features::new(DIM, one.rows.repeat(n))), Collapse::Collapsed);

    // Noise, and blur: variation within a class is lost, the classes are not.
    assert_eq!(verdict(&mixture("generated", n, &ALL, 1.2)), Collapse::Healthy);
    assert_eq!(verdict(&mixture("generated", n, &ALL, 0.3)), Collapse::Degraded);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn dropping_modes_crosses_the_criterion_at_any_number_of_samples(
        kept in 0..CLASSES,
        spread in 0.1f32..0.6,
        n in 150usize..800,
    ) {
        prop_assert_eq!(verdict(&mixture("generated", n, &[kept], spread)), Collapse::Collapsed);
    }

    #[test]
    fn noise_and_blur_never_cross_it_at_any_number_of_samples(
        kept in proptest::sample::subsequence(ALL.to_vec(), 6..=10),
        spread in 0.1f32..2.0,
        n in 150usize..800,
    ) {
        prop_assert_ne!(verdict(&mixture("generated", n, &kept, spread)), Collapse::Collapsed);
    }

    #[test]
    fn the_number_of_samples_does_not_decide(
        kept in proptest::sample::subsequence(ALL.to_vec(), 1..=10),
        narrow in 0f32..1.0,
    ) {
        // One shrunken mode is collapsed, two or more whole ones are not; what lies
        // between can lie on the line itself, where nothing but the samples decides.
        let spread = if kept.len() == 1 { 0.3 + 0.3 * narrow } else { 0.9 + 0.2 * narrow };
        for n in [200, 500, 1200] {
            let collapsed = verdict(&mixture("generated", n, &kept, spread)) == Collapse::Collapsed;
            prop_assert_eq!(collapsed, kept.len() == 1, "{} samples of {:?}", n, kept);
        }
    }
}
