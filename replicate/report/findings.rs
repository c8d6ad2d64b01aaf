//! What the scores say about the paper's questions, in sentences made of the
//! measured numbers. Pure: scores and verdicts in, text out.
//!
//! A difference of two means is given with Welch's two-sided 95 % interval, and
//! is called told only where that excludes 0. One seed has no spread, so nothing
//! is told on it. What is not measured is named and never filled in.

use crate::judge::claims::{ClaimResult, ClaimVerdict};
use crate::judge::golden::{Sample, Score, TIME, plain, seeds, values};
use crate::judge::stats::t_quantile;
use crate::measure::evaluate::TARGETS;
use crate::measure::metrics::modes::{
    COLLAPSED, COLLAPSED_CLASSES, COLLAPSED_RECALL, DEGRADED, DEGRADED_CLASSES, DEGRADED_RECALL, HEALTHY,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// The coverage of every interval.
const COVERAGE: f64 = 0.95;
/// No metric of a sound run comes near this; beyond it the arithmetic of spreads overflows.
const LARGEST: f64 = 1e12;
/// Below it a ratio says nothing.
const SMALLEST: f64 = 1e-9;
/// Means closer than this, relative to the larger, are equal: room for the order of a sum.
const SAME: f64 = 1e-9;

const TEACHER: &str = "edm";
const SCORE_BASED: &str = "diff-instruct";
const SCORE_FREE: [&str; 3] = ["dirm", "dikl", "dijs"];
const FULL: &str = "dijs";
const RANDOM: &str = "init-none";
const SINGLE: &str = "init-single";
/// Multi-level pre-training on so many source classes.
const SOURCES: [&str; 3] = ["init-10", "init-50", "init-90"];

/// One question of the paper, and what was measured about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub title: String,
    /// Plain text, one paragraph each; never empty.
    pub paragraphs: Vec<String>,
}

/// What the scores of one scale say about the paper's questions. `claims` are the
/// verdicts on the same scores.
pub fn findings(scores: &[Score], claims: &[ClaimResult], scale: &str) -> Vec<Finding> {
    let count = scores.iter().filter(|s| s.scale == scale).count();
    let only = |title: &str, text: String| vec![Finding { title: title.to_string(), paragraphs: vec![text] }];
    if matches!(scale, "smoke" | "drill") {
        let text = format!(
            "Scale {scale} takes a handful of steps, to test the machinery: its numbers say nothing about \
             the paper. Scale mini is the smallest that has findings."
        );
        return only(&format!("No findings at scale {scale}"), text);
    }
    if count == 0 {
        return only("No findings", format!("Nothing is measured at scale {scale}."));
    }
    let intervals = Cell::new(false);
    let draft = |title, label| Draft::new(title, scores, scale, label, &intervals);
    let mut all = vec![
        score_free(draft("Training without a score", label)),
        function_space(draft("Function space: the starting map", label2)),
        feature_space(draft("Feature space: the number of source classes", label2)),
        collapse(draft("Collapse", label)),
        paper_claims(draft("The paper's claims", label), claims),
    ];
    if intervals.get() {
        let text = format!(
            "Intervals are Welch's two-sided {:.0} % intervals of the difference of two means, each for its own \
             pair; none is widened for the number of pairs. Pre-training is done once and the seeds repeat what \
             comes after it: the intervals do not cover its chance.",
            100.0 * COVERAGE
        );
        all.extend(only("How to read the intervals", text));
    }
    all
}

/// A run that ended as collapsed, with the Fréchet distance along it.
pub struct CollapsedRun {
    pub row: String,
    pub seed: u64,
    /// Of the initialisation.
    pub fd_start: f64,
    pub fd_end: f64,
}

