//! Blocks: some of the iterations of a loop as a loop of its own, which is written out.

use std::sync::Arc;

use super::LoopOp;
use crate::ops::body::Body;
use crate::{Class, Dim, Fact, Flow, GraphSnapshot, Node, Output};

/// Some iterations of a loop, one after the other, and what they are to give.
#[derive(Debug, Clone)]
pub struct LoopBlock {
    /// How many iterations.
    pub trips: u64,
    /// Which of the carried tensors go through it. The others stay as they are, and are captures.
    pub carried: Vec<usize>,
    /// What each of these is next: an output of the body.
    pub next: Vec<Output>,
    /// Which of the scanned tensors it takes slices of.
    pub scanned: Vec<usize>,
    /// The outputs of the body that are stacked.
    pub collected: Vec<Output>,
    /// The nodes of the body, inputs before users.
    pub nodes: Vec<Arc<Node>>,
    /// What its nodes and results use from elsewhere.
    pub captures: Vec<Output>,
}

impl LoopOp {
    /// A block of the loop's iterations. Inputs: what is carried, so many slices of what is scanned, the captures.
    /// Outputs: what is carried at its end, then what is collected.
    pub fn block(&self, graph: &GraphSnapshot, block: &LoopBlock) -> Self {
        let LoopBlock { trips, carried, next, scanned, collected, nodes, captures } = block;
        let places: Vec<usize> =
            carried.iter().copied().chain(scanned.iter().map(|at| self.n_carried + at)).collect();
        let of = |list: &[Output]| places.iter().filter_map(|&at| list.get(at)).copied().collect();
        let results: Vec<Output> = next.iter().chain(collected).copied().collect();
        let body = Body {
            id: self.body.id,
            params: of(&self.body.params),
            facts: results.iter().map(|&result| graph.fact(result).clone()).collect(),
            results,
            nodes: nodes.clone(),
            captures: captures.clone(),
            before: Vec::new(),
        };
        let mut op = Self {
            body,
            has_pred: false,
            has_count: false,
            n_carried: carried.len(),
            n_scanned: scanned.len(),
            n_collected: collected.len(),
            max: None,
            trips: Some(*trips),
            counted_by: Vec::new(),
            unrolled: true,
            places: Vec::new(),
            size: usize::try_from(*trips).map_or(Dim::Unknown, Dim::Known),
            expected: places.iter().filter_map(|&at| self.expected.get(at)).cloned().collect(),
            ..self.clone()
        }
        .complete();
        op.outputs.truncate(op.trips_at());
        op
    }
}

impl LoopOp {
    /// The same loop that carries these as well, behind what it carries: for each a parameter, what it is next, and what
    /// it has to be like.
    pub fn with_carried(&self, params: &[Output], next: &[Output], facts: &[Fact]) -> Self {
        let mut op = self.clone();
        let (at, end) = (self.n_carried, self.next_at() + self.n_carried);
        op.body.params.splice(at..at, params.iter().copied());
        op.body.results.splice(end..end, next.iter().copied());
        op.body.facts.splice(end..end, facts.iter().cloned());
        op.expected.splice(at..at, facts.iter().cloned());
        op.n_carried += params.len();
        op.complete()
    }

    /// What is known of its outputs.
    pub fn outputs(&self) -> &[Fact] {
        &self.outputs
    }
}

/// How many operations nodes of a body are where the loops in it are written out.
pub fn operations(nodes: &[Arc<Node>]) -> u64 {
    let of = |node: &Arc<Node>| match node.op.class() {
        Class::Flow(Flow::Loop(op)) => {
            operations(&op.body.nodes).saturating_mul(op.trips.unwrap_or(1)).max(1)
        }
        _ => 1,
    };
    nodes.iter().map(of).fold(0, u64::saturating_add)
}
