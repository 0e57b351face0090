//! What plans do with queues: which operations, and which feeds and fetches are theirs.

use std::sync::Arc;

use convoke_compiler::Signature;
use convoke_graph_core::{
    Class, DType, Error, GraphSnapshot, NodeId, Output, QueueAction, QueueSpec, Result, Shape,
};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

/// What a run does with a queue.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    pub queue: Arc<QueueSpec>,
    pub action: QueueAction,
    /// The node's name, for errors.
    pub node: Arc<str>,
    /// Of what it takes, the outputs that nobody feeds; of what it puts, the places among the plan's fetches.
    pub places: Vec<usize>,
}

/// A signature with what its queue operations take as feeds and put as fetches, and those operations.
pub(crate) fn with_queues(graph: &GraphSnapshot, signature: &Signature) -> (Signature, Vec<Use>) {
    let mut signature = signature.clone();
    let mut fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut found: Vec<NodeId> = Vec::new();
    let fetched = signature.fetches.iter().filter(|output| !fed.contains(output)).map(|f| f.node);
    let mut stack: Vec<NodeId> = fetched.chain(signature.targets.iter().copied()).collect();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        if let Class::Queue(op) = node.op.class()
            && op.action != QueueAction::Make
            && node.invalid.is_none()
        {
            found.push(id);
        }
        let inputs = node.inputs.iter().filter(|input| !fed.contains(input));
        stack.extend(inputs.map(|input| input.node).chain(node.controls.iter().copied()));
    }
    found.sort_unstable();
    let mut uses = Vec::new();
    for id in found {
        let node = graph.node(id);
        let Class::Queue(op) = node.op.class() else { continue };
        let mut places = Vec::new();
        if op.is_source() {
            for index in 0..node.facts.len() as u32 {
                let output = Output { node: id, index };
                if fed.insert(output) {
                    signature.feeds.push(output);
                    places.push(index as usize);
                }
            }
            // It does nothing in the run itself, and what comes before it still does.
            signature.targets.retain(|&target| target != id);
            signature.targets.extend(&node.controls);
        } else {
            for &input in &node.inputs {
                let at = signature.fetches.iter().position(|&fetch| fetch == input);
                places.push(at.unwrap_or_else(|| {
                    signature.fetches.push(input);
                    signature.fetches.len() - 1
                }));
            }
        }
        let (queue, action, node) = (op.queue.clone(), op.action, node.name.clone());
        uses.push(Use { queue, action, node, places });
    }
    (signature, uses)
}

/// Checks the shapes of what a run puts, before it stores anything. `fetched` knows dtypes and shapes of what it fetches.
///
/// # Errors
/// Sizes that a queue does not take, or rows of different numbers.
pub(crate) fn check_puts<'s>(
    uses: &[Use],
    fetched: &dyn Fn(usize) -> Option<(DType, &'s Shape)>,
) -> Result<()> {
    for used in uses {
        let shapes: SmallVec<[&Shape; 4]> = match used.action {
            QueueAction::Enqueue | QueueAction::EnqueueMany => {
                used.places.iter().filter_map(|&place| Some(fetched(place)?.1)).collect()
            }
            _ => continue,
        };
        let checked = match used.action {
            QueueAction::Enqueue => used.queue.check_element(&shapes),
            _ => check_rows(&used.queue, &shapes),
        };
        checked.map_err(|e| e.with_node(&*used.node))?;
    }
    Ok(())
}

fn check_rows(queue: &QueueSpec, shapes: &[&Shape]) -> Result<()> {
    let mut rows: SmallVec<[Shape; 4]> = SmallVec::new();
    let n = shapes.first().and_then(|shape| shape.dims().first().copied());
    for (i, shape) in shapes.iter().enumerate() {
        match shape.dims().split_first() {
            Some((own, rest)) if Some(*own) == n => rows.push(Shape::new(rest)?),
            _ => {
                let n = n.map_or_else(|| "no".to_owned(), |n| n.to_string());
                let message = format!("component {i} is {shape}, and the first has {n} rows");
                return Err(Error::invalid(message));
            }
        }
    }
    queue.check_element(&rows.iter().collect::<SmallVec<[&Shape; 4]>>())
}
