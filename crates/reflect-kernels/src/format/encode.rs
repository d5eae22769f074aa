//! From f32 to the blocks of a file. The small formats round as ggml's reference does
//! (`quantize_row_*_ref` in `ggml-quants.c`): to nearest, with the scale of the extreme value. The
//! k-quants search scales of least squared error for each block, then round these to their bits; a block
//! that was one of theirs already is found again ([`exact`]).

use half::{bf16, f16};

use super::{
    Format, SUPER, UNIT, exact, f16_bytes,
    fp8::{self, encode_e4m3},
};

/// Encodes one row of f32 as a file would hold it; fp8 with the scale of the row behind it. Returns
/// `None` where the format has blocks and the row is not whole blocks.
pub fn encode_row(format: Format, row: &[f32]) -> Option<Vec<u8>> {
    let mut file = Vec::with_capacity(format.file_row_bytes(row.len())?);
    match format {
        Format::F32 => file.extend(row.iter().flat_map(|v| v.to_le_bytes())),
        Format::F16 => file.extend(row.iter().flat_map(|&v| f16_bytes(v))),
        Format::Bf16 => file.extend(row.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        Format::Q8_0 => {
            for block in row.chunks_exact(UNIT) {
                let d = largest(block) / 127.0;
                let inverse = inverse(d);
                file.extend(f16_bytes(d));
                file.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
            }
        }
        Format::Q4_0 | Format::Q5_0 => {
            let half = if format == Format::Q4_0 { 8 } else { 16 };
            for block in row.chunks_exact(UNIT) {
                let extreme = block.iter().fold(0f32, |top, &v| if v.abs() > top.abs() { v } else { top });
                let d = extreme / -(half as f32);
                let inverse = inverse(d);
                let quant = |v: f32| ((v * inverse + half as f32 + 0.5) as i32).clamp(0, 2 * half - 1) as u8;
                file.extend(f16_bytes(d));
                small_quants(format, block, quant, &mut file);
            }
        }
        Format::Q4_1 | Format::Q5_1 => {
            let most = if format == Format::Q4_1 { 15 } else { 31 };
            for block in row.chunks_exact(UNIT) {
                let low = block.iter().copied().fold(f32::INFINITY, f32::min);
                let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let d = (high - low) / most as f32;
                let inverse = inverse(d);
                let quant = |v: f32| (((v - low) * inverse + 0.5) as i32).clamp(0, most) as u8;
                file.extend(f16_bytes(d));
                file.extend(f16_bytes(low));
                small_quants(format, block, quant, &mut file);
            }
        }
        Format::Q4K => row.chunks_exact(SUPER * UNIT).for_each(|block| super_block(block, 15, &mut file)),
        Format::Q5K => row.chunks_exact(SUPER * UNIT).for_each(|block| super_block(block, 31, &mut file)),
        Format::Q6K => row.chunks_exact(SUPER * UNIT).for_each(|block| six_bits(block, &mut file)),
        Format::Fp8 => {
            let d = largest(row) / fp8::MAX;
            let inverse = inverse(d);
            file.extend(row.iter().map(|v| encode_e4m3(v * inverse)));
            file.extend(d.to_le_bytes());
        }
    }
    Some(file)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |top, v| top.max(v.abs()))
}

/// The inverse of a scale, 0 for that of a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Nibbles of a small block, before them in five-bit formats the fifth bits.
fn small_quants(format: Format, block: &[f32], quant: impl Fn(f32) -> u8, file: &mut Vec<u8>) {
    let q: Vec<u8> = block.iter().map(|&v| quant(v)).collect();
    if format.high_words() > 0 {
        let bits = (0..UNIT).fold(0u32, |all, j| all | u32::from(q[j] >> 4) << j);
        file.extend(bits.to_le_bytes());
    }
    file.extend((0..16).map(|j| (q[j] & 15) | q[16 + j] << 4));
}

/// Scale, minimum and quants of 32 weights, `v ≈ scale q - min` with both positive, of least squared
/// error among a row of starting scales, each refined once by the line through its own quants.
fn fit_line(v: &[f32], most: u8) -> (f32, f32) {
    let low = v.iter().copied().fold(0f32, f32::min);
    let high = v.iter().copied().fold(0f32, f32::max);
    if high == low {
        return (0.0, 0.0);
    }
    let error = |scale: f32, min: f32| -> f32 {
        let inverse = inverse(scale);
        v.iter()
            .map(|&v| {
                let d = scale * quant(v, inverse, min, most) - min - v;
                d * d
            })
            .sum()
    };
    let start = ((high - low) / f32::from(most), -low);
    let mut best = (error(start.0, start.1), start);
    for step in -12..=12 {
        let guess = (f32::from(most) + 0.1 * step as f32) / (high - low);
        let (mut sq, mut sqq, mut sv, mut sqv) = (0f32, 0f32, 0f32, 0f32);
        for &v in v {
            let q = quant(v, guess, -low, most);
            sq += q;
            sqq += q * q;
            sv += v;
            sqv += q * v;
        }
        let n = v.len() as f32;
        let spread = n * sqq - sq * sq;
        if spread <= 0.0 {
            continue;
        }
        let (mut scale, mut min) = ((n * sqv - sq * sv) / spread, (sq * sqv - sqq * sv) / spread);
        if min < 0.0 {
            (scale, min) = (sqv / sqq, 0.0);
        }
        if scale > 0.0 {
            let found = error(scale, min);
            if found < best.0 {
                best = (found, (scale, min));
            }
        }
    }
    best.1
}

