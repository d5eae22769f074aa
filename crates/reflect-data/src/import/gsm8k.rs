//! GSM8K: a question, and an answer whose lines hold `<<a*b=c>>` for a calculator and end with
//! `#### N`.

use serde_json::Value;

use super::{DropReason, Record, Refusal, name, text_field};
use crate::arithmetic::{evaluate, same};
use crate::checker::Checker;
use crate::number;
use crate::sample::{Category, Difficulty, LEAP, Problem, Split, Step};
use crate::words::template_of;
use reflect_text::Message;

/// A line of an annotated solution.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The line without its annotations.
    pub text: String,
    pub annotations: Vec<Annotation>,
}

/// What stands between `<<` and `>>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// The part before the last `=`.
    pub expression: String,
    /// The part after it, as written.
    pub result: String,
    /// The value of `result`; `None` when it is no number.
    pub value: Option<f64>,
}

/// A row of train.jsonl or test.jsonl.
pub(super) fn record(row: &Value, number: usize, file: &str) -> Result<Record, Refusal> {
    let question = text_field(row, "question")?;
    let solution = text_field(row, "answer")?;
    let held_out = name(file).split(|symbol: char| !symbol.is_alphanumeric()).any(|part| part == "test");
    let name = if held_out { "gsm8k-test" } else { "gsm8k" };
    let split = if held_out { Split::HeldOut } else { Split::Train };
    let problem = problem(format!("{name}/{number:06}"), question, solution, split)?;
    Ok(Record { problem, spans: Vec::new() })
}

/// The problem with its steps. `solution` ends with `#### N` or `A: N`.
pub(super) fn problem(id: String, question: &str, solution: &str, split: Split) -> Result<Problem, Refusal> {
    let (lines, answer) = lines_and_answer(solution);
    let answer = answer.filter(|answer| !answer.is_empty());
    let answer = answer.ok_or_else(|| (DropReason::EmptyAnswer, "the answer has no `#### N`".to_owned()))?;
    // Also of a number with its unit.
    let checker = number::last(&answer).map(|_| Checker::Number);
    if question.trim().is_empty() {
        return Err((DropReason::WrongShape, "`question` is empty".to_owned()));
    }
    let steps = steps(&lines);
    // The classes of the step counts of the training set: about 36 %, 48 % and 17 % of it.
    let difficulty = match lines.iter().map(|line| line.annotations.len()).sum() {
        0..=2 => Difficulty::Easy,
        3..=4 => Difficulty::Moderate,
        _ => Difficulty::Hard,
    };
    Ok(Problem {
        id,
        family: "gsm8k".to_owned(),
        category: Category::Math,
        difficulty,
        template: template_of(question),
        split,
        messages: vec![Message::new("user", question.trim())],
        tools: None,
        steps,
        answer,
        checker,
        setup: String::new(),
    })
}

/// What stands before the answer of a solution.
pub(super) const MARK: &str = "####";

/// The lines of a solution, and the answer that it gives last, after `####` anywhere or after `A:` at the
/// start of a line.
pub(super) fn lines_and_answer(solution: &str) -> (Vec<Line>, Option<String>) {
    let mut lines = Vec::new();
    let mut answer = None;
    for text in solution.lines().map(str::trim).filter(|text| !text.is_empty()) {
        let (text, given) = match (text.rsplit_once(MARK), text.strip_prefix("A:")) {
            (Some((before, given)), _) => (before.trim_end(), Some(given)),
            (None, Some(given)) => ("", Some(given)),
            (None, None) => (text, None),
        };
        answer = given.map(|given| without_commas(given.trim())).or(answer);
        if !text.is_empty() {
            lines.push(line(text));
        }
    }
    (lines, answer)
}

/// A text without the commas between the digits of its numbers.
fn without_commas(text: &str) -> String {
    let symbols: Vec<char> = text.chars().collect();
    let digit = |place: Option<usize>| place.and_then(|p| symbols.get(p)).is_some_and(char::is_ascii_digit);
    let inside = |place: usize| digit(place.checked_sub(1)) && digit(Some(place + 1));
    let kept = symbols.iter().enumerate().filter(|(place, symbol)| **symbol != ',' || !inside(*place));
    kept.map(|(_, symbol)| *symbol).collect()
}

fn line(text: &str) -> Line {
    let mut rest = text;
    let mut line = Line { text: String::with_capacity(text.len()), annotations: Vec::new() };
    while let Some((before, inside)) = rest.split_once("<<") {
        line.text.push_str(before);
        let Some((annotation, after)) = inside.split_once(">>") else {
            // Not an annotation after all: it stays in the text.
            line.text.push_str("<<");
            rest = inside;
            continue;
        };
        if let Some((expression, result)) = annotation.rsplit_once('=') {
            line.annotations.push(Annotation {
                expression: expression.trim().to_owned(),
                result: result.trim().to_owned(),
                value: evaluate(result),
            });
        }
        rest = after;
    }
    line.text.push_str(rest);
    line
}

