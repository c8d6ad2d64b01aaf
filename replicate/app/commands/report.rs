//! `report` and `figures`: what the store has, as tables, pictures and one page.

use super::{FULL_ROW, all_goldens, build, reader, recipe, render, root, scores_of, write_file, write_table};
use crate::app::cli::{Format, Place, Which};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::experiment::run::{Outcome, Runner, SAMPLES};
use crate::experiment::{FULL_INITIALIZATION, Row, Scale, TABLE1, TABLE2, all_rows};
use crate::judge::claims::evaluate;
use crate::judge::golden::{Score, write_scores};
use crate::judge::paper;
use crate::measure::metrics::modes::COLLAPSED;
use crate::report::figures::{Panel, figure_ids, figures, strips};
use crate::report::findings::{CollapsedRun, findings, learned};
use crate::report::page::{Curve, Figure, Missing, Page, Point, Run, html, markdown};
use crate::report::table::{table1, table2};
use crate::train::METRICS_FILE;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Prints one table.
pub fn table(which: Which, place: &Place, format: Format, stop: &AtomicBool) -> Result<i32> {
    let mut runner = reader(place, recipe(place, &[], None)?, stop)?;
    let table = build(which, &mut runner, &root(place.root.as_deref())?)?;
    print!("{}", render(&table, format));
    Ok(EXIT_GOOD)
}

/// Writes index.html, report.md, results.csv, both tables and the figures.
pub fn report(place: &Place, output: &Path, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let mut runner = reader(place, recipe(place, &[], None)?, stop)?;
    let gathered = Gathered::of(&mut runner, &root)?;
    let page = gathered.page(&runner, &root)?;
    if gathered.outcomes.is_empty() {
        return Ok(nothing(place, &page.missing));
    }
    std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
    write_file(&output.join("index.html"), html(&page).as_bytes())?;
    write_file(&output.join("report.md"), markdown(&page).as_bytes())?;
    write_file(&output.join("results.csv"), write_scores(&gathered.scores).as_bytes())?;
    for (name, table) in ["table1", "table2"].into_iter().zip(&page.tables) {
        write_table(output, name, table)?;
    }
    write_figures(&output.join("figures"), page.figures.iter().chain(&page.strips))?;
    for name in ["index.html", "report.md", "results.csv", "table1.csv", "table2.csv", "figures/captions.md"]
    {
        println!("{}", output.join(name).display());
    }
    say_missing(&page.missing);
    Ok(EXIT_GOOD)
}

/// An empty report would only stand in the place of a good one.
fn nothing(place: &Place, missing: &[Missing]) -> i32 {
    say_missing(missing);
    println!(
        "nothing is written: no result of --scale {} on --device {} is in {}",
        place.scale,
        place.device,
        place.store.display()
    );
    EXIT_INCOMPLETE
}

fn say_missing(missing: &[Missing]) {
    for missing in missing {
        println!("missing: {}; run it with: {}", missing.what, missing.command);
    }
}

/// Writes the figures and strips alone.
pub fn figures_only(place: &Place, output: &Path, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let mut runner = reader(place, recipe(place, &[], None)?, stop)?;
    let gathered = Gathered::of(&mut runner, &root)?;
    let scale = runner.recipe().scale.name();
    let missing = gathered.missing(scale);
    if gathered.outcomes.is_empty() {
        return Ok(nothing(place, &missing));
    }
    let (figures, strips) = (figures(&gathered.panels, scale), strips(&gathered.panels, scale));
    write_figures(output, figures.iter().chain(&strips))?;
    for figure in figures.iter().chain(&strips) {
        println!("{}  {}", output.join(format!("{}.png", figure.id)).display(), figure.caption);
    }
    say_missing(&missing);
    Ok(EXIT_GOOD)
}

