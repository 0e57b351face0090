//! The cases on Burn, as one of its users would write them.

mod dense;
mod images;
mod sequences;
mod training;

use std::time::Duration;

use burn::backend::wgpu::WgpuDevice;
use burn::backend::{Autodiff, Flex, Vulkan};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

use crate::Failure;
use crate::data::{Data, Tensors};

/// The median time and the result.
type Found = (Duration, Vec<f32>);

/// On `flex`.
pub fn on_cpu(name: &str, data: &Data, seconds: f64) -> Result<Option<Found>, Failure> {
    run::<Autodiff<Flex>>(name, data, &Default::default(), seconds)
}

/// On the first Vulkan adapter that is a CPU.
pub fn on_vulkan(name: &str, data: &Data, seconds: f64) -> Result<Option<Found>, Failure> {
    run::<Autodiff<Vulkan>>(name, data, &WgpuDevice::Cpu, seconds)
}

fn run<A: AutodiffBackend>(
    name: &str,
    data: &Data,
    device: &A::Device,
    seconds: f64,
) -> Result<Option<Found>, Failure> {
    let cases = Cases::<A::InnerBackend> { data, device, seconds };
    let training = Cases::<A> { data, device, seconds };
    let found = match name {
        "A" => dense::scalar_add(&cases),
        "B256" | "B512" | "B1024" | "B2048" => dense::product(&cases),
        "C" => dense::chain(&cases),
        "D1" | "D64" => dense::mlp(&cases),
        "E-sgd" => training::mlp_by_sgd(&training),
        "E-adam" => training::mlp_by_adam(&training),
        "F" => images::convolutions(&cases),
        "G" => training::convolutions(&training),
        "H" => dense::encoder(&cases),
        "I-norm" => dense::norm(&cases),
        "I-softmax" => dense::softmax_of_rows(&cases),
        "K" => images::residual_block(&cases),
        "L" => sequences::lstm(&cases),
        "M" => sequences::embedding_bag(&cases),
        _ => return Ok(None),
    };
    found.map(Some)
}

/// What a case is fed and what its variables hold, for one backend.
struct Cases<'a, B: Backend> {
    data: &'a Data,
    device: &'a B::Device,
    seconds: f64,
}

impl<B: Backend> Cases<'_, B> {
    fn fed<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        tensor(&self.data.feeds, name, self.device)
    }

    /// What is fed as whole numbers.
    fn whole(&self, name: &str) -> TensorData {
        let (sizes, xs) = &self.data.feeds[name];
        TensorData::new(xs.iter().map(|&x| x as i32).collect(), sizes.clone())
    }

    fn weight<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        tensor(&self.data.weights, name, self.device)
    }

    fn parameter<const D: usize>(&self, name: &str) -> Param<Tensor<B, D>> {
        Param::from_tensor(self.weight(name))
    }

    fn linear(&self, layer: &str) -> Linear<B> {
        let weight = self.parameter(&format!("{layer}/weights"));
        Linear { weight, bias: Some(self.parameter(&format!("{layer}/bias"))) }
    }

    /// Times `f`, with its result brought to the host.
    fn time<const D: usize>(&self, mut f: impl FnMut() -> Tensor<B, D>) -> Result<Found, Failure> {
        crate::time(self.seconds, || {
            f().into_data().into_vec::<f32>().map_err(|e| format!("{e:?}").into())
        })
    }
}

fn tensor<B: Backend, const D: usize>(
    tensors: &Tensors,
    name: &str,
    device: &B::Device,
) -> Tensor<B, D> {
    let (sizes, xs) = &tensors[name];
    Tensor::from_data(TensorData::new(xs.clone(), sizes.clone()), device)
}
