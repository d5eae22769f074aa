//! Steps that `train-tiny` and `study` have in common: each starts `reflect-run` and leaves a file.

use crate::checks::binary;
use crate::process::{command, step};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// Tokens of a small model of ours.
pub const VOCABULARY: &str = "768";
/// Problems that a tokenizer is trained on, of all families evenly.
const TOKENIZER_PROBLEMS: &str = "27000";

/// The shape of a small model.
pub struct Shape {
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub layers: usize,
}

/// Makes a file unless it is there.
pub fn made(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !path.is_file() {
        make(path)?;
    }
    Ok(path.to_owned())
}

/// Makes a file with `reflect-run data`.
pub fn data(step_name: &str, input: Option<&Path>, out: &Path, options: &[&str]) -> Result<()> {
    let mut run = command(binary()?, ["data", step_name]);
    if let Some(input) = input {
        run.arg("--in").arg(input);
    }
    step(&format!("{step_name} {}", name_of(out)), run.arg("--out").arg(out).args(options))
}

/// Makes problems.
pub fn generate(out: &Path, options: &[&str]) -> Result<()> {
    data("generate", None, out, options)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes files one after another into one.
pub fn join(parts: &[PathBuf], out: &Path) -> Result<()> {
    let partial = out.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    for part in parts {
        std::io::copy(&mut fs::File::open(part)?, &mut file)?;
    }
    fs::rename(&partial, out)?;
    Ok(())
}

/// A folder with a tokenizer, trained on answers to problems of all families.
pub fn tokenizer(folder: &Path, seed: &str) -> Result<PathBuf> {
    let out = folder.join("tokenizer");
    if !out.join("tokenizer.json").is_file() {
        let even = made(&folder.join("even-problems.jsonl"), |out| {
            generate(out, &["--count", TOKENIZER_PROBLEMS, "--seed", seed])
        })?;
        let answers =
            made(&folder.join("even.jsonl"), |out| data("reflect", Some(&even), out, &["--seed", seed]))?;
        data("tokenizer", Some(&answers), &out, &["--vocab", VOCABULARY])?;
    }
    Ok(out)
}

/// A folder that `reflect-run train --fresh` begins with.
pub fn shape(folder: &Path, shape: &Shape, tokenizer: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tokenizer.join(file), folder.join(file))?;
    }
    Ok(fs::write(folder.join("config.json"), config(shape))?)
}

fn config(shape: &Shape) -> String {
    let Shape { hidden, ffn, heads, layers } = shape;
    let head_dim = hidden / heads;
    format!(
        r#"{{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": {hidden},
  "intermediate_size": {ffn},
  "num_hidden_layers": {layers},
  "num_attention_heads": {heads},
  "num_key_value_heads": {heads},
  "head_dim": {head_dim},
  "vocab_size": {VOCABULARY},
  "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-5,
  "rope_theta": 200.0,
  "rope_scaling": null,
  "hidden_act": "silu",
  "tie_word_embeddings": true,
  "attention_bias": false,
  "mlp_bias": false,
  "bos_token_id": 0,
  "eos_token_id": 4,
  "torch_dtype": "float32"
}}
"#
    )
}

/// Whether a folder of a training run holds its result.
pub fn is_trained(out: &Path) -> bool {
    out.join("model.safetensors").is_file()
}
