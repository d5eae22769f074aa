//! Gradient of [`swiglu`](super::swiglu()): with σ the logistic function of the gate,
//! `dgate = d · up · σ (1 + gate (1 - σ))` and `dup = d · gate · σ`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::{empty_like, swiglu::GateArgs};
use crate::{
    choice::run,
    cpu::{self, Scattered, dispatch_simd, exp, fma},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
};

/// Gradient `[T, 2 F]` of `gate_up` from `d` `[T, F]`, the gradient of the activation.
///
/// # Panics
/// If the shapes do not fit.
pub fn swiglu_backward(gate_up: Tensor<2>, d: Tensor<2>) -> Tensor<2> {
    let [tokens, cols] = d.dims();
    assert_eq!(gate_up.dims(), [tokens, 2 * cols], "swiglu_backward: gates and ups of {cols} columns");
    let (gate_up, d) = (gate_up.into_dispatch(), d.into_dispatch());
    Tensor::from_dispatch(Dispatch::gated_silu_backward(gate_up, d, GateArgs { tokens, cols }))
}

#[backend_extension(Cube, Flex)]
pub trait GatedSiluBackward: burn::backend::Backend {
    /// `gate_up` and the result are `[tokens, 2 cols]`, `d` is `[tokens, cols]`.
    fn gated_silu_backward(
        gate_up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        args: GateArgs,
    ) -> FloatTensor<Self>;
}

/// The gradient in plain loops, in f64.
pub fn reference(gate_up: &[f32], d: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len());
    for (row, d) in gate_up.chunks(2 * cols).zip(d.chunks(cols)) {
        let terms = || (0..cols).map(|i| (f64::from(row[i]), f64::from(row[cols + i]), f64::from(d[i])));
        let sigmoid = |gate: f64| 1.0 / (1.0 + (-gate).exp());
        out.extend(terms().map(|(gate, up, d)| {
            let s = sigmoid(gate);
            (d * up * s * (1.0 + gate * (1.0 - s))) as f32
        }));
        out.extend(terms().map(|(gate, _, d)| (d * gate * sigmoid(gate)) as f32));
    }
    out
}

impl GatedSiluBackward for CubeBackend {
    fn gated_silu_backward(
        gate_up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        args: GateArgs,
    ) -> FloatTensor<Self> {
        let (gate_up, d) = (burn_wgpu::into_contiguous(gate_up), burn_wgpu::into_contiguous(d));
        let out = empty_like(&gate_up, Shape::new([args.tokens, 2 * args.cols]), DType::F32);
        run(&Gradient(args), &[&gate_up, &d, &out]);
        out
    }
}

/// The kernels of the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gradient(pub GateArgs);

impl Candidates for Gradient {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/swiglu_backward.wgsl");
        let GateArgs { tokens, cols } = self.0;
        let [y, z, _] = grid(tokens);
        vec![Kernel::new("swiglu_backward", &[SOURCE], 64, [cols.div_ceil(64), y, z], &[tokens, cols])]
    }

    fn samples() -> Vec<Self> {
        GateArgs::samples().into_iter().map(Self).collect()
    }
}

impl GatedSiluBackward for Flex {
    fn gated_silu_backward(
        gate_up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        GateArgs { tokens, cols }: GateArgs,
    ) -> FloatTensor<Self> {
        let (gate_up, d) = (cpu::contiguous(gate_up), cpu::contiguous(d));
        let mut out = cpu::zeros(Shape::new([tokens, 2 * cols]));
        let (from, d) = (cpu::floats(&gate_up), cpu::floats(&d));
        let slots = Scattered::new(out.storage_mut::<f32>());
        cpu::for_each(tokens, |token| {
            let (gate, up) = from[token * 2 * cols..][..2 * cols].split_at(cols);
            // SAFETY: each row is written by one call.
            let (dgate, dup) = unsafe { slots.slice(token * 2 * cols, 2 * cols) }.split_at_mut(cols);
            gradient_row(gate, up, &d[token * cols..][..cols], dgate, dup);
        });
        out
    }
}

dispatch_simd! {
    fn gradient_row = gradient_row_body(gate: &[f32], up: &[f32], d: &[f32], dgate: &mut [f32], dup: &mut [f32])
}

#[inline(always)]
fn gradient_row_body<const FMA: bool>(
    gate: &[f32],
    up: &[f32],
    d: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let inputs = gate.iter().zip(up).zip(d);
    for ((dgate, dup), ((gate, up), d)) in dgate.iter_mut().zip(dup).zip(inputs) {
        let s = 1.0 / (1.0 + exp::<FMA>(-gate));
        *dup = d * gate * s;
        *dgate = d * up * s * fma::<FMA>(*gate, 1.0 - s, 1.0);
    }
}
