//! Many tokens: lanes are tokens, as in [`lanes`](super::super::lanes), and a few that fill no vector have dot
//! products of their own.

use std::cell::{Cell, RefCell};

use super::{
    super::{
        MatmulArgs,
        lanes::{self, ROWS, TASK_ROWS},
    },
    Ints, Quantized, Rows, Units, WORDS, has_offset,
};
use crate::{
    cpu::{self, Scattered, View},
    format::UNIT,
};

/// Most units of a pass, so that a tile's rows stay in the first-level cache and a block of tokens in the
/// second-level one.
const PASS_UNITS: usize = 64;
/// Passes begin at multiples of so many units, since scales are read as many at a time.
const PASS_STEP: usize = 16;
/// Units of a task that makes tokens integers.
const TASK_UNITS: usize = 8;

thread_local! {
    /// Rows and sums of a task: kept, since clearing them anew took as long as filling them.
    static SCRATCH: RefCell<(Rows, Vec<f32>)> = const { RefCell::new((Rows::new(), Vec::new())) };
    /// Tokens in blocks and tokens that are left, kept for the same reason by the thread that starts a product.
    static TOKENS: Cell<[Quantized; 2]> = Cell::default();
}

/// Writes the product of all rows with all tokens of `x`, whose rows are contiguous, into one part's columns of
/// `out`.
///
/// # Panics
/// If a slice is too short.
///
/// # Safety
/// The processor has the vectors of `I`.
pub unsafe fn product<I: Ints>(x: View<'_>, words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    let units = args.cols.div_ceil(UNIT);
    let rest = match args.tokens % I::LANES {
        rest if rest <= I::REST => rest,
        _ => 0,
    };
    let whole = args.tokens - rest;
    let starts = lanes::starts(whole.div_ceil(I::LANES), I::BLOCK);
    let [mut blocks, mut left] = TOKENS.take();
    blocks.resize(whole.div_ceil(I::LANES) * I::LANES * units);
    left.resize(rest * units);
    // SAFETY: by this function's contract.
    unsafe { quantize::<I>(x, &starts, [whole, args.tokens], args.cols, &mut blocks, &mut left) };
    let tokens = Tokens { blocks, starts, left, whole };
    cpu::for_each(args.rows.div_ceil(TASK_ROWS), |task| {
        SCRATCH.with_borrow_mut(|(tile, sums)| {
            let first = task * TASK_ROWS;
            let rows = first..args.rows.min(first + TASK_ROWS);
            // SAFETY: each task has rows, and so columns of the output, of its own; the processor has the vectors
            // by this function's contract.
            unsafe { rows_of::<I>(&tokens, words, out, args, rows, tile, sums) };
        });
    });
    TOKENS.set([tokens.blocks, tokens.left]);
}

struct Tokens {
    blocks: Quantized,
    /// First vector of each block, and where the last one ends.
    starts: Vec<usize>,
    left: Quantized,
    /// Tokens that are in blocks.
    whole: usize,
}

/// Fills `blocks` with tokens below `whole`, `left` with the others up to `tokens`.
///
/// # Safety
/// The processor has the vectors of `I`.
unsafe fn quantize<I: Ints>(
    x: View<'_>,
    starts: &[usize],
    [whole, tokens]: [usize; 2],
    cols: usize,
    blocks: &mut Quantized,
    left: &mut Quantized,
) {
    let units = cols.div_ceil(UNIT);
    let token = |token: usize| &x.data[x.first + token * x.row_stride..][..cols];
    let parts = units.div_ceil(TASK_UNITS);
    let words = Scattered::new(bytemuck::cast_slice_mut(&mut blocks.words));
    let [scales, sums] = [&mut blocks.scales, &mut blocks.sums].map(|numbers| Scattered::new(numbers));
    cpu::for_each(whole.div_ceil(I::LANES) * parts, |task| {
        let (vector, part) = (task / parts, task % parts);
        let block = starts.partition_point(|start| *start <= vector) - 1;
        let (lanes, at) =
            ((starts[block + 1] - starts[block]) * I::LANES, (vector - starts[block]) * I::LANES);
        let first = starts[block] * I::LANES * units;
        let count = I::LANES.min(whole - vector * I::LANES);
        for unit in part * TASK_UNITS..units.min((part + 1) * TASK_UNITS) {
            let at_unit = first + unit * lanes + at;
            // SAFETY: each vector of a unit is written by one task; the vectors are there by this function's
            // contract.
            unsafe {
                I::quantize_lanes(
                    |lane| match lane < count {
                        true => &token(vector * I::LANES + lane)[unit * UNIT..],
                        false => &[],
                    },
                    |word| words.slice(first * WORDS + (unit * WORDS + word) * lanes + at, I::LANES),
                    scales.slice(at_unit, I::LANES),
                    sums.slice(at_unit, I::LANES),
                );
            }
        }
    });
    for (number, token) in (whole..tokens).map(token).enumerate() {
        let at = number * units;
        let words = &mut left.words[at * WORDS..][..units * WORDS];
        // SAFETY: by this function's contract.
        unsafe {
            I::quantize(token, words, &mut left.scales[at..][..units], &mut left.sums[at..][..units]);
        }
    }
}

