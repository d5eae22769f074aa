//! Products by partial products, digit by digit.

use rand::Rng;

use super::addition::{NAMES, THINGS};
use super::chain::{Chain, FACT, HARD, RISKY};
use super::digits::{PLACES, add_at_once, assemble, digits, number, number_of, spell, sum};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind, Step};

/// Easy products carry nothing, moderate ones have a factor of one digit, hard ones
/// of two: the sum of their rows is done in one go before it is checked by columns.
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
            let places = if rng.random_bool(0.4) { 3 } else { 2 };
            (number_of(rng, places), number_of(rng, 2))
        }
    };
    let structure = format!("{} {}", a.min(b), a.max(b));
    let prompt = prompt(rng, a, b);
    let steps = match difficulty {
        Difficulty::Easy => Vec::new(),
        Difficulty::Moderate => one_row(rng, a, b),
        Difficulty::Hard => two_rows(rng, a, b),
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

/// Adds the scratchpad of a product with a digit: a digit of the other factor a line, and the product
/// called `name`. Lines of several rows are told apart by their `row`.
fn by_digits(
    rng: &mut Random,
    chain: &mut Chain,
    (name, row): (&str, &str),
    a: i64,
    digit: i64,
    needs: &[usize],
) -> usize {
    let factor = digits(a);
    let (mut written, mut steps) = (Vec::new(), Vec::new());
    let mut carry = 0;
    for (index, &upper) in factor.iter().enumerate() {
        let last = index + 1 == factor.len();
        let place = format!("{row}{}", PLACES[index]);
        let line = |factors: (i64, i64), carry: i64, total: i64| {
            let (put, out) = (total % 10, total / 10);
            let rest = if last { format!("put {total}") } else { format!("put {put} carry {out}") };
            let product = factors.0 * factors.1;
            let work = format!("{}*{}", factors.0, factors.1);
            if carry > 0 {
                format!("{place} = {work}+{carry}={}, {rest}", sum(&[product, carry], total))
            } else {
                format!("{place} = {work}={total}, {rest}")
            }
        };
        let product = upper * digit;
        let total = product + carry;
        let check = if carry > 0 {
            format!("{digit}*{upper}={product}, {carry}+{product}={total}, {place} = {total}")
        } else {
            format!("{digit}*{upper}={total}, {place} = {total}")
        };
        let risk = match (carry > 0, total >= 10) {
            (true, true) => HARD,
            (true, false) | (false, true) => RISKY,
            _ => FACT,
        };
        let mut needs = needs.to_vec();
        needs.extend(steps.last());
        steps.push(chain.push(line((upper, digit), carry, total), check, risk, &needs));
        if carry > 0 {
            chain.mistake(MistakeKind::SkippedCarry, line((upper, digit), 0, product));
        }
        chain.slips(rng, total, |wrong| line((upper, digit), carry, wrong));
        let other = factor[if index == 0 { factor.len() - 1 } else { index - 1 }];
        if other != upper && digit > 0 {
            let wrong = line((other, digit), carry, other * digit + carry);
            chain.mistake(MistakeKind::WrongOperand, wrong);
        }
        written.push(if last { total } else { total % 10 });
        carry = total / 10;
    }
    assemble(rng, chain, name, &written, &steps)
}

fn one_row(rng: &mut Random, a: i64, b: i64) -> Vec<Step> {
    let mut chain = Chain::default();
    let needs = [spell(&mut chain, "a", a), spell(&mut chain, "b", b)];
    by_digits(rng, &mut chain, ("product", ""), a, b, &needs);
    chain.steps
}

/// Both rows by digits, then their sum in one go.
fn two_rows(rng: &mut Random, a: i64, b: i64) -> Vec<Step> {
    let mut chain = Chain::default();
    let needs = [spell(&mut chain, "a", a), spell(&mut chain, "b", b)];
    // The second row counts tens.
    let rows = [("p", "p ", b % 10, 1), ("q", "q ", b / 10, 10)].map(|(name, row, digit, unit)| {
        let product = by_digits(rng, &mut chain, (name, row), a, digit, &needs);
        let step = spell(&mut chain, name, a * digit * unit);
        chain.steps[step].needs.push(product);
        step
    });
    add_at_once(rng, &mut chain, "product", &[a * (b % 10), a * (b - b % 10)], &rows);
    chain.steps
}
