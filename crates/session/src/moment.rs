//! Moments: when what a session keeps fits together, as it lies between two runs.
//!
//! Most runs store all that they store under the lock of the state. One that stores on a GPU, by several programs, or
//! into variables and tables stores step by step: it begins before the first, and nobody looks until it has ended. Who
//! looks goes first, so that it waits only for runs that have begun. Who restores or resets looks, too, and does all of
//! it under one lock of the state, so that no two of those who look mix.
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
    storing: usize,
    looking: usize,
}

/// What a run has to do with moments.
#[derive(Debug)]
pub(crate) struct Storing<'a> {
    moments: &'a Moments,
    /// Whether the run stores something after what its programs store.
    goes_on: bool,
    has_begun: Cell<bool>,
}

/// Somebody who looks, until this is dropped.
#[derive(Debug)]
pub(crate) struct Looking<'a>(&'a Moments);

impl Moments {
    /// Waits until no run is between two steps of storing; none begins until what this gives is dropped.
    pub fn look(&self) -> Looking<'_> {
        let mut counts = self.lock();
        counts.looking += 1;
        let _counts = self.wait_while(counts, |counts| counts.storing > 0);
        Looking(self)
    }

    /// A run that has not begun to store.
    pub fn storing(&self, goes_on: bool) -> Storing<'_> {
        Storing { moments: self, goes_on, has_begun: Cell::new(false) }
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
        if !self.has_begun.replace(true) {
            let counts = self.moments.lock();
            self.moments.wait_while(counts, |counts| counts.looking > 0).storing += 1;
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
        if self.has_begun.take() {
            self.moments.lock().storing -= 1;
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
        self.0.lock().looking -= 1;
        self.0.changed.notify_all();
    }
}
