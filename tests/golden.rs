//! Golden values, claims and tables: every rule on numbers made up for it. The
//! snapshots lie in golden/ beside the values (`cargo insta review`).

use proptest::prelude::*;
use replicate::error::{EXIT_INPUT, EXIT_USAGE, Error};
use replicate::judge::claims::{ClaimVerdict, Judgement, ONE_SEED, evaluate, evaluate_all};
use replicate::judge::differences::differences;
use replicate::judge::golden::{self, Golden, Rule, Score, Status, accept, compare};
use replicate::judge::paper::{self, Claim, Fid, Operand, Row1, Row2, Statement};
use replicate::judge::sample::Sample;
use replicate::judge::stats;
use replicate::method;
use replicate::report::studies::{self, Part, Study};
use replicate::report::table::Table;
use replicate::report::tables::{self, Measured};
use replicate::report::verdicts;
use replicate::rng::Stream;
use replicate::settings::{Overrides, Scale};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn score(row: &str, seed: u64, metric: &str, value: f64) -> Score {
    Score {
        row: row.to_string(),
        changes: String::new(),
        scale: "mini".to_string(),
        seed,
        metric: metric.to_string(),
        value,
        class: "cpu-fma".to_string(),
        manifest: format!("{row}{seed}"),
    }
}

/// FD of DiJS on seeds `first`, `first` + 1, …
fn fds(first: u64, values: &[f64]) -> Vec<Score> {
    values.iter().enumerate().map(|(i, x)| score("dijs", first + i as u64, "fd", *x)).collect()
}

fn of_class(class: &str, mut scores: Vec<Score>) -> Vec<Score> {
    scores.iter_mut().for_each(|s| s.class = class.to_string());
    scores
}

fn accepted(scores: &[Score]) -> Vec<Golden> {
    accept(Vec::new(), scores, "first run", "2025-01-31").unwrap().0
}

