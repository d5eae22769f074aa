//! Low-rank adapters: hung on a model, written and read in the layout of PEFT, and merged.

mod merged;
pub mod peft;
pub mod updates;

use std::path::Path;

use burn::tensor::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reflect_llm::{
    Llama, LlamaConfig,
    config::RopeLayout,
    model::{Adapter, AdapterPart, LowRank},
    weights::expected_shapes,
};

pub use self::{
    merged::{Merged, Share},
    peft::PeftConfig,
    updates::{Updates, hang},
};
use crate::{
    TrainError,
    export::{Stacked, Stored, linears, matrix, stacked},
    settings::LoraSettings,
};

/// Names of the files of an adapter.
pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Every projection that may have an adapter.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Numbers of the adapters of a model with these settings.
pub fn numbers(config: &LlamaConfig, settings: &LoraSettings) -> u64 {
    let shapes = expected_shapes(config).into_iter().filter(|(name, _)| {
        settings.targets.iter().any(|target| name.ends_with(&format!("{target}.weight")))
    });
    // A rank that is far too large must not come out small.
    let sizes =
        shapes.map(|(_, shape)| (settings.rank as u64).saturating_mul(shape.iter().sum::<usize>() as u64));
    sizes.fold(0, u64::saturating_add)
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
    settings.check()?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (rank, scale) = (settings.rank, settings.alpha / settings.rank as f64);
    let projections = stacked(&model.config);
    for block in &mut model.layers {
        let linears = [&block.qkv_proj, &block.o_proj, &block.gate_up_proj, &block.down_proj];
        let adapters = std::array::from_fn(|at| {
            let cols = linears[at].weight.cols;
            let bound = 1.0 / (cols as f32).sqrt();
            let mut part = |part: &Stacked| {
                let is_target = settings.targets.iter().any(|target| part.name.ends_with(target.as_str()));
                let low_rank = is_target.then(|| {
                    let a: Vec<f32> = (0..rank * cols).map(|_| random.random_range(-bound..bound)).collect();
                    LowRank {
                        a: matrix(&a, rank, cols, device),
                        b: matrix(&vec![0.0; part.rows * rank], part.rows, rank, device),
                    }
                });
                AdapterPart { rows: part.rows, low_rank }
            };
            let parts: Vec<AdapterPart> = projections[at].iter().map(&mut part).collect();
            parts.iter().any(|part| part.low_rank.is_some()).then_some(Adapter { scale, parts })
        });
        hang(block, adapters);
    }
    Ok(())
}

/// Hangs the adapter in `folder` on a model whose layers are all on `device`.
///
/// # Errors
/// As [`Updates::read`].
pub fn load(model: &mut Llama, folder: &Path, device: &Device) -> Result<(), TrainError> {
    let updates = Updates::read(&[folder], &model.config)?;
    for (layer, block) in model.layers.iter_mut().enumerate() {
        hang(block, updates.adapters(&model.config, layer, device));
    }
    Ok(())
}

/// PEFT's name of a factor.
fn peft_name(layer: usize, projection: &str, factor: &str) -> String {
    format!("base_model.model.model.layers.{layer}.{projection}.{factor}.weight")
}

/// The factors of all adapters under PEFT's names, in Hugging Face's order of rows.
pub fn tensors(model: &Llama) -> Vec<Stored<'_>> {
    let mut tensors = Vec::new();
    for (layer, block) in model.layers.iter().enumerate() {
        for (linear, projections) in linears(&model.config, block) {
            let parts = linear.adapter.iter().flat_map(|adapter| &adapter.parts);
            for (part, projection) in parts.zip(projections) {
                let Some(LowRank { a, b }) = &part.low_rank else { continue };
                let name = |factor| peft_name(layer, projection.name, factor);
                tensors.push(Stored::matrix(name("lora_A"), a));
                tensors.push(Stored::stacked(name("lora_B"), b, 0, projection, &model.config));
            }
        }
    }
    tensors
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
