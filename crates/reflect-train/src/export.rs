//! From the tensors of a model to files with the names that others know, and back.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use pollster::block_on;
use reflect_kernels::{Format, PackedMatrix, device::landed, ops::Moments};
use reflect_llm::{
    Llama, LlamaConfig,
    config::RopeLayout,
    model::{Adapter, Block, Linear},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    TrainError,
    optimizer::{Optimizer, floats, upload},
};

/// A tensor on the host: shape and values.
pub type HostTensor = (Vec<usize>, Vec<f32>);

/// Every weight under its Hugging Face name, in f32, with the rows of queries and keys in Hugging
/// Face's order. Adapters are not included.
///
/// # Errors
/// If the device fails.
pub fn weights(model: &Llama) -> Result<BTreeMap<String, HostTensor>, TrainError> {
    let mut tensors = BTreeMap::new();
    let config = &model.config;
    let mut put = |name: String, shape: Vec<usize>, values: Vec<f32>| {
        tensors.insert(name, (shape, values));
    };
    let cols = config.hidden_size;
    put("model.embed_tokens.weight".into(), vec![config.vocab_size, cols], rows(&model.embed_tokens)?);
    for (layer, block) in model.layers.iter().enumerate() {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let norms = [
            ("input_layernorm", &block.input_layernorm),
            ("post_attention_layernorm", &block.post_attention_layernorm),
        ];
        for (part, norm) in norms {
            put(name(&format!("{part}.weight")), norm.dims().to_vec(), floats(norm.clone())?);
        }
        for (linear, stacked) in linears(config, block) {
            let all = rows(&linear.weight)?;
            let biases = linear.bias.clone().map(floats).transpose()?;
            let cols = linear.weight.cols;
            let mut first = 0;
            for part in stacked {
                let end = first + part.rows;
                let values = part.to_hugging_face(config, &all[first * cols..end * cols], cols);
                put(name(&format!("{}.weight", part.name)), vec![part.rows, cols], values);
                if let Some(biases) = &biases {
                    let values = part.to_hugging_face(config, &biases[first..end], 1);
                    put(name(&format!("{}.bias", part.name)), vec![part.rows], values);
                }
                first = end;
            }
        }
    }
    put("model.norm.weight".into(), model.norm.dims().to_vec(), floats(model.norm.clone())?);
    if !config.tie_word_embeddings {
        put("lm_head.weight".into(), vec![config.vocab_size, cols], rows(&model.lm_head)?);
    }
    Ok(tensors)
}

/// One Hugging Face projection inside a stacked matrix.
#[derive(Clone, Copy, Debug)]
pub struct Stacked {
    /// Such as `self_attn.q_proj`.
    pub name: &'static str,
    pub rows: usize,
    /// Whether RoPE rotates its rows, so that their order depends on the layout.
    rotated: bool,
}

impl Stacked {
    /// Rows of `cols` values in Hugging Face's order. A GGUF file has the two elements that are
    /// rotated together next to each other; Hugging Face has them half a head apart.
    pub fn to_hugging_face(&self, config: &LlamaConfig, values: &[f32], cols: usize) -> Vec<f32> {
        if !self.rotated || config.rope_layout == RopeLayout::HalfSplit {
            return values.to_vec();
        }
        let half = config.head_dim / 2;
        let mut out = Vec::with_capacity(values.len());
        for head in values.chunks(config.head_dim * cols) {
            for row in 0..config.head_dim {
                let from = 2 * (row % half) + row / half;
                out.extend_from_slice(&head[from * cols..][..cols]);
            }
        }
        out
    }
}