/// Steps with what they need and how risky they are.
fn steps(lines: &[Line]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let mut needs: Vec<usize> = line
            .annotations
            .iter()
            .flat_map(|annotation| operands(&annotation.expression))
            .filter_map(|operand| {
                let known = |line: &Line| {
                    line.annotations.iter().any(|other| other.value.is_some_and(|value| same(value, operand)))
                };
                lines.get(..index)?.iter().rposition(known)
            })
            .collect();
        needs.sort_unstable();
        needs.dedup();
        let risk = line.annotations.iter().map(|annotation| risk(&annotation.expression)).max().unwrap_or(0);
        steps.push(Step { text: line.text.clone(), needs, risk, check: String::new(), mistakes: Vec::new() });
    }
    steps
}

/// From 1, for a sum of small numbers, to 3, for divisions and for several operations with long numbers.
/// None is a leap: whoever wrote the step did it in one go.
fn risk(expression: &str) -> u8 {
    let operations = expression.chars().filter(|symbol| "+-*/".contains(*symbol)).count();
    let hardest = if expression.contains('/') {
        3
    } else if expression.contains('*') {
        2
    } else {
        1
    };
    let long = expression
        .split(|symbol: char| !symbol.is_ascii_digit())
        .any(|digits| digits.trim_end_matches('0').len() > 2);
    (hardest + u8::from(operations > 1) + u8::from(long)).min(LEAP - 1)
}

fn operands(expression: &str) -> impl Iterator<Item = f64> + '_ {
    expression
        .split(|symbol: char| !symbol.is_ascii_digit() && symbol != '.')
        .filter_map(|operand| operand.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::import;

    const ROW: &str = r#"{"question": "Natalia sold 48 clips in April, and half as many in May. How many altogether?", "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72 clips, or $1,\n#### 1,072"}"#;

    #[test]
    fn annotations_become_steps() {
        let (records, report) = import(ROW.as_bytes(), "data/train.jsonl", None).unwrap();
        assert_eq!((report.read, report.kept), (1, 1));
        let problem = &records[0].problem;
        assert_eq!((problem.id.as_str(), problem.answer.as_str()), ("gsm8k/000000", "1072"));
        assert_eq!((problem.split, problem.difficulty), (Split::Train, Difficulty::Easy));
        let texts: Vec<&str> = problem.steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(texts, ["She sold 48/2 = 24 clips in May.", "In all 48+24 = 72 clips, or $1,"]);
        assert_eq!(problem.steps[1].needs, [0]);
        assert!(problem.steps[0].risk > problem.steps[1].risk);
    }

    #[test]
    fn test_files_are_held_out() {
        let (records, _) = import(ROW.as_bytes(), "data/test.jsonl", None).unwrap();
        assert_eq!(records[0].problem.split, Split::HeldOut);
        assert_eq!(records[0].problem.id, "gsm8k-test/000000");
    }

    #[test]
    fn an_answer_without_its_number_is_dropped() {
        let row = r#"{"question": "How many?", "answer": "Some."}"#;
        let file = format!("{row}\n{ROW}\n");
        let (_, report) = import(file.as_bytes(), "train.jsonl", None).unwrap();
        assert_eq!((report.dropped[&DropReason::EmptyAnswer], report.kept), (1, 1));
        // Where no row has one, the file is of another kind.
        let (records, report) = import(row.as_bytes(), "train.jsonl", None).unwrap();
        assert_eq!(report.format, Some(crate::import::Format::Columns));
        assert_eq!(records[0].problem.answer, "Some.");
    }

    #[test]
    fn answers_are_found_wherever_they_stand() {
        let cases = [
            ("x\n#### 5", Some("5"), 1),
            ("x\n####5", Some("5"), 1),
            ("x\r\n#### -5\r\n", Some("-5"), 1),
            ("x\n#### 1,234,567", Some("1234567"), 1),
            ("x\n#### 4\nWait.\n#### 5", Some("5"), 2),
            ("So she has 5 apples. #### 5", Some("5"), 1),
            ("x\n#### $1,029.00", Some("$1029.00"), 1),
            ("x\n#### Rome, Italy", Some("Rome, Italy"), 1),
            ("x\nA: 7", Some("7"), 1),
            ("x", None, 1),
        ];
        for (solution, answer, lines) in cases {
            let found = lines_and_answer(solution);
            assert_eq!((found.1.as_deref(), found.0.len()), (answer, lines), "{solution}");
        }
    }

    #[test]
    fn broken_annotations_stay_text() {
        assert_eq!(line("a << b").text, "a << b");
        assert_eq!(line("a <<b>> c").text, "a  c");
        assert_eq!(line("1 <<2=<<3=4>>5").annotations.len(), 1);
    }
}
