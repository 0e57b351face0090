//! The best of all places by branch and bound, with a price of its own: what choices are compared with.
//!
//! Nothing here is that of the crate but legality and what single items and crossings take. All parts of a price are
//! sums of what is not negative, so that those which are certain, and the least that what is open adds, bound it.

use std::collections::BTreeSet;

use super::*;
use crate::legal::Classes;

const HOST: usize = 0;
/// More devices than any of these problems has.
const MAX_DEVICES: usize = 4;

/// Where the producer or a consumer of a tensor is; `None` if that is open.
type At = Option<usize>;

/// What an assignment takes, in the better of both orders of segments: the rule that `price.rs` states, written again
/// as plainly as can be.
pub(super) fn plain_price(problem: &Problem, device: &[usize]) -> u64 {
    [false, true]
        .map(|devices_first| plain_total(problem, device, devices_first))
        .into_iter()
        .min()
        .unwrap()
}

fn plain_total(problem: &Problem, device: &[usize], devices_first: bool) -> u64 {
    let mut all = Segments::of(problem, device, devices_first);
    let is_resource = |item: usize| problem.items[item].is_resource;
    let mut stores = |maker: Option<usize>, consumers: &[usize]| -> Vec<Option<usize>> {
        let into = consumers.iter().filter(|&&item| is_resource(item));
        into.map(|&item| all.that_stores(maker, device[item])).collect()
    };
    let tensors = problem.tensors.iter();
    let stored: Vec<_> = tensors.map(|t| stores(t.producer.item(), &t.consumers)).collect();
    problem.constants.iter().for_each(|constant| drop(stores(None, &constant.consumers)));
    let (mut total, mut paid) = (problem.devices[HOST].run, BTreeSet::new());
    for (tensor, stored) in problem.tensors.iter().zip(&stored) {
        let from = tensor.producer.item().map_or(HOST, |item| device[item]);
        let to: BTreeSet<usize> = tensor.consumers.iter().map(|&item| device[item]).collect();
        for (a, b) in ways(problem, from, &to, tensor.host_reads) {
            let segment = if b == HOST {
                let sender = tensor.producer.item().filter(|&item| !is_resource(item));
                sender.map_or_else(|| all.first(a).unwrap(), |item| all.of[item])
            } else {
                let works = |item: &&usize| device[**item] == b && !is_resource(**item);
                let takers = tensor.consumers.iter().filter(works);
                let in_b = |segment: &&usize| all.devices[**segment] == b;
                let stores = || *stored.iter().flatten().find(in_b).unwrap();
                takers.map(|&item| all.of[item]).min().unwrap_or_else(stores)
            };
            let link = problem.link(a, b);
            total += link.bytes_time(tensor.bytes);
            total += if paid.insert((segment, a, b)) { link.latency } else { 0 };
        }
    }
    let compute = device.iter().enumerate().map(|(item, &d)| problem.item_cost(item, d));
    total + compute.chain(all.devices.iter().map(|&d| problem.devices[d].submission)).sum::<u64>()
}

/// Segments: those that only read, those that work, and those that only store.
struct Segments<'a> {
    problem: &'a Problem,
    device: &'a [usize],
    devices: Vec<usize>,
    /// The segment of each item that works.
    of: Vec<usize>,
    n_front: usize,
    /// All but those that only store.
    n_before_stores: usize,
}

impl<'a> Segments<'a> {
    /// Those that read and work.
    fn of(problem: &'a Problem, device: &'a [usize], devices_first: bool) -> Self {
        let (work, of) = plain_segments(problem, device, devices_first);
        let is_resource = |item: usize| problem.items[item].is_resource;
        // What others need before their device has a segment, or where it has none at all and nothing to store.
        let is_read_before = |d: usize| {
            let first = work.iter().position(|&other| other == d);
            let made = problem.tensors.iter().filter(|tensor| {
                tensor.producer.item().is_some_and(|item| is_resource(item) && device[item] == d)
            });
            let made: Vec<&TensorEdge> = made.collect();
            let is_sent_to = |to: usize| to != d && !problem.is_direct(d, to);
            let all = || made.iter().flat_map(|tensor| &tensor.consumers);
            let users = || all().filter(|&&user| is_sent_to(device[user]));
            let is_early = |&&user: &&usize| match is_resource(user) {
                true => device[user] != HOST && first.is_none(),
                false => first.is_none_or(|first| of[user] < first),
            };
            let is_sent = made.iter().any(|tensor| tensor.host_reads)
                || users().any(|&user| is_resource(user) && device[user] == HOST);
            let into = |&item: &usize| is_resource(item) && device[item] == d;
            let is_stored = problem.tensors.iter().any(|t| t.consumers.iter().any(into))
                || problem.constants.iter().any(|c| c.consumers.iter().any(into));
            users().any(|user| is_early(&user)) || (is_sent && first.is_none() && !is_stored)
        };
        let fronts = (0..problem.devices.len()).filter(|&d| d != HOST && is_read_before(d));
        let mut devices: Vec<usize> = fronts.collect();
        let n_front = devices.len();
        devices.extend(work);
        let n_before_stores = devices.len();
        let of = of.iter().map(|&segment| segment.wrapping_add(n_front)).collect();
        Self { problem, device, devices, of, n_front, n_before_stores }
    }

