//! Which size a kernel is fastest with on a device: a few are timed.

use burn::tensor::{Tensor, TensorData};

use crate::{
    device::{OpenDevice, landed, set_tuning},
    format::Format,
    matrix::PackedMatrix,
    ops,
};

/// Rows of a team and lanes of a workgroup in `matvec.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TeamSize {
    pub rows: usize,
    pub lanes: usize,
}

/// What is tuned for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tuning {
    /// For matrices of fewer than [`MANY_ROWS`] rows.
    pub few_rows: TeamSize,
    pub many_rows: TeamSize,
}

/// Rows of a matrix that fill any device with workgroups.
pub const MANY_ROWS: usize = 16_384;

/// The sizes that are timed.
pub const SIZES: [TeamSize; 4] = [
    TeamSize { rows: 2, lanes: 128 },
    TeamSize { rows: 2, lanes: 256 },
    TeamSize { rows: 4, lanes: 128 },
    TeamSize { rows: 4, lanes: 256 },
];

impl Default for Tuning {
    /// The fastest on an NVIDIA H200 (docs/measurements.md).
    fn default() -> Self {
        Self { few_rows: SIZES[1], many_rows: SIZES[3] }
    }
}

impl Tuning {
    /// Whether it is made of [`SIZES`], so that there are kernels for it.
    pub fn is_known(&self) -> bool {
        SIZES.contains(&self.few_rows) && SIZES.contains(&self.many_rows)
    }

    /// The size for a matrix of `rows` rows.
    pub fn of(&self, rows: usize) -> TeamSize {
        if rows < MANY_ROWS { self.few_rows } else { self.many_rows }
    }
}

/// Products of one round, and rounds of which the fastest counts.
const PRODUCTS: usize = 24;
const ROUNDS: usize = 4;

/// Times the kernels that `open` can choose among, on matrices of `few` and of `many` rows, both of `cols`
/// columns, chooses the fastest for it and returns the choice. Does nothing where there is none to make: on the
/// CPU and on software adapters. `clock` returns milliseconds.
///
/// # Errors
/// If a result cannot be read back; the driver's message. The choice stays as it was then.
pub async fn tune(
    open: &mut OpenDevice,
    [few, many, cols]: [usize; 3],
    clock: impl Fn() -> f64,
) -> Result<Option<Tuning>, String> {
    let Some(profile) = open.profile.filter(|profile| !profile.software) else { return Ok(None) };
    let (few, many) =
        (fastest_size(open, few, cols, &clock).await, fastest_size(open, many, cols, &clock).await);
    set_tuning(open, profile.tuning);
    let tuning = Tuning { few_rows: few?, many_rows: many? };
    set_tuning(open, tuning);
    Ok(Some(tuning))
}

async fn fastest_size(
    open: &mut OpenDevice,
    rows: usize,
    cols: usize,
    clock: &impl Fn() -> f64,
) -> Result<TeamSize, String> {
    // Several matrices in turn, more than a cache holds.
    const BYTES: usize = 96 << 20;
    let words = rows * Format::Q4_0.row_words(cols);
    let matrices: Vec<PackedMatrix> = (0..(BYTES / (4 * words)).clamp(1, 8))
        .map(|_| PackedMatrix::new(Format::Q4_0, rows, cols, vec![0x3c00_3c00; words], &open.device))
        .collect();
    let x = Tensor::<2>::from_data(TensorData::new(vec![1f32; cols], [1, cols]), &open.device);
    let mut fastest = (f64::INFINITY, SIZES[0]);
    for size in SIZES {
        set_tuning(open, Tuning { few_rows: size, many_rows: size });
        for _ in 0..ROUNDS {
            let start = clock();
            let mut last = x.clone();
            for at in 0..PRODUCTS {
                last = ops::matmul(x.clone(), &matrices[at % matrices.len()]);
            }
            landed(last.slice([0..1, 0..1]).into_data_async().await)?;
            let time = clock() - start;
            if time < fastest.0 {
                fastest = (time, size);
            }
        }
    }
    Ok(fastest.1)
}
