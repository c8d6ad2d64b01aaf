//! AMED-Plugin on iPNDM (Zhou et al. 2024, arXiv 2312.00094). A small network g_phi sees the output
//! of the denoiser's encoder. It places one more level inside each of a few intervals, and corrects
//! the step from there. Details that the paper leaves open follow its code (zju-pi/diff-sampler at
//! 68d5ce4).

use super::ipndm::{History, ipndm};
pub use super::predictor::{Prediction, Predictor};
use super::{Denoise, start};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::schedule::polynomial;
use crate::method::{Sampler, Setup, Spec, TrainingSpec};
use crate::network::Variables;
use crate::network::device::Compute;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{Config, Denoiser};
use crate::settings::{Overrides, Settings, settings};
use crate::train::Method;
use crate::train::adam::AdamConfig;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, bail};
use std::cell::RefCell;
use std::collections::VecDeque;

settings! {
    /// Settings of AMED-Plugin.
    pub struct AmedSettings: "amed", "amed_" {
        /// Network calls, two for each interval; with an odd number, the first slope needs no call.
        calls: usize = [5], 3..=1000, "";
        /// Learning rate of the predictor.
        lr: f64 = [5e-3], 0.0..=1e30, "";
    }
}

/// AMED-Plugin: iPNDM with a trained predictor of one more level in each interval.
pub const SPEC: Spec = Spec {
    name: "AMED-Plugin on iPNDM",
    cite: "Zhou et al. 2024, arXiv 2312.00094, Algorithm 2",
    file: file!(),
    fingerprint: None,
    training: Some(TrainingSpec {
        build: |setup| Ok(Box::new(Plugin::new(setup)?)),
        networks: &[
            Network::trained("predictor", Size::Other(|config| Predictor::count(pooled(config)))),
            Network::frozen("teacher", Size::Denoiser),
        ],
        calls: &[
            Call {
                step: 0,
                network: "teacher",
                pass: Pass::Counted(&Pass::Forward, without_gradient),
                times: 1.0,
            },
            Call { step: 1, network: "teacher", pass: Pass::Counted(&Pass::Through, intervals), times: 1.0 },
        ],
        from_scratch: None,
        at_most: Some(10_000),
        group: |_| 1,
    }),
    nfe: |overrides| AmedSettings::with(overrides).calls,
    settings: &[AmedSettings::listed],
    sampler: |setup, weights| Ok(Box::new(AmedSampler::new(setup, weights)?)),
};

/// Returns the intervals, each of which has one call that is differentiated.
fn intervals(overrides: &Overrides) -> f64 {
    AmedSettings::with(overrides).calls.div_ceil(2) as f64
}

/// Returns the teacher's calls of its own steps, and those at the beginning of intervals.
fn without_gradient(overrides: &Overrides) -> f64 {
    let (calls, intervals) = (AmedSettings::with(overrides).calls as f64, intervals(overrides));
    (TEACHER_LEVELS + 1) as f64 * intervals + (calls - intervals)
}

/// Number M of the teacher's levels inside each interval.
const TEACHER_LEVELS: usize = 2;
const ADAM: AdamConfig = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, rectified: false };
/// With fewer calls, iPNDM does not reach order 4.
const FEWEST_CALLS: usize = 3;

/// Computes D(x; sigma) in float64 at one level for each image (B), and the means (B, H, W) over
/// the channels of the last encoder block's output in the same call.
pub type Encode<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>;

/// Applies g_phi to the pooled feature (B, H W) and the two levels of an interval.
pub type Predict<'a> = &'a dyn Fn(&Tensor, f64, f64) -> Result<Prediction>;

/// The levels of the plugin for a number of network calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Amed {
    pub levels: Vec<f64>,
    /// True if the first slope is analytical (AFS) and costs no call.
    pub analytical: bool,
    /// Number H W of values in a channel of the last encoder block's output.
    pub pooled: usize,
}

impl Amed {
    /// Makes intervals of two calls each; if `calls` is odd, the first interval has one call.
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

    /// Returns the calls of the denoiser; calls of g_phi do not count.
    pub fn nfe(&self) -> usize {
        2 * (self.levels.len() - 1) - usize::from(self.analytical)
    }

    /// Computes the state at 0.002 from latents `z` ~ N(0, I) (B, C, H, W), in float64.
    pub fn sample(&self, encode: Encode, predict: Predict, z: &Tensor) -> Result<Tensor> {
        let mut history = History::default();
        (0..self.levels.len() - 1).try_fold(start(z, &self.levels)?, |x, interval| {
            self.interval(encode, predict, &mut history, &x, interval)
        })
    }

