//! Product of activations with a packed weight matrix: `out[t, n] = Σ_k x[t, k] · w[n, k]`.

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::Tensor,
};
use burn_wgpu::CubeBackend;

use crate::{
    cpu::{self, Scattered, View, dispatch_simd, fma},
    device::profile,
    format::{Format, Scale, UNIT, decode_e4m3, unpack_row, widen_f16},
    matrix::PackedMatrix,
    shader::{Shader, grid, launch, u},
};

use super::output;

#[cfg(target_arch = "x86_64")]
#[path = "matmul_avx2.rs"]
mod avx2;

const WEIGHTS: &str = include_str!("../../../../shaders/shared/weights.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("../../../../shaders/shared/reduce_workgroup.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../../../../shaders/shared/reduce_subgroup.wgsl");

/// Product of `x` `[T, K]` with `w` `[N, K]`, transposed: `[T, N]`.
///
/// # Panics
/// If the columns differ.
pub fn matmul(x: Tensor<2>, w: &PackedMatrix) -> Tensor<2> {
    let [tokens, cols] = x.dims();
    assert_eq!(cols, w.cols, "matmul: x is {tokens} x {cols}, w has {} columns", w.cols);
    // WGSL reads x in vectors of four.
    let padded = cols.next_multiple_of(4);
    let x = if padded == cols { x } else { x.pad((0, padded - cols, 0, 0), 0.0) };
    let mut out = output([tokens, w.rows()], &x.device());
    let mut out_first = 0;
    for part in &w.parts {
        let args =
            MatmulArgs { format: part.format, tokens, rows: part.rows, cols, out_cols: w.rows(), out_first };
        out_first += part.rows;
        out = Tensor::from_dispatch(Dispatch::packed_matmul(
            x.clone().into_dispatch(),
            part.words.clone().into_dispatch(),
            out.into_dispatch(),
            args,
        ));
    }
    out
}

/// Shape of one product: `x [tokens, cols padded to 4]` times a part of `rows` rows into columns
/// `out_first..` of `out [tokens, out_cols]`.
#[derive(Clone, Copy, Debug)]
pub struct MatmulArgs {
    pub format: Format,
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
    pub out_cols: usize,
    pub out_first: usize,
}

#[backend_extension(Cube, Flex)]
pub trait PackedMatmul: burn::backend::Backend {
    /// Writes one part's columns of `out` and returns it.
    fn packed_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        out: FloatTensor<Self>,
        args: MatmulArgs,
    ) -> FloatTensor<Self>;
}

/// The product in plain loops over one packed part, in f64: `[tokens, rows]`.
pub fn reference(x: &[f32], words: &[u32], args: &MatmulArgs) -> Vec<f32> {
    let row_words = args.format.row_words(args.cols);
    let mut out = vec![0.0; args.tokens * args.rows];
    let mut row = vec![0.0; args.cols];
    for n in 0..args.rows {
        unpack_row(args.format, args.cols, &words[n * row_words..][..row_words], &mut row);
        for t in 0..args.tokens {
            let x = &x[t * args.cols..][..args.cols];
            let sum: f64 = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            out[t * args.rows + n] = sum as f32;
        }
    }
    out
}

impl PackedMatmul for CubeBackend {
    fn packed_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        out: FloatTensor<Self>,
        args: MatmulArgs,
    ) -> FloatTensor<Self> {
        let x = burn_wgpu::into_contiguous(x);
        let profile = profile(&x);
        let units = args.cols.div_ceil(UNIT);
        let k4 = args.cols.div_ceil(4);
        let params = [
            args.tokens as u32,
            args.rows as u32,
            units as u32,
            (args.format.row_words(args.cols) / 4) as u32,
            k4 as u32,
            args.out_cols as u32,
            args.out_first as u32,
        ];
        let variant = if profile.software {
            rows_variant(args.tokens, profile.subgroup_size)
        } else if args.tokens <= MATVEC_TOKENS {
            Variant::Vector { subgroups: profile.subgroups }
        } else {
            Variant::Tiles
        };
        let workgroups = match variant {
            Variant::Rows { tokens, lanes, .. } => {
                [args.rows.div_ceil(4 * lanes), args.tokens.div_ceil(tokens), 1]
            }
            Variant::Vector { .. } => {
                let [a, b, _] = grid(args.rows.div_ceil(4));
                [a, b, args.tokens]
            }
            Variant::Tiles => [args.rows.div_ceil(64), args.tokens.div_ceil(64), 1],
        };
        let shader = shader(variant, args.format, !k4.is_multiple_of(8));
        launch(shader, workgroups, &[&words, &x, &out], &params);
        out
    }
}

