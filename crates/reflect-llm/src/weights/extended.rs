//! Checkpoints with missing rows of the embedding.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
use reflect_kernels::Format;

use crate::architecture::Role;

use super::{LoadError, Located, TensorInfo, TensorSource, no_such_tensor};

/// A checkpoint whose embedding and head got extra rows, each the mean of the existing ones.
///
/// This repairs uploads that lost the rows of their added tokens. With the mean an untrained token does not stand
/// out: its logit is the average logit.
pub struct ExtendedVocabulary<S> {
    source: S,
    /// By tensor name: the new info, the number of rows in the source, and the bytes of the rest.
    extended: BTreeMap<String, (TensorInfo, usize, Vec<u8>)>,
}

impl<S: TensorSource> ExtendedVocabulary<S> {
    /// Adds `extra` rows to the embedding and, where the checkpoint has one, to the head. Reads
    /// both tensors once.
    ///
    /// # Errors
    /// If they cannot be read, or are in a block format, whose means cannot be stored exactly.
    pub async fn new(source: S, extra: usize) -> Result<Self, LoadError> {
        let mut extended = BTreeMap::new();
        for role in [Role::Embedding, Role::Head] {
            let Some(mut info) = source.info(&role.weight(None).name()).cloned() else {
                continue;
            };
            let &[rows, cols] = info.shape.as_slice() else {
                return Err(LoadError::Unsupported {
                    file: info.name,
                    problem: "vocabulary rows can only be added to a matrix; use another checkpoint".into(),
                });
            };
            let mean = mean_row(&source, &info).await?;
            info.shape = vec![rows.saturating_add(extra), cols];
            if info.checked_byte_len().is_none() {
                return Err(no_such_tensor(&info.name, 0..extra));
            }
            extended.insert(info.name.clone(), (info, rows, mean.repeat(extra)));
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

pub(super) fn encode(format: Format, value: f64) -> Vec<u8> {
    match format {
        Format::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        Format::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

/// The mean of all rows of a matrix, encoded like them.
async fn mean_row(source: &impl TensorSource, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
    const ROWS_AT_ONCE: usize = 1024;
    let decode: fn(&[u8]) -> f64 = match info.format {
        Format::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
        Format::F16 => |b| f16::from_le_bytes([b[0], b[1]]).into(),
        Format::Bf16 => |b| bf16::from_le_bytes([b[0], b[1]]).into(),
        _ => {
            return Err(LoadError::Unsupported {
                file: info.name.clone(),
                problem: format!(
                    "missing vocabulary rows can only be added to F32, F16 or BF16 weights, not {}; repair the checkpoint before it is quantised",
                    info.format.name()
                ),
            });
        }
    };
    let mut sums = vec![0f64; info.cols()];
    for start in (0..info.rows()).step_by(ROWS_AT_ONCE) {
        let rows = start..info.rows().min(start + ROWS_AT_ONCE);
        let bytes = source.read(&info.name, rows).await?;
        for row in bytes.chunks_exact(info.row_bytes().max(1)) {
            let values = row.chunks_exact(info.row_bytes() / info.cols().max(1));
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += decode(value));
        }
    }
    let count = info.rows().max(1) as f64;
    Ok(sums.iter().flat_map(|sum| encode(info.format, sum / count)).collect())
}
