//! The memory that a run takes, from shapes alone.

use reflect_kernels::KvFormat;

use crate::{
    LlamaConfig,
    architecture::tensors,
    engine::Engine,
    weights::{TensorInfo, TensorSource},
};

/// Bytes that a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    pub weights: u64,
    pub cache: u64,
    /// Activations of the largest step, and the piece of the file being packed.
    pub scratch: u64,
}

impl Need {
    /// The need of a model with `positions` cached positions and steps of `rows` rows, of which
    /// `logit_rows` get logits.
    pub fn of(
        config: &LlamaConfig,
        source: &impl TensorSource,
        positions: usize,
        format: KvFormat,
        rows: usize,
        logit_rows: usize,
    ) -> Self {
        Self {
            weights: weight_bytes(config, source),
            cache: Engine::cache_bytes(config, positions, format),
            scratch: scratch_bytes(config, rows, logit_rows),
        }
    }

    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }
}

/// Bytes of the activations of steps of `rows` rows, of which `logit_rows` get logits, and of the piece of
/// a file being packed.
pub fn scratch_bytes(config: &LlamaConfig, rows: usize, logit_rows: usize) -> u64 {
    const STAGING: u64 = 64 << 20;
    let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
    let row = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size;
    let floats = rows * row + logit_rows * config.vocab_size;
    4 * floats as u64 + STAGING
}

/// Bytes of the weights of a model as they lie on a device; other tensors of its files are not loaded.
pub fn weight_bytes(config: &LlamaConfig, source: &impl TensorSource) -> u64 {
    tensors(config).filter_map(|id| source.info(&id.name()).map(TensorInfo::device_bytes)).sum()
}

/// A number of bytes for a person.
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} KB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show_bytes(98_362_432), "98 MB");
        assert_eq!(show_bytes(40_100_000_000), "40.1 GB");
    }
}