/// Most tokens that the matrix-vector kernel takes: above it a tile reads each weight once for
/// many tokens.
const MATVEC_TOKENS: usize = 4;

/// Which kernel computes a product.
#[derive(Clone, Copy, Debug)]
pub enum Variant {
    /// An invocation for four rows and some tokens: adapters that run lanes on CPU cores. With
    /// `shuffle` the lanes are those of a subgroup and share their loads of x.
    Rows { tokens: usize, lanes: usize, shuffle: bool },
    /// A workgroup for four rows, for few tokens.
    Vector { subgroups: bool },
    /// 64 x 64 tiles, for many tokens.
    Tiles,
}

/// How a CPU adapter is best used. Subgroups of eight lanes load a unit of x at once; those of four
/// were measured twice as slow as lanes that load for themselves. More than six tokens spill the
/// sums; Mesa unrolls no loop over eight.
fn rows_variant(tokens: usize, subgroup_size: Option<usize>) -> Variant {
    match subgroup_size {
        Some(lanes) if lanes >= 8 => {
            let groups = tokens.div_ceil(6).max(1);
            Variant::Rows { tokens: tokens.div_ceil(groups), lanes, shuffle: true }
        }
        _ => Variant::Rows { tokens: if tokens >= 4 { 4 } else { 1 }, lanes: 16, shuffle: false },
    }
}

/// The WGSL of one variant; `tail` says that the last unit reads past a row of x.
pub fn shader(variant: Variant, format: Format, tail: bool) -> Shader {
    let mut constants = reader_constants(format);
    constants.push(("TAIL", tail.to_string()));
    let (name, sources, workgroup_size, subgroups): (_, &'static [&'static str], _, _) = match variant {
        Variant::Rows { tokens, lanes, shuffle } => {
            const ROWS: &str = include_str!("../../../../shaders/matmul_rows.wgsl");
            const QUADS: &str = include_str!("../../../../shaders/shared/quads.wgsl");
            const X_DIRECT: &str = include_str!("../../../../shaders/shared/x_direct.wgsl");
            const X_SHUFFLE: &str = include_str!("../../../../shaders/shared/x_shuffle.wgsl");
            const DIRECT: &[&str] = &[ROWS, WEIGHTS, QUADS, X_DIRECT];
            const SHUFFLE: &[&str] = &[ROWS, WEIGHTS, QUADS, X_SHUFFLE];
            // One scale and offset a unit: the others have none, two, or one a row.
            let scaled =
                !matches!(format, Format::F32 | Format::F16 | Format::Bf16 | Format::Q6K | Format::Fp8);
            constants.push(("TOKENS", u(tokens)));
            constants.push(("LANES", u(lanes)));
            constants.push(("SUM_SCALES", (shuffle && tokens == 1 && scaled).to_string()));
            match shuffle {
                true => ("matmul_rows_shuffle", SHUFFLE, lanes as u32, true),
                false => ("matmul_rows", DIRECT, lanes as u32, false),
            }
        }
        Variant::Vector { subgroups: false } => {
            const SOURCES: &[&str] =
                &[include_str!("../../../../shaders/matvec.wgsl"), WEIGHTS, REDUCE_WORKGROUP];
            ("matvec", SOURCES, 64, false)
        }
        Variant::Vector { subgroups: true } => {
            const SOURCES: &[&str] =
                &[include_str!("../../../../shaders/matvec.wgsl"), WEIGHTS, REDUCE_SUBGROUP];
            ("matvec_subgroups", SOURCES, 64, true)
        }
        Variant::Tiles => {
            const SOURCES: &[&str] = &[include_str!("../../../../shaders/matmul.wgsl"), WEIGHTS];
            ("matmul", SOURCES, 256, false)
        }
    };
    Shader { name, sources, constants, workgroup_size, subgroups }
}

/// The constants of `shaders/shared/weights.wgsl`.
pub(super) fn reader_constants(format: Format) -> Vec<(&'static str, String)> {
    vec![
        ("FORMAT", u(format.index())),
        ("UNIT_VEC4", u(format.unit_words() / 4)),
        ("HIGH_WORDS", u(format.high_words())),
    ]
}

