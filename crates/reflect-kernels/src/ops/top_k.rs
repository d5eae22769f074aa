//! The largest logits of each row and the log-sum-exp of all of them, so that a token costs the
//! host a few bytes instead of a row of the vocabulary.

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Int, Shape, Tensor},
};
use burn_flex::FlexTensor;
use burn_wgpu::CubeBackend;

use super::empty_like;
use crate::{
    cpu,
    device::{landed, profile},
    shader::{Shader, grid, launch, u},
};

/// The most candidates that [`top_k`] returns.
pub const MAX_K: usize = 64;

/// Candidates of one row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// `(token id, logit)`, largest first; of equal logits the lower id first. Fewer than asked
    /// where the row holds fewer finite logits.
    pub candidates: Vec<(u32, f32)>,
    /// `ln Σ exp(logit)` over the whole row.
    pub log_sum_exp: f32,
}

/// Starts the search for the `k` largest logits of each row of `[T, vocab]`. The result is read by
/// [`read_top_k`], which waits for the device.
///
/// # Panics
/// If `k` is 0 or over [`MAX_K`].
pub fn top_k(logits: Tensor<2>, k: usize) -> Tensor<2, Int> {
    assert!((1..=MAX_K).contains(&k), "top_k: {k} is not in 1..={MAX_K}");
    let [tokens, vocab] = logits.dims();
    Tensor::from_dispatch(Dispatch::top_k_mass(logits.into_dispatch(), tokens, vocab, k))
}

/// Reads what [`top_k`] found: one [`TopK`] a row.
///
/// # Errors
/// If the device was lost or a kernel failed; the message is the driver's.
pub async fn read_top_k(found: Tensor<2, Int>) -> Result<Vec<TopK>, String> {
    let [_, width] = found.dims();
    let data = landed(found.into_data_async().await)?;
    let words: Vec<i32> = data.try_into_vec().map_err(|error| format!("{error:?}"))?;
    Ok(words.chunks(width).map(decode).collect())
}

/// One row of the kernel's output: values, ids, max and sum of exponentials.
fn decode(row: &[i32]) -> TopK {
    let k = (row.len() - 2) / 2;
    let float = |word: i32| f32::from_bits(word as u32);
    let candidates =
        (0..k).filter(|&i| row[k + i] != -1).map(|i| (row[k + i] as u32, float(row[i]))).collect();
    TopK { candidates, log_sum_exp: float(row[2 * k]) + float(row[2 * k + 1]).ln() }
}

#[backend_extension(Cube, Flex)]
pub trait TopKMass: burn::backend::Backend {
    /// `[tokens, 2 k + 2]` words: values, ids, max and sum of `exp(logit - max)`.
    fn top_k_mass(logits: FloatTensor<Self>, tokens: usize, vocab: usize, k: usize) -> IntTensor<Self>;
}

/// The search in plain loops: a full sort of each row, the mass in f64.
pub fn reference(logits: &[f32], vocab: usize, k: usize) -> Vec<TopK> {
    logits
        .chunks(vocab)
        .map(|row| {
            let mut order: Vec<(u32, f32)> = row.iter().enumerate().map(|(id, v)| (id as u32, *v)).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            order.truncate(k);
            let top = f64::from(order[0].1);
            let mass: f64 = row.iter().map(|v| (f64::from(*v) - top).exp()).sum();
            TopK { candidates: order, log_sum_exp: (top + mass.ln()) as f32 }
        })
        .collect()
}

/// Logits that one invocation of the first stage searches: on a GPU few, as most of its lanes have nothing
/// else to do; where cores run the lanes more, for fewer results to join.
const CHUNK: usize = 64;
const CHUNK_SOFTWARE: usize = 256;

impl TopKMass for CubeBackend {
    fn top_k_mass(logits: FloatTensor<Self>, tokens: usize, vocab: usize, k: usize) -> IntTensor<Self> {
        let mut found = burn_wgpu::into_contiguous(logits);
        let first = if profile(&found).software { CHUNK_SOFTWARE } else { CHUNK };
        let (mut items, mut join) = (vocab, false);
        // Each stage makes one result of a chunk; the last chunk is the whole row.
        loop {
            let chunk = if join { 16 } else { first };
            let chunks = items.div_ceil(chunk);
            let out = empty_like(&found, Shape::new([tokens * chunks, 2 * k + 2]), DType::I32);
            let params = [tokens as u32, items as u32, chunks as u32, chunk as u32];
            let workgroups = grid((tokens * chunks).div_ceil(32));
            launch(shader(k, join), workgroups, &[&found, &out], &params);
            found = out;
            if chunks == 1 {
                return found;
            }
            (items, join) = (chunks, true);
        }
    }
}

/// The WGSL of a stage: the first reads logits, the others join results.
pub fn shader(k: usize, join: bool) -> Shader {
    Shader {
        name: "top_k",
        sources: &[include_str!("../../../../shaders/top_k.wgsl")],
        constants: vec![("K", u(k)), ("JOIN", join.to_string())],
        workgroup_size: 32,
        subgroups: false,
    }
}

impl TopKMass for Flex {
    fn top_k_mass(logits: FloatTensor<Self>, tokens: usize, vocab: usize, k: usize) -> IntTensor<Self> {
        let logits = cpu::contiguous(logits);
        let mut words = Vec::with_capacity(tokens * (2 * k + 2));
        for row in cpu::floats(&logits).chunks(vocab) {
            let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
            for (id, &value) in row.iter().enumerate() {
                if value.is_nan() || best.len() == k && best.last().is_some_and(|last| value <= last.1) {
                    continue;
                }
                let at = best.partition_point(|b| b.1 >= value);
                best.insert(at, (id as u32, value));
                best.truncate(k);
            }
            let top = best.first().map_or(0.0, |b| b.1);
            let mass: f32 = row.iter().map(|v| (v - top).exp()).sum();
            let missing = k - best.len();
            words.extend(best.iter().map(|b| b.1.to_bits() as i32).chain(std::iter::repeat_n(0, missing)));
            words.extend(best.iter().map(|b| b.0 as i32).chain(std::iter::repeat_n(-1, missing)));
            words.extend([top.to_bits() as i32, mass.to_bits() as i32]);
        }
        let shape = [tokens, 2 * k + 2];
        FlexTensor::from_data(burn::tensor::TensorData::new(words, shape))
    }
}
