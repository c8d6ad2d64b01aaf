//! `fetch`: the files of the paper scale.

use crate::app::machine::free_disk;
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::measure::statistics::Statistics;
use crate::store::Store;
use crate::store::fetch::{
    Asset, Given, Hash, Inputs, Options, Progress, Stand, assets, fetch as get, plan, select,
};
use crate::store::formats::Fault;
use crate::train::watch::say;
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Lists the assets, or fetches `what`.
pub fn fetch(
    what: &[String],
    store: &Path,
    from: Option<&OsStr>,
    offline: bool,
    stop: &AtomicBool,
) -> Result<i32> {
    // Fails if the directory is not a store.
    Store::open(store)?;
    let inputs = Inputs::of(store);
    if what.is_empty() {
        return list(&inputs);
    }
    let mut wanted: Vec<&Asset> = Vec::new();
    for name in what {
        for asset in select(name)? {
            if !wanted.iter().any(|other| other.id == asset.id) {
                wanted.push(asset);
            }
        }
    }
    if from.is_some() && wanted.len() != 1 {
        return Err(Error::Usage("--from takes one asset: name only that one".into()));
    }
    let paths = download(&inputs, &wanted, from, offline, stop)?;
    for (asset, path) in wanted.iter().zip(paths) {
        println!("{}  {}", asset.id, path.display());
    }
    Ok(EXIT_GOOD)
}

/// Fetches those of `wanted` that the store lacks; returns their paths.
pub fn download(
    inputs: &Inputs,
    wanted: &[&Asset],
    from: Option<&OsStr>,
    offline: bool,
    stop: &AtomicBool,
) -> Result<Vec<PathBuf>> {
    let mut options = Options::from_env(&check_content);
    options.from = from.map(Given::parse);
    options.offline = offline;
    let planned = plan(inputs, wanted.iter().copied())?;
    let known: u64 = planned.iter().filter_map(|line| line.to_come()).sum();
    let unknown = planned.iter().filter(|line| line.to_come().is_none()).count();
    let rest = if unknown > 0 { format!(", and {unknown} of unknown size") } else { String::new() };
    say(&format!("to download: {}{rest}", megabytes(known)));
    if let Some(free) = free_disk(inputs.dir()).filter(|free| *free < known) {
        return Err(Error::Run(format!(
            "{} are free at {}, which is not enough\n  free some, or name another place with --store",
            megabytes(free),
            inputs.dir().display()
        )));
    }
    let mut paths = Vec::new();
    for asset in wanted {
        let mut shown = Shown::new(asset);
        let path = get(inputs, asset, &options, &mut |progress| {
            shown.show(progress);
            Error::if_stopped(stop, &format!("fetching {}", asset.id))
        });
        drop(shown);
        paths.push(path?);
    }
    Ok(paths)
}

