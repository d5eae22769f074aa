//! The optimiser's step (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over a parameter,
//! and the sum of squares by which gradients are clipped.

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Device, Int, Shape, Tensor, TensorData},
};
use burn_flex::FlexTensor;
use burn_wgpu::CubeBackend;

use super::{REDUCE_WORKGROUP, empty_like};
use crate::{
    choice::{kernel, run},
    cpu::{self, Scattered, dispatch_simd, fma},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid, launch},
};

/// The numbers of a step of AdamW, beside the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Weight decay: times the learning rate, the share of a weight that is subtracted before the update.
    pub decay: f64,
    /// Number of the step, from 1.
    pub step: u64,
    /// Factor of all gradients, for clipping.
    pub grad_scale: f64,
}

impl AdamStep {
    /// The numbers as the kernel reads them: learning rate, beta1, beta2, eps, decay, the two bias
    /// corrections, gradient scale.
    fn values(&self) -> [f32; 8] {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(self.step as f64));
        [
            self.rate,
            self.beta1,
            self.beta2,
            self.eps,
            self.decay,
            correction(self.beta1),
            correction(self.beta2),
            self.grad_scale,
        ]
        .map(|v| v as f32)
    }

    /// The numbers on the device, for [`adamw_words`] and [`adamw_vector`].
    pub fn upload(&self, device: &Device) -> Tensor<1> {
        Tensor::from_data(TensorData::new(self.values().to_vec(), [8]), device)
    }
}

/// First and second moments of a parameter's gradient, in the layout of the parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    pub m: Tensor<1>,
    pub v: Tensor<1>,
}

/// One step for the packed f32 words of a matrix; `step` comes from [`AdamStep::upload`]. Returns the
/// new weights and moments.
///
/// # Panics
/// If the lengths differ.
pub fn adamw_words(
    words: Tensor<1, Int>,
    grad: Tensor<1>,
    moments: Moments,
    step: &Tensor<1>,
) -> (Tensor<1, Int>, Moments) {
    let len = checked_len(words.dims(), &grad, &moments);
    let (words, m, v) = Dispatch::adamw_words(
        words.into_dispatch(),
        grad.into_dispatch(),
        moments.m.into_dispatch(),
        moments.v.into_dispatch(),
        step.clone().into_dispatch(),
        len,
    );
    (Tensor::from_dispatch(words), Moments { m: Tensor::from_dispatch(m), v: Tensor::from_dispatch(v) })
}

/// One step for a vector, which is never decayed.
///
/// # Panics
/// If the lengths differ.
pub fn adamw_vector(
    weight: Tensor<1>,
    grad: Tensor<1>,
    moments: Moments,
    step: &Tensor<1>,
) -> (Tensor<1>, Moments) {
    let len = checked_len(weight.dims(), &grad, &moments);
    let (weight, m, v) = Dispatch::adamw_vector(
        weight.into_dispatch(),
        grad.into_dispatch(),
        moments.m.into_dispatch(),
        moments.v.into_dispatch(),
        step.clone().into_dispatch(),
        len,
    );
    (Tensor::from_dispatch(weight), Moments { m: Tensor::from_dispatch(m), v: Tensor::from_dispatch(v) })
}

fn checked_len([len]: [usize; 1], grad: &Tensor<1>, moments: &Moments) -> usize {
    assert_eq!(
        (grad.dims(), moments.m.dims(), moments.v.dims()),
        ([len], [len], [len]),
        "adamw: gradient and moments of {len} weights"
    );
    len
}

/// Sums of the squares of a gradient's parts: one number a part, for the host to add.
pub fn square_sums(grad: Tensor<1>) -> Tensor<1> {
    let [len] = grad.dims();
    Tensor::from_dispatch(Dispatch::square_sums(grad.into_dispatch(), len))
}

#[backend_extension(Cube, Flex)]
pub trait AdamW: burn::backend::Backend {
    /// Returns weights and moments after the step.
    fn adamw_words(
        words: IntTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        len: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// The same without decay.
    fn adamw_vector(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Sums of squares of consecutive parts.
    fn square_sums(grad: FloatTensor<Self>, len: usize) -> FloatTensor<Self>;
}

/// The step in plain loops, in f64, in place.
pub fn reference(w: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamStep) {
    let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
    for (((w, grad), m), v) in w.iter_mut().zip(grad).zip(m).zip(v) {
        let g = f64::from(*grad) * step.grad_scale;
        let first = step.beta1 * f64::from(*m) + (1.0 - step.beta1) * g;
        let second = step.beta2 * f64::from(*v) + (1.0 - step.beta2) * g * g;
        let kept = f64::from(*w) * (1.0 - step.rate * step.decay);
        let root = (second / correction(step.beta2)).sqrt() + step.eps;
        *w = (kept - step.rate * (first / correction(step.beta1)) / root) as f32;
        *m = first as f32;
        *v = second as f32;
    }
}

/// Most parts of a [`square_sums`].
const PARTS: usize = 256;

impl AdamW for CubeBackend {
    fn adamw_words(
        words: IntTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        len: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        run(&StepArgs { len, decay: true }, &[&words, &grad, &m, &v, &step]);
        (words, m, v)
    }

    fn adamw_vector(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        len: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        run(&StepArgs { len, decay: false }, &[&weight, &grad, &m, &v, &step]);
        (weight, m, v)
    }

    fn square_sums(grad: FloatTensor<Self>, len: usize) -> FloatTensor<Self> {
        let grad = burn_wgpu::into_contiguous(grad);
        let kernel = kernel(&grad, &SquaresArgs { len });
        let sums = empty_like(&grad, Shape::new([kernel.splits]), DType::F32);
        launch(&kernel, &[&grad, &sums]);
        sums
    }
}

/// One step for `len` weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepArgs {
    pub len: usize,
    pub decay: bool,
}

impl Candidates for StepArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const ADAMW: &str = include_str!("../../../../shaders/adamw.wgsl");
        let workgroups = grid(self.len.div_ceil(64));
        vec![Kernel::new("adamw", &[ADAMW], 64, workgroups, &[self.len]).with("DECAY", self.decay)]
    }

    fn samples() -> Vec<Self> {
        [false, true].map(|decay| Self { len: 1, decay }).to_vec()
    }
}