/// Whether the collapsed runs have learned anything, seed by seed: a network that was never
/// trained meets the criterion too, and no row is to be called collapsed for that.
pub fn learned(runs: &[CollapsedRun]) -> Option<Finding> {
    let mut by_row: BTreeMap<&str, Vec<&CollapsedRun>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.fd_start.is_finite() && run.fd_end.is_finite()) {
        by_row.entry(&run.row).or_default().push(run);
    }
    let paragraph = |(row, runs): (&str, Vec<&CollapsedRun>)| {
        let each = runs
            .iter()
            .map(|run| format!("from {} to {} on seed {}", plain(run.fd_start), plain(run.fd_end), run.seed));
        let nearer: Vec<u64> =
            runs.iter().filter(|run| run.fd_end < run.fd_start).map(|run| run.seed).collect();
        let untold = "At this budget its collapse cannot be told from not having learned: the criterion holds for both.";
        let verdict = match nearer.len() {
            0 => format!("Training has brought it no nearer to the data. {untold}"),
            n if n == runs.len() => {
                "Training has brought it nearer to the data, and it is collapsed all the same.".to_string()
            }
            _ => format!("Training has brought it nearer to the data on {} only. {untold}", seeds(nearer)),
        };
        format!(
            "Where {} ended as collapsed, the Fréchet distance along the run went {}. {verdict}",
            label2(row),
            and(each)
        )
    };
    let paragraphs: Vec<String> = by_row.into_iter().map(paragraph).collect();
    (!paragraphs.is_empty()).then(|| Finding { title: "Collapsed, or not trained?".to_string(), paragraphs })
}

// ---- the questions ----

/// Section 2: are class-ratio objectives as good as a score-based one, and cheaper?
fn score_free(mut draft: Draft) -> Finding {
    let free = draft.score_free_rows();
    let fd = draft.name("fd");
    let teacher = draft.sample(TEACHER, "fd");
    let based = draft.sample(SCORE_BASED, "fd");
    let free_fd: Vec<(&str, Sample)> =
        free.iter().filter_map(|row| Some((row.as_str(), draft.sample(row, "fd")?))).collect();
    let single = [(TEACHER, teacher), (SCORE_BASED, based)];
    let all: Vec<(&str, Sample)> = single
        .into_iter()
        .filter_map(|(row, sample)| Some((row, sample?)))
        .chain(free_fd.iter().copied())
        .collect();
    if !all.is_empty() {
        let each = all.iter().map(|(row, sample)| format!("{sample} for {}", label(row)));
        draft.say(format!(
            "{fd} is {}. The teacher samples in many steps, every other row in one; {} is trained with two \
             scores, the score-free rows with a critic.",
            and(each),
            label(SCORE_BASED)
        ));
    }

    if let (Some(based), false) = (based, free_fd.is_empty()) {
        let mut sentences = Vec::new();
        let (mut below, mut above) = (0, 0);
        for (row, sample) in &free_fd {
            let (text, told) = draft.compare("fd", (&label(row), sample), (&label(SCORE_BASED), &based));
            below += usize::from(told == Told::Below);
            above += usize::from(told == Told::Above);
            sentences.push(text + ".");
        }
        let rows = free_fd.len();
        if draft.intervals.get() {
            sentences.push(format!(
                "Of {} the intervals put {below} below {} and {above} above it; {} cannot be told apart from it.",
                counted(rows, "score-free row"),
                label(SCORE_BASED),
                rows - below - above
            ));
        }
        draft.say(sentences.join(" "));
    }
    let mut order = free_fd.clone();
    order.sort_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
    if let [(best, lowest), (next, second), ..] = order[..] {
        let (text, told) = draft.compare("fd", (&label(best), &lowest), (&label(next), &second));
        let verdict = match told {
            Told::Open => format!("Which is lower cannot be told with {}.", seeds_a_row(&lowest, &second)),
            _ => "The interval excludes 0: the two are told apart.".to_string(),
        };
        let (best, next) = (label(best), label(next));
        draft.say(format!("Lowest by mean of the score-free rows: {best}, then {next}. {text}. {verdict}"));
    }
    if let Some(teacher) = teacher.filter(|t| t.mean > SMALLEST) {
        let one_step = all.iter().filter(|(row, sample)| *row != TEACHER && sample.mean > 0.0);
        let each: Vec<String> =
            one_step.map(|(row, s)| format!("{} for {}", plain(s.mean / teacher.mean), label(row))).collect();
        if !each.is_empty() {
            draft.say(format!("Mean {fd} as a multiple of the teacher's: {}.", and(each)));
        }
    }

    let sizes: Vec<(&str, Sample)> =
        free.iter().filter_map(|row| Some((row.as_str(), draft.sample(row, "critic_parameters")?))).collect();
    if let Some(based) = draft.sample(SCORE_BASED, "critic_parameters").filter(|_| !sizes.is_empty()) {
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        for (row, s) in &sizes {
            match rows.iter_mut().find(|(other, _)| *other == size(s)) {
                Some((_, rows)) => rows.push(label(row)),
                None => rows.push((size(s), vec![label(row)])),
            }
        }
        let each = rows.into_iter().map(|(size, rows)| format!("{size} (a critic) for {}", and(rows)));
        draft.say(format!(
            "Parameters trained beside the generator: {} (a second score network) for {}; {}.",
            size(&based),
            label(SCORE_BASED),
            and(each)
        ));
    }
    draft.times(&free);
    draft.finish()
}

