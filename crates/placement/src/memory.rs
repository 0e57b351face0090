//! How much memory an assignment takes on each device, and what it can't do without.
//!
//! What counts is what a run makes or brings: on the host each tensor from the item that makes it, or the
//! transfer that brings it, to its last use; feeds, constants and variables are there anyway. Another
//! device holds everything that is on it: resources and constants at all times, and each segment's tensors in memory of
//! the segment's own, so that the peaks of its segments add up. An elementwise item may write over
//! what it reads last, and what only goes into a resource of its device is written there.
//!
//! This is above what the compiler will need, which also computes again what it can't keep. So it guides
//! the choice; only what can't be done without is refused.

use crate::Family;
use crate::order::Schedule;
use crate::price::{Crossing, home};
use crate::problem::{HOST, Problem, Producer, TensorEdge};

/// The peaks of one assignment, with buffers that are used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Where in the sequence each item comes.
    position: Vec<u32>,
    /// Where each segment starts and ends in the sequence.
    spans: Vec<(u32, u32)>,
    /// The bytes that go before each position on each device, and those that come: device `d` and position `p`
    /// are at `d * positions + p`.
    changes: Vec<Change>,
    n_positions: usize,
    pub(crate) peaks: Vec<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Change {
    goes: u64,
    comes: u64,
}

/// When a tensor is on a device, in positions, both included.
#[derive(Debug, Clone, Copy)]
struct Life {
    from: u32,
    to: u32,
    /// Whether what `to` makes may lie where the tensor was.
    reusable: bool,
}

impl Memory {
    /// Fills the peaks.
    pub(crate) fn run(
        &mut self,
        problem: &Problem,
        schedule: &Schedule,
        device: &[usize],
        crossings: &[Crossing],
    ) {
        self.number(schedule, device.len());
        self.n_positions = schedule.sequence.len() + 1;
        self.changes.clear();
        self.changes.resize(problem.devices.len() * self.n_positions, Change::default());
        self.peaks.clear();
        self.peaks.resize(problem.devices.len(), 0);
        for tensor in &problem.tensors {
            self.add_made(problem, schedule, device, tensor);
        }
        for crossing in crossings {
            self.add_brought(problem, device, crossing);
        }
        self.sweep(schedule);
        for (peak, resident) in self.peaks.iter_mut().zip(residents(problem, device)) {
            *peak = peak.saturating_add(resident);
        }
    }

    fn number(&mut self, schedule: &Schedule, n_items: usize) {
        self.position.clear();
        self.position.resize(n_items, 0);
        self.spans.clear();
        self.spans.resize(schedule.devices.len(), (u32::MAX, 0));
        for (position, &item) in schedule.sequence.iter().enumerate() {
            let position = position as u32;
            self.position[item as usize] = position;
            let span = &mut self.spans[schedule.segment_of[item as usize] as usize];
            *span = (span.0.min(position), span.1.max(position));
        }
    }

    /// The last use of a tensor on a device at or after `from`.
    fn last_use(
        &self,
        problem: &Problem,
        device: &[usize],
        tensor: &TensorEdge,
        on: usize,
        from: u32,
    ) -> Life {
        let mut life = Life { from, to: from, reusable: false };
        for &item in tensor.consumers.iter().filter(|&&item| device[item] == on) {
            if problem.items[item].is_resource {
                return Life { from, to: u32::MAX, reusable: false };
            }
            if self.position[item] >= life.to {
                let reusable = is_elementwise(problem, item);
                life = Life { from, to: self.position[item], reusable };
            }
        }
        if tensor.host_reads && on == HOST {
            life = Life { from, to: u32::MAX, reusable: false };
        }
        life
    }

    fn add_made(
        &mut self,
        problem: &Problem,
        schedule: &Schedule,
        device: &[usize],
        tensor: &TensorEdge,
    ) {
        let Producer::Item(item) = tensor.producer else { return };
        if problem.items[item].is_resource {
            return;
        }
        let on = device[item];
        if is_stored_in_place(problem, device, tensor, on) {
            return;
        }
        let mut life = self.last_use(problem, device, tensor, on, self.position[item]);
        let leaves = tensor.consumers.iter().any(|&other| device[other] != on)
            || (tensor.host_reads && on != HOST);
        if leaves {
            // It is sent at the end of its segment, or from the host until the last that takes it.
            let until = if on == HOST {
                let others = tensor.consumers.iter().filter(|&&other| device[other] != on);
                others.map(|&other| self.position[other]).max().unwrap_or(0)
            } else {
                self.spans[schedule.segment_of[item] as usize].1
            };
            life = Life { to: life.to.max(until), reusable: false, ..life };
        }
        self.live(on, tensor.bytes, life);
    }

    fn add_brought(&mut self, problem: &Problem, device: &[usize], crossing: &Crossing) {
        let tensor = &problem.tensors[crossing.tensor as usize];
        let on = crossing.to as usize;
        let span = self.spans.get(crossing.segment as usize).copied();
        let (start, end) = span.filter(|(start, end)| start <= end).unwrap_or((0, 0));
        let from = if on == HOST { end } else { start };
        let life = self.last_use(problem, device, tensor, on, from);
        self.live(on, tensor.bytes, life);
    }

