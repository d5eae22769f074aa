//! `reflect-run train`: from records to a model or an adapter, in a folder that can go on.

mod args;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pollster::block_on;
use reflect_data::import::ImportReport;
use reflect_data::io::write_jsonl;
use reflect_data::records::read_records;
use reflect_kernels::{Format, device::OpenDevice};
use reflect_llm::{
    Llama, LlamaConfig, Texts, load_model, need::weight_bytes, safetensors_dir::open_dir,
    weights::TensorSource,
};
use reflect_train::{
    TrainError,
    batch::pack,
    checkpoint::{self, State},
    examples::{Example, Limits, Purpose, Report, examples},
    lora, plot,
    settings::{LoraSettings, Method, OptimizerSettings, Settings},
    source::{Fresh, Packed, Widened},
    trainer::{Ended, Happened, HeldOutRecord, Record, StepRecord, Trainer, side_by_side},
};

pub use self::args::{MethodName, TrainArgs};
use crate::{
    data::say_complaints,
    input,
    interrupt::Answering,
    memory::{TrainingNeed, keep_freed_memory},
    runtime::{Checkpoint, open_device},
};

/// Files of a run.
const LOG: &str = "log.jsonl";
const PAGE: &str = "loss.html";
const SKIPPED: &str = "skipped.jsonl";
/// Skipped records of each kind that are named on the terminal; all are in [`SKIPPED`].
const NAMED: usize = 3;
/// Rows of the head whose logits exist at a time.
pub(crate) const HEAD_ROWS: usize = 16_384;
/// Files beside the weights that a trained model needs as its base does.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Runs the command.
pub fn train(args: &TrainArgs) -> Result<ExitCode> {
    keep_freed_memory();
    let base = Base::open(args)?;
    let texts = base.texts();
    let template = texts.template.as_ref().ok_or_else(|| {
        input("the model has no chat template, which training needs; add one to its tokenizer_config.json")
    })?;
    let context = match args.length.context {
        Some(context) if context > texts.config.max_position_embeddings => {
            let most = texts.config.max_position_embeddings;
            return Err(input(format!("the model has a context of {most} tokens; give at most that")));
        }
        context => context.unwrap_or(texts.config.max_position_embeddings),
    };
    let limits = Limits { context, vocab: texts.config.vocab_size };
    let read = |file: &Path, purpose: Purpose, count: usize| -> Result<(Vec<Example>, Report)> {
        let mut found = read_records(file)?;
        let written = found.write_answers();
        if let Some(report) = &found.imported {
            say_import(report, written);
        }
        let mut records = found.records;
        records.truncate(count);
        let bar = ProgressBar::new(records.len() as u64);
        bar.set_style(ProgressStyle::with_template("rendering {bar:32} {pos} of {len}, {eta} left")?);
        let told = || bar.inc(1);
        let found = examples(&records, purpose, template, &texts.tokenizer, &args.loss, limits, &told);
        bar.finish_and_clear();
        say_report(file, &found.1);
        Ok(found)
    };
    let (train, report) = read(&args.data, Purpose::Train, usize::MAX)?;
    let held_out = match &args.held_out {
        Some(file) => read(file, Purpose::HeldOut, args.held_out_count)?.0,
        None => Vec::new(),
    };
    let settings = settings(args, &train);
    let device = open_device(&args.device)?;
    base.need(&settings, &device).check(&device, None)?;
    fs::create_dir_all(&args.out).map_err(|source| TrainError::Write { path: args.out.clone(), source })?;
    if !report.all_skipped.is_empty() {
        write_jsonl(&args.out.join(SKIPPED), &report.all_skipped)?;
    }

    let fingerprint = reflect_train::trainer::fingerprint(&settings, &train, &held_out, &args.model);
    let last = checkpoint::newest(&args.out, &fingerprint)?;
    // At once: the model may be gone when the run ends.
    if let (Method::Full, Some(folder)) = (&settings.method, base.folder()) {
        copy_companions(folder, &args.out)?;
    }
    let model = base.model(args, &settings, last.as_ref().map(|(folder, _)| folder.as_path()), &device)?;
    let mut trainer =
        Trainer::new(model, device.device.clone(), train, held_out, settings.clone(), args.model.clone())?;
    let mut log = Log::open(&args.out, last.as_ref().map_or(0, |(_, state)| state.step))?;
    if let Some((folder, state)) = last {
        eprintln!("going on after step {} of {}", state.step, settings.steps);
        trainer.resume(&folder, state)?;
    }

    let answering = Answering::start();
    let mut show = Show::new(&settings, trainer.state(), args.json)?;
    let ended = trainer.run(
        &args.out,
        || answering.is_interrupted(),
        |happened| {
            match happened {
                Happened::Step(record) => {
                    show.step(&record);
                    log.push(Record::Step(record))?;
                }
                Happened::HeldOut(record) => {
                    show.held_out(&record);
                    log.push(Record::HeldOut(record))?;
                    log.write_page()?;
                }
                Happened::Saved(_) => log.write_page()?,
            }
            Ok(())
        },
    )?;
    show.finish();
    if ended == Ended::Stopped {
        eprintln!("stopped; the same command goes on from here");
        return Ok(ExitCode::from(crate::interrupt::EXIT_CODE));
    }
    finish(args, &settings, &trainer, ended)?;
    Ok(ExitCode::SUCCESS)
}