/// The one golden line of these scores.
fn golden_of(scores: &[Score]) -> Golden {
    let mut lines = accepted(scores);
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

fn status(golden: &Golden, fresh: &[Score]) -> Status {
    compare(Some(golden), fresh).status
}

macro_rules! assert_golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => "../golden",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

// ---- rule 1: the same seed in the same class ----

#[test]
fn the_same_seeds_must_give_the_same_numbers() {
    let golden = golden_of(&fds(0, &[12.31, 13.0, 14.0]));
    assert_eq!(status(&golden, &fds(0, &[12.31, 13.0, 14.0])), Status::Same);
    assert_eq!(status(&golden, &fds(1, &[13.0])), Status::Same);
    assert_eq!(status(&golden, &fds(0, &[12.31 * (1.0 + 1e-12)])), Status::Same);
    // Far inside the interval, and yet another number.
    let changed = compare(Some(&golden), &fds(0, &[12.58]));
    assert_eq!(changed.status, Status::Outside);
    assert_eq!(changed.reason, "other numbers: 12.31 -> 12.58 (seed 0)");
    let slightly = compare(Some(&golden), &fds(0, &[12.31 * (1.0 + 1e-8)]));
    assert_eq!(slightly.status, Status::Outside);
    assert!(slightly.reason.contains("12.3100000 -> 12.3100001"), "{}", slightly.reason);
}

#[test]
fn one_changed_seed_is_outside_whatever_the_others_say() {
    let golden = golden_of(&fds(0, &[12.0, 13.0, 14.0]));
    let mut fresh = fds(0, &[12.0, 13.1]);
    fresh.extend(fds(7, &[13.0]));
    assert_eq!(status(&golden, &fresh), Status::Outside);
}

#[test]
fn new_seeds_are_judged_without_the_old_ones() {
    let golden = golden_of(&fds(0, &[12.0, 13.0, 14.0]));
    // t(2) sqrt(1/3 + 1) = 4.97; with seed 0 averaged in, 18.2 would be inside.
    let mut fresh = fds(0, &[12.0]);
    fresh.extend(fds(9, &[18.2]));
    assert_eq!(status(&golden, &fresh), Status::Outside);
    fresh[1].value = 17.9;
    let verdict = compare(Some(&golden), &fresh);
    assert_eq!(verdict.status, Status::Within);
    assert!(verdict.reason.ends_with("same numbers on seed 0"), "{}", verdict.reason);
}

#[test]
fn another_class_is_held_to_the_interval_and_a_statistical_one_too() {
    let golden = golden_of(&fds(0, &[12.0, 13.0, 14.0]));
    let cuda = compare(Some(&golden), &of_class("cuda-h200", fds(0, &[12.1, 13.1, 14.1])));
    assert_eq!(cuda.status, Status::Within);
    assert!(cuda.reason.contains("golden is of class cpu-fma, this of cuda-h200"), "{}", cuda.reason);

    let loose = |values| of_class("statistical-cuda", fds(0, values));
    let golden = golden_of(&loose(&[12.0, 13.0, 14.0]));
    assert_eq!(status(&golden, &loose(&[12.1, 13.1, 14.1])), Status::Within);
    assert_eq!(status(&golden, &loose(&[22.1, 23.1, 24.1])), Status::Outside);
}

// ---- rule 2: other seeds ----

#[test]
fn the_interval_is_the_t_prediction_interval() {
    // mean 2.43, s = 0.05; t(2, .975) s sqrt(1/3 + 1/m) = 0.17565 for m = 3, 0.24841 for m = 1.
    let golden = golden_of(&fds(0, &[2.38, 2.43, 2.48]));
    assert_eq!(golden.rule, Rule::Interval);
    for (shift, three, one) in [
        (0.1756, Status::Within, Status::Within),
        (0.1757, Status::Outside, Status::Within),
        (0.2484, Status::Outside, Status::Within),
        (0.2485, Status::Outside, Status::Outside),
    ] {
        for shift in [shift, -shift] {
            let x = 2.43 + shift;
            assert_eq!(status(&golden, &fds(3, &[x - 0.3, x, x + 0.3])), three, "{shift}");
            assert_eq!(status(&golden, &fds(3, &[x])), one, "{shift}");
        }
    }
    let verdict = compare(Some(&golden), &fds(3, &[2.80]));
    assert_eq!(verdict.reason, "2.80 vs golden 2.43 ± 0.05 (n=3): +0.37, outside 0.25");
}

#[test]
fn the_interval_covers_95_percent() {
    let stream = Stream::new("tests/golden", "coverage");
    let trials = 20_000;
    for (n, m) in [(3, 1), (3, 3), (5, 2)] {
        let inside = (0..trials).filter(|trial| {
            let x: Vec<f64> = stream.normals(*trial, n + m).iter().map(|x| 50.0 + f64::from(*x)).collect();
            status(&golden_of(&fds(0, &x[..n])), &fds(100, &x[n..])) == Status::Within
        });
        let share = inside.count() as f64 / trials as f64;
        // Four standard errors of a share of 20,000.
        assert!((share - 0.95).abs() < 0.0062, "n = {n}, m = {m}: {share}");
    }
}

#[test]
fn fewer_than_three_seeds_have_a_fixed_tolerance() {
    let golden = golden_of(&fds(0, &[10.0, 12.0]));
    assert_eq!(golden.rule, Rule::Fixed { tolerance: 2.8 });
    assert_eq!(status(&golden, &fds(5, &[13.79])), Status::Within);
    assert_eq!(status(&golden, &fds(5, &[13.81])), Status::Outside);
    let recall = golden_of(&[score("dijs", 0, "recall", 0.7)]);
    assert_eq!(recall.rule, Rule::Fixed { tolerance: 0.1 });
}

#[test]
fn categories_and_counts_must_be_among_the_golden_ones() {
    let states = |first, values: &[f64]| -> Vec<Score> {
        fds(first, values).into_iter().map(|s| Score { metric: "collapse".to_string(), ..s }).collect()
    };
    let golden = golden_of(&states(0, &[0.0, 0.0, 1.0]));
    assert_eq!(golden.rule, Rule::OneOf);
    assert_eq!(status(&golden, &states(3, &[1.0, 1.0])), Status::Within);
    let verdict = compare(Some(&golden), &states(3, &[0.0, 2.0]));
    assert_eq!(
        (verdict.status, verdict.reason.as_str()),
        (Status::Outside, "2 differs from golden (0, 0, 1)")
    );
}

#[test]
fn seeds_that_all_agree_leave_room_for_rounding_only() {
    let golden = golden_of(&fds(0, &[0.1, 0.1, 0.1]));
    assert_eq!(status(&golden, &fds(3, &[0.1 * (1.0 + 1e-14)])), Status::Within);
    assert_eq!(status(&golden, &fds(3, &[0.1001])), Status::Outside);
}

#[test]
fn a_value_that_is_not_finite_is_outside() {
    let golden = golden_of(&fds(0, &[1.0, 2.0, 3.0]));
    for bad in [f64::NAN, f64::INFINITY] {
        assert_eq!(status(&golden, &fds(0, &[bad])), Status::Outside);
        assert_eq!(status(&golden, &fds(9, &[2.0, bad])), Status::Outside);
    }
}

#[test]
fn what_is_missing_on_either_side_is_said() {
    let golden = golden_of(&fds(0, &[1.0]));
    assert_eq!(compare(Some(&golden), &[]).status, Status::NotRun);
    assert_eq!(compare(None, &[]).status, Status::NotRun);
    assert_eq!(compare(None, &fds(0, &[1.0])).status, Status::NoGolden);
}

#[test]
fn check_pairs_every_measurement_with_its_line() {
    let mut measured = fds(0, &[12.0, 13.0]);
    let mut goldens = accepted(&measured);
    goldens.extend(accepted(&of_class("cuda", fds(0, &[50.0, 51.0, 52.0]))));
    goldens.extend(accepted(&[score("dikl", 0, "fd", 20.0)]));
    measured.push(score("dijs", 0, "recall", 0.7));
    measured.push(score("dijs", 0, golden::TIME, 0.2));
    let found: Vec<(String, String, Status)> =
        golden::check(&goldens, &measured).into_iter().map(|c| (c.row, c.metric, c.verdict.status)).collect();
    let expected = [
        // The line of its own class, not the one with more seeds.
        ("dijs", "fd", Status::Same),
        ("dijs", "recall", Status::NoGolden),
        ("dikl", "fd", Status::NotRun),
    ];
    assert_eq!(found, expected.map(|(row, metric, status)| (row.to_string(), metric.to_string(), status)));
    // A class without a line of its own is held against the line with the most seeds.
    let other = golden::find(&goldens, "dijs", "mini", "fd", "metal").unwrap();
    assert_eq!(other.class, "cuda");
}

// ---- accept ----

#[test]
fn accept_adds_seeds_and_keeps_the_values_that_stand() {
    let first = accepted(&fds(0, &[12.0, 13.0]));
    let (lines, _) = accept(first.clone(), &fds(2, &[14.0]), "a third seed", "2025-02-01").unwrap();
    assert_eq!(lines[0].values, BTreeMap::from([(0, 12.0), (1, 13.0), (2, 14.0)]));
    assert_eq!(lines[0].rule, Rule::Interval);
    assert_eq!((lines[0].reason.as_str(), lines[0].accepted.as_str()), ("a third seed", "2025-02-01"));
    assert_eq!(lines[0].manifests[&2], "dijs2");
    // Nothing new: nothing touched.
    let (same, diff) = accept(first.clone(), &fds(0, &[12.0]), "again", "2025-02-01").unwrap();
    assert_eq!(same, first);
    assert_eq!(diff, "golden lines: 0 rewritten, 0 added, 1 unchanged; reason: again\n");
}

#[test]
fn accept_names_exactly_what_it_rewrites() {
    let mut before = fds(0, &[12.31, 13.0, 14.0]);
    before.push(score("dijs", 0, "is", 2.5));
    before.push(score("dikl", 0, "fd", 20.0));
    let mut fresh = fds(0, &[12.58, 13.0]);
    fresh.push(score("dijs", 0, "is", 2.5));
    fresh.push(score("dijs", 0, "recall", 0.7));
    fresh.push(score("dijs", 0, golden::TIME, 0.2));
    let (lines, diff) =
        accept(accepted(&before), &fresh, "poses are drawn anew, \"v2\"", "2025-02-01").unwrap();
    assert_golden!("accept-diff", diff);
    let fd = golden::find(&lines, "dijs", "mini", "fd", "cpu-fma").unwrap();
    assert_eq!(fd.values, BTreeMap::from([(0, 12.58), (1, 13.0)]));
    assert!(lines.iter().all(|line| line.metric != golden::TIME));
    assert!(golden::find(&lines, "dikl", "mini", "fd", "cpu-fma").is_some());
}

#[test]
fn accept_keeps_a_tolerance_that_was_set_by_hand() {
    let mut lines = accepted(&fds(0, &[12.0]));
    lines[0].rule = Rule::Fixed { tolerance: 0.5 };
    let (lines, _) = accept(lines, &fds(0, &[12.2]), "new numerics", "2025-02-01").unwrap();
    assert_eq!(lines[0].rule, Rule::Fixed { tolerance: 0.5 });
}

#[test]
fn accept_refuses_what_cannot_be_golden() {
    let error = |fresh: &[Score], reason| accept(Vec::new(), fresh, reason, "2025-02-01").unwrap_err();
    assert_eq!(error(&fds(0, &[1.0]), "  ").exit_code(), EXIT_USAGE);
    assert!(error(&fds(0, &[f64::NAN]), "why").to_string().contains("NaN: that cannot be golden"));
    let twice = [fds(0, &[1.0]), fds(0, &[1.5])].concat();
    assert!(error(&twice, "why").to_string().contains("fd of dijs (seed 0, cpu-fma) was measured twice"));
    let other = error(&of_class("cpu, code 0123456789ab", fds(0, &[1.0])), "why");
    assert_eq!(other.exit_code(), EXIT_USAGE);
    assert!(other.to_string().contains("run it again"), "{other}");
}

#[test]
fn accept_refuses_in_ci() {
    for ci in [None, Some(""), Some("false")] {
        assert!(golden::refuse_in_ci(ci).is_ok(), "{ci:?}");
    }
    for ci in [Some("true"), Some("1")] {
        assert_eq!(golden::refuse_in_ci(ci).unwrap_err().exit_code(), EXIT_USAGE, "{ci:?}");
    }
}

// ---- files ----

fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn any_score() -> impl Strategy<Value = Score> {
    let name = "[a-z][a-z0-9-]{0,8}";
    let value = any::<f64>().prop_filter("NaN differs from itself", |x| !x.is_nan());
    let changes = "([a-z]{1,5}=[0-9.]{1,3})?";
    (name, changes, name, any::<u64>(), name, value, "[ -~é]{0,12}", "[0-9a-f]{0,8}").prop_map(
        |(row, changes, scale, seed, metric, value, class, manifest)| Score {
            row,
            changes,
            scale,
            seed,
            metric,
            value,
            class,
            manifest,
        },
    )
}

fn read_score(record: csv::Result<csv::StringRecord>) -> Score {
    let record = record.unwrap();
    let text = |column: usize| record[column].to_string();
    Score {
        row: text(0),
        changes: text(1),
        scale: text(2),
        seed: record[3].parse().unwrap(),
        metric: text(4),
        value: record[5].parse().unwrap(),
        class: text(6),
        manifest: text(7),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scores_read_back_to_the_last_bit(scores in prop::collection::vec(any_score(), 0..12)) {
        let text = golden::write_scores(&scores);
        let back: Vec<Score> = csv::Reader::from_reader(text.as_bytes()).records().map(read_score).collect();
        prop_assert_eq!(&back, &scores);
        for (a, b) in back.iter().zip(&scores) {
            prop_assert_eq!(a.value.to_bits(), b.value.to_bits());
        }
    }

    #[test]
    fn golden_lines_read_back(scores in prop::collection::vec(any_score(), 0..12), reason in "[ -~é]{1,20}") {
        let finite: Vec<Score> = scores.into_iter().filter(|s| s.value.is_finite()).collect();
        prop_assume!(!reason.trim().is_empty());
        // Two seeds alike with different values are an error of their own.
        if let Ok((lines, _)) = accept(Vec::new(), &finite, &reason, "2025-02-01") {
            let text = golden::write_golden(&lines);
            let back = golden::read_golden(written(&text).path()).unwrap();
            prop_assert_eq!(&back, &lines);
            let reversed: Vec<Golden> = lines.into_iter().rev().collect();
            prop_assert_eq!(golden::write_golden(&reversed), text);
        }
    }

    #[test]
    fn what_was_accepted_compares_as_the_same(
        values in prop::collection::vec(-1e6..1e6f64, 1..6),
        scale in 1e-6..1e6f64,
    ) {
        let scores = fds(3, &values.iter().map(|x| x * scale).collect::<Vec<_>>());
        prop_assert_eq!(status(&golden_of(&scores), &scores), Status::Same);
    }

    #[test]
    fn verdicts_do_not_depend_on_the_unit(
        values in prop::collection::vec(1.0..2.0f64, 3..6),
        fresh in prop::collection::vec(1.0..2.0f64, 1..4),
        power in -20..20i32,
    ) {
        // A power of two scales without rounding.
        let unit = 2f64.powi(power);
        let scaled = |x: &[f64]| x.iter().map(|x| x * unit).collect::<Vec<_>>();
        let plain = status(&golden_of(&fds(0, &values)), &fds(50, &fresh));
        prop_assert_eq!(plain, status(&golden_of(&fds(0, &scaled(&values))), &fds(50, &scaled(&fresh))));
    }

    #[test]
    fn t_quantiles_have_their_closed_forms(p in 0.001..0.999f64) {
        let near = |found: f64, exact: f64| (found - exact).abs() < 1e-9 * (1.0 + exact.abs());
        prop_assert!(near(stats::t_quantile(p, 1.0), (std::f64::consts::PI * (p - 0.5)).tan()));
        prop_assert!(near(stats::t_quantile(p, 2.0), (2.0 * p - 1.0) / (2.0 * p * (1.0 - p)).sqrt()));
    }

    #[test]
    fn the_t_distribution_is_the_integral_of_its_density(t in -8.0..8.0f64, dof in 1.0..80.0f64) {
        use std::f64::consts::PI;
        let scale = (libm::lgamma((dof + 1.0) / 2.0) - libm::lgamma(dof / 2.0)).exp() / (dof * PI).sqrt();
        let density = |x: f64| scale * (1.0 + x * x / dof).powf(-(dof + 1.0) / 2.0);
        // Simpson's rule.
        let (n, h) = (2000, t / 2000.0);
        let inner = |i: usize| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 };
        let integral = h / 3.0 * (density(0.0) + (1..n).map(inner).sum::<f64>() + density(t));
        prop_assert!((stats::t_cdf(t, dof) - 0.5 - integral).abs() < 1e-9);
        // Further out, 1 - p keeps too few digits.
        if t.abs() < 4.0 {
            prop_assert!((stats::t_quantile(stats::t_cdf(t, dof), dof) - t).abs() < 1e-9);
        }
    }
}

#[test]
fn t_quantiles_agree_with_the_table() {
    for (p, dof, table) in [
        (0.975, 1.0, 12.706205),
        (0.975, 2.0, 4.302653),
        (0.975, 3.0, 3.182446),
        (0.975, 4.0, 2.776445),
        (0.975, 5.0, 2.570582),
        (0.975, 10.0, 2.228139),
        (0.975, 30.0, 2.042272),
        (0.975, 120.0, 1.979930),
        (0.95, 1.0, 6.313752),
        (0.95, 4.0, 2.131847),
        (0.95, 10.0, 1.812461),
        (0.025, 2.0, -4.302653),
        (0.5, 7.0, 0.0),
    ] {
        assert!((stats::t_quantile(p, dof) - table).abs() < 1e-6, "t({p}, {dof})");
    }
}

#[test]
fn a_golden_file_that_was_edited_wrongly_is_refused_with_its_line() {
    let text = golden::write_golden(&accepted(&fds(0, &[1.0, 2.0, 3.0])));
    let refused = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{text}");
        let error = golden::read_golden(written(&text.replace(from, to)).path()).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_INPUT);
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(
        "0:1.0;1:2.0;2:3.0",
        "0:1.0;1:2.0",
        "`fixed` for fewer than three seeds in column `rule` on line 2",
    );
    refused("2:3.0", "1:3.0", "no seed twice in column `values` on line 2");
    refused("2:3.0", "2:inf", "a finite number for seed 2");
    refused("interval,", "interval,0.5", "nothing in column `tolerance`");
    refused("2:dijs2", "4:dijs2", "a digest for every seed");
    refused("row,scale", "cell,scale", "the header `row,scale,changes,metric");
    let twice = text.clone() + text.lines().last().unwrap() + "\n";
    let error = golden::read_golden(written(&twice).path()).unwrap_err().to_string();
    assert!(
        error.contains("another row, scale, changes, metric, class than line 2's on line 3, found `"),
        "{error}"
    );
    // As spreadsheets save it.
    let lines =
        || text.lines().map(|line| line.split(',').map(|cell| format!("\"{cell}\"")).collect::<Vec<_>>());
    let quoted: String = lines().map(|cells| cells.join(",") + "\r\n").collect();
    let read = golden::read_golden(written(&format!("\u{feff}{quoted}")).path()).unwrap();
    assert_eq!(golden::write_golden(&read), text);
    // No file: nothing has been accepted yet.
    assert_eq!(golden::read_golden(Path::new("no such file")).unwrap(), Vec::new());
}

