//! `score`: measures FID and other metrics of any images.

mod checks;
mod report;
mod side;

use self::checks::{can_save, compare, in_order, metrics, portions};
use self::report::{Described, Fid, Network, Protocol, Remarks, Report, Saved, Trial};
use self::side::{Side, asset, stored};
use super::{check_apart, write_file};
use crate::app::cli::{Scoring, VERSION};
use crate::app::score::{Gathered, Input, KEPT, Metric, Reference, RowStream, Seen, Wanted, scores};
use crate::error::{EXIT_GOOD, Error, Result, shown_path};
use crate::measure::inception::Inception;
use crate::measure::metrics::frechet::{Factor, Moments};
use crate::measure::statistics::Statistics;
use crate::store::fetch::Given;
use crate::store::formats::torch;
use crate::store::sha256_hex;
use crate::train::watch::{Mode, Watch};
use candle_core::Device;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs `replicate score`: measures images and prints the report.
pub fn score(options: &Scoring, stop: &AtomicBool) -> Result<i32> {
    let device = crate::network::device::open(&options.place.device)?.device;
    if let Some(path) = &options.save_ref {
        let named = [Some(&options.images), options.reference.as_ref()].into_iter().flatten();
        let files = named.filter_map(|name| match Given::parse(name) {
            Given::File(file) => Some(file),
            _ => None,
        });
        check_apart(path, files.chain(options.inception.clone()))?;
    }
    let mut remarks = Remarks::default();
    let images = Side::images(options, &mut remarks, stop)?;
    let reference = match &options.reference {
        Some(name) => Some(Side::open(name, &options.place.store, &mut remarks)?),
        None => None,
    };
    let (n, trials) = portions(options, &images, &mut remarks)?;
    let metrics = metrics(options, &images, reference.as_ref(), n, &mut remarks)?;
    if let Some(path) = &options.save_ref {
        can_save(path, reference.as_ref(), n, trials)?;
    }
    compare(&metrics, &images, reference.as_ref(), n, &mut remarks)?;

    let mut sides = std::iter::once(&images).chain(&reference);
    let loaded = match sides.any(|side| matches!(side.input, Input::Images(_))) {
        true => Some(load(options, &device, &mut remarks)?),
        false => None,
    };
    let (inception, network) = loaded.unzip();
    let extractor = Extractor { inception: inception.as_ref(), stop };

    let fid = metrics.contains(&Metric::Fid);
    let pairwise = metrics.iter().any(|metric| matches!(metric, Metric::Kid | Metric::Pr));
    // Both sides keep the same number, because precision and recall depend on it.
    let others = reference.as_ref().and_then(|side| side.described.images);
    let kept = others.filter(|_| pairwise).map_or(0, |others| others.min(n).min(KEPT));
    if let Some(others) = others.filter(|others| kept > 0 && kept < n.max(*others)) {
        remarks.note(format!(
            "KID, precision and recall see {kept} of {n} images and {kept} of the reference's {others}, spread evenly"
        ));
    }
    let mut saved = None;
    let (against, reference) = match reference {
        None => (Reference::default(), None),
        Some(Side { mut described, input, .. }) => {
            let wanted = Wanted { moments: fid || options.save_ref.is_some(), predictions: false, kept };
            let against = match input {
                Input::Statistics(statistics) => {
                    let factor = fid.then(|| factor(&described, statistics)).transpose()?;
                    Reference { factor, kept: None }
                }
                _ if wanted == Wanted::default() => Reference::default(),
                input => {
                    let gathered = extractor.all(input, &mut described, wanted, &mut remarks)?;
                    saved = save(options, gathered.moments.as_ref())?;
                    let moments = gathered.moments.filter(|_| fid);
                    Reference { factor: moments.map(|m| m.factor()).transpose()?, kept: gathered.kept }
                }
            };
            (against, Some(described))
        }
    };

    let Side { described: mut images, input, .. } = images;
    let saves = options.save_ref.is_some() && reference.is_none();
    let wanted = Wanted { moments: fid || saves, predictions: metrics.contains(&Metric::Is), kept };
    let (mut seen, mut measured) = (Seen::default(), Vec::new());
    let mut rows = extractor.rows(input, &images.name, n * trials, &mut seen);
    for trial in 0..trials {
        let gathered = rows.gather(n, wanted)?;
        if saves {
            saved = save(options, gathered.moments.as_ref())?;
        }
        in_order(&gathered, &mut remarks);
        measured.push(Trial { first: trial * n, scores: scores(&gathered, &against, &metrics)? });
    }
    drop(rows);
    images.saw(&seen, n * trials, &mut remarks);

    let fids: Vec<f64> = measured.iter().filter_map(|trial| trial.scores.fid).collect();
    let report = Report {
        program: VERSION,
        images,
        reference,
        network,
        protocol: Protocol::of(&metrics, kept),
        fid: Fid::of(&fids),
        trials: measured,
        saved,
        remarks,
    };
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&report).expect("strings and numbers")),
        false => print!("{}", report.text()),
    }
    Ok(EXIT_GOOD)
}

