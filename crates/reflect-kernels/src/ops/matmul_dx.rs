//! Gradient of a product with respect to its input: `dx[t, k] = Σ_n dy[t, n] · w[n, k]`.

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::Tensor,
};
use burn_wgpu::CubeBackend;

use crate::{
    choice::run,
    cpu::{self, Scattered, View},
    format::{Format, UNIT, unpack_row},
    info::DeviceInfo,
    kernel::{Candidates, Kernel},
    matrix::PackedMatrix,
};

use super::{
    matmul::{LOAD_WORDS, WEIGHTS, reads},
    output,
};

/// Gradient `[T, K]` of the input of [`matmul`](super::matmul()), from the gradient `dy` `[T, N]` of
/// its output and the matrix `w` `[N, K]` in any format.
///
/// # Panics
/// If the columns of `dy` are not the rows of `w`.
pub fn matmul_dx(dy: Tensor<2>, w: &PackedMatrix) -> Tensor<2> {
    let [tokens, rows] = dy.dims();
    assert_eq!(rows, w.rows(), "matmul_dx: dy is {tokens} x {rows}, w has {} rows", w.rows());
    let mut dx = output([tokens, w.cols], &dy.device());
    let mut dy_first = 0;
    for part in &w.parts {
        let args = DxArgs {
            format: part.format,
            tokens,
            rows: part.rows,
            cols: w.cols,
            dy_cols: rows,
            dy_first,
            add: dy_first > 0,
        };
        dx = Tensor::from_dispatch(Dispatch::packed_matmul_dx(
            dy.clone().into_dispatch(),
            part.words.clone().into_dispatch(),
            dx.into_dispatch(),
            args,
        ));
        dy_first += part.rows;
    }
    dx
}

/// Shape of one part's share: columns `dy_first..dy_first + rows` of `dy [tokens, dy_cols]` times a
/// part `[rows, cols]`, written or added to `dx [tokens, cols]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DxArgs {
    pub format: Format,
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
    pub dy_cols: usize,
    pub dy_first: usize,
    pub add: bool,
}

#[backend_extension(Cube, Flex)]
pub trait PackedMatmulDx: burn::backend::Backend {
    /// Writes one part's share into `dx` and returns it.
    fn packed_matmul_dx(
        dy: FloatTensor<Self>,
        words: IntTensor<Self>,
        dx: FloatTensor<Self>,
        args: DxArgs,
    ) -> FloatTensor<Self>;
}

/// The gradient in plain loops over one packed part that is the whole matrix, in f64.
pub fn reference(dy: &[f32], words: &[u32], args: &DxArgs) -> Vec<f32> {
    let row_words = args.format.row_words(args.cols);
    let mut sums = vec![0f64; args.tokens * args.cols];
    let mut row = vec![0.0; args.cols];
    for n in 0..args.rows {
        unpack_row(args.format, args.cols, &words[n * row_words..][..row_words], &mut row);
        for (sums, dy) in sums.chunks_mut(args.cols).zip(dy.chunks(args.dy_cols)) {
            for (sum, w) in sums.iter_mut().zip(&row) {
                *sum += f64::from(dy[args.dy_first + n]) * f64::from(*w);
            }
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

impl PackedMatmulDx for CubeBackend {
    fn packed_matmul_dx(
        dy: FloatTensor<Self>,
        words: IntTensor<Self>,
        dx: FloatTensor<Self>,
        args: DxArgs,
    ) -> FloatTensor<Self> {
        let dy = burn_wgpu::into_contiguous(dy);
        run(&args, &[&words, &dy, &dx]);
        dx
    }
}

impl Candidates for DxArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCES: &[&str] = &[include_str!("../../../../shaders/matmul_dx.wgsl"), WEIGHTS, LOAD_WORDS];
        let Self { format, tokens, rows, cols, dy_cols, dy_first, add } = *self;
        let (units, row_vec4) = (cols.div_ceil(UNIT), format.row_words(cols) / 4);
        let workgroups = [cols.div_ceil(64), tokens.div_ceil(64), 1];
        let params = [tokens, rows, units, row_vec4, cols, dy_cols, dy_first];
        vec![
            reads(Kernel::new("matmul_dx", SOURCES, 256, workgroups, &params), format)
                .with("ACCUMULATE", add),
        ]
    }

    fn samples() -> Vec<Self> {
        let new = |format| {
            let new = |add| Self { format, tokens: 1, rows: 1, cols: 64, dy_cols: 1, dy_first: 0, add };
            [false, true].map(new)
        };
        Format::ALL.into_iter().flat_map(new).collect()
    }
}

/// Packed rows that are widened at a time.
const PANEL: usize = 256;

impl PackedMatmulDx for Flex {
    fn packed_matmul_dx(
        dy: FloatTensor<Self>,
        words: IntTensor<Self>,
        mut dx: FloatTensor<Self>,
        args: DxArgs,
    ) -> FloatTensor<Self> {
        let dy = cpu::contiguous(dy);
        let (from, words) = (cpu::floats(&dy), cpu::words(&words));
        let out = Scattered::new(dx.storage_mut::<f32>());
        let row_words = args.format.row_words(args.cols);
        if args.format == Format::F32 {
            let lhs = View::rows(from, args.dy_first, args.dy_cols);
            let rhs = View::rows(bytemuck::cast_slice(words), 0, row_words);
            let sizes = [args.tokens, args.cols, args.rows];
            // SAFETY: nothing else writes `dx` now.
            unsafe { cpu::product(sizes, lhs, rhs, out, 0, args.cols, 1.0, args.add, true) };
            return dx;
        }
        let mut panel = vec![0f32; PANEL.min(args.rows) * args.cols];
        for first in (0..args.rows).step_by(PANEL) {
            let count = PANEL.min(args.rows - first);
            let slots = Scattered::new(&mut panel);
            cpu::for_each(count, |n| {
                // SAFETY: each row is written by one call.
                let wide = unsafe { slots.slice(n * args.cols, args.cols) };
                unpack_row(args.format, args.cols, &words[(first + n) * row_words..][..row_words], wide);
            });
            let lhs = View::rows(from, args.dy_first + first, args.dy_cols);
            let rhs = View::rows(&panel, 0, args.cols);
            let add = args.add || first > 0;
            // SAFETY: nothing else writes `dx` now.
            unsafe {
                cpu::product([args.tokens, args.cols, count], lhs, rhs, out, 0, args.cols, 1.0, add, true);
            }
        }
        dx
    }
}
