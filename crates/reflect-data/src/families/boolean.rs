//! Boolean expressions of variables, worked out from the inside.

use rand::Rng;
use rand::seq::SliceRandom;

use super::chain::{COPY, Chain, FACT, HARD, RISKY};
use super::{Draft, Random};
use crate::sample::{Difficulty, MistakeKind};

const LETTERS: [&str; 8] = ["p", "q", "r", "s", "t", "u", "v", "w"];
const DEPTH: usize = 4;

#[derive(Clone, Debug)]
enum Expression {
    Known(bool),
    Variable(usize),
    Not(Box<Expression>),
    Both(Box<Expression>, Box<Expression>),
    Either(Box<Expression>, Box<Expression>),
}

/// Easy expressions have one operation, moderate ones two or three, hard ones four or five.
pub(super) fn generate(rng: &mut Random, difficulty: Difficulty) -> Draft {
    let operations = match difficulty {
        Difficulty::Easy => 1,
        Difficulty::Moderate => rng.random_range(2..=3),
        Difficulty::Hard => rng.random_range(4..=5),
    };
    let mut letters = LETTERS;
    letters.shuffle(rng);
    let count = rng.random_range(2..=3);
    let names = &letters[..count];
    let values: Vec<bool> = (0..count).map(|_| rng.random_bool(0.5)).collect();
    let expression = Expression::new(rng, operations, DEPTH, count);
    let answer = expression.value(&values);

    let shown = expression.show(names, false);
    let told: Vec<String> =
        names.iter().zip(&values).map(|(name, value)| format!("{name} is {value}")).collect();
    let told = told.join(", ");
    let prompt = match rng.random_range(0..3) {
        0 => format!("{told}. What is {shown}?"),
        1 => format!("If {told}, work out {shown}."),
        _ => format!("Find {shown} when {told}."),
    };
    // One operation has few shapes: there the names tell problems apart.
    let structure = match difficulty {
        Difficulty::Easy => format!("{told} {shown}"),
        _ => format!("{values:?} {expression:?}"),
    };
    let steps = match difficulty {
        Difficulty::Easy => Vec::new(),
        _ => solve(&expression, names, &values).steps,
    };
    Draft::single(structure, prompt, steps, answer.to_string())
}

impl Expression {
    /// An expression with this many operations that nests no deeper than `depth`.
    fn new(rng: &mut Random, operations: usize, depth: usize, variables: usize) -> Self {
        // A tree of binary operations of this depth has room for so many.
        let room = |depth: usize| (1_usize << depth) - 1;
        if operations == 0 || depth == 0 {
            return Self::Variable(rng.random_range(0..variables));
        }
        let rest = operations - 1;
        if rest <= room(depth - 1) && rng.random_bool(0.3) {
            let inner = Self::new(rng, rest, depth - 1, variables);
            // Two in a row say nothing.
            if !matches!(inner, Self::Not(_)) {
                return Self::Not(Box::new(inner));
            }
        }
        let most = rest.min(room(depth - 1));
        let left = rng.random_range(rest - most..=most);
        let a = Box::new(Self::new(rng, left, depth - 1, variables));
        let b = Box::new(Self::new(rng, rest - left, depth - 1, variables));
        if rng.random_bool(0.5) { Self::Both(a, b) } else { Self::Either(a, b) }
    }

    fn value(&self, values: &[bool]) -> bool {
        match self {
            Self::Known(value) => *value,
            Self::Variable(index) => values[*index],
            Self::Not(inner) => !inner.value(values),
            Self::Both(a, b) => a.value(values) && b.value(values),
            Self::Either(a, b) => a.value(values) || b.value(values),
        }
    }

    fn with_values(&self, values: &[bool]) -> Self {
        let put = |inner: &Self| Box::new(inner.with_values(values));
        match self {
            Self::Known(value) => Self::Known(*value),
            Self::Variable(index) => Self::Known(values[*index]),
            Self::Not(inner) => Self::Not(put(inner)),
            Self::Both(a, b) => Self::Both(put(a), put(b)),
            Self::Either(a, b) => Self::Either(put(a), put(b)),
        }
    }

