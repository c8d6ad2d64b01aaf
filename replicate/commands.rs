//! What each command does: finds the cells, runs or reads them, prints.

use crate::claims::{ClaimVerdict, evaluate};
use crate::cli::{Against, Cli, Command, Format, Place, Which};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, EXIT_OUTSIDE, Error, Result};
use crate::experiment::{Cell, Data, Recipe, Scale, Start, TABLE1, TABLE2, cells};
use crate::golden::{self, Golden, Score, Status, read_golden, refuse_in_ci, write_golden};
use crate::paper;
use crate::report::{Table, check_json, check_text, table1, table2};
use crate::run::{CLASSIFIER, Runner, SHIPPED, Settings, WEIGHTS, humantime};
use crate::store::{sha256_hex, write_atomically, write_safetensors};
use crate::watch::{Mode, Watch};
use candle_core::Device;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Carries out a command; gives the exit code.
pub fn run(cli: Cli, stop: &AtomicBool) -> Result<i32> {
    match cli.command {
        Command::List { place, ids, json } => list(&place, ids, json, stop),
        Command::Run { targets, place, seed, watch, until, set, from_scratch, output } => {
            let cells = select(&targets)?;
            let recipe = recipe(&place, &set, until)?;
            let mut runner = runner(&place, recipe, watch.unwrap_or_else(Mode::fitting), from_scratch, stop)?;
            if writes_tables(&targets, &runner) {
                // Tried first: it should not fail after the work.
                std::fs::create_dir_all(&output).map_err(Error::io("create", &output))?;
                write_file(&output.join(".writable"), b"")?;
                _ = std::fs::remove_file(output.join(".writable"));
            }
            let mut places = Vec::new();
            for seed in unique(&seed) {
                for cell in &cells {
                    places.push(runner.cell(cell, seed)?.entry.dir().to_path_buf());
                }
            }
            finish_run(&mut runner, &place, &targets, &places, &output)
        }
        Command::Check { targets, place, seed, against, set, json } => {
            check(&targets, &place, &seed, against, &set, json, stop)
        }
        Command::Accept { targets, place, seed, reason } => accept(&targets, &place, &seed, &reason, stop),
        Command::Report { table, place, format } => {
            let mut runner = quiet(&place, stop)?;
            let table = build(table, &mut runner, &root(&place)?)?;
            print!("{}", render(&table, format));
            Ok(EXIT_GOOD)
        }
        Command::Weights { names, place, write } => weights(&names, &place, write, stop),
    }
}

/// The cells that `targets` name, each once.
fn select(targets: &[String]) -> Result<Vec<Cell>> {
    let mut chosen: Vec<Cell> = Vec::new();
    for target in targets {
        let found: Vec<Cell> = match target.as_str() {
            "table1" => TABLE1.to_vec(),
            "table2" => TABLE2.to_vec(),
            "all" => cells().collect(),
            // Table 2's last row is Table 1's DiJS.
            "init-full" => vec![TABLE2[TABLE2.len() - 1]],
            row => cells().filter(|cell| cell.row == row).collect(),
        };
        if found.is_empty() {
            let known = cells().map(|cell| cell.row).chain(["table1", "table2", "all", "init-full"]);
            return Err(Error::Usage(unknown("row", target, known)));
        }
        for cell in found {
            if !chosen.contains(&cell) {
                chosen.push(cell);
            }
        }
    }
    Ok(chosen)
}

/// "unknown row 'dijz': did you mean 'dijs'? (one of …)"
fn unknown<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().max_by(|a, b| strsim::jaro(given, a).total_cmp(&strsim::jaro(given, b)));
    let hint = match nearest {
        Some(&name) if strsim::jaro(given, name) > 0.7 => format!("did you mean '{name}'? "),
        _ => String::new(),
    };
    format!("unknown {what} '{given}': {hint}it is one of {}", known.join(", "))
}

fn recipe(place: &Place, set: &[String], until: Option<u64>) -> Result<Recipe> {
    let scale = Scale::ALL.into_iter().find(|scale| scale.name() == place.scale).ok_or_else(|| {
        Error::Usage(unknown("scale", &place.scale, Scale::ALL.into_iter().map(Scale::name)))
    })?;
    let mut recipe = Recipe::of(scale);
    for change in set {
        recipe.set(change)?;
    }
    if let Some(images) = until {
        recipe.until(images);
    }
    Ok(recipe)
}

