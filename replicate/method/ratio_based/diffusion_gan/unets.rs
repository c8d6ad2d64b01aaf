//! Diffusion-GAN's objective on the networks of the other rows. It tests the paper's statement that
//! Diffusion-GAN needs StyleGAN2 and the gradient penalty (section 2, below Eq 9).

use super::architecture::{Architecture, Diffused};
use super::{CALLS, DiffGanSettings, DiffusionGan, FILE, Listed, PUBLISHED_IMAGES, of_penalty};
use crate::method::cost::{Call, Network, Size};
use crate::method::noise::SIGMA_MIN;
use crate::method::one_step::{self, Generator, OneStep, one_step};
use crate::method::{Build, Setup, Spec, TrainingSpec};
use crate::network::scale_images;
use crate::network::unet::{Critic, Denoiser};
use crate::settings::{Overrides, Setting, Settings};
use crate::train::batch::Batch;
use candle_core::{Result, Tensor};

/// Diffusion-GAN's objective on the U-Net and its critic.
pub const UNETS: Spec = spec("diffusion-gan on U-Nets", CALLS, &[shared, of_penalty], |setup| {
    Ok(Box::new(UNets::train(setup, &setup.own())?))
});

/// The objective without the gradient penalty.
pub const UNETS_NO_R1: Spec =
    spec("diffusion-gan on U-Nets, without R1", CALLS.split_at(4).0, &[shared], |setup| {
        Ok(Box::new(UNets::train(setup, &DiffGanSettings { gamma: 0.0, ..setup.own() })?))
    });

/// Lists what it takes of the settings of every one-step training: levels, weight, steps of the
/// critic and dropout are not part of the objective.
fn shared(overrides: &Overrides) -> Vec<Setting> {
    let names = [
        "sigma_init",
        "generator_start",
        "critic_start",
        "generator_lr",
        "critic_lr",
        "beta1",
        "beta2",
        "eps",
        "ema_half_life",
        "augment_p",
    ];
    OneStep::named(overrides, &names)
}

const NETWORKS: &[Network] =
    &[Network::averaged("generator", Size::Denoiser), Network::trained("critic", Size::Critic)];

const fn spec(name: &'static str, calls: &'static [Call], settings: &'static [Listed], build: Build) -> Spec {
    Spec {
        name,
        cite: "Wang et al. 2023, arXiv 2206.02262, on the networks of this paper",
        file: FILE,
        fingerprint: None,
        training: Some(TrainingSpec {
            build,
            networks: NETWORKS,
            calls,
            from_scratch: Some(PUBLISHED_IMAGES),
            at_most: None,
            group: |_| 1,
        }),
        nfe: |_| 1,
        settings,
        sampler: one_step::sampler,
    }
}

/// The networks of the paper.
pub struct UNets {
    /// Noise level at which the generator is asked.
    pub sigma_init: f64,
}

impl UNets {
    /// Makes the training with the rates, moments and averages of the one-step training.
    pub fn train(setup: &Setup, settings: &DiffGanSettings) -> Result<DiffusionGan<UNets>> {
        let (s, generator) = (setup.settings, Generator::new(setup)?.net);
        let architecture = UNets { sigma_init: s.sigma_init };
        let rates = [s.generator_lr, s.critic_lr];
        Ok(DiffusionGan::new(architecture, generator, one_step::critic(setup)?, settings, rates))
    }

    /// Divides the images by their signal, which gives them the noise level [`UNets::sigma`].
    fn unshrunk(x: &Tensor, diffused: &Diffused) -> Result<Tensor> {
        scale_images(x, &diffused.signal.iter().map(|s| 1.0 / s).collect::<Vec<_>>())
    }

    fn sigma(diffused: &Diffused) -> Vec<f32> {
        diffused
            .noise
            .iter()
            .zip(&diffused.signal)
            .map(|(noise, signal)| (noise / signal).max(SIGMA_MIN as f32))
            .collect()
    }
}

impl Architecture for UNets {
    type Generator = Denoiser;
    type Critic = Critic;

    fn generate(&self, generator: &Denoiser, b: &Batch, step: &str) -> Result<Tensor> {
        one_step(generator, &b.normal(&format!("{step}.z"))?, self.sigma_init)
    }

    fn logits(&self, critic: &Critic, diffused: &Diffused) -> Result<Tensor> {
        critic.forward(&UNets::unshrunk(&diffused.x, diffused)?, &UNets::sigma(diffused))
    }

    fn jvp(&self, critic: &Critic, diffused: &Diffused, dx: &Tensor) -> Result<Tensor> {
        let images = [&UNets::unshrunk(&diffused.x, diffused)?, &UNets::unshrunk(dx, diffused)?];
        let [_, along] = critic.jvp(images, &UNets::sigma(diffused))?;
        Ok(along)
    }
}
