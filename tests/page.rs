//! The report as a page: on a page made up of awkward things, it is well-formed,
//! asks for nothing from outside, and leaves nothing out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quick_xml::events::{BytesStart, Event};
use replicate::judge::claims::{ClaimResult, ClaimVerdict, Judgement, ONE_SEED};
use replicate::judge::paper::{Fid, Origin, Setting};
use replicate::judge::sample::Sample;
use replicate::report::curves::{Curve, CurvePoint};
use replicate::report::notes::verdict;
use replicate::report::page::{ERRATA, Figure, Missing, Page, Picture, Run, Sampled, html};
use replicate::report::studies::Studies;
use replicate::report::summary::markdown;
use replicate::report::table::{Cell, Column, Content, Row, Table, Tone};
use std::collections::{BTreeMap, BTreeSet};

const AWKWARD: &str = "a < b && \"c\" > 'd' ± σ²\u{1b} | `e` * _f_ <script>alert(1)</script> ]]> &amp; $x$";

fn row(id: &str, section: &str, runs: bool, cells: Vec<Cell>) -> Row {
    Row { id: id.to_string(), section: section.to_string(), runs, cells }
}

fn table() -> Table {
    let cited = Cell::Text("cited".to_string(), Tone::Dim);
    let cited = vec![Cell::text("DDIM"), Cell::Nothing, Cell::Nothing, cited, Cell::Number(8.23, 2)];
    let sample = |values: &[f64]| Cell::Sample(Sample::of(values.iter().copied()), 2);
    let name = || Cell::text(format!("DiJS {AWKWARD}"));
    let outside = Cell::Text("OUTSIDE: fd recall".to_string(), Tone::Bad);
    let not_run = Cell::Text("not run".to_string(), Tone::Open);
    let measured = vec![name(), sample(&[1.0, 2.0, 4.5]), sample(&[0.25]), outside, Cell::Number(2.39, 2)];
    Table {
        name: "Table 1".to_string(),
        title: AWKWARD.to_string(),
        columns: vec![
            Column::new("method", "method", Content::Text),
            Column::new("FD <", "fd", Content::Sample),
            Column::new("recall", "recall", Content::Mean),
            Column::new("vs golden", "golden", Content::Text),
            Column::new("paper FID", "paper_fid", Content::Paper),
        ],
        rows: vec![
            row("ddim", "Cited & not run", false, cited),
            row("dijs", "Ours", true, measured),
            row("row two", "Ours", true, vec![name(), Cell::Nothing, Cell::Nothing, not_run, Cell::Nothing]),
        ],
        notes: vec![AWKWARD.to_string()],
    }
}

fn differences() -> Table {
    let columns = ["metric", "rows"].map(|title| Column::new(title, title, Content::Text)).to_vec();
    let cells = vec![Cell::text("FD"), Cell::text(AWKWARD)];
    Table {
        name: "Differences".to_string(),
        columns,
        rows: vec![row("fd-a-b", "", false, cells)],
        ..Table::default()
    }
}

fn claim(id: &str, own: ClaimVerdict, golden: Option<ClaimVerdict>) -> ClaimResult {
    let judged = |verdict, numbers: &str| Judgement {
        verdict,
        reason: format!("{numbers} | {AWKWARD}"),
        p: None,
        holm: None,
    };
    ClaimResult {
        id: id.to_string(),
        claim: format!("words of {id}: {AWKWARD}"),
        place: "Section 2 & Table 1".to_string(),
        own: judged(own, "1 vs 2"),
        golden: golden.map(|verdict| judged(verdict, "3 vs 4, ERRATA.md 2.5")),
    }
}

fn curve(row: &str, seed: u64, points: &[(u64, f64, f64, f64)]) -> Curve {
    let point = |&(images, fd, recall, classes)| CurvePoint { images, fd, recall, classes };
    Curve {
        row: row.to_string(),
        label: format!("{row} {AWKWARD}"),
        seed,
        points: points.iter().map(point).collect(),
    }
}

fn setting(name: &str, origin: Origin) -> Setting {
    let silent = matches!(origin, Origin::Silent | Origin::Ours);
    Setting {
        name: name.to_string(),
        value: AWKWARD.to_string(),
        paper: (!silent).then(|| "https://example.org/?a=1&b=2".to_string()),
        place: if silent { String::new() } else { "Appendix B".to_string() },
        reading: AWKWARD.to_string(),
        origin,
        owner: "budget".to_string(),
        fields: vec!["batch".to_string(), "images".to_string()],
    }
}

