//! Numbers to be joined by operations until a target is reached. Other ways to reach it are right
//! as well; the steps show one.

use rand::Rng;
use rand::seq::SliceRandom;

use super::chain::{Chain, HARD, RISKY};
use super::{Draft, Random};
use crate::sample::Difficulty;

/// A number in play: its value and the expression that it came from.
#[derive(Clone)]
struct Part {
    value: i64,
    text: String,
    joined: bool,
    step: Option<usize>,
}

/// Easy targets take two numbers, moderate ones three, hard ones four.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let count = match difficulty {
        Difficulty::Easy => 2,
        Difficulty::Moderate => 3,
        Difficulty::Hard => 4,
    };
    let numbers: Vec<i64> = (0..count).map(|_| rng.random_range(2..=12)).collect();
    let part = |value: &i64| Part { value: *value, text: value.to_string(), joined: false, step: None };
    let mut parts: Vec<Part> = numbers.iter().map(part).collect();
    let mut chain = Chain::default();
    while parts.len() > 1 {
        join(rng, &mut chain, &mut parts);
    }
    let (target, text) = parts.pop().map(|part| (part.value, part.text)).unwrap_or_default();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    let told: Vec<String> = numbers.iter().map(i64::to_string).collect();
    let prompt = format!("Use {} once each with + - * to make {target}.", told.join(" and "));
    let steps = if difficulty == Difficulty::Easy { Vec::new() } else { chain.steps };
    Draft::single(format!("{sorted:?} {target}"), prompt, steps, text)
}

/// Joins two of the numbers, and adds the step.
fn join(rng: &mut Random, chain: &mut Chain, parts: &mut Vec<Part>) {
    parts.shuffle(rng);
    let (Some(mut a), Some(mut b)) = (parts.pop(), parts.pop()) else { return };
    if a.value < b.value {
        std::mem::swap(&mut a, &mut b);
    }
    let (sign, value) = match rng.random_range(0..4) {
        0 if a.value > b.value => ('-', a.value - b.value),
        1 if a.value * b.value <= 99 => ('*', a.value * b.value),
        _ => ('+', a.value + b.value),
    };
    let number = chain.steps.len() + 1;
    let left: Vec<String> = parts.iter().map(|part| part.value.to_string()).collect();
    let line = |value: i64| {
        let rest = if left.is_empty() { String::new() } else { format!(", left {} {value}", left.join(" ")) };
        format!("r{number} = {}{sign}{}={value}{rest}", a.value, b.value)
    };
    let again = match sign {
        '-' => format!("{}+{value}={}", b.value, a.value),
        _ => format!("{}{sign}{}={value}", b.value, a.value),
    };
    let needs: Vec<usize> = [a.step, b.step].into_iter().flatten().collect();
    let risk = if sign == '*' { HARD } else { RISKY };
    let step = chain.push(line(value), format!("{again}, r{number} = {value}"), risk, &needs);
    chain.slips(rng, value, line);
    let inside = |part: &Part| if part.joined { format!("({})", part.text) } else { part.text.clone() };
    let text = format!("{} {sign} {}", inside(&a), inside(&b));
    parts.push(Part { value, text, joined: true, step: Some(step) });
}
