//! Product of many tokens with packed rows, for processors with vectors.
//!
//! A vector has a token in each lane. `x` is transposed once a product. Each weight is widened to f32 in the
//! cache and multiplied with up to [`Simd::VECTORS`] vectors of tokens at a time. `gemm` packs both sides again
//! for each block of rows, which took as long as the products of a small model. A few tokens that fill no
//! vector get dot products.

use std::{
    cell::{Cell, RefCell},
    marker::PhantomData,
};

use super::{MatmulArgs, cpu::widen_units};
use crate::{
    cpu::{self, Scattered, View},
    format::UNIT,
};

/// Rows of a tile.
pub const ROWS: usize = 6;
/// Rows of a task: whole tiles, and whole squares when sums are transposed.
pub const TASK_ROWS: usize = 8 * ROWS;
/// Most columns of a pass, so that a tile's rows stay in the first-level cache and a block of tokens in the
/// second-level one.
const PASS_COLS: usize = 768;

/// The vectors of a processor.
pub trait Simd {
    /// Tokens of a vector.
    const LANES: usize;
    /// Most vectors of a block: with [`ROWS`] rows their sums fill the registers.
    const VECTORS: usize;
    /// Most tokens that get dot products; more are faster as a partly filled vector.
    const MAX_REST: usize;

    /// Multiplies [`ROWS`] rows of `w`, `width` apart, with `x` `[cols, vectors * LANES]`. Writes the products to
    /// `sums` `[ROWS, vectors * LANES]`, or adds them.
    ///
    /// # Safety
    /// The processor has these vectors.
    unsafe fn products(vectors: usize, x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool);

    /// The same for one token: `sums` has [`ROWS`] of them.
    ///
    /// # Safety
    /// The processor has these vectors.
    unsafe fn dots(x: &[f32], w: &[f32], width: usize, sums: &mut [f32], add: bool);

    /// Copies each column of `from` to the slice that `to` gives for it. `size` is rows, at most
    /// [`LANES`](Self::LANES), and columns; rows are `stride` apart. A slice has at most as many elements; those
    /// after the last row are zero.
    ///
    /// # Safety
    /// The processor has these vectors.
    unsafe fn transpose<'a>(
        from: &[f32],
        stride: usize,
        size: [usize; 2],
        to: impl Fn(usize) -> &'a mut [f32],
    );
}

/// Tokens in blocks of up to [`Simd::VECTORS`] vectors. A block is `[cols, vectors of the block * LANES]`.
struct Blocks<S> {
    data: Vec<f32>,
    /// First vector of each block, and the end of the last one.
    starts: Vec<usize>,
    cols: usize,
    simd: PhantomData<S>,
}

