//! Shows the progress of a run: a bar on a terminal, plain lines in a pipe. Progress goes to
//! standard error; results go to standard output.
//!
//! The TensorBoard mode also writes a file `events.out.tfevents.SECONDS.PID.replicate` to the
//! entry's directory. The file is only a view; `metrics.csv` is the result that is published. Every
//! process begins a file of its own, and TensorBoard joins those of a directory. Steps are images.
//! The tags are the columns of `metrics.csv`, `images_per_second` and `grid`. The value of a column
//! is that of the last step before the tick, while `metrics.csv` has the mean since the previous
//! tick; fd, recall and classes are the same in both. TensorBoard shows ten grids of a run, or more
//! with the option `--samples_per_plugin images=100`.

use crate::error::printable;
use crate::text::duration;
use crate::train::{InterimScores, tfevents};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Least time between two lines about images.
const PACE: Duration = Duration::from_secs(10);

/// Form in which progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One live line.
    Bar,
    /// One line for each tick.
    Lines,
    /// One JSON object for each tick.
    Json,
    /// Lines, and a TensorBoard file with all curves and sample grids, events.out.tfevents.* in
    /// each entry's directory (tensorboard --logdir STORE).
    Tensorboard,
    /// No progress.
    None,
}

impl Mode {
    /// Bar if standard error is a terminal, else lines.
    pub fn fitting() -> Mode {
        if std::io::stderr().is_terminal() { Mode::Bar } else { Mode::Lines }
    }
}

/// State of a training.
pub struct Progress<'a> {
    pub images: u64,
    pub columns: &'a [&'a str],
    /// One value for each column; empty before the first step.
    pub values: &'a [f64],
    pub scores: Option<InterimScores>,
}

impl Progress<'_> {
    /// Returns the columns once they have values, then the interim scores. A value that does not
    /// exist is NaN: VSD, for example, has no probabilities of a classifier.
    fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        let columns = self.columns.iter().zip(self.values).map(|(name, value)| (*name, *value));
        let scores = self.scores.map(|q| [("fd", q.fd), ("recall", q.recall), ("classes", q.classes)]);
        columns.chain(scores.into_iter().flatten())
    }
}

/// Shows the progress of a run in one mode.
pub struct Watch {
    mode: Mode,
    label: String,
    pace: Pace,
    bar: Option<ProgressBar>,
    /// The work on images in progress, and when its progress was last printed.
    working: Option<(Pace, Instant)>,
    events: Option<Events>,
    noted: BTreeSet<String>,
}

impl Watch {
    /// Makes a display, in which nothing is in progress.
    pub fn new(mode: Mode) -> Watch {
        let (pace, noted) = (Pace::new(0, 0), BTreeSet::new());
        Watch { mode, label: String::new(), pace, bar: None, working: None, events: None, noted }
    }

    /// Prints a message that is not about progress, once.
    pub fn note(&mut self, text: &str) {
        if !self.noted.insert(text.to_string()) {
            return;
        }
        match (&self.bar, self.mode) {
            (_, Mode::None) => {}
            (_, Mode::Json) => say(&format!("{}", serde_json::json!({ "note": text }))),
            // Unlike the bar's own println, this also prints if no bar is drawn.
            (Some(bar), _) => bar.suspend(|| say(text)),
            (None, _) => say(text),
        }
    }

    /// Starts the progress of a training of `total` images, resumed after `from`. `dir` is its
    /// entry's directory.
    pub fn begin(&mut self, label: &str, dir: &Path, total: u64, from: u64) {
        self.label = label.to_string();
        self.pace = Pace::new(total, from);
        match self.mode {
            Mode::Bar => self.bar = Some(bar(label, total)),
            Mode::Tensorboard => match Events::create(dir) {
                Ok(events) => {
                    let (path, store) = (events.path.display(), dir.parent().unwrap_or(dir).display());
                    self.note(&format!(
                        "{label}: events in {path}, see them with tensorboard --logdir {store}"
                    ));
                    self.events = Some(events);
                }
                Err(error) => self.no_events(dir, &error),
            },
            Mode::Lines | Mode::Json | Mode::None => {}
        }
    }

