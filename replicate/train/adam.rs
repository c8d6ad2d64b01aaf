//! Adam and RAdam with readable state, and exponential moving averages of parameters.

use crate::network::Variables;
use crate::network::cpu::{values, values_mut};
#[cfg(feature = "cudnn")]
use crate::network::gpu as cuda;
use crate::network::params::{Arrays, Params, from_array, to_array};
use crate::settings::Choice;
use crate::store::Array;
use crate::train::batch::Batch;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var};
use std::collections::BTreeMap;

/// Course of a learning rate after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LrSchedule {
    Constant,
    /// Half a cosine down to 0.
    Cosine,
}

impl Choice for LrSchedule {
    const ALL: &'static [(&'static str, LrSchedule)] =
        &[("constant", LrSchedule::Constant), ("cosine", LrSchedule::Cosine)];
}

/// Settings of Adam or RAdam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// RAdam (Liu et al. 2020): uses no second moment while its variance is unknown, and a smaller
    /// step while the variance is large.
    pub rectified: bool,
}

impl AdamConfig {
    /// Returns the coefficients of step `t`, counted from 1: x -= size m / (scale sqrt(v) + eps),
    /// as PyTorch computes it.
    fn step(self, t: u64, lr: f64) -> Step {
        let AdamConfig { beta1, beta2, eps, rectified } = self;
        let (size, correction) = (lr / (1.0 - beta1.powi(t as i32)), 1.0 - beta2.powi(t as i32));
        if !rectified {
            return Step { size, scale: 1.0 / correction.sqrt(), eps };
        }
        let most = 2.0 / (1.0 - beta2) - 1.0;
        // Effective length of the average in the second moment so far.
        let length = most - 2.0 * t as f64 * (1.0 - correction) / correction;
        if length <= 5.0 {
            return Step { size, scale: 0.0, eps: 1.0 };
        }
        let of = |length: f64| (length - 4.0) * (length - 2.0) / length;
        Step { size: size * (of(length) / of(most) * correction).sqrt(), scale: 1.0, eps }
    }
}

/// Returns `lr` after a linear warm-up over the first `images`.
pub fn warmed_up(lr: f64, images: u64, batch: &Batch) -> f64 {
    lr * (batch.images_seen() as f64 / images.max(1) as f64).min(1.0)
}

/// Half a cosine from 1 after `warmup` images down to 0 after `total`.
pub fn cosine(warmup: u64, total: u64, batch: &Batch) -> f64 {
    let seen = batch.images_seen().saturating_sub(warmup) as f64;
    let along = seen / total.saturating_sub(warmup).max(1) as f64;
    0.5 * (1.0 + libm::cos(std::f64::consts::PI * along.min(1.0)))
}

/// Computes a = beta a + (1 - beta) x, or x^2, in one pass on the CPU.
struct Lerp {
    beta: f32,
    square: bool,
}

impl InplaceOp2 for Lerp {
    fn name(&self) -> &'static str {
        "lerp"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        let rest = 1.0 - self.beta;
        for (a, x) in values_mut(a, la)?.iter_mut().zip(values(x, lx)?) {
            *a = self.beta * *a + rest * if self.square { x * x } else { *x };
        }
        Ok(())
    }
}

/// Computes x -= size m / (scale sqrt(v) + eps), in one pass on the CPU.
struct Step {
    size: f64,
    scale: f64,
    eps: f64,
}

impl InplaceOp3 for Step {
    fn name(&self) -> &'static str {
        "step"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        lx: &Layout,
        m: &CpuStorage,
        lm: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<()> {
        let [size, scale, eps] = [self.size, self.scale, self.eps].map(|v| v as f32);
        let moments = values(m, lm)?.iter().zip(values(v, lv)?);
        for (x, (m, v)) in values_mut(x, lx)?.iter_mut().zip(moments) {
            *x -= size * (m / (scale * v.sqrt() + eps));
        }
        Ok(())
    }
}

/// Name of the array with the number of steps.
const STEPS: &str = "steps";
/// Base of the two float32 digits that hold the number of steps exactly.
const HIGHER: u64 = 1 << 24;

