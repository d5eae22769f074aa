//! Causal grouped-query attention over the paged cache, with an online softmax (Milakov and
//! Gimelshein 2018, arXiv 1805.02867; FlashAttention, arXiv 2205.14135) and a context split over
//! workgroups (Flash-Decoding), so that no score matrix is ever stored.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod cpu;

use burn::{
    backend::{
        Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape, Tensor},
};
use burn_wgpu::CubeBackend;

use super::{empty_like, rope_append::read_line};
use crate::{
    batch::{Batch, BatchShape, PAGE},
    device::{Profile, profile},
    kv::{KvFormat, KvLayer, KvShape, PairLayout},
    shader::{Shader, grid, launch, u},
};

/// For each row of `q` `[T, heads · head_dim]`: the softmax-weighted sum of the values at the
/// positions up to the row's own in its sequence, scores scaled by `1 / sqrt(head_dim)`.
/// The cache must already hold the row's own position.
///
/// # Panics
/// If `heads` is not a multiple of the cache's heads, `q` does not fit them, or their size is not a
/// multiple of 8.
pub fn attention(q: Tensor<2>, cache: &KvLayer, batch: &Batch, heads: usize) -> Tensor<2> {
    let shape = cache.shape;
    assert_eq!(
        q.dims(),
        [batch.shape.tokens, heads * shape.head_dim],
        "attention: q for {heads} heads of {}",
        shape.head_dim
    );
    assert!(
        heads.is_multiple_of(shape.kv_heads),
        "attention: {heads} heads over {} key heads",
        shape.kv_heads
    );
    assert!(shape.head_dim.is_multiple_of(8), "attention: heads of {} are no multiple of 8", shape.head_dim);
    let args = AttentionArgs { heads, kv: shape, batch: batch.shape };
    Tensor::from_dispatch(Dispatch::paged_attention(
        q.into_dispatch(),
        cache.words.clone().into_dispatch(),
        batch.data.clone().into_dispatch(),
        args,
    ))
}

/// Shapes of an attention of `heads` query heads over a layer's cache.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    pub heads: usize,
    pub kv: KvShape,
    pub batch: BatchShape,
}

impl AttentionArgs {
    fn scale(&self) -> f32 {
        1.0 / (self.kv.head_dim as f32).sqrt()
    }

    /// Positions that the page table has room for.
    fn max_keys(&self) -> usize {
        self.batch.max_pages * PAGE
    }

    /// Cache slot of position `key` in the sequence of row `token`.
    fn slot(&self, batch: &[u32], token: usize, key: usize) -> usize {
        let sequence = token / self.batch.rows_per_seq;
        let page = batch[self.batch.table_at() + sequence * self.batch.max_pages + key / PAGE];
        page as usize * PAGE + key % PAGE
    }
}

#[backend_extension(Cube, Flex)]
pub trait PagedAttention: burn::backend::Backend {
    /// `[T, heads · head_dim]`.
    fn paged_attention(
        q: FloatTensor<Self>,
        cache: IntTensor<Self>,
        batch: IntTensor<Self>,
        args: AttentionArgs,
    ) -> FloatTensor<Self>;
}

/// Attention in plain loops with all scores of a row at once, in f64.
pub fn reference(q: &[f32], cache: &[u32], batch: &[u32], args: &AttentionArgs) -> Vec<f32> {
    let KvShape { kv_heads, head_dim, .. } = args.kv;
    let mut out = vec![0.0; q.len()];
    let mut line = vec![0.0; head_dim];
    for token in 0..args.batch.tokens {
        let keys = batch[args.batch.tokens + token] as usize + 1;
        for head in 0..args.heads {
            let kv_head = head / (args.heads / kv_heads);
            let at = (token * args.heads + head) * head_dim;
            let mut read = |key: usize, which: usize| {
                let start = args.kv.line(args.slot(batch, token, key), which, kv_head);
                read_line(&cache[start..][..args.kv.head_words()], &args.kv, which == 1, &mut line);
                line.clone()
            };
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    let k = read(key, 0);
                    let dot: f64 = (0..head_dim).map(|i| f64::from(q[at + i]) * f64::from(k[i])).sum();
                    dot / (head_dim as f64).sqrt()
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            let mut sums = vec![0f64; head_dim];
            for (key, score) in scores.iter().enumerate() {
                let weight = (score - top).exp() / total;
                for (sum, v) in sums.iter_mut().zip(read(key, 1)) {
                    *sum += weight * f64::from(v);
                }
            }
            for (out, sum) in out[at..].iter_mut().zip(sums) {
                *out = sum as f32;
            }
        }
    }
    out
}

/// Keys of a split where cores run the lanes: enough work to outweigh the join of the parts.
const SPLIT_KEYS: usize = 256;

/// Keys that a workgroup takes at a time, and most splits: on a GPU a lone row is a matter of how long one
/// workgroup takes, as few of them fill it.
const TILE_KEYS: usize = 64;
const MAX_SPLITS: usize = 64;

