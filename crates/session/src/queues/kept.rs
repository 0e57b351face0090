//! One queue of a session: its elements, who waits, and in which order elements leave.

use std::collections::VecDeque;
use std::sync::Arc;

use convoke_graph_core::{HostTensor, QueueKind, QueueRole, QueueSpec, philox};
use smallvec::SmallVec;

use super::keyed::Keyed;
use super::parts::Parts;

/// The components of an element.
pub(crate) type Item = SmallVec<[HostTensor; 2]>;

/// One queue.
pub(super) struct Kept {
    pub spec: Arc<QueueSpec>,
    /// When it was made or reset last.
    pub made: u64,
    /// The elements, each with its number in the order in which they came.
    pub items: VecDeque<(u64, Item)>,
    /// The number of the next element.
    pub next: u64,
    /// Elements that runs under way will put.
    pub reserved: usize,
    pub closed: Option<Closed>,
    /// How often an element was drawn at random.
    pub draws: u64,
    /// Of a barrier or a map staging area, what is not complete.
    pub parts: Parts,
    /// Of a map staging area, what is.
    pub keyed: Keyed,
    /// Of an accumulator, the step below which gradients are too old.
    pub step: i64,
    /// Tickets that wait for elements, and for how many.
    pub takers: VecDeque<(u64, usize)>,
    /// Tickets that wait for room.
    pub putters: VecDeque<u64>,
}

/// How a queue was closed.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// The tickets of those that waited for room in it then, each once: they may still put.
    pending: Vec<u64>,
    /// Whether those were cancelled.
    pub cancels: bool,
}

/// An element, the place that it was taken from, and its number.
pub(super) type Popped = (usize, u64, Item);

/// A queue's kind and name, for errors.
pub(super) fn label(spec: &QueueSpec) -> String {
    let kind = match (spec.role, spec.kind) {
        (QueueRole::Staging, _) => "staging area",
        (QueueRole::Accumulator(_), _) => "accumulator",
        (QueueRole::Barrier, _) => "barrier",
        (QueueRole::MapStaging, _) => "map staging area",
        (QueueRole::SparseAccumulator(_), _) => "sparse accumulator",
        (QueueRole::Queue, QueueKind::Fifo) => "FIFO queue",
        (QueueRole::Queue, QueueKind::PaddingFifo) => "padding FIFO queue",
        (QueueRole::Queue, QueueKind::RandomShuffle { .. }) => "shuffling queue",
        (QueueRole::Queue, QueueKind::Priority) => "priority queue",
    };
    format!("{kind} '{}'", spec.name)
}

impl Kept {
    /// The kind and the name, for errors.
    pub fn label(&self) -> String {
        label(&self.spec)
    }

    /// Whether it is as one that nobody has used.
    pub fn is_new(&self) -> bool {
        let is_empty = self.items.is_empty() && self.parts.len() == 0;
        is_empty && self.draws == 0 && self.step == 0 && self.closed.is_none()
    }

    /// Whether one more element of a run has room beside `before` others of it, once the run has taken what it takes. For
    /// `had` of those it has room already. Who waits for more elements than there is room for makes room, and so does who
    /// puts more.
    pub fn has_room(&self, before: usize, had: usize, taken: usize) -> bool {
        let Some(capacity) = self.spec.capacity else { return true };
        let first = self.takers.front().map(|(ticket, _)| *ticket);
        let own = self.takers.iter().take_while(|(ticket, _)| Some(*ticket) == first);
        let wanted = own.fold(self.kept_back(), |sum, (_, n)| sum.saturating_add(*n));
        let wanted = wanted.max(self.keyed.seekers.front().map_or(0, |first| first.n));
        let left = self.items.len().saturating_sub(taken).saturating_add(self.promised());
        let left = left.saturating_sub(had);
        left.saturating_add(before) < capacity.max(wanted).max(before.saturating_add(1))
    }

    /// How many elements have room besides those that are complete.
    pub fn promised(&self) -> usize {
        if self.is_keyed() { self.parts.n_open() } else { self.reserved }
    }

    /// How many elements a random choice is made among besides those that are taken.
    fn kept_back(&self) -> usize {
        match self.spec.kind {
            QueueKind::RandomShuffle { min_after_dequeue, .. } if !self.is_final() => {
                min_after_dequeue
            }
            _ => 0,
        }
    }

    /// How many elements can be taken.
    pub fn available(&self) -> usize {
        self.items.len().saturating_sub(self.kept_back())
    }

    /// Whether no element can come any more.
    pub fn is_final(&self) -> bool {
        let Some(closed) = &self.closed else { return false };
        // Who waits for elements of this queue puts none before it has them.
        let takes = |ticket: u64| self.takers.iter().any(|(other, _)| *other == ticket);
        let waits = closed.pending.iter().any(|&ticket| !takes(ticket));
        self.reserved == 0 && self.parts.len() == 0 && !waits
    }

