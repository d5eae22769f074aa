//! Products together with what stands around them in a block, in one launch: on adapters that run lanes on
//! CPU cores waking the cores takes as long as a small kernel, and a GPU idles between two launches of which
//! one waits for the other. Where there is no such kernel these functions are the ops one after the other,
//! and [`fuses`] says not to prefer them.

use burn::{
    backend::{
        Backend, Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape, Tensor, TensorData},
};
use burn_flex::FlexTensor;
use burn_wgpu::CubeBackend;

use super::{
    empty_like,
    matmul::{self, MatmulArgs, PackedMatmul, Store, Variant},
    rms_norm::{NormArgs, ResidualRmsNorm},
    rope_append::{RopeAppend, RopeArgs},
    swiglu::GatedSilu,
};
use crate::{
    batch::{Batch, PAGE},
    device::{Profile, profile, profile_of},
    format::Format,
    kv::{KvFormat, KvLayer, KvShape, PairLayout},
    matrix::{PackedMatrix, Part},
    shader::{Shader, launch, u},
};

/// Whether products with `w` gain from being fused on the device of it.
pub fn fuses(w: &PackedMatrix) -> bool {
    let [part] = &w.parts[..] else { return false };
    w.cols.is_multiple_of(4)
        && part.rows.is_multiple_of(4)
        && profile_of(&part.words).is_some_and(|profile| fusing_variant(1, part.rows, &profile).is_some())
}

/// The kernel for a product of `tokens` x `rows` results, if it is one that can be fused.
fn fusing_variant(tokens: usize, rows: usize, profile: &Profile) -> Option<Variant> {
    let variant = matmul::variant(tokens, rows, profile);
    matches!(variant, Variant::Rows { shuffle: true, .. } | Variant::Teams { .. }).then_some(variant)
}

/// `matmul(rms_norm(x, norm, eps), w)`: `x` `[T, K]`, `norm` `[K]`, `w` `[N, K]` of one part to `[T, N]`.
///
/// # Panics
/// If `w` has several parts, or sizes differ; so for all of this file.
pub fn norm_matmul(x: Tensor<2>, norm: Tensor<1>, eps: f64, w: &PackedMatrix) -> Tensor<2> {
    fused(x, norm, w, Around::Norm { eps: eps as f32, gated: false })
}

/// `swiglu(matmul(rms_norm(x, norm, eps), w))`: `w` is `[2 F, K]` with the gates first, the result `[T, F]`.
pub fn norm_matmul_swiglu(x: Tensor<2>, norm: Tensor<1>, eps: f64, w: &PackedMatrix) -> Tensor<2> {
    assert!(w.rows().is_multiple_of(2), "swiglu: {} rows are not gates and ups", w.rows());
    fused(x, norm, w, Around::Norm { eps: eps as f32, gated: true })
}

/// `residual + matmul(x, w)`, `[T, N]`.
pub fn matmul_add(x: Tensor<2>, w: &PackedMatrix, residual: Tensor<2>) -> Tensor<2> {
    assert_eq!(residual.dims(), [x.dims()[0], w.rows()], "matmul_add: the residual");
    fused(x, residual, w, Around::Add)
}

/// `rope_append(matmul(rms_norm(x, norm, eps), w), cache, batch, heads)`: `x` `[T, K]`, `w` the stacked
/// projections of queries, keys and values; returns the queries `[T, heads · head_dim]` and the cache.
pub fn norm_matmul_rope_append(
    x: Tensor<2>,
    norm: Tensor<1>,
    eps: f64,
    w: &PackedMatrix,
    cache: KvLayer,
    batch: &Batch,
    heads: usize,
) -> (Tensor<2>, KvLayer) {
    let shape = cache.shape;
    let (part, args) = product_of(&x, w);
    assert_eq!(
        [args.tokens, args.rows],
        [batch.shape.tokens, (heads + 2 * shape.kv_heads) * shape.head_dim],
        "rope_append: rows for {heads} heads and {shape:?}"
    );
    let (q, words) = Dispatch::fused_rope_append(
        x.into_dispatch(),
        norm.into_dispatch(),
        part.words.clone().into_dispatch(),
        cache.words.into_dispatch(),
        batch.data.clone().into_dispatch(),
        args,
        eps as f32,
        RopeArgs { heads, kv: shape, batch: batch.shape },
    );
    (Tensor::from_dispatch(q), KvLayer { words: Tensor::from_dispatch(words), shape })
}

