//! Gradient of [`embed`](super::embed()): each row of the table gets the sum over the tokens with
//! its id.

use std::collections::BTreeMap;

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, Int, Tensor, TensorData},
};
use burn_wgpu::CubeBackend;

use crate::{
    choice::run,
    cpu::{self, Scattered},
    format::Format,
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
};

/// The rows of a batch by their row in one part of a table, on the device. With it the sums need no
/// atomics and always have the same order.
#[derive(Clone, Debug)]
pub struct TokenIndex {
    /// Distinct ids `[U]` counted from the part's first row, offsets `[U + 1]`, rows by id.
    words: Tensor<1, Int>,
    distinct: usize,
}

impl TokenIndex {
    /// The index of `ids` within the rows `first_row..first_row + rows` of a table.
    pub fn new(ids: &[u32], first_row: usize, rows: usize, device: &Device) -> Self {
        let words = index_words(ids, first_row, rows);
        let distinct = words.0;
        let words: Vec<i32> = bytemuck::allocation::cast_vec(words.1);
        let len = words.len();
        Self { words: Tensor::from_data(TensorData::new(words, [len]), device), distinct }
    }
}

/// The number of distinct ids, and the words of an index.
fn index_words(ids: &[u32], first_row: usize, rows: usize) -> (usize, Vec<u32>) {
    let mut by_id: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, &id) in ids.iter().enumerate() {
        let inside = (id as usize).checked_sub(first_row).filter(|at| *at < rows);
        if let Some(at) = inside {
            by_id.entry(at as u32).or_default().push(row as u32);
        }
    }
    let mut words: Vec<u32> = by_id.keys().copied().collect();
    let mut end = 0;
    words.push(0);
    for rows in by_id.values() {
        end += rows.len() as u32;
        words.push(end);
    }
    words.extend(by_id.values().flatten());
    (by_id.len(), words)
}

/// Adds the gradient `d` `[T, D]` of the embeddings to `grad`, the gradient of one part of the table
/// in the layout of packed f32 rows.
pub fn embed_backward(grad: Tensor<1>, d: Tensor<2>, index: &TokenIndex) -> Tensor<1> {
    if index.distinct == 0 {
        return grad;
    }
    let [_, cols] = d.dims();
    let args = IndexArgs { distinct: index.distinct, cols, stride: Format::F32.row_words(cols) };
    Tensor::from_dispatch(Dispatch::scatter_rows(
        grad.into_dispatch(),
        d.into_dispatch(),
        index.words.clone().into_dispatch(),
        args,
    ))
}

/// `distinct` rows of `cols` elements, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IndexArgs {
    pub distinct: usize,
    pub cols: usize,
    pub stride: usize,
}

#[backend_extension(Cube, Flex)]
pub trait ScatterRows: burn::backend::Backend {
    /// Adds to `grad` and returns it.
    fn scatter_rows(
        grad: FloatTensor<Self>,
        d: FloatTensor<Self>,
        index: IntTensor<Self>,
        args: IndexArgs,
    ) -> FloatTensor<Self>;
}

/// The gradient in plain loops, in f64, added to `grad`.
pub fn reference(grad: &mut [f32], d: &[f32], ids: &[u32], cols: usize) {
    let stride = Format::F32.row_words(cols);
    for (n, grad) in grad.chunks_mut(stride).enumerate() {
        for (i, grad) in grad.iter_mut().take(cols).enumerate() {
            let taken = ids.iter().enumerate().filter(|(_, id)| **id as usize == n);
            let sum: f64 = taken.map(|(row, _)| f64::from(d[row * cols + i])).sum();
            *grad = (f64::from(*grad) + sum) as f32;
        }
    }
}

impl ScatterRows for CubeBackend {
    fn scatter_rows(
        grad: FloatTensor<Self>,
        d: FloatTensor<Self>,
        index: IntTensor<Self>,
        args: IndexArgs,
    ) -> FloatTensor<Self> {
        let d = burn_wgpu::into_contiguous(d);
        run(&args, &[&d, &index, &grad]);
        grad
    }
}

impl Candidates for IndexArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/embed_backward.wgsl");
        let Self { distinct, cols, stride } = *self;
        let [y, z, _] = grid(distinct);
        let workgroups = [cols.div_ceil(64), y, z];
        vec![Kernel::new("embed_backward", &[SOURCE], 64, workgroups, &[distinct, cols, stride])]
    }

    fn samples() -> Vec<Self> {
        vec![Self { distinct: 1, cols: 1, stride: 4 }]
    }
}

impl ScatterRows for Flex {
    fn scatter_rows(
        mut grad: FloatTensor<Self>,
        d: FloatTensor<Self>,
        index: IntTensor<Self>,
        args: IndexArgs,
    ) -> FloatTensor<Self> {
        let d = cpu::contiguous(d);
        let (d, index) = (cpu::floats(&d), cpu::words(&index));
        let (ids, rest) = index.split_at(args.distinct);
        let (offsets, rows) = rest.split_at(args.distinct + 1);
        let slots = Scattered::new(grad.storage_mut::<f32>());
        cpu::for_each(args.distinct, |at| {
            // SAFETY: distinct ids are distinct rows.
            let to = unsafe { slots.slice(ids[at] as usize * args.stride, args.cols) };
            for row in &rows[offsets[at] as usize..offsets[at + 1] as usize] {
                let from = &d[*row as usize * args.cols..][..args.cols];
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        });
        grad
    }
}
