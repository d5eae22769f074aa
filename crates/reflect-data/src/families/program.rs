//! What a short program prints: straight lines, one branch, one loop.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::SliceRandom;

use super::chain::{COPY, Chain, FACT, HARD, RISKY};
use super::{Draft, Random, pick};
use crate::sample::{Difficulty, MistakeKind};

const LETTERS: [char; 8] = ['a', 'b', 'c', 'd', 'k', 'm', 'n', 'x'];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    Plus,
    Minus,
    Times,
}

#[derive(Clone, Copy, Debug)]
enum Operand {
    Number(i64),
    Variable(char),
}

impl Sign {
    fn symbol(self) -> char {
        match self {
            Self::Plus => '+',
            Self::Minus => '-',
            Self::Times => '*',
        }
    }

    fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Plus => a + b,
            Self::Minus => a - b,
            Self::Times => a * b,
        }
    }
}

/// A variable after an assignment: `a2` has a value, stated by a step.
#[derive(Clone, Copy)]
struct Version {
    number: usize,
    value: i64,
    step: usize,
}

/// A program that is written and run at the same time, so that every operation can be chosen by
/// the values it meets.
struct Program {
    listing: Vec<String>,
    chain: Chain,
    variables: BTreeMap<char, Version>,
    /// The step with the test that the next assignment depends on.
    test: Option<usize>,
}

/// Easy programs have one operation, moderate ones a few lines or a branch, hard ones a loop.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let mut letters = LETTERS;
    letters.shuffle(rng);
    let [a, b, ..] = letters;
    let mut program =
        Program { listing: Vec::new(), chain: Chain::default(), variables: BTreeMap::new(), test: None };
    let printed = match difficulty {
        Difficulty::Easy => {
            program.set(rng, a, (2, 60));
            let (sign, operand) = program.operation(rng, a);
            let value = sign.apply(program.value(a), program.operand(operand));
            let text = format!("print({a} {} {})", sign.symbol(), shown(operand));
            return program.finish(rng, &text, value, &letters, false);
        }
        Difficulty::Moderate if rng.random_bool(0.4) => program.branch(rng, a, b),
        Difficulty::Moderate => program.straight(rng, a, b),
        Difficulty::Hard if rng.random_bool(0.5) => program.loop_with_two(rng, a, b),
        Difficulty::Hard => program.loop_and_branch(rng, a),
    };
    let value = program.value(printed);
    program.finish(rng, &format!("print({printed})"), value, &letters, true)
}

impl Program {
    fn straight(&mut self, rng: &mut Random, a: char, b: char) -> char {
        self.set(rng, a, (2, 20));
        if rng.random_bool(0.5) {
            self.set(rng, b, (2, 20));
        } else {
            self.assign(rng, b, a);
        }
        let mut last = b;
        for _ in 0..rng.random_range(1..=3) {
            last = pick(rng, &[a, b]);
            let from = pick(rng, &[a, b]);
            self.assign(rng, last, from);
        }
        last
    }

    fn branch(&mut self, rng: &mut Random, a: char, b: char) -> char {
        self.set(rng, a, (2, 20));
        let holds = self.test(rng, a);
        let (taken, other) = (self.operation(rng, a), self.operation(rng, a));
        let shown =
            |(sign, operand): (Sign, Operand)| format!("    {b} = {a} {} {}", sign.symbol(), shown(operand));
        let (yes, no) = if holds { (taken, other) } else { (other, taken) };
        self.listing.extend([shown(yes), "else:".to_owned(), shown(no)]);
        let wrong = self.text("", b, a, other);
        self.run("", b, a, taken);
        self.add_mistakes(rng, "", b, a, taken);
        if self.result(a, other) != self.value(b) {
            self.chain.mistake(MistakeKind::WrongBranch, wrong);
        }
        b
    }

    fn loop_with_two(&mut self, rng: &mut Random, a: char, b: char) -> char {
        self.set(rng, a, (2, 9));
        self.set(rng, b, (2, 9));
        let number = Operand::Number(rng.random_range(2..=9));
        let operand = pick(rng, &[Operand::Variable(b), number]);
        self.repeat(rng, a, operand);
        if rng.random_bool(0.5) {
            let (last, from) = pick(rng, &[(a, a), (b, a), (a, b)]);
            self.assign(rng, last, from);
            return last;
        }
        a
    }

