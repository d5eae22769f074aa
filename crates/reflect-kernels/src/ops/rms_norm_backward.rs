//! Gradients of [`rms_norm`](super::rms_norm()): with `s = 1 / sqrt(mean(x²) + eps)` and `g = dy · w`,
//! `dx = s (g - x s² mean(g x))` and `dw = Σ_t dy x s`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::{
    REDUCE_WORKGROUP, empty_like,
    rms_norm::{Eps, NormArgs},
};
use crate::{
    choice::run,
    cpu::{self, Scattered, dispatch_simd, fma},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
};

/// Gradient of the input `x` `[T, D]` plus `add`, the gradient that reaches `x` past the norm, and
/// the scales `s` `[T]` for [`rms_norm_dw`].
///
/// # Panics
/// If the shapes differ.
pub fn rms_norm_backward(
    x: Tensor<2>,
    weight: Tensor<1>,
    dy: Tensor<2>,
    add: Tensor<2>,
    eps: f64,
) -> (Tensor<2>, Tensor<1>) {
    let [rows, cols] = x.dims();
    assert_eq!((dy.dims(), add.dims()), (x.dims(), x.dims()), "rms_norm_backward: gradients");
    assert_eq!(weight.dims(), [cols], "rms_norm_backward: weight for rows of {cols}");
    let args = NormArgs { rows, cols, eps: Eps::new(eps), residual: true };
    let (dx, scales) = Dispatch::norm_dx(
        x.into_dispatch(),
        weight.into_dispatch(),
        dy.into_dispatch(),
        add.into_dispatch(),
        args,
    );
    (Tensor::from_dispatch(dx), Tensor::from_dispatch(scales))
}

/// Adds the gradient of the norm's weight to `grad` `[D]`.
///
/// # Panics
/// If the shapes differ.
pub fn rms_norm_dw(grad: Tensor<1>, x: Tensor<2>, dy: Tensor<2>, scales: Tensor<1>) -> Tensor<1> {
    let [rows, cols] = x.dims();
    assert_eq!(dy.dims(), x.dims(), "rms_norm_dw: gradient");
    assert_eq!((grad.dims(), scales.dims()), ([cols], [rows]), "rms_norm_dw: weight and scales");
    Tensor::from_dispatch(Dispatch::norm_dw(
        grad.into_dispatch(),
        x.into_dispatch(),
        dy.into_dispatch(),
        scales.into_dispatch(),
        NormDwArgs { rows, cols },
    ))
}

/// Shape of a weight's gradient: `x` `[rows, cols]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NormDwArgs {
    pub rows: usize,
    pub cols: usize,
}

#[backend_extension(Cube, Flex)]
pub trait RmsNormBackward: burn::backend::Backend {
    /// Returns `dx` with `add` added, and the scales.
    fn norm_dx(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        add: FloatTensor<Self>,
        args: NormArgs,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Adds to `grad` and returns it.
    fn norm_dw(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        args: NormDwArgs,
    ) -> FloatTensor<Self>;
}

/// `dx` and scales in plain loops, in f64.
pub fn reference(x: &[f32], weight: &[f32], dy: &[f32], add: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let cols = weight.len();
    let (mut dx, mut scales) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len() / cols));
    for ((x, dy), add) in x.chunks(cols).zip(dy.chunks(cols)).zip(add.chunks(cols)) {
        let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
        let s = 1.0 / (squares / cols as f64 + f64::from(eps)).sqrt();
        let g: Vec<f64> = dy.iter().zip(weight).map(|(d, w)| f64::from(*d) * f64::from(*w)).collect();
        let mean = g.iter().zip(x).map(|(g, x)| g * f64::from(*x)).sum::<f64>() / cols as f64;
        let row = g.iter().zip(x).zip(add);
        dx.extend(row.map(|((g, x), a)| (s * (g - f64::from(*x) * s * s * mean) + f64::from(*a)) as f32));
        scales.push(s as f32);
    }
    (dx, scales)
}

/// The gradient of the weight in plain loops, in f64, added to `grad`.
pub fn reference_dw(grad: &mut [f32], x: &[f32], dy: &[f32], scales: &[f32]) {
    let cols = grad.len();
    for (i, grad) in grad.iter_mut().enumerate() {
        let sum: f64 = scales
            .iter()
            .enumerate()
            .map(|(t, s)| f64::from(dy[t * cols + i]) * f64::from(x[t * cols + i]) * f64::from(*s))
            .sum();
        *grad = (f64::from(*grad) + sum) as f32;
    }
}

impl RmsNormBackward for CubeBackend {
    fn norm_dx(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        add: FloatTensor<Self>,
        args: NormArgs,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, dy, add] = [x, dy, add].map(burn_wgpu::into_contiguous);
        let dx = empty_like(&x, Shape::new([args.rows, args.cols]), DType::F32);
        let scales = empty_like(&x, Shape::new([args.rows]), DType::F32);
        run(&NormDx(args), &[&x, &weight, &dy, &add, &dx, &scales]);
        (dx, scales)
    }

    fn norm_dw(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        args: NormDwArgs,
    ) -> FloatTensor<Self> {
        let [x, dy] = [x, dy].map(burn_wgpu::into_contiguous);
        run(&args, &[&x, &dy, &scales, &grad]);
        grad
    }
}