    fn live(&mut self, on: usize, bytes: u64, life: Life) {
        let makes_room = life.reusable && life.to > life.from;
        let gone = if makes_room { life.to } else { life.to.saturating_add(1) };
        let last = self.n_positions - 1;
        let at = |position: u32| on * self.n_positions + last.min(position as usize);
        let (from, gone) = (at(life.from), at(gone));
        let comes = &mut self.changes[from].comes;
        *comes = comes.saturating_add(bytes);
        let goes = &mut self.changes[gone].goes;
        *goes = goes.saturating_add(bytes);
    }

    /// Adds up what lives at each position, and keeps the most: of all on the host, of each segment elsewhere.
    fn sweep(&mut self, schedule: &Schedule) {
        for (device, peak) in self.peaks.iter_mut().enumerate() {
            let changes = &self.changes[device * self.n_positions..][..self.n_positions];
            let (mut live, mut most, mut sum, mut open) = (0u64, 0u64, 0u64, None);
            for (position, change) in changes.iter().enumerate() {
                let item = schedule.sequence.get(position);
                let now = item.map(|&item| schedule.segment_of[item as usize]);
                live = live.saturating_sub(change.goes);
                if device != HOST && now != open {
                    sum = sum.saturating_add(most);
                    (most, open) = (0, now);
                }
                live = live.saturating_add(change.comes);
                let here = now.is_some_and(|segment| schedule.devices[segment as usize] == device);
                if here || change.comes > 0 {
                    most = most.max(live);
                }
            }
            *peak = sum.saturating_add(most);
        }
    }
}

/// Whether each element of an item's results is of the elements at its place.
fn is_elementwise(problem: &Problem, item: usize) -> bool {
    matches!(problem.items[item].work.family, Family::Elementwise | Family::Function)
}

/// Whether a tensor made on a device only goes into resources there.
fn is_stored_in_place(problem: &Problem, device: &[usize], tensor: &TensorEdge, on: usize) -> bool {
    let stored = |&item: &usize| problem.items[item].is_resource && device[item] == on;
    !tensor.host_reads && !tensor.consumers.is_empty() && tensor.consumers.iter().all(stored)
}

/// What resources and constants take on each device at all times. Those on the host are not counted.
fn residents(problem: &Problem, device: &[usize]) -> Vec<u64> {
    let mut own = vec![0u64; problem.items.len()];
    for tensor in &problem.tensors {
        let made_by = tensor.producer.item();
        for item in tensor.consumers.iter().copied().chain(made_by) {
            if problem.items[item].is_resource {
                own[item] = own[item].max(tensor.bytes);
            }
        }
    }
    let mut sums = vec![0u64; problem.devices.len()];
    for constant in &problem.constants {
        for (on, sum) in sums.iter_mut().enumerate().filter(|&(on, _)| on != HOST) {
            if constant.consumers.iter().any(|&item| device[item] == on) {
                *sum = sum.saturating_add(constant.bytes);
            }
        }
    }
    for (&bytes, &on) in own.iter().zip(device).filter(|&(_, &on)| on != HOST) {
        sums[on] = sums[on].saturating_add(bytes);
    }
    sums
}

/// What a device can't do without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Least {
    /// What its resources and constants take at all times.
    pub(crate) resident: u64,
    /// The operands and results of the item that needs most of them.
    pub(crate) bytes: u64,
    /// That item, if any needs memory.
    pub(crate) item: Option<usize>,
}

impl Least {
    /// All of it.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.resident.saturating_add(self.bytes)
    }
}

/// What each device can't do without.
pub(crate) fn least(problem: &Problem, device: &[usize]) -> Vec<Least> {
    let (mut read, mut made) = (vec![0u64; device.len()], vec![0u64; device.len()]);
    let is_resource = |item: usize| problem.items[item].is_resource;
    for tensor in &problem.tensors {
        let from = home(tensor, device);
        let made_by = tensor.producer.item();
        let is_stored = |&item: &usize| {
            is_resource(item) || is_stored_in_place(problem, device, tensor, device[item])
        };
        if let Some(item) = made_by.filter(|item| !is_stored(item)) {
            made[item] = made[item].saturating_add(tensor.bytes);
        }
        // What the host was given, and what is in a resource here, is counted already or not at all.
        let is_there = made_by.is_none_or(is_resource);
        let mut consumers = tensor.consumers.clone();
        consumers.sort_unstable();
        consumers.dedup();
        for item in consumers.into_iter().filter(|&item| !is_resource(item)) {
            if !(is_there && device[item] == from) {
                read[item] = read[item].saturating_add(tensor.bytes);
            }
        }
    }
    let at_all_times = residents(problem, device).into_iter();
    let mut least: Vec<Least> =
        at_all_times.map(|resident| Least { resident, ..Least::default() }).collect();
    for (item, &on) in device.iter().enumerate() {
        let in_place = is_elementwise(problem, item);
        let needs = if in_place {
            read[item].max(made[item])
        } else {
            read[item].saturating_add(made[item])
        };
        if needs > least[on].bytes {
            (least[on].bytes, least[on].item) = (needs, Some(item));
        }
    }
    least
}
