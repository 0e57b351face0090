//! In which order items run, and how the order falls into segments: the rule of the compiler's schedule.
//!
//! A segment goes on as long as an item of its device is ready; then the device whose first ready item
//! was declared first goes on, or a device that is not a CPU before the CPUs, which have time for their own
//! work meanwhile: [`SegmentOrder`]. Resources take no part: they are there from the start. Segments that only read them
//! or store into them are added by `ends.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use convoke_graph_core::{Error, Result};

use crate::DeviceKind;
use crate::problem::{Problem, Producer};

/// Who waits for whom.
#[derive(Debug)]
pub(crate) struct Order {
    /// The users of item `i` are at `first_user[i]..first_user[i + 1]`.
    first_user: Vec<u32>,
    users: Vec<u32>,
    /// How many results each item waits for.
    waits: Vec<u32>,
}

impl Order {
    /// The order of a problem whose indices are in range.
    ///
    /// # Errors
    /// `Internal` if work waits for itself: a graph has no cycles.
    pub(crate) fn new(problem: &Problem) -> Result<Self> {
        let n_items = problem.items.len();
        let mut first_user = vec![0u32; n_items + 1];
        let mut waits = vec![0u32; n_items];
        for (producer, consumer) in dependencies(problem) {
            first_user[producer + 1] += 1;
            waits[consumer] += 1;
        }
        for i in 0..n_items {
            first_user[i + 1] += first_user[i];
        }
        let mut next: Vec<u32> = first_user[..n_items].to_vec();
        let mut users = vec![0u32; first_user[n_items] as usize];
        for (producer, consumer) in dependencies(problem) {
            users[next[producer] as usize] = consumer as u32;
            next[producer] += 1;
        }
        let order = Self { first_user, users, waits };
        order.check(problem)?;
        Ok(order)
    }

    /// The items that wait for one.
    pub(crate) fn users(&self, item: usize) -> &[u32] {
        &self.users[self.first_user[item] as usize..self.first_user[item + 1] as usize]
    }

    fn check(&self, problem: &Problem) -> Result<()> {
        let mut is_done = vec![false; self.waits.len()];
        for item in self.sequence() {
            is_done[item] = true;
        }
        match is_done.iter().position(|&is_done| !is_done) {
            Some(item) => {
                let name = problem.items[item].name.as_str();
                Err(Error::internal("waits for its own result").with_node(name))
            }
            None => Ok(()),
        }
    }

    /// All items, resources among them, each after what it waits for.
    pub(crate) fn sequence(&self) -> Vec<usize> {
        let mut waits = self.waits.clone();
        let mut sequence: Vec<usize> = (0..waits.len()).filter(|&item| waits[item] == 0).collect();
        let mut at = 0;
        while let Some(&item) = sequence.get(at) {
            at += 1;
            for &user in self.users(item) {
                waits[user as usize] -= 1;
                if waits[user as usize] == 0 {
                    sequence.push(user as usize);
                }
            }
        }
        sequence
    }

    /// How many steps one scheduling takes: what pricing costs.
    pub(crate) fn n_steps(&self) -> usize {
        self.waits.len() + self.users.len()
    }
}

/// Each use of a result by an item that has to wait for it.
fn dependencies(problem: &Problem) -> impl Iterator<Item = (usize, usize)> + '_ {
    let works = |item: usize| !problem.items[item].is_resource;
    problem.tensors.iter().flat_map(move |tensor| {
        let producer = match tensor.producer {
            Producer::Item(item) if works(item) => Some(item),
            _ => None,
        };
        let consumers = tensor.consumers.iter().copied().filter(move |&item| works(item));
        producer
            .into_iter()
            .flat_map(move |producer| consumers.clone().map(move |consumer| (producer, consumer)))
    })
}

/// Whose turn it is when a segment ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SegmentOrder {
    /// The device whose first ready item was declared first.
    #[default]
    Declared,
    /// Of the devices that are not CPUs, and then of the CPUs, that whose first ready item was declared first.
    DevicesFirst,
}

/// Segments for one assignment, with buffers that are used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Whose turn it is.
    pub(crate) order: SegmentOrder,
    /// The segment of each item; meaningless for a resource.
    pub(crate) segment_of: Vec<u32>,
    /// The device of each segment, in the order in which they run.
    pub(crate) devices: Vec<usize>,
    /// The items that work, in the order in which they run.
    pub(crate) sequence: Vec<u32>,
    /// How many segments only read resources, in front of the others.
    pub(crate) n_front: usize,
    /// Whether each segment stores into resources.
    pub(crate) stores: Vec<bool>,
    waits: Vec<u32>,
    ready: Vec<BinaryHeap<Reverse<u32>>>,
}

impl Schedule {
    /// For schedules in which it is a device's turn by this rule.
    pub(crate) fn by(order: SegmentOrder) -> Self {
        Self { order, ..Self::default() }
    }

    /// Schedules the items on these devices.
    pub(crate) fn run(&mut self, problem: &Problem, order: &Order, device: &[usize]) {
        self.devices.clear();
        self.sequence.clear();
        self.n_front = 0;
        self.stores.clear();
        self.segment_of.clear();
        self.segment_of.resize(device.len(), 0);
        self.waits.clear();
        self.waits.extend_from_slice(&order.waits);
        self.ready.resize_with(problem.devices.len(), BinaryHeap::new);
        for (item, &on) in device.iter().enumerate() {
            if order.waits[item] == 0 && !problem.items[item].is_resource {
                self.ready[on].push(Reverse(item as u32));
            }
        }
        while let Some(on) = self.next_device(problem) {
            let segment = self.devices.len() as u32;
            self.devices.push(on);
            while let Some(Reverse(item)) = self.ready[on].pop() {
                self.segment_of[item as usize] = segment;
                self.sequence.push(item);
                for &user in order.users(item as usize) {
                    self.waits[user as usize] -= 1;
                    if self.waits[user as usize] == 0 {
                        self.ready[device[user as usize]].push(Reverse(user));
                    }
                }
            }
        }
    }

    /// Puts a segment without work in front for each of these devices.
    pub(crate) fn put_in_front(&mut self, devices: impl Iterator<Item = usize>) {
        let n_before = self.devices.len();
        self.devices.splice(0..0, devices);
        self.n_front = self.devices.len() - n_before;
        if self.n_front > 0 {
            let n_front = self.n_front as u32;
            self.segment_of.iter_mut().for_each(|segment| *segment += n_front);
        }
    }

    fn next_device(&self, problem: &Problem) -> Option<usize> {
        let waits = |d: usize| {
            let is_cpu = problem.devices[d].kind == DeviceKind::Cpu;
            self.order == SegmentOrder::DevicesFirst && is_cpu
        };
        let heaps = self.ready.iter().enumerate();
        let firsts = heaps.filter_map(|(d, heap)| heap.peek().map(|first| (waits(d), first.0, d)));
        firsts.min().map(|(_, _, d)| d)
    }
}
