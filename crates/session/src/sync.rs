//! What is checked exhaustively is made of these: std's locks and places without one, or loom's where loom runs the threads.

#[cfg(not(loom))]
use crossbeam_utils::atomic::AtomicCell;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::AtomicBool;
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::AtomicBool;
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// A place for one `Box` or `Arc`, which threads exchange without a lock: in one step of the processor.
#[cfg(not(loom))]
pub(crate) struct Slot<P>(AtomicCell<Option<P>>);

/// Loom knows no place without a lock: a step is one under a lock that is held for nothing else.
#[cfg(loom)]
pub(crate) struct Slot<P>(Mutex<Option<P>>);

impl<P> Default for Slot<P> {
    fn default() -> Self {
        #[cfg(not(loom))]
        const {
            assert!(AtomicCell::<Option<P>>::is_lock_free(), "an exchange would take a lock");
        }
        Self(None.into())
    }
}

impl<P> Slot<P> {
    /// Leaves something, or nothing, and gives what was there.
    pub fn swap(&self, new: Option<P>) -> Option<P> {
        #[cfg(not(loom))]
        return self.0.swap(new);
        #[cfg(loom)]
        return std::mem::replace(&mut *self.0.lock().unwrap(), new);
    }
}