// ---- the paper's files ----

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_papers_tables_hold_what_it_prints() {
    let directory = repository().join("paper");
    let mut rows = paper::table1(&directory).unwrap();
    // What is run is registered, with the calls that the paper prints.
    let presets = Overrides::none(Scale::Paper);
    let registered: BTreeMap<&str, u32> =
        method::TABLE1.iter().map(|row| (row.id, (row.method.nfe)(&presets) as u32)).collect();
    assert_eq!(rows.iter().map(|row| (row.id.as_str(), row.nfe)).collect::<BTreeMap<_, _>>(), registered);
    // Rows that the paper does not have are without a FID.
    rows.retain(|row| row.fid.is_some());
    let row = |id: &str| rows.iter().find(|row| row.id == id).unwrap();
    assert_eq!(rows.len(), 16);
    assert_eq!((row("dijs").fid, row("dijs").is, row("dijs").nfe), (Some(2.39), Some(9.93), 1));
    assert_eq!((row("edm").fid, row("edm").nfe), (Some(2.04), 35));
    assert_eq!((row("ddim").fid, row("ddim").is, row("ddim").nfe), (Some(8.23), None, 10));
    // What the number of another network or setting is held against instead.
    let target = |id: &str| row(id).target.as_ref().map(|target| target.fid);
    assert_eq!(target("dijs"), None);
    assert_eq!((target("ddim"), target("dpm-solver-fast")), (Some(Some(15.69)), Some(None)));
    assert_eq!((target("sid2a"), target("sct")), (Some(Some(1.50)), Some(Some(3.09))));
    // Held against what is printed, since that is of this very network.
    assert_eq!(target("amed-plugin"), Some(Some(6.61)));
    let targets = paper::targets(&directory).unwrap();
    let held = |id: &str| targets.iter().find(|(row, _)| row == id).map(|(_, fid)| *fid);
    assert_eq!((held("sid2a"), held("sid")), (Some(Fid::Value(1.50)), Some(Fid::Value(2.03))));

    let rows = paper::table2(&directory).unwrap();
    let fids: Vec<Fid> = rows.iter().map(|row| row.fid).collect();
    use Fid::{Collapsed, Value};
    assert_eq!(fids, [Collapsed, Collapsed, Collapsed, Value(6.20), Value(6.01), Value(2.39)]);
    assert_eq!(rows[5].cell, "dijs");
    assert_eq!(rows[0].dataset, None);
}

#[test]
fn the_papers_claims_are_understood() {
    let ablations: Vec<&str> = method::ABLATIONS.iter().map(|row| row.id).collect();
    let claims = paper::claims(&repository().join("paper"), &ablations).unwrap();
    let statement = |id: &str| &claims.iter().find(|claim| claim.id == id).unwrap().statement;
    let fd = |row: &str| Operand::Metric { metric: "fd".to_string(), row: row.to_string() };
    assert_eq!(
        statement("dijs-below-dikl"),
        &Statement::Less { left: fd("dijs"), right: fd("dikl"), factor: 1.0 }
    );
    // Table 2's last row is Table 1's DiJS.
    assert_eq!(statement("full-does-not-collapse"), &state("dijs", "collapse", false));
    assert_eq!(
        statement("full-below-ninety"),
        &Statement::Less { left: fd("dijs"), right: fd("init-90"), factor: 1.0 }
    );
    assert_eq!(statement("none-collapses"), &state("init-none", "collapse", true));
}

#[test]
fn the_golden_files_are_well_formed() {
    for table in ["table1.csv", "table2.csv"] {
        let path = repository().join("golden").join(table);
        let lines = golden::read_golden(&path).unwrap();
        if path.exists() {
            assert_eq!(golden::write_golden(&lines), std::fs::read_to_string(&path).unwrap(), "{table}");
        }
    }
}

const TABLE1: &str = "id,section,label,nfe,fid,is,ours,target,target_source
edm,Accelerated,\"EDM (Karras et al., 2022)\",35,2.04,9.84,Heun,,
ddim,Accelerated,DDIM,10,8.23,,Algorithm of it,,
diff-instruct,Distillation,Diff-Instruct,1,4.53,,Algorithm 1,,
dirm,Score-free / Class-ratio-based Distillation (Ours),DiRM,1,4.87,9.85,Eq 10,,
dikl,Score-free / Class-ratio-based Distillation (Ours),DiKL,1,3.81,9.90,Eq 8,,
dijs,Score-free / Class-ratio-based Distillation (Ours),DiJS,1,2.39,9.93,Eq 9,,
";
const TABLE2: &str = "id,initialization,dataset,fid,cell
init-none,No initialization,,collapsed,init-none
init-50,Multi-level DSM,50 classes in CIFAR-100,6.20,init-50
init-full,Multi-level DSM,full CIFAR-10,2.39,dijs
";
const CLAIMS: &str = "id,claim,where,kind,left,op,right,factor,note
order,DiJS outperforms DiKL,Section 2,order,fd(dijs),<,fd(dikl),1,
none,led to mode collapse,Section 3,category,init-none,collapsed,,,
half,half the size,Section 2,ratio,critic_parameters(dijs),~,generator_parameters(dijs),2,
words,an interpretation,Abstract,untestable,,,,,No inequality.
";

