//! The stand-ins for what the paper's scale fetches: the library's readers find
//! in them what was put in, and their bytes never change.

#[path = "common/cifar.rs"]
mod cifar;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use common::drill::{self, CIFAR10_PER_CLASS, CIFAR100_PER_CLASS, Set};
use common::server::Server;
use common::{edm_value, inception_value, npz_arrays, unit_of};
use replicate::app::selftest::fixture::tiny;
use replicate::data::{Images, glyphs};
use replicate::network::device::Compute;
use replicate::network::params::{Arrays, Params, Source};
use replicate::network::unet::Denoiser;
use replicate::store::formats::npz;
use replicate::store::formats::torch::{self, Checkpoint, Dtype, Format};
use replicate::store::{Array, sha256_hex};

/// The program's table of assets has these hashes.
const EDM: &str = "2866c9f457dc1c79d71b1f7818ef652c3c51ae3d9ceff92d58038068bb28a0e1";
const SID: &str = "490e8b84d47c082a6a01e240799e8689bf1c9f72dbf2581531000ad13ba217d5";
const INCEPTION: &str = "99e43ca863a7ffe122b5212197078482c7854499abfe686b6c991211be86f082";
const CIFAR10: &str = "165b9c5be5de9ad32332f78102d44661da2aa88500df8e790de371e75f45582d";
const CIFAR100: &str = "c7a095a929159525947113d40f2808704ee6f4864ebc0f87eacadb417a00e98c";

fn assert_pinned(name: &str, bytes: &[u8], sha256: &str) {
    let found = sha256_hex(bytes);
    println!("{name}: {} bytes, SHA-256 {found}", bytes.len());
    assert_eq!(found, sha256, "{name} is not the file that it was");
}

#[test]
fn the_snapshot_holds_the_network() {
    let snapshot = drill::edm_snapshot(&drill::network());
    assert_pinned("edm", &snapshot, EDM);
    assert_pinned("sid", &drill::sid_snapshot(&drill::network()), SID);

    let checkpoint = torch::parse(Path::new("edm"), &snapshot).unwrap();
    assert_eq!(checkpoint.format, Format::Pickle(4));
    let filters = checkpoint.tensors.iter().filter(|(name, _)| name.ends_with(".resample_filter"));
    assert_eq!(filters.count(), 4, "two in the block down, two in the block up");

    let source = Source { given: &Arrays::new(), drawn: &[""], cell: "drill" };
    let (params, _) =
        Params::build(&Compute::CPU, &source, |vb| Denoiser::new(&drill::network(), vb)).unwrap();
    let filled = |(name, shape): (&String, &[usize])| {
        let values = unit_of(name, shape.iter().product()).into_iter().map(edm_value(name, shape));
        (name.clone(), Array { shape: shape.to_vec(), data: values.collect() })
    };
    let expected: BTreeMap<String, Array> =
        params.iter().map(|(name, var)| filled((name, var.dims()))).collect();
    assert!(checkpoint.edm_network().unwrap() == expected, "the snapshot holds another network");
}

/// PyTorch saved `edm-tiny.pkl`, with the same formula.
#[test]
fn a_snapshot_reads_as_the_one_that_pytorch_wrote() {
    let ours = torch::parse(Path::new("edm-tiny"), &drill::edm_snapshot(&tiny())).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/edm-tiny.pkl");
    let expected = torch::read(&path).unwrap();
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint.tensors.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&ours), names(&expected), "in the same order");
    assert!(ours.tensors == expected.tensors, "the values differ");
}

#[test]
fn the_inception_file_is_read_in_logical_order() {
    let file = drill::inception_pth();
    assert_pinned("inception", &file, INCEPTION);
    // Strides (1, 32, 288, 96) and (1, 1008), as in the published file.
    for strides in [b"(K\x01K\x20M\x20\x01K\x60t".as_slice(), b"K\x01M\xf0\x03\x86"] {
        assert!(file[..200_000].windows(strides.len()).any(|window| window == strides));
    }

    let checkpoint = torch::parse(Path::new("inception"), &file).unwrap();
    drop(file);
    assert_eq!((checkpoint.format, checkpoint.tensors.len()), (Format::TorchLegacy, 566));
    let mut weights = 0;
    for (name, tensor) in &checkpoint.tensors {
        if name.ends_with(".num_batches_tracked") {
            assert_eq!((tensor.dtype, tensor.shape.as_slice()), (Dtype::I64, [].as_slice()), "{name}");
            continue;
        }
        let value = inception_value(name, &tensor.shape);
        let expected = unit_of(name, tensor.shape.iter().product()).into_iter().map(value);
        let bytes: Vec<u8> = expected.flat_map(f32::to_le_bytes).collect();
        assert!(tensor.dtype == Dtype::F32 && tensor.data == bytes, "{name}");
        weights += usize::from(tensor.shape.len() > 1);
    }
    assert_eq!(weights, 95);
}

