//! The FID network against torch-fidelity's on formula-filled weights, its
//! kernels against plain loops, and files that are not its checkpoint.
//!
//! `cargo test --release --test inception speed -- --ignored --nocapture` measures it.

mod common;

use candle_core::Device;
use common::{Fixture, directory, unit};
use proptest::prelude::*;
use replicate::data::Images;
use replicate::error::{EXIT_INPUT, Error};
use replicate::measure::inception::{CLASSES, DEPTHS, FEATURES, Inception, SIDE, resize};
use replicate::measure::metrics::Features;
use replicate::network::cpu::{Filter, Maps, Window, average_pool, max_pool};
use replicate::rng::Stream;
use replicate::store::formats::torch::{self, Checkpoint, Dtype, Format, Tensor};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Instant;

const PATH: &str = "somewhere/inception.pth";
/// Of the largest difference to the RMS of what is expected.
const TOLERANCE: f32 = 1e-4;

/// The filling formula for one tensor.
fn filled(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let value = |u: f32| match shape.len() {
        2.. => u * (6.0 / fan_in as f32).sqrt(),
        _ if name.ends_with(".running_var") => 1.0 + 0.5 * u,
        _ if name.ends_with(".bn.weight") => 1.0 + 0.1 * u,
        _ => 0.1 * u,
    };
    unit(name, shape.iter().product()).into_iter().map(value).collect()
}

// ------------------------------------------------------------ the checkpoint

/// A row-major array with its dimensions in another order.
fn permuted(values: &[f32], shape: &[usize], order: &[usize]) -> Vec<f32> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    let mut offsets = vec![0];
    for &d in order {
        let (size, stride) = (shape[d], strides[d]);
        offsets = offsets.into_iter().flat_map(|at| (0..size).map(move |i| at + i * stride)).collect();
    }
    offsets.into_iter().map(|at| values[at]).collect()
}

