//! What fits where, and what would make a model fit.

use std::ops::Range;

use reflect_kernels::{Format, KvFormat};
use reflect_llm::{
    EngineOptions, LlamaConfig,
    architecture::tensors,
    need::{Parts, show_bytes},
    placement::{NoRoom, Room, place, place_streamed},
    weights::{TensorInfo, TensorSource},
};
use reflect_train::lora::Updates;

use crate::{memory::Seat, runtime::add_adapters, synthetic::Synthetic};

/// Sizes of an engine on these devices where nothing else is asked for.
pub fn usual(seats: &[Seat], context: usize, sequences: usize) -> EngineOptions {
    EngineOptions::usual(seats.iter().all(|seat| seat.on_cpu), context, sequences)
}

/// How a model is to be run.
#[derive(Clone, Copy)]
pub struct Wish {
    pub context: usize,
    pub kv: KvFormat,
    /// Whether layers are read from disk for every step.
    pub stream: bool,
}

/// What is to be placed where.
pub struct Question<'a, S> {
    pub config: &'a LlamaConfig,
    pub source: &'a S,
    pub adapters: &'a Updates,
    pub seats: &'a [Seat],
    pub sequences: usize,
}

impl<S: TensorSource> Question<'_, S> {
    /// What the model holds.
    pub fn parts(&self, Wish { context, kv, .. }: Wish) -> Parts {
        let options = EngineOptions { kv_format: kv, ..usual(self.seats, context, self.sequences) };
        let mut parts = Parts::of(self.config, self.source, &options, 1);
        add_adapters(&mut parts, self.adapters);
        parts
    }

    /// The layers of each device.
    ///
    /// # Errors
    /// If there is no room for all.
    pub fn place(&self, wish: Wish) -> Result<Vec<Range<usize>>, NoRoom> {
        let parts = self.parts(wish);
        let rooms: Vec<Room> = self.seats.iter().map(Seat::room).collect();
        match &rooms[..] {
            [room, ..] if wish.stream => place_streamed(&parts, room),
            rooms => place(&parts, rooms),
        }
    }

    fn fits(&self, wish: Wish) -> bool {
        self.place(wish).is_ok()
    }

    /// Whether it fits with weights in another format.
    fn fits_in(&self, format: Format, wish: Wish) -> bool {
        let Ok(source) = Synthetic::new(self.config, format) else { return false };
        let Self { config, adapters, seats, sequences, .. } = *self;
        Question { config, source: &source, adapters, seats, sequences }.fits(wish)
    }
}

/// What would make the model fit: only what does.
pub fn advice(error: &NoRoom, question: &Question<'_, impl TensorSource>, wish: Wish) -> String {
    let mut ways = vec![format!("{} more of memory", show_bytes(error.missing))];
    let packs = wish.kv != KvFormat::Q8 && question.config.head_dim.is_multiple_of(16);
    let shorter = |wish: Wish| {
        let halves = std::iter::successors(Some(wish.context / 2), |context| Some(context / 2));
        halves
            .take_while(|context| *context >= 512)
            .find(|context| question.fits(Wish { context: *context, ..wish }))
    };
    let cache = |wish: Wish| match (packs && question.fits(small_of(wish)), shorter(wish)) {
        (true, Some(context)) => vec!["--kv q8".to_owned(), format!("--context {context}")],
        (true, None) => vec!["--kv q8".to_owned()],
        (false, Some(context)) => vec![format!("--context {context}")],
        (false, None) if packs => shorter(small_of(wish))
            .map(|context| format!("--kv q8 with --context {context}"))
            .into_iter()
            .collect(),
        (false, None) => Vec::new(),
    };
    ways.extend(cache(wish));
    // From the largest format to the smallest, the first that is smaller than what is there and fits.
    let now = stored_bytes(question.config, question.source);
    let fitting =
        [Format::Q8_0, Format::Q6K, Format::Q5K, Format::Q4K, Format::Q4_0].into_iter().find(|format| {
            Synthetic::new(question.config, *format).is_ok_and(|source| source.total_bytes() < now)
                && question.fits_in(*format, wish)
        });
    if let Some(format) = fitting {
        ways.push(format!("weights in {}", format.name()));
    }
    let streamed = Wish { stream: true, ..wish };
    if !wish.stream {
        let reads = "on one device, which reads the layers from disk for every token";
        if question.fits(streamed) {
            ways.push(format!("--stream {reads}"));
        } else if let Some(way) = cache(streamed).into_iter().next() {
            ways.push(format!("--stream and {way} {reads}"));
        }
    }
    ways.join(", or ")
}

/// The same with a cache in bytes.
fn small_of(wish: Wish) -> Wish {
    Wish { kv: KvFormat::Q8, ..wish }
}

/// Bytes of the tensors of a model in their files.
fn stored_bytes(config: &LlamaConfig, source: &impl TensorSource) -> u64 {
    tensors(config).filter_map(|id| source.info(&id.name()).map(TensorInfo::byte_len)).sum()
}
