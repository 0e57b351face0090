//! How large a graph may become.

use super::{Graph, GraphState, NodeId};
use crate::OpError;

/// How much a graph takes while it is built. What comes beyond is refused with
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
    /// How much the graph takes.
    pub fn limits(&self) -> GraphLimits {
        self.read().limits
    }

    /// Has the graph take so much from now on. What it has already it keeps, also of a model that is loaded.
    pub fn set_limits(&self, limits: GraphLimits) {
        let mut state = self.write();
        (state.limits, state.beyond) = (limits, None);
    }
}

impl GraphState {
    /// # Errors
    /// A node with so many edges is beyond a limit.
    pub(super) fn admit(&self, n_edges: usize) -> Result<(), OpError> {
        let GraphLimits { nodes, edges } = self.limits;
        match (self.nodes.len() >= nodes, self.n_edges.saturating_add(n_edges) > edges) {
            (true, _) => Err(OpError::GraphLimit { what: "nodes", max: nodes }),
            (_, true) => Err(OpError::GraphLimit { what: "edges", max: edges }),
            _ => Ok(()),
        }
    }

    /// The node that all stand for that come after the last, once there is one: so that their number does not matter.
    pub(super) fn beyond(&self) -> Option<NodeId> {
        self.beyond
    }

    /// Notes what was added: its edges; that it is the first beyond the limit.
    pub(super) fn added(&mut self, id: NodeId, n_edges: usize) {
        self.n_edges = self.n_edges.saturating_add(n_edges);
        if self.nodes.len() > self.limits.nodes {
            self.beyond = Some(id);
        }
    }
}
