//! `report` and `figures`: stored results as tables, pictures and one page.

use super::{
    all_goldens, claims, command, flags, presets, reader, render, root, scores_of, studies, study_goldens,
    write_file,
};
use crate::app::cli::{Format, Place, Which};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::experiment::run::{Outcome, Runner, SAMPLES, curve};
use crate::experiment::{self, Recipe, Row, Scale, all_rows};
use crate::judge::claims::{BRACKETS, Judgement, ONE_SEED, evaluate_all, family, handful};
use crate::judge::differences::differences;
use crate::judge::golden::{self, Comparison, Golden, Score, write_scores};
use crate::judge::paper::{self, Claim, Kind, Row1, Row2};
use crate::report::curves::Curve;
use crate::report::figures::{Panel, SHOWN, figures, strips, tile, tiles};
use crate::report::notes::{difference_table, label, not_learned, unlearned, verdict};
use crate::report::page::{ERRATA, Figure, Missing, Page, Run, Sampled, html};
use crate::report::studies::Studies;
use crate::report::summary::{json, markdown};
use crate::report::table::Table;
use crate::report::tables::{Measured, labels, table1, table2};
use crate::report::verdicts::readings_table;
use crate::text::{counted, duration};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

const PAPER: &str = "https://arxiv.org/abs/2502.08005";
/// Address of the published sources; empty if the package has none.
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// Prints one table.
pub fn table(which: Which, place: &Place, format: Format, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let mut runner = reader(place, presets(place)?, stop)?;
    let table = build(which, &mut runner, &root)?;
    print!("{}", render(&table, format));
    Ok(EXIT_GOOD)
}

/// Makes one table of the stored results.
pub(super) fn build(which: Which, runner: &mut Runner, root: &Path) -> Result<Table> {
    let gathered = Gathered::of(runner, root)?;
    Ok(gathered.table(which))
}

/// Writes index.html, report.md, results.csv, results.json, both tables and the figures.
pub fn report(place: &Place, output: &Path, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let Some((gathered, mut page)) = gather(place, &root, stop)? else { return Ok(EXIT_INCOMPLETE) };
    std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
    page.links = links(&relative(output, &root).unwrap_or_default());
    let texts = texts(&gathered, &page);
    for (name, text) in &texts {
        write_file(&output.join(name), text.as_bytes())?;
    }
    write_figures(&output.join("figures"), page.figures.iter().chain(&page.strips))?;
    for sentence in &page.verdict {
        println!("{sentence}");
    }
    let names = texts
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.starts_with("table") || name.ends_with(".csv"));
    for name in names.chain(["figures/captions.md"]) {
        println!("{}", output.join(name).display());
    }
    say_missing(&page.missing);
    for other in &page.others {
        println!("also in the store: {}; report it with: {}", other.what, other.command);
    }
    Ok(EXIT_GOOD)
}

/// Prints all results as JSON.
pub fn results(place: &Place, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let Some((gathered, page)) = gather(place, &root, stop)? else { return Ok(EXIT_INCOMPLETE) };
    print!("{}", json(&page, &gathered.scores, &gathered.comparisons));
    Ok(EXIT_GOOD)
}

/// Returns the names and contents of the report's files; `None` if there are no results. `to_root`
/// is the path from their folder to the repository.
pub(super) fn files(
    place: &Place,
    root: &Path,
    to_root: &str,
    stop: &AtomicBool,
) -> Result<Option<Vec<(String, Vec<u8>)>>> {
    let Some((gathered, mut page)) = gather(place, root, stop)? else { return Ok(None) };
    page.links = links(to_root);
    // An archive does not contain the sources.
    page.links.retain(|(_, address)| !address.ends_with("replicate/"));
    let texts = texts(&gathered, &page).into_iter().map(|(name, text)| (name.to_string(), text.into_bytes()));
    let figures = page.figures.iter().chain(&page.strips);
    let figures = figures.map(|figure| (format!("figures/{}.png", figure.id), figure.picture.png.clone()));
    Ok(Some(texts.chain(figures).collect()))
}

