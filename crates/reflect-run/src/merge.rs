//! `reflect-run merge`: a model and an adapter become one model.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reflect_kernels::device::{DeviceChoice, Place};
use reflect_train::{TrainError, checkpoint::write_weights, lora, settings::Method, source::Widened};

use crate::{
    input,
    runtime::{Checkpoint, open_device},
    train::{copy_companions, load},
};

#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The model that the adapter was trained on: a Hugging Face folder
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The adapter in PEFT's layout, as `reflect-run train --method lora` writes it
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The folder to write: weights in f32 with the tokenizer of the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the command.
pub fn merge(args: &MergeArgs) -> Result<()> {
    let base = Checkpoint::open_named(&args.model, false)?;
    if !base.path.is_dir() {
        return Err(input("merging writes a Hugging Face folder and needs one in --model"));
    }
    if args.out == base.path {
        return Err(input("--out is the model itself; name another folder"));
    }
    // The host has the memory for f32 weights, a GPU may not.
    let device = open_device(&DeviceChoice::List(vec![Place::Cpu]))?;
    let mut model = load(&base.texts.config, &Widened::new(&base.weights), &device)?;
    lora::load(&mut model, &args.adapter, &device.device)?;
    lora::merge(&mut model, &device.device)?;
    fs::create_dir_all(&args.out).map_err(|source| TrainError::Write { path: args.out.clone(), source })?;
    copy_companions(&base.path, &args.out)?;
    write_weights(&args.out, &model, &Method::Full, &args.model)?;
    eprintln!("{} with {} is in {}", args.model, args.adapter.display(), args.out.display());
    Ok(())
}
