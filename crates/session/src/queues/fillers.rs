//! Who fills queues: the queue runners at work, those that have ended, and all that puts in the graph.

use convoke_graph_core::{Class, Graph, NodeId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::uses::puts;
use crate::cancel::CancelToken;

/// What fills the queues of a session.
pub(super) struct Fillers {
    graph: Graph,
    /// How many nodes of the graph were looked at.
    n_seen: usize,
    /// For each queue, the operations of the graph that put into it.
    puts: FxHashMap<String, Vec<NodeId>>,
    /// Queue runners at work, each by its operation that closes the queue.
    at_work: FxHashMap<NodeId, Filler>,
    /// What runners ran that have ended.
    ended: FxHashSet<NodeId>,
}

/// A queue runner at work.
struct Filler {
    /// What its runs have as their token.
    token: CancelToken,
    /// The operations that put, among those that it runs.
    puts: Vec<NodeId>,
}

impl Fillers {
    pub fn new(graph: Graph) -> Self {
        Self {
            graph,
            n_seen: 0,
            puts: FxHashMap::default(),
            at_work: FxHashMap::default(),
            ended: FxHashSet::default(),
        }
    }

    /// A runner begins; false if it is at work.
    pub fn start(&mut self, id: NodeId, token: &CancelToken, puts: Vec<NodeId>) -> bool {
        if self.at_work.contains_key(&id) {
            return false;
        }
        puts.iter().for_each(|put| {
            self.ended.remove(put);
        });
        self.at_work.insert(id, Filler { token: token.clone(), puts });
        true
    }

    /// A runner ends.
    pub fn end(&mut self, id: NodeId) {
        if let Some(filler) = self.at_work.remove(&id) {
            self.ended.extend(filler.puts);
        }
    }

    /// Forgets those that have ended, as if they had not begun.
    pub fn forget(&mut self) {
        self.ended.clear();
    }

    /// Whether one of the tokens is that of a runner at work.
    pub fn has(&self, tokens: &[Option<&CancelToken>]) -> bool {
        let is_own = |token: &CancelToken| self.at_work.values().any(|own| own.token.is(token));
        tokens.iter().flatten().any(|token| is_own(token))
    }

    /// Whether any runner has ended.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Whether something puts into this queue, and all of it belongs to runners that have ended.
    pub fn have_ended_for(&mut self, queue: &str) -> bool {
        self.look();
        let Some(puts) = self.puts.get(queue) else { return false };
        let is_at_work = |put| self.at_work.values().any(|filler| filler.puts.contains(put));
        puts.iter().all(|put| self.ended.contains(put) && !is_at_work(put))
    }

    /// Looks at what is new in the graph.
    fn look(&mut self) {
        let graph = self.graph.snapshot();
        for at in self.n_seen..graph.nodes.len() {
            let node = &graph.nodes[at];
            if let Class::Queue(op) = node.op.class()
                && puts(op.action)
                && node.invalid.is_none()
            {
                let own = std::slice::from_ref(&op.queue);
                let queues = if op.among.is_empty() { own } else { &op.among };
                for queue in queues {
                    self.puts.entry(queue.name.clone()).or_default().push(node.id);
                }
            }
        }
        self.n_seen = graph.nodes.len();
    }
}
