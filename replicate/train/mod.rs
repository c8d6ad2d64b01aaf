//! The loop around every training: resume, ticks, checkpoints, signals. What
//! is trained is a [`Training`]; step k is a pure function of the weights and
//! of k, so a run that was stopped ends in the same bytes as one that was not.

pub mod adam;
pub mod augment;
pub mod tfevents;
pub mod watch;

use crate::data::Images;
use crate::error::{Error, Result};
use crate::experiment::{ClassifierTraining, Pretraining, Recipe};
use crate::measure::classifier::Classifier;
use crate::measure::evaluate::{Evaluator, Quick};
use crate::measure::metrics::modes::Collapse;
use crate::method::distill::{CriticBatch, GeneratorBatch, OneStep, augmented, parts, shared, strip};
use crate::method::equations::{diffuse, dsm};
use crate::method::noise::Levels;
use crate::method::sampler::edm::one_step;
use crate::network;
use crate::network::elsewhere;
use crate::network::params::{Arrays, Params, Source};
use crate::network::unet::{Config, Denoiser};
use crate::rng::Stream;
use crate::store::{Array, Checkpoint, Lock};
use crate::train::adam::{Adam, Ema};
use crate::train::augment::{Augmentation, Draw, LABELS};
use crate::train::watch::{Progress, Watch};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Something that is trained step by step.
pub trait Training {
    /// Names of the values that a step gives.
    fn columns(&self) -> &'static [&'static str];
    /// Step `k`, after which `images` images have been seen.
    fn step(&mut self, k: u64, images: u64) -> Result<Vec<f64>>;
    /// The state of the present average.
    fn look(&self) -> Result<Look>;
    /// Everything that the next step depends on.
    fn state(&self) -> Result<Arrays>;
    fn restore(&mut self, steps: u64, state: &Arrays) -> Result<()>;
    /// The weights to publish.
    fn weights(&self) -> Result<Arrays>;
}

/// What can be seen of a training.
#[derive(Default)]
pub struct Look {
    pub quick: Option<Quick>,
    /// Images of the latents that all grids of a scale show.
    pub grid: Option<Images>,
}

/// How long, and how often to look.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub images: u64,
    pub batch: usize,
    pub ticks: u64,
}

/// What a finished training leaves.
pub struct Trained {
    pub weights: Arrays,
    /// Names of the files written, metrics.csv first.
    pub outputs: Vec<String>,
    pub images: u64,
    /// Seconds inside the steps of this process, and how many steps.
    pub step_seconds: f64,
    pub steps: u64,
}

/// Images of a pre-training step in memory at a time, as EDM's 512 on eight devices.
pub const AT_ONCE: usize = 64;
pub const METRICS: &str = "metrics.csv";
/// Columns and zoom of the grids of samples.
pub const GRID: (usize, usize) = (10, 3);

/// Runs `training` to the end of its budget, from the entry's checkpoint where
/// there is one.
///
/// # Errors
/// `Interrupted` when `stop` is set: a checkpoint has been written then.
/// `Diverged` when a value is not finite: the last checkpoint is left.
pub fn train(
    lock: &Lock,
    budget: Budget,
    training: &mut dyn Training,
    watch: &mut Watch,
    stop: &AtomicBool,
) -> Result<Trained> {
    let steps = budget.images.div_ceil(budget.batch as u64);
    let per_tick = steps.div_ceil(budget.ticks).max(1);
    let columns = training.columns();
    let mut done = 0;
    let (checkpoint, notices) = lock.load_checkpoint()?;
    notices.iter().for_each(|notice| watch.note(notice));
    let mut log = match checkpoint {
        Some(checkpoint) => {
            done = checkpoint.images / budget.batch as u64;
            training.restore(done, &checkpoint.tensors)?;
            watch.note(&format!(
                "{}: going on after {} of {} images",
                lock.label(),
                checkpoint.images,
                budget.images
            ));
            Log::restore(&checkpoint.text, columns.len())
        }
        None => Log::new(columns),
    };
    watch.begin(lock.label(), lock.dir(), budget.images, done * budget.batch as u64);
    let begun_at = done;
    let mut step_seconds = 0.0;
    if done == 0 {
        let progress = Progress { images: 0, columns, values: &[], quick: None };
        log.look(lock, training, watch, &progress, 1)?;
        lock.write(METRICS, log.csv.as_bytes())?;
    }
    while done < steps {
        let started = Instant::now();
        let images = (done + 1) * budget.batch as u64;
        let values = training.step(done, images)?;
        step_seconds += started.elapsed().as_secs_f64();
        check_finite(lock, columns, &values, images)?;
        done += 1;
        log.sums.iter_mut().zip(&values).for_each(|(sum, v)| *sum += v);
        let progress = Progress { images, columns, values: &values, quick: log.quick };
        watch.progress(&progress);
        let stopping = stop.load(Ordering::Relaxed);
        if done % per_tick == 0 || done == steps {
            let since = if done % per_tick == 0 { per_tick } else { done % per_tick };
            let state = finite(lock, training.state()?, images)?;
            log.look(lock, training, watch, &progress, since)?;
            lock.write(METRICS, log.csv.as_bytes())?;
            save(lock, state, images, &log)?;
        } else if stopping {
            save(lock, finite(lock, training.state()?, images)?, images, &log)?;
        }
        if stopping && done < steps {
            watch.end();
            return Err(Error::Interrupted { cell: lock.label().into(), images });
        }
    }
    watch.end();
    Ok(Trained {
        weights: training.weights()?,
        outputs: log.outputs,
        images: done * budget.batch as u64,
        step_seconds,
        steps: done - begun_at,
    })
}

