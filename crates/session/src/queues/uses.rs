//! What plans do with queues: which operations, and which feeds and fetches are theirs.

use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;

use convoke_compiler::Signature;
use convoke_graph_core::{
    Body, Class, Error, ErrorKind, Flow, GraphSnapshot, HostTensor, Node, NodeId, Output,
    QueueAction, QueueOp, QueueSpec, ReaderAction, ReaderOp, ReaderSpec, Result, TableAction,
    TableSpec,
};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::early::{Early, Given, known, value};
use super::parts::Key;
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
    /// What must be known first.
    pub early: Early,
    /// The keys of what it puts, takes or looks at.
    pub keys: Arc<[Key]>,
    /// How many elements it waits for room for, if it does; 0 if that is at the end of the run.
    pub rooms: usize,
    pub own: Own,
}

/// What a run that is under way has of a queue.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Own {
    /// Room for so many elements.
    pub rooms: usize,
    /// How often it was noted that it may put.
    pub coming: usize,
}

impl Use {
    fn new(node: &Node, op: &QueueOp, early: Early, places: Vec<usize>) -> Self {
        Self {
            id: node.id,
            queue: op.queue.clone(),
            action: op.action,
            node: node.name.clone(),
            at: node.location,
            places,
            early,
            keys: Arc::default(),
            rooms: 1,
            own: Own::default(),
        }
    }

    /// Whether it waits for room, and that at the end of the run.
    pub fn needs_room_late(&self) -> bool {
        self.needs_room() && self.rooms == 0
    }

    /// Whether it waits for room: it puts elements, as far as is known.
    pub fn needs_room(&self) -> bool {
        puts(self.action) && !self.early.has_no_rows()
    }

    /// What it puts of elements that come in parts: keys and places of components.
    pub fn parts(&self) -> impl Iterator<Item = (&Key, usize)> {
        self.keys.iter().flat_map(|key| self.action.parts().map(move |place| (key, place)))
    }
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

/// What a run does with a table.
#[derive(Debug, Clone)]
pub(crate) struct TableUse {
    /// The node.
    pub id: NodeId,
    pub table: Arc<TableSpec>,
    pub action: TableAction,
    /// The node's name, for errors.
    pub node: Arc<str>,
    /// Of what it gives, the outputs that nobody feeds; of what it puts, the places among the plan's fetches.
    pub places: Vec<usize>,
}

/// What a run does with queues, readers and tables, each in the order of the nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    pub queues: Vec<Use>,
    pub readers: Vec<ReaderUse>,
    pub tables: Vec<TableUse>,
    /// The tables that it looks keys up in, each once.
    pub finds: Vec<Arc<TableSpec>>,
    /// What is computed before the run takes anything.
    pub wanted: Vec<Output>,
    /// What it may do with queues inside of branches and loops, in the order of the nodes.
    pub inside: Arc<[Arc<Use>]>,
}

impl Uses {
    pub fn is_empty(&self) -> bool {
        !self.has_lines() && !self.has_tables()
    }

    /// Whether it looks at tables that change, or changes some.
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty() || !self.finds.is_empty()
    }

    /// What it does with tables that changes them.
    pub fn changed_tables(&self) -> impl Iterator<Item = &TableUse> + Clone {
        self.tables.iter().filter(|used| used.changes())
    }

    /// The tables of which it looks at what they hold.
    pub fn looked_at(&self) -> impl Iterator<Item = &Arc<TableSpec>> {
        let sees = |action| matches!(action, TableAction::Size | TableAction::Export);
        let sources = self.tables.iter().filter(move |used| sees(used.action));
        sources.map(|used| &used.table).chain(&self.finds)
    }

    /// Whether it uses queues or readers, for which others may wait.
    pub fn has_lines(&self) -> bool {
        !self.queues.is_empty() || !self.readers.is_empty() || !self.inside.is_empty()
    }

    /// The places among what is fed of the states that readers are restored from.
    pub fn fed_states(&self) -> impl Iterator<Item = (usize, &ReaderUse)> {
        self.readers.iter().filter_map(|used| match used.state {
            Some(Given::Fed(at)) => Some((at, used)),
            _ => None,
        })
    }

    /// Leaves the room for what is put into queues that branches and loops may put into, too, to the end: a run that
    /// waited for room while it has some might wait for itself.
    pub fn reserve_late(&mut self) {
        let inside = self.inside_fills();
        for used in self.queues.iter_mut().filter(|used| puts(used.action)) {
            let among = used.early.among();
            let own = if among.is_empty() { std::slice::from_ref(&used.queue) } else { among };
            if own.iter().any(|queue| inside.iter().any(|other| other.name == queue.name)) {
                used.rooms = 0;
            }
        }
    }

    /// The queues that the run puts into, or may, each once.
    pub fn fills(&self) -> Fills {
        filled_by(self.queues.iter().chain(self.inside.iter().map(|used| &**used)))
    }

    /// Those of them that it may put into inside of branches and loops.
    pub fn inside_fills(&self) -> Fills {
        filled_by(self.inside.iter().map(|used| &**used))
    }
}

