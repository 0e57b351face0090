//! Ten graphs on four modelled machines: what the automatic choice takes, beside each device by itself and the
//! best there is. The table is in `docs/placement-figures.md`.

use std::fmt::Write as _;

use expect_test::expect_file;

use super::choice::brute_force;
use super::*;
use crate::choose::all_on;
use crate::legal::Classes;
use crate::{price, solve};

/// A tensor of a [`Net`].
#[derive(Clone, Copy)]
struct T(usize);

/// A graph that grows from its inputs.
struct Net(Problem);

impl Net {
    fn new(machine: &Machine) -> Self {
        Self(machine.problem())
    }

    fn tensor(&mut self, name: &str, bytes: u64, producer: Producer) -> T {
        self.0.tensors.push(edge(name, bytes, producer, &[]));
        T(self.0.tensors.len() - 1)
    }

    /// A feed of so many numbers.
    fn feed(&mut self, name: &str, n: u64) -> T {
        self.tensor(name, 4 * n, Producer::Host)
    }

    fn variable(&mut self, name: &str, n: u64) -> T {
        let item = Item { is_resource: true, ..item(name, 0) };
        self.0.items.push(item);
        self.tensor(name, 4 * n, Producer::Item(self.0.items.len() - 1))
    }

    /// A kernel that makes `n` numbers from all of what it reads.
    fn op(&mut self, name: &str, family: Family, flops: u64, inputs: &[T], n: u64) -> T {
        let read: u64 = inputs.iter().map(|&T(t)| self.0.tensors[t].bytes).sum();
        self.reading(name, family, flops, read, inputs, n)
    }

    /// A kernel that reads so many bytes of its inputs.
    fn reading(
        &mut self,
        name: &str,
        family: Family,
        flops: u64,
        read: u64,
        inputs: &[T],
        n: u64,
    ) -> T {
        let at = self.0.items.len();
        let work = Work::new(family, flops, read + 4 * n);
        self.0.items.push(Item { work, ..item(name, 0) });
        for &T(input) in inputs {
            self.0.tensors[input].consumers.push(at);
        }
        self.tensor(name, 4 * n, Producer::Item(at))
    }

    /// Elementwise work of so many operations for each of `n` elements.
    fn map(&mut self, name: &str, ops: u64, inputs: &[T], n: u64) -> T {
        self.op(name, Family::Elementwise, ops * n, inputs, n)
    }

    /// `[m, k]` times a variable of `[k, n]`, with bias and activation.
    fn dense(&mut self, name: &str, x: T, [m, k, n]: [u64; 3]) -> T {
        let w = self.variable(&format!("{name}/w"), k * n);
        self.op(name, Family::Contract, 2 * m * k * n, &[x, w], m * n)
    }

    /// What only the host has a kernel for.
    fn on_host(&mut self, T(tensor): T) {
        if let Producer::Item(item) = self.0.tensors[tensor].producer {
            let refuse = |d: usize| (d != 0).then(|| "unsupported: strings".to_owned());
            self.0.items[item].refusals = (0..self.0.devices.len()).map(refuse).collect();
        }
    }

    /// Work of so many microseconds that only the host has a kernel for.
    fn host_op(&mut self, name: &str, us: u64, inputs: &[T], n: u64) -> T {
        // The modelled CPU does 200,000 operations in a microsecond.
        let made = self.reading(name, Family::Other, us * 200_000, 0, inputs, n);
        self.on_host(made);
        made
    }

    fn fetch(mut self, outputs: &[T]) -> Problem {
        for &T(output) in outputs {
            self.0.tensors[output].host_reads = true;
        }
        self.0
    }
}

/// A GPU beside the common CPU.
struct Machine {
    name: &'static str,
    kind: DeviceKind,
    gflops: u64,
    gigabytes: u64,
    launch_us: u64,
    submission_us: u64,
    link_gigabytes: u64,
    link_us: u64,
}

