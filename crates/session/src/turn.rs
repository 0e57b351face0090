//! Whose turn it is, where runs have to follow one another.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use convoke_graph_core::Result;

use crate::cancel::{Bell, Stop};

/// Lets one run at a time go on, among those that ask.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    is_taken: Mutex<bool>,
    changed: Condvar,
}

/// A run's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a>(&'a Turn);

impl Turn {
    /// Waits on this thread until nobody else has a turn.
    ///
    /// # Errors
    /// What `stop` says.
    pub fn take(self: &Arc<Self>, stop: &Stop<'_>) -> Result<Taken<'_>> {
        let bell: Arc<dyn Bell> = self.clone();
        stop.ring(&bell);
        let mut is_taken = self.lock();
        loop {
            stop.check()?;
            if !*is_taken {
                *is_taken = true;
                return Ok(Taken(self));
            }
            let left =
                stop.deadline.map(|(until, _)| until.saturating_duration_since(Instant::now()));
            is_taken = match left {
                None => self.changed.wait(is_taken).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.changed.wait_timeout(is_taken, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell for Turn {
    fn ring(&self) {
        let _is_taken = self.lock();
        self.changed.notify_all();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.changed.notify_all();
    }
}
