//! What can go wrong in a run.

use std::path::PathBuf;

use reflect_llm::weights::LoadError;

/// Why a run could not start or go on: what happened and what to do, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{path} can't be read ({source}); check its name and rights")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} can't be written ({source}); check the folder, its rights and its free space")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a file of this program ({problem}); delete it or give another --out")]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{path} was made with another {what}; give another --out, or the settings that the run began with"
    )]
    Settings { path: PathBuf, what: &'static str },
    #[error("there is nothing to learn from: {0}")]
    NoExamples(String),
    #[error("the loss at step {step} is {loss}; lower --rate or look at the samples {samples}")]
    NotFinite { step: u64, loss: f64, samples: String },
    #[error("{0}")]
    Unsupported(String),
    #[error("the device failed: {0}; restart with another --device")]
    Device(String),
    #[error(transparent)]
    Load(#[from] LoadError),
}
