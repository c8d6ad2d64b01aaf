//! `report` and `figures`: stored results as tables, pictures and one page.

mod gathered;

use self::gathered::Gathered;
use super::{flags, presets, reader, render, root, studies, write_file};
use crate::app::cli::{Format, Place, Which};
use crate::error::{EXIT_GOOD, EXIT_INCOMPLETE, Error, Result};
use crate::experiment::Scale;
use crate::experiment::run::Runner;
use crate::judge::golden::{Score, write_scores};
use crate::report::figures::{SHOWN, figures, strips, tile};
use crate::report::page::{ERRATA, Figure, Missing, Page, html};
use crate::report::summary::{json, markdown};
use crate::report::table::Table;
use crate::text::{counted, duration};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

const PAPER: &str = "https://arxiv.org/abs/2502.08005";
/// Address of the published sources; empty if the package has none.
pub(super) const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

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
        let drawn = Scale::named(&scale)?.procedural();
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

/// Returns the command that runs the targets with these seeds.
fn command_of(targets: &str, seeds: &[u64], place: &Place) -> String {
    let seeds = seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    format!("replicate run {targets}{} --seed {seeds}", flags(place))
}

/// Returns the command for golden's seeds that this run of the targets lacks; `None` if it has all.
/// `wall` is the time of this run in seconds.
pub(super) fn golden_seeds(
    targets: &str,
    place: &Place,
    own: &[u64],
    golden: &[u64],
    wall: Option<f64>,
) -> Option<Missing> {
    let lacking = golden.iter().filter(|seed| !own.contains(seed)).count();
    let estimate = |wall: f64| format!(", about {}", duration(wall / own.len() as f64 * lacking as f64));
    (lacking > 0).then(|| Missing {
        what: format!("Golden's seeds on this machine{}", wall.map_or(String::new(), estimate)),
        command: command_of(targets, golden, place),
    })
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

/// Returns the seeds of the scores, in order.
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
