//! Bodies of graphs that are put together again. Of each only its parameters, its results and the keys of what it
//! captures are taken as they are; the rest follows from the nodes, as it does while a program builds.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::op::SharedOp;
use crate::ops::body::{Body, Needed, needed, residuals};
use crate::{
    Attribute, Attributes, BodyId, Class, Flow, GraphSnapshot, Host, NodeId, OpError, Output,
};

/// How deep branches and loops may run in each other. Those that are built again for gradients run where they do not
/// lie.
const HEIGHT_MAX: u32 = 64;

/// How many nodes the bodies of a graph may have, each counted for every branch or loop that it runs in.
const NODES_MAX: u64 = 1 << 24;

/// How many operations may be computed to count iterations. Loops beyond that run, but are not written out.
const EVALUATIONS_MAX: u64 = 1 << 22;

/// What the branches and loops of a graph that is put together amount to, so that a file cannot ask for more work than
/// its size lets expect.
pub(crate) struct Amounts {
    /// For each branch or loop, how deep bodies run in it, and of how many nodes.
    known: FxHashMap<NodeId, (u32, u64)>,
    nodes: u64,
    evaluations: u64,
}

impl Default for Amounts {
    fn default() -> Self {
        Self { known: FxHashMap::default(), nodes: 0, evaluations: EVALUATIONS_MAX }
    }
}

/// A branch or loop that is made again.
pub(crate) struct Restoring<'a> {
    /// The nodes that there are, which come before it.
    pub graph: &'a GraphSnapshot,
    /// The body that it is in.
    pub inside: BodyId,
    /// How many bodies there are.
    pub n_bodies: usize,
    /// Whether a body is another or encloses it.
    pub encloses: &'a dyn Fn(BodyId, BodyId) -> bool,
    amounts: &'a mut Amounts,
    own: (u32, u64),
}

impl<'a> Restoring<'a> {
    pub fn new(
        graph: &'a GraphSnapshot,
        inside: BodyId,
        n_bodies: usize,
        encloses: &'a dyn Fn(BodyId, BodyId) -> bool,
        amounts: &'a mut Amounts,
    ) -> Self {
        Self { graph, inside, n_bodies, encloses, amounts, own: (0, 0) }
    }

    /// How many operations may still be computed.
    pub fn evaluations(&mut self) -> &mut u64 {
        &mut self.amounts.evaluations
    }

    /// Notes that the operation is that of the next node.
    pub fn note(self) {
        let id = NodeId(u32::try_from(self.graph.nodes.len()).unwrap_or(u32::MAX));
        self.amounts.known.insert(id, self.own);
    }

    fn expect(&self, Output { node, index }: Output) -> Result<(), OpError> {
        let at = node.0 as usize;
        let is_there =
            at < self.graph.nodes.len() && (index as usize) < self.graph.nodes[at].facts.len();
        if is_there {
            return Ok(());
        }
        let message = format!("output {index} of node {} does not come before it", node.0);
        Err(OpError::Invalid(message))
    }