    /// Shows progress; call after every step.
    pub fn progress(&mut self, at: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_position(at.images.min(self.pace.total));
            bar.set_message(self.details(at));
        }
    }

    /// Shows a tick; `grid` is the PNG file of its samples.
    pub fn tick(&mut self, at: &Progress, grid: Option<&[u8]>) {
        // The last batch is always whole, so a run can exceed its total.
        self.pace.total = self.pace.total.max(at.images);
        match self.mode {
            Mode::Lines | Mode::Tensorboard => {
                say(&line(&self.label, at.images, self.pace.total, &self.details(at)));
            }
            Mode::Json => {
                let mut line = self.pace.json(&self.label, "images", at.images);
                for (name, value) in at.values() {
                    line[name] = serde_json::json!(value);
                }
                say(&line.to_string());
            }
            Mode::Bar | Mode::None => {}
        }
        if let Some(mut events) = self.events.take() {
            match events.write(at, self.pace.rate(at.images), grid) {
                Ok(()) => self.events = Some(events),
                // A record after a torn one could not be read, so the file ends here.
                Err(error) => self.no_events(&events.path, &error),
            }
        }
    }

    /// Ends the progress of a training.
    pub fn end(&mut self) {
        self.events = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Shows the progress of work on images, such as "sampling"; call after every batch with the
    /// number of images `done`, but not between [`begin`](Watch::begin) and [`end`](Watch::end). The
    /// first call starts the clock; the one with `done == total` is the last.
    pub fn images(&mut self, work: &str, label: &str, done: usize, total: usize) {
        let (done, total) = (done as u64, total as u64);
        let (pace, said) = self.working.get_or_insert_with(|| (Pace::new(total, done), Instant::now()));
        let details = pace.text(done).map_or(work.into(), |pace| format!("{work}  {pace}"));
        if self.mode == Mode::Bar {
            let bar = self.bar.get_or_insert_with(|| bar(label, total));
            bar.set_position(done);
            bar.set_message(details);
        } else if said.elapsed() >= PACE {
            *said = Instant::now();
            match self.mode {
                Mode::Lines | Mode::Tensorboard => say(&line(label, done, total, &details)),
                Mode::Json => say(&pace.json(label, "sampled", done).to_string()),
                Mode::Bar | Mode::None => {}
            }
        }
        if done >= total {
            self.working = None;
            self.end();
        }
    }

    fn no_events(&mut self, path: &Path, error: &io::Error) {
        self.note(&format!(
            "{}: no further events for TensorBoard, cannot write {}: {error}; the run continues without them",
            self.label,
            path.display()
        ));
    }

    fn details(&self, at: &Progress) -> String {
        let values = at.values().filter(|(_, value)| !value.is_nan()).map(|(name, value)| {
            match (name, name.strip_prefix("c_")) {
                ("fd", _) => format!("FD {value:.1}"),
                ("recall", _) => format!("recall {value:.2}"),
                ("classes", _) => format!("classes {value:.1}"),
                (_, Some(which)) => format!("c({which}) {value:.2}"),
                _ => format!("{} {value:.3}", name.replace('_', " ")),
            }
        });
        self.pace.text(at.images).into_iter().chain(values).collect::<Vec<_>>().join("  ")
    }
}

/// Speed of a run, and the time left.
struct Pace {
    total: u64,
    from: u64,
    started: Instant,
}

impl Pace {
    fn new(total: u64, from: u64) -> Pace {
        Pace { total, from, started: Instant::now() }
    }

    /// Images per second, once there are any.
    fn rate(&self, images: u64) -> Option<f64> {
        let seen = images.saturating_sub(self.from);
        (seen > 0).then(|| seen as f64 / self.started.elapsed().as_secs_f64().max(1e-9))
    }

    /// Seconds to the end, once there is a rate.
    fn eta(&self, images: u64) -> Option<f64> {
        Some(self.total.saturating_sub(images) as f64 / self.rate(images)?)
    }

    fn text(&self, images: u64) -> Option<String> {
        let (rate, eta) = (self.rate(images)?, self.eta(images)?);
        let digits = if rate < 10.0 { 1 } else { 0 };
        Some(format!("{rate:.digits$} images/s  eta {}", duration(eta)))
    }

    fn json(&self, label: &str, unit: &str, images: u64) -> serde_json::Value {
        serde_json::json!({
            "run": label, unit: images, "of": self.total,
            "images_per_second": self.rate(images), "eta_seconds": self.eta(images),
        })
    }
}

/// An events file for TensorBoard.
struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    fn create(dir: &Path) -> io::Result<Events> {
        let wall = wall();
        // Never reuses an existing file, whose last record may be torn.
        let mut seconds = wall as u64;
        let (path, mut file) = loop {
            let name = format!("events.out.tfevents.{seconds}.{}.replicate", std::process::id());
            let path = dir.join(name);
            match File::create_new(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(error),
                Ok(file) => break (path, file),
            }
        };
        file.write_all(&tfevents::version(wall))?;
        Ok(Events { path, file })
    }

    /// Writes all records of a tick at once, without a buffer.
    fn write(&mut self, at: &Progress, rate: Option<f64>, grid: Option<&[u8]>) -> io::Result<()> {
        let wall = wall();
        let rate = rate.map(|rate| ("images_per_second", rate));
        let values: Vec<(&str, f32)> = at
            .values()
            .chain(rate)
            .filter(|(_, value)| !value.is_nan())
            .map(|(tag, value)| (tag, value as f32))
            .collect();
        let mut records = tfevents::scalars(wall, at.images, &values);
        if let Some((png, (width, height))) = grid.and_then(|png| Some((png, png_size(png)?))) {
            records.extend(tfevents::image(wall, at.images, "grid", width, height, png));
        }
        self.file.write_all(&records)
    }
}

/// Reads width and height from the header of a PNG file.
pub(crate) fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(png.get(at..at + 4)?.try_into().ok()?));
    Some((word(16)?, word(20)?))
}

/// Seconds since 1970 UTC.
fn wall() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn bar(label: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:14} {bar:24} {pos}/{len} images  {msg}");
    let bar = ProgressBar::new(total).with_style(style.expect("a valid template"));
    bar.set_prefix(label.to_string());
    bar
}

fn line(label: &str, images: u64, total: u64, details: &str) -> String {
    format!("{label:14} {images:>9}/{total} images  {details}")
}

/// Prints a line to standard error. Ignores failures: a full disk must not end a run.
pub fn say(line: &str) {
    _ = writeln!(std::io::stderr(), "{}", printable(line));
}
