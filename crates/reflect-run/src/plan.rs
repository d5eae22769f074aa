//! `reflect-run plan`: which layers would lie on which device, what each would hold, and how fast decoding
//! could be at best. Nothing is loaded.

use std::io::{Write, stdout};
use std::ops::Range;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use reflect_kernels::{Format, KvFormat, PAGE, device::OpenDevice};
use reflect_llm::{
    LlamaConfig,
    need::show_bytes,
    placement::{NoRoom, Parts, Room, place},
    weights::{TensorSource, expected_shapes},
};
use serde::Serialize;

use crate::{
    args::{ModelArgs, parse_format},
    bandwidth,
    bench::main_format,
    input,
    memory::{self, free_memory, parse_bytes},
    runtime::{Checkpoint, open_devices},
    synthetic::Synthetic,
    train::{MethodName, planned_need},
};

#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A shape instead of a model: 8b, 70b, 405b, reflection-70b or smollm2-135m
    #[arg(long, value_name = "NAME", requires = "format", conflicts_with_all = ["model", "repair"])]
    pub config: Option<String>,
    /// Format of the weights of --config
    #[arg(long, value_name = "FORMAT", requires = "config", value_parser = parse_format)]
    pub format: Option<Format>,
    /// Answers at a time, each with a context of its own
    #[arg(long, value_name = "N", default_value = "1")]
    pub sequences: std::num::NonZeroUsize,
    /// Bytes that each device reads in a second, as in 936GB,448GB, for a bound of the speed [default:
    /// what copying reaches on the devices that are here]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, value_delimiter = ',')]
    pub bandwidth: Vec<u64>,
    /// The memory of training instead: full, lora or qlora
    #[arg(long, value_enum, value_name = "METHOD")]
    pub train: Option<MethodName>,
    /// Tokens of a training step
    #[arg(long, value_name = "N", default_value_t = 2048, requires = "train")]
    pub micro_tokens: usize,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
}

/// What one device would hold.
#[derive(Clone, Debug, Serialize)]
struct Held {
    device: String,
    /// First layer, and the one after the last.
    layers: [usize; 2],
    weights_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    total_bytes: u64,
    /// `None` where nobody knows.
    free_bytes: Option<u64>,
    memory: memory::Source,
    /// That it reads in a second; `None` for a device that is not here, without --bandwidth.
    bandwidth_bytes_per_s: Option<f64>,
    fits: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    model: String,
    format: &'static str,
    parameters: u64,
    context: usize,
    sequences: usize,
    kv: &'static str,
    devices: Vec<Held>,
    fits: bool,
    /// Bytes of memory of a run that reads its layers from disk for every step, on the first device.
    streamed_bytes: u64,
    /// Bytes of weights and cache that decoding one token reads.
    read_per_token_bytes: u64,
    /// By memory bandwidth alone, one sequence; `None` where a device's is not known.
    decode_tokens_per_s: Option<f64>,
    bottleneck: String,
    /// What would have to give where it does not fit.
    advice: Option<String>,
}

/// A device in the plan.
struct Seat {
    name: String,
    free: Option<u64>,
    memory: memory::Source,
    bandwidth: Option<f64>,
}

impl Seat {
    fn room(&self) -> Room {
        Room { free: self.free, speed: self.bandwidth.unwrap_or(1.0) }
    }
}

/// Runs the command.
///
/// # Errors
/// If the model can't be read or the numbers of devices do not agree.
pub fn plan(args: &PlanArgs) -> Result<ExitCode> {
    match (&args.config, args.format) {
        (Some(name), Some(format)) => {
            let config = LlamaConfig::by_name(name)?;
            plan_of(args, name, format, &config, &Synthetic::new(&config, format)?)
        }
        _ => {
            let checkpoint = Checkpoint::open(&args.model)?;
            let format = main_format(&checkpoint.weights);
            plan_of(args, &checkpoint.name, format, &checkpoint.texts.config, &checkpoint.weights)
        }
    }
}

