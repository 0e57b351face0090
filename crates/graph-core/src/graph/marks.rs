//! What runs may not feed or fetch.
//!
//! Source: TensorFlow's `Graph.prevent_feeding` and `prevent_fetching`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{BodyId, Graph, GraphState, Node, NodeId, Output};
use crate::{Error, Operation, Result, Tensor};

impl GraphState {
    /// The node with this id, if there is one.
    fn own(&self, id: NodeId) -> Option<&Arc<Node>> {
        let at = id.0 as usize;
        (at < self.nodes.len()).then(|| &self.nodes[at])
    }
}

impl Graph {
    /// From now on no run may feed `tensor`; one of another graph is left alone.
    pub fn prevent_feeding(&self, tensor: &Tensor) {
        if tensor.graph().id() == self.id() {
            self.write().unfeedable.insert(tensor.output());
            self.inner.is_marked.store(true, Ordering::Release);
        }
    }

    /// From now on no run may fetch what `operation` gives, or run it by itself; one of another graph is left alone.
    pub fn prevent_fetching(&self, operation: &Operation) {
        if operation.graph().id() == self.id() {
            self.write().unfetchable.insert(operation.id());
            self.inner.is_marked.store(true, Ordering::Release);
        }
    }

    /// Whether runs may feed an output: it is no part of a branch or loop, no variable's handle, and nobody has
    /// [prevented](Self::prevent_feeding) it.
    pub fn is_feedable(&self, output: Output) -> bool {
        let state = self.read();
        let node = state.own(output.node);
        let fact = node.filter(|node| node.body == BodyId::GRAPH);
        let fact = fact.and_then(|node| node.facts.get(output.index as usize));
        fact.is_some_and(|fact| !fact.is_variable()) && !state.unfeedable.contains(&output)
    }

    /// Whether runs may fetch what a node gives: it is no part of a branch or loop, and nobody has
    /// [prevented](Self::prevent_fetching) it.
    pub fn is_fetchable(&self, node: NodeId) -> bool {
        let state = self.read();
        let own = state.own(node);
        own.is_some_and(|own| own.body == BodyId::GRAPH) && !state.unfetchable.contains(&node)
    }

    /// Refuses what somebody has marked.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for the first feed or fetch that is prevented.
    pub fn check_marks(
        &self,
        feeds: &[Output],
        mut fetches: impl Iterator<Item = NodeId>,
    ) -> Result<()> {
        if !self.inner.is_marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let state = self.read();
        let refused = |id: NodeId, what: &str| {
            let error =
                Error::invalid(format!("the tensor is marked as one that may not be {what}"));
            error.with_node(state.nodes[id.0 as usize].name.to_string())
        };
        if let Some(feed) = feeds.iter().find(|feed| state.unfeedable.contains(feed)) {
            return Err(refused(feed.node, "fed"));
        }
        match fetches.find(|id| state.unfetchable.contains(id)) {
            Some(id) => Err(refused(id, "fetched")),
            None => Ok(()),
        }
    }
}
