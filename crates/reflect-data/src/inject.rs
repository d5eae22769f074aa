//! Mistakes put into right steps: plausible wrong values, and wrong lines at known places.
//!
//! The families know their own ways to go wrong and fill `Step::mistakes` while they write the
//! steps. [`inject`] gives steps from elsewhere the one mistake that needs no knowledge: a slip.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::families::Random;
use crate::line::claim;
use crate::reflect::random;
use crate::sample::{Mistake, MistakeKind, Problem, Step};

/// More wrong versions than this of one line add bytes to the files and nothing to learn.
const MISTAKES_OF_A_STEP: usize = 4;

/// Two wrong values near a right one: one off by one, and one with another of its digits off by one
/// or its last digits swapped. Never negative, never the value itself.
pub fn slips(rng: &mut Random, value: i64) -> [i64; 2] {
    let by_one = if value > 0 && rng.random_bool(0.5) { value - 1 } else { value.saturating_add(1) };
    let places = value.checked_ilog10().unwrap_or(0).max(1);
    let unit = 10_i64.pow(rng.random_range(1..=places));
    let mut others = vec![value.saturating_add(unit), value - unit, swap_digits(value)];
    others.retain(|other| *other >= 0 && *other != value && *other != by_one);
    others.shuffle(rng);
    [by_one, others.first().copied().unwrap_or(value.saturating_add(2))]
}

/// A number with its last two digits exchanged.
fn swap_digits(value: i64) -> i64 {
    let (rest, tens, ones) = (value / 100, value / 10 % 10, value % 10);
    rest * 100 + ones * 10 + tens
}

/// Adds a wrong version to a step, unless it claims what the right line claims or is known already.
pub fn add_mistake(step: &mut Step, kind: MistakeKind, text: String) {
    let wrong = text != step.text && claim(&text).is_none_or(|wrong| Some(wrong) != claim(&step.text));
    let new = wrong && step.mistakes.iter().all(|mistake| mistake.text != text);
    if new && step.mistakes.len() < MISTAKES_OF_A_STEP {
        step.mistakes.push(Mistake { kind, text });
    }
}

/// Gives slips to the steps that have no mistakes and state a whole number; how many mistakes were
/// added.
pub fn inject(problem: &mut Problem, rng: &mut Random) -> usize {
    let mut added = 0;
    for step in problem.steps.iter_mut().filter(|step| step.mistakes.is_empty()) {
        let Some((start, value)) = stated_number(&step.text) else { continue };
        let end = start + value.len();
        let Ok(number) = value.parse() else { continue };
        for slip in slips(rng, number) {
            let text = format!("{}{slip}{}", &step.text[..start], &step.text[end..]);
            add_mistake(step, MistakeKind::Slip, text);
        }
        added += step.mistakes.len();
    }
    added
}

/// [`inject`] with choices that depend on nothing but the problem and the seed.
pub fn inject_seeded(problem: &mut Problem, seed: u64) -> usize {
    let mut rng = random(problem, seed);
    inject(problem, &mut rng)
}

/// Where the whole number stands that a line claims.
fn stated_number(line: &str) -> Option<(usize, &str)> {
    let value = claim(line)?.value;
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = value.get(digits..)?;
    // A decimal or a fraction would need another kind of slip.
    if digits == 0 || rest.starts_with(['.', ',', '/', '%']) {
        return None;
    }
    let start = value.as_ptr() as usize - line.as_ptr() as usize;
    Some((start, value.get(..digits)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::families::{Family, Request, generate};

    proptest! {
        #[test]
        fn slips_are_wrong_and_not_negative(value in 0..100_000i64, seed: u64) {
            let slips = slips(&mut Random::seed_from_u64(seed), value);
            prop_assert!(slips.iter().all(|slip| *slip >= 0 && *slip != value));
            prop_assert_ne!(slips[0], slips[1]);
        }
    }

    #[test]
    fn steps_from_elsewhere_get_slips() {
        let mut problem = generate(&Request::new(Family::Addition, 1), 0).unwrap();
        let step = |text: &str| Step {
            text: text.to_owned(),
            needs: Vec::new(),
            risk: 1,
            check: String::new(),
            mistakes: Vec::new(),
        };
        problem.steps = vec![step("In all 48 + 24 = 72 clips."), step("Hm."), step("a = 0.5")];
        let added = inject(&mut problem, &mut Random::seed_from_u64(1));
        assert_eq!((added, problem.steps[0].mistakes.len()), (2, 2));
        for mistake in &problem.steps[0].mistakes {
            let rest = mistake.text.strip_prefix("In all 48 + 24 = ").unwrap();
            assert!(rest.ends_with(" clips.") && rest != "72 clips.");
        }
    }
}
