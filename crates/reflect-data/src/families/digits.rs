//! Numbers digit by digit: what the scratchpads of the arithmetic families share.

use rand::Rng;

use super::Random;
use super::chain::{COPY, Chain, FACT, HARD, LEAP, RISKY};
use crate::sample::{MistakeKind, Step};

/// The names of the places, ones first.
pub(super) const PLACES: [&str; 6] =
    ["ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands"];

/// The digits of a number, ones first.
pub(super) fn digits(mut number: i64) -> Vec<i64> {
    let mut digits = vec![number % 10];
    while number >= 10 {
        number /= 10;
        digits.push(number % 10);
    }
    digits
}

/// The number with these digits, ones first. The last entry may have more than one digit.
pub(super) fn number(digits: &[i64]) -> i64 {
    digits.iter().rev().fold(0, |number, digit| number * 10 + digit)
}

/// Adds the line that names the digits of a number, so that later lines need not count places:
/// `a: hundreds 3 tens 4 ones 7`.
pub(super) fn spell(chain: &mut Chain, name: &str, number: i64) -> usize {
    let named: Vec<String> =
        digits(number).iter().zip(PLACES).map(|(digit, place)| format!("{place} {digit}")).rev().collect();
    chain.push(format!("{name}: {}", named.join(" ")), String::new(), COPY, &[])
}

/// A sum in steps of two numbers: `4+8+1=12+1=13`, or `7` alone. `total` is what the end
/// states.
pub(super) fn sum(terms: &[i64], total: i64) -> String {
    let mut text = String::new();
    let mut rest = terms.to_vec();
    while rest.len() > 1 {
        let joined: Vec<String> = rest.iter().map(i64::to_string).collect();
        text.push_str(&joined.join("+"));
        text.push('=');
        let first = rest.remove(0);
        rest[0] += first;
    }
    text.push_str(&total.to_string());
    text
}

/// The same sum from its other end, for a reflection.
pub(super) fn sum_again(terms: &[i64]) -> String {
    let mut terms = terms.to_vec();
    terms.reverse();
    let total = terms.iter().sum();
    if terms.len() == 1 { format!("only {total}") } else { sum(&terms, total) }
}

/// Adds the lines of a column addition of numbers, and the one with their sum.
pub(super) fn add_by_columns(
    rng: &mut Random,
    chain: &mut Chain,
    name: &str,
    terms: &[i64],
    needs: &[usize],
) {
    let mut columns: Vec<Vec<i64>> = Vec::new();
    for term in terms {
        for (place, digit) in digits(*term).into_iter().enumerate() {
            if columns.len() == place {
                columns.push(Vec::new());
            }
            columns[place].push(digit);
        }
    }
    let (written, steps) = add_columns(rng, chain, &columns, needs);
    assemble(rng, chain, name, &written, &steps);
}

/// Adds the line with a sum, to be checked by columns.
pub(super) fn add_at_once(rng: &mut Random, chain: &mut Chain, name: &str, terms: &[i64], needs: &[usize]) {
    let mut scratchpad = Chain::default();
    add_by_columns(rng, &mut scratchpad, name, terms, &[]);
    let work: Vec<String> = terms.iter().map(i64::to_string).collect();
    let work = work.join("+");
    let line = |value: i64| format!("{work}, {name} = {value}");
    in_one_go(rng, chain, line, terms.iter().sum(), &scratchpad.steps, needs);
    let without_carries = terms.iter().fold(0, |total, term| add_without_carries(total, *term));
    chain.mistake(MistakeKind::SkippedCarry, line(without_carries));
}

fn add_without_carries(a: i64, b: i64) -> i64 {
    match (a, b) {
        (0, 0) => 0,
        _ => 10 * add_without_carries(a / 10, b / 10) + (a % 10 + b % 10) % 10,
    }
}