fn paper_files(table1: &str, table2: &str, claims: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("table1.csv", table1), ("table2.csv", table2), ("claims.csv", claims)] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn paper_rows() -> (Vec<Row1>, Vec<Row2>, Vec<Claim>) {
    let directory = paper_files(TABLE1, TABLE2, CLAIMS);
    let path = directory.path();
    (paper::table1(path).unwrap(), paper::table2(path).unwrap(), paper::claims(path, &[]).unwrap())
}

#[test]
fn a_paper_file_that_is_wrong_is_refused_with_file_line_and_expectation() {
    let refused = |from: &str, to: &str, expected: &str| {
        let edit = |text: &str| text.replace(from, to);
        let directory = paper_files(&edit(TABLE1), &edit(TABLE2), &edit(CLAIMS));
        let path = directory.path();
        let results = [paper::table1(path).err(), paper::table2(path).err(), paper::claims(path, &[]).err()];
        let error = results.into_iter().flatten().next().unwrap_or_else(|| panic!("{to} was taken"));
        assert_eq!(error.exit_code(), EXIT_INPUT);
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused("4.87", "4,87", "table1.csv is invalid: expected 9 fields on line 5, found 10");
    refused("4.87", "low", "a number in column `fid` on line 5, found `low`");
    refused("Algorithm of it,,", "Algorithm of it,many,why", "a number in column `target` on line 3");
    refused("Algorithm of it,,", "Algorithm of it,15.69,", "a text in column `target_source` on line 3");
    refused("Algorithm of it", "", "a text in column `ours` on line 3");
    refused("dikl,Score", "dijs,Score", "another id than line 6's on line 7, found `dijs`");
    refused("6.20,init-50", "6.20,", "table2.csv is invalid: expected a text in column `cell` on line 3");
    refused("fd(dijs)", "fid(dijs)", "one of the metrics fd, is");
    refused("fd(dikl)", "fd(ddpm)", "or an ablation, in column `right` on line 2");
    refused("fd(dikl)", "fd dikl", "`metric(row)` or a number in column `right` on line 2");
    refused(",<,", ",>,", "`<` or `~` in column `op` on line 2");
    refused("collapsed,,,", "gone,,,", "`collapsed`, `collapsed-early` or `not-collapsed` in column `op`");
    refused("(dijs),2,", "(dijs),0.5,", "a number above 1 in column `factor` on line 4");
    refused("untestable", "wisdom", "`untestable` in column `kind` on line 5");
    let missing = paper::table1(Path::new("no such place")).unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }));
}

// ---- claims ----

fn claim(statement: Statement) -> Claim {
    Claim {
        id: "claim".to_string(),
        claim: "words".to_string(),
        place: "Section 2".to_string(),
        statement,
        note: "No inequality.".to_string(),
    }
}

fn state(row: &str, metric: &'static str, collapsed: bool) -> Statement {
    Statement::Category { row: row.to_string(), metric, collapsed }
}

fn operand(text: &str) -> Operand {
    text.parse().unwrap()
}

/// The two rows' FD, one value per seed; the rows share no seed.
fn rows(left: &[f64], right: &[f64]) -> Vec<Score> {
    let row = |name, first: u64, values: &[f64]| -> Vec<Score> {
        values.iter().enumerate().map(|(i, x)| score(name, first + i as u64, "fd", *x)).collect()
    };
    [row("dijs", 0, left), row("dikl", 100, right)].concat()
}

fn less(left: &[f64], right: &[f64], factor: f64) -> Judgement {
    let statement = Statement::Less { left: operand("fd(dijs)"), right: operand("fd(dikl)"), factor };
    evaluate(&claim(statement), &rows(left, right), "mini")
}

fn near(left: &[f64], right: &[f64], factor: f64) -> Judgement {
    let statement = Statement::Near { left: operand("fd(dijs)"), right: operand("fd(dikl)"), factor };
    evaluate(&claim(statement), &rows(left, right), "mini")
}

#[test]
fn an_order_holds_once_it_is_significant() {
    // Both sides 0, ±1: s = 1, standard error sqrt(2/3), 4 degrees of freedom:
    // significant from a difference of 2.131847 * 0.816497 = 1.740645.
    let at = |d: f64| less(&[-1.0, 0.0, 1.0], &[d - 1.0, d, d + 1.0], 1.0);
    assert_eq!(at(1.7407).verdict, ClaimVerdict::Holds);
    assert!(at(1.7407).reason.ends_with("significantly smaller, p = 0.0500"), "{}", at(1.7407).reason);
    assert!(matches!(at(1.7406).verdict, ClaimVerdict::Undecided { .. }));
    assert!(matches!(at(-1.7406).verdict, ClaimVerdict::Undecided { .. }));
    assert_eq!(at(-1.7407).verdict, ClaimVerdict::DoesNotHold);
}

#[test]
fn welch_allows_for_unequal_spreads() {
    // Variances 1 and 16, three seeds each: dof = (17/3)^2 / ((1/9 + 256/9) / 2) = 2.249;
    // pooled, 4 degrees of freedom would call this difference significant.
    let at = |d: f64| less(&[-1.0, 0.0, 1.0], &[d - 4.0, d, d + 4.0], 1.0);
    let t = stats::t_quantile(0.95, 289.0 / 9.0 / (257.0 / 18.0));
    let critical = t * (17.0f64 / 3.0).sqrt();
    assert!(critical > 2.131847 * (17.0f64 / 3.0).sqrt() + 1.0);
    assert_eq!(at(critical + 1e-6).verdict, ClaimVerdict::Holds);
    assert!(matches!(at(critical - 1e-6).verdict, ClaimVerdict::Undecided { .. }));
}

/// The same seeds on both sides: SciPy's ttest_rel, 1.16 or later.
const PAIRED: [&[f64]; 2] = [&[9.12, 9.03, 9.25, 8.90, 9.40], &[9.30, 9.05, 9.41, 9.20, 9.38]];

fn pairs(statement: Statement, right: &[f64]) -> Judgement {
    let of = |row, values: &[f64]| -> Vec<Score> {
        values.iter().enumerate().map(|(i, x)| score(row, i as u64, "fd", *x)).collect()
    };
    evaluate(&claim(statement), &[of("dijs", PAIRED[0]), of("dikl", right)].concat(), "mini")
}

#[test]
fn rows_of_the_same_seeds_are_paired() {
    let statement =
        |left, right, factor| Statement::Less { left: operand(left), right: operand(right), factor };
    let paired = pairs(statement("fd(dijs)", "fd(dikl)", 1.0), PAIRED[1]);
    assert_eq!(paired.verdict, ClaimVerdict::Holds);
    assert!((paired.p.unwrap() - 0.045635610949821326).abs() < 1e-12, "{paired:?}");
    // 90 %: what a one-sided test at 5 % decides, this interval leaves 0 out of.
    let numbers = "difference −0.128 [−0.251, −0.00472] (paired): significantly smaller, p = 0.0456";
    assert!(paired.reason.ends_with(numbers), "{}", paired.reason);
    // The same numbers as strangers: ttest_ind, equal_var=False.
    let welch = less(PAIRED[0], PAIRED[1], 1.0);
    assert!(matches!(welch.verdict, ClaimVerdict::Undecided { .. }));
    assert!((welch.p.unwrap() - 0.13730901902452286).abs() < 1e-12, "{welch:?}");
    assert!(welch.reason.contains("[−0.332, 0.0758] (Welch)"), "{}", welch.reason);
    // A pair is missing.
    let four = pairs(statement("fd(dijs)", "fd(dikl)", 1.0), &PAIRED[1][..4]);
    assert!(four.reason.contains("(Welch)"), "{}", four.reason);
    // A factor is one of each pair.
    let reverse = pairs(statement("fd(dikl)", "fd(dijs)", 0.9), PAIRED[1]);
    assert_eq!(reverse.verdict, ClaimVerdict::DoesNotHold);
    // Far fewer seeds than strangers need.
    let needed = |judged: Judgement| match judged.verdict {
        ClaimVerdict::Undecided { seeds_needed } => seeds_needed.unwrap(),
        decided => panic!("{decided:?}"),
    };
    let near_to = [9.25, 9.02, 9.33, 9.05, 9.36];
    let (few, many) =
        (pairs(statement("fd(dijs)", "fd(dikl)", 1.0), &near_to), less(PAIRED[0], &near_to, 1.0));
    assert!(needed(few) < needed(many) / 2);
}

#[test]
fn a_ratio_of_pairs_has_the_interval_of_their_logarithms() {
    let near = |factor| {
        let statement = Statement::Near { left: operand("fd(dijs)"), right: operand("fd(dikl)"), factor };
        pairs(statement, PAIRED[1])
    };
    // ttest_rel of the logarithms: exp of its 90 % interval.
    let holds = near(1.028);
    assert_eq!(holds.verdict, ClaimVerdict::Holds);
    assert!(holds.reason.contains("[0.973, 1.000] (paired), inside"), "{}", holds.reason);
    assert!(matches!(near(1.0279).verdict, ClaimVerdict::Undecided { .. }));
}

