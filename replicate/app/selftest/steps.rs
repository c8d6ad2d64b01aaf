//! Compares the first iterations of a row with those of its authors' code.

use super::fixture::{
    Fixture, Unit, filled, filled_array, filled_denoiser, flat, relative_error, tiny, unit,
};
use super::{Check, Tolerance, part};
use crate::error::Result;
use crate::experiment::{Recipe, Scale};
use crate::method::consistency::{ctm, jump};
use crate::method::noise::karras_level;
use crate::method::{Setup, all_rows};
use crate::network::device::Compute;
use crate::network::params::Arrays;
use crate::network::unet::Denoiser;
use crate::train::batch::Given;
use crate::train::net::strip;
use crate::train::{restore, state};
use candle_core::{DType, Device, Tensor};

/// Recorded iterations of other code, from formula-filled networks at batch 4.
pub struct Case {
    pub row: &'static str,
    /// The fixture in tests/parity.
    pub file: &'static str,
    npz: &'static [u8],
    /// Prefix of the names of its arrays.
    pub group: &'static str,
    /// Prefix of the names of its draws.
    prefix: &'static str,
    /// Sources of our draws.
    draws: &'static [(&'static str, Draw)],
    /// Indices of its iterations in a training of 16.
    steps: &'static [u64],
    /// Overrides of the paper scale, in addition to those that all cases share.
    changes: &'static [&'static str],
    /// Gradients of the first iteration: names in our network and in the fixture.
    gradients: &'static [(&'static str, &'static str)],
    /// Adam's beta1. The first moments start as gradients times 1 - beta1.
    beta1: f64,
    /// Other images expected after the last iteration.
    others: &'static [(&'static str, After)],
    tolerance: Errors,
}

/// Computes images (B, C, H, W) from the state of a training; the fixture has them under the
/// array's name.
type After = fn(&Setup, &Arrays, &Case, Unit) -> Result<Tensor>;

/// Tolerances that cover rounding on a CPU.
struct Errors {
    losses: f64,
    samples: f64,
    gradients: f64,
}

