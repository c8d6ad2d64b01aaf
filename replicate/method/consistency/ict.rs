//! Trains consistency models as iCT does (Song & Dhariwal 2024): neighbouring noise levels of one
//! image are mapped to the same image. The network starts from random weights and learns from the
//! data only.

use super::{
    ConsistencySampler, DiscreteSettings, Sampling, categorical, images, over_gaps, pseudo_huber, raw,
    shared, student,
};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::diffuse;
use crate::method::noise::SIGMA_MIN;
use crate::method::{Setup, Spec, TrainingSpec};
use crate::network::mix;
use crate::network::precondition::SIGMA_DATA;
use crate::network::unet::{Denoiser, Masks, SecondTime};
use crate::rng::Draws;
use crate::settings::Settings;
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor};

/// Improved consistency training.
pub const SPEC: Spec = Spec {
    name: "iCT",
    cite: "Song & Dhariwal 2024, section 3",
    file: file!(),
    fingerprint: None,
    training: Some(TrainingSpec {
        build: |setup| Ok(Box::new(Ict::new(setup, setup.own())?)),
        networks: &[Network::averaged("generator", Size::Denoiser)],
        calls: &[
            Call { step: 0, network: "generator", pass: Pass::Trained, times: 1.0 },
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
        ],
        from_scratch: Some(409_600_000),
        at_most: None,
        group: |_| 1,
    }),
    nfe: |overrides| Sampling::with(overrides).steps,
    settings: &[DiscreteSettings::listed, shared, Sampling::listed],
    sampler: |setup, weights| {
        let denoiser = Denoiser::load(setup.network, weights, setup.compute)?;
        let steps = setup.own::<Sampling>().steps;
        Ok(Box::new(ConsistencySampler {
            denoiser,
            function: |net, x, t| consistent(net, x, t, None),
            bottom: SIGMA_MIN,
            steps,
        }))
    },
};

/// Batch 1024, 400,000 iterations, a decay of 0.99993 in each iteration for the average, and dropout.
pub const PUBLISHED: &[&str] =
    &["batch=1024", "images=409600000", "ema_half_life=10139000", "discrete_dropout=0.3"];

/// Computes f(x, t) = c_skip x + c_out F(x, t), which is x at t = 0.002, with dropout if there are
/// masks.
pub fn consistent(net: &Denoiser, x: &Tensor, t: &[f32], masks: Option<&Masks>) -> Result<Tensor> {
    let d2 = SIGMA_DATA * SIGMA_DATA;
    let above = |t: &f32| t - SIGMA_MIN as f32;
    let skip: Vec<f32> = t.iter().map(|t| d2 / (above(t) * above(t) + d2)).collect();
    let out: Vec<f32> = t.iter().map(|t| SIGMA_DATA * above(t) / (t * t + d2).sqrt()).collect();
    mix(x, &skip, &raw(net, x, t, None, masks)?, &out)
}

struct Ict {
    net: Net<Denoiser>,
    settings: DiscreteSettings,
    images: u64,
}

impl Ict {
    fn new(setup: &Setup, settings: DiscreteSettings) -> Result<Ict> {
        Ok(Ict {
            net: student(setup, SecondTime::None, [settings.beta1, settings.beta2])?,
            settings,
            images: setup.images,
        })
    }
}

impl Method for Ict {
    fn columns(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let discretization = self.settings.of_step(batch, self.images);
        // The target is the present network, held constant; there is no average.
        let (current, p) = (&self.net.frozen, self.settings.dropout);
        let (gradients, values) = self.net.gradients(batch, |net, b| {
            let gaps: Vec<usize> = b
                .each("level", Draws::uniform)?
                .into_iter()
                .map(|u| categorical(&discretization.p, u))
                .collect();
            let [below, t] = discretization.ends(&gaps);
            let (x0, eps) = (images(b)?, b.normal("noise")?);
            let masks = b.dropout("dropout", p, &net.dropout_shapes())?;
            let target = consistent(current, &diffuse(&x0, &below, &eps)?, &below, masks.as_ref())?;
            let found = consistent(net, &diffuse(&x0, &t, &eps)?, &t, masks.as_ref())?;
            Ok(vec![over_gaps(&pseudo_huber(&found, &target)?, &t, &below)?])
        })?;
        self.net.update(batch, gradients, self.settings.lr)?;
        Ok(values)
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.net.state)]
    }
}
