//! EDM's augmentation: agreement with the reference, and what must hold for any
//! image and any draw.

mod common;

use candle_core::{Device, Tensor};
use common::Fixture;
use proptest::prelude::*;
use replicate::app::selftest::parity;
use replicate::data::glyphs;
use replicate::experiment::{Recipe, Scale};
use replicate::method::equations::{diffuse, dsm};
use replicate::method::one_step::OneStep;
use replicate::method::score_matching::{MICROBATCH, ScoreMatching};
use replicate::method::{Row, TABLE1};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::{Config, Denoiser};
use replicate::rng::Stream;
use replicate::store::sha256_hex;
use replicate::train::augment::{Augmentation, Draw, LABELS, Numbers, apply};
use replicate::train::batch::{Batches, Given};
use replicate::train::{Method, state};
use std::collections::BTreeMap;
use std::f32::consts::PI;

const TOLERANCE: f32 = 1e-4;

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

/// A batch and its labels, as a training step has them.
fn apply_batch(images: &[f32], channels: usize, size: usize, draws: &[Draw]) -> (Vec<f32>, Vec<f32>) {
    let shape = (draws.len(), channels, size, size);
    let images = Tensor::from_slice(images, shape, &Device::Cpu).unwrap();
    let (images, labels) = augmented(&images, draws);
    (images.flatten_all().unwrap().to_vec1().unwrap(), labels.unwrap())
}

/// Images after `draws` and their labels, as a method gets them.
fn augmented(images: &Tensor, draws: &[Draw]) -> (Tensor, Option<Vec<f32>>) {
    let augment = BTreeMap::from([("draws".to_string(), draws.to_vec())]);
    let given = Given { augment, ..Given::default() };
    given.batch(0, draws.len()).augment("draws", images).unwrap()
}

/// The recorded random numbers of every image.
fn recorded(fixture: &Fixture, set: &str, n: usize) -> Vec<Numbers> {
    parity::recorded(&fixture.0, set, n).unwrap()
}

/// EDM pads a batch by what its farthest image needs, we pad every image as far
/// as reflection allows: agreement here is what shows that it makes no difference.
#[test]
fn images_and_labels_agree_with_the_reference() {
    let fixture = Fixture::open("edm-augment.npz");
    let dims = fixture.get("images").dims().to_vec();
    let [n, channels, size, _] = dims[..] else { panic!("{dims:?}") };
    for (set, p) in [("p1.00", 1.0), ("p0.12", 0.12)] {
        let draws: Vec<Draw> =
            recorded(&fixture, set, n).iter().map(|numbers| Augmentation { p }.gate(numbers)).collect();
        let (images, labels) = apply_batch(&fixture.f32("images"), channels, size, &draws);
        let expected = fixture.f32(&format!("{set}/output"));
        let len = channels * size * size;
        for (i, (ours, theirs)) in images.chunks(len).zip(expected.chunks(len)).enumerate() {
            let difference = largest_difference(ours, theirs);
            println!("{set}, image {i}: {difference:e}");
            assert!(difference < TOLERANCE, "{set}, image {i}: {difference}");
        }
        let difference = largest_difference(&labels, &fixture.f32(&format!("{set}/labels")));
        println!("{set}, labels: {difference:e}");
        assert!(difference < 1e-6, "{set}: labels differ by {difference}");
    }
}

#[test]
fn transformations_happen_as_often_as_p_says() {
    const N: usize = 40_000;
    for p in [0.0, 0.12, 1.0] {
        let augmentation = Augmentation { p };
        let mut draws = Stream::new("augment test", "frequencies").at(0);
        let all: Vec<Draw> = (0..N).map(|_| augmentation.draw(&mut draws)).collect();
        let coin = if p > 0.0 { 0.5 } else { 0.0 };
        let stretched: Vec<&Draw> = all.iter().filter(|d| d.aniso != 0.0).collect();
        for (what, of, count, expected) in [
            ("xflip", N, all.iter().filter(|d| d.xflip).count(), coin),
            ("yflip", N, all.iter().filter(|d| d.yflip).count(), p / 2.0),
            ("scale", N, all.iter().filter(|d| d.scale != 0.0).count(), p),
            ("rotate", N, all.iter().filter(|d| d.rotate != 0.0).count(), p),
            ("aniso", N, stretched.len(), p),
            ("aniso_angle", stretched.len(), stretched.iter().filter(|d| d.aniso_angle != 0.0).count(), coin),
            ("translate", N, all.iter().filter(|d| d.translate != [0.0; 2]).count(), p),
        ] {
            // Five standard deviations of a binomial count.
            let spread = 5.0 * (of as f64 * expected * (1.0 - expected)).sqrt();
            let mean = of as f64 * expected;
            assert!((count as f64 - mean).abs() <= spread, "p {p}: {what} {count} of {of}, not {mean:.0}");
        }
    }
}