/// The sums of squares of a gradient of `len` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SquaresArgs {
    pub len: usize,
}

impl Candidates for SquaresArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCES: &[&str] = &[include_str!("../../../../shaders/square_sum.wgsl"), REDUCE_WORKGROUP];
        let splits = self.len.div_ceil(1024).clamp(1, PARTS);
        let kernel = Kernel::new("square_sum", SOURCES, 256, [splits, 1, 1], &[self.len, splits]);
        vec![Kernel { splits, ..kernel }.with("INVOCATIONS", 256usize)]
    }

    fn samples() -> Vec<Self> {
        vec![Self { len: 1 }]
    }
}

/// Weights of one task.
const SPAN: usize = 16_384;

impl AdamW for Flex {
    fn adamw_words(
        mut words: IntTensor<Self>,
        grad: FloatTensor<Self>,
        mut m: FloatTensor<Self>,
        mut v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        _: usize,
    ) -> (IntTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let weights: &mut [f32] = bytemuck::cast_slice_mut(words.storage_mut::<i32>());
        update(weights, cpu::floats(&grad), [&mut m, &mut v], cpu::floats(&step), true);
        (words, m, v)
    }

    fn adamw_vector(
        mut weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        mut m: FloatTensor<Self>,
        mut v: FloatTensor<Self>,
        step: FloatTensor<Self>,
        _: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let weights = weight.storage_mut::<f32>();
        update(weights, cpu::floats(&grad), [&mut m, &mut v], cpu::floats(&step), false);
        (weight, m, v)
    }

    fn square_sums(grad: FloatTensor<Self>, len: usize) -> FloatTensor<Self> {
        let grad = cpu::contiguous(grad);
        let values = cpu::floats(&grad);
        let parts = len.div_ceil(SPAN).max(1);
        let mut sums = cpu::zeros(Shape::new([parts]));
        let slots = Scattered::new(sums.storage_mut::<f32>());
        cpu::for_each(parts, |part| {
            let span = &values[part * SPAN..((part + 1) * SPAN).min(len)];
            // SAFETY: each part is written by one call.
            unsafe { slots.set(part, squares(span)) };
        });
        sums
    }
}

/// One step on all threads.
fn update(weights: &mut [f32], grad: &[f32], [m, v]: [&mut FlexTensor; 2], step: &[f32], decay: bool) {
    let len = weights.len();
    let weights = Scattered::new(weights);
    let (m, v) = (Scattered::new(m.storage_mut::<f32>()), Scattered::new(v.storage_mut::<f32>()));
    cpu::for_each(len.div_ceil(SPAN), |task| {
        let first = task * SPAN;
        let count = SPAN.min(len - first);
        // SAFETY: spans do not overlap.
        let (w, m, v) =
            unsafe { (weights.slice(first, count), m.slice(first, count), v.slice(first, count)) };
        update_span(w, &grad[first..first + count], m, v, step, decay);
    });
}

dispatch_simd! {
    fn update_span = update_span_body(
        w: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], step: &[f32], decay: bool,
    )
}

#[inline(always)]
fn update_span_body<const FMA: bool>(
    w: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &[f32],
    decay: bool,
) {
    let [rate, beta1, beta2, eps, share, correct1, correct2, grad_scale] = *step else { return };
    let keep = if decay { 1.0 - rate * share } else { 1.0 };
    let (step1, new1, new2) = (rate * correct1, 1.0 - beta1, 1.0 - beta2);
    for (((w, grad), m), v) in w.iter_mut().zip(grad).zip(m).zip(v) {
        let g = grad * grad_scale;
        *m = fma::<FMA>(beta1, *m, new1 * g);
        *v = fma::<FMA>(beta2, *v, new2 * g * g);
        *w = fma::<FMA>(*w, keep, -step1 * *m / ((*v * correct2).sqrt() + eps));
    }
}

dispatch_simd! { fn squares = squares_body(values: &[f32]) -> f32 }

#[inline(always)]
fn squares_body<const FMA: bool>(values: &[f32]) -> f32 {
    cpu::dot::<FMA>(values, values)
}
