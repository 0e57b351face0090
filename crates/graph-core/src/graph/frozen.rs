//! Graphs to which nothing can be added: for good, or for a while.

use super::Graph;

/// Keeps nodes from being added to a graph, from [`Graph::freeze`], until it is dropped.
#[must_use = "the graph is frozen until this is dropped"]
#[derive(Debug)]
pub struct Frozen(Graph);

/// Why no node can be added.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    is_final: bool,
    /// How many [`Frozen`] there are.
    n_held: usize,
}

impl Freezes {
    pub(super) fn any(&self) -> bool {
        self.is_final || self.n_held > 0
    }
}

impl Graph {
    /// From now on no node can be added: a further operation is refused, with
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition).
    pub fn finalize(&self) {
        self.write().freezes.is_final = true;
    }

    /// As [`Self::finalize`], until what this returns is dropped. An operation that was refused stays so.
    pub fn freeze(&self) -> Frozen {
        self.write().freezes.n_held += 1;
        Frozen(self.clone())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.write().freezes.n_held -= 1;
    }
}
