//! Product of many tokens with packed rows, in AVX-512 intrinsics.
//!
//! Lanes are tokens: `x` is transposed once a product, and each weight, widened to f32 and kept near, is
//! multiplied with up to 64 tokens at a time. `gemm` packs both sides anew for each block of rows, which took
//! as long as the products of a small model. A few tokens that fill no vector have dot products of their own.

use std::{
    arch::x86_64::*,
    cell::{Cell, RefCell},
};

use super::{MatmulArgs, avx2, cpu::widen_units};
use crate::{
    cpu::{self, Scattered, View},
    format::UNIT,
};

/// Tokens of a vector.
pub const LANES: usize = 16;
/// Most vectors of a block: with [`ROWS`] rows, 24 vectors of sums and 4 of tokens.
const VECTORS: usize = 4;
/// Rows of a tile.
pub const ROWS: usize = 6;
/// Rows of a task: whole tiles, and whole squares when sums are transposed.
pub const TASK_ROWS: usize = 8 * ROWS;
/// Most columns of a pass, so that a tile's rows stay in the first-level cache and a block of tokens in the
/// second-level one.
const PASS_COLS: usize = 768;
/// Most tokens that get dot products: more are faster as a vector that is not full.
const MAX_REST: usize = 8;

/// Whether the processor has what [`product`] needs.
pub fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && avx2::is_available()
}

/// Tokens in blocks of up to [`VECTORS`] vectors, each block `[cols, its vectors * LANES]`.
struct Blocks {
    data: Vec<f32>,
    /// First vector of each block, and where the last one ends.
    starts: Vec<usize>,
    cols: usize,
}

