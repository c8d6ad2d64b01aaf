//! The FID network's file, filled by the formula.

use super::pickle::Object;
use super::torch::{LONG, Storage, legacy_stream, row_major, tensor};
use crate::common::{inception_value, unit_of};

/// A legacy torch stream of 566 tensors with the published file's names and
/// shapes (torchvision's Inception v3 with 1008 classes and without its auxiliary
/// classifier). As there, the convolutions and `fc.weight` lie in TensorFlow's
/// order, (height, width, in, out) and (in, out), and are seen through strides.
pub fn inception_pth() -> Vec<u8> {
    let (mut entries, mut storages) = (Vec::new(), Vec::new());
    let mut add = |name: String, storage: Storage, shape: &[usize], strides: &[usize]| {
        entries.push((name, tensor(storage.reference(storages.len()), shape, strides)));
        storages.push(storage);
    };
    for (block, shape @ [outputs, ..]) in convolutions() {
        let name = format!("{block}.conv.weight");
        add(name.clone(), transposed(&name, &shape), &shape, &tensorflow_strides(&shape));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            let name = format!("{block}.bn.{part}");
            add(name.clone(), filled(&name, outputs), &[outputs], &[1]);
        }
        let counter = Storage { kind: LONG, count: 1, bytes: 0i64.to_le_bytes().into() };
        add(format!("{block}.bn.num_batches_tracked"), counter, &[], &[]);
    }
    let shape = [CLASSES, FEATURES];
    add("fc.weight".into(), transposed("fc.weight", &shape), &shape, &tensorflow_strides(&shape));
    add("fc.bias".into(), filled("fc.bias", CLASSES), &[CLASSES], &[1]);
    legacy_stream(&Object::Dict(entries), &storages)
}

const CLASSES: usize = 1008;
const FEATURES: usize = 2048;

fn filled(name: &str, n: usize) -> Storage {
    Storage::of_floats(unit_of(name, n).into_iter().map(inception_value(name, &[n])))
}

/// Strides of an (out, in, ..) weight that is stored (.., in, out).
fn tensorflow_strides(shape: &[usize]) -> Vec<usize> {
    let inner = shape[0] * shape[1];
    let outer = row_major(&shape[2..]).into_iter().map(|stride| stride * inner);
    [1, shape[0]].into_iter().chain(outer).collect()
}

/// The weight in the order of those strides.
fn transposed(name: &str, shape: &[usize]) -> Storage {
    let logical: Vec<f32> =
        unit_of(name, shape.iter().product()).into_iter().map(inception_value(name, shape)).collect();
    let (outputs, inputs) = (shape[0], shape[1]);
    let per_output = logical.len() / outputs;
    let pixels = per_output / inputs;
    let mut stored = Vec::with_capacity(logical.len());
    for pixel in 0..pixels {
        for input in 0..inputs {
            let first = input * pixels + pixel;
            stored.extend((0..outputs).map(|output| logical[output * per_output + first]));
        }
    }
    Storage::of_floats(stored.into_iter())
}

/// Every convolution: its name, and its weight's (out, in, height, width).
fn convolutions() -> Vec<(String, [usize; 4])> {
    let mut all: Vec<(String, [usize; 4])> = [
        ("Conv2d_1a_3x3", [32, 3, 3, 3]),
        ("Conv2d_2a_3x3", [32, 32, 3, 3]),
        ("Conv2d_2b_3x3", [64, 32, 3, 3]),
        ("Conv2d_3b_1x1", [80, 64, 1, 1]),
        ("Conv2d_4a_3x3", [192, 80, 3, 3]),
    ]
    .map(|(name, shape)| (name.to_string(), shape))
    .into();
    let mut block = |name: &str, branches: &[(&str, [usize; 4])]| {
        all.extend(branches.iter().map(|(branch, shape)| (format!("{name}.{branch}"), *shape)));
    };
    for (name, inputs, pool) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        block(
            name,
            &[
                ("branch1x1", [64, inputs, 1, 1]),
                ("branch5x5_1", [48, inputs, 1, 1]),
                ("branch5x5_2", [64, 48, 5, 5]),
                ("branch3x3dbl_1", [64, inputs, 1, 1]),
                ("branch3x3dbl_2", [96, 64, 3, 3]),
                ("branch3x3dbl_3", [96, 96, 3, 3]),
                ("branch_pool", [pool, inputs, 1, 1]),
            ],
        );
    }
    block(
        "Mixed_6a",
        &[
            ("branch3x3", [384, 288, 3, 3]),
            ("branch3x3dbl_1", [64, 288, 1, 1]),
            ("branch3x3dbl_2", [96, 64, 3, 3]),
            ("branch3x3dbl_3", [96, 96, 3, 3]),
        ],
    );
    for (name, c) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        block(
            name,
            &[
                ("branch1x1", [192, 768, 1, 1]),
                ("branch7x7_1", [c, 768, 1, 1]),
                ("branch7x7_2", [c, c, 1, 7]),
                ("branch7x7_3", [192, c, 7, 1]),
                ("branch7x7dbl_1", [c, 768, 1, 1]),
                ("branch7x7dbl_2", [c, c, 7, 1]),
                ("branch7x7dbl_3", [c, c, 1, 7]),
                ("branch7x7dbl_4", [c, c, 7, 1]),
                ("branch7x7dbl_5", [192, c, 1, 7]),
                ("branch_pool", [192, 768, 1, 1]),
            ],
        );
    }
    block(
        "Mixed_7a",
        &[
            ("branch3x3_1", [192, 768, 1, 1]),
            ("branch3x3_2", [320, 192, 3, 3]),
            ("branch7x7x3_1", [192, 768, 1, 1]),
            ("branch7x7x3_2", [192, 192, 1, 7]),
            ("branch7x7x3_3", [192, 192, 7, 1]),
            ("branch7x7x3_4", [192, 192, 3, 3]),
        ],
    );
    for (name, inputs) in [("Mixed_7b", 1280), ("Mixed_7c", FEATURES)] {
        block(
            name,
            &[
                ("branch1x1", [320, inputs, 1, 1]),
                ("branch3x3_1", [384, inputs, 1, 1]),
                ("branch3x3_2a", [384, 384, 1, 3]),
                ("branch3x3_2b", [384, 384, 3, 1]),
                ("branch3x3dbl_1", [448, inputs, 1, 1]),
                ("branch3x3dbl_2", [384, 448, 3, 3]),
                ("branch3x3dbl_3a", [384, 384, 1, 3]),
                ("branch3x3dbl_3b", [384, 384, 3, 1]),
                ("branch_pool", [192, inputs, 1, 1]),
            ],
        );
    }
    all
}
