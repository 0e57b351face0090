//! Bodies: what branches and loops run. A body is a function of its parameters and captures: the values of outer nodes
//! that its nodes use.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::ops::branch::replay_branch;
use crate::ops::host::Placeholder;
use crate::ops::loops::replay_loop;
use crate::{
    BodyId, Class, Fact, Flow, Graph, GraphSnapshot, HostTensor, Node, NodeId, OpError, Operation,
    Output, QueueAction, Tensor,
};

/// What a branch or a loop runs.
#[derive(Clone)]
pub struct Body {
    /// Which nodes are its own.
    pub id: BodyId,
    /// What it is given.
    pub params: Vec<Output>,
    /// What it gives: outputs of its own nodes, or of outer ones.
    pub results: Vec<Output>,
    /// What is known of each result.
    pub facts: Vec<Fact>,
    /// Its own nodes that the results need, inputs before users.
    pub nodes: Vec<Arc<Node>>,
    /// The outer outputs that its nodes and results use.
    pub captures: Vec<Output>,
    /// The outer nodes that its nodes run after.
    pub before: Vec<NodeId>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.nodes.len();
        write!(f, "body {} of {n} nodes, {} results", self.id.0, self.results.len())
    }
}

/// What a body gives before its residuals are added.
pub(crate) struct Built {
    id: BodyId,
    params: Vec<Tensor>,
    results: Vec<Tensor>,
}

impl Built {
    /// Builds a body whose parameters are known as `params` says, and gives what `build` gives beside its results.
    pub fn new<R>(
        graph: &Graph,
        params: Vec<Fact>,
        at: &'static Location<'static>,
        build: impl FnOnce(&[Tensor]) -> (Vec<Tensor>, R),
    ) -> (Self, R) {
        graph.enter_body(|id| {
            let param = |fact: Fact| {
                let op = Placeholder { dtype: fact.dtype, dims: fact.dims };
                let node = graph.append(Arc::new(op), &[], "parameter", at);
                Tensor::new(graph.clone(), Output { node, index: 0 })
            };
            let params: Vec<Tensor> = params.into_iter().map(param).collect();
            let (results, more) = build(&params);
            (Self { id, params, results }, more)
        })
    }

    /// The body, with the outputs of its nodes that give something else each time as further results; and where those
    /// begin.
    ///
    /// # Errors
    /// It lies too deep, or a result is of another graph or was refused.
    pub fn finish(self, graph: &Graph) -> Result<(Body, usize), OpError> {
        graph.check_depth(self.id)?;
        let snapshot = graph.snapshot();
        for result in &self.results {
            let name = result.name();
            if result.graph().id() != graph.id() {
                return Err(OpError::Invalid(format!("{name} belongs to another graph")));
            }
            if result.node().invalid.is_some() {
                return Err(cause(&snapshot, result.output().node));
            }
            if result.fact().is_variable() {
                let message = format!("{name} is a variable's handle; return what it reads");
                return Err(OpError::Invalid(message));
            }
        }
        let outputs = |tensors: &[Tensor]| tensors.iter().map(Tensor::output).collect::<Vec<_>>();
        let (params, mut results) = (outputs(&self.params), outputs(&self.results));
        let needed = needed(&snapshot, self.id, &results);
        let n_results = results.len();
        results.extend(needed.nodes.iter().flat_map(|node| residuals(node)));
        let facts = results.iter().map(|&output| snapshot.fact(output).clone()).collect();
        let Needed { nodes, captures, before } = needed;
        Ok((Body { id: self.id, params, results, facts, nodes, captures, before }, n_results))
    }
}

/// Why a node is invalid: the refused one that it is built on.
fn cause(graph: &GraphSnapshot, mut id: NodeId) -> OpError {
    loop {
        let node = graph.node(id);
        let refused = |output: &&Output| graph.node(output.node).invalid.is_some();
        match (&node.invalid, node.inputs.iter().find(refused)) {
            (Some(OpError::InvalidInput(_)), Some(input)) => id = input.node,
            (Some(reason @ OpError::BuiltOn { .. }), _) => return reason.clone(),
            (Some(reason), _) => {
                let (node, at) = (node.name.to_string(), node.location);
                return OpError::BuiltOn { node, at, reason: Box::new(reason.clone()) };
            }
            (None, _) => return OpError::InvalidInput(node.name.to_string()),
        }
    }
}