#[test]
fn draws_have_the_spread_of_their_distributions() {
    const N: usize = 40_000;
    let mut draws = Stream::new("augment test", "moments").at(0);
    let all: Vec<Draw> = (0..N).map(|_| Augmentation { p: 1.0 }.draw(&mut draws)).collect();
    let variance = |value: &dyn Fn(&Draw) -> f32| {
        all.iter().map(|draw| (value(draw) as f64).powi(2)).sum::<f64>() / N as f64
    };
    let third = (PI as f64).powi(2) / 3.0;
    for (what, found, expected) in [
        ("scale", variance(&|d| d.scale), 1.0),
        ("aniso", variance(&|d| d.aniso), 1.0),
        ("right", variance(&|d| d.translate[0]), 1.0),
        ("down", variance(&|d| d.translate[1]), 1.0),
        ("rotate", variance(&|d| d.rotate), third),
        ("aniso_angle", variance(&|d| d.aniso_angle), third / 2.0),
    ] {
        assert!((found / expected - 1.0).abs() < 0.05, "{what}: variance {found}, not {expected}");
    }
    assert!(all.iter().all(|d| (-PI..=PI).contains(&d.rotate)));
}

/// The stream's words belong to the same images whatever p is.
#[test]
fn p_only_chooses_among_the_same_numbers() {
    let stream = Stream::new("augment test", "common numbers");
    let (mut few, mut all) = (stream.at(0), stream.at(0));
    for _ in 0..500 {
        let some = Augmentation { p: 0.3 }.draw(&mut few);
        let every = Augmentation { p: 1.0 }.draw(&mut all);
        assert!(some.scale == 0.0 || some.scale == every.scale);
        assert!(some.translate == [0.0; 2] || some.translate == every.translate);
        assert_eq!(some.xflip, every.xflip);
    }
    assert_eq!(few.next_u32(), all.next_u32());
}

#[test]
fn the_text_names_p() {
    assert_eq!(Augmentation { p: 0.12 }.to_string(), "augmentation(p 0.12)");
}

#[test]
fn a_quarter_turn_is_counter_clockwise() {
    let size = 32;
    let mut image = vec![0.0; size * size];
    // A spot right of the centre.
    for y in 14..18 {
        image[y * size + 24..y * size + 28].fill(1.0);
    }
    let (turned, labels) = apply(&image, 1, size, &Draw { rotate: PI / 2.0, ..Draw::default() });
    let sum = |ys: std::ops::Range<usize>, xs: std::ops::Range<usize>| -> f32 {
        ys.flat_map(|y| xs.clone().map(move |x| y * size + x)).map(|i| turned[i]).sum()
    };
    assert!(sum(4..8, 14..18) > 12.0, "the spot is at the top");
    assert!(sum(14..18, 24..28).abs() < 0.5, "and no longer on the right");
    assert!((labels[3] + 1.0).abs() < 1e-6 && (labels[4] - 1.0).abs() < 1e-6);
}

fn pixels(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-1f32..=1.0, len)
}

fn any_draw() -> impl Strategy<Value = Draw> {
    let flips = (any::<bool>(), any::<bool>());
    let shift = prop::array::uniform2(-6f32..6.0);
    (flips, -6f32..6.0, -PI..PI, -6f32..6.0, -PI..PI, shift).prop_map(
        |((xflip, yflip), scale, rotate, aniso, aniso_angle, translate)| Draw {
            xflip,
            yflip,
            scale,
            rotate,
            aniso,
            aniso_angle,
            translate,
        },
    )
}

