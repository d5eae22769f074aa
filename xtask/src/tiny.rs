//! `reflect-tiny` and `reflect-micro`, each with its twin, from nothing: problems, tokenizer, training,
//! the model's own mistakes, training on those, evaluation. A step whose result is there is not done
//! again, and training goes on from its last checkpoint, so the command may be stopped at any time.

use crate::checks::{binary, build};
use crate::process::{cache, command, root, step};
use crate::recipe::{self, Shape, data, generate, is_trained, join, made};
use anyhow::{Context, Result};
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The seeds of all data but the second stage's, and of that.
const SEED: &str = "20";
const SECOND_SEED: &str = "21";
/// Families, the problems of each group, and the shares of easy, moderate and hard ones. What is found by
/// following names is learned slowest: where to look in `graph`, and answers without any thinking, which
/// say little each. Long sums with a scratchpad are learned soonest.
const GROUPS: [(&str, &str, [&str; 3]); 7] = [
    ("graph", "130000", ["0.35", "0.25", "0.4"]),
    ("state", "120000", ["0.5", "0.25", "0.25"]),
    ("deduction", "90000", ["0.5", "0.25", "0.25"]),
    ("boolean", "70000", ["0.45", "0.25", "0.3"]),
    ("program,call", "100000", ["0.3", "0.4", "0.3"]),
    ("subtraction", "45000", ["0.3", "0.4", "0.3"]),
    ("addition,multiplication", "60000", ["0.3", "0.4", "0.3"]),
];
/// How likely a step of each risk gets a reflection.
const RATES: [&str; 7] = ["--rates", "0", "0.2", "0.5", "1", "--max-reflections", "4"];
const HELD_OUT: &str = "600";
/// New problems whose solutions are searched for the model's own mistakes, most of them of the families
/// in which it makes most.
const MINED: [(&str, &str); 2] =
    [("graph,program", "6000"), ("addition,subtraction,multiplication,boolean,deduction,call,state", "1400")];
const MINED_MIX: [&str; 4] = ["--mix", "0", "0.3", "0.7"];
/// Answers written for each problem that was mined, each with other choices.
const WRITTEN: [&str; 3] = ["31", "32", "33"];
/// Records of the first stage that the second repeats, so that nothing is forgotten.
const REPEATED: usize = 60_000;
const EVALUATED: &str = "1000";
const EVALUATION_SEED: &str = "5";

/// A model's shape and training.
struct Size {
    name: &'static str,
    shape: Shape,
    rate: &'static str,
    second_rate: &'static str,
}

const SIZES: [Size; 2] = [
    Size {
        name: "reflect-tiny",
        shape: Shape { hidden: 128, ffn: 352, heads: 4, layers: 5 },
        rate: "1.2e-3",
        second_rate: "5e-4",
    },
    Size {
        name: "reflect-micro",
        shape: Shape { hidden: 64, ffn: 168, heads: 4, layers: 5 },
        rate: "2e-3",
        second_rate: "8e-4",
    },
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
        written(&path(&format!("train{suffix}.jsonl")), &problems, style, SEED)?;
        written(&path(&format!("held-out{suffix}.jsonl")), &held_out, style, SEED)?;
    }
    let tokenizer = recipe::tokenizer(&folder, SEED)?;
    for size in &SIZES {
        let base = path(&format!("{}-shape", size.name));
        recipe::shape(&base, &size.shape, &tokenizer)?;
        for (suffix, style) in STYLES {
            let first = path(&format!("{}-first{suffix}", size.name));
            first_stage(size, &folder, &base, suffix, &first)?;
            if suffix.is_empty() {
                mine(size, &folder, &first)?;
            }
            let again = second_data(size, &folder, suffix, style)?;
            second_stage(size, &folder, &again, suffix, &first)?;
        }
        evaluate(size, &folder)?;
        publish(size, &folder)?;
    }
    Ok(())
}

/// Answers in one style to problems.
fn written(out: &Path, problems: &Path, style: &str, seed: &str) -> Result<PathBuf> {
    made(out, |out| {
        let options = ["--style", style, "--seed", seed];
        data("reflect", Some(problems), out, &[&options[..], &RATES].concat())
    })
}

