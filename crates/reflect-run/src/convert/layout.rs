//! Where each tensor lies in the file that is written, and what stands beside it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use pollster::block_on;
use reflect_kernels::Format;
use reflect_llm::{
    LlamaConfig,
    config::RopeLayout,
    gguf::{GgufFile, GgufHeader, gguf_name},
    weights::MmapFile,
};
use reflect_text::GgufVocab;
use reflect_train::checkpoint;
use serde_json::json;

use super::rows::Permute;
use crate::{input, train::copy_companions};

/// What becomes of one tensor.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its Hugging Face name.
    pub name: String,
    pub shape: Vec<usize>,
    pub from: Format,
    pub to: Format,
    /// Rows of a head, where the order of rows depends on how pairs are rotated.
    pub head: Option<usize>,
    /// Whether its rows did not fit the format that was wanted.
    pub fell_back: bool,
    /// Its bytes, where the source has no such tensor.
    pub made: Option<Vec<u8>>,
}

impl Piece {
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Bytes in the file, with the scales of fp8.
    fn bytes(&self) -> u64 {
        // Formats are chosen so that they fit.
        (self.rows() * self.to.file_row_bytes(self.cols()).unwrap_or(0)) as u64
    }
}

/// What the source says beside its weights.
pub enum Texts<'a> {
    Gguf(&'a GgufFile<MmapFile>, &'a reflect_llm::Texts),
    Folder(&'a Path, &'a reflect_llm::Texts),
    MadeUp,
}

/// Whether weights in `format` are written as a Hugging Face folder and not as GGUF.
pub fn is_folder(format: Format) -> bool {
    matches!(format, Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8)
}

/// The file to be.
pub struct Layout<'a> {
    pub header: Vec<u8>,
    pub pieces: Vec<Piece>,
    /// First byte of each piece.
    pub starts: Vec<u64>,
    /// The byte after each piece.
    pub ends: Vec<u64>,
    pub permute: Permute,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Gguf,
    Folder { texts: &'a Texts<'a>, config: serde_json::Value },
}

impl<'a> Layout<'a> {
    /// Lays out `pieces`.
    ///
    /// # Errors
    /// If the texts of the source can't be said in such a file.
    pub fn new(
        to: Format,
        config: &LlamaConfig,
        texts: &'a Texts<'a>,
        mut pieces: Vec<Piece>,
        origin: &str,
        share_layers: bool,
    ) -> Result<Self> {
        if is_folder(to) {
            if share_layers {
                return Err(input("layers can share their bytes in GGUF alone; give --to q4_0 or the like"));
            }
            let permute = match config.rope_layout {
                RopeLayout::HalfSplit => Permute::No,
                RopeLayout::Interleaved => Permute::ToHalves,
            };
            let stored = if to == Format::Fp8 { Format::Bf16 } else { to };
            let config = config.to_hf_json(safetensors_name(stored).1, to == Format::Fp8)?;
            let (header, starts, ends) = safetensors(&pieces, origin)?;
            return Ok(Self { header, pieces, starts, ends, permute, kind: Kind::Folder { texts, config } });
        }
        let permute = match config.rope_layout {
            RopeLayout::HalfSplit => Permute::ToAdjacent,
            RopeLayout::Interleaved => Permute::No,
        };
        let mut header = GgufHeader::default();
        // The mixtures of llama.cpp have numbers too; a program that does not know one guesses from the tensors.
        const GUESSED: u32 = 1024;
        match texts {
            Texts::Gguf(file, _) => {
                let own = [
                    "general.file_type",
                    "general.quantization_version",
                    "general.alignment",
                    "reflect.origin",
                ];
                block_on(file.copy_entries(&mut header, |key| !own.contains(&key)))?;
            }
            _ => {
                header.text("general.architecture", "llama");
                header.text("general.name", origin);
                header.config(config);
                header.vocab(&match texts {
                    Texts::MadeUp => made_up_vocab(config.vocab_size),
                    Texts::Gguf(_, texts) | Texts::Folder(_, texts) => texts.tokenizer.to_gguf()?,
                });
            }
        }
        header.unsigned("general.file_type", GUESSED);
        header.unsigned("general.quantization_version", 2);
        header.text("reflect.origin", origin);
        let mut first: BTreeMap<String, usize> = BTreeMap::new();
        for (at, piece) in pieces.iter().enumerate() {
            let part = piece.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let same = match part {
                Some((_, part)) if share_layers => Some(*first.entry(part.to_owned()).or_insert(at)),
                _ => None,
            };
            let name = gguf_name(&piece.name);
            header.tensor(&name, &piece.shape, piece.to, piece.bytes(), same.filter(|same| *same != at));
        }
        if let Some(factors) = config.freq_factors() {
            let piece = Piece {
                name: "rope_freqs.weight".to_owned(),
                shape: vec![factors.len()],
                from: Format::F32,
                to: Format::F32,
                head: None,
                fell_back: false,
                made: Some(factors.into_iter().flat_map(f32::to_le_bytes).collect()),
            };
            header.tensor(&piece.name, &piece.shape, piece.to, piece.bytes(), None);
            pieces.push(piece);
        }
        let (header, places) = header.finish();
        let starts = places.iter().map(|place| place.start).collect();
        let ends = places.iter().map(|place| place.end).collect();
        Ok(Self { header, pieces, starts, ends, permute, kind: Kind::Gguf })
    }