/// Any size, with an image of it.
fn any_image() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1usize..4, 1usize..13)
        .prop_flat_map(|(channels, size)| (Just(channels), Just(size), pixels(channels * size * size)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn without_p_nothing_happens_and_the_label_is_zero(
        (channels, size, image) in any_image(), step in any::<u64>()
    ) {
        let draw = Augmentation { p: 0.0 }.draw(&mut Stream::new("augment test", "p 0").at(step));
        let (same, labels) = apply(&image, channels, size, &draw);
        prop_assert_eq!(same, image);
        prop_assert_eq!(labels, [0.0; LABELS]);
    }

    #[test]
    fn flips_mirror_to_the_bit_and_are_labelled(
        (channels, size, image) in any_image(), xflip in any::<bool>(), yflip in any::<bool>()
    ) {
        let (flipped, labels) = apply(&image, channels, size, &Draw { xflip, yflip, ..Draw::default() });
        for c in 0..channels {
            for y in 0..size {
                for x in 0..size {
                    let (x2, y2) = (if xflip { size - 1 - x } else { x }, if yflip { size - 1 - y } else { y });
                    let at = |y: usize, x: usize| (c * size + y) * size + x;
                    prop_assert_eq!(flipped[at(y, x)].to_bits(), image[at(y2, x2)].to_bits());
                }
            }
        }
        prop_assert_eq!(&labels[..2], &[xflip as u8 as f32, yflip as u8 as f32]);
        prop_assert_eq!(&labels[2..], &[0.0; LABELS - 2]);
    }

    /// Flips come first: what follows is done to the mirrored image.
    #[test]
    fn a_flip_is_a_flip_of_what_goes_in((channels, size, image) in any_image(), draw in any_draw()) {
        let mirrored = apply(&image, channels, size, &Draw { xflip: true, ..Draw::default() }).0;
        let (a, _) = apply(&image, channels, size, &Draw { xflip: true, ..draw });
        let (b, _) = apply(&mirrored, channels, size, &Draw { xflip: false, ..draw });
        prop_assert_eq!(a, b);
    }

    /// By whole pixels a translation is a copy, with the image reflected at its edges.
    #[test]
    fn whole_pixels_move_as_they_are(image in pixels(256), right in -12i32..=12, down in -12i32..=12) {
        let size = 16;
        let translate = [right as f32 / 2.0, down as f32 / 2.0];
        let (moved, _) = apply(&image, 1, size, &Draw { translate, ..Draw::default() });
        let inside = |i: i32| match i {
            ..0 => -i,
            0..16 => i,
            _ => 30 - i,
        } as usize;
        for y in 0..16 {
            for x in 0..16 {
                let (ours, expected) =
                    (moved[(y * 16 + x) as usize], image[inside(y - down) * size + inside(x - right)]);
                prop_assert!((ours - expected).abs() < 1e-5, "({}, {}): {} not {}", x, y, ours, expected);
            }
        }
    }

    #[test]
    fn values_stay_finite_and_bounded((channels, size, image) in any_image(), draw in any_draw()) {
        let (out, labels) = apply(&image, channels, size, &draw);
        prop_assert_eq!(out.len(), image.len());
        prop_assert!(out.iter().all(|v| v.abs() < 3.7), "{:?}", out);
        prop_assert!(labels.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn an_image_does_not_depend_on_its_neighbours(
        images in pixels(5 * 3 * 64), draws in prop::collection::vec(any_draw(), 5), pick in 0usize..5
    ) {
        let (batch, labels) = apply_batch(&images, 3, 8, &draws);
        let (alone, label) = apply(&images[pick * 192..][..192], 3, 8, &draws[pick]);
        prop_assert_eq!(&batch[pick * 192..][..192], &alone[..]);
        prop_assert_eq!(&labels[pick * LABELS..][..LABELS], &label[..]);
    }
}

/// The bits of a batch, pinned: what moves one on another platform or number of
/// threads changes every result that is trained with it.
#[test]
fn threads_and_platforms_change_no_bit() {
    let stream = Stream::new("augment test", "threads");
    let images = stream.normals(0, 64 * 3 * 256);
    let mut draws = stream.at(1);
    let draws: Vec<Draw> = (0..64).map(|_| Augmentation { p: 1.0 }.draw(&mut draws)).collect();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (out, labels) = pool.install(|| apply_batch(&images, 3, 16, &draws));
        let bytes: Vec<u8> = out.iter().chain(&labels).flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256_hex(&bytes), "21180159659b15a4bab568f64857d677c3209791c03f387f3b2df10c76a7c4ea");
    }
}

fn small_network() -> Config {
    Config {
        size: 8,
        image_channels: 3,
        model_channels: 8,
        channel_mult: vec![1, 2],
        blocks: 1,
        attention_sizes: vec![4],
        augment_labels: LABELS,
    }
}

/// The layer of the critic, or of the fake score, that sees the labels.
fn labels_layer(method: &mut dyn Method) -> Vec<f32> {
    let state = state(method).unwrap();
    let name = state
        .keys()
        .find(|name| !name.starts_with("generator.") && name.ends_with("weights.model.map_augment.weight"));
    state[name.unwrap()].data.clone()
}

/// The loss of a row's critic (or fake score) step and whether it moved the layer that
/// sees the labels.
fn critic_step(row: &Row, augment: Option<[Vec<Draw>; 2]>) -> (f32, bool) {
    const B: usize = 4;
    let config = small_network();
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "teacher" };
    let (teacher, _) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap();
    let weights = teacher.arrays().unwrap();
    let mini = Recipe::of(Scale::Mini);
    let one_step = OneStep { generator_lr: 1e-3, ..mini.one_step.clone() };
    let recipe = Recipe { network: config, one_step, ..mini };
    let start = [(row.start, weights)];
    let setup = recipe.setup(&Compute::CPU, row, &start, "augmented steps");
    let mut method = (row.method.training.as_ref().unwrap().build)(&setup).unwrap();
    let image = |name: &str| {
        let values = Stream::new("augmented steps", name).normals(0, B * 3 * 8 * 8);
        Tensor::from_vec(values, (B, 3, 8, 8), &Device::Cpu).unwrap()
    };
    let mut given = Given::default();
    for name in [
        "critic.z",
        "critic.index",
        "critic.noise_real",
        "critic.noise_fake",
        "generator.z",
        "generator.noise",
    ] {
        given.tensors.insert(name.into(), image(name));
    }
    for name in ["critic.sigma", "generator.sigma"] {
        let sigma = Tensor::new(&[0.3f32, 0.6, 1.2, 2.4], &Device::Cpu).unwrap();
        given.tensors.insert(name.into(), sigma);
    }
    for (name, draws) in
        ["critic.augment_real", "critic.augment_fake"].into_iter().zip(augment.into_iter().flatten())
    {
        given.augment.insert(name.into(), draws);
    }
    let before = labels_layer(&mut *method);
    let values = method.step(&given.batch(0, B)).unwrap();
    (values[0].to_scalar().unwrap(), before != labels_layer(&mut *method))
}