/// Reads the stored results and makes their page. Without results, prints a message and returns
/// `None`.
fn gather(place: &Place, root: &Path, stop: &AtomicBool) -> Result<Option<(Gathered, Page)>> {
    let mut runner = reader(place, presets(place)?, stop)?;
    let mut gathered = Gathered::of(&mut runner, root)?;
    if gathered.outcomes.is_empty() {
        gathered.nothing(place);
        return Ok(None);
    }
    gathered.studies = studies::all(&mut runner, root, place)?;
    let real = runner.examples(SHOWN)?.as_ref().and_then(tile);
    let others = others(&mut runner, place)?;
    let page = Page { real, others, ..gathered.page(place, root)? };
    Ok(Some((gathered, page)))
}

/// Lists the results of other scales in the store, with the commands that report them.
fn others(runner: &mut Runner, place: &Place) -> Result<Vec<Missing>> {
    let other = |(scale, rows): (String, BTreeSet<String>)| {
        // Files of CIFAR are of no use where images are drawn.
        let drawn = Scale::ALL.into_iter().find(|known| known.name() == scale)?.procedural();
        let data = place.data.clone().filter(|_| !drawn);
        let flags = flags(&Place { scale: scale.clone(), data, ..place.clone() });
        Some(Missing {
            what: format!("{} of {scale}", counted(rows.len(), "row")),
            command: format!("replicate report{flags} --output report-{scale}"),
        })
    };
    Ok(runner.other_scales()?.into_iter().filter_map(other).collect())
}

/// Makes the report's text files.
fn texts(gathered: &Gathered, page: &Page) -> Vec<(&'static str, String)> {
    let [first, second, ..] = &page.tables[..] else { unreachable!("a report has two tables") };
    let changed = gathered.studies.scores.iter().filter(|score| !score.changes.is_empty());
    let all: Vec<Score> = gathered.scores.iter().chain(changed).cloned().collect();
    vec![
        ("index.html", html(page)),
        ("report.md", markdown(page)),
        ("results.csv", write_scores(&all)),
        ("results.json", json(page, &gathered.scores, &gathered.comparisons)),
        ("table1.csv", first.to_csv()),
        ("table1.md", first.to_markdown()),
        ("table2.csv", second.to_csv()),
        ("table2.md", second.to_markdown()),
    ]
}

fn say_missing(missing: &[Missing]) {
    for missing in missing {
        println!("missing: {}; run it with: {}", missing.what, missing.command);
    }
}

/// Writes the figures and strips only.
pub fn figures_only(place: &Place, output: &Path, stop: &AtomicBool) -> Result<i32> {
    let root = root(place.root.as_deref())?;
    let mut runner = reader(place, presets(place)?, stop)?;
    let gathered = Gathered::of(&mut runner, &root)?;
    if gathered.outcomes.is_empty() {
        return Ok(gathered.nothing(place));
    }
    let panels = gathered.panels()?;
    let (figures, strips) =
        (figures(&panels, &gathered.second, gathered.scale), strips(&panels, gathered.scale));
    write_figures(output, figures.iter().chain(&strips))?;
    for figure in figures.iter().chain(&strips) {
        println!("{}  {}", output.join(format!("{}.png", figure.id)).display(), figure.caption);
    }
    say_missing(&gathered.missing(place));
    Ok(EXIT_GOOD)
}

