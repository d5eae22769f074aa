//! The gated activation of a Llama block (Shazeer 2020, arXiv 2002.05202): `silu(gate) · up`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::empty_like;
use crate::{
    choice::run,
    cpu::{self, Scattered, dispatch_simd, exp},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
};

/// `silu(gate) · up` for `gate_up` `[T, 2 F]` with the gates first: `[T, F]`.
///
/// # Panics
/// If the columns are odd.
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let [tokens, cols] = gate_up.dims();
    assert!(cols.is_multiple_of(2), "swiglu: {cols} columns are not gates and ups");
    Tensor::from_dispatch(Dispatch::gated_silu(gate_up.into_dispatch(), GateArgs { tokens, cols: cols / 2 }))
}

/// Shape of an activation of `gate_up` `[tokens, 2 cols]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GateArgs {
    pub tokens: usize,
    pub cols: usize,
}

#[backend_extension(Cube, Flex)]
pub trait GatedSilu: burn::backend::Backend {
    /// `[tokens, cols]`.
    fn gated_silu(gate_up: FloatTensor<Self>, args: GateArgs) -> FloatTensor<Self>;
}

/// The activation in plain loops, in f64.
pub fn reference(gate_up: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks(2 * cols) {
        let (gate, up) = row.split_at(cols);
        out.extend(gate.iter().zip(up).map(|(g, u)| {
            let g = f64::from(*g);
            (g / (1.0 + (-g).exp()) * f64::from(*u)) as f32
        }));
    }
    out
}

impl GatedSilu for CubeBackend {
    fn gated_silu(gate_up: FloatTensor<Self>, args: GateArgs) -> FloatTensor<Self> {
        let gate_up = burn_wgpu::into_contiguous(gate_up);
        let out = empty_like(&gate_up, Shape::new([args.tokens, args.cols]), DType::F32);
        run(&args, &[&gate_up, &out]);
        out
    }
}

impl Candidates for GateArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SWIGLU: &str = include_str!("../../../../shaders/swiglu.wgsl");
        let [y, z, _] = grid(self.tokens);
        let workgroups = [self.cols.div_ceil(64), y, z];
        vec![Kernel::new("swiglu", &[SWIGLU], 64, workgroups, &[self.tokens, self.cols])]
    }

    fn samples() -> Vec<Self> {
        vec![Self { tokens: 1, cols: 1 }]
    }
}

impl GatedSilu for Flex {
    fn gated_silu(gate_up: FloatTensor<Self>, GateArgs { tokens, cols }: GateArgs) -> FloatTensor<Self> {
        let gate_up = cpu::contiguous(gate_up);
        let from = cpu::floats(&gate_up);
        let write = |slots: Scattered<'_>| {
            cpu::for_each(tokens, |token| {
                let (gate, up) = from[token * 2 * cols..][..2 * cols].split_at(cols);
                // SAFETY: each row is written by one call.
                gate_row(gate, up, unsafe { slots.slice(token * cols, cols) });
            });
        };
        // SAFETY: all rows are written.
        unsafe { cpu::written(Shape::new([tokens, cols]), write) }
    }
}

dispatch_simd! { fn gate_row = gate_row_body(gate: &[f32], up: &[f32], to: &mut [f32]) }

#[inline(always)]
fn gate_row_body<const FMA: bool>(gate: &[f32], up: &[f32], to: &mut [f32]) {
    for ((to, g), u) in to.iter_mut().zip(gate).zip(up) {
        *to = g / (1.0 + exp::<FMA>(-g)) * u;
    }
}