/// The products of `rows`.
///
/// # Safety
/// The processor has the vectors of `I`; no other thread may touch these columns of the output meanwhile.
unsafe fn rows_of<I: Ints>(
    tokens: &Tokens,
    words: &[u32],
    out: Scattered<'_>,
    args: &MatmulArgs,
    rows: std::ops::Range<usize>,
    tile: &mut Rows,
    sums: &mut Vec<f32>,
) {
    let Tokens { blocks, starts, left, whole } = tokens;
    let MatmulArgs { format, cols, .. } = *args;
    let (units, row_words) = (cols.div_ceil(UNIT), format.row_words(cols));
    let pass_units = units.div_ceil(units.div_ceil(PASS_UNITS)).next_multiple_of(PASS_STEP);
    let vectors = whole.div_ceil(I::LANES);
    tile.resize(pass_units);
    // `[blocks][TASK_ROWS][lanes of the block]`, and `[tokens that are left][TASK_ROWS]`.
    sums.resize(TASK_ROWS * (vectors * I::LANES + args.tokens - whole), 0.0);
    let (sums, rest) = sums.split_at_mut(TASK_ROWS * vectors * I::LANES);
    for first_unit in (0..units).step_by(pass_units) {
        let pass = first_unit..units.min(first_unit + pass_units);
        for (number, first) in rows.clone().step_by(ROWS).enumerate() {
            // A tile of fewer rows multiplies rows of an earlier one once more: nobody reads the sums.
            for (at, row) in (first..rows.end.min(first + ROWS)).enumerate() {
                let row = &words[row * row_words..][..row_words];
                let at = at * pass_units;
                let numbers = [&mut tile.scales[at..], &mut tile.offsets[at..]];
                // SAFETY: by this function's contract.
                unsafe {
                    I::unpack(format, row, units, pass.clone(), &mut tile.words[at * WORDS..], numbers)
                };
            }
            let (offset, add) = (has_offset(format), first_unit > 0);
            for block in starts.windows(2) {
                let (start, lanes) = (block[0], (block[1] - block[0]) * I::LANES);
                let at = start * I::LANES * units + first_unit * lanes;
                let count = pass.len() * lanes;
                // The words of a block begin where those of the ones before end, as its scales do.
                let x = Units {
                    words: &blocks.words[at * WORDS..][..count * WORDS],
                    scales: &blocks.scales[at..][..count],
                    sums: &blocks.sums[at..][..count],
                };
                let size = ROWS * lanes;
                let sums = &mut sums[TASK_ROWS * start * I::LANES + number * size..][..size];
                // SAFETY: by this function's contract.
                unsafe { I::tile(block[1] - block[0], offset, x, tile, pass_units, sums, add) };
            }
            for (token, sums) in rest.chunks_exact_mut(TASK_ROWS).enumerate() {
                let at = token * units + first_unit;
                let x = Units {
                    words: &left.words[at * WORDS..][..pass.len() * WORDS],
                    scales: &left.scales[at..][..pass.len()],
                    sums: &left.sums[at..][..pass.len()],
                };
                let sums = &mut sums[number * ROWS..][..ROWS];
                // SAFETY: by this function's contract.
                unsafe { I::tile_dots(offset, x, tile, pass_units, sums, add) };
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { lanes::store::<I>(sums, starts, rest, *whole, rows, out, args) };
}
