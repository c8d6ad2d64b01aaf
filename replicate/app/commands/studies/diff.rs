//! `diff`: compares two results.

use super::super::{all_rows, flags, reader, write_file};
use crate::app::cli::Place;
use crate::data::Images;
use crate::data::grid::{GRID, png_strip};
use crate::error::{EXIT_GOOD, Error, Result};
use crate::experiment::run::{Outcome, Runner, SAMPLES};
use crate::experiment::{Recipe, Row};
use crate::judge::golden::Score;
use crate::report::figures::tiles;
use crate::report::table::{Cell, Column, Content, Row as Line, Table};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// One of the two results.
struct Side {
    name: String,
    outcome: Outcome,
    scores: Vec<Score>,
}

/// Prints the settings and scores in which two results differ, and writes their grids side by side.
pub fn diff(names: [&str; 2], place: &Place, output: &Path, stop: &AtomicBool) -> Result<i32> {
    let mut runner = reader(place, super::presets(place)?, stop)?;
    let mut found = Vec::new();
    for name in names {
        found.push(find(&mut runner, name, place)?);
    }
    let [a, b] = <[Side; 2]>::try_from(found).unwrap_or_else(|_| unreachable!("two names"));
    let colour = std::io::stdout().is_terminal();
    print!("{}\n{}", settings(&a, &b).to_text(colour), scores(&a, &b).to_text(colour));
    match pair(&a, &b)? {
        Some(png) => {
            write_file(output, &png)?;
            println!("\nleft {}, right {}, the same latents: {}", a.name, b.name, output.display());
        }
        None => println!("\nno picture: the grids are of different sizes"),
    }
    Ok(EXIT_GOOD)
}

/// Parses `ROW[:SEED][+NAME=VALUE...]`, or the beginning of a key.
fn find(runner: &mut Runner, name: &str, place: &Place) -> Result<Side> {
    let (head, changes) = name.split_once('+').unwrap_or((name, ""));
    let (id, seed) = head.split_once(':').unwrap_or((head, "0"));
    let row: Option<Row> = all_rows().find(|row| row.id == id);
    let outcome = if let (Some(row), Ok(seed)) = (row, seed.parse::<u64>()) {
        let changes: Vec<String> =
            changes.split('+').filter(|change| !change.is_empty()).map(String::from).collect();
        runner.turn_to(Recipe::changed(runner.recipe().scale, &changes)?);
        runner.stored(&row, seed)?.ok_or_else(|| {
            let set: String = changes.iter().map(|change| format!(" --set {change}")).collect();
            let remedy = format!("replicate run {id}{} --seed {seed}{set}", flags(place));
            Error::missing(&place.store, format!("{name} is not in this store"), remedy)
        })?
    } else {
        runner.by_key(name)?.ok_or_else(|| {
            Error::Usage(format!(
                "'{name}' is neither ROW[:SEED][+NAME=VALUE...] nor the beginning of the key of one row's scores"
            ))
        })?
    };
    let scores = runner.scores(&outcome)?;
    Ok(Side { name: name.into(), outcome, scores })
}

fn columns(a: &Side, b: &Side, content: Content) -> Vec<Column> {
    let of = |side: &Side| Column::new(&side.name, "", content);
    vec![Column::new("", "", Content::Text), of(a), of(b)]
}

fn settings(a: &Side, b: &Side) -> Table {
    let [left, right] = [a, b].map(|side| {
        let mut all = side.outcome.scores.manifest.settings.clone();
        all.insert("row".into(), side.outcome.row.id.into());
        all.insert("seed".into(), side.outcome.seed.into());
        all
    });
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let text = |value: Option<&serde_json::Value>| match value {
        None => Cell::Nothing,
        Some(serde_json::Value::String(text)) => Cell::text(text),
        Some(value) => Cell::text(value.to_string()),
    };
    let different = names.into_iter().filter(|name| left.get(*name) != right.get(*name));
    let line = |name: &String| Line {
        cells: vec![Cell::text(name), text(left.get(name)), text(right.get(name))],
        ..Line::default()
    };
    let rows: Vec<Line> = different.map(line).collect();
    let notes = if rows.is_empty() { vec!["Their settings are the same.".to_string()] } else { Vec::new() };
    Table { name: "Settings".into(), columns: columns(a, b, Content::Text), rows, notes, ..Table::default() }
}

fn scores(a: &Side, b: &Side) -> Table {
    let value = |side: &Side, metric: &str| side.scores.iter().find(|s| s.metric == metric).map(|s| s.value);
    let cell = |value: Option<f64>| value.map_or(Cell::Nothing, |x| Cell::Number(x, 4));
    let line = |score: &Score| {
        let (left, right) = (Some(score.value), value(b, &score.metric));
        let apart = right.map(|right| right - score.value);
        Line {
            cells: vec![Cell::text(&score.metric), cell(left), cell(right), cell(apart)],
            ..Line::default()
        }
    };
    let mut columns = columns(a, b, Content::Number);
    columns.push(Column::new("right minus left", "", Content::Number));
    Table { name: "Scores".into(), columns, rows: a.scores.iter().map(line).collect(), ..Table::default() }
}

/// Joins both grids in one picture; `None` if their images have different sizes.
fn pair(a: &Side, b: &Side) -> Result<Option<Vec<u8>>> {
    let grid = |side: &Side| Ok::<_, Error>(tiles(&side.outcome.scores.entry.read(SAMPLES)?));
    let (Some(left), Some(right)) = (grid(a)?, grid(b)?) else { return Ok(None) };
    if left.size != right.size || left.len() != right.len() {
        return Ok(None);
    }
    // With a white gap as wide as one image.
    let gap = Images { pixels: vec![255; left.channels * left.size * left.size], labels: Vec::new(), ..left };
    let row = |i: usize| {
        let part = |images: &Images| images.part(i * GRID.0..(i + 1) * GRID.0).pixels;
        Images { pixels: [part(&left), gap.pixels.clone(), part(&right)].concat(), ..gap.clone() }
    };
    let rows: Vec<Images> = (0..left.len() / GRID.0).map(row).collect();
    Ok(Some(png_strip(&rows.iter().collect::<Vec<_>>(), GRID.1)))
}