/// The formula-filled network as the published file stores it: a legacy stream
/// of a flat dictionary, convolutions in TensorFlow's order (vertical,
/// horizontal, input, output) and the last layer as (input, output), behind
/// strides.
fn stream() -> Vec<u8> {
    let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let int = |n: usize| [b"J".as_slice(), &(n as u32).to_le_bytes()].concat();
    let tuple = |items: &[usize]| {
        let items: Vec<u8> = items.iter().flat_map(|n| int(*n)).collect();
        [b"(", items.as_slice(), b"t"].concat()
    };
    let (mut object, mut keys, mut storages) = (b"\x80\x02}(".to_vec(), b"\x80\x02](".to_vec(), vec![]);
    for (i, (name, shape)) in Inception::entries().into_iter().enumerate() {
        let (kind, count, bytes) = match shape[..] {
            [] => ("LongStorage", 1, 7i64.to_le_bytes().to_vec()),
            _ => {
                let order: &[usize] = [&[][..], &[0], &[1, 0], &[], &[2, 3, 1, 0]][shape.len()];
                let values = permuted(&filled(&name, &shape), &shape, order);
                ("FloatStorage", values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        let strides: Vec<usize> = match shape[..] {
            [o, i, _, horizontal] => vec![1, o, horizontal * i * o, i * o],
            [o, _] => vec![1, o],
            [_] => vec![1],
            _ => vec![],
        };
        object.extend(text(&name));
        object.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        object.extend(text("storage"));
        object.extend(format!("ctorch\n{kind}\n").bytes());
        object.extend([text(&i.to_string()), text("cpu"), int(count), b"NtQ".to_vec(), int(0)].concat());
        object.extend([tuple(&shape), tuple(&strides)].concat());
        object.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        keys.extend(text(&i.to_string()));
        storages.extend((count as u64).to_le_bytes());
        storages.extend(bytes);
    }
    object.extend(b"u.");
    keys.extend(b"e.");
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let system = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    [magic, b"\x80\x02M\xe9\x03.".as_slice(), system, &object, &keys, &storages].concat()
}

fn checkpoint() -> Checkpoint {
    static STREAM: LazyLock<Vec<u8>> = LazyLock::new(stream);
    let checkpoint = torch::parse(Path::new(PATH), &STREAM).unwrap();
    assert_eq!((checkpoint.format, checkpoint.tensors.len()), (Format::TorchLegacy, 566));
    checkpoint
}

static NETWORK: LazyLock<Inception> = LazyLock::new(|| Inception::load(&Device::Cpu, checkpoint()).unwrap());

#[test]
fn entries_are_those_of_the_published_file() {
    let listed = std::fs::read_to_string(directory().join("inception-keys.txt")).unwrap();
    let listed: Vec<(String, Vec<usize>)> = listed
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            (name.into(), shape.split('x').map(|n| n.parse().unwrap()).collect())
        })
        .collect();
    let (counters, others): (Vec<_>, Vec<_>) =
        Inception::entries().into_iter().partition(|(name, _)| name.ends_with("num_batches_tracked"));
    assert_eq!(others, listed);
    assert_eq!(counters.len(), 94);
    assert!(counters.iter().all(|(_, shape)| shape.is_empty()));
}

/// What loading says of a checkpoint that it must not accept.
fn complaint(checkpoint: Checkpoint) -> String {
    let Err(error) = Inception::load(&Device::Cpu, checkpoint) else { panic!("accepted") };
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let text = error.to_string();
    assert!(text.starts_with(PATH) && text.len() < 2000, "{text}");
    text
}

#[test]
fn what_a_file_lacks_or_has_too_much_is_listed() {
    let float = |values: usize| Tensor { dtype: Dtype::F32, shape: vec![values], data: vec![0; 4 * values] };
    let mut checkpoint = checkpoint();
    checkpoint.tensors.retain(|(name, _)| name != "fc.bias" && !name.starts_with("Mixed_6d.branch_pool."));
    checkpoint.tensors.push(("AuxLogits.conv0.conv.weight".into(), float(3)));
    checkpoint.tensors.push(("other.num_batches_tracked".into(), float(1)));
    let fc = checkpoint.tensors.iter_mut().find(|(name, _)| name == "fc.weight").unwrap();
    fc.1.shape = vec![1024, 2016];
    let text = complaint(checkpoint);
    for part in [
        "exactly the 472 tensors",
        "6 missing: Mixed_6d.branch_pool.bn.bias, Mixed_6d.branch_pool.bn.running_mean",
        "Mixed_6d.branch_pool.conv.weight, fc.bias;",
        "2 extra: AuxLogits.conv0.conv.weight, other.num_batches_tracked;",
        "1 mis-shaped: fc.weight [1024, 2016] instead of [1008, 2048]",
    ] {
        assert!(text.contains(part), "{part} not in: {text}");
    }
}

#[test]
fn weights_that_cannot_be_right_are_errors() {
    let with = |name: &str, change: &dyn Fn(&mut Tensor)| {
        let mut checkpoint = checkpoint();
        change(&mut checkpoint.tensors.iter_mut().find(|(n, _)| n == name).unwrap().1);
        complaint(checkpoint)
    };
    let text = with("fc.weight", &|tensor| tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    assert!(text.contains("finite weights") && text.contains("NaN in fc.weight"), "{text}");
    // A negative variance.
    let text = with("Mixed_7c.branch1x1.bn.running_var", &|tensor| {
        tensor.data[..4].copy_from_slice(&(-1f32).to_le_bytes());
    });
    assert!(text.contains("NaN in Mixed_7c.branch1x1"), "{text}");
    let text = with("fc.bias", &|tensor| {
        tensor.dtype = Dtype::F16;
        tensor.data.truncate(2 * CLASSES);
    });
    assert!(
        text.contains("f32 tensors") && text.contains("1 of other types, the first fc.bias (f16)"),
        "{text}"
    );
}

/// Nobody needs the counters, and a file may lack them.
#[test]
fn counters_are_ignored() {
    let mut checkpoint = checkpoint();
    checkpoint
        .tensors
        .retain(|(name, _)| !name.contains("Mixed_5b") || !name.ends_with("num_batches_tracked"));
    for (name, tensor) in &mut checkpoint.tensors {
        if name.ends_with("num_batches_tracked") {
            tensor.data = i64::MAX.to_le_bytes().to_vec();
        }
    }
    let network = Inception::load(&Device::Cpu, checkpoint).unwrap();
    let images = random_images(1, 8);
    assert_eq!(bits(&network, &images, 0..1), bits(&NETWORK, &images, 0..1));
}

// ------------------------------------------------------------------- parity

/// The largest absolute difference, relative to the RMS of what is expected.
fn error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    assert!(ours.iter().chain(expected).all(|v| v.is_finite()), "a value is not finite");
    let squares: f64 = expected.iter().map(|v| *v as f64 * *v as f64).sum();
    let rms = (squares / expected.len() as f64).sqrt() as f32;
    ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / rms
}

fn parity(network: &Inception) {
    let fixture = Fixture::open("inception.npz");
    let pixels: Vec<u8> = fixture.get("images_uint8").flatten_all().unwrap().to_vec1().unwrap();
    let images = Images { channels: 3, size: 32, pixels, labels: vec![] };
    let probe = network.probe(&images, 0..4).unwrap();

    let at = |i: usize, c: usize, y: usize, x: usize| probe.resized[((i * SIDE + y) * SIDE + x) * 3 + c];
    let (mut crop, mut means) = (Vec::new(), Vec::new());
    for i in 0..4 {
        for c in 0..3 {
            let in_crop = (100..140).flat_map(|y| (200..240).map(move |x| (y, x)));
            crop.extend(in_crop.map(|(y, x)| at(i, c, y, x) * 128.0 + 128.0));
            let all = (0..SIDE * SIDE).map(|p| at(i, c, p / SIDE, p % SIDE) as f64 * 128.0 + 128.0);
            means.push((all.sum::<f64>() / (SIDE * SIDE) as f64) as f32);
        }
    }
    let mut compared = vec![
        ("resized crop".to_string(), error(&crop, &fixture.f32("resized_crop"))),
        ("resized mean".to_string(), error(&means, &fixture.f32("resized_mean"))),
    ];
    for (depth, features) in DEPTHS.iter().zip(&probe.features) {
        let expected = fixture.f32(&format!("features/{depth}"));
        compared.push((format!("features {depth}"), error(&features.rows, &expected)));
    }
    for (name, logits) in [("logits_unbiased", &probe.logits_unbiased), ("logits", &probe.logits)] {
        compared.push((name.into(), error(&logits.rows, &fixture.f32(&format!("features/{name}")))));
    }
    for (what, error) in compared {
        println!("{what}: {error:.1e}");
        assert!(error < TOLERANCE, "{what} off by {error}");
    }

    let (features, logits) = network.extract(&images, 1..3).unwrap();
    assert_eq!((features.len(), logits.len()), (2, 2));
    assert!(error(&features.rows, &probe.features[3].rows[FEATURES..3 * FEATURES]) < TOLERANCE);
    assert!(error(&logits.rows, &probe.logits_unbiased.rows[CLASSES..3 * CLASSES]) < TOLERANCE);
}

#[test]
fn kernels_match_the_reference() {
    parity(&NETWORK);
}

/// What other devices run.
#[test]
fn composition_matches_the_reference() {
    parity(&Inception::load_composed(&Device::Cpu, checkpoint()).unwrap());
}

// --------------------------------------------------------------- the same bits

fn random_images(n: usize, size: usize) -> Images {
    let pixels = unit("images", n * 3 * size * size).into_iter().map(|u| (128.0 + 127.0 * u) as u8).collect();
    Images { channels: 3, size, pixels, labels: vec![] }
}

fn bits(network: &Inception, images: &Images, range: std::ops::Range<usize>) -> (Vec<u32>, Vec<u32>) {
    let (features, logits) = network.extract(images, range).unwrap();
    let bits = |features: Features| features.rows.iter().map(|v| v.to_bits()).collect();
    (bits(features), bits(logits))
}

/// Alone or in a batch, within a chunk or beyond it, on one thread or five.
#[test]
fn neighbours_and_threads_change_no_bit() {
    let images = random_images(18, 32);
    let all = bits(&NETWORK, &images, 0..18);
    assert_eq!((all.0.len(), all.1.len()), (18 * FEATURES, 18 * CLASSES));
    for (range, threads) in [(15..18, 1), (7..8, 5)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let some = pool.install(|| bits(&NETWORK, &images, range.clone()));
        assert!(some.0 == all.0[range.start * FEATURES..range.end * FEATURES], "features of {range:?}");
        assert!(some.1 == all.1[range.start * CLASSES..range.end * CLASSES], "logits of {range:?}");
    }
    assert_eq!(bits(&NETWORK, &images, 4..4), (vec![], vec![]));
}

#[test]
fn images_that_the_network_does_not_take() {
    let text = |images: Images, range| NETWORK.extract(&images, range).unwrap_err().to_string();
    let gray = Images { channels: 1, size: 2, pixels: vec![0; 4], labels: vec![] };
    assert!(text(gray, 0..1).contains("RGB images, not 1 channels of 2 x 2"));
    let none = Images { channels: 3, size: 0, pixels: vec![], labels: vec![] };
    assert!(text(none, 0..0).contains("0 x 0 pixels"));
    assert!(text(random_images(2, 2), 1..3).contains("2 images, not all of 1..3"));
}

// ------------------------------------------------------------------- kernels

fn random(name: &str, n: usize) -> Vec<f32> {
    Stream::new("inception", name).normals(0, n)
}

/// Pixels of the window at output (oy, ox), as (tap, row, column), inside only.
fn under(
    window: Window,
    [height, width]: [usize; 2],
    [oy, ox]: [usize; 2],
) -> impl Iterator<Item = (usize, usize, usize)> {
    let [vertical, horizontal] = window.kernel;
    (0..vertical * horizontal).filter_map(move |tap| {
        let y = (oy * window.stride + tap / horizontal).checked_sub(window.padding[0])?;
        let x = (ox * window.stride + tap % horizontal).checked_sub(window.padding[1])?;
        (y < height && x < width).then_some((tap, y, x))
    })
}

const KERNELS: [[usize; 2]; 7] = [[1, 1], [3, 3], [5, 5], [1, 3], [3, 1], [1, 7], [7, 1]];

/// Maps of 2 channels more than are written, with a mark in them.
fn marked(images: usize, [height, width]: [usize; 2], channels: usize) -> Maps {
    let marks = vec![7.0; images * height * width * (channels + 2)];
    Maps::new(images, [height, width, channels + 2], marks)
}

/// Writes between the marks and gives the pixels without them.
fn unmarked(y: &Maps) -> Vec<f32> {
    let pixels = y.values().chunks_exact(y.shape()[2]);
    assert!(pixels.clone().all(|pixel| pixel[0] == 7.0 && pixel[y.shape()[2] - 1] == 7.0), "a neighbour");
    pixels.flat_map(|pixel| pixel[1..y.shape()[2] - 1].to_vec()).collect()
}

fn check_convolution(
    images: usize,
    size: [usize; 2],
    inputs: usize,
    outputs: usize,
    window: Window,
    relu: bool,
) {
    let [height, width] = size;
    let x = random("x", images * height * width * inputs);
    let taps = window.kernel[0] * window.kernel[1];
    let (weight, bias) = (random("w", outputs * inputs * taps), random("b", outputs));
    let [oh, ow] = window.output(height, width);
    let mut expected = Vec::new();
    for i in 0..images {
        for at in (0..oh).flat_map(|oy| (0..ow).map(move |ox| [oy, ox])) {
            for (o, bias) in bias.iter().enumerate() {
                let mut sum = *bias;
                for (tap, iy, ix) in under(window, size, at) {
                    for c in 0..inputs {
                        let v = x[((i * height + iy) * width + ix) * inputs + c];
                        sum = v.mul_add(weight[(o * inputs + c) * taps + tap], sum);
                    }
                }
                expected.push(if relu && sum < 0.0 { 0.0 } else { sum });
            }
        }
    }
    let mut y = marked(images, [oh, ow], outputs);
    let filter = Filter::new(window, &weight, &bias, relu);
    assert_eq!(filter.output_shape([height, width, inputs]), [oh, ow, outputs]);
    filter.apply(&Maps::new(images, [height, width, inputs], x), &mut y, 1);
    // The same chain of sums, so the same values.
    assert!(unmarked(&y) == expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolution(
        images in 1usize..4, height in 7usize..14, width in 7usize..14, inputs in 1usize..20, outputs in 1usize..36,
        kernel in proptest::sample::select(&KERNELS), stride in 1usize..3, padded: [bool; 2], relu: bool,
    ) {
        let padding = std::array::from_fn(|axis| if padded[axis] { kernel[axis] / 2 } else { 0 });
        check_convolution(images, [height, width], inputs, outputs, Window { kernel, stride, padding }, relu);
    }

    /// Chains that are longer than one visit, with kernels that are split between
    /// taps and within one.
    #[test]
    fn deep_convolution(
        inputs in 120usize..700, outputs in 1usize..4, kernel in proptest::sample::select(&KERNELS), stride in 1usize..3,
        padded: bool,
    ) {
        let padding = kernel.map(|k| if padded { k / 2 } else { 0 });
        check_convolution(1, [7, 8], inputs, outputs, Window { kernel, stride, padding }, false);
    }

    #[test]
    fn pooling(
        images in 1usize..3, height in 3usize..12, width in 3usize..12, channels in 1usize..12,
        kernel in proptest::sample::select(&[[3, 3], [1, 3], [2, 1]][..]), stride in 1usize..3, padded: bool,
    ) {
        let window = Window { kernel, stride, padding: kernel.map(|k: usize| if padded { k / 2 } else { 0 }) };
        let size = [height, width];
        let x = random("x", images * height * width * channels);
        let [oh, ow] = window.output(height, width);
        let (mut greatest, mut means) = (Vec::new(), Vec::new());
        for i in 0..images {
            for at in (0..oh).flat_map(|oy| (0..ow).map(move |ox| [oy, ox])) {
                for c in 0..channels {
                    let here: Vec<f32> = under(window, size, at)
                        .map(|(_, iy, ix)| x[((i * height + iy) * width + ix) * channels + c])
                        .collect();
                    greatest.push(here.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    means.push(here.iter().sum::<f32>() / here.len() as f32);
                }
            }
        }
        let x = Maps::new(images, [height, width, channels], x);
        let mut y = marked(images, [oh, ow], channels);
        max_pool(&x, window, &mut y, 1);
        prop_assert_eq!(unmarked(&y), greatest);
        average_pool(&x, window, &mut y, 1);
        prop_assert_eq!(unmarked(&y), means);
    }

    /// Against the formula pixel by pixel, for sizes below and above 299.
    #[test]
    fn resizing(size in prop_oneof![1usize..40, 290usize..320], places in proptest::collection::vec((0..SIDE, 0..SIDE), 20)) {
        let images = random_images(2, size);
        let mut resized = vec![f32::NAN; SIDE * SIDE * 3];
        resize(&images, 1..2, &mut resized);
        let place = |i: usize| {
            let at = i as f32 * (size as f64 / SIDE as f64) as f32;
            let low = (at.floor() as usize).min(size - 1);
            (low, (low + 1).min(size - 1), at - low as f32)
        };
        for (y, x) in places {
            let ((y0, y1, dy), (x0, x1, dx)) = (place(y), place(x));
            for c in 0..3 {
                let at = |y: usize, x: usize| images.image(1)[(c * size + y) * size + x] as f32;
                let upper = at(y0, x0) + (at(y0, x1) - at(y0, x0)) * dx;
                let lower = at(y1, x0) + (at(y1, x1) - at(y1, x0)) * dx;
                let expected = (upper + (lower - upper) * dy - 128.0) / 128.0;
                prop_assert_eq!(resized[(y * SIDE + x) * 3 + c], expected);
            }
        }
    }
}

// -------------------------------------------------------------------- speed

/// Multiply-adds of one image.
const MACS: f64 = 5.7e9;

/// ms an image, kernels and candle's convolution in turn.
#[test]
#[ignore = "a measurement: half a minute"]
fn speed() {
    let images = random_images(16, 32);
    let composed = Inception::load_composed(&Device::Cpu, checkpoint()).unwrap();
    for _ in 0..3 {
        for (name, network) in [("kernels", &*NETWORK), ("candle", &composed)] {
            let start = Instant::now();
            network.extract(&images, 0..16).unwrap();
            let seconds = start.elapsed().as_secs_f64() / 16.0;
            println!("{name}: {:.1} ms an image, {:.0} GFLOP/s", seconds * 1e3, 2e-9 * MACS / seconds);
        }
    }
}
