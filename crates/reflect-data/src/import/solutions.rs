//! Solutions that models wrote for GSM8K's test problems, right ones and wrong ones: real mistakes
//! at real places.
//!
//! The problems are GSM8K's test set, so rows with an even number may train and rows with an odd
//! one evaluate. A wrong solution is followed to its first fault: a line whose arithmetic is wrong,
//! or one whose result occurs neither in the reference nor in a right solution of the same problem.
//! The line becomes a [`MistakeKind::Mined`] mistake of the step that should have stood there.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::Value;

use super::gsm8k::{self, Annotation, Line, lines_and_answer};
use super::{Record, Refusal, text_field};
use crate::arithmetic::{evaluate, same, states};
use crate::sample::{Mistake, MistakeKind, Split};

/// What a model's line does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepFault {
    /// The right side of an annotation is not the value of its left side.
    Arithmetic,
    /// The arithmetic holds, but nobody who got the problem right has this value.
    Diverged,
}

/// How the solutions of a file were judged: `solutions` is `right` plus `arithmetic`, `diverged` and
/// `unplaced`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SolutionCounts {
    pub solutions: usize,
    /// Solutions whose answer is right, by the file's own word.
    pub right: usize,
    /// Wrong ones by their first fault.
    pub arithmetic: usize,
    pub diverged: usize,
    /// Wrong ones without a line to blame: every value is right, yet the answer is not.
    pub unplaced: usize,
}

/// A row of example_model_solutions.jsonl: the problem with the models' mistakes on its steps.
pub(super) fn record(row: &Value, number: usize, counts: &mut SolutionCounts) -> Result<Record, Refusal> {
    let question = text_field(row, "question")?;
    let reference = text_field(row, "ground_truth")?;
    let split = if number.is_multiple_of(2) { Split::Train } else { Split::HeldOut };
    let mut problem = gsm8k::problem(format!("gsm8k-test/{number:06}"), question, reference, split)?;
    let solutions: Vec<(bool, Vec<Line>)> = row
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.values())
        .filter_map(|field| {
            let right = field.get("is_correct")?.as_bool()?;
            Some((right, lines_and_answer(field.get("solution")?.as_str()?).0))
        })
        .collect();
    let (reference, _) = lines_and_answer(reference);
    let right: Vec<f64> =
        solutions.iter().filter(|(right, _)| *right).flat_map(|(_, lines)| values(lines)).collect();
    for (is_right, lines) in &solutions {
        counts.solutions += 1;
        if *is_right {
            counts.right += 1;
            continue;
        }
        let Some((line, step, fault)) = first_fault(&reference, &right, lines) else {
            counts.unplaced += 1;
            continue;
        };
        match fault {
            StepFault::Arithmetic => counts.arithmetic += 1,
            StepFault::Diverged => counts.diverged += 1,
        }
        let text = lines.get(line).map(|line| line.text.clone()).unwrap_or_default();
        if let Some(step) = problem.steps.get_mut(step) {
            let mistake = Mistake { kind: MistakeKind::Mined, text };
            if !step.mistakes.contains(&mistake) {
                step.mistakes.push(mistake);
            }
        }
    }
    Ok(Record { problem, spans: Vec::new() })
}

/// The first faulty line of a solution, the step of the reference that should stand in its place,
/// and the fault. `right` holds the values of solutions known to be right. Lines without an
/// annotation can't be judged and are passed over.
fn first_fault(reference: &[Line], right: &[f64], solution: &[Line]) -> Option<(usize, usize, StepFault)> {
    let known: Vec<f64> = values(reference).chain(right.iter().copied()).collect();
    let states_it = |step: &Line, value: f64| values(std::slice::from_ref(step)).any(|own| same(own, value));
    let mut stated = vec![false; reference.len()];
    for (number, line) in solution.iter().enumerate() {
        let wrong = line.annotations.iter().find(|annotation| is_wrong(annotation));
        let diverged =
            || values(std::slice::from_ref(line)).any(|value| !known.iter().any(|k| same(*k, value)));
        let fault = match wrong {
            Some(_) => Some(StepFault::Arithmetic),
            None => diverged().then_some(StepFault::Diverged),
        };
        if let Some(fault) = fault {
            // Wrong arithmetic names its step by the value it should have had.
            let meant = wrong.and_then(|annotation| evaluate(&annotation.expression));
            let meant = meant.and_then(|value| reference.iter().position(|step| states_it(step, value)));
            let next = stated.iter().position(|stated| !stated);
            let step = meant.or(next).or(reference.len().checked_sub(1))?;
            return Some((number, step, fault));
        }
        for value in values(std::slice::from_ref(line)) {
            let step = (0..reference.len()).find(|step| {
                !stated[*step] && reference.get(*step).is_some_and(|step| states_it(step, value))
            });
            if let Some(place) = step.and_then(|step| stated.get_mut(step)) {
                *place = true;
            }
        }
    }
    None
}

