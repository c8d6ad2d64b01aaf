//! Golden values: measurements that were reviewed and accepted, and the comparison of new
//! measurements with them. Except for reading the files, its functions map text to verdicts and
//! text.
//!
//! [`compare`] applies these rules, in this order:
//!
//! 1. A seed of the golden line, in the same determinism class, must give the same number up to a
//!    relative difference of 1e-9, which float64 sums in the order of another CPU can cause. A
//!    larger difference is `Outside`, because the numerics changed. Without other seeds, this
//!    decides.
//! 2. Other seeds, or seeds of another class, are compared by the line's rule:
//!    * `one-of` (categories and parameter counts): every value must occur in the line;
//!    * `interval` (three or more golden seeds): the mean of the m fresh seeds must lie in the
//!      two-sided 95 % prediction interval, |mean_fresh - mean| <= t(n-1, 0.975) s sqrt(1/n + 1/m);
//!    * `fixed` (fewer): the mean must lie within `tolerance` of the golden mean.
//!
//! The interval assumes independent and nearly normal seeds. Of unchanged runs, one in twenty falls
//! outside it.

use crate::error::{Error, Result};
use crate::judge::paper::{Line, read_csv};
use crate::judge::stats::t_quantile;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Name of the metric for time. It depends on the machine's load, so it has no golden values.
pub const TIME: &str = "seconds_per_iteration";

/// Prefix of the classes that do not repeat to the bit; rule 1 does not apply to them.
pub const STATISTICAL: &str = "statistical";

/// Largest relative difference between equal float64 results. The linear algebra of the metrics
/// orders its sums by the CPU; a change of the weights moves a result by much more.
const SAME: f64 = 1e-9;

/// One number that a run measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Id of the cell, from paper/table1.csv (`ours`) or paper/table2.csv (`cell`).
    pub row: String,
    /// Overrides, such as `critic_lr=1e-4+generator_lr=1e-4`; empty for the row itself.
    pub changes: String,
    pub scale: String,
    pub seed: u64,
    pub metric: String,
    pub value: f64,
    /// Determinism class such as `cpu`, within which a seed gives the same bits.
    pub class: String,
    /// Digest of the manifest of the run.
    pub manifest: String,
}

/// Rule for seeds that are not in a golden line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Interval,
    /// Tolerance in the metric's unit.
    Fixed {
        tolerance: f64,
    },
    OneOf,
}

/// One line of golden/table1.csv or golden/table2.csv: every seed's value of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    pub row: String,
    /// As [`Score::changes`].
    pub changes: String,
    pub scale: String,
    pub metric: String,
    pub class: String,
    /// Values by seed; never empty.
    pub values: BTreeMap<u64, f64>,
    pub rule: Rule,
    /// The digest of each seed's manifest.
    pub manifests: BTreeMap<u64, String>,
    /// Date of acceptance, YYYY-MM-DD.
    pub accepted: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The same numbers.
    Same,
    /// Other seeds, within the tolerance.
    Within,
    /// No measurement to compare.
    NotRun,
    /// No golden value to compare with.
    NoGolden,
    /// Changed numerics, or other seeds outside the tolerance.
    Outside,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub status: Status,
    /// Reason with the numbers behind the status.
    pub reason: String,
}

/// The verdict on one metric of one cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub row: String,
    pub scale: String,
    pub metric: String,
    pub class: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

type Key = (String, String, String, String, String);

impl Score {
    fn key(&self) -> Key {
        let Score { row, changes, scale, metric, class, .. } = self.clone();
        (row, changes, scale, metric, class)
    }

    /// Returns the row with its overrides in one word.
    pub fn cell(&self) -> String {
        cell(&self.row, &self.changes)
    }

    /// True if the score belongs to the cell.
    pub fn is(&self, cell: &str) -> bool {
        is(&self.row, &self.changes, cell)
    }
}

/// Joins a row and its overrides in one word: `dijs`, `dijs+critic_steps=2`.
pub fn cell(row: &str, changes: &str) -> String {
    if changes.is_empty() { row.into() } else { format!("{row}+{changes}") }
}

