//! Studies: they measure the effect of other choices of settings. Each is a line of
//! paper/studies.csv, a product of values, rows and seeds. Each of its cells is an ordinary result,
//! stored under its overrides.

use crate::error::{Error, Result};
use crate::experiment::{Recipe, Row, Scale, all_rows};
use crate::judge::csv::{Line, read_unique};
use crate::settings::Field;
use crate::text::{or, unknown};
use std::collections::BTreeSet;
use std::path::Path;

/// One line of studies.csv.
#[derive(Clone)]
pub struct Study {
    pub id: String,
    pub question: String,
    pub rows: Vec<Row>,
    /// Overridden fields, each with its values.
    pub axes: Vec<(&'static Field, Vec<Value>)>,
    /// Scales for which the study is meant.
    pub scales: Vec<Scale>,
    pub seeds: Vec<u64>,
    /// Metric that answers the question.
    pub answer: String,
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// In the form of `--set`.
    Text(String),
    /// A multiple of the scale's preset: `x2`.
    Times(f64),
    /// A multiple of another field of the cell, `generator_lr*20`, or its value, `generator_start`.
    Of(String, f64),
}

/// Metrics that can answer a study.
const ANSWERS: [&str; 4] = ["fd", "recall", "classes", "halfway_fd"];
const COLUMNS: [&str; 7] = ["id", "question", "rows", "changes", "scales", "seeds", "answer"];

/// Reads studies.csv of `directory`, in file order.
///
/// # Errors
/// `Missing`; `Malformed` with the line and the expected content, also for an unknown setting.
pub fn studies(directory: &Path) -> Result<Vec<Study>> {
    let remedy = "it belongs to the repository: restore it from version control";
    let fields = Recipe::fields();
    read_unique(&directory.join("studies.csv"), &COLUMNS, &["id"], "the studies", remedy, |line| {
        Ok(Study {
            id: line.text("id")?.to_string(),
            question: line.text("question")?.to_string(),
            rows: words(line, "rows", "a row of the tables", |id| all_rows().find(|row| row.id == id))?,
            axes: axes(line, &fields)?,
            scales: words(line, "scales", "a scale", Scale::named)?,
            seeds: words(line, "seeds", "a whole number", |seed| seed.parse().ok())?,
            answer: match line.field("answer") {
                answer if ANSWERS.contains(&answer) => answer.to_string(),
                _ => return Err(line.wrong("answer", &format!("one of {}", or(&ANSWERS)))),
            },
        })
    })
}

fn words<T>(line: &Line, column: &str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let word =
        |word: &str| read(word).ok_or_else(|| line.wrong(column, &format!("{expected} instead of '{word}'")));
    line.text(column)?.split_whitespace().map(word).collect()
}

/// Parses `NAME=VALUE,VALUE NAME=VALUE`.
fn axes(line: &Line, fields: &[&'static Field]) -> Result<Vec<(&'static Field, Vec<Value>)>> {
    let known = |name: &str| fields.iter().find(|field| field.name == name).copied();
    let axis = |word: &str| {
        let (name, values) =
            word.split_once('=').ok_or_else(|| line.wrong("changes", "NAME=VALUE[,VALUE]"))?;
        let Some(field) = known(name) else {
            let hint = unknown("setting", name, fields.iter().map(|field| field.name));
            let hint = hint
                .split(" it is one of")
                .next()
                .unwrap_or_default()
                .trim_end_matches([':', ' '])
                .to_string();
            return Err(
                line.wrong("changes", &format!("settings that `replicate run --help` lists ({hint})"))
            );
        };
        let value = |text: &str| match (text.strip_prefix('x').map(str::parse), text.split_once('*')) {
            (Some(Ok(times)), _) => Ok(Value::Times(times)),
            _ if known(text).is_some() => Ok(Value::Of(text.into(), 1.0)),
            (_, Some((other, times))) => match (known(other), times.parse()) {
                (Some(_), Ok(times)) => Ok(Value::Of(other.into(), times)),
                _ => Err(line.wrong("changes", &format!("NAME*NUMBER instead of '{text}'"))),
            },
            _ => Ok(Value::Text(text.into())),
        };
        Ok((field, values.split(',').map(value).collect::<Result<_>>()?))
    };
    line.text("changes")?.split_whitespace().map(axis).collect()
}

impl Study {
    /// Returns the recipes of every combination of values on top of `base`; the last field varies
    /// fastest.
    ///
    /// # Errors
    /// `Usage` for a scale that the study is not meant for, or for an invalid value.
    pub fn recipes(&self, base: &Recipe) -> Result<Vec<Recipe>> {
        let handful = matches!(base.scale, Scale::Smoke | Scale::Drill);
        if !self.scales.contains(&base.scale) && !handful {
            let scales: Vec<&str> = self.scales.iter().map(|scale| scale.name()).collect();
            return Err(Error::Usage(format!(
                "study {} is not for --scale {}: it is for {}",
                self.id,
                base.scale,
                or(&scales)
            )));
        }
        let mut recipes = vec![base.clone()];
        for (field, values) in &self.axes {
            let each = |recipe: &Recipe, value: &Value| {
                let mut recipe = recipe.clone();
                let text = value.text(field.name, &recipe);
                recipe.set(&format!("{}={text}", field.name)).map_err(|error| self.because(error))?;
                recipe.changes_used_by(&self.rows).map_err(|error| self.because(error))?;
                Ok(recipe)
            };
            let all = recipes.iter().flat_map(|recipe| values.iter().map(move |value| each(recipe, value)));
            recipes = all.collect::<Result<_>>()?;
        }
        let mut seen = BTreeSet::new();
        recipes.retain(|recipe| seen.insert(recipe.sorted_changes()));
        Ok(recipes)
    }

    fn because(&self, error: Error) -> Error {
        Error::Usage(format!("study {}: {error}", self.id))
    }

    /// True if the study has one combination of values: it repeats the scale's experiments under
    /// another reading.
    pub fn is_reading(&self) -> bool {
        self.axes.iter().all(|(_, values)| values.len() == 1)
    }

    /// Formats the fields and values of a cell for people.
    pub fn values(&self, recipe: &Recipe) -> String {
        let value =
            |field: &Field| format!("{} {}", field.name, recipe.value(field.name).unwrap_or_default());
        self.axes.iter().map(|(field, _)| value(field)).collect::<Vec<_>>().join(", ")
    }
}

impl Value {
    /// Returns the value in the form of `--set` in `recipe`.
    fn text(&self, name: &str, recipe: &Recipe) -> String {
        let times = |of: Option<String>, times: f64| {
            let of = of.unwrap_or_default();
            match (of.parse::<u64>(), of.parse::<f64>()) {
                (Ok(whole), _) => format!("{}", (whole as f64 * times).round()),
                // Rounds, so that 20 times 5e-5 is exactly 1e-3.
                (_, Ok(number)) => {
                    format!("{}", format!("{:.12e}", number * times).parse::<f64>().unwrap_or(f64::NAN))
                }
                _ => of,
            }
        };
        match self {
            Value::Text(text) => text.clone(),
            Value::Times(factor) => times(Recipe::of(recipe.scale).value(name), *factor),
            Value::Of(other, factor) => times(recipe.value(other), *factor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &str, rows: &str) -> Result<Vec<Study>> {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{}\nrates,Why?,{rows},\"{changes}\",mini,0 1,fd\n", COLUMNS.join(","));
        std::fs::write(dir.path().join("studies.csv"), text).unwrap();
        studies(dir.path())
    }

    #[test]
    fn a_study_is_a_product_of_values() {
        let changes = "generator_lr=x1,x4 critic_lr=generator_lr*1,generator_lr*20 images=x0.5";
        let study = read(changes, "dijs init-none").unwrap().remove(0);
        let recipes = study.recipes(&Recipe::of(Scale::Mini)).unwrap();
        let changes: Vec<String> = recipes.iter().map(|recipe| recipe.sorted_changes().join(" ")).collect();
        assert_eq!(
            changes,
            [
                "critic_lr=5e-5 images=19200",
                "images=19200",
                "critic_lr=2e-4 generator_lr=2e-4 images=19200",
                "critic_lr=0.004 generator_lr=2e-4 images=19200",
            ]
        );
        assert_eq!((study.rows.len(), study.seeds.len(), study.is_reading()), (2, 2, false));
        assert!(study.recipes(&Recipe::of(Scale::Smoke)).is_ok());
        let error = study.recipes(&Recipe::of(Scale::Small)).err().unwrap().to_string();
        assert!(error.contains("study rates is not for --scale small: it is for mini"), "{error}");
    }

    #[test]
    fn a_study_has_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let line = "rates,Why?,dijs,critic_lr=x1,mini,0,fd\n";
        std::fs::write(dir.path().join("studies.csv"), COLUMNS.join(",") + "\n" + line + line).unwrap();
        let error = studies(dir.path()).err().unwrap().to_string();
        assert!(error.contains("another id than line 2's on line 3, found `rates`"), "{error}");
    }

    #[test]
    fn what_cannot_be_changed_is_one_clear_error() {
        let error = read("critic_rl=1", "dijs").err().unwrap().to_string();
        assert!(error.contains("did you mean 'critic_lr'?") && error.contains("line 2"), "{error}");
        assert!(read("critic_lr=x1", "dijz").err().unwrap().to_string().contains("a row of the tables"));
        let unused = read("critic_lr=1", "edm").unwrap().remove(0);
        let error = unused.recipes(&Recipe::of(Scale::Mini)).err().unwrap().to_string();
        assert!(error.contains("study rates: edm at scale mini does not use critic_lr"), "{error}");
        let high = read("sigma_init=0", "dijs").unwrap().remove(0);
        let error = high.recipes(&Recipe::of(Scale::Mini)).err().unwrap().to_string();
        assert!(error.contains("study rates: cannot set 'sigma_init=0'"), "{error}");
    }
}
