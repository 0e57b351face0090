//! Barriers: elements whose components come from several runs, by key. Those that are complete can be taken.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`, `Barrier`. There, keys may be computed in the step, and a step
//! that fails later has lost what it took.

use crate::ops::queue::QueueRole;
use crate::{
    Amount, DType, Dim, Dims, Fact, Facts, Graph, OpError, Operation, Queue, QueueAction,
    QueueKind, QueueSpec, Tensor,
};

/// A barrier of a graph. Each session has elements of its own in it, on the host.
///
/// As with a [`Queue`], a run takes all that it needs before it begins, or waits for it, and inserts when it has
/// succeeded.
#[derive(Debug, Clone)]
pub struct Barrier {
    queue: Queue,
}

/// What is taken from a barrier: `n` elements, in the order in which their first components came.
#[derive(Debug, Clone)]
pub struct TakenElements {
    /// Their numbers in that order, the first of all `i64::MIN`: `[n]`.
    pub indices: Tensor,
    /// Their keys, strings: `[n]`.
    pub keys: Tensor,
    /// Their components, each with a first axis of `n`.
    pub components: Vec<Tensor>,
}

impl Graph {
    /// A barrier of elements that consist of `components`, dtypes and sizes. Barriers of the same shared name and
    /// container are one in a session, if they are alike.
    ///
    /// # Errors
    /// Recorded: no components, or sizes that are not specified.
    #[track_caller]
    pub fn barrier<D: Into<Dims>>(
        &self,
        name: &str,
        components: impl IntoIterator<Item = (DType, D)>,
        shared_name: Option<String>,
    ) -> Barrier {
        let components = components.into_iter().map(|(dtype, dims)| (dtype, dims.into())).collect();
        let (name, container) = (name.to_owned(), self.container_now());
        let (kind, role) = (QueueKind::Fifo, QueueRole::Barrier);
        let spec = QueueSpec { name, container, kind, capacity: None, components, role };
        Barrier { queue: self.kept(spec, shared_name) }
    }
}

impl Barrier {
    /// What it holds.
    pub fn spec(&self) -> &QueueSpec {
        self.queue.spec()
    }

    /// Inserts one component of the elements of these keys, a row of `values` for each, when the run has succeeded.
    /// `keys`, strings `[n]`, are known before the run, as an [`Amount`] is.
    ///
    /// # Errors
    /// Recorded: a component that there is not, values of another dtype or other sizes, keys that are no strings. In
    /// a run: `InvalidArgument` for a key that has the component already, or will have it by a run under way;
    /// `Cancelled` if the barrier is closed, unless all keys have other components there; `Unimplemented` for keys
    /// that are not known before the run.
    #[track_caller]
    pub fn insert_many(&self, component: usize, keys: &Tensor, values: &Tensor) -> Operation {
        self.queue.apply(QueueAction::InsertMany { component }, &[values, keys]).operation()
    }

    /// Takes `n` complete elements; the run waits for them. `n` is a number or a tensor whose value is known before
    /// the run: see [`Amount`].
    ///
    /// # Errors
    /// Recorded: an `n` that is no scalar of i32 or i64. In a run: `OutOfRange` if the barrier is closed, and fewer
    /// are there and can become complete; as [`Queue::dequeue_many`] for `n`.
    #[track_caller]
    pub fn take_many(&self, n: impl Into<Amount>) -> TakenElements {
        self.take(n.into(), |n| QueueAction::TakeMany { n, up_to: false })
    }

    /// As [`Self::take_many`], but of a closed barrier takes those that are left, if there is one.
    ///
    /// # Errors
    /// As [`Self::take_many`]; `OutOfRange` only if there is none.
    #[track_caller]
    pub fn take_up_to(&self, n: impl Into<Amount>) -> TakenElements {
        self.take(n.into(), |n| QueueAction::TakeMany { n, up_to: true })
    }

    #[track_caller]
    fn take(&self, n: Amount, action: fn(Option<usize>) -> QueueAction) -> TakenElements {
        let mut outputs = self.queue.apply_to(n, action).into_iter();
        // One that was refused has one output.
        let indices = outputs.next().unwrap_or_else(|| self.queue.size());
        let keys = outputs.next().unwrap_or_else(|| indices.clone());
        TakenElements { indices, keys, components: outputs.collect() }
    }

    /// How many elements are complete when the run begins: a scalar of i32.
    #[track_caller]
    pub fn ready_size(&self) -> Tensor {
        self.queue.size()
    }

    /// How many elements lack a component when the run begins: a scalar of i32.
    #[track_caller]
    pub fn incomplete_size(&self) -> Tensor {
        self.queue.apply(QueueAction::IncompleteSize, &[])
    }

    /// Closes the barrier: no new keys come into it. Elements can still become complete, and be taken.
    ///
    /// # Errors
    /// In a run: `Cancelled` if it is closed already.
    #[track_caller]
    pub fn close(&self) -> Operation {
        self.queue.close()
    }

    /// Closes the barrier, also one that [`Self::close`] has closed, and drops what is incomplete.
    ///
    /// # Errors
    /// As [`Self::close`], if it was closed like this.
    #[track_caller]
    pub fn close_and_cancel(&self) -> Operation {
        self.queue.close_and_cancel()
    }
}

/// # Errors
/// A component of sizes that are not specified.
pub(super) fn check(spec: &QueueSpec) -> Result<(), OpError> {
    match spec.components.iter().find(|(_, dims)| dims.shape().is_none()) {
        Some((dtype, dims)) => Err(OpError::Invalid(format!(
            "expected components of specified sizes, got {dtype}{dims}"
        ))),
        None => Ok(()),
    }
}

/// # Errors
/// Values that are no rows of this component, or keys that are no strings `[n]` or not as many.
pub(super) fn expect_rows(
    spec: &QueueSpec,
    component: usize,
    values: &Fact,
    keys: &Fact,
) -> Result<(), OpError> {
    let Some((dtype, dims)) = spec.components.get(component) else {
        let n = spec.components.len();
        return Err(OpError::Invalid(format!("there is no component {component} of {n}")));
    };
    if keys.dtype != DType::String {
        return Err(OpError::DTypes { lhs: DType::String, rhs: keys.dtype });
    }
    if values.dtype != *dtype {
        return Err(OpError::DTypes { lhs: *dtype, rhs: values.dtype });
    }
    let n_keys = match keys.dims.dims() {
        None => Dim::Unknown,
        Some([n]) => *n,
        Some(_) => return Err(OpError::Rank { expected: 1, found: keys.dims.clone() }),
    };
    let rows: Option<Dims> = dims
        .dims()
        .map(|dims| Dims::Known(std::iter::once(n_keys).chain(dims.iter().copied()).collect()));
    let rows = rows.unwrap_or(Dims::UnknownRank);
    rows.unify(&values.dims).map(|_| ()).map_err(|_| {
        let found = &values.dims;
        let message = format!("expected values {rows} of component {component}, got {found}");
        OpError::Invalid(message)
    })
}

/// Of elements that are taken: indices, keys, and components.
pub(super) fn taken(spec: &QueueSpec, n: Dim) -> Result<Facts, OpError> {
    let one = |dtype| Fact::new(dtype, Dims::Known(std::iter::once(n).collect()));
    let own = [one(DType::I64), one(DType::String)].into_iter();
    Ok(own.chain(spec.facts(Some(n))?).collect())
}
