//! What an assignment is predicted to cost, with what a cut can't express.
//!
//! The price is the sum of: what a run takes by itself; each item's cost on its device; one submission for each segment,
//! also for those that only read or store (`ends.rs`); for each tensor and each other device that needs it, the time of
//! its bytes, once; and one latency for each crossing, which is all that leaves a segment for the host, or enters a
//! segment from it. What goes from one device to another that is not the host goes through the host, as two transfers;
//! but between two that submit to one queue it is one transfer, a copy in the segment that takes it.
//! Beside it stand the makespan (`overlap.rs`) and the memory (`memory.rs`).

use convoke_graph_core::Result;

use crate::ends::Ends;
use crate::memory::{At, Memory};
use crate::order::{Order, Schedule, SegmentOrder};
use crate::overlap::Overlap;
use crate::problem::{HOST, Item, Objective, Problem, Producer, TensorEdge};
use crate::{DeviceKind, Picoseconds};

/// What a run is predicted to take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Everything, one after the other.
    pub total: Picoseconds,
    /// Until the run is done, where devices work beside each other.
    pub makespan: Picoseconds,
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
    /// The most that lives there at once, without what the compiler can save: on the host what the run
    /// makes, elsewhere everything, with the staging memory through which tensors cross.
    pub peak_bytes: u64,
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

impl Transfer {
    /// Whether one GPU copies it from another with which it shares a queue: the host takes no part.
    pub fn is_copy(&self) -> bool {
        self.from != HOST && self.to != HOST
    }
}

/// How good an assignment is: the lower, the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// Bytes above what devices have, all devices together.
    pub(crate) excess: u64,
    /// The objective.
    pub(crate) time: Picoseconds,
    /// What decides among equals: the total time, where that is not the objective.
    pub(crate) total: Picoseconds,
    /// And then, how many resources are not where they are now.
    pub(crate) n_moved: usize,
}

impl Score {
    pub(crate) const WORST: Self = Self {
        excess: u64::MAX,
        time: Picoseconds::MAX,
        total: Picoseconds::MAX,
        n_moved: usize::MAX,
    };
}

/// What brings a tensor from one device to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crossing {
    /// The segment that sends it to the host, or that takes it elsewhere: from the host, or by a copy of its own.
    pub(crate) segment: u32,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) tensor: u32,
    /// Its place among the transfers.
    at: u32,
}

/// The prediction for `device`, which gives each item's device.
///
/// # Errors
/// `Internal` for a malformed problem, or an assignment that names devices that are not there.
pub fn price(problem: &Problem, device: &[usize]) -> Result<Prediction> {
    let order = problem.check()?;
    problem.check_places(device)?;
    Ok(Pricer::new(problem, &order).predict_best(device))
}

/// The prediction for an assignment in one order of segments. Nothing of a malformed problem.
pub(crate) fn predicted(problem: &Problem, device: &[usize], order: SegmentOrder) -> Prediction {
    let Ok(waits) = problem.check() else { return Prediction::default() };
    let mut pricer = Pricer::new(problem, &waits);
    pricer.schedule.order = order;
    pricer.predict(device)
}

/// Up to so many items, uses and tensors, both orders of segments are looked at.
const MAX_STEPS_FOR_BOTH: usize = 20_000;

