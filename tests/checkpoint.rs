//! Checkpoints written by PyTorch, and files made to harm their reader.
//!
//! `CHECKPOINT_FUZZ_CASES` sets the number of mutated files (4000 without it) and
//! `--nocapture` shows what they cost; `tests/peers/make_fixtures.py` wrote the
//! fixtures.

mod common;
#[path = "common/peak.rs"]
mod peak;

use common::{directory, unit};
use peak::peak_of;
use proptest::prelude::*;
use proptest::sample::Index;
use replicate::error::{EXIT_INPUT, Error};
use replicate::store::Array;
use replicate::store::formats::torch::{self, Checkpoint, Dtype, Format, MAX_OPCODES, Tensor};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity/checkpoints").join(name)
}

const SNAPSHOTS: [&str; 4] =
    ["snapshot-protocol2.pkl", "snapshot-protocol3.pkl", "snapshot-protocol4.pkl", "snapshot-protocol5.pkl"];

fn bytes_of(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn product(shape: &[usize]) -> usize {
    shape.iter().product()
}

const PATH: &str = "somewhere/network.pkl";

fn parse(bytes: &[u8]) -> Result<Checkpoint, Error> {
    torch::parse(Path::new(PATH), bytes)
}

/// What the reader says of a file that it must not accept.
fn complaint(bytes: &[u8]) -> String {
    let error = match parse(bytes) {
        Ok(checkpoint) => panic!("accepted, with {} tensors", checkpoint.tensors.len()),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let text = error.to_string();
    assert!(text.starts_with(PATH), "{text}");
    assert!(text.len() < 1000, "{} characters", text.len());
    text
}

// ---------------------------------------------------------------- real files

#[test]
fn the_snapshot_and_the_state_dict_hold_the_same_bytes() {
    let snapshot = torch::read(&directory().join("edm-tiny.pkl")).unwrap();
    let state = torch::read(&directory().join("edm-tiny-state.pth")).unwrap();
    assert_eq!((snapshot.format, state.format), (Format::Pickle(4), Format::TorchZip));
    assert!(state.tensors.len() > 100, "{}", state.tensors.len());
    assert_eq!(snapshot.tensors.len(), state.tensors.len());
    // The order is torch's in both, too.
    for ((in_snapshot, ours), (name, expected)) in snapshot.tensors.iter().zip(&state.tensors) {
        assert_eq!(in_snapshot.strip_prefix("ema."), Some(name.as_str()));
        assert!(ours == expected, "{name} differs");
    }
}

#[test]
fn the_network_is_the_one_that_the_formula_fills() {
    for file in ["edm-tiny.pkl", "edm-tiny-state.pth"] {
        let network = torch::read(&directory().join(file)).unwrap().edm_network().unwrap();
        assert_eq!(network.values().map(|array| array.data.len()).sum::<usize>(), 189_491, "{file}");
        for (name, array) in network {
            let fan_in = product(&array.shape[1..]) as f32;
            let expected = |u: f32| match (array.shape.len(), name.ends_with(".weight")) {
                (2.., _) => u * (3.0 / fan_in).sqrt(),
                (_, true) => 1.0 + 0.1 * u,
                (_, false) => 0.1 * u,
            };
            let u = unit(&name, array.data.len());
            let worst = array.data.iter().zip(u).map(|(v, u)| (v - expected(u)).abs()).fold(0f32, f32::max);
            assert!(worst < 1e-6, "{file}: {name} differs by {worst}");
        }
    }
}

fn counted(shape: &[usize]) -> Array {
    Array { shape: shape.to_vec(), data: (0..product(shape)).map(|i| i as f32).collect() }
}

#[test]
fn snapshots_of_every_protocol_read_the_same() {
    let expected: BTreeMap<String, Array> = [
        ("model.map_layer0.weight", counted(&[4, 3])),
        ("model.map_layer0.bias", counted(&[4])),
        ("model.enc.8x8_conv.weight", counted(&[2, 3, 1, 1])),
        ("model.enc.4x4_down.weight", counted(&[2, 2, 3, 3])),
    ]
    .into_iter()
    .map(|(name, array)| (name.to_string(), array))
    .collect();
    for (file, protocol) in SNAPSHOTS.into_iter().zip(2..) {
        // Both names of NumPy's module must be in the files for this to test them.
        let bytes = bytes_of(fixture(file));
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(if protocol % 2 == 0 {
            has(b"numpy.core.multiarray")
        } else {
            has(b"numpy._core.multiarray")
        });

        let checkpoint = torch::read(&fixture(file)).unwrap();
        assert_eq!(checkpoint.format, Format::Pickle(protocol));
        let names: Vec<&str> = checkpoint.tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "ema.model.map_layer0.weight",
                "ema.model.map_layer0.bias",
                "ema.model.enc.8x8_conv.weight",
                "ema.model.enc.8x8_conv.resample_filter",
                "ema.model.enc.4x4_down.weight",
                "ema.model.enc.4x4_down.resample_filter",
            ]
        );
        assert_eq!(checkpoint.edm_network().unwrap(), expected, "{file}");
    }
}

#[test]
fn another_resample_filter_is_an_error() {
    let mut checkpoint = torch::read(&fixture(SNAPSHOTS[2])).unwrap();
    let filter = checkpoint.tensors.iter_mut().find(|(name, _)| name.ends_with("resample_filter")).unwrap();
    filter.1.data[..4].copy_from_slice(&0.5f32.to_le_bytes());
    let text = checkpoint.edm_network().unwrap_err().to_string();
    assert!(text.contains("model.enc.8x8_conv.resample_filter to be 2 x 2"), "{text}");
    assert!(text.contains("0.5"), "{text}");
}