impl PackedMatmul for Flex {
    fn packed_matmul(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        mut out: FloatTensor<Self>,
        args: MatmulArgs,
    ) -> FloatTensor<Self> {
        let x = cpu::contiguous(x);
        let width = args.cols.div_ceil(UNIT) * UNIT;
        let stride = args.cols.next_multiple_of(4);
        if args.tokens >= WIDE_TOKENS {
            let out_slice = Scattered::new(out.storage_mut::<f32>());
            wide_product(View::rows(cpu::floats(&x), 0, stride), cpu::words(&words), out_slice, &args);
            return out;
        }
        let mut padded = Vec::new();
        let xs = if stride == width {
            cpu::floats(&x)
        } else {
            padded.resize(args.tokens * width, 0.0);
            for (to, from) in padded.chunks_mut(width).zip(cpu::floats(&x).chunks(stride)) {
                to[..stride].copy_from_slice(from);
            }
            &padded
        };
        let out_slice = Scattered::new(out.storage_mut::<f32>());
        product(xs, cpu::words(&words), out_slice, &args);
        out
    }
}

/// Tokens from which the matrix is widened and handed to `gemm`, which knows more of the processor.
const WIDE_TOKENS: usize = 16;

/// Rows that [`wide_product`] widens at a time: they stay in the second-level cache.
const WIDE_ROWS: usize = 64;

/// The product for many tokens.
fn wide_product(x: View<'_>, words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    let row_words = args.format.row_words(args.cols);
    if args.format == Format::F32 {
        let w = View::rows(bytemuck::cast_slice(words), 0, row_words).transposed();
        let sizes = [args.tokens, args.rows, args.cols];
        // SAFETY: nothing else writes this part's columns of the output.
        unsafe { cpu::product(sizes, x, w, out, args.out_first, args.out_cols, 1.0, false, true) };
        return;
    }
    let width = args.cols.div_ceil(UNIT) * UNIT;
    cpu::for_each(args.rows.div_ceil(WIDE_ROWS), |task| {
        let first = task * WIDE_ROWS;
        let count = WIDE_ROWS.min(args.rows - first);
        let mut wide = vec![0f32; count * width];
        widen_rows(
            args.format,
            &words[first * row_words..(first + count) * row_words],
            row_words,
            width,
            &mut wide,
        );
        let w = View::rows(&wide, 0, width).transposed();
        let sizes = [args.tokens, count, args.cols];
        // SAFETY: each task has rows, and so columns of the output, of its own.
        unsafe {
            cpu::product(sizes, x, w, out, args.out_first + first, args.out_cols, 1.0, false, false);
        }
    });
}

/// One packed row of `cols` weights as f32, into `out`; what [`unpack_row`] does, faster.
pub fn widen(format: Format, cols: usize, row: &[u32], out: &mut [f32]) {
    let width = cols.div_ceil(UNIT) * UNIT;
    if width == cols {
        widen_rows(format, row, row.len(), width, out);
    } else {
        let mut whole = vec![0.0; width];
        widen_rows(format, row, row.len(), width, &mut whole);
        out.copy_from_slice(&whole[..cols]);
    }
}

dispatch_simd! {
    fn widen_rows = widen_rows_body(format: Format, words: &[u32], row_words: usize, width: usize, to: &mut [f32])
}

#[inline(always)]
fn widen_rows_body<const FMA: bool>(
    format: Format,
    words: &[u32],
    row_words: usize,
    width: usize,
    to: &mut [f32],
) {
    for (row, to) in words.chunks_exact(row_words).zip(to.chunks_exact_mut(width)) {
        widen_row(format, row, to);
    }
}

/// Rows whose widened weights a thread keeps while it passes over the tokens.
const PANEL: usize = 4;

/// The product on all threads; `x` is `[tokens, units * 32]`.
fn product(x: &[f32], words: &[u32], out: Scattered<'_>, args: &MatmulArgs) {
    // A few tasks a thread even out cores of unequal speed.
    let tasks = (cpu::threads() * 4).min(args.rows.div_ceil(PANEL)).max(1);
    let rows_per_task = args.rows.div_ceil(tasks).next_multiple_of(PANEL);
    cpu::for_each(args.rows.div_ceil(rows_per_task), |task| {
        let first = task * rows_per_task;
        let last = (first + rows_per_task).min(args.rows);
        if args.tokens == 1 {
            vector_rows(x, words, out, args, first, last);
        } else {
            panel_rows(x, words, out, args, first, last);
        }
    });
}

