//! The paper's two tables with our measurements. All verdicts are passed in.

use crate::experiment::{Recipe, Scale, all_rows, plan};
use crate::judge::golden::{Comparison, OTHER_CODE, STATISTICAL, Score, Status, TIME, values};
use crate::judge::paper::{Fid, Row1, Row2};
use crate::judge::sample::{Sample, seeds};
use crate::measure::metrics::modes::{COLLAPSED, STATES};
use crate::report::table::{Cell, Column, Content, Row, Table, Tone};
use crate::report::verdicts::status_text;
use crate::text::thousands;
use std::collections::{BTreeMap, BTreeSet};

/// Measurements of one scale, with their verdicts.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    pub scale: &'a str,
    pub scores: &'a [Score],
    pub comparisons: &'a [Comparison],
    /// Row and seed of the runs that meet the criterion of collapse because they have not learned.
    pub unlearned: &'a BTreeSet<(String, u64)>,
}

/// State of a row that has not learned, in place of `collapsed`.
pub(crate) const UNLEARNED: &str = "not learned";

/// Metrics with columns, by name, each with its decimals.
pub(super) type Metrics = [(&'static str, usize)];

/// Makes the paper's Table 1 with our measurements. The verdict is the worst over all measured metrics
/// of the cell, including those without a column.
pub fn table1(rows: &[Row1], measured: Measured) -> Table {
    const METRICS: &Metrics = &[("fd", 2), ("is", 2)];
    let name = [Column::new("method", "method", Content::Text), Column::new("NFE", "nfe", Content::Number)];
    let paper = ["FID", "IS"].into_iter().zip(["paper_fid", "paper_is"]);
    let paper = paper.map(|(name, key)| Column::new(format!("paper {name}"), key, Content::Paper));
    let columns = name.into_iter().chain(measured.columns(METRICS)).chain(paper).collect();
    let printed = |x: Option<f64>| x.map_or(Cell::Nothing, |x| Cell::Number(x, 2));
    let cells = rows.iter().map(|row| {
        let mut cells = vec![Cell::text(&row.label), Cell::Number(row.nfe.into(), 0)];
        cells.extend(measured.cells(&row.id, METRICS).chain([printed(row.fid), printed(row.is)]));
        (row.id.as_str(), Row { id: row.id.clone(), section: row.section.clone(), runs: true, cells })
    });
    let mut table = measured.table("Table 1", "Sample quality on CIFAR-10.", columns, cells.collect());
    let done = rows.iter().filter(|row| !measured.of(&row.id, "fd").is_empty()).count();
    table.title += &format!(" Rows measured: {done} of {}.", rows.len());
    table.notes.extend(budgets(rows, measured.scale));
    for (row, target) in rows.iter().filter_map(|row| Some((row, row.target.as_ref()?))) {
        let printed = row.fid.map_or("number".to_string(), |fid| format!("{fid:.2}"));
        let text = match target.fid {
            Some(fid) if row.fid == Some(fid) => format!("the target is the printed {printed}"),
            Some(fid) => format!("the target is {fid:.2}, not the printed {printed}"),
            None => format!("the printed {printed} is no target"),
        };
        table.notes.push(format!("{}: {text}. {}.", row.label, target.source));
    }
    table
}

/// Returns notes on the trained rows whose number of training images differs from the others', and on
/// those that cost much more.
fn budgets(rows: &[Row1], scale: &str) -> Vec<String> {
    let Some(recipe) = Scale::named(scale).map(Recipe::of) else { return Vec::new() };
    let shared = recipe.budget.images;
    let trained = rows.iter().filter_map(|row| {
        let known = all_rows().find(|known| known.id == row.id)?;
        known.method.training.map(|training| (row, known, training))
    });
    let mut notes = Vec::new();
    for (row, known, training) in trained {
        let seen = thousands(recipe.images_of(&known));
        if training.from_scratch.is_some() {
            notes.push(format!(
                "{}: without pre-training; it sees {seen} images, the others {} after a pre-training of {}.",
                row.label,
                thousands(shared),
                thousands(recipe.pretraining.images)
            ));
        }
        if training.at_most.is_some_and(|most| most < shared) {
            notes
                .push(format!("{}: its training ends after {seen} images, as the published one.", row.label));
        }
        if let Some(first) = known.first_stage {
            let label =
                rows.iter().find(|row| row.id == first.row).map_or(first.row, |row| row.label.as_str());
            let (whose, images) = match recipe.has_checkpoint(known.start) {
                true => (format!("the published generator of {label}"), first.published),
                false => (format!("the generator of {label} of the same seed"), shared),
            };
            notes.push(format!(
                "{}: it starts from {whose}, which was trained on {} images, and is trained on {seen} more.",
                row.label,
                thousands(images)
            ));
        }
        if let Some(text) = plan::costly(&recipe, &known) {
            notes.push(format!("{}: {text}.", row.label));
        }
    }
    notes
}

/// Makes the paper's Table 2 with our measurements. Its last row is a cell of Table 1.
pub fn table2(rows: &[Row2], measured: Measured) -> Table {
    const METRICS: &Metrics = &[("fd", 2), ("recall", 3), ("precision", 3), ("classes", 2), ("diversity", 3)];
    let name = ["initialization", "dataset"].map(|name| Column::new(name, name, Content::Text));
    let paper = Column::new("paper FID", "paper_fid", Content::Paper);
    let columns = name.into_iter().chain(measured.columns(METRICS)).chain([paper]).collect();
    let cells = rows.iter().map(|row| {
        let dataset = row.dataset.as_ref().map_or(Cell::Nothing, Cell::text);
        let printed = match row.fid {
            Fid::Value(fid) => Cell::Number(fid, 2),
            Fid::Collapsed => Cell::text("collapsed"),
        };
        let mut cells = vec![Cell::text(&row.initialization), dataset];
        cells.extend(measured.cells(&row.cell, METRICS).chain([printed]));
        (row.cell.as_str(), Row { id: row.id.clone(), runs: true, cells, ..Row::default() })
    });
    measured.table("Table 2", "Initialization of the one-step generator.", columns, cells.collect())
}

impl Measured<'_> {
    fn of(&self, row: &str, metric: &str) -> BTreeMap<u64, f64> {
        values(self.scores, row, self.scale, metric)
    }

    /// Makes the columns of [`Measured::cells`].
    pub(super) fn columns(&self, metrics: &Metrics) -> impl Iterator<Item = Column> {
        let column = |(metric, _): &(&'static str, usize)| {
            let content = if ["fd", "is"].contains(metric) { Content::Sample } else { Content::Mean };
            Column::new(metric_name(metric, self.scale), *metric, content)
        };
        let judged = [("state", "state"), ("vs golden", "golden")];
        let judged = judged.map(|(title, key)| Column::new(title, key, Content::Text));
        metrics.iter().map(column).chain(judged)
    }

    /// Makes the cells of one row: its metrics, its state, and the verdict of golden.
    pub(super) fn cells(&self, row: &str, metrics: &Metrics) -> impl Iterator<Item = Cell> {
        let cell = |(metric, digits): &(&'static str, usize)| match self.of(row, metric) {
            found if found.is_empty() => Cell::Nothing,
            found => Cell::Sample(Sample::of(found.into_values()), *digits),
        };
        metrics.iter().map(cell).chain([self.state_cell(row), self.verdict(row)])
    }

    /// Returns `healthy`, `degraded`, `collapsed` or `not learned` for one seed or all, with counts
    /// if the seeds differ; empty if nothing is measured.
    pub fn state(&self, row: &str, only: Option<u64>) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        let found = self.of(row, "collapse").into_iter();
        for (seed, category) in found.filter(|(seed, _)| only.is_none_or(|only| only == *seed)) {
            let unlearned = category == COLLAPSED && self.unlearned.contains(&(row.to_string(), seed));
            let known = STATES.iter().find(|(_, state)| *state == category);
            let name = if unlearned { UNLEARNED } else { known.map_or("unknown", |(name, _)| name) };
            match counts.iter_mut().find(|(other, _)| *other == name) {
                Some((_, n)) => *n += 1,
                None => counts.push((name, 1)),
            }
        }
        match counts.as_slice() {
            [(name, _)] => name.to_string(),
            several => several.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", "),
        }
    }

    fn state_cell(&self, row: &str) -> Cell {
        match self.state(row, None) {
            state if state.is_empty() => Cell::Nothing,
            state => {
                let bad = state.contains("collapsed") || state.contains(UNLEARNED);
                Cell::Text(state, if bad { Tone::Bad } else { Tone::Plain })
            }
        }
    }

    /// Returns the worst verdict of the metrics that were measured, with the metrics that are outside
    /// and the number of those that were not measured.
    fn verdict(&self, row: &str) -> Cell {
        let compared = self.comparisons.iter().filter(|c| c.row == row && c.scale == self.scale);
        let (lacking, run): (Vec<&Comparison>, Vec<_>) =
            compared.partition(|c| c.verdict.status == Status::NotRun);
        let worst = run.iter().map(|c| c.verdict.status).max().unwrap_or(Status::NotRun);
        let outside = run.iter().filter(|c| c.verdict.status == Status::Outside);
        let outside: BTreeSet<&str> = outside.map(|c| c.metric.as_str()).collect();
        let (text, tone) = status_text(worst);
        let mut text = text.to_string();
        if !outside.is_empty() {
            text += &format!(": {}", outside.into_iter().collect::<Vec<_>>().join(" "));
        }
        if !run.is_empty() && !lacking.is_empty() {
            text += &format!(", {} not run", lacking.len());
        }
        Cell::Text(text, tone)
    }

    /// Makes the table of `rows`, each with the name of its cell. CSV gets columns with the scale and
    /// the seeds.
    fn table(&self, name: &str, title: &str, mut columns: Vec<Column>, rows: Vec<(&str, Row)>) -> Table {
        columns.push(Column::new("", "scale", Content::Data));
        columns.push(Column::new("", "seeds", Content::Data));
        let cells: Vec<&str> = rows.iter().map(|(cell, _)| *cell).collect();
        let with_ends = rows.iter().cloned().map(|(cell, mut row)| {
            let seeds: Vec<String> = self.of(cell, "fd").keys().map(u64::to_string).collect();
            row.cells.extend([Cell::text(self.scale), Cell::text(seeds.join(" "))]);
            row
        });
        let (name, rows) = (name.to_string(), with_ends.collect());
        let title = format!("{title} Ours at scale {}{}.", self.scale, stand_in(self.scale));
        let mut table = Table { name, title, columns, rows, notes: Vec::new() };
        table.notes = self.notes(&table, &cells);
        table
    }

    fn notes(&self, table: &Table, cells: &[&str]) -> Vec<String> {
        let glyphs = !stand_in(self.scale).is_empty();
        let fd = metric_names(self.scale).0;
        let own_features = fd != "FID";
        let has = |key: &str| table.columns.iter().any(|column| column.key == key);
        let shows = |text: &str| {
            let mut texts = table.rows.iter().flat_map(|row| table.texts(row));
            texts.any(|cell| cell.contains(text))
        };
        let explained = [
            (
                glyphs && has("dataset"),
                "dataset: ours is ten digits in place of full CIFAR-10, and invented characters in place of \
                 the classes in CIFAR-100.",
            ),
            (
                fd == "FD",
                "FD: Fréchet distance between features of a small classifier of the same images; it is not \
                 FID, and the two do not compare.",
            ),
            (
                fd == "FD-tiny",
                "FD-tiny: Fréchet distance between features of a small classifier of CIFAR-10 at 16x16 pixels; \
                 it is no FID, and compares with nothing but FD-tiny.",
            ),
            (
                own_features && has("is"),
                "IS stand-in: the same classifier in place of Inception; unreliable, it scores blurred images \
                 above real ones.",
            ),
            (
                has("recall"),
                "precision: fraction of generated images within the k-NN radius of a real image; recall: the \
                 reverse (Kynkäänniemi et al., 2019).",
            ),
            (
                has("classes"),
                "classes: effective number of classes, exp of the entropy of the class histogram.",
            ),
            (has("diversity"), "diversity: mean distance between the features of two generated images."),
            (
                shows(UNLEARNED),
                "not learned: meets the criterion of collapse as an untrained network does; its FD is no lower \
                 than before training, or the scale takes a handful of steps.",
            ),
        ];
        let explained = explained.into_iter().filter(|(shown, _)| *shown).map(|(_, note)| note.to_string());
        let mut notes: Vec<String> = [scale_note(self.scale)].into_iter().chain(explained).collect();
        // The seeds of each class, and the other code that made some of its results.
        let mut classes: BTreeMap<&str, (BTreeSet<u64>, BTreeSet<&str>)> = BTreeMap::new();
        let ours = |s: &&Score| s.scale == self.scale && cells.contains(&s.row.as_str());
        for score in self.scores.iter().filter(ours) {
            let (class, code) = score.class.split_once(OTHER_CODE).unwrap_or((score.class.as_str(), ""));
            let (seeds, codes) = classes.entry(class).or_default();
            seeds.insert(score.seed);
            codes.extend(Some(code).filter(|code| !code.is_empty()));
        }
        let spread = match table.seeds() {
            Some(1) => "",
            Some(_) => "mean ± standard deviation of ",
            None => "mean ± standard deviation (n = number of seeds) of ",
        };
        notes.extend(classes.into_iter().map(|(class, (of, codes))| {
            let bits = if class.starts_with(STATISTICAL) { "need not give" } else { "gives" };
            let mut note =
                format!("Ours: {spread}{} on {class}, where the same seed {bits} the same bits.", seeds(of));
            if !codes.is_empty() {
                let codes = codes.into_iter().collect::<Vec<_>>().join(", ");
                note += &format!(" What other code made ({codes}) compares with golden by intervals.");
            }
            note
        }));
        notes
    }
}

