//! Trains simplified continuous-time consistency models (sCT, Lu & Song 2025, arXiv 2410.11081):
//! the limit of neighbouring levels, from the network's derivative along its path. The network
//! starts from the teacher's weights and learns from the data only, without the teacher's scores.
//!
//! TrigFlow has t = arctan(sigma / sigma_d), z = sigma_d eps and x_t = cos t x_0 + sin t z. Its
//! network takes x_t / sigma_d, which equals c_in x_sigma, and is minus EDM's F.

use super::{ConsistencySampler, Sampling, images, radam, shared};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::noise::Levels;
use crate::method::{Setup, Spec, TrainingSpec};
use crate::network::params::Source;
use crate::network::precondition::{Precondition, SIGMA_DATA};
use crate::network::unet::{Conditioning, Config, Denoiser, Masks};
use crate::network::{Variables, mix};
use crate::settings::{MOST_IMAGES, Settings, settings};
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor, bail};
use candle_nn::Init;

/// Simplified continuous-time consistency training.
pub const SPEC: Spec = Spec {
    name: "sCT",
    cite: "Lu & Song 2025, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: Some(TrainingSpec {
        build: |setup| Ok(Box::new(Sct::new(setup, setup.own())?)),
        networks: &[Network::averaged("generator", Size::Denoiser)],
        calls: &[
            // A value and its derivative cost two passes.
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 2.0 },
            Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
        ],
        from_scratch: None,
        at_most: None,
        group: |_| 1,
    }),
    nfe: |overrides| Sampling::with(overrides).steps,
    settings: &[SctSettings::listed, shared, Sampling::listed],
    sampler: |setup, weights| {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        let steps = setup.own::<Sampling>().steps;
        Ok(Box::new(ConsistencySampler { denoiser, function: Denoiser::forward, bottom: 0.0, steps }))
    },
};

settings! {
    /// Settings of sCT.
    pub struct SctSettings: "sct", "sct_" {
        /// Learning rate.
        lr: f64 = [3e-4, 3e-4, 3e-4, 1e-4, 1e-4], 0.0..=1e30, "",
            Silent("sCT's 1e-4 at the paper scale; a shorter run takes more");
        /// RAdam's decay of the first moment.
        beta1: f64 = [0.9], 0.0..=0.9999, "", Silent("sCT");
        /// RAdam's decay of the second moment.
        beta2: f64 = [0.99], 0.0..=0.999999, "", Silent("sCT");
        /// Mean of ln sigma.
        p_mean: f64 = [-1.0], -10.0..=10.0, "", Silent("sCT");
        /// Standard deviation of ln sigma.
        p_std: f64 = [1.8], 0.01..=10.0, "",
            Silent("sCT's with a network like EDM's; 1.4 with its own, whose norms are double");
        /// Iterations H in which the weight of the network's derivative grows from 0 to 1.
        warmup: u64 = [4, 100, 300, 10_000, 10_000], 1..=MOST_IMAGES, "iterations",
            Silent("sCT's 10,000; shorter where the run is");
        /// Probability with which the network drops out of its blocks, alike in both passes of an image.
        dropout: f64 = [0.0], 0.0..=0.99, "", Silent("Off, as for every row; sCT's is 0.2");
    }
}

/// Batch 128, 400,000 iterations and dropout, with which the authors trained EDM's network. Their
/// own network has a batch of 512.
pub const PUBLISHED: &[&str] = &["batch=128", "images=51200000", "sct_dropout=0.2"];

/// Constant c, added to the root mean square of an image's tangent in the denominator.
const NORM: f64 = 0.1;

/// Cosines and sines of the angles t of noise levels.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn of(sigma: &[f32]) -> Angles {
        let each = |f: fn(f32) -> f32| {
            sigma.iter().map(|s| f(*s) / (s * s + SIGMA_DATA * SIGMA_DATA).sqrt()).collect()
        };
        Angles { cos: each(|_| SIGMA_DATA), sin: each(|s| s) }
    }

    fn each(&self, f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        self.cos.iter().zip(&self.sin).map(|(cos, sin)| f(*cos, *sin)).collect()
    }
}

/// A point of the path of (x_0, z), with its derivatives along the path.
pub struct Point {
    /// Input of the network, x_t / sigma_d and c_noise.
    pub input: Tensor,
    pub noise: Vec<f32>,
    /// Derivatives of the inputs by t, times cos t sin t.
    pub input_tangent: Tensor,
    pub noise_tangent: Vec<f32>,
    /// Velocity v = dx_t / dt.
    velocity: Tensor,
    angles: Angles,
}

impl Point {
    /// Makes the point at noise levels `sigma` (B) of images `x0` and noise `z` (B, C, H, W), z = sigma_d eps.
    pub fn at(x0: &Tensor, z: &Tensor, sigma: &[f32]) -> Result<Point> {
        let angles = Angles::of(sigma);
        let by = |f: fn(f32, f32) -> f32| angles.each(f);
        let input = mix(x0, &by(|cos, _| cos / SIGMA_DATA), z, &by(|_, sin| sin / SIGMA_DATA))?;
        let velocity = mix(z, &angles.cos, x0, &by(|_, sin| -sin))?;
        let input_tangent = crate::network::scale_images(&velocity, &by(|cos, sin| cos * sin / SIGMA_DATA))?;
        // These derivatives are exact: c_noise = ln(sigma) / 4 and d sigma / dt = sigma_d / cos^2
        // t.
        let (noise, noise_tangent) = (Precondition::at(sigma).noise, vec![0.25; sigma.len()]);
        Ok(Point { input, noise, input_tangent, noise_tangent, velocity, angles })
    }

