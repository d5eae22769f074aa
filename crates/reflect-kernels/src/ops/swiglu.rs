//! The gated activation of a Llama block (Shazeer 2020, arXiv 2002.05202): `silu(gate) · up`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::empty_like;
use crate::{
    cpu::{self, Scattered, dispatch_simd, fma},
    shader::{Shader, grid, launch},
};

/// `silu(gate) · up` for `gate_up` `[T, 2 F]` with the gates first: `[T, F]`.
///
/// # Panics
/// If the columns are odd.
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let [tokens, cols] = gate_up.dims();
    assert!(cols.is_multiple_of(2), "swiglu: {cols} columns are not gates and ups");
    Tensor::from_dispatch(Dispatch::gated_silu(gate_up.into_dispatch(), tokens, cols / 2))
}

#[backend_extension(Cube, Flex)]
pub trait GatedSilu: burn::backend::Backend {
    /// `gate_up` is `[tokens, 2 cols]`, the result `[tokens, cols]`.
    fn gated_silu(gate_up: FloatTensor<Self>, tokens: usize, cols: usize) -> FloatTensor<Self>;
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
    fn gated_silu(gate_up: FloatTensor<Self>, tokens: usize, cols: usize) -> FloatTensor<Self> {
        let gate_up = burn_wgpu::into_contiguous(gate_up);
        let out = empty_like(&gate_up, Shape::new([tokens, cols]), DType::F32);
        let [y, z, _] = grid(tokens);
        launch(shader(), [cols.div_ceil(64), y, z], &[&gate_up, &out], &[tokens as u32, cols as u32]);
        out
    }
}

/// The WGSL; it has one variant.
pub fn shader() -> Shader {
    Shader {
        name: "swiglu",
        sources: &[include_str!("../../../../shaders/swiglu.wgsl")],
        constants: vec![],
        workgroup_size: 64,
        subgroups: false,
    }
}

impl GatedSilu for Flex {
    fn gated_silu(gate_up: FloatTensor<Self>, tokens: usize, cols: usize) -> FloatTensor<Self> {
        let gate_up = cpu::contiguous(gate_up);
        let mut out = cpu::zeros(Shape::new([tokens, cols]));
        let from = cpu::floats(&gate_up);
        let slots = Scattered::new(out.storage_mut::<f32>());
        cpu::for_each(tokens, |token| {
            let (gate, up) = from[token * 2 * cols..][..2 * cols].split_at(cols);
            // SAFETY: each row is written by one call.
            gate_row(gate, up, unsafe { slots.slice(token * cols, cols) });
        });
        out
    }
}

dispatch_simd! { fn gate_row = gate_row_body(gate: &[f32], up: &[f32], to: &mut [f32]) }

#[inline(always)]
fn gate_row_body<const FMA: bool>(gate: &[f32], up: &[f32], to: &mut [f32]) {
    for ((to, g), u) in to.iter_mut().zip(gate).zip(up) {
        *to = g / (1.0 + exp::<FMA>(-g)) * u;
    }
}

/// e^x to about 2 ulp, without a call, so that loops over it vectorise: 2^n by the exponent bits
/// times a polynomial of e^r on |r| ≤ ln 2 / 2 (Taylor to the seventh power: error below 2^-27).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts: the first is exact in products with small integers.
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<FMA>(p, r, c);
    }
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}