/// What is trained, before its weights are read.
enum Base {
    /// A folder with configuration and tokenizer, and new weights.
    Fresh {
        folder: PathBuf,
        texts: Box<Texts>,
    },
    Checkpoint(Box<Checkpoint>),
}

impl Base {
    fn open(args: &TrainArgs) -> Result<Self> {
        if !args.fresh {
            return Ok(Self::Checkpoint(Box::new(Checkpoint::open_named(&args.model, false)?)));
        }
        let folder = PathBuf::from(&args.model);
        if !folder.is_dir() {
            return Err(input("--fresh wants a folder with config.json and tokenizer.json in --model"));
        }
        if args.method != MethodName::Full {
            return Err(input("adapters on random weights teach nothing; use --method full with --fresh"));
        }
        let texts = Texts::open(&folder)?;
        Ok(Self::Fresh { folder, texts: Box::new(texts) })
    }

    fn texts(&self) -> &Texts {
        match self {
            Self::Fresh { texts, .. } => texts,
            Self::Checkpoint(checkpoint) => &checkpoint.texts,
        }
    }

    /// The folder whose other files a trained model needs.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Fresh { folder, .. } => Some(folder),
            Self::Checkpoint(checkpoint) => Some(checkpoint.path.as_path()).filter(|path| path.is_dir()),
        }
    }

    /// Memory that the run takes.
    fn need(&self, settings: &Settings, device: &OpenDevice) -> TrainingNeed {
        let config = &self.texts().config;
        let (frozen, trained) = match (&settings.method, self) {
            (Method::Lora(lora), Self::Checkpoint(checkpoint)) => beneath(config, &checkpoint.weights, lora),
            _ => (0, config.param_count()),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = match side_by_side(settings, device.profile.is_none()) {
            true => settings.accumulate.min(threads),
            false => 1,
        };
        TrainingNeed::of(config, frozen, trained, settings.micro_tokens, settings.recompute, lanes)
    }

    /// The model of a run with its adapters, as it began or as its last checkpoint has it.
    fn model(
        &self,
        args: &TrainArgs,
        settings: &Settings,
        last: Option<&Path>,
        device: &OpenDevice,
    ) -> Result<Llama> {
        let config = &self.texts().config;
        match (&settings.method, last) {
            (Method::Full, Some(last)) => load(config, &block_on(open_dir(last))?, device),
            (Method::Full, None) => match self {
                Self::Fresh { .. } => load(config, &Fresh::new(config, args.seed), device),
                Self::Checkpoint(checkpoint) if checkpoint.path.is_dir() => {
                    load(config, &Widened::new(&checkpoint.weights), device)
                }
                Self::Checkpoint(_) => Err(input(
                    "full training writes a Hugging Face folder and needs one to begin with; use --method lora for a .gguf file",
                )),
            },
            (Method::Lora(lora_settings), last) => {
                let Self::Checkpoint(checkpoint) = self else {
                    return Err(input("adapters need a model with weights"));
                };
                let mut model = match lora_settings.packed {
                    true => load(config, &Packed::new(&checkpoint.weights), device)?,
                    false => load(config, &checkpoint.weights, device)?,
                };
                match last {
                    Some(last) => drop(lora::load(&mut model, last, &device.device)?),
                    None => lora::attach(&mut model, lora_settings, args.seed, &device.device)?,
                }
                Ok(model)
            }
        }
    }
}

pub(crate) fn load(config: &LlamaConfig, source: &impl TensorSource, device: &OpenDevice) -> Result<Llama> {
    let bar = ProgressBar::new(source.total_bytes());
    bar.set_style(ProgressStyle::with_template("loading {bar:32} {bytes} of {total_bytes}, {elapsed}")?);
    let head = 4 * HEAD_ROWS as u64 * Format::F32.row_words(config.hidden_size) as u64;
    let limit = device.profile.map_or(u64::MAX, |profile| profile.max_binding_bytes).min(head);
    let model =
        block_on(load_model(config.clone(), source, &device.device, limit, |done| bar.set_position(done)));
    bar.finish_and_clear();
    Ok(model?)
}

