//! What it costs this thread to enqueue a launch: the browser's half of the measurement in
//! `reflect-run bench --launch-cost`.

use burn::tensor::Device;
use reflect_kernels::{
    device::DeviceError,
    launch_cost::{LaunchCost, measure as measure_with},
};

/// Measures with the page's clock, in milliseconds.
///
/// # Errors
/// If a result cannot be read back.
pub async fn measure(device: &Device) -> Result<LaunchCost, DeviceError> {
    let clock = web_sys::window().and_then(|window| window.performance());
    measure_with(device, || clock.as_ref().map_or(0.0, |clock| clock.now())).await
}