/// Section 3: is the latent-to-output map at the start what prevents collapse?
fn function_space(mut draft: Draft) -> Finding {
    const START: &str = "map_distance_start";
    let (single, full) = (label2(SINGLE), label2(FULL));
    let start = draft.sample(SINGLE, START);
    let others: Vec<(&str, Sample)> = [RANDOM]
        .into_iter()
        .chain(SOURCES)
        .filter_map(|row| Some((row, draft.sample(row, START)?)))
        .collect();
    if let Some(start) = start {
        let same = start.mean == 0.0 && start.sd.unwrap_or(0.0) == 0.0;
        let mut text = format!(
            "Before the second stage the map of {single} lies {start} from that of {full}, where 0 is the \
             same map and 1 is as far apart as the images of two unrelated latents. The paper calls the two \
             mappings identical; measured, they {}.",
            if same { "are the same" } else { "are not the same" }
        );
        if !others.is_empty() {
            let each = others.iter().map(|(row, sample)| format!("{sample} for {}", label2(row)));
            let closer: Vec<String> =
                others.iter().filter(|(_, s)| s.mean < start.mean).map(|(row, _)| label2(row)).collect();
            let verdict = match closer.len() {
                0 => "none of these is closer".to_string(),
                _ => format!("closer by mean: {}", and(closer)),
            };
            text += &format!(" The same distance is {}: {verdict}.", and(each));
        }
        draft.say(text);
    }
    if let Some(end) = draft.sample(SINGLE, "map_distance_end") {
        let change = start.map_or(String::new(), |start| match order(end.mean, start.mean) {
            Order::Equal => ", as before it".to_string(),
            order => format!(", {} than before it", order.word("smaller", "larger")),
        });
        draft.say(format!("After the second stage the distance of {single} is {end}{change}."));
    }

    let rows = [SINGLE, FULL, RANDOM];
    let outcomes: Vec<String> = rows.iter().filter_map(|row| draft.outcome(row)).collect();
    if !outcomes.is_empty() {
        draft.say(format!("At the end of training: {}.", outcomes.join("; ")));
    }
    if let Some(fd) = draft.sample(SINGLE, "fd") {
        let mut sentences = Vec::new();
        for row in [FULL, RANDOM] {
            if let Some(other) = draft.sample(row, "fd") {
                sentences.push(draft.compare("fd", (&single, &fd), (&label2(row), &other)).0 + ".");
            }
        }
        if !sentences.is_empty() {
            draft.say(sentences.join(" "));
        }
    }
    let (state, full_state, random) = (draft.state(SINGLE), draft.state(FULL), draft.state(RANDOM));
    if let Some(state) = state {
        let mut text = match state.collapsed.len() {
            0 => format!(
                "{} did not collapse on any seed (n={}): the paper's finding, collapse in spite of the map, \
                 does not show at scale {}.",
                capital(&single),
                state.n,
                draft.scale
            ),
            k if k == state.n => format!(
                "{} collapsed on every seed (n={}): the paper's finding, collapse in spite of the map, shows \
                 at scale {} to the extent that the map is the same at the start.",
                capital(&single),
                state.n,
                draft.scale
            ),
            k => format!(
                "{} collapsed on {k} of {} seeds ({}): the seeds disagree, and whether the paper's finding \
                 shows at scale {} is not decided.",
                capital(&single),
                state.n,
                seeds(state.collapsed.iter().copied()),
                draft.scale
            ),
        };
        if let Some(other) = full_state.filter(|f| !f.collapsed.is_empty() && !state.collapsed.is_empty()) {
            text += &format!(
                " {} collapsed too ({} of n={}), so the initialisation alone does not explain it.",
                capital(&full),
                seeds(other.collapsed),
                other.n
            );
        }
        if let Some(other) = random.filter(|_| state.collapsed.is_empty()) {
            let (name, n) = (label2(RANDOM), other.n);
            match other.collapsed.len() {
                0 => {
                    text += &format!(
                        " Neither did {name} (n={n}), so this scale cannot tell what prevents collapse."
                    );
                }
                k if k == n => {
                    text += &format!(
                        " {} collapsed on every seed (n={n}): in these runs single-level pre-training was \
                         enough to prevent it.",
                        capital(&name)
                    );
                }
                _ => {}
            }
        }
        draft.say(text);
    }
    draft.finish()
}

