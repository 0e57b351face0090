//! How large a graph may become.

use super::{Graph, GraphState};
use crate::OpError;

/// How much a graph takes. What comes beyond is refused with
/// [`ErrorKind::ResourceExhausted`](crate::ErrorKind::ResourceExhausted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphLimits {
    /// Nodes, those in bodies too.
    pub nodes: usize,
    /// Inputs and controls of all nodes together.
    pub edges: usize,
}

impl Default for GraphLimits {
    /// 4,194,304 nodes and 33,554,432 edges.
    fn default() -> Self {
        Self { nodes: 1 << 22, edges: 1 << 25 }
    }
}

impl Graph {
    /// Has the graph take so much from now on. What it has already it keeps.
    pub fn set_limits(&self, limits: GraphLimits) {
        self.write().limits = limits;
    }
}

impl GraphState {
    /// Counts the edges of the next node.
    ///
    /// # Errors
    /// It is beyond a limit.
    pub(super) fn admit(&mut self, n_edges: usize) -> Result<(), OpError> {
        self.n_edges = self.n_edges.saturating_add(n_edges);
        let GraphLimits { nodes, edges } = self.limits;
        match (self.nodes.len() >= nodes, self.n_edges > edges) {
            (true, _) => Err(OpError::GraphLimit { what: "nodes", max: nodes }),
            (_, true) => Err(OpError::GraphLimit { what: "edges", max: edges }),
            _ => Ok(()),
        }
    }
}
