//! Which numbers of random nodes are a run's own while it is under way: no two runs draw the same.
//!
//! A run draws behind all that was drawn, and behind what other runs under way draw. How often was drawn is counted when
//! a run ends well, so that one that fails leaves no trace; where others drew behind it meanwhile, nobody draws what it
//! drew.

use std::sync::{Arc, Mutex, PoisonError};

use convoke_graph_core::NodeId;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::state::State;

/// How often each random node was drawn, and how far runs under way are.
#[derive(Debug, Default)]
pub(crate) struct Draws {
    /// What has ended well.
    pub(crate) counts: FxHashMap<NodeId, u32>,
    under_way: FxHashMap<NodeId, UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    /// Behind all that its runs draw.
    after: u32,
    n_runs: usize,
}

/// The random nodes that a run draws from, until it is dropped.
#[derive(Debug)]
pub(crate) struct Drawing {
    state: Arc<State>,
    nodes: Mutex<SmallVec<[NodeId; 4]>>,
}

/// The numbers that a run of a program draws.
#[derive(Debug, Default)]
pub(crate) struct Drawn {
    /// For each random node, the first, and the one after the last.
    pub ranges: SmallVec<[(NodeId, u32, u32); 1]>,
    /// They are the run's as long as this is; where the program is only a part of it, its journal keeps them.
    pub _own: Option<Drawing>,
}

/// How often each node is named.
pub(crate) fn counted(nodes: &[NodeId]) -> Vec<(NodeId, u32)> {
    let mut counts: Vec<(NodeId, u32)> = Vec::new();
    for &node in nodes {
        match counts.iter_mut().find(|(counted, _)| *counted == node) {
            Some((_, n)) => *n += 1,
            None => counts.push((node, 1)),
        }
    }
    counts
}

impl Drawn {
    /// The first number of a node.
    pub fn first(&self, node: NodeId) -> u32 {
        self.ranges.iter().find(|(drawn, ..)| *drawn == node).map_or(0, |range| range.1)
    }
}

impl Draws {
    /// How often a random node was drawn.
    pub fn count(&self, node: NodeId) -> u32 {
        self.counts.get(&node).copied().unwrap_or(0)
    }

    /// Counts draws up to the one before `after`.
    pub fn drawn(&mut self, node: NodeId, after: u32) {
        let count = self.counts.entry(node).or_insert(0);
        *count = later(*count, after);
    }
}

impl Drawing {
    /// Of a run that has not drawn yet.
    pub fn new(state: &Arc<State>) -> Self {
        Self { state: state.clone(), nodes: Mutex::default() }
    }

    /// The first of `n` numbers for the run, which has drawn from the node up to the one before `own`.
    pub fn take(&self, draws: &mut Draws, node: NodeId, n: u32, own: Option<u32>) -> u32 {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !nodes.contains(&node);
        nodes.extend(is_new.then_some(node));
        let count = draws.count(node);
        let under_way = draws.under_way.entry(node).or_insert(UnderWay { after: count, n_runs: 0 });
        under_way.n_runs += usize::from(is_new);
        let before = if under_way.n_runs > 1 { Some(under_way.after) } else { own };
        let first = before.map_or(count, |before| later(count, before));
        under_way.after = first.wrapping_add(n);
        first
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        let nodes = self.nodes.get_mut().unwrap_or_else(PoisonError::into_inner);
        if nodes.is_empty() {
            return;
        }
        let under_way = &mut self.state.lock().draws.under_way;
        for node in nodes.drain(..) {
            if let Some(of_node) = under_way.get_mut(&node) {
                of_node.n_runs -= 1;
                if of_node.n_runs == 0 {
                    under_way.remove(&node);
                }
            }
        }
    }
}

/// The later of two counts that go round after 2^32.
fn later(a: u32, b: u32) -> u32 {
    if b.wrapping_sub(a) < 1 << 31 { b } else { a }
}