#[test]
fn holm_is_what_statsmodels_gives() {
    let p = [0.01, 0.04, 0.003, 0.2, 0.004];
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    // multipletests(p, method='holm')
    assert!(close(&stats::holm(&p, 5), &[0.03, 0.08, 0.015, 0.2, 0.016]));
    // The same with the five tests in the other direction, 1 - p.
    assert!(close(&stats::holm(&p, 10), &[0.08, 0.28, 0.03, 1.0, 0.036]));
    assert!(stats::holm(&[], 0).is_empty());
}

#[test]
fn the_whole_family_of_claims_is_corrected() {
    let less = |left: &str, right: &str| {
        claim(Statement::Less { left: operand(left), right: operand(right), factor: 1.0 })
    };
    let claims = [
        less("fd(dijs)", "fd(dikl)"),
        claim(Statement::Untestable),
        less("fd(dikl)", "fd(dijs)"),
        less("fd(dijs)", "20"),
    ];
    let scores: Vec<Score> = [("dijs", PAIRED[0]), ("dikl", PAIRED[1])]
        .into_iter()
        .flat_map(|(row, values)| values.iter().enumerate().map(move |(i, x)| score(row, i as u64, "fd", *x)))
        .collect();
    let judged = evaluate_all(&claims, &scores, &[], "mini");
    let of = |i: usize| &judged[i].own;
    let (first, second) = (of(0), of(2));
    let close = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-12;
    assert!(close(first.p, second.p) && close(first.holm, second.holm), "one difference in two directions");
    // Three claims, six tests: the plain number's is the smallest, then these two.
    assert!((first.holm.unwrap() - 5.0 * first.p.unwrap()).abs() < 1e-12);
    assert!((of(3).holm.unwrap() - 6.0 * of(3).p.unwrap()).abs() < 1e-12);
    assert!(first.reason.ends_with("p = 0.0456; after Holm p = 0.23"), "{}", first.reason);
    assert_eq!((of(1).p, of(1).holm), (None, None));
}

#[test]
fn trajectories_and_changed_rows_are_judged() {
    let along = |row: &str, changes: &str, metric: &str, values: &[f64]| -> Vec<Score> {
        let one = |(seed, x): (usize, &f64)| Score {
            changes: changes.into(),
            ..score(row, seed as u64, metric, *x)
        };
        values.iter().enumerate().map(one).collect()
    };
    let scores = [
        along("init-single", "", "early_collapse", &[2.0, 2.0, 2.0]),
        along("init-single", "", "collapse", &[0.0, 0.0, 0.0]),
        along("dijs", "", "halfway_fd", &[9.0, 9.1, 9.2]),
        along("dijs", "critic_steps=5", "halfway_fd", &[7.0, 7.2, 7.1]),
        along("dijs", "critic_steps=5", "collapse", &[0.0, 2.0, 0.0]),
    ]
    .concat();
    let at = |statement| evaluate(&claim(statement), &scores, "mini");
    assert_eq!(at(state("init-single", "early_collapse", true)).verdict, ClaimVerdict::Holds);
    assert_eq!(at(state("init-single", "collapse", true)).verdict, ClaimVerdict::DoesNotHold);
    let changed = || operand("halfway_fd(dijs+critic_steps=5)");
    let faster = Statement::Less { left: changed(), right: operand("halfway_fd(dijs)"), factor: 1.0 };
    assert_eq!(at(faster.clone()).verdict, ClaimVerdict::Holds);
    let stable = at(state("dijs+critic_steps=5", "collapse", false));
    assert!(stable.reason.contains("the seeds disagree"), "{stable:?}");
    // Under a reading its rows change, and others do not.
    let under = claim(faster).under("beta2=0.9", &["dijs"]);
    let expected =
        Statement::Less { left: changed(), right: operand("halfway_fd(dijs+beta2=0.9)"), factor: 1.0 };
    assert_eq!(under.statement, expected);
}

/// The verdict of a study is made of its numbers alone.
#[test]
fn a_study_is_judged_by_its_best_and_its_worst_value() {
    let part = |lr: &str| Part {
        row: "dijs".into(),
        value: format!("critic_lr {lr}"),
        cell: if lr == "0.001" { "dijs".into() } else { format!("dijs+critic_lr={lr}") },
        curves: Vec::new(),
    };
    let study = Study {
        id: "rates".into(),
        question: "Does the critic's speed decide collapse?".into(),
        answer: "fd".into(),
        cells: ["5e-5", "2e-4", "0.001"].map(part).to_vec(),
        command: String::new(),
    };
    let of = |changes: &str, metric: &str, values: &[f64]| -> Vec<Score> {
        let one = |(seed, x): (usize, &f64)| Score {
            changes: changes.into(),
            ..score("dijs", seed as u64, metric, *x)
        };
        values.iter().enumerate().map(one).collect()
    };
    let scores = [
        of("", "fd", &PAIRED[0][..3]),
        of("critic_lr=5e-5", "fd", &[30.0, 31.0, 35.0]),
        of("critic_lr=5e-5", "collapse", &[2.0, 2.0, 1.0]),
        of("", "collapse", &[0.0, 0.0, 0.0]),
    ]
    .concat();
    let unlearned = BTreeSet::new();
    let measured = Measured { scale: "mini", scores: &scores, comparisons: &[], unlearned: &unlearned };
    assert_eq!(
        studies::verdict(&study, measured),
        "dijs: FD is 9.13 ± 0.11 (n=3) with critic_lr 0.001 and 32.00 ± 2.65 (n=3) with critic_lr 5e-5, 22.87 \
         apart [16.52, 29.22], more than chance (95 %, paired); the criterion of collapse is met with critic_lr 5e-5 \
         (2 of 3)."
    );
    let table = studies::table(&study, measured);
    assert!(table.to_csv().contains("dijs+critic_lr=5e-5,,dijs,critic_lr 5e-5,32.0,"), "{}", table.to_csv());
    let nothing = Measured { scores: &scores[..3], ..measured };
    assert!(studies::verdict(&study, nothing).starts_with("No two values of study rates"));
}

/// Metrics that joined later are compared where a line has them, and missed nowhere.
#[test]
fn metrics_along_the_run_need_no_golden_line() {
    let old = accepted(&fds(0, &[1.0, 2.0, 3.0]));
    let fresh = [fds(0, &[1.0, 2.0, 3.0]), vec![score("dijs", 0, "halfway_fd", 4.0)]].concat();
    assert_eq!(golden::check(&old, &fresh).len(), 1);
    let new = accepted(&fresh);
    assert_eq!(golden::check(&new, &fresh).iter().filter(|c| c.metric == "halfway_fd").count(), 1);
}

#[test]
fn a_changed_row_is_a_cell_of_its_own() {
    let changed: Vec<Score> =
        fds(0, &[5.0, 6.0, 7.0]).into_iter().map(|s| Score { changes: "batch=8".into(), ..s }).collect();
    let both = [fds(0, &[1.0, 2.0, 3.0]), changed].concat();
    let lines = accepted(&both);
    assert_eq!(lines.len(), 2);
    let text = golden::write_golden(&lines);
    assert!(text.starts_with("row,scale,changes,") && text.contains("\ndijs,mini,batch=8,fd,"), "{text}");
    assert_eq!(golden::read_golden(written(&text).path()).unwrap(), lines);
    assert_eq!(golden::values(&both, "dijs", "mini", "fd")[&0], 1.0);
    assert_eq!(golden::values(&both, "dijs+batch=8", "mini", "fd")[&0], 5.0);
    assert!(golden::values(&both, "dijs+batch", "mini", "fd").is_empty());
    let compared = golden::check(&lines, &both);
    let rows: Vec<&str> = compared.iter().map(|c| c.row.as_str()).collect();
    assert_eq!(rows, ["dijs", "dijs+batch=8"]);
    // A file that was written before there were changes.
    let before = golden::write_golden(&accepted(&fds(0, &[1.0, 2.0, 3.0])));
    let before = before.replace("scale,changes,", "scale,").replace("dijs,mini,,", "dijs,mini,");
    assert_eq!(golden::read_golden(written(&before).path()).unwrap(), accepted(&fds(0, &[1.0, 2.0, 3.0])));
}

#[test]
fn a_seed_measured_on_two_classes_counts_once() {
    let mut scores = of_class("cuda", fds(0, &[5.0, 6.0]));
    scores.extend(fds(1, &[7.0]));
    scores.push(Score { scale: "paper".to_string(), ..score("dijs", 4, "fd", 2.4) });
    assert_eq!(golden::values(&scores, "dijs", "mini", "fd"), BTreeMap::from([(0, 5.0), (1, 7.0)]));
}