/// Writes the figures, and removes figures of the earlier report that this one lacks.
fn write_figures<'a>(output: &Path, figures: impl Iterator<Item = &'a Figure>) -> Result<()> {
    std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
    let (list, mut captions) = (output.join("captions.md"), String::new());
    // Removes only files in the earlier report's list, because others belong to the user.
    let earlier = std::fs::read_to_string(&list).unwrap_or_default();
    let ours = |line: &str| {
        let id = line.strip_prefix("- `")?.split_once(".png`:")?.0;
        id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-').then(|| id.to_string())
    };
    let mut stale: BTreeSet<String> = earlier.lines().filter_map(ours).collect();
    for figure in figures {
        write_file(&output.join(format!("{}.png", figure.id)), &figure.picture.png)?;
        captions += &format!("- `{}.png`: {}\n", figure.id, figure.caption);
        stale.remove(&figure.id);
    }
    for path in stale.iter().map(|id| output.join(format!("{id}.png"))).filter(|path| path.exists()) {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    write_file(&list, captions.as_bytes())
}

/// Stored results of one scale, with their comparisons.
struct Gathered {
    scale: &'static str,
    outcomes: Vec<(Row, u64, Outcome)>,
    scores: Vec<Score>,
    /// Curves under the cell's name.
    curves: Vec<Curve>,
    goldens: Vec<Golden>,
    comparisons: Vec<Comparison>,
    unlearned: BTreeSet<(String, u64)>,
    first: Vec<Row1>,
    second: Vec<Row2>,
    /// Every cell in the tables' order.
    labels: Vec<(String, String)>,
    /// Every setting of the rows.
    settings: Vec<(&'static str, String)>,
    studies: Studies,
}

impl Gathered {
    fn of(runner: &mut Runner, root: &Path) -> Result<Gathered> {
        let scale = runner.recipe().scale.name();
        let paper = root.join("paper");
        let (first, second) = (paper::table1(&paper)?, paper::table2(&paper)?);
        let (mut outcomes, mut scores, mut curves) = (Vec::new(), Vec::new(), Vec::new());
        for cell in all_rows() {
            for seed in runner.seeds(&cell)? {
                let Some(outcome) = runner.stored(&cell, seed)? else { continue };
                scores.extend(scores_of(runner, &cell, seed, &outcome)?);
                let points = curve(outcome.training())?;
                if !points.is_empty() {
                    curves.push(Curve { row: cell.id.to_string(), label: String::new(), seed, points });
                }
                outcomes.push((cell, seed, outcome));
            }
        }
        let goldens: Vec<Golden> = all_goldens(root)?.into_iter().filter(|g| g.scale == scale).collect();
        let comparisons = golden::check(&goldens, &scores);
        let unlearned = unlearned(&scores, &curves, scale);
        let labels = labels(&first, &second);
        let used = all_rows().flat_map(|row| runner.recipe().used(&row));
        let settings = used.map(|setting| (setting.field.name, setting.value)).collect();
        Ok(Gathered {
            scale,
            outcomes,
            scores,
            curves,
            goldens,
            comparisons,
            unlearned,
            first,
            second,
            labels,
            settings,
            studies: Studies::default(),
        })
    }

    fn measured(&self) -> Measured<'_> {
        let Gathered { scale, scores, comparisons, unlearned, .. } = self;
        Measured { scale, scores, comparisons, unlearned }
    }

    fn table(&self, which: Which) -> Table {
        match which {
            Which::Table1 => table1(&self.first, self.measured()),
            Which::Table2 => table2(&self.second, self.measured()),
        }
    }

    fn page(&self, place: &Place, root: &Path) -> Result<Page> {
        let (scale, paper) = (self.scale, root.join("paper"));
        let accepted = golden::accepted(&self.goldens);
        let (own, golden) = (seeds(&self.scores), seeds(&accepted));
        let claims = claims(&paper)?;
        let (mut all, mut all_accepted) = (self.scores.clone(), accepted.clone());
        all.extend(self.studies.scores.iter().filter(|score| !score.changes.is_empty()).cloned());
        all_accepted.extend(golden::accepted(&study_goldens(root)?));
        let judged = evaluate_all(&claims, &all, &all_accepted, scale);
        let differences = differences(&claims, &self.scores, &accepted, scale);
        let panels = self.panels()?;
        let one = (own.len() == 1).then(|| ONE_SEED.to_string());
        let brackets = judged.iter().any(|claim| claim.leading().p.is_some()).then(|| BRACKETS.to_string());
        Ok(Page {
            scale: scale.to_string(),
            program: crate::app::cli::VERSION.to_string(),
            verdict: verdict(&judged, &self.comparisons, &own, &golden, scale),
            next: self.next(place, &own, &golden),
            rows: self.rows(&panels)?,
            claims: judged,
            notes: one.into_iter().chain(brackets).chain(not_learned(&self.unlearned, scale)).collect(),
            differences: difference_table(&differences, &self.labels, scale),
            readings: readings(&claims, &all, scale, root)?,
            studies: self.studies.clone(),
            tables: vec![self.table(Which::Table1), self.table(Which::Table2)],
            curves: self.table_curves(),
            figures: figures(&panels, &self.second, scale),
            strips: strips(&panels, scale),
            choices: paper::setup(&paper)?,
            settings: self.settings.clone(),
            runs: self
                .outcomes
                .iter()
                .map(|(cell, seed, outcome)| run(cell, *seed, outcome, place))
                .collect(),
            missing: self.missing(place),
            ..Page::default()
        })
    }

    /// Returns the command for the rows and golden seeds that this run lacks; for seeds alone with an
    /// estimate of its time.
    fn next(&self, place: &Place, own: &[u64], golden: &[u64]) -> Option<Missing> {
        let lacking = golden.iter().filter(|seed| !own.contains(seed)).count();
        let rows = self.missing(place).len();
        let wall: f64 = self.outcomes.iter().map(|(.., outcome)| outcome.wall_seconds()).sum();
        let what = match (rows, lacking) {
            (0, 0) => return None,
            (0, _) => format!(
                "Golden's seeds on this machine, about {}",
                duration(wall / own.len() as f64 * lacking as f64)
            ),
            _ => format!("{rows} of {} rows are missing; all of them", self.labels.len()),
        };
        let seeds: BTreeSet<u64> = own.iter().chain(golden).copied().collect();
        let seeds = seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let command = format!("replicate run table1 table2{} --seed {seeds}", flags(place));
        Some(Missing { what, command })
    }

    /// Makes one panel for each finished cell, from its first seed.
    fn panels(&self) -> Result<Vec<Panel>> {
        let mut panels: Vec<Panel> = Vec::new();
        for (cell, seed, outcome) in &self.outcomes {
            if panels.iter().any(|panel| panel.row == cell.id) {
                continue;
            }
            let of_run = |s: &&Score| s.row == cell.id && s.seed == *seed;
            let metric =
                |name: &str| self.scores.iter().filter(of_run).find(|s| s.metric == name).map(|s| s.value);
            let mut grids = Vec::new();
            let training = outcome.training();
            for name in training.manifest.outputs.keys() {
                let images = name.strip_prefix("grid-").and_then(|rest| rest.strip_suffix(".png"));
                if let Some(images) = images.and_then(|digits| digits.parse().ok()) {
                    grids.extend(tiles(&training.entry.read(name)?).map(|tiles| (images, tiles)));
                }
            }
            panels.push(Panel {
                row: cell.id.to_string(),
                label: label(&self.labels, cell.id).to_string(),
                seed: *seed,
                grids,
                samples: tiles(&outcome.scores.entry.read(SAMPLES)?),
                fd: metric("fd"),
                recall: metric("recall"),
                state: self.measured().state(cell.id, Some(*seed)),
            });
        }
        Ok(panels)
    }

    /// Makes every row of the overview, finished or not.
    fn rows(&self, panels: &[Panel]) -> Result<Vec<Sampled>> {
        let printed = |row: &str| {
            let first = self
                .first
                .iter()
                .find(|other| other.id == row)
                .and_then(|row| row.fid.map(paper::Fid::Value));
            first.or_else(|| self.second.iter().find(|other| other.cell == row).map(|row| row.fid))
        };
        let class = self.scores.first().map_or("cpu", |score| score.class.as_str());
        let row = |(row, label): &(String, String)| Sampled {
            label: label.clone(),
            seeds: golden::values(&self.scores, row, self.scale, "fd").into_iter().collect(),
            golden: golden::find(&self.goldens, row, self.scale, "fd", class).map(Golden::interval),
            paper: printed(row),
            state: self.measured().state(row, None),
            picture: panels
                .iter()
                .find(|panel| panel.row == *row)
                .and_then(|panel| tile(panel.samples.as_ref()?)),
        };
        Ok(self.labels.iter().map(row).collect())
    }

    /// Returns the curves by the tables' rows: a cell in both tables appears twice.
    fn table_curves(&self) -> Vec<Curve> {
        let first = self.first.iter().filter(|row| row.kind == Kind::Run);
        let first = first.map(|row| (&row.id, &row.id, row.label.clone()));
        let second = self.second.iter().map(|row| {
            let dataset = row.dataset.as_ref().map_or(String::new(), |dataset| format!(", {dataset}"));
            (&row.id, &row.cell, row.initialization.clone() + &dataset)
        });
        let of = |(id, cell, label): (&String, &String, String)| -> Vec<Curve> {
            let curves = self.curves.iter().filter(|curve| curve.row == *cell);
            let named = curves.map(|c| Curve {
                row: id.clone(),
                label: label.clone(),
                seed: c.seed,
                points: c.points.clone(),
            });
            named.collect()
        };
        first.chain(second).flat_map(of).collect()
    }

    /// Lists the rows that are missing.
    fn missing(&self, place: &Place) -> Vec<Missing> {
        let lacks = |row: &str| !self.outcomes.iter().any(|(cell, ..)| cell.id == row);
        let table =
            |row: &str| if self.first.iter().any(|other| other.id == row) { "Table 1" } else { "Table 2" };
        let missing = self.labels.iter().filter(|(row, _)| lacks(row)).map(|(row, _)| Missing {
            what: format!("{}, row {row}", table(row)),
            command: command(row, 0, place),
        });
        missing.collect()
    }

    /// Writes no empty report, because it would replace a good one.
    fn nothing(&self, place: &Place) -> i32 {
        say_missing(&self.missing(place));
        println!(
            "nothing is written: no result of --scale {} on --device {} is in {}",
            place.scale,
            place.device,
            place.store.display()
        );
        EXIT_INCOMPLETE
    }
}

/// Judges each claim at every scale, on golden's seeds or else on this run's. At the run's scale it
/// also judges the claim under each reading, which is a study with one value for each field.
fn readings(claims: &[Claim], own: &[Score], here: &str, root: &Path) -> Result<Table> {
    let mut accepted = golden::accepted(&all_goldens(root)?);
    accepted.extend(golden::accepted(&study_goldens(root)?));
    let readings = experiment::studies::studies(&root.join("paper"))?;
    let mut columns: Vec<(String, Vec<Judgement>)> = Vec::new();
    for scale in Scale::ALL.into_iter().filter(|scale| !handful(scale.name())) {
        let name = scale.name();
        let of_scale = |scores: &[Score]| scores.iter().any(|s| s.scale == name);
        let scores = if of_scale(&accepted) || name != here { &accepted } else { own };
        if !of_scale(scores) {
            continue;
        }
        columns.push((name.to_string(), family(claims, scores, name)));
        for reading in readings.iter().filter(|study| study.is_reading()) {
            let Ok([recipe]) =
                <[Recipe; 1]>::try_from(reading.recipes(&Recipe::of(scale)).unwrap_or_default())
            else {
                continue;
            };
            let rows: Vec<&str> = reading.rows.iter().map(|row| row.id).collect();
            let changes = recipe.sorted_changes().join("+");
            if changes.is_empty() {
                continue;
            }
            let under: Vec<Claim> = claims.iter().map(|claim| claim.under(&changes, &rows)).collect();
            // Uses this run's results if nothing was accepted.
            let has = |scores: &[Score]| scores.iter().any(|s| s.scale == name && s.changes == changes);
            let scores = if has(&accepted) || name != here { &accepted } else { own };
            if has(scores) {
                columns.push((format!("{name}, {}", reading.id), family(&under, scores, name)));
            }
        }
    }
    Ok(readings_table(claims, &columns))
}

/// Joins the lists in order.
pub(super) fn seeds(scores: &[Score]) -> Vec<u64> {
    scores.iter().map(|score| score.seed).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns the links of the page: addresses of the published sources, or paths into this checkout
/// that start with `to_root`.
fn links(to_root: &str) -> Vec<(String, String)> {
    let (errata, code) = match REPOSITORY {
        "" => (format!("{to_root}paper/ERRATA.md"), format!("{to_root}replicate/")),
        address => (format!("{address}/blob/HEAD/paper/ERRATA.md"), address.to_string()),
    };
    let named = [("arXiv 2502.08005", PAPER.to_string()), (ERRATA, errata), ("code", code)];
    named.map(|(name, address)| (name.to_string(), address)).to_vec()
}

/// Returns the relative path between two directories, such as `../../`.
fn relative(from: &Path, to: &Path) -> Option<String> {
    let (from, to) = (from.canonicalize().ok()?, to.canonicalize().ok()?);
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(common)).collect();
    Some(path.components().map(|part| part.as_os_str().to_string_lossy() + "/").collect())
}

fn run(cell: &Row, seed: u64, outcome: &Outcome, place: &Place) -> Run {
    let manifest = &outcome.training().manifest;
    Run {
        row: cell.id.to_string(),
        seed,
        key: manifest.key.clone(),
        result_digest: manifest.result_digest(),
        date: manifest.provenance.date.clone(),
        commit: manifest.provenance.commit.clone(),
        dirty: manifest.provenance.dirty,
        machine: manifest.provenance.made_on(),
        licences: manifest.licences.iter().map(|(name, licence)| format!("{name} {licence}")).collect(),
        determinism: match &outcome.other_code {
            None => manifest.determinism.clone(),
            Some(code) => format!("{}, code {code}", manifest.determinism),
        },
        wall_seconds: outcome.wall_seconds(),
        images: manifest.images,
        experiment: manifest.experiment.clone(),
        command: command(cell.id, seed, place),
    }
}
