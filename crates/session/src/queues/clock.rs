//! What happens to waiting runs as time goes by: deadlines, and being told of. One thread does it, from when a
//! submitted run first waits until the session ends; it sleeps from one such moment to the next.

use std::sync::PoisonError;
use std::time::Instant;

use convoke_graph_core::{Error, ErrorKind, Result};

use super::waiting::tell;
use super::{Inner, Parked, Queues};

/// What the thread does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Clock {
    /// There is none.
    #[default]
    None,
    /// It sleeps until then, or until it is woken.
    Until(Option<Instant>),
}

impl Queues {
    /// Sees to it that the thread looks again at `at`.
    ///
    /// # Errors
    /// The system refuses the thread.
    pub(super) fn look_at(&self, inner: &mut Inner, at: Instant) -> Result<()> {
        match inner.clock {
            Clock::Until(next) if next.is_some_and(|next| next <= at) => return Ok(()),
            Clock::Until(_) => {
                self.tick.notify_all();
                return Ok(());
            }
            Clock::None => {}
        }
        let Some(own) = self.own.upgrade() else { return Ok(()) };
        let named = std::thread::Builder::new().name("convoke-deadlines".to_owned());
        let thread = named.spawn(move || own.keep_time());
        thread.map_err(|e| {
            let message = format!("cannot start a thread for deadlines: {e}");
            Error::new(ErrorKind::ResourceExhausted, message)
        })?;
        // Until it has looked.
        inner.clock = Clock::Until(Some(at));
        Ok(())
    }

    fn keep_time(&self) {
        let mut inner = self.lock();
        while !inner.ends {
            let now = Instant::now();
            let is_due = |(_, parked): &mut (Option<u64>, Parked)| {
                parked.deadline.is_some_and(|until| until <= now)
            };
            for (_, parked) in inner.parked.extract_if(.., is_due).collect::<Vec<_>>() {
                (parked.resume)();
            }
            let overdue = inner.overdue(now);
            if !overdue.is_empty() {
                drop(inner);
                tell(&overdue, self.session.as_deref());
                inner = self.lock();
                continue;
            }
            let deadlines = inner.parked.iter().filter_map(|(_, parked)| parked.deadline);
            let next = deadlines.chain(inner.next_tell()).min();
            inner.clock = Clock::Until(next);
            inner = match next {
                None => self.tick.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let left = next.saturating_duration_since(now);
                    let waited = self.tick.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
