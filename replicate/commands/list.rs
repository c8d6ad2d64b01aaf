//! `list`: every cell, what is known of it and what it would cost.

use super::{all_goldens, quiet, root};
use crate::cli::Place;
use crate::error::{EXIT_GOOD, Result};
use crate::experiment::{Cell, Recipe, cells};
use crate::explain;
use crate::golden;
use crate::paper;
use crate::run::Runner;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub fn list(place: &Place, ids: bool, json: bool, stop: &AtomicBool) -> Result<i32> {
    if ids {
        cells().for_each(|cell| println!("{}", cell.row));
        return Ok(EXIT_GOOD);
    }
    let root = root(place)?;
    let mut runner = quiet(place, stop)?;
    let scale = runner.recipe().scale.name();
    let goldens = all_goldens(&root)?;
    let mut printed: BTreeMap<String, String> = paper::table1(&root.join("paper"))?
        .into_iter()
        .map(|row| (row.id, format!("{:.2}", row.fid)))
        .collect();
    for row in paper::table2(&root.join("paper"))? {
        let text = match row.fid {
            paper::Fid::Value(fid) => format!("{fid:.2}"),
            paper::Fid::Collapsed => "collapsed".into(),
        };
        printed.entry(row.cell).or_insert(text);
    }
    let readable = scale_is_readable(&runner, place);
    let mut rows = Vec::new();
    for cell in cells() {
        let mut done = Vec::new();
        for seed in if readable { runner.seeds(&cell)? } else { Vec::new() } {
            if runner.stored(&cell, seed)?.is_some() {
                done.push(seed);
            }
        }
        let golden = goldens.iter().find(|g| g.row == cell.row && g.scale == scale && g.metric == "fd");
        let golden = golden.map(|g| golden::Sample::of(g.values.values().copied()).text(1));
        rows.push((cell.row, printed.get(cell.row).cloned().unwrap_or_default(), golden, done));
    }
    if json {
        let objects: Vec<_> = rows
            .iter()
            .map(|(row, fid, golden, done)| {
                serde_json::json!({
                    "id": row, "scale": scale, "paper_fid": fid, "golden_fd": golden, "seeds_done": done,
                    "command": format!("replicate run {row} --scale {scale}"),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&objects).expect("strings and numbers"));
        return Ok(EXIT_GOOD);
    }
    println!(
        "{:14} {:>10}  {:24} {:12} command",
        "row",
        "paper FID",
        format!("golden FD ({scale})"),
        "seeds done"
    );
    for (row, fid, golden, done) in rows {
        let done: Vec<String> = done.iter().map(u64::to_string).collect();
        let done = if done.is_empty() { "none".to_string() } else { done.join(",") };
        let golden = golden.unwrap_or_else(|| "none".into());
        println!("{row:14} {fid:>10}  {golden:24} {done:12} replicate run {row} --scale {scale}");
    }
    Ok(EXIT_GOOD)
}

/// Whether results can be looked up: some scales need their data to name them.
fn scale_is_readable(runner: &Runner, place: &Place) -> bool {
    runner.recipe().scale.procedural() || place.data.is_some()
}

/// Prints what decides each of `cells`.
pub fn explain(cells: &[Cell], recipe: &Recipe, root: &Path) -> Result<i32> {
    let settings = paper::setup(&root.join("paper"))?;
    let texts: Vec<String> = cells.iter().map(|cell| explain::explain(cell, recipe, &settings)).collect();
    print!("{}", texts.join("\n"));
    Ok(EXIT_GOOD)
}
