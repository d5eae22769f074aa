//! How fast devices read and write their memory: what decoding waits for.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pollster::block_on;
use reflect_kernels::{device::OpenDevice, launch_cost};

/// Bytes a second, read and written, that each device reaches when it copies. Devices with the same memory, as the
/// same card opened twice or all that lie in that of the host, are measured once.
///
/// # Errors
/// If a device fails meanwhile.
pub fn measure(devices: &[OpenDevice]) -> Result<Vec<f64>> {
    let mut found: Vec<f64> = Vec::new();
    for device in devices {
        let known = devices.iter().take(found.len()).position(|known| known.shares_memory(device));
        found.push(match known {
            Some(at) => found[at],
            None if device.in_host_memory() => copy_in_host_memory(),
            None => copy_on_gpu(device)?,
        });
    }
    Ok(found)
}

fn copy_on_gpu(device: &OpenDevice) -> Result<f64> {
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64() * 1e3;
    block_on(launch_cost::copy_bandwidth(&device.device, clock))
        .with_context(|| format!("the memory of {} could not be measured", device.name))
}

/// The same for copies on all threads between blocks that no cache holds.
fn copy_in_host_memory() -> f64 {
    const BLOCK: usize = 256 << 20;
    const ROUNDS: usize = 4;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let block = BLOCK / threads;
    let barrier = Barrier::new(threads);
    let time = std::thread::scope(|scope| {
        let copy = || {
            let (source, mut target) = (vec![1u8; block], vec![2u8; block]);
            barrier.wait();
            let start = Instant::now();
            for _ in 0..ROUNDS {
                target.copy_from_slice(black_box(&source));
                black_box(&mut target);
            }
            start.elapsed()
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(copy)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).max().unwrap_or(Duration::MAX)
    });
    (2 * block * threads * ROUNDS) as f64 / time.as_secs_f64()
}