fn fused<const D: usize>(x: Tensor<2>, extra: Tensor<D>, w: &PackedMatrix, around: Around) -> Tensor<2> {
    let (part, args) = product_of(&x, w);
    let words = part.words.clone().into_dispatch();
    Tensor::from_dispatch(Dispatch::fused_matmul(
        x.into_dispatch(),
        extra.into_dispatch(),
        words,
        args,
        around,
    ))
}

fn product_of<'a>(x: &Tensor<2>, w: &'a PackedMatrix) -> (&'a Part, MatmulArgs) {
    let [tokens, cols] = x.dims();
    assert_eq!(cols, w.cols, "matmul: x is {tokens} x {cols}, w has {} columns", w.cols);
    assert!(cols.is_multiple_of(4), "a fused product has columns in fours");
    let [part] = &w.parts[..] else { panic!("a fused product takes a matrix of one part") };
    let rows = part.rows;
    (part, MatmulArgs { format: part.format, tokens, rows, cols, out_cols: rows, out_first: 0 })
}

/// What stands around a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Around {
    /// A norm before it, by the weights in `extra`, and with `gated` the activation after it.
    Norm { eps: f32, gated: bool },
    /// The addition of `extra` after it.
    Add,
}

#[backend_extension(Cube, Flex)]
pub trait FusedMatmul: Backend {
    /// `x` `[tokens, cols]` times `words`, all rows of a matrix.
    fn fused_matmul(
        x: FloatTensor<Self>,
        extra: FloatTensor<Self>,
        words: IntTensor<Self>,
        args: MatmulArgs,
        around: Around,
    ) -> FloatTensor<Self>;

    /// The norm of `x` times `words`, of which queries are returned, and keys and values appended to `cache`.
    #[allow(clippy::too_many_arguments)]
    fn fused_rope_append(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        words: IntTensor<Self>,
        cache: IntTensor<Self>,
        batch: IntTensor<Self>,
        args: MatmulArgs,
        eps: f32,
        rope: RopeArgs,
    ) -> (FloatTensor<Self>, IntTensor<Self>);
}

/// One op after the other. `out` is for the product to write.
fn apart<B: PackedMatmul + ResidualRmsNorm + GatedSilu>(
    x: FloatTensor<B>,
    extra: FloatTensor<B>,
    words: IntTensor<B>,
    out: FloatTensor<B>,
    args: MatmulArgs,
    around: Around,
) -> FloatTensor<B> {
    match around {
        Around::Norm { eps, gated } => {
            let norm = NormArgs { rows: args.tokens, cols: args.cols, eps, residual: false };
            let (_, x) = B::residual_rms_norm(x.clone(), x, extra, norm);
            let y = B::packed_matmul(x, words, out, args);
            if gated { B::gated_silu(y, args.tokens, args.rows / 2) } else { y }
        }
        Around::Add => B::float_add(extra, B::packed_matmul(x, words, out, args)),
    }
}

