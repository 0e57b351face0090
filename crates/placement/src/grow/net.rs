//! Who passes what to whom, and who is tied to whom: what can be changed at one end without a look at the rest.

use std::collections::BTreeSet;

use super::Growth;
use crate::problem::{Problem, Producer, TensorEdge};

/// What is known of an item.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub device: usize,
    pub is_gone: bool,
    pub is_resource: bool,
    pub is_fallible: bool,
    /// Whether it may no more leave its device.
    pub is_settled: bool,
    /// The tensors that it makes and reads, and the ties that it is one end of, those that have gone among them. A tensor
    /// that it reads twice is there twice.
    made: Vec<u32>,
    read: Vec<u32>,
    ties: Vec<u32>,
}

/// What is known of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub bytes: u64,
    pub producer: Producer,
    pub host_reads: bool,
    consumers: Vec<u32>,
}

/// Two items that were to share a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tie {
    pub is_resource: bool,
    pub ends: (usize, usize),
}

/// A list that has become longer by one.
#[derive(Debug, Clone, Copy)]
enum Push {
    Made(usize),
    Read(usize),
    Consumers(usize),
    Ties(usize),
}

/// How to take back what was put in.
#[derive(Debug)]
pub(super) struct Before {
    settled: Vec<usize>,
    /// What was no more read, with its places in the lists of the tensor's consumers and of what the item reads.
    unread: Vec<((usize, usize), (usize, usize))>,
    /// What was fetched or not.
    fetched: Vec<(usize, bool)>,
    n_items: usize,
    n_tensors: usize,
    n_ties: usize,
    pushes: Vec<Push>,
}

/// Items, tensors and ties.
#[derive(Debug, Clone)]
pub(super) struct Net {
    n_devices: usize,
    pub items: Vec<Node>,
    pub tensors: Vec<Wire>,
    ties: Vec<Tie>,
    /// How often tensor `t` is read on device `d` by items that have places, at `t * devices + d`.
    needs: Vec<u32>,
}

impl Net {
    /// The net of a problem whose items are on these devices.
    pub fn of(problem: &Problem, device: &[usize]) -> Self {
        let mut net = Self {
            n_devices: problem.devices.len(),
            items: Vec::new(),
            tensors: Vec::new(),
            ties: Vec::new(),
            needs: Vec::new(),
        };
        let mut pushes = Vec::new();
        net.add_items(problem.items.iter().map(|item| item.is_resource));
        for (node, &device) in net.items.iter_mut().zip(device) {
            node.device = device;
        }
        for tensor in &problem.tensors {
            net.add_tensor(tensor, device.len(), &mut pushes);
            pushes.clear();
        }
        net.add_ties(&problem.resource_edges, &problem.colocations, &mut pushes);
        problem.fallible.iter().for_each(|&item| net.items[item].is_fallible = true);
        net
    }

    /// Puts in what is new, without places, and takes out what has gone. All of it is in range.
    pub fn put(&mut self, growth: &Growth) -> Before {
        let (n_items, n_tensors, n_ties) = (self.items.len(), self.tensors.len(), self.ties.len());
        let mut pushes = Vec::new();
        growth.gone.iter().for_each(|&item| self.set_gone(item, true));
        self.add_items(growth.items.iter().map(|item| item.is_resource));
        for tensor in &growth.tensors {
            self.add_tensor(tensor, n_items, &mut pushes);
        }
        for &(tensor, item) in &growth.reads {
            self.tensors[tensor].consumers.push(item as u32);
            self.items[item].read.push(tensor as u32);
            pushes.extend([Push::Consumers(tensor), Push::Read(item)]);
            if item < n_items {
                *self.need(tensor, item) += 1;
            }
        }
        self.add_ties(&growth.resource_edges, &growth.colocations, &mut pushes);
        growth.fallible.iter().for_each(|&item| self.items[item].is_fallible = true);
        let settled = growth.settled.iter().copied();
        let settled: Vec<usize> = settled.filter(|&item| !self.items[item].is_settled).collect();
        settled.iter().for_each(|&item| self.items[item].is_settled = true);
        let unread = growth.unread.iter().filter_map(|&pair| Some((pair, self.unread(pair)?)));
        let unread = unread.collect();
        let fetched = growth.fetched.iter().map(|&(tensor, is_fetched)| {
            let before = &mut self.tensors[tensor].host_reads;
            (tensor, std::mem::replace(before, is_fetched))
        });
        let fetched = fetched.collect();
        Before { settled, unread, fetched, n_items, n_tensors, n_ties, pushes }
    }

