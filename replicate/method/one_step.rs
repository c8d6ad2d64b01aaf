//! What every one-step row shares: the generator g(z) = D(sigma_init z; sigma_init), and
//! how it is trained.

use crate::method::noise::Levels;
use crate::method::{Sampler, Setup};
use crate::network::params::{Arrays, Source};
use crate::network::unet::Denoiser;
use crate::train::adam::AdamConfig;
use crate::train::batch::Batch;
use crate::train::net::Net;
use candle_core::{Result, Tensor};

/// Settings of a one-step training, the same for every row.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Noise level at which the generator is asked.
    pub sigma_init: f64,
    /// Noise levels of both steps.
    pub levels: Levels,
    pub generator_lr: f64,
    /// Of the critic, or of the fake score.
    pub critic_lr: f64,
    pub adam: AdamConfig,
    /// Of the generator's average, in images.
    pub ema_half_life: u64,
}

/// g(z) = D(sigma_init z; sigma_init), images (B, C, H, W) of latents of that shape.
pub fn one_step(denoiser: &Denoiser, z: &Tensor, sigma_init: f64) -> Result<Tensor> {
    denoiser.forward(&(z * sigma_init)?, &vec![sigma_init as f32; z.dim(0)?], None)
}

/// The generator in training, with its average.
pub struct Generator {
    pub net: Net<Denoiser>,
    sigma_init: f64,
    lr: f64,
}

impl Generator {
    /// Line 2 of both algorithms: it starts from the pre-trained weights, or is drawn.
    pub fn new(setup: &Setup) -> Result<Generator> {
        let s = setup.settings;
        let net = denoiser(setup, "generator")?.averaged(s.ema_half_life)?;
        Ok(Generator { net, sigma_init: s.sigma_init, lr: s.generator_lr })
    }

    /// Images without gradients.
    pub fn frozen(&self, z: &Tensor) -> Result<Tensor> {
        one_step(&self.net.frozen, z, self.sigma_init)
    }

    /// Lines 5 and 6: one step down `loss`, a function of generated images.
    pub fn descend(
        &mut self,
        batch: &Batch,
        loss: impl Fn(&Tensor, &Batch) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (sigma_init, lr) = (self.sigma_init, self.lr);
        let values = self.net.descend(batch, lr, |denoiser, b| {
            Ok(vec![loss(&one_step(denoiser, &b.normal("generator.z")?, sigma_init)?, b)?])
        })?;
        Ok(values.into_iter().next().expect("a loss"))
    }
}

/// A U-Net in training that starts from the setup's weights, or is drawn in the
/// streams of `part`.
pub fn denoiser(setup: &Setup, part: &str) -> Result<Net<Denoiser>> {
    let (none, cell) = (Arrays::new(), format!("{} {part}", setup.cell));
    let drawn: &[&str] = if setup.start.is_some() { &[] } else { &[""] };
    let source = Source { given: setup.start.unwrap_or(&none), drawn, cell: &cell };
    Net::new(setup.device, &source, setup.settings.adam, |vb| Denoiser::new(setup.network, vb))
}

/// A trained one-step generator.
struct OneStep {
    denoiser: Denoiser,
    sigma_init: f64,
}

impl Sampler for OneStep {
    fn nfe(&self) -> usize {
        1
    }

    fn sample(&self, z: &Tensor) -> Result<Tensor> {
        one_step(&self.denoiser, z, self.sigma_init)
    }
}

/// The generator with these weights.
pub fn sampler(setup: &Setup, weights: &Arrays) -> Result<Box<dyn Sampler>> {
    let denoiser = Denoiser::load(setup.network, weights, setup.device)?;
    Ok(Box::new(OneStep { denoiser, sigma_init: setup.settings.sigma_init }))
}
