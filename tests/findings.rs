//! The findings on numbers made up for them: what each sentence says is checked
//! against the scores, for realistic sets and for any.

use proptest::prelude::*;
use replicate::judge::claims::{ClaimResult, evaluate};
use replicate::judge::golden::{Sample, Score, TIME, values};
use replicate::judge::paper::{self, Claim};
use replicate::report::findings::{Finding, findings};
use std::path::Path;
use std::sync::OnceLock;

macro_rules! assert_golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => "../golden",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

fn score(row: &str, seed: u64, metric: &str, value: f64) -> Score {
    Score {
        row: row.to_string(),
        scale: "mini".to_string(),
        seed,
        metric: metric.to_string(),
        value,
        class: "cpu".to_string(),
        manifest: format!("{row}{seed}"),
    }
}

fn seeds(row: &str, metric: &str, values: &[f64]) -> Vec<Score> {
    values.iter().enumerate().map(|(seed, value)| score(row, seed as u64, metric, *value)).collect()
}

fn claims(scores: &[Score]) -> Vec<ClaimResult> {
    static ALL: OnceLock<Vec<Claim>> = OnceLock::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("paper");
    let all = ALL.get_or_init(|| paper::claims(&directory).unwrap());
    all.iter().map(|claim| evaluate(claim, scores, "mini")).collect()
}

fn found(scores: &[Score]) -> Vec<Finding> {
    findings(scores, &claims(scores), "mini")
}

/// Of the paper's claims some of every sort, so that a new one does not change the snapshots.
fn shown(scores: &[Score]) -> String {
    const SHOWN: [&str; 8] = [
        "dijs-below-dikl",
        "dijs-competitive",
        "critic-half-size",
        "cheaper-iteration",
        "none-collapses",
        "single-collapses",
        "ninety-below-fifty",
        "multi-step-slows",
    ];
    let claims: Vec<ClaimResult> =
        claims(scores).into_iter().filter(|claim| SHOWN.contains(&claim.id.as_str())).collect();
    text(&findings(scores, &claims, "mini"))
}

