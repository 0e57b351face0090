//! Moments: when what a session keeps fits together, as it lies between two runs.
//!
//! Most runs store all that they store under the lock of the state. One that stores on a GPU, by several programs, or
//! into variables and tables stores step by step: it begins before the first, and nobody looks until it has ended. Who
//! restores or resets looks, too, and does all of it under one lock of the state, so that no two of those who look mix.
//! A run that stores on a GPU what was computed elsewhere from the elements there, which it was given before, stores
//! alone. They are let in as they come, those together that are alike and one after the other.
//!
//! A run that has begun waits for its devices only, never for other runs, as these may wait for who looks. It takes
//! this before the lock of the state, and so does who looks; the lock of queues and tables comes last.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use convoke_graph_core::Result;

use crate::cancel::{Bell, Stop};

/// Who stores and who looks.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    /// Who is in, and how many.
    inside: Option<(Kind, usize)>,
    /// Who waits, in order.
    waiting: VecDeque<(u64, Kind)>,
    next: u64,
}

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Stores beside others.
    Beside,
    /// Stores alone.
    Alone,
    Looks,
}

/// What a run has to do with moments.
#[derive(Debug)]
pub(crate) struct Storing<'a> {
    moments: &'a Arc<Moments>,
    /// Whether the run stores something after what its programs store.
    goes_on: bool,
    begun: Cell<Option<Kind>>,
}

/// Somebody who looks, until this is dropped.
#[derive(Debug)]
pub(crate) struct Looking<'a>(&'a Moments);

impl Line {
    /// Whether somebody may go in: nobody is in, or only such as may be beside him, and so are all who came before.
    fn lets_in(&self, ticket: u64, kind: Kind) -> bool {
        let is_beside = |other: Kind| other == kind && kind != Kind::Alone;
        let mut before = self.waiting.iter().take_while(|(other, _)| *other != ticket);
        self.inside.is_none_or(|(other, _)| is_beside(other))
            && before.all(|(_, other)| is_beside(*other))
    }

    fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|(other, _)| *other != ticket);
    }
}

impl Moments {
    /// Waits until no run is between two steps of storing; none begins until what this gives is dropped.
    pub fn look(&self) -> Looking<'_> {
        // Without a reason to stop it ends well.
        let _looks = self.enter(Kind::Looks, None);
        Looking(self)
    }

    /// A run that has not begun to store.
    pub fn storing(self: &Arc<Self>, goes_on: bool) -> Storing<'_> {
        Storing { moments: self, goes_on, begun: Cell::new(None) }
    }

    /// Waits until there is room, or what `stop` says.
    fn enter(&self, kind: Kind, stop: Option<&Stop<'_>>) -> Result<()> {
        let mut line = self.lock();
        let ticket = line.next;
        line.next += 1;
        line.waiting.push_back((ticket, kind));
        let ended = loop {
            if line.lets_in(ticket, kind) {
                line.inside = Some((kind, line.inside.map_or(0, |(_, n)| n) + 1));
                break Ok(());
            }
            if let Some(Err(error)) = stop.map(Stop::check) {
                break Err(error);
            }
            let until = stop.and_then(|stop| stop.deadline).map(|(until, _)| until);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            line = match left {
                None => self.changed.wait(line).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.changed.wait_timeout(line, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        };
        line.leave(ticket);
        if !line.waiting.is_empty() {
            self.changed.notify_all();
        }
        ended
    }

    fn leave(&self) {
        let mut line = self.lock();
        line.inside = line.inside.filter(|(_, n)| *n > 1).map(|(kind, n)| (kind, n - 1));
        if !line.waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell for Moments {
    fn ring(&self) {
        let _line = self.lock();
        self.changed.notify_all();
    }
}

impl Storing<'_> {
    /// Before the first of several steps of storing.
    ///
    /// # Errors
    /// What `stop` says while this waits.
    pub fn begin(&self, stop: Option<&Stop<'_>>) -> Result<()> {
        self.begin_as(Kind::Beside, stop)
    }

    /// Before a step that is the only one, unless the run stores something after its programs.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_if_it_goes_on(&self, stop: Option<&Stop<'_>>) -> Result<()> {
        if self.goes_on { self.begin(stop) } else { Ok(()) }
    }

    /// As [`Self::begin`], with no other run that stores so, before elements are read which a sum on a GPU builds on. A
    /// run that has begun goes on as it has.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_alone(&self, stop: Option<&Stop<'_>>) -> Result<()> {
        self.begin_as(Kind::Alone, stop)
    }

    fn begin_as(&self, kind: Kind, stop: Option<&Stop<'_>>) -> Result<()> {
        if self.has_begun() {
            return Ok(());
        }
        if let Some(stop) = stop {
            let bell: Arc<dyn Bell> = self.moments.clone();
            stop.ring(&bell);
        }
        self.moments.enter(kind, stop)?;
        self.begun.set(Some(kind));
        Ok(())
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// After the last step, or where nothing is stored after all.
    pub fn end(&self) {
        if self.begun.take().is_some() {
            self.moments.leave();
        }
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