    /// Crosses one interval from the state `x` (B, C, H, W) at its first level, with two steps of
    /// iPNDM (the paper's Algorithm 2). The history continues from interval to interval.
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
            // x divided by its standard deviation for data with standard deviation 1 (GENIE's AFS).
            ((x / (1.0 + s * s).sqrt())?, Tensor::zeros((images, self.pooled), DType::F64, device)?)
        } else {
            let (denoised, feature) = encode(x, &Tensor::full(s, images, device)?)?;
            (((x - denoised)? / s)?, feature.flatten_from(1)?.to_dtype(DType::F64)?)
        };
        let Prediction { r, scale_dir, scale_time } = predict(&feature, s, t)?;
        // The middle level is t^r s^(1 - r).
        let middle = ((r * libm::log(t / s))?.exp()? * s)?;

        let first = history.direction(&d)?;
        let x_middle = (x + first.broadcast_mul(&per_image(&(&middle - s)?)?)?)?;

        // The level for the denoiser differs from the level in the denominator.
        let (denoised, _) = encode(&x_middle, &(&middle * scale_time)?)?;
        let d_middle = (&x_middle - denoised)?.broadcast_div(&per_image(&middle)?)?;
        let length = (scale_dir * (t - middle)?)?;
        x_middle + history.direction(&d_middle)?.broadcast_mul(&per_image(&length)?)?
    }

    /// Computes the teacher's states at the ends of the intervals: iPNDM with `TEACHER_LEVELS` more
    /// levels in each interval, and its first slope from the denoiser.
    fn targets(&self, denoise: Denoise, z: &Tensor) -> Result<Vec<Tensor>> {
        let steps = TEACHER_LEVELS + 1;
        let levels = polynomial(steps * (self.levels.len() - 1) + 1);
        Ok(ipndm(denoise, z, &levels)?.into_iter().step_by(steps).skip(1).collect())
    }
}

/// Reshapes (B) to (B, 1, 1, 1).
fn per_image(values: &Tensor) -> Result<Tensor> {
    values.reshape(((), 1, 1, 1))
}

/// Training of g_phi (section 3.4). It needs the denoiser but no images.
pub struct Training {
    pub amed: Amed,
    pub predictor: Net<Predictor>,
    lr: f64,
}

/// A student's state on its path, and the teacher's states ahead of it.
pub struct Trajectory {
    /// The student's state (B, C, H, W).
    pub x: Tensor,
    history: History,
    /// The teacher's states at the ends of the remaining intervals.
    targets: VecDeque<Tensor>,
}

impl Training {
    /// Builds the predictor, with the weights of `source`.
    pub fn new(compute: &Compute, source: &Source, amed: Amed, lr: f64) -> Result<Training> {
        let predictor = Net::new(compute, source, ADAM, |vb| Predictor::new(amed.pooled, vb))?;
        Ok(Training { amed, predictor, lr })
    }

    /// Trains on one batch of latents, interval by interval, with one update of g_phi after each.
    /// Returns the loss of each interval: the squared distance from the teacher, summed over pixels
    /// and averaged over images. The gradients pass through the middle level, both factors, and the
    /// denoiser's input and level. If a gradient is not finite, g_phi is not updated and the loss
    /// is NaN.
    pub fn step(&mut self, encode: Encode, batch: &Batch) -> Result<Vec<Tensor>> {
        let mut trajectories = self.start(encode, batch)?;
        (1..self.amed.levels.len()).map(|_| self.update(encode, batch, &mut trajectories)).collect()
    }

    /// Starts one trajectory for each microbatch.
    pub fn start(&self, encode: Encode, batch: &Batch) -> Result<Vec<Trajectory>> {
        let parts = batch.microbatches(1).into_iter();
        parts.map(|part| Trajectory::new(&self.amed, encode, &part.normal("generator.z")?)).collect()
    }

    /// Moves the students across their next interval and updates g_phi.
    pub fn update(
        &mut self,
        encode: Encode,
        batch: &Batch,
        trajectories: &mut [Trajectory],
    ) -> Result<Tensor> {
        let (amed, students) = (&self.amed, RefCell::new(trajectories.iter_mut()));
        let (gradients, losses) = self.predictor.gradients(batch, |predictor, _| {
            let mut students = students.borrow_mut();
            Ok(vec![students.next().expect("a student for each part").advance(amed, encode, predictor)?])
        })?;
        if !finite(&self.predictor.state.params, &gradients, &losses[0])? {
            return &losses[0] * f64::NAN;
        }
        self.predictor.update(batch, gradients, self.lr)?;
        Ok(losses[0].clone())
    }
}

