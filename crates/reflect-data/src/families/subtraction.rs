//! Differences by columns with borrowing.

use rand::Rng;

use super::addition::{NAMES, THINGS};
use super::chain::{Chain, FACT, HARD, RISKY};
use super::digits::{PLACES, assemble, digits, in_one_go, number, number_of, spell};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind, Step};

/// Easy differences need no borrowing, moderate ones take a number of two digits away, hard ones
/// have three digits on both sides and are done in one go before they are checked by columns.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let (mut a, mut b) = match difficulty {
        Difficulty::Easy => without_borrowing(rng),
        Difficulty::Moderate => {
            if rng.random_bool(0.5) {
                with_borrowing(rng)
            } else {
                (number_of(rng, 3), number_of(rng, 2))
            }
        }
        Difficulty::Hard => (number_of(rng, 3), number_of(rng, 3)),
    };
    if a < b {
        (a, b) = (b, a);
    }
    let prompt = prompt(rng, a, b);
    let steps = match difficulty {
        Difficulty::Easy => Vec::new(),
        Difficulty::Moderate => by_columns(rng, a, b),
        Difficulty::Hard => at_once(rng, a, b),
    };
    Draft::single(format!("{a} {b}"), prompt, steps, (a - b).to_string())
}

fn without_borrowing(rng: &mut Random) -> (i64, i64) {
    let (tens, ones) = (rng.random_range(1..=9), rng.random_range(0..=9));
    (10 * tens + ones, 10 * rng.random_range(1..=tens) + rng.random_range(0..=ones))
}

fn with_borrowing(rng: &mut Random) -> (i64, i64) {
    let (tens, ones) = (rng.random_range(2..=9), rng.random_range(0..=8));
    (10 * tens + ones, 10 * rng.random_range(1..tens) + rng.random_range(ones + 1..=9))
}

fn prompt(rng: &mut Random, a: i64, b: i64) -> String {
    let (name, thing) = (pick(rng, &NAMES), pick(rng, &THINGS));
    match rng.random_range(0..6) {
        0 => format!("What is {a} - {b}?"),
        1 => format!("Work out {a} - {b}."),
        2 => format!("Take {b} from {a}."),
        3 => format!("Find {a} minus {b}."),
        4 => format!("{a} - {b} = ?"),
        _ => format!("{name} has {a} {thing} and loses {b}. How many are left?"),
    }
}

fn spelled(chain: &mut Chain, a: i64, b: i64) -> [usize; 2] {
    [spell(chain, "a", a), spell(chain, "b", b)]
}

/// The scratchpad: a column a line.
fn by_columns(rng: &mut Random, a: i64, b: i64) -> Vec<Step> {
    let mut chain = Chain::default();
    let needs = spelled(&mut chain, a, b);
    take_by_columns(rng, &mut chain, a, b, &needs);
    chain.steps
}

/// The whole difference in one line.
fn at_once(rng: &mut Random, a: i64, b: i64) -> Vec<Step> {
    let mut chain = Chain::default();
    let needs = spelled(&mut chain, a, b);
    let mut scratchpad = Chain::default();
    take_by_columns(rng, &mut scratchpad, a, b, &[]);
    let line = |value: i64| format!("{a}-{b}, difference = {value}");
    in_one_go(rng, &mut chain, line, a - b, &scratchpad.steps, &needs);
    let apart = digits(a).into_iter().zip(digits(b).into_iter().chain([0, 0]));
    let without_borrowing: Vec<i64> = apart.map(|(upper, lower)| (upper - lower).abs()).collect();
    chain.mistake(MistakeKind::SkippedCarry, line(number(&without_borrowing)));
    chain.steps
}

fn take_by_columns(rng: &mut Random, chain: &mut Chain, a: i64, b: i64, needs: &[usize]) {
    let mut needs = needs.to_vec();
    let (upper, lower) = (digits(a), digits(b));
    let (mut written, mut columns) = (Vec::new(), Vec::new());
    let mut borrow = 0;
    for (index, &digit) in upper.iter().enumerate() {
        let place = PLACES[index];
        let last = index + 1 == upper.len();
        let below = lower.get(index).copied().unwrap_or(0);
        let mut top = digit;
        let mut out = 0;
        if borrow > 0 {
            // Nothing can be lent by a 0: it borrows itself.
            let full = if digit == 0 { 10 } else { digit };
            out = i64::from(digit == 0);
            top = full - 1;
            let check = format!("{top}+1={full}, {place} top = {top}");
            needs.push(chain.push(format!("{place} top = {full}-1={top}"), check, FACT, &needs));
            chain.slips(rng, top, |wrong| format!("{place} top = {full}-1={wrong}"));
        }
        let line = |top: i64, below: i64, wrong: Option<i64>, borrowed: i64| {
            let (top, borrowed) = if top < below { (top + 10, 1) } else { (top, borrowed) };
            let rest = if last { String::new() } else { format!(", borrow {borrowed}") };
            format!("{place} = {top}-{below}={}{rest}", wrong.unwrap_or(top - below))
        };
        let borrows = top < below;
        let result = if borrows { top + 10 - below } else { top - below };
        let full = result + below;
        let risk = if borrows && borrow > 0 {
            HARD
        } else if borrows || borrow > 0 {
            RISKY
        } else {
            FACT
        };
        let check = format!("{below}+{result}={full}, {place} = {result}");
        let step = chain.push(line(top, below, None, out), check, risk, &needs);
        if borrow > 0 {
            chain.mistake(MistakeKind::SkippedCarry, line(digit, below, None, 0));
        }
        if borrows {
            chain.mistake(MistakeKind::WrongOperand, line(below, top, None, 0));
        }
        chain.slips(rng, result, |wrong| line(top, below, Some(wrong), out));
        columns.push(step);
        needs.push(step);
        written.push(result);
        borrow = if borrows { 1 } else { out };
    }
    assemble(rng, chain, "difference", &written, &columns);
}
