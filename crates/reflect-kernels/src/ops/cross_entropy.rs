//! Cross-entropy of rows of logits, and its gradient. Logits come in chunks of the vocabulary, so that a row
//! of 128,256 logits never exists as a whole.

use burn::{
    backend::{
        Dispatch, Flex, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};
use burn_wgpu::CubeBackend;

use super::{REDUCE_WORKGROUP, output};
use crate::{
    choice::run,
    cpu::{self, Scattered, dispatch_simd, exp},
    device::{DeviceError, landed_as},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
};

/// State of each row after some chunks: `[T, 4]` with the largest logit, the sum of
/// `exp(logit - largest)`, the logit of the target, and the id of the largest, which is exact as a float.
pub type RowState = Tensor<2>;

/// Folds a chunk of logits `[T, C]` of the tokens `first_id..first_id + C` into the state, which is `None`
/// before the first chunk. Chunks come in the order of their ids. A target is a token id.
///
/// # Panics
/// If the rows differ, or the first chunk is not that of token 0.
pub fn cross_entropy(
    logits: &Tensor<2>,
    targets: &Tensor<1, Int>,
    state: Option<RowState>,
    first_id: usize,
) -> RowState {
    let [rows, cols] = logits.dims();
    assert_eq!(targets.dims(), [rows], "cross_entropy: a target a row");
    assert_eq!(state.is_none(), first_id == 0, "cross_entropy: the first chunk starts at token 0");
    let state = state.unwrap_or_else(|| output([rows, 4], &logits.device()));
    assert_eq!(state.dims(), [rows, 4], "cross_entropy: state");
    Tensor::from_dispatch(Dispatch::chunk_state(
        logits.clone().into_dispatch(),
        targets.clone().into_dispatch(),
        state.into_dispatch(),
        ChunkArgs { rows, cols, first_id },
    ))
}

/// Gradient of `Σ_t scale[t] · cross-entropy[t]` for a chunk of logits, from the state after all
/// chunks: `scale[t] · (softmax - one hot)`.
///
/// # Panics
/// If the rows differ.
pub fn cross_entropy_backward(
    logits: Tensor<2>,
    targets: &Tensor<1, Int>,
    state: &RowState,
    scale: &Tensor<1>,
    first_id: usize,
) -> Tensor<2> {
    let [rows, cols] = logits.dims();
    assert_eq!(
        (targets.dims(), state.dims(), scale.dims()),
        ([rows], [rows, 4], [rows]),
        "cross_entropy_backward: rows"
    );
    Tensor::from_dispatch(Dispatch::chunk_gradient(
        logits.into_dispatch(),
        targets.clone().into_dispatch(),
        state.clone().into_dispatch(),
        scale.clone().into_dispatch(),
        ChunkArgs { rows, cols, first_id },
    ))
}

/// Loss of one row and whether the target has the largest logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// In nats.
    pub loss: f32,
    pub hit: bool,
}

/// Reads the state after all chunks: one loss a row. Waits for the device.
///
/// # Errors
/// If the device was lost or a kernel failed.
pub async fn read_losses(state: RowState, targets: &[u32]) -> Result<Vec<RowLoss>, DeviceError> {
    let values: Vec<f32> = landed_as(state.into_data_async().await)?;
    let rows = values.chunks(4).zip(targets);
    Ok(rows
        .map(|(row, target)| RowLoss { loss: row[0] + row[1].ln() - row[2], hit: row[3] == *target as f32 })
        .collect())
}

/// Tokens `first_id..first_id + cols` of `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkArgs {
    pub rows: usize,
    pub cols: usize,
    pub first_id: usize,
}

#[backend_extension(Cube, Flex)]
pub trait ChunkedCrossEntropy: burn::backend::Backend {
    /// Updates the state and returns it. The chunk of token 0 ignores the old state.
    fn chunk_state(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        state: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self>;

    /// Returns the gradient of the chunk, which may reuse the memory of the logits.
    fn chunk_gradient(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        state: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self>;
}

/// Losses and hits of whole rows in plain loops, in f64.
pub fn reference(logits: &[f32], targets: &[u32]) -> Vec<RowLoss> {
    let cols = logits.len() / targets.len();
    let rows = logits.chunks(cols).zip(targets);
    rows.map(|(row, &target)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
        let best = row.iter().position(|v| *v == top);
        RowLoss {
            loss: (f64::from(top) + mass.ln() - f64::from(row[target as usize])) as f32,
            hit: best == Some(target as usize),
        }
    })
    .collect()
}

/// The gradient of whole rows in plain loops, in f64.
pub fn reference_backward(logits: &[f32], targets: &[u32], scale: &[f32]) -> Vec<f32> {
    let cols = logits.len() / targets.len();
    let mut out = Vec::with_capacity(logits.len());
    for ((row, &target), scale) in logits.chunks(cols).zip(targets).zip(scale) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
        out.extend(row.iter().enumerate().map(|(id, v)| {
            let p = f64::from(v - top).exp() / mass;
            (f64::from(*scale) * (p - f64::from(id == target as usize))) as f32
        }));
    }
    out
}

