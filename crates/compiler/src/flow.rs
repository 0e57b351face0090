//! What runs with branches, loops and assertions need: programs, and between them what the data decides.
//!
//! A part is cut into stages. What branches, loops and assertions of a stage need is computed by one program before
//! them; what nothing of that kind needs is left to the last program, so that it alone stores into variables. Variables
//! that are stored into before that are held by the run, given to programs and taken from them, until it ends.

mod planner;

use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, Flow, GraphSnapshot, HostTensor, Node, NodeId, Output, Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};

use planner::Planner;

use crate::plan::{check_feeds, check_nodes, effect_follows, unordered};
use crate::{Plan, Signature};

/// A plan with branches, loops or assertions.
#[derive(Debug, Clone)]
pub struct FlowPlan {
    /// The programs of all parts.
    pub plans: Vec<Plan>,
    /// What a run does.
    pub whole: Part,
    /// The variables that the run holds.
    pub held: Vec<Held>,
}

/// A variable that a run holds until it ends.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its handle.
    pub variable: Arc<Node>,
    /// Whether it is only added to and subtracted from.
    pub accumulates: bool,
}

/// Steps one after the other, with a slot for each value that goes from one to another.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// How many slots.
    pub n_slots: usize,
    /// For each value that it is given, where that goes; nothing if it is not needed.
    pub given: Vec<Option<usize>>,
    /// Values that never change.
    pub constants: Vec<(usize, HostTensor)>,
    /// Slots for the elements of held variables as they are when the part begins.
    pub starts: Vec<(NodeId, usize)>,
    /// What is done.
    pub steps: Vec<Step>,
    /// Where the results are.
    pub results: Vec<usize>,
}

/// One step of a part.
#[derive(Debug, Clone)]
pub enum Step {
    /// Runs a program.
    Program(ProgramStep),
    /// Runs one of several parts.
    Branch(BranchStep),
    /// Runs a part again and again.
    Loop(Box<LoopStep>),
    /// Fails the run unless the first value is true; the others are shown.
    Assert(Arc<Node>, Vec<usize>),
}

/// Where a program's feed comes from and a fetch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A slot of the part.
    Slot(usize),
    /// A variable that the run holds.
    Variable(NodeId),
}

/// A program with its feeds and fetches.
#[derive(Debug, Clone)]
pub struct ProgramStep {
    /// Which of the plans.
    pub plan: usize,
    /// Where each feed of the plan comes from.
    pub feeds: Vec<Place>,
    /// Where each fetch of the plan goes.
    pub fetches: Vec<Place>,
}

/// One of several parts runs.
#[derive(Debug, Clone)]
pub struct BranchStep {
    /// The node, whose operation is a [`BranchOp`](convoke_graph_core::BranchOp).
    pub node: Arc<Node>,
    /// What chooses.
    pub index: usize,
    /// What each part is given, as far as it is needed.
    pub captures: Vec<Option<usize>>,
    /// For each part, what it does, and for each output, which of its results that is.
    pub branches: Vec<(Part, Vec<Option<usize>>)>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
}

/// A part that runs again and again.
#[derive(Debug, Clone)]
pub struct LoopStep {
    /// The node, whose operation is a [`LoopOp`](convoke_graph_core::LoopOp).
    pub node: Arc<Node>,
    /// Whether it runs at all.
    pub pred: Option<usize>,
    /// How often at most.
    pub count: Option<usize>,
    /// What is carried at first.
    pub carried: Vec<usize>,
    /// What iterations get slices of.
    pub scanned: Vec<usize>,
    /// What each iteration gets whole, as far as it is needed.
    pub captures: Vec<Option<usize>>,
    /// What an iteration does. It is given what is carried, slices, captures. Its results: whether it runs again, if it
    /// has a condition; what is carried next; what is stacked.
    pub body: Part,
    /// The outputs that are stacked: of the node, and which result of the body.
    pub stacked: Vec<(usize, usize)>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
}

/// Whether a run of a signature needs branches, loops or assertions.
pub fn has_flow(graph: &GraphSnapshot, signature: &Signature) -> bool {
    let roots = roots(signature);
    let fed = signature.feeds.iter().copied().collect();
    let nodes = ancestors(graph, &roots, &fed, BodyId::GRAPH);
    nodes.iter().any(|&id| is_flow(graph.node(id)))
}

