//! The splitting rules that GGUF files name in `tokenizer.ggml.pre`.
//!
//! A rule is a list of patterns: each divides the pieces that the ones before it left into matches and
//! gaps. The names, and which of them look up whole pieces or put the beginning-of-text token first, are
//! those of llama.cpp (`src/llama-vocab.cpp`); so are the patterns, as far as they decide ids.

use serde_json::Value;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::super::train::PIECES;
use super::bad;
use crate::error::TextError;

/// One splitting rule.
pub(super) struct Rule {
    /// Its names in GGUF; the first is the one that is written.
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// The same rule as `tokenizer.json` files of its makers say it, where that is another list.
    published: &'static [&'static [&'static str]],
    /// Whether a piece that is a token is taken whole.
    pub(super) ignore_merges: bool,
    /// Whether the beginning-of-text token comes first unless the file says otherwise.
    pub(super) adds_bos: bool,
}

impl Rule {
    const fn new(names: &'static [&'static str], patterns: &'static [&'static str]) -> Self {
        Self { names, patterns, published: &[], ignore_merges: false, adds_bos: false }
    }

    const fn published(mut self, published: &'static [&'static [&'static str]]) -> Self {
        self.published = published;
        self
    }

    const fn whole_pieces(mut self) -> Self {
        self.ignore_merges = true;
        self
    }

    const fn with_bos(mut self) -> Self {
        self.adds_bos = true;
        self
    }

    /// The rule as a pre-tokenizer that then spells bytes as characters.
    pub(super) fn splitter(&self) -> Result<Sequence, TextError> {
        let single = |use_regex| ByteLevel::new(false, true, use_regex).into();
        match self.patterns {
            // In the spelling that published folders have.
            [pattern] if *pattern == GPT2 => Ok(Sequence::new(vec![single(true)])),
            [digits, pattern] if *digits == DIGIT && *pattern == GPT2 => {
                Ok(Sequence::new(vec![Digits::new(true).into(), single(true)]))
            }
            patterns => split_by(patterns),
        }
    }
}

/// Splitting rule of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const DIGIT: &str = r"\p{N}";

/// Splitting rule of Llama 3: contractions in any case, up to three digits together.
pub(in super::super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As [`LLAMA3`] but for what follows line ends, as tiktoken's cl100k_base says it.
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// Splitting rule of Qwen 2: that of Llama 3, but each digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splitting rule of Qwen 3.5: marks belong to words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words that may begin in capitals, as llama.cpp says it: ASCII has case there, other letters have both.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_PUBLISHED: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As [`TEKKEN`], with contractions and up to three digits together.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_PUBLISHED: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words without regard to case, and Han characters in pieces of their own, as llama.cpp says it.
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]][\p{L}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI_PUBLISHED: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const HAN_AND_KANA: &str = "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+";
const CJK: &str = "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
/// Letters that have case, with the white space before them.
const CASED: &str = "\\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+";
const WORDS_BETWEEN_STOPS: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// Every rule that a file can name.
static RULES: [Rule; 26] = [
    Rule::new(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        &[LLAMA3],
    )
    .whole_pieces()
    .with_bos(),
    Rule::new(&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], &[LLAMA3]).published(&[&[CL100K]]),
    Rule::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    Rule::new(
        &[
            "gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0",
            "mellum", "modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code",
            "roberta-bpe",
        ],
        &[GPT2],
    ),
    Rule::new(
        &[
            "qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "solar-open", "grok-2",
        ],
        &[QWEN2],
    ),
    Rule::new(&["qwen35"], &[QWEN35]),
    Rule::new(&["reflect"], &[PIECES]),
    Rule::new(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    Rule::new(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Rule::new(&["tekken"], &[TEKKEN]).published(&[&[TEKKEN_PUBLISHED]]).whole_pieces().with_bos(),
    Rule::new(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]).published(&[&[GPT4O_PUBLISHED]]),
    Rule::new(
        &["deepseek-llm"],
        &["[\r\n]", CASED, "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+", r"\s+$", CJK, r"\p{N}+"],
    ),
    Rule::new(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT]),
    Rule::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK_WORDS],
    ),
    Rule::new(
        &["spark2_5"],
        &[
            r"\p{N}{1,3}",
            HAN_AND_KANA,
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            DIGIT,
        ],
    ),
    Rule::new(&["poro-chat", "bloom", "gpt3-finnish"], &[WORDS_BETWEEN_STOPS]),
    Rule::new(&["viking"], &[WORDS_BETWEEN_STOPS, DIGIT]),
    Rule::new(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    Rule::new(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    )
    .published(&[&[
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ]]),
    Rule::new(
        &["seed-coder"],
        &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
    ),
    Rule::new(
        &["jais-2"],
        &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"],
    ),
    Rule::new(&["kimi-k2"], &[KIMI]).published(&[&[KIMI_PUBLISHED]]),
    Rule::new(
        &["ufakzeka"],
        &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    ),
    Rule::new(
        &["exaone-moe"],
        &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"],
    ),
    Rule::new(
        &["minicpm5"],
        &[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    )
    .whole_pieces(),
    Rule::new(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2]),
];