/// The kernels of the input's gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NormDx(pub NormArgs);

impl Candidates for NormDx {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/rms_norm_backward.wgsl");
        let NormArgs { rows, cols, eps, .. } = self.0;
        let params = [rows, cols, eps.bits()];
        let sources = [SOURCE, REDUCE_WORKGROUP];
        vec![Kernel::new("rms_norm_backward", &sources, 64, grid(rows), &params).with("INVOCATIONS", 64usize)]
    }

    fn samples() -> Vec<Self> {
        NormArgs::samples().into_iter().map(Self).collect()
    }
}

impl Candidates for NormDwArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/rms_norm_dw.wgsl");
        let workgroups = [self.cols.div_ceil(16), 1, 1];
        vec![Kernel::new("rms_norm_dw", &[SOURCE], 256, workgroups, &[self.rows, self.cols])]
    }

    fn samples() -> Vec<Self> {
        vec![Self { rows: 1, cols: 1 }]
    }
}

/// Rows whose share of the weight's gradient is summed by one task; a constant, so that the sums do
/// not depend on the number of threads.
const ROWS: usize = 256;

impl RmsNormBackward for Flex {
    fn norm_dx(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        add: FloatTensor<Self>,
        args: NormArgs,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, dy, add] = [x, dy, add].map(cpu::contiguous);
        let mut dx = cpu::zeros(Shape::new([args.rows, args.cols]));
        let mut scales = cpu::zeros(Shape::new([args.rows]));
        let (x, dy, add, weight) =
            (cpu::floats(&x), cpu::floats(&dy), cpu::floats(&add), cpu::floats(&weight));
        let (dx_slots, scale_slots) =
            (Scattered::new(dx.storage_mut::<f32>()), Scattered::new(scales.storage_mut::<f32>()));
        cpu::for_each(args.rows, |row| {
            let line = row * args.cols..(row + 1) * args.cols;
            // SAFETY: each row is written by one call.
            let to = unsafe { dx_slots.slice(line.start, args.cols) };
            let scale = dx_row(&x[line.clone()], weight, &dy[line.clone()], &add[line], args.eps.get(), to);
            // SAFETY: as above.
            unsafe { scale_slots.set(row, scale) };
        });
        (dx, scales)
    }

    fn norm_dw(
        mut grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        NormDwArgs { rows, cols }: NormDwArgs,
    ) -> FloatTensor<Self> {
        let [x, dy] = [x, dy].map(cpu::contiguous);
        let (x, dy, scales) = (cpu::floats(&x), cpu::floats(&dy), cpu::floats(&scales));
        let tasks = rows.div_ceil(ROWS);
        let mut sums = vec![0f32; tasks * cols];
        let slots = Scattered::new(&mut sums);
        cpu::for_each(tasks, |task| {
            let rows = task * ROWS..((task + 1) * ROWS).min(rows);
            // SAFETY: each task has a row of sums of its own.
            let sums = unsafe { slots.slice(task * cols, cols) };
            dw_rows(x, dy, scales, rows, sums);
        });
        let grad_values = grad.storage_mut::<f32>();
        for sums in sums.chunks(cols) {
            for (grad, sum) in grad_values.iter_mut().zip(sums) {
                *grad += sum;
            }
        }
        grad
    }
}

dispatch_simd! {
    fn dx_row = dx_row_body(x: &[f32], w: &[f32], dy: &[f32], add: &[f32], eps: f32, to: &mut [f32]) -> f32
}

#[inline(always)]
fn dx_row_body<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    dy: &[f32],
    add: &[f32],
    eps: f32,
    to: &mut [f32],
) -> f32 {
    let scale = 1.0 / (cpu::dot::<FMA>(x, x) / x.len() as f32 + eps).sqrt();
    for ((to, dy), w) in to.iter_mut().zip(dy).zip(w) {
        *to = dy * w;
    }
    let mean = cpu::dot::<FMA>(to, x) / x.len() as f32;
    let back = -scale * scale * mean;
    for ((to, x), add) in to.iter_mut().zip(x).zip(add) {
        *to = fma::<FMA>(scale, fma::<FMA>(*x, back, *to), *add);
    }
    scale
}

dispatch_simd! {
    fn dw_rows = dw_rows_body(
        x: &[f32], dy: &[f32], scales: &[f32], rows: std::ops::Range<usize>, sums: &mut [f32],
    )
}

#[inline(always)]
fn dw_rows_body<const FMA: bool>(
    x: &[f32],
    dy: &[f32],
    scales: &[f32],
    rows: std::ops::Range<usize>,
    sums: &mut [f32],
) {
    let cols = sums.len();
    for row in rows {
        let scale = scales[row];
        let lines = x[row * cols..][..cols].iter().zip(&dy[row * cols..][..cols]);
        for (sum, (x, dy)) in sums.iter_mut().zip(lines) {
            *sum = fma::<FMA>(*x * scale, *dy, *sum);
        }
    }
}
