//! The append-only graph: nodes, names, scopes and collections.

mod connect;
mod frozen;
mod infer;
mod limits;
mod marks;
mod narrow;
mod parts;
mod scopes;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use frozen::Freezes;
pub use frozen::Frozen;
use infer::fold_small;
pub use limits::GraphLimits;
pub use parts::{GraphParts, NodeParts, SharedParts};
use scopes::{Around, Scope};

use crate::op::SharedOp;
use crate::ops::control::NoOp;
use crate::queue_runner::KeptRunner;
use crate::{Dim, Error, ErrorKind, Fact, NodeList, OpError, Operation, Result, Tensor};

/// How deep branches and loops may lie in each other.
const DEPTH_MAX: u32 = 32;

/// A graph of tensor operations. Clones are handles to the same graph.
#[derive(Clone)]
pub struct Graph {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    state: RwLock<GraphState>,
    /// Whether there is anything that may not be fed or fetched.
    is_marked: AtomicBool,
    /// Locked before the state.
    shared: Mutex<SharedVariables>,
}

/// The nodes of a variable that has a shared name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedVariable {
    pub(crate) handle: NodeId,
    pub(crate) read: NodeId,
    pub(crate) initializer: NodeId,
}

/// By container and shared name.
type SharedVariables = FxHashMap<(Option<Arc<str>>, String), SharedVariable>;

#[derive(Default)]
pub(crate) struct GraphState {
    pub(crate) nodes: NodeList,
    names: FxHashMap<Arc<str>, NodeId>,
    /// How often a base name was asked for, so that finding a unique one does not begin at 1.
    counts: FxHashMap<String, u32>,
    collections: FxHashMap<Collection, Vec<Tensor>>,
    pub(crate) queue_runners: Vec<KeptRunner>,
    seed: u64,
    next_symbol: u32,
    freezes: Freezes,
    /// What no run may feed, and the nodes of which none may fetch anything.
    unfeedable: FxHashSet<Output>,
    unfetchable: FxHashSet<NodeId>,
    /// For each body but the graph itself, the one around it and how deep it lies.
    bodies: Vec<(BodyId, u32)>,
    limits: GraphLimits,
    /// Inputs and controls of all nodes.
    n_edges: usize,
    /// The refused node after the last that there may be.
    beyond: Option<NodeId>,
}

/// The index of a node in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// A part of a graph that a branch or a loop runs; 0 is the graph itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BodyId(pub u32);

impl BodyId {
    /// The graph itself.
    pub const GRAPH: Self = Self(0);
}

/// One output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Output {
    /// The node.
    pub node: NodeId,
    /// Which of its outputs.
    pub index: u32,
}

/// Named lists of tensors that a graph keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Collection {
    /// Variables that optimizers train.
    Trainable,
    /// All variables that checkpoints keep.
    Global,
    /// Variables that are no part of what is learnt: counters, statistics.
    Local,
    /// The assignments that give local variables their first elements.
    LocalInitializers,
    /// The assignments that give global variables their first elements.
    Initializers,
    /// What a training step should run too, such as moving averages.
    Updates,
    /// A list of your own.
    Named(String),
}

/// An operation applied to earlier values.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its place in the graph.
    pub id: NodeId,
    /// Unique in the graph: `scope/op_1`.
    pub name: Arc<str>,
    /// What it computes.
    pub op: SharedOp,
    /// Its operands, with smaller ids.
    pub inputs: SmallVec<[Output; 3]>,
    /// Nodes that run before it.
    pub controls: SmallVec<[NodeId; 1]>,
    /// Those of the controls that only something in its bodies runs after.
    pub body_controls: Box<[NodeId]>,
    /// What is known of each output.
    pub facts: SmallVec<[Fact; 1]>,
    /// The device asked for: a full or partial device name.
    pub device: Option<Arc<str>>,
    /// Nodes that it must share a device with.
    pub colocated: SmallVec<[NodeId; 1]>,
    /// The branch or loop that it is built in.
    pub body: BodyId,
    /// The container of what sessions keep for it; none is the default one.
    pub container: Option<Arc<str>>,
    /// The caller's line.
    pub location: &'static Location<'static>,
    /// Why it was refused, if it was.
    pub invalid: Option<OpError>,
}