    /// Takes back what was put in last.
    pub fn take_back(&mut self, growth: &Growth, before: Before) {
        for (tensor, was_fetched) in before.fetched.into_iter().rev() {
            self.tensors[tensor].host_reads = was_fetched;
        }
        for ((tensor, item), (consumer, read)) in before.unread.into_iter().rev() {
            self.tensors[tensor].consumers.insert(consumer, item as u32);
            self.items[item].read.insert(read, tensor as u32);
            *self.need(tensor, item) += 1;
        }
        before.settled.into_iter().for_each(|item| self.items[item].is_settled = false);
        for &(tensor, item) in growth.reads.iter().filter(|(_, item)| *item < before.n_items) {
            *self.need(tensor, item) -= 1;
        }
        for push in before.pushes.into_iter().rev() {
            let list = match push {
                Push::Made(item) => &mut self.items[item].made,
                Push::Read(item) => &mut self.items[item].read,
                Push::Ties(item) => &mut self.items[item].ties,
                Push::Consumers(tensor) => &mut self.tensors[tensor].consumers,
            };
            list.pop();
        }
        self.items.truncate(before.n_items);
        self.tensors.truncate(before.n_tensors);
        self.needs.truncate(before.n_tensors * self.n_devices);
        self.ties.truncate(before.n_ties);
        growth.gone.iter().for_each(|&item| self.set_gone(item, false));
    }

    /// Lets an item with a place read a tensor no more. Gives where it was among the tensor's consumers and what it reads.
    fn unread(&mut self, (tensor, item): (usize, usize)) -> Option<(usize, usize)> {
        let consumers = &mut self.tensors[tensor].consumers;
        let consumer = consumers.iter().position(|&own| own as usize == item)?;
        let reads = &mut self.items[item].read;
        let read = reads.iter().position(|&own| own as usize == tensor)?;
        consumers.remove(consumer);
        reads.remove(read);
        *self.need(tensor, item) -= 1;
        Some((consumer, read))
    }

    /// How often a tensor is read on the device of an item.
    fn need(&mut self, tensor: usize, item: usize) -> &mut u32 {
        &mut self.needs[tensor * self.n_devices + self.items[item].device]
    }

    fn set_gone(&mut self, item: usize, is_gone: bool) {
        let node = &mut self.items[item];
        node.is_gone = is_gone;
        for &tensor in &node.read {
            let need = &mut self.needs[tensor as usize * self.n_devices + node.device];
            *need = if is_gone { *need - 1 } else { *need + 1 };
        }
    }

    fn add_items(&mut self, are_resources: impl Iterator<Item = bool>) {
        self.items.extend(are_resources.map(|is_resource| Node { is_resource, ..Node::default() }));
    }

    /// Adds a tensor. Of its consumers, the first `n_placed` items have places.
    fn add_tensor(&mut self, tensor: &TensorEdge, n_placed: usize, pushes: &mut Vec<Push>) {
        let at = self.tensors.len();
        if let Producer::Item(item) = tensor.producer {
            self.items[item].made.push(at as u32);
            pushes.push(Push::Made(item));
        }
        self.needs.resize((at + 1) * self.n_devices, 0);
        for &item in &tensor.consumers {
            self.items[item].read.push(at as u32);
            pushes.push(Push::Read(item));
            if item < n_placed {
                self.needs[at * self.n_devices + self.items[item].device] += 1;
            }
        }
        self.tensors.push(Wire {
            bytes: tensor.bytes,
            producer: tensor.producer,
            host_reads: tensor.host_reads,
            consumers: tensor.consumers.iter().map(|&item| item as u32).collect(),
        });
    }

