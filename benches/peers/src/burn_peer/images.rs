//! Convolutions.

use burn::module::{Module, Param, RunningState};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;

use super::{Cases, Found};
use crate::Failure;

pub fn convolutions<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let net = Convolutions::of(cases);
    cases.time(|| net.forward(cases.fed("x")))
}

pub fn residual_block<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let block =
        ResidualBlock { inner: Normed::of(cases, "conv1"), outer: Normed::of(cases, "conv2") };
    cases.time(|| block.forward(cases.fed("x")))
}

/// A convolution with padding SAME, and without a bias.
fn conv<B: Backend>(cases: &Cases<'_, B>, layer: &str) -> Conv2d<B> {
    let weight = cases.parameter(&format!("{layer}/filters"));
    let [to, from, height, width] = weight.dims();
    let config = Conv2dConfig::new([from, to], [height, width]);
    let config = config.with_padding(PaddingConfig2d::Same).with_bias(false);
    Conv2d { weight, ..config.init(cases.device) }
}

#[derive(Module, Debug)]
pub struct Convolutions<B: Backend> {
    first: Conv2d<B>,
    pool: MaxPool2d,
    second: Conv2d<B>,
}

impl<B: Backend> Convolutions<B> {
    fn of(cases: &Cases<'_, B>) -> Self {
        let layer = |name: &str| {
            let bias = cases.weight::<3>(&format!("{name}/bias")).flatten(0, 2);
            Conv2d { bias: Some(Param::from_tensor(bias)), ..conv(cases, name) }
        };
        let pool = MaxPool2dConfig::new([2, 2]).init();
        Self { first: layer("conv1"), pool, second: layer("conv2") }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let x = self.pool.forward(relu(self.first.forward(x)));
        relu(self.second.forward(x))
    }
}

/// Convolutions with a dense layer.
#[derive(Module, Debug)]
pub struct Classifier<B: Backend> {
    convolutions: Convolutions<B>,
    out: Linear<B>,
}

impl<B: Backend> Classifier<B> {
    pub fn of(cases: &Cases<'_, B>) -> Self {
        Self { convolutions: Convolutions::of(cases), out: cases.linear("dense1") }
    }

    pub fn logits(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        self.out.forward(self.convolutions.forward(x).flatten(1, 3))
    }
}

/// A convolution with batch normalisation.
struct Normed<B: Backend> {
    conv: Conv2d<B>,
    norm: BatchNorm<B>,
}

impl<B: Backend> Normed<B> {
    fn of(cases: &Cases<'_, B>, layer: &str) -> Self {
        let part = |name: &str| cases.weight(&format!("{layer}/{name}"));
        let norm = BatchNorm {
            gamma: Param::from_tensor(part("scale")),
            beta: Param::from_tensor(part("shift")),
            running_mean: RunningState::new(part("mean")),
            running_var: RunningState::new(part("variance")),
            ..BatchNormConfig::new(64).with_epsilon(1e-3).init(cases.device)
        };
        Self { conv: conv(cases, layer), norm }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.norm.forward(self.conv.forward(x))
    }
}

struct ResidualBlock<B: Backend> {
    inner: Normed<B>,
    outer: Normed<B>,
}

impl<B: Backend> ResidualBlock<B> {
    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let inside = relu(self.inner.forward(x.clone()));
        relu(self.outer.forward(inside) + x)
    }
}