#[test]
fn five_percent_of_equal_rows_are_called_smaller() {
    let stream = Stream::new("tests/golden", "welch");
    let trials = 4000;
    let held = (0..trials).filter(|trial| {
        let x: Vec<f64> = stream.normals(*trial, 10).iter().map(|x| f64::from(*x)).collect();
        less(&x[..5], &x[5..], 1.0).verdict == ClaimVerdict::Holds
    });
    let share = held.count() as f64 / trials as f64;
    assert!((0.036..0.062).contains(&share), "{share}");
}

#[test]
fn the_seeds_that_it_takes_are_estimated_well() {
    let ClaimVerdict::Undecided { seeds_needed: Some(n) } =
        less(&[-1.0, 0.0, 1.0], &[-0.2, 0.8, 1.8], 1.0).verdict
    else {
        panic!("decided too early");
    };
    // The textbook's (1.645 + 0.842)^2 * 2 / 0.8^2 = 19.3, and a little for t instead of z.
    assert_eq!(n, 21);
    let stream = Stream::new("tests/golden", "power");
    let trials = 4000;
    let held = (0..trials).filter(|trial| {
        let x: Vec<f64> = stream.normals(*trial, 2 * n).iter().map(|x| f64::from(*x)).collect();
        let right: Vec<f64> = x[n..].iter().map(|x| x + 0.8).collect();
        less(&x[..n], &right, 1.0).verdict == ClaimVerdict::Holds
    });
    let share = held.count() as f64 / trials as f64;
    assert!((0.77..0.84).contains(&share), "{share}");
}

#[test]
fn single_seeds_decide_nothing() {
    let alone = less(&[1.0], &[100.0], 1.0);
    assert_eq!(alone.verdict, ClaimVerdict::Undecided { seeds_needed: None });
    assert_eq!(alone.reason, "1 vs 100", "why is said once of all claims: {ONE_SEED}");
    // The other side lends its spread to the estimate.
    let ClaimVerdict::Undecided { seeds_needed: Some(n) } = less(&[1.0], &[3.0, 5.0, 7.0], 1.0).verdict
    else {
        panic!("a single seed decided");
    };
    assert!((3..10).contains(&n), "{n}");
    assert_eq!(near(&[1.0], &[1.0], 1.1).verdict, ClaimVerdict::Undecided { seeds_needed: None });
}

#[test]
fn equal_rows_need_more_seeds_than_anyone_has() {
    assert_eq!(less(&[1.0, 2.0], &[1.0, 2.0], 1.0).verdict, ClaimVerdict::Undecided { seeds_needed: None });
}

#[test]
fn a_factor_loosens_the_right_side() {
    let (left, right) = ([10.0, 10.1, 10.2], [9.6, 9.7, 9.8]);
    assert_eq!(less(&left, &right, 1.0).verdict, ClaimVerdict::DoesNotHold);
    assert_eq!(less(&left, &right, 1.172).verdict, ClaimVerdict::Holds);
    // It scales the spread too: twice 0, ±0.5 is 0, ±1, significant from 1.740645 as above.
    let at = |d: f64| less(&[-1.0, 0.0, 1.0], &[(d - 1.0) / 2.0, d / 2.0, (d + 1.0) / 2.0], 2.0).verdict;
    assert_eq!(at(1.7407), ClaimVerdict::Holds);
    assert!(matches!(at(1.7406), ClaimVerdict::Undecided { .. }));
    assert!(less(&left, &right, 1.172).reason.contains("vs 1.17 x 9.70 ± 0.10 (n=3)"));
}

#[test]
fn a_plain_number_is_exact() {
    let against = |x: &str| {
        let statement = Statement::Less { left: operand("fd(dijs)"), right: operand(x), factor: 1.0 };
        evaluate(&claim(statement), &rows(&[1.0, 2.0, 3.0], &[]), "mini").verdict
    };
    // One-sample t-test: 2 + t(2, .95) / sqrt(3) = 3.68585.
    assert_eq!(against("3.6859"), ClaimVerdict::Holds);
    assert!(matches!(against("3.6858"), ClaimVerdict::Undecided { .. }));
    assert_eq!(against("0.31"), ClaimVerdict::DoesNotHold);
}

#[test]
fn parameter_counts_are_decided_on_one_seed() {
    let scores = [
        score("dijs", 0, "critic_parameters", 19_632_768.0),
        score("dijs", 0, "generator_parameters", 55_733_891.0),
    ];
    let (left, right) = (operand("critic_parameters(dijs)"), operand("generator_parameters(dijs)"));
    let decided = |statement| evaluate(&claim(statement), &scores, "mini");
    let (l, r) = (left.clone(), right.clone());
    assert_eq!(decided(Statement::Less { left: l, right: r, factor: 1.0 }).verdict, ClaimVerdict::Holds);
    let (l, r) = (left.clone(), right.clone());
    let half = decided(Statement::Near { left: l, right: r, factor: 2.0 });
    assert_eq!(half.verdict, ClaimVerdict::DoesNotHold);
    assert_eq!(half.reason, "19632768 vs 55733891, ratio 0.352, outside [0.500, 2.000]");
    let (l, r) = (left.clone(), right);
    assert_eq!(decided(Statement::Near { left: l, right: r, factor: 3.0 }).verdict, ClaimVerdict::Holds);
    let (l, r) = (left.clone(), left);
    assert_eq!(
        decided(Statement::Less { left: l, right: r, factor: 1.0 }).verdict,
        ClaimVerdict::DoesNotHold
    );
}

#[test]
fn a_ratio_holds_with_the_spread_of_its_seeds() {
    let (left, right) = ([9.9, 10.0, 10.1], [9.9, 10.0, 10.1]);
    // ln-spread .01 each, 4 degrees of freedom: half-width 2.131847 * .01 * sqrt(2/3) = .017406.
    assert_eq!(near(&left, &right, 1.0176).verdict, ClaimVerdict::Holds);
    assert!(matches!(near(&left, &right, 1.0175).verdict, ClaimVerdict::Undecided { .. }));
    assert_eq!(near(&left, &[19.9, 20.0, 20.1], 1.5).verdict, ClaimVerdict::DoesNotHold);
    assert_eq!(near(&[19.9, 20.0, 20.1], &right, 1.5).verdict, ClaimVerdict::DoesNotHold);
    assert!(matches!(near(&[5.0, 10.0, 15.0], &right, 1.2).verdict, ClaimVerdict::Undecided { .. }));
    let negative = near(&[-1.0, -2.0], &right, 1.2);
    assert_eq!(negative.verdict, ClaimVerdict::Undecided { seeds_needed: None });
}

#[test]
fn all_seeds_must_agree_on_a_category() {
    let decided = |states: &[f64], collapsed: bool| {
        let scores: Vec<Score> = states
            .iter()
            .enumerate()
            .map(|(seed, x)| score("init-10", seed as u64, "collapse", *x))
            .collect();
        evaluate(&claim(state("init-10", "collapse", collapsed)), &scores, "mini")
    };
    assert_eq!(decided(&[2.0, 2.0, 2.0], true).verdict, ClaimVerdict::Holds);
    assert_eq!(decided(&[2.0, 2.0, 2.0], false).verdict, ClaimVerdict::DoesNotHold);
    assert_eq!(decided(&[0.0, 1.0], true).verdict, ClaimVerdict::DoesNotHold);
    assert_eq!(decided(&[0.0, 1.0], false).verdict, ClaimVerdict::Holds);
    for collapsed in [true, false] {
        let split = decided(&[2.0, 0.0, 2.0], collapsed);
        assert_eq!(split.verdict, ClaimVerdict::Undecided { seeds_needed: None });
        assert_eq!(split.reason, "init-10 healthy on seed 1, collapsed on seeds 0, 2: the seeds disagree");
        assert_eq!(decided(&[], collapsed).verdict, ClaimVerdict::NotTested);
        for state in [0.0, 2.0] {
            let one = decided(&[state], collapsed);
            assert_eq!(one.verdict, ClaimVerdict::Undecided { seeds_needed: None });
            assert!(one.reason.ends_with("on seed 0"), "{}", one.reason);
        }
    }
}

#[test]
fn what_cannot_be_tested_says_why() {
    let tested = |statement, scores: &[Score], scale| {
        let result = evaluate(&claim(statement), scores, scale);
        assert_eq!(result.verdict, ClaimVerdict::NotTested);
        result.reason
    };
    let order = |metric: &str| Statement::Less {
        left: operand(&format!("{metric}(dijs)")),
        right: operand(&format!("{metric}(dikl)")),
        factor: 1.0,
    };
    let scores = rows(&[1.0, 1.1], &[2.0, 2.1]);
    assert_eq!(tested(Statement::Untestable, &scores, "mini"), "No inequality.");
    assert_eq!(tested(order("fd"), &scores[..2], "mini"), "fd of dikl is not measured at scale mini");
    assert_eq!(tested(order("fd"), &scores, "paper"), "fd of dijs is not measured at scale paper");
    assert!(tested(order("is"), &scores, "mini").contains("unreliable at mini"));
    let smoke: Vec<Score> =
        scores.iter().map(|s| Score { scale: "smoke".to_string(), ..s.clone() }).collect();
    assert!(tested(order("fd"), &smoke, "smoke").contains("too few steps to test the paper's claims"));
    assert_eq!(
        tested(order("fd"), &rows(&[1.0, f64::NAN], &[2.0, 2.1]), "mini"),
        "fd of dijs is NaN on some seed"
    );
}