fn list(inputs: &Inputs) -> Result<i32> {
    let planned = plan(inputs, assets())?;
    for line in &planned {
        let size = line.asset.bytes.map_or("size unknown".into(), megabytes);
        let hash = match line.asset.hash {
            Hash::Several(_) => "SHA-256 from several sources",
            Hash::OneSource(_) => "SHA-256 from one source only",
            Hash::Unpublished => "no published SHA-256: trusted when first seen, content checked",
        };
        let state = match line.stand {
            Stand::There { .. } => "there".to_string(),
            Stand::Missing { have: 0 } => "missing".to_string(),
            Stand::Missing { have } => format!("{} there", megabytes(have)),
        };
        let Asset { id, what, licence, .. } = line.asset;
        println!("{id:24} {size:>12}  {state:14} {licence:16} {what}; {hash}");
    }
    let option = inputs.option();
    println!(
        "\nThe fourth column is the licence. CC BY-NC-SA 4.0 forbids commercial use, also of derived works."
    );
    println!("fetch one with: replicate fetch ID{option}, several with: ID ID, paper, or all");
    let all = planned.iter().all(|line| matches!(line.stand, Stand::There { .. }));
    Ok(if all { EXIT_GOOD } else { EXIT_INCOMPLETE })
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Shows a bar on a terminal, and lines of text elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new(asset: &Asset) -> Shown {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:24} {bar:24} {bytes}/{total_bytes}  {msg}");
            ProgressBar::new(asset.bytes.unwrap_or(0))
                .with_style(style.expect("a valid template"))
                .with_prefix(asset.id)
        });
        Shown { bar }
    }

    fn show(&mut self, progress: Progress) {
        match (progress, &self.bar) {
            (Progress::Bytes { have, of }, Some(bar)) => {
                if let Some(of) = of {
                    bar.set_length(of);
                }
                bar.set_position(have);
            }
            (Progress::Bytes { .. } | Progress::Waiting { left: Some(_), .. }, None) => {}
            (Progress::Waiting { why, .. }, Some(bar)) => bar.set_message(why.to_string()),
            (Progress::Waiting { why, .. }, None) => self.say(why),
            (Progress::Begin { from, .. }, _) => self.say(&format!("from {from}")),
            (Progress::Note(text), _) => self.say(text),
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => _ = writeln!(std::io::stderr(), "{text}"),
        }
    }
}

/// Checks the content of a file without a published digest: EDM's reference statistics must be a
/// mean and a covariance of Inception-v3's 2048 features.
fn check_content(asset: &Asset, path: &Path) -> std::result::Result<(), Fault> {
    match asset.id {
        "fid-reference" | "drill-fid-reference" => check_statistics(path, 2048),
        _ => Ok(()),
    }
}

fn check_statistics(path: &Path, features: usize) -> std::result::Result<(), Fault> {
    let statistics = Statistics::parse(path)?;
    if statistics.mean.len() != features {
        return Err(format!("has mu of the shape [{}]", statistics.mean.len()).into());
    }
    let factor = statistics.factor();
    factor.map(drop).map_err(|error| format!("has a sigma with a negative eigenvalue: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::formats::npz::{Array, write};

    fn checked(arrays: &[(&str, &Array)], features: usize) -> std::result::Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), write(arrays)).unwrap();
        check_statistics(file.path(), features).map_err(|error| error.to_string())
    }

    #[test]
    fn reference_statistics_are_a_mean_and_a_covariance() {
        let array = |shape: &[usize], data: &[f64]| Array { shape: shape.to_vec(), data: data.to_vec() };
        let (mu, sigma) = (array(&[2], &[1.0, 2.0]), array(&[2, 2], &[2.0, 1.0, 1.0, 2.0]));
        checked(&[("mu", &mu), ("sigma", &sigma)], 2).unwrap();
        for (mu, sigma, features, wrong) in [
            (&mu, &array(&[2, 2], &[2.0, 1.0, 0.5, 2.0]), 2, "not symmetric"),
            (&mu, &array(&[2, 2], &[1.0, 2.0, 2.0, 1.0]), 2, "negative eigenvalue"),
            (&mu, &array(&[2, 2], &[1.0, f64::NAN, f64::NAN, 1.0]), 2, "NaN"),
            (&array(&[2, 1], &[1.0, 2.0]), &sigma, 2, "mu of the shape [2, 1]"),
            (&mu, &sigma, 3, "mu of the shape [2]"),
            (&array(&[3], &[1.0, 2.0]), &array(&[3, 3], &[0.0; 9]), 3, "16 bytes of data for 3 numbers"),
        ] {
            let error = checked(&[("mu", mu), ("sigma", sigma)], features).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        let error = checked(&[("mu", &mu)], 2).unwrap_err();
        assert!(error.contains("no array sigma"), "{error}");
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "<html>not found</html>").unwrap();
        assert!(check_statistics(text.path(), 2).unwrap_err().to_string().contains("but a web page"));
    }
}
