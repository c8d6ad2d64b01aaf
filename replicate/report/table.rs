//! A table with three printers: text for a terminal, Markdown and CSV. The page prints the same table
//! as HTML. Verdicts are passed in as text.

use crate::judge::csv::csv_line;
use crate::judge::sample::Sample;
use std::fmt::Write;

/// A table of results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Name such as `Table 1`.
    pub name: String,
    /// One sentence.
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    /// Sentences that explain the numbers.
    pub notes: Vec<String>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Heading.
    pub title: String,
    /// Name in CSV.
    pub key: &'static str,
    pub content: Content,
}

/// Kind of a column's cells, which decides how they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Aligned left.
    Text,
    /// Aligned right.
    Number,
    /// A number of the paper, in another style than the measurements.
    Paper,
    /// `mean ± sd`; three columns in CSV.
    Sample,
    /// As `Sample`, but only CSV has the deviation, so that a wide table stays legible.
    Mean,
    /// Only in CSV.
    Data,
}

/// A row of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub id: String,
    /// Heading above the row; empty for none.
    pub section: String,
    /// True if the program can run the row by its id.
    pub runs: bool,
    /// One cell for each column.
    pub cells: Vec<Cell>,
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Text(String, Tone),
    /// A number with its decimals outside of CSV.
    Number(f64, usize),
    /// A sample with its decimals outside of CSV.
    Sample(Sample, usize),
    /// An empty cell.
    Nothing,
}

/// Colour of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Dim,
    Good,
    Bad,
    Open,
}

impl Tone {
    pub(crate) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Tone::Plain => "",
            Tone::Dim => "\x1b[2m",
            Tone::Good => "\x1b[32m",
            Tone::Bad => "\x1b[31m",
            Tone::Open => "\x1b[33m",
        };
        if colour && !code.is_empty() { format!("{code}{text}\x1b[0m") } else { text.to_string() }
    }

    /// Returns the class in page.css.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Tone::Plain => "",
            Tone::Dim => "dim",
            Tone::Good => "good",
            Tone::Bad => "bad",
            Tone::Open => "open",
        }
    }
}

impl Cell {
    /// Makes a cell of plain text.
    pub fn text(text: impl Into<String>) -> Cell {
        Cell::Text(text.into(), Tone::Plain)
    }

    /// Formats the cell for people. `counted` adds a sample's `n`, for rows with different numbers of
    /// seeds.
    pub(crate) fn shown(&self, content: Content, counted: bool) -> String {
        match self {
            Cell::Text(text, _) => text.clone(),
            Cell::Number(x, digits) => format!("{x:.digits$}"),
            Cell::Sample(sample, digits) if content == Content::Mean => format!("{:.digits$}", sample.mean),
            Cell::Sample(sample, digits) if counted => sample.text(*digits),
            Cell::Sample(Sample { mean, sd: Some(sd), .. }, digits) => {
                format!("{mean:.digits$} ± {sd:.digits$}")
            }
            Cell::Sample(sample, digits) => format!("{:.digits$}", sample.mean),
            Cell::Nothing => "-".to_string(),
        }
    }

    pub(crate) fn tone(&self, content: Content) -> Tone {
        match self {
            Cell::Text(_, tone) if *tone != Tone::Plain => *tone,
            _ if content == Content::Paper => Tone::Dim,
            _ => Tone::Plain,
        }
    }

    /// Formats the cell for CSV: samples with full precision, the paper's numbers as printed.
    fn csv(&self, content: Content) -> Vec<String> {
        match (content, self) {
            (Content::Sample | Content::Mean, Cell::Sample(sample, _)) => {
                let sd = sample.sd.map_or(String::new(), |sd| format!("{sd:?}"));
                vec![format!("{:?}", sample.mean), sd, sample.n.to_string()]
            }
            (Content::Sample | Content::Mean, _) => vec![String::new(); 3],
            (_, Cell::Nothing) => vec![String::new()],
            (_, cell) => vec![cell.shown(content, true)],
        }
    }
}

impl Column {
    /// Makes a column; `key` is its name in CSV.
    pub fn new(title: impl Into<String>, key: &'static str, content: Content) -> Column {
        Column { title: title.into(), key, content }
    }

    pub(crate) fn right(&self) -> bool {
        matches!(self.content, Content::Number | Content::Paper | Content::Mean)
    }
}

impl Table {
    /// Returns the number of seeds if it is the same for every sample.
    pub fn seeds(&self) -> Option<usize> {
        let mut all = self.rows.iter().flat_map(|row| &row.cells).filter_map(|cell| match cell {
            Cell::Sample(sample, _) => Some(sample.n),
            _ => None,
        });
        let first = all.next()?;
        all.all(|n| n == first).then_some(first)
    }