/// The quant of a value under `v ≈ scale q - min`, given the inverse of the scale.
fn quant(v: f32, inverse: f32, min: f32, most: u8) -> f32 {
    ((v + min) * inverse).round_ties_even().clamp(0.0, f32::from(most))
}

/// Scales, minima and quants of a super-block, of small squared error.
fn near_lines(block: &[f32], most: u8) -> exact::Lines {
    let lines: Vec<(f32, f32)> = block.chunks_exact(UNIT).map(|v| fit_line(v, most)).collect();
    let top = |pick: fn(&(f32, f32)) -> f32| f16::from_f32(lines.iter().map(pick).fold(0.0, f32::max) / 63.0);
    let (d, dmin) = (top(|line| line.0), top(|line| line.1));
    let sixths = |value: f32, unit: f16| (value * inverse(unit.to_f32())).round().clamp(0.0, 63.0) as u8;
    let scales = std::array::from_fn(|at| (sixths(lines[at].0, d), sixths(lines[at].1, dmin)));
    let quants = block.chunks_exact(UNIT).zip(scales).flat_map(|(v, (scale, min))| {
        let scale = inverse(d.to_f32() * f32::from(scale));
        let min = dmin.to_f32() * f32::from(min);
        v.iter().map(move |&v| quant(v, scale, min, most) as u8)
    });
    exact::Lines { d, dmin, scales, quants: quants.collect() }
}

/// A super-block of q4_k (`most` 15) or q5_k (31).
fn super_block(block: &[f32], most: u8, file: &mut Vec<u8>) {
    let exact::Lines { d, dmin, scales, quants: q } =
        exact::lines(block, most).unwrap_or_else(|| near_lines(block, most));

    file.extend(d.to_le_bytes());
    file.extend(dmin.to_le_bytes());
    let mut six = [0u8; 12];
    for (k, &(scale, min)) in scales.iter().enumerate() {
        if k < 4 {
            six[k] |= scale;
            six[k + 4] |= min;
        } else {
            six[k + 4] = (scale & 15) | min << 4;
            six[k - 4] |= scale >> 4 << 6;
            six[k] |= min >> 4 << 6;
        }
    }
    file.extend(six);

    if most > 15 {
        let bit = |k: usize, j: usize| (q[k * UNIT + j] >> 4) << k;
        file.extend((0..UNIT).map(|j| (0..SUPER).fold(0, |all, k| all | bit(k, j))));
    }
    for pair in q.chunks_exact(2 * UNIT) {
        file.extend((0..UNIT).map(|j| (pair[j] & 15) | pair[UNIT + j] << 4));
    }
}

/// A scale for 16 weights in -32..=31 of least squared error among a row of guesses.
fn fit_scale(v: &[f32]) -> f32 {
    let extreme = v.iter().fold(0f32, |top, &v| if v.abs() > top.abs() { v } else { top });
    let mut best = (0f32, 0f32);
    for step in -9..=9 {
        let guess = -(32.0 + 0.1 * step as f32) * inverse(extreme);
        let (mut sqq, mut sqv) = (0f32, 0f32);
        for &v in v {
            let q = signed_quant(v, guess);
            sqq += q * q;
            sqv += q * v;
        }
        // The squared error of the best scale for these quants is that of zeros less this gain.
        if sqq > 0.0 && sqv * sqv / sqq > best.0 {
            best = (sqv * sqv / sqq, sqv / sqq);
        }
    }
    best.1
}

fn signed_quant(v: f32, inverse: f32) -> f32 {
    (v * inverse).round_ties_even().clamp(-32.0, 31.0)
}

/// Scales and quants of a super-block of q6_k, of small squared error.
fn near_signed(block: &[f32]) -> exact::Signed {
    let fitted: Vec<f32> = block.chunks_exact(16).map(fit_scale).collect();
    let extreme = fitted.iter().fold(0f32, |top, &v| if v.abs() > top.abs() { v } else { top });
    let d = f16::from_f32(extreme / -128.0);
    let byte = |scale: f32| (scale * inverse(d.to_f32())).round().clamp(-128.0, 127.0) as i8;
    let scales = std::array::from_fn(|at| byte(fitted[at]));
    let quants = block.chunks_exact(16).zip(scales).flat_map(|(v, scale)| {
        let inverse = inverse(d.to_f32() * f32::from(scale));
        v.iter().map(move |&v| signed_quant(v, inverse) as i8)
    });
    exact::Signed { d, scales, quants: quants.collect() }
}

/// A super-block of q6_k.
fn six_bits(block: &[f32], file: &mut Vec<u8>) {
    let exact::Signed { d, scales, quants } = exact::signed(block).unwrap_or_else(|| near_signed(block));
    let q: Vec<u8> = quants.iter().map(|q| (q + 32) as u8).collect();
    for half in q.chunks_exact(128) {
        file.extend((0..64).map(|j| (half[j] & 15) | half[64 + j] << 4));
    }
    for half in q.chunks_exact(128) {
        file.extend((0..32).map(|j| (0..4).fold(0, |all, k| all | (half[32 * k + j] >> 4) << (2 * k))));
    }
    file.extend(scales.iter().map(|scale| *scale as u8));
    file.extend(d.to_le_bytes());
}