/// The page does not look into it, so any bytes do; these need every base64 digit and padding.
fn figure(id: &str, bytes: usize) -> Figure {
    Figure {
        id: id.to_string(),
        caption: format!("{id}: {AWKWARD}"),
        picture: picture(bytes),
        marks: vec!["0".to_string(), "1,024 <&".to_string()],
    }
}

fn picture(bytes: usize) -> Picture {
    Picture { png: (0..bytes).map(|i| (i * 37 + i / 256) as u8).collect(), width: 33, height: 17 }
}

fn sampled(label: &str, seeds: &[(u64, f64)], pictured: bool) -> Sampled {
    Sampled {
        label: format!("{label} {AWKWARD}"),
        seeds: seeds.to_vec(),
        golden: Some((-2.0, 4.0, 10.0)),
        paper: Some(if pictured { Fid::Value(2.39) } else { Fid::Collapsed }),
        state: "not learned".to_string(),
        picture: pictured.then(|| picture(seeds.len() + 20)),
    }
}

fn run(row: &str, seed: u64) -> Run {
    Run {
        row: row.to_string(),
        seed,
        key: "6c454ec01df5e679b389b72e42d4d0e816f7420de684717fd7f3617c5c6ba0d6".to_string(),
        result_digest: "ß<&".to_string(),
        date: "2026-11-22T22:17:04Z".to_string(),
        commit: "04d6b0a3d95072333465ffa5f6e4c25327452711".to_string(),
        dirty: true,
        machine: AWKWARD.to_string(),
        licences: vec!["start CC <BY-NC-SA> 4.0".to_string()],
        determinism: "cpu".to_string(),
        wall_seconds: if seed == 0 { 133.56 } else { f64::NAN },
        images: 1_234_567,
        experiment: format!("kind = cell\nrow = {row}\nweights < 1 & \"2\"\n"),
        command: format!("replicate run {row} --seed {seed} && echo \"<done>\""),
    }
}

fn awkward() -> Page {
    let nan = f64::NAN;
    Page {
        scale: "mini".to_string(),
        program: format!("replicate 0.1.0 {AWKWARD}"),
        links: vec![
            ("the paper <".to_string(), "https://example.org/paper?a=1&b=2".to_string()),
            (ERRATA.to_string(), "../paper/ERRATA.md".to_string()),
        ],
        verdict: [format!("One holds {AWKWARD}."), "# no heading\nof its own".to_string()]
            .into_iter()
            .chain(verdict(&[claim("held", ClaimVerdict::DoesNotHold, None)], &[], &[0], &[0, 1, 2], "mini"))
            .collect(),
        next: Some(Missing {
            what: "More seeds".to_string(),
            command: "replicate run all --seed 0,1".to_string(),
        }),
        real: Some(picture(19)),
        rows: vec![
            sampled("EDM", &[(0, 1.5), (1, 2.5)], true),
            sampled("not run", &[], false),
            sampled("odd", &[(0, nan), (1, f64::INFINITY), (2, -1.0), (3, 1e300)], true),
        ],
        tables: vec![
            table(),
            Table {
                name: "Table 2".to_string(),
                title: "Nothing but a head".to_string(),
                rows: vec![],
                ..table()
            },
        ],
        differences: differences(),
        readings: Table::default(),
        studies: Studies::default(),
        claims: vec![
            claim("left-out", ClaimVerdict::NotTested, None),
            claim("held", ClaimVerdict::Undecided { seeds_needed: None }, Some(ClaimVerdict::Holds)),
            claim("broken", ClaimVerdict::DoesNotHold, None),
            claim("broken-alike", ClaimVerdict::DoesNotHold, None),
            claim("open", ClaimVerdict::Undecided { seeds_needed: Some(7) }, None),
        ],
        notes: vec![ONE_SEED.to_string()],
        curves: vec![
            curve("dijs", 0, &[(0, 400.0, 0.0, 1.5), (64, nan, 0.5, 9.0), (128, 3.0, 0.9, f64::INFINITY)]),
            curve("dijs", 1, &[(0, 410.0, 0.0, 1.5), (64, 40.0, 0.05, 2.0), (128, 4.0, nan, 9.9)]),
            curve("row two", 0, &[(0, 420.0, 0.0, 1.5), (64, 450.0, 0.2, 4.0), (128, 500.0, 0.05, 2.0)]),
            curve("row two", 1, &[]),
            curve("elsewhere <&", 0, &[(0, f64::NEG_INFINITY, nan, nan), (64, nan, nan, nan)]),
        ],
        figures: vec![figure("figure 1a", 1000), figure("twice", 1), figure("twice", 2)],
        strips: vec![figure("strip \"σ\"", 766)],
        choices: [Origin::Stated, Origin::Ambiguous, Origin::Silent, Origin::Ours]
            .map(|origin| setting(&format!("{origin:?} setting"), origin))
            .to_vec(),
        settings: vec![("batch", AWKWARD.to_string())],
        runs: vec![run("dijs", 0), run("dijs", 1), run("row two", 0)],
        missing: vec![Missing {
            what: format!("init-90 & {AWKWARD}"),
            command: "replicate run init-90 --seed 0 | tee `log`".to_string(),
        }],
        others: vec![Missing {
            what: format!("rows of tiny {AWKWARD}"),
            command: "replicate report --scale tiny".to_string(),
        }],
    }
}