const MACHINES: [Machine; 3] = [
    Machine {
        name: "discrete",
        kind: DeviceKind::DiscreteGpu,
        gflops: 10_000,
        gigabytes: 400,
        launch_us: 8,
        submission_us: 40,
        link_gigabytes: 12,
        link_us: 15,
    },
    Machine {
        name: "integrated",
        kind: DeviceKind::IntegratedGpu,
        gflops: 1500,
        gigabytes: 50,
        launch_us: 8,
        submission_us: 40,
        link_gigabytes: 20,
        link_us: 10,
    },
    Machine {
        name: "slow",
        kind: DeviceKind::DiscreteGpu,
        gflops: 300,
        gigabytes: 20,
        launch_us: 20,
        submission_us: 100,
        link_gigabytes: 6,
        link_us: 20,
    },
];

const GIGA: u64 = 1_000_000_000;

impl Machine {
    fn problem(&self) -> Problem {
        // The CPU: 0.2 TFLOP/s, 20 GB/s, 0.2 us for a launch.
        let mut cpu = device(DeviceKind::Cpu, 0, 0, 0, 200);
        (cpu.launch, cpu.memory) = (US / 5, Curve::rate(20 * GIGA));
        let mut gpu = device(self.kind, 0, self.launch_us, self.submission_us, self.gflops);
        gpu.memory = Curve::rate(self.gigabytes * GIGA);
        let mut problem = Problem::new(vec![cpu, gpu]);
        let (latency, bytes_per_second) = (self.link_us * US, self.link_gigabytes * GIGA);
        problem.links.fill(Link { latency, bytes_per_second });
        problem
    }
}

/// A training step of 784-1024-1024-10 with 256 images.
fn mlp(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let x = net.feed("images", 256 * 784);
    let labels = net.feed("labels", 256);
    let a = net.dense("fc1", x, [256, 784, 1024]);
    let b = net.dense("fc2", a, [256, 1024, 1024]);
    let c = net.dense("fc3", b, [256, 1024, 10]);
    let loss = net.op("loss", Family::Reduce, 256 * 40, &[c, labels], 2560);
    let db = net.op("fc2/back", Family::Contract, 4 * 256 * 1024 * 10, &[loss, b], 256 * 1024);
    let da = net.op("fc1/back", Family::Contract, 4 * 256 * 1024 * 1024, &[db, a], 256 * 1024);
    let step = net.op("step", Family::Contract, 2 * 256 * 784 * 1024, &[da, x], 784 * 1024);
    net.0.tensors[step.0].consumers.push(0);
    net.fetch(&[loss])
}

/// Two convolutions with pooling and two dense layers, 128 images of 32x32x3.
fn cnn(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let x = net.feed("images", 128 * 32 * 32 * 3);
    let filter = net.variable("conv1/w", 3 * 3 * 3 * 32);
    let flops = 2 * 128 * 32 * 32 * 27 * 32;
    let a = net.op("conv1", Family::Contract, flops, &[x, filter], 128 * 32 * 32 * 32);
    let a = net.op("pool1", Family::Reduce, 128 * 32 * 32 * 32, &[a], 128 * 16 * 16 * 32);
    let filter = net.variable("conv2/w", 3 * 3 * 32 * 64);
    let flops = 2 * 128 * 16 * 16 * 288 * 64;
    let b = net.op("conv2", Family::Contract, flops, &[a, filter], 128 * 16 * 16 * 64);
    let b = net.op("pool2", Family::Reduce, 128 * 16 * 16 * 64, &[b], 128 * 8 * 8 * 64);
    let c = net.dense("fc1", b, [128, 4096, 256]);
    let d = net.dense("fc2", c, [128, 256, 10]);
    let out = net.op("softmax", Family::Reduce, 128 * 10 * 20, &[d], 1280);
    net.fetch(&[out])
}

