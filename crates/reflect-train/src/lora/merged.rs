//! A checkpoint with the updates of adapters in its weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use reflect_kernels::Format;
use reflect_llm::{
    LlamaConfig,
    architecture::TensorId,
    weights::{LoadError, TensorInfo, TensorSource},
};

use super::{Updates, from_hugging_face, updates::Update};
use crate::source::widen;

/// Which updates of matrices are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    All,
    /// Those alone that can't hang on a [`Linear`](reflect_llm::model::Linear): of the embedding and the head.
    NotHung,
}

/// A checkpoint some of whose tensors are changed; those are read as f32, and the others as they are.
pub struct Merged<S> {
    source: S,
    changed: BTreeMap<String, Changed>,
}

/// A changed tensor, in the order of the source's rows.
struct Changed {
    info: TensorInfo,
    /// What stands in its place, if not the source's own.
    saved: Option<Vec<f32>>,
    updates: Vec<Update>,
}

impl<S: TensorSource> Merged<S> {
    /// Changes the tensors of `source`, a checkpoint of `config`, which the updates were read for.
    pub fn new(source: S, config: &LlamaConfig, updates: &Arc<Updates>, share: Share) -> Self {
        let id = |name: &str| TensorId::parse(name);
        let hung = |name: &str| share == Share::NotHung && id(name).is_some_and(|id| id.layer.is_some());
        let names = updates.low_rank.keys().filter(|name| !hung(name)).chain(updates.saved.keys());
        let mut changed = BTreeMap::new();
        for name in names {
            let Some(info) = source.info(name) else { continue };
            let ordered = |values: &[f32], cols: usize| match id(name) {
                Some(id) => from_hugging_face(id.role.spec(), config, values, cols),
                None => values.to_vec(),
            };
            let cols = if info.shape.len() > 1 { info.cols() } else { 1 };
            let saved = updates.saved.get(name).map(|(_, values)| ordered(values, cols));
            let low_rank = if hung(name) { None } else { updates.low_rank.get(name) };
            let turned = |update: &Update| Update { b: ordered(&update.b, update.rank), ..update.clone() };
            let updates = low_rank.into_iter().flatten().map(turned).collect();
            let info = TensorInfo { format: Format::F32, ..info.clone() };
            changed.insert(name.clone(), Changed { info, saved, updates });
        }
        Self { source, changed }
    }
}

impl<S: TensorSource> TensorSource for Merged<S> {
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.changed.get(name).map(|changed| &changed.info).or_else(|| self.source.info(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.source.names()
    }

    async fn read(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, LoadError> {
        let Some(changed) = self.changed.get(name) else { return self.source.read(name, rows).await };
        let missing = || LoadError::MissingTensor { tensor: name.to_owned(), expected: Vec::new() };
        let cols = changed.info.cols();
        let mut values = match &changed.saved {
            Some(saved) => saved.get(rows.start * cols..rows.end * cols).ok_or_else(missing)?.to_vec(),
            None => {
                let bytes = self.source.read(name, rows.clone()).await?;
                widen(self.source.info(name).ok_or_else(missing)?, &bytes)
            }
        };
        if !changed.updates.is_empty() {
            values.par_chunks_exact_mut(cols).zip(rows.start..rows.end).for_each(|(to, row)| {
                add(&changed.updates, row, to);
            });
        }
        Ok(Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()))
    }

    fn total_bytes(&self) -> u64 {
        self.names().filter_map(|name| self.info(name)).map(TensorInfo::byte_len).sum()
    }

    fn release(&self, name: &str) {
        self.source.release(name);
    }
}

/// Adds row `row` of all updates to `to`, rounded once.
fn add(updates: &[Update], row: usize, to: &mut [f32]) {
    let mut sums: Vec<f64> = to.iter().map(|value| f64::from(*value)).collect();
    for update in updates {
        let b = &update.b[row * update.rank..][..update.rank];
        for (b, a) in b.iter().zip(update.a.chunks_exact(to.len())) {
            let factor = update.scale * f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f64::from(*a));
        }
    }
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
}
