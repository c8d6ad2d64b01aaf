//! `score`: measures FID and other metrics of any images.

mod report;
mod watched;

use self::report::{Described, Fid, Network, Protocol, Remarks, Report, Saved, Trial};
use self::watched::watched;
use super::{quiet, write_file};
use crate::app::cli::{Scoring, VERSION};
use crate::app::score::source::{self, DATASETS, PUBLISHED};
use crate::app::score::{
    BATCH, Gathered, IS_SPLITS, ImageSet, Input, KEPT, Metric, Reference, RowStream, Seen, Wanted, scores,
};
use crate::data::cifar;
use crate::error::{EXIT_GOOD, Error, Result, shown_path};
use crate::experiment::all_rows;
use crate::measure::inception::{FEATURES, Inception};
use crate::measure::metrics::frechet::{Factor, Moments};
use crate::measure::statistics::Statistics;
use crate::store::fetch::{Asset, Given, Inputs, find_any, named};
use crate::store::formats::torch;
use crate::store::{Content, sha256_hex};
use candle_core::Device;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Number of images for an FID in the literature.
const USUAL: usize = 50_000;
/// Fraction of repeated images above which a warning is printed.
const REPEATED: f64 = 0.01;
/// Least number of images in a part of the Inception Score for a test of their order.
const LARGE_PART: usize = 1000;
/// Fraction of the undivided Inception Score below which the images seem to be sorted by class.
const ORDERED: f64 = 0.8;
/// Height and width of the images of EDM's statistics.
const PUBLISHED_SIZE: usize = 32;

pub fn score(options: &Scoring, stop: &AtomicBool) -> Result<i32> {
    let device = crate::network::device::open(&options.place.device)?;
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

/// One of the two inputs, IMAGES or the reference. Its content is read on use.
struct Side {
    described: Described,
    input: Input,
    /// Images of a trial, if the input determines them.
    trial: Option<usize>,
}

impl Side {
    /// Opens IMAGES: a row of the tables, or any input of [`Side::open`].
    fn images(options: &Scoring, remarks: &mut Remarks, stop: &AtomicBool) -> Result<Side> {
        let name = &shown_path(Path::new(&options.images));
        let Some(cell) = all_rows().find(|cell| options.images == cell.id) else {
            if options.place.data.is_some() {
                return Err(Error::Usage(format!(
                    "--data is for a row of the tables, and {name} is none: name the file itself in its place"
                )));
            }
            return Side::open(&options.images, &options.place.store, remarks);
        };
        other_than_here(name, "the row of the tables", remarks);
        let mut runner = quiet(&options.place, stop)?;
        let (network, e) = (runner.recipe().network.clone(), runner.recipe().evaluation.clone());
        let trial = options.num.map_or(e.samples, |num| num as usize);
        let len = trial * options.trials as usize;
        let samples = runner.samples(&cell, options.seed)?;
        let batches = (0..len).step_by(BATCH).map(move |first| samples.at(first..len.min(first + BATCH)));
        let (kind, batches) = ("samples of a row", Box::new(batches));
        let set = ImageSet { kind, len, size: network.size, full: None, batches };
        let described = Described {
            name: format!("{name}, scale {}, seed {}", options.place.scale, options.seed),
            kind,
            dimensions: FEATURES,
            images: Some(len),
            size: Some(network.size),
            ..Described::default()
        };
        Ok(Side { described, input: Input::Images(set), trial: Some(trial) })
    }

    /// Opens `name`: a data set in the store, EDM's reference in the store, or a path.
    fn open(name: &OsStr, store: &Path, remarks: &mut Remarks) -> Result<Side> {
        let otherwise = "; a path names files of your own";
        let text = shown_path(Path::new(name));
        let (file, (input, left_out)) = match DATASETS.iter().find(|(id, ..)| name == *id) {
            Some((_, set, split)) => {
                other_than_here(&text, "the data set", remarks);
                let file = stored(store, &cifar::assets(*set, *split), otherwise)?;
                let opened = source::dataset(*set, *split, &file)?;
                (file, opened)
            }
            None => {
                let file = match Given::parse(name) {
                    _ if name == PUBLISHED => {
                        other_than_here(&text, "EDM's reference", remarks);
                        stored(store, &[asset(PUBLISHED)], otherwise)?
                    }
                    Given::File(path) => path,
                    Given::Unread(scheme) => {
                        return Err(Error::Usage(format!(
                            "{scheme}://…: only files are scored; download it first"
                        )));
                    }
                    Given::Url(url) => {
                        return Err(Error::Usage(format!("{url}: only files are scored; download it first")));
                    }
                };
                let opened = source::open(&file)?;
                (file, opened)
            }
        };
        if let Some(note) = left_out.note() {
            remarks.note(format!("{text}: {note}"));
        }
        let name = &text;
        let mut described = Described { name: text.clone(), ..Described::default() };
        match &input {
            Input::Images(set) => {
                (described.kind, described.dimensions) = (set.kind, FEATURES);
                (described.images, described.size) = (Some(set.len), Some(set.size));
                if let Some(full) = set.full.filter(|full| set.len < *full) {
                    remarks.warn(format!("{name} has {} of the data set's {full} images", set.len));
                }
            }
            Input::Features(set) => {
                (described.kind, described.dimensions) = ("features", set.dim);
                (described.images, described.file_sha256) = (Some(set.len), Some(sha256_of(&file)?));
            }
            Input::Statistics(statistics) => {
                (described.kind, described.dimensions) = ("mean and covariance", statistics.mean.len());
                described.file_sha256 = Some(sha256_of(&file)?);
                described.size = (name == PUBLISHED).then_some(PUBLISHED_SIZE);
            }
        }
        Ok(Side { described, input, trial: None })
    }
}

/// Prints a note if `name` is also a file or folder here.
fn other_than_here(name: &str, meant: &str, remarks: &mut Remarks) {
    if Path::new(name).exists() {
        remarks.note(format!("{name} is {meant}; ./{name} names the file or folder here"));
    }
}

impl Described {
    /// Records the digest and the repeats of the images that were read.
    fn saw(&mut self, seen: &Seen, n: usize, remarks: &mut Remarks) {
        if self.size.is_some() {
            let repeats = seen.repeats();
            if repeats as f64 > REPEATED * n as f64 {
                remarks.warn(format!("{}: {repeats} of {n} images repeat an earlier one", self.name));
            }
            (self.pixels_sha256, self.repeats) = (Some(seen.digest()), Some(repeats));
        }
    }

    fn malformed(&self, expected: String, found: String, remedy: &str) -> Error {
        Error::Malformed { path: PathBuf::from(&self.name), expected, found, remedy: remedy.into() }
    }
}

fn sha256_of(file: &Path) -> Result<String> {
    Ok(Content::of(file).map_err(Error::io("read", file))?.sha256)
}

fn asset(id: &str) -> &'static Asset {
    named(id).expect("an asset of the table")
}