fn is(row: &str, changes: &str, cell: &str) -> bool {
    match cell.strip_prefix(row) {
        Some("") => changes.is_empty(),
        Some(rest) => !changes.is_empty() && rest.strip_prefix('+') == Some(changes),
        None => false,
    }
}

impl Golden {
    fn key(&self) -> Key {
        let Golden { row, changes, scale, metric, class, .. } = self.clone();
        (row, changes, scale, metric, class)
    }

    /// Returns the largest difference between the golden mean and the mean of `m` other seeds; 0
    /// for `one-of`.
    fn allowed(&self, m: usize) -> f64 {
        let gold = Sample::of(self.values.values().copied());
        match self.rule {
            Rule::OneOf => 0.0,
            Rule::Fixed { tolerance } => tolerance,
            Rule::Interval => {
                let (n, m) = (gold.n as f64, m as f64);
                t_quantile(0.975, n - 1.0) * gold.sd.unwrap_or(0.0) * (1.0 / n + 1.0 / m).sqrt()
            }
        }
    }

    /// Returns the smallest accepted value of one more seed, the golden mean, and the largest
    /// accepted value.
    pub fn interval(&self) -> (f64, f64, f64) {
        let mean = Sample::of(self.values.values().copied()).mean;
        let allowed = self.allowed(1);
        (mean - allowed, mean, mean + allowed)
    }
}

/// Converts accepted values to scores.
pub fn accepted(goldens: &[Golden]) -> Vec<Score> {
    let of_line = |golden: &Golden| -> Vec<Score> {
        let score = |(seed, value): (&u64, &f64)| Score {
            row: golden.row.clone(),
            changes: golden.changes.clone(),
            scale: golden.scale.clone(),
            seed: *seed,
            metric: golden.metric.clone(),
            value: *value,
            class: golden.class.clone(),
            manifest: golden.manifests.get(seed).cloned().unwrap_or_default(),
        };
        golden.values.iter().map(score).collect()
    };
    goldens.iter().flat_map(of_line).collect()
}

impl Rule {
    /// Returns the rule of a new line. The tolerances are ours: 25 % of an FD is about twice the
    /// spread between seeds in a pilot at small size; the others are estimates. Narrow them by
    /// hand, or better, add a third seed.
    fn of(metric: &str, values: &BTreeMap<u64, f64>) -> Rule {
        let mean = Sample::of(values.values().copied()).mean.abs();
        match metric {
            "collapse" | "early_collapse" | "critic_parameters" | "generator_parameters" => Rule::OneOf,
            _ if values.len() >= 3 => Rule::Interval,
            "fd" => Rule::Fixed { tolerance: two_digits(0.25 * mean) },
            "kid" => Rule::Fixed { tolerance: two_digits(0.5 * mean) },
            "precision" | "recall" => Rule::Fixed { tolerance: 0.1 },
            _ => Rule::Fixed { tolerance: two_digits(0.1 * mean) },
        }
    }
}

fn two_digits(x: f64) -> f64 {
    format!("{x:.1e}").parse().expect("a float in its own notation")
}