    /// The text; inner operations stand in parentheses, so that no rule of precedence is needed.
    fn show(&self, names: &[&str], inside: bool) -> String {
        let text = match self {
            Self::Known(value) => return value.to_string(),
            Self::Variable(index) => return names[*index].to_owned(),
            Self::Not(inner) => format!("not {}", inner.show(names, true)),
            Self::Both(a, b) => format!("{} and {}", a.show(names, true), b.show(names, true)),
            Self::Either(a, b) => format!("{} or {}", a.show(names, true), b.show(names, true)),
        };
        if inside { format!("({text})") } else { text }
    }

    /// The leftmost operation on known values.
    fn first_known(&mut self) -> Option<&mut Self> {
        let ready = match self {
            Self::Known(_) | Self::Variable(_) => return None,
            Self::Not(inner) => matches!(**inner, Self::Known(_)),
            Self::Both(a, b) | Self::Either(a, b) => {
                matches!((&**a, &**b), (Self::Known(_), Self::Known(_)))
            }
        };
        if ready {
            return Some(self);
        }
        match self {
            Self::Not(inner) => inner.first_known(),
            Self::Both(a, b) | Self::Either(a, b) => a.first_known().or_else(|| b.first_known()),
            Self::Known(_) | Self::Variable(_) => None,
        }
    }

    /// The operation with its last operand read wrongly.
    fn misread(&self) -> Self {
        let other = |inner: &Self| Box::new(Self::Known(!inner.value(&[])));
        match self {
            Self::Not(inner) => Self::Not(other(inner)),
            Self::Both(a, b) => Self::Both(a.clone(), other(b)),
            Self::Either(a, b) => Self::Either(a.clone(), other(b)),
            Self::Known(_) | Self::Variable(_) => self.clone(),
        }
    }

    /// Operands that differ are where `and` and `or` do.
    fn risk(&self) -> u8 {
        match self {
            Self::Both(a, b) | Self::Either(a, b) if a.value(&[]) != b.value(&[]) => HARD,
            Self::Both(..) | Self::Either(..) => RISKY,
            _ => FACT,
        }
    }

    /// Why an operation on known values has its value.
    fn rule(&self) -> &'static str {
        match self {
            Self::Not(_) => "not turns it",
            Self::Both(..) => "and needs both",
            _ => "or needs one",
        }
    }
}

/// The expression is written with a value behind each name, then with the values alone, then ever
/// shorter. Put in one go, values are looked up in the midst of copying, which a small model gets wrong.
fn solve(expression: &Expression, names: &[&str], values: &[bool]) -> Chain {
    let mut chain = Chain::default();
    let told: Vec<String> = names.iter().zip(values).map(|(name, value)| format!("{name} {value}")).collect();
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    let read = chain.push(format!("read {}", expression.show(&told, false)), String::new(), COPY, &[]);
    let mut expression = expression.with_values(values);
    let text = format!("now {}", expression.show(&[], false));
    let mut before = chain.push(text, String::new(), COPY, &[read]);
    let mut flipped = expression.clone();
    for number in 1.. {
        let Some(part) = expression.first_known() else { break };
        let (work, rule, value) = (part.show(&[], false), part.rule(), part.value(&[]));
        let (misread, risk) = (part.misread(), part.risk());
        *part = Expression::Known(value);
        if let Some(part) = flipped.first_known() {
            *part = Expression::Known(!value);
        }
        let last = matches!(expression, Expression::Known(_));
        let line = |work: &str, value: bool, whole: &Expression| {
            let rest = if last { String::new() } else { format!(", now {}", whole.show(&[], false)) };
            format!("{work}, s{number} = {value}{rest}")
        };
        let check = format!("{rule}, {work}, s{number} = {value}");

        before = chain.push(line(&work, value, &expression), check, risk, &[before]);
        chain.mistake(MistakeKind::Slip, line(&work, !value, &flipped));
        if misread.value(&[]) != value {
            chain.mistake(MistakeKind::WrongOperand, line(&misread.show(&[], false), !value, &flipped));
        }
        flipped = expression.clone();
    }
    chain
}
