//! The gated activation of a Llama block (Shazeer 2020, arXiv 2002.05202): `silu(gate) · up`.

use burn::{
    backend::{Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::empty_like;
use crate::{
    cpu::{self, Scattered, dispatch_simd, exp},
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
