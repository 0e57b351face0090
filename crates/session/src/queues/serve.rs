//! Whether runs can have what they want of queues, and giving it to them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use convoke_graph_core::{Error, ErrorKind, HostTensor, QueueAction, QueueSpec, Result};

use super::ahead::Job;
use super::kept::Kept;
use super::keyed::Keyed;
use super::parts::Parts;
use super::readers::Reads;
use super::uses::{Use, Uses};
use super::values::Draft;
use super::waiting::Lack;
use super::{Attempt, Inner, Taken, Undo};
use smallvec::SmallVec;

use crate::feeds::FeedData;

/// How a try goes.
pub(super) enum Served {
    Taken(Taken),
    /// Something is lacking, for which it stands in line.
    Waits,
    /// Something must be read before more can be said. It is first in line meanwhile.
    Reads(Box<Job>),
}

/// The places of uses that cannot be had yet, and what each lacks.
type Lacks = (SmallVec<[usize; 4]>, SmallVec<[Lack; 4]>);

/// Whether a use can be had.
pub(super) enum Can {
    Now,
    Later(Lack),
    Never(Error),
}

impl Inner {
    /// Takes and reserves everything, or gives nothing and keeps a ticket. `data` is what is fed.
    pub fn serve(
        &mut self,
        uses: &Uses,
        data: &[FeedData<'_>],
        attempt: &mut Attempt,
    ) -> Result<Served> {
        let names = uses.readers.iter().filter_map(|used| used.queue.as_ref());
        for queue in uses.queues.iter().map(|used| &used.queue).chain(names) {
            self.make(queue)?;
        }
        self.check_tables(uses)?;
        let ticket = attempt.ticket.unwrap_or(self.next_ticket);
        if let Some((lacks, what)) = self.lacks_beside_readers(uses, ticket)? {
            // What it would read is not looked for before there is use for it.
            self.number(attempt, ticket);
            self.stand(&uses.queues, &lacks, ticket);
            self.stand_at_readers(&[], ticket);
            let queues = lacks.iter().zip(what).map(|(&i, lack)| (&uses.queues[i], lack));
            self.waits(ticket, uses, queues, std::iter::empty());
            return Ok(Served::Waits);
        }
        let mut reads = self.reads(uses, data, ticket)?;
        let mut all = Cow::Borrowed(&uses.queues);
        if !reads.names.is_empty() {
            all.to_mut().append(&mut reads.names);
        }
        let (mut lacks, what) = self.lacks(&all, ticket)?;
        let is_ready = lacks.is_empty() && reads.busy.is_empty();
        if is_ready && reads.wanted.is_none() {
            let (of_tables, tables) = self.look_at_tables(uses);
            let mut taken = self.take_all(&all, reads, ticket);
            taken.undo.extend(uses.inside_fills().into_iter().map(|queue| {
                *self.coming.entry(queue.name.clone()).or_default() += 1;
                Undo::Coming { queue: queue.name.clone() }
            }));
            let inside = uses.inside.clone();
            return Ok(Served::Taken(Taken { of_tables, tables, inside, ..taken }));
        }
        self.number(attempt, ticket);
        if let Some(wanted) = reads.wanted.filter(|_| is_ready) {
            // It has something to do, and it is known meanwhile what it will put.
            self.waits(ticket, uses, std::iter::empty(), std::iter::empty());
            // Nobody takes the names meanwhile.
            lacks.extend(uses.queues.len()..all.len());
            self.stand(&all, &lacks, ticket);
            self.stand_at_readers(std::slice::from_ref(&wanted.reader), ticket);
            let kept = self.readers.entry(wanted.reader.clone()).or_default();
            return Ok(Served::Reads(Box::new(kept.start(wanted))));
        }
        self.stand(&all, &lacks, ticket);
        self.stand_at_readers(&reads.busy, ticket);
        let queues = lacks.iter().zip(what).map(|(&i, lack)| (&all[i], lack));
        let readers = reads.blocked.iter().filter_map(|&i| uses.readers.get(i));
        self.waits(ticket, uses, queues, readers);
        Ok(Served::Waits)
    }

    /// Keeps the ticket.
    fn number(&mut self, attempt: &mut Attempt, ticket: u64) {
        if attempt.ticket.is_none() {
            attempt.ticket = Some(ticket);
            self.next_ticket += 1;
        }
    }

    /// The uses that cannot be had yet, and what they lack.
    ///
    /// # Errors
    /// One that cannot be had any more.
    fn lacks(&self, all: &[Use], ticket: u64) -> Result<Lacks> {
        let mut lacks = Lacks::default();
        for (i, used) in all.iter().enumerate() {
            match self.can(all, i, ticket) {
                Can::Now => {}
                Can::Later(lack) => {
                    lacks.0.push(i);
                    lacks.1.push(lack);
                }
                Can::Never(error) => return Err(error.with_node(&*used.node)),
            }
        }
        Ok(lacks)
    }

    /// What a run that reads lacks whatever it reads, if there is something.
    ///
    /// # Errors
    /// An epoch too many.
    fn lacks_beside_readers(&self, uses: &Uses, ticket: u64) -> Result<Option<Lacks>> {
        if uses.readers.is_empty() || uses.queues.is_empty() {
            return Ok(None);
        }
        self.check_epochs(uses)?;
        // Taking names makes room for what is put into the same queue.
        let gives_names = |at: &usize| {
            let name = &uses.queues[*at].queue.name;
            let mut names = uses.readers.iter().filter_map(|used| used.queue.as_ref());
            names.any(|queue| queue.name == *name)
        };
        let lacks = self.lacks(&uses.queues, ticket).ok();
        Ok(lacks.filter(|(at, _)| !at.iter().all(gives_names)))
    }

    /// Stands in line at these readers, and at no others.
    fn stand_at_readers(&mut self, readers: &[String], ticket: u64) {
        for (name, kept) in &mut self.readers {
            let stood = kept.line.iter().position(|&other| other == ticket);
            match (readers.contains(name), stood) {
                (true, None) => {
                    let at = kept.line.partition_point(|&other| other < ticket);
                    kept.line.insert(at, ticket);
                    self.moved = true;
                }
                (false, Some(at)) => {
                    kept.line.remove(at);
                    self.moved = true;
                }
                _ => {}
            }
        }
    }

    /// Stands in line where something is lacking, and nowhere else: what could be had is for others meanwhile.
    fn stand(&mut self, uses: &[Use], lacks: &[usize], ticket: u64) {
        use QueueAction::{GetKey, Peek, PeekKey};
        let mut lines: SmallVec<[(&str, Option<usize>); 4]> = SmallVec::new();
        // Who looks at an element takes none, and does not keep others from it. Who takes one by its key keeps others from
        // that.
        let (peeks, gets) = (|a| matches!(a, Peek(_) | PeekKey), |a| a == GetKey);
        let lacking = lacks.iter().map(|&i| &uses[i]);
        let stands = lacking.clone().filter(|used| !peeks(used.action) && !gets(used.action));
        lines.extend(stands.map(|used| (&*used.queue.name, demand(used.action))));
        for (name, kept) in &mut self.queues {
            let mut here = lacking.clone().filter(|used| used.queue.name == *name);
            let seeks = here.any(|used| gets(used.action));
            self.moved |= kept.seek(ticket, if seeks { uses } else { &[] });
            let own = lines.iter().filter(|(other, _)| other == name);
            // Room is made for all that it takes there, also for what it could have already.
            let takes_here = own.clone().any(|(_, n)| n.is_some());
            let here = uses.iter().filter(|used| takes_here && used.queue.name == *name);
            let takes: SmallVec<[usize; 4]> = here.filter_map(|used| demand(used.action)).collect();
            let puts = own.filter(|(_, n)| n.is_none()).count();
            let stood = kept.takers.iter().filter(|(other, _)| *other == ticket).map(|(_, n)| *n);
            let is_same = stood.eq(takes.iter().copied())
                && kept.putters.iter().filter(|other| **other == ticket).count() == puts;
            if is_same {
                continue;
            }
            self.moved = true;
            kept.takers.retain(|(other, _)| *other != ticket);
            kept.putters.retain(|other| *other != ticket);
            let at = kept.takers.partition_point(|(other, _)| *other < ticket);
            for (i, n) in takes.into_iter().enumerate() {
                kept.takers.insert(at + i, (ticket, n));
            }
            let at = kept.putters.partition_point(|other| *other < ticket);
            (0..puts).for_each(|_| kept.putters.insert(at, ticket));
        }
    }

    /// The queue, made if there is none.
    fn make(&mut self, spec: &Arc<QueueSpec>) -> Result<()> {
        let kept = self.queues.entry(spec.name.clone()).or_insert_with(|| Kept {
            spec: spec.clone(),
            made: self.n_resets,
            items: VecDeque::new(),
            next: 0,
            reserved: 0,
            closed: None,
            draws: 0,
            parts: Parts::default(),
            keyed: Keyed::default(),
            step: 0,
            takers: VecDeque::new(),
            putters: VecDeque::new(),
        });
        if *kept.spec != **spec {
            let message = format!(
                "queue '{}' is shared, and another of the name differs: {:?}, and here {:?}",
                spec.name, kept.spec, spec
            );
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    /// Whether use `at` can be had with those before it.
    fn can(&self, uses: &[Use], at: usize, ticket: u64) -> Can {
        let used = &uses[at];
        let Some(kept) = self.queues.get(&used.queue.name) else {
            return Can::Later(Lack::Turn);
        };
        match used.action {
            _ if kept.is_keyed() => kept.can_keyed(uses, at, ticket),
            QueueAction::InsertMany { .. } => {
                kept.check_parts(used, &[]).map_or_else(Can::Never, |()| Can::Now)
            }
            QueueAction::Close { cancel_pending } => kept.can_close(cancel_pending),
            QueueAction::Peek(index) => kept.can_peek(index.unwrap_or(0)),
            _ if used.needs_room() => kept.can_put(uses, at, ticket),
            QueueAction::TakeGradient(Some(0)) => {
                let message = "expected a number of gradients of at least 1, got 0";
                Can::Never(Error::invalid(message))
            }
            action => match demand(action) {
                Some(n) => {
                    let before = same(&uses[..at], &used.queue);
                    let before = before.filter_map(|other| demand(other.action));
                    let before = before.fold(0, usize::saturating_add);
                    kept.can_take(action, n, kept.available().saturating_sub(before), ticket)
                }
                None => Can::Now,
            },
        }
    }

    /// `all` are the uses of queues, with the names that readers take.
    fn take_all(&mut self, all: &[Use], reads: Reads, ticket: u64) -> Taken {
        let mut taken = Taken::default();
        // As they are when the run begins, whatever it takes.
        let seen = |used: &Use| self.queues.get(&used.queue.name)?.seen(used);
        let seen: SmallVec<[Option<Draft>; 4]> = all.iter().map(seen).collect();
        for (used, seen) in all.iter().zip(seen) {
            let draft = match (seen, self.queues.get_mut(&used.queue.name)) {
                (Some(seen), _) => seen,
                (None, Some(kept)) => take_one(kept, all, used, ticket, &mut taken.undo),
                (None, None) => Draft::Nothing,
            };
            taken.drafts.push(draft);
        }
        for lease in &reads.leases {
            if let Some(kept) = self.readers.get_mut(&lease.reader) {
                kept.is_leased = true;
            }
        }
        (taken.read, taken.leases) = (reads.values, reads.leases);
        taken
    }

    /// Gives back what was taken.
    pub fn undo(&mut self, taken: Taken) {
        for lease in &taken.leases {
            if let Some(kept) = self.readers.get_mut(&lease.reader) {
                kept.is_leased = false;
            }
        }
        for undo in taken.undo.into_iter().rev() {
            self.settle(&undo);
            let Undo::Elements { queue, made, mut items, draws, step } = undo else { continue };
            let kept = self.queues.get_mut(&queue);
            if let Some(kept) = kept.filter(|kept| kept.made == made) {
                kept.leave_out_old(&mut items, step);
                kept.put_back(items, draws);
            }
        }
    }

    /// The elements of this are the run's for good, and room and keys that were kept for it are free.
    pub fn settle(&mut self, undo: &Undo) {
        match undo {
            Undo::Room { queue, n } => {
                if let Some(kept) = self.queues.get_mut(queue) {
                    kept.reserved -= n;
                }
            }
            Undo::Coming { queue } => {
                if let Some(n) = self.coming.get_mut(queue) {
                    *n = n.saturating_sub(1);
                }
            }
            Undo::Keys { queue, keys, action } => {
                if let Some(kept) = self.queues.get_mut(queue) {
                    kept.parts.release(keys, *action);
                }
            }
            Undo::Elements { queue, made, items, .. } => {
                if let Some(kept) = self.queues.get_mut(queue).filter(|kept| kept.made == *made) {
                    kept.settle(items);
                }
            }
        }
    }

    /// Empties and opens the queues of containers that are named. Those that somebody waits for or will put into stay.
    pub fn reset(&mut self, is_named: impl Fn(Option<&str>) -> bool) {
        self.n_resets += 1;
        let made = self.n_resets;
        self.queues.retain(|_, kept| {
            if !is_named(kept.spec.container.as_deref()) {
                return true;
            }
            kept.clear(made);
            kept.parts.clear();
            (kept.closed, kept.draws, kept.step) = (None, 0, 0);
            let waits = !kept.takers.is_empty() || !kept.putters.is_empty();
            kept.reserved > 0 || waits || !kept.keyed.seekers.is_empty()
        });
    }

    /// Gives up a ticket.
    pub fn forget(&mut self, attempt: &mut Attempt) {
        let Some(ticket) = attempt.ticket.take() else { return };
        self.moved = true;
        self.waiting.remove(&ticket);
        for kept in self.queues.values_mut() {
            kept.forget(ticket);
        }
        for kept in self.readers.values_mut() {
            kept.line.retain(|other| *other != ticket);
        }
    }
}

/// Those of some uses that are of this queue.
pub(super) fn same<'u>(uses: &'u [Use], queue: &QueueSpec) -> impl Iterator<Item = &'u Use> {
    uses.iter().filter(move |other| other.queue.name == queue.name)
}

/// Whether this ticket is the first of a line, or before it.
pub(super) fn is_first(first: Option<u64>, ticket: u64) -> bool {
    first.is_none_or(|first| first >= ticket)
}

impl Kept {
    fn can_close(&self, cancel_pending: bool) -> Can {
        match &self.closed {
            Some(closed) if cancel_pending && !closed.cancels => Can::Now,
            Some(_) => Can::Never(cancelled(format!("{} is already closed", self.label()))),
            None => Can::Now,
        }
    }