    /// Name of the file of weights.
    pub fn file_name(&self) -> &'static str {
        match self.kind {
            Kind::Gguf => "model.gguf",
            Kind::Folder { .. } => "model.safetensors",
        }
    }

    /// Bytes of the file when its first `pieces` pieces are written.
    pub fn end_of(&self, pieces: usize) -> u64 {
        self.ends[..pieces].iter().copied().max().unwrap_or(self.header.len() as u64)
    }

    pub fn total(&self) -> u64 {
        self.end_of(self.ends.len())
    }

    /// Writes what a folder needs beside its weights.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn write_companions(&self, out: &Path) -> Result<()> {
        let Kind::Folder { texts, config } = &self.kind else { return Ok(()) };
        match texts {
            Texts::Folder(folder, _) => copy_companions(folder, out)?,
            Texts::Gguf(_, texts) => {
                let (tokenizer, settings) = texts.tokenizer.to_json()?;
                checkpoint::write(&out.join("tokenizer.json"), tokenizer.as_bytes())?;
                checkpoint::write(&out.join("tokenizer_config.json"), settings.as_bytes())?;
            }
            Texts::MadeUp => {}
        }
        let config = serde_json::to_string_pretty(config)?;
        Ok(checkpoint::write(&out.join("config.json"), config.as_bytes())?)
    }
}

/// Name of a format in a safetensors header, and in a `config.json`.
fn safetensors_name(format: Format) -> (&'static str, &'static str) {
    match format {
        Format::F16 => ("F16", "float16"),
        Format::Bf16 => ("BF16", "bfloat16"),
        Format::Fp8 => ("F8_E4M3", "float8_e4m3fn"),
        _ => ("F32", "float32"),
    }
}

/// The header of a safetensors file, and first and last byte of each piece.
fn safetensors(pieces: &[Piece], origin: &str) -> Result<(Vec<u8>, Vec<u64>, Vec<u64>)> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt", "reflect.origin": origin }));
    let (mut starts, mut ends, mut end) = (Vec::new(), Vec::new(), 0u64);
    for piece in pieces {
        let start = end;
        end += piece.bytes();
        let (dtype, _) = safetensors_name(piece.to);
        let scales = if piece.to == Format::Fp8 { 4 * piece.rows() as u64 } else { 0 };
        let numbers = [start, end - scales];
        entries.insert(
            piece.name.clone(),
            json!({ "dtype": dtype, "shape": piece.shape, "data_offsets": numbers }),
        );
        if scales > 0 {
            let offsets = [end - scales, end];
            let entry = json!({ "dtype": "F32", "shape": [piece.rows(), 1], "data_offsets": offsets });
            entries.insert(format!("{}_scale", piece.name), entry);
        }
        starts.push(start);
        ends.push(end);
    }
    let mut text =
        serde_json::to_vec(&entries).map_err(|error| anyhow!("a header can't be written: {error}"))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    let first = header.len() as u64;
    for place in starts.iter_mut().chain(&mut ends) {
        *place += first;
    }
    Ok((header, starts, ends))
}

/// A vocabulary of that size: all bytes, the tags, and names without a meaning.
fn made_up_vocab(size: usize) -> GgufVocab {
    let mut tokens = reflect_text::byte_spellings();
    let mut token_types = vec![1; tokens.len()];
    for text in reflect_text::special_tokens() {
        tokens.push(text);
        token_types.push(3);
    }
    while tokens.len() < size {
        tokens.push(format!("<|made_up_{}|>", tokens.len()));
        token_types.push(3);
    }
    tokens.truncate(size);
    token_types.truncate(size);
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens,
        token_types,
        add_bos: Some(false),
        ..GgufVocab::default()
    }
}
