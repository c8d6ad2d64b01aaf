//! AMED-Plugin on iPNDM (Zhou et al. 2024, arXiv 2312.00094): a small network g_phi, told
//! what the denoiser's encoder sees, places one more level inside each interval of a few
//! given ones and corrects the step from there. What the paper leaves open is as in its
//! code (zju-pi/diff-sampler at 68d5ce4).

use super::ipndm::{History, ipndm};
use super::schedule::polynomial;
use super::{Denoise, start};
use crate::network::params::{Params, Source};
use crate::train::adam::{Adam, AdamConfig};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::ops::sigmoid;
use candle_nn::{Init, VarBuilder};
use std::collections::VecDeque;

/// Bounds of the two corrections: 1 +- these.
const SCALE_DIR: f64 = 0.01;
const SCALE_TIME: f64 = 0.2;
/// Levels that the teacher has inside each interval (M).
const TEACHER_LEVELS: usize = 2;
const ADAM: AdamConfig = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, rectified: false };
const LEARNING_RATE: f64 = 5e-3;
/// With fewer calls iPNDM never comes to its order 4.
const FEWEST_CALLS: usize = 3;

/// D(x; sigma) in float64 at one level an image (B), and the output (B, C, H, W) of the
/// last encoder block in the same call.
pub type Encode<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>;

/// g_phi's output for one interval, each one number an image (B) in float64.
pub struct Prediction {
    /// Place of the middle level: 0 is the interval's first, 1 its last.
    pub r: Tensor,
    /// Factor of the second half's direction (c_n).
    pub scale_dir: Tensor,
    /// Factor of the level that the denoiser is told in the middle (a_n).
    pub scale_time: Tensor,
}

/// g_phi: the pooled feature (B, H W) and the two levels of an interval.
pub type Predict<'a> = &'a dyn Fn(&Tensor, f64, f64) -> Result<Prediction>;

/// The plugin's levels for a number of network calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Amed {
    pub levels: Vec<f64>,
    /// The first slope is analytical (AFS) and costs no call.
    pub analytical: bool,
    /// H W of the last encoder block's output.
    pub pooled: usize,
}

impl Amed {
    /// Two calls an interval; one less in the first where `calls` is odd.
    ///
    /// # Errors
    /// If `calls` is too small for the order of iPNDM.
    pub fn new(calls: usize, pooled: usize) -> Result<Amed> {
        if calls < FEWEST_CALLS {
            bail!("AMED-Plugin needs {FEWEST_CALLS} calls or more for iPNDM's order, not {calls}");
        }
        let intervals = calls.div_ceil(2);
        Ok(Amed { levels: polynomial(intervals + 1), analytical: calls % 2 == 1, pooled })
    }

    /// Calls of the denoiser; those of g_phi do not count.
    pub fn nfe(&self) -> usize {
        2 * (self.levels.len() - 1) - usize::from(self.analytical)
    }

    /// The state at 0.002 from latents `z` ~ N(0, I) (B, C, H, W), in float64.
    pub fn sample(&self, encode: Encode, predict: Predict, z: &Tensor) -> Result<Tensor> {
        let mut history = History::default();
        (0..self.levels.len() - 1).try_fold(start(z, &self.levels)?, |x, interval| {
            self.interval(encode, predict, &mut history, &x, interval)
        })
    }