/// Compares the measurements of one metric of one cell with its golden line.
pub fn compare(golden: Option<&Golden>, fresh: &[Score]) -> Verdict {
    let verdict = |status, reason| Verdict { status, reason };
    if fresh.is_empty() {
        return verdict(Status::NotRun, "not run".to_string());
    }
    let Some(golden) = golden else {
        let sample = Sample::of(fresh.iter().map(|s| s.value));
        return verdict(Status::NoGolden, format!("{sample}: nothing accepted to compare with"));
    };
    if let Some(bad) = fresh.iter().find(|s| !s.value.is_finite()) {
        return verdict(Status::Outside, format!("{} (seed {}) is not a finite number", bad.value, bad.seed));
    }

    let bitwise = !golden.class.starts_with(STATISTICAL);
    let known = |s: &&Score| bitwise && s.class == golden.class && golden.values.contains_key(&s.seed);
    let (again, other): (Vec<&Score>, Vec<&Score>) = fresh.iter().partition(known);
    let changed: Vec<String> = again
        .iter()
        .filter(|s| !same(golden.values[&s.seed], s.value))
        .map(|s| {
            let (was, is) = distinct(golden.values[&s.seed], s.value);
            format!("{was} -> {is} (seed {})", s.seed)
        })
        .collect();
    if !changed.is_empty() {
        return verdict(Status::Outside, format!("other numbers: {}", changed.join(", ")));
    }
    if other.is_empty() {
        return verdict(Status::Same, format!("same numbers ({})", seeds(again.iter().map(|s| s.seed))));
    }

    let (status, mut reason) = judge(golden, &other.iter().map(|s| s.value).collect::<Vec<_>>());
    if !again.is_empty() {
        write!(reason, "; same numbers on {}", seeds(again.iter().map(|s| s.seed))).unwrap();
    }
    if let Some(class) = other.iter().map(|s| &s.class).find(|class| **class != golden.class) {
        write!(reason, "; golden is of class {}, this of {class}", golden.class).unwrap();
    }
    verdict(status, reason)
}

/// Applies rule 2.
fn judge(golden: &Golden, fresh: &[f64]) -> (Status, String) {
    let gold = Sample::of(golden.values.values().copied());
    let sample = Sample::of(fresh.iter().copied());
    let allowed = match golden.rule {
        Rule::OneOf => {
            let stranger = fresh.iter().find(|x| !golden.values.values().any(|g| same(*g, **x)));
            let held = list(golden.values.values());
            return match stranger {
                Some(x) => (Status::Outside, format!("{} differs from golden ({held})", plain(*x))),
                None => (Status::Within, format!("{}, as in golden ({held})", list(fresh))),
            };
        }
        Rule::Fixed { .. } | Rule::Interval => golden.allowed(sample.n),
    };
    let difference = sample.mean - gold.mean;
    // As in rule 1: seeds that all agree give an interval of width zero.
    let within = difference.abs() <= allowed.max(SAME * gold.mean.abs());
    let mut digits = decimals(gold.mean);
    while digits < 12 && format!("{:.digits$}", difference.abs()) == format!("{allowed:.digits$}") {
        digits += 1;
    }
    let spread = gold.sd.map_or(String::new(), |sd| format!(" ± {sd:.digits$}"));
    let reason = format!(
        "{:.digits$} vs golden {:.digits$}{spread} (n={}): {difference:+.digits$}, {} {allowed:.digits$}",
        sample.mean,
        gold.mean,
        gold.n,
        if within { "within" } else { "outside" },
    );
    (if within { Status::Within } else { Status::Outside }, reason)
}

/// Returns the line to compare with a measurement of class `class`: that of the same class, or else
/// the one with the most seeds.
pub fn find<'a>(
    goldens: &'a [Golden],
    row: &str,
    scale: &str,
    metric: &str,
    class: &str,
) -> Option<&'a Golden> {
    goldens
        .iter()
        .filter(|g| is(&g.row, &g.changes, row) && g.scale == scale && g.metric == metric)
        .max_by_key(|g| (g.class == class, g.values.len(), std::cmp::Reverse(&g.class)))
}

/// Compares every measurement with its golden line. Golden lines without a measurement are
/// `NotRun`. Times are omitted. The result is sorted by row, scale, metric and class.
pub fn check(goldens: &[Golden], fresh: &[Score]) -> Vec<Comparison> {
    let mut groups: BTreeMap<Key, Vec<Score>> = BTreeMap::new();
    let known = |s: &Score| {
        // Lines accepted before these metrics existed do not have them.
        !ALONG.contains(&s.metric.as_str())
            || find(goldens, &s.cell(), &s.scale, &s.metric, &s.class).is_some()
    };
    for score in fresh.iter().filter(|s| s.metric != TIME && known(s)) {
        groups.entry(score.key()).or_default().push(score.clone());
    }
    for golden in goldens {
        let measured = |s: &Score| {
            (&s.row, &s.changes) == (&golden.row, &golden.changes)
                && s.scale == golden.scale
                && s.metric == golden.metric
        };
        if !fresh.iter().any(measured) {
            groups.entry(golden.key()).or_default();
        }
    }
    let compared = groups.into_iter().map(|((row, changes, scale, metric, class), scores)| {
        let row = cell(&row, &changes);
        let verdict = compare(find(goldens, &row, &scale, &metric, &class), &scores);
        Comparison { row, scale, metric, class, verdict }
    });
    compared.collect()
}

