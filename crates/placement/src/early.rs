//! Places by list scheduling: each class where its first item would be done first.
//!
//! Items are taken by what follows them: the longest way to the end, with average costs and crossings. Source:
//! Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
//! computing" (2002).

use crate::legal::Classes;
use crate::order::Order;
use crate::problem::{HOST, Problem, Producer};
use crate::{DeviceKind, Picoseconds};

/// A device for each class.
pub(crate) fn places(problem: &Problem, classes: &Classes, order: &Order) -> Vec<usize> {
    let mut timing = Timing::new(problem, classes);
    let mut place: Vec<Option<usize>> = vec![None; classes.len()];
    for item in by_rank(problem, classes, order) {
        let class = classes.of(item);
        let device = place[class].unwrap_or_else(|| {
            let end = |&d: &usize| timing.end(item, d);
            classes.devices(class).min_by_key(end).unwrap_or(HOST)
        });
        place[class] = Some(device);
        timing.put(item, device);
    }
    let place = place.iter().enumerate();
    place.map(|(class, at)| at.unwrap_or_else(|| classes.cheapest(class))).collect()
}

/// The items that work, producers first, and those with the longest way to the end before others.
fn by_rank(problem: &Problem, classes: &Classes, order: &Order) -> Vec<usize> {
    let sequence = order.sequence();
    let mut position = vec![0; problem.items.len()];
    for (at, &item) in sequence.iter().enumerate() {
        position[item] = at;
    }
    let average = |item: usize| {
        let devices = classes.devices(classes.of(item));
        let costs = devices.map(|d| problem.item_cost(item, d));
        let (sum, n) =
            costs.fold((0, 0), |(sum, n): (u64, u64), cost| (sum.saturating_add(cost), n + 1));
        sum / n.max(1)
    };
    let mut rank: Vec<Picoseconds> = (0..problem.items.len()).map(average).collect();
    for &item in sequence.iter().rev() {
        let after = order.users(item).iter().map(|&user| rank[user as usize]).max().unwrap_or(0);
        rank[item] = rank[item].saturating_add(after);
    }
    let mut items = sequence;
    items.sort_by_key(|&item| (std::cmp::Reverse(rank[item]), position[item]));
    items
}

/// When devices are free, and what is where from when on.
struct Timing<'a> {
    problem: &'a Problem,
    /// By queue.
    free: Vec<Picoseconds>,
    /// When each item is done, and where.
    done: Vec<(Picoseconds, usize)>,
    /// The tensors that each item reads: those of item `i` at `first[i]..first[i + 1]`.
    first: Vec<u32>,
    reads: Vec<u32>,
    used: Vec<bool>,
}

impl<'a> Timing<'a> {
    fn new(problem: &'a Problem, classes: &Classes) -> Self {
        let n_items = problem.items.len();
        let mut first = vec![0u32; n_items + 1];
        let uses = || {
            let tensors = problem.tensors.iter().enumerate();
            tensors.flat_map(|(t, tensor)| tensor.consumers.iter().map(move |&item| (item, t)))
        };
        uses().for_each(|(item, _)| first[item + 1] += 1);
        for item in 0..n_items {
            first[item + 1] += first[item];
        }
        let mut next = first.clone();
        let mut reads = vec![0u32; first[n_items] as usize];
        for (item, tensor) in uses() {
            reads[next[item] as usize] = tensor as u32;
            next[item] += 1;
        }
        let home = |item: usize| classes.devices(classes.of(item)).next().unwrap_or(HOST);
        let done = (0..n_items).map(|item| (0, home(item))).collect();
        let n_devices = problem.devices.len();
        Self { problem, free: vec![0; n_devices], done, first, reads, used: vec![false; n_devices] }
    }

    /// When an item would be done on a device.
    fn end(&self, item: usize, device: usize) -> Picoseconds {
        let problem = self.problem;
        let (first, end) = (self.first[item] as usize, self.first[item + 1] as usize);
        let mut start = self.free[problem.queues.of(device)];
        for &tensor in &self.reads[first..end] {
            let tensor = &problem.tensors[tensor as usize];
            let (made, from) = match tensor.producer {
                Producer::Item(producer) => self.done[producer],
                Producer::Host => (0, HOST),
            };
            let crossing =
                if from == device { 0 } else { problem.link(from, device).cost(tensor.bytes) };
            start = start.max(made.saturating_add(crossing));
        }
        let model = &problem.devices[device];
        let is_new = !self.used[device] && model.kind != DeviceKind::Cpu;
        let submission = if is_new { model.submission } else { 0 };
        start.saturating_add(submission).saturating_add(problem.item_cost(item, device))
    }

    fn put(&mut self, item: usize, device: usize) {
        let end = self.end(item, device);
        self.done[item] = (end, device);
        if !self.problem.items[item].is_resource {
            self.free[self.problem.queues.of(device)] = end;
            self.used[device] = true;
        }
    }
}