/// Returns the file of the first of `assets` that the store has; `otherwise` ends the remedy.
fn stored(store: &Path, assets: &[&Asset], otherwise: &str) -> Result<PathBuf> {
    if let Some(path) = find_any(&Inputs::of(store), assets)? {
        return Ok(path);
    }
    let (id, option) = (assets[0].id, Inputs::of(store).option());
    Err(Error::Missing {
        path: store.join("inputs"),
        what: format!("{id} has not been fetched into this store"),
        remedy: format!("`replicate fetch {id}{option}` gets it; --store names another store{otherwise}"),
    })
}

/// Returns the number of images in a trial, and the number of trials.
fn portions(options: &Scoring, images: &Side, remarks: &mut Remarks) -> Result<(usize, usize)> {
    let Some(len) = images.described.images else {
        let text = format!("{} is a mean and a covariance: give it as --ref", images.described.name);
        return Err(Error::Usage(text));
    };
    let n = match (options.num, images.trial, &options.reference) {
        (Some(num), ..) => usize::try_from(num).unwrap_or(usize::MAX),
        (None, Some(trial), _) => trial,
        (None, None, Some(_)) => len.min(USUAL),
        (None, None, None) => len,
    };
    let trials = options.trials as usize;
    if n.saturating_mul(trials) > len {
        let wanted = if trials > 1 { format!("{trials} x {n} images") } else { format!("{n} images") };
        let remedy = "make more images, or ask for fewer with --num or --trials";
        return Err(images.described.malformed(wanted, len.to_string(), remedy));
    }
    if n * trials < len {
        remarks.note(format!("the first {} of {len} images are scored", n * trials));
    }
    Ok((n, trials))
}

/// Returns the metrics that were asked for, or else all that are possible.
fn metrics(
    options: &Scoring,
    images: &Side,
    reference: Option<&Side>,
    n: usize,
    remarks: &mut Remarks,
) -> Result<Vec<Metric>> {
    let asked = match options.metrics.is_empty() {
        true => &Metric::ALL[..],
        false => &options.metrics,
    };
    let mut metrics = Vec::new();
    let mut obstacles = Vec::new();
    for &metric in asked {
        match obstacle(metric, images, reference, n) {
            None if metrics.contains(&metric) => {}
            None => metrics.push(metric),
            Some(obstacle) => obstacles.push(format!("{}: {obstacle}", metric.name())),
        }
    }
    // A requested metric that is impossible is an error, and so is a call that would do nothing.
    if !obstacles.is_empty()
        && (!options.metrics.is_empty() || metrics.is_empty() && options.save_ref.is_none())
    {
        return Err(Error::Usage(obstacles.join("\n  ")));
    }
    obstacles.into_iter().for_each(|obstacle| remarks.note(obstacle));
    Ok(metrics)
}

