//! AdamW over all trained tensors, with clipping by their common norm.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use pollster::block_on;
use reflect_kernels::{
    device::landed_as,
    ops::{AdamStep, Moments, adamw_vector, adamw_words, square_sums},
};
use reflect_llm::Llama;

use crate::{
    TrainError,
    parameters::{Gradients, Parameter, Scope, update},
    settings::OptimizerSettings,
};

/// Moments of each trained tensor by name, and the steps taken.
#[derive(Clone, Debug)]
pub struct Optimizer {
    pub moments: BTreeMap<String, Moments>,
    /// Steps taken so far.
    pub step: u64,
    scope: Scope,
    settings: OptimizerSettings,
    /// Steps of the whole run.
    steps: u64,
}

impl Optimizer {
    /// Zeros for each trained tensor.
    pub fn new(model: &mut Llama, scope: Scope, settings: OptimizerSettings, steps: u64) -> Self {
        let gradients = Gradients::zeros(model, scope);
        let zeros = gradients.iter().map(|(name, gradient)| {
            let moments = Moments { m: gradient.zeros_like(), v: gradient.zeros_like() };
            (name.to_owned(), moments)
        });
        Self { moments: zeros.collect(), step: 0, scope, settings, steps }
    }

    /// One step with the gradients of the whole batch, scaled down to `max_norm` where they are longer.
    /// `norm` is their length by [`gradient_norm`]; a step whose norm is not finite must not be taken.
    pub fn step(&mut self, model: &mut Llama, mut gradients: Gradients, norm: f64, device: &Device) {
        self.step += 1;
        let settings = self.settings;
        let step = AdamStep {
            rate: settings.rate_at(self.step, self.steps),
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            decay: settings.decay,
            step: self.step,
            grad_scale: clip(norm, settings.max_norm),
        };
        let step = step.upload(device);
        update(model, self.scope, &mut |name, parameter| {
            let Some((gradient, moments)) = gradients.take(name).zip(self.moments.remove(name)) else {
                return parameter;
            };
            let (parameter, moments) = match parameter {
                Parameter::Matrix(words) => {
                    let (words, moments) = adamw_words(words, gradient, moments, &step);
                    (Parameter::Matrix(words), moments)
                }
                Parameter::Vector(values) => {
                    let (values, moments) = adamw_vector(values, gradient, moments, &step);
                    (Parameter::Vector(values), moments)
                }
            };
            self.moments.insert(name.to_owned(), moments);
            parameter
        });
    }
}

/// The factor that keeps a gradient of length `norm` within `max_norm`, as PyTorch's
/// `clip_grad_norm_` has it.
pub fn clip(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Length of all gradients together. Waits for the device.
///
/// # Errors
/// If the device fails.
pub fn gradient_norm(gradients: &Gradients) -> Result<f64, TrainError> {
    let sums: Vec<Tensor<1>> = gradients.iter().map(|(_, gradient)| square_sums(gradient.clone())).collect();
    if sums.is_empty() {
        return Ok(0.0);
    }
    let sums = floats(Tensor::cat(sums, 0))?;
    Ok(sums.iter().map(|sum| f64::from(*sum)).sum::<f64>().sqrt())
}

/// The elements of a tensor on the host.
///
/// # Errors
/// If the device fails.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainError> {
    Ok(landed_as(block_on(tensor.into_data_async()))?)
}

/// A vector on the device.
pub fn upload(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_climbs_falls_and_ends_where_it_should() {
        let settings = OptimizerSettings { rate: 1e-3, final_share: 0.1, warm_up: 3, ..Default::default() };
        let rates: Vec<f64> = (1..=10).map(|step| settings.rate_at(step, 10)).collect();
        assert!((rates[0] - 1e-3 / 3.0).abs() < 1e-12 && (rates[2] - 1e-3).abs() < 1e-12);
        assert!((rates[9] - 1e-4).abs() < 1e-12);
        assert!(rates[2..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!((settings.rate_at(11, 10) - 1e-4).abs() < 1e-12, "past the end it stays");
    }

    #[test]
    fn clipping_leaves_short_gradients_alone() {
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert!((clip(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
