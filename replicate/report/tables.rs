//! The paper's two tables with our measurements beside them, and what `check` prints. All
//! verdicts are passed in.

use crate::judge::differences::{COVERAGE, Difference, Gap};
use crate::judge::golden::{Comparison, STATISTICAL, Sample, Score, Status, TIME, plain, seeds, values};
use crate::judge::paper::{Fid, Kind, Row1, Row2};
use crate::measure::metrics::modes::{COLLAPSED, STATES};
use crate::report::notes::budgets;
use crate::report::table::{Cell, Column, Content, Row, Table, Tone};
use crate::report::verdicts::{status_text, status_tone};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What was measured at one scale, and how it was judged.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    pub scale: &'a str,
    pub scores: &'a [Score],
    pub comparisons: &'a [Comparison],
    /// Row and seed of the runs that meet the criterion of collapse because they have not learned.
    pub unlearned: &'a BTreeSet<(String, u64)>,
}

/// Said of a row in place of `collapsed`.
pub(crate) const UNLEARNED: &str = "not learned";

/// Table 1 of the paper with our measurements. The verdict is the worst over all metrics of
/// the cell, also those that have no column.
pub fn table1(rows: &[Row1], measured: Measured) -> Table {
    let (fd, is) = metric_names(measured.scale);
    let columns = [
        Column::new("method", "method", Content::Text),
        Column::new("NFE", "nfe", Content::Number),
        Column::new(fd, "fd", Content::Sample),
        Column::new(is, "is", Content::Sample),
        Column::new("state", "state", Content::Text),
        Column::new("vs golden", "golden", Content::Text),
        Column::new("paper FID", "paper_fid", Content::Paper),
        Column::new("paper IS", "paper_is", Content::Paper),
    ];
    let printed = |x: Option<f64>| x.map_or(Cell::Nothing, |x| Cell::Number(x, 2));
    let cells = rows.iter().map(|row| {
        let ours = match row.kind {
            Kind::Cited => {
                let cited = Cell::Text("cited".to_string(), Tone::Dim);
                [Cell::Nothing, Cell::Nothing, Cell::Nothing, cited]
            }
            Kind::Run => [
                measured.cell(&row.id, "fd", 2),
                measured.cell(&row.id, "is", 2),
                measured.state_cell(&row.id),
                measured.verdict(&row.id),
            ],
        };
        let runs = row.kind == Kind::Run;
        let name = Cell::Text(row.label.clone(), if runs { Tone::Plain } else { Tone::Dim });
        let cells = [name, Cell::Number(row.nfe.into(), 0)].into_iter().chain(ours);
        let cells = cells.chain([printed(row.fid), printed(row.is)]).collect();
        let cell = if runs { row.id.as_str() } else { "" };
        (cell, Row { id: row.id.clone(), section: row.section.clone(), runs, cells })
    });
    let mut table =
        measured.table("Table 1", "Sample quality on CIFAR-10.", columns.to_vec(), cells.collect());
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
    if rows.iter().any(|row| row.kind == Kind::Cited) {
        table.notes.push("cited: printed in the paper from another publication; not run by us.".to_string());
    }
    table
}

/// Table 2 of the paper with our measurements. Its last row is a cell of Table 1.
pub fn table2(rows: &[Row2], measured: Measured) -> Table {
    let columns = [
        Column::new("initialization", "initialization", Content::Text),
        Column::new("dataset", "dataset", Content::Text),
        Column::new(metric_names(measured.scale).0, "fd", Content::Sample),
        Column::new("recall", "recall", Content::Mean),
        Column::new("precision", "precision", Content::Mean),
        Column::new("classes", "classes", Content::Mean),
        Column::new("diversity", "diversity", Content::Mean),
        Column::new("state", "state", Content::Text),
        Column::new("vs golden", "golden", Content::Text),
        Column::new("paper FID", "paper_fid", Content::Paper),
    ];
    let cells = rows.iter().map(|row| {
        let cells = vec![
            Cell::text(&row.initialization),
            row.dataset.as_ref().map_or(Cell::Nothing, Cell::text),
            measured.cell(&row.cell, "fd", 2),
            measured.cell(&row.cell, "recall", 3),
            measured.cell(&row.cell, "precision", 3),
            measured.cell(&row.cell, "classes", 2),
            measured.cell(&row.cell, "diversity", 3),
            measured.state_cell(&row.cell),
            measured.verdict(&row.cell),
            match row.fid {
                Fid::Value(fid) => Cell::Number(fid, 2),
                Fid::Collapsed => Cell::text("collapsed"),
            },
        ];
        (row.cell.as_str(), Row { id: row.id.clone(), runs: true, cells, ..Row::default() })
    });
    let title = "Initialization of the one-step generator.";
    measured.table("Table 2", title, columns.to_vec(), cells.collect())
}