#[test]
fn strides_offsets_types_and_nesting() {
    // counted(2, 3, 4, 5).permute(3, 2, 0, 1)
    let mut permuted = vec![];
    for i in 0..5 {
        for j in 0..4 {
            for k in 0..2 {
                for l in 0..3 {
                    permuted.push((((k * 3 + l) * 4 + j) * 5 + i) as f64);
                }
            }
        }
    }
    let up_to = |n: usize| (0..n).map(|i| i as f64).collect::<Vec<_>>();
    let expected: Vec<(&str, Dtype, Vec<usize>, Vec<f64>)> = vec![
        ("conv", Dtype::F32, vec![5, 4, 2, 3], permuted),
        ("channels_last", Dtype::F32, vec![2, 3, 4, 5], up_to(120)),
        // arange(24).reshape(4, 6)[1:3, 1::2]
        ("sliced", Dtype::F32, vec![2, 3], vec![7., 9., 11., 13., 15., 17.]),
        ("again", Dtype::F32, vec![24], up_to(24)),
        ("scalar", Dtype::I64, vec![], vec![7.]),
        ("empty", Dtype::F32, vec![0, 3], vec![]),
        ("f64", Dtype::F64, vec![2], vec![0.1, -2.]),
        // -0.000061 lies among the subnormal numbers: -1023 / 2^24.
        ("f16", Dtype::F16, vec![4], vec![1.5, -1023. / 16_777_216., 65504., f64::INFINITY]),
        (
            "bf16",
            Dtype::BF16,
            vec![3],
            vec![1.5, -3., f32::from_bits((1e30f32.to_bits() + 0x8000) & 0xffff_0000) as f64],
        ),
        ("i32", Dtype::I32, vec![2], vec![-1., 2.]),
        ("i16", Dtype::I16, vec![2], vec![-300., 2.]),
        ("i8", Dtype::I8, vec![2], vec![-128., 127.]),
        ("u8", Dtype::U8, vec![2], vec![0., 255.]),
        ("bool", Dtype::Bool, vec![2], vec![1., 0.]),
        ("nested.parameter", Dtype::F32, vec![2, 2], up_to(4)),
        ("nested.list.0", Dtype::F32, vec![1], up_to(1)),
        ("nested.list.1.last", Dtype::F32, vec![2], up_to(2)),
    ];
    for (file, format) in [("strided.pth", Format::TorchZip), ("strided-legacy.pth", Format::TorchLegacy)] {
        let checkpoint = torch::read(&fixture(file)).unwrap();
        assert_eq!(checkpoint.format, format);
        let found: Vec<_> = checkpoint
            .tensors
            .iter()
            .map(|(name, t)| (name.as_str(), t.dtype, t.shape.clone(), t.values().collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, expected, "{file}");
        // Every value here fits f32, but for 0.1, which is rounded.
        let arrays = checkpoint.arrays().unwrap();
        assert_eq!(arrays["f64"], Array { shape: vec![2], data: vec![0.1, -2.0] });
        assert_eq!(arrays["i16"].data, [-300.0, 2.0]);
    }
}

#[test]
fn integers_beyond_f32_are_an_error() {
    let of = |value: i64| Checkpoint {
        path: PATH.into(),
        format: Format::TorchZip,
        tensors: vec![(
            "steps".into(),
            Tensor { dtype: Dtype::I64, shape: vec![], data: value.to_le_bytes().to_vec() },
        )],
        unread: vec![],
    };
    assert_eq!(of(-(1 << 24)).arrays().unwrap()["steps"].data, [-16_777_216.0]);
    let text = of((1 << 24) + 1).arrays().unwrap_err().to_string();
    assert!(text.contains("steps") && text.contains("16777217") && text.contains(PATH), "{text}");
}

#[test]
fn signalling_nans_keep_their_bits() {
    let bits: u32 = 0x7f80_0001;
    let tensor = Tensor { dtype: Dtype::F32, shape: vec![1], data: bits.to_le_bytes().to_vec() };
    let (format, tensors) = (Format::TorchZip, vec![("x".into(), tensor)]);
    let checkpoint = Checkpoint { path: PATH.into(), format, tensors, unread: vec![] };
    assert_eq!(checkpoint.arrays().unwrap()["x"].data[0].to_bits(), bits);
}

#[test]
fn inspection_lists_every_tensor() {
    let text = torch::read(&fixture("strided-legacy.pth")).unwrap().describe();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].ends_with("strided-legacy.pth: legacy torch stream, 17 tensors, 297 values, 1164 bytes"),
        "{}",
        lines[0]
    );
    assert_eq!(lines.len(), 2 + 17);
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(lines[4]), ["sliced", "f32", "[2,", "3]", "7.000000e0", "1.700000e1", "1.200000e1"]);
    assert_eq!(words(lines[7]), ["empty", "f32", "[0,", "3]", "-", "-", "-"]);
}

#[test]
fn strict_loading_lists_what_differs() {
    let path = Path::new(PATH);
    let arrays: BTreeMap<String, Array> = [("a", counted(&[2])), ("b", counted(&[3])), ("c", counted(&[1]))]
        .map(|(name, array)| (name.to_string(), array))
        .into();
    let shapes = |list: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
        list.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    };
    torch::require(path, &arrays, &shapes(&[("a", &[2]), ("b", &[3]), ("c", &[1])])).unwrap();
    let error = torch::require(path, &arrays, &shapes(&[("a", &[2]), ("b", &[1, 3]), ("d", &[4])]));
    let text = error.unwrap_err().to_string();
    for part in [PATH, "3 tensors", "1 missing: d;", "1 extra: c;", "1 mis-shaped: b [3] instead of [1, 3]"] {
        assert!(text.contains(part), "{part} not in: {text}");
    }
    let many: BTreeMap<String, Array> = (0..30).map(|i| (format!("n{i:02}"), counted(&[1]))).collect();
    let text = torch::require(path, &many, &shapes(&[])).unwrap_err().to_string();
    assert!(text.contains("30 extra: n00, n01") && text.contains("n19, and 10 more"), "{text}");
}

#[test]
fn files_that_are_not_there_or_not_files() {
    let directory = tempfile::tempdir().unwrap();
    let error = torch::read(&directory.path().join("none.pkl")).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    let error = torch::read(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

// ------------------------------------------------------------- damaged files

#[test]
fn every_prefix_is_an_error() {
    for file in SNAPSHOTS.into_iter().chain(["strided.pth", "strided-legacy.pth"]) {
        let bytes = bytes_of(fixture(file));
        parse(&bytes).unwrap();
        for length in 0..bytes.len() {
            complaint(&bytes[..length]);
        }
    }
    for file in ["edm-tiny.pkl", "edm-tiny-state.pth"] {
        let bytes = bytes_of(directory().join(file));
        for length in (0..bytes.len()).step_by(1009).chain(bytes.len() - 300..bytes.len()) {
            complaint(&bytes[..length]);
        }
    }
}

#[test]
fn bytes_behind_the_end_are_an_error() {
    for file in [SNAPSHOTS[0], SNAPSHOTS[3], "strided-legacy.pth"] {
        let mut bytes = bytes_of(fixture(file));
        bytes.push(b'.');
        assert!(complaint(&bytes).contains("1 bytes behind"), "{file}");
        // Line ends and zeros are padding.
        let last = bytes.len() - 1;
        bytes.splice(last.., *b"\r\n\0\0");
        assert_eq!(parse(&bytes).unwrap().tensors.len(), parse(&bytes[..last]).unwrap().tensors.len());
    }
}

/// The files of a zip, by name.
fn unzip(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut entry = archive.by_index(index).unwrap();
            let mut content = vec![];
            entry.read_to_end(&mut content).unwrap();
            (entry.name().unwrap().into_owned(), content)
        })
        .collect()
}

