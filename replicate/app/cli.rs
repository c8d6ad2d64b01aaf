//! The command line: what can be typed, nothing of what it does.

use crate::app::bench::Case;
use crate::app::machine::Card;
use crate::app::score::Metric;
use crate::experiment::Recipe;
use crate::text::wrap;
use crate::train::watch::Mode;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

/// Re-runs "Towards Training One-Step Diffusion Models Without Distillation"
/// (arXiv 2502.08005) and checks what it measures.
///
/// Exit codes: 0 good; 1 outside tolerance, or a claim that does not hold;
/// 2 usage; 3 input missing or not what it should be; 4 a run failed, or something
/// could not be written; 5 incomplete, nothing failed; 75 stopped after a checkpoint,
/// run it again.
#[derive(Parser, Debug)]
#[command(name = "replicate", version = VERSION, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// As `--version` prints it.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("GIT_COMMIT"),
    ", candle ",
    env!("CANDLE_VERSION"),
    ", code ",
    env!("CODE_DIGEST"),
    ")"
);

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Every cell and study: the paper's number, golden, what the store has, how to run it
    List {
        #[command(flatten)]
        place: Place,
        /// Ids only, one a line
        #[arg(long)]
        ids: bool,
        /// Print it as JSON
        #[arg(long, conflicts_with = "ids")]
        json: bool,
    },
    /// Train and evaluate rows; resumes interrupted runs
    ///
    /// Prints the tables that are named, or the rows' scores.
    #[command(after_long_help = settings_help())]
    Run(Running),
    /// Compare what the store has with golden values, the paper, or its claims
    Check {
        /// Row ids, table1, table2, all, or studies; of the claims those that name one of them
        #[arg(default_value = "table1")]
        targets: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Only these seeds, separated by commas [default: all in the store]
        #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
        seed: Vec<u64>,
        /// golden: accepted values, exit code 1 outside them; paper: printed numbers; claims: its sentences
        #[arg(long, default_value = "golden", hide_possible_values = true)]
        against: Against,
        /// Changes of the run to check, as given to it
        #[arg(long, value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare two results: settings, scores, and a picture of both grids
    ///
    /// A result is ROW[:SEED][+NAME=VALUE...], such as dijs:1+critic_lr=5e-5, or the beginning of a
    /// key of the store.
    Diff {
        a: String,
        b: String,
        #[command(flatten)]
        place: Place,
        /// Where the picture is written
        #[arg(short, long, default_value = "report/diff.png")]
        output: PathBuf,
    },
    /// Make what the store has the golden values, and print the diff; never in CI
    Accept {
        /// Row ids, table1, table2, all, or studies
        #[arg(required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Seeds, separated by commas [default: all in the store]
        #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
        seed: Vec<u64>,
        /// Why the numbers change; it stands in golden/ with them
        #[arg(long)]
        reason: String,
    },
    /// Print a table, or all results as JSON, from what the store has; or write the report as a page
    ///
    /// What has not been run is named with the command that runs it, and is no failure; where
    /// nothing has, nothing is written, and the exit code is 5.
    Report {
        /// The table to print; without it index.html, report.md, results.csv, results.json, both tables and figures are written
        #[arg(value_enum)]
        table: Option<Which>,
        /// Print the results of the store that differ in this setting
        #[arg(long, value_name = "SETTING", conflicts_with = "table")]
        by: Option<String>,
        #[command(flatten)]
        place: Place,
        /// text, md or csv of a table [default: text]; json of all results (paper/results.schema.json)
        #[arg(long, value_enum, hide_possible_values = true)]
        format: Option<Format>,
        /// Where the report is written
        #[arg(short, long, default_value = "report", conflicts_with_all = ["table", "by", "format"])]
        output: PathBuf,
    },
    /// Write the store with its report as one zip for an archive or a reviewer
    ///
    /// It holds every finished result with its manifest, the report of --scale, golden and
    /// printed values, RO-Crate metadata, and SHA256SUMS. Fetched files are not in it.
    Export {
        #[arg(value_name = "OUT.zip")]
        out: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Check every byte of a zip that export wrote; exit code 1 where one has changed
    Verify {
        #[arg(value_name = "OUT.zip")]
        file: PathBuf,
    },
    /// Print what completes commands in a shell
    Completions { shell: clap_complete::Shell },
    /// Write a manual page for each command
    Man {
        /// Where they are written: replicate.1, replicate-run.1 and so on
        #[arg(default_value = ".")]
        output: PathBuf,
    },
    /// Write the paper's figures and a strip of samples over training for each row
    Figures {
        #[command(flatten)]
        place: Place,
        /// Where the PNG files and their captions are written
        #[arg(short, long, default_value = "report/figures")]
        output: PathBuf,
    },
    /// Fetch what the paper scale needs: checkpoint, Inception weights, FID reference, data sets
    Fetch {
        /// Asset ids, the beginning of several (cifar100-parquet), paper, or all [default: list them]
        what: Vec<String>,
        /// Where results and fetched files are kept
        #[arg(long, env = "REPLICATE_STORE", default_value = "store")]
        store: PathBuf,
        /// Take the asset from this file or address; it is verified all the same
        #[arg(long, value_name = "FILE|URL", requires = "what")]
        from: Option<OsString>,
        /// Touch no network
        #[arg(long)]
        offline: bool,
    },
    /// List the tensors of an EDM snapshot or of a PyTorch file; no code in it is run
    Inspect {
        /// EDM's .pkl, or a .pt, .pth or .safetensors
        file: PathBuf,
        /// Write them as f32 safetensors
        #[arg(long, value_name = "OUT.safetensors")]
        convert: Option<PathBuf>,
    },
    /// Measure any images: FID, Inception Score, KID, precision and recall
    ///
    /// FID is EDM's: the Inception network of 2015, uint8 images resized as TensorFlow 1
    /// does, float64 statistics over N - 1. EDM's protocol is --trials 3 with 150,000 images.
    /// The weights are those of `replicate fetch inception`, or --inception FILE.
    Score(Scoring),
    /// Write images of a row that was run, or of a checkpoint
    ///
    /// Image k is the same whatever else is asked for. An output that exists is left as it
    /// is; one that was stopped goes on where it was.
    Sample(Sampling),
    /// Time the heavy parts of a run on this machine
    ///
    /// tests/peers/bench.py times PyTorch beside it.
    Bench {
        /// [default: all]
        #[arg(value_enum)]
        cases: Vec<Case>,
        /// How often each is repeated, after once that does not count
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        repeats: u64,
        /// cpu, or in a build with --features cudnn cuda:N or cuda:N,bf16
        #[arg(long, default_value = "cpu")]
        device: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check on a device that this program does what it should, then time it
    ///
    /// Agreement with the reference implementations, one cell against its golden values,
    /// once more, and stopped and resumed; then speed and memory. Exit code 1 if a check fails.
    Selftest {
        /// cpu, or cuda:N in a build with --features cudnn
        #[arg(long, default_value = "cpu")]
        device: String,
        /// Small networks and the smoke scale only, a minute on a CPU; a CPU never does more
        #[arg(long)]
        reduced: bool,
        /// The repository, with paper/ and golden/ [default: here, or where it was built]
        #[arg(long)]
        root: Option<PathBuf>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Train the weights that ship with the repository again and compare the bytes
    Weights {
        /// classifier, or mini-multi-level-target and the like [default: all that ship]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Replace what ships with what was trained; never in CI
        #[arg(long)]
        write: bool,
    },
}

#[derive(Args, Debug)]
pub struct Running {
    /// Row ids, table1, table2 or all; or studies of paper/studies.csv: `list` has them
    #[arg(required = true)]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub place: Place,
    /// Seeds, separated by commas [default: 0, or a study's own]
    #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
    pub seed: Vec<u64>,
    /// Run more than 200 cells
    #[arg(long)]
    pub yes: bool,
    /// How progress is shown [default: bar on a terminal, lines in a pipe]
    #[arg(long)]
    pub watch: Option<Mode>,
    /// Stop both training stages after so many images (2000, 50k, 1.5M)
    #[arg(long, value_parser = images)]
    pub until: Option<u64>,
    /// Train as the row's authors did at the paper scale: their batch, length and average
    ///
    /// By default every row has the budget of the paper's own rows.
    #[arg(long)]
    pub preset: Option<Preset>,
    /// Override a setting; several values make one experiment each. --help lists all settings
    ///
    /// Overrides are stored separately from the paper's rows.
    #[arg(long, value_name = "NAME=VALUE[,VALUE...]")]
    pub set: Vec<String>,
    /// Train the weights that ship with the repository again
    #[arg(long)]
    pub from_scratch: bool,
    /// Take results that other code made instead of making them again
    #[arg(long)]
    pub keep: bool,
    /// Make only what several rows share: pre-trainings and the features of the real images
    #[arg(long, conflicts_with_all = ["stored", "dry_run", "explain"])]
    pub pretrain: bool,
    /// Train and sample nothing: tables of what the store has; exit code 5 where a row is missing
    #[arg(long, conflicts_with_all = ["dry_run", "explain", "from_scratch"])]
    pub stored: bool,
    /// Print the method and the settings that matter, or all with `full`; run nothing
    #[arg(long, value_name = "full", num_args = 0..=1, default_missing_value = "short", hide_possible_values = true)]
    pub explain: Option<Explain>,
    /// Print what would be run and fetched, what it costs and whether it can work; run nothing
    #[arg(long, conflicts_with = "explain")]
    pub dry_run: bool,
    /// Plan for a GPU that is not here: h200, h100, a100 or l40s. Any build can
    #[arg(long, value_enum, value_name = "GPU", requires = "dry_run", hide_possible_values = true)]
    pub like: Option<Card>,
    /// Plan with so many operations a second, say 40T [default: probed here, or a share of the GPU's peak]
    #[arg(long, value_name = "FLOPS", requires = "dry_run", value_parser = rate)]
    pub rate: Option<f64>,
    /// Plan for jobs of at most H:MM:SS: how often each result is stopped and queued again
    #[arg(long, value_name = "H:MM:SS", requires = "dry_run", value_parser = time)]
    pub time: Option<f64>,
    /// Fetch nothing: what the scale needs has to be there
    #[arg(long)]
    pub offline: bool,
    /// Images of a batch in a GPU's memory at a time: the same result but for rounding
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub microbatch: Option<u64>,
    /// Where the table is written as CSV and Markdown
    #[arg(short, long, default_value = "report")]
    pub output: PathBuf,
}

/// Settings that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    Published,
}

#[derive(Args, Debug)]
pub struct Scoring {
    /// A folder or zip of PNG files; an .npy or .npz of uint8 images (N, H, W, 3) or
    /// (N, 3, H, W), or of float `features` (N, D) and `logits`; cifar10, cifar10-test,
    /// cifar100, cifar100-test, or a file or folder with CIFAR; or a row of the tables that
    /// was run, at --scale and with --seed (./ROW names a folder of that name)
    pub images: OsString,
    /// As IMAGES; or an .npz with mu and sigma, for FID alone; or fid-reference, EDM's own of CIFAR-10
    #[arg(long = "ref", value_name = "FILE|DATASET")]
    pub reference: Option<OsString>,
    /// [default: all that the reference allows]
    #[arg(long, value_delimiter = ',')]
    pub metrics: Vec<Metric>,
    /// Images in a trial (10000, 50k) [default: 50000 or as many as there are; without --ref all]
    #[arg(long, value_name = "N", value_parser = images)]
    pub num: Option<u64>,
    /// Score so many consecutive ranges of N images; EDM reports the least FID of 3
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub trials: u64,
    /// Print every figure, warning and SHA-256 as JSON
    #[arg(long)]
    pub json: bool,
    /// Write mean and covariance of the reference, or of IMAGES without --ref, in EDM's form
    #[arg(long, value_name = "OUT.npz")]
    pub save_ref: Option<PathBuf>,
    /// Inception weights (pt_inception-2015-12-05-6726825d.pth) [default: those in the store]
    #[arg(long, value_name = "FILE")]
    pub inception: Option<PathBuf>,
    /// Of the row
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Debug)]
pub struct Sampling {
    /// A row of the tables that was run, at --scale and with --seed; or an EDM snapshot
    /// (.pkl), a PyTorch file (.pth) or safetensors of the U-Net in its DDPM++ form
    #[arg(value_name = "ROW|FILE")]
    pub what: String,
    /// As this row is sampled: edm (18 Heun steps), ddim, dpm-solver-fast, dijs (one step) …
    /// [default: as ROW is; edm for a file]
    #[arg(long, value_name = "ROW")]
    pub sampler: Option<String>,
    /// Steps or network calls of the sampler [default: as in Table 1]
    #[arg(long, value_name = "N")]
    pub steps: Option<String>,
    /// Numbers of the images, as 0-49999 or 7: the first ones are those that a row is scored on
    #[arg(long, value_parser = numbers, allow_hyphen_values = true)]
    pub seeds: Range<u64>,
    /// A new folder of PNG files, a .zip as EDM's data sets are, or an .npz of uint8
    /// (N, H, W, 3)
    #[arg(long, value_name = "DIR|ZIP|NPZ")]
    pub out: PathBuf,
    /// Of the row; of a file's latents
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// How progress is shown [default: bar on a terminal, lines in a pipe]
    #[arg(long)]
    pub watch: Option<Mode>,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Clone, Debug)]