impl Measured<'_> {
    fn of(&self, row: &str, metric: &str) -> BTreeMap<u64, f64> {
        values(self.scores, row, self.scale, metric)
    }

    pub(super) fn cell(&self, row: &str, metric: &str, digits: usize) -> Cell {
        let found = self.of(row, metric);
        match found.is_empty() {
            true => Cell::Nothing,
            false => Cell::Sample(Sample::of(found.into_values()), digits),
        }
    }

    /// `healthy`, `degraded`, `collapsed` or `not learned` on one seed or all, with counts where
    /// the seeds differ; empty where nothing is measured.
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

    pub(super) fn state_cell(&self, row: &str) -> Cell {
        match self.state(row, None) {
            state if state.is_empty() => Cell::Nothing,
            state => {
                let bad = state.contains("collapsed") || state.contains(UNLEARNED);
                Cell::Text(state, if bad { Tone::Bad } else { Tone::Plain })
            }
        }
    }

    /// The worst verdict of the row's metrics, and which are outside.
    pub(super) fn verdict(&self, row: &str) -> Cell {
        let compared = || self.comparisons.iter().filter(|c| c.row == row && c.scale == self.scale);
        let worst = compared().map(|c| c.verdict.status).max().unwrap_or(Status::NotRun);
        let outside = compared().filter(|c| c.verdict.status == Status::Outside);
        let outside: BTreeSet<&str> = outside.map(|c| c.metric.as_str()).collect();
        let mut text = status_text(worst).to_string();
        if !outside.is_empty() {
            write!(text, ": {}", outside.into_iter().collect::<Vec<_>>().join(" ")).unwrap();
        }
        Cell::Text(text, status_tone(worst))
    }

    /// `rows` with the cells that they show; scale and seeds follow, for programs.
    fn table(&self, name: &str, title: &str, mut columns: Vec<Column>, rows: Vec<(&str, Row)>) -> Table {
        columns.push(Column::new("", "scale", Content::Data));
        columns.push(Column::new("", "seeds", Content::Data));
        let cells: Vec<&str> = rows.iter().map(|(cell, _)| *cell).filter(|cell| !cell.is_empty()).collect();
        let with_ends = rows.iter().cloned().map(|(cell, mut row)| {
            let seeds: Vec<String> = match cell {
                "" => Vec::new(),
                cell => self.of(cell, "fd").keys().map(u64::to_string).collect(),
            };
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
        let mut classes: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        let ours = |s: &&Score| s.scale == self.scale && cells.contains(&s.row.as_str());
        for score in self.scores.iter().filter(ours) {
            classes.entry(&score.class).or_default().insert(score.seed);
        }
        let spread = match table.seeds() {
            Some(1) => "",
            Some(_) => "mean ± standard deviation of ",
            None => "mean ± standard deviation (n = number of seeds) of ",
        };
        notes.extend(classes.into_iter().map(|(class, of)| {
            let bits = if class.starts_with(STATISTICAL) { "need not give" } else { "gives" };
            format!("Ours: {spread}{} on {class}, where the same seed {bits} the same bits.", seeds(of))
        }));
        notes
    }
}

/// What the images are, where the paper's words speak of CIFAR.
pub(crate) fn stand_in(scale: &str) -> &'static str {
    match scale {
        "smoke" | "mini" | "drill" => ", on glyphs in place of CIFAR",
        _ => "",
    }
}

