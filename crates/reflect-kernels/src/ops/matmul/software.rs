//! Products on adapters that run invocations on CPU cores: an invocation takes four rows and some tokens.

use super::{Around, LOAD_WORDS, MatmulArgs, VEC4, WEIGHTS, reads};
use crate::{
    batch::PAGE,
    format::Format,
    info::DeviceInfo,
    kernel::Kernel,
    kv::{KvFormat, PairLayout},
    ops::rope_append::RopeArgs,
};

const ROWS: &str = include_str!("../../../../../shaders/software/matmul_rows.wgsl");
const ROWS_VEC4: &str = include_str!("../../../../../shaders/software/weights_vec4.wgsl");
const LOAD_U64: &str = include_str!("../../../../../shaders/software/load_u64.wgsl");
const X_DIRECT: &str = include_str!("../../../../../shaders/software/x_direct.wgsl");
const X_SHUFFLE: &str = include_str!("../../../../../shaders/software/x_shuffle.wgsl");
const COLUMNS: &str = include_str!("../../../../../shaders/software/store_columns.wgsl");
const ROTATED: &str = include_str!("../../../../../shaders/software/store_rotated.wgsl");

/// The kernel for a device. It fuses other ops if the invocations of a subgroup share their loads of x.
pub fn candidates(device: &DeviceInfo, args: &MatmulArgs) -> Vec<Kernel> {
    let kernel = || kernel(device, args, ["", COLUMNS], [0; 3]);
    match shuffling(device) {
        Some(_) => vec![args.around.of(kernel())],
        None if args.around == Around::Nothing => vec![kernel()],
        None => Vec::new(),
    }
}

/// The kernel with a norm before the product, and the rotation and the append after it.
pub fn rotated(device: &DeviceInfo, product: &MatmulArgs, rope: &RopeArgs) -> Vec<Kernel> {
    let kv = &rope.kv;
    let fits = |lanes: &usize| kv.head_dim.is_multiple_of(4 * lanes) && kv.format != KvFormat::Q8;
    if shuffling(device).filter(fits).is_none() {
        return Vec::new();
    }
    let heads = [rope.heads, kv.kv_heads, rope.batch.rope_at()];
    vec![
        kernel(device, product, ["_rotated", ROTATED], heads)
            .with("NORM", true)
            .with("HALF_SPLIT", kv.layout == PairLayout::HalfSplit)
            .with("CACHE_F16", kv.format == KvFormat::F16)
            .with("PAGE", PAGE)
            .with("HEAD_DIM", kv.head_dim),
    ]
}

/// Lanes of a subgroup that loads a unit of x together. Subgroups of four were half as fast as invocations that
/// load for themselves.
fn shuffling(device: &DeviceInfo) -> Option<usize> {
    device.subgroup().filter(|lanes| *lanes >= 8)
}

/// A kernel that stores its results by `store`; `heads` is for [`ROTATED`]. More than six tokens spill the sums, and
/// Mesa unrolls no loop over eight.
fn kernel(
    device: &DeviceInfo,
    args: &MatmulArgs,
    [suffix, store]: [&'static str; 2],
    heads: [usize; 3],
) -> Kernel {
    let shuffle = shuffling(device);
    let (tokens, lanes) = match shuffle {
        Some(lanes) => (args.tokens.div_ceil(args.tokens.div_ceil(6).max(1)), lanes),
        None => (if args.tokens >= 4 { 4 } else { 1 }, 16),
    };
    let (name, load, x) = match shuffle {
        Some(_) if device.shader_int64 => ("matmul_rows_u64", LOAD_U64, X_SHUFFLE),
        Some(_) => ("matmul_rows_shuffle", LOAD_WORDS, X_SHUFFLE),
        None => ("matmul_rows", LOAD_WORDS, X_DIRECT),
    };
    // These formats have one scale and offset a unit. The others have none, two, or one a row.
    let scaled = !matches!(args.format, Format::F32 | Format::F16 | Format::Bf16 | Format::Q6K | Format::Fp8);
    let kernel = Kernel::new(
        name.to_owned() + suffix,
        &[ROWS, WEIGHTS, load, VEC4, ROWS_VEC4, x, store],
        lanes,
        [args.results().div_ceil(4 / args.taken() * lanes), args.tokens.div_ceil(tokens), 1],
        &[&args.params()[..], &heads].concat(),
    );
    Kernel { subgroups: shuffle.is_some(), ..reads(kernel, args.format) }
        .with("TAIL", args.has_tail())
        .with("TOKENS", tokens)
        .with("LANES", lanes)
        .with("SUM_SCALES", shuffle.is_some() && tokens == 1 && scaled)
        // The formats with one word of scales a unit.
        .with("GROUP", if matches!(args.format, Format::Q4_1 | Format::Q5_1) { 4usize } else { 8 })
}
