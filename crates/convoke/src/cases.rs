//! The standard bench cases: one list for `convoke bench` and for criterion.
//!
//! Weights are resident, the input is fed from the host, and the result is read back to the host.

use convoke_graph_core::train::{Adam, Optimizer, Sgd};
use convoke_graph_core::{
    DType, Distribution, Feed, Graph, HostTensor, Init, Operation, Result, Shape, Tensor, dims,
    philox,
};
use convoke_session::{Devices, Explanation, RunMetadata, RunOptions, Session, SessionOptions};

use crate::models;

/// The names of all cases, in order. `A` to `M` select those that begin so.
pub const NAMES: [&str; 18] = [
    "A",
    "B256",
    "B512",
    "B1024",
    "B2048",
    "C",
    "D1",
    "D64",
    "E-sgd",
    "E-adam",
    "F",
    "G",
    "H",
    "I-norm",
    "I-softmax",
    "K",
    "L",
    "M",
];

/// A graph with what is fed and fetched.
pub struct Case {
    /// One of [`NAMES`].
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    graph: Graph,
    feeds: Vec<(Tensor, HostTensor)>,
    fetch: Tensor,
    step: Option<Operation>,
}

/// A case that is ready to run on some devices.
pub struct Ready {
    case: Case,
    session: Session,
}

impl Case {
    /// The case with this name.
    ///
    /// # Errors
    /// An unknown name, or no memory for its inputs.
    pub fn new(name: &str) -> Result<Self> {
        Self::reduced(name, 1)
    }

    /// The case with this name, with its batch, length, channels or matrices `by` times smaller: for small
    /// devices. The smallest size is 1.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn reduced(name: &str, by: usize) -> Result<Self> {
        let of = |n: usize| (n / by.max(1)).max(1);
        match name {
            "A" => scalar_add(),
            "B256" => matmul("B256", of(256)),
            "B512" => matmul("B512", of(512)),
            "B1024" => matmul("B1024", of(1024)),
            "B2048" => matmul("B2048", of(2048)),
            "C" => chain(of(4 << 20)),
            "D1" => mlp("D1", 1, None),
            "D64" => mlp("D64", of(64), None),
            "E-sgd" => mlp("E-sgd", of(64), Some(&Sgd::new(0.01))),
            "E-adam" => mlp("E-adam", of(64), Some(&Adam::new(1e-3))),
            "F" => convolutions("F", of(32), None),
            "G" => convolutions("G", of(32), Some(&Sgd::new(0.01))),
            "H" => encoder(of(128)),
            "I-norm" => rows("I-norm", "layer norm of 1024x1024", of(1024), |x| {
                x.layer_norm(1.0, 0.0, 1e-5)
            }),
            "I-softmax" => rows("I-softmax", "softmax of 1024x1024", of(1024), |x| x.softmax(-1)),
            "K" => residual_block(of(64)),
            "L" => lstm(of(64)),
            "M" => embedding_bag(of(64), of(100_000)),
            _ => Err(convoke_graph_core::Error::invalid(format!(
                "no case {name:?}; there are {}",
                NAMES.join(", ")
            ))),
        }
    }

    /// What is fed, by the names of the placeholders.
    pub fn feeds(&self) -> impl Iterator<Item = (String, &HostTensor)> {
        self.feeds.iter().map(|(x, value)| (x.operation().name(), value))
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What is fetched: the sum or the loss.
    pub fn fetch(&self) -> &Tensor {
        &self.fetch
    }

    /// The training step, if the case trains.
    pub fn step(&self) -> Option<&Operation> {
        self.step.as_ref()
    }

    /// Makes a session on `devices` and initialises the variables.
    ///
    /// # Errors
    /// What the session refuses.
    pub fn ready(self, devices: &Devices, options: SessionOptions) -> Result<Ready> {
        let session = Session::with_options(&self.graph, devices, options)?;
        session.run(&[], self.graph.initializers())?;
        Ok(Ready { case: self, session })
    }
}

impl Ready {
    /// Runs the case once, and gives its value: the sum or the loss.
    ///
    /// # Errors
    /// What the run refuses.
    pub fn run(&self) -> Result<(HostTensor, RunMetadata)> {
        self.run_with(RunOptions::default())
    }

    /// As [`Self::run`], with options.
    ///
    /// # Errors
    /// What the run refuses.
    pub fn run_with(&self, options: RunOptions) -> Result<(HostTensor, RunMetadata)> {
        let feeds: Vec<Feed<'_>> = self.case.feeds.iter().map(|(t, value)| t.feed(value)).collect();
        let fetch = (&self.case.fetch, &self.case.step);
        let ((value, _), metadata) = self.session.run_with(&feeds, fetch, options)?;
        Ok((value, metadata))
    }

    /// Where the case runs, and why.
    ///
    /// # Errors
    /// What the session refuses.
    pub fn explain(&self) -> Result<Explanation> {
        let feeds: Vec<Feed<'_>> = self.case.feeds.iter().map(|(t, value)| t.feed(value)).collect();
        self.session.explain(&feeds, (&self.case.fetch, &self.case.step))
    }

    /// The session that it runs in.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The case.
    pub fn case(&self) -> &Case {
        &self.case
    }
}

/// Uniform elements in `[-1, 1)`, the same on every machine.
fn noise(sizes: &[usize], key: u64) -> Result<HostTensor> {
    let shape = Shape::new(sizes)?;
    let firsts = (0..shape.len() as u64).step_by(philox::LANES);
    let samples = firsts.flat_map(|first| philox::samples(Distribution::Uniform, key, first, 0));
    let elements = samples.map(|x| 2.0 * x as f32 - 1.0).take(shape.len());
    Ok(HostTensor::with_shape(shape, elements.collect())?)
}

