//! `replicate score`: every container of images gives the same images, the
//! program gives the library's numbers, and what is wrong with an input is said
//! with the file's name.

mod common;
#[path = "common/files.rs"]
mod files;

use common::drill::inception_pth;
use common::{fd_from_samples, moments, npz_arrays};
use files::{npy, png_of, zip};
use proptest::prelude::*;
use replicate::app::score::{BATCH, RowStream, Seen, Wanted};
use replicate::app::score::{Input, source};
use replicate::data::Images;
use replicate::error::{EXIT_INPUT, EXIT_USAGE, Error};
use replicate::measure::inception::Inception;
use replicate::measure::metrics::Features;
use replicate::measure::metrics::frechet::{Factor, distance, frechet_distance};
use replicate::measure::metrics::inception_score::{Predictions, inception_score};
use replicate::measure::metrics::kid::kid;
use replicate::measure::metrics::precision_recall::precision_recall;
use replicate::measure::statistics::Statistics;
use replicate::rng::Stream;
use replicate::store::formats::npz;
use replicate::store::formats::torch;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

// ---- files, as NumPy, Pillow and zip tools write them ----------------------

fn f4(features: &Features) -> Vec<u8> {
    let bytes: Vec<u8> = features.rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    npy("<f4", &[features.len(), features.dim], &bytes)
}

