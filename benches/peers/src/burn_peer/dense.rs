//! Elementwise work, products, dense layers and rows.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::{Cases, Found};
use crate::Failure;

pub fn scalar_add<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    cases.time(|| {
        let x = TensorData::new(cases.data.feeds["x"].1.clone(), [1]);
        Tensor::<B, 1>::from_data(x, cases.device) + 1.0
    })
}

pub fn product<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let w = cases.weight::<2>("w");
    cases.time(|| cases.fed::<2>("x").matmul(w.clone()).sum())
}

pub fn chain<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let v = cases.weight::<1>("v");
    cases.time(|| {
        let x = cases.fed::<1>("x");
        let y = (x.clone() * v.clone() + x) * 0.5 - v.clone();
        relu(y).tanh().sum()
    })
}

pub fn mlp<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let net = Mlp::of(cases);
    cases.time(|| softmax(net.logits(cases.fed("x")), 1))
}

pub fn encoder<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let block = Encoder::of(cases);
    cases.time(|| block.forward(cases.fed("x")))
}

pub fn norm<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let norm = layer_norm(cases, 1024);
    cases.time(|| norm.forward(cases.fed::<2>("x")))
}

pub fn softmax_of_rows<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    cases.time(|| softmax(cases.fed::<2>("x"), 1))
}

#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    hidden: Linear<B>,
    out: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub fn of(cases: &Cases<'_, B>) -> Self {
        Self { hidden: cases.linear("dense1"), out: cases.linear("dense2") }
    }

    pub fn logits(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.out.forward(relu(self.hidden.forward(x)))
    }
}

/// Scales of 1 and shifts of 0, as the cases have them.
fn layer_norm<B: Backend>(cases: &Cases<'_, B>, width: usize) -> LayerNorm<B> {
    LayerNormConfig::new(width).with_epsilon(1e-5).init(cases.device)
}

struct Encoder<B: Backend> {
    all: Linear<B>,
    attended: Linear<B>,
    hidden: Linear<B>,
    out: Linear<B>,
    norm: LayerNorm<B>,
}

impl<B: Backend> Encoder<B> {
    fn of(cases: &Cases<'_, B>) -> Self {
        Self {
            all: cases.linear("attention/in"),
            attended: cases.linear("attention/out"),
            hidden: cases.linear("hidden"),
            out: cases.linear("out"),
            norm: layer_norm(cases, 256),
        }
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let all = self.all.forward(x.clone()).reshape([128, 3, 8, 32]).permute([1, 2, 0, 3]);
        let part = |i: usize| all.clone().narrow(0, i, 1).reshape([8, 128, 32]);
        let scores = part(0).matmul(part(1).swap_dims(1, 2)) * (1.0 / 32f64.sqrt());
        let heads = softmax(scores, 2).matmul(part(2)).permute([1, 0, 2]).reshape([128, 256]);
        let x = self.norm.forward(x + self.attended.forward(heads));
        let out = self.out.forward(gelu(self.hidden.forward(x.clone())));
        self.norm.forward(x + out)
    }
}
