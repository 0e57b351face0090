//! The networks of the command and of the standard bench cases.

use convoke_graph_core::train::{Adam, Momentum, Optimizer, Sgd};
use convoke_graph_core::{
    BatchNorm, Conv2d, DType, Graph, Init, Operation, Padding, Pool, Tensor, dims,
};

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Two dense layers of 128 and of one unit for each class, with relu between.
    Mlp,
    /// Two convolutions of 5x5 with relu, the first with pooling, pooling again, then two dense layers.
    Cnn,
}

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizerKind {
    /// Stochastic gradient descent.
    Sgd,
    /// With momentum 0.9.
    Momentum,
    /// Adam.
    Adam,
}

impl OptimizerKind {
    /// A learning rate that suits the small networks here.
    pub fn default_rate(self) -> f64 {
        match self {
            Self::Sgd => 0.1,
            Self::Momentum => 0.05,
            Self::Adam => 3e-3,
        }
    }

    /// One step down the gradient of `loss`.
    #[track_caller]
    pub fn minimize(self, loss: &Tensor, rate: f64) -> Operation {
        match self {
            Self::Sgd => Sgd::new(rate).minimize(loss),
            Self::Momentum => Momentum::new(rate, 0.9).minimize(loss),
            Self::Adam => Adam::new(rate).minimize(loss),
        }
    }
}

/// A classifier with its training step.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// The graph.
    pub graph: Graph,
    /// Images in `[0, 1]`: `[batch, height * width]`, f32.
    pub images: Tensor,
    /// Labels: `[batch]`, i32.
    pub labels: Tensor,
    /// Unnormalised scores: `[batch, classes]`.
    pub logits: Tensor,
    /// The mean cross entropy of a batch.
    pub loss: Tensor,
    /// The share of a batch that is classified right.
    pub accuracy: Tensor,
    /// How many of a batch are classified right, as i32.
    pub correct: Tensor,
    /// One step of the optimizer.
    pub step: Operation,
}

impl Classifier {
    /// Builds `model` for images of `[height, width]` with `seed` for its variables.
    pub fn new(
        model: Model,
        [height, width]: [usize; 2],
        classes: usize,
        optimizer: OptimizerKind,
        rate: f64,
        seed: u64,
    ) -> Self {
        let g = Graph::with_seed(seed);
        let images = g.placeholder("images", DType::F32, dims![None, height * width]);
        let labels = g.placeholder("labels", DType::I32, dims![None]);
        let logits = match model {
            Model::Mlp => mlp(&g, &images, &[height * width, 128, classes], seed),
            Model::Cnn => cnn(&g, &images, [height, width], classes, seed),
        };
        let loss = logits.cross_entropy(&labels).mean(());
        let hits = logits.argmax(-1).equal(&labels);
        let accuracy = hits.cast(DType::F32).mean(());
        let correct = hits.cast(DType::I32).sum(());
        let step = optimizer.minimize(&loss, rate);
        Self { graph: g, images, labels, logits, loss, accuracy, correct, step }
    }
}

/// The convolutions of [`convolutions`] with 16 and 32 channels, pooled again, then dense layers of 64 and
/// of one unit for each class.
#[track_caller]
fn cnn(
    g: &Graph,
    images: &Tensor,
    [height, width]: [usize; 2],
    classes: usize,
    seed: u64,
) -> Tensor {
    let x = images.reshape(&[-1, 1, height as i64, width as i64]);
    let x = convolutions(g, &x, [1, 16, 32], seed);
    let x = x.max_pool(Pool { window: [2, 2], stride: [2, 2], ..Pool::default() });
    let flat = 32 * (height / 4) * (width / 4);
    mlp(g, &x.reshape(&[-1, flat as i64]), &[flat, 64, classes], seed)
}

/// Convolution 5x5 SAME, relu, max pooling by 2, convolution 5x5 SAME, relu.
///
/// # Shapes
/// `x [n, channels[0], h, w]` → `[n, channels[2], h / 2, w / 2]`.
#[track_caller]
pub fn convolutions(g: &Graph, x: &Tensor, channels: [usize; 3], seed: u64) -> Tensor {
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let layer = |x: &Tensor, i: usize| {
        g.scope(&format!("conv{}", i + 1), || {
            let (from, to) = (channels[i], channels[i + 1]);
            // Fans of filters are counted in the order in x out; here the filters are out x in.
            let limit = (6.0 / (25.0 * (from + to) as f64)).sqrt();
            let init = Init::Uniform { low: -limit, high: limit, seed };
            let filters = g.variable("filters", init, DType::F32, [to, from, 5, 5]);
            let bias = g.variable("bias", Init::Zeros, DType::F32, [to, 1, 1]);
            (x.conv2d(&filters, conv) + &bias).relu()
        })
    };
    let x = layer(x, 0).max_pool(Pool { window: [2, 2], stride: [2, 2], ..Pool::default() });
    layer(&x, 1)
}

/// Dense layers of these sizes with relu between them.
#[track_caller]
pub fn mlp(g: &Graph, x: &Tensor, sizes: &[usize], seed: u64) -> Tensor {
    let mut x = x.clone();
    for (i, pair) in sizes.windows(2).enumerate() {
        x = g.scope(&format!("dense{}", i + 1), || dense(g, &x, [pair[0], pair[1]], seed));
        if i + 2 < sizes.len() {
            x = x.relu();
        }
    }
    x
}

