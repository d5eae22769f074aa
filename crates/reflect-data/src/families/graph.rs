//! Word problems over a graph of quantities that depend on each other, counted modulo 23.

use rand::Rng;
use rand::seq::SliceRandom;

use super::addition::THINGS;
use super::chain::{COPY, Chain, FACT, HARD, RISKY};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind, Step};

/// Small enough for tables, prime so that no operation loses information.
const MODULUS: i64 = 23;

/// How a quantity is told. Operands are indices of quantities.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Given(i64),
    More(usize, i64),
    Fewer(usize, i64),
    Times(usize, i64),
    Both(usize, usize),
    Without(usize, usize),
}

impl Kind {
    fn operands(self) -> Vec<usize> {
        match self {
            Self::Given(_) => Vec::new(),
            Self::More(a, _) | Self::Fewer(a, _) | Self::Times(a, _) => vec![a],
            Self::Both(a, b) | Self::Without(a, b) => vec![a, b],
        }
    }

    /// The same operation on another first operand.
    fn with_operand(self, other: usize) -> Self {
        match self {
            Self::Given(value) => Self::Given(value),
            Self::More(_, value) => Self::More(other, value),
            Self::Fewer(_, value) => Self::Fewer(other, value),
            Self::Times(_, factor) => Self::Times(other, factor),
            Self::Both(_, b) => Self::Both(other, b),
            Self::Without(_, b) => Self::Without(other, b),
        }
    }

    /// What the split goes by: the operation and its operands, without numbers.
    fn shape(self) -> String {
        match self {
            Self::Given(_) => "given".to_owned(),
            Self::More(a, _) => format!("more {a}"),
            Self::Fewer(a, _) => format!("fewer {a}"),
            Self::Times(a, _) => format!("times {a}"),
            Self::Both(a, b) => format!("both {a} {b}"),
            Self::Without(a, b) => format!("without {a} {b}"),
        }
    }
}

/// Quantities in the order in which they can be worked out; the last one is asked for.
struct Graph {
    names: Vec<&'static str>,
    kinds: Vec<Kind>,
    values: Vec<i64>,
}

/// A solution while it is being written.
struct Solution {
    /// The step that reads a quantity's sentence.
    read: Vec<usize>,
    /// The step that gives a quantity its value, where there is one.
    step_of: Vec<Option<usize>>,
    chain: Chain,
}

/// Easy problems have one operation, moderate ones two or three, hard ones four to six in any
/// order.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let operations = match difficulty {
        Difficulty::Easy => 1,
        Difficulty::Moderate => rng.random_range(2..=3),
        Difficulty::Hard => rng.random_range(4..=6),
    };
    let graph = Graph::new(rng, operations, difficulty);
    let mut told: Vec<usize> = (0..graph.kinds.len()).collect();
    if difficulty == Difficulty::Hard && rng.random_bool(0.5) {
        told.shuffle(rng);
    }
    let sentences: Vec<String> = told.iter().map(|&index| graph.sentence(rng, index)).collect();
    let target = graph.names[graph.names.len() - 1];
    let question = match rng.random_range(0..3) {
        0 => format!("How many {target} are there, mod 23?"),
        1 => format!("Count the {target} mod 23."),
        _ => format!("What is the number of {target} mod 23?"),
    };
    let prompt = format!("{} {question}", sentences.join(" "));
    let answer = graph.values[graph.values.len() - 1].to_string();
    if difficulty == Difficulty::Easy {
        // There are few ways to have one operation: here the numbers tell problems apart.
        return Draft::single(format!("{:?}", graph.kinds), prompt, Vec::new(), answer);
    }
    let shapes: Vec<String> = told.iter().map(|&index| graph.kinds[index].shape()).collect();
    let structure = format!("{told:?} {shapes:?}");
    let steps = graph.solve(rng, &told);
    Draft::single(structure, prompt, steps, answer)
}

