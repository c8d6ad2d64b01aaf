//! Algorithm 2: trains a one-step generator by class-ratio estimation, without a teacher's scores
//! (section 3.2, Eq 6-10). Rows DiKL, DiJS and DiRM of Table 1; all of Table 2.

use crate::method::cost::{Call, Network, Pass, Size};
use crate::method::equations::{Divergence, class_ratio, diffuse, generator_loss};
use crate::method::one_step::{self, Generator, OneStep};
use crate::method::{Build, Setup, Spec, TrainingSpec};
use crate::network::unet::Critic;
use crate::settings::Settings;
use crate::store::sha256_hex;
use crate::train::Method;
use crate::train::batch::Batch;
use crate::train::net::{Net, TrainState};
use candle_core::{Device, Result, Tensor, Var};

/// Class-ratio estimation in training: generator and critic.
struct ClassRatio {
    generator: Generator,
    critic: Net<Critic>,
    divergence: Divergence,
    settings: OneStep,
}

impl ClassRatio {
    /// Line 2: the critic's encoder starts like the generator, unless set otherwise. Its head is drawn.
    fn new(setup: &Setup, divergence: Divergence) -> Result<ClassRatio> {
        let (generator, critic) = (Generator::new(setup)?, one_step::critic(setup)?);
        Ok(ClassRatio { generator, critic, divergence, settings: setup.settings.clone() })
    }
}

impl Method for ClassRatio {
    fn columns(&self) -> &'static [&'static str] {
        &["critic_loss", "generator_loss", "c_real", "c_fake"]
    }

    fn step(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        let (s, divergence, generator) = (&self.settings, self.divergence, &self.generator);
        let (levels, generator_levels, weight) = (s.levels(), s.generator_levels(), s.weight);

        // Line 4: the critic learns log p_d(x_t) / q_theta(x_t) (Eq 6, 7).
        let critic = self.critic.descend_times(s.critic_steps, batch, s.critic_lr, |critic, b| {
            let sigma = levels.draw(b, "critic.sigma")?;
            let (real, real_labels) = b.augment("critic.augment_real", &b.images("critic.index")?)?;
            let (fake, fake_labels) =
                b.augment("critic.augment_fake", &generator.frozen(&b.normal("critic.z")?)?)?;
            let real = diffuse(&real, &sigma, &b.normal("critic.noise_real")?)?;
            let fake = diffuse(&fake, &sigma, &b.normal("critic.noise_fake")?)?;
            let masks =
                |of: &str| b.dropout(&format!("critic.dropout_{of}"), s.dropout, &critic.dropout_shapes());
            let masks = masks("real")?.zip(masks("fake")?);
            let [l_real, l_fake] = critic.both(&real, &fake, &sigma, real_labels.zip(fake_labels), masks)?;
            let [c_real, c_fake] = [probability(&l_real)?, probability(&l_fake)?];
            Ok(vec![class_ratio(&l_real, &l_fake)?, c_real, c_fake])
        })?;

        // Lines 5 and 6: a step on the divergence, weighted by w(t) (Eq 8-10, appendix B).
        let critic_net = &self.critic.frozen;
        let generator = self.generator.descend(batch, |x0, b| {
            let sigma = generator_levels.draw(b, "generator.sigma")?;
            let xt = diffuse(x0, &sigma, &b.normal("generator.noise")?)?;
            generator_loss(divergence, &critic_net.forward(&xt, &sigma)?, &weight.of(&sigma))
        })?;

        let [loss, c_real, c_fake] = critic.try_into().expect("three values");
        Ok(vec![loss, generator, c_real, c_fake])
    }

    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)> {
        vec![("generator", &mut self.generator.net.state), ("critic", &mut self.critic.state)]
    }
}

/// Returns the mean of c = sigmoid(l), without a gradient.
fn probability(logits: &Tensor) -> Result<Tensor> {
    let e = (logits.detach().neg()?.exp()? + 1.0)?;
    e.recip()?.mean_all()
}

const NETWORKS: &[Network] =
    &[Network::averaged("generator", Size::Denoiser), Network::trained("critic", Size::Critic)];

/// Makes the row of a divergence, for example `ratio!(DiJs, "Eq 9")`. The rows differ only in it.
macro_rules! ratio {
    ($divergence:ident, $equation:literal) => {
        $crate::method::ratio_based::class_ratio::spec(
            concat!("class-ratio ", stringify!($divergence)),
            concat!("Algorithm 2, ", $equation),
            |setup| $crate::method::ratio_based::class_ratio::build(setup, Divergence::$divergence),
            || $crate::method::ratio_based::class_ratio::fingerprint(Divergence::$divergence),
        )
    };
}
pub(crate) use ratio;

/// Describes the method with one divergence, which `build` and `fingerprint` belong to.
pub const fn spec(name: &'static str, cite: &'static str, build: Build, fingerprint: fn() -> String) -> Spec {
    let calls = &[
        Call { step: 0, network: "generator", pass: Pass::Forward, times: 1.0 },
        // Data and generated images.
        Call { step: 0, network: "critic", pass: Pass::Trained, times: 2.0 },
        Call { step: 1, network: "generator", pass: Pass::Trained, times: 1.0 },
        Call { step: 1, network: "critic", pass: Pass::Through, times: 1.0 },
    ];
    let training = Some(TrainingSpec {
        build,
        networks: NETWORKS,
        calls,
        from_scratch: None,
        at_most: None,
        group: |_| 1,
    });
    let fingerprint = Some(fingerprint);
    Spec {
        name,
        cite,
        file: file!(),
        fingerprint,
        training,
        nfe: |_| 1,
        settings: &[OneStep::listed],
        sampler: one_step::sampler,
    }
}

/// Makes the training with one divergence.
pub fn build(setup: &Setup, divergence: Divergence) -> Result<Box<dyn Method>> {
    Ok(Box::new(ClassRatio::new(setup, divergence)?))
}

/// Identifies a divergence by the values and slopes of its phi, so that another divergence in the
/// same source changes no key. The values are rounded, because their last bits depend on the
/// machine.
pub fn fingerprint(divergence: Divergence) -> String {
    let logits: Vec<f64> = (-160..=160).map(|i| 0.25 * f64::from(i)).collect();
    let values = || {
        let l = Var::new(logits.as_slice(), &Device::Cpu)?;
        let phi = divergence.phi(&l)?;
        let slopes =
            phi.sum_all()?.backward()?.get(&l).expect("phi depends on its logit").to_vec1::<f64>()?;
        Ok::<_, candle_core::Error>([phi.to_vec1::<f64>()?, slopes].concat())
    };
    let text: Vec<String> = values().expect("numbers").iter().map(|v| format!("{v:.6e}")).collect();
    sha256_hex(text.join(" ").as_bytes())[..16].to_string()
}
