//! The networks of the command and of the standard bench cases.

use convoke_graph_core::train::{Adam, Momentum, Optimizer, Sgd};
use convoke_graph_core::{Conv2d, DType, Graph, Init, Operation, Padding, Pool, Tensor, dims};

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
        x = g.scope(&format!("dense{}", i + 1), || {
            let w = g.variable("weights", Init::glorot(seed), DType::F32, pair);
            let b = g.variable("bias", Init::Zeros, DType::F32, &pair[1..]);
            x.matmul(&w) + &b
        });
        if i + 2 < sizes.len() {
            x = x.relu();
        }
    }
    x
}
