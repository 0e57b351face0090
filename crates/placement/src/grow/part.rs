//! The problem of what is free: all else stands in it as one resource for each device.

use std::collections::BTreeMap;

use super::{Net, Standing};
use crate::Work;
use crate::problem::{HOST, Item, Problem, Producer, TensorEdge};

/// Items that are to be placed, and the tensors that they make and read.
#[derive(Debug)]
pub(super) struct Free {
    /// In ascending order.
    pub items: Vec<usize>,
    touched: Vec<Touched>,
}

/// A tensor that a free item makes or reads.
#[derive(Debug)]
struct Touched {
    tensor: usize,
    /// The free items that read it.
    readers: Vec<usize>,
    /// Whether one that stays reads it on each device.
    is_read: Vec<bool>,
}

impl Touched {
    /// The devices on which something that stays reads it.
    pub fn stays(&self) -> impl Iterator<Item = usize> {
        (0..self.is_read.len()).filter(|&device| self.is_read[device])
    }
}

impl Free {
    /// These items, in ascending order. Those from `n_placed` on have had no place.
    pub fn new(net: &Net, items: Vec<usize>, n_placed: usize) -> Self {
        let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &item in &items {
            net.made(item).for_each(|tensor| _ = readers.entry(tensor).or_default());
            net.read(item).for_each(|tensor| readers.entry(tensor).or_default().push(item));
        }
        let touched = readers.into_iter().map(|(tensor, readers)| {
            let mut needs = net.needs(tensor).to_vec();
            for &item in readers.iter().filter(|&&item| item < n_placed) {
                needs[net.items[item].device] -= 1;
            }
            Touched { tensor, readers, is_read: needs.iter().map(|&n| n > 0).collect() }
        });
        Self { touched: touched.collect(), items }
    }

    /// The place of an item among them.
    pub fn index(&self, item: usize) -> Option<usize> {
        self.items.binary_search(&item).ok()
    }
}

/// The problem of what is free. `used` says for each device whether something stays there; work beside that pays for
/// submissions only if it `is_submitted` by itself.
pub(super) fn part(standing: &Standing, free: &Free, used: &[bool], is_submitted: bool) -> Problem {
    let net = &standing.net;
    let mut part = standing.bare.clone();
    for (model, &is_used) in part.devices.iter_mut().zip(used) {
        // What all of it takes is seen when all of it is priced.
        model.memory_bytes = u64::MAX;
        if !is_submitted && is_used {
            model.submission = 0;
        }
    }
    part.items = free.items.iter().map(|&item| standing.item(item)).collect();
    part.items.extend((1..part.devices.len()).map(what_stays));
    part.tensors = free.touched.iter().map(|touched| edge(net, free, touched)).collect();
    let own = free.items.iter().enumerate();
    let fallible = own.filter(|&(_, &item)| net.items[item].is_fallible);
    part.fallible = fallible.map(|(at, _)| at).collect();
    for tie in net.ties_among(&free.items) {
        let (Some(a), Some(b)) = (free.index(tie.ends.0), free.index(tie.ends.1)) else { continue };
        if tie.is_resource {
            part.resource_edges.push((a, b));
        } else {
            part.colocations.push((a, b));
        }
    }
    part
}

/// A tensor in the problem of a part. What stays on the host is the host.
fn edge(net: &Net, free: &Free, touched: &Touched) -> TensorEdge {
    let tensor = &net.tensors[touched.tensor];
    let what_stays = |device: usize| free.items.len() + device - 1;
    let producer = match tensor.producer {
        Producer::Item(item) => match (free.index(item), net.items[item].device) {
            (Some(own), _) => Producer::Item(own),
            (None, HOST) => Producer::Host,
            (None, device) => Producer::Item(what_stays(device)),
        },
        Producer::Host => Producer::Host,
    };
    let mut consumers: Vec<usize> =
        touched.readers.iter().filter_map(|&item| free.index(item)).collect();
    consumers.dedup();
    let others = touched.stays().filter(|&device| device != HOST).map(what_stays);
    // What stays on a device is not stored there again.
    consumers.extend(others.filter(|&other| producer != Producer::Item(other)));
    let host_reads = tensor.host_reads || touched.is_read[HOST];
    TensorEdge { name: String::new(), bytes: tensor.bytes, producer, consumers, host_reads }
}

/// What stands for all that stays on a device.
fn what_stays(device: usize) -> Item {
    Item {
        name: String::new(),
        requested: None,
        assigned: Some(device),
        refusals: Vec::new(),
        known: Vec::new(),
        work: Work::NONE,
        is_resource: true,
        now: None,
        location: None,
    }
}
