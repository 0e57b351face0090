//! Recurrent layers and embeddings.

use burn::nn::{Embedding, Linear};
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;

use super::{Cases, Found};
use crate::Failure;

pub fn lstm<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let layers = [Lstm::of(cases, "lstm1"), Lstm::of(cases, "lstm2")];
    cases.time(|| {
        let (states, _) = layers[0].forward(cases.fed("x"));
        layers[1].forward(Tensor::stack(states, 0)).1
    })
}

pub fn embedding_bag<B: Backend>(cases: &Cases<'_, B>) -> Result<Found, Failure> {
    let table = Embedding { weight: cases.parameter("table") };
    let indices = cases.whole("indices");
    cases.time(|| {
        let indices = Tensor::from_data(indices.clone(), cases.device);
        table.forward(indices).sum_dim(1)
    })
}

/// Burn's own has a product for each gate of each step, of the inputs too.
struct Lstm<B: Backend> {
    driven: Linear<B>,
    recurrent: Tensor<B, 2>,
}

impl<B: Backend> Lstm<B> {
    fn of(cases: &Cases<'_, B>, layer: &str) -> Self {
        let recurrent = cases.weight(&format!("{layer}/recurrent"));
        Self { driven: cases.linear(&format!("{layer}/in")), recurrent }
    }

    /// All states, and the last.
    fn forward(&self, x: Tensor<B, 3>) -> (Vec<Tensor<B, 2>>, Tensor<B, 2>) {
        let [steps, batch, width] = x.dims();
        let driven = self.driven.forward(x.flatten::<2>(0, 1));
        let driven = driven.reshape([steps, batch, 4 * width]);
        let mut state = Tensor::zeros([batch, width], &driven.device());
        let (mut cell, mut states) = (state.clone(), Vec::with_capacity(steps));
        for now in driven.iter_dim(0) {
            let all = state.matmul(self.recurrent.clone()) + now.squeeze_dim(0);
            let gate = |i: usize| all.clone().narrow(1, i * width, width);
            cell = sigmoid(gate(1)) * cell + sigmoid(gate(0)) * gate(2).tanh();
            state = sigmoid(gate(3)) * cell.clone().tanh();
            states.push(state.clone());
        }
        (states, state)
    }
}
