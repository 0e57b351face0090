//! Queues: elements that runs leave for later runs. What an operation takes, it takes before its run begins, or inside of
//! a branch or loop when the run comes to it; what it puts comes into the queue when the run has succeeded.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`. There, both happen in the middle of a step, and a step that
//! fails later has lost what it took.

mod amount;
mod choice;
mod infer;
mod saved;
mod spec;

use std::panic::Location;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    Attributes, Backward, Class, DType, Dims, Fact, Graph, HostTensor, Op, OpError, Operation,
    Output, Tensor,
};
pub use amount::Amount;
use choice::Choice;
pub(crate) use saved::SAVED;

/// In which order elements leave a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// As they came.
    Fifo,
    /// As they came; elements of one batch may differ in sizes that the queue does not say, and are filled up with
    /// zeros, false or empty strings to the largest of the batch.
    PaddingFifo,
    /// At random, of at least one more than `min_after_dequeue` until the queue is closed. The same seed gives the
    /// same choices.
    RandomShuffle {
        /// So many stay behind, for the sake of mixing.
        min_after_dequeue: usize,
        /// Of the generator.
        seed: u64,
    },
    /// The least first component first: that is a scalar of i64. Equal ones as they came.
    Priority,
}

/// What a queue holds, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// The name of the queue's node, or the shared one.
    pub name: String,
    /// The container that it is in; none is the default one.
    pub container: Option<Arc<str>>,
    /// The order.
    pub kind: QueueKind,
    /// How many elements at most before who puts one waits; `None` is without bound.
    pub capacity: Option<usize>,
    /// The dtype and sizes of each component of an element.
    pub components: Vec<(DType, Dims)>,
    /// What it is for.
    pub role: QueueRole,
}

/// What a queue is for: what is kept like one has other operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum QueueRole {
    /// A [`Queue`].
    #[default]
    Queue,
    /// A [`StagingArea`](crate::StagingArea).
    Staging,
    /// A [`ConditionalAccumulator`](crate::ConditionalAccumulator).
    Accumulator(Reduction),
    /// A [`Barrier`](crate::Barrier).
    Barrier,
    /// A [`MapStagingArea`](crate::MapStagingArea): the first component is the key.
    MapStaging,
    /// A [`SparseConditionalAccumulator`](crate::SparseConditionalAccumulator): the component is the whole that
    /// gradients are slices of.
    SparseAccumulator(Reduction),
}

/// What becomes of gradients that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reduction {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

/// What an operation does with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueAction {
    /// The queue itself.
    Make,
    /// Puts an element: its components are the inputs.
    Enqueue,
    /// Puts as many elements as the inputs have rows.
    EnqueueMany,
    /// Takes an element: its components are the outputs.
    Dequeue,
    /// Takes so many elements, as batches. `None` is as many as an input says.
    DequeueMany(Option<usize>),
    /// Takes so many elements, or those that are left in a closed queue, as batches. `None` is as many as an input
    /// says.
    DequeueUpTo(Option<usize>),
    /// Gives the number of elements.
    Size,
    /// Gives whether the queue is closed.
    IsClosed,
    /// Closes the queue; cancels who waits to put elements, if so.
    Close {
        /// Whether they are cancelled, or wait on.
        cancel_pending: bool,
    },
    /// Gives the element at this index, and leaves it there. `None` is the index that an input says.
    Peek(Option<usize>),
    /// Takes all elements out.
    Clear,
    /// Puts a gradient, of the step that is the last input: the others are the gradient, or of a sparse one its indices
    /// and values.
    ApplyGradient,
    /// Takes all gradients, once there are so many. `None` is as many as an input says.
    TakeGradient(Option<usize>),
    /// Sets the step below which gradients are too old.
    SetStep,
    /// Puts a component of elements: the first input, with a row for each key in the second.
    InsertMany {
        /// Which.
        component: usize,
    },
    /// Takes elements that are complete, as batches.
    TakeMany {
        /// How many; `None` is as many as an input says.
        n: Option<usize>,
        /// Whether those that are left do where no others can come.
        up_to: bool,
    },
    /// Gives the number of elements that lack a component.
    IncompleteSize,
    /// Puts components of the element of a key: the inputs.
    Put {
        /// Which: a bit for each.
        places: u64,
    },
    /// Takes the element of a key: its components are the outputs.
    GetKey,
    /// Gives the element of a key, and leaves it there.
    PeekKey,
}