/// Prices assignments of one problem, reusing its buffers.
#[derive(Debug)]
pub(crate) struct Pricer<'a> {
    problem: &'a Problem,
    order: &'a Order,
    /// The cost of item `i` on device `d` at `i * devices + d`.
    costs: Vec<Picoseconds>,
    pub(crate) schedule: Schedule,
    ends: Ends,
    transfers: Vec<Transfer>,
    crossings: Vec<Crossing>,
    overlap: Overlap,
    memory: Memory,
    /// All tensors and constants together.
    n_bytes: u64,
    /// The most that is on a device besides them: resources, and staging memory.
    n_besides: u64,
    /// The memory of the smallest device.
    least_memory: u64,
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
        let tensors = problem.tensors.iter().map(|tensor| tensor.bytes);
        let sizes = tensors.chain(problem.constants.iter().map(|constant| constant.bytes));
        let n_bytes = sizes.fold(0, u64::saturating_add);
        let memories = problem.devices.iter().map(|model| model.memory_bytes);
        let least_memory = memories.min().unwrap_or(u64::MAX);
        Self {
            problem,
            order,
            costs: costs.collect(),
            schedule: Schedule::default(),
            ends: Ends::new(problem),
            transfers: Vec::new(),
            crossings: Vec::new(),
            overlap: Overlap::default(),
            memory: Memory::default(),
            n_bytes,
            n_besides: most_besides(problem, n_bytes),
            least_memory,
            needs: vec![Need::No; n_devices],
        }
    }

    /// The cost of an item on a device.
    pub(crate) fn cost(&self, item: usize, device: usize) -> Picoseconds {
        self.costs[item * self.problem.devices.len() + device]
    }

    /// Who waits for whom.
    pub(crate) fn order(&self) -> &'a Order {
        self.order
    }

    /// How many steps one pricing takes.
    pub(crate) fn n_steps(&self) -> usize {
        self.order.n_steps() + self.problem.tensors.len()
    }

    /// How good an assignment is, in the better order of segments.
    pub(crate) fn score(&mut self, device: &[usize]) -> Score {
        let mut best = Score::WORST;
        for order in self.orders() {
            self.schedule.order = order;
            let total = self.total(device);
            let time = match self.problem.objective {
                Objective::Total => total,
                Objective::Makespan => self.makespan(device),
            };
            best = best.min(self.scored(device, time, total));
        }
        best
    }

    /// The orders of segments that are looked at: in very large problems only one.
    fn orders(&self) -> impl Iterator<Item = SegmentOrder> + use<> {
        let both = self.n_steps() <= MAX_STEPS_FOR_BOTH;
        std::iter::once(SegmentOrder::Declared).chain(both.then_some(SegmentOrder::DevicesFirst))
    }

    fn scored(&mut self, device: &[usize], time: Picoseconds, total: Picoseconds) -> Score {
        let excess = if self.most_bytes() > self.least_memory { self.excess(device) } else { 0 };
        let moves = |(item, &on): (&Item, &usize)| item.now.is_some_and(|now| now != on);
        let n_moved = self.problem.items.iter().zip(device).filter(|&at| moves(at)).count();
        Score { excess, time, total, n_moved }
    }

    /// No device takes more in the schedule at hand: no segment holds a tensor twice.
    pub(crate) fn most_bytes(&self) -> u64 {
        let n_segments = self.schedule.devices.len().max(1) as u64;
        self.n_bytes.saturating_mul(n_segments).saturating_add(self.n_besides)
    }

    /// What each device takes, after [`Self::total`].
    #[cfg(test)]
    pub(crate) fn peaks(&mut self, device: &[usize]) -> &[u64] {
        self.excess(device);
        &self.memory.peaks
    }

    /// The bytes above what devices have, after [`Self::total`].
    fn excess(&mut self, device: &[usize]) -> u64 {
        let at = At { problem: self.problem, schedule: &self.schedule, ends: &self.ends, device };
        self.memory.run(at, &self.crossings);
        self.over()
    }

    /// The bytes above what devices have, by the peaks at hand.
    fn over(&self) -> u64 {
        let over =
            |(model, &peak): (&crate::DeviceModel, &u64)| peak.saturating_sub(model.memory_bytes);
        let models = self.problem.devices.iter();
        models.zip(&self.memory.peaks).map(over).fold(0, u64::saturating_add)
    }

    /// The time until the run is done, after [`Self::total`].
    fn makespan(&mut self, device: &[usize]) -> Picoseconds {
        let problem = self.problem;
        let schedule = &self.schedule;
        let (costs, n_devices) = (&self.costs, problem.devices.len());
        let cost = |item: usize| costs[item * n_devices + device[item]];
        let timed = self.crossings.iter().map(|c| (c.segment, self.transfers[c.at as usize].time));
        let ends = &self.ends;
        let is_cpu = |d: usize| problem.devices[d].kind == DeviceKind::Cpu;
        let edges = self.transfers.iter().map(|t| (t, &problem.tensors[t.tensor]));
        // What is copied on the GPU is there when its queue comes to the copy.
        let staged = edges.filter(|(t, _)| !problem.is_direct(t.from, t.to));
        let sent = staged.filter(|(_, edge)| !is_cpu(home(edge, device)));
        let waits = sent.flat_map(|(transfer, edge)| {
            let sender = match edge.producer {
                Producer::Item(item) if !problem.items[item].is_resource => {
                    Some(schedule.segment_of[item])
                }
                _ => ends.first(home(edge, device)),
            };
            let works =
                |&&item: &&usize| device[item] == transfer.to && !problem.items[item].is_resource;
            let readers = edge.consumers.iter().filter(works);
            readers.filter_map(move |&item| Some((item as u32, sender?)))
        });
        self.overlap.makespan(problem, schedule, cost, timed, waits)
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

    /// The time of an assignment with its parts, in the better order of segments, which stays. Memory comes first, as in
    /// a score.
    pub(crate) fn predict_best(&mut self, device: &[usize]) -> Prediction {
        let objective = self.problem.objective;
        let mut best: Option<((u64, Picoseconds, Picoseconds), Prediction, SegmentOrder)> = None;
        for order in self.orders() {
            self.schedule.order = order;
            let prediction = self.predict(device);
            let (total, makespan) = (prediction.total, prediction.makespan);
            let key = match objective {
                Objective::Total => (self.over(), total, makespan),
                Objective::Makespan => (self.over(), makespan, total),
            };
            if best.as_ref().is_none_or(|(best, ..)| key < *best) {
                best = Some((key, prediction, order));
            }
        }
        let (_, prediction, order) = best.unwrap_or_default();
        self.schedule.order = order;
        prediction
    }

    /// The time of an assignment with its parts.
    fn predict(&mut self, device: &[usize]) -> Prediction {
        let total = self.total(device);
        let makespan = self.makespan(device);
        self.excess(device);
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
        for (total, &peak) in devices.iter_mut().zip(&self.memory.peaks) {
            total.peak_bytes = peak;
        }
        Prediction { total, makespan, devices, transfers: self.transfers.clone(), submissions }
    }

    /// Fills the schedule and the transfers.
    fn walk(&mut self, device: &[usize]) {
        self.schedule.run(self.problem, self.order, device);
        self.ends.add(self.problem, &mut self.schedule, device);
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
        let is_direct = |to: usize| self.problem.is_direct(from, to);
        let is_other = |d: usize| d != HOST && d != from && !is_direct(d);
        let beyond = |d: usize| is_other(d) && self.needs[d] != Need::No;
        let is_staged = from != HOST && (0..self.needs.len()).any(beyond);
        if (edge.host_reads || is_staged) && self.needs[HOST] == Need::No {
            self.needs[HOST] = Need::AtEnd;
        }
        for to in (0..self.needs.len()).filter(|&to| to != from) {
            let segment = match self.needs[to] {
                Need::No => continue,
                _ if to == HOST => self.segment_that_sends(edge, from),
                Need::At(segment) => segment,
                Need::AtEnd => self.segment_that_stores(edge, device, to),
            };
            let from = if to == HOST || is_direct(to) { from } else { HOST };
            let time = self.problem.link(from, to).bytes_time(edge.bytes);
            let at = self.transfers.len() as u32;
            let (sender, taker) = (from as u32, to as u32);
            let crossing = Crossing { segment, from: sender, to: taker, tensor: tensor as u32, at };
            self.crossings.push(crossing);
            self.transfers.push(Transfer { tensor, from, to, bytes: edge.bytes, time });
        }
    }

    /// The segment after which a tensor can be sent to the host.
    fn segment_that_sends(&self, edge: &TensorEdge, from: usize) -> u32 {
        match edge.producer {
            Producer::Item(item) if !self.problem.items[item].is_resource => {
                self.schedule.segment_of[item]
            }
            _ => self.ends.first(from).unwrap_or(0),
        }
    }

    /// The segment that stores a tensor into resources.
    fn segment_that_stores(&self, edge: &TensorEdge, device: &[usize], to: usize) -> u32 {
        let maker = edge.producer.item();
        self.ends.last(self.problem, &self.schedule, device, maker, to).unwrap_or(0)
    }

    /// Charges the first tensor of each crossing with the latency.
    fn pay_latencies(&mut self) {
        self.crossings.sort_unstable();
        let mut paid = None;
        for &Crossing { segment, from, to, at, .. } in &self.crossings {
            if paid != Some((segment, from, to)) {
                paid = Some((segment, from, to));
                let transfer = &mut self.transfers[at as usize];
                let latency = self.problem.link(from as usize, to as usize).latency;
                transfer.time = transfer.time.saturating_add(latency);
            }
        }
    }
}

