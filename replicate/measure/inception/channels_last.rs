//! Layers of the network built on the kernels of this crate, channels last, for the CPU.

use super::topology::Layer;
use crate::network::cpu::{Filter, Maps, average_pool, max_pool};

/// Returns height, width and channels after a sequence of layers.
pub fn shape(layers: &[Layer<Filter>], from: [usize; 3]) -> [usize; 3] {
    layers.iter().fold(from, |from, layer| match layer {
        Layer::Conv(filter) => filter.output_shape(from),
        Layer::MaxPool(window) | Layer::AveragePool(window) => {
            let [height, width] = window.output(from[0], from[1]);
            [height, width, from[2]]
        }
        Layer::Fork(branches) => {
            let shapes = branches.iter().map(|branch| shape(branch, from));
            shapes.reduce(|all, one| [one[0], one[1], all[2] + one[2]]).unwrap_or(from)
        }
    })
}

/// Runs a sequence of layers on `x` and writes to the channels of `y` from `channel` on.
pub fn forward(layers: &[Layer<Filter>], x: &Maps, y: &mut Maps, channel: usize) {
    let Some((last, before)) = layers.split_last() else { return };
    let mut between: Option<Maps> = None;
    for layer in before {
        let x = between.as_ref().unwrap_or(x);
        let mut y = Maps::uninit(x.images, shape(std::slice::from_ref(layer), x.shape()));
        apply(layer, x, &mut y, 0);
        between = Some(y);
    }
    apply(last, between.as_ref().unwrap_or(x), y, channel);
}

fn apply(layer: &Layer<Filter>, x: &Maps, y: &mut Maps, channel: usize) {
    match layer {
        Layer::Conv(filter) => filter.apply(x, y, channel),
        Layer::MaxPool(window) => max_pool(x, *window, y, channel),
        Layer::AveragePool(window) => average_pool(x, *window, y, channel),
        Layer::Fork(branches) => {
            let mut channel = channel;
            for branch in branches {
                forward(branch, x, y, channel);
                channel += shape(branch, x.shape())[2];
            }
        }
    }
}
