//! Progress of many rows: a bar in a terminal, and elsewhere a plain line on standard error every so often,
//! so that a log shows that something goes on.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(15);

/// How far a step is.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    rows: usize,
    done: usize,
    began: Instant,
    /// When the last line was written; `None` in a terminal.
    told: Option<Instant>,
}

impl Progress {
    /// Begins a step over `rows` rows, named as in `mining`.
    pub fn new(what: &str, rows: usize) -> Result<Self> {
        let style = ProgressStyle::with_template("{msg} {bar:32} {pos} of {len}, {elapsed}, {eta} left")?;
        let bar = ProgressBar::new(rows as u64).with_style(style).with_message(what.to_owned());
        let began = Instant::now();
        let told = (!std::io::stderr().is_terminal()).then_some(began);
        Ok(Self { bar, what: what.to_owned(), rows, done: 0, began, told })
    }

    /// So many rows are done.
    pub fn set(&mut self, done: usize) {
        self.done = done;
        self.bar.set_position(done as u64);
        if self.told.is_some_and(|told| told.elapsed() >= EVERY) {
            self.tell();
        }
    }

    /// One more row is done.
    pub fn inc(&mut self) {
        self.set(self.done + 1);
    }

    /// Ends the step.
    pub fn finish(mut self) {
        self.bar.finish_and_clear();
        // What took no time needs no line.
        if self.told.is_some_and(|told| told > self.began) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let seconds = self.began.elapsed().as_secs();
        eprintln!("{}: {} of {}, {seconds} s", self.what, self.done, self.rows);
        self.told = Some(Instant::now());
    }
}
