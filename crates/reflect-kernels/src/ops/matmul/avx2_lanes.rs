//! Product of many tokens with packed rows, in AVX2 intrinsics.

use std::arch::x86_64::*;

use super::lanes::{ROWS, Simd};

/// Tokens of a vector.
const LANES: usize = 8;
/// Most vectors of a block: with [`ROWS`] rows, 12 vectors of sums, 2 of tokens and one of a weight.
const VECTORS: usize = 2;

/// Vectors of 8, where [`avx2::is_available`](super::avx2::is_available).
pub struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = LANES;
    const VECTORS: usize = VECTORS;
    const MAX_REST: usize = 5;

    unsafe fn products(vectors: usize, x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
        let products = if vectors == 1 { products::<1> } else { products::<VECTORS> };
        // SAFETY: by this function's contract.
        unsafe { products(x, w, width, sums, add) };
    }

    unsafe fn dots(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
        // SAFETY: by this function's contract.
        unsafe { dots(x, w, width, sums, add) };
    }

    unsafe fn transpose<'a>(
        from: &[f32],
        stride: usize,
        size: [usize; 2],
        to: impl Fn(usize) -> &'a mut [f32],
    ) {
        // SAFETY: by this function's contract.
        unsafe { transpose(from, stride, size, to) };
    }
}

/// [`Simd::products`] of `V` vectors.
#[target_feature(enable = "avx2,fma")]
fn products<const V: usize>(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
    let cols = x.len() / (V * LANES);
    assert!(cols <= width && w.len() >= ROWS * width && sums.len() >= ROWS * V * LANES);
    let at = |r: usize, v: usize| (r * V + v) * LANES;
    let mut lanes = [[_mm256_setzero_ps(); V]; ROWS];
    // SAFETY: all loads and stores lie inside the slices by the assertion above.
    unsafe {
        if add {
            for (r, row) in lanes.iter_mut().enumerate() {
                for (v, lane) in row.iter_mut().enumerate() {
                    *lane = _mm256_loadu_ps(sums.as_ptr().add(at(r, v)));
                }
            }
        }
        let mut xs = [_mm256_setzero_ps(); V];
        for k in 0..cols {
            for (v, x_of) in xs.iter_mut().enumerate() {
                *x_of = _mm256_loadu_ps(x.as_ptr().add((k * V + v) * LANES));
            }
            for (r, row) in lanes.iter_mut().enumerate() {
                let w = _mm256_broadcast_ss(&*w.as_ptr().add(r * width + k));
                for (lane, x) in row.iter_mut().zip(xs) {
                    *lane = _mm256_fmadd_ps(w, x, *lane);
                }
            }
        }
        for (r, row) in lanes.iter().enumerate() {
            for (v, lane) in row.iter().enumerate() {
                _mm256_storeu_ps(sums.as_mut_ptr().add(at(r, v)), *lane);
            }
        }
    }
}

/// [`Simd::dots`].
#[target_feature(enable = "avx2,fma")]
fn dots(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
    assert!(x.len() <= width && w.len() >= ROWS * width && sums.len() >= ROWS);
    let whole = x.len() / LANES * LANES;
    let mut lanes = [_mm256_setzero_ps(); ROWS];
    for k in (0..whole).step_by(LANES) {
        // SAFETY: whole vectors inside the slices, by the assertion above.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(k)) };
        for (r, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: as above.
            let w = unsafe { _mm256_loadu_ps(w.as_ptr().add(r * width + k)) };
            *lanes = _mm256_fmadd_ps(w, x, *lanes);
        }
    }
    for (r, (sum, lanes)) in sums.iter_mut().zip(lanes).enumerate() {
        let mut total = sum_of(lanes);
        for k in whole..x.len() {
            total += w[r * width + k] * x[k];
        }
        *sum = if add { *sum } else { 0.0 } + total;
    }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub fn sum_of(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// [`Simd::transpose`].
#[target_feature(enable = "avx2")]
fn transpose<'a>(from: &[f32], stride: usize, [rows, cols]: [usize; 2], to: impl Fn(usize) -> &'a mut [f32]) {
    assert!(rows <= LANES && (rows == 0 || cols == 0 || (rows - 1) * stride + cols <= from.len()));
    for first in (0..cols).step_by(LANES) {
        let count = LANES.min(cols - first);
        let mut square = [_mm256_setzero_ps(); LANES];
        for (r, row) in square.iter_mut().enumerate().take(rows) {
            let from = &from[r * stride + first..][..count];
            *row = match <&[f32; LANES]>::try_from(from) {
                // SAFETY: eight elements.
                Ok(from) => unsafe { _mm256_loadu_ps(from.as_ptr()) },
                Err(_) => {
                    let mut part = [0f32; LANES];
                    part[..count].copy_from_slice(from);
                    // SAFETY: eight elements.
                    unsafe { _mm256_loadu_ps(part.as_ptr()) }
                }
            };
        }
        let square = transposed(square);
        for (col, row) in square.iter().enumerate().take(count) {
            let to = to(first + col);
            match <&mut [f32; LANES]>::try_from(&mut *to) {
                // SAFETY: eight elements.
                Ok(to) => unsafe { _mm256_storeu_ps(to.as_mut_ptr(), *row) },
                Err(_) => {
                    let mut column = [0f32; LANES];
                    // SAFETY: eight elements.
                    unsafe { _mm256_storeu_ps(column.as_mut_ptr(), *row) };
                    to.copy_from_slice(&column[..to.len()]);
                }
            }
        }
    }
}

/// A square with rows and columns exchanged: pairs, then fours, then halves of registers change places.
#[inline]
#[target_feature(enable = "avx2")]
pub fn transposed(rows: [__m256; LANES]) -> [__m256; LANES] {
    let mut fours = rows;
    for i in (0..LANES).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        fours[i] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
        fours[i + 1] = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
        fours[i + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
        fours[i + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
    }
    // `fours[4 g + j]` holds, in half h, column 4 h + j of rows 4 g to 4 g + 3.
    let mut columns = rows;
    for j in 0..4 {
        columns[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
        columns[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
    }
    columns
}