/// Writes the figures, and removes those of an earlier report that this one does not have.
fn write_figures<'a>(output: &Path, figures: impl Iterator<Item = &'a Figure>) -> Result<()> {
    std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
    let (list, mut captions) = (output.join("captions.md"), String::new());
    // What is not in the list of the earlier report is somebody else's, whatever its name.
    let earlier = std::fs::read_to_string(&list).unwrap_or_default();
    let listed = |id: &String| earlier.lines().any(|line| line.starts_with(&format!("- `{id}.png`:")));
    let mut stale: Vec<String> = figure_ids().filter(listed).collect();
    for figure in figures {
        write_file(&output.join(format!("{}.png", figure.id)), &figure.png)?;
        captions += &format!("- `{}.png`: {}\n", figure.id, figure.caption);
        stale.retain(|id| *id != figure.id);
    }
    for path in stale.iter().map(|id| output.join(format!("{id}.png"))).filter(|path| path.exists()) {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    write_file(&list, captions.as_bytes())
}

/// What the store has of one scale.
struct Gathered {
    outcomes: Vec<(Row, u64, Outcome)>,
    scores: Vec<Score>,
    panels: Vec<Panel>,
}

impl Gathered {
    fn of(runner: &mut Runner, root: &Path) -> Result<Gathered> {
        let labels = labels(root)?;
        let mut gathered = Gathered { outcomes: Vec::new(), scores: Vec::new(), panels: Vec::new() };
        for cell in all_rows() {
            for seed in runner.seeds(&cell)? {
                let Some(outcome) = runner.stored(&cell, seed)? else { continue };
                let scores = scores_of(runner, &cell, seed, &outcome)?;
                if !gathered.panels.iter().any(|panel| panel.row == cell.id) {
                    gathered.panels.push(panel(&cell, seed, &labels, &outcome, &scores)?);
                }
                gathered.scores.extend(scores);
                gathered.outcomes.push((cell, seed, outcome));
            }
        }
        Ok(gathered)
    }

    fn page(&self, runner: &Runner, root: &Path) -> Result<Page> {
        let scale = runner.recipe().scale.name();
        let paper = root.join("paper");
        let goldens = all_goldens(root)?;
        let claims: Vec<_> =
            paper::claims(&paper)?.iter().map(|claim| evaluate(claim, &self.scores, scale)).collect();
        let labels = labels(root)?;
        let mut curves = Vec::new();
        for (cell, seed, outcome) in &self.outcomes {
            if outcome.training().manifest.outputs.contains_key(METRICS_FILE) {
                let text = outcome.training().entry.read(METRICS_FILE)?;
                let text = String::from_utf8_lossy(&text);
                // A cell that two tables show has a row in each.
                let rows = [Some(cell.id), (*cell == FULL_INITIALIZATION).then_some(FULL_ROW)];
                for row in rows.into_iter().flatten().map(str::to_string) {
                    let label = labels.get(&row).cloned().unwrap_or_default();
                    curves.push(Curve { row, label, seed: *seed, points: points(&text) });
                }
            }
        }
        let mut findings = findings(&self.scores, &claims, scale);
        if !matches!(runner.recipe().scale, Scale::Smoke | Scale::Drill) {
            findings.extend(learned(&self.collapsed(&curves)));
        }
        Ok(Page {
            scale: scale.to_string(),
            program: crate::app::cli::VERSION.to_string(),
            tables: vec![
                table1(&paper::table1(&paper)?, &self.scores, &goldens, scale),
                table2(&paper::table2(&paper)?, &self.scores, &goldens, scale),
            ],
            findings,
            claims,
            curves,
            figures: figures(&self.panels, scale),
            strips: strips(&self.panels, scale),
            choices: paper::setup(&paper)?,
            runs: self
                .outcomes
                .iter()
                .map(|(cell, seed, outcome)| run(cell, *seed, outcome, scale))
                .collect(),
            missing: self.missing(scale),
        })
    }

    fn collapsed(&self, curves: &[Curve]) -> Vec<CollapsedRun> {
        let runs = self.scores.iter().filter(|s| s.metric == "collapse" && s.value == COLLAPSED);
        let with_ends = runs.filter_map(|score| {
            let curve = curves.iter().find(|curve| curve.row == score.row && curve.seed == score.seed)?;
            let (start, end) = (curve.points.first()?.fd, curve.points.last()?.fd);
            Some(CollapsedRun { row: score.row.clone(), seed: score.seed, fd_start: start, fd_end: end })
        });
        with_ends.collect()
    }

    /// The rows that nobody has run.
    fn missing(&self, scale: &str) -> Vec<Missing> {
        let lacks = |cell: &&Row| !self.outcomes.iter().any(|(there, ..)| there == *cell);
        let mut missing = Vec::new();
        for (name, table) in [("Table 1", &TABLE1[..]), ("Table 2", &TABLE2[..TABLE2.len() - 1])] {
            missing.extend(table.iter().filter(lacks).map(|cell| Missing {
                what: format!("{name}, row {}", cell.id),
                command: command(cell.id, 0, scale),
            }));
        }
        missing
    }
}

fn command(row: &str, seed: u64, scale: &str) -> String {
    format!("replicate run {row} --scale {scale} --seed {seed}")
}

fn run(cell: &Row, seed: u64, outcome: &Outcome, scale: &str) -> Run {
    let manifest = &outcome.training().manifest;
    Run {
        row: cell.id.to_string(),
        seed,
        key: manifest.key.clone(),
        result_digest: manifest.result_digest(),
        date: manifest.provenance.date.clone(),
        commit: manifest.provenance.commit.clone(),
        dirty: manifest.provenance.dirty,
        machine: manifest.provenance.machine.clone(),
        determinism: manifest.determinism.clone(),
        wall_seconds: manifest.provenance.wall_seconds,
        images: manifest.images,
        experiment: manifest.experiment.clone(),
        command: command(cell.id, seed, scale),
    }
}

/// The rows' names as the tables print them.
fn labels(root: &Path) -> Result<BTreeMap<String, String>> {
    let paper = root.join("paper");
    let first = paper::table1(&paper)?.into_iter().map(|row| (row.id, row.label));
    let second = paper::table2(&paper)?.into_iter().map(|row| {
        let dataset = row.dataset.map_or(String::new(), |dataset| format!(", {dataset}"));
        (row.id, format!("{}{dataset}", row.initialization))
    });
    Ok(first.chain(second).collect())
}

fn panel(
    cell: &Row,
    seed: u64,
    labels: &BTreeMap<String, String>,
    outcome: &Outcome,
    scores: &[Score],
) -> Result<Panel> {
    let metric = |name: &str| scores.iter().find(|score| score.metric == name).map(|score| score.value);
    let mut grids = Vec::new();
    for name in outcome.training().manifest.outputs.keys() {
        let images = name.strip_prefix("grid-").and_then(|rest| rest.strip_suffix(".png"));
        if let Some(images) = images.and_then(|digits| digits.parse().ok()) {
            grids.push((images, outcome.training().entry.read(name)?));
        }
    }
    Ok(Panel {
        row: cell.id.to_string(),
        label: labels.get(cell.id).cloned().unwrap_or_else(|| cell.id.to_string()),
        seed,
        grids,
        samples: outcome.scores.entry.read(SAMPLES)?,
        fd: metric("fd"),
        recall: metric("recall"),
        collapsed: metric("collapse") == Some(COLLAPSED),
    })
}

/// The scores along a run, from its metrics.csv; lines without scores are left out.
fn points(csv: &str) -> Vec<Point> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| header.iter().position(|column| *column == name);
    let (Some(images), Some(fd), Some(recall), Some(classes)) =
        (column("images"), column("fd"), column("recall"), column("classes"))
    else {
        return Vec::new();
    };
    let point = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
        Some(Point {
            images: fields.get(images)?.parse().ok()?,
            fd: number(fd)?,
            recall: number(recall)?,
            classes: number(classes)?,
        })
    };
    lines.filter_map(point).collect()
}
