//! Who looks again after a change. Of those who wait at one line of one queue and for nothing else, only its first does,
//! so that many of them do not wake one another.

use std::sync::Arc;

use convoke_graph_core::{QueueRole, QueueSpec};

use super::Inner;
use super::kept::Kept;
use super::serve::demand;
use super::uses::{Use, Uses};

impl Inner {
    /// Lets those look again that a change of what is kept can have helped. Whoever leaves a line calls this, so that
    /// those behind him are not forgotten.
    pub fn wake(&mut self) {
        let Self { queues, waiting, sleeping, parked, fillers, .. } = self;
        // What is hopeless depends on who else waits.
        let is_any = fillers.has_ended();
        let is_kept_back = |ticket: u64| {
            let only = waiting.get(&ticket).and_then(|waiter| waiter.only.as_ref());
            let kept = only.and_then(|queue| queues.get(&queue.name));
            kept.is_some_and(|kept| kept.keeps_back(ticket))
        };
        let wakes = |ticket: &Option<u64>| is_any || !ticket.is_some_and(is_kept_back);
        let woken = sleeping.extract_if(.., |(ticket, _)| wakes(ticket));
        woken.for_each(|(_, rung)| rung.notify_all());
        let resumed = parked.extract_if(.., |(ticket, _)| wakes(ticket));
        resumed.for_each(|(_, parked)| (parked.resume)());
    }

    /// Lets all who wait look again.
    pub fn wake_all(&mut self) {
        self.sleeping.drain(..).for_each(|(_, rung)| rung.notify_all());
        self.parked.drain(..).for_each(|(_, parked)| (parked.resume)());
    }
}

/// The queue, if a run takes from one or puts into one, in turn, and does nothing else: then it can stand in one line
/// only, and whether it has its turn is all that it depends on while somebody is before it.
pub(super) fn only_line(uses: &Uses) -> Option<Arc<QueueSpec>> {
    let queue = &uses.queues.first()?.queue;
    let is_here = |used: &Use| used.queue.name == queue.name;
    let takes = uses.queues.iter().all(|used| demand(used.action).is_some());
    let is_one = takes || uses.queues.iter().all(Use::needs_room);
    let is_in_turn = queue.role != QueueRole::MapStaging;
    let is_only = uses.readers.is_empty() && uses.queues.iter().all(is_here);
    (is_one && is_in_turn && is_only).then(|| queue.clone())
}

impl Kept {
    /// Whether somebody stands before this ticket in the line that it stands in, so that there is nothing for it yet.
    fn keeps_back(&self, ticket: u64) -> bool {
        let takes = self.takers.front().is_some_and(|(first, _)| *first < ticket)
            && self.takers.binary_search_by_key(&ticket, |(other, _)| *other).is_ok();
        let puts = self.putters.front().is_some_and(|first| *first < ticket)
            && self.putters.binary_search(&ticket).is_ok();
        // Who waits at a closed queue may have to hear that it waits in vain.
        (takes || puts) && self.closed.is_none()
    }
}
