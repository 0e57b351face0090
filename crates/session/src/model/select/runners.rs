//! Which queue runners a model keeps: those that fill a queue that it uses, with what they need.
//!
//! TensorFlow's `export_meta_graph` keeps the whole graph and with it all runners; a model has only what it needs.

use convoke_graph_core::{Class, Node, NodeId, RunnerParts};
use rustc_hash::FxHashSet;

use super::{Needed, Selected, is_variable};

impl Selected<'_> {
    /// Adds runners that fill queues of the model, until none is left that does.
    pub(super) fn keep_runners(
        &mut self,
        all: &[RunnerParts],
        is_initialized: impl Fn(NodeId) -> bool,
    ) {
        let mut used: FxHashSet<String> = FxHashSet::default();
        for &id in &self.kept {
            used.extend(queues_of(self.graph.node(id)).map(str::to_owned));
        }
        let mut left: Vec<usize> = (0..all.len()).collect();
        let mut kept = Vec::new();
        loop {
            let fills = |&at: &usize| {
                let mut queues = queues_of(self.graph.node(all[at].close));
                queues.any(|queue| used.contains(queue))
            };
            let Some(place) = left.iter().position(fills) else { break };
            let at = left.remove(place);
            let RunnerParts { enqueues, close, cancel, .. } = &all[at];
            let roots = enqueues.iter().chain([close, cancel]).copied().collect();
            let needed = self.follow(roots, &self.cut);
            if let Some(reason) = self.unfit(&all[at], &needed, &is_initialized) {
                let close = self.graph.node(*close);
                let name = queues_of(close).next().unwrap_or_default();
                tracing::warn!("the model has no runner for queue '{name}': {reason}");
                continue;
            }
            for &id in &needed.nodes {
                used.extend(queues_of(self.graph.node(id)).map(str::to_owned));
            }
            self.kept.extend(needed.nodes);
            kept.push(at);
        }
        kept.sort_unstable();
        self.runners = kept.into_iter().map(|at| all[at].clone()).collect();
    }

    /// Why the model cannot have a runner and what it needs, if that is so.
    fn unfit(
        &self,
        runner: &RunnerParts,
        needed: &Needed,
        is_initialized: &dyn Fn(NodeId) -> bool,
    ) -> Option<String> {
        if needed.is_cut {
            return Some("what it puts needs an input of the model".into());
        }
        let mut nodes: Vec<_> = needed.nodes.iter().copied().filter(|&id| !self.has(id)).collect();
        nodes.sort_unstable();
        let reason = nodes.into_iter().map(|id| self.graph.node(id)).find_map(|node| {
            if is_variable(node) && !is_initialized(node.id) && !self.may_lack(node.id) {
                return Some(format!("variable {} has no elements", node.name));
            }
            let refused = self.refused(node).map(|error| error.to_string());
            refused.or_else(|| match node.op.encode() {
                Some(_) => None,
                None => Some(format!("no file can keep {}", node.name)),
            })
        });
        reason.or_else(|| Some(runner.queue(&self.graph.nodes).err()?.to_string()))
    }
}

/// The names of the queues that a node uses.
fn queues_of(node: &Node) -> impl Iterator<Item = &str> {
    let (own, among) = match node.op.class() {
        Class::Queue(op) if op.among.is_empty() => (Some(&op.queue), &[][..]),
        Class::Queue(op) => (None, &op.among[..]),
        Class::Reader(op) => (op.queue.as_ref(), &[][..]),
        _ => (None, &[][..]),
    };
    own.into_iter().chain(among).map(|queue| queue.name.as_str())
}