/// The nodes of a body that some of its outputs need, and what they need from outside.
pub(crate) struct Needed {
    pub nodes: Vec<Arc<Node>>,
    pub captures: Vec<Output>,
    pub before: Vec<NodeId>,
}

pub(crate) fn needed(graph: &GraphSnapshot, body: BodyId, results: &[Output]) -> Needed {
    let (mut own, mut captures, mut before) =
        (FxHashSet::default(), FxHashSet::default(), FxHashSet::default());
    let mut stack: Vec<NodeId> = Vec::new();
    let mut see = |outputs: &[Output], stack: &mut Vec<NodeId>| {
        for &output in outputs {
            if graph.node(output.node).body == body {
                stack.push(output.node);
            } else if !graph.fact(output).is_variable() {
                captures.insert(output);
            }
        }
    };
    see(results, &mut stack);
    while let Some(id) = stack.pop() {
        if !own.insert(id) {
            continue;
        }
        let node = graph.node(id);
        see(&node.inputs, &mut stack);
        for &control in &node.controls {
            if graph.node(control).body == body {
                stack.push(control);
            } else {
                before.insert(control);
            }
        }
    }
    let mut own: Vec<NodeId> = own.into_iter().collect();
    let mut captures: Vec<Output> = captures.into_iter().collect();
    let mut before: Vec<NodeId> = before.into_iter().collect();
    own.sort_unstable();
    captures.sort_unstable();
    before.sort_unstable();
    Needed { nodes: own.into_iter().map(|id| graph.node(id).clone()).collect(), captures, before }
}

/// The outputs of a node that another run of it would not give again. Of a branch or loop, those with which it can be
/// built so that it does: see [`replay`].
pub(crate) fn residuals(node: &Node) -> Vec<Output> {
    let output = |index: usize| Output { node: node.id, index: index as u32 };
    let n = node.facts.len();
    match node.op.class() {
        Class::State(_) | Class::Random(_) => (0..n).map(output).collect(),
        Class::Queue(op) if op.is_source() => (0..n).map(output).collect(),
        Class::Flow(Flow::Branch(op)) => (op.n_results..n).map(output).collect(),
        Class::Flow(Flow::Loop(op)) => (op.residuals_at()..n).map(output).collect(),
        _ => Vec::new(),
    }
}

/// What some tensors of the body that is being built need and that has an effect.
pub(crate) fn effects(graph: &Graph, tensors: &[Tensor]) -> Vec<Operation> {
    let own = tensors.iter().filter(|tensor| tensor.graph().id() == graph.id());
    let outputs: Vec<Output> = own.map(Tensor::output).collect();
    let nodes = needed(&graph.snapshot(), graph.body(), &outputs).nodes;
    let has_effect = |node: &&Arc<Node>| match node.op.class() {
        Class::State(state) => state.is_assign(),
        Class::Queue(op) => op.action != QueueAction::Make,
        Class::Flow(Flow::Branch(op)) => !op.branches.iter().all(Body::is_pure),
        Class::Flow(Flow::Loop(op)) => !op.body.is_pure(),
        _ => false,
    };
    let effects = nodes.iter().filter(has_effect);
    effects.map(|node| Operation::new(graph.clone(), node.id)).collect()
}

/// Tensors that stand for outputs.
pub(crate) type Map = FxHashMap<Output, Tensor>;

/// The tensor that stands for an output; itself, if there is none.
pub(crate) fn mapped(graph: &Graph, map: &Map, output: Output) -> Tensor {
    map.get(&output).cloned().unwrap_or_else(|| Tensor::new(graph.clone(), output))
}

/// Builds again, in the scope at hand, what gives `wanted` of a body, where `map` has the parameters, captures that
/// have another place here, and the residuals. Effects are not repeated.
pub(crate) fn rebuild(graph: &Graph, body: &Body, wanted: &[Output], map: &mut Map) {
    let mut needed: FxHashSet<NodeId> = FxHashSet::default();
    let missing = |output: &&Output, map: &Map| !map.contains_key(*output);
    let mut stack: Vec<NodeId> =
        wanted.iter().filter(|output| missing(output, map)).map(|output| output.node).collect();
    let own: FxHashMap<NodeId, &Arc<Node>> = body.nodes.iter().map(|n| (n.id, n)).collect();
    while let Some(id) = stack.pop() {
        if let Some(node) = own.get(&id)
            && needed.insert(id)
        {
            stack.extend(node.inputs.iter().filter(|i| missing(i, map)).map(|input| input.node));
        }
    }
    for node in body.nodes.iter().filter(|node| needed.contains(&node.id)) {
        let inputs: Vec<Tensor> =
            node.inputs.iter().map(|&input| mapped(graph, map, input)).collect();
        let given: Vec<Tensor> =
            residuals(node).iter().filter_map(|output| map.get(output).cloned()).collect();
        let outputs = replay(graph, node, inputs, given);
        for (index, tensor) in outputs.into_iter().enumerate() {
            map.entry(Output { node: node.id, index: index as u32 }).or_insert(tensor);
        }
    }
}

