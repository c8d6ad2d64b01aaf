//! Carries out the commands: each selects cells, runs or reads them, and prints.

mod bench;
mod check;
mod export;
mod fetch;
mod list;
mod report;
mod run;
mod sample;
mod score;
mod selftest;
mod studies;
mod weights;

use crate::app::cli::{Cli, Command, Format, Place, Which, completed, manual};
use crate::error::{EXIT_GOOD, Error, Result, shown_path};
use crate::experiment::run::{Outcome, Runner, Settings};
use crate::experiment::{ABLATIONS, FULL_INITIALIZATION, Recipe, Row, Scale, TABLE1, TABLE2, all_rows};
use crate::judge::golden::{Golden, Score, read_golden};
use crate::judge::paper::{self, Claim};
use crate::network::device;
use crate::report::table::Table;
use crate::store::formats::torch;
use crate::store::{self, dir_of, write_atomically, write_safetensors};
use crate::text::{quoted, quoted_path, unknown};
use crate::train::watch::{Mode, Watch, say};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Golden values of studies.
const STUDIES: &str = "golden/studies.csv";
/// Table 2's id for Table 1's DiJS.
const FULL_ROW: &str = "init-full";

/// Carries out a command; returns the exit code.
pub fn run(mut cli: Cli, stop: &AtomicBool) -> Result<i32> {
    if let Command::Report { place, .. } | Command::Figures { place, .. } | Command::Export { place, .. } =
        &mut cli.command
        && place.scale.is_empty()
    {
        place.scale = leading(place, stop)?.to_string();
    }
    match cli.command {
        Command::List { place, ids, json } => list::list(&place, ids, json, stop),
        Command::Run(arguments) => run::run(&arguments, stop),
        Command::Check { targets, place, seed, against, set, json } => {
            check::check(&targets, &place, &seed, against, &set, json, stop)
        }
        Command::Accept { targets, place, seed, reason } => {
            check::accept(&targets, &place, &seed, &reason, stop)
        }
        Command::Diff { a, b, place, output } => studies::diff::diff([&a, &b], &place, &output, stop),
        Command::Report { by: None, table: None, place, format: None, output } => {
            report::report(&place, &output, stop)
        }
        Command::Report { by, table, place, format, .. } => match (by, table, format) {
            (None, None, Some(Format::Json)) => report::results(&place, stop),
            (_, _, Some(Format::Json)) | (None, None, _) => Err(Error::Usage(
                "--format is for a table, or for --by SETTING; json is of all results".into(),
            )),
            (Some(field), _, format) => studies::by(&field, &place, format.unwrap_or(Format::Text), stop),
            (None, Some(which), format) => report::table(which, &place, format.unwrap_or(Format::Text), stop),
        },
        Command::Export { out, place } => export::export(&out, &place, stop),
        Command::Verify { file } => export::verify(&file),
        Command::Completions { shell } => {
            let rows: Vec<&str> = all_rows().map(|row| row.id).collect();
            let targets: Vec<&str> = known_targets(None).into_iter().map(|name| &*name.leak()).collect();
            let mut command = completed(&Scale::ALL.map(Scale::name), &rows, &targets);
            clap_complete::generate(shell, &mut command, "replicate", &mut std::io::stdout());
            Ok(EXIT_GOOD)
        }
        Command::Man { output } => {
            std::fs::create_dir_all(&output).map_err(Error::io("create", &output))?;
            manual(&output).map_err(Error::io("write", &output))?;
            Ok(EXIT_GOOD)
        }
        Command::Figures { place, output } => report::figures_only(&place, &output, stop),
        Command::Fetch { what, store, from, offline } => {
            fetch::fetch(&what, &store, from.as_deref(), offline, stop)
        }
        Command::Inspect { file, convert } => inspect(&file, convert.as_deref()),
        Command::Score(scoring) => score::score(&scoring, stop),
        Command::Sample(sampling) => sample::sample(&sampling, stop),
        Command::Bench { cases, repeats, rows, device: name, json } => {
            bench::bench(&cases, repeats as usize, rows as usize, &device::open(&name)?, json)
        }
        Command::Selftest { device, reduced, root: given, json } => {
            selftest::selftest(&device, reduced, &root(given.as_deref())?, json)
        }
        Command::Weights { names, place, write } => weights::weights(&names, &place, write, stop),
    }
}

/// Returns the cells of `targets`, each once.
fn select(targets: &[String], place: &Place) -> Result<Vec<Row>> {
    let mut chosen: Vec<Row> = Vec::new();
    for target in targets {
        let found: Vec<Row> = match target.as_str() {
            "table1" => TABLE1.to_vec(),
            "table2" => TABLE2.to_vec(),
            "all" => all_rows().collect(),
            FULL_ROW => vec![FULL_INITIALIZATION],
            row => all_rows().filter(|cell| cell.id == row).collect(),
        };
        if found.is_empty() {
            let known = known_targets(place.root.as_deref());
            return Err(Error::Usage(unknown("row", target, known.iter().map(String::as_str))));
        }
        for cell in found {
            if !chosen.contains(&cell) {
                chosen.push(cell);
            }
        }
    }
    Ok(chosen)
}

