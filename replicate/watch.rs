//! Watching a run: a bar on a terminal, plain lines in a pipe. Everything goes
//! to standard error; results go to standard output.

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One live line.
    Bar,
    /// One line a tick.
    Lines,
    /// One JSON object a tick.
    Json,
    /// Nothing.
    None,
}

impl Mode {
    /// A bar where somebody looks, lines where nobody does.
    pub fn fitting() -> Mode {
        if std::io::stderr().is_terminal() { Mode::Bar } else { Mode::Lines }
    }
}

/// Where a training stands.
pub struct Progress<'a> {
    pub images: u64,
    pub columns: &'a [&'a str],
    pub values: &'a [f64],
    pub fd: Option<f64>,
}

pub struct Watch {
    mode: Mode,
    label: String,
    total: u64,
    from: u64,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Watch {
    pub fn new(mode: Mode) -> Watch {
        Watch { mode, label: String::new(), total: 0, from: 0, started: Instant::now(), bar: None }
    }

    /// A sentence that is not about progress.
    pub fn note(&mut self, text: &str) {
        match (&self.bar, self.mode) {
            (_, Mode::None) => {}
            (_, Mode::Json) => say(&format!("{}", serde_json::json!({ "note": text }))),
            (Some(bar), _) => bar.println(text),
            (None, _) => say(text),
        }
    }

    pub fn begin(&mut self, label: &str, total: u64, from: u64) {
        self.label = label.to_string();
        (self.total, self.from, self.started) = (total, from, Instant::now());
        if self.mode == Mode::Bar {
            let style = ProgressStyle::with_template("{prefix:14} {bar:24} {pos}/{len} images  {msg}");
            let bar = ProgressBar::new(total).with_style(style.expect("a valid template"));
            bar.set_prefix(label.to_string());
            self.bar = Some(bar);
        }
    }

    /// After every step.
    pub fn progress(&mut self, at: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_position(at.images.min(self.total));
            bar.set_message(self.details(at));
        }
    }

    /// After every tick.
    pub fn tick(&mut self, at: &Progress) {
        match self.mode {
            Mode::Lines => {
                say(&format!(
                    "{:14} {:>9}/{} images  {}",
                    self.label,
                    at.images,
                    self.total,
                    self.details(at)
                ));
            }
            Mode::Json => {
                let mut line = serde_json::json!({
                    "run": self.label, "images": at.images, "of": self.total,
                    "images_per_second": self.rate(at.images), "eta_seconds": self.eta(at.images),
                });
                for (name, value) in at.columns.iter().zip(at.values) {
                    line[*name] = serde_json::json!(value);
                }
                if let Some(fd) = at.fd {
                    line["fd"] = serde_json::json!(fd);
                }
                say(&line.to_string());
            }
            Mode::Bar | Mode::None => {}
        }
    }

    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn rate(&self, images: u64) -> f64 {
        images.saturating_sub(self.from) as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn eta(&self, images: u64) -> f64 {
        self.total.saturating_sub(images) as f64 / self.rate(images).max(1e-9)
    }

    fn details(&self, at: &Progress) -> String {
        let mut text = format!("{:.0} images/s  eta {}", self.rate(at.images), duration(self.eta(at.images)));
        for (name, value) in at.columns.iter().zip(at.values).filter(|(_, v)| !v.is_nan()) {
            match name.strip_prefix("c_") {
                Some(which) => text += &format!("  c({which}) {value:.2}"),
                None => text += &format!("  {} {value:.3}", name.replace('_', " ")),
            }
        }
        if let Some(fd) = at.fd {
            text += &format!("  FD {fd:.1}");
        }
        text
    }
}

/// A full disk behind standard error must not end a run.
fn say(line: &str) {
    _ = writeln!(std::io::stderr(), "{line}");
}

fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}