    /// Whether use `at` of a run can put an element.
    fn can_put(&self, uses: &[Use], at: usize, ticket: u64) -> Can {
        let used = &uses[at];
        let before = same(&uses[..at], &self.spec).filter(|other| other.needs_room());
        let before = before.map(|other| other.rooms).sum::<usize>() + used.own.rooms;
        // If there is room for the last, there is for those before it.
        let last = before.saturating_add(used.rooms.saturating_sub(1));
        let takes = same(uses, &self.spec).filter_map(|other| demand(other.action));
        let taken = takes.fold(0, usize::saturating_add);
        if !self.admits(ticket) {
            return Can::Never(cancelled(format!("{} is closed", self.label())));
        }
        if used.rooms == 0 {
            return Can::Now;
        }
        self.can_have_room(last, used.own.rooms, taken, ticket)
    }

    /// Whether a run that takes so many can have room for an element besides `before` others, for `own` of which it has
    /// room already.
    pub fn can_have_room(&self, before: usize, own: usize, taken: usize, ticket: u64) -> Can {
        match self.spec.capacity {
            _ if !is_first(self.putters.front().copied(), ticket) => Can::Later(Lack::Turn),
            Some(capacity) if !self.has_room(before, own, taken) => {
                let (there, promised) = (self.items.len(), self.promised());
                Can::Later(Lack::Room { capacity, there, promised })
            }
            _ => Can::Now,
        }
    }