fn f8(shape: &[usize], values: &[f64]) -> Vec<u8> {
    npy("<f8", shape, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// Image `i` as RGB after RGB.
fn rgb(images: &Images, i: usize) -> Vec<u8> {
    let (image, area) = (images.image(i), images.size * images.size);
    (0..area).flat_map(|p| (0..3).map(move |c| image[c * area + p])).collect()
}

fn png(images: &Images, i: usize) -> Vec<u8> {
    let size = images.size as u32;
    png_of(png::ColorType::Rgb, png::BitDepth::Eight, size, size, &rgb(images, i))
}

fn channels_last(images: &Images) -> Vec<u8> {
    let pixels: Vec<u8> = (0..images.len()).flat_map(|i| rgb(images, i)).collect();
    npy("|u1", &[images.len(), images.size, images.size, 3], &pixels)
}

/// Coloured blocks under noise: the features of two sets differ.
fn images(name: &str, n: usize, size: usize) -> Images {
    let mut draws = Stream::new("tests/score", name).at(0);
    let mut pixels = Vec::new();
    for _ in 0..n * 3 {
        let colours: Vec<u32> = (0..4).map(|_| draws.next_u32() % 200).collect();
        for p in 0..size * size {
            let block = p / size / (size / 2) * 2 + p % size / (size / 2);
            pixels.push((colours[block] + draws.next_u32() % 56) as u8);
        }
    }
    Images { channels: 3, size, pixels, labels: Vec::new() }
}

fn features(name: &str, n: usize, dim: usize) -> Features {
    Features::new(dim, Stream::new("tests/score", name).normals(0, n * dim))
}

fn rows(features: &Features, range: std::ops::Range<usize>) -> Features {
    Features::new(features.dim, features.rows[range.start * features.dim..range.end * features.dim].to_vec())
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn features(&self, name: &str, features: &Features, logits: Option<&Features>) -> PathBuf {
        let mut files = vec![("features.npy", f4(features))];
        files.extend(logits.map(|logits| ("logits.npy", f4(logits))));
        self.write(name, zip(&files, false))
    }
}

// ---- the program -----------------------------------------------------------

fn run(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
    command.arg("score").env_remove("REPLICATE_STORE");
    arguments.iter().for_each(|argument| _ = command.arg(argument.as_ref()));
    command.output().unwrap()
}

fn json(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Value {
    let output = run(&[arguments, &[&"--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A number as it comes back from JSON: serde_json rounds what it reads, and
/// prints exactly.
fn number(value: f64) -> Value {
    serde_json::from_str(&serde_json::to_string(&value).unwrap()).unwrap()
}

fn failure(arguments: &[&dyn AsRef<std::ffi::OsStr>], code: i32) -> String {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(output.stdout.is_empty(), "an error prints nothing on standard output");
    error
}

fn warned(report: &Value, text: &str) -> bool {
    let texts = |key: &str| report[key].as_array().unwrap().clone();
    let all = [texts("warnings"), texts("notes")].concat();
    all.iter().any(|warning| warning.as_str().unwrap().contains(text))
}

// ---- containers ------------------------------------------------------------

/// All images of a source, in one.
fn read(path: &Path) -> Result<Images, Error> {
    let Input::Images(set) = source::open(path)?.0 else { panic!("{}: no images", path.display()) };
    let mut all = Images { channels: 3, size: set.size, pixels: Vec::new(), labels: Vec::new() };
    for batch in set.batches {
        let batch = batch?;
        assert!(batch.len() <= BATCH && batch.size == set.size);
        all.pixels.extend(batch.pixels);
    }
    assert_eq!(all.len(), set.len);
    Ok(all)
}

fn in_every_container(images: &Images) -> Dir {
    let dir = Dir::new();
    let named: Vec<(String, Vec<u8>)> =
        (0..images.len()).map(|i| (format!("{:03}/img{i:05}.png", i / 50), png(images, i))).collect();
    named.iter().for_each(|(name, png)| _ = dir.write(&format!("folder/{name}"), png));
    dir.write("folder/dataset.json", "{}");
    let files: Vec<(&str, Vec<u8>)> = named.iter().map(|(name, png)| (name.as_str(), png.clone())).collect();
    // A zip need not have its files in order.
    let turned: Vec<_> = files.iter().rev().cloned().chain([("dataset.json", b"{}".to_vec())]).collect();
    dir.write("stored.zip", zip(&turned, false));
    dir.write("deflated.zip", zip(&files, true));
    let last = channels_last(images);
    let labels = npy("<i8", &[images.len()], &vec![0; 8 * images.len()]);
    dir.write("last.npz", zip(&[("arr_0.npy", last.clone()), ("arr_1.npy", labels)], false));
    dir.write("deflated.npz", zip(&[("images.npy", last.clone())], true));
    dir.write("last.npy", last);
    dir.write("first.npy", npy("|u1", &[images.len(), 3, images.size, images.size], &images.pixels));
    dir
}

const CONTAINERS: [&str; 7] =
    ["folder", "stored.zip", "deflated.zip", "last.npz", "deflated.npz", "last.npy", "first.npy"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_container_gives_the_same_images(n in 1usize..140, half in 1usize..5, seed in 0u32..1000) {
        let expected = images(&format!("containers {seed}"), n, 2 * half);
        let dir = in_every_container(&expected);
        for container in CONTAINERS {
            prop_assert_eq!(&read(&dir.path(container)).unwrap(), &expected, "{}", container);
        }
    }
}

#[test]
fn files_are_in_the_order_of_their_paths() {
    let dir = Dir::new();
    let expected = images("order", 5, 4);
    // By the text of the whole path, as Python sorts: '-' and '.' before '/'.
    for (i, name) in ["B.PNG", "a-c.png", "a.png", "a/b.png", "a/c/d.png"].iter().enumerate() {
        dir.write(name, png(&expected, i));
    }
    assert_eq!(read(dir.0.path()).unwrap(), expected);
}

/// A data set's files have it class by class; its parts must not be single classes.
#[test]
fn data_sets_are_shuffled_and_lose_nothing() {
    let dir = Dir::new();
    for batch in 1..=5u8 {
        let records =
            (0..40u8).flat_map(|i| [&[batch][..], &[batch * 40 + i; 3072]].concat()).collect::<Vec<u8>>();
        dir.write(&format!("data_batch_{batch}.bin"), records);
    }
    let first: Vec<u8> = read(dir.0.path()).unwrap().pixels.iter().step_by(3072).copied().collect();
    assert_eq!(read(dir.0.path()).unwrap().pixels.iter().step_by(3072).copied().collect::<Vec<u8>>(), first);
    let mut sorted = first.clone();
    sorted.sort();
    assert_eq!(sorted, (40..240).collect::<Vec<u8>>());
    // Of 40 in order, a fifth is expected of each class.
    let batches: std::collections::HashSet<u8> = first[..40].iter().map(|value| value / 40).collect();
    assert_eq!(batches.len(), 5);
    let Input::Images(set) = source::open(dir.0.path()).unwrap().0 else { panic!() };
    assert_eq!((set.kind, set.len, set.full), ("CIFAR-10 training images", 200, Some(50_000)));
}

#[test]
fn the_first_images_are_cut_within_a_batch() {
    let dir = Dir::new();
    let all = images("first", 150, 2);
    let path = dir.write("a.npy", channels_last(&all));
    for n in [1, 64, 100, 128, 150, 999] {
        let Input::Images(set) = source::open(&path).unwrap().0 else { panic!() };
        let set = set.first(n);
        let pixels: Vec<u8> = set.batches.flat_map(|batch| batch.unwrap().pixels).collect();
        assert_eq!((set.len, &pixels[..]), (n.min(150), &all.pixels[..n.min(150) * 12]));
    }
}

/// 40 images of 1024 x 1024 would be 126 MB at once.
#[test]
fn batches_of_large_images_are_smaller() {
    let dir = Dir::new();
    let large = Images { channels: 3, size: 1024, pixels: vec![9; 40 * 3 << 20], labels: Vec::new() };
    let path = dir.write("a.npy", npy("|u1", &[40, 3, 1024, 1024], &large.pixels));
    let Input::Images(set) = source::open(&path).unwrap().0 else { panic!() };
    let lengths: Vec<usize> = set.batches.map(|batch| batch.unwrap().len()).collect();
    assert_eq!(lengths, [21, 19]);
}

/// The message about a file that cannot be scored; it must name the file.
fn complaint(path: &Path) -> String {
    let error = read(path).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT, "{error}");
    error.to_string()
}

#[test]
fn images_that_are_not_8_bit_rgb_are_refused_by_name() {
    use png::{BitDepth, ColorType};
    let good = png(&images("refused", 1, 4), 0);
    for (color, depth, bytes, expected) in [
        (ColorType::Grayscale, BitDepth::Eight, 16, "8-bit grayscale"),
        (ColorType::Grayscale, BitDepth::One, 4, "1-bit grayscale"),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, 32, "grayscale with an alpha"),
        (ColorType::Rgba, BitDepth::Eight, 64, "RGB with an alpha channel"),
        (ColorType::Indexed, BitDepth::Eight, 16, "a palette"),
        (ColorType::Rgb, BitDepth::Sixteen, 96, "16-bit RGB"),
    ] {
        let dir = Dir::new();
        dir.write("a.png", &good);
        dir.write("b.png", png_of(color, depth, 4, 4, &vec![0; bytes]));
        let text = complaint(dir.0.path());
        assert!(text.contains("b.png") && text.contains(expected), "{text}");
        let files = [("x/a.png", good.clone()), ("x/b.png", std::fs::read(dir.path("b.png")).unwrap())];
        let text = complaint(&dir.write("c.zip", zip(&files, true)));
        assert!(text.contains("c.zip/x/b.png") && text.contains(expected), "{text}");
    }
}

#[test]
fn sizes_formats_and_damage_are_refused_by_name() {
    let good = png(&images("refused", 1, 4), 0);
    let rgb = |width: u32, height: u32| {
        png_of(
            png::ColorType::Rgb,
            png::BitDepth::Eight,
            width,
            height,
            &vec![7; (3 * width * height) as usize],
        )
    };
    let mut flipped = good.clone();
    *flipped.iter_mut().nth_back(30).unwrap() ^= 4;
    for (name, bytes, expected) in [
        ("b.png", rgb(8, 8), "8x8"),
        ("b.png", rgb(4, 8), "4x8"),
        ("b.jpg", b"\xff\xd8".to_vec(), "a .jpg file"),
        ("c/b.JPEG", b"\xff\xd8".to_vec(), "a .jpeg file"),
        ("b.webp", b"RIFF".to_vec(), "a .webp file"),
        ("b.png", Vec::new(), "a PNG file"),
        ("b.png", b"<html>".to_vec(), "a PNG file"),
        ("b.png", good[..good.len() - 20].to_vec(), "a PNG file"),
        ("b.png", flipped, "a PNG file"),
    ] {
        let dir = Dir::new();
        dir.write("a.png", &good);
        dir.write(name, bytes);
        let text = complaint(dir.0.path());
        assert!(text.contains(&*dir.path(name).to_string_lossy()) && text.contains(expected), "{text}");
    }
    let dir = Dir::new();
    dir.write("a.png", rgb(4, 8));
    assert!(complaint(dir.0.path()).contains("a square image"));
}

#[test]
fn arrays_that_are_no_images_are_refused() {
    let dir = Dir::new();
    let good = channels_last(&images("arrays", 2, 4));
    let header = good.len() - 96;
    let with = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(&good[..header]).into_owned();
        assert!(text.contains(from));
        // Latin-1, for the first byte of the magic.
        let text = String::from_utf8_lossy(&good[10..header]).replace(from, to);
        let length = (text.len() as u16).to_le_bytes();
        [&good[..8], &length, text.as_bytes(), &good[header..]].concat()
    };
    for (bytes, expected) in [
        (npy("|u1", &[2, 4, 4, 4], &[0; 128]), "[2, 4, 4, 4]"),
        (npy("|u1", &[2, 4, 6, 3], &[0; 144]), "[2, 4, 6, 3]"),
        (npy("|u1", &[0, 4, 4, 3], &[]), "[0, 4, 4, 3]"),
        (npy("|u1", &[96], &[0; 96]), "[96]"),
        (npy("<f4", &[2, 4, 4, 3], &[0; 384]), "no uint8 images"),
        (npy("|i1", &[2, 4, 4, 3], &[0; 96]), "no uint8 images"),
        (npy("|u1", &[2, 4, 4, 3], &[0; 95]), "95 bytes of data for 96 numbers"),
        (npy("|u1", &[2, 4, 4, 3], &[0; 97]), "97 bytes of data for 96 numbers"),
        (with("(2,", "(9223372036854775808,"), "9223372036854775808"),
        (with("(2,", "(4611686018427387904,"), "4611686018427387904"),
        (with("(2,", "(-2,"), "-2"),
        (with("'shape'", "'shap'"), "no shape"),
        (good[..9].to_vec(), "cut off"),
        (b"\x93NUMPY\x07\x00ab".to_vec(), "version 7"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xffab".to_vec(), "header of 4294967295 bytes"),
        (zip(&[("a.npy", good.clone()), ("b.npy", good.clone())], false), "several uint8 arrays"),
        (zip(&[("a.npy", b"PK".to_vec())], false), "holds a, which is not an array"),
        (zip(&[("a.txt", b"hello".to_vec())], false), "a zip without PNG files"),
        (zip(&[("a.npy", good.clone()), ("a.npy", good.clone())], false), "two files of one name"),
        (b"PK\x03\x04 and no more".to_vec(), "not a zip file"),
        (b"GIF89a".to_vec(), "a GIF image"),
        (Vec::new(), "an empty file"),
    ] {
        let text = complaint(&dir.write("images.npz", bytes));
        assert!(text.contains("images.npz") && text.contains(expected), "{expected}: {text}");
    }
    std::fs::create_dir(dir.path("empty")).unwrap();
    let text = complaint(&dir.path("empty"));
    assert!(text.contains("found no PNG and no CIFAR in it") && text.lines().count() == 2, "{text}");
    let text = source::open(&dir.path("nowhere")).err().unwrap().to_string();
    assert!(text.contains("nowhere") && text.contains("cifar10-test"), "{text}");
}

/// What a deflated file claims of itself decides neither memory nor result.
#[test]
fn archives_that_lie_about_themselves_are_refused() {
    let dir = Dir::new();
    let honest = zip(&[("a.npy", channels_last(&images("lies", 8, 16)))], true);
    assert_eq!(read(&dir.write("a.npz", &honest)).unwrap().len(), 8);
    let central = honest.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    // The checksum, then the length of the content, where the directory has them.
    for (at, change) in [(central + 16, 1u8), (central + 24, 1), (central + 24, 128)] {
        let mut bytes = honest.clone();
        bytes[at] = bytes[at].wrapping_add(change);
        let text = complaint(&dir.write("a.npz", bytes));
        assert!(text.contains("a.npz"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    /// Damage is an error, or harmless; it never ends the program.
    #[test]
    fn damaged_files_are_read_or_refused(
        container in 1usize..CONTAINERS.len(),
        cut in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        truncate: bool,
    ) {
        static WHOLE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let whole = WHOLE.get_or_init(|| {
            let dir = in_every_container(&images("damage", 3, 4));
            CONTAINERS[1..].iter().map(|name| std::fs::read(dir.path(name)).unwrap()).collect()
        });
        let mut bytes = whole[container - 1].clone();
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        for (at, byte) in damage {
            if !bytes.is_empty() {
                *at.get_mut(&mut bytes) = byte;
            }
        }
        let dir = Dir::new();
        let path = dir.write("damaged", bytes);
        match source::open(&path) {
            Ok((Input::Images(set), _)) => set.batches.take(10).for_each(|batch| match batch {
                Ok(images) => assert!(images.len() <= BATCH),
                Err(error) => assert_eq!(error.exit_code(), EXIT_INPUT, "{error}"),
            }),
            Ok(_) => prop_assert!(false, "neither features nor statistics"),
            Err(error) => prop_assert_eq!(error.exit_code(), EXIT_INPUT, "{}", error),
        }
    }
}

#[test]
fn statistics_survive_the_way_to_a_file_and_back() {
    let dir = Dir::new();
    let m = moments(&features("statistics", 40, 7));
    let array = |shape: &[usize], data: Vec<f64>| npz::Array { shape: shape.to_vec(), data };
    let (mu, sigma) = (array(&[7], m.mean()), array(&[7, 7], m.covariance()));
    let bytes = npz::write(&[("mu", &mu), ("sigma", &sigma)]);
    assert_eq!(bytes, npz::write(&[("mu", &mu), ("sigma", &sigma)]), "the same bytes");
    let path = dir.write("a.npz", &bytes);
    let read = npz_arrays(&path).unwrap();
    assert_eq!((&read["mu"], &read["sigma"]), (&mu, &sigma));
    let Input::Statistics(statistics) = source::open(&path).unwrap().0 else { panic!() };
    assert_eq!((statistics.mean, statistics.covariance), (mu.data, sigma.data));
    // NumPy aligns the numbers of an array to 64 bytes from its beginning.
    let magic = bytes.windows(6).position(|window| window == b"\x93NUMPY").unwrap();
    assert_eq!((10 + u16::from_le_bytes([bytes[magic + 8], bytes[magic + 9]])) % 64, 0);
}

#[test]
fn statistics_that_are_none_are_refused() {
    let dir = Dir::new();
    let of = |mu: Vec<u8>, sigma: Vec<u8>| zip(&[("mu.npy", mu), ("sigma.npy", sigma)], false);
    for (bytes, expected) in [
        (of(f8(&[2], &[0.0; 2]), f8(&[2, 3], &[0.0; 6])), "sigma of the shape [2, 3]"),
        (of(f8(&[2, 1], &[0.0; 2]), f8(&[2, 2], &[0.0; 4])), "mu of the shape [2, 1]"),
        (of(f8(&[0], &[]), f8(&[0, 0], &[])), "mu of the shape [0]"),
        (of(f8(&[2], &[0.0, f64::NAN]), f8(&[2, 2], &[0.0; 4])), "NaN"),
        (of(f8(&[2], &[0.0; 2]), f8(&[2, 2], &[1.0, 0.5, 0.4, 1.0])), "not symmetric, at (1, 0)"),
        (of(npy("<i8", &[2], &[0; 16]), f8(&[2, 2], &[0.0; 4])), "mu, which has the type \"<i8\""),
        (of(f8(&[90_000], &[]), f8(&[90_000, 90_000], &[])), "90000"),
        (of(f8(&[3], &[1.0, 2.0]), f8(&[3, 3], &[0.0; 9])), "16 bytes of data for 3 numbers"),
    ] {
        let error = source::open(&dir.write("ref.npz", bytes)).err().unwrap();
        let text = error.to_string();
        assert_eq!(error.exit_code(), EXIT_INPUT);
        assert!(text.contains("ref.npz") && text.contains(expected), "{expected}: {text}");
    }
    let alone = dir.write("alone.npz", zip(&[("mu.npy", f8(&[2], &[0.0; 2]))], false));
    assert!(Statistics::read(&alone).unwrap_err().to_string().contains("no array sigma"));
    let page = Statistics::read(&dir.write("page.npz", "<html>not found</html>"));
    assert!(page.unwrap_err().to_string().contains("not an .npz"));
    // A negative eigenvalue shows when the matrix is factored.
    let images = dir.features("a.npz", &features("negative", 9, 2), None);
    let bytes = of(f8(&[2], &[0.0; 2]), f8(&[2, 2], &[1.0, 2.0, 2.0, 1.0]));
    let error = failure(&[&images, &"--ref", &dir.write("ref.npz", bytes)], EXIT_INPUT);
    assert!(error.contains("ref.npz") && error.contains("eigenvalue"), "{error}");
    // A distance that no number can hold is no result.
    let bytes = of(f8(&[2], &[1e200; 2]), f8(&[2, 2], &[1.0, 0.0, 0.0, 1.0]));
    let error = failure(&[&images, &"--ref", &dir.write("ref.npz", bytes)], 4);
    assert!(error.contains("beyond every number"), "{error}");
}

// ---- metrics that stream ---------------------------------------------------

#[test]
fn factored_covariances_give_the_same_bits() {
    for (n, m, dim) in [(50, 60, 9), (5, 7, 12)] {
        let (a, b) = (moments(&features("factor a", n, dim)), moments(&features("factor b", m, dim)));
        let expected = frechet_distance(&a, &b).unwrap();
        let (fa, fb) = (a.factor().unwrap(), b.factor().unwrap());
        assert_eq!(distance(&fa, &fb).unwrap(), expected);
        assert_eq!(distance(&fa, &fb).unwrap(), expected, "a second time");
        let again = Factor::new(b.mean(), &b.covariance()).unwrap();
        assert_eq!(distance(&fa, &again).unwrap(), expected, "from the statistics");
    }
    let (a, b) =
        (moments(&features("a", 5, 2)).factor().unwrap(), moments(&features("b", 5, 3)).factor().unwrap());
    assert!(distance(&a, &b).unwrap_err().to_string().contains("dimensions 2 and 3"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_inception_score_streams(n in 1usize..400, splits in 1usize..12, chunk in 1usize..90) {
        let splits = splits.min(n);
        let logits = features("stream", n, 6);
        let mut predictions = Predictions::new(6, n, splits);
        for first in (0..n).step_by(chunk) {
            predictions.push(&rows(&logits, first..n.min(first + chunk)));
        }
        prop_assert_eq!(predictions.score(), inception_score(&logits, splits));
        // Each part on its own: the rows went where they belong.
        let parts: Vec<f64> = (0..splits)
            .map(|i| inception_score(&rows(&logits, i * n / splits..(i + 1) * n / splits), 1).0)
            .collect();
        let mean = parts.iter().sum::<f64>() / splits as f64;
        prop_assert!((predictions.score().0 - mean).abs() < 1e-12);
        prop_assert!((predictions.undivided() - inception_score(&logits, 1).0).abs() < 1e-12);
    }

    #[test]
    fn batches_do_not_matter(n in 8usize..300, chunk in 1usize..90, kept in 1usize..40, trials in 1usize..4) {
        let all = features("batches", n, 5);
        let kept = kept.min(n / trials);
        let wanted = Wanted { moments: true, predictions: false, kept };
        let batches = (0..n).step_by(chunk).map(|first| Ok((rows(&all, first..n.min(first + chunk)), None)));
        let mut stream = RowStream::new(batches);
        for trial in 0..trials {
            let part = rows(&all, trial * (n / trials)..(trial + 1) * (n / trials));
            let gathered = stream.gather(part.len(), wanted).unwrap();
            prop_assert_eq!(gathered.moments.unwrap().covariance(), moments(&part).covariance());
            let found = gathered.kept.map(|kept| kept.rows).unwrap_or_default();
            let places: Vec<usize> = (0..kept).map(|i| ((i + 1) * part.len()).div_ceil(kept) - 1).collect();
            let expected: Vec<f32> = places.iter().flat_map(|&i| part.row(i)).copied().collect();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_stream_that_ends_early_or_is_not_finite_is_an_error() {
    let wanted = Wanted { moments: true, predictions: true, kept: 0 };
    let gather = |features: Features, logits: Option<Features>| {
        RowStream::new([Ok((features, logits))].into_iter()).gather(12, wanted).unwrap_err().to_string()
    };
    let (good, logits) = (features("a", 12, 3), features("b", 12, 4));
    assert!(
        gather(rows(&good, 0..11), Some(rows(&logits, 0..11))).contains("12 images were announced, 11 came")
    );
    assert!(gather(good.clone(), None).contains("needs logits"));
    let mut bad = logits.clone();
    bad.rows[4 * 7 + 2] = f32::NAN;
    assert!(gather(good.clone(), Some(bad)).contains("logit 2 of image 7"));
    let mut bad = good;
    bad.rows[3 * 5 + 1] = f32::INFINITY;
    assert!(gather(bad, Some(logits)).contains("feature 1 of image 5"));
}

#[test]
fn repeats_are_counted_over_batches() {
    let mut seen = Seen::default();
    let all = images("repeats", 5, 4);
    seen.push(&all);
    assert_eq!(seen.repeats(), 0);
    let one = Images { pixels: all.image(3).to_vec(), ..all.clone() };
    seen.push(&one);
    seen.push(&one);
    assert_eq!(seen.repeats(), 2);
}

// ---- features in, numbers out ----------------------------------------------

#[test]
fn features_score_as_in_the_library() {
    let dir = Dir::new();
    let (a, b, logits) = (features("a", 60, 6), features("b", 50, 6), features("logits", 60, 9));
    let (ours, theirs) = (dir.features("a.npz", &a, Some(&logits)), dir.features("b.npz", &b, None));
    let report = json(&[&ours, &"--ref", &theirs]);
    let trial = &report["trials"][0];
    assert_eq!(trial["fid"], number(frechet_distance(&moments(&a), &moments(&b)).unwrap()));
    let (mean, sd) = inception_score(&logits, 10);
    assert_eq!((&trial["is"]["mean"], &trial["is"]["sd"]), (&number(mean), &number(sd)));
    // 50 of the 60, as many as the reference has: all but every sixth.
    let kept: Vec<f32> =
        (0..60).filter(|i| (i + 1) * 50 / 60 > i * 50 / 60).flat_map(|i| a.row(i)).copied().collect();
    let kept = Features::new(6, kept);
    assert_eq!(kept.len(), 50);
    assert_eq!(trial["kid"]["mean"], number(kid(&kept, &b, 1, 50, &Stream::new("kid", "subsets")).0));
    assert_eq!(trial["kid"].get("sd"), None, "one subset has no deviation");
    let (precision, recall) = precision_recall(&kept, &b, 3);
    assert_eq!((&trial["precision"], &trial["recall"]), (&number(precision), &number(recall)));
    assert_eq!(report["protocol"]["kept"], 50);
    assert!(warned(&report, "50 of 60 images and 50 of the reference's 50"));
    assert_eq!(report["fid"]["mean"], trial["fid"]);
    assert!(warned(&report, "which network made its features") && warned(&report, "60 images"));
    assert_eq!(report.get("network"), None);
    let itself = json(&[&ours, &"--ref", &ours, &"--metrics", &"kid"]);
    assert_eq!(itself["warnings"].as_array().unwrap().len(), 1, "said once of one file: {itself}");
    let digest = |path: &Path| replicate::store::sha256_hex(&std::fs::read(path).unwrap());
    assert_eq!(report["reference"]["file_sha256"], digest(&theirs));

    // The text has the same numbers, and the same bytes come from one thread.
    let output = run(&[&ours, &"--ref", &theirs]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.ends_with(
            "of k = 3 as in torch-fidelity; the tables of mini, tiny, small and paper have k = 5\n"
        ),
        "{text}"
    );
    for expected in [format!("{:.4}", trial["fid"].as_f64().unwrap()), format!("{mean:.4} ± {sd:.4}")] {
        assert!(text.contains(&expected), "{expected} in {text}");
    }
    let run = |threads: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicate"));
        command.args(["score", "--json", "--ref"]).args([&theirs, &ours]).env("RAYON_NUM_THREADS", threads);
        command.output().unwrap().stdout
    };
    assert_eq!(run("1"), run("3"));
}

#[test]
fn trials_are_consecutive_ranges() {
    let dir = Dir::new();
    let (a, b) = (features("a", 35, 4), features("b", 20, 4));
    let (ours, theirs) = (dir.features("a.npz", &a, None), dir.features("b.npz", &b, None));
    let report = json(&[&ours, &"--ref", &theirs, &"--trials", &"3", &"--num", &"10", &"--metrics", &"fid"]);
    let expected: Vec<f64> = (0..3)
        .map(|t| frechet_distance(&moments(&rows(&a, 10 * t..10 * t + 10)), &moments(&b)).unwrap())
        .collect();
    let found: Vec<Value> =
        report["trials"].as_array().unwrap().iter().map(|trial| trial["fid"].clone()).collect();
    assert_eq!(found, expected.iter().map(|fid| number(*fid)).collect::<Vec<_>>());
    assert_eq!(report["trials"][2]["first"], 20);
    assert_eq!(report["fid"]["mean"], number(expected.iter().sum::<f64>() / 3.0));
    assert_eq!(report["fid"]["min"], number(expected.iter().copied().fold(f64::INFINITY, f64::min)));
    assert!(warned(&report, "the first 30 of 35 images"));
    for absent in ["is", "kid", "precision", "recall"] {
        assert_eq!(report["trials"][0].get(absent), None, "{absent} was not measured");
    }

    let error = failure(&[&ours, &"--ref", &theirs, &"--trials", &"3", &"--num", &"12"], EXIT_INPUT);
    assert!(error.contains("expected 3 x 12 images, found 35") && error.contains("--trials"), "{error}");
    let error = failure(&[&ours, &"--ref", &theirs, &"--num", &"36"], EXIT_INPUT);
    assert!(error.contains("expected 36 images, found 35"), "{error}");
}

#[test]
fn a_saved_reference_serves_as_one() {
    let dir = Dir::new();
    let (a, b) = (features("a", 30, 4), features("b", 40, 4));
    let (ours, theirs) = (dir.features("a.npz", &a, None), dir.features("b.npz", &b, None));
    let saved = dir.path("new/ref.npz");
    let first = json(&[&ours, &"--ref", &theirs, &"--save-ref", &saved, &"--metrics", &"fid"]);
    let digest = replicate::store::sha256_hex(&std::fs::read(&saved).unwrap());
    assert_eq!(first["saved"]["sha256"], digest);
    let second = json(&[&ours, &"--ref", &saved]);
    assert_eq!(second["trials"][0]["fid"], first["trials"][0]["fid"]);
    assert_eq!(second["reference"]["file_sha256"], digest);
    assert!(warned(&second, "KID: needs the reference's images"));
    // Without a reference the images become one.
    let own = dir.path("own.npz");
    let report = json(&[&theirs, &"--save-ref", &own]);
    assert_eq!(std::fs::read(&own).unwrap(), std::fs::read(&saved).unwrap());
    assert_eq!(report["trials"][0].get("fid"), None);
}

#[test]
fn classes_in_order_are_noticed() {
    let dir = Dir::new();
    let n = 10_000;
    let class = |of: &dyn Fn(usize) -> usize| {
        let logits = (0..n).flat_map(|i| (0..10).map(move |c| (i, c)));
        Features::new(10, logits.map(|(i, c)| if of(i) == c { 9.0 } else { 0.0 }).collect())
    };
    let score = |logits: &Features| {
        json(&[&dir.features("a.npz", &features("order", n, 1), Some(logits)), &"--metrics", &"is"])
    };
    let ordered = score(&class(&|i| i * 10 / n));
    assert!(warned(&ordered, "the order of their classes"), "{ordered}");
    assert!(ordered["trials"][0]["is"]["mean"].as_f64().unwrap() < 1.01);
    let mixed = score(&class(&|i| i % 10));
    assert!(!warned(&mixed, "the order of their classes"), "{mixed}");
    assert!(mixed["trials"][0]["is"]["mean"].as_f64().unwrap() > 8.0);
}

#[test]
fn what_cannot_be_measured_is_a_usage_error() {
    let dir = Dir::new();
    let few = dir.features("few.npz", &features("a", 3, 4), None);
    let ours = dir.features("a.npz", &features("a", 30, 4), None);
    let other = dir.features("b.npz", &features("b", 30, 5), None);
    let statistics = dir.path("ref.npz");
    json(&[&ours, &"--save-ref", &statistics]);
    for (arguments, expected) in [
        (&[&ours as &dyn AsRef<std::ffi::OsStr>, &"--metrics", &"fid"][..], "FID: needs a reference (--ref)"),
        (&[&ours], "IS: needs logits"),
        (&[&ours, &"--ref", &ours, &"--metrics", &"is"], "IS: needs logits"),
        (
            &[&ours, &"--ref", &statistics, &"--metrics", &"fid,pr"],
            "precision and recall: needs the reference's images",
        ),
        (&[&few, &"--ref", &ours, &"--metrics", &"pr"], "at least 4 images, a trial has 3"),
        (&[&ours, &"--ref", &few, &"--metrics", &"pr"], "few.npz has 3"),
        (&[&statistics], "give it as --ref"),
        (&[&ours, &"--ref", &statistics, &"--save-ref", &dir.path("c.npz")], "already"),
        (
            &[&ours, &"--save-ref", &dir.path("c.npz"), &"--trials", &"2", &"--num", &"9"],
            "leave --trials out",
        ),
        (&[&ours, &"--save-ref", &dir.path("c.npz"), &"--num", &"1"], "1 image has no covariance"),
        (&[&ours, &"--metrics", &"fidd"], "invalid value"),
        (&[&ours, &"--trials", &"0"], "0 is not in 1..=100"),
    ] {
        let error = failure(arguments, EXIT_USAGE);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let error = failure(&[&ours, &"--ref", &other], EXIT_INPUT);
    assert!(error.contains("features of 4 dimensions, found 5"), "{error}");
    let nan = dir.features("nan.npz", &Features::new(2, vec![0.0, 1.0, f32::NAN, 1.0]), None);
    let error = failure(&[&nan, &"--ref", &nan], EXIT_INPUT);
    assert!(error.contains("nan.npz") && error.contains("row 1, column 0"), "{error}");
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let dir = Dir::new();
    let store = dir.path("store");
    let ours = dir.features("a.npz", &features("a", 30, 2048), None);
    let pictures = dir.write("a.npy", channels_last(&images("a", 12, 4)));
    for (arguments, expected) in [
        (&[&dir.path("nowhere") as &dyn AsRef<std::ffi::OsStr>][..], "nowhere"),
        (&[&ours, &"--ref", &"nosuch"], "--ref fid-reference"),
        (&[&ours, &"--ref", &"cifar10"], "`replicate fetch cifar10 --store"),
        (&[&ours, &"--ref", &"fid-reference"], "`replicate fetch fid-reference --store"),
        (&[&pictures], "--inception names a file"),
        (&[&pictures, &"--inception", &dir.path("none.pth")], "none.pth"),
        (&[&pictures, &"--inception", &pictures], "a.npy"),
    ] {
        let error = failure(&[arguments, &[&"--store", &store]].concat(), EXIT_INPUT);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

// ---- from pixels -----------------------------------------------------------

/// The program's numbers from pixels are those of the network's features; 48
/// images go through the network.
#[test]
fn images_score_as_their_features_do() {
    let dir = Dir::new();
    let weights = dir.write("inception.pth", inception_pth());
    let (mut a, b) = (images("pixels a", 12, 32), images("pixels b", 12, 16));
    let first = a.image(0).to_vec();
    a.pixels.splice(11 * first.len().., first);
    for i in 0..12 {
        dir.write(&format!("a/{i:05}.png"), png(&a, i));
    }
    let (ours, theirs) = (dir.path("a"), dir.write("b.npy", channels_last(&b)));
    let saved = dir.path("ref.npz");
    let report = json(&[&ours, &"--ref", &theirs, &"--inception", &weights, &"--save-ref", &saved]);

    let pixels: Vec<u8> = (0..12).flat_map(|i| a.image(i)).copied().collect();
    assert_eq!(report["images"]["pixels_sha256"], replicate::store::sha256_hex(&pixels));
    assert_eq!(report["network"]["sha256"], replicate::store::sha256_hex(&std::fs::read(&weights).unwrap()));
    assert_eq!(report["network"]["published"], false);
    assert_eq!(report["images"]["repeats"], 1);
    for warning in [
        "published weights",
        "1 of 12 images repeat",
        "32x32 pixels, the reference's 16x16",
        "singular",
        "50000",
    ] {
        assert!(warned(&report, warning), "{warning}: {report}");
    }

    let network = Inception::load(&candle_core::Device::Cpu, torch::read(&weights).unwrap()).unwrap();
    let (fa, la) = network.extract(&a, 0..12).unwrap();
    let (fb, _) = network.extract(&b, 0..12).unwrap();
    let arrays = npz_arrays(&saved).unwrap();
    assert_eq!(
        (&arrays["mu"].data, &arrays["sigma"].data),
        (&moments(&fb).mean(), &moments(&fb).covariance())
    );
    let (found, expected) = (report["trials"][0]["fid"].as_f64().unwrap(), fd_from_samples(&fa, &fb));
    assert!((found - expected).abs() <= 1e-9 * expected, "{found}, {expected}");
    let (fa, fb) = (dir.features("fa.npz", &fa, Some(&la)), dir.features("fb.npz", &fb, None));
    let by_features = json(&[&fa, &"--ref", &fb, &"--metrics", &"is,kid,pr"]);
    for metric in ["is", "kid", "precision", "recall"] {
        assert_eq!(by_features["trials"][0][metric], report["trials"][0][metric], "{metric}");
    }
}
