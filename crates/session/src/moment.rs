//! Moments: when what a session keeps fits together, as it lies between two runs.
//!
//! Most runs store all that they store under the lock of the state. One that stores on a GPU, by several programs, or
//! into variables and tables stores step by step: it begins before the first, and nobody looks until it has ended. Who
//! looks goes first, so that it waits only for runs that have begun. Who restores or resets looks, too, and does all of
//! it under one lock of the state, so that no two of those who look mix.
//!
//! A run that stores on a GPU what was computed elsewhere from the elements there, which it was given before, stores
//! alone: it waits as one that looks does, and nobody begins until it has ended.
//!
//! A run that has begun waits for its devices only, never for other runs, as these may wait for who looks. It takes
//! this before the lock of the state, and so does who looks; the lock of queues and tables comes last.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who stores and who looks.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Runs that have begun to store.
    storing: usize,
    /// Who looks or stores alone, or waits until he may.
    first: usize,
    /// Who looks.
    looking: usize,
}

/// How a run has begun to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Beside,
    Alone,
}

/// What a run has to do with moments.
#[derive(Debug)]
pub(crate) struct Storing<'a> {
    moments: &'a Moments,
    /// Whether the run stores something after what its programs store.
    goes_on: bool,
    begun: Cell<Option<Begun>>,
}

/// Somebody who looks, until this is dropped.
#[derive(Debug)]
pub(crate) struct Looking<'a>(&'a Moments);

impl Moments {
    /// Waits until no run is between two steps of storing; none begins until what this gives is dropped.
    pub fn look(&self) -> Looking<'_> {
        let mut counts = self.lock();
        counts.first += 1;
        self.wait_while(counts, |counts| counts.storing > 0).looking += 1;
        Looking(self)
    }

    /// A run that has not begun to store.
    pub fn storing(&self, goes_on: bool) -> Storing<'_> {
        Storing { moments: self, goes_on, begun: Cell::new(None) }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &'a self,
        counts: MutexGuard<'a, Counts>,
        is_early: impl FnMut(&mut Counts) -> bool,
    ) -> MutexGuard<'a, Counts> {
        self.changed.wait_while(counts, is_early).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storing<'_> {
    /// Before the first of several steps of storing.
    pub fn begin(&self) {
        if self.begun.get().is_none() {
            self.begun.set(Some(Begun::Beside));
            let counts = self.moments.lock();
            self.moments.wait_while(counts, |counts| counts.first > 0).storing += 1;
        }
    }

    /// As [`Self::begin`], with no other run that stores so, before elements are read which a sum on a GPU builds on. A
    /// run that has begun goes on as it has.
    pub fn begin_alone(&self) {
        if self.begun.get().is_none() {
            self.begun.set(Some(Begun::Alone));
            let mut counts = self.moments.lock();
            counts.first += 1;
            let is_early = |counts: &mut Counts| counts.storing > 0 || counts.looking > 0;
            self.moments.wait_while(counts, is_early).storing += 1;
        }
    }

    /// Before a step that is the only one, unless the run stores something after its programs.
    pub fn begin_if_it_goes_on(&self) {
        if self.goes_on {
            self.begin();
        }
    }

    /// After the last step, or where nothing is stored after all.
    pub fn end(&self) {
        if let Some(begun) = self.begun.take() {
            let mut counts = self.moments.lock();
            counts.storing -= 1;
            counts.first -= usize::from(begun == Begun::Alone);
            self.moments.changed.notify_all();
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
        let mut counts = self.0.lock();
        (counts.first, counts.looking) = (counts.first - 1, counts.looking - 1);
        self.0.changed.notify_all();
    }
}
