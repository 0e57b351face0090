//! What was taken for a run that is under way, and what becomes of it.
//!
//! Inside of branches and loops a run takes when it comes to it, and puts at its end: room for what it puts is reserved
//! before it stores anything.

use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use convoke_graph_core::{Error, HostTensor, Node, NodeId, QueueAction, Result, Shape};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::early::Early;
use super::kept::Item;
use super::puts::{check, items};
use super::readers::Lease;
use super::tables::{Claimed, Tables};
use super::uses::{Own, TableUse, Use, Uses, puts};
use super::{Attempt, Inner, Park, Queues, Taken, Undo};
use crate::cancel::Stop;

/// What was taken for a run that is under way: given back when it is dropped, also by a panic.
pub(crate) struct Held {
    queues: Arc<Queues>,
    taken: Option<Taken>,
    /// Not locked while anything is waited for.
    inside: Mutex<Inside>,
}

/// What a run has done with queues inside of branches and loops.
#[derive(Default)]
pub(super) struct Inside {
    /// What gives back what it has taken, last taken last.
    undo: Vec<Undo>,
    /// What it does at its end, in order.
    acts: Vec<Act>,
    /// The room that it has for what it puts.
    rooms: Vec<Undo>,
    /// How many of each are of steps of a partial run that have succeeded.
    kept: [usize; 3],
    /// Its place in line, if it waits and holds no thread.
    place: Attempt,
}

/// Something that a run does with a queue at its end.
struct Act {
    /// The branch or loop that it is in, of those that are in no other.
    of: NodeId,
    used: Arc<Use>,
    items: Vec<Item>,
}

impl Act {
    /// Whether it waits for room.
    fn needs_room(&self) -> bool {
        puts(self.used.action) && !self.items.is_empty()
    }
}

/// An operation inside of the branch or loop `of`, with its operands.
pub(crate) struct Call<'a> {
    pub node: &'a Node,
    pub of: NodeId,
    pub given: &'a [HostTensor],
}

impl Queues {
    /// Keeps what was taken until the run has succeeded.
    pub fn hold(self: &Arc<Self>, taken: Taken) -> Held {
        Held { queues: self.clone(), taken: Some(taken), inside: Mutex::default() }
    }

    /// Gives back what a run took that has failed, and its place in line.
    pub(super) fn give_back(&self, taken: Taken, mut place: Attempt) {
        if taken.undo.is_empty() && taken.leases.is_empty() && place.ticket.is_none() {
            return;
        }
        let mut inner = self.lock();
        inner.forget(&mut place);
        inner.undo(taken);
        inner.wake();
    }
}

impl Held {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables that the run looks keys up in.
    pub fn tables(&self) -> Option<&Tables> {
        self.taken.as_ref().map(|taken| &taken.tables)
    }

