//! The order of what a run does to variables: which assignment each read and each other assignment follows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use convoke_graph_core::{
    Body, Class, Error, ErrorKind, Flow, GraphSnapshot, Node, NodeId, Output, Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

/// The order of the assignments among some nodes, those in the bodies of branches and loops included.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// For each assignment, and each read that follows one: the node before it that assigns the variable, if any.
    pub after: FxHashMap<NodeId, NodeId>,
    /// For each variable that is assigned, the nodes that do, in order.
    pub assigns: FxHashMap<NodeId, Vec<NodeId>>,
    /// For each node that assigns, those that come before it for that reason.
    before: FxHashMap<NodeId, SmallVec<[NodeId; 1]>>,
}

impl Order {
    /// The order of nodes of one body, which are sorted, of a run that is fed some outputs.
    ///
    /// # Errors
    /// Two nodes that assign one variable, of which neither follows the other.
    pub fn new(
        graph: &GraphSnapshot,
        nodes: &[Arc<Node>],
        fed: &FxHashSet<Output>,
    ) -> Result<Self> {
        let mut order = Self::default();
        for node in nodes {
            let mut variables = assigned(node);
            variables.sort_unstable();
            variables.dedup();
            for variable in variables {
                let all = order.assigns.entry(variable).or_default();
                if let Some(&last) = all.last() {
                    if !follows(graph, fed, node, &[last]).contains(&last) {
                        return Err(unordered(graph, variable, last, node.id));
                    }
                    if is_assign(node) {
                        order.after.insert(node.id, last);
                    }
                    order.before.entry(node.id).or_default().push(last);
                }
                all.push(node.id);
            }
        }
        for node in nodes.iter().filter(|node| is_read(node) && !node.controls.is_empty()) {
            let Some(assigns) = order.assigns.get(&node.inputs[0].node) else { continue };
            let seen = follows(graph, fed, node, assigns);
            if let Some(&last) = assigns.iter().rev().find(|assign| seen.contains(assign)) {
                order.after.insert(node.id, last);
            }
        }
        Ok(order)
    }

    /// The order of some of the nodes.
    pub fn of(&self, nodes: &[Arc<Node>]) -> Self {
        let own: FxHashSet<NodeId> = nodes.iter().map(|node| node.id).collect();
        let mut order = Self::default();
        for node in nodes {
            if let Some(&assign) = self.after.get(&node.id).filter(|assign| own.contains(assign)) {
                order.after.insert(node.id, assign);
            }
            let Some(variable) = own_assigned(node) else { continue };
            order.assigns.entry(variable).or_insert_with(|| {
                let all = self.assigns.get(&variable).map_or(&[][..], |all| all);
                all.iter().copied().filter(|id| own.contains(id)).collect()
            });
        }
        order
    }

    /// Whether the run gives a variable the initial value that `node` reads where there is none.
    pub fn gives_initial(&self, graph: &GraphSnapshot, node: &Node, variable: NodeId) -> bool {
        let gives = |id: &NodeId| {
            let assign = graph.node(*id);
            let is_assign = matches!(assign.op.class(), Class::State(_));
            is_assign && assign.inputs.get(1) == node.inputs.get(1)
        };
        self.assigns.get(&variable).is_some_and(|assigns| assigns.iter().any(gives))
    }

    /// Those of some nodes that read an initial value which the run gives the variable.
    pub fn initial(&self, graph: &GraphSnapshot, nodes: &[Arc<Node>]) -> FxHashSet<NodeId> {
        let reads = nodes.iter().filter(|node| {
            matches!(node.op.class(), Class::State(State::ReadOr))
                && !self.after.contains_key(&node.id)
                && node.inputs.first().is_some_and(|v| self.gives_initial(graph, node, v.node))
        });
        reads.map(|node| node.id).collect()
    }

    /// The nodes that come before one because they assign what it assigns.
    pub fn before(&self, node: NodeId) -> &[NodeId] {
        self.before.get(&node).map_or(&[], |before| before)
    }
}

/// The variable that a node itself assigns.
fn own_assigned(node: &Node) -> Option<NodeId> {
    let Class::State(state) = node.op.class() else { return None };
    state.is_assign().then(|| Some(node.inputs.first()?.node)).flatten()
}

/// Calls `see` with a node and, if it runs bodies, with all that is in them.
pub(crate) fn each_within(node: &Node, see: &mut dyn FnMut(&Node)) {
    see(node);
    let mut bodies = bodies(node);
    while let Some(body) = bodies.pop() {
        for node in &body.nodes {
            see(node);
            bodies.extend(self::bodies(node));
        }
    }
}

fn bodies(node: &Node) -> Vec<&Body> {
    match node.op.class() {
        Class::Flow(Flow::Branch(op)) => op.branches.iter().collect(),
        Class::Flow(Flow::Loop(op)) => vec![&op.body],
        _ => Vec::new(),
    }
}

/// The variables that a node assigns, itself or in a body.
pub(crate) fn assigned(node: &Node) -> Vec<NodeId> {
    let mut found = Vec::new();
    each_within(node, &mut |node| found.extend(own_assigned(node)));
    found
}

/// Whether a node looks at a variable without changing it.
pub(crate) fn is_read(node: &Node) -> bool {
    matches!(node.op.class(), Class::State(State::Read | State::ReadOr | State::IsInitialized))
}

/// The nodes that run before `node`: its controls, and the producers of inputs that are not fed.
fn inputs_of<'a>(node: &'a Node, fed: &'a FxHashSet<Output>) -> impl Iterator<Item = NodeId> + 'a {
    unfed_inputs(node, fed).chain(node.controls.iter().copied())
}

pub(crate) fn unfed_inputs<'a>(
    node: &'a Node,
    fed: &'a FxHashSet<Output>,
) -> impl Iterator<Item = NodeId> + 'a {
    node.inputs.iter().filter(|input| !fed.contains(input)).map(|input| input.node)
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

fn unordered(graph: &GraphSnapshot, variable: NodeId, a: NodeId, b: NodeId) -> Error {
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
