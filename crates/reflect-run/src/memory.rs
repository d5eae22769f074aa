//! How much memory a model needs, and whether this machine has it: asked before anything is loaded.

use anyhow::Result;
use reflect_kernels::device::{Memory, OpenDevice};
use reflect_llm::{
    LlamaConfig,
    need::{Need, show_bytes},
};

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

/// Refuses a run that does not fit.
///
/// # Errors
/// One sentence with the numbers.
pub fn check_run(need: &Need, device: &OpenDevice, limit: Option<u64>) -> Result<()> {
    let what = || {
        format!(
            "the model needs {} ({} of weights, {} of cache, {} of scratch)",
            show_bytes(need.total()),
            show_bytes(need.weights),
            show_bytes(need.cache),
            show_bytes(need.scratch)
        )
    };
    check(need.total(), what, "a smaller model or format, or a shorter --context", device, limit)
}

/// Who says how much memory a device has free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `--memory`.
    Given,
    /// The system, or the driver.
    Measured,
    /// Nobody: it is all that the card has.
    Assumed,
    Unknown,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Given => "given",
            Self::Measured => "measured",
            Self::Assumed => "assumed",
            Self::Unknown => "unknown",
        })
    }
}

/// Bytes that each device may hold: what was said for it, else what is free, of which devices in host memory and
/// several on one card have a share each.
pub fn free_memory(devices: &[OpenDevice], said: &[u64]) -> Vec<(Option<u64>, Source)> {
    let free = devices.iter().enumerate().map(|(at, device)| {
        if let Some(said) = said.get(at) {
            return (Some(*said), Source::Given);
        }
        let (free, source) = free_on(device);
        let sharing = devices.iter().filter(|other| device.shares_memory(other)).count() as u64;
        (free.map(|free| free / sharing), source)
    });
    free.collect()
}

fn free_on(device: &OpenDevice) -> (Option<u64>, Source) {
    let free = match (device.in_host_memory(), device.memory()) {
        (true, _) => available().map(|bytes| (bytes, Source::Measured)),
        (false, Some(Memory { bytes, measured: true })) => Some((bytes, Source::Measured)),
        (false, Some(Memory { bytes, measured: false })) => Some((bytes, Source::Assumed)),
        (false, None) => None,
    };
    free.map_or((None, Source::Unknown), |(bytes, source)| (Some(bytes), source))
}

/// What training takes, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct TrainingNeed {
    /// With gradients and moments where they are trained.
    pub weights: u64,
    /// Numbers that are trained.
    pub trained: u64,
    /// With the program itself.
    pub activations: u64,
}

impl TrainingNeed {
    /// The need of `frozen` bytes of weights, `trained` numbers with their gradients and two moments, and
    /// what `lanes` micro-batches of `rows` rows side by side keep for the way back: every block's
    /// activations, or with `recompute` one block's and the inputs of all.
    pub fn of(
        config: &LlamaConfig,
        frozen: u64,
        trained: u64,
        rows: usize,
        recompute: bool,
        lanes: usize,
    ) -> Self {
        // A number with its gradient and AdamW's two moments, in f32.
        const TRAINED: u64 = 16;
        // The program itself, its tokenizer and the examples.
        const PROGRAM: u64 = 28_000_000;
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
        // What a block has in hand on its way back, and what one keeps until then.
        let block = 6 * hidden + 2 * heads * config.head_dim + 5 * ffn;
        let attention = config.num_attention_heads + config.num_key_value_heads;
        let kept = match recompute {
            true => hidden,
            false => 5 * hidden + 2 * attention * config.head_dim + 3 * ffn + config.num_attention_heads,
        };
        let blocks = block + config.num_hidden_layers * kept;
        // Logits and their gradient, in chunks of the vocabulary.
        let head = 2 * config.vocab_size.min(HEAD_ROWS);
        // Side by side each has gradients of its own beside the sum.
        let own = if lanes > 1 { trained.saturating_mul(4 * lanes as u64) } else { 0 };
        // What is far too much must not come out as little.
        let activations = [rows, blocks + head, lanes, 4].map(|factor| factor as u64);
        Self {
            weights: frozen.saturating_add(trained.saturating_mul(TRAINED)).saturating_add(own),
            trained,
            activations: activations.into_iter().fold(1, u64::saturating_mul).saturating_add(PROGRAM),
        }
    }

    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.activations)
    }

    /// Refuses training that does not fit.
    ///
    /// # Errors
    /// One sentence with the numbers.
    pub fn check(&self, device: &OpenDevice, limit: Option<u64>) -> Result<()> {
        let total = self.total();
        let what = || {
            format!(
                "training needs {} ({} of weights, gradients and moments, {} of activations)",
                show_bytes(total),
                show_bytes(self.weights),
                show_bytes(self.activations)
            )
        };
        check(total, what, "--recompute, fewer --micro-tokens, or --method qlora", device, limit)
    }
}

/// Refuses what does not fit `limit`, or else the memory that is free. Where nobody knows how much is, it is not
/// checked.
fn check(
    total: u64,
    what: impl Fn() -> String,
    way: &str,
    device: &OpenDevice,
    limit: Option<u64>,
) -> Result<()> {
    let (free, has) = match limit {
        Some(limit) => (Some(limit), "--memory allows".to_owned()),
        None if device.in_host_memory() => (free_on(device).0, "this machine has free".to_owned()),
        None => {
            let (free, source) = free_on(device);
            (
                free,
                format!("{} has {}", device.name, if source == Source::Measured { "free" } else { "only" }),
            )
        }
    };
    let Some(free) = free.filter(|free| *free < total) else {
        return Ok(());
    };
    Err(input(format!("{} and {has} {}; use {way}", what(), show_bytes(free))))
}

/// Bytes that can be written to the disk that holds `path`, or `None` where the system does not say.
pub fn free_disk(path: &std::path::Path) -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::ffi::OsStrExt;

        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: all bits zero is a value of this plain structure.
        let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends in a zero byte and the structure is ours.
        let failed = unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0;
        (!failed).then(|| found.f_bavail * found.f_frsize)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        let _ = path;
        None
    }
}

/// Memory that the system can give, or `None` where it does not say.
fn available() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process has had at once, or `None` where the system does not say.
pub fn peak() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// Makes [`peak`] count from now on, where the system can (Linux, proc_pid_clear_refs(5)).
pub fn forget_peak() {
    // Elsewhere the peak also counts what came before.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The bytes on the line of `file` that starts with `key` and counts KiB.
fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
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
}
