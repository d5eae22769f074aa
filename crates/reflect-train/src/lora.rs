//! Low-rank adapters: hung on a model, written and read in the layout of PEFT, and merged.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reflect_kernels::{Format, PackedMatrix};
use reflect_llm::{
    Llama, LlamaConfig,
    config::RopeLayout,
    model::{Adapter, AdapterPart, Linear, LowRank},
    weights::expected_shapes,
};
use serde::{Deserialize, Serialize};

use crate::{
    TrainError,
    export::{HostTensor, Stacked, matrix, read_safetensors, rows, stacked},
    settings::LoraSettings,
};

/// Names of the files of an adapter.
pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Every projection that may have an adapter.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The part of PEFT's `adapter_config.json` that we write and read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    #[serde(default)]
    pub bias: Option<String>,
    pub target_modules: Vec<String>,
    #[serde(default)]
    pub inference_mode: bool,
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    pub use_dora: bool,
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Ranks and alphas of single modules.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl PeftConfig {
    pub fn new(settings: &LoraSettings, base: &str) -> Self {
        let mut target_modules = settings.targets.clone();
        target_modules.sort();
        Self {
            peft_type: "LORA".to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            base_model_name_or_path: Some(base.to_owned()),
            r: settings.rank,
            lora_alpha: settings.alpha,
            lora_dropout: 0.0,
            bias: Some("none".to_owned()),
            target_modules,
            inference_mode: true,
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// Numbers of the adapters of a model with these settings.
pub fn numbers(config: &LlamaConfig, settings: &LoraSettings) -> u64 {
    let shapes = expected_shapes(config).into_iter().filter(|(name, _)| {
        settings.targets.iter().any(|target| name.ends_with(&format!("{target}.weight")))
    });
    shapes.map(|(_, shape)| settings.rank as u64 * shape.iter().sum::<usize>() as u64).sum()
}

/// Hangs new adapters on the target projections: A uniform within `1 / sqrt(inputs)`, as PEFT begins
/// (Kaiming uniform with a = √5), and B zero, so that the model begins as it was.
///
/// # Errors
/// If a target is not the name of a projection, or there is none.
pub fn attach(
    model: &mut Llama,
    settings: &LoraSettings,
    seed: u64,
    device: &Device,
) -> Result<(), TrainError> {
    check(settings)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let rank = settings.rank;
    attach_with(model, settings, &mut |_, _, part, cols| {
        let bound = 1.0 / (cols as f32).sqrt();
        let a: Vec<f32> = (0..rank * cols).map(|_| random.random_range(-bound..bound)).collect();
        Ok(LowRank {
            a: matrix(&a, rank, cols, device),
            b: matrix(&vec![0.0; part.rows * rank], part.rows, rank, device),
        })
    })
}

/// Reads the adapter in `folder`, as PEFT or [`write_weights`](crate::checkpoint::write_weights) wrote it, and hangs it on the model. Returns its
/// settings.
///
/// # Errors
/// If a file can't be read, or does not fit the model.
pub fn load(model: &mut Llama, folder: &Path, device: &Device) -> Result<LoraSettings, TrainError> {
    let path = folder.join(CONFIG);
    let damaged = |problem: String| TrainError::Damaged { path: path.clone(), problem };
    let text = std::fs::read(&path).map_err(|source| TrainError::Read { path: path.clone(), source })?;
    let config: PeftConfig = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if config.peft_type != "LORA" || config.use_dora || config.use_rslora || config.fan_in_fan_out {
        return Err(damaged("only plain LoRA adapters are known".to_owned()));
    }
    if !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty() {
        return Err(damaged(
            "adapters with a rank or alpha of their own for some modules are not known".to_owned(),
        ));
    }
    let settings = LoraSettings {
        rank: config.r,
        alpha: config.lora_alpha,
        targets: config.target_modules,
        packed: false,
    };
    check(&settings)?;
    let mut tensors = read_safetensors(&folder.join(WEIGHTS))?;
    let layout = model.config.clone();
    attach_with(model, &settings, &mut |layer, name, part, cols| {
        let mut take = |factor: &str, shape: [usize; 2]| {
            let name = peft_name(layer, name, factor);
            match tensors.remove(&name) {
                Some((found, values)) if found == shape => Ok(values),
                Some((found, _)) => Err(damaged(format!("{name} is {found:?} instead of {shape:?}"))),
                None => Err(damaged(format!("{name} is missing"))),
            }
        };
        let a = take("lora_A", [settings.rank, cols])?;
        let b = take("lora_B", [part.rows, settings.rank])?;
        let b = from_hugging_face(&part, &layout, &b, settings.rank);
        Ok(LowRank {
            a: matrix(&a, settings.rank, cols, device),
            b: matrix(&b, part.rows, settings.rank, device),
        })
    })?;
    match tensors.keys().next() {
        Some(name) => Err(damaged(format!("{name} is of no projection of this model"))),
        None => Ok(settings),
    }
}

fn check(settings: &LoraSettings) -> Result<(), TrainError> {
    let targets = &settings.targets;
    if settings.rank == 0 {
        return Err(TrainError::Unsupported(
            "an adapter of rank 0 changes nothing; give a rank from 1".to_owned(),
        ));
    }
    let wrong = targets.iter().find(|target| !TARGETS.contains(&target.as_str()));
    match wrong {
        Some(target) => Err(TrainError::Unsupported(format!(
            "`{target}` is not a projection that can have an adapter; choose from {}",
            TARGETS.join(", ")
        ))),
        None if targets.is_empty() => {
            Err(TrainError::Unsupported("an adapter needs at least one target projection".to_owned()))
        }
        None => Ok(()),
    }
}

type MakeLowRank<'a> = &'a mut dyn FnMut(usize, &'static str, Stacked, usize) -> Result<LowRank, TrainError>;

/// Hangs on each target what `make` returns for its layer, name, rows and columns.
fn attach_with(model: &mut Llama, settings: &LoraSettings, make: MakeLowRank<'_>) -> Result<(), TrainError> {
    let config = model.config.clone();
    for (layer, block) in model.layers.iter_mut().enumerate() {
        let linears = [&mut block.qkv_proj, &mut block.o_proj, &mut block.gate_up_proj, &mut block.down_proj];
        for (linear, projections) in linears.into_iter().zip(stacked(&config)) {
            let is_target = |part: &Stacked| settings.targets.iter().any(|t| part.name.ends_with(t.as_str()));
            if !projections.iter().any(is_target) {
                continue;
            }
            let mut parts = Vec::with_capacity(projections.len());
            for part in projections {
                let low_rank = match is_target(&part) {
                    true => Some(make(layer, part.name, part, linear.weight.cols)?),
                    false => None,
                };
                parts.push(AdapterPart { rows: part.rows, low_rank });
            }
            linear.adapter = Some(Adapter { scale: settings.alpha / settings.rank as f64, parts });
        }
    }
    Ok(())
}

/// PEFT's name of a factor.
fn peft_name(layer: usize, projection: &str, factor: &str) -> String {
    format!("base_model.model.model.layers.{layer}.{projection}.{factor}.weight")
}

/// The factors of all adapters under PEFT's names, in Hugging Face's order of rows.
///
/// # Errors
/// If the device fails.
pub fn tensors(model: &Llama) -> Result<BTreeMap<String, HostTensor>, TrainError> {
    let mut tensors = BTreeMap::new();
    for (layer, block) in model.layers.iter().enumerate() {
        for (adapter, projections) in crate::export::adapters(&model.config, block) {
            for (part, projection) in adapter.parts.iter().zip(projections) {
                let Some(LowRank { a, b }) = &part.low_rank else { continue };
                let name = |factor| peft_name(layer, projection.name, factor);
                tensors.insert(name("lora_A"), (vec![a.rows(), a.cols], rows(a)?));
                let b_rows = projection.to_hugging_face(&model.config, &rows(b)?, b.cols);
                tensors.insert(name("lora_B"), (vec![b.rows(), b.cols], b_rows));
            }
        }
    }
    Ok(tensors)
}

/// The inverse of [`Stacked::to_hugging_face`], by finding where it puts each row.
fn from_hugging_face(part: &Stacked, config: &LlamaConfig, values: &[f32], cols: usize) -> Vec<f32> {
    if config.rope_layout == RopeLayout::HalfSplit {
        return values.to_vec();
    }
    let numbers: Vec<f32> = (0..part.rows).map(|row| row as f32).collect();
    let places = part.to_hugging_face(config, &numbers, 1);
    let mut out = vec![0.0; values.len()];
    for (row, place) in values.chunks_exact(cols).zip(places) {
        out[place as usize * cols..][..cols].copy_from_slice(row);
    }
    out
}

/// Adds all adapters to the matrices they hang on, which must be f32, and takes them off.
///
/// # Errors
/// If the device fails, or a matrix is in another format.
pub fn merge(model: &mut Llama, device: &Device) -> Result<(), TrainError> {
    for block in &mut model.layers {
        let linears = [&mut block.qkv_proj, &mut block.o_proj, &mut block.gate_up_proj, &mut block.down_proj];
        for linear in linears {
            merge_linear(linear, device)?;
        }
    }
    Ok(())
}

fn merge_linear(linear: &mut Linear, device: &Device) -> Result<(), TrainError> {
    let Some(adapter) = linear.adapter.take() else { return Ok(()) };
    let cols = linear.weight.cols;
    let mut values = rows(&linear.weight)?;
    let mut first = 0;
    for part in &adapter.parts {
        let to = &mut values[first * cols..(first + part.rows) * cols];
        first += part.rows;
        let Some(LowRank { a, b }) = &part.low_rank else { continue };
        let rank = a.rows();
        let (a, b) = (rows(a)?, rows(b)?);
        for (to, b) in to.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
            for (col, to) in to.iter_mut().enumerate() {
                let update: f64 =
                    b.iter().enumerate().map(|(r, b)| f64::from(*b) * f64::from(a[r * cols + col])).sum();
                *to = (f64::from(*to) + adapter.scale * update) as f32;
            }
        }
    }
    linear.weight = split_like(&linear.weight, &values, device);
    Ok(())
}

/// New values in parts of the same sizes.
fn split_like(old: &PackedMatrix, values: &[f32], device: &Device) -> PackedMatrix {
    let mut new = PackedMatrix { parts: Vec::new(), cols: old.cols };
    let mut first = 0;
    for part in &old.parts {
        let end = first + part.rows * old.cols;
        debug_assert_eq!(part.format, Format::F32, "merged matrices are f32");
        new.stack(matrix(&values[first..end], part.rows, old.cols, device));
        first = end;
    }
    new
}