    fn first(&self, d: usize) -> Option<usize> {
        self.devices.iter().position(|&other| other == d)
    }

    /// The segment of a device that stores what an item makes: its last, where that has it from elsewhere by then and
    /// nothing fails later, or one more. Nothing for the host.
    fn that_stores(&mut self, maker: Option<usize>, to: usize) -> Option<usize> {
        if to == HOST {
            return None;
        }
        let sent = maker.filter(|&item| self.device[item] != to).and_then(|item| {
            match (self.problem.items[item].is_resource, self.device[item]) {
                (true, HOST) => None,
                (true, from) if self.problem.is_direct(from, to) => None,
                (true, from) => self.first(from),
                (false, _) => Some(self.of[item]),
            }
        });
        let last = self.devices[..self.n_before_stores].iter().rposition(|&other| other == to);
        let works = |item: &&usize| !self.problem.items[**item].is_resource;
        let fallible = self.problem.fallible.iter().filter(works);
        let fails = fallible.map(|&item| self.of[item]).max();
        let comes = |&last: &usize| {
            sent.is_none_or(|sent| sent < last && last >= self.n_front)
                && fails.is_none_or(|fails| fails <= last)
        };
        let more = self.devices[self.n_before_stores..].iter().position(|&other| other == to);
        let more = more.map(|at| at + self.n_before_stores);
        Some(last.filter(comes).or(more).unwrap_or_else(|| {
            self.devices.push(to);
            self.devices.len() - 1
        }))
    }
}

/// The device of each segment, and the segment of each item that works.
fn plain_segments(
    problem: &Problem,
    device: &[usize],
    devices_first: bool,
) -> (Vec<usize>, Vec<usize>) {
    let works = |item: usize| !problem.items[item].is_resource;
    let (mut devices, mut segment_of) = (Vec::new(), vec![usize::MAX; device.len()]);
    loop {
        let is_done = |item: usize| segment_of[item] != usize::MAX;
        let waits = |item: usize| {
            let reads = |tensor: &&TensorEdge| tensor.consumers.contains(&item);
            let read = problem.tensors.iter().filter(reads);
            read.filter_map(|t| t.producer.item()).any(|made| works(made) && !is_done(made))
        };
        let ready = (0..device.len()).filter(|&item| works(item) && !is_done(item) && !waits(item));
        let turn = |item: usize| {
            let d = device[item];
            let is_late = devices_first && problem.devices[d].kind == DeviceKind::Cpu;
            (devices.last() != Some(&d), is_late, item)
        };
        let Some((is_new, _, item)) = ready.map(turn).min() else { return (devices, segment_of) };
        if is_new {
            devices.push(device[item]);
        }
        segment_of[item] = devices.len() - 1;
    }
}

/// The crossings of a tensor that is on `from`, those through the host among them, and then those that are copies.
fn ways(
    problem: &Problem,
    from: usize,
    to: &BTreeSet<usize>,
    host_reads: bool,
) -> impl Iterator<Item = (usize, usize)> {
    let others = to.iter().copied().filter(|&d| d != from);
    let (copied, staged): (Vec<usize>, Vec<usize>) =
        others.partition(|&d| problem.is_direct(from, d));
    let is_sent = from != HOST && (host_reads || !staged.is_empty());
    let beyond = staged.into_iter().filter(|&d| d != HOST).map(|d| (HOST, d));
    let sent = is_sent.then_some((from, HOST)).into_iter().chain(beyond);
    sent.chain(copied.into_iter().map(move |d| (from, d)))
}

