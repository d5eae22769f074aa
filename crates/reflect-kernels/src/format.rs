//! Packed weight formats: how a weight matrix lies in device memory.
//!
//! A row of `cols` weights is cut into units of 32, the last one padded with zeros. The row holds
//! three planes, each padded to whole 16-byte vectors: the quants of all its units, the high bits of
//! formats with five or six bits, and the scales. Rows are self-contained, so matrices are stacked,
//! split and sharded by rows without touching a byte. The WGSL reader of the same layout is
//! `shaders/shared/weights.wgsl`.
//!
//! | format | quants of a unit | high bits of a unit | scales |
//! | --- | --- | --- | --- |
//! | f32, f16, bf16 | the numbers | | |
//! | q8_0 | 32 signed bytes | | f16 a unit |
//! | q4_0, q5_0 | nibbles | q5_0: one bit a weight | f16 a unit |
//! | q4_1, q5_1 | nibbles | q5_1: one bit a weight | f16 scale and offset a unit |
//! | q4_k, q5_k | nibbles | q5_k: one bit a weight | [`SUPER`] units: 16 bytes, see below |
//! | q6_k | nibbles | two bits a weight | a signed byte for each 16 weights, then f16 for each [`SUPER`] units |
//! | fp8 | 32 bytes, e4m3 | | f32 a row |
//!
//! Nibbles keep the order of GGUF's small blocks (ggml's `block_q4_0`, `block_q4_1` in
//! `ggml-common.h`): byte `j` of a unit has weight `j` in its low and weight `16 + j` in its high
//! half. The high bits of weight `j` stand at bit `j` of the unit's word, or for two bits at bit
//! `2 (j % 16)` of word `j / 16`. The 16 bytes of eight units of q4_k and q5_k are four words: f16
//! `d` and `dmin`; the low nibbles of the eight scales; those of the eight minima; and the two high
//! bits of each scale in the low and of each minimum in the high half.

use half::f16;

mod encode;
mod exact;
mod fp8;
mod pack;

pub use encode::encode_row;
pub use fp8::{decode_e4m3, encode_e4m3};
pub(crate) use pack::widen_f16;
pub use pack::{pack_row, unpack_row};

/// Weights in a unit, which is also the block of GGUF's small formats.
pub const UNIT: usize = 32;

/// Units in a super-block of the k-quants.
pub const SUPER: usize = 8;

