//! How many iterations a loop has, where that follows from what is known while building.

use rustc_hash::{FxHashMap, FxHashSet};

use super::LoopOp;
use super::counter::Start;
use crate::ops::body::Body;
use crate::{
    Class, Contents, DType, Dim, Fact, Flow, GraphSnapshot, Host, HostTensor, Node, NodeId, Output,
};

/// Loops of more iterations are counted only where a formula says how many there are, and stay loops.
const TRIPS_MAX: u64 = 1024;

/// Loops whose iterations have more nodes than this together stay loops.
const UNROLLED_MAX: u64 = 4096;

/// Counts the iterations of a loop that a condition ends, and says what outside of its body that depends on; `None` where
/// more than small integers decide it, or there are many. `start` is whether it runs at all, and what it carries first;
/// `evaluations` are how many operations may be computed for that.
pub(super) fn count(
    graph: &GraphSnapshot,
    (pred, carried): (Output, &[Output]),
    max: Option<u64>,
    body: &Body,
    evaluations: &mut u64,
) -> Option<(u64, Vec<Output>)> {
    let mut goes_on = outer(graph, pred)?.scalar::<bool>().ok()?;
    let deciding = Deciding::new(graph, body, carried.len())?;
    let start = |&at: &usize| outer(graph, *carried.get(at)?);
    let mut state: Vec<HostTensor> = deciding.carried.iter().map(start).collect::<Option<_>>()?;
    let counted = goes_on.then(|| {
        let own = |output: Output| {
            let node = deciding.nodes.iter().find(|node| node.id == output.node);
            node.copied()
        };
        let first = |at: usize| outer(graph, *carried.get(at)?);
        let outer = |output: Output| outer(graph, output);
        let params = &body.params[..carried.len()];
        let start =
            Start { results: &body.results, params, own: &own, carried: &first, outer: &outer };
        start.count()
    });
    let mut trips = 0;
    if let Some(counted) = counted.flatten() {
        (trips, goes_on) = (max.map_or(counted, |max| counted.min(max)), false);
    }
    while goes_on && max.is_none_or(|max| trips < max) {
        *evaluations = evaluations.checked_sub(1 + deciding.nodes.len() as u64)?;
        trips += 1;
        if trips > TRIPS_MAX {
            return None;
        }
        (goes_on, state) = deciding.next(graph, body, &state)?;
    }
    let mut by = vec![pred];
    by.extend(deciding.carried.iter().filter_map(|&at| carried.get(at).copied()));
    by.extend(deciding.nodes.iter().flat_map(|node| node.inputs.iter().copied()));
    by.extend(body.results.first());
    by.retain(|output| graph.node(output.node).body != body.id);
    let by = folded_from(graph, by.into_iter().map(Given::Elements));
    Some((trips, by))
}

/// What a number of iterations depends on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Given {
    Elements(Output),
    Shape(Output),
}

/// The outputs whose elements something is folded from, in order: feeding one of them may change it.
///
/// A fed tensor has the shape that the graph says, so that a shape depends only on elements that say sizes.
pub(super) fn folded_from(
    graph: &GraphSnapshot,
    needed: impl IntoIterator<Item = Given>,
) -> Vec<Output> {
    let mut elements: FxHashSet<Output> = FxHashSet::default();
    let mut shapes: FxHashSet<NodeId> = FxHashSet::default();
    let mut stack: Vec<Given> = needed.into_iter().collect();
    while let Some(given) = stack.pop() {
        let (is_new, node) = match given {
            Given::Elements(output) => (elements.insert(output), graph.node(output.node)),
            Given::Shape(output) => (shapes.insert(output.node), graph.node(output.node)),
        };
        if !is_new {
            continue;
        }
        let class = node.op.class();
        let is_metadata = matches!(class, Class::Host(Host::Metadata));
        let of_elements = matches!(given, Given::Elements(_));
        if let Class::Flow(Flow::Loop(op)) = &class {
            stack.extend(op.counted_by.iter().copied().map(Given::Elements));
        }
        for (at, &input) in node.inputs.iter().enumerate() {
            let reads = match is_metadata {
                true => reads_elements(node),
                false => of_elements || class.size_operand() == Some(at),
            };
            stack.push(if reads { Given::Elements(input) } else { Given::Shape(input) });
        }
    }
    let mut elements: Vec<Output> = elements.into_iter().collect();
    elements.sort_unstable();
    elements
}

/// Whether an operation looks at more of its operands than their shapes.
fn reads_elements(node: &Node) -> bool {
    !matches!(node.op.name(), "shape" | "size")
}

/// The part of a body that decides whether it runs again.
struct Deciding<'a> {
    /// Which of the carried tensors.
    carried: Vec<usize>,
    nodes: Vec<&'a Node>,
}

impl<'a> Deciding<'a> {
    fn new(graph: &GraphSnapshot, body: &'a Body, n_carried: usize) -> Option<Self> {
        let next = &body.results[1..];
        let (mut carried, mut needed) = (Vec::new(), FxHashSet::<NodeId>::default());
        let mut stack = vec![*body.results.first()?];
        let own: FxHashMap<NodeId, &Node> = body.nodes.iter().map(|n| (n.id, &**n)).collect();
        while let Some(output) = stack.pop() {
            if let Some(at) = body.params.iter().position(|param| *param == output) {
                if at >= n_carried {
                    return None;
                }
                if !carried.contains(&at) {
                    carried.push(at);
                    stack.push(*next.get(at)?);
                }
                continue;
            }
            let Some(node) = own.get(&output.node) else {
                outer(graph, output)?;
                continue;
            };
            if needed.insert(node.id) {
                is_simple(node).then_some(())?;
                stack.extend(&node.inputs);
            }
        }
        let nodes = body.nodes.iter().map(|node| &**node);
        Some(Self { carried, nodes: nodes.filter(|node| needed.contains(&node.id)).collect() })
    }

