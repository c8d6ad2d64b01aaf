//! The verdict's two sentences, and which runs have not learned.

use replicate::judge::claims::{ClaimResult, ClaimVerdict, Judgement};
use replicate::judge::golden::{Comparison, Score, Status, Verdict};
use replicate::report::curves::{Curve, CurvePoint};
use replicate::report::notes::{not_learned, unlearned, verdict};
use std::collections::BTreeSet;

fn claim(own: ClaimVerdict, golden: Option<ClaimVerdict>) -> ClaimResult {
    let judged = |verdict| Judgement { verdict, reason: String::new(), p: None, holm: None };
    let text = String::new;
    ClaimResult { id: text(), claim: text(), place: text(), own: judged(own), golden: golden.map(judged) }
}

fn comparison(status: Status) -> Comparison {
    let text = String::new;
    let verdict = Verdict { status, reason: text() };
    Comparison { row: text(), scale: text(), metric: text(), class: text(), verdict }
}

const OPEN: ClaimVerdict = ClaimVerdict::Undecided { seeds_needed: None };

#[test]
fn one_seed_reads_golden_s_verdict_beside_its_own() {
    let claims = [
        claim(OPEN, Some(ClaimVerdict::Holds)),
        claim(OPEN, Some(ClaimVerdict::DoesNotHold)),
        claim(OPEN, Some(ClaimVerdict::NotTested)),
        claim(ClaimVerdict::NotTested, Some(ClaimVerdict::NotTested)),
    ];
    let compared = [comparison(Status::Same), comparison(Status::Same), comparison(Status::NotRun)];
    let said = verdict(&claims, &compared, &[0], &[0, 1, 2], "mini");
    assert_eq!(
        said,
        [
            "Of the paper's 4 claims, by golden's seeds 0, 1 and 2 at scale mini: 1 holds, 1 does not hold, \
             1 undecided, 1 not tested.",
            "This run of seed 0 gives golden's numbers in all 2 comparisons; alone, with n = 1, it tells: \
             3 undecided, 1 not tested.",
        ]
    );
}

#[test]
fn a_run_that_differs_or_has_nothing_to_compare_with_says_so() {
    let claims = [claim(ClaimVerdict::Holds, None)];
    let said = |compared: &[Comparison], golden: &[u64]| verdict(&claims, compared, &[0, 1], golden, "small");
    let alone = said(&[comparison(Status::NoGolden)], &[]);
    assert!(alone[0].contains("by this run's seeds 0 and 1 at scale small: 1 holds."), "{alone:?}");
    assert_eq!(alone[1], "This run of seeds 0 and 1 has no accepted values to compare with.");
    let other = said(&[comparison(Status::Same), comparison(Status::Outside)], &[0, 1]);
    assert!(other[1].ends_with("compares with golden as follows: 1 same, 1 OUTSIDE."), "{other:?}");
    let untested = verdict(&[claim(ClaimVerdict::NotTested, None)], &[], &[0], &[], "smoke");
    assert_eq!(untested[0], "No claim of the paper is decided at scale smoke.");
}

fn score(row: &str, seed: u64, category: f64) -> Score {
    Score {
        row: row.to_string(),
        changes: String::new(),
        scale: "mini".to_string(),
        seed,
        metric: "collapse".to_string(),
        value: category,
        class: "cpu".to_string(),
        manifest: String::new(),
    }
}

fn curve(row: &str, seed: u64, start: (f64, f64), fd: (f64, f64)) -> Curve {
    let point = |images, fd, (recall, classes)| CurvePoint { images, fd, recall, classes };
    let points = vec![point(0, fd.0, start), point(64, fd.1, (0.0, 1.0))];
    Curve { row: row.to_string(), label: String::new(), seed, points }
}

#[test]
fn a_run_that_began_within_the_criterion_and_came_no_nearer_has_not_learned() {
    let (untrained, trained) = ((0.0, 2.0), (0.6, 9.0));
    let curves = [
        curve("none", 0, untrained, (80.0, 90.0)),
        curve("none", 1, untrained, (80.0, 79.0)),
        curve("fell", 0, trained, (20.0, 90.0)),
        curve("fine", 0, untrained, (80.0, 90.0)),
    ];
    let scores = [score("none", 0, 2.0), score("none", 1, 2.0), score("fell", 0, 2.0), score("fine", 0, 0.0)];
    let found = unlearned(&scores, &curves, "mini");
    assert_eq!(found, BTreeSet::from([("none".to_string(), 0)]));
    let said = not_learned(&found, "mini").unwrap();
    assert!(said.starts_with("Not learned: none-s0.") && said.contains("no evidence of collapse"), "{said}");
    assert_eq!(not_learned(&BTreeSet::new(), "mini"), None);
    // A handful of steps teaches nothing.
    let smoke = scores.map(|s| Score { scale: "smoke".to_string(), ..s });
    assert_eq!(unlearned(&smoke, &[], "smoke").len(), 3);
    assert_eq!(not_learned(&unlearned(&smoke, &[], "smoke"), "smoke"), None);
}
