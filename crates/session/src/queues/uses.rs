//! What plans do with queues: which operations, and which feeds and fetches are theirs.

use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;

use convoke_compiler::Signature;
use convoke_graph_core::{
    Class, DType, Error, ErrorKind, GraphSnapshot, Host, HostTensor, NodeId, Output, QueueAction,
    QueueOp, QueueSpec, ReaderAction, ReaderOp, ReaderSpec, Result, Shape,
};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use crate::feeds::FeedData;

/// What a run does with a queue.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    /// The node.
    pub id: NodeId,
    pub queue: Arc<QueueSpec>,
    pub action: QueueAction,
    /// The node's name, for errors.
    pub node: Arc<str>,
    /// The caller's line.
    pub at: &'static Location<'static>,
    /// Of what it takes, the outputs that nobody feeds; of what it puts, the places among the plan's fetches.
    pub places: Vec<usize>,
}

/// What a run does with a reader.
#[derive(Debug, Clone)]
pub(crate) struct ReaderUse {
    /// The node.
    pub id: NodeId,
    pub reader: Arc<ReaderSpec>,
    /// The queue of file names, if it takes from one.
    pub queue: Option<Arc<QueueSpec>>,
    pub action: ReaderAction,
    /// The node's name, for errors.
    pub node: Arc<str>,
    /// The caller's line.
    pub at: &'static Location<'static>,
    /// The outputs that nobody feeds.
    pub places: Vec<usize>,
    state: Option<Given>,
}

/// What is known before a run: fed, at this place, or constant.
#[derive(Debug, Clone)]
enum Given {
    Fed(usize),
    Constant(HostTensor),
}

/// What a run does with queues and readers, each in the order of the nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    pub queues: Vec<Use>,
    pub readers: Vec<ReaderUse>,
}

impl Uses {
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.readers.is_empty()
    }

    /// The places among what is fed of the states that readers are restored from.
    pub fn fed_states(&self) -> impl Iterator<Item = (usize, &ReaderUse)> {
        self.readers.iter().filter_map(|used| match used.state {
            Some(Given::Fed(at)) => Some((at, used)),
            _ => None,
        })
    }

    /// The queues that the run puts into, each once.
    pub fn fills(&self) -> SmallVec<[Arc<QueueSpec>; 2]> {
        let mut fills: SmallVec<[Arc<QueueSpec>; 2]> = SmallVec::new();
        for used in self.queues.iter().filter(|used| puts(used.action)) {
            if !fills.iter().any(|queue| queue.name == used.queue.name) {
                fills.push(used.queue.clone());
            }
        }
        fills
    }
}

/// Whether an action puts elements.
pub(crate) fn puts(action: QueueAction) -> bool {
    matches!(action, QueueAction::Enqueue | QueueAction::EnqueueMany)
}

impl ReaderUse {
    /// The state that is restored. `data` is what is fed.
    pub fn state<'a>(&'a self, data: &'a [FeedData<'_>]) -> Result<Cow<'a, HostTensor>> {
        match &self.state {
            Some(Given::Constant(state)) => Ok(Cow::Borrowed(state)),
            Some(Given::Fed(at)) => {
                let fed = data.get(*at).ok_or_else(|| Error::internal("a state is not fed"))?;
                Ok(Cow::Owned(fed.to_tensor()?))
            }
            None => Err(Error::internal("a reader is restored from nothing")),
        }
    }
}

/// A signature with what it takes and reads as feeds and what it puts as fetches, and the operations that do.
///
/// # Errors
/// A reader is restored from what is computed in the run.
pub(crate) fn with_queues(
    graph: &GraphSnapshot,
    signature: &Signature,
) -> Result<(Signature, Uses)> {
    let mut wider = signature.clone();
    let mut fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
    let found = found(graph, signature, &fed);
    let mut uses = Uses::default();
    for &id in &found {
        let Class::Queue(op) = graph.node(id).op.class() else { continue };
        uses.queues.push(queue_use(graph, id, op, &mut wider, &mut fed));
    }
    for &id in &found {
        let Class::Reader(op) = graph.node(id).op.class() else { continue };
        let node = graph.node(id);
        let state = match node.inputs.first() {
            Some(&input) => {
                Some(known(graph, signature, input).map_err(|e| e.with_node(&*node.name))?)
            }
            None => None,
        };
        let ReaderOp { reader, action, queue } = op.clone();
        let places = feed_outputs(graph, id, &mut wider, &mut fed);
        uses.readers.push(ReaderUse {
            id,
            reader,
            queue,
            action,
            node: node.name.clone(),
            at: node.location,
            places,
            state,
        });
    }
    Ok((wider, uses))
}

