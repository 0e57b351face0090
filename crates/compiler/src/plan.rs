//! The plan of a signature: the nodes that its fetches and targets need, and which assignment each read
//! sees.
//!
//! Source: TensorFlow's `graph/subgraph.cc` for pruning; the order of reads and assignments is stricter
//! than TensorFlow's, which leaves races to the user.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, DType, Error, ErrorKind, GraphSnapshot, Host, Node, NodeId, OpError, Output,
    Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};

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
    /// For each assignment, and each read that follows one: the assignment before it, if any.
    pub(crate) after: FxHashMap<NodeId, NodeId>,
    /// For each variable that is assigned, its assignments in order.
    pub(crate) assigns: FxHashMap<NodeId, Vec<NodeId>>,
}

impl Plan {
    /// Prunes the graph to what `signature` needs.
    ///
    /// # Errors
    /// A refused operation that is needed (with the caller's line), a placeholder that is not fed, a
    /// tensor that is fed twice or cannot be fed, or two assignments of one variable without an order.
    pub fn new(graph: &GraphSnapshot, signature: Signature) -> Result<Self> {
        check_feeds(graph, &signature)?;
        Self::within(graph, signature, &|_| true)
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
            after: FxHashMap::default(),
            assigns: FxHashMap::default(),
        }
    }

    /// As [`Self::new`], where only some controls are part of it: the others have run before.
    pub(crate) fn within(
        graph: &GraphSnapshot,
        signature: Signature,
        is_own: &dyn Fn(NodeId) -> bool,
    ) -> Result<Self> {
        let mut plan = Self::pruned(graph, signature, is_own)?;
        let fed: FxHashSet<Output> = plan.signature.feeds.iter().copied().collect();
        plan.order_state(graph, &fed)?;
        Ok(plan)
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

    /// The plan of a part of what this one runs: assignments and what follows them have the same order.
    pub(crate) fn part(
        &self,
        graph: &GraphSnapshot,
        signature: Signature,
        is_own: &dyn Fn(NodeId) -> bool,
    ) -> Result<Self> {
        let mut plan = Self::pruned(graph, signature, is_own)?;
        let own: FxHashSet<NodeId> = plan.nodes.iter().map(|node| node.id).collect();
        let after =
            self.after.iter().filter(|(id, assign)| own.contains(id) && own.contains(assign));
        plan.after = after.map(|(&id, &assign)| (id, assign)).collect();
        for (&variable, assigns) in &self.assigns {
            let assigns: Vec<NodeId> =
                assigns.iter().copied().filter(|id| own.contains(id)).collect();
            if !assigns.is_empty() {
                plan.assigns.insert(variable, assigns);
            }
        }
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
            let at_start = !self.after.contains_key(&node.id) && !is_fed;
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
            held.assigned = self.assigns.get(&held.node).and_then(|all| all.last().copied());
            self.held.insert(held.node);
        }
        found
    }

    /// Whether it stores into variables by itself.
    pub(crate) fn stores(&self) -> bool {
        self.assigns.keys().any(|variable| !self.held.contains(variable))
    }

    /// Feeds a variable's elements.
    pub(crate) fn feed_handle(&mut self, handle: Output, dtype: DType) {
        self.signature.feeds.push(handle);
        self.handles.push(handle);
        self.feed_dtypes.push(dtype);
        self.shape_feeds.push(false);
    }

    /// Whether a node sees a variable as it is at the start of the run.
    pub fn is_first(&self, node: NodeId) -> bool {
        !self.after.contains_key(&node)
    }

    /// Whether it takes the next number of a variable.
    pub fn counts(&self) -> bool {
        let counts =
            |node: &Arc<Node>| matches!(node.op.class(), Class::State(State::Count { .. }));
        self.nodes.iter().any(counts)
    }

    /// Finds the assignment that each assignment and each later read follows.
    fn order_state(&mut self, graph: &GraphSnapshot, fed: &FxHashSet<Output>) -> Result<()> {
        for node in self.nodes.iter().filter(|node| is_assign(node)) {
            let variable = node.inputs[0].node;
            let before = self.assigns.entry(variable).or_default();
            if let Some(&last) = before.last() {
                if !follows(graph, fed, node, &[last]).contains(&last) {
                    return Err(unordered(graph, variable, last, node.id));
                }
                self.after.insert(node.id, last);
            }
            before.push(node.id);
        }
        let follows_controls = |node: &Node| {
            let state = matches!(
                node.op.class(),
                Class::State(State::Read | State::ReadOr | State::IsInitialized)
            );
            state && !node.controls.is_empty()
        };
        for node in self.nodes.iter().filter(|node| follows_controls(node)) {
            if let Some(assigns) = self.assigns.get(&node.inputs[0].node) {
                let seen = follows(graph, fed, node, assigns);
                if let Some(&last) = assigns.iter().rev().find(|assign| seen.contains(assign)) {
                    self.after.insert(node.id, last);
                }
            }
        }
        Ok(())
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

/// Nodes with what they need before them: by id, as far as that is so.
pub(crate) fn in_order(
    graph: &GraphSnapshot,
    nodes: &FxHashSet<NodeId>,
    fed: &FxHashSet<Output>,
) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = nodes.iter().copied().collect();
    ids.sort_unstable();
    if !graph.is_connected {
        return ids;
    }
    let mut waits: FxHashMap<NodeId, usize> = FxHashMap::default();
    let mut users: FxHashMap<NodeId, Vec<NodeId>> = FxHashMap::default();
    for &id in &ids {
        let before = inputs_of(graph.node(id), fed).filter(|before| nodes.contains(before));
        let mut n = 0;
        before.for_each(|before| {
            users.entry(before).or_default().push(id);
            n += 1;
        });
        waits.insert(id, n);
    }
    let mut ready: BinaryHeap<Reverse<NodeId>> =
        ids.iter().filter(|&id| waits[id] == 0).copied().map(Reverse).collect();
    let mut ordered = Vec::with_capacity(ids.len());
    while let Some(Reverse(id)) = ready.pop() {
        ordered.push(id);
        for user in users.get(&id).into_iter().flatten() {
            if let Some(n) = waits.get_mut(user) {
                *n -= 1;
                ready.extend((*n == 0).then_some(Reverse(*user)));
            }
        }
    }
    ordered
}

