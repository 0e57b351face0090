//! Who looks again after a change: of each line of a queue its first, so that many who wait do not wake one another.

use super::Inner;
use super::kept::Kept;

impl Inner {
    /// Lets those look again that a change of what is kept can have helped. Whoever leaves a line calls this, so that
    /// those behind him are not forgotten.
    pub fn wake(&mut self) {
        let is_kept_back = |ticket: &Option<u64>| {
            ticket.is_some_and(|ticket| self.queues.values().any(|kept| kept.keeps_back(ticket)))
        };
        // What is hopeless depends on who else waits.
        let is_any = self.fillers.has_ended();
        let wakes = |ticket: &Option<u64>| is_any || !is_kept_back(ticket);
        self.sleeping.extract_if(.., |(ticket, _)| wakes(ticket)).for_each(|(_, rung)| {
            rung.notify_all();
        });
        self.parked.extract_if(.., |(ticket, _)| wakes(ticket)).for_each(|(_, parked)| {
            (parked.resume)();
        });
    }

    /// Lets all who wait look again.
    pub fn wake_all(&mut self) {
        self.sleeping.drain(..).for_each(|(_, rung)| rung.notify_all());
        self.parked.drain(..).for_each(|(_, parked)| (parked.resume)());
    }
}

impl Kept {
    /// Whether somebody stands before this ticket in a line that it stands in, so that there is nothing for it yet.
    fn keeps_back(&self, ticket: u64) -> bool {
        let takes = self.takers.front().is_some_and(|(first, _)| *first < ticket)
            && self.takers.binary_search_by_key(&ticket, |(other, _)| *other).is_ok();
        let puts = self.putters.front().is_some_and(|first| *first < ticket)
            && self.putters.binary_search(&ticket).is_ok();
        // Who waits at a closed queue may have to hear that it waits in vain.
        (takes || puts) && self.closed.is_none()
    }
}
