//! A step of plain arithmetic checked another way: what it comes to, taken apart again by the inverse
//! operation.

use crate::arithmetic::{evaluate, same, sides_of_equations};

const OPERATORS: [char; 8] = ['+', '-', '−', '*', '×', 'x', '/', '÷'];

/// The check of the last equation of a line that holds exactly and joins numbers by one kind of operation:
/// of `She sold 48/2 = 24 clips` it is `24*2 = 48. So 48/2 = 24`. `None` where a line has no such equation.
pub(crate) fn other_way(line: &str) -> Option<String> {
    sides_of_equations(line).into_iter().rev().find_map(|(left, right)| check(left, right))
}

fn check(left: &str, right: &str) -> Option<String> {
    let left = left.trim();
    let (numbers, operators) = operands(left)?;
    let operator = *operators.first()?;
    let inverse = match operator {
        '+' => '-',
        '-' | '−' => '+',
        '*' | '×' | 'x' => '/',
        _ => '*',
    };
    // Taking away and dividing are undone one at a time.
    let chain = operators.iter().all(|other| *other == operator) && matches!(inverse, '-' | '/');
    if operators.len() > 1 && !chain {
        return None;
    }
    let right = plain(right);
    let (first, others) = numbers.split_first()?;
    let undone = others.iter().rev().fold(right.clone(), |text, number| format!("{text}{inverse}{number}"));
    let exact = |expression: &str, value: &str| {
        evaluate(expression).zip(evaluate(value)).is_some_and(|(a, b)| same(a, b))
    };
    // A step that repeats its operand says nothing new: 0 and 1 as operands.
    let says_something = undone != left.replace(' ', "") && evaluate(first)? != evaluate(&right)?;
    (exact(left, &right) && exact(&undone, first) && says_something)
        .then(|| format!("{undone} = {first}. So {left} = {right}"))
}

/// The numbers of an expression, without currency, and the operators between them. `None` for one with
/// parentheses, signs or percent.
fn operands(expression: &str) -> Option<(Vec<String>, Vec<char>)> {
    let parts: Vec<String> = expression.split(OPERATORS).map(plain).collect();
    let number = |part: &String| part.parse::<f64>().is_ok_and(f64::is_finite);
    let operators = expression.chars().filter(|symbol| OPERATORS.contains(symbol)).collect();
    (parts.len() > 1 && parts.iter().all(number)).then_some((parts, operators))
}

/// A number without its currency and the commas between its digits.
fn plain(number: &str) -> String {
    number.trim().trim_start_matches('$').replace(',', "").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reflect_text::{VerdictKind, verdict};

    use super::*;

    #[test]
    fn operations_are_undone() {
        let cases = [
            ("She sold 48/2 = 24 clips in May.", Some("24*2 = 48. So 48/2 = 24")),
            ("In all 48+24 = 72 clips.", Some("72-24 = 48. So 48+24 = 72")),
            ("She keeps 16 - 7 = 9.", Some("9+7 = 16. So 16 - 7 = 9")),
            ("She earns 9 * $2 = $18.", Some("18/2 = 9. So 9 * $2 = 18")),
            ("Together 1,000 + 200 + 30 = 1,230", Some("1230-30-200 = 1000. So 1,000 + 200 + 30 = 1230")),
            ("2*3*4 = 24", Some("24/4/3 = 2. So 2*3*4 = 24")),
            ("0.5*8 = 4", Some("4/8 = 0.5. So 0.5*8 = 4")),
            ("10-4-3 = 3", None),
            ("2+3*4 = 14", None),
            ("(2+3)*4 = 20", None),
            ("50%*80 = 40", None),
            ("1/3 = 0.33", None),
            ("2+2 = 5", None),
            ("5*1 = 5", None),
            ("So x = 5", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(other_way(line).as_deref(), expected, "{line}");
        }
    }

    proptest! {
        /// A check is right, and is seen to confirm its step.
        #[test]
        fn checks_confirm(a in 2..5000u32, b in 2..5000u32, kind in 0..4usize) {
            let (left, right) = match kind {
                0 => (format!("{a}+{b}"), a + b),
                1 => (format!("{}-{b}", a + b), a),
                2 => (format!("{a}*{b}"), a * b),
                _ => (format!("{}/{b}", a * b), a),
            };
            let line = format!("He has {left} = {right} coins.");
            let check = other_way(&line).unwrap();
            prop_assert_eq!(verdict(&line, &check, "").kind, VerdictKind::Confirmed, "{}", check);
        }

        #[test]
        fn no_line_panics(text in "[-+*/().,%x$= 0-9a]{0,60}") {
            other_way(&text);
        }
    }
}