    /// The body of which `saved` has the id, the parameters and the results; the first `n_results` of those are not
    /// there for gradients only.
    ///
    /// # Errors
    /// What no program could have built.
    pub fn body(&mut self, saved: &Body, n_results: usize) -> Result<Body, OpError> {
        let (graph, id) = (self.graph, saved.id);
        let invalid = |message: String| Err(OpError::Invalid(message));
        if id == BodyId::GRAPH || id.0 as usize > self.n_bodies {
            return invalid(format!("there are {} bodies, and none {}", self.n_bodies, id.0));
        }
        if (self.encloses)(id, self.inside) {
            return invalid(format!("it lies in body {}, which it would run", id.0));
        }
        if saved.results.len() < n_results {
            let n = saved.results.len();
            return invalid(format!("expected at least {n_results} results of a body, got {n}"));
        }
        let mut params: FxHashSet<NodeId> = FxHashSet::default();
        for &param in &saved.params {
            self.expect(param)?;
            let node = graph.node(param.node);
            let is_param = node.body == id && node.inputs.is_empty() && is_placeholder(node);
            if !is_param || !params.insert(param.node) {
                return invalid(format!("{} is no parameter of body {}", node.name, id.0));
            }
        }
        for &result in &saved.results {
            self.expect(result)?;
            let node = graph.node(result.node);
            if graph.fact(result).is_variable() {
                return invalid(format!("{} is a variable's handle and no result", node.name));
            }
            if !(self.encloses)(node.body, id) {
                return invalid(format!("{} has no value in body {}", node.name, id.0));
            }
        }
        let Needed { nodes, captures, before } = needed(graph, id, &saved.results);
        let (mut height, mut n) = (0, nodes.len() as u64);
        let again: FxHashSet<Output> = saved.results[n_results..].iter().copied().collect();
        for node in &nodes {
            if is_placeholder(node) && node.inputs.is_empty() && !params.contains(&node.id) {
                return invalid(format!("{} is no parameter of the branch or loop", node.name));
            }
            if residuals(node).iter().any(|output| !again.contains(output)) {
                return invalid(format!("what {} gives is not kept for gradients", node.name));
            }
            if let Some((own, more)) = self.amounts.known.get(&node.id) {
                (height, n) = (height.max(*own), n.saturating_add(*more));
            }
        }
        self.own = (self.own.0.max(height + 1), self.own.1.saturating_add(n));
        self.amounts.nodes = self.amounts.nodes.saturating_add(n);
        if self.own.0 > HEIGHT_MAX {
            return invalid(format!("branches and loops run {} deep in it", self.own.0));
        }
        if self.amounts.nodes > NODES_MAX {
            return invalid(format!("the bodies of the graph have more than {NODES_MAX} nodes"));
        }
        let facts = saved.results.iter().map(|&result| graph.fact(result).clone()).collect();
        let (params, results) = (saved.params.clone(), saved.results.clone());
        Ok(Body { id, params, results, facts, nodes, captures, before })
    }
}

fn is_placeholder(node: &crate::Node) -> bool {
    matches!(node.op.class(), Class::Host(Host::Placeholder))
}

impl Body {
    /// A body without what follows from its nodes.
    pub(crate) fn sketch(
        id: BodyId,
        params: Vec<Output>,
        results: Vec<Output>,
        captures: Vec<Output>,
    ) -> Self {
        let (facts, nodes, before) = (Vec::new(), Vec::new(), Vec::new());
        Self { id, params, results, facts, nodes, captures, before }
    }

    /// The same for nodes and bodies of other ids, without what follows from the nodes.
    pub(crate) fn renumbered<E>(
        &self,
        output: &mut dyn FnMut(Output) -> Result<Output, E>,
        body: &mut dyn FnMut(BodyId) -> Result<BodyId, E>,
    ) -> Result<Self, E> {
        let mut all = |outputs: &[Output]| -> Result<Vec<Output>, E> {
            outputs.iter().map(|&own| output(own)).collect()
        };
        let (params, results) = (all(&self.params)?, all(&self.results)?);
        Ok(Self::sketch(body(self.id)?, params, results, all(&self.captures)?))
    }
}

impl OpError {
    /// Why the branch or loop of a file has no outputs yet.
    pub(crate) fn apart() -> Self {
        Self::Invalid("the branch or loop belongs to no graph that was put together".into())
    }
}

