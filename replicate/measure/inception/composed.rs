//! The network composed of candle's operations, channels first. It runs on devices other than the
//! CPU and is the reference in tests of the kernels.

use super::topology::Layer;
use crate::network::cpu::{Maps, Window};
use candle_core::{Device, Result, Tensor};

/// Weight (O, C, vertical, horizontal) and bias (1, O, 1, 1).
pub struct Conv {
    pub weight: Tensor,
    pub bias: Tensor,
    pub window: Window,
    pub relu: bool,
}

impl Conv {
    /// Convolves `x` (B, C, H, W).
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let Window { stride, padding: [vertical, horizontal], .. } = self.window;
        let y = if vertical == horizontal {
            x.conv2d(&self.weight, vertical, stride, 1, 1)?
        } else {
            pad(x, self.window)?.conv2d(&self.weight, 0, stride, 1, 1)?
        };
        let y = y.broadcast_add(&self.bias)?;
        if self.relu { y.relu() } else { Ok(y) }
    }
}

/// Runs a sequence of layers on `x` (B, C, H, W).
pub fn forward(layers: &[Layer<Conv>], x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for layer in layers {
        x = match layer {
            Layer::Conv(conv) => conv.apply(&x)?,
            // Padding with 0 equals padding with -inf here, because the input comes from a ReLU.
            Layer::MaxPool(window) => {
                pad(&x, *window)?.max_pool2d_with_stride(both(window.kernel), both([window.stride; 2]))?
            }
            Layer::AveragePool(window) => {
                let mean = pool_mean(&x, *window)?;
                let inside = Tensor::ones((1, 1, x.dim(2)?, x.dim(3)?), x.dtype(), x.device())?;
                mean.broadcast_div(&pool_mean(&inside, *window)?)?
            }
            Layer::Fork(branches) => {
                let outputs: Vec<Tensor> =
                    branches.iter().map(|branch| forward(branch, &x)).collect::<Result<_>>()?;
                Tensor::cat(&outputs, 1)?
            }
        };
    }
    Ok(x)
}

/// Average pooling that counts the padding.
fn pool_mean(x: &Tensor, window: Window) -> Result<Tensor> {
    pad(x, window)?.avg_pool2d_with_stride(both(window.kernel), both([window.stride; 2]))
}

fn pad(x: &Tensor, window: Window) -> Result<Tensor> {
    let [vertical, horizontal] = window.padding;
    x.pad_with_zeros(2, vertical, vertical)?.pad_with_zeros(3, horizontal, horizontal)
}

fn both([vertical, horizontal]: [usize; 2]) -> (usize, usize) {
    (vertical, horizontal)
}

/// Converts (n, H, W, C) values to a (n, C, H, W) tensor.
pub fn input(x: &Maps, device: &Device) -> Result<Tensor> {
    let x = Tensor::from_slice(x.values(), (x.images, x.height, x.width, x.channels), device)?;
    x.permute((0, 3, 1, 2))?.contiguous()
}

/// Mean over the pixels of (B, C, H, W): (B, C, 1, 1).
pub fn mean(x: &Tensor) -> Result<Tensor> {
    x.mean_keepdim((2, 3))
}

/// Copies the values of a tensor to the host.
pub fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}
