//! Many tokens: lanes are tokens, as in [`lanes`](super::super::lanes), and a few that fill no vector have dot
//! products of their own.

use std::{
    arch::x86_64::*,
    cell::{Cell, RefCell},
};

use super::{
    super::{
        MatmulArgs,
        avx512::{Avx512, LANES, transposed},
        lanes::{self, store},
        of_format,
    },
    Quantized, has_offset, quantize_unit, scales_of, unpack_unit,
};
use crate::{
    cpu::{self, Scattered, View},
    format::{Format, UNIT},
};

/// Most vectors of a block: with [`ROWS`] rows, 12 vectors of integer sums, 12 of float sums and 2 of tokens.
const VECTORS: usize = 2;
/// Rows of a tile.
const ROWS: usize = lanes::ROWS;
/// Rows of a task.
const TASK_ROWS: usize = lanes::TASK_ROWS;
/// Most units of a pass, so that a tile's rows stay in the first-level cache and a block of tokens in the
/// second-level one.
const PASS_UNITS: usize = 64;
/// Most tokens that get dot products: more are faster as a vector that is not full.
const MAX_REST: usize = 5;
/// Units of a task that makes tokens integers.
const TASK_UNITS: usize = 8;

thread_local! {
    /// Rows and sums of a task: kept, since clearing them anew took as long as filling them.
    static SCRATCH: RefCell<(Rows, Vec<f32>)> = const { RefCell::new((Rows::new(), Vec::new())) };
    /// Tokens in blocks and tokens that are left, kept for the same reason by the thread that starts a product.
    static TOKENS: Cell<[Quantized; 2]> = Cell::default();
}