/// As in the report: titles, then paragraphs.
fn text(findings: &[Finding]) -> String {
    let one = |f: &Finding| format!("{}\n\n{}\n", f.title, f.paragraphs.join("\n\n"));
    findings.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// The only finding whose title starts so, as one text.
fn about(findings: &[Finding], title: &str) -> String {
    let mut with_title = findings.iter().filter(|f| f.title.starts_with(title));
    let finding = with_title.next().unwrap_or_else(|| panic!("no finding {title}"));
    assert!(with_title.next().is_none());
    finding.paragraphs.join(" ")
}

/// Both tables on three seeds: numbers of no run, chosen so that every kind of sentence shows.
fn realistic() -> Vec<Score> {
    /// FD, recall, effective classes, category.
    type Row = (&'static str, [f64; 3], [f64; 3], [f64; 3], [f64; 3]);
    let rows: [Row; 10] = [
        ("edm", [1.9, 2.1, 2.05], [0.948, 0.932, 0.9335], [9.793, 9.768, 9.712], [0.0; 3]),
        ("diff-instruct", [4.3, 4.9, 4.8], [0.8905, 0.863, 0.8515], [9.474, 9.4, 9.512], [0.0; 3]),
        ("dirm", [3.8, 4.6, 3.7], [0.8525, 0.7945, 0.812], [9.236, 8.863, 9.446], [0.0; 3]),
        ("dikl", [3.6, 4.7, 4.1], [0.8455, 0.8, 0.799], [9.278, 9.009, 9.362], [0.0; 3]),
        ("dijs", [3.8, 4.2, 3.9], [0.852, 0.791, 0.795], [9.291, 9.259, 9.287], [0.0; 3]),
        ("init-none", [41.2, 47.9, 39.4], [0.041, 0.002, 0.073], [4.1, 3.2, 5.6], [2.0, 2.0, 1.0]),
        ("init-single", [8.11, 7.24, 9.93], [0.553, 0.581, 0.488], [8.81, 8.93, 8.43], [0.0, 0.0, 1.0]),
        ("init-10", [5.92, 6.4, 6.13], [0.71, 0.69, 0.702], [9.01, 8.94, 9.05], [0.0; 3]),
        ("init-50", [5.4, 5.61, 5.02], [0.733, 0.729, 0.74], [9.1, 9.04, 9.12], [0.0; 3]),
        ("init-90", [4.91, 5.2, 5.06], [0.742, 0.738, 0.75], [9.13, 9.16, 9.08], [0.0; 3]),
    ];
    let mut all = Vec::new();
    for (row, fd, recall, classes, state) in rows {
        for (metric, values) in [("fd", fd), ("recall", recall), ("classes", classes), ("collapse", state)] {
            all.extend(seeds(row, metric, &values));
        }
        if row != "edm" {
            let critic = if row == "diff-instruct" { 189_347.0 } else { 38_449.0 };
            let time = if row == "diff-instruct" { [0.509, 0.706, 0.619] } else { [0.411, 0.309, 0.311] };
            all.extend(seeds(row, "generator_parameters", &[189_347.0; 3]));
            all.extend(seeds(row, "critic_parameters", &[critic; 3]));
            all.extend(seeds(row, TIME, &time));
        }
    }
    for (row, start, end) in [
        ("init-none", [1.021; 3], [1.31, 1.27, 1.33]),
        ("init-single", [0.162; 3], [0.71, 0.68, 0.74]),
        ("init-10", [0.342; 3], [0.61, 0.6, 0.64]),
        ("init-50", [0.281; 3], [0.55, 0.54, 0.57]),
        ("init-90", [0.263; 3], [0.53, 0.5, 0.54]),
    ] {
        all.extend(seeds(row, "map_distance_start", &start));
        all.extend(seeds(row, "map_distance_end", &end));
    }
    all
}

#[test]
fn a_full_set_reads_well() {
    assert_golden!("findings-example", shown(&realistic()));
}

#[test]
fn half_a_set_says_what_is_missing() {
    let cells = ["diff-instruct", "dijs", "init-single", "init-10", "init-90"];
    let half: Vec<Score> = realistic()
        .into_iter()
        .filter(|s| cells.contains(&s.row.as_str()) && (s.seed == 0 || s.row == "dijs"))
        .collect();
    assert_golden!("findings-example-half", shown(&half));
}

#[test]
fn smoke_says_that_it_says_nothing() {
    let all = found_at("smoke");
    assert_eq!(all.len(), 1);
    assert!(all[0].paragraphs[0].contains("a handful of steps"), "{all:?}");
    assert!(all[0].paragraphs[0].contains("says nothing") || all[0].paragraphs[0].contains("say nothing"));
}

#[test]
fn nothing_measured_is_one_plain_sentence() {
    let all = findings(&realistic(), &[], "small");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].paragraphs, ["Nothing is measured at scale small."]);
}

fn found_at(scale: &str) -> Vec<Finding> {
    let moved: Vec<Score> =
        realistic().into_iter().map(|s| Score { scale: scale.to_string(), ..s }).collect();
    findings(&moved, &claims(&moved), scale)
}

#[test]
fn the_distance_is_called_fid_where_it_is_one() {
    assert!(text(&found(&realistic())).contains("FD is "));
    let paper = text(&found_at("paper"));
    assert!(paper.contains("FID is ") && !paper.contains("FD"), "{paper}");
}

#[test]
fn the_interval_is_welchs() {
    // Equal n and variance: 4 degrees of freedom, t = 2.776445, half width t sqrt(2/3) = 2.26696.
    let mut scores = seeds("dijs", "fd", &[1.0, 2.0, 3.0]);
    scores.extend(seeds("diff-instruct", "fd", &[11.0, 12.0, 13.0]));
    let said = about(&found(&scores), "Training");
    let expected = "FD of DiJS is 10 below that of Diff-Instruct (95 % Welch interval of the difference -12.27 to \
                    -7.73).";
    assert!(said.contains(expected), "{said}");
    assert!(
        said.contains("Of 1 score-free row the intervals put 1 below Diff-Instruct and 0 above it; 0 "),
        "{said}"
    );
    // Unequal: variances of the means 1/12 and 64/3 over 4 and 3 seeds, 2.0234 degrees of freedom
    // (Satterthwaite), half width t sqrt(21.4167) with t between t(2) = 4.303 and t(3) = 3.182.
    let mut scores =
        seeds("dijs", "fd", &[1.0, 1.5, 1.5, 2.0].map(|x: f64| (x - 1.5) * 2.0_f64.sqrt() + 1.5));
    scores.extend(seeds("diff-instruct", "fd", &[2.0, 10.0, 18.0]));
    let said = about(&found(&scores), "Training");
    let (low, high) = interval(&said).expect("two or more seeds on either side");
    let half = 0.5 * (high - low);
    assert!((19.5..19.92).contains(&half), "{half}: {said}");
    assert!((0.5 * (high + low) + 8.5).abs() < 0.006, "{said}");
    assert!(said.contains("which covers 0"), "{said}");
}

