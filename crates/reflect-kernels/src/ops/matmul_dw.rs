//! Gradient of a product with respect to its matrix: `grad[n, k] += Σ_t dy[t, n] · x[t, k]`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};
use burn_wgpu::CubeBackend;

use crate::{
    choice::run,
    cpu::{self, Scattered, View},
    format::Format,
    info::DeviceInfo,
    kernel::{Candidates, Kernel},
};

/// Adds the gradient of `rows` rows of the matrix of a [`matmul`](super::matmul()) to `grad`. The rows
/// gave columns `dy_first..dy_first + rows` of the product; `dy` `[T, N]` is the gradient of the product and
/// `x` `[T, K]` its input. `grad` has the layout of the packed
/// f32 rows: `rows` times `Format::F32.row_words(K)` elements, those past column K untouched.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn matmul_dw(grad: Tensor<1>, dy: Tensor<2>, dy_first: usize, x: Tensor<2>, rows: usize) -> Tensor<1> {
    let ([tokens, dy_cols], [x_tokens, cols]) = (dy.dims(), x.dims());
    let stride = Format::F32.row_words(cols);
    assert_eq!(tokens, x_tokens, "matmul_dw: rows of dy and x");
    assert!(dy_first + rows <= dy_cols, "matmul_dw: columns {dy_first} to {} of dy", dy_first + rows);
    assert_eq!(grad.dims(), [rows * stride], "matmul_dw: gradient of {rows} x {cols}");
    let args = DwArgs { tokens, rows, cols, stride, dy_cols, dy_first };
    Tensor::from_dispatch(Dispatch::accumulate_dw(
        grad.into_dispatch(),
        dy.into_dispatch(),
        x.into_dispatch(),
        args,
    ))
}

/// Shape of one gradient: `dy [tokens, dy_cols]` from column `dy_first` on, `x [tokens, cols]`,
/// `grad [rows, stride]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DwArgs {
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    pub dy_cols: usize,
    pub dy_first: usize,
}

#[backend_extension(Cube, Flex)]
pub trait AccumulateDw: burn::backend::Backend {
    /// Adds to `grad` and returns it.
    fn accumulate_dw(
        grad: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        args: DwArgs,
    ) -> FloatTensor<Self>;
}

/// The gradient in plain loops, in f64, added to `grad`.
pub fn reference(grad: &mut [f32], dy: &[f32], x: &[f32], args: &DwArgs) {
    for (n, grad) in grad.chunks_mut(args.stride).enumerate() {
        for (k, grad) in grad.iter_mut().take(args.cols).enumerate() {
            let terms = dy.chunks(args.dy_cols).zip(x.chunks(args.cols));
            let sum: f64 = terms.map(|(dy, x)| f64::from(dy[args.dy_first + n]) * f64::from(x[k])).sum();
            *grad = (f64::from(*grad) + sum) as f32;
        }
    }
}

impl AccumulateDw for CubeBackend {
    fn accumulate_dw(
        grad: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        args: DwArgs,
    ) -> FloatTensor<Self> {
        let (dy, x) = (burn_wgpu::into_contiguous(dy), burn_wgpu::into_contiguous(x));
        run(&args, &[&dy, &x, &grad]);
        grad
    }
}

impl Candidates for DwArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/matmul_dw.wgsl");
        let Self { tokens, rows, cols, stride, dy_cols, dy_first } = *self;
        let workgroups = [cols.div_ceil(64), rows.div_ceil(64), 1];
        let params = [tokens, rows, cols, stride, dy_cols, dy_first, cols];
        vec![Kernel::new("matmul_dw", &[SOURCE], 256, workgroups, &params)]
    }

    fn samples() -> Vec<Self> {
        vec![Self { tokens: 1, rows: 1, cols: 1, stride: 4, dy_cols: 1, dy_first: 0 }]
    }
}

impl AccumulateDw for Flex {
    fn accumulate_dw(
        mut grad: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        args: DwArgs,
    ) -> FloatTensor<Self> {
        let (dy, x) = (cpu::contiguous(dy), cpu::contiguous(x));
        let lhs = View::rows(cpu::floats(&dy), args.dy_first, args.dy_cols).transposed();
        let rhs = View::rows(cpu::floats(&x), 0, args.cols);
        let out = Scattered::new(grad.storage_mut::<f32>());
        let sizes = [args.rows, args.cols, args.tokens];
        // SAFETY: nothing else writes `grad` now.
        unsafe { cpu::product(sizes, lhs, rhs, out, 0, args.stride, 1.0, true, true) };
        grad
    }
}
