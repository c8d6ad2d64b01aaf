//! Algorithm 1: variational score distillation (Diff-Instruct, Luo et al. 2023; Eq 4, 5). The
//! generator follows the difference between the teacher's score and a fake score, which is trained
//! online on generated images.

use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{diffuse, dsm, vsd};
use crate::method::one_step::{self, Generator, OneStep, denoiser};
use crate::method::{Setup, Spec, TrainingSpec};
use crate::network::unet::Denoiser;
use crate::settings::Settings;
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Result, Tensor, bail};

/// Variational score distillation (Diff-Instruct).
pub const SPEC: Spec = Spec {
    name: "vsd",
    cite: "Algorithm 1, Eq 5",
    file: file!(),
    fingerprint: None,
    training: Some(TrainingSpec {
        build: |setup| Ok(Box::new(DiffInstruct::new(setup)?)),
        networks: &[
            Network::averaged("generator", Size::Denoiser),
            Network::trained("fake", Size::Denoiser),
            Network::frozen("teacher", Size::Denoiser),
        ],
        calls: &[
            Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
            Call { step: 0, network: "fake", pass: Pass::Trained, times: 1.0 },
            Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
            // Both scores are held constant.
            Call { step: 1, network: "fake", pass: Pass::Forward, times: 1.0 },
            Call { step: 1, network: "teacher", pass: Pass::Forward, times: 1.0 },
        ],
        from_scratch: None,
        at_most: None,
        group: |_| 1,
    }),
    nfe: |_| 1,
    settings: &[OneStep::listed],
    sampler: one_step::sampler,
};

struct DiffInstruct {
    generator: Generator,
    fake: Net<Denoiser>,
    teacher: Denoiser,
    settings: OneStep,
}

impl DiffInstruct {
    /// Line 2: generator and fake score start from the teacher's weights.
    ///
    /// # Errors
    /// If the row has no weights, because then there is no teacher.
    fn new(setup: &Setup) -> Result<DiffInstruct> {
        let Some(weights) = setup.initial.row else {
            bail!("VSD needs a teacher: it cannot start from random weights")
        };
        let generator = Generator::new(setup)?;
        let fake = denoiser(setup, "fake score", setup.initial.critic)?;
        let teacher = Denoiser::load(setup.network, weights, setup.compute)?;
        Ok(DiffInstruct { generator, fake, teacher, settings: setup.settings.clone() })
    }
}

impl Method for DiffInstruct {
    fn columns(&self) -> &'static [&'static str] {
        &["critic_loss", "generator_loss"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (s, teacher, generator) = (&self.settings, &self.teacher, &self.generator);
        let (levels, weight) = (s.levels(), s.weight);
        let generator_levels = s.generator_levels();

        // Line 4: the fake score learns to denoise generated images (Eq 4).
        let fake = self.fake.descend_times(s.critic_steps, batch, s.critic_lr, |fake, b| {
            let sigma = levels.draw(b, "critic.sigma")?;
            let (x0, labels) =
                b.augment("critic.augment_fake", &generator.frozen(&b.normal("critic.z")?)?)?;
            let xt = diffuse(&x0, &sigma, &b.normal("critic.noise_fake")?)?;
            let masks = b.dropout("critic.dropout_fake", s.dropout, &fake.dropout_shapes())?;
            let denoised = fake.forward_train(&xt, &sigma, labels.as_deref(), masks.as_ref())?;
            Ok(vec![dsm(&denoised, &x0, &sigma)?])
        })?;

        // Lines 5 and 6: a step along the difference of the scores, weighted by w(t) (Eq 5, appendix B).
        let fake_net = &self.fake.frozen;
        let generator = self.generator.descend(batch, |x0, b| {
            let sigma = generator_levels.draw(b, "generator.sigma")?;
            let xt = diffuse(x0, &sigma, &b.normal("generator.noise")?)?;
            let at = xt.detach();
            let (q, p) = (fake_net.forward(&at, &sigma)?, teacher.forward(&at, &sigma)?);
            vsd(&xt, &q, &p, &sigma, &weight.of(&sigma))
        })?;

        let [fake] = fake.try_into().expect("one value");
        Ok(vec![fake, generator])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.generator.net.state), ("fake", &mut self.fake.state)]
    }
}
