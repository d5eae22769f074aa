//! The steps of a solution while they are being written.

use crate::families::Random;
use crate::inject::{add_mistake, slips};
pub(super) use crate::sample::LEAP;
use crate::sample::{MistakeKind, Step};

/// Copying: nothing to reflect on.
pub(super) const COPY: u8 = 0;
/// One fact, looked up or worked out.
pub(super) const FACT: u8 = 1;
/// Several facts, or one that depends on a condition.
pub(super) const RISKY: u8 = 2;
/// Where a solution is most likely to fail.
pub(super) const HARD: u8 = 3;

/// Steps in their order.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) steps: Vec<Step>,
}

impl Chain {
    /// Adds a step; its index.
    pub(super) fn push(&mut self, text: String, check: String, risk: u8, needs: &[usize]) -> usize {
        let mut needs = needs.to_vec();
        needs.sort_unstable();
        needs.dedup();
        self.steps.push(Step { text, needs, risk, check, mistakes: Vec::new() });
        self.steps.len() - 1
    }

    /// Adds a wrong version of the last step.
    pub(super) fn mistake(&mut self, kind: MistakeKind, text: String) {
        if let Some(step) = self.steps.last_mut() {
            add_mistake(step, kind, text);
        }
    }

    /// Adds versions of the last step that state a slip of its value.
    pub(super) fn slips(&mut self, rng: &mut Random, value: i64, line: impl Fn(i64) -> String) {
        for wrong in slips(rng, value) {
            self.mistake(MistakeKind::Slip, line(wrong));
        }
    }
}
