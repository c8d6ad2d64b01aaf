//! The first iterations of a row, against those of its authors' code.

use super::fixture::{Fixture, relative_error, unit};
use super::parity::{Tolerance, Unit, filled, filled_denoiser, flat, tiny};
use super::{Check, part};
use crate::error::Result;
use crate::experiment::{Recipe, Scale};
use crate::method::all_rows;
use crate::method::noise::seventh_root;
use crate::network::activations;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{CRITIC_HEAD, Critic};
use crate::train::batch::Given;
use crate::train::net::strip;
use crate::train::{restore, state};
use candle_core::{DType, Device, Tensor};

/// Iterations that somebody else's code made of formula-filled networks at batch 4.
pub struct Case {
    pub row: &'static str,
    /// Its file in tests/parity.
    pub file: &'static str,
    npz: &'static [u8],
    /// What the names of its arrays begin with.
    pub group: &'static str,
    /// Whence our draws come.
    draws: &'static [(&'static str, Draw)],
    /// Settings that are not the paper scale's, beside those that all cases share.
    changes: &'static [&'static str],
    /// The gradients of the first iteration: our network's name, the array's.
    gradients: &'static [(&'static str, &'static str)],
    tolerance: Errors,
}

/// What rounding alone explains on a CPU.
struct Errors {
    losses: f64,
    samples: f64,
    gradients: f64,
}