impl Graph {
    fn new(rng: &mut Random, operations: usize, difficulty: Difficulty) -> Self {
        let mut graph = Self { names: Vec::new(), kinds: Vec::new(), values: Vec::new() };
        // Quantities that nothing depends on yet. In the end only the target is left.
        let mut loose = vec![graph.give(rng)];
        for done in 0..operations {
            let left = operations - done;
            let first = loose[rng.random_range(0..loose.len())];
            let must_join = loose.len() > left;
            let kind = if must_join || rng.random_bool(0.35) {
                let others: Vec<usize> = if must_join {
                    loose.iter().copied().filter(|other| *other != first).collect()
                } else {
                    (0..graph.kinds.len()).filter(|other| *other != first).collect()
                };
                let second = if others.is_empty() || (!must_join && rng.random_bool(0.4)) {
                    graph.give(rng)
                } else {
                    pick(rng, &others)
                };
                if rng.random_bool(0.7) { Kind::Both(first, second) } else { Kind::Without(first, second) }
            } else {
                let amount = rng.random_range(1..=9);
                match rng.random_range(0..3) {
                    0 => Kind::More(first, amount),
                    1 => Kind::Fewer(first, amount),
                    _ => Kind::Times(first, rng.random_range(2..=4)),
                }
            };
            // Without a chain of thought there is no room for going round the modulus twice.
            let kind = match kind {
                Kind::Times(first, factor) if difficulty == Difficulty::Easy => {
                    Kind::Times(first, factor.min(2))
                }
                kind => kind,
            };
            loose.retain(|index| !kind.operands().contains(index));
            loose.push(graph.add(rng, kind));
        }
        graph
    }

    /// Adds a quantity with a known value.
    fn give(&mut self, rng: &mut Random) -> usize {
        let value = rng.random_range(2..=19);
        self.add(rng, Kind::Given(value))
    }

    fn add(&mut self, rng: &mut Random, kind: Kind) -> usize {
        let mut name = pick(rng, &THINGS);
        while self.names.contains(&name) {
            name = pick(rng, &THINGS);
        }
        self.names.push(name);
        self.values.push(value(kind, &self.values));
        self.kinds.push(kind);
        self.kinds.len() - 1
    }

    fn sentence(&self, rng: &mut Random, index: usize) -> String {
        let name = self.names[index];
        let of = |index: usize| self.names[index];
        let short = rng.random_bool(0.5);
        match self.kinds[index] {
            Kind::Given(value) if short => format!("The number of {name} is {value}."),
            Kind::Given(value) => format!("There are {value} {name}."),
            Kind::More(a, c) if short => format!("The {name} are {c} more than the {}.", of(a)),
            Kind::More(a, c) => format!("There are {c} more {name} than {}.", of(a)),
            Kind::Fewer(a, c) if short => format!("The {name} are {c} fewer than the {}.", of(a)),
            Kind::Fewer(a, c) => format!("There are {c} fewer {name} than {}.", of(a)),
            Kind::Times(a, k) if short => format!("The {name} are {k} times the {}.", of(a)),
            Kind::Times(a, k) => format!("There are {k} times as many {name} as {}.", of(a)),
            Kind::Both(a, b) if short => format!("The {name} are the {} plus the {}.", of(a), of(b)),
            Kind::Both(a, b) => format!("There are as many {name} as {} and {} together.", of(a), of(b)),
            Kind::Without(a, b) => format!("The {name} are the {} minus the {}.", of(a), of(b)),
        }
    }

    /// First the sentences in the order of telling, in one form: `coins shells + bells`. Then backwards
    /// from the target: a line that comes to an operand nobody knows yet breaks off there, the operand
    /// is worked out, and the line is written again. What to write next then follows from the lines
    /// before, where finding a sentence that can be worked out would be a search of all.
    fn solve(&self, rng: &mut Random, told: &[usize]) -> Vec<Step> {
        let count = self.kinds.len();
        let chain = Chain::default();
        let mut solution = Solution { read: vec![0; count], step_of: vec![None; count], chain };
        for &index in told {
            self.read(rng, index, &mut solution);
        }
        self.work_out(rng, count - 1, &mut solution);
        solution.chain.steps
    }