impl QueueAction {
    /// The places of the components that it puts of elements that come in parts.
    pub fn parts(self) -> impl Iterator<Item = usize> + Clone {
        let (places, component) = match self {
            Self::InsertMany { component } => (0, Some(component)),
            Self::Put { places } => (places, None),
            _ => (0, None),
        };
        let own = (0..u64::BITS as usize).filter(move |place| places >> place & 1 == 1);
        component.into_iter().chain(own)
    }
}

/// An operation on a queue. After the components, its inputs are what must be known before a run: the number of
/// elements, unless it is fixed, a key or several, and the index of the queue, if it is one of several.
#[derive(Debug, Clone)]
pub struct QueueOp {
    /// The queue; of several, what they have in common.
    pub queue: Arc<QueueSpec>,
    /// What it does.
    pub action: QueueAction,
    /// The queues that the run chooses from, if it does.
    pub among: Arc<[Arc<QueueSpec>]>,
}

/// What a new queue is to be.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// The order.
    pub kind: QueueKind,
    /// How many elements at most; `None` is without bound.
    pub capacity: Option<usize>,
    /// Queues of the same shared name and container are one queue in a session. They must be alike.
    pub shared_name: Option<String>,
}

impl Default for QueueOptions {
    /// First in, first out, without bound, of its own.
    fn default() -> Self {
        Self { kind: QueueKind::Fifo, capacity: None, shared_name: None }
    }
}

/// A queue of a graph. Each session has elements of its own in it.
///
/// Runs that need an element wait until there is one, in the order in which they came, and so do those that put one
/// into a full queue. A run takes all that it needs at once and before it begins, and puts all that it puts when it
/// has succeeded: if it fails, every queue is as it was. An element that a run puts can be taken by later runs only.
///
/// Inside of branches and loops, a run takes when it comes to it and waits there, in each iteration of a loop; it waits
/// for room for what it puts there before it stores anything.
#[derive(Debug, Clone)]
pub struct Queue {
    graph: Graph,
    spec: Arc<QueueSpec>,
    choice: Option<Choice>,
}

impl Graph {
    /// A queue whose elements come out as they went in. `components` are the dtypes and sizes of what an element
    /// consists of.
    ///
    /// # Errors
    /// Recorded: a queue of no components.
    #[track_caller]
    pub fn fifo_queue<D: Into<Dims>>(
        &self,
        name: &str,
        capacity: usize,
        components: impl IntoIterator<Item = (DType, D)>,
    ) -> Queue {
        let capacity = Some(capacity);
        self.queue(name, components, QueueOptions { capacity, ..QueueOptions::default() })
    }

    /// A queue of any kind.
    ///
    /// # Errors
    /// Recorded: a queue of no components or no room, one by priority whose first component is no scalar of i64, one
    /// that keeps back more elements than it has room for.
    #[track_caller]
    pub fn queue<D: Into<Dims>>(
        &self,
        name: &str,
        components: impl IntoIterator<Item = (DType, D)>,
        options: QueueOptions,
    ) -> Queue {
        let QueueOptions { kind, capacity, shared_name } = options;
        let components: Vec<(DType, Dims)> =
            components.into_iter().map(|(dtype, dims)| (dtype, dims.into())).collect();
        let (name, container) = (name.to_owned(), self.container_now());
        let role = QueueRole::Queue;
        self.kept(QueueSpec { name, container, kind, capacity, components, role }, shared_name)
    }

    /// A queue or what is kept like one: its name is that of its node, or the shared one.
    #[track_caller]
    pub(crate) fn kept(&self, mut spec: QueueSpec, shared_name: Option<String>) -> Queue {
        let (queue, among) = (Arc::new(spec.clone()), Arc::default());
        let op = QueueOp { queue, action: QueueAction::Make, among };
        let node = self.apply_named(op, &[], &spec.name).node();
        spec.name = match shared_name {
            Some(shared) => name_of_shared(spec.container.as_deref(), &shared),
            None => node.name.to_string(),
        };
        Queue::new(self.clone(), Arc::new(spec))
    }
}

/// The name of what is shared in a container. No node has a name like that.
pub(crate) fn name_of_shared(container: Option<&str>, shared: &str) -> String {
    match container {
        Some(container) => format!("shared in {container}: {shared}"),
        None => format!("shared: {shared}"),
    }
}