/// Names the images if they are not CIFAR.
pub(crate) fn stand_in(scale: &str) -> &'static str {
    match scale {
        "smoke" | "mini" | "drill" => ", on glyphs in place of CIFAR",
        _ => "",
    }
}

/// Returns the names of the Fréchet distance and of the Inception score. Only the features of
/// Inception-v3 give an FID.
pub(crate) fn metric_names(scale: &str) -> (&'static str, &'static str) {
    match scale {
        "smoke" | "mini" | "drill" => ("FD", "IS stand-in"),
        "tiny" => ("FD-tiny", "IS stand-in"),
        _ => ("FID", "IS"),
    }
}

/// Describes the images, networks and numbers of a scale in one sentence.
pub(crate) fn scale_note(scale: &str) -> String {
    let text = match scale {
        "smoke" => {
            "embedded glyphs and a handful of training steps, to see that everything runs; the numbers say \
                    nothing about the methods."
        }
        "mini" => {
            "embedded glyphs, a small U-Net, minutes on a CPU; the paper's columns are CIFAR-10 at full size \
                   and do not compare."
        }
        "tiny" => {
            "CIFAR-10 averaged to 16x16 pixels, a small U-Net and its own teacher, an evening on a CPU; scores \
                   compare with the test images, and the paper's numbers do not compare."
        }
        "drill" => {
            "glyphs as small CIFAR archives, and networks filled by a formula, to see that the paper scale's \
                    path works; the numbers say nothing about the methods."
        }
        "small" => {
            "CIFAR images, a reduced U-Net and its own teacher; the paper's numbers belong to a larger \
                    network and do not compare."
        }
        "paper" => {
            "CIFAR-10, EDM's network; FID of 50,000 samples against the training images, the mean of three \
                    trials (`fd_min` in the scores is the least, which EDM prints)."
        }
        _ => "a scale of its own; the paper's numbers do not compare.",
    };
    format!("{scale}: {text}")
}

