//! Blocks: many iterations of a loop as one program, written out one after the other.

use std::sync::Arc;

use convoke_graph_core::{
    Fact, GraphSnapshot, LoopBlock, LoopOp, Node, NodeId, Op, Output, Result, operations,
};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::lifted::handle;
use super::{LoopStep, Place, ProgramStep, Step, ancestors};
use crate::{Plan, Signature};

/// Iterations of a loop as one program. Its fetches are what is carried at its end, which stays where it is, then whether
/// the loop goes on, if that is asked for, then what is stacked.
#[derive(Debug, Clone)]
pub struct BlockPlan {
    /// The plan of its program.
    pub plan: Plan,
    /// Where each feed comes from.
    pub feeds: Vec<BlockFeed>,
    /// The carried tensors that go through it, in the order of the fetches. The others stay as they are.
    pub carried: Vec<usize>,
}

/// What a block is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFeed {
    /// What is carried, as it is when the block begins, or in every iteration if it stays as it is.
    Carried(usize),
    /// As many slices of a scanned tensor as it has iterations, the first in memory first.
    Slices(usize),
    /// A capture.
    Capture(usize),
}

impl LoopStep {
    /// The program that is all that an iteration does, if it is one that uses no variables that the run holds but those
    /// that the loop carries.
    pub fn program(&self) -> Option<&ProgramStep> {
        let ([Step::Program(program)], []) = (&self.body.steps[..], &self.body.starts[..]) else {
            return None;
        };
        let is_slot = |place: &Place| matches!(place, Place::Slot(_));
        let is_plain = program.feeds.iter().chain(&program.fetches).all(is_slot);
        is_plain.then_some(program)
    }

    /// How many operations the nodes of `plan` that are in the loop's body are.
    pub fn n_operations(&self, op: &LoopOp, plan: &Plan) -> u64 {
        let own = plan.nodes.iter().filter(|node| node.body == op.body.id);
        operations(&own.cloned().collect::<Vec<_>>()).max(1)
    }

    /// So many iterations as one program, where `plan` is that of [one iteration](Self::program); without a number, one
    /// that says whether the loop goes on.
    ///
    /// # Errors
    /// A step that is not of this loop.
    pub fn block(
        &self,
        op: &LoopOp,
        plan: &Plan,
        graph: &GraphSnapshot,
        trips: Option<u64>,
    ) -> Result<BlockPlan> {
        let params = &op.body.params;
        let fed = self.fed(op, plan, graph);
        let stacked = self.outputs.iter().filter_map(|&(output, _)| self.stacked_of(op, output));
        let pred = self.results.first().filter(|_| op.has_pred && trips.is_none());
        let collected: Vec<Output> = pred.copied().into_iter().chain(stacked).collect();
        let (carried, needed) = self.needs(op, graph, &fed, &collected);
        let next = &self.results[op.next_at()..];
        let next: Vec<Output> = carried.iter().map(|&at| next[at]).collect();
        let (nodes, outer): (Vec<Arc<Node>>, Vec<Arc<Node>>) =
            needed.into_iter().partition(|node| node.body == op.body.id);
        let used = nodes.iter().flat_map(|node| &node.inputs).chain(&next).chain(&collected);
        let used: FxHashSet<Output> = used.copied().collect();
        let scanned: Vec<usize> = (0..op.n_scanned)
            .filter(|at| params.get(op.n_carried + at).is_some_and(|param| used.contains(param)))
            .collect();
        let own: FxHashSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        let of_carried = carried.iter().copied();
        let places = of_carried.chain(scanned.iter().map(|at| op.n_carried + at));
        let mut inputs: Vec<Output> = places.map(|at| params[at]).collect();
        let mut captures: Vec<Output> = used
            .into_iter()
            .filter(|output| !own.contains(&output.node) && !inputs.contains(output))
            // A variable that is carried and stays as it is is fed all the same.
            .filter(|output| !graph.fact(*output).is_variable() || params.contains(output))
            .collect();
        captures.sort_unstable();
        inputs.extend(&captures);
        let feeds: Vec<Output> =
            inputs.iter().copied().filter(|output| fed.contains(output)).collect();
        let sources = feeds.iter().filter_map(|feed| source(op, feed)).collect();
        let (of, trips) = (carried.clone(), trips.unwrap_or(1));
        let n_fetches = next.len() + collected.len();
        let block = LoopBlock { trips, carried: of, next, scanned, collected, nodes, captures };
        let node = self.written_out(op.block(graph, &block), graph, inputs)?;
        let fetch = |index: usize| Output { node: node.id, index: index as u32 };
        let signature = Signature {
            fetches: (0..n_fetches).map(fetch).collect(),
            residents: (0..carried.len()).collect(),
            feeds,
            ..Signature::default()
        };
        let (order, initial, held) = (plan.order.clone(), plan.initial.clone(), plan.held.clone());
        let handles: Vec<Output> = self.variables.iter().map(|own| handle(own.variable)).collect();
        let variables = self.variables.iter().map(|own| graph.node(own.variable).clone());
        let nodes = variables.chain(outer).chain([Arc::new(node)]).collect();
        let plan = Plan { nodes, order, initial, held, handles, ..Plan::bare(graph, signature) };
        Ok(BlockPlan { plan, feeds: sources, carried })
    }