#[test]
fn times_compare_within_a_class_only() {
    let timed = |row: &str, class: &str, values: &[f64]| -> Vec<Score> {
        let one = |(seed, x): (usize, &f64)| score(row, seed as u64, golden::TIME, *x);
        of_class(class, values.iter().enumerate().map(one).collect())
    };
    let statement = Statement::Less {
        left: operand("seconds_per_iteration(dijs)"),
        right: operand("seconds_per_iteration(diff-instruct)"),
        factor: 1.0,
    };
    let gpu = timed("dijs", "cuda", &[0.010, 0.011]);
    let cpu = timed("diff-instruct", "cpu-fma", &[0.500, 0.510]);
    let decided = |scores: Vec<Score>| evaluate(&claim(statement.clone()), &scores, "mini").verdict;
    assert_eq!(decided([gpu.clone(), cpu.clone()].concat()), ClaimVerdict::NotTested);
    let both = [gpu, cpu, timed("dijs", "cpu-fma", &[0.700, 0.710])].concat();
    assert_eq!(decided(both), ClaimVerdict::DoesNotHold);
}

// ---- tables ----

/// Everything that a table can show: agreement, new seeds, changed numbers, nothing golden, nothing run.
fn example() -> (Vec<Score>, Vec<Golden>) {
    let seeded = |row: &'static str, metric: &'static str, values: &'static [f64]| {
        values.iter().enumerate().map(move |(seed, x)| score(row, seed as u64, metric, *x))
    };
    let mut scores: Vec<Score> = seeded("dijs", "fd", &[58.25, 60.5, 57.125])
        .chain(seeded("dijs", "is", &[8.5, 8.25, 8.75]))
        .chain(seeded("dijs", "recall", &[0.70, 0.68, 0.72]))
        .chain(seeded("dijs", "precision", &[0.5, 0.5, 0.75]))
        .chain(seeded("dijs", "classes", &[9.75, 9.5, 9.5]))
        .chain(seeded("dijs", "diversity", &[0.375, 0.375, 0.25]))
        .chain(seeded("dijs", "collapse", &[0.0, 0.0, 0.0]))
        .chain(seeded("dijs", golden::TIME, &[0.21, 0.22, 0.20]))
        .chain(seeded("dijs", "critic_parameters", &[70_000.0, 70_000.0, 70_000.0]))
        .chain(seeded("dijs", "generator_parameters", &[189_491.0, 189_491.0, 189_491.0]))
        .chain(seeded("dirm", "fd", &[78.5]))
        .chain(seeded("init-none", "fd", &[1220.5, 2280.25]))
        .chain(seeded("init-none", "recall", &[0.02, 0.0]))
        .chain(seeded("init-none", "collapse", &[2.0, 1.0]))
        .collect();
    let mut goldens = accepted(&scores);
    // DiKL: new seeds. DiRM: another number. EDM: never accepted. Diff-Instruct: never run.
    goldens.extend(accepted(&seeded("dikl", "fd", &[63.0, 64.0, 62.5]).collect::<Vec<_>>()));
    scores.extend(of_class("cuda-h200", seeded("dikl", "fd", &[63.5, 62.75]).collect()));
    scores.iter_mut().filter(|s| s.row == "dirm").for_each(|s| s.value = 79.5);
    scores.extend(seeded("edm", "fd", &[12.75]));
    // Another scale never enters this one's table.
    scores.push(Score { scale: "smoke".to_string(), ..score("diff-instruct", 0, "fd", 999.0) });
    (scores, goldens)
}

/// Table 1 of `scores`, judged as the program does.
fn table1(rows: &[Row1], scores: &[Score], goldens: &[Golden], scale: &str) -> Table {
    let comparisons = golden::check(goldens, scores);
    tables::table1(rows, Measured { scale, scores, comparisons: &comparisons, unlearned: &BTreeSet::new() })
}

/// Table 2 of `scores`; seed 0 of init-none has not learned.
fn table2(rows: &[Row2], scores: &[Score], goldens: &[Golden], scale: &str) -> Table {
    let (comparisons, unlearned) =
        (golden::check(goldens, scores), BTreeSet::from([("init-none".to_string(), 0)]));
    tables::table2(rows, Measured { scale, scores, comparisons: &comparisons, unlearned: &unlearned })
}

#[test]
fn table1_is_rendered_in_three_formats() {
    let (scores, goldens) = example();
    let table = table1(&paper_rows().0, &scores, &goldens, "mini");
    assert_golden!("report-table1-text", table.to_text(false));
    assert_golden!("report-table1-markdown", table.to_markdown());
    assert_golden!("report-table1-csv", table.to_csv());
}

#[test]
fn table2_is_rendered_in_three_formats() {
    let (scores, goldens) = example();
    let table = table2(&paper_rows().1, &scores, &goldens, "mini");
    assert_golden!("report-table2-text", table.to_text(false));
    assert_golden!("report-table2-markdown", table.to_markdown());
    assert_golden!("report-table2-csv", table.to_csv());
}

#[test]
fn a_row_with_a_metric_that_was_not_run_keeps_its_verdict() {
    let (mut scores, goldens) = example();
    scores.retain(|s| (s.row.as_str(), s.metric.as_str()) != ("dijs", "is"));
    let text = table1(&paper_rows().0, &scores, &goldens, "mini").to_text(false);
    assert!(text.lines().any(|line| line.contains("DiJS") && line.contains("same, 1 not run")), "{text}");
}

#[test]
fn other_code_is_named_once() {
    let (scores, goldens) = example();
    let by = |code: &str, row: &str| {
        let of_row = scores.iter().filter(|s| s.row == row).cloned().collect();
        of_class(&format!("cpu-fma, code {code}"), of_row)
    };
    let table = table1(&paper_rows().0, &[by("bbb", "dijs"), by("aaa", "dirm")].concat(), &goldens, "mini");
    let ours: Vec<&String> = table.notes.iter().filter(|note| note.starts_with("Ours: ")).collect();
    assert!(ours.len() == 1 && ours[0].contains("other code made (aaa, bbb)"), "{ours:?}");
}

#[test]
fn fid_and_fd_keep_their_names() {
    let columns = |scale: &str| -> Vec<String> {
        let (one, two) = (table1(&[], &[], &[], scale), table2(&[], &[], &[], scale));
        one.columns
            .into_iter()
            .chain(two.columns)
            .map(|c| c.title)
            .filter(|t| !t.starts_with("paper"))
            .collect()
    };
    for scale in ["smoke", "mini"] {
        let titles = columns(scale);
        assert!(titles.contains(&"FD".to_string()) && titles.contains(&"IS stand-in".to_string()));
        assert!(!titles.iter().any(|t| t == "FID" || t == "IS"), "{titles:?}");
    }
    for scale in ["small", "paper"] {
        let titles = columns(scale);
        assert!(titles.contains(&"FID".to_string()) && !titles.contains(&"FD".to_string()), "{titles:?}");
    }
}

#[test]
fn a_target_that_is_not_the_printed_number_is_said() {
    let mut rows = paper_rows().0;
    let target = |fid| Some(paper::Target { fid, source: "Another network".into() });
    (rows[0].target, rows[1].target) = (target(Some(1.97)), target(None));
    let text = table1(&rows, &[], &[], "mini").to_text(false);
    assert!(text.contains("the target is 1.97, not the printed 2.04. Another network."), "{text}");
    assert!(text.contains("DDIM: the printed 8.23 is no target. Another network."), "{text}");
}

/// Of the paper's own table: what was seen before, in place of a pre-training, or less; and what costs
/// more than three times DiJS.
#[test]
fn budgets_that_differ_are_said() {
    let rows = paper::table1(&repository().join("paper")).unwrap();
    let notes = |scale: &str| table1(&rows, &[], &[], scale).notes;
    let says = |notes: &[String], row: &str, words: &str| {
        assert!(notes.iter().any(|n| n.starts_with(row) && n.contains(words)), "{row}: {words}\n{notes:?}");
    };
    let mini = notes("mini");
    for row in ["iCT", "BCM", "Diff-GAN"] {
        says(&mini, row, "without pre-training; it sees 294,400 images, the others 38,400 after");
    }
    says(&mini, "AMED-plugin", "its training ends after 10,000 images");
    says(&mini, "SID²A", "the same seed, which was trained on 38,400 images, and is trained on 38,400 more");
    says(&notes("paper"), "SID²A", "the published generator of SID (α=1) (Zhou et al., 2024b), which was");
    says(
        &notes("paper"),
        "SID²A",
        "which was trained on 403,968,000 images, and is trained on 100,000,000 more",
    );
    for row in ["BCM", "CTM"] {
        says(&mini, row, "times the operations of dijs");
    }
    assert!(mini.iter().all(|note| !note.starts_with("DiKL") && !note.starts_with("Diff-Instruct")));
}

