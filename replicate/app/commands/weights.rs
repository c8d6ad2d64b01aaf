//! `weights`: retrains the networks that ship with the repository.

use super::{lock_to_change, presets, root, runner, write_file};
use crate::app::cli::Place;
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, EXIT_OUTSIDE, Error, Result, shown};
use crate::experiment::run::{SHIPPED, SHIPPED_DIGESTS, classifier_name, shipped_digests};
use crate::experiment::{Initialization, all_rows};
use crate::judge::golden::refuse_in_ci;
use crate::store::{sha256_hex, write_safetensors};
use crate::text::unknown;
use crate::train::watch::Mode;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// Runs `replicate weights`: trains the shipped networks again and compares the bytes.
pub fn weights(names: &[String], place: &Place, write: bool, stop: &AtomicBool) -> Result<i32> {
    if write {
        refuse_in_ci(std::env::var("CI").ok().as_deref())?;
    }
    let root = root(place.root.as_deref())?;
    let mut runner = runner(place, presets(place)?, Mode::fitting(), true, stop)?;
    let starts = all_rows().map(|row| row.start).filter(|start| *start != Initialization::Random);
    let list = root.join(SHIPPED_DIGESTS);
    let sums = shipped_digests(&root)?;
    let known: BTreeMap<String, Option<Initialization>> = starts
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
            let path = root.join(SHIPPED).join(format!("{name}.safetensors"));
            write_file(&path, &bytes)?;
            // Reads the list again, because another process may have changed it during the
            // training.
            let _lock = lock_to_change(&list, stop)?;
            let mut sums = shipped_digests(&root)?;
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
