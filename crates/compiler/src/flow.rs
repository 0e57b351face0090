//! What runs with branches, loops and assertions need: programs, and between them what the data decides.
//!
//! A part is cut into stages. What branches, loops and assertions of a stage need is computed by one program before
//! them; what nothing of that kind needs is left to the last program, so that it alone stores into variables. Variables
//! that are stored into before that are held by the run, given to programs and taken from them, until it ends.

mod block;
mod lifted;
mod planner;

use std::borrow::Cow;
use std::sync::Arc;

use convoke_graph_core::{
    BodyId, Class, Error, Flow, GraphSnapshot, HostTensor, Node, NodeId, Output, QueueAction,
    Result, State,
};
use rustc_hash::{FxHashMap, FxHashSet};

pub use block::{BlockFeed, BlockPlan};
pub use lifted::LoopVariable;
use planner::{Planner, Whole};

use crate::order::{Order, each_within, in_order, unfed_inputs};
use crate::plan::{check_feeds, check_nodes};
use crate::{Plan, Signature};

/// A plan with branches, loops or assertions.
#[derive(Debug, Clone)]
pub struct FlowPlan {
    /// The programs of all parts.
    pub plans: Vec<Plan>,
    /// What a run does.
    pub whole: Arc<Part>,
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
    /// Whether its elements at the start may be needed.
    pub is_read: bool,
}

/// What a run has done to a variable that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has got elements that have nothing to do with those it had.
    Replaced,
    /// It was added to and subtracted from, which can be done to other elements too.
    Moved,
    /// Its elements were changed in other ways.
    Changed,
    /// Its next number was taken, which nobody else may have taken, whatever it was assigned afterwards.
    Counted,
}

impl Change {
    /// Both, one after the other.
    pub fn then(self, next: Self) -> Self {
        match (self, next) {
            (Self::Replaced, _) => Self::Replaced,
            (Self::Counted, _) | (_, Self::Counted) => Self::Counted,
            (_, Self::Replaced) => Self::Replaced,
            (Self::Moved, Self::Moved) => Self::Moved,
            _ => Self::Changed,
        }
    }
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
    /// What it sees of held variables as they are when it begins.
    pub starts: Vec<Start>,
    /// What is done.
    pub steps: Vec<Step>,
    /// Where the results are.
    pub results: Vec<usize>,
}

/// A slot for the elements of a held variable as they are when a part begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The variable.
    pub variable: NodeId,
    /// Where they go.
    pub slot: usize,
    /// Whether a variable without elements fails the run; if not, the slot is left empty.
    pub must: bool,
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
    /// Has the host do something: call a function, look keys up, take from a queue or put into one.
    Call(CallStep),
    /// Reads a variable, or its initial value.
    ReadOr(ReadOrStep),
}

impl Step {
    /// The branch or loop that it runs.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Branch(step) => Some(step.node.id),
            Self::Loop(step) => Some(step.node.id),
            _ => None,
        }
    }
}

/// Where a program's feed comes from and a fetch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A slot of the part.
    Slot(usize),
    /// A variable that the run holds.
    Variable(NodeId),
    /// As [`Self::Variable`], of what is fetched: what was done to it.
    Changed(NodeId, Change),
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

/// Something that the host does, with its operands.
#[derive(Debug, Clone)]
pub struct CallStep {
    /// The node.
    pub node: Arc<Node>,
    /// What it is given.
    pub inputs: Vec<usize>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
}

/// A held variable as it was when the part began, or an initial value where it had none.
#[derive(Debug, Clone)]
pub struct ReadOrStep {
    /// The node that reads.
    pub node: Arc<Node>,
    /// The slot of a [`Start`].
    pub start: usize,
    /// The initial value.
    pub initial: usize,
    /// Where the result goes.
    pub output: usize,
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
    pub branches: Vec<(Arc<Part>, Vec<Option<usize>>)>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
}

/// A part that runs again and again.
#[derive(Debug, Clone)]
pub struct LoopStep {
    /// The node, whose operation is a [`LoopOp`](convoke_graph_core::LoopOp) that carries the variables, too.
    pub node: Arc<Node>,
    /// Whether it runs at all.
    pub pred: Option<usize>,
    /// How often at most.
    pub count: Option<usize>,
    /// What is carried at first, but for the variables.
    pub carried: Vec<usize>,
    /// The held variables that it carries as well.
    pub variables: Vec<LoopVariable>,
    /// What iterations get slices of.
    pub scanned: Vec<usize>,
    /// What each iteration gets whole, as far as it is needed.
    pub captures: Vec<Option<usize>>,
    /// What an iteration does. It is given what is carried, slices, captures. Its results: whether it runs again, if it
    /// has a condition; what is carried next; what is stacked.
    pub body: Arc<Part>,
    /// For each of the results, the output of the body that it is.
    pub results: Vec<Output>,
    /// The outputs that are stacked: of the node, and which result of the body.
    pub stacked: Vec<(usize, usize)>,
    /// Which outputs of the node are needed, and where they go.
    pub outputs: Vec<(usize, usize)>,
}

/// Whether a run of a signature needs branches, loops or assertions.
pub fn has_flow(graph: &GraphSnapshot, signature: &Signature) -> bool {
    let roots = roots(signature);
    let fed = given(signature);
    let own = |control: NodeId| graph.node(control).body == BodyId::GRAPH;
    ancestors(graph, &roots, &fed, &own).iter().any(|node| is_flow(node, &fed))
}