/// The nodes that run before `node`: its controls, and the producers of inputs that are not fed.
fn inputs_of<'a>(node: &'a Node, fed: &'a FxHashSet<Output>) -> impl Iterator<Item = NodeId> + 'a {
    unfed_inputs(node, fed).chain(node.controls.iter().copied())
}

fn unfed_inputs<'a>(
    node: &'a Node,
    fed: &'a FxHashSet<Output>,
) -> impl Iterator<Item = NodeId> + 'a {
    node.inputs.iter().filter(|input| !fed.contains(input)).map(|input| input.node)
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

pub(crate) fn is_assign(node: &Node) -> bool {
    matches!(node.op.class(), Class::State(state) if state.is_assign())
}

/// Those of `assigns` that `node` depends on.
fn follows(
    graph: &GraphSnapshot,
    fed: &FxHashSet<Output>,
    node: &Node,
    assigns: &[NodeId],
) -> FxHashSet<NodeId> {
    let Some(&first) = assigns.iter().min() else { return FxHashSet::default() };
    let mut seen = FxHashSet::default();
    let mut stack: Vec<NodeId> = inputs_of(node, fed).collect();
    while let Some(id) = stack.pop() {
        if (id >= first || graph.is_connected) && seen.insert(id) {
            stack.extend(inputs_of(graph.node(id), fed));
        }
    }
    seen
}

/// Whether `node` depends on `effect`.
pub(crate) fn effect_follows(
    graph: &GraphSnapshot,
    fed: &FxHashSet<Output>,
    node: &Node,
    effect: NodeId,
) -> bool {
    follows(graph, fed, node, &[effect]).contains(&effect)
}

pub(crate) fn unordered(graph: &GraphSnapshot, variable: NodeId, a: NodeId, b: NodeId) -> Error {
    let name = |id| &graph.node(id).name;
    let message = format!(
        "{} and {} both assign {} in one run, and neither follows the other; build one inside of \
         after(&[..]) of the other",
        name(a),
        name(b),
        name(variable),
    );
    Error::new(ErrorKind::InvalidArgument, message).with_node(&**name(b))
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