/// Only real Inception features make an FID.
pub(crate) fn metric_names(scale: &str) -> (&'static str, &'static str) {
    match scale {
        "smoke" | "mini" | "drill" => ("FD", "IS stand-in"),
        "tiny" => ("FD-tiny", "IS stand-in"),
        _ => ("FID", "IS"),
    }
}

/// What the numbers of a scale are, and what they compare with; one sentence.
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

/// Every row that is run, once, in the tables' order: its cell's name and a short label.
pub fn labels(first: &[Row1], second: &[Row2]) -> Vec<(String, String)> {
    // `EDM` of `EDM (Karras et al., 2022)`.
    let short = |label: &str| match label.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
        Some((name, source)) if source.contains(", ") => name.to_string(),
        _ => label.to_string(),
    };
    let runs = first.iter().filter(|row| row.kind == Kind::Run);
    let mut all: Vec<(String, String)> = runs.map(|row| (row.id.clone(), short(&row.label))).collect();
    for row in second {
        if all.iter().all(|(cell, _)| *cell != row.cell) {
            let alike = second.iter().filter(|other| other.initialization == row.initialization).count();
            let label = row.dataset.as_ref().filter(|_| alike > 1).unwrap_or(&row.initialization);
            all.push((row.cell.clone(), label.clone()));
        }
    }
    all
}

/// `DiJS`, or the name of the cell where no table has it.
pub(crate) fn label<'a>(labels: &'a [(String, String)], cell: &'a str) -> &'a str {
    labels.iter().find(|(known, _)| known == cell).map_or(cell, |(_, label)| label)
}

/// The rows that the claims compare, and how far they lie apart.
pub fn difference_table(differences: &[Difference], labels: &[(String, String)], scale: &str) -> Table {
    let gap = |gap: &Option<Gap>| match gap {
        None => Cell::Nothing,
        Some(gap @ Gap { mean, half, paired }) => {
            let signed = |x: f64| if x < 0.0 { format!("−{}", plain(-x)) } else { plain(x) };
            let interval = half.map_or(String::new(), |h| {
                let welch = if *paired { "" } else { " (Welch)" };
                format!(" [{}, {}]{welch}", signed(mean - h), signed(mean + h))
            });
            let tone = if half.is_none() || gap.tells() { Tone::Plain } else { Tone::Dim };
            Cell::Text(signed(*mean) + &interval, tone)
        }
    };
    let row = |d: &Difference| Row {
        id: format!("{}-{}-{}", d.metric, d.left, d.right),
        cells: vec![
            Cell::text(metric_name(&d.metric, scale)),
            Cell::text(format!("{} − {}", label(labels, &d.left), label(labels, &d.right))),
            gap(&d.golden),
            gap(&d.own),
        ],
        ..Row::default()
    };
    let columns = vec![
        Column::new("metric", "metric", Content::Text),
        Column::new("rows", "rows", Content::Text),
        Column::new("golden's seeds", "golden", Content::Text),
        Column::new("this run", "own", Content::Text),
    ];
    let title = format!(
        "Mean difference of the pairs of one seed with its {:.0} % interval, where both rows have two seeds or \
         more; Welch's where pairs are missing.",
        100.0 * COVERAGE
    );
    let notes = vec![
        "Each interval is for its own pair and not widened for the number of pairs. Pre-training is done once and \
         the seeds repeat what comes after it: the intervals do not cover its chance."
            .to_string(),
    ];
    Table { name: "Differences".into(), title, columns, rows: differences.iter().map(row).collect(), notes }
}

/// A metric as people call it.
pub(super) fn metric_name<'a>(metric: &'a str, scale: &str) -> &'a str {
    match metric {
        "fd" => metric_names(scale).0,
        "is" => metric_names(scale).1,
        "halfway_fd" => match metric_names(scale).0 {
            "FID" => "FID halfway",
            "FD-tiny" => "FD-tiny halfway",
            _ => "FD halfway",
        },
        TIME => "seconds an iteration",
        other => other,
    }
}
