//! The training loop: resume, step, log, tick, checkpoint, stop. Step k is a pure function of the
//! weights and of k, so an interrupted run ends with the same bytes as one that was not
//! interrupted.

pub mod adam;
pub mod augment;
pub mod batch;
pub mod net;
pub mod tfevents;
pub mod watch;

use crate::data::Images;
use crate::data::grid::{GRID, png_grid};
use crate::error::{Error, Result};
use crate::network::params::Arrays;
use crate::store::{Array, Checkpoint, Lock};
use crate::train::batch::{Batch, Batches};
use crate::train::net::{TrainState, strip};
use crate::train::watch::{Progress, Watch, say};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A method that is trained step by step.
pub trait Method {
    /// Names of the values of a step: the columns of metrics.csv.
    fn columns(&self) -> &'static [&'static str];

    /// Takes one iteration and returns a value for each column. The values are scalars on the
    /// device, not read yet: reading would make a GPU wait in the middle of an iteration.
    fn step(&mut self, batch: &Batch) -> candle_core::Result<Vec<Tensor>>;

    /// Its networks by name. The weights of the first one are published.
    fn nets(&mut self) -> Vec<(&'static str, &mut TrainState)>;

    /// Numbers outside the networks that the next step depends on.
    fn extra_state(&mut self) -> Vec<(&'static str, &mut f64)> {
        Vec::new()
    }
}

/// Samples and scores at a tick.
#[derive(Default)]
pub struct Snapshot {
    pub scores: Option<InterimScores>,
    /// Images from the latents that all grids of a scale share.
    pub grid: Option<Images>,
}

/// Scores during a training, from few images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InterimScores {
    /// Fréchet distance in the features of the feature network.
    pub fd: f64,
    /// k-NN recall.
    pub recall: f64,
    /// Effective number of target classes.
    pub classes: f64,
    /// True if recall and classes meet the criterion of collapse.
    pub collapsed: bool,
}

/// Length of a training in images, and its number of ticks. Each tick writes a line, a grid and a
/// checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub images: u64,
    pub ticks: u64,
}

/// Result of a finished training.
pub struct Trained {
    pub weights: Arrays,
    /// Names of the files written, metrics.csv first.
    pub outputs: Vec<String>,
    pub images: u64,
    /// Seconds spent in the steps of this process; `steps` is their number.
    pub step_seconds: f64,
    pub steps: u64,
}

/// Name of the file with the values of all ticks.
pub const METRICS_FILE: &str = "metrics.csv";

/// Trains `method` to the end of its budget. Resumes from the entry's checkpoint if there is one.
/// `snapshot` makes the samples and scores of a tick from the weights that would be published.
///
/// # Errors
/// `Interrupted` if `stop` was set; a checkpoint has been written. `Diverged` if a value is not
/// finite; the last checkpoint is kept.
pub fn train(
    lock: &Lock,
    budget: Budget,
    batches: &Batches,
    method: &mut dyn Method,
    snapshot: &mut dyn FnMut(&Arrays) -> Result<Snapshot>,
    watch: &mut Watch,
    stop: &AtomicBool,
) -> Result<Trained> {
    let size = batches.size as u64;
    let steps = budget.images.div_ceil(size);
    let per_tick = steps.div_ceil(budget.ticks).max(1);
    let columns = method.columns();
    let mut done = 0;
    let (checkpoint, notices) = lock.resume()?;
    notices.iter().for_each(|notice| say(notice));
    let mut log = match checkpoint {
        Some(checkpoint) => {
            done = checkpoint.images / size;
            restore(method, &checkpoint.tensors)?;
            watch.note(&format!(
                "{}: resuming at {} of {} images",
                lock.label(),
                checkpoint.images,
                budget.images
            ));
            let log = Log::restore(&checkpoint.text, columns.len());
            lock.rewrite(METRICS_FILE, log.csv.as_bytes())?;
            log
        }
        None => Log::new(columns),
    };
    watch.begin(lock.label(), lock.dir(), budget.images, done * size);
    let begun_at = done;
    let mut step_seconds = 0.0;
    if done == 0 {
        let progress = Progress { images: 0, columns, values: &[], scores: None };
        log.tick(lock, snapshot(&published(method)?)?, watch, &progress, None)?;
        lock.rewrite(METRICS_FILE, log.csv.as_bytes())?;
    }
    while done < steps {
        let started = Instant::now();
        let images = (done + 1) * size;
        let values = read(method.step(&batches.at(done))?)?;
        step_seconds += started.elapsed().as_secs_f64();
        check_finite(lock, columns, &values, images)?;
        done += 1;
        log.sums.iter_mut().zip(&values).for_each(|(sum, v)| *sum += v);
        let progress = Progress { images, columns, values: &values, scores: log.scores };
        watch.progress(&progress);
        let stopping = stop.load(Ordering::Relaxed);
        if done % per_tick == 0 || done == steps {
            let since = if done % per_tick == 0 { per_tick } else { done % per_tick };
            let state = finite(lock, state(method)?, images)?;
            log.tick(lock, snapshot(&published(method)?)?, watch, &progress, Some(since))?;
            lock.rewrite(METRICS_FILE, log.csv.as_bytes())?;
            save(lock, state, images, &log)?;
        } else if stopping {
            save(lock, finite(lock, state(method)?, images)?, images, &log)?;
        }
        if stopping && done < steps {
            watch.end();
            return Err(Error::Interrupted { cell: lock.label().into(), images });
        }
    }
    watch.end();
    Ok(Trained {
        weights: published(method)?,
        outputs: log.outputs,
        images: done * size,
        step_seconds,
        steps: done - begun_at,
    })
}

