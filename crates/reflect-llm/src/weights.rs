//! Where weights come from: named tensors whose rows are read as the bytes of the file.
//!
//! A [`ByteSource`] is one file with random access (memory-mapped natively, fetched in pieces in a
//! browser). A [`TensorSource`] is a checkpoint made of such files. Its tensor names are those of
//! Hugging Face Llama checkpoints whatever the file format, so that the model knows one naming.
//! Nothing is decoded here: a packed format stays packed until a kernel reads it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
use reflect_kernels::Format;

use crate::config::{ConfigError, LlamaConfig};

/// How the numbers of a tensor are stored, in the layout of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names that GGUF files and their users know")]
pub enum Dtype {
    F32,
    F16,
    BF16,
    /// Blocks of 32: an f16 scale, then 32 signed bytes.
    Q8_0,
    /// Blocks of 32: an f16 scale, then 16 bytes of nibbles with offset 8.
    Q4_0,
    /// Blocks of 32: an f16 scale and an f16 minimum, then 16 bytes of nibbles.
    Q4_1,
}

/// The supported formats as error messages list them.
pub const SUPPORTED_DTYPES: &str = "F32, F16, BF16, Q8_0, Q4_0 or Q4_1";

/// The packed format that holds the values of a file's format exactly.
impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::Q8_0 => Self::Q8_0,
            Dtype::Q4_0 => Self::Q4_0,
            Dtype::Q4_1 => Self::Q4_1,
        }
    }
}

/// The format in files that a packed format comes from.
impl From<Format> for Dtype {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 => Self::F16,
            Format::Bf16 => Self::BF16,
            Format::Q8_0 => Self::Q8_0,
            Format::Q4_0 => Self::Q4_0,
            Format::Q4_1 => Self::Q4_1,
        }
    }
}

impl Dtype {
    /// The name of the format, as GGUF tools write it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_1 => "Q4_1",
        }
    }

    /// Elements that share one block; 1 for the plain number formats.
    pub fn block_elements(self) -> usize {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => 1,
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 => 32,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::Q8_0 => 34,
            Dtype::Q4_0 => 18,
            Dtype::Q4_1 => 20,
        }
    }

    /// Bytes of a row of `cols` elements, or `None` if the row is not whole blocks or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_elements()) {
            return None;
        }
        (cols / self.block_elements()).checked_mul(self.block_bytes())
    }
}

/// What a checkpoint says about one tensor. Both sizes have been checked to fit the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in a Hugging Face Llama checkpoint.
    pub name: String,
    /// Row-major, `[rows, cols]` for a matrix and `[n]` for a vector.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
}

impl TensorInfo {
    /// Elements of a row: the last dimension (1 for a scalar).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: all dimensions but the last; a vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Bytes of one row in the file.
    pub fn row_bytes(&self) -> usize {
        // A source only holds tensors for which this is defined; see `checked_byte_len`.
        self.dtype.row_bytes(self.cols()).unwrap_or(0)
    }

    /// Bytes of the whole tensor in the file.
    pub fn byte_len(&self) -> u64 {
        self.rows() as u64 * self.row_bytes() as u64
    }

    /// [`byte_len`](Self::byte_len) for a shape that nothing has vouched for yet: `None` if a
    /// dimension is zero, a product overflows or a row is not whole blocks. A source calls it
    /// before it keeps the info.
    pub(crate) fn checked_byte_len(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return None;
        }
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let row = self.dtype.row_bytes(self.cols())?;
        u64::try_from(self.rows().checked_mul(row)?).ok()
    }
}