/// Copies about so many lines: of each block of lines one, and of each block another one, since families
/// and difficulties may take turns in the file.
fn sparse(from: &Path, to: &Path, count: usize) -> Result<()> {
    let lines = || Ok::<_, anyhow::Error>(BufReader::new(fs::File::open(from)?).lines());
    let block = (lines()?.count() / count).max(1);
    let mut file = BufWriter::new(fs::File::create(to)?);
    for (index, line) in lines()?.enumerate() {
        if index % block == index / block % block {
            writeln!(file, "{}", line?)?;
        }
    }
    Ok(file.flush()?)
}

/// `reflect-run train`, with what both stages have in common.
fn training(name: &str, folder: &Path, suffix: &str, from: &Path, out: &Path, options: &str) -> Result<()> {
    let mut run = command(binary()?, ["train", "--device", "auto", "--seed", SEED, "--epochs", "1"]);
    run.arg("--held-out").arg(folder.join(format!("held-out{suffix}.jsonl")));
    run.arg("--model").arg(from).arg("--out").arg(out);
    run.args("--micro-tokens 1024 --loss mistake=0,output=3 --eval-every 2000 --save-every 1000".split(' '));
    step(name, run.args(options.split(' ')))
}

fn first_stage(size: &Size, folder: &Path, base: &Path, suffix: &str, out: &Path) -> Result<()> {
    if is_trained(out) {
        return Ok(());
    }
    let data = folder.join(format!("train{suffix}.jsonl"));
    let options =
        format!("--fresh --data {} --rate {} --warm-up 500 --final-share 0.03", data.display(), size.rate);
    training(&format!("train {}{suffix}", size.name), folder, suffix, base, out, &options)
}

/// Lets the model solve new problems and keeps its own wrong steps.
fn mine(size: &Size, folder: &Path, model: &Path) -> Result<()> {
    let problems = made(&folder.join("second-problems.jsonl"), |out| {
        let parts = MINED.iter().enumerate().map(|(at, (families, count))| {
            let part = folder.join(format!("second-part{at}.jsonl"));
            let options = ["--families", families, "--count", count, "--seed", SECOND_SEED];
            generate(&part, &[&options[..], &MINED_MIX].concat())?;
            Ok(part)
        });
        join(&parts.collect::<Result<Vec<_>>>()?, out)
    })?;
    made(&folder.join(format!("{}-mined.jsonl", size.name)), |out| {
        let partial = out.with_extension("partial");
        let mut run = command(binary()?, ["data", "mine", "--device", "auto", "--seed", SECOND_SEED]);
        run.args("--samples 4 --batch 64 --max-tokens 512".split(' '));
        run.arg("--model").arg(model).arg("--in").arg(&problems).arg("--out").arg(&partial);
        step(&format!("mine {}", size.name), &mut run)?;
        Ok(fs::rename(partial, out)?)
    })?;
    Ok(())
}

/// Answers to the problems that were mined, and some of the first stage's again.
fn second_data(size: &Size, folder: &Path, suffix: &str, style: &str) -> Result<PathBuf> {
    let mined = folder.join(format!("{}-mined.jsonl", size.name));
    made(&folder.join(format!("{}-second{suffix}.jsonl", size.name)), |out| {
        let mut parts = Vec::new();
        for seed in WRITTEN {
            let part = folder.join(format!("{}-mined{suffix}-{seed}.jsonl", size.name));
            written(&part, &mined, style, seed)?;
            parts.push(part);
        }
        let repeated = folder.join(format!("repeated{suffix}.jsonl"));
        sparse(&folder.join(format!("train{suffix}.jsonl")), &repeated, REPEATED)?;
        parts.push(repeated);
        join(&parts, out)
    })
}

fn second_stage(size: &Size, folder: &Path, data: &Path, suffix: &str, from: &Path) -> Result<()> {
    let out = folder.join(format!("{}{suffix}", size.name));
    if is_trained(&out) {
        return Ok(());
    }
    let options =
        format!("--data {} --rate {} --warm-up 100 --final-share 0.03", data.display(), size.second_rate);
    training(&format!("train {}{suffix} again", size.name), folder, suffix, from, &out, &options)
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
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let from = folder.join(size.name).join(file);
        fs::copy(&from, to.join(file)).with_context(|| format!("{} could not be copied.", from.display()))?;
    }
    let report = folder.join(format!("{}-eval", size.name)).join("report.md");
    fs::copy(&report, to.join("evaluation.md"))?;
    println!("{} is in {}", size.name, to.display());
    Ok(())
}
