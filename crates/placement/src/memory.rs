//! How much memory an assignment takes on each device, and what it can't do without.
//!
//! What counts is what a run makes or brings: on the host each tensor from the item that makes it, or the
//! transfer that brings it, to its last use; feeds, constants and variables are there anyway. Another
//! device holds everything that is on it: resources at all times, and each segment's tensors and constants in memory of
//! the segment's own, so that the peaks of its segments add up. An elementwise item may write over
//! what it reads last, and what only goes into a resource of its device is written there; but what a segment takes from
//! elsewhere it keeps until it ends. On top comes the staging memory of the segment that sends and takes most: if it
//! finds none, it waits for others.
//!
//! This is above what the compiler will need, which also computes again what it can't keep. So it guides
//! the choice; only what can't be done without is refused.

use crate::Family;
use crate::ends::Ends;
use crate::order::Schedule;
use crate::price::{Crossing, home};
use crate::problem::{HOST, Problem, Producer, TensorEdge};

/// The smallest piece of staging memory.
const MIN_CHUNK: u64 = 64 << 10;
/// The largest piece of staging memory that several tensors share.
pub const SHARED_CHUNK: u64 = 64 << 20;
/// Larger ones are multiples of this.
const CHUNK_STEP: u64 = 16 << 20;
/// Bytes of the status word of a segment that its data can fail, and what it is about. See `shaders/lib/status.wgsl`.
pub const STATUS_BYTES: u64 = 20;

/// The piece of staging memory that is taken for so many bytes: a power of two, or a multiple of 16 MiB.
pub fn chunk_bytes(n_bytes: u64) -> u64 {
    match n_bytes {
        0 => 0,
        _ if n_bytes <= MIN_CHUNK => MIN_CHUNK,
        _ if n_bytes <= SHARED_CHUNK => n_bytes.next_power_of_two(),
        _ => n_bytes.checked_next_multiple_of(CHUNK_STEP).unwrap_or(u64::MAX),
    }
}

/// The staging memory through which tensors go to a device and come from it in one submission. What goes there fills
/// pieces one after the other; what comes from there is whole in one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Staged {
    up: u64,
    /// The full pieces for what comes, and what is in the last.
    down: u64,
    open: u64,
}

impl Staged {
    /// Adds a tensor that goes to the device.
    pub fn send(&mut self, n_bytes: u64) {
        self.up = self.up.saturating_add(place(n_bytes));
    }

    /// Adds a tensor that comes from the device.
    pub fn receive(&mut self, n_bytes: u64) {
        let size = place(n_bytes);
        let both = self.open.saturating_add(size);
        if self.open > 0 && both > SHARED_CHUNK {
            self.down = self.down.saturating_add(chunk_bytes(self.open));
            self.open = size;
        } else {
            self.open = both;
        }
    }

    /// Adds what tells whether the data failed the submission.
    pub fn receive_status(&mut self) {
        self.receive(STATUS_BYTES);
    }

    /// All of it together.
    pub fn bytes(&self) -> u64 {
        let full = self.up / SHARED_CHUNK * SHARED_CHUNK;
        let parts = [chunk_bytes(self.up - full), self.down, chunk_bytes(self.open)];
        parts.into_iter().fold(full, u64::saturating_add)
    }
}

/// Tensors lie at multiples of 16 bytes.
fn place(n_bytes: u64) -> u64 {
    n_bytes.checked_next_multiple_of(16).unwrap_or(u64::MAX)
}

/// An assignment with its segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) schedule: &'a Schedule,
    pub(crate) ends: &'a Ends,
    pub(crate) device: &'a [usize],
}

