//! What an assignment is predicted to cost, with what a cut can't express.
//!
//! The price is the sum of: what a run takes by itself; each item's cost on its device; one submission for each segment; for each
//! tensor and each other device that needs it, the time of its bytes, once; and one latency for each
//! crossing, which is all that leaves a segment for the host, or enters a segment from one device.

use convoke_graph_core::{Error, Result};

use crate::order::{Order, Schedule};
use crate::problem::{HOST, Problem, Producer, TensorEdge};
use crate::{DeviceKind, Picoseconds};

/// What a run is predicted to take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Everything, one after the other.
    pub total: Picoseconds,
    /// The part of each device, in the problem's order.
    pub devices: Vec<DeviceTotal>,
    /// What crosses, in the order of the tensors.
    pub transfers: Vec<Transfer>,
    /// Segments handed to devices that are not CPUs.
    pub submissions: usize,
}

/// What one device does in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceTotal {
    /// The time of its items.
    pub compute: Picoseconds,
    /// The time to hand it its segments.
    pub submission: Picoseconds,
    /// The number of its items, resources among them.
    pub items: usize,
    /// The bytes of the tensors that are made there or brought there.
    pub bytes: u64,
}

/// A tensor that crosses from one device to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Its place in [`Problem::tensors`].
    pub tensor: usize,
    /// The device that has it.
    pub from: usize,
    /// The device that needs it.
    pub to: usize,
    /// Its size.
    pub bytes: u64,
    /// The time of its bytes. The first tensor of a crossing also pays the latency.
    pub time: Picoseconds,
}

/// The prediction for `device`, which gives each item's device.
///
/// # Errors
/// `Internal` for a malformed problem, or an assignment that names devices that are not there.
pub fn price(problem: &Problem, device: &[usize]) -> Result<Prediction> {
    let order = problem.check()?;
    let n_devices = problem.devices.len();
    if device.len() != problem.items.len() || device.iter().any(|&d| d >= n_devices) {
        return Err(Error::internal("an assignment needs one of the devices for each item"));
    }
    Ok(Pricer::new(problem, &order).predict(device))
}

/// Prices assignments of one problem, reusing its buffers.
#[derive(Debug)]
pub(crate) struct Pricer<'a> {
    problem: &'a Problem,
    order: &'a Order,
    /// The cost of item `i` on device `d` at `i * devices + d`.
    costs: Vec<Picoseconds>,
    pub(crate) schedule: Schedule,
    /// The last segment of each device, once it has one.
    last: Vec<Option<u32>>,
    /// The first segment of each device, once it has one.
    first: Vec<Option<u32>>,
    transfers: Vec<Transfer>,
    /// For each transfer: segment, from, to, and its place in `transfers`.
    crossings: Vec<(u32, u32, u32, u32)>,
    /// Where the consumers of the tensor at hand are.
    needs: Vec<Need>,
}

/// Whether and from when on a device needs the tensor at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    No,
    /// Only to store it in a resource at the end.
    AtEnd,
    /// For this segment.
    At(u32),
}

impl<'a> Pricer<'a> {
    pub(crate) fn new(problem: &'a Problem, order: &'a Order) -> Self {
        let n_devices = problem.devices.len();
        let items = 0..problem.items.len();
        let costs = items.flat_map(|i| (0..n_devices).map(move |d| problem.item_cost(i, d)));
        Self {
            problem,
            order,
            costs: costs.collect(),
            schedule: Schedule::default(),
            last: vec![None; n_devices],
            first: vec![None; n_devices],
            transfers: Vec::new(),
            crossings: Vec::new(),
            needs: vec![Need::No; n_devices],
        }
    }

    /// The cost of an item on a device.
    pub(crate) fn cost(&self, item: usize, device: usize) -> Picoseconds {
        self.costs[item * self.problem.devices.len() + device]
    }

    /// How many steps one pricing takes.
    pub(crate) fn n_steps(&self) -> usize {
        self.order.n_steps() + self.problem.tensors.len()
    }

    /// The time of an assignment.
    pub(crate) fn total(&mut self, device: &[usize]) -> Picoseconds {
        self.walk(device);
        let compute = device.iter().enumerate().map(|(item, &d)| self.cost(item, d));
        let submissions = self.schedule.devices.iter().map(|&d| self.problem.devices[d].submission);
        let transfers = self.transfers.iter().map(|transfer| transfer.time);
        let run = self.problem.devices[HOST].run;
        compute.chain(submissions).chain(transfers).fold(run, Picoseconds::saturating_add)
    }

