//! Training steps.

use burn::module::AutodiffModule;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use super::dense::Mlp;
use super::images::Classifier;
use super::{Cases, Found};
use crate::Failure;

pub fn mlp_by_sgd<A: AutodiffBackend>(cases: &Cases<'_, A>) -> Result<Found, Failure> {
    train(cases, Mlp::of(cases), Mlp::logits, SgdConfig::new().init(), 0.01)
}

pub fn mlp_by_adam<A: AutodiffBackend>(cases: &Cases<'_, A>) -> Result<Found, Failure> {
    let adam = AdamConfig::new().with_epsilon(1e-8).init();
    train(cases, Mlp::of(cases), Mlp::logits, adam, 1e-3)
}

pub fn convolutions<A: AutodiffBackend>(cases: &Cases<'_, A>) -> Result<Found, Failure> {
    train(cases, Classifier::of(cases), Classifier::logits, SgdConfig::new().init(), 0.01)
}

/// Times steps, each with the loss before it.
fn train<A: AutodiffBackend, M: AutodiffModule<A>, const D: usize>(
    cases: &Cases<'_, A>,
    mut net: M,
    logits: impl Fn(&M, Tensor<A, D>) -> Tensor<A, 2>,
    mut optimizer: impl Optimizer<M, A>,
    rate: f64,
) -> Result<Found, Failure> {
    let cross_entropy = CrossEntropyLossConfig::new().init(cases.device);
    let labels = cases.whole("y");
    cases.time(|| {
        let labels = Tensor::from_data(labels.clone(), cases.device);
        let loss = cross_entropy.forward(logits(&net, cases.fed("x")), labels);
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optimizer.step(rate, net.clone(), gradients);
        loss
    })
}