/// Rows `first..last` for one token.
fn vector_rows(x: &[f32], words: &[u32], out: Scattered<'_>, args: &MatmulArgs, first: usize, last: usize) {
    let rows = match args.format {
        Format::F32 => vector_rows_of::<{ Format::F32 as usize }>,
        Format::F16 => vector_rows_of::<{ Format::F16 as usize }>,
        Format::Bf16 => vector_rows_of::<{ Format::Bf16 as usize }>,
        Format::Q8_0 => vector_rows_of::<{ Format::Q8_0 as usize }>,
        Format::Q4_0 => vector_rows_of::<{ Format::Q4_0 as usize }>,
        Format::Q4_1 => vector_rows_of::<{ Format::Q4_1 as usize }>,
        Format::Q5_0 => vector_rows_of::<{ Format::Q5_0 as usize }>,
        Format::Q5_1 => vector_rows_of::<{ Format::Q5_1 as usize }>,
        Format::Q4K => vector_rows_of::<{ Format::Q4K as usize }>,
        Format::Q5K => vector_rows_of::<{ Format::Q5K as usize }>,
        Format::Q6K => vector_rows_of::<{ Format::Q6K as usize }>,
        Format::Fp8 => vector_rows_of::<{ Format::Fp8 as usize }>,
    };
    rows(x, words, out, args, first, last);
}

/// The rows of one format, which is constant so that the loops over units hold no branch.
fn vector_rows_of<const FORMAT: usize>(
    x: &[f32],
    words: &[u32],
    out: Scattered<'_>,
    args: &MatmulArgs,
    first: usize,
    last: usize,
) {
    let row_words = args.format.row_words(args.cols);
    let rows = words[first * row_words..last * row_words].chunks_exact(row_words);
    let at = args.out_first + first;
    #[cfg(target_arch = "x86_64")]
    if avx2::is_available() {
        let sums = avx2::unit_sums(x);
        for (n, row) in rows.enumerate() {
            // SAFETY: the processor has the features, and each row belongs to one task.
            unsafe { out.set(at + n, avx2::row_dot::<FORMAT>(row, x, &sums)) };
        }
        return;
    }
    let format = const { Format::ALL[FORMAT] };
    for (n, row) in rows.enumerate() {
        let sum = row_dot::<{ cfg!(target_arch = "aarch64") }>(format, row, x);
        // SAFETY: each row belongs to one task.
        unsafe { out.set(at + n, sum) };
    }
}

/// Product of one packed row with one `x` of whole units.
#[inline(always)]
fn row_dot<const FMA: bool>(format: Format, row: &[u32], x: &[f32]) -> f32 {
    let mut lanes = [0f32; UNIT];
    let mut offsets = [0f32; 8];
    let units = x.len() / UNIT;
    let (x, _) = x.as_chunks::<UNIT>();
    for (unit, x) in x.iter().enumerate() {
        let Scale { d, m } = Scale::read(format, units, row, unit);
        let w = unit_quants(format, row, units, unit);
        for i in 0..UNIT {
            lanes[i] = fma::<FMA>(d[i / 16] * w[i], x[i], lanes[i]);
        }
        if has_offset(format) {
            for i in 0..8 {
                let sum = (x[i] + x[i + 8]) + (x[i + 16] + x[i + 24]);
                offsets[i] = fma::<FMA>(m, sum, offsets[i]);
            }
        }
    }
    for i in 0..8 {
        lanes[i] += offsets[i];
    }
    cpu::sum_lanes(&lanes)
}

/// Whether units have an offset beside their scales.
const fn has_offset(format: Format) -> bool {
    matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q4K | Format::Q5K)
}

/// The quants of one unit as floats, without scale and offset.
#[inline(always)]
fn unit_quants(format: Format, row: &[u32], units: usize, unit: usize) -> [f32; UNIT] {
    let mut q = [0f32; UNIT];
    let words = &row[unit * format.unit_words()..][..format.unit_words()];
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let high = &row[format.high_at(units) + unit * format.high_words()..][..format.high_words()];
    match format {
        Format::F32 => q.copy_from_slice(bytemuck::cast_slice(words)),
        Format::F16 => {
            let halves: &[u16] = bytemuck::cast_slice(words);
            for i in 0..UNIT {
                q[i] = widen_f16(halves[i]);
            }
        }
        Format::Bf16 => {
            let halves: &[u16] = bytemuck::cast_slice(words);
            for i in 0..UNIT {
                q[i] = f32::from_bits(u32::from(halves[i]) << 16);
            }
        }
        Format::Q8_0 => {
            for i in 0..UNIT {
                q[i] = f32::from(bytes[i] as i8);
            }
        }
        Format::Fp8 => {
            for i in 0..UNIT {
                q[i] = decode_e4m3(bytes[i]);
            }
        }
        Format::Q4_0 | Format::Q4_1 | Format::Q4K => {
            for i in 0..UNIT / 2 {
                q[i] = f32::from(bytes[i] & 15);
                q[UNIT / 2 + i] = f32::from(bytes[i] >> 4);
            }
        }
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => {
            for i in 0..UNIT / 2 {
                q[i] = ((u32::from(bytes[i]) & 15) | ((high[0] >> i) & 1) << 4) as f32;
                q[UNIT / 2 + i] = ((u32::from(bytes[i]) >> 4) | ((high[0] >> (16 + i)) & 1) << 4) as f32;
            }
        }
        Format::Q6K => {
            for i in 0..UNIT / 2 {
                let low = (u32::from(bytes[i]) & 15) | ((high[0] >> (2 * i)) & 3) << 4;
                let top = (u32::from(bytes[i]) >> 4) | ((high[1] >> (2 * i)) & 3) << 4;
                q[i] = (low as i32 - 32) as f32;
                q[UNIT / 2 + i] = (top as i32 - 32) as f32;
            }
        }
    }
    q
}

