//! `reflect-tiny` and `reflect-micro`, each with its twin, from nothing: problems, tokenizer, training,
//! evaluation. A step whose result is there is not done again, and training goes on from its last checkpoint,
//! so the command may be stopped at any time.

use crate::checks::{binary, build};
use crate::process::{cache, command, root, step};
use crate::recipe::{self, Shape, data, generate, is_trained, join, made};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The seed of all data and training.
const SEED: &str = "20";
/// Families, the problems of each group, and the shares of easy, moderate and hard ones. What is found by
/// following names is learned slowest: where to look in `graph`, and answers without any thinking, which
/// say little each. Columns are learned soonest, sums in one go never surely.
const GROUPS: [(&str, &str, [&str; 3]); 7] = [
    ("graph", "104000", ["0.35", "0.2", "0.45"]),
    ("state", "88000", ["0.5", "0.25", "0.25"]),
    ("deduction", "64000", ["0.6", "0.2", "0.2"]),
    ("boolean", "46000", ["0.45", "0.25", "0.3"]),
    ("program,call", "76000", ["0.3", "0.4", "0.3"]),
    ("subtraction", "42000", ["0.25", "0.25", "0.5"]),
    ("addition,multiplication", "64000", ["0.25", "0.25", "0.5"]),
];
/// How likely a step of each risk gets a reflection.
const RATES: [&str; 7] = ["--rates", "0", "0.2", "0.5", "1", "--max-reflections", "4"];
const HELD_OUT: &str = "600";
const EVALUATED: &str = "1000";
const EVALUATION_SEED: &str = "5";

/// A model's shape and training.
struct Size {
    name: &'static str,
    shape: Shape,
    rate: &'static str,
}

const SIZES: [Size; 2] = [
    Size {
        name: "reflect-tiny",
        shape: Shape { hidden: 128, ffn: 352, heads: 4, layers: 5 },
        rate: "1.2e-3",
    },
    Size { name: "reflect-micro", shape: Shape { hidden: 64, ffn: 168, heads: 4, layers: 5 }, rate: "2e-3" },
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
        let parts = GROUPS.iter().enumerate().map(|(at, (families, count, mix))| {
            let part = path(&format!("part{at}.jsonl"));
            let options = ["--families", families, "--count", count, "--seed", SEED];
            generate(&part, &[&options[..], &["--mix"], mix].concat())?;
            Ok(part)
        });
        join(&parts.collect::<Result<Vec<_>>>()?, out)
    })?;
    let held_out = made(&path("held-out-problems.jsonl"), |out| {
        generate(out, &["--split", "held-out", "--count", HELD_OUT, "--seed", SEED])
    })?;
    for (suffix, style) in STYLES {
        written(&path(&format!("train{suffix}.jsonl")), &problems, style)?;
        written(&path(&format!("held-out{suffix}.jsonl")), &held_out, style)?;
    }
    let tokenizer = recipe::tokenizer(&folder, SEED)?;
    for size in &SIZES {
        let base = path(&format!("{}-shape", size.name));
        recipe::shape(&base, &size.shape, &tokenizer)?;
        for (suffix, _) in STYLES {
            train_on(size, &folder, &base, suffix)?;
        }
        evaluate(size, &folder)?;
        publish(size, &folder)?;
    }
    Ok(())
}

/// Answers in one style to problems.
fn written(out: &Path, problems: &Path, style: &str) -> Result<PathBuf> {
    made(out, |out| {
        let options = ["--style", style, "--seed", SEED];
        data("reflect", Some(problems), out, &[&options[..], &RATES].concat())
    })
}

fn train_on(size: &Size, folder: &Path, base: &Path, suffix: &str) -> Result<()> {
    let out = folder.join(format!("{}{suffix}", size.name));
    if is_trained(&out) {
        return Ok(());
    }
    let data = |name: &str| folder.join(format!("{name}{suffix}.jsonl"));
    let mut run = command(binary()?, ["train", "--fresh", "--device", "auto", "--seed", SEED]);
    run.arg("--data").arg(data("train")).arg("--held-out").arg(data("held-out"));
    run.arg("--model").arg(base).arg("--out").arg(out).args(["--rate", size.rate]);
    run.args("--micro-tokens 512 --accumulate 2 --epochs 1 --warm-up 500 --final-share 0.03".split(' '));
    run.args("--loss mistake=0,output=3 --eval-every 2000 --save-every 1000".split(' '));
    step(&format!("train {}{suffix}", size.name), &mut run)
}

fn evaluate(size: &Size, folder: &Path) -> Result<()> {
    let model = folder.join(size.name);
    let mut run = command(binary()?, ["eval", "--tasks", "default", "--device", "auto"]);
    run.args(["--count", EVALUATED, "--seed", EVALUATION_SEED]);
    run.arg("--model").arg(&model).arg("--twin").arg(folder.join(format!("{}-twin", size.name)));
    run.args(["--arms", "tuned,banned,majority,injected,twin"]);
    run.arg("--out").arg(folder.join(format!("{}-eval", size.name)));
    step(&format!("evaluate {}", size.name), &mut run)
}

/// Copies what a user needs; the model card is written by people.
fn publish(size: &Size, folder: &Path) -> Result<()> {
    let to = root().join("models").join(size.name);
    fs::create_dir_all(&to)?;
    let mut files: Vec<(PathBuf, PathBuf)> =
        ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
            .map(|file| (folder.join(size.name).join(file), to.join(file)))
            .into();
    let report = folder.join(format!("{}-eval", size.name)).join("report.md");
    files.push((report, to.join("evaluation.md")));
    for (from, to) in files {
        let partial = to.with_extension("partial");
        fs::copy(&from, &partial).with_context(|| format!("{} could not be copied.", from.display()))?;
        fs::rename(partial, to)?;
    }
    println!("{} is in {}", size.name, to.display());
    Ok(())
}