/// Returns the weights that a training publishes.
pub fn published(method: &mut dyn Method) -> candle_core::Result<Arrays> {
    let (_, first) = method.nets().into_iter().next().expect("a method has a network");
    first.weights()
}

/// Returns everything that the next step depends on.
pub fn state(method: &mut dyn Method) -> candle_core::Result<Arrays> {
    let mut all = Arrays::new();
    for (name, net) in method.nets() {
        net.save(name, &mut all)?;
    }
    for (name, value) in method.extra_state() {
        all.insert(format!("memory.{name}"), exact(*value));
    }
    Ok(all)
}

/// Restores a training from its `state`.
pub fn restore(method: &mut dyn Method, state: &Arrays) -> candle_core::Result<()> {
    for (name, net) in method.nets() {
        net.restore(name, state)?;
    }
    let memory = strip(state, "memory.");
    for (name, value) in method.extra_state() {
        *value = memory
            .get(name)
            .and_then(inexact)
            .ok_or_else(|| candle_core::Error::Msg(format!("the number {name} is missing")))?;
    }
    Ok(())
}

/// Encodes a float64 as four float32 numbers of 16 bits each.
fn exact(value: f64) -> Array {
    let bits = value.to_bits();
    Array { shape: vec![4], data: (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32).collect() }
}

fn inexact(array: &Array) -> Option<f64> {
    let parts: &[f32; 4] = array.data.as_slice().try_into().ok()?;
    Some(f64::from_bits(parts.iter().enumerate().map(|(i, part)| (*part as u64) << (16 * i)).sum()))
}

fn read(values: Vec<Tensor>) -> candle_core::Result<Vec<f64>> {
    values.iter().map(|value| Ok(f64::from(value.to_scalar::<f32>()?))).collect()
}

fn check_finite(lock: &Lock, columns: &[&str], values: &[f64], images: u64) -> Result<()> {
    match columns.iter().zip(values).find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((name, _)) => Err(diverged(lock, name, images)),
    }
}

/// Fails on values that are not finite, so that they never overwrite a good checkpoint.
fn finite(lock: &Lock, state: Arrays, images: u64) -> Result<Arrays> {
    match state.iter().find(|(_, array)| array.data.iter().any(|v| !v.is_finite())) {
        None => Ok(state),
        Some((name, _)) => Err(diverged(lock, name, images)),
    }
}

fn diverged(lock: &Lock, quantity: &str, images: u64) -> Error {
    Error::Diverged {
        cell: lock.label().into(),
        quantity: quantity.to_string(),
        images,
        checkpoint: lock.checkpoint_dir(),
    }
}

