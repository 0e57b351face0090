//! Whether runs can have what they want of queues, and giving it to them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use convoke_graph_core::{
    Error, ErrorKind, HostTensor, QueueAction, QueueKind, QueueSpec, Result, batches,
};

use super::ahead::Job;
use super::kept::{Kept, Popped};
use super::readers::Reads;
use super::uses::{Use, Uses, puts};
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

/// Whether a use can be had.
enum Can {
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
        let ticket = attempt.ticket.unwrap_or(self.next_ticket);
        let mut reads = self.reads(uses, data, ticket)?;
        let mut all = Cow::Borrowed(&uses.queues);
        if !reads.names.is_empty() {
            all.to_mut().append(&mut reads.names);
        }
        let mut lacks: SmallVec<[usize; 4]> = SmallVec::new();
        let mut what: SmallVec<[Lack; 4]> = SmallVec::new();
        for (i, used) in all.iter().enumerate() {
            match self.can(&all, i, ticket) {
                Can::Now => {}
                Can::Later(lack) => {
                    lacks.push(i);
                    what.push(lack);
                }
                Can::Never(error) => return Err(error.with_node(&*used.node)),
            }
        }
        let is_ready = lacks.is_empty() && reads.busy.is_empty();
        if is_ready && reads.wanted.is_none() {
            return self.take_all(&all, uses, reads).map(Served::Taken);
        }
        if attempt.ticket.is_none() {
            attempt.ticket = Some(ticket);
            self.next_ticket += 1;
        }
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
        let mut lines: SmallVec<[(&str, Option<usize>); 4]> = SmallVec::new();
        lines.extend(lacks.iter().map(|&i| (&*uses[i].queue.name, demand(uses[i].action))));
        for (name, kept) in &mut self.queues {
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
        let same = uses[..at].iter().filter(|other| other.queue.name == used.queue.name);
        let name = kept.label();
        let is_first = |first: Option<u64>| first.is_none_or(|first| first >= ticket);
        if let QueueAction::Close { .. } = used.action {
            return match kept.closed {
                Some(_) => Can::Never(cancelled(format!("{name} is already closed"))),
                None => Can::Now,
            };
        }
        if puts(used.action) {
            let before = same.filter(|other| puts(other.action)).count();
            let here = uses.iter().filter(|other| other.queue.name == used.queue.name);
            let takes = here.filter_map(|other| demand(other.action));
            let taken = takes.fold(0, usize::saturating_add);
            return match kept.closed {
                Some((closed, cancels)) if cancels || ticket >= closed => {
                    Can::Never(cancelled(format!("{name} is closed")))
                }
                _ if !is_first(kept.putters.front().copied()) => Can::Later(Lack::Turn),
                _ if kept.has_room(before, taken) => Can::Now,
                _ => Can::Later(Lack::Room {
                    capacity: kept.spec.capacity.unwrap_or(usize::MAX),
                    there: kept.items.len(),
                    promised: kept.reserved,
                }),
            };
        }
        let Some(n) = demand(used.action) else { return Can::Now };
        let before = same.filter_map(|other| demand(other.action)).fold(0, usize::saturating_add);
        let there = kept.available().saturating_sub(before);
        let is_turn = is_first(kept.takers.front().map(|(ticket, _)| *ticket));
        if n == 0 || (there >= n && is_turn) {
            return Can::Now;
        }
        if there >= n {
            return Can::Later(Lack::Turn);
        }
        if !kept.is_final() {
            return Can::Later(Lack::Elements { wanted: n, there });
        }
        match used.action {
            QueueAction::DequeueUpTo(_) if there > 0 && is_turn => Can::Now,
            QueueAction::DequeueUpTo(_) if there > 0 => Can::Later(Lack::Turn),
            _ => Can::Never(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{name} is closed and has insufficient elements (requested {n}, current size {there})"
                ),
            )),
        }
    }

    /// `all` are the uses of queues, with the names that readers take.
    fn take_all(&mut self, all: &[Use], uses: &Uses, reads: Reads) -> Result<Taken> {
        let mut taken = Taken::default();
        // As they are when the run begins, whatever it takes.
        let size =
            |used: &Use| self.queues.get(&used.queue.name).map_or(0, |kept| kept.items.len());
        let sizes: SmallVec<[usize; 4]> = all.iter().map(size).collect();
        for (used, size) in all.iter().zip(sizes) {
            let Some(kept) = self.queues.get_mut(&used.queue.name) else { continue };
            let values = match used.action {
                QueueAction::Size => {
                    vec![HostTensor::from(i32::try_from(size).unwrap_or(i32::MAX))]
                }
                QueueAction::IsClosed => vec![HostTensor::from(kept.closed.is_some())],
                QueueAction::Enqueue | QueueAction::EnqueueMany => {
                    kept.reserved += 1;
                    taken.undo.push(Undo::Room { queue: used.queue.name.clone() });
                    Vec::new()
                }
                action => match demand(action) {
                    Some(n) => {
                        let before = kept.draws;
                        let items = kept.pop(n);
                        let values = values_of(&used.queue, action, &items);
                        let draws = [before, kept.draws];
                        let (queue, made) = (used.queue.name.clone(), kept.made);
                        taken.undo.push(Undo::Elements { queue, made, items, draws });
                        match values {
                            Ok(values) => values,
                            Err(error) => {
                                self.undo(taken);
                                return Err(error.with_node(&*used.node));
                            }
                        }
                    }
                    None => Vec::new(),
                },
            };
            let wanted = used.places.iter().filter_map(|&place| values.get(place).cloned());
            taken.values.extend(wanted);
        }
        for (used, values) in uses.readers.iter().zip(reads.values) {
            taken.values.extend(used.places.iter().filter_map(|&place| values.get(place).cloned()));
        }
        match self.look_at_tables(uses) {
            Ok((values, tables)) => {
                taken.values.extend(values);
                taken.tables = tables;
            }
            Err(error) => {
                self.undo(taken);
                return Err(error);
            }
        }
        for lease in &reads.leases {
            if let Some(kept) = self.readers.get_mut(&lease.reader) {
                kept.is_leased = true;
            }
        }
        taken.leases = reads.leases;
        Ok(taken)
    }

    /// Gives back what was taken.
    pub fn undo(&mut self, taken: Taken) {
        for lease in &taken.leases {
            if let Some(kept) = self.readers.get_mut(&lease.reader) {
                kept.is_leased = false;
            }
        }
        for undo in taken.undo.into_iter().rev() {
            match undo {
                Undo::Room { queue } => {
                    if let Some(kept) = self.queues.get_mut(&queue) {
                        kept.reserved -= 1;
                    }
                }
                Undo::Elements { queue, made, items, draws } => {
                    let kept = self.queues.get_mut(&queue);
                    if let Some(kept) = kept.filter(|kept| kept.made == made) {
                        kept.put_back(items, draws);
                    }
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
            kept.items = VecDeque::new();
            (kept.closed, kept.draws, kept.made) = (None, 0, made);
            kept.reserved > 0 || !kept.takers.is_empty() || !kept.putters.is_empty()
        });
    }

    /// Gives up a ticket.
    pub fn forget(&mut self, attempt: &mut Attempt) {
        let Some(ticket) = attempt.ticket.take() else { return };
        self.moved = true;
        self.waiting.remove(&ticket);
        for kept in self.queues.values_mut() {
            kept.takers.retain(|(other, _)| *other != ticket);
            kept.putters.retain(|other| *other != ticket);
        }
        for kept in self.readers.values_mut() {
            kept.line.retain(|other| *other != ticket);
        }
    }
}

/// How many elements an action takes, if it takes any.
pub(super) fn demand(action: QueueAction) -> Option<usize> {
    match action {
        QueueAction::Dequeue => Some(1),
        QueueAction::DequeueMany(n) | QueueAction::DequeueUpTo(n) => Some(n),
        _ => None,
    }
}

fn cancelled(message: String) -> Error {
    Error::new(ErrorKind::Cancelled, message)
}

/// The outputs of an action that took these elements.
fn values_of(spec: &QueueSpec, action: QueueAction, items: &[Popped]) -> Result<Vec<HostTensor>> {
    if action == QueueAction::Dequeue {
        return Ok(items.first().map(|(.., item)| item.to_vec()).unwrap_or_default());
    }
    let pads = spec.kind == QueueKind::PaddingFifo;
    let components = spec.components.iter().enumerate();
    components
        .map(|(c, (dtype, dims))| {
            let column: Vec<&HostTensor> =
                items.iter().filter_map(|(.., item)| item.get(c)).collect();
            let least: Vec<usize> =
                dims.dims().unwrap_or_default().iter().map(|d| d.known().unwrap_or(0)).collect();
            batches::stacked(*dtype, &least, &column, pads)
        })
        .collect()
}