/// Appendix B's augmentation is "non-leaky" because the critic is told what was done.
#[test]
fn the_critic_sees_augmented_images_and_their_labels() {
    let all = |draw: Draw| Some([vec![draw; 4], vec![draw; 4]]);
    for row in TABLE1.iter().filter(|row| ["dijs", "diff-instruct", "sid"].contains(&row.id)) {
        let (plain, told) = critic_step(row, None);
        assert!(!told, "{}: without augmentation there is no label", row.id);
        let (same, told) = critic_step(row, all(Draw::default()));
        assert!(same == plain && !told, "{}: nothing was done to the images, {plain} and {same}", row.id);
        let mirror = Draw { xflip: true, ..Draw::default() };
        let (mirrored, told) = critic_step(row, all(mirror));
        assert!(mirrored != plain && told, "{}: {plain} and {mirrored}", row.id);
        // The generated images on their own, and the real ones, which only a critic sees.
        let part = |real, fake| critic_step(row, Some([vec![real; 4], vec![fake; 4]]));
        let (fake, told) = part(Draw::default(), mirror);
        assert!(fake != plain && told, "{}: {plain} and {fake}", row.id);
        let (real, told) = part(mirror, Draw::default());
        let critic = row.id == "dijs";
        assert!((real != plain) == critic && told == critic, "{}: {plain} and {real}", row.id);
    }
}