    fn add_ties(
        &mut self,
        resource_edges: &[(usize, usize)],
        colocations: &[(usize, usize)],
        pushes: &mut Vec<Push>,
    ) {
        let resource_edges = resource_edges.iter().map(|&ends| Tie { is_resource: true, ends });
        let colocations = colocations.iter().map(|&ends| Tie { is_resource: false, ends });
        for tie in resource_edges.chain(colocations) {
            for item in [tie.ends.0, tie.ends.1] {
                self.items[item].ties.push(self.ties.len() as u32);
                pushes.push(Push::Ties(item));
            }
            self.ties.push(tie);
        }
    }

    /// The tensors that an item makes.
    pub fn made(&self, item: usize) -> impl Iterator<Item = usize> {
        self.items[item].made.iter().map(|&tensor| tensor as usize)
    }

    /// The tensors that an item reads, but for those whose producer has gone. One that it reads twice comes twice.
    pub fn read(&self, item: usize) -> impl Iterator<Item = usize> {
        let all = self.items[item].read.iter().map(|&tensor| tensor as usize);
        all.filter(|&tensor| self.is_made(tensor))
    }

    /// Whether the producer of a tensor is there.
    pub fn is_made(&self, tensor: usize) -> bool {
        self.tensors[tensor].producer.item().is_none_or(|item| !self.items[item].is_gone)
    }

    /// The items that read a tensor.
    pub fn consumers(&self, tensor: usize) -> impl Iterator<Item = usize> {
        let all = self.tensors[tensor].consumers.iter().map(|&item| item as usize);
        all.filter(|&item| !self.items[item].is_gone)
    }

    /// How often a tensor is read on each device by items that have places.
    pub fn needs(&self, tensor: usize) -> &[u32] {
        &self.needs[tensor * self.n_devices..(tensor + 1) * self.n_devices]
    }

    /// All ties between items that are there, in the order in which they were asked for.
    pub fn ties(&self) -> impl Iterator<Item = Tie> {
        self.ties.iter().copied().filter(|tie| self.holds(tie))
    }

    fn holds(&self, tie: &Tie) -> bool {
        let (a, b) = tie.ends;
        !self.items[a].is_gone && !self.items[b].is_gone
    }

    /// The ties of an item with items that are there, by number.
    fn ties_of(&self, item: usize) -> impl Iterator<Item = (usize, Tie)> {
        let all = self.items[item].ties.iter().map(|&at| (at as usize, self.ties[at as usize]));
        all.filter(|(_, tie)| self.holds(tie))
    }

    /// The items that are there and were tied to one that has gone.
    pub fn was_tied_to(&self, item: usize) -> impl Iterator<Item = usize> {
        let ties = self.items[item].ties.iter().map(|&at| self.ties[at as usize].ends);
        ties.flat_map(|(a, b)| [a, b]).filter(|&end| !self.items[end].is_gone)
    }

    /// Adds all that is tied to these items, directly or through others. False if that would be more than `most`.
    pub fn tied(&self, from: Vec<usize>, all: &mut BTreeSet<usize>, most: usize) -> bool {
        let mut left = from;
        while let Some(item) = left.pop() {
            if !all.insert(item) {
                continue;
            }
            if all.len() > most {
                return false;
            }
            left.extend(self.ties_of(item).flat_map(|(_, Tie { ends: (a, b), .. })| [a, b]));
        }
        true
    }

    /// The ties among items, in the order in which they were asked for.
    pub fn ties_among(&self, items: &[usize]) -> impl Iterator<Item = Tie> {
        let numbers = items.iter().flat_map(|&item| self.ties_of(item).map(|(number, _)| number));
        let numbers: BTreeSet<usize> = numbers.collect();
        numbers.into_iter().map(|number| self.ties[number])
    }

    /// Moves an item to a device. One that `is_new` was on none.
    pub fn place(&mut self, item: usize, device: usize, is_new: bool) {
        let node = &mut self.items[item];
        for &tensor in &node.read {
            let at = tensor as usize * self.n_devices;
            if !is_new {
                self.needs[at + node.device] -= 1;
            }
            self.needs[at + device] += 1;
        }
        node.device = device;
    }
}