type Fills = SmallVec<[Arc<QueueSpec>; 2]>;

fn filled_by<'a>(uses: impl Iterator<Item = &'a Use>) -> Fills {
    let mut fills = Fills::new();
    for used in uses.filter(|used| puts(used.action)) {
        let among = used.early.among();
        let queues = if among.is_empty() { std::slice::from_ref(&used.queue) } else { among };
        for queue in queues {
            if !fills.iter().any(|other| other.name == queue.name) {
                fills.push(queue.clone());
            }
        }
    }
    fills
}

/// Whether an action puts elements.
pub(crate) fn puts(action: QueueAction) -> bool {
    use QueueAction::{ApplyGradient, Enqueue, EnqueueMany, InsertMany, Put};
    matches!(action, Enqueue | EnqueueMany | ApplyGradient | InsertMany { .. } | Put { .. })
}

impl TableUse {
    /// Whether it changes the table.
    pub fn changes(&self) -> bool {
        matches!(self.action, TableAction::Insert | TableAction::Remove)
    }
}

impl ReaderUse {
    /// The state that is restored. `data` is what is fed.
    pub fn state<'a>(&'a self, data: &'a [FeedData<'_>]) -> Result<Cow<'a, HostTensor>> {
        let state = self.state.as_ref();
        value(state.ok_or_else(|| Error::internal("a reader is restored from nothing"))?, data, &[])
    }
}