fn check_finite(lock: &Lock, columns: &[&str], values: &[f64], images: u64) -> Result<()> {
    // VSD has no classifier: its probabilities are NaN by definition.
    match columns.iter().zip(values).find(|(name, v)| !v.is_finite() && !name.starts_with("c_")) {
        None => Ok(()),
        Some((name, _)) => Err(Error::Diverged {
            cell: lock.label().into(),
            quantity: name.to_string(),
            images,
            checkpoint: lock.checkpoint_dir(),
        }),
    }
}

/// What is not finite is never written over a good checkpoint.
fn finite(lock: &Lock, state: Arrays, images: u64) -> Result<Arrays> {
    match state.iter().find(|(_, array)| array.data.iter().any(|v| !v.is_finite())) {
        None => Ok(state),
        Some((name, _)) => Err(Error::Diverged {
            cell: lock.label().into(),
            quantity: name.clone(),
            images,
            checkpoint: lock.checkpoint_dir(),
        }),
    }
}

fn save(lock: &Lock, tensors: Arrays, images: u64, log: &Log) -> Result<()> {
    lock.save_checkpoint(&Checkpoint { images, tensors, text: log.text() })
}

/// The lines written so far and the sums since the last one.
struct Log {
    csv: String,
    sums: Vec<f64>,
    outputs: Vec<String>,
    quick: Option<Quick>,
}

impl Log {
    fn new(columns: &[&str]) -> Log {
        Log {
            csv: format!("images,{},fd,recall,classes\n", columns.join(",")),
            sums: vec![0.0; columns.len()],
            outputs: vec![METRICS.into()],
            quick: None,
        }
    }

    /// One tick: a grid, a line, and a word where the samples collapse.
    fn look(
        &mut self,
        lock: &Lock,
        training: &dyn Training,
        watch: &mut Watch,
        at: &Progress,
        steps: u64,
    ) -> Result<()> {
        let Look { quick, grid } = training.look()?;
        let png = grid.map(|grid| crate::data::grid::png_grid(&grid, GRID.0, GRID.1));
        if let Some(png) = &png {
            let name = format!("grid-{:09}.png", at.images);
            lock.write(&name, png)?;
            self.outputs.push(name);
        }
        if let Some(now) = quick
            && at.images > 0
            && self.is_collapsed() != (now.collapse() == Collapse::Collapsed)
        {
            watch.note(&format!(
                "{}: after {} images the samples {} (recall {:.2}, {:.1} effective classes); the run goes on",
                lock.label(),
                at.images,
                if self.is_collapsed() { "are no longer collapsed" } else { "are collapsed" },
                now.recall,
                now.classes
            ));
        }
        self.quick = quick;
        self.tick(at.images, if at.images == 0 { None } else { Some(steps) });
        watch.tick(&Progress { quick, ..*at }, png.as_deref());
        Ok(())
    }