/// Source of a draw in iteration `{k}`: a named value of the fixture.
#[derive(Clone, Copy)]
enum Draw {
    Normal(&'static str),
    Image(&'static str),
    /// ln sigma ~ N(-1.2, 1.2^2)
    LogNormal(&'static str),
    /// ln sigma ~ N(-1, 1.4^2)
    Lower(&'static str),
    /// SiD's levels.
    Karras(&'static str),
    Uniform(&'static str),
    /// As `Uniform`, but for the third and the fourth image.
    SecondHalf(&'static str),
    /// One number for the whole batch, from an array of the fixture.
    Array(&'static str),
}

use Draw::{Array, Image, Karras, LogNormal, Lower, Normal, SecondHalf, Uniform};

const OURS: &[(&str, Draw)] = &[
    ("critic.z", Normal("step{k}.critic.z")),
    ("critic.index", Image("step{k}.real")),
    ("critic.sigma", LogNormal("step{k}.critic.sigma")),
    ("critic.noise_real", Normal("step{k}.critic.noise_real")),
    ("critic.noise_fake", Normal("step{k}.critic.noise_fake")),
    ("generator.z", Normal("step{k}.generator.z")),
    ("generator.sigma", LogNormal("step{k}.generator.sigma")),
    ("generator.noise", Normal("step{k}.generator.noise")),
];

const SID: &[(&str, Draw)] = &[
    ("critic.z", Normal("step{k}.critic.z")),
    ("critic.index", Image("step{k}.real")),
    ("critic.sigma", LogNormal("step{k}.critic.sigma")),
    ("critic.noise_fake", Normal("step{k}.critic.noise")),
    ("generator.z", Normal("step{k}.generator.z")),
    ("generator.sigma", Karras("step{k}.generator.t")),
    ("generator.noise", Normal("step{k}.generator.noise")),
];

const ICT: &[(&str, Draw)] = &[
    ("index", Image("step{k}.real")),
    ("noise", Normal("step{k}.noise")),
    ("level", Uniform("step{k}.level")),
];

const BCM: &[(&str, Draw)] = &[ICT[0], ICT[1], ICT[2], ("end", Uniform("step{k}.end"))];

const CTM: &[(&str, Draw)] = &[
    ICT[0],
    ICT[1],
    ("heun_steps", Array("heun_steps")),
    ("start", Uniform("step{k}.t")),
    ("end", Uniform("step{k}.s")),
    ("dsm.sigma", LogNormal("step{k}.dsm.sigma")),
    ("dsm.place", SecondHalf("step{k}.dsm.place")),
    ("dsm.noise", Normal("step{k}.dsm.noise")),
];

const SCT: &[(&str, Draw)] = &[ICT[0], ICT[1], ("sigma", Lower("step{k}.sigma"))];

/// What most cases have.
const USUAL: Case = Case {
    row: "",
    file: "",
    npz: &[],
    group: "",
    prefix: "",
    draws: OURS,
    steps: &[0, 1, 2, 3, 4],
    changes: &[],
    gradients: &[],
    beta1: 0.0,
    others: &[],
    tolerance: Errors { losses: 1e-3, samples: 1e-3, gradients: 0.0 },
};

const fn ours(row: &'static str, group: &'static str) -> Case {
    let npz = include_bytes!("../../../tests/parity/train-steps.npz");
    Case { row, file: "train-steps.npz", npz, group, ..USUAL }
}

/// For losses that are differences between teacher and fake score, which are one step of Adam apart
/// at first.
const TOLERANCE: Errors = Errors { losses: 1e-3, samples: 2e-3, gradients: 3e-4 };

/// Puts both thresholds of the warm-up before the first step.
const SIDA: &[&str] = &["sida_generator_from=0", "sida_adversary_from=0"];

const fn sid(row: &'static str, group: &'static str) -> Case {
    let npz = include_bytes!("../../../tests/parity/distillation.npz");
    Case { row, file: "distillation.npz", npz, group, draws: SID, tolerance: TOLERANCE, ..USUAL }
}

const fn consistency(row: &'static str, prefix: &'static str) -> Case {
    Case {
        row,
        file: "consistency.npz",
        npz: include_bytes!("../../../tests/parity/consistency.npz"),
        group: row,
        prefix,
        draws: ICT,
        steps: &[0, 1, 2, 3, 4, 5],
        gradients: &[("generator", "grad_norm")],
        beta1: 0.9,
        tolerance: Errors { losses: 1e-4, samples: 1e-3, gradients: 1e-4 },
        ..USUAL
    }
}

/// All cases.
pub const CASES: &[Case] = &[
    ours("diff-instruct", "vsd"),
    ours("dirm", "dirm"),
    ours("dikl", "dikl"),
    ours("dijs", "dijs"),
    Case {
        gradients: &[("generator", "grad_norm"), ("fake", "fake_grad_norm")],
        ..sid("sid", "sid_alpha1.0")
    },
    Case {
        changes: &["sid_alpha=1.2"],
        gradients: &[("generator", "grad_norm")],
        ..sid("sid", "sid_alpha1.2")
    },
    Case {
        changes: SIDA,
        gradients: &[("fake", "fake_grad_norm_clipped")],
        tolerance: Errors { gradients: 1e-4, ..TOLERANCE },
        ..sid("sida", "sida")
    },
    Case { changes: &[SIDA[0], SIDA[1], "sida_group=2"], ..sid("sida", "sida_groups") },
    Case {
        // Sets the length of training so that it does not lower the thresholds.
        changes: &["images=320", "sida_generator_from=3", "sida_adversary_from=7"],
        ..sid("sida", "sida_warmup")
    },
    // The iterations with 11, 21 and 1281 levels.
    Case { steps: &[0, 1, 2, 3, 14, 15], changes: &["discrete_lr=1e-3"], ..consistency("ict", "ict.") },
    // With 11, 21 and 321.
    Case {
        draws: BCM,
        steps: &[0, 1, 2, 3, 10, 11],
        changes: &["discrete_lr=1e-3"],
        others: &[("inverted_after", inverted)],
        ..consistency("bcm", "bcm.")
    },
    Case {
        draws: CTM,
        changes: &["ctm_lr=1e-3", "ctm_decay=0.9"],
        others: &[("target_samples_after", of_target)],
        ..consistency("ctm", "ctm.")
    },
    Case { draws: SCT, changes: &["sct_lr=1e-3", "sct_warmup=4"], ..consistency("sct", "sct.") },
];

/// Images along BCM's path up to level 80.
fn inverted(setup: &Setup, state: &Arrays, case: &Case, unit: Unit) -> Result<Tensor> {
    let net = Denoiser::load(setup.network, &strip(state, "generator.weights."), setup.compute)?;
    let images = case.values(Image("final.image"), 0, &setup.compute.device, unit)?;
    Ok(jump(&net, &images, &[0.002; BATCH], &[80.0; BATCH], None)?)
}

/// Samples of CTM's averaged network, which makes the outer jumps.
fn of_target(setup: &Setup, state: &Arrays, case: &Case, unit: Unit) -> Result<Tensor> {
    let z = case.values(Normal("final.z"), 0, &setup.compute.device, unit)?;
    Ok((ctm::SPEC.sampler)(setup, &strip(state, "generator.target."))?.sample(&z)?)
}

const BATCH: usize = 4;

impl Case {
    /// Returns one check for the losses, one for the samples afterwards, and one for the gradients
    /// of the first iteration if they are recorded.
    ///
    /// # Errors
    /// Those of the device.
    pub fn checks(&self, fixture: &Fixture, compute: &Compute, unit: Unit) -> Result<Vec<Check>> {
        let recipe = self.recipe()?;
        let (params, _) = filled_denoiser(&recipe.network, compute, unit)?;
        let weights = filled(&params, unit);
        let row = all_rows().find(|row| row.id == self.row).expect("a row of the registry");
        let start = [(row.start, weights)];
        let setup = recipe.setup(compute, &row, &start, "parity");
        let training = row.method.training.as_ref().expect("a row that is trained");
        let mut method = (training.build)(&setup)?;
        let mut first = state(&mut *method)?;
        // The fixture provides the method's draws.
        for (name, array) in &mut first {
            let parts = [".weights.", ".target."].map(|kind| name.split_once(kind));
            if let Some((_, parameter)) = parts.into_iter().flatten().next() {
                *array = filled_array(parameter, &array.shape, unit);
            }
        }
        restore(&mut *method, &first)?;

        let (columns, expected) =
            (method.columns(), |array: &str| fixture.f32(&format!("{}/{array}", self.group)));
        let known: Vec<usize> = (0..columns.len()).filter(|i| expected(columns[*i]).is_ok()).collect();
        assert!(!known.is_empty(), "{}: the fixture has none of the columns {columns:?}", self.group);
        let steps = self.steps.len();
        let mut losses = vec![Vec::new(); columns.len()];
        let mut gradients = 0f64;
        for (k, step) in self.steps.iter().enumerate() {
            let values = method.step(&self.given(fixture, k, &compute.device, unit)?.batch(*step, BATCH))?;
            for (losses, value) in losses.iter_mut().zip(values) {
                losses.push(value.to_scalar::<f32>()?);
            }
            if k == 0 && !self.gradients.is_empty() {
                gradients = self.gradients(fixture, &state(&mut *method)?)?;
            }
        }
        let mut worst = 0f64;
        for i in known {
            worst = worst.max(relative_error(&losses[i], &expected(columns[i])?));
        }
        let trained = strip(&state(&mut *method)?, "generator.weights.");
        let z = self.values(Normal("final.z"), 0, &compute.device, unit)?;
        let samples = flat(&(row.method.sampler)(&setup, &trained)?.sample(&z)?)?;
        let mut samples = relative_error(&samples, &expected("samples_after")?);
        for (array, after) in self.others {
            let found = flat(&after(&setup, &state(&mut *method)?, self, unit)?)?;
            samples = samples.max(relative_error(&found, &expected(array)?));
        }

        let rounded = compute.bfloat16();
        let check = |what: &str, error: f64, on_cpu: f64| {
            let elsewhere = Tolerance::on(compute).steps.max(on_cpu);
            let tolerance = if compute.device.is_cpu() && !rounded { on_cpu } else { elsewhere };
            let rounded = if rounded { ", bf16" } else { "" };
            Check::error(format!("{} ({}){rounded}: {what}", self.row, self.group), error, tolerance)
        };
        let Errors { losses, samples: after, gradients: of_gradients } = self.tolerance;
        let mut checks = vec![
            check(&format!("losses of {steps} steps"), worst, losses),
            check(&format!("samples after {steps} steps"), samples, after),
        ];
        if !self.gradients.is_empty() {
            checks.push(check("norms of the first gradients", gradients, of_gradients));
        }
        Ok(checks)
    }

    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = Recipe { network: tiny(), ..Recipe::of(Scale::Paper) };
        let always = ["generator_lr=1e-3", "critic_lr=1e-3", "images=32", "teacher_images=32"];
        for change in always.iter().chain(self.changes) {
            recipe.set(change)?;
        }
        Ok(recipe)
    }

    /// Returns the draws of iteration `k`.
    ///
    /// # Errors
    /// If the fixture lacks an array; those of the device.
    pub fn given(&self, fixture: &Fixture, k: usize, device: &Device, unit: Unit) -> Result<Given> {
        let mut given = Given::default();
        for (name, draw) in self.draws {
            let tensor = match draw {
                Array(name) => {
                    let all = fixture.get(&format!("{}/{name}", self.group))?;
                    all.to_dtype(DType::F32)?.narrow(0, k, 1)?
                }
                draw => self.values(*draw, k, device, unit)?,
            };
            given.tensors.insert(name.to_string(), tensor);
        }
        Ok(given)
    }

    /// Returns the largest relative error of the norm of a parameter's gradient. The reference may
    /// lack parameters without gradient.
    fn gradients(&self, fixture: &Fixture, state: &Arrays) -> Result<f64> {
        let mut worst = 0f64;
        for (net, array) in self.gradients {
            for (name, gradient) in strip(state, &format!("{net}.adam.m.")) {
                let norm = gradient.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                let norm = (norm / (1.0 - self.beta1)) as f32;
                match fixture.f32(&format!("{}/{array}/{name}", self.group)) {
                    Err(_) if norm == 0.0 => {}
                    expected => worst = worst.max(relative_error(&[norm], &expected?)),
                }
            }
        }
        Ok(worst)
    }

    /// Returns the values of a draw in iteration `k`.
    fn values(&self, draw: Draw, k: usize, device: &Device, unit: Unit) -> Result<Tensor> {
        let root3 = 3f32.sqrt();
        let (name, image) = match draw {
            Normal(name) | Image(name) => (name, true),
            LogNormal(name) | Lower(name) | Karras(name) | Uniform(name) => (name, false),
            SecondHalf(name) | Array(name) => (name, false),
        };
        let name = format!("{}{}", self.prefix, name.replace("{k}", &k.to_string()));
        let mut values: Vec<f32> = unit(&name, BATCH * if image { 768 } else { 1 })
            .into_iter()
            .map(|u| match draw {
                Normal(_) => root3 * u,
                Image(_) => 0.8 * u,
                LogNormal(_) => (-1.2 + 1.2 * root3 * u).exp(),
                Lower(_) => (-1.0 + 1.4 * root3 * u).exp(),
                Karras(_) => karras_level(0.8 * f64::from(u + 1.0) / 2.0) as f32,
                Uniform(_) | SecondHalf(_) | Array(_) => (u + 1.0) / 2.0,
            })
            .collect();
        if let SecondHalf(_) = draw {
            values.rotate_right(BATCH / 2);
        }
        Ok(match image {
            true => Tensor::from_vec(values, (BATCH, 3, 16, 16), device)?,
            false => Tensor::from_vec(values, BATCH, &Device::Cpu)?,
        })
    }
}

/// Runs all checks of a case with its embedded fixture.
pub fn checks(case: &Case, compute: &Compute) -> Vec<Check> {
    let found = Fixture::parse(case.npz)
        .map_err(Into::into)
        .and_then(|fixture| case.checks(&fixture, compute, &unit));
    part(&format!("first steps of {} ({})", case.row, case.group), found)
}