    /// Adds the line that says what a sentence says.
    fn read(&self, rng: &mut Random, index: usize, solution: &mut Solution) {
        let kind = self.kinds[index];
        let Some((first, sign, second)) = operation(kind, |operand| self.names[operand].to_owned()) else {
            let text = self.line(index, kind, &self.values, self.values[index]);
            let step = solution.chain.push(text, self.check(index), FACT, &[]);
            self.add_mistakes(rng, index, solution);
            (solution.read[index], solution.step_of[index]) = (step, Some(step));
            return;
        };
        let text = format!("{} {first} {sign} {second}", self.names[index]);
        solution.read[index] = solution.chain.push(text, String::new(), COPY, &[]);
    }

    /// Adds the lines that end with the value of a quantity.
    fn work_out(&self, rng: &mut Random, index: usize, solution: &mut Solution) {
        let kind = self.kinds[index];
        let mut needs = vec![solution.read[index]];
        for operand in kind.operands() {
            if solution.step_of[operand].is_none() {
                let (text, check) = self.open_line(index, operand);
                needs.push(solution.chain.push(text, check, FACT, &needs));
                self.guess(rng, index, operand, solution);
                self.work_out(rng, operand, solution);
            }
            needs.extend(solution.step_of[operand]);
        }
        let text = self.line(index, kind, &self.values, self.values[index]);
        let step = solution.chain.push(text, self.check(index), self.risk(index), &needs);
        self.add_mistakes(rng, index, solution);
        solution.step_of[index] = Some(step);
    }

    fn add_mistakes(&self, rng: &mut Random, index: usize, solution: &mut Solution) {
        let kind = self.kinds[index];
        let chain = &mut solution.chain;
        chain.slips(rng, self.values[index], |wrong| self.line(index, kind, &self.values, wrong));
        let operands = kind.operands();
        let is_stranger = |other: &usize| solution.step_of[*other].is_some() && !operands.contains(other);
        let strangers: Vec<usize> = (0..self.kinds.len()).filter(is_stranger).collect();
        if !operands.is_empty() && !strangers.is_empty() {
            let wrong = kind.with_operand(pick(rng, &strangers));
            let result = value(wrong, &self.values);
            if result != self.values[index] {
                chain.mistake(MistakeKind::WrongOperand, self.line(index, wrong, &self.values, result));
            }
        }
    }

    /// Adds the mistake of working a quantity out with a guess for an operand.
    fn guess(&self, rng: &mut Random, index: usize, operand: usize, solution: &mut Solution) {
        let mut guessed = self.values.clone();
        let known: Vec<i64> =
            (0..guessed.len()).filter(|i| solution.step_of[*i].is_some()).map(|i| self.values[i]).collect();
        guessed[operand] = if known.is_empty() { rng.random_range(2..=19) } else { pick(rng, &known) };
        let result = value(self.kinds[index], &guessed);
        if result != self.values[index] {
            let text = self.line(index, self.kinds[index], &guessed, result);
            solution.chain.mistake(MistakeKind::PrematureParameter, text);
        }
    }

    /// `coins shells 3 + bells ?`: a line as far as it is known, and what its reflection says.
    fn open_line(&self, index: usize, unknown: usize) -> (String, String) {
        let (name, operand) = (self.names[index], self.names[unknown]);
        let show = |other: usize| match other == unknown {
            true => operand.to_owned(),
            false => self.known(other, &self.values),
        };
        let before = match operation(self.kinds[index], show) {
            Some((first, sign, _)) if first != operand => format!("{first} {sign} "),
            _ => String::new(),
        };
        (format!("{name} {before}{operand} ?"), format!("{operand} ?, {name} is unknown"))
    }

    /// A quantity with its value right behind its name.
    fn known(&self, index: usize, values: &[i64]) -> String {
        format!("{} {}", self.names[index], values[index])
    }

