//! The page's sections on how its runs were made: settings that the paper leaves open, and the runs.

use super::{Ids, Page, Run, table_html};
use crate::judge::paper::{Origin, Setting};
use crate::report::table::{Cell, Column, Content, Row, Table};
use crate::text::{duration, thousands};
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Digits of a digest in the table; the whole digest stands with the experiment's text.
const SHORT_DIGEST: usize = 12;

pub(super) fn choices(page: &Page, ids: &mut Ids) -> Option<Markup> {
    let groups = [
        (Origin::Ambiguous, "Ambiguous: the text can be read in more than one way"),
        (Origin::Silent, "Silent: the text says nothing, and we follow the source that is named"),
        (Origin::Ours, "Ours: the text says nothing, and the choice is ours"),
    ];
    let of = |origin| page.choices.iter().filter(move |setting| setting.origin == origin);
    let row = |setting: &Setting, section: &str| {
        let words = |words: &String| Cell::text(format!("“{words}” {}", setting.place));
        let words = setting.paper.as_ref().map_or(Cell::Nothing, words);
        let value = |field: &String| page.settings.iter().find(|(name, _)| name == field);
        let here: Vec<String> =
            setting.fields.iter().filter_map(value).map(|(name, value)| format!("{name} {value}")).collect();
        let texts = [&setting.name, &setting.value, &here.join(", ")].map(Cell::text);
        let cells = [texts.to_vec(), vec![words, Cell::text(&setting.reading)]].concat();
        Row { section: section.to_string(), cells, ..Row::default() }
    };
    let columns = ["setting", "paper scale", "this scale", "the paper's words", "reading"];
    let table = Table {
        name: "Settings".to_string(),
        columns: columns.map(|title| Column::new(title, title, Content::Text)).to_vec(),
        rows: groups.iter().flat_map(|(origin, section)| of(*origin).map(|s| row(s, section))).collect(),
        ..Table::default()
    };
    (!page.choices.is_empty()).then(|| {
        html! {
            p {
                "The settings of the paper scale that its text leaves open, and how we read them; "
                (of(Origin::Stated).count()) " more are stated there and taken as stated. What a run was made with "
                "stands in its experiment, below."
            }
            details.prose {
                summary { (table.rows.len()) " settings" }
                (table_html(&table, "", ids, &mut BTreeSet::new()))
            }
        }
    })
}

pub(super) fn runs(page: &Page, ids: &mut Ids) -> Option<Markup> {
    if page.runs.is_empty() {
        return None;
    }
    let titles = [
        ("run", Content::Text),
        ("date", Content::Text),
        ("images", Content::Number),
        ("wall time", Content::Number),
        ("commit", Content::Text),
        ("determinism", Content::Text),
        ("key", Content::Text),
        ("result", Content::Text),
        ("machine", Content::Text),
    ];
    // A machine that all runs share is named once, below the table.
    let machine = page.runs.iter().all(|run| run.machine == page.runs[0].machine);
    let shown = titles.len() - usize::from(machine);
    let short = |digest: &str| Cell::text(digest.chars().take(SHORT_DIGEST).collect::<String>());
    let commit = |run: &Run| {
        run.commit.chars().take(SHORT_DIGEST).collect::<String>() + if run.dirty { "+" } else { "" }
    };
    let row = |run: &Run| Row {
        cells: [
            Cell::text(format!("{}, seed {}", run.row, run.seed)),
            Cell::text(&run.date),
            Cell::text(thousands(run.images)),
            Cell::text(duration(run.wall_seconds)),
            Cell::text(commit(run)),
            Cell::text(&run.determinism),
            short(&run.key),
            short(&run.result_digest),
            Cell::text(&run.machine),
        ][..shown]
            .to_vec(),
        ..Row::default()
    };
    let notes = [
        "commit: with + where the sources differed from it.",
        "determinism: the class within which the same experiment gives the same bytes.",
        "key: SHA-256 of the experiment's text; result: of what the run made; their first digits.",
    ];
    let table = Table {
        name: "Runs".to_string(),
        columns: titles[..shown].iter().map(|(title, content)| Column::new(*title, "", *content)).collect(),
        rows: page.runs.iter().map(row).collect(),
        notes: notes
            .map(str::to_string)
            .into_iter()
            .chain(machine.then(|| format!("machine: {}.", page.runs[0].machine)))
            .collect(),
        ..Table::default()
    };
    Some(html! {
        (table_html(&table, "", ids, &mut BTreeSet::new()))
        h3 { "How each was made" }
        div.made {
            @for run in &page.runs {
                details.run id=(ids.of(&format!("run-{}-s{}", run.row, run.seed))) {
                    summary { (run.row) ", seed " (run.seed) }
                    p { code { (run.command) } }
                    p { "key " code { (run.key) } " result " code { (run.result_digest) } " commit " code { (run.commit) @if run.dirty { "+" } } }
                    @if !run.licences.is_empty() { p { "made from files under licence: " (run.licences.join(", ")) } }
                    pre { (run.experiment) }
                }
            }
        }
    })
}