    /// Returns the conditioning of the network at this point, with the masks of dropout.
    pub fn conditioning<'a>(&'a self, masks: Option<&'a Masks>) -> Conditioning<'a> {
        Conditioning { noise: &self.noise, masks, ..Conditioning::default() }
    }

    /// Computes EDM's F at this point, with dropout if there are masks, and its derivative along
    /// the tangents.
    pub fn derivative(&self, net: &Denoiser, masks: Option<&Masks>) -> Result<[Tensor; 2]> {
        net.raw_jvp([&self.input, &self.input_tangent], &self.conditioning(masks), &self.noise_tangent)
    }

    /// Computes g, the derivative of the denoised image by t, times cos t. The factor `r` scales
    /// the part that needs the network's derivative. `f` and `df` are EDM's F at this point and its
    /// derivative along the tangents.
    pub fn tangent(&self, f: &Tensor, df: &Tensor, r: f32) -> Result<Tensor> {
        let angles = &self.angles;
        let squared = angles.each(|cos, _| cos * cos);
        let matching = mix(&mix(f, &[SIGMA_DATA], &self.velocity, &[1.0])?, &squared, df, &[r * SIGMA_DATA])?;
        mix(&matching, &[1.0], &self.input, &angles.each(|cos, sin| -r * cos * sin * SIGMA_DATA))
    }
}

/// Computes g / (its root mean square + 0.1) of each image.
pub fn normalised(g: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; g.rank()];
    shape[0] = g.dim(0)?;
    g.broadcast_div(&(g.sqr()?.flatten_from(1)?.mean(1)?.sqrt()? + NORM)?.reshape(shape)?)
}

/// A denoiser with a learned weight for each noise level.
struct Student {
    denoiser: Denoiser,
    weight: Tensor,
    bias: Tensor,
}

/// Prefix of the names of the weighting's parameters.
const WEIGHTING: &str = "weighting.";

impl Student {
    fn new(config: &Config, vb: Variables) -> Result<Student> {
        let (denoiser, zero) = (Denoiser::new(config, vb.clone())?, Init::Const(0.0));
        let head = vb.pp(WEIGHTING.trim_end_matches('.'));
        let weight = head.get((1, config.model_channels), "weight", zero)?;
        Ok(Student { denoiser, weight, bias: head.get(1, "bias", zero)? })
    }

    /// Computes w (B), linear in the embedded noise level.
    fn weighting(&self, noise: &[f32]) -> Result<Tensor> {
        let rows = self.denoiser.embedded(noise, self.weight.device())?;
        rows.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?.squeeze(1)
    }
}

struct Sct {
    net: Net<Student>,
    settings: SctSettings,
    levels: Levels,
}

impl Sct {
    /// Starts from pre-trained weights.
    ///
    /// # Errors
    /// If there are no weights. Random ones would be another method.
    fn new(setup: &Setup, settings: SctSettings) -> Result<Sct> {
        let Some(given) = setup.initial.generator else {
            bail!("sCT starts from a teacher's weights, not from random ones")
        };
        let cell = format!("{} generator", setup.cell);
        let source = Source { given, drawn: &[WEIGHTING], cell: &cell };
        let net = Net::new(setup.compute, &source, radam(setup, [settings.beta1, settings.beta2]), |vb| {
            Student::new(setup.network, vb)
        })?
        .with_ema(setup.settings.ema_half_life)?;
        let levels = Levels::log_normal(settings.p_mean, settings.p_std);
        Ok(Sct { net, settings, levels })
    }
}

impl Method for Sct {
    fn columns(&self) -> &'static [&'static str] {
        &["loss", "g_rms"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let r = (batch.step as f32 / self.settings.warmup as f32).min(1.0);
        let (current, p) = (&self.net.frozen.denoiser, self.settings.dropout);
        let (gradients, values) = self.net.gradients(batch, |student, b| {
            let (x0, sigma) = (images(b)?, self.levels.draw(b, "sigma")?);
            let point = Point::at(&x0, &(b.normal("noise")? * f64::from(SIGMA_DATA))?, &sigma)?;
            // The same masks in both passes.
            let masks = b.dropout("dropout", p, &current.dropout_shapes())?;
            let [f, df] = point.derivative(current, masks.as_ref())?;
            let g = point.tangent(&f, &df, r)?;
            let g_squared = g.sqr()?.mean_all()?;
            let aim = (f - normalised(&g)?)?;
            let apart = (aim - student.denoiser.raw(&point.input, &point.conditioning(masks.as_ref()))?)?;
            let w = student.weighting(&point.noise)?;
            let loss = ((w.exp()? * apart.sqr()?.flatten_from(1)?.mean(1)?)? - w)?.mean_all()?;
            Ok(vec![loss, g_squared])
        })?;
        self.net.update(batch, gradients, self.settings.lr)?;
        let [loss, g_squared] = values.try_into().expect("two values");
        Ok(vec![loss, g_squared.sqrt()?])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.net.state)]
    }
}
