//! `sample`: writes images of a row or of a checkpoint, for other programs.

use super::{quiet, select};
use crate::app::cli::Sampling;
use crate::app::collect::{Collecting, Container};
use crate::error::{EXIT_GOOD, Error, Result, shown_path};
use crate::experiment::run::{Samples, determinism};
use crate::experiment::{Recipe, Row, Scale, all_rows};
use crate::method::one_step::OneStep;
use crate::method::{InitialWeights, Setup, Spec};
use crate::network::device::{self, Compute};
use crate::network::params::{Arrays, outline};
use crate::network::unet::{Config, Denoiser, recognise};
use crate::settings::Settings;
use crate::store::formats::torch;
use crate::store::sha256_hex;
use crate::text::unknown;
use crate::train::watch::{Mode, Watch};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Images of a batch. A batch starts at a multiple of this number, as in scoring.
const BATCH: u64 = 100;
/// Default sampler of a file, and common names of samplers.
const DEFAULT: &str = "edm";
const ALIASES: [(&str, &str); 2] = [("heun", "edm"), ("one-step", "dijs")];

/// Runs `replicate sample`: writes images of a stored row or of a checkpoint.
pub fn sample(options: &Sampling, stop: &AtomicBool) -> Result<i32> {
    Container::of(&options.out)?;
    let (path, what) = (options.what.as_path(), shown_path(&options.what));
    let name = path.to_str().map(String::from);
    let row = match all_rows().find(|row| path.as_os_str() == row.id) {
        Some(row) => Some(row),
        None if path.is_file() => None,
        None if name.is_none() || path.extension().is_some() || path.components().count() > 1 => {
            let remedy = "name an EDM snapshot (.pkl), a .pth, a .safetensors, or a row that was run";
            return Err(Error::missing(path, "neither a checkpoint nor a row of the tables", remedy));
        }
        None => select(name.as_slice(), &options.place)?.first().copied(),
    };
    let sampler = match (&options.sampler, &row) {
        (Some(name), _) => sampler(name)?,
        (None, Some(row)) => *row,
        (None, None) => sampler(DEFAULT)?,
    };
    let compute = device::open(&options.place.device)?;
    let (samples, mut record) = match &row {
        Some(row) => of_row(row, &sampler, options, stop)?,
        None => of_file(path, &sampler, options, &compute)?,
    };
    let numbers = &options.seeds;
    record += &format!(
        "weights = SHA-256 {}\nsampler = {}, network calls an image {}\nlatents = seed {}\nimages = {} to {}\n\
         class = {}\ncode = {}\n",
        samples.weights,
        sampler.method.name,
        samples.nfe(),
        options.seed,
        numbers.start,
        numbers.end - 1,
        determinism(&compute),
        env!("CODE_DIGEST")
    );
    // Weights that the sampler's network cannot use fail here, before anything is written.
    let one = numbers.start as usize;
    samples.at(one..one + 1).map_err(|error| not_of(error, &what, &sampler))?;
    let mut collecting = Collecting::begin(&options.out, &record, samples.size(), numbers.clone())?;
    let mut watch = Watch::new(options.watch.unwrap_or_else(Mode::fitting));
    if row.is_some() && path.exists() {
        watch.note(&format!("{what} is the row of the tables; ./{what} names the file here"));
    }
    let total = (numbers.end - numbers.start) as usize;
    let at = |number: u64| (number - numbers.start) as usize;
    if collecting.next() > numbers.start {
        watch.note(&format!("{what}: resuming after {} of {total} images", at(collecting.next())));
    }
    while collecting.next() < numbers.end {
        Error::if_stopped(stop, &what)?;
        let first = collecting.next();
        let end = numbers.end.min((first / BATCH + 1) * BATCH);
        collecting.push(&samples.at(first as usize..end as usize)?)?;
        watch.images("sampling", &what, at(end), total);
    }
    let sha256 = collecting.finish()?;
    println!("written: {}, {total} images of {1}x{1} pixels", options.out.display(), samples.size());
    println!("SHA-256 of the pixels: {sha256}");
    Ok(EXIT_GOOD)
}

/// Returns the row with the sampler `name`.
fn sampler(name: &str) -> Result<Row> {
    let id = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, id)| id);
    all_rows().find(|row| row.id == id).ok_or_else(|| {
        let known = ALIASES.iter().map(|(alias, _)| *alias).chain(all_rows().map(|row| row.id));
        Error::Usage(unknown("sampler", name, known))
    })
}