impl FlowPlan {
    /// Plans a signature that [has flow](has_flow).
    ///
    /// # Errors
    /// As [`Plan::new`]. An assignment that has no order with a branch or loop that assigns the same variable.
    pub fn new(graph: &GraphSnapshot, signature: &Signature) -> Result<Self> {
        check_feeds(graph, signature)?;
        let fed = given(signature);
        let own = |control: NodeId| graph.node(control).body == BodyId::GRAPH;
        let nodes = ancestors(graph, &roots(signature), &fed, &own);
        check_nodes(&nodes, &fed)?;
        let order = Order::new(graph, &nodes, &fed)?;
        let initial = order.initial(graph, &nodes);
        let mut planner = Planner::new(graph, fed, FxHashSet::default(), initial);
        planner.hold(&nodes);
        Self::of(planner, signature, nodes, Cow::Owned(order))
    }

    /// Plans a part of a run that holds all variables. Its nodes are among `within`, and have an order; those of `initial`
    /// give initial values.
    pub(crate) fn part(
        graph: &GraphSnapshot,
        signature: &Signature,
        order: &Order,
        within: &FxHashSet<NodeId>,
        initial: FxHashSet<NodeId>,
    ) -> Result<Self> {
        let fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
        let own = |control: NodeId| within.contains(&control);
        let nodes = ancestors(graph, &roots(signature), &fed, &own);
        check_nodes(&nodes, &fed)?;
        let held = variables(graph, &nodes).into_iter().map(|held| held.variable.id).collect();
        let planner = Planner::new(graph, fed, held, initial);
        Self::of(planner, signature, nodes, Cow::Borrowed(order))
    }

    fn of(
        mut planner: Planner<'_>,
        signature: &Signature,
        nodes: Vec<Arc<Node>>,
        order: Cow<'_, Order>,
    ) -> Result<Self> {
        let graph = planner.graph;
        let mut held = variables(graph, &nodes);
        held.retain(|held| planner.held.contains(&held.variable.id));
        let Signature { feeds: given, fetches: results, targets, .. } = signature;
        let whole = planner.part(&Whole { nodes, order, given, results, targets })?;
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
        Ok(Self { plans, whole: Arc::new(whole), held, read })
    }
}

/// The variables that nodes use, themselves or in bodies, in order.
pub(crate) fn variables(graph: &GraphSnapshot, nodes: &[Arc<Node>]) -> Vec<Held> {
    let mut found: FxHashMap<NodeId, bool> = FxHashMap::default();
    for node in nodes {
        each_within(node, &mut |node| {
            let (Class::State(state), Some(handle)) = (node.op.class(), node.inputs.first()) else {
                return;
            };
            let is_read = !matches!(state, State::Assign | State::IsInitialized);
            *found.entry(handle.node).or_default() |= is_read;
        });
    }
    let held = |(id, is_read)| Held { variable: graph.node(id).clone(), is_read };
    let mut held: Vec<Held> = found.into_iter().map(held).collect();
    held.sort_by_key(|held| held.variable.id);
    held
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
pub fn given(signature: &Signature) -> FxHashSet<Output> {
    let connected = signature.connections.iter().map(|(_, to)| *to);
    signature.feeds.iter().copied().chain(connected).collect()
}

pub(crate) fn roots(signature: &Signature) -> Vec<NodeId> {
    let fetched = signature.fetches.iter().filter(|fetch| !signature.feeds.contains(fetch));
    fetched.map(|fetch| fetch.node).chain(signature.targets.iter().copied()).collect()
}

/// Whether a node is no part of a program: the data decides what it runs, or the host does it by itself. A loop that is
/// unrolled is part of one, unless the run is fed what its length was counted by.
pub(crate) fn is_flow(node: &Node, fed: &FxHashSet<Output>) -> bool {
    match node.op.class() {
        Class::Flow(Flow::Loop(op)) => {
            !op.unrolled || op.counted_by.iter().any(|output| fed.contains(output))
        }
        Class::Flow(_) => true,
        // Outside of bodies, what is taken is fed, and what is put is fetched.
        Class::Queue(op) => node.body != BodyId::GRAPH && op.action != QueueAction::Make,
        _ => false,
    }
}

/// The nodes that some need, in order. Controls that are not its own have run before it.
pub(crate) fn ancestors(
    graph: &GraphSnapshot,
    roots: &[NodeId],
    fed: &FxHashSet<Output>,
    is_own: &dyn Fn(NodeId) -> bool,
) -> Vec<Arc<Node>> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack = roots.to_vec();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        stack.extend(unfed_inputs(node, fed));
        stack.extend(node.controls.iter().filter(|control| is_own(**control)));
    }
    in_order(graph, &seen, fed).into_iter().map(|id| graph.node(id).clone()).collect()
}

/// The nodes that some need, up to values that are known, and controls that are elsewhere.
fn near(
    graph: &GraphSnapshot,
    roots: &[NodeId],
    known: &dyn Fn(&Output) -> bool,
    within: &dyn Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack = roots.to_vec();
    while let Some(id) = stack.pop() {
        if seen.insert(id) {
            let node = graph.node(id);
            stack.extend(node.inputs.iter().filter(|i| !known(i)).map(|i| i.node));
            stack.extend(node.controls.iter().filter(|control| within(**control)));
        }
    }
    seen.into_iter().collect()
}
