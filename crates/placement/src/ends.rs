//! Where resources are read and stored into: the rule of the compiler's schedule.
//!
//! What other devices need of a resource is sent by the first segment of its device. Where one needs it earlier, or
//! the device has no work, one more segment is put in front of all. What goes into a resource is stored by the last
//! segment of its device, if it is there by then and nothing fails later; else by one more segment at the end, which
//! stores all that comes so late. The host needs no such segments, and nor does a device with the same queue: it copies
//! from where the resource lies.

use crate::order::Schedule;
use crate::problem::{HOST, Problem, Producer};

/// The first and last segments of one assignment, with buffers that are used again for the next.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The tensors that resources make.
    reads: Vec<u32>,
    /// What goes into resources: who makes it, unless it is there from the start, and the resource.
    stores: Vec<(Option<u32>, u32)>,
    /// The last segment with an item that can fail late.
    fallible: Option<u32>,
    devices: Vec<End>,
}

/// The segments of a device.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// The first that works or reads, or else stores.
    first: Option<u32>,
    /// The last that works or reads.
    last: Option<u32>,
    /// The one that only stores.
    more: Option<u32>,
    /// Whether there is one in front, which reads.
    is_read: bool,
    /// Whether the host needs what a resource has.
    is_sent: bool,
    /// Whether something goes into a resource.
    is_stored: bool,
}

impl Ends {
    pub(crate) fn new(problem: &Problem) -> Self {
        let is_resource = |item: usize| problem.items[item].is_resource;
        let tensors = problem.tensors.iter().enumerate();
        let made = tensors.filter(|(_, edge)| edge.producer.item().is_some_and(is_resource));
        let constants = problem.constants.iter().map(|constant| (None, &constant.consumers));
        let edges = problem.tensors.iter().map(|edge| (edge.producer.item(), &edge.consumers));
        let stores = edges.chain(constants).flat_map(|(maker, consumers)| {
            let into = consumers.iter().filter(|&&item| is_resource(item));
            into.map(move |&item| (maker.map(|maker| maker as u32), item as u32))
        });
        Self {
            reads: made.map(|(tensor, _)| tensor as u32).collect(),
            stores: stores.collect(),
            fallible: None,
            devices: vec![End::default(); problem.devices.len()],
        }
    }

    /// Adds the segments that only read or store, and notes which store.
    pub(crate) fn add(&mut self, problem: &Problem, schedule: &mut Schedule, device: &[usize]) {
        self.devices.fill(End::default());
        self.find(schedule);
        for &(_, into) in &self.stores {
            self.devices[device[into as usize]].is_stored = true;
        }
        for at in 0..self.reads.len() {
            self.read(problem, schedule, device, self.reads[at] as usize);
        }
        // What is stored at the end can be sent then.
        let is_front =
            |end: &End| end.is_read || (end.is_sent && end.first.is_none() && !end.is_stored);
        let fronts = self.devices.iter().enumerate().filter(|(_, end)| is_front(end));
        schedule.put_in_front(fronts.map(|(d, _)| d));
        self.find(schedule);
        let works = |item: &&usize| !problem.items[**item].is_resource;
        let fallible = problem.fallible.iter().filter(works);
        self.fallible = fallible.map(|&item| schedule.segment_of[item]).max();
        schedule.stores.resize(schedule.devices.len(), false);
        for at in 0..self.stores.len() {
            let (maker, into) = self.stores[at];
            let to = device[into as usize];
            if to != HOST {
                let maker = maker.map(|maker| maker as usize);
                let last = self.last(problem, schedule, device, maker, to);
                let segment = last.unwrap_or_else(|| self.put_at_the_end(schedule, to));
                schedule.stores[segment as usize] = true;
            }
        }
    }

    /// The segment that sends what a device's resources have.
    pub(crate) fn first(&self, device: usize) -> Option<u32> {
        self.devices[device].first
    }

    /// The segment of a device that stores what an item makes, or what is there from the start, once all are added.
    pub(crate) fn last(
        &self,
        problem: &Problem,
        schedule: &Schedule,
        device: &[usize],
        maker: Option<usize>,
        to: usize,
    ) -> Option<u32> {
        let end = self.devices[to];
        let sent = maker.filter(|&item| device[item] != to).and_then(|item| {
            let is_resource = problem.items[item].is_resource;
            let sends = |_: &u32| device[item] != HOST && !problem.is_direct(device[item], to);
            let first = self.devices[device[item]].first.filter(sends);
            if is_resource { first } else { Some(schedule.segment_of[item]) }
        });
        let fits = |&last: &u32| {
            let works = last as usize >= schedule.n_front;
            sent.is_none_or(|sent| sent < last && works)
                && self.fallible.is_none_or(|fallible| fallible <= last)
        };
        end.last.filter(fits).or(end.more)
    }

    fn put_at_the_end(&mut self, schedule: &mut Schedule, device: usize) -> u32 {
        let segment = schedule.devices.len() as u32;
        schedule.devices.push(device);
        schedule.stores.push(true);
        let end = &mut self.devices[device];
        end.more = Some(segment);
        end.first.get_or_insert(segment);
        segment
    }

    /// Finds the first and last segment of each device.
    fn find(&mut self, schedule: &Schedule) {
        for end in &mut self.devices {
            (end.first, end.last) = (None, None);
        }
        for (segment, &d) in schedule.devices.iter().enumerate() {
            let end = &mut self.devices[d];
            end.first.get_or_insert(segment as u32);
            end.last = Some(segment as u32);
        }
    }

    /// Notes who needs what a resource has, and when.
    fn read(&mut self, problem: &Problem, schedule: &Schedule, device: &[usize], tensor: usize) {
        let edge = &problem.tensors[tensor];
        let Producer::Item(resource) = edge.producer else { return };
        let from = device[resource];
        if from == HOST {
            return;
        }
        let end = &mut self.devices[from];
        end.is_sent |= edge.host_reads;
        let others = edge.consumers.iter().filter(|&&item| device[item] != from);
        for &item in others.filter(|&&item| !problem.is_direct(from, device[item])) {
            let is_late = end.first.is_none_or(|first| schedule.segment_of[item] < first);
            match (problem.items[item].is_resource, device[item]) {
                (false, _) => end.is_read |= is_late,
                (true, HOST) => end.is_sent = true,
                (true, _) => end.is_read |= end.first.is_none(),
            }
        }
    }
}
