//! The plan of a signature: the nodes that its fetches and targets need, and which assignment each read
//! sees.
//!
//! Source: TensorFlow's `graph/subgraph.cc` for pruning; the order of reads and assignments is stricter
//! than TensorFlow's, which leaves races to the user.

use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, DType, Error, Flow, GraphSnapshot, Host, Node, NodeId, OpError, Output, Result,
    State,
};
use rustc_hash::FxHashSet;

use crate::flow::Change;
use crate::order::{Order, in_order, unfed_inputs};

/// What a run asks for and gives: the key of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Signature {
    /// The outputs whose values come back.
    pub fetches: Vec<Output>,
    /// The places of those fetches whose values stay on the devices that have them, in order.
    pub residents: Vec<usize>,
    /// The nodes that run for their effect.
    pub targets: Vec<NodeId>,
    /// The outputs whose values are given.
    pub feeds: Vec<Output>,
    /// The outputs whose values stand for others: see [`GraphSnapshot::connect`].
    pub connections: Vec<(Output, Output)>,
}

/// What a signature needs, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What was asked for.
    pub signature: Signature,
    /// The needed nodes, inputs before users.
    pub nodes: Vec<Arc<Node>>,
    /// For each feed, its dtype.
    pub feed_dtypes: Vec<DType>,
    /// For each feed, whether shapes may be computed from its elements.
    pub shape_feeds: Vec<bool>,
    /// The feeds that are elements of variables, which the run holds.
    pub(crate) handles: Vec<Output>,
    /// The variables that the run stores instead of the plan.
    pub(crate) held: FxHashSet<NodeId>,
    /// Reads or initial values that give the initial value, since the whole run stores it.
    pub(crate) initial: FxHashSet<NodeId>,
    /// Which assignment each read and each assignment follows.
    pub(crate) order: Order,
}

impl Plan {
    /// Prunes the graph to what `signature` needs.
    ///
    /// # Errors
    /// A refused operation that is needed (with the caller's line), a placeholder that is not fed, a
    /// tensor that is fed twice or cannot be fed, or two assignments of one variable without an order.
    pub fn new(graph: &GraphSnapshot, signature: Signature) -> Result<Self> {
        check_feeds(graph, &signature)?;
        let mut plan = Self::pruned(graph, signature, &|_| true)?;
        let fed: FxHashSet<Output> = plan.signature.feeds.iter().copied().collect();
        plan.order = Order::new(graph, &plan.nodes, &fed)?;
        Ok(plan)
    }

    /// A plan of a signature that does nothing: what it is to give comes from elsewhere.
    pub fn bare(graph: &GraphSnapshot, signature: Signature) -> Self {
        let feed_dtypes = signature.feeds.iter().map(|&feed| graph.fact(feed).dtype).collect();
        Self {
            shape_feeds: vec![false; signature.feeds.len()],
            signature,
            feed_dtypes,
            nodes: Vec::new(),
            handles: Vec::new(),
            held: FxHashSet::default(),
            initial: FxHashSet::default(),
            order: Order::default(),
        }
    }

    /// A plan of what a signature needs, without an order of assignments yet.
    fn pruned(
        graph: &GraphSnapshot,
        signature: Signature,
        is_own: &dyn Fn(NodeId) -> bool,
    ) -> Result<Self> {
        let fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
        let nodes = needed_nodes(graph, &signature, &fed, is_own);
        check_nodes(&nodes, &fed)?;
        let shape_feeds = shape_feeds(graph, &nodes, &signature);
        Ok(Self { nodes, shape_feeds, ..Self::bare(graph, signature) })
    }

    /// The plan of a part of a run whose assignments and what follows them have an order. Only some controls are part of
    /// it: the others have run before.
    pub(crate) fn part(
        graph: &GraphSnapshot,
        signature: Signature,
        order: &Order,
        is_own: &dyn Fn(NodeId) -> bool,
    ) -> Result<Self> {
        let mut plan = Self::pruned(graph, signature, is_own)?;
        plan.order = order.of(&plan.nodes);
        Ok(plan)
    }