/// True if the loss and all gradients are finite.
fn finite(params: &Params, gradients: &GradStore, loss: &Tensor) -> Result<bool> {
    let of = params.iter().filter_map(|(_, parameter)| gradients.get(parameter));
    let sum =
        of.map(|gradient| gradient.abs()?.sum_all()).try_fold(loss.to_dtype(DType::F32)?, |sum, g| sum + g?);
    Ok(sum?.to_scalar::<f32>()?.is_finite())
}

impl Trajectory {
    /// Starts from latents `z` ~ N(0, I) (B, C, H, W).
    fn new(amed: &Amed, encode: Encode, z: &Tensor) -> Result<Trajectory> {
        let denoise = |x: &Tensor, sigma: f64| -> Result<Tensor> {
            Ok(encode(x, &Tensor::full(sigma, x.dim(0)?, x.device())?)?.0)
        };
        Ok(Trajectory {
            x: start(z, &amed.levels)?,
            history: History::default(),
            targets: amed.targets(&denoise, z)?.into(),
        })
    }

    /// Crosses the next interval and returns the loss.
    fn advance(&mut self, amed: &Amed, encode: Encode, predictor: &Predictor) -> Result<Tensor> {
        let interval = amed.levels.len() - 1 - self.targets.len();
        let Some(target) = self.targets.pop_front() else { bail!("the trajectory is at its end") };
        let predict = |feature: &Tensor, s: f64, t: f64| predictor.forward(feature, s, t);
        let end = amed.interval(encode, &predict, &mut self.history, &self.x, interval)?;
        // The next interval starts where g_phi ended before its update.
        self.x = end.detach();
        (end - target)?.sqr()?.sum_all()? / self.x.dim(0)? as f64
    }
}

/// Converts D and the encoder of a float32 network to float64.
pub fn encode(denoiser: &Denoiser) -> impl Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)> {
    |x, sigma| {
        let (denoised, feature) = denoiser.tracked(&x.to_dtype(DType::F32)?, sigma)?;
        Ok((denoised.to_dtype(DType::F64)?, feature))
    }
}

/// Returns the number H W of values in a channel of the last encoder block's output.
fn pooled(config: &Config) -> usize {
    (config.size >> (config.channel_mult.len() - 1)).pow(2)
}

/// The predictor of a teacher in training.
struct Plugin {
    teacher: Denoiser,
    training: Training,
}

impl Plugin {
    /// # Errors
    /// If the row has no weights, because then there is no teacher.
    fn new(setup: &Setup) -> Result<Plugin> {
        let Some(weights) = setup.initial.row else {
            bail!("AMED-Plugin needs a teacher: it cannot start from random weights")
        };
        let AmedSettings { calls, lr } = setup.own();
        let (none, cell) = (Arrays::new(), format!("{} predictor", setup.cell));
        let source = Source { given: &none, drawn: &[""], cell: &cell };
        let amed = Amed::new(calls, pooled(setup.network))?;
        Ok(Plugin {
            teacher: Denoiser::load(setup.network, weights, setup.compute)?,
            training: Training::new(setup.compute, &source, amed, lr)?,
        })
    }
}

impl Method for Plugin {
    fn columns(&self) -> &'static [&'static str] {
        &["predictor_loss"]
    }

    /// Returns the sum of all intervals' losses.
    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let losses = self.training.step(&encode(&self.teacher), batch)?;
        Ok(vec![Tensor::stack(&losses, 0)?.sum_all()?.to_dtype(DType::F32)?])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("predictor", &mut self.training.predictor.state)]
    }
}

/// Samples the teacher with a trained predictor.
struct AmedSampler {
    teacher: Denoiser,
    predictor: Predictor,
    amed: Amed,
}

impl AmedSampler {
    /// Loads the teacher, and g_phi from `weights`.
    fn new(setup: &Setup, weights: &Arrays) -> Result<AmedSampler> {
        if !weights.contains_key("fc_r.weight") {
            bail!("the weights have no predictor; run the row amed-plugin, which trains one for its teacher");
        }
        let Some(teacher) = setup.initial.row else {
            bail!("AMED-Plugin samples a teacher, and there is none")
        };
        let amed = Amed::new(setup.own::<AmedSettings>().calls, pooled(setup.network))?;
        let build = |vb: Variables| Predictor::new(amed.pooled, vb);
        let source = Source { given: weights, drawn: &[], cell: "" };
        Ok(AmedSampler {
            teacher: Denoiser::load(setup.network, teacher, setup.compute)?,
            predictor: Params::build(setup.compute, &source, build)?.0.frozen(build)?,
            amed,
        })
    }
}

impl Sampler for AmedSampler {
    fn nfe(&self) -> usize {
        self.amed.nfe()
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        let predict = |feature: &Tensor, s: f64, t: f64| self.predictor.forward(feature, s, t);
        self.amed.sample(&encode(&self.teacher), &predict, z)
    }
}