/// Keeps an even problem from training when an odd one has the same words.
pub(super) fn hold_out_twins(records: &mut [Record]) {
    let odd: HashSet<String> = records
        .iter()
        .filter(|record| record.problem.split == Split::HeldOut)
        .map(|record| record.problem.template.clone())
        .collect();
    for record in records {
        if odd.contains(&record.problem.template) {
            record.problem.split = Split::HeldOut;
        }
    }
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> + '_ {
    lines.iter().flat_map(|line| line.annotations.iter().filter_map(|annotation| annotation.value))
}

/// Whether the annotation contradicts itself. What can't be evaluated is not held against it.
fn is_wrong(annotation: &Annotation) -> bool {
    evaluate(&annotation.expression).is_some_and(|value| !states(&annotation.result, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::import;

    fn row(question: &str, solutions: &[(bool, &str)]) -> String {
        let mut row = serde_json::json!({
            "question": question,
            "ground_truth": "She uses 3 + 4 = <<3+4=7>>7.\nShe sells 16 - 7 = <<16-7=9>>9.\nShe earns 9 * 2 = $<<9*2=18>>18.\nA: 18",
        });
        for (number, (right, text)) in solutions.iter().enumerate() {
            let solution = serde_json::json!({"is_correct": right, "solution": text});
            row[format!("model{number}")] = solution;
        }
        row.to_string()
    }

    fn mistakes(text: &str) -> Vec<(usize, String)> {
        let (records, _) = import(text.as_bytes(), "example_model_solutions.jsonl", None).unwrap();
        let steps = records[0].problem.steps.iter().enumerate();
        steps
            .flat_map(|(place, step)| step.mistakes.iter().map(move |mistake| (place, mistake.text.clone())))
            .collect()
    }

    #[test]
    fn the_first_fault_is_kept_at_its_step() {
        let diverged = "She uses 3 + 4 = <<3+4=7>>7.\nShe sells 16 * 7 = <<16*7=112>>112.\nA: 112";
        let text = row("a", &[(false, diverged)]);
        assert_eq!(mistakes(&text), [(1, "She sells 16 * 7 = 112.".to_owned())]);
        let arithmetic =
            "She uses 3 + 4 = <<3+4=7>>7.\nShe sells <<16-7=9>>9.\nIn all 9 * 2 = <<9*2=16>>16.\nA: 16";
        let text = row("a", &[(false, arithmetic)]);
        assert_eq!(mistakes(&text), [(2, "In all 9 * 2 = 16.".to_owned())]);
    }

    #[test]
    fn a_value_of_a_right_solution_is_no_fault() {
        let right = "16 - 3 = <<16-3=13>>13.\n13 - 4 = <<13-4=9>>9.\n9 * 2 = <<9*2=18>>18\nA: 18";
        let wrong = "16 - 3 = <<16-3=13>>13.\n13 * 2 = <<13*2=26>>26\nA: 26";
        assert_eq!(mistakes(&row("a", &[(true, right), (false, wrong)])), [(0, "13 * 2 = 26".to_owned())]);
    }

    #[test]
    fn every_solution_is_counted_once() {
        let solutions =
            [(true, "A: 18"), (false, "A: 1"), (false, "<<1+1=3>>\nA: 3"), (false, "<<5*5=25>>\nA: 25")];
        let (_, report) = import(row("a", &solutions).as_bytes(), "x.jsonl", None).unwrap();
        let counts = SolutionCounts { solutions: 4, right: 1, arithmetic: 1, diverged: 1, unplaced: 1 };
        assert_eq!(report.solutions, counts);
    }

    #[test]
    fn even_ids_train_and_odd_ids_evaluate_disjointly() {
        // Rows 2 and 3 ask the same with other numbers: row 2 must not train.
        let questions = ["one egg", "two hens", "Pat has 5 pens", "Pat has 7 pens", "six pigs"];
        let rows: Vec<String> = questions.iter().map(|question| row(question, &[])).collect();
        let (records, _) = import(rows.join("\n").as_bytes(), "x.jsonl", None).unwrap();
        let side = |split| {
            records.iter().filter(move |r| r.problem.split == split).map(|r| r.problem.template.clone())
        };
        let train: HashSet<String> = side(Split::Train).collect();
        let held_out: HashSet<String> = side(Split::HeldOut).collect();
        assert!(train.is_disjoint(&held_out));
        assert_eq!((train.len(), held_out.len()), (2, 2));
        for record in records.iter().filter(|record| record.problem.split == Split::Train) {
            let number: usize = record.problem.id.rsplit('/').next().unwrap().parse().unwrap();
            assert_eq!(number % 2, 0);
        }
    }
}