/// Returns the recipe with `steps` steps of the sampler.
fn with_steps(mut recipe: Recipe, sampler: &Row, steps: Option<&str>) -> Result<Recipe> {
    let Some(steps) = steps else { return Ok(recipe) };
    let settings = recipe.method_settings(sampler);
    let counted = |name: &str| name.ends_with("_steps") || name.ends_with("_calls");
    // A step count of the one-step training is not a number of network calls.
    let mut own = settings.iter().filter(|setting| setting.owner != OneStep::OWNER);
    let Some(setting) = own.find(|setting| counted(setting.field.name)) else {
        return Err(Error::Usage(format!("--steps: {} has a fixed number of steps", sampler.id)));
    };
    if (setting.field.canonical)(steps).is_none() {
        return Err(Error::Usage(format!(
            "--steps {steps}: {} takes {}. {}",
            sampler.id,
            (setting.field.expected)(),
            setting.field.says.trim()
        )));
    }
    recipe.set(&format!("{}={steps}", setting.field.name))?;
    Ok(recipe)
}

fn of_row(row: &Row, sampler: &Row, options: &Sampling, stop: &AtomicBool) -> Result<(Samples, String)> {
    let mut runner = quiet(&options.place, stop)?;
    let recipe = with_steps(runner.recipe().clone(), sampler, options.steps.as_deref())?;
    let samples = runner
        .samples_by(row, options.seed, &sampler.method, &recipe.overrides)
        .map_err(|error| not_of(error, row.id, sampler))?;
    Ok((samples, settings(sampler, &recipe, &recipe.network)))
}

fn of_file(path: &Path, sampler: &Row, options: &Sampling, compute: &Compute) -> Result<(Samples, String)> {
    if options.place.data.is_some() {
        return Err(Error::Usage("--data is for a row of the tables".into()));
    }
    let (weights, sha256) = read(path)?;
    let config = network(path, &weights)?;
    let recipe = with_steps(Recipe::of(Scale::Paper), sampler, options.steps.as_deref())?;
    let setup = Setup {
        network: &config,
        initial: InitialWeights { row: Some(&weights), ..InitialWeights::default() },
        cell: "",
        ..recipe.setup(compute, sampler, &[], "")
    };
    let Spec { sampler: build, .. } = sampler.method;
    let built =
        build(&setup, &weights).map_err(|e| not_of(e.into(), &path.display().to_string(), sampler))?;
    let samples = Samples::new(built, &config, &compute.device, options.seed, sha256);
    Ok((samples, settings(sampler, &recipe, &config)))
}

/// Returns the lines of the record about the settings that affect the images.
fn settings(sampler: &Row, recipe: &Recipe, network: &Config) -> String {
    let mut text = format!("network = {network}\nsigma_init = {}\n", recipe.one_step.sigma_init);
    let own = recipe.method_settings(sampler);
    for setting in own.iter().filter(|setting| setting.owner != OneStep::OWNER) {
        text += &format!("{} = {}\n", setting.field.name, setting.value);
    }
    text
}

/// Returns the parameters of EDM's network in a file, and the file's SHA-256.
fn read(path: &Path) -> Result<(Arrays, String)> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let sha256 = sha256_hex(&bytes);
    Ok((torch::parse(path, &bytes)?.edm_network()?, sha256))
}

/// Returns the configuration of the U-Net with exactly these parameters.
fn network(path: &Path, weights: &Arrays) -> Result<Config> {
    let shapes: BTreeMap<String, Vec<usize>> =
        weights.iter().map(|(name, array)| (name.clone(), array.shape.clone())).collect();
    let config = recognise(&shapes).map_err(|found| {
        let expected = "the parameters of EDM's U-Net in its DDPM++ form";
        Error::malformed(path, expected, found, "`replicate inspect` lists what the file has")
    })?;
    let (_, shapes) = outline(|vb| Denoiser::new(&config, vb))?;
    torch::require(path, weights, &shapes)?;
    if config.image_channels != 3 {
        let found = format!("one of {} channels", config.image_channels);
        let remedy = "only images with three channels can be written";
        return Err(Error::malformed(path, "a network of RGB images", found, remedy));
    }
    Ok(config)
}

/// Explains that the weights do not fit the sampler's network.
fn not_of(error: Error, weights: &str, sampler: &Row) -> Error {
    match error {
        Error::Tensor(error) if !matches!(error, candle_core::Error::Cuda(_)) => Error::Usage(format!(
            "{weights} do not fit the sampler of {} ({}): {}\n  --sampler names another",
            sampler.id,
            sampler.method.name,
            // The error may end with a backtrace.
            error.to_string().lines().next().unwrap_or_default()
        )),
        other => other,
    }
}