    /// Across one interval from the state `x` (B, C, H, W) at its first level: two steps
    /// of iPNDM (the paper's Algorithm 2), whose history goes on from interval to interval.
    pub fn interval(
        &self,
        encode: Encode,
        predict: Predict,
        history: &mut History,
        x: &Tensor,
        interval: usize,
    ) -> Result<Tensor> {
        let (s, t) = (self.levels[interval], self.levels[interval + 1]);
        let (images, device) = (x.dim(0)?, x.device());
        let (d, feature) = if self.analytical && interval == 0 {
            // x over its standard deviation, if that of the data were 1 (GENIE's AFS).
            ((x / (1.0 + s * s).sqrt())?, Tensor::zeros((images, self.pooled), DType::F64, device)?)
        } else {
            let (denoised, feature) = encode(x, &Tensor::full(s, images, device)?)?;
            (((x - denoised)? / s)?, feature.mean(1)?.flatten_from(1)?.to_dtype(DType::F64)?)
        };
        let Prediction { r, scale_dir, scale_time } = predict(&feature, s, t)?;
        // t^r s^(1 - r)
        let middle = ((r * libm::log(t / s))?.exp()? * s)?;

        let first = history.direction(&d)?;
        let x_middle = (x + first.broadcast_mul(&per_image(&(&middle - s)?)?)?)?;

        // The denoiser is told another level than the one that divides.
        let (denoised, _) = encode(&x_middle, &(&middle * scale_time)?)?;
        let d_middle = (&x_middle - denoised)?.broadcast_div(&per_image(&middle)?)?;
        let length = (scale_dir * (t - middle)?)?;
        x_middle + history.direction(&d_middle)?.broadcast_mul(&per_image(&length)?)?
    }

    /// The teacher's states at the ends of the intervals: iPNDM with `TEACHER_LEVELS` more
    /// levels in each and its first slope from the denoiser.
    fn targets(&self, denoise: Denoise, z: &Tensor) -> Result<Vec<Tensor>> {
        let steps = TEACHER_LEVELS + 1;
        let levels = polynomial(steps * (self.levels.len() - 1) + 1);
        Ok(ipndm(denoise, z, &levels)?.into_iter().step_by(steps).skip(1).collect())
    }
}

/// (B) to (B, 1, 1, 1).
fn per_image(values: &Tensor) -> Result<Tensor> {
    values.reshape(((), 1, 1, 1))
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, init: Init, vb: VarBuilder) -> Result<Linear> {
        Ok(Linear {
            weight: vb.get_with_hints((outputs, inputs), "weight", init)?,
            bias: vb.get_with_hints(outputs, "bias", Init::Const(0.0))?,
        })
    }

    /// float32 parameters, float64 values.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_dtype(DType::F64)?, self.bias.to_dtype(DType::F64)?);
        x.matmul(&weight.t()?)?.broadcast_add(&bias)
    }
}

/// g_phi (section 3.3, Fig. 6): 8,971 parameters for a feature of 8x8.
pub struct Predictor {
    map_layer0: Linear,
    enc_layer0: Linear,
    enc_layer1: Linear,
    fc_r: Linear,
    fc_scale_dir: Linear,
    fc_scale_time: Linear,
}

/// Numbers that a level is embedded in.
const EMBEDDING: usize = 8;
const HIDDEN: usize = 128;
const BOTTLENECK: usize = 4;