    fn loop_and_branch(&mut self, rng: &mut Random, a: char) -> char {
        self.set(rng, a, (2, 9));
        let step = Operand::Number(rng.random_range(2..=9));
        self.repeat(rng, a, step);
        let holds = self.test(rng, a);
        let operation = self.operation(rng, a);
        self.listing.push(format!("    {a} = {a} {} {}", operation.0.symbol(), shown(operation.1)));
        if holds {
            self.run("", a, a, operation);
            self.add_mistakes(rng, "", a, a, operation);
        }
        a
    }

    /// A loop that adds the same thing two to four times.
    fn repeat(&mut self, rng: &mut Random, a: char, operand: Operand) {
        let turns = rng.random_range(2..=4);
        self.listing.push(format!("for i in range({turns}):"));
        self.listing.push(format!("    {a} = {a} + {}", shown(operand)));
        for turn in 1..=turns {
            let prefix = format!("turn {turn} of {turns}, ");
            self.run(&prefix, a, a, (Sign::Plus, operand));
            self.add_mistakes(rng, &prefix, a, a, (Sign::Plus, operand));
        }
    }

    /// Writes and runs `a = 5`.
    fn set(&mut self, rng: &mut Random, variable: char, (low, high): (i64, i64)) {
        let value = rng.random_range(low..=high);
        self.listing.push(format!("{variable} = {value}"));
        let number = self.variables.get(&variable).map_or(1, |version| version.number + 1);
        let text = format!("{variable}{number} = {value}");
        let step = self.chain.push(text.clone(), text, COPY, &[]);
        self.variables.insert(variable, Version { number, value, step });
    }

    /// Writes and runs `b = a + 4` with an operation that fits the values.
    fn assign(&mut self, rng: &mut Random, variable: char, from: char) {
        let others: Vec<char> = self.variables.keys().copied().filter(|other| *other != from).collect();
        let mut operation = self.operation(rng, from);
        if !others.is_empty() && rng.random_bool(0.5) {
            let other = pick(rng, &others);
            let (a, b) = (self.value(from), self.value(other));
            if a + b <= 60 {
                operation = (Sign::Plus, Operand::Variable(other));
            } else if a >= b {
                operation = (Sign::Minus, Operand::Variable(other));
            }
        }
        self.listing.push(format!("{variable} = {from} {} {}", operation.0.symbol(), shown(operation.1)));
        self.run("", variable, from, operation);
        self.add_mistakes(rng, "", variable, from, operation);
    }

    /// Writes `if a > 5:` and adds the step of its test; whether it holds.
    fn test(&mut self, rng: &mut Random, variable: char) -> bool {
        let Version { value, step, .. } = self.version(variable);
        let mut bound = (value + rng.random_range(-6..=6)).max(1);
        if bound == value {
            bound += 1;
        }
        let greater = rng.random_bool(0.5);
        let sign = if greater { '>' } else { '<' };
        let turned = if greater { '<' } else { '>' };
        let holds = (value > bound) == greater;
        self.listing.push(format!("if {variable} {sign} {bound}:"));
        let line = |holds: bool| format!("{variable} {value} {sign} {bound}, test = {holds}");
        let check = format!("{bound} {turned} {variable} {value}, test = {holds}");
        self.test = Some(self.chain.push(line(holds), check, FACT, &[step]));
        self.chain.mistake(MistakeKind::WrongBranch, line(!holds));
        holds
    }

    /// Adds the step of an assignment whose line is written already.
    fn run(&mut self, prefix: &str, variable: char, from: char, operation: (Sign, Operand)) {
        let value = self.result(from, operation);
        let text = self.text(prefix, variable, from, operation);
        let number = self.next(variable);
        let a = self.value(from);
        let (first, second) = (format!("{from} {a}"), self.known(operation.1));
        let again = match operation.0 {
            Sign::Minus => format!("{first} - {second}={value}"),
            sign => format!("{second} {} {first}={value}", sign.symbol()),
        };
        let mut needs = vec![self.version(from).step];
        if let Operand::Variable(other) = operation.1 {
            needs.push(self.version(other).step);
        }
        needs.extend(self.test.take());
        // Where the tens change a carry or a borrow is easily missed.
        let risk = if a / 10 == value / 10 { RISKY } else { HARD };
        let check = format!("{again}, {variable}{number} = {value}");
        let step = self.chain.push(text, check, risk, &needs);
        self.variables.insert(variable, Version { number, value, step });
    }