impl Queue {
    pub(crate) fn new(graph: Graph, spec: Arc<QueueSpec>) -> Self {
        Self { graph, spec, choice: None }
    }

    /// The graph that it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Whether the run chooses it.
    pub(crate) fn is_selected(&self) -> bool {
        self.choice.is_some()
    }

    pub(crate) fn shared_spec(&self) -> Arc<QueueSpec> {
        self.spec.clone()
    }

    /// What it holds. Of a queue that is chosen in the run, what those have in common that it is one of.
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    #[track_caller]
    pub(crate) fn apply(&self, action: QueueAction, inputs: &[&Tensor]) -> Tensor {
        self.apply_at(action, inputs, Location::caller())
    }

    /// As [`Self::apply`], for the caller's line `at`.
    pub(crate) fn apply_at(
        &self,
        action: QueueAction,
        inputs: &[&Tensor],
        at: &'static Location<'static>,
    ) -> Tensor {
        let mut inputs: SmallVec<[Tensor; 4]> = inputs.iter().copied().cloned().collect();
        let mut among = Arc::default();
        let tensor = |node| Tensor::new(self.graph.clone(), Output { node, index: 0 });
        if let Some(choice) = &self.choice {
            if choice.queues.is_empty() {
                let refused = Arc::new(choice::refused());
                return tensor(self.graph.append(refused, &inputs, "selected", at));
            }
            inputs.push(choice.index.clone());
            among = choice.queues.clone();
        }
        let op = QueueOp { queue: self.spec.clone(), action, among };
        let name =
            format!("{}_{}", self.spec.name.rsplit('/').next().unwrap_or("queue"), op.name());
        tensor(self.graph.append(Arc::new(op), &inputs, &name, at))
    }

    /// An action on so many elements.
    #[track_caller]
    pub(crate) fn apply_to(
        &self,
        amount: Amount,
        action: fn(Option<usize>) -> QueueAction,
    ) -> Vec<Tensor> {
        let taken = match amount {
            Amount::Fixed(n) => self.apply(action(Some(n)), &[]),
            Amount::Computed(n) => self.apply(action(None), &[&n]),
        };
        taken.operation().outputs()
    }

    /// Puts an element with these components when the run has succeeded; the run waits for room before it begins.
    ///
    /// # Errors
    /// Recorded: another number of components, or other dtypes or sizes. In a run: `Cancelled` if the queue is
    /// closed.
    #[track_caller]
    pub fn enqueue(&self, components: &[&Tensor]) -> Operation {
        self.apply(QueueAction::Enqueue, components).operation()
    }

    /// Puts an element for each row of the components. The run waits for room for one; the others may be more than
    /// the capacity. Of no rows nothing is put, and the run waits for no room and may find the queue closed, if it is
    /// known before the run that there are none: their number is fixed, or a component is fed.
    ///
    /// # Errors
    /// As [`Self::enqueue`]; components of different numbers of rows.
    #[track_caller]
    pub fn enqueue_many(&self, components: &[&Tensor]) -> Operation {
        self.apply(QueueAction::EnqueueMany, components).operation()
    }

    /// The components of an element, which a run that needs one of them takes.
    ///
    /// # Errors
    /// In a run: `OutOfRange` if the queue is closed and empty.
    #[track_caller]
    pub fn dequeue(&self) -> Vec<Tensor> {
        self.apply(QueueAction::Dequeue, &[]).operation().outputs()
    }

    /// The components of `n` elements, as batches with a new first axis. `n` is a number, or a tensor whose value is
    /// known before the run: see [`Amount`].
    ///
    /// # Errors
    /// Recorded: components of sizes that the queue does not say; an `n` that is no scalar of i32 or i64. In a run:
    /// `OutOfRange` if the queue is closed and has fewer elements, which stay there; `InvalidArgument` for an `n`
    /// below 0, `Unimplemented` for one that is not known before the run.
    #[track_caller]
    pub fn dequeue_many(&self, n: impl Into<Amount>) -> Vec<Tensor> {
        self.apply_to(n.into(), QueueAction::DequeueMany)
    }

    /// As [`Self::dequeue_many`], but of a closed queue gives those that are left, if there is one.
    ///
    /// # Errors
    /// As [`Self::dequeue_many`]; `OutOfRange` only of an empty queue.
    #[track_caller]
    pub fn dequeue_up_to(&self, n: impl Into<Amount>) -> Vec<Tensor> {
        self.apply_to(n.into(), QueueAction::DequeueUpTo)
    }

