//! Product of activations with a packed weight matrix: `out[t, n] = Σ_k x[t, k] · w[n, k]`.

use burn::{
    backend::{
        Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, Tensor},
};
use burn_wgpu::CubeBackend;

use crate::{
    device::{Profile, profile},
    format::{Format, UNIT, unpack_row},
    matrix::PackedMatrix,
    shader::{Shader, grid, launch, u},
    tune::TeamSize,
};

use super::output;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_ints;
#[cfg(target_arch = "x86_64")]
mod avx2_lanes;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cpu;
#[cfg(target_arch = "x86_64")]
mod ints;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
use cpu::of_format;
pub use cpu::widen;

pub(super) const WEIGHTS: &str = include_str!("../../../../shaders/shared/weights.wgsl");
const QUADS: &str = include_str!("../../../../shaders/shared/quads.wgsl");
pub(super) const LOAD_WORDS: &str = include_str!("../../../../shaders/shared/load_words.wgsl");

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
    // On the CPU a part that is all there is makes its own output.
    let alone = w.parts.len() == 1 && x.device() == Device::flex();
    let mut out = output(if alone { [0, 0] } else { [tokens, w.rows()] }, &x.device());
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

/// Whether a product on `device` rounds activations, to 16 bits beside a scale for each 32: products of quants on
/// processors with AVX-512 VNNI, and those with many tokens on processors with AVX2.
pub fn rounds_activations(device: &Device, format: Format, tokens: usize) -> bool {
    *device == Device::flex() && cpu::rounds_activations(format, tokens)
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
    /// Writes one part's columns of `out` and returns it; on the CPU `out` may be empty if the part has all.
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
        let variant = variant(args.tokens, args.rows, &profile);
        let shader = shader(variant, args.format, args.has_tail());
        let workgroups = variant.workgroups(args.tokens, args.rows, false);
        let params = args.params();
        match variant {
            // The third, and what follows the sizes, is what a fused product has besides.
            Variant::Rows { .. } | Variant::Teams { .. } => {
                let params = [&params[..], &[0; 4]].concat();
                launch(shader, workgroups, &[&words, &x, &x, &out], &params);
            }
            Variant::Tiles => launch(shader, workgroups, &[&words, &x, &out], &params),
        }
        out
    }
}

impl MatmulArgs {
    /// The sizes as the shaders take them.
    pub(super) fn params(&self) -> [u32; 7] {
        let units = self.cols.div_ceil(UNIT);
        let row_vec4 = self.format.row_words(self.cols) / 4;
        [self.tokens, self.rows, units, row_vec4, self.cols.div_ceil(4), self.out_cols, self.out_first]
            .map(|v| v as u32)
    }

    /// Whether the last unit reads past a row of x.
    pub(super) fn has_tail(&self) -> bool {
        !self.cols.div_ceil(4).is_multiple_of(8)
    }
}

/// Most tokens that teams take: above it a tile reads each weight once for many tokens.
const TEAMS_TOKENS: usize = 4;

/// Which kernel computes a product.
#[derive(Clone, Copy, Debug)]
pub enum Variant {
    /// An invocation for four rows and some tokens: adapters that run lanes on CPU cores. With
    /// `shuffle` the lanes are those of a subgroup and share their loads of x, with `longs` as numbers of
    /// 64 bits.
    Rows { tokens: usize, lanes: usize, shuffle: bool, longs: bool },
    /// Teams of lanes, each for a few rows, for few tokens. With `subgroups` a team is a subgroup.
    Teams { tokens: usize, rows: usize, lanes: usize, teams: usize, chunk: usize, subgroups: bool },
    /// Tiles of 64 tokens x 128 rows, for many tokens.
    Tiles,
}

impl Variant {
    /// The dispatch for a product of `tokens` x `rows` results, of which each takes two rows of the matrix if
    /// it is `gated`.
    pub(super) fn workgroups(self, tokens: usize, rows: usize, gated: bool) -> [usize; 3] {
        let taken = if gated { 2 } else { 1 };
        match self {
            Self::Rows { tokens: some, lanes, .. } => {
                [rows.div_ceil(4 / taken * lanes), tokens.div_ceil(some), 1]
            }
            Self::Teams { rows: some, teams, .. } => grid(rows.div_ceil(teams * some / taken)),
            Self::Tiles => [rows.div_ceil(128), tokens.div_ceil(64), 1],
        }
    }
}

/// How a device of `profile` makes a product of `tokens` x `rows` results.
pub(super) fn variant(tokens: usize, rows: usize, profile: &Profile) -> Variant {
    if profile.software {
        rows_variant(tokens, profile)
    } else if tokens <= TEAMS_TOKENS {
        teams_variant(tokens, rows, profile)
    } else {
        Variant::Tiles
    }
}

/// How a CPU adapter is best used. Subgroups of eight lanes load a unit of x at once; those of four
/// were measured twice as slow as lanes that load for themselves. More than six tokens spill the
/// sums; Mesa unrolls no loop over eight.
pub(super) fn rows_variant(tokens: usize, profile: &Profile) -> Variant {
    match profile.subgroup_size {
        Some(lanes) if lanes >= 8 => {
            let groups = tokens.div_ceil(6).max(1);
            Variant::Rows { tokens: tokens.div_ceil(groups), lanes, shuffle: true, longs: profile.longs }
        }
        _ => {
            Variant::Rows { tokens: if tokens >= 4 { 4 } else { 1 }, lanes: 16, shuffle: false, longs: false }
        }
    }
}