fn plan_of(
    args: &PlanArgs,
    name: &str,
    format: Format,
    config: &LlamaConfig,
    source: &impl TensorSource,
) -> Result<ExitCode> {
    let seats = seats(args)?;
    if let Some(method) = args.train {
        return training(args, name, config, source, method, &seats);
    }
    let context = args.model.place.context.map_or(8192, usize::from).min(config.max_position_embeddings);
    let on_cpu = seats.iter().all(|seat| seat.name == "cpu");
    let default = if on_cpu { KvFormat::F32 } else { KvFormat::F16 };
    let kv = args.model.place.kv.map_or(default, KvFormat::from);
    let parts = |context: usize| {
        let positions = context.next_multiple_of(PAGE) * args.sequences.get();
        Parts::of(config, source, positions, kv, 512.min(context), 1)
    };
    let rooms: Vec<Room> = seats.iter().map(Seat::room).collect();
    let whole = parts(context);
    let placed = place(&whole, &rooms);
    let layers = placed.clone().unwrap_or_else(|_| even(config.num_hidden_layers, seats.len()));
    let devices: Vec<Held> = seats
        .iter()
        .zip(&layers)
        .map(|(seat, layers)| {
            let need = whole.need(layers);
            Held {
                device: seat.name.clone(),
                layers: [layers.start, layers.end],
                weights_bytes: need.weights,
                cache_bytes: need.cache,
                scratch_bytes: need.scratch,
                total_bytes: need.total(),
                free_bytes: seat.free,
                memory: seat.memory,
                bandwidth_bytes_per_s: seat.bandwidth,
                fits: seat.free.is_none_or(|free| need.total() <= free),
            }
        })
        .collect();
    let read = |held: &Held| {
        let embedding = if held.layers[0] == 0 && !whole.tied { whole.embedding } else { 0 };
        held.weights_bytes - embedding + held.cache_bytes / args.sequences.get() as u64
    };
    let time = |held: &Held| Some(read(held) as f64 / held.bandwidth_bytes_per_s?);
    let times: Vec<f64> = devices.iter().map(time).collect::<Option<_>>().unwrap_or_default();
    let report = Report {
        model: name.to_owned(),
        format: format.name(),
        parameters: config.param_count(),
        context,
        sequences: args.sequences.get(),
        kv: match kv {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
        },
        fits: placed.is_ok(),
        streamed_bytes: whole.streamed_need().total(),
        read_per_token_bytes: devices.iter().map(read).sum(),
        decode_tokens_per_s: (!times.is_empty()).then(|| 1.0 / times.iter().sum::<f64>()),
        bottleneck: bottleneck(&placed, &devices, &times),
        advice: placed.as_ref().err().map(|error| advice(error, config, source, &rooms, &parts, context)),
        devices,
    };
    let mut out = stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(ExitCode::from(u8::from(!report.fits)))
}

/// The devices of the plan: those of --memory where it names more than the devices, else the devices.
fn seats(args: &PlanArgs) -> Result<Vec<Seat>> {
    let given = &args.model.place.memory;
    let said = |at: usize| args.bandwidth.get(at).map(|bytes| *bytes as f64);
    let seats: Vec<Seat> = if given.len() > 1 || (given.len() == 1 && args.config.is_some()) {
        let seat = |(at, free): (usize, &u64)| Seat {
            name: format!("device {at}"),
            free: Some(*free),
            memory: memory::Source::Given,
            bandwidth: said(at),
        };
        given.iter().enumerate().map(seat).collect()
    } else {
        let devices = open_devices(&args.model.place)?;
        let measured = match args.bandwidth.is_empty() {
            true => bandwidth::measure(&devices)?.into_iter().map(Some).collect(),
            false => vec![None; devices.len()],
        };
        let seat = |(at, (free, memory))| {
            let device: &OpenDevice = &devices[at];
            Seat { name: device.name.clone(), free, memory, bandwidth: said(at).or(measured[at]) }
        };
        free_memory(&devices, given).into_iter().enumerate().map(seat).collect()
    };
    if !args.bandwidth.is_empty() && args.bandwidth.len() != seats.len() {
        return Err(input(format!(
            "--bandwidth has {} entries for {} devices; give one for each",
            args.bandwidth.len(),
            seats.len()
        )));
    }
    Ok(seats)
}

/// Layers in equal shares, for a plan that does not fit.
fn even(layers: usize, devices: usize) -> Vec<Range<usize>> {
    (0..devices).map(|at| layers * at / devices..layers * (at + 1) / devices).collect()
}

fn bottleneck(placed: &Result<Vec<Range<usize>>, NoRoom>, devices: &[Held], times: &[f64]) -> String {
    if let Err(error) = placed {
        return format!("memory: {} of {} layers fit", error.fit, error.layers);
    }
    let slowest = times.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    match slowest {
        Some((at, time)) => format!(
            "reading memory on {}: {:.1} of {:.1} ms a token",
            devices[at].device,
            time * 1e3,
            times.iter().sum::<f64>() * 1e3
        ),
        None => "reading memory: give --bandwidth for a bound of the speed".to_owned(),
    }
}