    /// Has the tables for the run that it is about to change, by what is in `changed`: see [`Queues::claim_tables`].
    /// Nothing, if it changes none.
    ///
    /// # Errors
    /// As [`Queues::claim_tables`].
    pub fn claim<'u>(
        &self,
        changed: impl Iterator<Item = &'u TableUse> + Clone,
        stop: &Stop<'_>,
    ) -> Result<Option<Claimed>> {
        let Some(tables) = self.tables().filter(|_| changed.clone().next().is_some()) else {
            return Ok(None);
        };
        self.queues.claim_tables(changed, tables, stop).map(Some)
    }

    /// Gives the run its place in line back, which it left when it was parked.
    pub fn resume(&self, place: Attempt) {
        self.inside().place = place;
    }

    /// Takes and reserves: waits on this thread, or is parked and gives nothing.
    fn take(&self, uses: &Uses, stop: &Stop<'_>, park: Option<Park<'_>>) -> Result<Option<Taken>> {
        let Some(park) = park else { return self.queues.take(uses, &[], stop).map(Some) };
        let mut place = take(&mut self.inside().place);
        self.queues.try_take(uses, &[], &mut place, stop, park)
    }

    /// Does what an operation inside of a branch or loop does now, and notes what it does at the end of the run. Gives
    /// its outputs. Waits on this thread, or is parked: then it gives nothing, and is to be called again.
    ///
    /// # Errors
    /// As [`Queues::take`]; sizes that the queue does not take, rows of different numbers; no memory.
    pub fn act(
        &self,
        call: &Call<'_>,
        stop: &Stop<'_>,
        park: Option<Park<'_>>,
    ) -> Result<Option<Item>> {
        let missing = || Error::internal("what a run does with a queue is not known");
        let known = self.taken.as_ref().map_or(&[][..], |taken| &taken.inside);
        let at = known.binary_search_by_key(&call.node.id, |used| used.id);
        let mut used = at.map(|at| known[at].clone()).map_err(|_| missing())?;
        let n_components = call.given.len().saturating_sub(used.early.n_given());
        let (components, early) = call.given.split_at(n_components);
        if !used.early.is_empty() {
            used = Arc::new(used.resolved(&[], early)?);
        }
        if used.action.is_source() {
            let own = self.own(&self.inside(), &used.queue.name);
            let queues = vec![Use { own, ..(*used).clone() }];
            let uses = Uses { queues, ..Uses::default() };
            let Some(mut taken) = self.take(&uses, stop, park)? else {
                return Ok(None);
            };
            self.inside().undo.append(&mut taken.undo);
            return Ok(Some(taken.values.into()));
        }
        let mut all = Vec::new();
        if puts(used.action) {
            let shapes: SmallVec<[&Shape; 4]> = components.iter().map(HostTensor::shape).collect();
            check(&used, &shapes)?;
            all = items(&used, components.into())?;
        }
        self.inside().acts.push(Act { of: call.of, used, items: all });
        Ok(Some(Item::new()))
    }

    /// Reserves room for what the run puts inside of branches and loops, and outside into the same queues, all at once.
    /// Waits for it as [`Self::act`] does; false if it was parked.
    ///
    /// # Errors
    /// As [`Queues::take`]: `Cancelled` of a queue that is closed.
    pub fn reserve(&self, uses: &Uses, stop: &Stop<'_>, park: Option<Park<'_>>) -> Result<bool> {
        let queues = self.wanted_room(uses);
        if queues.is_empty() {
            return Ok(true);
        }
        let uses = Uses { queues, ..Uses::default() };
        let Some(mut taken) = self.take(&uses, stop, park)? else { return Ok(false) };
        self.inside().rooms.append(&mut taken.undo);
        Ok(true)
    }

    /// For each queue that the run puts into inside, since the last step, how much room it needs; and what it closes.
    fn wanted_room(&self, uses: &Uses) -> Vec<Use> {
        let inside = self.inside();
        let mut wanted: Vec<Use> = Vec::new();
        let mut places: FxHashMap<(&str, Option<QueueAction>), usize> = FxHashMap::default();
        let late =
            uses.queues.iter().filter(|used| used.needs_room_late()).map(|used| (used, true));
        let acts = inside.acts[inside.kept[1]..].iter();
        for (used, needs_room) in late.chain(acts.map(|act| (&*act.used, act.needs_room()))) {
            let name = &*used.queue.name;
            let closes = match used.action {
                action @ QueueAction::Close { .. } => Some(action),
                _ if needs_room => None,
                _ => continue,
            };
            if let Some(&at) = places.get(&(name, closes)) {
                wanted[at].rooms += 1;
                continue;
            }
            places.insert((name, closes), wanted.len());
            let action = closes.unwrap_or(QueueAction::Enqueue);
            let (own, early) = (self.own(&inside, name), Early::default());
            wanted.push(Use { action, own, early, rooms: 1, ..used.clone() });
        }
        wanted
    }

    /// What the run has of a queue.
    fn own(&self, inside: &Inside, queue: &str) -> Own {
        let mut own = Own::default();
        for undo in self.taken.iter().flat_map(|taken| &taken.undo).chain(&inside.rooms) {
            match undo {
                Undo::Room { queue: other, n } if other == queue => own.rooms += n,
                Undo::Coming { queue: other } if other == queue => own.coming += 1,
                _ => {}
            }
        }
        own
    }

    /// Gives back what was taken inside of branches and loops, and forgets what was to be put: the run begins anew, or a
    /// step of a partial run.
    pub fn begin_again(&self) {
        let mut inside = self.inside();
        let [n_undo, n_acts, n_rooms] = inside.kept;
        let mut undo = inside.undo.split_off(n_undo);
        undo.append(&mut inside.rooms.split_off(n_rooms));
        inside.acts.truncate(n_acts);
        drop(inside);
        self.queues.give_back(Taken { undo, ..Taken::default() }, Attempt::default());
    }

    /// A step of a partial run has succeeded: what it did stays when others begin again.
    pub fn keep(&self) {
        let mut inside = self.inside();
        inside.kept = [inside.undo.len(), inside.acts.len(), inside.rooms.len()];
    }

    /// The run has succeeded: puts what it puts. `items` are those of each use of a queue; nothing, where its operation
    /// has not run. `changed` is what it does with tables that changes them, and `claimed` are those tables. `fetched` are
    /// the plan's fetches.
    pub fn put<'u>(
        mut self,
        uses: &Uses,
        items: Vec<Option<Vec<Item>>>,
        changed: impl Iterator<Item = &'u TableUse>,
        fetched: &[HostTensor],
        claimed: Option<&Claimed>,
    ) {
        // Nobody looks at the tables any more that it is to change.
        let kept = self.taken.take().map(|taken| (taken.undo, taken.leases));
        let inside = take(&mut *self.inside());
        let mut inner = self.queues.lock();
        inner.put_all(uses, kept.unwrap_or_default(), inside, items, fetched);
        inner.put_into_tables(changed, fetched, claimed);
        if uses.has_lines() {
            inner.wake();
        }
    }

    /// Has the run look at its tables anew, and gives what is fed of them: the last of what was fed.
    ///
    /// # Errors
    /// Another table of one of the names since a reset; no memory.
    pub fn look_again(&mut self, uses: &Uses) -> Result<Vec<HostTensor>> {
        let Some(taken) = &mut self.taken else { return Ok(Vec::new()) };
        let mut inner = self.queues.lock();
        inner.check_tables(uses)?;
        (taken.of_tables, taken.tables) = inner.look_at_tables(uses);
        drop(inner);
        taken.values_of_tables(uses)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut taken) = self.taken.take() {
            let mut inside = take(&mut *self.inside());
            taken.undo.append(&mut inside.undo);
            taken.undo.append(&mut inside.rooms);
            self.queues.give_back(taken, inside.place);
        }
    }
}