/// Applies a node's operation to other inputs. A branch or loop in which something gives other values each time takes
/// those that it gave before.
fn replay(graph: &Graph, node: &Node, inputs: Vec<Tensor>, given: Vec<Tensor>) -> Vec<Tensor> {
    match node.op.class() {
        Class::Flow(Flow::Branch(op)) if !given.is_empty() => {
            replay_branch(graph, op, &inputs, &given, node.location)
        }
        Class::Flow(Flow::Loop(op)) if !given.is_empty() => {
            replay_loop(graph, op, &inputs, &given, node.location)
        }
        _ => {
            let id = graph.append(node.op.clone(), &inputs, node.op.name(), node.location);
            let n = node.facts.len() as u32;
            let output = |index| Tensor::new(graph.clone(), Output { node: id, index });
            (0..n).map(output).collect()
        }
    }
}

impl Body {
    /// Whether a run of it gives the same again, and has no effect.
    pub fn is_pure(&self) -> bool {
        self.nodes.iter().all(|node| match node.op.class() {
            Class::State(_) | Class::Random(_) | Class::Queue(_) => false,
            Class::Flow(Flow::Assert(_)) => true,
            Class::Flow(Flow::Branch(op)) => op.branches.iter().all(Self::is_pure),
            Class::Flow(Flow::Loop(op)) => op.body.is_pure(),
            _ => true,
        })
    }

    /// Those of some outputs on which others depend by values of float types.
    pub(crate) fn reaching(&self, from: &[Output], to: &[Output]) -> FxHashSet<Output> {
        let mut wanted: FxHashSet<Output> = to.iter().copied().collect();
        for node in self.nodes.iter().rev() {
            let outputs = node.facts.iter().enumerate();
            let mut floats = outputs.filter(|(_, fact)| fact.dtype.is_float());
            let is_wanted = floats
                .any(|(index, _)| wanted.contains(&Output { node: node.id, index: index as u32 }));
            if is_wanted {
                wanted.extend(node.inputs.iter().copied());
            }
        }
        from.iter().copied().filter(|output| wanted.contains(output)).collect()
    }

    /// All outputs that some need, themselves and parameters included; what a residual is made of is not.
    pub(crate) fn needed_by(&self, wanted: &[Output]) -> FxHashSet<Output> {
        let mut needed: FxHashSet<Output> = wanted.iter().copied().collect();
        for node in self.nodes.iter().rev() {
            let own = residuals(node);
            let mut outputs =
                (0..node.facts.len() as u32).map(|index| Output { node: node.id, index });
            if outputs.any(|output| needed.contains(&output)) {
                needed.extend(own);
                needed.extend(node.inputs.iter().copied());
            }
        }
        needed
    }

    /// What it gives for parameters and captures, by the definitions of its operations.
    ///
    /// # Errors
    /// What its operations refuse, or an operation that has no value outside of a session.
    pub fn eval(
        &self,
        params: &[HostTensor],
        captures: &FxHashMap<Output, HostTensor>,
    ) -> Result<Vec<HostTensor>, OpError> {
        let mut values = captures.clone();
        values.extend(self.params.iter().copied().zip(params.iter().cloned()));
        let value = |values: &FxHashMap<Output, HostTensor>, output: &Output| {
            let value = values.get(output).cloned();
            value.ok_or_else(|| OpError::Invalid(format!("{output:?} has no value")))
        };
        for node in &self.nodes {
            if values.contains_key(&Output { node: node.id, index: 0 }) {
                continue;
            }
            let inputs: SmallVec<[HostTensor; 3]> = node
                .inputs
                .iter()
                .map(|input| value(&values, input))
                .collect::<Result<_, OpError>>()?;
            for (index, result) in node.op.eval(&inputs)?.into_iter().enumerate() {
                values.insert(Output { node: node.id, index: index as u32 }, result);
            }
        }
        self.results.iter().map(|output| value(&values, output)).collect()
    }
}