impl FusedMatmul for CubeBackend {
    fn fused_matmul(
        x: FloatTensor<Self>,
        extra: FloatTensor<Self>,
        words: IntTensor<Self>,
        args: MatmulArgs,
        around: Around,
    ) -> FloatTensor<Self> {
        let x = burn_wgpu::into_contiguous(x);
        let empty = |cols| empty_like(&x, Shape::new([args.tokens, cols]), DType::F32);
        let Some(variant) = fusing_variant(args.tokens, args.rows, &profile(&x)) else {
            let out = empty(args.rows);
            return apart::<Self>(x, extra, words, out, args, around);
        };
        let extra = burn_wgpu::into_contiguous(extra);
        let gated = matches!(around, Around::Norm { gated: true, .. });
        let rows = if gated { args.rows / 2 } else { args.rows };
        let out = empty(rows);
        let eps = match around {
            Around::Norm { eps, .. } => eps,
            Around::Add => 0.0,
        };
        let workgroups = variant.workgroups(args.tokens, rows, gated);
        let mut shader = matmul::shader(variant, args.format, args.has_tail());
        shader.constants.extend(constants(around));
        let sizes = MatmulArgs { rows, out_cols: rows, ..args }.params();
        launch(
            shader,
            workgroups,
            &[&words, &x, &extra, &out],
            &[&sizes[..], &[eps.to_bits(), 0, 0, 0]].concat(),
        );
        out
    }

    fn fused_rope_append(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        words: IntTensor<Self>,
        cache: IntTensor<Self>,
        batch: IntTensor<Self>,
        args: MatmulArgs,
        eps: f32,
        rope: RopeArgs,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        let x = burn_wgpu::into_contiguous(x);
        let KvShape { kv_heads, head_dim, format, .. } = rope.kv;
        let variant = fusing_variant(args.tokens, args.rows, &profile(&x)).filter(|variant| match variant {
            Variant::Rows { lanes, .. } => format != KvFormat::Q8 && head_dim.is_multiple_of(4 * lanes),
            _ => false,
        });
        let Some(variant) = variant else {
            let qkv = Self::fused_matmul(x, norm, words, args, Around::Norm { eps, gated: false });
            return Self::rope_append(qkv, cache, batch, rope);
        };
        let q = empty_like(&x, Shape::new([args.tokens, rope.heads * head_dim]), DType::F32);
        let heads = [rope.heads, kv_heads, rope.batch.rope_at()].map(|v| v as u32);
        let params = [&args.params()[..], &[eps.to_bits()], &heads].concat();
        let workgroups = variant.workgroups(args.tokens, args.rows, false);
        let shader = rotated_shader(variant, args.format, args.has_tail(), &rope.kv);
        launch(shader, workgroups, &[&words, &x, &norm, &q, &batch, &cache], &params);
        (q, cache)
    }
}

/// What `around` makes of the shader of a product.
pub fn constants(around: Around) -> Vec<(&'static str, String)> {
    match around {
        Around::Norm { gated, .. } => vec![("NORM", true.to_string()), ("GATED", gated.to_string())],
        Around::Add => vec![("ADD", true.to_string())],
    }
}

/// The WGSL of a product with a norm before it and the rotation and the append after it.
pub fn rotated_shader(variant: Variant, format: Format, tail: bool, kv: &KvShape) -> Shader {
    let mut shader = matmul::stored_shader(variant, format, tail, Store::Rotated);
    shader.constants.extend([
        ("NORM", true.to_string()),
        ("HALF_SPLIT", (kv.layout == PairLayout::HalfSplit).to_string()),
        ("CACHE_F16", (kv.format == KvFormat::F16).to_string()),
        ("PAGE", u(PAGE)),
        ("HEAD_DIM", u(kv.head_dim)),
    ]);
    shader
}

impl FusedMatmul for Flex {
    fn fused_matmul(
        x: FloatTensor<Self>,
        extra: FloatTensor<Self>,
        words: IntTensor<Self>,
        args: MatmulArgs,
        around: Around,
    ) -> FloatTensor<Self> {
        // The product of a whole matrix makes its own output.
        let out = FlexTensor::from_data(TensorData::new(Vec::<f32>::new(), [0, 0]));
        apart::<Self>(x, extra, words, out, args, around)
    }

    fn fused_rope_append(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        words: IntTensor<Self>,
        cache: IntTensor<Self>,
        batch: IntTensor<Self>,
        args: MatmulArgs,
        eps: f32,
        rope: RopeArgs,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        let qkv = Self::fused_matmul(x, norm, words, args, Around::Norm { eps, gated: false });
        Self::rope_append(qkv, cache, batch, rope)
    }
}
