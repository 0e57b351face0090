//! What ends a run early: cancelling, closing the session, a deadline.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};

use crate::sync::{AtomicBool, Mutex, MutexGuard};

/// Cancels runs: give clones of it to runs by [`RunOptions::cancel`](crate::RunOptions::cancel), and cancel from any
/// thread.
///
/// A run looks at it before each kernel on the host and before each segment on a GPU, and waits for what a GPU was
/// given already. It then ends with [`ErrorKind::Cancelled`], and nothing has changed. A run that has begun to store
/// is done and not cancelled any more.
///
/// ```
/// # use convoke_session::CancelToken;
/// let token = CancelToken::new();
/// let other = token.clone();
/// std::thread::spawn(move || other.cancel()).join().unwrap();
/// assert!(token.is_cancelled());
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_cancelled: AtomicBool,
    bells: Mutex<Vec<Weak<dyn Bell>>>,
}

/// What wakes those who wait, so that they look whether they are cancelled.
pub(crate) trait Bell: Send + Sync + fmt::Debug {
    fn ring(&self);
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the runs that have it, and those that will be given it. There is no way back.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        let bells: Vec<Arc<dyn Bell>> = self.bells().iter().filter_map(Weak::upgrade).collect();
        bells.iter().for_each(|bell| bell.ring());
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// Whether it is a clone of the other.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn bells(&self) -> MutexGuard<'_, Vec<Weak<dyn Bell>>> {
        self.0.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings `bell` when it is cancelled.
    fn add(&self, bell: &Arc<dyn Bell>) {
        let bell = Arc::downgrade(bell);
        let mut bells = self.bells();
        bells.retain(|other| other.strong_count() > 0);
        if !bells.iter().any(|other| Weak::ptr_eq(other, &bell)) {
            bells.push(bell);
        }
    }
}

/// What may end one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop<'a> {
    /// Whether the session is closed.
    pub closed: &'a AtomicBool,
    /// The caller's token, and that of the run's handle.
    pub tokens: [Option<&'a CancelToken>; 2],
    /// Until when, and how long that is from the start.
    pub deadline: Option<(Instant, Duration)>,
    /// Whether having to wait for queues or readers ends it.
    pub fails_if_blocked: bool,
}

impl Stop<'_> {
    /// Rings `bell` when a token is cancelled. Whoever closes the session rings it himself.
    pub fn ring(&self, bell: &Arc<dyn Bell>) {
        self.tokens.into_iter().flatten().for_each(|token| token.add(bell));
    }

    /// # Errors
    /// `Cancelled` or `DeadlineExceeded`, if the run is to end.
    pub fn check(&self) -> Result<()> {
        check_closed(self.closed)?;
        if self.tokens.into_iter().flatten().any(CancelToken::is_cancelled) {
            return Err(cancelled("the run was cancelled"));
        }
        match self.deadline {
            Some((until, timeout)) if Instant::now() >= until => {
                let message =
                    format!("the run took longer than its timeout of {timeout:?}; nothing changed");
                Err(Error::new(ErrorKind::DeadlineExceeded, message))
            }
            _ => Ok(()),
        }
    }
}

/// # Errors
/// The session of a run is closed.
pub(crate) fn check_closed(closed: &AtomicBool) -> Result<()> {
    match closed.load(Ordering::Acquire) {
        true => Err(cancelled("the session was closed during the run")),
        false => Ok(()),
    }
}

fn cancelled(message: &str) -> Error {
    Error::new(ErrorKind::Cancelled, message)
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::Condvar;

    /// Somebody who waits under a lock until he is cancelled.
    #[derive(Debug)]
    struct Sleeper {
        lock: Mutex<()>,
        rung: Condvar,
    }

    impl Bell for Sleeper {
        fn ring(&self) {
            let _lock = self.lock.lock().unwrap();
            self.rung.notify_all();
        }
    }

    /// Who says that he is to be woken and then looks misses no cancelling, from whichever of two threads.
    #[test]
    fn loom_no_cancelling_is_missed() {
        loom::model(|| {
            let (token, closed) = (CancelToken::new(), AtomicBool::new(false));
            let cancels = [(); 2].map(|()| {
                let token = token.clone();
                thread::spawn(move || token.cancel())
            });
            let sleeper = Arc::new(Sleeper { lock: Mutex::new(()), rung: Condvar::new() });
            let stop = Stop {
                closed: &closed,
                tokens: [Some(&token), None],
                deadline: None,
                fails_if_blocked: false,
            };
            let bell: Arc<dyn Bell> = sleeper.clone();
            stop.ring(&bell);
            let mut lock = sleeper.lock.lock().unwrap();
            while stop.check().is_ok() {
                lock = sleeper.rung.wait(lock).unwrap();
            }
            drop(lock);
            cancels.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(token.is_cancelled());
        });
    }
}
