//! `reflect-tiny` and `reflect-micro`, each with its twin, from nothing: problems, tokenizer, training,
//! evaluation. A step whose result is there is not done again, and training goes on from its last
//! checkpoint, so the command may be stopped at any time.

use crate::checks::{binary, build};
use crate::process::{cache, command, root, step};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The seed of everything.
const SEED: &str = "20";
/// Families with the problems of each group. What is found by following names (graph, state, program,
/// deduction) is learned slowest, long sums with a scratchpad fastest.
const GROUPS: [(&str, &str); 3] = [
    ("graph,state,program,deduction", "240000"),
    ("boolean,call,subtraction", "100000"),
    ("addition,multiplication", "40000"),
];
const HELD_OUT: &str = "600";
const VOCABULARY: &str = "512";
/// Records that the tokenizer is trained on.
const TOKENIZER_RECORDS: &str = "20000";
const EVALUATED: &str = "1000";

/// A model's shape and training.
struct Size {
    name: &'static str,
    hidden: usize,
    ffn: usize,
    heads: usize,
    layers: usize,
    rate: &'static str,
}

const SIZES: [Size; 2] = [
    Size { name: "reflect-tiny", hidden: 128, ffn: 352, heads: 4, layers: 5, rate: "3e-3" },
    Size { name: "reflect-micro", hidden: 64, ffn: 176, heads: 4, layers: 5, rate: "4e-3" },
];

/// What is trained on: reflections, or the same solutions without any.
const STYLES: [(&str, &str); 2] = [("", "reflections"), ("-twin", "twin")];

/// Makes all of it in `$REFLECT_CACHE/tiny` and copies the models to `models/`.
pub fn train() -> Result<()> {
    build()?;
    let folder = cache()?.join("tiny");
    fs::create_dir_all(&folder)?;
    let path = |name: &str| folder.join(name);
    let problems = made(&path("problems.jsonl"), |out| {
        let parts: Vec<PathBuf> = GROUPS
            .iter()
            .enumerate()
            .map(|(at, (families, count))| {
                let part = path(&format!("part{at}.jsonl"));
                let options = ["--families", families, "--count", count, "--seed", SEED];
                data("generate", None, &part, &options)?;
                Ok(part)
            })
            .collect::<Result<_>>()?;
        join(&parts, out)
    })?;
    let held_out_problems = made(&path("held-out-problems.jsonl"), |out| {
        data("generate", None, out, &["--split", "held-out", "--count", HELD_OUT, "--seed", SEED])
    })?;
    let written = |name: &str, problems: &Path, style: &str| {
        made(&path(name), |out| data("reflect", Some(problems), out, &["--style", style, "--seed", SEED]))
    };
    for (suffix, style) in STYLES {
        written(&format!("train{suffix}.jsonl"), &problems, style)?;
        written(&format!("held-out{suffix}.jsonl"), &held_out_problems, style)?;
    }
    let tokenizer = path("tokenizer");
    if !tokenizer.join("tokenizer.json").is_file() {
        let options = ["--count", TOKENIZER_RECORDS, "--vocab", VOCABULARY];
        data("tokenizer", Some(&path("train.jsonl")), &tokenizer, &options)?;
    }
    for size in &SIZES {
        let base = path(&format!("{}-shape", size.name));
        fs::create_dir_all(&base)?;
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(tokenizer.join(file), base.join(file))?;
        }
        fs::write(base.join("config.json"), config(size))?;
        for (suffix, _) in STYLES {
            train_one(size, &folder, &base, suffix)?;
        }
        evaluate(size, &folder)?;
        publish(size, &folder)?;
    }
    Ok(())
}

/// Makes a file unless it is there.
fn made(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !path.is_file() {
        make(path)?;
    }
    Ok(path.to_owned())
}

fn data(step_name: &str, input: Option<&Path>, out: &Path, options: &[&str]) -> Result<()> {
    let mut run = command(binary()?, ["data", step_name]);
    if let Some(input) = input {
        run.arg("--in").arg(input);
    }
    step(&format!("{step_name} {}", name_of(out)), run.arg("--out").arg(out).args(options))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes files one after another into one.
fn join(parts: &[PathBuf], out: &Path) -> Result<()> {
    let partial = out.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    for part in parts {
        std::io::copy(&mut fs::File::open(part)?, &mut file)?;
    }
    fs::rename(&partial, out)?;
    Ok(())
}

fn config(size: &Size) -> String {
    let Size { hidden, ffn, heads, layers, .. } = size;
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
  "rope_theta": 10000.0,
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

fn train_one(size: &Size, folder: &Path, base: &Path, suffix: &str) -> Result<()> {
    let out = folder.join(format!("{}{suffix}", size.name));
    if out.join("model.safetensors").is_file() {
        return Ok(());
    }
    let mut run = command(binary()?, ["train", "--fresh", "--device", "auto"]);
    run.arg("--data").arg(folder.join(format!("train{suffix}.jsonl")));
    run.arg("--held-out").arg(folder.join(format!("held-out{suffix}.jsonl")));
    run.arg("--model").arg(base).arg("--out").arg(&out);
    run.args(["--rate", size.rate, "--seed", SEED]);
    run.args("--epochs 1 --micro-tokens 4096 --warm-up 200 --final-share 0.03".split(' '));
    run.args("--eval-every 500 --save-every 250".split(' '));
    step(&format!("train {}{suffix}", size.name), &mut run)
}

fn evaluate(size: &Size, folder: &Path) -> Result<()> {
    let model = folder.join(size.name);
    let mut run = command(binary()?, ["eval", "--tasks", "default", "--count", EVALUATED, "--device", "cpu"]);
    run.arg("--model").arg(&model).arg("--twin").arg(folder.join(format!("{}-twin", size.name)));
    run.args(["--arms", "tuned,banned,majority,injected,twin"]);
    run.arg("--out").arg(folder.join(format!("{}-eval", size.name)));
    step(&format!("evaluate {}", size.name), &mut run)
}

/// Copies what a user needs; the model card is written by people.
fn publish(size: &Size, folder: &Path) -> Result<()> {
    let to = root().join("models").join(size.name);
    fs::create_dir_all(&to)?;
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let from = folder.join(size.name).join(file);
        fs::copy(&from, to.join(file)).with_context(|| format!("{} could not be copied.", from.display()))?;
    }
    let report = folder.join(format!("{}-eval", size.name)).join("report.md");
    fs::copy(&report, to.join("evaluation.md"))?;
    println!("{} is in {}", size.name, to.display());
    Ok(())
}
