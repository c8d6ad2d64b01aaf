//! Adam with readable state, and the exponential moving average of the
//! generator.

use crate::network::cpu::{values, values_mut};
#[cfg(feature = "cudnn")]
use crate::network::gpu as cuda;
use crate::network::params::{Arrays, Params, from_array, to_array};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

/// a = beta a + (1 - beta) x, or x^2, in one pass on the CPU.
struct Toward {
    beta: f32,
    square: bool,
}

impl InplaceOp2 for Toward {
    fn name(&self) -> &'static str {
        "toward"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        let rest = 1.0 - self.beta;
        for (a, x) in values_mut(a, la)?.iter_mut().zip(values(x, lx)?) {
            *a = self.beta * *a + rest * if self.square { x * x } else { *x };
        }
        Ok(())
    }
}

/// x -= lr m / (scale sqrt(v) + eps), in one pass on the CPU.
struct Step {
    lr: f32,
    scale: f32,
    eps: f32,
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
        let moments = values(m, lm)?.iter().zip(values(v, lv)?);
        for (x, (m, v)) in values_mut(x, lx)?.iter_mut().zip(moments) {
            *x -= self.lr * (m / (self.scale * v.sqrt() + self.eps));
        }
        Ok(())
    }
}

/// Kingma and Ba 2015, as PyTorch computes it.
pub struct Adam {
    config: AdamConfig,
    step: u64,
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl Adam {
    pub fn new(config: AdamConfig, params: &Params) -> Result<Adam> {
        let moments = params
            .iter()
            .map(|(name, var)| Ok((name.clone(), (var.zeros_like()?, var.zeros_like()?))))
            .collect::<Result<_>>()?;
        Ok(Adam { config, step: 0, moments })
    }

    /// One update; a parameter without a gradient stays as it is.
    pub fn update(&mut self, params: &Params, grads: &GradStore, lr: f64) -> Result<()> {
        self.step += 1;
        let AdamConfig { beta1, beta2, eps } = self.config;
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let correction2 = 1.0 - beta2.powi(self.step as i32);
        #[cfg(feature = "cudnn")]
        if self.moments.values().next().is_some_and(|(m, _)| m.device().is_cuda()) {
            let moments = &self.moments;
            return cuda::adam(
                params.iter().filter_map(|(name, var)| {
                    let (first, second) = moments.get(name).expect("made from the same parameters");
                    Some(cuda::Moments { weights: var, first, second, gradient: grads.get(var)? })
                }),
                [beta1, beta2],
                eps,
                lr / correction1,
                1.0 / correction2.sqrt(),
            );
        }
        for (name, var) in params.iter() {
            let Some(g) = grads.get(var) else { continue };
            let (m, v) = self.moments.get_mut(name).expect("made from the same parameters");
            if var.device().is_cpu() {
                let g = g.contiguous()?;
                m.inplace_op2(&g, &Toward { beta: beta1 as f32, square: false })?;
                v.inplace_op2(&g, &Toward { beta: beta2 as f32, square: true })?;
                let step = Step {
                    lr: (lr / correction1) as f32,
                    scale: (1.0 / correction2.sqrt()) as f32,
                    eps: eps as f32,
                };
                var.as_detached_tensor().inplace_op3(m, v, &step)?;
                continue;
            }
            *m = ((&*m * beta1)? + (g * (1.0 - beta1))?)?.detach();
            *v = ((&*v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?.detach();
            let size = ((v.sqrt()? * (1.0 / correction2.sqrt()))? + eps)?;
            var.set(&(var.as_detached_tensor() - ((&*m / size)? * (lr / correction1))?)?)?;
        }
        Ok(())
    }

    /// Moments as `m.NAME`, `v.NAME`.
    pub fn arrays(&self) -> Result<Arrays> {
        let mut all = Arrays::new();
        for (name, (m, v)) in &self.moments {
            all.insert(format!("m.{name}"), to_array(m)?);
            all.insert(format!("v.{name}"), to_array(v)?);
        }
        Ok(all)
    }

    pub fn restore(&mut self, step: u64, arrays: &Arrays) -> Result<()> {
        self.step = step;
        for (name, (m, v)) in &mut self.moments {
            *m = from_array(&format!("m.{name}"), arrays, m.shape(), m.device())?;
            *v = from_array(&format!("v.{name}"), arrays, v.shape(), v.device())?;
        }
        Ok(())
    }
}

/// Moving average with a half-life in images (EDM's `--ema`), no longer than
/// `RAMP` of the images seen so far.
pub struct Ema {
    half_life: f64,
    average: BTreeMap<String, Tensor>,
}

const RAMP: f64 = 0.05;

impl Ema {
    /// Starts at the present values.
    pub fn new(half_life_images: u64, params: &Params) -> Result<Ema> {
        let average = params
            .iter()
            .map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)))
            .collect::<Result<_>>()?;
        Ok(Ema { half_life: half_life_images as f64, average })
    }

    /// After a step that brought the images seen to `images`.
    pub fn update(&mut self, params: &Params, images: u64, batch: usize) -> Result<()> {
        let half_life = self.half_life.min(images as f64 * RAMP).max(1e-8);
        // Of a float32, so that what is left is one too and the two make 1.
        let beta = libm::exp2(-(batch as f64) / half_life) as f32 as f64;
        #[cfg(feature = "cudnn")]
        if self.average.values().next().is_some_and(|e| e.device().is_cuda()) {
            let average = &self.average;
            let pairs = params.iter().map(|(name, var)| (&average[name], var.as_tensor()));
            return cuda::average(pairs, beta);
        }
        for (name, var) in params.iter() {
            let e = self.average.get_mut(name).expect("made from the same parameters");
            if var.device().is_cpu() {
                e.inplace_op2(&var.as_detached_tensor(), &Toward { beta: beta as f32, square: false })?;
                continue;
            }
            *e = ((&*e * beta)? + (var.as_detached_tensor() * (1.0 - beta))?)?;
        }
        Ok(())
    }

    pub fn arrays(&self) -> Result<Arrays> {
        self.average.iter().map(|(name, e)| Ok((name.clone(), to_array(e)?))).collect()
    }

    pub fn restore(&mut self, arrays: &Arrays) -> Result<()> {
        for (name, e) in &mut self.average {
            *e = from_array(name, arrays, e.shape(), e.device())?;
        }
        Ok(())
    }
}
