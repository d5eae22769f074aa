//! What a kernel launch costs the thread that enqueues it, apart from the kernel's own time.
//!
//! Decode is hundreds of small launches a token, so this bounds the speed of a small model.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_wgpu::CubeBackend;

use crate::{
    choice::run,
    device::{DeviceError, landed},
    info::DeviceInfo,
    kernel::{Candidates, Kernel, grid},
    ops,
};

/// Microseconds of the enqueuing thread for one launch, median of several rounds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct LaunchCost {
    /// One of our WGSL kernels on a handful of elements, launched one by one.
    pub plain_us: f64,
    /// The same kernels replayed from a captured graph; `None` in a browser, where capture would
    /// wait for the device, and where the backend re-runs the closure instead.
    pub graph_us: Option<f64>,
    /// One multiplication of burn's own, for comparison.
    pub burn_us: f64,
    /// Wall time of one launch until the results are there, kernels included.
    pub wall_us: f64,
}

/// Launches in a round: a decode step of a model of 30 layers.
const LAUNCHES: usize = 300;
const ROUNDS: usize = 7;

/// Measures on `device` with `clock`, which returns milliseconds.
///
/// # Errors
/// If a result cannot be read back.
pub async fn measure(device: &Device, clock: impl Fn() -> f64) -> Result<LaunchCost, DeviceError> {
    let input = Tensor::<2>::from_data(TensorData::new(vec![0.5f32; 16], [1, 16]), device);
    let (mut plain, mut own, mut wall) = (Vec::new(), Vec::new(), Vec::new());
    let weight = Tensor::<1>::from_data(TensorData::new(vec![1.0f32; 16], [16]), device);
    let norms = |x: Tensor<2>| (0..LAUNCHES).fold(x, |x, _| ops::rms_norm(x, weight.clone(), 1e-5));
    for _ in 0..ROUNDS {
        let start = clock();
        let x = norms(input.clone());
        let enqueued = clock();
        settle(x).await?;
        plain.push(enqueued - start);
        wall.push(clock() - start);

        let start = clock();
        let x = (0..LAUNCHES).fold(input.clone(), |x, _| x * 0.999);
        own.push(clock() - start);
        settle(x).await?;
    }
    Ok(LaunchCost {
        plain_us: per_launch(plain),
        graph_us: replayed(device, &input, norms, &clock),
        burn_us: per_launch(own),
        wall_us: per_launch(wall),
    })
}

/// Microseconds a launch of a replayed capture of `work`.
#[cfg(not(target_family = "wasm"))]
fn replayed(
    device: &Device,
    input: &Tensor<2>,
    work: impl Fn(Tensor<2>) -> Tensor<2>,
    clock: &impl Fn() -> f64,
) -> Option<f64> {
    let mut graph = burn::tensor::capture(device, || work(input.clone()));
    if !graph.is_hardware() {
        return None;
    }
    let rounds = (0..ROUNDS).map(|_| {
        let start = clock();
        // SAFETY: the graph owns what it writes, `input` and the weights outlive it, and this
        // thread is the only one that uses them.
        unsafe { graph.replay() };
        let enqueued = clock() - start;
        // The next round must find an idle queue.
        let _ = device.sync();
        enqueued
    });
    Some(per_launch(rounds.collect()))
}

#[cfg(target_family = "wasm")]
fn replayed(
    _: &Device,
    _: &Tensor<2>,
    _: impl Fn(Tensor<2>) -> Tensor<2>,
    _: &impl Fn() -> f64,
) -> Option<f64> {
    None
}

/// Bytes a second, read and written, that a GPU reaches when it copies. `clock` returns milliseconds.
///
/// # Errors
/// If a result cannot be read back.
pub async fn copy_bandwidth(device: &Device, clock: impl Fn() -> f64) -> Result<f64, DeviceError> {
    // 128 MiB, the least that every device binds, and more than caches hold.
    const NUMBERS: usize = 32 << 20;
    const COPIES: usize = 32;
    let source = Tensor::<1, Int>::zeros([NUMBERS], device);
    let to = Tensor::<1, Int>::zeros([NUMBERS], device);
    let tensors = [&source, &to].map(|tensor| tensor.clone().try_into_primitive::<CubeBackend>());
    let [Ok(from), Ok(into)] = tensors else { return Err(DeviceError::lost("it is no GPU")) };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = clock();
        for _ in 0..COPIES {
            run(&CopyArgs { vectors: NUMBERS / 4 }, &[&from, &into]);
        }
        landed(to.clone().slice(0..1).into_data_async().await)?;
        times.push(clock() - start);
    }
    times.sort_by(f64::total_cmp);
    Ok((2 * 4 * NUMBERS * COPIES) as f64 / (times[ROUNDS / 2] / 1e3))
}

/// A copy of so many vectors of four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyArgs {
    pub vectors: usize,
}

impl Candidates for CopyArgs {
    fn candidates(&self, _: &DeviceInfo) -> Vec<Kernel> {
        const COPY: &str = include_str!("../../../shaders/copy.wgsl");
        vec![Kernel::new("copy", &[COPY], 256, grid(self.vectors.div_ceil(256)), &[self.vectors])]
    }

    fn samples() -> Vec<Self> {
        vec![Self { vectors: 1 }]
    }
}

async fn settle(x: Tensor<2>) -> Result<(), DeviceError> {
    landed(x.into_data_async().await).map(drop)
}

/// Median round in microseconds a launch.
fn per_launch(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2] * 1e3 / LAUNCHES as f64
}
