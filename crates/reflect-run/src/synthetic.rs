//! A checkpoint of made-up weights: any shape and format without a file, to measure a device's
//! speed on a model that is not at hand, and to compare devices on a tiny one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use reflect_kernels::{Format, format::encode_row, verify::noise};
use reflect_llm::{
    LlamaConfig,
    weights::{LoadError, TensorInfo, TensorSource, expected_shapes},
};

/// Different rows in a matrix; the others repeat them, which costs nothing to make.
const ROWS: usize = 61;

/// Made-up weights of a configuration. Norms are 1; matrices are uniform with the variance that
/// keeps activations in range.
pub struct Synthetic {
    tensors: BTreeMap<String, TensorInfo>,
    /// The format of the matrices.
    format: Format,
    /// File bytes of [`ROWS`] rows, by columns; made when they are read, since a plan reads none.
    rows: BTreeMap<usize, OnceLock<Vec<u8>>>,
}

impl Synthetic {
    /// Weights for `config`, matrices in `format`.
    ///
    /// # Errors
    /// If the format's blocks do not fit a matrix of that configuration.
    pub fn new(config: &LlamaConfig, format: Format) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut rows = BTreeMap::new();
        for (name, shape) in expected_shapes(config) {
            let format = if shape.len() == 1 { Format::F32 } else { format };
            let info = TensorInfo { name: name.clone(), shape, format };
            let cols = info.cols();
            if info.shape.len() > 1 {
                ensure!(
                    format.file_row_bytes(cols).is_some(),
                    "{} has no rows of {cols} columns; use another format",
                    format.name()
                );
                rows.insert(cols, OnceLock::new());
            }
            tensors.insert(name, info);
        }
        Ok(Self { tensors, format, rows })
    }
}

/// [`ROWS`] rows of uniform weights of variance 1 / `cols`.
fn make_rows(format: Format, cols: usize) -> Vec<u8> {
    let amplitude = (3.0 / cols as f32).sqrt();
    let row = |seed| encode_row(format, &noise(cols, seed, amplitude)).unwrap_or_default();
    (0..ROWS as u64).flat_map(row).collect()
}

impl TensorSource for Synthetic {
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError> {
        let missing = || LoadError::MissingTensor { tensor: name.to_owned(), expected: Vec::new() };
        let info = self.tensors.get(name).ok_or_else(missing)?;
        if info.shape.len() == 1 {
            return Ok(Cow::Owned(1f32.to_le_bytes().repeat(info.cols())));
        }
        let block = self.rows.get(&info.cols()).ok_or_else(missing)?;
        let block = block.get_or_init(|| make_rows(self.format, info.cols()));
        let row_bytes = info.row_bytes();
        let mut bytes = Vec::with_capacity(rows.len() * row_bytes);
        for row in rows {
            bytes.extend_from_slice(&block[row % ROWS * row_bytes..][..row_bytes]);
        }
        Ok(Cow::Owned(bytes))
    }

    fn total_bytes(&self) -> u64 {
        self.tensors.values().map(TensorInfo::byte_len).sum()
    }
}