/// Adds the lines of a column addition: `columns` has the digits of each place, ones first. Returns the digits written (of the last place perhaps two) and the steps.
fn add_columns(
    rng: &mut Random,
    chain: &mut Chain,
    columns: &[Vec<i64>],
    needs: &[usize],
) -> (Vec<i64>, Vec<usize>) {
    let (mut written, mut steps) = (Vec::new(), Vec::new());
    let mut carry = 0;
    for (index, column) in columns.iter().enumerate() {
        let place = PLACES[index.min(PLACES.len() - 1)];
        let last = index + 1 == columns.len();
        let line = |terms: &[i64], total: i64| {
            let (put, out) = (total % 10, total / 10);
            let rest = if last { format!("put {total}") } else { format!("put {put} carry {out}") };
            format!("{place} = {}, {rest}", sum(terms, total))
        };
        let mut terms = column.clone();
        if carry > 0 {
            terms.push(carry);
        }
        let total = terms.iter().sum();
        let risk = match (terms.len(), total) {
            (3.., 10..) => HARD,
            (3.., _) | (_, 10..) => RISKY,
            _ => FACT,
        };
        let mut needs = needs.to_vec();
        needs.extend(steps.last());
        let check = format!("{}, {place} = {total}", sum_again(&terms));
        steps.push(chain.push(line(&terms, total), check, risk, &needs));

        if carry > 0 {
            chain.mistake(MistakeKind::SkippedCarry, line(column, column.iter().sum()));
        }
        chain.slips(rng, total, |wrong| line(&terms, wrong));
        let neighbour = columns.get(index + 1).or_else(|| columns.get(index.wrapping_sub(1)));
        if let Some(digit) = neighbour.and_then(|column| column.first()) {
            let mut wrong = terms.clone();
            wrong[0] = *digit;
            if wrong[0] != terms[0] {
                chain.mistake(MistakeKind::WrongOperand, line(&wrong, wrong.iter().sum()));
            }
        }
        written.push(if last { total } else { total % 10 });
        carry = total / 10;
    }
    (written, steps)
}

/// Adds the line that puts the digits together, highest first: `sum = 632`.
pub(super) fn assemble(
    rng: &mut Random,
    chain: &mut Chain,
    name: &str,
    written: &[i64],
    needs: &[usize],
) -> usize {
    let value = number(written);
    let digits: Vec<String> = written.iter().rev().map(i64::to_string).collect();
    let check = format!("put {}, {name} = {value}", digits.join(" "));
    let step = chain.push(format!("{name} = {value}"), check, FACT, needs);
    chain.slips(rng, value, |wrong| format!("{name} = {wrong}"));
    step
}

/// Adds a line that is too much for one go, `345+678, sum = 1023`, with the lines of a scratchpad as what
/// its reflection works out: whoever slips in the head finds it on paper.
pub(super) fn in_one_go(
    rng: &mut Random,
    chain: &mut Chain,
    line: impl Fn(i64) -> String,
    value: i64,
    scratchpad: &[Step],
    needs: &[usize],
) -> usize {
    let lines: Vec<&str> = scratchpad.iter().map(|step| step.text.as_str()).collect();
    let step = chain.push(line(value), lines.join(", "), LEAP, needs);
    chain.slips(rng, value, line);
    step
}

/// A number of this many digits whose first digit is not 0.
pub(super) fn number_of(rng: &mut Random, places: u32) -> i64 {
    let low = 10_i64.pow(places.saturating_sub(1));
    rng.random_range(low..low * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_in_steps() {
        assert_eq!(sum(&[4, 8, 1], 13), "4+8+1=12+1=13");
        assert_eq!(sum(&[7, 5], 12), "7+5=12");
        assert_eq!(sum(&[7], 7), "7");
        assert_eq!(sum_again(&[4, 8, 1]), "1+8+4=9+4=13");
        assert_eq!(sum_again(&[4]), "only 4");
    }

    #[test]
    fn digits_and_back() {
        assert_eq!(digits(907), [7, 0, 9]);
        assert_eq!(digits(0), [0]);
        assert_eq!(number(&[2, 3, 16]), 1632);
    }
}
