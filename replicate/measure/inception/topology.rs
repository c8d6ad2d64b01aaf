//! Layers of the FID network: Inception-v3 with torchvision's names and the pooling of the TF-2015
//! graph of the weights (pooling does not count padding; the last block uses max pooling).

use crate::error::Result;
use crate::network::cpu::Window;

/// A layer whose convolutions are of type `C`.
pub enum Layer<C> {
    Conv(C),
    MaxPool(Window),
    /// Average pooling that does not count the padding.
    AveragePool(Window),
    /// Branches on the same input; their outputs are concatenated along the channels.
    Fork(Vec<Vec<Layer<C>>>),
}

impl<C> Layer<C> {
    /// Converts every convolution of the layer.
    pub fn map<D>(self, f: &mut dyn FnMut(C) -> Result<D>) -> Result<Layer<D>> {
        Ok(match self {
            Layer::Conv(conv) => Layer::Conv(f(conv)?),
            Layer::MaxPool(window) => Layer::MaxPool(window),
            Layer::AveragePool(window) => Layer::AveragePool(window),
            Layer::Fork(branches) => {
                let branches = branches.into_iter().map(|branch| map(branch, f));
                Layer::Fork(branches.collect::<Result<_>>()?)
            }
        })
    }
}

/// Applies [`Layer::map`] to a sequence of layers.
pub fn map<C, D>(layers: Vec<Layer<C>>, f: &mut dyn FnMut(C) -> Result<D>) -> Result<Vec<Layer<D>>> {
    layers.into_iter().map(|layer| layer.map(f)).collect()
}

/// A convolution without bias, followed by batch normalisation and ReLU; `name.conv` and `name.bn`
/// in a checkpoint.
pub struct Conv {
    pub name: String,
    pub inputs: usize,
    pub outputs: usize,
    pub window: Window,
}

/// Returns the layers up to each of the four depths at which features are taken: 64, 192, 768 and
/// 2048 channels.
pub fn stages() -> [Vec<Layer<Conv>>; 4] {
    [
        vec![
            valid("Conv2d_1a_3x3", 3, 32, [3, 3], 2),
            valid("Conv2d_2a_3x3", 32, 32, [3, 3], 1),
            same("Conv2d_2b_3x3", 32, 64, [3, 3]),
            Layer::MaxPool(HALVE),
        ],
        vec![
            valid("Conv2d_3b_1x1", 64, 80, [1, 1], 1),
            valid("Conv2d_4a_3x3", 80, 192, [3, 3], 1),
            Layer::MaxPool(HALVE),
        ],
        vec![
            mixed_5("Mixed_5b", 192, 32),
            mixed_5("Mixed_5c", 256, 64),
            mixed_5("Mixed_5d", 288, 64),
            mixed_6a("Mixed_6a", 288),
            mixed_6("Mixed_6b", 128),
            mixed_6("Mixed_6c", 160),
            mixed_6("Mixed_6d", 160),
            mixed_6("Mixed_6e", 192),
        ],
        vec![
            mixed_7a("Mixed_7a", 768),
            mixed_7("Mixed_7b", 1280, Layer::AveragePool(SAME)),
            mixed_7("Mixed_7c", 2048, Layer::MaxPool(SAME)),
        ],
    ]
}

const HALVE: Window = Window { kernel: [3, 3], stride: 2, padding: [0, 0] };
const SAME: Window = Window { kernel: [3, 3], stride: 1, padding: [1, 1] };

fn same(name: &str, inputs: usize, outputs: usize, kernel: [usize; 2]) -> Layer<Conv> {
    let padding = [kernel[0] / 2, kernel[1] / 2];
    Layer::Conv(Conv { name: name.into(), inputs, outputs, window: Window { kernel, stride: 1, padding } })
}

fn valid(name: &str, inputs: usize, outputs: usize, kernel: [usize; 2], stride: usize) -> Layer<Conv> {
    let window = Window { kernel, stride, padding: [0, 0] };
    Layer::Conv(Conv { name: name.into(), inputs, outputs, window })
}

