//! What ends a run early: cancelling, closing the session, a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};

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
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the runs that have it, and those that will be given it. There is no way back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
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
}

impl Stop<'_> {
    /// # Errors
    /// `Cancelled` or `DeadlineExceeded`, if the run is to end.
    pub fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(cancelled("the session was closed during the run"));
        }
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

fn cancelled(message: &str) -> Error {
    Error::new(ErrorKind::Cancelled, message)
}