impl Node {
    /// The controls that it has whatever its bodies run after.
    pub fn own_controls(&self) -> impl Iterator<Item = NodeId> {
        let own = self.controls.iter().filter(|control| !self.body_controls.contains(control));
        own.copied()
    }

    /// The error of a refused node: its reason, name and the caller's line.
    pub fn error(&self) -> Option<Error> {
        let reason = self.invalid.clone()?;
        Some(Error::from(reason).with_node(&*self.name).with_location(self.location))
    }
}

/// The nodes that a graph had at some moment.
#[derive(Clone)]
pub struct GraphSnapshot {
    /// Id of the graph.
    pub graph_id: u64,
    /// The nodes, by id.
    pub nodes: NodeList,
    /// Whether tensors are [connected](Self::connect), so that inputs may have greater ids.
    pub is_connected: bool,
}

impl GraphSnapshot {
    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Arc<Node> {
        &self.nodes[id.0 as usize]
    }

    /// What is known of an output.
    pub fn fact(&self, output: Output) -> &Fact {
        &self.node(output.node).facts[output.index as usize]
    }
}

static NEXT_GRAPH: AtomicU64 = AtomicU64::new(1);

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// An empty graph with seed 0.
    pub fn new() -> Self {
        Self::with_seed(0)
    }

    /// An empty graph whose random operations are keyed by `seed`.
    pub fn with_seed(seed: u64) -> Self {
        let id = NEXT_GRAPH.fetch_add(1, Ordering::Relaxed);
        let state = RwLock::new(GraphState { seed, ..GraphState::default() });
        Self {
            inner: Arc::new(Inner {
                id,
                is_marked: AtomicBool::new(false),
                state,
                shared: Mutex::default(),
            }),
        }
    }

    /// A number that no other graph of this process has.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The seed of the graph.
    pub fn seed(&self) -> u64 {
        self.read().seed
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.read().nodes.len()
    }

    /// True if there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The node with this id.
    ///
    /// # Panics
    /// Never for an id that a handle of this graph holds.
    pub fn node(&self, id: NodeId) -> Arc<Node> {
        self.read().nodes[id.0 as usize].clone()
    }

    /// The nodes as they stand now.
    pub fn snapshot(&self) -> GraphSnapshot {
        let nodes = self.read().nodes.clone();
        GraphSnapshot { graph_id: self.id(), nodes, is_connected: false }
    }

    /// Lists every refused operation, in the order of building; and, as a check of Convoke itself, every
    /// node whose facts are not those that its operation infers from its inputs'.
    pub fn check(&self) -> Vec<Error> {
        let graph = self.snapshot();
        let derived = |node: &Node| {
            let inputs: Vec<Fact> = node.inputs.iter().map(|&i| graph.fact(i).clone()).collect();
            let facts = node.op.infer(&inputs).map(|facts| fold_small(&*node.op, &inputs, facts));
            match facts {
                Ok(facts) if facts == node.facts => None,
                other => {
                    let message = format!("facts {:?} differ from {other:?}", node.facts);
                    Some(Error::internal(message).with_node(&*node.name))
                }
            }
        };
        graph.nodes.iter().filter_map(|node| node.error().or_else(|| derived(node))).collect()
    }

    /// The tensor called `name`: `scope/op:0`, where `:0` may be left out.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if no node has the name or it has no such output.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (node_name, index) = match name.rsplit_once(':') {
            Some((node, index)) => (node, index.parse::<u32>().ok()),
            None => (name, Some(0)),
        };
        let node = self.operation(node_name)?.node();
        match index {
            Some(index) if (index as usize) < node.facts.len() => {
                Ok(Tensor::new(self.clone(), Output { node: node.id, index }))
            }
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("no output {name}: {node_name} has {} outputs", node.facts.len()),
            )),
        }
    }

    /// The operation called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if no node has the name.
    pub fn operation(&self, name: &str) -> Result<Operation> {
        let state = self.read();
        let id = state.names.get(name).copied().ok_or_else(|| {
            let count = state.nodes.len();
            let message = format!("no operation is named {name:?} among the graph's {count}");
            Error::new(ErrorKind::NotFound, message)
        })?;
        Ok(Operation::new(self.clone(), id))
    }

    /// Nodes built in `build` have names that begin with `name/`.
    pub fn scope<R>(&self, name: &str, build: impl FnOnce() -> R) -> R {
        let full: Arc<str> = {
            let prefix = self.name_prefix();
            let mut state = self.write();
            let base = format!("{prefix}{}", clean_name(name));
            state.unique_name(&base).into()
        };
        self.enter(Scope::Name(full), build)
    }

    /// Nodes built in `build` ask for `device`: `CPU`, `GPU:0`, or a full name such as
    /// `/job:worker/task:0/device:GPU:0`. The innermost scope that names a part decides it.
    pub fn device<R>(&self, device: &str, build: impl FnOnce() -> R) -> R {
        self.enter(Scope::Device(device.into()), build)
    }

    /// Variables and queues built in `build` are in the container `name`, by which a session can drop what it keeps
    /// for them. The innermost scope counts; the empty name is that of the default container.
    pub fn container<R>(&self, name: &str, build: impl FnOnce() -> R) -> R {
        let name = (!name.is_empty()).then(|| name.into());
        self.enter(Scope::Container(name), build)
    }

    /// The container of what is built now.
    pub(crate) fn container_now(&self) -> Option<Arc<str>> {
        let named = |scope| match scope {
            Scope::Container(name) => Some(name),
            _ => None,
        };
        self.scopes().into_iter().rev().find_map(named).flatten()
    }

    /// Nodes built in `build` run after `before`.
    ///
    /// # Errors
    /// Recorded for each of those nodes: an operation of another graph.
    pub fn after<R>(&self, before: &[&Operation], build: impl FnOnce() -> R) -> R {
        self.enter(self.controls(before.iter().copied()), build)
    }

    /// Nodes built in `build`, and in branches and loops there, run on the device of `other`, whatever device scopes
    /// around it name.
    ///
    /// # Errors
    /// Recorded for each of those nodes: an operation of another graph.
    pub fn colocate_with<R>(&self, other: &Operation, build: impl FnOnce() -> R) -> R {
        let scope = match self.controls([other]) {
            Scope::Control(_) => Scope::Colocate(other.id()),
            foreign => foreign,
        };
        self.enter(scope, build)
    }

    /// Puts `tensor` into a collection; a tensor of another graph is left out.
    pub fn collect(&self, collection: Collection, tensor: &Tensor) {
        if tensor.graph().id() != self.id() {
            return;
        }
        self.write().collections.entry(collection).or_default().push(tensor.clone());
    }

    /// What is in a collection, in order.
    pub fn collection(&self, collection: &Collection) -> Vec<Tensor> {
        self.read().collections.get(collection).cloned().unwrap_or_default()
    }

    /// One operation that runs all of these.
    ///
    /// # Errors
    /// Recorded: an operation of another graph.
    #[track_caller]
    pub fn group<'a>(&self, operations: impl IntoIterator<Item = &'a Operation>) -> Operation {
        let at = Location::caller();
        let id =
            self.enter(self.controls(operations), || self.append(Arc::new(NoOp), &[], "group", at));
        Operation::new(self.clone(), id)
    }

    /// One operation that gives every variable of the graph its first elements, but for local ones.
    #[track_caller]
    pub fn initializers(&self) -> Operation {
        self.group_of(&Collection::Initializers)
    }

    /// One operation that gives every local variable of the graph its first elements.
    #[track_caller]
    pub fn local_initializers(&self) -> Operation {
        self.group_of(&Collection::LocalInitializers)
    }

    #[track_caller]
    fn group_of(&self, collection: &Collection) -> Operation {
        let tensors = self.collection(collection);
        let operations: Vec<Operation> = tensors.iter().map(Tensor::operation).collect();
        self.group(&operations)
    }

    /// A symbol that stands for one size that is not known yet.
    pub(crate) fn symbol(&self) -> Dim {
        let mut state = self.write();
        state.next_symbol += 1;
        Dim::Symbol(state.next_symbol - 1)
    }

    /// Adds a node and gives its id. `base` is the name without scope.
    pub(crate) fn append(
        &self,
        op: SharedOp,
        inputs: &[Tensor],
        base: &str,
        location: &'static Location<'static>,
    ) -> NodeId {
        let scopes = self.scopes();
        let Around { body, mut controls, device, colocated, container } = Around::of(&scopes);
        let mut state = self.write();
        if let Some(beyond) = state.beyond() {
            return beyond;
        }
        let name: Arc<str> = state.unique_name(&full_name(&scopes, base)).into();
        let id = NodeId(state.nodes.len() as u32);
        let foreign = scopes.iter().find_map(|s| match s {
            Scope::Foreign(name) => Some(name),
            _ => None,
        });
        let leaked =
            controls.iter().find(|id| !state.encloses(state.nodes[id.0 as usize].body, body));
        let leaks = leaked.map(|&id| state.leaves(id));
        let admitted = state.admit(inputs.len().saturating_add(controls.len()));
        let (facts, invalid) = match admitted.err().or(leaks) {
            Some(reason) => state.refuse(reason),
            None => state.infer(self.id(), body, &*op, inputs, foreign),
        };
        // What is too much is not kept.
        let is_kept = !matches!(invalid, Some(OpError::GraphLimit { .. }));
        let own = inputs.iter().filter(|t| is_kept && t.graph().id() == self.id());
        let inputs: SmallVec<[Output; 3]> = own.map(Tensor::output).collect();
        state.names.insert(name.clone(), id);
        let body_controls = state.body_controls(body, &*op, &controls);
        controls.extend(body_controls.iter().copied());
        controls.sort_unstable();
        controls.dedup();
        let n_edges = inputs.len().saturating_add(controls.len());
        let node = Node {
            id,
            name,
            op,
            inputs,
            controls,
            body_controls,
            facts,
            device,
            colocated,
            body,
            container,
            location,
            invalid,
        };
        state.nodes.push(Arc::new(node));
        state.added(id, n_edges);
        id
    }

    /// Builds what a branch or loop runs; `build` is given its id.
    pub(crate) fn enter_body<R>(&self, build: impl FnOnce(BodyId) -> R) -> R {
        let around = self.body();
        let mut state = self.write();
        let depth = state.depth(around).saturating_add(1);
        state.bodies.push((around, depth));
        let id = BodyId(state.bodies.len() as u32);
        drop(state);
        self.enter(Scope::Body(id), || build(id))
    }

    /// # Errors
    /// A body lies deeper than [`DEPTH_MAX`].
    pub(crate) fn check_depth(&self, body: BodyId) -> std::result::Result<(), OpError> {
        let depth = self.read().depth(body);
        if depth > DEPTH_MAX {
            let message = format!("branches and loops lie {depth} deep; the limit is {DEPTH_MAX}");
            return Err(OpError::Invalid(message));
        }
        Ok(())
    }

    /// The id of the node that comes next, if no other thread builds.
    pub(crate) fn next_id(&self) -> NodeId {
        NodeId(self.len() as u32)
    }

    /// The branch or loop that is being built.
    pub(crate) fn body(&self) -> BodyId {
        let body = self.scopes().into_iter().rev().find_map(|scope| match scope {
            Scope::Body(id) => Some(id),
            _ => None,
        });
        body.unwrap_or_default()
    }

    fn controls<'a>(&self, operations: impl IntoIterator<Item = &'a Operation>) -> Scope {
        let mut ids = SmallVec::new();
        for operation in operations {
            if operation.graph().id() != self.id() {
                return Scope::Foreign(operation.name().into());
            }
            ids.push(operation.id());
        }
        Scope::Control(ids)
    }

    /// The shared variables, while nobody else adds one.
    pub(crate) fn shared(&self) -> MutexGuard<'_, SharedVariables> {
        self.inner.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // A panic while the lock is held leaves the state whole: nodes are pushed in one step.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, GraphState> {
        self.inner.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, GraphState> {
        self.inner.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl GraphState {
    fn unique_name(&mut self, base: &str) -> String {
        let count = self.counts.entry(base.to_owned()).or_insert(0);
        loop {
            let name = if *count == 0 { base.to_owned() } else { format!("{base}_{count}") };
            *count += 1;
            if !self.names.contains_key(name.as_str()) {
                return name;
            }
        }
    }
}

/// A name in the innermost scope that has one.
fn full_name(scopes: &[Scope], base: &str) -> String {
    let prefix = scopes.iter().rev().find_map(|scope| match scope {
        Scope::Name(name) => Some(format!("{name}/")),
        _ => None,
    });
    format!("{}{base}", prefix.unwrap_or_default())
}

/// A name part without the characters that separate parts.
fn clean_name(name: &str) -> String {
    if name.is_empty() { "scope".into() } else { name.replace(':', "_") }
}