    /// Whether there is another iteration, and what is carried then.
    fn next(
        &self,
        graph: &GraphSnapshot,
        body: &Body,
        state: &[HostTensor],
    ) -> Option<(bool, Vec<HostTensor>)> {
        let params = self.carried.iter().map(|&at| body.params[at]);
        let mut values: FxHashMap<Output, HostTensor> = params.zip(state.iter().cloned()).collect();
        let value = |values: &FxHashMap<Output, HostTensor>, output: Output| {
            values.get(&output).cloned().or_else(|| outer(graph, output))
        };
        for node in &self.nodes {
            let inputs = node.inputs.iter().map(|&input| value(&values, input));
            let inputs: Vec<HostTensor> = inputs.collect::<Option<_>>()?;
            let results = node.op.eval(&inputs).ok()?;
            for (index, result) in results.into_iter().enumerate() {
                values.insert(Output { node: node.id, index: index as u32 }, result);
            }
        }
        let goes_on = value(&values, *body.results.first()?)?.scalar::<bool>().ok()?;
        let next = self.carried.iter().map(|&at| value(&values, *body.results.get(1 + at)?));
        Some((goes_on, next.collect::<Option<_>>()?))
    }
}

/// Whether an operation can be computed while building.
fn is_simple(node: &Node) -> bool {
    let is_small = |fact: &Fact| fact.shape().is_some_and(|shape| shape.len() <= 1);
    let is_pure = matches!(
        node.op.class(),
        Class::Elementwise(_) | Class::View(_) | Class::Host(Host::Constant(_))
    );
    is_pure && node.controls.is_empty() && node.facts.iter().all(is_small)
}

/// The elements of an output that does not depend on the run: a constant, small known integers, or what one operation
/// makes of such.
fn outer(graph: &GraphSnapshot, output: Output) -> Option<HostTensor> {
    let own = |output: Output| {
        let node = graph.node(output.node);
        match (&node.facts.get(output.index as usize)?.contents, node.op.class()) {
            (Contents::Known(tensor), _) => Some(tensor.clone()),
            (_, Class::Host(Host::Constant(tensor))) => Some(tensor.clone()),
            _ => None,
        }
    };
    own(output).or_else(|| {
        let node = graph.node(output.node);
        is_simple(node).then_some(())?;
        let inputs = node.inputs.iter().map(|&input| own(input)).collect::<Option<Vec<_>>>()?;
        node.op.eval(&inputs).ok()?.into_iter().nth(output.index as usize)
    })
}

/// Whether a loop of so many iterations is better written out: it is short, has no effects, and draws no random elements.
pub(super) fn is_unrolled(op: &LoopOp) -> bool {
    let Some(trips) = op.trips.filter(|&trips| !op.has_pred || trips <= TRIPS_MAX) else {
        return false;
    };
    fn nodes(body: &Body) -> Option<u64> {
        let mut n = 0u64;
        for node in &body.nodes {
            n = n.saturating_add(match node.op.class() {
                Class::State(_) | Class::Random(_) | Class::Control(_) | Class::Queue(_) => {
                    return None;
                }
                Class::Flow(Flow::Loop(op)) if op.unrolled => {
                    nodes(&op.body)?.saturating_mul(op.trips?)
                }
                Class::Flow(_) => return None,
                _ if !node.controls.is_empty() => return None,
                _ => 1,
            });
        }
        Some(n.max(1))
    }
    // A loop of strings is no work for a GPU, and shapes that may change are looked at in the run.
    let is_plain = |fact: &Fact| {
        let dims = fact.dims.dims();
        fact.dtype != DType::String && dims.is_some_and(|dims| !dims.contains(&Dim::Unknown))
    };
    if !op.expected.iter().all(is_plain) || op.body.facts.iter().any(|f| f.dtype == DType::String) {
        return false;
    }
    nodes(&op.body).is_some_and(|n| n.saturating_mul(trips) <= UNROLLED_MAX)
        && !has_size_params(&op.body)
}

/// Whether sizes are computed from elements that the body is given.
fn has_size_params(body: &Body) -> bool {
    let mut sizes: FxHashSet<Output> = FxHashSet::default();
    for node in body.nodes.iter().rev() {
        let class = node.op.class();
        let mut own = (0..node.facts.len() as u32).map(|index| Output { node: node.id, index });
        let all = own.any(|output| sizes.contains(&output));
        let is_metadata = matches!(class, Class::Host(Host::Metadata));
        let reads_elements = reads_elements(node);
        for (at, input) in node.inputs.iter().enumerate() {
            if class.size_operand() == Some(at) || ((all || is_metadata) && reads_elements) {
                sizes.insert(*input);
            }
        }
    }
    body.params.iter().chain(&body.captures).any(|given| sizes.contains(given))
}