/// The rows of a tile: `[ROWS, units, 16]` words, and a scale and an offset a unit.
struct Rows {
    words: Vec<i32>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Rows {
    const fn new() -> Self {
        Self { words: Vec::new(), scales: Vec::new(), offsets: Vec::new() }
    }
}

/// Writes the product of all rows with all tokens of `x`, whose rows are contiguous, into one part's columns of
/// `out`.
///
/// # Panics
/// If a slice is too short.
pub fn product(x: View<'_>, words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    let units = args.cols.div_ceil(UNIT);
    let rest = match args.tokens % LANES {
        rest if rest <= MAX_REST => rest,
        _ => 0,
    };
    let whole = args.tokens - rest;
    let starts = lanes::starts(whole.div_ceil(LANES), VECTORS);
    let [mut blocks, mut left] = TOKENS.take();
    blocks.resize(whole.div_ceil(LANES) * LANES * units);
    left.resize(rest * units);
    quantize(x, &starts, [whole, args.tokens], args.cols, &mut blocks, &mut left);
    let tokens = Tokens { blocks, starts, left, whole };
    cpu::for_each(args.rows.div_ceil(TASK_ROWS), |task| {
        SCRATCH.with_borrow_mut(|(tile, sums)| {
            let first = task * TASK_ROWS;
            let rows = first..args.rows.min(first + TASK_ROWS);
            // SAFETY: each task has rows, and so columns of the output, of its own; the caller of `product` has
            // asked for the features.
            unsafe { rows_of(&tokens, words, out, args, rows, tile, sums) };
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
fn quantize(
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
    cpu::for_each(whole.div_ceil(LANES) * parts, |task| {
        let (vector, part) = (task / parts, task % parts);
        let block = starts.partition_point(|start| *start <= vector) - 1;
        let (lanes, at) = ((starts[block + 1] - starts[block]) * LANES, (vector - starts[block]) * LANES);
        let first = starts[block] * LANES * units;
        for unit in part * TASK_UNITS..units.min((part + 1) * TASK_UNITS) {
            let count = LANES.min(whole - vector * LANES);
            let at_unit = first + unit * lanes + at;
            // SAFETY: each vector of a unit is written by one task; `product` runs where the processor has the
            // features.
            unsafe {
                let tokens = std::array::from_fn(|lane| match lane < count {
                    true => &token(vector * LANES + lane)[unit * UNIT..],
                    false => &[],
                });
                let (square, unit_scales, unit_sums) = quantize_unit_of(tokens);
                scales.slice(at_unit, LANES).copy_from_slice(&unit_scales);
                sums.slice(at_unit, LANES).copy_from_slice(&unit_sums);
                for (pair, row) in square.into_iter().enumerate() {
                    let to = words.slice(first * LANES + (unit * LANES + pair) * lanes + at, LANES);
                    _mm512_storeu_ps(to.as_mut_ptr(), row);
                }
            }
        }
    });
    for (number, token) in (whole..tokens).map(token).enumerate() {
        // SAFETY: `product` runs where the processor has the features.
        unsafe { left.set(number * units, token) };
    }
}

/// Sixteen tokens' units, lanes exchanged with words, as floats of the same bits.
#[target_feature(enable = "avx512f")]
fn quantize_unit_of(tokens: [&[f32]; LANES]) -> ([__m512; LANES], [f32; LANES], [f32; LANES]) {
    let (mut scales, mut sums) = ([0.0; LANES], [0.0; LANES]);
    let mut square = [_mm512_setzero_ps(); LANES];
    for (lane, x) in tokens.into_iter().enumerate() {
        let words;
        (words, scales[lane], sums[lane]) = quantize_unit(x);
        square[lane] = _mm512_castsi512_ps(words);
    }
    (transposed(square), scales, sums)
}

/// The products of `rows`.
///
/// # Safety
/// No other thread may touch these columns of the output meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn rows_of(
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
    // Scales are read sixteen at a time.
    let pass_units = units.div_ceil(units.div_ceil(PASS_UNITS)).next_multiple_of(LANES);
    let vectors = whole.div_ceil(LANES);
    tile.words.resize(ROWS * pass_units * LANES, 0);
    tile.scales.resize(ROWS * pass_units, 0.0);
    tile.offsets.resize(ROWS * pass_units, 0.0);
    // `[blocks][TASK_ROWS][lanes of the block]`, and `[tokens that are left][TASK_ROWS]`.
    sums.resize(TASK_ROWS * (vectors * LANES + args.tokens - whole), 0.0);
    let (sums, rest) = sums.split_at_mut(TASK_ROWS * vectors * LANES);
    for first_unit in (0..units).step_by(pass_units) {
        let pass = first_unit..units.min(first_unit + pass_units);
        for (number, first) in rows.clone().step_by(ROWS).enumerate() {
            // A tile of fewer rows multiplies rows of an earlier one once more: nobody reads the sums.
            for (at, row) in (first..rows.end.min(first + ROWS)).enumerate() {
                let row = &words[row * row_words..][..row_words];
                let at = at * pass_units;
                let numbers = [&mut tile.scales[at..], &mut tile.offsets[at..]];
                of_format!(format, unpack)(row, units, pass.clone(), &mut tile.words[at * LANES..], numbers);
            }
            let add = first_unit > 0;
            for block in starts.windows(2) {
                let (start, lanes) = (block[0], (block[1] - block[0]) * LANES);
                let at = start * LANES * units + first_unit * lanes;
                let count = pass.len() * lanes;
                let x = [&blocks.scales[at..][..count], &blocks.sums[at..][..count]];
                // The words of a block begin where those of the ones before end, as its scales do.
                let x_words = &blocks.words[at * LANES..][..count * LANES];
                let products = match (block[1] - block[0], has_offset(format)) {
                    (1, false) => products::<1, false>,
                    (1, true) => products::<1, true>,
                    (_, false) => products::<VECTORS, false>,
                    (_, true) => products::<VECTORS, true>,
                };
                let size = ROWS * lanes;
                let sums = &mut sums[TASK_ROWS * start * LANES + number * size..][..size];
                products(x_words, x, tile, pass_units, sums, add);
            }
            for (token, sums) in rest.chunks_exact_mut(TASK_ROWS).enumerate() {
                let at = token * units + first_unit;
                let x = [&left.scales[at..][..pass.len()], &left.sums[at..][..pass.len()]];
                let x_words = &left.words[at * LANES..][..pass.len() * LANES];
                let sums = &mut sums[number * ROWS..][..ROWS];
                match has_offset(format) {
                    true => dots::<true>(x_words, x, tile, pass_units, sums, add),
                    false => dots::<false>(x_words, x, tile, pass_units, sums, add),
                }
            }
        }
    }
    // SAFETY: by this function's contract.
    unsafe { store::<Avx512>(sums, starts, rest, *whole, rows, out, args) };
}

/// Words, scales and offsets of some units of a packed row of `units` units. The first is a multiple of 16.
///
/// # Panics
/// If a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn unpack<const FORMAT: usize>(
    row: &[u32],
    units: usize,
    pass: std::ops::Range<usize>,
    words: &mut [i32],
    [scales, offsets]: [&mut [f32]; 2],
) {
    let (words, _) = words.as_chunks_mut::<LANES>();
    for (unit, words) in pass.clone().zip(words) {
        // SAFETY: sixteen words.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), unpack_unit::<FORMAT>(row, units, unit)) };
    }
    let (scales, _) = scales.as_chunks_mut::<LANES>();
    let (offsets, _) = offsets.as_chunks_mut::<LANES>();
    for ((first, scales), offsets) in pass.step_by(LANES).zip(scales).zip(offsets) {
        let of_units = scales_of::<FORMAT>(row, units, first);
        // SAFETY: sixteen numbers each.
        unsafe {
            _mm512_storeu_ps(scales.as_mut_ptr(), of_units.d[0]);
            _mm512_storeu_ps(offsets.as_mut_ptr(), of_units.m);
        }
    }
}

/// Writes `sums` `[ROWS, V * LANES]`, or adds to them, the products of a tile's rows, `stride` units apart, with
/// `x` `[units, 16, V * LANES]`, whose scales and sums are `[units, V * LANES]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<const V: usize, const OFFSET: bool>(
    x: &[i32],
    [scales, unit_sums]: [&[f32]; 2],
    tile: &Rows,
    stride: usize,
    sums: &mut [f32],
    add: bool,
) {
    let units = scales.len() / (V * LANES);
    assert!(units <= stride && x.len() >= units * LANES * V * LANES && unit_sums.len() >= scales.len());
    assert!(tile.words.len() >= ROWS * stride * LANES && tile.scales.len() >= ROWS * stride);
    assert!(tile.offsets.len() >= ROWS * stride && sums.len() >= ROWS * V * LANES);
    let at = |r: usize, v: usize| (r * V + v) * LANES;
    let mut lanes = [[_mm512_setzero_ps(); V]; ROWS];
    // SAFETY: all loads and stores lie inside the slices by the assertions above.
    unsafe {
        if add {
            for (r, row) in lanes.iter_mut().enumerate() {
                for (v, lane) in row.iter_mut().enumerate() {
                    *lane = _mm512_loadu_ps(sums.as_ptr().add(at(r, v)));
                }
            }
        }
        for unit in 0..units {
            let mut unit_lanes = [[_mm512_setzero_si512(); V]; ROWS];
            let x = x.as_ptr().add(unit * LANES * V * LANES);
            let w = tile.words.as_ptr().add(unit * LANES);
            for pair in 0..LANES {
                let xs: [__m512i; V] =
                    std::array::from_fn(|v| _mm512_loadu_si512(x.add((pair * V + v) * LANES).cast()));
                for (r, row) in unit_lanes.iter_mut().enumerate() {
                    let w = _mm512_set1_epi32(*w.add(r * stride * LANES + pair));
                    for (lane, x) in row.iter_mut().zip(xs) {
                        *lane = _mm512_dpwssd_epi32(*lane, x, w);
                    }
                }
            }
            let of_unit =
                |numbers: &[f32], v: usize| _mm512_loadu_ps(numbers.as_ptr().add((unit * V + v) * LANES));
            for v in 0..V {
                let scale = of_unit(scales, v);
                for r in 0..ROWS {
                    let d = _mm512_set1_ps(*tile.scales.as_ptr().add(r * stride + unit));
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(unit_lanes[r][v]), scale);
                    lanes[r][v] = _mm512_fmadd_ps(sum, d, lanes[r][v]);
                    if OFFSET {
                        let m = _mm512_set1_ps(*tile.offsets.as_ptr().add(r * stride + unit));
                        lanes[r][v] = _mm512_fmadd_ps(of_unit(unit_sums, v), m, lanes[r][v]);
                    }
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
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots<const OFFSET: bool>(
    x: &[i32],
    [scales, unit_sums]: [&[f32]; 2],
    tile: &Rows,
    stride: usize,
    sums: &mut [f32],
    add: bool,
) {
    let units = scales.len();
    assert!(units <= stride && x.len() >= units * LANES && tile.words.len() >= ROWS * stride * LANES);
    let mut lanes = [_mm512_setzero_ps(); ROWS];
    let mut offsets = [0f32; ROWS];
    for unit in 0..units {
        // SAFETY: inside the slices by the assertion above.
        let load = |words: &[i32], at: usize| unsafe { _mm512_loadu_si512(words.as_ptr().add(at).cast()) };
        let x = load(x, unit * LANES);
        for r in 0..ROWS {
            let w = load(&tile.words, (r * stride + unit) * LANES);
            let sum = _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(_mm512_setzero_si512(), x, w));
            let scale = _mm512_set1_ps(scales[unit] * tile.scales[r * stride + unit]);
            lanes[r] = _mm512_fmadd_ps(sum, scale, lanes[r]);
            if OFFSET {
                offsets[r] += unit_sums[unit] * tile.offsets[r * stride + unit];
            }
        }
    }
    for ((sum, lanes), offset) in sums.iter_mut().zip(lanes).zip(offsets) {
        *sum = if add { *sum } else { 0.0 } + _mm512_reduce_add_ps(lanes) + offset;
    }
}