    /// Whether a run can take `n` elements, of which so many are there for it.
    pub fn can_take(&self, action: QueueAction, n: usize, there: usize, ticket: u64) -> Can {
        let is_turn = is_first(self.takers.front().map(|(ticket, _)| *ticket), ticket);
        if n == 0 || (there >= n && is_turn) {
            return Can::Now;
        }
        if there >= n {
            return Can::Later(Lack::Turn);
        }
        if !self.is_final() {
            return Can::Later(Lack::Elements { wanted: n, there });
        }
        if takes_rest(action) && there > 0 {
            return if is_turn { Can::Now } else { Can::Later(Lack::Turn) };
        }
        let name = self.label();
        let message = format!(
            "{name} is closed and has insufficient elements (requested {n}, current size {there})"
        );
        Can::Never(Error::new(ErrorKind::OutOfRange, message))
    }

    /// What an action that only looks gives.
    fn seen(&self, used: &Use) -> Option<Draft> {
        Some(Draft::Values(match used.action {
            QueueAction::Size => {
                let size = i32::try_from(self.items.len()).unwrap_or(i32::MAX);
                [HostTensor::from(size)].into_iter().collect()
            }
            QueueAction::IncompleteSize => {
                let size = i32::try_from(self.parts.len()).unwrap_or(i32::MAX);
                [HostTensor::from(size)].into_iter().collect()
            }
            QueueAction::IsClosed => {
                [HostTensor::from(self.closed.is_some())].into_iter().collect()
            }
            QueueAction::Peek(index) => self.items.get(index?)?.1.clone(),
            QueueAction::PeekKey => self.element(used.number()?)?.get(1..)?.into(),
            _ => return None,
        }))
    }

