//! Which devices submit to one queue.

use crate::problem::HOST;

/// The devices that submit to one queue. What one of them has, another takes by a copy on the GPU, in its own submission:
/// a queue goes through what it is given in order. By default each device has a queue of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues(Vec<usize>);

impl Queues {
    /// Lets two devices, with all that have a queue with either, submit to one.
    pub fn join(&mut self, a: usize, b: usize) {
        let (queue, other) = (self.of(a).min(self.of(b)), self.of(a).max(self.of(b)));
        let known = self.0.len();
        self.0.extend(known..=a.max(b));
        self.0.iter_mut().filter(|own| **own == other).for_each(|own| *own = queue);
    }

    /// The queue of a device: the number of the first device that has it.
    pub fn of(&self, device: usize) -> usize {
        self.0.get(device).copied().unwrap_or(device)
    }

    /// Whether a device takes what another has by a copy on the GPU. What the host has, it is sent.
    pub fn is_direct(&self, from: usize, to: usize) -> bool {
        from != to && from != HOST && to != HOST && self.of(from) == self.of(to)
    }

    /// One more than the last device that is named.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
