//! The network g_phi of AMED (Zhou et al. 2024, arXiv 2312.00094, section 3.3 and Fig. 6), with its
//! inputs and outputs.

use crate::network::Variables;
use crate::network::count::Count;
use crate::network::params::outline;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Init;
use candle_nn::ops::sigmoid;

/// Largest deviations of the two factors from 1.
const SCALE_DIR: f64 = 0.01;
const SCALE_TIME: f64 = 0.2;

/// Output of g_phi for one interval; each is one number for each image (B) in float64.
pub struct Prediction {
    /// Position of the middle level: 0 at the interval's first level, 1 at its last.
    pub r: Tensor,
    /// Factor of the second half's direction (c_n).
    pub scale_dir: Tensor,
    /// Factor of the level for the denoiser in the middle (a_n).
    pub scale_time: Tensor,
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, init: Init, vb: Variables) -> Result<Linear> {
        Ok(Linear {
            weight: vb.get((outputs, inputs), "weight", init)?,
            bias: vb.get(outputs, "bias", Init::Const(0.0))?,
        })
    }

    /// Computes in float64 with float32 parameters.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_dtype(DType::F64)?, self.bias.to_dtype(DType::F64)?);
        x.matmul(&weight.t()?)?.broadcast_add(&bias)
    }
}

/// The network g_phi (section 3.3, Fig. 6): 8,971 parameters for a feature of 8 x 8.
pub struct Predictor {
    map_layer0: Linear,
    enc_layer0: Linear,
    enc_layer1: Linear,
    fc_r: Linear,
    fc_scale_dir: Linear,
    fc_scale_time: Linear,
}

/// Length of the embedding of a level.
const EMBEDDING: usize = 8;
const HIDDEN: usize = 128;
const BOTTLENECK: usize = 4;

impl Predictor {
    /// Builds the network for a feature of `pooled` numbers.
    pub fn new(pooled: usize, vb: Variables) -> Result<Predictor> {
        let normal = |inputs: usize, outputs: usize, name: &str| {
            let init = Init::Randn { mean: 0.0, stdev: (1.0 / inputs as f64).sqrt() };
            Linear::new(inputs, outputs, init, vb.pp(name))
        };
        let xavier = (6.0 / (2 * EMBEDDING) as f64).sqrt();
        let uniform = Init::Uniform { lo: -xavier, up: xavier };
        let head = |name: &str| normal(BOTTLENECK + 2 * EMBEDDING, 1, name);
        Ok(Predictor {
            map_layer0: Linear::new(EMBEDDING, EMBEDDING, uniform, vb.pp("map_layer0"))?,
            enc_layer0: normal(pooled, HIDDEN, "enc_layer0")?,
            enc_layer1: normal(HIDDEN, BOTTLENECK, "enc_layer1")?,
            fc_r: head("fc_r")?,
            fc_scale_dir: head("fc_scale_dir")?,
            fc_scale_time: head("fc_scale_time")?,
        })
    }

    /// Counts the network for a feature of `pooled` numbers.
    pub fn count(pooled: usize) -> Count {
        let (_, shapes) = outline(|vb| Predictor::new(pooled, vb)).expect("shapes are all it takes");
        let parameters = shapes.values().map(|shape| shape.iter().product::<usize>() as u64).sum::<u64>();
        Count { parameters, multiply_adds: parameters, tensors: shapes.len() as u64, activations: 0 }
    }

    /// Computes the outputs for the pooled feature (B, H W), in float64, and an interval from level
    /// `s` to `t`.
    pub fn forward(&self, feature: &Tensor, s: f64, t: f64) -> Result<Prediction> {
        let images = feature.dim(0)?;
        let bottleneck = self.enc_layer1.forward(&self.enc_layer0.forward(feature)?.silu()?)?;
        let embed = |level: f64| -> Result<Tensor> {
            let map = self.map_layer0.forward(&embedding(level, feature.device())?)?.silu()?;
            map.broadcast_as((images, EMBEDDING))?.contiguous()
        };
        let all = Tensor::cat(&[bottleneck, embed(s)?, embed(t)?], 1)?;
        let head = |fc: &Linear| sigmoid(&fc.forward(&all)?.squeeze(1)?);
        // Between 1 - bound and 1 + bound.
        let factor = |fc: &Linear, bound: f64| head(fc)?.affine(2.0 * bound, 1.0 - bound);
        Ok(Prediction {
            r: head(&self.fc_r)?,
            scale_dir: factor(&self.fc_scale_dir, SCALE_DIR)?,
            scale_time: factor(&self.fc_scale_time, SCALE_TIME)?,
        })
    }
}

/// Returns sines, then cosines, of sigma at four frequencies from 1 to 1e-4: (1, 8).
fn embedding(sigma: f64, device: &Device) -> Result<Tensor> {
    let half = EMBEDDING / 2;
    let angles = (0..half).map(|j| sigma * libm::pow(1e-4, j as f64 / (half - 1) as f64));
    let values: Vec<f64> = angles.clone().map(libm::sin).chain(angles.map(libm::cos)).collect();
    Tensor::from_vec(values, (1, EMBEDDING), device)
}