impl<'a> Flow<'a> {
    /// What it runs.
    pub fn bodies(&self) -> &'a [Body] {
        match *self {
            Flow::Branch(op) => &op.branches,
            Flow::Loop(op) => std::slice::from_ref(&op.body),
            Flow::Assert(_) | Flow::Call(_) | Flow::Find(_) => &[],
        }
    }

    /// The outer outputs that its bodies use, as they name them. Its last inputs stand for them; where it was built
    /// again, those are others.
    pub fn captures(&self) -> &'a [Output] {
        match *self {
            Flow::Branch(op) => &op.captures,
            Flow::Loop(op) => &op.body.captures,
            Flow::Assert(_) | Flow::Call(_) | Flow::Find(_) => &[],
        }
    }

    /// The operation for nodes and bodies of other ids, to be a part of another graph: see
    /// [`Graph::from_parts`](crate::Graph::from_parts). `None` for an assertion, which stays as it is.
    ///
    /// # Errors
    /// What `output` and `body` give.
    pub fn renumbered<E>(
        &self,
        output: &mut dyn FnMut(Output) -> Result<Output, E>,
        body: &mut dyn FnMut(BodyId) -> Result<BodyId, E>,
    ) -> Result<Option<SharedOp>, E> {
        Ok(match self {
            Flow::Branch(op) => Some(std::sync::Arc::new(op.renumbered(output, body)?)),
            Flow::Loop(op) => Some(std::sync::Arc::new(op.renumbered(output, body)?)),
            Flow::Assert(_) | Flow::Call(_) | Flow::Find(_) => None,
        })
    }

    /// The operation, of the nodes that a graph has so far; its inputs become those that it needs. `None` for an
    /// assertion.
    pub(crate) fn restored(
        &self,
        mut at: Restoring<'_>,
        inputs: &mut Vec<Output>,
    ) -> Result<Option<SharedOp>, OpError> {
        let op: SharedOp = match self {
            Flow::Branch(op) => std::sync::Arc::new(op.restored(&mut at, inputs)?),
            Flow::Loop(op) => std::sync::Arc::new(op.restored(&mut at, inputs)?),
            Flow::Assert(_) | Flow::Call(_) | Flow::Find(_) => return Ok(None),
        };
        if let Some(handle) = inputs.iter().find(|input| at.graph.fact(**input).is_variable()) {
            let name = &at.graph.node(handle.node).name;
            return Err(OpError::Invalid(format!("{name} is a variable's handle and no input")));
        }
        at.note();
        Ok(Some(op))
    }
}

/// The inputs of a branch or loop of which the first `head` are no captures. `saved` is what the last stand for;
/// captures that are not among that stand for themselves.
///
/// # Errors
/// Inputs that are not those of `saved`, or are not like what they stand for.
pub(crate) fn recaptured(
    graph: &GraphSnapshot,
    inputs: &[Output],
    head: usize,
    saved: &[Output],
    captures: &[Output],
) -> Result<Vec<Output>, OpError> {
    let last = inputs.get(head..).filter(|last| last.len() == saved.len());
    let expected = head.saturating_add(saved.len());
    let last = last.ok_or(OpError::Arity { expected, found: inputs.len() })?;
    let given: FxHashMap<Output, Output> =
        saved.iter().copied().zip(last.iter().copied()).collect();
    if given.len() != saved.len() {
        return Err(OpError::Invalid("one of the captures is there twice".into()));
    }
    let mut all = inputs[..head].to_vec();
    for &key in captures {
        let input = given.get(&key).copied().unwrap_or(key);
        let (fact, expected) = (graph.fact(input), graph.fact(key));
        if fact.dtype != expected.dtype {
            return Err(OpError::DTypes { lhs: expected.dtype, rhs: fact.dtype });
        }
        expected.dims.unify(&fact.dims)?;
        all.push(input);
    }
    Ok(all)
}

/// # Errors
/// Another number than expected.
pub(crate) fn count_of(what: &str, expected: usize, found: usize) -> Result<(), OpError> {
    if expected == found {
        return Ok(());
    }
    Err(OpError::Invalid(format!("expected {expected} {what} of a body, got {found}")))
}

/// The body of this id.
///
/// # Errors
/// It is the graph itself.
pub(crate) fn body_of(id: u32) -> Result<BodyId, OpError> {
    match BodyId(id) {
        BodyId::GRAPH => Err(OpError::Invalid("body 0 is the graph itself".into())),
        id => Ok(id),
    }
}

/// Outputs as an attribute: the node and the index of each, one after the other.
pub(crate) fn pairs<'a>(outputs: impl IntoIterator<Item = &'a Output>) -> Attribute {
    outputs.into_iter().flat_map(|output| [output.node.0, output.index]).collect()
}

/// The outputs of an attribute.
pub(crate) fn outputs_of(a: &Attributes, name: &str) -> Result<Vec<Output>, OpError> {
    let numbers: Vec<u32> = a.ints(name)?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        let n = numbers.len();
        return Err(OpError::Invalid(format!("{name:?} are pairs, and {n} numbers are not")));
    }
    Ok(pairs.iter().map(|&[node, index]| Output { node: NodeId(node), index }).collect())
}
