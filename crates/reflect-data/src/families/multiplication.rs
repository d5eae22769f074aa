//! Products by partial products, digit by digit.

use rand::Rng;

use super::addition::{NAMES, THINGS};
use super::chain::{Chain, FACT, HARD, RISKY};
use super::digits::{PLACES, add_columns, assemble, digits, number, number_of, spell, sum};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind};

/// Easy products carry nothing, moderate ones have a factor of one digit, hard ones of two.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let (a, b) = match difficulty {
        Difficulty::Easy => without_carry(rng),
        Difficulty::Moderate => {
            let (places, factor) = (rng.random_range(2..=3), rng.random_range(2..=9));
            let mut number = number_of(rng, places);
            // Without a carry it would be easy.
            while digits(number).iter().all(|digit| digit * factor < 10) {
                number = number_of(rng, places);
            }
            (number, factor)
        }
        Difficulty::Hard => {
            let places = if rng.random_bool(0.2) { 3 } else { 2 };
            (number_of(rng, places), number_of(rng, 2))
        }
    };
    let structure = format!("{} {}", a.min(b), a.max(b));
    let prompt = prompt(rng, a, b);
    let steps = match difficulty {
        Difficulty::Easy => Vec::new(),
        Difficulty::Moderate => one_row(rng, a, b).steps,
        Difficulty::Hard => two_rows(rng, a, b).steps,
    };
    Draft::single(structure, prompt, steps, (a * b).to_string())
}

/// Each digit times the factor stays below 10, or the factor is 10.
fn without_carry(rng: &mut Random) -> (i64, i64) {
    if rng.random_bool(0.2) {
        return (rng.random_range(2..=99), 10);
    }
    let factor = pick(rng, &[2, 2, 2, 3, 3, 4]);
    let most = 9 / factor;
    let written: Vec<i64> = (0..rng.random_range(1..=2)).map(|_| rng.random_range(0..=most)).collect();
    let first = rng.random_range(1..=most);
    (first * 10_i64.pow(written.len() as u32) + number(&written), factor)
}

fn prompt(rng: &mut Random, a: i64, b: i64) -> String {
    let (name, thing) = (pick(rng, &NAMES), pick(rng, &THINGS));
    match rng.random_range(0..6) {
        0 => format!("What is {a} * {b}?"),
        1 => format!("Work out {a} * {b}."),
        2 => format!("Multiply {a} by {b}."),
        3 => format!("Find {a} times {b}."),
        4 => format!("{a} * {b} = ?"),
        _ => format!("{name} has {b} boxes of {a} {thing}. How many {thing}?"),
    }
}

/// A row of a multiplication: a factor times one digit of the other.
struct Row {
    digit: i64,
    /// How the lines are called: by place, or `p1`, `p2`, …
    name: fn(usize) -> String,
    /// The place of the first result.
    shift: usize,
    /// Whether the last line names both of its digits by place, for the sum of rows.
    named: bool,
}

/// Adds the lines of a row; the digits of its result from its first place on, and the steps.
fn add_row(rng: &mut Random, chain: &mut Chain, factor: &[i64], row: &Row, needs: &[usize]) -> Written {
    let mut written = Written::default();
    let mut carry = 0;
    for (index, &upper) in factor.iter().enumerate() {
        let last = index + 1 == factor.len();
        let name = (row.name)(index);
        let place = PLACES[row.shift + index];
        let line = |factors: (i64, i64), carry: i64, total: i64| {
            let (put, out) = (total % 10, total / 10);
            let rest = match (row.named, last) {
                (false, false) => format!("put {put} carry {out}"),
                (false, true) => format!("put {total}"),
                (true, false) => format!("{place} {put} carry {out}"),
                (true, true) => format!("{place} {put} {} {out}", PLACES[row.shift + index + 1]),
            };
            let product = factors.0 * factors.1;
            let work = format!("{}*{}", factors.0, factors.1);
            if carry > 0 {
                format!("{name} = {work}+{carry}={}, {rest}", sum(&[product, carry], total))
            } else {
                format!("{name} = {work}={total}, {rest}")
            }
        };
        let total = upper * row.digit + carry;
        let check = if carry > 0 {
            let product = upper * row.digit;
            format!("{}*{upper}={product}, {carry}+{product}={total}, {name} = {total}", row.digit)
        } else {
            format!("{}*{upper}={total}, {name} = {total}", row.digit)
        };
        let risk = match (carry > 0, total >= 10) {
            (true, true) => HARD,
            (true, false) | (false, true) => RISKY,
            _ => FACT,
        };
        let mut needs = needs.to_vec();
        needs.extend(written.steps.last());
        let factors = (upper, row.digit);
        written.steps.push(chain.push(line(factors, carry, total), check, risk, &needs));
        if carry > 0 {
            chain.mistake(MistakeKind::SkippedCarry, line(factors, 0, upper * row.digit));
        }
        chain.slips(rng, total, |wrong| line(factors, carry, wrong));
        let other = factor[if index == 0 { factor.len() - 1 } else { index - 1 }];
        if other != upper && row.digit > 0 {
            let wrong = line((other, row.digit), carry, other * row.digit + carry);
            chain.mistake(MistakeKind::WrongOperand, wrong);
        }
        if last && !row.named {
            written.digits.push(total);
        } else {
            written.digits.push(total % 10);
        }
        carry = total / 10;
    }
    if row.named {
        written.digits.push(carry);
    }
    written
}

/// The digits that lines have written, ones first, and those lines.
#[derive(Default)]
struct Written {
    digits: Vec<i64>,
    steps: Vec<usize>,
}

fn one_row(rng: &mut Random, a: i64, b: i64) -> Chain {
    let mut chain = Chain::default();
    let needs = [spell(&mut chain, "a", a), spell(&mut chain, "b", b)];
    let row = Row { digit: b, name: |index| PLACES[index].to_owned(), shift: 0, named: false };
    let written = add_row(rng, &mut chain, &digits(a), &row, &needs);
    assemble(rng, &mut chain, "product", &written.digits, &written.steps);
    chain
}

fn two_rows(rng: &mut Random, a: i64, b: i64) -> Chain {
    let mut chain = Chain::default();
    let needs = [spell(&mut chain, "a", a), spell(&mut chain, "b", b)];
    let (factor, digits_of_b) = (digits(a), digits(b));
    let row = Row { digit: b % 10, name: |index| format!("p{}", index + 1), shift: 0, named: true };
    let ones = add_row(rng, &mut chain, &factor, &row, &needs);
    let digit = digits_of_b.get(1).copied().unwrap_or(0);
    let row = Row { digit, name: |index| format!("q{}", index + 1), shift: 1, named: true };
    let tens = add_row(rng, &mut chain, &factor, &row, &needs);

    // The ones come from the first row alone.
    let (first, upper) = ones.digits.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
    let columns: Vec<Vec<i64>> = (0..tens.digits.len())
        .map(|place| [upper.get(place), tens.digits.get(place)].into_iter().flatten().copied().collect())
        .collect();
    let rows: Vec<usize> = ones.steps.iter().chain(&tens.steps).copied().collect();
    let (mut written, mut sums) = add_columns(rng, &mut chain, 1, &columns, &rows);
    written.insert(0, first);
    sums.extend(rows);
    assemble(rng, &mut chain, "product", &written, &sums);
    chain
}