fn runner<'a>(
    place: &Place,
    recipe: Recipe,
    mode: Mode,
    from_scratch: bool,
    stop: &'a AtomicBool,
) -> Result<Runner<'a>> {
    let settings = Settings {
        store: place.store.clone(),
        root: root(place)?,
        data: place.data.clone(),
        device: device(&place.device)?,
        from_scratch,
    };
    Runner::new(settings, recipe, Watch::new(mode), stop)
}

/// A runner that only reads.
fn quiet<'a>(place: &Place, stop: &'a AtomicBool) -> Result<Runner<'a>> {
    runner(place, recipe(place, &[], None)?, Mode::Lines, false, stop)
}

/// The directory that holds paper/ and golden/.
fn root(place: &Place) -> Result<PathBuf> {
    let known = |dir: &Path| dir.join("paper/table1.csv").is_file();
    if let Some(root) = &place.root {
        return match known(root) {
            true => Ok(root.clone()),
            false => Err(Error::Missing {
                path: root.join("paper/table1.csv"),
                what: "--root must name a checkout of the repository".into(),
                remedy: "give its directory, or leave --root out".into(),
            }),
        };
    }
    [PathBuf::from("."), PathBuf::from(env!("CARGO_MANIFEST_DIR"))]
        .into_iter()
        .find(|dir| known(dir))
        .ok_or_else(|| Error::Missing {
            path: "paper/table1.csv".into(),
            what: "neither here nor where the program was built".into(),
            remedy: "run it in a checkout of the repository, or name one with --root".into(),
        })
}

fn device(name: &str) -> Result<Device> {
    let bad = || Error::Usage(format!("unknown device '{name}': it is cpu, cuda or cuda:N"));
    let index = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", n)) => n.parse().map_err(|_| bad())?,
        _ => return Err(bad()),
    };
    if !cfg!(feature = "cuda") {
        return Err(Error::Usage(format!(
            "this program was built without CUDA: build the other one with 'cargo build --release --features cudnn' to use {name}"
        )));
    }
    Device::new_cuda(index).map_err(|error| Error::Run(format!("{name} cannot be used: {error}")))
}

fn unique(seeds: &[u64]) -> Vec<u64> {
    let mut seeds = seeds.to_vec();
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}

/// The scores of `cells` that the store has; `seeds` empty means all.
fn stored(runner: &mut Runner, cells: &[Cell], seeds: &[u64]) -> Result<Vec<Score>> {
    let mut scores = Vec::new();
    for cell in cells {
        let seeds = if seeds.is_empty() { runner.seeds(cell)? } else { unique(seeds) };
        for seed in seeds {
            if let Some(outcome) = runner.stored(cell, seed)? {
                scores.extend(runner.scores(&outcome)?);
            }
        }
    }
    Ok(scores)
}

fn golden_path(root: &Path, which: Which) -> PathBuf {
    root.join("golden").join(match which {
        Which::Table1 => "table1.csv",
        Which::Table2 => "table2.csv",
    })
}

fn all_goldens(root: &Path) -> Result<Vec<Golden>> {
    let mut all = read_golden(&golden_path(root, Which::Table1))?;
    all.extend(read_golden(&golden_path(root, Which::Table2))?);
    Ok(all)
}

fn build(which: Which, runner: &mut Runner, root: &Path) -> Result<Table> {
    let scale = runner.recipe().scale.name();
    let goldens = all_goldens(root)?;
    let paper = root.join("paper");
    Ok(match which {
        Which::Table1 => {
            let scores = stored(runner, &TABLE1, &[])?;
            table1(&paper::table1(&paper)?, &scores, &goldens, scale)
        }
        Which::Table2 => {
            let scores = stored(runner, &TABLE2, &[])?;
            table2(&paper::table2(&paper)?, &scores, &goldens, scale)
        }
    })
}

fn render(table: &Table, format: Format) -> String {
    match format {
        Format::Text => table.to_text(std::io::stdout().is_terminal()),
        Format::Md => table.to_markdown(),
        Format::Csv => table.to_csv(),
    }
}

fn tables(targets: &[String]) -> impl Iterator<Item = (Which, &'static str)> {
    let named = [(Which::Table1, "table1"), (Which::Table2, "table2")];
    named.into_iter().filter(|(_, name)| targets.iter().any(|target| target == name || target == "all"))
}

/// A changed experiment is no row of a table.
fn writes_tables(targets: &[String], runner: &Runner) -> bool {
    tables(targets).next().is_some() && runner.recipe().changes.is_empty()
}