    /// Whether the last tick was. The initialisation does not count: an untrained
    /// network meets the criterion too.
    fn is_collapsed(&self) -> bool {
        let trained = self.csv.lines().count() > 2;
        trained && self.quick.is_some_and(|quick| quick.collapse() == Collapse::Collapsed)
    }

    /// Adds the means since the last line; before the first step there are none.
    fn tick(&mut self, images: u64, steps: Option<u64>) {
        let mut line = images.to_string();
        for sum in &mut self.sums {
            let mean = steps.map_or(f64::NAN, |steps| *sum / steps as f64);
            line += &if mean.is_nan() { ",".into() } else { format!(",{mean:.6}") };
            *sum = 0.0;
        }
        line += &match self.quick {
            Some(Quick { fd, recall, classes }) => format!(",{fd:.4},{recall:.4},{classes:.4}"),
            None => ",,,".into(),
        };
        self.csv += &line;
        self.csv.push('\n');
    }

    fn last_quick(csv: &str) -> Option<Quick> {
        let mut last = csv.lines().last()?.rsplit(',').map(str::parse);
        let (classes, recall, fd) = (last.next()?.ok()?, last.next()?.ok()?, last.next()?.ok()?);
        Some(Quick { fd, recall, classes })
    }

    fn text(&self) -> BTreeMap<String, String> {
        let bits: Vec<String> = self.sums.iter().map(|v| v.to_bits().to_string()).collect();
        let pairs =
            [("csv", self.csv.clone()), ("sums", bits.join(" ")), ("outputs", self.outputs.join(" "))];
        pairs.into_iter().map(|(name, text)| (name.to_string(), text)).collect()
    }

    fn restore(text: &BTreeMap<String, String>, columns: usize) -> Log {
        let part = |name: &str| text.get(name).cloned().unwrap_or_default();
        let mut sums: Vec<f64> =
            part("sums").split(' ').filter_map(|b| b.parse().ok()).map(f64::from_bits).collect();
        sums.resize(columns, 0.0);
        let csv = part("csv");
        let outputs = part("outputs").split(' ').map(str::to_string).collect();
        Log { quick: Log::last_quick(&csv), csv, sums, outputs }
    }
}

/// Host noise and minibatches on their way to a device.
struct Batches<'a> {
    images: &'a Images,
    device: Device,
    batch: usize,
    augmentation: Augmentation,
    /// Names the streams.
    cell: String,
}

impl Batches<'_> {
    fn shape(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.images.channels, self.images.size, self.images.size)
    }

    fn normal(&self, name: &str, k: u64) -> Result<Tensor> {
        Ok(network::normals(&Stream::new(&self.cell, name), k, self.shape(), &self.device)?)
    }

    fn indices(&self, name: &str, k: u64) -> Vec<usize> {
        let mut draws = Stream::new(&self.cell, name).at(k);
        (0..self.batch).map(|_| draws.below(self.images.len())).collect()
    }

    fn real(&self, indices: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.images.to_unit(indices), self.shape(), &self.device)?)
    }

    /// `None` where nothing is augmented.
    fn augment(&self, name: &str, k: u64) -> Option<Vec<Draw>> {
        let mut draws = Stream::new(&self.cell, name).at(k);
        let each = |_| self.augmentation.draw(&mut draws);
        (self.augmentation.p > 0.0).then(|| (0..self.batch).map(each).collect())
    }

    fn sigma(&self, name: &str, levels: Levels, k: u64) -> Vec<f32> {
        levels.draw(&mut Stream::new(&self.cell, name).at(k), self.batch)
    }
}

/// Images of the latents of every grid: the same in every panel of every row.
pub fn generate_grid(
    config: &Config,
    device: &Device,
    sample: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Images> {
    let n = GRID.0 * GRID.0;
    let shape = (n, config.image_channels, config.size, config.size);
    let values = Stream::new("grid", "z").normals(0, n * config.image_channels * config.size * config.size);
    let latents = Tensor::from_vec(values, shape, device)?;
    generate(0..n, |range| sample(&latents.narrow(0, range.start, range.len())?))
}

/// The images of `range` in batches, which `sample` makes (B, C, H, W); on a CPU
/// the batch never changes an image.
///
/// # Errors
/// `Run` when a value is not finite: as bytes it would pass for black.
pub fn generate(
    range: Range<usize>,
    mut sample: impl FnMut(Range<usize>) -> candle_core::Result<Tensor>,
) -> Result<Images> {
    const BATCH: usize = 100;
    let mut all = Images { channels: 0, size: 0, pixels: Vec::new(), labels: Vec::new() };
    for start in range.clone().step_by(BATCH) {
        let x = sample(start..range.end.min(start + BATCH))?;
        let (_, channels, size, _) = x.dims4()?;
        let values = x.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let image = start + at / (channels * size * size);
            return Err(Error::Run(format!("sample {image} is not finite: the network has diverged")));
        }
        (all.channels, all.size) = (channels, size);
        all.pixels.extend(Images::from_unit(channels, size, &values).pixels);
    }
    Ok(all)
}