    /// Leaves the storing of some variables to whoever runs the plan. For each that it touches, says whether it needs
    /// the elements at its start, and which assignment gives those at its end.
    pub(crate) fn hold(&mut self, is_held: impl Fn(NodeId) -> bool) -> Vec<HeldVariable> {
        let mut found: Vec<HeldVariable> = Vec::new();
        for node in &self.nodes {
            let (Class::State(state), Some(handle)) = (node.op.class(), node.inputs.first()) else {
                continue;
            };
            let variable = handle.node;
            if !is_held(variable) {
                continue;
            }
            let is_fed = self.signature.feeds.contains(&Output { node: node.id, index: 0 });
            let at_start = !self.order.after.contains_key(&node.id) && !is_fed;
            let needs = at_start && !matches!(state, State::Assign | State::IsInitialized);
            let must = needs && state != State::ReadOr;
            match found.iter_mut().find(|held| held.node == variable) {
                Some(held) => (held.is_read, held.must) = (held.is_read | needs, held.must | must),
                None => {
                    let (node, is_read) = (variable, needs);
                    found.push(HeldVariable { node, is_read, must, assigned: None });
                }
            }
        }
        for held in &mut found {
            held.assigned = self.order.assigns.get(&held.node).and_then(|all| all.last().copied());
            self.held.insert(held.node);
        }
        found
    }

    /// What it does to a variable that it assigns.
    pub(crate) fn change(&self, variable: NodeId) -> Change {
        let assigns = self.order.assigns.get(&variable).map_or(&[][..], |all| all);
        let own = self.nodes.iter().filter(|node| assigns.contains(&node.id));
        let changes = own.filter_map(|node| match node.op.class() {
            Class::State(State::Assign) => Some(Change::Replaced),
            Class::State(state) if state.sums() => Some(Change::Moved),
            Class::State(State::Count { .. }) => Some(Change::Counted),
            Class::State(_) => Some(Change::Changed),
            _ => None,
        });
        changes.reduce(Change::then).unwrap_or(Change::Replaced)
    }

    /// Whether it stores into variables by itself.
    pub(crate) fn stores(&self) -> bool {
        self.order.assigns.keys().any(|variable| !self.held.contains(variable))
    }

    /// Feeds a variable's elements.
    pub(crate) fn feed_handle(&mut self, handle: Output, dtype: DType) {
        self.signature.feeds.push(handle);
        self.handles.push(handle);
        self.feed_dtypes.push(dtype);
        self.shape_feeds.push(false);
    }

    /// The nodes, and those of the loops among them, which are written out.
    pub fn all_nodes(&self) -> Vec<&Arc<Node>> {
        let (mut all, mut lists) = (Vec::with_capacity(self.nodes.len()), vec![&self.nodes]);
        while let Some(nodes) = lists.pop() {
            for node in nodes {
                all.push(node);
                if let Class::Flow(Flow::Loop(op)) = node.op.class() {
                    lists.push(&op.body.nodes);
                }
            }
        }
        all
    }

    /// Whether a node sees a variable as it is at the start of the run.
    pub fn is_first(&self, node: NodeId) -> bool {
        !self.order.after.contains_key(&node)
    }

    /// Whether it takes the next number of a variable.
    pub fn counts(&self) -> bool {
        let counts =
            |node: &Arc<Node>| matches!(node.op.class(), Class::State(State::Count { .. }));
        self.nodes.iter().any(counts)
    }
}

/// What a plan does with a variable that it does not store itself.
pub(crate) struct HeldVariable {
    pub node: NodeId,
    pub is_read: bool,
    /// Whether it must have elements.
    pub must: bool,
    pub assigned: Option<NodeId>,
}