/// Why a checkpoint cannot be loaded: what happened and what to do about it, in one sentence.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    #[error("{file} could not be read ({problem}); check that it exists and can be opened")]
    Read { file: String, problem: String },
    #[error("{file} is damaged or incomplete: {problem}; download or convert it again")]
    Damaged { file: String, problem: String },
    #[error("{file} cannot be used: {problem}")]
    Unsupported { file: String, problem: String },
    #[error("{file}: tensor {tensor:?} is stored as {found}; convert the checkpoint to {SUPPORTED_DTYPES}")]
    UnsupportedDtype { file: String, tensor: String, found: String },
    #[error(
        "tensor {tensor:?} of shape {expected:?} is missing; use a complete checkpoint and the configuration made for it"
    )]
    MissingTensor { tensor: String, expected: Vec<usize> },
    #[error(
        "tensor {tensor:?} has shape {found:?} where the configuration expects {expected:?}; use the configuration made for these weights"
    )]
    Shape { tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error(
        "rows {start}..{end} of tensor {tensor:?} were asked for, but the checkpoint has {available} of them; check the model's configuration"
    )]
    Rows { tensor: String, start: usize, end: usize, available: usize },
    #[error(
        "the tokenizer has {tokens} tokens but the model embeds only {rows}; use the tokenizer made for this checkpoint"
    )]
    Tokenizer { tokens: usize, rows: usize },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// One file with random access.
#[allow(
    async_fn_in_trait,
    reason = "sources are used through generics on the thread that drives the GPU, so futures need not be Send"
)]
pub trait ByteSource {
    /// The name by which error messages call the file.
    fn name(&self) -> &str;

    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The bytes of `range`.
    ///
    /// # Errors
    /// If the range leaves the file, or the file cannot be read.
    async fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, LoadError>;

    /// Hints that `range` will not be read again soon, so that its memory may go. Reading it
    /// again stays correct.
    fn release(&self, range: Range<u64>) {
        let _ = range;
    }
}

/// A file that is wholly in memory: a fetched small checkpoint, or a test's.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    name: String,
    bytes: Vec<u8>,
}

impl MemoryFile {
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        MemoryFile { name: name.into(), bytes }
    }
}

impl ByteSource for MemoryFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, LoadError> {
        slice(&self.name, &self.bytes, range)
    }
}

/// A memory-mapped file.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug)]
pub struct MmapFile {
    name: String,
    map: memmap2::Mmap,
}

#[cfg(not(target_family = "wasm"))]
impl MmapFile {
    /// Maps the file at `path` for reading.
    ///
    /// # Errors
    /// [`LoadError::Read`] if it cannot be opened or mapped.
    pub fn open(path: &std::path::Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let read_error = |e: std::io::Error| LoadError::Read { file: name.clone(), problem: e.to_string() };
        let file = std::fs::File::open(path).map_err(read_error)?;
        // A directory opens like a file on Unix; mapping it would give a puzzling message.
        if !file.metadata().map_err(read_error)?.is_file() {
            return Err(LoadError::Read { file: name, problem: "it is not a file".into() });
        }
        // SAFETY: the map is private to this process and only read. Checkpoints are not written
        // while they are in use; a program that truncates one under us gets the same bus error
        // that any memory-mapped reader gets.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read_error)?;
        Ok(MmapFile { name, map })
    }
}

#[cfg(not(target_family = "wasm"))]
impl ByteSource for MmapFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.map.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, LoadError> {
        slice(&self.name, &self.map, range)
    }

    /// Gives the pages back: otherwise a load counts every weight twice in resident memory.
    #[cfg(unix)]
    fn release(&self, range: Range<u64>) {
        let (start, end) = (range.start.min(self.size()), range.end.min(self.size()));
        if start < end {
            // SAFETY: the map is file-backed and never written, so dropped pages come back from
            // the file with the same content. A refused hint changes nothing.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start as usize,
                    (end - start) as usize,
                )
            };
        }
    }
}

/// A checkpoint: tensors by name, read by rows.
#[allow(
    async_fn_in_trait,
    reason = "sources are used through generics on the thread that drives the GPU, so futures need not be Send"
)]
pub trait TensorSource {
    /// Shape and format of a tensor, or `None` if the checkpoint has no such tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// All tensor names, in no particular order.
    fn names(&self) -> impl Iterator<Item = &str>;

    /// The file bytes of `rows` of a tensor (`rows.len() * row_bytes` of them).
    ///
    /// # Errors
    /// If the tensor or the rows do not exist, or the file cannot be read.
    async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError>;

    /// Bytes of all tensors together, for progress and memory planning.
    fn total_bytes(&self) -> u64;

    /// Hints that a tensor has been copied to its device and will not be read again soon.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

/// A tensor inside one of the files of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub info: TensorInfo,
    /// Index of the file, 0 where a checkpoint is one file.
    pub file: usize,
    /// First byte of the tensor in that file.
    pub start: u64,
}