/// The latents that a cell is scored on: the same for every row of a seed.
#[derive(Clone, Copy)]
pub struct ScoreLatents<'a> {
    pub config: &'a Config,
    pub seed: u64,
    pub device: &'a Device,
}

impl ScoreLatents<'_> {
    /// Those of the images of `range`, (B, C, H, W), whatever was asked for before.
    pub fn at(&self, range: Range<usize>) -> candle_core::Result<Tensor> {
        let (c, size) = (self.config.image_channels, self.config.size);
        let each = c * size * size;
        let stream = Stream::new(&format!("score seed {}", self.seed), "z");
        let shape = (range.len(), c, size, size);
        network::normals_from(&stream, 0, range.start * each, shape, self.device)
    }
}

/// Loads weights into a network that only evaluates.
pub fn evaluating(config: &Config, weights: &Arrays, device: &Device) -> candle_core::Result<Denoiser> {
    let source = Source { given: weights, drawn: &[], cell: "" };
    Params::build(device, &source, |vb| Denoiser::new(config, vb))?.0.frozen(|vb| Denoiser::new(config, vb))
}

/// Stage 1, line 1 of both algorithms: denoising score matching (Eq 3).
pub struct Teaching<'a> {
    batches: Batches<'a>,
    settings: Pretraining,
    levels: Levels,
    config: Config,
    sigma_init: f64,
    params: Params,
    model: Denoiser,
    adam: Adam,
    ema: Ema,
    at_once: usize,
}

impl<'a> Teaching<'a> {
    /// The same training with at most `images` of a batch in memory at a time, where
    /// that is fewer than [`AT_ONCE`].
    pub fn at_once(mut self, images: usize) -> Teaching<'a> {
        self.at_once = images.clamp(1, AT_ONCE);
        self
    }

    /// `cell` names the random streams.
    pub fn new(
        device: &Device,
        recipe: &Recipe,
        levels: Levels,
        images: &'a Images,
        cell: &str,
    ) -> Result<Teaching<'a>> {
        let config = recipe.network.clone();
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell };
        let (params, model) = Params::build(device, &source, |vb| Denoiser::new(&config, vb))?;
        let settings = recipe.pretraining.clone();
        Ok(Teaching {
            adam: Adam::new(settings.adam, &params)?,
            ema: Ema::new(settings.ema_half_life, &params)?,
            batches: Batches {
                images,
                device: device.clone(),
                batch: settings.batch,
                augmentation: recipe.augmentation,
                cell: cell.into(),
            },
            settings,
            levels,
            config,
            sigma_init: recipe.one_step.sigma_init,
            params,
            model,
            at_once: AT_ONCE,
        })
    }
}

/// Linear warm-up, then, where `cosine`, half a cosine to 0 at the end.
fn learning_rate(lr: f64, warmup: u64, total: u64, cosine: bool, images: u64) -> f64 {
    let ramp = (images as f64 / warmup.max(1) as f64).min(1.0);
    if !cosine {
        return lr * ramp;
    }
    let along = images.saturating_sub(warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    lr * ramp * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * along.min(1.0)))
}