/// The first interval of a text.
fn interval(text: &str) -> Option<(f64, f64)> {
    let rest = text.split_once("Welch interval of the difference ")?.1;
    let (low, rest) = rest.split_once(" to ")?;
    let high = rest.split([',', ')']).next()?;
    Some((low.parse().unwrap(), high.parse().unwrap()))
}

fn sources(ten: &[f64], fifty: &[f64], ninety: &[f64]) -> String {
    let mut scores = seeds("init-10", "fd", ten);
    scores.extend(seeds("init-50", "fd", fifty));
    scores.extend(seeds("init-90", "fd", ninety));
    about(&found(&scores), "Feature")
}

#[test]
fn a_trend_is_said_only_where_it_is_told() {
    let falls = sources(&[9.0, 9.1, 9.2], &[7.0, 7.1, 7.2], &[5.0, 5.1, 5.2]);
    assert!(
        falls.contains("FD falls from 10 source classes to 90 source classes, in the direction"),
        "{falls}"
    );
    assert!(falls.contains("The mean for 50 source classes lies between the two."), "{falls}");
    let rises = sources(&[5.0, 5.1, 5.2], &[4.0, 4.1, 4.2], &[9.0, 9.1, 9.2]);
    assert!(
        rises.contains("FD rises from 10 source classes to 90 source classes, against the dir"),
        "{rises}"
    );
    assert!(rises.contains("The mean for 50 source classes lies outside the two."), "{rises}");
    let open = sources(&[5.0, 7.0, 9.0], &[5.0, 6.0], &[4.0, 6.5, 8.0]);
    assert!(open.contains("Between the two no difference can be told with 3 seeds a row."), "{open}");
    let one = sources(&[9.0], &[7.0], &[5.0]);
    assert!(
        one.contains("can be told with 1 seed a row.") && one.contains("a single seed has no spread"),
        "{one}"
    );
    assert!(!one.contains("falls") && !one.contains("interval of the difference"), "{one}");
    let uneven = sources(&[9.0, 8.0], &[7.0], &[5.0]);
    assert!(uneven.contains("can be told with 2 seeds and 1 seed."), "{uneven}");
}

fn with_states(single: &[f64], random: &[f64], full: &[f64]) -> String {
    let mut scores = seeds("init-single", "collapse", single);
    scores.extend(seeds("init-none", "collapse", random));
    scores.extend(seeds("dijs", "collapse", full));
    about(&found(&scores), "Function")
}

#[test]
fn the_papers_finding_shows_or_not_or_is_not_decided() {
    let shows = with_states(&[2.0, 2.0], &[2.0, 2.0], &[0.0, 0.0]);
    assert!(shows.contains("Single-level initialisation collapsed on every seed (n=2)"), "{shows}");
    assert!(shows.contains("shows at scale mini") && !shows.contains("too"), "{shows}");
    let both = with_states(&[2.0], &[2.0], &[2.0]);
    assert!(both.contains("The full target set collapsed too (seed 0 of n=1)"), "{both}");
    let split = with_states(&[2.0, 0.0, 1.0], &[2.0], &[0.0]);
    assert!(
        split.contains("collapsed on 1 of 3 seeds (seed 0)") && split.contains("is not decided"),
        "{split}"
    );
    let not = with_states(&[0.0, 1.0], &[2.0, 2.0], &[0.0]);
    assert!(not.contains("does not show at scale mini"), "{not}");
    assert!(not.contains("in these runs single-level pre-training was enough to prevent it."), "{not}");
    let nobody = with_states(&[0.0], &[1.0], &[0.0]);
    assert!(nobody.contains("this scale cannot tell what prevents collapse"), "{nobody}");
}

