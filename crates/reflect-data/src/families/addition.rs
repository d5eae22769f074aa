//! Sums of two or three numbers by columns.

use rand::Rng;

use super::chain::Chain;
use super::digits::{add_at_once, add_by_columns, number_of, spell};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, Step};

pub(super) const NAMES: [&str; 8] = ["Tom", "Ann", "Sam", "Kim", "Leo", "Mia", "Max", "Zoe"];
pub(super) const THINGS: [&str; 20] = [
    "pens", "cups", "hats", "coins", "books", "keys", "cards", "bags", "rings", "maps", "lamps", "bells",
    "drums", "flags", "masks", "jars", "nuts", "shells", "boots", "kites",
];

/// Easy sums need no carry, moderate ones have two short numbers, hard ones two numbers of three
/// digits or three numbers, and are done in one go before they are checked by columns.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let terms = match difficulty {
        Difficulty::Easy => without_carry(rng),
        Difficulty::Moderate if rng.random_bool(0.5) => with_carry(rng),
        Difficulty::Moderate => vec![number_of(rng, 3), number_of(rng, 2)],
        Difficulty::Hard if rng.random_bool(0.5) => vec![number_of(rng, 3), number_of(rng, 3)],
        Difficulty::Hard => {
            let places = rng.random_range(2..=3);
            vec![number_of(rng, places), number_of(rng, 2), number_of(rng, 2)]
        }
    };
    let answer: i64 = terms.iter().sum();
    let mut sorted = terms.clone();
    sorted.sort_unstable();
    let structure = format!("{sorted:?}");
    let prompt = prompt(rng, &terms);
    let steps = match difficulty {
        Difficulty::Easy => Vec::new(),
        Difficulty::Moderate => by_columns(rng, &terms),
        Difficulty::Hard => at_once(rng, &terms),
    };
    Draft::single(structure, prompt, steps, answer.to_string())
}

fn without_carry(rng: &mut Random) -> Vec<i64> {
    let (a, b) = (rng.random_range(1..=8), rng.random_range(0..=9));
    vec![10 * a + b, 10 * rng.random_range(1..=9 - a) + rng.random_range(0..=9 - b)]
}

/// Two numbers of two digits whose ones carry.
fn with_carry(rng: &mut Random) -> Vec<i64> {
    let ones = rng.random_range(1..=9);
    let other = rng.random_range(10 - ones..=9);
    vec![10 * rng.random_range(1..=9) + ones, 10 * rng.random_range(1..=9) + other]
}

fn prompt(rng: &mut Random, terms: &[i64]) -> String {
    let joined = |word: &str| terms.iter().map(i64::to_string).collect::<Vec<_>>().join(word);
    let (name, thing) = (pick(rng, &NAMES), pick(rng, &THINGS));
    match (rng.random_range(0..6), terms) {
        (0, _) => format!("What is {}?", joined(" + ")),
        (1, _) => format!("Work out {}.", joined(" + ")),
        (2, _) => format!("Add {}.", joined(" and ")),
        (3, _) => format!("Find the sum of {}.", joined(" and ")),
        (4, _) => format!("{} = ?", joined(" + ")),
        (_, [first, rest @ ..]) => {
            let rest: Vec<String> = rest.iter().map(i64::to_string).collect();
            format!("{name} has {first} {thing} and gets {} more. How many now?", rest.join(" and then "))
        }
        (_, []) => String::new(),
    }
}

/// The terms digit by digit, and the steps that say so.
fn spelled(chain: &mut Chain, terms: &[i64]) -> Vec<usize> {
    ["a", "b", "c"].iter().zip(terms).map(|(name, term)| spell(chain, name, *term)).collect()
}

/// The scratchpad: a column a line.
fn by_columns(rng: &mut Random, terms: &[i64]) -> Vec<Step> {
    let mut chain = Chain::default();
    let spelled = spelled(&mut chain, terms);
    add_by_columns(rng, &mut chain, "sum", terms, &spelled);
    chain.steps
}

/// The whole sum in one line.
fn at_once(rng: &mut Random, terms: &[i64]) -> Vec<Step> {
    let mut chain = Chain::default();
    let spelled = spelled(&mut chain, terms);
    add_at_once(rng, &mut chain, "sum", terms, &spelled);
    chain.steps
}
