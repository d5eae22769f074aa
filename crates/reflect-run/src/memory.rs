//! How much memory a model needs, and whether this machine has it: asked before anything is loaded.

use anyhow::Result;
use reflect_kernels::{Format, KvFormat, device::OpenDevice};
use reflect_llm::{Engine, LlamaConfig, weights::TensorSource};

use crate::{input, train::HEAD_ROWS};

/// Makes freed memory stay with the process. A training step frees and asks for the same gigabytes
/// over and over; given back to the system each time, its pages are zeroed and mapped anew, which
/// took a third of the time of a step.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these only set thresholds of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// What a run takes, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    pub weights: u64,
    pub cache: u64,
    /// Activations of the largest step, and the piece of the file being packed.
    pub scratch: u64,
    /// Whether weights come with gradients and moments, and scratch is what the way back needs.
    pub training: bool,
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
        const STAGING: u64 = 64 << 20;
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        let row = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size;
        let floats = rows * row + logit_rows * config.vocab_size;
        Self {
            weights: weight_bytes(source),
            cache: Engine::cache_bytes(config, positions, format),
            scratch: 4 * floats as u64 + STAGING,
            training: false,
        }
    }

    /// The need of training: `frozen` bytes of weights, `trained` numbers with their gradients and two
    /// moments, and what steps of `rows` rows keep for the way back: every block's activations, or with
    /// `recompute` one block's and the inputs of all.
    pub fn of_training(
        config: &LlamaConfig,
        frozen: u64,
        trained: u64,
        rows: usize,
        recompute: bool,
    ) -> Self {
        // A number with its gradient and AdamW's two moments, in f32.
        const TRAINED: u64 = 16;
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        let block = 6 * config.hidden_size + 2 * heads * config.head_dim + 5 * config.intermediate_size;
        let blocks = match recompute {
            true => block + config.num_hidden_layers * config.hidden_size,
            false => config.num_hidden_layers * block,
        };
        // Logits and their gradient, in chunks of the vocabulary.
        let head = 2 * config.vocab_size.min(HEAD_ROWS);
        let weights = frozen + TRAINED * trained;
        Self { weights, cache: 0, scratch: 4 * (rows * (blocks + head)) as u64, training: true }
    }

    fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }

    /// Refuses what does not fit `limit`, or else the memory that the system says is free. Nothing
    /// is known of the memory of a GPU, so without a limit it is not checked there.
    ///
    /// # Errors
    /// One sentence with the numbers.
    pub fn check(&self, device: &OpenDevice, limit: Option<u64>) -> Result<()> {
        let in_host_memory = device.profile.is_none_or(|profile| profile.software);
        let free = limit.or_else(|| in_host_memory.then(available).flatten());
        let Some(free) = free.filter(|free| *free < self.total()) else {
            return Ok(());
        };
        let parts = match self.training {
            true => format!(
                "training needs {} ({} of weights, gradients and moments, {} of activations)",
                show(self.total()),
                show(self.weights),
                show(self.scratch)
            ),
            false => format!(
                "the model needs {} ({} of weights, {} of cache, {} of scratch)",
                show(self.total()),
                show(self.weights),
                show(self.cache),
                show(self.scratch)
            ),
        };
        let way = match self.training {
            true => "--recompute, fewer --micro-tokens, or --method qlora",
            false => "a smaller model or format, or a shorter --context",
        };
        let has = if limit.is_some() { "--memory allows" } else { "this machine has free" };
        Err(input(format!("{parts} and {has} {}; use {way}", show(free))))
    }
}

/// Bytes of all weights as they lie on a device.
pub fn weight_bytes(source: &impl TensorSource) -> u64 {
    let infos = source.names().filter_map(|name| source.info(name));
    infos.map(|info| 4 * (info.rows() * Format::from(info.dtype).row_words(info.cols())) as u64).sum()
}

/// Memory that the system can give, or `None` where it does not say.
fn available() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process has had at once, or `None` where the system does not say.
pub fn peak() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// The bytes on the line of `file` that starts with `key` and counts KiB.
fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A number of bytes for a person.
pub fn show(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} KB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Reads `24GiB`, `512MB`, `24G` or a plain number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no size; write it as 24GiB or 512MB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        _ => return Err(bad()),
    };
    let count: f64 = digits.parse().map_err(|_| bad())?;
    if count.is_finite() && count > 0.0 { Ok((count * unit) as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse_bytes("24GiB"), Ok(24 << 30));
        assert_eq!(parse_bytes("1.5g"), Ok(3 << 29));
        assert_eq!(parse_bytes("512MB"), Ok(512_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        for bad in ["", "GiB", "-1G", "0", "12 apples", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show(98_362_432), "98 MB");
        assert_eq!(show(40_100_000_000), "40.1 GB");
    }
}
