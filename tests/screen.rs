//! The page as a browser shows it: what the first screen holds, on a desk and on a phone.
//! Needs Chromium; without it the test says that it did not run.

use replicate::data::Images;
use replicate::data::grid::png_grid;
use replicate::judge::claims::{ClaimResult, ClaimVerdict, Judgement};
use replicate::judge::paper::Fid;
use replicate::judge::sample::Sample;
use replicate::report::page::{Missing, Page, Picture, Sampled, html};
use replicate::report::table::{Cell, Column, Content, Row, Table, Tone};
use std::path::{Path, PathBuf};
use std::process::Command;

fn picture(row: usize) -> Picture {
    let pixels = (0..8 * 3 * 256).map(|i| (i * (row + 3) % 251) as u8).collect();
    Picture::of(png_grid(&Images { channels: 3, size: 16, pixels, labels: Vec::new() }, 4, 3)).unwrap()
}

/// A page of so many rows, with sentences as long as they get.
fn page(rows: usize) -> Page {
    let label = |i: usize| format!("Row {i} of the table with a name");
    let sampled = |i: usize| Sampled {
        label: label(i),
        seeds: vec![(0, 5.0 + i as f64)],
        golden: Some((4.0, 5.0, 7.0)),
        paper: Some(if i % 4 == 0 { Fid::Collapsed } else { Fid::Value(i as f64) }),
        state: "degraded".to_string(),
        picture: Some(picture(i)),
    };
    let judged =
        || Judgement { verdict: ClaimVerdict::Holds, reason: "1 vs 2".to_string(), p: None, holm: None };
    let text = |text: &str| text.to_string();
    let cells = |i: usize| {
        let name = Cell::text(format!("{} (Somebody et al., 2024)", label(i)));
        let fd = Cell::Sample(Sample::of([5.0, 6.0, 7.5]), 2);
        vec![
            name,
            Cell::Number(35.0, 0),
            fd,
            Cell::Text(text("OUTSIDE: fd"), Tone::Bad),
            Cell::Number(2.39, 2),
        ]
    };
    let row = |i: usize| Row { id: format!("row-{i}"), section: text("Ours"), runs: true, cells: cells(i) };
    Page {
        scale: text("mini"),
        program: text(
            "0.1.0 (commit 6bd2424430fb3f9f18d4671421e004b3c08d75f6, candle 0.11.1, code 2b151ec9a9bae35a)",
        ),
        links: vec![(text("arXiv 2502.08005"), text("https://arxiv.org/abs/2502.08005"))],
        verdict: vec![
            text(
                "Of the paper's 31 claims, by golden's seeds 0, 1 and 2 at scale mini: 7 hold, 7 do not hold, \
                 8 undecided, 9 not tested.",
            ),
            text(
                "This run of seed 0 gives golden's numbers in all 118 comparisons; alone, with n = 1, it tells: \
                 1 holds, 1 does not hold, 20 undecided, 9 not tested.",
            ),
        ],
        next: Some(Missing {
            what: text("Golden's seeds on this machine, about 14 min"),
            command: text("replicate run table1 table2 --scale mini --seed 0,1,2"),
        }),
        real: Some(picture(rows)),
        rows: (0..rows).map(sampled).collect(),
        claims: vec![ClaimResult {
            id: text("a-claim"),
            claim: text("words"),
            place: text("Section 2"),
            own: judged(),
            golden: Some(judged()),
        }],
        tables: vec![Table {
            name: text("Table 1"),
            title: text("Sample quality."),
            columns: vec![
                Column::new("method", "method", Content::Text),
                Column::new("NFE", "nfe", Content::Number),
                Column::new("FD", "fd", Content::Sample),
                Column::new("vs golden", "golden", Content::Text),
                Column::new("paper FID", "paper_fid", Content::Paper),
            ],
            rows: (0..rows).map(row).collect(),
            notes: Vec::new(),
        }],
        ..Page::default()
    }
}

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// Where the elements of `selectors` lie in a window of that size: left, top, right and bottom
/// of the first and of all that match. Tables that can be scrolled to the right are, by `scrolled`.
fn places(
    browser: &Path,
    html: &str,
    size: (u32, u32),
    scrolled: u32,
    selectors: &[&str],
) -> Vec<[[f64; 4]; 2]> {
    let dir = tempfile::tempdir().unwrap();
    let source = serde_json::to_string(html).unwrap().replace('<', "\\u003c");
    let selectors = serde_json::to_string(selectors).unwrap();
    let (width, height) = size;
    let script = format!(
        "const frame = document.querySelector('iframe');
         frame.onload = () => {{
           frame.contentDocument.querySelectorAll('.scroll').forEach(e => e.scrollLeft = {scrolled});
           const box = e => {{ const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }};
           const all = {selectors}.map(s => {{
             const boxes = [...frame.contentDocument.querySelectorAll(s)].map(box);
             const least = i => Math.min(...boxes.map(b => b[i])), most = i => Math.max(...boxes.map(b => b[i]));
             return [boxes[0], [least(0), least(1), most(2), most(3)]];
           }});
           document.querySelector('pre').textContent = 'PLACES' + JSON.stringify(all) + 'END';
         }};
         frame.srcdoc = {source};"
    );
    let outer = format!(
        "<!DOCTYPE html><body><pre></pre><iframe style=\"border:0;width:{width}px;height:{height}px\"></iframe>\
         <script>{script}</script>"
    );
    let file = dir.path().join("outer.html");
    std::fs::write(&file, outer).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        .args(["--disable-sync", "--no-first-run", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The source of the script has the words, too; the last is what it wrote.
    let found = text.split("PLACES[[").nth(1).and_then(|rest| rest.split("END").next());
    let found = found.unwrap_or_else(|| panic!("no places in {text}"));
    serde_json::from_str(&format!("[[{found}")).unwrap()
}

#[test]
fn the_first_screen_has_verdict_contact_sheet_and_dot_plot() {
    let Some(browser) = browser() else {
        eprintln!("NOT RUN: there is no chromium to show the page in");
        return;
    };
    for (rows, (width, height)) in [(10, (1280, 900)), (10, (390, 844)), (21, (1280, 900)), (21, (390, 844))]
    {
        let selectors = [".verdict", ".sheet", ".plot svg", "nav", "#claims", "#table-1 td:nth-child(3)"];
        let [verdict, sheet, plot, nav, claims, fd] =
            places(&browser, &html(&page(rows)), (width, height), 0, &selectors)[..].try_into().unwrap();
        let name = format!("{rows} rows at {width} px: {verdict:?} {sheet:?} {plot:?}");
        let [_, all] = verdict;
        assert!(all[1] >= 0.0 && all[3] < f64::from(height) / 3.0, "the verdict leads: {name}");
        assert!(
            sheet[0][1] >= all[3] && sheet[0][3] <= f64::from(height),
            "the sheet is on the first screen: {name}"
        );
        assert!(plot[0][1] >= all[3] && plot[0][3] <= f64::from(height), "so is the plot: {name}");
        assert!(nav[0][1] >= sheet[0][3].max(plot[0][3]) && claims[0][1] > nav[0][3], "{name}");
        assert!(fd[1][2] <= f64::from(width), "FD is read without scrolling: {fd:?}");
        for [_, all] in [sheet, plot] {
            assert!(all[0] >= 0.0 && all[2] <= f64::from(width), "nothing is cut: {name}");
        }
    }
}

#[test]
fn a_table_scrolled_on_a_phone_keeps_its_first_column() {
    let Some(browser) = browser() else {
        eprintln!("NOT RUN: there is no chromium to show the page in");
        return;
    };
    let html = html(&page(10));
    let lefts = |scrolled| {
        let selectors = ["#table-1 thead th", "#table-1 tbody th[scope=row]", "#table-1 tbody td"];
        places(&browser, &html, (390, 844), scrolled, &selectors)
            .iter()
            .map(|[one, _]| one[0])
            .collect::<Vec<_>>()
    };
    let (at_rest, scrolled) = (lefts(0), lefts(20));
    assert_eq!(scrolled[..2], at_rest[..2], "head and name of a row stay");
    assert_eq!(scrolled[2], at_rest[2] - 20.0, "the others move");
}