/// Returns the cells of all rows that are run, once each in the tables' order, with short labels.
pub fn labels(first: &[Row1], second: &[Row2]) -> Vec<(String, String)> {
    // `EDM` of `EDM (Karras et al., 2022)`.
    let short = |label: &str| match label.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
        Some((name, source)) if source.contains(", ") => name.to_string(),
        _ => label.to_string(),
    };
    let mut all: Vec<(String, String)> =
        first.iter().map(|row| (row.id.clone(), short(&row.label))).collect();
    for row in second {
        if all.iter().all(|(cell, _)| *cell != row.cell) {
            let alike = second.iter().filter(|other| other.initialization == row.initialization).count();
            let label = row.dataset.as_ref().filter(|_| alike > 1).unwrap_or(&row.initialization);
            all.push((row.cell.clone(), label.clone()));
        }
    }
    all
}

/// Returns the name of a metric for people.
pub(super) fn metric_name<'a>(metric: &'a str, scale: &str) -> &'a str {
    match metric {
        "fd" => metric_names(scale).0,
        "is" => metric_names(scale).1,
        "halfway_fd" => match metric_names(scale).0 {
            "FID" => "FID halfway",
            "FD-tiny" => "FD-tiny halfway",
            _ => "FD halfway",
        },
        "start_classes" => "classes before the training",
        TIME => "seconds an iteration",
        other => other,
    }
}
