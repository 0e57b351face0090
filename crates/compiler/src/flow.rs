//! What runs with branches, loops and assertions need: programs, and between them what the data decides.
//!
//! A part is cut into stages. What branches, loops and assertions of a stage need is computed by one program before
//! them; what nothing of that kind needs is left to the last program, so that it alone stores into variables. Variables
//! that are stored into before that are held by the run, given to programs and taken from them, until it ends.

mod planner;

use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, Error, Flow, GraphSnapshot, HostTensor, Node, NodeId, Output, Result, Scatter,
    State,
};
use rustc_hash::{FxHashMap, FxHashSet};

use planner::Planner;

use crate::plan::{check_feeds, check_nodes, effect_follows, in_order, unordered};
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
    /// The other variables that its programs read.
    pub read: Vec<Arc<Node>>,
}

/// A variable that a run holds until it ends.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its handle.
    pub variable: Arc<Node>,
    /// What the run does with what others store meanwhile.
    pub meanwhile: Meanwhile,
}

/// What becomes of elements that others have stored into a held variable since the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// They are replaced.
    Replaced,
    /// What the run has added is added to them: it only adds and subtracts.
    Added,
    /// The run begins anew: it changes elements in other ways.
    Again,
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
    /// Calls a function of the host.
    Call(CallStep),
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
    /// Held variables that need no elements: zeros stand for them.
    pub optional: Vec<NodeId>,
}

/// A function of the host with its operands.
#[derive(Debug, Clone)]
pub struct CallStep {
    /// The node, whose operation is a [`HostCall`](convoke_graph_core::HostCall).
    pub node: Arc<Node>,
    /// What it is given.
    pub inputs: Vec<usize>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
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
    let fed = given(signature);
    let nodes = ancestors(graph, &roots, &fed, BodyId::GRAPH);
    nodes.iter().any(|&id| is_flow(graph.node(id), &fed))
}

impl FlowPlan {
    /// Plans a signature that [has flow](has_flow).
    ///
    /// # Errors
    /// As [`Plan::new`]. An assignment that has no order with a branch or loop that assigns the same variable.
    pub fn new(graph: &GraphSnapshot, signature: &Signature) -> Result<Self> {
        check_feeds(graph, signature)?;
        let fed = given(signature);
        let (plans, held) = (Vec::new(), FxHashMap::default());
        let mut planner = Planner { graph, fed: fed.clone(), plans, held };
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
        let plans = planner.plans;
        let last = match whole.steps.last() {
            Some(Step::Program(last)) => Some(last.plan),
            _ => None,
        };
        let stores = |(at, plan): (usize, &Plan)| Some(at) != last && plan.stores();
        if plans.iter().enumerate().any(stores) {
            return Err(Error::internal("a program that is not a run's last one stores"));
        }
        let read = read_variables(graph, &plans, &held);
        Ok(Self { plans, whole, held, read })
    }
}

/// The variables that plans read and the run does not hold.
fn read_variables(graph: &GraphSnapshot, plans: &[Plan], held: &[Held]) -> Vec<Arc<Node>> {
    let nodes = plans.iter().flat_map(|plan| &plan.nodes);
    let handles = nodes.filter_map(|node| match node.op.class() {
        Class::State(State::Assign | State::IsInitialized) => None,
        Class::State(_) => Some(node.inputs.first()?.node),
        _ => None,
    });
    let is_held = |id: &NodeId| held.iter().any(|held| held.variable.id == *id);
    let ids: FxHashSet<NodeId> = handles.filter(|id| !is_held(id)).collect();
    let mut ids: Vec<NodeId> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.into_iter().map(|id| graph.node(id).clone()).collect()
}

/// The outputs whose values come from elsewhere: fed or connected.
fn given(signature: &Signature) -> FxHashSet<Output> {
    let connected = signature.connections.iter().map(|(_, to)| *to);
    signature.feeds.iter().copied().chain(connected).collect()
}

fn roots(signature: &Signature) -> Vec<NodeId> {
    let fetched = signature.fetches.iter().filter(|fetch| !signature.feeds.contains(fetch));
    fetched.map(|fetch| fetch.node).chain(signature.targets.iter().copied()).collect()
}

/// Whether the data decides what a node runs. A loop that is unrolled is part of a program, unless the run is fed what its
/// length was counted by.
fn is_flow(node: &Node, fed: &FxHashSet<Output>) -> bool {
    match node.op.class() {
        Class::Flow(Flow::Loop(op)) => {
            !op.unrolled || op.counted_by.iter().any(|output| fed.contains(output))
        }
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
    in_order(graph, &seen, fed)
}

/// The variable that a node itself assigns, and how.
fn own_assigned(node: &Node) -> Option<(NodeId, Meanwhile)> {
    let Class::State(state) = node.op.class() else { return None };
    let how = match state {
        State::AssignAdd | State::AssignSub | State::Scatter(Scatter::Add | Scatter::Sub) => {
            Meanwhile::Added
        }
        state if state.accumulates() => Meanwhile::Again,
        _ => Meanwhile::Replaced,
    };
    state.is_assign().then(|| Some((node.inputs.first()?.node, how))).flatten()
}

/// The variables that a node assigns, itself or in a body, and how.
fn assigned(node: &Node, found: &mut Vec<(NodeId, Meanwhile)>) {
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
                && !effect_follows(graph, fed, node, before.id)
            {
                return Err(unordered(graph, variable, before.id, node.id));
            }
        }
    }
    Ok(())
}