fn settings(args: &TrainArgs, train: &[Example]) -> Settings {
    let length = &args.length;
    let order: Vec<usize> = (0..train.len()).collect();
    let groups = pack(train, &order, length.micro_tokens).len() as f64;
    let steps = (groups * length.epochs / length.accumulate.max(1) as f64).ceil() as u64;
    let optimizer = &args.optimizer;
    Settings {
        method: match args.method {
            MethodName::Full => Method::Full,
            method => Method::Lora(LoraSettings {
                rank: args.lora.rank,
                alpha: args.lora.alpha,
                targets: args.lora.targets.clone(),
                packed: method == MethodName::Qlora,
            }),
        },
        strategy: args.loss.clone(),
        steps: length.steps.unwrap_or(steps).max(1),
        micro_tokens: length.micro_tokens,
        accumulate: length.accumulate.max(1),
        optimizer: OptimizerSettings {
            rate: optimizer.rate,
            final_share: optimizer.final_share,
            warm_up: optimizer.warm_up,
            decay: optimizer.decay,
            max_norm: optimizer.max_norm,
            ..OptimizerSettings::default()
        },
        seed: args.seed,
        recompute: length.recompute,
        eval_every: length.eval_every,
        save_every: length.save_every,
        patience: length.patience,
    }
}

/// What rows that are no records were taken for, and which of them were dropped.
fn say_import(report: &ImportReport, written: usize) {
    eprintln!("note: {}", report.shape_sentence());
    say_complaints(report);
    let (read, kept) = (report.read, report.kept);
    if kept < read {
        eprintln!("{}: {read} rows, {kept} kept, {} dropped", report.file, read - kept);
    }
    if written > 0 {
        eprintln!(
            "note: {written} answers were written from the known steps; `data reflect` writes some with reflections"
        );
    }
}

/// What became of the records of a file; nothing is dropped silently.
fn say_report(file: &Path, report: &Report) {
    let file = file.display();
    eprintln!(
        "{file}: {} records, {} kept as {} examples of {} tokens, {} of them learned",
        report.records, report.kept, report.examples, report.tokens, report.learned_tokens
    );
    for (reason, count) in &report.skipped {
        let named = report.all_skipped.iter().filter(|skipped| skipped.reason == *reason).take(NAMED);
        let named: Vec<String> = named.map(|skipped| format!("{} ({})", skipped.line, skipped.id)).collect();
        eprintln!("{file}: {count} skipped: {reason}; in line {}", named.join(", "));
    }
}

/// Writes the model that came out into the run's folder.
fn finish(args: &TrainArgs, settings: &Settings, trainer: &Trainer, ended: Ended) -> Result<()> {
    let state = trainer.state();
    let best = state.best.filter(|best| settings.patience > 0 && best.step != state.step);
    match (&settings.method, best) {
        (method, Some(best)) => {
            let from = checkpoint::folder(&args.out, best.step);
            let files: &[&str] = match method {
                Method::Full => &[checkpoint::WEIGHTS],
                Method::Lora(_) => &[lora::CONFIG, lora::WEIGHTS],
            };
            for file in files {
                copy(&from.join(file), &args.out.join(file))?;
            }
        }
        (method, None) => checkpoint::write_weights(&args.out, &trainer.model, method, &args.model)?,
    }
    checkpoint::write_json(&args.out.join("settings.json"), settings)?;
    let why = match ended {
        Ended::NoProgress => "no more progress on the held-out records",
        _ => "all steps taken",
    };
    let kept = best.map_or(state.step, |best| best.step);
    eprintln!("{why}; the weights after step {kept} are in {}", args.out.display());
    Ok(())
}

/// Bytes of the weights beneath adapters, and numbers of the adapters.
fn beneath(config: &LlamaConfig, source: &impl TensorSource, settings: &LoraSettings) -> (u64, u64) {
    let frozen = match settings.packed {
        true => weight_bytes(&Packed::new(source)),
        false => weight_bytes(source),
    };
    (frozen, lora::numbers(config, settings))
}

