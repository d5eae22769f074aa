//! One file an op: the public function, the reference, the CPU body and the WGSL launch.
//!
//! | op | shaders | reference |
//! | --- | --- | --- |
//! | [`embed()`] | `embed` | `embed::reference` |
//! | [`rms_norm()`], [`add_rms_norm()`] | `rms_norm` | `rms_norm::reference` |
//! | [`matmul()`] | `matvec`, `matmul`, `matmul_rows` | `matmul::reference` |
//! | [`norm_matmul`], [`norm_matmul_swiglu`], [`norm_matmul_rope_append`], [`matmul_add`] | `matmul_rows` | of what they fuse |
//! | [`rope_append()`] | `rope_append` | `rope_append::reference` |
//! | [`attention()`] | `attention_decode`, `attention_rows`, `attention_combine` | `attention::reference` |
//! | [`swiglu()`] | `swiglu` | `swiglu::reference` |
//! | [`top_k()`] | `top_k` | `top_k::reference` |
//!
//! And for training, where gradients are added to what is there already:
//!
//! | op | shaders | reference |
//! | --- | --- | --- |
//! | [`embed_backward()`] | `embed_backward` | `embed_backward::reference` |
//! | [`rms_norm_backward()`], [`rms_norm_dw`] | `rms_norm_backward`, `rms_norm_dw` | `rms_norm_backward::reference` |
//! | [`matmul_dx()`], [`matmul_dw()`] | `matmul_dx`, `matmul_dw` | `matmul_dx::reference`, `matmul_dw::reference` |
//! | [`rope()`] | `rope` | `rope::reference` |
//! | [`segment_attention()`], [`segment_attention_backward`] | `segment_attention`, `…_dq`, `…_dkv` | `segment_attention::reference` |
//! | [`swiglu_backward()`] | `swiglu_backward` | `swiglu_backward::reference` |
//! | [`cross_entropy()`], [`cross_entropy_backward`] | `cross_entropy`, `cross_entropy_backward` | `cross_entropy::reference` |
//! | [`adamw_words`], [`adamw_vector`], [`square_sums`] | `adamw`, `square_sum` | `adamw::reference` |

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embed;
pub mod embed_backward;
pub mod fused;
pub mod matmul;
pub mod matmul_dw;
pub mod matmul_dx;
pub mod rms_norm;
pub mod rms_norm_backward;
pub mod rope;
pub mod rope_append;
pub mod segment_attention;
pub mod swiglu;
pub mod swiglu_backward;
pub mod top_k;

pub use adamw::{AdamStep, Moments, adamw_vector, adamw_words, square_sums};
pub use attention::attention;
pub use cross_entropy::{cross_entropy, cross_entropy_backward};
pub use embed::embed;
pub use embed_backward::{TokenIndex, embed_backward};
pub use fused::{fuses, matmul_add, norm_matmul, norm_matmul_rope_append, norm_matmul_swiglu};
pub use matmul::matmul;
pub use matmul_dw::matmul_dw;
pub use matmul_dx::matmul_dx;
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rms_norm_backward::{rms_norm_backward, rms_norm_dw};
pub use rope::{HeadShape, rope};
pub use rope_append::rope_append;
pub use segment_attention::{segment_attention, segment_attention_backward};
pub use swiglu::swiglu;
pub use swiglu_backward::swiglu_backward;
pub use top_k::top_k;

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_wgpu::CubeTensor;

/// A tensor of zeros; on the CPU faster than burn's own, which copies.
pub fn zeros<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    match *device == Device::flex() {
        true => Tensor::from_data(TensorData::new(vec![0f32; shape.iter().product()], shape), device),
        false => Tensor::zeros(shape, device),
    }
}

/// A tensor for an op to write, with any contents.
fn output<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    match *device == Device::flex() {
        true => zeros(shape, device),
        false => Tensor::empty(shape, device),
    }
}

/// An uninitialised tensor of 4-byte elements on the device of `like`.
fn empty_like(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    let handle = like.client.empty(shape.num_elements() * 4);
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}
