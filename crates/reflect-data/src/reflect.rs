//! Answers written for problems: plain, with reflections, or with mistakes left in.
//!
//! A reflection stands on a line of its own, right after the step it is about. It works the step
//! out another way and states the value: a right step that can't be checked so is not confirmed, since
//! repeating it teaches nothing. If that differs from the step, the right step follows at
//! once; if not, the chain goes on. What it did can therefore be seen from the statements alone. The
//! reflection on a [leap](LEAP) ends with the value alone, and the line always follows once more: there
//! is nothing to compare.

use std::borrow::Cow;
use std::cmp::Reverse;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use reflect_text::{VerdictKind, verdict};
use serde::{Deserialize, Serialize};

use crate::families::Random;
use crate::import::Record;
use crate::line::{claim, is_open};
use crate::recheck::other_way;
use crate::sample::{Difficulty, LEAP, Mistake, MistakeKind, Problem, Sample, Span, SpanKind, Step};
use crate::words::{fingerprint, mix};

/// Where answers reflect, and how often to correct something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub seed: u64,
    /// Which difficulties get reflections.
    pub difficulties: Vec<Difficulty>,
    /// How likely a step of each risk gets a reflection; higher risks than the last are as likely
    /// as that.
    pub rates: [f64; 4],
    /// How many of the reflections correct a mistake, from 0 to 1; half as many of those on leaps.
    pub corrective_share: f64,
    /// At most so many mistakes in an answer.
    pub max_mistakes: usize,
    /// At most so many reflections in an answer.
    pub max_reflections: usize,
    /// Whether easy problems are answered by their output alone, without their steps.
    pub direct_easy: bool,
    /// Instead of all this, the style of retry data: before each step, with this probability and
    /// again after each, a mistake that is taken back without a word, and no confirming reflections.
    pub retry: Option<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            difficulties: vec![Difficulty::Hard],
            // Sure at the risky end, so that even a greedy model learns where to reflect.
            rates: [0.0, 0.1, 0.25, 1.0],
            corrective_share: 0.5,
            max_mistakes: 2,
            max_reflections: 3,
            direct_easy: false,
            retry: None,
        }
    }
}

/// What became of problems: `samples` is the number of problems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ReflectReport {
    pub samples: usize,
    /// Samples with at least one reflection.
    pub reflecting: usize,
    pub corrective: usize,
    pub confirming: usize,
    /// Corrective ones among the reflections; 0 without any.
    pub corrective_share: f64,
    /// Reflections that would have corrected if their step had a usable mistake.
    pub without_mistake: usize,
    /// Reflections that would have corrected if their answer had not had all its mistakes.
    pub at_mistake_limit: usize,
    /// Confirming reflections that were not written: nothing checks their step another way.
    pub without_other_way: usize,
    /// Known mistakes that no reflection of ours would be seen to correct, and that were not used.
    pub unusable_mistakes: usize,
    /// Samples whose answer stays as it was: it came with the problem, and there are no known steps to
    /// write another from.
    pub kept_answers: usize,
}

impl ReflectReport {
    /// Why the corrective share is not the one that was asked for, as a sentence; `None` where it is.
    pub fn shortfall(&self, asked: f64) -> Option<String> {
        const CLOSE: f64 = 0.02;
        if self.corrective + self.confirming == 0 || (self.corrective_share - asked).abs() <= CLOSE {
            return None;
        }
        let mut reasons = Vec::new();
        if self.without_mistake > 0 {
            let count = self.without_mistake;
            reasons.push(format!(
                "{count} stand on steps without a usable mistake (`data inject` and `data mine` find some)"
            ));
        }
        if self.at_mistake_limit > 0 {
            reasons.push(format!(
                "{} would have been more mistakes than an answer may have",
                self.at_mistake_limit
            ));
        }
        if reasons.is_empty() {
            reasons
                .push("steps that are done in one go get half as many, and few reflections vary".to_owned());
        }
        let (share, asked) = (100.0 * self.corrective_share, 100.0 * asked);
        let reasons = reasons.join(", ");
        Some(format!(
            "{share:.0} % of the reflections are corrective where {asked:.0} % were asked for: {reasons}"
        ))
    }
}

/// How an answer is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Style {
    Reflections(Settings),
    /// [`twin`], with whether easy problems are answered directly.
    Twin(bool),
    /// [`direct`]
    Direct,
    /// [`noisy`], with a rate and a seed.
    Noisy(f64, u64),
}

/// The corrective share so far: what was asked for and what was written.
#[derive(Clone, Copy, Debug, Default)]
struct Balance {
    asked: f64,
    corrective: f64,
}

/// How strongly a share that fell behind is made up for.
const PULL: f64 = 0.5;

