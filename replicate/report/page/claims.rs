//! The page's section on the paper's claims.

use super::{ERRATA, Ids, Page, table_html};
use crate::judge::claims::{ClaimResult, ClaimVerdict};
use crate::report::verdicts::{VERDICTS, claim_text, numbers};
use crate::text::capital;
use maud::{Markup, html};
use std::collections::BTreeSet;

pub(super) fn claims(page: &Page, ids: &mut Ids) -> Option<Markup> {
    if page.claims.is_empty() {
        return None;
    }
    let golden = page.claims.iter().any(|claim| claim.golden.is_some());
    // Claims with the same reason stand together, at the place of the first.
    let place = |claim: &&ClaimResult| page.claims.iter().position(|other| numbers(other) == numbers(claim));
    let with = |verdict: &str| -> Vec<&ClaimResult> {
        let has = |claim: &&ClaimResult| claim_text(&claim.leading().verdict).0 == verdict;
        let mut all: Vec<&ClaimResult> = page.claims.iter().filter(has).collect();
        all.sort_by_cached_key(place);
        all
    };
    let groups: Vec<(&str, Vec<&ClaimResult>)> = VERDICTS
        .into_iter()
        .map(|verdict| (verdict, with(verdict)))
        .filter(|(_, all)| !all.is_empty())
        .collect();
    let differences = &page.differences;
    let id = ids.of("differences");
    Some(html! {
        @for note in &page.notes { p { (note) } }
        @for (verdict, claims) in &groups {
            h3 { span class=(claim_text(&claims[0].leading().verdict).1.class()) { (capital(verdict)) } " (" (claims.len()) ")" }
            @let body = claims_of(page, verdict, claims, golden, ids);
            // The claims that were not tested are many, so they are folded.
            @if *verdict == VERDICTS[3] { details { summary { (claims.len()) " claims" } (body) } } @else { (body) }
        }
        @if !differences.rows.is_empty() {
            h3 id=(id) { "Differences between the rows" }
            (table_html(differences, &id, ids, &mut BTreeSet::new()))
        }
        @if !page.readings.rows.is_empty() {
            h3 { "At which scales, and under which readings" }
            (table_html(&page.readings, "readings", ids, &mut BTreeSet::new()))
        }
    })
}

/// Lists the claims of one verdict; claims with the same reason share its text.
fn claims_of(page: &Page, verdict: &str, all: &[&ClaimResult], golden: bool, ids: &mut Ids) -> Markup {
    html! {
        @for alike in all.chunk_by(|a, b| numbers(a) == numbers(b)) {
            @let reason = linked(page, numbers(alike[0]).trim_end_matches('.'));
            @if alike.len() > 1 { p { "These " (alike.len()) ": " (reason) "." } }
            ul.claims {
                @for claim in alike {
                    li id=(ids.of(&format!("claim-{}", claim.id))) {
                        p.words { "“" (claim.claim) "” " span { (claim.place) } }
                        p {
                            code { (claim.id) } " " b class=(claim_text(&claim.leading().verdict).1.class()) { (verdict) }
                            @if golden && claim.own.verdict != ClaimVerdict::NotTested && claim.own.verdict != claim.leading().verdict {
                                " (this run: " (claim_text(&claim.own.verdict).0) ")"
                            }
                            @if alike.len() == 1 { ": " (reason) }
                        }
                    }
                }
            }
        }
    }
}

/// Links the name of the list of errata in `text`.
fn linked(page: &Page, text: &str) -> Markup {
    let errata = page.links.iter().find(|(name, _)| name == ERRATA);
    html! {
        @for (i, part) in text.split("ERRATA.md").enumerate() {
            @if i > 0 {
                @match errata {
                    Some((_, address)) => { a href=(address) { "ERRATA.md" } },
                    None => { "ERRATA.md" },
                }
            }
            (part)
        }
    }
}
