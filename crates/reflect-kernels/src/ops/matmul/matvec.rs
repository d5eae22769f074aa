//! Products of few tokens on a GPU, whose speed is that of reading the weights: a subgroup takes a few rows.

use super::{LOAD_WORDS, MatmulArgs, VEC4, WEIGHTS, reads};
use crate::{
    info::DeviceInfo,
    kernel::{Kernel, grid},
};

/// Most tokens: above it a tile reads each weight once for many tokens.
pub const TOKENS: usize = 4;

/// Rows of a matrix that fill any device with workgroups.
pub const MANY_ROWS: usize = 16_384;

/// Rows of a subgroup and invocations of a workgroup; the first is the fastest for matrices of fewer than
/// [`MANY_ROWS`] rows on an NVIDIA H200, the last for others (docs/measurements.md).
const SIZES: [[usize; 2]; 4] = [[2, 256], [2, 128], [4, 128], [4, 256]];

/// For more than one token, which take more workgroup memory.
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

/// Which products have the fastest size in common.
pub fn class(args: &MatmulArgs) -> Option<&'static str> {
    let name = if args.rows < MANY_ROWS { "product of few rows" } else { "product of many rows" };
    (args.tokens == 1).then_some(name)
}

/// A kernel for three tokens is the one for four. The chunks of x take at most 14 KiB, the sums without subgroups 6.
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