/// Adds `fresh` to the golden values. Returns all lines, sorted, and a text that lists the new and
/// the changed lines. Writes no file.
///
/// A line gets new seeds as long as its old seeds still give the same numbers. If one of them
/// differs, the line is replaced: the remaining old seeds belong to earlier numerics, and the text
/// lists them as dropped. A line with unchanged numbers keeps its date and its reason.
///
/// # Errors
/// `Usage` without a reason; `Run` if a value is not finite, or if one seed was measured twice with
/// different results.
pub fn accept(
    existing: Vec<Golden>,
    fresh: &[Score],
    reason: &str,
    date: &str,
) -> Result<(Vec<Golden>, String)> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(Error::Usage("golden values need a reason: give it with --reason TEXT".to_string()));
    }
    let mut lines: BTreeMap<Key, Golden> = existing.into_iter().map(|g| (g.key(), g)).collect();
    let (mut added, mut rewritten, mut unchanged, mut diff) = (0, 0, 0, String::new());
    for (key, measured) in group(fresh)? {
        let old = lines.get(&key);
        let new = merge(old, &key, &measured, reason, date);
        match old {
            Some(old) if *old == new => {
                unchanged += 1;
                continue;
            }
            Some(_) => rewritten += 1,
            None => added += 1,
        }
        describe(&mut diff, old, &new);
        lines.insert(key, new);
    }
    let heading = format!(
        "golden lines: {rewritten} rewritten, {added} added, {unchanged} unchanged; reason: {reason}\n"
    );
    Ok((lines.into_values().collect(), heading + &diff))
}

/// The value and the manifest, by line, then by seed.
fn group(fresh: &[Score]) -> Result<BTreeMap<Key, BTreeMap<u64, &Score>>> {
    let mut groups: BTreeMap<Key, BTreeMap<u64, &Score>> = BTreeMap::new();
    for score in fresh.iter().filter(|s| s.metric != TIME) {
        let name = || format!("{} of {} (seed {}, {})", score.metric, score.cell(), score.seed, score.class);
        if !score.value.is_finite() {
            return Err(Error::Run(format!("{} is {}: that cannot be golden", name(), score.value)));
        }
        let twice = groups.entry(score.key()).or_default().insert(score.seed, score);
        if let Some(other) = twice.filter(|other| !same(other.value, score.value)) {
            let text = format!("{} was measured twice, as {:?} and {:?}", name(), other.value, score.value);
            return Err(Error::Run(text + ": remove one of the two runs"));
        }
    }
    Ok(groups)
}

fn merge(old: Option<&Golden>, key: &Key, fresh: &BTreeMap<u64, &Score>, reason: &str, date: &str) -> Golden {
    let mut values: BTreeMap<u64, f64> = fresh.iter().map(|(seed, s)| (*seed, s.value)).collect();
    let mut manifests: BTreeMap<u64, String> =
        fresh.iter().map(|(seed, s)| (*seed, s.manifest.clone())).collect();
    if let Some(old) = old.filter(|old| changed_seeds(old, &values).is_empty()) {
        if values.keys().all(|seed| old.values.contains_key(seed)) {
            return old.clone();
        }
        values.extend(&old.values);
        manifests.extend(old.manifests.clone());
    }
    let rule = match (Rule::of(&key.3, &values), old.map(|old| old.rule)) {
        // Keeps a tolerance that a reviewer narrowed by hand.
        (Rule::Fixed { .. }, Some(Rule::Fixed { tolerance })) => Rule::Fixed { tolerance },
        (rule, _) => rule,
    };
    let (row, changes, scale, metric, class) = key.clone();
    let (accepted, reason) = (date.to_string(), reason.to_string());
    Golden { row, changes, scale, metric, class, values, rule, manifests, accepted, reason }
}