fn labels(n: usize, classes: u32) -> HostTensor {
    let of = |i: usize| (philox::philox(3, [i as u32, 0, 0, 0])[0] % classes) as i32;
    (0..n).map(of).collect::<Vec<i32>>().into()
}

fn scalar_add() -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![]);
    let fetch = &x + 1.0;
    let feeds = vec![(x, HostTensor::from(2.0f32))];
    Ok(Case { name: "A", about: "scalar add", graph: g, feeds, fetch, step: None })
}

fn matmul(name: &'static str, n: usize) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![n, n]);
    let w = g.variable("w", Init::Value(noise(&[n, n], 2)?), DType::F32, [n, n]);
    let fetch = x.matmul(&w).sum(());
    let feeds = vec![(x, noise(&[n, n], 1)?)];
    Ok(Case { name, about: "matmul with a sum", graph: g, feeds, fetch, step: None })
}

fn chain(n: usize) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![n]);
    let v = g.variable("v", Init::Value(noise(&[n], 2)?), DType::F32, [n]);
    let fetch = ((&x * &v + &x) * 0.5 - &v).relu().tanh().sum(());
    let feeds = vec![(x, noise(&[n], 1)?)];
    let about = "sum(tanh(relu((x*v+x)*0.5-v))) of 4 Mi elements";
    Ok(Case { name: "C", about, graph: g, feeds, fetch, step: None })
}

fn mlp(name: &'static str, batch: usize, optimizer: Option<&dyn Optimizer>) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![batch, 784]);
    let logits = models::mlp(&g, &x, &[784, 128, 10], 1);
    let mut feeds = vec![(x, noise(&[batch, 784], 1)?)];
    let Some(optimizer) = optimizer else {
        let fetch = logits.softmax(-1);
        let about = "MLP 784-128-10 with softmax";
        return Ok(Case { name, about, graph: g, feeds, fetch, step: None });
    };
    let y = g.placeholder("y", DType::I32, dims![batch]);
    let fetch = logits.cross_entropy(&y).mean(());
    let step = Some(optimizer.minimize(&fetch));
    feeds.push((y, labels(batch, 10)));
    let about = "a training step of MLP 784-128-10, batch 64";
    Ok(Case { name, about, graph: g, feeds, fetch, step })
}

fn convolutions(
    name: &'static str,
    batch: usize,
    optimizer: Option<&dyn Optimizer>,
) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![batch, 1, 28, 28]);
    let y = models::convolutions(&g, &x, [1, 32, 64], 1);
    let mut feeds = vec![(x, noise(&[batch, 1, 28, 28], 1)?)];
    let Some(optimizer) = optimizer else {
        let about = "conv 5x5x32, relu, max pool 2, conv 5x5x64, relu on 32x1x28x28";
        return Ok(Case { name, about, graph: g, feeds, fetch: y, step: None });
    };
    let labels_fed = g.placeholder("y", DType::I32, dims![batch]);
    let logits = models::mlp(&g, &y.reshape(&[batch as i64, 64 * 14 * 14]), &[64 * 14 * 14, 10], 2);
    let fetch = logits.cross_entropy(&labels_fed).mean(());
    let step = Some(optimizer.minimize(&fetch));
    feeds.push((labels_fed, labels(batch, 10)));
    let about = "a training step of F with a dense layer";
    Ok(Case { name, about, graph: g, feeds, fetch, step })
}

fn encoder(length: usize) -> Result<Case> {
    let sizes = models::Encoder { length, width: 256, heads: 8, inner: 1024 };
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![sizes.length, sizes.width]);
    let fetch = models::encoder(&g, &x, sizes, 1);
    let feeds = vec![(x, noise(&[sizes.length, sizes.width], 1)?)];
    let about = "a transformer's encoder block: length 128, width 256, 8 heads, 1024 inside";
    Ok(Case { name: "H", about, graph: g, feeds, fetch, step: None })
}

fn rows(
    name: &'static str,
    about: &'static str,
    n: usize,
    f: fn(&Tensor) -> Tensor,
) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![n, 1024]);
    let fetch = f(&x);
    let feeds = vec![(x, noise(&[n, 1024], 1)?)];
    Ok(Case { name, about, graph: g, feeds, fetch, step: None })
}

fn residual_block(channels: usize) -> Result<Case> {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![1, channels, 56, 56]);
    let fetch = models::residual_block(&g, &x, channels, 1);
    let feeds = vec![(x, noise(&[1, channels, 56, 56], 1)?)];
    let about = "a residual block of two convolutions 3x3x64 on 1x64x56x56";
    Ok(Case { name: "K", about, graph: g, feeds, fetch, step: None })
}

fn lstm(steps: usize) -> Result<Case> {
    let sizes = [steps, 16, 128];
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![steps, 16, 128]);
    let fetch = models::lstm(&g, &x, sizes, 2, 1);
    let feeds = vec![(x, noise(&sizes, 1)?)];
    let about = "an LSTM of 2 layers of 128 over 64 steps, batch 16";
    Ok(Case { name: "L", about, graph: g, feeds, fetch, step: None })
}

fn embedding_bag(bags: usize, words: usize) -> Result<Case> {
    let g = Graph::new();
    let indices = g.placeholder("indices", DType::I32, dims![bags, 32]);
    let table = Init::Value(noise(&[words, 64], 2)?);
    let table = g.variable("table", table, DType::F32, [words, 64]);
    let fetch = table.value().gather(&indices, 0).sum(1);
    let fed = labels(bags * 32, words as u32).reshaped(Shape::new(&[bags, 32])?)?;
    let feeds = vec![(indices, fed)];
    let about = "sums of 32 rows each of 100,000x64, for 64 bags";
    Ok(Case { name: "M", about, graph: g, feeds, fetch, step: None })
}
