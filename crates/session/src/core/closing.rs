//! The end of a session that is closed: what it keeps is freed, and so is what those leave in it who were at work.

#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use convoke_graph_core::{Error, ErrorKind, Result};

use super::Core;
use crate::cancel::{Bell, check_closed};
use crate::identity::Identity;
use crate::state::Entry;

/// Somebody at work on a session. If it is closed meanwhile, what he has left in it is freed when this is dropped.
#[must_use = "what is left in a session is freed when this is dropped, which is to be last"]
pub(crate) struct AtWork<'a>(&'a Core);

impl Core {
    /// Ends it: runs that are under way are cancelled, later ones refused. What it keeps is freed, as far as no run
    /// uses it.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.turn.ring();
        self.moments.ring();
        self.free();
        self.identity.iter().for_each(Identity::release);
    }

    /// Frees the elements of variables, what queues and tables hold, what readers have read, plans and programs.
    fn free(&self) {
        let mut kept = self.state.lock();
        kept.variables.values_mut().for_each(Entry::reset);
        let on_gpus = self.gpus.take_memory();
        drop(kept);
        drop(on_gpus);
        self.queues.close();
        self.forget_plans();
        *self.grown.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Callables keep plans of their own.
        self.prepared.forget_programs();
    }

    /// Begins something that may leave something in the session.
    ///
    /// # Errors
    /// The session is closed.
    pub fn enter(&self) -> Result<AtWork<'_>> {
        self.check_open()?;
        Ok(self.at_work())
    }

    /// As [`Self::enter`], where it is found out later that the session is closed.
    pub fn at_work(&self) -> AtWork<'_> {
        AtWork(self)
    }

    /// # Errors
    /// The session is closed.
    pub fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            let message = "the session is closed; make a new one";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// # Errors
    /// The session was closed while something was under way.
    pub fn check_still_open(&self) -> Result<()> {
        check_closed(&self.closed)
    }

    /// Why a run fails that has stored something already or not: that a closed session lacks what it has freed is no
    /// reason.
    pub(super) fn reason(&self, error: Error, stores: bool) -> Error {
        match self.check_still_open() {
            Err(closed) if !stores => closed,
            _ => self.located(error),
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if self.0.is_closed() {
            self.0.free();
        }
    }
}