    /// The time of an assignment with its parts.
    pub(crate) fn predict(&mut self, device: &[usize]) -> Prediction {
        let total = self.total(device);
        let mut devices = vec![DeviceTotal::default(); self.problem.devices.len()];
        for (item, &d) in device.iter().enumerate() {
            devices[d].items += 1;
            devices[d].compute = devices[d].compute.saturating_add(self.cost(item, d));
        }
        let mut submissions = 0;
        for &d in &self.schedule.devices {
            let model = &self.problem.devices[d];
            devices[d].submission = devices[d].submission.saturating_add(model.submission);
            submissions += usize::from(model.kind != DeviceKind::Cpu);
        }
        let made = self.problem.tensors.iter().map(|t| (home(t, device), t.bytes));
        let brought = self.transfers.iter().map(|transfer| (transfer.to, transfer.bytes));
        for (d, n_bytes) in made.chain(brought) {
            devices[d].bytes = devices[d].bytes.saturating_add(n_bytes);
        }
        Prediction { total, devices, transfers: self.transfers.clone(), submissions }
    }

    /// Fills the schedule and the transfers.
    fn walk(&mut self, device: &[usize]) {
        self.schedule.run(self.problem, self.order, device);
        self.first.fill(None);
        self.last.fill(None);
        for (segment, &d) in self.schedule.devices.iter().enumerate() {
            self.first[d].get_or_insert(segment as u32);
            self.last[d] = Some(segment as u32);
        }
        self.transfers.clear();
        self.crossings.clear();
        for tensor in 0..self.problem.tensors.len() {
            self.transfer(tensor, device);
        }
        self.pay_latencies();
    }

    /// Adds the transfers of one tensor.
    fn transfer(&mut self, tensor: usize, device: &[usize]) {
        let edge = &self.problem.tensors[tensor];
        let from = home(edge, device);
        let stays = edge.consumers.iter().all(|&item| device[item] == from);
        if stays && !(edge.host_reads && from != HOST) {
            return;
        }
        self.needs.fill(Need::No);
        for &item in &edge.consumers {
            let need = &mut self.needs[device[item]];
            *need = match (*need, self.problem.items[item].is_resource) {
                (Need::No, true) => Need::AtEnd,
                (before, true) => before,
                (Need::At(segment), false) => Need::At(segment.min(self.schedule.segment_of[item])),
                (_, false) => Need::At(self.schedule.segment_of[item]),
            };
        }
        if edge.host_reads && self.needs[HOST] == Need::No {
            self.needs[HOST] = Need::AtEnd;
        }
        for to in (0..self.needs.len()).filter(|&to| to != from) {
            let segment = match self.needs[to] {
                Need::No => continue,
                _ if to == HOST => self.segment_that_sends(edge, from),
                Need::At(segment) => segment,
                Need::AtEnd => self.segment_on(to, false),
            };
            let time = self.problem.link(from, to).bytes_time(edge.bytes);
            let at = self.transfers.len() as u32;
            self.crossings.push((segment, from as u32, to as u32, at));
            self.transfers.push(Transfer { tensor, from, to, bytes: edge.bytes, time });
        }
    }

    /// The segment after which a tensor can be sent to the host.
    fn segment_that_sends(&mut self, edge: &TensorEdge, from: usize) -> u32 {
        match edge.producer {
            Producer::Item(item) if !self.problem.items[item].is_resource => {
                self.schedule.segment_of[item]
            }
            _ => self.segment_on(from, true),
        }
    }

    /// The first or last segment of a device; an empty one is added where there is none, since moving a
    /// resource's contents takes a submission.
    fn segment_on(&mut self, device: usize, first: bool) -> u32 {
        let known = if first { self.first[device] } else { self.last[device] };
        known.unwrap_or_else(|| {
            let segment = self.schedule.devices.len() as u32;
            self.schedule.devices.push(device);
            self.first[device] = Some(segment);
            self.last[device] = Some(segment);
            segment
        })
    }

    /// Charges the first tensor of each crossing with the latency.
    fn pay_latencies(&mut self) {
        self.crossings.sort_unstable();
        let mut paid = None;
        for &(segment, from, to, at) in &self.crossings {
            if paid != Some((segment, from, to)) {
                paid = Some((segment, from, to));
                let transfer = &mut self.transfers[at as usize];
                let latency = self.problem.link(from as usize, to as usize).latency;
                transfer.time = transfer.time.saturating_add(latency);
            }
        }
    }
}

/// The device where a tensor is without a transfer.
pub(crate) fn home(tensor: &TensorEdge, device: &[usize]) -> usize {
    match tensor.producer {
        Producer::Item(item) => device[item],
        Producer::Host => HOST,
    }
}