/// Returns what `run` and `check` take: rows, tables and studies.
fn known_targets(root: Option<&Path>) -> Vec<String> {
    let rows = all_rows().map(|cell| cell.id).chain(["table1", "table2", "all", FULL_ROW]);
    rows.map(str::to_string).chain(studies::ids(root)).collect()
}

/// Reads the claims of `paper/` about rows of the tables and about ablations.
fn claims(paper: &Path) -> Result<Vec<Claim>> {
    paper::claims(paper, &ABLATIONS.iter().map(|row| row.id).collect::<Vec<_>>())
}

/// Returns the scale of a report for which none is given: tiny, whose images are real, if the
/// store has a row of it, or else mini.
fn leading(place: &Place, stop: &AtomicBool) -> Result<Scale> {
    // A row is found without its images, too, and nothing is read.
    let place = Place { data: None, ..place.clone() };
    let mut runner = reader(&place, Recipe::of(Scale::Tiny), stop)?;
    for row in all_rows() {
        for seed in runner.seeds(&row)? {
            if runner.stored(&row, seed)?.is_some() {
                return Ok(Scale::Tiny);
            }
        }
    }
    Ok(Scale::Mini)
}

/// Returns the presets of the scale.
fn presets(place: &Place) -> Result<Recipe> {
    let unknown = || Error::Usage(unknown("scale", &place.scale, Scale::ALL.into_iter().map(Scale::name)));
    let scale = Scale::named(&place.scale).ok_or_else(unknown)?;
    if place.data.is_some() && scale.procedural() {
        return Err(Error::Usage(format!("--data: --scale {scale} draws its images and reads no files")));
    }
    Ok(Recipe::of(scale))
}

/// Returns the recipes of every combination of the values in `set`; one of `rows` must use each
/// setting.
fn recipes(place: &Place, set: &[String], until: Option<u64>, rows: &[Row]) -> Result<Vec<Recipe>> {
    let mut recipes = vec![presets(place)?];
    for change in set {
        // An item without a value gets the setting's own error message.
        let (name, values) = change.split_once('=').unwrap_or((change, ""));
        let each = |recipe: &Recipe, value: &str| {
            let mut recipe = recipe.clone();
            let change = if values.is_empty() { change.clone() } else { format!("{name}={value}") };
            recipe.set(&change)?;
            recipe.changes_used_by(rows)?;
            Ok(recipe)
        };
        let combined =
            recipes.iter().flat_map(|recipe| values.split(',').map(move |value| each(recipe, value)));
        recipes = combined.collect::<Result<_>>()?;
    }
    if let Some(images) = until {
        recipes.iter_mut().for_each(|recipe| recipe.until(images));
    }
    Ok(recipes)
}

fn runner<'a>(
    place: &Place,
    recipe: Recipe,
    mode: Mode,
    from_scratch: bool,
    stop: &'a AtomicBool,
) -> Result<Runner<'a>> {
    Runner::new(settings(place, from_scratch)?, recipe, Watch::new(mode), stop)
}

fn settings(place: &Place, from_scratch: bool) -> Result<Settings> {
    Ok(Settings {
        store: place.store.clone(),
        root: root(place.root.as_deref())?,
        data: place.data.clone(),
        compute: device::open(&place.device)?,
        from_scratch,
        microbatch: None,
        keep: false,
    })
}

/// Makes a runner for reading and for single samples.
fn quiet<'a>(place: &Place, stop: &'a AtomicBool) -> Result<Runner<'a>> {
    runner(place, presets(place)?, Mode::Lines, false, stop)
}

/// Makes a runner that only reads, so the device need not exist here.
fn reader<'a>(place: &Place, recipe: Recipe, stop: &'a AtomicBool) -> Result<Runner<'a>> {
    let here = Place { device: "cpu".into(), ..place.clone() };
    runner(&here, recipe, Mode::Lines, false, stop)?.made_on(&place.device)
}