impl Located {
    /// The byte range of `rows` in the file.
    pub fn range(&self, rows: Range<usize>) -> Result<Range<u64>, LoadError> {
        let available = self.info.rows();
        if rows.start > rows.end || rows.end > available {
            return Err(LoadError::Rows {
                tensor: self.info.name.clone(),
                start: rows.start,
                end: rows.end,
                available,
            });
        }
        let row = self.info.row_bytes() as u64;
        Ok(self.start + rows.start as u64 * row..self.start + rows.end as u64 * row)
    }
}

/// The error of asking for rows of a tensor that is not there.
pub(crate) fn no_such_tensor(name: &str, rows: Range<usize>) -> LoadError {
    LoadError::Rows { tensor: name.into(), start: rows.start, end: rows.end, available: 0 }
}

/// Every tensor that `config` needs, with its shape. A tied head is not in the list.
pub fn expected_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let ffn = config.intermediate_size;
    // [rows, cols] = [out, in], and whether the projection may carry a bias.
    let projections = [
        ("self_attn.q_proj", q, hidden, config.attention_bias),
        ("self_attn.k_proj", kv, hidden, config.attention_bias),
        ("self_attn.v_proj", kv, hidden, config.attention_bias),
        ("self_attn.o_proj", hidden, q, config.attention_bias),
        ("mlp.gate_proj", ffn, hidden, config.mlp_bias),
        ("mlp.up_proj", ffn, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, ffn, config.mlp_bias),
    ];
    let mut shapes = vec![("model.embed_tokens.weight".into(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
        }
        for (name, rows, cols, bias) in projections {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![rows, cols]));
            if bias {
                shapes.push((format!("model.layers.{layer}.{name}.bias"), vec![rows]));
            }
        }
    }
    shapes.push(("model.norm.weight".into(), vec![hidden]));
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    shapes
}