pub struct Place {
    /// smoke: a test of seconds; mini: drawn glyphs, minutes; tiny: CIFAR at 16x16, an evening on a
    /// CPU; small: CIFAR, hours on a GPU; paper: as printed, days; drill: paper's path, small files
    #[arg(long, default_value = "mini")]
    pub scale: String,
    /// cpu, or in a build with --features cudnn cuda:N or cuda:N,bf16
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Where results are kept
    #[arg(long, env = "REPLICATE_STORE", default_value = "store")]
    pub store: PathBuf,
    /// CIFAR archives, directories, parquet or EDM zips (scales tiny, small and paper) [default: fetched]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The repository, with paper/ and golden/ [default: here, or where it was built]
    #[arg(long)]
    pub root: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Explain {
    Short,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Against {
    Golden,
    Paper,
    Claims,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Table1,
    Table2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Md,
    Csv,
    Json,
}

/// Every setting: what can be given, and what it is.
fn settings_help() -> String {
    let mut text = String::from("Settings of --set:\n");
    for field in Recipe::fields() {
        let unit = if field.unit.is_empty() { String::new() } else { format!(" {}", field.unit) };
        let line = format!("{}: {}{unit}. {}", field.name, (field.expected)(), field.says.trim());
        let mut indent = 2;
        for line in wrap(&line, 94) {
            text += &format!("{:indent$}{line}\n", "");
            indent = 6;
        }
    }
    text
}

/// A number of images, with k or M for thousands or millions.
fn images(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1e3),
        Some((at, 'M')) => (&text[..at], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() && n * unit >= 1.0 && n * unit <= 1e12 => Ok((n * unit).round() as u64),
        _ => Err("expected a number of images such as 2000, 50k or 1.5M".into()),
    }
}

/// Operations a second, with G or T behind them.
fn rate(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.chars().last() {
        Some('G') => (&text[..text.len() - 1], 1e9),
        Some('T') => (&text[..text.len() - 1], 1e12),
        _ => (text, 1.0),
    };
    let rate = number.parse::<f64>().ok().map(|n| n * unit);
    rate.filter(|rate| (1e6..1e18).contains(rate))
        .ok_or_else(|| "expected operations a second: 500G or 40T".into())
}

/// Seconds of a time limit as Slurm writes it.
fn time(text: &str) -> Result<f64, String> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let parts: Option<Vec<u16>> =
        [days].into_iter().chain(clock.split(':')).map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(units @ [_, _, _, _]) if units.iter().any(|n| *n > 0) => {
            Ok(units.iter().zip([86_400.0, 3600.0, 60.0, 1.0]).map(|(n, unit)| f64::from(*n) * unit).sum())
        }
        _ => Err("expected H:MM:SS or D-HH:MM:SS, such as 04:00:00".into()),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// Images of a sampling at most: their names have eight digits in a zip.
const MOST_NUMBERS: u64 = 100_000_000;

/// A range of numbers, both ends included.
fn numbers(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last && last < MOST_NUMBERS => Ok(first..last + 1),
        _ => Err(format!("expected a range such as 0-49999, or one number, below {MOST_NUMBERS}")),
    }
}