/// An encoder block: sequence 128, width 256, 8 heads, 1024 inner.
fn transformer(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let (s, w) = (128, 256);
    let x = net.feed("x", s * w);
    let normed = net.op("norm1", Family::Reduce, 8 * s * w, &[x], s * w);
    let qkv = net.dense("qkv", normed, [s, w, 3 * w]);
    let scores = net.op("scores", Family::Contract, 2 * s * s * w, &[qkv], 8 * s * s);
    let weights = net.op("softmax", Family::Reduce, 20 * 8 * s * s, &[scores], 8 * s * s);
    let mixed = net.op("mix", Family::Contract, 2 * s * s * w, &[weights, qkv], s * w);
    let out = net.dense("out", mixed, [s, w, w]);
    let normed = net.op("norm2", Family::Reduce, 8 * s * w, &[out, x], s * w);
    let inner = net.dense("inner", normed, [s, w, 4 * w]);
    let last = net.dense("outer", inner, [s, 4 * w, w]);
    net.fetch(&[last])
}

/// Rows of a table of 4,000,000x64 that the host keeps, then a network.
fn recommender(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let ids = net.feed("ids", 4096 * 26);
    let table = net.variable("table", 4_000_000 * 64);
    net.on_host(table);
    let n = 4096 * 26 * 64;
    let rows = net.reading("rows", Family::Move, 0, 4 * n, &[ids, table], n);
    let bags = net.op("bags", Family::Reduce, n, &[rows], 4096 * 64);
    let dense = net.feed("dense", 4096 * 13);
    let bottom = net.dense("bottom", dense, [4096, 13, 512]);
    let bottom = net.dense("bottom2", bottom, [4096, 512, 64]);
    let crossed =
        net.op("cross", Family::Contract, 2 * 4096 * 64 * 27, &[bags, bottom], 4096 * 415);
    let top = net.dense("top", crossed, [4096, 415, 1024]);
    let top = net.dense("top2", top, [4096, 1024, 512]);
    let out = net.dense("top3", top, [4096, 512, 1]);
    net.fetch(&[out])
}

/// Strings become numbers on the host, then a network.
fn strings(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let lines = net.feed("lines", 64 * 512);
    let words = net.host_op("split", 300, &[lines], 64 * 128);
    let ids = net.host_op("look_up", 200, &[words], 64 * 128);
    let table = net.variable("embedding", 30_000 * 128);
    let n = 64 * 128 * 128;
    let x = net.reading("gather", Family::Move, 0, 4 * n, &[ids, table], n);
    let a = net.dense("fc1", x, [64 * 128, 128, 1024]);
    let b = net.dense("fc2", a, [64 * 128, 1024, 256]);
    let mean = net.op("mean", Family::Reduce, 64 * 128 * 256, &[b], 64 * 256);
    let out = net.dense("fc3", mean, [64, 256, 20]);
    let names = net.host_op("names", 50, &[out], 64);
    net.fetch(&[names])
}

/// Eight steps of a recurrent cell of width 16.
fn tiny_rnn(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let x = net.feed("x", 8 * 16);
    let w = net.variable("w", 32 * 16);
    let mut state = net.feed("start", 16);
    for step in 0..8 {
        let name = format!("step_{step}");
        state = net.op(&name, Family::Contract, 2 * 32 * 16, &[x, w, state], 16);
    }
    net.fetch(&[state])
}

/// Six turns of a loop with a large body, of which the host sees a condition each time.
fn loop_of_six(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let n = 512;
    let a = net.variable("a", n * n);
    let mut x = net.feed("x", n * n);
    for turn in 0..6 {
        let body = format!("body_{turn}");
        x = net.op(&body, Family::Contract, 2 * n * n * n, &[a, x], n * n);
        let rest = net.op(&format!("rest_{turn}"), Family::Reduce, n * n, &[x], 1);
        let seen = net.host_op(&format!("seen_{turn}"), 1, &[rest], 1);
        x = net.map(&format!("next_{turn}"), 1, &[x, seen], n * n);
    }
    net.fetch(&[x])
}

/// A network, and the host picks the best of what it says.
fn top_k(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let x = net.feed("x", 256 * 512);
    let a = net.dense("fc1", x, [256, 512, 2048]);
    let b = net.dense("fc2", a, [256, 2048, 2048]);
    let c = net.dense("fc3", b, [256, 2048, 1000]);
    let best = net.host_op("top_k", 150, &[c], 256 * 5);
    let out = net.map("scale", 2, &[best], 256 * 5);
    net.fetch(&[out])
}