    /// Whether there is an element to look at.
    fn can_peek(&self, index: usize) -> Can {
        let there = self.items.len();
        match self.spec.capacity {
            _ if index < there => Can::Now,
            Some(capacity) if index >= capacity => Can::Never(Error::invalid(format!(
                "index {index} is not in [0, {capacity}), the capacity of {}",
                self.label()
            ))),
            _ => Can::Later(Lack::Elements { wanted: index.saturating_add(1), there }),
        }
    }
}

/// Takes or reserves what a use says.
fn take_one(kept: &mut Kept, all: &[Use], used: &Use, ticket: u64, undo: &mut Vec<Undo>) -> Draft {
    let queue = used.queue.name.clone();
    if used.needs_room() {
        kept.reserved += used.rooms;
        let (keys, action) = (used.keys.clone(), used.action);
        if !keys.is_empty() {
            kept.parts.promise(&keys, action);
            undo.push(Undo::Keys { queue: queue.clone(), keys, action });
        }
        undo.push(Undo::Room { queue, n: used.rooms });
        return Draft::Nothing;
    }
    let n = match used.action {
        // All that there are.
        QueueAction::TakeGradient(_) => kept.items.len(),
        action => match demand(action) {
            Some(n) => n,
            None => return Draft::Nothing,
        },
    };
    let before = kept.draws;
    let items = if kept.is_keyed() { kept.take_keyed(all, used, ticket) } else { kept.pop(n) };
    let draws = [before, kept.draws];
    undo.push(Undo::Elements { queue, made: kept.made, items, draws, step: kept.step });
    Draft::Elements(undo.len() - 1)
}

/// How many elements an action takes, if it takes any.
pub(super) fn demand(action: QueueAction) -> Option<usize> {
    match action {
        QueueAction::Dequeue | QueueAction::GetKey => Some(1),
        // It is known by now.
        QueueAction::DequeueMany(n)
        | QueueAction::DequeueUpTo(n)
        | QueueAction::TakeGradient(n)
        | QueueAction::TakeMany { n, .. } => n,
        _ => None,
    }
}

/// Whether those that are left do where no others come.
fn takes_rest(action: QueueAction) -> bool {
    matches!(action, QueueAction::DequeueUpTo(_) | QueueAction::TakeMany { up_to: true, .. })
}

fn cancelled(message: String) -> Error {
    Error::new(ErrorKind::Cancelled, message)
}