/// How a GPU is used for few tokens, as it was tuned for one; a kernel for three is the one for four. The chunks
/// of x take at most 14 KiB, the sums without subgroups 6.
fn teams_variant(tokens: usize, rows: usize, profile: &Profile) -> Variant {
    let lanes = profile.subgroup_size.filter(|_| profile.subgroups);
    let (subgroups, lanes) = (lanes.is_some(), lanes.unwrap_or(32));
    let size = profile.tuning.of(rows);
    // More tokens take more workgroup memory.
    let size = if tokens > 1 { TeamSize { rows: 2, lanes: 128 } } else { size };
    let tokens = tokens.next_power_of_two();
    let teams = (size.lanes / lanes).max(1);
    let chunk = if tokens == 1 { 64 } else { 28.max(64 / tokens) };
    Variant::Teams { tokens, rows: size.rows, lanes, teams, chunk, subgroups }
}

/// Where the results of [`Variant::Rows`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Columns,
    /// Into queries and the cache.
    Rotated,
}

/// The WGSL of one variant; `tail` says that the last unit reads past a row of x.
pub fn shader(variant: Variant, format: Format, tail: bool) -> Shader {
    stored_shader(variant, format, tail, Store::Columns)
}

pub(super) fn stored_shader(variant: Variant, format: Format, tail: bool, store: Store) -> Shader {
    let mut constants = reader_constants(format);
    constants.push(("TAIL", tail.to_string()));
    let (name, sources, workgroup_size, subgroups): (_, &'static [&'static str], _, _) = match variant {
        Variant::Rows { tokens, lanes, shuffle, longs } => {
            const ROWS: &str = include_str!("../../../../shaders/matmul_rows.wgsl");
            const X_DIRECT: &str = include_str!("../../../../shaders/shared/x_direct.wgsl");
            const X_SHUFFLE: &str = include_str!("../../../../shaders/shared/x_shuffle.wgsl");
            const LOAD_LONGS: &str = include_str!("../../../../shaders/shared/load_longs.wgsl");
            const COLUMNS: &str = include_str!("../../../../shaders/shared/store_columns.wgsl");
            const ROTATED: &str = include_str!("../../../../shaders/shared/store_rotated.wgsl");
            const DIRECT: &[&str] = &[ROWS, WEIGHTS, LOAD_WORDS, QUADS, X_DIRECT, COLUMNS];
            const SHUFFLE: &[&str] = &[ROWS, WEIGHTS, LOAD_WORDS, QUADS, X_SHUFFLE, COLUMNS];
            const LONGS: &[&str] = &[ROWS, WEIGHTS, LOAD_LONGS, QUADS, X_SHUFFLE, COLUMNS];
            const SHUFFLE_ROTATED: &[&str] = &[ROWS, WEIGHTS, LOAD_WORDS, QUADS, X_SHUFFLE, ROTATED];
            const LONGS_ROTATED: &[&str] = &[ROWS, WEIGHTS, LOAD_LONGS, QUADS, X_SHUFFLE, ROTATED];
            // One scale and offset a unit: the others have none, two, or one a row.
            let scaled =
                !matches!(format, Format::F32 | Format::F16 | Format::Bf16 | Format::Q6K | Format::Fp8);
            constants.push(("TOKENS", u(tokens)));
            constants.push(("LANES", u(lanes)));
            constants.push(("SUM_SCALES", (shuffle && tokens == 1 && scaled).to_string()));
            // The formats with a word of scales a unit.
            constants.push(("GROUP", u(if matches!(format, Format::Q4_1 | Format::Q5_1) { 4 } else { 8 })));
            let (name, sources) = match (shuffle, longs, store) {
                (false, ..) => ("matmul_rows", DIRECT),
                (true, false, Store::Columns) => ("matmul_rows_shuffle", SHUFFLE),
                (true, true, Store::Columns) => ("matmul_rows_longs", LONGS),
                (true, false, Store::Rotated) => ("matmul_rows_shuffle_rotated", SHUFFLE_ROTATED),
                (true, true, Store::Rotated) => ("matmul_rows_longs_rotated", LONGS_ROTATED),
            };
            (name, sources, lanes as u32, shuffle)
        }
        Variant::Teams { tokens, rows, lanes, teams, chunk, subgroups } => {
            const MATVEC: &str = include_str!("../../../../shaders/matvec.wgsl");
            const SUBGROUP: &str = include_str!("../../../../shaders/shared/team_subgroup.wgsl");
            const WORKGROUP: &str = include_str!("../../../../shaders/shared/team_workgroup.wgsl");
            const SUBGROUPS: &[&str] = &[MATVEC, WEIGHTS, LOAD_WORDS, QUADS, SUBGROUP];
            const WORKGROUPS: &[&str] = &[MATVEC, WEIGHTS, LOAD_WORDS, QUADS, WORKGROUP];
            constants.extend([
                ("TOKENS", u(tokens)),
                ("ROWS", u(rows)),
                ("TEAM", u(lanes)),
                ("TEAMS", u(teams)),
                ("CHUNK", u(chunk)),
            ]);
            let (name, sources) =
                if subgroups { ("matvec_subgroups", SUBGROUPS) } else { ("matvec", WORKGROUPS) };
            (name, sources, (lanes * teams) as u32, subgroups)
        }
        Variant::Tiles => {
            const SOURCES: &[&str] = &[include_str!("../../../../shaders/matmul.wgsl"), WEIGHTS, LOAD_WORDS];
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
