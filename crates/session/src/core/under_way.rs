//! Runs that have taken what they take, until they end.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use convoke_graph_core::Result;

use super::Planned;
use crate::donation::Settled;
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
    pub(super) settled: Settled<'a>,
    pub(super) held: Held,
    /// How often it has looked at tables.
    pub(super) n_looks: usize,
    pub(super) marks: Marks,
}

/// What a run that waits in its middle leaves for when it goes on.
pub(crate) struct Marks {
    /// How far it has come.
    pub progress: RefCell<Option<Progress>>,
    /// How often it has begun, by why.
    pub n_attempts: Cell<[u32; 2]>,
    /// Whether it has begun anew where there was no memory.
    pub has_freed: Cell<bool>,
}

impl Default for Marks {
    fn default() -> Self {
        let (progress, n_attempts) = (RefCell::default(), Cell::new([1; 2]));
        Self { progress, n_attempts, has_freed: Cell::new(false) }
    }
}

impl<'a> UnderWay<'a> {
    /// A run of `planned` that is fed `data`, and was given what it has taken.
    ///
    /// # Errors
    /// As [`Settled::of`]; what it has taken is given back.
    pub fn new(
        queues: &Arc<Queues>,
        planned: &Planned,
        data: &[FeedData<'a>],
        mut taken: Taken,
    ) -> Result<Self> {
        let values = std::mem::take(&mut taken.values).into_iter().map(FeedData::Tensor);
        let data = data.iter().cloned().chain(values).collect();
        let held = queues.hold(taken);
        let settled = Settled::all(planned, data)?;
        Ok(Self { settled, held, n_looks: 1, marks: Marks::default() })
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
        let data = &mut self.settled.data;
        data.truncate(data.len().saturating_sub(seen.len()));
        data.extend(seen.into_iter().map(FeedData::Tensor));
        self.n_looks += 1;
        Ok(())
    }
}