/// Section 3: do more source classes, that is richer features, help?
fn feature_space(mut draft: Draft) -> Finding {
    let rows = || SOURCES.into_iter().chain([FULL]);
    for metric in ["fd", "recall"] {
        let each: Vec<String> = rows()
            .filter_map(|row| Some(format!("{} for {}", draft.sample(row, metric)?, with_cell(row))))
            .collect();
        if !each.is_empty() {
            draft.say(format!("{} is {}.", capital(&draft.name(metric)), and(each)));
        }
    }
    let sources: Vec<(&str, Sample)> =
        SOURCES.into_iter().filter_map(|row| Some((row, draft.sample(row, "fd")?))).collect();
    if let [(few, first), .., (many, last)] = sources[..] {
        let (few, many) = (label2(few), label2(many));
        let (text, told) = draft.compare("fd", (&many, &last), (&few, &first));
        let fd = draft.name("fd");
        let direction = |word: &str, paper: &str| {
            let middle = match sources[..] {
                [_, (row, s), _] => {
                    let (low, high) = (first.mean.min(last.mean), first.mean.max(last.mean));
                    let inside = low <= s.mean && s.mean <= high;
                    format!(
                        " The mean for {} lies {} the two.",
                        label2(row),
                        if inside { "between" } else { "outside" }
                    )
                }
                _ => String::new(),
            };
            format!("{fd} {word} from {few} to {many}, {paper} the direction of the paper's Table 2.{middle}")
        };
        let verdict = match told {
            Told::Below => direction("falls", "in"),
            Told::Above => direction("rises", "against"),
            Told::Open => {
                format!("Between the two no difference can be told with {}.", seeds_a_row(&first, &last))
            }
        };
        draft.say(format!("{text}. {verdict}"));
        if sources.len() > 2 {
            let steps = sources.windows(2).map(|pair| {
                let [(fewer, a), (more, b)] = pair else { unreachable!("windows of two") };
                draft.compare("fd", (&label2(more), b), (&label2(fewer), a)).0
            });
            let steps: Vec<String> = steps.collect();
            draft.say(format!("Step by step: {}.", steps.join(". ")));
        }
    }
    if let (Some((row, source)), Some(full)) = (sources.last(), draft.sample(FULL, "fd")) {
        let (text, told) = draft.compare("fd", (&label2(FULL), &full), (&label2(row), source));
        let verdict = match told {
            Told::Below => {
                format!("Pre-training on the target is better than on {}, as in the paper.", label2(row))
            }
            Told::Above => {
                format!("Pre-training on the target is worse than on {}, unlike in the paper.", label2(row))
            }
            Told::Open => format!(
                "Whether pre-training on the target is better cannot be told with {}.",
                seeds_a_row(&full, source)
            ),
        };
        draft.say(format!("{text}. {verdict}"));
    }
    let states = draft.states(rows().map(|row| (row, label2(row))));
    if !states.is_empty() {
        draft.say(states.join(" "));
    }
    draft.finish()
}

/// Which rows met the written criterion, and by how much.
fn collapse(mut draft: Draft) -> Finding {
    let targets = TARGETS as f64;
    draft.say(format!(
        "A run counts as collapsed where, at the end of training, recall is below {COLLAPSED_RECALL:.2} and \
         there are fewer than {} effective classes of {TARGETS}; as degraded where recall is below \
         {DEGRADED_RECALL:.2} or there are fewer than {}. The criterion is ours: the paper has none.",
        COLLAPSED_CLASSES * targets,
        DEGRADED_CLASSES * targets,
    ));
    let rows = draft.all_rows();
    let states = draft.states(rows.iter().map(|row| (row.as_str(), label(row))));
    if states.is_empty() {
        return draft.finish();
    }
    draft.say(states.join(" "));

    let runs: Vec<Run> = rows.iter().flat_map(|row| draft.runs(row)).collect();
    let (inside, outside): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|run| run.collapsed);
    let nearest = |side: &str, run: Option<&&Run>| match run {
        None => format!("No run is {side} the criterion."),
        Some(run) => format!("Nearest to its bounds of the runs {side} it: {}.", run.text()),
    };
    // Outside by the condition that is further from its bound, inside by the one that is nearer.
    let out = outside.iter().min_by(|a, b| a.margin().total_cmp(&b.margin()));
    let within = inside.iter().max_by(|a, b| a.margin().total_cmp(&b.margin()));
    if !runs.is_empty() {
        draft.say(format!("{} {}", nearest("outside", out), nearest("inside", within)));
    }
    draft.finish()
}

