//! Runs one cell of Table 1, compares it with its golden values, repeats it, and stops and resumes
//! it.

use super::Check;
use crate::error::{Error, Result};
use crate::experiment::run::{Outcome, Runner, Settings, WEIGHTS};
use crate::experiment::{FULL_INITIALIZATION, Recipe, Scale};
use crate::judge::golden::{self, Comparison, Golden, Status, read_golden};
use crate::network::device::Compute;
use crate::store::{Content, read_safetensors};
use crate::train::watch::{Mode, Watch};
use candle_core::Device;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Largest difference of two runs' weights, relative to the largest weight, on a GPU that did not
/// give the same bytes.
const REPEATABLE: f64 = 1e-3;
/// The metric that a GPU's cell must reproduce. Over a whole training, its rounding errors have the
/// effect of another seed. The other metrics come from the same images: a 95 % interval for each of
/// them would fail good GPUs by chance.
const ELSEWHERE: [&str; 3] = ["fd", "generator_parameters", "critic_parameters"];
const SEED: u64 = 0;
/// Largest relative difference of the distance after the few steps of smoke, in which rounding
/// errors have not grown yet: 2e-5 with the stand-in's GPU (`tests/standin`), 2e-3 in the worst of
/// ten rows.
const SAME_SEED: f64 = 1e-2;
/// More steps than any stage of these scales has before its last step.
const MOST_STOPS: usize = 5_000;

/// # Errors
/// Those of the cell.
pub fn checks(compute: &Compute, reduced: bool, root: &Path, scratch: &Path) -> Result<Vec<Check>> {
    let device = &compute.device;
    let scale = if reduced { Scale::Smoke } else { Scale::Mini };
    let run_at = |scale: Scale, name: &str, stop: bool| {
        let flag = AtomicBool::new(stop);
        let settings = Settings {
            store: scratch.join(name),
            root: PathBuf::from(root),
            data: None,
            compute: compute.clone(),
            from_scratch: false,
            microbatch: None,
            keep: false,
        };
        let mut runner = Runner::new(settings, Recipe::of(scale), Watch::new(Mode::None), &flag)?;
        let outcome = runner.row(&FULL_INITIALIZATION, SEED)?;
        let scores = runner.scores(&outcome)?;
        Ok::<_, Error>((outcome, scores))
    };
    let run = |name: &str, stop: bool| run_at(scale, name, stop);
    let (first, scores) = run("first", false)?;
    let row = FULL_INITIALIZATION.id;
    let all = read_golden(&root.join("golden/table1.csv"))?;
    let of = |scale: Scale| all.iter().filter(move |g| g.row == row && g.scale == scale.name());
    let mut checks = Vec::new();
    if !device.is_cpu() {
        let smoke = if reduced { scores.clone() } else { run_at(Scale::Smoke, "smoke", false)?.1 };
        let found = smoke.iter().find(|score| score.metric == "fd").map_or(f64::NAN, |score| score.value);
        let golden = of(Scale::Smoke).find(|golden| golden.metric == "fd");
        let expected = golden.and_then(|golden| golden.values.get(&SEED)).copied().unwrap_or(f64::NAN);
        checks.push(Check {
            what: format!("{found:.3}, on a CPU {expected:.3}"),
            ..Check::error(
                format!("{row} at smoke: fd of the same seed"),
                (found - expected).abs() / expected,
                SAME_SEED,
            )
        });
    }
    let goldens: Vec<Golden> = of(scale).cloned().collect();
    let asked = |comparison: &Comparison| device.is_cpu() || ELSEWHERE.contains(&comparison.metric.as_str());
    for comparison in golden::check(&goldens, &scores).into_iter().filter(asked) {
        let outside = !matches!(comparison.verdict.status, Status::Same | Status::Within);
        checks.push(Check::new(
            format!("{row} at {scale}: {}", comparison.metric),
            comparison.verdict.reason,
            f64::from(u8::from(outside)),
            0.0,
        ));
    }
    let (again, _) = run("again", false)?;
    checks.push(compared(format!("{row} at {scale}, once more"), &first, &again, device)?);

    // With `stop` set, a training takes one step, saves and stops. The cell itself is stopped
    // twice, because a training that restarts from 0 would get no further the second time.
    let (mut stops, mut reached) = (0, None);
    while stops < MOST_STOPS {
        match run("stopped", true) {
            Err(Error::Interrupted { cell, images }) => {
                stops += 1;
                if cell != first.training().entry.label() {
                    continue;
                }
                let Some(before) = reached.replace(images) else { continue };
                let batch = Recipe::of(scale).budget.batch as f64;
                let further = images.saturating_sub(before) as f64;
                let name = format!("{row} at {scale}, resumes where it was stopped");
                checks.push(Check::new(name, "images short of one step".into(), batch - further, 0.0));
                break;
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(Error::Run("the cell did not stop when it was told to".into())),
        }
    }
    let (resumed, _) = run("stopped", false)?;
    let name = format!("{row} at {scale}, stopped {stops} times and resumed");
    checks.push(compared(name, &first, &resumed, device)?);
    Ok(checks)
}

/// Compares the outputs. On a CPU every output must have the same bytes; on a GPU the weights may
/// differ a little, which is reported.
fn compared(name: String, a: &Outcome, b: &Outcome, device: &Device) -> Result<Check> {
    let (files, others) = (a.outputs(), b.outputs());
    let differs = |(file, content): &(&String, &Content)| others.get(*file) != Some(*content);
    let differ: Vec<&str> = files.iter().filter(differs).map(|(file, _)| file.as_str()).collect();
    let same = differ.is_empty() && files.len() == others.len();
    if same || device.is_cpu() {
        let files = files.len();
        let what = format!("of {files} files with other bytes: {}", differ.join(", "));
        let what = if same { format!("of {files} files with other bytes") } else { what };
        return Ok(Check::new(name, what, differ.len().max(usize::from(!same)) as f64, 0.0));
    }
    let weights = |outcome: &Outcome| -> Result<Vec<f32>> {
        let bytes = outcome.training().entry.read(WEIGHTS)?;
        let (arrays, _) = read_safetensors(&outcome.training().entry.path(WEIGHTS), &bytes)?;
        Ok(arrays.into_values().flat_map(|array| array.data).collect())
    };
    let measured = super::fixture::relative_error(&weights(b)?, &weights(a)?);
    Ok(Check::new(name, format!("of the weights, {} files differ", differ.len()), measured, REPEATABLE))
}