    /// `cups pens 19 + 7, 26-23, cups = 3`, with other values and another end for mistakes. Every value
    /// stands right behind its name, which is the kind of copying that a small model learns soonest.
    fn line(&self, index: usize, kind: Kind, values: &[i64], result: i64) -> String {
        let name = self.names[index];
        match self.told(kind, values, false) {
            None => format!("{name} = {result}"),
            Some((told, worked)) => {
                let between = if worked.is_empty() { String::new() } else { format!(", {worked}") };
                format!("{name} {told}{between}, {name} = {result}")
            }
        }
    }

    /// The operands looked up and the operation done again, with its operands exchanged where that
    /// changes nothing.
    fn check(&self, index: usize) -> String {
        let (name, result) = (self.names[index], self.values[index]);
        match self.told(self.kinds[index], &self.values, true) {
            None => format!("{name} = {result}"),
            Some((told, worked)) => {
                let between = if worked.is_empty() { String::new() } else { format!("={worked}") };
                format!("{told}{between}={result}, {name} = {result}")
            }
        }
    }

    /// An operation with the names and values of its operands, and what is left to work out where the
    /// result goes round the modulus: `26-23`. Nothing for a given value.
    fn told(&self, kind: Kind, values: &[i64], exchanged: bool) -> Option<(String, String)> {
        let (first, sign, second) = operation(kind, |operand| self.known(operand, values))?;
        let (a, b) = numbers(kind, values);
        let whole = whole(kind, values);
        // Before a difference would go below zero 23 is added to what is taken from.
        let worked = match whole / MODULUS {
            _ if whole < 0 => format!("{}-{b}", a + MODULUS),
            0 => String::new(),
            rounds => format!("{whole}-{}", rounds * MODULUS),
        };
        let exchanged = exchanged && sign != '-';
        let (first, second) = if exchanged { (second, first) } else { (first, second) };
        Some((format!("{first} {sign} {second}"), worked))
    }

    fn risk(&self, index: usize) -> u8 {
        let of = |index: usize| self.values[index];
        match self.kinds[index] {
            Kind::Times(a, k) if of(a) * k >= MODULUS => HARD,
            Kind::Both(a, b) if of(a) + of(b) >= MODULUS => HARD,
            Kind::Without(a, b) if of(a) < of(b) => HARD,
            _ => RISKY,
        }
    }
}

/// An operation in the order of its sentence, with its operands as `show` writes them. `None` for a
/// given value.
fn operation(kind: Kind, show: impl Fn(usize) -> String) -> Option<(String, char, String)> {
    Some(match kind {
        Kind::Given(_) => return None,
        Kind::More(a, c) => (show(a), '+', c.to_string()),
        Kind::Fewer(a, c) => (show(a), '-', c.to_string()),
        Kind::Times(a, k) => (k.to_string(), '*', show(a)),
        Kind::Both(a, b) => (show(a), '+', show(b)),
        Kind::Without(a, b) => (show(a), '-', show(b)),
    })
}

/// The numbers of an operation in the same order.
fn numbers(kind: Kind, values: &[i64]) -> (i64, i64) {
    let of = |index: usize| values[index];
    match kind {
        Kind::Given(value) => (value, 0),
        Kind::More(a, c) | Kind::Fewer(a, c) => (of(a), c),
        Kind::Times(a, k) => (k, of(a)),
        Kind::Both(a, b) | Kind::Without(a, b) => (of(a), of(b)),
    }
}

/// What an operation comes to before it goes round the modulus.
fn whole(kind: Kind, values: &[i64]) -> i64 {
    let (a, b) = numbers(kind, values);
    match kind {
        Kind::Times(..) => a * b,
        Kind::Fewer(..) | Kind::Without(..) => a - b,
        Kind::Given(_) | Kind::More(..) | Kind::Both(..) => a + b,
    }
}

fn value(kind: Kind, values: &[i64]) -> i64 {
    whole(kind, values).rem_euclid(MODULUS)
}