/// A signature with what it takes, reads and sees of tables as feeds and what it puts as fetches, and the operations that
/// do.
///
/// # Errors
/// A reader is restored from what is computed in the run; a number of elements or a choice of queues depends on what
/// only the run knows.
pub(crate) fn with_queues(
    graph: &GraphSnapshot,
    signature: &Signature,
) -> Result<(Signature, Uses)> {
    let mut wider = signature.clone();
    let mut fed: FxHashSet<Output> = signature.feeds.iter().copied().collect();
    let (found, inside) = found(graph, signature, &fed);
    let inside = inside.into_iter().filter_map(|id| inside_use(graph, id)).map(Arc::new);
    let mut uses = Uses { inside: inside.collect(), ..Uses::default() };
    for &id in &found {
        let Class::Queue(op) = graph.node(id).op.class() else { continue };
        let node = graph.node(id);
        let early = Early::of(graph, signature, node, op, &mut uses.wanted);
        let early = early.map_err(|e| e.with_node(&*node.name))?;
        uses.queues.push(queue_use(graph, id, op, early, &mut wider, &mut fed));
    }
    check_takes(&uses.queues)?;
    for &id in &found {
        let Class::Reader(op) = graph.node(id).op.class() else { continue };
        let node = graph.node(id);
        let state = match node.inputs.first() {
            Some(&input) => Some(known(graph, signature, input).ok_or_else(|| {
                let message = "unsupported: a state that is computed in the run; fetch it, and feed it to a later one";
                Error::new(ErrorKind::Unimplemented, message).with_node(&*node.name)
            })?),
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
    for &id in &found {
        let node = graph.node(id);
        let op = match node.op.class() {
            Class::Table(op) => op,
            Class::Flow(Flow::Find(op)) => {
                if !uses.finds.contains(&op.table) {
                    uses.finds.push(op.table.clone());
                }
                continue;
            }
            _ => continue,
        };
        let places = match op.is_source() {
            true => feed_outputs(graph, id, &mut wider, &mut fed),
            false => fetched(&node.inputs, &mut wider),
        };
        let (table, action, node) = (op.table.clone(), op.action, node.name.clone());
        uses.tables.push(TableUse { id, table, action, node, places });
    }
    Ok((wider, uses))
}

/// # Errors
/// Two takes of all that one accumulator has.
fn check_takes(uses: &[Use]) -> Result<()> {
    let takes = |used: &&Use| matches!(used.action, QueueAction::TakeGradient(_));
    for (i, used) in uses.iter().enumerate().filter(|(_, used)| takes(used)) {
        let before = uses[..i].iter().filter(takes);
        if let Some(other) = before.into_iter().find(|other| other.queue.name == used.queue.name) {
            let message = format!(
                "{} takes all gradients of the same accumulator, in the same run; share what one takes",
                other.node
            );
            return Err(Error::invalid(message).with_node(&*used.node));
        }
    }
    Ok(())
}

/// The operations that put into queues among those that `target` needs.
pub(crate) fn puts_of(graph: &GraphSnapshot, target: NodeId) -> Vec<NodeId> {
    let targets = vec![target];
    let signature = Signature { targets, ..Signature::default() };
    let (mut found, inside) = found(graph, &signature, &FxHashSet::default());
    found.extend(inside);
    found.retain(|&id| match graph.node(id).op.class() {
        Class::Queue(op) => puts(op.action),
        _ => false,
    });
    found
}

/// The operations on queues, readers and tables that `signature` needs, in order, and those in the bodies of branches
/// and loops.
fn found(
    graph: &GraphSnapshot,
    signature: &Signature,
    fed: &FxHashSet<Output>,
) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let (mut found, mut inside) = (Vec::new(), Vec::new());
    let fetched = signature.fetches.iter().filter(|output| !fed.contains(output)).map(|f| f.node);
    let mut stack: Vec<NodeId> = fetched.chain(signature.targets.iter().copied()).collect();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = graph.node(id);
        if acts(node) {
            found.push(id);
        }
        let mut bodies: Vec<&Body> = bodies(node).iter().collect();
        while let Some(body) = bodies.pop() {
            inside.extend(body.nodes.iter().filter(|node| acts(node)).map(|node| node.id));
            bodies.extend(body.nodes.iter().flat_map(|node| self::bodies(node)));
        }
        let inputs = node.inputs.iter().filter(|input| !fed.contains(input));
        stack.extend(inputs.map(|input| input.node).chain(node.controls.iter().copied()));
    }
    found.sort_unstable();
    inside.sort_unstable();
    inside.dedup();
    (found, inside)
}

/// Whether a node does something with a queue, reader or table.
fn acts(node: &Node) -> bool {
    let acts = match node.op.class() {
        Class::Queue(op) => op.action != QueueAction::Make,
        Class::Reader(op) => op.action != ReaderAction::Make,
        Class::Table(op) => op.action != TableAction::Make,
        Class::Flow(Flow::Find(_)) => true,
        _ => false,
    };
    acts && node.invalid.is_none()
}

fn bodies(node: &Node) -> &[Body] {
    match node.op.class() {
        Class::Flow(flow) => flow.bodies(),
        _ => &[],
    }
}

/// What a run does with a queue inside of a branch or loop.
fn inside_use(graph: &GraphSnapshot, id: NodeId) -> Option<Use> {
    let node = graph.node(id);
    let Class::Queue(op) = node.op.class() else { return None };
    let places = if op.is_source() { (0..node.facts.len()).collect() } else { Vec::new() };
    Some(Use::new(node, op, Early::inside(op), places))
}

fn queue_use(
    graph: &GraphSnapshot,
    id: NodeId,
    op: &QueueOp,
    early: Early,
    signature: &mut Signature,
    fed: &mut FxHashSet<Output>,
) -> Use {
    let node = graph.node(id);
    let places = if op.is_source() {
        feed_outputs(graph, id, signature, fed)
    } else {
        let n_components = node.inputs.len().saturating_sub(op.n_early());
        fetched(&node.inputs[..n_components], signature)
    };
    Use::new(node, op, early, places)
}

/// Fetches inputs of a node, and says their places.
fn fetched(inputs: &[Output], signature: &mut Signature) -> Vec<usize> {
    let place = |&input: &Output| {
        let at = signature.fetches.iter().position(|&fetch| fetch == input);
        at.filter(|place| !signature.residents.contains(place)).unwrap_or_else(|| {
            signature.fetches.push(input);
            signature.fetches.len() - 1
        })
    };
    inputs.iter().map(place).collect()
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
