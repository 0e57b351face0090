//! Runs that have taken what they take, until they end.

use std::cell::RefCell;
use std::sync::Arc;

use convoke_graph_core::Result;

use crate::feeds::FeedData;
use crate::flow::Progress;
use crate::queues::{Attempt, Held, Queues, Taken, Uses};

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    ToItsEnd,
    /// It is to be made to go on when something has changed.
    ToAWait,
}

/// A run that has taken what it takes before it begins. Dropping it gives that back.
pub(crate) struct UnderWay<'a> {
    /// What is fed, and then what was taken.
    pub(super) data: Vec<FeedData<'a>>,
    pub(super) held: Held,
    /// How often it has looked at tables.
    pub(super) n_attempts: usize,
    /// How far it has come, if it waits.
    pub(super) progress: RefCell<Option<Progress>>,
}

impl<'a> UnderWay<'a> {
    /// A run that is fed `data`, and was given what it has taken.
    pub fn new(queues: &Arc<Queues>, data: &[FeedData<'a>], mut taken: Taken) -> Self {
        let values = std::mem::take(&mut taken.values).into_iter().map(FeedData::Tensor);
        let data = data.iter().cloned().chain(values).collect();
        Self { data, held: queues.hold(taken), n_attempts: 1, progress: RefCell::default() }
    }

    /// Gives it its place in line back, which it left when it began to wait.
    pub fn resume(&self, place: Attempt) {
        self.held.resume(place);
    }

    /// Has it look at its tables anew, and begin anew.
    ///
    /// # Errors
    /// As [`Held::look_again`].
    pub(super) fn look_again(&mut self, uses: &Uses) -> Result<()> {
        let seen = self.held.look_again(uses)?;
        self.data.truncate(self.data.len().saturating_sub(seen.len()));
        self.data.extend(seen.into_iter().map(FeedData::Tensor));
        self.n_attempts += 1;
        Ok(())
    }
}
