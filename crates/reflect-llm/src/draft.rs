//! Drafts of what a model will write, for it to check many tokens in one step.

use std::num::NonZeroUsize;

use crate::{
    engine::{Engine, EngineError, Request, SequenceId},
    sampler::SamplingParams,
};

/// Tokens of a draft where nothing else is asked for.
pub const DRAFT_TOKENS: NonZeroUsize = NonZeroUsize::new(6).unwrap();

/// Proposes tokens.
pub enum Drafter {
    /// Looks up how the text went on where it last had the same tokens (Saxena 2023, prompt lookup decoding).
    Ngram { most: usize },
    /// Lets a smaller model with the same tokenizer write ahead.
    Model(Box<ModelDrafter>),
}

impl Drafter {
    /// At most a few tokens that may follow `tokens`.
    ///
    /// # Errors
    /// If the drafting model fails.
    pub async fn draft(&mut self, tokens: &[u32]) -> Result<Vec<u32>, EngineError> {
        match self {
            Self::Ngram { most } => Ok(continued(tokens, *most).to_vec()),
            Self::Model(model) => model.draft(tokens).await,
        }
    }
}

/// Longest and shortest endings that are looked up.
const NGRAMS: [usize; 2] = [4, 2];

/// What followed the last earlier place that ends as `tokens` do, by the longest ending that has one.
fn continued(tokens: &[u32], most: usize) -> &[u32] {
    let [longest, shortest] = NGRAMS;
    for len in (shortest..=longest.min(tokens.len().saturating_sub(1))).rev() {
        let (before, ending) = tokens.split_at(tokens.len() - len);
        // An earlier place may reach into the ending, as in `a a a`.
        let found = (0..before.len()).rev().find(|at| &tokens[*at..*at + len] == ending);
        if let Some(at) = found {
            let next = &tokens[at + len..];
            return &next[..most.min(next.len())];
        }
    }
    &[]
}

/// A smaller model that follows the text of a larger one.
pub struct ModelDrafter {
    engine: Engine,
    sequence: Option<SequenceId>,
    most: usize,
}

impl ModelDrafter {
    /// Drafts of `most` tokens by the model of `engine`, which has no other work.
    pub fn new(engine: Engine, most: usize) -> Self {
        Self { engine, sequence: None, most }
    }

    async fn draft(&mut self, tokens: &[u32]) -> Result<Vec<u32>, EngineError> {
        let context = self.engine.options().context;
        let most = self.most.min(context.saturating_sub(tokens.len()));
        if most == 0 {
            return Ok(Vec::new());
        }
        match self.sequence {
            Some(sequence) => {
                let known = self.engine.tokens(sequence)?;
                let shared = known.iter().zip(tokens).take_while(|(a, b)| a == b).count();
                self.engine.truncate(sequence, shared)?;
                self.engine.append(sequence, &tokens[shared..])?;
            }
            None => {
                let sampling = SamplingParams::greedy();
                self.sequence = Some(self.engine.submit(Request { prompt: tokens.to_vec(), sampling })?);
            }
        }
        let mut draft = Vec::with_capacity(most);
        while draft.len() < most {
            let report = self.engine.step(&mut ()).await?.alone()?;
            if report.rows == 0 {
                break;
            }
            draft.extend(report.sampled.iter().map(|(_, sampled)| sampled.id));
        }
        Ok(draft)
    }
}

#[cfg(test)]
mod tests {
    use super::continued;

    #[test]
    fn the_longest_and_latest_ending_is_continued() {
        let tokens = [1, 2, 3, 9, 9, 2, 3, 7, 8, 5, 2, 3];
        assert_eq!(continued(&tokens, 3), [7, 8, 5]);
        assert_eq!(continued(&[1, 2, 3, 4, 0, 2, 3, 5, 1, 2, 3], 2), [4, 0], "the longer ending wins");
        assert_eq!(continued(&[7, 7, 7, 7], 8), [7], "an ending that overlaps itself");
        assert_eq!(continued(&[1, 2, 3], 8), [0u32; 0]);
        assert_eq!(continued(&[], 8), [0u32; 0]);
        assert_eq!(continued(&[1], 8), [0u32; 0]);
    }
}