fn zip_of(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in entries {
        writer.start_file(name.as_str(), stored).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn damaged_zips_are_errors() {
    let whole = bytes_of(fixture("strided.pth"));
    let entries = unzip(&whole);
    parse(&zip_of(&entries)).unwrap();

    let without = |part: &str| {
        zip_of(&entries.iter().filter(|(name, _)| !name.ends_with(part)).cloned().collect::<Vec<_>>())
    };
    assert!(complaint(&without("data.pkl")).contains("without data.pkl"));
    let text = complaint(&without("data/0"));
    assert!(text.contains("no storage \"0\"") && text.contains("the tensor \"conv\""), "{text}");

    let changed = |part: &str, content: &[u8]| {
        let mut entries = entries.clone();
        entries.iter_mut().find(|(name, _)| name.ends_with(part)).unwrap().1 = content.to_vec();
        zip_of(&entries)
    };
    assert!(complaint(&changed("data/0", &[0; 8])).contains("8 bytes in the storage"));
    assert!(complaint(&changed("byteorder", b"big")).contains("little-endian"));
    assert!(complaint(&changed("data.pkl", b"")).contains("2 bytes asked for"));

    // One bit of a storage: the checksum notices.
    let storage = &entries.iter().find(|(name, _)| name.ends_with("data/0")).unwrap().1;
    let at = whole.windows(storage.len()).position(|window| window == storage).unwrap();
    let mut flipped = whole.clone();
    flipped[at + 6] ^= 1;
    assert!(complaint(&flipped).contains("damaged zip"));

    // The archive's directory says that the first file is deflated; that the second lies where it does.
    let directory: Vec<usize> =
        (0..whole.len()).filter(|at| whole[*at..].starts_with(b"PK\x01\x02")).collect();
    let mut deflated = whole.clone();
    deflated[directory[0] + 10] = 8;
    assert!(complaint(&deflated).contains("data.pkl\" compressed, which torch.save does not do"));
    let mut overlapping = whole.clone();
    overlapping[directory[1] + 42..directory[1] + 46].fill(0);
    assert!(complaint(&overlapping).contains("files that overlap"));
}

// --------------------------------------------------------- malicious pickles

/// A pickle of protocol 4 with these opcodes.
fn pickle(body: &[u8]) -> Vec<u8> {
    [&[0x80, 4], body, b"."].concat()
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// Opcodes of a tensor of 3 elements, protocol 3.
fn tensor(shape: &[u8], strides: &[u8], offset: i32) -> Vec<u8> {
    let small = |values: &[u8]| {
        let items: Vec<u8> = values.iter().flat_map(|value| [b'K', *value]).collect();
        [b"(", items.as_slice(), b"t"].concat()
    };
    let stream = storage_stream(3);
    let load = [
        global("torch.storage", "_load_from_bytes"),
        vec![b'B'],
        (stream.len() as u32).to_le_bytes().to_vec(),
        stream,
        b"\x85R".to_vec(),
    ]
    .concat();
    let offset = [b"J".as_slice(), &offset.to_le_bytes()].concat();
    let parts = [global("torch._utils", "_rebuild_tensor_v2"), b"(".to_vec(), load, offset];
    [parts.concat(), small(shape), small(strides), b"\x89}tR".to_vec()].concat()
}

/// What `torch.storage._load_from_bytes` is given.
fn storage_stream(count: u8) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let system = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    let id = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu";
    let object = [b"\x80\x02".as_slice(), id, &[b'K', count], b"NtQ."].concat();
    let keys = b"\x80\x02]X\x01\x00\x00\x000a.";
    let values: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
    [magic, b"\x80\x02M\xe9\x03.".as_slice(), system, &object, keys, &[count, 0, 0, 0, 0, 0, 0, 0], &values]
        .concat()
}

/// {'x': the opcodes' value}
fn dictionary(value: &[u8]) -> Vec<u8> {
    pickle(&[b"}\x8c\x01x".as_slice(), value, b"s"].concat())
}

#[test]
fn the_hand_made_tensor_is_read() {
    // The files below differ from this one in one thing each.
    let checkpoint = parse(&dictionary(&tensor(&[3], &[1], 0))).unwrap();
    assert_eq!(checkpoint.arrays().unwrap(), [("x".to_string(), counted(&[3]))].into());
    let every_other = parse(&dictionary(&tensor(&[2], &[2], 0))).unwrap();
    assert_eq!(every_other.arrays().unwrap()["x"].data, [0.0, 2.0]);
}

/// What `torch.load(weights_only=True)` takes beside plain tensors; nothing of it is
/// executed, and attributes are not looked at.
#[test]
fn what_torch_calls_safe_is_read() {
    let plain = tensor(&[3], &[1], 0);
    let state = b"}\x8c\x0fno_weight_decay\x88s".as_slice();
    let parameter = |state: Option<&[u8]>, inner: &[u8]| match state {
        None => {
            [global("torch._utils", "_rebuild_parameter"), b"(".to_vec(), inner.to_vec(), b"\x88}tR".to_vec()]
                .concat()
        }
        Some(state) => {
            let function = global("torch._utils", "_rebuild_parameter_with_state");
            [function, b"(".to_vec(), inner.to_vec(), b"\x88}".to_vec(), state.to_vec(), b"tR".to_vec()]
                .concat()
        }
    };
    // The arguments of the call, in place of the call.
    let arguments = |call: &[u8], name: (&str, &str)| {
        let function = global(name.0, name.1);
        let rest = call.strip_prefix(&function[..]).unwrap().strip_suffix(b"R").unwrap().to_vec();
        (function, rest)
    };
    let from_type = |call: &[u8], name: (&str, &str), class: (&str, &str)| {
        let (function, arguments) = arguments(call, name);
        let outer = global("torch._tensor", "_rebuild_from_type_v2");
        let class = global(class.0, class.1);
        [outer, b"(".to_vec(), function, class, arguments, state.to_vec(), b"tR".to_vec()].concat()
    };
    let v2 = ("torch._utils", "_rebuild_tensor_v2");
    let of_tensor = from_type(&plain, v2, ("torch", "Tensor"));
    let with_attributes = [
        parameter(None, &plain),
        parameter(Some(state), &plain),
        of_tensor.clone(),
        parameter(Some(state), &of_tensor),
        from_type(
            &parameter(None, &plain),
            ("torch._utils", "_rebuild_parameter"),
            ("torch.nn.parameter", "Parameter"),
        ),
    ];
    for body in &with_attributes {
        let checkpoint = parse(&dictionary(body)).unwrap();
        assert_eq!(checkpoint.arrays().unwrap(), [("x".to_string(), counted(&[3]))].into());
    }
    // The oldest form has no more than storage, offset, size and stride.
    let (_, all) = arguments(&plain, v2);
    let shorter = all.strip_suffix(b"\x89}t").unwrap();
    let oldest = [global("torch._utils", "_rebuild_tensor"), shorter.to_vec(), b"tR".to_vec()].concat();
    assert_eq!(parse(&dictionary(&oldest)).unwrap().arrays().unwrap()["x"], counted(&[3]));
    // Values beside the tensors.
    let call = |module: &str, name: &str, arguments: &[u8]| {
        [global(module, name), arguments.to_vec(), b"R".to_vec()].concat()
    };
    for value in [
        global("torch", "float32"),
        global("torch", "bfloat16"),
        global("torch", "float8_e4m3fn"),
        global("torch", "int4"),
        call("torch", "device", b"\x8c\x03cpu\x85"),
        call("torch", "Size", b"K\x03\x85\x85"),
        call("torch.serialization", "_get_layout", b"\x8c\x0dtorch.strided\x85"),
        call("collections", "Counter", b"}K\x01K\x02s\x85"),
        call("builtins", "set", b"]\x85"),
        call("__builtin__", "frozenset", b"]\x85"),
        global("torch", "FloatTensor"),
        global("torch.cuda", "HalfTensor"),
        call("builtins", "bytearray", b"C\x01x\x85"),
        call(
            "builtins",
            "complex",
            b"G\x00\x00\x00\x00\x00\x00\x00\x00G\x00\x00\x00\x00\x00\x00\x00\x00\x86",
        ),
    ] {
        let body = [b"}\x8c\x01x".as_slice(), &plain, b"s\x8c\x04also", &value, b"s"].concat();
        assert_eq!(parse(&pickle(&body)).unwrap().arrays().unwrap().len(), 1);
    }
    // A key that names no tensor may be anything.
    let body = [b"}K\x01K\x02\x86K\x03s\x8c\x01x".as_slice(), &plain, b"s"].concat();
    assert_eq!(parse(&pickle(&body)).unwrap().arrays().unwrap().len(), 1);
    assert!(complaint(&pickle(&[b"}N".as_slice(), &plain, b"s"].concat())).contains("neither text nor"));
    // A view may show an element several times.
    let expanded = parse(&dictionary(&tensor(&[2, 3], &[0, 1], 0))).unwrap().arrays().unwrap();
    assert_eq!(expanded["x"].data, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    for (module, name) in [
        ("torch", "load"),
        ("torch._tensor", "_rebuild_from_type"),
        ("torch", "float31"),
        ("torch", "int9"),
        // torch takes it only where somebody has called it safe.
        ("collections", "defaultdict"),
        ("torch", "SomeStorage"),
        ("torch", "SomeTensor"),
        ("torch.cuda", "float32"),
        ("torch.cuda", "init"),
    ] {
        assert!(complaint(&dictionary(&call(module, name, b")"))).contains("is not allowed"));
    }
}

/// Tensors of kinds that are not read are named, and hinder only whoever wants them.
#[test]
fn tensors_of_other_kinds_are_listed() {
    let plain = tensor(&[3], &[1], 0);
    let call = |name: &str, arguments: &[u8]| {
        [global("torch._utils", name), arguments.to_vec(), b"R".to_vec()].concat()
    };
    // Another storage in the place of the float32 one; its elements are as long or twice as long.
    let of_storage = |name: &str, count: u8| {
        let (mut bytes, old) = (plain.clone(), b"ctorch\nFloatStorage\n".as_slice());
        let at = bytes.windows(old.len()).position(|part| part == old).unwrap();
        bytes.splice(at..at + old.len(), global("torch", name));
        let (longer, header) = (name.len() as i64 - "FloatStorage".len() as i64, b"_load_from_bytes\nB");
        let at = bytes.windows(header.len()).position(|part| part == header).unwrap() + header.len();
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        bytes[at..at + 4].copy_from_slice(&((length as i64 + longer) as u32).to_le_bytes());
        assert_eq!(count, 3, "as in the fixture");
        bytes
    };
    let kinds = [
        ("a sparse", call("_rebuild_sparse_tensor", b"NN\x86")),
        ("one without numbers", call("_rebuild_meta_tensor_no_storage", b"N\x85")),
        ("quantised", call("_rebuild_qtensor", b"N\x85")),
        ("another type", of_storage("QInt32Storage", 3)),
        ("the opposite sign", [plain.strip_suffix(b"tR").unwrap(), b"}\x8c\x03neg\x88stR"].concat()),
        (
            "an array of NumPy's",
            [global("numpy._core.multiarray", "_reconstruct"), b")R(K\x01)N\x89C\x00tb".to_vec()].concat(),
        ),
    ];
    for (kind, other) in kinds {
        let body = [b"}\x8c\x01x".as_slice(), &plain, b"s\x8c\x05other", &other, b"s"].concat();
        let checkpoint = parse(&pickle(&body)).unwrap();
        assert_eq!((checkpoint.tensors.len(), checkpoint.unread.len()), (1, 1), "{kind}");
        let text = checkpoint.describe();
        assert!(text.contains("other  -     not read: ") && text.contains(kind), "{text}");
        let error = checkpoint.arrays().unwrap_err().to_string();
        assert!(error.contains("\"other\"") && error.contains(kind), "{error}");
        assert!(!error.contains("fetch or save it again"), "{error}");
        // Beside the averaged network of a snapshot it hinders nobody.
        let body = [b"}\x8c\x03ema}\x8c\x01x".as_slice(), &plain, b"ss\x8c\x05other", &other, b"s"].concat();
        assert_eq!(parse(&pickle(&body)).unwrap().edm_network().unwrap().len(), 1);
    }
    assert!(complaint(b"").contains("found an empty file"));
}

#[test]
fn files_that_are_no_checkpoints_are_called_what_they_are() {
    let module = |deflated: &str| {
        let stored = ["data.pkl", "constants.pkl", "version", "code/__torch__/torch/nn.py"]
            .map(|name| (format!("weights/{name}{deflated}"), b"\x80\x02N.".to_vec()));
        zip_of(&stored)
    };
    let text = complaint(&module(""));
    assert!(text.contains("a compiled module (TorchScript)"), "{text}");
    let bare = ["data.pkl", "constants.pkl"].map(|name| (name.to_string(), b"\x80\x02N.".to_vec()));
    assert!(complaint(&zip_of(&bare)).contains("a compiled module (TorchScript)"));
    assert!(text.contains("state_dict()") && text.contains("replicate fetch inception"), "{text}");
    for (bytes, says) in [
        (b"\x1f\x8b\x08\x00".to_vec(), "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n".to_vec(), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "a Git LFS pointer"),
        (b"<!DOCTYPE html>".to_vec(), "a web page"),
    ] {
        assert!(complaint(&bytes).contains(says));
    }
}

#[test]
fn malicious_pickles_are_refused() {
    let nested_lists = |n: usize| [vec![b']'; n], vec![b'a'; n - 1]].concat();
    let call = |module: &str, name: &str| [global(module, name), b"\x8c\x02id\x85R".to_vec()].concat();
    let set_state = b"}\x8c\x0c__setstate__".as_slice();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("os.system by REDUCE", pickle(&call("os", "system")), r#""system" of the module "os""#),
        ("posix.system", pickle(&call("posix", "system")), r#""system" of the module "posix""#),
        ("builtins.eval", pickle(&call("builtins", "eval")), r#""eval" of the module "builtins""#),
        ("__builtin__.exec", pickle(&call("__builtin__", "exec")), r#""exec" of the module"#),
        ("getattr", pickle(&call("builtins", "getattr")), r#""getattr" of the module"#),
        ("runpy", pickle(&call("runpy", "_run_code")), r#""_run_code" of the module "runpy""#),
        ("an allowed module's other name", pickle(&call("torch.storage", "os")), r#""os" of the module"#),
        ("a dotted way out", pickle(&call("torch", "FloatStorage.__init__")), "of the module \"torch\""),
        ("torch.load", pickle(&call("torch", "load")), r#""load" of the module "torch""#),
        (
            "STACK_GLOBAL",
            pickle(b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R"),
            r#""system" of the module "os""#,
        ),
        ("STACK_GLOBAL without text", pickle(b"NK\x01\x93"), "a constructor whose name is not text"),
        ("INST", pickle(b"(\x8c\x02idios\nsystem\n"), "INST or OBJ"),
        ("OBJ", pickle(b"(N\x8c\x02ido"), "INST or OBJ"),
        ("EXT1", pickle(b"\x82\x01"), "EXT1, EXT2 or EXT4"),
        ("EXT2", pickle(b"\x83\x01\x00"), "EXT1, EXT2 or EXT4"),
        ("EXT4", pickle(b"\x84\x01\x00\x00\x00"), "EXT1, EXT2 or EXT4"),
        ("REDUCE of a text", pickle(b"\x8c\x02id)R"), "a call of something that is not a constructor"),
        ("NEWOBJ of a list", pickle(b"])\x81"), "a call of something that is not a constructor"),
        (
            "NEWOBJ of object",
            pickle(&[global("builtins", "object"), b")\x81".to_vec()].concat()),
            "\"object\"",
        ),
        (
            "BUILD with __setstate__",
            pickle(
                &[
                    global("collections", "OrderedDict"),
                    b")R".to_vec(),
                    set_state.to_vec(),
                    call("os", "system"),
                    b"sb".to_vec(),
                ]
                .concat(),
            ),
            r#""system" of the module "os""#,
        ),
        ("BUILD on a dictionary", pickle(&[b"}", set_state, b"Nsb"].concat()), "a state for something"),
        ("DUP", pickle(b"N2"), "the opcode 0x32"),
        ("an opcode of protocol 0", pickle(b"I1\n"), "the opcode 0x49"),
        ("an unknown opcode", pickle(b"\xff"), "the opcode 0xff"),
        ("an out-of-band buffer", pickle(b"\x97"), "the opcode 0x97"),
        ("protocol 0", b"(lp0\n.".to_vec(), "no pickle at byte 0"),
        ("protocol 1", b"\x80\x01N.".to_vec(), "a pickle of protocol 1"),
        ("protocol 6", b"\x80\x06N.".to_vec(), "a pickle of protocol 6"),
        ("no file at all", vec![], "found an empty file"),
        ("something else", b"not found".to_vec(), "no pickle at byte 0"),
        (
            "2^60 bytes",
            pickle(&[b"\x8e".as_slice(), &(1u64 << 60).to_le_bytes()].concat()),
            "1152921504606846976 bytes",
        ),
        (
            "2^64 - 1 letters",
            pickle(&[b"\x8d".as_slice(), &[0xff; 8]].concat()),
            "18446744073709551615 bytes",
        ),
        ("2^32 - 1 letters", pickle(b"X\xff\xff\xff\xff"), "4294967295 bytes"),
        ("a long of 2^31 bytes", pickle(b"\x8b\x00\x00\x00\x80"), "2147483648 bytes"),
        (
            "a frame beyond the end",
            pickle(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f"),
            "9223372036854775807 bytes",
        ),
        ("a name without an end", pickle(b"cos"), "a name without an end"),
        ("10^6 marks", pickle(&vec![b'('; 1_000_000]), "1000 levels of nesting"),
        ("10^6 lists", pickle(&nested_lists(1_000_000)), "262144 opcodes"),
        ("100,000 lists", pickle(&nested_lists(100_000)), "64 levels"),
        ("10^6 dictionaries", pickle(&vec![b'}'; 1_000_000]), "262144 opcodes"),
        ("memo entry 2^31 set", pickle(b"Nr\x00\x00\x00\x80"), "memo entry 2147483648 set"),
        ("memo entry 2^31 asked for", pickle(b"j\x00\x00\x00\x80"), "memo entry 2147483648 asked for"),
        ("an empty memo", pickle(b"h\x00"), "memo entry 0 asked for"),
        ("a memo that begins with 1", pickle(b"Nq\x01h\x00"), "memo entry 0 asked for"),
        ("a memo that begins with 2", pickle(b"Nq\x02"), "memo entry 2 set where there are 0"),
        ("a list within itself", pickle(b"]q\x00h\x00a"), "within itself"),
        ("a dictionary within itself", pickle(b"}\x94\x8c\x01xh\x00s"), "\"x\" within itself"),
        ("a tuple within itself", pickle(b"]\x94h\x00\x85a"), "within itself"),
        ("an empty stack", pickle(b""), "an empty stack"),
        ("a value from under a mark", pickle(b"N(\x85"), "an empty stack"),
        ("a mark that is not there", pickle(b"Nt"), "a mark taken where none is open"),
        ("a mark left open", pickle(b"(N"), "STOP with values left over"),
        ("values left over", pickle(b"NN"), "STOP with values left over"),
        ("a key without a value", pickle(b"}(Nu"), "a key without a value"),
        ("entries in a list", pickle(b"]NNs"), "not a dictionary"),
        ("items in a dictionary", pickle(b"}Na"), "not a list"),
        ("members of a list", pickle(b"](N\x90"), "not a set"),
        ("text that is not text", pickle(b"\x8c\x02\xff\xfe"), "not UTF-8"),
        (
            "a key of 100,000 bytes",
            pickle(&[b"}B\xa0\x86\x01\x00".as_slice(), &[0; 100_000], &tensor(&[3], &[1], 0), b"s"].concat()),
            "a key in",
        ),
        (
            "a key that is no key",
            pickle(&[b"}N".as_slice(), &tensor(&[3], &[1], 0), b"s"].concat()),
            "a key in \"\" that is neither",
        ),
        (
            "two tensors of one name",
            pickle(
                &[
                    b"}(\x8c\x01x".as_slice(),
                    &tensor(&[3], &[1], 0),
                    b"\x8c\x01x",
                    &tensor(&[3], &[1], 0),
                    b"u",
                ]
                .concat(),
            ),
            "two tensors of the name",
        ),
        ("a shape beyond the storage", dictionary(&tensor(&[4], &[1], 0)), "in a storage of 3 elements"),
        ("an offset beyond the storage", dictionary(&tensor(&[3], &[1], 1)), "in a storage of 3 elements"),
        ("a negative offset", dictionary(&tensor(&[1], &[1], -1)), "-1 for a size"),
        ("strides beyond the storage", dictionary(&tensor(&[2], &[3], 0)), "in a storage of 3 elements"),
        ("an expanded tensor", dictionary(&tensor(&[200, 200], &[0, 0], 0)), "4 times the file's length"),
        ("more elements than there are numbers", dictionary(&tensor(&[255; 16], &[0; 16], 0)), "3 elements"),
        ("too many dimensions", dictionary(&tensor(&[1; 17], &[1; 17], 0)), "17 dimensions"),
        (
            "fewer strides than dimensions",
            dictionary(&tensor(&[1, 3], &[1], 0)),
            "in a storage of 3 elements",
        ),
        (
            "a tensor of nothing",
            dictionary(&[global("torch._utils", "_rebuild_tensor_v2"), b")R".to_vec()].concat()),
            "without storage",
        ),
        (
            "a storage from nowhere",
            dictionary(&[global("torch._utils", "_rebuild_tensor_v2"), b"(NK\x00)))N}tR".to_vec()].concat()),
            "does not write",
        ),
        (
            "an object without state",
            dictionary(
                &[global("torch_utils.persistence", "_reconstruct_persistent_obj"), b"}\x85R".to_vec()]
                    .concat(),
            ),
            "no state",
        ),
    ];
    for (name, bytes, expected) in cases {
        let begin = Instant::now();
        let (text, peak) = peak_of(|| complaint(&bytes));
        assert!(text.contains(expected), "{name}: {text}");
        assert!(peak <= memory_bound(bytes.len()), "{name}: {peak} bytes for {}", bytes.len());
        assert!(begin.elapsed() < Duration::from_secs(5), "{name}: {:?}", begin.elapsed());
    }
}

/// What reading a file may hold beyond the file: tensors and names of
/// `torch::COPIES` times its length, and for each opcode, of which there are
/// at most `MAX_OPCODES`, a node, a value and a memo entry in growing vectors.
fn memory_bound(length: usize) -> usize {
    (16 << 10) + torch::COPIES * length + 400 * length.min(MAX_OPCODES as usize)
}

/// Lists of two references to the list before: 2^n leaves in 10 n bytes.
#[test]
fn shared_containers_do_not_multiply() {
    let laughs = |leaf: &[u8], n: u8| {
        let mut body = [b"]", leaf, b"a\x94"].concat();
        for level in 0..n {
            body.extend([b'0', b']', b'h', level, b'a', b'h', level, b'a', 0x94]);
        }
        pickle(&body)
    };
    // Without tensors there is nothing to multiply, and each list is seen once.
    assert_eq!(parse(&laughs(b"N", 60)).unwrap().tensors.len(), 0);
    assert!(complaint(&laughs(&tensor(&[3], &[1], 0), 60)).contains("4 times the file's length"));

    // One tensor under many names: as much as a few tied weights, no more.
    let mut body = [b"(", tensor(&[3], &[1], 0).as_slice(), b"\x94"].concat();
    body.extend(b"h\x00".repeat(1000));
    body.push(b't');
    assert!(complaint(&pickle(&body)).contains("4 times the file's length"));

    // A long key above many tensors makes long names.
    let key = [b"X\xe8\x03\x00\x00".as_slice(), &[b'k'; 1000]].concat();
    let body = [b"}", key.as_slice(), b"(", &tensor(&[0], &[1], 0), b"\x94", &b"h\x00".repeat(1000), b"ts"];
    assert!(complaint(&pickle(&body.concat())).contains("4 times the file's length"));
    let body = [b"}", key.as_slice(), b"}", &key, &tensor(&[3], &[1], 0), b"ss"];
    assert!(complaint(&pickle(&body.concat())).contains("a name of 2001 bytes"));
}

/// `{'net': weights, 'ema': weights}` names each tensor twice, as PyTorch loads it.
#[test]
fn one_dictionary_may_have_two_names() {
    let weights = [b"}\x8c\x01x".as_slice(), &tensor(&[3], &[1], 0), b"s\x94"].concat();
    let body = [b"}\x8c\x03net".as_slice(), &weights, b"s\x8c\x03emah\x00s"].concat();
    let checkpoint = parse(&pickle(&body)).unwrap();
    let names: Vec<&str> = checkpoint.tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["net.x", "ema.x"]);
    assert_eq!(checkpoint.tensors[0].1, checkpoint.tensors[1].1);
    assert_eq!(checkpoint.edm_network().unwrap()["x"].data, [0.0, 1.0, 2.0]);
}

/// A safetensors file of these tensors: name, type, shape, bytes.
fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let (mut json, mut data) = (String::from(r#"{"__metadata__":{"format":"pt"}"#), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        json += &format!(r#","{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#);
        data.extend_from_slice(bytes);
    }
    json.push('}');
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()
}

#[test]
fn safetensors_of_every_type_are_read() {
    let of: [(&str, &str, &[usize], &[u8]); 6] = [
        ("single", "F32", &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 192]),
        ("half", "F16", &[2], &[0, 60, 0, 192]),
        ("brain", "BF16", &[2], &[128, 63, 0, 192]),
        ("count", "I64", &[], &[7, 0, 0, 0, 0, 0, 0, 0]),
        ("mask", "BOOL", &[2], &[1, 0]),
        ("eighth", "F8_E4M3", &[2], &[1, 2]),
    ];
    let good = safetensors(&of);
    let checkpoint = parse(&good).unwrap();
    assert_eq!(checkpoint.format, Format::Safetensors);
    let values: Vec<Vec<f64>> = checkpoint.tensors.iter().map(|(_, t)| t.values().collect()).collect();
    assert_eq!(values, [vec![1.0, -2.0], vec![1.0, -2.0], vec![1.0, -2.0], vec![7.0], vec![1.0, 0.0]]);
    assert_eq!(checkpoint.tensors[0].1.shape, [1, 2]);
    let text = checkpoint.describe();
    assert!(
        text.contains("safetensors, 5 tensors") && text.contains("not read: a tensor of the type F8_E4M3")
    );
    assert!(checkpoint.arrays().unwrap_err().to_string().contains("\"eighth\""));
    assert_eq!(parse(&safetensors(&of[..5])).unwrap().arrays().unwrap()["brain"].data, [1.0, -2.0]);
    for cut in [12, 60, good.len() - 1] {
        assert!(complaint(&good[..cut]).contains("a whole safetensors file"), "{cut}");
    }
    let wrong = safetensors(&[("x", "F16", &[3], &[0; 4])]);
    assert!(complaint(&wrong).contains("x of shape [3] at bytes 0 to 4"));
}

/// Names as DistributedDataParallel, torch.compile, Lightning, averages of weights and training
/// states prefix them, and weights in half precision.
#[test]
fn the_only_network_of_a_file_is_the_network() {
    let (bytes, ones) = ([0, 60, 0, 192], [1.0, -2.0]);
    let prefixes =
        ["", "module.", "_orig_mod.module.", "ema.module.", "state_dict.net.", "ema_model.", "net."];
    for prefix in prefixes {
        let named = |name: &str| (format!("{prefix}model.{name}"), "F16", [2], bytes);
        let mut tensors = vec![named("enc.w"), named("map_layer0.w")];
        if prefix != "" {
            // Beside it, a counter of the average and the state of an optimiser.
            tensors.push(("n_averaged".into(), "F16", [2], bytes));
            tensors.push(("optimizer.state.0.exp_avg".into(), "F16", [2], bytes));
        }
        let tensors: Vec<(&str, &str, &[usize], &[u8])> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (&**name, *dtype, &shape[..], &bytes[..]))
            .collect();
        let network = parse(&safetensors(&tensors)).unwrap().edm_network().unwrap();
        assert_eq!(network.keys().collect::<Vec<_>>(), ["model.enc.w", "model.map_layer0.w"], "{prefix}");
        assert_eq!(network["model.enc.w"].data, ones, "{prefix}");
    }
    // One of two is nobody's guess.
    let two = ["a.model.enc.w", "b.model.enc.w"].map(|name| (name, "F16", &[2][..], &bytes[..]));
    assert!(parse(&safetensors(&two)).unwrap().edm_network().unwrap().contains_key("b.model.enc.w"));
    let counts = safetensors(&[("n", "I64", &[], &[0; 8])]);
    assert!(
        parse(&counts).unwrap().edm_network().unwrap_err().to_string().contains("no floating-point numbers")
    );
}

/// The dearest opcodes there are, as many as are allowed.
#[test]
fn the_most_that_a_pickle_can_cost() {
    for opcodes in [b"}".as_slice(), b"}\x94", b")", b"]h\x00a", b"N\x94", b"(t"] {
        let body = [b"]\x94", opcodes.repeat(MAX_OPCODES as usize / opcodes.len() + 9).as_slice()].concat();
        let (_, peak) = peak_of(|| complaint(&pickle(&body)));
        assert!(peak <= memory_bound(body.len()), "{peak} bytes for {}", body.len());
    }
}

// ------------------------------------------------------------------- mutants

#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Flip(Index, u8),
    Opcode(Index, u8),
    Number(Index, usize, u64),
    Delete(Index, usize),
    Repeat(Index, usize, usize),
    Move(Index, Index, usize),
    Splice(Index, Index, Index, usize),
    Truncate(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let opcode = prop::sample::select(
        (0x80..=0x98).chain(*b"(.012FGIJKLMNPQRSTUVXabcdeghijlopqrstu)}]BC").collect::<Vec<u8>>(),
    );
    let number = prop::sample::select(vec![
        0,
        1,
        2,
        3,
        7,
        8,
        127,
        128,
        255,
        256,
        65535,
        65536,
        1 << 31,
        (1 << 31) - 1,
        (1 << 32) - 1,
        1 << 60,
        1 << 63,
        u64::MAX,
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (at(), 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        (at(), opcode).prop_map(|(at, opcode)| Mutation::Opcode(at, opcode)),
        (at(), prop::sample::select(vec![1, 2, 4, 8]), number)
            .prop_map(|(at, width, number)| Mutation::Number(at, width, number)),
        (at(), 1usize..40).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (at(), 1usize..60, 2usize..50).prop_map(|(at, length, times)| Mutation::Repeat(at, length, times)),
        (at(), at(), 1usize..200).prop_map(|(from, to, length)| Mutation::Move(from, to, length)),
        (at(), at(), at(), 1usize..400)
            .prop_map(|(seed, from, to, length)| Mutation::Splice(seed, from, to, length)),
        at().prop_map(Mutation::Truncate),
    ]
}

/// Files to start from; of the last ones only `data.pkl` is mutated, because a
/// checksum guards it.
struct Seeds {
    files: Vec<Vec<u8>>,
    zip: Vec<(String, Vec<u8>)>,
}

impl Seeds {
    fn new() -> Seeds {
        let names = SNAPSHOTS.into_iter().chain(["strided-legacy.pth", "strided.pth"]);
        let mut files: Vec<_> = names.map(|name| bytes_of(fixture(name))).collect();
        let zip = unzip(files.last().unwrap());
        files.push(storage_stream(3));
        files.push(dictionary(&tensor(&[1, 3], &[3, 1], 0)));
        Seeds { files, zip }
    }

    fn mutant(&self, seed: Index, mutations: &[Mutation]) -> Vec<u8> {
        let seed = seed.index(self.files.len() + 2);
        match self.files.get(seed) {
            Some(file) => self.mutated(file.clone(), mutations),
            None => {
                let mut entries = self.zip.clone();
                let pickle = entries.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
                pickle.1 = self.mutated(std::mem::take(&mut pickle.1), mutations);
                zip_of(&entries)
            }
        }
    }

    fn mutated(&self, mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
        for mutation in mutations {
            if bytes.is_empty() {
                break;
            }
            let end = |at: usize, length: usize, bytes: &[u8]| (at + length).min(bytes.len());
            match mutation {
                Mutation::Set(at, byte) => *at.get_mut(&mut bytes) = *byte,
                Mutation::Flip(at, bit) => *at.get_mut(&mut bytes) ^= bit,
                Mutation::Opcode(at, opcode) => bytes.insert(at.index(bytes.len()), *opcode),
                Mutation::Number(at, width, number) => {
                    let at = at.index(bytes.len());
                    let end = end(at, *width, &bytes);
                    bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                }
                Mutation::Delete(at, length) => {
                    let at = at.index(bytes.len());
                    bytes.drain(at..end(at, *length, &bytes));
                }
                Mutation::Repeat(at, length, times) => {
                    let at = at.index(bytes.len());
                    let copies = bytes[at..end(at, *length, &bytes)].repeat(*times);
                    bytes.splice(at..at, copies);
                }
                Mutation::Move(from, to, length) => {
                    let from = from.index(bytes.len());
                    let part: Vec<u8> = bytes.drain(from..end(from, *length, &bytes)).collect();
                    let to = to.index(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
                Mutation::Splice(seed, from, to, length) => {
                    let other = seed.get(&self.files);
                    let from = from.index(other.len());
                    let to = to.index(bytes.len());
                    bytes.splice(to..to, other[from..end(from, *length, other)].iter().copied());
                }
                Mutation::Truncate(at) => bytes.truncate(at.index(bytes.len())),
            }
        }
        bytes
    }
}

/// Whatever is done to a file, it is read or refused, within bounds.
#[test]
fn mutants_are_read_or_refused_within_bounds() {
    let cases = match std::env::var("CHECKPOINT_FUZZ_CASES") {
        Ok(cases) => cases.parse().expect("CHECKPOINT_FUZZ_CASES is a number"),
        Err(_) => 4000,
    };
    let seeds = Seeds::new();
    let (accepted, refused) = (Cell::new(0u64), Cell::new(0u64));
    let (worst_time, worst_memory, worst_ratio) = (Cell::new(Duration::ZERO), Cell::new(0), Cell::new(0.0));
    let begin = Instant::now();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let strategy = (any::<Index>(), prop::collection::vec(mutation(), 1..6));
    runner
        .run(&strategy, |(seed, mutations)| {
            let bytes = seeds.mutant(seed, &mutations);
            let begin = Instant::now();
            let (result, peak) = peak_of(|| parse(&bytes));
            let time = begin.elapsed();
            worst_time.set(time.max(worst_time.get()));
            worst_memory.set(peak.max(worst_memory.get()));
            worst_ratio.set(f64::max(peak as f64 / bytes.len().max(100) as f64, worst_ratio.get()));
            prop_assert!(peak <= memory_bound(bytes.len()), "{peak} bytes for {}", bytes.len());
            prop_assert!(time < Duration::from_secs(5), "{time:?}");
            match result {
                Ok(checkpoint) => {
                    accepted.set(accepted.get() + 1);
                    for (name, tensor) in &checkpoint.tensors {
                        prop_assert_eq!(
                            product(&tensor.shape) * tensor.dtype.size(),
                            tensor.data.len(),
                            "{}",
                            name
                        );
                    }
                    prop_assert!(checkpoint.describe().lines().count() == 2 + checkpoint.tensors.len());
                    _ = checkpoint.arrays();
                }
                Err(Error::Malformed { path, .. }) => {
                    refused.set(refused.get() + 1);
                    prop_assert_eq!(path, Path::new(PATH));
                }
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            Ok(())
        })
        .unwrap();
    println!(
        "{} mutants in {:.1} s: {} read, {} refused; at most {} bytes ({:.1} times the file), {:?}",
        accepted.get() + refused.get(),
        begin.elapsed().as_secs_f64(),
        accepted.get(),
        refused.get(),
        worst_memory.get(),
        worst_ratio.get(),
        worst_time.get(),
    );
    // Both outcomes occur, or the mutations are too weak or too strong to test anything.
    assert!(accepted.get() * 500 > cases as u64 && refused.get() * 10 > cases as u64);
}
