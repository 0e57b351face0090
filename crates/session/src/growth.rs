//! Graphs that grow run after run, which users find out late.

use convoke_graph_core::{GraphSnapshot, NodeId};

/// How the graph grows from plan to plan.
#[derive(Default)]
pub(crate) struct Growth {
    n_nodes: usize,
    /// How many plans in a row found more nodes.
    plans: usize,
    is_told: bool,
}

/// Plans in a row that find more nodes, each of which may have its reason.
const GROWTH_MAX: usize = 16;

impl Growth {
    /// What to say of a graph that is planned for, once.
    pub fn warning(&mut self, graph: &GraphSnapshot) -> Option<String> {
        let n_nodes = graph.nodes.len();
        self.plans = if n_nodes > self.n_nodes { self.plans + 1 } else { 0 };
        let before = std::mem::replace(&mut self.n_nodes, n_nodes);
        if self.is_told || self.plans < GROWTH_MAX {
            return None;
        }
        self.is_told = true;
        let newest = graph.node(NodeId(u32::try_from(n_nodes - 1).ok()?));
        Some(format!(
            "the graph has grown before each of the last {GROWTH_MAX} runs that were planned, now from {before} to {n_nodes} \
             nodes; the newest is {}, of {}. Build the graph once, and feed what differs: then a run is planned once; \
             graph.finalize() finds what adds to it",
            newest.name, newest.location,
        ))
    }
}