#[test]
fn the_map_is_called_the_same_only_where_it_is() {
    let same = |distance: &[f64]| {
        about(&found(&seeds("init-single", "map_distance_start", distance)), "Function")
            .contains("measured, they are the same")
    };
    assert!(same(&[0.0, 0.0]));
    assert!(!same(&[0.0, 1e-9]));
    assert!(!same(&[0.162]));
}

#[test]
fn the_runs_nearest_to_the_criterion_are_named() {
    let said = about(&found(&realistic()), "Collapse");
    // Outside: recall 0.073 is inside its bound, 5.6 classes are outside by 0.6 of 10.
    let out = "Nearest to its bounds of the runs outside it: seed 2 of random initialisation, with recall 0.0730 \
               (0.0270 below its bound) and 5.60 effective classes (0.600 above its bound).";
    assert!(said.contains(out), "{said}");
    let within = "Nearest to its bounds of the runs inside it: seed 0 of random initialisation, with recall 0.0410 \
                  (0.0590 below its bound) and 4.10 effective classes (0.900 below its bound).";
    assert!(said.contains(within), "{said}");
}

#[test]
fn a_new_divergence_is_among_the_score_free_rows() {
    let mut scores = realistic();
    for (metric, value) in [("fd", 2.5), ("critic_parameters", 38_449.0), ("collapse", 0.0)] {
        scores.extend(seeds("dixx", metric, &[value, value + 1.0, value + 2.0][..1]));
    }
    let said = about(&found(&scores), "Training");
    assert!(said.contains("2.50 (n=1) for dixx"), "{said}");
    assert!(said.contains("Lowest by mean of the score-free rows: dixx, then DiJS."), "{said}");
    assert!(about(&found(&scores), "Collapse").contains("dixx (n=1)"));
}

#[test]
fn times_of_different_devices_are_not_compared() {
    let mut scores = seeds("dijs", TIME, &[0.1]);
    scores.extend(
        seeds("diff-instruct", TIME, &[0.2])
            .into_iter()
            .map(|s| Score { class: "statistical-cuda".to_string(), ..s }),
    );
    let said = about(&found(&scores), "Training");
    assert!(
        said.contains("Diff-Instruct and the score-free rows were timed on different classes of device"),
        "{said}"
    );
    assert!(!said.contains("Seconds"), "{said}");
}

// ---- whatever the numbers are ----

const LABELS: [(&str, &str); 11] = [
    ("edm", "the teacher"),
    ("diff-instruct", "Diff-Instruct"),
    ("dirm", "DiRM"),
    ("dikl", "DiKL"),
    ("dijs", "DiJS"),
    ("init-none", "random initialisation"),
    ("init-single", "single-level initialisation"),
    ("init-10", "10 source classes"),
    ("init-50", "50 source classes"),
    ("init-90", "90 source classes"),
    ("dixx", "dixx"),
];
/// As the findings on Table 2 call Table 1's DiJS.
const ALIAS: (&str, &str) = ("dijs", "the full target set");
const METRICS: [&str; 9] = [
    "fd",
    "recall",
    "classes",
    "collapse",
    "critic_parameters",
    "generator_parameters",
    TIME,
    "map_distance_start",
    "map_distance_end",
];

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => 0.0..10.0_f64,
        4 => prop::sample::select(vec![0.0, 1.0, 2.0]),
        1 => prop::sample::select(vec![-1.0, 1e-300, 1e300, 5e11, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ]
}

/// Up to three seeds of any of the metrics of any of the rows; `odd` values among them.
fn any_scores(odd: bool, most: usize) -> impl Strategy<Value = Vec<Score>> {
    let value = if odd { any_value().boxed() } else { (0.0..10.0_f64).boxed() };
    let entry =
        (prop::collection::vec(value, 0..=most), prop::sample::select(vec!["cpu", "statistical-cuda"]));
    prop::collection::vec(entry, LABELS.len() * METRICS.len()).prop_map(move |entries| {
        let names = LABELS.iter().flat_map(|(row, _)| METRICS.iter().map(move |metric| (*row, *metric)));
        let category = |x: f64| if odd && x > 9.0 { x } else { (x as u64 % 3) as f64 };
        let mut all = Vec::new();
        for ((row, metric), (values, class)) in names.zip(entries) {
            let value = |x: f64| if metric == "collapse" { category(x) } else { x };
            let values: Vec<f64> = values.into_iter().map(value).collect();
            all.extend(
                seeds(row, metric, &values).into_iter().map(|s| Score { class: class.to_string(), ..s }),
            );
        }
        all
    })
}

fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.split(". ").flat_map(|part| part.split(".\n")).map(str::trim)
}

/// Whether a sentence names the row, by label or id.
fn names(sentence: &str, row: &str, label: &str) -> bool {
    let lower = sentence.to_lowercase();
    lower.contains(&label.to_lowercase()) || lower.contains(row)
}

fn check_states(text: &str, scores: &[Score]) -> Result<(), TestCaseError> {
    for sentence in sentences(text).filter(|s| !s.starts_with("A run counts as collapsed")) {
        for (row, label) in LABELS.into_iter().chain([ALIAS]) {
            if !names(sentence, row, label) {
                continue;
            }
            let states: Vec<f64> = values(scores, row, "mini", "collapse").into_values().collect();
            let lower = sentence.to_lowercase();
            if lower.contains("collapsed") {
                prop_assert!(states.contains(&2.0), "{row} {states:?}: {sentence}");
            }
            if lower.contains("collapsed on every seed") {
                prop_assert!(states.iter().all(|c| *c == 2.0), "{row} {states:?}: {sentence}");
            }
            if lower.contains("did not collapse") || lower.starts_with("neither did") {
                prop_assert!(!states.is_empty() && !states.contains(&2.0), "{row} {states:?}: {sentence}");
            }
            if lower.contains("healthy on every seed") {
                prop_assert!(states.iter().all(|c| *c == 0.0), "{row} {states:?}: {sentence}");
            }
        }
    }
    Ok(())
}

/// Every `FD of A is d below that of B (…)`. Gives how many there were.
fn check_orders(text: &str, scores: &[Score]) -> Result<usize, TestCaseError> {
    let sample = |clause: &str| {
        let of = |(row, label): &&(&str, &str)| clause.contains(label) || clause.ends_with(row);
        let (row, _) = LABELS.iter().chain([&ALIAS]).find(of).expect("the label of a row");
        Sample::of(values(scores, row, "mini", "fd").into_values())
    };
    let mut seen = 0;
    for clause in text.split("FD of ").skip(1) {
        let Some((left, rest)) = clause.split_once(" that of ") else { continue };
        let Some((a, is)) = left.split_once(" is ") else { continue };
        let (b, bracket) = rest.split_once(" (").expect("what the interval is");
        let (a, b) = (sample(a), sample(b));
        let (shown, word) = is.split_once(' ').unwrap();
        let shown: f64 = shown.parse().unwrap();
        let sign = if word == "below" { -1.0 } else { 1.0 };
        prop_assert!(word == "below" || word == "above", "{}", clause);
        prop_assert!(sign * (a.mean - b.mean) > 0.0, "{} {}: {}", a, b, clause);
        prop_assert!((shown - (a.mean - b.mean).abs()).abs() <= 0.0051 * shown.max(1.0), "{}", clause);
        match interval(clause).filter(|_| bracket.starts_with("95 %")) {
            Some((low, high)) => {
                prop_assert!(a.n > 1 && b.n > 1, "{}", clause);
                let middle = a.mean - b.mean;
                prop_assert!(low - 0.0051 <= middle && middle <= high + 0.0051, "{}", clause);
                let covers = bracket.split(')').next().unwrap().contains("covers 0");
                prop_assert_eq!(covers, low <= 0.0 && high >= 0.0, "{}", clause);
            }
            None => {
                prop_assert!(a.n == 1 || b.n == 1 || (a.sd == Some(0.0) && b.sd == Some(0.0)), "{}", clause)
            }
        }
        seen += 1;
    }
    Ok(seen)
}