impl ChunkedCrossEntropy for CubeBackend {
    fn chunk_state(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        state: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self> {
        let logits = burn_wgpu::into_contiguous(logits);
        run(&args, &[&logits, &targets, &state]);
        state
    }

    fn chunk_gradient(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        state: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self> {
        // In place: nobody reads the logits after their gradient.
        let logits = burn_wgpu::into_contiguous(logits);
        run(&Gradient(args), &[&logits, &targets, &state, &scale]);
        logits
    }
}

/// The kernels that update the state: a workgroup a row.
impl Candidates for ChunkArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCES: &[&str] = &[include_str!("../../../../shaders/cross_entropy.wgsl"), REDUCE_WORKGROUP];
        let Self { rows, cols, first_id } = *self;
        let kernel = Kernel::new("cross_entropy", SOURCES, 64, grid(rows), &[rows, cols, first_id]);
        vec![kernel.with("FIRST", first_id == 0).with("INVOCATIONS", 64usize)]
    }

    fn samples() -> Vec<Self> {
        [0, 1].map(|first_id| Self { rows: 1, cols: 1, first_id }).to_vec()
    }
}

/// The kernels of the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gradient(pub ChunkArgs);

impl Candidates for Gradient {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const SOURCE: &str = include_str!("../../../../shaders/cross_entropy_backward.wgsl");
        let ChunkArgs { rows, cols, first_id } = self.0;
        let [y, z, _] = grid(rows);
        let workgroups = [cols.div_ceil(64), y, z];
        vec![Kernel::new("cross_entropy_backward", &[SOURCE], 64, workgroups, &[rows, cols, first_id])]
    }

    fn samples() -> Vec<Self> {
        ChunkArgs::samples().into_iter().map(Self).collect()
    }
}

impl ChunkedCrossEntropy for Flex {
    fn chunk_state(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        mut state: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self> {
        let logits = cpu::contiguous(logits);
        let (from, targets) = (cpu::floats(&logits), cpu::words(&targets));
        let slots = Scattered::new(state.storage_mut::<f32>());
        cpu::for_each(args.rows, |row| {
            // SAFETY: each row is written by one call.
            let state = unsafe { slots.slice(4 * row, 4) };
            if args.first_id == 0 {
                state.copy_from_slice(&[f32::MIN, 0.0, 0.0, 0.0]);
            }
            update_row(&from[row * args.cols..][..args.cols], targets[row], args.first_id, state);
        });
        state
    }

    fn chunk_gradient(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        state: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        args: ChunkArgs,
    ) -> FloatTensor<Self> {
        let mut logits = cpu::contiguous(logits);
        let (targets, state, scale) = (cpu::words(&targets), cpu::floats(&state), cpu::floats(&scale));
        let slots = Scattered::new(logits.storage_mut::<f32>());
        cpu::for_each(args.rows, |row| {
            // SAFETY: each row is written by one call.
            let line = unsafe { slots.slice(row * args.cols, args.cols) };
            let lse = state[4 * row] + state[4 * row + 1].ln();
            gradient_row(line, lse, scale[row]);
            let target = (targets[row] as usize).checked_sub(args.first_id);
            if let Some(value) = target.and_then(|target| line.get_mut(target)) {
                *value -= scale[row];
            }
        });
        logits
    }
}

dispatch_simd! {
    fn update_row = update_row_body(logits: &[f32], target: u32, first_id: usize, state: &mut [f32])
}

#[inline(always)]
fn update_row_body<const FMA: bool>(logits: &[f32], target: u32, first_id: usize, state: &mut [f32]) {
    let mut top = state[0];
    for (id, value) in logits.iter().enumerate() {
        if *value > top {
            top = *value;
            state[3] = (first_id + id) as f32;
        }
    }
    let mut lanes = [0f32; 16];
    let (units, tail) = logits.as_chunks::<16>();
    for unit in units {
        for (lane, value) in lanes.iter_mut().zip(unit) {
            *lane += exp::<FMA>(value - top);
        }
    }
    let rest: f32 = tail.iter().map(|value| exp::<FMA>(value - top)).sum();
    state[1] = state[1] * exp::<FMA>(state[0] - top) + lanes.iter().sum::<f32>() + rest;
    state[0] = top;
    if let Some(value) = (target as usize).checked_sub(first_id).and_then(|target| logits.get(target)) {
        state[2] = *value;
    }
}

dispatch_simd! { fn gradient_row = gradient_row_body(logits: &mut [f32], lse: f32, scale: f32) }

#[inline(always)]
fn gradient_row_body<const FMA: bool>(logits: &mut [f32], lse: f32, scale: f32) {
    for value in logits {
        *value = exp::<FMA>(*value - lse) * scale;
    }
}