/// The peaks of one assignment, with buffers that are used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Where in the sequence each item comes.
    position: Vec<u32>,
    /// Where each segment starts and ends in the sequence. What only reads is at the start, and what only stores comes
    /// after the last item.
    spans: Vec<(u32, u32)>,
    /// The bytes that go before each position on each device, and those that come: device `d` and position `p`
    /// are at `d * positions + p`.
    changes: Vec<Change>,
    n_positions: usize,
    /// What crosses for each segment.
    staged: Vec<Staged>,
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
    pub(crate) fn run(&mut self, at: At<'_>, crossings: &[Crossing]) {
        let At { problem, schedule, device, .. } = at;
        self.number(schedule, device.len());
        // The items, what is stored after them, and the end.
        self.n_positions = schedule.sequence.len() + 2;
        self.changes.clear();
        self.changes.resize(problem.devices.len() * self.n_positions, Change::default());
        self.peaks.clear();
        self.peaks.resize(problem.devices.len(), 0);
        for tensor in &problem.tensors {
            self.add_made(at, tensor);
        }
        for crossing in crossings {
            self.add_brought(at, crossing);
        }
        self.sweep(schedule);
        for (peak, resident) in self.peaks.iter_mut().zip(residents(problem, device)) {
            *peak = peak.saturating_add(resident);
        }
        self.keep_constants(at);
        self.stage(at, crossings);
    }

    /// Adds the constants of each segment.
    fn keep_constants(&mut self, at: At<'_>) {
        let mut segments: Vec<u32> = Vec::new();
        for constant in &at.problem.constants {
            segments.clear();
            let there = constant.consumers.iter().filter(|&&item| at.device[item] != HOST);
            segments.extend(there.filter_map(|&item| match at.problem.items[item].is_resource {
                true => at.ends.last(at.problem, at.schedule, at.device, None, at.device[item]),
                false => Some(at.schedule.segment_of[item]),
            }));
            segments.sort_unstable();
            segments.dedup();
            for &segment in &segments {
                let peak = &mut self.peaks[at.schedule.devices[segment as usize]];
                *peak = peak.saturating_add(constant.bytes);
            }
        }
    }

    fn number(&mut self, schedule: &Schedule, n_items: usize) {
        self.position.clear();
        self.position.resize(n_items, 0);
        self.spans.clear();
        let end = schedule.sequence.len() as u32;
        let empty = |segment: usize| if segment < schedule.n_front { (0, 0) } else { (end, end) };
        self.spans.extend((0..schedule.devices.len()).map(empty));
        let mut open = None;
        for (position, &item) in schedule.sequence.iter().enumerate() {
            let position = position as u32;
            self.position[item as usize] = position;
            let segment = schedule.segment_of[item as usize];
            let span = &mut self.spans[segment as usize];
            let first = if open == Some(segment) { span.0 } else { position };
            (*span, open) = ((first, position), Some(segment));
        }
    }

    /// The life of a tensor on a device from a position in `segment` on, until its last use. What a later segment of a
    /// device takes, it has until it ends.
    fn life(&self, at: At<'_>, tensor: &TensorEdge, on: usize, segment: u32, from: u32) -> Life {
        let mut life = Life { from, to: from, reusable: false };
        let (mut last, mut is_stored) = (segment, false);
        for &item in tensor.consumers.iter().filter(|&&item| at.device[item] == on) {
            if at.problem.items[item].is_resource {
                is_stored = true;
                last = last.max(self.stored_in(at, tensor, on).unwrap_or(segment));
            } else if self.position[item] >= life.to {
                life.to = self.position[item];
                life.reusable = is_elementwise(at.problem, item);
                last = last.max(at.schedule.segment_of[item]);
            }
        }
        if on == HOST && (is_stored || tensor.host_reads) {
            return Life { to: u32::MAX, reusable: false, ..life };
        }
        if on != HOST && (is_stored || last != segment) {
            let end = self.spans[last as usize].1;
            return Life { to: life.to.max(end), reusable: false, ..life };
        }
        life
    }

    /// The segment that stores a tensor into resources of a device.
    fn stored_in(&self, at: At<'_>, tensor: &TensorEdge, on: usize) -> Option<u32> {
        at.ends.last(at.problem, at.schedule, at.device, tensor.producer.item(), on)
    }

    fn add_made(&mut self, at: At<'_>, tensor: &TensorEdge) {
        let At { problem, schedule, device, .. } = at;
        let Producer::Item(item) = tensor.producer else { return };
        if problem.items[item].is_resource {
            return;
        }
        let (on, segment) = (device[item], schedule.segment_of[item]);
        let is_here = || on == HOST || self.stored_in(at, tensor, on) == Some(segment);
        if is_stored_in_place(problem, device, tensor, on) && is_here() {
            return;
        }
        let mut life = self.life(at, tensor, on, segment, self.position[item]);
        let leaves = tensor.consumers.iter().any(|&other| device[other] != on)
            || (tensor.host_reads && on != HOST);
        if leaves {
            // It is sent at the end of its segment, or from the host until the last that takes it.
            let until = if on == HOST {
                let others = tensor.consumers.iter().filter(|&&other| device[other] != on);
                let until = others.map(|&other| match problem.items[other].is_resource {
                    true => u32::MAX,
                    false => self.position[other],
                });
                until.max().unwrap_or(0)
            } else {
                self.spans[segment as usize].1
            };
            life = Life { to: life.to.max(until), reusable: false, ..life };
        }
        self.live(on, tensor.bytes, life);
    }

    fn add_brought(&mut self, at: At<'_>, crossing: &Crossing) {
        let tensor = &at.problem.tensors[crossing.tensor as usize];
        let on = crossing.to as usize;
        let (start, end) = self.spans[crossing.segment as usize];
        let life = if on == HOST {
            self.life(at, tensor, on, crossing.segment, end)
        } else {
            let life = self.life(at, tensor, on, crossing.segment, start);
            Life { to: life.to.max(end), reusable: false, ..life }
        };
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
            let mut spans = self.spans.iter().zip(&schedule.devices);
            let end = schedule.sequence.len();
            let stores_late = spans.any(|(span, &on)| on == device && span.0 as usize == end);
            for (position, change) in changes.iter().enumerate() {
                let item = schedule.sequence.get(position);
                let now = item.map(|&item| schedule.segment_of[item as usize]);
                live = live.saturating_sub(change.goes);
                if device != HOST && now != open {
                    sum = sum.saturating_add(most);
                    (most, open) = (0, now);
                }
                live = live.saturating_add(change.comes);
                let here = match now {
                    Some(segment) => schedule.devices[segment as usize] == device,
                    None => stores_late && position == end,
                };
                if here || change.comes > 0 {
                    most = most.max(live);
                }
            }
            *peak = sum.saturating_add(most);
        }
    }

    /// Adds the staging memory of the segment of each device that takes most.
    fn stage(&mut self, at: At<'_>, crossings: &[Crossing]) {
        let At { problem, schedule, .. } = at;
        self.staged.clear();
        self.staged.resize(schedule.devices.len(), Staged::default());
        let is_staged = |c: &&Crossing| !problem.is_direct(c.from as usize, c.to as usize);
        for crossing in crossings.iter().filter(is_staged) {
            let bytes = problem.tensors[crossing.tensor as usize].bytes;
            let staged = &mut self.staged[crossing.segment as usize];
            if crossing.to as usize == HOST {
                staged.receive(bytes);
            } else {
                staged.send(bytes);
            }
        }
        let works = |item: &&usize| !problem.items[**item].is_resource;
        let fallible = problem.fallible.iter().filter(works);
        let mut fallible: Vec<u32> = fallible.map(|&item| schedule.segment_of[item]).collect();
        fallible.sort_unstable();
        fallible.dedup();
        fallible.into_iter().for_each(|segment| self.staged[segment as usize].receive_status());
        for (on, peak) in self.peaks.iter_mut().enumerate().filter(|&(on, _)| on != HOST) {
            let own = self.staged.iter().zip(&schedule.devices).filter(|&(_, &d)| d == on);
            let most = own.map(|(staged, _)| staged.bytes()).max().unwrap_or(0);
            *peak = peak.saturating_add(most);
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

/// What resources take on each device at all times. Those on the host are not counted.
fn residents(problem: &Problem, device: &[usize]) -> Vec<u64> {
    let mut own = vec![0u64; problem.items.len()];
    let mut note = |item: usize, bytes: u64| {
        if problem.items[item].is_resource {
            own[item] = own[item].max(bytes);
        }
    };
    for tensor in &problem.tensors {
        let items = tensor.consumers.iter().copied().chain(tensor.producer.item());
        items.for_each(|item| note(item, tensor.bytes));
    }
    for constant in &problem.constants {
        constant.consumers.iter().for_each(|&item| note(item, constant.bytes));
    }
    let mut sums = vec![0u64; problem.devices.len()];
    for (&bytes, &on) in own.iter().zip(device).filter(|&(_, &on)| on != HOST) {
        sums[on] = sums[on].saturating_add(bytes);
    }
    sums
}

/// Adds what constants take on each device, once. Those on the host are not counted.
fn add_constants(problem: &Problem, device: &[usize], sums: &mut [u64]) {
    for constant in &problem.constants {
        for (on, sum) in sums.iter_mut().enumerate().filter(|&(on, _)| on != HOST) {
            if constant.consumers.iter().any(|&item| device[item] == on) {
                *sum = sum.saturating_add(constant.bytes);
            }
        }
    }
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
    let mut at_all_times = residents(problem, device);
    add_constants(problem, device, &mut at_all_times);
    let mut least: Vec<Least> =
        at_all_times.into_iter().map(|resident| Least { resident, ..Least::default() }).collect();
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