impl<S: Simd> Blocks<S> {
    /// The first `tokens` rows of `x` `[.., cols]`, whose rows are contiguous.
    fn new(x: View<'_>, tokens: usize, cols: usize) -> Self {
        let vectors = tokens.div_ceil(S::LANES);
        let starts = starts(vectors, S::VECTORS);
        let mut data = TOKENS.take();
        data.resize(vectors * S::LANES * cols, 0.0);
        let to = Scattered::new(&mut data);
        cpu::for_each(vectors, |vector| {
            let block = starts.partition_point(|start| *start <= vector) - 1;
            let stride = (starts[block + 1] - starts[block]) * S::LANES;
            let first = starts[block] * S::LANES * cols + (vector - starts[block]) * S::LANES;
            let count = S::LANES.min(tokens - vector * S::LANES);
            let from = &x.data[x.first + vector * S::LANES * x.row_stride..];
            // SAFETY: each vector of tokens is written by one task; `product` runs where the processor has
            // the features.
            unsafe {
                S::transpose(from, x.row_stride, [count, cols], |col| {
                    to.slice(first + col * stride, S::LANES)
                })
            };
        });
        Self { data, starts, cols, simd: PhantomData }
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// A block's first vector, its number of vectors, and its tokens from column `col` on.
    fn block(&self, block: usize, col: usize) -> (usize, usize, &[f32]) {
        let (start, end) = (self.starts[block], self.starts[block + 1]);
        let stride = (end - start) * S::LANES;
        (start, end - start, &self.data[start * S::LANES * self.cols..][col * stride..self.cols * stride])
    }
}

/// First vector of each block, and the end of the last one. Blocks have at most `most` vectors and nearly equal
/// sizes.
pub fn starts(vectors: usize, most: usize) -> Vec<usize> {
    let blocks = vectors.div_ceil(most);
    (0..=blocks).map(|block| block * vectors / blocks.max(1)).collect()
}

thread_local! {
    /// Widened rows and sums of a task. They are kept, since clearing new ones took as long as widening.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// Transposed tokens. The thread that starts a product keeps them for the same reason.
    static TOKENS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Writes the product of all rows with all tokens of `x`, whose rows are contiguous, into one part's columns
/// of `out`.
///
/// # Panics
/// If a slice is too short.
///
/// # Safety
/// The processor has the vectors of `S`.
pub unsafe fn product<S: Simd + Sync>(x: View<'_>, words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    let rest = match args.tokens % S::LANES {
        rest if rest <= S::MAX_REST => rest,
        _ => 0,
    };
    let blocks = Blocks::<S>::new(x, args.tokens - rest, args.cols);
    cpu::for_each(args.rows.div_ceil(TASK_ROWS), |task| {
        SCRATCH.with_borrow_mut(|[wide, sums]| {
            let first = task * TASK_ROWS;
            let rows = first..args.rows.min(first + TASK_ROWS);
            // SAFETY: each task has rows, and so columns of the output, of its own; the processor has the
            // vectors by this function's contract.
            unsafe { rows_of(x, &blocks, words, out, args, rows, wide, sums) };
        });
    });
    TOKENS.set(blocks.data);
}

/// The products of `rows`.
///
/// # Safety
/// The processor has the vectors of `S`; no other thread may touch these columns of the output meanwhile.
#[allow(clippy::too_many_arguments, reason = "what a task shares with the others, and what is its own")]
unsafe fn rows_of<S: Simd>(
    x: View<'_>,
    blocks: &Blocks<S>,
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
    let whole = tokens.min(vectors * S::LANES);
    wide.resize(ROWS * width, 0.0);
    // `[blocks][TASK_ROWS][lanes of the block]`, and `[remaining tokens][TASK_ROWS]`.
    sums.resize(TASK_ROWS * (vectors * S::LANES + tokens - whole), 0.0);
    let (sums, rest) = sums.split_at_mut(TASK_ROWS * vectors * S::LANES);
    for unit in (0..units).step_by(pass_units) {
        let pass = pass_units.min(units - unit);
        let col = unit * UNIT;
        let pass_cols = (pass * UNIT).min(cols - col);
        // One tile's widened rows stay in the first-level cache until their last use.
        for (tile, first) in rows.clone().step_by(ROWS).enumerate() {
            // A partial tile multiplies leftover rows of an earlier one too; these sums are not read.
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
                let x = &x[..pass_cols * vectors * S::LANES];
                let size = ROWS * vectors * S::LANES;
                let sums = &mut sums[TASK_ROWS * start * S::LANES + tile * size..][..size];
                // SAFETY: by this function's contract.
                unsafe { S::products(vectors, x, wide, width, sums, unit > 0) };
            }
            for (token, sums) in (whole..tokens).zip(rest.chunks_exact_mut(TASK_ROWS)) {
                let x = &x.data[x.first + token * x.row_stride + col..][..pass_cols];
                // SAFETY: by this function's contract.
                unsafe { S::dots(x, wide, width, &mut sums[tile * ROWS..][..ROWS], unit > 0) };
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { store::<S>(sums, &blocks.starts, rest, whole, rows, out, args) };
}

/// Writes the sums of `rows` to the output. `sums` `[blocks][TASK_ROWS][lanes of the block]` has the first
/// `whole` tokens, `rest` `[tokens][TASK_ROWS]` the others.
///
/// # Safety
/// The processor has the vectors of `S`; no other thread may touch these columns of the output meanwhile.
pub unsafe fn store<S: Simd>(
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
        let sums = &sums[TASK_ROWS * start * S::LANES..][..TASK_ROWS * vectors * S::LANES];
        for vector in 0..vectors {
            let first = (start + vector) * S::LANES;
            for square in (0..rows.len()).step_by(S::LANES) {
                let count = S::LANES.min(rows.len() - square);
                let from = &sums[(square * vectors + vector) * S::LANES..];
                let lanes = S::LANES.min(whole - first);
                // SAFETY: by this function's contract.
                let to = |token: usize| unsafe { out.slice(at(first + token) + square, count) };
                // SAFETY: as above.
                unsafe { S::transpose(from, vectors * S::LANES, [count, lanes], to) };
            }
        }
    }
    for (token, sums) in (whole..args.tokens).zip(rest.chunks_exact(TASK_ROWS)) {
        // SAFETY: by this function's contract.
        unsafe { out.slice(at(token), rows.len()) }.copy_from_slice(&sums[..rows.len()]);
    }
}
