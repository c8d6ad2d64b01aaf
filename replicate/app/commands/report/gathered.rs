//! Stored results of one scale, and the page of a report that they make.

use super::super::{all_goldens, claims, command, scores_of, study_goldens};
use super::{command_of, golden_seeds, say_missing, seeds};
use crate::app::cli::{Place, Which};
use crate::error::{EXIT_INCOMPLETE, Result};
use crate::experiment::run::{Outcome, Runner, SAMPLES, curve};
use crate::experiment::{self, Recipe, Row, Scale, all_rows};
use crate::judge::claims::{BRACKETS, Judgement, ONE_SEED, evaluate_all, family, handful};
use crate::judge::differences::differences;
use crate::judge::golden::{self, Comparison, Golden, OTHER_CODE, Score};
use crate::judge::paper::{self, Claim, Row1, Row2};
use crate::report::curves::Curve;
use crate::report::figures::{Panel, figures, strips, tile, tiles};
use crate::report::notes::{difference_table, label, not_learned, unlearned, verdict};
use crate::report::page::{Missing, Page, Run, Sampled};
use crate::report::studies::Studies;
use crate::report::table::Table;
use crate::report::tables::{Measured, labels, table1, table2};
use crate::report::verdicts::readings_table;
use std::collections::BTreeSet;
use std::path::Path;

/// Stored results of one scale, with their comparisons.
pub(super) struct Gathered {
    pub(super) scale: &'static str,
    pub(super) outcomes: Vec<(Row, u64, Outcome)>,
    pub(super) scores: Vec<Score>,
    /// Curves under the cell's name.
    pub(super) curves: Vec<Curve>,
    pub(super) goldens: Vec<Golden>,
    pub(super) comparisons: Vec<Comparison>,
    pub(super) unlearned: BTreeSet<(String, u64)>,
    pub(super) first: Vec<Row1>,
    pub(super) second: Vec<Row2>,
    /// Every cell in the tables' order.
    pub(super) labels: Vec<(String, String)>,
    /// Every setting of the rows.
    pub(super) settings: Vec<(&'static str, String)>,
    pub(super) studies: Studies,
}

impl Gathered {
    pub(super) fn of(runner: &mut Runner, root: &Path) -> Result<Gathered> {
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

    pub(super) fn table(&self, which: Which) -> Table {
        match which {
            Which::Table1 => table1(&self.first, self.measured()),
            Which::Table2 => table2(&self.second, self.measured()),
        }
    }

    pub(super) fn page(&self, place: &Place, root: &Path) -> Result<Page> {
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
        const TABLES: &str = "table1 table2";
        match self.missing(place).len() {
            0 => {
                let wall = self.outcomes.iter().map(|(.., outcome)| outcome.wall_seconds()).sum();
                golden_seeds(TABLES, place, own, golden, Some(wall))
            }
            rows => Some(Missing {
                what: format!("{rows} of {} rows are missing; all of them", self.labels.len()),
                command: command_of(TABLES, if golden.is_empty() { own } else { golden }, place),
            }),
        }
    }

    /// Makes one panel for each finished cell, from its first seed.
    pub(super) fn panels(&self) -> Result<Vec<Panel>> {
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
        let first = self.first.iter().map(|row| (&row.id, &row.id, row.label.clone()));
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
    pub(super) fn missing(&self, place: &Place) -> Vec<Missing> {
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
    pub(super) fn nothing(&self, place: &Place) -> i32 {
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
            Some(code) => format!("{}{OTHER_CODE}{code}", manifest.determinism),
        },
        wall_seconds: outcome.wall_seconds(),
        images: manifest.images,
        experiment: manifest.experiment.clone(),
        command: command(cell.id, seed, place),
    }
}
