//! The acceptance of measurements as golden values.

use super::file::line;
use super::{Golden, Key, OTHER_CODE, Rule, Score, TIME, cell, same};
use crate::error::{Error, Result};
use crate::judge::sample::{Sample, seeds};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Adds `fresh` to the golden values. Returns all lines, sorted, and a text that lists the new and
/// the changed lines. Writes no file.
///
/// A line gets new seeds as long as its old seeds still give the same numbers. If one of them
/// differs, the line is replaced: the remaining old seeds belong to earlier numerics, and the text
/// lists them as dropped. A line with unchanged numbers keeps its date and its reason.
///
/// # Errors
/// `Usage` without a reason, or for results of other code; `Run` if a value is not finite, or if one seed was measured twice with
/// different results.
pub fn accept(
    existing: Vec<Golden>,
    fresh: &[Score],
    reason: &str,
    date: &str,
) -> Result<(Vec<Golden>, String)> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(Error::Usage("golden values need a reason: give it with --reason TEXT".to_string()));
    }
    let mut lines: BTreeMap<Key, Golden> = existing.into_iter().map(|g| (g.key(), g)).collect();
    let (mut added, mut rewritten, mut unchanged, mut diff) = (0, 0, 0, String::new());
    for (key, measured) in group(fresh)? {
        let old = lines.get(&key);
        let new = merge(old, &key, &measured, reason, date);
        match old {
            Some(old) if *old == new => {
                unchanged += 1;
                continue;
            }
            Some(_) => rewritten += 1,
            None => added += 1,
        }
        describe(&mut diff, old, &new);
        lines.insert(key, new);
    }
    let heading = format!(
        "golden lines: {rewritten} rewritten, {added} added, {unchanged} unchanged; reason: {reason}\n"
    );
    Ok((lines.into_values().collect(), heading + &diff))
}

/// The value and the manifest, by line, then by seed.
fn group(fresh: &[Score]) -> Result<BTreeMap<Key, BTreeMap<u64, &Score>>> {
    let mut groups: BTreeMap<Key, BTreeMap<u64, &Score>> = BTreeMap::new();
    for score in fresh.iter().filter(|s| s.metric != TIME) {
        let name = || format!("{} of {} (seed {}, {})", score.metric, score.cell(), score.seed, score.class);
        if !score.value.is_finite() {
            return Err(Error::Run(format!("{} is {}: that cannot be golden", name(), score.value)));
        }
        if score.class.contains(OTHER_CODE) {
            return Err(Error::Usage(format!(
                "{}: this program's code did not make it, so its bits are not this program's\n  \
                 run it again, or accept it with the program that made it",
                name()
            )));
        }
        let twice = groups.entry(score.key()).or_default().insert(score.seed, score);
        if let Some(other) = twice.filter(|other| !same(other.value, score.value)) {
            let text = format!("{} was measured twice, as {:?} and {:?}", name(), other.value, score.value);
            return Err(Error::Run(text + ": remove one of the two runs"));
        }
    }
    Ok(groups)
}

fn merge(old: Option<&Golden>, key: &Key, fresh: &BTreeMap<u64, &Score>, reason: &str, date: &str) -> Golden {
    let mut values: BTreeMap<u64, f64> = fresh.iter().map(|(seed, s)| (*seed, s.value)).collect();
    let mut manifests: BTreeMap<u64, String> =
        fresh.iter().map(|(seed, s)| (*seed, s.manifest.clone())).collect();
    if let Some(old) = old.filter(|old| changed_seeds(old, &values).is_empty()) {
        if values.keys().all(|seed| old.values.contains_key(seed)) {
            return old.clone();
        }
        values.extend(&old.values);
        manifests.extend(old.manifests.clone());
    }
    let rule = match (Rule::of(&key.3, &values), old.map(|old| old.rule)) {
        // Keeps a tolerance that a reviewer narrowed by hand.
        (Rule::Fixed { .. }, Some(Rule::Fixed { tolerance })) => Rule::Fixed { tolerance },
        (rule, _) => rule,
    };
    let (row, changes, scale, metric, class) = key.clone();
    let (accepted, reason) = (date.to_string(), reason.to_string());
    Golden { row, changes, scale, metric, class, values, rule, manifests, accepted, reason }
}

impl Rule {
    /// Returns the rule of a new line. The tolerances are ours: 25 % of an FD is about twice the
    /// spread between seeds in a pilot at small size; the others are estimates. Narrow them by
    /// hand, or better, add a third seed.
    fn of(metric: &str, values: &BTreeMap<u64, f64>) -> Rule {
        let mean = Sample::of(values.values().copied()).mean.abs();
        match metric {
            "collapse" | "early_collapse" | "critic_parameters" | "generator_parameters" => Rule::OneOf,
            _ if values.len() >= 3 => Rule::Interval,
            "fd" => Rule::Fixed { tolerance: two_digits(0.25 * mean) },
            "kid" => Rule::Fixed { tolerance: two_digits(0.5 * mean) },
            "precision" | "recall" => Rule::Fixed { tolerance: 0.1 },
            _ => Rule::Fixed { tolerance: two_digits(0.1 * mean) },
        }
    }
}

fn two_digits(x: f64) -> f64 {
    format!("{x:.1e}").parse().expect("a float in its own notation")
}

fn changed_seeds(old: &Golden, fresh: &BTreeMap<u64, f64>) -> Vec<u64> {
    let changed = |(seed, was): &(&u64, &f64)| fresh.get(seed).is_some_and(|is| !same(**was, *is));
    old.values.iter().filter(changed).map(|(seed, _)| *seed).collect()
}

fn describe(diff: &mut String, old: Option<&Golden>, new: &Golden) {
    let name = format!("{} {} {} [{}]", cell(&new.row, &new.changes), new.scale, new.metric, new.class);
    let now = Sample::of(new.values.values().copied());
    match old {
        None => writeln!(diff, "\n{name}: new, {now}").unwrap(),
        Some(old) => {
            let was = Sample::of(old.values.values().copied());
            writeln!(diff, "\n{name}: {was} -> {now}").unwrap();
            let changed = changed_seeds(old, &new.values);
            if !changed.is_empty() {
                writeln!(diff, "  numerics changed on {}", seeds(changed)).unwrap();
            }
            let dropped = || old.values.keys().filter(|seed| !new.values.contains_key(seed)).copied();
            if dropped().next().is_some() {
                writeln!(diff, "  dropped, not run with the new numerics: {}", seeds(dropped())).unwrap();
            }
            writeln!(diff, "- {}", line(old)).unwrap();
        }
    }
    writeln!(diff, "+ {}", line(new)).unwrap();
}

/// Refuses to write golden values in CI, because a person must review them. `ci` is the value of
/// the environment variable CI.
///
/// # Errors
/// `Usage` if `ci` is set to anything but an empty text or `false`.
pub fn refuse_in_ci(ci: Option<&str>) -> Result<()> {
    match ci {
        None | Some("" | "false") => Ok(()),
        Some(_) => Err(Error::Usage(
            "accept writes golden values and does not run in CI (the variable CI is set): \
             run it where you can look at the diff, and commit the result"
                .to_string(),
        )),
    }
}