/// Adam (Kingma and Ba 2015) or RAdam, as PyTorch computes them.
pub struct Adam {
    config: AdamConfig,
    step: u64,
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl Adam {
    /// Starts with zero moments.
    pub fn new(config: AdamConfig, params: &Params) -> Result<Adam> {
        let moments = params
            .iter()
            .map(|(name, var)| Ok((name.clone(), (var.zeros_like()?, var.zeros_like()?))))
            .collect::<Result<_>>()?;
        Ok(Adam { config, step: 0, moments })
    }

    /// Takes one step. A parameter without a gradient does not change.
    pub fn update(&mut self, params: &Params, grads: &GradStore, lr: f64) -> Result<()> {
        self.step += 1;
        let AdamConfig { beta1, beta2, .. } = self.config;
        let step = self.config.step(self.step, lr);
        #[cfg(feature = "cudnn")]
        if self.moments.values().next().is_some_and(|(m, _)| m.device().is_cuda()) {
            let moments = &self.moments;
            return cuda::adam(
                params.iter().filter_map(|(name, var)| {
                    let (first, second) = moments.get(name).expect("made from the same parameters");
                    Some(cuda::Moments { weights: var, first, second, gradient: grads.get(var)? })
                }),
                [beta1, beta2],
                step.eps,
                step.size,
                step.scale,
            );
        }
        for (name, var) in params.iter() {
            let Some(g) = grads.get(var) else { continue };
            let (m, v) = self.moments.get_mut(name).expect("made from the same parameters");
            if var.device().is_cpu() {
                let g = g.contiguous()?;
                m.inplace_op2(&g, &Lerp { beta: beta1 as f32, square: false })?;
                v.inplace_op2(&g, &Lerp { beta: beta2 as f32, square: true })?;
                var.as_detached_tensor().inplace_op3(m, v, &step)?;
                continue;
            }
            *m = ((&*m * beta1)? + (g * (1.0 - beta1))?)?.detach();
            *v = ((&*v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?.detach();
            let divisor = ((v.sqrt()? * step.scale)? + step.eps)?;
            var.set(&(var.as_detached_tensor() - ((&*m / divisor)? * step.size)?)?)?;
        }
        Ok(())
    }

    /// Returns the state: moments as `m.NAME` and `v.NAME`, and the number of steps as `steps`.
    pub fn arrays(&self) -> Result<Arrays> {
        let steps = [self.step / HIGHER, self.step % HIGHER].map(|part| part as f32);
        let mut all = Arrays::from([(STEPS.into(), Array { shape: vec![2], data: steps.to_vec() })]);
        for (name, (m, v)) in &self.moments {
            all.insert(format!("m.{name}"), to_array(m)?);
            all.insert(format!("v.{name}"), to_array(v)?);
        }
        Ok(all)
    }

    /// Restores the state from [`Adam::arrays`].
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn restore(&mut self, arrays: &Arrays) -> Result<()> {
        let steps = from_array(STEPS, arrays, &2.into(), &Device::Cpu)?.to_vec1::<f32>()?;
        self.step = steps[0] as u64 * HIGHER + steps[1] as u64;
        for (name, (m, v)) in &mut self.moments {
            *m = from_array(&format!("m.{name}"), arrays, m.shape(), m.device())?;
            *v = from_array(&format!("v.{name}"), arrays, v.shape(), v.device())?;
        }
        Ok(())
    }
}

/// An exponential moving average (EMA) of parameters.
pub struct Ema {
    decay: Decay,
    average: BTreeMap<String, Var>,
}

#[derive(Clone, Copy)]
enum Decay {
    /// Half-life in images (EDM's `--ema`), limited to `RAMP` times the images seen so far.
    HalfLife(f64),
    /// Decay of one step.
    Step(f64),
}

const RAMP: f64 = 0.05;

impl Ema {
    /// Starts at the present values; `half_life_images` is in images.
    pub fn new(half_life_images: u64, params: &Params) -> Result<Ema> {
        Ema::from(Decay::HalfLife(half_life_images as f64), params)
    }

    /// Starts at the present values; each step keeps `decay` of the average.
    pub fn of_steps(decay: f64, params: &Params) -> Result<Ema> {
        Ema::from(Decay::Step(decay), params)
    }

    fn from(decay: Decay, params: &Params) -> Result<Ema> {
        let average = params
            .iter()
            .map(|(name, var)| Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor().copy()?)?)))
            .collect::<Result<_>>()?;
        Ok(Ema { decay, average })
    }

    /// Builds the network of `params` on their average, without gradients. It follows every update.
    pub fn network<M>(&self, params: &Params, build: impl FnOnce(Variables) -> Result<M>) -> Result<M> {
        params.replaced(&self.average, build)
    }

    /// Updates the average after a step; `images` is the number of images seen so far.
    pub fn update(&mut self, params: &Params, images: u64, batch: usize) -> Result<()> {
        let decay = match self.decay {
            Decay::HalfLife(images_left) => {
                libm::exp2(-(batch as f64) / images_left.min(images as f64 * RAMP).max(1e-8))
            }
            Decay::Step(decay) => decay,
        };
        // Rounded to float32, so that beta and 1 - beta are both float32 and sum to 1.
        let beta = decay as f32 as f64;
        #[cfg(feature = "cudnn")]
        if self.average.values().next().is_some_and(|e| e.device().is_cuda()) {
            let average = &self.average;
            let pairs = params.iter().map(|(name, var)| (average[name].as_tensor(), var.as_tensor()));
            return cuda::average(pairs, beta);
        }
        for (name, var) in params.iter() {
            let e = &self.average[name];
            let (old, new) = (e.as_detached_tensor(), var.as_detached_tensor());
            match var.device().is_cpu() {
                true => old.inplace_op2(&new, &Lerp { beta: beta as f32, square: false })?,
                false => e.set(&((old * beta)? + (new * (1.0 - beta))?)?)?,
            }
        }
        Ok(())
    }

    /// Returns the average by name.
    pub fn arrays(&self) -> Result<Arrays> {
        self.average.iter().map(|(name, e)| Ok((name.clone(), to_array(e)?))).collect()
    }

    /// Restores the average from [`Ema::arrays`].
    ///
    /// # Errors
    /// If an array is missing or has the wrong shape.
    pub fn restore(&mut self, arrays: &Arrays) -> Result<()> {
        for (name, e) in &self.average {
            e.set(&from_array(name, arrays, e.shape(), e.device())?)?;
        }
        Ok(())
    }
}