fn paper_claims(mut draft: Draft, claims: &[ClaimResult]) -> Finding {
    if claims.is_empty() {
        draft.say("No claim was put to the test.".to_string());
        return draft.finish();
    }
    let of = |wanted: fn(&ClaimVerdict) -> bool| -> Vec<&ClaimResult> {
        claims.iter().filter(|c| wanted(&c.verdict)).collect()
    };
    let holding = of(|v| matches!(v, ClaimVerdict::Holds));
    let broken = of(|v| matches!(v, ClaimVerdict::DoesNotHold));
    let undecided = of(|v| matches!(v, ClaimVerdict::Undecided { .. }));
    let untested = of(|v| matches!(v, ClaimVerdict::NotTested));
    let either = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    draft.say(format!(
        "Of {} of the paper {}, {}, {} and {} at scale {}. Orders and ratios are decided by one-sided Welch \
         t-tests at 5 % each, whatever their number; categories by every seed, of two at least.",
        counted(claims.len(), "claim"),
        either(holding.len(), "holds", "hold"),
        either(broken.len(), "does not hold", "do not hold"),
        either(undecided.len(), "is undecided", "are undecided"),
        either(untested.len(), "is not tested", "are not tested"),
        draft.scale
    ));
    for claim in broken {
        let test = if claim.reason.contains("significant") { " (Welch's one-sided t-test)" } else { "" };
        draft.say(format!(
            "{} does not hold: {}{test}. The paper, {}: \"{}\".",
            claim.id,
            claim.reason.trim_end_matches('.'),
            claim.place,
            claim.claim
        ));
    }
    if !undecided.is_empty() {
        draft.say(format!("Undecided: {}.", and(undecided.iter().map(|claim| claim.id.clone()))));
    }
    draft.finish()
}

// ---- a finding in the making ----

/// Looks numbers up and remembers which were not there.
struct Draft<'a> {
    title: &'a str,
    scores: &'a [Score],
    scale: &'a str,
    /// What the finding calls a row.
    label: fn(&str) -> String,
    paragraphs: Vec<String>,
    /// (row, metric), in the order in which they were asked for.
    missing: Vec<(String, String)>,
    /// (row, metric) with a value that cannot be reckoned with.
    unusable: Vec<(String, String)>,
    /// Set once an interval is printed.
    intervals: &'a Cell<bool>,
}

/// What the interval of a difference tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Below,
    Above,
    Open,
}

/// The categories of a row's seeds.
struct State {
    n: usize,
    collapsed: Vec<u64>,
    degraded: Vec<u64>,
}

/// One seed of one row beside the criterion of collapse.
struct Run {
    name: String,
    collapsed: bool,
    recall: f64,
    classes: f64,
}