/// The operations that put into queues among those that `target` needs.
pub(crate) fn puts_of(graph: &GraphSnapshot, target: NodeId) -> Vec<NodeId> {
    let targets = vec![target];
    let signature = Signature { targets, ..Signature::default() };
    let mut found = found(graph, &signature, &FxHashSet::default());
    found.retain(|&id| match graph.node(id).op.class() {
        Class::Queue(op) => puts(op.action),
        _ => false,
    });
    found
}

/// The operations on queues and readers that `signature` needs, in order.
fn found(graph: &GraphSnapshot, signature: &Signature, fed: &FxHashSet<Output>) -> Vec<NodeId> {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut found: Vec<NodeId> = Vec::new();
    let fetched = signature.fetches.iter().filter(|output| !fed.contains(output)).map(|f| f.node);
    let mut stack: Vec<NodeId> = fetched.chain(signature.targets.iter().copied()).collect();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        let acts = match node.op.class() {
            Class::Queue(op) => op.action != QueueAction::Make,
            Class::Reader(op) => op.action != ReaderAction::Make,
            _ => false,
        };
        if acts && node.invalid.is_none() {
            found.push(id);
        }
        let inputs = node.inputs.iter().filter(|input| !fed.contains(input));
        stack.extend(inputs.map(|input| input.node).chain(node.controls.iter().copied()));
    }
    found.sort_unstable();
    found
}

fn queue_use(
    graph: &GraphSnapshot,
    id: NodeId,
    op: &QueueOp,
    signature: &mut Signature,
    fed: &mut FxHashSet<Output>,
) -> Use {
    let node = graph.node(id);
    let places = if op.is_source() {
        feed_outputs(graph, id, signature, fed)
    } else {
        let place = |&input: &Output| {
            let at = signature.fetches.iter().position(|&fetch| fetch == input);
            at.filter(|place| !signature.residents.contains(place)).unwrap_or_else(|| {
                signature.fetches.push(input);
                signature.fetches.len() - 1
            })
        };
        node.inputs.iter().map(place).collect()
    };
    let (name, at) = (node.name.clone(), node.location);
    Use { id, queue: op.queue.clone(), action: op.action, node: name, at, places }
}

/// Feeds the outputs of a node that nobody feeds, and says which. It does nothing in the run itself, and what comes
/// before it still does.
fn feed_outputs(
    graph: &GraphSnapshot,
    id: NodeId,
    signature: &mut Signature,
    fed: &mut FxHashSet<Output>,
) -> Vec<usize> {
    let node = graph.node(id);
    let mut places = Vec::new();
    for index in 0..node.facts.len() as u32 {
        let output = Output { node: id, index };
        if fed.insert(output) {
            signature.feeds.push(output);
            places.push(index as usize);
        }
    }
    signature.targets.retain(|&target| target != id);
    signature.targets.extend(&node.controls);
    places
}

/// What is known of a tensor before the run.
fn known(graph: &GraphSnapshot, signature: &Signature, output: Output) -> Result<Given> {
    if let Some(at) = signature.feeds.iter().position(|&feed| feed == output) {
        return Ok(Given::Fed(at));
    }
    match graph.node(output.node).op.class() {
        Class::Host(Host::Constant(state)) => Ok(Given::Constant(state.clone())),
        _ => {
            let message = "unsupported: a state that is computed in the run; fetch it, and feed it to a later one";
            Err(Error::new(ErrorKind::Unimplemented, message))
        }
    }
}

/// Checks the shapes of what a run puts, before it stores anything. `fetched` knows dtypes and shapes of what it fetches.
///
/// # Errors
/// Sizes that a queue does not take, or rows of different numbers.
pub(crate) fn check_puts<'s>(
    uses: &Uses,
    fetched: &dyn Fn(usize) -> Option<(DType, &'s Shape)>,
) -> Result<()> {
    for used in uses.queues.iter().filter(|used| puts(used.action)) {
        let shapes = used.places.iter().filter_map(|&place| Some(fetched(place)?.1));
        check_put(used, &shapes.collect::<SmallVec<[&Shape; 4]>>())?;
    }
    Ok(())
}

/// Checks the shapes of what one operation puts.
///
/// # Errors
/// As [`check_puts`].
pub(crate) fn check_put(used: &Use, shapes: &[&Shape]) -> Result<()> {
    let checked = match used.action {
        QueueAction::Enqueue => used.queue.check_element(shapes),
        _ => check_rows(&used.queue, shapes),
    };
    checked.map_err(|e| e.with_node(&*used.node))
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
