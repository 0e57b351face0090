//! The submitted runs of a session that use queues: how many there are, and what becomes of those that wait when
//! nobody is left who could help.

use std::sync::Arc;

use convoke_graph_core::QueueSpec;
use smallvec::SmallVec;

use super::uses::Uses;
use super::{Inner, Queues};

/// A submitted run, from its call to its end.
pub(crate) struct Presence {
    queues: Arc<Queues>,
    /// What it puts into, until it has tried to take for the first time.
    coming: SmallVec<[Arc<QueueSpec>; 2]>,
}

/// All handles of a session by which runs can be begun. The last clone tells the queues.
pub(crate) struct Handles(Arc<Queues>);

impl Queues {
    /// Notes a submitted run; none if it uses no queues.
    pub fn enter(self: &Arc<Self>, uses: &Uses) -> Option<Presence> {
        if uses.is_empty() {
            return None;
        }
        let coming = uses.fills();
        let mut inner = self.lock();
        inner.n_submitted += 1;
        for queue in &coming {
            *inner.coming.entry(queue.name.clone()).or_default() += 1;
        }
        Some(Presence { queues: self.clone(), coming })
    }

    /// What the handles of a session share.
    pub fn handles(self: &Arc<Self>) -> Arc<Handles> {
        Arc::new(Handles(self.clone()))
    }
}

impl Inner {
    /// Ends those who wait if there is nobody else: no handle of the session, so that none waits on a thread of its caller,
    /// and no run that is under way.
    pub fn look_for_abandoned(&mut self) {
        let is_alone = self.parked.len() == self.n_submitted;
        if self.is_orphaned && !self.is_abandoned && is_alone {
            self.is_abandoned = true;
            self.wake_all();
        }
    }
}

impl Presence {
    /// It has tried to take, so that the queues know of it what they need.
    pub fn has_tried(&mut self) {
        if self.coming.is_empty() {
            return;
        }
        let coming = std::mem::take(&mut self.coming);
        let mut inner = self.queues.lock();
        for queue in coming {
            if let Some(n) = inner.coming.get_mut(&queue.name) {
                *n = n.saturating_sub(1);
            }
        }
        if inner.fillers.has_ended() {
            inner.wake();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.has_tried();
        let mut inner = self.queues.lock();
        inner.n_submitted = inner.n_submitted.saturating_sub(1);
        inner.look_for_abandoned();
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.is_orphaned = true;
        inner.look_for_abandoned();
    }
}