impl<'a> Draft<'a> {
    fn new(
        title: &'a str,
        scores: &'a [Score],
        scale: &'a str,
        label: fn(&str) -> String,
        intervals: &'a Cell<bool>,
    ) -> Draft<'a> {
        let (paragraphs, missing, unusable) = (Vec::new(), Vec::new(), Vec::new());
        Draft { title, scores, scale, label, paragraphs, missing, unusable, intervals }
    }

    fn label(&self, row: &str) -> String {
        (self.label)(row)
    }

    fn say(&mut self, paragraph: String) {
        self.paragraphs.push(paragraph);
    }

    /// As people call a metric.
    fn name(&self, metric: &str) -> String {
        match metric {
            "fd" => crate::report::table::metric_names(self.scale).0,
            "classes" => "effective classes",
            "collapse" => "collapse category",
            "critic_parameters" => "parameters of the critic",
            TIME => "time of an iteration",
            "map_distance_start" => "map distance before the second stage",
            "map_distance_end" => "map distance after the second stage",
            other => other,
        }
        .to_string()
    }

    /// The score-free rows of Table 1: the paper's three, and any other that is measured.
    fn score_free_rows(&self) -> Vec<String> {
        let known = |row: &str| {
            [TEACHER, SCORE_BASED].contains(&row) || SCORE_FREE.contains(&row) || row.starts_with("init-")
        };
        let critics = self.scores.iter().filter(|s| s.scale == self.scale && s.metric == "critic_parameters");
        let others: BTreeSet<&str> = critics.map(|s| s.row.as_str()).filter(|row| !known(row)).collect();
        SCORE_FREE.into_iter().chain(others).map(str::to_string).collect()
    }

    /// Of both tables.
    fn all_rows(&self) -> Vec<String> {
        let first = [TEACHER, SCORE_BASED].into_iter().map(str::to_string);
        let second = [RANDOM, SINGLE].into_iter().chain(SOURCES).map(str::to_string);
        first.chain(self.score_free_rows()).chain(second).collect()
    }

    fn values(&mut self, row: &str, metric: &str) -> Option<BTreeMap<u64, f64>> {
        self.values_of(self.scores, row, metric)
    }

    fn values_of(&mut self, scores: &[Score], row: &str, metric: &str) -> Option<BTreeMap<u64, f64>> {
        let found = values(scores, row, self.scale, metric);
        let category = |x: f64| [HEALTHY, DEGRADED, COLLAPSED].contains(&x);
        let usable = |x: &f64| x.abs() <= LARGEST && (metric != "collapse" || category(*x));
        let list = match () {
            _ if found.is_empty() => &mut self.missing,
            _ if !found.values().all(usable) => &mut self.unusable,
            _ => return Some(found),
        };
        let entry = (row.to_string(), metric.to_string());
        if !list.contains(&entry) {
            list.push(entry);
        }
        None
    }

    fn sample(&mut self, row: &str, metric: &str) -> Option<Sample> {
        self.values(row, metric).map(|found| Sample::of(found.into_values()))
    }

    /// Where the mean of `a` lies beside that of `b`: a clause with its interval,
    /// without a full stop, and what it tells.
    fn compare(&mut self, metric: &str, a: (&str, &Sample), b: (&str, &Sample)) -> (String, Told) {
        let ((a_name, a), (b_name, b)) = (a, b);
        let (difference, name) = (a.mean - b.mean, self.name(metric));
        let told = |low: f64, high: f64| match () {
            _ if high < 0.0 => Told::Below,
            _ if low > 0.0 => Told::Above,
            _ => Told::Open,
        };
        let order = order(a.mean, b.mean);
        let text = match order {
            Order::Equal => format!("{name} of {a_name} equals that of {b_name}"),
            _ => {
                let word = order.word("below", "above");
                format!("{name} of {a_name} is {} {word} that of {b_name}", plain(difference.abs()))
            }
        };
        match half_width(a, b) {
            None => (format!("{text} (no interval: a single seed has no spread)"), Told::Open),
            Some(_) if order == Order::Equal => (text, Told::Open),
            Some(0.0) => (format!("{text} (no spread between the seeds)"), told(difference, difference)),
            Some(half) => {
                self.intervals.set(true);
                let (low, high) = (difference - half, difference + half);
                let told = told(low, high);
                let covers = if told == Told::Open { ", which covers 0" } else { "" };
                let percent = 100.0 * COVERAGE;
                let (low, high) = (plain(low), plain(high));
                let interval =
                    format!("{percent:.0} % Welch interval of the difference {low} to {high}{covers}");
                (format!("{text} ({interval})"), told)
            }
        }
    }

    /// What an iteration of the score-free rows costs beside the score-based one, on the first
    /// class of device (by name) that has timed it and one of them.
    fn times(&mut self, free: &[String]) {
        let timed: Vec<&String> = free.iter().filter(|row| self.sample(row, TIME).is_some()).collect();
        if self.sample(SCORE_BASED, TIME).is_none() || timed.is_empty() {
            return;
        }
        let scores = self.scores;
        let classes = |row: &str| -> BTreeSet<&str> {
            let timed = scores.iter().filter(|s| s.scale == self.scale && s.metric == TIME && s.row == row);
            timed.map(|s| s.class.as_str()).collect()
        };
        let all: BTreeSet<&str> = timed.iter().flat_map(|row| classes(row)).collect();
        let Some(class) = classes(SCORE_BASED).into_iter().find(|class| all.contains(class)) else {
            self.say(format!(
                "{} and the score-free rows were timed on different classes of device: no comparison.",
                label(SCORE_BASED)
            ));
            return;
        };
        let (with, without): (Vec<&String>, Vec<&String>) =
            timed.into_iter().partition(|row| classes(row).contains(class));
        let of_class: Vec<Score> = scores.iter().filter(|s| s.class == class).cloned().collect();
        let mut time = |row: &str| Some(Sample::of(self.values_of(&of_class, row, TIME)?.into_values()));
        let Some(based) = time(SCORE_BASED) else { return };
        let each: Vec<String> = with
            .into_iter()
            .filter_map(|row| {
                let sample = time(row)?;
                let ratio = match sample.mean / based.mean {
                    ratio if ratio > 0.0 && ratio.is_finite() => format!(", {} times as long", plain(ratio)),
                    _ => String::new(),
                };
                Some(format!("{sample} for {}{ratio}", label(row)))
            })
            .collect();
        if each.is_empty() {
            return;
        }
        let mut text = format!(
            "Seconds of an iteration on class {class}: {based} for {}; {}. Times depend on what else the machine \
             did.",
            label(SCORE_BASED),
            each.join("; ")
        );
        if !without.is_empty() {
            text +=
                &format!(" Timed on other classes only: {}.", and(without.into_iter().map(|row| label(row))));
        }
        self.say(text);
    }

    /// FD, recall and effective classes of a row of Table 2.
    fn outcome(&mut self, row: &str) -> Option<String> {
        let parts: Vec<String> = ["fd", "recall", "classes"]
            .into_iter()
            .filter_map(|metric| {
                let sample = self.sample(row, metric)?;
                Some(match metric {
                    "classes" => format!("{sample} effective classes of {TARGETS}"),
                    _ => format!("{} {sample}", self.name(metric)),
                })
            })
            .collect();
        (!parts.is_empty()).then(|| format!("{} has {}", with_cell(row), and(parts)))
    }

    fn state(&mut self, row: &str) -> Option<State> {
        let found = self.values(row, "collapse")?;
        let of =
            |category: f64| found.iter().filter(|(_, c)| **c == category).map(|(seed, _)| *seed).collect();
        Some(State { n: found.len(), collapsed: of(COLLAPSED), degraded: of(DEGRADED) })
    }

    /// One sentence for each group of rows that fared alike.
    fn states<'r>(&mut self, rows: impl Iterator<Item = (&'r str, String)>) -> Vec<String> {
        let mut groups: [Vec<String>; 4] = Default::default();
        for (row, name) in rows {
            let Some(state) = self.state(row) else { continue };
            let (n, collapsed, degraded) = (state.n, state.collapsed.len(), state.degraded.len());
            let some = |found: Vec<u64>| format!("{name} ({} of n={n})", seeds(found));
            let (group, text) = match () {
                _ if collapsed == n => (0, format!("{name} (n={n})")),
                _ if collapsed > 0 => (1, some(state.collapsed)),
                _ if degraded > 0 => (2, some(state.degraded)),
                _ => (3, format!("{name} (n={n})")),
            };
            groups[group].push(text);
        }
        let titles = [
            "Collapsed on every seed",
            "Collapsed on some seeds but not on all",
            "Did not collapse, but degraded",
            "Healthy on every seed",
        ];
        let filled = titles.into_iter().zip(groups).filter(|(_, rows)| !rows.is_empty());
        filled.map(|(title, rows)| format!("{title}: {}.", and(rows))).collect()
    }

    fn runs(&mut self, row: &str) -> Vec<Run> {
        let (Some(category), Some(recall), Some(classes)) =
            (self.values(row, "collapse"), self.values(row, "recall"), self.values(row, "classes"))
        else {
            return Vec::new();
        };
        let run = |(seed, category): (u64, f64)| {
            Some(Run {
                name: format!("seed {seed} of {}", label(row)),
                collapsed: category == COLLAPSED,
                recall: *recall.get(&seed)?,
                classes: *classes.get(&seed)?,
            })
        };
        category.into_iter().filter_map(run).collect()
    }

    fn finish(mut self) -> Finding {
        let missing = self.lacking(&self.missing);
        if !missing.is_empty() {
            self.say(format!("Not measured at scale {}: {missing}.", self.scale));
        }
        let unusable = self.lacking(&self.unusable);
        if !unusable.is_empty() {
            self.say(format!("Measured, but not a number to reckon with on some seed: {unusable}."));
        }
        Finding { title: self.title.to_string(), paragraphs: self.paragraphs }
    }

    /// `FD and recall of DiKL and DiRM; …`: rows that lack the same metrics together.
    fn lacking(&self, entries: &[(String, String)]) -> String {
        let mut of_row: Vec<(String, Vec<String>)> = Vec::new();
        for (row, metric) in entries {
            let name = self.name(metric);
            match of_row.iter_mut().find(|(other, _)| *other == self.label(row)) {
                Some((_, metrics)) => metrics.push(name),
                None => of_row.push((self.label(row), vec![name])),
            }
        }
        let mut groups: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for (row, metrics) in of_row {
            match groups.iter_mut().find(|(other, _)| *other == metrics) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((metrics, vec![row])),
            }
        }
        let texts: Vec<String> =
            groups.into_iter().map(|(metrics, rows)| format!("{} of {}", and(metrics), and(rows))).collect();
        texts.join("; ")
    }
}

