//! From the blocks of a file to packed rows, and the reference that widens those.
//!
//! The blocks are ggml's (`ggml-common.h`, `dequantize_row_*` in `ggml-quants.c`).

use half::{bf16, f16};

use super::{Format, SUPER, Scale, UNIT, fp8::decode_e4m3, offset};

/// Packs one row from its encoding in a file (little-endian, GGUF blocks; fp8 with the scale of the
/// row behind it) into `out`, which has [`Format::row_words`] words.
///
/// # Panics
/// If the lengths do not fit `format` and `cols`.
pub fn pack_row(format: Format, cols: usize, file: &[u8], out: &mut [u32]) {
    assert_eq!(
        Some(file.len()),
        format.file_row_bytes(cols),
        "pack_row: {} bytes for {cols} weights in {}",
        file.len(),
        format.name()
    );
    assert_eq!(out.len(), format.row_words(cols), "pack_row: output words");
    out.fill(0);
    let units = cols.div_ceil(UNIT);
    let (quants, rest) = out.split_at_mut(format.high_at(units));
    let (high, scales) = rest.split_at_mut(format.scales_at(units) - format.high_at(units));
    let quants: &mut [u8] = bytemuck::cast_slice_mut(quants);
    let scale_bytes: &mut [u8] = bytemuck::cast_slice_mut(scales);
    let (_, block_size) = format.file_block();
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => quants[..file.len()].copy_from_slice(file),
        Format::Fp8 => {
            quants[..cols].copy_from_slice(&file[..cols]);
            scale_bytes[..4].copy_from_slice(&file[cols..]);
        }
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
            let head = block_size - 4 * format.unit_words();
            for (unit, block) in file.chunks_exact(block_size).enumerate() {
                let size = 4 * format.unit_words();
                quants[unit * size..][..size].copy_from_slice(&block[head..]);
                scale_bytes[unit * head..][..head].copy_from_slice(&block[..head]);
            }
        }
        Format::Q5_0 | Format::Q5_1 => {
            let head = block_size - 20;
            for (unit, block) in file.chunks_exact(block_size).enumerate() {
                quants[unit * 16..][..16].copy_from_slice(&block[head + 4..]);
                high[unit] = word(&block[head..]);
                scale_bytes[unit * head..][..head].copy_from_slice(&block[..head]);
            }
        }
        Format::Q4K | Format::Q5K => {
            for (at, block) in file.chunks_exact(block_size).enumerate() {
                scales[at * 4..][..4].copy_from_slice(&k_scales(block));
                let nibbles = &block[block_size - 128..];
                for (k, quants) in quants[at * 128..][..128].chunks_exact_mut(16).enumerate() {
                    let pair = &nibbles[k / 2 * 32..][..32];
                    unit_nibbles(quants, |j| pair[j] >> (4 * (k % 2)));
                }
                if format == Format::Q5K {
                    let bits = &block[16..48];
                    for (k, high) in high[at * SUPER..][..SUPER].iter_mut().enumerate() {
                        *high = (0..UNIT).fold(0, |all, j| all | u32::from((bits[j] >> k) & 1) << j);
                    }
                }
            }
        }
        Format::Q6K => {
            let blocks = file.len() / block_size;
            for (at, block) in file.chunks_exact(block_size).enumerate() {
                for (k, quants) in quants[at * 128..][..128].chunks_exact_mut(16).enumerate() {
                    let nibbles = &block[k / 4 * 64 + k % 2 * 32..][..32];
                    unit_nibbles(quants, |j| nibbles[j] >> (4 * (k % 4 / 2)));
                    let bits = &block[128 + k / 4 * 32..][..32];
                    for (half, high) in high[(at * SUPER + k) * 2..][..2].iter_mut().enumerate() {
                        let two = |j: usize| u32::from((bits[16 * half + j] >> (2 * (k % 4))) & 3);
                        *high = (0..16).fold(0, |all, j| all | two(j) << (2 * j));
                    }
                }
                scale_bytes[at * 16..][..16].copy_from_slice(&block[192..208]);
                scale_bytes[blocks * 16 + at * 2..][..2].copy_from_slice(&block[208..]);
            }
        }
    }
}

/// Fills the 16 bytes of a unit from its 32 weights, of which the low four bits count.
fn unit_nibbles(to: &mut [u8], weight: impl Fn(usize) -> u8) {
    for (j, to) in to.iter_mut().enumerate() {
        *to = (weight(j) & 15) | weight(16 + j) << 4;
    }
}

/// The four words of scales of a super-block, from its first 16 bytes in a file: `d`, `dmin`, then
/// scales and minima in six bits each, whose parts `get_scale_min_k4` of ggml puts together.
fn k_scales(block: &[u8]) -> [u32; 4] {
    let six = &block[4..16];
    let mut words = [word(block), 0, 0, 0];
    for k in 0..SUPER {
        let (scale, min) = if k < 4 {
            (six[k] & 63, six[k + 4] & 63)
        } else {
            ((six[k + 4] & 15) | (six[k - 4] >> 6) << 4, (six[k + 4] >> 4) | (six[k] >> 6) << 4)
        };
        let (scale, min) = (u32::from(scale), u32::from(min));
        words[1] |= (scale & 15) << (4 * k);
        words[2] |= (min & 15) << (4 * k);
        words[3] |= (scale >> 4) << (2 * k) | (min >> 4) << (16 + 2 * k);
    }
    words
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Widens one packed row to f32: the reference that the CPU body and the WGSL reader are held to.
pub fn unpack_row(format: Format, cols: usize, words: &[u32], out: &mut [f32]) {
    let units = cols.div_ceil(UNIT);
    let high = &words[format.high_at(units)..];
    for (col, value) in out.iter_mut().enumerate().take(cols) {
        let (unit, j) = (col / UNIT, col % UNIT);
        let byte = |i: usize| (words[i / 4] >> (8 * (i % 4))) as u8;
        let half = |i: usize| (words[i / 2] >> (16 * (i % 2))) as u16;
        let nibble = || i32::from((byte(unit * 16 + j % 16) >> (4 * (j / 16))) & 15);
        let Scale { d, m } = Scale::read(format, units, words, unit);
        let d = d[j / 16];
        *value = match format {
            Format::F32 => f32::from_bits(words[col]),
            Format::F16 => f16::from_bits(half(col)).to_f32(),
            Format::Bf16 => bf16::from_bits(half(col)).to_f32(),
            Format::Q8_0 => d * f32::from(byte(col) as i8),
            Format::Fp8 => d * decode_e4m3(byte(col)),
            Format::Q4_0 => d * (nibble() - offset(format)) as f32,
            Format::Q4_1 | Format::Q4K => d * nibble() as f32 + m,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => {
                let q = nibble() | (((high[unit] >> j) & 1) as i32) << 4;
                match format {
                    Format::Q5_0 => d * (q - offset(format)) as f32,
                    _ => d * q as f32 + m,
                }
            }
            Format::Q6K => {
                let two = (high[2 * unit + j / 16] >> (2 * (j % 16))) & 3;
                d * (nibble() + ((two as i32) << 4) - offset(format)) as f32
            }
        };
    }
}

/// f16 to f32 without branches or a call, so that loops over it vectorise: a multiplication moves
/// the exponent to f32's bias and makes subnormals right; infinities and NaNs get their exponent.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}