/// Encoding of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// `w = d q`, q in -127..=127, d in f16.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// `w = d (q - 8)`, q in 0..=15, d in f16.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// `w = d q + m`, q in 0..=15, d and m in f16.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// `w = d (q - 16)`, q in 0..=31, d in f16.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// `w = d q + m`, q in 0..=31, d and m in f16.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// `w = (d s) q - dmin m`, q in 0..=15; s and m in 0..=63 of a unit, d and dmin in f16 of a super-block.
    #[serde(rename = "q4_k")]
    Q4K,
    /// As [`Q4K`](Self::Q4K) with q in 0..=31.
    #[serde(rename = "q5_k")]
    Q5K,
    /// `w = (d s) (q - 32)`, q in 0..=63; s a signed byte for 16 weights, d in f16 of a super-block.
    #[serde(rename = "q6_k")]
    Q6K,
    /// `w = d q`, q in e4m3 (Micikevicius et al. 2022, arXiv 2209.05433), d in f32 for a row.
    Fp8,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Fp8,
    ];

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Fp8 => "fp8",
        }
    }

    /// Place in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }

    /// 32-bit words of quants in a unit.
    pub fn unit_words(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Q8_0 | Self::Fp8 => 8,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q4K | Self::Q5K | Self::Q6K => 4,
        }
    }

    /// 32-bit words of high bits of a unit.
    pub fn high_words(self) -> usize {
        match self {
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 1,
            Self::Q6K => 2,
            _ => 0,
        }
    }

    /// 32-bit words of scales in a row of `units` units.
    pub fn scale_words(self, units: usize) -> usize {
        let supers = units.div_ceil(SUPER);
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => units.div_ceil(2),
            Self::Q4_1 | Self::Q5_1 => units,
            Self::Q4K | Self::Q5K => 4 * supers,
            Self::Q6K => 4 * supers + supers.div_ceil(2),
            Self::Fp8 => 1,
        }
    }

    /// Word of a packed row at which the high bits start; for formats without any, as the scales.
    pub fn high_at(self, units: usize) -> usize {
        units * self.unit_words()
    }

    /// Word of a packed row at which the scales start.
    pub fn scales_at(self, units: usize) -> usize {
        self.high_at(units) + (units * self.high_words()).next_multiple_of(4)
    }

    /// 32-bit words in a packed row of `cols` weights.
    pub fn row_words(self, cols: usize) -> usize {
        let units = cols.div_ceil(UNIT);
        (self.scales_at(units) + self.scale_words(units)).next_multiple_of(4)
    }

    /// Weights of a block in a file and its bytes.
    fn file_block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Fp8 => (1, 1),
        }
    }

    /// Weights that share a block, of which the columns of a matrix must be a multiple; 1 for
    /// formats without blocks.
    pub fn block(self) -> usize {
        self.file_block().0
    }

    /// Bytes of a row of `cols` weights in a GGUF or safetensors file, or `None` where the format
    /// has blocks and `cols` is no multiple of theirs, or the number overflows. A row of fp8 is followed by
    /// its scale in f32, which files keep in a tensor of its own.
    pub fn file_row_bytes(self, cols: usize) -> Option<usize> {
        let (weights, bytes) = self.file_block();
        let scale = if self == Self::Fp8 { 4 } else { 0 };
        if !cols.is_multiple_of(weights) {
            return None;
        }
        (cols / weights).checked_mul(bytes)?.checked_add(scale)
    }
}

/// Scales and offset of one unit, `w = d q + m`: a scale for its first and one for its second 16
/// weights, equal but for q6_k.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub d: [f32; 2],
    pub m: f32,
}

impl Scale {
    /// Reads the scale of `unit` from a packed row; formats without scales give 1 and 0. Offsets
    /// inside the brackets of a format are folded into `m`, but for q6_k, whose quants are signed.
    #[inline(always)]
    pub fn read(format: Format, units: usize, words: &[u32], unit: usize) -> Self {
        let words = &words[format.scales_at(units)..];
        let half_word = |bits: u32| widen_f16(bits as u16);
        let same = |d: f32, m: f32| Self { d: [d; 2], m };
        match format {
            Format::F32 | Format::F16 | Format::Bf16 => same(1.0, 0.0),
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => {
                let d = half_word(words[unit / 2] >> (16 * (unit % 2)));
                same(d, -(offset(format) as f32) * d)
            }
            Format::Q4_1 | Format::Q5_1 => {
                let word = words[unit];
                same(half_word(word), half_word(word >> 16))
            }
            Format::Q4K | Format::Q5K => {
                let (block, k) = (&words[unit / SUPER * 4..][..4], unit % SUPER);
                let low = |word: u32| (word >> (4 * k)) & 15;
                let high = |at: usize| ((block[3] >> (at + 2 * k)) & 3) << 4;
                let (s, m) = (low(block[1]) | high(0), low(block[2]) | high(16));
                same(half_word(block[0]) * s as f32, -(half_word(block[0] >> 16) * m as f32))
            }
            Format::Q6K => {
                let (block, k) = (unit / SUPER, unit % SUPER);
                let pair = words[block * 4 + k / 2] >> (16 * (k % 2));
                let d = half_word(words[units.div_ceil(SUPER) * 4 + block / 2] >> (16 * (block % 2)));
                Self { d: [d * f32::from(pair as i8), d * f32::from((pair >> 8) as i8)], m: 0.0 }
            }
            Format::Fp8 => same(f32::from_bits(words[0]), 0.0),
        }
    }
}

/// What is subtracted from an unsigned quant to make it signed.
pub(crate) const fn offset(format: Format) -> i32 {
    match format {
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Q6K => 32,
        _ => 0,
    }
}

fn f16_bytes(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}