/// A dense layer: weights from Glorot's distribution, bias from zeros.
#[track_caller]
fn dense(g: &Graph, x: &Tensor, [from, to]: [usize; 2], seed: u64) -> Tensor {
    let w = g.variable("weights", Init::glorot(seed), DType::F32, [from, to]);
    let b = g.variable("bias", Init::Zeros, DType::F32, [to]);
    x.matmul(&w) + &b
}

/// Layer norm with a scale and a shift of its own.
#[track_caller]
fn norm(g: &Graph, x: &Tensor, width: usize) -> Tensor {
    let scale = g.variable("scale", Init::Constant(1.0), DType::F32, [width]);
    let shift = g.variable("shift", Init::Zeros, DType::F32, [width]);
    x.layer_norm(&scale, &shift, 1e-5)
}

/// The sizes of a transformer's [`encoder`] block.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    /// The length of the sequence.
    pub length: usize,
    /// Features of a place.
    pub width: usize,
    /// Heads of attention; they divide `width`.
    pub heads: usize,
    /// Features of the hidden layer.
    pub inner: usize,
}

/// A transformer's encoder block, norms after the sums: attention with one product for queries, keys and
/// values, then two dense layers with gelu. Vaswani et al., 2017.
///
/// # Shapes
/// `x [length, width]` → the same.
#[track_caller]
pub fn encoder(g: &Graph, x: &Tensor, sizes: Encoder, seed: u64) -> Tensor {
    let Encoder { length, width, heads, inner } = sizes;
    let attended = g.scope("attention", || {
        let own = [length as i64, 3, heads as i64, (width / heads.max(1)) as i64];
        let all = g.scope("in", || dense(g, x, [width, 3 * width], seed)).reshape(&own);
        // [3, heads, length, features of a head]
        let all = all.permute(&[1, 2, 0, 3]);
        let part = |i| all.slice(&[i, 0, 0, 0], &[Some(1), None, None, None]).squeeze(&[0]);
        let scale = ((width / heads.max(1)) as f64).sqrt().recip();
        let weights = (part(0).matmul(part(1).permute(&[0, 2, 1])) * scale).softmax(-1);
        let heads = weights.matmul(part(2)).permute(&[1, 0, 2]);
        let heads = heads.reshape(&[length as i64, width as i64]);
        g.scope("out", || dense(g, &heads, [width, width], seed))
    });
    let x = g.scope("norm1", || norm(g, &(x + attended), width));
    let hidden = g.scope("hidden", || dense(g, &x, [width, inner], seed)).gelu();
    let out = g.scope("out", || dense(g, &hidden, [inner, width], seed));
    g.scope("norm2", || norm(g, &(&x + out), width))
}

/// Two convolutions 3x3 with batch normalisation as in inference, the input added, relu. He et al., 2015.
///
/// # Shapes
/// `x [n, channels, h, w]` → the same.
#[track_caller]
pub fn residual_block(g: &Graph, x: &Tensor, channels: usize, seed: u64) -> Tensor {
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let layer = |x: &Tensor, name: &str| {
        g.scope(name, || {
            let limit = (6.0 / (18 * channels.max(1)) as f64).sqrt();
            let init = Init::Uniform { low: -limit, high: limit, seed };
            let filters = g.variable("filters", init, DType::F32, [channels, channels, 3, 3]);
            let of = |name, start| g.variable(name, Init::Constant(start), DType::F32, [channels]);
            let (scale, shift) = (of("scale", 1.0), of("shift", 0.1));
            let (mean, variance) = (of("mean", 0.05), of("variance", 0.9));
            x.conv2d(&filters, conv).batch_norm(
                [scale.value(), shift.value()],
                [mean.value(), variance.value()],
                BatchNorm::default(),
            )
        })
    };
    let inside = layer(x, "conv1").relu();
    (layer(&inside, "conv2") + x).relu()
}

/// Layers of an LSTM, unrolled; gates in the order input, forget, cell, output, no peepholes. Hochreiter
/// and Schmidhuber, 1997.
///
/// # Shapes
/// `x [steps, batch, width]` → the last state of the last layer, `[batch, width]`.
#[track_caller]
pub fn lstm(
    g: &Graph,
    x: &Tensor,
    [steps, batch, width]: [usize; 3],
    layers: usize,
    seed: u64,
) -> Tensor {
    let mut inputs = x.clone();
    let zeros = g.constant(0.0f32).broadcast_to(&[batch as i64, width as i64]);
    let mut last = zeros.clone();
    for layer in 0..layers {
        let states = g.scope(&format!("lstm{}", layer + 1), || {
            // What comes from the inputs is one product for all steps.
            let flat = inputs.reshape(&[(steps * batch) as i64, width as i64]);
            let driven = g.scope("in", || dense(g, &flat, [width, 4 * width], seed));
            let driven = driven.reshape(&[steps as i64, batch as i64, 4 * width as i64]);
            let w = g.variable("recurrent", Init::glorot(seed + 1), DType::F32, [width, 4 * width]);
            let (mut state, mut cell) = (zeros.clone(), zeros.clone());
            let mut states = Vec::with_capacity(steps);
            for step in 0..steps {
                let now = driven.slice(&[step, 0, 0], &[Some(1), None, None]).squeeze(&[0]);
                let all = state.matmul(&w) + now;
                let gate = |i: usize| all.slice(&[0, i * width], &[None, Some(width)]);
                cell = gate(1).sigmoid() * &cell + gate(0).sigmoid() * gate(2).tanh();
                state = gate(3).sigmoid() * cell.tanh();
                states.push(state.clone());
            }
            states
        });
        let all: Vec<&Tensor> = states.iter().collect();
        inputs = g.stack(&all, 0);
        last = states.last().cloned().unwrap_or(last);
    }
    last
}