impl FlowPlan {
    /// Plans a signature that [has flow](has_flow).
    ///
    /// # Errors
    /// As [`Plan::new`]. An assignment that has no order with a branch or loop that assigns the same variable.
    pub fn new(graph: &GraphSnapshot, signature: &Signature) -> Result<Self> {
        check_feeds(graph, signature)?;
        let mut planner = Planner { graph, plans: Vec::new(), held: FxHashMap::default() };
        let fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
        let nodes = ancestors(graph, &roots(signature), &fed, BodyId::GRAPH);
        let nodes: Vec<Arc<Node>> = nodes.iter().map(|&id| graph.node(id).clone()).collect();
        check_nodes(&nodes, &fed)?;
        planner.hold(&nodes);
        let whole = planner.part(
            BodyId::GRAPH,
            &signature.feeds,
            &signature.fetches,
            &signature.targets,
        )?;
        let mut held: Vec<Held> = planner.held.into_values().collect();
        held.sort_by_key(|held| held.variable.id);
        Ok(Self { plans: planner.plans, whole, held })
    }
}

fn roots(signature: &Signature) -> Vec<NodeId> {
    let fetched = signature.fetches.iter().filter(|fetch| !signature.feeds.contains(fetch));
    fetched.map(|fetch| fetch.node).chain(signature.targets.iter().copied()).collect()
}

/// Whether the data decides what a node runs. A loop that is unrolled is part of a program.
fn is_flow(node: &Node) -> bool {
    match node.op.class() {
        Class::Flow(Flow::Loop(op)) => !op.unrolled,
        Class::Flow(_) => true,
        _ => false,
    }
}

/// The nodes that some need, in order. Controls that lie outside of the body have run before it.
fn ancestors(
    graph: &GraphSnapshot,
    roots: &[NodeId],
    fed: &FxHashSet<Output>,
    body: BodyId,
) -> Vec<NodeId> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack = roots.to_vec();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        stack.extend(node.inputs.iter().filter(|input| !fed.contains(input)).map(|i| i.node));
        let own = |control: &&NodeId| graph.node(**control).body == body;
        stack.extend(node.controls.iter().filter(own));
    }
    let mut ids: Vec<NodeId> = seen.into_iter().collect();
    ids.sort_unstable();
    ids
}

/// The variable that a node itself assigns, and whether it only adds.
fn own_assigned(node: &Node) -> Option<(NodeId, bool)> {
    let Class::State(state) = node.op.class() else { return None };
    let adds = matches!(state, State::AssignAdd | State::AssignSub);
    state.is_assign().then(|| Some((node.inputs.first()?.node, adds))).flatten()
}

/// The variables that a node assigns, itself or in a body, and whether it only adds.
fn assigned(node: &Node, found: &mut Vec<(NodeId, bool)>) {
    let mut bodies = match node.op.class() {
        Class::Flow(Flow::Branch(op)) => op.branches.iter().collect::<Vec<_>>(),
        Class::Flow(Flow::Loop(op)) => vec![&op.body],
        _ => return found.extend(own_assigned(node)),
    };
    while let Some(body) = bodies.pop() {
        for node in &body.nodes {
            match node.op.class() {
                Class::Flow(Flow::Branch(op)) => bodies.extend(&op.branches),
                Class::Flow(Flow::Loop(op)) => bodies.push(&op.body),
                _ => found.extend(own_assigned(node)),
            }
        }
    }
}

/// The nodes that some need, up to values that are known, and controls that are elsewhere.
fn near(
    graph: &GraphSnapshot,
    roots: &[NodeId],
    known: &FxHashSet<Output>,
    within: &dyn Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack = roots.to_vec();
    while let Some(id) = stack.pop() {
        if seen.insert(id) {
            let node = graph.node(id);
            stack.extend(node.inputs.iter().filter(|i| !known.contains(i)).map(|i| i.node));
            stack.extend(node.controls.iter().filter(|control| within(**control)));
        }
    }
    seen.into_iter().collect()
}

/// Refuses effects on one variable that have no order, where one of them is in a branch or loop.
fn check_order(graph: &GraphSnapshot, nodes: &[&Arc<Node>], fed: &FxHashSet<Output>) -> Result<()> {
    let mut last: FxHashMap<NodeId, &Arc<Node>> = FxHashMap::default();
    for &node in nodes {
        let mut found = Vec::new();
        assigned(node, &mut found);
        for (variable, _) in found {
            if let Some(before) = last.insert(variable, node)
                && before.id != node.id
                && (is_flow(before) || is_flow(node))
                && !effect_follows(graph, fed, node, before.id)
            {
                return Err(unordered(graph, variable, before.id, node.id));
            }
        }
    }
    Ok(())
}