    /// Closes it, also one that is closed: who waits for room the first time may still put, unless that is cancelled.
    pub fn close(&mut self, cancels: bool) {
        let closed = self.closed.get_or_insert_with(|| {
            let mut pending: Vec<u64> = self.putters.iter().copied().collect();
            pending.dedup();
            Closed { pending, cancels }
        });
        if cancels {
            (closed.pending, closed.cancels) = (Vec::new(), true);
            self.parts.clear();
        }
    }

    /// Whether who has this ticket may put, as far as that depends on whether it is closed.
    pub fn admits(&self, ticket: u64) -> bool {
        self.closed.as_ref().is_none_or(|closed| closed.pending.contains(&ticket))
    }

    /// Whether it was closed so that nothing more comes in.
    pub fn is_cancelled(&self) -> bool {
        self.closed.as_ref().is_some_and(|closed| closed.cancels)
    }

    /// Nobody has this ticket any more.
    pub fn forget(&mut self, ticket: u64) {
        self.takers.retain(|(other, _)| *other != ticket);
        self.putters.retain(|other| *other != ticket);
        if let Some(closed) = &mut self.closed {
            closed.pending.retain(|other| *other != ticket);
        }
        self.seek(ticket, &[]);
    }

    /// Puts a gradient with its step after it, unless it is too old.
    pub fn apply(&mut self, item: Item) {
        if self.is_current(&item) {
            self.push(item);
        }
    }

    /// Whether a gradient is not too old.
    fn is_current(&self, item: &Item) -> bool {
        let step = item.last().and_then(|step| step.scalar::<i64>().ok());
        step.is_some_and(|step| step >= self.step)
    }

    /// Leaves out gradients that have become too old since they were taken, at this step.
    pub fn leave_out_old(&self, popped: &mut Vec<Popped>, taken_at: i64) {
        if self.step != taken_at {
            popped.retain(|(.., item)| self.is_current(item));
        }
    }

    /// Takes all elements out. `now` tells those who have taken some that they give none back.
    pub fn clear(&mut self, now: u64) {
        (self.items, self.made) = (VecDeque::new(), now);
        self.forget_keys();
    }

    /// Puts an element.
    pub fn push(&mut self, item: Item) {
        let number = self.next;
        self.next += 1;
        self.insert(number, item);
    }

    pub fn insert(&mut self, number: u64, item: Item) {
        let by_priority = self.spec.kind == QueueKind::Priority;
        let first = item.first().filter(|_| by_priority).and_then(|first| first.scalar().ok());
        let at = self.place_for(number, first);
        self.note(number, &item);
        self.items.insert(at, (number, item));
    }

    /// The place of an element of this number in the order of the elements. `first` is its first component, by which
    /// they are ordered if they are by priority.
    pub fn place_for(&self, number: u64, first: Option<i64>) -> usize {
        let by_priority = self.spec.kind == QueueKind::Priority;
        let own = (first.filter(|_| by_priority), number);
        self.items.partition_point(|(number, item)| {
            let first = item.first().filter(|_| by_priority);
            (first.and_then(|first| first.scalar::<i64>().ok()), *number) < own
        })
    }

    /// Puts elements back that were taken, as if they had not been.
    pub fn put_back(&mut self, popped: Vec<Popped>, [before, after]: [u64; 2]) {
        for (at, number, item) in popped.into_iter().rev() {
            match self.spec.kind {
                QueueKind::RandomShuffle { .. } => {
                    self.items.insert(at.min(self.items.len()), (number, item));
                }
                _ => self.insert(number, item),
            }
        }
        if self.draws == after {
            self.draws = before;
        }
    }

    /// The first components of the elements that would be taken after `before` others, `n` at most, as far as they
    /// can be.
    pub fn peek(&mut self, before: usize, n: usize) -> Vec<HostTensor> {
        let n = n.min(self.available().saturating_sub(before));
        if n == 0 {
            return Vec::new();
        }
        let first = |item: &Item| item.first().cloned();
        if !matches!(self.spec.kind, QueueKind::RandomShuffle { .. }) {
            let items = self.items.iter().skip(before).take(n);
            return items.filter_map(|(_, item)| first(item)).collect();
        }
        let draws = self.draws;
        let popped = self.pop(before.saturating_add(n));
        let names = popped.iter().skip(before).filter_map(|(.., item)| first(item)).collect();
        let draws = [draws, self.draws];
        self.put_back(popped, draws);
        names
    }

    /// Up to `n` elements.
    pub fn pop(&mut self, n: usize) -> Vec<Popped> {
        let mut items = Vec::new();
        for _ in 0..n.min(self.items.len()) {
            let at = match self.spec.kind {
                QueueKind::RandomShuffle { seed, .. } => {
                    let counter = [self.draws as u32, (self.draws >> 32) as u32, 0, 0];
                    let [low, high, ..] = philox::philox(seed, counter);
                    self.draws += 1;
                    let random = u64::from(high) << 32 | u64::from(low);
                    ((u128::from(random) * self.items.len() as u128) >> 64) as usize
                }
                _ => 0,
            };
            if let Some((number, item)) = self.items.remove(at) {
                items.push((at, number, item));
            }
        }
        items
    }
}