fn save(lock: &Lock, tensors: Arrays, images: u64, log: &Log) -> Result<()> {
    lock.save_checkpoint(&Checkpoint { images, tensors, text: log.text() })
}

/// Lines of metrics.csv so far, and sums since the last line.
struct Log {
    csv: String,
    sums: Vec<f64>,
    outputs: Vec<String>,
    scores: Option<InterimScores>,
}

impl Log {
    fn new(columns: &[&str]) -> Log {
        Log {
            csv: format!("images,{},fd,recall,classes\n", columns.join(",")),
            sums: vec![0.0; columns.len()],
            outputs: vec![METRICS_FILE.into()],
            scores: None,
        }
    }

    /// Writes a grid and a line, and notes when samples start or stop being collapsed. `steps`
    /// counts the steps since the last tick; it is `None` before the first step.
    fn tick(
        &mut self,
        lock: &Lock,
        Snapshot { scores, grid }: Snapshot,
        watch: &mut Watch,
        at: &Progress,
        steps: Option<u64>,
    ) -> Result<()> {
        let png = grid.map(|grid| png_grid(&grid, GRID.0, GRID.1));
        if let Some(png) = &png {
            let name = format!("grid-{:09}.png", at.images);
            lock.write(&name, png)?;
            self.outputs.push(name);
        }
        // The first tick does not count: an untrained network also meets the criterion of collapse.
        let before = self.csv.lines().count() > 2 && self.scores.is_some_and(|scores| scores.collapsed);
        if let Some(now) = scores
            && at.images > 0
            && before != now.collapsed
        {
            watch.note(&format!(
                "{}: after {} images the samples {} (recall {:.2}, {:.1} effective classes); the run continues",
                lock.label(),
                at.images,
                if before { "are no longer collapsed" } else { "are collapsed" },
                now.recall,
                now.classes
            ));
        }
        self.scores = scores;
        self.line(at.images, steps);
        watch.tick(&Progress { scores, ..*at }, png.as_deref());
        Ok(())
    }

    /// Adds a line with the means since the last one; before the first step they are empty.
    fn line(&mut self, images: u64, steps: Option<u64>) {
        let mut line = images.to_string();
        for sum in &mut self.sums {
            line += &steps.map_or(",".into(), |steps| format!(",{:.6}", *sum / steps as f64));
            *sum = 0.0;
        }
        line += &match self.scores {
            Some(InterimScores { fd, recall, classes, .. }) => format!(",{fd:.4},{recall:.4},{classes:.4}"),
            None => ",,,".into(),
        };
        self.csv += &line;
        self.csv.push('\n');
    }

    fn text(&self) -> BTreeMap<String, String> {
        let bits =
            |values: &[f64]| values.iter().map(|v| v.to_bits().to_string()).collect::<Vec<_>>().join(" ");
        let scores =
            self.scores.map(|s| bits(&[s.fd, s.recall, s.classes, f64::from(u8::from(s.collapsed))]));
        let pairs = [
            ("csv", self.csv.clone()),
            ("sums", bits(&self.sums)),
            ("outputs", self.outputs.join(" ")),
            ("scores", scores.unwrap_or_default()),
        ];
        pairs.into_iter().map(|(name, text)| (name.to_string(), text)).collect()
    }

    fn restore(text: &BTreeMap<String, String>, columns: usize) -> Log {
        let part = |name: &str| text.get(name).cloned().unwrap_or_default();
        let bits = |text: String| -> Vec<f64> {
            text.split(' ').filter_map(|bits| bits.parse().ok()).map(f64::from_bits).collect()
        };
        let mut sums = bits(part("sums"));
        sums.resize(columns, 0.0);
        let scores = match bits(part("scores"))[..] {
            [fd, recall, classes, collapsed] => {
                Some(InterimScores { fd, recall, classes, collapsed: collapsed != 0.0 })
            }
            _ => None,
        };
        let outputs = part("outputs").split(' ').map(str::to_string).collect();
        Log { csv: part("csv"), sums, outputs, scores }
    }
}