impl Run {
    /// Below 0 exactly where both conditions of the criterion are met; as a share of
    /// all images and of all classes.
    fn margin(&self) -> f64 {
        let classes = self.classes / TARGETS as f64;
        (self.recall - COLLAPSED_RECALL).max(classes - COLLAPSED_CLASSES)
    }

    fn text(&self) -> String {
        let beside = |x: f64, bound: f64| match order(x, bound) {
            Order::Equal => "at its bound".to_string(),
            order => format!("{} {} its bound", plain((x - bound).abs()), order.word("below", "above")),
        };
        format!(
            "{}, with recall {} ({}) and {} effective classes ({})",
            self.name,
            plain(self.recall),
            beside(self.recall, COLLAPSED_RECALL),
            plain(self.classes),
            beside(self.classes, COLLAPSED_CLASSES * TARGETS as f64)
        )
    }
}

// ---- words and numbers ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Less,
    Equal,
    Greater,
}

impl Order {
    fn word<'a>(self, less: &'a str, greater: &'a str) -> &'a str {
        if self == Order::Less { less } else { greater }
    }
}

fn order(a: f64, b: f64) -> Order {
    match () {
        _ if (a - b).abs() <= SAME * a.abs().max(b.abs()) => Order::Equal,
        _ if a < b => Order::Less,
        _ => Order::Greater,
    }
}