/// What would make the model fit.
fn advice(
    error: &NoRoom,
    config: &LlamaConfig,
    source: &impl TensorSource,
    rooms: &[Room],
    parts: &impl Fn(usize) -> Parts,
    context: usize,
) -> String {
    let mut ways = vec![format!("{} more of memory", error.missing)];
    let shorter = std::iter::successors(Some(context / 2), |context| Some(context / 2));
    if let Some(context) =
        shorter.take_while(|context| *context >= 512).find(|c| place(&parts(*c), rooms).is_ok())
    {
        ways.push(format!("--context {context}"));
    }
    // From the largest format to the smallest, the first that is smaller than what is there and fits.
    let now = expected_shapes(config)
        .iter()
        .filter_map(|(name, _)| source.info(name))
        .map(|info| info.byte_len())
        .sum::<u64>();
    let fitting =
        [Format::Q8_0, Format::Q6K, Format::Q5K, Format::Q4K, Format::Q4_0].into_iter().find(|format| {
            let Ok(source) = Synthetic::new(config, *format) else { return false };
            let smaller = source.total_bytes() < now;
            let mut changed = parts(context);
            let weights = Parts::of(config, &source, 0, KvFormat::F16, 1, 1);
            (changed.embedding, changed.layers, changed.head) =
                (weights.embedding, weights.layers, weights.head);
            smaller && place(&changed, rooms).is_ok()
        });
    if let Some(format) = fitting {
        ways.push(format!("weights in {}", format.name()));
    }
    ways.push("--stream on one device, which reads the layers from disk for every token".to_owned());
    ways.join(", or ")
}

fn print(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    let wide = report.devices.iter().map(|held| held.device.chars().count()).max().unwrap_or(0);
    let Report { model, format, parameters, context, sequences, kv, .. } = report;
    writeln!(
        out,
        "{model} ({:.1} B parameters, {format}), {sequences} x {context} tokens of {kv} cache",
        *parameters as f64 / 1e9
    )?;
    writeln!(
        out,
        "  {:wide$} {:>9} {:>10} {:>10} {:>10} {:>10}  of {:>10}          {:>10}",
        "device", "layers", "weights", "cache", "scratch", "together", "free", "reads"
    )?;
    for held in &report.devices {
        let free = held.free_bytes.map_or("?".to_owned(), show_bytes);
        let reads =
            held.bandwidth_bytes_per_s.map_or("?".to_owned(), |bytes| show_bytes(bytes as u64) + "/s");
        let layers = match held.layers {
            [start, end] if start == end => "none".to_owned(),
            [start, end] => format!("{start}-{}", end - 1),
        };
        let [weights, cache, scratch, total] =
            [held.weights_bytes, held.cache_bytes, held.scratch_bytes, held.total_bytes].map(show_bytes);
        writeln!(
            out,
            "  {:wide$} {layers:>9} {weights:>10} {cache:>10} {scratch:>10} {total:>10}  of {free:>10} {:8} {reads:>10}{}",
            held.device,
            held.memory,
            if held.fits { "" } else { ", does not fit" }
        )?;
    }
    writeln!(out, "  a token reads {}", show_bytes(report.read_per_token_bytes))?;
    if let Some(speed) = report.decode_tokens_per_s {
        writeln!(out, "  at most {speed:.1} tokens/s by memory bandwidth")?;
    }
    writeln!(out, "  bottleneck: {}", report.bottleneck)?;
    if let Some(advice) = &report.advice {
        writeln!(out, "  it does not fit; what would help: {advice}")?;
        writeln!(out, "  with --stream the first device would need {}", show_bytes(report.streamed_bytes))?;
    }
    Ok(())
}

/// The memory of training, on the first device.
fn training(
    args: &PlanArgs,
    name: &str,
    config: &LlamaConfig,
    source: &impl TensorSource,
    method: MethodName,
    seats: &[Seat],
) -> Result<ExitCode> {
    let need = planned_need(config, source, method, args.micro_tokens);
    let free = seats.first().and_then(|seat| seat.free);
    let fits = free.is_none_or(|free| need.total() <= free);
    let mut out = stdout().lock();
    if args.json {
        let report = serde_json::json!({
            "model": name,
            "method": method.name(),
            "micro_tokens": args.micro_tokens,
            "weights_bytes": need.weights,
            "activations_bytes": need.activations,
            "total_bytes": need.total(),
            "free_bytes": free,
            "fits": fits,
        });
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{name}, {} training with {} tokens a step: {} of weights, gradients and moments, {} of activations \
             (blocks recomputed), {} together{}",
            method.name(),
            args.micro_tokens,
            show_bytes(need.weights),
            show_bytes(need.activations),
            show_bytes(need.total()),
            match free {
                Some(free) if fits => format!(", of {}", show_bytes(free)),
                Some(free) => format!(", more than the {} there are", show_bytes(free)),
                None => String::new(),
            }
        )?;
    }
    Ok(ExitCode::from(u8::from(!fits)))
}