/// The linears of a block with the projections that are stacked in them.
pub fn linears<'a>(config: &LlamaConfig, block: &'a Block) -> [(&'a Linear, Vec<Stacked>); 4] {
    let [qkv, o, gate_up, down] = stacked(config);
    [(&block.qkv_proj, qkv), (&block.o_proj, o), (&block.gate_up_proj, gate_up), (&block.down_proj, down)]
}

/// The projections in the four stacked matrices of a block, in the order of their rows.
pub fn stacked(config: &LlamaConfig) -> [Vec<Stacked>; 4] {
    let part = |name, rows, rotated| Stacked { name, rows, rotated };
    let (queries, keys) =
        (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    [
        vec![
            part("self_attn.q_proj", queries, true),
            part("self_attn.k_proj", keys, true),
            part("self_attn.v_proj", keys, false),
        ],
        vec![part("self_attn.o_proj", hidden, false)],
        vec![part("mlp.gate_proj", ffn, false), part("mlp.up_proj", ffn, false)],
        vec![part("mlp.down_proj", hidden, false)],
    ]
}

/// The adapter of a block's linear with the projections that its parts stand for.
pub fn adapters<'a>(
    config: &LlamaConfig,
    block: &'a Block,
) -> impl Iterator<Item = (&'a Adapter, Vec<Stacked>)> {
    linears(config, block).into_iter().filter_map(|(linear, parts)| Some((linear.adapter.as_ref()?, parts)))
}

/// The rows of an f32 matrix without their padding.
///
/// # Errors
/// If the device fails, or the matrix is in another format.
pub fn rows(matrix: &PackedMatrix) -> Result<Vec<f32>, TrainError> {
    let mut values = Vec::with_capacity(matrix.rows() * matrix.cols);
    for part in &matrix.parts {
        if part.format != Format::F32 {
            return Err(TrainError::Unsupported(format!(
                "a matrix in {} can't be written as f32 weights; load the model widened",
                part.format.name()
            )));
        }
        let words = words(part.words.clone())?;
        for row in words.chunks_exact(Format::F32.row_words(matrix.cols)) {
            values.extend(row[..matrix.cols].iter().map(|word| f32::from_bits(*word as u32)));
        }
    }
    Ok(values)
}

/// An f32 matrix on the device from its rows.
pub fn matrix(values: &[f32], rows: usize, cols: usize, device: &Device) -> PackedMatrix {
    let stride = Format::F32.row_words(cols);
    let mut words = vec![0u32; rows * stride];
    for (to, from) in words.chunks_exact_mut(stride).zip(values.chunks_exact(cols)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_bits());
    }
    PackedMatrix::new(Format::F32, rows, cols, words, device)
}

fn words(tensor: Tensor<1, Int>) -> Result<Vec<i32>, TrainError> {
    let data = landed(block_on(tensor.into_data_async())).map_err(TrainError::Device)?;
    data.try_into_vec().map_err(|error| TrainError::Device(format!("{error:?}")))
}

/// The moments as `m.<name>` and `v.<name>`.
///
/// # Errors
/// If the device fails.
pub fn moments(optimizer: &Optimizer) -> Result<BTreeMap<String, HostTensor>, TrainError> {
    let mut tensors = BTreeMap::new();
    for (name, Moments { m, v }) in &optimizer.moments {
        for (kind, tensor) in [("m", m), ("v", v)] {
            let values = floats(tensor.clone())?;
            tensors.insert(format!("{kind}.{name}"), (vec![values.len()], values));
        }
    }
    Ok(tensors)
}

/// Puts saved moments in the place of those of `optimizer`.
///
/// # Errors
/// With what is missing or has another size: the file is of another model or method.
pub fn restore_moments(
    optimizer: &mut Optimizer,
    saved: &mut BTreeMap<String, HostTensor>,
    device: &Device,
) -> Result<(), String> {
    for (name, moments) in &mut optimizer.moments {
        for (kind, tensor) in [("m", &mut moments.m), ("v", &mut moments.v)] {
            let (_, values) =
                saved.remove(&format!("{kind}.{name}")).ok_or_else(|| format!("no moments of {name}"))?;
            if [values.len()] != tensor.dims() {
                return Err(format!("{} moments of {name} instead of {}", values.len(), tensor.dims()[0]));
            }
            *tensor = upload(values, device);
        }
    }
    Ok(())
}

/// The bytes of a safetensors file of f32 tensors.
///
/// # Errors
/// If a tensor's shape does not fit its values.
pub fn safetensors(tensors: &BTreeMap<String, HostTensor>) -> Result<Vec<u8>, String> {
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
            view.map(|view| (name.as_str(), view))
        })
        .collect();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views.map_err(|error| error.to_string())?, Some(metadata))
        .map_err(|error| error.to_string())
}

/// The f32 tensors of a safetensors file.
///
/// # Errors
/// If it can't be read, is damaged, or holds other numbers.
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, HostTensor>, TrainError> {
    let damaged = |problem: String| TrainError::Damaged { path: path.to_owned(), problem };
    let bytes = std::fs::read(path).map_err(|source| TrainError::Read { path: path.to_owned(), source })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(format!("{name} is {:?} and not F32", view.dtype())));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        tensors.insert(name, (view.shape().to_vec(), values.collect()));
    }
    Ok(tensors)
}

/// A tensor on the device from the host.
pub fn to_device<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