impl PagedAttention for CubeBackend {
    fn paged_attention(
        q: FloatTensor<Self>,
        cache: IntTensor<Self>,
        batch: IntTensor<Self>,
        args: AttentionArgs,
    ) -> FloatTensor<Self> {
        let q = burn_wgpu::into_contiguous(q);
        let (tokens, head_dim) = (args.batch.tokens, args.kv.head_dim);
        let profile = profile(&q);
        let variant = variant(&args, &profile);
        // Rows enough to fill the device need no split; a lone row of a long context does, and where
        // heads are lanes even a short one, whose heads are fewer than the cores' lanes.
        let split_keys = match variant {
            _ if tokens > 16 => args.max_keys(),
            Variant::Rows { .. } => 2 * PAGE,
            Variant::Workgroup { .. } => (args.max_keys() / MAX_SPLITS).max(TILE_KEYS),
            Variant::Shuffle { .. } => SPLIT_KEYS,
        };
        let splits = args.max_keys().div_ceil(split_keys);
        let single = splits == 1;
        let lines = tokens * args.heads;
        let out = empty_like(&q, Shape::new([tokens, args.heads * head_dim]), DType::F32);
        let parts_shape = Shape::new([lines * splits, head_dim + 2]);
        let parts = if single { out.clone() } else { empty_like(&q, parts_shape, DType::F32) };
        let params = [
            tokens as u32,
            args.heads as u32,
            args.kv.kv_heads as u32,
            splits as u32,
            split_keys as u32,
            args.batch.rows_per_seq as u32,
            args.batch.max_pages as u32,
            args.scale().to_bits(),
        ];
        let rows = args.batch.rows_per_seq;
        let workgroups = match variant {
            Variant::Shuffle { heads, .. } => {
                [tokens, args.kv.kv_heads * (args.heads / args.kv.kv_heads).div_ceil(heads), splits]
            }
            Variant::Rows { prefill: true } => {
                [args.batch.sequences() * rows.div_ceil(32), args.heads, splits]
            }
            Variant::Rows { prefill: false } => [tokens, args.heads.div_ceil(32), splits],
            Variant::Workgroup { .. } => [args.heads, tokens, splits],
        };
        launch(shader(&args.kv, variant, single), workgroups, &[&q, &cache, &batch, &parts], &params);
        if !single {
            let params = [lines as u32, splits as u32, head_dim as u32];
            launch(combine_shader(), grid((lines * head_dim).div_ceil(64)), &[&parts, &out], &params);
        }
        out
    }
}

/// How the device of `profile` computes the parts.
fn variant(args: &AttentionArgs, profile: &Profile) -> Variant {
    match profile.subgroup_size {
        Some(lanes) if profile.software && lanes >= 8 => {
            // More heads at once would spill their sums.
            let group = args.heads / args.kv.kv_heads;
            Variant::Shuffle { lanes, heads: group.div_ceil(group.div_ceil(4)) }
        }
        _ if profile.software => Variant::Rows { prefill: args.batch.rows_per_seq > 1 },
        _ => Variant::Workgroup { subgroups: profile.subgroups },
    }
}

/// Which kernel computes the parts.
#[derive(Clone, Copy, Debug)]
pub enum Variant {
    /// A subgroup a row and `heads` heads of a key head: adapters that run lanes on CPU cores.
    Shuffle { lanes: usize, heads: usize },
    /// An invocation a row and head: such adapters without subgroups of a known size.
    Rows { prefill: bool },
    /// A workgroup a row and head.
    Workgroup { subgroups: bool },
}

/// The WGSL that computes the parts for one cache shape, or with `single` the result.
pub fn shader(kv: &KvShape, variant: Variant, single: bool) -> Shader {
    const CACHE: &str = include_str!("../../../../shaders/shared/kv_cache.wgsl");
    const ROWS: &[&str] = &[include_str!("../../../../shaders/attention_rows.wgsl"), CACHE];
    const SHUFFLE: &[&str] = &[include_str!("../../../../shaders/attention_shuffle.wgsl"), CACHE];
    const DECODE: &str = include_str!("../../../../shaders/attention_decode.wgsl");
    const WORKGROUP: &[&str] =
        &[DECODE, CACHE, include_str!("../../../../shaders/shared/reduce_workgroup.wgsl")];
    const SUBGROUPS: &[&str] =
        &[DECODE, CACHE, include_str!("../../../../shaders/shared/reduce_subgroup.wgsl")];
    let mut constants = vec![
        ("PAGE", u(PAGE)),
        ("HEAD_DIM", u(kv.head_dim)),
        ("CACHE_WORD", u(word_elements(kv.format))),
        ("HALF_SPLIT", (kv.layout == PairLayout::HalfSplit).to_string()),
        ("SINGLE", single.to_string()),
    ];
    let (name, sources, workgroup_size, subgroups) = match variant {
        Variant::Shuffle { lanes, heads } => {
            constants.extend([("LANES", u(lanes)), ("HEADS", u(heads))]);
            ("attention_shuffle", SHUFFLE, lanes as u32, true)
        }
        Variant::Rows { prefill } => {
            constants.push(("PREFILL", prefill.to_string()));
            ("attention_rows", ROWS, 32, false)
        }
        Variant::Workgroup { subgroups } => {
            constants.push(("PAIRS", u((kv.head_dim / 2).div_ceil(64))));
            match subgroups {
                true => ("attention_decode_subgroups", SUBGROUPS, 64, true),
                false => ("attention_decode", WORKGROUP, 64, false),
            }
        }
    };
    Shader { name, sources, constants, workgroup_size, subgroups }
}

/// Cached elements in a word.
fn word_elements(format: KvFormat) -> usize {
    match format {
        KvFormat::F32 => 1,
        KvFormat::F16 => 2,
        KvFormat::Q8 => 4,
    }
}

/// The WGSL that joins the parts.
pub fn combine_shader() -> Shader {
    Shader {
        name: "attention_combine",
        sources: &[include_str!("../../../../shaders/attention_combine.wgsl")],
        constants: vec![],
        workgroup_size: 64,
        subgroups: false,
    }
}
