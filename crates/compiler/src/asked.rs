//! Where work is asked to run: the device that was named, and what it shares one with.
//!
//! One kernel runs on one device. Work that asks for different devices, or for different company, is therefore never one
//! kernel: that would ask for what nobody asked for.

use std::sync::Arc;

use convoke_graph_core::{Class, Node, NodeId, State};
use rustc_hash::FxHashMap;

use crate::{Apart, Plan};

/// What a node asks for, or all nodes of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// The device that was named.
    pub device: Option<Arc<str>>,
    /// The first of the nodes that are to share a device with it, if any are.
    pub company: Option<NodeId>,
}

impl Asked {
    /// # Errors
    /// What keeps work that asks for this from being one kernel with work that asks for `other`.
    pub(crate) fn with(&self, other: &Self) -> Result<(), Apart> {
        if self.device != other.device {
            return Err(Apart::Devices);
        }
        if self.company != other.company {
            return Err(Apart::Company);
        }
        Ok(())
    }
}

/// Nodes that are to share a device, as they were colocated one with the other.
#[derive(Debug, Default)]
pub(crate) struct Companies {
    /// For each node that has company, the first of it.
    first: FxHashMap<NodeId, NodeId>,
}

impl Companies {
    /// Those of a plan's nodes.
    pub fn of(plan: &Plan) -> Self {
        let nodes = plan.all_nodes();
        let mut companies = Self::default();
        if nodes.iter().all(|node| node.colocated.is_empty()) {
            return companies;
        }
        let known: FxHashMap<NodeId, &Node> =
            nodes.iter().map(|node| (node.id, &***node)).collect();
        for node in nodes {
            for &target in &node.colocated {
                let variable = known.get(&target).and_then(|target| stands_for(target));
                let ends = [node.id, variable.unwrap_or(target)].map(|end| companies.find(end));
                let [first, second] = [ends[0].min(ends[1]), ends[0].max(ends[1])];
                companies.first.extend([(first, first), (second, first)]);
            }
        }
        let nodes: Vec<NodeId> = companies.first.keys().copied().collect();
        for node in nodes {
            let first = companies.find(node);
            companies.first.insert(node, first);
        }
        companies
    }

    /// The first node of the company that a node has, if it has any.
    pub fn of_node(&self, node: NodeId) -> Option<NodeId> {
        self.first.get(&node).copied()
    }

    /// The first node of a node's company so far. Halves the way there.
    fn find(&mut self, mut node: NodeId) -> NodeId {
        while let Some(&next) = self.first.get(&node).filter(|next| **next != node) {
            let after = self.first.get(&next).copied().unwrap_or(next);
            self.first.insert(node, after);
            node = next;
        }
        node
    }
}

/// The variable that a node is no work besides.
fn stands_for(node: &Node) -> Option<NodeId> {
    match node.op.class() {
        Class::State(State::Read | State::Assign | State::IsInitialized) => {
            node.inputs.first().map(|handle| handle.node)
        }
        _ => None,
    }
}