/// The most that resources and constants take on a device, and staging memory if everything crosses.
fn most_besides(problem: &Problem, n_bytes: u64) -> u64 {
    let is_resource = |item: &usize| problem.items[*item].is_resource;
    let stored = |consumers: &[usize]| consumers.iter().filter(|item| is_resource(item)).count();
    let tensors = problem.tensors.iter().map(|tensor| {
        let made = usize::from(tensor.producer.item().as_ref().is_some_and(is_resource));
        tensor.bytes.saturating_mul((stored(&tensor.consumers) + made) as u64)
    });
    let constants = problem
        .constants
        .iter()
        .map(|constant| constant.bytes.saturating_mul(1 + stored(&constant.consumers) as u64));
    // A piece of staging memory has 64 KiB, or is filled to more than a half, or together with the one before it.
    let placed = n_bytes.saturating_add(16 * (problem.tensors.len() as u64 + 2));
    let staged = placed.saturating_mul(3).saturating_add(1 << 18);
    tensors.chain(constants).fold(staged, u64::saturating_add)
}

/// The device where a tensor is without a transfer.
pub(crate) fn home(tensor: &TensorEdge, device: &[usize]) -> usize {
    match tensor.producer {
        Producer::Item(item) => device[item],
        Producer::Host => HOST,
    }
}