/// Loads the store's Inception weights, or those of `--inception`.
fn load(options: &Scoring, device: &Device, remarks: &mut Remarks) -> Result<(Inception, Network)> {
    let asset = asset("inception");
    let file = match &options.inception {
        Some(file) if !file.is_file() => {
            return Err(Error::missing(file, "no file of Inception weights", "check --inception"));
        }
        Some(file) => file.clone(),
        None => stored(&options.place.store, &[asset], "; --inception names a file of your own")?,
    };
    let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
    let sha256 = sha256_hex(&bytes);
    let checkpoint = torch::parse(&file, &bytes)?;
    drop(bytes);
    let published = asset.sha256() == Some(sha256.as_str());
    if !published {
        remarks.warn(format!(
            "{} has not the published weights: its features give no FID that compares with others",
            shown_path(&file)
        ));
    }
    let name = format!("inception-{}", &sha256[..8]);
    let network = Network { name, file: shown_path(&file), sha256, published };
    Ok((Inception::load(device, checkpoint)?, network))
}

struct Extractor<'a> {
    /// `None` if no input has images.
    inception: Option<&'a Inception>,
    stop: &'a AtomicBool,
}

impl Extractor<'_> {
    /// Gathers the statistics of a whole input.
    fn all(
        &self,
        input: Input,
        described: &mut Described,
        wanted: Wanted,
        remarks: &mut Remarks,
    ) -> Result<Gathered> {
        let (len, mut seen) = (described.images.unwrap_or(0), Seen::default());
        let gathered = self.rows(input, &described.name, len, &mut seen).gather(len, wanted)?;
        described.saw(&seen, len, remarks);
        Ok(gathered)
    }

    /// Returns the first `n` rows of an input.
    fn rows<'a>(&'a self, input: Input, name: &str, n: usize, seen: &'a mut Seen) -> RowStream<'a> {
        match input {
            Input::Images(set) => {
                let inception = self.inception.expect("loaded where a side has images");
                let (mut watch, mut done) = (Watch::new(Mode::fitting()), 0);
                let (name, stop) = (name.to_string(), self.stop);
                let watched = set.first(n).batches.map(move |images| {
                    if stop.load(Ordering::Relaxed) {
                        let told =
                            format!("stopped after {done} images of {name}; a score cannot be resumed");
                        return Err(Error::Run(told));
                    }
                    let images = images?;
                    // The caller asks for a batch when the one before it is scored.
                    watch.images("scoring", &name, done, n);
                    done += images.len();
                    Ok(images)
                });
                RowStream::extract(inception, watched, seen)
            }
            Input::Features(set) => RowStream::new(set.batches),
            Input::Statistics(_) => RowStream::new(std::iter::empty()),
        }
    }
}

fn factor(described: &Described, statistics: Statistics) -> Result<Factor> {
    // Dimensions and finite numbers were checked, so the matrix must be at fault.
    statistics.factor().map_err(|error| {
        described.malformed(
            "a mean and a covariance".into(),
            error.to_string(),
            "make them again, and save them as float32 or float64",
        )
    })
}

/// Writes the statistics of `--save-ref`.
fn save(options: &Scoring, moments: Option<&Moments>) -> Result<Option<Saved>> {
    let (Some(path), Some(moments)) = (&options.save_ref, moments) else { return Ok(None) };
    let bytes = Statistics::of(moments).to_npz();
    write_file(path, &bytes)?;
    Ok(Some(Saved { file: shown_path(path), sha256: sha256_hex(&bytes) }))
}