impl Balance {
    /// The chance that the next reflection corrects.
    fn chance(self, share: f64) -> f64 {
        let owed = PULL * (self.asked - self.corrective);
        // What was not asked for at all is never owed.
        if share <= 0.0 { 0.0 } else { (share + owed).clamp(0.0, 1.0) }
    }

    fn add(&mut self, share: f64, corrective: bool) {
        self.asked += share;
        self.corrective += f64::from(u8::from(corrective));
    }
}

/// Writes an answer for each record. With reflections, answers make up for each other's corrective share.
pub fn write_all(records: Vec<Record>, style: &Style) -> (Vec<Sample>, ReflectReport) {
    let mut report = ReflectReport::default();
    let mut balance = Balance::default();
    let samples: Vec<Sample> = records
        .into_iter()
        .map(|Record { problem, spans }| {
            for step in &problem.steps {
                report.unusable_mistakes += step.mistakes.len() - usable(&problem, step).len();
            }
            let sample = match style {
                _ if problem.steps.is_empty() && !spans.is_empty() => {
                    report.kept_answers += 1;
                    Sample { problem, spans }
                }
                Style::Reflections(settings) => write(problem, settings, &mut balance, &mut report),
                Style::Twin(direct_easy) => twin(problem, *direct_easy),
                Style::Direct => direct(problem),
                Style::Noisy(rate, seed) => noisy(problem, *rate, *seed),
            };
            let count = |kind| sample.spans.iter().filter(|span| span.kind == kind).count();
            let corrective = count(SpanKind::CorrectiveReflection);
            let confirming = count(SpanKind::ConfirmingReflection);
            report.samples += 1;
            report.reflecting += usize::from(corrective + confirming > 0);
            report.corrective += corrective;
            report.confirming += confirming;
            sample
        })
        .collect();
    let reflections = report.corrective + report.confirming;
    report.corrective_share = report.corrective as f64 / reflections.max(1) as f64;
    (samples, report)
}

/// Writes an answer with reflections where the settings want them. It depends on nothing but the
/// problem and the settings.
pub fn reflect(problem: Problem, settings: &Settings) -> Sample {
    write(problem, settings, &mut Balance::default(), &mut ReflectReport::default())
}

fn write(problem: Problem, settings: &Settings, balance: &mut Balance, report: &mut ReflectReport) -> Sample {
    // What a model got wrong itself was hard for it, whatever it looked like.
    if !settings.difficulties.contains(&problem.difficulty) && !problem.steps.iter().any(is_own) {
        return twin(problem, settings.direct_easy);
    }
    let mut rng = random(&problem, settings.seed);
    if let Some(rate) = settings.retry {
        return retry(problem, rate, settings.max_mistakes, &mut rng);
    }
    let plan = plan(&problem, settings, &mut rng, balance, report);
    let mut spans = Vec::new();
    for (index, (step, reflection)) in problem.steps.iter().zip(&plan).enumerate() {
        match reflection {
            Plan::Plain => spans.push(line(SpanKind::Thinking, &step.text, index)),
            Plan::Confirm => {
                spans.push(line(SpanKind::Thinking, &step.text, index));
                let verdict = if is_leap(step) { "" } else { ", right" };
                let text = tagged(&format!("{}{verdict}", check(step).unwrap_or_default()));
                spans.push(line(SpanKind::ConfirmingReflection, &text, index));
                if is_leap(step) {
                    spans.push(line(SpanKind::Thinking, &step.text, index));
                }
            }
            Plan::Correct(mistake) => {
                spans.push(wrong_line(mistake, index));
                let text = tagged(&correction(&problem, step, mistake));
                spans.push(line(SpanKind::CorrectiveReflection, &text, index));
                spans.push(line(SpanKind::Correction, &step.text, index));
            }
        }
    }
    finish(problem, spans)
}

/// The same answer without any reflection: right steps only, and of an easy problem perhaps the output
/// alone.
pub fn twin(problem: Problem, direct_easy: bool) -> Sample {
    if direct_easy && problem.difficulty == Difficulty::Easy {
        return direct(problem);
    }
    let lines = problem.steps.iter().enumerate();
    let spans = lines.map(|(index, step)| line(SpanKind::Thinking, &step.text, index)).collect();
    finish(problem, spans)
}

/// The output alone.
pub fn direct(problem: Problem) -> Sample {
    finish(problem, Vec::new())
}

/// An answer with wrong steps that nobody corrects, and a right output all the same: each step is
/// wrong with this probability.
pub fn noisy(problem: Problem, rate: f64, seed: u64) -> Sample {
    let mut rng = random(&problem, seed);
    let mut spans = Vec::new();
    for (index, step) in problem.steps.iter().enumerate() {
        let wrong = step.mistakes.choose(&mut rng).filter(|_| rng.random_bool(rate.clamp(0.0, 1.0)));
        spans.push(match wrong {
            Some(mistake) => wrong_line(mistake, index),
            None => line(SpanKind::Thinking, &step.text, index),
        });
    }
    finish(problem, spans)
}