/// What a strict reader finds in a document.
#[derive(Default)]
struct Document {
    /// In order; of each element its name and its attributes, unescaped.
    elements: Vec<(String, BTreeMap<String, String>)>,
    /// All text outside `style`, unescaped.
    text: String,
    style: String,
}

/// Elements that HTML closes by itself.
const VOID: [&str; 2] = ["meta", "img"];

/// Panics unless `html` is well-formed, with one root element and no attribute twice.
fn parse(html: &str) -> Document {
    let body = html.strip_prefix("<!DOCTYPE html>\n").expect("an HTML5 doctype");
    assert!(!body.contains("/>"), "HTML does not close an element so");
    // As XML writes what HTML closes by itself.
    let mut body = body.to_string();
    for name in VOID {
        let parts: Vec<String> = body.split(&format!("<{name} ")).map(str::to_string).collect();
        let closed = parts[1..].iter().map(|rest| rest.replacen('>', "/>", 1));
        body = std::iter::once(parts[0].clone()).chain(closed).collect::<Vec<_>>().join(&format!("<{name} "));
    }
    let characters = body.chars().all(|c| matches!(c, '\t' | '\n' | ' '..='\u{7e}' | '\u{a0}'..='\u{fffd}'));
    assert!(characters, "a character that XML has no place for");
    let mut reader = quick_xml::Reader::from_str(&body);
    reader.config_mut().enable_all_checks(true);
    let (mut document, mut open) = (Document::default(), Vec::new());
    loop {
        let event =
            reader.read_event().unwrap_or_else(|e| panic!("at byte {}: {e}", reader.error_position()));
        match event {
            Event::Start(start) => {
                let element = element(&start);
                assert!(!open.is_empty() || document.elements.is_empty(), "a second root: {}", element.0);
                open.push(element.0.clone());
                document.elements.push(element);
            }
            Event::Empty(start) => {
                let element = element(&start);
                assert!(VOID.contains(&element.0.as_str()), "<{} /> is not closed in HTML", element.0);
                document.elements.push(element);
            }
            Event::End(end) => {
                let name = open.pop().expect("checked by the reader");
                assert_eq!(end.name().as_ref(), name);
            }
            Event::Text(text) => {
                assert!(!open.is_empty() || text.trim().is_empty(), "text outside the root");
                assert!(!text.contains("]]>"), "]]> in text");
                let style = open.last().is_some_and(|name| name == "style");
                if style { &mut document.style } else { &mut document.text }.push_str(&text);
            }
            Event::GeneralRef(reference) => {
                let entity = format!("&{};", &*reference);
                document.text += &quick_xml::escape::unescape(&entity).expect("an entity of XML");
            }
            Event::Eof => break,
            other => panic!("the page has no business with {other:?}"),
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    document
}

fn element(start: &BytesStart) -> (String, BTreeMap<String, String>) {
    let mut attributes = BTreeMap::new();
    for attribute in start.attributes() {
        let attribute = attribute.expect("a quoted attribute that is not there twice");
        let value = &*attribute.value;
        assert!(!value.contains('<'), "< in the attribute {value}");
        let value = quick_xml::escape::unescape(value).unwrap().to_string();
        attributes.insert(attribute.key.as_ref().to_string(), value);
    }
    (start.name().as_ref().to_string(), attributes)
}

impl Document {
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a BTreeMap<String, String>> {
        self.elements.iter().filter(move |element| element.0 == name).map(|element| &element.1)
    }

    fn attributes<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.elements.iter().filter_map(move |element| element.1.get(key)).map(String::as_str)
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.attributes("id").collect()
    }
}

#[test]
fn is_well_formed_and_every_reference_has_its_target() {
    for page in [awkward(), Page::default()] {
        let document = parse(&html(&page));
        let ids = document.ids();
        assert_eq!(ids.len(), document.attributes("id").count(), "an id is there twice");
        assert!(ids.iter().all(|id| !id.is_empty() && !id.contains(char::is_whitespace)));
        let sections: Vec<&str> = document.all("section").map(|section| section["id"].as_str()).collect();
        let contents: Vec<&str> =
            document.attributes("href").filter_map(|href| href.strip_prefix('#')).collect();
        assert_eq!(contents, sections, "the contents name every section, and each is there");
    }
}

#[test]
fn asks_for_nothing_from_outside() {
    let page = awkward();
    let document = parse(&html(&page));
    for forbidden in ["script", "link", "iframe", "object", "embed", "base", "form", "use", "image"] {
        assert_eq!(document.all(forbidden).count(), 0, "{forbidden}");
    }
    for (name, attributes) in &document.elements {
        for (key, value) in attributes {
            assert!(!key.starts_with("on") && !["srcset", "xlink:href", "data", "poster"].contains(&&**key));
            assert!(!value.contains("url("), "{name} {key}");
            // A link is opened by a reader, never by the page.
            assert!(
                !value.contains("://") || (name, key.as_str()) == (&"a".to_string(), "href"),
                "{name} {key}: {value}"
            );
        }
    }
    assert!(document.attributes("src").all(|src| src.starts_with("data:image/png;base64,")));
    assert!(!document.style.contains("url(") && !document.style.contains("@import"));
    let policy = document.all("meta").find(|meta| meta.contains_key("http-equiv")).unwrap();
    assert_eq!(policy["http-equiv"], "Content-Security-Policy");
    assert_eq!(policy["content"], "default-src 'none'; style-src 'unsafe-inline'; img-src data:");
    assert!(document.text.contains("https://example.org/?a=1&b=2"), "an address is text like any other");
}

#[test]
fn shows_every_picture_to_the_byte() {
    let page = awkward();
    let document = parse(&html(&page));
    let shown: Vec<Vec<u8>> = document
        .attributes("src")
        .map(|src| STANDARD.decode(src.strip_prefix("data:image/png;base64,").unwrap()).unwrap())
        .collect();
    let rows = page.rows.iter().filter_map(|row| Some((row.label.as_str(), row.picture.as_ref()?)));
    let figures = page.figures.iter().chain(&page.strips).map(|figure| (figure.id.as_str(), &figure.picture));
    let given: Vec<(&str, &Picture)> =
        [("Training images", page.real.as_ref().unwrap())].into_iter().chain(rows).chain(figures).collect();
    assert_eq!(shown, given.iter().map(|(_, picture)| &picture.png[..]).collect::<Vec<_>>());
    for (image, (name, picture)) in document.all("img").zip(given) {
        assert!(image["alt"].contains(&name.replace('\u{1b}', "\u{fffd}")), "{} is not {name}", image["alt"]);
        let [width, height]: [u32; 2] = ["width", "height"].map(|key| image[key].parse().unwrap());
        assert_eq!((width, height), (picture.width, picture.height));
    }
}

#[test]
fn leaves_nothing_out() {
    let page = awkward();
    let document = parse(&html(&page));
    let ids = document.ids();
    for id in ["table-1-ddim", "table-1-dijs", "table-1-row-two", "figure-twice", "figure-twice-2"] {
        assert!(ids.contains(id), "{id} is not among {ids:?}");
    }
    for claim in &page.claims {
        assert!(ids.contains(format!("claim-{}", claim.id).as_str()));
        assert!(document.text.contains(&format!("words of {}", claim.id)));
    }
    // Both broken ones: for one reason.
    assert_eq!(document.text.matches("1 vs 2 | a < b").count(), page.claims.len() - 1);
    assert!(
        document.text.contains("held holds (this run: undecided): 3 vs 4, ERRATA.md 2.5"),
        "{}",
        document.text
    );
    assert_eq!(document.attributes("href").filter(|href| *href == "../paper/ERRATA.md").count(), 2);
    assert!(
        document.text.contains("EDM")
            && document.text.contains("FD 2.00")
            && document.text.contains("not learned")
    );
    assert_eq!(document.text.matches("n = 1").count(), 1);
    assert!(document.text.contains("These 2: 1 vs 2"));
    for verdict in ["Holds", "Does not hold", "Undecided", "Not tested", "OUTSIDE: fd recall", "not run"] {
        assert!(document.text.contains(verdict), "{verdict} is told by colour alone");
    }
    for run in &page.runs {
        for text in [&run.command, &run.experiment, &run.key, &run.commit] {
            assert!(document.text.contains(text.as_str()), "{text}");
        }
    }
    for text in ["2.50 ± 1.80 (n=3)", "1,234,567", "2m14s", "Ambiguous setting", "Ours setting"] {
        assert!(document.text.contains(text), "{text}");
    }
    assert!(!document.text.contains("Stated setting"), "the paper leaves it open no more than we do");
    let shown = AWKWARD.replace('\u{1b}', "\u{fffd}");
    assert!(document.text.contains(&shown), "awkward text arrives as it was");
    assert!(document.text.contains(&page.missing[0].command));
    assert!(
        document.text.contains(&page.others[0].command) && markdown(&page).contains(&page.others[0].command)
    );
}

/// The coordinates of every path, and every number that places something.
fn coordinates(document: &Document) -> impl Iterator<Item = &str> {
    ["d", "x", "y"].into_iter().flat_map(|key| document.attributes(key))
}

#[test]
fn a_value_that_is_not_finite_breaks_its_line() {
    let page = awkward();
    let document = parse(&html(&page));
    assert!(coordinates(&document).count() > 50, "there are charts");
    for text in coordinates(&document) {
        assert!(text.chars().all(|c| "MLHVhv0123456789. ".contains(c)), "{text}");
    }
    let lines = || document.all("path").filter(|path| path.get("class").is_some_and(|c| c == "line"));
    let spots: Vec<&str> = document
        .all("path")
        .filter(|p| p.get("class").is_some_and(|c| c == "spots"))
        .map(|p| &*p["d"])
        .collect();
    assert_eq!(spots[0].matches('M').count(), 2, "EDM's seeds in the dot plot");
    let pieces =
        |path: &BTreeMap<String, String>| (path["d"].matches('M').count(), path["d"].matches('L').count());
    // Of the first panel, FD: seed 0 of dijs lacks the point in the middle, the others are whole.
    let shapes: Vec<(usize, usize)> = lines().take(3).map(pieces).collect();
    assert_eq!(shapes, [(2, 0), (1, 2), (1, 2)]);
    // The empty curve and the one without a finite number have no line in any panel.
    assert_eq!(lines().filter(|path| path["d"].contains('M')).count(), 9 + 2, "9 lines, 2 of the legend");
    assert!(document.text.contains("A gap is a value that is not a finite number."));
    assert!(document.text.contains("No point of these curves is a finite number."));
}

#[test]
fn a_chart_says_when_a_row_collapsed() {
    let curves = |points: &[(u64, f64, f64, f64)]| Page {
        scale: "mini".to_string(),
        curves: vec![curve("none", 0, points), curve("none", 1, points)],
        ..Page::default()
    };
    let text = |page: &Page| parse(&html(page)).text;
    let late =
        curves(&[(0, 9.0, 0.0, 1.0), (64, 5.0, 0.3, 6.0), (1280, 7.0, 0.09, 4.9), (1344, 8.0, 0.0, 1.0)]);
    assert_eq!(text(&late).matches("from 1,280 images").count(), 2, "once for each seed");
    let never_left = curves(&[(0, 9.0, 0.0, 1.0), (64, 9.0, 0.0, 1.0)]);
    assert_eq!(text(&never_left).matches("from the start").count(), 2);
    // Few classes alone, or low recall alone, is no collapse.
    for point in [(64, 9.0, 0.5, 1.0), (64, 9.0, 0.0, 9.0), (64, 9.0, f64::NAN, 1.0)] {
        let page = curves(&[(0, 9.0, 0.0, 1.0), point]);
        assert_eq!(text(&page).matches("not at the end").count(), 2, "{point:?}");
    }
}

#[test]
fn the_axis_of_fd_is_logarithmic_where_the_range_asks_for_it() {
    let page = |last: f64| Page {
        scale: "mini".to_string(),
        curves: vec![curve("dijs", 0, &[(0, 40.0, 0.1, 1.0), (64, last, 0.1, 1.0)])],
        ..Page::default()
    };
    let logarithmic = |last| parse(&html(&page(last))).text.contains("FD, logarithmic");
    assert!(!logarithmic(20.0));
    assert!(logarithmic(2.0));
    // Extremes that no measure gives still have a place, or none, but no other text.
    for last in [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, 0.0, -0.0, -3.0] {
        for text in coordinates(&parse(&html(&page(last)))) {
            assert!(text.chars().all(|c| "MLHVhv0123456789. ".contains(c)), "{last:e}: {text}");
        }
    }
}

#[test]
fn an_empty_page_says_what_is_missing() {
    let sentence = "This report has no claims, no tables, no training curves, no figures, \
                    no samples along the training, no settings, no runs, no training images, which are not on this \
                    machine (--data names their place).";
    let page = Page { scale: "mini".to_string(), ..Page::default() };
    let document = parse(&html(&page));
    assert!(document.text.contains(sentence));
    let sections: Vec<&str> = document.all("section").map(|section| section["id"].as_str()).collect();
    assert_eq!(sections, ["missing"]);
    assert!(markdown(&page).contains(sentence));
    assert!(!html(&page).contains("://"));
}

#[test]
fn the_verdict_comes_first_and_a_full_report_mentions_nothing_missing() {
    let mut page = awkward();
    let order = |page: &Page| {
        let html = html(page);
        let all = [
            "class=\"verdict\"",
            "class=\"contact\"",
            "class=\"plot\"",
            "<nav",
            "id=\"claims\"",
            "id=\"table-1\"",
            "id=\"curves\"",
            "id=\"figures\"",
            "id=\"strips\"",
            "id=\"missing\"",
            "id=\"others\"",
            "id=\"choices\"",
            "id=\"runs\"",
        ];
        all.map(|part| html.find(part)).to_vec()
    };
    let found = order(&page);
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{found:?}");
    page.missing.clear();
    assert!(!parse(&html(&page)).ids().contains("missing"));
    assert!(!markdown(&page).contains("missing"));
}

#[test]
fn the_papers_numbers_have_a_panel_of_their_own() {
    let page = Page {
        scale: "mini".to_string(),
        rows: vec![Sampled { seeds: vec![(0, 5.0)], golden: None, ..sampled("EDM", &[], false) }],
        ..Page::default()
    };
    let with = |fid: f64| Page {
        rows: vec![Sampled { paper: Some(Fid::Value(fid)), seeds: vec![(0, 5.0)], ..Sampled::default() }],
        scale: "mini".to_string(),
        ..Page::default()
    };
    let ours = |page: &Page| -> String {
        coordinates(&parse(&html(page)))
            .filter(|d| d.starts_with('M') && d.ends_with("h0"))
            .next()
            .unwrap()
            .to_string()
    };
    assert_eq!(ours(&with(2.0)), ours(&with(900.0)), "our axis knows nothing of the paper's numbers");
    assert!(
        parse(&html(&page)).text.contains("paper's FID") && parse(&html(&page)).text.contains("collapsed")
    );
}

#[test]
fn the_same_page_gives_the_same_bytes() {
    assert_eq!(html(&awkward()), html(&awkward()));
    assert_eq!(markdown(&awkward()), markdown(&awkward()));
}

#[test]
fn markdown_has_tables_of_equal_width() {
    let page = awkward();
    let text = markdown(&page);
    let cells = |line: &str| {
        let bars = line.char_indices().filter(|(i, c)| *c == '|' && !line[..*i].ends_with('\\'));
        bars.count() - 1
    };
    let (mut tables, mut width) = (0, None);
    for line in text.lines() {
        if !line.starts_with('|') {
            width = None;
            continue;
        }
        if width.is_none() {
            tables += 1;
        }
        assert_eq!(cells(line), *width.get_or_insert(cells(line)), "{line}");
    }
    assert_eq!(tables, 4, "two tables, the claims and the differences");
    for claim in &page.claims {
        assert_eq!(
            text.contains(&format!("| {} |", claim.id)),
            claim.leading().verdict != ClaimVerdict::NotTested
        );
    }
    assert!(text.contains("`` replicate run init-90 --seed 0 | tee `log` ``"));
    assert!(!text.contains("<img") && !text.contains("data:image"));
    assert!(!text.contains("\n# no heading"), "a paragraph stays one");
}

#[test]
fn markdown_stays_within_the_limit_of_a_job_summary() {
    let mut page = awkward();
    page.verdict = vec!["ß".repeat(1000); 1000];
    let text = markdown(&page);
    assert!(text.len() <= 1024 * 1024 && text.len() > 1_000_000, "{}", text.len());
    assert!(text.ends_with("The HTML report has the rest.\n"));
    page.verdict.truncate(1);
    assert!(!markdown(&page).contains("Cut here"));
}
