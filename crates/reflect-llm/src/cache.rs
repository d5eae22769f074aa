//! The paged KV cache of a model: layers of pages on the device, and who owns which page.

use reflect_kernels::{KvFormat, KvLayer, PAGE};

use crate::model::Llama;

/// All layers' pages and their reference counts. A page holds the same 32 positions in each layer.
#[derive(Debug)]
pub struct KvCache {
    /// `None` only while a block has its layer, inside [`Llama::stage`].
    pub layers: Vec<Option<KvLayer>>,
    /// How many sequences hold each page.
    owners: Vec<u32>,
    free: Vec<u32>,
}

/// The cache has no free page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the KV cache is full: end a sequence, or start with a longer --context")]
pub struct CacheFull;

impl KvCache {
    /// Room for `pages` pages of 32 positions in each layer of `model`, on the layer's device.
    pub fn new(model: &Llama, pages: usize, format: KvFormat) -> Self {
        let shape = model.kv_shape(format);
        let devices = model.stages.iter().flat_map(|stage| stage.layers.clone().map(|_| &stage.device));
        let layers = devices.map(|device| Some(KvLayer::new(shape, pages, device)));
        Self {
            layers: layers.collect(),
            owners: vec![0; pages],
            // Low pages first.
            free: (0..pages as u32).rev().collect(),
        }
    }

    /// Extends `pages` so that it covers positions below `positions`.
    ///
    /// # Errors
    /// [`CacheFull`]; `pages` is then unchanged.
    pub fn grow(&mut self, pages: &mut Vec<u32>, positions: usize) -> Result<(), CacheFull> {
        let missing = positions.div_ceil(PAGE).saturating_sub(pages.len());
        let from = self.free.len().checked_sub(missing).ok_or(CacheFull)?;
        for page in self.free.drain(from..).rev() {
            self.owners[page as usize] = 1;
            pages.push(page);
        }
        Ok(())
    }

    /// Shortens `pages` to those that positions below `positions` need.
    pub fn shrink(&mut self, pages: &mut Vec<u32>, positions: usize) {
        for page in pages.drain(positions.div_ceil(PAGE).min(pages.len())..) {
            self.owners[page as usize] -= 1;
            if self.owners[page as usize] == 0 {
                self.free.push(page);
            }
        }
    }

    /// A second owner for the pages that positions below `positions` fill completely. A page that
    /// is filled in part is not shared, since both owners would go on writing it.
    pub fn share(&mut self, pages: &[u32], positions: usize) -> Vec<u32> {
        let shared = pages[..positions / PAGE].to_vec();
        for page in &shared {
            self.owners[*page as usize] += 1;
        }
        shared
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }
}