/// Half the width of Welch's interval of a difference of means, with Satterthwaite's
/// degrees of freedom; `None` where a side has a single seed.
fn half_width(a: &Sample, b: &Sample) -> Option<f64> {
    let variance = |s: &Sample| s.sd.map(|sd| sd * sd / s.n as f64);
    let (va, vb) = (variance(a)?, variance(b)?);
    let total = va + vb;
    if total == 0.0 {
        return Some(0.0);
    }
    let term = |v: f64, n: usize| (v / total).powi(2) / (n as f64 - 1.0);
    let dof = 1.0 / (term(va, a.n) + term(vb, b.n));
    Some(t_quantile(0.5 + 0.5 * COVERAGE, dof) * total.sqrt())
}

/// A row of Table 1 or 2 in a sentence.
fn label(row: &str) -> String {
    match row {
        "edm" => "the teacher",
        "diff-instruct" => "Diff-Instruct",
        "dirm" => "DiRM",
        "dikl" => "DiKL",
        "dijs" => "DiJS",
        "init-none" => "random initialisation",
        "init-single" => "single-level initialisation",
        "init-10" => "10 source classes",
        "init-50" => "50 source classes",
        "init-90" => "90 source classes",
        other => other,
    }
    .to_string()
}

/// As [`label`], in the terms of Table 2, whose last row is Table 1's DiJS.
fn label2(row: &str) -> String {
    if row == FULL { "the full target set".to_string() } else { label(row) }
}

/// As [`label2`], with the cell of Table 1 that it is.
fn with_cell(row: &str) -> String {
    if row == FULL { format!("{} ({})", label2(row), label(row)) } else { label2(row) }
}

/// `a, b and c`
fn and(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<String> = items.into_iter().collect();
    match items.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn seeds_a_row(a: &Sample, b: &Sample) -> String {
    match a.n == b.n {
        true => format!("{} a row", counted(a.n, "seed")),
        false => format!("{} and {}", counted(a.n, "seed"), counted(b.n, "seed")),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// A number of parameters, `38,449`.
fn size(sample: &Sample) -> String {
    if sample.sd.is_some_and(|sd| sd > 0.0) || sample.mean < 0.0 {
        return sample.to_string();
    }
    let digits = format!("{:.0}", sample.mean);
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).expect("digits")).collect();
    parts.join(",")
}