fn changed_seeds(old: &Golden, fresh: &BTreeMap<u64, f64>) -> Vec<u64> {
    let changed = |(seed, was): &(&u64, &f64)| fresh.get(seed).is_some_and(|is| !same(**was, *is));
    old.values.iter().filter(changed).map(|(seed, _)| *seed).collect()
}

fn describe(diff: &mut String, old: Option<&Golden>, new: &Golden) {
    let name = format!("{} {} {} [{}]", cell(&new.row, &new.changes), new.scale, new.metric, new.class);
    let now = Sample::of(new.values.values().copied());
    match old {
        None => writeln!(diff, "\n{name}: new, {now}").unwrap(),
        Some(old) => {
            let was = Sample::of(old.values.values().copied());
            writeln!(diff, "\n{name}: {was} -> {now}").unwrap();
            let changed = changed_seeds(old, &new.values);
            if !changed.is_empty() {
                writeln!(diff, "  numerics changed on {}", seeds(changed)).unwrap();
            }
            let dropped = || old.values.keys().filter(|seed| !new.values.contains_key(seed)).copied();
            if dropped().next().is_some() {
                writeln!(diff, "  dropped, not run with the new numerics: {}", seeds(dropped())).unwrap();
            }
            writeln!(diff, "- {}", line(old)).unwrap();
        }
    }
    writeln!(diff, "+ {}", line(new)).unwrap();
}

/// Refuses to write golden values in CI, because a person must review them. `ci` is the value of
/// the environment variable CI.
///
/// # Errors
/// `Usage` if `ci` is set to anything but an empty text or `false`.
pub fn refuse_in_ci(ci: Option<&str>) -> Result<()> {
    match ci {
        None | Some("" | "false") => Ok(()),
        Some(_) => Err(Error::Usage(
            "accept writes golden values and does not run in CI (the variable CI is set): \
             run it where you can look at the diff, and commit the result"
                .to_string(),
        )),
    }
}

/// Interim metrics of a training. They are golden only in lines where they were accepted.
pub const ALONG: [&str; 4] = ["start_recall", "start_classes", "halfway_fd", "early_collapse"];

const SCORES: [&str; 8] = ["row", CHANGES, "scale", "seed", "metric", "value", "class", "manifest"];
const GOLDEN: [&str; 11] = [
    "row",
    "scale",
    CHANGES,
    "metric",
    "class",
    "values",
    "rule",
    "tolerance",
    "manifest",
    "accepted",
    "reason",
];
/// A column that older files lack.
const CHANGES: &str = "changes";

/// Writes a cell's scores.csv. Every float reads back to the same bits.
pub fn write_scores(scores: &[Score]) -> String {
    let rows = scores.iter().map(|s| {
        let (seed, value) = (s.seed.to_string(), format!("{:?}", s.value));
        csv_line(&[&s.row, &s.changes, &s.scale, &seed, &s.metric, &value, &s.class, &s.manifest])
    });
    std::iter::once(csv_line(&SCORES)).chain(rows).map(|row| row + "\n").collect()
}

/// Writes a golden file: one line for each (row, scale, metric, class), sorted by them.
pub fn write_golden(goldens: &[Golden]) -> String {
    let mut sorted: Vec<&Golden> = goldens.iter().collect();
    sorted.sort_by_key(|g| g.key());
    std::iter::once(csv_line(&GOLDEN)).chain(sorted.into_iter().map(line)).map(|row| row + "\n").collect()
}

