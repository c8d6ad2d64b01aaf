//! Trains bidirectional consistency models (BCM, Li & He 2024): one network jumps between any two
//! noise levels, both downwards and upwards. It starts from random weights and learns from the data
//! only.

use super::{
    DiscreteSettings, JumpSampler, Sampling, categorical, images, jump, over_gaps, pseudo_huber, shared,
    student,
};
use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::diffuse;
use crate::method::noise::SIGMA_MIN;
use crate::method::{Setup, Spec, TrainingSpec};
use crate::network::count::Count;
use crate::network::unet::{Denoiser, SecondTime};
use crate::rng::Draws;
use crate::settings::Settings;
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor};

/// Joins the embeddings of both levels in one layer.
const SECOND: SecondTime = SecondTime::Aligned;
const SIZE: Size = Size::Other(|network| Count::with_second_time(network, SECOND));

/// Bidirectional consistency models.
pub const SPEC: Spec = Spec {
    name: "BCM",
    cite: "Li & He 2024, Algorithm 1",
    file: file!(),
    fingerprint: None,
    training: Some(TrainingSpec {
        build: |setup| Ok(Box::new(Bcm::new(setup, setup.own())?)),
        networks: &[Network::averaged("generator", SIZE)],
        calls: &[
            Call { step: 0, network: "generator", pass: Pass::Trained, times: 2.0 },
            Call { step: 0, network: "generator", pass: Pass::Through, times: 1.0 },
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
        ],
        from_scratch: Some(409_600_000),
        at_most: None,
        group: |_| 1,
    }),
    nfe: |overrides| Sampling::with(overrides).steps,
    settings: &[DiscreteSettings::listed, shared, Sampling::listed],
    sampler: |setup, weights| JumpSampler::load(setup, weights),
};

struct Bcm {
    net: Net<Denoiser>,
    settings: DiscreteSettings,
    images: u64,
}

impl Bcm {
    fn new(setup: &Setup, settings: DiscreteSettings) -> Result<Bcm> {
        Ok(Bcm {
            net: student(setup, SECOND, [settings.beta1, settings.beta2])?,
            settings,
            images: setup.images,
        })
    }
}

impl Method for Bcm {
    fn columns(&self) -> &'static [&'static str] {
        &["loss", "ct_loss", "soft_loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let discretization = self.settings.of_step(batch, self.images);
        // Excludes the highest gap.
        let mut below_top = discretization.p.clone();
        *below_top.last_mut().expect("two levels make a gap") = 0.0;
        let (current, p) = (&self.net.frozen, self.settings.dropout);
        let (gradients, values) = self.net.gradients(batch, |net, b| {
            let gaps: Vec<usize> =
                b.each("level", Draws::uniform)?.into_iter().map(|u| categorical(&below_top, u)).collect();
            // Any level except t and the highest.
            let end = |(u, gap): (f32, &usize)| {
                let mut p = discretization.p.clone();
                p[gap + 1] = 0.0;
                categorical(&p, u)
            };
            let ends: Vec<usize> = b.each("end", Draws::uniform)?.into_iter().zip(&gaps).map(end).collect();
            let ([below, t], u) = (discretization.ends(&gaps), discretization.at(&ends));
            let bottom = vec![SIGMA_MIN as f32; b.len()];
            let (x0, eps) = (images(b)?, b.normal("noise")?);
            let xt = diffuse(&x0, &t, &eps)?;
            let masks = b.dropout("dropout", p, &net.dropout_shapes())?;
            let jump = |net: &Denoiser, x: &Tensor, t: &[f32], u: &[f32]| jump(net, x, t, u, masks.as_ref());
            let target = jump(current, &diffuse(&x0, &below, &eps)?, &below, &bottom)?;

            let straight = jump(net, &xt, &t, &bottom)?;
            let ct = over_gaps(&pseudo_huber(&straight, &target)?, &t, &below)?;
            // The weights of the second jump are constant; its input has a gradient.
            let by_way = jump(current, &jump(net, &xt, &t, &u)?, &u, &bottom)?;
            let soft = over_gaps(&pseudo_huber(&by_way, &target)?, &t, &u)?;
            Ok(vec![(&ct + &soft)?, ct, soft])
        })?;
        self.net.update(batch, gradients, self.settings.lr)?;
        Ok(values)
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.net.state)]
    }
}
