//! The command line: its arguments, without their effects.

mod complete;
mod values;

pub use self::complete::{completed, manual};
use self::values::{images, local, numbers, output, rate, seed, time};
use crate::app::bench::{self, Case};
use crate::app::machine::Card;
use crate::app::score::Metric;
use crate::experiment::Recipe;
use crate::text::wrap;
use crate::train::watch::Mode;
use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

/// Re-runs "Towards Training One-Step Diffusion Models Without Distillation"
/// (arXiv 2502.08005) and checks what it measures.
///
/// Exit codes: 0 success; 1 outside tolerance, or a claim that does not hold; 2 usage;
/// 3 input missing or invalid; 4 a run or a write failed; 5 incomplete, nothing failed;
/// 75 stopped after a checkpoint, run it again.
#[derive(Parser, Debug)]
#[command(name = "replicate", version = VERSION, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The output of `--version`.
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

impl Command {
    /// Returns whether the command looks for a signal and ends in its own way. The system's way is
    /// good enough for the others: they leave nothing half done.
    pub fn stops_by_itself(&self) -> bool {
        use Command::*;
        matches!(self, Run(_) | Weights { .. } | Sample(_) | Score(_) | Fetch { .. } | Accept { .. })
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// List every cell and study: the paper's number, the golden value, stored seeds, the command
    List {
        #[command(flatten)]
        place: Place,
        /// Print only the ids, one on each line
        #[arg(long)]
        ids: bool,
        /// Print JSON
        #[arg(long, conflicts_with = "ids")]
        json: bool,
    },
    /// Train and evaluate rows; resumes interrupted runs
    ///
    /// Prints the named tables, or the rows' scores.
    #[command(after_long_help = settings_help())]
    Run(Running),
    /// Compare stored results with golden values, the paper's numbers, or its claims
    Check {
        /// Row ids, table1, table2, all, or studies; selects the claims about any of them
        #[arg(default_value = "table1")]
        targets: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Only these seeds, separated by commas [default: all in the store]
        #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
        seed: Vec<u64>,
        /// golden: accepted values, exit code 1 outside them; paper: printed numbers; claims: the paper's claims
        #[arg(long, default_value = "golden", hide_possible_values = true)]
        against: Against,
        /// Overrides of the run to check
        #[arg(long, value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare two results: settings, scores, and a picture of both grids
    ///
    /// A result is ROW[:SEED][+NAME=VALUE...], such as dijs:1+critic_lr=5e-5, or the beginning of a
    /// key of the store.
    Diff {
        /// A result: dijs, dijs:1, dijs+critic_lr=5e-5, or a key
        a: String,
        /// Another
        b: String,
        #[command(flatten)]
        place: Place,
        /// File for the picture
        #[arg(short, long, default_value = "report/diff.png", value_parser = output())]
        output: PathBuf,
    },
    /// Update golden values from stored results and print the diff (refused in CI)
    Accept {
        /// Row ids, table1, table2, all, or studies
        #[arg(required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Seeds, separated by commas [default: all in the store]
        #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
        seed: Vec<u64>,
        /// Reason for the change, written to golden/ with the numbers
        #[arg(long)]
        reason: String,
    },
    /// Print a table, or all results as JSON, or write the report as a page, from stored results
    ///
    /// Missing rows are listed with the command that runs them; they are not a failure. Without any
    /// result nothing is written, and the exit code is 5.
    #[command(mut_arg("scale", leading))]
    Report {
        /// Table to print; without it, write index.html, report.md, results.csv, results.json, both tables and the figures
        #[arg(value_enum)]
        table: Option<Which>,
        /// Print stored results that differ in this setting
        #[arg(long, value_name = "SETTING", conflicts_with = "table")]
        by: Option<String>,
        #[command(flatten)]
        place: Place,
        /// text, md or csv of a table [default: text]; json of all results (paper/results.schema.json)
        #[arg(long, value_enum, hide_possible_values = true)]
        format: Option<Format>,
        /// Directory for the report
        #[arg(short, long, default_value = "report", conflicts_with_all = ["table", "by", "format"], value_parser = output())]
        output: PathBuf,
    },
    /// Write the store with its report as one zip for an archive or a reviewer
    ///
    /// It holds every finished result with its manifest, the report of --scale, golden and
    /// printed values, RO-Crate metadata, and SHA256SUMS, but no fetched files.
    #[command(mut_arg("scale", leading))]
    Export {
        /// The archive to write
        #[arg(value_name = "OUT.zip", value_parser = output())]
        out: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Check every byte of a zip from export; exit code 1 if one has changed
    Verify {
        /// An archive that export wrote
        #[arg(value_name = "OUT.zip", value_parser = local())]
        file: PathBuf,
    },
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Write a manual page for each command
    Man {
        /// Directory for the pages replicate.1, replicate-run.1 and so on
        #[arg(default_value = ".", value_parser = output())]
        output: PathBuf,
    },
    /// Write the paper's figures and a strip of samples over training for each row
    #[command(mut_arg("scale", leading))]
    Figures {
        #[command(flatten)]
        place: Place,
        /// Directory for the PNG files and their captions
        #[arg(short, long, default_value = "report/figures", value_parser = output())]
        output: PathBuf,
    },
    /// Fetch the files of the paper scale: checkpoint, Inception weights, FID reference, data sets
    Fetch {
        /// Asset ids, a common prefix of several (cifar100-parquet), paper, or all [default: list them]
        what: Vec<String>,
        /// Directory of results and fetched files
        #[arg(long, env = "REPLICATE_STORE", default_value = "store")]
        store: PathBuf,
        /// Take the asset from this file or address, and verify it
        #[arg(long, value_name = "FILE|URL", requires = "what")]
        from: Option<OsString>,
        /// Do not use the network
        #[arg(long)]
        offline: bool,
    },
    /// List the tensors of an EDM snapshot or of a PyTorch file, without running code from it
    Inspect {
        /// EDM's .pkl, or a .pt, .pth or .safetensors
        #[arg(value_parser = local())]
        file: PathBuf,
        /// Write the tensors as float32 safetensors
        #[arg(long, value_name = "OUT.safetensors", value_parser = output())]
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
    /// Image k does not depend on which other images are written. An existing output is not
    /// overwritten; an interrupted one is resumed.
    Sample(Sampling),
    /// Time the heavy parts of a run on this machine
    ///
    /// tests/peers/bench.py times PyTorch for comparison.
    Bench {
        /// What is timed [default: all]
        #[arg(value_enum)]
        cases: Vec<Case>,
        /// Repetitions of each case, after a warm-up
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        repeats: u64,
        /// Rows of features in kid, precision-recall and precision-recall-flat
        #[arg(long, default_value_t = bench::ROWS as u64, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
        rows: u64,
        /// cpu; also cuda:N or cuda:N,bf16 in a build with --features cudnn
        #[arg(long, default_value = "cpu")]
        device: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Test this program on a device, then time it
    ///
    /// Compares with the reference implementations; runs one cell, compares it with its golden
    /// values, repeats it, stops it and resumes it; then measures speed and memory. Exit code 1 if
    /// a check fails.
    Selftest {
        /// cpu; also cuda:N in a build with --features cudnn
        #[arg(long, default_value = "cpu")]
        device: String,
        /// Only small networks and the smoke scale, a minute on a CPU; always so on a CPU
        #[arg(long)]
        reduced: bool,
        /// The repository, with paper/ and golden/ [default: here, or where it was built]
        #[arg(long)]
        root: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Retrain the weights that ship with the repository and compare the bytes
    Weights {
        /// classifier, mini-multi-level-target and so on [default: all that ship]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
        /// Replace the shipped weights with the new ones (refused in CI)
        #[arg(long)]
        write: bool,
    },
}

#[derive(Args, Debug)]
pub struct Running {
    /// Row ids, table1, table2 or all; or studies of paper/studies.csv (see `list`)
    #[arg(required = true)]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub place: Place,
    /// Seeds, separated by commas [default: 0, or a study's own]
    #[arg(long, value_delimiter = ',', value_parser = seed, allow_negative_numbers = true)]
    pub seed: Vec<u64>,
    /// Allow more than 200 cells
    #[arg(long)]
    pub yes: bool,
    /// Display of progress [default: bar on a terminal, lines in a pipe]
    #[arg(long)]
    pub watch: Option<Mode>,
    /// Stop both training stages after this number of images (2000, 50k, 1.5M)
    #[arg(long, value_parser = images)]
    pub until: Option<u64>,
    /// Train as the row's authors did at the paper scale: their batch, length, average, dropout
    ///
    /// By default every row has the budget of the paper's own rows.
    #[arg(long)]
    pub preset: Option<Preset>,
    /// Override a setting; several values make one experiment each. --help lists all settings
    ///
    /// Overrides are stored separately from the paper's rows.
    #[arg(long, value_name = "NAME=VALUE[,VALUE...]")]
    pub set: Vec<String>,
    /// Retrain the weights that ship with the repository
    #[arg(long)]
    pub from_scratch: bool,
    /// Accept stored results of other code instead of running again
    #[arg(long)]
    pub keep: bool,
    /// Make only the shared inputs of rows: pre-trainings and the features of the real images
    #[arg(long, conflicts_with_all = ["stored", "dry_run", "explain"])]
    pub pretrain: bool,
    /// Print tables of stored results without any training; exit code 5 if a row is missing
    #[arg(long, conflicts_with_all = ["dry_run", "explain", "from_scratch"])]
    pub stored: bool,
    /// Print the method and its main settings, or all with `full`; run nothing
    #[arg(long, value_name = "full", num_args = 0..=1, default_missing_value = "short", hide_possible_values = true)]
    pub explain: Option<Explain>,
    /// Print the plan: runs, downloads, costs and obstacles; run nothing
    #[arg(long, conflicts_with = "explain")]
    pub dry_run: bool,
    /// Plan for a GPU that need not be in this machine: h200, h100, a100 or l40s
    #[arg(long, value_enum, value_name = "GPU", requires = "dry_run", hide_possible_values = true)]
    pub like: Option<Card>,
    /// Plan with this number of operations per second, such as 40T [default: measured here, or a share of the GPU's peak]
    #[arg(long, value_name = "FLOPS", requires = "dry_run", value_parser = rate)]
    pub rate: Option<f64>,
    /// Plan for jobs of at most H:MM:SS, and count how often each result is queued again
    #[arg(long, value_name = "H:MM:SS", requires = "dry_run", value_parser = time)]
    pub time: Option<f64>,
    /// Fetch nothing; the files of the scale must be in the store
    #[arg(long)]
    pub offline: bool,
    /// Accumulate gradients over microbatches of this size on a GPU; same result up to rounding
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub microbatch: Option<u64>,
    /// Directory for the tables as CSV and Markdown
    #[arg(short, long, default_value = "report", value_parser = output())]
    pub output: PathBuf,
}

/// Leaves the scale to be chosen by the results in the store.
fn leading(scale: Arg) -> Arg {
    let help = scale.get_help().map(ToString::to_string).unwrap_or_default();
    scale
        .default_value("")
        .hide_default_value(true)
        .help(help + " [default: tiny if the store has a row of it, or else mini]")
}

/// A set of overrides.
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
    /// Number of consecutive ranges of N images to score; EDM reports the least FID of 3
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub trials: u64,
    /// Print every figure, warning and SHA-256 as JSON
    #[arg(long)]
    pub json: bool,
    /// Write mean and covariance of the reference, or of IMAGES without --ref, in EDM's form
    #[arg(long, value_name = "OUT.npz", value_parser = output())]
    pub save_ref: Option<PathBuf>,
    /// Inception weights (pt_inception-2015-12-05-6726825d.pth) [default: those in the store]
    #[arg(long, value_name = "FILE", value_parser = local())]
    pub inception: Option<PathBuf>,
    /// Seed of the row
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Args, Debug)]
pub struct Sampling {
    /// A row of the tables that was run, at --scale and with --seed; or an EDM snapshot
    /// (.pkl), a PyTorch file (.pth) or safetensors of the U-Net in its DDPM++ form
    #[arg(value_name = "ROW|FILE", value_parser = local())]
    pub what: PathBuf,
    /// Sample like this row: edm (18 Heun steps), ddim, dpm-solver-fast, dijs (one step) …
    /// [default: ROW; edm for a file]
    #[arg(long, value_name = "ROW")]
    pub sampler: Option<String>,
    /// Steps or network calls of the sampler [default: as in Table 1]
    #[arg(long, value_name = "N")]
    pub steps: Option<String>,
    /// Range of image numbers, such as 0-49999 or 7; a row is scored on the first images
    #[arg(long, value_parser = numbers, allow_hyphen_values = true)]
    pub seeds: Range<u64>,
    /// A new folder of PNG files, a .zip like EDM's data sets, or an .npz of uint8 (N, H, W, 3)
    #[arg(long, value_name = "DIR|ZIP|NPZ", value_parser = output())]
    pub out: PathBuf,
    /// Seed of the row, or of the latents for a file
    #[arg(long, default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// Display of progress [default: bar on a terminal, lines in a pipe]
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
    /// cpu; also cuda:N or cuda:N,bf16 in a build with --features cudnn
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Directory of results
    #[arg(long, env = "REPLICATE_STORE", default_value = "store")]
    pub store: PathBuf,
    /// CIFAR archives, directories, parquet or EDM zips (scales tiny, small and paper) [default: fetched]
    #[arg(long, value_parser = local())]
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

/// Lists every setting with its accepted values and its description.
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
