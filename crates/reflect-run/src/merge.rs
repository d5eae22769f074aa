//! `reflect-run merge`: a model and its adapters become one model, tensor by tensor, by way of `convert`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use reflect_llm::Weights;
use reflect_train::lora::{Merged, Share};

use crate::{
    convert::{ConvertArgs, Target, Texts, convert_from},
    input,
    runtime::Checkpoint,
};

#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The model that the adapter was trained on: a Hugging Face folder, a .gguf file, or a name from
    /// `reflect-run models`
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The adapter in PEFT's layout, as `reflect-run train --method lora` writes it (repeatable: adapters add
    /// up)
    #[arg(long, value_name = "DIR", required = true)]
    pub adapter: Vec<PathBuf>,
    /// Format of the result, as `reflect-run convert --to` has them: f32, f16, bf16 or fp8 is a Hugging Face
    /// folder, or GGUF where --out ends in .gguf; the others are GGUF
    #[arg(long, value_name = "FORMAT", value_parser = Target::parse, default_value = "f32")]
    pub to: Target,
    /// The folder to write, with the tokenizer of the model, or a file that ends in .gguf
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If the model or an adapter can't be read, they do not fit each other, or the disk can't hold the result.
pub fn merge(args: &MergeArgs) -> Result<()> {
    let base = Checkpoint::open_named(&args.model, false)?.with(&args.adapter)?;
    refuse_existing(&args.out)?;
    let was_there = args.out.exists();
    let origin = format!("{} {:016x} {:016x}", base.name, base.weights_hash()?, base.adapters.hash());
    let weights = Arc::new(base.weights);
    let merged = Merged::new(weights.clone(), &base.texts.config, &base.adapters, Share::All);
    let texts = match &*weights {
        Weights::Gguf(file) => Texts::Gguf(file, &base.texts),
        _ => Texts::Folder(&base.path, &base.texts),
    };
    let written = ConvertArgs {
        model: args.model.clone(),
        to: args.to,
        embedding: None,
        out: args.out.clone(),
        config: None,
        layers: None,
        share_layers: false,
    };
    convert_from(&written, &base.texts.config, &merged, &texts, &base.name, &origin)
        .inspect_err(|_| remove_rest(&args.out, was_there))?;
    let adapters: Vec<String> = args.adapter.iter().map(|adapter| adapter.display().to_string()).collect();
    eprintln!("{} with {} is in {}", args.model, adapters.join(" and "), args.out.display());
    Ok(())
}

/// Refuses a place that holds anything but what an interrupted command left.
fn refuse_existing(out: &Path) -> Result<()> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let own = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
    if out.is_file() || entries.into_iter().any(|entry| !own(&entry)) {
        return Err(input(format!("{} is there already; give another --out", out.display())));
    }
    Ok(())
}

/// Leaves nothing of a command that failed. What can't be removed costs space only.
fn remove_rest(out: &Path, was_there: bool) {
    if out.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf")) {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let _ = fs::remove_file(out.with_file_name(format!(".{name}.partial")));
        return;
    }
    if !was_there {
        let _ = fs::remove_dir_all(out);
        return;
    }
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".partial") {
            let _ = fs::remove_file(entry.path());
        }
    }
}