#[test]
fn colour_is_all_that_colour_changes() {
    let (scores, goldens) = example();
    let table = table1(&paper_rows().0, &scores, &goldens, "mini");
    let coloured = table.to_text(true);
    assert!(coloured.contains("\x1b[31mOUTSIDE: fd\x1b[0m") && coloured.contains("\x1b[32msame\x1b[0m"));
    let stripped = ["\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"]
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    let trimmed: Vec<&str> = stripped.lines().map(str::trim_end).collect();
    assert_eq!(trimmed, table.to_text(false).lines().collect::<Vec<_>>());
}

#[test]
fn check_is_rendered_as_text_and_as_json() {
    let (scores, goldens) = example();
    let mini: Vec<Score> = scores.into_iter().filter(|s| s.scale == "mini").collect();
    let comparisons = golden::check(&goldens, &mini);
    let results = evaluate_all(&paper_rows().2, &mini, &golden::accepted(&goldens), "mini");
    assert_golden!("report-check-text", verdicts::check_text(&comparisons, &results, &[0, 1, 2], false));
    let json = verdicts::check_json(&comparisons, &results);
    assert_golden!("report-check-json", json);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["golden"].as_array().unwrap().len(), comparisons.len());
    assert_eq!(value["claims"].as_array().unwrap().len(), results.len());
}

#[test]
fn golden_s_seeds_are_judged_beside_the_run_s_own() {
    let claims = paper_rows().2;
    let seeded = |row: &str, values: &[f64]| -> Vec<Score> {
        values.iter().enumerate().map(|(seed, x)| score(row, seed as u64, "fd", *x)).collect()
    };
    let accepted = [seeded("dijs", &[5.0, 5.1, 5.2]), seeded("dikl", &[7.0, 7.1, 7.2])].concat();
    let own = [seeded("dijs", &[5.0]), seeded("dikl", &[7.0])].concat();
    let order = &evaluate_all(&claims, &own, &golden::accepted(&self::accepted(&accepted)), "mini")[0];
    assert_eq!(order.own.verdict, ClaimVerdict::Undecided { seeds_needed: None });
    assert_eq!(order.golden.as_ref().unwrap().verdict, ClaimVerdict::Holds);
    assert_eq!(order.leading().verdict, ClaimVerdict::Holds);
    let text = verdicts::check_text(&[], std::slice::from_ref(order), &[0], false);
    assert!(
        text.starts_with("claims: 1 holds\nof these on this run's seed 0 alone: 1 undecided\n"),
        "{text}"
    );
    assert_eq!(text.matches("One seed").count(), 1, "{text}");
    assert!(!text.contains("(n=1)"), "{text}");
    // The same numbers are said once, though Holm's correction is that of another family.
    let shown = |reason: &str| {
        let mut claim = order.clone();
        claim.own = Judgement { reason: reason.to_string(), ..claim.golden.clone().unwrap() };
        verdicts::check_text(&[], &[claim], &[0, 1, 2], false)
    };
    let measured = order.golden.as_ref().unwrap().reason.split("; after Holm").next().unwrap();
    assert!(!shown(&format!("{measured}; after Holm p = 0.77")).contains("this run: 5"), "{measured}");
    assert!(shown("5.00 vs 6.00").contains("; this run: 5.00 vs 6.00"));
    // Nothing is accepted at another scale: the run's own verdict leads.
    let alone = &evaluate_all(&claims, &own, &[], "mini")[0];
    assert_eq!((&alone.golden, alone.leading()), (&None, &alone.own));
}

#[test]
fn differences_are_welch_s_of_the_pairs_that_the_claims_compare() {
    let claims = paper_rows().2;
    let own = rows(&[-1.0, 0.0, 1.0], &[4.0, 5.0, 6.0]);
    let [dijs_dikl] = &differences(&claims, &own, &own[..1], "mini")[..] else {
        panic!("one pair is measured")
    };
    assert_eq!((dijs_dikl.left.as_str(), dijs_dikl.right.as_str()), ("dijs", "dikl"));
    let gap = dijs_dikl.own.unwrap();
    // Both sides s = 1: standard error sqrt(2/3), 4 degrees of freedom.
    assert!((gap.mean + 5.0).abs() < 1e-12 && (gap.half.unwrap() - 2.776_445 * 0.816_497).abs() < 1e-5);
    assert!(gap.tells() && dijs_dikl.golden.is_none());
    let one = differences(&claims, &rows(&[1.0], &[2.0]), &[], "mini")[0].own.unwrap();
    assert_eq!((one.mean, one.half, one.tells()), (-1.0, None, false));
}

#[test]
fn golden_expects_another_seed_within_its_interval() {
    let golden = golden_of(&fds(0, &[2.4, 2.5, 2.4]));
    let (low, mean, high) = golden.interval();
    for (value, expected) in [
        (low + 1e-6, Status::Within),
        (high - 1e-6, Status::Within),
        (low - 1e-6, Status::Outside),
        (high + 1e-6, Status::Outside),
    ] {
        assert_eq!(status(&golden, &fds(7, &[value])), expected, "{value}");
    }
    assert!((mean - 7.3 / 3.0).abs() < 1e-12);
}

/// Every number of the README's table of results is that of the golden files, as far as
/// its digits go.
#[test]
fn the_readme_shows_the_golden_numbers() {
    let read = |table: &str| golden::read_golden(&repository().join("golden").join(table)).unwrap();
    let goldens = [read("table1.csv"), read("table2.csv")].concat();
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let shows = |line: &&str| line.starts_with("| ") && line.contains("`replicate run ");
    let rows: Vec<&str> = readme.lines().filter(shows).collect();
    let measured = ["mini", "tiny"]
        .map(|scale| goldens.iter().filter(|line| line.scale == scale && line.metric == "fd").count());
    let tiny = rows.iter().filter(|line| line.contains(" --scale tiny`")).count();
    assert_eq!([rows.len() - tiny, tiny], measured);
    let agrees = |shown: &str, value: f64| {
        let digits = shown.split_once('.').map_or(0, |(_, digits)| digits.len());
        assert_eq!(shown, format!("{value:.digits$}"));
    };
    for line in rows {
        let fields: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let command = fields[1].trim_matches('`').strip_prefix("replicate run ").unwrap();
        let (row, scale) = command.split_once(" --scale ").unwrap_or((command, "mini"));
        let sample = |metric: &str| {
            let line = golden::find(&goldens, row, scale, metric, "cpu").unwrap();
            assert_eq!(line.values.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{row}");
            Sample::of(line.values.values().copied())
        };
        let (mean, spread) = fields[3].split_once(" ± ").unwrap();
        agrees(mean, sample("fd").mean);
        agrees(spread, sample("fd").sd.unwrap());
        agrees(fields[4], sample("recall").mean);
        agrees(fields[5], sample("classes").mean);
    }
}

/// Every claim has its line in the README, with the verdicts of golden's seeds.
#[test]
fn the_readme_shows_the_verdicts() {
    let folder = repository();
    let read = |file: &str| golden::read_golden(&folder.join("golden").join(file)).unwrap();
    let lines = [read("table1.csv"), read("table2.csv"), read("studies.csv")].concat();
    let accepted = golden::accepted(&lines);
    let ablations: Vec<&str> = method::ABLATIONS.iter().map(|row| row.id).collect();
    let claims = paper::claims(&folder.join("paper"), &ablations).unwrap();
    let shown = |claim: &Claim, judged: &Judgement| match judged.verdict {
        ClaimVerdict::Holds => "holds",
        ClaimVerdict::DoesNotHold => "does not hold",
        ClaimVerdict::Undecided { .. } => "undecided",
        ClaimVerdict::NotTested if claim.statement == Statement::Untestable => "not tested",
        ClaimVerdict::NotTested if judged.reason.contains("unreliable") => "not tested",
        ClaimVerdict::NotTested if judged.reason.starts_with(golden::TIME) => "not golden",
        ClaimVerdict::NotTested => "no results yet",
    };
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let table = readme.split("| claim | mini | tiny |").nth(1).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), claims.len());
    for (claim, row) in claims.iter().zip(&rows) {
        assert_eq!(row[0].trim_matches('`'), claim.id);
        for (scale, cell) in ["mini", "tiny"].into_iter().zip(&row[1..]) {
            assert_eq!(*cell, shown(claim, &evaluate(claim, &accepted, scale)), "{} at {scale}", claim.id);
        }
    }
}
