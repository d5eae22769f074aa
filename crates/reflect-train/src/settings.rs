//! Everything that decides what a run computes.

use reflect_data::loss::LossStrategy;
use serde::{Deserialize, Serialize};

use crate::parameters::Scope;

/// What is trained, and how a step is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub method: Method,
    pub strategy: LossStrategy,
    /// Steps of the whole run: where the learning rate has reached its end.
    pub steps: u64,
    /// Tokens that go through the model at a time.
    pub micro_tokens: usize,
    /// Micro-batches whose gradients are summed before a step.
    pub accumulate: usize,
    pub optimizer: OptimizerSettings,
    pub seed: u64,
    /// Run each block again on the way back, instead of keeping what it made.
    pub recompute: bool,
    /// Steps between two looks at the held-out examples; 0 for none.
    pub eval_every: u64,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Looks at the held-out examples without a better loss, after which the run ends; 0 for never.
    pub patience: u32,
}

/// Full training, or adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Full,
    Lora(LoraSettings),
}

impl Method {
    pub fn scope(&self) -> Scope {
        match self {
            Self::Full => Scope::Full,
            Self::Lora(_) => Scope::Adapters,
        }
    }
}

/// A low-rank adapter (Hu et al. 2021, arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Projections by their Hugging Face names, without `model.layers.…`.
    pub targets: Vec<String>,
    /// Whether the model beneath is packed to q4_0 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).
    #[serde(default)]
    pub packed: bool,
}

/// AdamW with a cosine schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSettings {
    /// Highest learning rate.
    pub rate: f64,
    /// The last step's learning rate, as a share of the highest.
    pub final_share: f64,
    /// Steps until the highest learning rate.
    pub warm_up: u64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Of matrices alone.
    pub decay: f64,
    /// Longest gradient, over all tensors.
    pub max_norm: f64,
}

impl OptimizerSettings {
    /// The learning rate of `step`, which counts from 1: linear to the highest at `warm_up`, then half
    /// a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983) to `final_share` of it at `steps`.
    pub fn rate_at(&self, step: u64, steps: u64) -> f64 {
        if step <= self.warm_up {
            return self.rate * step as f64 / self.warm_up.max(1) as f64;
        }
        let rest = steps.saturating_sub(self.warm_up).max(1) as f64;
        let progress = ((step - self.warm_up) as f64 / rest).min(1.0);
        let share = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.rate * (self.final_share + (1.0 - self.final_share) * share)
    }
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            rate: 1e-3,
            final_share: 0.1,
            warm_up: 100,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 0.1,
            max_norm: 1.0,
        }
    }
}
