//! One queue of a session: its elements, who waits, and in which order elements leave.

use std::collections::VecDeque;
use std::sync::Arc;

use convoke_graph_core::{HostTensor, QueueKind, QueueSpec, philox};
use smallvec::SmallVec;

/// The components of an element.
pub(super) type Item = SmallVec<[HostTensor; 2]>;

/// One queue.
pub(super) struct Kept {
    pub spec: Arc<QueueSpec>,
    pub items: VecDeque<Item>,
    /// Elements that runs under way will put.
    pub reserved: usize,
    /// The first ticket that came after it was closed, and whether those before it were cancelled.
    pub closed: Option<(u64, bool)>,
    /// How often an element was drawn at random.
    pub draws: u64,
    pub takers: VecDeque<(u64, usize)>,
    pub putters: VecDeque<u64>,
}

impl Kept {
    /// The kind and the name, for errors.
    pub fn label(&self) -> String {
        let kind = match self.spec.kind {
            QueueKind::Fifo => "FIFO queue",
            QueueKind::PaddingFifo => "padding FIFO queue",
            QueueKind::RandomShuffle { .. } => "shuffling queue",
            QueueKind::Priority => "priority queue",
        };
        format!("{kind} '{}'", self.spec.name)
    }

    /// Whether one more element has room beside `before` others. Who waits for more elements than there is room for
    /// makes room.
    pub fn has_room(&self, before: usize) -> bool {
        let wanted = self.takers.front().map_or(0, |(_, n)| *n);
        let behind = self.kept_back();
        let capacity =
            self.spec.capacity.map(|capacity| capacity.max(wanted.saturating_add(behind)));
        capacity.is_none_or(|capacity| self.items.len() + self.reserved + before < capacity)
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
        let Some((closed, cancels)) = self.closed else { return false };
        let waits = self.putters.iter().any(|&ticket| ticket < closed);
        self.reserved == 0 && (cancels || !waits)
    }

    /// Puts an element.
    pub fn push(&mut self, item: Item) {
        if self.spec.kind != QueueKind::Priority {
            return self.items.push_back(item);
        }
        let priority = |item: &Item| item.first().and_then(|first| first.scalar::<i64>().ok());
        let own = priority(&item);
        let at = self.items.partition_point(|other| priority(other) <= own);
        self.items.insert(at, item);
    }

    /// Up to `n` elements, each with the place that it was taken from.
    pub fn pop(&mut self, n: usize) -> Vec<(usize, Item)> {
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
            if let Some(item) = self.items.remove(at) {
                items.push((at, item));
            }
        }
        items
    }
}
