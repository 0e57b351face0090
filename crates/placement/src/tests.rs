//! Tests of placement, by step, and what they share: a small generator and random problems.

mod best;
mod choice;
mod cost;
mod cuts;
mod graphs;
mod growth;
mod legality;
mod memory;
mod placer_table;
mod printing;
mod refusals;
mod specs;
mod stores;

use crate::{
    Constant, Curve, DeviceKind, DeviceModel, DeviceSpec, Family, Item, Link, Problem, Producer,
    Rates, TensorEdge, Work,
};

const US: u64 = 1_000_000;
const GIB: u64 = 1 << 30;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A device on which every flop takes a nanosecond and bytes nothing, so that costs are easy to see.
fn device(
    kind: DeviceKind,
    index: u32,
    launch_us: u64,
    submission_us: u64,
    speed: u64,
) -> DeviceModel {
    let rate = 1_000_000_000 * speed;
    let name = if kind == DeviceKind::Cpu { "CPU" } else { "GPU" };
    DeviceModel {
        name: DeviceSpec::local(name, index),
        kind,
        arithmetic: Rates::same(rate),
        memory: Curve::rate(u64::MAX),
        launch: launch_us * US,
        submission: submission_us * US,
        run: 0,
        memory_bytes: GIB,
        buffers: u32::MAX,
    }
}

fn cpu() -> DeviceModel {
    device(DeviceKind::Cpu, 0, 0, 0, 1)
}

/// A GPU ten times as fast as [`cpu`] that takes 40 us for a submission.
fn gpu(index: u32) -> DeviceModel {
    device(DeviceKind::DiscreteGpu, index, 1, 40, 10)
}

/// The CPU and GPUs with links of 15 us and 1 byte per nanosecond.
fn machine(n_gpus: u32) -> Problem {
    let mut problem = Problem::new(std::iter::once(cpu()).chain((0..n_gpus).map(gpu)).collect());
    problem.links.fill(Link { latency: 15 * US, bytes_per_second: 1_000_000_000 });
    problem
}

fn spec(text: &str) -> DeviceSpec {
    text.parse().unwrap()
}

/// An item that takes so many microseconds on the CPU.
fn item(name: &str, cpu_us: u64) -> Item {
    Item {
        name: name.into(),
        requested: None,
        assigned: None,
        refusals: Vec::new(),
        work: Work::new(Family::Elementwise, cpu_us * 1000, 0),
        known: Vec::new(),
        is_resource: false,
        now: None,
        location: None,
    }
}

fn variable(name: &str) -> Item {
    Item { is_resource: true, ..item(name, 0) }
}

fn edge(name: &str, bytes: u64, producer: Producer, consumers: &[usize]) -> TensorEdge {
    TensorEdge {
        name: name.into(),
        bytes,
        producer,
        consumers: consumers.to_vec(),
        host_reads: false,
    }
}

fn fetched(edge: TensorEdge) -> TensorEdge {
    TensorEdge { host_reads: true, ..edge }
}

/// A random problem: up to `max` items, some colocated, some with one kernel, some resources.
fn random_problem(rng: &mut Rng, n_gpus: u32, max: u64) -> Problem {
    let mut problem = machine(n_gpus);
    let n_items = 1 + rng.below(max);
    let mut first_of_group: [Option<usize>; 3] = [None; 3];
    let mut is_grouped = Vec::new();
    for link in &mut problem.links {
        link.latency = rng.below(30) * US;
        link.bytes_per_second = 1_000_000_000 * (1 + rng.below(8));
    }
    for i in 0..n_items as usize {
        let cpu_us = rng.below(200);
        let mut item = item(&format!("i{i}"), cpu_us);
        let grouped = rng.one_in(5);
        is_grouped.push(grouped);
        if grouped {
            let first = first_of_group[rng.below(3) as usize].get_or_insert(i);
            problem.colocations.push((i, *first));
        }
        item.is_resource = rng.one_in(8);
        problem.items.push(item);
    }
    for (i, is_grouped) in is_grouped.into_iter().enumerate() {
        // A refusal that leaves every item, and all colocated items together, a device.
        if !is_grouped && rng.one_in(6) {
            let free = rng.below(u64::from(n_gpus) + 1) as usize;
            let refusal = |d: usize| (d != free).then(|| "no kernel".to_owned());
            problem.items[i].refusals = (0..=n_gpus as usize).map(refusal).collect();
        }
        let n_consumers = if i + 1 < n_items as usize { rng.below(4) } else { 0 };
        let later = n_items - i as u64 - 1;
        let consumers: Vec<usize> =
            (0..n_consumers).map(|_| i + 1 + rng.below(later) as usize).collect();
        let mut made = edge(&format!("t{i}"), rng.below(100_000), Producer::Item(i), &consumers);
        made.host_reads = rng.one_in(4);
        problem.tensors.push(made);
        if rng.one_in(3) {
            let first = rng.below(n_items) as usize;
            let fed = edge(&format!("f{i}"), rng.below(100_000), Producer::Host, &[i, first]);
            problem.tensors.push(fed);
        }
    }
    let works = |i: &usize| !problem.items[*i].is_resource;
    let items = || 0..problem.items.len();
    problem.fallible = items().filter(works).filter(|i| i % 5 == 3).collect();
    let stored = items().filter(|i| !works(i) && i % 3 == 1);
    problem.constants = stored.map(|i| Constant { bytes: 1000, consumers: vec![i] }).collect();
    problem
}