/// A directory with what is in an archive.
fn unpacked(archive: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(archive)).unpack(directory.path()).unwrap();
    directory
}

/// Those of `range` as the reader orders them.
fn in_order(images: &Images, range: Range<usize>) -> Images {
    let mut order: Vec<usize> = range.collect();
    order.sort_by_key(|&i| (images.labels[i], images.image(i)));
    images.chosen(&order)
}

#[test]
fn the_cifar10_archive_holds_digits() {
    let archive = drill::cifar_archive(Set::Cifar10, CIFAR10_PER_CLASS);
    assert_pinned("cifar10", &archive, CIFAR10);
    let directory = unpacked(&archive);
    let drawn = glyphs::images(32, glyphs::TARGET_CLASSES, CIFAR10_PER_CLASS * 6 / 5, "drill");
    let n = 10 * CIFAR10_PER_CLASS;
    let train = cifar::train(cifar::Set::Cifar10, directory.path()).unwrap();
    assert_eq!(train, in_order(&drawn, 0..n));
    let test = cifar::test(cifar::Set::Cifar10, directory.path()).unwrap();
    assert_eq!(test, in_order(&drawn, n..n / 5 * 6));
    let names = fs::read_to_string(directory.path().join("cifar-10-batches-bin/batches.meta.txt")).unwrap();
    assert!(names.starts_with("airplane\nautomobile\n") && names.ends_with("ship\ntruck\n\n"), "{names}");
}

#[test]
fn the_cifar100_archive_holds_characters() {
    let archive = drill::cifar_archive(Set::Cifar100, CIFAR100_PER_CLASS);
    assert_pinned("cifar100", &archive, CIFAR100);
    let directory = unpacked(&archive);
    let train = cifar::train(cifar::Set::Cifar100, directory.path()).unwrap();
    let drawn = glyphs::images(32, glyphs::SOURCE_CLASSES, CIFAR100_PER_CLASS, "drill");
    let labels = drawn.labels.iter().map(|label| label - 10).collect();
    let drawn = Images { labels, ..drawn };
    assert_eq!(train, in_order(&drawn, 0..drawn.len()));

    let file = |name: &str| fs::read(directory.path().join("cifar-100-binary").join(name)).unwrap();
    assert_eq!(file("test.bin").len(), 200 * 3074);
    let text = |name: &str| String::from_utf8(file(name)).unwrap();
    let (coarse, fine) = (text("coarse_label_names.txt"), text("fine_label_names.txt"));
    let names = |record: &[u8]| {
        [(&coarse, record[0]), (&fine, record[1])].map(|(names, i)| names.lines().nth(i.into()).unwrap())
    };
    let bin = file("train.bin");
    let of_class = |class: usize| names(&bin[class * 3074..]);
    assert_eq!(
        [of_class(0), of_class(99)],
        [["fruit_and_vegetables", "apple"], ["non-insect_invertebrates", "worm"]]
    );
    assert_eq!((coarse.lines().count(), fine.lines().count()), (20, 100));
}

#[test]
fn the_fid_reference_is_read_as_it_was_written() {
    let mu = [0.1, -2.0, f64::MIN_POSITIVE];
    let sigma: Vec<f64> = (0..9).map(|i| 1.0 / (1 + i) as f64).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fid-reference");
    fs::write(&path, drill::fid_reference(&mu, &sigma)).unwrap();
    let expected = [
        ("mu".to_string(), npz::Array { shape: vec![3], data: mu.into() }),
        ("sigma".to_string(), npz::Array { shape: vec![3, 3], data: sigma }),
    ];
    assert_eq!(npz_arrays(&path).unwrap(), expected.into());
}

#[test]
fn a_mirror_serves_files_whole_and_in_ranges() {
    let content: Vec<u8> = (0..=255).collect();
    let server = Server::of_files([("thing".to_string(), content.clone())].into());
    let get = |name: &str, range: Option<&str>| {
        let mut request = ureq::get(format!("{}/{name}", server.url));
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        let mut response = request.config().http_status_as_error(false).build().call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_vec().unwrap())
    };
    assert_eq!(get("thing", None), (200, content.clone()));
    assert_eq!(get("thing", Some("bytes=10-19")), (206, content[10..20].to_vec()));
    assert_eq!(get("thing", Some("bytes=250-")), (206, content[250..].to_vec()));
    assert_eq!(get("thing", Some("bytes=256-")).0, 416);
    assert_eq!(get("other", None).0, 404);
}