impl Training for Teaching<'_> {
    fn columns(&self) -> &'static [&'static str] {
        &["loss"]
    }

    fn step(&mut self, k: u64, images: u64) -> Result<Vec<f64>> {
        let b = &self.batches;
        let x0 = b.real(&b.indices("index", k))?;
        let (x0, labels) = augmented(&x0, b.augment("augment", k).as_deref())?;
        let sigma = b.sigma("sigma", self.levels, k);
        let xt = diffuse(&x0, &sigma, &b.normal("noise", k)?)?;
        let (mut losses, mut gradient) = (Vec::new(), None);
        for (range, share) in parts(b.batch, self.at_once) {
            let part = |all: &Tensor| all.narrow(0, range.start, range.len());
            let labels = labels.as_ref().map(|all| &all[range.start * LABELS..range.end * LABELS]);
            let sigma = &sigma[range.clone()];
            let denoised = self.model.forward(&part(&xt)?, sigma, labels)?;
            let loss = dsm(&denoised, &part(&x0)?, sigma)?;
            let loss = shared(loss, share)?;
            gradient = Some(self.params.add_gradients(gradient, elsewhere::gradients(&loss)?)?);
            losses.push(loss.detach());
        }
        let s = &self.settings;
        let lr = learning_rate(s.lr, s.warmup_images, s.images, s.cosine, images);
        self.adam.update(&self.params, &gradient.expect("a batch is not empty"), lr)?;
        self.ema.update(&self.params, images, b.batch)?;
        let total = losses
            .iter()
            .try_fold(0.0, |total, loss| Ok::<_, Error>(total + f64::from(loss.to_scalar::<f32>()?)))?;
        Ok(vec![total])
    }

    /// One-step samples: what the generator will start from.
    fn look(&self) -> Result<Look> {
        let model = evaluating(&self.config, &self.ema.arrays()?, &self.batches.device)?;
        let sample = |z: &Tensor| one_step(&model, z, self.sigma_init);
        Ok(Look { quick: None, grid: Some(generate_grid(&self.config, &self.batches.device, sample)?) })
    }

    fn state(&self) -> Result<Arrays> {
        let mut all = prefixed("weights.", self.params.arrays()?);
        all.extend(prefixed("adam.", self.adam.arrays()?));
        all.extend(prefixed("ema.", self.ema.arrays()?));
        Ok(all)
    }

    fn restore(&mut self, _: u64, state: &Arrays) -> Result<()> {
        self.params.assign(&strip(state, "weights."))?;
        self.adam.restore(&strip(state, "adam."))?;
        Ok(self.ema.restore(&strip(state, "ema."))?)
    }

    fn weights(&self) -> Result<Arrays> {
        Ok(self.ema.arrays()?)
    }
}

fn prefixed(prefix: &str, arrays: Arrays) -> BTreeMap<String, Array> {
    arrays.into_iter().map(|(name, array)| (format!("{prefix}{name}"), array)).collect()
}

/// Stage 2, lines 3 to 7: Algorithm 1 with `Objective::Vsd`, else Algorithm 2.
pub struct Distilling<'a> {
    batches: Batches<'a>,
    levels: Levels,
    config: Config,
    sigma_init: f64,
    run: OneStep,
    /// How many images the quick scores take, of which seed, and who computes them.
    quick: Option<(usize, u64, &'a Evaluator)>,
}

impl<'a> Distilling<'a> {
    pub fn new(
        device: &Device,
        recipe: &Recipe,
        run: OneStep,
        images: &'a Images,
        seed: u64,
        evaluator: Option<&'a Evaluator>,
    ) -> Result<Distilling<'a>> {
        let config = recipe.network.clone();
        let quick = evaluator.map(|evaluator| (recipe.evaluation.quick_samples, seed, evaluator));
        // Every row of a seed sees the same images and the same noise.
        let cell = format!("{} one-step seed {seed}", recipe.scale);
        Ok(Distilling {
            batches: Batches {
                images,
                device: device.clone(),
                batch: recipe.batch,
                augmentation: recipe.augmentation,
                cell,
            },
            levels: recipe.one_step.levels,
            config,
            sigma_init: recipe.one_step.sigma_init,
            run,
            quick,
        })
    }
}