impl Inner {
    /// Puts what a run gives, closes what it closes, and moves the readers: in the order of the nodes, and of what is
    /// inside of a branch or loop in the order in which that came to it.
    fn put_all(
        &mut self,
        uses: &Uses,
        (undo, leases): (Vec<Undo>, Vec<Lease>),
        inside: Inside,
        items: Vec<Option<Vec<Item>>>,
        fetched: &[HostTensor],
    ) {
        undo.iter().chain(&inside.undo).chain(&inside.rooms).for_each(|undo| self.settle(undo));
        for lease in leases {
            if let Some(kept) = self.readers.get_mut(&lease.reader) {
                kept.move_to(lease);
            }
        }
        let mut acts = inside.acts;
        acts.sort_by_key(|act| act.of);
        let mut acts = acts.into_iter().peekable();
        let mut items = items.into_iter();
        for used in &uses.queues {
            while let Some(act) = acts.next_if(|act| act.of < used.id) {
                self.put(&act.used, act.items, &[]);
            }
            // Nothing, if the run did not come to it.
            if let Some(items) = items.next().flatten() {
                self.put(used, items, fetched);
            }
        }
        acts.for_each(|act| self.put(&act.used, act.items, &[]));
    }

    /// Does what a run does with a queue once it has succeeded. `items` are what it puts.
    fn put(&mut self, used: &Use, items: Vec<Item>, fetched: &[HostTensor]) {
        let now = self.n_resets + 1;
        let Some(kept) = self.queues.get_mut(&used.queue.name) else { return };
        match used.action {
            QueueAction::Enqueue | QueueAction::EnqueueMany => {
                items.into_iter().for_each(|item| kept.push(item));
            }
            QueueAction::ApplyGradient => {
                items.into_iter().for_each(|item| kept.apply(item));
            }
            QueueAction::TakeGradient(_) => kept.step = kept.step.saturating_add(1),
            QueueAction::SetStep => {
                let step = used.places.first().and_then(|&place| fetched.get(place));
                if let Some(step) = step.and_then(|step| step.scalar::<i64>().ok()) {
                    kept.step = step;
                }
            }
            QueueAction::Clear => {
                self.n_resets = now;
                kept.clear(now);
            }
            QueueAction::Close { cancel_pending } => kept.close(cancel_pending),
            QueueAction::InsertMany { .. } | QueueAction::Put { .. } => {
                for (key, item) in used.keys.iter().zip(items) {
                    for (place, value) in used.action.parts().zip(item) {
                        kept.insert_part(key, place, value);
                    }
                }
                // It was closed meanwhile, and nothing more becomes complete.
                if kept.is_cancelled() {
                    kept.parts.clear();
                }
            }
            _ => {}
        }
    }
}