/// The least that any legal places take.
pub(super) fn least(problem: &Problem, classes: &Classes) -> u64 {
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let stake = |&class: &usize| {
        let costs = || classes.devices(class).map(|d| classes.cost(class, d));
        costs().max().unwrap() - costs().min().unwrap()
    };
    order.sort_by_key(|class| std::cmp::Reverse(stake(class)));
    let places = vec![None; classes.len()];
    let mut tree = Tree { problem, classes, order, places, best: u64::MAX };
    tree.branch(0);
    tree.best
}

struct Tree<'a> {
    problem: &'a Problem,
    classes: &'a Classes,
    /// The classes as they are fixed.
    order: Vec<usize>,
    places: Vec<At>,
    best: u64,
}

impl Tree<'_> {
    fn branch(&mut self, depth: usize) {
        let Some(&class) = self.order.get(depth) else {
            let device: Vec<usize> =
                (0..self.problem.items.len()).map(|item| self.at(item).unwrap()).collect();
            self.best = self.best.min(plain_price(self.problem, &device));
            return;
        };
        let mut children: Vec<(u64, usize)> = Vec::new();
        for d in self.classes.devices(class) {
            self.places[class] = Some(d);
            children.push((self.bound(), d));
        }
        children.sort_unstable();
        for (bound, d) in children {
            if bound < self.best {
                self.places[class] = Some(d);
                self.branch(depth + 1);
            }
        }
        self.places[class] = None;
    }

    fn at(&self, item: usize) -> At {
        self.places[self.classes.of(item)]
    }

    /// What is certain of the price, wherever the classes that have no place yet go.
    fn bound(&self) -> u64 {
        let (problem, classes) = (self.problem, self.classes);
        let mut certain = problem.devices[HOST].run;
        // What each class and the tensors that it makes take on each device.
        let mut own = vec![[0; MAX_DEVICES]; classes.len()];
        for (class, own) in own.iter_mut().enumerate() {
            classes.devices(class).for_each(|d| own[d] = classes.cost(class, d));
        }
        let mut crosses = BTreeSet::new();
        for tensor in &problem.tensors {
            let to: BTreeSet<usize> =
                tensor.consumers.iter().filter_map(|&item| self.at(item)).collect();
            let time = |(a, b): (usize, usize)| problem.link(a, b).bytes_time(tensor.bytes);
            let all = |from: usize| ways(problem, from, &to, tensor.host_reads);
            let times = |from: usize| all(from).map(time).sum::<u64>();
            let made_by = tensor.producer.item().map(|item| classes.of(item));
            if let Some(from) = made_by.map_or(Some(HOST), |class| self.places[class]) {
                crosses.extend(all(from));
            }
            match made_by {
                Some(class) => classes.devices(class).for_each(|d| own[class][d] += times(d)),
                None => certain += times(HOST),
            }
        }
        for (class, own) in own.iter().enumerate() {
            certain += match self.places[class] {
                Some(d) => own[d],
                None => classes.devices(class).map(|d| own[d]).min().unwrap(),
            };
        }
        let latencies = crosses.iter().map(|&(a, b)| problem.link(a, b).latency);
        let submissions = (0..problem.devices.len()).map(|d| {
            let is_copied = |a: usize, b: usize| problem.is_direct(a, b);
            let is_used = crosses.iter().any(|&(a, b)| b == d || (a == d && !is_copied(a, b)));
            problem.devices[d].submission * self.n_turns(d).max(u64::from(is_used && d != HOST))
        });
        certain + latencies.sum::<u64>() + submissions.sum::<u64>()
    }

    /// The most turns of a device on a way from result to result, between which another has to have its turn: so many
    /// segments it has at least.
    fn n_turns(&self, d: usize) -> u64 {
        let works = |item: usize| !self.problem.items[item].is_resource;
        // Odd while it is the turn of the device. Items only read what items before them make.
        let mut turns = vec![0u64; self.problem.items.len()];
        for item in (0..turns.len()).filter(|&item| works(item)) {
            let tensors = &self.problem.tensors;
            let reads = tensors.iter().filter(|t| t.consumers.contains(&item));
            let made = reads.filter_map(|t| t.producer.item()).filter(|&made| works(made));
            let before = made.map(|made| turns[made]).max().unwrap_or(0);
            let changes = self.at(item).is_some_and(|on| (on == d) == before.is_multiple_of(2));
            turns[item] = before + u64::from(changes);
        }
        turns.into_iter().max().map_or(0, |most| most.div_ceil(2))
    }
}