/// From the value of that name in iteration `{k}`.
#[derive(Clone, Copy)]
enum Draw {
    Normal(&'static str),
    Image(&'static str),
    /// ln sigma ~ N(-1.2, 1.2^2)
    LogNormal(&'static str),
    /// SiD's levels.
    SeventhRoot(&'static str),
}

use Draw::{Image, LogNormal, Normal, SeventhRoot};

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
    ("generator.sigma", SeventhRoot("step{k}.generator.t")),
    ("generator.noise", Normal("step{k}.generator.noise")),
];

const fn ours(row: &'static str, group: &'static str) -> Case {
    Case {
        row,
        file: "train-steps.npz",
        npz: include_bytes!("../../../tests/parity/train-steps.npz"),
        group,
        draws: OURS,
        changes: &[],
        gradients: &[],
        tolerance: Errors { losses: 1e-3, samples: 1e-3, gradients: 0.0 },
    }
}

/// Teacher and fake score are one step of Adam apart at first, and losses are their difference.
const TOLERANCE: Errors = Errors { losses: 1e-3, samples: 2e-3, gradients: 3e-4 };

/// Past both thresholds of its warm-up from the first step on.
const SIDA: &[&str] = &["sida_generator_from=0", "sida_adversary_from=0"];

const fn sid(row: &'static str, group: &'static str) -> Case {
    Case {
        row,
        file: "distillation.npz",
        npz: include_bytes!("../../../tests/parity/distillation.npz"),
        group,
        draws: SID,
        changes: &[],
        gradients: &[],
        tolerance: TOLERANCE,
    }
}

/// Everything that there are expected values of.
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
    Case { changes: &["sida_generator_from=4", "sida_adversary_from=8"], ..sid("sida", "sida_warmup") },
];

const BATCH: usize = 4;

impl Case {
    /// One check for the losses, one for the samples afterwards, and one for the gradients of
    /// the first iteration where they are known.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn checks(&self, fixture: &Fixture, device: &Device, unit: Unit) -> Result<Vec<Check>> {
        let recipe = self.recipe()?;
        let (params, _) = filled_denoiser(&recipe.network, device, unit)?;
        let weights = filled(&params, unit);
        let row = all_rows().find(|row| row.id == self.row).expect("a row of the registry");
        let start = [(row.start, weights)];
        let setup = recipe.setup(device, &row, &start, "parity");
        let training = row.method.training.as_ref().expect("a row that is trained");
        let mut method = (training.build)(&setup)?;
        let mut first = state(&mut *method)?;
        first.extend(filled_head(device, unit)?);
        restore(&mut *method, &first)?;

        let (columns, expected) =
            (method.columns(), |array: &str| fixture.f32(&format!("{}/{array}", self.group)));
        let known: Vec<usize> = (0..columns.len()).filter(|i| expected(columns[*i]).is_ok()).collect();
        let steps = expected(columns[known[0]])?.len();
        let mut losses = vec![Vec::new(); columns.len()];
        let mut gradients = 0f64;
        for k in 0..steps {
            let values = method.step(&self.given(k, device, unit)?.batch(k as u64, BATCH))?;
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
        let z = values(Normal("final.z"), 0, device, unit)?;
        let samples = flat(&(row.method.sampler)(&setup, &trained)?.sample(&z)?)?;
        let samples = relative_error(&samples, &expected("samples_after")?);

        let rounded = activations(device) == DType::BF16;
        let check = |what: &str, error: f64, on_cpu: f64| {
            let elsewhere = Tolerance::on(device).steps.max(on_cpu);
            let tolerance = if device.is_cpu() && !rounded { on_cpu } else { elsewhere };
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
        for change in ["generator_lr=1e-3", "critic_lr=1e-3"].iter().chain(self.changes) {
            recipe.set(change)?;
        }
        Ok(recipe)
    }

    /// What iteration `k` draws.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn given(&self, k: usize, device: &Device, unit: Unit) -> Result<Given> {
        let mut given = Given::default();
        for (name, draw) in self.draws {
            given.tensors.insert(name.to_string(), values(*draw, k, device, unit)?);
        }
        Ok(given)
    }

    /// The largest error of the norm of a parameter's gradient. Without momentum they are
    /// the optimiser's first moments.
    fn gradients(&self, fixture: &Fixture, state: &Arrays) -> Result<f64> {
        let mut worst = 0f64;
        for (net, array) in self.gradients {
            for (name, gradient) in strip(state, &format!("{net}.adam.m.")) {
                let norm = gradient.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
                let expected = fixture.f32(&format!("{}/{array}/{name}", self.group))?;
                worst = worst.max(relative_error(&[norm], &expected));
            }
        }
        Ok(worst)
    }
}

fn values(draw: Draw, k: usize, device: &Device, unit: Unit) -> Result<Tensor> {
    let root3 = 3f32.sqrt();
    let (name, image) = match draw {
        Normal(name) | Image(name) => (name, true),
        LogNormal(name) | SeventhRoot(name) => (name, false),
    };
    let values = unit(&name.replace("{k}", &k.to_string()), BATCH * if image { 768 } else { 1 });
    let values: Vec<f32> = values
        .into_iter()
        .map(|u| match draw {
            Normal(_) => root3 * u,
            Image(_) => 0.8 * u,
            LogNormal(_) => (-1.2 + 1.2 * root3 * u).exp(),
            SeventhRoot(_) => seventh_root(0.8 * f64::from(u + 1.0) / 2.0) as f32,
        })
        .collect();
    Ok(match image {
        true => Tensor::from_vec(values, (BATCH, 3, 16, 16), device)?,
        false => Tensor::from_vec(values, BATCH, &Device::Cpu)?,
    })
}

/// The critic's head, which a method draws and a fixture has filled.
fn filled_head(device: &Device, unit: Unit) -> Result<Arrays> {
    let none = Arrays::new();
    let source = Source { given: &none, drawn: &[""], cell: "parity" };
    let (critic, _) = Params::build(device, &source, |vb| Critic::new(&tiny(), vb))?;
    let head = filled(&critic, unit).into_iter().filter(|(name, _)| name.starts_with(CRITIC_HEAD));
    Ok(head.map(|(name, array)| (format!("critic.weights.{name}"), array)).collect())
}

/// All checks of the case with the fixture that is part of the program.
pub fn checks(case: &Case, device: &Device) -> Vec<Check> {
    let found =
        Fixture::parse(case.npz).map_err(Into::into).and_then(|fixture| case.checks(&fixture, device, &unit));
    part(&format!("first steps of {} ({})", case.row, case.group), found)
}
