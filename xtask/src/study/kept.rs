//! Outcomes of runs, one a line, in the repository: training them anew takes hours.

use super::arms::{Arm, Question};
use super::{Grid, Outcome};
use crate::process::root;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// What of the evaluation's report the study reads.
const PARTS: [&str; 5] = [
    "/report/arms/tuned/accuracy",
    "/report/arms/tuned/slip_rate",
    "/report/arms/tuned/correction_rate",
    "/report/arms/tuned/tokens_mean/all",
    "/report/injected",
];

/// Names a run with all that its outcome depends on, so that an arm that was changed is run again.
pub struct Key(Value);

impl Key {
    pub fn of(grid: &Grid, question: &Question, arm: &Arm, seed: &str) -> Self {
        let Arm { name, families, mix, problems, style, loss } = arm;
        Self(json!({
            "question": question.name,
            "arm": name,
            "seed": seed,
            "data": format!("{problems} of {families}, {mix}, {style}, system {:?}", question.system),
            "training": format!("{} steps of {}, rate {}, loss {loss}", grid.steps, grid.step_tokens, grid.rate),
            "evaluated": grid.evaluated,
        }))
    }
}

/// The file of one grid.
pub struct Kept(PathBuf);

impl Kept {
    pub fn open(grid: &str) -> Result<Self> {
        let folder = root().join("docs").join("reflection-study");
        fs::create_dir_all(&folder)?;
        Ok(Self(folder.join(format!("{grid}.jsonl"))))
    }

    fn lines(&self) -> Result<Vec<Value>> {
        if !self.0.is_file() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&self.0)?;
        let lines = text.lines().map(|line| {
            serde_json::from_str(line)
                .with_context(|| format!("{} has a line that is no JSON; remove it.", self.0.display()))
        });
        lines.collect()
    }

    /// The outcome of a run, if it is there.
    pub fn find(&self, key: &Key) -> Result<Option<Outcome>> {
        let found = self.lines()?.into_iter().find(|line| line.get("run") == Some(&key.0));
        Ok(found.map(|mut line| Outcome { report: line["outcome"].take() }))
    }

    /// Keeps the outcome of a run.
    pub fn add(&self, key: &Key, outcome: &Outcome) -> Result<()> {
        let mut lines = self.lines()?;
        lines.push(json!({ "run": key.0, "outcome": outcome.report }));
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let partial = self.0.with_extension("partial");
        fs::write(&partial, text)?;
        Ok(fs::rename(partial, &self.0)?)
    }
}

/// The part of a report that is kept; what was not counted is left out.
pub fn read_part(report: &Value) -> Outcome {
    let mut part = json!({});
    for path in PARTS {
        let Some(value) = report.pointer(path) else { continue };
        let mut place = &mut part;
        for name in path.split('/').skip(1) {
            place = &mut place[name];
        }
        *place = value.clone();
    }
    Outcome { report: part }
}