/// The rule of a name, or `None` for one that is not known.
pub(super) fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.names.contains(&name))
}

/// The name of the rule by which a pre-tokenizer splits; of several, `preferred` if it is among them.
/// `ignore_merges` tells apart rules of the same patterns.
pub(super) fn name_of(pre: &Value, ignore_merges: bool, preferred: Option<&str>) -> Option<&'static str> {
    let steps = steps(pre);
    let (bytes, splits) = steps.split_last()?;
    if !matches!(bytes, Step::Bytes { .. }) {
        return None;
    }
    let same = |patterns: &[&str]| {
        patterns.len() == splits.len()
            && splits.iter().zip(patterns).all(|(step, pattern)| *step == Step::Split((*pattern).to_owned()))
    };
    let fits = |rule: &&Rule| same(rule.patterns) || rule.published.iter().any(|patterns| same(patterns));
    let fitting: Vec<&Rule> = RULES.iter().filter(fits).collect();
    let names = fitting.iter().flat_map(|rule| rule.names.iter().copied());
    names.clone().find(|name| Some(*name) == preferred).or_else(|| {
        let same_lookup = fitting.iter().find(|rule| rule.ignore_merges == ignore_merges);
        same_lookup.or(fitting.first()).map(|rule| rule.names[0])
    })
}

/// One step of a pre-tokenizer, in one spelling of the several that `tokenizer.json` has for it.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Into matches and gaps.
    Split(String),
    /// Bytes become visible characters, with a space before the text where it has none.
    Bytes {
        adds_space: bool,
    },
    Other(Value),
}

/// The steps of a pre-tokenizer.
pub(super) fn steps(pre: &Value) -> Vec<Step> {
    match pre["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => pre["pretokenizers"].as_array().into_iter().flatten().flat_map(steps).collect(),
        Some("ByteLevel") => {
            let split = (pre["use_regex"].as_bool() != Some(false)).then(|| Step::Split(GPT2.to_owned()));
            let bytes = Step::Bytes { adds_space: pre["add_prefix_space"].as_bool() == Some(true) };
            split.into_iter().chain([bytes]).collect()
        }
        Some("Digits") => {
            let pattern = if pre["individual_digits"].as_bool() == Some(true) { DIGIT } else { r"\p{N}+" };
            vec![Step::Split(pattern.to_owned())]
        }
        Some("Split") => {
            let regex = pre["pattern"]["Regex"].as_str();
            let inverted = pre["invert"].as_bool() == Some(true);
            match (regex, pre["behavior"].as_str()) {
                (Some(regex), Some("Isolated")) if !inverted => vec![Step::Split(regex.to_owned())],
                // Only matches are kept; the patterns of the known rules match every text.
                (Some(regex), Some("Removed")) if inverted => vec![Step::Split(regex.to_owned())],
                _ => vec![Step::Other(pre.clone())],
            }
        }
        Some(_) => vec![Step::Other(pre.clone())],
    }
}

/// Splits by each pattern in turn, matches and gaps alike, then spells bytes as characters.
pub(in super::super) fn split_by(patterns: &[&str]) -> Result<Sequence, TextError> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(bad)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(steps))
}