/// Returns the reason why a metric cannot be measured.
fn obstacle(metric: Metric, images: &Side, reference: Option<&Side>, n: usize) -> Option<String> {
    let least = metric.least();
    let few =
        |what: &str, n: usize| (n < least).then(|| format!("needs at least {least} images, {what} has {n}"));
    match (metric, &images.input, reference) {
        (Metric::Is, Input::Features(set), _) if set.classes.is_none() => {
            Some(format!("needs logits beside the features in {}", images.described.name))
        }
        (Metric::Fid | Metric::Kid | Metric::Pr, _, None) => Some("needs a reference (--ref)".into()),
        (Metric::Kid | Metric::Pr, _, Some(Side { input: Input::Statistics(_), described, .. })) => {
            Some(format!("needs the reference's images, {} has their mean and covariance", described.name))
        }
        _ => None,
    }
    .or_else(|| few("a trial", n))
    .or_else(|| match (metric, reference) {
        (Metric::Fid | Metric::Kid | Metric::Pr, Some(side)) => {
            few(&side.described.name, side.described.images?)
        }
        _ => None,
    })
}

/// Refuses two inputs that cannot be compared, and warns of differences from usual comparisons.
fn compare(
    metrics: &[Metric],
    images: &Side,
    reference: Option<&Side>,
    n: usize,
    remarks: &mut Remarks,
) -> Result<()> {
    for side in std::iter::once(images).chain(reference) {
        if matches!(side.input, Input::Features(_)) {
            let name = &side.described.name;
            remarks.warn(format!(
                "{name} does not say which network made its features, nor from how the images were resized"
            ));
        }
    }
    if n < USUAL && metrics.iter().any(|metric| matches!(metric, Metric::Fid | Metric::Is)) {
        remarks.warn(format!(
            "{n} images: with fewer than {USUAL}, FID comes out higher and IS lower; compare only at equal numbers"
        ));
    }
    let Some(reference) = reference.filter(|_| metrics.iter().any(|metric| *metric != Metric::Is)) else {
        return Ok(());
    };
    let (ours, theirs) = (&images.described, &reference.described);
    if ours.dimensions != theirs.dimensions {
        let (expected, found) = (format!("features of {} dimensions", ours.dimensions), theirs.dimensions);
        let remedy = "compare features of one network";
        return Err(theirs.malformed(expected, found.to_string(), remedy));
    }
    if let (Some(a), Some(b)) = (ours.size, theirs.size)
        && a != b
    {
        remarks.warn(format!(
            "the images have {a}x{a} pixels, the reference's {b}x{b}: the distance is between the resolutions, too"
        ));
    }
    if metrics.contains(&Metric::Fid) {
        for (what, count) in [("images", Some(n)), ("reference images", theirs.images)] {
            if let Some(count) = count.filter(|count| *count <= ours.dimensions) {
                remarks.warn(format!(
                    "{count} {what} for {} dimensions: their covariance is singular; other programs' FID may differ in the \
                     first digits",
                    ours.dimensions
                ));
            }
        }
    }
    Ok(())
}

/// Warns if the images seem to be sorted by class. Each part of the Inception Score then has few
/// classes, and the score is meaningless.
fn in_order(gathered: &Gathered, remarks: &mut Remarks) {
    let Some(predictions) = &gathered.predictions else { return };
    let (divided, undivided) = (predictions.score().0, predictions.undivided());
    if gathered.len / IS_SPLITS >= LARGE_PART && divided < ORDERED * undivided {
        remarks.warn(format!(
            "IS is {divided:.2} in {IS_SPLITS} parts and {undivided:.2} undivided: the images seem to be in the order of their \
             classes, shuffle them"
        ));
    }
}

/// Loads the store's Inception weights, or those of `--inception`.
fn load(options: &Scoring, device: &Device, remarks: &mut Remarks) -> Result<(Inception, Network)> {
    let asset = asset("inception");
    let file = match &options.inception {
        Some(file) if !file.is_file() => {
            return Err(Error::Missing {
                path: file.clone(),
                what: "no file of Inception weights".into(),
                remedy: "check --inception".into(),
            });
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
    let network = Network { name: format!("inception-{}", &sha256[..8]), file, sha256, published };
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
                RowStream::extract(inception, watched(set.first(n).batches, name, n, self.stop), seen)
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

/// Checks that `--save-ref` is possible before the long computation.
fn can_save(path: &Path, reference: Option<&Side>, n: usize, trials: usize) -> Result<()> {
    let images = match reference {
        Some(Side { input: Input::Statistics(_), .. }) => {
            return Err(Error::Usage("--save-ref: the reference is a mean and a covariance already".into()));
        }
        Some(side) => side.described.images.unwrap_or(0),
        None if trials > 1 => {
            return Err(Error::Usage("--save-ref of several trials: leave --trials out".into()));
        }
        None => n,
    };
    if images < 2 {
        return Err(Error::Usage(format!("--save-ref: {images} image has no covariance")));
    }
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

/// Writes the statistics of `--save-ref`.
fn save(options: &Scoring, moments: Option<&Moments>) -> Result<Option<Saved>> {
    let (Some(path), Some(moments)) = (&options.save_ref, moments) else { return Ok(None) };
    let statistics = Statistics::of(&moments);
    let bytes = statistics.to_npz();
    write_file(path, &bytes)?;
    Ok(Some(Saved { file: path.clone(), sha256: sha256_hex(&bytes) }))
}