/// Reads a golden file; a missing file means that nothing was accepted yet.
///
/// # Errors
/// `Malformed` with the line and the expected content.
pub fn read_golden(path: &Path) -> Result<Vec<Golden>> {
    let mut keys = BTreeSet::new();
    let lines = read_csv(path, &present(path, &GOLDEN), "the golden values", "", |line| {
        let values = by_seed(line, "values")?;
        let golden = Golden {
            row: line.field("row").to_string(),
            changes: line.field_if_any(CHANGES).to_string(),
            scale: line.field("scale").to_string(),
            metric: line.field("metric").to_string(),
            class: line.field("class").to_string(),
            rule: rule(line, values.len())?,
            manifests: by_seed(line, "manifest")?,
            values,
            accepted: line.field("accepted").to_string(),
            reason: line.field("reason").to_string(),
        };
        if let Some((seed, _)) = golden.values.iter().find(|(_, value)| !value.is_finite()) {
            return Err(line.wrong("values", &format!("a finite number for seed {seed}")));
        }
        if !golden.manifests.keys().eq(golden.values.keys()) {
            return Err(line.wrong("manifest", "a digest for every seed of `values`"));
        }
        if !keys.insert(golden.key()) {
            return Err(line.wrong("row", "a row, scale, changes, metric and class that no line before has"));
        }
        Ok(golden)
    });
    match lines {
        Err(Error::Missing { .. }) => Ok(Vec::new()),
        // A lock leaves an empty file behind.
        _ if std::fs::metadata(path).is_ok_and(|found| found.len() == 0) => Ok(Vec::new()),
        lines => lines,
    }
}

/// Returns those of `columns` that the file has.
fn present<'a>(path: &Path, columns: &[&'a str]) -> Vec<&'a str> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let old = !text.is_empty()
        && text.lines().next().is_some_and(|header| !header.split(',').any(|c| c == CHANGES));
    columns.iter().copied().filter(|column| !old || *column != CHANGES).collect()
}

/// Reads the rule, which is written out for readers of the file and must fit the number of seeds.
fn rule(line: &Line, n: usize) -> Result<Rule> {
    match (line.field("rule"), line.field("tolerance")) {
        ("one-of", "") => Ok(Rule::OneOf),
        ("interval", "") if n >= 3 => Ok(Rule::Interval),
        ("interval", "") => Err(line.wrong("rule", "`fixed` for fewer than three seeds")),
        ("fixed", _) if n >= 3 => Err(line.wrong("rule", "`interval` for three seeds or more")),
        ("fixed", _) => {
            let tolerance: f64 = line.number("tolerance")?;
            if !(tolerance >= 0.0 && tolerance.is_finite()) {
                return Err(line.wrong("tolerance", "a number that is not negative"));
            }
            Ok(Rule::Fixed { tolerance })
        }
        ("one-of" | "interval", _) => Err(line.wrong("tolerance", "nothing")),
        _ => Err(line.wrong("rule", "`interval`, `fixed` or `one-of`")),
    }
}

fn by_seed<T: std::str::FromStr>(line: &Line, column: &str) -> Result<BTreeMap<u64, T>> {
    let expected = || line.wrong(column, "`seed:value` for every seed, separated by `;`, no seed twice");
    let mut all = BTreeMap::new();
    for pair in line.field(column).split(';') {
        let (seed, value) = pair.split_once(':').ok_or_else(expected)?;
        let value = value.parse().map_err(|_| expected())?;
        if all.insert(seed.parse().map_err(|_| expected())?, value).is_some() {
            return Err(expected());
        }
    }
    Ok(all)
}

fn line(golden: &Golden) -> String {
    let values: Vec<String> = golden.values.iter().map(|(seed, value)| format!("{seed}:{value:?}")).collect();
    let manifests: Vec<String> =
        golden.manifests.iter().map(|(seed, digest)| format!("{seed}:{digest}")).collect();
    let (rule, tolerance) = match golden.rule {
        Rule::Interval => ("interval", String::new()),
        Rule::Fixed { tolerance } => ("fixed", format!("{tolerance:?}")),
        Rule::OneOf => ("one-of", String::new()),
    };
    let Golden { row, changes, scale, metric, class, accepted, reason, .. } = golden;
    let (values, manifests) = (values.join(";"), manifests.join(";"));
    csv_line(&[row, scale, changes, metric, class, &values, rule, &tolerance, &manifests, accepted, reason])
}