/// # Errors
/// A tensor that is fed twice or cannot be fed, or a fetch, feed or target that is part of a branch or loop.
pub(crate) fn check_feeds(graph: &GraphSnapshot, signature: &Signature) -> Result<()> {
    let fetches = signature.fetches.iter().map(|fetch| (fetch.node, "fetched"));
    let targets = signature.targets.iter().map(|&target| (target, "run by itself"));
    let feeds = signature.feeds.iter().map(|feed| (feed.node, "fed"));
    for (id, what) in fetches.chain(targets).chain(feeds) {
        let node = graph.node(id);
        if node.body != BodyId::GRAPH {
            let message = format!(
                "what is built inside of a branch or loop cannot be {what}; return it from the closure"
            );
            return Err(Error::invalid(message).with_node(&*node.name));
        }
    }
    let mut seen = FxHashSet::default();
    for &feed in &signature.feeds {
        let node = graph.node(feed.node);
        let fact = graph.fact(feed);
        if !seen.insert(feed) {
            let message = "the tensor is fed twice; give one value";
            return Err(Error::invalid(message).with_node(format!("{}:{}", node.name, feed.index)));
        }
        if fact.is_variable() {
            let message = "a variable's handle cannot be fed; feed its value or assign it";
            return Err(Error::invalid(message).with_node(&*node.name));
        }
    }
    Ok(())
}

/// The nodes that a fetch or target needs, in order. Takes time for these, not for the whole graph.
fn needed_nodes(
    graph: &GraphSnapshot,
    signature: &Signature,
    fed: &FxHashSet<Output>,
    is_own: &dyn Fn(NodeId) -> bool,
) -> Vec<Arc<Node>> {
    let mut needed: FxHashSet<NodeId> = FxHashSet::default();
    let fetched = signature.fetches.iter().filter(|f| !fed.contains(f)).map(|f| f.node);
    let mut stack: Vec<NodeId> = fetched.chain(signature.targets.iter().copied()).collect();
    while let Some(id) = stack.pop() {
        if needed.insert(id) {
            let node = graph.node(id);
            let controls = node.controls.iter().filter(|control| is_own(**control));
            stack.extend(unfed_inputs(node, fed).chain(controls.copied()));
        }
    }
    in_order(graph, &needed, fed).into_iter().map(|id| graph.node(id).clone()).collect()
}

/// # Errors
/// A refused operation, or a placeholder that is not fed.
pub(crate) fn check_nodes(nodes: &[Arc<Node>], fed: &FxHashSet<Output>) -> Result<()> {
    // The first refused node is the cause of those that are built on it.
    let root = nodes.iter().find(|n| !matches!(n.invalid, None | Some(OpError::InvalidInput(_))));
    if let Some(error) = root.and_then(|node| node.error()) {
        return Err(error);
    }
    for node in nodes {
        if let Some(error) = node.error() {
            return Err(error);
        }
        let placeholder = matches!(node.op.class(), Class::Host(Host::Placeholder));
        let output = Output { node: node.id, index: 0 };
        if placeholder && node.inputs.is_empty() && !fed.contains(&output) {
            let message =
                format!("the placeholder {} is needed and not fed; add a feed", node.facts[0]);
            return Err(Error::invalid(message).with_node(&*node.name));
        }
    }
    Ok(())
}

/// For each feed, whether an operand that only gives sizes is computed from it.
fn shape_feeds(graph: &GraphSnapshot, nodes: &[Arc<Node>], signature: &Signature) -> Vec<bool> {
    let mut shapes: FxHashSet<Output> = FxHashSet::default();
    for node in nodes.iter().rev() {
        let outputs = (0..node.facts.len() as u32).map(|index| Output { node: node.id, index });
        let all = outputs.into_iter().any(|output| shapes.contains(&output));
        let is_metadata = matches!(node.op.class(), Class::Host(Host::Metadata));
        let reads_elements = node.op.name() != "shape" && node.op.name() != "size";
        for (i, input) in node.inputs.iter().enumerate() {
            let sizes = node.op.class().size_operand() == Some(i);
            let elements = (all || is_metadata) && reads_elements;
            if sizes || (elements && graph.fact(*input).dtype.is_int()) {
                shapes.insert(*input);
            }
        }
    }
    signature.feeds.iter().map(|feed| shapes.contains(feed)).collect()
}