/// Checks that `source` has every tensor of `config` in the right shape. Other tensors are ignored.
///
/// # Errors
/// The first tensor that is missing or has another shape.
pub fn check_shapes(config: &LlamaConfig, source: &impl TensorSource) -> Result<(), LoadError> {
    for (tensor, expected) in expected_shapes(config) {
        match source.info(&tensor) {
            None => return Err(LoadError::MissingTensor { tensor, expected }),
            Some(info) if info.shape != expected => {
                return Err(LoadError::Shape { tensor, expected, found: info.shape.clone() });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Checks that every id of a tokenizer has a row in the embedding of `embedding_rows` rows.
///
/// # Errors
/// [`LoadError::Tokenizer`] if it has more tokens; fewer are fine, embeddings are often padded.
pub fn check_tokenizer(embedding_rows: usize, tokens: usize) -> Result<(), LoadError> {
    if tokens > embedding_rows {
        return Err(LoadError::Tokenizer { tokens, rows: embedding_rows });
    }
    Ok(())
}

/// A checkpoint whose embedding and head got extra rows, each the mean of the existing ones.
///
/// This is the repair of uploads that lost the rows of their added tokens. The mean is what keeps
/// an untrained token from standing out: its logit is the average logit.
pub struct ExtendedVocabulary<S> {
    source: S,
    /// By tensor name: the new info, the number of rows in the source, and the bytes of the rest.
    extended: BTreeMap<&'static str, (TensorInfo, usize, Vec<u8>)>,
}

impl<S: TensorSource> ExtendedVocabulary<S> {
    /// Adds `extra` rows to the embedding and, where the checkpoint has one, to the head. Reads
    /// both tensors once.
    ///
    /// # Errors
    /// If they cannot be read, or are in a block format, whose means cannot be stored exactly.
    pub async fn new(source: S, extra: usize) -> Result<Self, LoadError> {
        let mut extended = BTreeMap::new();
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let Some(mut info) = source.info(name).cloned() else {
                continue;
            };
            let &[rows, cols] = info.shape.as_slice() else {
                return Err(LoadError::Unsupported {
                    file: name.into(),
                    problem: "vocabulary rows can only be added to a matrix; use another checkpoint".into(),
                });
            };
            let mean = mean_row(&source, &info).await?;
            info.shape = vec![rows.saturating_add(extra), cols];
            if info.checked_byte_len().is_none() {
                return Err(no_such_tensor(name, 0..extra));
            }
            extended.insert(name, (info, rows, mean.repeat(extra)));
        }
        Ok(ExtendedVocabulary { source, extended })
    }
}

impl<S: TensorSource> TensorSource for ExtendedVocabulary<S> {
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.extended.get(name).map(|(info, ..)| info).or_else(|| self.source.info(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.source.names()
    }

    async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError> {
        let Some((info, available, tail)) = self.extended.get(name) else {
            return self.source.read(name, rows).await;
        };
        if rows.end <= *available {
            return self.source.read(name, rows).await;
        }
        let whole = Located { info: info.clone(), file: 0, start: 0 };
        whole.range(rows.clone())?;
        let row = info.row_bytes();
        let tail_from = (rows.start.max(*available) - available) * row;
        let tail = &tail[tail_from..(rows.end - available) * row];
        if rows.start >= *available {
            return Ok(Cow::Borrowed(tail));
        }
        let mut bytes = self.source.read(name, rows.start..*available).await?.into_owned();
        bytes.extend_from_slice(tail);
        Ok(Cow::Owned(bytes))
    }

    fn total_bytes(&self) -> u64 {
        let added: usize = self.extended.values().map(|(.., tail)| tail.len()).sum();
        self.source.total_bytes() + added as u64
    }

    fn release(&self, name: &str) {
        self.source.release(name);
    }
}

/// The mean of all rows of a matrix, encoded like them.
async fn mean_row(source: &impl TensorSource, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
    const ROWS_AT_ONCE: usize = 1024;
    let decode: fn(&[u8]) -> f64 = match info.dtype {
        Dtype::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        Dtype::F16 => |b| f16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::BF16 => |b| bf16::from_le_bytes([b[0], b[1]]).into(),
        Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 => {
            return Err(LoadError::Unsupported {
                file: info.name.clone(),
                problem: format!(
                    "missing vocabulary rows can only be added to F32, F16 or BF16 weights, not {}; repair the checkpoint before it is quantised",
                    info.dtype.name()
                ),
            });
        }
    };
    let mut sums = vec![0f64; info.cols()];
    for start in (0..info.rows()).step_by(ROWS_AT_ONCE) {
        let rows = start..info.rows().min(start + ROWS_AT_ONCE);
        let bytes = source.read(&info.name, rows).await?;
        for row in bytes.chunks_exact(info.row_bytes().max(1)) {
            let values = row.chunks_exact(info.dtype.block_bytes());
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += decode(value));
        }
    }
    let count = info.rows().max(1) as f64;
    Ok(sums.iter().flat_map(|sum| encode(info.dtype, sum / count)).collect())
}

fn encode(dtype: Dtype, value: f64) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

fn slice<'a>(name: &str, bytes: &'a [u8], range: Range<u64>) -> Result<Cow<'a, [u8]>, LoadError> {
    usize::try_from(range.start)
        .ok()
        .zip(usize::try_from(range.end).ok())
        .and_then(|(start, end)| bytes.get(start..end))
        .map(Cow::Borrowed)
        .ok_or_else(|| LoadError::Damaged {
            file: name.into(),
            problem: format!(
                "bytes {}..{} were needed but it has only {}",
                range.start,
                range.end,
                bytes.len()
            ),
        })
}

/// Polls a future of an in-memory source, which is always ready, so that tests need no executor.
#[cfg(test)]
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("an in-memory source waited"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Tensors of zeros unless given; total control over shapes for `check_shapes`.
    pub(crate) struct Tensors(pub BTreeMap<String, (TensorInfo, Vec<u8>)>);

    impl Tensors {
        pub(crate) fn of(shapes: Vec<(String, Vec<usize>)>, dtype: Dtype) -> Self {
            let entry = |(name, shape): (String, Vec<usize>)| {
                let info = TensorInfo { name: name.clone(), shape, dtype };
                let bytes = vec![0; info.byte_len() as usize];
                (name, (info, bytes))
            };
            Tensors(shapes.into_iter().map(entry).collect())
        }
    }

    impl TensorSource for Tensors {
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            self.0.get(name).map(|(info, _)| info)
        }

        fn names(&self) -> impl Iterator<Item = &str> {
            self.0.keys().map(String::as_str)
        }

        async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError> {
            let (info, bytes) = self.0.get(name).ok_or_else(|| no_such_tensor(name, rows.clone()))?;
            let located = Located { info: info.clone(), file: 0, start: 0 };
            slice(name, bytes, located.range(rows)?)
        }

        fn total_bytes(&self) -> u64 {
            self.0.values().map(|(_, bytes)| bytes.len() as u64).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Tensors;
    use super::*;

    fn tiny() -> LlamaConfig {
        let mut config = LlamaConfig::by_name("smollm2-135m").unwrap();
        config.num_hidden_layers = 2;
        config.vocab_size = 10;
        config.attention_bias = true;
        config.tie_word_embeddings = false;
        config
    }

    #[test]
    fn row_bytes_follow_the_block_formats() {
        assert_eq!(Dtype::Q4_1.row_bytes(64), Some(40));
        assert_eq!(Dtype::Q4_0.row_bytes(33), None);
        assert_eq!(Dtype::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    fn shapes_are_checked_against_the_configuration() {
        let config = tiny();
        let mut source = Tensors::of(expected_shapes(&config), Dtype::BF16);
        assert_eq!(check_shapes(&config, &source), Ok(()));

        source.0.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().0.shape = vec![576, 1536];
        let error = check_shapes(&config, &source).unwrap_err().to_string();
        assert!(error.contains("mlp.up_proj.weight"), "{error}");
        assert!(error.contains("[576, 1536]") && error.contains("[1536, 576]"), "{error}");

        source.0.remove("model.layers.0.self_attn.q_proj.bias");
        let error = check_shapes(&config, &source).unwrap_err();
        assert!(matches!(error, LoadError::MissingTensor { .. }), "{error}");
    }

    #[test]
    fn every_element_of_the_model_is_counted() {
        for name in ["8b", "70b", "405b", "reflection-70b", "smollm2-135m"] {
            let config = LlamaConfig::by_name(name).unwrap();
            let elements = |(_, shape): &(_, Vec<usize>)| shape.iter().map(|&d| d as u64).product::<u64>();
            let total: u64 = expected_shapes(&config).iter().map(elements).sum();
            assert_eq!(total, config.param_count(), "{name}");
        }
    }

    #[test]
    fn extended_rows_are_the_mean_and_join_the_source() {
        let shape = vec![("model.embed_tokens.weight".to_string(), vec![3, 2])];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut source = Tensors::of(shape.clone(), dtype);
            let rows = [1.0, 2.0, 3.0, 4.0, 8.0, 0.0];
            let bytes: Vec<u8> = rows.iter().flat_map(|&v| encode(dtype, v)).collect();
            source.0.get_mut("model.embed_tokens.weight").unwrap().1 = bytes.clone();
            let source = ready(ExtendedVocabulary::new(source, 2)).unwrap();

            let name = "model.embed_tokens.weight";
            assert_eq!(source.info(name).unwrap().shape, [5, 2]);
            assert_eq!(source.total_bytes(), 10 * dtype.block_bytes() as u64);
            let mean: Vec<u8> = [4.0, 2.0, 4.0, 2.0].iter().flat_map(|&v| encode(dtype, v)).collect();
            let all = [bytes, mean].concat();
            let row = 2 * dtype.block_bytes();
            for start in 0..=5 {
                for end in start..=5 {
                    let read = ready(source.read(name, start..end)).unwrap();
                    assert_eq!(&*read, &all[start * row..end * row], "{start}..{end}");
                }
            }
            assert!(ready(source.read(name, 0..6)).is_err());
        }
        let packed = Tensors::of(vec![("lm_head.weight".into(), vec![2, 32])], Dtype::Q4_0);
        assert!(ready(ExtendedVocabulary::new(packed, 6)).is_err());
    }

    #[test]
    fn a_tokenizer_may_be_smaller_but_not_larger() {
        assert!(check_tokenizer(128, 100).is_ok());
        let error = check_tokenizer(128_256, 128_262).unwrap_err().to_string();
        assert!(error.contains("128262") && error.contains("128256"), "{error}");
    }
}