/// What is done about a step.
enum Plan<'a> {
    Plain,
    Confirm,
    Correct(&'a Mistake),
}

fn plan<'a>(
    problem: &'a Problem,
    settings: &Settings,
    rng: &mut Random,
    balance: &mut Balance,
    report: &mut ReflectReport,
) -> Vec<Plan<'a>> {
    let mut plan: Vec<Plan> = problem.steps.iter().map(|_| Plan::Plain).collect();
    // A mistake takes a right version out of what is learned, and leaps have to be learned too.
    let share = |step: &Step| settings.corrective_share / if is_leap(step) { 2.0 } else { 1.0 };
    let (mut mistakes, mut told) = (0, *balance);
    for index in chosen(problem, settings, rng) {
        let step = &problem.steps[index];
        let wants_mistake = rng.random_bool(told.chance(share(step)));
        let usable = usable(problem, step);
        plan[index] = match wants_mistake {
            true if mistakes >= settings.max_mistakes => {
                report.at_mistake_limit += 1;
                Plan::Confirm
            }
            true => choose_mistake(&usable, rng).map_or(Plan::Confirm, Plan::Correct),
            false => Plan::Confirm,
        };
        report.without_mistake += usize::from(wants_mistake && usable.is_empty());
        mistakes += usize::from(matches!(plan[index], Plan::Correct(_)));
        told.add(share(step), matches!(plan[index], Plan::Correct(_)));
    }
    // A mistake in the next line may restate a part of this one: then this reflection would be taken
    // for a correction.
    for (index, step) in problem.steps.iter().enumerate() {
        let next = match plan.get(index + 1) {
            _ if is_leap(step) => step.text.as_str(),
            Some(Plan::Correct(mistake)) => mistake.text.as_str(),
            _ => problem.steps.get(index + 1).map(|step| step.text.as_str()).unwrap_or_default(),
        };
        match plan[index] {
            Plan::Confirm if !confirms(step, next) => {
                report.without_other_way += usize::from(check(step).is_none());
                plan[index] = Plan::Plain;
            }
            Plan::Plain => {}
            _ => balance.add(share(step), matches!(plan[index], Plan::Correct(_))),
        }
    }
    plan
}

/// The steps that get a reflection, the ones that a model got wrong itself and the riskiest first.
fn chosen(problem: &Problem, settings: &Settings, rng: &mut Random) -> Vec<usize> {
    let rate = |step: &Step| match is_own(step) {
        true => 1.0,
        false => settings.rates[usize::from(step.risk).min(settings.rates.len() - 1)].clamp(0.0, 1.0),
    };
    let can_reflect = |index: &usize| {
        let step = &problem.steps[*index];
        rate(step) > 0.0 && (confirms(step, "") || !usable(problem, step).is_empty())
    };
    let candidates: Vec<usize> = (0..problem.steps.len()).filter(can_reflect).collect();
    let mut chosen: Vec<usize> =
        candidates.iter().copied().filter(|index| rng.random_bool(rate(&problem.steps[*index]))).collect();
    let confirmable = |index: &usize| confirms(&problem.steps[*index], "");
    if !chosen.iter().any(confirmable) {
        // A hard problem has a step that is worth a second look.
        let candidates = candidates.into_iter().filter(confirmable);
        chosen.extend(candidates.max_by_key(|index| problem.steps[*index].risk));
    }
    chosen.shuffle(rng);
    // The sort keeps the order of equal ones.
    chosen.sort_by_key(|index| {
        let step = &problem.steps[*index];
        Reverse((is_own(step), step.risk))
    });
    chosen.truncate(settings.max_reflections);
    chosen
}

fn is_leap(step: &Step) -> bool {
    step.risk >= LEAP
}

/// Whether a model got this step wrong itself, so that it is one to reflect on.
fn is_own(step: &Step) -> bool {
    step.mistakes.iter().any(|mistake| mistake.kind == MistakeKind::Mined)
}

/// One of the mistakes, each kind as likely as the others. A model's own come first.
fn choose_mistake<'a>(mistakes: &[&'a Mistake], rng: &mut Random) -> Option<&'a Mistake> {
    let own: Vec<&Mistake> =
        mistakes.iter().copied().filter(|mistake| mistake.kind == MistakeKind::Mined).collect();
    if !own.is_empty() {
        return own.choose(rng).copied();
    }
    let mut kinds: Vec<MistakeKind> = mistakes.iter().map(|mistake| mistake.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kind = *kinds.choose(rng)?;
    let of_kind: Vec<&Mistake> = mistakes.iter().copied().filter(|mistake| mistake.kind == kind).collect();
    of_kind.choose(rng).copied()
}