impl Blocks {
    /// The first `tokens` rows of `x` `[.., cols]`, whose rows are contiguous.
    fn new(x: View<'_>, tokens: usize, cols: usize) -> Self {
        let vectors = tokens.div_ceil(LANES);
        let starts = starts(vectors, VECTORS);
        let mut data = TOKENS.take();
        data.resize(vectors * LANES * cols, 0.0);
        let to = Scattered::new(&mut data);
        cpu::for_each(vectors, |vector| {
            let block = starts.partition_point(|start| *start <= vector) - 1;
            let stride = (starts[block + 1] - starts[block]) * LANES;
            let first = starts[block] * LANES * cols + (vector - starts[block]) * LANES;
            let count = LANES.min(tokens - vector * LANES);
            let from = &x.data[x.first + vector * LANES * x.row_stride..];
            // SAFETY: each vector of tokens is written by one task; `product` runs where the processor has
            // the features.
            unsafe {
                transpose(from, x.row_stride, [count, cols], |col| to.slice(first + col * stride, LANES))
            };
        });
        Self { data, starts, cols }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// A block's first vector, how many it has, and its tokens from column `col`.
    fn block(&self, block: usize, col: usize) -> (usize, usize, &[f32]) {
        let (start, end) = (self.starts[block], self.starts[block + 1]);
        let stride = (end - start) * LANES;
        (start, end - start, &self.data[start * LANES * self.cols..][col * stride..self.cols * stride])
    }
}

/// First vector of each block of at most `most`, as equal as can be, and where the last one ends.
pub fn starts(vectors: usize, most: usize) -> Vec<usize> {
    let blocks = vectors.div_ceil(most);
    (0..=blocks).map(|block| block * vectors / blocks.max(1)).collect()
}

thread_local! {
    /// Widened rows and sums of a task: kept, since clearing them anew took as long as widening.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// Transposed tokens, kept for the same reason by the thread that starts a product.
    static TOKENS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Writes the product of all rows with all tokens of `x`, whose rows are contiguous, into one part's columns
/// of `out`.
///
/// # Panics
/// If a slice is too short.
pub fn product(x: View<'_>, words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    let rest = match args.tokens % LANES {
        rest if rest <= MAX_REST => rest,
        _ => 0,
    };
    let blocks = Blocks::new(x, args.tokens - rest, args.cols);
    cpu::for_each(args.rows.div_ceil(TASK_ROWS), |task| {
        SCRATCH.with_borrow_mut(|[wide, sums]| {
            let first = task * TASK_ROWS;
            let rows = first..args.rows.min(first + TASK_ROWS);
            // SAFETY: each task has rows, and so columns of the output, of its own; the caller of `product`
            // has asked for the features.
            unsafe { rows_of(x, &blocks, words, out, args, rows, wide, sums) };
        });
    });
    TOKENS.set(blocks.data);
}

/// The products of `rows`.
///
/// # Safety
/// No other thread may touch these columns of the output meanwhile.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments, reason = "what a task shares with the others, and what is its own")]
unsafe fn rows_of(
    x: View<'_>,
    blocks: &Blocks,
    words: &[u32],
    out: Scattered<'_>,
    args: &MatmulArgs,
    rows: std::ops::Range<usize>,
    wide: &mut Vec<f32>,
    sums: &mut Vec<f32>,
) {
    let MatmulArgs { format, tokens, cols, .. } = *args;
    let (units, row_words) = (cols.div_ceil(UNIT), format.row_words(cols));
    let pass_units = units.div_ceil(cols.div_ceil(PASS_COLS));
    let width = pass_units * UNIT;
    let vectors = blocks.starts[blocks.len()];
    let whole = tokens.min(vectors * LANES);
    wide.resize(ROWS * width, 0.0);
    // `[blocks][TASK_ROWS][lanes of the block]`, and `[tokens that are left][TASK_ROWS]`.
    sums.resize(TASK_ROWS * (vectors * LANES + tokens - whole), 0.0);
    let (sums, rest) = sums.split_at_mut(TASK_ROWS * vectors * LANES);
    for unit in (0..units).step_by(pass_units) {
        let pass = pass_units.min(units - unit);
        let col = unit * UNIT;
        let pass_cols = (pass * UNIT).min(cols - col);
        // One tile's rows at a time stay in the first-level cache from where they are widened to their last use.
        for (tile, first) in rows.clone().step_by(ROWS).enumerate() {
            // A tile of fewer rows multiplies rows of an earlier one once more: nobody reads the sums.
            for (row, wide) in (first..rows.end).zip(wide.chunks_exact_mut(width)) {
                widen_units(
                    format,
                    &words[row * row_words..][..row_words],
                    units,
                    unit,
                    &mut wide[..pass * UNIT],
                );
            }
            for block in 0..blocks.len() {
                let (start, vectors, x) = blocks.block(block, col);
                let x = &x[..pass_cols * vectors * LANES];
                let products = match vectors {
                    1 => products::<1>,
                    2 => products::<2>,
                    3 => products::<3>,
                    _ => products::<VECTORS>,
                };
                let size = ROWS * vectors * LANES;
                let sums = &mut sums[TASK_ROWS * start * LANES + tile * size..][..size];
                products(x, wide, width, sums, unit > 0);
            }
            for (token, sums) in (whole..tokens).zip(rest.chunks_exact_mut(TASK_ROWS)) {
                let x = &x.data[x.first + token * x.row_stride + col..][..pass_cols];
                dots(x, wide, width, &mut sums[tile * ROWS..][..ROWS], unit > 0);
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { store(sums, &blocks.starts, rest, whole, rows, out, args) };
}

/// Writes the sums of `rows` where they belong: `sums` `[blocks][TASK_ROWS][lanes of the block]` of the first
/// `whole` tokens, `rest` `[tokens][TASK_ROWS]` of the others.
///
/// # Safety
/// No other thread may touch these columns of the output meanwhile.
#[target_feature(enable = "avx512f")]
pub unsafe fn store(
    sums: &[f32],
    starts: &[usize],
    rest: &[f32],
    whole: usize,
    rows: std::ops::Range<usize>,
    out: Scattered<'_>,
    args: &MatmulArgs,
) {
    let at = |token: usize| token * args.out_cols + args.out_first + rows.start;
    for block in starts.windows(2) {
        let (start, vectors) = (block[0], block[1] - block[0]);
        let sums = &sums[TASK_ROWS * start * LANES..][..TASK_ROWS * vectors * LANES];
        for vector in 0..vectors {
            let first = (start + vector) * LANES;
            for square in (0..rows.len()).step_by(LANES) {
                let count = LANES.min(rows.len() - square);
                let from = &sums[(square * vectors + vector) * LANES..];
                let lanes = LANES.min(whole - first);
                // SAFETY: by this function's contract.
                let to = |token: usize| unsafe { out.slice(at(first + token) + square, count) };
                transpose(from, vectors * LANES, [count, lanes], to);
            }
        }
    }
    for (token, sums) in (whole..args.tokens).zip(rest.chunks_exact(TASK_ROWS)) {
        // SAFETY: by this function's contract.
        unsafe { out.slice(at(token), rows.len()) }.copy_from_slice(&sums[..rows.len()]);
    }
}

/// Writes `sums` `[ROWS, V * LANES]`, or adds to them, the products of [`ROWS`] rows of `w`, `width` apart,
/// with `x` `[cols, V * LANES]`.
#[target_feature(enable = "avx512f")]
fn products<const V: usize>(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
    let cols = x.len() / (V * LANES);
    assert!(cols <= width && w.len() >= ROWS * width && sums.len() >= ROWS * V * LANES);
    let at = |r: usize, v: usize| (r * V + v) * LANES;
    let mut lanes = [[_mm512_setzero_ps(); V]; ROWS];
    // SAFETY: all loads and stores lie inside the slices by the assertion above.
    unsafe {
        if add {
            for (r, row) in lanes.iter_mut().enumerate() {
                for (v, lane) in row.iter_mut().enumerate() {
                    *lane = _mm512_loadu_ps(sums.as_ptr().add(at(r, v)));
                }
            }
        }
        let mut xs = [_mm512_setzero_ps(); V];
        for k in 0..cols {
            for (v, x_of) in xs.iter_mut().enumerate() {
                *x_of = _mm512_loadu_ps(x.as_ptr().add((k * V + v) * LANES));
            }
            for (r, row) in lanes.iter_mut().enumerate() {
                let w = _mm512_set1_ps(*w.as_ptr().add(r * width + k));
                for (lane, x) in row.iter_mut().zip(xs) {
                    *lane = _mm512_fmadd_ps(w, x, *lane);
                }
            }
        }
        for (r, row) in lanes.iter().enumerate() {
            for (v, lane) in row.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(at(r, v)), *lane);
            }
        }
    }
}

/// The same for one token: `sums` has [`ROWS`] of them.
#[target_feature(enable = "avx512f")]
fn dots(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool) {
    assert!(x.len() <= width && w.len() >= ROWS * width && sums.len() >= ROWS);
    let mut lanes = [_mm512_setzero_ps(); ROWS];
    for k in (0..x.len()).step_by(LANES) {
        let mask = mask(x.len() - k);
        // SAFETY: the mask keeps both inside their slices.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(k)) };
        for (r, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: as above.
            let w = unsafe { _mm512_maskz_loadu_ps(mask, w.as_ptr().add(r * width + k)) };
            *lanes = _mm512_fmadd_ps(w, x, *lanes);
        }
    }
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        *sum = if add { *sum } else { 0.0 } + _mm512_reduce_add_ps(lanes);
    }
}

/// The first `left` lanes.
pub fn mask(left: usize) -> u16 {
    if left >= LANES { u16::MAX } else { (1 << left) - 1 }
}

/// Gives each column of the first `rows` rows of `from`, `stride` apart, to `to`: as many elements as its
/// slices have, zeros after the rows.
#[target_feature(enable = "avx512f")]
fn transpose<'a>(from: &[f32], stride: usize, [rows, cols]: [usize; 2], to: impl Fn(usize) -> &'a mut [f32]) {
    assert!(rows <= LANES && (rows == 0 || cols == 0 || (rows - 1) * stride + cols <= from.len()));
    for first in (0..cols).step_by(LANES) {
        let count = LANES.min(cols - first);
        let mut square = [_mm512_setzero_ps(); LANES];
        for (r, row) in square.iter_mut().enumerate().take(rows) {
            // SAFETY: inside the row by the assertion above.
            *row = unsafe { _mm512_maskz_loadu_ps(mask(count), from.as_ptr().add(r * stride + first)) };
        }
        let square = transposed(square);
        for (col, row) in square.iter().enumerate().take(count) {
            let to = to(first + col);
            // SAFETY: the mask keeps it inside the slice.
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(to.len()), *row) };
        }
    }
}

/// A square with rows and columns exchanged: pairs, then fours, then quarters of registers change places.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        for j in 0..2 {
            let (a, b) = (_mm512_castps_pd(pairs[i + j]), _mm512_castps_pd(pairs[i + j + 2]));
            fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // `fours[4 g + j]` holds, in quarter q, column 4 q + j of rows 4 g to 4 g + 3.
    let mut columns = rows;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (ab_even, ab_odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
        columns[4 + j] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
        columns[8 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
        columns[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
    }
    columns
}