impl Training for Distilling<'_> {
    fn columns(&self) -> &'static [&'static str] {
        &["critic_loss", "generator_loss", "c_real", "c_fake"]
    }

    fn step(&mut self, k: u64, images: u64) -> Result<Vec<f64>> {
        let b = &self.batches;
        let critic = self.run.critic_step(&CriticBatch {
            z: b.normal("critic.z", k)?,
            real: b.real(&b.indices("critic.index", k))?,
            sigma: b.sigma("critic.sigma", self.levels, k),
            noise_real: b.normal("critic.noise_real", k)?,
            noise_fake: b.normal("critic.noise_fake", k)?,
            augment: b
                .augment("critic.augment_real", k)
                .zip(b.augment("critic.augment_fake", k))
                .map(<[_; 2]>::from),
        })?;
        let generator = self.run.generator_step(&GeneratorBatch {
            z: b.normal("generator.z", k)?,
            sigma: b.sigma("generator.sigma", self.levels, k),
            noise: b.normal("generator.noise", k)?,
        })?;
        self.run.average(images, b.batch)?;
        let (critic, loss) = (critic.read()?, generator.read()?);
        Ok(vec![critic.loss as f64, loss as f64, critic.c_real as f64, critic.c_fake as f64])
    }

    fn look(&self) -> Result<Look> {
        let device = &self.batches.device;
        let model = evaluating(&self.config, &self.run.averaged()?, device)?;
        let sample = |z: &Tensor| one_step(&model, z, self.sigma_init);
        let quick = match &self.quick {
            Some((n, seed, evaluator)) => {
                let latents = ScoreLatents { config: &self.config, seed: *seed, device };
                Some(evaluator.quick(&generate(0..*n, |range| sample(&latents.at(range)?))?)?)
            }
            None => None,
        };
        Ok(Look { quick, grid: Some(generate_grid(&self.config, device, sample)?) })
    }

    fn state(&self) -> Result<Arrays> {
        Ok(self.run.state()?)
    }

    fn restore(&mut self, _: u64, state: &Arrays) -> Result<()> {
        Ok(self.run.restore(state)?)
    }

    fn weights(&self) -> Result<Arrays> {
        Ok(self.run.averaged()?)
    }
}

/// The feature network: 110-way classification of digits and characters.
pub struct Classifying<'a> {
    batches: Batches<'a>,
    settings: ClassifierTraining,
    params: Params,
    model: Classifier,
    adam: Adam,
}

impl<'a> Classifying<'a> {
    pub fn new(
        device: &Device,
        settings: &ClassifierTraining,
        images: &'a Images,
    ) -> Result<Classifying<'a>> {
        let cell = "classifier";
        let none = Arrays::new();
        let source = Source { given: &none, drawn: &[""], cell };
        let (params, model) = Params::build(device, &source, Classifier::new)?;
        Ok(Classifying {
            adam: Adam::new(settings.adam, &params)?,
            batches: Batches {
                images,
                device: device.clone(),
                batch: settings.batch,
                augmentation: Augmentation { p: 0.0 },
                cell: cell.into(),
            },
            settings: settings.clone(),
            params,
            model,
        })
    }
}

impl Training for Classifying<'_> {
    fn columns(&self) -> &'static [&'static str] {
        &["cross_entropy", "accuracy"]
    }

    fn step(&mut self, k: u64, images: u64) -> Result<Vec<f64>> {
        let b = &self.batches;
        let indices = b.indices("index", k);
        let labels: Vec<u32> = indices.iter().map(|i| b.images.labels[*i]).collect();
        let (_, logits) = self.model.forward(&b.real(&indices)?)?;
        let max = logits.max_keepdim(1)?.detach();
        let shifted = logits.broadcast_sub(&max)?;
        let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
        let targets = Tensor::from_slice(&labels, (b.batch, 1), &b.device)?;
        let loss = log_p.gather(&targets, 1)?.mean_all()?.neg()?;
        let guesses = logits.argmax(1)?;
        let lr =
            learning_rate(self.settings.lr, self.settings.images / 20, self.settings.images, true, images);
        self.adam.update(&self.params, &elsewhere::gradients(&loss)?, lr)?;
        let hits = guesses.to_vec1::<u32>()?.iter().zip(&labels).filter(|(a, b)| a == b).count();
        Ok(vec![loss.to_scalar::<f32>()? as f64, hits as f64 / b.batch as f64])
    }

    fn look(&self) -> Result<Look> {
        Ok(Look::default())
    }

    fn state(&self) -> Result<Arrays> {
        let mut all = prefixed("weights.", self.params.arrays()?);
        all.extend(prefixed("adam.", self.adam.arrays()?));
        Ok(all)
    }

    fn restore(&mut self, _: u64, state: &Arrays) -> Result<()> {
        self.params.assign(&strip(state, "weights."))?;
        Ok(self.adam.restore(&strip(state, "adam."))?)
    }

    fn weights(&self) -> Result<Arrays> {
        Ok(self.params.arrays()?)
    }
}
