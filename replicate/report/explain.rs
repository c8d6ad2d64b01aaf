//! Everything that decides a row, as text.

use crate::experiment::{Recipe, Row};
use crate::judge::paper::Setting;

/// The row's method, where it is written down and in which file.
pub fn explain(row: &Row, recipe: &Recipe, _settings: &[Setting]) -> String {
    let method = row.method;
    format!(
        "{} at scale {}: {} ({}), from {}, in {}\n",
        row.id, recipe.scale, method.name, method.cite, row.start, method.file
    )
}