/// The memory of training by a method with its usual settings, blocks recomputed.
pub fn planned_need(
    config: &LlamaConfig,
    source: &impl TensorSource,
    method: MethodName,
    rows: usize,
) -> TrainingNeed {
    let (frozen, trained) = match method {
        MethodName::Full => (0, config.param_count()),
        method => {
            let targets = lora::TARGETS.map(str::to_owned).into();
            let packed = method == MethodName::Qlora;
            beneath(config, source, &LoraSettings { rank: 16, alpha: 32.0, targets, packed })
        }
    };
    TrainingNeed::of(config, frozen, trained, rows, true, 1)
}

/// Copies the files that a Hugging Face folder has beside its weights.
pub(crate) fn copy_companions(folder: &Path, out: &Path) -> Result<()> {
    for name in COMPANIONS {
        let (from, to) = (folder.join(name), out.join(name));
        if from.is_file() && from != to {
            copy(&from, &to)?;
        }
    }
    Ok(())
}

/// Copies a file beside its place and renames it.
fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    let bytes = fs::read(from).map_err(|source| TrainError::Read { path: from.to_owned(), source })?;
    checkpoint::write(to, &bytes)
}

/// The log of a run: a line for each record, all of them known for the page.
struct Log {
    records: Vec<Record>,
    file: File,
    path: PathBuf,
    page: PathBuf,
    title: String,
}

impl Log {
    /// Opens the log; what lies after `step` was not kept in a checkpoint and comes again.
    fn open(run: &Path, step: u64) -> Result<Self> {
        let path = run.join(LOG);
        let mut records = Vec::new();
        if let Ok(file) = File::open(&path) {
            // A line that was being written when the run was killed is no record.
            let lines = BufReader::new(file).lines().map_while(std::io::Result::ok);
            let known = lines.map_while(|line| serde_json::from_str::<Record>(&line).ok());
            records.extend(known.filter(|record| record.step() <= step));
        }
        let mut text = Vec::new();
        for record in &records {
            serde_json::to_writer(&mut text, record)?;
            text.push(b'\n');
        }
        checkpoint::write(&path, &text)?;
        let file = OpenOptions::new().append(true).open(&path).context("the log could not be opened")?;
        let name = run.file_name().unwrap_or(run.as_os_str()).to_string_lossy();
        let title = format!("Training of {name}");
        Ok(Self { records, file, path, page: run.join(PAGE), title })
    }

    fn push(&mut self, record: Record) -> Result<(), TrainError> {
        let failed = |source| TrainError::Write { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        self.records.push(record);
        Ok(())
    }

    fn write_page(&self) -> Result<(), TrainError> {
        checkpoint::write(&self.page, plot::html(&self.title, &self.records).as_bytes())
    }
}

/// What a person sees.
struct Show {
    bar: ProgressBar,
    json: bool,
    /// Of the last steps, for a figure that can be read.
    loss: Option<f64>,
}

/// Weight of a new loss in the one that is shown.
const SHOWN_SHARE: f64 = 0.1;

impl Show {
    fn new(settings: &Settings, state: &State, json: bool) -> Result<Self> {
        let bar = ProgressBar::new(settings.steps);
        bar.set_style(ProgressStyle::with_template(
            "{bar:28} {pos}/{len}  {msg}  {elapsed} gone, {eta} left",
        )?);
        bar.set_position(state.step);
        bar.reset_eta();
        Ok(Self { bar, json, loss: None })
    }

    fn step(&mut self, record: &StepRecord) {
        let before = self.loss.unwrap_or(record.loss);
        let loss = before + SHOWN_SHARE * (record.loss - before);
        self.loss = Some(loss);
        self.bar.set_position(record.step);
        self.bar.set_message(format!("loss {loss:.4}  {:.0} tokens/s", record.tokens_per_s));
        self.print_json(&Record::Step(record.clone()));
    }

    fn held_out(&self, record: &HeldOutRecord) {
        let kinds = |kinds: &BTreeMap<_, f64>| -> String {
            let kinds = kinds.iter().map(|(kind, loss)| format!("{kind} {loss:.3}"));
            kinds.collect::<Vec<_>>().join(", ")
        };
        let line = format!(
            "step {}: held out {:.4}, {:.1} % of tokens right, {:.1} % of answers right in every token ({})",
            record.step,
            record.loss,
            100.0 * record.token_accuracy,
            100.0 * record.answer_accuracy,
            kinds(&record.by_kind)
        );
        self.bar.suspend(|| eprintln!("{line}"));
        self.print_json(&Record::HeldOut(record.clone()));
    }

    fn print_json(&self, record: &Record) {
        if let (true, Ok(line)) = (self.json, serde_json::to_string(record)) {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    fn finish(&self) {
        if std::io::stderr().is_terminal() {
            self.bar.abandon();
        }
    }
}