/// A sequence of convolutions: name, output channels, kernel.
type Row = [(&'static str, usize, [usize; 2])];

/// Makes convolutions that keep the size of the image.
fn branch(block: &str, inputs: usize, convs: &Row) -> Vec<Layer<Conv>> {
    let inputs = std::iter::once(inputs).chain(convs.iter().map(|conv| conv.1));
    convs
        .iter()
        .zip(inputs)
        .map(|((name, outputs, kernel), inputs)| same(&format!("{block}.{name}"), inputs, *outputs, *kernel))
        .collect()
}

/// Makes a [`branch`] whose last convolution halves the image.
fn halving(block: &str, inputs: usize, convs: &Row) -> Vec<Layer<Conv>> {
    let mut branch = branch(block, inputs, convs);
    if let Some(Layer::Conv(last)) = branch.last_mut() {
        last.window = Window { stride: 2, padding: [0, 0], ..last.window };
    }
    branch
}

fn mixed_5(name: &str, inputs: usize, pool: usize) -> Layer<Conv> {
    let mut pooled = vec![Layer::AveragePool(SAME)];
    pooled.extend(branch(name, inputs, &[("branch_pool", pool, [1, 1])]));
    Layer::Fork(vec![
        branch(name, inputs, &[("branch1x1", 64, [1, 1])]),
        branch(name, inputs, &[("branch5x5_1", 48, [1, 1]), ("branch5x5_2", 64, [5, 5])]),
        branch(
            name,
            inputs,
            &[("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3]), ("branch3x3dbl_3", 96, [3, 3])],
        ),
        pooled,
    ])
}

fn mixed_6a(name: &str, inputs: usize) -> Layer<Conv> {
    Layer::Fork(vec![
        halving(name, inputs, &[("branch3x3", 384, [3, 3])]),
        halving(
            name,
            inputs,
            &[("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3]), ("branch3x3dbl_3", 96, [3, 3])],
        ),
        vec![Layer::MaxPool(HALVE)],
    ])
}

/// Makes a `Mixed_6` block; `narrow` is the number of channels between its 7-wide convolutions.
fn mixed_6(name: &str, narrow: usize) -> Layer<Conv> {
    let inputs = 768;
    let mut pooled = vec![Layer::AveragePool(SAME)];
    pooled.extend(branch(name, inputs, &[("branch_pool", 192, [1, 1])]));
    Layer::Fork(vec![
        branch(name, inputs, &[("branch1x1", 192, [1, 1])]),
        branch(
            name,
            inputs,
            &[("branch7x7_1", narrow, [1, 1]), ("branch7x7_2", narrow, [1, 7]), ("branch7x7_3", 192, [7, 1])],
        ),
        branch(
            name,
            inputs,
            &[
                ("branch7x7dbl_1", narrow, [1, 1]),
                ("branch7x7dbl_2", narrow, [7, 1]),
                ("branch7x7dbl_3", narrow, [1, 7]),
                ("branch7x7dbl_4", narrow, [7, 1]),
                ("branch7x7dbl_5", 192, [1, 7]),
            ],
        ),
        pooled,
    ])
}

fn mixed_7a(name: &str, inputs: usize) -> Layer<Conv> {
    Layer::Fork(vec![
        halving(name, inputs, &[("branch3x3_1", 192, [1, 1]), ("branch3x3_2", 320, [3, 3])]),
        halving(
            name,
            inputs,
            &[
                ("branch7x7x3_1", 192, [1, 1]),
                ("branch7x7x3_2", 192, [1, 7]),
                ("branch7x7x3_3", 192, [7, 1]),
                ("branch7x7x3_4", 192, [3, 3]),
            ],
        ),
        vec![Layer::MaxPool(HALVE)],
    ])
}

fn mixed_7(name: &str, inputs: usize, pool: Layer<Conv>) -> Layer<Conv> {
    let mut wide = branch(name, inputs, &[("branch3x3_1", 384, [1, 1])]);
    wide.push(Layer::Fork(vec![
        branch(name, 384, &[("branch3x3_2a", 384, [1, 3])]),
        branch(name, 384, &[("branch3x3_2b", 384, [3, 1])]),
    ]));
    let mut double =
        branch(name, inputs, &[("branch3x3dbl_1", 448, [1, 1]), ("branch3x3dbl_2", 384, [3, 3])]);
    double.push(Layer::Fork(vec![
        branch(name, 384, &[("branch3x3dbl_3a", 384, [1, 3])]),
        branch(name, 384, &[("branch3x3dbl_3b", 384, [3, 1])]),
    ]));
    let mut pooled = vec![pool];
    pooled.extend(branch(name, inputs, &[("branch_pool", 192, [1, 1])]));
    Layer::Fork(vec![branch(name, inputs, &[("branch1x1", 320, [1, 1])]), wide, double, pooled])
}