dispatch_simd! {
    fn panel_rows = panel_rows_body(
        x: &[f32], words: &[u32], out: Scattered<'_>, args: &MatmulArgs, first: usize, last: usize,
    )
}

#[inline(always)]
fn panel_rows_body<const FMA: bool>(
    x: &[f32],
    words: &[u32],
    out: Scattered<'_>,
    args: &MatmulArgs,
    first: usize,
    last: usize,
) {
    let row_words = args.format.row_words(args.cols);
    let width = args.cols.div_ceil(UNIT) * UNIT;
    let mut panel = vec![0f32; PANEL * width];
    for base in (first..last).step_by(PANEL) {
        let count = PANEL.min(last - base);
        for (r, wide) in panel.chunks_exact_mut(width).enumerate().take(count) {
            widen_row(args.format, &words[(base + r) * row_words..][..row_words], wide);
        }
        let mut token = 0;
        while token < args.tokens {
            let step = if args.tokens - token >= 3 { 3 } else { 1 };
            let mut sums = [[0f32; 3]; PANEL];
            if step == 3 {
                panel_tile::<FMA, 3>(&panel, x, width, token, &mut sums);
            } else {
                panel_tile::<FMA, 1>(&panel, x, width, token, &mut sums);
            }
            for t in 0..step {
                for (r, sums) in sums.iter().enumerate().take(count) {
                    let at = (token + t) * args.out_cols + args.out_first + base + r;
                    // SAFETY: each row belongs to one task.
                    unsafe { out.set(at, sums[t]) };
                }
            }
            token += step;
        }
    }
}

/// Widens one packed row of whole units.
#[inline(always)]
fn widen_row(format: Format, row: &[u32], wide: &mut [f32]) {
    let units = wide.len() / UNIT;
    let (wide, _) = wide.as_chunks_mut::<UNIT>();
    for (unit, wide) in wide.iter_mut().enumerate() {
        let Scale { d, m } = Scale::read(format, units, row, unit);
        let q = unit_quants(format, row, units, unit);
        match format {
            Format::F32 | Format::F16 | Format::Bf16 => *wide = q,
            _ => {
                for i in 0..UNIT {
                    wide[i] = d[i / 16] * q[i] + m;
                }
            }
        }
    }
}

/// Products of PANEL widened rows with T tokens, each sum in eight lanes: 12 vectors of sums and
/// 4 of operands are all the registers that AVX2 has.
#[inline(always)]
fn panel_tile<const FMA: bool, const T: usize>(
    panel: &[f32],
    x: &[f32],
    width: usize,
    token: usize,
    sums: &mut [[f32; 3]; PANEL],
) {
    let mut lanes = [[[0f32; 8]; T]; PANEL];
    let rows: [&[[f32; 8]]; PANEL] = std::array::from_fn(|r| panel[r * width..][..width].as_chunks::<8>().0);
    let xs: [&[[f32; 8]]; T] = std::array::from_fn(|t| x[(token + t) * width..][..width].as_chunks::<8>().0);
    for k in 0..width / 8 {
        for r in 0..PANEL {
            let w = rows[r][k];
            for t in 0..T {
                let v = xs[t][k];
                for i in 0..8 {
                    lanes[r][t][i] = fma::<FMA>(w[i], v[i], lanes[r][t][i]);
                }
            }
        }
    }
    for r in 0..PANEL {
        for t in 0..T {
            let l = lanes[r][t];
            sums[r][t] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
        }
    }
}