/// A large tower and a small one with a host stage, joined at the end.
fn two_towers(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let image = net.feed("image", 64 * 2048);
    let a = net.dense("image1", image, [64, 2048, 4096]);
    let a = net.dense("image2", a, [64, 4096, 2048]);
    let a = net.dense("image3", a, [64, 2048, 128]);
    let text = net.feed("text", 64 * 64);
    let b = net.host_op("tokens", 200, &[text], 64 * 32);
    let b = net.dense("text1", b, [64, 32, 128]);
    let b = net.dense("text2", b, [64, 128, 128]);
    let out = net.op("similarity", Family::Contract, 2 * 64 * 64 * 128, &[a, b], 64 * 64);
    net.fetch(&[out])
}

/// Twelve operations on single numbers.
fn scalars(machine: &Machine) -> Problem {
    let mut net = Net::new(machine);
    let mut x = net.feed("x", 1);
    for i in 0..12 {
        x = net.map(&format!("op_{i}"), 1, &[x], 1);
    }
    net.fetch(&[x])
}

type Graph = (&'static str, fn(&Machine) -> Problem);

const GRAPHS: [Graph; 10] = [
    ("MLP, a training step", mlp),
    ("CNN", cnn),
    ("transformer block", transformer),
    ("recommender with a large table", recommender),
    ("strings before a network", strings),
    ("tiny RNN", tiny_rnn),
    ("loop of six turns", loop_of_six),
    ("top-k after a network", top_k),
    ("two towers", two_towers),
    ("scalars", scalars),
];

#[test]
fn ten_graphs_are_never_slower_than_one_device_and_split_where_it_pays() {
    let mut table = String::from(HEAD);
    for machine in &MACHINES {
        for (name, graph) in GRAPHS {
            let problem = graph(machine);
            let classes = Classes::new(&problem).unwrap();
            let single = |d: usize| {
                let mut device = Vec::new();
                classes.spread(&all_on(&problem, &classes, d), &mut device);
                price(&problem, &device).unwrap().total
            };
            let (cpu, gpu) = (single(0), single(1));
            let solution = solve(&problem).unwrap();
            let (auto, best) = (solution.prediction().total, brute_force(&problem, &classes).total);
            assert!(auto <= cpu.min(gpu), "{name} on {}", machine.name);
            // Where a split reaches 0.8 of the best single device, the choice does too.
            let reaches = |total: u64| total * 5 <= cpu.min(gpu) * 4;
            assert!(!reaches(best) || reaches(auto), "{name} on {}", machine.name);
            assert_eq!(auto, best, "{name} on {}", machine.name);
            let on_gpu = solution.prediction().devices[1].items;
            let us = |time: u64| time.div_ceil(US);
            let ratio = auto * 100 / cpu.min(gpu);
            writeln!(
                table,
                "| {} | {name} | {} | {} | {} | {} | {}.{:02} | {on_gpu} of {} |",
                machine.name,
                us(cpu),
                us(gpu),
                us(auto),
                us(best),
                ratio / 100,
                ratio % 100,
                problem.items.len(),
            )
            .unwrap();
        }
    }
    expect_file!["../../../../docs/placement-figures.md"].assert_eq(&table);
}

const HEAD: &str = "\
# Ten graphs on three modelled machines

Predicted microseconds for a run: everything on the CPU, all that may be there on the GPU, the automatic choice, and
the best of all legal choices (by trying them all). `of best single` is the automatic choice against the better of
the first two; the last column is how many kernels and variables the choice puts on the GPU. The graphs and
machines are in `crates/placement/src/tests/graphs.rs`, and its test writes this table:
`UPDATE_EXPECT=1 cargo test -p convoke-placement ten_graphs`.

The CPU does 0.2 TFLOP/s and 20 GB/s, with 0.2 us for a launch. The GPUs: discrete 10 TFLOP/s, 400 GB/s, launch 8 us,
submission 40 us, link 12 GB/s and 15 us; integrated 1.5, 50, 8, 40, 20 and 10; slow 0.3, 20, 20, 100, 6 and 20.

| GPU | graph | CPU | GPU | automatic | best | of best single | on the GPU |
|---|---|---|---|---|---|---|---|
";