/// Formats one CSV record without its line end.
pub(crate) fn csv_line(fields: &[&str]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).expect("writing to memory");
    let bytes = writer.into_inner().expect("writing to memory");
    String::from_utf8(bytes).expect("text in, text out").trim_end_matches('\n').to_string()
}

/// Returns the values by seed of one metric of one cell (`row`, or `row+changes`) over all classes.
/// A seed that was measured in several classes counts once, in the first class by name.
pub fn values(scores: &[Score], row: &str, scale: &str, metric: &str) -> BTreeMap<u64, f64> {
    let mut found: BTreeMap<u64, &Score> = BTreeMap::new();
    for score in scores.iter().filter(|s| s.is(row) && s.scale == scale && s.metric == metric) {
        let first = found.entry(score.seed).or_insert(score);
        if score.class < first.class {
            *first = score;
        }
    }
    found.into_iter().map(|(seed, score)| (seed, score.value)).collect()
}

/// Summary of one quantity over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub n: usize,
    pub mean: f64,
    /// Sample standard deviation (n - 1 in the denominator); `None` for one seed.
    pub sd: Option<f64>,
}

impl Sample {
    /// # Panics
    /// If there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Sample {
        let values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "no values have no mean");
        let n = values.len();
        // The mean of equal values can differ from them in its last bit.
        let equal = values.iter().all(|x| *x == values[0]);
        let mean = if equal { values[0] } else { values.iter().sum::<f64>() / n as f64 };
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        Sample { n, mean, sd: (n > 1).then(|| (squares / (n as f64 - 1.0)).sqrt()) }
    }

    /// Formats `58.41 ± 7.20 (n=3)`.
    pub fn text(&self, digits: usize) -> String {
        match self.sd {
            Some(sd) => format!("{:.digits$} ± {sd:.digits$} (n={})", self.mean, self.n),
            None => format!("{:.digits$} (n=1)", self.mean),
        }
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.text(decimals(self.mean)))
    }
}

fn same(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= SAME * a.abs().max(b.abs())
}

/// Returns the decimals that show at least three digits of `x`, and none of a large whole number.
fn decimals(x: f64) -> usize {
    match x.abs() {
        a if a >= 1000.0 && a.fract() == 0.0 => 0,
        a if a >= 1.0 || a == 0.0 || !a.is_finite() => 2,
        a => (2.0 - a.log10().floor()).clamp(3.0, 12.0) as usize,
    }
}

/// Formats a single number.
pub(crate) fn plain(x: f64) -> String {
    if x.fract() == 0.0 { format!("{x}") } else { format!("{x:.*}", decimals(x)) }
}

/// As [`plain`], with a proper minus sign.
pub(crate) fn signed(x: f64) -> String {
    if x < 0.0 { format!("−{}", plain(-x)) } else { plain(x) }
}

/// Formats two different numbers with enough digits to show that they differ.
fn distinct(a: f64, b: f64) -> (String, String) {
    let shown = |digits: usize| (format!("{a:.digits$}"), format!("{b:.digits$}"));
    (decimals(a)..=17).map(shown).find(|(a, b)| a != b).unwrap_or((format!("{a:?}"), format!("{b:?}")))
}

fn list<'a>(values: impl IntoIterator<Item = &'a f64>) -> String {
    values.into_iter().map(|x| plain(*x)).collect::<Vec<_>>().join(", ")
}

/// Formats `seed 0` or `seeds 0, 1, 2`.
pub(crate) fn seeds(seeds: impl IntoIterator<Item = u64>) -> String {
    let all: Vec<String> = seeds.into_iter().map(|seed| seed.to_string()).collect();
    format!("{} {}", if all.len() == 1 { "seed" } else { "seeds" }, all.join(", "))
}