    /// The outputs that iterations are given.
    fn fed(&self, op: &LoopOp, plan: &Plan, graph: &GraphSnapshot) -> FxHashSet<Output> {
        let captures = op.body.captures.iter().zip(&self.captures);
        let captures = captures.filter_map(|(output, slot)| slot.map(|_| output));
        // A read of a variable that is carried is no feed: it reads what is carried.
        let feeds = plan.signature.feeds.iter();
        let feeds = feeds
            .filter(|feed| !self.variables.iter().any(|own| own.is_read_by(graph.node(feed.node))));
        feeds.chain(&op.body.params).chain(captures).copied().collect()
    }

    /// Which carried tensors change, of those that are asked for or that something needed is computed from; and the nodes
    /// that all of it needs, in order. What only decides whether the loop goes on is left out.
    fn needs(
        &self,
        op: &LoopOp,
        graph: &GraphSnapshot,
        fed: &FxHashSet<Output>,
        collected: &[Output],
    ) -> (Vec<usize>, Vec<Arc<Node>>) {
        let (params, next) = (&op.body.params, &self.results[op.next_at()..][..op.n_carried]);
        let own = |control: NodeId| graph.node(control).body == op.body.id;
        let mut carried: Vec<usize> = self.asked(op).collect();
        loop {
            let results = carried.iter().map(|&at| &next[at]).chain(collected);
            let roots = results.clone().filter(|result| !fed.contains(result));
            let roots: Vec<NodeId> = roots.map(|result| result.node).collect();
            let needed = ancestors(graph, &roots, fed, &own);
            let used: FxHashSet<&Output> =
                needed.iter().flat_map(|node| &node.inputs).chain(results).collect();
            let is_used = |at: &usize| carried.contains(at) || used.contains(&params[*at]);
            let all: Vec<usize> = (0..op.n_carried).filter(is_used).collect();
            if all.len() == carried.len() {
                carried.retain(|&at| next[at] != params[at]);
                return (carried, needed);
            }
            carried = all;
        }
    }

    /// The loop's node with a block as its operation.
    fn written_out(&self, op: LoopOp, graph: &GraphSnapshot, inputs: Vec<Output>) -> Result<Node> {
        let facts: Vec<Fact> = inputs.iter().map(|&input| graph.fact(input).clone()).collect();
        let facts = op.infer(&facts)?;
        let (op, inputs, controls) = (Arc::new(op), inputs.into(), SmallVec::new());
        let body_controls = Box::default();
        Ok(Node { op, inputs, controls, body_controls, facts, ..(*self.node).clone() })
    }

    /// The output of the body of which an output of the loop is a stack.
    fn stacked_of(&self, op: &LoopOp, output: usize) -> Option<Output> {
        let history = output.checked_sub(op.history_at()).filter(|&at| at < op.n_carried);
        if let Some(at) = history {
            return op.body.params.get(at).copied();
        }
        let (_, result) = self.stacked.iter().find(|(own, _)| *own == output)?;
        self.results.get(*result).copied()
    }
}

/// Where what the body is given comes from.
fn source(op: &LoopOp, feed: &Output) -> Option<BlockFeed> {
    let param = op.body.params.iter().position(|param| param == feed);
    match param {
        Some(at) if at < op.n_carried => Some(BlockFeed::Carried(at)),
        Some(at) => Some(BlockFeed::Slices(at - op.n_carried)),
        None => {
            let at = op.body.captures.iter().position(|capture| capture == feed)?;
            Some(BlockFeed::Capture(at))
        }
    }
}