/// The mistakes of a step that its reflection is seen to correct. A line that breaks off states no
/// value that a verdict could compare: there the right line has to follow.
fn usable<'a>(problem: &Problem, step: &'a Step) -> Vec<&'a Mistake> {
    let corrects = |mistake: &&Mistake| {
        let reflection = correction(problem, step, mistake);
        let kind = verdict(&mistake.text, &reflection, &step.text).kind;
        kind == VerdictKind::Corrected || (kind == VerdictKind::Unknown && is_open(&mistake.text))
    };
    step.mistakes.iter().filter(corrects).collect()
}

/// Whether a reflection on a right step checks it another way and is seen to confirm it when this line
/// follows.
fn confirms(step: &Step, next: &str) -> bool {
    check(step).is_some_and(|check| verdict(&step.text, &check, next).kind == VerdictKind::Confirmed)
}

/// A step worked out another way, where there is one.
fn check(step: &Step) -> Option<Cow<'_, str>> {
    if step.check.is_empty() {
        return other_way(&step.text).map(Cow::Owned);
    }
    Some(Cow::Borrowed(trimmed(&step.check)))
}

/// A step worked out another way, or else once more.
fn check_or_again(step: &Step) -> Cow<'_, str> {
    check(step).unwrap_or_else(|| Cow::Borrowed(trimmed(&step.text)))
}

fn trimmed(text: &str) -> &str {
    text.trim().trim_end_matches('.')
}

/// What a reflection says about a mistake: the step worked out, and which value it does not have. A
/// line about a later step, made too early, is answered with that step as well.
fn correction(problem: &Problem, step: &Step, mistake: &Mistake) -> String {
    let mut text = check_or_again(step).into_owned();
    if is_leap(step) {
        return text;
    }
    let Some(wrong) = claim(&mistake.text) else { return text };
    let restates = |part: &str| claim(part).is_some_and(|right| right.subject == wrong.subject);
    if !text.split(", ").any(restates)
        && let Some(meant) = problem.steps.iter().find(|step| restates(&step.text))
    {
        // What is looked up there may be all there is to say about this step.
        let again = check_or_again(meant);
        text = if again.contains(&text) { again.into_owned() } else { format!("{text}, {again}") };
    }
    format!("{text}, not {}", wrong.value)
}

/// Mistakes that are taken back, as in retry data.
fn retry(problem: Problem, rate: f64, most: usize, rng: &mut Random) -> Sample {
    let mut spans = Vec::new();
    let mut mistakes = 0;
    for (index, step) in problem.steps.iter().enumerate() {
        let mut untried: Vec<&Mistake> = step.mistakes.iter().collect();
        untried.shuffle(rng);
        let mut failed = false;
        while mistakes < most && rng.random_bool(rate.clamp(0.0, 1.0)) {
            let Some(mistake) = untried.pop() else { break };
            spans.push(wrong_line(mistake, index));
            spans.push(line(SpanKind::CorrectiveReflection, &tagged("back"), index));
            (mistakes, failed) = (mistakes + 1, true);
        }
        let kind = if failed { SpanKind::Correction } else { SpanKind::Thinking };
        spans.push(line(kind, &step.text, index));
    }
    finish(problem, spans)
}

pub(crate) fn random(problem: &Problem, seed: u64) -> Random {
    Random::seed_from_u64(mix(seed) ^ fingerprint(&problem.id))
}

fn tagged(text: &str) -> String {
    format!("<reflection>{text}</reflection>")
}

fn line(kind: SpanKind, text: &str, step: usize) -> Span {
    Span { kind, text: format!("{text}\n"), step: Some(step), mistake: None }
}

fn wrong_line(mistake: &Mistake, step: usize) -> Span {
    Span { mistake: Some(mistake.kind), ..line(SpanKind::Mistake, &mistake.text, step) }
}

/// Puts the tags around the lines. Without lines the answer is nothing but its output.
fn finish(problem: Problem, lines: Vec<Span>) -> Sample {
    let span = |kind, text: String| Span { kind, text, step: None, mistake: None };
    let mut spans = Vec::with_capacity(lines.len() + 3);
    if !lines.is_empty() {
        spans.push(span(SpanKind::Thinking, "<thinking>\n".to_owned()));
        spans.extend(lines);
        spans.push(span(SpanKind::Thinking, "</thinking>\n".to_owned()));
    }
    spans.push(span(SpanKind::Output, format!("<output>{}</output>", problem.answer)));
    Sample { problem, spans }
}

#[cfg(test)]
mod tests;
