//! Chains of rules over invented kinds of things, with rules that lead elsewhere.

use rand::Rng;
use rand::seq::SliceRandom;

use super::addition::NAMES;
use super::chain::{Chain, FACT, HARD, RISKY};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind, Step};

const KINDS: [&str; 16] = [
    "Dax", "Fep", "Gim", "Bop", "Zup", "Wug", "Tov", "Nib", "Kez", "Lom", "Rud", "Sab", "Jom", "Pel", "Vix",
    "Hob",
];
const COLOURS: [&str; 5] = ["Red", "Blue", "Green", "White", "Black"];

/// Easy questions need one rule, moderate ones two, hard ones three or four. Every kind has one
/// colour at most, so another colour is a no.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let length = match difficulty {
        Difficulty::Easy => 1,
        Difficulty::Moderate => 2,
        Difficulty::Hard => rng.random_range(3..=4),
    };
    let mut kinds = KINDS;
    kinds.shuffle(rng);
    let mut colours = COLOURS;
    colours.shuffle(rng);
    let strangers = rng.random_range(1..=length.min(3));
    let chain = Rules::new(&kinds[..length], colours[0]);
    let other = Rules::new(&kinds[length..length + strangers], colours[1]);
    let name = pick(rng, &NAMES);
    let asked = if rng.random_bool(0.5) { colours[0] } else { colours[1] };

    let mut sentences: Vec<(usize, String)> = Vec::new();
    sentences.push((0, format!("{name} is a {}.", kinds[0])));
    for rule in chain.0.iter().chain(&other.0) {
        let word = pick(rng, &["Each", "Every"]);
        sentences.push((sentences.len(), format!("{word} {} is {}.", rule.from, rule.to)));
    }
    sentences.shuffle(rng);
    let told: Vec<&str> = sentences.iter().map(|(_, sentence)| sentence.as_str()).collect();
    let prompt = format!("{} Is {name} {asked}?", told.join(" "));
    let holds = asked == colours[0];
    let answer = if holds { "yes" } else { "no" };
    if difficulty == Difficulty::Easy {
        // One rule has few shapes: there the names tell problems apart.
        return Draft::single(prompt.clone(), prompt, Vec::new(), answer.to_owned());
    }
    let order: Vec<usize> = sentences.iter().map(|(index, _)| *index).collect();
    let structure = format!("{length} {order:?} {holds}");
    let steps = solve(rng, name, &kinds, &chain, &other, asked);
    Draft::single(structure, prompt, steps, answer.to_owned())
}

/// A chain of rules that ends in a colour.
struct Rules(Vec<Rule>);

struct Rule {
    from: &'static str,
    /// `a Fep`, or a colour.
    to: String,
}

impl Rules {
    fn new(kinds: &[&'static str], colour: &str) -> Self {
        let rule = |(index, from): (usize, &&'static str)| {
            let to = kinds.get(index + 1).map_or_else(|| colour.to_owned(), |next| format!("a {next}"));
            Rule { from, to }
        };
        Self(kinds.iter().enumerate().map(rule).collect())
    }
}

/// `a Fep` without its article.
fn bare(to: &str) -> &str {
    to.strip_prefix("a ").unwrap_or(to)
}

fn solve(
    rng: &mut Random,
    name: &str,
    kinds: &[&'static str],
    rules: &Rules,
    other: &Rules,
    asked: &str,
) -> Vec<Step> {
    let mut chain = Chain::default();
    // What is looked up stands right behind what it is looked up by: a small model learns that kind of
    // copying many times sooner than any other.
    let line = |kind: &str| format!("{name} {kind}, {name} is a {kind}");
    let mut before = chain.push(line(kinds[0]), line(kinds[0]), FACT, &[]);
    chain.mistake(MistakeKind::WrongOperand, line(other.0[0].from));

    let mut known = kinds[0];
    for (index, rule) in rules.0.iter().enumerate() {
        let line = |to: &str| format!("{0} {1}, each {0} is {to}", rule.from, bare(to));
        let risk = if index + 1 == rules.0.len() { HARD } else { RISKY };
        before = chain.push(line(&rule.to), line(&rule.to), risk, &[before]);
        // The ends of other rules, from this chain and from the one that leads elsewhere.
        let ends = rules.0.iter().chain(&other.0).map(|rule| rule.to.as_str());
        let mut wrong: Vec<&str> = ends.filter(|end| *end != rule.to).collect();
        wrong.shuffle(rng);
        for end in wrong.into_iter().take(2) {
            chain.mistake(MistakeKind::WrongOperand, line(end));
        }
        known = bare(&rule.to);
    }
    let holds = known == asked;
    let line =
        |holds: bool| format!("{asked} asked, {known} found, answer = {}", if holds { "yes" } else { "no" });
    let word = if holds { "same" } else { "other" };
    let check = format!("{known} is {word}, answer = {}", if holds { "yes" } else { "no" });
    chain.push(line(holds), check, FACT, &[before]);
    chain.mistake(MistakeKind::WrongBranch, line(!holds));
    chain.steps
}