fn check_words(text: &str) -> Result<(), TestCaseError> {
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        prop_assert!(!["nan", "inf", "infinity"].contains(&word.to_lowercase().as_str()), "{text}");
    }
    for paragraph in text.split("\n\n") {
        let named = !paragraph.contains("significant") || paragraph.contains("Welch");
        prop_assert!(named, "{paragraph}");
        for slip in [" 1 seeds", " 1 claims", " 1 hold,", "  ", " ,", ": .", "is .", " of ;", ".."] {
            prop_assert!(!paragraph.contains(slip), "'{slip}' in {paragraph}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn sentences_are_true_of_any_numbers(scores in any_scores(true, 3)) {
        let text = text(&found(&scores));
        check_words(&text)?;
        check_states(&text, &scores)?;
        check_orders(&text, &scores)?;
    }

    #[test]
    fn sentences_are_true_of_plain_numbers(scores in any_scores(false, 4)) {
        let text = text(&found(&scores));
        check_words(&text)?;
        check_states(&text, &scores)?;
        check_orders(&text, &scores)?;
    }

    #[test]
    fn one_seed_tells_nothing_apart(scores in any_scores(false, 1)) {
        let text = text(&found(&scores));
        prop_assert!(!text.contains("significant"), "{text}");
        prop_assert!(!text.contains("interval of the difference"), "{text}");
        prop_assert!(!text.contains("told apart.") && !text.contains("FD falls") && !text.contains("FD rises"));
        prop_assert!(!text.contains("±"), "{text}");
    }

    #[test]
    fn what_is_not_there_is_named(
        scores in any_scores(false, 2),
        cell in prop::sample::select(vec!["dirm", "dikl", "dijs", "diff-instruct", "edm"]),
    ) {
        let without: Vec<Score> = scores.into_iter().filter(|s| s.row != cell || s.metric != "fd").collect();
        prop_assume!(!without.is_empty());
        let said = about(&found(&without), "Training");
        let (_, missing) = said.split_once("Not measured at scale mini: ").expect("what is missing");
        let (_, label) = LABELS.iter().find(|(row, _)| *row == cell).unwrap();
        prop_assert!(
            missing.split("; ").any(|part| part.starts_with("FD") && part.contains(label)),
            "{label}: {missing}"
        );
    }

    #[test]
    fn the_order_of_the_scores_does_not_matter(scores in any_scores(false, 2)) {
        let reversed: Vec<Score> = scores.iter().rev().cloned().collect();
        prop_assert_eq!(found(&scores), found(&reversed));
    }
}

/// The checks above see something: a realistic set has clauses of every sort.
#[test]
fn the_checks_find_what_they_check() {
    let scores = realistic();
    let said = text(&found(&scores));
    assert!(check_orders(&said, &scores).unwrap() >= 6);
    assert!(check_states(&said, &scores).is_ok());
    let lie = said.replace("Healthy on every seed", "Collapsed on every seed");
    assert!(check_states(&lie, &scores).is_err());
    assert!(check_orders(&said.replace(" below that of", " above that of"), &scores).is_err());
}

#[test]
fn a_collapsed_run_that_is_no_nearer_to_the_data_has_not_learned() {
    use replicate::report::findings::{CollapsedRun, learned};
    let run = |row: &str, seed, fd_start, fd_end| CollapsedRun { row: row.into(), seed, fd_start, fd_end };
    assert_eq!(learned(&[]), None);
    assert_eq!(learned(&[run("init-none", 0, f64::NAN, 1.0)]), None);
    let found = learned(&[
        run("init-none", 0, 80.0, 90.0),
        run("init-none", 2, 82.0, 79.0),
        run("init-10", 0, 80.0, 20.0),
    ])
    .unwrap();
    let [ten, none] = found.paragraphs.as_slice() else { panic!("{found:?}") };
    assert!(ten.contains("10 source classes") && ten.contains("collapsed all the same"), "{ten}");
    assert!(none.contains("from 80 to 90 on seed 0 and from 82 to 79 on seed 2"), "{none}");
    assert!(none.contains("nearer to the data on seed 2 only") && none.contains("cannot be told"), "{none}");
    let farther = learned(&[run("init-none", 0, 80.0, 90.0)]).unwrap();
    assert!(farther.paragraphs[0].contains("no nearer to the data"), "{farther:?}");
}
