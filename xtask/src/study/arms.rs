//! The questions and their arms.

use Measure::{Accuracy, Repaired, Slips};
use Relation::{Less, More, Same};

/// A question with the arms that answer it; the first arm is what the others are compared with.
pub struct Question {
    pub name: &'static str,
    pub title: &'static str,
    /// What is claimed, and by whom.
    pub claim: &'static str,
    pub arms: &'static [Arm],
    /// What the claim says about pairs of arms.
    pub expected: &'static [Expected],
    /// System prompt of all its problems.
    pub system: Option<&'static str>,
}

/// What a claim says about a measure of two arms: the first has more of it, less, or neither.
pub struct Expected {
    pub first: usize,
    pub second: usize,
    pub measure: Measure,
    pub relation: Relation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Accuracy,
    Slips,
    Repaired,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    More,
    Less,
    Same,
}

const fn expected(first: usize, relation: Relation, second: usize, measure: Measure) -> Expected {
    Expected { first, second, measure, relation }
}

/// One training set and one loss.
pub struct Arm {
    pub name: &'static str,
    pub families: &'static str,
    /// Weights of easy, moderate and hard problems.
    pub mix: &'static str,
    pub problems: usize,
    /// Options of `reflect-run data reflect`.
    pub style: &'static str,
    pub loss: &'static str,
}

/// Sums by columns: those that are called hard are done in one go.
const fn sums(name: &'static str, problems: usize, style: &'static str) -> Arm {
    Arm { name, families: "addition", mix: "0 1 0", problems, style, loss: "none" }
}

const fn graphs(name: &'static str, style: &'static str, loss: &'static str) -> Arm {
    Arm { name, families: "graph", mix: "0 0.5 0.5", problems: 40_000, style, loss }
}

const fn mixed(name: &'static str, style: &'static str, loss: &'static str) -> Arm {
    Arm { name, families: "addition,subtraction,boolean", mix: "0 0.3 0.7", problems: 40_000, style, loss }
}

const RETRY: &str = "--style retry --mistake-rate 0.5 --max-mistakes 8 --difficulties moderate,hard";

/// It names the tags, as the prompts of published models do: where `published` looks for one.
const SYSTEM: &str = "Think in <thinking>, check in <reflection>, answer in <output>.";

pub const QUESTIONS: [Question; 4] = [
    Question {
        name: "scratchpad",
        title: "Scratchpad, plain, noisy scratchpad",
        claim: "Lee et al. 2023 (arXiv 2307.03381): with a scratchpad sums are learned from far fewer problems than \
                without, and wrong values left in the scratchpad cost some of that, most where data is short.",
        arms: &[
            sums("scratchpad, 1000", 1_000, "--style twin"),
            sums("plain, 1000", 1_000, "--style direct"),
            sums("noisy, 1000", 1_000, "--style noisy --mistake-rate 0.5"),
            sums("scratchpad, 10000", 10_000, "--style twin"),
            sums("plain, 10000", 10_000, "--style direct"),
            sums("noisy, 10000", 10_000, "--style noisy --mistake-rate 0.5"),
        ],
        expected: &[
            expected(0, More, 1, Accuracy),
            expected(0, More, 2, Accuracy),
            expected(3, More, 4, Accuracy),
            expected(3, More, 5, Accuracy),
        ],
        system: None,
    },
    Question {
        name: "retry",
        title: "Retry data on graph problems",
        claim: "Ye et al. 2024 (Physics of Language Models 2.2, arXiv 2408.16293): mistakes that are taken back, before \
                half of the steps, make a model trained from nothing more accurate, and masking them is not needed.",
        arms: &[
            graphs("retry 0", "--style twin", "none"),
            graphs("retry 0.5", RETRY, "none"),
            graphs("retry 0.5, masked", RETRY, "mask-mistakes"),
        ],
        expected: &[
            expected(1, More, 0, Accuracy),
            expected(2, More, 0, Accuracy),
            expected(2, Same, 1, Accuracy),
        ],
        system: None,
    },
    Question {
        name: "loss",
        title: "Loss strategies",
        claim: "The interview: a model learns to repair mistakes without learning to make them, if the loss does not \
                teach the mistakes. The released collator masks all before the first `<reflection>` of one of two copies, \
                and finds that tag in the system prompt.",
        arms: &[
            mixed("mask-mistakes", "--style reflections", "mask-mistakes"),
            mixed("none", "--style reflections", "none"),
            mixed("intended", "--style reflections", "intended"),
            mixed("published", "--style reflections", "published"),
        ],
        expected: &[
            expected(0, Less, 1, Slips),
            expected(0, Less, 2, Slips),
            expected(0, Less, 3, Slips),
            expected(2, Less, 3, Slips),
            expected(0, More, 1, Accuracy),
            expected(0, More, 3, Accuracy),
        ],
        system: Some(SYSTEM),
    },
    Question {
        name: "share",
        title: "Share of corrective reflections",
        claim: "The interview wants corrections and confirmations side by side; First Try Matters (Kang et al. 2025, \
                arXiv 2510.08308) saw no gain in accuracy from corrections. At 0 % every reflection confirms a right \
                step, at 100 % every one corrects a mistake.",
        arms: &[
            mixed("0 %", "--style reflections --max-mistakes 3 --corrective-share 0", "mask-mistakes"),
            mixed("25 %", "--style reflections --max-mistakes 3 --corrective-share 0.25", "mask-mistakes"),
            mixed("50 %", "--style reflections --max-mistakes 3 --corrective-share 0.5", "mask-mistakes"),
            mixed("100 %", "--style reflections --max-mistakes 3 --corrective-share 1", "mask-mistakes"),
        ],
        expected: &[
            expected(2, More, 0, Repaired),
            expected(1, Same, 0, Accuracy),
            expected(2, Same, 0, Accuracy),
            expected(3, Same, 0, Accuracy),
        ],
        system: None,
    },
];
