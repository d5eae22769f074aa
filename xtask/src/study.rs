//! The study: what kind of reflection data is worth what to a small model. A resumable queue of arms,
//! each a data set, a training run and an evaluation on held-out problems; then tables and a figure.

mod arms;
mod kept;
mod report;

use crate::checks::{binary, build};
use crate::process::{cache, command, root, step};
use crate::recipe::{self, Shape, data, generate, is_trained, made};
use anyhow::{Context, Result, bail};
use arms::{Arm, QUESTIONS, Question};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// How large models and runs are.
pub struct Grid {
    pub name: &'static str,
    pub shape: Shape,
    /// Millions of weights and of tokens, for the report.
    pub weights: f64,
    pub tokens: f64,
    /// Tokens of a step.
    pub step_tokens: usize,
    pub steps: usize,
    pub rate: &'static str,
    pub seeds: &'static [&'static str],
    pub evaluated: usize,
}

/// An arm takes a few minutes on two cores.
const SMALL: Grid = Grid {
    name: "small",
    shape: Shape { hidden: 80, ffn: 224, heads: 5, layers: 4 },
    weights: 0.38,
    tokens: 4.0,
    step_tokens: 2048,
    steps: 1953,
    rate: "2e-3",
    seeds: &["1", "2"],
    evaluated: 500,
};

/// For a GPU.
const FULL: Grid = Grid {
    name: "full",
    shape: Shape { hidden: 256, ffn: 704, heads: 8, layers: 8 },
    weights: 6.6,
    tokens: 100.0,
    step_tokens: 8192,
    steps: 12_207,
    rate: "1e-3",
    seeds: &["1", "2", "3"],
    evaluated: 2000,
};

/// What one arm came to with one seed: the part of the evaluation's report that the study reads.
pub struct Outcome {
    pub report: Value,
}

/// Runs what has not been run, and writes docs/reflection-study.md with its figure. Outcomes are kept in
/// docs/reflection-study, so that another machine can go on with the queue.
pub fn run(grid: &str) -> Result<()> {
    let grid = match grid {
        "small" => SMALL,
        "full" => FULL,
        other => bail!("There is no grid `{other}`: the grids are small and full."),
    };
    build()?;
    let folder = cache()?.join("study").join(grid.name);
    fs::create_dir_all(&folder)?;
    let tokenizer = recipe::tokenizer(&folder, "1")?;
    let base = folder.join("shape");
    recipe::shape(&base, &grid.shape, &tokenizer)?;
    let kept = kept::Kept::open(grid.name)?;
    let total = QUESTIONS.iter().map(|question| question.arms.len()).sum::<usize>() * grid.seeds.len();
    let mut done = 0;
    let mut results = Vec::new();
    for question in &QUESTIONS {
        let mut of_question = Vec::new();
        for arm in question.arms {
            let mut of_arm = Vec::new();
            for seed in grid.seeds {
                done += 1;
                println!("==> arm {done} of {total}: {}, {}, seed {seed}", question.name, arm.name);
                let key = kept::Key::of(&grid, question, arm, seed);
                let outcome = match kept.find(&key)? {
                    Some(outcome) => outcome,
                    None => {
                        let outcome = run_arm(&grid, &folder, &base, question, arm, seed)?;
                        kept.add(&key, &outcome)?;
                        outcome
                    }
                };
                of_arm.push(outcome);
            }
            of_question.push(of_arm);
        }
        results.push(of_question);
    }
    let docs = root().join("docs");
    let text = report::markdown(&grid, &results);
    let figure = report::figure(&results)?;
    for (name, content) in [("reflection-study.svg", figure), ("reflection-study.md", text)] {
        let partial = docs.join(format!(".{name}.partial"));
        fs::write(&partial, content)?;
        fs::rename(&partial, docs.join(name))?;
    }
    println!("docs/reflection-study.md is written");
    Ok(())
}

fn run_arm(
    grid: &Grid,
    folder: &Path,
    base: &Path,
    question: &Question,
    arm: &Arm,
    seed: &str,
) -> Result<Outcome> {
    let name = question.name;
    let run = folder.join(format!("{name}-{}-{seed}", arm.name.replace([' ', '%', ','], "_")));
    fs::create_dir_all(&run)?;
    let result = run.join("report.json");
    if !result.is_file() {
        let mix: Vec<&str> = arm.mix.split(' ').collect();
        let system = question.system.map_or_else(Vec::new, |text| vec!["--system", text]);
        let families = [&system[..], &["--families", arm.families, "--mix"]].concat();
        let problems = made(&run.join("problems.jsonl"), |out| {
            let count = arm.problems.to_string();
            generate(out, &[&families[..], &mix, &["--count", &count, "--seed", seed]].concat())
        })?;
        let records = made(&run.join("train.jsonl"), |out| {
            let style: Vec<&str> = arm.style.split(' ').collect();
            data("reflect", Some(&problems), out, &[&style[..], &["--seed", seed]].concat())
        })?;
        let model = run.join("model");
        if !is_trained(&model) {
            train(grid, base, arm, seed, &records, &model)?;
        }
        // The same problems for every arm of a question and every seed.
        let tasks = made(&folder.join(format!("{name}-held-out.jsonl")), |out| {
            let count = grid.evaluated.to_string();
            let split = ["--split", "held-out", "--count", &count, "--seed", "100"];
            generate(out, &[&families[..], &mix, &split].concat())
        })?;
        evaluate(&model, &tasks, grid, &run)?;
    }
    let text = fs::read_to_string(&result)?;
    let report: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} can't be read; delete it to make it again.", result.display()))?;
    Ok(kept::read_part(&report))
}

fn train(grid: &Grid, base: &Path, arm: &Arm, seed: &str, records: &Path, model: &Path) -> Result<()> {
    let mut run = command(binary()?, ["train", "--fresh", "--device", "auto", "--seed", seed]);
    run.arg("--data").arg(records).arg("--model").arg(base).arg("--out").arg(model);
    run.args(["--loss", arm.loss, "--rate", grid.rate, "--warm-up", "100", "--final-share", "0.03"]);
    // Two micro-batches a step, which run side by side on a CPU.
    run.args(["--micro-tokens", &(grid.step_tokens / 2).to_string(), "--accumulate", "2"]);
    run.args(["--steps", &grid.steps.to_string()]);
    step("train", &mut run)
}

fn evaluate(model: &Path, tasks: &Path, grid: &Grid, run: &Path) -> Result<()> {
    let mut eval = command(binary()?, ["eval", "--device", "auto", "--arms", "tuned,injected"]);
    eval.args(["--count", &grid.evaluated.to_string(), "--seed", "100"]);
    eval.arg("--model").arg(model).arg("--tasks").arg(tasks).arg("--out").arg(run);
    step("evaluate", &mut eval)
}
