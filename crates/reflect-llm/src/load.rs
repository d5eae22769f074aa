//! From a checkpoint to a model: one tensor at a time, packed and sent straight to its device.

use burn::tensor::{Device, Tensor, TensorData};
use reflect_kernels::{Format, PackedMatrix, RopeTable, format::pack_row};

use crate::{
    config::LlamaConfig,
    model::{Block, Linear, Llama, Stage, Streamed},
    weights::{LoadError, TensorSource, check_shapes},
};

/// Loads the model that `config` describes onto one device. `progress` is told the file bytes loaded so
/// far, of [`TensorSource::total_bytes`]; `max_binding_bytes` is the device's limit, above which matrices
/// are split by rows.
///
/// # Errors
/// As [`check_shapes`], and if a tensor cannot be read.
pub async fn load_model(
    config: LlamaConfig,
    source: &impl TensorSource,
    device: &Device,
    max_binding_bytes: u64,
    progress: impl FnMut(u64),
) -> Result<Llama, LoadError> {
    let stage = Stage { device: device.clone(), layers: 0..config.num_hidden_layers };
    load_stages(config, source, &[(stage, max_binding_bytes)], None, progress).await
}

/// As [`load_model`], in stages, each with its device's limit. A stage reads its own tensors alone; a
/// tied head is loaded a second time where it lies on another device than the embedding. With `streamed`
/// no layer is loaded now.
///
/// # Errors
/// As [`load_model`].
///
/// # Panics
/// If the stages do not cover the layers in order.
pub async fn load_stages(
    config: LlamaConfig,
    source: &impl TensorSource,
    stages: &[(Stage, u64)],
    streamed: Option<Streamed>,
    progress: impl FnMut(u64),
) -> Result<Llama, LoadError> {
    check_shapes(&config, source)?;
    let covered = stages.iter().flat_map(|(stage, _)| stage.layers.clone());
    assert!(covered.eq(0..config.num_hidden_layers), "load_stages: layers in order");
    let (first, limit) = &stages[0];
    let mut loader = Loader { source, device: &first.device, max_binding_bytes: *limit, loaded: 0, progress };
    let embed_tokens = loader.matrix("model.embed_tokens.weight").await?;
    let mut layers = Vec::new();
    let each =
        stages.iter().flat_map(|(stage, limit)| stage.layers.clone().map(move |at| (at, stage, limit)));
    for (layer, stage, limit) in each.filter(|_| streamed.is_none()) {
        (loader.device, loader.max_binding_bytes) = (&stage.device, *limit);
        layers.push(loader.block(&config, layer).await?);
    }
    if let Some((stage, limit)) = stages.last() {
        (loader.device, loader.max_binding_bytes) = (&stage.device, *limit);
    }
    let norm = loader.vector("model.norm.weight").await?;
    let lm_head = match config.tie_word_embeddings {
        true if stages.len() == 1 => embed_tokens.clone(),
        true => loader.matrix("model.embed_tokens.weight").await?,
        false => loader.matrix("lm_head.weight").await?,
    };
    let rope = RopeTable::new(config.inv_freq());
    let stages = stages.iter().map(|(stage, _)| stage.clone()).collect();
    Ok(Llama { config, embed_tokens, layers, norm, lm_head, rope, stages, streamed })
}

/// One layer of a model, for [`Streamed`].
///
/// # Errors
/// If a tensor cannot be read.
pub async fn load_block(
    config: &LlamaConfig,
    source: &impl TensorSource,
    device: &Device,
    max_binding_bytes: u64,
    layer: usize,
) -> Result<Block, LoadError> {
    Loader { source, device, max_binding_bytes, loaded: 0, progress: |_| {} }.block(config, layer).await
}

struct Loader<'a, S, P> {
    source: &'a S,
    device: &'a Device,
    max_binding_bytes: u64,
    loaded: u64,
    progress: P,
}