    /// How many elements there are when the run begins: a scalar of i32.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        self.apply(QueueAction::Size, &[])
    }

    /// Whether the queue is closed when the run begins.
    #[track_caller]
    pub fn is_closed(&self) -> Tensor {
        self.apply(QueueAction::IsClosed, &[])
    }

    /// Closes the queue: nothing more is put into it, and what is there can be taken. Who waits for room in it already
    /// still gets it.
    ///
    /// # Errors
    /// In a run: `Cancelled` if it is closed already.
    #[track_caller]
    pub fn close(&self) -> Operation {
        self.apply(QueueAction::Close { cancel_pending: false }, &[]).operation()
    }

    /// Closes the queue, also one that [`Self::close`] has closed, and ends runs that wait for room with `Cancelled`.
    ///
    /// # Errors
    /// As [`Self::close`], if it was closed like this.
    #[track_caller]
    pub fn close_and_cancel(&self) -> Operation {
        self.apply(QueueAction::Close { cancel_pending: true }, &[]).operation()
    }
}

impl Op for QueueOp {
    fn name(&self) -> &str {
        match (self.queue.role, self.action) {
            (QueueRole::Staging, QueueAction::Make) => "staging_area",
            (QueueRole::Staging, QueueAction::Enqueue) => "put",
            (QueueRole::Staging, QueueAction::Dequeue) => "get",
            (QueueRole::Accumulator(_), QueueAction::Make) => "accumulator",
            (QueueRole::Accumulator(_), QueueAction::Size) => "num_accumulated",
            (QueueRole::Barrier, QueueAction::Make) => "barrier",
            (QueueRole::Barrier, QueueAction::Size) => "ready_size",
            (QueueRole::MapStaging, QueueAction::Make) => "map_staging_area",
            (QueueRole::MapStaging, QueueAction::Dequeue) => "get_any",
            (QueueRole::SparseAccumulator(_), QueueAction::Make) => "sparse_accumulator",
            (QueueRole::SparseAccumulator(_), QueueAction::Size) => "num_accumulated",
            (_, action) => action.name(),
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        self.queue.check()?;
        self.expect_own()?;
        self.expect_alike()?;
        let n_early = self.n_early();
        let Some(n_components) = inputs.len().checked_sub(n_early) else {
            return Err(OpError::Arity { expected: n_early, found: inputs.len() });
        };
        let (inputs, early) = inputs.split_at(n_components);
        self.expect_inputs(inputs, early)?;
        self.outputs(early)
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(OpError::Invalid("a queue has no elements outside of a session".into()))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Queue(self)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(self.encoded())
    }
}

impl QueueAction {
    /// Whether what it gives is there before a run begins, so that nothing is left to do then.
    pub fn is_source(self) -> bool {
        use QueueAction::{Dequeue, DequeueMany, DequeueUpTo, Peek, TakeGradient, TakeMany};
        use QueueAction::{GetKey, IncompleteSize, IsClosed, PeekKey, Size};
        match self {
            Dequeue | DequeueMany(_) | DequeueUpTo(_) | Peek(_) | GetKey | PeekKey => true,
            TakeGradient(_) | TakeMany { .. } => true,
            action => matches!(action, Size | IncompleteSize | IsClosed),
        }
    }
}

impl QueueOp {
    /// Whether its outputs are there before a run begins.
    pub fn is_source(&self) -> bool {
        self.action.is_source()
    }

    /// Whether its first input that must be known before a run is the number of elements.
    pub fn has_number(&self) -> bool {
        use QueueAction::{DequeueMany, DequeueUpTo, Peek, TakeGradient, TakeMany};
        let number = match self.action {
            DequeueMany(n) | DequeueUpTo(n) | Peek(n) | TakeGradient(n) | TakeMany { n, .. } => n,
            _ => return false,
        };
        number.is_none()
    }

    /// Whether its last input is a key or several, which must be known before a run.
    pub fn has_keys(&self) -> bool {
        use QueueAction::{GetKey, InsertMany, PeekKey, Put};
        matches!(self.action, InsertMany { .. } | Put { .. } | GetKey | PeekKey)
    }

    /// How many of its inputs, the last ones, must be known before a run.
    pub fn n_early(&self) -> usize {
        let is_chosen = !self.among.is_empty();
        [self.has_number(), self.has_keys(), is_chosen].into_iter().map(usize::from).sum()
    }
}
