//! `weights`: retrains the networks that ship with the repository.

use super::{lock_to_change, presets, root, runner, write_file};
use crate::app::cli::Place;
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, EXIT_OUTSIDE, Error, Result, shown};
use crate::experiment::run::{SHIPPED, WEIGHTS, classifier_name};
use crate::experiment::{Data, Initialization};
use crate::judge::golden::refuse_in_ci;
use crate::store::{sha256_hex, write_safetensors};
use crate::text::unknown;
use crate::train::watch::Mode;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub fn weights(names: &[String], place: &Place, write: bool, stop: &AtomicBool) -> Result<i32> {
    if write {
        refuse_in_ci(std::env::var("CI").ok().as_deref())?;
    }
    let root = root(place.root.as_deref())?;
    let mut runner = runner(place, presets(place)?, Mode::fitting(), true, stop)?;
    let starts = [
        Initialization::MultiLevel(Data::Target),
        Initialization::SingleLevel,
        Initialization::MultiLevel(Data::Sources(10)),
        Initialization::MultiLevel(Data::Sources(50)),
        Initialization::MultiLevel(Data::Sources(90)),
    ];
    let list = root.join(SHIPPED).join("SHA256SUMS");
    let sums = read_sums(&list);
    let known: BTreeMap<String, Option<Initialization>> = starts
        .into_iter()
        .map(|start| (format!("{}-{start}", runner.recipe().scale), Some(start)))
        .chain([(classifier_name(runner.recipe().scale), None)])
        .collect();
    let names: Vec<String> = match names.is_empty() {
        true => sums.keys().filter(|name| known.contains_key(*name)).cloned().collect(),
        false => names.to_vec(),
    };
    if let Some(name) = names.iter().find(|name| !known.contains_key(*name)) {
        return Err(Error::Usage(unknown("network", name, known.keys().map(String::as_str))));
    }
    if names.is_empty() {
        println!("no weights of --scale {} ship with the repository", runner.recipe().scale);
        return Ok(EXIT_INCOMPLETE);
    }
    let mut same = true;
    for name in names {
        let start = &known[&name];
        let (arrays, digest) = match start {
            Some(start) => runner.pretrained(*start)?,
            None => runner.features()?.clone(),
        };
        let ships = sums.get(&name).cloned();
        same &= write || ships.as_ref() == Some(&digest);
        let compared = match &ships {
            Some(ships) if *ships == digest => {
                format!("{name}: identical to the shipped file, SHA-256 {digest}")
            }
            Some(ships) => format!("{name}: SHA-256 {digest}, but the shipped file has {}", shown(ships)),
            None => format!("{name}: SHA-256 {digest}, no such file ships"),
        };
        // Prints after writing, so that a closed pipe cannot prevent the write.
        if write {
            let bytes = write_safetensors(&arrays, &BTreeMap::new());
            debug_assert_eq!(sha256_hex(&bytes), digest);
            let path =
                root.join(SHIPPED).join(&name).with_extension(WEIGHTS.rsplit('.').next().unwrap_or_default());
            write_file(&path, &bytes)?;
            // Reads the list again, because another process may have changed it during the
            // training.
            let _lock = lock_to_change(&list, stop)?;
            let mut sums = read_sums(&list);
            sums.insert(name.clone(), digest);
            let text: String =
                sums.iter().map(|(name, sum)| format!("{sum}  {name}.safetensors\n")).collect();
            write_file(&list, text.as_bytes())?;
        }
        println!("{compared}");
        if start.is_none() {
            for (kind, share) in runner.classifier_accuracy()? {
                println!("{name}: right on {:.1} % of held-out {kind}", share * 100.0);
            }
        }
    }
    Ok(if same { EXIT_GOOD } else { EXIT_OUTSIDE })
}

/// Returns the names and SHA-256 of the shipped weights; empty if there is no list.
fn read_sums(list: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    lines.map(|(sum, file)| (file.trim_end_matches(".safetensors").to_string(), sum.to_string())).collect()
}