impl<S: TensorSource, P: FnMut(u64)> Loader<'_, S, P> {
    async fn block(&mut self, config: &LlamaConfig, layer: usize) -> Result<Block, LoadError> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|part| name(&format!("self_attn.{part}")));
        let gate_up = ["gate_proj", "up_proj"].map(|part| name(&format!("mlp.{part}")));
        Ok(Block {
            input_layernorm: self.vector(&name("input_layernorm.weight")).await?,
            qkv_proj: self.linear(&qkv, attention_bias).await?,
            o_proj: self.linear(&[name("self_attn.o_proj")], attention_bias).await?,
            post_attention_layernorm: self.vector(&name("post_attention_layernorm.weight")).await?,
            gate_up_proj: self.linear(&gate_up, mlp_bias).await?,
            down_proj: self.linear(&[name("mlp.down_proj")], mlp_bias).await?,
        })
    }

    /// The matrices of `names` stacked by rows, with their biases.
    async fn linear(&mut self, names: &[String], bias: bool) -> Result<Linear, LoadError> {
        let mut formats = Vec::new();
        for name in names {
            formats.push(self.format(&format!("{name}.weight"))?);
        }
        let same = formats.iter().all(|(format, ..)| *format == formats[0].0);
        let (format, _, cols) = formats[0];
        let rows: usize = formats.iter().map(|(_, rows, _)| rows).sum();
        let bytes = 4 * (rows * format.row_words(cols)) as u64;
        let weight = if same && bytes <= self.max_binding_bytes {
            let mut words = Vec::with_capacity(rows * format.row_words(cols));
            for name in names {
                self.pack(&format!("{name}.weight"), 0, None, &mut words).await?;
            }
            PackedMatrix::new(format, rows, cols, words, self.device)
        } else {
            let mut stack: Option<PackedMatrix> = None;
            for name in names {
                let matrix = self.matrix(&format!("{name}.weight")).await?;
                match &mut stack {
                    Some(stack) => stack.stack(matrix),
                    None => stack = Some(matrix),
                }
            }
            stack.unwrap_or(PackedMatrix { parts: Vec::new(), cols })
        };
        let bias = if bias {
            let mut all = Vec::new();
            for name in names {
                all.extend(self.floats(&format!("{name}.bias")).await?);
            }
            Some(self.upload(all))
        } else {
            None
        };
        Ok(Linear { weight, bias, adapter: None })
    }

    /// One matrix, in as many parts as the binding limit asks for.
    async fn matrix(&mut self, name: &str) -> Result<PackedMatrix, LoadError> {
        let (format, rows, cols) = self.format(name)?;
        let row_bytes = 4 * format.row_words(cols) as u64;
        let part_rows = (self.max_binding_bytes / row_bytes).clamp(1, rows as u64) as usize;
        let mut matrix = PackedMatrix { parts: Vec::new(), cols };
        for first in (0..rows).step_by(part_rows) {
            let count = part_rows.min(rows - first);
            let mut words = Vec::with_capacity(count * format.row_words(cols));
            self.pack(name, first, Some(count), &mut words).await?;
            matrix.stack(PackedMatrix::new(format, count, cols, words, self.device));
        }
        Ok(matrix)
    }

    /// Appends the packed rows `first..first + count` (all of them for `None`) to `words`.
    async fn pack(
        &mut self,
        name: &str,
        first: usize,
        count: Option<usize>,
        words: &mut Vec<u32>,
    ) -> Result<(), LoadError> {
        let (format, rows, cols) = self.format(name)?;
        let count = count.unwrap_or(rows);
        let row_words = format.row_words(cols);
        let Some(row_bytes) = format.file_row_bytes(cols) else {
            return Err(LoadError::Unsupported {
                file: name.to_owned(),
                problem: format!(
                    "{cols} columns are no multiple of the block of {}; convert the checkpoint to f16",
                    format.name()
                ),
            });
        };
        // About 16 MB of the file at a time, so that packing needs little memory beside the result.
        let step = ((16 << 20) / row_bytes).clamp(1, count.max(1));
        for start in (first..first + count).step_by(step) {
            let end = (start + step).min(first + count);
            let bytes = self.source.read(name, start..end).await?;
            for row in bytes.chunks_exact(row_bytes) {
                let at = words.len();
                words.resize(at + row_words, 0);
                pack_row(format, cols, row, &mut words[at..]);
            }
            self.loaded += bytes.len() as u64;
            (self.progress)(self.loaded);
        }
        self.source.release(name);
        Ok(())
    }

    /// A vector on the device, as f32.
    async fn vector(&mut self, name: &str) -> Result<Tensor<1>, LoadError> {
        let values = self.floats(name).await?;
        Ok(self.upload(values))
    }

    fn upload(&self, values: Vec<f32>) -> Tensor<1> {
        let (device, shape) = (self.device, [values.len()]);
        device.memory_persistent_allocations(TensorData::new(values, shape), |data| {
            Tensor::from_data(data, device)
        })
    }

    /// A vector widened to f32.
    async fn floats(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let (format, _, cols) = self.format(name)?;
        let mut words = Vec::new();
        self.pack(name, 0, None, &mut words).await?;
        let mut values = vec![0.0; cols];
        reflect_kernels::format::unpack_row(format, cols, &words, &mut values);
        Ok(values)
    }

    /// Format, rows and columns of a tensor; a vector is one row.
    fn format(&self, name: &str) -> Result<(Format, usize, usize), LoadError> {
        let info = self
            .source
            .info(name)
            .ok_or_else(|| LoadError::MissingTensor { tensor: name.to_owned(), expected: Vec::new() })?;
        Ok((info.format, info.rows(), info.cols()))
    }
}
