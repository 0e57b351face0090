//! What a partial run has of queues, readers and tables: what was taken for all its steps, and what these have come to put.

use std::sync::Arc;

use convoke_graph_core::{HostTensor, NodeId, Result, Shape, TableAction};
use smallvec::SmallVec;

use crate::cancel::Stop;
use crate::queues::{self, Claimed, Held, Item, Uses};

/// What was taken, which is given back when this is dropped, and what is to be put.
pub(super) struct Taking {
    /// With all that had to be known first.
    uses: Arc<Uses>,
    held: Held,
    /// For each use of a queue, what it puts, once its operation has run. What only takes has done so.
    items: Vec<Option<Vec<Item>>>,
    /// For each use of a table, whether its operation has run.
    has_run: Vec<bool>,
    /// What is put into tables and accumulators otherwise, by its place among what the run fetches.
    fetched: Vec<HostTensor>,
}

/// What an operation puts, checked, and with memory of its own.
pub(super) struct Put {
    of: Of,
    items: Vec<Item>,
    values: Item,
}

/// A use of a queue or table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Queue(usize),
    Table(usize),
}

impl Taking {
    /// Of a run that has come to put nothing yet, of `n_fetches` tensors.
    pub fn new(uses: Arc<Uses>, held: Held, n_fetches: usize) -> Self {
        let takes = uses.queues.iter().map(|used| used.action.is_source().then(Vec::new));
        let (items, has_run) = (takes.collect(), vec![false; uses.tables.len()]);
        Self { uses, held, items, has_run, fetched: vec![false.into(); n_fetches] }
    }

    /// What was taken.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// What an operation that has run puts at the end, of these values.
    ///
    /// # Errors
    /// Sizes that a queue does not take, rows of different numbers, keys and values of a table that do not go together;
    /// no memory.
    pub fn put(&self, node: NodeId, values: Item) -> Result<Option<Put>> {
        let Uses { queues, tables, .. } = &*self.uses;
        if let Ok(at) = queues.binary_search_by_key(&node, |used| used.id) {
            let (used, of) = (&queues[at], Of::Queue(at));
            if !queues::puts(used.action) {
                return Ok(Some(Put { of, items: Vec::new(), values }));
            }
            let shapes: SmallVec<[&Shape; 2]> = values.iter().map(HostTensor::shape).collect();
            queues::check(used, &shapes)?;
            drop(shapes);
            let items = queues::items(used, values)?;
            return Ok(Some(Put { of, items, values: Item::new() }));
        }
        let Ok(at) = tables.binary_search_by_key(&node, |used| used.id) else { return Ok(None) };
        let used = &tables[at];
        if let (TableAction::Insert, [keys, values]) = (used.action, &values[..]) {
            let checked = used.table.check_shapes(keys.shape(), values.shape());
            checked.map_err(|e| e.with_node(&*used.node))?;
        }
        Ok(Some(Put { of: Of::Table(at), items: Vec::new(), values }))
    }

    /// Notes what a step puts, now that it has succeeded.
    pub fn note(&mut self, puts: Vec<Put>) {
        self.held.keep();
        for Put { of, items, values } in puts {
            let places = match of {
                Of::Queue(at) => {
                    self.items[at] = Some(items);
                    &self.uses.queues[at].places
                }
                Of::Table(at) => {
                    self.has_run[at] = true;
                    &self.uses.tables[at].places
                }
            };
            for (&place, value) in places.iter().zip(values) {
                if let Some(fetched) = self.fetched.get_mut(place) {
                    *fetched = value;
                }
            }
        }
    }

    /// Has the tables for the run that it is about to change, with what a last step puts.
    ///
    /// # Errors
    /// As [`Held::claim`].
    pub fn claim(&self, last: &[Put], stop: &Stop<'_>) -> Result<Option<Claimed>> {
        let is_last = |at: usize| last.iter().any(|put| put.of == Of::Table(at));
        let tables = self.uses.tables.iter().enumerate();
        let changed = tables
            .filter(|(at, used)| used.changes() && (self.has_run[*at] || is_last(*at)))
            .map(|(_, used)| used);
        self.held.claim(changed, stop)
    }

    /// Puts all that was noted: the run has succeeded.
    pub fn end(self, claimed: Option<&Claimed>) {
        let Self { uses, held, items, has_run, fetched } = self;
        let tables = uses.tables.iter().zip(has_run);
        let changed = tables.filter(|(used, has_run)| *has_run && used.changes());
        held.put(&uses, items, changed.map(|(used, _)| used), &fetched, claimed);
    }
}