/// All of the file or what it held before.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    write_atomically(dir, &path.file_name().unwrap_or_default().to_string_lossy(), bytes)
}

/// Prints the tables that were asked for, and leaves them as files.
fn finish_run(
    runner: &mut Runner,
    place: &Place,
    targets: &[String],
    places: &[PathBuf],
    output: &Path,
) -> Result<i32> {
    let root = root(place)?;
    if !writes_tables(targets, runner) {
        for place in places {
            println!("{}", place.display());
            if let Ok(scores) = golden::read_scores(&place.join(crate::run::SCORES)) {
                for score in scores {
                    println!("  {:20} {:.6}", score.metric, score.value);
                }
            }
        }
        return Ok(EXIT_GOOD);
    }
    for (which, name) in tables(targets) {
        let table = build(which, runner, &root)?;
        for (suffix, text) in [("csv", table.to_csv()), ("md", table.to_markdown())] {
            write_file(&output.join(format!("{name}.{suffix}")), text.as_bytes())?;
        }
        print!("{}", render(&table, Format::Text));
        println!("\nwritten: {0}/{name}.csv and {0}/{name}.md", output.display());
    }
    Ok(EXIT_GOOD)
}

fn list(place: &Place, ids: bool, json: bool, stop: &AtomicBool) -> Result<i32> {
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

fn check(
    targets: &[String],
    place: &Place,
    seeds: &[u64],
    against: Against,
    set: &[String],
    json: bool,
    stop: &AtomicBool,
) -> Result<i32> {
    let cells = select(targets)?;
    let root = root(place)?;
    let mut runner = runner(place, recipe(place, set, None)?, Mode::Lines, false, stop)?;
    let scale = runner.recipe().scale.name();
    let colour = std::io::stdout().is_terminal();
    let scores = stored(&mut runner, &cells, seeds)?;
    match against {
        Against::Golden => {
            let rows: Vec<&str> = cells.iter().map(|cell| cell.row).collect();
            let goldens: Vec<Golden> = all_goldens(&root)?
                .into_iter()
                .filter(|golden| golden.scale == scale && rows.contains(&golden.row.as_str()))
                .collect();
            let comparisons = golden::check(&goldens, &scores);
            print!(
                "{}",
                if json { check_json(&comparisons, &[]) } else { check_text(&comparisons, &[], colour) }
            );
            if comparisons.is_empty() && !json {
                println!(
                    "nothing to compare: neither golden values nor results of these rows at --scale {scale}"
                );
            }
            let any = |status: Status| comparisons.iter().any(|c| c.verdict.status == status);
            Ok(if any(Status::Outside) {
                EXIT_OUTSIDE
            } else if comparisons.is_empty() || any(Status::NotRun) || any(Status::NoGolden) {
                EXIT_INCOMPLETE
            } else {
                EXIT_GOOD
            })
        }
        Against::Claims => {
            let results: Vec<_> = paper::claims(&root.join("paper"))?
                .iter()
                .map(|claim| evaluate(claim, &scores, scale))
                .collect();
            print!("{}", if json { check_json(&[], &results) } else { check_text(&[], &results, colour) });
            if scores.is_empty() {
                return Ok(EXIT_INCOMPLETE);
            }
            let broken = results.iter().any(|result| result.verdict == ClaimVerdict::DoesNotHold);
            Ok(if broken { EXIT_OUTSIDE } else { EXIT_GOOD })
        }
        Against::Paper => against_paper(&root, scale, &cells, &scores, json),
    }
}

/// Share of the printed number within which a FID agrees with the paper: wide,
/// because the paper gives neither training length nor noise of its numbers.
const PAPER_TOLERANCE: f64 = 0.25;

fn against_paper(root: &Path, scale: &str, cells: &[Cell], scores: &[Score], json: bool) -> Result<i32> {
    let comparable = scale == Scale::Paper.name();
    let mut outside = false;
    let mut missing = false;
    let mut lines = Vec::new();
    for row in paper::table1(&root.join("paper"))? {
        if !cells.iter().any(|cell| cell.row == row.id) {
            continue;
        }
        let values = golden::values(scores, &row.id, scale, "fd");
        if values.is_empty() {
            missing = true;
            lines.push((row.id, row.fid, "-".to_string(), "not run".to_string()));
            continue;
        }
        let sample = golden::Sample::of(values.into_values());
        let verdict = if !comparable {
            format!("not comparable: at --scale {scale} other images and other features are measured")
        } else if (sample.mean - row.fid).abs() <= PAPER_TOLERANCE * row.fid {
            "agrees".to_string()
        } else {
            outside = true;
            format!("differs by more than {:.0} %", PAPER_TOLERANCE * 100.0)
        };
        lines.push((row.id, row.fid, sample.text(2), verdict));
    }
    if json {
        let objects: Vec<_> = lines
            .iter()
            .map(|(row, paper, ours, verdict)| {
                serde_json::json!({ "row": row, "paper_fid": paper, "ours": ours, "verdict": verdict })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&objects).expect("strings and numbers"));
    } else {
        for (row, paper, ours, verdict) in lines {
            println!("{row:14} paper {paper:5.2}  ours {ours:18} {verdict}");
        }
    }
    Ok(if outside {
        EXIT_OUTSIDE
    } else if missing {
        EXIT_INCOMPLETE
    } else {
        EXIT_GOOD
    })
}

fn accept(targets: &[String], place: &Place, seeds: &[u64], reason: &str, stop: &AtomicBool) -> Result<i32> {
    refuse_in_ci(std::env::var("CI").ok().as_deref())?;
    let cells = select(targets)?;
    let root = root(place)?;
    let mut runner = quiet(place, stop)?;
    let scores = stored(&mut runner, &cells, seeds)?;
    if scores.is_empty() {
        return Err(Error::Usage("there is nothing to accept: run these cells first".into()));
    }
    let date = humantime(std::time::SystemTime::now());
    for which in [Which::Table1, Which::Table2] {
        let first = |row: &str| TABLE1.iter().any(|cell| cell.row == row);
        let ours: Vec<Score> =
            scores.iter().filter(|score| first(&score.row) == (which == Which::Table1)).cloned().collect();
        if ours.is_empty() {
            continue;
        }
        let path = golden_path(&root, which);
        let (goldens, diff) = golden::accept(read_golden(&path)?, &ours, reason, &date[..10])?;
        write_file(&path, write_golden(&goldens).as_bytes())?;
        println!("{}\n{diff}", path.display());
    }
    Ok(EXIT_GOOD)
}

fn weights(names: &[String], place: &Place, write: bool, stop: &AtomicBool) -> Result<i32> {
    if write {
        refuse_in_ci(std::env::var("CI").ok().as_deref())?;
    }
    let root = root(place)?;
    let mut runner = runner(place, recipe(place, &[], None)?, Mode::fitting(), true, stop)?;
    let starts = [
        Start::MultiLevel(Data::Target),
        Start::SingleLevel,
        Start::MultiLevel(Data::Sources(10)),
        Start::MultiLevel(Data::Sources(50)),
        Start::MultiLevel(Data::Sources(90)),
    ];
    let list = root.join(SHIPPED).join("SHA256SUMS");
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    let mut sums: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, file)| (file.trim_end_matches(".safetensors").to_string(), sum.to_string()))
        .collect();
    let known: BTreeMap<String, Option<Start>> = starts
        .into_iter()
        .map(|start| (format!("{}-{start}", runner.recipe().scale), Some(start)))
        .chain([(CLASSIFIER.to_string(), None)])
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
            Some(start) => runner.pretrained(*start, true)?.expect("made where it was missing"),
            None => runner.features(true)?.expect("made where it was missing").clone(),
        };
        let ships = sums.get(&name).cloned();
        same &= write || ships.as_ref() == Some(&digest);
        match &ships {
            Some(ships) if *ships == digest => println!("{name}: the same bytes as ship, SHA-256 {digest}"),
            Some(ships) => println!("{name}: SHA-256 {digest}, what ships has {ships}"),
            None => println!("{name}: SHA-256 {digest}, nothing of the name ships"),
        }
        if start.is_none() {
            println!(
                "{name}: {:.1} % of held-out images classified right",
                runner.classifier_accuracy()? * 100.0
            );
        }
        if write {
            let bytes = write_safetensors(&arrays, &BTreeMap::new());
            debug_assert_eq!(sha256_hex(&bytes), digest);
            let path =
                root.join(SHIPPED).join(&name).with_extension(WEIGHTS.rsplit('.').next().unwrap_or_default());
            write_file(&path, &bytes)?;
            sums.insert(name, digest);
        }
    }
    if write {
        let text: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}.safetensors\n")).collect();
        write_file(&list, text.as_bytes())?;
    }
    Ok(if same { EXIT_GOOD } else { EXIT_OUTSIDE })
}
