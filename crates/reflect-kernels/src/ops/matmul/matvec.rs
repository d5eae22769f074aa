//! Products of few tokens on a GPU: a subgroup takes a few rows. Reading the weights bounds the speed.

use super::{LOAD_WORDS, MatmulArgs, VEC4, WEIGHTS, reads};
use crate::{
    info::DeviceInfo,
    kernel::{Kernel, grid},
};

/// Most tokens. With more, the tiles of `tiled.rs` read each weight once for many tokens.
pub const TOKENS: usize = 4;

/// Rows of a matrix that fill any device with workgroups.
pub const MANY_ROWS: usize = 16_384;

/// Rows of a subgroup and invocations of a workgroup. On an NVIDIA H200 the first is the fastest for matrices of
/// fewer than [`MANY_ROWS`] rows, and the last for larger ones (docs/notes/kernels.md).
const SIZES: [[usize; 2]; 4] = [[2, 256], [2, 128], [4, 128], [4, 256]];

/// The size for more than one token, which need more workgroup memory.
const SIZE_OF_TOKENS: [usize; 2] = [2, 128];

/// The kernels for up to [`TOKENS`] tokens.
pub fn candidates(device: &DeviceInfo, args: &MatmulArgs) -> Vec<Kernel> {
    let mut sizes = SIZES;
    if args.rows >= MANY_ROWS {
        sizes.reverse();
    }
    match args.tokens {
        1 => sizes.map(|size| kernel(device, args, size)).to_vec(),
        ..=TOKENS => vec![kernel(device, args, SIZE_OF_TOKENS)],
        _ => Vec::new(),
    }
}

/// The class of products that share their fastest size.
pub fn class(args: &MatmulArgs) -> Option<&'static str> {
    let name = if args.rows < MANY_ROWS { "product of few rows" } else { "product of many rows" };
    (args.tokens == 1).then_some(name)
}

/// Three tokens use the kernel for four. The chunks of x take at most 14 KiB of workgroup memory, and the sums
/// without subgroups 6 KiB.
fn kernel(device: &DeviceInfo, args: &MatmulArgs, [rows, invocations]: [usize; 2]) -> Kernel {
    const MATVEC: &str = include_str!("../../../../../shaders/matvec.wgsl");
    const SUBGROUP: &str = include_str!("../../../../../shaders/shared/sums_subgroup.wgsl");
    const WORKGROUP: &str = include_str!("../../../../../shaders/shared/sums_workgroup.wgsl");
    let (name, sums) = match device.subgroup() {
        Some(_) => ("matvec_subgroups", SUBGROUP),
        None => ("matvec", WORKGROUP),
    };
    let subgroup = device.subgroup().unwrap_or(32);
    let subgroups = (invocations / subgroup).max(1);
    let tokens = args.tokens.next_power_of_two();
    let kernel = Kernel::new(
        format!("{name} rows={rows} invocations={invocations}"),
        &[MATVEC, WEIGHTS, LOAD_WORDS, VEC4, sums],
        subgroup * subgroups,
        grid(args.results().div_ceil(subgroups * rows / args.taken())),
        &args.params(),
    );
    let kernel = Kernel { subgroups: device.subgroup().is_some(), ..reads(kernel, args.format) };
    args.around
        .of(kernel)
        .with("TAIL", args.has_tail())
        .with("TOKENS", tokens)
        .with("ROWS", rows)
        .with("SUBGROUP", subgroup)
        .with("SUBGROUPS", subgroups)
        .with("CHUNK", if tokens == 1 { 64 } else { 28.max(64 / tokens) })
}