/// Returns the directory with paper/ and golden/.
fn root(given: Option<&Path>) -> Result<PathBuf> {
    let known = |dir: &Path| dir.join("paper/table1.csv").is_file();
    if let Some(root) = given {
        let (what, remedy) =
            ("--root must name a checkout of the repository", "give its directory, or leave --root out");
        return match known(root) {
            true => Ok(root.to_path_buf()),
            false => Err(Error::missing(root.join("paper/table1.csv"), what, remedy)),
        };
    }
    let places = [PathBuf::from("."), PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    places.into_iter().find(|dir| known(dir)).ok_or_else(|| {
        let remedy = "run it in a checkout of the repository, or name one with --root";
        Error::missing("paper/table1.csv", "neither here nor where the program was built", remedy)
    })
}

/// Returns the shell command that makes a row.
fn command(row: &str, seed: u64, place: &Place) -> String {
    format!("replicate run {row}{} --seed {seed}", flags(place))
}

/// Returns the options with which a command uses the same store.
fn flags(place: &Place) -> String {
    let mut text = format!(" --scale {}", place.scale);
    if let Some(root) = &place.root {
        text += &format!(" --root {}", quoted_path(root));
    }
    if place.device != "cpu" {
        text += &format!(" --device {}", quoted(&place.device));
    }
    text += &store::option(&place.store);
    if let Some(data) = &place.data {
        text += &format!(" --data {}", quoted_path(data));
    }
    text
}

fn unique(seeds: &[u64]) -> Vec<u64> {
    let mut seeds = seeds.to_vec();
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}

/// Returns the stored scores of `cells`; an empty `seeds` means all seeds.
fn stored(runner: &mut Runner, cells: &[Row], seeds: &[u64]) -> Result<Vec<Score>> {
    let mut scores = Vec::new();
    for cell in cells {
        let seeds = if seeds.is_empty() { runner.seeds(cell)? } else { unique(seeds) };
        for seed in seeds {
            if let Some(outcome) = runner.stored(cell, seed)? {
                scores.extend(scores_of(runner, cell, seed, &outcome)?);
            }
        }
    }
    Ok(scores)
}

/// Returns the scores of a finished cell, with its distance from the full initialisation if that
/// was measured.
fn scores_of(runner: &mut Runner, cell: &Row, seed: u64, outcome: &Outcome) -> Result<Vec<Score>> {
    let mut scores = runner.scores(outcome)?;
    if let Some(mapping) = runner.stored_mapping(cell, seed)? {
        scores.extend(mapping);
    }
    Ok(scores)
}

fn golden_path(root: &Path, which: Which) -> PathBuf {
    root.join("golden").join(match which {
        Which::Table1 => "table1.csv",
        Which::Table2 => "table2.csv",
    })
}

/// Reads the golden values of studies.
fn study_goldens(root: &Path) -> Result<Vec<Golden>> {
    read_golden(&root.join(STUDIES))
}

fn all_goldens(root: &Path) -> Result<Vec<Golden>> {
    let mut all = read_golden(&golden_path(root, Which::Table1))?;
    all.extend(read_golden(&golden_path(root, Which::Table2))?);
    Ok(all)
}

fn render(table: &Table, format: Format) -> String {
    match format {
        Format::Text => table.to_text(std::io::stdout().is_terminal()),
        Format::Md => table.to_markdown(),
        Format::Csv | Format::Json => table.to_csv(),
    }
}

fn tables(targets: &[String]) -> impl Iterator<Item = (Which, &'static str)> {
    let named = [(Which::Table1, "table1"), (Which::Table2, "table2")];
    named.into_iter().filter(|(_, name)| targets.iter().any(|target| target == name || target == "all"))
}

/// Locks a file of the repository for reading and rewriting it.
fn lock_to_change(path: &Path, stop: &AtomicBool) -> Result<File> {
    store::lock_to_change(path, &mut |waited| {
        if waited.is_zero() {
            say(&format!("waiting: another process is changing {}", shown_path(path)));
        }
        Error::if_stopped(stop, &shown_path(path))
    })
}

/// Refuses an output that is one of the inputs, which it would replace.
fn check_apart(output: &Path, inputs: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    match inputs.into_iter().any(|input| input.canonicalize().is_ok_and(|input| input == real)) {
        true => {
            Err(Error::Usage(format!("{} is read by this command: write another file", shown_path(output))))
        }
        false => Ok(()),
    }
}

/// Writes the file completely, or leaves its old content.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // A new file must not take the place of a device or a pipe, such as /dev/null.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return std::fs::write(path, bytes).map_err(Error::io("write", path));
    }
    write_atomically(dir_of(path), path.file_name().unwrap_or_default(), bytes)
}

fn write_table(output: &Path, name: &str, table: &Table) -> Result<()> {
    for (suffix, text) in [("csv", table.to_csv()), ("md", table.to_markdown())] {
        write_file(&output.join(format!("{name}.{suffix}")), text.as_bytes())?;
    }
    Ok(())
}

/// Lists the tensors of a checkpoint, and converts them to safetensors on request.
fn inspect(file: &Path, convert: Option<&Path>) -> Result<i32> {
    if let Some(out) = convert {
        check_apart(out, [file.to_path_buf()])?;
    }
    let checkpoint = torch::read(file)?;
    print!("{}", checkpoint.describe());
    if let Some(out) = convert {
        let format = checkpoint.format.to_string();
        let text = BTreeMap::from([("source format".to_string(), format)]);
        write_file(out, &write_safetensors(&checkpoint.arrays()?, &text))?;
        println!("written: {}", out.display());
    }
    Ok(EXIT_GOOD)
}