    /// Returns the indices of the columns that are not only in CSV.
    pub(crate) fn visible(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|i| self.columns[*i].content != Content::Data).collect()
    }

    /// Groups the rows by heading.
    pub(crate) fn sections(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|a, b| a.section == b.section)
    }

    /// Formats the visible cells of `row`.
    pub(crate) fn texts(&self, row: &Row) -> Vec<String> {
        let counted = self.seeds().is_none();
        self.visible().into_iter().map(|i| row.cells[i].shown(self.columns[i].content, counted)).collect()
    }

    /// Formats one row as one line.
    pub fn line(&self, id: &str) -> Option<String> {
        let row = self.rows.iter().find(|row| row.id == id)?;
        let cells = self.visible().into_iter().zip(self.texts(row)).filter(|(_, text)| text != "-");
        let named = cells.map(|(i, text)| match i {
            0 => text,
            _ => format!("{} {text}", self.columns[i].title),
        });
        Some(format!("{}: {}", self.name, named.collect::<Vec<_>>().join(", ")))
    }

    /// Prints for a terminal, with columns as wide as their content.
    pub fn to_text(&self, colour: bool) -> String {
        let columns: Vec<&Column> = self.visible().into_iter().map(|i| &self.columns[i]).collect();
        let mut widths: Vec<usize> = columns.iter().map(|c| c.title.chars().count()).collect();
        for row in &self.rows {
            for (width, text) in widths.iter_mut().zip(self.texts(row)) {
                *width = text.chars().count().max(*width);
            }
        }
        let indent = if self.rows.iter().any(|row| !row.section.is_empty()) { "  " } else { "" };
        let line = |texts: Vec<String>, tone: &dyn Fn(usize) -> Tone| {
            let padded = texts.iter().enumerate().map(|(i, text)| {
                let space = " ".repeat(widths[i] - text.chars().count());
                let text = tone(i).paint(text, colour);
                if columns[i].right() { space + &text } else { text + &space }
            });
            format!("{indent}{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        let heading = self.heading();
        let mut out = if heading.is_empty() { heading } else { heading + "\n\n" };
        out += &line(columns.iter().map(|c| c.title.clone()).collect(), &|_| Tone::Plain);
        out += &line(widths.iter().map(|w| "-".repeat(*w)).collect(), &|_| Tone::Plain);
        let visible = self.visible();
        for rows in self.sections() {
            if !rows[0].section.is_empty() {
                writeln!(out, "{}", rows[0].section).unwrap();
            }
            for row in rows {
                let tone = |i: usize| row.cells[visible[i]].tone(columns[i].content);
                out += &line(self.texts(row), &tone);
            }
        }
        if !self.notes.is_empty() {
            out.push('\n');
        }
        for note in &self.notes {
            writeln!(out, "{note}").unwrap();
        }
        out
    }

    /// Returns the heading, such as `Table 1. Sample quality …`.
    fn heading(&self) -> String {
        let there = [&self.name, &self.title].into_iter().filter(|text| !text.is_empty());
        there.map(String::as_str).collect::<Vec<_>>().join(". ")
    }

    /// Prints as GitHub's Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let columns: Vec<&Column> = self.visible().into_iter().map(|i| &self.columns[i]).collect();
        let heading = self.heading();
        let mut out = if heading.is_empty() { heading } else { format!("**{}**\n\n", plain(&heading)) };
        out += &line(columns.iter().map(|c| plain(&c.title)).collect());
        out += &line(columns.iter().map(|c| if c.right() { "---:" } else { "---" }.to_string()).collect());
        for rows in self.sections() {
            if !rows[0].section.is_empty() {
                let mut heading = vec![String::new(); columns.len()];
                heading[0] = format!("**{}**", plain(&rows[0].section));
                out += &line(heading);
            }
            for row in rows {
                out += &line(self.texts(row).iter().map(|text| plain(text)).collect());
            }
        }
        if !self.notes.is_empty() {
            out.push('\n');
        }
        for note in &self.notes {
            writeln!(out, "- {}", plain(note)).unwrap();
        }
        out
    }

    /// Prints as CSV, without the notes. Our numbers have full precision; a sample takes three
    /// columns: its mean, `_sd` and `_n`. A missing number is empty.
    pub fn to_csv(&self) -> String {
        let mut header = vec!["id".to_string(), "section".to_string()];
        for column in &self.columns {
            header.push(column.key.to_string());
            if matches!(column.content, Content::Sample | Content::Mean) {
                header.extend([format!("{}_sd", column.key), format!("{}_n", column.key)]);
            }
        }
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter().zip(&self.columns);
            let cells = cells.flat_map(|(cell, column)| cell.csv(column.content));
            [row.id.clone(), row.section.clone()].into_iter().chain(cells).collect()
        });
        let line = |fields: Vec<String>| {
            let fields: Vec<String> = fields.into_iter().map(inert).collect();
            csv_line(&fields.iter().map(String::as_str).collect::<Vec<_>>()) + "\n"
        };
        std::iter::once(header).chain(rows).map(line).collect()
    }
}

/// Quotes a cell that a spreadsheet would take for a formula.
fn inert(cell: String) -> String {
    let begins = cell.starts_with(['=', '@']);
    let signed = cell.starts_with(['+', '-']) && cell.contains(['(', '|', '!', '&']);
    if begins || signed { format!("'{cell}") } else { cell }
}

/// Escapes text for Markdown, on one line.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '&' | '$' | '#' => {
                out.extend(['\\', c])
            }
            '\n' | '\r' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_no_label_is_markup() {
        for cell in ["=HYPERLINK(\"http://x\")", "@SUM(A1)", "+cmd|' /C calc'!A0", "-1+cmd|'x'!A0"] {
            assert_eq!(inert(cell.into()), format!("'{cell}"));
        }
        for cell in ["-1.5", "+2", "-", "DiJS (ours)", "1e-9", ""] {
            assert_eq!(inert(cell.into()), cell);
        }
        let label = "<img src=x> [a](http://x) *b* | c\n# d";
        assert_eq!(plain(label), r"\<img src=x\> \[a\](http://x) \*b\* \| c \# d");
    }
}
