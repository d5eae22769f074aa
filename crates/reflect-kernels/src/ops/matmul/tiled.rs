//! Products of many tokens on a GPU: tiles of 64 tokens by 128 rows.

use super::{Around, LOAD_WORDS, MatmulArgs, WEIGHTS, matvec, reads};
use crate::kernel::Kernel;

/// The kernel for more tokens than `matvec.rs` takes. It fuses an addition, but no norm.
pub fn candidates(args: &MatmulArgs) -> Vec<Kernel> {
    const SOURCES: &[&str] = &[include_str!("../../../../../shaders/matmul.wgsl"), WEIGHTS, LOAD_WORDS];
    if args.tokens <= matvec::TOKENS || matches!(args.around, Around::Norm { .. }) {
        return Vec::new();
    }
    let workgroups = [args.rows.div_ceil(128), args.tokens.div_ceil(64), 1];
    let kernel = reads(Kernel::new("matmul", SOURCES, 256, workgroups, &args.params()), args.format);
    vec![kernel.with("TAIL", args.has_tail()).with("ADD", args.around == Around::Add)]
}