impl Predictor {
    /// For a feature of `pooled` numbers.
    pub fn new(pooled: usize, vb: VarBuilder) -> Result<Predictor> {
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

    /// Of the pooled feature (B, H W), in float64, and an interval from level `s` to `t`.
    pub fn forward(&self, feature: &Tensor, s: f64, t: f64) -> Result<Prediction> {
        let images = feature.dim(0)?;
        let bottleneck = self.enc_layer1.forward(&self.enc_layer0.forward(feature)?.silu()?)?;
        let embed = |level: f64| -> Result<Tensor> {
            let map = self.map_layer0.forward(&embedding(level, feature.device())?)?.silu()?;
            map.broadcast_as((images, EMBEDDING))?.contiguous()
        };
        let all = Tensor::cat(&[bottleneck, embed(s)?, embed(t)?], 1)?;
        let head = |fc: &Linear| sigmoid(&fc.forward(&all)?.squeeze(1)?);
        // 1 +- bound
        let factor = |fc: &Linear, bound: f64| head(fc)?.affine(2.0 * bound, 1.0 - bound);
        Ok(Prediction {
            r: head(&self.fc_r)?,
            scale_dir: factor(&self.fc_scale_dir, SCALE_DIR)?,
            scale_time: factor(&self.fc_scale_time, SCALE_TIME)?,
        })
    }
}

/// Sines, then cosines, of sigma itself at four frequencies from 1 to 1e-4: (1, 8).
fn embedding(sigma: f64, device: &Device) -> Result<Tensor> {
    let half = EMBEDDING / 2;
    let angles = (0..half).map(|j| sigma * libm::pow(1e-4, j as f64 / (half - 1) as f64));
    let values: Vec<f64> = angles.clone().map(libm::sin).chain(angles.map(libm::cos)).collect();
    Tensor::from_vec(values, (1, EMBEDDING), device)
}

/// Training of g_phi (section 3.4): it needs no images, only the denoiser.
pub struct Training {
    pub amed: Amed,
    pub params: Params,
    pub adam: Adam,
    predictor: Predictor,
}

/// A student on its way, and where its teacher was.
pub struct Trajectory {
    /// The student's state (B, C, H, W).
    pub x: Tensor,
    history: History,
    /// The teacher's states at the ends of the intervals that are left.
    targets: VecDeque<Tensor>,
}

impl Training {
    pub fn new(device: &Device, source: &Source, amed: Amed) -> Result<Training> {
        let (params, predictor) = Params::build(device, source, |vb| Predictor::new(amed.pooled, vb))?;
        let adam = Adam::new(ADAM, &params)?;
        Ok(Training { amed, params, adam, predictor })
    }

    /// One batch of latents `z` ~ N(0, I) (B, C, H, W): the intervals one after the other,
    /// an update of g_phi after each. Returns their losses.
    ///
    /// # Errors
    /// As [`Training::update`].
    pub fn step(&mut self, encode: Encode, z: &Tensor) -> Result<Vec<f64>> {
        let mut trajectory = self.start(encode, z)?;
        (1..self.amed.levels.len()).map(|_| self.update(encode, &mut trajectory)).collect()
    }

    pub fn start(&self, encode: Encode, z: &Tensor) -> Result<Trajectory> {
        let denoise = |x: &Tensor, sigma: f64| -> Result<Tensor> {
            Ok(encode(x, &Tensor::full(sigma, x.dim(0)?, x.device())?)?.0)
        };
        Ok(Trajectory {
            x: start(z, &self.amed.levels)?,
            history: History::default(),
            targets: self.amed.targets(&denoise, z)?.into(),
        })
    }

    /// Brings the student across its next interval and updates g_phi. The loss is the
    /// squared distance from the teacher, summed over pixels, mean over images; its
    /// gradient goes through the middle level, both factors, and the denoiser by its
    /// input and its level.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite: g_phi is as before.
    pub fn update(&mut self, encode: Encode, trajectory: &mut Trajectory) -> Result<f64> {
        let Trajectory { x, history, targets } = trajectory;
        let interval = self.amed.levels.len() - 1 - targets.len();
        let Some(target) = targets.pop_front() else { bail!("the trajectory is at its end") };
        let predict = |feature: &Tensor, s: f64, t: f64| self.predictor.forward(feature, s, t);
        let end = self.amed.interval(encode, &predict, history, x, interval)?;
        let loss = ((&end - target)?.sqr()?.sum_all()? / x.dim(0)? as f64)?;
        let gradients = loss.backward()?;
        let loss = loss.to_scalar::<f64>()?;
        let finite = |gradient: &Tensor| -> Result<bool> {
            Ok(gradient.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite())
        };
        let place = format!("interval {} of AMED's predictor", interval + 1);
        if !loss.is_finite() {
            bail!("the loss in {place} is not finite ({loss})");
        }
        for (name, parameter) in self.params.iter() {
            if let Some(gradient) = gradients.get(parameter)
                && !finite(gradient)?
            {
                bail!("the gradient of {name} in {place} is not finite");
            }
        }
        self.adam.update(&self.params, &gradients, LEARNING_RATE)?;
        // Where g_phi brought it before this update.
        *x = end.detach();
        Ok(loss)
    }
}