/// A pre-training batch that does not fit is taken in parts: the gradient is the same.
#[test]
fn the_gradients_of_parts_add_up() {
    let config = small_network();
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parts" };
    let (params, model) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&config, vb)).unwrap();
    let image = |name: &str| {
        let values = Stream::new("parts", name).normals(0, 6 * 3 * 8 * 8);
        Tensor::from_vec(values, (6, 3, 8, 8), &Device::Cpu).unwrap()
    };
    let (x, target, sigma) = (image("x"), image("target"), [0.1, 0.2, 0.5, 1.0, 2.0, 4.0]);
    let loss = |first: usize, n: usize| {
        let part = |all: &Tensor| all.narrow(0, first, n).unwrap();
        let denoised = model.forward(&part(&x), &sigma[first..first + n]).unwrap();
        (dsm(&denoised, &part(&target), &sigma[first..first + n]).unwrap() * (n as f64 / 6.0)).unwrap()
    };
    let whole = loss(0, 6).backward().unwrap();
    let mut sum = None;
    for (first, n) in [(0, 4), (4, 2)] {
        sum = Some(params.add_gradients(sum, loss(first, n).backward().unwrap()).unwrap());
    }
    let (sum, mut compared) = (sum.unwrap(), 0);
    for (name, var) in params.iter() {
        let Some(expected) = whole.get(var) else {
            assert!(sum.get(var).is_none(), "{name} has no gradient: there were no labels");
            continue;
        };
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let error = common::relative_error(&values(sum.get(var).unwrap()), &values(expected));
        assert!(error < 1e-5, "{name}: {error}");
        compared += 1;
    }
    assert!(compared > 40, "{compared} parameters");
}

/// The loss of a first step of pre-training, from the streams that it draws from.
#[test]
fn a_pretraining_step_in_parts_has_the_loss_of_its_batch() {
    let mut recipe = Recipe::of(Scale::Smoke);
    recipe.network = small_network();
    recipe.pretraining.augment_p = 0.5;
    let augmentation = recipe.pretraining.augmentation();
    recipe.pretraining.batch = 2 * MICROBATCH + 22;
    let (b, levels) = (recipe.pretraining.batch, recipe.pretraining.levels());
    let images = glyphs::images(8, glyphs::TARGET_CLASSES, 3, "train");
    let (network, settings) = (&recipe.network, &recipe.pretraining);
    let mut method = ScoreMatching::new(&Compute::CPU, network, settings, levels, "steps").unwrap();
    let batches = Batches {
        images: &images,
        device: Device::Cpu,
        size: b,
        microbatch: MICROBATCH,
        augmentation,
        cell: "steps".into(),
    };
    let found = method.step(&batches.at(0)).unwrap()[0].to_scalar::<f32>().unwrap() as f64;

    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "steps" };
    let (_, model) = Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&recipe.network, vb)).unwrap();
    let stream = |name: &str| Stream::new("steps", name);
    let mut draws = stream("index").at(0);
    let indices: Vec<usize> = (0..b).map(|_| draws.below(images.len())).collect();
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, (b, 3, 8, 8), &Device::Cpu).unwrap();
    let mut draws = stream("augment").at(0);
    let augment: Vec<Draw> = (0..b).map(|_| augmentation.draw(&mut draws)).collect();
    let (x0, labels) = augmented(&tensor(images.to_unit(&indices)), &augment);
    let sigma = levels.draw(&batches.at(0), "sigma").unwrap();
    let xt = diffuse(&x0, &sigma, &tensor(stream("noise").normals(0, b * 192))).unwrap();
    let denoised = model.forward_train(&xt, &sigma, labels.as_deref(), None).unwrap();
    let expected = dsm(&denoised, &x0, &sigma).unwrap().to_scalar::<f32>().unwrap() as f64;
    assert!((found - expected).abs() < 1e-5 * expected, "{found}, {expected}");
}