    /// Adds mistakes to the assignment that was just run: a slip, and the operand of another
    /// variable.
    fn add_mistakes(
        &mut self,
        rng: &mut Random,
        prefix: &str,
        variable: char,
        from: char,
        (sign, operand): (Sign, Operand),
    ) {
        let Some(text) = self.chain.steps.last().map(|step| step.text.clone()) else { return };
        let Some(head) = text.rsplit_once("= ").map(|(head, _)| head.to_owned()) else { return };
        let value = self.value(variable);
        self.chain.slips(rng, value, |wrong| format!("{head}= {wrong}"));
        let others: Vec<char> =
            self.variables.keys().copied().filter(|o| *o != from && *o != variable).collect();
        // An operand that this assignment changed has no old value to show any more.
        let changed = matches!(operand, Operand::Variable(other) if other == variable);
        if others.is_empty() || changed {
            return;
        }
        let other = pick(rng, &others);
        let wrong = sign.apply(self.value(other), self.operand(operand));
        if wrong != value && wrong >= 0 {
            let number = self.version(variable).number;
            let (a, symbol, b) = (self.value(other), sign.symbol(), self.known(operand));
            let text = format!("{prefix}{other} {a} {symbol} {b}, {variable}{number} = {wrong}");
            self.chain.mistake(MistakeKind::WrongOperand, text);
        }
    }

    /// `a 7 + 4, b1 = 11`, before the assignment has happened. Values stand right behind the names that
    /// they are looked up by.
    fn text(&self, prefix: &str, variable: char, from: char, (sign, operand): (Sign, Operand)) -> String {
        let (a, symbol, b) = (self.value(from), sign.symbol(), self.known(operand));
        let result = self.result(from, (sign, operand));
        let number = self.next(variable);
        format!("{prefix}{from} {a} {symbol} {b}, {variable}{number} = {result}")
    }

    /// An operation on a variable whose result has at most two digits and is not negative.
    fn operation(&self, rng: &mut Random, variable: char) -> (Sign, Operand) {
        let value = self.value(variable);
        let amount = rng.random_range(1..=9);
        match rng.random_range(0..5) {
            0 if value <= 12 => (Sign::Times, Operand::Number(rng.random_range(2..=3))),
            0..=2 if value > amount => (Sign::Minus, Operand::Number(amount)),
            _ => (Sign::Plus, Operand::Number(amount)),
        }
    }

    fn version(&self, variable: char) -> Version {
        self.variables.get(&variable).copied().unwrap_or(Version { number: 0, value: 0, step: 0 })
    }

    fn value(&self, variable: char) -> i64 {
        self.version(variable).value
    }

    fn next(&self, variable: char) -> usize {
        self.version(variable).number + 1
    }

    fn operand(&self, operand: Operand) -> i64 {
        match operand {
            Operand::Number(number) => number,
            Operand::Variable(variable) => self.value(variable),
        }
    }

    /// A number, or a variable with its value.
    fn known(&self, operand: Operand) -> String {
        match operand {
            Operand::Number(number) => number.to_string(),
            Operand::Variable(variable) => format!("{variable} {}", self.value(variable)),
        }
    }

    fn result(&self, from: char, (sign, operand): (Sign, Operand)) -> i64 {
        sign.apply(self.value(from), self.operand(operand))
    }

    fn finish(mut self, rng: &mut Random, print: &str, value: i64, letters: &[char], traced: bool) -> Draft {
        self.listing.push(print.to_owned());
        let listing = self.listing.join("\n");
        let question = pick(
            rng,
            &["What does this program print?", "What is printed?", "Give the output of this code."],
        );
        // Programs that differ in nothing but the names of their variables are the same; `i`, `if`,
        // `for`, `else`, `print` and `range` hold letters of variables and stay.
        let mut structure = String::new();
        for word in listing.split_inclusive(|c: char| !c.is_alphanumeric()) {
            let name = word.trim_end_matches(|c: char| !c.is_alphanumeric());
            let place = letters.iter().position(|letter| name.len() == 1 && name.starts_with(*letter));
            match place {
                Some(place) => structure.push_str(&format!("v{place}{}", &word[name.len()..])),
                None => structure.push_str(word),
            }
        }
        let steps = if traced { self.chain.steps } else { Vec::new() };
        Draft::single(structure, format!("{question}\n{listing}"), steps, value.to_string())
    }
}

fn shown(operand: Operand) -> String {
    match operand {
        Operand::Number(number) => number.to_string(),
        Operand::Variable(variable) => variable.to_string(),
    }
}
