//! What the kernels must know about a step: one upload for all that changes from step to step.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::recording::overwrite;
use crate::rope::RopeTable;

/// Least columns of a page table: a short context changes its shape once less often for each doubling, and what
/// is empty costs nothing.
const MIN_PAGES: usize = 8;

/// Lines of a KV page. A page holds the keys and values of this many consecutive positions.
pub const PAGE: usize = 32;

/// One step over `sequences` sequences of equally many rows each, on the device.
///
/// The words are: token ids `[T]`, positions `[T]`, cache slots `[T]` (page · 32 + line), page
/// table `[sequences, max_pages]`, then cos and sin of each row's rotations as f32 bits
/// `[T, head_dim / 2, 2]`.
#[derive(Clone, Debug)]
pub struct Batch {
    pub data: Tensor<1, Int>,
    pub shape: BatchShape,
}

/// Sizes of a [`Batch`]; two steps of one shape launch the same kernels with the same parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchShape {
    /// Rows of the step, `sequences * rows_per_seq`.
    pub tokens: usize,
    pub rows_per_seq: usize,
    /// Columns of the page table: a power of two, so that the shape seldom changes.
    pub max_pages: usize,
}

/// One sequence's share of a step.
#[derive(Clone, Debug)]
pub struct SequenceRows<'a> {
    /// Token ids, for positions `first_position..`.
    pub ids: &'a [u32],
    pub first_position: usize,
    /// Physical page of each 32 positions; must cover the last position of `ids`.
    pub pages: &'a [u32],
}

impl Batch {
    /// Lays out and uploads one step.
    ///
    /// # Panics
    /// If the sequences have different numbers of rows, none, or too few pages.
    pub fn new(sequences: &[SequenceRows<'_>], rope: &RopeTable, device: &Device) -> Self {
        let shape = Self::shape_of(sequences);
        let words = Self::words(sequences, shape, rope);
        let len = [words.len()];
        Self { data: Tensor::from_data(TensorData::new(words, len), device), shape }
    }

    /// Uploads another step of the same shape to where this one is.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn overwrite(&self, sequences: &[SequenceRows<'_>], rope: &RopeTable) {
        assert_eq!(self.shape, Self::shape_of(sequences), "Batch: a step of another shape");
        overwrite(&self.data, Self::words(sequences, self.shape, rope));
    }

    /// The shape of a step.
    ///
    /// # Panics
    /// If the sequences have different numbers of rows, or none.
    pub fn shape_of(sequences: &[SequenceRows<'_>]) -> BatchShape {
        let rows_per_seq = sequences.first().map_or(0, |s| s.ids.len());
        assert!(
            rows_per_seq > 0 && sequences.iter().all(|s| s.ids.len() == rows_per_seq),
            "Batch: every sequence of a step has the same number of rows, at least one"
        );
        let max_pages = sequences.iter().map(|s| s.pages.len()).max().unwrap_or(1);
        let max_pages = max_pages.next_power_of_two().max(MIN_PAGES);
        BatchShape { tokens: rows_per_seq * sequences.len(), rows_per_seq, max_pages }
    }

    fn words(sequences: &[SequenceRows<'_>], shape: BatchShape, rope: &RopeTable) -> Vec<i32> {
        let BatchShape { tokens, rows_per_seq, max_pages } = shape;
        let mut words: Vec<u32> =
            Vec::with_capacity(tokens * (3 + 2 * rope.half()) + max_pages * sequences.len());
        words.extend(sequences.iter().flat_map(|s| s.ids));
        let positions = || sequences.iter().flat_map(|s| s.first_position..s.first_position + rows_per_seq);
        words.extend(positions().map(|position| position as u32));
        for s in sequences {
            words.extend((0..rows_per_seq).map(|row| {
                let position = s.first_position + row;
                s.pages[position / PAGE] * PAGE as u32 + (position % PAGE) as u32
            }));
        }
        for s in sequences {
            words.extend(s.pages);
            words.extend(std::iter::repeat_n(0, max_pages - s.pages.len()));
        }
        for position in positions() {
            rope.extend(position, &mut words);
        }
        bytemuck::allocation::cast_vec(words)
    }

    /// Lays out and uploads sequences for training: one after another, without a cache. The words
    /// are ids `[T]`, first row of the row's own sequence `[T]`, the row after its last `[T]`, then
    /// cos and sin as above. Positions start again in each sequence.
    ///
    /// # Panics
    /// If there is no row.
    pub fn packed(sequences: &[&[u32]], rope: &RopeTable, device: &Device) -> Self {
        let tokens: usize = sequences.iter().map(|ids| ids.len()).sum();
        assert!(tokens > 0, "Batch: packed sequences have at least one row");
        let mut words: Vec<u32> = Vec::with_capacity(tokens * (3 + 2 * rope.half()));
        words.extend(sequences.iter().flat_map(|ids| *ids));
        let mut bounds = Vec::with_capacity(sequences.len());
        let mut first = 0u32;
        for ids in sequences {
            bounds.push((first, first + ids.len() as u32));
            first += ids.len() as u32;
        }
        words.extend(bounds.iter().flat_map(|&(first, end)| (first..end).map(move |_| first)));
        words.extend(bounds.iter().flat_map(|&(first, end)| (first..end).map(move |_| end)));
        for ids in sequences {
            (0..ids.len()).for_each(|position| rope.extend(position, &mut words));
        }
        let words: Vec<i32> = bytemuck::allocation::cast_vec(words);
        let shape = [words.len()];
        Self {
            data: Tensor::from_data(TensorData::new(words, shape), device),
            shape: BatchShape { tokens, rows_per_seq: tokens, max_pages: 0 },
        }
    }
}

impl BatchShape {
    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.tokens / self.rows_per_seq
    }

    /// Word at which the page table starts.
    pub fn table_at(&self) -> usize {
        3 * self.tokens
    }

    /// Word at which cos and sin start.
    pub fn rope_at(&self) -> usize {
        self.table_at() + self.sequences() * self.max_pages
    }
}
