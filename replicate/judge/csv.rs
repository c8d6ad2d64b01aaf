//! CSV files whose header is fixed, with the place of every error.

use crate::error::{Error, Result, printable, shown};
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

/// One record of a CSV file, with its place for error messages.
pub(crate) struct Line<'a> {
    path: &'a Path,
    number: u64,
    header: &'a [&'a str],
    record: csv::StringRecord,
}

impl Line<'_> {
    /// Returns the field of a column of the header; it may be empty.
    pub(crate) fn field(&self, column: &str) -> &str {
        let i = self.header.iter().position(|name| *name == column).expect("a column of the header");
        &self.record[i]
    }

    /// As [`Line::field`]; empty if the file lacks the column.
    pub(crate) fn field_if_any(&self, column: &str) -> &str {
        if self.header.contains(&column) { self.field(column) } else { "" }
    }

    pub(crate) fn text(&self, column: &str) -> Result<&str> {
        match self.field(column) {
            "" => Err(self.wrong(column, "a text")),
            text => Ok(text),
        }
    }

    /// Returns the field, unless it is empty or a dash.
    pub(super) fn optional(&self, column: &str) -> Option<&str> {
        Some(self.field(column)).filter(|text| !matches!(*text, "" | "-"))
    }

    pub(crate) fn number<T: FromStr>(&self, column: &str) -> Result<T> {
        self.field(column).parse().map_err(|_| self.wrong(column, "a number"))
    }

    pub(super) fn positive(&self, column: &str) -> Result<f64> {
        let number = self.number(column)?;
        let positive = f64::is_finite(number) && number > 0.0;
        if positive { Ok(number) } else { Err(self.wrong(column, "a positive number")) }
    }

    pub(crate) fn wrong(&self, column: &str, expected: &str) -> Error {
        let found = format!("`{}`", shown(self.field(column)));
        malformed(self.path, self.number, &format!("{expected} in column `{column}`"), found)
    }
}

fn malformed(path: &Path, line: u64, expected: &str, found: String) -> Error {
    let remedy = "correct that line, or restore the file";
    Error::malformed(path, format!("{expected} on line {line}"), found, remedy)
}

/// Reads every record of the CSV file at `path`, whose first line must be `header`.
pub(crate) fn read_csv<T>(
    path: &Path,
    header: &[&str],
    what: &str,
    remedy: &str,
    mut parse: impl FnMut(&Line) -> Result<T>,
) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing(path, what, remedy),
        std::io::ErrorKind::InvalidData => malformed(path, 1, "text in UTF-8", "other bytes".into()),
        _ => Error::io("read", path)(e),
    })?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let wrong = |e: csv::Error| malformed(path, e.position().map_or(1, |p| p.line()), "CSV", e.to_string());
    let found: Vec<&str> = reader.headers().map_err(wrong)?.iter().collect();
    if found != header {
        let found = format!("`{}`", shown(&found.join(",")));
        return Err(malformed(path, 1, &format!("the header `{}`", header.join(",")), found));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let number = record.position().map_or(0, |p| p.line());
        if record.len() != header.len() {
            let expected = format!("{} fields", header.len());
            return Err(malformed(path, number, &expected, record.len().to_string()));
        }
        // Rejects control characters, because cells are printed.
        if let Some(cell) = record.iter().find(|cell| printable(cell) != **cell) {
            return Err(malformed(path, number, "text that steers no terminal", shown(cell)));
        }
        rows.push(parse(&Line { path, number, header, record })?);
    }
    Ok(rows)
}

/// As [`read_csv`]; two lines must not agree in all columns of `key`.
pub(crate) fn read_unique<T>(
    path: &Path,
    header: &[&str],
    key: &[&str],
    what: &str,
    remedy: &str,
    parse: impl Fn(&Line) -> Result<T>,
) -> Result<Vec<T>> {
    let mut numbers = BTreeMap::new();
    read_csv(path, header, what, remedy, |line| {
        let fields: Vec<String> = key.iter().map(|column| line.field_if_any(column).to_string()).collect();
        let shown = shown(&fields.join(","));
        if let Some(earlier) = numbers.insert(fields, line.number) {
            let expected = format!("another {} than line {earlier}'s", key.join(", "));
            return Err(malformed(path, line.number, &expected, format!("`{shown}`")));
        }
        parse(line)
    })
}

/// Formats one CSV record without its line end.
pub(crate) fn csv_line(fields: &[&str]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).expect("writing to memory");
    let bytes = writer.into_inner().expect("writing to memory");
    String::from_utf8(bytes).expect("text in, text out").trim_end_matches('\n').to_string()
}
